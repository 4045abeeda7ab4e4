//! What a vision model is made of: every family's `config.json` is translated into a [`VisionConfig`].

use std::path::Path;

use candle_core::{Error as Candle, bail};
use moesaic_encoders::{
    ClipConfig, ClipVision, CumoConfig, CumoVision, Features, Head, Select, SiglipConfig, SiglipVision, Tower,
};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Activation, Params, shown};
use moesaic_projectors::{Compression, Mlp, MlpNames, Projector, SparseMlp, SparseMlpConfig};
use serde_json::{Map, Value};

use super::{Error, Result, TilesConfig, families, towers};
use crate::decoder::{DecoderConfig, unquantised};
use crate::folder;

/// A vision model: its parts, and where their tensors stand.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// `model_type` of `config.json`.
    pub model_type: String,
    /// The vision tower.
    pub tower: TowerConfig,
    /// Which of its hidden states become features.
    pub features: Features,
    /// How features are joined before the projector.
    pub compression: Option<Compression>,
    /// How pictures are cut into tiles; absent where each is seen as one.
    pub tiles: Option<TilesConfig>,
    /// The projector.
    pub projector: ProjectorConfig,
    /// The language model.
    pub decoder: DecoderConfig,
    /// The id in its vocabulary that stands for a picture; absent where there is none.
    pub picture_token: Option<u32>,
    /// Weights of the losses of a sparse projector and a sparse tower.
    pub losses: LossWeights,
    /// Tokens of a training row at most, pictures counted; `tokenizer_model_max_length`.
    pub longest: Option<usize>,
    /// `image_aspect_ratio`: what preprocessing does with pictures that are not square (`pad`: fill up, else crop).
    pub image_aspect_ratio: Option<String>,
    /// Where tensors may stand, the usual place first; [`settle`](Self::settle) leaves one.
    pub layouts: Vec<Layout>,
    /// `config.json` as it was read, to be written beside saved weights.
    pub published: Map<String, Value>,
}

/// A part of a vision model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The vision tower.
    Tower,
    /// The projector.
    Projector,
    /// The language model, with the tensor's name as a model of its own has it.
    Language(String),
}

/// A vision tower.
#[derive(Clone, Debug, PartialEq)]
pub enum TowerConfig {
    /// CLIP's.
    Clip(ClipConfig),
    /// SigLIP's.
    Siglip(SiglipConfig),
    /// CuMo's: CLIP with sparse networks, at several scales.
    Cumo(CumoConfig),
}

/// A projector.
#[derive(Clone, Debug, PartialEq)]
pub enum ProjectorConfig {
    /// Linear maps with a non-linearity between.
    Mlp {
        /// How many.
        depth: usize,
        /// The names of their tensors.
        names: MlpNames,
        /// The non-linearity.
        activation: Activation,
        /// They have biases.
        bias: bool,
    },
    /// CuMo's connector.
    Sparse {
        /// Its experts.
        experts: usize,
        /// Experts per token.
        k: usize,
    },
}

/// Weights of auxiliary losses in the total; the decoder's is in its own config.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossWeights {
    /// Of the load balance, `balance_loss_coef`.
    pub balance: f64,
    /// Of the z-loss, `router_z_loss_coef`.
    pub z: f64,
}

impl Default for LossWeights {
    /// CuMo's.
    fn default() -> Self {
        Self { balance: 0.1, z: 0.01 }
    }
}

/// Where the tensors of the parts stand in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Prefix of the tower's `vision_model.*`.
    pub tower: String,
    /// Prefix of the projector's.
    pub projector: String,
    /// Where the language model's stand.
    pub language: Language,
}

/// Where the tensors of a language model stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// As in a model of its own: `model.layers.*`.
    Own,
    /// Behind a prefix: `language_model.model.layers.*`.
    Under(&'static str),
    /// `model.language_model.layers.*` and `lm_head.*`: what `transformers` from 4.52 on has in memory.
    Inside,
}

impl Language {
    /// The decoder's source of tensors.
    pub(super) fn params(self, params: &Params) -> Params {
        match self {
            Self::Own => params.clone(),
            Self::Under(prefix) => params.pp(prefix),
            Self::Inside => params.renamed(move |name| self.published(name)),
        }
    }

    /// The name in a checkpoint of what the decoder knows by this name.
    pub(super) fn published(self, own: &str) -> String {
        match self {
            Self::Own => own.to_string(),
            Self::Under(prefix) => format!("{prefix}.{own}"),
            Self::Inside => match own.strip_prefix("model.") {
                Some(rest) => format!("{INSIDE}{rest}"),
                None => own.to_string(),
            },
        }
    }

    /// A tensor's name as the decoder knows it; absent for tensors of other parts.
    fn own(self, name: &str) -> Option<String> {
        match self {
            Self::Own => Some(name.to_string()),
            Self::Under(prefix) => Some(name.strip_prefix(prefix)?.strip_prefix('.')?.to_string()),
            Self::Inside => match name.strip_prefix(INSIDE) {
                Some(rest) => Some(format!("model.{rest}")),
                None => Some(name.to_string()),
            },
        }
    }
}

const INSIDE: &str = "model.language_model.";

impl VisionConfig {
    /// Reads `config.json` of a model folder, and `vision_config.json` beside it where it is there: the sizes of a tower
    /// that `config.json` only names.
    ///
    /// # Errors
    /// The folder has no such file, its `model_type` is not supported (the message lists those that are) or that of a language
    /// model, or a value does not fit.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let map = folder::config(&path)?;
        let beside = dir.join("vision_config.json");
        let tower = if beside.is_file() { Some(folder::config(&beside)?) } else { None };
        Self::from_map(map, tower).map_err(|e| e.of_file(&path.display()))
    }

    /// Translates a `config.json`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_json(json: &str) -> Result<Self> {
        match serde_json::from_str(json) {
            Ok(Value::Object(map)) => Self::from_map(map, None),
            Ok(_) => Err(Error::other("this is not a configuration: expected a JSON object")),
            Err(e) => Err(Error::other(format!("this is not JSON: {e}"))),
        }
    }

    /// Translates a `config.json`; `tower` is a `vision_config` for families that only name their tower.
    pub fn from_map(map: Map<String, Value>, tower: Option<Map<String, Value>>) -> Result<Self> {
        let mut config = families::translate(map, tower)?;
        config.published = unquantised(config.published);
        config.validate()?;
        Ok(config)
    }

    /// The model types that are supported.
    pub fn supported() -> impl Iterator<Item = &'static str> {
        families::names()
    }

    /// The same model whose language model draws second experts with noise ([`DecoderConfig::with_second_choice_noise`]).
    pub fn with_second_choice_noise(mut self, seed: Option<u64>) -> Self {
        self.decoder = self.decoder.with_second_choice_noise(seed);
        self
    }

    /// Checks that the parts fit each other.
    pub fn validate(&self) -> candle_core::Result<()> {
        self.decoder.validate()?;
        if let ProjectorConfig::Sparse { experts, k } = self.projector
            && (k == 0 || k > experts || experts > 1 << 10)
        {
            bail!("a sparse projector with {k} of {experts} experts for a token, expected 1 to all of at most 1024");
        }
        for (name, weight) in [("balance_loss_coef", self.losses.balance), ("router_z_loss_coef", self.losses.z)] {
            if !(weight >= 0.0 && weight.is_finite()) {
                bail!("{name} is {weight}, expected 0 or more");
            }
        }
        if let Some(compression) = self.compression {
            compression.check(self.features())?;
        }
        if let Some(tiles) = &self.tiles {
            tiles.check(self.tower.image_size())?;
            if self.compression.is_some() || self.features().isqrt().pow(2) != self.features() {
                bail!(
                    "pictures in tiles need a square of features of each, and the tower gives {}: see vision_feature_select_strategy",
                    self.features()
                );
            }
        }
        if let Some(token) = self.picture_token.filter(|&t| t as usize >= self.decoder.vocab_size) {
            bail!("the picture's token {token} is not in the vocabulary of {} tokens", self.decoder.vocab_size);
        }
        Ok(())
    }

    /// The projector of this config: its tensors are those of `params`.
    pub(super) fn build_projector(&self, params: &Params) -> candle_core::Result<Box<dyn Projector>> {
        let features = self.tower.width() * self.features.layers.len();
        let features = self.compression.map_or(features, |compression| compression.width(features));
        self.projector.build(params, (features, self.decoder.hidden_size))
    }

    /// Which part of the model a published tensor belongs to.
    pub fn place(&self, name: &str) -> Place {
        let inside = |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'));
        for layout in &self.layouts {
            if inside(&layout.tower) {
                return Place::Tower;
            }
            if inside(&layout.projector) || (self.tiles.is_some() && name == layout.newline()) {
                return Place::Projector;
            }
            if let Some(own) = layout.language.own(name) {
                return Place::Language(own);
            }
        }
        Place::Language(name.to_string())
    }

    /// Tokens that a picture becomes; where pictures are cut, the whole of it as one ([`tokens_of`](Self::tokens_of)).
    pub fn picture_tokens(&self) -> usize {
        self.compression.map_or(self.features(), |compression| compression.count(self.features()))
    }

    /// Features that the tower gives of a picture.
    fn features(&self) -> usize {
        let (patches, class) = match &self.tower {
            TowerConfig::Clip(c) => ((c.image_size / c.patch_size).pow(2), 1),
            TowerConfig::Siglip(c) => ((c.image_size / c.patch_size).pow(2), 0),
            TowerConfig::Cumo(c) => ((c.clip.image_size / c.clip.patch_size).pow(2), 1),
        };
        match self.features.select {
            Select::ClsPatch => patches + class,
            Select::Patch => patches + class - 1,
        }
    }

    /// The layout that tensors are taken from.
    pub(super) fn layout(&self) -> candle_core::Result<&Layout> {
        self.layouts.first().ok_or_else(|| Candle::msg(format!("{}: the config has no layout", self.model_type)))
    }

    /// The config with the layout that this checkpoint has.
    ///
    /// # Errors
    /// The checkpoint has no vision tower.
    pub fn settle(mut self, checkpoint: &Checkpoint) -> Result<Self> {
        let there = |prefix: &str| {
            checkpoint
                .names()
                .any(|name| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(".vision_model.")))
        };
        match self.layouts.iter().position(|layout| there(&layout.tower)) {
            Some(i) => {
                self.layouts = self.layouts.drain(..).skip(i).take(1).collect();
                Ok(self)
            }
            None => {
                let places: Vec<_> = self.layouts.iter().map(|l| format!("{}.vision_model.*", l.tower)).collect();
                Err(Error::no_tower(format!(
                    "{} has no tensor {}; get the weights with their tower",
                    checkpoint.label(),
                    places.join(" or ")
                )))
            }
        }
    }

    /// Tensors that published checkpoints hold and no forward pass needs.
    pub(super) fn ignorable(&self, name: &str) -> bool {
        let Some(layout) = self.layouts.first() else { return false };
        // The tower's head, which pools what nobody asks for, and buffers that old releases saved.
        if let Some(rest) = name.strip_prefix(layout.tower.as_str()).and_then(|r| r.strip_prefix(".vision_model.")) {
            return rest.starts_with("post_layernorm.")
                || rest.starts_with("head.")
                || rest == "embeddings.position_ids";
        }
        layout.language.own(name).is_some_and(|name| self.decoder.ignorable(&name))
    }
}

impl TowerConfig {
    /// Translates a `vision_config` by its `model_type`.
    pub fn from_map(map: &Map<String, Value>) -> candle_core::Result<Self> {
        let text = Value::Object(map.clone()).to_string();
        match map.get("model_type").and_then(Value::as_str).unwrap_or("clip_vision_model") {
            "clip_vision_model" | "clip" => Ok(Self::Clip(ClipConfig::from_json(&text)?)),
            "siglip_vision_model" | "siglip" => Ok(Self::Siglip(SiglipConfig::from_json(&text)?)),
            other => bail!(
                "vision_config is of type {}, supported are clip_vision_model and siglip_vision_model",
                shown(other)
            ),
        }
    }

    /// The `vision_config` of a tower that is known by its name on the Hub.
    pub(super) fn named(name: &str) -> Result<Map<String, Value>> {
        match towers::known(name) {
            Some(map) => Ok(map),
            None => Err(Error::other(format!(
                "the sizes of the vision tower {} are not known; put its config.json beside this one as vision_config.json",
                shown(name)
            ))),
        }
    }

    /// Width of a feature of one layer.
    pub fn width(&self) -> usize {
        match self {
            Self::Clip(config) => config.hidden_size,
            Self::Siglip(config) => config.hidden_size,
            Self::Cumo(config) => config.clip.hidden_size * config.scales.len(),
        }
    }

    /// Pixels of a picture's side.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Clip(config) => config.image_size,
            Self::Siglip(config) => config.image_size,
            Self::Cumo(config) => config.clip.image_size,
        }
    }

    /// The tower of tensors `vision_model.*` of `params`.
    pub(super) fn build(&self, params: &Params) -> candle_core::Result<Box<dyn Tower>> {
        Ok(match self {
            Self::Clip(config) => Box::new(ClipVision::new(config.clone(), params, Head::None)?),
            Self::Siglip(config) => Box::new(SiglipVision::new(config.clone(), params, Head::None)?),
            Self::Cumo(config) => Box::new(CumoVision::new(config.clone(), params)?),
        })
    }
}

impl ProjectorConfig {
    /// An MLP of the kind that `mm_projector_type` names, with LLaVA's own tensor names.
    pub(super) fn llava(kind: &str) -> candle_core::Result<Self> {
        let depth = Mlp::depth(kind)?;
        // The reference's linear projector is the map itself, without a number.
        let names = if kind == "linear" { MlpNames::Each(vec![String::new()]) } else { MlpNames::Sequential };
        Ok(Self::Mlp { depth, names, activation: Activation::Gelu, bias: true })
    }

    /// The projector under `params`, from `inputs` to `outputs`.
    pub(super) fn build(
        &self,
        params: &Params,
        (inputs, outputs): (usize, usize),
    ) -> candle_core::Result<Box<dyn Projector>> {
        Ok(match self {
            Self::Mlp { depth, names, activation, bias } => {
                Box::new(Mlp::with_bias(params, names, *depth, (inputs, outputs), *activation, *bias)?)
            }
            &Self::Sparse { experts, k } => {
                Box::new(SparseMlp::load(SparseMlpConfig { inputs, outputs, experts, k }, params)?)
            }
        })
    }
}
