//! Speech models on language models, and their projectors.

use anyhow::{Context as _, Result};
use candle_core::{Device, Tensor};
use moesaic::Tokenizer;
use moesaic_kernels::losses::{joint_router_z, load_balance};
use moesaic_kernels::{Modality, Params, Probe, Routes, Tokens, checkpoint::Checkpoint};
use moesaic_models::avsr::{
    AtScale, Avsr, AvsrConfig, Extra, IGNORED, Media, ProjectorConfig, Rates, ScaledDecoder, Sources, Vocabulary,
};
use moesaic_models::decoder::{Context, Input};
use moesaic_projectors::{Projector, ProjectorInput, Smop};

use crate::case::{Case, Got};

/// `{modality}_tokens`, `_router_*`, `_topk_*`, `_output` and losses of each modality, joint losses, `aux_loss` and gradients of
/// what the cotangents weigh plus `aux_loss`.
pub fn smop(case: &Case, got: &mut Got) -> Result<()> {
    let config = ProjectorConfig::load(&case.dir)?;
    let checkpoint = Checkpoint::open(&case.dir)?;
    let mut all = Vec::new();
    for (name, modality) in [("audio", Modality::Audio), ("video", Modality::Video)] {
        let states = format!("{name}_encoder_states");
        if case.has_input(&states) {
            all.push((name, Tokens::new(case.input(&states)?, modality)));
        }
    }
    let tokens: Vec<Tokens> = all.iter().map(|(_, t)| t.clone()).collect();

    // For inference, with weights in tiles, and by the path that training takes: on variables.
    let load = |params: &Params| Smop::load(config.smop()?, params);
    let probe = Probe::new();
    let packed = load(&Params::load(&checkpoint, case.dtype, &case.device))?;
    let projected = packed.project(&ProjectorInput::new(&tokens), Some(&probe))?;
    got.put_all("", probe.tensors());
    for ((name, _), y) in all.iter().zip(&projected.tokens) {
        got.put(format!("{name}_output"), y.embeds.clone());
    }
    let params = Params::resume(&checkpoint, &case.device);
    let smop = load(&params)?;
    let projected = smop.project(&ProjectorInput::new(&tokens), None)?;
    let both = |routes: &[Routes]| Ok::<_, anyhow::Error>((load_balance(routes)?, joint_router_z(routes)?));
    let mut put = |name: &str, (balance, z): (Tensor, Tensor)| {
        got.put(format!("{name}_load_balancing_loss"), balance);
        got.put(format!("{name}_router_z_loss"), z);
    };
    for ((name, _), routes) in all.iter().zip(&projected.routes) {
        put(name, both(std::slice::from_ref(routes))?);
    }
    put("joint", both(&projected.routes)?);
    let (balance, z) = smop.losses(&projected.routes)?;
    let aux = ((balance * config.balance)? + (z * config.z)?)?;
    got.put("aux_loss", aux.clone());

    let mut objective = aux;
    for ((name, _), y) in all.iter().zip(&projected.tokens) {
        objective = (objective + (&y.embeds * case.input(&format!("cotangent_{name}"))?)?.sum_all()?)?;
    }
    let gradients = objective.backward()?;
    let published = params.published(|var| gradients.get(var).cloned())?;
    got.put_all("grad.", published);
    Ok(())
}

/// `tokens`, `text_labels`, encoder states, and of the model, or of each pair of compression rates behind `a{A}_v{V}.`:
/// `inputs_embeds`, `labels`, `logits`, losses, `generate_inputs_embeds`, `generate_first_logits`, `generated_greedy` and
/// `generated_beam`.
pub fn model(case: &Case, got: &mut Got) -> Result<()> {
    let (config, tokenizer) = (AvsrConfig::load(&case.dir)?, Tokenizer::load(&case.dir)?);
    let encode = |text: &str| tokenizer.encode(text).map_err(candle_core::Error::wrap);
    let vocabulary = Vocabulary::new(&config, |token| tokenizer.id(token), encode)?;
    let texts = case.json["texts"].as_array().context("the case has no texts")?;
    let texts = texts.iter().map(|t| Ok(vocabulary.bare(tokenizer.encode(t.as_str().context("a text")?)?)));
    let texts = texts.collect::<Result<Vec<_>>>()?;
    let model = Avsr::load(&case.dir, vocabulary.clone(), case.dtype, &case.device)?;

    let (ids, labels) = vocabulary.targets(&texts);
    let ids: Vec<Vec<i64>> = ids.into_iter().map(|row| row.into_iter().map(i64::from).collect()).collect();
    got.put("tokens", Tensor::new(ids, &Device::Cpu)?);
    got.put("text_labels", Tensor::new(labels, &Device::Cpu)?);
    let input = |name: &str| case.has_input(name).then(|| case.input(name)).transpose();
    let (audio, video) = (input("audio")?, input("video")?);
    let media = Media { audio: audio.as_ref(), video: video.as_ref() };
    let first = |t: &Option<Tensor>| t.as_ref().map(|t| t.narrow(0, 0, 1)).transpose();
    let (one_audio, one_video) = (first(&audio)?, first(&video)?);
    let one = Media { audio: one_audio.as_ref(), video: one_video.as_ref() };
    let probe = Probe::new();
    let encoded = model.encode(media, Some(&probe))?;
    got.put_all("", probe.tensors());

    // The losses by the path that training takes: adapters and projectors on variables, the rest as it is.
    let checkpoint = Checkpoint::open(&case.dir)?;
    let frozen = Params::frozen(&checkpoint, case.dtype, &case.device);
    let trained = Params::resume(&checkpoint, &case.device);
    let sources = Sources { audio: &frozen, video: &frozen, llm: &frozen, trained: &trained };
    let trainable = Avsr::new(config, vocabulary, sources, Some(&checkpoint))?;
    let losses = trainable.loss(media, &texts, Extra::default())?;
    gradients(&trained, &losses.total)?;
    got.put("loss", losses.cross_entropy.clone());
    if let (Some(balance), Some(z)) = (losses.balance, losses.z) {
        got.put("load_balancing_loss", balance);
        got.put("router_z_loss", z);
    }
    if case.wants("sink_loss") {
        let losses =
            trainable.loss(media, &texts, Extra { sink: Some(trainable.config().sink_factor), ..Extra::default() })?;
        gradients(&trained, &losses.total)?;
        got.put("sink_loss", losses.sink.context("there is no sink loss")?);
        got.put("loss_with_sink", losses.total);
    }

    for (prefix, rates) in named(&model) {
        let scale = model.scale(rates)?;
        let (tokens, _) = model.project(&encoded, scale, None)?;
        let sequence = model.sequence(&tokens, Some(&texts))?;
        let (b, s, _) = sequence.embeds.dims3()?;
        let decoder = model.llm().decoder();
        let output = model.forward(&sequence, scale, None)?;
        let mut put = |name: &str, value: Tensor| got.put(format!("{prefix}{name}"), value);
        put("logits", decoder.logits(&output.hidden)?);
        if !prefix.is_empty() {
            put("loss", decoder.loss_of(&output, &sequence.labels, false)?.cross_entropy);
        }
        put("inputs_embeds", sequence.embeds);
        assert!(sequence.labels.contains(&IGNORED));
        put("labels", Tensor::from_vec(sequence.labels, (b, s), &Device::Cpu)?);
        let (prompt, at) = model.prompt(one, rates)?;
        put("generate_first_logits", first_logits(&model, &at, &prompt)?);
        put("generate_inputs_embeds", prompt);
        let row = |ids: &[u32]| Tensor::new(ids.iter().map(|&i| i64::from(i)).collect::<Vec<_>>(), &Device::Cpu);
        let greedy = model.transcribe(one, rates, &model.options())?;
        put("generated_greedy", row(&greedy.first().context("no answer")?.tokens)?.unsqueeze(0)?);
        let beams = model.search(one, rates, &model.beam_options())?;
        let best = beams.first().and_then(|b| b.first()).context("no beam")?;
        put("generated_beam", row(&best.tokens)?.unsqueeze(0)?);
    }
    Ok(())
}

/// The pairs of rates of a Matryoshka model by the name that the cases give them; of others the one there is.
fn named(model: &Avsr) -> Vec<(String, Rates)> {
    let lanes = &model.config().projector.lanes;
    if lanes.iter().all(|lane| lane.rates.len() == 1) {
        return vec![(String::new(), Rates::default())];
    }
    let mut all = vec![(String::new(), Rates::default())];
    for lane in lanes {
        let with = |(name, rates): &(String, Rates), rate: usize| {
            let join = if name.is_empty() { String::new() } else { format!("{name}_") };
            match lane.modality {
                Modality::Audio => (format!("{join}a{rate}"), Rates { audio: Some(rate), ..*rates }),
                _ => (format!("{join}v{rate}"), Rates { video: Some(rate), ..*rates }),
            }
        };
        all = all.iter().flat_map(|before| lane.rates.iter().map(|&rate| with(before, rate))).collect();
    }
    all.into_iter().map(|(name, rates)| (format!("{name}."), rates)).collect()
}

fn first_logits(model: &Avsr, at: &AtScale<'_>, prompt: &Tensor) -> Result<Tensor> {
    let output = at.forward(Input::Embeds(prompt), &Context::default(), None, None)?;
    Ok(model.llm().decoder().last_logits(&output)?)
}

/// Every variable gets a gradient that is finite, and not all are zero.
fn gradients(trained: &Params, loss: &Tensor) -> Result<()> {
    let grads = loss.backward()?;
    let mut sum = 0.0;
    for (name, var) in trained.variables() {
        let grad = grads.get(&var).with_context(|| format!("{name} gets no gradient"))?;
        let square = grad.sqr()?.sum_all()?.to_scalar::<f32>()?;
        anyhow::ensure!(square.is_finite(), "the gradient of {name} is {square}");
        sum += square;
    }
    anyhow::ensure!(sum > 0.0, "all gradients are zero");
    Ok(())
}

/// `scale{i}.logits`, `scale{i}.loss` and their mean `matryoshka_loss`: a language model with adapters for each scale.
pub fn scales(case: &Case, got: &mut Got) -> Result<()> {
    let model = ScaledDecoder::load(&case.dir, case.dtype, &case.device)?;
    let embeds = case.input("inputs_embeds")?;
    let labels = case.input("labels")?.flatten_all()?.to_vec1::<i64>()?;
    let mut losses = Vec::new();
    for i in 0..model.scales() {
        let at = model.at(i)?;
        let (loss, output) = at.loss(Input::Embeds(&embeds), &Context::default(), &labels)?;
        got.put(format!("scale{i}.logits"), model.decoder().logits(&output.hidden)?);
        got.put(format!("scale{i}.loss"), loss.cross_entropy.clone());
        losses.push(loss.cross_entropy);
    }
    got.put("matryoshka_loss", Tensor::stack(&losses, 0)?.mean_all()?);
    Ok(())
}

/// Whole models and bare language models of Llama-MTSK.
pub fn matryoshka(case: &Case, got: &mut Got) -> Result<()> {
    if case.has_input("inputs_embeds") { scales(case, got) } else { model(case, got) }
}
