//! U-SAM, one language model for speech, sounds and music (arXiv 2505.13880).
//!
//! ```text
//!               ┌─ CED     ─ 4 bands x 25 tokens a second ─┐
//! sound [b, n] ─┼─ Whisper ─ interpolated ─────────────────┼─ side by side ─ windows of 17 ─ Q-Former ─┐
//!               └─ MERT    ─ states mixed, interpolated ───┘                                           │
//!                                                                         prompt ─ router ─ mixture of projectors
//!                                                                                                      │
//!                                        bos, prompt's left | sound's tokens | prompt's right | text eos ─▶ Llama with adapters
//! ```
//!
//! Training adds the contrastive loss of [`Saclm`] between the sound's tokens and the text's embeddings.
//!
//! By default the projectors are mixed as the paper's equation says. The authors' released code sums over the wrong axis and shares
//! one expert; `compat: "released"` in `config.json` computes that ([`MixtureSum`]). What the weights
//! were trained with elsewhere stays as it is released: the order in which tokens are brought into step, MERT at 16 kHz, the last
//! of several whole chunks of CED lost.
//!
//! Tensors have the names of the authors' training checkpoints: `encoder` (CED) and `decoder` (Llama) as PEFT wraps them, or plain
//! and then without adapters, `whisper`, `mert`, `conv`, `speech_former`, `speech_query_tokens`, `enc_to_dec_proj`, `fc`, `router`,
//! `lps_module`, `spc_module`.

mod answers;
mod config;
mod encoders;
mod prompt;
mod saclm;
mod sequence;

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, bail};
use moesaic_encoders::speech::Ced;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Params, Probe, Tokens};
use moesaic_projectors::{Projected, Projector, TaskMixture, WindowQFormer};

use crate::decoder::{Context, Decoder, Input, Output, Segment};
use crate::folder::no_others;
use crate::generate::{Beam, BeamOptions, Generated, Options, Prompts, beam_search, generate};
use crate::lora::{AdapterConfig, Targets, attach};

pub use moesaic_projectors::MixtureSum;

pub use answers::{AnswerLosses, Beside};
pub use config::{Alignment, LoraNumbers, UsamConfig, load_projector, load_qformer, load_saclm};
pub use prompt::{Prompt, SOUND, Task, Vocabulary};
pub use saclm::{Saclm, SaclmConfig, SaclmLosses};
pub use sequence::{IGNORED, Sequence};

use encoders::Streams;

/// Where the tensors of the parts come from; each stands where the names of the checkpoint start.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// Of the three encoders and of the language model: what stays as it is.
    pub frozen: &'a Params,
    /// Of everything between them, and of adapters: what is trained.
    pub trained: &'a Params,
}

impl<'a> Sources<'a> {
    /// All from one place.
    pub fn one(params: &'a Params) -> Self {
        Self { frozen: params, trained: params }
    }
}

/// How a checkpoint names CED and the language model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// PEFT has wrapped CED: there are adapters.
    pub encoder: bool,
    /// PEFT has wrapped the language model: there are adapters.
    pub decoder: bool,
    /// CED's queries, keys and values are apart.
    pub split: bool,
}

impl Default for Layout {
    /// That of the authors' training checkpoints.
    fn default() -> Self {
        Self { encoder: true, decoder: true, split: true }
    }
}

impl Layout {
    /// That of a model that starts from nothing: without adapters.
    pub const PLAIN: Self = Self { encoder: false, decoder: false, split: false };
}

/// What PEFT puts before all names of a model.
const WRAPPED: &str = "base_model.model";

impl Layout {
    /// That of a checkpoint.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let has = |name: &str| checkpoint.info(name).is_some();
        let encoder = has(&format!("encoder.{WRAPPED}.patch_embed.proj.weight"));
        let prefix = if encoder { format!("encoder.{WRAPPED}") } else { "encoder".to_string() };
        Self {
            encoder,
            decoder: has(&format!("decoder.{WRAPPED}.model.embed_tokens.weight")),
            split: has(&format!("{prefix}.blocks.0.attn.k_proj.weight")),
        }
    }

    /// The tensors of a part, by the names that it has by itself.
    fn under(self, params: &Params, part: &str, wrapped: bool) -> Params {
        match wrapped {
            true => params.pp(part).pp(WRAPPED).renamed(peft),
            false => params.pp(part),
        }
    }
}

/// A tensor's name in a model that PEFT has wrapped: adapted maps stand one level deeper, and adapters are called `default`.
fn peft(name: &str) -> String {
    let Some((module, what)) = name.rsplit_once('.') else { return name.to_string() };
    if module.ends_with(".q_proj") || module.ends_with(".v_proj") {
        format!("{module}.base_layer.{what}")
    } else if module.ends_with(".lora_A") || module.ends_with(".lora_B") {
        format!("{module}.default.{what}")
    } else {
        name.to_string()
    }
}

/// The parts of a loss; all carry gradients.
#[derive(Clone, Debug)]
pub struct UsamLosses {
    /// What is minimised: the sum of the two.
    pub total: Tensor,
    /// Mean cross entropy of the texts.
    pub cross_entropy: Tensor,
    /// The contrastive loss.
    pub contrastive: SaclmLosses,
}

/// U-SAM.
#[derive(Debug)]
pub struct Usam {
    config: UsamConfig,
    vocabulary: Vocabulary,
    streams: Streams,
    qformer: WindowQFormer,
    projector: TaskMixture,
    saclm: Saclm,
    llm: Decoder,
}

impl Usam {
    /// Loads a folder: `config.json` ([`UsamConfig`]) and weights under the names of the authors' checkpoints. The tokenizer is the
    /// caller's ([`Vocabulary::new`]).
    ///
    /// # Errors
    /// Config or weights cannot be read or do not fit: the message says which.
    pub fn load(dir: &Path, vocabulary: Vocabulary, dtype: DType, device: &Device) -> Result<Self> {
        Self::from_checkpoint(UsamConfig::load(dir)?, &Checkpoint::open_any(dir)?, vocabulary, dtype, device)
    }

    /// The model of a checkpoint, for inference.
    ///
    /// # Errors
    /// A tensor is missing or has another shape than the config says, or the checkpoint has tensors that the model does not know.
    pub fn from_checkpoint(
        config: UsamConfig,
        checkpoint: &Checkpoint,
        vocabulary: Vocabulary,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let params = Params::load(checkpoint, dtype, device);
        let layout = Layout::of(checkpoint);
        let model = Self::new(config, vocabulary, Sources::one(&params), layout, Some(checkpoint))?;
        no_others(&params, checkpoint, "U-SAM", |name| model.ignorable(name, layout))?;
        Ok(model)
    }

    /// The model with tensors from `sources`. `checkpoint` is the one behind them, where there is one: it tells how MERT's positional
    /// convolution is stored.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn new(
        config: UsamConfig,
        vocabulary: Vocabulary,
        sources: Sources<'_>,
        layout: Layout,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Self> {
        let mut llm = Decoder::new(config.llm.clone(), &layout.under(sources.frozen, "decoder", layout.decoder))?;
        if layout.decoder {
            let adapters = AdapterConfig {
                r: config.lora.rank,
                lora_alpha: config.lora.alpha,
                lora_dropout: config.lora.dropout,
                target_modules: Targets::Names(vec!["q_proj".to_string(), "v_proj".to_string()]),
                ..AdapterConfig::default()
            };
            attach(&adapters, llm.sites(), &sources.trained.pp("decoder").renamed(peft), "default", 1.0, checkpoint)?;
        }
        Ok(Self {
            streams: Streams::new(&config, sources, layout, checkpoint)?,
            qformer: WindowQFormer::load(config.qformer.clone(), sources.trained)?,
            projector: TaskMixture::load(config.projector.clone(), sources.trained)?,
            saclm: Saclm::load(config.saclm.clone(), sources.trained)?,
            llm,
            vocabulary,
            config,
        })
    }

    /// Tensors that a checkpoint may hold although the model does without.
    fn ignorable(&self, name: &str, layout: Layout) -> bool {
        let part = |part: &str, wrapped: bool| {
            let inner = name.strip_prefix(part)?.strip_prefix('.')?;
            if wrapped { inner.strip_prefix(WRAPPED)?.strip_prefix('.') } else { Some(inner) }
        };
        if let Some(inner) = part("encoder", layout.encoder) {
            return Ced::ignorable(inner);
        }
        if let Some(inner) = part("decoder", layout.decoder) {
            return self.config.llm.ignorable(inner);
        }
        // Copies of the one expert.
        let copy = self.config.projector.tied && name.starts_with("enc_to_dec_proj.");
        copy || name.starts_with("whisper.model.decoder.")
            || ["whisper.proj_out.weight", "mert.masked_spec_embed", "speech_former.bert.embeddings.position_ids"]
                .contains(&name)
    }

    /// The configuration.
    pub fn config(&self) -> &UsamConfig {
        &self.config
    }

    /// The ids around sound and text.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The language model.
    pub fn llm(&self) -> &Decoder {
        &self.llm
    }

    /// The language model, for adapters ([`Decoder::sites`]).
    pub fn llm_mut(&mut self) -> &mut Decoder {
        &mut self.llm
    }

    /// The mixture of projectors.
    pub fn projector(&self) -> &TaskMixture {
        &self.projector
    }

    /// Samples of the shortest clip that the model can hear; shorter ones are to be filled up with silence.
    pub fn shortest(&self) -> usize {
        self.streams.shortest(self.config.qformer.window)
    }

    /// Clips at 16 kHz, in -1 to 1, of any lengths, filled up with zeros to the longest, or to the [`shortest`](Self::shortest).
    ///
    /// # Shapes
    /// to `[clips, samples]`
    ///
    /// # Errors
    /// There is no clip, or an empty one.
    pub fn sound(&self, clips: &[&[f32]]) -> Result<Tensor> {
        let longest = clips.iter().map(|clip| clip.len()).max().unwrap_or(0).max(self.shortest());
        if let Some(i) = clips.iter().position(|clip| clip.is_empty()) {
            bail!("clip {i} has no sound");
        }
        if clips.is_empty() {
            bail!("there is no sound to listen to");
        }
        let mut all = Vec::with_capacity(clips.len().saturating_mul(longest));
        for clip in clips {
            all.extend_from_slice(clip);
            all.resize(all.len() + longest - clip.len(), 0.0);
        }
        Tensor::from_vec(all, (clips.len(), longest), self.llm.device())
    }

    /// What the Q-Former makes of clips. A probe gets `ced_tokens`, `whisper_hidden`, `mert_hidden`, `mert_mixed`, `qformer_windows` and
    /// `qformer_output`.
    ///
    /// # Shapes
    /// `samples [b, n]` at 16 kHz to tokens `[b, windows, h]`
    ///
    /// # Errors
    /// The clips are too short for one window, or too long.
    pub fn encode(&self, samples: &Tensor, probe: Option<&Probe>) -> Result<Tokens> {
        let tokens = self.streams.encode(&samples.to_device(self.llm.device())?, probe)?;
        let inner = probe.map(|_| Probe::new());
        let (windows, _) = self.qformer.project_one(&tokens, inner.as_ref())?;
        if let (Some(probe), Some(inner)) = (probe, inner) {
            let inner = inner.tensors();
            for (from, to) in [("windows", "qformer_windows"), ("last_hidden_state", "qformer_output")] {
                if let Some(tensor) = inner.get(from) {
                    probe.tensor(to, tensor);
                }
            }
        }
        Ok(windows)
    }

    /// Embeddings of a prompt before and behind the sound, with the first token, for `rows` rows.
    ///
    /// # Shapes
    /// `[rows, 1 + left, h]` and `[rows, right, h]`
    ///
    /// # Errors
    /// An id that is not in the vocabulary.
    pub fn embed_prompt(&self, prompt: &Prompt, rows: usize) -> Result<[Tensor; 2]> {
        let left = [&[self.vocabulary.bos], prompt.left.as_slice()].concat();
        let embed = |ids: &[u32]| -> Result<Tensor> {
            if ids.is_empty() {
                return Tensor::zeros((rows, 0, self.config.llm.hidden_size), DType::F32, self.llm.device());
            }
            let all: Vec<u32> = std::iter::repeat_n(ids, rows).flatten().copied().collect();
            self.llm.embed(&Tensor::from_vec(all, (rows, ids.len()), self.llm.device())?)
        };
        Ok([embed(&left)?, embed(&prompt.right)?])
    }

    /// Encoded clips in the width of the language model, each with the prompt that asks about it. A probe gets what
    /// [`TaskMixture`] records.
    ///
    /// # Errors
    /// Numbers of clips and prompts differ.
    pub fn project(&self, encoded: &Tokens, prompts: &[Prompt], probe: Option<&Probe>) -> Result<Projected> {
        let (b, t, _) = encoded.embeds.dims3()?;
        if prompts.is_empty() || prompts.len() != b {
            bail!("{} prompts for {b} clips", prompts.len());
        }
        // Prompts of other lengths are cut and filled up elsewhere; each is embedded once.
        let (mut known, mut rows): (Vec<&Prompt>, Vec<u32>) = (Vec::new(), Vec::with_capacity(b));
        for prompt in prompts {
            let place = known.iter().position(|known| *known == prompt).unwrap_or(known.len());
            if place == known.len() {
                known.push(prompt);
            }
            rows.push(place as u32);
        }
        let each = known.into_iter().map(|prompt| self.projector.condition(&self.embed_prompt(prompt, 1)?, 1, t));
        let conditions = Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 0)?; // (prompts, t, h)
        let condition = conditions.index_select(&Tensor::from_vec(rows, b, conditions.device())?, 0)?; // (b, t, h)
        let (tokens, routes) = self.projector.project_conditioned(encoded, &condition, probe)?;
        Ok(Projected { tokens: vec![tokens], routes: vec![routes] })
    }

    /// One pass over a sequence with texts. A probe gets what [`Decoder::forward`] records.
    ///
    /// # Errors
    /// As there.
    pub fn forward(&self, sequence: &Sequence, probe: Option<&Probe>) -> Result<Output> {
        self.llm.forward(Input::Embeds(&sequence.embeds), &sequence.context(), None, probe)
    }

    /// The sequence of projected sound, prompts and texts, ids without first and last token, filled up at the right.
    ///
    /// # Errors
    /// Numbers of clips, prompts and texts differ, or an id is not in the vocabulary.
    pub fn sequence(&self, sound: &Tokens, prompts: &[Prompt], texts: &[Vec<u32>]) -> Result<Sequence> {
        sequence::lay_out(&self.llm, &self.vocabulary, sound, prompts, texts)
    }

    /// The loss of a batch; `negatives` says whose text each clip is held against ([`Saclm::negatives`]). A probe gets what the
    /// contrastive loss records.
    ///
    /// # Errors
    /// As [`encode`](Self::encode) and [`sequence`](Self::sequence).
    pub fn loss(
        &self,
        samples: &Tensor,
        prompts: &[Prompt],
        texts: &[Vec<u32>],
        negatives: &[u32],
        probe: Option<&Probe>,
    ) -> Result<UsamLosses> {
        let sound = self.sound_tokens(samples, prompts)?;
        let sequence = self.sequence(&sound, prompts, texts)?;
        let output = self.forward(&sequence, None)?;
        let cross_entropy = self.llm.loss_of(&output, &sequence.labels, false)?.cross_entropy;
        let contrastive = self.saclm.forward(&sound.embeds, &sequence.text, negatives, probe)?;
        Ok(UsamLosses { total: (&cross_entropy + &contrastive.total)?, cross_entropy, contrastive })
    }

    /// `samples [b, n]` to tokens of the language model's width.
    fn sound_tokens(&self, samples: &Tensor, prompts: &[Prompt]) -> Result<Tokens> {
        match self.project(&self.encode(samples, None)?, prompts, None)?.tokens.pop() {
            Some(tokens) => Ok(tokens),
            None => bail!("the projector gave no tokens"),
        }
    }

    /// Embedded prompts of clips, filled up at the left, and where what stands in them.
    ///
    /// # Shapes
    /// `samples [b, n]` to `[b, s, h]`
    ///
    /// # Errors
    /// As [`encode`](Self::encode) and [`project`](Self::project).
    pub fn prompt(&self, samples: &Tensor, prompts: &[Prompt]) -> Result<(Tensor, Context)> {
        self.prompt_of(&self.sound_tokens(samples, prompts)?, prompts)
    }

    /// The same of sound that is projected already.
    ///
    /// # Shapes
    /// `sound [b, t, h]` to `[b, s, h]`
    ///
    /// # Errors
    /// Numbers of clips and prompts differ, or an id is not in the vocabulary.
    pub fn prompt_of(&self, sound: &Tokens, prompts: &[Prompt]) -> Result<(Tensor, Context)> {
        if sound.embeds.dim(0)? != prompts.len() {
            bail!("{} prompts for {} clips", prompts.len(), sound.embeds.dim(0)?);
        }
        let row = |i: usize| Ok(Tokens::new(sound.embeds.narrow(0, i, 1)?.contiguous()?, sound.modality));
        let sounds = (0..prompts.len()).map(row).collect::<Result<Vec<_>>>()?;
        let first = [self.vocabulary.bos];
        let rows = prompts.iter().zip(&sounds).map(|(prompt, sound)| {
            vec![Segment::Ids(&first), Segment::Ids(&prompt.left), Segment::Tokens(sound), Segment::Ids(&prompt.right)]
        });
        self.llm.embed_rows(&rows.collect::<Vec<_>>())
    }

    /// Ids that end an answer: the model's own, and those that the language model had before.
    fn ends(&self) -> Vec<u32> {
        let mut ends = vec![self.vocabulary.eos];
        ends.extend(self.config.llm.eos_token_ids.iter().filter(|id| **id != self.vocabulary.eos));
        ends
    }

    /// Options of a search as the config says: its beams, its fewest and most new tokens.
    pub fn beam_options(&self) -> BeamOptions {
        let [min_new_tokens, max_new_tokens] = self.config.new_tokens;
        BeamOptions {
            beams: self.config.beams,
            min_new_tokens,
            max_new_tokens,
            eos: self.ends(),
            ..BeamOptions::default()
        }
    }

    /// Options of greedy decoding with the config's most new tokens.
    pub fn options(&self) -> Options {
        Options { max_new_tokens: self.config.new_tokens[1], eos: self.ends(), ..Options::default() }
    }

    /// Answers about clips token by token; the likeliest with [`options`](Self::options).
    ///
    /// # Errors
    /// As [`prompt`](Self::prompt) and [`generate`].
    pub fn answer(&self, samples: &Tensor, prompts: &[Prompt], options: &Options) -> Result<Vec<Generated>> {
        let (embeds, context) = self.prompt(samples, prompts)?;
        let prompts = Prompts::Embeds(&embeds, &context);
        generate(&self.llm, prompts, options, &mut |_| std::ops::ControlFlow::Continue(()))
    }

    /// Answers about clips by beam search, the best first.
    ///
    /// # Errors
    /// As [`prompt`](Self::prompt) and [`beam_search`].
    pub fn search(&self, samples: &Tensor, prompts: &[Prompt], options: &BeamOptions) -> Result<Vec<Vec<Beam>>> {
        let (embeds, context) = self.prompt(samples, prompts)?;
        let prompts = Prompts::Embeds(&embeds, &context);
        beam_search(&self.llm, prompts, options, &mut |_| std::ops::ControlFlow::Continue(()))
    }
}
