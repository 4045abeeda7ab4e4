//! The feed-forward part of a layer: one dense network, or routed experts through the shared sparse layer.

use candle_core::{DType, Result, Tensor};
use moesaic_kernels::routers::{
    Capacity, DenseTraining, GroupLimit, Keep, NormedReluRouter, NullTopK, PathwayTopK, ReluRouter, Router,
    SecondChoice, SigmoidTopK, SoftmaxTopK, SparseMixer, TopKSoftmax,
};
use moesaic_kernels::{
    ExpertBank, FreeExpert, Init, Linear, MoeLayer, Params, RouteInput, Routes, SharedExpert, Storage,
};

use super::config::{DecoderConfig, DenseConfig, RouterConfig, SparseConfig};
use super::names::ExpertNames;
use super::sites::Site;

/// The feed-forward part of a layer.
#[derive(Debug)]
pub(super) enum Ffn {
    Dense { bank: ExpertBank, names: [Option<String>; 3], prefix: &'static str },
    Sparse { moe: MoeLayer, bias: Option<Tensor>, names: Vec<[Option<String>; 3]>, shared: [Option<String>; 3] },
}

/// A network under `{prefix}{gate, up, down}`; the gate's name is empty without a gate.
struct NetworkNames<'a> {
    prefix: String,
    maps: &'a [&'static str; 3],
}

impl NetworkNames<'_> {
    fn map(&self, i: usize) -> Option<String> {
        let name = self.maps.get(i).copied().unwrap_or_default();
        (!name.is_empty()).then(|| format!("{}{name}", self.prefix))
    }

    fn all(&self) -> [Option<String>; 3] {
        [self.map(0), self.map(1), self.map(2)]
    }
}

/// Stacks of networks of width `i` in their published tensors.
fn bank(p: &Params, networks: &[NetworkNames<'_>], h: usize, config: DenseConfig, init: Init) -> Result<ExpertBank> {
    let (e, i) = (networks.len(), config.intermediate_size);
    let wide = if config.gated { 2 * i } else { i };
    let first = if config.gated { 0 } else { 1 };
    let ups = |what: &str, shape: &[usize]| -> Vec<(String, Vec<usize>)> {
        let names = networks.iter().flat_map(|n| (first..2).filter_map(|m| n.map(m)));
        names.map(|name| (format!("{name}.{what}"), shape.to_vec())).collect()
    };
    let downs = |what: &str, shape: &[usize]| -> Vec<(String, Vec<usize>)> {
        networks.iter().filter_map(|n| n.map(2)).map(|name| (format!("{name}.{what}"), shape.to_vec())).collect()
    };
    let up = p.storage(&[e, wide, h], &ups("weight", &[i, h]), init, config.gated)?;
    let down = p.storage(&[e, h, i], &downs("weight", &[h, i]), init, false)?;
    let bank = match config.gated {
        true => ExpertBank::gated(up, down, config.activation)?,
        false => ExpertBank::mlp(up, down, config.activation)?,
    };
    let bank = if config.bias {
        let up = p.stack(&[e, wide], &ups("bias", &[i]), Init::Zeros)?;
        let down = p.stack(&[e, h], &downs("bias", &[h]), Init::Zeros)?;
        bank.with_biases(Some(up), Some(down))?
    } else {
        bank
    };
    packed(bank, p)
}

/// In training the plain tensors are the variables; elsewhere the CPU kernels want tiles.
pub(crate) fn packed(bank: ExpertBank, p: &Params) -> Result<ExpertBank> {
    if p.packs() { bank.pack() } else { Ok(bank) }
}

impl Ffn {
    pub(super) fn load(cfg: &DecoderConfig, layer: usize, p: &Params) -> Result<Self> {
        let sparse = cfg.layers.get(layer).is_some_and(|l| l.sparse);
        match (sparse, cfg.sparse, cfg.dense) {
            (true, Some(sparse), _) => {
                Self::sparse(cfg, SparseConfig { experts: cfg.experts(layer), ..sparse }, layer, p)
            }
            (false, _, Some(dense)) => {
                let (prefix, init) = (cfg.names.dense, Init::Normal(cfg.initializer_range));
                let names = NetworkNames { prefix: String::new(), maps: &cfg.names.dense_maps };
                let all = names.all();
                let bank = bank(&p.pp(prefix), &[names], cfg.hidden_size, dense, init)?;
                Ok(Self::Dense { bank, names: all, prefix })
            }
            _ => candle_core::bail!("layer {layer} has no feed-forward part"),
        }
    }

    fn sparse(cfg: &DecoderConfig, config: SparseConfig, layer: usize, p: &Params) -> Result<Self> {
        let (h, init, p) = (cfg.hidden_size, Init::Normal(cfg.initializer_range), p.pp(cfg.names.sparse));
        let SparseConfig { experts: e, intermediate_size: i, activation, gated, bias, .. } = config;
        let network = |width| DenseConfig { intermediate_size: width, activation, gated, bias };
        let router = router(cfg, config, layer, &p)?;
        let mut names = Vec::new();
        let experts = match &cfg.names.experts {
            ExpertNames::Each(maps) => {
                let prefix = |e: usize| format!("{}.{e}.", cfg.names.expert);
                let networks: Vec<_> = (0..e).map(|e| NetworkNames { prefix: prefix(e), maps }).collect();
                names = networks.iter().map(NetworkNames::all).collect();
                bank(&p, &networks, h, network(i), init)?
            }
            ExpertNames::Stacked([up, down]) => {
                let stack = |name: &str, shape: [usize; 3], gated| {
                    p.storage(&shape, &[(format!("{name}.weight"), shape.to_vec())], init, gated)
                };
                let (up, down) = (stack(up, [e, 2 * i, h], true)?, stack(down, [e, h, i], false)?);
                packed(ExpertBank::gated(up, down, activation)?, &p)?
            }
            ExpertNames::InputMajor([up, down]) => {
                let stack = |name: &str, shape: [usize; 3]| p.input_major(name, shape, init).map(Storage::Dense);
                let (up, down) = (stack(up, [e, 2 * i, h])?, stack(down, [e, h, i])?);
                packed(ExpertBank::gated(up, down, activation)?, &p)?
            }
        };
        let experts = experts.with_free(free(config.router, h, init, &p)?)?;
        let mut shared_names = [None, None, None];
        let shared = match config.shared {
            None => None,
            Some(shared) => {
                let prefix = format!("{}.", cfg.names.shared);
                let names = NetworkNames { prefix, maps: &cfg.names.dense_maps };
                shared_names = names.all();
                let gate = match shared.gated {
                    true => Some(p.tensor(cfg.names.shared_gate, [1, h], init)?),
                    false => None,
                };
                let blend = match shared.blended {
                    true => Some(Box::new(Linear::load(&p, cfg.names.blend, (2, h), true, init)?)),
                    false => None,
                };
                let network = DenseConfig { bias: shared.bias, ..network(shared.intermediate_size) };
                let bank = bank(&p, &[names], h, network, init)?;
                Some(SharedExpert { bank, gate, blend })
            }
        };
        let bias = match config.output_bias {
            true => Some(p.tensor("bias", [h], Init::Zeros)?),
            false => None,
        };
        Ok(Self::Sparse { moe: MoeLayer { router, experts, shared }, bias, names, shared: shared_names })
    }

    /// `x [b * t, h]` to the same, with the routes of a sparse layer. `name` stands in errors.
    pub(super) fn forward(&self, input: &RouteInput<'_>, name: &str) -> Result<(Tensor, Option<Routes>)> {
        match self {
            Self::Dense { bank, .. } => Ok((bank.forward_dense(input.x)?, None)),
            Self::Sparse { moe, bias, .. } => {
                let (mut y, routes) = moe.forward(input, name, None)?;
                if let Some(bias) = bias {
                    y = y.broadcast_add(&bias.to_dtype(y.dtype())?)?;
                }
                Ok((y, Some(routes)))
            }
        }
    }

    pub(super) fn sites<'a>(&'a mut self, layer: &str, sparse: &str, sites: &mut Vec<Site<'a>>) {
        let full = |prefix: &str, names: &[Option<String>; 3]| {
            names.clone().map(|name| name.map(|name| format!("{prefix}.{name}")))
        };
        match self {
            Self::Dense { bank, names, prefix } => {
                let prefix = format!("{layer}.{prefix}");
                sites.push(Site::Experts { names: vec![full(&prefix, names)], prefix, bank });
            }
            Self::Sparse { moe, names, shared, .. } => {
                let prefix = format!("{layer}.{sparse}");
                let names = names.iter().map(|n| full(&prefix, n)).collect();
                sites.push(Site::Experts { names, prefix: prefix.clone(), bank: &mut moe.experts });
                if let Some(expert) = &mut moe.shared {
                    sites.push(Site::Experts { names: vec![full(&prefix, shared)], prefix, bank: &mut expert.bank });
                }
            }
        }
    }
}

/// The experts without a network, in their order behind the others.
fn free(router: RouterConfig, h: usize, init: Init, p: &Params) -> Result<Vec<FreeExpert>> {
    Ok(match router {
        RouterConfig::NullTopK { nulls } => vec![FreeExpert::Zero; nulls],
        RouterConfig::Pathways { zero, copy, constant } => {
            let mut free = vec![FreeExpert::Zero; zero];
            free.extend(std::iter::repeat_n(FreeExpert::Copy, copy));
            for i in 0..constant {
                let p = p.pp(format!("constant_experts.{i}"));
                free.push(FreeExpert::Constant {
                    vector: p.tensor("vector", [h], init)?,
                    gate: p.tensor("gate.weight", [2, h], init)?,
                });
            }
            free
        }
        _ => Vec::new(),
    })
}

fn router(cfg: &DecoderConfig, config: SparseConfig, layer: usize, p: &Params) -> Result<Box<dyn Router>> {
    let (k, h, init) = (config.k, cfg.hidden_size, Init::Normal(cfg.initializer_range));
    let e = config.experts + config.router.free();
    // Routers compute in f32 whatever the weights are; they are small. Where they are in f32 in the file of a model in half
    // precision, they stay so.
    let weight = match config.router {
        RouterConfig::Capacity { .. } => p.tensor_f32(cfg.names.router, [e, h], init)?,
        _ => p.tensor(cfg.names.router, [e, h], init)?.to_dtype(DType::F32)?,
    };
    let limit = |groups: Option<(usize, usize)>| groups.map(|(groups, keep)| GroupLimit { groups, keep });
    Ok(match config.router {
        RouterConfig::SoftmaxTopK { renormalise, scale, groups } => {
            Box::new(SoftmaxTopK { weight, k, renormalise, scale, groups: limit(groups) })
        }
        RouterConfig::TopKSoftmax => Box::new(TopKSoftmax { weight, k }),
        RouterConfig::SigmoidTopK { renormalise, scale, groups } => {
            let bias = Some(p.tensor(cfg.names.router_bias, [e], Init::Zeros)?.to_dtype(DType::F32)?);
            Box::new(SigmoidTopK { weight, bias, k, renormalise, scale, groups: limit(groups) })
        }
        RouterConfig::SparseMixer { jitter } => Box::new(SparseMixer { weight, jitter }),
        RouterConfig::Capacity { factor, train_factor, min_capacity, noise } => {
            let factor = if p.trains() { train_factor } else { factor };
            // Layers draw from streams of their own.
            let seed = |seed: u64| seed.wrapping_add((layer as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let second = noise.map_or(SecondChoice::Best, |noise| SecondChoice::gumbel(seed(noise)));
            Box::new(Capacity { weight, k, factor, min_capacity, second })
        }
        RouterConfig::NullTopK { nulls } => Box::new(NullTopK { weight, nulls, k }),
        RouterConfig::Pathways { .. } => {
            let residual = match cfg.sparse_layers().next() == Some(layer) {
                true => None,
                false => Some(p.tensor_f32("gate_residual.weight", [e, e], init)?),
            };
            Box::new(PathwayTopK { weight, residual, k, renormalise: None })
        }
        RouterConfig::Relu => Box::new(ReluRouter { weight }),
        RouterConfig::NormedRelu => {
            let norm = p.tensor_f32("gate_norm.weight", [e], Init::Ones)?;
            Box::new(NormedReluRouter { weight, norm, eps: cfg.norm.eps })
        }
        RouterConfig::DenseTraining => Box::new(DenseTraining { weight, keep: Keep::Best(k) }),
    })
}
