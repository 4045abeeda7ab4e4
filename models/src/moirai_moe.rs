//! Moirai-MoE: a sparse mixture-of-experts forecaster that predicts distributions of any number of variates.
//!
//! Paper: Liu et al., "Moirai-MoE: Empowering Time Series Foundation Models with Sparse Mixture of Experts" (ICML 2025, arXiv
//! 2410.10469), on Moirai (Woo et al., arXiv 2402.02592). Reference: `uni2ts` 2.0.0, `model/moirai_moe/{module,forecast}.py`.
//! Checkpoints: `Salesforce/moirai-moe-1.0-R-small` and `-base`, loaded under their published tensor names.
//!
//! A patch of values is one token; tokens of all variates stand in one list. A token attends to the tokens of its sample up to its
//! own time, those of other variates too, with a bias that tells the own variate from others. Experts are chosen by the distance
//! to fixed centroids: the two **farthest**, as the reference does. The output at a token is the distribution of the patch after it.

mod centroids;
mod config;
mod distribution;
mod forecast;
mod loss;
mod mixture;
mod patches;
mod projection;
mod sample;
mod special;
mod window;

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::ops::rms_norm;
use moesaic_kernels::rotary::{Rotary, RotaryStyle, RotaryTables};
use moesaic_kernels::routers::CentroidTopK;
use moesaic_kernels::{
    Activation, BiasedAttention, ExpertBank, Init, Linear, MoeLayer, Params, Probe, RouteInput, Routes, Sight,
};

use crate::folder::{at, config_text, no_others};

use config::{NORM_EPS, ROPE_THETA};
use projection::{Inputs, Outputs};

pub use centroids::{from_dense, k_means};
pub use config::{Component, ComponentOutput, Config, DistrOutput, EXPERTS, EXPERTS_PER_TOKEN, Parameters};
pub use distribution::{Cell, Distribution};
pub use forecast::{Forecast, Mode, Options, Paths};
pub use loss::NextPatches;
pub use patches::{Patches, Scaling};
pub use window::{Cut, Request, Windows};
pub(crate) use window::{causal_mean, zeros};

/// Standard deviation of initial weights, for training from nothing.
const INITIAL: Init = Init::Normal(0.02);

/// Tokens that go through the layers together, one after the other.
struct Tokens {
    /// When each is, in patches.
    time: Vec<u32>,
    /// The place of each patch size among those of the model.
    size: Vec<u32>,
    /// Who sees whom; keys are numbered after those of the cache.
    sight: Arc<Sight>,
    /// `[n]` f32, 0 for padding; absent where there is none.
    mask: Option<Tensor>,
}

/// Keys and values of the tokens seen so far, `[m, 2, heads, d]` of each layer.
#[derive(Clone, Debug, Default)]
struct Cache {
    layers: Vec<Tensor>,
}

impl Cache {
    /// Appends `kv` of a layer and returns all of them.
    fn append(&mut self, layer: usize, kv: Tensor) -> Result<Tensor> {
        match self.layers.get_mut(layer) {
            Some(old) => {
                *old = Tensor::cat(&[&*old, &kv], 0)?;
                Ok(old.clone())
            }
            None => {
                self.layers.push(kv.clone());
                Ok(kv)
            }
        }
    }
}

/// Any-variate attention: queries and keys normalised per head, the first half of each head turned by time in neighbouring pairs,
/// a learnt bias for the own variate and one for others.
#[derive(Debug)]
struct Attention {
    /// `q_proj`, `k_proj` and `v_proj` side by side.
    qkv_proj: Linear,
    q_norm: Tensor,
    k_norm: Tensor,
    /// `[2, heads]`: of another variate, of the same.
    var_attn_bias: Tensor,
    out_proj: Linear,
    heads: usize,
}

impl Attention {
    fn new(cfg: &Config, p: &Params) -> Result<Self> {
        let (d, heads) = (cfg.d_model, cfg.heads());
        let norm = |name: &str| p.tensor(&format!("{name}.weight"), [cfg.head_dim()], Init::Ones);
        Ok(Self {
            qkv_proj: Linear::load_joint(p, &[("q_proj", d), ("k_proj", d), ("v_proj", d)], d, false, INITIAL)?,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
            var_attn_bias: p.tensor("var_attn_bias.emb.weight", [2, heads], INITIAL)?,
            out_proj: Linear::load(p, "out_proj", (d, d), false, INITIAL)?,
            heads,
        })
    }

    /// `x [n, D]` to the same.
    fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        rotary: &RotaryTables,
        sight: &Arc<Sight>,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor> {
        let (n, width) = x.dims2()?;
        let (heads, d) = (self.heads, width / self.heads);
        let qkv = self.qkv_proj.forward(x)?.reshape((n, 3 * heads, d))?; // (n, 3 heads, d)
        let turned = |first: usize, norm: &Tensor| {
            let normed = rms_norm(&qkv.narrow(1, first, heads)?, norm, NORM_EPS)?;
            rotary.apply(&normed.unsqueeze(0)?)?.squeeze(0) // (n, heads, d)
        };
        let (q, k) = (turned(0, &self.q_norm)?, turned(heads, &self.k_norm)?);
        let kv = Tensor::stack(&[k, qkv.narrow(1, 2 * heads, heads)?], 1)?; // (n, 2, heads, d)
        let kv = match cache {
            Some(cache) => cache.append(layer, kv)?,
            None => kv,
        };
        let attention = BiasedAttention { scale: 1.0 / (d as f64).sqrt(), sight: sight.clone() };
        let y = attention.forward(&q, &kv, &self.var_attn_bias)?.reshape((n, width))?; // (n, D)
        self.out_proj.forward(&y)
    }
}

#[derive(Debug)]
struct Layer {
    norm1: Tensor,
    self_attn: Attention,
    norm2: Tensor,
    ffn: MoeLayer,
}

impl Layer {
    /// `centroids [E, D]` of this layer.
    fn new(cfg: &Config, centroids: Tensor, p: &Params) -> Result<Self> {
        let (d, f, count) = (cfg.d_model, cfg.d_ff, cfg.num_experts);
        let norm = |name: &str| p.tensor(&format!("{name}.weight"), [d], Init::Ones);
        let experts = p.pp("ffn.experts");
        let name = |e: usize, map: &str| format!("{e}.{map}.weight");
        let gate_up: Vec<_> =
            (0..count).flat_map(|e| [(name(e, "fc_gate"), vec![f, d]), (name(e, "fc1"), vec![f, d])]).collect();
        let down: Vec<_> = (0..count).map(|e| (name(e, "fc2"), vec![d, f])).collect();
        let bank = ExpertBank::gated(
            experts.storage(&[count, 2 * f, d], &gate_up, INITIAL, true)?,
            experts.storage(&[count, d, f], &down, INITIAL, false)?,
            Activation::Silu,
        )?;
        // In training the plain tensors are the variables; elsewhere the CPU kernels want tiles.
        let bank = if p.packs() { bank.pack()? } else { bank };
        let router = CentroidTopK { centroids, k: cfg.num_experts_per_token };
        Ok(Self {
            norm1: norm("norm1")?,
            self_attn: Attention::new(cfg, &p.pp("self_attn"))?,
            norm2: norm("norm2")?,
            ffn: MoeLayer { router: Box::new(router), experts: bank, shared: None },
        })
    }
}

/// The outputs of one forward pass.
#[derive(Clone, Debug)]
pub struct Output {
    /// Hidden states after the final norm, `[B * S, D]`.
    pub hidden: Tensor,
    /// What follows each token.
    pub distribution: Distribution,
    /// The routes of every layer.
    pub routes: Vec<Routes>,
}

/// The model. `Send + Sync`; it keeps no state between calls.
#[derive(Debug)]
pub struct MoiraiMoe {
    config: Config,
    components: Arc<[Component]>,
    in_proj: Inputs,
    res_proj: Inputs,
    feat_proj: Inputs,
    layers: Vec<Layer>,
    norm: Tensor,
    param_proj: Outputs,
    rotary: Rotary,
    dtype: DType,
    device: Device,
}

impl MoiraiMoe {
    /// The model with tensors from `params`.
    pub fn new(config: Config, params: &Params) -> Result<Self> {
        config.validate()?;
        let (cfg, components) = (&config, config.components()?);
        let (d, sizes) = (cfg.d_model, cfg.patch_sizes.as_slice());
        let p = params.pp("encoder");
        let centroid = p.buffer("centroid", [cfg.num_layers, cfg.num_experts, d], Init::Normal(1.0))?;
        let layer = |i: usize| Layer::new(cfg, centroid.get(i)?, &p.pp("layers").pp(i));
        Ok(Self {
            in_proj: Inputs::new(&params.pp("in_proj"), d, cfg.max_patch(), Some(sizes), sizes.len())?,
            res_proj: Inputs::new(&params.pp("res_proj"), d, cfg.max_patch(), Some(sizes), sizes.len())?,
            feat_proj: Inputs::new(&params.pp("feat_proj"), d, d, None, sizes.len())?,
            layers: (0..cfg.num_layers).map(layer).collect::<Result<_>>()?,
            norm: p.tensor("norm.weight", [d], Init::Ones)?,
            param_proj: Outputs::new(&params.pp("param_proj.proj"), d, sizes, &components)?,
            rotary: Rotary::new(cfg.head_dim() / 2, ROPE_THETA, RotaryStyle::Interleaved)?,
            dtype: params.dtype(),
            device: params.device().clone(),
            components: components.into(),
            config,
        })
    }

    /// Loads a folder in the Hugging Face layout: `config.json` and safetensors weights.
    pub fn load(dir: &std::path::Path, dtype: DType, device: &Device) -> Result<Self> {
        let path = dir.join("config.json");
        let config = Config::from_json(&config_text(&path)?).map_err(|e| at(&path, e))?;
        Self::from_checkpoint(config, &Checkpoint::open(dir)?, dtype, device)
    }

    /// The model of a checkpoint; a tensor that the model does not have is an error.
    pub fn from_checkpoint(config: Config, checkpoint: &Checkpoint, dtype: DType, device: &Device) -> Result<Self> {
        let params = Params::load(checkpoint, dtype, device);
        let model = Self::new(config, &params)?;
        no_others(&params, checkpoint, "Moirai-MoE", |_| false)?;
        Ok(model)
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Number of parameters, in all and at work for one token.
    pub fn parameters(&self) -> Parameters {
        self.config.parameters()
    }

    fn device(&self) -> &Device {
        &self.device
    }

    /// Location and scale of every token's series, as this model scales them.
    ///
    /// # Errors
    /// As [`Patches::scaling`].
    pub fn scaling(&self, patches: &Patches) -> Result<Scaling> {
        if self.config.scaling { patches.scaling() } else { Ok(patches.unscaled()) }
    }

    /// The distribution after every token. Padding is not computed: it routes nowhere, sees nothing, and what comes out at it
    /// means nothing.
    ///
    /// The probe records `in_proj`, `feat_proj`, `res_proj`, `layer.{i}.{attn_out, norm2, cdist, topk_experts, topk_weights,
    /// ffn_out, hidden}` and `encoder_out`, shaped `[B * S, ..]`.
    ///
    /// # Errors
    /// The parts of `patches` do not fit each other or the model, or their values cannot be scaled.
    pub fn forward(&self, patches: &Patches, probe: Option<&Probe>) -> Result<Output> {
        patches.check(&self.config)?;
        let (n, length) = (patches.tokens(), patches.length);
        let scaling = self.scaling(patches)?;
        let mut sight = Sight::new();
        for i in 0..n {
            let first = i / length * length;
            let sees = |&j: &usize| {
                patches.sample_id[i] != 0
                    && patches.sample_id[j] == patches.sample_id[i]
                    && patches.time_id[j] <= patches.time_id[i]
            };
            let kind = |j: usize| (j, usize::from(patches.variate_id[j] == patches.variate_id[i]));
            sight.push((first..first + length).filter(sees).map(kind));
        }
        let real: Vec<f32> = patches.sample_id.iter().map(|&id| if id == 0 { 0.0 } else { 1.0 }).collect();
        let tokens = Tokens {
            time: patches.time_id.clone(),
            size: patches.sizes(&self.config)?,
            sight: Arc::new(sight),
            mask: if real.contains(&0.0) { Some(Tensor::from_vec(real, n, &self.device)?) } else { None },
        };
        let (hidden, routes) = self.encode(patches.scaled(&scaling), &tokens, None, probe)?;
        let distribution = self.distribution(&hidden, &tokens, scaling.loc, scaling.scale)?;
        Ok(Output { hidden, distribution, routes })
    }

    /// Hidden states `[n, D]` of tokens with scaled values `z [n * P]`, which follow those of the cache.
    fn encode(
        &self,
        z: Vec<f32>,
        tokens: &Tokens,
        mut cache: Option<&mut Cache>,
        probe: Option<&Probe>,
    ) -> Result<(Tensor, Vec<Routes>)> {
        let (n, width) = (tokens.time.len(), self.config.max_patch());
        if let Some(at) = z.iter().position(|v| !v.is_finite()) {
            bail!("token {} lies too far from the rest of its series for f32; rescale or clean the values", at / width);
        }
        let record = |name: String, value: &Tensor| {
            if let Some(probe) = probe {
                probe.tensor(name, value);
            }
        };
        let sizes = projection::routes(&tokens.size, self.config.patch_sizes.len(), &self.device)?;
        let z = Tensor::from_vec(z, (n, width), &self.device)?.to_dtype(self.dtype)?;
        let in_proj = self.in_proj.forward(&z, &sizes)?; // (n, D)
        record("in_proj".into(), &in_proj);
        let feat_proj = self.feat_proj.forward(&in_proj.silu()?, &sizes)?;
        record("feat_proj".into(), &feat_proj);
        let res_proj = self.res_proj.forward(&z, &sizes)?;
        record("res_proj".into(), &res_proj);
        let mut x = (feat_proj + res_proj)?;
        let rotary = self.rotary.tables(&tokens.time, 1, n)?;
        let mut all_routes = Vec::with_capacity(self.layers.len());
        for (i, layer) in self.layers.iter().enumerate() {
            let name = format!("layer.{i}");
            let normed = rms_norm(&x, &layer.norm1, NORM_EPS)?;
            let attn = layer.self_attn.forward(&normed, i, &rotary, &tokens.sight, cache.as_deref_mut())?;
            record(format!("{name}.attn_out"), &attn);
            x = (x + attn)?;
            let normed = rms_norm(&x, &layer.norm2, NORM_EPS)?;
            record(format!("{name}.norm2"), &normed);
            let input = RouteInput::new(&normed).with_mask(tokens.mask.as_ref());
            let (ffn, routes) = layer.ffn.forward(&input, &name, probe)?;
            record(format!("{name}.cdist"), routes.scores());
            record(format!("{name}.ffn_out"), &ffn);
            x = (x + ffn)?;
            record(format!("{name}.hidden"), &x);
            all_routes.push(routes);
        }
        let hidden = rms_norm(&x, &self.norm, NORM_EPS)?;
        record("encoder_out".into(), &hidden);
        Ok((hidden, all_routes))
    }

    /// What follows tokens with these hidden states `[n, D]`.
    fn distribution(&self, hidden: &Tensor, tokens: &Tokens, loc: Vec<f32>, scale: Vec<f32>) -> Result<Distribution> {
        let sizes = projection::routes(&tokens.size, self.config.patch_sizes.len(), &self.device)?;
        let raw = self.param_proj.forward(hidden, &sizes)?.to_dtype(DType::F32)?; // (n, j * P)
        let (n, outputs) = raw.dims2()?;
        let width = self.config.max_patch();
        Distribution::new(raw.reshape((n, outputs / width, width))?, self.components.clone(), loc, scale) // (n, j, P)
    }
}
