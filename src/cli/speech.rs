//! `moesaic transcribe` and `moesaic eval wer`

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use moesaic::{Senses, TranscribeOptions, Transcriber, Transcript};
use serde::Serialize;

use super::language::{catch_interrupts, interrupted};
use super::{INTERRUPTED, note, print};

/// Write down what is said in recordings, by ear, by eye or by both.
///
/// Takes sound (WAV, FLAC, MP3, Ogg Vorbis, AAC, M4A), video (MP4 and MOV with H.264 in builds with the feature h264, animated GIF and
/// WebP, folders and patterns of pictures such as 'frames/*.png'), and uses all of both that the model takes. A mouth is found in
/// a face, unless frames already are mouths or --roi says where it is. Ctrl-C stops after the window that is being written.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recordings
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    model: SpeechModel,
    /// Use only this of a recording: audio, video, audiovisual
    #[arg(long, value_name = "SENSES", value_enum)]
    modality: Option<Modality>,
    /// The lips of the speaker, where they are in another file than the sound
    #[arg(long, value_name = "VIDEO")]
    lips: Option<PathBuf>,
    /// Search with N beams; 1 takes the likeliest word each time. As the model's config says, if left out
    #[arg(long, value_name = "N")]
    beam: Option<usize>,
    /// Seconds of a window; as the model's config says, if left out
    #[arg(long, value_name = "SECONDS")]
    window: Option<f64>,
    /// Seconds that two windows have in common
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    overlap: f64,
    #[cfg(feature = "video")]
    #[command(flatten)]
    mouth: MouthArgs,
    /// Take what can be decoded of damaged files
    #[arg(long)]
    lenient: bool,
    /// Print JSON: words with the model's confidence, windows with their times
    #[arg(long)]
    json: bool,
}

/// Which speech model.
#[derive(Debug, clap::Args)]
struct SpeechModel {
    /// Folder of a speech model: Llama-AVSR, Llama-SMoP, Llama-MTSK, or one that `moesaic train speech` made; the small one of the
    /// program if left out, which knows commands of six words, digits and letters
    #[cfg_attr(feature = "hub", doc = "")]
    #[cfg_attr(
        feature = "hub",
        doc = "Also the id of one on the Hub, which is downloaded once: org/name or org/name@revision."
    )]
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    #[command(flatten)]
    place: super::model::DeviceArgs,
}

impl SpeechModel {
    fn open(&self) -> Result<Transcriber> {
        Ok(match &self.model {
            Some(model) => Transcriber::from_dir_on(super::model::audio_folder(model)?, None, self.place.device)?,
            None => Transcriber::embedded_on(self.place.device)?,
        })
    }
}

/// The values of `--modality`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Modality {
    Audio,
    Video,
    Audiovisual,
}

impl From<Modality> for Senses {
    fn from(modality: Modality) -> Self {
        match modality {
            Modality::Audio => Self::Audio,
            Modality::Video => Self::Video,
            Modality::Audiovisual => Self::AudioVisual,
        }
    }
}

/// Where the mouth is.
#[cfg(feature = "video")]
#[derive(Debug, clap::Args)]
struct MouthArgs {
    /// Where the mouth is: auto, cropped (frames are mouths), face (found in a face), or a box x,y,width,height in pixels
    #[arg(long, value_name = "PLACE", default_value = "auto", value_parser = roi)]
    roi: moesaic::Roi,
    /// Which face is followed where there are several, counted from the left, from 0; the largest if left out
    #[arg(long, value_name = "N")]
    face: Option<usize>,
    /// Write what the model sees into this folder
    #[arg(long, value_name = "DIR")]
    debug_roi: Option<PathBuf>,
    /// Frames a second of folders and patterns of pictures
    #[arg(long, value_name = "RATE", default_value_t = 25.0)]
    frame_rate: f64,
}

#[cfg(feature = "video")]
impl MouthArgs {
    fn put(&self, options: &mut TranscribeOptions) {
        options.mouth.roi = self.roi;
        options.mouth.video.frame_rate = self.frame_rate;
        options.mouth.face.debug = self.debug_roi.clone();
        if let Some(face) = self.face {
            options.mouth.face.choice = moesaic::FaceChoice::Nth(face);
        }
    }
}

#[cfg(feature = "video")]
fn roi(text: &str) -> std::result::Result<moesaic::Roi, String> {
    use moesaic::Roi;
    match text {
        "auto" => return Ok(Roi::Auto),
        "cropped" => return Ok(Roi::Cropped),
        "face" => return Ok(Roi::Face),
        _ => {}
    }
    let numbers: Vec<usize> = text.split(',').map_while(|part| part.trim().parse().ok()).collect();
    match (numbers.as_slice(), text.split(',').count()) {
        (&[x, y, width, height], 4) => Ok(Roi::Box { x, y, width, height }),
        _ => Err("expected auto, cropped, face, or four whole numbers x,y,width,height".into()),
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    if args.lips.is_some() && args.files.len() > 1 {
        bail!("--lips belongs to one recording, but there are {}: transcribe them one by one", args.files.len());
    }
    let transcriber = args.model.open()?;
    let mut options = TranscribeOptions::default();
    (options.senses, options.beams) = (args.modality.map(Senses::from), args.beam);
    (options.window, options.overlap, options.lenient) = (args.window, args.overlap, args.lenient);
    #[cfg(feature = "video")]
    args.mouth.put(&mut options);
    catch_interrupts()?;
    super::language::answering(true);
    #[derive(Serialize)]
    struct Output<'a> {
        file: String,
        #[serde(flatten)]
        transcript: &'a Transcript,
    }
    let (mut all, mut failed) = (Vec::new(), 0);
    for file in &args.files {
        let name = file.display().to_string();
        let recording = transcriber.open(file, args.lips.as_deref(), &options);
        let written = recording.and_then(|recording| {
            transcriber.transcribe_with(recording, &options, |segment| {
                // Of one window the text comes at once; of several, people want to see that it goes on.
                if segment.start > 0.0 {
                    note(&format!("{name}: {:.1} s", segment.end));
                }
                if interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        });
        match written {
            Ok(transcript) => {
                transcript.remarks.iter().for_each(|remark| note(&format!("{name}: {remark}")));
                if !args.json {
                    let label = if args.files.len() > 1 { format!("{name}: ") } else { String::new() };
                    print(&format!("{label}{}\n", transcript.text))?;
                }
                all.push((name, transcript));
            }
            // Of several recordings, the others go on.
            Err(error) if args.files.len() > 1 => {
                note(&format!("error: {error}"));
                failed += 1;
            }
            Err(error) => return Err(error.into()),
        }
        if interrupted() {
            break;
        }
    }
    if args.json {
        let outputs: Vec<Output<'_>> =
            all.iter().map(|(file, transcript)| Output { file: file.clone(), transcript }).collect();
        print(&(serde_json::to_string_pretty(&outputs)? + "\n"))?;
    }
    if interrupted() {
        std::process::exit(INTERRUPTED);
    }
    if failed > 0 {
        bail!("{failed} of {} recordings could not be transcribed", args.files.len());
    }
    Ok(())
}

/// Count the words that a speech model gets wrong, by ear, by eye and by both, in noise.
///
/// Reads a CSV file with the columns text, audio and video, as `moesaic train speech` does. Prints the word error rate (wrong,
/// missing and added words over words that were said) for each way to take the clips and each noise.
#[derive(Debug, clap::Args)]
pub(super) struct WerArgs {
    /// The clips
    #[arg(value_name = "CLIPS.csv")]
    clips: PathBuf,
    #[command(flatten)]
    model: SpeechModel,
    /// Ways to take the clips: audio, video, audiovisual; all that the model takes, if left out
    #[arg(long, value_name = "SENSES", value_enum, value_delimiter = ',')]
    modality: Vec<Modality>,
    /// Noise: a sound file, or `white`; several are separated by commas
    #[arg(long, value_name = "NOISE", value_delimiter = ',')]
    noise: Vec<String>,
    /// Decibels that the noise is weaker by
    #[arg(long, value_name = "DB", value_delimiter = ',', allow_hyphen_values = true, default_value = "10,5,0,-5")]
    snr: Vec<f64>,
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Show the model the lips of another clip: what it gains of them must vanish
    #[arg(long)]
    other_lips: bool,
    /// At most so many clips, taken evenly from all
    #[arg(long, value_name = "N")]
    most: Option<usize>,
    /// Print JSON, with the errors in each clip
    #[arg(long)]
    json: bool,
}

pub(super) fn wer(args: &WerArgs) -> Result<()> {
    let transcriber = args.model.open()?;
    let mut plan = moesaic::eval::wer::Plan::default();
    plan.senses = args.modality.iter().map(|&m| m.into()).collect();
    for noise in &args.noise {
        plan.noises.push(match noise.as_str() {
            "white" => moesaic::eval::wer::Noise::White,
            file => moesaic::eval::wer::Noise::read(Path::new(file))?,
        });
    }
    (plan.snr, plan.seed, plan.other_lips, plan.most) = (args.snr.clone(), args.seed, args.other_lips, args.most);
    let scores = plan.run(&transcriber, &args.clips).map_err(|error| anyhow!(error))?;
    if args.json {
        return Ok(print(&(serde_json::to_string_pretty(&scores)? + "\n"))?);
    }
    let mut text = format!("{:<13}{:<28}{:>8}{:>9}{:>9}\n", "takes", "noise", "clips", "words", "wrong");
    for score in &scores {
        let noise = match (&score.noise, score.snr) {
            (Some(noise), Some(snr)) => format!("{noise} {snr:.0} dB"),
            _ => "none".into(),
        };
        let (clips, words) = (score.clips.len(), score.errors.words);
        let takes = score.senses.to_string();
        text += &format!("{takes:<13}{noise:<28}{clips:>8}{words:>9}{:>7.1} %\n", 100.0 * score.errors.rate());
    }
    Ok(print(&text)?)
}
