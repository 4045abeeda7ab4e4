//! The linear maps of a model by published name: where adapters attach.

use moesaic_kernels::{ExpertBank, Linear};

/// A map of the model, to be changed in place, with the published names of the tensors that it is made of.
#[derive(Debug)]
pub enum Site<'a> {
    /// A linear map, or several of one input side by side.
    Linear {
        /// Published module names without `.weight`, such as `model.layers.0.self_attn.q_proj`, each with its number of
        /// outputs. Outputs stand one after the other.
        parts: Vec<(String, usize)>,
        /// The map.
        linear: &'a mut Linear,
    },
    /// The feed-forward networks of a layer: routed experts, a shared expert, or the one of a dense layer.
    Experts {
        /// Published module names by expert: gate (absent without), up, down. Empty where all experts of the layer share
        /// tensors (GraniteMoE, JetMoE); `prefix` names the layer's part in every case.
        names: Vec<[Option<String>; 3]>,
        /// The part of the layer, such as `model.layers.0.mlp`.
        prefix: String,
        /// The networks.
        bank: &'a mut ExpertBank,
    },
}

impl<'a> Site<'a> {
    pub(super) fn linear(parts: Vec<(String, usize)>, linear: &'a mut Linear) -> Self {
        Self::Linear { parts, linear }
    }
}
