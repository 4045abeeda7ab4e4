//! Attention over the buffers of a cache against attention over plain tensors.

use candle_core::{DType, Device, Result, Tensor};
use moesaic_kernels::CausalAttention;
use moesaic_kernels::cpu::with_threads;
use moesaic_kernels::rng::Rng;

fn normal(rng: &mut Rng, shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn close(name: &str, a: &Tensor, b: &Tensor) {
    assert_eq!(a.dims(), b.dims(), "{name}");
    let worst = values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst < 2e-6, "{name}: {worst}");
}

/// The first `keys` of `[b, capacity, ..]`.
fn used(x: &Tensor, keys: usize) -> Tensor {
    x.narrow(1, 0, keys).unwrap().contiguous().unwrap().to_dtype(DType::F32).unwrap()
}

#[test]
fn a_cache_gives_what_its_tokens_give() -> Result<()> {
    let mut rng = Rng::new(1);
    // Queries, keys, capacity, query heads, key-value heads, padding, window.
    for (t, keys, capacity, heads, kv, start, window) in [
        (1, 1, 1, 2, 2, vec![], None),
        (1, 200, 256, 4, 2, vec![0, 150], None),
        (3, 130, 130, 20, 1, vec![7, 129], None),
        (8, 70, 90, 4, 4, vec![0, 3], Some(5)),
        (9, 70, 90, 4, 2, vec![65, 3], Some(20)),
        (40, 70, 71, 2, 2, vec![0, 35], None),
    ] {
        let q = normal(&mut rng, &[2, t, heads, 12]);
        let (k, v) = (normal(&mut rng, &[2, capacity, kv, 12]), normal(&mut rng, &[2, capacity, kv, 7]));
        let attention = CausalAttention { start, window, ..CausalAttention::new(0.3) };
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let (k, v) = (k.to_dtype(dtype)?, v.to_dtype(dtype)?);
            let cached = attention.forward_cached(&q, &k, &v, keys)?;
            let plain = attention.forward(&q, &used(&k, keys), &used(&v, keys))?;
            close(&format!("{t} of {keys} in {dtype:?}"), &cached, &plain);
            let one = with_threads(1, || attention.forward_cached(&q, &k, &v, keys))?;
            assert_eq!(values(&cached), values(&one), "the number of threads shows");
        }
    }
    Ok(())
}

#[test]
fn latents_are_keys_and_values_at_once() -> Result<()> {
    let mut rng = Rng::new(2);
    for (t, heads) in [(1, 4), (3, 19), (12, 4)] {
        let (q, kv) = (normal(&mut rng, &[2, t, heads, 10]), normal(&mut rng, &[2, 33, 10]));
        let attention = CausalAttention { start: vec![0, 4], ..CausalAttention::new(0.3) };
        let latent = attention.forward_latent(&q, &kv, 30, 6)?;
        let keys = used(&kv, 30).unsqueeze(2)?;
        let plain = attention.forward(&q, &keys, &keys.narrow(3, 0, 6)?.contiguous()?)?;
        close("latent", &latent, &plain);
    }
    Ok(())
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() -> Result<()> {
    let mut rng = Rng::new(3);
    let (q, k, v) =
        (normal(&mut rng, &[2, 1, 4, 12]), normal(&mut rng, &[2, 100, 2, 12]), normal(&mut rng, &[2, 100, 2, 8]));
    let attention = CausalAttention { start: vec![0, 33], ..CausalAttention::new(0.3) };
    let both = attention.forward_cached(&q, &k, &v, 90)?;
    let row = |x: &Tensor| x.narrow(0, 1, 1)?.contiguous();
    let tail = |x: &Tensor| row(x)?.narrow(1, 33, 67)?.contiguous();
    let alone = CausalAttention::new(0.3).forward_cached(&row(&q)?, &tail(&k)?, &tail(&v)?, 57)?;
    assert_eq!(values(&row(&both)?), values(&alone));
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() -> Result<()> {
    let mut rng = Rng::new(4);
    let (q, k, v) =
        (normal(&mut rng, &[1, 2, 4, 12]), normal(&mut rng, &[1, 10, 2, 12]), normal(&mut rng, &[1, 10, 2, 8]));
    let attention = CausalAttention::new(0.3);
    assert!(attention.forward_cached(&q, &k, &v, 11).is_err());
    assert!(attention.forward_cached(&q, &k, &v, 1).is_err());
    assert!(attention.forward_cached(&q, &k, &v.narrow(1, 0, 9)?.contiguous()?, 9).is_err());
    assert!(attention.forward_cached(&q, &k, &v.to_dtype(DType::BF16)?, 10).is_err());
    assert!(attention.forward_latent(&q, &k.squeeze(0)?, 10, 13).is_err());
    let padding = CausalAttention { uniform_padding: true, ..attention };
    assert!(padding.forward_cached(&q, &k, &v, 10).is_err());
    Ok(())
}
