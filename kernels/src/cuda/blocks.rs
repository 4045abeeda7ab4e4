//! Weights that stay in blocks on the device.

use candle_core::{Device, Result, Tensor, bail};

use crate::{BlockFormat, Blocks};

/// The weights of experts `[E, N, K]` in blocks, on a GPU: a fourth or half of what they take in bf16, in memory and on the way from it.
#[derive(Clone, Debug)]
pub struct DeviceBlocks {
    format: BlockFormat,
    /// `[E, N, bytes of a row]` u8.
    data: Tensor,
    depth: usize,
}

impl DeviceBlocks {
    /// True if the kernels have this format.
    pub(crate) fn has(format: BlockFormat) -> bool {
        matches!(format, BlockFormat::Q8_0 | BlockFormat::Q4K)
    }

    /// Blocks `[E, N, K]` brought to a device.
    ///
    /// # Errors
    /// The GPU has no kernel for the format, or the weights are no stack.
    pub(crate) fn new(blocks: Blocks, device: &Device) -> Result<Self> {
        let (format, shape) = (blocks.format(), blocks.shape().to_vec());
        let (&[experts, rows, depth], true) = (&shape[..], Self::has(format)) else {
            bail!("weights of shape {shape:?} in {} have no kernel on the GPU", format.name());
        };
        let data = blocks.into_data();
        let bytes = data.len() / (experts * rows).max(1);
        Ok(Self { format, data: Tensor::from_vec(data, (experts, rows, bytes), device)?, depth })
    }

    /// `(experts, out, in)`
    pub(crate) fn dims(&self) -> Result<(usize, usize, usize)> {
        let (experts, rows, _) = self.data.dims3()?;
        Ok((experts, rows, self.depth))
    }

    pub(super) fn format(&self) -> BlockFormat {
        self.format
    }

    pub(super) fn data(&self) -> &Tensor {
        &self.data
    }
}
