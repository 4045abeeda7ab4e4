//! The program as a user runs it: what it prints, and what it leaves behind.

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use support::{Run, example, model, names, program, run};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Runs `forecast` on CSV text with the test model.
fn forecast(csv: &str, arguments: &[&str]) -> Run {
    let folder = folder();
    fs::write(folder.path().join("t.csv"), csv).unwrap();
    let model = model();
    let mut all = vec!["forecast", "t.csv", "--model", model.to_str().unwrap()];
    all.extend(arguments);
    run(folder.path(), &all)
}

fn good(run: &Run) -> &str {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    &run.stdout
}

#[test]
fn a_table_and_a_picture_are_printed() {
    let folder = folder();
    let (csv, model) = (example("co2.csv"), model());
    let arguments = ["forecast", csv.to_str().unwrap(), "--horizon", "52", "--model", model.to_str().unwrap()];
    let run = run(folder.path(), &arguments);
    let text = good(&run);
    assert!(text.contains("2002-01-05") && text.contains("2002-12-28"), "{text}");
    assert!(text.contains("┊") && text.contains("forecast ►") && text.contains("weekly · 52 ahead"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours into a pipe");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn json_holds_everything() {
    let csv = "day,a,city,b\n2024-02-27,1,x,5\n2024-02-28,2,y,5\n2024-03-01,1,z,5\n2024-03-02,2,x,\n";
    let run = forecast(csv, &["--horizon", "3", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(good(&run)).unwrap();
    assert_eq!(run.stderr, "", "remarks are in the answer");
    assert_eq!(answer["frequency"], "daily");
    assert_eq!(answer["horizon"], 3);
    assert_eq!(answer["model"]["architecture"], "time_moe");
    let remarks: Vec<&str> = answer["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap()).collect();
    assert!(remarks.iter().any(|note| note.contains("'city'")), "{remarks:?}");
    assert!(remarks.iter().any(|note| note.contains("1 of 5 row is absent")), "{remarks:?}");
    let (a, b) = (&answer["forecasts"][0], &answer["forecasts"][1]);
    assert_eq!(a["timestamps"], serde_json::json!(["2024-03-03", "2024-03-04", "2024-03-05"]));
    assert_eq!(a["values"].as_array().unwrap().len(), 3);
    assert_eq!((&a["context"], &a["filled"]), (&5.into(), &1.into()));
    // A constant goes on; its last row is missing and therefore forecast.
    assert_eq!(b["timestamps"][0], "2024-03-02");
    assert_eq!(b["values"], serde_json::json!([5.0, 5.0, 5.0]));
}

#[test]
fn csv_continues_the_file() {
    let run = forecast("month;wert\n2023-11;2,5\n2023-12;2,5\n2024-01;2,5\n", &["--horizon", "2", "--csv"]);
    assert_eq!(good(&run), "month,wert\n2024-02,2.5\n2024-03,2.5\n");
    let run = forecast("date,a,b\n2024-01-01,1,2\n2024-01-02,1,2\n2024-01-03,1,\n", &["--horizon", "2", "--csv"]);
    assert_eq!(good(&run), "date,a,b\n2024-01-03,,2\n2024-01-04,1,2\n2024-01-05,1,\n");
    let run = forecast("y\n4\n4\n", &["--horizon", "2", "--csv"]);
    assert_eq!(good(&run), "step,y\n3,4\n4,4\n");
}

#[test]
fn one_value_and_a_constant_are_continued() {
    let run = forecast("date,y\n2024-01-31,7.25\n", &["--horizon", "2", "--csv"]);
    assert_eq!(good(&run), "date,y\n2,7.25\n3,7.25\n");
    assert!(run.stderr.contains("note: one row does not tell the step of time"), "{}", run.stderr);
    let run = forecast("date,y\n2024-01-31,3\n2024-02-29,3\n2024-03-31,3\n", &["--horizon", "2", "--csv"]);
    assert_eq!(good(&run), "date,y\n2024-04-30,3\n2024-05-31,3\n");
    let run = forecast("y\n3\n3\n3\n", &[]);
    assert!(good(&run).contains("┊"), "{}", run.stdout);
}

#[test]
fn long_tables_go_in_blocks_and_wide_ones_in_groups() {
    let rows: String = (0..200).map(|hour| format!("{hour},{}\n", 5.0 + f64::from(hour % 24))).collect();
    let run = forecast(&format!("step,y\n{rows}"), &["--horizon", "40"]);
    let head: Vec<&str> = good(&run).lines().filter(|line| line.contains("step")).collect();
    assert_eq!((head.len(), head[0].matches("step").count()), (1, 3), "{}", run.stdout);
    let wide: String = (0..12).map(|row| format!("{row}{}\n", ",1234.5".repeat(12))).collect();
    let names: String = (0..12).map(|column| format!(",measurement {column}")).collect();
    let run = forecast(&format!("step{names}\n{wide}"), &["--horizon", "3"]);
    assert!(good(&run).lines().all(|line| line.chars().count() <= 80), "{}", run.stdout);
    assert!(
        run.stdout.contains("measurement 11") && run.stdout.contains("8 more series are not drawn"),
        "{}",
        run.stdout
    );
}

#[test]
fn columns_and_context_can_be_chosen() {
    let rows: String = (0..60).map(|row| format!("{row},{},{}\n", row % 7, row % 5)).collect();
    let csv = format!("t,a,b\n{rows}");
    let run = forecast(&csv, &["--column", "b", "--horizon", "2", "--csv"]);
    assert!(good(&run).starts_with("t,b\n60,"), "{}", run.stdout);
    let values = |arguments: &[&str]| good(&forecast(&csv, arguments)).to_string();
    let base = ["--column", "a", "--horizon", "2", "--csv"];
    assert_eq!(values(&base), values(&[&base[..], &["--context", "60"]].concat()));
    assert_ne!(values(&base), values(&[&base[..], &["--context", "9"]].concat()));
}

#[test]
fn the_picture_is_written_whole() {
    let folder = folder();
    let (csv, model) = (example("sunspots.csv"), model());
    fs::write(folder.path().join("out.svg"), "old").unwrap();
    let arguments =
        ["forecast", csv.to_str().unwrap(), "--model", model.to_str().unwrap(), "--plot", "out.svg", "--csv"];
    good(&run(folder.path(), &arguments));
    let picture = fs::read_to_string(folder.path().join("out.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
    assert!(picture.contains(">sunspots</text>") && picture.contains(">forecast</text>"));
    assert_eq!(names(folder.path()), ["out.svg"]);
}

#[test]
fn standard_input_is_read() {
    let folder = folder();
    let mut child = program(folder.path())
        .args(["forecast", "-", "--horizon", "1", "--csv", "--model"])
        .arg(model())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"y\n1\n1\n").unwrap();
    let run: Run = child.wait_with_output().unwrap().into();
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "step,y\n3,1\n"));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let folder = folder();
    let mut child = program(folder.path())
        .arg("forecast")
        .arg(example("co2.csv"))
        .arg("--model")
        .arg(model())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let run: Run = child.wait_with_output().unwrap().into();
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_nothing() {
    let folder = folder();
    let mut child = program(folder.path())
        .args(["forecast", "-", "--plot", "out.svg"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The output is opened before the input is read, and the input does not end.
    while names(folder.path()).is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "ended early");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let interrupt = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let stdin = child.stdin.take();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(stdin);
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn a_model_is_described() {
    let folder = folder();
    let model = model();
    let path = model.to_str().unwrap();
    let described = run(folder.path(), &["info", path]);
    let text = good(&described);
    for part in ["time_moe", "72.0 k in all, 53.6 k active", "4 a layer, 2 for each value", "bf16", "153.3 kB"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    let described = run(folder.path(), &["info", path, "--json"]);
    let info: serde_json::Value = serde_json::from_str(good(&described)).unwrap();
    assert_eq!(info["parameters"]["total"], 72_000);
    assert_eq!(info["experts_per_token"], 2);
    assert_eq!(info["files"][0]["name"], "model.safetensors");
}

#[test]
fn the_built_in_model_needs_no_files() {
    let folder = folder();
    let csv = example("co2.csv");
    let forecast = run(folder.path(), &["forecast", csv.to_str().unwrap(), "--horizon", "52", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(good(&forecast)).unwrap();
    assert_eq!(answer["model"]["source"], "embedded");
    let values = answer["forecasts"][0]["values"].as_array().unwrap();
    // Weekly CO2 at the end of 2001 was 371 ppm; it moves by less than 10 a year.
    assert!(values.len() == 52 && values.iter().all(|value| (355.0..390.0).contains(&value.as_f64().unwrap())));
    assert!(good(&run(folder.path(), &["info"])).contains("embedded"));
}

#[test]
fn an_evaluation_is_printed() {
    let folder = folder();
    let wave: String = (0..120).map(|row| format!("{}\n", 10 + row % 12)).collect();
    fs::write(folder.path().join("wave.csv"), format!("y\n{wave}")).unwrap();
    let plan = "origins = 3\ncontext = 64\n[[series]]\nname = \"wave\"\nfile = \"wave.csv\"\ncolumn = \"y\"\n\
                period = 12\nhorizon = 6\n";
    fs::write(folder.path().join("plan.toml"), plan).unwrap();
    let model = model();
    let arguments = ["eval", "forecast", "plan.toml", "--model", model.to_str().unwrap()];
    let measured = run(folder.path(), &arguments);
    assert!(good(&measured).contains("wave") && measured.stdout.contains("MASE"), "{}", measured.stdout);
    let measured = run(folder.path(), &[&arguments[..], &["--json"]].concat());
    let answer: serde_json::Value = serde_json::from_str(good(&measured)).unwrap();
    assert_eq!(answer["series"][0]["name"], "wave");
    assert_eq!(answer["series"][0]["origins"], 3);
    // A model from a folder is alone unless told otherwise; combined, even one that knows nothing repeats a period.
    let mase = |more: &[&str]| {
        let measured = run(folder.path(), &[&arguments[..], &["--json"], more].concat());
        let answer: serde_json::Value = serde_json::from_str(good(&measured)).unwrap();
        answer["series"][0]["model"]["mase"].as_f64().unwrap()
    };
    assert_eq!(Some(mase(&["--plain"])), answer["series"][0]["model"]["mase"].as_f64());
    assert!(mase(&["--combine"]) < 0.01 * mase(&[]));
    let both = run(folder.path(), &[&arguments[..], &["--plain", "--combine"]].concat());
    assert!(both.code != Some(0) && both.stderr.contains("cannot be used with"), "{}", both.stderr);
}

const TRAINING: &str = r#"
seed = 3
[model]
model_type = "time_moe"
hidden_size = 8
intermediate_size = 16
horizon_lengths = [1, 4]
num_hidden_layers = 1
num_attention_heads = 2
num_experts = 4
num_experts_per_tok = 2
max_position_embeddings = 128
[data]
context = [32]
tokens = 64
synthetic = 1.0
[plan]
steps = 4
log_every = 1
checkpoint_every = 2
out = "run"
"#;

#[test]
fn a_model_is_trained_and_used() {
    let folder = folder();
    fs::write(folder.path().join("train.toml"), TRAINING).unwrap();
    let trained = run(folder.path(), &["train", "forecast", "train.toml"]);
    let lines: Vec<&str> = good(&trained).lines().collect();
    assert_eq!(lines.len(), 4, "{}", trained.stdout);
    assert!(lines[3].starts_with("step 4/4  loss ") && lines[3].contains("tokens/s"), "{}", lines[3]);
    assert!(trained.stderr.contains("the model is in run/model"), "{}", trained.stderr);
    // A run is not overwritten by accident.
    let again = run(folder.path(), &["train", "forecast", "train.toml"]);
    assert_eq!((again.code, again.stderr.lines().count()), (Some(1), 1), "{}", again.stderr);
    assert!(again.stderr.contains("--resume"), "{}", again.stderr);
    fs::write(folder.path().join("t.csv"), "y\n1\n3\n2\n5\n").unwrap();
    good(&run(folder.path(), &["forecast", "t.csv", "--model", "run/model", "--horizon", "5"]));
    assert!(good(&run(folder.path(), &["info", "run/model"])).contains("4 a layer"));
}

/// Starts a training that would take long, interrupts it after its first report, and returns the step it names.
#[cfg(unix)]
fn interrupted_training(folder: &Path, arguments: &[&str]) -> u64 {
    use std::io::{BufRead, BufReader};
    let mut child = program(folder)
        .args(["train", "forecast", "train.toml"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
    let run: Run = child.wait_with_output().unwrap().into();
    assert_eq!(run.code, Some(130), "{}", run.stderr);
    let stopped = run.stderr.split("stopped after step ").nth(1).unwrap_or_else(|| panic!("{}", run.stderr));
    assert!(line.starts_with("step "), "{line}");
    stopped.split(';').next().unwrap().parse().unwrap()
}

#[cfg(unix)]
#[test]
fn an_interrupted_training_goes_on_where_it_stopped() {
    let folder = folder();
    fs::write(folder.path().join("train.toml"), TRAINING.replace("steps = 4", "steps = 1000000")).unwrap();
    let first = interrupted_training(folder.path(), &[]);
    assert!(first > 0 && !names(&folder.path().join("run")).is_empty());
    let second = interrupted_training(folder.path(), &["--resume"]);
    assert!(second > first, "{second} after {first}");
}

#[test]
fn help_names_every_option() {
    let run = run(Path::new("."), &["forecast", "--help"]);
    for option in [
        "--column",
        "--time",
        "--zone",
        "--horizon",
        "--model",
        "--json",
        "--csv",
        "--output",
        "--plot",
        "--context",
        "--steps",
    ] {
        assert!(good(&run).contains(option), "{option}");
    }
    let bare = support::run::<&str>(Path::new("."), &[]);
    assert_eq!(bare.code, Some(2));
    assert!(bare.stderr.contains("Usage:"), "{}", bare.stderr);
}

#[test]
fn intervals_are_printed_in_every_form() {
    let rows: String =
        (0..60).map(|t| format!("{}\n", [3.0, 5.0, 4.0, 9.0][t % 4] + (t * 7 % 5) as f64 * 0.1)).collect();
    let csv = format!("y\n{rows}");
    let text = forecast(&csv, &["--horizon", "3", "--interval", "90", "--interval", "50%", "--csv"]);
    let table: Vec<Vec<&str>> = good(&text).lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(table[0], ["step", "y", "y lo-90", "y hi-90", "y lo-50", "y hi-50"]);
    for row in &table[1..] {
        let [_, value, low, high, inner_low, inner_high] =
            row.iter().map(|v| v.parse::<f64>().unwrap()).collect::<Vec<_>>()[..]
        else {
            panic!("{row:?}")
        };
        assert!(low <= inner_low && inner_low <= value && value <= inner_high && inner_high <= high, "{row:?}");
    }
    let text = forecast(&csv, &["--horizon", "3", "--interval", "90"]);
    assert!(good(&text).contains("lo-90") && good(&text).contains("hi-90"), "{}", text.stdout);
    let json = forecast(&csv, &["--horizon", "3", "--interval", "90", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(good(&json)).unwrap();
    let interval = &answer["forecasts"][0]["intervals"][0];
    assert_eq!((&interval["level"], interval["upper"].as_array().unwrap().len()), (&0.9.into(), 3));
    // Too short to calibrate: a remark, not an error.
    let short = forecast("y\n1\n2\n1\n3\n", &["--horizon", "2", "--interval", "90", "--csv"]);
    assert!(good(&short).starts_with("step,y\n") && short.stderr.contains("no interval"), "{}", short.stderr);
    for bad in ["0", "100", "much"] {
        let run = forecast(&csv, &["--interval", bad]);
        assert!(run.code == Some(2) && run.stderr.contains("give, for example, 90"), "{}", run.stderr);
    }
}

#[test]
fn long_tables_stay_long() {
    let csv = "date,shop,sold\n2024-01-01,a,1\n2024-01-02,a,1\n2024-01-02,b,7\n2024-01-03,b,7\n2024-01-01,c,\n2024-01-02,c,\n";
    let run = forecast(csv, &["--horizon", "2", "--csv"]);
    let expected = "shop,date,forecast\na,2024-01-03,1\na,2024-01-04,1\nb,2024-01-04,7\nb,2024-01-05,7\n";
    assert_eq!(good(&run), expected);
    assert!(run.stderr.contains("'shop' tells 3 series apart") && run.stderr.contains("'c' has only missing values"));
    // Nothing but missing values is an error.
    let run = forecast("date,y\n2024-01-01,\n2024-01-02,\n", &["--column", "y"]);
    assert!(run.code == Some(1) && run.stderr.contains("only missing values"), "{}", run.stderr);
}
