//! Moirai-MoE without a published checkpoint: gradients, the two ways to forecast, covariates, odd series, and bad configs.

use candle_core::{DType, Device, Result, Tensor};
use moesaic_kernels::checkpoint::save;
use moesaic_kernels::cpu::with_threads;
use moesaic_kernels::rng::Rng;
use moesaic_kernels::{Params, Probe};
use moesaic_models::moirai_moe::{
    Config, Cut, Forecast, Mode, MoiraiMoe, NextPatches, Options, Patches, Paths, Request, Windows,
};

const TINY: &str = r#"{
    "d_model": 64, "d_ff": 4, "num_layers": 2, "patch_sizes": [4, 8], "max_seq_len": 64, "attn_dropout_p": 0.0,
    "dropout_p": 0.0, "scaling": true, "distr_output": {
        "_target_": "uni2ts.distribution.mixture.MixtureOutput", "components": [
            {"_target_": "uni2ts.distribution.student_t.StudentTOutput"},
            {"_target_": "uni2ts.distribution.normal.NormalFixedScaleOutput", "scale": 0.05},
            {"_target_": "uni2ts.distribution.negative_binomial.NegativeBinomialOutput"},
            {"_target_": "uni2ts.distribution.log_normal.LogNormalOutput"}
        ]
    }
}"#;

fn model(config: &str) -> (MoiraiMoe, Params) {
    let params = Params::init(5, &Device::Cpu);
    (MoiraiMoe::new(Config::from_json(config).unwrap(), &params).unwrap(), params)
}

fn tiny() -> MoiraiMoe {
    model(TINY).0
}

fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|t| (t as f32 * 0.7).sin() * 3.0 + 10.0 + rng.normal() as f32).collect()
}

/// Two rows with two samples, two patch sizes, gaps and padding.
fn packed() -> (Patches, NextPatches) {
    let (rows, length, width) = (2, 7, 8);
    let n = rows * length;
    let mut rng = Rng::new(2);
    let sample_id = vec![1, 1, 1, 2, 2, 2, 0, 1, 1, 1, 1, 1, 1, 1];
    let patch_size: Vec<usize> = sample_id.iter().map(|&id| if id == 2 { 4 } else { 8 }).collect();
    let used = |cell: usize| sample_id[cell / width] != 0 && cell % width < patch_size[cell / width];
    let observed: Vec<bool> = (0..n * width).map(|cell| used(cell) && cell % 11 != 3).collect();
    let next: Vec<bool> = (0..n * width).map(|cell| used(cell) && cell % 13 != 5).collect();
    let mut target = |seen: &[bool]| -> Vec<f32> {
        seen.iter().map(|&seen| if seen { 5.0 + 2.0 * rng.normal() as f32 } else { 0.0 }).collect()
    };
    let patches = Patches {
        rows,
        length,
        width,
        target: target(&observed),
        observed,
        time_id: vec![0, 1, 0, 3, 4, 5, 0, 0, 1, 2, 3, 0, 1, 2],
        variate_id: vec![0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1],
        prediction: (0..n).map(|t| matches!(t, 5 | 10)).collect(),
        patch_size,
        sample_id,
    };
    let prediction = (0..n).map(|t| patches.sample_id[t] != 0 && t % 3 != 1).collect();
    let next = NextPatches { target: target(&next), observed: next, prediction };
    (patches, next)
}

#[test]
fn gradients_of_two_layers_match_finite_differences() -> Result<()> {
    let (model, params) = model(TINY);
    let (patches, next) = packed();
    let loss = || model.forward(&patches, None).unwrap().distribution.packed_nll(&patches, &next).unwrap();
    let grads = loss().backward()?;
    let mut rng = Rng::new(3);
    let mut compared = 0;
    for (name, var) in params.variables() {
        assert!(!name.contains("centroid"), "centroids are fixed");
        let Some(grad) = grads.get(&var) else { panic!("{name} got no gradient") };
        let grad = grad.flatten_all()?.to_vec1::<f32>()?;
        let original = var.flatten_all()?.to_vec1::<f32>()?;
        for _ in 0..4.min(original.len()) {
            let at = rng.below(original.len());
            let step = 2e-3f32;
            let at_offset = |by: f32| -> Result<f64> {
                let mut moved = original.clone();
                moved[at] += by;
                var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu)?)?;
                Ok(f64::from(loss().to_scalar::<f32>()?))
            };
            let numeric = (at_offset(step)? - at_offset(-step)?) / (2.0 * f64::from(step));
            at_offset(0.0)?;
            let exact = f64::from(grad[at]);
            // f32 losses of some units carry 5e-7 of rounding, so differences carry about 2e-4.
            assert!((numeric - exact).abs() < 6e-4 + 0.02 * exact.abs(), "{name}[{at}]: {exact} and {numeric}");
            compared += usize::from(exact.abs() > 2e-3);
        }
    }
    assert!(compared > 40, "only {compared} gradients were large enough to mean anything");
    Ok(())
}

#[test]
fn losses_are_means_over_series_and_sums_over_rows() -> Result<()> {
    let model = tiny();
    let (patches, next) = packed();
    let said = model.forward(&patches, None)?.distribution;
    let (packed, rows) = (said.packed_nll(&patches, &next)?, said.sample_nll(&patches, &next)?.to_vec1::<f32>()?);
    // Three series in the first row, two in the second.
    assert!((packed.to_scalar::<f32>()? - (rows[0] + rows[1]) / 5.0).abs() < 1e-5);
    // By hand for the last one: variate 1 of the second row.
    let log_prob = said.log_prob(&next.target)?.flatten_all()?.to_vec1::<f32>()?;
    let mean = |tokens: &[usize]| {
        let cells = tokens.iter().filter(|&&t| next.prediction[t]).flat_map(|t| t * 8..(t + 1) * 8);
        let counted: Vec<f32> = cells.filter(|&c| next.observed[c]).map(|c| -log_prob[c]).collect();
        counted.iter().sum::<f32>() / counted.len() as f32
    };
    assert!((rows[1] - mean(&[7, 8, 9, 10]) - mean(&[11, 12, 13])).abs() < 1e-4);
    Ok(())
}

fn options(horizon: usize, mode: Mode) -> Options {
    let paths = Paths::Samples { count: 6, seed: 3 };
    Options {
        mode,
        paths,
        quantiles: vec![0.1, 0.5, 0.9],
        keep_paths: true,
        patch: Some(4),
        ..Options::new(40, horizon)
    }
}

/// Targets, covariates that are known ahead, and one that is not, with gaps.
struct Data {
    target: Vec<Vec<f32>>,
    known: Vec<Vec<f32>>,
    past: Vec<Vec<f32>>,
}

impl Data {
    fn new(seed: u64, length: usize, [targets, known, past]: [usize; 3]) -> Self {
        let rows =
            |count: usize, n: usize, from: u64| (0..count as u64).map(|i| values(seed * 100 + from + i, n)).collect();
        let mut data = Self {
            target: rows(targets, length, 0),
            known: rows(known, length + 64, 20),
            past: rows(past, length, 40),
        };
        data.target[0][length / 2] = f32::NAN;
        data
    }

    fn request(&self) -> Request<'_> {
        Request {
            target: self.target.iter().map(Vec::as_slice).collect(),
            known: self.known.iter().map(Vec::as_slice).collect(),
            past: self.past.iter().map(Vec::as_slice).collect(),
        }
    }
}

fn far(a: &Forecast, b: &Forecast) -> f32 {
    let all = |f: &Forecast| -> Vec<f32> {
        let nested = f.quantiles.iter().chain(&f.paths).flatten().flatten();
        f.mean.iter().flatten().chain(nested).copied().collect()
    };
    let (a, b) = (all(a), all(b));
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).map(|(a, b)| (a - b).abs() / (1.0 + a.abs())).fold(0.0, f32::max)
}

#[test]
fn one_patch_is_the_same_in_both_modes() -> Result<()> {
    let model = tiny();
    let data = [Data::new(1, 50, [1, 0, 0]), Data::new(2, 33, [3, 2, 1]), Data::new(3, 5, [2, 0, 1])];
    let requests: Vec<Request<'_>> = data.iter().map(Data::request).collect();
    let exact = model.forecast(&requests, &options(4, Mode::Exact), None)?;
    let cached = model.forecast(&requests, &options(4, Mode::Cached), None)?;
    assert_eq!(exact, cached);
    for (forecast, data) in exact.iter().zip(&data) {
        assert_eq!((forecast.mean.len(), forecast.mean[0].len()), (data.target.len(), 4));
        assert_eq!((forecast.quantiles.len(), forecast.paths.len()), (3, 6));
        for v in 0..data.target.len() {
            let ordered = |t: usize| forecast.quantiles.windows(2).all(|pair| pair[0][v][t] <= pair[1][v][t]);
            assert!((0..4).all(ordered));
        }
    }
    Ok(())
}

#[test]
fn without_scaling_the_modes_agree_over_any_horizon() -> Result<()> {
    // Nothing is rescaled then, so the cache holds what would be computed again.
    let model = model(&TINY.replace("\"scaling\": true", "\"scaling\": false")).0;
    let data = [Data::new(4, 50, [2, 1, 1]), Data::new(5, 21, [1, 2, 0]), Data::new(6, 64, [3, 0, 0])];
    let requests: Vec<Request<'_>> = data.iter().map(Data::request).collect();
    for paths in [Paths::Mean, Paths::Samples { count: 5, seed: 9 }] {
        let of = |mode| model.forecast(&requests, &Options { paths, ..options(15, mode) }, None);
        for (i, (exact, cached)) in of(Mode::Exact)?.iter().zip(&of(Mode::Cached)?).enumerate() {
            assert!(far(exact, cached) < 1e-3, "{paths:?}, request {i}: {}", far(exact, cached));
        }
    }
    Ok(())
}

#[test]
fn the_exact_mode_scales_with_what_it_has_said() -> Result<()> {
    let model = tiny();
    let data = Data::new(7, 40, [1, 0, 0]);
    let probe = Probe::new();
    let exact = Options { paths: Paths::Mean, ..options(12, Mode::Exact) };
    let forecast = model.forecast(&[data.request()], &exact, Some(&probe))?;
    let recorded = probe.tensors();
    let scale = |call: usize| {
        recorded[&format!("request.0.call.{call}.scale")].flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]
    };
    assert!(scale(0) != scale(1) && scale(1) != scale(2) && !recorded.contains_key("request.0.call.3.scale"));
    // The second call by hand: the first patch appended, and the next one asked for.
    let mut longer = data.target[0].clone();
    longer.extend(&forecast[0].mean[0][..4]);
    let cut = Options { context: 44, ..options(4, Mode::Exact) };
    let next = model.forecast(&[Request::univariate(&longer)], &Options { paths: Paths::Mean, ..cut }, None)?;
    for (a, b) in next[0].mean[0].iter().zip(&forecast[0].mean[0][4..8]) {
        assert!((a - b).abs() < 1e-3, "{a} {b}");
    }
    Ok(())
}

#[test]
fn a_forecast_has_the_same_bits_alone_in_a_batch_and_on_any_number_of_threads() -> Result<()> {
    let model = tiny();
    let data: Vec<Data> = [(40, [1, 0, 0]), (17, [2, 1, 0]), (1, [1, 0, 0]), (33, [1, 1, 1])]
        .iter()
        .enumerate()
        .map(|(i, &(length, shape))| Data::new(i as u64 + 10, length + 1, shape))
        .collect();
    let requests: Vec<Request<'_>> = data.iter().map(Data::request).collect();
    for mode in [Mode::Exact, Mode::Cached] {
        let all = with_threads(2, || model.forecast(&requests, &options(11, mode), None))?;
        assert_eq!(all, with_threads(1, || model.forecast(&requests, &options(11, mode), None))?);
        for (i, one) in requests.iter().enumerate() {
            assert_eq!(all[i], model.forecast(std::slice::from_ref(one), &options(11, mode), None)?[0], "request {i}");
        }
    }
    // Other seeds, other paths; the first patch's mean and quantiles do not depend on them.
    let other = Options { paths: Paths::Samples { count: 6, seed: 4 }, ..options(4, Mode::Cached) };
    let (a, b) =
        (model.forecast(&requests, &other, None)?, model.forecast(&requests, &options(4, Mode::Cached), None)?);
    assert!(a[0].paths != b[0].paths && a[0].mean == b[0].mean && a[0].quantiles == b[0].quantiles);
    Ok(())
}

#[test]
fn covariates_count_up_to_their_time() -> Result<()> {
    let model = tiny();
    let base = Data::new(20, 40, [1, 1, 1]);
    let options = Options { paths: Paths::Mean, rescale: false, ..options(12, Mode::Cached) };
    let of = |data: &Data| -> Result<Vec<f32>> {
        Ok(model.forecast(&[data.request()], &options, None)?.remove(0).mean.remove(0))
    };
    let plain = of(&base)?;
    let changed = |change: &dyn Fn(&mut Data)| -> Result<Vec<f32>> {
        let mut data = Data::new(20, 40, [1, 1, 1]);
        change(&mut data);
        of(&data)
    };
    assert_ne!(plain, changed(&|data| data.past[0][39] += 5.0)?);
    assert_ne!(plain, changed(&|data| data.known[0][3] += 5.0)?);
    // Missing is not zero.
    assert_ne!(changed(&|data| data.past[0][20] = f32::NAN)?, changed(&|data| data.past[0][20] = 0.0)?);
    // What lies behind the horizon is not looked at; what is known ahead acts on the patches after it, and through the scale
    // of the covariate on the first one.
    assert_eq!(plain, changed(&|data| data.known[0][52] = 1e6)?);
    let ahead = changed(&|data| data.known[0][45] += 5.0)?;
    assert!(plain[8..] != ahead[8..]);
    Ok(())
}

#[test]
fn odd_series_are_forecast_in_finite_numbers() -> Result<()> {
    let model = tiny();
    let wave = |scale: f32| -> Vec<f32> { values(30, 60).iter().map(|v| v * scale).collect() };
    let mut gaps = values(31, 60);
    gaps.iter_mut().enumerate().filter(|(i, _)| i % 3 != 1).for_each(|(_, v)| *v = f32::NAN);
    let series = [
        wave(1e-30),
        wave(1e30),
        wave(1e-38),
        vec![0.0; 40],
        vec![5.0; 3],
        vec![1e-30; 9],
        vec![-3e38; 9],
        vec![7.0],
        gaps,
        [vec![f32::NAN; 30], vec![2.0, 3.0]].concat(),
    ];
    let requests: Vec<Request<'_>> = series.iter().map(|s| Request::univariate(s)).collect();
    for mode in [Mode::Exact, Mode::Cached] {
        for (forecast, series) in model.forecast(&requests, &options(9, mode), None)?.iter().zip(&series) {
            let all = forecast.quantiles.iter().chain(&forecast.paths).flatten().flatten();
            assert!(forecast.mean[0].iter().chain(all).all(|v| v.is_finite()), "{mode:?} {series:?}");
        }
    }
    // The scale does not matter: a power of two gives the same digits.
    let by = |scale: f32| -> Result<Vec<f32>> {
        let series = wave(scale);
        let quantiles =
            model.forecast(&[Request::univariate(&series)], &options(4, Mode::Cached), None)?.remove(0).quantiles;
        Ok(quantiles[1][0].iter().map(|v| v / scale).collect())
    };
    let (plain, tiny, huge) = (by(1.0)?, by(2f32.powi(-100))?, by(2f32.powi(100))?);
    for i in 0..4 {
        assert!((plain[i] - tiny[i]).abs() < 1e-3 && (plain[i] - huge[i]).abs() < 1e-3, "{plain:?} {tiny:?} {huge:?}");
    }
    Ok(())
}

#[test]
fn requests_that_cannot_be_met_are_refused() {
    let model = tiny();
    let (a, b, nan) = (values(1, 20), values(2, 19), vec![f32::NAN; 20]);
    let mut infinite = a.clone();
    infinite[4] = f32::INFINITY;
    let old = [a.clone(), vec![f32::NAN; 45]].concat();
    let good = || Request::univariate(&a);
    let base = options(6, Mode::Cached);
    type Change = fn(Options) -> Options;
    let table: [(Request<'_>, Change, &str); 15] = [
        (Request::default(), |o| o, "request 0: there is no target"),
        (Request::univariate(&[]), |o| o, "has no values"),
        (Request { target: vec![&a, &b], ..Request::default() }, |o| o, "target 1 has 19 values, expected 20"),
        (Request::univariate(&nan), |o| o, "target 0 has no observed value"),
        (Request::univariate(&old), |o| o, "target 0 has no observed value among its last 40"),
        (Request::univariate(&infinite), |o| o, "an infinite value at index 4"),
        (Request { known: vec![&a], ..good() }, |o| o, "known covariate 0 has 20 values and ends before the horizon"),
        (Request { past: vec![&b], ..good() }, |o| o, "past covariate 0 has 19 values"),
        (good(), |o| Options { horizon: 0, ..o }, "a horizon of 0"),
        (good(), |o| Options { context: 0, ..o }, "a context of 0"),
        (good(), |o| Options { context: usize::MAX, ..o }, "too much"),
        (good(), |o| Options { patch: Some(5), ..o }, "a patch of 5"),
        (good(), |o| Options { quantiles: vec![1.0], ..o }, "quantile level 1 is not between"),
        (good(), |o| Options { quantiles: vec![f64::NAN], ..o }, "is not between"),
        (good(), |o| Options { paths: Paths::Samples { count: 0, seed: 0 }, ..o }, "0 sample paths"),
    ];
    for (request, change, words) in table {
        for mode in [Mode::Exact, Mode::Cached] {
            let options = Options { mode, ..change(base.clone()) };
            let error = model.forecast(std::slice::from_ref(&request), &options, None).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
    assert!(model.forecast(&[], &base, None).unwrap().is_empty());
    // Tokens that do not fit the model.
    let (patches, next) = packed();
    let refused = |change: &dyn Fn(&mut Patches)| {
        let mut patches = patches.clone();
        change(&mut patches);
        model.forward(&patches, None).is_err()
    };
    assert!(refused(&|p| p.patch_size[3] = 5) && refused(&|p| p.rows = usize::MAX) && refused(&|p| p.width = 4));
    assert!(refused(&|p| p.target[3] = f32::NAN) && refused(&|p| p.time_id.truncate(3)) && !refused(&|_| ()));
    let said = model.forward(&patches, None).unwrap().distribution;
    let short = NextPatches { prediction: vec![true], ..next };
    assert!(said.packed_nll(&patches, &short).is_err() && said.log_prob(&[0.0]).is_err() && said.cells(99, 1).is_err());
}

#[test]
fn configs_that_do_not_fit_are_refused_before_anything_is_allocated() {
    let change = |path: &str, value: &str| {
        let mut config: serde_json::Value = serde_json::from_str(TINY).unwrap();
        *config.pointer_mut(path).unwrap() = serde_json::from_str(value).unwrap();
        Config::from_json(&config.to_string())
    };
    let component = "/distr_output/components/0";
    for (path, value, word) in [
        ("/d_model", "0", "d_model"),
        ("/d_model", "32", "d_model"),
        ("/d_model", "129", "d_model"),
        ("/d_model", "1000000000000", "d_model"),
        ("/d_model", "-4", "config.json"),
        ("/d_ff", "0", "d_ff"),
        ("/num_layers", "100000000", "num_layers"),
        ("/patch_sizes", "[]", "patch_sizes"),
        ("/patch_sizes", "[8, 4]", "patch_sizes"),
        ("/patch_sizes", "[0, 4]", "patch_sizes"),
        ("/patch_sizes", "[100000]", "patch_sizes"),
        ("/attn_dropout_p", "0.1", "attn_dropout_p"),
        ("/dropout_p", "1.0", "dropout_p"),
        ("/distr_output", "{}", "config.json"),
        ("/distr_output/_target_", "\"os.system\"", "_target_"),
        ("/distr_output/components", "[]", "components"),
        (component, "{\"_target_\": \"uni2ts.distribution.laplace.LaplaceOutput\"}", "LaplaceOutput"),
        (component, "{\"_target_\": \"builtins.eval\"}", "builtins.eval"),
        (component, "{\"_target_\": \"uni2ts.distribution.normal.NormalFixedScaleOutput\"}", "no scale"),
        (component, "{\"_target_\": \"uni2ts.distribution.normal.NormalFixedScaleOutput\", \"scale\": 0.0}", "scale"),
        (component, "{\"_target_\": \"uni2ts.distribution.student_t.StudentTOutput\", \"scale\": 1.0}", "scale"),
    ] {
        let error = change(path, value).unwrap_err().to_string();
        assert!(error.contains(word), "{path} = {value}: {error}");
    }
    let missing = TINY.replace("\"scaling\": true, ", "");
    assert!(Config::from_json(&missing).unwrap_err().to_string().contains("scaling"));
}

#[test]
fn counted_parameters_are_those_of_the_published_sizes() -> Result<()> {
    let of = |d: usize, f: usize, layers: usize| {
        let config = TINY
            .replace("\"d_model\": 64", &format!("\"d_model\": {d}"))
            .replace("\"d_ff\": 4", &format!("\"d_ff\": {f}"))
            .replace("\"num_layers\": 2", &format!("\"num_layers\": {layers}"))
            .replace("[4, 8]", "[16]");
        Config::from_json(&config).map(|config| config.parameters())
    };
    let (small, base) = (of(384, 512, 6)?, of(768, 1024, 12)?);
    assert_eq!((small.total, base.total), (117_025_800, 935_066_592));
    assert_eq!((small.active / 10_000, base.active / 10_000), (1085, 8572));
    let (model, params) = model(TINY);
    let made: usize = params.variables().iter().map(|(_, v)| v.elem_count()).sum();
    assert_eq!(made, model.parameters().total);
    Ok(())
}

#[test]
fn a_saved_model_loads_with_centroids_in_either_width() -> Result<()> {
    let (trained, params) = model(TINY);
    let data = values(3, 30);
    let of = |model: &MoiraiMoe| model.forecast(&[Request::univariate(&data)], &options(4, Mode::Cached), None);
    for dtype in [DType::F32, DType::F64] {
        let dir = tempfile::tempdir()?;
        let mut tensors = params.published(|v| Some(v.as_tensor().clone()))?;
        tensors.extend(params.kept(dtype)?);
        let centroid = tensors.iter().find(|(name, _)| name == "encoder.centroid").map(|(_, t)| t.dims().to_vec());
        assert_eq!(centroid, Some(vec![2, 32, 64]));
        save(&dir.path().join("model.safetensors"), &tensors, &[("format", "pt")])?;
        std::fs::write(dir.path().join("config.json"), TINY)?;
        let loaded = MoiraiMoe::load(dir.path(), DType::F32, &Device::Cpu)?;
        assert!(far(&of(&trained)?[0], &of(&loaded)?[0]) < 1e-4);
        // A tensor too many, or too few, is named.
        let more = [tensors.clone(), vec![("more".to_string(), Tensor::zeros(1, DType::F32, &Device::Cpu)?)]].concat();
        save(&dir.path().join("model.safetensors"), &more, &[])?;
        assert!(MoiraiMoe::load(dir.path(), DType::F32, &Device::Cpu).unwrap_err().to_string().contains("more"));
        tensors.retain(|(name, _)| name != "encoder.layers.1.ffn.experts.31.fc_gate.weight");
        save(&dir.path().join("model.safetensors"), &tensors, &[])?;
        let error = MoiraiMoe::load(dir.path(), DType::F32, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("experts.31.fc_gate"), "{error}");
    }
    Ok(())
}

#[test]
fn windows_hold_the_newest_values_in_patches() -> Result<()> {
    let config = Config::from_json(TINY)?;
    let series: Vec<f32> = (0..10).map(|t| t as f32).collect();
    let window = Windows::new(&config, &Request::univariate(&series), Cut { context: 6, horizon: 5, patch: 4 }, false)?;
    let p = &window.patches;
    assert_eq!((p.length, p.width), (4, 8));
    assert_eq!(p.target[..8], [0.0, 0.0, 4.0, 5.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(p.observed[..8], [false, false, true, true, false, false, false, false]);
    assert_eq!(p.target[8..12], [6.0, 7.0, 8.0, 9.0]);
    assert_eq!((&p.time_id[..], &p.sample_id[..]), (&[0, 1, 2, 3][..], &[1; 4][..]));
    assert_eq!(p.prediction, [false, false, true, true]);
    assert_eq!(p.observed[24..32], [true, false, false, false, false, false, false, false]);
    Ok(())
}
