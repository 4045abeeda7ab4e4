//! The models that can be asked, each with the processor of its pictures.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use moesaic_encoders::image::{AriaProcessor, ImageProcessor, PatchProcessor, Picture};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Modality, Probe, Tokens};
use moesaic_models::aria::{Aria, AriaConfig};
use moesaic_models::decoder::{Decoder, DecoderConfig, Output, Side};
use moesaic_models::generate::Backbone;
use moesaic_models::lora::Adapter;
use moesaic_models::qwen3_vl::{Qwen3Vl, Qwen3VlConfig};
use moesaic_models::vision::{self, Concerned, Row, Spliced, VisionConfig, VisionModel};
use serde_json::{Map, Value};

use super::{config_error, processor};
use crate::error::{Error, Result};
use crate::text::read_text;

/// Families that are types of their own.
pub(super) const OTHERS: [&str; 3] = ["aria", "qwen3_vl", "qwen3_vl_moe"];
/// A configuration longer than this is not one.
const LONGEST_CONFIG: u64 = 16 << 20;

/// What `config.json` says.
#[derive(Debug)]
pub(super) enum Config {
    Vision(Box<VisionConfig>),
    Aria(Box<AriaConfig>),
    Qwen3Vl(Box<Qwen3VlConfig>),
}

impl Config {
    /// The configuration of a model folder.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        // What cannot be read is left to the family, whose messages say what is wrong.
        let map = || serde_json::from_str::<Map<String, Value>>(&read_text(&path, LONGEST_CONFIG).ok()??).ok();
        let named = map().and_then(|map| map.get("model_type")?.as_str().map(str::to_string)).unwrap_or_default();
        let own = |error: candle_core::Error| config_error(dir, error.into());
        Ok(match named.as_str() {
            "aria" => Self::Aria(Box::new(AriaConfig::load(dir).map_err(own)?)),
            "qwen3_vl" | "qwen3_vl_moe" => Self::Qwen3Vl(Box::new(Qwen3VlConfig::load(dir).map_err(own)?)),
            _ => Self::Vision(Box::new(VisionConfig::load(dir).map_err(|error| config_error(dir, error))?)),
        })
    }

    pub fn decoder(&self) -> &DecoderConfig {
        match self {
            Self::Vision(config) => &config.decoder,
            Self::Aria(config) => &config.decoder,
            Self::Qwen3Vl(config) => &config.decoder,
        }
    }

    /// The id that stands for a picture, where the prompt itself holds its token.
    pub fn written_mark(&self) -> Option<u32> {
        match self {
            Self::Vision(_) => None,
            Self::Aria(config) => Some(config.picture_token),
            Self::Qwen3Vl(config) => Some(config.image_token),
        }
    }

    /// With the processor of pictures that the folder has, or the family's usual one.
    pub fn with_processor(self, dir: &Path) -> Result<Source> {
        Ok(match self {
            Self::Vision(config) => {
                let processor = processor::of(dir, &config)?;
                Source::Vision(config, processor)
            }
            Self::Aria(config) => Source::Aria(processor::aria(dir, &config)?),
            Self::Qwen3Vl(config) => Source::Qwen3Vl(processor::patches(dir, &config)?),
        })
    }
}

/// All of a model but its weights.
#[derive(Debug)]
pub(super) enum Source {
    Vision(Box<VisionConfig>, ImageProcessor),
    Aria(AriaProcessor),
    Qwen3Vl(PatchProcessor),
}

impl Source {
    /// The model, whose weights become `dtype`.
    pub fn model(self, dir: &Path, checkpoint: &Checkpoint, dtype: DType, device: &Device) -> Result<VisionBackend> {
        let weights = |error: candle_core::Error| Error::weights(dir, &error);
        Ok(match self {
            Self::Vision(config, processor) => {
                let model = VisionModel::from_checkpoint(*config, checkpoint, dtype, device);
                let model = model.map_err(|error| match error {
                    vision::Error::NoTower { .. } => Error::config(dir, error.to_string()),
                    other => weights(other.into()),
                })?;
                VisionBackend::Vision(Box::new(model), processor)
            }
            Self::Aria(processor) => {
                VisionBackend::Aria(Box::new(Aria::load(dir, dtype, device).map_err(weights)?), processor)
            }
            Self::Qwen3Vl(processor) => {
                VisionBackend::Qwen3Vl(Box::new(Qwen3Vl::load(dir, dtype, device).map_err(weights)?), processor)
            }
        })
    }
}

/// The model behind a [`VisionChat`](super::VisionChat), with the processor of its pictures.
#[derive(Debug)]
#[non_exhaustive]
pub enum VisionBackend {
    /// A family of [`moesaic_models::vision`].
    Vision(Box<VisionModel>, ImageProcessor),
    /// [`Aria`].
    Aria(Box<Aria>, AriaProcessor),
    /// [`Qwen3Vl`], dense or sparse.
    Qwen3Vl(Box<Qwen3Vl>, PatchProcessor),
}

impl VisionBackend {
    /// The id that stands for a picture in a prompt.
    pub fn picture_token(&self) -> u32 {
        match self {
            Self::Vision(model, _) => model.picture_token(),
            Self::Aria(model, _) => model.config().picture_token,
            Self::Qwen3Vl(model, _) => model.config().image_token,
        }
    }

    /// The language model.
    pub fn decoder(&self) -> &Decoder {
        match self {
            Self::Vision(model, _) => model.decoder(),
            Self::Aria(model, _) => model.decoder(),
            Self::Qwen3Vl(model, _) => model.decoder(),
        }
    }

    pub(super) fn decoder_mut(&mut self) -> &mut Decoder {
        match self {
            Self::Vision(model, _) => model.decoder_mut(),
            Self::Aria(model, _) => model.decoder_mut(),
            Self::Qwen3Vl(model, _) => model.decoder_mut(),
        }
    }

    pub(super) fn backbone(&self) -> &(dyn Backbone + Sync + 'static) {
        match self {
            Self::Vision(model, _) => model.as_ref(),
            Self::Aria(model, _) => model.as_ref(),
            Self::Qwen3Vl(model, _) => model.as_ref(),
        }
    }

    /// Pictures as tokens of the language model, in one piece each.
    pub(super) fn encode(&self, pictures: &[Picture], probe: Option<&Probe>) -> Result<Vec<Tokens>> {
        let compute = |error: candle_core::Error| Error::compute(&error);
        if pictures.is_empty() {
            return Ok(Vec::new());
        }
        match self {
            Self::Vision(model, processor) => match &model.config().tiles {
                None => {
                    let encoded = model.encode(&processor.process(pictures)?, probe);
                    encoded.and_then(|encoded| encoded.pictures()).map_err(compute)
                }
                Some(tiles) => {
                    let grids = if processor.grids.is_empty() { &tiles.grids } else { &processor.grids };
                    let one = |picture: &Picture| {
                        let (pixels, grid) = processor.tiles(picture, grids)?;
                        let encoded = model.encode_tiles(&pixels, grid, (picture.width(), picture.height()), probe);
                        Ok(encoded.map_err(compute)?.tokens)
                    };
                    pictures.iter().map(one).collect()
                }
            },
            Self::Aria(model, processor) => {
                let pixels = processor.process(pictures)?;
                let crops = model.encode(&pixels.pixels, Some(&pixels.mask), probe).map_err(compute)?;
                let mut rest = crops.iter();
                let whole = |n: &usize| {
                    let own: Vec<&Tensor> = rest.by_ref().take(*n).map(|crop| &crop.embeds).collect();
                    Ok(Tokens::new(Tensor::cat(&own, 1)?, Modality::Image))
                };
                pixels.crops.iter().map(whole).collect::<candle_core::Result<_>>().map_err(compute)
            }
            Self::Qwen3Vl(model, processor) => {
                let patches = processor.process(pictures)?;
                model.encode_images(&patches.values, &patches.grids).map_err(compute)
            }
        }
    }

    /// A row of ids and pictures as the decoder takes it.
    pub(super) fn splice(&self, row: Row<'_>) -> vision::Result<Spliced> {
        match self {
            Self::Vision(model, _) => model.splice(&[row], Side::Left, None),
            Self::Aria(model, _) => model.splice(&[row], Side::Left, None),
            Self::Qwen3Vl(model, _) => model.splice(&[row], Side::Left, None),
        }
    }

    pub(super) fn forward(&self, spliced: &Spliced, probe: Option<&Probe>) -> candle_core::Result<Output> {
        match self {
            Self::Vision(model, _) => model.forward(spliced, None, probe),
            Self::Aria(model, _) => model.forward(spliced, None, probe),
            Self::Qwen3Vl(model, _) => model.forward(spliced, None, probe),
        }
    }

    /// The parts that an adapter brings whole tensors of.
    pub(super) fn concerned(&self, adapter: &Adapter) -> Concerned {
        match self {
            Self::Vision(model, _) => model.concerned(adapter),
            // They take none, as attaching will say.
            _ => Concerned::default(),
        }
    }

    /// Reads parts anew ([`VisionModel::reload`]).
    pub(super) fn reload(
        &mut self,
        checkpoint: &Checkpoint,
        parts: Concerned,
        dtype: DType,
    ) -> candle_core::Result<()> {
        match self {
            Self::Vision(model, _) => model.reload(checkpoint, parts, dtype),
            _ => Ok(()),
        }
    }

    /// Attaches the low-rank part of an adapter.
    pub(super) fn attach(&mut self, adapter: &Adapter, name: &str, strength: f64) -> candle_core::Result<usize> {
        match self {
            Self::Vision(model, _) => model.attach(adapter, name, strength),
            other => {
                let decoder = other.decoder_mut();
                let device = decoder.device().clone();
                adapter.attach(decoder.sites(), name, strength, DType::F32, &device)
            }
        }
    }
}
