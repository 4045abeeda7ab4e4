//! Training of Moirai-MoE: a dense model, the sparse one made from it, stopping and resuming, and what is refused.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Tensor};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::rng::Rng;
use moesaic_models::moirai_moe::{Config, MoiraiMoe, Options, Patches, Request, k_means};
use moesaic_models::train::moirai::{DataConfig, Packed, Packer, TrainConfig, run};
use moesaic_models::train::{Ended, Report};

/// A run of a model with this many experts.
fn config(out: &Path, experts: usize, steps: u64) -> TrainConfig {
    let text = format!(
        r#"{{
        "seed": 3,
        "model": {{
            "d_model": 64, "d_ff": 8, "num_layers": 2, "patch_sizes": [4, 8], "max_seq_len": 64, "attn_dropout_p": 0.0,
            "dropout_p": 0.0, "scaling": true, "num_experts": {experts}, "num_experts_per_token": {},
            "distr_output": {{ "_target_": "uni2ts.distribution.mixture.MixtureOutput", "components": [
                {{ "_target_": "uni2ts.distribution.student_t.StudentTOutput" }},
                {{ "_target_": "uni2ts.distribution.normal.NormalFixedScaleOutput", "scale": 0.05 }},
                {{ "_target_": "uni2ts.distribution.negative_binomial.NegativeBinomialOutput" }},
                {{ "_target_": "uni2ts.distribution.log_normal.LogNormalOutput" }}
            ] }}
        }},
        "centroids": {{ "batches": 4, "iterations": 20 }},
        "data": {{ "rows": 2, "length": 32, "patches": [2, 8], "variates": 3, "together": 0.5, "scaled_by": [0.3, 0.6],
                   "synthetic": 1.0 }},
        "optimiser": {{ "learning_rate": 0.003, "warmup": 5 }},
        "plan": {{ "steps": {steps}, "log_every": 1, "checkpoint_every": 4, "accumulation": 2, "out": {out:?} }}
    }}"#,
        experts.min(2),
    );
    serde_json::from_str(&text).unwrap()
}

/// Trains and returns how it ended, and the loss and the number of experts at work of every step.
fn train(config: &TrainConfig, resume: bool, stop_after: Option<u64>) -> (Ended, Vec<(f64, f64)>) {
    let stop = AtomicBool::new(false);
    let mut seen = Vec::new();
    let mut report = |r: &Report| {
        assert_eq!(r.parts[0].0, "experts");
        seen.push((r.loss, r.parts[0].1));
        stop.store(stop_after == Some(r.step), Ordering::Relaxed);
        Ok(())
    };
    (run(config, resume, &stop, &mut report).unwrap(), seen)
}

fn refused(config: &TrainConfig) -> String {
    run(config, false, &AtomicBool::new(false), &mut |_| Ok(())).unwrap_err().to_string()
}

fn load(dir: &Path) -> MoiraiMoe {
    MoiraiMoe::load(dir, DType::F32, &Device::Cpu).unwrap()
}

/// Everything that a model says of a batch.
fn said(model: &MoiraiMoe, config: &TrainConfig) -> Vec<f32> {
    let patches = Packer::new(&config.data, &config.model.patch_sizes, 77).unwrap().batch(0).unwrap().patches;
    let output = model.forward(&patches, None).unwrap();
    let parts = output.distribution.parameters().unwrap();
    // What comes out at padding means nothing.
    let real: Vec<u32> = (0..patches.tokens() as u32).filter(|&t| patches.sample_id[t as usize] != 0).collect();
    let real = Tensor::from_slice(&real, real.len(), &Device::Cpu).unwrap();
    let flat = |t: &Tensor| {
        t.contiguous().unwrap().index_select(&real, 0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    parts.iter().flat_map(|(_, t)| flat(t)).collect()
}

#[test]
fn a_sparse_model_starts_as_the_dense_one_and_resumes_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let dense = config(&dir.path().join("dense"), 1, 6);
    let (ended, losses) = train(&dense, false, None);
    assert_eq!((ended, losses.len()), (Ended::Finished, 6));
    assert!(losses.iter().all(|(loss, experts)| loss.is_finite() && *experts == 1.0), "{losses:?}");
    let of = |name: &str| {
        let init = Some(dir.path().join("dense/model"));
        TrainConfig { init, ..config(&dir.path().join(name), 5, 9) }
    };
    let (ended, whole) = train(&of("one"), false, None);
    assert_eq!(ended, Ended::Finished);
    // Centroids that are clusters of tokens, each layer's own, and the function of the dense model.
    let start = Checkpoint::open(&dir.path().join("one/start")).unwrap();
    let centroid = start.read("encoder.centroid", &[2, 5, 64], DType::F32, &Device::Cpu).unwrap();
    let rows: Vec<Vec<f32>> = centroid.reshape((10, 64)).unwrap().to_vec2().unwrap();
    assert!((0..10).all(|a| (0..a).all(|b| rows[a] != rows[b])));
    // Tokens are normalised there: none is far from a norm of 8, and means of them are nearer to the middle.
    let norm = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>().sqrt();
    assert!(rows.iter().all(|row| (0.5..9.0).contains(&norm(row))), "{rows:?}");
    let (of_dense, of_sparse) =
        (said(&load(&dir.path().join("dense/model")), &dense), said(&load(&dir.path().join("one/start")), &dense));
    let apart = of_dense.iter().zip(&of_sparse).map(|(a, b)| (a - b).abs() / (1.0 + a.abs())).fold(0.0, f32::max);
    assert!(of_dense.len() > 1000 && apart < 1e-4, "{} values, {apart} apart", of_dense.len());
    assert!(whole.iter().all(|(loss, experts)| loss.is_finite() && *experts > 1.0), "{whole:?}");
    // Stopped and resumed.
    let (ended, mut parts) = train(&of("two"), false, Some(5));
    assert_eq!(ended, Ended::Stopped(5));
    parts.extend(train(&of("two"), true, None).1);
    assert_eq!(whole, parts);
    let bytes = |name: &str| std::fs::read(dir.path().join(name).join("model/model.safetensors")).unwrap();
    assert_eq!(bytes("one"), bytes("two"));
    // The centroids are those of the start, though the model is saved in bf16; the experts have gone apart.
    let model = Checkpoint::open(&dir.path().join("one/model")).unwrap();
    let saved = model.read("encoder.centroid", &[2, 5, 64], DType::F32, &Device::Cpu).unwrap();
    assert_eq!(saved.reshape((10, 64)).unwrap().to_vec2::<f32>().unwrap(), rows);
    let expert = |e: usize| {
        let name = format!("encoder.layers.0.ffn.experts.{e}.fc1.weight");
        model.read(&name, &[8, 64], DType::F32, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap()
    };
    assert!((1..5).any(|e| expert(e) != expert(0)));
    let forecast = load(&dir.path().join("one/model"));
    let values: Vec<f32> = (0..40).map(|t| (t % 5) as f32).collect();
    let forecast = forecast.forecast(&[Request::univariate(&values)], &Options::new(32, 10), None).unwrap();
    assert!(forecast[0].mean[0].len() == 10 && forecast[0].mean[0].iter().all(|v| v.is_finite()));
    // A model that is no dense one of this config is refused.
    let wider = config(&dir.path().join("three"), 3, 2);
    let wider = TrainConfig { init: Some(dir.path().join("one/model")), ..wider };
    assert!(refused(&wider).contains("this has 5 and 2"), "{}", refused(&wider));
    let mut other = of("three");
    other.model.d_ff = 12;
    assert!(refused(&other).contains("more than its experts"), "{}", refused(&other));
    let mut few = of("three");
    (few.model.num_experts, few.centroids.batches) = (512, 1);
    assert!(refused(&few).contains("too few for 512 centroids"), "{}", refused(&few));
    assert!(!dir.path().join("three").exists(), "nothing is written before there is something to train");
}

#[test]
fn training_lowers_the_loss_of_series_that_can_be_learnt() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let wave: String = (0..600).map(|i| format!("{}\n", (f64::from(i) * 0.5).sin())).collect();
    std::fs::write(data.join("wave.csv"), format!("value\n{wave}")).unwrap();
    let mut config = config(&dir.path().join("run"), 4, 120);
    config.data.synthetic = 0.0;
    config.data.folders = serde_json::from_str(&format!(r#"[{{ "path": {data:?}, "weight": 1.0 }}]"#)).unwrap();
    // Two threads: the same sums in the same order.
    config.plan.workers = 2;
    let (_, losses) = train(&config, false, None);
    let mean = |part: &[(f64, f64)]| part.iter().map(|(loss, _)| loss).sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&losses[..20]), mean(&losses[100..]));
    assert!(last < first - 0.3, "{first} to {last}");
}

#[test]
fn what_would_go_wrong_later_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x");
    let with = |change: &dyn Fn(&mut TrainConfig)| {
        let mut config = config(&out, 4, 2);
        change(&mut config);
        refused(&config)
    };
    for (said, part) in [
        (with(&|c| c.data.patches = [1, 4]), "data.patches is [1, 4]"),
        (with(&|c| c.data.patches = [5, 4]), "data.patches is [5, 4]"),
        (with(&|c| c.data.length = 1), "data.length = 1"),
        (with(&|c| c.data.rows = 1 << 20), "tokens in all"),
        (with(&|c| c.data.scaled_by = [0.5, 0.4]), "data.scaled_by"),
        (with(&|c| c.data.scaled_by = [0.5, 1.0]), "data.scaled_by"),
        (with(&|c| c.data.variates = 1), "no room for two variates"),
        (with(&|c| c.data.together = f64::NAN), "data.together"),
        (with(&|c| c.data.evaluation = vec!["no/such/folder".into()]), "no/such/folder"),
        (with(&|c| c.centroids.batches = 0), "centroids: batches = 0"),
        (with(&|c| c.model.dropout_p = 0.1), "dropout_p is 0.1"),
        (with(&|c| c.model.num_experts_per_token = 5), "num_experts_per_token is 5, expected 1 to 4"),
        (with(&|c| c.model.num_experts = 0), "num_experts is 0"),
        (with(&|c| c.init = Some("no/such/model".into())), "no/such/model"),
        (with(&|c| c.optimiser.clip = -1.0), "clip"),
    ] {
        assert!(said.contains(part), "{part:?} in {said}");
    }
    assert!(!out.exists(), "nothing is written before the settings are checked");
    // A slip of the pen in the model's table.
    let text = serde_json::to_string(&config(&out, 4, 2)).unwrap().replace("\"d_ff\"", "\"d_ef\"");
    let error = serde_json::from_str::<TrainConfig>(&text).unwrap_err().to_string();
    assert!(error.contains("unknown field `d_ef` in [model]"), "{error}");
}

#[test]
fn published_counts_of_experts_are_not_written() {
    let dense = config(Path::new("x"), 1, 1).model;
    let text = serde_json::to_string(&dense).unwrap();
    assert!(text.contains("\"num_experts\":1"), "{text}");
    assert_eq!(Config::from_json(&text).unwrap(), dense);
    let published = Config { num_experts: 32, num_experts_per_token: 2, ..dense.clone() };
    let text = serde_json::to_string(&published).unwrap();
    assert!(!text.contains("num_experts"), "{text}");
    assert_eq!(Config::from_json(&text).unwrap(), published);
    // An expert of the two layers has 3 * 64 * 8 parameters in each.
    let (dense, published) = (dense.parameters(), published.parameters());
    let expert = 2 * 3 * 64 * 8;
    assert_eq!((published.total - dense.total, published.active - dense.active), (31 * expert, expert));
}

fn packer(patch_sizes: &[usize], change: impl Fn(&mut DataConfig)) -> Packer {
    let text = r#"{"rows": 6, "length": 50, "patches": [2, 12], "variates": 4, "together": 0.5, "scaled_by": [0.2, 0.7],
                   "synthetic": 1.0}"#;
    let mut data: DataConfig = serde_json::from_str(text).unwrap();
    change(&mut data);
    Packer::new(&data, patch_sizes, 11).unwrap()
}

/// Where a token is not the last of its variate, the one after it.
fn after(patches: &Patches, t: usize) -> Option<usize> {
    let key = |t: usize| (t / patches.length, patches.sample_id[t], patches.variate_id[t]);
    (t + 1 < patches.tokens() && patches.sample_id[t] != 0 && key(t + 1) == key(t)).then_some(t + 1)
}

#[test]
fn what_follows_a_token_is_the_next_patch_of_its_variate() {
    let packer = packer(&[4, 8], |_| ());
    let (mut predicted, mut scaling, mut several, mut sizes) = (0, 0, 0, [0; 9]);
    for index in 0..8 {
        let Packed { patches, next } = packer.batch(index).unwrap();
        assert_eq!((patches.rows, patches.length, patches.width, patches.tokens()), (6, 50, 8, 300));
        for t in 0..patches.tokens() {
            sizes[patches.patch_size[t]] += usize::from(patches.sample_id[t] != 0);
            several += usize::from(patches.variate_id[t] > 0);
            scaling += usize::from(patches.sample_id[t] != 0 && !patches.prediction[t]);
            let cells = |t: usize| t * 8..(t + 1) * 8;
            match after(&patches, t) {
                Some(then) => {
                    assert_eq!(patches.time_id[then], patches.time_id[t] + 1);
                    // The loss counts what does not take part in the scaling, and nothing else.
                    assert_eq!(next.prediction[t], patches.prediction[then], "{t}");
                    if next.prediction[t] {
                        predicted += 1;
                        assert_eq!(next.target[cells(t)], patches.target[cells(then)]);
                        assert_eq!(next.observed[cells(t)], patches.observed[cells(then)]);
                    }
                }
                None => assert!(!next.prediction[t]),
            }
            assert!(patches.observed[cells(t)][patches.patch_size[t]..].iter().all(|seen| !seen));
        }
    }
    assert!(predicted > 500 && scaling > 500 && several > 300, "{predicted} {scaling} {several}");
    assert!(sizes[4] > 300 && sizes[8] > 300, "{sizes:?}");
}

#[test]
fn a_batch_is_a_function_of_seed_and_number() {
    let packer = packer(&[4], |_| ());
    let same = |a: &Packed, b: &Packed| a.patches == b.patches && a.next.target == b.next.target;
    let one = packer.batch(3).unwrap();
    assert!(same(&one, &packer.batch(3).unwrap()));
    assert!(!same(&one, &packer.batch(4).unwrap()));
    assert!(!same(&one, &packer.with_seed(12).batch(3).unwrap()));
}

/// `each` points around each of four corners, one after the other.
fn blobs(each: usize) -> Vec<f32> {
    let mut rng = Rng::new(9);
    let corners = [[10.0, 10.0], [-10.0, 10.0], [10.0, -10.0], [-10.0, -10.0]];
    let corner = |i: usize| corners[i % 4];
    (0..4 * each).flat_map(|i| corner(i).map(|v| v + 0.1 * rng.normal() as f32)).collect()
}

#[test]
fn clusters_are_found_whatever_the_seed() {
    for seed in 0..20 {
        let found = k_means(&blobs(50), 2, 4, 50, seed).unwrap();
        let mut signs: Vec<[bool; 2]> = found.chunks(2).map(|c| [c[0] > 0.0, c[1] > 0.0]).collect();
        signs.sort_unstable();
        signs.dedup();
        assert_eq!(signs.len(), 4, "{found:?}");
        assert!(found.iter().all(|v| (v.abs() - 10.0).abs() < 0.1), "{found:?}");
        assert_eq!(found, k_means(&blobs(50), 2, 4, 50, seed).unwrap());
    }
}

#[test]
fn no_cluster_stays_empty() {
    // Seven points at one place and one elsewhere: the third centroid has nothing of its own, and takes a point.
    let mut points = vec![1.0f32; 14];
    points.extend([5.0, 5.0]);
    let found = k_means(&points, 2, 3, 10, 1).unwrap();
    assert!(found.chunks(2).any(|c| c == [5.0, 5.0]) && found.iter().all(|v| [1.0, 5.0].contains(v)), "{found:?}");
    // Groups of different sizes, and a point alone.
    let line: Vec<f32> = [0.0, 0.1, 0.2, 0.3, 100.0, 100.1, 200.0].into();
    let mut found = k_means(&line, 1, 3, 20, 4).unwrap();
    found.sort_by(f32::total_cmp);
    assert!((found[0] - 0.15).abs() < 1e-5 && (found[1] - 100.05).abs() < 1e-4 && found[2] == 200.0, "{found:?}");
}

#[test]
fn refuses_too_few_points_and_broken_ones() {
    assert!(k_means(&[0.0; 6], 2, 4, 5, 0).unwrap_err().to_string().contains("3 tokens are too few"));
    assert!(k_means(&[0.0, f32::NAN], 1, 1, 5, 0).is_err());
    assert!(k_means(&[0.0; 5], 2, 1, 5, 0).is_err() && k_means(&[0.0; 4], 2, 0, 5, 0).is_err());
}
