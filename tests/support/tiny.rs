//! A language model small enough for tests: random weights, and a byte-level tokenizer of as many tokens.

#![allow(dead_code)] // each test file uses its part

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::save;
use moesaic_models::decoder::{Decoder, DecoderConfig};
use serde_json::{Value, json};

/// `model_type` llama, 211 tokens, 128 positions; eos is 2.
pub fn weights() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama/tiny_gqa")
}

/// The character that stands for a byte in byte-level vocabularies
/// ([GPT-2's `bytes_to_unicode`](https://github.com/openai/gpt-2/blob/master/src/encoder.py)).
fn shown(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match printable(byte) {
        true => char::from(byte),
        false => char::from_u32(256 + (0..byte).filter(|&b| !printable(b)).count() as u32).unwrap(),
    }
}

/// `tokenizer.json`: three special tokens, then bytes (ASCII, and those of `é`, `ü`, `€`, `あ`, `😀` and their like), then
/// merges. Every id below 211 is a token.
pub fn tokenizer() -> Value {
    let mut vocab = vec!["<s>".to_string(), "<|im_start|>".into(), "<|im_end|>".into()];
    let bytes = (b' '..=b'~').chain([b'\n']).chain(0x80..=0xbf).chain([0xc3, 0xe2, 0xe3, 0xf0]);
    vocab.extend(bytes.map(|byte| shown(byte).to_string()));
    let (a, o) = (shown(b' ').to_string(), shown(0xc3).to_string());
    let mut merges: Vec<(String, String)> = vec![
        ("t".into(), "h".into()),
        ("th".into(), "e".into()),
        (a.clone(), "the".into()),
        ("i".into(), "n".into()),
        (a.clone(), "a".into()),
        (o, shown(0xa9).to_string()),
    ];
    let letters: Vec<char> = ('b'..='z').collect();
    merges.extend(letters.iter().map(|c| (a.clone(), c.to_string())));
    merges.extend(letters.iter().map(|c| (c.to_string(), "o".to_string())));
    for (left, right) in &merges {
        if vocab.len() < 211 {
            vocab.push(format!("{left}{right}"));
        }
    }
    merges.retain(|(left, right)| vocab.contains(&format!("{left}{right}")));
    let special = |id: usize| {
        json!({"id": id, "content": vocab[id], "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(0), special(1), special(2)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect::<serde_json::Map<_, _>>(),
            "merges": merges.iter().map(|(left, right)| format!("{left} {right}")).collect::<Vec<_>>(),
        },
    })
}

pub const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
                            message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}\
                            {{ '<|im_start|>assistant\n' }}{% endif %}";

pub fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
        "eos_token": {"content": "<|im_end|>", "lstrip": false, "special": true}, "chat_template": TEMPLATE,
    })
}

/// Writes a sparse model of random weights into `folder`, with the same tokenizer: qwen2_moe, whose router and shared expert's
/// gate stand beside its experts. Every row fills blocks of 32.
pub fn sparse_model(folder: &Path) -> PathBuf {
    let config = json!({
        "model_type": "qwen2_moe", "vocab_size": 211, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 6,
        "num_experts_per_tok": 2, "shared_expert_intermediate_size": 64, "mlp_only_layers": [1], "initializer_range": 0.1,
        "max_position_embeddings": 128, "eos_token_id": 2,
    });
    let config = DecoderConfig::from_json(&config.to_string()).unwrap();
    let params = Params::init(1, &Device::Cpu);
    Decoder::new(config.clone(), &params).unwrap();
    let tensors = params.published(|var| Some(var.as_tensor().clone())).unwrap();
    let dir = folder.join("model");
    fs::create_dir_all(&dir).unwrap();
    save(&dir.join("model.safetensors"), &tensors, &[]).unwrap();
    fs::write(dir.join("config.json"), Value::Object(config.published).to_string()).unwrap();
    fs::write(dir.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    fs::write(dir.join("tokenizer_config.json"), tokenizer_config().to_string()).unwrap();
    dir
}

/// Writes the model into `folder`.
pub fn language_model(folder: &Path) -> PathBuf {
    let dir = folder.join("model");
    fs::create_dir_all(&dir).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::write(dir.join(name), fs::read(weights().join(name)).unwrap()).unwrap();
    }
    fs::write(dir.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    fs::write(dir.join("tokenizer_config.json"), tokenizer_config().to_string()).unwrap();
    dir
}
