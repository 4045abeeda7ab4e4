//! The families: one file each, which translates its `config.json` and says where its tensors stand.

mod aria;
mod deepseek_v2;
mod deepseek_v3;
mod granitemoe;
mod jetmoe;
mod keys;
mod llama;
mod mistral;
mod mixtral;
mod moe_llava;
mod olmoe;
mod phi;
mod phimoe;
mod qwen;
mod qwen2;
mod qwen2_moe;
mod qwen3_moe;
mod qwen3_vl;
mod stablelm;

use candle_core::{Error, Result, bail};
use moesaic_kernels::shown;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::config::{DecoderConfig, bare};

pub(crate) use moe_llava::language_model as moe_llava;

type Translate = fn(Map<String, Value>) -> Result<DecoderConfig>;

/// Every `model_type`, in the order in which messages list them.
const FAMILIES: [(&str, Translate); 17] = [
    ("llama", translated::<llama::Config>),
    ("mistral", translated::<mistral::Config>),
    ("qwen2", translated::<qwen2::Config>),
    ("stablelm", translated::<stablelm::Config>),
    ("phi", translated::<phi::Config>),
    ("mixtral", translated::<mixtral::Config>),
    ("qwen2_moe", translated::<qwen2_moe::Config>),
    ("qwen3_moe", translated::<qwen3_moe::Config>),
    ("olmoe", translated::<olmoe::Config>),
    ("deepseek_v2", translated::<deepseek_v2::Config>),
    ("deepseek_v3", translated::<deepseek_v3::Config>),
    ("phimoe", translated::<phimoe::Config>),
    ("granitemoe", translated::<granitemoe::Config>),
    ("jetmoe", translated::<jetmoe::Config>),
    ("aria_text", translated::<aria::Config>),
    ("qwen3_vl_text", translated::<qwen3_vl::Dense>),
    ("qwen3_vl_moe_text", translated::<qwen3_vl::Sparse>),
];

/// A family's `config.json`.
trait Family: DeserializeOwned {
    /// What the decoder is to do. `published` is the file itself, but for how weights are quantised.
    fn translate(self, published: Map<String, Value>) -> Result<DecoderConfig>;
}

fn translated<F: Family>(mut published: Map<String, Value>) -> Result<DecoderConfig> {
    // What is loaded are values, and what is saved as well.
    if let Some(how) = published.remove("quantization_config").filter(|how| !how.is_null()) {
        check_fp8(&how)?;
    }
    let config: F = serde_json::from_value(Value::Object(published.clone()))
        .map_err(|e| Error::msg(format!("a key is missing or has an impossible value: {e}")))?;
    config.translate(published)
}

/// Takes from a model's `config.json` what says that weights of its parts are quantised: what is saved with it are values.
pub(crate) fn unquantised(mut published: Map<String, Value>) -> Map<String, Value> {
    published.remove("quantization_config");
    for part in published.values_mut().filter_map(Value::as_object_mut) {
        part.remove("quantization_config");
    }
    published
}

/// Checks that weights are quantised in the one way that [`Checkpoint`](moesaic_kernels::checkpoint::Checkpoint) reads: FP8 with a scale for each 128 by
/// 128 values (DeepSeek-V3, and Qwen3's FP8 releases). The reference rounds activations to FP8 as well, which nothing here does: results are those of
/// the plain model with these weights.
fn check_fp8(how: &Value) -> Result<()> {
    let is = |key: &str, wanted: Value| how.get(key).is_none_or(|value| *value == wanted);
    let fp8 = how.get("quant_method").and_then(Value::as_str) == Some("fp8");
    if !fp8 || !is("fmt", "e4m3".into()) || how.get("weight_block_size") != Some(&json!([128, 128])) {
        let said = |key: &str| match how.get(key) {
            Some(Value::String(text)) => shown(text),
            Some(value) => shown(&value.to_string()),
            None => "not set".to_string(),
        };
        bail!(
            "quantization_config has quant_method {}, fmt {} and weight_block_size {}: of quantised weights only FP8 (\"fp8\", \"e4m3\", \
             [128, 128]) is supported, load the plain checkpoint",
            said("quant_method"),
            said("fmt"),
            said("weight_block_size")
        );
    }
    Ok(())
}

pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

/// Translates the `config.json` of a family that `model_type` names.
pub(super) fn translate(value: Value) -> Result<DecoderConfig> {
    let Value::Object(map) = value else { bail!("this is not a configuration: expected a JSON object") };
    let supported = || names().collect::<Vec<_>>().join(", ");
    let Some(model_type) = map.get("model_type").and_then(Value::as_str).map(str::to_string) else {
        bail!("there is no model_type; supported are {}", supported());
    };
    let Some((_, translate)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
        let shown: String = model_type.chars().take(60).collect();
        bail!("model_type {shown:?} is not supported; supported are {}", supported());
    };
    // An extension of this workspace; see `config/routing.rs`.
    let router = map.get("router").cloned();
    let config = translate(map).and_then(|config| match &router {
        Some(router) => config.with_router(router),
        None => Ok(config),
    });
    config.map_err(|e| Error::msg(format!("{model_type}: {}", bare(&e))))
}

impl DecoderConfig {
    /// Tensors that published checkpoints of these families hold and no forward pass needs.
    pub(crate) fn ignorable(&self, name: &str) -> bool {
        // Buffers that old releases saved.
        if name.ends_with(".rotary_emb.inv_freq") {
            return true;
        }
        // A copy of the embedding.
        if self.tie_word_embeddings && name.strip_prefix(self.names.head) == Some(".weight") {
            return true;
        }
        // Layers that predict further tokens in training (DeepSeek-V3's multi-token prediction) follow the others.
        let further = self.published.get("num_nextn_predict_layers").and_then(Value::as_u64).unwrap_or(0);
        let layer = name.strip_prefix(self.names.layers).and_then(|rest| rest.strip_prefix('.'));
        let layer = layer.and_then(|rest| rest.split('.').next()?.parse::<u64>().ok());
        let first = self.layers.len() as u64;
        layer.is_some_and(|i| (first..first.saturating_add(further)).contains(&i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_is_said_to_be_quantised_any_more() {
        let how = json!({ "quant_method": "fp8" });
        let published =
            json!({ "a": 1, "quantization_config": how, "text_config": { "b": 2, "quantization_config": how } });
        let Value::Object(published) = published else { return };
        assert_eq!(Value::Object(unquantised(published)), json!({ "a": 1, "text_config": { "b": 2 } }));
    }
}
