//! Where models compute.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result, quoted};

/// Where a model computes. What it is given and what it returns are on the CPU either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by its number; for builds with the feature `cuda`.
    Cuda(usize),
}

impl Device {
    /// # Errors
    /// [`Error::Device`]: this build knows no GPU, or none answers.
    pub(crate) fn open(self) -> Result<candle_core::Device> {
        let Device::Cuda(number) = self else { return Ok(candle_core::Device::Cpu) };
        if !candle_core::utils::cuda_is_available() {
            let problem = format!(
                "{self} was asked for, but this build has no CUDA: build it with --features cuda (README, \"On a GPU\"), or compute on the CPU"
            );
            return Err(Error::Device(problem));
        }
        // With a stream of its own, which other threads wait for where they use its tensors.
        candle_core::Device::new_cuda_with_stream(number).map_err(|error| {
            let reason = crate::error::candle_message(&error);
            Error::Device(format!(
                "{self} does not answer ({reason}): see what nvidia-smi shows, or compute on the CPU"
            ))
        })
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let number = match name {
            "cpu" => return Ok(Device::Cpu),
            "cuda" => Some(0),
            other => other.strip_prefix("cuda:").and_then(|number| number.parse().ok()),
        };
        number
            .map(Device::Cuda)
            .ok_or_else(|| Error::option(format!("{} is no device: give cpu, cuda or cuda:N", quoted(name))))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for (name, device) in [("cpu", Device::Cpu), ("cuda:0", Device::Cuda(0)), ("cuda:3", Device::Cuda(3))] {
            assert_eq!((name.parse::<Device>().unwrap(), device.to_string().as_str()), (device, name));
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA"] {
            assert!(name.parse::<Device>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_said_to_be_missing() {
        assert!(Device::Cpu.open().unwrap().is_cpu());
        // No machine has so many, and most builds know none.
        match Device::Cuda(9999).open() {
            Err(Error::Device(problem)) => {
                assert!(problem.contains("cuda:9999") && problem.contains("CPU"), "{problem}")
            }
            other => panic!("{other:?}"),
        }
    }
}
