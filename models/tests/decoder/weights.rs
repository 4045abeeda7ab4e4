//! Weights: saved, loaded, in half precision, trained, adapted.

use candle_core::{DType, Device, Result};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::decoder::{Cache, Decoder, DecoderConfig, Input, Site};

use crate::families::*;

#[test]
fn every_family_is_here() {
    fn shared<T: Send + Sync>() {}
    shared::<Decoder>();
    let made: std::collections::BTreeSet<String> =
        configs().iter().map(|c| c["model_type"].as_str().unwrap().to_string()).collect();
    let supported: std::collections::BTreeSet<String> = DecoderConfig::supported().map(str::to_string).collect();
    assert_eq!(made, supported);
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
            // The cache holds half-precision keys and values.
            let mut cache = Cache::with_capacity(64);
            let (ids, context) = ids(&rows);
            let output = model.forward(Input::Ids(&ids), &context, Some(&mut cache), None).unwrap();
            let (tokens, steps) = greedy(&model, &rows, 2);
            let close =
                worst(&steps.narrow(1, 0, 1).unwrap().squeeze(1).unwrap(), &model.last_logits(&output).unwrap());
            assert_eq!((tokens[0].len(), close), (2, 0.0), "{}", saved.label);
            let mut wide = Cache::with_capacity(64);
            saved.load(DType::F32).forward(Input::Ids(&ids), &context, Some(&mut wide), None).unwrap();
            assert_eq!(2 * cache.bytes(), wide.bytes(), "{}", saved.label);
        }
        assert!(Decoder::load(saved.dir.path(), DType::U8, &Device::Cpu).is_err());
    }
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
                    let input_major = ["fc1.weight", "fc2.weight", "gate_up_proj", "down_proj"];
                    named.extend(input_major.map(|name| format!("{prefix}.experts.{name}")));
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
