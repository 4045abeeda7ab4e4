//! The speech encoders beyond parity: batches, dtypes, names, and inputs that do not fit.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result, Tensor};
use moesaic_encoders::speech::{Hubert, MOST_SAMPLES, Wav2Vec2, WavLm, WaveConfig, WhisperConfig, WhisperEncoder};
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_kernels::{Init, Params};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

const WAV2VEC2: &str = "wav2vec2/large_lv60_masked";
const HUBERT: &str = "hubert/base_layout";
const WAVLM: &str = "wavlm/large_layout";
const WHISPER: &str = "whisper_encoder/mel128_heads3";

fn samples(rows: usize, n: usize) -> Result<Tensor> {
    Ok(Params::init(7, &Device::Cpu).tensor("samples", [rows, n], Init::Normal(1.0))?.detach())
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

fn worst(a: &Tensor, b: &Tensor) -> Result<f32> {
    (a - b)?.abs()?.max_all()?.to_scalar()
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_a_batch() -> Result<()> {
    let wavlm = WavLm::load(&fixture(WAVLM), DType::F32, &Device::Cpu)?;
    let hubert = Hubert::load(&fixture(HUBERT), DType::F32, &Device::Cpu)?;
    let wav2vec2 = Wav2Vec2::load(&fixture(WAV2VEC2), DType::F32, &Device::Cpu)?;
    let all = |x: &Tensor| -> Result<Vec<_>> {
        Ok(vec![wavlm.forward(x, None, None)?, hubert.forward(x, None, None)?, wav2vec2.forward(x, None, None)?])
    };
    let x = samples(2, 6000)?;
    let (alone, batch) = (all(&x.narrow(0, 1, 1)?)?, all(&x)?);
    for (alone, batch) in alone.iter().zip(&batch) {
        assert!(values(&alone.embeds.get(0)?)? == values(&batch.embeds.get(1)?)?);
        assert!(batch.mask.is_none());
    }
    Ok(())
}

#[test]
fn padding_is_not_heard() -> Result<()> {
    // The stem of this layout norms frames, not time, so that what comes after a clip changes nothing before it.
    let model = WavLm::load(&fixture(WAVLM), DType::F32, &Device::Cpu)?;
    let real = 4000;
    let x = samples(1, 8000)?;
    let one = model.forward(&x, Some(&[real]), None)?;
    let other = Tensor::cat(&[x.narrow(1, 0, real)?, (x.narrow(1, real, 8000 - real)? * 100.0)?], 1)?;
    let two = model.forward(&other, Some(&[real]), None)?;
    let short = model.forward(&x.narrow(1, 0, real)?, None, None)?;
    let frames = model.config().frames(real);
    assert_eq!(short.embeds.dim(1)?, frames);
    let mask = one.mask.as_ref().expect("a mask").flatten_all()?.to_vec1::<u32>()?;
    assert_eq!(mask.iter().sum::<u32>() as usize, frames);
    assert_eq!(values(&one.embeds.narrow(1, 0, frames)?)?, values(&two.embeds.narrow(1, 0, frames)?)?);
    assert!(worst(&one.embeds.narrow(1, 0, frames)?, &short.embeds)? < 1e-5);
    Ok(())
}

#[test]
fn half_precision_weights_come_close() -> Result<()> {
    let load = |dtype| WhisperEncoder::load(&fixture(WHISPER), dtype, &Device::Cpu);
    let features = Params::init(3, &Device::Cpu).tensor("mel", [1, 128, 150], Init::Normal(0.5))?.detach();
    let full = load(DType::F32)?.forward(&features, None)?.embeds;
    for dtype in [DType::BF16, DType::F16] {
        let half = load(dtype)?.forward(&features, None)?.embeds;
        assert_eq!(half.dtype(), DType::F32);
        let error = worst(&full, &half)?;
        assert!(error > 0.0 && error < 0.1, "{dtype:?}: {error}");
    }
    Ok(())
}

/// A copy of a fixture with its tensors under other names or of other values.
fn altered(name: &str, alter: impl Fn(&str, Tensor) -> Vec<(String, Tensor)>) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    std::fs::copy(fixture(name).join("config.json"), dir.path().join("config.json"))?;
    let checkpoint = Checkpoint::open(&fixture(name))?;
    let mut tensors = Vec::new();
    for name in checkpoint.names() {
        tensors.extend(alter(name, checkpoint.read_any(name)?));
    }
    save(&dir.path().join("model.safetensors"), &tensors, &[("format", "pt")])?;
    Ok(dir)
}

#[test]
fn positions_load_under_all_published_names() -> Result<()> {
    let x = samples(1, 5000)?;
    let plain = Hubert::load(&fixture(HUBERT), DType::F32, &Device::Cpu)?.forward(&x, None, None)?.embeds;
    let conv = "encoder.pos_conv_embed.conv";
    let renamed = altered(HUBERT, |name, tensor| {
        let name = name.replace("conv.weight_g", "conv.parametrizations.weight.original0");
        vec![(format!("hubert.{}", name.replace("conv.weight_v", "conv.parametrizations.weight.original1")), tensor)]
    })?;
    let checkpoint = Checkpoint::open(&fixture(HUBERT))?;
    let (g, v) = (checkpoint.read_any(&format!("{conv}.weight_g"))?, checkpoint.read_any(&format!("{conv}.weight_v"))?);
    let norm = v.sqr()?.sum_keepdim((0, 1))?.sqrt()?;
    let weight = v.broadcast_mul(&(g / norm)?)?;
    let folded = altered(HUBERT, |name, tensor| match name.strip_prefix(conv) {
        Some(".weight_g") => vec![(format!("{conv}.weight"), weight.clone())],
        Some(".weight_v") => Vec::new(),
        _ => vec![(name.to_string(), tensor)],
    })?;
    for dir in [renamed, folded] {
        let again = Hubert::load(dir.path(), DType::F32, &Device::Cpu)?.forward(&x, None, None)?.embeds;
        assert!(worst(&plain, &again)? < 1e-5);
    }
    Ok(())
}

#[test]
fn checkpoints_that_do_not_fit_say_what_is_wrong() -> Result<()> {
    let cpu = &Device::Cpu;
    let error = |dir: &tempfile::TempDir| match WavLm::load(dir.path(), DType::F32, cpu) {
        Ok(_) => String::new(),
        Err(e) => e.to_string(),
    };
    let keep = |name: &str, tensor: Tensor| vec![(name.to_string(), tensor)];
    let lost = altered(WAVLM, |name, t| if name.contains("rel_attn_embed") { Vec::new() } else { keep(name, t) })?;
    assert!(error(&lost).contains("encoder.layers.0.attention.rel_attn_embed.weight"), "{}", error(&lost));
    let surplus = altered(WAVLM, |name, t| [keep(name, t.clone()), keep(&format!("{name}.more"), t)].concat())?;
    assert!(error(&surplus).contains("do not belong"), "{}", error(&surplus));
    // Parts of pre-training are left alone.
    let extra = altered(WAVLM, |name, t| [keep(name, t.clone()), keep(&format!("quantizer.{name}"), t)].concat())?;
    assert_eq!(error(&extra), "");
    // Another model's folder.
    let whisper = WhisperEncoder::load(&fixture(WHISPER), DType::F32, cpu);
    assert!(whisper.is_ok());
    let text = Wav2Vec2::load(&fixture(WHISPER), DType::F32, cpu).expect_err("another model").to_string();
    assert!(text.contains("config.json"), "{text}");
    Ok(())
}

#[test]
fn configs_that_make_no_sense_are_refused() {
    let text = std::fs::read_to_string(fixture(WAVLM).join("config.json")).expect("a config");
    let base: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    for (key, value) in [
        ("hidden_size", 0.into()),
        ("hidden_size", 33.into()),
        ("num_hidden_layers", 1_000_000.into()),
        ("conv_dim", serde_json::json!([])),
        ("conv_kernel", serde_json::json!([10, 3])),
        ("conv_stride", serde_json::json!([0, 2, 2, 2, 2, 2, 2])),
        ("num_conv_pos_embedding_groups", 0.into()),
        ("layer_norm_eps", serde_json::json!(-1.0)),
        ("hidden_act", "swoosh".into()),
        ("feat_extract_norm", "batch".into()),
        ("add_adapter", true.into()),
        ("conv_pos_batch_norm", true.into()),
    ] {
        let mut config = base.clone();
        config[key] = value;
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("config.json"), config.to_string()).expect("a file");
        assert!(WaveConfig::load(dir.path()).is_err(), "{key}");
    }
    let text = std::fs::read_to_string(fixture(WHISPER).join("config.json")).expect("a config");
    for (from, to) in
        [("\"d_model\": 48", "\"d_model\": 47"), ("\"gelu\"", "\"swoosh\""), ("\"num_mel_bins\": 128", "\"n\": 1")]
    {
        assert!(text.contains(from));
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("config.json"), text.replace(from, to)).expect("a file");
        assert!(WhisperConfig::load(dir.path()).is_err(), "{to}");
    }
}

#[test]
fn inputs_that_do_not_fit_say_what_does() -> Result<()> {
    let model = Hubert::load(&fixture(HUBERT), DType::F32, &Device::Cpu)?;
    assert_eq!(model.config().shortest(), 400);
    assert_eq!(model.forward(&samples(1, 400)?, None, None)?.embeds.dim(1)?, 1);
    let zeros = |n: usize| Tensor::zeros((1, n), DType::F32, &Device::Cpu);
    // 0.01 s, and more than ten minutes.
    for n in [0, 160, 399, MOST_SAMPLES + 1] {
        let error = model.forward(&zeros(n)?, None, None).expect_err("too short or too long").to_string();
        assert!(error.contains("400"), "{error}");
    }
    assert!(model.forward(&samples(1, 4000)?, Some(&[4001]), None).is_err());
    assert!(model.forward(&samples(1, 4000)?, Some(&[1, 2]), None).is_err());
    // A row of nothing but padding, and silence.
    let silent = model.forward(&samples(2, 4000)?, Some(&[4000, 0]), None)?.embeds;
    assert!(values(&silent)?.iter().all(|v| v.is_finite()));
    assert!(values(&model.forward(&zeros(4000)?, None, None)?.embeds)?.iter().all(|v| v.is_finite()));
    assert!(model.ctc_logits(&model.forward(&zeros(4000)?, None, None)?).is_err(), "it has no head");

    let whisper = WhisperEncoder::load(&fixture(WHISPER), DType::F32, &Device::Cpu)?;
    let error = whisper.forward(&Tensor::zeros((1, 80, 150), DType::F32, &Device::Cpu)?, None).expect_err("80 bands");
    assert!(error.to_string().contains("with_window(128, 24000)"), "{error}");
    Ok(())
}

#[test]
fn training_from_nothing_starts() -> Result<()> {
    let params = Params::init(11, &Device::Cpu);
    let model = WavLm::new(WaveConfig::load(&fixture(WAVLM))?, &params)?;
    let loss = model.forward(&samples(1, 4000)?, None, None)?.embeds.sqr()?.mean_all()?;
    let grads = loss.backward()?;
    let reached = params.variables().iter().filter(|(_, var)| grads.get(var).is_some()).count();
    assert_eq!(reached, params.variables().len());
    Ok(())
}
