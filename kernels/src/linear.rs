//! A plain linear map on the kernels of the expert stages.

use std::sync::Arc;

use candle_core::{D, DType, Result, Tensor, bail};

use crate::cpu::pack::Packed;
use crate::experts::stages::PackedLinear;
use crate::host::tracked;
use crate::lora::{self, LowRank};
use crate::{Blocks, Init, Params, linear};

#[derive(Clone, Debug)]
enum Weight {
    Plain {
        weight: Tensor,
        bias: Option<Tensor>,
    },
    Packed {
        weight: Packed,
        bias: Option<Arc<[f32]>>,
    },
    /// Blocks of several formats, their outputs side by side.
    Joint(Vec<Linear>),
}

/// `x W^T + bias`, with gradients on variables, from tiles made at load otherwise; plus what live adapters add.
#[derive(Clone, Debug)]
pub struct Linear(Weight, Vec<LowRank>);

impl Linear {
    /// A linear map with `weight [out, in]` and `bias [out]`, by reference to the tensors.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (out, _) = weight.dims2()?;
        if bias.as_ref().is_some_and(|b| b.dims() != [out]) {
            bail!("a linear map with weight {:?} needs a bias of shape [{out}]", weight.dims());
        }
        Ok(Self(Weight::Plain { weight, bias }, Vec::new()))
    }

    /// `{name}.weight [out, in]` and, if `bias`, `{name}.bias [out]` (initially zero). Packed unless it is to be trained.
    pub fn load(p: &Params, name: &str, (out, inputs): (usize, usize), bias: bool, init: Init) -> Result<Self> {
        let p = p.pp(name);
        let blocks = p.blocks(&[out, inputs], &[("weight".to_string(), vec![out, inputs])])?;
        let weight = || p.tensor("weight", [out, inputs], init);
        let bias = || if bias { p.tensor("bias", [out], Init::Zeros).map(Some) } else { Ok(None) };
        if let Some(blocks) = blocks {
            return Self::from_blocks(&blocks, bias()?);
        }
        let plain = Self::new(weight()?, bias()?)?;
        if p.packs() { plain.pack() } else { Ok(plain) }
    }

    /// Several maps of one input side by side, such as queries, keys and values: `{name}.weight [out, in]` and `{name}.bias`
    /// of each `(name, out)`, their outputs one after the other.
    pub fn load_joint(p: &Params, parts: &[(&str, usize)], inputs: usize, bias: bool, init: Init) -> Result<Self> {
        let total = parts.iter().map(|(_, out)| out).sum();
        let weights: Vec<_> = parts.iter().map(|&(name, out)| (format!("{name}.weight"), vec![out, inputs])).collect();
        let biases: Vec<_> = parts.iter().map(|&(name, out)| (format!("{name}.bias"), vec![out])).collect();
        if let Some(blocks) = p.blocks(&[total, inputs], &weights)? {
            let bias = if bias { Some(p.stack(&[total], &biases, Init::Zeros)?) } else { None };
            return Self::from_blocks(&blocks, bias);
        }
        if weights.iter().any(|(name, _)| p.in_blocks(name)) {
            let each = parts.iter().map(|&(name, out)| Self::load(p, name, (out, inputs), bias, init));
            return Ok(Self(Weight::Joint(each.collect::<Result<_>>()?), Vec::new()));
        }
        let weight = p.stack(&[total, inputs], &weights, init)?;
        let bias = if bias { Some(p.stack(&[total], &biases, Init::Zeros)?) } else { None };
        let plain = Self::new(weight, bias)?;
        if p.packs() { plain.pack() } else { Ok(plain) }
    }

    /// A linear map with a weight in blocks, `[out, in]`, for the CPU; forward only.
    ///
    /// # Errors
    /// Another shape.
    pub fn from_blocks(blocks: &Blocks, bias: Option<Tensor>) -> Result<Self> {
        let &[out, _] = blocks.shape() else { bail!("a linear map with a weight of shape {:?}", blocks.shape()) };
        let bias = bias.map(|b| b.to_dtype(DType::F32)?.to_vec1::<f32>()).transpose()?;
        if bias.as_ref().is_some_and(|b| b.len() != out) {
            bail!("a linear map with weight {:?} needs a bias of shape [{out}]", blocks.shape());
        }
        let weight = Packed::from_blocks(blocks, false)?;
        Ok(Self(Weight::Packed { weight, bias: bias.map(Arc::from) }, Vec::new()))
    }

    /// The same map with its weights in tiles for the CPU: faster, forward only.
    pub fn pack(self) -> Result<Self> {
        match self.0 {
            Weight::Plain { weight, bias } => {
                let bias = bias.map(|b| b.to_dtype(DType::F32)?.to_vec1::<f32>()).transpose()?;
                Ok(Self(Weight::Packed { weight: Packed::new(&weight)?, bias: bias.map(Arc::from) }, self.1))
            }
            packed => Ok(Self(packed, self.1)),
        }
    }

    /// The same map as a model in bf16 computes it: where its weights are tiles of bf16 and the processor multiplies pairs of those, what meets
    /// them is rounded to bf16; sums stay f32. Elsewhere nothing changes.
    pub fn narrow(self) -> Self {
        let base = match self.0 {
            Weight::Packed { weight, bias } => Weight::Packed { weight: weight.narrow(), bias },
            Weight::Joint(parts) => Weight::Joint(parts.into_iter().map(Self::narrow).collect()),
            plain @ Weight::Plain { .. } => plain,
        };
        Self(base, self.1)
    }

    /// Width of the input.
    pub fn input_width(&self) -> usize {
        match &self.0 {
            Weight::Plain { weight, .. } => weight.dims()[1],
            Weight::Packed { weight, .. } => weight.dims().2,
            Weight::Joint(parts) => parts.first().map_or(0, Self::input_width),
        }
    }

    /// The live adapters, in the order in which they were attached.
    pub fn adapters(&self) -> &[LowRank] {
        &self.1
    }

    /// Attaches an adapter: from now on [`forward`](Self::forward) adds it, beside those that are there.
    ///
    /// # Errors
    /// Its shapes do not fit this map.
    pub fn attach(&mut self, adapter: LowRank) -> Result<()> {
        adapter.check(1, self.output_width(), self.input_width())?;
        self.1.push(adapter);
        Ok(())
    }

    /// Gives every adapter the strength that `weight` says; `None` takes it off.
    pub fn adjust(&mut self, weight: impl Fn(&LowRank) -> Option<f64>) {
        self.1 = std::mem::take(&mut self.1).into_iter().filter_map(|a| weight(&a).map(|w| a.with_weight(w))).collect();
    }

    /// Adds the adapters to the weights for good, rounding once.
    ///
    /// # Errors
    /// The weights are in tiles for the CPU, or are being trained: neither can take anything in.
    pub fn merge(&mut self) -> Result<()> {
        match &mut self.0 {
            _ if self.1.is_empty() => Ok(()),
            Weight::Plain { weight, .. } if !tracked(weight) => {
                *weight = lora::merged(&self.1, weight)?;
                self.1.clear();
                Ok(())
            }
            Weight::Plain { .. } => bail!("weights that are being trained take no adapter in"),
            Weight::Packed { .. } | Weight::Joint(_) => bail!(
                "weights in tiles for the CPU take no adapter in: leave it live, or merge it while the model is loaded"
            ),
        }
    }

    /// Width of the output.
    pub fn output_width(&self) -> usize {
        match &self.0 {
            Weight::Plain { weight, .. } => weight.dims()[0],
            Weight::Packed { weight, .. } => weight.dims().1,
            Weight::Joint(parts) => parts.iter().map(Self::output_width).sum(),
        }
    }

    /// Rows of the weight by index: an embedding that is the output head as well. From tiles they come as f32.
    ///
    /// # Shapes
    /// `index [n]` of u32, below the output width, to `[n, in]`
    pub fn rows(&self, index: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Weight::Plain { weight, .. } => weight.index_select(index, 0),
            Weight::Joint(_) => bail!("an embedding is one matrix"),
            Weight::Packed { weight, .. } => {
                let (_, n, k) = weight.dims();
                let index = index.to_vec1::<u32>()?;
                let mut rows = vec![0f32; index.len() * k];
                for (&i, row) in index.iter().zip(rows.chunks_exact_mut(k.max(1))) {
                    let i = i as usize;
                    if i >= n {
                        bail!("row {i} of a weight with {n} rows");
                    }
                    weight.row(0, i, row);
                }
                Tensor::from_vec(rows, (index.len(), k), &candle_core::Device::Cpu)
            }
        }
    }

    /// # Shapes
    /// `x [.., in]` with at least two dimensions to `[.., out]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.base(x)?;
        if self.1.is_empty() { Ok(y) } else { lora::add(&self.1, x, y, None) }
    }

    fn base(&self, x: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Weight::Plain { weight, bias } => linear(x, weight, bias.as_ref()),
            Weight::Packed { weight, bias } => {
                let rows = x.elem_count() / x.dims().last().copied().unwrap_or(1).max(1);
                let (weight, bias, offsets) = (weight.clone(), bias.clone(), Arc::from([0, rows]));
                x.contiguous()?.apply_op1_no_bwd(&PackedLinear { weight, bias, offsets })
            }
            Weight::Joint(parts) => {
                let outputs = parts.iter().map(|part| part.forward(x)).collect::<Result<Vec<_>>>()?;
                Tensor::cat(&outputs, D::Minus1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Isa, isa, with_isa};
    use candle_core::Device;

    #[test]
    fn packed_and_plain_have_the_same_bits() -> Result<()> {
        let p = Params::init(1, &Device::Cpu);
        let (weight, bias) = (p.tensor("w", [33, 20], Init::Normal(1.0))?, p.tensor("b", [33], Init::Normal(1.0))?);
        let x = p.tensor("x", [2, 3, 20], Init::Normal(1.0))?.detach();
        let plain = Linear::new(weight.detach(), Some(bias.detach()))?;
        let packed = plain.clone().pack()?;
        assert_eq!(plain.output_width(), packed.output_width());
        let values = |y: Tensor| y.flatten_all()?.to_vec1::<f32>();
        assert_eq!(plain.forward(&x)?.dims(), [2, 3, 33]);
        assert_eq!(values(plain.forward(&x)?)?, values(packed.forward(&x)?)?);
        assert!(Linear::new(weight.clone(), Some(weight)).is_err());
        Ok(())
    }

    #[test]
    fn narrow_rounds_what_meets_bf16_and_nothing_else() -> Result<()> {
        let p = Params::init(3, &Device::Cpu);
        let weight = p.tensor("w", [48, 37], Init::Normal(1.0))?.detach();
        let x = p.tensor("x", [19, 37], Init::Normal(1.0))?.detach();
        let rounded = x.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
        // Where the processor has products of pairs, whether or not they are its fastest.
        with_isa(Isa::Avx512Bf16, || -> Result<()> {
            for dtype in [DType::F32, DType::BF16] {
                let plain = Linear::new(weight.to_dtype(dtype)?, None)?.pack()?;
                let narrow = plain.clone().narrow();
                let pairs = dtype == DType::BF16 && isa() == Isa::Avx512Bf16;
                let expected = plain.forward(if pairs { &rounded } else { &x })?;
                let most = (narrow.forward(&x)? - &expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
                // Pairs are summed in another order.
                assert!(most <= if pairs { 2e-5 } else { 0.0 }, "{dtype:?}: {most}");
                if pairs {
                    let exact = (plain.forward(&x)? - expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
                    assert!(exact > 1e-3, "nothing was rounded: {exact}");
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    #[test]
    fn rows_come_back_out_of_the_tiles() -> Result<()> {
        let p = Params::init(2, &Device::Cpu);
        let index = Tensor::new(&[40u32, 0, 31, 32], &Device::Cpu)?;
        for width in [20, 21] {
            let weight = p.tensor(&format!("w{width}"), [41, width], Init::Normal(1.0))?.detach();
            for dtype in [DType::F32, DType::BF16] {
                let weight = weight.to_dtype(dtype)?;
                let rows = Linear::new(weight.clone(), None)?.pack()?.rows(&index)?;
                let expected = weight.index_select(&index, 0)?.to_dtype(DType::F32)?;
                assert_eq!(rows.to_vec2::<f32>()?, expected.to_vec2::<f32>()?);
            }
            assert!(Linear::new(weight, None)?.pack()?.rows(&Tensor::new(&[41u32], &Device::Cpu)?).is_err());
        }
        Ok(())
    }
}
