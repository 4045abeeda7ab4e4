//! Models of the moesaic workspace: forecasters, backbones, and the trainer for all of them.
//!
//! One model, one file, in the order of its paper. Sparse layers come from [`moesaic_kernels`]; none is written here.

pub mod aria;
pub mod avsr;
pub mod decoder;
pub mod folder;
pub mod generate;
pub mod lora;
pub mod moirai_moe;
pub mod moma;
pub mod omni;
pub mod qwen3_vl;
pub mod time_moe;
pub mod train;
pub mod upcycle;
pub mod usam;
pub mod vision;
