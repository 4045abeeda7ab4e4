//! Routers, expert kernels, attention, norms and checkpoints for sparse mixture-of-experts models on candle.
//!
//! A sparse layer is three stages around a router:
//!
//! ```text
//! x [T, H] ── Router ──▶ Routes { token [R], offsets [E+1], slot [R], weight [R], scores [T, E] }
//!     │                     │
//!     └── dispatch ──▶ grouped_linear, activation, grouped_linear ──▶ combine ──▶ [T, O]
//!             [R, H]                  [R, O]
//! ```
//!
//! [`ExpertBank`] runs the stages with gradients, or a fused path without; [`MoeLayer`] adds the router and shared
//! experts. Given the same routes, results have the same bits for any number of threads, for a row alone or in a batch,
//! and for any order of experts.

mod attention;
mod blocks;
pub mod checkpoint;
mod composed;
pub mod consistency;
pub mod conv;
pub mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
pub mod experts;
mod host;
mod layer;
mod linear;
pub mod lora;
pub mod losses;
pub mod ops;
mod params;
mod pointwise;
mod probe;
pub mod rng;
pub mod rotary;
pub mod routers;
mod routes;
mod tokens;

pub use attention::{BiasedAttention, CausalAttention, Sight};
pub use blocks::{BlockFormat, Blocks};
#[doc(hidden)] // how the messages of the workspace show what stands in a file
pub use checkpoint::text::{one_line, shown};
pub use cpu::pack::Packed;
pub use experts::{
    Activation, BankKind, BankPass, ExpertBank, FreeExpert, Half, OutputNorm, Storage, combine, dispatch,
    grouped_linear, linear, watch,
};
pub use layer::{MoeLayer, SharedExpert};
pub use linear::Linear;
pub use params::{Init, Params};
pub use probe::Probe;
pub use routers::Router;
pub use routes::{Limit, RouteInput, Routes};
pub use tokens::{Modality, Tokens};
