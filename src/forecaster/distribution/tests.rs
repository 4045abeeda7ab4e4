//! A Moirai-MoE with random weights behind the forecaster: what goes in and out, not how good it is.

use std::path::Path;

use candle_core::{DType, Device};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::save;
use moesaic_models::moirai_moe::{Config, MoiraiMoe};

use crate::{Calendar, Error, Forecast, ForecastOptions, Forecaster, Frequency, Group, ModelInfo, Series};

const CONFIG: &str = r#"{
    "d_model": 64, "d_ff": 4, "num_layers": 1, "patch_sizes": [8], "max_seq_len": 32, "attn_dropout_p": 0.0, "dropout_p": 0.0,
    "scaling": true, "distr_output": {"_target_": "uni2ts.distribution.mixture.MixtureOutput", "components": [
        {"_target_": "uni2ts.distribution.student_t.StudentTOutput"},
        {"_target_": "uni2ts.distribution.normal.NormalFixedScaleOutput", "scale": 0.001},
        {"_target_": "uni2ts.distribution.negative_binomial.NegativeBinomialOutput"},
        {"_target_": "uni2ts.distribution.log_normal.LogNormalOutput"}
    ]}
}"#;

fn write_model(dir: &Path) {
    let params = Params::init(3, &Device::Cpu);
    MoiraiMoe::new(Config::from_json(CONFIG).unwrap(), &params).unwrap();
    let mut tensors = params.published(|var| Some(var.as_tensor().clone())).unwrap();
    tensors.extend(params.kept(DType::F64).unwrap());
    save(&dir.join("model.safetensors"), &tensors, &[]).unwrap();
    std::fs::write(dir.join("config.json"), CONFIG).unwrap();
}

fn forecaster() -> Forecaster {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    Forecaster::from_dir(dir.path()).unwrap()
}

fn wave(name: &str, len: usize) -> Series {
    Series::new(name, (0..len).map(|t| 10.0 + 3.0 * (t as f32 * 0.7).sin()).collect::<Vec<_>>())
}

fn all_finite(forecast: &Forecast) -> bool {
    let quantiles = forecast.quantiles.iter().flat_map(|q| &q.values);
    let ends = forecast.intervals.iter().flat_map(|i| i.lower.iter().chain(&i.upper));
    let values = forecast.values.iter().chain(&forecast.mean).chain(quantiles).chain(ends);
    values.chain(forecast.samples.iter().flatten()).all(|v| v.is_finite())
}

#[test]
fn a_folder_of_moirai_is_recognised_and_described() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    let info = ModelInfo::of_dir(dir.path()).unwrap();
    assert_eq!((info.architecture.as_str(), info.experts, info.experts_per_token), ("moirai_moe", 32, 2));
    assert_eq!((info.shared_experts, &info.horizons[..], info.positions), (0, &[8][..], 256));
    assert_eq!(info.dtypes.get("f64"), Some(&1));
    assert_eq!(Forecaster::from_dir(dir.path()).unwrap().max_horizon(), 128);
    // A distribution that is not known is refused with its file.
    std::fs::write(dir.path().join("config.json"), CONFIG.replace("MixtureOutput", "System")).unwrap();
    let error = Forecaster::from_dir(dir.path()).err().unwrap();
    assert!(matches!(error, Error::Config { .. }), "{error:?}");
    assert!(error.to_string().contains("config.json") && error.to_string().contains("System"), "{error}");
}

#[test]
fn forecasts_have_quantiles_intervals_and_paths() {
    let model = forecaster();
    let calendar = Calendar::new("2024-01-31".parse().unwrap(), Frequency::MONTH_END);
    let mut series = wave("a", 60).with_calendar(calendar);
    (series.values[0], series.values[7], series.values[59]) = (f32::NAN, f32::NAN, f32::NAN);
    let options = ForecastOptions::default().quantile(0.9).quantile(0.1).interval(0.5).samples(7).seed(1).bounds(false);
    let forecast = model.forecast(std::slice::from_ref(&series), 20, &options).unwrap().remove(0);
    // The last value is missing, so the forecast begins with it; the first one says nothing.
    assert_eq!(forecast.timestamps[0].to_string(), "2028-12-31");
    assert_eq!((forecast.start, forecast.context, forecast.filled), (59, 58, 1));
    assert_eq!((forecast.values.len(), forecast.mean.len()), (20, 20));
    assert_eq!((forecast.samples.len(), forecast.samples[6].len()), (7, 20));
    let [high, low] = &forecast.quantiles[..] else { panic!("{:?}", forecast.quantiles) };
    assert_eq!((high.level, low.level, forecast.intervals[0].level), (0.9, 0.1, 0.5));
    for k in 0..20 {
        let (inner, median) = (&forecast.intervals[0], forecast.values[k]);
        assert!(low.values[k] <= inner.lower[k] && inner.lower[k] <= median, "{k}");
        assert!(median <= inner.upper[k] && inner.upper[k] <= high.values[k], "{k}");
    }
    assert!(all_finite(&forecast));
    let json = serde_json::to_string(&forecast).unwrap();
    assert!(json.contains(r#""quantiles":[{"level":0.9,"values":["#) && json.contains(r#""samples":[["#), "{json}");
    // The same again; other paths with another seed; the first patch needs none.
    let again = |options: &ForecastOptions| model.forecast(&[series.clone()], 20, options).unwrap().remove(0);
    assert_eq!(again(&options), forecast);
    let other = again(&options.clone().seed(2));
    assert!(other.samples != forecast.samples && other.values[..8] == forecast.values[..8]);
    let exact = again(&options.clone().exact(true));
    assert_eq!((&exact.values[..8], &exact.samples[0][..8]), (&forecast.values[..8], &forecast.samples[0][..8]));
    let plain = again(&ForecastOptions::default());
    assert!(plain.quantiles.is_empty() && plain.samples.is_empty() && plain.intervals.is_empty());
}

#[test]
fn company_does_not_matter_and_odd_series_are_forecast() {
    let model = forecaster();
    let mut series: Vec<Series> = (1..12).map(|len| wave(&format!("s{len}"), len * 7)).collect();
    series.push(Series::new("flat", [4.5; 20]));
    series.push(Series::new("one", [f32::NAN, 2.0, f32::NAN]));
    for scale in [1e-30f32, 1e30] {
        series.push(Series::new("scaled", wave("", 50).values.iter().map(|v| v * scale).collect::<Vec<_>>()));
    }
    let options = ForecastOptions::default().interval(0.8).samples(3);
    let together = model.forecast(&series, 13, &options).unwrap();
    for (one, expected) in series.iter().zip(&together) {
        assert_eq!(&model.forecast(std::slice::from_ref(one), 13, &options).unwrap()[0], expected);
        assert!(all_finite(expected) && expected.samples.len() == 3, "{}", one.name);
    }
    let flat = &together[11];
    assert!(flat.values.iter().chain(&flat.intervals[0].lower).chain(&flat.samples[2]).all(|v| *v == 4.5));
    let low = Series::new("low", (0..60).map(|t| (t as f32).sin() - 3.0).collect::<Vec<_>>());
    let raised = model.forecast(&[low], 8, &options.non_negative(true)).unwrap().remove(0);
    assert!(raised.samples.iter().flatten().chain(&raised.intervals[0].lower).all(|v| *v >= 0.0));
}

#[test]
fn series_of_a_group_see_each_other_and_covariates() {
    let model = forecaster();
    let options = ForecastOptions::default();
    let group = |north: f32, price: f32| {
        let mut other = wave("north", 40);
        other.values[39] += north;
        let mut known = wave("price", 52);
        known.values[45] += price;
        Group::new([wave("south", 40), other]).with_known([known]).with_past([wave("rain", 40)])
    };
    let of = |group: &Group| model.forecast_groups(std::slice::from_ref(group), 12, &options).unwrap().remove(0);
    let plain = of(&group(0.0, 0.0));
    assert_eq!(plain.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["south", "north"]);
    assert!(plain.iter().all(|f| f.values.len() == 12 && f.start == 40 && all_finite(f)));
    assert_eq!(plain[0].timestamps[0].to_string(), "41");
    assert_ne!(plain[0].values, of(&group(5.0, 0.0))[0].values);
    assert_ne!(plain[0].values, of(&group(0.0, 5.0))[0].values);
    // Groups of other shapes beside it change nothing.
    let both = [Group::new([wave("alone", 9)]), group(0.0, 0.0)];
    assert_eq!(model.forecast_groups(&both, 12, &options).unwrap()[1], plain);

    let message = |group: Group| model.forecast_groups(&[group], 12, &options).unwrap_err().to_string();
    assert!(message(Group::default()).contains("no series to continue"));
    let short = message(Group::new([wave("a", 40)]).with_known([wave("price", 51)]));
    assert!(short.starts_with("series 'price': has 51 values and stops before the horizon"), "{short}");
    let uneven = message(Group::new([wave("a", 40), wave("b", 39)]));
    assert!(uneven.starts_with("series 'b': has 39 values, 'a' has 40"), "{uneven}");
    assert!(message(Group::new([wave("a", 40)]).with_past([wave("p", 41)])).contains("'p': has 41 values"));
    assert!(message(Group::new([Series::new("a", [f32::NAN; 9])])).contains("only missing values"));
    let infinite = Group::new([wave("a", 2)]).with_past([Series::new("p", [1.0, f32::INFINITY])]);
    assert!(message(infinite).contains("value 2 is infinite"));
    let old = Series::new("a", [vec![1.0, 2.0], vec![f32::NAN; 600]].concat());
    assert!(message(Group::new([old])).contains("no value among the last"), "old");
}

#[test]
fn what_a_model_cannot_give_is_refused() {
    let (moirai, time_moe) = (forecaster(), Forecaster::embedded().unwrap());
    let series = [wave("y", 30)];
    let options = ForecastOptions::default();
    for (options, words) in [
        (options.clone().combine(true), "are not combined"),
        (options.clone().samples(0), "0 sample paths"),
        (options.clone().samples(1_000_000), "1000000 sample paths"),
        (options.clone().quantile(1.0), "quantile level 1 is not between"),
        (options.clone().context(300), "exceed this model's 256 positions"),
    ] {
        let error = moirai.forecast(&series, 8, &options).unwrap_err();
        assert!(matches!(error, Error::Input { .. }) && error.to_string().contains(words), "{error}");
    }
    for options in [options.clone().quantile(0.5), options.clone().samples(3)] {
        let error = time_moe.forecast(&series, 8, &options).unwrap_err().to_string();
        assert!(error.contains("take a model that predicts a distribution"), "{error}");
    }
    let error = time_moe.forecast_groups(&[Group::new(series.clone())], 8, &options).unwrap_err().to_string();
    assert!(error.contains("one variable at a time"), "{error}");
}
