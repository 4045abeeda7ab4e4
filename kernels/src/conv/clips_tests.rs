//! Convolutions over clips against sums written out, and gradients against differences.

use candle_core::{Device, Result, Tensor, Var};

use super::{ClipConv, Windows, depthwise, max_pool, unfold_clips};
use crate::cpu::{Isa, with_isa, with_threads};
use crate::{Init, Params};

fn normal(name: &str, shape: &[usize]) -> Result<Tensor> {
    Ok(Params::init(11, &Device::Cpu).tensor(name, shape, Init::Normal(1.0))?.detach())
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("a tensor of f32")
}

/// Clips `[n, t, h, w, c]`, windows, outputs.
const CASES: [([usize; 5], Windows, usize); 7] = [
    ([2, 1, 9, 7, 3], Windows::square(3, 1, 1), 5),
    ([3, 1, 8, 8, 20], Windows::square(3, 2, 1), 33),
    ([1, 1, 5, 6, 70], Windows::square(1, 2, 0), 64),
    ([2, 1, 5, 6, 70], Windows::square(1, 1, 0), 40),
    ([1, 1, 1, 1, 4], Windows::square(3, 1, 1), 2),
    ([1, 6, 14, 12, 1], Windows { size: [5, 7, 7], stride: [1, 2, 2], pad: [(2, 2), (3, 3), (3, 3)] }, 8),
    ([2, 4, 5, 5, 2], Windows { size: [3, 2, 2], stride: [1, 1, 2], pad: [(2, 0), (0, 0), (1, 1)] }, 3),
];

/// Calls `f(output, window value, input)` for every pair of a window's value and what stands there; indices into flat tensors.
fn each(dims: [usize; 5], windows: Windows, mut f: impl FnMut(usize, usize, usize)) -> usize {
    let [n, t, h, w, c] = dims;
    let [to, ho, wo] = windows.count([t, h, w]).expect("windows");
    let mut row = 0;
    for (clip, ot, oy, ox) in
        (0..n).flat_map(|n| (0..to).flat_map(move |t| (0..ho).flat_map(move |y| (0..wo).map(move |x| (n, t, y, x)))))
    {
        let mut value = 0;
        for dt in 0..windows.size[0] {
            for dy in 0..windows.size[1] {
                for dx in 0..windows.size[2] {
                    for k in 0..c {
                        let at = |o: usize, d: usize, axis: usize| {
                            (o * windows.stride[axis] + d).checked_sub(windows.pad[axis].0)
                        };
                        if let (Some(it), Some(iy), Some(ix)) = (at(ot, dt, 0), at(oy, dy, 1), at(ox, dx, 2))
                            && it < t
                            && iy < h
                            && ix < w
                        {
                            f(row, value, (((clip * t + it) * h + iy) * w + ix) * c + k);
                        }
                        value += 1;
                    }
                }
            }
        }
        row += 1;
    }
    row
}

#[test]
fn convolutions_are_the_sums_that_they_stand_for() -> Result<()> {
    for (dims, windows, outs) in CASES {
        let k = windows.width(dims[4]);
        let (x, weight) = (normal("x", &dims)?, normal("weight", &[outs, k])?);
        let (bias, slope) = (normal("bias", &[outs])?, normal("slope", &[outs])?);
        let (xs, ws, bs, ss) = (values(&x), values(&weight), values(&bias), values(&slope));
        let rows = each(dims, windows, |_, _, _| {});
        let mut sums = vec![0f64; rows * outs];
        each(dims, windows, |row, value, at| {
            for o in 0..outs {
                sums[row * outs + o] += f64::from(xs[at]) * f64::from(ws[o * k + value]);
            }
        });
        let [t, h, w] = windows.count([dims[1], dims[2], dims[3]]).expect("windows");
        let residual = normal("residual", &[dims[0], t, h, w, outs])?;
        let rs = values(&residual);
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512] {
            let plain = with_isa(isa, || ClipConv::new(&weight, &bias, None)?.forward(&x, &windows, None))?;
            let conv = ClipConv::new(&weight, &bias, Some(&slope))?;
            let whole = with_isa(isa, || conv.forward(&x, &windows, Some(&residual)))?;
            assert_eq!((plain.dims(), whole.dims()), ([dims[0], t, h, w, outs].as_slice(), residual.dims()));
            for (i, (a, b)) in values(&plain).iter().zip(values(&whole)).enumerate() {
                let sum = sums[i] + f64::from(bs[i % outs]);
                assert!((f64::from(*a) - sum).abs() < 1e-4, "{dims:?} {isa:?} at {i}: {a} {sum}");
                let sum = sum + f64::from(rs[i]);
                let sum = if sum > 0.0 { sum } else { sum * f64::from(ss[i % outs]) };
                assert!((f64::from(b) - sum).abs() < 1e-4, "{dims:?} {isa:?} at {i}: {b} {sum}");
            }
        }
        // The windows laid out say the same.
        let rows = crate::linear(&unfold_clips(&x, &windows)?, &weight, Some(&bias))?;
        let plain = ClipConv::new(&weight, &bias, None)?.forward(&x, &windows, None)?;
        let worst = (rows.flatten_all()? - plain.flatten_all()?)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(worst < 1e-5, "{dims:?}: {worst}");
    }
    Ok(())
}

#[test]
fn depthwise_filters_leave_channels_apart() -> Result<()> {
    for (dims, windows, _) in CASES {
        let (c, size) = (dims[4], windows.size.iter().product::<usize>());
        let (x, filters) = (normal("x", &dims)?, normal("filters", &[size, c])?);
        let (xs, fs) = (values(&x), values(&filters));
        let rows = each(dims, windows, |_, _, _| {});
        let mut sums = vec![0f64; rows * c];
        each(dims, windows, |row, value, at| {
            sums[row * c + value % c] += f64::from(xs[at]) * f64::from(fs[value]);
        });
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512] {
            let y = with_isa(isa, || depthwise(&x, &filters, &windows))?;
            let [t, h, w] = windows.count([dims[1], dims[2], dims[3]]).expect("windows");
            assert_eq!(y.dims(), [dims[0], t, h, w, c]);
            for (i, (y, sum)) in values(&y).iter().zip(&sums).enumerate() {
                assert!((f64::from(*y) - sum).abs() < 1e-4, "{dims:?} {isa:?} at {i}: {y} {sum}");
            }
        }
        assert!(depthwise(&x, &filters.narrow(1, 0, c - 1)?, &windows).is_err() || c == 1);
    }
    Ok(())
}

#[test]
fn a_clip_has_the_same_bits_alone_and_in_a_batch_on_any_number_of_threads() -> Result<()> {
    let (dims, windows) = ([5, 1, 11, 11, 24], Windows::square(3, 1, 1));
    let (x, weight, bias) = (normal("x", &dims)?, normal("w", &[40, 216])?, normal("b", &[40])?);
    let conv = ClipConv::new(&weight, &bias, Some(&bias))?;
    let all = conv.forward(&x, &windows, None)?;
    for threads in [1, 2, 3] {
        let one = with_threads(threads, || conv.forward(&x.narrow(0, 3, 1)?, &windows, None))?;
        assert_eq!(values(&one), values(&all.narrow(0, 3, 1)?));
    }
    Ok(())
}

#[test]
fn pools_take_the_largest_and_give_it_the_gradient() -> Result<()> {
    let (dims, windows) = ([2, 2, 9, 8, 3], Windows::square(3, 2, 1));
    let x = Var::from_tensor(&normal("x", &dims)?)?;
    let xs = values(&x);
    // Windows of one channel, so that a window's value is a pixel.
    let rows = each(dims, windows, |_, _, _| {});
    let (mut most, mut from) = (vec![f32::NEG_INFINITY; rows * 3], vec![0; rows * 3]);
    each(dims, windows, |row, value, at| {
        let slot = row * 3 + value % 3;
        if xs[at] > most[slot] {
            (most[slot], from[slot]) = (xs[at], at);
        }
    });
    let y = max_pool(&x, &windows)?;
    assert_eq!(y.dims(), [2, 2, 5, 4, 3]);
    assert_eq!(values(&y), most);
    let weights = normal("weights", y.dims())?;
    let grads = (&y * &weights)?.sum_all()?.backward()?;
    let mut expected = vec![0f32; xs.len()];
    from.iter().zip(values(&weights)).for_each(|(&at, w)| expected[at] += w);
    for (a, b) in values(grads.get(&x).expect("a gradient")).iter().zip(expected) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    Ok(())
}

#[test]
fn windows_pass_gradients_back_to_where_they_came_from() -> Result<()> {
    for (dims, windows, _) in CASES {
        let x = Var::from_tensor(&normal("x", &dims)?)?;
        let rows = unfold_clips(&x, &windows)?;
        let weights = normal("weights", rows.dims())?;
        let ws = values(&weights);
        let mut expected = vec![0f32; x.elem_count()];
        let k = windows.width(dims[4]);
        each(dims, windows, |row, value, at| expected[at] += ws[row * k + value]);
        let grads = (rows * weights)?.sum_all()?.backward()?;
        for (a, b) in values(grads.get(&x).expect("a gradient")).iter().zip(expected) {
            assert!((a - b).abs() < 1e-4, "{dims:?}: {a} {b}");
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let (weight, bias) = (normal("w", &[4, 9])?, normal("b", &[4])?);
    let conv = ClipConv::new(&weight, &bias, None)?;
    let x = normal("x", &[1, 1, 5, 5, 1])?;
    assert!(conv.forward(&x, &Windows::square(3, 1, 0), None).is_ok());
    assert!(conv.forward(&x, &Windows::square(2, 1, 0), None).is_err());
    assert!(conv.forward(&x, &Windows::square(3, 1, 0), Some(&x)).is_err());
    assert!(conv.forward(&x.squeeze(0)?, &Windows::square(3, 1, 0), None).is_err());
    assert!(max_pool(&x, &Windows::square(6, 1, 0)).is_err());
    assert!(unfold_clips(&x, &Windows { stride: [1, 0, 1], ..Windows::square(3, 1, 0) }).is_err());
    assert!(ClipConv::new(&weight, &normal("b", &[3])?, None).is_err());
    Ok(())
}
