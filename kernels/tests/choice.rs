//! Experts that choose their tokens by modality (MoMa), and the routers that make them causal.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{check, normal};
use moesaic_kernels::losses;
use moesaic_kernels::rng::Rng;
use moesaic_kernels::routers::{Affinity, AuxiliaryRouter, CausalChoice, ExpertChoice, ExpertGroup, Noise};
use moesaic_kernels::{Activation, ExpertBank, Modality, MoeLayer, RouteInput, Router, Routes};
use proptest::prelude::*;

const CPU: &Device = &Device::Cpu;
const TEXT: ExpertGroup = ExpertGroup { modality: Some(Modality::Text), experts: 2 };
const IMAGE: ExpertGroup = ExpertGroup { modality: Some(Modality::Image), experts: 3 };

fn modalities(rng: &mut Rng, tokens: usize) -> Vec<Modality> {
    (0..tokens).map(|_| if rng.chance(0.6) { Modality::Text } else { Modality::Image }).collect()
}

fn affinity(rng: &mut Rng, h: usize) -> Affinity {
    Affinity { weight: normal(rng, &[5, h], 0.7), groups: vec![TEXT, IMAGE] }
}

fn causal(rng: &mut Rng, affinity: Affinity, h: usize) -> CausalChoice {
    let auxiliary = affinity.groups.iter().map(|group| AuxiliaryRouter {
        down: normal(rng, &[h / 2, h], 1.0),
        up: normal(rng, &[group.experts, h / 2], 1.0),
    });
    CausalChoice { auxiliary: auxiliary.collect(), affinity }
}

/// `(token, expert, weight)`, sorted.
fn triples(routes: &Routes) -> Result<Vec<(u32, u32, f32)>> {
    let (token, weight) = (routes.token()?.to_vec1::<u32>()?, routes.weight().to_vec1::<f32>()?);
    let mut all = Vec::new();
    for (e, range) in routes.offsets()?.windows(2).enumerate() {
        all.extend((range[0]..range[1]).map(|r| (token[r], e as u32, weight[r])));
    }
    all.sort_by_key(|(t, e, _)| (*t, *e));
    Ok(all)
}

/// Expert choice, written to be obviously right: each expert takes the best token that is left, again and again.
fn slowly(x: &[Vec<f64>], w: &[Vec<f64>], modality: &[Modality], real: &[bool]) -> Vec<(u32, u32, f32)> {
    let mut all = Vec::new();
    let mut expert = 0;
    for group in [TEXT, IMAGE] {
        let members: Vec<usize> = (0..x.len()).filter(|&t| real[t] && Some(modality[t]) == group.modality).collect();
        let takes = if members.is_empty() { 0 } else { (members.len() / group.experts).max(1) };
        for _ in 0..group.experts {
            let score = |t: usize| x[t].iter().zip(&w[expert]).map(|(a, b)| a * b).sum::<f64>();
            let mut left = members.clone();
            for _ in 0..takes {
                let best = (0..left.len()).max_by(|&a, &b| score(left[a]).total_cmp(&score(left[b]))).unwrap();
                let t = left.remove(best);
                all.push((t as u32, expert as u32, (1.0 / (1.0 + (-score(t)).exp())) as f32));
            }
            expert += 1;
        }
    }
    all.sort_by_key(|(t, e, _)| (*t, *e));
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn experts_choose_as_the_slow_version_does(seed in any::<u64>(), tokens in 1usize..60, masked in any::<bool>()) {
        let mut rng = Rng::new(seed);
        let h = 6;
        let x = normal(&mut rng, &[tokens, h], 1.0);
        let router = ExpertChoice { affinity: affinity(&mut rng, h), factor: 1.0, noise: None };
        let modality = modalities(&mut rng, tokens);
        let real: Vec<bool> = (0..tokens).map(|_| !masked || rng.chance(0.7)).collect();
        let mask: Vec<f32> = real.iter().map(|&r| if r { 1.0 } else { 0.0 }).collect();
        let mask = Tensor::from_vec(mask, tokens, CPU).unwrap();
        let input = RouteInput { modality: Some(&modality), ..RouteInput::new(&x) }.with_mask(masked.then_some(&mask));
        let got = triples(&router.route(&input).unwrap()).unwrap();
        let rows = |t: &Tensor| t.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
        let want = slowly(&rows(&x), &rows(&router.affinity.weight), &modality, &real);
        prop_assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(&want) {
            prop_assert_eq!((got.0, got.1), (want.0, want.1));
            prop_assert!((got.2 - want.2).abs() < 1e-5);
        }
    }

    #[test]
    fn causal_routing_is_the_same_token_by_token(seed in any::<u64>(), tokens in 1usize..40) {
        let mut rng = Rng::new(seed);
        let h = 8;
        let x = normal(&mut rng, &[tokens, h], 1.0);
        let modality = modalities(&mut rng, tokens);
        let affinity = affinity(&mut rng, h);
        let router = causal(&mut rng, affinity, h);
        let experts = ExpertBank::gated(normal(&mut rng, &[5, 12, h], 0.5), normal(&mut rng, &[5, h, 6], 0.5), Activation::Silu).unwrap();
        let layer = MoeLayer { router: Box::new(router), experts: experts.pack().unwrap(), shared: None };
        let run = |from: usize, n: usize| {
            let x = x.narrow(0, from, n).unwrap();
            let input = RouteInput { modality: Some(&modality[from..from + n]), ..RouteInput::new(&x) };
            layer.forward(&input, "layer", None).unwrap().0.to_vec2::<f32>().unwrap()
        };
        let all = run(0, tokens);
        for (t, row) in all.iter().enumerate() {
            prop_assert_eq!(row, &run(t, 1)[0]);
        }
    }
}

#[test]
fn expert_choice_looks_ahead_and_the_causal_form_does_not() -> Result<()> {
    // One expert that takes half of the tokens; the third token takes the place of the first.
    let weight = Tensor::new(&[[1f32]], CPU)?;
    let affinity = Affinity { weight, groups: vec![ExpertGroup { modality: None, experts: 1 }] };
    let router = ExpertChoice { affinity: affinity.clone(), factor: 0.5, noise: None };
    let x = Tensor::new(&[[1f32], [0.], [3.], [2.]], CPU)?;
    let taken = |router: &dyn Router, n: usize| -> Result<Vec<u32>> {
        router.route(&RouteInput::new(&x.narrow(0, 0, n)?))?.token()?.to_vec1::<u32>()
    };
    assert_eq!((taken(&router, 2)?, taken(&router, 4)?), (vec![0], vec![2, 3]));
    assert_eq!((router.capacity(5, 2), router.capacity(1, 4), router.capacity(0, 4)), (1, 1, 0));
    // Above 0.5 where x > 0: silu(x) is positive there.
    let one = Tensor::new(&[[1f32]], CPU)?;
    let causal = CausalChoice { affinity, auxiliary: vec![AuxiliaryRouter { down: one.clone(), up: one }] };
    assert_eq!((taken(&causal, 2)?, taken(&causal, 4)?), (vec![0], vec![0, 2, 3]));
    let routes = causal.route(&RouteInput::new(&x))?;
    let sigmoid = |v: f32| 1.0 / (1.0 + (-v).exp());
    for (weight, v) in routes.weight().to_vec1::<f32>()?.iter().zip([1f32, 3., 2.]) {
        assert!((weight - sigmoid(v)).abs() < 1e-6, "the weight is the main router's");
    }
    Ok(())
}

#[test]
fn noise_is_new_each_time_and_its_weights_carry_it() -> Result<()> {
    let mut rng = Rng::new(5);
    let x = normal(&mut rng, &[40, 6], 1.0);
    let modality = modalities(&mut rng, 40);
    let affinity = affinity(&mut rng, 6);
    let input = RouteInput { modality: Some(&modality), ..RouteInput::new(&x) };
    let with = |noise: Option<Noise>| ExpertChoice { affinity: affinity.clone(), factor: 1.0, noise };
    let plain = triples(&with(None).route(&input)?)?;
    let noisy = with(Some(Noise::new(3)));
    let (one, two) = (triples(&noisy.route(&input)?)?, triples(&noisy.route(&input)?)?);
    assert!(one != two && one != plain && one.len() == plain.len());
    assert_eq!(triples(&with(Some(Noise::new(3))).route(&input)?)?, one);
    // The difference of two Gumbel draws is logistic: mean 0, variance pi^2 / 3.
    let many = Tensor::zeros((4000, 6), DType::F32, CPU)?;
    let text = vec![Modality::Text; 4000];
    let routes = with(Some(Noise::new(9))).route(&RouteInput { modality: Some(&text), ..RouteInput::new(&many) })?;
    let drawn = routes.logits().map(|l| l.flatten_all()?.to_vec1::<f32>()).transpose()?.unwrap_or_default();
    let mean = drawn.iter().map(|v| f64::from(*v)).sum::<f64>() / drawn.len() as f64;
    let variance = drawn.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / drawn.len() as f64;
    assert!(mean.abs() < 0.06 && (variance - std::f64::consts::PI.powi(2) / 3.0).abs() < 0.2, "{mean} {variance}");
    Ok(())
}

#[test]
fn tokens_stay_with_the_experts_of_their_modality() -> Result<()> {
    let mut rng = Rng::new(6);
    let x = normal(&mut rng, &[30, 8], 1.0);
    let modality = modalities(&mut rng, 30);
    let affinity = affinity(&mut rng, 8);
    let routers: [Box<dyn Router>; 2] = [
        Box::new(ExpertChoice { affinity: affinity.clone(), factor: 1.0, noise: None }),
        Box::new(causal(&mut rng, affinity.clone(), 8)),
    ];
    for router in &routers {
        let routes = router.route(&RouteInput { modality: Some(&modality), ..RouteInput::new(&x) })?;
        assert!(!routes.is_empty());
        for (t, e, _) in triples(&routes)? {
            assert_eq!(modality[t as usize] == Modality::Text, e < 2);
        }
        let scores = routes.scores().to_vec2::<f32>()?;
        for (row, modality) in scores.iter().zip(&modality) {
            let (text, image) = row.split_at(2);
            let others = if *modality == Modality::Text { image } else { text };
            assert!(others.iter().all(|s| *s == 0.0));
        }
        // Without modalities all is text; a modality without experts, and another number of them, are errors.
        let routes = router.route(&RouteInput::new(&x))?;
        assert_eq!(routes.offsets()?[2..].iter().max(), routes.offsets()?[2..].iter().min());
        let audio = vec![Modality::Audio; 30];
        let error =
            router.route(&RouteInput { modality: Some(&audio), ..RouteInput::new(&x) }).unwrap_err().to_string();
        assert!(error.contains("Audio"), "{error}");
        assert!(router.route(&RouteInput { modality: Some(&audio[1..]), ..RouteInput::new(&x) }).is_err());
        let broken = (&x * f64::NAN)?;
        assert!(router.route(&RouteInput { modality: Some(&modality), ..RouteInput::new(&broken) }).is_err());
        // Padding of any kind goes nowhere.
        let nobody = Tensor::zeros(30, DType::F32, CPU)?;
        let input = RouteInput { modality: Some(&audio), ..RouteInput::new(&broken) }.with_mask(Some(&nobody));
        assert!(router.route(&input)?.is_empty());
    }
    let groups = vec![TEXT];
    let short = ExpertChoice { affinity: Affinity { groups, ..affinity.clone() }, factor: 1.0, noise: None };
    assert!(short.route(&RouteInput::new(&x)).is_err());
    assert!(ExpertChoice { affinity: affinity.clone(), factor: 0.0, noise: None }.route(&RouteInput::new(&x)).is_err());
    let none = CausalChoice { affinity, auxiliary: Vec::new() };
    assert!(none.route(&RouteInput::new(&x)).is_err());
    Ok(())
}

#[test]
fn auxiliary_routers_learn_who_is_chosen() -> Result<()> {
    let mut rng = Rng::new(12);
    let (tokens, h) = (240, 16);
    let x = normal(&mut rng, &[tokens, h], 1.0);
    let modality = modalities(&mut rng, tokens);
    let input = RouteInput { modality: Some(&modality), ..RouteInput::new(&x) };
    let affinity = affinity(&mut rng, h);
    let truth = ExpertChoice { affinity: affinity.clone(), factor: 1.0, noise: None }.route(&input)?;
    let start = causal(&mut rng, affinity.clone(), h);
    let vars = start.auxiliary.iter().flat_map(|a| [&a.down, &a.up]).map(|t| Var::from_tensor(&(t * 0.3)?));
    let vars: Vec<Var> = vars.collect::<Result<_>>()?;
    let router = CausalChoice {
        affinity,
        auxiliary: vars
            .chunks(2)
            .map(|v| AuxiliaryRouter { down: v[0].as_tensor().clone(), up: v[1].as_tensor().clone() })
            .collect(),
    };
    // The share of real decisions that come out as in training.
    let right = || -> Result<f64> {
        let (a, b) = (truth.assignment()?, router.route(&input)?.assignment()?);
        let wrong = f64::from((a - b)?.abs()?.sum_all()?.to_scalar::<f32>()?);
        let decisions: usize = modality.iter().map(|m| if *m == Modality::Text { 2 } else { 3 }).sum();
        Ok(1.0 - wrong / decisions as f64)
    };
    let (mut first, mut last, before) = (None, 0.0, right()?);
    // Adam, written out.
    let zeros = || vars.iter().map(|v| v.zeros_like()).collect::<Result<Vec<Tensor>>>();
    let (mut m, mut s) = (zeros()?, zeros()?);
    for step in 1..=400 {
        let loss = router.loss(&input, &truth)?;
        last = f64::from(loss.to_scalar::<f32>()?);
        first.get_or_insert(last);
        let grads = loss.backward()?;
        for (i, var) in vars.iter().enumerate() {
            let Some(g) = grads.get(var) else { panic!("auxiliary router {i} has a gradient") };
            m[i] = ((&m[i] * 0.9)? + (g * 0.1)?)?;
            s[i] = ((&s[i] * 0.99)? + (g.sqr()? * 0.01)?)?;
            let (c1, c2) = (1.0 - 0.9f64.powi(step), 1.0 - 0.99f64.powi(step));
            let move_by = ((&m[i] / c1)? / ((&s[i] / c2)?.sqrt()? + 1e-8)?)?;
            var.set(&(var.as_tensor() - (move_by * 0.02)?)?)?;
        }
    }
    let after = right()?;
    assert!(first.is_some_and(|first| last < 0.3 * first), "{first:?} {last}");
    assert!(before < 0.75 && after > 0.95, "{before} {after}");
    Ok(())
}

#[test]
fn gradients() -> Result<()> {
    let mut rng = Rng::new(4);
    let (t, h) = (14, 6);
    let (x, w) = (normal(&mut rng, &[t, h], 1.0), normal(&mut rng, &[5, h], 1.0));
    let modality = modalities(&mut rng, t);
    let both = |routes: Routes| Tensor::cat(&[routes.weight(), &routes.scores().flatten_all()?], 0);
    let groups = || vec![TEXT, IMAGE];
    check("expert choice", &[x.clone(), w.clone()], |v| {
        let affinity = Affinity { weight: v[1].clone(), groups: groups() };
        let input = RouteInput { modality: Some(&modality), ..RouteInput::new(&v[0]) };
        both(ExpertChoice { affinity, factor: 1.0, noise: None }.route(&input)?)
    });
    let auxiliary = [
        normal(&mut rng, &[3, h], 1.0),
        normal(&mut rng, &[2, 3], 1.0),
        normal(&mut rng, &[3, h], 1.0),
        normal(&mut rng, &[3, 3], 1.0),
    ];
    let make = |weight: &Tensor, v: &[Tensor]| CausalChoice {
        affinity: Affinity { weight: weight.clone(), groups: groups() },
        auxiliary: v.chunks(2).map(|v| AuxiliaryRouter { down: v[0].clone(), up: v[1].clone() }).collect(),
    };
    check("causal choice", &[x.clone(), w.clone()], |v| {
        let input = RouteInput { modality: Some(&modality), ..RouteInput::new(&v[0]) };
        both(make(&v[1], &auxiliary).route(&input)?)
    });
    let affinity = Affinity { weight: w.clone(), groups: groups() };
    let input = RouteInput { modality: Some(&modality), ..RouteInput::new(&x) };
    let truth = ExpertChoice { affinity, factor: 1.0, noise: None }.route(&input)?;
    check("auxiliary loss", &auxiliary, |v| make(&w, v).loss(&input, &truth)?.reshape(1));
    check("binary cross entropy", &[normal(&mut rng, &[4, 3], 2.0)], |v| {
        let y = Tensor::new(&[[0f32, 1., 0.3], [1., 1., 0.], [0., 0., 0.9], [1., 0., 0.5]], CPU)?;
        losses::binary_cross_entropy(&v[0], &y)?.reshape(1)
    });
    // The frozen model gets nothing.
    let var = Var::from_tensor(&x)?;
    let main = Var::from_tensor(&w)?;
    let input = RouteInput { modality: Some(&modality), ..RouteInput::new(var.as_tensor()) };
    let vars: Vec<Var> = auxiliary.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let grads = make(main.as_tensor(), &tracked).loss(&input, &truth)?.backward()?;
    assert!(grads.get(&var).is_none() && grads.get(&main).is_none() && grads.get(&vars[0]).is_some());
    Ok(())
}
