//! Published tensor names: one table per family, read by the loader and, through the same table, by the saver.

/// Where a family keeps its tensors. A layer's tensors stand under `{layers}.{i}.`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// `[V, H]`
    pub embed: &'static str,
    /// What layers are numbered under.
    pub layers: &'static str,
    /// The norm after the last layer.
    pub final_norm: &'static str,
    /// `[V, H]`
    pub head: &'static str,
    /// The norm before attention.
    pub attention_norm: &'static str,
    /// The norm before the feed-forward part.
    pub ffn_norm: &'static str,
    /// The attention of a layer.
    pub attention: &'static str,
    /// Its output projection.
    pub output: &'static str,
    /// Queries, keys and values, or one tensor with all three.
    pub qkv: &'static [&'static str],
    /// Norms of queries and keys.
    pub qk_norms: (&'static str, &'static str),
    /// The dense feed-forward part of a layer.
    pub dense: &'static str,
    /// Gate (empty without), up and down of a dense network and of a shared expert.
    pub dense_maps: [&'static str; 3],
    /// The sparse feed-forward part of a layer.
    pub sparse: &'static str,
    /// `[E, H]`
    pub router: &'static str,
    /// `[E]`, what steers a sigmoid router's choice.
    pub router_bias: &'static str,
    /// What experts that have tensors of their own are numbered under.
    pub expert: &'static str,
    /// The routed experts.
    pub experts: ExpertNames,
    /// The shared expert.
    pub shared: &'static str,
    /// `[1, H]`
    pub shared_gate: &'static str,
    /// `[2, H]` and a bias: what blends routed and shared experts.
    pub blend: &'static str,
}

/// How the weights of a layer's experts are cut into tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertNames {
    /// One tensor for each expert and map: `{expert}.{e}.{gate, up, down}.weight`; the gate's name is empty without one.
    Each([&'static str; 3]),
    /// All experts in two tensors: gate above up `[E, 2I, H]`, down `[E, H, I]`.
    Stacked([&'static str; 2]),
    /// All experts in two tensors whose rows are inputs: gate beside up `[E, H, 2I]`, down `[E, I, H]` (Aria, Qwen3-VL). Their
    /// names are whole, with `.weight` where it is published.
    InputMajor([&'static str; 2]),
}

impl Names {
    /// The names of Llama, and of those who took them over.
    pub const LLAMA: Names = Names {
        embed: "model.embed_tokens",
        layers: "model.layers",
        final_norm: "model.norm",
        head: "lm_head",
        attention_norm: "input_layernorm",
        ffn_norm: "post_attention_layernorm",
        attention: "self_attn",
        output: "o_proj",
        qkv: &["q_proj", "k_proj", "v_proj"],
        qk_norms: ("q_norm", "k_norm"),
        dense: "mlp",
        dense_maps: ["gate_proj", "up_proj", "down_proj"],
        sparse: "mlp",
        router: "gate.weight",
        router_bias: "gate.e_score_correction_bias",
        expert: "experts",
        experts: ExpertNames::Each(["gate_proj", "up_proj", "down_proj"]),
        shared: "shared_expert",
        shared_gate: "shared_expert_gate.weight",
        blend: "coefficient",
    };
}
