//! Layers of tensors on a device: a GPU, or what `tools/cuda_stand_in.py --emulate` puts in its place. Here the kernels are taken without being asked for
//! (`wanted`). Where there is no device the tests say so and pass, but not where the
//! environment has `MOESAIC_DEVICE`.

use candle_core::{DType, Device, Result, Tensor, Var};

use super::emulator::normal;
use crate::checkpoint::Checkpoint;
use crate::experts::Storage;
use crate::rng::Rng;
use crate::routers::{CentroidTopK, GroupLimit, SigmoidTopK, SoftmaxTopK, TopKSoftmax};
use crate::{Activation, BlockFormat, Blocks, ExpertBank, Init, MoeLayer, Params, RouteInput, Router};

fn device() -> Option<Device> {
    match Device::new_cuda_with_stream(0) {
        Ok(device) => Some(device),
        Err(e) => {
            assert!(std::env::var_os("MOESAIC_DEVICE").is_none(), "MOESAIC_DEVICE asks for a device: {e}");
            eprintln!("skipped: no CUDA device");
            None
        }
    }
}

fn random(rng: &mut Rng, shape: &[usize], size: f64) -> Result<Tensor> {
    let values = normal(rng, shape.iter().product()).into_iter().map(|v| v * size as f32);
    Tensor::from_vec(values.collect(), shape, &Device::Cpu)
}

/// Compares tensors of the device with those of the CPU, `most` beside the largest.
fn same(found: &Tensor, expected: &Tensor, most: f32, what: &str) -> Result<()> {
    let wide = |t: &Tensor| t.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>();
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (found, expected) = (wide(found)?, wide(expected)?);
    let size = expected.iter().fold(1e-3f32, |size, v| size.max(v.abs()));
    for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
        assert!((f - e).abs() <= most * size, "{what}: value {i} is {f} and not {e}");
    }
    Ok(())
}

/// A sparse layer's parameters: a router's weight, and of its experts `up`, `down` and their biases.
struct Weights {
    router: Tensor,
    up: Tensor,
    down: Tensor,
    biases: Option<(Tensor, Tensor)>,
}

impl Weights {
    fn new(rng: &mut Rng, [experts, width, inner]: [usize; 3], gated: bool, biased: bool) -> Result<Self> {
        let rows = if gated { 2 * inner } else { inner };
        let (of_width, of_inner) = ((width as f64).powf(-0.5), (inner as f64).powf(-0.5));
        let biases = biased.then(|| {
            Ok::<_, candle_core::Error>((random(rng, &[experts, rows], 0.3)?, random(rng, &[experts, width], 0.3)?))
        });
        Ok(Self {
            router: random(rng, &[experts, width], of_width)?,
            up: random(rng, &[experts, rows, width], of_width)?,
            down: random(rng, &[experts, width, inner], of_inner)?,
            biases: biases.transpose()?,
        })
    }

    fn all(&self) -> Vec<&Tensor> {
        [&self.router, &self.up, &self.down]
            .into_iter()
            .chain(self.biases.iter().flat_map(|(up, down)| [up, down]))
            .collect()
    }

    /// The layer with `of` of each parameter.
    fn layer(&self, k: usize, gated: bool, of: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<MoeLayer> {
        let (up, down) = (of(&self.up)?, of(&self.down)?);
        let bank = if gated {
            ExpertBank::gated(up, down, Activation::Silu)?
        } else {
            ExpertBank::mlp(up, down, Activation::GeluTanh)?
        };
        let (up, down) = match &self.biases {
            Some((up, down)) => (Some(of(up)?), Some(of(down)?)),
            None => (None, None),
        };
        let router = SoftmaxTopK { weight: of(&self.router)?, k, renormalise: true, scale: 1.5, groups: None };
        Ok(MoeLayer { router: Box::new(router), experts: bank.with_biases(up, down)?, shared: None })
    }
}

#[test]
fn layers_are_those_of_the_cpu() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let mut rng = Rng::new(1);
    for (tokens, sizes, k, gated, biased) in [
        (1, [8, 64, 48], 2, true, false),
        (37, [5, 40, 24], 3, true, true),
        (90, [4, 33, 7], 1, false, true),
        (12, [16, 32, 64], 4, false, false),
    ] {
        let weights = Weights::new(&mut rng, sizes, gated, biased)?;
        let x = random(&mut rng, &[tokens, sizes[1]], 1.0)?;
        for (dtype, most) in [(DType::F32, 1e-5), (DType::BF16, 3e-2), (DType::F16, 4e-3)] {
            // The same rounded numbers on both.
            let rounded = |t: &Tensor| t.to_dtype(dtype);
            let here = weights.layer(k, gated, &rounded)?;
            let there = weights.layer(k, gated, &|t| rounded(t)?.to_device(&device))?;
            let (x, what) = (rounded(&x)?, format!("{sizes:?} {dtype:?}"));
            let (expected, routes) = here.forward(&RouteInput::new(&x), "", None)?;
            // What it is given begins in the middle of a tensor.
            let more = Tensor::cat(&[&x.narrow(0, 0, 1)?, &x], 0)?.to_device(&device)?;
            let (found, decided) = there.forward(&RouteInput::new(&more.narrow(0, 1, tokens)?), "", None)?;
            assert_eq!(decided.choices()?, routes.choices()?, "{what}");
            assert_eq!(decided.offsets()?, routes.offsets()?, "{what}");
            same(decided.weight(), routes.weight(), 1e-5, &what)?;
            same(&found, &expected, most, &what)?;
            same(&there.experts.forward_stages(&more.narrow(0, 1, tokens)?, &decided)?, &expected, most, &what)?;
        }
    }
    Ok(())
}

#[test]
fn gradients_are_those_of_the_cpu() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let mut rng = Rng::new(2);
    for (tokens, sizes, k, gated) in [(29, [6, 24, 16], 2, true), (50, [3, 17, 9], 2, false)] {
        let weights = Weights::new(&mut rng, sizes, gated, true)?;
        let x = random(&mut rng, &[tokens, sizes[1]], 1.0)?;
        let of_loss = random(&mut rng, &[tokens, sizes[1]], 1.0)?;
        let run = |device: &Device| {
            let vars = weights.all().into_iter().chain([&x]).map(|t| Var::from_tensor(&t.to_device(device)?));
            let vars = vars.collect::<Result<Vec<_>>>()?;
            let place = |t: &Tensor| {
                let at = weights.all().iter().position(|own| own.id() == t.id());
                Ok(vars[at.expect("one of the weights")].as_tensor().clone())
            };
            let layer = weights.layer(k, gated, &place)?;
            let x = vars[vars.len() - 1].as_tensor();
            let (y, _) = layer.forward(&RouteInput::new(x), "", None)?;
            let grads = (y * of_loss.to_device(device)?)?.sum_all()?.backward()?;
            vars.iter()
                .map(|var| Ok(grads.get(var.as_tensor()).expect("a gradient").clone()))
                .collect::<Result<Vec<_>>>()
        };
        for (i, (found, expected)) in run(&device)?.iter().zip(&run(&Device::Cpu)?).enumerate() {
            same(found, expected, 2e-5, &format!("gradient {i} of {sizes:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn routers_decide_as_they_do_on_the_host() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let mut rng = Rng::new(3);
    let (tokens, experts, width) = (70, 16, 12);
    let x = random(&mut rng, &[tokens, width], 1.0)?;
    let weight = random(&mut rng, &[experts, width], 1.0)?;
    let bias = random(&mut rng, &[experts], 0.2)?;
    let mask = Tensor::from_iter((0..tokens).map(|t| f32::from(t % 3 != 0)), &Device::Cpu)?;
    let on = |device: &Device| -> Result<Vec<Box<dyn Router>>> {
        let (weight, bias) = (weight.to_device(device)?, bias.to_device(device)?);
        let groups = Some(GroupLimit { groups: 4, keep: 2 });
        Ok(vec![
            Box::new(SoftmaxTopK { weight: weight.clone(), k: 3, renormalise: false, scale: 1.0, groups }),
            Box::new(TopKSoftmax { weight: weight.clone(), k: 2 }),
            Box::new(SigmoidTopK {
                weight: weight.clone(),
                bias: Some(bias),
                k: 4,
                renormalise: true,
                scale: 2.5,
                groups,
            }),
            Box::new(CentroidTopK { centroids: weight, k: 2 }),
        ])
    };
    let (x_there, mask_there) = (x.to_device(&device)?, mask.to_device(&device)?);
    for (here, there) in on(&Device::Cpu)?.iter().zip(&on(&device)?) {
        for masked in [false, true] {
            let expected = here.route(&RouteInput::new(&x).with_mask(masked.then_some(&mask)))?;
            let found = there.route(&RouteInput::new(&x_there).with_mask(masked.then_some(&mask_there)))?;
            let what = format!("{here:?}");
            assert_eq!(found.choices()?, expected.choices()?, "{what}");
            assert_eq!(found.token()?.to_vec1::<u32>()?, expected.token()?.to_vec1::<u32>()?, "{what}");
            assert_eq!(found.slot()?.to_vec1::<u32>()?, expected.slot()?.to_vec1::<u32>()?, "{what}");
            same(found.weight(), expected.weight(), 1e-5, &what)?;
            same(found.scores(), expected.scores(), 1e-5, &what)?;
        }
    }
    // What is not finite comes to light when the host asks.
    let broken = (x_there * f64::NAN)?;
    let routes = TopKSoftmax { weight: weight.to_device(&device)?, k: 2 }.route(&RouteInput::new(&broken))?;
    assert!(routes.offsets().is_err_and(|e| e.to_string().contains("not all finite")));
    Ok(())
}

#[test]
fn weights_stay_in_the_blocks_they_are_stored_in() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let mut rng = Rng::new(5);
    let [experts, width, inner] = [3, 256, 512];
    for (format, most) in [(BlockFormat::Q8_0, 1e-5), (BlockFormat::Q4K, 1e-5), (BlockFormat::Q4_1, 1e-5)] {
        let weights = Weights::new(&mut rng, [experts, width, inner], true, true)?;
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("model.safetensors");
        let (mut tensors, mut marks) = (Vec::new(), Vec::new());
        for (name, weight) in [("up", &weights.up), ("down", &weights.down)] {
            let (tensor, mark) = Blocks::quantise(weight, format)?.to_safetensors(name)?;
            tensors.push((name.to_string(), tensor));
            marks.push(mark);
        }
        let marks: Vec<_> = marks.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        crate::checkpoint::save(&path, &tensors, &marks)?;
        let file = Checkpoint::open(&path)?;
        let bank = |device: &Device| {
            let params = Params::load(&file, DType::F32, device);
            let stack = |name: &str, shape: [usize; 3]| {
                params.storage(&shape, &[(name.to_string(), shape.to_vec())], Init::Zeros, name == "up")
            };
            let (up, down) = (stack("up", [experts, 2 * inner, width])?, stack("down", [experts, width, inner])?);
            let kept = matches!(up, Storage::Blocks(_));
            let (up_bias, down_bias) = weights.biases.as_ref().expect("biases");
            let bank = ExpertBank::gated(up, down, Activation::Silu)?;
            let bank = bank.with_biases(Some(up_bias.to_device(device)?), Some(down_bias.to_device(device)?))?;
            Ok::<_, candle_core::Error>((bank, kept))
        };
        let ((here, _), (there, kept)) = (bank(&Device::Cpu)?, bank(&device)?);
        assert_eq!(kept, format != BlockFormat::Q4_1, "{format:?}");
        let x = random(&mut rng, &[21, width], 1.0)?;
        let routes = |device: &Device| {
            let router = TopKSoftmax { weight: weights.router.to_device(device)?, k: 2 };
            router.route(&RouteInput::new(&x.to_device(device)?))
        };
        // In f32 the CPU's tiles are rounded otherwise.
        let plain = |w: &Tensor| Blocks::quantise(w, format)?.dequantise();
        let (up_bias, down_bias) = weights.biases.clone().expect("biases");
        let plain = ExpertBank::gated(plain(&weights.up)?, plain(&weights.down)?, Activation::Silu)?
            .with_biases(Some(up_bias), Some(down_bias))?;
        let (routes_here, routes_there) = (routes(&Device::Cpu)?, routes(&device)?);
        let expected = plain.forward(&x, &routes_here)?;
        same(&here.forward(&x, &routes_here)?, &expected, 2e-2, "the CPU's")?;
        let x = x.to_device(&device)?;
        same(&there.forward(&x, &routes_there)?, &expected, most, &format!("{format:?}"))?;
        same(&there.forward_stages(&x, &routes_there)?, &expected, most, &format!("{format:?} by stages"))?;
        let half = there.forward(&x.to_dtype(DType::BF16)?, &routes_there)?;
        same(&half, &expected, 3e-2, &format!("{format:?} in bf16"))?;
    }
    Ok(())
}

#[test]
fn weights_in_fp8_stay_so() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let mut rng = Rng::new(6);
    let (experts, width, inner) = (2, 256, 128);
    // Each expert's matrices by themselves, as they are published; bytes of FP8 of all kinds but NaN.
    let mut file = Vec::new();
    let mut header = serde_json::Map::new();
    let mut add = |name: String, dtype: &str, shape: [usize; 2], bytes: Vec<u8>| {
        let ends = [file.len(), file.len() + bytes.len()];
        header.insert(name, serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": ends }));
        file.extend(bytes);
    };
    let parts = |what: &str, shape: [usize; 2]| -> Vec<(String, Vec<usize>)> {
        (0..experts).map(|e| (format!("{e}.{what}"), shape.to_vec())).collect()
    };
    for (name, shape) in parts("up", [2 * inner, width]).into_iter().chain(parts("down", [width, inner])) {
        let (n, k) = (shape[0], shape[1]);
        let bytes = (0..n * k).map(|_| rng.below(127) as u8 | u8::from(rng.chance(0.5)) << 7).collect();
        let scales = (0..n / 128 * (k / 128)).flat_map(|_| ((0.0005 * (1.0 + rng.uniform())) as f32).to_le_bytes());
        add(format!("{name}_scale_inv"), "F32", [n / 128, k / 128], scales.collect());
        add(name, "F8_E4M3", [n, k], bytes);
    }
    let header = serde_json::Value::Object(header).to_string();
    let whole = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &file].concat();
    let file = Checkpoint::from_bytes("fp8", whole)?;
    let bank = |device: &Device| {
        let params = Params::load(&file, DType::F32, device);
        let up = params.storage(&[experts, 2 * inner, width], &parts("up", [2 * inner, width]), Init::Zeros, true)?;
        let down = params.storage(&[experts, width, inner], &parts("down", [width, inner]), Init::Zeros, false)?;
        let kept = matches!((&up, &down), (Storage::Blocks(_), Storage::Blocks(_)));
        assert!(params.unused().is_empty());
        Ok::<_, candle_core::Error>((ExpertBank::gated(up, down, Activation::Silu)?, kept))
    };
    let ((here, _), (there, kept)) = (bank(&Device::Cpu)?, bank(&device)?);
    assert!(kept);
    let (x, weight) = (random(&mut rng, &[9, width], 1.0)?, random(&mut rng, &[experts, width], 0.1)?);
    let routes = |device: &Device| {
        let router = TopKSoftmax { weight: weight.to_device(device)?, k: 1 };
        router.route(&RouteInput::new(&x.to_device(device)?))
    };
    let expected = here.forward(&x, &routes(&Device::Cpu)?)?;
    let x = x.to_device(&device)?;
    same(&there.forward(&x, &routes(&device)?)?, &expected, 1e-5, "f32")?;
    same(&there.forward(&x.to_dtype(DType::BF16)?, &routes(&device)?)?, &expected, 3e-2, "bf16")
}

#[test]
fn threads_share_a_device() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let mut rng = Rng::new(4);
    let weights = Weights::new(&mut rng, [4, 16, 8], true, false)?;
    let x = random(&mut rng, &[20, 16], 1.0)?;
    let expected = weights.layer(2, true, &|t| Ok(t.clone()))?.forward(&RouteInput::new(&x), "", None)?.0;
    let layer = weights.layer(2, true, &|t| t.to_device(&device))?;
    let x = x.to_device(&device)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| layer.forward(&RouteInput::new(&x), "", None).map(|(y, _)| y))).collect();
        threads.into_iter().try_for_each(|thread| same(&thread.join().expect("no panic")?, &expected, 1e-5, "threads"))
    })
}
