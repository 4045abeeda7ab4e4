//! Routers by hand.

use super::*;
use candle_core::Device;

fn two(choices: &Routes) -> (Vec<Vec<u32>>, Vec<Vec<f32>>) {
    let (experts, weights) = choices.top_k().unwrap();
    (experts.to_vec2().unwrap(), weights.to_vec2().unwrap())
}

/// With an identity weight the logits are the tokens themselves.
fn identity(n: usize) -> Tensor {
    Tensor::eye(n, DType::F32, &Device::Cpu).unwrap()
}

fn close(a: &[f32], b: &[f64]) {
    assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6), "{a:?} {b:?}");
}

#[test]
fn softmax_top_k_by_hand() -> Result<()> {
    let x = Tensor::new(&[[1f32, 3., 2., 0.], [0., 0., 0., 1.]], &Device::Cpu)?;
    let mut router = SoftmaxTopK { weight: identity(4), k: 2, renormalise: false, scale: 1.0, groups: None };
    let z: f64 = [1f64, 3., 2., 0.].iter().map(|v| v.exp()).sum();
    let (experts, weights) = two(&router.route(&RouteInput::new(&x))?);
    assert_eq!(experts, [[1, 2], [3, 0]]); // ties go to the lower index
    close(&weights[0], &[3f64.exp() / z, 2f64.exp() / z]);
    router.renormalise = true;
    router.scale = 2.5;
    let (_, weights) = two(&router.route(&RouteInput::new(&x))?);
    let pair = 3f64.exp() + 2f64.exp();
    close(&weights[0], &[2.5 * 3f64.exp() / pair, 2.5 * 2f64.exp() / pair]);
    let other = TopKSoftmax { weight: identity(4), k: 2 };
    let (experts, weights) = two(&other.route(&RouteInput::new(&x))?);
    assert_eq!(experts[0], [1, 2]);
    close(&weights[0], &[3f64.exp() / pair, 2f64.exp() / pair]);
    Ok(())
}

#[test]
fn groups_limit_the_choice() -> Result<()> {
    // Three groups of two. By the best member group 0 wins (5.0), then group 2 (4.0): expert 3 (3.9) is out.
    let x = Tensor::new(&[[5f32, 0., 1., 3.9, 4., 0.5]], &Device::Cpu)?;
    let groups = Some(GroupLimit { groups: 3, keep: 2 });
    let router = SoftmaxTopK { weight: identity(6), k: 3, renormalise: false, scale: 1.0, groups };
    assert_eq!(two(&router.route(&RouteInput::new(&x))?).0, [[0, 4, 5]]);
    Ok(())
}

#[test]
fn sigmoid_bias_steers_the_choice_but_not_the_weights() -> Result<()> {
    let x = Tensor::new(&[[1f32, 2., 0., -1.]], &Device::Cpu)?;
    let s = |v: f64| 1.0 / (1.0 + (-v).exp());
    let bias = Tensor::new(&[0f32, 0., 0., 1.], &Device::Cpu)?;
    let mut router =
        SigmoidTopK { weight: identity(4), bias: Some(bias), k: 2, renormalise: true, scale: 2.0, groups: None };
    let (experts, weights) = two(&router.route(&RouteInput::new(&x))?);
    assert_eq!(experts, [[3, 1]]);
    close(&weights[0], &[2.0 * s(-1.0) / (s(-1.0) + s(2.0)), 2.0 * s(2.0) / (s(-1.0) + s(2.0))]);
    // The two best of group 0 sum higher, though the best single expert is in group 1.
    let x = Tensor::new(&[[1f32, 1., 2., -5.]], &Device::Cpu)?;
    (router.bias, router.groups) = (None, Some(GroupLimit { groups: 2, keep: 1 }));
    assert_eq!(two(&router.route(&RouteInput::new(&x))?).0, [[0, 1]]);
    Ok(())
}

#[test]
fn sparse_mixer_weighs_near_rivals_only() -> Result<()> {
    // Within 2 * 0.1 of the best: 10 and 9 (1 / 10), not 7. Then of the rest: 9, and 7.5 (1.5 / 9).
    let x = Tensor::new(&[[7.5f32, 10., 9., 1.], [-1., -1.1, -8., -9.]], &Device::Cpu)?;
    let router = SparseMixer { weight: identity(4), jitter: 0.1 };
    let (experts, weights) = two(&router.route(&RouteInput::new(&x))?);
    assert_eq!(experts, [[1, 2], [0, 1]]);
    let near = |a: f64, b: f64| 1.0 / (1.0 + (b - a).exp());
    close(&weights[0], &[near(10.0, 9.0), near(9.0, 7.5)]);
    // Below zero the distance is relative to |s|: 0.1 / 1.1 is near, 6.9 / 8 is not.
    close(&weights[1], &[near(-1.0, -1.1), 1.0]);
    Ok(())
}

#[test]
fn broken_scores_are_errors_but_not_in_the_padding() -> Result<()> {
    let x = Tensor::new(&[[f32::NAN, 3.], [0., 1.]], &Device::Cpu)?;
    let weight = identity(2);
    let routers: [Box<dyn Router>; 4] = [
        Box::new(SoftmaxTopK { weight: weight.clone(), k: 1, renormalise: true, scale: 1.0, groups: None }),
        Box::new(TopKSoftmax { weight: weight.clone(), k: 1 }),
        Box::new(SigmoidTopK { weight: weight.clone(), bias: None, k: 1, renormalise: true, scale: 1.0, groups: None }),
        Box::new(SparseMixer { weight, jitter: 0.01 }),
    ];
    for router in routers {
        let error = router.route(&RouteInput::new(&x)).unwrap_err().to_string();
        assert!(error.contains("token 0") && error.contains("NaN"), "{error}");
        let mask = Tensor::new(&[0u8, 1], &Device::Cpu)?;
        assert!(router.route(&RouteInput::new(&x).with_mask(Some(&mask))).is_ok());
    }
    Ok(())
}

#[test]
fn the_farthest_centroids_are_chosen() -> Result<()> {
    let centroids = Tensor::new(&[[0f32, 0.], [3., 4.], [1., 0.]], &Device::Cpu)?;
    let x = Tensor::new(&[[0f32, 0.]], &Device::Cpu)?;
    let (experts, weights) = two(&CentroidTopK { centroids, k: 2 }.route(&RouteInput::new(&x))?);
    assert_eq!(experts, [[1, 2]]);
    let z = 5f64.exp() + 1f64.exp();
    close(&weights[0], &[5f64.exp() / z, 1f64.exp() / z]);
    Ok(())
}

#[test]
fn padding_gets_no_routes_and_bad_settings_are_errors() -> Result<()> {
    let x = Tensor::new(&[[1f32, 3.], [0., 1.]], &Device::Cpu)?;
    let mask = Tensor::new(&[0u8, 1], &Device::Cpu)?;
    let mut router = SoftmaxTopK { weight: identity(2), k: 1, renormalise: false, scale: 1.0, groups: None };
    let routes = router.route(&RouteInput::new(&x).with_mask(Some(&mask)))?;
    assert_eq!(routes.token()?.to_vec1::<u32>()?, [1]);
    router.k = 3;
    assert!(router.route(&RouteInput::new(&x)).is_err());
    router.k = 1;
    router.groups = Some(GroupLimit { groups: 3, keep: 1 });
    assert!(router.route(&RouteInput::new(&x)).is_err());
    Ok(())
}
