//! Models written as GGUF and read again: the same model, or a refusal where the format has no words for it.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use moesaic_kernels::BlockFormat;
use moesaic_kernels::checkpoint::gguf::{Gguf, Kind};
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_models::decoder::{Decoder, DecoderConfig, save_gguf};

use crate::families::{Saved, configs, logits, worst};

fn floats(_: &str, _: &[usize]) -> Kind {
    Kind::Float(DType::F32)
}

/// Rows of tokens below this vocabulary.
fn rows(vocabulary: usize) -> Vec<Vec<u32>> {
    (1..3u32).map(|seed| (0..9).map(|i| (i * i * 7 + i + seed * 5) % vocabulary as u32).collect()).collect()
}

/// The worst difference between the logits of a folder and of the file written from it; or why it is not written.
fn compared(dir: &Path, choose: fn(&str, &[usize]) -> Kind) -> Result<f32, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    save_gguf(dir, &path, choose).map_err(|e| e.to_string())?;
    let load = |path: &Path| Decoder::load(path, DType::F32, &Device::Cpu).unwrap_or_else(|e| panic!("{e}"));
    let (ours, theirs) = (load(&path), load(dir));
    let rows = rows(theirs.config().vocab_size);
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let worst = worst(&logits(&ours, &rows), &logits(&theirs, &rows));
    assert_eq!(ours.parameters().total(), theirs.parameters().total());
    Ok(worst)
}

/// Families of language models: only those are written as GGUF.
const LANGUAGE: [&str; 13] = [
    "deepseek_v2",
    "deepseek_v3",
    "granitemoe",
    "jetmoe",
    "llama",
    "mixtral",
    "olmoe",
    "phi",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "qwen3_moe",
    "stablelm",
];

pub fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let inside = |dir: &Path| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let mut all: Vec<PathBuf> =
        LANGUAGE.iter().map(|family| root.join(family)).flat_map(|family| inside(&family)).collect();
    all.sort();
    all
}

/// What GGUF has no words for, with a part of the message.
const REFUSED: [(&str, &str); 17] = [
    ("deepseek_v3/halves", "rotary positions"),
    ("deepseek_v3/yarn", "rotary positions"),
    ("jetmoe/one_expert", "cannot be written as GGUF"),
    ("jetmoe/three_experts", "cannot be written as GGUF"),
    ("jetmoe/tiny_moa_8e", "cannot be written as GGUF"),
    ("llama/dynamic", "\"dynamic\""),
    ("llama/dynamic_from_decoding", "\"dynamic\""),
    ("llama/tied_gelu", "dense part"),
    ("mixtral/window", "sliding window"),
    ("olmoe/clip", "attention"),
    ("phi/qk_norm", "has no place"),
    ("phimoe/long", "routing"),
    ("phimoe/long_from_decoding", "rotary positions"),
    ("phimoe/tiny_8e_top2", "routing"),
    ("qwen2/window", "sliding window"),
    ("qwen2_moe/dense_layer", "routing"),
    ("qwen3_moe/window", "sliding window"),
];

#[test]
fn published_layouts_come_back() {
    let (mut written, mut wrong) = (0, Vec::new());
    for dir in fixtures() {
        let name = dir.strip_prefix(dir.ancestors().nth(2).unwrap()).unwrap().to_string_lossy().into_owned();
        let refused = REFUSED.iter().find(|(case, _)| *case == name);
        match (compared(&dir, floats), refused) {
            (Ok(worst), None) => {
                // Llama 3's frequencies are written as factors of 32 bits.
                let most = if name == "llama/llama3_rope_tied" { 1e-5 } else { 0.0 };
                if worst > most {
                    wrong.push(format!("{name}: {worst}"));
                }
                written += 1;
            }
            (Err(message), Some((_, part))) if message.contains(part) => {}
            (Err(message), Some(_)) => wrong.push(format!("{name}: {message}")),
            (Ok(worst), Some(_)) => wrong.push(format!("{name} is written ({worst}), which was refused")),
            (Err(message), None) => wrong.push(format!("{name}: {message}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(written > 20, "{written}");
}

#[test]
fn small_models_of_every_family_come_back() {
    let mut families = std::collections::BTreeSet::new();
    // Without what GGUF lacks: a jitter of its own, and one factor for short and long texts.
    let mut phimoe = configs().into_iter().find(|c| c["model_type"] == "phimoe").unwrap();
    phimoe["router_jitter_noise"] = 0.01.into();
    phimoe["rope_scaling"]["long_mscale"] = 1.0.into();
    for config in configs().into_iter().chain([phimoe]) {
        let saved = Saved::new(&config);
        match compared(saved.dir.path(), floats) {
            Ok(worst) => {
                assert_eq!(worst, 0.0, "{config}");
                families.insert(saved.config.model_type.clone());
            }
            Err(message) => {
                assert!(message.contains("cannot be") || message.contains("no place"), "{config}: {message}")
            }
        }
    }
    for family in ["llama", "qwen2_moe", "qwen3_moe", "granitemoe", "deepseek_v2", "deepseek_v3", "phimoe"] {
        assert!(families.contains(family), "{family} is not among {families:?}");
    }
}

/// A llama whose rows fill blocks of 32, and of 256.
fn wide(model_type: &str) -> serde_json::Value {
    serde_json::json!({
        "model_type": model_type, "vocab_size": 37, "hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 256, "max_position_embeddings": 64, "initializer_range": 0.1,
        "num_local_experts": 3, "num_experts_per_tok": 2,
    })
}

#[test]
fn blocks_stay_blocks_under_published_names() {
    for (model_type, expert) in [("llama", "mlp.down_proj"), ("mixtral", "block_sparse_moe.experts.2.w2")] {
        let saved = Saved::new(&wide(model_type));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        for format in [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q4K] {
            save_gguf(saved.dir.path(), &path, |_, _| Kind::Blocks(format)).unwrap();
            let (file, plain) = (Checkpoint::open(&path).unwrap(), Checkpoint::open(saved.dir.path()).unwrap());
            for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", expert] {
                let name = format!("model.layers.0.{name}.weight");
                let shape = plain.info(&name).unwrap().shape.clone();
                assert_eq!(file.info(&name).unwrap().blocks, Some(format));
                let read = file.read(&name, &shape, DType::F32, &Device::Cpu).unwrap();
                let blocks = file.blocks(&name, &shape).unwrap().unwrap().dequantise().unwrap();
                assert_eq!(worst(&read, &blocks), 0.0, "{name}");
                // Each value is that of the plain weight but for rounding, so no row has moved.
                let values = plain.read(&name, &shape, DType::F32, &Device::Cpu).unwrap();
                let most = if format == BlockFormat::Q8_0 { 3e-3 } else { 0.05 };
                assert!(worst(&read, &values) < most, "{name} {}: {}", format.name(), worst(&read, &values));
            }
            assert!(file.blocks("model.norm.weight", &[256]).unwrap().is_none());
        }
    }
}

#[test]
fn quantised_weights_are_not_quantised_again() {
    let saved = Saved::new(&wide("llama"));
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("a.gguf"), folder.path().join("b.gguf"));
    let choose = |_: &str, _: &[usize]| Kind::Blocks(BlockFormat::Q4_1);
    save_gguf(saved.dir.path(), &first, choose).unwrap();
    let config = DecoderConfig::load(&first).unwrap();
    config.gguf(&Checkpoint::open(&first).unwrap(), choose).unwrap().write(&second).unwrap();
    let (a, b) = (Gguf::open(&first).unwrap(), Gguf::open(&second).unwrap());
    for name in a.checkpoint().names() {
        let shape = a.checkpoint().info(name).unwrap().shape.clone();
        let blocks = |file: &Gguf| file.checkpoint().blocks(name, &shape).unwrap().map(|b| b.into_data());
        assert_eq!(blocks(&a), blocks(&b), "{name}");
    }
}

#[test]
fn files_in_parts() {
    use std::io::Write;
    let saved = Saved::new(&wide("llama"));
    let folder = tempfile::tempdir().unwrap();
    // Two files of one model: tensors of the second part only, as far as the format cares.
    let whole = folder.path().join("whole.gguf");
    save_gguf(saved.dir.path(), &whole, floats).unwrap();
    let config = DecoderConfig::load(saved.dir.path()).unwrap();
    let checkpoint = Checkpoint::open(saved.dir.path()).unwrap();
    let split = |i: u64, keep: &dyn Fn(&str) -> bool| {
        let tensors: Vec<_> =
            saved.tensors.iter().filter(|(name, _)| keep(name)).map(|(n, t)| (n.clone(), t.clone())).collect();
        let part = folder.path().join(format!("part-{i}.safetensors"));
        save(&part, &tensors, &[]).unwrap();
        let mut draft =
            moesaic_kernels::checkpoint::gguf::Draft::new(&config.published, &Checkpoint::open(&part).unwrap(), floats)
                .unwrap();
        use moesaic_kernels::checkpoint::gguf::Value;
        draft.add("split.no", Value::Unsigned(i));
        draft.add("split.count", Value::Unsigned(2));
        draft.write(&folder.path().join(format!("m-{:05}-of-00002.gguf", i + 1))).unwrap();
    };
    split(0, &|name| !name.contains("mlp"));
    let first = folder.path().join("m-00001-of-00002.gguf");
    let message = Gguf::open(&first).unwrap_err().to_string();
    assert!(message.contains("m-00002-of-00002.gguf: part 2 of 2 is not there"), "{message}");
    split(1, &|name| name.contains("mlp"));
    let (parts, whole) = (Checkpoint::open(&first).unwrap(), Checkpoint::open(&whole).unwrap());
    assert_eq!(parts.names().collect::<Vec<_>>(), whole.names().collect::<Vec<_>>());
    for name in checkpoint.names() {
        let shape = checkpoint.info(name).unwrap().shape.clone();
        let read = |file: &Checkpoint| file.read(name, &shape, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(worst(&read(&parts), &read(&checkpoint)), 0.0, "{name}");
    }
    assert_eq!(parts.files().count(), 2);
    let second = folder.path().join("m-00002-of-00002.gguf");
    let message = Gguf::open(&second).unwrap_err().to_string();
    assert!(message.contains("give the first one"), "{message}");
    let renamed = folder.path().join("model.gguf");
    std::fs::copy(&first, &renamed).unwrap();
    assert!(Gguf::open(&renamed).unwrap_err().to_string().contains("-00001-of-00002.gguf"));
    // A tensor that two parts have.
    split(1, &|name| name.contains("mlp") || name == "model.norm.weight");
    let message = Gguf::open(&first).unwrap_err().to_string();
    assert!(message.contains("\"output_norm.weight\" stands in an earlier part too"), "{message}");
    // A folder with nothing else says what to do.
    std::io::stderr().flush().unwrap();
    let message = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("safetensors"), "{message}");
}
