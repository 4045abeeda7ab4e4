//! `moesaic routes`

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use moesaic::plot::{HeatMap, heat_maps};
use moesaic::{
    FileKind, ForecastOptions, Forecaster, LayerRoutes, Omni, RouteMap, SEGMENT, Table, TableOptions, TextGenerator,
};
use serde::Serialize;

use super::output::Output;
use super::{info, model, note, print};

/// Show which experts the tokens of any model go to.
///
/// Prints a table of all sparse layers; --out draws a heat map of layers by experts for the tokens of each origin (pictures, sound, text,
/// series), in which a value is the share of an expert in the choices that the tokens made in this layer.
///
/// SRP tells how well a router that chooses for whole segments could do, SCH which share of a segment's routes go to its most used
/// experts, twice as many as a token takes (arXiv 2505.16056): models with high values suit an expert cache.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pictures, a sound or video, a table (CSV, Parquet) or a text; behind pictures, and behind sound for a model that answers, the
    /// question; any of them together for a model that reads all
    #[arg(value_name = "INPUT", required = true)]
    inputs: Vec<PathBuf>,
    /// Folder of a model; if left out, the small one of the program for pictures, recordings or series
    #[cfg_attr(feature = "hub", doc = "")]
    #[cfg_attr(
        feature = "hub",
        doc = "Also the id of one on the Hub, which is downloaded once: org/name or org/name@revision."
    )]
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Scale pictures down to so many pixels, for models that take them in any size (Qwen3-VL): fewer tokens
    #[arg(long, value_name = "N")]
    max_pixels: Option<usize>,
    /// Neighbouring tokens that make a segment
    #[arg(long, value_name = "N", default_value_t = SEGMENT)]
    segment: usize,
    /// Where the picture goes (SVG)
    #[arg(long, value_name = "FILE.svg")]
    out: Option<PathBuf>,
    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,
    /// With --json, the experts of each token
    #[arg(long, requires = "json")]
    tokens: bool,
}

/// Series that are looked at; more would say no more.
const MOST_SERIES: usize = 64;

pub(super) fn run(args: &Args) -> Result<()> {
    let out = args.out.as_deref().map(Output::picture).transpose()?;
    let (name, mut map) = routes(args)?;
    if let Some(out) = out {
        out.write(draw(&map).as_bytes())?;
    }
    if !args.json {
        return Ok(print(&table(&map))?);
    }
    if !args.tokens {
        map.layers.iter_mut().for_each(|layer| layer.choices.clear());
    }
    #[derive(Serialize)]
    struct Shown<'a> {
        model: &'a str,
        #[serde(flatten)]
        map: &'a RouteMap,
    }
    Ok(print(&(serde_json::to_string_pretty(&Shown { model: &name, map: &map })? + "\n"))?)
}

/// The model's name and its routes.
fn routes(args: &Args) -> Result<(String, RouteMap)> {
    let Some((first, rest)) = args.inputs.split_first() else { bail!("there is no input") };
    let only = |what: &str| match rest {
        [] => Ok(()),
        _ => bail!("{}: {what} is looked at alone; give nothing behind it", first.display()),
    };
    if let Some(dir) = args.model.as_deref().filter(|dir| info::reads_all(dir)) {
        return everything(args, dir);
    }
    match FileKind::of(first)? {
        FileKind::Picture => pictures(args),
        FileKind::Sound => sound(args, first, rest),
        FileKind::Parquet => only("a table").and_then(|()| series(args, first)),
        FileKind::Text => {
            let writes = args.model.as_deref().map(model::text_folder);
            match writes.transpose()?.filter(|dir| info::writes_text(dir)) {
                Some(dir) => only("a text").and_then(|()| text(args, &dir, first)),
                None if first.extension().is_some_and(|end| end.eq_ignore_ascii_case("txt")) => {
                    bail!("{}: a text takes a language model: name one with --model", first.display())
                }
                None => only("a table").and_then(|()| series(args, first)),
            }
        }
    }
}

/// Files, and the question behind them.
fn everything(args: &Args, dir: &Path) -> Result<(String, RouteMap)> {
    let omni = Omni::from_dir(dir)?;
    let (mut shown, mut question) = (Vec::new(), Vec::new());
    for input in &args.inputs {
        if !super::run::is_file(input)? {
            question.push(input.to_string_lossy());
            continue;
        }
        let (media, notes) = omni.open(input, &TableOptions::default())?;
        notes.iter().for_each(|remark| note(remark));
        shown.push(media);
    }
    Ok((omni.info().source.clone(), omni.routes(&shown, &question.join(" "), args.segment)?))
}

fn text(args: &Args, dir: &Path, file: &Path) -> Result<(String, RouteMap)> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| anyhow::anyhow!("{}: cannot be read as text: {error}", file.display()))?;
    let model = TextGenerator::from_dir(dir)?;
    Ok((model.info().source.clone(), model.routes(&text, args.segment)?))
}

fn series(args: &Args, file: &Path) -> Result<(String, RouteMap)> {
    let mut table = Table::read(file, &TableOptions::default())?;
    table.series.retain(|series| series.values.iter().any(|value| value.is_finite()));
    if table.series.len() > MOST_SERIES {
        note(&format!("the first {MOST_SERIES} of {} series are looked at", table.series.len()));
        table.series.truncate(MOST_SERIES);
    }
    let model = match args.model.as_deref() {
        Some(dir) => Forecaster::from_dir(dir)?,
        None => Forecaster::embedded()?,
    };
    let known = table.series.iter().map(|series| series.values.len()).max().unwrap_or(0);
    let horizon = table.frequency.map_or(24, |frequency| frequency.usual_horizon()).min(known / 2);
    let horizon = horizon.min(model.max_horizon()).max(1);
    let map = model.routes(&table.series, horizon, &ForecastOptions::default(), args.segment)?;
    Ok((model.info().source.clone(), map))
}

#[cfg(feature = "image")]
fn pictures(args: &Args) -> Result<(String, RouteMap)> {
    let Some((question, images)) = args.inputs.split_last().filter(|(_, images)| !images.is_empty()) else {
        bail!("what is asked about the picture? Give the question behind it");
    };
    let pictures = super::ask::pictures(images)?;
    let chat = super::ask::open(args.model.as_deref(), None, moesaic::Device::Cpu, args.max_pixels)?;
    let question = question.to_string_lossy();
    let turns = [moesaic::prompts::Turn { question: &question, answer: None }];
    Ok((chat.info().source.clone(), chat.routes(&pictures, &turns, args.segment)?))
}

#[cfg(not(feature = "image"))]
fn pictures(_: &Args) -> Result<(String, RouteMap)> {
    bail!("this program was built without pictures (feature image)")
}

#[cfg(feature = "audio")]
fn sound(args: &Args, file: &Path, rest: &[PathBuf]) -> Result<(String, RouteMap)> {
    use moesaic::{AudioChat, TranscribeOptions, Transcriber};

    let folder = args.model.as_deref().map(model::audio_folder).transpose()?;
    if let Some(dir) = folder.as_deref().filter(|dir| info::listens(dir)) {
        let [question] = rest else { bail!("what is asked about the sound? Give one question behind it") };
        let chat = AudioChat::from_dir(dir)?;
        let Some(window) = chat.open(file)?.next() else { bail!("{}: there is no sound in it", file.display()) };
        let samples = window.map_err(moesaic::Error::from)?;
        return Ok((chat.info().source.clone(), chat.routes(&samples, &question.to_string_lossy(), args.segment)?));
    }
    if let [first, ..] = rest {
        bail!("{}: a recording is transcribed without a question", first.display());
    }
    let (transcriber, name) = match &folder {
        Some(dir) => (Transcriber::from_dir(dir)?, dir.display().to_string()),
        None => (Transcriber::embedded()?, "built-in".to_string()),
    };
    let options = TranscribeOptions::default();
    let recording = transcriber.open(file, None, &options)?;
    Ok((name, transcriber.routes(recording, &options, args.segment)?))
}

#[cfg(not(feature = "audio"))]
fn sound(_: &Args, _: &Path, _: &[PathBuf]) -> Result<(String, RouteMap)> {
    bail!("this program was built without sound (feature audio)")
}

/// A line for each layer.
fn table(map: &RouteMap) -> String {
    let tokens: Vec<String> = map.tokens.iter().map(|(origin, count)| format!("{count} {origin}")).collect();
    let width = map.layers.iter().map(|layer| layer.name.chars().count()).max().unwrap_or(0).max(5);
    let mut text = format!("tokens: {}\n", tokens.join(", "));
    text += &format!(
        "{:<width$}  experts  a token  busiest  entropy  SRP({m})  SCH({m}, cache)\n",
        "layer",
        m = map.segment
    );
    let share = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.3}"));
    for layer in &map.layers {
        let busiest = layer.load.iter().copied().fold(0.0, f32::max);
        text += &format!(
            "{:<width$}  {:>7}  {:>7.2}  {:>5.1} %  {:>7.2}  {:>7}  {} ({})\n",
            layer.name,
            layer.experts,
            layer.per_token,
            100.0 * busiest,
            layer.entropy,
            share(layer.srp),
            share(layer.sch),
            layer.cache
        );
    }
    text
}

/// A map for each origin: a row for each layer, the first at the bottom, and a column for each expert.
fn draw(map: &RouteMap) -> String {
    let columns = map.layers.iter().map(|layer| layer.experts).max().unwrap_or(0);
    let values = |origin: &str| -> Vec<f32> {
        let row = |layer: &LayerRoutes| {
            let mut row = layer.shares.get(origin).cloned().unwrap_or_default();
            // Layers with fewer experts, or without such tokens, stay white there.
            row.resize(columns, f32::NAN);
            row
        };
        map.layers.iter().flat_map(row).collect()
    };
    let names = match &map.layers[..] {
        [] => String::new(),
        [only] => only.name.clone(),
        [first, .., last] => format!("{} at the bottom to {} at the top", first.name, last.name),
    };
    let capital = |origin: &str| origin[..1].to_uppercase() + &origin[1..];
    let parts: Vec<(String, Vec<f32>)> = map
        .tokens
        .iter()
        .map(|(origin, count)| (format!("{} tokens ({count}): share of each expert", capital(origin)), values(origin)))
        .collect();
    let maps: Vec<HeatMap<'_>> = parts
        .iter()
        .map(|(title, values)| HeatMap {
            title,
            caption: &names,
            values,
            rows: map.layers.len(),
            x: (0.0, columns as f64),
            unit: "expert",
        })
        .collect();
    heat_maps(&maps)
}
