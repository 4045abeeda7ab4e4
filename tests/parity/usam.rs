//! U-SAM and its parts.

use anyhow::{Context as _, Result, ensure};
use candle_core::{DType, Device, Tensor};
use moesaic::Tokenizer;
use moesaic_kernels::{Modality, Params, Probe, Tokens, checkpoint::Checkpoint};
use moesaic_models::generate::BeamOptions;
use moesaic_models::usam::{
    Layout, Prompt, Saclm, Sources, Task, Usam, UsamConfig, Vocabulary, load_projector, load_qformer, load_saclm,
};
use moesaic_projectors::{MixtureSum, Projector, ProjectorInput, TaskMixture, WindowQFormer};

use crate::case::{Case, Got};

/// Weights for inference, and the same as variables.
fn both(case: &Case) -> Result<[Params; 2]> {
    let checkpoint = Checkpoint::open(&case.dir)?;
    Ok([Params::load(&checkpoint, case.dtype, &case.device), Params::resume(&checkpoint, &case.device)])
}

/// On variables the output is the same, and every variable gets a gradient that is finite and not all zero.
fn trained(case: &Case, params: &Params, packed: &Tensor, trained: &Tensor) -> Result<()> {
    case.alike(packed, trained, 1e-4, "on variables the outputs differ")?;
    gradients(params, &trained.powf(3.0)?.sum_all()?, 0)
}

/// `silent` variables may have a gradient of zero; and the slots of the contrastive loss, where no step counts or each clip is
/// nearer to its own text than it must be.
fn gradients(params: &Params, loss: &Tensor, silent: usize) -> Result<()> {
    let grads = loss.backward()?;
    let mut zeros = Vec::new();
    for (name, var) in params.variables() {
        let grad = grads.get(&var).with_context(|| format!("{name} gets no gradient"))?;
        let sum = grad.sqr()?.sum_all()?.to_scalar::<f32>()?;
        ensure!(sum.is_finite(), "the gradient of {name} is {sum}");
        if sum == 0.0 && !name.starts_with("spc_module.") {
            zeros.push(name);
        }
    }
    ensure!(zeros.len() <= silent, "gradients of zero: {zeros:?}");
    Ok(())
}

/// `windows`, `hidden_state_{i}` and `last_hidden_state`.
pub fn qformer(case: &Case, got: &mut Got) -> Result<()> {
    let config = load_qformer(&case.dir)?;
    let [load, resume] = both(case)?;
    let tokens = Tokens::new(case.input("encoder_states")?, Modality::Audio);
    let probe = Probe::new();
    let (output, _) = WindowQFormer::load(config.clone(), &load)?.project_one(&tokens, Some(&probe))?;
    ensure!(load.unused().is_empty(), "not read: {:?}", load.unused());
    got.put_all("", probe.tensors());
    // Of one query alone, queries and keys of self-attention are multiplied with nothing.
    let alone = if config.queries == 1 { config.layers } else { 0 };
    let model = WindowQFormer::load(config, &resume)?;
    let again = model.project_one(&tokens, None)?.0.embeds;
    case.alike(&output.embeds, &again, 1e-4, "on variables the outputs differ")?;
    gradients(&resume, &again.powf(3.0)?.sum_all()?, 2 * alone)
}

/// What the router sees and says, `expert_outputs`, and both sums over them.
pub fn projector(case: &Case, got: &mut Got) -> Result<()> {
    let config = load_projector(&case.dir)?;
    let [load, resume] = both(case)?;
    let (output, prompt) = (case.input("qformer_output")?, case.input("prompt_embeds")?);
    let (b, h) = (prompt.dim(0)?, output.dim(2)?);
    let q = output.reshape((b, output.elem_count() / (b * h), h))?; // (b, windows, h)
    let tokens = [Tokens::new(q.clone(), Modality::Audio)];
    let input = ProjectorInput { tokens: &tokens, prompt: std::slice::from_ref(&prompt) };
    let model = TaskMixture::load(config.clone(), &load)?;
    let probe = Probe::new();
    let projected = model.project(&input, Some(&probe))?;
    got.put_all("", probe.tensors());
    let routes = projected.routes.first().context("no routes")?;
    got.put("expert_outputs", model.expert_outputs(&q, routes)?);
    for (name, sum) in [("projected_paper", MixtureSum::Experts), ("projected_released", MixtureSum::Time)] {
        got.put(name, model.mix(&q, routes, sum)?);
    }
    let model = TaskMixture::load(config, &resume)?;
    let again = model.project(&input, None)?;
    trained(case, &resume, &projected.tokens[0].embeds, &again.tokens[0].embeds)
}

/// The loss, all on the way to it, and two of its gradients.
pub fn saclm(case: &Case, got: &mut Got) -> Result<()> {
    let [load, resume] = both(case)?;
    let model = Saclm::load(load_saclm(&case.dir)?, &resume)?;
    let audio = candle_core::Var::from_tensor(&case.input("audio_embeds")?)?;
    let text = case.input("text_embeds")?;
    let probe = Probe::new();
    let losses = model.forward(audio.as_tensor(), &text, &negatives(case)?, Some(&probe))?;
    got.put_all("", probe.tensors());
    got.put("triplet_loss", losses.triplet.clone());
    got.put("ratio_loss", losses.ratio.clone());
    got.put("total_loss", losses.total.clone());
    let grads = losses.total.backward()?;
    got.put("grad.audio_embeds", grads.get(audio.as_tensor()).context("the sound gets no gradient")?.clone());
    for (name, tensor) in resume.published(|var| grads.get(var).cloned())? {
        got.put(format!("grad.{}", name.strip_prefix("lps_module.").unwrap_or(&name)), tensor);
    }
    let packed = Saclm::load(load_saclm(&case.dir)?, &load)?;
    let again = packed.forward(&audio.as_tensor().detach(), &text, &negatives(case)?, None)?;
    case.alike(&again.total, &losses.total, 1e-5, "from tiles the loss differs")?;
    Ok(())
}

fn negatives(case: &Case) -> Result<Vec<u32>> {
    Ok(case.input("negative_permutation")?.to_dtype(DType::U32)?.to_vec1()?)
}

/// The numbers of the beam search, as the case states them.
fn search(case: &Case, base: BeamOptions) -> Result<BeamOptions> {
    let meaning = case.meaning("generated_beam3");
    let number = |name: &str| {
        let rest = meaning.split_once(name).map(|(_, rest)| rest.trim_start());
        let digits: String = rest.unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<usize>().with_context(|| format!("the case says no {name}"))
    };
    Ok(BeamOptions {
        beams: number("num_beams")?,
        max_new_tokens: number("max_new_tokens")?,
        min_new_tokens: number("min_new_tokens")?,
        ..base
    })
}

/// The whole model.
pub fn model(case: &Case, got: &mut Got) -> Result<()> {
    let (config, tokenizer) = (UsamConfig::load(&case.dir)?, Tokenizer::load(&case.dir)?);
    let vocabulary = Vocabulary::new(&config, |token| tokenizer.id(token))?;
    let encode = |text: &str| tokenizer.encode(text).map_err(candle_core::Error::wrap);
    let list = |name: &str| -> Result<Vec<String>> {
        let list = case.json[name].as_array().with_context(|| format!("the case has no {name}"))?;
        list.iter().map(|v| Ok(v.as_str().context("a text")?.to_string())).collect()
    };
    let texts = list("texts")?.iter().map(|t| Ok(vocabulary.bare(encode(t)?))).collect::<Result<Vec<_>>>()?;
    let tasks = list("tasks")?;
    let prompts = tasks.iter().map(|task| {
        let given = case.json["prompts"][task].as_str().context("the case has no prompt of a task")?;
        ensure!(Task::from_name(task)?.prompt() == given, "the prompt of {task} is {given:?}");
        Ok(vocabulary.prompt(given, encode)?)
    });
    let prompts = prompts.collect::<Result<Vec<Prompt>>>()?;
    let samples = case.input("audios")?;
    let b = samples.dim(0)?;

    let model = Usam::load(&case.dir, vocabulary.clone(), case.dtype, &case.device)?;
    let probe = Probe::new();
    let encoded = model.encode(&samples, Some(&probe))?;
    let projected = model.project(&encoded, &prompts, Some(&probe))?;
    let first = prompts.first().context("there is no prompt")?;
    if prompts.iter().all(|prompt| prompt == first) {
        got.put("prompt_embeds", Tensor::cat(&model.embed_prompt(first, b)?, 1)?);
    }
    let other = match model.config().projector.sum {
        MixtureSum::Experts => MixtureSum::Time,
        MixtureSum::Time => MixtureSum::Experts,
    };
    let routes = projected.routes.first().context("no routes")?;
    got.put("projected_other_reduction", model.projector().mix(&encoded.embeds, routes, other)?);
    got.put_all("", probe.tensors());

    let sound = projected.tokens.first().context("no tokens")?;
    let sequence = model.sequence(sound, &prompts, &texts)?;
    let s = sequence.embeds.dim(1)?;
    let output = model.forward(&sequence, None)?;
    got.put("projected", sound.embeds.clone());
    got.put("logits", model.llm().logits(&output.hidden)?);
    got.put("inputs_embeds", sequence.embeds.clone());
    got.put("text_embeds", sequence.text.clone());
    let mask: Vec<i64> = sequence.lengths.iter().flat_map(|&n| (0..s).map(move |i| i64::from(i < n))).collect();
    got.put("attention_mask", Tensor::from_vec(mask, (b, s), &Device::Cpu)?);
    got.put("labels", Tensor::from_vec(sequence.labels, (b, s), &Device::Cpu)?);

    // The losses by the path that training takes: encoders and language model as they are, the rest on variables.
    let checkpoint = Checkpoint::open(&case.dir)?;
    let frozen = Params::frozen(&checkpoint, case.dtype, &case.device);
    let variables = Params::resume(&checkpoint, &case.device);
    let sources = Sources { frozen: &frozen, trained: &variables };
    let trainable = Usam::new(config, vocabulary, sources, Layout::of(&checkpoint), Some(&checkpoint))?;
    let probe = Probe::new();
    let losses = trainable.loss(&samples, &prompts, &texts, &negatives(case)?, Some(&probe))?;
    // Of one query alone, queries and keys of the Q-Former's self-attention are multiplied with nothing.
    gradients(&variables, &losses.total, 2 * trainable.config().qformer.layers)?;
    let scores = probe.tensors().remove("significance_scores").context("there are no scores")?;
    got.put("significance_scores", scores);
    got.put("ce_loss", losses.cross_entropy);
    got.put("contrastive_loss", losses.contrastive.total);
    got.put("total_loss", losses.total);

    let options = search(case, model.beam_options())?;
    let found = model.search(&samples, &prompts, &options)?;
    let best = found.iter().map(|beams| Ok(beams.first().context("no beam")?.tokens.clone()));
    let best = best.collect::<Result<Vec<_>>>()?;
    let longest = best.iter().map(Vec::len).max().unwrap_or(0);
    let ids: Vec<i64> = best
        .iter()
        .flat_map(|row| {
            let fill = i64::from(model.vocabulary().pad);
            let row: Vec<i64> = row.iter().map(|&id| i64::from(id)).collect();
            let missing = longest - row.len();
            row.into_iter().chain(std::iter::repeat_n(fill, missing))
        })
        .collect();
    got.put("generated_beam3", Tensor::from_vec(ids, (b, longest), &Device::Cpu)?);
    Ok(())
}
