//! Our side of `run.py`, and candle's: a sparse layer on the first GPU that answers commands on standard input with one line of JSON each.
//!
//! * `copy BYTES`: GB/s of a copy on the device, bytes read and written
//! * `product N`: TFLOP/s of a product of bf16 matrices `[N, N]`
//! * `weights E H I`: gated experts of bf16, and a router
//! * `tokens T K FILE`: so many tokens, and their experts `[T, K]` as u32 in a file
//! * `run WHAT`: seconds of the layer on given routes (`experts`), of routing (`route`), of both with the router's own routes (`layer`), of the layer
//!   with its gradients (`train`), or of candle's `moe_gemm` (`candle`)

use std::hint::black_box;
use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{D, DType, Device, Tensor, Var};
use moesaic_kernels::routers::SoftmaxTopK;
use moesaic_kernels::{Activation, ExpertBank, MoeLayer, RouteInput, Router, Routes};

/// Seconds that a measurement takes about, and calls that it has at most.
const SECONDS: f64 = 0.3;
const CALLS: usize = 200;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    if arguments != ["serve"] {
        println!("run benches/gpu/run.py: it starts all sides");
        return Ok(());
    }
    let device = Device::new_cuda_with_stream(0).context("no GPU answers")?;
    let mut side = Side { device, weights: None, tokens: None };
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            ["copy", bytes] => format!("{{\"gb_s\": {}}}", side.copy(bytes.parse()?)?),
            ["product", n] => format!("{{\"tflop_s\": {}}}", side.product(n.parse()?)?),
            ["weights", e, h, i] => {
                side.tokens = None;
                side.weights = None; // two at once may be too many
                side.weights = Some(Weights::new(&side.device, [e.parse()?, h.parse()?, i.parse()?])?);
                "{}".into()
            }
            ["tokens", t, k, file] => {
                let weights = side.weights.as_ref().context("weights come first")?;
                side.tokens = Some(Tokens::new(weights, t.parse()?, k.parse()?, &std::fs::read(file)?)?);
                "{}".into()
            }
            ["run", what] => match side.run(what) {
                Ok(seconds) => format!("{{\"seconds\": {seconds}}}"),
                // A peer that does not take a shape must not end the table.
                Err(error) => serde_json::json!({ "error": format!("{error:#}") }).to_string(),
            },
            _ => bail!("unknown command {line:?}"),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

struct Side {
    device: Device,
    weights: Option<Weights>,
    tokens: Option<Tokens>,
}

struct Weights {
    router: Tensor,
    gate_up: Tensor,
    down: Tensor,
}

impl Weights {
    fn new(device: &Device, [experts, width, inner]: [usize; 3]) -> Result<Self> {
        // An even number of values: cuRAND makes no other.
        let random = |rows: usize, columns: usize| -> Result<Tensor> {
            let size = (3.0 / columns as f64).sqrt() as f32;
            Ok(Tensor::rand(-size, size, (1, rows, columns), device)?.to_dtype(DType::BF16)?)
        };
        let stack = |rows, columns| -> Result<Tensor> {
            let each = (0..experts).map(|_| random(rows, columns)).collect::<Result<Vec<_>>>()?;
            Ok(Tensor::cat(&each, 0)?)
        };
        let router = random(experts, width)?.squeeze(0)?;
        Ok(Self { router, gate_up: stack(2 * inner, width)?, down: stack(width, inner)? })
    }

    fn bank(&self) -> Result<ExpertBank> {
        Ok(ExpertBank::gated(self.gate_up.clone(), self.down.clone(), Activation::Silu)?)
    }
}

struct Tokens {
    x: Tensor,
    k: usize,
    routes: Routes,
    /// What candle's kernel takes: experts in order, which choice each is, and its weight.
    sorted: [Tensor; 3],
}

impl Tokens {
    fn new(weights: &Weights, tokens: usize, k: usize, file: &[u8]) -> Result<Self> {
        let (experts, width) = weights.router.dims2()?;
        let device = weights.router.device();
        let all: Vec<u32> = file.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        ensure!(all.len() == tokens * k, "{} choices for {tokens} tokens and {k} experts each", all.len());
        let choices: Vec<Vec<u32>> = all.chunks_exact(k).map(<[u32]>::to_vec).collect();
        let weight = Tensor::full(1.0 / k as f32, tokens * k, device)?;
        let scores = Tensor::zeros((tokens, experts), DType::F32, device)?;
        let routes = Routes::new(experts, &choices, &weight, scores)?;
        let mut order: Vec<u32> = (0..all.len() as u32).collect();
        order.sort_by_key(|&i| all[i as usize]);
        let ids: Vec<u32> = order.iter().map(|&i| all[i as usize]).collect();
        let list = |values: Vec<u32>| Tensor::from_vec(values, tokens * k, device);
        let x = Tensor::rand(-1f32, 1.0, (tokens, width), device)?.to_dtype(DType::BF16)?;
        Ok(Self { x, k, routes, sorted: [list(ids)?, list(order)?, weight] })
    }
}

impl Side {
    /// Seconds of one call: the median of three series, each long enough for a clock.
    fn time<T>(&self, mut call: impl FnMut() -> Result<T>) -> Result<f64> {
        let mut series = |calls: usize| -> Result<f64> {
            self.device.synchronize()?;
            let start = Instant::now();
            for _ in 0..calls {
                black_box(call()?);
            }
            self.device.synchronize()?;
            Ok(start.elapsed().as_secs_f64() / calls as f64)
        };
        series(2)?;
        let calls = ((SECONDS / series(2)?.max(1e-9)) as usize).clamp(3, CALLS);
        let mut all = [series(calls)?, series(calls)?, series(calls)?];
        all.sort_by(f64::total_cmp);
        Ok(all[1])
    }

    fn copy(&self, bytes: usize) -> Result<f64> {
        let from = Tensor::zeros(bytes / 4, DType::F32, &self.device)?;
        let seconds = self.time(|| Ok(from.copy()?))?;
        Ok(2.0 * bytes as f64 / seconds / 1e9)
    }

    fn product(&self, n: usize) -> Result<f64> {
        let random = || Ok::<_, anyhow::Error>(Tensor::rand(-1f32, 1.0, (n, n), &self.device)?.to_dtype(DType::BF16)?);
        let (a, b) = (random()?, random()?);
        let seconds = self.time(|| Ok(a.matmul(&b)?))?;
        Ok(2.0 * (n as f64).powi(3) / seconds / 1e12)
    }

    fn run(&self, what: &str) -> Result<f64> {
        let weights = self.weights.as_ref().context("weights come first")?;
        let Tokens { x, k, routes, sorted } = self.tokens.as_ref().context("tokens come first")?;
        let router = SoftmaxTopK { weight: weights.router.clone(), k: *k, renormalise: true, scale: 1.0, groups: None };
        let input = RouteInput::new(x);
        match what {
            "experts" => {
                let bank = weights.bank()?;
                self.time(|| Ok(bank.forward(x, routes)?))
            }
            "route" => self.time(|| Ok(router.route(&input)?)),
            "layer" => {
                let layer = MoeLayer { router: Box::new(router), experts: weights.bank()?, shared: None };
                self.time(|| Ok(layer.forward(&input, "bench", None)?))
            }
            "train" => {
                let (gate_up, down) = (Var::from_tensor(&weights.gate_up)?, Var::from_tensor(&weights.down)?);
                let x = Var::from_tensor(x)?;
                let bank = ExpertBank::gated(gate_up.as_tensor().clone(), down.as_tensor().clone(), Activation::Silu)?;
                self.time(|| {
                    let y = bank.forward(&x, routes)?;
                    // The gradient of a sum of all values.
                    Ok(y.backward()?)
                })
            }
            "candle" => self.time(|| candles(weights, x, *k, sorted)),
            _ => bail!("unknown: {what}"),
        }
    }
}

/// The layer as candle-transformers' `FusedMoe` computes it, on routes that are sorted already.
fn candles(weights: &Weights, x: &Tensor, k: usize, [experts, choice, weight]: &[Tensor; 3]) -> Result<Tensor> {
    use candle_nn::moe::moe_gemm;
    let (tokens, width) = x.dims2()?;
    let prefill = tokens > 1;
    let h = moe_gemm(x, &weights.gate_up, &None, choice, experts, k, prefill)?; // (T k, 2 I)
    let inner = h.dim(D::Minus1)? / 2;
    let h = (h.narrow(D::Minus1, 0, inner)?.contiguous()?.silu()? * h.narrow(D::Minus1, inner, inner)?)?;
    let y = moe_gemm(&h, &weights.down, &Some(weight.clone()), choice, experts, k, prefill)?; // (T k, H)
    Ok(y.reshape((tokens, k, width))?.sum(1)?) // (T, H)
}
