//! Aria: a tower that takes pictures of any size, learned queries that make 128 or 256 tokens of a picture, and a language model
//! with fine-grained experts.
//!
//! ```text
//! pixels [n, 3, h, w], mask ─ SiglipVision ─▶ patches ─ Queries ─▶ [1, q, H] for each picture ─ splice ─▶ Decoder ─▶ logits
//! ```
//!
//! Paper: Li et al., arXiv 2410.05993. Reference:
//! [`modeling_aria.py`](https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/aria/modeling_aria.py).
//! In the ids a picture stands between `<fim_prefix>` and `<fim_suffix>` as `<|img|>`, once for the picture or once for each of
//! its tokens. A picture that is cut into crops is as many pictures as it has crops.

use std::path::Path;

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use moesaic_encoders::{Features, Head, Select, SiglipConfig, SiglipVision, Tower};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Params, Probe, Tokens};
use moesaic_projectors::{Projector, Queries, QueriesConfig};
use serde_json::{Map, Value, json};

use crate::decoder::{Cache, Context, Decoder, DecoderConfig, Input, Output, Side};
use crate::folder;
use crate::generate::Backbone;
use crate::vision::splice::pieces;
use crate::vision::{self, Row, Spliced, parts};

/// An Aria model: its parts.
#[derive(Clone, Debug, PartialEq)]
pub struct AriaConfig {
    /// The vision tower.
    pub tower: SiglipConfig,
    /// Which of its hidden states become features.
    pub features: Features,
    /// The projector.
    pub projector: QueriesConfig,
    /// The language model.
    pub decoder: DecoderConfig,
    /// The id that stands for a picture, or for a token of one.
    pub picture_token: u32,
    /// `config.json` as it was read.
    pub published: Map<String, Value>,
}

impl AriaConfig {
    /// Reads `config.json` of a model folder.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        Self::from_map(folder::config(&path)?).map_err(|e| folder::at(&path, e))
    }

    /// Translates a `config.json`.
    ///
    /// # Errors
    /// It is of another model, or a value is missing or does not fit.
    pub fn from_map(published: Map<String, Value>) -> Result<Self> {
        if published.get("model_type").and_then(Value::as_str) != Some("aria") {
            bail!("this is not the configuration of an Aria model: model_type is not aria");
        }
        // What `idefics3_vision` and `aria_text` are where the file does not say.
        let mut tower = json!({
            "hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16,
            "image_size": 224, "patch_size": 32, "hidden_act": "gelu_pytorch_tanh"
        });
        if let (Some(tower), Some(Value::Object(given))) = (tower.as_object_mut(), published.get("vision_config")) {
            tower.extend(given.clone());
        }
        let tower =
            SiglipConfig::from_json(&tower.to_string()).map_err(|e| Error::msg(format!("vision_config: {e}")))?;
        let text = json!({
            "model_type": "aria_text", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 4096,
            "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048
        });
        let decoder = parts::language(&published, &text)?;
        let layers = match published.get("vision_feature_layer") {
            None | Some(Value::Null) => vec![-1],
            Some(Value::Number(layer)) => layer.as_i64().into_iter().collect(),
            Some(Value::Array(layers)) => layers.iter().filter_map(Value::as_i64).collect(),
            Some(_) => Vec::new(),
        };
        if layers.len() != 1 {
            bail!("vision_feature_layer is not the number of one layer");
        }
        let projector = QueriesConfig {
            inputs: tower.hidden_size,
            outputs: decoder.hidden_size,
            heads: tower.heads,
            queries: queries(&published)?,
        };
        Ok(Self {
            tower,
            features: Features { layers, select: Select::ClsPatch },
            projector,
            decoder,
            picture_token: parts::token(&published, &["image_token_index", "image_token_id"], 9)?,
            published,
        })
    }
}

/// `projector_patch_to_query_dict`
fn queries(published: &Map<String, Value>) -> Result<std::collections::BTreeMap<usize, usize>> {
    /// Queries that no published model comes near.
    const MOST: usize = 1 << 16;
    let Some(Value::Object(map)) = published.get("projector_patch_to_query_dict").filter(|v| !v.is_null()) else {
        return Ok([(1225, 128), (4900, 256)].into());
    };
    let entry = |(patches, queries): (&String, &Value)| {
        let number = queries.as_u64().or_else(|| queries.as_str()?.parse().ok()).map(|n| n as usize);
        match (patches.parse().ok(), number) {
            (Some(patches), Some(queries)) if (1..=MOST).contains(&queries) => Ok((patches, queries)),
            _ => bail!(
                "projector_patch_to_query_dict has {patches:?}: {queries}, expected numbers of patches and queries"
            ),
        }
    };
    map.iter().map(entry).collect()
}

/// An Aria model. `Send + Sync`; a forward pass takes `&self`.
#[derive(Debug)]
pub struct Aria {
    config: AriaConfig,
    tower: SiglipVision,
    projector: Queries,
    decoder: Decoder,
}

impl Aria {
    /// Loads a folder: `config.json` and safetensors weights. Weights become `dtype` (f32, bf16 or f16) one by one.
    ///
    /// # Errors
    /// The folder cannot be read or is not that of an Aria model, or the weights do not fit.
    pub fn load(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let (config, checkpoint) = (AriaConfig::load(dir)?, Checkpoint::open(dir)?);
        let params = Params::load(&checkpoint, dtype, device);
        // As `transformers` from 4.52 on has it in memory.
        let inside = checkpoint.names().any(|name| name.starts_with("model.language_model."));
        let model = Self::new(config, &if inside { params.renamed(inner) } else { params.clone() })?;
        let of_language = |name: &str| model.decoder.config().ignorable(name);
        folder::no_others(&params, &checkpoint, "aria", |name| {
            // The norm behind the tower's last layer and the pooling head: features are taken before them.
            ["vision_tower.post_layernorm.", "vision_tower.head."].iter().any(|part| name.contains(part))
                || of_language(name)
        })?;
        Ok(model)
    }

    /// The model with tensors from `params`: of a checkpoint, or variables to be trained.
    pub fn new(config: AriaConfig, params: &Params) -> Result<Self> {
        Ok(Self {
            tower: SiglipVision::bare(config.tower.clone(), &params.pp("vision_tower"), Head::None)?,
            projector: Queries::load(config.projector.clone(), &params.pp("multi_modal_projector"))?,
            decoder: Decoder::new(config.decoder.clone(), params)?,
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &AriaConfig {
        &self.config
    }

    /// The vision tower.
    pub fn tower(&self) -> &SiglipVision {
        &self.tower
    }

    /// The language model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The language model, for adapters ([`Decoder::sites`]).
    pub fn decoder_mut(&mut self) -> &mut Decoder {
        &mut self.decoder
    }

    /// Pictures as backbone tokens, one batch row for each. A probe gets what the tower records.
    ///
    /// # Shapes
    /// normalised `pixels [n, 3, h, w]` and `mask [n, h, w]`, not zero where a pixel is real, to `n` times `[1, q, H]`
    ///
    /// # Errors
    /// Pictures of a size for which the model has no queries.
    pub fn encode(&self, pixels: &Tensor, mask: Option<&Tensor>, probe: Option<&Probe>) -> Result<Vec<Tokens>> {
        let pictures = self.tower.encode_any(pixels, mask, &self.config.features, probe)?;
        pictures.iter().map(|tokens| Ok(self.projector.project_one(tokens, None)?.0)).collect()
    }

    /// Embeds rows of ids and pictures as one batch, as [`VisionModel::splice`](crate::vision::VisionModel::splice) does.
    ///
    /// # Errors
    /// As there.
    pub fn splice(&self, rows: &[Row<'_>], side: Side, longest: Option<usize>) -> vision::Result<Spliced> {
        let (mark, h) = (self.config.picture_token, self.config.decoder.hidden_size);
        Spliced::new(&self.decoder, rows, (side, longest), |i, row| pieces(i, row, mark, h))
    }

    /// Hidden states of every position of spliced rows.
    pub fn forward(&self, rows: &Spliced, cache: Option<&mut Cache>, probe: Option<&Probe>) -> Result<Output> {
        self.decoder.forward(Input::Embeds(&rows.embeds), &rows.context, cache, probe)
    }

    /// Scores of the next token, in f32.
    ///
    /// # Shapes
    /// `hidden [.., H]` to `[.., V]`
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.decoder.logits(hidden)
    }

    /// Patches of a picture's side, and tokens that such a picture becomes, from few to many.
    pub fn sizes(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let squares = self.config.projector.queries.iter().filter(|(patches, _)| patches.isqrt().pow(2) == **patches);
        squares.map(|(patches, queries)| (patches.isqrt(), *queries))
    }

    /// Pixels of a side of the tower's largest picture.
    pub fn image_size(&self) -> usize {
        self.tower.image_size().0
    }
}

/// A published name as `transformers` has it in memory.
fn inner(name: &str) -> String {
    match name.strip_prefix("language_model.") {
        Some(rest) => match rest.strip_prefix("model.") {
            Some(rest) => format!("model.language_model.{rest}"),
            None => rest.to_string(),
        },
        None => format!("model.{name}"),
    }
}

impl Backbone for Aria {
    fn next_logits(&self, input: Input<'_>, context: &Context, cache: &mut Cache) -> Result<Tensor> {
        self.decoder.next_logits(input, context, cache)
    }

    fn max_positions(&self) -> usize {
        self.decoder.config().max_positions
    }

    fn device(&self) -> &Device {
        self.decoder.device()
    }
}
