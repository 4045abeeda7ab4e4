//! Attaching an adapter: each map that the config names gets its pair of tensors.

use candle_core::{D, Error, Result, Tensor, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::lora::LowRank;
use moesaic_kernels::{ExpertBank, Half, Init, Linear, Params};

use super::config::{AdapterConfig, Matcher};
use super::places::{Map, Stack, maps, modules, stacks};
use super::{CONFIG_FILE, PREFIX};
use crate::decoder::Site;

/// Attaches the adapter that `params` holds, or makes, to the maps that `config` names: variables of [`Params::init`] or
/// [`Params::resume`] are trained. Gives the number of maps that are changed.
///
/// `file` is the checkpoint behind `params`, if there is one: experts that it holds nothing of may be targets by name only.
///
/// # Errors
/// A tensor is missing or has another shape, or the config names no map of the model.
pub fn attach(
    config: &AdapterConfig,
    sites: Vec<Site<'_>>,
    params: &Params,
    name: &str,
    weight: f64,
    file: Option<&Checkpoint>,
) -> Result<usize> {
    let known = modules(&sites);
    let attach = Attach { matcher: config.matcher()?, config, params: &params.pp(PREFIX), name, weight, file };
    let last = sites.len().saturating_sub(1);
    // Experts one by one count as targets only where the file knows of them: PEFT names `gate_proj`, and what carries that
    // name depends on how the library that trained it held the experts.
    let each = file.is_none_or(|file| {
        sites.iter().any(|site| match site {
            Site::Experts { names, .. } if names.len() > 1 => {
                names.iter().flatten().flatten().any(|module| has(file, module))
            }
            _ => false,
        })
    });
    let mut count = 0;
    for (i, site) in sites.into_iter().enumerate() {
        count += match site {
            Site::Linear { parts, linear } => attach.linear(&parts, linear, i == last)?,
            Site::Experts { names, prefix, bank } => {
                let routed = names.len() != 1;
                let layers = [bank.layer(Half::Up), bank.layer(Half::Down)];
                let mut done = 0;
                for map in maps(&names, layers).iter().filter(|_| each || !routed) {
                    done += attach.experts(map, bank)?;
                }
                for stack in stacks(&names, &prefix, layers[1].is_some()) {
                    done += attach.stack(&stack, bank)?;
                }
                done
            }
        };
    }
    if count == 0 {
        let (first, last) = (known.first().map_or("", String::as_str), known.last().map_or("", String::as_str));
        bail!("adapter {name:?}: no map of the model is a target; its {} maps are {first} to {last}", known.len());
    }
    Ok(count)
}

fn has(file: &Checkpoint, module: &str) -> bool {
    file.info(&format!("{PREFIX}.{module}.lora_A.weight")).is_some()
}

struct Attach<'a> {
    config: &'a AdapterConfig,
    matcher: Matcher<'a>,
    params: &'a Params,
    name: &'a str,
    weight: f64,
    file: Option<&'a Checkpoint>,
}

impl Attach<'_> {
    fn finish(&self, change: LowRank, first: usize, place: &str) -> Result<LowRank> {
        change.at(first).with_weight(self.weight).with_dropout(self.config.lora_dropout, place)
    }

    /// Tensors of one name each, laid one after the other.
    fn tensor(&self, shape: &[usize], modules: &[&str], half: &str, part: [usize; 2], init: Init) -> Result<Tensor> {
        let parts: Vec<_> = modules.iter().map(|m| (format!("{m}.{half}.weight"), part.to_vec())).collect();
        self.params.stack(shape, &parts, init).map_err(|e| match self.file {
            // Not `config.json`, of which the loader speaks.
            Some(_) => {
                let text = super::plain(&e);
                let text = text.split(": check that config.json").next().unwrap_or(&text);
                let text = text.split(": config.json and these").next().unwrap_or(text);
                Error::Msg(format!("{text}: the adapter does not fit this model or its own {CONFIG_FILE}"))
            }
            None => e,
        })
    }

    fn linear(&self, parts: &[(String, usize)], linear: &mut Linear, head: bool) -> Result<usize> {
        let (inputs, mut first, mut count) = (linear.input_width(), 0, 0);
        for (module, out) in parts {
            if self.matcher.module(module, head)? {
                let rank = self.matcher.rank(module)?;
                let a = self.tensor(&[rank, inputs], &[module], "lora_A", [rank, inputs], uniform(inputs))?;
                let b = self.tensor(&[*out, rank], &[module], "lora_B", [*out, rank], Init::Zeros)?;
                let change = LowRank::new(self.name, a, b, self.matcher.scale(module)?)?;
                linear.attach(self.finish(change, first, module)?)?;
                count += 1;
            }
            first += out;
        }
        Ok(count)
    }

    fn experts(&self, map: &Map<'_>, bank: &mut ExpertBank) -> Result<usize> {
        let mut chosen = Vec::with_capacity(map.modules.len());
        for module in &map.modules {
            chosen.push(match self.matcher.module(module, false)? {
                true => Some((*module, self.matcher.rank(module)?, self.matcher.scale(module)?)),
                false => None,
            });
        }
        let Some(&(place, rank, scale)) = chosen.iter().flatten().next() else { return Ok(0) };
        let (e, out, inputs) = (map.modules.len(), map.out, map.inputs);
        let alike = chosen.iter().all(|c| c.is_some_and(|(_, r, s)| r == rank && s == scale));
        let change = if alike {
            let a = self.tensor(&[e, rank, inputs], &map.modules, "lora_A", [rank, inputs], uniform(inputs))?;
            let b = self.tensor(&[e, out, rank], &map.modules, "lora_B", [out, rank], Init::Zeros)?;
            LowRank::new(self.name, a, b, scale)?
        } else {
            self.unlike(&chosen, out, inputs)?
        };
        bank.attach(map.half, self.finish(change, map.first, place)?)?;
        Ok(chosen.iter().flatten().count())
    }

    /// Experts of unlike rank or scale, or only some of them: filled up with zeros to the highest rank, and the scale put
    /// into B.
    fn unlike(&self, chosen: &[Option<(&str, usize, f64)>], out: usize, inputs: usize) -> Result<LowRank> {
        if self.params.trains() {
            bail!(
                "adapter {:?}: in training, the experts of a layer are all changed or none, in one rank and scale",
                self.name
            );
        }
        let most = chosen.iter().flatten().map(|(_, rank, _)| *rank).max().unwrap_or(1);
        let (mut all_a, mut all_b) = (Vec::new(), Vec::new());
        let (dtype, device) = (self.params.dtype(), self.params.device());
        for expert in chosen {
            let Some((module, rank, scale)) = *expert else {
                all_a.push(Tensor::zeros((most, inputs), dtype, device)?);
                all_b.push(Tensor::zeros((out, most), dtype, device)?);
                continue;
            };
            let a = self.tensor(&[rank, inputs], &[module], "lora_A", [rank, inputs], Init::Zeros)?;
            let b = self.tensor(&[out, rank], &[module], "lora_B", [out, rank], Init::Zeros)?;
            all_a.push(a.pad_with_zeros(0, 0, most - rank)?);
            all_b.push((b * scale)?.pad_with_zeros(D::Minus1, 0, most - rank)?);
        }
        LowRank::new(self.name, Tensor::stack(&all_a, 0)?, Tensor::stack(&all_b, 0)?, 1.0)
    }

    fn stack(&self, stack: &Stack, bank: &mut ExpertBank) -> Result<usize> {
        let full = |parameter: &str| format!("{}.{parameter}", stack.module);
        if !self.matcher.parameter(&full(stack.parameter)) {
            return Ok(0);
        }
        let Some((out, inputs)) = bank.layer(stack.half) else { return Ok(0) };
        // PEFT wraps the module once for each of its parameters; the first one is the innermost.
        let wrapped = stack.later.is_some_and(|later| self.matcher.parameter(&full(later)));
        let module = if wrapped { format!("{}.base_layer", stack.module) } else { stack.module.clone() };
        if self.params.trains() && self.config.lora_dropout > 0.0 {
            bail!("{module}: PEFT knows no dropout for stacked experts; train them with lora_dropout = 0");
        }
        let key = full(stack.parameter);
        let (rank, scale, e) = (self.matcher.rank(&key)?, self.matcher.scale(&key)?, bank.networks());
        let Some(rows) = e.checked_mul(rank) else { bail!("{module}: a rank of {rank} for {e} experts") };
        let name = format!("{PREFIX}.{module}.lora_A.weight");
        // Earlier versions of PEFT took the outputs of `[E, out, in]` for its inputs.
        let swapped = self.file.and_then(|f| f.info(&name)).is_some_and(|i| i.shape == [rows, out] && out != inputs);
        let (wide, tall) = if swapped { (out, inputs) } else { (inputs, out) };
        let a = self.tensor(&[rows, wide], &[&module], "lora_A", [rows, wide], uniform(wide))?;
        let b = self.tensor(&[tall, rows], &[&module], "lora_B", [tall, rows], Init::Zeros)?;
        let change = if swapped {
            let a = a.reshape((e, rank, wide))?.transpose(1, 2)?.contiguous()?; // (E, out, r)
            let b = b.reshape((tall, rank, e))?.permute((2, 1, 0))?.contiguous()?; // (E, r, in)
            LowRank::new(self.name, b, a, scale)?
        } else {
            LowRank::interleaved(self.name, e, a, b, scale)?
        };
        bank.attach(stack.half, self.finish(change, 0, &key)?)?;
        Ok(1)
    }
}

/// PEFT's (and torch's) initial values: Kaiming's uniform with `a = sqrt(5)`.
fn uniform(inputs: usize) -> Init {
    Init::Uniform(1.0 / (inputs.max(1) as f64).sqrt())
}
