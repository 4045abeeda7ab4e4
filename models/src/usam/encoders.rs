//! The three encoders, and how their tokens are brought into step.

use candle_core::{DType, Error, Result, Tensor, bail};
use moesaic_encoders::audio::{CedFeatures, Features, WhisperFeatures};
use moesaic_encoders::linear_in_time;
use moesaic_encoders::speech::{Ced, Hubert, WhisperEncoder};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Init, Modality, Probe, Tokens};

use super::config::UsamConfig;
use super::{Layout, Sources};

/// CED for sounds, Whisper for speech and MERT for music, side by side.
pub(super) struct Streams {
    ced: Ced,
    ced_features: CedFeatures,
    whisper: WhisperEncoder,
    whisper_features: WhisperFeatures,
    mert: Hubert,
    /// Of MERT's hidden states: `[1, states, 1, 1]` and `[1]`, a convolution of one place.
    mix: [Tensor; 2],
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams")
            .field("ced", &self.ced)
            .field("whisper", &self.whisper)
            .field("mert", &self.mert)
            .finish()
    }
}

impl Streams {
    pub(super) fn new(
        config: &UsamConfig,
        sources: Sources<'_>,
        layout: Layout,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Self> {
        let mut keys = config.ced.clone();
        keys.split = layout.split;
        let ced_features = CedFeatures::with_bands(keys.n_mels).map_err(Error::wrap)?;
        let mut ced = Ced::new(keys, &layout.under(sources.frozen, "encoder", layout.encoder))?;
        if layout.encoder {
            let adapters = sources.trained.pp("encoder.base_model.model");
            ced.attach_lora(&adapters, config.lora.rank, config.lora.scale(), config.lora.dropout)?;
        }
        let window = config.whisper.max_source_positions.saturating_mul(320);
        let whisper_features =
            WhisperFeatures::with_window(config.whisper.num_mel_bins, window).map_err(Error::wrap)?;
        let mert = checkpoint.map_or_else(|| config.mert.clone(), |c| config.mert.clone().named_as(c, "mert."));
        let states = mert.num_hidden_layers + 1;
        let uniform = Init::Uniform(1.0 / (states as f64).sqrt()); // as torch makes convolutions
        let conv = sources.trained.pp("conv");
        Ok(Self {
            ced,
            ced_features,
            whisper: WhisperEncoder::new(config.whisper.clone(), &sources.frozen.pp("whisper.model.encoder"))?,
            whisper_features,
            mert: Hubert::new(mert, &sources.frozen.pp("mert"))?,
            mix: [conv.tensor("weight", [1, states, 1, 1], uniform)?, conv.tensor("bias", [1], uniform)?],
        })
    }

    /// Samples of the shortest clip that CED makes so many tokens of.
    pub(super) fn shortest(&self, tokens: usize) -> usize {
        let (rows, patch) = (self.ced.config().grid().0.max(1), self.ced.config().patch_size);
        // A clip of n samples has 1 + n / 160 frames.
        let frames = tokens.div_ceil(rows).saturating_mul(patch);
        frames.saturating_sub(1).saturating_mul(160).max(self.mert.config().shortest()).max(257)
    }

    /// `samples [b, n]` to tokens `[b, t, CED | Whisper | MERT]`, as many as CED makes. As in the released code, the tokens of the
    /// other two are spread over CED's as if these stood in the order of time, which they do not: within a chunk they stand by
    /// frequency first; and Whisper's window of 30 s is squeezed onto the clip, however short.
    pub(super) fn encode(&self, samples: &Tensor, probe: Option<&Probe>) -> Result<Tokens> {
        if !matches!(samples.dims(), [b, _] if *b > 0) {
            bail!("sound of shape {:?}, expected [clips, samples] with at least one clip", samples.dims());
        }
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
        let mels = stack(self.ced_features.batch(&rows).map_err(Error::wrap)?)?;
        let sounds = self.ced.forward(&mels, None)?.embeds;
        record("ced_tokens", &sounds);

        let mels = rows.iter().map(|clip| self.whisper_features.extract(clip).map_err(Error::wrap));
        let speech = self.whisper.forward(&stack(mels.collect::<Result<_>>()?)?, None)?.embeds;
        record("whisper_hidden", &speech);

        // MERT was trained at 24 kHz; U-SAM gives it 16 kHz.
        let states = Probe::new();
        self.mert.forward(samples, None, Some(&states))?;
        let states = states.tensors();
        let count = self.mert.config().num_hidden_layers + 1;
        let state = |i: usize| match states.get(&format!("hidden_state_{i}")) {
            Some(state) => state.to_dtype(DType::F32),
            None => bail!("MERT left no hidden state {i}"),
        };
        let states = Tensor::stack(&(0..count).map(state).collect::<Result<Vec<_>>>()?, 1)?; // (b, states, t, h)
        record("mert_hidden", &states);
        let [weight, bias] = [self.mix[0].to_dtype(DType::F32)?, self.mix[1].to_dtype(DType::F32)?];
        let music = states.broadcast_mul(&weight)?.sum(1)?.broadcast_add(&bias)?; // (b, t, h)
        record("mert_mixed", &music);

        let t = sounds.dim(1)?;
        let dtype = sounds.dtype();
        let embeds =
            [sounds, linear_in_time(&speech, t)?.to_dtype(dtype)?, linear_in_time(&music, t)?.to_dtype(dtype)?];
        Ok(Tokens::new(Tensor::cat(&embeds, 2)?, Modality::Audio))
    }
}
