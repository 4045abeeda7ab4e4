//! A layer: attention, experts of each modality, norms behind them, and which tokens pass it by.

use candle_core::{DType, Result, Tensor, bail};
use moesaic_kernels::ops::rms_norm;
use moesaic_kernels::rotary::{Rotary, RotaryTables};
use moesaic_kernels::routers::{Affinity, AuxiliaryRouter, CausalChoice, ExpertChoice, ExpertGroup, Noise, Router};
use moesaic_kernels::{Activation, CausalAttention, ExpertBank, Init, Modality, MoeLayer, Params, RouteInput, Routes};

use super::config::Config;
use super::{Routing, Sources, Taken};
use crate::decoder::packed;

/// Keys and values of each row, `[1, tokens, kv, d]`: of those tokens that went through the layer.
pub(super) type Kept = Vec<Option<[Tensor; 2]>>;

/// The tokens of a pass, `b` rows of `t`.
pub(super) struct Batch {
    /// The row of the pass that each of these rows is of.
    rows: Vec<usize>,
    b: usize,
    t: usize,
    /// Padding at the left of each row.
    padding: Vec<usize>,
    positions: Vec<u32>,
    modality: Vec<Modality>,
    rotary: RotaryTables,
    /// `[b * t]` f32, 0 for padding; absent without.
    mask: Option<Tensor>,
    /// Each token to the maps of its modality, with weight 1.
    by_modality: Routes,
    /// `[b * t]`: the index of each token's modality.
    index: Tensor,
}

impl Batch {
    pub(super) fn new(
        cfg: &Config,
        rotary: &Rotary,
        (b, t): (usize, usize),
        padding: Vec<usize>,
        positions: Vec<u32>,
        modality: Vec<Modality>,
        like: &Tensor,
    ) -> Result<Self> {
        let (device, known) = (like.device(), cfg.modalities());
        let mask = match padding.iter().all(|&p| p == 0) {
            true => None,
            false => {
                let real = |p: usize| (0..t).map(move |i| if i < p { 0f32 } else { 1.0 });
                let mask: Vec<f32> = padding.iter().flat_map(|&p| real(p)).collect();
                Some(Tensor::from_vec(mask, b * t, device)?)
            }
        };
        let place = |m: &Modality| match known.iter().position(|known| known == m) {
            Some(place) => Ok(place as u32),
            None => bail!("{} tokens for a model that has no experts for them", m.name()),
        };
        let index: Vec<u32> = modality.iter().map(place).collect::<Result<_>>()?;
        let choices: Vec<Vec<u32>> = index.iter().map(|m| vec![*m]).collect();
        let ones = Tensor::ones(b * t, DType::F32, device)?;
        let zeros = Tensor::zeros((b * t, known.len()), DType::F32, device)?;
        let by_modality = Routes::new(known.len(), &choices, &ones, zeros)?;
        let rotary = rotary.tables(&positions, b, t)?;
        let index = Tensor::from_vec(index, b * t, device)?;
        Ok(Self { rows: (0..b).collect(), b, t, padding, positions, modality, rotary, mask, by_modality, index })
    }

    fn input<'a>(&'a self, x: &'a Tensor) -> RouteInput<'a> {
        RouteInput { modality: Some(&self.modality), ..RouteInput::new(x) }.with_mask(self.mask.as_ref())
    }

    /// The batch of some of these tokens, `chosen` in rising order, and the token of each of its places: rows keep their
    /// order, those without any are left out, the others padded at the left with token 0 to the longest. `None` of no
    /// tokens.
    fn of(&self, chosen: &[u32], cfg: &Config, rotary: &Rotary, like: &Tensor) -> Result<Option<(Self, Vec<u32>)>> {
        let mut rows = vec![Vec::new(); self.b];
        for &token in chosen {
            let Some(row) = rows.get_mut(token as usize / self.t) else { bail!("token {token} is of no row") };
            row.push(token);
        }
        let origins =
            self.rows.iter().zip(&rows).filter(|(_, row)| !row.is_empty()).map(|(&origin, _)| origin).collect();
        rows.retain(|row| !row.is_empty());
        let Some(longest) = rows.iter().map(Vec::len).max() else { return Ok(None) };
        let b = rows.len();
        let padding: Vec<usize> = rows.iter().map(|row| longest - row.len()).collect();
        let place = |(row, &p): (Vec<u32>, &usize)| std::iter::repeat_n(0, p).chain(row).collect::<Vec<u32>>();
        let places: Vec<u32> = rows.into_iter().zip(&padding).flat_map(place).collect();
        let positions = places.iter().map(|&t| self.positions[t as usize]).collect();
        let modality = places.iter().map(|&t| self.modality[t as usize]).collect();
        let batch = Self::new(cfg, rotary, (b, longest), padding, positions, modality, like)?;
        Ok(Some((Self { rows: origins, ..batch }, places)))
    }
}

/// A linear map without bias, for all tokens or one for each modality.
#[derive(Debug)]
struct Map(ExpertBank);

impl Map {
    /// Parts `(name, outputs)` above each other, `[M, sum of outputs, inputs]`.
    fn load(p: &Params, cfg: &Config, parts: &[(&str, usize)], inputs: usize) -> Result<Self> {
        let prefixes: Vec<String> = match cfg.untied {
            true => cfg.modalities().iter().map(|modality| format!("{}.", modality.name())).collect(),
            false => vec![String::new()],
        };
        let name = |prefix: &str, (name, out): &(&str, usize)| (format!("{prefix}{name}.weight"), vec![*out, inputs]);
        let all: Vec<_> = prefixes.iter().flat_map(|prefix| parts.iter().map(move |part| name(prefix, part))).collect();
        let shape = [prefixes.len(), parts.iter().map(|(_, out)| out).sum(), inputs];
        let bank = ExpertBank::linear(p.storage(&shape, &all, Init::Normal(cfg.initializer_range), false)?)?;
        Ok(Self(packed(bank, p)?))
    }

    fn forward(&self, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        if self.0.experts() == 1 { self.0.forward_dense(x) } else { self.0.forward(x, &batch.by_modality) }
    }
}

/// RMSNorm, with one weight for all tokens or one for each modality.
#[derive(Debug)]
pub(super) struct Norm {
    /// `[M, h]`
    weight: Tensor,
    /// `[h]`
    ones: Tensor,
    eps: f64,
}

impl Norm {
    pub(super) fn load(p: &Params, cfg: &Config, name: &str) -> Result<Self> {
        let h = cfg.hidden_size;
        let names: Vec<String> = match cfg.untied {
            true => cfg.modalities().iter().map(|modality| format!("{name}.{}.weight", modality.name())).collect(),
            false => vec![format!("{name}.weight")],
        };
        let parts: Vec<_> = names.into_iter().map(|name| (name, vec![h])).collect();
        let weight = p.stack(&[parts.len(), h], &parts, Init::Ones)?.to_dtype(DType::F32)?;
        Ok(Self { weight, ones: Tensor::ones(h, DType::F32, p.device())?, eps: cfg.rms_norm_eps })
    }

    pub(super) fn forward(&self, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        if self.weight.dim(0)? == 1 {
            return rms_norm(x, &self.weight.squeeze(0)?, self.eps);
        }
        rms_norm(x, &self.ones, self.eps)? * self.weight.index_select(&batch.index, 0)?
    }
}

/// A router that chooses tokens in training, and what makes it causal.
#[derive(Debug)]
struct Chooser {
    router: Box<dyn Router>,
    /// Where auxiliary routers were asked for.
    causal: Option<CausalChoice>,
}

impl Chooser {
    /// `{name}.router.weight [E, h]`, and from the auxiliary source `{name}.auxiliary.{modality}.{down, up}.weight`.
    fn load(
        sources: &Sources<'_>,
        cfg: &Config,
        name: &str,
        groups: Vec<ExpertGroup>,
        factor: f64,
        noise: Option<Noise>,
    ) -> Result<Self> {
        let (h, init) = (cfg.hidden_size, Init::Normal(cfg.initializer_range));
        let experts = groups.iter().map(|g| g.experts).sum::<usize>();
        let weight = sources.model.tensor_f32(&format!("{name}.router.weight"), [experts, h], init)?;
        let affinity = Affinity { weight, groups };
        let causal = match sources.auxiliary() {
            None => None,
            Some(p) => {
                let inner = cfg.auxiliary_size.unwrap_or(h / 2);
                let auxiliary = affinity.groups.iter().map(|group| {
                    let part = group.modality.map_or(String::new(), |modality| format!(".{}", modality.name()));
                    let p = p.pp(format!("{name}.auxiliary{part}"));
                    Ok(AuxiliaryRouter {
                        down: p.tensor_f32("down.weight", [inner, h], init)?,
                        up: p.tensor_f32("up.weight", [group.experts, inner], init)?,
                    })
                });
                Some(CausalChoice { auxiliary: auxiliary.collect::<Result<_>>()?, affinity: affinity.clone() })
            }
        };
        let router: Box<dyn Router> = match (sources.routing, &causal) {
            (Routing::Choice, _) => Box::new(ExpertChoice { affinity, factor, noise }),
            (Routing::Causal, Some(causal)) => Box::new(causal.clone()),
            (Routing::Causal, None) => bail!("causal routing needs auxiliary routers; train them first"),
        };
        Ok(Self { router, causal })
    }
}

/// The feed-forward part.
#[derive(Debug)]
enum Ffn {
    Dense(ExpertBank),
    Sparse(MoeLayer),
}

/// One layer.
#[derive(Debug)]
pub(super) struct Layer {
    qkv_proj: Map,
    o_proj: Map,
    attention_norm: Norm,
    ffn_norm: Norm,
    ffn: Ffn,
    causal: Option<CausalChoice>,
    /// Which tokens go through the layer; absent for all.
    depth: Option<Chooser>,
    heads: (usize, usize),
    scale: f64,
}

impl Layer {
    pub(super) fn load(cfg: &Config, i: usize, sources: &Sources<'_>) -> Result<Self> {
        let (h, d, width) = (cfg.hidden_size, cfg.head_dim(), cfg.intermediate_size);
        let (heads, kv) = (cfg.num_attention_heads, cfg.num_key_value_heads);
        let sources = sources.pp(format!("layers.{i}"));
        let p = &sources.model;
        let attention = p.pp("self_attn");
        let parts = [("q_proj", heads * d), ("k_proj", kv * d), ("v_proj", kv * d)];

        let names = |group: ExpertGroup| {
            let part = group.modality.map_or(String::new(), |modality| format!("{}.", modality.name()));
            (0..group.experts).map(move |e| format!("mlp.{part}{e}"))
        };
        let networks: Vec<String> = cfg.groups().into_iter().flat_map(names).collect();
        let e = networks.len();
        let maps = |maps: &[&str], shape: [usize; 2]| -> Vec<(String, Vec<usize>)> {
            let name = |network: &String, map: &&str| (format!("{network}.{map}.weight"), shape.to_vec());
            networks.iter().flat_map(|network| maps.iter().map(move |map| name(network, map))).collect()
        };
        let init = Init::Normal(cfg.initializer_range);
        let up = p.storage(&[e, 2 * width, h], &maps(&["gate_proj", "up_proj"], [width, h]), init, true)?;
        let down = p.storage(&[e, h, width], &maps(&["down_proj"], [h, width]), init, false)?;
        let experts = packed(ExpertBank::gated(up, down, Activation::Silu)?, p)?;
        // Layers draw from streams of their own.
        let noise = cfg.gumbel_noise.map(|seed| Noise::new(seed.wrapping_add((i as u64) << 32)));
        let (ffn, causal) = match cfg.is_dense() {
            true => (Ffn::Dense(experts), None),
            false => {
                let Chooser { router, causal } = Chooser::load(&sources, cfg, "mlp", cfg.groups(), 1.0, noise)?;
                (Ffn::Sparse(MoeLayer { router, experts, shared: None }), causal)
            }
        };
        let depth = match cfg.depth_share.filter(|_| cfg.is_deep(i)) {
            None => None,
            Some(share) => {
                let all = vec![ExpertGroup { modality: None, experts: 1 }];
                Some(Chooser::load(&sources, cfg, "depth", all, share, None)?)
            }
        };
        Ok(Self {
            qkv_proj: Map::load(&attention, cfg, &parts, h)?,
            o_proj: Map::load(&attention, cfg, &[("o_proj", h)], heads * d)?,
            attention_norm: Norm::load(p, cfg, "attention_norm")?,
            ffn_norm: Norm::load(p, cfg, "ffn_norm")?,
            ffn,
            causal,
            depth,
            heads: (heads, kv),
            scale: 1.0 / (d as f64).sqrt(),
        })
    }

    /// `x [b * t, h]` to the same: all tokens through the layer, or those that mixture-of-depths chooses,
    /// `x + w (layer(x) - x)` with `w` the router's weight.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        batch: &Batch,
        (cfg, rotary): (&Config, &Rotary),
        taken: &mut Taken,
        kept: Option<&mut Kept>,
    ) -> Result<Tensor> {
        let Some(depth) = &self.depth else { return self.whole(x, batch, taken, kept) };
        let input = batch.input(x);
        let routes = depth.router.route(&input)?;
        if let (true, Some(causal)) = (taken.learns, &depth.causal) {
            taken.losses.push(causal.loss(&input, &routes)?);
        }
        let chosen = routes.token()?.to_vec1::<u32>()?;
        taken.depth.push(routes.clone());
        let Some((inner, places)) = batch.of(&chosen, cfg, rotary, x)? else { return Ok(x.clone()) };
        let count = places.len();
        let some = x.index_select(&Tensor::from_vec(places, count, x.device())?, 0)?; // (b * longest, h)
        let change = (self.whole(&some, &inner, taken, kept)? - &some)?;
        // The places that are no padding, row by row: the order of the chosen.
        let length = inner.t;
        let rows = inner.padding.iter().enumerate();
        let real: Vec<u32> = rows.flat_map(|(row, &p)| (p..length).map(move |i| (row * length + i) as u32)).collect();
        let change = change.index_select(&Tensor::from_vec(real, chosen.len(), x.device())?, 0)?; // (chosen, h)
        let change = change.broadcast_mul(&routes.weight().unsqueeze(1)?)?;
        let count = chosen.len();
        x.index_add(&Tensor::from_vec(chosen, count, x.device())?, &change, 0)
    }

    /// `h = x + norm(attention(x)); h + norm(experts(h))` (Swin v2, arXiv 2111.09883; as Chameleon, arXiv
    /// 2405.09818).
    fn whole(&self, x: &Tensor, batch: &Batch, taken: &mut Taken, kept: Option<&mut Kept>) -> Result<Tensor> {
        let (heads, kv) = self.heads;
        let qkv = self.qkv_proj.forward(x, batch)?; // (b * t, (heads + 2 kv) * d)
        let qkv = batch.rotary.apply_joint(&qkv, heads + 2 * kv, heads + kv)?;
        let attention = CausalAttention { start: batch.padding.clone(), ..CausalAttention::new(self.scale) };
        let attended = match kept {
            None => attention.forward_joint(&qkv, batch.b, heads, kv)?,
            Some(kept) => self.attend_kept(&qkv, batch, kept)?,
        };
        let attended = self.o_proj.forward(&attended, batch)?;
        let x = (x + self.attention_norm.forward(&attended, batch)?)?;
        let y = match &self.ffn {
            Ffn::Dense(network) => network.forward_dense(&x)?,
            Ffn::Sparse(moe) => {
                let input = batch.input(&x);
                let (y, routes) = moe.forward(&input, "experts", None)?;
                if let (true, Some(causal)) = (taken.learns, &self.causal) {
                    taken.losses.push(causal.loss(&input, &routes)?);
                }
                taken.routes.push(routes);
                y
            }
        };
        &x + self.ffn_norm.forward(&y, batch)?
    }
}

impl Layer {
    /// Attention to what is kept of each row and to the new tokens, which are kept, too. Rows have tokens of their own number here, as
    /// some may have passed the layer by.
    ///
    /// # Shapes
    /// `qkv [b * t, (heads + 2 kv) * d]` to `[b * t, heads * d]`, 0 at padding
    fn attend_kept(&self, qkv: &Tensor, batch: &Batch, kept: &mut Kept) -> Result<Tensor> {
        let (heads, kv) = self.heads;
        let d = qkv.dim(1)? / (heads + 2 * kv);
        let mut all = Vec::with_capacity(2 * batch.b);
        for (i, (&padding, &row)) in batch.padding.iter().zip(&batch.rows).enumerate() {
            let n = batch.t - padding;
            let own = qkv.narrow(0, i * batch.t + padding, n)?;
            let part = |first: usize, count: usize| {
                own.narrow(1, first * d, count * d)?.contiguous()?.reshape((1, n, count, d)) // (1, n, count, d)
            };
            let (q, mut k, mut v) = (part(0, heads)?, part(heads, kv)?, part(heads + kv, kv)?);
            let Some(place) = kept.get_mut(row) else { bail!("row {row} is not in this cache") };
            if let Some([keys, values]) = place.as_ref() {
                (k, v) = (Tensor::cat(&[keys, &k], 1)?, Tensor::cat(&[values, &v], 1)?);
            }
            let y = CausalAttention::new(self.scale).forward(&q, &k, &v)?.reshape((n, heads * d))?;
            if padding > 0 {
                all.push(Tensor::zeros((padding, heads * d), y.dtype(), y.device())?);
            }
            all.push(y);
            *place = Some([k, v]);
        }
        Tensor::cat(&all, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use moesaic_kernels::rotary::RotaryStyle;

    #[test]
    fn some_tokens_keep_their_positions() -> Result<()> {
        let rotary = Rotary::new(4, 100.0, RotaryStyle::Half)?;
        let like = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
        let positions = vec![0, 1, 2, 3, 4, 0, 0, 0, 1, 2, 0, 1, 2, 3, 4];
        let mut modality = vec![Modality::Text; 15];
        modality[8] = Modality::Image;
        let text = r#"{"model_type": "moma", "vocab_size": 9, "image_token_ids": [0, 0], "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 4, "text_experts": 1, "image_experts": 1}"#;
        let cfg = Config::from_json(text)?;
        let batch = Batch::new(&cfg, &rotary, (3, 5), vec![0, 2, 0], positions, modality, &like)?;
        let Some((some, places)) = batch.of(&[1, 4, 8], &cfg, &rotary, &like)? else {
            panic!("there are three tokens")
        };
        assert_eq!((some.b, some.t, places), (2, 2, vec![1, 4, 0, 8]));
        assert_eq!((&some.positions, &some.padding), (&vec![1, 4, 0, 1], &vec![0, 1]));
        assert_eq!(some.modality[3], Modality::Image);
        assert_eq!(some.mask.map(|m| m.to_vec1::<f32>()).transpose()?, Some(vec![1., 1., 0., 1.]));
        assert_eq!(some.rows, [0, 1]);
        assert!(batch.of(&[], &cfg, &rotary, &like)?.is_none());
        assert!(batch.of(&[15], &cfg, &rotary, &like).is_err());
        Ok(())
    }
}
