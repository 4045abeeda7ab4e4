//! Asks questions about a sound, all at the same time, and prints the answers.
//!
//! ```console
//! cargo run --release --example listen -- examples/data/sound/mixture.flac "Which digits are said?" "Is anyone speaking?"
//! cargo run --release --example listen -- street.wav "What can be heard?" --model FOLDER
//! ```
//!
//! Without `--model` it asks the small model in assets/sound, which knows digits, a few kinds of sounds, beats, chords and scales
//! (assets/sound/README.md). A folder holds a U-SAM, or what `moesaic train sound` made. Sound that is longer than what the model
//! hears at once gets an answer for each window.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail};
use moesaic::{AudioChat, TextOptions};

fn main() -> Result<()> {
    let usage = "usage: listen SOUND QUESTION... [--model FOLDER]";
    let mut model = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/sound"));
    let mut given = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--model" => model = arguments.next().context(usage)?.into(),
            _ => given.push(argument),
        }
    }
    let Some((sound, questions)) = given.split_first().filter(|(_, questions)| !questions.is_empty()) else {
        bail!(usage)
    };
    // One model serves all threads: it keeps nothing between calls.
    let chat = Arc::new(AudioChat::from_dir(model)?);
    let jobs: Vec<_> = questions
        .iter()
        .map(|question| {
            let (chat, sound, question) = (Arc::clone(&chat), sound.clone(), question.clone());
            thread::spawn(move || chat.ask(sound, &question, &TextOptions::default()))
        })
        .collect();
    for (question, job) in questions.iter().zip(jobs) {
        let Ok(answers) = job.join() else { bail!("{question}: the thread died") };
        for heard in answers? {
            println!("{:.1} to {:.1} s: {question} {}", heard.start, heard.end, heard.answer.text);
        }
    }
    Ok(())
}
