//! Vision models put together from parts: splicing, losses, saving and loading, and what is refused.

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use common::{LLAMA, QWEN3_MOE};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_models::decoder::{Input, Side};
use moesaic_models::generate::{Options, Prompts, generate};
use moesaic_models::vision::{Error, PICTURE, Row, VisionConfig, VisionModel, share};
use serde_json::{Value, json};

const CLIP: &str = r#"{"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "projection_dim": 6}"#;
const SIGLIP: &str = r#"{"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}"#;
const MLP: &str = r#"{"type": "mlp", "depth": 2}"#;
const SPARSE: &str = r#"{"type": "sparse_mlp", "num_experts": 3, "num_selected": 2}"#;
const MARK: u32 = 250;

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn native(tower: &str, text: &str, projector: &str) -> Value {
    json!({ "model_type": "moesaic_vision", "vision_config": value(tower), "text_config": value(text),
        "projector": value(projector), "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
        "image_token_index": MARK })
}

fn model(config: &Value) -> (VisionModel, Params) {
    let params = Params::init(7, &Device::Cpu);
    (VisionModel::new(VisionConfig::from_json(&config.to_string()).unwrap(), &params).unwrap(), params)
}

fn pixels(n: usize) -> Tensor {
    let values: Vec<f32> = (0..n * 192).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_vec(values, (n, 3, 8, 8), &Device::Cpu).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn row<'a>(ids: &'a [u32], pictures: &'a [moesaic_kernels::Tokens]) -> Row<'a> {
    Row { ids, pictures, ..Row::default() }
}

#[test]
fn pictures_stand_where_their_marks_do() -> Result<()> {
    let (model, _) = model(&native(CLIP, LLAMA, MLP));
    let encoded = model.encode(&pixels(2), None)?;
    let both = encoded.pictures()?;
    let t = model.config().picture_tokens();
    assert_eq!((t, both[0].embeds.dims()), (5, &[1, 5, 32][..]));
    let words = |ids: &[u32]| -> Result<Vec<f32>> {
        Ok(values(&model.decoder().embed(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)?))
    };
    let (first, second) = (values(&both[0].embeds), values(&both[1].embeds));
    type Case<'a> = (&'a [u32], &'a [moesaic_kernels::Tokens], Vec<Vec<f32>>);
    let cases: [Case<'_>; 5] = [
        (&[1, 2, 3], &[], vec![words(&[1, 2, 3])?]),
        (&[MARK, 1, 2], &both[..1], vec![first.clone(), words(&[1, 2])?]),
        (&[1, 2, MARK], &both[1..], vec![words(&[1, 2])?, second.clone()]),
        (&[1, MARK, 2, MARK, 3], &both, vec![words(&[1])?, first.clone(), words(&[2])?, second.clone(), words(&[3])?]),
        (&[MARK, MARK], &both, vec![first.clone(), second.clone()]),
    ];
    for (ids, pictures, parts) in &cases {
        let spliced = model.splice(&[row(ids, pictures)], Side::Left, None)?;
        assert_eq!(values(&spliced.embeds), parts.concat(), "{ids:?}");
        assert_eq!(spliced.labels, vec![-100; spliced.embeds.dim(1)?]);
        // One mark for each token of a picture is the same.
        let expanded: Vec<u32> =
            ids.iter().flat_map(|&id| std::iter::repeat_n(id, if id == MARK { t } else { 1 })).collect();
        let again = model.splice(&[row(&expanded, pictures)], Side::Left, None)?;
        assert_eq!(values(&again.embeds), values(&spliced.embeds), "{ids:?}");
    }
    // A batch: padding at either side, labels in the places of words, rows cut.
    let ids: [&[u32]; 2] = [&[1, MARK, 2], &[4, 5]];
    let shares = share(&ids, MARK, &both[..1])?;
    let labels: [&[i64]; 2] = [&[1, 9, 2], &[]];
    let rows: Vec<Row<'_>> = (0..2).map(|i| Row { ids: ids[i], labels: labels[i], pictures: shares[i] }).collect();
    let left = model.splice(&rows, Side::Left, None)?;
    assert_eq!((left.embeds.dims(), left.context.padding.as_slice()), (&[2, 7, 32][..], &[0, 5][..]));
    let mut wanted = vec![-100; 14];
    (wanted[0], wanted[6]) = (1, 2);
    assert_eq!(left.labels, wanted);
    let right = model.splice(&rows, Side::Right, None)?;
    assert_eq!((right.context.trailing.as_slice(), right.context.padding.len()), (&[0, 5][..], 0));
    assert_eq!(values(&right.embeds.narrow(1, 0, 2)?.narrow(0, 1, 1)?), words(&[4, 5])?);
    let cut = model.splice(&rows, Side::Right, Some(3))?;
    assert_eq!((cut.embeds.dims(), cut.labels.as_slice()), (&[2, 3, 32][..], &[1, -100, -100, -100, -100, -100][..]));
    // Real tokens do not see at which side the padding is.
    let (a, b) = (model.forward(&left, None, None)?.hidden, model.forward(&right, None, None)?.hidden);
    let (a, b) = (values(&a.narrow(0, 1, 1)?.narrow(1, 5, 2)?), values(&b.narrow(0, 1, 1)?.narrow(1, 0, 2)?));
    assert!(common::far(&a, &b) < 1e-5);
    assert!(model.forward(&right, Some(&mut Default::default()), None).is_err());
    Ok(())
}

#[test]
fn marks_and_pictures_that_do_not_match() -> Result<()> {
    let (model, _) = model(&native(CLIP, LLAMA, MLP));
    let both = model.encode(&pixels(2), None)?.pictures()?;
    let refused = |rows: &[Row<'_>]| model.splice(rows, Side::Left, None).unwrap_err();
    for (ids, n) in [(&[1, MARK][..], 2), (&[MARK, 1, MARK], 1), (&[1, 2], 1), (&[MARK, 1], 0)] {
        let error = refused(&[row(&[1], &[]), row(ids, &both[..n])]);
        let marks = ids.iter().filter(|&&id| id == MARK).count();
        assert!(
            matches!(error, Error::Marks { row: 1, marks: m, pictures: p, .. } if (m, p) == (marks, n)),
            "{ids:?}: {error}"
        );
        assert!(!error.to_string().contains('\n'));
    }
    assert!(matches!(refused(&[row(&[1], &[]), row(&[], &[])]), Error::Empty { row: 1 }));
    assert!(matches!(
        refused(&[Row { ids: &[1, 2], labels: &[1], pictures: &[] }]),
        Error::Labels { labels: 1, ids: 2, .. }
    ));
    assert!(matches!(refused(&[row(&[257], &[])]), Error::Model(_)));
    // A batch with one picture too many, and too few.
    assert!(matches!(share(&[&[MARK, 1], &[1]], MARK, &both), Err(Error::Marks { row: 1, pictures: 1, .. })));
    assert!(matches!(share(&[&[MARK, 1], &[MARK, MARK]], MARK, &both), Err(Error::Marks { row: 1, marks: 2, .. })));
    let expanded: Vec<u32> = vec![MARK; 5];
    assert_eq!(
        share(&[&expanded, &[1], &expanded], MARK, &both)?.iter().map(|s| s.len()).collect::<Vec<_>>(),
        [1, 0, 1]
    );
    Ok(())
}

#[test]
fn what_is_saved_is_what_was_trained_and_generates() -> Result<()> {
    for (tower, text, projector) in [(CLIP, QWEN3_MOE, SPARSE), (SIGLIP, LLAMA, MLP)] {
        let config = native(tower, text, projector);
        let (trained, params) = model(&config);
        let dir = tempfile::tempdir()?;
        trained.save(&params, dir.path(), DType::F32)?;
        let loaded = VisionModel::load(dir.path(), DType::F32, &Device::Cpu)?;
        assert_eq!(loaded.config().published, trained.config().published);
        let ids: [&[u32]; 2] = [&[1, MARK, 2, MARK], &[3, 4]];
        let run = |model: &VisionModel| -> Result<Vec<f32>> {
            let pictures = model.encode(&pixels(2), None)?.pictures()?;
            let rows = [row(ids[0], &pictures), row(ids[1], &[])];
            Ok(values(&model.logits(&model.forward(&model.splice(&rows, Side::Left, None)?, None, None)?.hidden)?))
        };
        assert!(common::far(&run(&trained)?, &run(&loaded)?) < 1e-4);

        // The losses of all parts, and gradients for every variable.
        let encoded = trained.encode_with_losses(&pixels(2), None)?;
        let pictures = encoded.pictures()?;
        let rows = [
            Row { ids: ids[0], labels: &[-100, -100, 2, -100], pictures: &pictures },
            Row { ids: ids[1], labels: &[3, 4], pictures: &[] },
        ];
        let (losses, _) = trained.loss(&trained.splice(&rows, Side::Right, None)?, Some(&encoded))?;
        let number = |t: &Tensor| t.to_scalar::<f32>();
        let mut sum = number(&losses.cross_entropy)?;
        assert_eq!((losses.projector.is_some(), losses.decoder.is_some()), (projector == SPARSE, text == QWEN3_MOE));
        if let (Some((balance, z)), Some(aux)) = (&losses.projector, &losses.decoder) {
            sum += 0.1 * number(balance)? + 0.01 * number(z)? + 0.01 * number(aux)?;
        }
        assert!((number(&losses.total)? - sum).abs() < 1e-5);
        let grads = losses.total.backward()?;
        for (name, var) in params.variables() {
            let grad = grads.get(&var).map(|g| g.sqr()?.sum_all()?.to_scalar::<f32>()).transpose()?;
            assert!(grad.is_some_and(f32::is_finite), "{name}");
        }

        // Generation of a batch is that of its rows.
        let pictures = loaded.encode(&pixels(2), None)?.pictures()?;
        let rows = [row(ids[0], &pictures), row(ids[1], &[])];
        let options = Options { max_new_tokens: 4, ..Options::default() };
        let text = |rows: &[Row<'_>]| {
            let s = loaded.splice(rows, Side::Left, None)?;
            generate(&loaded, Prompts::Embeds(&s.embeds, &s.context), &options, &mut |_| ControlFlow::Continue(()))
        };
        let both = text(&rows)?;
        assert_eq!((&both[0].tokens, &both[1].tokens), (&text(&rows[..1])?[0].tokens, &text(&rows[1..])?[0].tokens));
    }
    Ok(())
}

fn refused(config: &Value) -> Error {
    VisionConfig::from_json(&config.to_string()).unwrap_err()
}

#[test]
fn a_model_without_a_vision_tower() {
    let config = native(CLIP, LLAMA, MLP);
    let mut blind = config.clone();
    blind["vision_config"] = Value::Null;
    assert!(matches!(refused(&blind), Error::NoTower { .. }));
    // A language model.
    let error = refused(&value(LLAMA));
    assert!(matches!(error, Error::NoTower { .. }) && error.to_string().starts_with("a model without a vision tower"));
    // Weights without one.
    let (_, params) = model(&config);
    let tensors = params.published(|v| Some(v.as_tensor().clone())).unwrap();
    let write = |dir: &Path, keep: &dyn Fn(&str) -> bool| {
        let tensors: Vec<_> = tensors.iter().filter(|(name, _)| keep(name)).cloned().collect();
        save(&dir.join("model.safetensors"), &tensors, &[]).unwrap();
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
        VisionModel::load(dir, DType::F32, &Device::Cpu)
    };
    let dir = tempfile::tempdir().unwrap();
    let error = write(dir.path(), &|name| !name.starts_with("vision_tower.")).unwrap_err();
    assert!(matches!(error, Error::NoTower { .. }) && !error.to_string().contains('\n'), "{error}");
    // A tower with a hole is another matter.
    let error = write(dir.path(), &|name| !name.ends_with("pre_layrnorm.bias")).unwrap_err();
    assert!(matches!(error, Error::Model(_)) && error.to_string().contains("pre_layrnorm.bias"), "{error}");
    assert!(write(dir.path(), &|_| true).is_ok());
}

#[test]
fn configs_that_make_no_model() {
    let base = native(CLIP, LLAMA, MLP);
    let cases: [(&str, Value, &str); 7] = [
        ("model_type", json!("pixtral"), "pixtral"),
        ("text_config", Value::Null, "text_config"),
        ("text_config", json!({"model_type": "bert"}), "bert"),
        ("projector", json!({"type": "qformer"}), "qformer"),
        ("projector", json!({"type": "sparse_mlp", "num_experts": 2, "num_selected": 3}), "3 of 2"),
        ("image_token_index", json!(257), "257"),
        ("vision_feature_select_strategy", json!("cls"), "cls"),
    ];
    for (key, value, words) in cases {
        let mut config = base.clone();
        config[key] = value;
        let error = refused(&config).to_string();
        assert!(error.contains(words), "{key}: {error}");
    }
    // A layer that the tower does not have shows when a picture comes.
    let mut config = base;
    config["vision_feature_layer"] = json!(7);
    assert!(model(&config).0.encode(&pixels(1), None).is_err());
}

/// The keys of Mistral at the top, as CuMo has them.
fn cumo(model_type: &str) -> Value {
    json!({ "model_type": model_type, "vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "sliding_window": null, "num_local_experts": 4, "num_experts_per_tok": 2,
        "mm_vision_tower": "openai/clip-vit-tiny", "mm_projector_type": "smoe_mlp", "mlp_smoe": true, "clip_smoe": true,
        "num_experts": 3, "num_selected": 2, "scales": [1, 2], "balance_loss_coef": 0.1, "router_z_loss_coef": 0.01,
        "vision_config": value(CLIP) })
}

#[test]
fn cumo_is_one_model() -> Result<()> {
    for model_type in ["llava_mistral", "llava_mixtral"] {
        let (trained, params) = model(&cumo(model_type));
        let names: Vec<String> = params.variables().into_iter().map(|(name, _)| name).collect();
        for name in [
            "lm_head.weight",
            "model.embed_tokens.weight",
            "model.mm_projector.gate.weight",
            "model.vision_tower.vision_model.encoder.layers.1.gate.weight",
        ] {
            assert!(names.iter().any(|n| n == name), "{name}");
        }
        let encoded = trained.encode_with_losses(&pixels(2), None)?;
        assert_eq!(encoded.features.embeds.dims(), [2, 4, 32]);
        let pictures = encoded.pictures()?;
        let rows = [
            Row { ids: &[1, PICTURE, 2], labels: &[1, -100, 2], pictures: &pictures[..1] },
            Row { ids: &[PICTURE, 3], labels: &[], pictures: &pictures[1..] },
        ];
        let (losses, output) = trained.loss(&trained.splice(&rows, Side::Right, None)?, Some(&encoded))?;
        let number = |t: &Tensor| t.to_scalar::<f32>();
        let (Some(tower), Some(projector)) = (&losses.tower, &losses.projector) else { panic!("losses are missing") };
        let pair =
            |(balance, z): &(Tensor, Tensor)| Ok::<_, candle_core::Error>(0.1 * number(balance)? + 0.01 * number(z)?);
        let mut sum = number(&losses.cross_entropy)? + pair(tower)? + pair(projector)?;
        assert_eq!(output.routes.len(), if model_type == "llava_mixtral" { 2 } else { 0 });
        if let Some(aux) = &losses.decoder {
            sum += number(aux)?;
        }
        assert_eq!(losses.decoder.is_some(), model_type == "llava_mixtral");
        assert!((number(&losses.total)? - sum).abs() < 1e-5);

        let dir = tempfile::tempdir()?;
        trained.save(&params, dir.path(), DType::F32)?;
        let loaded = VisionModel::load(dir.path(), DType::F32, &Device::Cpu)?;
        let again = loaded.encode(&pixels(2), None)?;
        assert!(common::far(&values(&again.tokens.embeds), &values(&encoded.tokens.embeds)) < 1e-5);
    }
    Ok(())
}

/// What a MoE-LLaVA of StableLM has.
fn moe_llava() -> Value {
    json!({ "model_type": "moe_llava_stablelm", "vocab_size": 257, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 128,
        "rope_pct": 0.5, "norm_eps": 1e-5, "use_qkv_bias": true, "hidden_act": "silu", "mm_hidden_size": 16,
        "mm_image_tower": "openai/clip-vit-tiny", "image_projector_type": "linear", "mm_vision_select_layer": -2,
        "initializer_range": 0.2,
        "moe": { "moe_enable": true, "moe_mode": "sparse", "num_experts": [2, 4], "top_k_experts": 2,
            "eval_capacity_factor": 0.5, "min_capacity": 0 } })
}

#[test]
fn layers_may_differ_in_experts_and_rows_in_company() -> Result<()> {
    let config = VisionConfig::from_map(
        value(&moe_llava().to_string()).as_object().cloned().unwrap(),
        value(CLIP).as_object().cloned(),
    )?;
    assert_eq!(
        config.decoder.sparse_layers().map(|i| (i, config.decoder.experts(i))).collect::<Vec<_>>(),
        [(0, 2), (2, 4)]
    );
    let params = Params::init(3, &Device::Cpu);
    VisionModel::new(config.clone(), &params)?;
    let tensors = params.published(|v| Some(v.as_tensor().clone()))?;
    let total: usize = tensors
        .iter()
        .filter(|(name, _)| !name.contains("tower") && !name.contains("projector"))
        .map(|(_, t)| t.elem_count())
        .sum();
    assert_eq!(total, config.decoder.parameters().total());
    assert!(tensors.iter().any(|(name, _)| name == "model.mm_projector.image_spatial_proj.weight"));
    let dir = tempfile::tempdir()?;
    save(&dir.path().join("model.safetensors"), &tensors, &[])?;
    let file = Checkpoint::open(dir.path())?;
    let load = |config: VisionConfig| VisionModel::from_checkpoint(config, &file, DType::F32, &Device::Cpu);
    let model = load(config.clone())?;
    let hidden = |model: &VisionModel, rows: &[Row<'_>]| -> Result<Vec<f32>> {
        let hidden = model.forward(&model.splice(rows, Side::Right, None)?, None, None)?.hidden;
        Ok(values(&hidden.narrow(0, 0, 1)?.narrow(1, 0, 8)?))
    };
    let (a, b): (Vec<u32>, Vec<u32>) = ((0..8).collect(), (100..112).collect());
    // Experts are full: whom a row shares a batch with changes it, padding behind it does not.
    let (alone, together) = (hidden(&model, &[row(&a, &[])])?, hidden(&model, &[row(&a, &[]), row(&b, &[])])?);
    assert!(common::far(&alone, &together) > 1e-4);
    let roomy = |seed| {
        let mut config = config.clone().with_second_choice_noise(seed);
        if let Some(sparse) = &mut config.decoder.sparse {
            let moesaic_models::decoder::RouterConfig::Capacity { factor, .. } = &mut sparse.router else { panic!() };
            *factor = 8.0;
        }
        load(config)
    };
    let model = roomy(None)?;
    let (alone, together) = (hidden(&model, &[row(&a, &[])])?, hidden(&model, &[row(&a, &[]), row(&b, &[])])?);
    assert!(common::far(&alone, &together) < 1e-5);
    // The reference's noise is off unless it is asked for, and new in every pass.
    let noisy = roomy(Some(1))?;
    let (one, two) = (hidden(&noisy, &[row(&a, &[])])?, hidden(&noisy, &[row(&a, &[])])?);
    assert!(common::far(&one, &two) > 1e-4 && common::far(&one, &alone) > 1e-4);
    let same = roomy(Some(1))?;
    assert!(common::far(&hidden(&same, &[row(&a, &[])])?, &one) < 1e-6);
    assert!(
        model
            .decoder()
            .forward(Input::Ids(&Tensor::zeros((0, 1), DType::U32, &Device::Cpu)?), &Default::default(), None, None)
            .is_err()
    );
    Ok(())
}

#[test]
fn capacities_that_make_no_model() {
    let cases: [(&str, Value, &str); 6] = [
        ("top_k_experts", json!(3), "is 3, expected 1 to 2"),
        ("num_experts", json!([2, 4, 4]), "3 entries for 2"),
        ("num_experts", json!(1), "1 to 1"),
        ("moe_layers_idx", json!([0, 9]), "layer 9"),
        ("moe_layers_idx", json!([0, 0]), "twice"),
        ("eval_capacity_factor", json!(0), "eval_capacity_factor"),
    ];
    for (key, change, words) in cases {
        let mut config = moe_llava();
        config["moe"][key] = change;
        config["vision_config"] = value(CLIP);
        let error = refused(&config).to_string();
        assert!(error.contains(words), "{key}: {error}");
    }
    let mut config = moe_llava();
    assert!(refused(&config).to_string().contains("vision_config.json"));
    config["mm_image_tower"] = json!("google/siglip-so400m-patch14-384");
    assert_eq!(VisionConfig::from_json(&config.to_string()).unwrap().picture_tokens(), 728);
    config["mm_image_tower"] = Value::Null;
    assert!(matches!(refused(&config), Error::NoTower { .. }));
    config["model_type"] = json!("moe_llava_minicpm");
    assert!(refused(&config).to_string().contains("moe_llava_minicpm"));
}

/// What the loss falls by along each variable is what its gradient says: through decoder, splicing, projector, joined
/// features, and every layer of the tower.
#[test]
fn gradients_reach_every_part() -> Result<()> {
    // All experts, so that no choice flips between the two sides of a slope.
    let every = SPARSE.replace("\"num_selected\": 2", "\"num_selected\": 3");
    for (tower, projector) in [(CLIP, MLP), (SIGLIP, every.as_str())] {
        let mut config = native(tower, LLAMA, projector);
        config["vision_config"]["image_size"] = json!(16);
        config["vision_config"]["hidden_size"] = json!(24);
        config["vision_feature_select_strategy"] = json!(if tower == CLIP { "default" } else { "full" });
        config["compression"] = json!({ "type": "pixel_shuffle", "size": 2 });
        let (model, params) = model(&config);
        let pixels: Vec<f32> = (0..2 * 3 * 256).map(|i| (i as f32 * 0.37).sin()).collect();
        let pixels = Tensor::from_vec(pixels, (2, 3, 16, 16), &Device::Cpu)?;
        let loss = || -> Result<Tensor> {
            let encoded = model.encode(&pixels, None)?;
            let pictures = encoded.pictures()?;
            let rows = [
                Row { ids: &[MARK, 5, 6, 7], labels: &[-100, -100, 6, 7], pictures: &pictures[..1] },
                Row { ids: &[4, MARK, 9], labels: &[-100, -100, 9], pictures: &pictures[1..] },
                Row { ids: &[MARK, 8, 3], labels: &[-100, -100, 3], pictures: &pictures[..1] },
            ];
            Ok(model.loss(&model.splice(&rows, Side::Right, None)?, Some(&encoded))?.0.total)
        };
        let gradients = loss()?.backward()?;
        for (name, var) in params.variables() {
            let gradient = gradients.get(var.as_tensor()).unwrap_or_else(|| panic!("{name} has no gradient")).clone();
            let size = gradient.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
            if size < 1e-4 {
                continue; // keys' biases move all scores alike
            }
            // Along the gradient itself, where the slope is its size. A long step may send tokens to other experts.
            let kept = var.as_tensor().copy()?;
            let slope = |step: f64| -> Result<f64> {
                let along = (&gradient * (step / f64::from(size)))?;
                let value = |sign: f64| -> Result<f32> {
                    var.set(&(&kept + (&along * sign)?)?)?;
                    loss()?.to_scalar::<f32>()
                };
                Ok(f64::from(value(1.0)? - value(-1.0)?) / (2.0 * step))
            };
            let off = |slope: f64| (slope - f64::from(size)).abs() / f64::from(size);
            let step = 2e-2 / f64::from(size.max(1.0));
            let mut found = slope(step)?;
            if off(found) >= 0.05 {
                found = slope(0.05 * step)?;
            }
            var.set(&kept)?;
            assert!(off(found) < 0.05, "{name}: slope {found}, gradient {size}");
        }
    }
    Ok(())
}
