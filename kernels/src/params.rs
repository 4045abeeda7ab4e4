//! Where a model's tensors come from, and, in training, the variables made of them.
//!
//! A model has one constructor, `new(config, params)`. It asks for each tensor by its published name; behind the name
//! stands a checkpoint, or a seeded initialiser, or a checkpoint whose tensors become variables. A stack of experts is
//! asked for by the published names of its slices, and the same table writes it back under those names.

mod init;
mod stored;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use half::{bf16, f16};

use crate::checkpoint::{Checkpoint, Float};
use crate::lora::{LowRank, merged};
use crate::rng::Rng;

pub use init::Init;

/// A slice of a stack: one published tensor.
#[derive(Clone, Debug)]
struct Part {
    name: String,
    shape: Vec<usize>,
    /// First element in the stack.
    start: usize,
}

/// A variable and the published tensors that it holds, one after the other.
#[derive(Debug)]
struct Trained {
    var: Var,
    parts: Vec<Part>,
}

#[derive(Debug, Default)]
struct State {
    used: BTreeSet<String>,
    trained: Vec<Trained>,
    /// What is not trained beside what is, for saving the whole.
    kept: Vec<(Tensor, Vec<Part>)>,
}

/// Chooses published tensors by name.
struct Choice {
    chosen: Box<dyn Fn(&str) -> bool + Send + Sync>,
    /// Where the variables made of them belong, if not here.
    owner: Option<Params>,
}

impl std::fmt::Debug for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Choice")
    }
}

#[derive(Debug)]
struct Inner {
    checkpoint: Option<Checkpoint>,
    /// What is added to tensors of the checkpoint, by name.
    merging: BTreeMap<String, Vec<LowRank>>,
    /// Seed of tensors that no checkpoint gives; without it they are errors.
    seed: Option<u64>,
    mode: Mode,
    /// In training, the tensors that become variables; absent for all. Beside adapters, those that are trained whole.
    choice: Option<Choice>,
    dtype: DType,
    device: Device,
    state: Mutex<State>,
}

/// What tensors are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Infer,
    /// They are variables.
    Train,
    /// They stay as they are, but gradients pass through what is made of them.
    Frozen,
}

/// Gives a name of another layout.
#[derive(Clone)]
struct Rename(Arc<dyn Fn(&str) -> String + Send + Sync>);

impl std::fmt::Debug for Rename {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rename")
    }
}

/// A source of tensors under a name prefix. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Params {
    inner: Arc<Inner>,
    prefix: String,
    rename: Option<Rename>,
}

impl Params {
    /// Tensors of a checkpoint, converted to `dtype`, for inference.
    pub fn load(checkpoint: &Checkpoint, dtype: DType, device: &Device) -> Self {
        Self::make(Some(checkpoint.clone()), BTreeMap::new(), None, Mode::Infer, dtype, device)
    }

    /// [`load`](Self::load) with adapters added to the tensors of these names while they are read, in f32 and rounded once.
    /// [`unmerged`](Self::unmerged) tells afterwards which tensors were never asked for.
    pub fn merging(
        checkpoint: &Checkpoint,
        adapters: BTreeMap<String, Vec<LowRank>>,
        dtype: DType,
        device: &Device,
    ) -> Self {
        Self::make(Some(checkpoint.clone()), adapters, None, Mode::Infer, dtype, device)
    }

    /// Tensors of a checkpoint that stay as they are while adapters beside them are trained: gradients pass through.
    pub fn frozen(checkpoint: &Checkpoint, dtype: DType, device: &Device) -> Self {
        Self::make(Some(checkpoint.clone()), BTreeMap::new(), None, Mode::Frozen, dtype, device)
    }

    /// Variables in f32 with seeded initial values, for training from nothing. A tensor's values depend on the seed and
    /// its name only.
    pub fn init(seed: u64, device: &Device) -> Self {
        Self::make(None, BTreeMap::new(), Some(seed), Mode::Train, DType::F32, device)
    }

    /// Variables in f32 with a checkpoint's values, for going on with training.
    pub fn resume(checkpoint: &Checkpoint, device: &Device) -> Self {
        Self::make(Some(checkpoint.clone()), BTreeMap::new(), None, Mode::Train, DType::F32, device)
    }

    /// As [`resume`](Self::resume), but only tensors that `trained` chooses by their published names become variables; the
    /// others stay as they are, cost no gradient, and are saved with them ([`kept`](Self::kept)). A stack of experts is one
    /// variable: it is trained if any of its tensors is chosen.
    pub fn resume_some(
        checkpoint: &Checkpoint,
        device: &Device,
        trained: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        let choice = Some(Choice { chosen: Box::new(trained), owner: None });
        let (device, state) = (device.clone(), Mutex::default());
        let (checkpoint, merging, mode) = (Some(checkpoint.clone()), BTreeMap::new(), Mode::Train);
        let inner = Inner { checkpoint, merging, seed: None, mode, choice, dtype: DType::F32, device, state };
        Self { inner: Arc::new(inner), prefix: String::new(), rename: None }
    }

    /// As [`frozen`](Self::frozen), but tensors that `trained` chooses by their published names become variables in f32, which
    /// belong to `owner` and stand there under its prefix: what is trained whole beside adapters, and saved with them.
    pub fn frozen_but(
        checkpoint: &Checkpoint,
        dtype: DType,
        owner: &Self,
        trained: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        let choice = Some(Choice { chosen: Box::new(trained), owner: Some(owner.clone()) });
        let (device, state) = (owner.device().clone(), Mutex::default());
        let (checkpoint, merging, mode) = (Some(checkpoint.clone()), BTreeMap::new(), Mode::Frozen);
        let inner = Inner { checkpoint, merging, seed: None, mode, choice, dtype, device, state };
        Self { inner: Arc::new(inner), prefix: String::new(), rename: None }
    }

    fn make(
        checkpoint: Option<Checkpoint>,
        merging: BTreeMap<String, Vec<LowRank>>,
        seed: Option<u64>,
        mode: Mode,
        dtype: DType,
        device: &Device,
    ) -> Self {
        let (device, state) = (device.clone(), Mutex::default());
        let inner = Inner { checkpoint, merging, seed, mode, choice: None, dtype, device, state };
        Self { inner: Arc::new(inner), prefix: String::new(), rename: None }
    }

    /// The same source with `name` appended to the prefix; an empty name changes nothing.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: self.joined(&name.to_string()), ..self.clone() }
    }

    /// The same source, of which every tensor stands under another name: `rename` gets the whole name and returns that of
    /// the file, for layouts that differ from a model's usual one. Replaces an earlier one.
    pub fn renamed(&self, rename: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self { rename: Some(Rename(Arc::new(rename))), ..self.clone() }
    }

    /// The dtype that tensors come in.
    pub fn dtype(&self) -> DType {
        self.inner.dtype
    }

    /// The device that tensors come on.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// True if gradients pass through what is made of the tensors: as variables, or beside adapters that are trained.
    /// Weights then stay plain.
    pub fn trains(&self) -> bool {
        self.inner.mode != Mode::Infer
    }

    /// The number type of activations: f32 on the CPU, whose kernels compute in it whatever weights are, and elsewhere that of the weights.
    pub fn activations(&self) -> DType {
        if self.device().is_cpu() && !crate::composed::halves() { DType::F32 } else { self.dtype() }
    }

    /// True if weights are put in tiles for the CPU: they are there, nobody trains them, and fused operations are to take them.
    pub fn packs(&self) -> bool {
        !self.trains() && self.device().is_cpu() && !crate::composed::everywhere()
    }

    fn joined(&self, name: &str) -> String {
        match (self.prefix.as_str(), name) {
            ("", name) => name.to_string(),
            (prefix, "") => prefix.to_string(),
            (prefix, name) => format!("{prefix}.{name}"),
        }
    }

    /// The name in the file.
    fn full(&self, name: &str) -> String {
        let name = self.joined(name);
        self.rename.as_ref().map_or(name.clone(), |rename| (rename.0)(&name))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held leaves a list that is still valid.
        self.inner.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// One published tensor.
    pub fn tensor(&self, name: &str, shape: impl Into<Vec<usize>>, init: Init) -> Result<Tensor> {
        let shape = shape.into();
        self.stack(&shape, &[(name.to_string(), shape.clone())], init)
    }

    /// A stack `shape = [E, N, K]` of maps that is published with inputs as rows, `[E, K, N]`. In training the published tensor
    /// is the variable, and what is returned looks at it.
    pub fn input_major(&self, name: &str, shape: [usize; 3], init: Init) -> Result<Tensor> {
        let [e, n, k] = shape;
        let turned = self.tensor(name, [e, k, n], init)?.transpose(1, 2)?;
        if self.trains() { Ok(turned) } else { turned.contiguous() }
    }

    /// One published tensor in f32, whatever the dtype of the others: routers that must not be rounded.
    pub fn tensor_f32(&self, name: &str, shape: impl Into<Vec<usize>>, init: Init) -> Result<Tensor> {
        let shape = shape.into();
        self.stack_as(DType::F32, &shape, &[(name.to_string(), shape.clone())], init, false)
    }

    /// One published tensor in f32 that is no parameter, as centroids that are fixed before training: never a variable, saved
    /// with those that stay as they are ([`kept`](Self::kept)).
    pub fn buffer(&self, name: &str, shape: impl Into<Vec<usize>>, init: Init) -> Result<Tensor> {
        let shape = shape.into();
        self.stack_as(DType::F32, &shape, &[(name.to_string(), shape.clone())], init, true)
    }

    /// Published tensors laid one after the other into a tensor of `shape`: a stack of experts.
    pub fn stack(&self, shape: &[usize], parts: &[(String, Vec<usize>)], init: Init) -> Result<Tensor> {
        self.stack_as(self.inner.dtype, shape, parts, init, false)
    }

    fn stack_as(
        &self,
        dtype: DType,
        shape: &[usize],
        parts: &[(String, Vec<usize>)],
        init: Init,
        fixed: bool,
    ) -> Result<Tensor> {
        let count = |dims: &[usize]| dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let (Some(total), Some(sum)) =
            (count(shape), parts.iter().try_fold(0usize, |n, (_, dims)| n.checked_add(count(dims)?)))
        else {
            bail!("{}: a tensor of shape {shape:?} is too large", self.prefix);
        };
        if total != sum {
            bail!("{}: parts with {sum} values do not fill a stack of shape {shape:?}", self.prefix);
        }
        let mut start = 0;
        let mut parts: Vec<Part> = parts
            .iter()
            .map(|(name, shape)| {
                let part = Part { name: self.full(name), shape: shape.clone(), start };
                start += shape.iter().product::<usize>();
                part
            })
            .collect();
        let choice = self.inner.choice.as_ref();
        let chosen = choice.map(|choice| parts.iter().any(|part| (choice.chosen)(&part.name)));
        // Whose variable it becomes.
        let owner = match (self.inner.mode, chosen) {
            _ if fixed => None,
            (Mode::Train, None | Some(true)) => Some(None),
            (Mode::Frozen, Some(true)) => Some(choice.and_then(|choice| choice.owner.as_ref())),
            _ => None,
        };
        let dtype = if owner.is_some() { DType::F32 } else { dtype };
        let tensor = match dtype {
            DType::F32 => self.fill::<f32>(total, shape, &parts, init)?,
            DType::BF16 => self.fill::<bf16>(total, shape, &parts, init)?,
            DType::F16 => self.fill::<f16>(total, shape, &parts, init)?,
            other => bail!("weights cannot be loaded as {other:?}; choose f32, bf16 or f16"),
        };
        self.state().used.extend(parts.iter().map(|p| p.name.clone()));
        let Some(owner) = owner else {
            if self.inner.mode == Mode::Train {
                self.state().kept.push((tensor.clone(), parts));
            }
            return Ok(tensor);
        };
        let var = Var::from_tensor(&tensor)?;
        let tensor = var.as_tensor().clone();
        if let Some(owner) = owner {
            parts.iter_mut().for_each(|part| part.name = owner.full(&part.name));
        }
        owner.unwrap_or(self).state().trained.push(Trained { var, parts });
        Ok(tensor)
    }

    fn fill<T: Float>(&self, total: usize, shape: &[usize], parts: &[Part], init: Init) -> Result<Tensor> {
        // Shapes are checked against the file before the memory for them is taken.
        if let Some(checkpoint) = &self.inner.checkpoint {
            for part in parts {
                if checkpoint.info(&part.name).is_none_or(|info| info.shape != part.shape) {
                    checkpoint.read(&part.name, &part.shape, T::DTYPE, &Device::Cpu)?;
                }
            }
        }
        if Vec::<T>::new().try_reserve_exact(total).is_err() {
            let name = parts.first().map_or("", |part| &part.name);
            bail!(
                "{name}: no memory for a tensor of shape {shape:?}: make the model smaller, or take a smaller number type"
            );
        }
        let mut values = vec![T::zero(); total];
        for part in parts {
            let len = part.shape.iter().product::<usize>();
            let dst = &mut values[part.start..part.start + len];
            match (&self.inner.checkpoint, self.inner.seed) {
                (Some(checkpoint), _) if self.inner.merging.contains_key(&part.name) => {
                    let plain = checkpoint.read(&part.name, &part.shape, DType::F32, &Device::Cpu)?;
                    let sum = self.merge(part, &plain)?.flatten_all()?.to_vec1::<f32>()?;
                    dst.iter_mut().zip(sum).for_each(|(d, v)| *d = T::from_f64(f64::from(v)));
                }
                (Some(checkpoint), _) => checkpoint.read_into(&part.name, &part.shape, dst)?,
                (None, Some(seed)) => {
                    let width = part.shape.last().copied().unwrap_or(1);
                    let mut values = init.values(Rng::named(seed, &part.name), width);
                    dst.fill_with(|| T::from_f64(values()));
                }
                (None, None) => bail!("{}: no checkpoint and no seed to make it from", part.name),
            }
        }
        Tensor::from_vec(values, shape, &self.inner.device)
    }

    /// A tensor with what is to be merged into it.
    fn merge(&self, part: &Part, plain: &Tensor) -> Result<Tensor> {
        let adapters = self.inner.merging.get(&part.name).map_or(&[][..], Vec::as_slice);
        let (experts, out, inputs) = match *part.shape.as_slice() {
            [out, inputs] => (1, out, inputs),
            [experts, out, inputs] => (experts, out, inputs),
            _ => bail!("{}: an adapter for a tensor of shape {:?}", part.name, part.shape),
        };
        for adapter in adapters {
            let (e, o, _, i) = adapter.dims();
            if (e, o, i) != (experts, out, inputs) {
                bail!(
                    "{}: adapter {:?} changes {e} maps of {i} inputs to {o} outputs, the tensor has shape {:?}: it is of \
                     another model",
                    part.name,
                    adapter.adapter(),
                    part.shape
                );
            }
        }
        merged(adapters, plain)
    }

    /// Names given to [`merging`](Self::merging) that nobody asked for: their adapters are not in the model.
    pub fn unmerged(&self) -> Vec<String> {
        let state = self.state();
        self.inner.merging.keys().filter(|name| !state.used.contains(*name)).cloned().collect()
    }

    /// Tensors of the checkpoint that nobody asked for.
    pub fn unused(&self) -> Vec<String> {
        let state = self.state();
        self.inner.checkpoint.iter().flat_map(|c| c.unused(&state.used)).map(str::to_string).collect()
    }

    /// The variables, each under the name of its first published tensor, sorted by name.
    pub fn variables(&self) -> Vec<(String, Var)> {
        let state = self.state();
        let mut all: Vec<_> =
            state.trained.iter().filter_map(|t| Some((t.parts.first()?.name.clone(), t.var.clone()))).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Splits values shaped like the variables (themselves, their gradients, an optimiser's moments) into published
    /// tensors, sorted by name. `of` maps a variable to its values; those without are left out.
    pub fn published(&self, of: impl Fn(&Var) -> Option<Tensor>) -> Result<Vec<(String, Tensor)>> {
        let state = self.state();
        let mut all = Vec::new();
        for trained in &state.trained {
            let Some(values) = of(&trained.var) else { continue };
            cut(&values, &trained.parts, &mut all)?;
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }

    /// The published tensors that stay as they are beside variables ([`resume_some`](Self::resume_some),
    /// [`buffer`](Self::buffer)), sorted by name.
    pub fn kept(&self, dtype: DType) -> Result<Vec<(String, Tensor)>> {
        let state = self.state();
        let mut all = Vec::new();
        for (values, parts) in &state.kept {
            cut(&values.to_dtype(dtype)?, parts, &mut all)?;
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }
}

/// Published tensors out of the stack that they were laid into.
fn cut(values: &Tensor, parts: &[Part], all: &mut Vec<(String, Tensor)>) -> Result<()> {
    let flat = values.flatten_all()?;
    for part in parts {
        let len = part.shape.iter().product::<usize>();
        all.push((part.name.clone(), flat.narrow(0, part.start, len)?.reshape(part.shape.as_slice())?));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
