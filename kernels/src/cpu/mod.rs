//! CPU kernels: one matrix product with packed operands, and the row-wise functions around it.
//!
//! Every product of our own on the CPU, those inside attention too, is computed by the same tiles, so one promise holds
//! everywhere: **an output element is one chain of multiply-adds over k in ascending order**, whatever the number of rows,
//! threads or neighbours. A row alone and the same row in a batch therefore have the same bits. (candle's own `gemm` gives
//! other bits for one row than for two.) bf16 inputs on packed bf16 weights may be taken two k at a time. Bits may differ between
//! instruction sets, as the portable path has no fused multiply-add and not every processor has the products of pairs.

pub(crate) mod attention;
pub(crate) mod decode;
pub(crate) mod gemm;
mod isa;
pub(crate) mod math;
pub(crate) mod pack;
mod pool;
pub(crate) mod quant;
pub(crate) mod scratch;
pub(crate) mod tile;

pub use isa::{Isa, with_isa};
pub use pool::{chunks, threads, with_threads};

pub(crate) use isa::isa;
pub(crate) use pool::{SendPtr, Stage, parallel, stages};
pub(crate) use scratch::Scratch;
