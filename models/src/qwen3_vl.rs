//! Qwen3-VL, dense and sparse: pictures and videos of any size, cells of patches as tokens with positions in time, row and
//! column, and features of earlier layers of the tower for the first layers of the language model.
//!
//! ```text
//! patches ─ Qwen3VlVision ─▶ tokens [1, n, H], positions (t, row, column), taps ─ splice ─▶ Decoder ─▶ logits
//! ```
//!
//! Paper: Bai et al., arXiv 2511.21631. References:
//! [`modeling_qwen3_vl.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/qwen3_vl/modeling_qwen3_vl.py),
//! [`modeling_qwen3_vl_moe.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/qwen3_vl_moe/modeling_qwen3_vl_moe.py).
//! In the ids a picture stands between `<|vision_start|>` and `<|vision_end|>` as `<|image_pad|>`. Of a video each pair of frames
//! stands so by itself, as `<|video_pad|>`, behind its time in words ([`text`]).

pub mod text;

use std::path::Path;

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use moesaic_encoders::{Qwen3VlConfig as TowerConfig, Qwen3VlVision};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Modality, Params, Probe, Tokens};
use serde_json::{Map, Value, json};

use crate::decoder::{Cache, Context, Decoder, DecoderConfig, Input, Output, Side};
use crate::folder;
use crate::generate::Backbone;
use crate::vision::splice::Piece;
use crate::vision::{self, Row, Spliced, parts};

/// A Qwen3-VL model: its parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Qwen3VlConfig {
    /// `model_type`: `qwen3_vl` or `qwen3_vl_moe`.
    pub model_type: String,
    /// The vision tower.
    pub tower: TowerConfig,
    /// The language model.
    pub decoder: DecoderConfig,
    /// The id that stands for a picture, or for a token of one.
    pub image_token: u32,
    /// The id that stands for a pair of frames of a video, or for a token of one.
    pub video_token: u32,
    /// `config.json` as it was read.
    pub published: Map<String, Value>,
}

impl Qwen3VlConfig {
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
        let model_type = published.get("model_type").and_then(Value::as_str).unwrap_or_default().to_string();
        let defaults = match model_type.as_str() {
            "qwen3_vl" => json!({
                "model_type": "qwen3_vl_text", "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22016,
                "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
                "max_position_embeddings": 128_000
            }),
            "qwen3_vl_moe" => json!({
                "model_type": "qwen3_vl_moe_text", "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 5632,
                "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16,
                "max_position_embeddings": 128_000, "num_experts": 60, "num_experts_per_tok": 4,
                "moe_intermediate_size": 1408
            }),
            _ => bail!("this is not the configuration of a Qwen3-VL model: model_type is not qwen3_vl or qwen3_vl_moe"),
        };
        let tower = published.get("vision_config").filter(|v| v.is_object()).cloned().unwrap_or_else(|| json!({}));
        let tower =
            TowerConfig::from_json(&tower.to_string()).map_err(|e| Error::msg(format!("vision_config: {e}")))?;
        let decoder = parts::language(&published, &defaults)?;
        if tower.out_hidden_size != decoder.hidden_size {
            bail!(
                "the tower gives tokens of width {}, the language model takes {}",
                tower.out_hidden_size,
                decoder.hidden_size
            );
        }
        if tower.taps.len() > decoder.layers.len() {
            bail!("features for {} layers of a language model with {}", tower.taps.len(), decoder.layers.len());
        }
        Ok(Self {
            model_type,
            tower,
            decoder,
            image_token: parts::token(&published, &["image_token_id"], 151_655)?,
            video_token: parts::token(&published, &["video_token_id"], 151_656)?,
            published,
        })
    }
}

/// A Qwen3-VL model. `Send + Sync`; a forward pass takes `&self`.
#[derive(Debug)]
pub struct Qwen3Vl {
    config: Qwen3VlConfig,
    tower: Qwen3VlVision,
    decoder: Decoder,
}

impl Qwen3Vl {
    /// Loads a folder: `config.json` and safetensors weights. Weights become `dtype` (f32, bf16 or f16) one by one.
    ///
    /// # Errors
    /// The folder cannot be read or is not that of a Qwen3-VL model, or the weights do not fit.
    pub fn load(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let (config, checkpoint) = (Qwen3VlConfig::load(dir)?, Checkpoint::open(dir)?);
        let params = Params::load(&checkpoint, dtype, device);
        let model = Self::new(config, &params)?;
        let of_language = |name: &str| model.decoder.config().ignorable(name);
        folder::no_others(&params, &checkpoint, &model.config.model_type, of_language)?;
        Ok(model)
    }

    /// The model with tensors from `params`: of a checkpoint, or variables to be trained.
    pub fn new(config: Qwen3VlConfig, params: &Params) -> Result<Self> {
        Ok(Self {
            tower: Qwen3VlVision::new(config.tower.clone(), &params.pp("model.visual"))?,
            decoder: Decoder::new(config.decoder.clone(), params)?,
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Qwen3VlConfig {
        &self.config
    }

    /// The vision tower.
    pub fn tower(&self) -> &Qwen3VlVision {
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

    /// Pictures as backbone tokens, one batch row for each.
    ///
    /// # Shapes
    /// `patches [n, 3 * frames * side * side]` of all pictures, one behind the other, and the grids `(t, rows, columns)` of
    /// patches that they make, to `[1, t * rows * columns / cell^2, H]` each
    pub fn encode_images(&self, patches: &Tensor, grids: &[(usize, usize, usize)]) -> Result<Vec<Tokens>> {
        self.tower.forward(patches, grids)
    }

    /// Videos as backbone tokens, one batch row for each pair of frames, video after video.
    ///
    /// # Shapes
    /// As [`encode_images`](Self::encode_images); `t` counts pairs of frames
    pub fn encode_videos(&self, patches: &Tensor, grids: &[(usize, usize, usize)]) -> Result<Vec<Tokens>> {
        let mut frames = Vec::new();
        for (video, &(t, ..)) in self.tower.forward(patches, grids)?.iter().zip(grids) {
            let n = video.embeds.dim(1)? / t.max(1);
            for i in 0..t {
                let part = |x: &Tensor| x.narrow(1, i * n, n)?.contiguous();
                // Time is told in words: each pair of frames begins anew.
                let positions = video.positions.iter().enumerate();
                let positions = positions.map(|(s, p)| if s == 0 { part(p)?.zeros_like() } else { part(p) });
                frames.push(Tokens {
                    positions: positions.collect::<Result<_>>()?,
                    taps: video.taps.iter().map(part).collect::<Result<_>>()?,
                    ..Tokens::new(part(&video.embeds)?, Modality::Video)
                });
            }
        }
        Ok(frames)
    }

    /// Embeds rows of ids, pictures and pairs of frames as one batch. Each mark is replaced by the next picture or pair of frames
    /// of its row, in order; or there is a mark for each of their tokens. What is for later layers, and where the tokens stand
    /// in time, row and column, is in the context.
    ///
    /// # Errors
    /// As [`VisionModel::splice`](crate::vision::VisionModel::splice).
    pub fn splice(&self, rows: &[Row<'_>], side: Side, longest: Option<usize>) -> vision::Result<Spliced> {
        let marks = [self.config.image_token, self.config.video_token];
        Spliced::new(&self.decoder, rows, (side, longest), |i, row| pieces(i, row, marks))
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
}

/// The parts of a row, in order: text, and for each of two marks what is of its kind.
fn pieces<'a>(row: usize, of: &Row<'a>, marks: [u32; 2]) -> vision::Result<Vec<Piece<'a>>> {
    let mut queues = Vec::new();
    for (mark, video) in [(marks[0], false), (marks[1], true)] {
        let own: Vec<&Tokens> = of.pictures.iter().filter(|t| (t.modality == Modality::Video) == video).collect();
        let tokens = own.iter().map(|t| t.embeds.dim(1)).sum::<Result<usize>>()?;
        let marks = of.ids.iter().filter(|&&id| id == mark).count();
        if marks != own.len() && marks != tokens {
            return Err(vision::Error::Marks { row, marks, pictures: own.len(), tokens });
        }
        queues.push((mark, marks == own.len(), own.into_iter(), (marks, tokens)));
    }
    let (mut all, mut from, mut i) = (Vec::new(), 0, 0);
    while let Some(id) = of.ids.get(i) {
        let Some((mark, single, queue, (marks, tokens))) = queues.iter_mut().find(|(mark, ..)| mark == id) else {
            i += 1;
            continue;
        };
        let wrong = |pictures| vision::Error::Marks { row, marks: *marks, pictures, tokens: *tokens };
        let Some(picture) = queue.next() else { return Err(wrong(0)) };
        let n = if *single { 1 } else { picture.embeds.dim(1)? };
        // The marks of a picture stand together.
        if n == 0 || of.ids.get(i..i + n).is_none_or(|ids| ids.iter().any(|id| id != mark)) {
            return Err(wrong(queue.len() + 1));
        }
        if from < i {
            all.push(Piece::Text(from, i));
        }
        all.push(Piece::Picture(std::borrow::Cow::Borrowed(picture)));
        i += n;
        from = i;
    }
    if from < of.ids.len() {
        all.push(Piece::Text(from, of.ids.len()));
    }
    Ok(all)
}

impl Backbone for Qwen3Vl {
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
