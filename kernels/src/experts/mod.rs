//! Expert compute: a stack of feed-forward networks, each applied to the tokens routed to it.
//!
//! [`stages`] holds the differentiable operations, [`ExpertBank`] the networks made of them, a fused module the inference path
//! that keeps intermediate values out of tensors, and [`naive()`] the oracle for both.

mod adapters;
mod bank;
mod free;
mod fused;
mod naive;
pub mod stages;
mod watch;

pub use adapters::Half;
pub use bank::{Activation, BankKind, ExpertBank, OutputNorm, Storage};
pub use free::FreeExpert;
pub use naive::naive;
pub use stages::{combine, dispatch, grouped_linear, linear};
pub use watch::{BankPass, watch};
