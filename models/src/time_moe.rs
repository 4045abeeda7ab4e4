//! Time-MoE: a decoder-only sparse mixture-of-experts forecaster.
//!
//! Paper: Shi et al., "Time-MoE: Billion-Scale Time Series Foundation Models with Mixture of Experts" (ICLR 2025, arXiv
//! 2409.16040). Reference: `time_moe/models/modeling_time_moe.py` and `ts_generation_mixin.py` of github Time-MoE/Time-MoE.
//! Checkpoints: `Maple728/TimeMoE-50M` and `-200M` (Apache-2.0), loaded under their published tensor names.
//!
//! One scalar value is one token. All heads read the same hidden state; head `j` gives the next `horizon_lengths[j]` values
//! at every position.

mod config;
mod forecast;
mod loss;
mod session;

use candle_core::{DType, Device, Result, Tensor, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::ops::rms_norm;
use moesaic_kernels::rotary::{Rotary, RotaryStyle, RotaryTables, positions_from_mask};
use moesaic_kernels::routers::SoftmaxTopK;
use moesaic_kernels::{
    Activation, CausalAttention, ExpertBank, Init, Linear, MoeLayer, Params, Probe, RouteInput, Routes, SharedExpert,
};

use crate::folder::{at, config_text, no_others};

pub use config::{Config, Parameters};
pub use forecast::Normalisation;
pub use loss::{Losses, Targets};
pub use session::Session;

/// What one forward pass looks at besides the values.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Number of padding tokens at the left of each row; empty for none.
    pub padding: Vec<usize>,
    /// Position of every token, `[b * t]`; absent for 0, 1, 2, ... (continued after cached tokens).
    pub positions: Option<Vec<u32>>,
    /// Compute padded positions as the reference does (attention uniform over all keys, tokens routed), for losses that
    /// count what heads predict from there. Otherwise they are skipped, which is faster and changes nothing else.
    pub reference_padding: bool,
}

impl Context {
    /// The context of a left-padded `mask [b, t]` (1 = real), with positions that count real tokens only, as `generate`
    /// of the reference derives them.
    pub fn left_padded(mask: &Tensor) -> Result<Self> {
        let mask = mask.to_dtype(DType::F32)?;
        let padding = mask
            .to_vec2::<f32>()?
            .iter()
            .enumerate()
            .map(|(row, mask)| {
                let padding = mask.iter().take_while(|&&m| m == 0.0).count();
                if mask[padding..].contains(&0.0) {
                    bail!("row {row} of the mask has a gap; only padding at the left is supported");
                }
                Ok(padding)
            })
            .collect::<Result<_>>()?;
        Ok(Self { padding, positions: Some(positions_from_mask(&mask)?), reference_padding: false })
    }

    /// `[b * t]` f32, 0 for padding; absent without padding.
    fn token_mask(&self, b: usize, t: usize, device: &Device) -> Result<Option<Tensor>> {
        if self.padding.iter().all(|&p| p == 0) {
            return Ok(None);
        }
        let mask: Vec<f32> =
            self.padding.iter().flat_map(|&p| (0..t).map(move |i| if i < p { 0.0 } else { 1.0 })).collect();
        Ok(Some(Tensor::from_vec(mask, b * t, device)?))
    }
}

/// Keys and values of the tokens seen so far, one pair per layer.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    layers: Vec<Option<(Tensor, Tensor)>>,
    tokens: usize,
}

impl Cache {
    /// Appends `k` and `v` `[b, t, kv_heads, d]` of a layer and returns all of them.
    fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
        if self.layers.len() <= layer {
            self.layers.resize(layer + 1, None);
        }
        let all = match self.layers[layer].take() {
            Some((old_k, old_v)) => (Tensor::cat(&[&old_k, &k], 1)?, Tensor::cat(&[&old_v, &v], 1)?),
            None => (k, v),
        };
        self.layers[layer] = Some(all.clone());
        Ok(all)
    }

    /// From the cache of one row, one of `lengths.len()` rows: row `i` holds the first `lengths[i]` tokens, padded at the left
    /// to the tokens of this cache.
    fn fork(&self, lengths: &[usize]) -> Result<Self> {
        let rows = |all: &Tensor| -> Result<Tensor> {
            let rows = lengths.iter().map(|&n| all.narrow(1, 0, n)?.pad_with_zeros(1, self.tokens - n, 0));
            Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
        };
        let fork = |layer: &Option<(Tensor, Tensor)>| layer.as_ref().map(|(k, v)| Ok((rows(k)?, rows(v)?))).transpose();
        Ok(Self { layers: self.layers.iter().map(fork).collect::<Result<_>>()?, tokens: self.tokens })
    }
}

/// `silu(gate x) * emb x` (eq. 2 of the paper), `[.., input_size]` to `[.., h]`.
#[derive(Debug)]
struct Embedding {
    emb_layer: Linear,
    gate_layer: Linear,
}

impl Embedding {
    fn new(cfg: &Config, p: &Params) -> Result<Self> {
        let shape = (cfg.hidden_size, cfg.input_size);
        let init = Init::Normal(cfg.initializer_range);
        Ok(Self {
            emb_layer: Linear::load(p, "emb_layer", shape, false, init)?,
            gate_layer: Linear::load(p, "gate_layer", shape, false, init)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Activation::Silu.apply(&self.gate_layer.forward(x)?)? * self.emb_layer.forward(x)?
    }
}

/// Causal self-attention with rotary positions; q, k and v have biases, o has none.
#[derive(Debug)]
struct Attention {
    /// `q_proj`, `k_proj` and `v_proj` side by side.
    qkv_proj: Linear,
    o_proj: Linear,
    heads: usize,
    kv_heads: usize,
}

impl Attention {
    fn new(cfg: &Config, p: &Params) -> Result<Self> {
        let (h, d) = (cfg.hidden_size, cfg.head_dim());
        let (heads, kv_heads) = (cfg.num_attention_heads, cfg.kv_heads());
        let parts = [("q_proj", heads * d), ("k_proj", kv_heads * d), ("v_proj", kv_heads * d)];
        let init = Init::Normal(cfg.initializer_range);
        Ok(Self {
            qkv_proj: Linear::load_joint(p, &parts, h, true, init)?,
            o_proj: Linear::load(p, "o_proj", (h, heads * d), false, init)?,
            heads,
            kv_heads,
        })
    }

    /// `x [b * t, h]` to the same.
    fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        (b, t): (usize, usize),
        rotary: &RotaryTables,
        context: &Context,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor> {
        let (heads, kv) = (self.heads, self.kv_heads);
        let qkv = rotary.apply_joint(&self.qkv_proj.forward(x)?, heads + 2 * kv, heads + kv)?;
        let d = qkv.dim(1)? / (heads + 2 * kv);
        let attention = CausalAttention {
            start: context.padding.clone(),
            uniform_padding: context.reference_padding,
            ..CausalAttention::new(1.0 / (d as f64).sqrt())
        };
        let y = match cache {
            None => attention.forward_joint(&qkv, b, heads, kv)?,
            Some(cache) => {
                let qkv = qkv.reshape((b, t, heads + 2 * kv, d))?; // (b, t, heads + 2 kv, d)
                let (k, v) = cache.append(layer, qkv.narrow(2, heads, kv)?, qkv.narrow(2, heads + kv, kv)?)?;
                let y = attention.forward(&qkv.narrow(2, 0, heads)?, &k, &v)?;
                y.reshape((b * t, heads * d))? // (b * t, heads * d)
            }
        };
        self.o_proj.forward(&y)
    }
}

/// Stacks of gated experts of width `i` under the names `{prefix}.{gate,up,down}_proj.weight`.
fn gated_bank(p: &Params, prefixes: &[String], h: usize, i: usize, act: Activation, init: Init) -> Result<ExpertBank> {
    let e = prefixes.len();
    let gate_up: Vec<_> = prefixes
        .iter()
        .flat_map(|x| [format!("{x}gate_proj.weight"), format!("{x}up_proj.weight")])
        .map(|name| (name, vec![i, h]))
        .collect();
    let down: Vec<_> = prefixes.iter().map(|x| (format!("{x}down_proj.weight"), vec![h, i])).collect();
    let bank = ExpertBank::gated(
        p.storage(&[e, 2 * i, h], &gate_up, init, true)?,
        p.storage(&[e, h, i], &down, init, false)?,
        act,
    )?;
    // In training the plain tensors are the variables; elsewhere the CPU kernels want tiles.
    if p.packs() { bank.pack() } else { Ok(bank) }
}

/// The feed-forward part of a layer: sparse, or one dense expert with `use_dense`.
#[derive(Debug)]
enum Ffn {
    Sparse(MoeLayer),
    Dense(ExpertBank),
}

impl Ffn {
    fn new(cfg: &Config, p: &Params) -> Result<Self> {
        let (h, init) = (cfg.hidden_size, Init::Normal(cfg.initializer_range));
        let act = Activation::from_name(&cfg.hidden_act)?;
        if cfg.use_dense {
            return Ok(Self::Dense(gated_bank(p, &[String::new()], h, cfg.intermediate_size, act, init)?));
        }
        let (e, k) = (cfg.num_experts, cfg.num_experts_per_tok);
        let router = SoftmaxTopK {
            weight: p.tensor("gate.weight", [e, h], init)?,
            k,
            renormalise: false,
            scale: 1.0,
            groups: None,
        };
        let names: Vec<_> = (0..e).map(|e| format!("experts.{e}.")).collect();
        let experts = gated_bank(p, &names, h, cfg.expert_size(), act, init)?;
        let shared = SharedExpert {
            bank: gated_bank(p, &["shared_expert.".to_string()], h, cfg.intermediate_size, act, init)?,
            gate: Some(p.tensor("shared_expert_gate.weight", [1, h], init)?),
            blend: None,
        };
        Ok(Self::Sparse(MoeLayer { router: Box::new(router), experts, shared: Some(shared) }))
    }

    /// `x [b * t, h]` to the same, with the routes of a sparse layer.
    fn forward(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        name: &str,
        probe: Option<&Probe>,
    ) -> Result<(Tensor, Option<Routes>)> {
        match self {
            Self::Sparse(moe) => {
                let (y, routes) = moe.forward(&RouteInput::new(x).with_mask(mask), name, probe)?;
                Ok((y, Some(routes)))
            }
            Self::Dense(bank) => Ok((bank.forward_dense(x)?, None)),
        }
    }
}

#[derive(Debug)]
struct Layer {
    input_layernorm: Tensor,
    self_attn: Attention,
    post_attention_layernorm: Tensor,
    ffn_layer: Ffn,
}

impl Layer {
    fn new(cfg: &Config, p: &Params) -> Result<Self> {
        let norm = |name: &str| p.tensor(&format!("{name}.weight"), [cfg.hidden_size], Init::Ones);
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::new(cfg, &p.pp("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            ffn_layer: Ffn::new(cfg, &p.pp("ffn_layer"))?,
        })
    }
}

/// The outputs of one forward pass.
#[derive(Clone, Debug)]
pub struct Output {
    /// Hidden states after the final norm, `[b, t, h]`.
    pub hidden: Tensor,
    /// The routes of every sparse layer, for losses.
    pub routes: Vec<Routes>,
}

/// The model. `Send + Sync`; a forward pass takes `&self` and keeps its state in the [`Cache`] that it is given.
#[derive(Debug)]
pub struct TimeMoe {
    config: Config,
    embed_layer: Embedding,
    layers: Vec<Layer>,
    norm: Tensor,
    /// `[input_size * horizon, h]` each.
    lm_heads: Vec<Linear>,
    rotary: Rotary,
    dtype: DType,
    device: Device,
}

impl TimeMoe {
    /// The model with tensors from `params`.
    pub fn new(config: Config, params: &Params) -> Result<Self> {
        config.validate()?;
        let (cfg, init) = (&config, Init::Normal(config.initializer_range));
        let p = params.pp("model");
        let heads = cfg.horizon_lengths.iter().enumerate().map(|(j, &n)| {
            let shape = (cfg.input_size * n, cfg.hidden_size);
            Linear::load(params, &format!("lm_heads.{j}.out_layer"), shape, false, init)
        });
        Ok(Self {
            embed_layer: Embedding::new(cfg, &p.pp("embed_layer"))?,
            layers: (0..cfg.num_hidden_layers)
                .map(|i| Layer::new(cfg, &p.pp("layers").pp(i)))
                .collect::<Result<_>>()?,
            norm: p.tensor("norm.weight", [cfg.hidden_size], Init::Ones)?,
            lm_heads: heads.collect::<Result<_>>()?,
            rotary: Rotary::new(cfg.head_dim(), cfg.rope_theta, RotaryStyle::Half)?,
            dtype: params.dtype(),
            device: params.device().clone(),
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
        no_others(&params, checkpoint, "Time-MoE", |_| false)?;
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

    /// Hidden states of every position. With a cache, `x` continues the tokens that the cache holds.
    ///
    /// The probe records `embed`, `layer.{i}.{attn_out, router_logits, topk_experts, topk_weights, ffn_out, hidden}` and
    /// `final_norm`, shaped `[b, t, ..]`.
    ///
    /// # Shapes
    /// `x [b, t]` or `[b, t, input_size]`, normalised values, to `[b, t, h]`
    pub fn forward(
        &self,
        x: &Tensor,
        context: &Context,
        mut cache: Option<&mut Cache>,
        probe: Option<&Probe>,
    ) -> Result<Output> {
        let x = if x.rank() == 2 { x.unsqueeze(2)? } else { x.clone() };
        let (b, t, inputs) = x.dims3()?;
        if inputs != self.config.input_size || t == 0 || b == 0 {
            bail!("input of shape {:?}, expected [batch, time, {}]", x.dims(), self.config.input_size);
        }
        if !context.padding.is_empty() && context.padding.len() != b {
            bail!("padding of {} rows for a batch of {b}", context.padding.len());
        }
        let past = cache.as_ref().map_or(0, |c| c.tokens);
        let positions = match &context.positions {
            Some(positions) => positions.clone(),
            None => (0..b).flat_map(|_| (past..past + t).map(|i| i as u32)).collect(),
        };
        let rotary = self.rotary.tables(&positions, b, t)?;
        // Cached tokens include the padding; a continuation has none of its own.
        let mask = if past == 0 { context.token_mask(b, t, &self.device)? } else { None };
        let h = self.config.hidden_size;
        // Tokens stay flat, [b * t, h]; only the probe shows rows and positions.
        let record = |name: String, value: &Tensor| match probe {
            Some(probe) => value.reshape((b, t, h)).map(|value| probe.tensor(name, &value)),
            None => Ok(()),
        };

        let x = x.to_dtype(self.dtype)?.reshape((b * t, inputs))?; // (b * t, input_size)
        let mut x = self.embed_layer.forward(&x)?; // (b * t, h)
        record("embed".into(), &x)?;
        let mut all_routes = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let normed = rms_norm(&x, &layer.input_layernorm, self.config.rms_norm_eps)?;
            let attn = layer.self_attn.forward(&normed, i, (b, t), &rotary, context, cache.as_deref_mut())?;
            record(format!("layer.{i}.attn_out"), &attn)?;
            x = (x + attn)?;
            let normed = rms_norm(&x, &layer.post_attention_layernorm, self.config.rms_norm_eps)?;
            let routed = mask.as_ref().filter(|_| !context.reference_padding);
            let (ffn, routes) = layer.ffn_layer.forward(&normed, routed, &format!("layer.{i}"), probe)?;
            record(format!("layer.{i}.ffn_out"), &ffn)?;
            x = (x + ffn)?;
            record(format!("layer.{i}.hidden"), &x)?;
            all_routes.extend(routes.map(|r| r.with_mask(mask.clone())));
        }
        let hidden = rms_norm(&x, &self.norm, self.config.rms_norm_eps)?.reshape((b, t, h))?; // (b, t, h)
        record("final_norm".into(), &hidden)?;
        if let Some(cache) = cache {
            cache.tokens += t;
        }
        Ok(Output { hidden, routes: all_routes })
    }

    /// Head `j` of `horizon_lengths`.
    ///
    /// # Shapes
    /// `hidden [.., h]` to `[.., input_size * horizon_lengths[j]]`
    pub fn head(&self, j: usize, hidden: &Tensor) -> Result<Tensor> {
        match self.lm_heads.get(j) {
            Some(head) => head.forward(hidden),
            None => bail!("head {j} of a model with {} heads", self.lm_heads.len()),
        }
    }
}
