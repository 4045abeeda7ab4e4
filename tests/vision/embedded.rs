//! The model that is part of the library.

use std::fs;

use moesaic::{Picture, TextOptions, VisionChat};

use super::support::{example, run};
use super::{fails, folder, good, picture};

/// Pictures and what is asked about them, with the right answers.
fn questions() -> Vec<(String, Vec<(String, String)>)> {
    let text = fs::read_to_string(example("pictures/questions.jsonl")).unwrap();
    let text_of = |value: &serde_json::Value| value.as_str().unwrap().to_string();
    let line = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let turns = row["turns"].as_array().unwrap();
        (
            text_of(&row["image"]),
            turns.iter().map(|turn| (text_of(&turn["question"]), text_of(&turn["answer"]))).collect(),
        )
    };
    text.lines().map(line).collect()
}

#[test]
fn the_embedded_model_answers_about_the_pictures_of_the_examples() {
    let chat = VisionChat::embedded().unwrap();
    let mut asked = 0;
    for (image, turns) in questions() {
        let picture = [Picture::open(example("pictures").join(&image)).unwrap()];
        for (question, answer) in turns {
            let got = chat.ask(&picture, &question, &TextOptions::default()).unwrap();
            assert_eq!(got.text, answer, "{image}: {question}");
            asked += 1;
        }
    }
    assert!(asked >= 40, "{asked} questions");
    // Sparse in its connector and in its language model.
    assert_eq!((chat.info().projector, chat.info().experts > 0), ("sparse_mlp", true));
}

#[test]
fn ask_and_routes_need_no_model() {
    let folder = folder();
    let ask = run(folder.path(), &["ask", "circle.png", "what shape does the image contain?"]);
    assert_eq!(good(&ask), "circle\n");
    let routes = run(folder.path(), &["routes", "circle.png", "what shape is it?", "--out", "routes.svg"]);
    good(&routes);
    assert!(fs::read_to_string(folder.path().join("routes.svg")).unwrap().starts_with("<svg"));
    // Words that it has never seen, no words, and a number type that is not its own.
    good(&run(folder.path(), &["ask", "chelsea.jpg", "Würde Chelsea das gefallen?"]));
    fails(folder.path(), &["ask", "circle.png", "  "], "question");
    fails(folder.path(), &["ask", "circle.png", "what is it?", "--dtype", "bf16"], "--dtype is for a model");
}

#[test]
fn adapters_of_the_embedded_model() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let line = |image: &str, answer: &str| {
        let turn = serde_json::json!({"question": "what shape is it?", "answer": answer, "type": "name"});
        serde_json::json!({"image": image, "source": "samples", "turns": [turn]}).to_string()
    };
    // Against what it knows.
    fs::write(path("train.jsonl"), [line("circle.png", "4"), line("digit.png", "circle")].join("\n")).unwrap();
    let base = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/vqa");
    let config = format!(
        "seed = 1\ninit = {base:?}\ntrain = [\"projector\"]\ntemplate = \"plain\"\n[lora]\nr = 4\nlora_alpha = 16\n\
         [data]\nfiles = [\"train.jsonl\"]\nrows = 2\n[optimiser]\nlearning_rate = 0.02\nwarmup = 1\n\
         [plan]\nsteps = 20\nlog_every = 10\nout = \"run\"\n"
    );
    fs::write(path("train.toml"), config).unwrap();
    good(&run(folder.path(), &["train", "vision", "train.toml"]));
    let circle = [picture(folder.path(), "circle.png")];
    let text = |chat: &VisionChat| chat.ask(&circle, "what shape is it?", &TextOptions::default()).unwrap().text;
    let mut chat = VisionChat::embedded().unwrap();
    assert_eq!(text(&chat), "circle");
    chat.attach(path("run/model"), 1.0).unwrap();
    assert_eq!(text(&chat), "4");
    // The projector comes from memory again.
    chat.detach(path("run/model")).unwrap();
    assert_eq!(text(&chat), "circle");
    let ask = ["ask", "circle.png", "what shape is it?", "--adapter", "run/model"];
    assert_eq!(good(&run(folder.path(), &ask)), "4\n");
}
