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

    /// The same map with other names: a language model's inside a larger model.
    pub(crate) fn renamed(self, rename: impl Fn(&str) -> String) -> Self {
        match self {
            Self::Linear { parts, linear } => {
                Self::Linear { parts: parts.into_iter().map(|(name, out)| (rename(&name), out)).collect(), linear }
            }
            Self::Experts { names, prefix, bank } => {
                let names = names.into_iter().map(|names| names.map(|name| name.map(|name| rename(&name))));
                Self::Experts { names: names.collect(), prefix: rename(&prefix), bank }
            }
        }
    }
}
