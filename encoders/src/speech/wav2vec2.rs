//! wav2vec 2.0 (Baevski et al., "wav2vec 2.0: A Framework for Self-Supervised Learning of Speech Representations", arXiv 2006.11477).
//!
//! ```text
//! samples [b, n] ─ 7 convolutions ─▶ [b, t, 512] ─ LN, linear ─▶ + GELU(convolution over frames) ─ layers ─▶ [b, t, h]
//! ```
//!
//! Base models norm the first convolution over time and each layer's output; large ones norm every convolution's frames and each
//! layer's input.

use super::wave::{Kind, wave_model};

const KIND: Kind = Kind { name: "wav2vec 2.0", prefix: "wav2vec2.", relative: false };

wave_model! {
    /// The encoder of wav2vec 2.0. Weights are of the dtype that they are loaded in, activations are f32 on the CPU.
    Wav2Vec2, KIND
}
