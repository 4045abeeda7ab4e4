//! Access to tensor storage from custom operations.

use std::borrow::Cow;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Layout, Result, Tensor, WithDType, bail};
use half::{bf16, f16};

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

/// Calls `f` with the elements of a CPU tensor as f32. For backward passes, which get tensors rather than storage.
pub(crate) fn with_f32<R>(tensor: &Tensor, op: &str, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => f(&as_f32(storage, layout, op)?),
        _ => bail!("{op}: no kernel for device {:?}; move the tensors to the CPU", tensor.device()),
    }
}

/// A tensor on the CPU from f32 values, in `dtype`.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<candle_core::Shape>, dtype: DType) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &candle_core::Device::Cpu)?.to_dtype(dtype)
}

/// True if autodiff will ask for this tensor's gradient.
pub(crate) fn tracked(tensor: &Tensor) -> bool {
    tensor.track_op()
}
