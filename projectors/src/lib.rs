//! Projectors: modality tokens to backbone tokens.
//!
//! | projector | file | of |
//! | --- | --- | --- |
//! | [`Mlp`] | `mlp.rs` | a linear map or `mlpNx_gelu`: LLaVA, MoE-LLaVA |
//! | [`SparseMlp`] | `sparse.rs` | two-layer networks behind a router: CuMo |
//! | [`Queries`] | `queries.rs` | learned queries that look at the picture: Aria |
//! | [`TwoLayer`] | `two_layer.rs` | compression and a two-layer network: Llama-AVSR |
//! | [`Matryoshka`] | `matryoshka.rs` | one such network for each of several rates of compression: Llama-MTSK |
//! | [`Smop`] | `smop.rs` | sparse mixture of projectors over several modalities: Llama-SMoP |
//! | [`WindowQFormer`] | `qformer.rs` | learned queries that look at each window of sound: U-SAM |
//! | [`TaskMixture`] | `task_mixture.rs` | a mixture of projectors, weighed by sound and prompt: U-SAM |
//!
//! [`Compression`] makes fewer tokens of many before a projector; [`spatial_unpad`] makes one sequence of the tokens of a
//! picture's tiles behind it.

mod anyres;
mod compress;
mod matryoshka;
mod mlp;
mod qformer;
mod queries;
mod smop;
mod sparse;
mod task_mixture;
mod two_layer;

pub use anyres::{spatial_unpad, unpadded};
pub use compress::Compression;
pub use matryoshka::Matryoshka;
pub use mlp::{Mlp, MlpNames};
pub use qformer::{WindowQFormer, WindowQFormerConfig};
pub use queries::{Queries, QueriesConfig};
pub use smop::{Sharing, Smop, SmopConfig};
pub use sparse::{SparseMlp, SparseMlpConfig};
pub use task_mixture::{MixtureSum, TaskMixture, TaskMixtureConfig};
pub use two_layer::{Intake, TwoLayer};

use candle_core::{Result, Tensor, bail};
use moesaic_kernels::{Modality, Probe, Routes, Tokens};

/// What a projector may look at.
#[derive(Clone, Copy)]
pub struct ProjectorInput<'a> {
    /// Tokens of one or several modalities of the same batch. One router over several modalities sees all of them.
    pub tokens: &'a [Tokens],
    /// What the projection is conditioned on, `[b, t, c]` each: U-SAM's prompt, its parts before and behind the audio.
    pub prompt: &'a [Tensor],
}

impl<'a> ProjectorInput<'a> {
    /// Tokens alone.
    pub fn new(tokens: &'a [Tokens]) -> Self {
        Self { tokens, prompt: &[] }
    }
}

/// What a projector gives.
#[derive(Clone, Debug)]
pub struct Projected {
    /// Tokens of the backbone's width, one for each of the input, in that order.
    pub tokens: Vec<Tokens>,
    /// The routes of its routers, for losses; none of a dense projector.
    pub routes: Vec<Routes>,
}

/// Maps modality tokens to backbone tokens.
pub trait Projector: Send + Sync + std::fmt::Debug {
    /// Width of the tokens of a modality that it takes; `None` for a modality that it does not know.
    fn input_width(&self, modality: Modality) -> Option<usize>;

    /// Width of the tokens that it gives.
    fn output_width(&self) -> usize;

    /// Projects all tokens of a batch.
    fn project(&self, input: &ProjectorInput<'_>, probe: Option<&Probe>) -> Result<Projected>;

    /// Tokens of one modality.
    fn project_one(&self, tokens: &Tokens, probe: Option<&Probe>) -> Result<(Tokens, Vec<Routes>)> {
        let Projected { mut tokens, routes } =
            self.project(&ProjectorInput::new(std::slice::from_ref(tokens)), probe)?;
        match tokens.pop() {
            Some(projected) => Ok((projected, routes)),
            None => bail!("the projector gave no tokens"),
        }
    }
}

/// A modality as tensor names call it.
fn label(modality: Modality) -> &'static str {
    match modality {
        Modality::Text => "text",
        Modality::Image => "image",
        Modality::Audio => "audio",
        Modality::Video => "video",
        Modality::Series => "series",
    }
}

/// The tokens' width, if the projector takes it.
fn checked(projector: &dyn Projector, tokens: &Tokens) -> Result<(usize, usize, usize)> {
    let (b, t, h) = tokens.embeds.dims3()?;
    match projector.input_width(tokens.modality) {
        Some(width) if width == h => Ok((b, t, h)),
        Some(width) => bail!("the projector takes {:?} tokens of width {width}, got {h}", tokens.modality),
        None => bail!("the projector takes no {:?} tokens", tokens.modality),
    }
}

/// The same tokens with other embeddings of the same number; features for later layers do not fit any more.
fn with_embeds(tokens: &Tokens, embeds: Tensor) -> Tokens {
    Tokens { embeds, taps: Vec::new(), ..tokens.clone() }
}
