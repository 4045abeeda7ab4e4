//! Llama-MTSK's projectors (Cappellazzo et al., arXiv 2503.06362): several rates of compression, each with a network of its
//! own. All are trained; one is chosen where the model is used.

use candle_core::{Result, bail};
use moesaic_kernels::{Params, Tokens};

use crate::{Intake, Projector, TwoLayer};

/// The projectors of one modality by rate.
#[derive(Clone, Debug)]
pub struct Matryoshka {
    rates: Vec<(usize, TwoLayer)>,
}

impl Matryoshka {
    /// `{i}.0`, `{i}.2`, `{i}.3` of `p` for the rate `i`: its number of tokens that become one, and what it takes.
    ///
    /// # Errors
    /// There is no rate, a rate stands twice, or a tensor is missing or has another shape.
    pub fn load(p: &Params, rates: &[(usize, Intake)], inner: usize, outputs: usize, norm: bool) -> Result<Self> {
        for (i, (rate, _)) in rates.iter().enumerate() {
            if rates.iter().take(i).any(|(other, _)| other == rate) {
                bail!("the compression rate {rate} stands twice");
            }
        }
        if rates.is_empty() {
            bail!("a projector needs at least one compression rate");
        }
        let one = |(i, &(rate, intake)): (usize, &(usize, Intake))| {
            Ok((rate, TwoLayer::load(&p.pp(i), intake, inner, outputs, norm)?))
        };
        Ok(Self { rates: rates.iter().enumerate().map(one).collect::<Result<_>>()? })
    }

    /// A single rate whose tensors stand in `p` without a number: Llama-AVSR.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn single(p: &Params, rate: usize, intake: Intake, inner: usize, outputs: usize, norm: bool) -> Result<Self> {
        Ok(Self { rates: vec![(rate, TwoLayer::load(p, intake, inner, outputs, norm)?)] })
    }

    /// The rates, in the order of their tensors.
    pub fn rates(&self) -> impl ExactSizeIterator<Item = usize> {
        self.rates.iter().map(|(rate, _)| *rate)
    }

    /// Where a rate stands among [`rates`](Self::rates); the first without one.
    ///
    /// # Errors
    /// The model was not trained for this rate: the message lists those that it has.
    pub fn index(&self, rate: Option<usize>) -> Result<usize> {
        let Some(rate) = rate else { return Ok(0) };
        match self.rates.iter().position(|(r, _)| *r == rate) {
            Some(index) => Ok(index),
            None => {
                let known: Vec<String> = self.rates().map(|r| r.to_string()).collect();
                bail!("the compression rate {rate} is not one of the model's: choose {}", known.join(" or "))
            }
        }
    }

    /// Tokens at the rate with this index.
    ///
    /// # Errors
    /// There is no such rate, or the tokens do not fit.
    pub fn project(&self, tokens: &Tokens, index: usize) -> Result<Tokens> {
        match self.rates.get(index) {
            Some((_, projector)) => Ok(projector.project_one(tokens, None)?.0),
            None => bail!("rate number {index} of {}", self.rates.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Compression;
    use candle_core::{Device, Tensor};
    use moesaic_kernels::Modality;

    #[test]
    fn every_rate_has_its_own_network() -> Result<()> {
        let p = Params::init(3, &Device::Cpu);
        let intake = |n| Intake { modality: Modality::Audio, width: 4, compression: Some(Compression::Stack(n)) };
        let nested = Matryoshka::load(&p.pp("audio_proj"), &[(2, intake(2)), (3, intake(3))], 8, 6, true)?;
        let x = Tensor::arange(0f32, 28., &Device::Cpu)?.reshape((1, 7, 4))?;
        let tokens = Tokens::new(x, Modality::Audio);
        let dims = |i| Ok::<_, candle_core::Error>(nested.project(&tokens, i)?.embeds.dims().to_vec());
        assert_eq!((dims(0)?, dims(1)?), (vec![1, 3, 6], vec![1, 2, 6]));
        assert!(nested.project(&tokens, 2).is_err());
        assert_eq!((nested.index(None)?, nested.index(Some(3))?), (0, 1));
        assert!(nested.index(Some(4)).unwrap_err().to_string().contains("choose 2 or 3"));
        assert!(p.variables().iter().any(|(name, _)| name == "audio_proj.1.3.bias"));
        assert!(Matryoshka::load(&p, &[(2, intake(2)), (2, intake(2))], 8, 6, true).is_err());
        assert!(Matryoshka::load(&p, &[], 8, 6, true).is_err());
        Ok(())
    }
}
