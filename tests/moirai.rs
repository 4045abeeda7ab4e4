//! Moirai-MoE from the command line: trained from a file, measured, and asked for series that go together.

mod support;

use std::fs;
use std::path::Path;

use support::{Run, run};

fn good(run: &Run) -> &str {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    &run.stdout
}

/// A Moirai-MoE of this many experts; what goes before the tables.
fn moirai(head: &str, experts: usize, out: &str) -> String {
    let chosen = experts.min(2);
    format!(
        r#"seed = 3
{head}
[model]
d_model = 64
d_ff = 4
num_layers = 1
patch_sizes = [8]
max_seq_len = 32
attn_dropout_p = 0.0
dropout_p = 0.0
scaling = true
num_experts = {experts}
num_experts_per_token = {chosen}
[model.distr_output]
_target_ = "uni2ts.distribution.mixture.MixtureOutput"
components = [
    {{ _target_ = "uni2ts.distribution.student_t.StudentTOutput" }},
    {{ _target_ = "uni2ts.distribution.normal.NormalFixedScaleOutput", scale = 0.001 }},
]
[data]
rows = 2
length = 24
patches = [2, 8]
variates = 2
together = 0.3
synthetic = 1.0
[plan]
steps = 2
log_every = 1
out = "{out}"
"#
    )
}

#[test]
fn a_moirai_is_trained_evaluated_and_used() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("dense.toml", &moirai("", 1, "dense"));
    write("sparse.toml", &moirai("init = \"dense/model\"", 4, "sparse"));
    for file in ["dense.toml", "sparse.toml"] {
        let trained = run(folder.path(), &["train", "forecast", file]);
        assert_eq!(good(&trained).lines().count(), 2, "{}", trained.stdout);
    }
    let info = run(folder.path(), &["info", "sparse/model"]);
    assert!(good(&info).contains("4 a layer, 2 for each patch"), "{}", info.stdout);
    let wave: String = (0..120).map(|row| format!("{}\n", 10 + row % 12)).collect();
    write("wave.csv", &format!("y\n{wave}"));
    let forecast = ["forecast", "wave.csv", "--model", "sparse/model", "--quantile", "0.1", "--json"];
    let answer: serde_json::Value = serde_json::from_str(good(&run(folder.path(), &forecast))).unwrap();
    assert_eq!(answer["forecasts"][0]["quantiles"][0]["level"], 0.1);
    let plan = "origins = 3\ncontext = 64\n[[series]]\nname = \"wave\"\nfile = \"wave.csv\"\ncolumn = \"y\"\n\
                period = 12\nhorizon = 6\n";
    write("plan.toml", plan);
    let evaluate = |more: &[&str]| run(folder.path(), &[&["eval", "forecast", "plan.toml"][..], more].concat());
    let measured = evaluate(&["--model", "sparse/model", "--samples", "10", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(good(&measured)).unwrap();
    let distribution = &answer["series"][0]["distribution"];
    assert_eq!((distribution["origins"].as_u64(), distribution["model"]["count"].as_u64()), (Some(3), Some(18)));
    assert_eq!(distribution["model"]["levels"].as_array().unwrap().len(), 9);
    assert!(distribution["model"]["sample_crps"].as_f64().unwrap() > 0.0, "{distribution}");
    assert_eq!(distribution["model"]["inside"]["level"], 0.8);
    // Seasonal-naive never errs on this series, and says so.
    assert_eq!(distribution["seasonal_naive"]["crps"], 0.0);
    // The built-in model has its intervals measured instead, and no samples.
    let measured = evaluate(&["--crps", "--plain"]);
    assert!(good(&measured).contains("CRPS") && measured.stdout.contains("inside 80 %"), "{}", measured.stdout);
    // Another period is a worse baseline: there is a worst and a best case to draw.
    write("other.toml", &plan.replace("period = 12", "period = 5"));
    let drawn = run(
        folder.path(),
        &["eval", "forecast", "other.toml", "--model", "sparse/model", "--exact", "--plot", "cases.svg"],
    );
    assert!(good(&drawn).contains("seasonal-naive"));
    let picture = std::fs::read_to_string(folder.path().join("cases.svg")).unwrap();
    assert!(
        picture.contains("worst 1: MASE") && picture.contains("best 1: MASE") && picture.contains("wave, from row")
    );
    let refused = evaluate(&["--plot", "cases.png"]);
    assert!(refused.code == Some(1) && refused.stderr.contains(".svg"), "{}", refused.stderr);
    let refused = evaluate(&["--samples", "5"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("Moirai-MoE"), "{}", refused.stderr);
    covariates(folder.path());
    // A slip of the pen in the model's table.
    write("slip.toml", &moirai("", 1, "slip").replace("d_ff", "d_fff"));
    let refused = run(folder.path(), &["train", "forecast", "slip.toml"]);
    assert!(refused.stderr.contains("slip.toml: line") && refused.stderr.contains("`d_fff`"), "{}", refused.stderr);
}

#[test]
fn the_recipes_of_moirai_fit_each_other() {
    let read = |name: &str| -> moesaic_models::train::moirai::TrainConfig {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/moirai").join(name);
        moesaic::settings::read(&path).unwrap()
    };
    let (dense, sparse) = (read("dense.toml"), read("sparse.toml"));
    dense.validate().unwrap();
    sparse.validate().unwrap();
    assert_eq!(sparse.init, Some(dense.plan.out.join("model")));
    let (num_experts, num_experts_per_token) = (dense.model.num_experts, dense.model.num_experts_per_token);
    assert_eq!((num_experts, num_experts_per_token), (1, 1));
    assert_eq!(
        dense.model,
        moesaic_models::moirai_moe::Config { num_experts, num_experts_per_token, ..sparse.model.clone() }
    );
    // Two bytes each, and the centroids: below 3 MB.
    let centroids = sparse.model.num_layers * sparse.model.num_experts * sparse.model.d_model;
    let parameters = sparse.model.parameters();
    assert!(2 * (parameters.total + centroids) < 3_000_000 && parameters.total > 1_200_000, "{parameters:?}");
}

/// Forecasts of series that go together, with the model in `sparse/model`.
fn covariates(folder: &Path) {
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    let day = |t: usize| format!("2024-01-{:02}", t + 1);
    let rows = |from: usize, to: usize, row: &dyn Fn(usize) -> String| -> String {
        (from..to).map(|t| format!("{},{}\n", day(t), row(t))).collect()
    };
    let known = |t: usize| format!("{},{}", t % 5, 3 * (t % 4));
    let history = rows(0, 20, &|t| format!("{},{},{}", t % 7, (t + 3) % 6, known(t)));
    let head = "day,a,b,price,rain\n";
    write("sales.csv", &format!("{head}{history}"));
    let forecast = |more: &[&str]| {
        let first = ["forecast", "sales.csv", "--model", "sparse/model", "--horizon", "4", "--json", "--column", "a"];
        run(folder, &[&first[..], more].concat())
    };
    let values = |more: &[&str]| -> Vec<Vec<serde_json::Value>> {
        let answer: serde_json::Value = serde_json::from_str(good(&forecast(more))).unwrap();
        let all = answer["forecasts"].as_array().unwrap().iter();
        all.map(|forecast| forecast["values"].as_array().unwrap().clone()).collect()
    };
    let alone = values(&[]);
    let past = values(&["--covariate", "price", "--covariate", "rain"]);
    assert!(alone.len() == 1 && past.len() == 1 && past[0].len() == 4 && past != alone);
    // Two series, each alone with the covariate, and both together.
    let apart = values(&["--column", "b", "--covariate", "price"]);
    let together = values(&["--column", "b", "--covariate", "price", "--together"]);
    assert!(apart.len() == 2 && together.len() == 2 && apart != together);
    // Known ahead, in a file or in rows of the table after the end of what is forecast: the same.
    write("ahead.csv", &format!("day,price\n{}", rows(20, 24, &|t| (9 * t).to_string())));
    let ahead = values(&["--covariate", "price", "--covariate", "rain", "--future", "ahead.csv"]);
    let more = rows(20, 24, &|t| format!(",,{},", 9 * t));
    write("sales.csv", &format!("{head}{history}{more}"));
    assert_eq!(values(&["--covariate", "price", "--covariate", "rain"]), ahead);
    // What is known ahead counts.
    write("ahead.csv", &format!("day,price\n{}", rows(20, 24, &|t| (t % 5).to_string())));
    write("sales.csv", &format!("{head}{history}"));
    let usual = values(&["--covariate", "price", "--covariate", "rain", "--future", "ahead.csv"]);
    assert!(usual != ahead && usual != past);
    for (what, arguments, part) in [
        (
            "stops early",
            &["--covariate", "price", "--future", "short.csv"][..],
            "series 'price': has 22 values and stops before",
        ),
        ("other times", &["--covariate", "price", "--future", "old.csv"], "none of the table's steps"),
        ("other columns", &["--covariate", "rain", "--future", "short.csv"], "no column of numbers with the name"),
        ("no such column", &["--covariate", "wind"], "wind"),
        ("nothing left", &["--covariate", "a"], "nothing is left to forecast"),
        ("no covariate", &["--future", "short.csv"], "--covariate"),
    ] {
        write("short.csv", &format!("day,price\n{}", rows(20, 22, &|t| t.to_string())));
        write("old.csv", "day,price\n2023-01-01,4\n2023-01-02,5\n");
        let refused = forecast(arguments);
        assert!(refused.code != Some(0) && refused.stderr.contains(part), "{what}: {}", refused.stderr);
    }
    let refused = run(folder, &["forecast", "sales.csv", "--column", "a", "--covariate", "price"]);
    assert!(refused.stderr.contains("one variable at a time"), "{}", refused.stderr);
}

#[test]
fn the_model_of_this_repository_knows_seasons_and_its_own_uncertainty() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = moesaic::Forecaster::from_dir(root.join("assets/moirai")).unwrap();
    let file = root.join("examples/data/elnino.csv");
    let series = moesaic::Table::read_csv(&file, &moesaic::TableOptions::default()).unwrap().series.remove(0);
    // Four years ahead from eight origins.
    let (horizon, mut inside, mut errors) = (48, 0usize, [0f32; 2]);
    let options = moesaic::ForecastOptions::default().quantile(0.1).quantile(0.9);
    let pasts: Vec<moesaic::Series> = (0..8)
        .map(|i| moesaic::Series::new("past", &series.values[..series.values.len() - horizon * (8 - i)]))
        .collect();
    for (past, forecast) in pasts.iter().zip(model.forecast(&pasts, horizon, &options).unwrap()) {
        let start = past.values.len();
        for (k, actual) in series.values[start..start + horizon].iter().enumerate() {
            let [low, high] = [0, 1].map(|q: usize| forecast.quantiles[q].values[k]);
            inside += usize::from((low..=high).contains(actual));
            errors[0] += (forecast.values[k] - actual).abs();
            errors[1] += (past.values[start - 12 + k % 12] - actual).abs();
        }
    }
    assert!((0.7..0.95).contains(&(inside as f32 / (8 * horizon) as f32)), "{inside} of {}", 8 * horizon);
    assert!(errors[0] < 0.9 * errors[1], "{errors:?}");
}
