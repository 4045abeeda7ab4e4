//! What the one decoder can do: every family's `config.json` is translated into a [`DecoderConfig`].

use std::path::Path;

use candle_core::{Error, Result};
use moesaic_kernels::Activation;
use moesaic_kernels::checkpoint::gguf::{Gguf, is_gguf};
use serde_json::{Map, Value};

use super::families;
use super::names::Names;
use super::rope::RopeConfig;
use crate::folder;

mod routing;
mod validate;

/// A decoder: what its layers are made of, and under which names its tensors are published.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// `model_type` of `config.json`.
    pub model_type: String,
    /// Rows of the embedding, V.
    pub vocab_size: usize,
    /// Width of a token, H.
    pub hidden_size: usize,
    /// The layers, bottom to top.
    pub layers: Vec<LayerConfig>,
    /// Attention of all layers.
    pub attention: AttentionConfig,
    /// Norms before attention, before the feed-forward part and after the last layer.
    pub norm: NormConfig,
    /// `h + attention(n) + ffn(n)` with one norm a layer (phi, StableLM's option), instead of one after the other.
    pub parallel: bool,
    /// Dense feed-forward part, where a layer has one.
    pub dense: Option<DenseConfig>,
    /// Sparse feed-forward part, where a layer has one.
    pub sparse: Option<SparseConfig>,
    /// Rotary positions; absent where the model has none.
    pub rope: Option<RopeConfig>,
    /// Factors of Granite; 1 elsewhere.
    pub multipliers: Multipliers,
    /// The output head is the embedding.
    pub tie_word_embeddings: bool,
    /// The output head has a bias.
    pub head_bias: bool,
    /// The auxiliary loss that the family is trained with.
    pub aux_loss: AuxLoss,
    /// Tokens that the model was made for, `max_position_embeddings`. Nothing stops at it.
    pub max_positions: usize,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
    /// First token of a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text, as `config.json` says (`generation_config.json` may know more).
    pub eos_token_ids: Vec<u32>,
    /// Token that fills a batch.
    pub pad_token_id: Option<u32>,
    /// Published tensor names, for loading and for saving.
    pub names: Names,
    /// `config.json` as it was read, to be written beside saved weights.
    pub published: Map<String, Value>,
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerConfig {
    /// Routed experts instead of one dense network.
    pub sparse: bool,
    /// Keys that a query sees at most, itself included; absent for all.
    pub window: Option<usize>,
    /// Routed experts, where the layer has another number of them than [`SparseConfig::experts`].
    pub experts: Option<usize>,
}

/// How tokens look at each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttentionConfig {
    /// Heads that share keys and values in groups (Ainslie et al., arXiv 2305.13245).
    Grouped(GroupedConfig),
    /// Keys and values from a latent of low rank (DeepSeek-V2, arXiv 2405.04434, section 2.1).
    Latent(LatentConfig),
    /// Query heads chosen by a router (JetMoE, arXiv 2404.07413, section 2.2).
    Mixture(MixtureConfig),
}

/// Grouped-query attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupedConfig {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides the query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// The output projection has a bias.
    pub output_bias: bool,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Bound of queries, keys and values (`clip_qkv`).
    pub clip: Option<f64>,
    /// Multiplies scores.
    pub scale: f64,
}

/// Norms of queries and keys before the rotary positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// One RMS norm of a head's width, for all heads (Qwen3).
    RmsPerHead,
    /// One RMS norm over all heads of a token (OLMoE).
    RmsWhole,
    /// One LayerNorm of a head's width, for all heads (phi).
    LayerShared,
    /// A LayerNorm without bias for each head (StableLM).
    LayerEachHead,
}

/// Multi-head latent attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentConfig {
    /// Heads.
    pub heads: usize,
    /// Rank of the queries' latent; absent for a plain projection.
    pub q_rank: Option<usize>,
    /// Rank of the keys' and values' latent.
    pub kv_rank: usize,
    /// Part of a head without positions.
    pub nope_dim: usize,
    /// Part of a head with rotary positions, whose keys all heads share.
    pub rope_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// The projections into latents, and the output, have biases.
    pub bias: bool,
    /// Multiplies scores.
    pub scale: f64,
}

/// Mixture of attention heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MixtureConfig {
    /// Attention experts.
    pub experts: usize,
    /// Experts per token; each gives `kv_heads` query heads.
    pub k: usize,
    /// Key-value heads, shared by all experts.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Multiplies scores.
    pub scale: f64,
}

/// A norm over the width of a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormConfig {
    /// Which.
    pub kind: NormKind,
    /// Added to the mean square or variance.
    pub eps: f64,
}

/// Kinds of norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// RMSNorm (arXiv 1910.07467).
    Rms,
    /// LayerNorm with bias (arXiv 1607.06450).
    Layer,
}

/// A dense feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenseConfig {
    /// Inner width, I.
    pub intermediate_size: usize,
    /// The non-linearity.
    pub activation: Activation,
    /// `down(act(gate x) * up x)`, else `down(act(up x))`.
    pub gated: bool,
    /// All its maps have biases.
    pub bias: bool,
}

/// Routed experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseConfig {
    /// Routed experts, E.
    pub experts: usize,
    /// Experts per token, k.
    pub k: usize,
    /// Inner width of an expert.
    pub intermediate_size: usize,
    /// The non-linearity.
    pub activation: Activation,
    /// Experts are `down(act(gate x) * up x)`, else `down(act(up x))`; the shared one too.
    pub gated: bool,
    /// All maps of experts have biases.
    pub bias: bool,
    /// How experts are chosen.
    pub router: RouterConfig,
    /// An expert for every token.
    pub shared: Option<SharedConfig>,
    /// A bias that is added once to the sum of a token's experts (JetMoE).
    pub output_bias: bool,
}

/// The equation of a router; see [`moesaic_kernels::routers`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RouterConfig {
    /// [`SoftmaxTopK`](moesaic_kernels::routers::SoftmaxTopK)
    SoftmaxTopK {
        /// Weights are divided by their sum.
        renormalise: bool,
        /// Multiplies the weights.
        scale: f64,
        /// `(n_group, topk_group)`
        groups: Option<(usize, usize)>,
    },
    /// [`TopKSoftmax`](moesaic_kernels::routers::TopKSoftmax)
    TopKSoftmax,
    /// [`SigmoidTopK`](moesaic_kernels::routers::SigmoidTopK) with a selection bias.
    SigmoidTopK {
        /// Weights are divided by their sum.
        renormalise: bool,
        /// Multiplies the weights.
        scale: f64,
        /// `(n_group, topk_group)`
        groups: Option<(usize, usize)>,
    },
    /// [`SparseMixer`](moesaic_kernels::routers::SparseMixer) with this jitter.
    SparseMixer {
        /// `router_jitter_noise`
        jitter: f64,
    },
    /// [`Capacity`](moesaic_kernels::routers::Capacity): experts that take a bounded number of tokens. **Rows of a batch
    /// depend on each other** where an expert is full.
    Capacity {
        /// The capacity factor in evaluation: of models that are not on variables.
        factor: f64,
        /// The same in training.
        train_factor: f64,
        /// The least capacity.
        min_capacity: usize,
        /// Draws second experts with Gumbel noise of this seed, as the reference does in evaluation too; absent for the best.
        noise: Option<u64>,
    },
    /// [`NullTopK`](moesaic_kernels::routers::NullTopK), with so many null experts behind the others.
    NullTopK {
        /// Null experts.
        nulls: usize,
    },
    /// [`PathwayTopK`](moesaic_kernels::routers::PathwayTopK), with experts that have no network behind the others.
    Pathways {
        /// That discard.
        zero: usize,
        /// That skip.
        copy: usize,
        /// That replace.
        constant: usize,
    },
    /// [`ReluRouter`](moesaic_kernels::routers::ReluRouter); the number of experts per token is a mean.
    Relu,
    /// [`NormedReluRouter`](moesaic_kernels::routers::NormedReluRouter); its losses decide how many experts a token takes.
    NormedRelu,
    /// [`DenseTraining`](moesaic_kernels::routers::DenseTraining): all experts in passes of training
    /// ([`Context::training`](super::Context::training)), the best elsewhere.
    DenseTraining,
}

impl RouterConfig {
    /// Experts without a network, which stand behind those that have one.
    pub fn free(&self) -> usize {
        match *self {
            Self::NullTopK { nulls } => nulls,
            Self::Pathways { zero, copy, constant } => zero.saturating_add(copy).saturating_add(constant),
            _ => 0,
        }
    }

    /// Whether the number of networks that a token goes to is not the same for all.
    pub fn varies(&self) -> bool {
        self.free() > 0 || matches!(self, Self::Relu | Self::NormedRelu)
    }
}

/// The expert that every token goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedConfig {
    /// Inner width.
    pub intermediate_size: usize,
    /// Its output is multiplied by the sigmoid of a gate.
    pub gated: bool,
    /// Its maps have biases.
    pub bias: bool,
    /// Routed experts and this one are weighted by the softmax of a linear map to two numbers (DeepSpeed's residual mixture,
    /// arXiv 2201.05596, section 4.1.2).
    pub blended: bool,
}

/// Constant factors in the forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multipliers {
    /// Of the embeddings, wherever they come from.
    pub embedding: f64,
    /// Of what a layer adds to the residual stream.
    pub residual: f64,
    /// Logits are divided by it.
    pub logits_divisor: f64,
}

impl Default for Multipliers {
    fn default() -> Self {
        Self { embedding: 1.0, residual: 1.0, logits_divisor: 1.0 }
    }
}

/// The auxiliary loss of a family; the coefficient multiplies it in the total.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AuxLoss {
    /// None.
    None,
    /// [`load_balance`](moesaic_kernels::losses::load_balance) over all sparse layers together.
    Balance(f64),
    /// [`load_balance`](moesaic_kernels::losses::load_balance) of each layer divided by k, summed over layers.
    LayerBalance(f64),
    /// [`sequence_balance`](moesaic_kernels::losses::sequence_balance), summed over layers.
    SequenceBalance(f64),
    /// [`first_choice_balance`](moesaic_kernels::losses::first_choice_balance) over the whole batch, summed over layers.
    FirstChoice(f64),
    /// [`first_choice_balance`](moesaic_kernels::losses::first_choice_balance) within each row and
    /// [`router_z`](moesaic_kernels::losses::router_z), their means over layers weighted by these two.
    BalanceAndZ(f64, f64),
    /// None; after each step of training biases of the choice move by this rate
    /// ([`balance_bias`](moesaic_kernels::routers::balance_bias)).
    LoadBias(f64),
    /// [`null_balance`](moesaic_kernels::losses::null_balance) over all sparse layers together.
    NullBalance(f64),
    /// [`heterogeneous_balance`](moesaic_kernels::losses::heterogeneous_balance), and what experts without a network weigh in it.
    HeterogeneousBalance(f64, f64),
    /// [`relu_l1`](moesaic_kernels::losses::relu_l1) in its balanced form, with a coefficient that each step of training moves towards
    /// the number of experts per token ([`AdaptiveL1`](moesaic_kernels::losses::AdaptiveL1)).
    AdaptiveL1 {
        /// Factor of a step.
        growth: f64,
    },
    /// [`activation_locality`](moesaic_kernels::losses::activation_locality) and
    /// [`chunk_sparsity`](moesaic_kernels::losses::chunk_sparsity), their means over layers weighted by these two.
    Activation {
        /// Coefficient of the first.
        locality: f64,
        /// Coefficient of the second.
        chunk_sparsity: f64,
        /// Tokens of a chunk.
        chunk: usize,
    },
    /// [`mutual_information`](moesaic_kernels::losses::mutual_information), the mean over layers.
    MutualInformation(f64),
}

/// Sizes above which a config is taken for a mistake.
const WIDEST: usize = 1 << 20;
const MOST: usize = 1 << 14;
const MOST_TOKENS: usize = 1 << 24;

impl DecoderConfig {
    /// Reads `config.json` of a model folder, or what a GGUF file says instead.
    pub fn load(dir: &Path) -> Result<Self> {
        if is_gguf(dir) {
            return Self::from_gguf(&Gguf::open(dir)?);
        }
        let path = dir.join("config.json");
        Self::from_json(&folder::config_text(&path)?).map_err(|e| folder::at(&path, bare(&e)))
    }

    /// The configuration of a GGUF file.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let config = Self::from_value(Value::Object(file.config().clone()));
        config.map_err(|e| Error::msg(format!("{}: {}", file.checkpoint().label(), bare(&e))))
    }

    /// Translates and checks a `config.json`.
    ///
    /// # Errors
    /// Not JSON, a `model_type` that is not supported (the message lists those that are), a missing key, a value that does
    /// not fit the others, an option that is not supported.
    pub fn from_json(json: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(json).map_err(|e| Error::msg(format!("this is not JSON: {e}")))?;
        Self::from_value(value)
    }

    /// [`from_json`](Self::from_json) of what was read already: the `text_config` of a model of several parts.
    pub(crate) fn from_value(value: Value) -> Result<Self> {
        families::translate(value)?.checked()
    }

    pub(crate) fn checked(self) -> Result<Self> {
        self.validate().map_err(|e| Error::msg(format!("{}: {}", self.model_type, bare(&e))))?;
        Ok(self)
    }

    /// The model types that are supported.
    pub fn supported() -> impl Iterator<Item = &'static str> {
        families::names()
    }

    /// Routed experts of layer `i`; 0 where it is dense.
    pub fn experts(&self, i: usize) -> usize {
        match (self.layers.get(i), self.sparse) {
            (Some(layer), Some(sparse)) if layer.sparse => layer.experts.unwrap_or(sparse.experts),
            _ => 0,
        }
    }

    /// The same model whose routers with capacity draw second experts with noise of this seed, as their reference does in
    /// evaluation too; `None` takes the best. Changes nothing in models without such routers.
    pub fn with_second_choice_noise(mut self, seed: Option<u64>) -> Self {
        if let Some(SparseConfig { router: RouterConfig::Capacity { noise, .. }, .. }) = &mut self.sparse {
            *noise = seed;
        }
        self
    }

    /// The layers that have routed experts, by index.
    pub fn sparse_layers(&self) -> impl Iterator<Item = usize> {
        self.layers.iter().enumerate().filter(|(_, l)| l.sparse).map(|(i, _)| i)
    }
}

/// The message of an error without its stack trace. Where one was asked for (`RUST_BACKTRACE`), its text takes tens of
/// megabytes to make, as the program's debug information is read for it; what is wrong with a configuration is no matter of who
/// called whom.
pub(super) fn bare(error: &Error) -> String {
    match error {
        Error::WithBacktrace { inner, .. } => bare(inner),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_no_stack_trace() {
        let traced = |inner: Error| Error::WithBacktrace {
            inner: Box::new(inner),
            backtrace: Box::new(std::backtrace::Backtrace::force_capture()),
        };
        assert_eq!(bare(&traced(traced(Error::Msg("0 layers".into())))), "0 layers");
        let message = DecoderConfig::from_json(r#"{"model_type": "gemma9"}"#).unwrap_err();
        assert!(!bare(&message).contains('\n'), "{message}");
    }
}
