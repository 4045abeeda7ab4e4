//! Weights as whole numbers in blocks that share a scale, in the formats of GGUF files.
//!
//! A row of a weight is cut into blocks of 32 or 256 values. Every value of a block is `scale * q + offset`, with a whole
//! number `q` and a scale and an offset for each 16 or 32 of them:
//!
//! | format | values a block | bytes a block | `q` | scale and offset for each |
//! | --- | ---: | ---: | --- | --- |
//! | `q8_0` | 32 | 34 | -128..=127 | 32; no offset |
//! | `q4_0` | 32 | 18 | 0..=15 | 32; the offset is -8 scales |
//! | `q4_1` | 32 | 20 | 0..=15 | 32 |
//! | `q4_k` | 256 | 144 | 0..=15 | 32; 6 bits each, times two numbers of the block |
//! | `q5_k` | 256 | 176 | 0..=31 | 32; likewise |
//! | `q6_k` | 256 | 210 | -32..=31 | 16; no offset; 8 bits, times a number of the block |
//!
//! Layout: [ggml's `ggml-common.h`](https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h).
//! In a safetensors file such a tensor is one of bytes, `[.., bytes of a row]`, and the header's metadata names the format:
//! `blocks.<name>` = `q8_0`.

mod layout;
mod search;

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::checkpoint::text::{shape_text, shown};
use crate::cpu::parallel;

/// What stands before a tensor's name in the metadata of a safetensors file, with the format as its value.
pub(crate) const MARK: &str = "blocks.";

/// Values that a thread quantises at once; whole blocks of every format.
const TASK: usize = 1 << 13;

/// A format of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockFormat {
    /// 8 bits and a scale for 32 values.
    Q8_0,
    /// 4 bits and a scale for 32 values.
    Q4_0,
    /// 4 bits, a scale and an offset for 32 values.
    Q4_1,
    /// 4 bits, with a scale and an offset of 6 bits for 32 values, in blocks of 256.
    Q4K,
    /// 5 bits, otherwise as `Q4K`.
    Q5K,
    /// 6 bits, with a scale of 8 bits for 16 values, in blocks of 256.
    Q6K,
}

impl BlockFormat {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Q8_0, Self::Q4_0, Self::Q4_1, Self::Q4K, Self::Q5K, Self::Q6K];

    /// Values of a block.
    pub const fn values(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Values that share a scale and an offset.
    pub const fn group(self) -> usize {
        if matches!(self, Self::Q6K) { 16 } else { 32 }
    }

    /// Its name, such as `q4_k`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }

    /// The format of this name, in capital letters or not.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a row of `k` values; `None` unless blocks fill it exactly.
    pub fn row_bytes(self, k: usize) -> Option<usize> {
        k.is_multiple_of(self.values()).then(|| (k / self.values()).checked_mul(self.bytes())).flatten()
    }

    /// The whole numbers of a block, and scale and offset of each [`group`](Self::group): 16 of them at most count.
    ///
    /// # Panics
    /// `block` is no block, or `q` has other than its number of values.
    pub fn unpack(self, block: &[u8], q: &mut [i8], scales: &mut [(f32, f32); 16]) {
        assert!(block.len() == self.bytes() && q.len() == self.values(), "one block of {}", self.name());
        layout::unpack(self, block, q, scales);
    }

    /// The values of blocks.
    ///
    /// # Panics
    /// `blocks` are not whole blocks, or `out` has other than their number of values.
    pub fn dequantise(self, blocks: &[u8], out: &mut [f32]) {
        assert!(
            blocks.len().is_multiple_of(self.bytes()) && blocks.len() / self.bytes() * self.values() == out.len(),
            "{} bytes of {} for {} values",
            blocks.len(),
            self.name(),
            out.len()
        );
        let (mut q, mut scales) = ([0i8; 256], [(0f32, 0f32); 16]);
        let q = &mut q[..self.values()];
        for (block, out) in blocks.chunks_exact(self.bytes()).zip(out.chunks_exact_mut(self.values())) {
            layout::unpack(self, block, q, &mut scales);
            let groups = out.chunks_exact_mut(self.group()).zip(q.chunks_exact(self.group()));
            for ((out, q), (scale, offset)) in groups.zip(scales) {
                out.iter_mut().zip(q).for_each(|(out, q)| *out = scale * f32::from(*q) + offset);
            }
        }
    }

    /// Values as blocks, with scales and offsets searched for the least squared error, on several threads.
    ///
    /// # Errors
    /// Lengths that do not belong together, values that are not finite, or a format that is only read (`q5_k`, `q6_k`).
    pub fn quantise(self, values: &[f32], out: &mut [u8]) -> Result<()> {
        let blocks = values.len() / self.values();
        if !values.len().is_multiple_of(self.values()) || out.len() != blocks * self.bytes() {
            bail!("{} values for {} bytes of {}: expected whole blocks", values.len(), out.len(), self.name());
        }
        if matches!(self, Self::Q5K | Self::Q6K) {
            bail!("{} is read, not written; choose q8_0, q4_0, q4_1 or q4_k", self.name());
        }
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            bail!("{value} cannot be quantised: all values must be finite");
        }
        // Each task owns its part, which the lock hands over; no two threads ever wait for one.
        let parts = values.chunks(TASK).zip(out.chunks_mut(TASK / self.values() * self.bytes()));
        let tasks: Vec<_> = parts.map(Mutex::new).collect();
        parallel(tasks.len(), tasks.len() > 1, |i| {
            let mut task = tasks[i].lock().unwrap_or_else(PoisonError::into_inner);
            let (values, out) = &mut *task;
            for (values, block) in values.chunks_exact(self.values()).zip(out.chunks_exact_mut(self.bytes())) {
                layout::pack(self, values, block);
            }
        });
        Ok(())
    }
}

/// A weight in blocks: rows of `K` values, one after the other.
#[derive(Clone, Debug)]
pub struct Blocks {
    format: BlockFormat,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Blocks {
    /// Blocks of a weight `[.., K]`.
    ///
    /// # Errors
    /// `K` is no multiple of the format's block, or `data` has another length than the shape takes.
    pub fn new(format: BlockFormat, shape: Vec<usize>, data: Vec<u8>) -> Result<Self> {
        let bytes = bytes_of(format, &shape)?;
        if bytes != data.len() {
            bail!("{} bytes for a weight {} in {}: expected {bytes}", data.len(), shape_text(&shape), format.name());
        }
        Ok(Self { format, shape, data })
    }

    /// A weight `[.., K]` as blocks.
    ///
    /// # Errors
    /// As [`BlockFormat::quantise`], and where `K` is no multiple of the format's block.
    pub fn quantise(weight: &Tensor, format: BlockFormat) -> Result<Self> {
        let shape = weight.dims().to_vec();
        let mut data = vec![0u8; bytes_of(format, &shape)?];
        let values = weight.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        format.quantise(&values, &mut data)?;
        Ok(Self { format, shape, data })
    }

    /// The format.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// The shape of the weight that it stands for.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// All blocks.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// All blocks, without a copy.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// The blocks of row `i`, counted over all leading axes.
    ///
    /// # Panics
    /// There is no such row.
    pub fn row(&self, i: usize) -> &[u8] {
        let k = self.shape.last().copied().unwrap_or(0);
        let bytes = k / self.format.values() * self.format.bytes();
        &self.data[i * bytes..][..bytes]
    }

    /// The weight in f32, `[.., K]`.
    pub fn dequantise(&self) -> Result<Tensor> {
        let mut values = vec![0f32; self.shape.iter().product()];
        self.format.dequantise(&self.data, &mut values);
        Tensor::from_vec(values, self.shape.as_slice(), &Device::Cpu)
    }

    /// What a safetensors file holds of it: bytes `[.., bytes of a row]`, and the entry of the header's metadata that says
    /// what they are, for a tensor `name`.
    pub fn to_safetensors(&self, name: &str) -> Result<(Tensor, (String, String))> {
        let mut shape = self.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = *last / self.format.values() * self.format.bytes();
        }
        let tensor = Tensor::from_vec(self.data.clone(), shape, &Device::Cpu)?;
        Ok((tensor, (format!("{MARK}{name}"), self.format.name().to_string())))
    }
}

/// Bytes of a weight in blocks.
fn bytes_of(format: BlockFormat, shape: &[usize]) -> Result<usize> {
    let Some((&k, leading)) = shape.split_last() else { bail!("a single number is no row of blocks") };
    let Some(row) = format.row_bytes(k) else {
        bail!(
            "rows of {k} values do not fill blocks of {}: {} needs a multiple of that",
            format.values(),
            format.name()
        );
    };
    match leading.iter().try_fold(row, |bytes, &n| bytes.checked_mul(n)) {
        Some(bytes) => Ok(bytes),
        None => bail!("a weight {} is too large", shape_text(shape)),
    }
}

/// The logical shape of bytes `[.., bytes of a row]`; an error text where they are no rows of blocks.
pub(crate) fn logical_shape(format: BlockFormat, stored: &[usize]) -> std::result::Result<Vec<usize>, String> {
    let mut shape = stored.to_vec();
    match shape.last_mut() {
        Some(last) if last.is_multiple_of(format.bytes()) => {
            *last = last.checked_div(format.bytes()).and_then(|n| n.checked_mul(format.values())).unwrap_or(0);
            Ok(shape)
        }
        _ => Err(format!("its rows {} are not whole blocks of {}", shape_text(stored), shown(format.name()))),
    }
}

#[cfg(test)]
mod tests;
