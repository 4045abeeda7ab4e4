//! Time-MoE. Which passes run follows from the names that a case wants:
//!
//! | names | pass |
//! | --- | --- |
//! | `fwd.*` | forward, no mask |
//! | `fwd_mask.*` | forward with left padding, positions 0, 1, 2, ... as the reference's default |
//! | `fwd_mask_pos.*` | forward with left padding, positions that count real tokens |
//! | `train.{variant}.*` | loss and gradients; `train_variants` says which masks are passed |
//! | `norm.*`, `generate.{n}`, `generate.{n}.denorm` | standardisation, generation, forecast of the raw series |

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use candle_core::{DType, Device, Tensor};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Params, Probe};
use moesaic_models::time_moe::{Config, Context, Normalisation, Targets, TimeMoe};

use crate::case::{Case, Got};

pub fn run(case: &Case, got: &mut Got) -> Result<()> {
    let model = TimeMoe::load(&case.dir, case.dtype, &case.device)?;
    for (prefix, masked, count_real) in
        [("fwd.", false, false), ("fwd_mask.", true, false), ("fwd_mask_pos.", true, true)]
    {
        if case.wants(prefix) {
            let context = if masked { padded(case, count_real)? } else { Context::default() };
            forward(case, &model, &context, prefix, got)?;
        }
    }
    if case.wants("norm.") {
        standardise(&rows(&case.input("raw_context")?)?, got)?;
    }
    generate(case, &model, got)?;
    for variant in case.json.get("train_variants").and_then(|v| v.as_array()).into_iter().flatten() {
        let name = variant["name"].as_str().context("a variant of train_variants has no name")?;
        let passes =
            |what: &str| variant[what].as_bool().with_context(|| format!("variant {name} does not say {what}"));
        train(case, &format!("train.{name}."), passes("mask")?, passes("attn")?, got)?;
    }
    Ok(())
}

/// Left padding by the case's attention mask; positions of real tokens as `generate` derives them, or the default.
fn padded(case: &Case, count_real: bool) -> Result<Context> {
    let context = Context::left_padded(&case.input("attention_mask")?)?;
    Ok(if count_real { context } else { Context { positions: None, ..context } })
}

fn rows(tensor: &Tensor) -> Result<Vec<Vec<f32>>> {
    Ok(tensor.to_dtype(DType::F32)?.to_vec2()?)
}

fn forward(case: &Case, model: &TimeMoe, context: &Context, prefix: &str, got: &mut Got) -> Result<()> {
    let x = case.input("context")?;
    let (b, t) = x.dims2()?;
    let probe = Probe::new();
    let output = model.forward(&x, context, None, Some(&probe))?;
    for (name, tensor) in probe.tensors() {
        // A sparse layer knows tokens only, [b * t, ..]; the reference shows rows and positions.
        let dims = tensor.dims();
        let tensor = match dims.split_first() {
            Some((&tokens, rest)) if tokens == b * t && dims.len() == 2 => tensor.reshape([&[b, t], rest].concat())?,
            _ => tensor,
        };
        got.put(format!("{prefix}{name}"), tensor);
    }
    for (j, horizon) in model.config().horizon_lengths.iter().enumerate() {
        let values = model.head(j, &output.hidden)?;
        if j == 0 {
            got.put(format!("{prefix}logits"), values.clone());
        }
        got.put(format!("{prefix}head.{horizon}"), values);
    }
    Ok(())
}

fn standardise(raw: &[Vec<f32>], got: &mut Got) -> Result<()> {
    let norms: Vec<Normalisation> = raw.iter().map(|row| Normalisation::of(row)).collect();
    let column = |of: fn(&Normalisation) -> f64| {
        Tensor::new(norms.iter().map(|n| vec![of(n)]).collect::<Vec<_>>(), &Device::Cpu)
    };
    got.put("norm.mean", column(|n| n.mean)?);
    got.put("norm.std", column(|n| n.std)?);
    let applied: Vec<Vec<f32>> =
        raw.iter().zip(&norms).map(|(row, norm)| row.iter().map(|&v| norm.apply(v)).collect()).collect();
    got.put("norm.context", Tensor::new(applied, &Device::Cpu)?);
    Ok(())
}

fn generate(case: &Case, model: &TimeMoe, got: &mut Got) -> Result<()> {
    let horizons: BTreeSet<usize> =
        case.wanted().filter_map(|name| name.strip_prefix("generate.")?.split('.').next()?.parse().ok()).collect();
    for n in horizons {
        let mask = if case.has_input("attention_mask") { Some(case.input("attention_mask")?) } else { None };
        got.put(format!("generate.{n}"), model.generate(&case.input("context")?, mask.as_ref(), n)?);
        if case.wants(&format!("generate.{n}.denorm")) {
            // The whole way: the raw series in, values in its own units out.
            let raw = rows(&case.input("raw_context")?)?;
            let series: Vec<&[f32]> = raw.iter().map(Vec::as_slice).collect();
            got.put(format!("generate.{n}.denorm"), Tensor::new(model.forecast(&series, n)?, &Device::Cpu)?);
        }
    }
    Ok(())
}

fn train(case: &Case, prefix: &str, loss_mask: bool, attention_mask: bool, got: &mut Got) -> Result<()> {
    let config = Config::from_json(&std::fs::read_to_string(case.dir.join("config.json"))?)?;
    let params = Params::resume(&Checkpoint::open(&case.dir)?, &case.device);
    let model = TimeMoe::new(config, &params)?;

    let x = case.input("context")?;
    let (b, t) = x.dims2()?;
    let flat =
        |name: &str| -> Result<Vec<f32>> { Ok(case.input(name)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?) };
    let mask = if loss_mask { Some(flat("loss_masks")?) } else { None };
    let targets = Targets::new(flat("labels")?, mask, b)?;
    // Heads that look from the padding into the series count in the loss, so what the reference computes there matters.
    let context =
        if attention_mask { Context { reference_padding: true, ..padded(case, false)? } } else { Context::default() };
    let (losses, output) = model.loss(&x, &context, &targets)?;

    got.put(format!("{prefix}loss"), losses.total.reshape(1)?);
    for (loss, horizon) in losses.heads.iter().zip(&model.config().horizon_lengths) {
        got.put(format!("{prefix}head_loss.{horizon}"), loss.reshape(1)?);
    }
    if let Some(aux) = &losses.aux {
        got.put(format!("{prefix}aux_loss"), aux.reshape(1)?);
    }
    for (i, routes) in output.routes.iter().enumerate() {
        if let Some(logits) = routes.logits() {
            got.put(format!("{prefix}layer.{i}.router_logits"), logits.reshape((b, t, ()))?);
        }
    }
    if !case.wants(&format!("{prefix}grad")) {
        return Ok(());
    }
    let grads = losses.total.backward()?;
    // A variable that the loss does not reach has a gradient of zero.
    let gradient = |var: &candle_core::Var| grads.get(var).cloned().or_else(|| var.zeros_like().ok());
    let published = params.published(gradient)?;
    let mut squares = 0.0;
    for (_, grad) in &published {
        squares += f64::from(grad.to_dtype(DType::F32)?.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    got.put_number(format!("{prefix}grad_norm"), squares.sqrt())?;
    got.put_all(&format!("{prefix}grad."), published);
    Ok(())
}
