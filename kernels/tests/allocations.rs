//! The fused path allocates its output and nothing else that grows with the number of tokens.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Result, Tensor};
use moesaic_kernels::cpu::with_threads;
use moesaic_kernels::{Activation, ExpertBank, Routes};

/// Counts the bytes that are asked for.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_call_allocates_its_output_only() -> Result<()> {
    let (experts, hidden, inner, out) = (4, 64, 96, 48);
    for dtype in [DType::F32, DType::BF16] {
        let random = |shape: (usize, usize, usize)| Tensor::randn(0f32, 0.1, shape, &Device::Cpu)?.to_dtype(dtype);
        let bank =
            ExpertBank::gated(random((experts, 2 * inner, hidden))?, random((experts, out, inner))?, Activation::Gelu)?
                .with_biases(Some(random((1, experts, 2 * inner))?.squeeze(0)?), None)?
                .pack()?;
        for tokens in [1, 7, 640] {
            let choices: Vec<Vec<u32>> = (0..tokens as u32).map(|t| vec![t % 4, (t + 1) % 4]).collect();
            let scores = Tensor::zeros((tokens, experts), DType::F32, &Device::Cpu)?;
            let routes = Routes::new(experts, &choices, &Tensor::ones(2 * tokens, DType::F32, &Device::Cpu)?, scores)?;
            let x = random((1, tokens, hidden))?.squeeze(0)?;
            with_threads(1, || -> Result<()> {
                bank.forward(&x, &routes)?;
                let before = BYTES.load(Ordering::Relaxed);
                bank.forward(&x, &routes)?;
                let bytes = BYTES.load(Ordering::Relaxed) - before;
                let output = tokens * out * dtype.size_in_bytes();
                // The rest is the tensor around the storage: shape, strides, reference counts.
                assert!(
                    (output..output + 1024).contains(&bytes),
                    "{dtype:?}, {tokens} tokens: {bytes} bytes, output {output}"
                );
                Ok(())
            })?;
        }
    }
    Ok(())
}
