//! Loads the kernels and launches them on candle's device and stream.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, LaunchConfig, PushKernelArg, SyncOnDrop,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp1, DType, Device, Layout, Result, Shape, Storage, Tensor, bail,
};
use half::{bf16, f16};

use super::binaries::{File, file_of};
use super::launch::routing::Decision;
use super::launch::{Arg, Launch, Values};
use crate::routers::GroupLimit;
use crate::routes::{Lists, Plan};

/// Shared memory that every block gets unasked, less what kernels have of their own.
const UNASKED: u32 = 40 << 10;
/// What is asked for at least: kernels whose blocks need several amounts, all below this, then never take it from each other.
const LEAST: u32 = 48 << 10;

/// The modules that were loaded: by context, which each keeps alive so that its address stays its own, and file.
type Modules = Mutex<HashMap<(usize, File), Arc<CudaModule>>>;

fn module(device: &CudaDevice, file: File) -> Result<Arc<CudaModule>> {
    static MODULES: OnceLock<Modules> = OnceLock::new();
    let stream = device.cuda_stream();
    let context = stream.context();
    let mut modules = MODULES.get_or_init(Modules::default).lock().unwrap_or_else(PoisonError::into_inner);
    let key = (Arc::as_ptr(context) as usize, file);
    if let Some(module) = modules.get(&key) {
        return Ok(module.clone());
    }
    let capability = context.compute_capability().w()?;
    let image = match capability {
        (9, 0) => Ptx::from_binary(file.cubin().to_vec()),
        (major, _) if major >= 8 => Ptx::from_src(file.ptx()),
        (major, minor) => bail!(
            "the GPU has compute capability {major}.{minor}; its kernels need 8.0 (Ampere) or newer: run on the CPU, or on another GPU"
        ),
    };
    let module = context.load_module(image).map_err(|e| {
        candle_core::Error::msg(format!(
            "the GPU's driver does not take the kernels ({e}); they need version 580 or newer of it: update it, or run on the CPU"
        ))
    })?;
    modules.insert(key, module.clone());
    Ok(module)
}

fn function(device: &CudaDevice, launch: &Launch) -> Result<CudaFunction> {
    let function = module(device, file_of(&launch.kernel))?.load_function(&launch.kernel).w()?;
    if launch.shared > UNASKED {
        function.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, launch.shared.max(LEAST) as i32).w()?;
    }
    Ok(function)
}

/// # Safety
/// The values that the launch was made of are memory of this device that lives until its stream is past the launch, and what the kernel writes
/// is used by nobody else till then; indexes in that memory are as the launch's function asks.
unsafe fn start(device: &CudaDevice, launch: &Launch) -> Result<()> {
    let (function, stream) = (function(device, launch)?, device.cuda_stream());
    let mut builder = stream.launch_builder(&function);
    for arg in &launch.args {
        match arg {
            Arg::Address(address) => builder.arg(address),
            Arg::Word(word) => builder.arg(word),
        };
    }
    let [x, y, z] = launch.grid;
    let config =
        LaunchConfig { grid_dim: (x, y, z), block_dim: (launch.threads, 1, 1), shared_mem_bytes: launch.shared };
    // SAFETY: the caller's promise; kinds and number of the arguments are the kernel's: tests compare them with its PTX.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

fn of_slice<'a, T>(
    slice: &'a CudaSlice<T>,
    range: (usize, usize),
    dtype: DType,
    stream: &'a CudaStream,
) -> (Values, SyncOnDrop<'a>) {
    let (address, guard) = slice.device_ptr(stream);
    let first = address + (range.0 * size_of::<T>()) as u64;
    (Values { address: first, len: range.1 - range.0, dtype }, guard)
}

/// What a contiguous tensor holds. The guard tells the stream when its use is over.
fn read<'a>(storage: &'a CudaStorage, layout: &Layout, stream: &'a CudaStream) -> Result<(Values, SyncOnDrop<'a>)> {
    let Some(range) = layout.contiguous_offsets() else {
        bail!("a tensor of shape {:?} on the GPU is not contiguous", layout.shape());
    };
    let dtype = storage.dtype();
    Ok(match dtype {
        DType::F32 => of_slice(storage.as_cuda_slice::<f32>()?, range, dtype, stream),
        DType::BF16 => of_slice(storage.as_cuda_slice::<bf16>()?, range, dtype, stream),
        DType::F16 => of_slice(storage.as_cuda_slice::<f16>()?, range, dtype, stream),
        DType::U32 => of_slice(storage.as_cuda_slice::<u32>()?, range, dtype, stream),
        DType::U8 => of_slice(storage.as_cuda_slice::<u8>()?, range, dtype, stream),
        other => bail!("tensors of dtype {other:?} on the GPU have no kernel, expected f32, bf16 or f16"),
    })
}

fn on_gpu(storage: &Storage) -> Result<&CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => bail!("lists of routes are not on the GPU"),
    }
}

/// What contiguous tensors hold, and the guards of all.
fn read_all<'a>(
    of: &[(&'a CudaStorage, &Layout)],
    stream: &'a CudaStream,
) -> Result<(Vec<Values>, Vec<SyncOnDrop<'a>>)> {
    let all = of.iter().map(|(storage, layout)| read(storage, layout, stream)).collect::<Result<Vec<_>>>()?;
    Ok(all.into_iter().unzip())
}

/// Runs `launch`, which is given where the inputs, the lists and the whole output stand, and gives the output.
pub(super) fn run(
    inputs: &[(&CudaStorage, &Layout)],
    lists: &[&Tensor],
    (len, dtype): (usize, DType),
    launch: impl FnOnce(&[Values], &[Values], Values) -> Result<Launch>,
) -> Result<CudaStorage> {
    let launch = |inputs: &[Values], lists: &[Values], out| Ok(vec![launch(inputs, lists, out)?]);
    match dtype {
        DType::F32 => run_as::<f32>(inputs, lists, len, launch),
        DType::BF16 => run_as::<bf16>(inputs, lists, len, launch),
        DType::F16 => run_as::<f16>(inputs, lists, len, launch),
        other => bail!("tensors of dtype {other:?} on the GPU have no kernel, expected f32, bf16 or f16"),
    }
}

fn run_as<T: CudaDType + candle_core::WithDType + candle_core::cuda_backend::cudarc::driver::DeviceRepr>(
    inputs: &[(&CudaStorage, &Layout)],
    lists: &[&Tensor],
    len: usize,
    launches: impl FnOnce(&[Values], &[Values], Values) -> Result<Vec<Launch>>,
) -> Result<CudaStorage> {
    let Some((first, _)) = inputs.first() else { bail!("a kernel without inputs") };
    let device = first.device();
    let guards: Vec<_> = lists.iter().map(|list| list.storage_and_layout()).collect();
    let lists = guards.iter().map(|(storage, layout)| Ok((on_gpu(storage)?, *layout))).collect::<Result<Vec<_>>>()?;
    if inputs.iter().chain(&lists).any(|(storage, _)| !storage.device().same_device(device)) {
        bail!("tensors of one operation are on different GPUs");
    }
    // SAFETY: the kernels write all of it. No memory has length 0.
    let mut out = unsafe { device.alloc::<T>(len.max(1)) }?;
    if len > 0 {
        let stream = device.cuda_stream();
        let (inputs, _inputs) = read_all(inputs, &stream)?;
        let (lists, _lists) = read_all(&lists, &stream)?;
        let (address, _output) = out.device_ptr_mut(&stream);
        for launch in launches(&inputs, &lists, Values { address, len, dtype: T::DTYPE })? {
            // SAFETY: inputs and lists are borrowed, the output is this call's own, and the guards order other streams behind these launches. Lists
            // are of a plan, whose indexes are below the numbers of tokens and routes it was made for; launches check those against lengths.
            unsafe { start(device, &launch) }?;
        }
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

/// The lists of a [`Plan`] on a device: parts of one tensor of u32.
#[derive(Debug)]
pub(crate) struct DevicePlan {
    /// `[R]`
    pub token: Tensor,
    /// `[R]`
    pub by_token: Tensor,
    /// `[T + 1]`
    pub start: Tensor,
    /// `[E + 1]`
    pub offsets: Tensor,
    /// Where the device decided.
    decided: Option<Decided>,
}

/// What a plan that was made on the device has besides.
#[derive(Debug)]
struct Decided {
    choices: Tensor,
    choice: Tensor,
    /// All of the [`Decision`], of which the lists are parts.
    all: Tensor,
    decision: Decision,
}

/// From scores to sorted routes, without the host: the values of a [`Decision`].
struct Decide {
    decision: Decision,
    groups: Option<GroupLimit>,
    two: bool,
}

impl CustomOp1 for Decide {
    fn name(&self) -> &'static str {
        "moesaic-cuda-route"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("scores on the CPU met a kernel of the GPU")
    }

    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        let len = self.decision.len();
        let out = run_as::<u32>(&[(s, l)], &[], len, |scores, _, out| {
            self.decision.launches(scores[0], out, self.groups, self.two)
        })?;
        Ok((out, len.into()))
    }
}

impl DevicePlan {
    /// Each token to the `k` experts with the best of its `scores [T, E]` in f32; the lower index wins ties. Groups are rated by the sum of their two
    /// best if `two`, else by their best.
    pub fn decide(scores: &Tensor, k: usize, groups: Option<GroupLimit>, two: bool) -> Result<Self> {
        let (tokens, experts) = scores.dims2()?;
        let decision = Decision { tokens, experts, k };
        let all = scores.contiguous()?.apply_op1_no_bwd(&Decide { decision, groups, two })?;
        let [token, by_token, choice, choices, offsets, start, ..] =
            decision.parts().map(|(at, len)| all.narrow(0, at, len));
        let decided = Decided { choices: choices?.reshape((tokens, k))?, choice: choice?, all, decision };
        Ok(Self { token: token?, by_token: by_token?, start: start?, offsets: offsets?, decided: Some(decided) })
    }

    fn brought(lists: &Lists, device: &CudaDevice) -> Result<Self> {
        let bounds = |list: &[usize]| -> Result<Vec<u32>> {
            let too_many = |_| candle_core::Error::msg("more rows than one call takes on the GPU; split the batch");
            list.iter().map(|&v| u32::try_from(v).map_err(too_many)).collect()
        };
        let parts =
            [lists.token.clone(), lists.by_token.clone(), bounds(&lists.token_offsets)?, bounds(&lists.offsets)?];
        let all = parts.concat();
        let all = Tensor::from_vec(all, parts.iter().map(Vec::len).sum::<usize>(), &Device::Cuda(device.clone()))?;
        let mut next = 0;
        let [token, by_token, start, offsets] = parts.map(|part| {
            next += part.len();
            all.narrow(0, next - part.len(), part.len())
        });
        Ok(Self { token: token?, by_token: by_token?, start: start?, offsets: offsets?, decided: None })
    }

    fn decided(&self) -> Result<&Decided> {
        match &self.decided {
            Some(decided) => Ok(decided),
            None => bail!("a plan that was not made on the GPU has its lists on the host"),
        }
    }

    /// `[T, k]`: the experts of each token, best first.
    pub fn choices(&self) -> Result<&Tensor> {
        Ok(&self.decided()?.choices)
    }

    /// `[R]`: which of the `T k` choices a route is.
    pub fn choice(&self) -> Result<&Tensor> {
        Ok(&self.decided()?.choice)
    }

    pub fn tokens(&self) -> usize {
        self.start.elem_count() - 1
    }

    pub fn experts(&self) -> usize {
        self.offsets.elem_count() - 1
    }

    pub fn routes(&self) -> usize {
        self.token.elem_count()
    }

    fn is_on(&self, device: &CudaDevice) -> bool {
        matches!(self.token.device(), Device::Cuda(own) if own.same_device(device))
    }

    /// The lists of a plan that the device decided, on the host.
    ///
    /// # Errors
    /// The scores were not all finite.
    pub fn lists(&self) -> Result<Lists> {
        let Decided { all, decision, .. } = self.decided()?;
        // At once: each part by itself would bring all of them.
        let all = all.to_vec1::<u32>()?;
        let [token, by_token, choice, _, offsets, start, broken, _] =
            decision.parts().map(|(at, len)| &all[at..at + len]);
        if broken != [0] {
            bail!(
                "a router's scores on the GPU are not all finite: weights or input are broken, or a half-precision type overflowed"
            );
        }
        let bounds = |list: &[u32]| list.iter().map(|&v| v as usize).collect();
        let k = decision.k.max(1) as u32;
        Ok(Lists {
            token: token.to_vec(),
            offsets: bounds(offsets),
            slot: choice.iter().map(|choice| choice % k).collect(),
            by_token: by_token.to_vec(),
            token_offsets: bounds(start),
        })
    }
}

impl Plan {
    /// The lists on a device, brought there once.
    pub(super) fn on(&self, device: &CudaDevice) -> Result<Arc<DevicePlan>> {
        if let Some(plan) = self.device.get().filter(|plan| plan.is_on(device)) {
            return Ok(plan.clone());
        }
        let plan = Arc::new(DevicePlan::brought(self.lists()?, device)?);
        // Another device may have been first: then this one keeps its own.
        let kept = self.device.get_or_init(|| plan.clone());
        Ok(if kept.is_on(device) { kept.clone() } else { plan })
    }
}
