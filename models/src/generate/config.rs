//! `generation_config.json`: how the makers of a model generate with it.

use std::path::Path;

use candle_core::{Error, Result};
use serde::{Deserialize, Deserializer};

use super::options::{BeamOptions, EarlyStopping, Options};

/// The settings of `generation_config.json` that are known here; a file that is not there is an empty one.
///
/// A program turns them into [`Options`] and changes what its user asks for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct GenerationConfig {
    /// Tokens that end an answer; one id or a list in the file.
    #[serde(default, rename = "eos_token_id", deserialize_with = "ids")]
    pub eos_token_ids: Vec<u32>,
    /// Tokens are drawn; otherwise the likeliest are taken.
    pub do_sample: Option<bool>,
    /// See [`Options::temperature`].
    pub temperature: Option<f64>,
    /// See [`Options::top_k`].
    pub top_k: Option<usize>,
    /// See [`Options::top_p`].
    pub top_p: Option<f64>,
    /// See [`Options::min_p`].
    pub min_p: Option<f64>,
    /// See [`Options::repetition_penalty`].
    pub repetition_penalty: Option<f64>,
    /// See [`Options::max_new_tokens`].
    pub max_new_tokens: Option<usize>,
    /// See [`BeamOptions::beams`].
    pub num_beams: Option<usize>,
    /// See [`BeamOptions::length_penalty`].
    pub length_penalty: Option<f64>,
    /// See [`BeamOptions::early_stopping`].
    #[serde(default, deserialize_with = "early_stopping")]
    pub early_stopping: Option<EarlyStopping>,
}

/// The longest file that is read, in bytes.
const LONGEST: u64 = 1 << 20;

impl GenerationConfig {
    /// Reads `generation_config.json` of a model folder; empty where there is none.
    ///
    /// # Errors
    /// The file cannot be read or a setting has a wrong type: the message names file and setting.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("generation_config.json");
        let name = |e: &dyn std::fmt::Display| Error::Msg(format!("{}: {e}", path.display()));
        let size = match std::fs::metadata(&path) {
            Ok(file) => file.len(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(name(&e)),
        };
        if size > LONGEST {
            return Err(name(&format!("has {size} bytes, which no configuration has")));
        }
        Self::from_json(&std::fs::read_to_string(&path).map_err(|e| name(&e))?).map_err(|e| name(&e))
    }

    /// Reads the text of a `generation_config.json`.
    pub fn from_json(json: &str) -> Result<Self> {
        serde_json::from_str(json).map_err(|e| Error::Msg(format!("{e}; correct the file or remove it")))
    }

    /// The settings as options; what is not set is as in `transformers` 4.57.6.
    pub fn options(&self) -> Options {
        let base = Options::default();
        let sample = self.do_sample.unwrap_or(false);
        Options {
            max_new_tokens: self.max_new_tokens.unwrap_or(base.max_new_tokens),
            temperature: if sample { self.temperature.unwrap_or(1.0) } else { 0.0 },
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            eos: self.eos_token_ids.clone(),
            ..base
        }
    }

    /// The settings as options of a beam search.
    pub fn beam_options(&self) -> BeamOptions {
        let base = BeamOptions::default();
        BeamOptions {
            beams: self.num_beams.filter(|n| *n > 1).unwrap_or(base.beams),
            length_penalty: self.length_penalty.unwrap_or(base.length_penalty),
            early_stopping: self.early_stopping.unwrap_or_default(),
            max_new_tokens: self.max_new_tokens.unwrap_or(base.max_new_tokens),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            eos: self.eos_token_ids.clone(),
            ..base
        }
    }
}

/// One id, a list of ids, or null.
fn ids<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "eos_token_id is neither a token id nor a list of them")]
    enum Ids {
        One(u32),
        Many(Vec<u32>),
        None(()),
    }
    Ok(match Ids::deserialize(deserializer)? {
        Ids::One(id) => vec![id],
        Ids::Many(ids) => ids,
        Ids::None(()) => Vec::new(),
    })
}

/// `true`, `false`, `"never"` or null.
fn early_stopping<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<EarlyStopping>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "early_stopping is neither true, false nor \"never\"")]
    enum Early {
        Flag(bool),
        Word(Never),
        None(()),
    }
    #[derive(Deserialize)]
    enum Never {
        #[serde(rename = "never")]
        Never,
    }
    Ok(match Early::deserialize(deserializer)? {
        Early::Flag(true) => Some(EarlyStopping::FirstFinished),
        Early::Flag(false) => Some(EarlyStopping::Heuristic),
        Early::Word(Never::Never) => Some(EarlyStopping::Never),
        Early::None(()) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_files_are_understood() {
        let json = r#"{"_from_model_config": true, "bos_token_id": 128000, "do_sample": true, "eos_token_id": [128001, 128009],
                       "temperature": 0.6, "top_p": 0.9, "transformers_version": "4.40.0", "min_p": null}"#;
        let config = GenerationConfig::from_json(json).unwrap();
        let options = config.options();
        assert_eq!((options.temperature, options.top_p, options.top_k, options.min_p), (0.6, 0.9, 50, 0.0));
        assert_eq!(options.eos, [128001, 128009]);
        let greedy = GenerationConfig::from_json(r#"{"eos_token_id": 2, "temperature": 0.6, "top_k": 20}"#).unwrap();
        assert_eq!((greedy.options().temperature, greedy.options().top_k), (0.0, 20));
        assert_eq!(greedy.options().eos, [2]);
        let beams = r#"{"num_beams": 3, "early_stopping": "never", "length_penalty": 2, "eos_token_id": null}"#;
        let beams = GenerationConfig::from_json(beams).unwrap().beam_options();
        assert_eq!((beams.beams, beams.early_stopping, beams.length_penalty), (3, EarlyStopping::Never, 2.0));
    }

    #[test]
    fn wrong_types_name_the_setting_or_its_line() {
        for (json, part) in [
            ("{", "EOF"),
            ("[]", "invalid"),
            (r#"{"eos_token_id": "</s>"}"#, "eos_token_id"),
            (r#"{"eos_token_id": -1}"#, "eos_token_id"),
            (r#"{"early_stopping": "always"}"#, "early_stopping"),
            (r#"{"temperature": "hot"}"#, "\"hot\""),
            (r#"{"top_k": -3}"#, "-3"),
        ] {
            let error = GenerationConfig::from_json(json).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
    }
}
