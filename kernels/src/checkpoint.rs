//! Reading and writing safetensors checkpoints: one file, a folder with a shard index, or bytes in memory.
//!
//! A checkpoint comes from strangers, so opening one trusts nothing in it: the header's length is held against the file's
//! length before it is read, every shape, offset and size is checked arithmetic, and tensors must tile the data section
//! exactly, as the [format](https://github.com/huggingface/safetensors#format) demands. Opening allocates at most
//! [`OPEN_BYTES_PER_HEADER_BYTE`] times the header and index, plus [`OPEN_BYTES`].
//!
//! Nothing is mapped into memory: a mapped checkpoint that is then copied into tensors peaks near twice its size, and a
//! file that another process truncates kills a process that has it mapped. Each tensor is read once, straight into the
//! buffer that the tensor owns; a change of dtype goes through one buffer of [`CHUNK`] bytes.

mod arrangement;
mod convert;
pub(crate) mod fp8;
pub mod gguf;
mod header;
mod locate;
mod overlay;
pub mod pickle;
mod quantise;
mod shards;
mod source;
#[cfg(test)]
mod tests;
pub(crate) mod text;
mod unfinished;
mod write;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use half::{bf16, f16};

pub use convert::Float;
pub use header::{MAX_HEADER, MAX_RANK};
pub use locate::{INDEX_FILE, SINGLE_FILE, shard_files};
pub use quantise::save_in_blocks;
pub use shards::{Outline, save_shards};
pub use text::nearest;
pub use unfinished::Unfinished;
pub use write::save;

use crate::blocks::{BlockFormat, Blocks};
use arrangement::Arrangement;
use gguf::Gguf;
use source::Source;
use text::{error, refuse, shape_text, shown};

/// Bytes of the buffer through which a tensor is converted when its dtype on disk is not the one asked for.
pub const CHUNK: usize = 1 << 20;
/// Opening a checkpoint allocates at most this many bytes for each byte of header and index, plus [`OPEN_BYTES`].
pub const OPEN_BYTES_PER_HEADER_BYTE: usize = 16;
/// The constant part of what opening a checkpoint may allocate, in bytes.
pub const OPEN_BYTES: usize = 64 << 10;

/// What a checkpoint says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The dtype in which [`Checkpoint::read_any`] gives the tensor; `BOOL` on disk is `U8` here.
    pub dtype: DType,
    /// Lengths of the axes; empty for a scalar.
    pub shape: Vec<usize>,
    /// The format of a tensor that is stored in blocks; `dtype` is `F32` and `shape` that of its values then.
    pub blocks: Option<BlockFormat>,
    /// Bytes that the tensor takes in its file.
    pub bytes: usize,
    /// First byte, counted from the start of the file.
    offset: u64,
    /// Which of the checkpoint's files holds it.
    file: usize,
    /// How its values lie there.
    arrangement: Arrangement,
}

impl TensorInfo {
    /// True if it is stored in FP8, with a scale for each 128 by 128 values; `dtype` is `BF16` then.
    pub fn is_fp8(&self) -> bool {
        matches!(self.arrangement, Arrangement::Scaled(_))
    }

    /// What it is stored as: a dtype, the format of its blocks, or `f8_e4m3`.
    pub fn stored_as(&self) -> &'static str {
        match self.blocks {
            Some(format) => format.name(),
            None if self.is_fp8() => "f8_e4m3",
            None => self.dtype.as_str(),
        }
    }

    /// How many values the tensor has.
    pub fn values(&self) -> usize {
        // By way of the bytes, which were checked against the shape and against the file.
        match self.blocks {
            Some(format) => self.bytes / format.bytes() * format.values(),
            None if self.is_fp8() => self.bytes,
            None => self.bytes / self.dtype.size_in_bytes().max(1),
        }
    }
}

/// An index over the tensors of a checkpoint. Cheap to clone; tensors are read when asked for, from any thread.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The path or label under which the whole checkpoint was opened, for messages.
    label: String,
    sources: Vec<Source>,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a model folder in the Hugging Face layout, one `.safetensors` file, or one `.safetensors.index.json`.
    ///
    /// In a folder, `model.safetensors` is taken where it is there, else the shards of `model.safetensors.index.json`. Only
    /// headers are read here.
    ///
    /// # Errors
    /// The path does not exist or holds no safetensors weights, a file cannot be read or breaks the format, an index names
    /// a file outside its folder, or index and shards disagree. Each message is one line: the file, what is wrong with it,
    /// and what to do.
    pub fn open(path: &Path) -> Result<Self> {
        locate::open(path)
    }

    /// As [`open`](Self::open), and opens checkpoints of torch: a `.pt`, `.pth` or `.ckpt` file, or a folder whose only weights are
    /// `checkpoint.pt`. See [`pickle`] for what is read of them.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`pickle::Pickle::open`].
    pub fn open_any(path: &Path) -> Result<Self> {
        locate::open_any(path)
    }

    /// Opens a checkpoint that is in memory, such as one embedded in the binary; `name` stands for it in messages.
    ///
    /// # Errors
    /// The bytes break the safetensors format.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        let bytes = bytes.into();
        if bytes.starts_with(&gguf::MAGIC) {
            return Ok(Gguf::from_bytes(name, bytes)?.into_checkpoint());
        }
        let source = Source::memory(name, bytes);
        let mut header = header::read(&source, 0)?;
        let sources = vec![source];
        fp8::join(&sources, &mut header.tensors)?;
        Ok(Self::assemble(name.to_string(), sources, header.tensors, header.metadata))
    }

    fn assemble(
        label: String,
        sources: Vec<Source>,
        tensors: BTreeMap<String, TensorInfo>,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        Self { inner: Arc::new(Inner { label, sources, tensors, metadata }) }
    }

    /// All tensor names, in byte order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.inner.tensors.keys().map(String::as_str)
    }

    /// What the checkpoint says of tensor `name`; `None` where there is no such tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.inner.tensors.get(name)
    }

    /// The files of the checkpoint: path (or the label given to [`Self::from_bytes`]) and size in bytes.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.inner.sources.iter().map(|s| (s.label(), s.len()))
    }

    /// The path or label under which the checkpoint was opened.
    pub fn label(&self) -> &str {
        &self.inner.label
    }

    /// The `__metadata__` of the header; of the first shard, where there are several.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.inner.metadata
    }

    /// The name in this checkpoint that is most like `name`, where one is like it at all.
    pub fn nearest(&self, name: &str) -> Option<&str> {
        text::nearest(name, self.names())
    }

    /// Tensors of the checkpoint that are not in `used`, in byte order: what a loader warns of, or refuses when strict.
    pub fn unused<'a>(&'a self, used: &BTreeSet<String>) -> Vec<&'a str> {
        self.names().filter(|name| !used.contains(*name)).collect()
    }

    /// Reads a tensor that must have exactly this shape, converted to `dtype`, onto `device`.
    ///
    /// Floats convert to floats by way of `f32` (rounding to nearest, ties to even), integers to integers where every
    /// value fits; a float is never read as an integer nor the other way round.
    ///
    /// # Errors
    /// No such tensor, another shape, a conversion that is not offered, or the file cannot be read.
    pub fn read(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let info = self.expect(name, shape)?;
        self.tensor(name, info, dtype)?.to_device(device)
    }

    /// Reads a float tensor of exactly this shape as `f32` into `dst`, a slice of a larger buffer such as one expert's part
    /// of a stack. `dst` must have as many values as `shape`.
    ///
    /// # Errors
    /// As [`Self::read`], and where `dst` has another length than the tensor.
    pub fn read_f32_into(&self, name: &str, shape: &[usize], dst: &mut [f32]) -> Result<()> {
        self.read_into(name, shape, dst)
    }

    /// [`Self::read_f32_into`] for any float type: `f32`, `f64`, `f16` or `bf16`.
    ///
    /// # Errors
    /// As [`Self::read_f32_into`].
    pub fn read_into<T: Float>(&self, name: &str, shape: &[usize], dst: &mut [T]) -> Result<()> {
        let info = self.expect(name, shape)?;
        let count = info.values();
        if dst.len() != count {
            let (name, len) = (shown(name), dst.len());
            refuse!("tensor {name}: the place to read it into holds {len} values, the tensor has {count}");
        }
        convert::floats(&self.inner.sources, name, info, dst)
    }

    /// The blocks of a tensor of exactly this shape; `None` where it is not stored in blocks.
    ///
    /// # Errors
    /// No such tensor, another shape, or the file cannot be read.
    pub fn blocks(&self, name: &str, shape: &[usize]) -> Result<Option<Blocks>> {
        let info = self.expect(name, shape)?;
        let Some(format) = info.blocks else { return Ok(None) };
        Blocks::new(format, shape.to_vec(), convert::bytes(self.source(info)?, name, info)?).map(Some)
    }

    /// Reads the rows of a tensor in FP8 as the GPU's kernels take them ([`fp8::UNIT`] bytes for each 128 values).
    #[cfg(feature = "cuda")]
    pub(crate) fn fp8_rows(&self, name: &str, shape: &[usize], data: &mut [u8]) -> Result<()> {
        fp8::rows(&self.inner.sources, name, self.expect(name, shape)?, data)
    }

    /// Reads a tensor as it is stored, whatever its shape and dtype, onto the CPU; blocks as f32.
    ///
    /// # Errors
    /// No such tensor, or the file cannot be read.
    pub fn read_any(&self, name: &str) -> Result<Tensor> {
        let Some(info) = self.info(name) else { return Err(self.missing(name, None)) };
        self.tensor(name, info, info.dtype)
    }

    fn source(&self, info: &TensorInfo) -> Result<&Source> {
        convert::source_of(&self.inner.sources, info)
    }

    /// The entry of a tensor whose shape the caller knows.
    fn expect(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let Some(info) = self.info(name) else { return Err(self.missing(name, Some(shape))) };
        if info.shape != shape {
            let file = self.source(info)?.label();
            let (name, expected, found) = (shown(name), shape_text(shape), shape_text(&info.shape));
            refuse!(
                "{file}: tensor {name}: expected shape {expected}, found {found}: config.json and these weights do not \
                 belong together, fetch both from one place"
            );
        }
        Ok(info)
    }

    fn missing(&self, name: &str, shape: Option<&[usize]>) -> candle_core::Error {
        let of_shape = shape.map(|s| format!(" of shape {}", shape_text(s))).unwrap_or_default();
        let near = match self.nearest(name).and_then(|n| self.info(n).map(|info| (n, info))) {
            Some((near, info)) => format!("nearest name: {} {}", shown(near), shape_text(&info.shape)),
            None => format!("none of its {} names is like it", self.inner.tensors.len()),
        };
        let (label, name) = (&self.inner.label, shown(name));
        error(format!(
            "{label}: tensor {name}{of_shape} is missing ({near}): check that config.json belongs to these weights"
        ))
    }

    fn tensor(&self, name: &str, info: &TensorInfo, dtype: DType) -> Result<Tensor> {
        let (source, sources) = (self.source(info)?, &self.inner.sources);
        match dtype {
            DType::F32 => convert::float_tensor::<f32>(sources, name, info),
            DType::F64 => convert::float_tensor::<f64>(sources, name, info),
            DType::F16 => convert::float_tensor::<f16>(sources, name, info),
            DType::BF16 => convert::float_tensor::<bf16>(sources, name, info),
            DType::U8 => convert::int_tensor::<u8>(source, name, info),
            DType::U32 => convert::int_tensor::<u32>(source, name, info),
            DType::I16 => convert::int_tensor::<i16>(source, name, info),
            DType::I32 => convert::int_tensor::<i32>(source, name, info),
            DType::I64 => convert::int_tensor::<i64>(source, name, info),
            other => refuse!("tensor {}: reading as {} is not supported", shown(name), other.as_str()),
        }
    }
}
