//! The stages and the fused path against the oracle, and the promise of equal bits.

use candle_core::{DType, Device, Result, Tensor};
use moesaic_kernels::cpu::{Isa, with_isa, with_threads};
use moesaic_kernels::experts::naive;
use moesaic_kernels::rng::Rng;
use moesaic_kernels::{Activation, CausalAttention, ExpertBank, OutputNorm, Routes};
use proptest::prelude::*;

fn normal(rng: &mut Rng, shape: &[usize], std: f64) -> Tensor {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n).map(|_| (std * rng.normal()) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Random routes: 0 to `most` different experts per token.
fn random_routes(rng: &mut Rng, tokens: usize, experts: usize, most: usize) -> Routes {
    let choices: Vec<Vec<u32>> = (0..tokens)
        .map(|_| {
            let mut all: Vec<u32> = (0..experts as u32).collect();
            (0..experts).for_each(|i| all.swap(i, i + rng.below(experts - i)));
            all.truncate(rng.below(most.min(experts) + 1));
            all
        })
        .collect();
    let total: usize = choices.iter().map(Vec::len).sum();
    let scores = Tensor::zeros((tokens, experts), DType::F32, &Device::Cpu).unwrap();
    Routes::new(experts, &choices, &normal(rng, &[total], 1.0), scores).unwrap()
}

const ACTIVATIONS: [Activation; 5] =
    [Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::Relu, Activation::QuickGelu];

/// A bank of one of the kinds, with random widths.
fn random_bank(rng: &mut Rng, kind: usize, e: usize, h: usize) -> Result<ExpertBank> {
    let (i, o) = (1 + rng.below(40), 1 + rng.below(70));
    let act = ACTIVATIONS[rng.below(ACTIVATIONS.len())];
    let scale = |n: usize| 1.0 / (n as f64).sqrt();
    Ok(match kind % 3 {
        0 => ExpertBank::gated(normal(rng, &[e, 2 * i, h], scale(h)), normal(rng, &[e, o, i], scale(i)), act)?,
        1 => ExpertBank::mlp(normal(rng, &[e, i, h], scale(h)), normal(rng, &[e, o, i], scale(i)), act)?
            .with_biases(Some(normal(rng, &[e, i], 1.0)), Some(normal(rng, &[e, o], 1.0)))?
            .with_output_norm(OutputNorm {
                weight: normal(rng, &[e, o], 1.0),
                bias: normal(rng, &[e, o], 1.0),
                eps: 1e-5,
            })?,
        _ => ExpertBank::linear(normal(rng, &[e, o, h], scale(h)))?,
    })
}

fn worst(got: &Tensor, want: &Tensor) -> f64 {
    let got = got.to_dtype(DType::F64).unwrap();
    let diff = (got - want).unwrap().abs().unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    // A NaN must not vanish in a maximum.
    diff.into_iter().fold(0.0, |m, d| if d.is_nan() { f64::NAN } else { f64::max(m, d) })
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_path_agrees_with_the_oracle(seed in any::<u64>(), tokens in 1usize..50, e in 1usize..9, h in 1usize..80, kind in 0usize..3) {
        let mut rng = Rng::new(seed);
        let routes = random_routes(&mut rng, tokens, e, 4);
        let bank = random_bank(&mut rng, kind, e, h).unwrap();
        let x = normal(&mut rng, &[tokens, h], 1.0);
        let want = naive(&bank, &x, &routes).unwrap();
        let stages = bank.forward_stages(&x, &routes).unwrap();
        // An output norm of a single value divides noise by noise: its bound is wider.
        let bound = if kind == 1 { 3e-3 } else { 1e-4 };
        prop_assert!(worst(&stages, &want) < bound, "stages: {}", worst(&stages, &want));
        let packed = bank.clone().pack().unwrap();
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16] {
            let fused = with_isa(isa, || packed.forward(&x, &routes).unwrap());
            prop_assert!(worst(&fused, &want) < bound, "fused on {isa:?}: {}", worst(&fused, &want));
        }
    }

    #[test]
    fn bf16_agrees_with_the_oracle_on_the_same_weights(seed in any::<u64>(), tokens in 1usize..30, e in 1usize..6, h in 1usize..50) {
        let mut rng = Rng::new(seed);
        let routes = random_routes(&mut rng, tokens, e, 2);
        let bf16 = |t: Tensor| t.to_dtype(DType::BF16).unwrap();
        let (inner, out) = (1 + rng.below(50), 1 + rng.below(40));
        let gate_up = bf16(normal(&mut rng, &[e, 2 * inner, h], 1.0 / (h as f64).sqrt()));
        let down = bf16(normal(&mut rng, &[e, out, inner], 1.0 / (inner as f64).sqrt()));
        let bank = ExpertBank::gated(gate_up, down, Activation::Silu).unwrap();
        let x = normal(&mut rng, &[tokens, h], 1.0);
        let want = naive(&bank, &x, &routes).unwrap();
        // f32 tokens on bf16 weights lose nothing, packed or not; bf16 tokens round at input and output.
        for bank in [bank.clone(), bank.clone().pack().unwrap()] {
            prop_assert!(worst(&bank.forward(&x, &routes).unwrap(), &want) < 1e-4);
        }
        let x = bf16(x);
        let want = naive(&bank, &x, &routes).unwrap();
        let largest = want.abs().unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap().into_iter().fold(1.0, f64::max);
        let packed = bank.clone().pack().unwrap();
        let mut all = vec![bank.forward_stages(&x, &routes).unwrap()];
        all.extend([Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16].map(|isa| with_isa(isa, || packed.forward(&x, &routes).unwrap())));
        for got in all {
            prop_assert_eq!(got.dtype(), DType::BF16);
            prop_assert!(worst(&got, &want) < 0.03 * largest, "{}", worst(&got, &want));
        }
    }

    #[test]
    fn large_layers_agree_with_the_oracle(seed in 0u64..6) {
        // Deep enough for the depth to be split, and enough rows an expert for several tiles.
        let mut rng = Rng::new(seed);
        let (tokens, e, h, inner, out) = (70, 3, 290, 70 + seed as usize, 300);
        let routes = random_routes(&mut rng, tokens, e, 2);
        let dtype = if seed % 2 == 0 { DType::F32 } else { DType::BF16 };
        let random = |rng: &mut Rng, shape: &[usize], std| normal(rng, shape, std).to_dtype(dtype).unwrap();
        let bank = ExpertBank::gated(random(&mut rng, &[e, 2 * inner, h], 0.06), random(&mut rng, &[e, out, inner], 0.1), Activation::Silu).unwrap();
        let x = random(&mut rng, &[tokens, h], 1.0);
        let want = naive(&bank, &x, &routes).unwrap();
        let packed = bank.pack().unwrap();
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16] {
            let got = with_isa(isa, || packed.forward(&x, &routes).unwrap());
            let bound = if dtype == DType::F32 { 1e-4 } else { 0.05 };
            prop_assert!(worst(&got, &want) < bound, "{isa:?}: {}", worst(&got, &want));
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads_or_neighbours(seed in any::<u64>(), tokens in 2usize..60, e in 2usize..7, h in 1usize..70) {
        let mut rng = Rng::new(seed);
        let bank = random_bank(&mut rng, seed as usize, e, h).unwrap().pack().unwrap();
        let x = normal(&mut rng, &[tokens, h], 1.0);
        let weight = normal(&mut rng, &[tokens, 2], 1.0);
        let choices: Vec<Vec<u32>> = (0..tokens).map(|_| { let a = rng.below(e); vec![a as u32, ((a + 1 + rng.below(e - 1)) % e) as u32] }).collect();
        let scores = |t: usize| Tensor::zeros((t, e), DType::F32, &Device::Cpu).unwrap();
        let routes = Routes::new(e, &choices, &weight.flatten_all().unwrap(), scores(tokens)).unwrap();
        let all = with_threads(1, || bank.forward(&x, &routes).unwrap());
        prop_assert_eq!(bits(&all), bits(&with_threads(2, || bank.forward(&x, &routes).unwrap())));
        let row = rng.below(tokens);
        let alone = Routes::new(e, &choices[row..=row], &weight.narrow(0, row, 1).unwrap().flatten_all().unwrap(), scores(1)).unwrap();
        let alone = bank.forward(&x.narrow(0, row, 1).unwrap(), &alone).unwrap();
        prop_assert_eq!(bits(&all.narrow(0, row, 1).unwrap()), bits(&alone));
    }

    #[test]
    fn numbering_the_experts_otherwise_changes_no_bit(seed in any::<u64>(), tokens in 1usize..40, e in 2usize..7, h in 1usize..50) {
        let mut rng = Rng::new(seed);
        let (gate_up, down) = (normal(&mut rng, &[e, 20, h], 0.3), normal(&mut rng, &[e, 9, 10], 0.3));
        let x = normal(&mut rng, &[tokens, h], 1.0);
        let choices: Vec<Vec<u32>> = (0..tokens).map(|t| vec![(t % e) as u32, ((t + 1) % e) as u32]).collect();
        let weight = normal(&mut rng, &[tokens * 2], 1.0);
        // Expert i of the second bank is expert order[i] of the first.
        let mut order: Vec<u32> = (0..e as u32).collect();
        (0..e).for_each(|i| order.swap(i, i + rng.below(e - i)));
        let place = |old: &u32| order.iter().position(|o| o == old).unwrap() as u32;
        let moved: Vec<Vec<u32>> = choices.iter().map(|c| c.iter().map(place).collect()).collect();
        let order = Tensor::from_vec(order.clone(), e, &Device::Cpu).unwrap();
        let run = |gate_up: &Tensor, down: &Tensor, choices: &[Vec<u32>]| {
            let scores = Tensor::zeros((tokens, e), DType::F32, &Device::Cpu).unwrap();
            let routes = Routes::new(e, choices, &weight, scores).unwrap();
            let bank = ExpertBank::gated(gate_up.clone(), down.clone(), Activation::Silu).unwrap();
            bits(&bank.forward(&x, &routes).unwrap())
        };
        let pick = |t: &Tensor| t.index_select(&order, 0).unwrap();
        prop_assert_eq!(run(&gate_up, &down, &choices), run(&pick(&gate_up), &pick(&down), &moved));
    }

    #[test]
    fn attention_agrees_with_a_direct_sum_and_keeps_its_bits(seed in any::<u64>(), s in 1usize..90, kv in 1usize..3, group in 1usize..3, pad in 0usize..30) {
        let mut rng = Rng::new(seed);
        let (d, dv, heads) = (4, 5, kv * group);
        let t = 1 + rng.below(s);
        let pad = pad.min(s - 1);
        let (q, k, v) = (normal(&mut rng, &[2, t, heads, d], 1.0), normal(&mut rng, &[2, s, kv, d], 1.0), normal(&mut rng, &[2, s, kv, dv], 1.0));
        let attention = CausalAttention { start: vec![0, pad], ..CausalAttention::new(0.7) };
        let out = with_threads(2, || attention.forward(&q, &k, &v).unwrap());
        let get = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let (qs, ks, vs, outs) = (get(&q), get(&k), get(&v), get(&out));
        for b in 0..2 {
            for i in 0..t {
                for head in 0..heads {
                    let seen: Vec<usize> = ([0, pad][b]..s - t + i + 1).collect();
                    let score = |j: &usize| (0..d).map(|c| qs[((b * t + i) * heads + head) * d + c] * ks[((b * s + j) * kv + head / group) * d + c]).sum::<f64>() * 0.7;
                    let p: Vec<f64> = seen.iter().map(|j| score(j).exp()).collect();
                    let z: f64 = p.iter().sum();
                    for c in 0..dv {
                        let want = if seen.is_empty() { 0.0 } else { seen.iter().zip(&p).map(|(j, p)| p / z * vs[((b * s + j) * kv + head / group) * dv + c]).sum() };
                        let got = outs[((b * t + i) * heads + head) * dv + c];
                        prop_assert!((got - want).abs() < 1e-5, "{got} {want}");
                    }
                }
            }
        }
        prop_assert_eq!(bits(&out), bits(&with_threads(1, || attention.forward(&q, &k, &v).unwrap())));
        // The padded row has the bits of the row alone.
        let cut = |x: &Tensor, n: usize| x.narrow(0, 1, 1).unwrap().narrow(1, x.dims()[1] - n, n).unwrap();
        let queries = t.min(s - pad);
        let alone = CausalAttention::new(0.7).forward(&cut(&q, queries), &cut(&k, s - pad), &cut(&v, s - pad)).unwrap();
        prop_assert_eq!(bits(&cut(&out, queries)), bits(&alone));
    }
}
