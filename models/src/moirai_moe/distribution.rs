//! What the model predicts for a batch of tokens: a mixture for each cell, in the units of the data.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};
use moesaic_kernels::cpu::chunks;
use moesaic_kernels::rng::Rng;

use super::config::Component;
use super::mixture::Mixture;

/// The predicted distribution of the patch after each of `n` tokens, `p` cells each: `loc + scale * z`, with `z` from the cell's
/// mixture.
#[derive(Clone, Debug)]
pub struct Distribution {
    /// What the projections gave, `[n, j, p]`: logits of the weights, then the parameters of the components.
    raw: Tensor,
    components: Arc<[Component]>,
    /// Of each token.
    loc: Vec<f32>,
    scale: Vec<f32>,
}

/// One cell's distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    mixture: Mixture,
    loc: f64,
    scale: f64,
}

impl Cell {
    /// The mean, in the units of the data; infinite where a component's is beyond f64.
    pub fn mean(&self) -> f64 {
        self.loc + self.scale * self.mixture.mean()
    }

    /// The variance.
    pub fn variance(&self) -> f64 {
        self.scale * self.scale * self.mixture.variance()
    }

    /// The logarithm of the density at `y`.
    pub fn ln_density(&self, y: f64) -> f64 {
        self.mixture.ln_density((y - self.loc) / self.scale) - self.scale.ln()
    }

    /// The probability of values up to `y`.
    pub fn cdf(&self, y: f64) -> f64 {
        self.mixture.cdf((y - self.loc) / self.scale)
    }

    /// The smallest value that at least a share `q` of the distribution does not exceed.
    pub fn quantile(&self, q: f64) -> f64 {
        self.loc + self.scale * self.mixture.quantile(q)
    }

    /// A random value.
    pub fn sample(&self, rng: &mut Rng) -> f64 {
        self.loc + self.scale * self.mixture.sample(rng)
    }
}

impl Distribution {
    /// # Shapes
    /// `raw [n, j, p]` in f32; `loc` and `scale` of `n` tokens
    pub(super) fn new(raw: Tensor, components: Arc<[Component]>, loc: Vec<f32>, scale: Vec<f32>) -> Result<Self> {
        let (n, j, _) = raw.dims3()?;
        let wanted = components.iter().map(|c| 1 + c.parameters().len()).sum::<usize>();
        if j != wanted || loc.len() != n || scale.len() != n {
            bail!("a distribution of {n} tokens with {j} parameters a cell, expected {wanted}, and one scale each");
        }
        Ok(Self { raw, components, loc, scale })
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.loc.len()
    }

    /// Cells of a token, P.
    pub fn patch(&self) -> usize {
        self.raw.dims()[2]
    }

    /// Location of each token's series: what its cells are scaled around.
    pub fn loc(&self) -> &[f32] {
        &self.loc
    }

    /// Scale of each token's series.
    pub fn scale(&self) -> &[f32] {
        &self.scale
    }

    /// Mixtures of all cells, `[n * p]`.
    fn mixtures(&self) -> Result<Vec<Mixture>> {
        let (n, j, p) = self.raw.dims3()?;
        let raw = self.raw.detach().flatten_all()?.to_vec1::<f32>()?;
        (0..n * p).map(|at| Mixture::new(&self.components, |i| raw[(at / p * j + i) * p + at % p])).collect()
    }

    /// The distributions of the first `cells` cells of a token, those of its patch.
    pub fn cells(&self, token: usize, cells: usize) -> Result<Vec<Cell>> {
        let (n, _, p) = self.raw.dims3()?;
        if token >= n || cells > p {
            bail!("{cells} cells of token {token}, of {n} tokens of {p} cells");
        }
        let raw = self.raw.detach().narrow(0, token, 1)?.squeeze(0)?.to_vec2::<f32>()?; // (j, p)
        let (loc, scale) = (f64::from(self.loc[token]), f64::from(self.scale[token]));
        (0..cells).map(|c| Ok(Cell { mixture: Mixture::new(&self.components, |j| raw[j][c])?, loc, scale })).collect()
    }

    /// The parameters in scaled space, by the names of the checkpoint: `weights_logits [n, p, k]` (raw), and
    /// `components.{i}.{name} [n, p]` after their domain maps.
    pub fn parameters(&self) -> Result<Vec<(String, Tensor)>> {
        let (n, _, p) = self.raw.dims3()?;
        let logits = self.raw.narrow(1, 0, self.components.len())?.transpose(1, 2)?.contiguous()?; // (n, p, k)
        let mixtures = self.mixtures()?;
        let mut all = vec![("weights_logits".to_string(), logits)];
        for (i, component) in self.components.iter().enumerate() {
            for (j, name) in component.parameters().iter().enumerate() {
                let values: Vec<f32> = mixtures.iter().map(|m| m.parts()[i].parameters()[j] as f32).collect();
                all.push((format!("components.{i}.{name}"), Tensor::from_vec(values, (n, p), &Device::Cpu)?));
            }
        }
        Ok(all)
    }

    /// `of(mixture, loc, scale)` of every cell, `[n, p]` in f32.
    fn every(&self, of: impl Fn(&Mixture, f64, f64) -> f64) -> Result<Tensor> {
        let (n, p) = (self.tokens(), self.patch());
        let affine = |at: usize| (f64::from(self.loc[at / p]), f64::from(self.scale[at / p]));
        let values = self.mixtures()?.into_iter().enumerate().map(|(at, mixture)| {
            let (loc, scale) = affine(at);
            of(&mixture, loc, scale) as f32
        });
        Tensor::from_vec(values.collect::<Vec<_>>(), (n, p), &Device::Cpu)
    }

    /// The mean of every cell, in the units of the data. Forward only.
    ///
    /// # Shapes
    /// to `[n, p]`
    pub fn mean(&self) -> Result<Tensor> {
        self.every(|mixture, loc, scale| loc + scale * mixture.mean())
    }

    /// The variance of every cell, in the units of the data squared. Forward only.
    ///
    /// # Shapes
    /// to `[n, p]`
    pub fn variance(&self) -> Result<Tensor> {
        self.every(|mixture, _, scale| scale * scale * mixture.variance())
    }

    /// The logarithm of the density at `values`, in the units of the data, with gradients for the parameters.
    ///
    /// # Shapes
    /// `values [n * p]` to `[n, p]`
    pub fn log_prob(&self, values: &[f32]) -> Result<Tensor> {
        let (n, p) = (self.tokens(), self.patch());
        if values.len() != n * p {
            bail!("{} values for {n} tokens of {p} cells", values.len());
        }
        let z = values.iter().enumerate().map(|(at, &y)| {
            let (loc, scale) = (f64::from(self.loc[at / p]), f64::from(self.scale[at / p]));
            (f64::from(y) - loc) / scale
        });
        let op = LogDensity {
            z: z.collect(),
            ln_scale: self.scale.iter().map(|&s| f64::from(s).ln()).collect(),
            components: self.components.clone(),
        };
        // In f64, which the CPU computes of tensors elsewhere as well.
        self.raw.to_device(&Device::Cpu)?.contiguous()?.apply_op1(op)?.to_device(self.raw.device())
    }
}

/// The logarithm of the mixture's density minus that of the scale, `[n, j, p]` to `[n, p]`.
struct LogDensity {
    z: Vec<f64>,
    ln_scale: Vec<f64>,
    components: Arc<[Component]>,
}

impl CustomOp1 for LogDensity {
    fn name(&self) -> &'static str {
        "moesaic-mixture-log-density"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, j, p) = layout.shape().dims3()?;
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("mixture: the parameters must be contiguous");
        };
        let raw = &storage.as_slice::<f32>()?[start..end];
        // Broken parameters give NaN here, which the error below turns into words.
        let mut out = vec![f32::NAN; n * p];
        chunks(&mut out, p, n > 1, |t, out| {
            for (c, out) in out.iter_mut().enumerate() {
                if let Ok(mixture) = Mixture::new(&self.components, |i| raw[(t * j + i) * p + c]) {
                    *out = (mixture.ln_density(self.z[t * p + c]) - self.ln_scale[t]) as f32;
                }
            }
        });
        match out.iter().position(|v| v.is_nan()) {
            Some(at) => bail!("mixture: the density of token {} is not a number: weights or input are broken", at / p),
            None => Ok((CpuStorage::F32(out), (n, p).into())),
        }
    }

    fn bwd(&self, raw: &Tensor, _out: &Tensor, dout: &Tensor) -> Result<Option<Tensor>> {
        let (_, j, p) = raw.dims3()?;
        let values = raw.flatten_all()?.to_vec1::<f32>()?;
        let douts = dout.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut grads = vec![0f32; values.len()];
        chunks(&mut grads, j * p, true, |t, grads| {
            for c in 0..p {
                let dout = f64::from(douts[t * p + c]);
                if dout == 0.0 {
                    continue;
                }
                if let Ok(mixture) = Mixture::new(&self.components, |i| values[(t * j + i) * p + c]) {
                    mixture.slopes(self.z[t * p + c], |i, slope| grads[i * p + c] = (dout * slope) as f32);
                }
            }
        });
        Ok(Some(Tensor::from_vec(grads, raw.shape(), raw.device())?))
    }
}
