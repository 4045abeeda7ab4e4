//! `adapter_config.json`: which maps an adapter changes, how wide and how strong, by the rules of
//! [PEFT 0.21](https://github.com/huggingface/peft/tree/v0.21.0/src/peft): `check_target_module_exists` in
//! `tuners/tuners_utils.py`, `get_pattern_key` in `utils/other.py`.

use candle_core::{Error, Result};
use fancy_regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// More is no low rank; it also bounds what a config can make a trainer allocate.
const MOST_RANK: usize = 1 << 14;
/// Steps that a pattern may go back; patterns come from strangers.
const BACKTRACKS: usize = 100_000;

/// Names or a pattern.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Whole names, or their last parts: `q_proj` is every map whose name ends in `.q_proj`.
    Names(Vec<String>),
    /// A regular expression (Python's syntax) for whole names.
    Pattern(String),
    /// Every map but the output head: `"all-linear"`.
    AllLinear,
}

/// The configuration of an adapter, under PEFT's names.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// Rank of the maps that `rank_pattern` does not name.
    pub r: usize,
    /// `lora_alpha / r` is the scale of a change, with `use_rslora` `lora_alpha / sqrt(r)`.
    pub lora_alpha: f64,
    /// See `lora_alpha`.
    pub use_rslora: bool,
    /// Share of inputs left out in training.
    pub lora_dropout: f64,
    /// The maps that are changed.
    pub target_modules: Targets,
    /// Those of them that are not.
    pub exclude_modules: Targets,
    /// Stacked expert tensors that are changed, as `mlp.experts.gate_up_proj`.
    pub target_parameters: Vec<String>,
    /// If not empty, only these layers, where targets are names.
    pub layers_to_transform: Vec<usize>,
    /// What layers are numbered under; empty for the first number of a name.
    pub layers_pattern: Vec<String>,
    /// Ranks of maps whose name ends in what a pattern matches; the first pattern counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// `lora_alpha` of such maps.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Modules that were trained whole beside the maps, by their last parts; the adapter holds their tensors.
    pub modules_to_save: Vec<String>,
    /// The model that the adapter is for; kept, not read.
    pub base_model: Option<String>,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            use_rslora: false,
            lora_dropout: 0.0,
            target_modules: Targets::Names(Vec::new()),
            exclude_modules: Targets::Names(Vec::new()),
            target_parameters: Vec::new(),
            layers_to_transform: Vec::new(),
            layers_pattern: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            base_model: None,
        }
    }
}

/// One or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Some1<T> {
    One(T),
    Several(Vec<T>),
}

impl<T> From<Some1<T>> for Vec<T> {
    fn from(some: Some1<T>) -> Self {
        match some {
            Some1::One(one) => vec![one],
            Some1::Several(several) => several,
        }
    }
}

/// A JSON object in the order of the file: the first pattern that matches counts.
#[derive(Debug)]
struct Ordered<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
            type Value = Ordered<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("patterns with a number each")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    all.push(entry);
                }
                Ok(Ordered(all))
            }
        }
        deserializer.deserialize_map(Visitor(std::marker::PhantomData))
    }
}

/// The file's keys that are read; `null` counts as left out.
#[derive(Deserialize)]
struct File {
    peft_type: Option<String>,
    base_model_name_or_path: Option<String>,
    r: Option<usize>,
    lora_alpha: Option<f64>,
    lora_dropout: Option<f64>,
    use_rslora: Option<bool>,
    bias: Option<String>,
    target_modules: Option<Value>,
    exclude_modules: Option<Value>,
    target_parameters: Option<Vec<String>>,
    modules_to_save: Option<Vec<String>>,
    layers_to_transform: Option<Some1<usize>>,
    layers_pattern: Option<Some1<String>>,
    rank_pattern: Option<Ordered<usize>>,
    alpha_pattern: Option<Ordered<f64>>,
    init_lora_weights: Option<Value>,
}

/// The keys that are written.
#[derive(Serialize)]
struct Written<'a> {
    alpha_pattern: InOrder<'a, f64>,
    base_model_name_or_path: Option<&'a str>,
    bias: &'static str,
    exclude_modules: Value,
    fan_in_fan_out: bool,
    inference_mode: bool,
    init_lora_weights: bool,
    layers_pattern: Value,
    layers_to_transform: Value,
    lora_alpha: Value,
    lora_dropout: f64,
    modules_to_save: Value,
    peft_type: &'static str,
    r: usize,
    rank_pattern: InOrder<'a, usize>,
    target_modules: Value,
    target_parameters: Value,
    task_type: &'static str,
    use_dora: bool,
    use_rslora: bool,
}

/// Patterns as a JSON object in their own order.
struct InOrder<'a, T>(&'a [(String, T)]);

impl<T: Serialize> Serialize for InOrder<'_, T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(pattern, value)| (pattern, value)))
    }
}

/// What an adapter may ask for beyond LoRA, and what that is: each changes the equations or the weights.
const REFUSED: &[(&str, &str)] = &[
    ("use_dora", "it is a DoRA (weights split into size and direction), which is not supported"),
    ("fan_in_fan_out", "its base model stores weights transposed (Conv1D), which no supported model does"),
    ("lora_bias", "its maps have biases, which is not supported"),
    ("layer_replication", "it repeats layers of its base model, which is not supported"),
    ("trainable_token_indices", "it trains embeddings of single tokens, which is not supported"),
    ("alora_invocation_tokens", "it is switched on by tokens (aLoRA), which is not supported"),
    ("use_qalora", "it is a QA-LoRA, which is not supported"),
    ("use_bdlora", "it is a BD-LoRA, which is not supported"),
    ("arrow_config", "it routes between adapters (Arrow), which is not supported"),
    ("kasa_config", "it is a KaSA, which is not supported"),
    ("velora_config", "it is a VeLoRA, which is not supported"),
    ("monteclora_config", "it is a MonteCLoRA, which is not supported"),
];

/// Initialisations that change the base model as well.
const CHANGES_BASE: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

impl AdapterConfig {
    /// Reads the text of an `adapter_config.json`. Keys that say nothing about the result are ignored.
    ///
    /// # Errors
    /// Broken JSON, a number out of range, a pattern that is none, or a kind of adapter that is not supported.
    pub fn from_json(text: &str) -> Result<Self> {
        let wrong = |e: serde_json::Error| {
            let text: String = e.to_string().chars().take(200).collect();
            Error::Msg(text)
        };
        let all: Map<String, Value> = serde_json::from_str(text).map_err(wrong)?;
        let file: File = serde_json::from_str(text).map_err(wrong)?;
        match file.peft_type.as_deref() {
            Some("LORA") => {}
            Some(other) => refuse(format!("peft_type {other:?} is not supported, expected \"LORA\""))?,
            None => refuse("peft_type is missing, expected \"LORA\"".into())?,
        }
        let set = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        };
        for (key, why) in REFUSED {
            if all.get(*key).is_some_and(set) {
                refuse(format!("{key} is set: {why}"))?;
            }
        }
        if let Some(Value::String(init)) = &file.init_lora_weights
            && CHANGES_BASE.iter().any(|name| init.starts_with(name))
        {
            refuse(format!(
                "init_lora_weights {init:?} changes the base model too; convert the adapter to a plain LoRA when saving it \
                 (path_initial_model_for_weight_conversion)"
            ))?;
        }
        if file.bias.as_deref().is_some_and(|bias| bias != "none") {
            refuse(format!(
                "bias {:?} brings biases of the base model, which is not supported",
                file.bias.unwrap_or_default()
            ))?;
        }
        let default = Self::default();
        let config = Self {
            r: file.r.unwrap_or(default.r),
            lora_alpha: file.lora_alpha.unwrap_or(default.lora_alpha),
            use_rslora: file.use_rslora.unwrap_or(false),
            lora_dropout: file.lora_dropout.unwrap_or(0.0),
            target_modules: Targets::from_value("target_modules", file.target_modules)?,
            exclude_modules: Targets::from_value("exclude_modules", file.exclude_modules)?,
            target_parameters: file.target_parameters.unwrap_or_default(),
            modules_to_save: file.modules_to_save.unwrap_or_default(),
            layers_to_transform: file.layers_to_transform.map_or(Vec::new(), Into::into),
            layers_pattern: file.layers_pattern.map_or(Vec::new(), Into::into),
            rank_pattern: file.rank_pattern.map_or(Vec::new(), |p| p.0),
            alpha_pattern: file.alpha_pattern.map_or(Vec::new(), |p| p.0),
            base_model: file.base_model_name_or_path,
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks every number and pattern.
    ///
    /// # Errors
    /// What is out of range or no pattern.
    pub fn validate(&self) -> Result<()> {
        for (name, r) in self.rank_pattern.iter().map(|(name, r)| (name.as_str(), *r)).chain([("r", self.r)]) {
            if r == 0 || r > MOST_RANK {
                refuse(format!("{name}: a rank of {r}, expected 1 to {MOST_RANK}"))?;
            }
        }
        let alphas =
            self.alpha_pattern.iter().map(|(name, a)| (name.as_str(), *a)).chain([("lora_alpha", self.lora_alpha)]);
        for (name, alpha) in alphas {
            if !alpha.is_finite() || alpha.abs() > 1e9 {
                refuse(format!("{name}: {alpha} is out of range"))?;
            }
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            refuse(format!("lora_dropout {} is out of range, expected at least 0 and below 1", self.lora_dropout))?;
        }
        if self.target_modules == Targets::Names(Vec::new()) && self.target_parameters.is_empty() {
            refuse("neither target_modules nor target_parameters name anything".into())?;
        }
        self.matcher().map(|_| ())
    }

    /// The text of an `adapter_config.json` that PEFT reads.
    pub fn to_json(&self) -> Result<String> {
        let targets = |targets: &Targets| match targets {
            Targets::Names(names) if names.is_empty() => Value::Null,
            Targets::Names(names) => json!(names),
            Targets::Pattern(pattern) => json!(pattern),
            Targets::AllLinear => json!("all-linear"),
        };
        // PEFT writes whole numbers, and its type says so.
        let alpha = if self.lora_alpha.fract() == 0.0 { json!(self.lora_alpha as i64) } else { json!(self.lora_alpha) };
        let list = |empty: bool, value: Value| if empty { Value::Null } else { value };
        let written = Written {
            alpha_pattern: InOrder(&self.alpha_pattern),
            base_model_name_or_path: self.base_model.as_deref(),
            bias: "none",
            exclude_modules: targets(&self.exclude_modules),
            fan_in_fan_out: false,
            inference_mode: true,
            init_lora_weights: true,
            layers_pattern: list(self.layers_pattern.is_empty(), json!(self.layers_pattern)),
            layers_to_transform: list(self.layers_to_transform.is_empty(), json!(self.layers_to_transform)),
            lora_alpha: alpha,
            lora_dropout: self.lora_dropout,
            modules_to_save: list(self.modules_to_save.is_empty(), json!(self.modules_to_save)),
            peft_type: "LORA",
            r: self.r,
            rank_pattern: InOrder(&self.rank_pattern),
            target_modules: targets(&self.target_modules),
            target_parameters: list(self.target_parameters.is_empty(), json!(self.target_parameters)),
            task_type: "CAUSAL_LM",
            use_dora: false,
            use_rslora: self.use_rslora,
        };
        Ok(serde_json::to_string_pretty(&written).map_err(|e| Error::Msg(e.to_string()))? + "\n")
    }

    /// Whether targets are named, with patterns made ready.
    pub(super) fn matcher(&self) -> Result<Matcher<'_>> {
        let pattern = |targets: &Targets| match targets {
            Targets::Pattern(pattern) => Ok(Some(regex(&format!(r"\A(?:{pattern})\z"), pattern)?)),
            _ => Ok::<_, Error>(None),
        };
        let layers = match self.layers_pattern.as_slice() {
            _ if self.layers_to_transform.is_empty() => Vec::new(),
            [] => vec![regex(r"\A.*?\.[^.]*\.([0-9]+)\.", "")?],
            names => {
                let layer = |name: &String| regex(&format!(r"\A(?:|.*?\.)(?:{name})\.([0-9]+)\."), name);
                names.iter().map(layer).collect::<Result<_>>()?
            }
        };
        // Compiled here so that a broken one is found before anything is read.
        let ending = |name: &str| regex(&format!(r"\A(?:.*\.)?(?:{name})\z"), name);
        Ok(Matcher {
            config: self,
            target: pattern(&self.target_modules)?,
            exclude: pattern(&self.exclude_modules)?,
            layers,
            ranks: self.rank_pattern.iter().map(|(n, r)| Ok((ending(n)?, *r))).collect::<Result<_>>()?,
            alphas: self.alpha_pattern.iter().map(|(n, a)| Ok((ending(n)?, *a))).collect::<Result<_>>()?,
        })
    }

    /// The stacked tensor of a module that is a target.
    pub(super) fn stacked(&self, module: &str) -> Option<&str> {
        self.target_parameters.iter().find_map(|target| {
            let (owner, parameter) = target.rsplit_once('.')?;
            ends_in(module, owner).then_some(parameter)
        })
    }
}

impl Targets {
    fn from_value(key: &str, value: Option<Value>) -> Result<Self> {
        Ok(match value {
            None | Some(Value::Null) => Self::Names(Vec::new()),
            Some(Value::String(all)) if all == "all-linear" => Self::AllLinear,
            Some(Value::String(pattern)) => Self::Pattern(pattern),
            Some(list) => match serde_json::from_value(list) {
                Ok(names) => Self::Names(names),
                Err(_) => return refuse(format!("{key}: expected a list of names, or a pattern")),
            },
        })
    }
}

/// The targets of a config, made ready to match names.
pub(super) struct Matcher<'a> {
    config: &'a AdapterConfig,
    target: Option<Regex>,
    exclude: Option<Regex>,
    layers: Vec<Regex>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

impl Matcher<'_> {
    /// Whether a map is to be changed; `head` if it is the output head.
    pub(super) fn module(&self, module: &str, head: bool) -> Result<bool> {
        let excluded = match (&self.config.exclude_modules, &self.exclude) {
            (Targets::Names(names), _) => names.iter().any(|name| ends_in(module, name)),
            (_, Some(pattern)) => matches(pattern, module)?,
            _ => false,
        };
        if excluded {
            return Ok(false);
        }
        match (&self.config.target_modules, &self.target) {
            (Targets::AllLinear, _) => Ok(!head),
            (Targets::Pattern(_), Some(pattern)) => matches(pattern, module),
            (Targets::Names(names), _) if names.iter().any(|name| name == module) => Ok(true),
            (Targets::Names(names), _) => Ok(names.iter().any(|name| ends_in(module, name)) && self.layer(module)?),
            _ => Ok(false),
        }
    }

    /// Whether a map's layer is among those to be changed.
    fn layer(&self, module: &str) -> Result<bool> {
        if self.config.layers_to_transform.is_empty() {
            return Ok(true);
        }
        for pattern in &self.layers {
            let found = pattern.captures(module).map_err(|e| Error::Msg(format!("layers_pattern: {e}")))?;
            if let Some(number) = found.and_then(|c| c.get(1).map(|m| m.as_str().to_string())) {
                return Ok(number.parse().is_ok_and(|layer| self.config.layers_to_transform.contains(&layer)));
            }
        }
        Ok(false)
    }

    /// Whether a stacked tensor is to be changed.
    pub(super) fn parameter(&self, name: &str) -> bool {
        self.config.target_parameters.iter().any(|target| ends_in(name, target))
    }

    pub(super) fn rank(&self, module: &str) -> Result<usize> {
        for (pattern, rank) in &self.ranks {
            if matches(pattern, module)? {
                return Ok(*rank);
            }
        }
        Ok(self.config.r)
    }

    pub(super) fn scale(&self, module: &str) -> Result<f64> {
        let mut alpha = self.config.lora_alpha;
        for (pattern, found) in &self.alphas {
            if matches(pattern, module)? {
                alpha = *found;
                break;
            }
        }
        let rank = self.rank(module)? as f64;
        Ok(alpha / if self.config.use_rslora { rank.sqrt() } else { rank })
    }
}

/// Whether `name` is `end`, or its last parts are.
fn ends_in(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn regex(pattern: &str, shown: &str) -> Result<Regex> {
    RegexBuilder::new(pattern).backtrack_limit(BACKTRACKS).delegate_size_limit(1 << 20).build().map_err(|e| {
        let shown: String = shown.chars().take(100).collect();
        Error::Msg(format!("pattern {shown:?}: {e}"))
    })
}

fn matches(pattern: &Regex, name: &str) -> Result<bool> {
    pattern.is_match(name).map_err(|e| Error::Msg(format!("a pattern does too much work on {name}: {e}")))
}

fn refuse<T>(message: String) -> Result<T> {
    Err(Error::Msg(message))
}

#[cfg(test)]
mod tests;
