//! The oracle: a sparse layer written to be obviously right, in f64, one token and one expert at a time.

use candle_core::{DType, Result, Tensor};

use super::{Activation, BankKind, ExpertBank, FreeExpert};
use crate::routes::Routes;

fn apply(activation: Activation, v: f64) -> f64 {
    match activation {
        Activation::Silu => v / (1.0 + (-v).exp()),
        Activation::GeluTanh => {
            0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v)).tanh())
        }
        Activation::Gelu => 0.5 * v * (1.0 + candle_core::cpu::erf::erf_f64(v / 2f64.sqrt())),
        Activation::Relu => v.max(0.0),
        Activation::QuickGelu => v / (1.0 + (-1.702 * v).exp()),
    }
}

/// `W x + b`
fn matvec(w: &[Vec<f64>], b: Option<&Vec<f64>>, x: &[f64]) -> Vec<f64> {
    let dot = |row: &Vec<f64>| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
    w.iter().enumerate().map(|(i, row)| dot(row) + b.map_or(0.0, |b| b[i])).collect()
}

/// What [`ExpertBank::forward`] must compute: for each token the weighted sum of its experts' outputs.
///
/// # Shapes
/// `x [T, H]` to `[T, O]` in f64
pub fn naive(bank: &ExpertBank, x: &Tensor, routes: &Routes) -> Result<Tensor> {
    let f64s = |t: &Tensor| t.to_dtype(DType::F64);
    let x = f64s(x)?.to_vec2::<f64>()?;
    let up = f64s(&bank.up.dense()?)?.to_vec3::<f64>()?;
    let down = bank.down.as_ref().map(|d| f64s(&d.dense()?)?.to_vec3::<f64>()).transpose()?;
    let up_bias = bank.up_bias.as_ref().map(|b| f64s(b)?.to_vec2::<f64>()).transpose()?;
    let down_bias = bank.down_bias.as_ref().map(|b| f64s(b)?.to_vec2::<f64>()).transpose()?;
    let expert = |e: usize, x: &[f64]| -> Result<Vec<f64>> {
        match bank.free().get(e.wrapping_sub(bank.networks())) {
            None => {}
            Some(FreeExpert::Zero) => return Ok(vec![0.0; bank.output_width()]),
            Some(FreeExpert::Copy) => return Ok(x.to_vec()),
            Some(FreeExpert::Constant { vector, gate }) => {
                let a = matvec(&f64s(gate)?.to_vec2::<f64>()?, None, x);
                let keep = 1.0 / (1.0 + (a[1] - a[0]).exp());
                let v = f64s(vector)?.to_vec1::<f64>()?;
                return Ok(x.iter().zip(v).map(|(x, v)| keep * x + (1.0 - keep) * v).collect());
            }
        }
        let h = matvec(&up[e], up_bias.as_ref().map(|b| &b[e]), x);
        let mut y = match (&bank.kind, &down) {
            (BankKind::Gated, Some(down)) => {
                let (gate, up) = h.split_at(h.len() / 2);
                let a: Vec<f64> = gate.iter().zip(up).map(|(g, u)| apply(bank.activation, *g) * u).collect();
                matvec(&down[e], down_bias.as_ref().map(|b| &b[e]), &a)
            }
            (BankKind::Mlp, Some(down)) => {
                let a: Vec<f64> = h.iter().map(|v| apply(bank.activation, *v)).collect();
                matvec(&down[e], down_bias.as_ref().map(|b| &b[e]), &a)
            }
            _ => h,
        };
        if let Some(norm) = &bank.output_norm {
            let (w, b) = (f64s(&norm.weight)?.to_vec2::<f64>()?, f64s(&norm.bias)?.to_vec2::<f64>()?);
            let n = y.len() as f64;
            let mean = y.iter().sum::<f64>() / n;
            let var = y.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
            let r = 1.0 / (var + norm.eps).sqrt();
            y.iter_mut().enumerate().for_each(|(i, v)| *v = (*v - mean) * r * w[e][i] + b[e][i]);
        }
        Ok(y)
    };
    let (token, offsets) = (routes.token()?.to_vec1::<u32>()?, routes.offsets()?);
    let weight = routes.weight().to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let mut out = vec![0f64; x.len() * bank.output_width()];
    for e in 0..routes.experts() {
        for r in offsets[e]..offsets[e + 1] {
            let t = token[r] as usize;
            let row = &mut out[t * bank.output_width()..][..bank.output_width()];
            for (o, v) in row.iter_mut().zip(expert(e, &x[t])?) {
                *o += weight[r] * v;
            }
        }
    }
    Tensor::from_vec(out, (x.len(), bank.output_width()), &candle_core::Device::Cpu)
}
