//! `moesaic info`

use std::path::PathBuf;

use anyhow::Result;
use moesaic::ModelInfo;

use super::{bytes, count, model, print};

/// Describe a model: architecture, parameters, experts, files.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of a model; the built-in one if left out
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
    let info = model::describe(args.model.as_deref())?;
    let text = if args.json { serde_json::to_string_pretty(&info)? + "\n" } else { describe(&info) };
    Ok(print(&text)?)
}

fn describe(info: &ModelInfo) -> String {
    let dtypes: Vec<String> = info.dtypes.iter().map(|(name, tensors)| format!("{name} ({tensors} tensors)")).collect();
    let horizons: Vec<String> = info.horizons.iter().map(ToString::to_string).collect();
    let sparse = info.experts > 1;
    let experts = match sparse {
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
        ("stored as", dtypes.join(", ")),
    ];
    let mut text: String = rows.iter().map(|(name, value)| format!("{name:<16} {value}\n")).collect();
    for (at, file) in info.files.iter().enumerate() {
        let title = if at == 0 { "files" } else { "" };
        text.push_str(&format!("{title:<16} {} ({})\n", file.name, bytes(file.bytes)));
    }
    text
}
