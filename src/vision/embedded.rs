//! The small model that is part of the library. Its card is `assets/vqa/README.md`.

use std::path::{Path, PathBuf};

use candle_core::DType;
use moesaic_encoders::image::ImageProcessor;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::generate::GenerationConfig;
use moesaic_models::vision::VisionConfig;
use serde_json::Map;

use super::backend::Source;
use super::prompt::Prompting;
use super::{Config, VisionChat, VisionModelInfo, Weights, config_error, processor};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::text::{Tokenizer, ended_by};

/// What stands for its folder in messages.
const NAME: &str = "embedded";
static CONFIG: &str = include_str!("../../assets/vqa/config.json");
static PREPROCESSOR: &str = include_str!("../../assets/vqa/preprocessor_config.json");
static TOKENIZER: &str = include_str!("../../assets/vqa/tokenizer.json");
static WEIGHTS: &[u8] = include_bytes!("../../assets/vqa/model.safetensors");

impl VisionChat {
    /// The small model that is part of the library: it answers questions about rendered shapes and handwritten digits, in the
    /// words of its training data. Its card, `assets/vqa/README.md`, says what it was trained on and how often it is right.
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
        let config = VisionConfig::from_json(CONFIG).map_err(|error| config_error(name, error))?;
        let file = name.join("preprocessor_config.json");
        let pictures = ImageProcessor::from_json(PREPROCESSOR).map_err(|e| Error::config(&file, e.to_string()))?;
        let source = Source::Vision(Box::new(config.clone()), processor::padded(pictures, &config));
        let config = Config::Vision(Box::new(config));
        let tokenizer = Tokenizer::from_json(&name.join("tokenizer.json"), TOKENIZER, &Map::new())?;
        let prompting = Prompting::of(name, &config, &tokenizer)?;
        let generation = ended_by(GenerationConfig::default(), config.decoder(), &tokenizer);
        let checkpoint = Checkpoint::from_bytes(NAME, WEIGHTS).map_err(|error| Error::weights(name, &error))?;
        let weights = Weights {
            place: PathBuf::from(NAME),
            // Stored in halves to be small; so small that it computes as fast in f32.
            dtype: DType::F32,
            in_memory: Some(checkpoint.clone()),
        };
        let info = VisionModelInfo::new(name, &config, &checkpoint);
        let model = source.model(name, &checkpoint, weights.dtype, &device)?;
        Ok(Self { model, tokenizer, prompting, config: generation, info, weights, attached: Vec::new(), whole: None })
    }
}
