//! Adapters (LoRA) of a model that looks at pictures.

use std::path::Path;

use moesaic_models::lora::{Adapter, adjust};
use moesaic_models::vision::Concerned;

use super::VisionChat;
use crate::error::{Error, Result};

impl VisionChat {
    /// Attaches an adapter that PEFT, `moesaic train vision` or, of the language model alone, `moesaic train language` wrote: a
    /// folder with `adapter_config.json` and `adapter_model.safetensors`. It works beside the weights and beside adapters that
    /// are there; `strength` multiplies what its low-rank maps add: 1 as trained, 0 nothing. Modules that were trained whole
    /// with it, such as the projector (`modules_to_save`), take the place of the model's own, whatever the strength. An adapter
    /// that is attached already gets the new strength.
    ///
    /// # Errors
    /// [`Error::Weights`] where it cannot be read, is of another model, or brings modules where another one did: it is not
    /// attached then.
    pub fn attach(&mut self, adapter: impl AsRef<Path>, strength: f64) -> Result<()> {
        let dir = adapter.as_ref();
        let opened = open(dir)?;
        self.detach(dir)?;
        let parts = self.model.concerned(&opened);
        if parts.any() {
            if let Some((other, _)) = &self.whole {
                let problem = format!("brings modules of its own, as {} did: attach one of them", other.display());
                return Err(Error::weights(dir, &candle_core::Error::msg(problem)));
            }
            self.reload(Some(&opened), dir, parts)?;
            self.whole = Some((dir.to_path_buf(), parts));
        }
        if let Err(error) = self.model.attach(&opened, &name(dir), strength) {
            self.detach(dir)?;
            return Err(Error::weights(dir, &error));
        }
        self.attached.push((dir.to_path_buf(), strength));
        Ok(())
    }

    /// Takes an adapter off that [`attach`](Self::attach) brought from this folder.
    ///
    /// # Errors
    /// [`Error::Weights`] where modules that it had replaced cannot be read again.
    pub fn detach(&mut self, adapter: impl AsRef<Path>) -> Result<()> {
        let dir = adapter.as_ref();
        let name = name(dir);
        // Every other one keeps the strength it has.
        adjust(self.model.decoder_mut().sites(), |attached, strength| (attached != name).then_some(strength));
        self.attached.retain(|(attached, _)| attached != dir);
        match self.whole.take_if(|(whole, _)| whole == dir) {
            Some((_, parts)) => self.reload(None, dir, parts),
            None => Ok(()),
        }
    }

    /// Reads parts of the model again, with what an adapter brings or without.
    fn reload(&mut self, adapter: Option<&Adapter>, dir: &Path, parts: Concerned) -> Result<()> {
        let own = self.weights.open()?;
        let (checkpoint, file) = match adapter {
            Some(adapter) => (adapter.over(&own).map_err(|error| Error::weights(dir, &error))?, dir),
            None => (own, self.weights.place.as_path()),
        };
        self.model.reload(&checkpoint, parts, self.weights.dtype).map_err(|error| Error::weights(file, &error))?;
        if parts.language {
            // A language model that was read anew has none of those that were attached.
            for (dir, strength) in &self.attached {
                let attached = self.model.attach(&open(dir)?, &name(dir), *strength);
                attached.map_err(|error| Error::weights(dir, &error))?;
            }
        }
        Ok(())
    }
}

fn open(dir: &Path) -> Result<Adapter> {
    Adapter::open(dir).map_err(|error| Error::weights(dir, &error))
}

/// What its maps know an adapter by.
fn name(dir: &Path) -> String {
    // Without a slash at its end.
    dir.components().collect::<std::path::PathBuf>().display().to_string()
}
