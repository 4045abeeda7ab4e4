//! From the bytes of a file to the values of a tensor, straight into their place where the dtype is the same.

use bytemuck::{cast_slice_mut, fill_zeroes};
use candle_core::{DType, Device, Result, Tensor, WithDType};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};

use super::arrangement::{Arrangement, Part, Woven};
use super::fp8;
use super::source::Source;
use super::text::{error, refuse, shape_text, shown};
use super::{CHUNK, TensorInfo};

// The format is little-endian and is read in place; a big-endian machine would need a swap that nobody could test here.
#[cfg(target_endian = "big")]
compile_error!("safetensors are read in place, which needs a little-endian machine");

mod sealed {
    pub trait Sealed {}
}

/// A float type that tensors can be read into: `f32`, `f64`, `f16` and `bf16`.
pub trait Float: WithDType + sealed::Sealed {
    #[doc(hidden)]
    fn bytes_mut(values: &mut [Self]) -> &mut [u8];
    #[doc(hidden)]
    fn zeros(count: usize) -> Vec<Self>;
    #[doc(hidden)]
    fn narrow(value: f32) -> Self;
}

macro_rules! float {
    ($type:ty, $zeros:expr, |$values:ident| $bytes:expr, |$value:ident| $narrow:expr) => {
        impl sealed::Sealed for $type {}
        impl Float for $type {
            fn bytes_mut($values: &mut [Self]) -> &mut [u8] {
                $bytes
            }
            fn zeros(count: usize) -> Vec<Self> {
                $zeros(count)
            }
            #[inline(always)]
            fn narrow($value: f32) -> Self {
                $narrow
            }
        }
    };
}
// Zeroed memory comes from the system as it is; `vec![f16::ZERO; n]` would write every value once more.
float!(f32, |n| vec![0.0; n], |v| cast_slice_mut(v), |x| x);
float!(f64, |n| vec![0.0; n], |v| cast_slice_mut(v), |x| f64::from(x));
float!(f16, |n| vec![0u16; n].reinterpret_into(), |v| cast_slice_mut(v.reinterpret_cast_mut()), |x| f16::from_f32(x));
float!(bf16, |n| vec![0u16; n].reinterpret_into(), |v| cast_slice_mut(v.reinterpret_cast_mut()), |x| bf16::from_f32(x));

/// An integer type that tensors can be read into.
pub(super) trait Int: WithDType + bytemuck::Pod + TryFrom<i64> {}
impl Int for u8 {}
impl Int for u32 {}
impl Int for i16 {}
impl Int for i32 {}
impl Int for i64 {}

/// A new float tensor on the CPU with the values of `info`, which lie in `sources`.
pub(super) fn float_tensor<T: Float>(sources: &[Source], name: &str, info: &TensorInfo) -> Result<Tensor> {
    check_room::<T>(source_of(sources, info)?, name, info.values())?;
    let mut values = T::zeros(info.values());
    floats(sources, name, info, &mut values)?;
    Tensor::from_vec(values, info.shape.as_slice(), &Device::Cpu)
}

/// A new integer tensor on the CPU with the values of `info`.
pub(super) fn int_tensor<T: Int>(source: &Source, name: &str, info: &TensorInfo) -> Result<Tensor> {
    let mut values = room::<T>(source, name, info.values())?;
    ints(source, name, info, &mut values)?;
    Tensor::from_vec(values, info.shape.as_slice(), &Device::Cpu)
}

/// Refuses a tensor for whose values as `T` there is no memory: a sparse file can be larger than any machine's memory and
/// still keep all the format's rules, and a failed allocation would end the process.
fn check_room<T>(source: &Source, name: &str, count: usize) -> Result<()> {
    if Vec::<T>::new().try_reserve_exact(count).is_err() {
        let (label, name, size) = (source.label(), shown(name), size_of::<T>());
        refuse!("{label}: tensor {name}: no memory for its {count} values of {size} bytes");
    }
    Ok(())
}

/// Zeros for as many values, if there is memory for them.
pub(super) fn room<T: bytemuck::Pod>(source: &Source, name: &str, count: usize) -> Result<Vec<T>> {
    check_room::<T>(source, name, count)?;
    Ok(vec![T::zeroed(); count])
}

/// The file that holds a tensor.
pub(super) fn source_of<'a>(sources: &'a [Source], info: &TensorInfo) -> Result<&'a Source> {
    // `file` was set where the header was read; an index that does not fit would be a fault of this module.
    sources.get(info.file).ok_or_else(|| error("tensor without a file"))
}

/// Reads float values into `dst`, which has as many as the tensor.
pub(super) fn floats<T: Float>(sources: &[Source], name: &str, info: &TensorInfo, dst: &mut [T]) -> Result<()> {
    if let Arrangement::Woven(woven) = &info.arrangement {
        return weave(sources, name, woven, dst);
    }
    if let Arrangement::Scaled(scales) = &info.arrangement {
        return fp8::values(sources, name, info, scales, dst);
    }
    let source = source_of(sources, info)?;
    if let Some(count) = info.arrangement.scattered(&info.shape) {
        check_room::<T>(source, name, count)?;
        let mut all = T::zeros(count);
        piece(source, name, info, info.offset, &mut all)?;
        info.arrangement.gather(&all, &info.shape, dst);
        return Ok(());
    }
    let pieces = info.arrangement.pieces(&info.offset);
    let values = (dst.len() / pieces.len().max(1)).max(1);
    for (&offset, dst) in pieces.iter().zip(dst.chunks_mut(values)) {
        piece(source, name, info, offset, dst)?;
    }
    info.arrangement.restore(dst, info.shape.first().copied().unwrap_or(1));
    Ok(())
}

/// Reads the values of a tensor that stands in two.
fn weave<T: Float>(sources: &[Source], name: &str, woven: &Woven, dst: &mut [T]) -> Result<()> {
    let slices = woven.slices.max(1);
    let slice = (dst.len() / slices).max(1);
    for (i, mut dst) in dst.chunks_mut(slice).enumerate() {
        for Part { info, rows, turned } in &woven.parts {
            let source = source_of(sources, info)?;
            let offset = info.offset + (i * (info.bytes / slices)) as u64;
            let Some((part, rest)) = dst.split_at_mut_checked(info.values() / slices) else {
                refuse!("tensor {}: its parts are longer than it is", shown(name));
            };
            dst = rest;
            if !turned {
                piece(source, name, info, offset, part)?;
                continue;
            }
            check_room::<T>(source, name, part.len())?;
            let mut columns = T::zeros(part.len());
            piece(source, name, info, offset, &mut columns)?;
            let width = (part.len() / (*rows).max(1)).max(1);
            for (i, row) in part.chunks_mut(width).enumerate() {
                row.iter_mut().zip(columns.iter().skip(i).step_by((*rows).max(1))).for_each(|(to, value)| *to = *value);
            }
        }
    }
    Ok(())
}

/// Reads float values that stand one after the other from `offset` on.
fn piece<T: Float>(source: &Source, name: &str, info: &TensorInfo, offset: u64, dst: &mut [T]) -> Result<()> {
    let mut reader = source.reader(offset)?;
    if let Some(format) = info.blocks {
        // As many blocks at a time as the buffer takes.
        let count = (CHUNK / format.bytes()).min(dst.len() / format.values());
        let (mut bytes, mut values) = (vec![0u8; count * format.bytes()], vec![0f32; count * format.values()]);
        for part in dst.chunks_mut(values.len().max(1)) {
            let (bytes, values) =
                (&mut bytes[..part.len() / format.values() * format.bytes()], &mut values[..part.len()]);
            source.fill(&mut reader, bytes, name)?;
            format.dequantise(bytes, values);
            part.iter_mut().zip(values.iter()).for_each(|(to, value)| *to = T::narrow(*value));
        }
        return Ok(());
    }
    if info.dtype == T::DTYPE {
        return source.fill(&mut reader, T::bytes_mut(dst), name);
    }
    let convert: fn(&[u8], &mut [T]) = match info.dtype {
        DType::F32 => |src, dst| each(src, dst, |b| T::narrow(f32::from_le_bytes(b))),
        DType::F16 => |src, dst| each(src, dst, |b| T::narrow(f16::from_le_bytes(b).to_f32())),
        DType::BF16 => |src, dst| each(src, dst, |b| T::narrow(bf16::from_le_bytes(b).to_f32())),
        DType::F64 => |src, dst| each(src, dst, |b| T::narrow(f64::from_le_bytes(b) as f32)),
        _ => return Err(no_conversion(source, name, info, T::DTYPE)),
    };
    let size = info.dtype.size_in_bytes();
    let mut buffer = vec![0u8; CHUNK.min(dst.len() * size)];
    for part in dst.chunks_mut(CHUNK / size) {
        let Some(bytes) = buffer.get_mut(..part.len() * size) else { refuse!("tensor {}: too large", shown(name)) };
        source.fill(&mut reader, bytes, name)?;
        convert(bytes, part);
    }
    Ok(())
}

#[inline(always)]
fn each<const N: usize, T>(src: &[u8], dst: &mut [T], value: impl Fn([u8; N]) -> T) {
    for (to, from) in dst.iter_mut().zip(src.as_chunks::<N>().0) {
        *to = value(*from);
    }
}

/// The bytes of a tensor in blocks, its rows in their order.
pub(super) fn bytes(source: &Source, name: &str, info: &TensorInfo) -> Result<Vec<u8>> {
    let mut data = room::<u8>(source, name, info.bytes)?;
    let pieces = info.arrangement.pieces(&info.offset);
    let size = (data.len() / pieces.len().max(1)).max(1);
    for (&offset, part) in pieces.iter().zip(data.chunks_mut(size)) {
        source.fill(&mut source.reader(offset)?, part, name)?;
    }
    info.arrangement.restore(&mut data, info.shape.first().copied().unwrap_or(1));
    Ok(data)
}

/// Reads integer values into `dst`, which has as many as the tensor.
fn ints<T: Int>(source: &Source, name: &str, info: &TensorInfo, dst: &mut [T]) -> Result<()> {
    let Some(count) = info.arrangement.scattered(&info.shape) else { return int_run(source, name, info, dst) };
    let mut all = room::<T>(source, name, count)?;
    int_run(source, name, info, &mut all)?;
    info.arrangement.gather(&all, &info.shape, dst);
    Ok(())
}

/// Reads integers that stand one after the other into `dst`.
fn int_run<T: Int>(source: &Source, name: &str, info: &TensorInfo, dst: &mut [T]) -> Result<()> {
    let mut reader = source.reader(info.offset)?;
    if info.dtype == T::DTYPE {
        return source.fill(&mut reader, cast_slice_mut(dst), name);
    }
    let widen: fn(&[u8], &mut [i64]) = match info.dtype {
        DType::U8 => |src, dst| each(src, dst, |b: [u8; 1]| i64::from(b[0])),
        DType::U32 => |src, dst| each(src, dst, |b| i64::from(u32::from_le_bytes(b))),
        DType::I16 => |src, dst| each(src, dst, |b| i64::from(i16::from_le_bytes(b))),
        DType::I32 => |src, dst| each(src, dst, |b| i64::from(i32::from_le_bytes(b))),
        DType::I64 => |src, dst| each(src, dst, i64::from_le_bytes),
        _ => return Err(no_conversion(source, name, info, T::DTYPE)),
    };
    let size = info.dtype.size_in_bytes();
    // Values are widened in a second buffer of the same number of values; integer tensors of a model are small.
    let per_chunk = (CHUNK / size).min(dst.len());
    let (mut buffer, mut wide) = (vec![0u8; per_chunk * size], vec![0i64; per_chunk]);
    for part in dst.chunks_mut(per_chunk.max(1)) {
        let (Some(bytes), Some(wide)) = (buffer.get_mut(..part.len() * size), wide.get_mut(..part.len())) else {
            refuse!("tensor {}: too large", shown(name))
        };
        fill_zeroes(wide);
        source.fill(&mut reader, bytes, name)?;
        widen(bytes, wide);
        for (to, &value) in part.iter_mut().zip(wide.iter()) {
            *to = T::try_from(value).map_err(|_| {
                error(format!(
                    "{}: tensor {}: value {value} does not fit {}",
                    source.label(),
                    shown(name),
                    T::DTYPE.as_str()
                ))
            })?;
        }
    }
    Ok(())
}

fn no_conversion(source: &Source, name: &str, info: &TensorInfo, wanted: DType) -> candle_core::Error {
    error(format!(
        "{}: tensor {} {} holds {}, which cannot be read as {}: these weights are of another kind of model",
        source.label(),
        shown(name),
        shape_text(&info.shape),
        info.dtype.as_str(),
        wanted.as_str()
    ))
}
