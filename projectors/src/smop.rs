//! SMoP, the sparse mixture of projectors of Llama-SMoP (Cappellazzo et al., arXiv 2505.14336), over any number of modalities.
//!
//! ```text
//! l = W_g x;   p = softmax(l);   y = sum over the k best of p_e / (sum of the k best) E_e(x)
//! E_e(x) = LN_e(W2_e relu(W1_e x + b1_e) + b2_e)
//! ```
//!
//! `x` is a token after compression. The norm is part of an expert and stands before the weighting.

use candle_core::{DType, Result, Tensor, bail};
use moesaic_kernels::losses::{joint_router_z, load_balance};
use moesaic_kernels::routers::SoftmaxTopK;
use moesaic_kernels::{ExpertBank, Init, Modality, Params, Probe, RouteInput, Router, Routes, Tokens};

use crate::two_layer::bank;
use crate::{Intake, Projected, Projector, ProjectorInput, checked, label, with_embeds};

/// What the modalities share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Joint experts, joint router.
    Jejr,
    /// Joint experts, disjoint routers.
    Jedr,
    /// Disjoint experts, disjoint routers: the paper's best.
    Dedr,
}

impl Sharing {
    /// The configuration that the paper calls so.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "JEJR" => Ok(Self::Jejr),
            "JEDR" => Ok(Self::Jedr),
            "DEDR" => Ok(Self::Dedr),
            other => {
                let other = moesaic_kernels::shown(other);
                bail!("a mixture of projectors {other} is not known; known are JEJR, JEDR, DEDR")
            }
        }
    }

    fn joint_experts(self) -> bool {
        self != Self::Dedr
    }

    fn joint_router(self) -> bool {
        self == Self::Jejr
    }
}

/// Sizes of a mixture of projectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmopConfig {
    /// What the modalities share.
    pub sharing: Sharing,
    /// The modalities, each once.
    pub inputs: Vec<Intake>,
    /// Width inside an expert.
    pub inner: usize,
    /// Width of the backbone.
    pub outputs: usize,
    /// Experts of a pool.
    pub experts: usize,
    /// Experts of a token.
    pub k: usize,
}

impl SmopConfig {
    fn validate(&self) -> Result<()> {
        let Some(first) = self.inputs.first() else { bail!("a mixture of projectors needs at least one modality") };
        for (i, input) in self.inputs.iter().enumerate() {
            if self.inputs.iter().take(i).any(|other| other.modality == input.modality) {
                bail!("{} tokens stand twice in a mixture of projectors", label(input.modality));
            }
            if self.sharing.joint_experts() && input.compressed() != first.compressed() {
                bail!(
                    "one pool of experts takes tokens of one width, but after compression {} tokens have {} and {} tokens {}: \
                     choose DEDR, or other compression",
                    label(first.modality),
                    first.compressed(),
                    label(input.modality),
                    input.compressed()
                );
            }
        }
        if self.k == 0 || self.k > self.experts {
            bail!("{} of {} experts for a token: expected 1 to {}", self.k, self.experts, self.experts);
        }
        Ok(())
    }
}

/// A sparse mixture of projectors.
///
/// | | experts | routers | tensors |
/// | --- | --- | --- | --- |
/// | [`Sharing::Jejr`] | one pool for all modalities | one | `audiovisual_proj.gate.weight`, `audiovisual_proj.experts.{e}.{0,2,3}` |
/// | [`Sharing::Jedr`] | one pool | one a modality | `audiovisual_proj.{audio,video}_gate.weight`, `audiovisual_proj.experts.{e}.{0,2,3}` |
/// | [`Sharing::Dedr`] | a pool a modality | one a modality | `{audio,video}_proj.gate.weight`, `{audio,video}_proj.experts.{e}.{0,2,3}` |
///
/// The authors published code for the first; the other two follow the figure of the paper, their names and the sum of their
/// losses are ours. Every modality's gate and pool carry its name.
#[derive(Debug)]
pub struct Smop {
    config: SmopConfig,
    /// One, or one for each modality.
    routers: Vec<SoftmaxTopK>,
    /// One, or one for each modality.
    pools: Vec<ExpertBank>,
}

impl Smop {
    /// The tensors under `p`, by the names [above](Self).
    ///
    /// # Errors
    /// The config makes no sense, or a tensor is missing or has another shape.
    pub fn load(config: SmopConfig, p: &Params) -> Result<Self> {
        config.validate()?;
        let joint = p.pp("audiovisual_proj");
        let own = |input: &Intake| p.pp(format!("{}_proj", label(input.modality)));
        let router = |p: &Params, name: &str, width: usize| {
            let init = Init::Uniform(1.0 / (width.max(1) as f64).sqrt());
            let weight = p.tensor(&format!("{name}.weight"), [config.experts, width], init)?.to_dtype(DType::F32)?;
            Ok(SoftmaxTopK { weight, k: config.k, renormalise: true, scale: 1.0, groups: None })
        };
        let names: Vec<String> = (0..config.experts).map(|e| format!("experts.{e}.")).collect();
        let pool = |p: &Params, width: usize| bank(p, &names, (width, config.inner, config.outputs), true);
        let first = config.inputs.iter().take(1);
        let (routers, pools): (Result<_>, Result<_>) = match config.sharing {
            Sharing::Jejr => (
                first.clone().map(|i| router(&joint, "gate", i.compressed())).collect(),
                first.map(|i| pool(&joint, i.compressed())).collect(),
            ),
            Sharing::Jedr => {
                let gate = |i: &Intake| router(&joint, &format!("{}_gate", label(i.modality)), i.compressed());
                (config.inputs.iter().map(gate).collect(), first.map(|i| pool(&joint, i.compressed())).collect())
            }
            Sharing::Dedr => (
                config.inputs.iter().map(|i| router(&own(i), "gate", i.compressed())).collect(),
                config.inputs.iter().map(|i| pool(&own(i), i.compressed())).collect(),
            ),
        };
        Ok(Self { routers: routers?, pools: pools?, config })
    }

    /// The sizes.
    pub fn config(&self) -> &SmopConfig {
        &self.config
    }

    /// `(balance, z)` of the routes that [`project`](Projector::project) gave, one a modality, without coefficients: over all
    /// tokens together behind one router, as the authors' code has it, else the sum over the modalities. The balance loss is
    /// `E` times the sum over experts of their share of tokens, counted for each choice, times their mean probability: k, not
    /// 1, when balanced.
    pub fn losses(&self, routes: &[Routes]) -> Result<(Tensor, Tensor)> {
        if self.config.sharing.joint_router() {
            return Ok((load_balance(routes)?, joint_router_z(routes)?));
        }
        let each: Vec<_> = routes.iter().map(std::slice::from_ref).collect();
        let sum = |loss: &dyn Fn(&[Routes]) -> Result<Tensor>| {
            let losses = each.iter().map(|&one| loss(one)).collect::<Result<Vec<_>>>()?;
            Tensor::stack(&losses, 0)?.sum_all()
        };
        Ok((sum(&|r| load_balance(r))?, sum(&|r| joint_router_z(r))?))
    }

    fn lane(&self, modality: Modality) -> Result<usize> {
        match self.config.inputs.iter().position(|i| i.modality == modality) {
            Some(lane) => Ok(lane),
            None => bail!("the mixture of projectors takes no {} tokens", label(modality)),
        }
    }

    /// Tokens after compression, as rows, and where they go.
    fn route(&self, tokens: &Tokens, probe: Option<&Probe>) -> Result<(Tokens, Tensor, Routes)> {
        let lane = self.lane(tokens.modality)?;
        checked(self, tokens)?;
        let (Some(intake), Some(router)) =
            (self.config.inputs.get(lane), self.routers.get(if self.config.sharing.joint_router() { 0 } else { lane }))
        else {
            bail!("the mixture of projectors has no router for {} tokens", label(tokens.modality));
        };
        let tokens = intake.compress(tokens)?;
        let (b, t, h) = tokens.embeds.dims3()?;
        let x = tokens.embeds.reshape((b * t, h))?; // (b * t, h)
        let mask = tokens.mask.as_ref().map(|m| m.flatten_all()?.to_dtype(DType::F32)).transpose()?;
        let routes = router.route(&RouteInput::new(&x).with_mask(mask.as_ref()))?;
        if let Some(probe) = probe {
            let name = label(tokens.modality);
            let put = |what: &str, value: &Tensor| -> Result<()> {
                probe.tensor(format!("{name}_{what}"), &value.reshape((b, t, ()))?);
                Ok(())
            };
            let (experts, weights) = routes.top_k()?;
            probe.tensor(format!("{name}_tokens"), &tokens.embeds);
            put("router_logits", routes.logits().unwrap_or(routes.scores()))?;
            put("router_probs", routes.scores())?;
            put("topk_indices", &experts)?;
            put("topk_weights", &weights)?;
            probe.routes(name, &routes);
        }
        Ok((tokens, x, routes))
    }
}

impl Projector for Smop {
    fn input_width(&self, modality: Modality) -> Option<usize> {
        self.config.inputs.iter().find(|i| i.modality == modality).map(|i| i.width)
    }

    fn output_width(&self) -> usize {
        self.config.outputs
    }

    /// Tokens come out compressed, and with one [`Routes`] for each modality that came in. A probe gets `{modality}_tokens` (what
    /// is routed), `{modality}_router_logits`, `_router_probs`, `_topk_indices`, `_topk_weights` and the routes of `{modality}`.
    fn project(&self, input: &ProjectorInput<'_>, probe: Option<&Probe>) -> Result<Projected> {
        let routed = input.tokens.iter().map(|t| self.route(t, probe)).collect::<Result<Vec<_>>>()?;
        let routes: Vec<Routes> = routed.iter().map(|(_, _, routes)| routes.clone()).collect();
        let mut outputs = Vec::with_capacity(routed.len());
        match self.pools.first() {
            // One pass for all, so that an expert's weights are read once.
            Some(pool) if self.config.sharing.joint_experts() && routed.len() > 1 => {
                let rows: Vec<&Tensor> = routed.iter().map(|(_, x, _)| x).collect();
                let y = pool.forward(&Tensor::cat(&rows, 0)?, &Routes::join(&routes)?)?; // (all tokens, outputs)
                let mut first = 0;
                for x in rows {
                    let count = x.dim(0)?;
                    outputs.push(y.narrow(0, first, count)?);
                    first += count;
                }
            }
            _ => {
                for (tokens, x, routes) in &routed {
                    let lane = if self.config.sharing.joint_experts() { 0 } else { self.lane(tokens.modality)? };
                    let Some(pool) = self.pools.get(lane) else { bail!("the mixture of projectors has no experts") };
                    outputs.push(pool.forward(x, routes)?);
                }
            }
        }
        let tokens = routed.iter().zip(outputs).map(|((tokens, _, _), y)| {
            let (b, t, _) = tokens.embeds.dims3()?;
            Ok(with_embeds(tokens, y.reshape((b, t, self.config.outputs))?))
        });
        Ok(Projected { tokens: tokens.collect::<Result<_>>()?, routes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Compression;
    use candle_core::Device;

    fn config(sharing: Sharing) -> SmopConfig {
        let input =
            |modality, n| Intake { modality, width: 6, compression: (n > 1).then_some(Compression::Average(n)) };
        let inputs = vec![input(Modality::Audio, 2), input(Modality::Video, 1), input(Modality::Image, 1)];
        SmopConfig { sharing, inputs, inner: 8, outputs: 5, experts: 4, k: 2 }
    }

    fn tokens(modality: Modality, b: usize, t: usize) -> Result<Tokens> {
        let p = Params::init(t as u64, &Device::Cpu);
        Ok(Tokens::new(p.tensor("x", [b, t, 6], Init::Normal(1.0))?.detach(), modality))
    }

    #[test]
    fn a_modality_has_the_same_bits_alone_and_beside_others() -> Result<()> {
        for sharing in [Sharing::Jejr, Sharing::Jedr, Sharing::Dedr] {
            let smop = Smop::load(config(sharing), &Params::init(1, &Device::Cpu))?;
            let all = [tokens(Modality::Audio, 2, 7)?, tokens(Modality::Image, 2, 3)?, tokens(Modality::Video, 2, 4)?];
            let together = smop.project(&ProjectorInput::new(&all), None)?;
            assert_eq!(together.routes.len(), 3);
            assert_eq!(together.tokens[0].embeds.dims(), [2, 3, 5]);
            for (one, joined) in all.iter().zip(&together.tokens) {
                let (alone, _) = smop.project_one(one, None)?;
                assert_eq!(alone.embeds.to_vec3::<f32>()?, joined.embeds.to_vec3::<f32>()?, "{sharing:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn gates_and_pools_are_shared_as_the_name_says() -> Result<()> {
        let names = |sharing| -> Result<Vec<String>> {
            let p = Params::init(1, &Device::Cpu);
            Smop::load(config(sharing), &p)?;
            let all = p.published(|v| Some(v.as_tensor().clone()))?;
            Ok(all
                .into_iter()
                .map(|(name, _)| name)
                .filter(|n| n.contains("gate") || n.contains(".0.3.bias"))
                .collect())
        };
        assert_eq!(names(Sharing::Jejr)?, ["audiovisual_proj.experts.0.3.bias", "audiovisual_proj.gate.weight"]);
        let gates = ["audio", "image", "video"].map(|m| format!("audiovisual_proj.{m}_gate.weight"));
        assert!(gates.iter().all(|g| names(Sharing::Jedr).is_ok_and(|n| n.contains(g) && n.len() == 4)));
        let disjoint = names(Sharing::Dedr)?;
        assert_eq!(disjoint.len(), 6);
        assert!(disjoint.contains(&"image_proj.experts.0.3.bias".to_string()), "{disjoint:?}");
        Ok(())
    }

    #[test]
    fn padding_is_not_projected_and_what_makes_no_sense_is_refused() -> Result<()> {
        let smop = Smop::load(config(Sharing::Jejr), &Params::init(2, &Device::Cpu))?;
        let mask = Tensor::new(&[[1u32, 1, 0, 0], [1, 1, 1, 1]], &Device::Cpu)?;
        let padded = Tokens { mask: Some(mask), ..tokens(Modality::Video, 2, 4)? };
        let projected = smop.project(&ProjectorInput::new(&[padded]), None)?;
        let rows = projected.tokens[0].embeds.to_vec3::<f32>()?;
        assert!(rows[0][2].iter().all(|v| *v == 0.0) && rows[1][2].iter().any(|v| *v != 0.0));
        assert!(smop.losses(&projected.routes)?.0.to_scalar::<f32>()? > 0.0);
        assert!(smop.project_one(&tokens(Modality::Text, 1, 2)?, None).is_err());
        assert!(Sharing::from_name("DEJR").is_err());
        let refused = |config| Smop::load(config, &Params::init(1, &Device::Cpu)).is_err();
        let good = config(Sharing::Jejr);
        assert!(refused(SmopConfig { k: 5, ..good.clone() }));
        assert!(refused(SmopConfig { inputs: Vec::new(), ..good.clone() }));
        let mut twice = good.clone();
        twice.inputs.extend(good.inputs.first().copied());
        assert!(refused(twice));
        let mut wide = good;
        wide.inputs[1].width = 7;
        assert!(refused(wide.clone()));
        assert!(!refused(SmopConfig { sharing: Sharing::Dedr, ..wide }));
        Ok(())
    }
}
