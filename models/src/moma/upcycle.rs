//! From one expert for each modality to several (MoMa, arXiv 2407.21770).

use candle_core::{DType, Device, Result, Tensor, bail};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::Checkpoint;

use super::config::Config;
use super::{Moma, Routing};

/// The config and tensors of a model with `text` and `image` experts, each a copy of the one that a trained model
/// (`config`, `from`) has for its modality. Routers start anew from `seed`, and Gumbel-sigmoid noise of that seed tells the
/// copies apart in training; the learning rate starts anew too. All else stays, and auxiliary routers are trained again.
///
/// # Errors
/// The trained model has more than one expert for a modality, or its tensors do not fit its config.
pub fn upcycle(
    config: &Config,
    from: &Checkpoint,
    (text, image): (usize, usize),
    seed: u64,
) -> Result<(Config, Vec<(String, Tensor)>)> {
    if (config.text_experts, config.image_experts) != (1, 1) {
        bail!(
            "upcycling starts from one expert for each modality, not {} and {}",
            config.text_experts,
            config.image_experts
        );
    }
    if config.mixed_experts.is_some() || config.audio_experts > 1 || config.series_experts > 1 {
        bail!("upcycling starts from one expert for each modality, not from experts that are shared or several");
    }
    let grown = Config { text_experts: text, image_experts: image, gumbel_noise: Some(seed), ..config.clone() };
    // What the new model asks for, with new values: only its routers keep them.
    let fresh = Params::init(seed, &Device::Cpu);
    Moma::new(grown.clone(), &fresh, None, Routing::Choice)?;
    let mut tensors = Vec::new();
    for (name, start) in fresh.published(|var| Some(var.as_tensor().clone()))? {
        let values = match name.ends_with(".mlp.router.weight") {
            true => start.detach().copy()?,
            false => from.read(&source(&name), start.dims(), DType::F32, &Device::Cpu)?,
        };
        tensors.push((name, values));
    }
    Ok((grown, tensors))
}

/// The tensor of the small model that one of the grown model is a copy of: that of expert 0.
fn source(name: &str) -> String {
    for group in [".mlp.text.", ".mlp.image."] {
        if let Some((layer, rest)) = name.split_once(group)
            && let Some((_, map)) = rest.split_once('.')
        {
            return format!("{layer}{group}0.{map}");
        }
    }
    name.to_string()
}
