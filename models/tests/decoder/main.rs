//! The decoder without published weights: every family made from nothing, saved, loaded, padded, cached, trained a step; and
//! configs and checkpoints that are wrong.

mod batches;
mod families;
mod fp8;
mod gguf;
mod llama_cpp;
mod quantise;
mod refusals;
mod routing;
mod weights;
