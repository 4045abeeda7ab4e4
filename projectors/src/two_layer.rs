//! Llama-AVSR's projector (Cappellazzo et al., arXiv 2409.12319, section III): compression, then `[LN](W2 relu(W1 x))`.

use candle_core::{Result, bail};
use moesaic_kernels::{Activation, ExpertBank, Init, Modality, OutputNorm, Params, Probe, Tokens};

use crate::{Compression, Projected, Projector, ProjectorInput, checked, with_embeds};

/// What a projector takes of a modality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intake {
    /// The modality.
    pub modality: Modality,
    /// Width of its tokens.
    pub width: usize,
    /// How they are joined first; absent for not at all.
    pub compression: Option<Compression>,
}

impl Intake {
    /// Width behind the compression.
    pub fn compressed(&self) -> usize {
        self.compression.map_or(self.width, |c| c.width(self.width))
    }

    /// Tokens behind the compression.
    ///
    /// # Errors
    /// There are fewer than one is made of.
    pub fn compress(&self, tokens: &Tokens) -> Result<Tokens> {
        self.compression.map_or_else(|| Ok(tokens.clone()), |c| c.apply(tokens))
    }
}

/// `E` networks `[LN](W2 relu(W1 x + b1) + b2)` under the names of a torch `Sequential`: `{prefix}0`, `{prefix}2`, `{prefix}3`.
pub(crate) fn bank(
    p: &Params,
    prefixes: &[String],
    (inputs, inner, outputs): (usize, usize, usize),
    norm: bool,
) -> Result<ExpertBank> {
    let stack = |what: &str, shape: &[usize], init| {
        let parts: Vec<_> = prefixes.iter().map(|prefix| (format!("{prefix}{what}"), shape.to_vec())).collect();
        p.stack(&[&[prefixes.len()], shape].concat(), &parts, init)
    };
    // As torch makes linear maps.
    let uniform = |width: usize| Init::Uniform(1.0 / (width.max(1) as f64).sqrt());
    let up = stack("0.weight", &[inner, inputs], uniform(inputs))?;
    let down = stack("2.weight", &[outputs, inner], uniform(inner))?;
    let biases = (stack("0.bias", &[inner], uniform(inputs))?, stack("2.bias", &[outputs], uniform(inner))?);
    let mut bank = ExpertBank::mlp(up, down, Activation::Relu)?.with_biases(Some(biases.0), Some(biases.1))?;
    if norm {
        let (weight, bias) = (stack("3.weight", &[outputs], Init::Ones)?, stack("3.bias", &[outputs], Init::Zeros)?);
        bank = bank.with_output_norm(OutputNorm { weight, bias, eps: 1e-5 })?;
    }
    if p.packs() { bank.pack() } else { Ok(bank) }
}

/// Compression and a two-layer network for one modality.
#[derive(Clone, Debug)]
pub struct TwoLayer {
    intake: Intake,
    bank: ExpertBank,
}

impl TwoLayer {
    /// `0`, `2` and, if `norm`, `3` of `p`: the linear maps and the LayerNorm behind them.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(p: &Params, intake: Intake, inner: usize, outputs: usize, norm: bool) -> Result<Self> {
        Ok(Self { intake, bank: bank(p, &[String::new()], (intake.compressed(), inner, outputs), norm)? })
    }

    /// What it takes.
    pub fn intake(&self) -> Intake {
        self.intake
    }
}

impl Projector for TwoLayer {
    fn input_width(&self, modality: Modality) -> Option<usize> {
        (modality == self.intake.modality).then_some(self.intake.width)
    }

    fn output_width(&self) -> usize {
        self.bank.output_width()
    }

    fn project(&self, input: &ProjectorInput<'_>, _: Option<&Probe>) -> Result<Projected> {
        let one = |tokens| {
            checked(self, tokens)?;
            let tokens = self.intake.compress(tokens)?;
            let (b, t, h) = tokens.embeds.dims3()?;
            if b == 0 || t == 0 {
                bail!("there are no {:?} tokens to project", tokens.modality);
            }
            let y = self.bank.forward_dense(&tokens.embeds.reshape((b * t, h))?)?;
            Ok(with_embeds(&tokens, y.reshape((b, t, self.output_width()))?))
        };
        Ok(Projected { tokens: input.tokens.iter().map(one).collect::<Result<_>>()?, routes: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn by_hand() -> Result<()> {
        let dev = &Device::Cpu;
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("p.safetensors");
        let tensor = |name: &str, t: Tensor| (name.to_string(), t);
        // The second hidden unit is always below zero.
        let tensors = [
            tensor("0.weight", Tensor::new(&[[1f32, 0.], [-1., -1.]], dev)?),
            tensor("0.bias", Tensor::new(&[1f32, 0.], dev)?),
            tensor("2.weight", Tensor::new(&[[1f32, 5.], [2., 5.]], dev)?),
            tensor("2.bias", Tensor::new(&[0f32, 1.], dev)?),
        ];
        moesaic_kernels::checkpoint::save(&path, &tensors, &[])?;
        let p = Params::load(&moesaic_kernels::checkpoint::Checkpoint::open(&path)?, candle_core::DType::F32, dev);
        let x = Tensor::new(&[[[1f32], [3.], [5.], [7.], [9.]]], dev)?;
        let tokens = Tokens::new(x, Modality::Audio);
        let stacked = Intake { modality: Modality::Audio, width: 1, compression: Some(Compression::Stack(2)) };
        let (y, _) = TwoLayer::load(&p, stacked, 2, 2, false)?.project_one(&tokens, None)?;
        assert_eq!(y.embeds.to_vec3::<f32>()?, [[[2., 5.], [6., 13.]]]);
        let video = Tokens { modality: Modality::Video, ..tokens.clone() };
        assert!(TwoLayer::load(&p, stacked, 2, 2, false)?.project_one(&video, None).is_err());
        assert!(TwoLayer::load(&p, stacked, 2, 2, true).is_err(), "there is no norm in the file");
        let trained = Params::init(1, dev);
        let (y, _) = TwoLayer::load(&trained, stacked, 2, 2, true)?.project_one(&tokens, None)?;
        // Behind the norm the two outputs are opposite.
        let y = y.embeds.to_vec3::<f32>()?;
        assert!(y[0].iter().all(|row| (row[0] + row[1]).abs() < 1e-4), "{y:?}");
        assert_eq!(trained.variables().len(), 6);
        Ok(())
    }
}
