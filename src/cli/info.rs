//! `moesaic info`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use moesaic::{ModelFile, ModelInfo, OmniModelInfo, Parameters, TextModelInfo};
use moesaic_kernels::checkpoint::gguf::is_gguf;

use super::{bytes, count, model, print};

/// Describe a model: architecture, parameters, experts, files.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of a model, or a GGUF file; the built-in one if left out
    #[cfg_attr(feature = "hub", doc = "")]
    #[cfg_attr(
        feature = "hub",
        doc = "Also the id of a model on the Hub, which is downloaded first: org/name or org/name@revision."
    )]
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    if let Some(dir) = args.model.as_deref().filter(|dir| reads_all(dir)) {
        let info = OmniModelInfo::of_dir(dir)?;
        let text = if args.json { serde_json::to_string_pretty(&info)? + "\n" } else { describe_omni(&info) };
        return Ok(print(&text)?);
    }
    #[cfg(feature = "image")]
    if let Some(info) = model::describe_vision(args.model.as_deref(), looks)? {
        let text = if args.json { serde_json::to_string_pretty(&info)? + "\n" } else { describe_vision(&info) };
        return Ok(print(&text)?);
    }
    #[cfg(feature = "audio")]
    if let Some(info) = model::describe_audio(args.model.as_deref(), listens)? {
        let text = if args.json { serde_json::to_string_pretty(&info)? + "\n" } else { describe_audio(&info) };
        return Ok(print(&text)?);
    }
    if let Some(info) = model::describe_text(args.model.as_deref(), writes_text)? {
        let text = if args.json { serde_json::to_string_pretty(&info)? + "\n" } else { describe_text(&info) };
        return Ok(print(&text)?);
    }
    let info = model::describe(args.model.as_deref())?;
    let text = if args.json { serde_json::to_string_pretty(&info)? + "\n" } else { describe(&info) };
    Ok(print(&text)?)
}

/// Whether this is a GGUF file, or the folder's `config.json` names a model that does not forecast. What cannot be read is left to the forecaster,
/// whose messages say what is wrong.
pub(super) fn writes_text(dir: &Path) -> bool {
    is_gguf(dir) || model_type(dir).is_some_and(|name| name != "time_moe")
}

/// Whether the folder's `config.json` names a model that looks at pictures.
#[cfg(feature = "image")]
fn looks(dir: &Path) -> bool {
    !is_gguf(dir)
        && model_type(dir).is_some_and(|name| moesaic::VisionModelInfo::supported().any(|known| known == name))
}

/// Whether the folder's `config.json` names a model that listens.
#[cfg(feature = "audio")]
pub(super) fn listens(dir: &Path) -> bool {
    !is_gguf(dir) && model_type(dir).is_some_and(|name| name == "usam")
}

/// Whether the folder's `config.json` names a model that reads text, pictures, sound and series.
pub(super) fn reads_all(dir: &Path) -> bool {
    !is_gguf(dir) && model_type(dir).is_some_and(|name| name == "omni")
}

fn model_type(dir: &Path) -> Option<String> {
    let path = dir.join("config.json");
    if std::fs::metadata(&path).is_ok_and(|file| file.len() > LONGEST_CONFIG) {
        return None;
    }
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
    Some(config.get("model_type")?.as_str()?.to_string())
}

/// A configuration longer than this is not one.
const LONGEST_CONFIG: u64 = 1 << 20;

fn describe_text(info: &TextModelInfo) -> String {
    let experts = match (info.experts, info.shared_expert) {
        (0, _) => "none (dense)".into(),
        (n, false) => format!("{n} a layer, {} for each token", info.experts_per_token),
        (n, true) => format!("{n} a layer, {} for each token, and shared ones", info.experts_per_token),
    };
    let layers = match info.sparse_layers {
        n if n == 0 || n == info.layers => info.layers.to_string(),
        n => format!("{} ({n} of them sparse)", info.layers),
    };
    let heads = match info.kv_heads {
        Some(kv) if kv != info.heads => format!("{} ({kv} of keys and values)", info.heads),
        Some(_) => info.heads.to_string(),
        None => format!("{} (keys and values from a latent)", info.heads),
    };
    let sizes = |part: &Parameters| match part.total == part.active {
        true => count(part.total),
        false => format!("{} in all, {} active", count(part.total), count(part.active)),
    };
    let mut rows = vec![
        ("model", info.source.clone()),
        ("architecture", info.architecture.clone()),
        ("parameters", format!("{} in all, {} active", count(info.parameters.total), count(info.parameters.active))),
    ];
    rows.extend(info.kinds.iter().map(|kind| (kind.kind.as_str(), sizes(&kind.parameters))));
    rows.extend([
        ("layers", layers),
        ("width", info.hidden.to_string()),
        ("attention heads", heads),
        ("experts", experts),
        ("vocabulary", format!("{} tokens", info.vocabulary)),
        ("context", format!("{} tokens of prompt and answer", info.positions)),
        ("stored as", stored(&info.dtypes)),
    ]);
    // Kinds of layers stand under the sum of their parameters.
    let kinds = info.kinds.len();
    let indent = |at: usize| if (3..3 + kinds).contains(&at) { "  " } else { "" };
    let rows = rows.iter().enumerate();
    let text: String =
        rows.map(|(at, (name, value))| format!("{:<16} {value}\n", format!("{}{name}", indent(at)))).collect();
    text + &files(&info.files)
}

#[cfg(feature = "image")]
fn describe_vision(info: &moesaic::VisionModelInfo) -> String {
    let sparse = match info.experts {
        0 => "none (dense)".to_string(),
        n => format!("{n} a layer, {} for each token", info.experts_per_token),
    };
    let parameters = &info.language_parameters;
    let size = info.image_size.map_or("pictures of any size".to_string(), |side| format!("{side} x {side} pixels"));
    let tokens = info.picture_tokens;
    let tokens = tokens.map_or("tokens by a picture's size".to_string(), |n| format!("{n} tokens a picture"));
    let rows = [
        ("model", info.source.clone()),
        ("architecture", info.architecture.clone()),
        ("vision tower", format!("{}, {size}", info.tower)),
        ("projector", format!("{}, {tokens}", info.projector)),
        ("language model", info.language.clone()),
        ("  parameters", format!("{} in all, {} active", count(parameters.total), count(parameters.active))),
        ("  layers", format!("{} ({} of them sparse)", info.layers, info.sparse_layers)),
        ("  experts", sparse),
        ("weights", bytes(info.bytes)),
    ];
    rows.iter().map(|(name, value)| format!("{name:<16} {value}\n")).collect()
}

#[cfg(feature = "audio")]
fn describe_audio(info: &moesaic::AudioModelInfo) -> String {
    let parameters = &info.language_parameters;
    let rows = [
        ("model", info.source.clone()),
        ("architecture", info.architecture.to_string()),
        ("encoders", format!("{}, {} wide together", info.encoders.join(", "), info.width)),
        ("hears at once", format!("{:.0} s", info.seconds)),
        ("projector", format!("{} mixed, summed over {}", info.experts, info.mixture_sum)),
        ("language model", info.language.clone()),
        ("  parameters", format!("{} in all, {} active", count(parameters.total), count(parameters.active))),
        ("  layers", info.layers.to_string()),
        ("weights", bytes(info.bytes)),
    ];
    rows.iter().map(|(name, value)| format!("{name:<16} {value}\n")).collect()
}

fn describe_omni(info: &OmniModelInfo) -> String {
    let experts: Vec<String> = info.experts.iter().map(|(name, count)| format!("{count} for {name}")).collect();
    let mut rows = vec![
        ("model", info.source.clone()),
        ("architecture", info.architecture.to_string()),
        ("parameters", count(info.parameters)),
        ("layers", info.layers.to_string()),
        ("width", info.hidden.to_string()),
        ("experts", format!("{} a layer", experts.join(", "))),
        ("vocabulary", format!("{} tokens", info.vocabulary)),
        ("context", format!("{} tokens of a conversation", info.context)),
    ];
    rows.extend(info.image_size.map(|side| ("pictures", format!("{side} x {side} pixels"))));
    rows.extend(info.seconds.map(|seconds| ("sound", format!("up to {seconds} s"))));
    rows.extend(info.values.map(|values| ("series", format!("the newest {values} values"))));
    rows.push(("weights", bytes(info.bytes)));
    rows.iter().map(|(name, value)| format!("{name:<16} {value}\n")).collect()
}

fn stored(dtypes: &BTreeMap<String, usize>) -> String {
    let dtypes: Vec<String> = dtypes.iter().map(|(name, tensors)| format!("{name} ({tensors} tensors)")).collect();
    dtypes.join(", ")
}

fn files(files: &[ModelFile]) -> String {
    let lines = files.iter().enumerate().map(|(at, file)| {
        let title = if at == 0 { "files" } else { "" };
        format!("{title:<16} {} ({})\n", file.name, bytes(file.bytes))
    });
    lines.collect()
}

fn describe(info: &ModelInfo) -> String {
    let horizons: Vec<String> = info.horizons.iter().map(ToString::to_string).collect();
    let sparse = info.experts > 1;
    let experts = match sparse {
        true if info.shared_experts == 0 => {
            format!("{} a layer, {} for each patch", info.experts, info.experts_per_token)
        }
        true => format!("{} a layer, {} for each value, and 1 shared", info.experts, info.experts_per_token),
        false => "none (dense)".into(),
    };
    let heads = match info.kv_heads == info.heads {
        true => info.heads.to_string(),
        false => format!("{} ({} of keys and values)", info.heads, info.kv_heads),
    };
    let rows = [
        ("model", info.source.clone()),
        ("architecture", info.architecture.clone()),
        ("parameters", format!("{} in all, {} active", count(info.parameters.total), count(info.parameters.active))),
        ("layers", info.layers.to_string()),
        ("width", info.hidden.to_string()),
        ("attention heads", heads),
        ("experts", experts),
        ("forecast heads", format!("{} values at once", horizons.join(", "))),
        ("positions", format!("{} values of history and forecast", info.positions)),
        ("stored as", stored(&info.dtypes)),
    ];
    let text: String = rows.iter().map(|(name, value)| format!("{name:<16} {value}\n")).collect();
    text + &files(&info.files)
}
