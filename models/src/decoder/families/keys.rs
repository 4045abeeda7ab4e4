//! Keys that the families share, and their translation.

use candle_core::{Result, bail};
use moesaic_kernels::rotary::RotaryStyle;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::decoder::config::{
    AttentionConfig, AuxLoss, DecoderConfig, GroupedConfig, LayerConfig, Multipliers, NormConfig, NormKind, QkNorm,
};
use crate::decoder::names::Names;
use crate::decoder::rope::{RopeConfig, RopeScaling, yarn_scale};

/// Layers above which a config is taken for a mistake, before lists of them are made.
const MOST_LAYERS: usize = 1 << 14;

/// The keys that all families have.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Common {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub max_position_embeddings: usize,
    pub num_attention_heads: Option<usize>,
    pub num_key_value_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub hidden_act: Option<String>,
    pub initializer_range: Option<f64>,
    pub tie_word_embeddings: Option<bool>,
    pub rope_theta: Option<f64>,
    /// Of releases up to 4.
    pub rope_scaling: Option<Map<String, Value>>,
    /// Of releases from 5 on: base, kind and values in one.
    pub rope_parameters: Option<Map<String, Value>>,
    pub partial_rotary_factor: Option<f64>,
    pub original_max_position_embeddings: Option<usize>,
    pub sliding_window: Option<usize>,
    /// `full_attention` or `sliding_attention` for each layer.
    pub layer_types: Option<Vec<String>>,
    bos_token_id: Option<Ids>,
    eos_token_id: Option<Ids>,
    pad_token_id: Option<Ids>,
}

/// One id or several; negative ones stand for none.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Ids {
    One(i64),
    Many(Vec<i64>),
}

impl Ids {
    fn all(ids: &Option<Self>) -> Vec<u32> {
        let ids = match ids {
            None => &[][..],
            Some(Self::One(id)) => std::slice::from_ref(id),
            Some(Self::Many(ids)) => ids,
        };
        ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect()
    }
}

pub(super) fn yes() -> bool {
    true
}

impl Common {
    /// The decoder that the shared keys describe: RMS norms, rotary positions over whole heads, all layers dense and
    /// without a window, no multipliers. Families change what is different.
    pub(super) fn decoder(
        &self,
        model_type: &str,
        attention: AttentionConfig,
        eps: f64,
        published: Map<String, Value>,
    ) -> Result<DecoderConfig> {
        if self.num_hidden_layers > MOST_LAYERS {
            bail!("num_hidden_layers is {}, expected 1 to {MOST_LAYERS}", self.num_hidden_layers);
        }
        let dims = match attention {
            AttentionConfig::Grouped(a) => a.head_dim,
            AttentionConfig::Latent(a) => a.rope_dim,
            AttentionConfig::Mixture(a) => a.head_dim,
        };
        Ok(DecoderConfig {
            model_type: model_type.to_string(),
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            layers: vec![LayerConfig { sparse: false, window: None, experts: None }; self.num_hidden_layers],
            attention,
            norm: NormConfig { kind: NormKind::Rms, eps },
            parallel: false,
            dense: None,
            sparse: None,
            rope: Some(self.rope(dims, RotaryStyle::Half)?),
            multipliers: Multipliers::default(),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            head_bias: false,
            aux_loss: AuxLoss::None,
            max_positions: self.max_position_embeddings,
            initializer_range: self.initializer_range.unwrap_or(0.02),
            bos_token_id: Ids::all(&self.bos_token_id).first().copied(),
            eos_token_ids: Ids::all(&self.eos_token_id),
            pad_token_id: Ids::all(&self.pad_token_id).first().copied(),
            names: Names::LLAMA,
            published,
        })
    }

    /// Grouped attention of heads that are `head_dim` wide, or `hidden_size / num_attention_heads`.
    pub(super) fn grouped(&self, head_dim: Option<usize>) -> Result<GroupedConfig> {
        let Some(heads) = self.num_attention_heads else { bail!("num_attention_heads is missing") };
        let head_dim = match head_dim {
            Some(dim) => dim,
            None if heads > 0 && self.hidden_size.is_multiple_of(heads) => self.hidden_size / heads,
            None => bail!("hidden_size {} is not a multiple of num_attention_heads {heads}", self.hidden_size),
        };
        Ok(GroupedConfig {
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim,
            qkv_bias: false,
            output_bias: false,
            qk_norm: QkNorm::None,
            clip: None,
            scale: 1.0 / (head_dim as f64).sqrt(),
        })
    }

    /// The activation, `silu` if the config names none.
    pub(super) fn activation(&self) -> Result<moesaic_kernels::Activation> {
        moesaic_kernels::Activation::from_name(self.hidden_act.as_deref().unwrap_or("silu"))
    }

    /// Windows by layer: as `layer_types` says, or `sliding_window` where `default` says so for the layer.
    pub(super) fn windows(&self, layers: &mut [LayerConfig], default: impl Fn(usize) -> bool) -> Result<()> {
        if let Some(types) = &self.layer_types
            && types.len() != layers.len()
        {
            bail!("layer_types has {} entries for {} layers", types.len(), layers.len());
        }
        for (i, layer) in layers.iter_mut().enumerate() {
            let sliding = match self.layer_types.as_ref().and_then(|t| t.get(i)).map(String::as_str) {
                Some("full_attention") => false,
                Some("sliding_attention") => true,
                Some(other) => bail!("layer {i} has attention of type {other:?}, which is not supported"),
                None => default(i) && self.sliding_window.is_some(),
            };
            if sliding && self.sliding_window.is_none() {
                bail!("layer {i} is to slide, but sliding_window is not set");
            }
            layer.window = if sliding { self.sliding_window } else { None };
        }
        Ok(())
    }

    /// The keys of rotary positions, wherever they stand.
    fn rope_keys(&self) -> Option<&Map<String, Value>> {
        self.rope_parameters.as_ref().or(self.rope_scaling.as_ref())
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.rope_keys().and_then(|keys| keys.get(key)) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => bail!("{key} of rope_scaling is {value}, expected a number"),
            },
        }
    }

    fn required(&self, key: &str) -> Result<f64> {
        match self.number(key)? {
            Some(number) => Ok(number),
            None => bail!("rope_scaling lacks {key}"),
        }
    }

    fn numbers(&self, key: &str) -> Result<Vec<f64>> {
        let list = self.rope_keys().and_then(|keys| keys.get(key)).and_then(Value::as_array);
        let numbers = list.and_then(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        match numbers {
            Some(numbers) => Ok(numbers),
            None => bail!("{key} of rope_scaling is not a list of numbers"),
        }
    }

    fn length(&self, key: &str) -> Result<Option<usize>> {
        match self.number(key)? {
            None => Ok(None),
            Some(n) if (1.0..=1e12).contains(&n) => Ok(Some(n as usize)),
            Some(n) => bail!("{key} of rope_scaling is {n}, expected a number of tokens"),
        }
    }

    /// Rotary positions over the `partial_rotary_factor` part of `dims` dimensions.
    pub(super) fn rope(&self, dims: usize, style: RotaryStyle) -> Result<RopeConfig> {
        let theta = match self.number("rope_theta")? {
            Some(theta) => theta,
            None => self.rope_theta.unwrap_or(10000.0),
        };
        let part = match self.number("partial_rotary_factor")? {
            Some(part) => part,
            None => self.partial_rotary_factor.unwrap_or(1.0),
        };
        if !(part > 0.0 && part <= 1.0) {
            bail!("partial_rotary_factor is {part}, expected a number above 0 and up to 1");
        }
        let dims = (dims as f64 * part) as usize;
        Ok(RopeConfig { theta, dims, style, scaling: self.scaling()?, sections: None })
    }

    fn scaling(&self) -> Result<RopeScaling> {
        let Some(keys) = self.rope_keys() else { return Ok(RopeScaling::None) };
        let text = |key: &str| keys.get(key).and_then(Value::as_str);
        let original = self.length("original_max_position_embeddings")?;
        Ok(match text("rope_type").or(text("type")).unwrap_or("default") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: self.required("factor")? },
            "dynamic" => {
                RopeScaling::Dynamic { factor: self.required("factor")?, original: self.max_position_embeddings }
            }
            "llama3" => {
                let Some(original) = original else { bail!("rope_scaling lacks original_max_position_embeddings") };
                RopeScaling::Llama3 {
                    factor: self.required("factor")?,
                    low: self.required("low_freq_factor")?,
                    high: self.required("high_freq_factor")?,
                    original,
                }
            }
            "yarn" => {
                let factor = self.required("factor")?;
                let set = |value: Option<f64>| value.filter(|&v| v != 0.0);
                let attention = match (self.number("attention_factor")?, set(self.number("mscale")?)) {
                    (Some(attention), _) => attention,
                    (None, Some(mscale)) => match set(self.number("mscale_all_dim")?) {
                        Some(all) => yarn_scale(factor, mscale) / yarn_scale(factor, all),
                        None => yarn_scale(factor, 1.0),
                    },
                    (None, None) => yarn_scale(factor, 1.0),
                };
                RopeScaling::Yarn {
                    factor,
                    beta_fast: set(self.number("beta_fast")?).unwrap_or(32.0),
                    beta_slow: set(self.number("beta_slow")?).unwrap_or(1.0),
                    original: original.unwrap_or(self.max_position_embeddings),
                    attention,
                    truncate: keys.get("truncate").and_then(Value::as_bool).unwrap_or(true),
                }
            }
            "longrope" | "su" => {
                let original = self.original_max_position_embeddings.or(original);
                let (original, factor) = match original {
                    Some(n) => (n, self.max_position_embeddings as f64 / n.max(1) as f64),
                    None => (self.max_position_embeddings, self.required("factor")?),
                };
                let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
                let usual = self.number("attention_factor")?.unwrap_or(usual);
                RopeScaling::LongRope {
                    short: self.numbers("short_factor")?,
                    long: self.numbers("long_factor")?,
                    short_scale: self.number("short_mscale")?.unwrap_or(usual),
                    long_scale: self.number("long_mscale")?.unwrap_or(usual),
                    original,
                }
            }
            other => {
                let shown: String = other.chars().take(60).collect();
                bail!(
                    "rope_scaling of type {shown:?} is not supported; supported are default, linear, dynamic, llama3, \
                     yarn and longrope"
                )
            }
        })
    }

    /// `mrope_section`, for models with three streams of positions.
    pub(super) fn sections(&self, default: [usize; 3]) -> Result<[usize; 3]> {
        let Some(value) = self.rope_keys().and_then(|keys| keys.get("mrope_section")) else { return Ok(default) };
        let numbers: Option<Vec<usize>> =
            value.as_array().and_then(|list| list.iter().map(|n| n.as_u64().map(|n| n as usize)).collect());
        match numbers.and_then(|n| n.try_into().ok()) {
            Some(sections) => Ok(sections),
            None => bail!("mrope_section of rope_scaling is {value}, expected three numbers"),
        }
    }

    /// What yarn multiplies the scale of attention scores with, where `mscale_all_dim` is set.
    pub(super) fn latent_scale(&self) -> Result<f64> {
        match self.number("mscale_all_dim")? {
            Some(all) if all != 0.0 => Ok(yarn_scale(self.required("factor")?, all).powi(2)),
            _ => Ok(1.0),
        }
    }
}
