//! The metadata of a GGUF file for a `config.json`: the other way round from `config.rs`.

use std::f64::consts::PI;

use candle_core::Result;
use serde_json::{Map, Value as Json};

use super::config::yarn_attention;
use super::parts::Family;
use super::value::Value;
use crate::checkpoint::text::{refuse, shown};

/// Keys and values, in the order in which they are written.
pub(super) type Pairs = Vec<(String, Value)>;

pub(super) struct Exported {
    pub metadata: Pairs,
    /// Small tensors that part of the configuration is written as: name and values.
    pub tensors: Vec<(&'static str, Vec<f32>)>,
}

pub(super) fn metadata(family: &Family, config: &Map<String, Json>) -> Result<Exported> {
    let mut out = Out { architecture: family.architecture, config, pairs: Vec::new() };
    out.pairs.push(("general.architecture".into(), Value::Text(family.architecture.into())));
    out.pairs.push(("general.type".into(), Value::Text("model".into())));
    out.sizes(family)?;
    let tensors = out.rope(family)?;
    out.experts(family)?;
    out.numbers(&[
        ("layer_norm_eps", "attention.layer_norm_epsilon"),
        ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("attention_multiplier", "attention.scale"),
        ("logits_scaling", "logit_scale"),
    ])?;
    Ok(Exported { metadata: out.pairs, tensors })
}

struct Out<'a> {
    architecture: &'static str,
    config: &'a Map<String, Json>,
    pairs: Pairs,
}

impl Out<'_> {
    fn push(&mut self, key: &str, value: Value) {
        self.pairs.push((format!("{}.{key}", self.architecture), value));
    }

    fn whole(&self, key: &str) -> Result<Option<u64>> {
        match self.config.get(key) {
            None | Some(Json::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(n) => Ok(Some(n)),
                None => refuse!("config.json: {key} is not a whole number"),
            },
        }
    }

    fn needed(&self, key: &str) -> Result<u64> {
        match self.whole(key)? {
            Some(n) => Ok(n),
            None => refuse!("config.json: {key} is missing"),
        }
    }

    fn wholes(&mut self, keys: &[(&str, &str)]) -> Result<()> {
        for (from, to) in keys {
            if let Some(n) = self.whole(from)? {
                self.push(to, Value::Unsigned(n));
            }
        }
        Ok(())
    }

    fn numbers(&mut self, keys: &[(&str, &str)]) -> Result<()> {
        for (from, to) in keys {
            match self.config.get(*from) {
                None | Some(Json::Null) => {}
                Some(value) => match value.as_f64() {
                    Some(number) => self.push(to, Value::Float(number)),
                    None => refuse!("config.json: {from} is not a number"),
                },
            }
        }
        Ok(())
    }

    fn sizes(&mut self, family: &Family) -> Result<()> {
        self.wholes(&[
            ("vocab_size", "vocab_size"),
            ("max_position_embeddings", "context_length"),
            ("hidden_size", "embedding_length"),
            ("intermediate_size", "feed_forward_length"),
            ("num_attention_heads", "attention.head_count"),
        ])?;
        let further = self.whole("num_nextn_predict_layers")?.unwrap_or(0);
        self.push("block_count", Value::Unsigned(self.needed("num_hidden_layers")?.saturating_add(further)));
        if further > 0 {
            self.push("nextn_predict_layers", Value::Unsigned(further));
        }
        let heads = self.needed("num_attention_heads")?;
        let latent = family.architecture == "deepseek2";
        let kv_heads = if latent { None } else { self.whole("num_key_value_heads")? };
        self.push("attention.head_count_kv", Value::Unsigned(kv_heads.unwrap_or(heads)));
        if latent {
            let nope = self.needed("qk_nope_head_dim")?;
            let rope = self.needed("qk_rope_head_dim")?;
            self.push("attention.key_length", Value::Unsigned(nope.saturating_add(rope)));
            self.wholes(&[
                ("v_head_dim", "attention.value_length"),
                ("q_lora_rank", "attention.q_lora_rank"),
                ("kv_lora_rank", "attention.kv_lora_rank"),
            ])?;
        } else if let Some(dim) = self.whole("head_dim")? {
            self.push("attention.key_length", Value::Unsigned(dim));
            self.push("attention.value_length", Value::Unsigned(dim));
        }
        if family.model_type == "granitemoe" {
            let positions = self.config.get("position_embedding_type").and_then(Json::as_str);
            self.push("rope.scaling.finetuned", Value::Bool(positions.is_none_or(|kind| kind == "rope")));
        }
        if family.model_type == "stablelm" {
            let parallel = self.config.get("use_parallel_residual").and_then(Json::as_bool).unwrap_or(false);
            self.push("use_parallel_residual", Value::Bool(parallel));
        }
        Ok(())
    }

    fn head_dim(&self) -> Result<u64> {
        Ok(match self.whole("head_dim")? {
            Some(dim) => dim,
            None => self.needed("hidden_size")? / self.needed("num_attention_heads")?.max(1),
        })
    }

    fn rope(&mut self, family: &Family) -> Result<Vec<(&'static str, Vec<f32>)>> {
        let config = self.config;
        let keys = ["rope_parameters", "rope_scaling"].iter().find_map(|key| config.get(*key)?.as_object());
        let of_keys = |key: &str| keys.and_then(|keys| keys.get(key)).and_then(Json::as_f64);
        let of_config = |key: &str| config.get(key).and_then(Json::as_f64);
        let usual = match family.model_type {
            "mixtral" | "phimoe" => 1e6,
            _ => 10000.0,
        };
        let theta = of_keys("rope_theta").or(of_config("rope_theta")).unwrap_or(usual);
        self.push("rope.freq_base", Value::Float(theta));
        let usual = match family.model_type {
            "phi" => 0.5,
            "stablelm" => 0.25,
            _ => 1.0,
        };
        let part = of_keys("partial_rotary_factor").or(of_config("partial_rotary_factor")).unwrap_or(usual);
        let all = match family.architecture {
            "deepseek2" => self.needed("qk_rope_head_dim")?,
            _ => self.head_dim()?,
        };
        let dims = (all as f64 * part) as u64;
        self.push("rope.dimension_count", Value::Unsigned(dims));
        let kind = ["rope_type", "type"].iter().find_map(|key| keys?.get(*key)?.as_str()).unwrap_or("default");
        let original = of_keys("original_max_position_embeddings").or(of_config("original_max_position_embeddings"));
        let needed = |key: &str| match of_keys(key) {
            Some(number) => Ok(number),
            None => refuse!("config.json: rope_scaling lacks {key}"),
        };
        let list = |key: &str| -> Result<Vec<f32>> {
            let list = keys.and_then(|keys| keys.get(key)).and_then(Json::as_array);
            let list = list.and_then(|all| all.iter().map(|v| Some(v.as_f64()? as f32)).collect::<Option<Vec<f32>>>());
            match list {
                Some(list) => Ok(list),
                None => refuse!("config.json: rope_scaling lacks {key}"),
            }
        };
        match kind {
            "default" => Ok(Vec::new()),
            "linear" => {
                self.push("rope.scaling.type", Value::Text("linear".into()));
                self.push("rope.scaling.factor", Value::Float(needed("factor")?));
                Ok(Vec::new())
            }
            "yarn" => {
                self.push("rope.scaling.type", Value::Text("yarn".into()));
                self.push("rope.scaling.factor", Value::Float(needed("factor")?));
                if let Some(original) = original {
                    self.push("rope.scaling.original_context_length", Value::Unsigned(original as u64));
                }
                for key in ["beta_fast", "beta_slow"] {
                    if let Some(beta) = of_keys(key).filter(|&beta| beta != 0.0) {
                        self.push(&format!("rope.scaling.yarn_{key}"), Value::Float(beta));
                    }
                }
                let attention = of_keys("attention_factor").filter(|_| family.architecture != "deepseek2");
                if let Some(all) = of_keys("mscale_all_dim").filter(|&all| all != 0.0) {
                    self.push("rope.scaling.yarn_log_multiplier", Value::Float(0.1 * all));
                } else if let Some(attention) = attention {
                    let usual = yarn_attention(needed("factor")?);
                    self.push("rope.scaling.attn_factor", Value::Float(attention / usual));
                }
                Ok(Vec::new())
            }
            "llama3" if family.architecture == "llama" => {
                let (factor, low, high) = (needed("factor")?, needed("low_freq_factor")?, needed("high_freq_factor")?);
                let original = needed("original_max_position_embeddings")?;
                let factors = (0..dims / 2).map(|i| {
                    let length = 2.0 * PI * theta.powf(2.0 * i as f64 / dims as f64);
                    if length < original / high {
                        1.0
                    } else if length > original / low {
                        factor as f32
                    } else {
                        let smooth = (original / length - low) / (high - low);
                        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
                    }
                });
                Ok(vec![("rope_freqs.weight", factors.collect())])
            }
            "longrope" | "su" if family.model_type == "phimoe" => {
                if let Some(original) = original {
                    self.push("rope.scaling.original_context_length", Value::Unsigned(original as u64));
                }
                if let Some(scale) = of_keys("short_mscale") {
                    self.push("rope.scaling.attn_factor", Value::Float(scale));
                }
                Ok(vec![
                    ("rope_factors_long.weight", list("long_factor")?),
                    ("rope_factors_short.weight", list("short_factor")?),
                ])
            }
            other => {
                let model = family.model_type;
                refuse!("rope_scaling of type {} cannot be written as GGUF for {model}", shown(other))
            }
        }
    }

    fn experts(&mut self, family: &Family) -> Result<()> {
        if family.place("ffn_gate_exps").is_none() {
            return Ok(());
        }
        for key in ["num_local_experts", "num_experts", "n_routed_experts"] {
            self.wholes(&[(key, "expert_count")])?;
        }
        if self.pairs.iter().any(|(key, _)| key.ends_with(".expert_count")) {
            self.wholes(&[("num_experts_per_tok", "expert_used_count")])?;
        }
        self.wholes(&[
            ("moe_intermediate_size", "expert_feed_forward_length"),
            ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
        ])?;
        if family.architecture != "deepseek2" {
            return Ok(());
        }
        let dense = self.whole("first_k_dense_replace")?.unwrap_or(0);
        self.push("leading_dense_block_count", Value::Unsigned(dense));
        self.wholes(&[
            ("n_shared_experts", "expert_shared_count"),
            ("n_group", "expert_group_count"),
            ("topk_group", "expert_group_used_count"),
        ])?;
        let sigmoid = family.model_type == "deepseek_v3";
        let scale = self.config.get("routed_scaling_factor").and_then(Json::as_f64);
        self.push("expert_weights_scale", Value::Float(scale.unwrap_or(if sigmoid { 2.5 } else { 1.0 })));
        self.push("expert_gating_func", Value::Unsigned(if sigmoid { 2 } else { 1 }));
        let norm = self.config.get("norm_topk_prob").and_then(Json::as_bool).unwrap_or(sigmoid);
        self.push("expert_weights_norm", Value::Bool(norm));
        Ok(())
    }
}
