//! One decoder for every language backbone: what a family does differently is its [`DecoderConfig`], translated from its
//! published `config.json` (see [below](self#families)).
//!
//! ```text
//! ids [b, t] ─ embed ─▶ h [b, t, H] ─▶ layers: h += attention(norm(h)); h += ffn(norm(h)) ─▶ norm ─▶ head ─▶ logits [b, t, V]
//!                                              │ Cache                 │ Routes
//! ```
//!
//! # Families
//! Dense: llama (and what shares its layout), mistral, qwen2, stablelm, phi. Sparse: mixtral, qwen2_moe, qwen3_moe, olmoe, deepseek_v2,
//! deepseek_v3, phimoe, granitemoe, jetmoe. Inside models that see: aria_text, qwen3_vl_text, qwen3_vl_moe_text. One file each
//! under `decoder/families/`, with links to paper and reference.
//!
//! # Precision
//! The dtype given to [`Decoder::load`] is that of weights and cache. On the CPU activations stay in f32 whatever it is:
//! there half-precision activations would cost conversions and give less. Norms, routers, softmax and logits are in f32
//! everywhere.

mod attention;
mod cache;
mod config;
mod families;
mod ffn;
mod gguf;
mod input;
mod latent;
mod loss;
mod media;
mod mixture;
mod names;
mod norm;
mod parameters;
mod pass;
mod quantise;
mod rope;
mod sites;
mod steer;

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Init, Linear, Modality, Params, Probe, RouteInput, Routes};

pub use cache::Cache;
pub use config::{
    AttentionConfig, AuxLoss, DecoderConfig, DenseConfig, GroupedConfig, LatentConfig, LayerConfig, MixtureConfig,
    Multipliers, NormConfig, NormKind, QkNorm, RouterConfig, SharedConfig, SparseConfig,
};
pub(crate) use families::{moe_llava, unquantised};
pub(crate) use ffn::packed;
pub use gguf::save_gguf;
pub(crate) use input::real_tokens;
pub use input::{Context, Input, Segment, Side, pad_ids};
pub use loss::Losses;
pub(crate) use loss::follows;
pub use names::{ExpertNames, Names};
pub use parameters::{Parameters, Part};
pub use quantise::{MatrixKind, Quantisation, QuantisedTensor};
pub use rope::{RopeConfig, RopeScaling};
pub use sites::Site;
pub use steer::Usage;

use crate::folder::no_others;

use attention::Attention;
use ffn::Ffn;
use input::Placed;
use norm::Norm;
use pass::Pass;
use rope::Rope;

/// One layer.
#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    attention: Attention,
    /// Absent where attention and feed-forward part share their norm.
    ffn_norm: Option<Norm>,
    ffn: Ffn,
}

impl Layer {
    fn load(cfg: &DecoderConfig, i: usize, p: &Params) -> Result<Self> {
        let norm = |name| Norm::load(p, name, cfg.hidden_size, cfg.norm);
        Ok(Self {
            attention_norm: norm(cfg.names.attention_norm)?,
            attention: Attention::load(cfg, p)?,
            ffn_norm: if cfg.parallel { None } else { Some(norm(cfg.names.ffn_norm)?) },
            ffn: Ffn::load(cfg, i, p)?,
        })
    }
}

/// What a forward pass gives.
#[derive(Clone, Debug)]
pub struct Output {
    /// Hidden states after the final norm, `[b, t, h]`; meaningless at padding.
    pub hidden: Tensor,
    /// Routes of the sparse layers, bottom to top ([`DecoderConfig::sparse_layers`]), over the tokens `[b * t]`.
    pub routes: Vec<Routes>,
    /// Routes to attention experts, one per layer of a mixture of attention heads; else empty.
    pub attention_routes: Vec<Routes>,
}

/// A language model. `Send + Sync`: a forward pass takes `&self` and keeps its state in the [`Cache`] that it is given.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    /// Rows `[V, H]`; absent where the head holds them.
    embed_tokens: Option<Linear>,
    layers: Vec<Layer>,
    norm: Norm,
    lm_head: Linear,
    rope: Option<Rope>,
    /// `[1]`, what [`AuxLoss::AdaptiveL1`] weighs now.
    l1: Option<Tensor>,
    /// Of activations.
    dtype: DType,
    cache_dtype: DType,
    device: Device,
}

impl Decoder {
    /// Loads a folder in the Hugging Face layout: `config.json` and safetensors weights, in one file or in shards; or a GGUF
    /// file ([`moesaic_kernels::checkpoint::gguf`]), the first where it is in parts. Weights
    /// are converted to `dtype` (f32, bf16 or f16) one by one.
    ///
    /// # Errors
    /// `config.json` or the weights cannot be read or do not fit, or the family is not supported: the message says which are.
    pub fn load(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        Self::from_checkpoint(DecoderConfig::load(dir)?, &Checkpoint::open(dir)?, dtype, device)
    }

    /// The model of a checkpoint, for inference.
    ///
    /// # Errors
    /// A tensor is missing or has another shape than the config says, or the checkpoint has tensors that the model does
    /// not know.
    pub fn from_checkpoint(
        config: DecoderConfig,
        checkpoint: &Checkpoint,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let params = Params::load(checkpoint, dtype, device);
        let model = Self::new(config, &params)?;
        no_others(&params, checkpoint, &model.config.model_type, |name| model.config.ignorable(name))?;
        Ok(model)
    }

    /// The model with tensors from `params`: of a checkpoint, or variables to be trained. Its tensors stand under their
    /// published names there; tensors that it does not ask for are left alone.
    pub fn new(config: DecoderConfig, params: &Params) -> Result<Self> {
        config.validate()?;
        let (cfg, init) = (&config, Init::Normal(config.initializer_range));
        let (v, h) = (cfg.vocab_size, cfg.hidden_size);
        let packs = params.packs();
        let name = format!("{}.weight", cfg.names.embed);
        let blocks = params.blocks(&[v, h], &[(name.clone(), vec![v, h])])?;
        let bias = || match cfg.head_bias {
            true => params.tensor(&format!("{}.bias", cfg.names.head), [v], Init::Zeros).map(Some),
            false => Ok(None),
        };
        let (embed_tokens, lm_head) = match (blocks, cfg.tie_word_embeddings) {
            // One table in tiles serves as both, so that it is not in memory twice.
            (Some(blocks), true) => (None, Linear::from_blocks(&blocks, bias()?)?),
            (None, true) => {
                let embed = params.tensor(&name, [v, h], init)?;
                let head = Linear::new(embed.clone(), bias()?)?;
                if packs { (None, head.pack()?) } else { (Some(Linear::new(embed, None)?), head) }
            }
            (blocks, false) => {
                let embed = match blocks {
                    Some(blocks) => Linear::from_blocks(&blocks, None)?,
                    None => Linear::new(params.tensor(&name, [v, h], init)?, None)?,
                };
                (Some(embed), Linear::load(params, cfg.names.head, (v, h), cfg.head_bias, init)?)
            }
        };
        let layers = params.pp(cfg.names.layers);
        Ok(Self {
            embed_tokens,
            lm_head,
            layers: (0..cfg.layers.len()).map(|i| Layer::load(cfg, i, &layers.pp(i))).collect::<Result<_>>()?,
            norm: Norm::load(params, cfg.names.final_norm, h, cfg.norm)?,
            rope: cfg.rope.as_ref().map(Rope::new).transpose()?,
            l1: match cfg.aux_loss {
                AuxLoss::AdaptiveL1 { .. } => Some(params.tensor(steer::L1, [1], Init::Constant(1e-8))?),
                _ => None,
            },
            dtype: params.activations(),
            cache_dtype: params.dtype(),
            device: params.device().clone(),
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The device that the model computes on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number of parameters by kind, in all and at work for one token.
    pub fn parameters(&self) -> Parameters {
        self.config.parameters()
    }

    /// The linear maps of all layers and the output head, for adapters.
    ///
    /// Multi-head latent attention decodes a little slower once this was called, as it no longer trusts what it derived
    /// from its weights.
    pub fn sites(&mut self) -> Vec<Site<'_>> {
        let mut sites = Vec::new();
        let names = self.config.names;
        for (i, layer) in self.layers.iter_mut().enumerate() {
            let prefix = format!("{}.{i}", names.layers);
            layer.attention.sites(&format!("{prefix}.{}", names.attention), &mut sites);
            layer.ffn.sites(&prefix, names.sparse, &mut sites);
        }
        sites.push(Site::linear(vec![(names.head.to_string(), self.config.vocab_size)], &mut self.lm_head));
        sites
    }

    /// Embeddings of token ids, without the multiplier that [`forward`](Self::forward) applies.
    ///
    /// # Shapes
    /// `ids [b, t]` of any integer type to `[b, t, h]`
    ///
    /// # Errors
    /// An id that is not in the vocabulary.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        let flat = ids.flatten_all()?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
        let v = self.config.vocab_size;
        let index = flat.iter().map(|&id| match usize::try_from(id) {
            Ok(i) if i < v => Ok(i as u32),
            _ => bail!("token id {id} is not in the vocabulary of {v} tokens: is this the model's own tokenizer?"),
        });
        let index = Tensor::from_vec(index.collect::<Result<Vec<u32>>>()?, b * t, &self.device)?;
        let rows = match &self.embed_tokens {
            Some(table) => table.rows(&index)?,
            None => self.lm_head.rows(&index)?,
        };
        rows.to_dtype(self.dtype)?.reshape((b, t, self.config.hidden_size)) // (b, t, h)
    }

    /// Embeddings of rows made of text and of encoded media, padded at the left to one batch, and the context that says
    /// where what stands, with the positions and the features for later layers that the tokens have.
    ///
    /// # Shapes
    /// segments with `n` tokens in all, `h` wide, in the longest row to `[rows, n, h]`
    ///
    /// # Errors
    /// No row, an empty row, an unknown id, or tokens of another width or of several batch rows.
    pub fn embed_rows(&self, rows: &[Vec<Segment<'_>>]) -> Result<(Tensor, Context)> {
        self.embed_rows_at(rows, Side::Left, None)
    }

    /// [`embed_rows`](Self::embed_rows) with the padding at this side, and each row cut behind `longest` tokens.
    pub fn embed_rows_at(
        &self,
        rows: &[Vec<Segment<'_>>],
        side: Side,
        longest: Option<usize>,
    ) -> Result<(Tensor, Context)> {
        let h = self.config.hidden_size;
        let mut embedded = Vec::with_capacity(rows.len());
        let mut origins = Vec::with_capacity(rows.len());
        for (row, segments) in rows.iter().enumerate() {
            let (mut pieces, mut origin) = (Vec::new(), Vec::new());
            for segment in segments {
                let (piece, modality) = match segment {
                    Segment::Ids([]) => continue,
                    Segment::Ids(ids) => (self.embed(&Tensor::new(*ids, &self.device)?.unsqueeze(0)?)?, Modality::Text),
                    Segment::Tokens(tokens) => (real_tokens(tokens, h)?.to_dtype(self.dtype)?, tokens.modality),
                };
                origin.extend(std::iter::repeat_n(modality, piece.dim(1)?));
                pieces.push(piece);
            }
            if origin.is_empty() {
                bail!("row {row} has no token; a prompt needs at least one");
            }
            let (mut row, n) = (Tensor::cat(&pieces, 1)?, origin.len()); // (1, n, h)
            if let Some(longest) = longest.filter(|&longest| longest < n) {
                row = row.narrow(1, 0, longest)?;
                origin.truncate(longest);
            }
            embedded.push(row);
            origins.push(origin);
        }
        let lengths: Vec<usize> = origins.iter().map(Vec::len).collect();
        let Some(&longest) = lengths.iter().max() else { bail!("there is no row to run") };
        let (mut padded, mut modality) = (Vec::new(), Vec::new());
        for (row, origin) in embedded.into_iter().zip(origins) {
            let padding = longest - origin.len();
            padded.push(if padding == 0 {
                row
            } else {
                let zeros = Tensor::zeros((1, padding, h), row.dtype(), row.device())?;
                Tensor::cat(&if side == Side::Left { [zeros, row] } else { [row, zeros] }, 1)?
            });
            let filling = std::iter::repeat_n(Modality::Text, padding);
            match side {
                Side::Left => modality.extend(filling.chain(origin)),
                Side::Right => modality.extend(origin.into_iter().chain(filling)),
            }
        }
        let context = Context { modality: Some(modality), ..Context::padded(&lengths, side) };
        let streams = self.config.rope.as_ref().map_or(1, RopeConfig::streams);
        let context = context.with_media(rows, longest, streams, h)?;
        Ok((Tensor::cat(&padded, 0)?, context)) // (rows, longest, h)
    }

    /// Hidden states of every position. With a cache, the input goes on with the rows that the cache holds.
    ///
    /// The probe records `hidden.0` (what the first layer gets), `hidden.{i+1}` (what layer `i` gives), `final_norm`, and of
    /// sparse layers `router_logits.{i}`, `topk_index.{i}` and `topk_weight.{i}` (in descending order of weight, of SparseMixer as
    /// picked), with `attn_` before them for attention experts; all `[b, t, ..]`. Routes are under `layer.{i}` and `attn_layer.{i}`.
    ///
    /// # Errors
    /// An input that does not fit the model, its context or the cache, or a router whose scores are not finite: the message
    /// names the layer. A cache is as before then.
    pub fn forward(
        &self,
        input: Input<'_>,
        context: &Context,
        mut cache: Option<&mut Cache>,
        probe: Option<&Probe>,
    ) -> Result<Output> {
        let h = self.config.hidden_size;
        let embeds = match input {
            Input::Ids(ids) => self.embed(ids)?,
            Input::Embeds(embeds) => embeds.to_dtype(self.dtype)?,
        };
        let (b, t, width) = embeds.dims3()?;
        if b == 0 || t == 0 || width != h {
            bail!("input of shape {:?}, expected [batch, tokens, {h}] with at least one token", embeds.dims());
        }
        if context.taps.len() > self.layers.len() || context.taps.iter().any(|tap| tap.dims() != [b, t, h]) {
            let dims: Vec<_> = context.taps.iter().map(Tensor::dims).collect();
            bail!("features {dims:?} for {} layers and an input of [{b}, {t}, {h}]", self.layers.len());
        }
        if cache.is_some() && context.trailing.iter().any(|&n| n > 0) {
            bail!("a cache takes rows that are padded at the left");
        }
        let (past, cached) = cache.as_ref().map_or((0, Vec::new()), |c| (c.tokens(), c.padding().to_vec()));
        let shifts = cache.as_ref().map_or(Vec::new(), |c| c.shifts().to_vec());
        if let Some(cache) = cache.as_deref_mut() {
            cache.begin(self.layers.len(), b, &context.padding, self.cache_dtype)?;
        }
        let placed = context.place(b, t, past, &cached, &shifts)?;
        let rotary =
            self.rope.as_ref().map(|r| r.tables(&placed.positions, b, t, context.reference_padding)).transpose()?;
        let uniform_padding = context.reference_padding && past == 0;
        let (padding, end) = (placed.padding.as_slice(), placed.end.as_slice());
        let pass = Pass { b, t, padding, end, uniform_padding, rotary: rotary.as_ref(), probe };
        let mask = self.token_mask(&placed, b, t, past)?;
        let routed = mask.as_ref().filter(|_| !context.reference_padding);

        let mut x = embeds.reshape((b * t, h))?; // (b * t, h)
        if self.config.multipliers.embedding != 1.0 {
            x = (x * self.config.multipliers.embedding)?;
        }
        pass.record(|| "hidden.0".into(), &x)?;
        // SparseMixer's second weight may be above its first; the reference lists its experts as they were picked.
        let router = self.config.sparse.map(|s| s.router);
        let by_weight = !matches!(router, Some(RouterConfig::SparseMixer { .. }));
        let (mut all_routes, mut attention_routes) = (Vec::new(), Vec::new());
        for (i, (layer, config)) in self.layers.iter().zip(&self.config.layers).enumerate() {
            let normed = layer.attention_norm.forward(&x)?;
            let (attended, routes) = layer.attention.forward(&normed, i, config.window, &pass, cache.as_deref_mut())?;
            if let Some(routes) = routes {
                pass.record_routes("attn_", i, &routes, true)?;
                attention_routes.push(routes.with_mask(mask.clone()));
            }
            x = self.add(&x, attended)?;
            let normed = match &layer.ffn_norm {
                Some(norm) => norm.forward(&x)?,
                None => normed,
            };
            let previous = all_routes.last().and_then(Routes::logits);
            let modality = context.modality.as_deref();
            let input = RouteInput { modality, previous, training: context.training, ..RouteInput::new(&normed) };
            let (y, routes) = layer.ffn.forward(&input.with_mask(routed), &format!("layer {i}"))?;
            x = self.add(&x, y)?;
            if let Some(routes) = routes {
                pass.record_routes("", i, &routes, by_weight)?;
                all_routes.push(routes.with_mask(mask.clone()));
            }
            if let Some(tap) = context.taps.get(i) {
                x = (&x + tap.to_dtype(x.dtype())?.reshape((b * t, h))?)?;
            }
            pass.record(|| format!("hidden.{}", i + 1), &x)?;
        }
        let hidden = self.norm.forward(&x)?;
        pass.record(|| "final_norm".into(), &hidden)?;
        if let Some(cache) = cache {
            cache.commit(t, placed.shifts);
        }
        Ok(Output { hidden: hidden.reshape((b, t, h))?, routes: all_routes, attention_routes })
    }

    /// `x + multiplier * y`
    fn add(&self, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let by = self.config.multipliers.residual;
        x + if by == 1.0 { y } else { (y * by)? }
    }

    /// `[b * t]` f32, 0 for padding; absent without.
    fn token_mask(&self, placed: &Placed, b: usize, t: usize, past: usize) -> Result<Option<Tensor>> {
        if placed.padding.iter().all(|&p| p <= past) && placed.end.is_empty() {
            return Ok(None);
        }
        let real = |row: usize, p: usize, i: usize| {
            let end = placed.end.get(row).copied().unwrap_or(usize::MAX);
            if (p..end).contains(&(past + i)) { 1f32 } else { 0.0 }
        };
        let rows = placed.padding.iter().enumerate();
        let mask: Vec<f32> = rows.flat_map(|(row, &p)| (0..t).map(move |i| real(row, p, i))).collect();
        Ok(Some(Tensor::from_vec(mask, b * t, &self.device)?))
    }

    /// Scores of the next token, in f32.
    ///
    /// # Shapes
    /// `hidden [.., h]` to `[.., V]`
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = self.lm_head.forward(&hidden.to_dtype(DType::F32)?)?;
        match self.config.multipliers.logits_divisor {
            1.0 => Ok(logits),
            divisor => logits / divisor,
        }
    }

    /// [`logits`](Self::logits) of the last position alone: what decoding needs.
    ///
    /// # Shapes
    /// `[b, V]`
    pub fn last_logits(&self, output: &Output) -> Result<Tensor> {
        let (_, t, _) = output.hidden.dims3()?;
        self.logits(&output.hidden.narrow(1, t.saturating_sub(1), 1)?.squeeze(1)?.contiguous()?)
    }
}
