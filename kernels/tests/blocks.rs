//! Experts and linear maps whose weights stay in blocks, against the oracle on the values that the blocks stand for.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor};
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_kernels::cpu::{Isa, with_isa, with_threads};
use moesaic_kernels::experts::naive;
use moesaic_kernels::rng::Rng;
use moesaic_kernels::{Activation, BlockFormat, Blocks, ExpertBank, Init, Linear, Packed, Params, Routes, Storage};

fn normal(rng: &mut Rng, shape: &[usize], std: f64) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| (std * rng.normal()) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A random weight in blocks; candle writes the formats that we only read.
fn blocks(rng: &mut Rng, format: BlockFormat, shape: &[usize]) -> Blocks {
    let weight = normal(rng, shape, (shape[shape.len() - 1] as f64).powf(-0.5));
    let theirs = match format {
        BlockFormat::Q5K => GgmlDType::Q5K,
        BlockFormat::Q6K => GgmlDType::Q6K,
        _ => return Blocks::quantise(&weight, format).unwrap(),
    };
    Blocks::new(format, shape.to_vec(), QTensor::quantize(&weight, theirs).unwrap().data().unwrap().to_vec()).unwrap()
}

/// 0 to `most` different experts for each token, so that some experts have none.
fn random_routes(rng: &mut Rng, tokens: usize, experts: usize, most: usize) -> Routes {
    let choices: Vec<Vec<u32>> = (0..tokens)
        .map(|_| {
            let mut all: Vec<u32> = (0..experts as u32).collect();
            (0..experts).for_each(|i| all.swap(i, i + rng.below(experts - i)));
            all.truncate(rng.below(most.min(experts) + 1));
            all
        })
        .collect();
    let total: usize = choices.iter().map(Vec::len).sum();
    let scores = Tensor::zeros((tokens, experts), DType::F32, &Device::Cpu).unwrap();
    Routes::new(experts, &choices, &normal(rng, &[total], 1.0), scores).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference over the largest value.
fn worst(got: &Tensor, want: &Tensor) -> f64 {
    let (got, want) = (values(got), values(want));
    let size = want.iter().fold(1e-9, |m: f64, v| m.max(v.abs()));
    got.iter().zip(&want).fold(0.0, |m: f64, (a, b)| if (a - b).is_nan() { f64::NAN } else { m.max((a - b).abs()) })
        / size
}

/// A bank in blocks and the same in plain tensors; inner and outer widths that are no multiples of a panel's where blocks allow.
fn banks(rng: &mut Rng, up: BlockFormat, down: Option<BlockFormat>, e: usize, gated: bool) -> Result<[ExpertBank; 2]> {
    let (h, inner, out) = (256, if down.is_some() { 256 } else { 40 }, 70);
    let ups = blocks(rng, up, &[e, if gated { 2 * inner } else { inner }, h]);
    let (downs, plain_down): (Storage, Tensor) = match down {
        Some(format) => {
            let blocks = blocks(rng, format, &[e, out, inner]);
            (Storage::Packed(Packed::from_blocks(&blocks, false)?), blocks.dequantise()?)
        }
        None => {
            let plain = normal(rng, &[e, out, inner], 0.1);
            (plain.clone().into(), plain)
        }
    };
    let packed = Storage::Packed(Packed::from_blocks(&ups, gated)?);
    let act = Activation::Silu;
    Ok(match gated {
        true => {
            [ExpertBank::gated(packed, downs, act)?.pack()?, ExpertBank::gated(ups.dequantise()?, plain_down, act)?]
        }
        false => [ExpertBank::mlp(packed, downs, act)?.pack()?, ExpertBank::mlp(ups.dequantise()?, plain_down, act)?],
    })
}

#[test]
fn banks_in_blocks_agree_with_the_oracle() -> Result<()> {
    let mut rng = Rng::new(1);
    for up in BlockFormat::ALL {
        for (down, gated, tokens) in [(Some(BlockFormat::Q8_0), true, 1), (Some(up), true, 37), (None, false, 9)] {
            let [bank, plain] = banks(&mut rng, up, down, 5, gated)?;
            let routes = random_routes(&mut rng, tokens, 5, 3);
            let x = normal(&mut rng, &[tokens, 256], 1.0);
            let want = naive(&plain, &x, &routes)?;
            for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16] {
                for got in with_isa(isa, || {
                    Ok::<_, candle_core::Error>([bank.forward(&x, &routes)?, bank.forward_stages(&x, &routes)?])
                })? {
                    // Scales of some formats are rounded to f16; rows to 16 bits.
                    assert!(worst(&got, &want) < 2e-3, "{up:?} {down:?} on {isa:?}: {}", worst(&got, &want));
                }
            }
            let half = bank.forward(&x.to_dtype(DType::BF16)?, &routes)?;
            assert!(half.dtype() == DType::BF16 && worst(&half, &want) < 0.03, "{up:?} bf16: {}", worst(&half, &want));
        }
    }
    Ok(())
}

#[test]
fn bits_do_not_depend_on_threads_or_neighbours() -> Result<()> {
    let mut rng = Rng::new(2);
    for format in BlockFormat::ALL {
        let [bank, _] = banks(&mut rng, format, Some(format), 4, true)?;
        let (tokens, x) = (45, normal(&mut rng, &[45, 256], 1.0));
        let choices: Vec<Vec<u32>> = (0..tokens as u32).map(|t| vec![t % 4, (t + 1) % 4]).collect();
        let weight = normal(&mut rng, &[tokens, 2], 1.0);
        let scores = |t: usize| Tensor::zeros((t, 4), DType::F32, &Device::Cpu);
        let routes = Routes::new(4, &choices, &weight.flatten_all()?, scores(tokens)?)?;
        let all = with_threads(1, || bank.forward(&x, &routes))?;
        assert_eq!(values(&all), values(&with_threads(2, || bank.forward(&x, &routes))?), "{format:?}");
        for row in [0, 17, 44] {
            let one = Routes::new(4, &choices[row..=row], &weight.narrow(0, row, 1)?.flatten_all()?, scores(1)?)?;
            let alone = bank.forward(&x.narrow(0, row, 1)?, &one)?;
            assert_eq!(values(&all.narrow(0, row, 1)?), values(&alone), "{format:?}, row {row}");
        }
    }
    Ok(())
}

#[test]
fn a_checkpoint_in_blocks_is_taken_as_it_is() -> Result<()> {
    let mut rng = Rng::new(3);
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("model.safetensors");
    let (mut tensors, mut marks, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for (name, format) in [("q", BlockFormat::Q4_1), ("k", BlockFormat::Q4_1), ("v", BlockFormat::Q8_0)] {
        let blocks = blocks(&mut rng, format, &[48, 64]);
        let name = format!("{name}.weight");
        let (tensor, mark) = blocks.to_safetensors(&name)?;
        tensors.push((name, tensor));
        marks.push(mark);
        plain.push(blocks.dequantise()?);
    }
    let marks: Vec<_> = marks.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    save(&path, &tensors, &marks)?;
    let params = Params::load(&Checkpoint::open(&path)?, DType::F32, &Device::Cpu);
    let x = normal(&mut rng, &[3, 64], 1.0);
    // Of one format, and of two: side by side then.
    for names in [&["q", "k"][..], &["q", "k", "v"], &["v"]] {
        let parts: Vec<_> = names.iter().map(|name| (*name, 48)).collect();
        let joint = Linear::load_joint(&params, &parts, 64, false, Init::Zeros)?;
        assert_eq!((joint.input_width(), joint.output_width()), (64, 48 * names.len()));
        let weights: Vec<&Tensor> = names.iter().map(|n| &plain["qkv".find(n).unwrap()]).collect();
        let want = x.matmul(&Tensor::cat(&weights, 0)?.t()?)?;
        assert!(worst(&joint.forward(&x)?, &want) < 1e-4, "{names:?}");
    }
    assert!(params.unused().is_empty());
    let v = Linear::load(&params, "v", (48, 64), false, Init::Zeros)?;
    let rows = v.rows(&Tensor::new(&[47u32, 0], &Device::Cpu)?)?;
    assert!(worst(&rows.get(0)?, &plain[2].get(47)?) < 1e-6 && worst(&rows.get(1)?, &plain[2].get(0)?) < 1e-6);
    Ok(())
}
