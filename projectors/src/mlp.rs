//! One linear map, or several with GELU between (LLaVA-1.5, arXiv 2310.03744; MoE-LLaVA, arXiv 2401.15947).

use candle_core::{Result, bail};
use moesaic_kernels::{Activation, Init, Linear, Modality, Params, Probe, shown};

use crate::{Projected, Projector, ProjectorInput, checked, with_embeds};

/// How the tensors of the maps are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MlpNames {
    /// A torch `Sequential` with the non-linearities between: `0`, `2`, `4`, ... (a lone linear map has no number).
    Sequential,
    /// These names.
    Each(Vec<String>),
}

/// A dense projector for any modality.
#[derive(Clone, Debug)]
pub struct Mlp {
    maps: Vec<Linear>,
    act: Activation,
}

impl Mlp {
    /// The number of maps that `mm_projector_type` or `image_projector_type` names: `linear`, `mlpNx_gelu`.
    pub fn depth(kind: &str) -> Result<usize> {
        let depth = match kind {
            "linear" => Some(1),
            other => other.strip_prefix("mlp").and_then(|n| n.strip_suffix("x_gelu")).and_then(|n| n.parse().ok()),
        };
        match depth.filter(|n| (1..=64).contains(n)) {
            Some(n) => Ok(n),
            None => {
                let kind = shown(kind);
                bail!("projector {kind} is not known; known are linear and mlpNx_gelu with N from 1 to 64")
            }
        }
    }

    /// `depth` maps with biases from `inputs` to `outputs`, all but the first from `outputs`, with `act` between.
    pub fn load(p: &Params, names: &MlpNames, depth: usize, sizes: (usize, usize), act: Activation) -> Result<Self> {
        Self::with_bias(p, names, depth, sizes, act, true)
    }

    /// [`load`](Self::load), with or without biases.
    pub fn with_bias(
        p: &Params,
        names: &MlpNames,
        depth: usize,
        (inputs, outputs): (usize, usize),
        act: Activation,
        bias: bool,
    ) -> Result<Self> {
        let map = |i: usize| {
            let width = if i == 0 { inputs } else { outputs };
            let init = Init::Normal((width.max(1) as f64).powf(-0.5));
            match names {
                MlpNames::Sequential => Linear::load(p, &(2 * i).to_string(), (outputs, width), bias, init),
                MlpNames::Each(names) => match names.get(i) {
                    Some(name) => Linear::load(p, name, (outputs, width), bias, init),
                    None => bail!("a projector of {depth} maps has {} names", names.len()),
                },
            }
        };
        Ok(Self { maps: (0..depth.max(1)).map(map).collect::<Result<_>>()?, act })
    }

    /// LLaVA's of a `kind` as in [`depth`](Self::depth), under `p`.
    pub fn llava(p: &Params, kind: &str, sizes: (usize, usize)) -> Result<Self> {
        let depth = Self::depth(kind)?;
        // The reference's linear projector is the map itself, without a number.
        let names = if kind == "linear" { MlpNames::Each(vec![String::new()]) } else { MlpNames::Sequential };
        Self::load(p, &names, depth, sizes, Activation::Gelu)
    }
}

impl Projector for Mlp {
    fn input_width(&self, _: Modality) -> Option<usize> {
        self.maps.first().map(Linear::input_width)
    }

    fn output_width(&self) -> usize {
        self.maps.last().map_or(0, Linear::output_width)
    }

    fn project(&self, input: &ProjectorInput<'_>, _: Option<&Probe>) -> Result<Projected> {
        let one = |tokens| {
            checked(self, tokens)?;
            let mut x = tokens.embeds.clone();
            for (i, map) in self.maps.iter().enumerate() {
                x = map.forward(&if i == 0 { x } else { self.act.apply(&x)? })?;
            }
            Ok(with_embeds(tokens, x))
        };
        Ok(Projected { tokens: input.tokens.iter().map(one).collect::<Result<_>>()?, routes: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Tensor};
    use moesaic_kernels::Tokens;

    #[test]
    fn kinds() -> Result<()> {
        assert_eq!((Mlp::depth("linear")?, Mlp::depth("mlp2x_gelu")?), (1, 2));
        for kind in ["mlp0x_gelu", "mlpx_gelu", "mlp99x_gelu", "identity", "mlp2x_relu"] {
            assert!(Mlp::depth(kind).is_err(), "{kind}");
        }
        Ok(())
    }

    #[test]
    fn gradients_reach_every_map_and_widths_are_checked() -> Result<()> {
        let p = Params::init(1, &Device::Cpu);
        let mlp = Mlp::llava(&p, "mlp3x_gelu", (6, 4))?;
        let tokens = |width| -> Result<Tokens> {
            let x = (Tensor::arange(0f32, 5. * width as f32, &Device::Cpu)?.reshape((1, 5, width))? * 0.1)?;
            Ok(Tokens::new(x, Modality::Image))
        };
        let (y, routes) = mlp.project_one(&tokens(6)?, None)?;
        assert_eq!((y.embeds.dims(), routes.len()), (&[1, 5, 4][..], 0));
        let grads = y.embeds.sqr()?.sum_all()?.backward()?;
        let names: Vec<_> = p.variables().into_iter().map(|(name, var)| (name, grads.get(&var).is_some())).collect();
        assert_eq!(names.len(), 6);
        assert!(names.iter().all(|(_, there)| *there), "{names:?}");
        assert!(names.iter().any(|(name, _)| name == "4.weight"), "{names:?}");
        assert!(mlp.project_one(&tokens(5)?, None).is_err());
        assert_eq!(y.embeds.dtype(), DType::F32);
        Ok(())
    }
}
