//! Training of speech models: what is trained and what stays, resuming, averages, scales, batches of sound and lips.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Tensor};
use moesaic_encoders::speech::{WhisperConfig, WhisperEncoder};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_models::avsr::{ADDED_TOKENS, Avsr, AvsrConfig, Extra, Media, Parts, Rates, Sources, Vocabulary, assemble};
use moesaic_models::train::speech::augment::Noise;
use moesaic_models::train::speech::{
    Augment, Buckets, Clip, Clips, Frames, Noises, Part, Speech, TrainConfig, load, run,
};
use moesaic_models::train::{Ended, Trainable, checkpoints};

const CPU: &Device = &Device::Cpu;

const ENCODERS: &str = r#""whisper": {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
        "num_mel_bins": 8, "max_source_positions": 50, "init_std": 0.2},
    "av_hubert": {"encoder_layers": 1, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 16, "encoder_attention_heads": 2,
        "conv_pos": 4, "conv_pos_groups": 2, "layer_norm_first": true, "resnet_frontend_channels": 2, "resnet_planes": [2, 3, 4, 5]},
    "llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 24, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "bos_token_id": 0,
        "eos_token_id": 1, "initializer_range": 0.2, "tie_word_embeddings": false},
    "reduction_lora": 4, "alpha": 2, "intermediate_size": 12, "compression_mode": "avg-pooling", "max_dec_tokens": 6,
    "num_beams": 2"#;

const PLAIN: &str =
    r#""modality": "audio", "downsample_ratio_audio": 5, "layernorm_projector": true, "sink_loss_factor": 10"#;
const MIXED: &str = r#""modality": "audio", "downsample_ratio_audio": 5, "smop_mode": "JEJR", "num_experts": 3"#;
const NESTED: &str = r#""modality": "audiovisual", "downsample_ratio_audio": [5, 10], "downsample_ratio_video": [2, 3],
    "lora_type": "local-global", "use_lora_avhubert": true"#;

fn vocabulary() -> Vocabulary {
    Vocabulary { bos: 0, eos: 1, pad: 19, audio: [20, 21], video: [22, 23], prompt: vec![17, 18] }
}

/// A model with seeded weights in a folder.
fn base(dir: &Path, keys: &str, seed: u64) -> PathBuf {
    let config = format!("{{{ENCODERS}, {keys}}}");
    let params = Params::init(seed, CPU);
    Avsr::new(AvsrConfig::from_json(&config).unwrap(), vocabulary(), Sources::one(&params), None).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    let tensors = params.published(|v| Some(v.as_tensor().clone())).unwrap();
    save(&dir.join("model.safetensors"), &tensors, &[]).unwrap();
    std::fs::write(dir.join("config.json"), config).unwrap();
    dir.to_path_buf()
}

fn tone(n: usize, step: f32) -> Vec<f32> {
    (0..n).map(|i| 0.4 * (i as f32 * step).sin()).collect()
}

/// A sound file of 16 bits at 16 kHz.
fn write_wav(path: &Path, samples: &[f32]) {
    let bytes = samples.len() as u32 * 2;
    let mut file = b"RIFF".to_vec();
    file.extend((36 + bytes).to_le_bytes());
    file.extend(b"WAVEfmt ");
    file.extend(16u32.to_le_bytes());
    for half in [1u16, 1] {
        file.extend(half.to_le_bytes());
    }
    file.extend(16_000u32.to_le_bytes());
    file.extend(32_000u32.to_le_bytes());
    for half in [2u16, 16] {
        file.extend(half.to_le_bytes());
    }
    file.extend(b"data");
    file.extend(bytes.to_le_bytes());
    samples.iter().for_each(|s| file.extend(((s * 32767.0) as i16).to_le_bytes()));
    std::fs::write(path, file).unwrap();
}

/// Two kinds of sound, each with a text of its own.
fn clips(dir: &Path) -> PathBuf {
    let mut csv = "audio,text\n".to_string();
    for i in 0..8 {
        let name = format!("{i}.wav");
        write_wav(&dir.join(&name), &tone(6400 + 800 * i, if i % 2 == 0 { 0.1 } else { 1.1 }));
        csv += &format!("{name},{}\n", if i % 2 == 0 { "low low" } else { "high up" });
    }
    write_wav(&dir.join("noise.wav"), &tone(32_000, 2.3));
    let path = dir.join("clips.csv");
    std::fs::write(&path, csv).unwrap();
    path
}

fn tokenise(text: &str) -> candle_core::Result<Vec<u32>> {
    let word = |w: &str| match w {
        "low" => Ok(5),
        "high" => Ok(6),
        "up" => Ok(7),
        other => candle_core::bail!("no word {other}"),
    };
    // As a tokenizer that puts first and last token around a text.
    let ids = text.split(' ').map(word).collect::<candle_core::Result<Vec<u32>>>()?;
    Ok([&[0][..], &ids, &[1]].concat())
}

fn config(dir: &Path, base: &Path, steps: u64) -> TrainConfig {
    let text = format!(
        r#"{{"seed": 4, "base": {base:?}, "average": 2,
            "data": {{"clips": {:?}, "max_frames": 60, "buckets": 2, "noise": {:?}, "snr": [20.0]}},
            "optimiser": {{"learning_rate": 0.02, "final_learning_rate": 0.0, "warmup": 0, "beta2": 0.98, "clip": 10.0}},
            "plan": {{"steps": {steps}, "log_every": 1, "checkpoint_every": 3, "keep": 3, "out": {:?}}}}}"#,
        dir.join("clips.csv"),
        dir.join("noise.wav"),
        dir.join("run"),
    );
    serde_json::from_str(&text).unwrap()
}

fn train(config: &TrainConfig, resume: bool, stop_after: Option<u64>) -> (Ended, Vec<f64>, Vec<String>) {
    let stop = AtomicBool::new(false);
    let (mut losses, mut names) = (Vec::new(), Vec::new());
    let ended = run(config, vocabulary(), &tokenise, resume, &stop, &mut |r| {
        losses.push(r.loss);
        names = r.parts.iter().map(|(name, _)| name.clone()).collect();
        stop.store(stop_after == Some(r.step), Ordering::Relaxed);
        Ok(())
    });
    (ended.unwrap(), losses, names)
}

#[test]
fn it_learns_resumes_without_a_trace_and_saves_what_it_trained() {
    let dir = tempfile::tempdir().unwrap();
    clips(dir.path());
    let base = base(&dir.path().join("base"), PLAIN, 1);
    let whole = config(dir.path(), &base, 40);
    let (ended, losses, _) = train(&whole, false, None);
    assert_eq!(ended, Ended::Finished);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(mean(&losses[32..]) < 0.75 * mean(&losses[..8]), "{losses:?}");

    let mut parted = whole.clone();
    parted.plan.out = dir.path().join("parted");
    let (ended, mut parts, _) = train(&parted, false, Some(17));
    assert_eq!(ended, Ended::Stopped(17));
    parts.extend(train(&parted, true, None).1);
    assert_eq!(parts, losses);
    let weights = |folder: &Path| std::fs::read(folder.join("model/model.safetensors")).unwrap();
    assert_eq!(weights(&whole.plan.out), weights(&parted.plan.out));

    // Only projector and adapters are saved, and with the base they are the model that learned.
    let trained = whole.plan.out.join("model");
    let file = Checkpoint::open(&trained).unwrap();
    assert!(file.names().all(|n| n.starts_with("audio_proj.") || n.contains("lora_")), "{:?}", file.names().next());
    assert_eq!(file.names().count(), 6 + 2 * 4);
    let model = load(&base, &trained, vocabulary(), DType::F32, CPU).unwrap();
    let clean = |model: &Avsr| {
        let sound = model.sound(&[&tone(9000, 0.1), &tone(9000, 1.1)]).unwrap();
        let media = Media { audio: Some(&sound), video: None };
        let losses = model.loss(media, &[vec![5, 5], vec![6, 7]], Extra::default()).unwrap();
        let beams = model.search(media, Rates::default(), &model.beam_options()).unwrap();
        assert!(beams.len() == 2 && beams.iter().all(|b| !b[0].tokens.is_empty() && b[0].tokens.len() <= 6));
        losses.total.to_scalar::<f32>().unwrap()
    };
    let untrained = Avsr::load(&base, vocabulary(), DType::F32, CPU).unwrap();
    assert!(clean(&model) < 0.75 * clean(&untrained), "{} {}", clean(&model), clean(&untrained));

    // The mean of the last two checkpoints, of which three are kept.
    let all = checkpoints(&whole.plan.out).unwrap();
    assert_eq!(all.len(), 3);
    let name = "audio_proj.2.bias";
    let read = |path: &Path| Checkpoint::open(path).unwrap().read_any(name).unwrap().to_vec1::<f32>().unwrap();
    let files: Vec<Vec<f32>> = all[1..].iter().map(|dir| read(&dir.join("model.safetensors"))).collect();
    let averaged = read(&whole.plan.out.join("averaged"));
    assert!(averaged.iter().enumerate().all(|(i, v)| (v - (files[0][i] + files[1][i]) / 2.0).abs() < 1e-7));
    assert!(load(&base, &whole.plan.out.join("averaged"), vocabulary(), DType::F32, CPU).is_ok());
    assert!(load(&base, &base, vocabulary(), DType::F32, CPU).is_err(), "a whole model is not what was trained");
}

#[test]
fn every_kind_of_model_has_its_losses() {
    let dir = tempfile::tempdir().unwrap();
    clips(dir.path());
    let mixed = base(&dir.path().join("mixed"), MIXED, 2);
    let (_, losses, names) = train(&config(dir.path(), &mixed, 2), false, None);
    assert_eq!(names, ["cross_entropy", "balance", "z"]);
    assert!(losses.iter().all(|l| l.is_finite()));
    let plain = base(&dir.path().join("plain"), PLAIN, 2);
    let mut sunk = TrainConfig { sink: true, ..config(dir.path(), &plain, 2) };
    sunk.plan.out = dir.path().join("sunk");
    let (_, losses, names) = train(&sunk, false, None);
    assert_eq!(names, ["cross_entropy", "sink"]);
    let mut without = config(dir.path(), &plain, 2);
    without.plan.out = dir.path().join("without");
    assert!(losses[0] > train(&without, false, None).1[0]);
    // From the projectors and adapters of the base, another loss than from the seed.
    let mut tuned = TrainConfig { tune: true, ..config(dir.path(), &plain, 2) };
    tuned.plan.out = dir.path().join("tuned");
    assert_ne!(train(&tuned, false, None).1[0], losses[0]);
    // Sound without masks and noise is encoded once, and that changes nothing.
    let [anew, held] = [0, 8].map(|cache_mb| {
        let mut config = config(dir.path(), &plain, 6);
        (config.data.noise, config.data.mask, config.data.cache_mb) = (Noises::default(), false, cache_mb);
        config.plan.out = dir.path().join(format!("cache{cache_mb}"));
        train(&config, false, None).1
    });
    assert_eq!(anew, held);
    // CTC beside the cross entropy, or alone, where the language model is not run and adapters stay.
    let mut beside = TrainConfig { ctc: 0.5, ..config(dir.path(), &plain, 2) };
    beside.plan.out = dir.path().join("beside");
    let (_, _, names) = train(&beside, false, None);
    assert_eq!(names, ["cross_entropy", "ctc"]);
    let [short, long] = [2, 12].map(|steps| {
        let mut alone = TrainConfig { train: Part::Projector, ..config(dir.path(), &plain, steps) };
        alone.plan.out = dir.path().join(format!("alone{steps}"));
        alone.optimiser.weight_decay = 0.0;
        (train(&alone, false, None).1, Checkpoint::open(&alone.plan.out.join("model")).unwrap())
    });
    assert!(long.0[11] < 0.8 * long.0[0], "{:?}", long.0);
    let values =
        |file: &Checkpoint, name: &str| file.read_any(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for name in short.1.names() {
        assert_eq!(values(&short.1, name) == values(&long.1, name), name.contains("lora_"), "{name}");
    }
    assert!(TrainConfig { ctc: f64::NAN, ..config(dir.path(), &plain, 2) }.validate().is_err());
}

/// Clips in memory.
struct Some2(Vec<usize>);

impl Clips for Some2 {
    fn lengths(&self) -> &[usize] {
        &self.0
    }

    fn clip(&self, index: usize, _: bool, _: bool) -> candle_core::Result<Clip> {
        let t = self.0[index];
        let rgb = (0..t * 96 * 96 * 3).map(|i| (i * 7 % 251) as u8).collect();
        // A little longer than the video.
        let sound = Some(tone(t * 640 + 100, 0.2));
        Ok(Clip { sound, lips: Some(Frames { rgb, size: (t, 96, 96) }), text: vec![5; index + 1] })
    }
}

#[test]
fn scales_share_what_they_should_and_lips_are_prepared() {
    let config = AvsrConfig::from_json(&format!("{{{ENCODERS}, {NESTED}}}")).unwrap();
    let params = Params::init(3, CPU);
    let model = Avsr::new(config, vocabulary(), Sources::one(&params), None).unwrap();
    assert_eq!((model.scales(), model.llm().scales()), (4, 4));
    // Sound runs fastest.
    let scale = |audio, video| model.scale(Rates { audio: Some(audio), video: Some(video) });
    let scales = [(5, 2), (10, 2), (5, 3), (10, 3)].map(|(a, v)| scale(a, v).unwrap());
    assert_eq!((scales, model.scale(Rates::default()).unwrap()), ([0, 1, 2, 3], 0));
    assert!(scale(4, 2).unwrap_err().to_string().contains("[5, 10]"));

    let buckets = Buckets::new(&[7, 12], 100, 1, None).unwrap();
    let noise = Noise::new(tone(5000, 1.9), Noise::LEVELS.to_vec()).unwrap();
    let speech = |mask, noise: Option<Noise>| {
        let params = Params::init(3, CPU);
        let model = Avsr::new(model.config().clone(), vocabulary(), Sources::one(&params), None).unwrap();
        let (clips, augment) = (Box::new(Some2(vec![7, 12])), Augment { mask, mask_lips: mask, noise, drop: [0.0; 2] });
        (Speech::new(model, clips, buckets.clone(), augment, Extra::default(), (8, 1)), params)
    };
    let (plain, params) = speech(false, None);
    let batch = plain.make(&[0, 1], 0).unwrap();
    let (sound, lips) = (batch.sound.as_ref().unwrap(), batch.lips.as_ref().unwrap());
    assert_eq!((sound.dims(), lips.dims()), (&[2, 12 * 640][..], &[2, 12, 1, 88, 88][..]));
    let quiet = |t: &Tensor, from: usize| t.get(0).unwrap().narrow(0, from, t.dim(1).unwrap() - from).unwrap();
    let zero = |t: Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() == 0.0;
    assert!(zero(quiet(sound, 7 * 640)) && zero(quiet(lips, 7)) && !zero(quiet(lips, 6)));
    // The same again for the same step, other noise and masks for another.
    let (noisy, _) = speech(true, Some(noise));
    let values = |b: &[usize], index| {
        let batch = noisy.make(b, index).unwrap();
        let (sound, lips) = (batch.sound.unwrap(), batch.lips.unwrap());
        let flat = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (flat(sound), flat(lips))
    };
    assert_eq!(values(&[0, 1], 3), values(&[0, 1], 3));
    let (one, two) = (values(&[0, 1], 3), values(&[0, 1], 4));
    assert!(one.0 != two.0 && one.1 != two.1);

    // Every scale's own adapters, the shared ones and every rate's projector learn.
    let batch = plain.batch(0, 0).unwrap();
    let loss = plain.loss(&batch).unwrap();
    let grads = loss.total.backward().unwrap();
    let learns = |name: &str| name.contains("lora") || name.starts_with("audio_proj") || name.starts_with("video_proj");
    let all: Vec<_> = params.variables().into_iter().filter(|(name, _)| learns(name)).collect();
    let left: Vec<_> = all.iter().filter(|(_, var)| grads.get(var).is_none()).map(|(name, _)| name).collect();
    assert!(left.is_empty(), "{left:?}");
    let has = |part: &str| all.iter().any(|(name, _)| name.contains(part));
    assert!(
        has("audio_proj.1.2.weight")
            && has("video_proj.1.0.bias")
            && has("video_encoder.encoder.layers.0.self_attn.lora")
    );
    assert!(
        has("self_attn.local_loras.3.lora_up_V") && has("self_attn.global_lora.lora_down_Q") && !has("local_loras.4")
    );
}

#[test]
fn what_would_go_wrong_later_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    clips(dir.path());
    let base = base(&dir.path().join("base"), PLAIN, 1);
    let good = config(dir.path(), &base, 2);
    let go = |config: &TrainConfig, resume| {
        let stop = AtomicBool::new(false);
        run(config, vocabulary(), &tokenise, resume, &stop, &mut |_| Ok(())).unwrap_err().to_string()
    };
    assert!(go(&good, true).contains("no checkpoint to resume from"));
    let with = |change: &dyn Fn(&mut TrainConfig)| {
        let mut config = good.clone();
        change(&mut config);
        go(&config, false)
    };
    assert!(with(&|c| c.average = 9).contains("plan.keep"));
    assert!(with(&|c| c.base_dtype = "f8".into()).contains("base_dtype"));
    assert!(with(&|c| c.data.max_frames = 5).contains("max_frames"));
    assert!(with(&|c| c.data.snr = vec![f64::NAN]).contains("snr"));
    assert!(with(&|c| c.data.noise = Noises::One("nothing.wav".into())).contains("nothing.wav"));
    let manifest = |text: &str| {
        std::fs::write(dir.path().join("bad.csv"), text).unwrap();
        with(&|c| c.data.clips = dir.path().join("bad.csv"))
    };
    assert!(manifest("audio\n0.wav\n").contains("no column text"));
    assert!(manifest("text\nlow\n").contains("no column audio"));
    assert!(manifest("audio,text\n0.wav,loud\n").contains("line 2: no word loud"));
    assert!(manifest("audio,text\n,low\n").contains("line 2: audio is empty"));
    assert!(manifest("audio,text,frames\n0.wav,low,x\n").contains("frames is x"));
    assert!(manifest("audio,text\nnone.wav,low\n").contains("none.wav"));
    assert!(manifest("audio,text\n").contains("no clips"));
    assert!(!dir.path().join("run").exists());
}

#[test]
fn a_base_is_made_of_published_parts() {
    let dir = tempfile::tempdir().unwrap();
    let (whisper, llama, out) = (dir.path().join("whisper"), dir.path().join("llama"), dir.path().join("speech"));
    let keys = r#"{"model_type": "whisper", "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16, "num_mel_bins": 8, "max_source_positions": 50}"#;
    let params = Params::init(5, CPU);
    WhisperEncoder::new(serde_json::from_str::<WhisperConfig>(keys).unwrap(), &params.pp("model.encoder")).unwrap();
    // The decoder is left behind.
    params.pp("model.decoder").tensor("x", [2], moesaic_kernels::Init::Ones).unwrap();
    std::fs::create_dir_all(&whisper).unwrap();
    let tensors = params.published(|v| Some(v.as_tensor().clone())).unwrap();
    save(&whisper.join("model.safetensors"), &tensors, &[]).unwrap();
    std::fs::write(whisper.join("config.json"), keys).unwrap();
    let config = common::LLAMA.replace("\"bos_token_id\": null", "\"bos_token_id\": 255");
    common::write_model(&llama, &config, 6);
    std::fs::write(llama.join("tokenizer.json"), r#"{"added_tokens": [{"id": 255, "content": "<s>"}], "model": {}}"#)
        .unwrap();

    let settings = r#"{"modality": "audio", "downsample_ratio_audio": 4, "reduction_lora": 8, "alpha": 1}"#;
    let settings = serde_json::from_str(settings).unwrap();
    let parts = Parts { audio: Some(&whisper), av_hubert: None, llm: &llama };
    let config = assemble(parts, &settings, 7, &out).unwrap();
    assert_eq!(config.llm.vocab_size, 257 + 5);
    let text = std::fs::read_to_string(out.join("tokenizer.json")).unwrap();
    let tokenizer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let id = |token: &str| {
        let all = tokenizer["added_tokens"].as_array().unwrap();
        all.iter().find(|t| t["content"] == token).map(|t| t["id"].as_u64().unwrap() as u32)
    };
    assert_eq!(ADDED_TOKENS.map(|t| id(t).unwrap()), [257, 258, 259, 260, 261]);

    // The parts are in it as they were, with new rows in the embedding; the rest is trained from a seed.
    let (file, llm) = (Checkpoint::open(&out).unwrap(), Checkpoint::open(&llama).unwrap());
    let rows = |file: &Checkpoint, name: &str| file.read_any(name).unwrap().narrow(0, 0, 257).unwrap();
    let same = |a: Tensor, b: Tensor| a.to_vec2::<f32>().unwrap() == b.to_vec2::<f32>().unwrap();
    let name = "model.embed_tokens.weight";
    assert!(same(rows(&file, &format!("llm.{name}")), rows(&llm, name)));
    assert_eq!(file.info("llm.lm_head.weight").unwrap().shape, [262, 32]);
    assert!(file.info("audio_encoder.conv1.weight").is_some() && file.names().all(|n| !n.contains("decoder")));
    let encode = |_: &str| Ok(vec![255, 7, 8, 256]);
    let vocabulary = Vocabulary::new(&config, id, encode).unwrap();
    assert_eq!((vocabulary.bos, vocabulary.eos, vocabulary.prompt.as_slice()), (255, 256, &[7, 8][..]));
    let (base, trained) = (Params::load(&file, DType::F32, CPU), Params::init(1, CPU));
    let sources = Sources { audio: &base, video: &base, llm: &base, trained: &trained };
    let model = Avsr::new(config, vocabulary, sources, Some(&file)).unwrap();
    assert!(base.unused().is_empty(), "{:?}", base.unused());
    let sound = model.sound(&[&tone(8000, 0.3)]).unwrap();
    let media = Media { audio: Some(&sound), video: None };
    assert!(model.loss(media, &[vec![1, 2, 3]], Extra::default()).is_ok());
    assert!(assemble(Parts { audio: Some(&llama), ..parts }, &settings, 7, &out).is_err());
    assert!(assemble(Parts { audio: None, ..parts }, &settings, 7, &out).unwrap_err().to_string().contains("whisper"));
}
