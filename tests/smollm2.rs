//! A real model, where it is there: `python3 tools/fetch_smollm2.py DIR` fetches the file that `MOESAIC_SMOLLM2` must name.

#[path = "support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};

use candle_core::{D, DType, Device, Tensor};
use moesaic::{Chat, Finish, Message, TemplateOptions, TextOptions, Tokenizer};
use moesaic_kernels::checkpoint::gguf::Gguf;
use moesaic_models::decoder::{Context, Decoder, DecoderConfig, Input};

fn file() -> Option<PathBuf> {
    let path = std::env::var_os("MOESAIC_SMOLLM2").map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: MOESAIC_SMOLLM2 does not name SmolLM2-135M-Instruct.Q4_1.gguf (tools/fetch_smollm2.py)");
    }
    path
}

const QUESTION: &str = "What is the capital of France?";

#[test]
fn the_capital_of_france() {
    let Some(path) = file() else { return };
    let chat = Chat::from_dir(&path).unwrap();
    let mut options = TextOptions::default();
    (options.temperature, options.max_tokens) = (Some(0.0), Some(32));
    let answer = chat.answer(&[Message::user(QUESTION)], &TemplateOptions::default(), &options).unwrap();
    assert_eq!((answer.text.as_str(), answer.finish), ("The capital of France is Paris.", Finish::Eos));
    assert_eq!(answer.prompt_tokens, 37);
}

/// The mean negative log-likelihood of the first of `examples/data/text/sonnets.txt`, each token given those before it. The
/// expected value is that of `tools/smollm2_nll.py`, which computes it in numpy, from the file.
#[test]
fn likelihood_of_a_sonnet() {
    let Some(path) = file() else { return };
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/text/sonnets.txt")).unwrap();
    let sonnet = text.split("%\n").next().unwrap();
    let ids = Tokenizer::load(&path).unwrap().encode(sonnet).unwrap();
    assert_eq!(ids.len(), TOKENS);
    let measured = |decoder: &Decoder| {
        let input = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let output = decoder.forward(Input::Ids(&input), &Context::default(), None, None).unwrap();
        let logits = decoder.logits(&output.hidden).unwrap().squeeze(0).unwrap().to_dtype(DType::F64).unwrap(); // (t, v)
        let most = logits.max_keepdim(D::Minus1).unwrap();
        let sums = logits.broadcast_sub(&most).unwrap().exp().unwrap().sum_keepdim(D::Minus1).unwrap().log().unwrap();
        let log_probs = logits.broadcast_sub(&(sums + most).unwrap()).unwrap().to_vec2::<f64>().unwrap();
        let next = ids.iter().skip(1).zip(&log_probs).map(|(&id, row)| -row[id as usize]);
        next.sum::<f64>() / (ids.len() - 1) as f64
    };
    // As it is stored, in blocks where the kernels take them.
    let blocks = Decoder::load(&path, DType::F32, &Device::Cpu).unwrap();
    // The same values as plain numbers.
    let file = Gguf::open(&path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("model.safetensors");
    let checkpoint = file.checkpoint();
    let tensors: Vec<_> =
        checkpoint.names().map(|name| (name.to_string(), checkpoint.read_any(name).unwrap())).collect();
    moesaic_kernels::checkpoint::save(&plain, &tensors, &[]).unwrap();
    let floats = Decoder::from_checkpoint(
        DecoderConfig::from_gguf(&file).unwrap(),
        &moesaic_kernels::checkpoint::Checkpoint::open(&plain).unwrap(),
        DType::F32,
        &Device::Cpu,
    )
    .unwrap();
    let (floats, blocks) = (measured(&floats), measured(&blocks));
    eprintln!("floats {floats:.5}, blocks {blocks:.5}, numpy {NUMPY}");
    assert!((floats - NUMPY).abs() < 1e-4, "{floats}");
    assert!((blocks - NUMPY).abs() < 0.02, "{blocks}");
}

const TOKENS: usize = 162;
const NUMPY: f64 = 2.60242;
