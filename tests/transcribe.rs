//! Recordings become text as a user does it: the example's clip by ear, by eye and by both, and bad input. In most tests the model
//! has random weights: what it writes means nothing, how it gets there does.
#![cfg(all(feature = "audio", feature = "video"))]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use moesaic::{Error, MouthOptions, Senses, Tokenizer, TranscribeOptions, Transcriber, Transcript};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::save;
use moesaic_models::avsr::{Avsr, AvsrConfig, Sources, Vocabulary};
use serde_json::Value;
use support::{example, run};

/// Seconds of the example's clip.
const SECONDS: f64 = 2.48;

fn clip(name: &str) -> PathBuf {
    example("speech").join(name)
}

fn by(senses: Senses) -> TranscribeOptions {
    let mut options = TranscribeOptions::default();
    options.senses = Some(senses);
    options
}

/// The model of examples/speech with random weights, in a folder.
fn model(folder: &Path) -> PathBuf {
    let (from, dir) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/speech"), folder.join("model"));
    fs::create_dir_all(&dir).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(from.join(name), dir.join(name)).unwrap();
    }
    let (config, tokenizer) = (AvsrConfig::load(&dir).unwrap(), Tokenizer::load(&dir).unwrap());
    let encode = |text: &str| tokenizer.encode(text).map_err(candle_core::Error::wrap);
    let vocabulary = Vocabulary::new(&config, |token| tokenizer.id(token), encode).unwrap();
    let params = Params::init(5, &Device::Cpu);
    Avsr::new(config, vocabulary, Sources::one(&params), None).unwrap();
    let tensors = params.published(|var| Some(var.as_tensor().clone())).unwrap();
    save(&dir.join("model.safetensors"), &tensors, &[]).unwrap();
    dir
}

fn transcriber() -> Transcriber {
    let folder = tempfile::tempdir().unwrap();
    Transcriber::from_dir(model(folder.path())).unwrap()
}

/// Text, words and times of a transcript fit each other.
fn check(transcript: &Transcript, senses: Senses, segments: usize) {
    assert_eq!((transcript.senses, transcript.segments.len()), (senses, segments), "{transcript:?}");
    assert!((transcript.seconds - SECONDS).abs() < 0.09, "{transcript:?}");
    for segment in &transcript.segments {
        let words: Vec<&str> = segment.words.iter().map(|word| word.text.as_str()).collect();
        assert_eq!(segment.text, words.join(" "));
        assert!(segment.words.iter().all(|word| word.confidence > 0.0 && word.confidence <= 1.0), "{segment:?}");
    }
}

/// What the clip says; the built-in model was not trained on the sentence.
const SAID: &str = "place blue at f two now";

#[test]
fn the_built_in_model_writes_what_the_clip_says() {
    let transcriber = Transcriber::embedded().unwrap();
    assert_eq!(transcriber.senses(), Senses::AudioVisual);
    let options = TranscribeOptions::default();
    assert_eq!(transcriber.transcribe(clip("clip.wav"), &options).unwrap().text, SAID);
    let both = transcriber.open(&clip("clip.wav"), Some(&clip("mouth.webp")), &options).unwrap();
    let both = transcriber.transcribe_with(both, &options, |_| std::ops::ControlFlow::Continue(())).unwrap();
    assert_eq!((both.text.as_str(), both.segments[0].words.len()), (SAID, 6));
    assert!(both.segments[0].words.iter().all(|word| word.confidence > 0.5), "{both:?}");
    // Of lips alone most is seen.
    let seen = transcriber.transcribe(clip("mouth.webp"), &options).unwrap();
    let right = SAID.split(' ').zip(seen.text.split(' ')).filter(|(said, seen)| said == seen).count();
    assert!(right >= 4, "{seen:?}");
    #[cfg(feature = "h264")]
    assert_eq!(transcriber.transcribe(clip("clip.mp4"), &options).unwrap().text, SAID);
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path(), &["transcribe", clip("clip.mp4").to_str().unwrap()]);
    assert_eq!((run.code, run.stdout.trim_end()), (Some(0), SAID), "{}", run.stderr);
}

#[test]
fn a_clip_by_ear_by_eye_and_by_both() {
    let (transcriber, options) = (Arc::new(transcriber()), TranscribeOptions::default());
    assert_eq!(transcriber.senses(), Senses::AudioVisual);
    let heard = transcriber.transcribe(clip("clip.wav"), &options).unwrap();
    check(&heard, Senses::Audio, 1);
    let seen = transcriber.transcribe(clip("mouth.webp"), &options).unwrap();
    check(&seen, Senses::Video, 1);
    let both = transcriber.open(&clip("clip.wav"), Some(&clip("mouth.webp")), &options).unwrap();
    assert_eq!(both.senses(), Senses::AudioVisual);
    let both = transcriber.transcribe_with(both, &options, |_| std::ops::ControlFlow::Continue(())).unwrap();
    check(&both, Senses::AudioVisual, 1);

    // The search of the config has four beams; one takes the likeliest word each time, and its confidences are those that it was
    // chosen by.
    let words = |beams| {
        let mut options = TranscribeOptions::default();
        options.beams = Some(beams);
        transcriber.transcribe(clip("clip.wav"), &options).unwrap()
    };
    assert_eq!(words(4), heard);
    let greedy = words(1);
    check(&greedy, Senses::Audio, 1);
    // Nothing is kept between calls or threads.
    let jobs: Vec<_> = (0..2)
        .map(|_| {
            let transcriber = Arc::clone(&transcriber);
            std::thread::spawn(move || transcriber.transcribe(clip("clip.wav"), &TranscribeOptions::default()).unwrap())
        })
        .collect();
    assert!(jobs.into_iter().all(|job| job.join().unwrap() == heard));

    // A window that is ended early has what there was.
    let mut short = TranscribeOptions::default();
    (short.window, short.overlap) = (Some(1.0), 0.2);
    let recording = transcriber.open(&clip("clip.wav"), None, &short).unwrap();
    let ended = transcriber.transcribe_with(recording, &short, |_| std::ops::ControlFlow::Break(())).unwrap();
    assert_eq!((ended.segments.len(), ended.segments[0].end), (1, 1.0));
}

/// From the bytes of an MP4: sound, frames, face, landmarks, mouth, words.
#[test]
#[cfg(feature = "h264")]
fn the_whole_path_from_a_video_of_a_face() {
    let folder = tempfile::tempdir().unwrap();
    let transcriber = transcriber();
    let mut options = TranscribeOptions::default();
    options.mouth.face.debug = Some(folder.path().join("seen"));
    let both = transcriber.transcribe(clip("clip.mp4"), &options).unwrap();
    check(&both, Senses::AudioVisual, 1);
    assert_eq!(both.remarks, Vec::<String>::new());
    // A crop for each frame, and the landmarks.
    assert_eq!(support::names(&folder.path().join("seen")).len(), 62 + 1);
    check(&transcriber.transcribe(clip("clip.mp4"), &by(Senses::Audio)).unwrap(), Senses::Audio, 1);
    check(&transcriber.transcribe(clip("clip.mp4"), &by(Senses::Video)).unwrap(), Senses::Video, 1);

    // The mouth that was found is the one that was put there: the animation beside the clip shows it.
    use moesaic_encoders::video::MouthClip;
    let found = MouthClip::open(&clip("clip.mp4"), &MouthOptions::default()).unwrap();
    let put = MouthClip::open(&clip("mouth.webp"), &MouthOptions::default()).unwrap();
    assert_eq!((found.size, put.size), ((62, 96, 96), (62, 96, 96)));
    assert_eq!(found.faces.map(|faces| (faces.frames, faces.without_face, faces.most_faces)), Some((62, 0, 1)));
    let grey =
        |rgb: &[u8]| rgb.chunks(3).map(|p| (f64::from(p[0]) + f64::from(p[1]) + f64::from(p[2])) / 3.0).collect();
    let (a, b): (Vec<f64>, Vec<f64>) = (grey(&found.rgb), grey(&put.rgb));
    let difference = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).sum::<f64>() / a.len() as f64;
    assert!(difference < 12.0, "{difference} grey levels apart");

    let dir = model(folder.path());
    let arguments = ["transcribe", clip("clip.mp4").to_str().unwrap(), "--model", dir.to_str().unwrap(), "--json"]
        .map(String::from);
    let run = run(folder.path(), &arguments);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let json: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(json[0]["senses"].as_str(), Some("audiovisual"));
    assert_eq!(json[0]["segments"].as_array().map(Vec::len), Some(1));
}

#[test]
#[cfg(not(feature = "h264"))]
fn without_the_decoder_the_sound_of_a_video_is_used_and_said_so() {
    let transcriber = transcriber();
    let transcript = transcriber.transcribe(clip("clip.mp4"), &TranscribeOptions::default()).unwrap();
    check(&transcript, Senses::Audio, 1);
    assert!(transcript.remarks.iter().any(|remark| remark.contains("feature `h264`")), "{:?}", transcript.remarks);
    let error = transcriber.transcribe(clip("clip.mp4"), &by(Senses::Video)).unwrap_err();
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
    let transcriber = transcriber();
    let transcript = transcriber.transcribe(&path, &options).unwrap();
    let segments = &transcript.segments;
    assert!(segments.len() >= 3, "{transcript:?}");
    assert!(segments.windows(2).all(|pair| pair[1].start <= pair[0].end && pair[1].start >= pair[0].end - 1.0));
    assert!(segments.iter().all(|segment| segment.end - segment.start <= 3.2 + 1e-9));
    let last = segments.last().unwrap();
    assert!((transcript.seconds - 8.44).abs() < 0.1 && (last.end - transcript.seconds).abs() < 0.05, "{transcript:?}");
    // The second one starts in the pause, not in a word.
    assert!((2.48..=2.98).contains(&segments[1].start), "{transcript:?}");
    // Lips that end with the first sentence: after it the sound goes on alone.
    let recording = transcriber.open(&path, Some(&clip("mouth.webp")), &options).unwrap();
    let uneven = transcriber.transcribe_with(recording, &options, |_| std::ops::ControlFlow::Continue(())).unwrap();
    let ends: Vec<(f64, f64)> = uneven.segments.iter().map(|segment| (segment.start, segment.end)).collect();
    assert_eq!((uneven.senses, ends[0]), (Senses::AudioVisual, (0.0, 2.48)), "{ends:?}");
    assert!(ends[1].0 == 2.48 && (ends.last().unwrap().1 - 8.44).abs() < 0.05, "{ends:?}");
    assert!(uneven.remarks[0].contains("8.44 s long, the video 2.48 s"), "{:?}", uneven.remarks);
    // Windows that make no sense.
    for (window, overlap) in [(0.0, 0.0), (f64::NAN, 0.0), (2.0, 1.5), (2.0, -1.0), (1e9, 0.0)] {
        (options.window, options.overlap) = (Some(window), overlap);
        let error = transcriber.transcribe(&path, &options).unwrap_err();
        assert!(matches!(error, Error::Input { .. }), "{error}");
    }
}

#[test]
fn what_cannot_be_transcribed_is_said_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    model(folder);
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
        (vec![sound, "--modality", "video"], vec!["clip.wav", "no video track"]),
        (vec![sound, "--modality", "audiovisual"], vec!["clip.wav", "no video track"]),
        (vec![mouth, "--modality", "audio"], vec!["mouth.webp", "not a sound file"]),
        (vec![sound, mouth, "--lips", mouth], vec!["--lips belongs to one recording"]),
        (vec![mouth, "--roi", "90,90,20,20"], vec!["mouth.webp", "does not lie inside"]),
        (vec![mouth, "--roi", "face"], vec!["mouth.webp", "no face"]),
        (vec![sound, "--beam", "0"], vec!["at least one beam"]),
        (vec![sound, "--window", "0.1"], vec!["windows of 0.1 s"]),
    ] {
        let run = run(folder, &[&["transcribe", "--model", "model"], arguments.as_slice()].concat());
        assert_eq!((run.code, run.stderr.lines().count()), (Some(1), 1), "{arguments:?}: {}", run.stderr);
        assert!(
            words.iter().all(|word| run.stderr.contains(word)),
            "{arguments:?}: expected {words:?}: {}",
            run.stderr
        );
        assert!(run.stdout.is_empty(), "{}", run.stdout);
    }
    // Of several recordings, the others go on.
    let several = run(folder, &["transcribe", "--model", "model", "empty.wav", sound]);
    assert_eq!(several.code, Some(1));
    assert!(several.stdout.contains("clip.wav: "), "{}", several.stdout);
    assert!(several.stderr.contains("empty.wav") && several.stderr.contains("1 of 2 recordings"), "{}", several.stderr);
    // What can be saved of a damaged file is.
    let saved = run(folder, &["transcribe", "--model", "model", "cut.webp", "--lenient"]);
    assert_eq!(saved.code, Some(0), "{}", saved.stderr);
    let none = run(folder, &["transcribe", sound, "--model", "nowhere"]);
    assert!(none.code == Some(1) && none.stderr.contains("nowhere: does not exist"), "{}", none.stderr);
}

#[test]
fn words_are_counted_in_noise() {
    let folder = tempfile::tempdir().unwrap();
    let dir = model(folder.path());
    // What the model writes is what was said in the first clip; in the second one a word is missing, and one is another.
    let transcriber = Transcriber::from_dir(&dir).unwrap();
    let mut greedy = by(Senses::Audio);
    greedy.beams = Some(1);
    let written = transcriber.transcribe(clip("clip.wav"), &greedy).unwrap().text;
    let words: Vec<&str> = written.split(' ').collect();
    assert!(words.len() > 2, "{written}");
    let other = [&["nothing"], &words[2..]].concat().join(" ");
    let paths = format!("{},{}", clip("clip.wav").display(), clip("mouth.webp").display());
    fs::write(folder.path().join("clips.csv"), format!("text,audio,video\n{written},{paths}\n{other},{paths}\n"))
        .unwrap();
    let noise = format!("white,{}", example("tones.wav").display());
    let arguments = ["eval", "wer", "clips.csv", "--model", "model", "--noise", &noise, "--snr", "20,-30", "--json"]
        .map(String::from);
    let first = run(folder.path(), &arguments);
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    let scores: Vec<Value> = serde_json::from_str(&first.stdout).unwrap();
    // By ear and by both without noise and in two noises of two levels, by eye once.
    assert_eq!(scores.len(), 5 + 1 + 5);
    let score = |senses: &str, noise: Value, snr: Value| {
        scores.iter().find(|s| s["senses"] == senses && s["noise"] == noise && s["snr"] == snr).unwrap()
    };
    let clean = score("audio", Value::Null, Value::Null);
    assert_eq!((clean["errors"]["substitutions"].as_u64(), clean["errors"]["insertions"].as_u64()), (Some(1), Some(1)));
    let said = 2 * words.len() as u64 - 1;
    assert_eq!((clean["errors"]["words"].as_u64(), clean["wer"].as_f64()), (Some(said), Some(2.0 / said as f64)));
    assert_eq!(clean["clips"].as_array().unwrap().len(), 2);
    score("audio", "white".into(), (-30.0).into());
    score("audiovisual", "tones".into(), 20.0.into());
    assert_eq!(first.stdout, run(folder.path(), &arguments).stdout);
    let table = run(
        folder.path(),
        &["eval", "wer", "clips.csv", "--model", "model", "--modality", "audio,audiovisual", "--most", "1"],
    );
    assert_eq!((table.code, table.stdout.lines().count()), (Some(0), 3), "{}", table.stderr);
    for (arguments, word) in [
        (vec!["none.csv"], "none.csv"),
        (vec!["clips.csv", "--noise", "none.wav"], "none.wav"),
        (vec!["clips.csv", "--snr", "1000"], "-100 to 100"),
        (vec!["clips.csv", "--most", "0"], "at least one clip"),
    ] {
        let bad = run(folder.path(), &[&["eval", "wer", "--model", "model"], arguments.as_slice()].concat());
        assert_eq!((bad.code, bad.stderr.lines().count()), (Some(1), 1), "{arguments:?}: {}", bad.stderr);
        assert!(bad.stderr.contains(word), "{}", bad.stderr);
    }
}

#[test]
fn options_have_defaults() {
    let options = TranscribeOptions::default();
    assert_eq!((options.senses, options.beams, options.lenient), (None, None, false));
    assert_eq!(MouthOptions::default().roi, moesaic::Roi::Auto);
}
