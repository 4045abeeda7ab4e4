//! Moirai-MoE: tokens of raw series, one call of the network, the deterministic forecast, losses and gradients.

use anyhow::{Context as _, Result, ensure};
use candle_core::{DType, Device, Tensor};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Params, Probe};
use moesaic_models::moirai_moe::{
    Config, Cut, Distribution, Mode, MoiraiMoe, NextPatches, Options, Output, Patches, Paths, Request, Windows,
};

use crate::case::{Case, Got};

pub fn run(case: &Case, got: &mut Got) -> Result<()> {
    if case.has_input("raw.0.target") { series(case, got) } else { packed(case, got) }
}

/// Cells of tokens that are no padding and lie inside the token's patch: the rest means nothing.
pub fn meaningful(case: &Case, name: &str) -> Result<Option<Vec<bool>>> {
    let tokens = ["step1.", "fwd.", "decode_mean.call"].iter().any(|prefix| name.starts_with(prefix));
    if !tokens {
        return Ok(None);
    }
    let of = |name: &str| -> Result<Tensor> {
        if case.has_input(name) { case.input(name) } else { Ok(case.given(&format!("conv.{name}"))?.clone()) }
    };
    let sample = numbers(&of("sample_id")?)?;
    let size = numbers(&of("patch_size")?)?;
    let dims = case.given(name)?.dims();
    let cells = ["param.", "mean", "variance", "log_prob"].iter().any(|part| name.contains(part));
    if !cells || name.starts_with("decode_mean") {
        return Ok(Some(sample.iter().map(|&id| id != 0).collect()));
    }
    let width = *dims.get(2).context("a tensor of cells has three dimensions")?;
    let cell = |(id, size): (&u32, &u32)| (0..width).map(|c| *id != 0 && c < *size as usize).collect::<Vec<_>>();
    Ok(Some(sample.iter().zip(&size).flat_map(cell).collect()))
}

fn numbers(tensor: &Tensor) -> Result<Vec<u32>> {
    Ok(tensor.flatten_all()?.to_dtype(DType::U32)?.to_vec1()?)
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}

/// Raw series, by the forecast's own pipeline.
fn series(case: &Case, got: &mut Got) -> Result<()> {
    let model = MoiraiMoe::load(&case.dir, case.dtype, &case.device)?;
    let number = |name: &str| -> Result<usize> {
        let value = case.json["params"][name].as_u64().with_context(|| format!("params has no {name}"))?;
        Ok(usize::try_from(value)?)
    };
    let cut = Cut { context: number("ctx")?, horizon: number("pred")?, patch: number("patch")? };
    let rows: Vec<[Vec<Vec<f32>>; 3]> = (0u32..)
        .take_while(|i| case.has_input(&format!("raw.{i}.target")))
        .map(|i| -> Result<[Vec<Vec<f32>>; 3]> {
            let parts = ["target", "feat_dynamic_real", "past_feat_dynamic_real"].map(|part| -> Result<_> {
                let name = format!("raw.{i}.{part}");
                if !case.has_input(&name) {
                    return Ok(Vec::new());
                }
                let values = case.input(&name)?.to_dtype(DType::F32)?;
                Ok(if values.rank() == 1 { vec![values.to_vec1()?] } else { values.to_vec2()? })
            });
            let [target, known, past] = parts;
            Ok([target?, known?, past?])
        })
        .collect::<Result<_>>()?;
    let requests: Vec<Request<'_>> = rows
        .iter()
        .map(|[target, known, past]| Request { target: slices(target), known: slices(known), past: slices(past) })
        .collect();
    let windows = requests
        .iter()
        .map(|request| Windows::new(model.config(), request, cut, false))
        .collect::<candle_core::Result<Vec<_>>>()?;
    let patches = Windows::rows(&windows)?;
    tokens(&patches, got)?;

    let output = call(case, &model, &patches, "step1.", got)?;
    for q in ["0.1", "0.5", "0.9"] {
        let name = format!("quantile.{q}");
        if case.wants(&name) {
            got.put(name, first_patch(&output.distribution, &windows, q.parse()?)?);
        }
    }
    if case.wants("decode_mean") {
        decode(&model, &requests, &windows, cut, got)?;
    }
    Ok(())
}

fn slices(part: &[Vec<f32>]) -> Vec<&[f32]> {
    part.iter().map(Vec::as_slice).collect()
}

fn tokens(p: &Patches, got: &mut Got) -> Result<()> {
    let ints = |values: Vec<i64>| Tensor::from_vec(values, (p.rows, p.length), &Device::Cpu);
    let flags = |values: &[bool]| values.iter().map(|&v| i64::from(v)).collect::<Vec<_>>();
    let wide = |values: &[u32]| values.iter().map(|&v| i64::from(v)).collect::<Vec<_>>();
    let cells = (p.rows, p.length, p.width);
    got.put("conv.target", Tensor::from_vec(p.target.clone(), cells, &Device::Cpu)?);
    got.put("conv.observed_mask", Tensor::from_vec(flags(&p.observed), cells, &Device::Cpu)?);
    got.put("conv.sample_id", ints(wide(&p.sample_id))?);
    got.put("conv.time_id", ints(wide(&p.time_id))?);
    got.put("conv.variate_id", ints(wide(&p.variate_id))?);
    got.put("conv.prediction_mask", ints(flags(&p.prediction))?);
    got.put("conv.patch_size", ints(p.patch_size.iter().map(|&v| v as i64).collect())?);
    Ok(())
}

/// One call of the network, and all that it says.
fn call(case: &Case, model: &MoiraiMoe, patches: &Patches, prefix: &str, got: &mut Got) -> Result<Output> {
    let probe = Probe::new();
    let output = model.forward(patches, Some(&probe))?;
    let (n, distribution) = (patches.tokens(), &output.distribution);
    let mut put = |name: String, tensor: Tensor| -> Result<()> {
        // The model knows a list of tokens, the reference shows rows.
        ensure!(tensor.dims().first() == Some(&n), "{name}: shape {:?} for {n} tokens", tensor.dims());
        let dims = [&[patches.rows, patches.length], &tensor.dims()[1..]].concat();
        got.put(format!("{prefix}{name}"), tensor.reshape(dims)?);
        Ok(())
    };
    let column = |values: &[f32]| Tensor::from_slice(values, (n, 1), &Device::Cpu);
    put("loc".into(), column(distribution.loc())?)?;
    put("scale".into(), column(distribution.scale())?)?;
    for (name, tensor) in probe.tensors() {
        put(name, tensor)?;
    }
    for (name, tensor) in distribution.parameters()? {
        put(format!("param.{name}"), tensor)?;
    }
    put("mean".into(), distribution.mean()?)?;
    put("variance".into(), distribution.variance()?)?;
    put("log_prob".into(), distribution.log_prob(&floats(&case.input("values")?)?)?.detach())?;
    Ok(output)
}

/// The quantile of the patch after each target's context, `[B, targets, patch]`.
fn first_patch(distribution: &Distribution, windows: &[Windows], q: f64) -> Result<Tensor> {
    let Cut { context, patch, .. } = windows.first().context("there is no window")?.cut;
    let (past, targets) = (context.div_ceil(patch), windows[0].targets());
    let length = windows[0].patches.length;
    let mut values = Vec::new();
    for row in 0..windows.len() {
        for v in 0..targets {
            let cells = distribution.cells(row * length + (v + 1) * past - 1, patch)?;
            values.extend(cells.iter().map(|cell| cell.quantile(q) as f32));
        }
    }
    Ok(Tensor::from_vec(values, (windows.len(), targets, patch), &Device::Cpu)?)
}

/// The exact forecast along means.
fn decode(model: &MoiraiMoe, requests: &[Request<'_>], windows: &[Windows], cut: Cut, got: &mut Got) -> Result<()> {
    let options = Options {
        patch: Some(cut.patch),
        mode: Mode::Exact,
        paths: Paths::Mean,
        rescale: false,
        ..Options::new(cut.context, cut.horizon)
    };
    let probe = Probe::new();
    let forecasts = model.forecast(requests, &options, Some(&probe))?;
    let targets = windows.first().context("there is no window")?.targets();
    let steps = forecasts
        .iter()
        .flat_map(|forecast| (0..cut.horizon).flat_map(move |t| (0..targets).map(move |v| forecast.mean[v][t])));
    let shape = (forecasts.len(), cut.horizon, targets);
    got.put("decode_mean", Tensor::from_vec(steps.collect::<Vec<_>>(), shape, &Device::Cpu)?);
    let recorded = probe.tensors();
    let calls = (0..).take_while(|call| recorded.contains_key(&format!("request.0.call.{call}.loc"))).count();
    got.put("decode_mean.num_module_calls", Tensor::new(&[calls as i64], &Device::Cpu)?);
    for call in 0..calls {
        for part in ["loc", "scale"] {
            let rows = (0..requests.len()).map(|i| {
                let name = format!("request.{i}.call.{call}.{part}");
                recorded.get(&name).cloned().with_context(|| format!("{name} was not recorded"))
            });
            let rows = Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?;
            got.put(format!("decode_mean.call{call}.{part}"), rows);
        }
    }
    Ok(())
}

/// Packed rows, straight into the network.
fn packed(case: &Case, got: &mut Got) -> Result<()> {
    let target = case.input("target")?;
    let (rows, length, width) = target.dims3()?;
    let flags =
        |name: &str| -> Result<Vec<bool>> { Ok(numbers(&case.input(name)?)?.iter().map(|&v| v != 0).collect()) };
    let patches = Patches {
        rows,
        length,
        width,
        target: floats(&target)?,
        observed: flags("observed_mask")?,
        sample_id: numbers(&case.input("sample_id")?)?,
        time_id: numbers(&case.input("time_id")?)?,
        variate_id: numbers(&case.input("variate_id")?)?,
        prediction: flags("prediction_mask")?,
        patch_size: numbers(&case.input("patch_size")?)?.into_iter().map(|v| v as usize).collect(),
    };
    call(case, &MoiraiMoe::load(&case.dir, case.dtype, &case.device)?, &patches, "fwd.", got)?;
    if !case.wants("loss.") && !case.wants("grad") {
        return Ok(());
    }

    let config = Config::from_json(&std::fs::read_to_string(case.dir.join("config.json"))?)?;
    let params = Params::resume(&Checkpoint::open(&case.dir)?, &case.device);
    let distribution = MoiraiMoe::new(config, &params)?.forward(&patches, None)?.distribution;
    let next = NextPatches {
        target: floats(&case.input("loss_target")?)?,
        observed: flags("loss_observed_mask")?,
        prediction: flags("loss_prediction_mask")?,
    };
    let loss = distribution.packed_nll(&patches, &next)?;
    got.put("loss.packed_nll", loss.reshape(1)?.detach());
    got.put("loss.sample_nll", distribution.sample_nll(&patches, &next)?.detach());
    let grads = loss.backward()?;
    // A variable that the loss does not reach has a gradient of zero.
    let gradient = |var: &candle_core::Var| grads.get(var).cloned().or_else(|| var.zeros_like().ok());
    let published = params.published(gradient)?;
    let mut squares = 0.0;
    for (_, grad) in &published {
        squares += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    got.put_number("grad_norm", squares.sqrt())?;
    got.put_all("grad.", published);
    Ok(())
}
