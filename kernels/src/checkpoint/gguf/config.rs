//! The `config.json` that the metadata and tensors of a GGUF file amount to.
//!
//! Keys: llama.cpp's [`constants.py`](https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py). What a file
//! does not say, because llama.cpp takes it for granted of an architecture, is said here.

use std::collections::BTreeMap;

use candle_core::Result;
use serde_json::{Map, Value, json};

use super::index::Sizes;
use super::parse::Stored;
use super::parts::{FAMILIES, Family};
use super::value::Metadata;
use crate::checkpoint::text::{error, refuse, shown};

/// Tokens that end a turn of a conversation, by their text: files converted before `tokenizer.ggml.eot_token_id` existed name
/// only the end of a text. The list is llama.cpp's, for the families here.
const ENDS_OF_TURN: [&str; 8] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|end_of_turn|>",
    "<|endoftext|>",
    "<｜end▁of▁sentence｜>",
];
/// Most blocks (layers) that are counted, before tensors are looked up for each.
const MOST_LAYERS: usize = 1 << 14;
/// A token of this type is never part of a text.
pub(super) const CONTROL: f64 = 3.0;

/// What the file is: its family, and its configuration.
pub(super) struct Translated {
    pub family: &'static Family,
    pub sizes: Sizes,
    pub config: Map<String, Value>,
}

/// The values of a small tensor outside layers; `None` where there is no such tensor.
pub(super) type Floats<'a> = &'a dyn Fn(&str) -> Result<Option<Vec<f32>>>;

pub(super) fn translate(
    label: &str,
    metadata: &Metadata,
    tensors: &BTreeMap<String, Stored>,
    floats: Floats<'_>,
) -> Result<Translated> {
    translated(metadata, tensors, floats).map_err(|e| error(format!("{label}: {e}")))
}

/// The architectures, each once.
pub(super) fn architectures() -> Vec<&'static str> {
    let mut all: Vec<&str> = FAMILIES.iter().map(|f| f.architecture).collect();
    all.dedup();
    all
}

fn translated(metadata: &Metadata, tensors: &BTreeMap<String, Stored>, floats: Floats<'_>) -> Result<Translated> {
    let Some(architecture) = metadata.text("general.architecture")? else {
        refuse!("names no architecture (general.architecture): this is not a file of a model")
    };
    let Some(known) = FAMILIES.iter().find(|f| f.architecture == architecture).map(|f| f.architecture) else {
        refuse!("architecture {} is not supported (supported: {})", shown(architecture), architectures().join(", "))
    };
    let file = File { metadata, tensors, architecture: known };
    let model_type = match known {
        "llama" if file.whole("expert_count")?.unwrap_or(0) > 0 => "mixtral",
        "deepseek2" if file.whole("expert_gating_func")? == Some(2) => "deepseek_v3",
        _ => "",
    };
    let family =
        FAMILIES.iter().find(|f| f.architecture == known && (model_type.is_empty() || f.model_type == model_type));
    let Some(family) = family else { refuse!("architecture {} is not supported", shown(architecture)) };
    let mut config = file.common(family)?;
    config.extend(file.rope(family, floats)?);
    config.extend(file.family(family)?);
    config.extend(file.tokens()?);
    let heads = file.needed("attention.head_count")?;
    let kv_heads = file.whole("attention.head_count_kv")?.unwrap_or(heads);
    Ok(Translated { family, sizes: Sizes { heads, kv_heads }, config })
}

struct File<'a> {
    metadata: &'a Metadata,
    tensors: &'a BTreeMap<String, Stored>,
    architecture: &'static str,
}

impl File<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn whole(&self, key: &str) -> Result<Option<usize>> {
        let key = self.key(key);
        match self.metadata.whole(&key)?.map(usize::try_from) {
            None => Ok(None),
            Some(Ok(n)) => Ok(Some(n)),
            Some(Err(_)) => refuse!("{key} is too large to exist"),
        }
    }

    fn needed(&self, key: &str) -> Result<usize> {
        match self.whole(key)? {
            Some(n) => Ok(n),
            None => refuse!("lacks the key {}: convert the model anew", self.key(key)),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        Ok(self.metadata.number(&self.key(key))?.map(rounded))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.metadata.flag(&self.key(key))
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The lengths of a tensor's axes.
    fn shape(&self, name: &str) -> Result<&[usize]> {
        match self.tensors.get(name) {
            Some(tensor) => Ok(&tensor.shape),
            None => refuse!("tensor {} is missing: download the file again", shown(name)),
        }
    }

    /// The first tensor of this part of a layer, and its layer.
    fn first(&self, part: &str) -> Option<(usize, &Stored)> {
        let all = self.tensors.iter().filter_map(|(name, tensor)| {
            let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
            (rest == part).then(|| Some((layer.parse::<usize>().ok()?, tensor))).flatten()
        });
        all.min_by_key(|(layer, _)| *layer)
    }

    /// The width of an expert, and of others that end in a projection of this name.
    fn inner(&self, part: &str, key: &str) -> Result<Option<usize>> {
        let width = self.first(part).and_then(|(_, tensor)| tensor.shape.last().copied());
        width.map_or_else(|| self.whole(key), |width| Ok(Some(width)))
    }

    fn layers(&self) -> Result<usize> {
        let all = self.needed("block_count")?;
        let further = self.whole("nextn_predict_layers")?.unwrap_or(0);
        match all.checked_sub(further) {
            Some(layers) if all <= MOST_LAYERS => Ok(layers),
            _ => refuse!("{all} layers, {further} of them for further tokens: expected at most {MOST_LAYERS}"),
        }
    }

    fn head_dim(&self) -> Result<usize> {
        let (width, heads) = (self.needed("embedding_length")?, self.needed("attention.head_count")?);
        Ok(match self.whole("attention.key_length")? {
            Some(dim) => dim,
            None => width / heads.max(1),
        })
    }

    /// What all families have.
    fn common(&self, family: &Family) -> Result<Map<String, Value>> {
        let vocabulary = match self.shape("token_embd.weight")? {
            [rows, _] => *rows,
            other => refuse!("tensor \"token_embd.weight\": shape {other:?}, expected two axes"),
        };
        let (heads, width) = (self.needed("attention.head_count")?, self.needed("embedding_length")?);
        let layers = self.layers()?;
        let mut config = object(json!({
            "model_type": family.model_type,
            "vocab_size": vocabulary,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": self.whole("attention.head_count_kv")?.unwrap_or(heads),
            "max_position_embeddings": self.needed("context_length")?,
            "tie_word_embeddings": !self.has("output.weight"),
        }));
        if let Some(dim) = self.whole("attention.key_length")?.filter(|_| self.architecture != "deepseek2") {
            config.insert("head_dim".into(), dim.into());
        }
        let further = self.whole("nextn_predict_layers")?.unwrap_or(0);
        if further > 0 {
            config.insert("num_nextn_predict_layers".into(), further.into());
        }
        for (key, eps) in [("layer_norm_rms_epsilon", "rms_norm_eps"), ("layer_norm_epsilon", "layer_norm_eps")] {
            if let Some(value) = self.number(&format!("attention.{key}"))? {
                config.insert(eps.into(), value.into());
            }
        }
        Ok(config)
    }

    fn rope(&self, family: &Family, floats: Floats<'_>) -> Result<Map<String, Value>> {
        let mut config = object(json!({ "rope_theta": self.number("rope.freq_base")?.unwrap_or(10000.0) }));
        let latent = self.architecture == "deepseek2";
        if let (Some(dims), false) = (self.whole("rope.dimension_count")?, latent) {
            let all = self.head_dim()?;
            if dims != all {
                // Half a dimension more, so that rounding down gives the count.
                let part = (dims as f64 + 0.5) / all.max(1) as f64;
                config.insert("partial_rotary_factor".into(), part.into());
            }
        }
        let context = self.needed("context_length")?;
        let original = self.whole("rope.scaling.original_context_length")?;
        if let Some(factors) = floats("rope_freqs.weight")? {
            if factors.iter().any(|&f| f != 1.0) {
                let scaling = json!({
                    "rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.0,
                    "original_max_position_embeddings": context,
                });
                config.insert("rope_scaling".into(), scaling);
            }
            return Ok(config);
        }
        let attention = self.number("rope.scaling.attn_factor")?;
        if let (Some(short), Some(long)) = (floats("rope_factors_short.weight")?, floats("rope_factors_long.weight")?) {
            let attention = attention.unwrap_or(1.0);
            let scaling = json!({
                "type": "longrope", "short_factor": short, "long_factor": long,
                "short_mscale": attention, "long_mscale": attention,
                "original_max_position_embeddings": original.unwrap_or(context),
            });
            config.insert("rope_scaling".into(), scaling);
            return Ok(config);
        }
        let scaling = self.scaling(family, latent, attention.unwrap_or(1.0), original.unwrap_or(context))?;
        config.extend(scaling.map(|scaling| ("rope_scaling".to_string(), scaling)));
        Ok(config)
    }

    /// `rope_scaling` with one factor for all frequencies. `attention` multiplies cosines and sines.
    fn scaling(&self, family: &Family, latent: bool, attention: f64, original: usize) -> Result<Option<Value>> {
        // As llama.cpp reads it: a factor without a type is linear, and 0 stands for 1.
        let factor = match self.number("rope.scaling.factor")? {
            Some(factor) => factor,
            None => self.number("rope.scale_linear")?.unwrap_or(1.0),
        };
        let factor = if factor == 0.0 { 1.0 } else { factor };
        let kind = self.metadata.text(&self.key("rope.scaling.type"))?.unwrap_or("linear");
        if attention != 1.0 && (latent || kind != "yarn") {
            let model = family.model_type;
            refuse!("rope.scaling.attn_factor is {attention}, which is only supported with yarn, and not for {model}");
        }
        match kind {
            "none" => Ok(None),
            "linear" if factor == 1.0 => Ok(None),
            "linear" => Ok(Some(json!({ "rope_type": "linear", "factor": factor }))),
            "yarn" => {
                let mut scaling = object(json!({
                    "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
                }));
                for (key, name) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
                    if let Some(value) = self.number(&format!("rope.scaling.{key}"))? {
                        scaling.insert(name.into(), value.into());
                    }
                }
                let multiplier = self.number("rope.scaling.yarn_log_multiplier")?.filter(|m| latent && *m != 0.0);
                if let Some(multiplier) = multiplier {
                    // DeepSeek's published mscale and mscale_all_dim are one number, so that positions are not scaled. The
                    // file has a tenth of it.
                    let scale = (1e7 * multiplier).round() / 1e6;
                    scaling.insert("mscale".into(), scale.into());
                    scaling.insert("mscale_all_dim".into(), scale.into());
                } else if latent {
                    // Neither positions nor scores are scaled.
                    scaling.insert("attention_factor".into(), 1.0.into());
                } else if attention != 1.0 {
                    scaling.insert("attention_factor".into(), product(attention, yarn_attention(factor)).into());
                }
                Ok(Some(Value::Object(scaling)))
            }
            other => {
                let model = family.model_type;
                refuse!(
                    "rope scaling of type {} is not supported for {model}: supported are linear and yarn",
                    shown(other)
                )
            }
        }
    }

    /// Layers without a router, where others have one.
    fn dense_layers(&self) -> Result<Vec<usize>> {
        Ok((0..self.layers()?).filter(|i| !self.has(&format!("blk.{i}.ffn_gate_inp.weight"))).collect())
    }

    /// What a family has of its own.
    fn family(&self, family: &Family) -> Result<Map<String, Value>> {
        let bias = |part: &str| self.first(&format!("{part}.bias")).is_some();
        let dense = || self.inner("ffn_down.weight", "feed_forward_length");
        let expert = || match self.inner("ffn_down_exps.weight", "expert_feed_forward_length")? {
            Some(width) => Ok(width),
            // Of the first files with experts.
            None => match self.inner("ffn_down.0.weight", "feed_forward_length")? {
                Some(width) => Ok(width),
                None => refuse!("has no tensors of experts: download the file again"),
            },
        };
        let experts = || Ok::<_, candle_core::Error>((self.needed("expert_count")?, self.needed("expert_used_count")?));
        Ok(object(match family.model_type {
            "llama" => {
                // In these files each is there or not; published models have both or none.
                let (queries, output) = (bias("attn_q"), bias("attn_output"));
                let apart = |has: bool| (queries != output).then_some(has);
                json!({
                    "intermediate_size": dense()?, "mlp_bias": bias("ffn_up"), "attention_bias": queries || output,
                    "qkv_bias": apart(queries), "output_bias": apart(output),
                })
            }
            "mixtral" => {
                let (experts, k) = experts()?;
                json!({ "intermediate_size": expert()?, "num_local_experts": experts, "num_experts_per_tok": k })
            }
            "qwen2" => json!({ "intermediate_size": dense()? }),
            "qwen2_moe" => {
                let (experts, k) = experts()?;
                let shared = self.inner("ffn_down_shexp.weight", "expert_shared_feed_forward_length")?;
                json!({
                    "intermediate_size": dense()?.unwrap_or(expert()?), "moe_intermediate_size": expert()?,
                    "shared_expert_intermediate_size": shared, "num_experts": experts, "num_experts_per_tok": k,
                    "norm_topk_prob": self.flag("expert_weights_norm")?.unwrap_or(false),
                    "mlp_only_layers": self.dense_layers()?, "qkv_bias": bias("attn_q"),
                })
            }
            "qwen3_moe" => {
                let (experts, k) = experts()?;
                json!({
                    "intermediate_size": dense()?.unwrap_or(expert()?), "moe_intermediate_size": expert()?,
                    "num_experts": experts, "num_experts_per_tok": k,
                    "norm_topk_prob": self.flag("expert_weights_norm")?.unwrap_or(true),
                    "mlp_only_layers": self.dense_layers()?, "attention_bias": bias("attn_q"),
                })
            }
            "olmoe" => {
                let (experts, k) = experts()?;
                json!({
                    "intermediate_size": expert()?, "num_experts": experts, "num_experts_per_tok": k,
                    "norm_topk_prob": self.flag("expert_weights_norm")?.unwrap_or(false),
                    "attention_bias": bias("attn_q"), "clip_qkv": self.number("attention.clamp_kqv")?,
                })
            }
            "phi" => json!({ "intermediate_size": dense()?, "hidden_act": "gelu_new" }),
            "stablelm" => json!({
                "intermediate_size": dense()?, "use_qkv_bias": bias("attn_q"),
                "qk_layernorm": self.first("attn_q_norm.weight").is_some(),
                // As llama.cpp has it: the key of that name is set in files of all models.
                "use_parallel_residual": self.first("ffn_norm.weight").is_none(),
            }),
            "deepseek_v2" | "deepseek_v3" => self.deepseek(family, dense()?, expert)?,
            "phimoe" => {
                let (experts, k) = experts()?;
                let original = self.whole("rope.scaling.original_context_length")?;
                json!({
                    "intermediate_size": expert()?, "num_local_experts": experts, "num_experts_per_tok": k,
                    "attention_bias": bias("attn_q"), "lm_head_bias": self.has("output.bias"),
                    "original_max_position_embeddings": original,
                })
            }
            "granitemoe" => {
                let (experts, k) = experts()?;
                let scale = match self.number("attention.scale")? {
                    Some(scale) => scale,
                    None => 1.0 / (self.head_dim()? as f64).sqrt(),
                };
                // What says elsewhere whether a longer context was trained says here whether there are positions.
                let positions = self.flag("rope.scaling.finetuned")?.unwrap_or(true);
                json!({
                    "intermediate_size": expert()?, "num_local_experts": experts, "num_experts_per_tok": k,
                    "attention_bias": bias("attn_q"), "attention_multiplier": scale,
                    "embedding_multiplier": self.number("embedding_scale")?.unwrap_or(1.0),
                    "residual_multiplier": self.number("residual_scale")?.unwrap_or(1.0),
                    "logits_scaling": self.number("logit_scale")?.unwrap_or(1.0),
                    "position_embedding_type": if positions { "rope" } else { "nope" },
                })
            }
            other => refuse!("{other} is not supported"),
        }))
    }

    fn deepseek(&self, family: &Family, dense: Option<usize>, expert: impl Fn() -> Result<usize>) -> Result<Value> {
        let rope = self.needed("rope.dimension_count")?;
        // Files that keep keys and values apart have the sizes of the latent under the old names.
        let (key, value) = match self.whole("attention.key_length_mla")? {
            Some(key) => (key, self.needed("attention.value_length_mla")?),
            None => (self.needed("attention.key_length")?, self.needed("attention.value_length")?),
        };
        let Some(nope) = key.checked_sub(rope) else {
            refuse!("{rope} of the {key} dimensions of a head have positions: download the file again")
        };
        let sparse = self.first("ffn_gate_inp.weight").is_some();
        let mut config = object(json!({
            "kv_lora_rank": self.needed("attention.kv_lora_rank")?,
            "q_lora_rank": self.whole("attention.q_lora_rank")?.filter(|&rank| rank > 0),
            "qk_rope_head_dim": rope, "qk_nope_head_dim": nope,
            "v_head_dim": value,
            // Keys and values come from the latent for every head.
            "num_key_value_heads": self.needed("attention.head_count")?,
            "first_k_dense_replace": self.whole("leading_dense_block_count")?.unwrap_or(0),
            "attention_bias": self.first("attn_kv_a_mqa.bias").is_some(),
        }));
        let width = if sparse { expert()? } else { 1 };
        config.insert("moe_intermediate_size".into(), width.into());
        config.insert("intermediate_size".into(), dense.unwrap_or(width).into());
        if sparse {
            let norm = self.flag("expert_weights_norm")?.unwrap_or(false);
            config.extend(object(json!({
                "n_routed_experts": self.needed("expert_count")?, "num_experts_per_tok": self.needed("expert_used_count")?,
                "n_shared_experts": self.whole("expert_shared_count")?.unwrap_or(0),
                "norm_topk_prob": norm,
                "routed_scaling_factor": self.number("expert_weights_scale")?.filter(|&s| s != 0.0).unwrap_or(1.0),
            })));
        }
        let groups = self.whole("expert_group_count")?.unwrap_or(1);
        let used = self.whole("expert_group_used_count")?.unwrap_or(1);
        if family.model_type == "deepseek_v3" || groups > 1 {
            config.extend(object(json!({ "n_group": groups, "topk_group": used })));
        }
        if family.model_type == "deepseek_v2" {
            let method = if groups > 1 { "group_limited_greedy" } else { "greedy" };
            config.insert("topk_method".into(), method.into());
        }
        Ok(Value::Object(config))
    }

    /// Ids of special tokens.
    fn tokens(&self) -> Result<Map<String, Value>> {
        let id = |name: &str| self.metadata.whole(&format!("tokenizer.ggml.{name}_token_id"));
        let mut ends: Vec<u64> = Vec::new();
        for name in ["eos", "eot", "eom"] {
            ends.extend(id(name)?);
        }
        if let (Some(tokens), Some(types)) =
            (self.metadata.texts("tokenizer.ggml.tokens")?, self.metadata.numbers("tokenizer.ggml.token_type")?)
        {
            let control = tokens.iter().zip(types).enumerate().filter(|(_, (_, kind))| *kind == CONTROL);
            ends.extend(
                control.filter(|(_, (text, _))| ENDS_OF_TURN.contains(&text.as_str())).map(|(id, _)| id as u64),
            );
        }
        ends.sort_unstable();
        ends.dedup();
        let mut config = object(json!({ "eos_token_id": ends }));
        for (key, name) in [("bos_token_id", "bos"), ("pad_token_id", "padding")] {
            if let Some(id) = id(name)? {
                config.insert(key.into(), id.into());
            }
        }
        Ok(config)
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        // Keys without a value are left out, as they mean the family's default.
        Value::Object(map) => map.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Map::new(),
    }
}

/// What llama.cpp multiplies cosines and sines with where yarn stretches them, beside the factor that a file may have.
pub(super) fn yarn_attention(factor: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 1.0 + 0.1 * factor.ln() }
}

/// `stored * by`, as the shortest decimal number that would be stored so.
fn product(stored: f64, by: f64) -> f64 {
    let exact = stored * by;
    let decimals = (0..9).filter_map(|digits| format!("{exact:.digits$e}").parse::<f64>().ok());
    decimals.into_iter().find(|number| (number / by) as f32 == stored as f32).unwrap_or(exact)
}

/// A number of 32 bits as it was written in decimals: 1e-5 and not 9.999999747378752e-6.
fn rounded(value: f64) -> f64 {
    let short = value as f32;
    match short.to_string().parse() {
        Ok(decimal) if f64::from(short) == value => decimal,
        _ => value,
    }
}
