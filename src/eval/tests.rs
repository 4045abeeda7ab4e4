use super::*;
use std::fs;

/// A plan of one file `y.csv` with the given values ("" is missing) in a scratch folder.
fn plan(values: &[&str], head: &str, case: &str) -> (tempfile::TempDir, Result<Plan>) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("y.csv"), format!("step,y\n{}", numbered(values))).unwrap();
    let text = format!("{head}\n[[series]]\nname = \"y\"\nfile = \"y.csv\"\ncolumn = \"y\"\n{case}\n");
    fs::write(dir.path().join("plan.toml"), text).unwrap();
    let plan = Plan::read(dir.path().join("plan.toml"));
    (dir, plan)
}

fn numbered(values: &[&str]) -> String {
    values.iter().enumerate().map(|(t, v)| format!("{t},{v}\n")).collect()
}

const HEAD: &str = "origins = 2\ncontext = 4";

#[test]
fn a_case_by_hand() {
    // Length 8, horizon 2: origins 4 and 6.
    let (_dir, plan) = plan(&["-2", "3", "2", "6", "4", "", "5", "8"], HEAD, "period = 2\nhorizon = 2");
    let mut seen = Vec::new();
    let result = plan.unwrap().evaluate("fives", |request| {
        seen.extend(request.histories().map(<[f32]>::to_vec));
        assert_eq!(request.pasts[1], [-2.0, 3.0, 2.0, 6.0, 4.0, 4.0]);
        let interval = Interval { level: 0.9, lower: vec![4.0; 2], upper: vec![5.0; 2] };
        Ok(vec![
            Answer { values: vec![5.0; request.horizon], interval: Some(interval), ..Answer::default() };
            request.pasts.len()
        ])
    });
    // The second history is cut to 4 values and its gap, at the end, holds the last value.
    assert_eq!(seen, [vec![-2.0, 3.0, 2.0, 6.0], vec![2.0, 6.0, 4.0, 4.0]]);
    let result = result.unwrap();
    let series = &result.series[0];
    assert_eq!((series.length, series.missing, series.origins), (8, 1, 2));
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    // Origin 4: scale (|2+2| + |6-3|) / 2 = 3.5, actual 4 and missing. Origin 6: scale of all values before it, not of the
    // cut history, (4 + 3 + |4-2|) / 3 = 3, actual 5 and 8. The model: |4-5| / 3.5; (0 + 3) / 2 / 3.
    near(series.model.mase, (2.0 / 7.0 + 0.5) / 2.0);
    // 4 and 5 lie inside, 8 does not; one value of the first origin, two of the second.
    let interval = series.interval.unwrap();
    near(interval.covered, 2.0 / 3.0);
    near(interval.width, (1.0 / 3.5 + 2.0 / 3.0) / 3.0);
    let mases: Vec<f64> = series.baselines.iter().map(|b| b.score.mase).collect();
    // Seasonal-naive: 2 against 4; 4 and 4 against 5 and 8. Naive: 6 against 4; 4 and 4.
    let naive = (4.0 / 7.0 + 5.0 / 6.0) / 2.0;
    near(mases[0], naive);
    near(mases[1], naive);
    // Drift: 6 + 8/3 against 4; 4 + 2/3 and 4 + 4/3 against 5 and 8.
    near(mases[2], (14.0 / 3.0 / 3.5 + 1.5 / 3.0) / 2.0);
    assert_eq!(series.origins_won, 2);
    near(series.ratio.unwrap(), series.model.mase / naive);
    // Errors 1, 0, 3: RMSE sqrt(10/3); sMAPE 200 (1/9 + 0 + 3/13) / 3.
    assert!((series.model.rmse - (10.0f64 / 3.0).sqrt()).abs() < 1e-9);
    assert!((series.model.smape - 200.0 * (1.0 / 9.0 + 3.0 / 13.0) / 3.0).abs() < 1e-9);
    // The origin where the model's error is half of seasonal-naive's, and the one where it is 0.6 of it, with what came.
    let [worst, best] = result.examples(3);
    let ([worst], [best]) = (&worst[..], &best[..]) else { panic!("one of each") };
    near(worst.ratio(), 0.6);
    near(best.ratio(), 0.5);
    assert_eq!(
        (worst.series.name.as_str(), &worst.series.values[..]),
        ("y, from row 6", &[2.0, 6.0, 4.0, 4.0, 5.0, 8.0][..])
    );
    assert_eq!((worst.forecast.start, worst.forecast.values.len(), worst.forecast.intervals[0].level), (4, 2, 0.9));
    assert!(result.examples(0).iter().all(Vec::is_empty));
    let summary = &result.summary[0];
    assert_eq!((summary.won, summary.lost, summary.equal), (1, 0, 0));
    near(summary.ratio.unwrap(), series.model.mase / naive);
    let text = result.to_string();
    assert!(text.contains("MASE fives") && text.contains("| y ") && text.contains("0.559"), "{text}");
    let lines: Vec<usize> = text.lines().take(3).map(|line| line.chars().count()).collect();
    assert!(lines.iter().all(|n| *n == lines[0]), "{text}");
    assert!(serde_json::to_string(&result).unwrap().contains(r#"{"baseline":"seasonal-naive","mase":"#));
}

#[test]
fn origins_spread_over_the_second_half() {
    let values: Vec<String> = (0..40).map(|t| (t * t % 7).to_string()).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let (_dir, plan) = plan(&values, "origins = 3\ncontext = 512", "period = 1\nhorizon = 8");
    let mut lengths = Vec::new();
    let result = plan.unwrap().evaluate("m", |request| {
        lengths.extend(request.pasts.iter().map(Vec::len));
        let values = |h: &[f32]| Baseline::SeasonalNaive.forecast(h, 1, request.horizon);
        let answer = |h: &[f32]| Answer { values: values(h), ..Answer::default() };
        Ok(request.histories().map(answer).collect())
    });
    assert_eq!(lengths, [20, 26, 32]);
    let result = result.unwrap();
    // The model is a baseline here, and so are the other two where the period is 1.
    assert_eq!(result.series[0].ratio, Some(1.0));
    assert_eq!((result.summary[1].equal, result.summary[0].equal, result.series[0].origins_won), (1, 1, 0));
}

#[test]
fn the_zero_shot_plan_of_this_repository_is_sound() {
    let plan = Plan::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/zero_shot.toml")).unwrap();
    assert_eq!((plan.series.len(), plan.origins, plan.context), (12, 10, 512));
    for case in &plan.series {
        assert!(case.period <= plan.context, "{}", case.name);
        // Those in the repository; the others are fetched.
        if plan.folder.join(&case.file).exists() {
            let values = plan.load(case).unwrap();
            assert_eq!(case.horizon, (values.len() / 5).min(96), "{}", case.name);
            assert_eq!(plan.cuts(case, &values).unwrap().len(), 10, "{}", case.name);
        }
    }
}

#[test]
fn errors_say_what_to_do() {
    let always = |values: Vec<f32>| {
        move |r: &Request| Ok(vec![Answer { values: values.clone(), ..Answer::default() }; r.pasts.len()])
    };
    let ok = |r: &Request| always(vec![0.0; r.horizon])(r);
    let message = |values: &[&str], head: &str, case: &str| {
        let (_dir, plan) = plan(values, head, case);
        plan.and_then(|plan| plan.evaluate("m", ok)).unwrap_err().to_string()
    };
    let good = ["1", "2", "4", "7", "1", "3"];
    let case = "period = 1\nhorizon = 2";
    for (text, expected) in [
        (message(&good, "origins = 0\ncontext = 4", case), "origins is 0"),
        (message(&good, "origins = 2\ncontext = 4\nspeed = 3", case), "line 3: unknown field `speed`"),
        (message(&good, HEAD, "period = 0\nhorizon = 2"), "the period of 'y' is 0"),
        (message(&good, HEAD, "period = 1\nhorizon = 4"), "6 values are too few for a horizon of 4"),
        (message(&["2"; 6], HEAD, case), "every history is constant"),
        (message(&good, HEAD, "period = 1"), "missing field `horizon`"),
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let (dir, plan) = plan(&good, &format!("{HEAD}\nfetch = \"make series\""), case);
    let plan = plan.unwrap();
    for (forecast, expected) in [(vec![0.0; 3], "another number"), (vec![f32::NAN; 2], "not finite")] {
        let error = plan.evaluate("m", always(forecast)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    fs::remove_file(dir.path().join("y.csv")).unwrap();
    let error = plan.evaluate("m", ok).unwrap_err().to_string();
    assert!(error.contains("y.csv") && error.contains("make series"), "{error}");
    assert!(Plan::read(dir.path().join("gone.toml")).is_err());
}
