//! The hand-written LoRA of Llama-AVSR (arXiv 2409.12319) and Llama-MTSK (arXiv 2503.06362): queries and values of every
//! layer, `self_attn.lora_{down, up}_{Q, V}.weight` under the model's own names.
//!
//! `reduction` divides the width: the rank is `round(hidden / reduction)`, the scale `alpha / reduction`. Matryoshka models
//! keep one adapter for each compression rate (`local_loras.{i}`), one for all (`global_lora`), or both, which add up.
//! Where PEFT starts from `B = 0`, here the first map is zero.

use candle_core::{Result, bail};
use moesaic_kernels::lora::LowRank;
use moesaic_kernels::{Init, Params};

use crate::decoder::Site;

/// The numbers of an adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reduced {
    /// Hidden width over rank.
    pub reduction: f64,
    /// Numerator of the scale.
    pub alpha: f64,
}

/// Attaches the adapters of `groups` to queries and values: `""` for the one of Llama-AVSR, `local_loras.0`, `global_lora`.
/// `params` stands where the model's own names start (`llm` in Llama-AVSR). They are called as the groups are.
///
/// # Errors
/// A tensor is missing or has another shape, or the model has no queries and values under these names.
pub fn attach(sites: Vec<Site<'_>>, params: &Params, numbers: Reduced, groups: &[&str]) -> Result<usize> {
    let Reduced { reduction, alpha } = numbers;
    if !(reduction.is_finite() && reduction >= 1.0 && alpha.is_finite()) {
        bail!("a LoRA with reduction {reduction} and alpha {alpha}: expected a reduction of at least 1");
    }
    let mut count = 0;
    for site in sites {
        let Site::Linear { parts, linear } = site else { continue };
        let (inputs, mut first) = (linear.input_width(), 0);
        let rank = (inputs as f64 / reduction).round_ties_even() as usize;
        for (module, out) in parts {
            let letter = match module.rsplit_once('.') {
                Some((attention, "q_proj")) => Some((attention, "Q")),
                Some((attention, "v_proj")) => Some((attention, "V")),
                _ => None,
            };
            if let Some((attention, letter)) = letter {
                if rank == 0 {
                    bail!("a reduction of {reduction} leaves no rank of {inputs}");
                }
                for group in groups {
                    let place = if group.is_empty() { attention.to_string() } else { format!("{attention}.{group}") };
                    let tensor = |way: &str, shape: [usize; 2], init| {
                        params.tensor(&format!("{place}.lora_{way}_{letter}.weight"), shape, init)
                    };
                    let down = tensor("down", [rank, inputs], Init::Zeros)?;
                    let up = tensor("up", [out, rank], Init::Uniform(1.0 / (rank as f64).sqrt()))?;
                    linear.attach(LowRank::new(group, down, up, alpha / reduction)?.at(first))?;
                    count += 1;
                }
            }
            first += out;
        }
    }
    if count == 0 {
        bail!("the model has no q_proj and v_proj to adapt");
    }
    Ok(count)
}
