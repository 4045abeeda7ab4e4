//! The inference path: gathering happens while packing, and nothing between the layers becomes a tensor.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

use super::bank::{Activation, BankKind, ExpertBank, OutputNorm, Storage};
use super::stages::{combine_rows, linear_products};
use crate::cpu::gemm::{Rhs, run};
use crate::cpu::pack::View;
use crate::cpu::{Scratch, SendPtr, isa, math, parallel};
use crate::host::{as_f32, storage_of, with_f32};
use crate::routes::{Plan, Routes};

struct Fused<'a> {
    bank: &'a ExpertBank,
    plan: &'a Plan,
}

pub(super) fn forward(bank: &ExpertBank, x: &Tensor, routes: &Routes) -> Result<Tensor> {
    x.contiguous()?.apply_op2_no_bwd(routes.weight(), &Fused { bank, plan: &routes.plan })
}

/// `c[rows of e] = a[rows of e] · W[e]^T + bias[e]`
fn grouped(storage: &Storage, bias: Option<&Tensor>, a: View<'_, f32>, offsets: &[usize], c: &mut [f32]) -> Result<()> {
    let (_, n, k) = storage.dims()?;
    let bias = bias.map(|b| b.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()).transpose()?;
    match storage {
        Storage::Packed(packed) => {
            run(&linear_products(a, |e| Rhs::<f32>::Packed(packed, e), bias.as_deref(), offsets, (n, k)), c);
        }
        Storage::Dense(w) => {
            // Plain weights in a type other than f32 are widened by the packing of each panel that is used.
            let w = w.contiguous()?;
            let (storage, layout) = w.storage_and_layout();
            let candle_core::Storage::Cpu(storage) = &*storage else {
                bail!("the experts' weights are not on the CPU")
            };
            let start = layout.start_offset();
            macro_rules! plain {
                ($w:expr) => {{
                    let weight = |e| Rhs::Plain(View::rows(&$w[start..], e * n * k, k).transposed());
                    run(&linear_products(a, weight, bias.as_deref(), offsets, (n, k)), c)
                }};
            }
            match storage {
                CpuStorage::F32(w) => plain!(w),
                CpuStorage::BF16(w) => plain!(w),
                CpuStorage::F16(w) => plain!(w),
                other => bail!("experts' weights of dtype {:?}, expected f32, bf16 or f16", other.dtype()),
            }
        }
    }
    Ok(())
}

/// The activation of `h` (`[rows, width]`, gate and up side by side if gated) into `a`.
fn activate(bank: &ExpertBank, h: &[f32], a: &mut [f32], inner: usize) -> Result<()> {
    let wide = if bank.kind == BankKind::Gated { 2 * inner } else { inner };
    let rows = h.len() / wide.max(1);
    if (bank.kind, bank.activation) == (BankKind::Gated, Activation::Silu) {
        let (isa, out) = (isa(), SendPtr::new(a));
        parallel(rows.div_ceil(16), h.len() > 1 << 14, |block| {
            for i in block * 16..(block * 16 + 16).min(rows) {
                let (gate, up) = h[i * wide..][..wide].split_at(inner);
                // SAFETY: each row belongs to one task.
                math::silu_glu(isa, gate, up, unsafe { out.slice(i * inner, inner) });
            }
        });
        return Ok(());
    }
    // Rarer activations go through candle, the same functions as on the differentiable path.
    let h = Tensor::from_slice(h, (rows, wide), &candle_core::Device::Cpu)?;
    let y = match bank.kind {
        BankKind::Gated => (bank.activation.apply(&h.narrow(1, 0, inner)?)? * h.narrow(1, inner, inner)?)?,
        _ => bank.activation.apply(&h)?,
    };
    with_f32(&y, "activation", |y| {
        a.copy_from_slice(y);
        Ok(())
    })
}

/// LayerNorm of each row of `y` by its expert's weights.
fn normalise(norm: &OutputNorm, offsets: &[usize], y: &mut [f32], cols: usize) -> Result<()> {
    with_f32(&norm.weight, "output norm", |weight| {
        with_f32(&norm.bias, "output norm", |bias| {
            for (e, range) in offsets.windows(2).enumerate() {
                let (w, b) = (&weight[e * cols..][..cols], &bias[e * cols..][..cols]);
                for row in y[range[0] * cols..range[1] * cols].chunks_exact_mut(cols) {
                    let mean = row.iter().sum::<f32>() / cols as f32;
                    let var = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / cols as f32;
                    let r = 1.0 / (var + norm.eps as f32).sqrt();
                    for ((v, w), b) in row.iter_mut().zip(w).zip(b) {
                        *v = (*v - mean) * r * w + b;
                    }
                }
            }
            Ok(())
        })
    })
}

impl CustomOp2 for Fused<'_> {
    fn name(&self) -> &'static str {
        "moesaic-experts-fused"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (bank, plan) = (self.bank, self.plan);
        let (_, wide, width) = bank.up.dims()?;
        let x = as_f32(s1, l1, self.name())?;
        let weight = as_f32(s2, l2, self.name())?;
        if l1.dims() != [plan.tokens, width] {
            bail!("experts: input of shape {:?}, expected [{}, {width}]", l1.dims(), plan.tokens);
        }
        let out_width = bank.output_width();
        let mut out = vec![0f32; plan.tokens * out_width];
        if plan.routes() > 0 {
            let mut h = Scratch::new(plan.routes() * wide);
            let gathered = View { gather: Some(&plan.token), ..View::rows(&x, 0, width) };
            grouped(&bank.up, bank.up_bias.as_ref(), gathered, &plan.offsets, &mut h)?;
            let mut y = match &bank.down {
                None => h,
                Some(down) => {
                    let inner = down.dims()?.2;
                    let mut a = Scratch::new(plan.routes() * inner);
                    activate(bank, &h, &mut a, inner)?;
                    let mut y = Scratch::new(plan.routes() * out_width);
                    grouped(down, bank.down_bias.as_ref(), View::rows(&a, 0, inner), &plan.offsets, &mut y)?;
                    y
                }
            };
            if let Some(norm) = &bank.output_norm {
                normalise(norm, &plan.offsets, &mut y, out_width)?;
            }
            combine_rows(plan, &y, out_width, Some(&weight), &mut out);
        }
        Ok((storage_of(out, s1.dtype(), self.name())?, (plan.tokens, out_width).into()))
    }
}
