//! The stages of a sparse layer, one expert after the other.

use candle_core::{DType, Result, Tensor};

use crate::routes::Plan;

pub(crate) fn dispatch(x: &Tensor, plan: &Plan) -> Result<Tensor> {
    x.contiguous()?.index_select(&Tensor::from_slice(&plan.lists()?.token, plan.routes(), x.device())?, 0)
}

/// Slots of all tokens at once, in their order: `y [R, O]`, `weight [R]` to `[T, O]`.
pub(crate) fn combine(y: &Tensor, weight: &Tensor, plan: &Plan) -> Result<Tensor> {
    let (routes, width) = y.dims2()?;
    let lists = plan.lists()?;
    let most = (0..plan.tokens).map(|t| lists.of_token(t).len()).max().unwrap_or(0);
    if most == 0 {
        return Tensor::zeros((plan.tokens, width), y.dtype(), y.device());
    }
    let mut index = Vec::with_capacity(plan.tokens * most);
    for t in 0..plan.tokens {
        let of = lists.of_token(t);
        // Behind the last route stands a row of zeros.
        index.extend((0..most).map(|s| of.get(s).copied().unwrap_or(routes as u32)));
    }
    let index = Tensor::from_vec(index, plan.tokens * most, y.device())?;
    let weighted = y.to_dtype(DType::F32)?.broadcast_mul(&weight.to_dtype(DType::F32)?.unsqueeze(1)?)?;
    let zeros = Tensor::zeros((1, width), DType::F32, y.device())?;
    let picked = Tensor::cat(&[weighted, zeros], 0)?.index_select(&index, 0)?;
    picked.reshape((plan.tokens, most, width))?.sum(1)?.to_dtype(y.dtype()) // (T, O)
}

/// `x [R, K]`, `weight [E, N, K]` or `[N, K]`, `bias` of as many values as rows of weights, to `[R, N]`; the rows of expert `e` are
/// `offsets[e]..offsets[e + 1]`. Shapes are checked. Products are of the dtype of `x`, to which weights are rounded, and so is each sum before its
/// bias: in half precision the fused form is closer.
pub(crate) fn grouped_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, offsets: &[usize]) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let k = shape.last().copied().unwrap_or(0);
    let n = weight.dim(weight.rank() - 2)?;
    let rows = offsets.last().copied().unwrap_or(0);
    let dtype = x.dtype();
    if let Some(last) = shape.last_mut() {
        *last = n;
    }
    let (x, weight) = (x.reshape((rows, k))?, weight.reshape(((), n, k))?);
    let bias = bias.map(|b| b.reshape(((), n))?.to_dtype(dtype)).transpose()?;
    let mut parts = Vec::new();
    for (e, range) in offsets.windows(2).enumerate().filter(|(_, range)| range[0] < range[1]) {
        let own = weight.narrow(0, e, 1)?.squeeze(0)?.to_dtype(dtype)?;
        let y = x.narrow(0, range[0], range[1] - range[0])?.matmul(&own.t()?)?;
        parts.push(match &bias {
            Some(bias) => y.broadcast_add(&bias.narrow(0, e, 1)?)?,
            None => y,
        });
    }
    match parts.len() {
        0 => Tensor::zeros(shape, dtype, x.device()),
        1 => parts.swap_remove(0).reshape(shape),
        _ => Tensor::cat(&parts, 0)?.reshape(shape),
    }
}
