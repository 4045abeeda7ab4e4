//! CED beyond parity: names, adapters, lengths of clips, and configs and inputs that do not fit.

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use moesaic_encoders::speech::{Ced, CedConfig};
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_kernels::{Init, Params};

const CONFIG: &str = r#"{"embed_dim": 12, "depth": 2, "num_heads": 3, "mlp_ratio": 2, "patch_size": 4, "n_mels": 8, "target_length": 16}"#;

fn config() -> CedConfig {
    serde_json::from_str(CONFIG).expect("a config")
}

fn features(rows: usize, frames: usize) -> Result<Tensor> {
    let p = Params::init(5, &Device::Cpu);
    p.tensor("features", [rows, 8, frames], Init::Normal(10.0))?.detach() - 30.0
}

fn worst(a: &Tensor, b: &Tensor) -> Result<f32> {
    (a - b)?.abs()?.max_all()?.to_scalar()
}

/// A folder with the model that `params` made.
fn saved(dir: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    std::fs::write(dir.join("config.json"), CONFIG)?;
    save(&dir.join("model.safetensors"), tensors, &[])
}

#[test]
fn fused_and_split_names_are_one_model() -> Result<()> {
    let params = Params::init(1, &Device::Cpu);
    let trained = Ced::new(config(), &params)?;
    let x = features(2, 16)?;
    let expected = trained.forward(&x, None)?.embeds;
    let tensors = params.published(|var| Some(var.as_tensor().clone()))?;
    let (fused, split) = (tempfile::tempdir()?, tempfile::tempdir()?);
    saved(fused.path(), &tensors)?;
    let mut apart = Vec::new();
    for (name, tensor) in &tensors {
        match name.split_once(".qkv.") {
            Some((before, what)) => {
                for (i, map) in ["q_proj", "k_proj", "v_proj"].iter().enumerate() {
                    apart.push((format!("encoder.{before}.{map}.{what}"), tensor.narrow(0, 12 * i, 12)?.contiguous()?));
                }
            }
            None => apart.push((format!("encoder.{name}"), tensor.clone())),
        }
    }
    apart.push(("encoder.outputlayer.0.weight".to_string(), Tensor::zeros(3, DType::F32, &Device::Cpu)?));
    saved(split.path(), &apart)?;
    for dir in [fused.path(), split.path()] {
        let model = Ced::load(dir, DType::F32, &Device::Cpu)?;
        assert!(worst(&model.forward(&x, None)?.embeds, &expected)? < 1e-5);
    }
    apart.push(("encoder.blocks.2.norm1.weight".to_string(), Tensor::zeros(12, DType::F32, &Device::Cpu)?));
    saved(split.path(), &apart)?;
    let error = Ced::load(split.path(), DType::F32, &Device::Cpu).expect_err("a third layer").to_string();
    assert!(error.contains("blocks.2.norm1.weight"), "{error}");
    Ok(())
}

#[test]
fn adapters_change_queries_and_values() -> Result<()> {
    let (params, adapters) = (Params::init(1, &Device::Cpu), Params::init(2, &Device::Cpu));
    let mut model = Ced::new(config(), &params)?;
    let x = features(1, 16)?;
    let plain = model.forward(&x, None)?.embeds;
    assert!(model.attach_lora(&adapters, 0, 1.0, 0.0).is_err() && model.attach_lora(&adapters, 13, 1.0, 0.0).is_err());
    model.attach_lora(&adapters, 2, 4.0, 0.1)?;
    // The second maps start from zero.
    assert_eq!(worst(&model.forward(&x, None)?.embeds, &plain)?, 0.0);
    let grads = model.forward(&x, None)?.embeds.powf(3.0)?.sum_all()?.backward()?;
    let variables = adapters.variables();
    assert_eq!(variables.len(), 2 * 2 * 2);
    for (name, var) in &variables {
        let grad = grads.get(var).expect("a gradient").sqr()?.sum_all()?.to_scalar::<f32>()?;
        assert_eq!(grad > 0.0, name.contains("lora_B"), "{name}: {grad}");
        var.set(&(var.as_tensor() + 0.5)?)?;
    }
    assert!(worst(&model.forward(&x, None)?.embeds, &plain)? > 1e-3);
    Ok(())
}

#[test]
fn clips_of_all_lengths() -> Result<()> {
    let model = Ced::new(config(), &Params::init(1, &Device::Cpu))?;
    // Rows of patches: 2; columns of a chunk: 4. Several whole chunks lose the last.
    for (frames, tokens) in [(4, 2), (7, 2), (15, 6), (16, 8), (17, 16), (31, 16), (32, 8), (33, 24), (48, 16)] {
        let embeds = model.forward(&features(2, frames)?, None)?.embeds;
        assert_eq!(embeds.dims(), [2, tokens, 12], "{frames} frames");
        assert_eq!(model.config().tokens(frames), tokens, "{frames} frames");
    }
    // A row has the same bits alone and in a batch, and the first chunk does not know of the second.
    let x = features(2, 30)?;
    let both = model.forward(&x, None)?.embeds;
    let alone = model.forward(&x.narrow(0, 1, 1)?, None)?.embeds;
    assert_eq!(worst(&both.narrow(0, 1, 1)?, &alone)?, 0.0);
    let first = model.forward(&x.narrow(2, 0, 16)?, None)?.embeds;
    assert_eq!(worst(&both.narrow(1, 0, 8)?, &first)?, 0.0);
    let dropping = CedConfig { pad_last: false, ..config() };
    let dropping = Ced::new(dropping, &Params::init(1, &Device::Cpu))?;
    assert_eq!(dropping.forward(&x, None)?.embeds.dims(), [2, 8, 12]);
    for wrong in [features(1, 3)?, features(1, 60_002)?, x.narrow(1, 0, 7)?, x.get(0)?] {
        let error = model.forward(&wrong, None).expect_err("another shape").to_string();
        assert!(error.contains("[batch, 8, frames]"), "{error}");
    }
    Ok(())
}

#[test]
fn configs_are_checked_before_anything_is_made() {
    let p = Params::init(1, &Device::Cpu);
    type Spoil = fn(&mut CedConfig);
    let wrong: [(&str, Spoil); 11] = [
        ("embed_dim", |c| c.embed_dim = 0),
        ("embed_dim", |c| c.embed_dim = usize::MAX),
        ("depth", |c| c.depth = 1 << 40),
        ("heads", |c| c.num_heads = 5),
        ("patches of 9", |c| c.patch_size = 9),
        ("patch_size", |c| c.patch_size = 0),
        ("mlp_ratio", |c| c.mlp_ratio = f64::NAN),
        ("mlp_ratio", |c| c.mlp_ratio = -1.0),
        ("target_length", |c| c.target_length = 0),
        ("token", |c| c.pooling = "token".to_string()),
        ("hop_size", |c| c.hop_size = 100),
    ];
    for (words, spoil) in wrong {
        let mut config = config();
        spoil(&mut config);
        let error = Ced::new(config, &p).expect_err(words).to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    assert!(p.variables().is_empty());
}

#[test]
fn a_folder_of_another_model_says_so() -> Result<()> {
    let dir = tempfile::tempdir()?;
    assert!(Ced::load(dir.path(), DType::F32, &Device::Cpu).is_err());
    saved(dir.path(), &[("conv1.weight".to_string(), Tensor::zeros((2, 2), DType::F32, &Device::Cpu)?)])?;
    let error = Ced::load(dir.path(), DType::F32, &Device::Cpu).expect_err("no CED").to_string();
    assert!(error.contains("CED") && error.contains("patch_embed"), "{error}");
    let checkpoint = Checkpoint::open(dir.path())?;
    assert!(!config().named_as(&checkpoint, "").split);
    Ok(())
}
