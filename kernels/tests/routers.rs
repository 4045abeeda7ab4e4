//! Routers with any number of experts per token, experts without a network, and what balances them.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{check, normal};
use moesaic_kernels::experts::naive;
use moesaic_kernels::losses::{self, AdaptiveL1};
use moesaic_kernels::rng::Rng;
use moesaic_kernels::routers::{
    DenseTraining, Keep, NormedReluRouter, NullTopK, PathwayTopK, ReluRouter, SigmoidTopK, SoftmaxMixing, SoftmaxTopK,
    balance_bias, max_violation,
};
use moesaic_kernels::{Activation, ExpertBank, FreeExpert, MoeLayer, RouteInput, Router, Routes};

const CPU: &Device = &Device::Cpu;

/// With an identity weight the logits are the tokens themselves.
fn identity(n: usize) -> Result<Tensor> {
    Tensor::eye(n, DType::F32, CPU)
}

fn close(a: &[f32], b: &[f64]) {
    assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5), "{a:?} {b:?}");
}

fn scalar(x: Tensor) -> Result<f64> {
    Ok(f64::from(x.to_scalar::<f32>()?))
}

/// The experts and weights of each token.
fn by_token(routes: &Routes) -> Result<Vec<Vec<(u32, f32)>>> {
    let mut all = vec![Vec::new(); routes.tokens()];
    let (token, slot) = (routes.token()?.to_vec1::<u32>()?, routes.slot()?.to_vec1::<u32>()?);
    let weight = routes.weight().to_vec1::<f32>()?;
    for (e, range) in routes.offsets()?.windows(2).enumerate() {
        (range[0]..range[1]).for_each(|r| all[token[r] as usize].push((slot[r], e as u32, weight[r])));
    }
    Ok(all
        .into_iter()
        .map(|mut routes| {
            routes.sort_by_key(|r| r.0);
            routes.into_iter().map(|(_, e, w)| (e, w)).collect()
        })
        .collect())
}

/// Weights and scores: both carry gradients to a router.
fn both(routes: Routes) -> Result<Tensor> {
    Tensor::cat(&[routes.weight(), &routes.scores().flatten_all()?], 0)
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let z: f64 = row.iter().map(|v| v.exp()).sum();
    row.iter().map(|v| v.exp() / z).collect()
}

#[test]
fn null_experts_leave_the_true_ones_what_they_need() -> Result<()> {
    // Two true experts and two null ones; three of the four are chosen.
    let rows = [[2f32, 1., 1.5, -3.], [0., -1., 2., 1.], [-5., -6., 3., 2.]];
    let mut router = NullTopK { weight: identity(4)?, nulls: 2, k: 3 };
    let routes = router.route(&RouteInput::new(&Tensor::new(&rows, CPU)?))?;
    let tokens = by_token(&routes)?;
    let experts: Vec<Vec<u32>> = tokens.iter().map(|t| t.iter().map(|r| r.0).collect()).collect();
    assert_eq!(experts, [vec![0, 2, 1], vec![2, 3, 0], vec![2, 3, 0]]);
    let p = softmax(&[2.0, 1.0, 1.5, -3.0]);
    close(&[tokens[0][0].1, tokens[0][1].1, tokens[0][2].1], &[p[0] / (p[0] + p[1]), p[2], p[1] / (p[0] + p[1])]);
    assert!((tokens[1][2].1 - 1.0).abs() < 1e-6, "a lone true expert has all the weight: {:?}", tokens[1]);
    // f = (3, 1, 3, 2) / 3 tokens; the null experts share theirs.
    let mean = |e: usize| rows.iter().map(|r| softmax(&r.map(f64::from))[e]).sum::<f64>() / 3.0;
    let want = 4.0 * (mean(0) * 3.0 + mean(1) * 1.0 + (mean(2) + mean(3)) * 2.5) / 3.0;
    assert!((scalar(losses::null_balance(std::slice::from_ref(&routes), 2)?)? - want).abs() < 1e-5);
    let plain = scalar(losses::load_balance(std::slice::from_ref(&routes))?)?;
    assert!(
        (scalar(losses::null_balance(std::slice::from_ref(&routes), 0)?)? - plain).abs() < 1e-6
            && (plain - want).abs() > 1e-3
    );
    assert!(losses::null_balance(&[routes], 5).is_err());
    // With one expert per token some have null ones alone.
    router.k = 1;
    let routes = router.route(&RouteInput::new(&Tensor::new(&rows, CPU)?))?;
    assert_eq!(routes.load()?, [1.0, 0.0, 2.0, 0.0]);
    assert!(routes.weight().to_vec1::<f32>()?.iter().all(|w| w.is_finite()));
    let x = Var::new(&rows, CPU)?;
    let gradients = router.route(&RouteInput::new(&x))?.weight().sum_all()?.backward()?;
    let gradient = gradients.get(&x).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
    assert!(gradient.iter().all(|g| g.is_finite()) && gradient.iter().any(|g| *g != 0.0), "{gradient:?}");
    router.nulls = 4;
    assert!(router.route(&RouteInput::new(&Tensor::new(&rows, CPU)?)).is_err());
    Ok(())
}

#[test]
fn pathways_add_what_the_layer_before_decided() -> Result<()> {
    let x = Tensor::new(&[[1f32, 0., 0.5], [0., 0., 1.]], CPU)?;
    let previous = Tensor::new(&[[0f32, 3., 0.], [1., 0., 0.]], CPU)?;
    let mut router = PathwayTopK { weight: identity(3)?, residual: None, k: 2, renormalise: None };
    let first = by_token(&router.route(&RouteInput::new(&x))?)?;
    assert_eq!((first[0][0].0, first[0][1].0), (0, 2));
    router.residual = Some((identity(3)? * 2.0)?);
    assert!(router.route(&RouteInput::new(&x)).is_err(), "the logits of the layer before are missing");
    let input = RouteInput { previous: Some(&previous), ..RouteInput::new(&x) };
    let routes = router.route(&input)?;
    assert_eq!(routes.logits().unwrap().to_vec2::<f32>()?, [[1., 6., 0.5], [2., 0., 1.]]);
    let (tokens, p) = (by_token(&routes)?, softmax(&[1.0, 6.0, 0.5]));
    assert_eq!((tokens[0][0].0, tokens[0][1].0), (1, 0));
    close(&[tokens[0][0].1, tokens[0][1].1], &[p[1], p[0]]);
    // Expert 1 is zero: the other has all the weight.
    router.renormalise = Some(vec![1]);
    let tokens = by_token(&router.route(&input)?)?;
    close(&[tokens[0][0].1, tokens[0][1].1], &[p[1], 1.0]);
    let narrow = previous.narrow(1, 0, 2)?;
    assert!(router.route(&RouteInput { previous: Some(&narrow), ..RouteInput::new(&x) }).is_err());
    // eta f P with one network: f = (2, 1, 1) / 2 tokens.
    let q = softmax(&[2.0, 0.0, 1.0]);
    let mean = |e: usize| (p[e] + q[e]) / 2.0;
    let loss = scalar(losses::heterogeneous_balance(&[routes], 1, 0.25)?)?;
    assert!((loss - (mean(0) + 0.25 * (mean(1) + mean(2)) / 2.0)).abs() < 1e-5, "{loss}");
    Ok(())
}

/// A bank with all kinds of experts, and routes of 0 to 4 experts per token over them.
fn mixed(rng: &mut Rng, tokens: usize) -> Result<(ExpertBank, Tensor, Routes)> {
    let (e, h, i) = (3, 6, 5);
    let constant =
        |rng: &mut Rng| FreeExpert::Constant { vector: normal(rng, &[h], 1.0), gate: normal(rng, &[2, h], 1.0) };
    let free = vec![constant(rng), FreeExpert::Copy, FreeExpert::Zero, constant(rng)];
    let bank = ExpertBank::gated(normal(rng, &[e, 2 * i, h], 0.5), normal(rng, &[e, h, i], 0.5), Activation::Silu)?
        .with_free(free)?;
    let choices: Vec<Vec<u32>> =
        (0..tokens).map(|t| (0..t % 5).map(|s| ((t * 3 + s * 2) % 7) as u32).collect()).collect();
    let total: usize = choices.iter().map(Vec::len).sum();
    let routes = Routes::new(7, &choices, &normal(rng, &[total], 1.0), Tensor::zeros((tokens, 7), DType::F32, CPU)?)?;
    Ok((bank, normal(rng, &[tokens, h], 1.0), routes))
}

#[test]
fn experts_without_a_network_agree_with_the_oracle() -> Result<()> {
    let (bank, x, routes) = mixed(&mut Rng::new(3), 31)?;
    assert_eq!((bank.experts(), bank.networks(), bank.free().len()), (7, 3, 4));
    let want = naive(&bank, &x, &routes)?;
    for y in [bank.forward_stages(&x, &routes)?, bank.clone().pack()?.forward(&x, &routes)?] {
        let difference = (y.to_dtype(DType::F64)? - &want)?.abs()?.flatten_all()?.to_vec1::<f64>()?;
        assert!(difference.iter().all(|d| *d < 1e-5), "{difference:?}");
    }
    // Routes to free experts alone, and routes to zero alone.
    let weights = Tensor::new(&[2f32, 3.], CPU)?;
    let routes = Routes::new(7, &[vec![4], vec![5]], &weights, Tensor::zeros((2, 7), DType::F32, CPU)?)?;
    let two = x.narrow(0, 0, 2)?;
    for bank in [bank.clone(), bank.clone().pack()?] {
        let y = bank.forward(&two, &routes)?.to_vec2::<f32>()?;
        let copied = (two.narrow(0, 0, 1)? * 2.0)?.to_vec2::<f32>()?;
        assert_eq!((&y[0], &y[1]), (&copied[0], &vec![0f32; 6]));
    }
    assert!(bank.forward_each(&two, &routes).is_err());
    let narrow = ExpertBank::linear(normal(&mut Rng::new(4), &[2, 3, 6], 1.0))?;
    assert!(narrow.clone().with_free(vec![FreeExpert::Copy]).is_err());
    assert!(narrow.with_free(vec![FreeExpert::Zero]).is_ok());
    let square = ExpertBank::linear(normal(&mut Rng::new(4), &[2, 6, 6], 1.0))?;
    let wrong = FreeExpert::Constant {
        vector: Tensor::zeros(5, DType::F32, CPU)?,
        gate: normal(&mut Rng::new(5), &[2, 6], 1.0),
    };
    assert!(square.with_free(vec![wrong]).is_err());
    Ok(())
}

#[test]
fn relu_routes_as_many_as_are_positive() -> Result<()> {
    let x = Tensor::new(&[[1f32, -1., 3.], [-1., -2., 0.], [0.5, 0.25, 0.]], CPU)?;
    let router = ReluRouter { weight: identity(3)? };
    let routes = router.route(&RouteInput::new(&x))?;
    assert_eq!(by_token(&routes)?, [vec![(2, 3.0), (0, 1.0)], vec![], vec![(0, 0.5), (1, 0.25)]]);
    assert!((losses::sparsity(std::slice::from_ref(&routes))? - (1.0 - 4.0 / 9.0)).abs() < 1e-12);
    // (4 + 0 + 0.75) / 3, and with f = E / (k T) * (2, 1, 1)
    assert!((scalar(losses::relu_l1(std::slice::from_ref(&routes), None)?)? - 4.75 / 3.0).abs() < 1e-6);
    let f = 3.0 / (2.0 * 3.0);
    let want = (1.5 * 2.0 * f + 0.25 * f + 3.0 * f) / 3.0;
    assert!((scalar(losses::relu_l1(std::slice::from_ref(&routes), Some(2.0))?)? - want).abs() < 1e-6);
    // Padding has no routes and does not count.
    let mask = Tensor::new(&[1f32, 0., 1.], CPU)?;
    let masked = router.route(&RouteInput::new(&x).with_mask(Some(&mask)))?;
    assert!((losses::sparsity(std::slice::from_ref(&masked))? - (1.0 - 4.0 / 6.0)).abs() < 1e-12);
    assert!((scalar(losses::relu_l1(&[masked], None)?)? - 4.75 / 2.0).abs() < 1e-6);
    let norm = Tensor::new(&[1f32, 2., 0.5], CPU)?;
    let normed =
        NormedReluRouter { weight: identity(3)?, norm, eps: 0.0 }.route(&RouteInput::new(&x.narrow(0, 0, 1)?))?;
    let rms = (10f64 / 3.0).sqrt();
    let weights: Vec<f32> = by_token(&normed)?[0].iter().map(|r| r.1).collect();
    close(&weights, &[0.5 * 3.0 / rms, 1.0 / rms]);
    assert_eq!(normed.scores().to_vec2::<f32>()?, [[1., 0., 3.]]);
    let broken = Tensor::new(&[[f32::NAN, 0., 0.]], CPU)?;
    assert!(router.route(&RouteInput::new(&broken)).is_err());
    let mut l1 = AdaptiveL1::new(2.0, 8);
    assert_eq!(l1.target, 0.75);
    l1.update(0.5);
    assert!((l1.coefficient - 1.2e-8).abs() < 1e-20);
    (0..2).for_each(|_| l1.update(0.9));
    assert!((l1.coefficient - 1e-8 / 1.2).abs() < 1e-20);
    l1.update(0.75);
    assert!((l1.coefficient - 1e-8 / 1.2).abs() < 1e-20);
    Ok(())
}

#[test]
fn adaptive_l1_reaches_the_sparsity_that_was_asked_for() -> Result<()> {
    let mut rng = Rng::new(7);
    // A constant feature, as a router without a bias cannot leave out more than half of symmetric tokens.
    let x = Tensor::cat(&[normal(&mut rng, &[64, 7], 1.0), Tensor::ones((64, 1), DType::F32, CPU)?], 1)?;
    let weight = Var::from_tensor(&normal(&mut rng, &[8, 8], 0.5))?;
    let mut l1 = AdaptiveL1 { coefficient: 0.02, growth: 1.05, ..AdaptiveL1::new(2.0, 8) };
    let mut sparsities = Vec::new();
    let mut load = Vec::new();
    for _ in 0..400 {
        let routes = [ReluRouter { weight: weight.as_tensor().clone() }.route(&RouteInput::new(&x))?];
        sparsities.push(losses::sparsity(&routes)?);
        load = routes[0].load()?;
        // Something to keep the weights large, as a task would.
        let task = (routes[0].weight().sum_all()? * (-1.0 / 512.0))?;
        let loss = (task + (losses::relu_l1(&routes, Some(2.0))? * l1.coefficient)?)?;
        let grads = loss.backward()?;
        let Some(grad) = grads.get(&weight) else { panic!("routes have gradients") };
        weight.set(&(weight.as_tensor() - (grad * 0.2)?)?)?;
        l1.update(sparsities[sparsities.len() - 1]);
    }
    let last = &sparsities[250..];
    let mean = last.iter().sum::<f64>() / last.len() as f64;
    assert!(sparsities[0] < 0.7 && (mean - 0.75).abs() < 0.03, "from {} to {mean}", sparsities[0]);
    assert!(max_violation(&load) < 0.3, "{load:?}");
    Ok(())
}

#[test]
fn chunks_and_neighbours() -> Result<()> {
    // One row of four tokens, two experts.
    let x = Tensor::new(&[[1f32, -1.], [1., 1.], [-1., 2.], [3., 1.]], CPU)?;
    let routes = ReluRouter { weight: identity(2)? }.route(&RouteInput::new(&x))?;
    // p = (1, 0), (.5, .5), (0, 1), (.75, .25)
    let want = (1.0 + 0.5 + 0.75 + 1.0) / 4.0;
    assert!((scalar(losses::chunk_sparsity(&routes, 1, 2)?)? - want).abs() < 1e-3);
    assert!((scalar(losses::chunk_sparsity(&routes, 1, 3)?)? - (1.0 + 1.0 + 0.75 + 0.25) / 4.0).abs() < 1e-3);
    let s = |v: f64| 1.0 / (1.0 + (-v).exp());
    let bce = |z: f64, y: f64| -(s(y) * s(z).ln() + (1.0 - s(y)) * (1.0 - s(z)).ln());
    let values = [[1.0, -1.0], [1.0, 1.0], [-1.0, 2.0], [3.0, 1.0]];
    let pair = |t: usize| bce(values[t][0], values[t + 1][0]) + bce(values[t][1], values[t + 1][1]);
    let loss = |routes: &Routes, rows| scalar(losses::activation_locality(routes, rows, 1.0)?);
    assert!((loss(&routes, 1)? - (pair(0) + pair(1) + pair(2)) / 6.0).abs() < 1e-5);
    // Rows are not neighbours, and padding is nobody's.
    assert!((loss(&routes, 2)? - (pair(0) + pair(2)) / 4.0).abs() < 1e-5);
    let masked = routes.clone().with_mask(Some(Tensor::new(&[0f32, 1., 1., 1.], CPU)?));
    assert!((loss(&masked, 2)? - pair(2) / 2.0).abs() < 1e-5);
    assert!(scalar(losses::activation_locality(&routes, 1, 100.0)?)?.is_finite());
    assert!(losses::chunk_sparsity(&routes, 3, 2).is_err() && losses::chunk_sparsity(&routes, 1, 0).is_err());
    Ok(())
}

#[test]
fn a_moved_bias_balances_the_load() -> Result<()> {
    let mut rng = Rng::new(11);
    // All tokens lean the same way, so that one expert is everybody's best.
    let x = (normal(&mut rng, &[256, 8], 1.0) + normal(&mut rng, &[1, 8], 1.5).broadcast_as((256, 8))?)?;
    let weight = normal(&mut rng, &[8, 8], 0.5);
    let bias = Var::from_tensor(&Tensor::zeros(8, DType::F32, CPU)?)?;
    let route = || {
        let bias = Some(bias.as_tensor().clone());
        SigmoidTopK { weight: weight.clone(), bias, k: 2, renormalise: true, scale: 1.0, groups: None }
            .route(&RouteInput::new(&x))?
            .load()
    };
    let before = max_violation(&route()?);
    for _ in 0..400 {
        balance_bias(&bias, &route()?, 0.005)?;
    }
    let after = max_violation(&route()?);
    assert!(before > 1.0 && after < 0.15, "{before} {after}");
    // By hand: mean 2; the one that has it stays.
    let bias = Var::from_tensor(&Tensor::new(&[0f32, 1., 2.], CPU)?)?;
    balance_bias(&bias, &[3.0, 2.0, 1.0], 0.5)?;
    assert_eq!(bias.to_vec1::<f32>()?, [-0.5, 1.0, 2.5]);
    assert!(balance_bias(&bias, &[1.0], 0.5).is_err());
    assert_eq!((max_violation(&[3.0, 2.0, 1.0]), max_violation(&[])), (0.5, 0.0));
    Ok(())
}

#[test]
fn dense_training_and_sparse_inference() -> Result<()> {
    let x = Tensor::new(&[[2f32, 0., 1.], [0., 0., 0.]], CPU)?;
    let mut router = DenseTraining { weight: identity(3)?, keep: Keep::All };
    let all = router.route(&RouteInput::new(&x))?;
    let mixing = SoftmaxMixing { weight: identity(3)? }.route(&RouteInput::new(&x))?;
    assert_eq!(by_token(&all)?, by_token(&mixing)?);
    let p = softmax(&[2.0, 0.0, 1.0]);
    router.keep = Keep::Best(2);
    let best = by_token(&router.route(&RouteInput::new(&x))?)?;
    assert_eq!((best[0][0].0, best[0][1].0), (0, 2));
    close(&[best[0][0].1, best[0][1].1], &[p[0], p[2]]);
    router.keep = Keep::Above(0.4);
    let above = by_token(&router.route(&RouteInput::new(&x))?)?;
    assert_eq!((above[0].len(), above[0][0].0, above[1].len()), (1, 0, 0));
    let mask = Tensor::new(&[0u8, 1], CPU)?;
    router.keep = Keep::Above(0.1);
    let masked = router.route(&RouteInput::new(&x).with_mask(Some(&mask)))?;
    assert_eq!(masked.load()?, [1.0, 1.0, 1.0]);
    let h = |p: &[f64]| -> f64 { -p.iter().map(|p| p * p.ln()).sum::<f64>() };
    let even = [1.0 / 3.0; 3];
    let mean: Vec<f64> = p.iter().zip(even).map(|(a, b)| (a + b) / 2.0).collect();
    let loss = scalar(losses::mutual_information(&all)?)?;
    assert!((loss - ((h(&p) + h(&even)) / 2.0 - h(&mean))).abs() < 1e-5, "{loss}");
    // Padding does not count: one token knows nothing of itself.
    let masked = all.with_mask(Some(Tensor::new(&[1f32, 0.], CPU)?));
    assert!(scalar(losses::mutual_information(&masked)?)?.abs() < 1e-6);
    // Sure and balanced is best: -ln E.
    let sure = (identity(3)? * 100.0)?;
    let best = scalar(losses::mutual_information(&router.route(&RouteInput::new(&sure))?)?)?;
    assert!((best + 3f64.ln()).abs() < 1e-5, "{best}");
    Ok(())
}

#[test]
fn losses_take_any_number_of_routes() -> Result<()> {
    // 0, 1 and 3 routes; no mask.
    let scores = Tensor::new(&[[0.6f32, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.1, 0.4]], CPU)?;
    let weights = Tensor::new(&[0.7f32, 0.5, 0.4, 0.1], CPU)?;
    let routes = Routes::new(3, &[vec![], vec![1], vec![0, 2, 1]], &weights, scores)?;
    assert_eq!(routes.load()?, [1.0, 2.0, 1.0]);
    assert_eq!(routes.assignment()?.to_vec2::<f32>()?, [[0., 0., 0.], [0., 1., 0.], [1., 1., 1.]]);
    let p = [1.3 / 3.0, 1.1 / 3.0, 0.6 / 3.0];
    let want = 3.0 * (p[0] + 2.0 * p[1] + p[2]) / 3.0;
    assert!((scalar(losses::load_balance(std::slice::from_ref(&routes))?)? - want).abs() < 1e-6);
    assert!((scalar(losses::sequence_balance(&routes, 1)?)? - want * 3.0 / 4.0).abs() < 1e-6);
    Ok(())
}

#[test]
fn gradients() -> Result<()> {
    let mut rng = Rng::new(4);
    let (t, e, h) = (6, 8, 5);
    let (x, w) = (normal(&mut rng, &[t, h], 1.0), normal(&mut rng, &[e, h], 1.0));
    let (previous, residual) = (normal(&mut rng, &[t, e], 1.0), normal(&mut rng, &[e, e], 0.5));
    check("null top-k", &[x.clone(), w.clone()], |v| {
        both(NullTopK { weight: v[1].clone(), nulls: 3, k: 4 }.route(&RouteInput::new(&v[0]))?)
    });
    for renormalise in [None, Some(vec![7])] {
        check("pathway", &[x.clone(), w.clone(), previous.clone(), residual.clone()], |v| {
            let (weight, residual) = (v[1].clone(), Some(v[3].clone()));
            let input = RouteInput { previous: Some(&v[2]), ..RouteInput::new(&v[0]) };
            both(PathwayTopK { weight, residual, k: 2, renormalise: renormalise.clone() }.route(&input)?)
        });
    }
    let relu = |v: &[Tensor]| ReluRouter { weight: v[1].clone() }.route(&RouteInput::new(&v[0]));
    check("relu", &[x.clone(), w.clone()], |v| both(relu(v)?));
    check("normed relu", &[x.clone(), w.clone(), normal(&mut rng, &[e], 1.0)], |v| {
        let router = NormedReluRouter { weight: v[1].clone(), norm: v[2].clone(), eps: 1e-6 };
        both(router.route(&RouteInput::new(&v[0]))?)
    });
    check("relu losses", &[x.clone(), w.clone()], |v| {
        let routes = relu(v)?;
        let chunk = losses::chunk_sparsity(&routes, 2, 2)?;
        let locality = losses::activation_locality(&routes, 2, 1.5)?;
        let l1 = losses::relu_l1(std::slice::from_ref(&routes), Some(3.0))?;
        Tensor::stack(&[chunk, locality, losses::relu_l1(&[routes], None)?, l1], 0)
    });
    check("mutual information", &[x.clone(), w.clone()], |v| {
        let router = DenseTraining { weight: v[1].clone(), keep: Keep::All };
        losses::mutual_information(&router.route(&RouteInput::new(&v[0]))?)?.reshape(1)
    });
    // A threshold that no score crosses within a step: in the middle of the widest gap between small scores.
    let all = DenseTraining { weight: w.clone(), keep: Keep::All }.route(&RouteInput::new(&x))?;
    let mut p = all.scores().flatten_all()?.to_vec1::<f32>()?;
    p.retain(|p| (0.03..0.4).contains(p));
    p.sort_by(f32::total_cmp);
    let gap = p.windows(2).max_by(|a, b| (a[1] - a[0]).total_cmp(&(b[1] - b[0])));
    let threshold = gap.map_or(0.1, |gap| f64::from(gap[0] + gap[1]) / 2.0);
    check("above", &[x.clone(), w.clone()], |v| {
        both(DenseTraining { weight: v[1].clone(), keep: Keep::Above(threshold) }.route(&RouteInput::new(&v[0]))?)
    });
    check("balance", &[x, w], |v| {
        let router = SoftmaxTopK { weight: v[1].clone(), k: 2, renormalise: false, scale: 1.0, groups: None };
        let routes = [router.route(&RouteInput::new(&v[0]))?];
        Tensor::stack(&[losses::null_balance(&routes, 3)?, losses::heterogeneous_balance(&routes, 5, 0.5)?], 0)
    });
    Ok(())
}

#[test]
fn gradients_of_a_layer_with_free_experts() -> Result<()> {
    let mut rng = Rng::new(8);
    let (t, e, h, i) = (13, 3, 6, 5);
    let inputs = [
        normal(&mut rng, &[t, h], 1.0),
        normal(&mut rng, &[e + 3, h], 1.0),
        normal(&mut rng, &[e, 2 * i, h], 0.5),
        normal(&mut rng, &[e, h, i], 0.5),
        normal(&mut rng, &[h], 1.0),
        normal(&mut rng, &[2, h], 1.0),
    ];
    check("layer with free experts", &inputs, |v| {
        let free =
            vec![FreeExpert::Constant { vector: v[4].clone(), gate: v[5].clone() }, FreeExpert::Copy, FreeExpert::Zero];
        let experts = ExpertBank::gated(v[2].clone(), v[3].clone(), Activation::Silu)?.with_free(free)?;
        let router = PathwayTopK { weight: v[1].clone(), residual: None, k: 3, renormalise: None };
        let layer = MoeLayer { router: Box::new(router), experts, shared: None };
        Ok(layer.forward(&RouteInput::new(&v[0]), "layer", None)?.0)
    });
    Ok(())
}
