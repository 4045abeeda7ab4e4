//! The small speech model that is part of the library. Its card is `assets/avsr/README.md`.

use std::path::Path;

use candle_core::DType;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::avsr::AvsrConfig;
use serde_json::Map;

use super::{Transcriber, config_error};
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// What stands for its folder in messages.
const NAME: &str = "embedded";
static CONFIG: &str = include_str!("../../assets/avsr/config.json");
static TOKENIZER: &str = include_str!("../../assets/avsr/tokenizer.json");
static WEIGHTS: &[u8] = include_bytes!("../../assets/avsr/model.safetensors");

impl Transcriber {
    /// The small model that is part of the library: it knows sentences of a closed grammar (commands, digits, letters) of
    /// synthetic voices and drawn mouths, by ear, by eye and by both. Its card, `assets/avsr/README.md`, says what it was trained
    /// on and how often it is wrong.
    ///
    /// # Errors
    /// None in a sound build: as [`from_dir`](Self::from_dir).
    pub fn embedded() -> Result<Self> {
        let name = Path::new(NAME);
        let config = AvsrConfig::from_json(CONFIG).map_err(|error| config_error(name, &error))?;
        let tokenizer = Tokenizer::from_json(&name.join("tokenizer.json"), TOKENIZER, &Map::new())?;
        let checkpoint = Checkpoint::from_bytes(NAME, WEIGHTS).map_err(|error| Error::weights(name, &error))?;
        // Stored in halves to be small; so small that it computes as fast in f32.
        Self::of(name, config, tokenizer, &checkpoint, DType::F32)
    }
}
