//! `config.json` of U-SAM and of its parts alone.

use std::path::Path;

use candle_core::{Error, Result, bail};
use moesaic_encoders::speech::{CedConfig, WaveConfig, WhisperConfig};
use moesaic_kernels::{Activation, shown};
use moesaic_projectors::{MixtureSum, TaskMixtureConfig, WindowQFormerConfig};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::saclm::SaclmConfig;
use crate::avsr::language_model;
use crate::decoder::{DecoderConfig, unquantised};
use crate::folder;

/// Adapters of queries and values, in CED and in the language model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraNumbers {
    /// `lora_r`
    pub rank: usize,
    /// `lora_alpha`: over the rank, the strength.
    pub alpha: f64,
    /// `lora_dropout`: the share of inputs left out in training.
    pub dropout: f64,
}

impl LoraNumbers {
    /// What an adapter's output is multiplied with.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank.max(1) as f64
    }
}

/// How the tokens of several encoders are brought into step, `encoder_alignment`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Alignment {
    /// As the released code does (`released`): those of the others are spread over CED's as if these stood in the order of time, which
    /// they do not, and Whisper's window is squeezed onto the clip.
    #[default]
    Released,
    /// By time (`time`): CED's patches of one time stand side by side, Whisper's frames behind the end of the clip are left out, and
    /// all are spread over the steps of the encoder that has the most.
    Time,
}

/// U-SAM.
#[derive(Clone, Debug)]
pub struct UsamConfig {
    /// The encoder of sounds.
    pub ced: Option<CedConfig>,
    /// The encoder of speech.
    pub whisper: Option<WhisperConfig>,
    /// The encoder of music, in HuBERT's layout.
    pub mert: Option<WaveConfig>,
    /// How the tokens of the encoders are brought into step.
    pub alignment: Alignment,
    /// What looks at windows of the three.
    pub qformer: WindowQFormerConfig,
    /// What maps windows to the language model.
    pub projector: TaskMixtureConfig,
    /// The contrastive loss.
    pub saclm: SaclmConfig,
    /// The language model.
    pub llm: DecoderConfig,
    /// Adapters.
    pub lora: LoraNumbers,
    /// First token, by name.
    pub bos: String,
    /// Last token, by name.
    pub eos: String,
    /// What fills rows up, by name.
    pub pad: String,
    /// Beams of a search.
    pub beams: usize,
    /// Fewest and most tokens of an answer.
    pub new_tokens: [usize; 2],
    /// The file as it was read, to be written beside saved weights.
    pub published: Map<String, Value>,
}

#[derive(Deserialize)]
struct Keys {
    // Each must be named, if only to say that there is none.
    ced: Value,
    whisper: Value,
    mert: Value,
    encoder_alignment: Option<String>,
    qformer: Map<String, Value>,
    lora_r: Option<usize>,
    lora_alpha: Option<f64>,
    lora_dropout: Option<f64>,
    window_length: Option<usize>,
    bos_token: Option<String>,
    eos_token: Option<String>,
    pad_token: Option<String>,
    num_beams: Option<usize>,
    min_new_tokens: Option<usize>,
    max_new_tokens: Option<usize>,
}

/// Keys of the Q-Former.
#[derive(Deserialize)]
struct QFormerKeys {
    hidden_size: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    cross_attention_freq: Option<usize>,
    query_length: Option<usize>,
    encoder_width: Option<usize>,
    window_length: Option<usize>,
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
}

/// Keys of the mixture of projectors.
#[derive(Deserialize)]
struct ProjectorKeys {
    qformer_hidden: Option<usize>,
    decoder_hidden: Option<usize>,
    num_experts: Option<usize>,
    compat: Option<String>,
    projector_reduction: Option<String>,
    tied_experts: Option<bool>,
}

/// Keys of the contrastive loss.
#[derive(Deserialize)]
struct SaclmKeys {
    hidden_size: Option<usize>,
    score_hidden: Option<usize>,
    num_aggregated: Option<usize>,
    margin: Option<f64>,
    desired_ratio: Option<f64>,
    beta: Option<f64>,
    threshold: Option<f64>,
}

fn keys<T: DeserializeOwned>(map: &Map<String, Value>, part: &str) -> Result<T> {
    serde_json::from_value(Value::Object(map.clone())).map_err(|e| Error::Msg(format!("config.json{part}: {e}")))
}

/// An encoder's keys; `null` or `false` where the model does without it.
fn encoder<T: DeserializeOwned>(value: Value, part: &str) -> Result<Option<T>> {
    match value {
        Value::Null | Value::Bool(false) => Ok(None),
        other => serde_json::from_value(other).map(Some).map_err(|e| Error::Msg(format!("config.json, {part}: {e}"))),
    }
}

fn read(dir: &Path) -> Result<Map<String, Value>> {
    folder::config(&dir.join("config.json"))
}

/// The error of a folder's config.
fn of<T>(dir: &Path, result: Result<T>) -> Result<T> {
    result.map_err(|e| Error::Msg(format!("{}: {e}", dir.display())))
}

/// The Q-Former that a `config.json` of its own describes.
///
/// # Errors
/// The file cannot be read, or a value makes no sense.
pub fn load_qformer(dir: &Path) -> Result<WindowQFormerConfig> {
    of(dir, read(dir).and_then(|map| qformer(&map, None, None)))
}

/// The mixture of projectors that a `config.json` of its own describes, with `qformer_hidden` and `decoder_hidden`.
///
/// # Errors
/// The file cannot be read, or a value makes no sense.
pub fn load_projector(dir: &Path) -> Result<TaskMixtureConfig> {
    of(dir, read(dir).and_then(|map| projector(&map, None)))
}

/// The contrastive loss that a `config.json` of its own describes, with `hidden_size`.
///
/// # Errors
/// The file cannot be read, or a value makes no sense.
pub fn load_saclm(dir: &Path) -> Result<SaclmConfig> {
    of(dir, read(dir).and_then(|map| saclm(&map, None)))
}

/// `inputs` and `window` of the model around it, where there is one.
fn qformer(map: &Map<String, Value>, inputs: Option<usize>, window: Option<usize>) -> Result<WindowQFormerConfig> {
    let all: QFormerKeys = keys(map, ", Q-Former")?;
    let Some(inputs) = inputs.or(all.encoder_width) else {
        bail!("config.json says no encoder_width of the Q-Former");
    };
    if let Some(width) = all.encoder_width.filter(|&width| width != inputs) {
        bail!("encoder_width of the Q-Former is {width}, the encoders are {inputs} wide together");
    }
    let config = WindowQFormerConfig {
        inputs,
        hidden: all.hidden_size,
        inner: all.intermediate_size,
        heads: all.num_attention_heads,
        layers: all.num_hidden_layers,
        cross_attention_freq: all.cross_attention_freq.unwrap_or(1),
        queries: all.query_length.unwrap_or(1),
        window: all.window_length.or(window).unwrap_or(17),
        eps: all.layer_norm_eps.unwrap_or(1e-12),
        activation: Activation::from_name(all.hidden_act.as_deref().unwrap_or("gelu"))?,
    };
    config.validate()?;
    Ok(config)
}

/// `widths` of tokens and of the language model, where they follow from the model around it.
fn projector(map: &Map<String, Value>, widths: Option<[usize; 2]>) -> Result<TaskMixtureConfig> {
    let all: ProjectorKeys = keys(map, "")?;
    let released = |key: &str, value: Option<&str>| match value {
        None => Ok(None),
        Some("paper") => Ok(Some(false)),
        Some("released") => Ok(Some(true)),
        Some(other) => bail!("{key} {}: expected paper or released", shown(other)),
    };
    let compat = released("compat", all.compat.as_deref())?.unwrap_or(false);
    let sum = released("projector_reduction", all.projector_reduction.as_deref())?.unwrap_or(compat);
    let (inputs, outputs) = match (widths, all.qformer_hidden, all.decoder_hidden) {
        (Some([inputs, outputs]), _, _) | (None, Some(inputs), Some(outputs)) => (inputs, outputs),
        _ => bail!("config.json says no qformer_hidden or no decoder_hidden"),
    };
    Ok(TaskMixtureConfig {
        inputs,
        outputs,
        experts: all.num_experts.unwrap_or(3),
        tied: all.tied_experts.unwrap_or(compat),
        sum: if sum { MixtureSum::Time } else { MixtureSum::Experts },
    })
}

fn saclm(map: &Map<String, Value>, hidden: Option<usize>) -> Result<SaclmConfig> {
    let all: SaclmKeys = keys(map, "")?;
    let Some(hidden) = hidden.or(all.hidden_size) else {
        bail!("config.json says no hidden_size of the contrastive loss");
    };
    let config = SaclmConfig {
        hidden,
        score_hidden: all.score_hidden.unwrap_or(1024),
        slots: all.num_aggregated.unwrap_or(1024),
        margin: all.margin.unwrap_or(0.2),
        ratio: all.desired_ratio.unwrap_or(0.5),
        beta: all.beta.unwrap_or(0.5),
        threshold: all.threshold.unwrap_or(0.5),
    };
    config.validate()?;
    Ok(config)
}

/// Whisper's keys, under their own names or under the short ones of the parts of a whole.
fn whisper(mut map: Map<String, Value>) -> Result<WhisperConfig> {
    for (short, name) in [("heads", "encoder_attention_heads"), ("ffn", "encoder_ffn_dim")] {
        if let Some(value) = map.remove(short) {
            map.entry(name).or_insert(value);
        }
    }
    let seconds = map.get("chunk_length").and_then(Value::as_u64);
    let config: WhisperConfig = keys(&map, ", whisper")?;
    // Two frames of 160 samples make a position.
    if let Some(seconds) = seconds.filter(|s| s.checked_mul(50) != Some(config.max_source_positions as u64)) {
        bail!(
            "whisper: a chunk_length of {seconds} s has {} positions, max_source_positions is {}",
            seconds.saturating_mul(50),
            config.max_source_positions
        );
    }
    Ok(config)
}

impl UsamConfig {
    /// Reads `config.json` of a folder. Settings have the names that the authors' scripts give them; `compat: "released"` asks for
    /// what the released code computes instead of the paper's equations, and `projector_reduction` (`paper` or `released`) and
    /// `tied_experts` for either half of that. An encoder that is `false` or `null` is left out; `encoder_alignment` says how the others
    /// are brought into step ([`Alignment`]).
    ///
    /// # Errors
    /// The file cannot be read, a value makes no sense, or something is asked for that is not supported.
    pub fn load(dir: &Path) -> Result<Self> {
        of(dir, read(dir).and_then(Self::new))
    }

    /// Samples at 16 kHz that the model hears at once: what Whisper's encoder takes; without it, a chunk of CED, or 30 seconds.
    pub fn window(&self) -> usize {
        match (&self.whisper, &self.ced) {
            (Some(whisper), _) => whisper.max_source_positions.saturating_mul(320),
            // A clip of n samples has 1 + n / 160 frames.
            (None, Some(ced)) => ced.target_length.saturating_sub(1).saturating_mul(160),
            (None, None) => 480_000,
        }
    }

    /// The encoders by name, in the order of their features.
    pub fn encoders(&self) -> Vec<&'static str> {
        let all = [("ced", self.ced.is_some()), ("whisper", self.whisper.is_some()), ("mert", self.mert.is_some())];
        all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_json(text: &str) -> Result<Self> {
        Self::new(serde_json::from_str(text).map_err(|e| Error::Msg(e.to_string()))?)
    }

    fn new(map: Map<String, Value>) -> Result<Self> {
        let all: Keys = keys(&map, "")?;
        let llm = language_model(&map)?;
        let ced: Option<CedConfig> = encoder(all.ced, "ced")?;
        let whisper = encoder(all.whisper, "whisper")?.map(whisper).transpose()?;
        let mert: Option<WaveConfig> = encoder(all.mert, "mert")?;
        let alignment = match all.encoder_alignment.as_deref() {
            None | Some("released") => Alignment::Released,
            Some("time") => Alignment::Time,
            Some(other) => bail!("encoder_alignment {}: expected released or time", shown(other)),
        };
        let rows = |ced: &CedConfig| if alignment == Alignment::Time { ced.grid().0 } else { 1 };
        let widths = [
            ced.as_ref().map(|ced| ced.embed_dim.checked_mul(rows(ced))),
            whisper.as_ref().map(|whisper| Some(whisper.d_model)),
            mert.as_ref().map(|mert| Some(mert.hidden_size)),
        ];
        let width = widths.into_iter().flatten().try_fold(0usize, |sum, width| sum.checked_add(width?));
        let Some(width) = width else { bail!("the encoders are too wide; check config.json") };
        if ced.is_none() && whisper.is_none() && mert.is_none() {
            bail!("ced, whisper and mert are all left out: a model that listens needs one");
        }
        let qformer = qformer(&all.qformer, Some(width), all.window_length)?;
        let projector = projector(&map, Some([qformer.hidden, llm.hidden_size]))?;
        let rank = all.lora_r.unwrap_or(8);
        let lora = LoraNumbers {
            rank,
            alpha: all.lora_alpha.unwrap_or(32.0),
            dropout: all.lora_dropout.unwrap_or(0.1), // the authors'
        };
        if rank == 0 || rank > 1 << 14 || !lora.alpha.is_finite() || !(0.0..1.0).contains(&lora.dropout) {
            bail!(
                "lora_r {rank}, lora_alpha {} and lora_dropout {}: expected a rank of at least 1 and a dropout below 1",
                lora.alpha,
                lora.dropout
            );
        }
        let beams = all.num_beams.unwrap_or(3);
        let new_tokens = [all.min_new_tokens.unwrap_or(2), all.max_new_tokens.unwrap_or(30)];
        if beams == 0 || new_tokens[1] == 0 || new_tokens[0] > new_tokens[1] {
            bail!("num_beams {beams}, min_new_tokens and max_new_tokens {new_tokens:?} make no sense together");
        }
        let name = |key: Option<String>, otherwise: &str| key.unwrap_or_else(|| otherwise.to_string());
        Ok(Self {
            saclm: saclm(&map, Some(llm.hidden_size))?,
            ced,
            whisper,
            mert,
            alignment,
            qformer,
            projector,
            llm,
            lora,
            bos: name(all.bos_token, "<|begin_of_text|>"),
            eos: name(all.eos_token, "<|end_of_text|>"),
            pad: name(all.pad_token, "[PAD]"),
            beams,
            new_tokens,
            published: unquantised(map),
        })
    }
}
