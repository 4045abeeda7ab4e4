//! The families of the one decoder. A case wants, of a left-padded batch of prompts: `hidden.{i}`, `final_norm`, `logits`, of
//! sparse layers `router_logits.{i}`, `topk_index.{i}`, `topk_weight.{i}` (`attn_` before them for attention experts),
//! `ce_loss` and `aux_loss` of the prompts as labels, and `greedy_tokens` with the `greedy_logits` that they were taken from,
//! decoded with a cache.

use anyhow::{Context as _, Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use moesaic_kernels::{Params, Probe, checkpoint::Checkpoint};
use moesaic_models::decoder::{Cache, Context, Decoder, DecoderConfig, Input};

use crate::case::{Case, Got};

pub fn run(case: &Case, got: &mut Got) -> Result<()> {
    let model = Decoder::load(&case.dir, case.dtype, &case.device)?;
    let ids = case.input("input_ids")?;
    let mask = match case.has_input("attention_mask") {
        true => case.input("attention_mask")?,
        false => ids.ones_like()?,
    };
    // The losses count each row's first token, and frequencies that depend on the text's length follow the longest row.
    let context = Context { reference_padding: true, ..Context::left_padded(&mask)? };

    let probe = Probe::new();
    let output = model.forward(Input::Ids(&ids), &context, None, Some(&probe))?;
    got.put_all("", probe.tensors());
    got.put("logits", model.logits(&output.hidden)?);
    if case.wants("greedy_") {
        greedy(case, &model, &ids, &context, got)?;
    }
    if case.wants("ce_loss") || case.wants("aux_loss") {
        loss(case, &ids, &mask, &context, got)?;
    }
    Ok(())
}

fn greedy(case: &Case, model: &Decoder, ids: &Tensor, context: &Context, got: &mut Got) -> Result<()> {
    let steps = case.json["expected"]["greedy_tokens"]["shape"][1].as_u64().context("greedy_tokens has no length")?;
    let mut cache = Cache::default();
    let mut step = ids.clone();
    let (mut tokens, mut logits) = (Vec::new(), Vec::new());
    for _ in 0..steps {
        let output = model.forward(Input::Ids(&step), context, Some(&mut cache), None)?;
        let last = model.last_logits(&output)?; // (b, V)
        step = last.argmax(D::Minus1)?.unsqueeze(1)?; // (b, 1)
        tokens.push(step.clone());
        logits.push(last.unsqueeze(1)?);
    }
    got.put("greedy_tokens", Tensor::cat(&tokens, 1)?.to_dtype(DType::I64)?);
    got.put("greedy_logits", Tensor::cat(&logits, 1)?);
    Ok(())
}

/// The losses by the path that training takes: on variables.
fn loss(case: &Case, ids: &Tensor, mask: &Tensor, context: &Context, got: &mut Got) -> Result<()> {
    let params = Params::resume(&Checkpoint::open(&case.dir)?, &case.device);
    let model = Decoder::new(DecoderConfig::load(&case.dir)?, &params)?;
    let flat = |t: &Tensor| t.flatten_all()?.to_dtype(DType::I64)?.to_vec1::<i64>();
    let labels: Vec<i64> =
        flat(ids)?.into_iter().zip(flat(mask)?).map(|(id, real)| if real == 1 { id } else { -100 }).collect();
    let (losses, _) = model.loss(Input::Ids(ids), context, &labels)?;
    got.put("ce_loss", losses.cross_entropy.reshape(1)?);
    if let Some(aux) = &losses.aux {
        got.put("aux_loss", aux.reshape(1)?);
    }
    // Every variable that the loss reaches must get a finite gradient.
    let grads = losses.total.backward()?;
    for (name, var) in params.variables() {
        let Some(grad) = grads.get(&var) else { continue };
        let sum = grad.to_dtype(DType::F32)?.sqr()?.sum_all()?.to_device(&Device::Cpu)?.to_scalar::<f32>()?;
        ensure!(sum.is_finite(), "the gradient of {name} is not finite");
    }
    Ok(())
}

/// The reference's values at padding mean nothing; those of decoded tokens all count.
pub fn meaningful(case: &Case, name: &str) -> Result<Option<Vec<bool>>> {
    let by_position = ["hidden.", "final_norm", "router_logits.", "topk_", "attn_", "logits"];
    if !by_position.iter().any(|prefix| name.starts_with(prefix)) || !case.has_input("attention_mask") {
        return Ok(None);
    }
    let mask = case.input("attention_mask")?;
    Ok(Some(mask.flatten_all()?.to_dtype(DType::U32)?.to_vec1::<u32>()?.into_iter().map(|m| m == 1).collect()))
}
