//! Vision models made of parts, made sparse, and trained, on pictures and a config small enough for a test.
#![cfg(feature = "image")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Error, Result, Tensor};
use moesaic_encoders::image::ImageProcessor;
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_models::decoder::Side;
use moesaic_models::lora::{Adapter, attached};
use moesaic_models::train::data::pictures::Turn;
use moesaic_models::train::data::pictures::{Corpus, Loader, Shuffle};
use moesaic_models::train::vision::{self, Part, TrainConfig, run};
use moesaic_models::train::{Ended, Report};
use moesaic_models::upcycle;
use moesaic_models::vision::{Parts, Row, Upcycling, VisionConfig, VisionModel};
use serde_json::{Value, json};

const MARK: u32 = 250;

fn config() -> Value {
    json!({
        "model_type": "moesaic_vision", "image_token_index": MARK,
        "vision_config": { "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4 },
        "text_config": serde_json::from_str::<Value>(common::LLAMA).unwrap(),
        "projector": { "type": "mlp", "depth": 2 },
        "vision_feature_layer": -1, "compression": { "type": "pixel_shuffle", "size": 2 }
    })
}

fn saved(dir: &Path) -> VisionModel {
    let params = Params::init(5, &Device::Cpu);
    let model = VisionModel::new(VisionConfig::from_json(&config().to_string()).unwrap(), &params).unwrap();
    model.save(&params, dir, DType::F32).unwrap();
    std::fs::write(dir.join("preprocessor_config.json"), PROCESSOR).unwrap();
    model
}

const PROCESSOR: &str = r#"{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16},
    "crop_size": {"height": 16, "width": 16}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}"#;

/// Scores of every position of one row about one picture.
fn logits(model: &VisionModel) -> Result<Vec<f32>> {
    let pixels: Vec<f32> = (0..768).map(|i| (i as f32 * 0.37).sin()).collect();
    let encoded = model.encode(&Tensor::from_vec(pixels, (1, 3, 16, 16), &Device::Cpu)?, None)?;
    let pictures = encoded.pictures()?;
    let row = Row { ids: &[3, MARK, 5, 7], labels: &[], pictures: &pictures };
    let hidden = model.forward(&model.splice(&[row], Side::Left, None)?, None, None)?.hidden;
    model.logits(&hidden)?.flatten_all()?.to_vec1()
}

fn near(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst < 1e-4, "off by {worst}");
}

fn load(dir: &Path) -> VisionModel {
    VisionModel::load(dir, DType::F32, &Device::Cpu).unwrap()
}

fn go() -> AtomicBool {
    AtomicBool::new(false)
}

#[test]
fn experts_made_of_a_dense_model_compute_what_it_does() -> Result<()> {
    let root = tempfile::tempdir()?;
    let dense = root.path().join("dense.v1");
    let want = logits(&saved(&dense))?;
    let language =
        upcycle::Options { experts: 8, top_k: 2, granularity: 2, layers: Some(vec![1]), ..Default::default() };
    let cases = [(Some(language.clone()), None), (None, Some((3, 2))), (Some(language), Some((3, 2)))];
    for (i, (language, projector)) in cases.into_iter().enumerate() {
        let out = root.path().join(format!("sparse.{i}"));
        let (experts, connector) = (language.is_some(), projector.is_some());
        Upcycling { language, projector, seed: 3 }.write(&dense, &out, &go())?;
        let model = load(&out);
        near(&logits(&model)?, &want);
        assert_eq!(model.config().decoder.sparse_layers().count(), usize::from(experts));
        assert_eq!(model.config().published["projector"]["type"] == "sparse_mlp", connector);
        let mut files: Vec<String> =
            std::fs::read_dir(&out)?.map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        assert_eq!(files, ["config.json", "model.safetensors", "preprocessor_config.json"]);
    }
    // What is there is not written over, and what has no dense part is refused; neither leaves anything behind.
    let again = Upcycling { projector: Some((3, 2)), ..Default::default() };
    let error = again.write(&dense, &root.path().join("sparse.0"), &go()).unwrap_err().to_string();
    assert!(error.contains("sparse.0: exists already"), "{error}");
    let error = again.write(&root.path().join("sparse.1"), &root.path().join("twice"), &go()).unwrap_err().to_string();
    assert!(error.contains("the projector cannot become sparse"), "{error}");
    assert_eq!(std::fs::read_dir(root.path())?.count(), 4);
    Ok(())
}

#[test]
fn a_tower_and_a_language_model_become_one() -> Result<()> {
    let root = tempfile::tempdir()?;
    let whole = root.path().join("whole");
    let model = saved(&whole);
    // Its parts in folders of their own.
    let checkpoint = Checkpoint::open(&whole)?;
    let part = |prefix: &str, dir: &Path, config: &Value| -> Result<()> {
        std::fs::create_dir(dir)?;
        let inside = checkpoint.names().filter_map(|name| Some((name, name.strip_prefix(prefix)?)));
        let tensors = inside.map(|(name, own)| Ok((own.to_string(), checkpoint.read_any(name)?)));
        save(&dir.join("model.safetensors"), &tensors.collect::<Result<Vec<_>>>()?, &[])?;
        Ok(std::fs::write(dir.join("config.json"), config.to_string())?)
    };
    let (tower, language) = (root.path().join("clip"), root.path().join("llama"));
    let all = config();
    part("vision_tower.", &tower, &json!({ "model_type": "clip", "vision_config": all["vision_config"] }))?;
    part("language_model.", &language, &all["text_config"])?;
    let mut rest = all.as_object().unwrap().clone();
    rest.retain(|key, _| !["model_type", "vision_config", "text_config"].contains(&key.as_str()));
    let joined = root.path().join("joined");
    // The projector starts from the same seed.
    Parts { tower, language, config: rest, seed: 5 }.write(&joined)?;
    near(&logits(&load(&joined))?, &logits(&model)?);
    Ok(())
}

/// Five pictures, each with its own answer.
fn corpus(dir: &Path) -> PathBuf {
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/pictures").canonicalize().unwrap();
    let names = ["circle.png", "rectangle.png", "digit.png", "scene-1.png", "scene-2.png"];
    let line = |(i, name): (usize, &&str)| {
        let turns = [json!({ "question": "which", "answer": format!("w{i}"), "type": "name" })];
        json!({ "image": pictures.join(name), "source": "samples", "turns": turns }).to_string()
    };
    let file = dir.join("train.jsonl");
    std::fs::write(&file, names.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")).unwrap();
    file
}

/// Ids of the question, and the answer's with its label.
fn encode(turns: &[Turn], mark: u32) -> Result<(Vec<u32>, Vec<i64>)> {
    let Some(answer) = turns[0].answer.strip_prefix('w').and_then(|n| n.parse::<u32>().ok()) else {
        return Err(Error::msg("an answer of another kind"));
    };
    Ok((vec![mark, 9, 20 + answer], vec![-100, -100, i64::from(20 + answer)]))
}

fn settings(root: &Path, out: &str, train: &[Part]) -> TrainConfig {
    let data = json!({
        "files": [corpus(root)], "validation_files": [corpus(root)], "rows": 5, "eval_every": 1000
    });
    let mut plan = json!({ "steps": 30, "log_every": 1, "checkpoint_every": 10, "out": root.join(out) });
    plan["accumulation"] = json!(1);
    let config = json!({
        "seed": 5, "init": root.join("dense"), "train": train, "template": "plain", "data": data, "plan": plan,
        "optimiser": { "learning_rate": 5e-3, "warmup": 5, "weight_decay": 0.0 }
    });
    serde_json::from_value(config).unwrap()
}

fn follow(config: &TrainConfig, resume: bool, stop: &AtomicBool, until: u64) -> Result<(Ended, Vec<Report>)> {
    let mut reports = Vec::new();
    let ended = run(config, &encode, resume, stop, &mut |report| {
        reports.push(report.clone());
        stop.store(report.step >= until, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    })?;
    Ok((ended, reports))
}

fn right(reports: &[Report]) -> f64 {
    reports.last().unwrap().parts.iter().find(|(name, _)| name == "right").unwrap().1
}

#[test]
fn it_learns_resumes_and_leaves_the_rest_alone() -> Result<()> {
    let root = tempfile::tempdir()?;
    let start = saved(&root.path().join("dense"));
    // All of it: five pictures are learnt by heart.
    let all = settings(root.path(), "all", &[Part::Tower, Part::Projector, Part::Language]);
    let (ended, whole) = follow(&all, false, &go(), 1000)?;
    assert_eq!((ended, right(&whole)), (Ended::Finished, 1.0));
    // The same in two goes.
    let halves = settings(root.path(), "halves", &[Part::Tower, Part::Projector, Part::Language]);
    assert_eq!(follow(&halves, false, &go(), 12)?.0, Ended::Stopped(12));
    let (_, second) = follow(&halves, true, &go(), 1000)?;
    let losses = |reports: &[Report]| reports.iter().filter(|r| r.step > 12).map(|r| r.loss).collect::<Vec<_>>();
    assert_eq!(losses(&second), losses(&whole));
    // A run is neither written over nor taken up with other settings.
    assert!(follow(&halves, false, &go(), 1000).unwrap_err().to_string().contains("add --resume"));
    let other = TrainConfig { seed: 6, ..halves };
    assert!(follow(&other, true, &go(), 1000).unwrap_err().to_string().contains("another config"));
    // The projector alone, with the tower's features computed once: the rest stays what it was, to the bit.
    let some = settings(root.path(), "some", &[Part::Projector]);
    let (_, reports) = follow(&some, false, &go(), 1000)?;
    assert!(reports.last().unwrap().loss < 0.7 * reports[1].loss);
    drop(start);
    let (before, after) = (
        Checkpoint::open(&root.path().join("dense"))?,
        Checkpoint::open(&root.path().join("some/checkpoint-00000030/model.safetensors"))?,
    );
    for name in before.names() {
        let values = |c: &Checkpoint| c.read_any(name).and_then(|t| t.flatten_all()?.to_vec1::<f32>());
        assert_eq!(values(&before)? == values(&after)?, !name.starts_with("multi_modal_projector."), "{name}");
    }
    Ok(())
}

#[test]
fn experts_are_tuned_after_they_are_made() -> Result<()> {
    let root = tempfile::tempdir()?;
    saved(&root.path().join("dense"));
    let mut config = settings(root.path(), "experts", &[Part::Experts, Part::Projector]);
    config.upcycle = Some(
        serde_json::from_value(json!({
            "experts": 4, "top_k": 2, "layers": [1], "projector_experts": 3, "projector_top_k": 2
        }))
        .unwrap(),
    );
    let (ended, reports) = follow(&config, false, &go(), 1000)?;
    assert_eq!((ended, right(&reports)), (Ended::Finished, 1.0));
    let names: Vec<&str> = reports[1].parts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["cross_entropy", "balance", "projector balance", "projector z"]);
    let model = load(&root.path().join("experts/model"));
    assert_eq!(model.config().decoder.sparse_layers().collect::<Vec<_>>(), [1]);
    Ok(())
}

/// The model in `base` with the adapter in `dir`, as questions are answered with it.
fn adapted(base: &Path, dir: &Path) -> Result<VisionModel> {
    let (adapter, mut model) = (Adapter::open(dir)?, load(base));
    let parts = model.concerned(&adapter);
    model.reload(&adapter.over(&Checkpoint::open(base)?)?, parts, DType::F32)?;
    assert!(model.attach(&adapter, "a", 1.0)? > 0);
    Ok(model)
}

/// Whether the five questions are answered right.
fn answers(root: &Path, model: &VisionModel) -> Result<Vec<bool>> {
    let processor = ImageProcessor::load(&root.join("dense")).unwrap();
    let loader =
        Loader::new(Corpus::open(&[corpus(root)], None)?, processor, Shuffle { seed: 0, together: 1 }, 1 << 20);
    vision::right(model, &encode, &loader, &[0, 1, 2, 3, 4])
}

#[test]
fn adapters_beside_a_projector_that_is_trained_whole() -> Result<()> {
    let root = tempfile::tempdir()?;
    let (root, dense) = (root.path(), root.path().join("dense"));
    saved(&dense);
    let before = std::fs::read(dense.join("model.safetensors"))?;
    let lora = json!({ "r": 4, "lora_alpha": 16, "lora_dropout": 0.1, "base_dtype": "bf16",
        "target_modules": ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"] });
    let config = |out: &str| {
        let mut config = settings(root, out, &[Part::Projector]);
        config.lora = serde_json::from_value(lora.clone()).unwrap();
        config.plan.steps = 60;
        config
    };
    let (ended, whole) = follow(&config("whole"), false, &go(), 1000)?;
    assert_eq!((ended, right(&whole)), (Ended::Finished, 1.0));
    // The same in two goes, to the bit, dropout and the projector included.
    let halves = config("halves");
    assert_eq!(follow(&halves, false, &go(), 37)?.0, Ended::Stopped(37));
    let (_, second) = follow(&halves, true, &go(), 1000)?;
    let losses = |reports: &[Report]| reports.iter().filter(|r| r.step > 37).map(|r| r.loss).collect::<Vec<_>>();
    assert_eq!(losses(&second), losses(&whole));
    let files = |run: &str| std::fs::read(root.join(run).join("model/adapter_model.safetensors")).unwrap();
    assert_eq!(files("whole"), files("halves"));
    // What is saved is an adapter alone; the model that it is for was not touched.
    assert_eq!(std::fs::read(dense.join("model.safetensors"))?, before);
    let adapter = root.join("whole/model");
    assert!(!adapter.join("config.json").exists() && !adapter.join("model.safetensors").exists());
    let written: Value = serde_json::from_str(&std::fs::read_to_string(adapter.join("adapter_config.json"))?).unwrap();
    assert_eq!((&written["peft_type"], &written["r"]), (&json!("LORA"), &json!(4)));
    assert_eq!(written["modules_to_save"], json!(["multi_modal_projector"]));
    assert_eq!(written["base_model_name_or_path"], json!(dense.display().to_string()));
    let tensors = Checkpoint::open(&adapter.join("adapter_model.safetensors"))?;
    let names: Vec<&str> = tensors.names().collect();
    assert!(names.contains(&"base_model.model.multi_modal_projector.0.weight"), "{names:?}");
    assert!(names.contains(&"base_model.model.language_model.model.layers.1.mlp.up_proj.lora_B.weight"), "{names:?}");
    assert!(names.iter().all(|name| !name.contains("vision_tower")), "{names:?}");
    // With it the model answers what it learnt, without it, it does not; and it comes off again.
    assert_eq!(answers(root, &adapted(&dense, &adapter)?)?, [true; 5]);
    assert_ne!(answers(root, &load(&dense))?, [true; 5]);
    // The projector alone is not enough, nor are the maps alone.
    let mut model = load(&dense);
    let opened = Adapter::open(&adapter)?;
    model.attach(&opened, "a", 1.0)?;
    assert_ne!(answers(root, &model)?, [true; 5]);
    model.reload(&opened.over(&Checkpoint::open(&dense)?)?, model.concerned(&opened), DType::F32)?;
    assert_eq!(answers(root, &model)?, [true; 5]);
    assert_eq!(attached(model.sites()).len(), 1);
    // A language model on its own does not take what is not its.
    let refused = opened.attach(model.sites(), "b", 1.0, DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(refused.contains("modules_to_save"), "{refused}");
    Ok(())
}

#[test]
fn adapters_alone_and_beside_routers_that_are_trained_whole() -> Result<()> {
    let root = tempfile::tempdir()?;
    let (root, dense) = (root.path(), root.path().join("dense"));
    saved(&dense);
    let lora = |targets: Value| {
        serde_json::from_value(json!({ "r": 8, "lora_alpha": 32, "target_modules": targets })).unwrap()
    };
    // No part is trained whole.
    let mut config = settings(root, "alone", &[]);
    config.lora = Some(lora(json!("all-linear")));
    config.plan.steps = 40;
    let (_, reports) = follow(&config, false, &go(), 1000)?;
    assert!(reports.last().unwrap().loss < 0.5 * reports[1].loss);
    let model = adapted(&dense, &root.join("alone/model"))?;
    assert_eq!(answers(root, &model)?.iter().filter(|right| **right).count() as f64 / 5.0, right(&reports));
    // Experts are made first: the adapter is for the model that was made.
    let mut config = settings(root, "sparse", &[Part::Router, Part::Projector]);
    config.lora = Some(lora(json!(["q_proj", "v_proj"])));
    config.upcycle = Some(serde_json::from_value(json!({ "experts": 4, "top_k": 2, "layers": [1] })).unwrap());
    assert_eq!(follow(&config, false, &go(), 7)?.0, Ended::Stopped(7));
    let (ended, reports) = follow(&config, true, &go(), 1000)?;
    assert_eq!(ended, Ended::Finished);
    let model = adapted(&root.join("sparse/start"), &root.join("sparse/model"))?;
    assert_eq!(model.config().decoder.sparse_layers().collect::<Vec<_>>(), [1]);
    assert_eq!(answers(root, &model)?.iter().filter(|right| **right).count() as f64 / 5.0, right(&reports));
    let adapter = Adapter::open(&root.join("sparse/model"))?;
    let whole: Vec<&str> = adapter.whole().collect();
    assert!(
        whole.iter().any(|name| name.starts_with("language_model.model.layers.1.") && name.ends_with("gate.weight"))
    );
    // Adapters of another model are refused whole.
    assert!(adapter.over(&Checkpoint::open(&dense)?).unwrap_err().to_string().contains("has no place"));
    Ok(())
}

#[test]
fn settings_that_make_no_sense() {
    let root = tempfile::tempdir().unwrap();
    saved(&root.path().join("dense"));
    let base = settings(root.path(), "no", &[Part::Projector]);
    let refused = |change: &dyn Fn(&mut TrainConfig)| {
        let mut config = base.clone();
        change(&mut config);
        follow(&config, false, &go(), 1000).unwrap_err().to_string()
    };
    for (change, want) in [
        (&(|c: &mut TrainConfig| c.train.clear()) as &dyn Fn(&mut TrainConfig), "train names nothing"),
        (&|c| c.init = None, "there is no model to train"),
        (&|c| c.train = vec![Part::Experts], "this llama has none"),
        (&|c| c.data.rows = 0, "must be at least 1"),
        (&|c| c.init = Some(root.path().join("nowhere")), "nowhere"),
        (&|c| c.data.files = vec![root.path().join("none.jsonl")], "none.jsonl"),
        (&|c| (c.train, c.lora) = (vec![Part::Language], Some(Default::default())), "leave one of them out"),
        (&|c| (c.init, c.model, c.lora) = (None, Some(Default::default()), Some(Default::default())), "give init"),
    ] {
        let got = refused(change);
        assert!(got.contains(want), "{got:?} lacks {want:?}");
    }
}
