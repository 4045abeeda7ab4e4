//! Models that look at pictures: tower, projector, splice and decoder together.

use anyhow::{Context as _, Result};
use candle_core::{D, DType, Device, Tensor};
use moesaic_encoders::image::best_grid;
use moesaic_kernels::losses::first_choice_balance;
use moesaic_kernels::{Probe, Routes, Tokens};
use moesaic_models::decoder::{Cache, Context, Input, Side};
use moesaic_models::generate::Backbone;
use moesaic_models::vision::{PICTURE, Row, Spliced, VisionModel, share};

use crate::case::{Case, Got};

/// LLaVA in the layout of `transformers`: `hidden.{i}`, `final_norm`, `logits`, `image_features`, and greedy tokens of the whole
/// batch, which is padded at the left. Marks come expanded, one for each token of a picture.
pub fn llava(case: &Case, got: &mut Got) -> Result<()> {
    let model = VisionModel::load(&case.dir, case.dtype, &case.device)?;
    let encoded = model.encode(&case.input("pixel_values")?, None)?;
    got.put("image_features", encoded.tokens.embeds.flatten(0, 1)?);
    marked(case, &model, &encoded.pictures()?, got)
}

/// LLaVA-1.6 in the layout of `transformers`, as [`llava`]: `pixel_values` has the tiles of each picture, filled up to the most, and
/// `image_sizes` its height and width before it was cut.
pub fn llava_next(case: &Case, got: &mut Got) -> Result<()> {
    let model = VisionModel::load(&case.dir, case.dtype, &case.device)?;
    let tiles = model.config().tiles.as_ref().context("the configuration names no grids")?;
    let (pixels, sizes) =
        (case.input("pixel_values")?, case.input("image_sizes")?.to_dtype(DType::I64)?.to_vec2::<i64>()?);
    let side = model.config().tower.image_size();
    let mut pictures = Vec::new();
    for (i, size) in sizes.iter().enumerate() {
        let &[h, w] = &size[..] else { anyhow::bail!("image_sizes has {} columns", size.len()) };
        let picture = (usize::try_from(w)?, usize::try_from(h)?);
        let grid = best_grid(picture, &tiles.grids).context("no grid")?;
        let views = 1 + (grid.0 / side) * (grid.1 / side);
        let encoded = model.encode_tiles(&pixels.get(i)?.narrow(0, 0, views)?, grid, picture, None)?;
        pictures.push(encoded.tokens);
    }
    let all: Vec<Tensor> = pictures.iter().map(|picture| picture.embeds.squeeze(0)).collect::<Result<_, _>>()?;
    got.put("image_features", Tensor::cat(&all, 0)?);
    marked(case, &model, &pictures, got)
}

/// A batch with expanded marks, from its pictures on.
fn marked(case: &Case, model: &VisionModel, pictures: &[Tokens], got: &mut Got) -> Result<()> {
    let rows = ids(case, model.picture_token())?;
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let shares = share(&rows, model.picture_token(), pictures)?;
    let rows: Vec<Row<'_>> =
        rows.iter().zip(shares).map(|(ids, pictures)| Row { ids, pictures, ..Row::default() }).collect();
    let spliced = model.splice(&rows, Side::Left, None)?;

    let probe = Probe::new();
    let output = model.forward(&spliced, None, Some(&probe))?;
    got.put_all("", probe.tensors());
    got.put("logits", model.logits(&output.hidden)?);
    greedy(case, model, &spliced, got)
}

/// MoE-LLaVA: `image_features`, `projected_features`, `inputs_embeds`, `spliced_attention_mask`, `spliced_labels`, `hidden.{i}`,
/// `final_norm`, `logits`; of sparse layers `router_logits.{i}`, `combine.{i}`, `l_aux.{i}`, `exp_counts.{i}`, `top2_index.{i}`,
/// `capacity.{i}`; `moe_loss`, `loss`; and greedy tokens of the first row alone.
pub fn moe_llava(case: &Case, got: &mut Got) -> Result<()> {
    let model = VisionModel::load(&case.dir, case.dtype, &case.device)?;
    let encoded = model.encode(&case.input("pixel_values")?, None)?;
    got.put("image_features", encoded.features.embeds.clone());
    got.put("projected_features", encoded.tokens.embeds.clone());
    let pictures = encoded.pictures()?;
    let ids = ids(case, PICTURE)?;
    let labels = labels(case)?;
    let shares = in_turn(&ids, &pictures)?;
    let row = |i: usize| Row { ids: &ids[i], labels: labels.get(i).map_or(&[], Vec::as_slice), pictures: shares[i] };
    let rows: Vec<Row<'_>> = (0..ids.len()).map(row).collect();
    let mut spliced = model.splice(&rows, Side::Right, model.config().longest)?;
    // The reference routes padding too, and what it computes there is compared.
    spliced.context.reference_padding = true;
    let (b, t, _) = spliced.embeds.dims3()?;
    got.put("inputs_embeds", spliced.embeds.clone());
    got.put("spliced_labels", Tensor::from_slice(&spliced.labels, (b, t), &Device::Cpu)?);
    let trailing = |row: usize| spliced.context.trailing.get(row).copied().unwrap_or(0);
    let mask: Vec<i64> =
        (0..b).flat_map(|row| (0..t).map(move |i| (row, i))).map(|(row, i)| i64::from(i + trailing(row) < t)).collect();
    got.put("spliced_attention_mask", Tensor::from_vec(mask, (b, t), &Device::Cpu)?);

    let probe = Probe::new();
    let output = model.forward(&spliced, None, Some(&probe))?;
    got.put_all("", probe.tensors());
    got.put("logits", model.logits(&output.hidden)?);
    for (name, routes) in probe.all_routes() {
        let Some(i) = name.strip_prefix("layer.") else { continue };
        routing(i, &routes, (b, t), got)?;
    }
    if case.wants("loss") || case.wants("moe_loss") {
        let (losses, _) = model.loss(&spliced, Some(&encoded))?;
        let moe = (&losses.total - &losses.cross_entropy)?;
        got.put("moe_loss", moe.reshape(1)?);
        got.put("loss", losses.total.reshape(1)?);
    }
    let first = Row { labels: &[], ..rows[0] };
    greedy(case, &model, &model.splice(&[first], Side::Left, None)?, got)
}

/// What the gate of one layer did.
fn routing(i: &str, routes: &Routes, (b, t): (usize, usize), got: &mut Got) -> Result<()> {
    let limit = routes.limit().context("a gate without a capacity")?;
    let (e, k) = (routes.experts(), limit.chosen.first().map_or(0, Vec::len));
    let mut combine = vec![0f32; b * t * e];
    let (token, weight) = (routes.token()?.to_vec1::<u32>()?, routes.weight().to_vec1::<f32>()?);
    for (expert, range) in routes.offsets()?.windows(2).enumerate() {
        for r in range[0]..range[1] {
            combine[token[r] as usize * e + expert] = weight[r];
        }
    }
    let mut counts = vec![0i64; e];
    limit.chosen.iter().filter_map(|chosen| chosen.first()).for_each(|&e| counts[e as usize] += 1);
    let chosen: Vec<i64> = limit.chosen.iter().flatten().map(|&e| i64::from(e)).collect();
    got.put(format!("combine.{i}"), Tensor::from_vec(combine, (b, t, e), &Device::Cpu)?);
    got.put(format!("exp_counts.{i}"), Tensor::from_vec(counts, e, &Device::Cpu)?);
    got.put(format!("top{k}_index.{i}"), Tensor::from_vec(chosen, (b, t, k), &Device::Cpu)?);
    got.put(format!("capacity.{i}"), Tensor::new(&[limit.capacity as i64], &Device::Cpu)?);
    got.put(format!("l_aux.{i}"), first_choice_balance(routes, 1)?.reshape(1)?);
    Ok(())
}

/// Token ids, without the padding that `attention_mask` names; -200 becomes `mark`.
fn ids(case: &Case, mark: u32) -> Result<Vec<Vec<u32>>> {
    let id = |id: i64| if id == -200 { Ok(mark) } else { u32::try_from(id) };
    real(case, "input_ids")?.into_iter().map(|row| row.into_iter().map(|i| Ok(id(i)?)).collect()).collect()
}

fn labels(case: &Case) -> Result<Vec<Vec<i64>>> {
    if case.has_input("labels") { real(case, "labels") } else { Ok(Vec::new()) }
}

/// The rows of an input, where the mask is 1.
fn real(case: &Case, name: &str) -> Result<Vec<Vec<i64>>> {
    let values = case.input(name)?.to_dtype(DType::I64)?.to_vec2::<i64>()?;
    if !case.has_input("attention_mask") {
        return Ok(values);
    }
    let mask = case.input("attention_mask")?.to_dtype(DType::I64)?.to_vec2::<i64>()?;
    let row =
        |(values, mask): (Vec<i64>, Vec<i64>)| values.into_iter().zip(mask).filter(|(_, m)| *m == 1).map(|(v, _)| v);
    Ok(values.into_iter().zip(mask).map(|pair| row(pair).collect()).collect())
}

/// The pictures of each row, in order; as in the reference a row without a mark uses one up.
fn in_turn<'p>(ids: &[Vec<u32>], mut pictures: &'p [Tokens]) -> Result<Vec<&'p [Tokens]>> {
    let mut shares = Vec::new();
    for row in ids {
        let marks = row.iter().filter(|&&id| id == PICTURE).count();
        let (own, rest) = pictures.split_at_checked(marks.max(1)).context("fewer pictures than the rows use")?;
        shares.push(&own[..marks]);
        pictures = rest;
    }
    Ok(shares)
}

/// `greedy_tokens` and the `greedy_logits` that they were taken from, decoded with a cache.
fn greedy(case: &Case, model: &VisionModel, rows: &Spliced, got: &mut Got) -> Result<()> {
    if !case.wants("greedy_") {
        return Ok(());
    }
    let steps = case.json["expected"]["greedy_tokens"]["shape"][1].as_u64().context("greedy_tokens has no length")?;
    let mut cache = Cache::default();
    let (mut tokens, mut logits): (Vec<Tensor>, Vec<Tensor>) = (Vec::new(), Vec::new());
    for _ in 0..steps {
        let scores = match tokens.last() {
            None => model.next_logits(Input::Embeds(&rows.embeds), &rows.context, &mut cache)?,
            Some(last) => model.next_logits(Input::Ids(last), &Context::default(), &mut cache)?,
        }; // (b, V)
        tokens.push(scores.argmax(D::Minus1)?.unsqueeze(1)?);
        logits.push(scores.unsqueeze(1)?);
    }
    got.put("greedy_tokens", Tensor::cat(&tokens, 1)?.to_dtype(DType::I64)?);
    got.put("greedy_logits", Tensor::cat(&logits, 1)?);
    Ok(())
}
