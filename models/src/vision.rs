//! Models that look at pictures: a vision tower, a projector and the one [`Decoder`], joined.
//!
//! ```text
//! pixels [n, 3, h, w] ─ Tower ─▶ features [n, t, c] ─ Projector ─▶ picture tokens [n, t, H] ┐
//!                                                                                            ├─ splice ─▶ [b, T, H] ─ Decoder ─▶ logits
//! ids with marks, one for each picture ────────────────────────── embed ────────────────────┘
//! ```
//!
//! [`VisionModel::encode`] makes tokens of pictures, [`VisionModel::splice`] puts them between the words, at any places, and
//! [`VisionModel::forward`] runs the decoder. The model is a [`Backbone`]: generation takes
//! [`Prompts::Embeds`](crate::generate::Prompts) of what was spliced.
//!
//! # Families
//! | `model_type` | what | file |
//! | --- | --- | --- |
//! | `moesaic_vision` | our own trained models: CLIP or SigLIP, an MLP or sparse MLP, any language family | `families/native.rs` |
//! | `llava` | LLaVA-1.5 in the layout of `transformers` | `families/llava.rs` |
//! | `llava_next` | LLaVA-1.6, whose pictures are cut into tiles, in the layout of `transformers` | `families/llava_next.rs` |
//! | `llava`, `llava_llama`, `llava_mistral` | LLaVA-1.5 and 1.6 in the layout of their authors | `families/original.rs` |
//! | `moe_llava_{stablelm, phi, qwen, qwen1_5, mistral, llama}` | MoE-LLaVA, and without `moe_` its dense stage II | `families/moe_llava.rs` |
//! | `llava_mistral`, `llava_mixtral` | CuMo | `families/cumo.rs` |
//!
//! [`Aria`](crate::aria::Aria) and [`Qwen3Vl`](crate::qwen3_vl::Qwen3Vl), whose pictures have sizes of their own, are types of
//! their own over the same decoder, and share rows and splicing.
//!
//! # Where a row depends on its neighbours
//! Nowhere, but in models whose experts have a bounded capacity: there the rows of a batch, and their order, decide together
//! which tokens find room ([`Capacity`](moesaic_kernels::routers::Capacity)).

mod adapters;
mod assemble;
mod config;
mod error;
mod families;
mod loss;
pub(crate) mod parts;
mod save;
pub(crate) mod splice;
mod tiles;
mod towers;

use std::path::Path;

use candle_core::{DType, Device, Tensor, bail};
use moesaic_encoders::{CumoLosses, Features, Tower};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Params, Probe, Routes, Tokens};
use moesaic_projectors::Projector;

use crate::decoder::{Cache, Context, Decoder, Input, Output};
use crate::generate::Backbone;

pub use adapters::Concerned;
pub use assemble::{Parts, Upcycling};
pub use config::{Language, Layout, LossWeights, Place, ProjectorConfig, TowerConfig, VisionConfig};
pub use error::{Error, Result};
pub use loss::VisionLosses;
pub use splice::{PICTURE, Row, Spliced, share};
pub use tiles::TilesConfig;

/// A vision model. `Send + Sync`; a forward pass takes `&self`.
#[derive(Debug)]
pub struct VisionModel {
    config: VisionConfig,
    tower: Box<dyn Tower>,
    projector: Box<dyn Projector>,
    decoder: Decoder,
    /// What stands behind each row of a picture in tiles, `[H]`.
    newline: Option<Tensor>,
}

/// Pictures as the decoder takes them.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// What the tower gave, `[n, t, c]`.
    pub features: Tokens,
    /// What the projector made of it, `[n, t, H]`.
    pub tokens: Tokens,
    /// Routes of a sparse projector, over the tokens `[n * t]`; none of a dense one.
    pub routes: Vec<Routes>,
    /// Losses of a sparse tower, where they were asked for.
    pub tower_losses: Option<CumoLosses>,
}

impl Encoded {
    /// The tokens of each picture, `[1, t, H]`.
    pub fn pictures(&self) -> candle_core::Result<Vec<Tokens>> {
        let n = self.tokens.embeds.dim(0)?;
        let one = |i: usize| {
            let mask = self.tokens.mask.as_ref().map(|mask| mask.narrow(0, i, 1)).transpose()?;
            Ok(Tokens { mask, ..Tokens::new(self.tokens.embeds.narrow(0, i, 1)?.contiguous()?, self.tokens.modality) })
        };
        (0..n).map(one).collect()
    }
}

impl VisionModel {
    /// Loads a folder: `config.json` and safetensors weights. Weights become `dtype` (f32, bf16 or f16) one by one.
    ///
    /// # Errors
    /// The folder cannot be read or does not fit, is of no supported family, or has no vision tower.
    pub fn load(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        Self::from_checkpoint(VisionConfig::load(dir)?, &Checkpoint::open(dir)?, dtype, device)
    }

    /// The model of a checkpoint, for inference.
    ///
    /// # Errors
    /// The checkpoint has no vision tower, lacks a tensor or has one of another shape, or has tensors that the model does
    /// not know.
    pub fn from_checkpoint(
        config: VisionConfig,
        checkpoint: &Checkpoint,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let config = config.settle(checkpoint)?;
        let params = Params::load(checkpoint, dtype, device);
        let model = Self::new(config, &params)?;
        crate::folder::no_others(&params, checkpoint, &model.config.model_type, |name| model.config.ignorable(name))?;
        Ok(model)
    }

    /// The model with tensors from `params`: of a checkpoint ([`VisionConfig::settle`]), or variables to be trained. Its
    /// tensors stand under their published names there; those that it does not ask for are left alone.
    pub fn new(config: VisionConfig, params: &Params) -> candle_core::Result<Self> {
        config.validate()?;
        let layout = config.layout()?;
        let tower = config.tower.build(&params.pp(&layout.tower))?;
        let projector = config.build_projector(&params.pp(&layout.projector))?;
        let newline = config.build_newline(params)?;
        let decoder = Decoder::new(config.decoder.clone(), &layout.language.params(params))?;
        Ok(Self { newline, ..Self::from_parts(config, tower, projector, decoder)? })
    }

    /// A model of parts that were made elsewhere.
    ///
    /// # Errors
    /// The projector's width is not that of the decoder.
    pub fn from_parts(
        config: VisionConfig,
        tower: Box<dyn Tower>,
        projector: Box<dyn Projector>,
        decoder: Decoder,
    ) -> candle_core::Result<Self> {
        let (given, wanted) = (projector.output_width(), decoder.config().hidden_size);
        if given != wanted {
            bail!("the projector gives tokens of width {given}, the decoder takes {wanted}");
        }
        Ok(Self { config, tower, projector, decoder, newline: None })
    }

    /// The configuration.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// The vision tower.
    pub fn tower(&self) -> &dyn Tower {
        self.tower.as_ref()
    }

    /// Which of the tower's hidden states become features.
    pub fn features(&self) -> &Features {
        &self.config.features
    }

    /// The projector.
    pub fn projector(&self) -> &dyn Projector {
        self.projector.as_ref()
    }

    /// The language model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The language model, for adapters of its own ([`Decoder::sites`]); [`attach`](Self::attach) takes those of the whole model too.
    pub fn decoder_mut(&mut self) -> &mut Decoder {
        &mut self.decoder
    }

    /// The device that the model computes on.
    pub fn device(&self) -> &Device {
        self.decoder.device()
    }

    /// The id that stands for a picture among ids: the model's own, or [`PICTURE`] where its vocabulary has none.
    pub fn picture_token(&self) -> u32 {
        self.config.picture_token.unwrap_or(PICTURE)
    }

    /// Pictures as backbone tokens, each seen as one; those of models that cut them go to [`encode_tiles`](Self::encode_tiles). A probe gets what the tower records: it needs to be another one than that of
    /// [`forward`](Self::forward), whose names are the same.
    ///
    /// # Shapes
    /// normalised `pixels [n, 3, h, w]` of the tower's size to tokens `[n, t, H]`
    pub fn encode(&self, pixels: &Tensor, probe: Option<&Probe>) -> candle_core::Result<Encoded> {
        self.project(self.tower.encode(pixels, &self.config.features, probe)?, probe)
    }

    /// [`encode`](Self::encode) with the losses of a sparse tower, for training.
    pub fn encode_with_losses(&self, pixels: &Tensor, probe: Option<&Probe>) -> candle_core::Result<Encoded> {
        let (features, tower_losses) = self.tower.encode_with_losses(pixels, &self.config.features, probe)?;
        Ok(Encoded { tower_losses, ..self.project(features, probe)? })
    }

    /// The projector alone, on features that the tower gave before: while the tower is frozen they stay the same.
    ///
    /// # Shapes
    /// `features [n, t, c]` to tokens `[n, t, H]`
    pub fn project(&self, features: Tokens, probe: Option<&Probe>) -> candle_core::Result<Encoded> {
        let (tokens, routes) = match self.config.compression {
            None => self.projector.project_one(&features, probe)?,
            Some(compression) => self.projector.project_one(&compression.apply(&features)?, probe)?,
        };
        Ok(Encoded { features, tokens, routes, tower_losses: None })
    }

    /// Hidden states of every position of spliced rows, with the routes of the decoder. A cache goes on from there with
    /// [`Decoder::forward`] or [`Backbone::next_logits`].
    pub fn forward(
        &self,
        rows: &Spliced,
        cache: Option<&mut Cache>,
        probe: Option<&Probe>,
    ) -> candle_core::Result<Output> {
        self.decoder.forward(Input::Embeds(&rows.embeds), &rows.context, cache, probe)
    }

    /// Scores of the next token, in f32.
    ///
    /// # Shapes
    /// `hidden [.., H]` to `[.., V]`
    pub fn logits(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        self.decoder.logits(hidden)
    }
}

impl Backbone for VisionModel {
    fn next_logits(&self, input: Input<'_>, context: &Context, cache: &mut Cache) -> candle_core::Result<Tensor> {
        self.decoder.next_logits(input, context, cache)
    }

    fn max_positions(&self) -> usize {
        self.decoder.config().max_positions
    }

    fn device(&self) -> &Device {
        self.decoder.device()
    }
}
