//! Asks a question about a picture and prints the answer as it is written.
//!
//! ```console
//! cargo run --release --example vqa -- examples/data/pictures/scene-2.png "What colour is the shape right of the brown triangle?"
//! cargo run --release --example vqa -- photo.jpg "What is it?" --model LanguageBind/MoE-LLaVA-StableLM-1.6B-4e
//! ```
//!
//! Without `--model` it asks the small model that is part of the library, which knows shapes and digits. A model is a folder, or the
//! id of one on the Hugging Face Hub, which is fetched once.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use moesaic::hub::Hub;
use moesaic::prompts::Turn;
use moesaic::{Picture, TextOptions, VisionChat, VisionModelInfo};

fn main() -> anyhow::Result<()> {
    let usage = "usage: vqa IMAGE QUESTION [--model MODEL]";
    let mut arguments = std::env::args().skip(1);
    let (image, question) = arguments.next().zip(arguments.next()).context(usage)?;
    // A `VisionChat` is `Send + Sync` and keeps nothing between calls: put one behind an `Arc` and ask it from all threads.
    let chat = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => VisionChat::embedded()?,
        (Some("--model"), Some(model)) => open(&model)?,
        _ => bail!(usage),
    };
    let picture = Picture::open(image)?;
    // To go on with the conversation, give the answer to this turn and put the next question behind it.
    let turns = [Turn { question: &question, answer: None }];
    for piece in chat.stream(&[picture], &turns, &TextOptions::default())? {
        print!("{}", piece?.text);
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}

/// A folder, or an id. What does not look at pictures is refused before its weights come.
fn open(model: &str) -> moesaic::Result<VisionChat> {
    if Path::new(model).exists() {
        return VisionChat::from_dir(model);
    }
    let found = Hub::from_env()?.model_if(model, |folder| VisionModelInfo::check(folder))?;
    VisionChat::from_dir(found.folder)
}
