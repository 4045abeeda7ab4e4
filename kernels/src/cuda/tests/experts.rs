//! Rows, linear maps and gradients.

use candle_core::{DType, Device, Result, Tensor, Var};
use half::{bf16, f16};

use super::emulator::{Emulator, Number, emulator, normal};
use crate::checkpoint::fp8;
use crate::cuda::launch::{self, ByToken, Map, Sizes, Stored, TileRows, Values};
use crate::experts::{combine, dispatch, grouped_linear};
use crate::rng::Rng;
use crate::routes::Routes;
use crate::{Activation, BlockFormat, Blocks};

/// A number of a kernel, from and to f32.
trait Real: Number + candle_core::WithDType + PartialEq {
    fn of(v: f32) -> Self;
    fn wide(self) -> f32;
    /// The largest error of a sum that is rounded once, beside its size.
    const STEP: f32;
}
impl Real for f32 {
    fn of(v: f32) -> Self {
        v
    }
    fn wide(self) -> f32 {
        self
    }
    const STEP: f32 = 2e-6;
}
impl Real for bf16 {
    fn of(v: f32) -> Self {
        Self::from_f32(v)
    }
    fn wide(self) -> f32 {
        self.to_f32()
    }
    const STEP: f32 = 1.0 / 256.0;
}
impl Real for f16 {
    fn of(v: f32) -> Self {
        Self::from_f32(v)
    }
    fn wide(self) -> f32 {
        self.to_f32()
    }
    const STEP: f32 = 1.0 / 2048.0;
}

fn reals<T: Real>(rng: &mut Rng, len: usize) -> Vec<T> {
    normal(rng, len).into_iter().map(T::of).collect()
}

fn tensor<T: Real>(values: &[T], shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(values.to_vec(), shape, &Device::Cpu)
}

/// Compares with the CPU's result, in f32; sums of `terms` terms of about 1.
fn compare<T: Real>(gpu: &Emulator, found: Values, expected: &Tensor, terms: usize, what: &str) -> Result<()> {
    let expected = expected.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let found = gpu.get::<T>(found);
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = (terms as f32).sqrt();
    for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
        let error = (f.wide() - e).abs();
        // The CPU rounds once as well, and f32 sums have other orders.
        assert!(error <= T::STEP * (e.abs() + size), "{what}: value {i} is {} and not {e}", f.wide());
    }
    Ok(())
}

/// Routes of tokens to experts, some with many tokens and some with none; and their weights in token order.
fn routed(rng: &mut Rng, tokens: usize, experts: usize, k: usize) -> Result<(Routes, Var)> {
    let idle = rng.below(experts.max(2));
    let choices: Vec<Vec<u32>> = (0..tokens)
        .map(|_| {
            let mut all: Vec<u32> = (0..experts as u32).filter(|&e| experts == 1 || e != idle as u32).collect();
            let count = if rng.chance(0.1) { 0 } else { k.min(all.len()) };
            (0..count).map(|_| all.swap_remove(rng.below(all.len()).min(rng.below(all.len())))).collect()
        })
        .collect();
    let count = choices.iter().map(Vec::len).sum::<usize>();
    let weights = Var::from_vec(normal(rng, count), count, &Device::Cpu)?;
    let scores = Tensor::zeros((tokens, experts), DType::F32, &Device::Cpu)?;
    Ok((Routes::new(experts, &choices, &weights, scores)?, weights))
}

fn words(values: &[usize]) -> Vec<u32> {
    values.iter().map(|&v| v as u32).collect()
}

fn rows_of<T: Real>(seed: u64) -> Result<()> {
    let Some(gpu) = emulator() else { return Ok(()) };
    let mut rng = Rng::new(seed);
    for (tokens, experts, k, width, odd) in [(9, 4, 2, 40, 0), (17, 3, 3, 7, 0), (12, 2, 1, 136, 1), (1, 1, 1, 1, 0)] {
        let (routes, weights) = routed(&mut rng, tokens, experts, k)?;
        let (plan, shape) = (routes.lists()?, [tokens, routes.len(), width]);
        if routes.is_empty() {
            continue;
        }
        let x = reals::<T>(&mut rng, tokens * width);
        let (token, out) = (gpu.put(&plan.token), gpu.empty::<T>(routes.len() * width));
        gpu.run(&launch::gather(gpu.put_at(&x, odd), token, out, shape)?);
        let expected = dispatch(&tensor(&x, &[tokens, width])?, &routes)?;
        assert!(gpu.get::<T>(out) == expected.flatten_all()?.to_vec1::<T>()?, "dispatch {shape:?}");

        let y = reals::<T>(&mut rng, routes.len() * width);
        let of_y = Var::from_tensor(&tensor(&y, &[routes.len(), width])?)?;
        let weight = gpu.put(&routes.weight().to_vec1::<f32>()?);
        let by_token = ByToken { by_token: gpu.put(&plan.by_token), start: gpu.put(&words(&plan.token_offsets)) };
        let (y, sum) = (gpu.put(&y), gpu.empty::<T>(tokens * width));
        gpu.run(&launch::combine(y, Some(weight), by_token, sum, shape)?);
        let summed = combine(&of_y, &routes)?;
        compare::<T>(gpu, sum, &summed, k, "combine")?;

        let dout = reals::<T>(&mut rng, tokens * width);
        let loss = (summed * tensor(&dout, &[tokens, width])?)?.sum_all()?;
        let grads = loss.backward()?;
        let (dy, dweight) = (gpu.empty::<T>(routes.len() * width), gpu.empty::<f32>(routes.len()));
        let dout = gpu.put(&dout);
        gpu.run(&launch::spread([dout, weight, token, dy], shape)?);
        gpu.run(&launch::dots([y, dout, token, dweight], shape)?);
        let of = |t: &Tensor| grads.get(t).cloned().ok_or_else(|| candle_core::Error::msg("no gradient"));
        compare::<T>(gpu, dy, &of(&of_y)?, 1, "dy")?;
        let dweight = gpu.get::<f32>(dweight);
        let dweight: Vec<f32> = plan.by_token.iter().map(|&r| dweight[r as usize]).collect();
        compare::<f32>(gpu, gpu.put(&dweight), &of(&weights)?, width, "dweight")?;
        // Dispatch's gradient is combine's sum without weights.
        gpu.run(&launch::combine(y, None, by_token, sum, shape)?);
        let x = Var::from_tensor(&tensor(&x, &[tokens, width])?)?;
        let grads = (dispatch(&x, &routes)? * of_y.detach())?.sum_all()?.backward()?;
        let dx = grads.get(&x).cloned().ok_or_else(|| candle_core::Error::msg("no gradient"))?;
        compare::<T>(gpu, sum, &dx, k, "dispatch back")?;
    }
    Ok(())
}

#[test]
fn rows_move_as_on_the_cpu() -> Result<()> {
    rows_of::<f32>(1)?;
    rows_of::<bf16>(2)?;
    rows_of::<f16>(3)
}

/// Forward and backward of one shape beside the CPU's.
fn linear_of<T: Real>(seed: u64, [tokens, experts, k, width, depth]: [usize; 5], biased: bool) -> Result<()> {
    let Some(gpu) = emulator() else { return Ok(()) };
    let mut rng = Rng::new(seed);
    let (routes, _) = routed(&mut rng, tokens, experts, k)?;
    let (rows, what) = (routes.len(), format!("{:?} {tokens} {experts} {k} {width} {depth}", T::KIND));
    let sizes = Sizes { experts, rows, width, depth };
    let x = reals::<T>(&mut rng, tokens * depth);
    let w = reals::<T>(&mut rng, experts * width * depth);
    let bias = biased.then(|| reals::<T>(&mut rng, experts * width));
    let dy = reals::<T>(&mut rng, rows * width);
    let gathered = Var::from_tensor(&dispatch(&tensor(&x, &[tokens, depth])?, &routes)?)?;
    let of_w = Var::from_tensor(&tensor(&w, &[experts, width, depth])?)?;
    let of_bias = bias.as_ref().map(|b| Var::from_tensor(&tensor(b, &[experts, width])?)).transpose()?;
    let y = grouped_linear(&gathered, &of_w, of_bias.as_deref(), &routes)?;
    let grads = (&y * tensor(&dy, &[rows, width])?)?.sum_all()?.backward()?;
    let of = |t: &Tensor| grads.get(t).cloned().ok_or_else(|| candle_core::Error::msg("no gradient"));

    let offsets = gpu.put(&words(routes.offsets()?));
    let (x, w, dy) = (gpu.put(&x), gpu.put(&w), gpu.put(&dy));
    let token = Some((gpu.put(&routes.lists()?.token), tokens));
    let bias = bias.map(|b| gpu.put(&b));
    let out = gpu.empty::<T>(rows * width);
    let map = Map { x, token, w, format: None, bias, offsets, y: out };
    gpu.run(&launch::linear(map, sizes, None, false, None)?);
    compare::<T>(gpu, out, &y, depth, &format!("y {what}"))?;
    // The same rows without a list, by the tiles of all sizes: the same bits.
    let first = gpu.get::<T>(out);
    let rows_in_order = gpu.put(&gathered.flatten_all()?.to_vec1::<T>()?);
    let tiles = match (T::KIND, depth % 8) {
        (DType::F32, _) => vec![None],
        (_, 0) => [TileRows::R16, TileRows::R64, TileRows::R128, TileRows::Any].map(Some).to_vec(),
        _ => vec![Some(TileRows::Any)],
    };
    for tile in tiles {
        let out = gpu.empty::<T>(rows * width);
        let map = Map { x: rows_in_order, token: None, y: out, ..map };
        gpu.run(&launch::linear(map, sizes, None, false, tile)?);
        assert!(gpu.get::<T>(out) == first, "y {what} {tile:?}");
    }

    let dx = gpu.empty::<T>(rows * depth);
    gpu.run(&launch::linear_back([dy, w, offsets, dx], sizes)?);
    compare::<T>(gpu, dx, &of(&gathered)?, width, &format!("dx {what}"))?;
    let dw = gpu.empty::<T>(experts * width * depth);
    gpu.run(&launch::weight_back([dy, rows_in_order, offsets, dw], sizes)?);
    compare::<T>(gpu, dw, &of(&of_w)?, rows, &format!("dw {what}"))?;
    if let Some(of_bias) = &of_bias {
        let db = gpu.empty::<T>(experts * width);
        gpu.run(&launch::bias_back([dy, offsets, db], sizes)?);
        compare::<T>(gpu, db, &of(of_bias)?, rows, &format!("dbias {what}"))?;
    }
    Ok(())
}

#[test]
fn linear_maps_and_their_gradients_are_those_of_the_cpu() -> Result<()> {
    for (i, (shape, biased)) in [
        ([5, 3, 2, 40, 64], true),
        ([60, 4, 2, 136, 40], false),
        ([150, 2, 1, 24, 96], true),
        ([9, 1, 1, 130, 35], true),
        ([3, 40, 2, 8, 8], false),
        ([60, 100, 3, 8, 8], false),
        ([300, 2, 2, 9, 17], false),
    ]
    .into_iter()
    .enumerate()
    {
        linear_of::<f32>(i as u64, shape, biased)?;
        linear_of::<bf16>(i as u64, shape, biased)?;
        linear_of::<f16>(i as u64, shape, biased)?;
    }
    Ok(())
}

fn gated_of<T: Real>(seed: u64, [tokens, experts, inner, depth]: [usize; 4], activation: Activation) -> Result<()> {
    let Some(gpu) = emulator() else { return Ok(()) };
    let mut rng = Rng::new(seed);
    let (routes, _) = routed(&mut rng, tokens, experts, 2)?;
    let rows = routes.len();
    let sizes = Sizes { experts, rows, width: inner, depth };
    let x = reals::<T>(&mut rng, tokens * depth);
    let (w, bias) = (reals::<T>(&mut rng, experts * 2 * inner * depth), reals::<T>(&mut rng, experts * 2 * inner));
    let wide = |t: Tensor| t.to_dtype(DType::F32);
    let gathered = dispatch(&wide(tensor(&x, &[tokens, depth])?)?, &routes)?;
    let (of_w, of_bias) =
        (wide(tensor(&w, &[experts, 2 * inner, depth])?)?, wide(tensor(&bias, &[experts, 2 * inner])?)?);
    let both = grouped_linear(&gathered, &of_w, Some(&of_bias), &routes)?;
    let expected = (activation.apply(&both.narrow(1, 0, inner)?.contiguous()?)? * both.narrow(1, inner, inner)?)?;
    let y = gpu.empty::<T>(rows * inner);
    let map = Map {
        x: gpu.put(&x),
        token: Some((gpu.put(&routes.lists()?.token), tokens)),
        w: gpu.put(&w),
        format: None,
        bias: Some(gpu.put(&bias)),
        offsets: gpu.put(&words(routes.offsets()?)),
        y,
    };
    gpu.run(&launch::linear(map, sizes, Some(activation), true, None)?);
    // A product of two sums of `depth` terms.
    compare::<T>(gpu, y, &expected, depth * depth, &format!("{:?} {activation:?}", T::KIND))?;
    let single = gpu.empty::<T>(rows * 2 * inner);
    let sizes = Sizes { width: 2 * inner, ..sizes };
    gpu.run(&launch::linear(Map { y: single, ..map }, sizes, Some(activation), false, None)?);
    compare::<T>(gpu, single, &activation.apply(&both)?, depth, &format!("{:?} {activation:?} alone", T::KIND))
}

#[test]
fn gate_up_and_non_linearity_are_one_pass() -> Result<()> {
    let all = [Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::Relu, Activation::QuickGelu];
    for (i, activation) in all.into_iter().enumerate() {
        let shape = [[6, 4, 40, 64], [70, 3, 65, 40], [150, 2, 9, 30], [40, 2, 72, 8], [2, 2, 8, 16]][i];
        gated_of::<f32>(i as u64, shape, activation)?;
        gated_of::<bf16>(i as u64, shape, activation)?;
        gated_of::<f16>(i as u64, shape, activation)?;
    }
    Ok(())
}

/// Weights in blocks beside the same values as tensors.
fn blocks_of<T: Real>(stored: Stored, [tokens, experts, width, depth]: [usize; 4]) -> Result<()> {
    let Some(gpu) = emulator() else { return Ok(()) };
    let mut rng = Rng::new(depth as u64);
    let (routes, _) = routed(&mut rng, tokens, experts, 2)?;
    let rows = routes.len();
    let x = reals::<T>(&mut rng, tokens * depth);
    let weights =
        Tensor::from_vec(normal(&mut rng, experts * 2 * width * depth), (experts, 2 * width, depth), &Device::Cpu)?;
    let (data, values) = match stored {
        Stored::Q8_0 | Stored::Q4K => {
            let format = if stored == Stored::Q8_0 { BlockFormat::Q8_0 } else { BlockFormat::Q4K };
            let blocks = Blocks::quantise(&weights, format)?;
            (blocks.data().to_vec(), blocks.dequantise()?)
        }
        // Bytes of all kinds but NaN, behind scales.
        Stored::E4M3 => {
            let (mut data, mut values) = (Vec::new(), Vec::new());
            for _ in 0..weights.elem_count() / 128 {
                let scale = (0.001 + 0.01 * rng.uniform()) as f32;
                data.extend(scale.to_le_bytes());
                for _ in 0..128 {
                    let byte = rng.below(127) as u8 | (u8::from(rng.chance(0.5)) << 7);
                    data.push(byte);
                    values.push(fp8::value(byte) * scale);
                }
            }
            (data, Tensor::from_vec(values, weights.shape(), &Device::Cpu)?)
        }
    };
    let gathered = dispatch(&tensor(&x, &[tokens, depth])?.to_dtype(DType::F32)?, &routes)?;
    let values = values.to_dtype(T::KIND)?.to_dtype(DType::F32)?;
    let expected = grouped_linear(&gathered, &values, None, &routes)?;
    let (sizes, y) = (Sizes { experts, rows, width: 2 * width, depth }, gpu.empty::<T>(rows * 2 * width));
    let map = Map {
        x: gpu.put(&x),
        token: Some((gpu.put(&routes.lists()?.token), tokens)),
        w: gpu.put(&data),
        format: Some(stored),
        bias: None,
        offsets: gpu.put(&words(routes.offsets()?)),
        y,
    };
    let what = format!("{} {:?}", stored.name(), T::KIND);
    gpu.run(&launch::linear(map, sizes, None, false, None)?);
    compare::<T>(gpu, y, &expected, depth, &what)?;
    let (gate, up) = (expected.narrow(1, 0, width)?, expected.narrow(1, width, width)?);
    let expected = (gate.silu()? * up)?;
    let (sizes, y) = (Sizes { width, ..sizes }, gpu.empty::<T>(rows * width));
    gpu.run(&launch::linear(Map { y, ..map }, sizes, Some(Activation::Silu), true, None)?);
    compare::<T>(gpu, y, &expected, depth * depth, &format!("gated {what}"))?;
    let other = Map { format: Some(if stored == Stored::Q4K { Stored::Q8_0 } else { Stored::Q4K }), ..map };
    assert!(launch::linear(other, sizes, None, false, None).is_err());
    Ok(())
}

#[test]
fn weights_in_blocks_are_their_values() -> Result<()> {
    for (format, depth) in [(Stored::Q8_0, 96), (Stored::Q4K, 256), (Stored::Q4K, 512), (Stored::E4M3, 256)] {
        for shape in [[5, 3, 40, depth], [60, 2, 7, depth]] {
            blocks_of::<f32>(format, shape)?;
            blocks_of::<bf16>(format, shape)?;
            blocks_of::<f16>(format, shape)?;
        }
    }
    Ok(())
}

#[test]
fn launches_refuse_what_does_not_fit() -> Result<()> {
    let of = |len, dtype| Values { address: 64, len, dtype };
    let f = |len| of(len, DType::F32);
    let sizes = Sizes { experts: 2, rows: 3, width: 4, depth: 5 };
    let map =
        Map { x: f(15), token: None, w: f(40), format: None, bias: Some(f(8)), offsets: of(3, DType::U32), y: f(12) };
    assert!(launch::linear(map, sizes, None, false, None).is_ok());
    for bad in [
        Map { x: f(14), ..map },
        Map { w: f(41), ..map },
        Map { bias: Some(f(4)), ..map },
        Map { offsets: of(3, DType::I64), ..map },
        Map { y: of(12, DType::BF16), ..map },
        Map { x: of(15, DType::F64), ..map },
        Map { token: Some((of(2, DType::U32), 3)), ..map },
    ] {
        assert!(launch::linear(bad, sizes, None, false, None).is_err(), "{bad:?}");
    }
    let half = |len| of(len, DType::BF16);
    let odd = Map { x: half(15), w: half(40), bias: None, y: half(12), ..map };
    assert!(launch::linear(odd, sizes, None, false, Some(TileRows::R64)).is_err());
    assert_eq!(launch::linear(odd, sizes, None, false, None)?.kernel, "moesaic_linear_bf16_any");
    let huge = Sizes { experts: 1, rows: 1 << 32, width: 1, depth: 1 };
    let map = Map {
        x: f(1 << 32),
        token: None,
        w: f(1),
        format: None,
        bias: None,
        offsets: of(2, DType::U32),
        y: f(1 << 32),
    };
    assert!(launch::linear(map, huge, None, false, None).is_err());
    Ok(())
}
