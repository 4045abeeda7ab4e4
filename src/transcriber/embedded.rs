//! The small model that is part of the library. Its card is `assets/avsr/README.md`.

use std::path::Path;

use candle_core::DType;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::avsr::AvsrConfig;
use serde_json::Map;

use super::{Transcriber, config_error};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// What stands for its folder in messages.
const NAME: &str = "embedded";
static CONFIG: &str = include_str!("../../assets/avsr/config.json");
static TOKENIZER: &str = include_str!("../../assets/avsr/tokenizer.json");
static WEIGHTS: &[u8] = include_bytes!("../../assets/avsr/model.safetensors");

impl Transcriber {
    /// The small model that is part of the library: it writes down short English commands of few words, digits and letters, by
    /// ear, by eye or by both. It learnt from synthetic voices and drawn mouths only; its card, `assets/avsr/README.md`, says
    /// what it knows and how often it is right.
    ///
    /// # Errors
    /// None in a sound build: as [`from_dir`](Self::from_dir).
    pub fn embedded() -> Result<Self> {
        Self::embedded_on(Device::Cpu)
    }

    /// The same on a device.
    ///
    /// # Errors
    /// [`Error::Device`] where the device cannot be used.
    pub fn embedded_on(device: Device) -> Result<Self> {
        let device = device.open()?;
        let name = Path::new(NAME);
        let config = AvsrConfig::from_json(CONFIG).map_err(|error| config_error(name, &error))?;
        let tokenizer = Tokenizer::from_json(&name.join("tokenizer.json"), TOKENIZER, &Map::new())?;
        let checkpoint = Checkpoint::from_bytes(NAME, WEIGHTS).map_err(|error| Error::weights(name, &error))?;
        // Stored in halves to be small; so small that it computes as fast in f32.
        Self::of(name, config, tokenizer, &checkpoint, (DType::F32, &device))
    }
}
