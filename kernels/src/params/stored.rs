//! Weights that stay as they are stored: in blocks, and FP8 on a GPU.

use candle_core::Result;
#[cfg(feature = "cuda")]
use candle_core::bail;

use super::{Init, Params};
use crate::blocks::Blocks;
use crate::cpu::pack::Packed;
#[cfg(feature = "cuda")]
use crate::cuda::{self, blocks::DeviceBlocks, launch::Stored};
use crate::experts::Storage;

impl Params {
    /// The same stack as [`stack`](Self::stack) in the blocks that its parts are stored in; `None` where they are not, or in
    /// several formats, and where plain tensors are wanted: for gradients, on another device than the CPU, or to take
    /// adapters in. Ask for the tensor then.
    ///
    /// # Errors
    /// A part is missing or has another shape.
    pub fn blocks(&self, shape: &[usize], parts: &[(String, Vec<usize>)]) -> Result<Option<Blocks>> {
        if self.packs() { self.stored_blocks(shape, parts) } else { Ok(None) }
    }

    /// The same wherever they are wanted.
    fn stored_blocks(&self, shape: &[usize], parts: &[(String, Vec<usize>)]) -> Result<Option<Blocks>> {
        let Some(checkpoint) = &self.inner.checkpoint else { return Ok(None) };
        let names: Vec<String> = parts.iter().map(|(name, _)| self.full(name)).collect();
        let format = |name: &String| checkpoint.info(name).and_then(|info| info.blocks);
        let Some(first) = names.first().and_then(format) else { return Ok(None) };
        if !names.iter().all(|name| format(name) == Some(first) && !self.inner.merging.contains_key(name)) {
            return Ok(None);
        }
        let mut data = Vec::new();
        for (name, (_, shape)) in names.iter().zip(parts) {
            let Some(blocks) = checkpoint.blocks(name, shape)? else { return Ok(None) };
            // One part, the usual case, is taken as it is.
            if data.is_empty() { data = blocks.into_data() } else { data.extend_from_slice(blocks.data()) }
        }
        let blocks = Blocks::new(first, shape.to_vec(), data)?;
        self.state().used.extend(names);
        Ok(Some(blocks))
    }

    /// True if the checkpoint stores this tensor in blocks that [`blocks`](Self::blocks) gives.
    pub(crate) fn in_blocks(&self, name: &str) -> bool {
        let name = self.full(name);
        let stored =
            self.inner.checkpoint.as_ref().and_then(|c| c.info(&name)).is_some_and(|info| info.blocks.is_some());
        stored && self.packs() && !self.inner.merging.contains_key(&name)
    }

    /// A stack of experts `[E, N, K]` for an [`ExpertBank`](crate::ExpertBank): in tiles at once where its parts are stored in
    /// [blocks](Self::blocks), as they are stored on a GPU whose kernels are wanted and have that (blocks or FP8, of several experts), else as the tensor. `gated` where each expert's rows are those of its gate and then of its up.
    ///
    /// # Errors
    /// As [`stack`](Self::stack).
    pub fn storage(&self, shape: &[usize], parts: &[(String, Vec<usize>)], init: Init, gated: bool) -> Result<Storage> {
        #[cfg(feature = "cuda")]
        if !self.trains()
            && self.device().is_cuda()
            && cuda::wanted()
            && let Some(blocks) = self.on_device(shape, parts)?
        {
            return Ok(Storage::Blocks(blocks));
        }
        match self.blocks(shape, parts)? {
            Some(blocks) => Ok(Storage::Packed(Packed::from_blocks(&blocks, gated)?)),
            None => Ok(Storage::Dense(self.stack(shape, parts, init)?)),
        }
    }

    /// A stack as it is stored, on the GPU, where all its parts are stored in one way that its kernels have.
    #[cfg(feature = "cuda")]
    fn on_device(&self, shape: &[usize], parts: &[(String, Vec<usize>)]) -> Result<Option<DeviceBlocks>> {
        let Some(checkpoint) = &self.inner.checkpoint else { return Ok(None) };
        // One network is a plain product, for which candle has cuBLAS.
        if shape.first().is_none_or(|&experts| experts < 2) {
            return Ok(None);
        }
        let names: Vec<String> = parts.iter().map(|(name, _)| self.full(name)).collect();
        let format = |name: &String| checkpoint.info(name).and_then(|info| info.blocks).and_then(Stored::of);
        if names.iter().all(|name| format(name).is_some())
            && let Some(blocks) = self.stored_blocks(shape, parts)?
            && let Some(stored) = Stored::of(blocks.format())
        {
            return DeviceBlocks::new(stored, shape, blocks.into_data(), self.device()).map(Some);
        }
        let plain = |name: &String| {
            checkpoint.info(name).is_some_and(|info| info.is_fp8()) && !self.inner.merging.contains_key(name)
        };
        if !names.iter().all(plain) {
            return Ok(None);
        }
        let size = |shape: &[usize]| {
            let (&k, rows) = shape.split_last()?;
            rows.iter().try_fold(Stored::E4M3.row_bytes(k)?, |bytes, &n| bytes.checked_mul(n))
        };
        let sizes: Option<Vec<usize>> = parts.iter().map(|(_, shape)| size(shape)).collect();
        let Some(sizes) = sizes else { return Ok(None) };
        let total = sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
        let mut data = Vec::new();
        let Some(total) = total.filter(|&total| data.try_reserve_exact(total).is_ok()) else {
            bail!("{}: no memory for weights of shape {shape:?} in FP8", self.prefix);
        };
        data.resize(total, 0);
        let mut rest = &mut data[..];
        for ((name, (_, shape)), size) in names.iter().zip(parts).zip(sizes) {
            let (own, others) = rest.split_at_mut(size);
            checkpoint.fp8_rows(name, shape, own)?;
            rest = others;
        }
        self.state().used.extend(names);
        DeviceBlocks::new(Stored::E4M3, shape, data, self.device()).map(Some)
    }
}
