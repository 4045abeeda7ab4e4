//! `config.json` of a speech model: the settings that the authors give their training scripts, under the same names.

use std::path::Path;

use candle_core::{Error, Result, bail};
use moesaic_kernels::{Modality, shown};
use moesaic_projectors::{Compression, Intake, Sharing, SmopConfig};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::scales::LoraConfig;
use crate::decoder::{DecoderConfig, unquantised};
use crate::folder;

/// What a model listens to and looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Speech (`audio`).
    Audio,
    /// Lips (`video`).
    Video,
    /// Both, each through an encoder of its own (`audiovisual`).
    AudioVisual,
    /// Both through one AV-HuBERT (`audiovisual_avhubert`).
    AvHubert {
        /// One pass sees both and one projector follows it; else a pass and a projector for each.
        fused: bool,
    },
}

impl Task {
    /// Whether the model takes sound.
    pub fn hears(self) -> bool {
        self != Self::Video
    }

    /// Whether the model takes pictures.
    pub fn sees(self) -> bool {
        self != Self::Audio
    }

    /// The authors' prompt.
    pub fn prompt(self) -> &'static str {
        match self {
            Self::Audio => "Transcribe speech to text.",
            Self::Video => "Transcribe video to text.",
            Self::AudioVisual | Self::AvHubert { .. } => "Transcribe speech and video to text.",
        }
    }
}

/// The encoder of sound.
#[derive(Clone, Debug, PartialEq)]
pub enum AudioConfig {
    /// Whisper's, with the keys of its `config.json`.
    Whisper(Value),
    /// WavLM, with the keys of its `config.json`.
    WavLm(Value),
    /// AV-HuBERT on sound alone; its keys are those of `av_hubert`.
    AvHubert,
}

/// How the tokens of one modality are projected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneConfig {
    /// The modality.
    pub modality: Modality,
    /// Tokens that become one, by rate; several are Matryoshka's.
    pub rates: Vec<usize>,
    /// The rates stand in a list, so that their tensors are numbered.
    pub listed: bool,
}

/// Projectors of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ProjectorConfig {
    /// The modalities, in the order of their tokens.
    pub lanes: Vec<LaneConfig>,
    /// Tokens stand side by side in the width instead of becoming their mean.
    pub stack: bool,
    /// Width inside.
    pub inner: usize,
    /// A LayerNorm at the end of dense projectors.
    pub norm: bool,
    /// A sparse mixture of projectors: what is shared, experts, experts of a token.
    pub mixture: Option<(Sharing, usize, usize)>,
    /// Coefficient of the balance loss.
    pub balance: f64,
    /// Coefficient of the z-loss.
    pub z: f64,
    /// Widths of `audio_dim` and `video_dim`, and `hidden_size`, where the file describes projectors alone.
    sizes: Option<([Option<usize>; 2], usize)>,
}

/// A speech model.
#[derive(Clone, Debug)]
pub struct AvsrConfig {
    /// What it takes.
    pub task: Task,
    /// The encoder of sound.
    pub audio: Option<AudioConfig>,
    /// The keys of AV-HuBERT, where the model has one.
    pub av_hubert: Option<Value>,
    /// There are adapters in AV-HuBERT: rank a sixteenth of the width, scale 2.
    pub av_hubert_lora: bool,
    /// The language model.
    pub llm: DecoderConfig,
    /// Its adapters.
    pub lora: Option<LoraConfig>,
    /// Projectors.
    pub projector: ProjectorConfig,
    /// What the model is asked, after media and before the answer.
    pub prompt: String,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Beams of a search.
    pub beams: usize,
    /// Seconds that are transcribed at once: what a Whisper takes, or `window_seconds`, a key of this project's models.
    pub window: f64,
    /// Factor of the sink loss, where it is trained with one.
    pub sink_factor: f64,
    /// The file as it was read, to be written beside saved weights.
    pub published: Map<String, Value>,
}

/// A number, or a list of numbers.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a compression rate is a number or a list of numbers")]
enum Rates {
    One(usize),
    Many(Vec<usize>),
}

#[derive(Deserialize)]
struct Keys {
    modality: Option<String>,
    #[serde(default)]
    single_projector_avhubert: bool,
    audio_encoder_name: Option<String>,
    whisper: Option<Value>,
    wavlm: Option<Value>,
    av_hubert: Option<Value>,
    #[serde(default)]
    use_lora_avhubert: bool,
    prompt: Option<String>,
    max_dec_tokens: Option<usize>,
    num_beams: Option<usize>,
    sink_loss_factor: Option<f64>,
    window_seconds: Option<f64>,
}

#[derive(Deserialize)]
struct ProjectorKeys {
    variant: Option<String>,
    model_type: Option<String>,
    compression_mode: Option<String>,
    downsample_ratio_audio: Option<Rates>,
    downsample_ratio_video: Option<Rates>,
    downsample_ratio_audiovisual: Option<Rates>,
    layernorm_projector: Option<bool>,
    intermediate_size: Option<usize>,
    num_experts: Option<usize>,
    top_k: Option<usize>,
    smop_mode: Option<String>,
    load_balancing_loss_coeff: Option<f64>,
    router_z_loss_coeff: Option<f64>,
    audio_dim: Option<usize>,
    video_dim: Option<usize>,
    hidden_size: Option<usize>,
}

/// Most tokens that become one.
const MOST_RATE: usize = 1 << 12;
/// Widest vector.
const WIDEST: usize = 1 << 20;

/// `config.json` of a folder.
pub(super) fn read(dir: &Path) -> Result<Map<String, Value>> {
    folder::config(&dir.join("config.json"))
}

fn keys<T: DeserializeOwned>(map: &Map<String, Value>) -> Result<T> {
    serde_json::from_value(Value::Object(map.clone())).map_err(|e| Error::Msg(format!("config.json: {e}")))
}

/// The language model under `llama` (or `llm`); without `model_type` it is a Llama.
pub(crate) fn llm(map: &Map<String, Value>) -> Result<DecoderConfig> {
    let Some(Value::Object(llm)) = map.get("llama").or(map.get("llm")) else {
        bail!("config.json has no key llama with the language model's configuration");
    };
    let mut llm = llm.clone();
    llm.entry("model_type").or_insert("llama".into());
    let text = serde_json::to_string(&llm).map_err(|e| Error::Msg(e.to_string()))?;
    DecoderConfig::from_json(&text).map_err(|e| Error::Msg(format!("config.json, language model: {e}")))
}

impl AvsrConfig {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// The file cannot be read, a value makes no sense, or something is asked for that is not supported.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::new(read(dir)?).map_err(|e| Error::Msg(format!("{}: {e}", dir.display())))
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_json(text: &str) -> Result<Self> {
        Self::new(serde_json::from_str(text).map_err(|e| Error::Msg(e.to_string()))?)
    }

    fn new(map: Map<String, Value>) -> Result<Self> {
        let all: Keys = keys(&map)?;
        let task = match all.modality.as_deref() {
            Some("audio") => Task::Audio,
            Some("video") => Task::Video,
            Some("audiovisual") => Task::AudioVisual,
            Some("audiovisual_avhubert") => Task::AvHubert { fused: all.single_projector_avhubert },
            other => bail!(
                "modality {}: expected audio, video, audiovisual or audiovisual_avhubert",
                other.map_or("is missing".to_string(), shown)
            ),
        };
        let audio = match task {
            Task::Audio | Task::AudioVisual => Some(audio(all.audio_encoder_name.as_deref(), all.whisper, all.wavlm)?),
            _ => None,
        };
        let needs_av = task.sees() || audio == Some(AudioConfig::AvHubert);
        if needs_av && !all.av_hubert.as_ref().is_some_and(Value::is_object) {
            bail!("config.json has no key av_hubert with that encoder's configuration");
        }
        let projector = ProjectorConfig::new(&map, Some(task))?;
        let (llm, lora) = (llm(&map)?, LoraConfig::new(&map, projector.scales())?);
        let beams = all.num_beams.unwrap_or(15);
        let max_new_tokens = all.max_dec_tokens.unwrap_or(32);
        if max_new_tokens == 0 || beams == 0 {
            bail!("max_dec_tokens and num_beams must be at least 1");
        }
        let longest = match &audio {
            Some(AudioConfig::Whisper(keys)) => {
                keys.get("max_source_positions").and_then(Value::as_u64).unwrap_or(1500) as f64 / 50.0
            }
            _ => 30.0,
        };
        let window = all.window_seconds.unwrap_or(longest).min(longest);
        if window.is_nan() || window < 0.2 {
            bail!("window_seconds is {window}, expected 0.2 or more");
        }
        let sink_factor = all.sink_loss_factor.unwrap_or(10_000.0);
        if !(sink_factor >= 0.0 && sink_factor.is_finite()) {
            bail!("sink_loss_factor is {sink_factor}, expected 0 or more");
        }
        Ok(Self {
            task,
            audio,
            av_hubert: all.av_hubert.filter(|_| needs_av),
            av_hubert_lora: all.use_lora_avhubert,
            llm,
            lora,
            projector,
            prompt: all.prompt.unwrap_or_else(|| task.prompt().to_string()),
            max_new_tokens,
            beams,
            window,
            sink_factor,
            published: unquantised(map),
        })
    }
}

/// The encoder that the name, or else the keys, speak of.
fn audio(name: Option<&str>, whisper: Option<Value>, wavlm: Option<Value>) -> Result<AudioConfig> {
    match (name, whisper, wavlm) {
        (Some(name), Some(keys), _) if name.contains("whisper") => Ok(AudioConfig::Whisper(keys)),
        (Some(name), _, Some(keys)) if name.contains("wavlm") => Ok(AudioConfig::WavLm(keys)),
        (Some(name), _, _) if name.contains("av-hubert") || name.contains("avhubert") => Ok(AudioConfig::AvHubert),
        (None, Some(keys), _) => Ok(AudioConfig::Whisper(keys)),
        (None, None, Some(keys)) => Ok(AudioConfig::WavLm(keys)),
        (Some(name), _, _) => {
            let name = shown(name);
            bail!(
                "audio_encoder_name {name}: expected a Whisper or a WavLM with its keys under whisper or wavlm, or av-hubert"
            )
        }
        (None, None, None) => {
            bail!("config.json has neither whisper nor wavlm, the configuration of the audio encoder")
        }
    }
}

impl ProjectorConfig {
    /// Reads a `config.json` of projectors alone: `audio_dim`, `video_dim` and `hidden_size` say the widths.
    ///
    /// # Errors
    /// As [`AvsrConfig::load`].
    pub fn load(dir: &Path) -> Result<Self> {
        Self::new(&read(dir)?, None).map_err(|e| Error::Msg(format!("{}: {e}", dir.display())))
    }

    /// The mixture of projectors, of a file that says the widths.
    ///
    /// # Errors
    /// It does not, or there is no mixture.
    pub fn smop(&self) -> Result<SmopConfig> {
        let Some(([audio, video], outputs)) = self.sizes else {
            bail!("config.json says no audio_dim or video_dim, and no hidden_size")
        };
        self.smop_of(outputs, |m| if m == Modality::Audio { audio } else { video })
    }

    /// The mixture of projectors for encoders of these widths.
    ///
    /// # Errors
    /// There is no mixture, or no encoder for a modality.
    pub fn smop_of(&self, outputs: usize, width: impl Fn(Modality) -> Option<usize>) -> Result<SmopConfig> {
        let Some((sharing, experts, k)) = self.mixture else { bail!("this model has no mixture of projectors") };
        let inputs = self.lanes.iter().map(|lane| match (width(lane.modality), lane.rates.as_slice()) {
            (Some(width), &[rate]) => Ok(self.intake(lane.modality, width, rate)),
            (Some(_), _) => bail!("a mixture of projectors has one compression rate a modality"),
            (None, _) => bail!("there is no width for {:?} tokens", lane.modality),
        });
        Ok(SmopConfig { sharing, inputs: inputs.collect::<Result<_>>()?, inner: self.inner, outputs, experts, k })
    }

    /// What a projector takes at a rate.
    pub fn intake(&self, modality: Modality, width: usize, rate: usize) -> Intake {
        let joined = if self.stack { Compression::Stack(rate) } else { Compression::Average(rate) };
        Intake { modality, width, compression: (rate > 1).then_some(joined) }
    }

    /// Number of ways to choose a rate for each modality.
    pub fn scales(&self) -> usize {
        self.lanes.iter().map(|lane| lane.rates.len()).product()
    }

    fn new(map: &Map<String, Value>, task: Option<Task>) -> Result<Self> {
        let all: ProjectorKeys = keys(map)?;
        let fused = task == Some(Task::AvHubert { fused: true });
        let of = |what: &str| [&all.variant, &all.model_type].into_iter().flatten().any(|name| name.contains(what));
        let mixed = of("smop") || all.smop_mode.is_some();
        let later = mixed || of("mtsk");
        let stack = match all.compression_mode.as_deref() {
            // One AV-HuBERT for both is always stacked.
            _ if matches!(task, Some(Task::AvHubert { .. })) => true,
            Some("stack") => true,
            Some("avg-pooling") => false,
            // The code of the later models knows means only.
            None => !later,
            Some(other) => bail!("compression_mode {}: expected stack or avg-pooling", shown(other)),
        };
        let alone = task.is_none();
        let (hears, sees) = match task {
            Some(task) => (task.hears(), task.sees()),
            None => (all.audio_dim.is_some(), all.video_dim.is_some()),
        };
        let mut lanes = Vec::new();
        let mut lane = |modality, name: &str, rates: Option<Rates>, otherwise: usize| {
            let (rates, listed) = match rates {
                Some(Rates::One(rate)) => (vec![rate], false),
                Some(Rates::Many(rates)) => (rates, true),
                None => (vec![otherwise], false),
            };
            if rates.is_empty() || rates.len() > 64 || rates.iter().any(|&r| r == 0 || r > MOST_RATE) {
                bail!("{name} is {rates:?}: expected one or several rates from 1 to {MOST_RATE}");
            }
            lanes.push(LaneConfig { modality, rates, listed });
            Ok(())
        };
        if fused {
            lane(Modality::Video, "downsample_ratio_audiovisual", all.downsample_ratio_audiovisual, 2)?;
        } else {
            if hears {
                lane(Modality::Audio, "downsample_ratio_audio", all.downsample_ratio_audio, 3)?;
            }
            if sees {
                lane(Modality::Video, "downsample_ratio_video", all.downsample_ratio_video, 3)?;
            }
        }
        let mixture = if mixed {
            let sharing = Sharing::from_name(all.smop_mode.as_deref().unwrap_or("JEJR"))?;
            let (experts, k) = (all.num_experts.unwrap_or(4), all.top_k.unwrap_or(2));
            if experts == 0 || experts > 1 << 12 || k == 0 || k > experts {
                bail!(
                    "num_experts {experts} and top_k {k}: expected 1 to 4096 experts, and 1 to that number for a token"
                );
            }
            Some((sharing, experts, k))
        } else {
            None
        };
        let inner = all.intermediate_size.unwrap_or(2048);
        let (balance, z) = (all.load_balancing_loss_coeff.unwrap_or(0.01), all.router_z_loss_coeff.unwrap_or(0.001));
        if [balance, z].iter().any(|c| !(*c >= 0.0 && c.is_finite())) {
            bail!("coefficients of the router's losses are {balance} and {z}, expected 0 or more");
        }
        let sizes = [Some(inner), all.hidden_size, all.audio_dim, all.video_dim];
        if let Some(size) = sizes.into_iter().flatten().find(|&n| n == 0 || n > WIDEST) {
            bail!("a width of {size}: expected 1 to {WIDEST}");
        }
        Ok(Self {
            lanes,
            stack,
            inner,
            norm: all.layernorm_projector.unwrap_or(later),
            mixture,
            balance,
            z,
            sizes: if alone { all.hidden_size.map(|h| ([all.audio_dim, all.video_dim], h)) } else { None },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = r#""llama": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 20, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}"#;

    fn parse(keys: &str) -> Result<AvsrConfig> {
        AvsrConfig::from_json(&format!("{{{LLAMA}, {keys}}}"))
    }

    #[test]
    fn what_the_settings_mean() -> Result<()> {
        let plain = parse(r#""modality": "audio", "whisper": {}"#)?;
        assert_eq!((plain.task, plain.audio), (Task::Audio, Some(AudioConfig::Whisper(Value::Object(Map::new())))));
        assert_eq!((plain.beams, plain.max_new_tokens, plain.prompt.as_str()), (15, 32, "Transcribe speech to text."));
        assert!(plain.lora.is_none() && plain.projector.stack && plain.projector.mixture.is_none());
        assert_eq!(plain.projector.lanes.len(), 1);
        let nested = parse(
            r#""modality": "audiovisual", "wavlm": {}, "av_hubert": {}, "compression_mode": "avg-pooling",
               "downsample_ratio_audio": [4, 16], "downsample_ratio_video": [2, 5]"#,
        )?;
        assert_eq!((nested.projector.scales(), nested.projector.stack), (4, false));
        assert!(nested.projector.lanes.iter().all(|lane| lane.listed));
        let joint = parse(
            r#""modality": "audiovisual_avhubert", "single_projector_avhubert": true, "av_hubert": {},
               "compression_mode": "avg-pooling", "downsample_ratio_audiovisual": 2"#,
        )?;
        assert_eq!((joint.task, joint.projector.stack), (Task::AvHubert { fused: true }, true));
        let mixed = parse(
            r#""modality": "audiovisual", "whisper": {}, "av_hubert": {}, "smop_mode": "DEDR", "num_experts": 3"#,
        )?;
        assert!(!mixed.projector.stack && mixed.projector.norm && !plain.projector.norm);
        assert_eq!(mixed.projector.mixture, Some((Sharing::Dedr, 3, 2)));
        assert!(mixed.projector.smop().is_err());
        assert_eq!(mixed.projector.smop_of(8, |_| Some(6))?.inputs.len(), 2);
        Ok(())
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (keys, part) in [
            ("\"whisper\": {}", "modality"),
            ("\"modality\": \"smell\"", "smell"),
            ("\"modality\": \"audio\"", "whisper"),
            ("\"modality\": \"audio\", \"audio_encoder_name\": \"mfcc\", \"whisper\": {}", "mfcc"),
            ("\"modality\": \"video\"", "av_hubert"),
            ("\"modality\": \"audio\", \"whisper\": {}, \"downsample_ratio_audio\": 0", "downsample_ratio_audio"),
            ("\"modality\": \"audio\", \"whisper\": {}, \"downsample_ratio_audio\": []", "downsample_ratio_audio"),
            ("\"modality\": \"audio\", \"whisper\": {}, \"compression_mode\": \"zip\"", "zip"),
            ("\"modality\": \"audio\", \"whisper\": {}, \"smop_mode\": \"DEJR\"", "DEJR"),
            ("\"modality\": \"audio\", \"whisper\": {}, \"smop_mode\": \"JEJR\", \"top_k\": 9", "top_k"),
            ("\"modality\": \"audio\", \"whisper\": {}, \"sink_loss_factor\": -1", "sink_loss_factor"),
            ("\"modality\": \"audio\", \"whisper\": {}, \"reduction_lora\": 0", "reduction_lora"),
            ("\"modality\": \"audio\", \"whisper\": {}, \"reduction_lora\": 4, \"lora_type\": \"x\"", "lora_type"),
        ] {
            let error = parse(keys).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(part), "{keys}: {error}");
        }
        assert!(AvsrConfig::from_json("{\"modality\": \"audio\", \"whisper\": {}}").is_err());
    }
}
