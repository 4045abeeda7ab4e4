//! `moesaic routes` for models of all kinds, as a user runs it.

#[path = "support/mod.rs"]
mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::fs;

use serde_json::Value;
use support::{example, run};
use tiny::{language_model, sparse_model};

#[test]
fn a_table_by_the_built_in_forecaster() {
    let folder = tempfile::tempdir().unwrap();
    let table = example("co2.csv");
    let table = table.to_str().unwrap();
    let shown = run(folder.path(), &["routes", table, "--out", "routes.svg"]);
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    let lines: Vec<&str> = shown.stdout.lines().collect();
    assert!(lines[0].starts_with("tokens: 512 series") && lines[1].contains("SRP(16)"), "{}", shown.stdout);
    assert!(lines.len() == 6 && lines[5].starts_with("layer 3"), "{}", shown.stdout);
    let svg = fs::read_to_string(folder.path().join("routes.svg")).unwrap();
    assert!(svg.contains("Series tokens (512)") && svg.contains("layer 0 at the bottom to layer 3 at the top"));

    let json = run(folder.path(), &["routes", table, "--json", "--tokens", "--segment", "64"]);
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&json["tokens"]["series"], &json["segment"]), (&512.into(), &64.into()));
    for layer in json["layers"].as_array().unwrap() {
        let number = |key: &str| layer[key].as_f64().unwrap();
        assert_eq!(layer["choices"].as_array().unwrap().len(), 512);
        assert!((0.0..=3.0).contains(&number("entropy")) && (0.0..=1.0).contains(&number("srp")));
        assert!((0.5..=1.0).contains(&number("sch")) && number("cache") == 4.0, "{layer}");
        let load: f64 = layer["load"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).sum();
        assert!((load - 1.0).abs() < 1e-5 && layer["load"] == layer["shares"]["series"]);
    }
}

#[test]
fn a_text_by_a_language_model() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let model = sparse_model(folder);
    let name = model.file_name().unwrap().to_str().unwrap();
    fs::write(folder.join("text.txt"), "the cat sat on the mat and the cat sat on the hat").unwrap();
    let json = run(folder, &["routes", "text.txt", "--model", name, "--json", "--segment", "4"]);
    assert_eq!(json.code, Some(0), "{}", json.stderr);
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    let tokens = json["tokens"]["text"].as_u64().unwrap();
    for layer in json["layers"].as_array().unwrap() {
        assert_eq!(layer["tokens"].as_u64().unwrap(), tokens);
        assert!(layer["srp"].as_f64().is_some() && layer.get("choices").is_none(), "{layer}");
    }
    // Nothing is as long as this segment.
    let long = run(folder, &["routes", "text.txt", "--model", name, "--json", "--segment", "100000"]);
    let long: Value = serde_json::from_str(&long.stdout).unwrap();
    assert!(long["layers"][0]["srp"].is_null() && long["layers"][0]["sch"].is_null());
}

#[test]
fn what_has_no_routes_says_so_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    language_model(folder);
    fs::write(folder.join("text.txt"), "the cat").unwrap();
    fs::write(folder.join("empty.csv"), "").unwrap();
    fs::write(folder.join("noise.bin"), [1, 0, 2, 0, 3]).unwrap();
    fs::write(folder.join("short.csv"), "day,a\n2024-01-01,1\n2024-01-02,2\n").unwrap();
    for (arguments, words) in [
        (&["none.csv"][..], "cannot read none.csv"),
        (&["."], "is a folder"),
        (&["empty.csv"], "the file is empty"),
        (&["noise.bin"], "neither a picture"),
        (&["text.txt"], "name one with --model"),
        (&["text.txt", "why?", "--model", "model"], "is looked at alone"),
        (&["text.txt", "--model", "model"], "no sparse layer"),
        (&["short.csv", "--segment", "0"], "a segment of 0 tokens"),
        (&["short.csv", "--out", "routes.png"], "ends in .svg"),
        (&["short.csv", "--model", "nowhere"], "nowhere"),
    ] {
        let refused = run(folder, &[&["routes"], arguments].concat());
        assert_eq!((refused.code, refused.stderr.lines().count()), (Some(1), 1), "{arguments:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(words), "{arguments:?}: {}", refused.stderr);
    }
    assert!(!folder.join("routes.png").exists());
    let short = run(folder, &["routes", "short.csv"]);
    assert!(short.code == Some(0) && short.stdout.contains("tokens: 2 series"), "{}", short.stderr);
}
