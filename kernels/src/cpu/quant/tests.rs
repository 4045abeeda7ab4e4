use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, Tensor};

use super::*;
use crate::cpu::gemm::{Product, Rhs, run};
use crate::cpu::pack::{Packed, View};
use crate::cpu::{with_isa, with_threads};
use crate::rng::Rng;

const ISAS: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// A random weight in blocks; candle writes the formats that we only read.
fn blocks(format: BlockFormat, shape: &[usize], seed: u64) -> Result<Blocks> {
    let weight = Tensor::from_vec(normal(shape.iter().product(), seed), shape, &Device::Cpu)?;
    let theirs = match format {
        BlockFormat::Q5K => GgmlDType::Q5K,
        BlockFormat::Q6K => GgmlDType::Q6K,
        _ => return Blocks::quantise(&weight, format),
    };
    Blocks::new(format, shape.to_vec(), QTensor::quantize(&weight, theirs)?.data()?.to_vec())
}

/// The values that a row stands for as whole numbers.
fn rounded(x: &[f32]) -> Vec<f32> {
    let mut row = vec![0u32; row_words(x.len())];
    quantise_row(Isa::Portable, x, &mut row);
    let (numbers, meta) = row.split_at(x.len() / 2);
    let number = |l: usize| f32::from((numbers[l / 2] >> (l % 2 * 16)) as i16);
    (0..x.len()).map(|l| number(l) * f32::from_bits(meta[l / GROUP * META])).collect()
}

fn product(x: &[f32], (m, n, k): (usize, usize, usize), packed: &Packed, bias: &[f32], threads: usize) -> Vec<f32> {
    let mut c = vec![f32::NAN; m * n];
    let (a, b) = (View::rows(x, 0, k), Rhs::<f32>::Packed(packed, 0));
    let p = Product { m, n, k, a, b, bias: Some(bias), c: 0, ld: n };
    with_threads(threads, || run(&[p], &mut c));
    c
}

#[test]
fn products_are_those_of_the_rounded_rows_and_near_the_exact_ones() -> Result<()> {
    for format in BlockFormat::ALL {
        for (m, n, k) in [(1, 5, 256), (3, 33, 512), (13, 70, 256), (30, 16, 768), (2, 64, 0)] {
            let (x, bias) = (normal(m * k, 1), normal(n, 2));
            let blocks = blocks(format, &[n, k], 3)?;
            let packed = Packed::from_blocks(&blocks, false)?;
            let w = blocks.dequantise()?.flatten_all()?.to_vec1::<f32>()?;
            let near: Vec<f32> = x.chunks(k.max(1)).flat_map(rounded).collect();
            for isa in ISAS {
                let c = with_isa(isa, || product(&x, (m, n, k), &packed, &bias, 2));
                for (i, j) in (0..m * n).map(|at| (at / n, at % n)) {
                    let dot = |x: &[f32]| -> f64 {
                        (0..k).map(|p| f64::from(x[i * k + p]) * f64::from(w[j * k + p])).sum::<f64>()
                            + f64::from(bias[j])
                    };
                    let size: f64 = (0..k).map(|p| f64::from((near[i * k + p] * w[j * k + p]).abs())).sum();
                    let got = f64::from(c[i * n + j]);
                    // Scales of the formats with 6 or 8 bits of them are rounded to f16.
                    assert!(
                        (got - dot(&near)).abs() <= 5e-4 * size + 1e-5,
                        "{isa:?} {format:?} {m}x{n}x{k} at {i},{j}"
                    );
                    // Each value is off by half a step of its group at most.
                    let step =
                        |g: usize| x[i * k..][g * GROUP..][..GROUP].iter().fold(0f32, |m, v| m.max(v.abs())) / 32767.0;
                    let bound: f64 =
                        (0..k).map(|p| f64::from(0.51 * step(p / GROUP) * w[j * k + p].abs())).sum::<f64>();
                    assert!((got - dot(&x)).abs() <= bound + 5e-4 * size + 1e-5, "{isa:?} {format:?} at {i},{j}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_on_any_number_of_threads() -> Result<()> {
    let (m, n, k) = (29, 70, 512);
    let (x, bias) = (normal(m * k, 1), normal(n, 2));
    for format in BlockFormat::ALL {
        let packed = Packed::from_blocks(&blocks(format, &[n, k], 3)?, false)?;
        let mut fused = Vec::new();
        for isa in ISAS {
            with_isa(isa, || {
                let all = product(&x, (m, n, k), &packed, &bias, 1);
                assert_eq!(all, product(&x, (m, n, k), &packed, &bias, 2));
                for rows in [1, 2, 3, 4, 5, 11, 13] {
                    assert_eq!(all[..rows * n], product(&x, (rows, n, k), &packed, &bias, 2)[..], "{isa:?} {rows}");
                }
                // Whole numbers have no rounding, and the sums around them one order.
                if crate::cpu::isa() > Isa::Portable {
                    fused.push(all);
                }
            });
        }
        assert!(fused.windows(2).all(|two| two[0] == two[1]), "{format:?}");
    }
    Ok(())
}

#[test]
fn rows_come_back_out_of_the_tiles() -> Result<()> {
    for format in BlockFormat::ALL {
        let blocks = blocks(format, &[2, 40, 256], 5)?;
        let (plain, gated) = (Packed::from_blocks(&blocks, false)?, Packed::from_blocks(&blocks, true)?);
        assert!(gated.is_gated() && !plain.is_gated() && gated.panels() == 2 && plain.panels() == 2);
        let values = blocks.dequantise()?.to_vec3::<f32>()?;
        let mut row = vec![0f32; 256];
        for (e, i) in (0..2).flat_map(|e| (0..40).map(move |i| (e, i))) {
            for packed in [&plain, &gated] {
                packed.row(e, i, &mut row);
                for (got, want) in row.iter().zip(&values[e][i]) {
                    // Scale times number and offset, up to 6 together, rounded to f16.
                    assert!((got - want).abs() <= 6.0 * 2f32.powi(-11), "{format:?} {e} {i}: {got} {want}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn tiles_take_what_the_formats_take() -> Result<()> {
    for (format, bits) in
        [(BlockFormat::Q8_0, 8.5), (BlockFormat::Q4_1, 5.0), (BlockFormat::Q4K, 5.0), (BlockFormat::Q6K, 9.0)]
    {
        let packed = Packed::from_blocks(&blocks(format, &[64, 1024], 5)?, false)?;
        assert_eq!(packed.bytes() as f64 * 8.0 / (64.0 * 1024.0), bits, "{format:?}");
    }
    Ok(())
}

#[test]
fn what_is_not_finite_shows() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = [1f32; GROUP];
        x[7] = bad;
        assert!(rounded(&x).iter().all(|v| v.is_nan()));
    }
    assert_eq!(rounded(&[0.0; GROUP]), [0.0; GROUP]);
    assert!(rounded(&[1e-42; GROUP]).iter().all(|v| v.is_finite()));
    assert!(rounded(&[f32::MAX; GROUP]).iter().all(|v| *v > 3e38));
}
