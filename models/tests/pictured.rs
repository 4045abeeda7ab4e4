//! Aria and Qwen3-VL beyond their parity cases: generation with a cache, videos, rows alone and in a batch, and what does not fit.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result, Tensor};
use moesaic_kernels::rng::Rng;
use moesaic_kernels::{Modality, Params, Tokens};
use moesaic_models::aria::{Aria, AriaConfig};
use moesaic_models::decoder::{Decoder, Input, Side};
use moesaic_models::generate::{Backbone, BeamOptions, Options, Prompts, beam_search, generate};
use moesaic_models::qwen3_vl::{Qwen3Vl, Qwen3VlConfig};
use moesaic_models::vision::{Error, Row, Spliced};

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(case)
}

fn aria() -> Aria {
    Aria::load(&folder("aria/tiny_8e"), DType::F32, &Device::Cpu).unwrap()
}

fn qwen() -> Qwen3Vl {
    Qwen3Vl::load(&folder("qwen3_vl_moe/tiny_8e"), DType::F32, &Device::Cpu).unwrap()
}

fn random(seed: u64, dims: &[usize]) -> Tensor {
    let mut rng = Rng::new(seed);
    let values: Vec<f32> = (0..dims.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

fn row<'a>(ids: &'a [u32], pictures: &'a [Tokens]) -> Row<'a> {
    Row { ids, labels: &[], pictures }
}

/// Generates greedily, and checks every token's probability against one pass over prompt and answer together.
fn greedy_equals_one_pass<M: Backbone>(
    model: &M,
    decoder: &Decoder,
    splice: &dyn Fn(&[Row<'_>]) -> Spliced,
    rows: &[Row<'_>],
) -> Vec<Vec<u32>> {
    let prompts = splice(rows);
    let options = Options { max_new_tokens: 7, log_probs: true, ..Options::default() };
    let prompts = Prompts::Embeds(&prompts.embeds, &prompts.context);
    let answers = generate(model, prompts, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let whole: Vec<Vec<u32>> = rows.iter().zip(&answers).map(|(r, a)| [r.ids, &a.tokens].concat()).collect();
    let whole: Vec<Row<'_>> = rows.iter().zip(&whole).map(|(r, ids)| row(ids, r.pictures)).collect();
    let all = splice(&whole);
    let output = decoder.forward(Input::Embeds(&all.embeds), &all.context, None, None).unwrap();
    let logits = decoder.logits(&output.hidden).unwrap().to_vec3::<f32>().unwrap();
    for (row, (logits, answer)) in logits.iter().zip(&answers).enumerate() {
        let first = logits.len() - answer.tokens.len() - 1;
        for (i, (&id, log_prob)) in answer.tokens.iter().zip(&answer.log_probs).enumerate() {
            let scores = &logits[first + i];
            let sum: f64 = scores.iter().map(|v| f64::from(*v).exp()).sum();
            let expected = f64::from(scores[id as usize]) - sum.ln();
            assert!((expected - f64::from(*log_prob)).abs() < 1e-4, "row {row}, token {i}: {expected} {log_prob}");
            assert!(scores.iter().all(|v| *v <= scores[id as usize] + 1e-4));
        }
    }
    answers.into_iter().map(|a| a.tokens).collect()
}

#[test]
fn aria_generates_with_a_cache_what_one_pass_gives() -> Result<()> {
    let model = aria();
    let mut mask = vec![1u8; 3 * 56 * 56];
    // The third picture is 20 pixels high and 40 wide: two patches by three, the rest is padding.
    for (i, m) in mask[2 * 56 * 56..].iter_mut().enumerate() {
        *m = u8::from(i / 56 < 20 && i % 56 < 40);
    }
    let mask = Tensor::from_vec(mask, (3, 56, 56), &Device::Cpu)?;
    let pixels = random(3, &[3, 3, 56, 56]);
    let pictures = model.encode(&pixels, Some(&mask), None)?;
    assert!(pictures.iter().all(|p| p.embeds.dims() == [1, 6, 48]));
    let splice = |rows: &[Row<'_>]| model.splice(rows, Side::Left, None).unwrap();
    // One mark for each picture, and marks for each token.
    let (short, long) = ([5u32, 200, 9, 200, 8], [&[7u32][..], &[200; 6], &[11, 12]].concat());
    let rows = [row(&short, &pictures[..2]), row(&long, &pictures[2..])];
    let together = greedy_equals_one_pass(&model, model.decoder(), &splice, &rows);
    for (row, answer) in rows.iter().zip(&together) {
        assert_eq!(&greedy_equals_one_pass(&model, model.decoder(), &splice, &[*row])[0], answer);
    }
    // What is padded plays no part.
    let noise = (random(4, &[3, 3, 56, 56]) * 5.0)?;
    let unseen = mask.unsqueeze(1)?.broadcast_as((3, 3, 56, 56))?.eq(0u8)?;
    let patches_with_padding_alone = unseen.narrow(2, 28, 28)?;
    let low = patches_with_padding_alone.where_cond(&noise.narrow(2, 28, 28)?, &pixels.narrow(2, 28, 28)?)?;
    let again = model.encode(&Tensor::cat(&[&pixels.narrow(2, 0, 28)?, &low], 2)?, Some(&mask), None)?;
    for (a, b) in pictures.iter().zip(&again) {
        assert_eq!(a.embeds.flatten_all()?.to_vec1::<f32>()?, b.embeds.flatten_all()?.to_vec1::<f32>()?);
    }
    // With the mask all the same picture has other features.
    let whole = model.encode(&pixels, None, None)?;
    assert_eq!(whole[0].embeds.to_vec3::<f32>()?, pictures[0].embeds.to_vec3::<f32>()?);
    assert_ne!(whole[2].embeds.to_vec3::<f32>()?, pictures[2].embeds.to_vec3::<f32>()?);
    assert!(model.encode(&random(3, &[1, 3, 28, 28]), None, None).unwrap_err().to_string().contains("queries"));
    Ok(())
}

/// Pictures of 2 x 3 and 3 x 2 tokens, and a video of 2 pairs of frames of 1 x 2.
fn media(model: &Qwen3Vl) -> Result<(Vec<Tokens>, Vec<Tokens>)> {
    let images = model.encode_images(&random(1, &[48, 384]), &[(1, 4, 6), (1, 6, 4)])?;
    Ok((images, model.encode_videos(&random(2, &[16, 384]), &[(2, 2, 4)])?))
}

#[test]
fn qwen_generates_with_a_cache_what_one_pass_gives() -> Result<()> {
    let model = qwen();
    let (images, frames) = media(&model)?;
    assert_eq!((frames.len(), frames[0].modality, frames[1].embeds.dims()), (2, Modality::Video, &[1, 2, 48][..]));
    let splice = |rows: &[Row<'_>]| model.splice(rows, Side::Left, None).unwrap();
    let first = [3u32, 207, 205, 208, 17, 207, 205, 208, 40];
    let second = [&[9u32, 30, 207][..], &[206; 2], &[208, 31, 207], &[206; 2], &[208, 12, 13]].concat();
    let text = [4u32, 5, 6];
    let rows = [row(&first, &images), row(&second, &frames), row(&text, &[])];
    let together = greedy_equals_one_pass(&model, model.decoder(), &splice, &rows);
    for (row, answer) in rows.iter().zip(&together) {
        assert_eq!(&greedy_equals_one_pass(&model, model.decoder(), &splice, &[*row])[0], answer);
    }
    // Beams reorder the rows of the cache, and the positions with them.
    let spliced = splice(&rows);
    let beams = BeamOptions { beams: 3, max_new_tokens: 5, ..BeamOptions::default() };
    let prompts = Prompts::Embeds(&spliced.embeds, &spliced.context);
    let batch = beam_search(&model, prompts, &beams, &mut |_| ControlFlow::Continue(()))?;
    for (row, batch) in rows.iter().zip(batch) {
        let alone = splice(&[*row]);
        let prompts = Prompts::Embeds(&alone.embeds, &alone.context);
        let alone = beam_search(&model, prompts, &beams, &mut |_| ControlFlow::Continue(()))?.remove(0);
        assert_eq!(alone[0].tokens, batch[0].tokens);
    }
    Ok(())
}

#[test]
fn tokens_stand_in_time_row_and_column() -> Result<()> {
    let model = qwen();
    let (images, frames) = media(&model)?;
    let (pictured, filmed) = ([3u32, 207, 205, 208, 4], [8u32, 206, 9, 206, 10]);
    let spliced = model.splice(&[row(&pictured, &images[..1]), row(&filmed, &frames)], Side::Left, None).unwrap();
    assert_eq!(spliced.embeds.dims(), [2, 10, 48]);
    let positions = spliced.context.positions.unwrap();
    let stream = |s: usize, row: usize| &positions[(s * 2 + row) * 10..][..10];
    // As get_rope_index of transformers 4.57.6: 2 rows of 3 behind two words, then on from the highest.
    assert_eq!(stream(0, 0), [0, 1, 2, 2, 2, 2, 2, 2, 5, 6]);
    assert_eq!(stream(1, 0), [0, 1, 2, 2, 2, 3, 3, 3, 5, 6]);
    assert_eq!(stream(2, 0), [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]);
    // Each pair of frames begins anew, with time 0.
    assert_eq!(stream(0, 1), [1, 1, 1, 0, 1, 1, 3, 4, 4, 6]);
    assert_eq!(stream(1, 1), [1, 1, 1, 0, 1, 1, 3, 4, 4, 6]);
    assert_eq!(stream(2, 1), [1, 1, 1, 0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(spliced.context.taps.len(), 2);
    let lit = spliced.context.taps[0].abs()?.sum(2)?.to_vec2::<f32>()?;
    let lit: Vec<Vec<bool>> = lit.iter().map(|row| row.iter().map(|v| *v > 0.0).collect()).collect();
    assert_eq!(lit[0], [false, false, true, true, true, true, true, true, false, false]);
    assert_eq!(lit[1], [false, false, false, false, true, true, false, true, true, false]);
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let model = qwen();
    let (images, frames) = media(&model)?;
    let refused = |ids: &[u32], pictures: &[Tokens]| model.splice(&[row(ids, pictures)], Side::Left, None).unwrap_err();
    assert!(matches!(refused(&[1, 205, 2], &images), Error::Marks { row: 0, marks: 1, pictures: 2, tokens: 12 }));
    assert!(matches!(refused(&[1, 206, 2], &images[..1]), Error::Marks { .. }));
    assert!(matches!(refused(&[1, 205, 2], &frames[..1]), Error::Marks { .. }));
    // As many marks as tokens, but apart.
    let apart = [&[205u32; 3][..], &[1], &[205; 3]].concat();
    assert!(matches!(refused(&apart, &images[..1]), Error::Marks { .. }));
    assert!(matches!(refused(&[], &[]), Error::Empty { row: 0 }));
    assert!(model.encode_images(&random(1, &[48, 384]), &[(1, 4, 5)]).is_err());
    assert!(aria().splice(&[row(&[1, 200], &[])], Side::Left, None).is_err());

    let read = |case: &str| -> serde_json::Map<String, serde_json::Value> {
        serde_json::from_str(&std::fs::read_to_string(folder(case).join("config.json")).unwrap()).unwrap()
    };
    let error = AriaConfig::from_map(read("qwen3_vl_moe/tiny_8e")).unwrap_err().to_string();
    assert!(error.contains("not aria"), "{error}");
    assert!(Qwen3VlConfig::from_map(read("aria/tiny_8e")).is_err());
    for (key, value) in [
        ("vision_feature_layer", serde_json::json!([1, 2])),
        ("projector_patch_to_query_dict", serde_json::json!({ "16": 0 })),
        ("text_config", serde_json::json!(7)),
        ("image_token_index", serde_json::json!("x")),
    ] {
        let mut config = read("aria/tiny_8e");
        config.insert(key.into(), value);
        let error = AriaConfig::from_map(config).unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
    let mut config = read("qwen3_vl_moe/tiny_8e");
    config["text_config"]["rope_scaling"]["mrope_section"] = serde_json::json!([1, 2]);
    assert!(Qwen3VlConfig::from_map(config).unwrap_err().to_string().contains("mrope_section"));
    Ok(())
}

#[test]
fn both_can_be_trained_from_nothing() -> Result<()> {
    let params = Params::init(1, &Device::Cpu);
    let model = Qwen3Vl::new(Qwen3VlConfig::load(&folder("qwen3_vl_moe/tiny_8e"))?, &params)?;
    let (images, _) = media(&model)?;
    let ids = [3u32, 205, 4, 5];
    let labels = [-100i64, -100, 4, 5];
    let rows = [Row { ids: &ids, labels: &labels, pictures: &images[..1] }];
    let spliced = model.splice(&rows, Side::Right, None).unwrap();
    let (losses, _) = model.decoder().loss(Input::Embeds(&spliced.embeds), &spliced.context, &spliced.labels)?;
    let grads = losses.total.backward()?;
    // The tower's maps, those of its features for later layers among them, and the experts as they are published.
    for name in [
        "model.visual.blocks.0.attn.qkv.weight",
        "model.visual.deepstack_merger_list.1.linear_fc2.weight",
        "model.language_model.layers.2.mlp.experts.gate_up_proj",
    ] {
        let (_, var) = params.variables().into_iter().find(|(n, _)| n == name).unwrap();
        assert!(grads.get(&var).unwrap().sqr()?.sum_all()?.to_scalar::<f32>()? > 0.0, "{name}");
    }
    Ok(())
}
