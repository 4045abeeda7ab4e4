//! HuBERT (Hsu et al., "HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units", arXiv
//! 2106.07447): the network of wav2vec 2.0, trained for other targets. MERT (Li et al., arXiv 2306.00107) has its layout too.
//!
//! Its config may leave out the norm before the projection (`feat_proj_layer_norm`).

use super::wave::{Kind, wave_model};

const KIND: Kind = Kind { name: "HuBERT", prefix: "hubert.", relative: false };

wave_model! {
    /// The encoder of HuBERT. Weights are of the dtype that they are loaded in, activations are f32 on the CPU.
    Hubert, KIND
}
