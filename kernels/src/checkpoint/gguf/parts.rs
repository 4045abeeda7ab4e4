//! Which tensors of a GGUF file stand for which tensors of a Hugging Face folder, by architecture.
//!
//! Facts from llama.cpp's
//! [`tensor_mapping.py`](https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py) and
//! [`convert_hf_to_gguf.py`](https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py). One table serves reading
//! and writing.

/// A family of models: its name in GGUF files, its `model_type`, and where the parts of its layers stand.
#[derive(Debug)]
pub(super) struct Family {
    /// `general.architecture`
    pub architecture: &'static str,
    pub model_type: &'static str,
    /// Tensors outside layers, without `.weight` or `.bias`: `output_norm` and its published name.
    pub outer: &'static [(&'static str, &'static str)],
    /// Tensors of a layer, without `blk.{i}.` and `.weight` or `.bias`.
    pub layer: &'static [&'static [(&'static str, Place)]],
}

/// Where a tensor of a layer is published, without `model.layers.{i}.` and `.weight` or `.bias`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// As it is.
    One(&'static str),
    /// A vector in the file, a matrix of one row where it is published.
    Row(&'static str),
    /// A projection whose rows llama.cpp puts in the order of pairs: what rotary positions turn together stands side by side
    /// there, and half a head apart where it is published.
    Turned(&'static str, Heads),
    /// One tensor for each index of the first axis, which stands for `{}`.
    Each(&'static str),
    /// With what stands for it in `Below` under every index of the first axis: a gate and an up projection in one tensor.
    Above(&'static str),
    /// See `Above`; the part that holds the upper half.
    Below(&'static str),
    /// Queries, keys and values one above the other.
    Joined([&'static str; 3]),
    /// What expands the latent into the keys of each head, its rows and columns exchanged; published above the values of that
    /// head, which `attn_v_b` holds.
    Keys(&'static str),
    /// See `Keys`.
    Values,
}

/// The heads of a projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heads {
    Query,
    KeyValue,
}

use Place::{Above, Below, Each, Joined, Keys, One, Row, Turned, Values};

const OUTER: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];
const OUTER_PHI: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.final_layernorm"), ("output", "lm_head")];

const NORMS: &[(&str, Place)] = &[("attn_norm", One("input_layernorm")), ("ffn_norm", One("post_attention_layernorm"))];
const ATTENTION: &[(&str, Place)] = &[
    ("attn_q", One("self_attn.q_proj")),
    ("attn_k", One("self_attn.k_proj")),
    ("attn_v", One("self_attn.v_proj")),
    ("attn_output", One("self_attn.o_proj")),
];
/// Of files for llama.cpp's rotary positions over neighbours.
const ATTENTION_TURNED: &[(&str, Place)] = &[
    ("attn_q", Turned("self_attn.q_proj", Heads::Query)),
    ("attn_k", Turned("self_attn.k_proj", Heads::KeyValue)),
    ("attn_v", One("self_attn.v_proj")),
    ("attn_output", One("self_attn.o_proj")),
];
const QK_NORMS: &[(&str, Place)] =
    &[("attn_q_norm", One("self_attn.q_norm")), ("attn_k_norm", One("self_attn.k_norm"))];
const DENSE: &[(&str, Place)] =
    &[("ffn_gate", One("mlp.gate_proj")), ("ffn_up", One("mlp.up_proj")), ("ffn_down", One("mlp.down_proj"))];
const SPARSE: &[(&str, Place)] = &[
    ("ffn_gate_inp", Row("mlp.gate")),
    ("ffn_gate_exps", Each("mlp.experts.{}.gate_proj")),
    ("ffn_up_exps", Each("mlp.experts.{}.up_proj")),
    ("ffn_down_exps", Each("mlp.experts.{}.down_proj")),
];
const SPARSE_MIXTRAL: &[(&str, Place)] = &[
    ("ffn_gate_inp", Row("block_sparse_moe.gate")),
    ("ffn_gate_exps", Each("block_sparse_moe.experts.{}.w1")),
    ("ffn_up_exps", Each("block_sparse_moe.experts.{}.w3")),
    ("ffn_down_exps", Each("block_sparse_moe.experts.{}.w2")),
];
const SPARSE_GRANITE: &[(&str, Place)] = &[
    ("ffn_gate_inp", Row("block_sparse_moe.router.layer")),
    ("ffn_gate_exps", Above("block_sparse_moe.input_linear")),
    ("ffn_up_exps", Below("ffn_gate_exps")),
    ("ffn_down_exps", One("block_sparse_moe.output_linear")),
];
const SHARED_QWEN: &[(&str, Place)] = &[
    ("ffn_gate_inp_shexp", Row("mlp.shared_expert_gate")),
    ("ffn_gate_shexp", One("mlp.shared_expert.gate_proj")),
    ("ffn_up_shexp", One("mlp.shared_expert.up_proj")),
    ("ffn_down_shexp", One("mlp.shared_expert.down_proj")),
];
const STABLELM: &[(&str, Place)] =
    &[("attn_q_norm", Each("self_attn.q_layernorm.norms.{}")), ("attn_k_norm", Each("self_attn.k_layernorm.norms.{}"))];
const PHI: &[(&str, Place)] = &[
    ("attn_norm", One("input_layernorm")),
    ("attn_qkv", Joined(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"])),
    ("attn_q", One("self_attn.q_proj")),
    ("attn_k", One("self_attn.k_proj")),
    ("attn_v", One("self_attn.v_proj")),
    ("attn_output", One("self_attn.dense")),
    ("ffn_up", One("mlp.fc1")),
    ("ffn_down", One("mlp.fc2")),
];
const LATENT: &[(&str, Place)] = &[
    ("attn_q", One("self_attn.q_proj")),
    ("attn_q_a", One("self_attn.q_a_proj")),
    ("attn_q_a_norm", One("self_attn.q_a_layernorm")),
    ("attn_q_b", One("self_attn.q_b_proj")),
    ("attn_kv_a_mqa", One("self_attn.kv_a_proj_with_mqa")),
    ("attn_kv_a_norm", One("self_attn.kv_a_layernorm")),
    ("attn_kv_b", One("self_attn.kv_b_proj")),
    ("attn_k_b", Keys("self_attn.kv_b_proj")),
    ("attn_v_b", Values),
    ("attn_output", One("self_attn.o_proj")),
];
const SHARED_DEEPSEEK: &[(&str, Place)] = &[
    ("ffn_gate_shexp", One("mlp.shared_experts.gate_proj")),
    ("ffn_up_shexp", One("mlp.shared_experts.up_proj")),
    ("ffn_down_shexp", One("mlp.shared_experts.down_proj")),
];

/// All that are read and written. Where several share an architecture, `config.rs` tells them apart.
pub(super) const FAMILIES: [Family; 12] = [
    Family { architecture: "llama", model_type: "llama", outer: OUTER, layer: &[NORMS, ATTENTION_TURNED, DENSE] },
    Family {
        architecture: "llama",
        model_type: "mixtral",
        outer: OUTER,
        layer: &[NORMS, ATTENTION_TURNED, SPARSE_MIXTRAL],
    },
    Family { architecture: "qwen2", model_type: "qwen2", outer: OUTER, layer: &[NORMS, ATTENTION, DENSE] },
    Family {
        architecture: "qwen2moe",
        model_type: "qwen2_moe",
        outer: OUTER,
        layer: &[NORMS, ATTENTION, DENSE, SPARSE, SHARED_QWEN],
    },
    Family {
        architecture: "qwen3moe",
        model_type: "qwen3_moe",
        outer: OUTER,
        layer: &[NORMS, ATTENTION, QK_NORMS, DENSE, SPARSE],
    },
    Family { architecture: "olmoe", model_type: "olmoe", outer: OUTER, layer: &[NORMS, ATTENTION, QK_NORMS, SPARSE] },
    Family { architecture: "phi2", model_type: "phi", outer: OUTER_PHI, layer: &[PHI] },
    Family {
        architecture: "stablelm",
        model_type: "stablelm",
        outer: OUTER,
        layer: &[NORMS, ATTENTION, STABLELM, DENSE],
    },
    Family {
        architecture: "deepseek2",
        model_type: "deepseek_v2",
        outer: OUTER,
        layer: &[NORMS, LATENT, DENSE, SPARSE, SHARED_DEEPSEEK],
    },
    Family {
        architecture: "deepseek2",
        model_type: "deepseek_v3",
        outer: OUTER,
        layer: &[NORMS, LATENT, DENSE, SPARSE, SHARED_DEEPSEEK],
    },
    Family { architecture: "phimoe", model_type: "phimoe", outer: OUTER, layer: &[NORMS, ATTENTION, SPARSE_MIXTRAL] },
    Family {
        architecture: "granitemoe",
        model_type: "granitemoe",
        outer: OUTER,
        layer: &[NORMS, ATTENTION_TURNED, SPARSE_GRANITE],
    },
];

/// The bias that steers a sigmoid router has a name of its own: that of the file, and the published one behind the layer.
pub(super) const ROUTER_BIAS: (&str, &str) = ("exp_probs_b.bias", "mlp.gate.e_score_correction_bias");

impl Family {
    /// Where a part of a layer is published.
    pub fn place(&self, part: &str) -> Option<Place> {
        self.layer.iter().copied().flatten().find(|(name, _)| *name == part).map(|(_, place)| *place)
    }

    /// All parts of a layer.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, Place)> {
        self.layer.iter().copied().flatten().copied()
    }

    /// What a tensor outside layers is published as.
    pub fn outer(&self, name: &str) -> Option<&'static str> {
        self.outer.iter().find(|(other, _)| *other == name).map(|(_, published)| *published)
    }
}
