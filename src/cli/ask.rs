//! `moesaic ask` and `moesaic routes`

use std::path::PathBuf;

use anyhow::{Result, bail};
use moesaic::plot::{HeatMap, heat_maps};
use moesaic::prompts::Turn;
use moesaic::{Answer, ExpertShares, Picture, RouteMap, Speed, VisionChat, VisionModelInfo};
use serde::Serialize;

use super::generate::{conclude, follow};
use super::language::{WritingArgs, answering, catch_interrupts, interrupted};
use super::model::vision_folder;
use super::output::Output;
use super::{INTERRUPTED, print};

/// Pictures and a question about them, alike in both commands.
#[derive(Debug, clap::Args)]
struct About {
    /// Pictures: JPEG, PNG, WebP, GIF, BMP or TIFF
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    /// The question; <image> in it says where each picture stands, else all stand in front
    #[arg(value_name = "QUESTION", required = true)]
    question: String,
    /// Folder of a model that looks at pictures; the small one of the program if left out, which knows shapes and digits
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
}

impl About {
    /// The pictures, before the model, which takes longer to read.
    fn pictures(&self) -> Result<Vec<Picture>> {
        self.images.iter().map(|path| Ok(Picture::open(path).map_err(moesaic::Error::from)?)).collect()
    }

    fn open(&self, writing: Option<&WritingArgs>) -> Result<VisionChat> {
        let dtype = writing.and_then(|writing| writing.dtype);
        let mut chat = match (self.model.as_deref().map(vision_folder).transpose()?, dtype) {
            (Some(dir), None) => VisionChat::from_dir(dir)?,
            (Some(dir), Some(dtype)) => VisionChat::from_dir_as(dir, dtype)?,
            (None, None) => VisionChat::embedded()?,
            (None, Some(_)) => bail!("--dtype is for a model that --model names"),
        };
        if let Some(most) = self.max_pixels {
            chat.limit_pixels(most);
        }
        if let Some(writing) = writing {
            writing.attach_by(&mut |folder, strength| chat.attach(folder, strength))?;
        }
        Ok(chat)
    }
}

/// Ask a question about pictures.
///
/// Prints the answer as it is written, and tokens per second on standard error. Ctrl-C stops it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    about: About,
    #[command(flatten)]
    writing: WritingArgs,
    /// Print JSON at the end: the model, the answer, and the time taken
    #[arg(long)]
    json: bool,
    /// With --json, the log-probability of each token
    #[arg(long, requires = "json")]
    log_probs: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let pictures = args.about.pictures()?;
    let chat = args.about.open(Some(&args.writing))?;
    let mut options = args.writing.options();
    options.log_probs = args.log_probs;
    catch_interrupts()?;
    answering(true);
    let turns = [Turn { question: &args.about.question, answer: None }];
    let (answers, times) = follow(chat.stream(&pictures, &turns, &options)?, args.json)?;
    if args.json {
        #[derive(Serialize)]
        struct Output<'a> {
            model: &'a VisionModelInfo,
            answers: &'a [Answer],
            speed: Speed,
        }
        let output = Output { model: chat.info(), answers: &answers, speed: times };
        print(&(serde_json::to_string_pretty(&output)? + "\n"))?;
    } else {
        conclude(&answers, &times)?;
    }
    if interrupted() {
        std::process::exit(INTERRUPTED);
    }
    Ok(())
}

/// Show which experts the tokens of pictures and of a question go to.
///
/// Draws two heat maps of layers by experts, one for picture tokens and one for text. A value is the share of an expert in the
/// choices that the tokens made in this layer.
#[derive(Debug, clap::Args)]
pub(super) struct RoutesArgs {
    #[command(flatten)]
    about: About,
    /// Where the picture goes (SVG)
    #[arg(long, value_name = "FILE.svg", required_unless_present = "json")]
    out: Option<PathBuf>,
    /// Print the shares as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn routes(args: &RoutesArgs) -> Result<()> {
    if let Some(out) = &args.out
        && !out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("svg"))
    {
        anyhow::bail!("cannot write {}: pictures are SVG; give a name that ends in .svg", out.display());
    }
    let out = args.out.as_deref().map(Output::open).transpose()?;
    let pictures = args.about.pictures()?;
    let chat = args.about.open(None)?;
    let map = chat.routes(&pictures, &[Turn { question: &args.about.question, answer: None }])?;
    if let Some(out) = out {
        out.write(draw(&map).as_bytes())?;
    }
    if args.json {
        #[derive(Serialize)]
        struct Output<'a> {
            model: &'a VisionModelInfo,
            #[serde(flatten)]
            map: &'a RouteMap,
        }
        print(&(serde_json::to_string_pretty(&Output { model: chat.info(), map: &map })? + "\n"))?;
    }
    Ok(())
}

/// Both maps: a row for each layer, the first at the bottom, and a column for each expert.
fn draw(map: &RouteMap) -> String {
    let experts = |layer: &ExpertShares| layer.image.len().max(layer.text.len());
    let columns = map.layers.iter().map(experts).max().unwrap_or(0);
    let values = |of: &dyn Fn(&ExpertShares) -> Vec<f32>| -> Vec<f32> {
        let row = |layer: &ExpertShares| {
            let mut row = of(layer);
            // Layers with fewer experts, or without such tokens, stay white there.
            row.resize(columns, f32::NAN);
            row
        };
        map.layers.iter().flat_map(row).collect()
    };
    let (image, text) = (values(&|layer| layer.image.clone()), values(&|layer| layer.text.clone()));
    let names = match &map.layers[..] {
        [] => String::new(),
        [only] => only.name.clone(),
        [first, .., last] => format!("{} at the bottom to {} at the top", first.name, last.name),
    };
    let titles = [
        format!("Image tokens ({}): share of each expert", map.image_tokens),
        format!("Text tokens ({}): share of each expert", map.text_tokens),
    ];
    let part = |title, values| HeatMap {
        title,
        caption: &names,
        values,
        rows: map.layers.len(),
        x: (0.0, columns as f64),
        unit: "expert",
    };
    heat_maps(&[part(&titles[0], &image), part(&titles[1], &text)])
}
