//! Forward values against candle-nn's own operations, which cut gradients but are written by others.

use candle_core::{Device, Result, Tensor};
use candle_nn::ops as theirs;
use moesaic_kernels::ops::{layer_norm, rms_norm, silu_glu, softmax};
use moesaic_kernels::rng::Rng;
use moesaic_kernels::rotary::{Rotary, RotaryStyle};
use moesaic_kernels::{Activation, linear};

fn normal(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = Rng::new(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn close(name: &str, ours: &Tensor, theirs: &Tensor, bound: f32) {
    assert_eq!(ours.dims(), theirs.dims(), "{name}");
    let diff = (ours - theirs).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    assert!(diff.to_scalar::<f32>().unwrap() <= bound, "{name}: {diff}");
}

#[test]
fn rowwise_operations() -> Result<()> {
    let (x, w) = (normal(1, &[3, 5, 24]), normal(2, &[24]));
    close("softmax", &softmax(&x)?, &theirs::softmax_last_dim(&x)?, 1e-6);
    close("rms norm", &rms_norm(&x, &w, 1e-5)?, &theirs::rms_norm(&x, &w, 1e-5)?, 1e-5);
    let bias = normal(6, &[24]);
    close("layer norm", &layer_norm(&x, &w, Some(&bias), 1e-5)?, &theirs::layer_norm(&x, &w, &bias, 1e-5)?, 1e-5);
    close("swiglu", &silu_glu(&x)?, &theirs::swiglu(&x)?, 1e-5);
    close("silu", &Activation::Silu.apply(&x)?, &theirs::silu(&x)?, 1e-6);
    let weight = normal(3, &[7, 24]);
    close(
        "linear",
        &linear(&x, &weight, None)?,
        &candle_nn::Module::forward(&candle_nn::Linear::new(weight, None), &x)?,
        1e-4,
    );
    Ok(())
}

#[test]
fn rotary_embeddings() -> Result<()> {
    let (b, t, heads, d) = (2, 6, 3, 8);
    let x = normal(4, &[b, t, heads, d]);
    let positions: Vec<u32> = (0..b * t).map(|i| (i % t) as u32).collect();
    let angles: Vec<f32> =
        (0..t).flat_map(|p| (0..d / 2).map(move |j| p as f32 * 10000f32.powf(-2.0 * j as f32 / d as f32))).collect();
    let angles = Tensor::from_vec(angles, (t, d / 2), &Device::Cpu)?;
    let by_head = x.transpose(1, 2)?.contiguous()?; // candle-nn takes (b, heads, t, d)
    let ours = |style| -> Result<Tensor> {
        Rotary::new(d, 10000.0, style)?.tables(&positions, b, t)?.apply(&x)?.transpose(1, 2)?.contiguous()
    };
    let half = candle_nn::rotary_emb::rope(&by_head, &angles.cos()?, &angles.sin()?)?;
    close("half", &ours(RotaryStyle::Half)?, &half, 1e-5);
    let pairs = candle_nn::rotary_emb::rope_i(&by_head, &angles.cos()?, &angles.sin()?)?;
    close("interleaved", &ours(RotaryStyle::Interleaved)?, &pairs, 1e-5);
    Ok(())
}
