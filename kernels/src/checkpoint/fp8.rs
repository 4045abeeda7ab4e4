//! Weights in FP8: a sign, four bits of exponent and three of fraction (E4M3, arXiv 2209.05433), with a scale for each square of 128 by 128 values in a
//! tensor of its own, as DeepSeek-V3 (arXiv 2412.19437, section 3.3.2) and the FP8 releases of Qwen3 are published: `NAME` and `NAME_scale_inv`.
//!
//! The scales belong to their weights: they are no tensors of the checkpoint by themselves, and what is read are the values, scaled.

use std::collections::BTreeMap;

use candle_core::{DType, Result};

use super::arrangement::Arrangement;
use super::convert::{Float, floats, room, source_of};
use super::source::Source;
use super::text::{refuse, shape_text, shown};
use super::{CHUNK, TensorInfo};

/// Rows and columns that share a scale, `weight_block_size`.
pub const SIDE: usize = 128;
/// What the name of a weight's scales has at its end.
const SCALES: &str = "_scale_inv";
/// Bytes of a row's 128 values with their scale, as [`rows`] gives them.
#[cfg(any(test, feature = "cuda"))]
pub(crate) const UNIT: usize = SIDE + 4;

/// The value of a byte; NaN where its seven lower bits are all set.
pub(crate) fn value(byte: u8) -> f32 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction * 2f32.powi(-9),
        _ => (8.0 + fraction) * 2f32.powi(exponent - 10),
    };
    if byte & 0x80 == 0 { size } else { -size }
}

/// Joins weights in FP8 with their scales.
///
/// # Errors
/// A weight has no scales, or they do not fit it.
pub(super) fn join(sources: &[Source], tensors: &mut BTreeMap<String, TensorInfo>) -> Result<()> {
    let names: Vec<String> =
        tensors.iter().filter(|(_, info)| info.dtype == DType::F8E4M3).map(|(name, _)| name.clone()).collect();
    for name in names {
        let label = match tensors.get(&name) {
            Some(info) => source_of(sources, info)?.label(),
            None => continue,
        };
        let Some(scales) = tensors.remove(&format!("{name}{SCALES}")) else {
            refuse!(
                "{label}: tensor {} is in F8_E4M3 and has no {}: scales of other kinds are not supported, load the checkpoint in \
                 BF16",
                shown(&name),
                shown(&format!("{name}{SCALES}"))
            );
        };
        let Some(info) = tensors.get_mut(&name) else { continue };
        let fits = match (info.shape.as_slice(), scales.shape.as_slice()) {
            (&[n, k], &[rows, columns]) => n > 0 && k > 0 && rows == n.div_ceil(SIDE) && columns == k.div_ceil(SIDE),
            _ => false,
        };
        if !fits || !scales.dtype.is_float() || scales.dtype == DType::F8E4M3 {
            refuse!(
                "{label}: tensor {} {} in F8_E4M3 has scales {} of {}, expected a matrix, and one for each {SIDE} x {SIDE} values: \
                 load the checkpoint in BF16",
                shown(&name),
                shape_text(&info.shape),
                shape_text(&scales.shape),
                scales.dtype.as_str()
            );
        }
        info.dtype = DType::BF16;
        info.arrangement = Arrangement::Scaled(Box::new(scales));
    }
    Ok(())
}

/// Hands `each` the bytes of a tensor, some rows at a time from row `first` on, and the scales of all.
fn read(
    sources: &[Source],
    name: &str,
    info: &TensorInfo,
    scales: &TensorInfo,
    mut each: impl FnMut(usize, &[u8], &[f32]),
) -> Result<()> {
    let (&[rows, columns], 1..) = (info.shape.as_slice(), info.values()) else {
        refuse!("tensor {}: in FP8 and no matrix with values", shown(name))
    };
    let source = source_of(sources, info)?;
    let mut all = room::<f32>(source, name, scales.values())?;
    floats(sources, &format!("{name}{SCALES}"), scales, &mut all)?;
    let mut reader = source.reader(info.offset)?;
    let some = (CHUNK / columns).clamp(1, rows.max(1));
    let mut bytes = room::<u8>(source, name, some * columns)?;
    for first in (0..rows).step_by(some) {
        let bytes = &mut bytes[..some.min(rows - first) * columns];
        source.fill(&mut reader, bytes, name)?;
        each(first, bytes, &all);
    }
    Ok(())
}

/// Reads the scaled values into `dst`, which has as many as the tensor.
pub(super) fn values<T: Float>(
    sources: &[Source],
    name: &str,
    info: &TensorInfo,
    scales: &TensorInfo,
    dst: &mut [T],
) -> Result<()> {
    let table: [f32; 256] = std::array::from_fn(|byte| value(byte as u8));
    let columns = info.shape.last().copied().unwrap_or(0).max(1);
    let squares = columns.div_ceil(SIDE);
    read(sources, name, info, scales, |first, bytes, scales| {
        let dst = dst[first * columns..].chunks_exact_mut(columns);
        for (row, (bytes, dst)) in (first..).zip(bytes.chunks_exact(columns).zip(dst)) {
            let scales = &scales[row / SIDE * squares..][..squares];
            for (scale, (bytes, dst)) in scales.iter().zip(bytes.chunks(SIDE).zip(dst.chunks_mut(SIDE))) {
                bytes.iter().zip(dst).for_each(|(&byte, to)| *to = T::narrow(table[usize::from(byte)] * scale));
            }
        }
    })
}

/// Reads the rows of a tensor into `data` as the GPU's kernels take them: each 128 values behind their scale in f32. `data` has [`UNIT`] bytes for
/// each 128 values, of which rows are a multiple.
#[cfg(feature = "cuda")]
pub(super) fn rows(sources: &[Source], name: &str, info: &TensorInfo, data: &mut [u8]) -> Result<()> {
    let (Arrangement::Scaled(scales), &[_, columns]) = (&info.arrangement, info.shape.as_slice()) else {
        refuse!("tensor {}: no matrix in FP8", shown(name))
    };
    let squares = columns / SIDE;
    if columns % SIDE != 0 || data.len() != info.values() / SIDE * UNIT {
        refuse!("tensor {}: {} bytes for its rows of {columns} values in FP8", shown(name), data.len());
    }
    read(sources, name, info, scales, |first, bytes, scales| {
        let data = data[first * squares * UNIT..].chunks_exact_mut(squares * UNIT);
        for (row, (bytes, data)) in (first..).zip(bytes.chunks_exact(columns).zip(data)) {
            let scales = &scales[row / SIDE * squares..][..squares];
            for (scale, (bytes, unit)) in scales.iter().zip(bytes.chunks_exact(SIDE).zip(data.chunks_exact_mut(UNIT))) {
                unit[..4].copy_from_slice(&scale.to_le_bytes());
                unit[4..].copy_from_slice(bytes);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::checkpoint::Checkpoint;

    #[test]
    fn bytes_are_what_candle_makes_of_them() -> Result<()> {
        let bytes: Vec<u8> = (0..=255).collect();
        let theirs = Tensor::from_raw_buffer(&bytes, DType::F8E4M3, &[256], &Device::Cpu)?.to_dtype(DType::F32)?;
        for (byte, theirs) in bytes.into_iter().zip(theirs.to_vec1::<f32>()?) {
            let ours = value(byte);
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{byte}: {ours} {theirs}");
        }
        Ok(())
    }

    #[test]
    fn tensors_larger_than_what_is_read_at_a_time() -> Result<()> {
        let (n, k) = (1030, 1100);
        assert!(n * k > CHUNK);
        let bytes: Vec<u8> = (0..n * k).map(|i| (i * 7 % 127) as u8 | ((i % 3) as u8 / 2) << 7).collect();
        let squares = (n.div_ceil(SIDE), k.div_ceil(SIDE));
        let scales: Vec<f32> = (0..squares.0 * squares.1).map(|i| 1.0 + i as f32).collect();
        let header = format!(
            r#"{{"w":{{"dtype":"F8_E4M3","shape":[{n},{k}],"data_offsets":[0,{}]}},"w_scale_inv":{{"dtype":"F32","shape":[{},{}],"data_offsets":[{},{}]}}}}"#,
            n * k,
            squares.0,
            squares.1,
            n * k,
            n * k + 4 * scales.len()
        );
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(&bytes);
        scales.iter().for_each(|s| file.extend(s.to_le_bytes()));
        let checkpoint = Checkpoint::from_bytes("fp8", file)?;
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["w"]);
        let mut values = vec![0f32; n * k];
        checkpoint.read_f32_into("w", &[n, k], &mut values)?;
        for (i, (found, &byte)) in values.iter().zip(&bytes).enumerate() {
            let scale = scales[i / k / SIDE * squares.1 + i % k / SIDE];
            assert_eq!(*found, value(byte) * scale, "value {i}");
        }
        assert_eq!(checkpoint.read_any("w")?.dtype(), DType::BF16);
        Ok(())
    }
}
