//! Writes down what is said in a recording, by ear, by eye or by both:
//!
//! ```text
//! cargo run --release --features h264 --example avsr -- examples/data/speech/clip.mp4 [--modality audio|video|audiovisual] [--model FOLDER]
//! ```
//!
//! Without the feature `h264` (off because of the patents on that codec) the sound of an MP4 is transcribed alone; lips can be
//! given as an animation or as a folder of pictures then: `examples/data/speech/mouth.webp`. Without `--model` the small model of
//! the library writes, which knows commands such as the clip's; a folder holds a Llama-AVSR, a Llama-SMoP or a Llama-MTSK, or what
//! `moesaic train speech` made (examples/speech/train.toml).

use std::sync::Arc;
use std::thread;

use anyhow::{Result, bail};
use moesaic::{Senses, TranscribeOptions, Transcriber};

fn main() -> Result<()> {
    let (mut options, mut model, mut files) = (TranscribeOptions::default(), None, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--modality" => {
                options.senses = Some(match arguments.next().as_deref() {
                    Some("audio") => Senses::Audio,
                    Some("video") => Senses::Video,
                    Some("audiovisual") => Senses::AudioVisual,
                    other => bail!("--modality {}: expected audio, video or audiovisual", other.unwrap_or("")),
                });
            }
            "--model" => model = arguments.next(),
            file => files.push(file.to_string()),
        }
    }
    if files.is_empty() {
        bail!("which recording? For example: examples/data/speech/clip.mp4");
    }
    let transcriber = Arc::new(match model {
        Some(folder) => Transcriber::from_dir(folder)?,
        None => Transcriber::embedded()?,
    });
    // One model serves all threads: it keeps nothing between calls.
    let jobs: Vec<_> = files
        .into_iter()
        .map(|file| {
            let (transcriber, options) = (Arc::clone(&transcriber), options.clone());
            (file.clone(), thread::spawn(move || transcriber.transcribe(&file, &options)))
        })
        .collect();
    for (file, job) in jobs {
        let Ok(transcript) = job.join() else { bail!("{file}: the thread died") };
        let transcript = transcript?;
        println!("{file} ({}, {:.1} s): {}", transcript.senses, transcript.seconds, transcript.text);
        for word in transcript.segments.iter().flat_map(|segment| &segment.words) {
            println!("  {:<12}{:>5.1} %", word.text, 100.0 * word.confidence);
        }
        transcript.remarks.iter().for_each(|remark| eprintln!("note: {remark}"));
    }
    Ok(())
}
