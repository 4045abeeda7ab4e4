//! Speech recognition by ear, by eye or by both with a language model: Llama-AVSR (Cappellazzo et al., arXiv 2409.12319),
//! Llama-SMoP (arXiv 2505.14336) and Llama-MTSK (arXiv 2503.06362) are one model with different projectors and adapters.
//!
//! ```text
//! sound [b, n]            ─ Whisper, WavLM, AV-HuBERT ─ every K tokens become one ─┐
//!                                                                                 ├─ projector ─▶ bos <audio> A </audio> <video> V </video> prompt text eos
//! lips [b, t, 1, 88, 88]  ─ AV-HuBERT ───────────────── every K tokens become one ─┘             ─▶ language model with adapters of q and v ─▶ text
//! ```
//!
//! | | projector | adapters | losses |
//! | --- | --- | --- | --- |
//! | Llama-AVSR | a two-layer network for each modality | one | cross entropy, on request a sink loss |
//! | Llama-SMoP | experts behind a router ([`moesaic_projectors::Smop`]) | one | and the router's balance and z-losses |
//! | Llama-MTSK | a network for each compression rate | one, one for each scale, or both ([`Scales`]) | the mean over all scales |
//!
//! A scale is a pair of rates; scales are counted with the rates of lips outside and those of sound inside, as the authors
//! train them. One is chosen where the model is used ([`Rates`]).
//!
//! Tensors have the names of the authors' checkpoints (`model_avg_N.pth`): `audio_encoder`, `video_encoder` or
//! `audiovisual_encoder`, `audio_proj`, `video_proj` or `audiovisual_proj`, `llm`. AV-HuBERT's published weights are for
//! non-commercial research.

mod assemble;
mod config;
mod encoders;
mod loss;
mod scales;
mod sequence;

use std::path::Path;

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use moesaic_encoders::speech::{WavLm, WaveConfig};
use moesaic_encoders::video::{CROP, LipFrames, LipVariant};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Modality, Params, Probe, Routes, Tokens};
use moesaic_projectors::{Matryoshka, Projector, ProjectorInput, Smop};

use crate::decoder::{Context, Input, Output};
use crate::folder::no_others;
use crate::generate::{Beam, BeamOptions, Generated, Options, Prompts, beam_search, generate};

pub(crate) use config::llm as language_model;
pub(crate) use encoders::{belongs as encoder_tensor, stacked as sound_features};

pub use assemble::{ADDED_TOKENS, Parts, assemble};
pub use config::{AudioConfig, AvsrConfig, LaneConfig, ProjectorConfig, Task};
pub use encoders::{AvEncoder, Encoders, SAMPLES_PER_FRAME, SpeechEncoder, fit_to_video};
pub use loss::{AvsrLosses, Extra};
pub use scales::{AtScale, LoraConfig, ScaledDecoder, Scales};
pub use sequence::{IGNORED, Sequence, Vocabulary};

/// Sound and lips of a batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Media<'a> {
    /// As [`Avsr::sound`] makes it.
    pub audio: Option<&'a Tensor>,
    /// Mouth regions, `[b, t, 1, 88, 88]`, gray and normalised.
    pub video: Option<&'a Tensor>,
}

/// The compression rates that a Matryoshka model is used at; the first of each where none is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Tokens of sound that become one.
    pub audio: Option<usize>,
    /// Tokens of lips that become one.
    pub video: Option<usize>,
}

/// Where the tensors of the parts come from; each stands where the names of the checkpoint start.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// Of the encoder of sound.
    pub audio: &'a Params,
    /// Of AV-HuBERT.
    pub video: &'a Params,
    /// Of the language model.
    pub llm: &'a Params,
    /// Of projectors and adapters: what is trained.
    pub trained: &'a Params,
}

impl<'a> Sources<'a> {
    /// All from one place.
    pub fn one(params: &'a Params) -> Self {
        Self { audio: params, video: params, llm: params, trained: params }
    }
}

/// Projectors of all modalities.
#[derive(Debug)]
enum Connector {
    /// By modality, in the order of the tokens.
    Dense(Vec<Matryoshka>),
    Sparse(Smop),
}

/// A speech model.
#[derive(Debug)]
pub struct Avsr {
    config: AvsrConfig,
    vocabulary: Vocabulary,
    encoders: Encoders,
    connector: Connector,
    llm: ScaledDecoder,
}

impl Avsr {
    /// Loads a folder: `config.json` ([`AvsrConfig`]) and weights under the names of the authors' checkpoints, as safetensors or
    /// as `checkpoint.pt`. The tokenizer is the caller's ([`Vocabulary::new`]).
    ///
    /// # Errors
    /// Config or weights cannot be read or do not fit: the message says which.
    pub fn load(dir: &Path, vocabulary: Vocabulary, dtype: DType, device: &Device) -> Result<Self> {
        Self::from_checkpoint(AvsrConfig::load(dir)?, &Checkpoint::open_any(dir)?, vocabulary, dtype, device)
    }

    /// The model of a checkpoint, for inference: also of a `.pth` that the authors' scripts averaged, or of one of Lightning, where
    /// `model.` stands before all names ([`Checkpoint::open_any`]).
    ///
    /// # Errors
    /// A tensor is missing or has another shape than the config says, or the checkpoint has tensors that the model does not
    /// know.
    pub fn from_checkpoint(
        config: AvsrConfig,
        checkpoint: &Checkpoint,
        vocabulary: Vocabulary,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let params = Params::load(checkpoint, dtype, device);
        let before = lightning(checkpoint);
        let root = if before.is_empty() { params.clone() } else { params.pp("model") };
        let model = Self::new(config, vocabulary, Sources::one(&root), Some(checkpoint))?;
        let known = |name: &str| name.strip_prefix(before).is_some_and(|name| model.ignorable(name));
        no_others(&params, checkpoint, "speech model", known)?;
        Ok(model)
    }

    /// The model with tensors from `sources`. `checkpoint` is that of the encoder of sound, where there is one: it tells how
    /// WavLM's positional convolution is stored.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn new(
        config: AvsrConfig,
        vocabulary: Vocabulary,
        sources: Sources<'_>,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Self> {
        let encoders = Self::encoders(&config, sources, checkpoint)?;
        Self::with_encoders(config, vocabulary, encoders, sources)
    }

    /// The model with encoders that the caller brings.
    ///
    /// # Errors
    /// As [`new`](Self::new), or an encoder is missing.
    pub fn with_encoders(
        config: AvsrConfig,
        vocabulary: Vocabulary,
        encoders: Encoders,
        sources: Sources<'_>,
    ) -> Result<Self> {
        let outputs = config.llm.hidden_size;
        let lanes = &config.projector.lanes;
        let connector = if config.projector.mixture.is_some() {
            let config = config.projector.smop_of(outputs, |m| encoders.width(m))?;
            Connector::Sparse(Smop::load(config, sources.trained)?)
        } else {
            let ProjectorConfig { inner, norm, .. } = config.projector;
            let lane = |lane: &LaneConfig| {
                let Some(width) = encoders.width(lane.modality) else {
                    bail!("there is no encoder for {:?} tokens", lane.modality)
                };
                let name = match (config.task, lane.modality) {
                    (Task::AvHubert { fused: true }, _) => "audiovisual_proj",
                    (_, Modality::Audio) => "audio_proj",
                    _ => "video_proj",
                };
                let p = sources.trained.pp(name);
                let take = |&rate: &usize| (rate, config.projector.intake(lane.modality, width, rate));
                let rates: Vec<_> = lane.rates.iter().map(take).collect();
                match (lane.listed, rates.as_slice()) {
                    (false, &[(rate, intake)]) => Matryoshka::single(&p, rate, intake, inner, outputs, norm),
                    _ => Matryoshka::load(&p, &rates, inner, outputs, norm),
                }
            };
            Connector::Dense(lanes.iter().map(lane).collect::<Result<_>>()?)
        };
        let (base, adapters) = (sources.llm.pp("llm"), sources.trained.pp("llm"));
        let llm = ScaledDecoder::new(config.llm.clone(), config.lora, &base, &adapters)?;
        if llm.scales() > 1 && llm.scales() != config.projector.scales() {
            bail!("n_lora is {}, but there are {} scales of compression", llm.scales(), config.projector.scales());
        }
        Ok(Self { config, vocabulary, encoders, connector, llm })
    }

    fn encoders(config: &AvsrConfig, sources: Sources<'_>, checkpoint: Option<&Checkpoint>) -> Result<Encoders> {
        let av = |name: &str, lora: bool| encoders::av_hubert(config, sources, name, lora);
        let p = sources.audio.pp("audio_encoder");
        let audio: Option<Box<dyn SpeechEncoder>> = match &config.audio {
            None => None,
            Some(AudioConfig::Whisper(keys)) => Some(Box::new(encoders::Whisper::new(keys.clone(), &p)?)),
            Some(AudioConfig::WavLm(keys)) => {
                let keys: WaveConfig =
                    serde_json::from_value(keys.clone()).map_err(|e| Error::Msg(format!("config.json, wavlm: {e}")))?;
                let named = |c: &Checkpoint| keys.clone().named_as(c, &format!("{}audio_encoder.", lightning(c)));
                let keys = checkpoint.map_or_else(|| keys.clone(), named);
                Some(Box::new(encoders::Waves(WavLm::new(keys, &p)?)))
            }
            Some(AudioConfig::AvHubert) => Some(Box::new(encoders::Listening(av("audio_encoder", false)?))),
        };
        Ok(match config.task {
            Task::AvHubert { fused } => {
                Encoders::Joint { encoder: av("audiovisual_encoder", config.av_hubert_lora)?, fused }
            }
            Task::Audio => Encoders::Apart { audio, video: None },
            Task::Video | Task::AudioVisual => {
                Encoders::Apart { audio, video: Some(av("video_encoder", config.av_hubert_lora)?) }
            }
        })
    }

    /// Tensors that a checkpoint may hold although the model does without.
    fn ignorable(&self, name: &str) -> bool {
        match name.strip_prefix("llm.") {
            Some(inner) => self.config.llm.ignorable(inner),
            None => ["video_encoder.", "audiovisual_encoder.", "audio_encoder."]
                .iter()
                .find_map(|prefix| name.strip_prefix(prefix))
                .is_some_and(|inner| self.config.av_hubert.is_some() && encoders::ignorable(inner)),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &AvsrConfig {
        &self.config
    }

    /// The ids around media and text.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The language model.
    pub fn llm(&self) -> &ScaledDecoder {
        &self.llm
    }

    /// Sound for [`Media`]: clips at 16 kHz in -1 to 1, of any lengths. Beside lips, [`fit_to_video`] comes first.
    ///
    /// # Errors
    /// The model takes no sound, or there is none.
    pub fn sound(&self, clips: &[&[f32]]) -> Result<Tensor> {
        self.encoders.sound(clips, self.llm.decoder().device())
    }

    /// Lips for [`Media`]: RGB frames of one clip, one byte a value, of 88 to 8192 pixels a side.
    ///
    /// # Shapes
    /// `frames * height * width * 3` bytes to `[1, frames, 1, 88, 88]`
    ///
    /// # Errors
    /// Frames of another size, or another number of bytes.
    pub fn lips(&self, rgb: &[u8], size: (usize, usize, usize)) -> Result<Tensor> {
        let pixels = LipFrames::new(LipVariant::LlamaAvsr).pixels(rgb, size)?;
        Tensor::from_vec(pixels, (1, size.0, 1, CROP, CROP), self.llm.decoder().device())
    }

    /// The number of the scale with these rates.
    ///
    /// # Errors
    /// The model has no such rate: the message lists those that it has.
    pub fn scale(&self, rates: Rates) -> Result<usize> {
        let wanted = |m| if m == Modality::Audio { rates.audio } else { rates.video };
        // Sound runs fastest, and stands first among the lanes.
        let (mut scale, mut step) = (0, 1);
        for lane in &self.config.projector.lanes {
            let index = match wanted(lane.modality) {
                None => 0,
                Some(rate) => match lane.rates.iter().position(|r| *r == rate) {
                    Some(index) => index,
                    None => bail!(
                        "the model has no compression rate {rate} for {:?} tokens: choose one of {:?}",
                        lane.modality,
                        lane.rates
                    ),
                },
            };
            scale += step * index;
            step *= lane.rates.len();
        }
        Ok(scale)
    }

    /// Number of scales.
    pub fn scales(&self) -> usize {
        self.config.projector.scales()
    }

    /// The rates of a scale, by lane.
    fn indices(&self, scale: usize) -> Vec<usize> {
        let mut rest = scale;
        let index = |lane: &LaneConfig| {
            let index = rest % lane.rates.len();
            rest /= lane.rates.len();
            index
        };
        self.config.projector.lanes.iter().map(index).collect()
    }

    /// Which of the lanes takes these tokens.
    fn lane(&self, tokens: &Tokens) -> Result<usize> {
        let lanes = &self.config.projector.lanes;
        match lanes.iter().position(|lane| lane.modality == tokens.modality) {
            Some(index) => Ok(index),
            None => bail!("there is no projector for {:?} tokens", tokens.modality),
        }
    }

    /// Encodes sound and lips; a model of both may be given one of them. A probe gets `whisper_input`, `audio_encoder_states` and `video_encoder_states`.
    ///
    /// # Errors
    /// Something that the model needs is missing, or has another shape.
    pub fn encode(&self, media: Media<'_>, probe: Option<&Probe>) -> Result<Vec<Tokens>> {
        // What was heard and seen may be on the CPU still.
        let there = |x: Option<&Tensor>| x.map(|x| x.to_device(self.llm.decoder().device())).transpose();
        self.encoders.encode(there(media.audio)?.as_ref(), there(media.video)?.as_ref(), probe)
    }

    /// Encoded tokens in the width of the language model, at a scale, and the routes of a mixture of projectors.
    ///
    /// # Errors
    /// There is no such scale, or the clips are too short for one token.
    pub fn project(
        &self,
        encoded: &[Tokens],
        scale: usize,
        probe: Option<&Probe>,
    ) -> Result<(Vec<Tokens>, Vec<Routes>)> {
        match &self.connector {
            Connector::Sparse(smop) => {
                let projected = smop.project(&ProjectorInput::new(encoded), probe)?;
                Ok((projected.tokens, projected.routes))
            }
            Connector::Dense(lanes) => {
                let indices = self.indices(scale);
                let one = |tokens: &Tokens| match self.lane(tokens).map(|i| (lanes.get(i), indices.get(i)))? {
                    (Some(lane), Some(&index)) => lane.project(tokens, index),
                    _ => bail!("there is no projector for {:?} tokens", tokens.modality),
                };
                Ok((encoded.iter().map(one).collect::<Result<_>>()?, Vec::new()))
            }
        }
    }

    /// The sequence of projected tokens and texts, or, without texts, up to the prompt.
    ///
    /// # Errors
    /// Numbers of clips and texts differ, or an id is not in the vocabulary.
    pub fn sequence(&self, media: &[Tokens], texts: Option<&[Vec<u32>]>) -> Result<Sequence> {
        let tagged = self.config.task != Task::AvHubert { fused: true };
        sequence::lay_out(self.llm.decoder(), &self.vocabulary, media, tagged, texts)
    }

    /// One pass at a scale over a sequence with texts. A probe gets what [`Decoder::forward`](crate::decoder::Decoder::forward) records.
    ///
    /// # Errors
    /// As there.
    pub fn forward(&self, sequence: &Sequence, scale: usize, probe: Option<&Probe>) -> Result<Output> {
        self.llm.at(scale)?.forward(Input::Embeds(&sequence.embeds), &Context::default(), None, probe)
    }

    /// The embedded prompt of clips at the given rates, and the scale that goes on with it.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), or the model has no such rate.
    pub fn prompt(&self, media: Media<'_>, rates: Rates) -> Result<(Tensor, AtScale<'_>)> {
        self.prompt_of(&self.encode(media, None)?, rates)
    }

    /// The same of clips that are encoded already.
    ///
    /// # Errors
    /// The model has no such rate, or no projector for what was encoded.
    pub fn prompt_of(&self, encoded: &[Tokens], rates: Rates) -> Result<(Tensor, AtScale<'_>)> {
        let scale = self.scale(rates)?;
        let (tokens, _) = self.project(encoded, scale, None)?;
        Ok((self.sequence(&tokens, None)?.embeds, self.llm.at(scale)?))
    }

    /// Options of a search as the config says: its beams, its most new tokens.
    pub fn beam_options(&self) -> BeamOptions {
        BeamOptions {
            beams: self.config.beams,
            max_new_tokens: self.config.max_new_tokens,
            eos: vec![self.vocabulary.eos],
            ..BeamOptions::default()
        }
    }

    /// Options of greedy decoding with the config's most new tokens.
    pub fn options(&self) -> Options {
        Options { max_new_tokens: self.config.max_new_tokens, eos: vec![self.vocabulary.eos], ..Options::default() }
    }

    /// Transcribes clips token by token; `transcribe` with [`options`](Self::options) takes the likeliest.
    ///
    /// # Errors
    /// As [`prompt`](Self::prompt) and [`generate`].
    pub fn transcribe(&self, media: Media<'_>, rates: Rates, options: &Options) -> Result<Vec<Generated>> {
        self.transcribe_of(&self.encode(media, None)?, rates, options)
    }

    /// The same of clips that are encoded already.
    ///
    /// # Errors
    /// As [`prompt_of`](Self::prompt_of) and [`generate`].
    pub fn transcribe_of(&self, encoded: &[Tokens], rates: Rates, options: &Options) -> Result<Vec<Generated>> {
        let (embeds, model) = self.prompt_of(encoded, rates)?;
        let context = Context::default();
        generate(&model, Prompts::Embeds(&embeds, &context), options, &mut |_| std::ops::ControlFlow::Continue(()))
    }

    /// The log-probabilities of a transcript's tokens, each after those before it, of a single clip that is encoded already. The
    /// first token of the language model is not among them, the last one may be.
    ///
    /// # Errors
    /// As [`prompt_of`](Self::prompt_of).
    pub fn log_probs_of(&self, encoded: &[Tokens], rates: Rates, tokens: &[u32]) -> Result<Vec<f32>> {
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        let scale = self.scale(rates)?;
        let (media, _) = self.project(encoded, scale, None)?;
        // The layout puts the last token behind by itself.
        let texts = [self.vocabulary.bare(tokens.to_vec())];
        let sequence = self.sequence(&media, Some(&texts))?;
        let hidden = self.forward(&sequence, scale, None)?.hidden;
        let hidden = hidden.narrow(1, sequence.prefix, tokens.len())?.squeeze(0)?; // (tokens, h)
        let logits = self.llm.decoder().logits(&hidden)?.to_dtype(DType::F32)?;
        let logits = logits.broadcast_sub(&logits.max_keepdim(1)?)?;
        let scores = logits.broadcast_sub(&logits.exp()?.sum_keepdim(1)?.log()?)?; // (tokens, vocabulary)
        let chosen = Tensor::new(tokens, scores.device())?.unsqueeze(1)?;
        scores.gather(&chosen, 1)?.squeeze(1)?.to_vec1()
    }

    /// Transcribes clips by beam search, the best first.
    ///
    /// # Errors
    /// As [`prompt`](Self::prompt) and [`beam_search`].
    pub fn search(&self, media: Media<'_>, rates: Rates, options: &BeamOptions) -> Result<Vec<Vec<Beam>>> {
        self.search_of(&self.encode(media, None)?, rates, options)
    }

    /// The same of clips that are encoded already.
    ///
    /// # Errors
    /// As [`prompt_of`](Self::prompt_of) and [`beam_search`].
    pub fn search_of(&self, encoded: &[Tokens], rates: Rates, options: &BeamOptions) -> Result<Vec<Vec<Beam>>> {
        let (embeds, model) = self.prompt_of(encoded, rates)?;
        let context = Context::default();
        beam_search(&model, Prompts::Embeds(&embeds, &context), options, &mut |_| std::ops::ControlFlow::Continue(()))
    }
}

/// What Lightning puts before all names.
fn lightning(checkpoint: &Checkpoint) -> &'static str {
    if checkpoint.names().any(|name| name.starts_with("model.llm.")) { "model." } else { "" }
}
