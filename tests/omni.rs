//! The small model that reads everything, as a program embeds it.
#![cfg(all(feature = "audio", feature = "image"))]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use moesaic::{Conversation, Error, Media, Omni, OmniOptions, Series, TableOptions};

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The model beside the crate, where it is: it is in the repository, not in the package.
fn model() -> Option<Omni> {
    if !at("assets/omni").is_dir() {
        eprintln!("skipped: assets/omni is not here");
        return None;
    }
    Some(Omni::from_dir(at("assets/omni")).unwrap())
}

fn show(omni: &Omni, file: &str) -> Media {
    omni.open(at("examples/data").join(file), &TableOptions::default()).unwrap().0
}

#[test]
fn one_conversation_about_a_picture_a_sound_and_a_table() {
    let Some(omni) = model() else { return };
    let (mut talk, options) = (Conversation::default(), OmniOptions::default());
    let mut ask = |shown: &[&str], question: &str| {
        let shown: Vec<Media> = shown.iter().map(|file| show(&omni, file)).collect();
        omni.ask(&mut talk, &shown, question, &options).unwrap()
    };
    for (shown, question, answer) in [
        (&["pictures/circle.png"][..], "What color is the shape?", "yellow"),
        (&[], "What shape is in the image?", "circle"),
        (&["sound/mixture.flac"], "Is anyone speaking?", "yes"),
        (&[], "What can be heard beside a voice?", "cymbal"),
        (&["co2.csv"], "Does it have a season?", "yes"),
    ] {
        let said = ask(shown, question);
        assert_eq!((said.text.as_str(), said.finished), (answer, true), "{question}");
        assert!(said.forecast.is_none(), "{question}");
    }
    // The model says itself that numbers answer, and how many.
    let said = ask(&[], "Forecast 16 steps.");
    let forecast = said.forecast.unwrap();
    assert_eq!((forecast.values.len(), forecast.name.as_str(), said.text.as_str()), (16, "co2", ""));
    assert_eq!(forecast.timestamps[0].to_string(), "2002-01-05");
    let near = |values: &[f32]| values.iter().all(|v| (360.0..380.0).contains(v));
    assert!(near(&forecast.values), "{:?}", forecast.values);
    let [low, .., high] = &forecast.quantiles[..] else { panic!("no quantiles") };
    assert!((low.level, high.level) == (0.1, 0.9) && low.values.iter().zip(&high.values).all(|(l, h)| l <= h));
}

#[test]
fn what_is_in_a_picture_has_a_name() {
    let Some(omni) = model() else { return };
    for (picture, question, answer) in [
        ("circle", "What shape is in the image?", "circle"),
        ("rectangle", "What shape is in the image?", "rectangle"),
        ("rectangle", "What is the color of the shape?", "teal"),
        ("digit", "What digit is shown?", "8"),
    ] {
        let shown = [show(&omni, &format!("pictures/{picture}.png"))];
        let said = omni.ask(&mut Conversation::default(), &shown, question, &OmniOptions::default()).unwrap();
        assert_eq!(said.text, answer, "{picture}: {question}");
    }
}

#[test]
fn conversations_share_a_model_and_nothing_else() {
    let Some(omni) = model() else { return };
    let omni = Arc::new(omni);
    let series = |slope: f32| {
        Series::new("y", (0..64).map(|i| slope * i as f32 + (i as f32 * 0.785).sin()).collect::<Vec<f32>>())
    };
    let alone = |slope: f32| {
        let (mut talk, options) = (Conversation::default(), OmniOptions::default().horizon(11));
        let forecast = omni.ask(&mut talk, &[Media::Series(series(slope))], "What is next?", &options).unwrap();
        forecast.forecast.unwrap().values
    };
    let expected: Vec<Vec<f32>> = [0.2, -0.2].map(alone).to_vec();
    assert!(expected.iter().all(|values| values.len() == 11));
    let jobs: Vec<_> = [0.2, -0.2, 0.2, -0.2]
        .into_iter()
        .map(|slope| {
            let omni = Arc::clone(&omni);
            std::thread::spawn(move || {
                let (mut talk, options) = (Conversation::default(), OmniOptions::default());
                let rising = Series::new(
                    "y",
                    (0..64).map(|i| slope * i as f32 + (i as f32 * 0.785).sin()).collect::<Vec<f32>>(),
                );
                omni.ask(&mut talk, &[Media::Series(rising)], "Is it rising?", &options).unwrap().text
            })
        })
        .collect();
    let said: Vec<String> = jobs.into_iter().map(|job| job.join().unwrap()).collect();
    assert_eq!(said, ["yes", "no", "yes", "no"]);
    assert_eq!([0.2, -0.2].map(alone).to_vec(), expected);
}

#[test]
fn what_cannot_be_answered_leaves_the_conversation_as_it_was() {
    let Some(omni) = model() else { return };
    let (mut talk, options) = (Conversation::default(), OmniOptions::default());
    omni.ask(&mut talk, &[show(&omni, "pictures/circle.png")], "What shape is in the image?", &options).unwrap();
    let tokens = talk.tokens();
    let none = Media::Series(Series::new("none", [f32::NAN; 9]));
    let infinite = Media::Series(Series::new("far", [1.0, f32::INFINITY, 2.0]));
    let sound = |samples: Vec<f32>| Media::Sound(samples);
    for (shown, question, options, words) in [
        (vec![], " ", options.clone(), "no question"),
        (vec![], "next?", options.clone().horizon(4), "follows a series"),
        (vec![], "next?", options.clone().horizon(0), "at least 1"),
        (vec![none], "next?", options.clone(), "series 'none': there is no number"),
        (vec![infinite], "next?", options.clone(), "infinite"),
        (vec![sound(vec![f32::NAN; 800])], "who?", options.clone(), "sample 0"),
        (vec![sound(vec![0.0; 64_001])], "who?", options.clone(), "up to 4 s"),
        (vec![sound(vec![])], "who?", options.clone(), "0.0 s"),
        (vec![Media::Text("is ".repeat(300))], "?", options.clone(), "begin a new conversation"),
        (vec![show(&omni, "co2.csv")], "next?", options.clone().horizon(9_000), "ask for up to"),
    ] {
        let error = omni.ask(&mut talk, &shown, question, &options).unwrap_err();
        assert!(error.to_string().contains(words), "expected {words:?}: {error}");
        assert!(matches!(error, Error::Input { .. } | Error::Media(_)), "{error:?}");
        assert_eq!(talk.tokens(), tokens, "{words}");
    }
    assert_eq!(omni.unknown_words("is a kangaroo rising?"), ["kangaroo"]);
    let missing = Omni::from_dir(at("examples")).unwrap_err();
    assert!(matches!(missing, Error::Config { .. }) && missing.to_string().contains("config.json"), "{missing}");
}

#[test]
fn missing_values_at_the_end_are_forecast() {
    let Some(omni) = model() else { return };
    let mut values: Vec<f32> = (0..40).map(|i| i as f32).collect();
    values.extend([f32::NAN; 3]);
    let (mut talk, options) = (Conversation::default(), OmniOptions::default().horizon(5));
    let said = omni.ask(&mut talk, &[Media::Series(Series::new("y", values))], "Forecast 8 steps.", &options).unwrap();
    let forecast = said.forecast.unwrap();
    let stamps: Vec<String> = forecast.timestamps.iter().map(ToString::to_string).collect();
    assert_eq!(stamps, ["41", "42", "43", "44", "45"]);
    assert_eq!((forecast.context, forecast.filled), (40, 0));
    assert!(forecast.values.iter().all(|v| (34.0..52.0).contains(v)), "{:?}", forecast.values);
}
