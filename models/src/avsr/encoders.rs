//! What encodes sound and lips for a speech model.

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use moesaic_encoders::audio::{AvHubertFeatures, Features, WaveNorm, WhisperFeatures};
use moesaic_encoders::speech::{AvHubert, AvHubertConfig, WavLm, WhisperConfig, WhisperEncoder};
use moesaic_kernels::{Modality, Params, Probe, Tokens};
use serde_json::Value;

use super::{AvsrConfig, Sources};

/// Samples of sound for one frame of video: 16 kHz and 25 frames a second.
pub const SAMPLES_PER_FRAME: usize = 640;

/// Encodes sound.
pub trait SpeechEncoder: Send + Sync + std::fmt::Debug {
    /// Width of a token.
    fn width(&self) -> usize;

    /// What [`encode`](Self::encode) takes of clips at 16 kHz, in -1 to 1, filled up with zeros to the longest.
    ///
    /// # Shapes
    /// samples `[b, n]`, or features `[b, t, 104]`
    ///
    /// # Errors
    /// There is no clip, or one without samples or with values that are no numbers.
    fn input(&self, clips: &[&[f32]], device: &Device) -> Result<Tensor>;

    /// # Shapes
    /// what [`input`](Self::input) gives to tokens `[b, t, width]`
    ///
    /// # Errors
    /// The input has another shape.
    fn encode(&self, audio: &Tensor, probe: Option<&Probe>) -> Result<Tokens>;
}

/// Encodes lips, or lips and sound together.
pub trait AvEncoder: Send + Sync + std::fmt::Debug {
    /// Width of a token.
    fn width(&self) -> usize;

    /// At least one of the two.
    ///
    /// # Shapes
    /// `audio [b, t, 104]` ([`AvHubertFeatures`]) and `video [b, t, 1, 88, 88]` to tokens `[b, t, width]`, 25 a second
    ///
    /// # Errors
    /// An input has another shape, or both are missing.
    fn encode(&self, audio: Option<&Tensor>, video: Option<&Tensor>) -> Result<Tokens>;
}

/// Sound cut, or filled up with zeros, to the length of `frames` frames of video.
pub fn fit_to_video(samples: &[f32], frames: usize) -> Vec<f32> {
    let n = frames.saturating_mul(SAMPLES_PER_FRAME);
    let mut fitted = samples[..samples.len().min(n)].to_vec();
    fitted.resize(n, 0.0);
    fitted
}

fn rows(rows: &[Vec<f32>], width: usize, device: &Device) -> Result<Tensor> {
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    if rows.is_empty() || longest == 0 {
        bail!("there is no sound to encode");
    }
    let mut all = Vec::with_capacity(rows.len() * longest);
    for row in rows {
        all.extend_from_slice(row);
        all.resize(all.len() + longest - row.len(), 0.0);
    }
    let shape = if width == 1 { vec![rows.len(), longest] } else { vec![rows.len(), longest / width, width] };
    Tensor::from_vec(all, shape, device)
}

/// Each clip with mean 0 and variance 1, as Llama-AVSR does before Whisper and WavLM; padding comes after.
fn normed(clips: &[&[f32]], device: &Device) -> Result<Tensor> {
    let clips = clips.iter().map(|clip| WaveNorm::LlamaAvsr.apply(clip).map_err(Error::wrap));
    rows(&clips.collect::<Result<Vec<_>>>()?, 1, device)
}

/// AV-HuBERT's features, of samples in -1 to 1.
pub(crate) fn stacked(clips: &[&[f32]], device: &Device) -> Result<Tensor> {
    let extractor = AvHubertFeatures::new(false);
    let clips = clips.iter().map(|clip| Ok(extractor.extract(clip).map_err(Error::wrap)?.values));
    rows(&clips.collect::<Result<Vec<_>>>()?, 104, device)
}

/// The encoder of Whisper on a window of fixed length, of whose tokens only those of real sound go on.
#[derive(Debug)]
pub(super) struct Whisper {
    encoder: WhisperEncoder,
    features: Extractor,
}

struct Extractor(WhisperFeatures);

impl std::fmt::Debug for Extractor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WhisperFeatures of {} samples", self.0.window())
    }
}

impl Whisper {
    pub(super) fn new(config: Value, params: &Params) -> Result<Self> {
        let config: WhisperConfig =
            serde_json::from_value(config).map_err(|e| Error::Msg(format!("config.json, whisper: {e}")))?;
        let window = config.max_source_positions.saturating_mul(320);
        let features = WhisperFeatures::with_window(config.num_mel_bins, window).map_err(Error::wrap)?;
        Ok(Self { encoder: WhisperEncoder::new(config, params)?, features: Extractor(features) })
    }

    /// Tokens of the longest clip: 50 a second, at least half a second's.
    fn real(&self, samples: usize) -> usize {
        // In this order, as the authors round.
        let real = (samples as f64 / 16_000.0 * 50.0) as usize;
        real.max(25).min(self.encoder.config().max_source_positions)
    }
}

impl SpeechEncoder for Whisper {
    fn width(&self) -> usize {
        self.encoder.config().d_model
    }

    fn input(&self, clips: &[&[f32]], device: &Device) -> Result<Tensor> {
        normed(clips, device)
    }

    fn encode(&self, audio: &Tensor, probe: Option<&Probe>) -> Result<Tokens> {
        let (b, n) = audio.dims2()?;
        let clips = audio.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let extract = |clip: &Vec<f32>| self.features.0.extract(clip).map_err(Error::wrap);
        let features = clips.iter().map(extract).collect::<Result<Vec<Features>>>()?;
        let features = features.iter().map(|f| f.tensor(audio.device())).collect::<Result<Vec<_>>>()?;
        if b == 0 {
            bail!("there is no sound to encode");
        }
        let features = Tensor::stack(&features, 0)?; // (b, mels, frames)
        let tokens = self.encoder.forward(&features, None)?;
        if let Some(probe) = probe {
            probe.tensor("whisper_input", &features);
            probe.tensor("audio_encoder_states", &tokens.embeds);
        }
        Ok(Tokens { embeds: tokens.embeds.narrow(1, 0, self.real(n))?.contiguous()?, ..tokens })
    }
}

/// WavLM, without a mask for padding, as the authors run it.
#[derive(Debug)]
pub(super) struct Waves(pub(super) WavLm);

impl SpeechEncoder for Waves {
    fn width(&self) -> usize {
        self.0.config().hidden_size
    }

    fn input(&self, clips: &[&[f32]], device: &Device) -> Result<Tensor> {
        normed(clips, device)
    }

    fn encode(&self, audio: &Tensor, probe: Option<&Probe>) -> Result<Tokens> {
        let tokens = self.0.forward(audio, None, None)?;
        if let Some(probe) = probe {
            probe.tensor("audio_encoder_states", &tokens.embeds);
        }
        Ok(tokens)
    }
}

impl AvEncoder for AvHubert {
    fn width(&self) -> usize {
        self.config().encoder_embed_dim
    }

    fn encode(&self, audio: Option<&Tensor>, video: Option<&Tensor>) -> Result<Tokens> {
        let video = video.map(|v| v.transpose(1, 2)?.contiguous()).transpose()?; // (b, 1, t, 88, 88)
        let audio = audio.map(|a| a.transpose(1, 2)?.contiguous()).transpose()?; // (b, 104, t)
        let audio = match (audio, &video) {
            (Some(audio), Some(video)) => Some(Self::fit(&audio, video.dim(2)?)?),
            (audio, _) => audio,
        };
        self.forward(video.as_ref(), audio.as_ref(), None, None)
    }
}

/// The AV-HuBERT of a model under `name`, with its adapters if there are any.
pub(super) fn av_hubert(
    config: &AvsrConfig,
    sources: Sources<'_>,
    name: &str,
    lora: bool,
) -> Result<Box<dyn AvEncoder>> {
    let Some(keys) = &config.av_hubert else { bail!("config.json has no key av_hubert") };
    let keys = AvHubertConfig::from_json(keys).map_err(|e| Error::Msg(format!("config.json, av_hubert: {e}")))?;
    let source = if name == "audio_encoder" { sources.audio } else { sources.video };
    let d = keys.encoder_embed_dim;
    let mut encoder = AvHubert::new(keys, &source.pp(name))?;
    if lora {
        let rank = (d as f64 / LORA_REDUCTION).round_ties_even() as usize;
        encoder.attach_lora(&sources.trained.pp(name), rank, LORA_SCALE)?;
    }
    Ok(Box::new(encoder))
}

/// Width of AV-HuBERT over the rank of its adapters, and what they are scaled by: the same in all the authors' code.
const LORA_REDUCTION: f64 = 16.0;
const LORA_SCALE: f64 = 2.0;

/// Tensors of AV-HuBERT that only its pre-training needs.
pub(super) fn ignorable(name: &str) -> bool {
    ["mask_emb", "label_embs_concat"].contains(&name)
        || name.starts_with("final_proj.")
        || name.ends_with(".num_batches_tracked")
}

/// Whether a tensor of an AV-HuBERT checkpoint belongs to its encoder.
pub(crate) fn belongs(name: &str) -> bool {
    let parts =
        ["feature_extractor_video.", "feature_extractor_audio.", "layer_norm.", "post_extract_proj.", "encoder."];
    parts.iter().any(|part| name.starts_with(part)) && !ignorable(name)
}

/// AV-HuBERT on sound alone.
#[derive(Debug)]
pub(super) struct Listening(pub(super) Box<dyn AvEncoder>);

impl SpeechEncoder for Listening {
    fn width(&self) -> usize {
        self.0.width()
    }

    fn input(&self, clips: &[&[f32]], device: &Device) -> Result<Tensor> {
        stacked(clips, device)
    }

    fn encode(&self, audio: &Tensor, probe: Option<&Probe>) -> Result<Tokens> {
        let tokens = self.0.encode(Some(audio), None)?;
        if let Some(probe) = probe {
            probe.tensor("audio_encoder_states", &tokens.embeds);
        }
        Ok(tokens)
    }
}

/// What a model encodes with.
#[derive(Debug)]
pub enum Encoders {
    /// An encoder for each of the two, or one of them alone.
    Apart {
        /// Of sound.
        audio: Option<Box<dyn SpeechEncoder>>,
        /// Of lips.
        video: Option<Box<dyn AvEncoder>>,
    },
    /// One for both; `fused` in one pass.
    Joint {
        /// The encoder.
        encoder: Box<dyn AvEncoder>,
        /// One pass sees both.
        fused: bool,
    },
}

impl Encoders {
    /// Sound for the encoder, from clips at 16 kHz.
    ///
    /// # Errors
    /// The model takes no sound, or there is none.
    pub fn sound(&self, clips: &[&[f32]], device: &Device) -> Result<Tensor> {
        match self {
            Self::Apart { audio: Some(audio), .. } => audio.input(clips, device),
            Self::Apart { audio: None, .. } => bail!("this model reads lips only: give it no sound"),
            Self::Joint { .. } => stacked(clips, device),
        }
    }

    /// Width of the tokens of a modality; `None` where there are none.
    pub fn width(&self, modality: Modality) -> Option<usize> {
        use Modality::{Audio, Video};
        match (self, modality) {
            (Self::Apart { audio: Some(audio), .. }, Audio) => Some(audio.width()),
            (Self::Apart { video: Some(video), .. }, Video) => Some(video.width()),
            (Self::Joint { fused: true, .. }, Audio) => None,
            (Self::Joint { encoder, .. }, Audio | Video) => Some(encoder.width()),
            _ => None,
        }
    }

    /// Encodes what there is, sound before lips. A model of both may be given one of them, as it is where it was trained with
    /// modality dropout. A probe gets `audio_encoder_states` and `video_encoder_states`.
    ///
    /// # Errors
    /// There is nothing, or something that the model does not take.
    pub fn encode(&self, audio: Option<&Tensor>, video: Option<&Tensor>, probe: Option<&Probe>) -> Result<Vec<Tokens>> {
        let (hears, sees) = match self {
            Self::Apart { audio, video } => (audio.is_some(), video.is_some()),
            Self::Joint { .. } => (true, true),
        };
        for (what, takes, there) in [("sound", hears, audio.is_some()), ("video", sees, video.is_some())] {
            if there && !takes {
                bail!("this model takes no {what}");
            }
        }
        if audio.is_none() && video.is_none() {
            bail!(
                "this model needs {}",
                [hears.then_some("sound"), sees.then_some("video")]
                    .into_iter()
                    .flatten()
                    .collect::<Vec<_>>()
                    .join(" or ")
            );
        }
        let record = |tokens: Tokens| {
            if let Some(probe) = probe {
                let name = if tokens.modality == Modality::Audio { "audio" } else { "video" };
                probe.tensor(format!("{name}_encoder_states"), &tokens.embeds);
            }
            tokens
        };
        let mut all = Vec::new();
        match self {
            Self::Apart { audio: hear, video: see } => {
                if let (Some(encoder), Some(audio)) = (hear, audio) {
                    all.push(encoder.encode(audio, probe)?);
                }
                if let (Some(encoder), Some(video)) = (see, video) {
                    all.push(record(encoder.encode(None, Some(video))?));
                }
            }
            Self::Joint { encoder, fused: true } => {
                // One projector takes what the pass gives, whatever it saw.
                let tokens = encoder.encode(audio, video)?;
                all.push(record(Tokens { modality: Modality::Video, ..tokens }));
            }
            Self::Joint { encoder, fused: false } => {
                if audio.is_some() {
                    all.push(record(encoder.encode(audio, None)?));
                }
                if video.is_some() {
                    all.push(record(encoder.encode(None, video)?));
                }
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sound_fits_the_video() {
        assert_eq!(fit_to_video(&[1.0; 700], 1).len(), 640);
        let filled = fit_to_video(&[1.0; 600], 2);
        assert_eq!((filled.len(), filled[599], filled[600]), (1280, 1.0, 0.0));
    }

    #[test]
    fn clips_are_normed_before_they_are_padded() -> Result<()> {
        let sound = normed(&[&[1.0, 3.0], &[2.0, 2.0, 5.0, 3.0]], &Device::Cpu)?.to_vec2::<f32>()?;
        assert!((sound[0][0] + 1.0).abs() < 1e-4 && (sound[0][1] - 1.0).abs() < 1e-4, "{sound:?}");
        assert_eq!(&sound[0][2..], [0.0, 0.0]);
        assert!(normed(&[], &Device::Cpu).is_err() && normed(&[&[]], &Device::Cpu).is_err());
        assert_eq!(stacked(&[&[0.1; 3200], &[0.2; 1600]], &Device::Cpu)?.dims(), [2, 5, 104]);
        Ok(())
    }
}
