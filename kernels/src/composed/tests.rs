//! Beside the fused forms: values and gradients.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::attention::{BiasedAttention, CausalAttention, Sight};
use crate::conv::{self, Windows};
use crate::rotary::{Rotary, RotaryStyle};
use crate::routes::Routes;
use crate::{Init, Params, composed, experts, losses, ops};

fn normal(name: &str, shape: &[usize]) -> Result<Var> {
    Var::from_tensor(&Params::init(9, &Device::Cpu).tensor(name, shape, Init::Normal(1.0))?.detach())
}

/// Values and gradients of both forms are the same but for the order of sums.
fn same(what: &str, vars: &[&Var], fused: Result<Tensor>, composed: Result<Tensor>) -> Result<()> {
    let (fused, composed) = (fused?, composed?);
    assert_eq!((fused.dims(), fused.dtype()), (composed.dims(), composed.dtype()), "{what}");
    let near = |a: &Tensor, b: &Tensor, tolerance: f32| -> Result<()> {
        let values = |t: &Tensor| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        for (i, (a, b)) in values(a)?.iter().zip(values(b)?).enumerate() {
            assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{what}: value {i} is {b} composed and {a} fused");
        }
        Ok(())
    };
    near(&fused, &composed, 2e-5)?;
    // Another weight for each value, so that no gradient cancels.
    let weights = normal("weights", fused.dims())?.detach();
    let grads = |y: &Tensor| (y.to_dtype(DType::F32)? * &weights)?.sum_all()?.backward();
    let (of_fused, of_composed) = (grads(&fused)?, grads(&composed)?);
    for (i, var) in vars.iter().enumerate() {
        match (of_fused.get(var), of_composed.get(var)) {
            (Some(a), Some(b)) => near(a, b, 2e-4)?,
            (a, b) => panic!("{what}: gradient {i} is there {} and {}", a.is_some(), b.is_some()),
        }
    }
    Ok(())
}

#[test]
fn rows() -> Result<()> {
    let (x, w, b) = (normal("x", &[3, 5, 8])?, normal("w", &[8])?, normal("b", &[8])?);
    same("softmax", &[&x], ops::softmax(&x), composed::softmax(&x))?;
    same("rms norm", &[&x, &w], ops::rms_norm(&x, &w, 1e-5), composed::rms_norm(&x, &w, 1e-5))?;
    same("layer norm", &[&x, &w, &b], ops::layer_norm(&x, &w, Some(&b), 1e-5), composed::layer_norm(&x, &w, &b, 1e-5))?;
    same("silu glu", &[&x], ops::silu_glu(&x), composed::silu_glu(&x))?;
    same(
        "channel norm",
        &[&x, &w, &b],
        conv::channel_norm(&x, &w, &b, 1e-5),
        composed::channel_norm(&x, &w, &b, 1e-5),
    )?;
    same("unfold", &[&x], conv::unfold(&x, 2, 3), composed::unfold(&x, 2, 3))?;
    assert!(composed::unfold(&x, 6, 1).is_err());
    let (x, points) = (normal("rows", &[6, 4])?, normal("points", &[3, 4])?);
    same("distances", &[&x, &points], ops::distances(&x, &points), composed::distances(&x, &points))?;
    // A row that is a point: its gradient is 0, not NaN.
    let at = Var::from_tensor(&points.narrow(0, 1, 2)?)?;
    same("distances of 0", &[&at], ops::distances(&at, &points), composed::distances(&at, &points))?;
    let targets = [2, -1, 0, 3, -1, 1];
    same("cross entropy", &[&x], losses::cross_entropy(&x, &targets), composed::cross_entropy(&x, &targets))?;
    assert_eq!(composed::cross_entropy(&x, &[-1; 6])?.to_scalar::<f32>()?, 0.0);
    let half = Var::from_tensor(&x.to_dtype(DType::BF16)?)?;
    assert_eq!(composed::softmax(&half)?.dtype(), DType::BF16);
    Ok(())
}

#[test]
fn rotation() -> Result<()> {
    for style in [RotaryStyle::Half, RotaryStyle::Interleaved] {
        for dims in [4, 6] {
            let x = normal("x", &[2, 3, 5, 6])?;
            let tables = Rotary::new(dims, 100.0, style)?.tables(&[0, 3, 9, 2, 1, 7], 2, 3)?;
            let composed = |turned| composed::rotary(&x, tables.cos(), tables.sin(), style, turned);
            same("rotary", &[&x], tables.apply(&x), composed(5))?;
            let flat = x.reshape((6, 30))?;
            let joint = tables.apply_joint(&flat, 5, 3)?.reshape((2, 3, 5, 6));
            same("joint rotary", &[&x], joint, composed(3))?;
        }
    }
    Ok(())
}

#[test]
fn attention() -> Result<()> {
    let plain = CausalAttention::new(0.4);
    let padded = CausalAttention { start: vec![2, 0], window: Some(3), ..plain.clone() };
    for (attention, queries, keys) in [
        (plain.clone(), 5, 5),
        (plain.clone(), 2, 5),
        (padded.clone(), 5, 5),
        (CausalAttention { uniform_padding: true, ..padded.clone() }, 5, 5),
        (CausalAttention { end: vec![4, 3], ..plain.clone() }, 5, 5),
        (CausalAttention::everywhere(0.3), 6, 4),
        (CausalAttention { start: vec![1, 0], ..CausalAttention::everywhere(0.3) }, 4, 4),
    ] {
        let (q, k, v) =
            (normal("q", &[2, queries, 4, 6])?, normal("k", &[2, keys, 2, 6])?, normal("v", &[2, keys, 2, 3])?);
        let shape = attention.shape(q.dims(), k.dims(), v.dims())?;
        let what = format!("{attention:?}");
        same(&what, &[&q, &k, &v], attention.forward(&q, &k, &v), composed::attention(&shape, &q, &k, &v))?;
        if attention.uniform_padding || queries == 6 {
            continue;
        }
        // A cache with room behind what counts.
        let room = |t: &Var| Tensor::cat(&[t.as_tensor(), normal("room", &[2, 3, 2, t.dims()[3]])?.as_tensor()], 1);
        let (k, v) = (room(&k)?.detach(), room(&v)?.detach());
        same(&what, &[], attention.forward_cached(&q, &k, &v, keys), composed::cached(&shape, &q, &k, &v))?;
    }
    let x = normal("x", &[10, 40])?;
    let shape = plain.shape(&[2, 5, 4, 5], &[2, 5, 2, 5], &[2, 5, 2, 5])?;
    same("joint", &[&x], plain.forward_joint(&x, 2, 4, 2), composed::joint(&shape, &x))
}

#[test]
fn attention_over_lists() -> Result<()> {
    let mut sight = Sight::new();
    sight.push([(0, 1), (1, 1), (3, 0)]);
    sight.push([]);
    sight.push([(2, 0)]);
    let (q, kv, bias) = (normal("q", &[3, 2, 4])?, normal("kv", &[4, 2, 2, 4])?, normal("bias", &[2, 2])?);
    let attention = BiasedAttention { scale: 0.5, sight: Arc::new(sight) };
    let composed = composed::biased(0.5, &attention.sight, &q, &kv, &bias);
    same("lists", &[&q, &kv, &bias], attention.forward(&q, &kv, &bias), composed)
}

#[test]
fn stages_of_experts() -> Result<()> {
    let choices = [vec![2, 0], vec![], vec![0, 3, 2], vec![3]];
    let weights = normal("weight", &[6])?;
    let scores = Tensor::zeros((4, 5), DType::F32, &Device::Cpu)?;
    let routes = Routes::new(5, &choices, &weights, scores)?;
    let (x, w, b) = (normal("x", &[4, 6])?, normal("w", &[5, 3, 6])?, normal("b", &[5, 3])?);
    same("dispatch", &[&x], experts::dispatch(&x, &routes), composed::dispatch(&x, &routes.plan))?;
    let y = normal("y", &[6, 3])?;
    let composed = composed::combine(&y, routes.weight(), &routes.plan);
    same("combine", &[&y, &weights], experts::combine(&y, &routes), composed)?;
    let rows = normal("rows", &[6, 6])?;
    let fused = experts::grouped_linear(&rows, &w, Some(&b), &routes);
    same("grouped", &[&rows, &w, &b], fused, composed::grouped_linear(&rows, &w, Some(&b), routes.offsets()?))?;
    let (x, w) = (normal("x", &[2, 3, 6])?, normal("w", &[4, 6])?);
    same("linear", &[&x, &w], experts::linear(&x, &w, None), composed::grouped_linear(&x, &w, None, &[0, 6]))
}

#[test]
fn windows_of_clips() -> Result<()> {
    let x = normal("x", &[2, 3, 5, 4, 2])?;
    for windows in [
        Windows::square(3, 2, 1),
        Windows { size: [2, 3, 2], stride: [1, 2, 1], pad: [(1, 0), (0, 2), (1, 1)] },
        Windows::square(1, 1, 0),
    ] {
        same("clips", &[&x], conv::unfold_clips(&x, &windows), conv::composed::unfold_clips(&x, &windows))?;
        same("most", &[&x], conv::max_pool(&x, &windows), conv::composed::max_pool(&x, &windows))?;
        let filters = normal("filters", &[windows.width(1), 2])?;
        let (x, filters) = (x.detach(), filters.detach());
        let fused = conv::depthwise(&x, &filters, &windows);
        same("depthwise", &[], fused, conv::composed::depthwise(&x, &filters, &windows))?;
    }
    Ok(())
}
