//! Questions about sound as a user asks them, on a tiny U-SAM of random weights.
#![cfg(feature = "audio")]

#[path = "support/mod.rs"]
mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use moesaic::{AudioChat, Error, TextOptions};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::save;
use moesaic_models::usam::{Layout, Sources, Usam, UsamConfig, Vocabulary};
use serde_json::{Value, json};
use support::{Run, run};

/// Hears two seconds at once.
fn config() -> Value {
    json!({
        "model_type": "usam", "num_experts": 3, "score_hidden": 6, "num_aggregated": 4, "lora_r": 2, "lora_alpha": 4,
        "bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "[PAD]", "num_beams": 3, "max_new_tokens": 6,
        "ced": {"embed_dim": 12, "depth": 1, "num_heads": 2, "mlp_ratio": 2, "target_length": 160},
        "whisper": {"d_model": 8, "encoder_layers": 1, "heads": 2, "ffn": 8, "num_mel_bins": 80, "max_source_positions": 100},
        "mert": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
                 "conv_dim": [4, 4, 4, 4, 4, 4, 4], "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
                 "conv_stride": [5, 2, 2, 2, 2, 2, 2], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
        "qformer": {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "num_hidden_layers": 2},
        "llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
                  "bos_token_id": 0, "eos_token_id": 2, "vocab_size": 212, "initializer_range": 0.5},
    })
}

/// Writes the model into `folder`, beside 2.2 seconds of speech.
fn model(folder: &Path) -> PathBuf {
    let dir = folder.join("listening");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("config.json"), config().to_string()).unwrap();
    let mut tokenizer = tiny::tokenizer();
    let pad = json!({"id": 211, "content": "[PAD]", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    tokenizer["added_tokens"].as_array_mut().unwrap().push(pad);
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(dir.join("tokenizer_config.json"), tiny::tokenizer_config().to_string()).unwrap();
    let params = Params::init(4, &Device::Cpu);
    let vocabulary = Vocabulary { bos: 0, eos: 2, pad: 211 };
    Usam::new(UsamConfig::load(&dir).unwrap(), vocabulary, Sources::one(&params), Layout::default(), None).unwrap();
    // Random weights of towers give features of almost nothing; what is projected is to be heard.
    for (name, var) in params.variables() {
        if name.starts_with("enc_to_dec_proj.") {
            var.set(&(var.as_tensor() * 8.0).unwrap()).unwrap();
        }
    }
    let tensors = params.published(|var| Some(var.as_tensor().clone())).unwrap();
    save(&dir.join("model.safetensors"), &tensors, &[]).unwrap();
    let speech = Path::new(env!("CARGO_MANIFEST_DIR")).join("encoders/tests/data/speech.flac");
    fs::copy(speech, folder.join("speech.flac")).unwrap();
    dir
}

fn good(run: &Run) -> &str {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    &run.stdout
}

#[test]
fn listen_answers_about_every_window() {
    let folder = tempfile::tempdir().unwrap();
    let dir = model(folder.path());
    let listen = |question: &str, more: &[&str]| {
        run(folder.path(), &[&["listen", "speech.flac", question, "--model", "listening"], more].concat())
    };
    let answer = listen("What is said?", &[]);
    let lines: Vec<&str> = good(&answer).lines().collect();
    assert!(lines[0].starts_with("0.0 - 2.0 s: ") && answer.stdout.contains("2.0 - 2.2 s: "), "{}", answer.stdout);
    assert!(answer.stderr.starts_with("note: prompt "), "{}", answer.stderr);
    assert_ne!(good(&listen("ASR", &[])), answer.stdout, "the question does not count");
    let json = listen("What is said?", &["--json", "--log-probs"]);
    let json: Value = serde_json::from_str(good(&json)).unwrap();
    assert_eq!((&json["model"]["architecture"], json["answers"].as_array().unwrap().len()), (&"usam".into(), 2));
    assert_eq!(json["answers"][0]["answer"]["log_probs"].as_array().unwrap().len(), 6);
    assert_eq!(json["answers"][1]["end"], 2.2);

    // The library says the same, and so does a search of one beam.
    let chat = AudioChat::from_dir(&dir).unwrap();
    let heard = chat.ask(folder.path().join("speech.flac"), "What is said?", &TextOptions::default()).unwrap();
    for (i, heard) in heard.iter().enumerate() {
        assert_eq!(json["answers"][i]["answer"]["text"], heard.answer.text.as_str());
    }
    let mut beams = TextOptions::default();
    beams.beams = Some(1);
    let found = chat.ask(folder.path().join("speech.flac"), "What is said?", &beams).unwrap();
    assert!(found.iter().all(|heard| heard.answer.score.is_some() && heard.answer.tokens >= 2));
    let searched = listen("What is said?", &["--beams", "3", "--max-tokens", "4"]);
    assert!(good(&searched).starts_with("0.0 - 2.0 s: "), "{}", searched.stdout);
    // Another sound gets another answer.
    let tone: Vec<f32> = (0..32_000).map(|i| (i as f32 * 0.2).sin() * 0.5).collect();
    let other = chat.answer(&tone, "What is said?", &TextOptions::default()).unwrap();
    assert_ne!(other.text, heard[0].answer.text, "the sound does not count");
}

#[test]
fn what_cannot_be_heard_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let dir = model(folder.path());
    let chat = AudioChat::from_dir(&dir).unwrap();
    let options = TextOptions::default();
    assert_eq!(chat.window(), 32_000);
    assert!(matches!(chat.answer(&[], "a", &options), Err(Error::Media(_))));
    assert!(matches!(chat.answer(&[f32::NAN; 9], "a", &options), Err(Error::Media(_))));
    assert!(matches!(chat.answer(&[0.0; 32_001], "a", &options), Err(Error::Input { .. })));
    assert!(matches!(chat.answer(&[0.0; 9], " ", &options), Err(Error::Input { .. })));
    assert!(matches!(chat.answer(&[0.0; 9], &"long ".repeat(60), &options), Err(Error::Input { .. })));
    let twice = "<AcousticTokens> or <AcousticTokens>";
    assert!(matches!(chat.answer(&[0.0; 9], twice, &options), Err(Error::Input { .. })));
    assert!(chat.answer(&[0.0; 9], "Is it quiet?", &options).is_ok());
    fs::write(folder.path().join("no.wav"), "To be, or not to be").unwrap();
    let listen = |sound: &str, model: &str| run(folder.path(), &["listen", sound, "a", "--model", model]);
    for (sound, model, words) in [
        ("no.wav", "listening", "is not a sound file"),
        ("none.wav", "listening", "none.wav"),
        ("speech.flac", "nowhere", "nowhere"),
        ("speech.flac", ".", "config.json"),
    ] {
        let run = listen(sound, model);
        assert!(run.code == Some(1) && run.stderr.contains(words), "{words}: {}", run.stderr);
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    }
    for (from, to, words) in
        [("\"[PAD]\"", "\"[FILL]\"", "[FILL]"), ("\"usam\"", "7", ""), ("\"ced\"", "\"cad\"", "ced")]
    {
        let text = config().to_string();
        assert!(text.contains(from));
        fs::write(dir.join("config.json"), text.replacen(from, to, 1)).unwrap();
        match AudioChat::from_dir(&dir) {
            Ok(_) => assert!(words.is_empty(), "{to} is taken"),
            Err(error) => {
                assert!(matches!(&error, Error::Config { .. }) && error.to_string().contains(words), "{error}")
            }
        }
    }
}

#[test]
fn info_names_the_parts() {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path());
    let text = run(folder.path(), &["info", "listening"]);
    for part in ["usam", "ced, whisper, mert, 28 wide", "2 s", "3 mixed, summed over experts", "llama"] {
        assert!(good(&text).contains(part), "{part}: {}", text.stdout);
    }
    let json = run(folder.path(), &["info", "listening", "--json"]);
    let json: Value = serde_json::from_str(good(&json)).unwrap();
    assert_eq!((&json["experts"], &json["seconds"]), (&3.into(), &2.0.into()));
}

/// The model beside the crate, where it is: it is in the repository, not in the package.
#[test]
fn the_small_model_answers_about_the_example() {
    let at = |path: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if !at("assets/sound").is_dir() {
        eprintln!("skipped: assets/sound is not here");
        return;
    }
    let chat = AudioChat::from_dir(at("assets/sound")).unwrap();
    assert_eq!((chat.window(), chat.info().encoders.as_slice()), (64_000, &["ced", "whisper"][..]));
    for (question, answer) in [
        ("Which digits are said?", "zero four seven"),
        ("What can be heard beside a voice?", "cymbal"),
        ("Describe the sound.", "a man says three digits over a sound of a cymbal"),
        ("Is anyone speaking?", "yes"),
    ] {
        let heard = chat.ask(at("examples/data/sound/mixture.flac"), question, &TextOptions::default()).unwrap();
        let answers: Vec<&str> = heard.iter().map(|heard| heard.answer.text.as_str()).collect();
        assert_eq!(answers, [answer], "{question}");
    }
    let tones = chat.ask(at("examples/data/tones.wav"), "Is anyone speaking?", &TextOptions::default()).unwrap();
    assert_eq!(tones.len(), 1);
}
