//! The measures of forecast distributions: against GluonTS, utilsforecast and properscoring, and by hand.

use std::fs;
use std::path::Path;

use moesaic::Quantile;
use moesaic::eval::{Answer, DistributionResult, LEVELS, Plan};
use serde_json::Value;

/// The distributions of a model on one series ("" is missing), with an answer for each origin.
fn measure(values: &[String], head: &str, case: &str, answers: Vec<Answer>) -> Option<DistributionResult> {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = values.iter().enumerate().map(|(t, v)| format!("{t},{v}\n")).collect();
    fs::write(dir.path().join("y.csv"), format!("step,y\n{rows}")).unwrap();
    let text = format!("{head}\n[[series]]\nname = \"y\"\nfile = \"y.csv\"\ncolumn = \"y\"\n{case}\n");
    let plan = Plan::parse(dir.path().join("plan.toml"), text.as_bytes()).unwrap();
    let result = plan.evaluate("m", |request| {
        assert_eq!(request.pasts.len(), answers.len());
        let point = vec![0.0; request.horizon];
        Ok(answers.iter().map(|answer| Answer { values: point.clone(), ..answer.clone() }).collect())
    });
    let result = result.unwrap();
    assert_eq!(result.distribution.is_some(), result.series[0].distribution.is_some());
    result.series[0].distribution.clone()
}

fn near(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-6, "{a} is not {b}");
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn the_measures_are_those_of_gluonts_utilsforecast_and_properscoring() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/crps.json");
    let case: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(numbers(&case["levels"]), LEVELS);
    // Twelve values of history; six and again six to be forecast, from origins 12 and 18.
    let actual = case["actual"].as_array().unwrap().iter().flat_map(numbers);
    let values: Vec<String> = (0..12).map(f64::from).chain(actual).map(|v| v.to_string()).collect();
    let path = |v: &Value| -> Vec<f32> { numbers(v).into_iter().map(|v| v as f32).collect() };
    let paths = |v: &Value| -> Vec<Vec<f32>> { v.as_array().unwrap().iter().map(path).collect() };
    let of_samples = |samples| Answer { samples, ..Answer::default() };
    let samples = case["samples"].as_array().unwrap().iter().map(paths);
    let answers: Vec<Answer> = samples.map(of_samples).collect();
    let (head, period) = ("origins = 2\ncontext = 64", "period = 1\nhorizon = 6");
    let found = measure(&values, head, period, answers.clone()).unwrap();
    assert_eq!((found.origins, found.model.count), (2, 12));
    near(found.model.crps, case["gluonts"]["mean_weighted_sum_quantile_loss"].as_f64().unwrap());
    near(found.model.crps, case["utilsforecast"]["scaled_crps"].as_f64().unwrap());
    let losses = numbers(&case["gluonts"]["weighted_sum_quantile_loss"]);
    let coverages = numbers(&case["gluonts"]["coverage"]);
    assert_eq!(found.model.levels.len(), 9);
    for (level, (loss, below)) in found.model.levels.iter().zip(losses.into_iter().zip(coverages)) {
        near(level.loss, loss);
        near(level.below, below);
    }
    let inside = found.model.inside.unwrap();
    assert_eq!((inside.level, inside.count), (0.8, 12));
    near(inside.covered, case["utilsforecast"]["coverage_80"].as_f64().unwrap());
    near(found.model.sample_crps.unwrap(), case["properscoring"]["crps_ensemble"].as_f64().unwrap());
    // The same quantiles given as such: of 25 ascending samples those at 24 q, rounded.
    let quantiles = |answer: &Answer| {
        let at = |step: usize, level: f64| {
            let mut all: Vec<f32> = answer.samples.iter().map(|path| path[step]).collect();
            all.sort_by(f32::total_cmp);
            all[(24.0 * level).round() as usize]
        };
        let quantile = |level| Quantile::new(level, (0..6).map(|step| at(step, level)).collect::<Vec<_>>());
        Answer { quantiles: LEVELS.map(quantile).to_vec(), ..Answer::default() }
    };
    let given = measure(&values, head, period, answers.iter().map(quantiles).collect()).unwrap();
    assert_eq!((given.model.crps, given.model.sample_crps), (found.model.crps, None));
    assert_eq!(given.seasonal_naive, found.seasonal_naive);
}

#[test]
fn missing_values_are_left_out_and_seasonal_naive_spreads_as_it_erred() {
    let values = ["1", "2", "1", "2", "2", "", "-4", "9"].map(String::from);
    let quantiles = vec![Quantile::new(0.25, [1.0, -1.0, -1.0]), Quantile::new(0.75, [3.0, 1.0, 1.0])];
    let answer = Answer { quantiles, ..Answer::default() };
    let (head, case) = ("origins = 1\ncontext = 64", "period = 1\nhorizon = 3");
    let found = measure(&values, head, case, vec![answer]).unwrap();
    // 2 lies 1 above the lower quantile and 1 below the upper: a quarter of twice each. -4 lies 3 and 5 below: 3/4 and 1/4 of
    // twice. The sizes add up to 6.
    assert_eq!((found.origins, found.model.count), (1, 2));
    near(found.model.levels[0].loss, (0.5 + 4.5) / 6.0);
    near(found.model.levels[1].loss, (0.5 + 2.5) / 6.0);
    near(found.model.crps, 4.0 / 6.0);
    assert_eq!((found.model.levels[0].below, found.model.levels[1].below), (0.5, 1.0));
    let inside = found.model.inside.unwrap();
    assert_eq!((inside.level, inside.covered), (0.5, 0.5));
    // Seasonal-naive says 2, and erred by -1, 1 and 1: its quartiles are 0 and 1 away, and grow with the square root of the step.
    near(found.seasonal_naive.levels[0].loss, (0.0 + 2.0 * 6.0 * 0.75) / 6.0);
    near(found.seasonal_naive.levels[1].loss, (0.5 + 2.0 * (6.0 + 3f64.sqrt()) * 0.25) / 6.0);
    near(found.ratio.unwrap(), found.model.crps / found.seasonal_naive.crps);
    // No distribution at all.
    assert_eq!(measure(&values, head, case, vec![Answer::default()]), None);
}

#[test]
fn errors_as_far_ahead_count_where_there_are_enough() {
    let values: Vec<String> = (0..60).map(|t| (t * t).to_string()).collect();
    let answer = Answer { quantiles: vec![Quantile::new(0.5, [900.0, 961.0, 1024.0])], ..Answer::default() };
    let found = measure(&values, "origins = 1\ncontext = 64", "period = 1\nhorizon = 3", vec![answer]).unwrap();
    assert_eq!((found.model.crps, found.ratio), (0.0, Some(0.0)));
    // Squares one, two and three apart differ by 29, 58 and 87 at the median of the first thirty.
    let missed = (900.0 - 841.0 - 29.0) + (961.0 - 841.0 - 58.0) + (1024.0 - 841.0 - 87.0);
    near(found.seasonal_naive.crps, missed / (900.0 + 961.0 + 1024.0));
    assert!(found.model.inside.is_none(), "one level has nothing between");
}

#[test]
fn levels_that_differ_between_origins_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..24).map(|t| format!("{}\n", t % 5)).collect();
    fs::write(dir.path().join("y.csv"), format!("y\n{rows}")).unwrap();
    let text = "origins = 2\ncontext = 64\n[[series]]\nname = \"y\"\nfile = \"y.csv\"\ncolumn = \"y\"\nperiod = 5\nhorizon = 2\n";
    let plan = Plan::parse(dir.path().join("plan.toml"), text.as_bytes()).unwrap();
    let answer = |level: f64, values: Vec<f32>| Answer {
        values: vec![1.0; 2],
        quantiles: vec![Quantile::new(level, values)],
        ..Answer::default()
    };
    let said = |answers: Vec<Answer>| plan.evaluate("m", |_| Ok(answers.clone())).unwrap_err().to_string();
    let other = said(vec![answer(0.1, vec![1.0; 2]), answer(0.2, vec![1.0; 2])]);
    assert!(other.contains("other levels"), "{other}");
    let short = said(vec![answer(0.1, vec![1.0; 2]), answer(0.1, vec![1.0])]);
    assert!(short.contains("another number of values"), "{short}");
    let broken = said(vec![answer(0.1, vec![1.0; 2]), answer(0.1, vec![f32::NAN; 2])]);
    assert!(broken.contains("not finite"), "{broken}");
}
