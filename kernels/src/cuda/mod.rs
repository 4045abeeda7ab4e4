//! Routing and expert compute on NVIDIA GPUs, from Ampere on.
//!
//! The kernels are CUDA C++ in this folder, compiled ahead: `bin/` holds machine code for Hopper and PTX for the rest, made again by
//! `tools/cuda.py`. [`launch`] says which kernel runs on what, and checks that it may; without a GPU its launches run on the emulator of
//! `tests/cuda`, which is how the kernels are tested there.

pub(crate) mod launch;
#[cfg(test)]
mod tests;
