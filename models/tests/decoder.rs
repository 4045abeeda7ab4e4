//! The decoder without published weights: every family made from nothing, saved, loaded, padded, cached, trained a step; and
//! configs and checkpoints that are wrong.

use candle_core::{D, DType, Device, Result, Tensor};
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_kernels::cpu::with_threads;
use moesaic_kernels::rng::Rng;
use moesaic_kernels::{Modality, Params, Tokens};
use moesaic_models::decoder::{Cache, Context, Decoder, DecoderConfig, Input, Segment, Site, pad_ids};
use serde_json::{Map, Value, json};

const VOCABULARY: usize = 37;

/// Small configs, each family at least once.
fn configs() -> Vec<Value> {
    let base = json!({
        "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 20, "max_position_embeddings": 64, "initializer_range": 0.3
    });
    let experts = json!({ "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 10 });
    let local = json!({ "num_local_experts": 5, "num_experts_per_tok": 2 });
    let latent = json!({
        "num_key_value_heads": 4, "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5,
        "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 10, "n_shared_experts": 1,
        "first_k_dense_replace": 1
    });
    let with = |parts: &[&Value], own: Value| {
        let mut all = Map::new();
        for part in [&[&base][..], parts, &[&own]].concat() {
            all.extend(part.as_object().unwrap().clone());
        }
        Value::Object(all)
    };
    vec![
        with(&[], json!({ "model_type": "llama", "head_dim": 10 })),
        with(
            &[],
            json!({ "model_type": "llama", "tie_word_embeddings": true, "mlp_bias": true, "attention_bias": true }),
        ),
        with(
            &[],
            json!({ "model_type": "qwen2", "use_sliding_window": true, "sliding_window": 4, "max_window_layers": 1 }),
        ),
        with(&[], json!({ "model_type": "stablelm", "partial_rotary_factor": 0.7, "qk_layernorm": true })),
        with(
            &[],
            json!({ "model_type": "phi", "qk_layernorm": true, "num_key_value_heads": 4, "partial_rotary_factor": 0.7 }),
        ),
        with(&[&local], json!({ "model_type": "mixtral", "sliding_window": 5 })),
        with(
            &[&experts],
            json!({ "model_type": "qwen2_moe", "shared_expert_intermediate_size": 12, "mlp_only_layers": [0] }),
        ),
        with(&[&experts], json!({ "model_type": "qwen3_moe", "head_dim": 8, "norm_topk_prob": true })),
        with(&[&experts], json!({ "model_type": "olmoe", "clip_qkv": 1.5 })),
        with(
            &[&latent],
            json!({ "model_type": "deepseek_v2", "q_lora_rank": 7, "n_group": 3, "topk_group": 2,
            "topk_method": "group_limited_greedy" }),
        ),
        with(&[&latent], json!({ "model_type": "deepseek_v3", "n_group": 2, "topk_group": 1, "attention_bias": true })),
        with(
            &[&local],
            json!({ "model_type": "phimoe", "attention_bias": true, "lm_head_bias": true, "router_jitter_noise": 0.3,
            "rope_scaling": { "type": "longrope", "short_factor": [1, 1, 1], "long_factor": [1, 2, 4], "short_mscale": 1.0,
                "long_mscale": 1.2, "original_max_position_embeddings": 9 } }),
        ),
        with(
            &[&local],
            json!({ "model_type": "granitemoe", "embedding_multiplier": 2.0, "attention_multiplier": 0.3,
            "residual_multiplier": 0.5, "logits_scaling": 2.0, "tie_word_embeddings": true }),
        ),
        with(&[&local], json!({ "model_type": "jetmoe", "kv_channels": 6 })),
        with(
            &[],
            json!({ "model_type": "llama", "rope_scaling": { "type": "dynamic", "factor": 3.0 }, "max_position_embeddings": 8 }),
        ),
    ]
}

fn config(json: &Value) -> DecoderConfig {
    DecoderConfig::from_json(&json.to_string()).unwrap_or_else(|e| panic!("{json}: {e}"))
}

/// A model of seeded random weights, biases and norms too, saved as a checkpoint in the published layout.
struct Saved {
    label: String,
    config: DecoderConfig,
    dir: tempfile::TempDir,
    tensors: Vec<(String, Tensor)>,
}

impl Saved {
    fn new(json: &Value) -> Self {
        let config = config(json);
        let params = Params::init(5, &Device::Cpu);
        Decoder::new(config.clone(), &params).unwrap();
        let tensors: Vec<(String, Tensor)> = params.published(|var| Some(var.as_tensor().clone())).unwrap();
        let tensors: Vec<_> = tensors
            .into_iter()
            .map(|(name, t)| {
                // Ones and zeros would hide a norm or a bias that is left out.
                let noise = rng_tensor(&name, t.dims());
                let t = if t.rank() == 1 { ((noise * 0.2).unwrap() + t).unwrap() } else { t };
                (name, t)
            })
            .collect();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
        let saved = Self { label: json["model_type"].to_string(), config, dir, tensors };
        saved.write(&saved.tensors);
        saved
    }

    fn write(&self, tensors: &[(String, Tensor)]) {
        save(&self.dir.path().join("model.safetensors"), tensors, &[("format", "pt")]).unwrap();
    }

    fn load(&self, dtype: DType) -> Decoder {
        Decoder::load(self.dir.path(), dtype, &Device::Cpu).unwrap_or_else(|e| panic!("{}: {e}", self.label))
    }

    fn error(&self) -> String {
        Decoder::load(self.dir.path(), DType::F32, &Device::Cpu).unwrap_err().to_string()
    }
}

fn all() -> Vec<Saved> {
    configs().iter().map(Saved::new).collect()
}

fn rng_tensor(name: &str, dims: &[usize]) -> Tensor {
    let mut rng = Rng::named(11, name);
    let values: Vec<f32> = (0..dims.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

fn prompt(seed: u64, n: usize) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| rng.below(VOCABULARY) as u32).collect()
}

fn ids(rows: &[&[u32]]) -> (Tensor, Context) {
    pad_ids(rows, 0, &Device::Cpu).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn worst(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let worst = values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    // A NaN anywhere must not pass.
    if values(a).iter().chain(&values(b)).all(|v| v.is_finite()) { worst } else { f32::INFINITY }
}

/// Logits `[b, t, V]` of whole rows, without a cache.
fn logits(model: &Decoder, rows: &[&[u32]]) -> Tensor {
    let (ids, context) = ids(rows);
    model.logits(&model.forward(Input::Ids(&ids), &context, None, None).unwrap().hidden).unwrap()
}

/// `n` tokens after each row, greedily with a cache, and the logits that they were taken from, `[b, n, V]`.
fn greedy(model: &Decoder, rows: &[&[u32]], n: usize) -> (Vec<Vec<u32>>, Tensor) {
    let (mut step, context) = ids(rows);
    let mut cache = Cache::with_capacity(4);
    let (mut tokens, mut all) = (Vec::new(), Vec::new());
    for i in 0..n {
        let context = if i == 0 { context.clone() } else { Context::default() };
        let output = model.forward(Input::Ids(&step), &context, Some(&mut cache), None).unwrap();
        let last = model.last_logits(&output).unwrap();
        step = last.argmax(D::Minus1).unwrap().unsqueeze(1).unwrap();
        tokens.push(step.clone());
        all.push(last.unsqueeze(1).unwrap());
    }
    (Tensor::cat(&tokens, 1).unwrap().to_vec2().unwrap(), Tensor::cat(&all, 1).unwrap())
}

#[test]
fn every_family_is_here() {
    fn shared<T: Send + Sync>() {}
    shared::<Decoder>();
    let made: std::collections::BTreeSet<String> =
        configs().iter().map(|c| c["model_type"].as_str().unwrap().to_string()).collect();
    let supported: std::collections::BTreeSet<String> = DecoderConfig::supported().map(str::to_string).collect();
    assert_eq!(made, supported);
    assert_eq!(supported.len(), 13);
}

#[test]
fn saved_and_loaded_is_the_same_model() -> Result<()> {
    let rows = [&prompt(1, 7)[..], &prompt(2, 7)];
    for saved in all() {
        // Variables on one side, tiles on the other.
        let params = Params::resume(&Checkpoint::open(saved.dir.path())?, &Device::Cpu);
        let trained = Decoder::new(saved.config.clone(), &params)?;
        assert_eq!(params.unused(), Vec::<String>::new(), "{}", saved.label);
        let loaded = saved.load(DType::F32);
        let difference = worst(&logits(&trained, &rows).detach(), &logits(&loaded, &rows));
        assert!(difference < 2e-5, "{}: {difference}", saved.label);
        // Parameters are counted from the config.
        let count: usize = saved.tensors.iter().map(|(_, t)| t.elem_count()).sum();
        assert_eq!(loaded.parameters().total(), count, "{}: {:?}", saved.label, loaded.parameters());
        assert!(loaded.parameters().active() <= count);
        assert!(
            (loaded.parameters().active() < count)
                == (saved.config.sparse.is_some() || !saved.config.tie_word_embeddings)
        );
    }
    Ok(())
}

#[test]
fn half_precision_weights_come_close() {
    let rows = [&prompt(1, 9)[..]];
    for saved in all() {
        let full = logits(&saved.load(DType::F32), &rows);
        let scale = values(&full).iter().fold(0f32, |m, v| m.max(v.abs()));
        for (dtype, bound) in [(DType::BF16, 0.08), (DType::F16, 0.02)] {
            let model = saved.load(dtype);
            let half = logits(&model, &rows);
            assert_eq!(half.dtype(), DType::F32);
            // A rounded router may choose another expert for a token, so most logits are close, not all.
            let close = values(&full).iter().zip(values(&half)).filter(|(a, b)| (*a - b).abs() < bound * scale).count();
            assert!(close * 10 >= full.elem_count() * 8, "{}: {close} of {}", saved.label, full.elem_count());
            let (tokens, _) = greedy(&model, &rows, 6);
            assert_eq!(tokens[0].len(), 6);
        }
        assert!(Decoder::load(saved.dir.path(), DType::U8, &Device::Cpu).is_err());
    }
}

#[test]
fn a_padded_batch_gives_each_row_what_it_gives_alone() {
    let rows = [prompt(1, 3), prompt(2, 11), prompt(3, 1), prompt(4, 8)];
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    for saved in all() {
        let model = saved.load(DType::F32);
        let together = logits(&model, &rows);
        let (tokens, cached) = greedy(&model, &rows, 9);
        for (i, row) in rows.iter().enumerate() {
            let of_row = |t: &Tensor| t.narrow(0, i, 1).unwrap();
            let real = of_row(&together).narrow(1, 11 - row.len(), row.len()).unwrap();
            assert_eq!(values(&real), values(&logits(&model, &[row])), "{} row {i}", saved.label);
            let (alone, logits) = greedy(&model, &[row], 9);
            assert_eq!(alone[0], tokens[i], "{} row {i}", saved.label);
            assert_eq!(values(&of_row(&cached)), values(&logits), "{} row {i}", saved.label);
        }
        let one = with_threads(1, || logits(&model, &rows));
        assert_eq!(values(&together), values(&one), "{}: the number of threads shows", saved.label);
    }
}

#[test]
fn cached_and_uncached_agree_however_the_text_is_cut() {
    for (i, saved) in all().into_iter().enumerate() {
        let model = saved.load(DType::F32);
        // Frequencies that follow the length would differ between what was cached and what is recomputed.
        let length_dependent = saved.config.max_positions == 8 || saved.label.contains("phimoe");
        let n = if length_dependent { 8 } else { 30 };
        let (long, short) = (prompt(6, n), prompt(7, n - 3));
        let whole = logits(&model, &[&long, &short]);
        let padded: Vec<u32> = [&[0; 3], &short[..]].concat();
        let cuts: [&[usize]; 4] = [&[n], &[4, 1, 1, 1, n - 7], &[n - 1, 1], &[5, n - 5]];
        for cut in cuts {
            let mut cache = Cache::default();
            let mut at = 0;
            let context = Context { padding: vec![0, 3], ..Context::default() };
            for &t in cut {
                let part = [&long[at..at + t], &padded[at..at + t]].concat();
                let part = Tensor::from_vec(part, (2, t), &Device::Cpu).unwrap();
                let output = model.forward(Input::Ids(&part), &context, Some(&mut cache), None).unwrap();
                let got = model.logits(&output.hidden).unwrap();
                for row in 0..2 {
                    let first = if row == 1 { 3usize.saturating_sub(at).min(t) } else { 0 };
                    let of = |x: &Tensor, from: usize| x.narrow(0, row, 1).unwrap().narrow(1, from, t - first).unwrap();
                    if first < t {
                        let difference = worst(&of(&got, first), &of(&whole, at + first));
                        assert!(difference < 3e-5, "{} {i} row {row} cut {cut:?} at {at}: {difference}", saved.label);
                    }
                }
                at += t;
            }
            assert_eq!(cache.tokens(), n);
        }
    }
}

#[test]
fn rows_of_a_cache_can_be_chosen_and_cut_off() -> Result<()> {
    let (a, b) = (prompt(1, 6), prompt(2, 4));
    for saved in all() {
        let model = saved.load(DType::F32);
        let (first, context) = ids(&[&a, &b]);
        let mut cache = Cache::default();
        model.forward(Input::Ids(&first), &context, Some(&mut cache), None)?;
        let mut fork = cache.fork()?;
        fork.select(&[1, 1, 0])?;
        let next = Tensor::new(&[[3u32], [5], [7]], &Device::Cpu)?;
        let got =
            model.last_logits(&model.forward(Input::Ids(&next), &Context::default(), Some(&mut fork), None)?)?;
        for (row, (prompt, id)) in [(&b, 3), (&b, 5), (&a, 7)].into_iter().enumerate() {
            let text = [&prompt[..], &[id]].concat();
            let mut alone = Cache::default();
            let (whole, context) = ids(&[&text[..text.len() - 1]]);
            model.forward(Input::Ids(&whole), &context, Some(&mut alone), None)?;
            let step = Tensor::new(&[[id]], &Device::Cpu)?;
            let output = model.forward(Input::Ids(&step), &Context::default(), Some(&mut alone), None)?;
            let expected = model.last_logits(&output)?;
            assert_eq!(values(&got.narrow(0, row, 1)?), values(&expected), "{} row {row}", saved.label);
        }
        // Going back and forward again gives the same; the fork left the original alone.
        let step = Tensor::new(&[[9u32], [9]], &Device::Cpu)?;
        let mut again = || -> Result<Vec<f32>> {
            let output = model.forward(Input::Ids(&step), &Context::default(), Some(&mut cache), None)?;
            cache.truncate(6)?;
            Ok(values(&model.last_logits(&output)?))
        };
        assert_eq!(again()?, again()?, "{}", saved.label);
        // What does not fit the cache is refused, and the cache still works.
        let three = Tensor::zeros((3, 1), DType::U32, &Device::Cpu)?;
        assert!(model.forward(Input::Ids(&three), &Context::default(), Some(&mut cache), None).is_err());
        assert_eq!(cache.tokens(), 6);
    }
    Ok(())
}

#[test]
fn embeddings_and_segments_are_what_ids_are() -> Result<()> {
    let (a, b) = (prompt(1, 7), prompt(2, 4));
    for saved in all() {
        let model = saved.load(DType::F32);
        let (both, context) = ids(&[&a, &b]);
        let expected = model.forward(Input::Ids(&both), &context, None, None)?.hidden;
        let embeds = model.embed(&both)?;
        let got = model.forward(Input::Embeds(&embeds), &context, None, None)?.hidden;
        assert_eq!(values(&got), values(&expected), "{}", saved.label);
        // Part of row 0 comes as tokens of another modality, one of them masked.
        let image = model.embed(&Tensor::new(&[[a[2], 0, a[3], a[4]]], &Device::Cpu)?)?;
        let mask = Some(Tensor::new(&[[1u8, 0, 1, 1]], &Device::Cpu)?);
        let image = Tokens { mask, ..Tokens::new(image, Modality::Image) };
        let rows = [
            vec![Segment::Ids(&a[..2]), Segment::Tokens(&image), Segment::Ids(&[]), Segment::Ids(&a[5..])],
            vec![Segment::Ids(&b)],
        ];
        let (embeds, context) = model.embed_rows(&rows)?;
        assert_eq!(context.padding, [0, 3]);
        let modality = context.modality.clone().unwrap();
        assert_eq!(modality.iter().filter(|m| **m == Modality::Image).count(), 3);
        assert!(modality[2..5].iter().all(|m| *m == Modality::Image));
        let got = model.forward(Input::Embeds(&embeds), &context, None, None)?.hidden;
        let real = |x: &Tensor| -> Result<Vec<f32>> {
            Ok([values(&x.narrow(0, 0, 1)?), values(&x.narrow(0, 1, 1)?.narrow(1, 3, 4)?)].concat())
        };
        assert_eq!(real(&got)?, real(&expected)?, "{}", saved.label);
        assert!(model.embed_rows(&[vec![Segment::Ids(&[])]]).is_err());
        assert!(model.embed_rows(&[]).is_err());
        let wide = Tokens::new(Tensor::zeros((1, 2, 25), DType::F32, &Device::Cpu)?, Modality::Image);
        assert!(model.embed_rows(&[vec![Segment::Tokens(&wide)]]).is_err());
    }
    Ok(())
}

#[test]
fn gradients_reach_every_variable() -> Result<()> {
    for saved in all() {
        let params = Params::resume(&Checkpoint::open(saved.dir.path())?, &Device::Cpu);
        let model = Decoder::new(saved.config.clone(), &params)?;
        let (a, b) = (prompt(1, 25), prompt(2, 20));
        let (batch, context) = ids(&[&a, &b]);
        let labels: Vec<i64> = values(&batch.to_dtype(DType::F32)?)
            .iter()
            .enumerate()
            .map(|(i, id)| if (25..30).contains(&i) { -100 } else { *id as i64 })
            .collect();
        let (losses, _) = model.loss(Input::Ids(&batch), &context, &labels)?;
        let grads = losses.total.backward()?;
        for (name, var) in params.variables() {
            // It steers the choice of experts, which has no gradient.
            if name.ends_with("e_score_correction_bias") {
                assert!(grads.get(&var).is_none());
                continue;
            }
            let Some(grad) = grads.get(&var) else { panic!("{}: {name} gets no gradient", saved.label) };
            let size = grad.sqr()?.sum_all()?.to_scalar::<f32>()?;
            assert!(size > 0.0 && size.is_finite(), "{}: {name} gets a gradient of {size}", saved.label);
        }
        // The gradient of the embedding is the slope of the loss: every part of the chain is in it. In some directions a
        // token changes its experts within the step, where the loss jumps; chance agrees with a wrong gradient in none.
        let (name, var) = params.variables().into_iter().find(|(name, _)| name.contains("embed_tokens")).unwrap();
        let original = var.as_tensor().copy()?;
        let slopes = (0..9).map(|i| -> Result<(f64, f64)> {
            let direction = rng_tensor(&format!("{name}{i}"), var.dims());
            let at = |by: f64| -> Result<f32> {
                var.set(&(&original + (&direction * by)?)?)?;
                model.loss(Input::Ids(&batch), &context, &labels)?.0.total.to_scalar::<f32>()
            };
            let step = 5e-5;
            let difference = f64::from(at(step)? - at(-step)?) / (2.0 * step);
            Ok((f64::from((grads.get(&var).unwrap() * &direction)?.sum_all()?.to_scalar::<f32>()?), difference))
        });
        let slopes = slopes.collect::<Result<Vec<_>>>()?;
        let good = slopes.iter().filter(|(exact, numeric)| (numeric - exact).abs() < 0.03 + 0.03 * exact.abs()).count();
        assert!(good >= 3, "{}: gradients and differences {slopes:?}", saved.label);
    }
    Ok(())
}

#[test]
fn sites_carry_published_names() {
    for saved in all() {
        let mut model = saved.load(DType::F32);
        let before = logits(&model, &[&prompt(1, 5)]);
        let mut named = std::collections::BTreeSet::new();
        for site in model.sites() {
            match site {
                Site::Linear { parts, linear } => {
                    assert_eq!(parts.iter().map(|(_, n)| n).sum::<usize>(), linear.output_width());
                    named.extend(parts.into_iter().map(|(name, _)| format!("{name}.weight")));
                }
                Site::Experts { names, prefix, bank } if names.is_empty() => {
                    assert!(saved.tensors.iter().any(|(name, _)| name.starts_with(&prefix)), "{prefix}");
                    assert_eq!(bank.experts(), 5);
                    let stacked = ["weight", "input_linear.weight", "output_linear.weight"];
                    named.extend(stacked.map(|name| format!("{prefix}.{name}")));
                }
                Site::Experts { names, bank, .. } => {
                    assert_eq!(names.len(), bank.experts());
                    named.extend(names.into_iter().flatten().flatten().map(|name| format!("{name}.weight")));
                }
            }
        }
        // Every matrix but embeddings and routers can be adapted.
        for (name, tensor) in saved.tensors.iter().filter(|(_, t)| t.rank() >= 2) {
            let left_out =
                ["embed_tokens", "gate.weight", "router", "shared_expert_gate"].iter().any(|p| name.contains(p));
            assert!(left_out || named.contains(name), "{}: no site for {name} {:?}", saved.label, tensor.dims());
        }
        assert_eq!(values(&before), values(&logits(&model, &[&prompt(1, 5)])));
    }
}

#[test]
fn a_broken_router_names_its_layer() {
    for saved in all() {
        let routers = ["gate.weight", "router.layer.weight"];
        let Some(at) =
            saved.tensors.iter().position(|(n, _)| n.contains("layers.1.") && routers.iter().any(|r| n.ends_with(r)))
        else {
            assert!(saved.config.sparse.is_none());
            continue;
        };
        let mut tensors = saved.tensors.clone();
        tensors[at].1 = (tensors[at].1.clone() * f64::NAN).unwrap();
        saved.write(&tensors);
        let model = saved.load(DType::F32);
        let (ids, context) = ids(&[&prompt(1, 4)]);
        let mut cache = Cache::default();
        let error = model.forward(Input::Ids(&ids), &context, Some(&mut cache), None).unwrap_err().to_string();
        assert!(error.contains("layer 1") && error.contains("NaN"), "{}: {error}", saved.label);
        assert!(cache.is_empty());
    }
}

#[test]
fn checkpoints_that_do_not_fit_are_refused() {
    let saved = Saved::new(&configs()[0]);
    let rename = |from: &str, to: &str| -> Vec<(String, Tensor)> {
        saved.tensors.iter().map(|(n, t)| (n.replace(from, to), t.clone())).collect()
    };
    saved.write(&rename("layers.1.mlp.up_proj", "layers.1.mlp.upp_proj"));
    let error = saved.error();
    assert!(error.contains("layers.1.mlp.up_proj.weight") && error.contains("upp_proj"), "{error}");
    let extra = |name: &str| {
        let mut tensors = saved.tensors.clone();
        tensors.push((name.to_string(), Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap()));
        saved.write(&tensors);
    };
    extra("model.layers.2.self_attn.q_proj.weight");
    let error = saved.error();
    assert!(error.contains("layers.2") && error.contains("llama"), "{error}");
    // Buffers that old releases saved are no mistake.
    extra("model.layers.1.self_attn.rotary_emb.inv_freq");
    saved.load(DType::F32);
    // DeepSeek-V3's layers for multi-token prediction follow the others.
    let mut v3 = configs().into_iter().find(|c| c["model_type"] == "deepseek_v3").unwrap();
    v3["num_nextn_predict_layers"] = json!(1);
    let saved = Saved::new(&v3);
    let mut tensors = saved.tensors.clone();
    tensors.push(("model.layers.2.eh_proj.weight".into(), Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap()));
    saved.write(&tensors);
    saved.load(DType::F32);
    tensors.push(("model.layers.3.eh_proj.weight".into(), Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap()));
    saved.write(&tensors);
    assert!(saved.error().contains("layers.3"));
    std::fs::remove_file(saved.dir.path().join("config.json")).unwrap();
    assert!(saved.error().contains("config.json"));
}

#[test]
fn inputs_that_do_not_fit_are_refused() -> Result<()> {
    let model = Saved::new(&configs()[0]).load(DType::F32);
    let run = |ids: &Tensor, context: Context| {
        model.forward(Input::Ids(ids), &context, None, None).map(|_| ()).map_err(|e| e.to_string())
    };
    let two = Tensor::zeros((2, 3), DType::I64, &Device::Cpu)?;
    assert!(run(&two, Context::default()).is_ok());
    let error = run(&Tensor::new(&[[1i64, -1]], &Device::Cpu)?, Context::default()).unwrap_err();
    assert!(error.contains("-1") && error.contains("vocabulary"), "{error}");
    assert!(run(&Tensor::new(&[[VOCABULARY as u32]], &Device::Cpu)?, Context::default()).is_err());
    assert!(run(&two.flatten_all()?, Context::default()).is_err());
    assert!(run(&Tensor::zeros((2, 0), DType::U32, &Device::Cpu)?, Context::default()).is_err());
    assert!(run(&two, Context { padding: vec![1], ..Context::default() }).is_err());
    assert!(run(&two, Context { padding: vec![1, 3], ..Context::default() }).unwrap_err().contains("row 1"));
    assert!(run(&two, Context { positions: Some(vec![0; 5]), ..Context::default() }).is_err());
    assert!(run(&two, Context { modality: Some(vec![Modality::Text; 5]), ..Context::default() }).is_err());
    assert!(Context::left_padded(&Tensor::new(&[[1u8, 0, 1]], &Device::Cpu)?).is_err());
    assert!(pad_ids(&[], 0, &Device::Cpu).is_err());
    assert!(pad_ids(&[&[1], &[]], 0, &Device::Cpu).unwrap_err().to_string().contains("row 1"));
    let embeds = Tensor::zeros((1, 2, 23), DType::F32, &Device::Cpu)?;
    assert!(model.forward(Input::Embeds(&embeds), &Context::default(), None, None).is_err());
    assert!(model.loss(Input::Ids(&two), &Context::default(), &[-100; 6]).is_err());
    assert!(model.loss(Input::Ids(&two), &Context::default(), &[1; 5]).is_err());
    assert!(model.loss(Input::Ids(&two), &Context::default(), &[VOCABULARY as i64; 6]).is_err());
    Ok(())
}

#[test]
fn hostile_configs_are_refused_before_anything_is_made() {
    for good in configs() {
        let family = good["model_type"].as_str().unwrap().to_string();
        let refused = |what: &str, bad: &Value| match DecoderConfig::from_json(&bad.to_string()) {
            Ok(_) => panic!("{family}: {what} is accepted"),
            Err(e) => assert!(e.to_string().contains(&family), "{family}: {what}: {e}"),
        };
        for key in ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "intermediate_size"] {
            for value in
                [json!(0), json!(-1), json!(u64::MAX), json!(1e300), json!("12"), json!(1.5), json!([1]), Value::Null]
            {
                // A sparse family may not use the width of dense layers; then it may be anything that is a number.
                let mut bad = good.clone();
                bad[key] = value.clone();
                if DecoderConfig::from_json(&bad.to_string()).is_ok() {
                    assert!(
                        key == "intermediate_size" && good["moe_intermediate_size"].is_u64(),
                        "{family}: {key} {value}"
                    );
                }
            }
            let mut bad = good.clone();
            bad.as_object_mut().unwrap().remove(key);
            if key != "intermediate_size" || family != "olmoe" {
                refused(&format!("no {key}"), &bad);
            }
        }
        let with = |key: &str, value: Value| {
            let mut bad = good.clone();
            bad[key] = value;
            bad
        };
        if family.starts_with("deepseek") {
            refused("no heads", &with("num_attention_heads", json!(0)));
        } else if family != "jetmoe" {
            refused("3 heads for 2 key-value heads", &with("num_attention_heads", json!(3)));
            refused("no heads", &with("num_attention_heads", json!(0)));
        }
        if family != "stablelm" && family != "phi" {
            refused("a negative eps", &with("rms_norm_eps", json!(-1e-5)));
        }
        refused("a theta of 0", &with("rope_theta", json!(0)));
        refused("a negative range", &with("initializer_range", json!(-0.1)));
        refused(
            "an unknown activation",
            &with(if family == "jetmoe" { "activation_function" } else { "hidden_act" }, json!("wow")),
        );
        refused("quantised weights", &with("quantization_config", json!({ "quant_method": "fp8" })));
        for scaling in [
            json!({ "type": "wow" }),
            json!({ "type": "linear" }),
            json!({ "type": "linear", "factor": 0 }),
            json!({ "type": "linear", "factor": "2" }),
            json!({ "type": "yarn", "factor": -1 }),
            json!({ "rope_type": "llama3", "factor": 8 }),
            json!({ "type": "longrope", "short_factor": [1], "long_factor": [1], "factor": 2 }),
            json!({ "type": "longrope", "short_factor": 1, "long_factor": [1], "factor": 2 }),
            json!([1]),
        ] {
            refused(&scaling.to_string(), &with("rope_scaling", scaling.clone()));
        }
        for key in
            ["num_local_experts", "num_experts", "n_routed_experts"].into_iter().filter(|k| good.get(*k).is_some())
        {
            refused("more experts a token than there are", &with(key, json!(1)));
            refused("too many experts", &with(key, json!(1u64 << 40)));
            refused("no expert a token", &with("num_experts_per_tok", json!(0)));
        }
    }
    let v3 = configs().into_iter().find(|c| c["model_type"] == "deepseek_v3").unwrap();
    for (key, value) in [
        ("n_group", json!(4)),
        ("n_group", json!(0)),
        ("topk_group", json!(3)),
        ("topk_group", json!(0)),
        ("n_group", json!(6)),
        ("scoring_func", json!("softmax")),
        ("topk_method", json!("greedy")),
        ("routed_scaling_factor", json!(0)),
        ("kv_lora_rank", json!(0)),
        ("qk_rope_head_dim", json!(3)),
    ] {
        let mut bad = v3.clone();
        bad[key] = value.clone();
        assert!(DecoderConfig::from_json(&bad.to_string()).is_err(), "{key} {value}");
    }
    let mut phimoe = configs().into_iter().find(|c| c["model_type"] == "phimoe").unwrap();
    phimoe["num_experts_per_tok"] = json!(3);
    assert!(DecoderConfig::from_json(&phimoe.to_string()).unwrap_err().to_string().contains("SparseMixer"));
    for (json, word) in [
        ("", "JSON"),
        ("[]", "object"),
        ("{}", "jetmoe"),
        (r#"{"model_type": "gpt2"}"#, "deepseek_v3"),
        (r#"{"model_type": 7}"#, "llama"),
    ] {
        let error = DecoderConfig::from_json(json).unwrap_err().to_string();
        assert!(error.contains(word), "{json}: {error}");
    }
}
