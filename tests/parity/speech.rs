//! The speech encoders. A case wants `hidden_state_{i}` and `last_hidden_state`, and of those that take samples `conv_features`,
//! `extract_features` and `ctc_logits`.

use anyhow::{Result, bail, ensure};
use candle_core::{DType, Tensor};
use moesaic_encoders::audio::CedFeatures;
use moesaic_encoders::speech::{Ced, CedConfig, Hubert, Wav2Vec2, WavLm, WaveConfig, WhisperConfig, WhisperEncoder};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Params, Probe, Tokens};

use crate::case::{Case, Got};

pub fn run(case: &Case, got: &mut Got) -> Result<()> {
    macro_rules! wave {
        ($model:ident) => {{
            let model = $model::load(&case.dir, case.dtype, &case.device)?;
            let (samples, lengths) = (case.input("input_values")?, lengths(case)?);
            let probe = Probe::new();
            let tokens = model.forward(&samples, lengths.as_deref(), Some(&probe))?;
            got.put_all("", probe.tensors());
            if model.has_ctc() {
                got.put("ctc_logits", model.ctc_logits(&tokens)?);
            }
            let prefix = concat!(stringify!($model), ".").to_lowercase();
            let params = trained(case, &prefix)?;
            let model =
                $model::new(WaveConfig::load(&case.dir)?.named_as(&Checkpoint::open(&case.dir)?, &prefix), &params.1)?;
            let again = model.forward(&samples, lengths.as_deref(), None)?;
            gradients(case, &params.0, &tokens, &again)?;
        }};
    }
    match case.family.as_str() {
        "whisper_encoder" => {
            let model = WhisperEncoder::load(&case.dir, case.dtype, &case.device)?;
            let features = case.input("input_features")?;
            let probe = Probe::new();
            let tokens = model.forward(&features, Some(&probe))?;
            got.put_all("", probe.tensors());
            let params = trained(case, "model.encoder.")?;
            let model = WhisperEncoder::new(WhisperConfig::load(&case.dir)?, &params.1)?;
            gradients(case, &params.0, &tokens, &model.forward(&features, None)?)?;
        }
        "wav2vec2" => wave!(Wav2Vec2),
        "hubert" => wave!(Hubert),
        "wavlm" => wave!(WavLm),
        other => bail!("{other} is no family of speech encoders"),
    }
    Ok(())
}

/// CED from samples: `short.` and `long.` with `mel_db`, what the network records, and `tokens`.
pub fn ced(case: &Case, got: &mut Got) -> Result<()> {
    let model = Ced::load(&case.dir, case.dtype, &case.device)?;
    let params = Params::resume(&Checkpoint::open(&case.dir)?, &case.device);
    let config = CedConfig::load(&case.dir)?.named_as(&Checkpoint::open(&case.dir)?, "");
    let trained = Ced::new(config, &params)?;
    let extractor = CedFeatures::with_bands(model.config().n_mels)?;
    for name in ["short", "long"] {
        let input = format!("audio_{name}");
        if !case.has_input(&input) {
            continue;
        }
        let clips = case.input(&input)?.to_vec2::<f32>()?;
        let features = extractor.batch(&clips.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        let features = features.iter().map(|f| f.tensor(&case.device)).collect::<candle_core::Result<Vec<_>>>()?;
        let features = Tensor::stack(&features, 0)?; // (b, bands, frames)
        let probe = Probe::new();
        let tokens = model.forward(&features, Some(&probe))?;
        ensure!(tokens.embeds.dim(1)? == model.config().tokens(features.dim(2)?), "{name}: the number of tokens");
        got.put(format!("{name}.mel_db"), features.clone());
        got.put_all(&format!("{name}."), probe.tensors());
        gradients(case, &params, &tokens, &trained.forward(&features, None)?)?;
    }
    Ok(())
}

/// The case's weights as variables: all, and under the encoder's prefix.
fn trained(case: &Case, prefix: &str) -> Result<(Params, Params)> {
    let checkpoint = Checkpoint::open(&case.dir)?;
    let prefixed = checkpoint.names().any(|name| name.starts_with(prefix));
    let params = Params::resume(&checkpoint, &case.device);
    let under = if prefixed { params.pp(prefix.trim_end_matches('.')) } else { params.clone() };
    Ok((params, under))
}

/// On variables the encoder gives the same, and every variable gets a gradient that is finite and not all zero.
fn gradients(case: &Case, params: &Params, packed: &Tokens, trained: &Tokens) -> Result<()> {
    case.alike(&packed.embeds, &trained.embeds, 1e-4, "on variables the outputs differ")?;
    // A sum would vanish behind the last norm.
    let grads = trained.embeds.powf(3.0)?.sum_all()?.backward()?;
    for (name, var) in params.variables() {
        if name.contains(".running_") {
            // Statistics of training.
            ensure!(grads.get(&var).is_none(), "{name} is a statistic and gets a gradient");
            continue;
        }
        let Some(grad) = grads.get(&var) else { bail!("{name} gets no gradient") };
        let sum = grad.sqr()?.sum_all()?.to_scalar::<f32>()?;
        // The same bias for all keys changes no softmax.
        ensure!(sum.is_finite() && (sum > 0.0 || name.contains("k_proj.bias")), "{name} gets a gradient of {sum}");
    }
    Ok(())
}

/// Real samples of each row, where the case has a mask.
fn lengths(case: &Case) -> Result<Option<Vec<usize>>> {
    if !case.has_input("attention_mask") {
        return Ok(None);
    }
    let mask = case.input("attention_mask")?.to_dtype(DType::U32)?.to_vec2::<u32>()?;
    let lengths = mask.iter().map(|row| {
        let n = row.iter().take_while(|&&v| v == 1).count();
        ensure!(row[n..].iter().all(|&v| v == 0), "the mask is not that of padding at the right");
        Ok(n)
    });
    Ok(Some(lengths.collect::<Result<_>>()?))
}

/// Frames that rest on real samples.
pub fn meaningful(case: &Case, name: &str) -> Result<Option<Vec<bool>>> {
    let Some(lengths) = lengths(case)? else { return Ok(None) };
    if name == "conv_features" || name == "extract_features" {
        return Ok(None);
    }
    let frames = case.json["expected"][name]["shape"][1].as_u64().unwrap_or(0) as usize;
    let config = WaveConfig::load(&case.dir)?;
    Ok(Some(
        lengths.iter().flat_map(|&n| (0..frames).map(move |i| (i, n))).map(|(i, n)| i < config.frames(n)).collect(),
    ))
}
