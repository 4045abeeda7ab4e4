//! Projectors: modality tokens to backbone tokens.
//!
//! Dense and sparse connectors (MLP, SMoP, CuMo, U-SAM) will stand here behind one trait, on the routers and the expert
//! bank of `moesaic-kernels`. The crate holds nothing yet.
