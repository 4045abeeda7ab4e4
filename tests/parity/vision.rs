//! Vision towers and connectors, pictures, and the router with capacity.

use anyhow::{Context as _, Result};
use candle_core::{Device, Tensor};
use moesaic_encoders::{
    ClipVision, CumoConfig, CumoVision, DinoVision, Features, Head, Qwen3VlConfig, Qwen3VlVision, Select, SiglipConfig,
    SiglipVision, Tower,
};
use moesaic_kernels::routers::{Capacity, SecondChoice};
use moesaic_kernels::{Params, Probe, checkpoint::Checkpoint, losses};
use moesaic_projectors::{Projector, Queries, QueriesConfig, SparseMlp, SparseMlpConfig};

use crate::case::{Case, Got};

/// `hidden.{i}`, `last_hidden_state`, `pooler_output`, `image_embeds`, `features_m2_*`.
pub fn clip(case: &Case, got: &mut Got) -> Result<()> {
    let tower = ClipVision::load(&case.dir, case.dtype, &case.device)?;
    let (pixels, probe) = (case.input("pixel_values")?, Probe::new());
    let output = tower.forward(&pixels, Some(&probe))?;
    got.put_all("", probe.tensors());
    got.put("last_hidden_state", output.tokens.embeds);
    got.put("pooler_output", output.pooled.context("the tower has no head")?);
    if let Some(embedding) = output.embedding {
        got.put("image_embeds", embedding);
    }
    for (name, select) in [("patch", Select::Patch), ("cls_patch", Select::ClsPatch)] {
        let tokens = tower.encode(&pixels, &Features::new(-2, select), None)?;
        got.put(format!("features_m2_{name}"), tokens.embeds);
    }
    Ok(())
}

/// `hidden.{i}`, `last_hidden_state`, `pooler_output`, `features_m2`, `features_m2_moellava_patch`.
pub fn siglip(case: &Case, got: &mut Got) -> Result<()> {
    let tower = SiglipVision::load(&case.dir, case.dtype, &case.device)?;
    let (pixels, probe) = (case.input("pixel_values")?, Probe::new());
    let output = tower.forward(&pixels, Some(&probe))?;
    got.put_all("", probe.tensors());
    got.put("last_hidden_state", output.tokens.embeds);
    got.put("pooler_output", output.pooled);
    for (name, select) in [("features_m2", Select::ClsPatch), ("features_m2_moellava_patch", Select::Patch)] {
        got.put(name, tower.encode(&pixels, &Features::new(-2, select), None)?.embeds);
    }
    Ok(())
}

/// `hidden.{i}`, `last_hidden_state`, `pooler_output`; pictures of another size than the stored positions' among them.
pub fn dino(case: &Case, got: &mut Got) -> Result<()> {
    let tower = DinoVision::load(&case.dir, case.dtype, &case.device)?;
    let probe = Probe::new();
    let output = tower.forward(&case.input("pixel_values")?, Some(&probe))?;
    got.put_all("", probe.tensors());
    got.put("last_hidden_state", output.tokens.embeds);
    got.put("pooler_output", output.pooled);
    Ok(())
}

/// `image_features`: Aria's tower and queries on pictures that fill its square.
pub fn aria(case: &Case, got: &mut Got) -> Result<()> {
    let text = std::fs::read_to_string(case.dir.join("config.json"))?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let params = Params::load(&Checkpoint::open(&case.dir)?, case.dtype, &case.device);
    let tower = SiglipVision::bare(SiglipConfig::from_json(&text)?, &params.pp("vision_tower"), Head::None)?;
    let queries = json["projector_patch_to_query_dict"].as_object().context("no queries")?;
    let queries = queries.iter().map(|(n, q)| Ok((n.parse()?, q.as_u64().context("not a number")? as usize)));
    let config = QueriesConfig {
        inputs: tower.width(),
        outputs: json["text_config"]["hidden_size"].as_u64().context("no hidden_size")? as usize,
        heads: tower.config().heads,
        queries: queries.collect::<Result<_>>()?,
    };
    let projector = Queries::load(config, &params.pp("multi_modal_projector"))?;
    let layer = json["vision_feature_layer"].as_i64().context("no vision_feature_layer")?;
    let features = Features::new(layer, Select::ClsPatch);
    let tokens = tower.encode(&case.input("pixel_values")?, &features, None)?;
    got.put("image_features", projector.project_one(&tokens, None)?.0.embeds.flatten(0, 1)?);
    Ok(())
}

/// `image_features` and `deepstack.{i}` of all pictures behind each other.
pub fn qwen3_vl(case: &Case, got: &mut Got) -> Result<()> {
    let config = Qwen3VlConfig::from_json(&std::fs::read_to_string(case.dir.join("config.json"))?)?;
    let params = Params::load(&Checkpoint::open(&case.dir)?, case.dtype, &case.device);
    let tower = Qwen3VlVision::new(config, &params.pp("model.visual"))?;
    let grids: Vec<_> = case
        .input("image_grid_thw")?
        .to_vec2::<i64>()?
        .iter()
        .map(|g| (g[0] as usize, g[1] as usize, g[2] as usize))
        .collect();
    let tokens = tower.forward(&case.input("pixel_values")?, &grids)?;
    let joined =
        |of: &dyn Fn(usize) -> Tensor| Tensor::cat(&(0..tokens.len()).map(of).collect::<Vec<_>>(), 1)?.squeeze(0);
    got.put("image_features", joined(&|i| tokens[i].embeds.clone())?);
    for j in 0..tokens.first().map_or(0, |t| t.taps.len()) {
        got.put(format!("deepstack.{j}"), joined(&|i| tokens[i].taps[j].clone())?);
    }
    Ok(())
}

/// The pictures that the case names: `cropped_u8.{i}` and `pixel_values.{i}`.
pub fn preprocess(case: &Case, got: &mut Got) -> Result<()> {
    use moesaic_encoders::image::{ImageProcessor, Picture};
    let pad = case.json["pad_to_square"].as_bool().unwrap_or(false);
    let processor = ImageProcessor::load(&case.dir)?.with_padding(pad);
    let names = case.json["images"].as_array().context("the case names no images")?;
    for (i, name) in names.iter().enumerate() {
        let picture = Picture::open(case.dir.join(name.as_str().context("an image without a name")?))?;
        let crop = processor.crop(&picture)?;
        let bytes = Tensor::from_slice(crop.rgb(), (crop.height(), crop.width(), 3), &Device::Cpu)?;
        got.put(format!("cropped_u8.{i}"), bytes.permute((2, 0, 1))?.contiguous()?);
        got.put(format!("pixel_values.{i}"), processor.process(&[picture])?.squeeze(0)?);
    }
    Ok(())
}

/// Each of `settings`: `choice.{i}`, `combine.{i}`, `dispatch.{i}`, `l_aux.{i}`, `exp_counts.{i}`, `capacity.{i}`.
pub fn gate(case: &Case, got: &mut Got) -> Result<()> {
    for setting in case.json["settings"].as_array().context("the case has no settings")? {
        let number = |key: &str| setting[key].as_u64().map(|v| v as usize).with_context(|| format!("no {key}"));
        let (i, k, experts) = (number("i")?, number("k")?, number("experts")?);
        let router = Capacity {
            weight: Tensor::zeros((experts, 1), case.dtype, &case.device)?,
            k,
            factor: setting["capacity_factor"].as_f64().context("no capacity_factor")?,
            min_capacity: number("min_capacity")?,
            second: SecondChoice::Best,
        };
        let noise = if k == 1 { format!("uniform.{i}") } else { format!("gumbel.{i}") };
        let noise = if case.has_input(&noise) { Some(case.input(&noise)?) } else { None };
        let a = router.assign(&case.input(&format!("logits.{i}"))?, noise.as_ref())?;
        let (tokens, c) = (a.chosen.len(), a.capacity);

        let chosen: Vec<i64> = a.chosen.iter().flatten().map(|&e| i64::from(e)).collect();
        let mut counts = vec![0i64; experts];
        a.chosen.iter().filter_map(|t| t.first()).for_each(|&e| counts[e as usize] += 1);
        // Weights come by token and slot; places by token and expert.
        let (slots, weights) = a.routes.top_k()?;
        let (slots, weights) = (slots.to_vec2::<u32>()?, weights.to_vec2::<f32>()?);
        let (mut combine, mut dispatch) = (vec![0f32; tokens * experts * c], vec![0u8; tokens * experts * c]);
        for &(t, e, place) in &a.places {
            let slot = slots[t].iter().position(|&s| s as usize == e).context("a place without a route")?;
            let at = (t * experts + e) * c + place;
            (combine[at], dispatch[at]) = (weights[t][slot], 1);
        }
        got.put(format!("choice.{i}"), Tensor::from_vec(chosen, (tokens, k), &Device::Cpu)?);
        got.put(format!("combine.{i}"), Tensor::from_vec(combine, (tokens, experts, c), &Device::Cpu)?);
        got.put(format!("dispatch.{i}"), Tensor::from_vec(dispatch, (tokens, experts, c), &Device::Cpu)?);
        got.put(format!("l_aux.{i}"), losses::first_choice_balance(&a.routes, 1)?.reshape(1)?);
        got.put(format!("exp_counts.{i}"), Tensor::from_vec(counts, experts, &Device::Cpu)?);
        got.put(format!("capacity.{i}"), Tensor::new(&[c as i64], &Device::Cpu)?);
    }
    Ok(())
}

/// The tower at all scales and the connector, with their losses and router logits.
pub fn cumo(case: &Case, got: &mut Got) -> Result<()> {
    let text = std::fs::read_to_string(case.dir.join("config.json"))?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let size = |key: &str| json[key].as_u64().map(|v| v as usize).with_context(|| format!("config.json lacks {key}"));
    let params = Params::load(&Checkpoint::open(&case.dir)?, case.dtype, &case.device).pp("model");
    let tower = CumoVision::new(CumoConfig::from_json(&text)?, &params.pp("vision_tower"))?;
    let config = SparseMlpConfig {
        inputs: tower.width(),
        outputs: size("hidden_size")?,
        experts: size("num_experts")?,
        k: size("num_selected")?,
    };
    let projector = SparseMlp::load(config, &params.pp("mm_projector"))?;

    let (pixels, probe) = (case.input("pixel_values")?, Probe::new());
    let b = pixels.dim(0)?;
    let output = tower.forward(&pixels, true, Some(&probe))?;
    got.put("features", output.tokens.embeds.clone());
    for (name, tensor) in probe.tensors() {
        if let Some(s) = name.strip_prefix("scale.").and_then(|n| n.strip_suffix(".hidden")) {
            got.put(format!("hidden_m2_scale{s}"), tensor);
        }
    }
    for (name, routes) in probe.all_routes() {
        let (Some((s, i)), Some(logits)) =
            (name.strip_prefix("scale.").and_then(|n| n.split_once(".layer.")), routes.logits())
        else {
            continue;
        };
        let s: usize = s.parse()?;
        let logits = logits.reshape((b * s * s, (), routes.experts()))?;
        got.put(format!("clip_router_logits_scale{s}.{i}"), logits);
    }
    let losses = output.losses.context("the tower has no losses")?;
    got.put("clip_balance_loss", losses.balance.reshape(1)?);
    got.put("clip_router_z_loss", losses.z.reshape(1)?);

    let (projected, routes) = projector.project_one(&output.tokens, None)?;
    got.put("projected", projected.embeds);
    let routes = routes.first().context("the connector has no routes")?;
    let (balance, z) = SparseMlp::losses(routes, b)?;
    got.put("mlp_balance_loss", balance.reshape(1)?);
    got.put("mlp_router_z_loss", z.reshape(1)?);
    got.put("mlp_router_logits", routes.logits().context("no logits")?.reshape((b, (), routes.experts()))?);
    Ok(())
}

/// The strings of `cases` in `case.json`.
pub fn prompts(case: &Case, _: &mut Got) -> Result<()> {
    use moesaic::prompts::{Template, Turn};
    let cases = case.json["cases"].as_array().context("case.json has no cases")?;
    anyhow::ensure!(!cases.is_empty(), "case.json has no cases");
    for (i, entry) in cases.iter().enumerate() {
        let text = |key: &str| entry[key].as_str().with_context(|| format!("cases[{i}] has no {key}"));
        let template = Template::named(text("mode")?).with_context(|| format!("no template {}", entry["mode"]))?;
        let turns: Vec<Turn> = entry["turns"]
            .as_array()
            .context("no turns")?
            .iter()
            .map(|t| Ok(Turn { question: t[0].as_str().context("no question")?, answer: t[1].as_str() }))
            .collect::<Result<_>>()?;
        let got = template.prompt(&turns)?;
        anyhow::ensure!(got == text("prompt")?, "cases[{i}]: got {got:?}, expected {:?}", entry["prompt"]);
        let stop = template.stop();
        anyhow::ensure!(stop == text("stop")?, "cases[{i}]: stop is {stop:?}, expected {:?}", entry["stop"]);
    }
    Ok(())
}
