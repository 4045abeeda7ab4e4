//! Weights that stay as they are stored, on the device.

use candle_core::{Device, Result, Tensor, bail};

use super::launch::Stored;

/// The weights of experts `[E, N, K]` in blocks or FP8, on a GPU: half or a fourth of what they take in bf16, in memory and on the way from it.
#[derive(Clone, Debug)]
pub struct DeviceBlocks {
    stored: Stored,
    /// `[E, N, bytes of a row]` u8.
    data: Tensor,
    depth: usize,
}

impl DeviceBlocks {
    /// Brings the rows of `shape [E, N, K]` to a device.
    ///
    /// # Errors
    /// The weights are no stack, or `data` is not of its size.
    pub(crate) fn new(stored: Stored, shape: &[usize], data: Vec<u8>, device: &Device) -> Result<Self> {
        let (&[experts, rows, depth], Some(bytes)) = (shape, shape.last().and_then(|&depth| stored.row_bytes(depth)))
        else {
            bail!("weights of shape {shape:?} in {} have no kernel on the GPU", stored.name());
        };
        Ok(Self { stored, data: Tensor::from_vec(data, (experts, rows, bytes), device)?, depth })
    }

    /// `(experts, out, in)`
    pub(crate) fn dims(&self) -> Result<(usize, usize, usize)> {
        let (experts, rows, _) = self.data.dims3()?;
        Ok((experts, rows, self.depth))
    }

    pub(super) fn stored(&self) -> Stored {
        self.stored
    }

    pub(super) fn data(&self) -> &Tensor {
        &self.data
    }
}
