//! Bad input: each run must end with an exit code that is not 0, print one line that says what to do, and leave nothing
//! behind.

mod support;

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use moesaic_kernels::checkpoint::{self, Checkpoint};
use support::{copy_of_model, model, names, run};

/// Runs the program on `arguments` in `folder` and checks that it fails as it should, with a message that has `part`.
fn fails(what: &str, folder: &Path, arguments: &[&str], part: &str) {
    let before = names(folder);
    let run = run(folder, arguments);
    assert_eq!(run.code, Some(1), "{what}: {}{}", run.stdout, run.stderr);
    assert_eq!(run.stdout, "", "{what}");
    assert_eq!(run.stderr.lines().count(), 1, "{what}: {}", run.stderr);
    assert!(run.stderr.starts_with("error: "), "{what}: {}", run.stderr);
    assert!(run.stderr.contains(part), "{what}: expected {part:?} in {}", run.stderr);
    assert!(run.stderr.len() < 400, "{what}: {}", run.stderr);
    assert_eq!(names(folder), before, "{what}");
}

const GOOD: &str = "date,y\n2024-01-01,1\n2024-01-02,3\n2024-01-03,2\n2024-01-04,5\n";

#[test]
fn tables() {
    let cases: &[(&str, &[u8], &str)] = &[
        ("empty file", b"", "t.csv: is empty: give a CSV file"),
        ("blank file", b"\n \n", "t.csv: is empty: give a CSV file"),
        ("header only", b"date,y\n", "t.csv: has a header but no rows: add rows"),
        (
            "text in a number column",
            b"date,y\n2024-01-01,1\n2024-01-02,many\n2024-01-03,2\n",
            "line 3, column 'y': 'many'",
        ),
        ("only text", b"date,y\n2024-01-01,a\n2024-01-02,b\n", "line 2, column 'y': 'a' is not a number: correct it"),
        ("infinity", b"date,y\n2024-01-01,1\n2024-01-02,inf\n", "line 3, column 'y': 'inf' is not a finite number"),
        ("overflow", b"date,y\n2024-01-01,1\n2024-01-02,1e300\n", "line 3, column 'y': '1e300' is too large"),
        ("only NaN", b"date,y\n2024-01-01,NaN\n2024-01-02,NaN\n", "no column of numbers to forecast"),
        (
            "duplicate time",
            b"date,y\n2024-01-01,1\n2024-01-01,2\n",
            "line 3, column 'date': has the same time as line 2",
        ),
        ("bad date", b"date,y\n2024-01-01,1\n2024-02-30,2\n", "line 3, column 'date': '2024-02-30' is not a date"),
        ("no date", b"date,y\n2024-01-01,1\n,2\n", "line 3, column 'date': is empty: every row needs a time"),
        ("short line", b"date,y\n2024-01-01,1\n2024-01-02\n", "line 3: has 1 fields where the header has 2"),
        (
            "irregular",
            b"date,y\n2024-01-01T00:00,1\n2024-01-01T00:07,2\n2024-01-01T13:31,3\n2024-01-19T07:00,3\n",
            "--steps",
        ),
        (
            "Parquet",
            b"PAR1\x00\x01",
            if cfg!(feature = "table") { "is not a whole Parquet file" } else { "--features table" },
        ),
        ("binary", b"\x7fELF\x00\x00", "is not a text file: export the data as CSV"),
        ("UTF-16", b"\xff\xfed\x00", "is UTF-16 text: save it as CSV in UTF-8"),
        (
            "escape sequences",
            b"date,y\n2024-01-01,1\n2024-01-02,\x1b[2J\n",
            "line 3, column 'y': '[2J' is not a number",
        ),
    ];
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    for (what, csv, part) in cases {
        fs::write(folder.path().join("t.csv"), csv).unwrap();
        let arguments = ["forecast", "t.csv", "--model", model.to_str().unwrap(), "--plot", "out.svg"];
        fails(what, folder.path(), &arguments, part);
    }
    fails(
        "missing file",
        folder.path(),
        &["forecast", "none.csv", "--model", "m"],
        "cannot read none.csv: No such file",
    );
    fails("folder", folder.path(), &["forecast", ".", "--model", "m"], "cannot read .: ");
}

#[test]
fn options() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("t.csv"), GOOD).unwrap();
    fs::create_dir(folder.path().join("dir.svg")).unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["--horizon", "0"], "the horizon is 0: ask for at least 1 step"),
        (&["--horizon", "1000000"], "the horizon of 1000000 is beyond this model's longest, 128: ask for"),
        (&["--context", "0"], "the context is 0: let the model see"),
        (&["--context", "100000"], "a context of 100000 and a horizon of 2 exceed this model's 256 positions: use"),
        (&["--column", "z"], "t.csv: has no column 'z' (--column); it has 'date', 'y'"),
        (&["--column", "date"], "column 'date': is the time column"),
        (&["--time", "z"], "t.csv: has no column 'z' (--time)"),
        (&["--plot", "out.png"], "cannot write out.png: pictures are SVG"),
        (&["--plot", "none/out.svg"], "cannot write none/out.svg: none is not a folder; create it"),
        (&["--plot", "dir.svg"], "cannot write dir.svg: it is a folder"),
        (&["--plot", "t.csv/out.svg"], "cannot write t.csv/out.svg: t.csv is not a folder"),
    ];
    let model = model();
    for (options, part) in cases {
        let mut arguments = vec!["forecast", "t.csv", "--model", model.to_str().unwrap()];
        arguments.extend(*options);
        fails(&options.join(" "), folder.path(), &arguments, part);
    }
    // The place to write to is checked before the model is opened.
    fails("early", folder.path(), &["forecast", "t.csv", "--model", "none", "--plot", "none/o.svg"], "none/o.svg");
    for arguments in
        [&["forecast", "t.csv", "--horizon", "many"][..], &["forecast"], &["forecast", "t.csv", "--wat"], &["wat"]]
    {
        let run = run(folder.path(), arguments);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(run.stderr.starts_with("error: ") && run.stderr.lines().count() == 1, "{}", run.stderr);
    }
}

#[test]
fn configurations() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("t.csv"), GOOD).unwrap();
    let dir = copy_of_model(folder.path());
    let config = fs::read_to_string(dir.join("config.json")).unwrap();
    let with = |key: &str, value: serde_json::Value| {
        let mut json: serde_json::Value = serde_json::from_str(&config).unwrap();
        json[key] = value;
        json.to_string()
    };
    let huge = serde_json::json!(1_000_000_000_000_u64);
    let cases = [
        ("not JSON", "{".to_string(), "config.json: is not valid JSON"),
        ("not text", "\u{0}".to_string(), "config.json: is not valid JSON"),
        ("an array", "[]".to_string(), "config.json: has no model_type"),
        (
            "another model",
            with("model_type", "llama".into()),
            "model_type is 'llama': this version forecasts with time_moe",
        ),
        ("k above E", with("num_experts_per_tok", 9.into()), "num_experts_per_tok"),
        ("no experts", with("num_experts", 0.into()), "num_experts"),
        ("indivisible heads", with("num_attention_heads", 5.into()), "attention heads"),
        ("indivisible groups", with("num_key_value_heads", 3.into()), "num_key_value_heads"),
        ("absurd width", with("hidden_size", huge.clone()), "hidden_size"),
        ("absurd depth", with("num_hidden_layers", huge.clone()), "num_hidden_layers"),
        ("absurd experts", with("num_experts", huge.clone()), "num_experts"),
        ("absurd positions", with("max_position_embeddings", huge), "max_position_embeddings"),
        ("negative", with("hidden_size", (-4).into()), "config.json"),
        ("text for a number", with("hidden_size", "wide".into()), "config.json"),
        ("no horizons", with("horizon_lengths", serde_json::json!([])), "horizon_lengths"),
        ("a zero horizon", with("horizon_lengths", serde_json::json!([0, 8])), "horizon_lengths"),
        ("several variables", with("input_size", 3.into()), "input_size is 3"),
        ("unknown activation", with("hidden_act", "swoosh".into()), "swoosh"),
        ("wider than its weights", with("hidden_size", 64.into()), "expected"),
        ("deeper than its weights", with("num_hidden_layers", 4.into()), "model.layers.3"),
        ("shallower than its weights", with("num_hidden_layers", 2.into()), "model.layers.2"),
    ];
    for (what, text, part) in cases {
        fs::write(dir.join("config.json"), text).unwrap();
        fails(what, folder.path(), &["forecast", "t.csv", "--model", "model"], part);
    }
    fs::write(dir.join("config.json"), vec![b' '; 2 << 20]).unwrap();
    fails("too long", folder.path(), &["info", "model"], "config.json: has 2097152 bytes");
    fs::remove_file(dir.join("config.json")).unwrap();
    fails("no config", folder.path(), &["info", "model"], "cannot read model/config.json: No such file");
    fails(
        "no folder",
        folder.path(),
        &["info", "./org/name"],
        "./org/name: does not exist: give a folder with config.json",
    );
    #[cfg(feature = "hub")]
    fails(
        "no folder, and not in the cache of the Hub",
        folder.path(),
        &["info", "org/name"],
        "offline mode (HF_HUB_OFFLINE) forbids to fetch it: unset that once, or copy the model there (there is no folder \
         org/name either)",
    );
    fails("a file", folder.path(), &["info", "t.csv"], "t.csv: is not a folder");
}

type Tensors = Vec<(String, Tensor)>;

#[test]
fn weights() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("t.csv"), GOOD).unwrap();
    let dir = copy_of_model(folder.path());
    let file = dir.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let arguments = ["forecast", "t.csv", "--model", "model", "--plot", "out.svg"];

    let mut flipped = bytes.clone();
    flipped[20..40].fill(0xff);
    let mut endless = bytes.clone();
    endless[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let damaged = [
        ("empty", vec![]),
        ("a few bytes", bytes[..7].to_vec()),
        ("cut in the header", bytes[..100].to_vec()),
        ("cut in the data", bytes[..bytes.len() - 1000].to_vec()),
        ("a longer tail", [&bytes[..], &[0; 64]].concat()),
        ("corrupted header", flipped),
        ("endless header", endless),
        ("another file", b"not a checkpoint at all".repeat(50)),
    ];
    for (what, content) in damaged {
        fs::write(&file, content).unwrap();
        fails(what, folder.path(), &arguments, "model.safetensors");
    }

    let whole = Checkpoint::open(&model()).unwrap();
    let tensors: Tensors = whole.names().map(|name| (name.to_string(), whole.read_any(name).unwrap())).collect();
    let name = "model.layers.1.ffn_layer.gate.weight";
    let save = |change: &dyn Fn(&mut Tensors)| {
        let mut changed = tensors.clone();
        change(&mut changed);
        fs::remove_file(&file).unwrap();
        checkpoint::save(&file, &changed, &[("format", "pt")]).unwrap();
    };
    let at = |all: &Tensors| all.iter().position(|(other, _)| other == name).unwrap();
    save(&|all| drop(all.remove(at(all))));
    fails("missing tensor", folder.path(), &arguments, name);
    save(&|all| {
        let at = at(all);
        all[at].0.push('s');
    });
    fails("misspelt tensor", folder.path(), &arguments, "gate.weights");
    save(&|all| {
        let at = at(all);
        all[at].1 = all[at].1.t().unwrap().contiguous().unwrap();
    });
    fails("wrong shape", folder.path(), &arguments, name);
    save(&|all| {
        let at = at(all);
        all[at].1 = all[at].1.to_dtype(DType::F32).unwrap().to_dtype(DType::U32).unwrap();
    });
    fails("integers", folder.path(), &arguments, name);
    save(&|all| all.push(("model.extra.weight".into(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap())));
    fails("surplus tensor", folder.path(), &arguments, "model.extra.weight");
    save(&|all| {
        let at = at(all);
        all[at].1 = (all[at].1.to_dtype(DType::F32).unwrap() * f64::NAN).unwrap();
    });
    fails("NaN weights", folder.path(), &arguments, "");
    fs::remove_file(&file).unwrap();
    fails("no weights", folder.path(), &arguments, "model");
    fs::write(dir.join("model.safetensors.index.json"), r#"{"weight_map": {"a": "../../../etc/passwd"}}"#).unwrap();
    fails("an index that leaves the folder", folder.path(), &arguments, "model");
}

#[test]
fn trainings() {
    let folder = tempfile::tempdir().unwrap();
    let model = "[model]\nmodel_type = \"time_moe\"\nhidden_size = 8\nintermediate_size = 16\nnum_hidden_layers = 1\n\
                 num_attention_heads = 2\nnum_experts = 4\n";
    let data = "[data]\ncontext = [32]\ntokens = 64\nsynthetic = 1.0\n";
    for (what, text, part) in [
        ("not TOML", "seed = = 3".to_string(), "train.toml: line 1: "),
        ("unknown setting", format!("seed = 1\nsede = 1\n{model}{data}"), "train.toml: line 2: unknown field `sede`"),
        ("no data", format!("seed = 1\n{model}"), "missing field `data`"),
        ("no context", format!("seed = 1\n{model}{}", data.replace("32", "0")), "data.context is [0]"),
        ("odd heads", format!("seed = 1\n{}{data}", model.replace("heads = 2", "heads = 3")), "attention heads"),
    ] {
        fs::write(folder.path().join("train.toml"), text).unwrap();
        fails(what, folder.path(), &["train", "forecast", "train.toml"], part);
    }
    fs::write(folder.path().join("train.toml"), format!("seed = 1\n{model}{data}")).unwrap();
    fails(
        "nothing to resume",
        folder.path(),
        &["train", "forecast", "train.toml", "--resume"],
        "start without --resume",
    );
}

#[test]
fn plans() {
    let folder = tempfile::tempdir().unwrap();
    let model = model();
    let arguments = ["eval", "forecast", "plan.toml", "--model", model.to_str().unwrap()];
    fails("no plan", folder.path(), &arguments, "cannot read plan.toml: No such file");
    let series = "[[series]]\nname = \"a\"\nfile = \"a.csv\"\ncolumn = \"y\"\nperiod = 1\nhorizon = 5\n";
    for (what, plan, part) in [
        ("not TOML", "origins = = 3".to_string(), "plan.toml: line 1"),
        ("no series", "origins = 3\ncontext = 9\nseries = []\n".to_string(), "lists no series"),
        ("zero origins", format!("origins = 0\ncontext = 9\n{series}"), "origins is 0"),
        ("no file", format!("origins = 3\ncontext = 9\n{series}"), "a.csv"),
    ] {
        fs::write(folder.path().join("plan.toml"), plan).unwrap();
        fails(what, folder.path(), &arguments, part);
    }
}
