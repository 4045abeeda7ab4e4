//! Which sparse family computes the rest of a dense model exactly, and what its `config.json` says.

use moesaic_kernels::Activation;
use serde_json::{Map, Value, json};

use super::{Error, Result};
use crate::decoder::{
    AttentionConfig, DecoderConfig, DenseConfig, Multipliers, NormKind, QkNorm, RouterConfig, SparseConfig,
};

/// The families that are written, in the order in which they are tried.
pub const TARGETS: [&str; 3] = ["mixtral", "granitemoe", "qwen2_moe"];

/// The dense models that can be upcycled, and what becomes of them.
pub const SUPPORTED: &str = "llama (to mixtral; with biases of attention to granitemoe; with a shared expert, with layers that \
                             stay dense or with weights that are not renormalised to qwen2_moe) and qwen2 (to qwen2_moe)";

/// What the sparse layers are to be.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// By layer.
    pub sparse: Vec<bool>,
    pub experts: usize,
    pub k: usize,
    pub width: usize,
    /// Neurons of the shared expert; 0 for none.
    pub shared: usize,
    pub renormalise: bool,
    pub aux_loss: f64,
    pub family: Option<String>,
    /// `torch_dtype` of the output, where it is not that of the dense model.
    pub dtype: Option<&'static str>,
}

/// The dense network of every layer, where the model is one whose layers can become sparse.
pub(super) fn dense_network(dense: &DecoderConfig) -> Result<DenseConfig> {
    let refuse = |reason: &str| Err(unsupported(dense, reason));
    if dense.sparse_layers().next().is_some() {
        return refuse("it has routed experts already");
    }
    let Some(network) = dense.dense else { return refuse("it has no feed-forward part") };
    if dense.parallel {
        return refuse("attention and feed-forward part stand in parallel, which no sparse family has");
    }
    if dense.norm.kind == NormKind::Layer {
        return refuse(
            "its norms are LayerNorms, which of the sparse families only phimoe has, and its router weighs each of two \
             experts with about 1",
        );
    }
    if !network.gated {
        return refuse("its feed-forward part has no gate, and the experts of every sparse family have one");
    }
    if network.bias {
        return refuse("its feed-forward part has biases, which the experts of no sparse family have");
    }
    match &dense.attention {
        AttentionConfig::Grouped(attention) if attention.qk_norm == QkNorm::None => Ok(network),
        _ => refuse("its attention is of a kind that no sparse family with plain experts has"),
    }
}

fn unsupported(dense: &DecoderConfig, reason: impl Into<String>) -> Error {
    Error::Unsupported { model_type: dense.model_type.clone(), reason: reason.into() }
}

/// The config of the sparse model.
pub(super) fn choose(dense: &DecoderConfig, wanted: &Wanted) -> Result<DecoderConfig> {
    let network = dense_network(dense)?;
    let families: Vec<&str> = match &wanted.family {
        None => TARGETS.to_vec(),
        Some(name) => match TARGETS.iter().find(|target| *target == name) {
            Some(target) => vec![*target],
            None => {
                let name: String = name.chars().take(60).collect();
                let targets = TARGETS.join(", ");
                return Err(Error::Options(format!("{name:?} is no family that is written: choose one of {targets}")));
            }
        },
    };
    let mut reasons = Vec::new();
    for family in families {
        let json = Value::Object(published(dense, network, wanted, family)).to_string();
        // What a family refuses (an even wider model, say) is a reason like the others.
        let config = match DecoderConfig::from_json(&json) {
            Ok(config) => config,
            Err(e) => {
                reasons.push(format!("{family} refuses it ({})", one_line(&e)));
                continue;
            }
        };
        match differences(dense, network, wanted, &config) {
            found if found.is_empty() => return Ok(config),
            found => reasons.push(format!("{family} differs in {}", found.join(", "))),
        }
    }
    Err(unsupported(dense, reasons.join("; ")))
}

fn one_line(error: &candle_core::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_string()
}

/// The `config.json` of `family`: the dense model's keys, with what classes have different defaults for written out.
fn published(dense: &DecoderConfig, network: DenseConfig, wanted: &Wanted, family: &str) -> Map<String, Value> {
    let mut map = dense.published.clone();
    for key in ["attention_bias", "mlp_bias", "pretraining_tp", "auto_map", "_name_or_path", "intermediate_size"] {
        map.remove(key);
    }
    if wanted.dtype.is_some() {
        // As releases from 5 on call `torch_dtype`.
        map.remove("dtype");
    }
    let mut set = |key: &str, value: Value| drop(map.insert(key.to_string(), value));
    set("model_type", json!(family));
    if let AttentionConfig::Grouped(a) = &dense.attention {
        set("num_attention_heads", json!(a.heads));
        set("num_key_value_heads", json!(a.kv_heads));
        if a.head_dim * a.heads == dense.hidden_size {
            set("head_dim", Value::Null);
        }
    }
    set("rms_norm_eps", json!(dense.norm.eps));
    set("hidden_act", json!(dense.published.get("hidden_act").cloned().unwrap_or(json!("silu"))));
    set("tie_word_embeddings", json!(dense.tie_word_embeddings));
    set("initializer_range", json!(dense.initializer_range));
    set("router_aux_loss_coef", json!(wanted.aux_loss));
    set("num_experts_per_tok", json!(wanted.k));
    if let Some(rope) = &dense.rope {
        set("rope_theta", json!(rope.theta));
    }
    if let Some(dtype) = wanted.dtype {
        set("torch_dtype", json!(dtype));
    }
    let bias = matches!(&dense.attention, AttentionConfig::Grouped(a) if a.qkv_bias);
    match family {
        "mixtral" => {
            set("architectures", json!(["MixtralForCausalLM"]));
            set("num_local_experts", json!(wanted.experts));
            set("intermediate_size", json!(wanted.width));
        }
        "granitemoe" => {
            set("architectures", json!(["GraniteMoeForCausalLM"]));
            set("num_local_experts", json!(wanted.experts));
            set("intermediate_size", json!(wanted.width));
            set("attention_bias", json!(bias));
            let scale = match &dense.attention {
                AttentionConfig::Grouped(a) => a.scale,
                _ => 1.0,
            };
            set("attention_multiplier", json!(scale));
            for key in ["embedding_multiplier", "residual_multiplier", "logits_scaling"] {
                set(key, json!(1.0));
            }
        }
        _ => {
            set("architectures", json!(["Qwen2MoeForCausalLM"]));
            set("num_experts", json!(wanted.experts));
            set("moe_intermediate_size", json!(wanted.width));
            // The class always has a shared expert: where none is wanted, one neuron that gives 0.
            set("shared_expert_intermediate_size", json!(wanted.shared.max(1)));
            set("intermediate_size", json!(network.intermediate_size));
            set("norm_topk_prob", json!(wanted.renormalise));
            set("qkv_bias", json!(bias));
            set("decoder_sparse_step", json!(1));
            let stay: Vec<usize> = wanted.sparse.iter().enumerate().filter(|(_, s)| !**s).map(|(i, _)| i).collect();
            set("mlp_only_layers", json!(stay));
            if dense.layers.iter().all(|layer| layer.window.is_none()) {
                set("use_sliding_window", json!(false));
            }
        }
    }
    map.retain(|_, value| !value.is_null());
    map
}

/// In what the sparse model would not compute what the dense one does, or is not what is wanted.
fn differences(
    dense: &DecoderConfig,
    network: DenseConfig,
    wanted: &Wanted,
    sparse: &DecoderConfig,
) -> Vec<&'static str> {
    let windows = |config: &DecoderConfig| config.layers.iter().map(|l| l.window).collect::<Vec<_>>();
    let layers: Vec<bool> = sparse.layers.iter().map(|l| l.sparse).collect();
    let experts = sparse.sparse.is_some_and(|s| as_wanted(&s, network.activation, wanted));
    [
        ("attention (biases, or the width of heads)", sparse.attention == dense.attention),
        ("norms", sparse.norm == dense.norm && sparse.parallel == dense.parallel),
        ("rotary positions", sparse.rope == dense.rope),
        ("sliding windows", windows(sparse) == windows(dense)),
        ("constant factors", sparse.multipliers == Multipliers::default()),
        ("the head", sparse.tie_word_embeddings == dense.tie_word_embeddings && sparse.head_bias == dense.head_bias),
        ("the vocabulary", sparse.vocab_size == dense.vocab_size && sparse.hidden_size == dense.hidden_size),
        ("which layers can stay dense", layers == wanted.sparse),
        ("the layers that stay dense", wanted.sparse.iter().all(|s| *s) || sparse.dense == Some(network)),
        ("its experts (a shared one, or how they are weighted)", experts),
    ]
    .into_iter()
    .filter(|(_, same)| !same)
    .map(|(what, _)| what)
    .collect()
}

fn as_wanted(sparse: &SparseConfig, activation: Activation, wanted: &Wanted) -> bool {
    let weights = match sparse.router {
        RouterConfig::SoftmaxTopK { renormalise, scale, groups } => {
            renormalise == wanted.renormalise && scale == 1.0 && groups.is_none()
        }
        RouterConfig::TopKSoftmax => wanted.renormalise,
        _ => false,
    };
    let shared = match sparse.shared {
        None => wanted.shared == 0,
        Some(shared) => shared.gated && shared.intermediate_size == wanted.shared.max(1),
    };
    let sizes = (sparse.experts, sparse.k, sparse.intermediate_size) == (wanted.experts, wanted.k, wanted.width);
    weights && shared && sizes && sparse.activation == activation && !sparse.output_bias
}
