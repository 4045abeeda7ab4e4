//! MoMa: one decoder over tokens of several modalities, with experts for each of them that choose their tokens.
//!
//! Paper: Lin et al., "MoMa: Efficient Early-Fusion Pre-training with Mixture of Modality-Aware Experts" (arXiv
//! 2407.21770), on Chameleon (arXiv 2405.09818). Neither code nor weights are published: names of tensors and of the config
//! are this workspace's.
//!
//! ```text
//! ids [b, t] ─ embed ─▶ x ─▶ layers: x += norm(attention(x)); x += norm(experts of its modality(x)) ─▶ norm ─▶ head ─▶ logits
//! ```
//!
//! The paper's model reads ids, of words and of images. Tokens of sound and of series may stand among them as embeddings that an
//! encoder makes ([`Moma::forward_embeds`]), with experts of their own.
//!
//! # Training and inference
//! In training experts choose the best tokens of the batch ([`Routing::Choice`]): rows of a batch depend on each other, and
//! tokens on later ones. Afterwards auxiliary routers learn, with the model frozen, who is chosen
//! ([`Moma::auxiliary_loss`]), and with them each token is routed by itself ([`Routing::Causal`]). Auxiliary routers have a
//! file of their own, `auxiliary.safetensors`.
//!
//! A model is upcycled ([`upcycle`]) from one with a single expert for each modality.

mod config;
mod layer;
mod upcycle;

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::losses::cross_entropy;
use moesaic_kernels::rotary::{Rotary, RotaryStyle};
use moesaic_kernels::{Init, Linear, Modality, Params, Routes};

use crate::folder::{at, config_text, no_others};

pub use config::Config;
pub use upcycle::upcycle;

use layer::{Batch, Layer, Norm};

/// File of the auxiliary routers in a model's folder.
pub const AUXILIARY: &str = "auxiliary.safetensors";

/// Who decides which expert sees which token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// Experts choose tokens: training. Not causal.
    Choice,
    /// Auxiliary routers decide for each token: inference.
    Causal,
}

/// Where a model's tensors come from.
#[derive(Clone)]
struct Sources<'a> {
    model: Params,
    auxiliary: Option<&'a Params>,
    /// Of the auxiliary ones.
    prefix: String,
    routing: Routing,
}

/// What a model keeps of the tokens that it has seen, for causal routing: a pass goes on where the last one ended. Of layers that tokens
/// pass by, only those that went through are kept.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    layers: Vec<layer::Kept>,
    /// Tokens of each row.
    seen: Vec<usize>,
}

impl Cache {
    /// Tokens that each row has seen, padding left out.
    pub fn seen(&self) -> &[usize] {
        &self.seen
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// What a pass took.
#[derive(Default)]
struct Taken {
    routes: Vec<Routes>,
    depth: Vec<Routes>,
    /// Losses of auxiliary routers are wanted.
    learns: bool,
    losses: Vec<Tensor>,
}

/// What a forward pass gives.
#[derive(Clone, Debug)]
pub struct Output {
    /// Hidden states after the final norm, `[b, t, h]`; meaningless at padding.
    pub hidden: Tensor,
    /// Routes of the experts, bottom to top. In layers that some tokens pass by, over the others, row by row and padded at
    /// the left.
    pub routes: Vec<Routes>,
    /// Tokens `[b * t]` that go through the layers which others pass by, bottom to top: routes to one expert, the layer.
    pub depth_routes: Vec<Routes>,
}

/// The model.
#[derive(Debug)]
pub struct Moma {
    config: Config,
    embed_tokens: Linear,
    layers: Vec<Layer>,
    norm: Norm,
    lm_head: Linear,
    rotary: Rotary,
    routing: Routing,
    device: Device,
}

/// The auxiliary routers of a folder, where the model needs some.
pub(crate) fn auxiliary(
    dir: &Path,
    config: &Config,
    dtype: DType,
    device: &Device,
) -> Result<Option<(Params, Checkpoint)>> {
    if !config.chooses() {
        return Ok(None);
    }
    let file = dir.join(AUXILIARY);
    if !file.is_file() {
        let problem = "there is no such file: train the auxiliary routers first, or load the model for training";
        return Err(at(&file, problem));
    }
    let checkpoint = Checkpoint::open(&file)?;
    Ok(Some((Params::load(&checkpoint, dtype, device), checkpoint)))
}

impl Sources<'_> {
    fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self { model: self.model.pp(&name), prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    /// The auxiliary source under the prefix.
    fn auxiliary(&self) -> Option<Params> {
        self.auxiliary.map(|p| p.pp(self.prefix.trim_end_matches('.')))
    }
}

impl Moma {
    /// Loads a folder with `config.json`, the model's weights and `auxiliary.safetensors`, for inference.
    ///
    /// # Errors
    /// A file cannot be read, a tensor is missing, has another shape or does not belong to the model.
    pub fn load(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let path = dir.join("config.json");
        let config = Config::from_json(&config_text(&path)?).map_err(|e| at(&path, e))?;
        let checkpoint = Checkpoint::open(dir)?;
        let p = Params::load(&checkpoint, dtype, device);
        let auxiliary = auxiliary(dir, &config, dtype, device)?;
        let loaded = Self::new(config, &p, auxiliary.as_ref().map(|(q, _)| q), Routing::Causal)?;
        no_others(&p, &checkpoint, "moma", |_| false)?;
        if let Some((q, checkpoint)) = &auxiliary {
            no_others(q, checkpoint, "moma", |_| false)?;
        }
        Ok(loaded)
    }

    /// The model with tensors from `params`, and auxiliary routers from a source of their own where they are wanted: to train
    /// the model `(params, None, Choice)`, to train auxiliary routers `(frozen, Some(variables), Choice)`, for inference
    /// `(params, Some(auxiliary), Causal)`.
    ///
    /// # Errors
    /// The config does not hold together, a tensor is missing or has another shape, or causal routing without auxiliary
    /// routers.
    pub fn new(config: Config, params: &Params, auxiliary: Option<&Params>, routing: Routing) -> Result<Self> {
        config.validate()?;
        let (v, h, init) = (config.vocab_size, config.hidden_size, Init::Normal(config.initializer_range));
        let sources = Sources { model: params.clone(), auxiliary, prefix: String::new(), routing };
        let layers = (0..config.num_hidden_layers).map(|i| Layer::load(&config, i, &sources));
        Ok(Self {
            embed_tokens: Linear::new(params.tensor("embed_tokens.weight", [v, h], init)?, None)?,
            layers: layers.collect::<Result<_>>()?,
            norm: Norm::load(params, &config, "norm")?,
            lm_head: Linear::load(params, "lm_head", (v, h), false, init)?,
            rotary: Rotary::new(config.head_dim(), config.rope_theta, RotaryStyle::Half)?,
            routing,
            device: params.device().clone(),
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Hidden states of every position. `padding` is the number of padding tokens at the left of each row; empty for none.
    ///
    /// # Shapes
    /// `ids [b, t]`, of any integer type
    ///
    /// # Errors
    /// An id that is not in the vocabulary, a row that is all padding, or a router whose scores are not finite.
    pub fn forward(&self, ids: &Tensor, padding: &[usize]) -> Result<Output> {
        let (x, modality) = self.embed(ids)?;
        self.run(&x, &modality, padding, &mut Taken::default(), None)
    }

    /// The same, going on where `cache` is: positions follow what each row has seen, and may begin with padding of its own.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), another number of rows than the cache has, or a model whose experts choose their tokens, which
    /// look ahead. The cache is to be cleared then.
    pub fn forward_cached(&self, ids: &Tensor, padding: &[usize], cache: &mut Cache) -> Result<Output> {
        let (x, modality) = self.embed(ids)?;
        self.run(&x, &modality, padding, &mut Taken::default(), Some(cache))
    }

    /// Hidden states of embedded tokens, `modality [b * t]` of which says where each is from; those of ids are given by
    /// [`embed`](Self::embed).
    ///
    /// # Shapes
    /// `x [b, t, h]`
    ///
    /// # Errors
    /// As [`forward_cached`](Self::forward_cached), another number of modalities, or one for which there are no experts.
    pub fn forward_embeds(
        &self,
        x: &Tensor,
        modality: &[Modality],
        padding: &[usize],
        cache: Option<&mut Cache>,
    ) -> Result<Output> {
        self.run(x, modality, padding, &mut Taken::default(), cache)
    }

    /// Embeddings of ids, and their modalities.
    ///
    /// # Shapes
    /// `ids [b, t]`, of any integer type, to `[b, t, h]`
    ///
    /// # Errors
    /// An id that is not in the vocabulary.
    pub fn embed(&self, ids: &Tensor) -> Result<(Tensor, Vec<Modality>)> {
        let ((b, t), v) = (ids.dims2()?, self.config.vocab_size);
        let flat = ids.flatten_all()?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
        let flat = flat.into_iter().map(|id| match u32::try_from(id) {
            Ok(id) if (id as usize) < v => Ok(id),
            _ => bail!("token id {id} is not in the vocabulary of {v} tokens: is this the model's own tokenizer?"),
        });
        let flat: Vec<u32> = flat.collect::<Result<_>>()?;
        let modality: Vec<Modality> = flat.iter().map(|&id| self.config.modality(id)).collect();
        let index = Tensor::from_vec(flat, b * t, &self.device)?;
        let x = self.embed_tokens.rows(&index)?.to_dtype(DType::F32)?;
        Ok((x.reshape((b, t, self.config.hidden_size))?, modality)) // (b, t, h)
    }

    fn run(
        &self,
        x: &Tensor,
        modality: &[Modality],
        padding: &[usize],
        taken: &mut Taken,
        cache: Option<&mut Cache>,
    ) -> Result<Output> {
        let (b, t, h) = x.dims3()?;
        if h != self.config.hidden_size || modality.len() != b * t {
            bail!(
                "{} modalities for tokens {:?} of a model of width {}",
                modality.len(),
                x.dims(),
                self.config.hidden_size
            );
        }
        let padding = if padding.is_empty() { vec![0; b] } else { padding.to_vec() };
        if padding.len() != b || padding.iter().any(|&p| p >= t) {
            bail!("padding of {padding:?} tokens for {b} rows of {t}: each row needs at least one token");
        }
        let mut none = Cache::default();
        let keeps = cache.is_some();
        let cache = cache.unwrap_or(&mut none);
        if keeps && self.routing == Routing::Choice {
            bail!("experts that choose their tokens look ahead, so nothing can be kept: load the model for inference");
        }
        if cache.seen.is_empty() {
            (cache.seen, cache.layers) = (vec![0; b], vec![vec![None; b]; self.layers.len()]);
        }
        if cache.seen.len() != b || cache.layers.len() != self.layers.len() {
            bail!("a cache of {} rows does not go on with {b}", cache.seen.len());
        }
        let places = padding.iter().zip(&cache.seen);
        let positions =
            places.flat_map(|(&p, &seen)| (0..t).map(move |i| (seen + i.saturating_sub(p)) as u32)).collect();
        let mut x = x.to_dtype(DType::F32)?.reshape((b * t, h))?; // (b * t, h)
        let (size, own) = ((b, t), modality.to_vec());
        let batch = Batch::new(&self.config, &self.rotary, size, padding.clone(), positions, own, &x)?;
        for (i, (layer, kept)) in self.layers.iter().zip(&mut cache.layers).enumerate() {
            let y = layer.forward(&x, &batch, (&self.config, &self.rotary), taken, keeps.then_some(kept));
            x = y.map_err(|e| candle_core::Error::Msg(format!("layer {i}: {e}")))?;
        }
        cache.seen.iter_mut().zip(padding).for_each(|(seen, p)| *seen += t - p);
        let hidden = self.norm.forward(&x, &batch)?.reshape((b, t, h))?;
        let (routes, depth_routes) = (std::mem::take(&mut taken.routes), std::mem::take(&mut taken.depth));
        Ok(Output { hidden, routes, depth_routes })
    }

    /// Scores of the next token, in f32.
    ///
    /// # Shapes
    /// `hidden [.., h]` to `[.., V]`
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.lm_head.forward(hidden)
    }

    /// Mean cross entropy of the next token, words and image tokens alike; the paper has no other loss.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), or there is nothing to predict.
    pub fn loss(&self, ids: &Tensor, padding: &[usize]) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        let output = self.forward(ids, padding)?;
        let rows = ids.to_dtype(DType::I64)?.to_vec2::<i64>()?;
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        for (row, ids) in rows.iter().enumerate() {
            let first = padding.get(row).copied().unwrap_or(0);
            for (i, &id) in ids.iter().enumerate().skip(first + 1) {
                places.push((row * t + i - 1) as u32);
                targets.push(id);
            }
        }
        if targets.is_empty() {
            bail!("rows of one token have nothing to predict");
        }
        let places = Tensor::from_vec(places, targets.len(), &self.device)?;
        let hidden = output.hidden.reshape((b * t, self.config.hidden_size))?.index_select(&places, 0)?;
        cross_entropy(&self.logits(&hidden)?, &targets)
    }

    /// The loss of the auxiliary routers on these tokens, the mean over layers: binary cross entropy against the choices of
    /// the experts, and of mixture-of-depths. Gradients reach the auxiliary routers alone.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), or the model has no auxiliary routers or is not in [`Routing::Choice`].
    pub fn auxiliary_loss(&self, ids: &Tensor, padding: &[usize]) -> Result<Tensor> {
        let (x, modality) = self.embed(ids)?;
        self.auxiliary_loss_embeds(&x, &modality, padding)
    }

    /// The same on embedded tokens; see [`forward_embeds`](Self::forward_embeds).
    ///
    /// # Errors
    /// As [`auxiliary_loss`](Self::auxiliary_loss).
    pub fn auxiliary_loss_embeds(&self, x: &Tensor, modality: &[Modality], padding: &[usize]) -> Result<Tensor> {
        if self.routing != Routing::Choice {
            bail!("auxiliary routers learn what experts choose: make the model with the routing of training");
        }
        let mut taken = Taken { learns: true, ..Taken::default() };
        self.run(x, modality, padding, &mut taken, None)?;
        if taken.losses.is_empty() {
            bail!("this model has no auxiliary routers to train");
        }
        Tensor::stack(&taken.losses, 0)?.mean_all()
    }
}
