//! The kernels on the emulator, beside the CPU's.
//!
//! Where there is no C++ compiler the tests say so and pass.

#[cfg(feature = "cuda")]
mod device;
mod emulator;
mod experts;
mod plan;
