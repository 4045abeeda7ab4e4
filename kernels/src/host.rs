//! Access to tensor storage from custom operations.

use std::borrow::Cow;
use std::ops::{Deref, Range};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor, WithDType, bail};
use half::{bf16, f16};

use crate::cpu::pack::Elem;
use crate::cpu::{SendPtr, isa, parallel};

/// The elements of a contiguous CPU tensor.
pub(crate) fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout, op: &str) -> Result<&'a [T]> {
    let all = storage.as_slice::<T>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => bail!("{op}: the input is not contiguous (shape {:?})", layout.shape()),
    }
}

/// The elements of a contiguous floating-point CPU tensor as f32; borrowed where they already are.
pub(crate) fn as_f32<'a>(storage: &'a CpuStorage, layout: &Layout, op: &str) -> Result<Cow<'a, [f32]>> {
    Ok(match storage.dtype() {
        DType::F32 => Cow::Borrowed(slice::<f32>(storage, layout, op)?),
        DType::BF16 => Cow::Owned(slice::<bf16>(storage, layout, op)?.iter().map(|v| v.to_f32()).collect()),
        DType::F16 => Cow::Owned(slice::<f16>(storage, layout, op)?.iter().map(|v| v.to_f32()).collect()),
        DType::F64 => Cow::Owned(slice::<f64>(storage, layout, op)?.iter().map(|v| *v as f32).collect()),
        other => bail!("{op}: dtype {other:?} is not supported, expected f32, bf16 or f16"),
    })
}

/// f32 results as storage of `dtype`.
pub(crate) fn storage_of(values: Vec<f32>, dtype: DType, op: &str) -> Result<CpuStorage> {
    Ok(match dtype {
        DType::F32 => CpuStorage::F32(values),
        DType::BF16 => CpuStorage::BF16(values.into_iter().map(bf16::from_f32).collect()),
        DType::F16 => CpuStorage::F16(values.into_iter().map(f16::from_f32).collect()),
        DType::F64 => CpuStorage::F64(values.into_iter().map(f64::from).collect()),
        other => bail!("{op}: dtype {other:?} is not supported, expected f32, bf16 or f16"),
    })
}

/// f32 results as new storage of `dtype`, rounded on all threads.
pub(crate) fn rounded(values: &[f32], dtype: DType, op: &str) -> Result<CpuStorage> {
    const BLOCK: usize = 1 << 14;
    fn round<T: Elem>(values: &[f32], zero: T) -> Vec<T> {
        let mut out = vec![zero; values.len()];
        let (isa, shared) = (isa(), SendPtr::new(&mut out));
        parallel(values.len().div_ceil(BLOCK), true, |i| {
            let block = &values[i * BLOCK..(i * BLOCK + BLOCK).min(values.len())];
            // SAFETY: each block is written by one task.
            T::store(isa, block, unsafe { shared.slice(i * BLOCK, block.len()) });
        });
        out
    }
    Ok(match dtype {
        DType::F32 => CpuStorage::F32(values.to_vec()),
        DType::BF16 => CpuStorage::BF16(round(values, bf16::ZERO)),
        DType::F16 => CpuStorage::F16(round(values, f16::ZERO)),
        other => bail!("{op}: dtype {other:?} is not supported, expected f32, bf16 or f16"),
    })
}

/// The elements of a CPU tensor as f32, borrowed where they already are: for backward passes, which get tensors rather
/// than storage.
pub(crate) enum Values<'a> {
    /// The guard's type belongs to a lock that candle does not re-export.
    Borrowed {
        storage: Box<dyn Deref<Target = Storage> + 'a>,
        range: Range<usize>,
    },
    Owned(Vec<f32>),
}

impl<'a> Values<'a> {
    pub(crate) fn of(tensor: &'a Tensor, op: &str) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        if let (Storage::Cpu(CpuStorage::F32(_)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
            return Ok(Self::Borrowed { storage: Box::new(storage), range: start..end });
        }
        drop(storage);
        // What the host decides by, such as a router's scores, comes over from another device.
        let tensor = tensor.to_device(&Device::Cpu)?.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok(Self::Owned(as_f32(storage, layout, op)?.into_owned())),
            _ => bail!("{op}: the values did not come to the CPU from {:?}", tensor.device()),
        }
    }
}

impl Deref for Values<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            Self::Owned(values) => values,
            Self::Borrowed { storage, range } => match &***storage {
                Storage::Cpu(CpuStorage::F32(values)) => &values[range.clone()],
                // `of` borrows f32 on the CPU only.
                _ => &[],
            },
        }
    }
}

/// Calls `f` with the elements of a tensor as f32.
pub(crate) fn with_f32<R>(tensor: &Tensor, op: &str, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    f(&Values::of(tensor, op)?)
}

/// A tensor on the CPU from f32 values, in `dtype`.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<candle_core::Shape>, dtype: DType) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
}

/// True if autodiff will ask for this tensor's gradient.
pub(crate) fn tracked(tensor: &Tensor) -> bool {
    tensor.track_op()
}
