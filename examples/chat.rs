//! Asks a language model one question and prints the answer as it is written.
//!
//! ```console
//! cargo run --release --example chat -- path/to/OLMoE-1B-7B-0924-Instruct "What is a mixture of experts?"
//! ```

use std::io::Write;

use anyhow::Context;
use moesaic::{Chat, Message, TemplateOptions, TextOptions};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().context("usage: chat MODEL_DIR QUESTION")?;
    let question = arguments.next().context("usage: chat MODEL_DIR QUESTION")?;

    // A `Chat` is `Send + Sync` and keeps nothing between calls: put one behind an `Arc` and ask it from all threads.
    let chat = Chat::from_dir(&dir)?;
    let info = chat.generator().info();
    eprintln!("{}: {} of {} parameters active", info.architecture, info.parameters.active, info.parameters.total);

    let mut options = TextOptions::default();
    options.max_tokens = Some(200);
    options.temperature = Some(0.7);

    // To go on with the conversation, push the answer as `Message::assistant` and the next question behind it.
    let messages = [Message::user(question)];
    let mut stream = chat.stream(&messages, &TemplateOptions::default(), &options)?;
    for piece in &mut stream {
        print!("{}", piece?.text);
        std::io::stdout().flush()?;
    }
    println!();
    eprintln!("{:.1} tokens/s", stream.speed().decode());
    Ok(())
}
