//! Questions about pictures as a user asks them, on a tiny model of random weights.
#![cfg(feature = "image")]

#[path = "vision/embedded.rs"]
mod embedded;
#[path = "support/looking.rs"]
mod looking;
#[path = "vision/pictured.rs"]
mod pictured;
#[path = "support/mod.rs"]
mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::fs;
use std::path::Path;

use looking::{aria_model, llava_next_model, name_the_mark, vision_model};
use moesaic::prompts::Turn;
use moesaic::{Picture, TextOptions, VisionChat};
use support::{Run, example, run};

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    vision_model(folder.path());
    for name in ["circle.png", "digit.png", "chelsea.jpg"] {
        fs::copy(example("pictures").join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn good(run: &Run) -> &str {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    &run.stdout
}

fn picture(folder: &Path, name: &str) -> Picture {
    Picture::open(folder.join(name)).unwrap()
}

fn options() -> TextOptions {
    let mut options = TextOptions::default();
    options.max_tokens = Some(8);
    options
}

/// Tokens of pictures, as the routes count them; all text but the marks is text.
fn image_tokens(chat: &VisionChat, pictures: &[Picture]) -> usize {
    chat.routes(pictures, &[Turn { question: "a", answer: None }], 16).unwrap().tokens["image"]
}

#[test]
fn ask_prints_the_answer_and_the_speed() {
    let folder = folder();
    let ask = |images: &[&str], question: &str, more: &[&str]| {
        run(folder.path(), &[&["ask"], images, &[question, "--model", "looking", "--max-tokens", "8"], more].concat())
    };
    let answer = ask(&["circle.png"], "what is it?", &[]);
    assert!(good(&answer).ends_with('\n') && answer.stdout.len() > 1, "{}", answer.stdout);
    // 16 patches and the words around them.
    assert!(
        answer.stderr.starts_with("note: prompt ") && answer.stderr.contains("answer 8 tokens"),
        "{}",
        answer.stderr
    );
    assert_ne!(good(&ask(&["digit.png"], "what is it?", &[])), answer.stdout, "the picture does not count");
    assert_ne!(good(&ask(&["circle.png"], "is there a cat?", &[])), answer.stdout, "the question does not count");
    good(&ask(&["circle.png", "chelsea.jpg"], "is <image> like <image>?", &[]));
    let json = ask(&["circle.png"], "what is it?", &["--json", "--log-probs"]);
    let json: serde_json::Value = serde_json::from_str(good(&json)).unwrap();
    assert_eq!(json["model"]["architecture"], "moesaic_vision");
    assert_eq!(json["answers"][0]["text"].as_str().unwrap().trim_end(), answer.stdout.trim_end());
    assert_eq!(json["answers"][0]["log_probs"].as_array().unwrap().len(), 8);
}

#[test]
fn the_library_answers_as_the_program_does_and_in_conversations() {
    let folder = folder();
    let chat = VisionChat::from_dir(folder.path().join("looking")).unwrap();
    let circle = picture(folder.path(), "circle.png");
    let whole = chat.ask(std::slice::from_ref(&circle), "what is it?", &options()).unwrap();
    let turns = [Turn { question: "what is it?", answer: None }];
    let mut pieces = String::new();
    for piece in chat.stream(std::slice::from_ref(&circle), &turns, &options()).unwrap() {
        pieces += &piece.unwrap().text;
    }
    assert_eq!(pieces, whole.text);
    let run = run(folder.path(), &["ask", "circle.png", "what is it?", "--model", "looking", "--max-tokens", "8"]);
    assert_eq!(good(&run).trim_end(), whole.text.trim_end());
    // "<s>USER: ", 16 patches, "\nwhat is it? ASSISTANT:".
    let prompt = chat.prompt(1, &turns).unwrap();
    assert_eq!(prompt, "<s>USER: <image>\nwhat is it? ASSISTANT:");
    let words: Vec<u32> =
        prompt.split("<image>").flat_map(|piece| chat.tokenizer().encode_rendered(piece).unwrap()).collect();
    assert_eq!(whole.prompt_tokens, words.len() + 16);
    let talk = [Turn { question: "what is it?", answer: Some("red") }, Turn { question: "sure?", answer: None }];
    assert_eq!(chat.prompt(1, &talk).unwrap(), "<s>USER: <image>\nwhat is it? ASSISTANT: red USER: sure? ASSISTANT:");
    chat.stream(std::slice::from_ref(&circle), &talk, &options()).unwrap().answers().unwrap();
    // Without a picture it is a language model.
    chat.ask(&[], "what is it?", &options()).unwrap();
}

#[test]
fn a_token_for_pictures_means_what_marks_mean() {
    let folder = folder();
    let dir = folder.path().join("looking");
    let circle = [picture(folder.path(), "circle.png")];
    let before = VisionChat::from_dir(&dir).unwrap().ask(&circle, "what is it?", &options()).unwrap();
    name_the_mark(&dir);
    let chat = VisionChat::from_dir(&dir).unwrap();
    assert_eq!(chat.model().picture_token(), 211);
    assert_eq!(chat.ask(&circle, "what is it?", &options()).unwrap(), before);
}

#[test]
fn chat_templates_place_pictures() {
    let folder = folder();
    let dir = folder.path().join("looking");
    let turns = [Turn { question: "a", answer: Some("b") }, Turn { question: "c", answer: None }];
    fs::write(dir.join("chat_template.jinja"), tiny::TEMPLATE).unwrap();
    let prompt = |pictures| VisionChat::from_dir(&dir).unwrap().prompt(pictures, &turns).unwrap();
    assert!(prompt(2).starts_with("<|im_start|>user\n<image>\n<image>\na<|im_end|>"), "{}", prompt(2));
    fs::remove_file(dir.join("chat_template.jinja")).unwrap();
    // As the processor of LLaVA-1.5 has it.
    let template = "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for content in message['content'] \
                    | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}{% for content in \
                    message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}\
                    {% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}";
    fs::write(dir.join("chat_template.json"), serde_json::json!({"chat_template": template}).to_string()).unwrap();
    assert_eq!(prompt(1), "USER: <image>\na ASSISTANT: b USER: c ASSISTANT:");
}

#[test]
fn info_names_the_parts() {
    let folder = folder();
    let text = run(folder.path(), &["info", "looking"]);
    for part in ["moesaic_vision", "clip, 32 x 32 pixels", "sparse_mlp, 16 tokens a picture", "3 (3 of them sparse)"] {
        assert!(good(&text).contains(part), "{part}: {}", text.stdout);
    }
    let json = run(folder.path(), &["info", "looking", "--json"]);
    let json: serde_json::Value = serde_json::from_str(good(&json)).unwrap();
    assert_eq!((&json["experts"], &json["picture_tokens"]), (&5.into(), &16.into()));
}

#[test]
fn a_model_may_name_the_template_of_its_conversations() {
    let folder = folder();
    let dir = folder.path().join("looking");
    let config = fs::read_to_string(dir.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["conversation"] = "plain".into();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let chat = VisionChat::from_dir(&dir).unwrap();
    assert_eq!(chat.prompt(1, &[Turn { question: "a", answer: None }]).unwrap(), "<image>\na\n");
    let text = chat.ask(&[picture(folder.path(), "circle.png")], "a", &options()).unwrap().text;
    assert_eq!(text, text.trim_start());
    config["conversation"] = "plane".into();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let error = VisionChat::from_dir(&dir).unwrap_err();
    assert!(matches!(error, moesaic::Error::Config { .. }) && error.to_string().contains("'plane'"), "{error}");
}

#[test]
fn routes_are_shared_out_by_kind_of_token() {
    let folder = folder();
    let arguments = ["routes", "circle.png", "what is it?", "--model", "looking", "--out", "routes.svg", "--json"];
    let run = run(folder.path(), &arguments);
    let json: serde_json::Value = serde_json::from_str(good(&run)).unwrap();
    let svg = fs::read_to_string(folder.path().join("routes.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("Image tokens (16)") && svg.contains("Text tokens ("), "{svg}");
    assert!(svg.contains("projector at the bottom to layer 2 at the top"));
    assert_eq!(json["tokens"]["image"], 16);
    let layers = json["layers"].as_array().unwrap();
    let names: Vec<&str> = layers.iter().map(|layer| layer["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["projector", "layer 0", "layer 1", "layer 2"]);
    for layer in layers {
        let experts = if layer["name"] == "projector" { 4 } else { 5 };
        for kind in ["image", "text"] {
            if layer["name"] == "projector" && kind == "text" {
                assert!(layer["shares"][kind].is_null());
                continue;
            }
            let shares = layer["shares"][kind].as_array().unwrap();
            let shares: Vec<f64> = shares.iter().map(|v| v.as_f64().unwrap()).collect();
            assert_eq!(shares.len(), experts);
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-5);
            // Each token chooses two experts once each.
            assert!(shares.iter().all(|share| *share <= 0.5 + 1e-6), "{shares:?}");
        }
    }
    // The same picture twice sends its tokens to the same experts of the projector.
    let chat = VisionChat::from_dir(folder.path().join("looking")).unwrap();
    let circle = picture(folder.path(), "circle.png");
    let one = chat.routes(std::slice::from_ref(&circle), &[Turn { question: "a", answer: None }], 16).unwrap();
    let two = chat.routes(&[circle.clone(), circle], &[Turn { question: "a", answer: None }], 16).unwrap();
    assert_eq!((one.tokens["image"], two.tokens["image"]), (16, 32));
    assert_eq!(one.layers[0].load, two.layers[0].load);
    assert_eq!([&one.layers[0].choices[..]; 2].concat(), two.layers[0].choices);
}

#[test]
fn pictures_in_tiles() {
    let folder = folder();
    let dir = llava_next_model(folder.path());
    let (circle, chelsea) = (picture(folder.path(), "circle.png"), picture(folder.path(), "chelsea.jpg"));
    let chat = VisionChat::from_dir(&dir).unwrap();
    // As the processor of transformers 4.57.6 counts them.
    assert_eq!(image_tokens(&chat, std::slice::from_ref(&circle)), 88);
    assert_eq!(image_tokens(&chat, std::slice::from_ref(&chelsea)), 70);
    assert_eq!(chat.prompt(1, &[Turn { question: "a", answer: None }]).unwrap(), "<s>USER: <image>\na ASSISTANT:");
    let answer = chat.ask(std::slice::from_ref(&chelsea), "what is it?", &options()).unwrap();
    let run_on =
        |image: &str| run(folder.path(), &["ask", image, "what is it?", "--model", "next", "--max-tokens", "8"]);
    assert_eq!(good(&run_on("chelsea.jpg")).trim_end(), answer.text.trim_end());
    assert_ne!(good(&run_on("circle.png")).trim_end(), answer.text.trim_end());
    let text = run(folder.path(), &["info", "next"]);
    assert!(
        good(&text).contains("llava_next") && text.stdout.contains("tokens by a picture's size"),
        "{}",
        text.stdout
    );
}

#[test]
fn an_adapter_brings_the_projector_that_was_trained_with_it() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let processor = r#"{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}"#;
    fs::write(path("looking/preprocessor_config.json"), processor).unwrap();
    let line = |image: &str, answer: &str| {
        let turn = serde_json::json!({"question": "what is it?", "answer": answer, "type": "name"});
        serde_json::json!({"image": image, "source": "samples", "turns": [turn]}).to_string()
    };
    fs::write(path("train.jsonl"), [line("circle.png", "red"), line("digit.png", "four")].join("\n")).unwrap();
    let config = r#"
        seed = 1
        init = "looking"
        train = ["projector"]
        template = "plain"
        [lora]
        r = 4
        lora_alpha = 16
        [data]
        files = ["train.jsonl"]
        rows = 2
        [optimiser]
        learning_rate = 0.02
        warmup = 1
        [plan]
        steps = 12
        log_every = 6
        out = "run"
    "#;
    fs::write(path("train.toml"), config).unwrap();
    good(&run(folder.path(), &["train", "vision", "train.toml"]));
    let ask = |more: &[&str]| {
        let arguments = ["ask", "circle.png", "what is it?", "--model", "looking", "--max-tokens", "8"];
        let run = run(folder.path(), &[&arguments[..], more].concat());
        good(&run).to_string()
    };
    let (before, after) = (ask(&[]), ask(&["--adapter", "run/model"]));
    assert_ne!(before, after);
    // The projector stays whatever the strength.
    let without_maps = ask(&["--adapter", "run/model=0"]);
    assert_ne!(before, without_maps);
    let circle = [picture(folder.path(), "circle.png")];
    let mut chat = VisionChat::from_dir(path("looking")).unwrap();
    let text = |chat: &VisionChat| chat.ask(&circle, "what is it?", &options()).unwrap().text.trim_end().to_string();
    assert_eq!(text(&chat), before.trim_end());
    chat.attach(path("run/model"), 0.0).unwrap();
    assert_eq!(text(&chat), without_maps.trim_end());
    // The new strength, not one beside the other.
    chat.attach(path("run/model"), 1.0).unwrap();
    assert_eq!(text(&chat), after.trim_end());
    let error = chat.attach(path("run/checkpoint-00000012"), 1.0).unwrap_err();
    assert!(
        matches!(error, moesaic::Error::Weights { .. }) && error.to_string().contains("attach one of them"),
        "{error}"
    );
    assert_eq!(text(&chat), after.trim_end());
    chat.detach(path("run/model")).unwrap();
    assert_eq!(text(&chat), before.trim_end());
    // Questions are scored with it too; a model of another kind does not take it.
    let eval = ["eval", "vision", "looking", "train.jsonl", "--template", "plain", "--json"];
    good(&run(folder.path(), &[&eval[..], &["--adapter", "run/model"]].concat()));
    aria_model(folder.path());
    fails(
        folder.path(),
        &["ask", "circle.png", "what?", "--model", "aria", "--adapter", "run/model"],
        "modules_to_save",
    );
}

/// Runs the program and checks that it fails in one line that has `part`.
fn fails(folder: &Path, arguments: &[&str], part: &str) {
    let run = run(folder, arguments);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{arguments:?}: {}", run.stderr);
    assert!(run.stderr.starts_with("error: ") && run.stderr.lines().count() == 1, "{arguments:?}: {}", run.stderr);
    assert!(run.stderr.contains(part), "{arguments:?}: expected {part:?} in {}", run.stderr);
    assert!(run.stderr.len() < 500, "{}", run.stderr);
}

#[test]
fn bad_pictures_and_questions() {
    let folder = folder();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures");
    for name in ["bomb.png", "one.png", "strip.png", "animated.gif", "deep.png", "cmyk.jpg"] {
        fs::copy(data.join(name), folder.path().join(name)).unwrap();
    }
    let jpeg = fs::read(data.join("plain.jpg")).unwrap();
    fs::write(folder.path().join("cut.jpg"), &jpeg[..jpeg.len() / 2]).unwrap();
    fs::write(folder.path().join("text.jpg"), "What shape is it?").unwrap();
    let ask = |image: &'static str, question: &'static str| {
        vec!["ask", image, question, "--model", "looking", "--max-tokens", "2"]
    };
    for (image, question, part) in [
        ("none.png", "what?", "cannot read none.png"),
        ("text.jpg", "what?", "text.jpg is no picture of a known format"),
        ("cut.jpg", "what?", "cut.jpg is cut off or damaged"),
        ("bomb.png", "what?", "bomb.png is too large: 12000 x 12000 pixels"),
        ("circle.png", " ", "the question is empty"),
        ("circle.png", "<image>", "the question is empty"),
        ("circle.png", "<image> or <image>?", "2 <image> marks for 1 picture:"),
    ] {
        fails(folder.path(), &ask(image, question), part);
    }
    let two = ["ask", "circle.png", "digit.png", "is <image> red?", "--model", "looking"];
    fails(folder.path(), &two, "1 <image> mark for 2 pictures: give one mark");
    let many: Vec<&str> =
        ["ask"].into_iter().chain(["circle.png"; 10]).chain(["what?", "--model", "looking"]).collect();
    fails(folder.path(), &many, "leave no room for an answer in this model's context of 160");
    fails(folder.path(), &["routes", "circle.png", "what?", "--model", "looking", "--out", "a.png"], "ends in .svg");
    for image in ["one.png", "strip.png", "animated.gif", "deep.png", "cmyk.jpg"] {
        good(&run(folder.path(), &ask(image, "what?")));
    }
}

#[test]
fn bad_models() {
    let folder = folder();
    tiny::language_model(folder.path());
    let ask = |model: &'static str| ["ask", "circle.png", "what?", "--model", model];
    fails(folder.path(), &ask("model"), "without a vision tower");
    fails(folder.path(), &ask("nowhere"), "does not exist");
    let dir = folder.path().join("looking");
    let config = fs::read_to_string(dir.join("config.json")).unwrap();
    for (from, to, part) in [
        ("\"vision_config\"", "\"other_config\"", "without a vision tower"),
        ("moesaic_vision", "seeing", "is not supported; supported are"),
        ("\"sparse_mlp\"", "\"magic\"", "magic"),
        ("\"patch_size\": 8", "\"patch_size\": 0", "config.json"),
    ] {
        // Written by our own code, with or without a space.
        let damaged = match config.contains(from) {
            true => config.replace(from, to),
            false => config.replace(&from.replace(": ", ":"), to),
        };
        assert_ne!(damaged, config, "{from}");
        fs::write(dir.join("config.json"), damaged).unwrap();
        fails(folder.path(), &ask("looking"), part);
    }
    fs::write(dir.join("config.json"), &config).unwrap();
    fs::write(dir.join("preprocessor_config.json"), "{\"size\": 0}").unwrap();
    fails(folder.path(), &ask("looking"), "preprocessor_config.json: a size is 0");
    fs::remove_file(dir.join("preprocessor_config.json")).unwrap();
    let weights = fs::read(dir.join("model.safetensors")).unwrap();
    fs::write(dir.join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    fails(folder.path(), &ask("looking"), "model.safetensors");
}
