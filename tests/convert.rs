//! `moesaic convert` as a user runs it, on checkpoints that torch wrote (`tools/pickle_cases.py`).

#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;

use candle_core::DType;
use moesaic::{Error, convert};
use moesaic_kernels::checkpoint::Checkpoint;
use serde_json::Value;
use support::{names, run};

fn pickle(name: &str) -> String {
    format!("{}/tests/pickles/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_checkpoint_of_fairseq_becomes_a_model_folder() {
    let folder = tempfile::tempdir().unwrap();
    let done = run(folder.path(), &["convert", &pickle("fairseq.pt"), "models/hubert"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stdout.contains("11 of \"model\"") && done.stdout.contains("av_hubert\n"), "{}", done.stdout);
    let out = folder.path().join("models/hubert");
    assert_eq!(names(&out), ["config.json", "model.safetensors"]);
    assert_eq!(names(&folder.path().join("models")), ["hubert"]);
    let config = json(&out.join("config.json"));
    assert_eq!((&config["model_type"], &config["model"]["encoder_layers"]), (&"av_hubert".into(), &2.into()));
    let weights = Checkpoint::open(&out).unwrap();
    let of = |name: &str| weights.read_any(name).unwrap();
    // A view of other strides, beside what it is a view of.
    assert_eq!(of("turned").to_vec2::<f32>().unwrap(), of("w").t().unwrap().to_vec2::<f32>().unwrap());
    assert_eq!((of("narrow").dtype(), of("ids").to_vec1::<i64>().unwrap()), (DType::BF16, vec![3, -1, 1 << 40]));
}

#[test]
fn a_report_says_what_was_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let done = run(folder.path(), &["convert", &pickle("lightning.ckpt"), "out", "--json"]);
    let report: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(
        (&report["key"], &report["tensors"], &report["config"]),
        (&"state_dict".into(), &11.into(), &true.into())
    );
    assert_eq!(json(&folder.path().join("out/config.json"))["hyper_parameters"]["lr"], 1e-3);
    let done = run(folder.path(), &["convert", &pickle("plain.pt"), "plain"]);
    assert!(done.code == Some(0) && done.stderr.contains("write a config.json"), "{}", done.stderr);
}

#[test]
fn what_is_refused_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for (name, more, reason) in [
        ("evil.pt", &[][..], "posix.system"),
        ("protocol5.pt", &[], "protocol 5"),
        ("legacy.pt", &[], "before version 1.6"),
        ("fairseq.pt", &["--key", "cfg"], "no weights under"),
        ("nothing.pt", &[], "no such file"),
    ] {
        let file = pickle(name);
        let done = run(folder.path(), &[&["convert", file.as_str(), "out"], more].concat());
        assert_eq!(done.code, Some(1), "{name}: {}", done.stdout);
        assert!(done.stderr.contains(reason) && done.stderr.lines().count() == 1, "{name}: {}", done.stderr);
        assert_eq!(names(folder.path()), Vec::<String>::new(), "{name}");
    }
    // Nor is anything overwritten.
    fs::create_dir(folder.path().join("out")).unwrap();
    let error = convert(pickle("plain.pt"), folder.path().join("out"), None).unwrap_err();
    assert!(matches!(error, Error::Config { .. }) && error.to_string().contains("exists already"), "{error}");
    assert!(matches!(convert(pickle("evil.pt"), folder.path().join("new"), None), Err(Error::Weights { .. })));
}
