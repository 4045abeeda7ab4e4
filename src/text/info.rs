//! What a language model is, from its configuration and the headers of its weights.

use std::collections::BTreeMap;
use std::path::Path;

use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::decoder::{AttentionConfig, DecoderConfig};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::forecaster::{ModelFile, Parameters};

/// What a language model is: its shape, its size, and the files it comes from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TextModelInfo {
    /// The folder or file.
    pub source: String,
    /// The model family, as `model_type` in `config.json`.
    pub architecture: String,
    /// Sizes in parameters.
    pub parameters: Parameters,
    /// Parameters by the kind of layer, in the order of the forward pass; kinds that the model lacks are left out.
    pub kinds: Vec<LayerParameters>,
    /// Decoder layers.
    pub layers: usize,
    /// How many of them have routed experts.
    pub sparse_layers: usize,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Attention heads for each token.
    pub heads: usize,
    /// Attention heads of keys and values; absent where these share a latent.
    pub kv_heads: Option<usize>,
    /// Routed experts in each sparse layer; 0 for a dense model.
    pub experts: usize,
    /// Routed experts that each token is sent to.
    pub experts_per_token: usize,
    /// Sparse layers have an expert for every token as well.
    pub shared_expert: bool,
    /// The most tokens of prompt and answer together.
    pub positions: usize,
    /// Number types and formats of blocks on disk, with the number of tensors of each.
    pub dtypes: BTreeMap<String, usize>,
    /// The files of weights.
    pub files: Vec<ModelFile>,
}

/// The parameters of one kind of layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LayerParameters {
    /// The kind: `embedding`, `attention`, `experts`, ...
    pub kind: String,
    /// Its sizes, summed over layers.
    #[serde(flatten)]
    pub parameters: Parameters,
}

impl TextModelInfo {
    /// Describes a model folder or GGUF file. Reads its configuration and the headers of its weights, not the weights.
    ///
    /// # Errors
    /// As [`TextGenerator::from_dir`](super::TextGenerator::from_dir), but for what only shows when tokenizer and weights
    /// are read.
    pub fn of_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let config = super::generator::decoder_config(dir)?;
        let checkpoint = Checkpoint::open(dir).map_err(|error| Error::weights(dir, &error))?;
        Ok(Self::new(dir, &config, &checkpoint))
    }

    pub(super) fn new(dir: &Path, config: &DecoderConfig, checkpoint: &Checkpoint) -> Self {
        let mut dtypes = BTreeMap::new();
        for info in checkpoint.names().filter_map(|name| checkpoint.info(name)) {
            *dtypes.entry(info.stored_as().to_string()).or_insert(0) += 1;
        }
        let file_name = |label: &str| {
            Path::new(label).file_name().map_or_else(|| label.to_string(), |name| name.to_string_lossy().into_owned())
        };
        let parameters = config.parameters();
        let kinds = parameters.kinds().into_iter().filter(|(_, part)| part.total > 0);
        let (heads, kv_heads) = match config.attention {
            AttentionConfig::Grouped(a) => (a.heads, Some(a.kv_heads)),
            AttentionConfig::Latent(a) => (a.heads, None),
            AttentionConfig::Mixture(a) => (a.kv_heads.saturating_mul(a.k), Some(a.kv_heads)),
        };
        Self {
            source: dir.display().to_string(),
            architecture: config.model_type.clone(),
            parameters: Parameters { total: parameters.total(), active: parameters.active() },
            kinds: kinds
                .map(|(kind, part)| LayerParameters {
                    kind: kind.to_string(),
                    parameters: Parameters { total: part.total, active: part.active },
                })
                .collect(),
            layers: config.layers.len(),
            sparse_layers: config.sparse_layers().count(),
            hidden: config.hidden_size,
            vocabulary: config.vocab_size,
            heads,
            kv_heads,
            experts: config.sparse.map_or(0, |sparse| sparse.experts),
            experts_per_token: config.sparse.map_or(0, |sparse| sparse.k),
            shared_expert: config.sparse.is_some_and(|sparse| sparse.shared.is_some()),
            positions: config.max_positions,
            dtypes,
            files: checkpoint.files().map(|(label, bytes)| ModelFile { name: file_name(label), bytes }).collect(),
        }
    }
}
