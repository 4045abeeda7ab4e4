//! Makes a mixture of experts out of a dense language model, from Rust: what `moesaic upcycle` and `moesaic mix` do.
//!
//! ```console
//! cargo run --release --example upcycle                                   # a tiny model of random weights, in a second
//! cargo run --release --example upcycle -- path/to/SmolLM2-135M sparse    # a real one (llama or qwen2), into the folder sparse
//! ```
//!
//! The result starts with the logits of the dense model, which this checks; `moesaic train language` goes on from there
//! (`init = "sparse"`).

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Tensor};
use moesaic_models::decoder::{Context, Decoder, Input};
use moesaic_models::upcycle::{Options, Plan};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let dense = arguments.next().unwrap_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/qwen2/tiny_gqa"));
    let scratch = tempfile::tempdir()?;
    let output = arguments.next().unwrap_or(scratch.path().join("sparse"));

    // Four copies of each feed-forward part, each cut in two: eight experts, of which a token gets two whole copies. Half of
    // a further copy serves every token.
    let options = Options { experts: 8, top_k: 4, granularity: 2, shared: 1, shuffle: true, ..Options::default() };
    let plan = Plan::upcycle(&dense, options)?;
    println!(
        "{} of {} parameters, {} at work for a token, {:.1} MB of weights",
        plan.config().model_type,
        plan.parameters().total(),
        plan.parameters().active(),
        plan.bytes() as f64 / 1e6
    );
    plan.write(&output, &AtomicBool::new(false), &mut |_, _| {})?;

    let (before, after) = (logits(&dense)?, logits(&output)?);
    let difference = (before - after)?.abs()?.max_all()?.to_scalar::<f32>()?;
    println!("largest difference of logits to those of the dense model: {difference:.1e}");
    Ok(())
}

/// Logits of a few tokens.
fn logits(dir: &Path) -> anyhow::Result<Tensor> {
    let model = Decoder::load(dir, DType::F32, &Device::Cpu)?;
    let ids = Tensor::new(&[[10u32, 20, 31, 42, 7]], &Device::Cpu)?;
    let output = model.forward(Input::Ids(&ids), &Context::default(), None, None)?;
    Ok(model.logits(&output.hidden)?)
}
