//! Adapters (LoRA) of a language model.

use std::path::Path;

use candle_core::DType;
use moesaic_models::decoder::Decoder;
use moesaic_models::lora::{Adapter, adjust};

use super::generator::TextGenerator;
use crate::error::{Error, Result};

impl TextGenerator {
    /// Attaches an adapter that PEFT or `moesaic train language` wrote: a folder with `adapter_config.json` and
    /// `adapter_model.safetensors`. It works beside the weights, whatever their number type, and beside adapters that are
    /// there. `strength` multiplies what it adds: 1 as trained, 0 nothing. An adapter that is attached already gets the new
    /// strength.
    ///
    /// # Errors
    /// [`Error::Weights`] where it cannot be read or is of another model: nothing is attached then.
    pub fn attach(&mut self, adapter: impl AsRef<Path>, strength: f64) -> Result<()> {
        attach(&mut self.decoder, adapter.as_ref(), strength)
    }

    /// Takes an adapter off that [`attach`](Self::attach) brought from this folder.
    pub fn detach(&mut self, adapter: impl AsRef<Path>) {
        detach(&mut self.decoder, adapter.as_ref());
    }
}

pub(crate) fn attach(decoder: &mut Decoder, dir: &Path, strength: f64) -> Result<()> {
    let name = dir.display().to_string();
    let opened = Adapter::open(dir).map_err(|error| Error::weights(dir, &error))?;
    detach(decoder, dir);
    let device = decoder.device().clone();
    let attached = opened.attach(decoder.sites(), &name, strength, DType::F32, &device);
    attached.map(|_| ()).map_err(|error| {
        detach(decoder, dir);
        Error::weights(dir, &error)
    })
}

pub(crate) fn detach(decoder: &mut Decoder, dir: &Path) {
    let name = dir.display().to_string();
    // Every other one keeps the strength it has.
    adjust(decoder.sites(), |attached, strength| (attached != name).then_some(strength));
}
