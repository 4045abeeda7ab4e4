//! Recordings become text as a user does it: with the built-in model on the example's clip, by ear, by eye and by both, and bad input.
#![cfg(all(feature = "audio", feature = "video"))]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moesaic::{Error, MouthOptions, Senses, TranscribeOptions, Transcriber, Transcript};
use serde_json::Value;
use support::{Run, example, names, run};

/// What is said in the example's clip.
const SAID: &str = "place blue at f two now";

fn clip(name: &str) -> PathBuf {
    example("speech").join(name)
}

fn by(senses: Senses) -> TranscribeOptions {
    let mut options = TranscribeOptions::default();
    options.senses = Some(senses);
    options
}

fn transcribe(path: &Path, options: &TranscribeOptions) -> moesaic::Result<Transcript> {
    Transcriber::embedded()?.transcribe(path, options)
}

#[test]
fn the_clip_is_understood_by_ear_and_by_both() {
    let transcriber = Arc::new(Transcriber::embedded().unwrap());
    let heard = transcriber.transcribe(clip("clip.wav"), &TranscribeOptions::default()).unwrap();
    assert_eq!((heard.text.as_str(), heard.senses), (SAID, Senses::Audio));
    assert!((heard.seconds - 2.48).abs() < 0.05, "{}", heard.seconds);
    let words: Vec<&str> = heard.segments[0].words.iter().map(|word| word.text.as_str()).collect();
    assert_eq!(words, SAID.split(' ').collect::<Vec<_>>());
    assert!(heard.segments[0].words.iter().all(|word| word.confidence > 0.3 && word.confidence <= 1.0), "{heard:?}");

    let options = TranscribeOptions::default();
    let both = transcriber.open(&clip("clip.wav"), Some(&clip("mouth.webp")), &options).unwrap();
    assert_eq!(both.senses(), Senses::AudioVisual);
    let both = transcriber.transcribe_with(both, &options, |_| std::ops::ControlFlow::Continue(())).unwrap();
    assert_eq!((both.text.as_str(), both.senses), (SAID, Senses::AudioVisual));

    // Lips alone give words of the grammar, most of them right or alike.
    let seen = transcriber.transcribe(clip("mouth.webp"), &TranscribeOptions::default()).unwrap();
    assert_eq!((seen.senses, seen.segments.len()), (Senses::Video, 1));
    assert!(seen.segments[0].words.len() >= 4, "{}", seen.text);

    // One beam is the likeliest word each time, and nothing is kept between calls or threads.
    let mut greedy = TranscribeOptions::default();
    greedy.beams = Some(1);
    let jobs: Vec<_> = (0..2)
        .map(|_| {
            let (transcriber, greedy) = (Arc::clone(&transcriber), greedy.clone());
            std::thread::spawn(move || transcriber.transcribe(clip("clip.wav"), &greedy).unwrap())
        })
        .collect();
    let found: Vec<Transcript> = jobs.into_iter().map(|job| job.join().unwrap()).collect();
    assert_eq!(found[0], found[1]);
    assert_eq!(found[0].text, SAID);
}

/// From the bytes of an MP4: sound, frames, face, landmarks, mouth, words.
#[test]
#[cfg(feature = "h264")]
fn the_whole_path_from_a_video_of_a_face() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = TranscribeOptions::default();
    options.mouth.face.debug = Some(folder.path().join("seen"));
    let transcript = transcribe(&clip("clip.mp4"), &options).unwrap();
    assert_eq!((transcript.text.as_str(), transcript.senses), (SAID, Senses::AudioVisual));
    assert_eq!(transcript.remarks, Vec::<String>::new());
    // A crop for each frame, and the landmarks.
    assert_eq!(names(&folder.path().join("seen")).len(), 62 + 1);
    let heard = transcribe(&clip("clip.mp4"), &by(Senses::Audio)).unwrap();
    assert_eq!((heard.text.as_str(), heard.senses), (SAID, Senses::Audio));
    let seen = transcribe(&clip("clip.mp4"), &by(Senses::Video)).unwrap();
    assert_eq!(seen.senses, Senses::Video);

    let run: Run = run(folder.path(), &["transcribe", clip("clip.mp4").to_str().unwrap(), "--json"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let json: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((json[0]["text"].as_str(), json[0]["senses"].as_str()), (Some(SAID), Some("audiovisual")));
}

#[test]
#[cfg(not(feature = "h264"))]
fn without_the_decoder_the_sound_of_a_video_is_used_and_said_so() {
    let transcript = transcribe(&clip("clip.mp4"), &TranscribeOptions::default()).unwrap();
    assert_eq!((transcript.text.as_str(), transcript.senses), (SAID, Senses::Audio));
    assert!(transcript.remarks.iter().any(|remark| remark.contains("feature `h264`")), "{:?}", transcript.remarks);
    let error = transcribe(&clip("clip.mp4"), &by(Senses::Video)).unwrap_err();
    assert!(matches!(&error, Error::Media(problem) if problem.contains("feature `h264`")), "{error}");
}

#[test]
fn long_recordings_are_cut_where_it_is_quiet() {
    let folder = tempfile::tempdir().unwrap();
    let wav = fs::read(clip("clip.wav")).unwrap();
    let (header, data) = wav.split_at(44);
    // Three times the sentence, each before a pause.
    let pause = vec![0u8; 16_000];
    let samples = [data, &pause, data, &pause, data].concat();
    let mut long = header.to_vec();
    long[4..8].copy_from_slice(&(36 + samples.len() as u32).to_le_bytes());
    long[40..44].copy_from_slice(&(samples.len() as u32).to_le_bytes());
    long.extend(samples);
    let path = folder.path().join("long.wav");
    fs::write(&path, long).unwrap();
    let mut options = TranscribeOptions::default();
    (options.window, options.overlap) = (Some(3.2), 1.0);
    let transcript = transcribe(&path, &options).unwrap();
    let segments = &transcript.segments;
    assert!(segments.len() >= 3, "{transcript:?}");
    assert!(segments.windows(2).all(|pair| pair[1].start <= pair[0].end && pair[1].start >= pair[0].end - 1.0));
    assert!(segments.iter().all(|segment| segment.end - segment.start <= 3.2 + 1e-9));
    let last = segments.last().unwrap();
    assert!((transcript.seconds - 8.44).abs() < 0.1 && (last.end - transcript.seconds).abs() < 0.05, "{transcript:?}");
    assert!(transcript.text.starts_with(SAID), "{}", transcript.text);
    // Windows that make no sense.
    for (window, overlap) in [(0.0, 0.0), (f64::NAN, 0.0), (2.0, 1.5), (2.0, -1.0), (1e9, 0.0)] {
        (options.window, options.overlap) = (Some(window), overlap);
        let error = transcribe(&path, &options).unwrap_err();
        assert!(matches!(error, Error::Input { .. }), "{error}");
    }
}

#[test]
fn what_cannot_be_transcribed_is_said_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("empty.wav"), "").unwrap();
    fs::write(folder.join("text.mp4"), "no video at all").unwrap();
    let face = Path::new(env!("CARGO_MANIFEST_DIR")).join("encoders/tests/data/faces/face.png");
    fs::copy(face, folder.join("still.mp4")).unwrap();
    let cut = fs::read(clip("mouth.webp")).unwrap();
    fs::write(folder.join("cut.webp"), &cut[..cut.len() / 2]).unwrap();
    let (sound, mouth) = (clip("clip.wav"), clip("mouth.webp"));
    let (sound, mouth) = (sound.to_str().unwrap(), mouth.to_str().unwrap());
    for (arguments, words) in [
        (vec!["nowhere.wav"], vec!["nowhere.wav", "No such file"]),
        (vec!["empty.wav"], vec!["empty.wav"]),
        (vec!["text.mp4"], vec!["text.mp4"]),
        (vec!["still.mp4"], vec!["still.mp4", "still picture"]),
        (vec!["cut.webp"], vec!["cut.webp", "lenient"]),
        (vec![sound, "--modality", "video"], vec!["clip.wav", "not a video"]),
        (vec![sound, "--modality", "audiovisual"], vec!["clip.wav", "not a video"]),
        (vec![mouth, "--modality", "audio"], vec!["mouth.webp", "not a sound file"]),
        (vec![sound, mouth, "--lips", mouth], vec!["--lips belongs to one recording"]),
        (vec![mouth, "--roi", "90,90,20,20"], vec!["mouth.webp", "does not lie inside"]),
        (vec![mouth, "--roi", "face"], vec!["mouth.webp", "no face"]),
        (vec![sound, "--beam", "0"], vec!["at least one beam"]),
        (vec![sound, "--model", "nowhere"], vec!["nowhere", "does not exist"]),
        (vec![sound, "--window", "0.1"], vec!["windows of 0.1 s"]),
    ] {
        let run = run(folder, &[&["transcribe"], arguments.as_slice()].concat());
        assert_eq!((run.code, run.stderr.lines().count()), (Some(1), 1), "{arguments:?}: {}", run.stderr);
        assert!(
            words.iter().all(|word| run.stderr.contains(word)),
            "{arguments:?}: expected {words:?}: {}",
            run.stderr
        );
        assert!(run.stdout.is_empty(), "{}", run.stdout);
    }
    // Of several recordings, the others go on.
    let several = run(folder, &["transcribe", "empty.wav", sound]);
    assert_eq!(several.code, Some(1));
    assert!(several.stdout.contains(&format!("clip.wav: {SAID}")), "{}", several.stdout);
    assert!(several.stderr.contains("empty.wav") && several.stderr.contains("1 of 2 recordings"), "{}", several.stderr);
    // What can be saved of a damaged file is.
    let saved = run(folder, &["transcribe", "cut.webp", "--lenient"]);
    assert_eq!(saved.code, Some(0), "{}", saved.stderr);
}

#[test]
fn words_are_counted_in_noise() {
    let folder = tempfile::tempdir().unwrap();
    let clips = format!(
        "text,audio,video\n{SAID},{0},{1}\nplace red at f two,{0},{1}\n",
        clip("clip.wav").display(),
        clip("mouth.webp").display()
    );
    fs::write(folder.path().join("clips.csv"), clips).unwrap();
    let noise = example("tones.wav");
    let noise = format!("white,{}", noise.display());
    let arguments = ["eval", "wer", "clips.csv", "--noise", &noise, "--snr", "20,-30", "--json"];
    let run1 = run(folder.path(), &arguments);
    assert_eq!(run1.code, Some(0), "{}", run1.stderr);
    let scores: Vec<Value> = serde_json::from_str(&run1.stdout).unwrap();
    assert_eq!(scores.len(), 5 + 1 + 5);
    let score = |senses: &str, noise: Value, snr: Value| {
        scores.iter().find(|s| s["senses"] == senses && s["noise"] == noise && s["snr"] == snr).unwrap()
    };
    let clean = score("audio", Value::Null, Value::Null);
    // The second text is wrong on purpose: a word is another one, and one is missing.
    assert_eq!((clean["errors"]["substitutions"].as_u64(), clean["errors"]["insertions"].as_u64()), (Some(1), Some(1)));
    assert_eq!((clean["errors"]["words"].as_u64(), clean["wer"].as_f64()), (Some(11), Some(2.0 / 11.0)));
    assert_eq!(clean["clips"].as_array().unwrap().len(), 2);
    let loud = score("audio", "white".into(), (-30.0).into());
    assert!(loud["wer"].as_f64() > clean["wer"].as_f64(), "{loud}");
    assert_eq!(run1.stdout, run(folder.path(), &arguments).stdout);
    let table = run(folder.path(), &["eval", "wer", "clips.csv", "--modality", "audio,audiovisual", "--most", "1"]);
    assert_eq!((table.code, table.stdout.lines().count()), (Some(0), 3), "{}", table.stderr);
    assert!(table.stdout.lines().all(|line| !line.contains("video ")), "{}", table.stdout);
}

#[test]
fn options_have_defaults() {
    let options = TranscribeOptions::default();
    assert_eq!((options.senses, options.beams, options.lenient), (None, None, false));
    assert_eq!(MouthOptions::default().roi, moesaic::Roi::Auto);
}
