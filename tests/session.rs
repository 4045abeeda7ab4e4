//! A series that grows while it is forecast, with the built-in model.

use moesaic::{ForecastOptions, Forecaster, Missing, Series};

fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|t| 10.0 + 3.0 * (t as f32 * 0.7).sin()).collect()
}

#[test]
fn a_session_goes_on_where_a_history_would() {
    let forecaster = Forecaster::embedded().unwrap();
    let options = ForecastOptions::default();
    let all = wave(80);
    let mut session = forecaster.session(&Series::new("y", &all[..60]), 12, &options).unwrap();
    for part in [&all[60..61], &all[61..70], &[], &all[70..80]] {
        session.push(part).unwrap();
    }
    let forecast = session.forecast(12).unwrap();
    let whole = forecaster.forecast(&[Series::new("y", &all[..])], 12, &options.clone().combine(false)).unwrap();
    // The scales of 60 and of 80 values of a wave are nearly one.
    for (a, b) in forecast.values.iter().zip(&whole[0].values) {
        assert!((a - b).abs() < 0.25, "{a} {b}");
    }
    assert_eq!((&forecast.timestamps, forecast.start), (&whole[0].timestamps, 80));
    assert_eq!((forecast.context, forecast.filled, session.rows()), (80, 0, 80));
    // A level that jumps renews the scale: then both are the same up to rounding.
    let jumped: Vec<f32> = all.iter().copied().chain((0..40).map(|t| 200.0 + (t % 4) as f32)).collect();
    session.push(&jumped[80..]).unwrap();
    let forecast = session.forecast(12).unwrap();
    let whole = forecaster.forecast(&[Series::new("y", jumped)], 12, &options.combine(false)).unwrap();
    for (a, b) in forecast.values.iter().zip(&whole[0].values) {
        assert!((a - b).abs() < 1e-2, "{a} {b}");
    }
}

#[test]
fn missing_values_wait_for_the_next() {
    let forecaster = Forecaster::embedded().unwrap();
    let options = ForecastOptions::default();
    let nan = f32::NAN;
    let history = Series::new("y", [&wave(40)[..], &[nan]].concat());
    let mut session = forecaster.session(&history, 5, &options).unwrap();
    session.push(&[nan]).unwrap();
    assert_eq!((session.forecast(5).unwrap().start, session.rows()), (40, 42));
    session.push(&[8.0, nan]).unwrap();
    let forecast = session.forecast(5).unwrap();
    assert_eq!((forecast.start, forecast.context, forecast.filled, session.rows()), (43, 43, 2, 44));
    // The same as a history that was filled by hand.
    let last = wave(40)[39];
    let filled: Vec<f32> = (1..=3).map(|step| last + (8.0 - last) * step as f32 / 3.0).collect();
    let mut by_hand = forecaster.session(&Series::new("y", wave(40)), 5, &options).unwrap();
    by_hand.push(&filled).unwrap();
    let by_hand = by_hand.forecast(5).unwrap();
    let apart = by_hand.values.iter().zip(&forecast.values).map(|(a, b)| (a - b).abs());
    assert!(apart.fold(0.0, f32::max) < 1e-4);
    // Nothing changes where something is wrong.
    let message = session.push(&[1.0, f32::INFINITY]).unwrap_err().to_string();
    assert!(message.contains("value 46 is infinite"), "{message}");
    assert_eq!(session.forecast(5).unwrap(), forecast);
    assert!(session.forecast(6).is_err() && session.forecast(0).is_err());
    let strict = ForecastOptions::default().missing(Missing::Refuse);
    let mut session = forecaster.session(&Series::new("y", wave(40)), 5, &strict).unwrap();
    session.push(&[nan]).unwrap();
    assert!(session.push(&[1.0]).unwrap_err().to_string().contains("value 41 is missing"));
    for options in [options.clone().interval(0.9), options.clone().combine(true), options.quantile(0.5)] {
        assert!(forecaster.session(&Series::new("y", wave(40)), 5, &options).is_err());
    }
}
