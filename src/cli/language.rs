//! What the commands for language models share.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};
use moesaic::{Dtype, Speed, TextGenerator, TextOptions};

use super::INTERRUPTED;
use super::model::DeviceArgs;

/// How a model writes.
#[derive(Debug, clap::Args)]
pub(super) struct WritingArgs {
    /// Most tokens of an answer [default: the model's own, or 256]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// 0 takes the likeliest token at each step; higher values draw more freely [default: the model's own, or 0]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Draw among the K best tokens only; 0 for all [default: the model's own, or 50]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw among the fewest tokens that have this probability together [default: the model's own, or 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Draw among tokens at least this fraction as probable as the likeliest [default: the model's own, or 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f64>,
    /// Above 1, tokens that stand in the text already become less likely [default: the model's own, or 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    repetition_penalty: Option<f64>,
    /// Of the random numbers: the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Number type of the weights in memory: f32, bf16 or f16 [default: as stored]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<Dtype>,
    #[command(flatten)]
    pub place: DeviceArgs,
    /// Folder of an adapter (LoRA, as PEFT and `moesaic train` write it), with its strength after an = if it is not 1;
    /// may be given several times
    #[arg(long, value_name = "DIR[=X]", value_parser = adapter)]
    adapter: Vec<(PathBuf, f64)>,
}

/// `folder` or `folder=0.5`; a folder whose name ends in an = and a number is reached by `folder=0.5=1`.
fn adapter(text: &str) -> Result<(PathBuf, f64), String> {
    match text.rsplit_once('=').map(|(folder, strength)| (folder, strength.parse::<f64>())) {
        Some((_, Ok(strength))) if !strength.is_finite() => {
            Err(format!("a strength of {strength}: give a finite number"))
        }
        Some((folder, Ok(strength))) => Ok((folder.into(), strength)),
        _ => Ok((text.into(), 1.0)),
    }
}

impl WritingArgs {
    /// Attaches the adapters that were named.
    pub fn attach(&self, model: &mut TextGenerator) -> Result<()> {
        self.attach_by(&mut |folder, strength| model.attach(folder, strength))
    }

    /// The same for any model that takes adapters.
    pub fn attach_by(&self, attach: &mut dyn FnMut(&Path, f64) -> moesaic::Result<()>) -> Result<()> {
        for (folder, strength) in &self.adapter {
            attach(folder, *strength)?;
        }
        Ok(())
    }

    pub fn options(&self) -> TextOptions {
        let mut options = TextOptions::default();
        options.max_tokens = self.max_tokens;
        options.temperature = self.temperature;
        options.top_k = self.top_k;
        options.top_p = self.top_p;
        options.min_p = self.min_p;
        options.repetition_penalty = self.repetition_penalty;
        options.seed = self.seed;
        options.stop.clone_from(&self.stop);
        options
    }
}

/// `prompt 37 tokens, 812.3 tokens/s; answer 8 tokens, 25.1 tokens/s`
pub(super) fn speed(speed: &Speed, tokens: usize) -> String {
    let reused = match speed.reused_tokens {
        0 => String::new(),
        n => format!(" ({n} known from before)"),
    };
    let prefill = format!("prompt {} tokens{reused}, {:.1} tokens/s", speed.prompt_tokens, speed.prefill());
    match speed.decode_tokens {
        0 => format!("{prefill}; answer {tokens} tokens"),
        _ => format!("{prefill}; answer {tokens} tokens, {:.1} tokens/s", speed.decode()),
    }
}

/// What Ctrl-C does at present.
static INTERRUPT: AtomicU8 = AtomicU8::new(LEAVE);
/// It ends the program.
const LEAVE: u8 = 0;
/// It stops the answer.
const STOP: u8 = 1;
/// It has stopped the answer; once more ends the program.
const STOPPED: u8 = 2;

/// From now on Ctrl-C stops an answer that [`answering`] announced, and ends the program where there is none or where it is
/// pressed again.
pub(super) fn catch_interrupts() -> Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPT.compare_exchange(STOP, STOPPED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            std::process::exit(INTERRUPTED);
        }
    })
    .context("cannot take over Ctrl-C")
}

/// An answer begins (`true`) or has ended.
pub(super) fn answering(yes: bool) {
    INTERRUPT.store(if yes { STOP } else { LEAVE }, Ordering::SeqCst);
}

/// Ctrl-C was pressed during this answer.
pub(super) fn interrupted() -> bool {
    INTERRUPT.load(Ordering::SeqCst) == STOPPED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_may_have_a_strength() {
        assert_eq!(adapter("a/b").unwrap(), ("a/b".into(), 1.0));
        assert_eq!(adapter("a=b=-0.5").unwrap(), ("a=b".into(), -0.5));
        assert_eq!(adapter("a=b").unwrap(), ("a=b".into(), 1.0));
        assert!(adapter("a=NaN").is_err());
    }

    #[test]
    fn one_interrupt_stops_the_answer() {
        answering(true);
        assert!(!interrupted());
        assert!(INTERRUPT.compare_exchange(STOP, STOPPED, Ordering::SeqCst, Ordering::SeqCst).is_ok());
        assert!(interrupted());
        answering(false);
        assert!(!interrupted());
    }
}
