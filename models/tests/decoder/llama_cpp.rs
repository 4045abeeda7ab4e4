//! Files with details of llama.cpp's format against the logits that llama.cpp computes from them (`tools/gguf_models.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::checkpoint::gguf::Kind;
use moesaic_models::decoder::{AttentionConfig, Decoder, DecoderConfig, RopeScaling, save_gguf};

use crate::families::{Saved, logits, worst};

#[derive(serde::Deserialize)]
struct Recorded {
    ids: Vec<u32>,
    logits: BTreeMap<String, Vec<Vec<f32>>>,
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf").join(name)
}

fn recorded() -> Recorded {
    serde_json::from_str(&std::fs::read_to_string(file("logits.json")).unwrap()).unwrap()
}

fn config(name: &str) -> DecoderConfig {
    DecoderConfig::load(&file(&format!("{name}.gguf"))).unwrap()
}

#[test]
fn logits_are_those_of_llama_cpp() {
    let recorded = recorded();
    assert_eq!(recorded.logits.len(), 10);
    for (name, rows) in &recorded.logits {
        let model = Decoder::load(&file(&format!("{name}.gguf")), DType::F32, &Device::Cpu).unwrap();
        let ours = logits(&model, &[&recorded.ids]).squeeze(0).unwrap();
        let theirs = Tensor::new(rows.clone(), &Device::Cpu).unwrap();
        // llama.cpp rounds what it multiplies with F16 to F16, and what it multiplies with blocks to blocks.
        let most = match name.as_str() {
            "granitemoe_mixed_types" => 1e-3,
            "deepseek2_apart_blocks" => 3e-2,
            _ => 2e-5,
        };
        let largest = worst(&theirs, &theirs.zeros_like().unwrap());
        let error = worst(&ours, &theirs) / largest;
        eprintln!("{name}: {error:.1e}");
        assert!(error < most, "{name}: {error}");
    }
}

#[test]
fn what_the_files_say() {
    assert_eq!(config("llama_factor_alone").rope.unwrap().scaling, RopeScaling::Linear { factor: 4.0 });
    assert_eq!(config("llama_factor_of_no_type").rope.unwrap().scaling, RopeScaling::None);
    let yarn = |name| match config(name).rope.unwrap().scaling {
        RopeScaling::Yarn { factor, attention, original, .. } => (factor, attention, original),
        other => panic!("{name}: {other:?}"),
    };
    let (factor, attention, original) = yarn("llama_yarn_attention");
    assert!((factor, original) == (4.0, 16) && (attention - 1.3 * (1.0 + 0.1 * 4f64.ln())).abs() < 1e-7, "{attention}");
    for (name, scale) in [("deepseek2_apart", 1.0 + 0.0707 * 4f64.ln()), ("deepseek2_yarn_no_multiplier", 1.0)] {
        assert_eq!(yarn(name), (4.0, 1.0, 16));
        let AttentionConfig::Latent(latent) = config(name).attention else { panic!("{name}") };
        assert_eq!((latent.nope_dim, latent.rope_dim, latent.value_dim, latent.kv_rank), (32, 8, 16, 32), "{name}");
        let expected = scale * scale / 40f64.sqrt();
        assert!((latent.scale - expected).abs() < 1e-9, "{name}: {} {expected}", latent.scale);
    }
    let biases = |name| match config(name).attention {
        AttentionConfig::Grouped(a) => (a.qkv_bias, a.output_bias),
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!((biases("llama_bias_of_queries"), biases("llama_bias_of_output")), ((true, false), (false, true)));
    assert!(config("granitemoe_no_positions").rope.is_none() && config("granitemoe_mixed_types").rope.is_some());
    // Blocks cannot hold what stands in another order.
    let blocks = Checkpoint::open(&file("deepseek2_apart_blocks.gguf")).unwrap();
    let info = blocks.info("model.layers.0.self_attn.kv_b_proj.weight").unwrap();
    assert_eq!((info.blocks, info.dtype, info.shape.as_slice()), (None, DType::F32, &[4 * 48, 32][..]));
}

/// What was read from a file is the same model when it is written again.
#[test]
fn files_come_back() {
    let recorded = recorded();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let load = |path: &Path| Decoder::load(path, DType::F32, &Device::Cpu).unwrap();
    for name in recorded.logits.keys() {
        let from = file(&format!("{name}.gguf"));
        save_gguf(&from, &path, |_, _| Kind::Float(DType::F32)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let of = |path: &Path| logits(&load(path), &[&recorded.ids]);
        assert_eq!(worst(&of(&path), &of(&from)), 0.0, "{name}");
    }
}

#[test]
fn attention_factors_of_yarn_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    for attention in [1.0, 1.3, 0.8, 1.138_629_436_111_989, 1.2345678912345] {
        let saved = Saved::new(&serde_json::json!({
            "model_type": "llama", "vocab_size": 37, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 64,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": attention},
        }));
        save_gguf(saved.dir.path(), &path, |_, _| Kind::Float(DType::F32)).unwrap();
        let RopeScaling::Yarn { attention: read, .. } = DecoderConfig::load(&path).unwrap().rope.unwrap().scaling
        else {
            panic!("no yarn")
        };
        assert!((read / attention - 1.0).abs() < 1e-7, "{attention}: {read}");
        assert!(attention.to_string().len() > 9 || read == attention, "{attention}: {read}");
    }
}
