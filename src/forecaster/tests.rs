//! The forecaster around a small model with random weights: what goes in and out, not how good it is.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use moesaic_kernels::checkpoint;
use moesaic_kernels::rng::Rng;
use moesaic_models::time_moe::Config;

use super::*;
use crate::{Calendar, Frequency};

pub(crate) const CONFIG: &str = r#"{
    "model_type": "time_moe", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "horizon_lengths": [1, 8],
    "max_position_embeddings": 256, "use_dense": false, "apply_aux_loss": true
}"#;

/// Writes a model of [`CONFIG`] with random weights.
fn write_model(dir: &Path) {
    let config = Config::from_json(CONFIG).unwrap();
    let (h, i) = (config.hidden_size, config.intermediate_size);
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_layer.emb_layer.weight".into(), vec![h, 1]),
        ("model.embed_layer.gate_layer.weight".into(), vec![h, 1]),
        ("model.norm.weight".into(), vec![h]),
    ];
    for (j, n) in config.horizon_lengths.iter().enumerate() {
        shapes.push((format!("lm_heads.{j}.out_layer.weight"), vec![*n, h]));
    }
    for layer in 0..config.num_hidden_layers {
        let mut add =
            |name: &str, shape: &[usize]| shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        add("input_layernorm.weight", &[h]);
        add("post_attention_layernorm.weight", &[h]);
        for name in ["q", "k", "v"] {
            add(&format!("self_attn.{name}_proj.weight"), &[h, h]);
            add(&format!("self_attn.{name}_proj.bias"), &[h]);
        }
        add("self_attn.o_proj.weight", &[h, h]);
        add("ffn_layer.gate.weight", &[config.num_experts, h]);
        add("ffn_layer.shared_expert_gate.weight", &[1, h]);
        let experts = (0..config.num_experts).map(|e| (format!("experts.{e}"), config.expert_size()));
        for (expert, width) in experts.chain([("shared_expert".to_string(), i)]) {
            add(&format!("ffn_layer.{expert}.gate_proj.weight"), &[width, h]);
            add(&format!("ffn_layer.{expert}.up_proj.weight"), &[width, h]);
            add(&format!("ffn_layer.{expert}.down_proj.weight"), &[h, width]);
        }
    }
    let tensors: Vec<(String, Tensor)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let mut rng = Rng::named(11, &name);
            let values: Vec<f32> =
                (0..shape.iter().product()).map(|_| rng.normal() as f32 * 0.3 + f32::from(shape.len() == 1)).collect();
            (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap())
        })
        .collect();
    checkpoint::save(&dir.join("model.safetensors"), &tensors, &[("format", "pt")]).unwrap();
    std::fs::write(dir.join("config.json"), CONFIG).unwrap();
}

fn forecaster() -> Forecaster {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    Forecaster::from_dir(dir.path()).unwrap()
}

fn wave(name: &str, len: usize) -> Series {
    Series::new(name, (0..len).map(|t| 10.0 + (t as f32 * 0.7).sin()).collect::<Vec<_>>())
}

#[test]
fn forecasts_follow_their_series() {
    let model = forecaster();
    let calendar = Calendar::new("2024-01-31".parse().unwrap(), Frequency::MONTH_END);
    let mut series = wave("a", 24).with_calendar(calendar);
    series.values[23] = f32::NAN;
    series.values[5] = f32::NAN;
    let forecast = model.forecast(&[series], 3, &ForecastOptions::default()).unwrap().remove(0);
    let stamps: Vec<_> = forecast.timestamps.iter().map(ToString::to_string).collect();
    // The last value is missing, so the forecast begins with it.
    assert_eq!(stamps, ["2025-12-31", "2026-01-31", "2026-02-28"]);
    assert_eq!((forecast.values.len(), forecast.context, forecast.filled), (3, 23, 1));
    let json = serde_json::to_string(&forecast).unwrap();
    assert!(json.contains(r#""timestamps":["2025-12-31","2026-01-31","2026-02-28"]"#), "{json}");
}

#[test]
fn company_and_threads_do_not_matter() {
    let model = Arc::new(forecaster());
    let series: Vec<Series> = (1..40).map(|len| wave(&format!("s{len}"), len * 3 % 37 + 1)).collect();
    let options = ForecastOptions::default().batch(7);
    let together = model.forecast(&series, 11, &options).unwrap();
    assert_eq!(together.iter().map(|f| f.name.clone()).collect::<Vec<_>>(), {
        series.iter().map(|s| s.name.clone()).collect::<Vec<_>>()
    });
    let alone: Vec<_> = series
        .iter()
        .map(|one| {
            let (model, one) = (Arc::clone(&model), one.clone());
            std::thread::spawn(move || model.forecast(&[one], 11, &ForecastOptions::default()).unwrap().remove(0))
        })
        .collect();
    for (thread, expected) in alone.into_iter().zip(&together) {
        assert_eq!(&thread.join().unwrap(), expected);
    }
}

#[test]
fn only_the_context_counts() {
    let model = forecaster();
    let (long, mut cut) = (wave("y", 100), wave("y", 100));
    cut.values.drain(..68);
    let options = ForecastOptions::default().context(32);
    let of = |series: &Series| model.forecast(std::slice::from_ref(series), 8, &options).unwrap().remove(0).values;
    assert_eq!(of(&long), of(&cut));
    let mut moved = long.clone();
    moved.values[67] += 5.0;
    assert_eq!(of(&long), of(&moved));
    moved.values[68] += 5.0;
    assert_ne!(of(&long), of(&moved));
}

#[test]
fn constants_continue_and_counts_stay_positive() {
    let model = forecaster();
    let options = ForecastOptions::default();
    let constant = [Series::new("one", [4.5]), Series::new("same", [-2.0; 50])];
    let forecasts = model.forecast(&constant, 5, &options).unwrap();
    assert_eq!((&forecasts[0].values[..], &forecasts[1].values[..]), (&[4.5; 5][..], &[-2.0; 5][..]));
    let low = Series::new("low", (0..60).map(|t| (t as f32).sin() - 3.0).collect::<Vec<_>>());
    let free = model.forecast(std::slice::from_ref(&low), 8, &options).unwrap().remove(0);
    let clamped = model.forecast(&[low], 8, &options.clone().non_negative(true)).unwrap().remove(0);
    assert!(free.values.iter().any(|value| *value < 0.0));
    assert!(clamped.values.iter().zip(&free.values).all(|(clamped, free)| *clamped == free.max(0.0)));
    assert!(model.forecast(&[], 5, &options).unwrap().is_empty());
}

#[test]
fn the_scale_of_the_data_does_not_matter() {
    let model = forecaster();
    let of = |scale: f32| {
        let mut series = wave("y", 64);
        series.values.iter_mut().for_each(|value| *value *= scale);
        model.forecast(&[series], 8, &ForecastOptions::default()).unwrap().remove(0).values
    };
    let (plain, huge, tiny) = (of(1.0), of(2f32.powi(110)), of(2f32.powi(-110)));
    for at in 0..8 {
        assert!((huge[at] / 2f32.powi(110) - plain[at]).abs() < 1e-4 * plain[at].abs());
        assert!((tiny[at] * 2f32.powi(110) - plain[at]).abs() < 1e-4 * plain[at].abs());
    }
}

#[test]
fn requests_that_cannot_be_met_are_refused() {
    let model = forecaster();
    let series = [wave("y", 30)];
    let defaults = ForecastOptions::default();
    let table = [
        (0, defaults.clone(), "the horizon is 0"),
        (129, defaults.clone(), "the horizon of 129 is beyond this model's longest, 128"),
        (1_000_000, defaults.clone(), "the horizon of 1000000 is beyond"),
        (8, defaults.clone().context(0), "the context is 0"),
        (8, defaults.clone().context(249), "a context of 249 and a horizon of 8 exceed this model's 256 positions"),
        (8, defaults.clone().batch(0), "the batch size is 0"),
    ];
    for (horizon, options, expected) in table {
        let message = model.forecast(&series, horizon, &options).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message}");
    }
    assert_eq!(model.forecast(&series, 128, &defaults).unwrap()[0].values.len(), 128);
    let late = Calendar::new("9999-12-01".parse().unwrap(), Frequency::MONTHLY);
    let message = model.forecast(&[Series::new("y", [1.0]).with_calendar(late)], 3, &defaults).unwrap_err();
    assert!(message.to_string().contains("after the year 9999"), "{message}");
}

#[test]
fn intervals_come_in_the_order_asked_and_do_not_move_the_forecast() {
    let model = forecaster();
    let mut rng = Rng::new(5);
    let noisy: Vec<f32> = (0..90).map(|t| (t as f32 * 0.7).sin() + 0.3 * rng.normal() as f32).collect();
    let all = [Series::new("noisy", noisy), wave("short", 9), Series::new("flat", [4.0; 30])];
    let plain = model.forecast(&all, 6, &ForecastOptions::default()).unwrap();
    let options = ForecastOptions::default().interval(0.9).interval(0.5);
    let banded = model.forecast(&all, 6, &options).unwrap();
    for (a, b) in plain.iter().zip(&banded) {
        assert_eq!((&a.values, a.context), (&b.values, b.context));
        assert!(a.intervals.is_empty());
    }
    let [wide, narrow] = &banded[0].intervals[..] else { panic!("{:?}", banded[0].intervals) };
    assert_eq!((wide.level, narrow.level), (0.9, 0.5));
    for (k, value) in banded[0].values.iter().enumerate() {
        assert!(wide.lower[k] <= narrow.lower[k] && narrow.lower[k] <= *value, "{k}");
        assert!(*value <= narrow.upper[k] && narrow.upper[k] < wide.upper[k], "{k}");
    }
    // Nine values calibrate nothing; a constant is sure of itself.
    assert!(banded[1].intervals.is_empty());
    assert_eq!((banded[2].intervals[0].lower[5], banded[2].intervals[0].upper[5]), (4.0, 4.0));
    // Alone or with others, the same bits.
    let alone = model.forecast(&all[..1], 6, &options).unwrap();
    assert_eq!(alone[0], banded[0]);
    let raised = model.forecast(&all[..1], 6, &options.non_negative(true)).unwrap();
    assert!(raised[0].intervals.iter().all(|band| band.lower.iter().all(|v| *v >= 0.0)));
    for level in [0.0, 1.0, -0.5, f64::NAN] {
        let error = model.forecast(&all, 6, &ForecastOptions::default().interval(level)).unwrap_err().to_string();
        assert!(error.contains("not between 0 and 1"), "{error}");
    }
}

#[test]
fn forecasts_keep_to_the_floor_of_their_history() {
    let model = forecaster();
    let nights: Vec<f32> = (0..96).map(|h| (h as f32 * 0.2618).sin().max(-0.2)).collect();
    let low = |options: &ForecastOptions| {
        let forecast = model.forecast(&[Series::new("y", nights.clone())], 40, options).unwrap().remove(0);
        forecast.values.iter().copied().fold(f32::MAX, f32::min)
    };
    // The model of random weights does pass it.
    assert!(low(&ForecastOptions::default().bounds(false)) < -0.2);
    assert_eq!(low(&ForecastOptions::default()), -0.2);
    assert_eq!(low(&ForecastOptions::default().non_negative(true)), 0.0);
}

#[test]
fn models_from_folders_forecast_alone_unless_told_otherwise() {
    let model = forecaster();
    let mut rng = Rng::new(12);
    let mut season = |name: &str, period: usize, n: usize| {
        let values: Vec<f32> = (0..n).map(|t| 5.0 + (t % period) as f32 + 0.1 * rng.normal() as f32).collect();
        Series::new(name, values)
    };
    let mut all = vec![season("long", 12, 200), season("shorter", 5, 77), season("short", 4, 12)];
    all.push(Series::new("flat", [3.0; 40]));
    all[0].values[100] = f32::NAN;
    let of = |options: &ForecastOptions| model.forecast(&all, 10, options).unwrap();
    let options = ForecastOptions::default();
    let (plain, combined) = (of(&options), of(&options.clone().combine(true)));
    assert_eq!(plain, of(&options.clone().combine(false)));
    // A dozen values are left to the model, a constant to itself.
    assert!(plain[0] != combined[0] && plain[1] != combined[1] && plain[2..] == combined[2..]);
    // The model of random weights knows nothing; the season is plain to see.
    for (k, value) in combined[0].values.iter().enumerate() {
        assert!((value - (5 + (200 + k) % 12) as f32).abs() < 1.0, "step {k}: {value}");
    }
    // Alone or with others, in any thread, with intervals or without: the same bits.
    let options = options.combine(true).interval(0.9);
    let shorter = &all[1..2];
    let alone = std::thread::scope(|scope| {
        scope.spawn(|| model.forecast(shorter, 10, &options).unwrap().remove(0)).join().unwrap()
    });
    assert_eq!(alone.values, combined[1].values);
    let band = &alone.intervals[0];
    assert!((0..10).all(|k| band.lower[k] <= alone.values[k] && alone.values[k] <= band.upper[k]));
    assert!((0..10).all(|k| band.upper[k] - band.lower[k] < 3.0), "{band:?}");
}

#[test]
fn the_embedded_model_combines() {
    let model = Forecaster::embedded().unwrap();
    // A period that the model alone has never seen twice.
    let values: Vec<f32> = (0..500).map(|t| ((t % 300) as f32 * 0.7).sin() + (t % 300) as f32 / 50.0).collect();
    let miss = |options: &ForecastOptions| {
        let forecast = model.forecast(&[Series::new("y", values.clone())], 20, options).unwrap().remove(0);
        let truth = (500..520).map(|t| ((t % 300) as f32 * 0.7).sin() + (t % 300) as f32 / 50.0);
        truth.zip(forecast.values).map(|(y, f)| (y - f).abs()).sum::<f32>() / 20.0
    };
    let (combined, plain) = (miss(&ForecastOptions::default()), miss(&ForecastOptions::default().combine(false)));
    assert!(combined < 0.01 && combined < plain, "{combined} {plain}");
}
