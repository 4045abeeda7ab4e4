//! What several tests need.

use candle_core::{DType, Device, Result, Tensor, Var};
use moesaic_kernels::rng::Rng;

/// Normal values.
pub fn normal(rng: &mut Rng, shape: &[usize], std: f64) -> Tensor {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n).map(|_| (std * rng.normal()) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Compares the gradients of `sum(f(inputs) * fixed weights)` with central differences at up to 40 places per input.
///
/// The step is large and the tolerance follows f32: the kernels compute in f32, so a difference carries noise of about
/// 1e-6 / step. `f` must not change its routing within the step; inputs below keep a margin.
pub fn check(name: &str, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let out = f(&tracked).unwrap();
    let weights = normal(&mut Rng::named(5, name), out.dims(), 1.0);
    let objective = |inputs: &[Tensor]| -> f64 {
        let product = (f(inputs).unwrap().detach() * &weights).unwrap().to_dtype(DType::F64).unwrap();
        product.sum_all().unwrap().to_scalar::<f64>().unwrap()
    };
    let grads = (out * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    let mut rng = Rng::named(6, name);
    for (index, var) in vars.iter().enumerate() {
        let grad = grads.get(var).unwrap_or_else(|| panic!("{name}: input {index} got no gradient"));
        let grad = grad.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values = inputs[index].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let scale = grad.iter().fold(0f64, |m, g| m.max(f64::from(g.abs())));
        assert!(scale > 0.0, "{name}: the gradient of input {index} is zero everywhere");
        for _ in 0..40.min(values.len()) {
            let at = rng.below(values.len());
            let step = 2e-3f32;
            let moved = |by: f32| {
                let mut values = values.clone();
                values[at] += by;
                let mut inputs = inputs.to_vec();
                inputs[index] = Tensor::from_vec(values, inputs[index].shape(), &Device::Cpu).unwrap();
                objective(&inputs)
            };
            let numeric = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
            let exact = f64::from(grad[at]);
            assert!(
                (numeric - exact).abs() <= 5e-3 * scale + 2e-3,
                "{name}: input {index} at {at}: gradient {exact}, finite difference {numeric} (largest {scale})"
            );
        }
    }
}
