//! What a speech model is trained with: cross entropy over all scales, the losses of a mixture of projectors and of a sparse
//! language model, and the sink loss.

use candle_core::{DType, Result, Tensor, bail};
use moesaic_kernels::losses::ctc;
use moesaic_kernels::{Probe, Tokens};

use super::{Avsr, Connector, Media};

/// The parts of a loss; all carry gradients.
#[derive(Clone, Debug)]
pub struct AvsrLosses {
    /// What is minimised.
    pub total: Tensor,
    /// Mean cross entropy of the text; over all scales.
    pub cross_entropy: Tensor,
    /// Balance of a mixture of projectors, without its coefficient.
    pub balance: Option<Tensor>,
    /// Its z-loss, without its coefficient.
    pub z: Option<Tensor>,
    /// The balance loss of a sparse language model, without its coefficient.
    pub load: Option<Tensor>,
    /// The sink loss, with its factor.
    pub sink: Option<Tensor>,
    /// The CTC loss of the projected tokens, without its factor.
    pub ctc: Option<Tensor>,
}

/// What a loss has beside the cross entropy and the losses of a mixture of projectors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Extra {
    /// The sink loss with this factor.
    pub sink: Option<f64>,
    /// The balance loss of a sparse language model: where it learns, too.
    pub balance: bool,
    /// The CTC loss of the projected tokens with this factor: each is to be a token of the text, or `<pad>` between them.
    pub ctc: Option<f64>,
    /// That loss alone: the language model is not run, and the cross entropy is 0.
    pub alone: bool,
}

impl Avsr {
    /// The loss of a batch, over all scales. `texts` are ids without first and last token.
    ///
    /// # Errors
    /// As [`encode`](Self::encode) and [`sequence`](Self::sequence), or all texts are padding.
    pub fn loss(&self, media: Media<'_>, texts: &[Vec<u32>], extra: Extra) -> Result<AvsrLosses> {
        self.loss_of(&self.encode(media, None)?, texts, extra)
    }

    /// The loss of a batch that is encoded already; see [`loss`](Self::loss).
    ///
    /// # Errors
    /// As there.
    pub fn loss_of(&self, encoded: &[Tokens], texts: &[Vec<u32>], extra: Extra) -> Result<AvsrLosses> {
        let (scales, mut routes) = (self.scales(), Vec::new());
        let lanes: Vec<usize> = encoded.iter().map(|tokens| self.lane(tokens)).collect::<Result<_>>()?;
        // A rate's tokens are projected once and stand in several scales.
        let by_rate: Vec<Vec<Tokens>> = match &self.connector {
            Connector::Dense(projectors) => {
                let at_rates = |(tokens, &lane): (&Tokens, &usize)| {
                    let Some(lane) = projectors.get(lane) else { bail!("lane {lane} has no projector") };
                    (0..lane.rates().len()).map(|index| lane.project(tokens, index)).collect()
                };
                encoded.iter().zip(&lanes).map(at_rates).collect::<Result<_>>()?
            }
            Connector::Sparse(_) => {
                let (tokens, taken) = self.project(encoded, 0, None)?;
                routes = taken;
                tokens.into_iter().map(|t| vec![t]).collect()
            }
        };
        let (mut entropies, mut sinks, mut loads) = (Vec::with_capacity(scales), Vec::new(), Vec::new());
        let mut coefficient = 0.0;
        for scale in (0..scales).filter(|_| !extra.alone) {
            let indices = self.indices(scale);
            let of = |(rates, lane): (&Vec<Tokens>, &usize)| rates.get(*indices.get(*lane)?).cloned();
            let chosen: Vec<Tokens> = by_rate.iter().zip(&lanes).filter_map(of).collect();
            let sequence = self.sequence(&chosen, Some(texts))?;
            let probe = extra.sink.map(|_| Probe::new());
            let output = self.forward(&sequence, scale, probe.as_ref())?;
            let decoder = self.llm.decoder();
            entropies.push(decoder.loss_of(&output, &sequence.labels, false)?.cross_entropy);
            if extra.balance
                && let Some((load, factor)) = decoder.aux_loss(&output, texts.len(), false)?
            {
                loads.push(load);
                coefficient = factor;
            }
            if let (Some(factor), Some(probe)) = (extra.sink, probe) {
                sinks.push((sink_loss(&probe, self.config.llm.layers.len(), sequence.prefix)? * factor)?);
            }
        }
        let mean = |losses: &[Tensor]| match losses {
            [] => Ok(None),
            losses => Tensor::stack(losses, 0)?.mean_all().map(Some),
        };
        let cross_entropy = match mean(&entropies)? {
            Some(entropy) => entropy,
            None if extra.alone => Tensor::new(0f32, self.llm.decoder().device())?,
            None => bail!("the model has no scale"),
        };
        let mut total = cross_entropy.clone();
        let (mut balance, mut z) = (None, None);
        if let Connector::Sparse(smop) = &self.connector {
            let (b, v) = smop.losses(&routes)?;
            total = ((total + (&b * self.config.projector.balance)?)? + (&v * self.config.projector.z)?)?;
            (balance, z) = (Some(b), Some(v));
        }
        let load = mean(&loads)?;
        if let Some(load) = &load {
            total = (total + (load * coefficient)?)?;
        }
        let sink = mean(&sinks)?;
        if let Some(sink) = &sink {
            total = (total + sink)?;
        }
        let mut ctc = None;
        if let Some(factor) = extra.ctc {
            let losses = by_rate.iter().flatten().map(|tokens| self.ctc(tokens, texts)).collect::<Result<Vec<_>>>()?;
            if let Some(loss) = mean(&losses)? {
                total = (total + (&loss * factor)?)?;
                ctc = Some(loss);
            }
        }
        Ok(AvsrLosses { total, cross_entropy, balance, z, load, sink, ctc })
    }

    /// How likely projected tokens, brought to length 1 in the mean of squares, say the texts through the language model's head.
    fn ctc(&self, tokens: &Tokens, texts: &[Vec<u32>]) -> Result<Tensor> {
        let x = tokens.embeds.to_dtype(DType::F32)?;
        let mean = (x.sqr()?.mean_keepdim(2)? + 1e-6)?; // (b, t, 1)
        let logits = self.llm.decoder().logits(&x.broadcast_div(&mean.sqrt()?)?)?; // (b, t, V)
        ctc(&logits, texts, self.vocabulary.pad)
    }
}

/// The decorrelation loss of arXiv 2510.22603: the squared cosine between the first token's state and the states of media and
/// prompt, the mean over them and over the outputs of all layers but the last.
fn sink_loss(probe: &Probe, layers: usize, prefix: usize) -> Result<Tensor> {
    let tensors = probe.tensors();
    let mut losses = Vec::new();
    for layer in 1..layers {
        let Some(hidden) = tensors.get(&format!("hidden.{layer}")) else { bail!("layer {layer} left no state") };
        let hidden = hidden.narrow(1, 0, prefix + 1)?.to_dtype(DType::F32)?;
        let norm = hidden.sqr()?.sum_keepdim(2)?.sqrt()?.clamp(1e-12, f64::INFINITY)?; // (b, n, 1)
        let unit = hidden.broadcast_div(&norm)?;
        let others = unit.narrow(1, 1, prefix)?;
        let cosine = others.broadcast_mul(&unit.narrow(1, 0, 1)?)?.sum(2)?; // (b, prefix)
        losses.push(cosine.sqr()?.mean_all()?);
    }
    if losses.is_empty() {
        bail!("a sink loss looks between layers: the language model needs at least two");
    }
    Tensor::stack(&losses, 0)?.mean_all()
}
