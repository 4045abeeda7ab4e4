//! The sparse layer on the CPU: three published shapes, 1 to 4096 tokens, f32 and bf16, each beside the ceilings of the machine
//! measured in the same round. `run.py` starts it; alone it runs without the product by torch.
//!
//! A round is: the layer, a read of as many bytes of cold memory as the layer has weights to read, and (from `TORCH` tokens on)
//! one product by torch. Medians of rounds give the table at the end, criterion its own statistics of the layer.

use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use candle_core::utils::barrier_pool;
use candle_core::{DType, Device, Result, Tensor};
use criterion::{BenchmarkId, Criterion};
use moesaic_kernels::rng::Rng;
use moesaic_kernels::routers::SoftmaxTopK;
use moesaic_kernels::{Activation, ExpertBank, MoeLayer, RouteInput};

/// `(name, experts, k, hidden, inner)`: Time-MoE 50M, OLMoE 1B-7B, Qwen1.5-MoE A2.7B.
const SHAPES: [(&str, usize, usize, usize, usize); 3] =
    [("time-moe-50m", 8, 2, 384, 768), ("olmoe", 64, 8, 2048, 1024), ("qwen1.5-moe", 60, 4, 2048, 1408)];
const TOKENS: [usize; 5] = [1, 4, 16, 512, 4096];
/// Tokens from which arithmetic, not memory, is the limit.
const TORCH: usize = 512;
/// Bytes of the buffer that reads go through, far beyond any cache.
const BUFFER: usize = 1 << 30;

fn main() -> Result<()> {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let only = std::env::var("MOE_LAYER").unwrap_or_default();
    let mut torch = Torch::start();
    let mut memory = Memory::new();
    let mut table = Vec::new();
    for (name, experts, k, hidden, inner) in SHAPES {
        for dtype in [DType::F32, DType::BF16] {
            if !format!("{name} {}", dtype.as_str()).contains(&only) {
                continue;
            }
            let layer = layer(experts, k, hidden, inner, dtype)?;
            for tokens in TOKENS {
                let shape = (experts, k, hidden, inner);
                let row = measure(&mut criterion, name, shape, dtype, tokens, &layer, &mut memory, torch.as_mut())?;
                table.extend(row);
            }
        }
    }
    println!("\nceilings: f32 multiply-add in registers {:.0} GFLOP/s", peak());
    println!("threads: {}\n", barrier_pool().n_workers() + 1);
    println!(
        "| layer | dtype | tokens | ms | GFLOP/s | weights GB/s | read GB/s | of the read | torch product GFLOP/s | ratio |"
    );
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    table.iter().for_each(|row| println!("{row}"));
    criterion.final_summary();
    Ok(())
}

/// A layer with random weights, packed as models on the CPU hold it.
fn layer(experts: usize, k: usize, hidden: usize, inner: usize, dtype: DType) -> Result<MoeLayer> {
    let random = |shape: (usize, usize, usize), scale: f64| -> Result<Tensor> {
        let mut rng = Rng::new(shape.1 as u64);
        let values = (0..shape.0 * shape.1 * shape.2).map(|_| (scale * (rng.uniform() - 0.5)) as f32);
        let values = Tensor::from_iter(values, &Device::Cpu)?;
        values.reshape(shape)?.to_dtype(dtype)
    };
    let scale = |n: usize| 3.5 / (n as f64).sqrt();
    let gate_up = random((experts, 2 * inner, hidden), scale(hidden))?;
    let down = random((experts, hidden, inner), scale(inner))?;
    let weight = random((1, experts, hidden), scale(hidden))?.squeeze(0)?;
    Ok(MoeLayer {
        router: Box::new(SoftmaxTopK { weight, k, renormalise: false, scale: 1.0, groups: None }),
        experts: ExpertBank::gated(gate_up, down, Activation::Silu)?.pack()?,
        shared: None,
    })
}

#[allow(clippy::too_many_arguments)]
fn measure(
    criterion: &mut Criterion,
    name: &str,
    (experts, k, hidden, inner): (usize, usize, usize, usize),
    dtype: DType,
    tokens: usize,
    layer: &MoeLayer,
    memory: &mut Memory,
    mut torch: Option<&mut Torch>,
) -> Result<Option<String>> {
    // Other tokens in each call, so that other experts are read.
    let mut rng = Rng::new(tokens as u64);
    let inputs: Vec<Tensor> = (0..8)
        .map(|_| {
            let values: Vec<f32> = (0..tokens * hidden).map(|_| rng.normal() as f32).collect();
            Tensor::from_vec(values, (tokens, hidden), &Device::Cpu)?.to_dtype(dtype)
        })
        .collect::<Result<_>>()?;
    // Experts that some token goes to, hence weights to read.
    let used = inputs.iter().map(|x| {
        let (_, routes) = layer.forward(&RouteInput::new(x), "bench", None)?;
        Ok(routes.offsets()?.windows(2).filter(|w| w[0] < w[1]).count())
    });
    let used: usize = used.sum::<Result<usize>>()? / inputs.len();
    let bytes = used.min(experts) * 3 * inner * hidden * dtype.size_in_bytes();
    let work = 2.0 * (tokens * k * 3 * inner * hidden) as f64;
    let (mut ours, mut reads, mut products) = (Vec::new(), Vec::new(), Vec::new());
    let mut turn = 0;
    let mut group = criterion.benchmark_group(format!("{name}/{}", dtype.as_str()));
    group.bench_function(BenchmarkId::from_parameter(tokens), |b| {
        b.iter_custom(|iterations| {
            let mut total = Duration::ZERO;
            for _ in 0..iterations {
                turn += 1;
                let x = &inputs[turn % inputs.len()];
                let start = Instant::now();
                black_box(layer.forward(&RouteInput::new(x), "bench", None).expect("the layer runs"));
                let time = start.elapsed();
                total += time;
                ours.push(time.as_secs_f64());
                reads.push(memory.read(bytes));
                if let Some(torch) = torch.as_mut().filter(|_| tokens >= TORCH && products.len() < 20) {
                    products.extend(torch.product(tokens, hidden, hidden, dtype));
                    // Its threads spin for a moment after their work.
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            total
        })
    });
    group.finish();
    if ours.is_empty() {
        return Ok(None); // filtered out
    }
    let (ours, read) = (median(&mut ours), median(&mut reads));
    let rate = bytes as f64 / ours / 1e9;
    let product = (!products.is_empty()).then(|| median(&mut products));
    Ok(Some(format!(
        "| {name} | {} | {tokens} | {:.3} | {:.0} | {rate:.1} | {read:.1} | {:.0} % | {} | {} |",
        dtype.as_str(),
        ours * 1e3,
        work / ours / 1e9,
        100.0 * rate / read,
        product.map_or(String::new(), |p| format!("{p:.0}")),
        product.map_or(String::new(), |p| format!("{:.2}", work / ours / 1e9 / p)),
    )))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Cold memory to read.
struct Memory {
    buffer: Vec<u64>,
    at: usize,
}

impl Memory {
    fn new() -> Self {
        Self { buffer: (0..BUFFER as u64 / 8).collect(), at: 0 }
    }

    /// Reads `bytes` (at most the buffer) from where the last read ended, on all threads; GB/s.
    fn read(&mut self, bytes: usize) -> f64 {
        const PIECE: usize = 1 << 15; // 256 KiB
        let pieces = (bytes.min(BUFFER) / 8).div_ceil(PIECE).max(1);
        if self.at + pieces * PIECE > self.buffer.len() {
            self.at = 0;
        }
        let part = &self.buffer[self.at..self.at + pieces * PIECE];
        self.at += pieces * PIECE;
        let next = AtomicUsize::new(0);
        let start = Instant::now();
        barrier_pool().execute(|_| {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= pieces {
                    break;
                }
                black_box(sum(&part[i * PIECE..(i + 1) * PIECE]));
            }
        });
        (pieces * PIECE * 8) as f64 / start.elapsed().as_secs_f64() / 1e9
    }
}

/// Reads all values, with AVX2 where the processor has it.
fn sum(values: &[u64]) -> u64 {
    #[inline(always)]
    fn body(values: &[u64]) -> u64 {
        let mut sums = [0u64; 32];
        for chunk in values.chunks_exact(32) {
            sums.iter_mut().zip(chunk).for_each(|(s, v)| *s ^= v);
        }
        sums.iter().fold(0, |a, b| a ^ b)
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2(values: &[u64]) -> u64 {
            body(values)
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was just found.
            return unsafe { avx2(values) };
        }
    }
    body(values)
}

/// f32 multiply-adds per second from registers alone, on all threads, the best of five tries; GFLOP/s.
fn peak() -> f64 {
    const STEPS: usize = 1 << 22;
    fn portable() -> usize {
        let (a, b) = black_box((0.999f32, 0.002f32));
        let mut acc = [1.0f32; 64];
        for _ in 0..STEPS {
            acc.iter_mut().for_each(|acc| *acc = *acc * a + b);
        }
        black_box(acc);
        64 * STEPS
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2() -> usize {
        use std::arch::x86_64::*;
        // Unknown to the compiler, which would otherwise compute the sums itself.
        let (a, b) = black_box((_mm256_set1_ps(0.999), _mm256_set1_ps(0.002)));
        let mut acc = [_mm256_set1_ps(1.0); 12];
        for _ in 0..STEPS {
            for acc in &mut acc {
                *acc = _mm256_fmadd_ps(*acc, a, b);
            }
        }
        black_box(acc);
        12 * 8 * STEPS
    }
    let run = || {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: both features were just found.
            return unsafe { avx2() };
        }
        portable()
    };
    let once = || {
        let done = AtomicUsize::new(0);
        let start = Instant::now();
        barrier_pool().execute(|_| {
            done.fetch_add(run(), Ordering::Relaxed);
        });
        2.0 * done.into_inner() as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..5).map(|_| once()).fold(0.0, f64::max)
}

/// torch in a process of its own: `product M N K DTYPE` to GFLOP/s.
struct Torch {
    _child: Child,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
}

impl Torch {
    /// `TORCH_PYTHON` names an interpreter that has torch.
    fn start() -> Option<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/moe_layer/product.py");
        let mut child = Command::new(std::env::var_os("TORCH_PYTHON")?)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .inspect_err(|e| eprintln!("no product by torch: {e}"))
            .ok()?;
        let (ask, answer) = (child.stdin.take()?, BufReader::new(child.stdout.take()?));
        Some(Self { _child: child, ask, answer })
    }

    fn product(&mut self, m: usize, n: usize, k: usize, dtype: DType) -> Option<f64> {
        writeln!(self.ask, "{m} {n} {k} {}", dtype.as_str()).ok()?;
        self.ask.flush().ok()?;
        let mut line = String::new();
        self.answer.read_line(&mut line).ok()?;
        line.trim().parse().ok()
    }
}
