//! One conversation about a picture, a sound and a table: words and numbers from one model.
//!
//! ```console
//! cargo run --release --example converse
//! cargo run --release --example converse -- photo.png "What shape is it?" sales.csv "Is it rising?" "Forecast 24 steps."
//! ```
//!
//! It talks with the small model in assets/omni, which knows a few shapes and colours, digits, kinds of sounds, and series
//! (assets/omni/README.md); `--model FOLDER` names another one that `moesaic train omni` made.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use moesaic::{Conversation, Omni, OmniOptions, TableOptions};

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut model, mut given) = (root.join("assets/omni"), Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--model" => model = arguments.next().context("--model takes a folder")?.into(),
            _ => given.push(PathBuf::from(argument)),
        }
    }
    if given.is_empty() {
        let data = |name: &str| root.join("examples/data").join(name);
        given = vec![
            data("pictures/circle.png"),
            "What color is the shape?".into(),
            "What shape is in the image?".into(),
            data("sound/mixture.flac"),
            "What can be heard beside a voice?".into(),
            data("co2.csv"),
            "Does it have a season?".into(),
            "Forecast 16 steps.".into(),
        ];
    }
    let omni = Omni::from_dir(model)?;
    // The model keeps nothing between calls: any number of conversations share it.
    let (mut talk, mut shown, options) = (Conversation::default(), Vec::new(), OmniOptions::default());
    for input in given {
        if input.exists() {
            let (media, notes) = omni.open(&input, &TableOptions::default())?;
            println!("[{}]", input.file_name().unwrap_or_default().to_string_lossy());
            notes.iter().for_each(|note| println!("  ({note})"));
            shown.push(media);
            continue;
        }
        let question = input.to_string_lossy();
        let answer = omni.ask(&mut talk, &shown, &question, &options)?;
        shown.clear();
        println!("{question} {}", answer.text);
        if let Some(forecast) = answer.forecast {
            let (low, high) = (forecast.quantiles.first(), forecast.quantiles.last());
            for (i, (stamp, value)) in forecast.timestamps.iter().zip(&forecast.values).enumerate() {
                let at = |quantile: Option<&moesaic::Quantile>| quantile.and_then(|q| q.values.get(i)).copied();
                println!(
                    "  {stamp} {value:.2} ({:.2} to {:.2})",
                    at(low).unwrap_or(*value),
                    at(high).unwrap_or(*value)
                );
            }
        }
    }
    println!("{} tokens of {}", talk.tokens(), omni.info().context);
    Ok(())
}
