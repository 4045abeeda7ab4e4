//! Low-rank adapters: gradients, sums, merging, storages and dtypes, dropout.

mod common;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};
use common::check;
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_kernels::lora::{LowRank, with_dropout, with_only};
use moesaic_kernels::rng::Rng;
use moesaic_kernels::{Activation, ExpertBank, Half, Init, Linear, Params, Routes};

fn normal(rng: &mut Rng, shape: &[usize]) -> Tensor {
    common::normal(rng, shape, 0.5)
}

fn far(a: &Tensor, b: &Tensor) -> f32 {
    let (a, b) = (a.to_dtype(DType::F32).unwrap(), b.to_dtype(DType::F32).unwrap());
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// Routes with none, one or several experts per token; the last expert has none.
fn routes(tokens: usize, experts: usize) -> Routes {
    let choices: Vec<Vec<u32>> =
        (0..tokens).map(|t| (0..t % 4).map(|s| ((t * 5 + s * 3) % (experts - 1)) as u32).collect()).collect();
    let total = choices.iter().map(Vec::len).sum();
    let weights = normal(&mut Rng::new(9), &[total]);
    Routes::new(experts, &choices, &weights, Tensor::zeros((tokens, experts), DType::F32, &Device::Cpu).unwrap())
        .unwrap()
}

#[test]
fn gradients_of_a_linear_map() {
    let mut rng = Rng::new(1);
    let (weight, bias) = (normal(&mut rng, &[9, 6]), normal(&mut rng, &[9]));
    let inputs = [
        normal(&mut rng, &[5, 6]),
        normal(&mut rng, &[2, 6]),
        normal(&mut rng, &[4, 2]),
        normal(&mut rng, &[3, 6]),
        normal(&mut rng, &[9, 3]),
    ];
    let adapted = |v: &[Tensor]| -> Result<Tensor> {
        let mut map = Linear::new(weight.clone(), Some(bias.clone()))?;
        map.attach(LowRank::new("part", v[1].clone(), v[2].clone(), 1.5)?.at(3).with_dropout(0.3, "q")?)?;
        map.attach(LowRank::new("whole", v[3].clone(), v[4].clone(), -0.5)?.with_weight(0.7))?;
        map.forward(&v[0])
    };
    check("linear", &inputs, adapted);
    // The masks are those of the pass, so the function that is differentiated stays the same.
    check("linear with dropout", &inputs, |v| with_dropout(7, || adapted(v)));
    assert!(far(&adapted(&inputs).unwrap(), &with_dropout(7, || adapted(&inputs)).unwrap()) > 0.01);
    let again = |pass| with_dropout(pass, || adapted(&inputs)).unwrap();
    assert_eq!(far(&again(7), &again(7)), 0.0);
    assert!(far(&again(7), &again(8)) > 0.0);
}

#[test]
fn gradients_of_experts() {
    let mut rng = Rng::new(2);
    let (e, t, h, i, o, r) = (4, 11, 6, 5, 7, 2);
    let (up, down) = (normal(&mut rng, &[e, 2 * i, h]), normal(&mut rng, &[e, o, i]));
    let inputs = [
        normal(&mut rng, &[t, h]),
        normal(&mut rng, &[e, r, h]),
        normal(&mut rng, &[e, i, r]),
        normal(&mut rng, &[e * r, i]),
        normal(&mut rng, &[o, r * e]),
    ];
    let routes = routes(t, e);
    check("experts", &inputs, |v| {
        let mut bank = ExpertBank::gated(up.clone(), down.clone(), Activation::Silu)?;
        bank.attach(Half::Up, LowRank::new("a", v[1].clone(), v[2].clone(), 1.5)?.at(i))?;
        bank.attach(Half::Down, LowRank::interleaved("a", e, v[3].clone(), v[4].clone(), 2.0)?)?;
        bank.forward(&v[0], &routes)
    });
}

/// By the definition, expert by expert: `W + scale · B A` in the place of `W`.
#[test]
fn experts_equal_weights_that_were_changed_by_hand() -> Result<()> {
    let mut rng = Rng::new(3);
    let (e, t, h, i, o, r) = (4, 13, 6, 5, 7, 2);
    let (up, down) = (normal(&mut rng, &[e, 2 * i, h]), normal(&mut rng, &[e, o, i]));
    let (a, b) = (normal(&mut rng, &[e, r, h]), normal(&mut rng, &[e, i, r]));
    // Stacked: rank by rank, the expert running fastest.
    let (a2, b2) = (normal(&mut rng, &[e * r, i]), normal(&mut rng, &[o, r * e]));
    let (mut ups, mut downs) = (Vec::new(), Vec::new());
    for n in 0..e {
        let delta = (b.get(n)?.matmul(&a.get(n)?)? * 1.5)?;
        ups.push((up.get(n)? + delta.pad_with_zeros(0, i, 0)?)?);
        let index = Tensor::from_vec((0..r).map(|k| (k * e + n) as u32).collect::<Vec<_>>(), r, &Device::Cpu)?;
        let delta = (b2.index_select(&index, 1)?.matmul(&a2.narrow(0, n * r, r)?)? * 2.0)?;
        downs.push((down.get(n)? + delta)?);
    }
    let expected = ExpertBank::gated(Tensor::stack(&ups, 0)?, Tensor::stack(&downs, 0)?, Activation::Silu)?;
    let (x, routes) = (normal(&mut rng, &[t, h]), routes(t, e));
    let expected = expected.forward(&x, &routes)?;
    let adapt = |mut bank: ExpertBank| -> Result<ExpertBank> {
        bank.attach(Half::Up, LowRank::new("x", a.clone(), b.clone(), 1.5)?.at(i))?;
        bank.attach(Half::Down, LowRank::interleaved("x", e, a2.clone(), b2.clone(), 2.0)?)?;
        Ok(bank)
    };
    let plain = ExpertBank::gated(up, down, Activation::Silu)?;
    let without = plain.forward(&x, &routes)?;
    let mut live = adapt(plain.clone())?;
    let mut packed = adapt(plain.clone().pack()?)?;
    assert!(far(&without, &expected) > 0.1);
    assert!(far(&live.forward(&x, &routes)?, &expected) < 1e-5);
    assert!(far(&packed.forward(&x, &routes)?, &expected) < 1e-5);
    // Tiles take nothing in; plain weights do.
    assert!(packed.merge().unwrap_err().to_string().contains("live"));
    live.merge()?;
    assert!(live.adapters(Half::Up).is_empty() && live.adapters(Half::Down).is_empty());
    assert!(far(&live.forward(&x, &routes)?, &expected) < 1e-5);
    // Taken off, nothing is left of it.
    packed.adjust(|_| None);
    assert!(far(&packed.forward(&x, &routes)?, &without) < 1e-6);
    Ok(())
}

#[test]
fn two_adapters_add_up_with_their_strengths() -> Result<()> {
    let mut rng = Rng::new(4);
    let x = normal(&mut rng, &[2, 5, 8]);
    let base = Linear::new(normal(&mut rng, &[6, 8]), None)?.pack()?;
    let one = LowRank::new("one", normal(&mut rng, &[2, 8]), normal(&mut rng, &[6, 2]), 2.0)?;
    let two = LowRank::new("two", normal(&mut rng, &[3, 8]), normal(&mut rng, &[6, 3]), 0.5)?;
    let with = |adapters: &[&LowRank]| -> Result<Tensor> {
        let mut map = base.clone();
        adapters.iter().try_for_each(|a| map.attach((*a).clone()))?;
        map.forward(&x)
    };
    let y = with(&[])?;
    let sum = (((with(&[&one])? - &y)? * 0.25)? + (with(&[&two])? - &y)?)?;
    let mut both = base.clone();
    both.attach(one.clone())?;
    both.attach(two)?;
    both.adjust(|a| Some(if a.adapter() == "one" { 0.25 } else { 1.0 }));
    assert!(far(&both.forward(&x)?, &(y + sum)?) < 1e-5);
    both.adjust(|a| (a.adapter() == "one").then_some(1.0));
    assert_eq!(far(&both.forward(&x)?, &with(&[&one])?), 0.0);
    // Another width, an output past the end, halves that do not fit.
    assert!(both.attach(LowRank::new("w", normal(&mut rng, &[2, 7]), normal(&mut rng, &[6, 2]), 1.0)?).is_err());
    assert!(both.attach(one.at(1)).is_err());
    assert!(LowRank::new("h", normal(&mut rng, &[2, 8]), normal(&mut rng, &[6, 3]), 1.0).is_err());
    Ok(())
}

#[test]
fn every_dtype_of_weights_and_adapters() -> Result<()> {
    let mut rng = Rng::new(5);
    let (x, weight) = (normal(&mut rng, &[7, 40]), normal(&mut rng, &[33, 40]));
    let (a, b) = (normal(&mut rng, &[4, 40]), normal(&mut rng, &[33, 4]));
    let expected = x.matmul(&(&weight + (b.matmul(&a)? * 0.5)?)?.t()?)?;
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let tolerance = if dtype == DType::F32 { 1e-4 } else { 0.1 };
        let plain = Linear::new(weight.to_dtype(dtype)?, None)?;
        for (tiles, mut map) in [(false, plain.clone()), (true, plain.clone().pack()?)] {
            map.attach(LowRank::new("x", a.to_dtype(dtype)?, b.to_dtype(dtype)?, 0.5)?)?;
            assert!(far(&map.forward(&x)?, &expected) < tolerance, "{dtype:?}, tiles {tiles}");
            if !tiles {
                map.merge()?;
                assert!(far(&map.forward(&x)?, &expected) < tolerance, "{dtype:?}, merged");
            }
        }
    }
    Ok(())
}

#[test]
fn adapters_are_merged_while_weights_are_read() -> Result<()> {
    let mut rng = Rng::new(6);
    let (q, v) = (normal(&mut rng, &[6, 8]), normal(&mut rng, &[4, 8]));
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("model.safetensors");
    save(&path, &[("q.weight".into(), q.clone()), ("v.weight".into(), v.clone())], &[])?;
    let checkpoint = Checkpoint::open(&path)?;
    let change = LowRank::new("x", normal(&mut rng, &[2, 8]), normal(&mut rng, &[4, 2]), 0.5)?;
    let load = |name: &str, change: &LowRank, dtype| -> Result<(Linear, Vec<String>)> {
        let changes = BTreeMap::from([(name.to_string(), vec![change.clone(), change.clone()])]);
        let params = Params::merging(&checkpoint, changes, dtype, &Device::Cpu);
        Ok((Linear::load_joint(&params, &[("q", 6), ("v", 4)], 8, false, Init::Zeros)?, params.unmerged()))
    };
    let x = normal(&mut rng, &[3, 8]);
    let mut live = Linear::new(Tensor::cat(&[&q, &v], 0)?, None)?;
    live.attach(change.clone().at(6))?;
    live.attach(change.clone().at(6))?;
    let (merged, left) = load("v.weight", &change, DType::F32)?;
    assert!(left.is_empty() && far(&merged.forward(&x)?, &live.forward(&x)?) < 1e-5);
    assert!(far(&load("v.weight", &change, DType::BF16)?.0.forward(&x)?, &live.forward(&x)?) < 0.1);
    // What does not fit is found by name, and so is what nobody asked for.
    let error = load("q.weight", &change, DType::F32).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("q.weight") && error.contains("another model"), "{error}");
    assert_eq!(load("k.weight", &change, DType::F32)?.1, ["k.weight"]);
    Ok(())
}

#[test]
fn a_pass_can_choose_among_adapters() -> Result<()> {
    let mut rng = Rng::new(8);
    let (w, x) = (normal(&mut rng, &[4, 6]), normal(&mut rng, &[3, 6]));
    let change = |name: &str, rng: &mut Rng| LowRank::new(name, normal(rng, &[2, 6]), normal(rng, &[4, 2]), 1.0);
    let (one, two) = (change("one", &mut rng)?, change("two", &mut rng)?);
    let with = |changes: &[&LowRank]| -> Result<Tensor> {
        let mut map = Linear::new(w.clone(), None)?;
        changes.iter().try_for_each(|c| map.attach((*c).clone()))?;
        map.forward(&x)
    };
    let mut both = Linear::new(w.clone(), None)?;
    both.attach(one.clone())?;
    both.attach(two.clone())?;
    assert_eq!(far(&with_only(&["one"], || both.forward(&x))?, &with(&[&one])?), 0.0);
    assert_eq!(far(&with_only(&["two", "three"], || both.forward(&x))?, &with(&[&two])?), 0.0);
    assert_eq!(far(&with_only(&[], || both.forward(&x))?, &with(&[])?), 0.0);
    // Within each other the innermost counts, and afterwards all take part again.
    let inner = with_only(&["one"], || {
        let inner = with_only(&["two"], || both.forward(&x))?;
        Ok::<_, candle_core::Error>((inner, both.forward(&x)?))
    })?;
    assert_eq!((far(&inner.0, &with(&[&two])?), far(&inner.1, &with(&[&one])?)), (0.0, 0.0));
    assert_eq!(far(&both.forward(&x)?, &with(&[&one, &two])?), 0.0);
    Ok(())
}
