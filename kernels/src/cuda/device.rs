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
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, bail};
use half::{bf16, f16};

use super::binaries::{File, file_of};
use super::launch::{Arg, Launch, Values};
use crate::routes::Plan;

/// Shared memory that every block gets unasked, less what kernels have of their own.
const UNASKED: u32 = 40 << 10;

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
        function.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, launch.shared as i32).w()?;
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
        other => bail!("tensors of dtype {other:?} on the GPU have no kernel, expected f32, bf16 or f16"),
    })
}

/// Runs `launch`, which is given where the inputs and the whole output stand, and gives the output.
pub(super) fn run(
    inputs: &[(&CudaStorage, &Layout)],
    lists: &[&CudaSlice<u32>],
    (len, dtype): (usize, DType),
    launch: impl FnOnce(&[Values], &[Values], Values) -> Result<Launch>,
) -> Result<CudaStorage> {
    match dtype {
        DType::F32 => run_as::<f32>(inputs, lists, len, launch),
        DType::BF16 => run_as::<bf16>(inputs, lists, len, launch),
        DType::F16 => run_as::<f16>(inputs, lists, len, launch),
        other => bail!("tensors of dtype {other:?} on the GPU have no kernel, expected f32, bf16 or f16"),
    }
}

fn run_as<T: CudaDType + candle_core::WithDType + candle_core::cuda_backend::cudarc::driver::DeviceRepr>(
    inputs: &[(&CudaStorage, &Layout)],
    lists: &[&CudaSlice<u32>],
    len: usize,
    launch: impl FnOnce(&[Values], &[Values], Values) -> Result<Launch>,
) -> Result<CudaStorage> {
    let Some((first, _)) = inputs.first() else { bail!("a kernel without inputs") };
    let device = first.device();
    if inputs.iter().any(|(storage, _)| !storage.device().same_device(device)) {
        bail!("tensors of one operation are on different GPUs");
    }
    // SAFETY: the kernel writes all of it. No memory has length 0.
    let mut out = unsafe { device.alloc::<T>(len.max(1)) }?;
    if len > 0 {
        let stream = device.cuda_stream();
        let all = inputs.iter().map(|(storage, layout)| read(storage, layout, &stream)).collect::<Result<Vec<_>>>()?;
        let (values, _inputs): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        let all = lists.iter().map(|list| of_slice(*list, (0, list.len()), DType::U32, &stream));
        let (lists, _lists): (Vec<_>, Vec<_>) = all.unzip();
        let (address, _output) = out.device_ptr_mut(&stream);
        let launch = launch(&values, &lists, Values { address, len, dtype: T::DTYPE })?;
        // SAFETY: inputs and lists are borrowed, the output is this call's own, and the guards order other streams behind this launch. Lists are
        // of a plan, whose indexes are below the numbers of tokens and routes it was made for; launches check those against lengths.
        unsafe { start(device, &launch) }?;
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

/// The lists of a [`Plan`] on a device.
#[derive(Debug)]
pub(crate) struct DevicePlan {
    device: CudaDevice,
    /// `[R]`
    pub token: CudaSlice<u32>,
    /// `[E + 1]`
    pub offsets: CudaSlice<u32>,
    /// `[R]`
    pub by_token: CudaSlice<u32>,
    /// `[T + 1]`
    pub start: CudaSlice<u32>,
}

/// A list as the device has it.
pub(super) fn list(device: &CudaDevice, values: &[usize]) -> Result<CudaSlice<u32>> {
    let words: Vec<u32> = values
        .iter()
        .map(|&v| u32::try_from(v))
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| candle_core::Error::msg("more rows than one call takes on the GPU; split the batch"))?;
    device.clone_htod(&words)
}

impl Plan {
    /// The lists on a device, brought there once.
    pub(super) fn on(&self, device: &CudaDevice) -> Result<Arc<DevicePlan>> {
        if let Some(plan) = self.device.get().filter(|plan| plan.device.same_device(device)) {
            return Ok(plan.clone());
        }
        // An empty list would have no memory.
        let some = |list: &[u32]| device.clone_htod(if list.is_empty() { &[0][..] } else { list });
        let plan = Arc::new(DevicePlan {
            device: device.clone(),
            token: some(&self.token)?,
            offsets: list(device, &self.offsets)?,
            by_token: some(&self.by_token)?,
            start: list(device, &self.token_offsets)?,
        });
        // Another device may have been first: then this one keeps its own.
        let kept = self.device.get_or_init(|| plan.clone());
        Ok(if kept.device.same_device(device) { kept.clone() } else { plan })
    }
}
