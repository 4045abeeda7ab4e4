//! `moesaic train speech` as a user runs it: the shipped example on a tiny model, and bad input.

mod support;

use std::fs;
use std::path::Path;

use support::{Run, example, names, program};

fn train(folder: &Path, config: &str) -> Run {
    fs::write(folder.join("run.toml"), config).unwrap();
    let run = program(folder).args(["train", "speech", "run.toml"]).env("CANDLE_NUM_THREADS", "1").output();
    run.unwrap().into()
}

#[test]
fn the_example_trains_projectors_and_adapters() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let base = root.join("tests/fixtures/llama_avsr/audio_avgpool_ln");
    let tones = example("tones.wav");
    fs::create_dir(folder.join("data")).unwrap();
    let clips = format!("text,audio\n\"lazy dog\",{0}\nquick fox,{0}\n", tones.display());
    fs::write(folder.join("data/clips.csv"), clips).unwrap();
    fs::copy(&tones, folder.join("data/babble.wav")).unwrap();
    let text = fs::read_to_string(root.join("examples/speech.toml")).unwrap();
    let quick = text
        .replace("\"models/speech\"", &format!("{:?}", base.display().to_string()))
        .replace("steps = 10000", "steps = 2")
        .replace("average = 4", "average = 1");
    assert!(quick.contains("steps = 2") && quick.contains("average = 1"));
    let first = train(folder, &quick);
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    let line = first.stdout.lines().last().unwrap();
    for part in ["step 2/2", "cross_entropy", "tokens/s"] {
        assert!(line.contains(part), "{line}");
    }
    for part in ["model", "averaged"] {
        assert_eq!(names(&folder.join("runs/speech").join(part)), ["config.json", "model.safetensors"]);
    }
    for (config, word) in [
        (quick.clone(), "--resume"),
        (quick.replace("runs/speech", "other").replace("clips.csv", "none.csv"), "none.csv"),
        (quick.replace("runs/speech", "other").replace("sink = false", "sink = 3"), "line 14"),
        (quick.replace("runs/speech", "other").replace("base = ", "base = \"nowhere\" # "), "nowhere"),
    ] {
        let run = train(folder, &config);
        assert_eq!((run.code, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
        assert!(run.stderr.contains(word), "expected {word:?}: {}", run.stderr);
        assert!(!folder.join("other").exists());
    }
}

#[test]
fn the_recipes_are_sound_and_say_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/speech");
    let run = |kind: &str, recipe: &str| -> Run {
        let path = recipes.join(recipe);
        program(folder.path()).args(["train", kind]).arg(path).output().unwrap().into()
    };
    let encoder = run("encoder", "encoder.toml");
    assert_eq!((encoder.code, encoder.stderr.lines().count()), (Some(1), 1), "{}", encoder.stderr);
    assert!(encoder.stderr.contains("data/avsr/units.txt"), "{}", encoder.stderr);
    for name in ["config.json", "tokenizer.json"] {
        let base = folder.path().join("examples/speech");
        fs::create_dir_all(&base).unwrap();
        fs::copy(recipes.join(name), base.join(name)).unwrap();
    }
    let speech = run("speech", "train.toml");
    assert_eq!((speech.code, speech.stderr.lines().count()), (Some(1), 1), "{}", speech.stderr);
    assert!(speech.stderr.contains("runs/avsr/encoder/model"), "{}", speech.stderr);
    for (recipe, base) in [("whisper_ctc.toml", "data/parts/base"), ("whisper_smollm2.toml", "runs/whisper_ctc/whole")]
    {
        let parts = run("speech", recipe);
        assert_eq!((parts.code, parts.stderr.lines().count()), (Some(1), 1), "{}", parts.stderr);
        assert!(parts.stderr.contains(base), "{}", parts.stderr);
    }
    assert!(!folder.path().join("runs").exists());
}
