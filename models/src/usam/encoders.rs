//! The encoders, and how their tokens are brought into step.

use candle_core::{DType, Error, Result, Tensor, bail};
use moesaic_encoders::audio::{CedFeatures, Features, WhisperFeatures};
use moesaic_encoders::linear_in_time;
use moesaic_encoders::speech::{Ced, CedConfig, Hubert, WaveConfig, WhisperConfig, WhisperEncoder};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Init, Modality, Probe, Tokens};

use super::config::{Alignment, UsamConfig};
use super::{Layout, Sources};

/// CED for sounds, Whisper for speech and MERT for music, side by side; of the three, those that the model has.
#[derive(Debug)]
pub(super) struct Streams {
    alignment: Alignment,
    sounds: Option<Sounds>,
    speech: Option<Speech>,
    music: Option<Music>,
}

/// CED.
struct Sounds {
    encoder: Ced,
    features: CedFeatures,
}

/// Whisper.
struct Speech {
    encoder: WhisperEncoder,
    features: WhisperFeatures,
    positions: usize,
}

/// MERT.
struct Music {
    encoder: Hubert,
    /// Of hidden states: `[1, states, 1, 1]` and `[1]`, a convolution of one place.
    mix: [Tensor; 2],
}

/// Features are tables.
macro_rules! debug_as_encoder {
    ($($name:ident),*) => {$(
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.encoder.fmt(f)
            }
        }
    )*};
}

debug_as_encoder!(Sounds, Speech, Music);

/// Samples of one of Whisper's and of MERT's frames.
const HOP: usize = 320;

impl Sounds {
    fn new(config: &CedConfig, lora: &super::LoraNumbers, sources: Sources<'_>, layout: Layout) -> Result<Self> {
        let mut keys = config.clone();
        keys.split = layout.split;
        let features = CedFeatures::with_bands(keys.n_mels).map_err(Error::wrap)?;
        let mut encoder = Ced::new(keys, &layout.under(sources.frozen, "encoder", layout.encoder))?;
        if layout.encoder {
            let adapters = sources.trained.pp("encoder.base_model.model");
            encoder.attach_lora(&adapters, lora.rank, lora.scale(), lora.dropout)?;
        }
        Ok(Self { encoder, features })
    }

    /// Samples of a clip with so many columns of patches.
    fn samples(&self, columns: usize) -> usize {
        // A clip of n samples has 1 + n / 160 frames.
        columns.saturating_mul(self.encoder.config().patch_size).saturating_sub(1).saturating_mul(160)
    }

    /// Tokens `[b, t, d]` in their own order, and the chunks and rows that they stand in.
    fn encode(&self, rows: &[&[f32]], stack: &Stack<'_>) -> Result<(Tensor, [usize; 2])> {
        let mels = stack(self.features.batch(rows).map_err(Error::wrap)?)?;
        let chunks = self.encoder.config().chunks(mels.dim(2)?);
        Ok((self.encoder.forward(&mels, None)?.embeds, [chunks, self.encoder.config().grid().0]))
    }
}

/// Makes a tensor of a batch's features.
type Stack<'a> = dyn Fn(Vec<Features>) -> Result<Tensor> + 'a;

impl Speech {
    fn new(config: &WhisperConfig, sources: Sources<'_>) -> Result<Self> {
        let positions = config.max_source_positions;
        let features = WhisperFeatures::with_window(config.num_mel_bins, positions.saturating_mul(HOP));
        Ok(Self {
            encoder: WhisperEncoder::new(config.clone(), &sources.frozen.pp("whisper.model.encoder"))?,
            features: features.map_err(Error::wrap)?,
            positions,
        })
    }

    /// `[b, positions, d]`
    fn encode(&self, rows: &[&[f32]], stack: &Stack<'_>) -> Result<Tensor> {
        let mels = rows.iter().map(|clip| self.features.extract(clip).map_err(Error::wrap));
        Ok(self.encoder.forward(&stack(mels.collect::<Result<_>>()?)?, None)?.embeds)
    }
}

impl Music {
    fn new(config: &WaveConfig, sources: Sources<'_>, checkpoint: Option<&Checkpoint>) -> Result<Self> {
        let config = checkpoint.map_or_else(|| config.clone(), |c| config.clone().named_as(c, "mert."));
        let states = config.num_hidden_layers + 1;
        let uniform = Init::Uniform(1.0 / (states as f64).sqrt()); // as torch makes convolutions
        let conv = sources.trained.pp("conv");
        Ok(Self {
            encoder: Hubert::new(config, &sources.frozen.pp("mert"))?,
            mix: [conv.tensor("weight", [1, states, 1, 1], uniform)?, conv.tensor("bias", [1], uniform)?],
        })
    }

    /// `samples [b, n]` to mixed states `[b, t, d]`.
    fn encode(&self, samples: &Tensor, record: &dyn Fn(&str, &Tensor)) -> Result<Tensor> {
        // MERT was trained at 24 kHz; U-SAM gives it 16 kHz.
        let states = Probe::new();
        self.encoder.forward(samples, None, Some(&states))?;
        let states = states.tensors();
        let count = self.encoder.config().num_hidden_layers + 1;
        let state = |i: usize| match states.get(&format!("hidden_state_{i}")) {
            Some(state) => state.to_dtype(DType::F32),
            None => bail!("MERT left no hidden state {i}"),
        };
        let states = Tensor::stack(&(0..count).map(state).collect::<Result<Vec<_>>>()?, 1)?; // (b, states, t, h)
        record("mert_hidden", &states);
        let [weight, bias] = [self.mix[0].to_dtype(DType::F32)?, self.mix[1].to_dtype(DType::F32)?];
        states.broadcast_mul(&weight)?.sum(1)?.broadcast_add(&bias) // (b, t, h)
    }
}

impl Streams {
    pub(super) fn new(
        config: &UsamConfig,
        sources: Sources<'_>,
        layout: Layout,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Self> {
        let sounds = config.ced.as_ref().map(|ced| Sounds::new(ced, &config.lora, sources, layout));
        let speech = config.whisper.as_ref().map(|whisper| Speech::new(whisper, sources));
        let music = config.mert.as_ref().map(|mert| Music::new(mert, sources, checkpoint));
        Ok(Self {
            alignment: config.alignment,
            sounds: sounds.transpose()?,
            speech: speech.transpose()?,
            music: music.transpose()?,
        })
    }

    /// Samples of the shortest clip that so many tokens are made of.
    pub(super) fn shortest(&self, tokens: usize) -> usize {
        let frames = self.speech.is_some() || self.music.is_some();
        let sounds = self.sounds.as_ref().map_or(0, |sounds| match self.alignment {
            Alignment::Released => sounds.samples(tokens.div_ceil(sounds.encoder.config().grid().0.max(1))),
            Alignment::Time => sounds.samples(if frames { 1 } else { tokens }),
        });
        let music = self.music.as_ref().map_or(0, |music| music.encoder.config().shortest());
        let steps = match self.alignment {
            Alignment::Time if frames => tokens.saturating_mul(HOP).saturating_add(music),
            _ => 0,
        };
        sounds.max(music).max(steps).max(257)
    }

    /// `samples [b, n]` to tokens `[b, t, CED | Whisper | MERT]`.
    ///
    /// As released, as many as CED makes: the tokens of the other two are spread over CED's as if these stood in the order of time, which
    /// they do not: within a chunk they stand by frequency first; and Whisper's window of 30 s is squeezed onto the clip, however short.
    /// By time, CED's tokens of one time stand side by side, and there are as many as the encoder with the most steps makes.
    pub(super) fn encode(&self, samples: &Tensor, probe: Option<&Probe>) -> Result<Tokens> {
        let n = match *samples.dims() {
            [b, n] if b > 0 => n,
            _ => bail!("sound of shape {:?}, expected [clips, samples] with at least one clip", samples.dims()),
        };
        let record = |name: &str, x: &Tensor| {
            if let Some(probe) = probe {
                probe.tensor(name, x);
            }
        };
        let (device, clips) = (samples.device(), samples.to_dtype(DType::F32)?.to_vec2::<f32>()?);
        let stack = |features: Vec<Features>| {
            Tensor::stack(&features.iter().map(|f| f.tensor(device)).collect::<Result<Vec<_>>>()?, 0)
        };
        let rows: Vec<&[f32]> = clips.iter().map(Vec::as_slice).collect();
        let by_time = self.alignment == Alignment::Time;
        let mut all = Vec::with_capacity(3);
        if let Some(sounds) = &self.sounds {
            let (tokens, [chunks, bands]) = sounds.encode(&rows, &stack)?;
            record("ced_tokens", &tokens);
            all.push(if by_time { beside(&tokens, chunks, bands)? } else { tokens });
        }
        if let Some(speech) = &self.speech {
            let hidden = speech.encode(&rows, &stack)?;
            record("whisper_hidden", &hidden);
            all.push(if by_time { hidden.narrow(1, 0, n.div_ceil(HOP).min(speech.positions))? } else { hidden });
        }
        if let Some(music) = &self.music {
            let mixed = music.encode(samples, &record)?;
            record("mert_mixed", &mixed);
            all.push(mixed);
        }
        let Some(first) = all.first() else { bail!("the model has no encoder") };
        let mut steps = first.dim(1)?;
        if by_time {
            steps = all.iter().map(|x| x.dim(1)).try_fold(steps, |most, t| t.map(|t| most.max(t)))?;
        }
        let dtype = first.dtype();
        let spread = |x: &Tensor| linear_in_time(x, steps)?.to_dtype(dtype);
        let embeds = all.iter().map(spread).collect::<Result<Vec<_>>>()?;
        Ok(Tokens::new(Tensor::cat(&embeds, 2)?, Modality::Audio))
    }
}

/// Tokens of patches, which stand by chunk, then by row of bands, then by time, with those of one time side by side.
///
/// # Shapes
/// `x [b, chunks * rows * columns, d]` to `[b, chunks * columns, rows * d]`
fn beside(x: &Tensor, chunks: usize, rows: usize) -> Result<Tensor> {
    let (b, _, d) = x.dims3()?;
    let x = x.reshape((b, chunks, rows, (), d))?.transpose(2, 3)?; // (b, chunks, columns, rows, d)
    let columns = x.dim(2)?;
    x.contiguous()?.reshape((b, chunks * columns, rows * d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn patches_of_one_time_stand_side_by_side() -> Result<()> {
        // Two chunks of two rows and three columns; a token's value says where it stood.
        let at = |chunk: usize, row: usize, column: usize| (100 * chunk + 10 * row + column) as f32;
        let mut values = Vec::new();
        for chunk in 0..2 {
            for row in 0..2 {
                values.extend((0..3).map(|column| at(chunk, row, column)));
            }
        }
        let x = Tensor::from_vec(values, (1, 12, 1), &Device::Cpu)?;
        let y = beside(&x, 2, 2)?.squeeze(0)?.to_vec2::<f32>()?;
        let expected: Vec<Vec<f32>> = (0..6).map(|i| (0..2).map(|row| at(i / 3, row, i % 3)).collect()).collect();
        assert_eq!(y, expected);
        Ok(())
    }
}
