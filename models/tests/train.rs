//! The trainer: it learns, saves in the published layout, stops and resumes without a trace, and refuses what it should.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device};
use moesaic_models::time_moe::TimeMoe;
use moesaic_models::train::forecast::{TrainConfig, run};
use moesaic_models::train::{Ended, Report, checkpoints};

fn config(out: &Path, steps: u64) -> TrainConfig {
    let text = format!(
        r#"{{
        "seed": 3,
        "model": {{ "model_type": "time_moe", "hidden_size": 16, "intermediate_size": 16, "horizon_lengths": [1, 8],
                    "num_hidden_layers": 1, "num_attention_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.2 }},
        "data": {{ "context": [64, 32], "tokens": 128, "synthetic": 1.0 }},
        "optimiser": {{ "learning_rate": 0.005, "warmup": 5 }},
        "plan": {{ "steps": {steps}, "log_every": 1, "checkpoint_every": 4, "accumulation": 2, "out": {:?} }}
    }}"#,
        out
    );
    serde_json::from_str(&text).unwrap()
}

/// Trains and returns how it ended and the loss of every step.
fn train(config: &TrainConfig, resume: bool, stop_after: Option<u64>) -> (Ended, Vec<f64>) {
    let stop = AtomicBool::new(false);
    let mut losses = Vec::new();
    let mut report = |r: &Report| {
        losses.push(r.loss);
        stop.store(stop_after == Some(r.step), Ordering::Relaxed);
        Ok(())
    };
    (run(config, resume, &stop, &mut report).unwrap(), losses)
}

#[test]
fn a_stopped_and_resumed_run_has_the_losses_of_an_uninterrupted_one() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ended, whole) = train(&config(one.path(), 9), false, None);
    assert_eq!(ended, Ended::Finished);
    let resumed = config(two.path(), 9);
    let (ended, mut parts) = train(&resumed, false, Some(5));
    assert_eq!(ended, Ended::Stopped(5));
    parts.extend(train(&resumed, true, None).1);
    assert_eq!(whole, parts);
    // The same weights, too, in the published layout that inference loads.
    let bytes = |dir: &Path| std::fs::read(dir.join("model/model.safetensors")).unwrap();
    assert_eq!(bytes(one.path()), bytes(two.path()));
    let model = TimeMoe::load(&one.path().join("model"), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(model.forecast(&[&[1.0, 2.0, 3.0]], 10).unwrap()[0].len(), 10);
    assert_eq!(checkpoints(one.path()).unwrap().len(), 2);
}

#[test]
fn threads_and_the_scale_of_losses() {
    let losses = |workers: usize, floor: Option<f64>| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path(), 4);
        (config.plan.accumulation, config.plan.workers, config.data.scale_floor) = (5, workers, floor);
        train(&config, false, None).1
    };
    // Five batches on one, two or more threads than batches: the same sums in the same order.
    let one = losses(1, None);
    assert_eq!((losses(2, None), losses(8, None)), (one.clone(), one.clone()));
    assert_ne!(losses(2, Some(0.15)), one);
}

#[test]
fn a_run_can_start_from_the_weights_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let first = config(&dir.path().join("first"), 6);
    let (_, losses) = train(&first, false, None);
    let mut second = config(&dir.path().join("second"), 2);
    second.init = Some(dir.path().join("first/model"));
    // The same data and other weights give another loss; weights of another shape are refused.
    assert_ne!(train(&second, false, None).1[0], losses[0]);
    second.model.intermediate_size *= 2;
    second.plan.out = dir.path().join("third");
    let error = run(&second, false, &AtomicBool::new(false), &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("expected") && error.contains("model.safetensors"), "{error}");
}

#[test]
fn training_lowers_the_loss() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let wave: String = (0..600).map(|i| format!("{}\n", (f64::from(i) * 0.5).sin())).collect();
    std::fs::write(data.join("wave.csv"), format!("value\n{wave}")).unwrap();
    let mut config = config(&dir.path().join("run"), 150);
    config.data.synthetic = 0.0;
    config.data.folders = serde_json::from_str(&format!(r#"[{{ "path": {data:?}, "weight": 1.0 }}]"#)).unwrap();
    let (_, losses) = train(&config, false, None);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&losses[..30]), mean(&losses[120..]));
    assert!(last < 0.75 * first, "{first} to {last}");
}

#[test]
fn what_would_go_wrong_later_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let go = |config: &TrainConfig, resume: bool| {
        run(config, resume, &AtomicBool::new(false), &mut |_| Ok(())).unwrap_err().to_string()
    };
    let good = config(dir.path(), 2);
    assert!(go(&good, true).contains("no checkpoint to resume from"));
    train(&good, false, None);
    assert!(go(&good, false).contains("--resume"));
    let mut other = good.clone();
    other.plan.steps = 5;
    assert!(go(&other, true).contains("other settings"));
    let mut bad = config(&dir.path().join("x"), 2);
    bad.data.context = vec![4];
    assert!(go(&bad, false).contains("data.context"));
    let mut bad = config(&dir.path().join("x"), 2);
    bad.optimiser.clip = -1.0;
    assert!(go(&bad, false).contains("clip"));
    let mut bad = config(&dir.path().join("x"), 2);
    bad.data.evaluation = vec!["no/such/folder".into()];
    assert!(go(&bad, false).contains("no/such/folder"));
    assert!(!dir.path().join("x").exists(), "nothing is written before the settings are checked");
}

#[test]
fn a_training_series_that_is_in_the_evaluation_set_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (training, evaluation) = (dir.path().join("training"), dir.path().join("evaluation"));
    std::fs::create_dir_all(&training).unwrap();
    std::fs::create_dir_all(&evaluation).unwrap();
    let series = |scale: f64| -> String {
        let values = (0..200).map(|i| (i as f64 * 0.7).sin() * 3.0 + ((i * i) % 17) as f64);
        values.fold("value\n".to_string(), |text, v| text + &format!("{}\n", v * scale + 5.0))
    };
    std::fs::write(training.join("a.csv"), series(2.0)).unwrap();
    std::fs::write(evaluation.join("b.csv"), series(1.0)).unwrap();
    let mut config = config(&dir.path().join("out"), 2);
    config.data.folders = serde_json::from_str(&format!(r#"[{{ "path": {training:?}, "weight": 1.0 }}]"#)).unwrap();
    config.data.evaluation = vec![evaluation];
    let error = run(&config, false, &AtomicBool::new(false), &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("a.csv") && error.contains("b.csv"), "{error}");
}
