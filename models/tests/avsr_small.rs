//! Small speech models trained from nothing: an encoder that names units, then projectors and a sparse language model, with modality
//! dropout; and the folder that holds all of it.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Result, Tensor};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::avsr::{Avsr, Extra, Media, Rates, Vocabulary};
use moesaic_models::train::speech::{TrainConfig, run, units};
use moesaic_models::train::{Ended, Report};

const CPU: Device = Device::Cpu;
const ENCODER: &str = r#"{"encoder_layers": 1, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2,
    "layer_norm_first": true, "conv_pos": 4, "conv_pos_groups": 2, "resnet_input_pool": 8, "resnet_frontend_channels": 4,
    "resnet_planes": [4, 4, 4, 8]}"#;

fn tone(n: usize, step: f32) -> Vec<f32> {
    (0..n).map(|i| 0.4 * (i as f32 * step).sin()).collect()
}

fn write_wav(path: &Path, samples: &[f32]) {
    let bytes = samples.len() as u32 * 2;
    let mut file = b"RIFF".to_vec();
    file.extend((36 + bytes).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data");
    file.extend(bytes.to_le_bytes());
    samples.iter().for_each(|s| file.extend(((s * 32767.0) as i16).to_le_bytes()));
    std::fs::write(path, file).unwrap();
}

/// Two words; each has a tone and a brightness, and is a unit of its own.
fn corpus(dir: &Path) -> PathBuf {
    let mut csv = "audio,video,text,units\n".to_string();
    for i in 0..8usize {
        let (frames, low) = (6 + i % 3, i % 2 == 0);
        write_wav(&dir.join(format!("{i}.wav")), &tone(640 * frames, if low { 0.1 } else { 1.3 }));
        let grey = if low { 40u8 } else { 220 };
        // Not flat: the mean of a frame is not all that a network sees.
        let rgb: Vec<u8> = (0..frames * 96 * 96 * 3).map(|k| grey.wrapping_add((k % 7) as u8)).collect();
        let video = Tensor::from_vec(rgb, (frames, 96, 96, 3), &CPU).unwrap();
        candle_core::safetensors::save(&[("video", video)].into(), dir.join(format!("{i}.safetensors"))).unwrap();
        let (word, unit) = if low { ("low", "l") } else { ("high", "h") };
        csv += &format!("{i}.wav,{i}.safetensors,{word} {word},_*2 {unit}*{}\n", frames - 2);
    }
    std::fs::write(dir.join("units.txt"), "_\nl\nh\n").unwrap();
    let path = dir.join("clips.csv");
    std::fs::write(&path, csv).unwrap();
    path
}

fn tokenise(text: &str) -> Result<Vec<u32>> {
    text.split(' ').map(|word| if word == "low" { Ok(5) } else { Ok(6) }).collect()
}

fn vocabulary() -> Vocabulary {
    Vocabulary { bos: 0, eos: 1, pad: 9, audio: [10, 11], video: [12, 13], prompt: Vec::new() }
}

fn encoder(dir: &Path, clips: &Path, steps: u64) -> units::TrainConfig {
    let text = format!(
        r#"{{"seed": 3, "encoder": {ENCODER}, "units": {:?},
            "data": {{"clips": {clips:?}, "valid": {clips:?}, "valid_every": {steps}, "max_frames": 100, "buckets": 1, "rows": 4,
                      "mask": false, "drop_audio": 0.4, "drop_video": 0.4}},
            "optimiser": {{"learning_rate": 0.01, "warmup": 0}},
            "plan": {{"steps": {steps}, "log_every": {steps}, "checkpoint_every": 10, "out": {:?}}}}}"#,
        dir.join("units.txt"),
        dir.join("encoder"),
    );
    serde_json::from_str(&text).unwrap()
}

fn part(report: &Report, name: &str) -> f64 {
    report.parts.iter().find(|(part, _)| part == name).unwrap_or_else(|| panic!("{name}: {:?}", report.parts)).1
}

#[test]
fn from_clips_to_a_model_that_does_without_one_of_its_senses() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, never) = (dir.path(), AtomicBool::new(false));
    let clips = corpus(dir);
    let last = std::cell::RefCell::new(None);
    let mut keep = |report: &Report| {
        last.replace(Some(report.clone()));
        Ok(())
    };
    let config = encoder(dir, &clips, 60);
    assert_eq!(units::run(&config, false, &never, &mut keep).unwrap(), Ended::Finished);
    let report: Report = last.take().unwrap();
    for sense in ["right_audio", "right_video", "right_both"] {
        assert!(part(&report, sense) > 0.8, "{report:?}");
    }
    assert!(units::run(&config, false, &never, &mut |_| Ok(())).unwrap_err().to_string().contains("--resume"));

    let base = dir.join("base");
    std::fs::create_dir(&base).unwrap();
    let keys = format!(
        r#"{{"modality": "audiovisual_avhubert", "prompt": "", "downsample_ratio_audio": 2, "downsample_ratio_video": 2,
            "intermediate_size": 24, "layernorm_projector": true, "max_dec_tokens": 4, "num_beams": 2, "window_seconds": 2.0,
            "av_hubert": {ENCODER},
            "llm": {{"model_type": "qwen3_moe", "bos_token_id": 0, "eos_token_id": 1, "decoder_sparse_step": 1,
                "mlp_only_layers": [], "head_dim": 8, "hidden_act": "silu", "hidden_size": 16, "initializer_range": 0.1,
                "intermediate_size": 32, "max_position_embeddings": 64, "moe_intermediate_size": 16, "norm_topk_prob": true,
                "num_attention_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2,
                "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 1000.0, "tie_word_embeddings": true,
                "vocab_size": 14}}}}"#
    );
    std::fs::write(base.join("config.json"), keys).unwrap();
    let text = format!(
        r#"{{"seed": 4, "base": {base:?}, "encoder": {:?}, "train": "language", "whole": true,
            "settings": {{"smop_mode": "JEJR", "num_experts": 3, "top_k": 2, "intermediate_size": 12}},
            "data": {{"clips": {clips:?}, "valid": {clips:?}, "valid_every": 100, "max_frames": 100, "buckets": 1, "rows": 4,
                      "mask_lips": false, "cache_mb": 1, "drop_audio": 0.4, "drop_video": 0.3}},
            "optimiser": {{"learning_rate": 0.01, "warmup": 0}},
            "plan": {{"steps": 100, "log_every": 100, "checkpoint_every": 100, "out": {:?}}}}}"#,
        dir.join("encoder/model"),
        dir.join("run"),
    );
    let config: TrainConfig = serde_json::from_str(&text).unwrap();
    assert_eq!(run(&config, vocabulary(), &tokenise, false, &never, &mut keep).unwrap(), Ended::Finished);
    let report: Report = last.take().unwrap();
    for sense in ["wrong_audio", "wrong_video", "wrong_both"] {
        assert!(part(&report, sense) < 30.0, "{report:?}");
    }
    assert!(part(&report, "load") > 0.0 && part(&report, "balance") > 0.0);

    // The folder with all of it is used without the others, and hears, sees, or both.
    let whole = dir.join("run/whole");
    let names: Vec<String> = Checkpoint::open(&whole).unwrap().names().map(str::to_string).collect();
    for prefix in
        ["audiovisual_encoder.encoder.layers.0.", "audiovisual_proj.experts.2.", "llm.model.layers.1.mlp.experts.3."]
    {
        assert!(names.iter().any(|name| name.starts_with(prefix)), "{prefix} is not in {names:?}");
    }
    let model = Avsr::load(&whole, vocabulary(), DType::F32, &CPU).unwrap();
    assert_eq!(model.config().window, 2.0);
    let sound = model.sound(&[&tone(640 * 6, 1.3)]).unwrap();
    let lips = Tensor::full(1.0f32, (1, 6, 1, 88, 88), &CPU).unwrap();
    let (mut hidden, texts) = (Vec::new(), [vec![6, 6]]);
    for (audio, video, lanes) in [(true, false, 1), (false, true, 1), (true, true, 2)] {
        let media = Media { audio: Some(&sound).filter(|_| audio), video: Some(&lips).filter(|_| video) };
        let encoded = model.encode(media, None).unwrap();
        assert_eq!(encoded.len(), lanes);
        let loss = model.loss(media, &texts, Extra::default()).unwrap();
        hidden.push(loss.cross_entropy.to_scalar::<f32>().unwrap());
        // The log-probabilities of the answer are those that it was chosen by.
        let options = moesaic_models::generate::Options { log_probs: true, ..model.options() };
        let answer = model.transcribe(media, Rates::default(), &options).unwrap().remove(0);
        let again = model.log_probs_of(&model.encode(media, None).unwrap(), Rates::default(), &answer.tokens).unwrap();
        assert_eq!(again.len(), answer.tokens.len());
        assert!(again.iter().zip(&answer.log_probs).all(|(a, b)| (a - b).abs() < 1e-3), "{again:?} {answer:?}");
    }
    assert!(hidden[0] != hidden[1] && hidden[1] != hidden[2], "{hidden:?}");
    let nothing = model.encode(Media::default(), None).unwrap_err().to_string();
    assert!(nothing.contains("sound or video"), "{nothing}");

    // What makes no sense is refused before anything is trained.
    let error = |change: &dyn Fn(&mut TrainConfig)| {
        let mut config = config.clone();
        config.plan.out = dir.join("other");
        change(&mut config);
        run(&config, vocabulary(), &tokenise, false, &never, &mut |_| Ok(())).unwrap_err().to_string()
    };
    assert!(error(&|c| c.data.drop_audio = 0.9).contains("drop_audio and drop_video"));
    assert!(error(&|c| c.encoder = None).contains("base"));
    assert!(error(&|c| c.train = Default::default()).contains("base"));
    assert!(error(&|c| c.encoder = Some(dir.join("none"))).contains("none"));
    assert!(error(&|c| drop(c.settings.insert("smop_mode".into(), "DEJR".into()))).contains("DEJR"));
}
