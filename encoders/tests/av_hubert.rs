//! AV-HuBERT beyond parity: batches, long clips, padding, adapters, and inputs that do not fit.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result, Tensor};
use moesaic_encoders::speech::{AvHubert, AvHubertConfig};
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_kernels::{Init, Modality, Params, Probe};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/av_hubert/padded_batch")
}

fn model() -> Result<AvHubert> {
    AvHubert::load(&fixture(), DType::F32, &Device::Cpu)
}

fn normal(name: &str, shape: &[usize]) -> Result<Tensor> {
    Ok(Params::init(3, &Device::Cpu).tensor(name, shape, Init::Normal(1.0))?.detach())
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

fn worst(a: &Tensor, b: &Tensor) -> Result<f32> {
    (a - b)?.abs()?.max_all()?.to_scalar()
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_a_batch() -> Result<()> {
    let model = model()?;
    let (video, audio) = (normal("video", &[2, 1, 5, 88, 88])?, normal("audio", &[2, 104, 5])?);
    for (v, a) in [(true, true), (true, false), (false, true)] {
        let run = |video: &Tensor, audio: &Tensor| {
            model.forward(Some(video).filter(|_| v), Some(audio).filter(|_| a), None, None)
        };
        let batch = run(&video, &audio)?;
        let alone = run(&video.narrow(0, 1, 1)?, &audio.narrow(0, 1, 1)?)?;
        assert_eq!(values(&alone.embeds.get(0)?)?, values(&batch.embeds.get(1)?)?);
        assert_eq!((batch.modality, batch.mask.is_none()), (if v { Modality::Video } else { Modality::Audio }, true));
    }
    Ok(())
}

#[test]
fn frames_see_two_frames_around_them_in_long_clips_too() -> Result<()> {
    let (model, video) = (model()?, normal("video", &[1, 1, 40, 32, 32])?);
    let features = |video: &Tensor| -> Result<Tensor> {
        let probe = Probe::new();
        model.forward(Some(video), None, None, Some(&probe))?;
        let (stem, resnet) = (probe.tensors()["frontend3d"].clone(), probe.tensors()["resnet"].clone());
        assert_eq!((stem.dims()[2], resnet.dims()[2]), (video.dims()[2], video.dims()[2]));
        resnet.transpose(1, 2)?.contiguous()
    };
    let long = features(&video)?;
    for (first, count) in [(0, 20), (9, 24), (25, 15)] {
        let short = features(&video.narrow(2, first, count)?)?;
        // Beside a cut, frames see zeros where the long clip has frames.
        let (from, to) = (if first == 0 { 0 } else { 2 }, if first + count == 40 { count } else { count - 2 });
        let of = |x: &Tensor, first: usize| values(&x.narrow(1, first + from, to - from)?);
        assert_eq!(of(&short, 0)?, of(&long, first)?);
        assert_ne!(values(&short)?, values(&long.narrow(1, first, count)?)?);
    }
    Ok(())
}

#[test]
fn padding_is_neither_heard_nor_seen() -> Result<()> {
    let (model, audio) = (model()?, normal("audio", &[2, 104, 9])?);
    let one = model.forward(None, Some(&audio), Some(&[9, 6]), None)?;
    let mask = one.mask.as_ref().expect("a mask").to_vec2::<u32>()?;
    assert_eq!(mask.iter().map(|row| row.iter().sum::<u32>()).collect::<Vec<_>>(), [9, 6]);
    let rest = (audio.narrow(2, 6, 3)? * 50.0)?;
    let other = Tensor::cat(&[&audio.narrow(2, 0, 6)?, &rest], 2)?;
    let two = model.forward(None, Some(&other), Some(&[9, 6]), None)?;
    let short = model.forward(None, Some(&audio.narrow(0, 1, 1)?.narrow(2, 0, 6)?), None, None)?;
    let real = |x: &Tensor| x.get(1)?.narrow(0, 0, 6);
    assert_eq!(values(&real(&one.embeds)?)?, values(&real(&two.embeds)?)?);
    assert!(worst(&real(&one.embeds)?, &short.embeds.get(0)?)? < 1e-5);
    assert_ne!(values(&one.embeds.get(0)?)?, values(&two.embeds.get(0)?)?);
    Ok(())
}

#[test]
fn what_was_trained_is_what_is_saved() -> Result<()> {
    let config = serde_json::json!({"encoder_layers": 1, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 32,
        "encoder_attention_heads": 2, "layer_norm_first": true, "conv_pos": 4, "conv_pos_groups": 2, "resnet_input_pool": 2,
        "resnet_frontend_channels": 4, "resnet_planes": [4, 6, 6, 8]});
    let config = AvHubertConfig::from_json(&config)?;
    let params = Params::init(3, &Device::Cpu);
    let model = AvHubert::new(config.clone(), &params)?;
    let (video, audio) = (normal("video", &[1, 1, 5, 88, 88])?, normal("audio", &[1, 104, 5])?);
    let both = |model: &AvHubert| -> Result<Tensor> {
        Tensor::cat(
            &[
                model.forward(Some(&video), None, None, None)?.embeds,
                model.forward(None, Some(&audio), None, None)?.embeds,
            ],
            0,
        )
    };
    let before = both(&model)?;
    // An optimiser sets variables; nothing of the model may be a copy of what they were.
    for (name, var) in params.variables() {
        let step = Params::init(4, &Device::Cpu).tensor(&name, var.dims(), Init::Normal(0.05))?.detach();
        var.set(&var.add(&step.abs()?)?)?;
    }
    let after = both(&model)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("model.safetensors");
    save(&file, &params.published(|var| Some(var.as_tensor().clone()))?, &[])?;
    let loaded = AvHubert::from_checkpoint(config, &Checkpoint::open(&file)?, DType::F32, &Device::Cpu)?;
    assert!(worst(&before, &after)? > 0.1);
    assert!(worst(&both(&loaded)?, &after)? < 1e-4, "{}", worst(&both(&loaded)?, &after)?);
    Ok(())
}

#[test]
fn adapters_of_llama_avsr_start_at_nothing_and_are_trained_alone() -> Result<()> {
    let (checkpoint, config) = (Checkpoint::open(&fixture())?, AvHubertConfig::load(&fixture())?);
    let frozen = Params::frozen(&checkpoint, DType::F32, &Device::Cpu);
    let adapters = Params::init(1, &Device::Cpu);
    let mut model = AvHubert::new(config, &frozen)?;
    let audio = normal("audio", &[1, 104, 6])?;
    let before = model.forward(None, Some(&audio), None, None)?.embeds;
    model.attach_lora(&adapters, 4, 2.0)?;
    let after = model.forward(None, Some(&audio), None, None)?.embeds;
    assert_eq!(values(&before)?, values(&after)?);
    let grads = after.powf(3.0)?.sum_all()?.backward()?;
    assert_eq!(adapters.variables().len(), 4 * model.config().encoder_layers);
    for (name, var) in adapters.variables() {
        let sum = grads.get(&var).expect(&name).sqr()?.sum_all()?.to_scalar::<f32>()?;
        // The second map sees what the first one makes, which is nothing yet.
        assert_eq!(sum > 0.0, name.contains("lora_down"), "{name}");
    }
    assert!(frozen.variables().is_empty());

    // In a checkpoint of Llama-AVSR they stand beside the weights.
    let dir = tempfile::tempdir()?;
    let mut all: Vec<(String, Tensor)> = Vec::new();
    for name in checkpoint.names() {
        all.push((format!("video_encoder.{name}"), checkpoint.read_any(name)?));
    }
    for (name, var) in adapters.variables() {
        all.push((format!("video_encoder.{name}"), normal(&name, var.dims())?));
    }
    save(&dir.path().join("model.safetensors"), &all, &[])?;
    std::fs::copy(fixture().join("config.json"), dir.path().join("config.json"))?;
    let adapted = AvHubert::load(dir.path(), DType::F32, &Device::Cpu)?;
    let adapted = adapted.forward(None, Some(&audio), None, None)?.embeds;
    assert!(worst(&adapted, &before)? > 1e-2);
    // One that does not fit is refused.
    all.retain(|(name, _)| !name.ends_with("layers.1.self_attn.lora_up_V.weight"));
    save(&dir.path().join("model.safetensors"), &all, &[])?;
    let error = AvHubert::load(dir.path(), DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("lora_up_V"), "{error}");
    Ok(())
}

#[test]
fn half_precision_weights_come_close() -> Result<()> {
    let (video, audio) = (normal("video", &[1, 1, 3, 88, 88])?, normal("audio", &[1, 104, 3])?);
    let full = model()?.forward(Some(&video), Some(&audio), None, None)?.embeds;
    let half = AvHubert::load(&fixture(), DType::BF16, &Device::Cpu)?;
    let half = half.forward(Some(&video), Some(&audio), None, None)?.embeds;
    let error = worst(&full, &half)?;
    assert!(half.dtype() == DType::F32 && error > 0.0 && error < 0.1, "{error}");
    Ok(())
}

#[test]
fn inputs_that_do_not_fit_are_refused() -> Result<()> {
    let model = model()?;
    let (video, audio) = (normal("video", &[1, 1, 4, 88, 88])?, normal("audio", &[1, 104, 5])?);
    let refusal = |video: Option<&Tensor>, audio: Option<&Tensor>, lengths: Option<&[usize]>| {
        model.forward(video, audio, lengths, None).expect_err("refused").to_string()
    };
    assert!(refusal(None, None, None).contains("video, audio or both"));
    assert!(refusal(Some(&video), Some(&audio), None).contains("AvHubert::fit"));
    let fitted = AvHubert::fit(&audio, 4)?;
    assert!(model.forward(Some(&video), Some(&fitted), None, None).is_ok());
    let longer = AvHubert::fit(&audio, 7)?;
    assert_eq!((longer.dims()[2], longer.narrow(2, 5, 2)?.abs()?.max_all()?.to_scalar::<f32>()?), (7, 0.0));
    assert!(refusal(Some(&video.squeeze(1)?), None, None).contains("[batch, 1, frames, 88, 88]"));
    assert!(refusal(None, Some(&audio.narrow(1, 0, 26)?), None).contains("104"));
    assert!(refusal(None, Some(&audio), Some(&[6])).contains("lengths"));
    assert!(refusal(None, Some(&audio), Some(&[5, 5])).contains("lengths"));
    let long = Tensor::zeros((1, 104, 15_001), DType::F32, &Device::Cpu)?;
    assert!(refusal(None, Some(&long), None).contains("15000"));
    let empty = Tensor::zeros((1, 104, 0), DType::F32, &Device::Cpu)?;
    assert!(refusal(None, Some(&empty), None).contains("frames"));
    Ok(())
}

#[test]
fn tensors_of_another_model_are_refused() -> Result<()> {
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/hubert/base_layout");
    let config = AvHubertConfig::load(&fixture())?;
    let load = |config: AvHubertConfig, checkpoint: &Checkpoint| {
        AvHubert::from_checkpoint(config, checkpoint, DType::F32, &Device::Cpu).expect_err("refused").to_string()
    };
    assert!(load(config.clone(), &Checkpoint::open(&other)?).contains("holds no AV-HuBERT encoder"));
    let fewer = AvHubertConfig { encoder_layers: config.encoder_layers - 1, ..config.clone() };
    assert!(load(fewer, &Checkpoint::open(&fixture())?).contains("do not belong to"));
    let wider = AvHubertConfig { encoder_embed_dim: 2 * config.encoder_embed_dim, ..config };
    assert!(load(wider, &Checkpoint::open(&fixture())?).contains("expected shape"));
    Ok(())
}
