//! Time-MoE without a checkpoint: gradients of a two-layer model, equal bits in any batch, the schedule, and bad configs.

use candle_core::{DType, Device, Result, Tensor};
use moesaic_kernels::Params;
use moesaic_kernels::cpu::with_threads;
use moesaic_kernels::rng::Rng;
use moesaic_models::time_moe::{Config, Context, Normalisation, Targets, TimeMoe};

const TINY: &str = r#"{
    "model_type": "time_moe", "hidden_size": 12, "intermediate_size": 16, "horizon_lengths": [1, 4], "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 4, "num_experts_per_tok": 2,
    "max_position_embeddings": 64, "initializer_range": 0.3, "router_aux_loss_factor": 0.1
}"#;

fn tiny() -> (TimeMoe, Params) {
    let params = Params::init(7, &Device::Cpu);
    (TimeMoe::new(Config::from_json(TINY).unwrap(), &params).unwrap(), params)
}

fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| rng.normal() as f32).collect()
}

#[test]
fn gradients_of_two_layers_match_finite_differences() -> Result<()> {
    let (model, params) = tiny();
    let (b, t) = (2, 9);
    let x = Tensor::from_vec(values(1, b * t), (b, t), &Device::Cpu)?;
    let mask: Vec<f32> = (0..b * (t + 2)).map(|i| if i % 7 == 3 { 0.0 } else { 1.0 }).collect();
    let targets = Targets::new(values(2, b * (t + 2)), Some(mask), b)?;
    let context = Context { padding: vec![0, 2], ..Context::default() };
    let loss = |model: &TimeMoe| model.loss(&x, &context, &targets).unwrap().0.total;
    let grads = loss(&model).backward()?;
    let mut rng = Rng::new(3);
    let mut compared = 0;
    for (name, var) in params.variables() {
        let Some(grad) = grads.get(&var) else { panic!("{name} got no gradient") };
        let grad = grad.flatten_all()?.to_vec1::<f32>()?;
        let original = var.flatten_all()?.to_vec1::<f32>()?;
        for _ in 0..12.min(original.len()) {
            let at = rng.below(original.len());
            let step = 2e-3f32;
            let at_offset = |by: f32| -> Result<f64> {
                let mut moved = original.clone();
                moved[at] += by;
                var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu)?)?;
                Ok(f64::from(loss(&model).to_scalar::<f32>()?))
            };
            let numeric = (at_offset(step)? - at_offset(-step)?) / (2.0 * f64::from(step));
            at_offset(0.0)?;
            let exact = f64::from(grad[at]);
            // f32 losses near 1 carry 1e-7 of rounding, so differences carry about 5e-5.
            assert!((numeric - exact).abs() < 3e-4 + 0.02 * exact.abs(), "{name}[{at}]: {exact} and {numeric}");
            compared += usize::from(exact.abs() > 1e-3);
        }
    }
    assert!(compared > 100, "only {compared} gradients were large enough to mean anything");
    Ok(())
}

#[test]
fn a_forecast_has_the_same_bits_alone_in_a_batch_and_on_any_number_of_threads() -> Result<()> {
    let (model, _) = tiny();
    let series: Vec<Vec<f32>> = [40, 17, 1, 33].iter().map(|&n| values(n as u64, n)).collect();
    let refs: Vec<&[f32]> = series.iter().map(Vec::as_slice).collect();
    let all = with_threads(2, || model.forecast(&refs, 11))?;
    assert_eq!(all, with_threads(1, || model.forecast(&refs, 11))?);
    for (i, one) in refs.iter().enumerate() {
        assert_eq!(all[i], model.forecast(&[one], 11)?[0], "series {i}");
        assert!(all[i].len() == 11 && all[i].iter().all(|v| v.is_finite()));
    }
    Ok(())
}

#[test]
fn cached_generation_equals_recomputing() -> Result<()> {
    let (model, _) = tiny();
    let context = Tensor::from_vec(values(5, 20), (1, 20), &Device::Cpu)?;
    let got = model.generate(&context, None, 6)?.to_vec2::<f32>()?;
    // 4, 1, 1: the schedule with heads of 1 and 4.
    let mut row = values(5, 20);
    for head in [1usize, 0, 0] {
        let n = row.len();
        let x = Tensor::from_vec(row.clone(), (1, n), &Device::Cpu)?;
        let hidden = model.forward(&x, &Context::default(), None, None)?.hidden.narrow(1, n - 1, 1)?;
        row.extend(model.head(head, &hidden)?.flatten_all()?.to_vec1::<f32>()?);
    }
    for (a, b) in got[0].iter().zip(&row[20..]) {
        assert!((a - b).abs() < 1e-5, "{got:?} {:?}", &row[20..]);
    }
    Ok(())
}

#[test]
fn forecasts_from_several_origins_are_those_of_their_prefixes() -> Result<()> {
    let (model, _) = tiny();
    let (series, horizon) = (values(8, 30), 11);
    let norm = Normalisation::of(&series);
    let origins = [30, 3, 17, 17, 1];
    let together = model.forecast_from(&series, &origins, horizon)?;
    for (&origin, found) in origins.iter().zip(&together) {
        let prefix: Vec<f32> = series[..origin].iter().map(|&v| norm.apply(v)).collect();
        let alone = model.generate(&Tensor::from_vec(prefix, (1, origin), &Device::Cpu)?, None, horizon)?;
        for (found, alone) in found.iter().zip(alone.to_vec2::<f32>()?.remove(0)) {
            assert!((found - norm.invert(alone)).abs() < 1e-5, "{origin}: {found} {}", norm.invert(alone));
        }
    }
    assert_eq!(together[2], together[3]);
    // The same bits in other company and on any number of threads.
    assert_eq!(model.forecast_from(&series, &[17], horizon)?[0], together[2]);
    assert_eq!(with_threads(3, || model.forecast_from(&series, &origins, horizon))?, together);
    assert!(model.forecast_from(&series, &[], horizon)?.is_empty());
    for (series, origin) in [(&series[..], 0), (&series[..], 31), (&[][..], 1), (&[f32::NAN][..], 1)] {
        assert!(model.forecast_from(series, &[origin], horizon).is_err());
    }
    assert!(model.forecast_from(&series, &[30], 0).is_err());
    Ok(())
}

#[test]
fn constant_and_single_values_are_forecast_as_they_are() -> Result<()> {
    assert_eq!(Normalisation::of(&[3.5; 9]).std, 1.0);
    assert_eq!(Normalisation::of(&[3.5]), Normalisation { mean: 3.5, std: 1.0 });
    assert_eq!(Normalisation::of(&[0.1; 3]).std, 1.0); // rounding of the mean is not a deviation
    assert!((Normalisation::of(&[1.0, 3.0]).std - 2f64.sqrt()).abs() < 1e-12);
    let (model, _) = tiny();
    for series in [&[2.0f32; 5][..], &[1e30f32, -1e30, 1e30][..], &[7.0][..]] {
        assert!(model.forecast(&[series], 4)?[0].iter().all(|v| v.is_finite()), "{series:?}");
    }
    for bad in [&[][..], &[1.0, f32::NAN][..], &[f32::INFINITY][..]] {
        assert!(model.forecast(&[bad], 4).is_err());
    }
    Ok(())
}

#[test]
fn configs_that_do_not_fit_are_refused_before_anything_is_allocated() {
    let change = |key: &str, value: &str| {
        let mut config: serde_json::Value = serde_json::from_str(TINY).unwrap();
        config[key] = serde_json::from_str(value).unwrap();
        Config::from_json(&config.to_string())
    };
    for (key, value, word) in [
        ("model_type", "\"llama\"", "model_type"),
        ("num_experts_per_tok", "5", "num_experts_per_tok"),
        ("num_attention_heads", "5", "hidden_size"),
        ("num_key_value_heads", "0", "num_key_value_heads"),
        ("hidden_size", "0", "hidden_size"),
        ("hidden_size", "1000000000000", "hidden_size"),
        ("hidden_size", "-4", "config.json"),
        ("num_hidden_layers", "100000000", "num_hidden_layers"),
        ("horizon_lengths", "[]", "horizon_lengths"),
        ("horizon_lengths", "[8, 1]", "horizon_lengths"),
        ("rms_norm_eps", "-1", "rms_norm_eps"),
        ("hidden_act", "\"tanhish\"", "activation"),
    ] {
        let error = change(key, value).unwrap_err().to_string();
        assert!(error.contains(word), "{key} = {value}: {error}");
    }
    assert_eq!(change("horizon_lengths", "3").unwrap().horizon_lengths, [3]);
}

#[test]
fn counted_parameters_are_those_of_the_published_sizes() -> Result<()> {
    // Maple728/TimeMoE-50M: 113,352,192 parameters in its safetensors file.
    let base = r#"{"model_type": "time_moe", "hidden_size": 384, "intermediate_size": 1536, "horizon_lengths": [1, 8, 32, 64],
        "num_hidden_layers": 12, "num_attention_heads": 12, "num_experts": 8, "num_experts_per_tok": 2}"#;
    let count = Config::from_json(base)?.parameters();
    assert_eq!(count.total, 113_352_192);
    assert_eq!(count.active / 10_000, 4_965);
    let (model, params) = tiny();
    let made: usize = params.variables().iter().map(|(_, v)| v.elem_count()).sum();
    assert_eq!(made, model.parameters().total);
    Ok(())
}

#[test]
fn a_dense_layer_and_published_names_work() -> Result<()> {
    let mut config = Config::from_json(TINY)?;
    (config.use_dense, config.apply_aux_loss) = (true, false);
    let params = Params::init(1, &Device::Cpu);
    let model = TimeMoe::new(config, &params)?;
    let x = Tensor::zeros((1, 3), DType::F32, &Device::Cpu)?;
    assert!(model.forward(&x, &Context::default(), None, None)?.routes.is_empty());
    let names: Vec<String> =
        tiny().1.published(|v| Some(v.as_tensor().clone()))?.into_iter().map(|(name, _)| name).collect();
    for name in ["model.layers.1.ffn_layer.experts.3.up_proj.weight", "lm_heads.1.out_layer.weight"] {
        assert!(names.iter().any(|n| n == name), "{name}");
    }
    // Nothing else asks for a name twice or under another prefix.
    assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
    Ok(())
}
