//! Gradients of every differentiable kernel against finite differences.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{check, normal};
use moesaic_kernels::ops::{layer_norm, rms_norm, silu_glu, softmax};
use moesaic_kernels::rng::Rng;
use moesaic_kernels::rotary::{Rotary, RotaryStyle};
use moesaic_kernels::routers::{
    CentroidTopK, GroupLimit, SigmoidTopK, SoftmaxMixing, SoftmaxTopK, SparseMixer, TopKSoftmax,
};
use moesaic_kernels::{
    Activation, BiasedAttention, CausalAttention, ExpertBank, MoeLayer, OutputNorm, RouteInput, Router, Routes,
    SharedExpert, Sight, combine, dispatch, grouped_linear, linear, losses,
};

/// Routes with none, one or several experts per token, some experts without tokens.
fn uneven_routes(tokens: usize, experts: usize, weights: Option<&Tensor>) -> Routes {
    let choices: Vec<Vec<u32>> =
        (0..tokens).map(|t| (0..t % 4).map(|s| ((t * 5 + s * 3) % (experts - 1)) as u32).collect()).collect();
    let total: usize = choices.iter().map(Vec::len).sum();
    let default = normal(&mut Rng::new(9), &[total], 1.0);
    let scores = Tensor::zeros((tokens, experts), DType::F32, &Device::Cpu).unwrap();
    Routes::new(experts, &choices, weights.unwrap_or(&default), scores).unwrap()
}

#[test]
fn stages() {
    let mut rng = Rng::new(1);
    let (t, e, h, o) = (23, 5, 7, 6);
    let routes = uneven_routes(t, e, None);
    let r = routes.len();
    check("dispatch", &[normal(&mut rng, &[t, h], 1.0)], |x| dispatch(&x[0], &routes));
    let (x, w, b) = (normal(&mut rng, &[r, h], 1.0), normal(&mut rng, &[e, o, h], 1.0), normal(&mut rng, &[e, o], 1.0));
    check("grouped linear", &[x.clone(), w.clone()], |v| grouped_linear(&v[0], &v[1], None, &routes));
    check("grouped linear with bias", &[x.clone(), w, b], |v| grouped_linear(&v[0], &v[1], Some(&v[2]), &routes));
    check("linear", &[x.clone(), normal(&mut rng, &[o, h], 1.0)], |v| linear(&v[0], &v[1], None));
    check("combine", &[x, normal(&mut rng, &[r], 1.0)], |v| combine(&v[0], &uneven_routes(t, e, Some(&v[1]))));
}

#[test]
fn rowwise() {
    let mut rng = Rng::new(2);
    let x = normal(&mut rng, &[3, 70, 18], 1.0);
    check("softmax", std::slice::from_ref(&x), |v| softmax(&v[0]));
    check("rms norm", &[x.clone(), normal(&mut rng, &[18], 1.0)], |v| rms_norm(&v[0], &v[1], 1e-6));
    let (weight, bias) = (normal(&mut rng, &[18], 1.0), normal(&mut rng, &[18], 1.0));
    check("layer norm", &[x.clone(), weight, bias], |v| layer_norm(&v[0], &v[1], Some(&v[2]), 1e-6));
    check("silu glu", &[x], |v| silu_glu(&v[0]));
    for style in [RotaryStyle::Half, RotaryStyle::Interleaved] {
        // Part of the head stays as it is.
        let tables = Rotary::new(4, 100.0, style).unwrap().tables(&[0, 1, 2, 3, 4, 9, 5, 6, 7, 8], 2, 5).unwrap();
        check("rotary", &[normal(&mut rng, &[2, 5, 3, 6], 1.0)], |v| tables.apply(&v[0]));
    }
}

#[test]
fn attention() {
    let mut rng = Rng::new(3);
    for (name, t, s, heads, kv, start, window) in [
        ("plain", 9, 9, 2, 2, vec![], None),
        ("grouped, padded", 9, 9, 4, 2, vec![0, 3], None),
        ("long", 75, 75, 2, 1, vec![2, 0], None),
        ("window after a cache", 6, 40, 2, 2, vec![0, 30], Some(5)),
        ("uniform padding", 7, 9, 4, 2, vec![0, 5], None),
    ] {
        let inputs = [
            normal(&mut rng, &[2, t, heads, 4], 1.0),
            normal(&mut rng, &[2, s, kv, 4], 1.0),
            normal(&mut rng, &[2, s, kv, 6], 1.0),
        ];
        let attention =
            CausalAttention { start, window, uniform_padding: name == "uniform padding", ..CausalAttention::new(0.5) };
        if attention.uniform_padding {
            // What queries and keys get from padding is no derivative, see the test below.
            check(name, &inputs[2..], |v| attention.forward(&inputs[0], &inputs[1], &v[0]));
        } else {
            check(name, &inputs, |v| attention.forward(&v[0], &v[1], &v[2]));
        }
    }
}

#[test]
fn attention_with_padding_behind() {
    let mut rng = Rng::new(16);
    let inputs = [9, 9, 9].map(|t| normal(&mut rng, &[2, t, 2, 4], 1.0));
    let attention = CausalAttention { start: vec![2, 0], end: vec![9, 5], ..CausalAttention::new(0.5) };
    check("padding behind", &inputs, |v| attention.forward(&v[0], &v[1], &v[2]));
    // A query behind looks at the real keys, as one that stands at their end does.
    let all = attention.forward(&inputs[0], &inputs[1], &inputs[2]).unwrap();
    let part = |x: &Tensor, from: usize, n: usize| x.narrow(0, 1, 1)?.narrow(1, from, n)?.contiguous();
    let one = || -> Result<Tensor> {
        CausalAttention::new(0.5).forward(&part(&inputs[0], 7, 1)?, &part(&inputs[1], 0, 5)?, &part(&inputs[2], 0, 5)?)
    };
    let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (a, b) in values(part(&all, 7, 1).unwrap()).into_iter().zip(values(one().unwrap())) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    for end in [vec![9], vec![2, 9], vec![9, 10]] {
        let wrong = CausalAttention { end, ..attention.clone() };
        assert!(wrong.forward(&inputs[0], &inputs[1], &inputs[2]).is_err());
    }
}

#[test]
fn attention_everywhere() {
    let mut rng = Rng::new(15);
    // More queries than keys, keys that are shared, padding in the second row.
    for (t, s, heads, kv, start) in [(9, 5, 2, 2, vec![]), (70, 9, 4, 2, vec![0, 3]), (3, 75, 2, 1, vec![1, 0])] {
        let inputs = [
            normal(&mut rng, &[2, t, heads, 4], 1.0),
            normal(&mut rng, &[2, s, kv, 4], 1.0),
            normal(&mut rng, &[2, s, kv, 6], 1.0),
        ];
        let attention = CausalAttention { start: start.clone(), ..CausalAttention::everywhere(0.5) };
        check("everywhere", &inputs, |v| attention.forward(&v[0], &v[1], &v[2]));
        let fused = attention.forward(&inputs[0], &inputs[1], &inputs[2]).unwrap();
        for b in 0..2 {
            let first = start.get(b).copied().unwrap_or(0);
            for h in 0..heads {
                let head =
                    |x: &Tensor, h: usize| x.narrow(0, b, 1)?.narrow(2, h, 1)?.squeeze(2)?.squeeze(0)?.contiguous();
                let slow = || -> Result<Tensor> {
                    let (q, kv) = (head(&inputs[0], h)?, h / (heads / kv));
                    let (k, v) = (head(&inputs[1], kv)?, head(&inputs[2], kv)?);
                    let (k, v) = (k.narrow(0, first, s - first)?, v.narrow(0, first, s - first)?);
                    let p = (q.matmul(&k.t()?.contiguous()?)? * 0.5)?.exp()?;
                    p.broadcast_div(&p.sum_keepdim(1)?)?.matmul(&v.contiguous()?)
                };
                let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                for (a, b) in values(head(&fused, h).unwrap()).into_iter().zip(values(slow().unwrap())) {
                    assert!((a - b).abs() < 1e-5, "{a} {b}");
                }
            }
        }
    }
    let window = CausalAttention { window: Some(2), ..CausalAttention::everywhere(0.5) };
    let x = normal(&mut rng, &[1, 3, 1, 4], 1.0);
    assert!(window.forward(&x, &x, &x).is_err());
}

/// In the reference a padded query adds one huge negative number to all of its scores. They round to that number, so the
/// softmax is flat whatever they were; automatic differentiation does not know of the rounding and goes on to the scores.
#[test]
fn uniform_padding_passes_gradients_on_as_masked_scores_do() {
    let mut rng = Rng::new(14);
    let (t, heads, d, start) = (6, 2, 4, 4);
    let vars: Vec<Var> = (0..3).map(|_| Var::from_tensor(&normal(&mut rng, &[1, t, heads, d], 1.0)).unwrap()).collect();
    let weight = normal(&mut rng, &[1, t, heads, d], 1.0);
    let gradients = |y: Tensor| -> Vec<Vec<f32>> {
        let grads = (y * &weight).unwrap().sum_all().unwrap().backward().unwrap();
        vars.iter().map(|v| grads.get(v).unwrap().flatten_all().unwrap().to_vec1().unwrap()).collect()
    };
    let fused = CausalAttention { start: vec![start], uniform_padding: true, ..CausalAttention::new(0.5) };
    let fused = gradients(fused.forward(&vars[0], &vars[1], &vars[2]).unwrap());

    let slow = || -> Result<Tensor> {
        let head = |v: &Var| v.squeeze(0)?.transpose(0, 1)?.contiguous(); // (heads, t, d)
        let (q, k, v) = (head(&vars[0])?, head(&vars[1])?, head(&vars[2])?);
        let scores = (q.matmul(&k.t()?.contiguous()?)? * 0.5)?; // (heads, t, t)
        let mask: Vec<f32> = (0..t * t).map(|i| if (start..=i / t).contains(&(i % t)) { 0.0 } else { -1e30 }).collect();
        let real =
            scores.broadcast_add(&Tensor::from_vec(mask, (1, t, t), &Device::Cpu)?)?.narrow(1, start, t - start)?;
        let padded = (&scores - scores.detach())?.narrow(1, 0, start)?;
        let p = Tensor::cat(&[padded, real], 1)?.exp()?;
        let p = p.broadcast_div(&p.sum_keepdim(2)?)?;
        p.matmul(&v)?.transpose(0, 1)?.contiguous()?.unsqueeze(0)
    };
    for (fused, slow) in fused.iter().zip(gradients(slow().unwrap())) {
        let worst = fused.iter().zip(&slow).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst < 1e-5, "{fused:?}\n{slow:?}");
        assert!(slow[..start * heads * d].iter().any(|g| g.abs() > 1e-3), "the padding must get gradients");
    }
}

#[test]
fn joint_attention() {
    let mut rng = Rng::new(13);
    // Two rows of 7 tokens, 4 query and 2 key-value heads of width 4; values do not turn.
    let (b, t, heads, kv, d) = (2, 7, 4, 2, 4);
    let positions: Vec<u32> = (0..b * t).map(|i| (i % t) as u32).collect();
    let tables = Rotary::new(d, 100.0, RotaryStyle::Half).unwrap().tables(&positions, b, t).unwrap();
    let attention = CausalAttention { start: vec![0, 2], ..CausalAttention::new(0.5) };
    let x = normal(&mut rng, &[b * t, (heads + 2 * kv) * d], 1.0);
    check("joint", std::slice::from_ref(&x), |v| {
        attention.forward_joint(&tables.apply_joint(&v[0], heads + 2 * kv, heads + kv)?, b, heads, kv)
    });
    // The same values as with tensors of their own.
    let joint = attention.forward_joint(&x, b, heads, kv).unwrap();
    let four = x.reshape((b, t, heads + 2 * kv, d)).unwrap();
    let part = |first, n| four.narrow(2, first, n).unwrap();
    let apart = attention.forward(&part(0, heads), &part(heads, kv), &part(heads + kv, kv)).unwrap();
    let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values(joint), values(apart));
}

#[test]
fn attention_over_lists_of_keys() {
    let mut rng = Rng::new(14);
    let (n, m, heads, d) = (7, 40, 3, 5);
    let mut sight = Sight::new();
    for i in 0..n {
        // Runs and gaps; query 2 sees nothing.
        sight.push((0..m).filter(|j| i != 2 && (i * 7 + j) % 9 > 2).map(|j| (j, (i + j / 4) % 2)));
    }
    let attention = BiasedAttention { scale: 0.6, sight: sight.into() };
    let inputs = [
        normal(&mut rng, &[n, heads, d], 1.0),
        normal(&mut rng, &[m, 2, heads, d], 1.0),
        normal(&mut rng, &[2, heads], 1.0),
    ];
    check("lists of keys", &inputs, |v| attention.forward(&v[0], &v[1], &v[2]));
}

#[test]
fn routers() {
    let mut rng = Rng::new(4);
    let (t, e, h) = (6, 8, 5);
    let (x, w) = (normal(&mut rng, &[t, h], 1.0), normal(&mut rng, &[e, h], 1.0));
    let groups = Some(GroupLimit { groups: 4, keep: 2 });
    let bias = Some(normal(&mut rng, &[e], 0.1));
    let both = |routes: Routes| Tensor::cat(&[routes.weight(), &routes.scores().flatten_all()?], 0);
    for renormalise in [false, true] {
        check("softmax top-k", &[x.clone(), w.clone()], |v| {
            let router = SoftmaxTopK { weight: v[1].clone(), k: 2, renormalise, scale: 1.5, groups };
            both(router.route(&RouteInput::new(&v[0]))?)
        });
        check("sigmoid top-k", &[x.clone(), w.clone()], |v| {
            let router =
                SigmoidTopK { weight: v[1].clone(), bias: bias.clone(), k: 3, renormalise, scale: 2.5, groups };
            both(router.route(&RouteInput::new(&v[0]))?)
        });
    }
    check("top-k softmax", &[x.clone(), w.clone()], |v| {
        both(TopKSoftmax { weight: v[1].clone(), k: 3 }.route(&RouteInput::new(&v[0]))?)
    });
    check("sparse mixer", &[x.clone(), w.clone()], |v| {
        both(SparseMixer { weight: v[1].clone(), jitter: 0.4 }.route(&RouteInput::new(&v[0]))?)
    });
    check("centroids", &[x.clone(), w.clone()], |v| {
        both(CentroidTopK { centroids: v[1].clone(), k: 2 }.route(&RouteInput::new(&v[0]))?)
    });
    let (condition, wide) = (normal(&mut rng, &[t, 3], 1.0), normal(&mut rng, &[e, h + 3], 1.0));
    check("mixing", &[x.clone(), condition, wide], |v| {
        let input = RouteInput { condition: Some(&v[1]), ..RouteInput::new(&v[0]) };
        both(SoftmaxMixing { weight: v[2].clone() }.route(&input)?)
    });
    check("cross entropy", &[normal(&mut rng, &[5, 9], 2.0)], |v| {
        losses::cross_entropy(&v[0], &[3, -100, 0, 8, 8])?.reshape(1)
    });
    check("sequence balance", &[x.clone(), w.clone()], |v| {
        let router = SoftmaxTopK { weight: v[1].clone(), k: 2, renormalise: false, scale: 1.0, groups: None };
        losses::sequence_balance(&router.route(&RouteInput::new(&v[0]))?, 2)?.reshape(1)
    });
    check("losses", &[x, w], |v| {
        let router = SoftmaxTopK { weight: v[1].clone(), k: 2, renormalise: false, scale: 1.0, groups: None };
        let routes = router.route(&RouteInput::new(&v[0]))?;
        let z = losses::router_z(&routes)?;
        Tensor::stack(&[losses::load_balance(&[routes])?, z], 0)
    });
}

#[test]
fn a_whole_layer() {
    let mut rng = Rng::new(8);
    let (t, e, h, i, o) = (11, 4, 6, 5, 7);
    let inputs = [
        normal(&mut rng, &[t, h], 1.0),
        normal(&mut rng, &[e, h], 1.0),
        normal(&mut rng, &[e, 2 * i, h], 0.5),
        normal(&mut rng, &[e, o, i], 0.5),
        normal(&mut rng, &[1, 2 * i, h], 0.5),
        normal(&mut rng, &[1, o, i], 0.5),
        normal(&mut rng, &[1, h], 0.5),
    ];
    check("moe layer", &inputs, |v| {
        let router = SoftmaxTopK { weight: v[1].clone(), k: 2, renormalise: false, scale: 1.0, groups: None };
        let shared = SharedExpert {
            bank: ExpertBank::gated(v[4].clone(), v[5].clone(), Activation::Silu)?,
            gate: Some(v[6].clone()),
            blend: None,
        };
        let experts = ExpertBank::gated(v[2].clone(), v[3].clone(), Activation::GeluTanh)?;
        let layer = MoeLayer { router: Box::new(router), experts, shared: Some(shared) };
        Ok(layer.forward(&RouteInput::new(&v[0]), "layer", None)?.0)
    });
    let inputs = [
        normal(&mut rng, &[t, h], 1.0),
        normal(&mut rng, &[e, i, h], 0.5),
        normal(&mut rng, &[e, o, i], 0.5),
        normal(&mut rng, &[e, i], 0.5),
        normal(&mut rng, &[e, o], 0.5),
        normal(&mut rng, &[e, o], 0.5),
        normal(&mut rng, &[e, o], 0.5),
    ];
    let routes = uneven_routes(t, e, None);
    // Gradients of expert 3's parameters are zero, as no token goes there; those of the others are not.
    check("biased experts with an output norm", &inputs, |v| {
        ExpertBank::mlp(v[1].clone(), v[2].clone(), Activation::Silu)?
            .with_biases(Some(v[3].clone()), Some(v[4].clone()))?
            .with_output_norm(OutputNorm { weight: v[5].clone(), bias: v[6].clone(), eps: 1e-5 })?
            .forward(&v[0], &routes)
    });
    for activation in [Activation::QuickGelu, Activation::Gelu, Activation::GeluTanh] {
        check(&format!("experts with {activation:?}"), &inputs[..5], |v| {
            ExpertBank::mlp(v[1].clone(), v[2].clone(), activation)?
                .with_biases(Some(v[3].clone()), Some(v[4].clone()))?
                .forward(&v[0], &routes)
        });
    }
}
