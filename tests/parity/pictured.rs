//! Aria and Qwen3-VL, whole. A case wants what a case of a decoder does, of a left-padded batch of prompts with pictures, and:
//! `image_features`, and of Qwen3-VL `position_ids`, `rope_deltas` and `deepstack.{i}`.

use anyhow::{Context as _, Result};
use candle_core::{D, DType, Tensor};
use moesaic_kernels::{Modality, Probe, Tokens};
use moesaic_models::aria::Aria;
use moesaic_models::decoder::{Cache, Context, Decoder, Input, Side};
use moesaic_models::qwen3_vl::Qwen3Vl;
use moesaic_models::vision::{Row, Spliced, share};

use crate::case::{Case, Got};

/// The ids of each row without its padding.
fn rows(case: &Case) -> Result<Vec<Vec<u32>>> {
    let ids = case.input("input_ids")?;
    let mask = if case.has_input("attention_mask") { case.input("attention_mask")? } else { ids.ones_like()? };
    let numbers = |t: &Tensor| t.to_dtype(DType::U32)?.to_vec2::<u32>();
    let rows = numbers(&ids)?.into_iter().zip(numbers(&mask)?);
    Ok(rows.map(|(ids, mask)| ids.into_iter().zip(mask).filter(|(_, m)| *m == 1).map(|(id, _)| id).collect()).collect())
}

/// All tokens behind each other, `[n, h]`.
fn joined(tokens: &[Tokens]) -> Result<Tensor> {
    let all: Vec<&Tensor> = tokens.iter().map(|t| &t.embeds).collect();
    Ok(Tensor::cat(&all, 1)?.squeeze(0)?)
}

pub fn aria(case: &Case, got: &mut Got) -> Result<()> {
    let model = Aria::load(&case.dir, case.dtype, &case.device)?;
    let mask = if case.has_input("pixel_mask") { Some(case.input("pixel_mask")?) } else { None };
    let pictures = match case.has_input("pixel_values") {
        true => model.encode(&case.input("pixel_values")?, mask.as_ref(), None)?,
        false => Vec::new(),
    };
    if !pictures.is_empty() {
        got.put("image_features", joined(&pictures)?);
    }
    let ids = rows(case)?;
    let slices: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let shares = share(&slices, model.config().picture_token, &pictures)?;
    let rows: Vec<Row<'_>> =
        slices.iter().zip(shares).map(|(ids, pictures)| Row { ids, labels: &[], pictures }).collect();
    run(case, model.decoder(), &model.splice(&rows, Side::Left, None)?, got)?;
    Ok(())
}

pub fn qwen3_vl(case: &Case, got: &mut Got) -> Result<()> {
    let model = Qwen3Vl::load(&case.dir, case.dtype, &case.device)?;
    let grids = |name: &str| -> Result<Vec<(usize, usize, usize)>> {
        let grids = case.input(name)?.to_dtype(DType::U32)?.to_vec2::<u32>()?;
        Ok(grids.iter().map(|g| (g[0] as usize, g[1] as usize, g[2] as usize)).collect())
    };
    let (mut images, mut videos) = (Vec::new(), Vec::new());
    if case.has_input("pixel_values") {
        images = model.encode_images(&case.input("pixel_values")?, &grids("image_grid_thw")?)?;
        got.put("image_features", joined(&images)?);
    }
    if case.has_input("pixel_values_videos") {
        videos = model.encode_videos(&case.input("pixel_values_videos")?, &grids("video_grid_thw")?)?;
        got.put("video_features", joined(&videos)?);
    }
    let ids = rows(case)?;
    let slices: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let config = model.config();
    let images = share(&slices, config.image_token, &images)?;
    let videos = share(&slices, config.video_token, &videos)?;
    let pictures: Vec<Vec<Tokens>> = images.iter().zip(videos).map(|(i, v)| [*i, v].concat()).collect();
    let rows: Vec<Row<'_>> =
        slices.iter().zip(&pictures).map(|(ids, pictures)| Row { ids, labels: &[], pictures }).collect();
    let spliced = model.splice(&rows, Side::Left, None)?;

    let (b, t, h) = spliced.embeds.dims3()?;
    if let Some(positions) = &spliced.context.positions {
        let positions: Vec<i64> = positions.iter().map(|p| i64::from(*p)).collect();
        got.put("position_ids", Tensor::from_vec(positions, (3, b, t), &case.device)?);
    }
    let seen = spliced.context.modality.as_deref().context("no modalities")?;
    let seen: Vec<u32> = (0u32..).zip(seen).filter(|(_, m)| **m != Modality::Text).map(|(i, _)| i).collect();
    let seen = Tensor::from_vec(seen.clone(), seen.len(), &case.device)?;
    for (j, tap) in spliced.context.taps.iter().enumerate() {
        got.put(format!("deepstack.{j}"), tap.reshape((b * t, h))?.index_select(&seen, 0)?);
    }
    let deltas = run(case, model.decoder(), &spliced, got)?;
    got.put("rope_deltas", Tensor::from_vec(deltas, (b, 1), &case.device)?);
    Ok(())
}

/// The decoder on spliced rows: in one pass, and greedily with a cache. Gives what the positions of the rows go on by.
fn run(case: &Case, model: &Decoder, rows: &Spliced, got: &mut Got) -> Result<Vec<i64>> {
    let context = Context { reference_padding: true, ..rows.context.clone() };
    let probe = Probe::new();
    let output = model.forward(Input::Embeds(&rows.embeds), &context, None, Some(&probe))?;
    got.put_all("", probe.tensors());
    got.put("logits", model.logits(&output.hidden)?);

    let mut cache = Cache::default();
    let mut last =
        model.last_logits(&model.forward(Input::Embeds(&rows.embeds), &context, Some(&mut cache), None)?)?;
    let shifts = cache.shifts().to_vec();
    let steps = case.json["expected"]["greedy_tokens"]["shape"][1].as_u64().context("greedy_tokens has no length")?;
    let (mut tokens, mut logits) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let next = last.argmax(D::Minus1)?.unsqueeze(1)?; // (b, 1)
        tokens.push(next.clone());
        logits.push(last.unsqueeze(1)?);
        if step + 1 < steps {
            let context = Context { reference_padding: true, ..Context::default() };
            last = model.last_logits(&model.forward(Input::Ids(&next), &context, Some(&mut cache), None)?)?;
        }
    }
    got.put("greedy_tokens", Tensor::cat(&tokens, 1)?.to_dtype(DType::I64)?);
    got.put("greedy_logits", Tensor::cat(&logits, 1)?);
    Ok(shifts)
}
