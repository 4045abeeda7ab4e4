//! AV-HuBERT: `av.`, `v.` and `a.` for both modalities and each alone, `pad.` for both with padding; and pixels of lips.
//!
//! A case may hold its weights twice, as safetensors and, in f16, as fairseq's `checkpoint.pt`: both are run.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use moesaic_encoders::speech::{AvHubert, AvHubertConfig};
use moesaic_encoders::video::{LipFrames, LipVariant};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::checkpoint::pickle::Pickle;
use moesaic_kernels::{Params, Probe};

use crate::case::{Case, Got};

const SAFETENSORS: &str = "model.safetensors";
const PICKLE: &str = "checkpoint.pt";
/// How far outputs of weights in f16 may be from those in f32, as the case's notes say.
const HALF: f32 = 3e-2;

pub fn run(case: &Case, got: &mut Got) -> Result<()> {
    let (safetensors, pickle) = (case.dir.join(SAFETENSORS).is_file(), case.dir.join(PICKLE).is_file());
    *got = passes(case, &AvHubert::load(&case.dir, case.dtype, &case.device)?)?;
    if safetensors && pickle {
        // The config stands in the pickle as well.
        let pickle = Pickle::open(&case.dir.join(PICKLE))?;
        let config = AvHubertConfig::from_json(pickle.config().context("the pickle holds no config")?)?;
        let model = AvHubert::from_checkpoint(config, &pickle.into_checkpoint(), case.dtype, &case.device)?;
        let half = passes(case, &model)?;
        // Behind padding nothing means anything, and the tolerance is for all values of a tensor.
        for name in case.wanted().filter(|name| !name.starts_with("pad.")) {
            case.alike(half.get(name)?, case.given(name)?, HALF, &format!("{name} of {PICKLE} is off"))?;
        }
    }
    if safetensors { trained(case, got) } else { Ok(()) }
}

fn inputs(case: &Case) -> Result<(Tensor, Tensor)> {
    Ok((case.input("video")?, case.input("audio")?))
}

fn passes(case: &Case, model: &AvHubert) -> Result<Got> {
    let (video, audio) = inputs(case)?;
    let lengths = lengths(case)?;
    let mut got = Got::default();
    for (prefix, video, audio, lengths) in [
        ("av.", Some(&video), Some(&audio), None),
        ("v.", Some(&video), None, None),
        ("a.", None, Some(&audio), None),
        ("pad.", Some(&video), Some(&audio), lengths.as_deref()),
    ] {
        if case.wants(prefix) {
            let probe = Probe::new();
            model.forward(video, audio, lengths, Some(&probe))?;
            got.put_all(prefix, probe.tensors());
        }
    }
    Ok(got)
}

/// On variables the encoder gives the same, and every variable gets a gradient that is finite and not all zero.
fn trained(case: &Case, got: &Got) -> Result<()> {
    let params = Params::resume(&Checkpoint::open(&case.dir)?, &case.device);
    let model = AvHubert::new(AvHubertConfig::load(&case.dir)?, &params)?;
    let (video, audio) = inputs(case)?;
    let out = model.forward(Some(&video), Some(&audio), None, None)?.embeds;
    case.alike(&out, got.get("av.last_hidden")?, 1e-4, "on variables the outputs differ")?;
    // A sum would vanish behind the last norm.
    let grads = out.powf(3.0)?.sum_all()?.backward()?;
    for (name, var) in params.variables() {
        let grad = grads.get(&var);
        if name.contains(".running_") {
            ensure!(grad.is_none(), "{name} is a statistic and gets a gradient");
            continue;
        }
        let sum = grad.with_context(|| format!("{name} gets no gradient"))?.sqr()?.sum_all()?.to_scalar::<f32>()?;
        // The same bias for all keys changes no softmax.
        ensure!(sum.is_finite() && (sum > 0.0 || name.contains("k_proj.bias")), "{name} gets a gradient of {sum}");
    }
    Ok(())
}

/// Real frames of each row, where the case has a mask: 1 is padding there.
fn lengths(case: &Case) -> Result<Option<Vec<usize>>> {
    if !case.has_input("padding_mask") {
        return Ok(None);
    }
    let mask = case.input("padding_mask")?.to_dtype(DType::U32)?.to_vec2::<u32>()?;
    let lengths = mask.iter().map(|row| {
        let n = row.iter().take_while(|&&v| v == 0).count();
        ensure!(row[n..].iter().all(|&v| v == 1), "the mask is not that of padding at the right");
        Ok(n)
    });
    Ok(Some(lengths.collect::<Result<_>>()?))
}

/// Frames that are not padding, where padding is masked.
pub fn meaningful(case: &Case, name: &str) -> Result<Option<Vec<bool>>> {
    if !name.starts_with("pad.") {
        return Ok(None);
    }
    let lengths = lengths(case)?.context("the case has no padding_mask")?;
    let frames = case.given(name)?.dim(1)?;
    Ok(Some(lengths.iter().flat_map(|&n| (0..frames).map(move |i| i < n)).collect()))
}

/// `llama_avsr [t, 1, 88, 88]` and `av_hubert_cv2 [t, 88, 88]` of `frames_rgb [t, h, w, 3]`.
pub fn video(case: &Case, got: &mut Got) -> Result<()> {
    let rgb = case.input("frames_rgb")?;
    let clip = LipFrames::new(LipVariant::LlamaAvsr).clip(&rgb)?;
    got.put("llama_avsr", clip.squeeze(0)?.transpose(0, 1)?);
    let clip = LipFrames::new(LipVariant::AvHubert).clip(&rgb)?;
    got.put("av_hubert_cv2", clip.squeeze(0)?.squeeze(0)?);
    Ok(())
}
