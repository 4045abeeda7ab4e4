//! Trains a small sparse forecaster from Rust, then forecasts with it: the loop behind `moesaic train forecast`.
//!
//! ```console
//! cargo run --release --example train                        # 60 steps on synthetic series, about half a minute
//! cargo run --release --example train -- runs/mine 2000 data # 2000 steps, on the CSV files in `data` too
//! ```
//!
//! Run it again with the same arguments after a Ctrl-C and it goes on from its last checkpoint. To fine-tune a model
//! instead, set `init` to its folder and `model` to its `config.json`.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use moesaic::{ForecastOptions, Forecaster, Series};
use moesaic_models::time_moe::Config;
use moesaic_models::train::forecast::{DataConfig, FolderConfig, TrainConfig, run};
use moesaic_models::train::{AdamWConfig, Ended, Plan, checkpoints};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let out = PathBuf::from(arguments.next().unwrap_or_else(|| "runs/example".into()));
    let steps = arguments.next().map_or(Ok(60), |text| text.parse())?;
    let folders = arguments.map(|path| FolderConfig { path: path.into(), weight: 0.5 }).collect();

    let config = TrainConfig {
        seed: 1,
        // The keys are those of a published config.json.
        model: Config::from_json(
            r#"{ "model_type": "time_moe", "hidden_size": 64, "intermediate_size": 64, "horizon_lengths": [1, 8, 32],
                 "num_hidden_layers": 2, "num_attention_heads": 4, "num_experts": 4, "num_experts_per_tok": 2,
                 "initializer_range": 0.1, "max_position_embeddings": 1024 }"#,
        )?,
        init: None,
        data: DataConfig {
            context: vec![128, 64],
            tokens: 2048,
            huber_delta: 0.5,
            scale_floor: None,
            synthetic: 1.0,
            recipes: Default::default(),
            folders,
            evaluation: Vec::new(),
        },
        optimiser: AdamWConfig { learning_rate: 3e-3, warmup: 20, ..AdamWConfig::default() },
        plan: Plan { steps, log_every: 10, checkpoint_every: 50, out: out.clone(), ..Plan::default() },
    };
    // Set from a signal handler, another thread or a time limit, this ends the run after a checkpoint.
    let stop = AtomicBool::new(false);
    let resume = !checkpoints(&out)?.is_empty();
    let ended = run(&config, resume, &stop, &mut |report| {
        println!(
            "step {:>4}/{}  loss {:.4}  {:>6.0} tokens/s  {:.0} s left",
            report.step, report.steps, report.loss, report.tokens_per_second, report.seconds_left
        );
        Ok(())
    })?;
    anyhow::ensure!(ended == Ended::Finished, "stopped before the end");

    let wave: Vec<f32> = (0..96).map(|i| 10.0 + (i as f32 * std::f32::consts::TAU / 12.0).sin()).collect();
    let series = Series::new("wave", wave);
    let forecaster = Forecaster::from_dir(out.join("model"))?;
    println!(
        "a wave of period 12 goes on as {:.2?}",
        forecaster.forecast(&[series], 12, &ForecastOptions::default())?[0].values
    );
    Ok(())
}
