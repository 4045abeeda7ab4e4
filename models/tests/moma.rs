//! MoMa: causal at inference, trained with gradients, saved and loaded, upcycled.

use candle_core::{DType, Device, Result, Tensor};
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_kernels::rng::Rng;
use moesaic_kernels::{Init, Modality, Params};
use moesaic_models::moma::{AUXILIARY, Cache, Config, Moma, Routing, upcycle};

const CPU: &Device = &Device::Cpu;

const TINY: &str = r#"{"model_type": "moma", "vocab_size": 40, "image_token_ids": [30, 40], "hidden_size": 16,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 12, "text_experts": 2,
    "image_experts": 3, "initializer_range": 0.3}"#;

/// Plain, with projections and norms of each modality, and with tokens that pass layers by.
fn configs() -> Vec<Config> {
    let plain = Config::from_json(TINY).unwrap();
    let untied = Config { untied: true, ..plain.clone() };
    let depth = Config { depth_share: Some(0.5), ..plain.clone() };
    let all = Config { untied: true, ..depth.clone() };
    vec![plain, untied, depth, all]
}

/// Words and image tokens, in rows of `t`.
fn ids(seed: u64, b: usize, t: usize) -> Tensor {
    let mut rng = Rng::new(seed);
    let ids: Vec<u32> =
        (0..b * t).map(|i| if (i / 3) % 2 == 0 { rng.below(30) } else { 30 + rng.below(10) } as u32).collect();
    Tensor::from_vec(ids, (b, t), CPU).unwrap()
}

fn causal(config: &Config) -> Result<Moma> {
    Moma::new(config.clone(), &Params::init(1, CPU), Some(&Params::init(2, CPU)), Routing::Causal)
}

/// Logits by row and position.
fn logits(model: &Moma, ids: &Tensor, padding: &[usize]) -> Result<Vec<Vec<Vec<f32>>>> {
    model.logits(&model.forward(ids, padding)?.hidden)?.to_vec3()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
}

#[test]
fn inference_is_causal() -> Result<()> {
    let t = 12;
    for config in configs() {
        let (model, ids) = (causal(&config)?, ids(3, 1, t));
        let output = model.forward(&ids, &[])?;
        assert!(output.routes.iter().any(|r| !r.is_empty()));
        assert_eq!(output.depth_routes.len(), if config.depth_share.is_some() { 2 } else { 0 });
        let whole = logits(&model, &ids, &[])?;
        for n in 1..t {
            let part = logits(&model, &ids.narrow(1, 0, n)?, &[])?;
            for (i, row) in part[0].iter().enumerate() {
                assert!(close(row, &whole[0][i]), "{n} tokens, position {i}: {config:?}");
            }
        }
        // A row padded at the left, beside another, is the row alone.
        let short = ids.narrow(1, 4, 8)?;
        let padded = Tensor::cat(&[ids.clone(), Tensor::cat(&[ids.narrow(1, 0, 4)?, short.clone()], 1)?], 0)?;
        let (both, alone) = (logits(&model, &padded, &[0, 4])?, logits(&model, &short, &[])?);
        assert!((0..t).all(|i| close(&both[0][i], &whole[0][i])));
        assert!((0..8).all(|i| close(&both[1][i + 4], &alone[0][i])), "{config:?}");
    }
    Ok(())
}

#[test]
fn what_is_kept_gives_the_same_token_by_token() -> Result<()> {
    let mixed = |experts| Config { mixed_experts: Some(experts), ..Config::from_json(TINY).unwrap() };
    for config in configs().into_iter().chain([mixed(4), mixed(1)]) {
        let (model, t) = (causal(&config)?, 12);
        let all = ids(3, 2, t);
        let whole = logits(&model, &all, &[0, 3])?;
        for cuts in [vec![5, 1, 1, 5], vec![4, 8], vec![12]] {
            let (mut cache, mut from) = (Cache::default(), 0);
            for n in cuts {
                let part = all.narrow(1, from, n)?.contiguous()?;
                let padding = if from == 0 { vec![0, 3] } else { Vec::new() };
                let output = model.forward_cached(&part, &padding, &mut cache)?;
                let part = model.logits(&output.hidden)?.to_vec3::<f32>()?;
                for (row, (part, whole)) in part.iter().zip(&whole).enumerate() {
                    let first = if row == 1 && from == 0 { 3 } else { 0 };
                    for i in first..n {
                        assert!(close(&part[i], &whole[from + i]), "row {row}, token {}: {config:?}", from + i);
                    }
                }
                from += n;
            }
            assert_eq!(cache.seen(), [t, t - 3]);
            assert!(model.forward_cached(&all.narrow(0, 0, 1)?, &[], &mut cache).is_err(), "another number of rows");
            cache.clear();
            assert!(cache.seen().is_empty());
        }
        if config.mixed_experts == Some(1) {
            assert!(!config.chooses() && Moma::new(config, &Params::init(1, CPU), None, Routing::Causal).is_ok());
            continue;
        }
        let choosing = Moma::new(config, &Params::init(1, CPU), None, Routing::Choice)?;
        assert!(choosing.forward_cached(&all, &[], &mut Cache::default()).unwrap_err().to_string().contains("ahead"));
    }
    Ok(())
}

#[test]
fn sound_and_series_have_experts_of_their_own() -> Result<()> {
    let four = Config { audio_experts: 2, series_experts: 1, ..Config::from_json(TINY).unwrap() };
    let kinds = [Modality::Text, Modality::Image, Modality::Audio, Modality::Series];
    assert_eq!(four.modalities(), kinds);
    for config in
        [four.clone(), Config { untied: true, ..four.clone() }, Config { mixed_experts: Some(8), ..four.clone() }]
    {
        let params = Params::init(1, CPU);
        let model = Moma::new(config.clone(), &params, None, Routing::Choice)?;
        let modality: Vec<Modality> = (0..16).map(|i| kinds[i / 4]).collect();
        let x = Params::init(5, CPU).tensor("x", [1, 16, 16], Init::Normal(1.0))?.detach();
        let output = model.forward_embeds(&x, &modality, &[], None)?;
        let routes = &output.routes[0];
        assert_eq!(routes.experts(), 8);
        for (t, experts) in routes.choices()?.iter().enumerate() {
            let own = match kinds[t / 4] {
                _ if config.mixed_experts.is_some() => 0..8,
                Modality::Text => 0..2,
                Modality::Image => 2..5,
                Modality::Audio => 5..7,
                _ => 7..8,
            };
            assert!(experts.iter().all(|e| own.contains(e)), "token {t} goes to {experts:?}: {config:?}");
        }
        let gradients = output.hidden.sqr()?.sum_all()?.backward()?;
        let published = params.published(|var| Some(var.as_tensor().clone()))?;
        let names: Vec<String> = published.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.iter().any(|name| name.contains("series.q_proj")), config.untied);
        for (name, var) in params.variables().iter().filter(|(name, _)| name.starts_with("layers.")) {
            assert!(gradients.get(var).is_some(), "{name} learns nothing");
        }
        assert_eq!(Config::from_json(&config.to_json()?)?, config);
        let seen = [Modality::Video; 16];
        assert!(model.forward_embeds(&x, &seen, &[], None).unwrap_err().to_string().contains("video tokens"));
        assert!(model.forward_embeds(&x, &modality[1..], &[], None).is_err());
    }
    Ok(())
}

#[test]
fn experts_that_choose_look_ahead() -> Result<()> {
    let config = Config::from_json(TINY).unwrap();
    let model = Moma::new(config, &Params::init(1, CPU), None, Routing::Choice)?;
    let ids = ids(3, 1, 12);
    let (whole, part) = (logits(&model, &ids, &[])?, logits(&model, &ids.narrow(1, 0, 7)?, &[])?);
    assert!(!(0..7).all(|i| close(&whole[0][i], &part[0][i])), "this is why there are auxiliary routers");
    // Each expert takes tokens / experts of its modality; the two groups have six tokens each.
    let output = model.forward(&ids, &[])?;
    for routes in &output.routes {
        assert_eq!(routes.load()?, [3.0, 3.0, 2.0, 2.0, 2.0]);
    }
    Ok(())
}

#[test]
fn a_share_of_the_tokens_goes_through_deep_layers() -> Result<()> {
    let config = Config { depth_share: Some(0.25), ..Config::from_json(TINY).unwrap() };
    let model = Moma::new(config, &Params::init(1, CPU), None, Routing::Choice)?;
    let output = model.forward(&ids(5, 2, 12), &[0, 4])?;
    // 20 real tokens: 5 of them in layers 0 and 2, all in layer 1.
    assert!(output.depth_routes.iter().all(|r| r.len() == 5));
    assert!(
        output.depth_routes.iter().all(|r| !r
            .token()
            .unwrap()
            .to_vec1::<u32>()
            .unwrap()
            .iter()
            .any(|t| (12..16).contains(t)))
    );
    let counted = |i: usize| -> Result<f32> {
        let routes = &output.routes[i];
        routes.mask().map_or(Ok(routes.tokens() as f32), |m| m.sum_all()?.to_scalar::<f32>())
    };
    assert_eq!((counted(0)?, counted(1)?, counted(2)?), (5.0, 20.0, 5.0));
    Ok(())
}

#[test]
fn gradients_agree_with_differences() -> Result<()> {
    for config in configs() {
        let params = Params::init(4, CPU);
        let model = Moma::new(config.clone(), &params, None, Routing::Choice)?;
        let ids = ids(6, 2, 12);
        let loss = |model: &Moma| model.loss(&ids, &[0, 3]);
        let grads = loss(&model)?.backward()?;
        for (name, var) in params.variables() {
            let grad = grads.get(&var).unwrap_or_else(|| panic!("{name} has no gradient: {config:?}")).copy()?;
            let square = f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
            assert!(square > 0.0, "{name}: the gradient is zero: {config:?}");
            // Along its own gradient the loss rises by its square; small enough a step to change no choice.
            let step = 5e-4 / square.sqrt();
            let start = var.as_tensor().copy()?;
            let moved = |by: f64| -> Result<f64> {
                var.set(&(&start + (&grad * by)?)?)?;
                Ok(f64::from(loss(&model)?.to_scalar::<f32>()?))
            };
            let rise = (moved(step)? - moved(-step)?) / (2.0 * step);
            var.set(&start)?;
            assert!((rise - square).abs() < 0.03 * square + 2e-3 * square.sqrt(), "{name}: {rise} {square} {config:?}");
        }
    }
    Ok(())
}

#[test]
fn saved_and_loaded() -> Result<()> {
    for config in configs() {
        let dir = tempfile::tempdir().unwrap();
        let (params, auxiliary) = (Params::init(1, CPU), Params::init(2, CPU));
        let model = Moma::new(config.clone(), &params, Some(&auxiliary), Routing::Causal)?;
        let tensors = |p: &Params| p.published(|var| Some(var.as_tensor().clone()));
        std::fs::write(dir.path().join("config.json"), config.to_json()?).unwrap();
        save(&dir.path().join("model.safetensors"), &tensors(&params)?, &[])?;
        let error = Moma::load(dir.path(), DType::F32, CPU).unwrap_err().to_string();
        assert!(error.contains(AUXILIARY), "{error}");
        save(&dir.path().join(AUXILIARY), &tensors(&auxiliary)?, &[])?;
        let loaded = Moma::load(dir.path(), DType::F32, CPU)?;
        assert_eq!(loaded.config(), &config);
        let ids = ids(9, 2, 10);
        let (a, b) = (logits(&model, &ids, &[])?, logits(&loaded, &ids, &[])?);
        assert!(a.iter().flatten().zip(b.iter().flatten()).all(|(a, b)| close(a, b)), "{config:?}");
        // A tensor too many belongs to another model.
        let mut more = tensors(&params)?;
        more.push(("surplus".into(), Tensor::zeros(1, DType::F32, CPU)?));
        save(&dir.path().join("model.safetensors"), &more, &[])?;
        assert!(Moma::load(dir.path(), DType::F32, CPU).unwrap_err().to_string().contains("surplus"));
    }
    Ok(())
}

#[test]
fn auxiliary_routers_learn_and_the_model_stays() -> Result<()> {
    let config = configs().pop().unwrap();
    let params = Params::init(1, CPU);
    let trained = Moma::new(config.clone(), &params, None, Routing::Choice)?;
    let auxiliary = Params::init(2, CPU);
    let model = Moma::new(config.clone(), &params, Some(&auxiliary), Routing::Choice)?;
    assert!(trained.auxiliary_loss(&ids(1, 1, 8), &[]).is_err(), "there is nothing to train");
    let batch = ids(7, 2, 24);
    let variables = auxiliary.variables();
    // One for each modality and layer, and one for each deep layer, of two maps each.
    assert_eq!(variables.len(), 2 * (2 * 3 + 2));
    let (mut first, mut last) = (None, 0.0);
    let mut squares: Vec<Tensor> = variables.iter().map(|(_, v)| v.zeros_like()).collect::<Result<_>>()?;
    for _ in 0..120 {
        let loss = model.auxiliary_loss(&batch, &[])?;
        last = loss.to_scalar::<f32>()?;
        first.get_or_insert(last);
        let grads = loss.backward()?;
        assert!(params.variables().iter().all(|(_, var)| grads.get(var).is_none()));
        for ((name, var), square) in variables.iter().zip(&mut squares) {
            let grad = grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
            *square = ((&*square * 0.9)? + (grad.sqr()? * 0.1)?)?;
            let step = (grad / (square.sqrt()? + 1e-6)?)?;
            var.set(&(var.as_tensor() - (step * 0.02)?)?)?;
        }
    }
    assert!(first.is_some_and(|first| last < 0.5 * first), "{first:?} {last}");
    // Causal routing now sends tokens through the lowest layer as training did.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(AUXILIARY);
    save(&file, &auxiliary.published(|var| Some(var.as_tensor().clone()))?, &[])?;
    let learnt = Params::load(&Checkpoint::open(&file)?, DType::F32, CPU);
    let causal = Moma::new(config, &params, Some(&learnt), Routing::Causal)?;
    assert!(causal.auxiliary_loss(&batch, &[]).is_err());
    let through = |model: &Moma| model.forward(&batch, &[])?.depth_routes[0].assignment();
    let wrong = (through(&model)? - through(&causal)?)?.abs()?.mean_all()?.to_scalar::<f32>()?;
    assert!(wrong < 0.15, "{wrong} of the tokens go otherwise");
    Ok(())
}

#[test]
fn upcycled_experts_are_copies() -> Result<()> {
    let grown = Config::from_json(TINY).unwrap();
    let small = Config { text_experts: 1, image_experts: 1, depth_share: Some(0.5), ..grown.clone() };
    let params = Params::init(1, CPU);
    Moma::new(small.clone(), &params, None, Routing::Choice)?;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    save(&file, &params.published(|var| Some(var.as_tensor().clone()))?, &[])?;
    let from = Checkpoint::open(&file)?;
    let (config, tensors) = upcycle(&small, &from, (2, 3), 8)?;
    assert_eq!(config, Config { text_experts: 2, image_experts: 3, gumbel_noise: Some(8), ..small.clone() });
    let values = |name: &str| -> Vec<f32> {
        let (_, tensor) = tensors.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("{name}"));
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    };
    let original = |name: &str| from.read_any(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for map in ["gate_proj", "up_proj", "down_proj"] {
        for (group, n) in [("text", 2), ("image", 3)] {
            let want = original(&format!("layers.1.mlp.{group}.0.{map}.weight"));
            (0..n).for_each(|e| assert_eq!(values(&format!("layers.1.mlp.{group}.{e}.{map}.weight")), want));
        }
    }
    for name in ["embed_tokens.weight", "layers.2.self_attn.q_proj.weight", "layers.0.depth.router.weight"] {
        assert_eq!(values(name), original(name));
    }
    assert_eq!(values("layers.0.mlp.router.weight").len(), 5 * 16);
    let path = dir.path().join("grown.safetensors");
    save(&path, &tensors, &[])?;
    let model = Moma::new(config, &Params::resume(&Checkpoint::open(&path)?, CPU), None, Routing::Choice)?;
    // The noise tells copies apart: the same batch is routed otherwise each time.
    let batch = ids(2, 2, 12);
    let tokens = || model.forward(&batch, &[]).unwrap().routes[1].token().unwrap().to_vec1::<u32>().unwrap();
    assert_ne!(tokens(), tokens());
    assert!(upcycle(&grown, &from, (2, 3), 8).is_err());
    Ok(())
}

#[test]
fn what_is_refused() -> Result<()> {
    for (from, to) in [
        ("\"moma\"", "\"llama\""),
        ("\"text_experts\": 2", "\"text_experts\": 0"),
        ("\"hidden_size\": 16", "\"hidden_size\": 18"),
        ("\"hidden_size\": 16", "\"hidden_size\": 99999999999"),
        ("[30, 40]", "[30, 41]"),
        ("[30, 40]", "[35, 30]"),
        ("\"image_experts\": 3", "\"image_experts\": 3, \"mixed_experts\": 0"),
        ("\"image_experts\": 3", "\"image_experts\": 0"),
        ("\"image_experts\": 3", "\"image_experts\": 3, \"series_experts\": 99999999"),
        ("\"initializer_range\": 0.3", "\"initializer_range\": -1.0"),
        ("\"initializer_range\": 0.3", "\"depth_share\": 1.5"),
        ("\"initializer_range\"", "\"initialiser_range\""),
    ] {
        assert!(Config::from_json(&TINY.replace(from, to)).is_err(), "{to}");
    }
    let config = Config::from_json(TINY).unwrap();
    assert_eq!(Config::from_json(&config.to_json()?).unwrap(), config);
    assert!(Moma::new(config.clone(), &Params::init(1, CPU), None, Routing::Causal).is_err());
    let model = causal(&config)?;
    let bad = Tensor::new(&[[1u32, 40]], CPU)?;
    assert!(model.forward(&bad, &[]).unwrap_err().to_string().contains("40"));
    assert!(model.forward(&ids(1, 2, 4), &[0, 4]).is_err() && model.forward(&ids(1, 2, 4), &[0]).is_err());
    assert!(model.loss(&ids(1, 2, 1), &[]).is_err());
    Ok(())
}
