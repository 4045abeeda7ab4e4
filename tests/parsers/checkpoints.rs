//! Weights, the index of their shards, and the configurations that go with them.

use std::cell::OnceCell;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use moesaic_kernels::checkpoint::gguf::{Gguf, Kind, List, Value as GgufValue};
use moesaic_kernels::checkpoint::pickle::Pickle;
use moesaic_kernels::checkpoint::{Checkpoint, INDEX_FILE, OPEN_BYTES, OPEN_BYTES_PER_HEADER_BYTE, save};
use moesaic_kernels::{BlockFormat, Params};
use moesaic_models::decoder::{Decoder, DecoderConfig};
use moesaic_models::time_moe::{Config, TimeMoe};

use super::{Bound, Layout, Parser};

/// The documented bound of opening. What is read comes one tensor at a time and is no larger than a few times the file.
const OPEN: Bound = Bound { base: OPEN_BYTES, per_byte: OPEN_BYTES_PER_HEADER_BYTE };

/// One safetensors file in memory.
pub fn safetensors() -> Parser {
    Parser {
        name: "safetensors",
        seeds: || vec![file()],
        parse: |input| use_all(Checkpoint::from_bytes("damaged", input.to_vec())),
        bound: OPEN,
        layout: Layout::Framed,
    }
}

/// A GGUF file in memory: its tensors under published names, and its configuration.
pub fn gguf() -> Parser {
    Parser {
        name: "gguf",
        seeds: || vec![gguf_file("llama"), gguf_file("mixtral")],
        parse: |input| {
            let file = Gguf::from_bytes("damaged", input.to_vec()).map_err(|error| error.to_string())?;
            let config = DecoderConfig::from_gguf(&file).map_err(|error| moesaic::candle_message(&error));
            if let Ok(config) = &config {
                // What is accepted is sound: it says the same when it is read as a `config.json`.
                let json = serde_json::Value::Object(config.published.clone()).to_string();
                assert_eq!(&DecoderConfig::from_json(&json).unwrap(), config);
            }
            use_all(Ok(file.into_checkpoint()))?;
            config.map(drop)
        },
        // A tensor of blocks read as f64 takes 14 times its bytes. An expert of one number is a tensor with a name.
        bound: Bound { base: 4 << 20, per_byte: 128 },
        layout: Layout::Plain,
    }
}

/// A checkpoint of torch in memory: its tensors, and its settings.
pub fn pickle() -> Parser {
    Parser {
        name: "pickle",
        seeds: || {
            let plain = include_bytes!("../pickles/plain.pt").to_vec();
            vec![
                plain,
                include_bytes!("../pickles/fairseq.pt").to_vec(),
                include_bytes!("../pickles/lightning.ckpt").to_vec(),
            ]
        },
        parse: |input| {
            let pickle = Pickle::from_bytes("damaged", input.to_vec()).map_err(|error| error.to_string())?;
            let bytes: usize = pickle.checkpoint().names().map(|n| pickle.checkpoint().info(n).unwrap().bytes).sum();
            assert!(bytes <= 4 * input.len());
            let _ = pickle.config().map(ToString::to_string);
            use_all(Ok(pickle.into_checkpoint()))
        },
        // A value of an opcode of one byte, its place on the stack and in the memo; settings as JSON; a thread's first use of a map.
        bound: Bound { base: 8 << 20, per_byte: 256 },
        layout: Layout::Plain,
    }
}

/// The index of a model in shards, beside sound shards.
pub fn safetensors_index() -> Parser {
    Parser {
        name: "safetensors_index",
        seeds: || vec![FOLDER.with(|folder| folder.get_or_init(Folder::new).index.clone())],
        parse: |input| {
            FOLDER.with(|folder| {
                let folder = folder.get_or_init(Folder::new).dir.path();
                let path = folder.join(INDEX_FILE);
                // A new file each time: some file systems flush a file that is cut to nothing and written again, a
                // millisecond each.
                let _ = std::fs::remove_file(&path);
                std::fs::write(&path, input).map_err(|error| error.to_string())?;
                use_all(Checkpoint::open(folder))
            })
        },
        // The two shards are smaller than the constant.
        bound: Bound { base: 2 * OPEN.base, per_byte: OPEN.per_byte },
        layout: Layout::Plain,
    }
}

/// A `config.json` alone.
pub fn config() -> Parser {
    Parser {
        name: "config",
        seeds: configs,
        parse: |input| {
            let config = moesaic::parse_config(Path::new("config.json"), input).map_err(|error| error.to_string())?;
            // What is accepted is sound: its size can be told without overflow, and it can be written and read again.
            let parameters = config.parameters();
            assert!(0 < parameters.active && parameters.active <= parameters.total, "{config:?}");
            Config::from_json(&serde_json::to_string(&config).unwrap()).unwrap();
            Ok(())
        },
        // serde_json's tree takes 32 bytes a value, which may stand in 2 bytes, and lists double as they grow.
        bound: Bound { base: 64 << 10, per_byte: 96 },
        layout: Layout::Plain,
    }
}

/// A `config.json` beside weights that belong to another one: sizes are held against the weights before memory is taken.
pub fn model() -> Parser {
    Parser {
        name: "model",
        seeds: || vec![CONFIG.as_bytes().to_vec()],
        parse: |input| {
            let config = moesaic::parse_config(Path::new("config.json"), input).map_err(|error| error.to_string())?;
            let weights = Checkpoint::from_bytes("weights", WEIGHTS).unwrap();
            let loaded = TimeMoe::from_checkpoint(config, &weights, DType::F32, &Device::Cpu);
            let model = loaded.map_err(|error| moesaic::candle_message(&error))?;
            assert_eq!(model.parameters().total * 2, WEIGHTS.len() - header(WEIGHTS).end);
            Ok(())
        },
        // The weights as f32, twice while they are packed; names of at most 4096 experts and of their shapes.
        bound: Bound { base: 8 * WEIGHTS.len() + (4 << 20), per_byte: 96 },
        layout: Layout::Plain,
    }
}

const CONFIG: &str = include_str!("../fixtures/time_moe/forward_generate_bf16/config.json");
static WEIGHTS: &[u8] = include_bytes!("../fixtures/time_moe/forward_generate_bf16/model.safetensors");

fn configs() -> Vec<Vec<u8>> {
    let small = r#"{"model_type": "time_moe", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 4, "num_experts_per_tok": 2, "horizon_lengths": 8,
        "max_position_embeddings": 256, "use_dense": true, "hidden_act": "gelu", "rope_theta": 1e4}"#;
    vec![CONFIG.as_bytes().to_vec(), small.as_bytes().to_vec()]
}

/// Where the header of a sound file stands.
fn header(file: &[u8]) -> std::ops::Range<usize> {
    8..8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize
}

/// Reads all there is. What it returns does not matter, that it returns does.
fn use_all(checkpoint: candle_core::Result<Checkpoint>) -> Result<(), String> {
    let checkpoint = checkpoint.map_err(|error| error.to_string())?;
    for name in checkpoint.names() {
        let shape = checkpoint.info(name).unwrap().shape.clone();
        let _ = checkpoint.read_any(name);
        let _ = checkpoint.read(name, &shape, DType::F64, &Device::Cpu);
        let _ = checkpoint.read(name, &shape, DType::I64, &Device::Cpu);
    }
    let _ = checkpoint.read_any("model.nrom.weight");
    Ok(())
}

fn file() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let dev = &Device::Cpu;
    let tensors = [
        ("model.norm.weight", Tensor::arange(0f32, 8., dev).unwrap().to_dtype(DType::BF16).unwrap()),
        ("model.gate.weight", Tensor::arange(0f32, 12., dev).unwrap().reshape((3, 4)).unwrap()),
        ("mask", Tensor::new(&[[0u8, 1], [1, 1]], dev).unwrap()),
        ("ids", Tensor::new(&[1i64, 2, 3], dev).unwrap()),
    ]
    .map(|(name, tensor)| (name.to_string(), tensor));
    save(&path, &tensors, &[("format", "pt")]).unwrap();
    std::fs::read(&path).unwrap()
}

/// A model of one layer, with experts or without, partly in blocks.
fn gguf_file(model_type: &str) -> Vec<u8> {
    let config = serde_json::json!({
        "model_type": model_type, "vocab_size": 3, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 32, "max_position_embeddings": 8, "rms_norm_eps": 1e-5,
        "num_local_experts": 2, "num_experts_per_tok": 1,
    });
    let config = DecoderConfig::from_json(&config.to_string()).unwrap();
    let params = Params::init(1, &Device::Cpu);
    Decoder::new(config.clone(), &params).unwrap();
    let tensors = params.published(|var| Some(var.as_tensor().clone())).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    save(&path, &tensors, &[]).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let kind = |name: &str, _: &[usize]| match name.contains("ffn") {
        true => Kind::Blocks(BlockFormat::Q4_1),
        false => Kind::Float(DType::F16),
    };
    let mut draft = config.gguf(&checkpoint, kind).unwrap();
    let tokens = ["<s>", "a", "b"].map(str::to_string).to_vec();
    draft.add("tokenizer.ggml.tokens", GgufValue::List(List::Text(tokens)));
    draft.add("tokenizer.ggml.token_type", GgufValue::List(List::Signed(vec![3, 1, 1])));
    draft.add("tokenizer.ggml.scores", GgufValue::List(List::Float(vec![0.0, -1.0, -2.0])));
    draft.add("tokenizer.ggml.eos_token_id", GgufValue::Unsigned(0));
    draft.write(&path).unwrap();
    std::fs::read(&path).unwrap()
}

thread_local! {
    static FOLDER: OnceCell<Folder> = const { OnceCell::new() };
}

/// Two shards in a folder of this thread, and their index.
struct Folder {
    dir: tempfile::TempDir,
    index: Vec<u8>,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut map = serde_json::Map::new();
        for shard in 1..=2 {
            let file = format!("model-0000{shard}-of-00002.safetensors");
            let tensors: Vec<_> = (0..2)
                .map(|i| {
                    let values = Tensor::new(&[i as f32, 1.], &Device::Cpu).unwrap();
                    (format!("layers.{shard}.{i}.weight"), values)
                })
                .collect();
            save(&dir.path().join(&file), &tensors, &[]).unwrap();
            map.extend(tensors.iter().map(|(name, _)| (name.clone(), file.clone().into())));
        }
        let index = serde_json::json!({"metadata": {"total_size": 32}, "weight_map": map});
        Self { dir, index: serde_json::to_vec(&index).unwrap() }
    }
}
