//! Routing and expert compute on NVIDIA GPUs, from Ampere on.
//!
//! The kernels are CUDA C++ in this folder, compiled ahead: `bin/` holds machine code for Hopper and PTX for the rest, made again by
//! `tools/cuda.py`. [`launch`] says which kernel runs on what, and checks that it may; without a GPU its launches run on the emulator of
//! `tests/cuda`, which is how the kernels are tested there. NOTES.md says what is known of them.
//!
//! They have not run on a GPU yet, so they are not what a tensor there meets unless the environment has `MOESAIC_CUDA_KERNELS=1`: that is
//! candle's operations, one expert after the other (`crate::composed`).

pub(crate) mod binaries;
#[cfg(feature = "cuda")]
pub(crate) mod blocks;
#[cfg(feature = "cuda")]
pub(crate) mod device;
pub(crate) mod launch;
#[cfg(feature = "cuda")]
pub(crate) mod stages;
#[cfg(test)]
mod tests;

/// True where the kernels are wanted: by the environment, and in this crate's tests.
#[cfg(feature = "cuda")]
pub(crate) fn wanted() -> bool {
    static WANTED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *WANTED.get_or_init(|| std::env::var_os("MOESAIC_CUDA_KERNELS").map_or(cfg!(test), |v| v == "1"))
}
