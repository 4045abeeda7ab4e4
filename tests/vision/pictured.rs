//! Aria and Qwen3-VL, whose pictures keep their proportions.

use std::fs;
use std::path::Path;

use moesaic::prompts::Turn;
use moesaic::{Picture, VisionChat};

use super::looking::{aria_model, qwen_model};
use super::support::run;
use super::{fails, folder, good, image_tokens, options, picture, tiny};

#[test]
fn aria_and_qwen_answer_in_their_own_words() {
    let folder = folder();
    let aria = ("aria", aria_model(folder.path()), "<fim_prefix><|img|><fim_suffix>", [4, 4]);
    let qwen = "<|vision_start|><|image_pad|><|vision_end|>";
    let dense = ("qwen3_vl", qwen_model(folder.path(), false), qwen, [16, 12]);
    let sparse = ("qwen3_vl_moe", qwen_model(folder.path(), true), qwen, [16, 12]);
    let (circle, chelsea) = (picture(folder.path(), "circle.png"), picture(folder.path(), "chelsea.jpg"));
    for (family, dir, mark, tokens) in [aria, dense, sparse] {
        let chat = VisionChat::from_dir(&dir).unwrap();
        assert_eq!(chat.info().architecture, family);
        // What the published templates write.
        let turns =
            [Turn { question: "a <image> b", answer: Some("c") }, Turn { question: "<image>\nd?", answer: None }];
        let prompt = format!(
            "<|im_start|>user\na {mark} b<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n<|im_start|>user\n{mark}d?<|im_end|>\n\
             <|im_start|>assistant\n"
        );
        assert_eq!(chat.prompt(2, &turns).unwrap(), prompt);
        let template = format!(
            "{{% for message in messages %}}<|im_start|>{{{{ message['role'] }}}}\n{{% if message['content'] is string %}}{{{{ \
             message['content'] }}}}{{% else %}}{{% for item in message['content'] %}}{{% if item['type'] == 'text' %}}{{{{ \
             item['text'] }}}}{{% elif item['type'] == 'image' %}}{mark}{{% endif %}}{{% endfor %}}{{% endif %}}<|im_end|>\n{{% \
             endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
        );
        for template in [template.as_str(), tiny::TEMPLATE] {
            fs::write(dir.join("chat_template.jinja"), template).unwrap();
            assert_eq!(VisionChat::from_dir(&dir).unwrap().prompt(2, &turns).unwrap(), prompt, "{family}");
        }
        fs::remove_file(dir.join("chat_template.jinja")).unwrap();
        // Several pictures, in pieces and at once; their order counts.
        let ask = |first: &Picture, second: &Picture| {
            let mut text = String::new();
            let pictures = [first.clone(), second.clone()];
            for piece in chat.stream(&pictures, &turns, &options()).unwrap() {
                text += &piece.unwrap().text;
            }
            let mut measured = options();
            measured.log_probs = true;
            let whole = chat.stream(&pictures, &turns, &measured).unwrap().answers().unwrap().remove(0);
            assert_eq!(whole.text, text);
            let words = chat.tokenizer().encode(&prompt).unwrap().len() - 2;
            assert_eq!(whole.prompt_tokens, words + tokens[0] + tokens[1], "{family}");
            // Random weights may say the same of everything, but not with the same certainty.
            whole.log_probs
        };
        assert_ne!(ask(&circle, &chelsea), ask(&chelsea, &circle), "{family}");
        let name = dir.file_name().unwrap().to_str().unwrap();
        let run = run(folder.path(), &["ask", "circle.png", "what is it?", "--model", name, "--max-tokens", "8"]);
        let one = chat.ask(std::slice::from_ref(&circle), "what is it?", &options()).unwrap();
        assert_eq!(good(&run).trim_end(), one.text.trim_end());
        chat.ask(&[], "what is it?", &options()).unwrap();
        // Marks in the question, and marks as the model has them.
        for (pictures, question, part) in [
            (1, "<image> or <image>?", "2 <image> marks for 1 picture"),
            (2, "is <image> red?", "1 <image> mark for 2 pictures"),
            (0, "is <image> red?", "1 <image> mark for 0 pictures"),
            (1, format!("and {mark}?").as_str(), "2 picture marks for 1 picture"),
            (0, format!("and {mark}?").as_str(), "1 picture mark but no picture"),
        ] {
            let pictures = vec![circle.clone(); pictures];
            match chat.ask(&pictures, question, &options()) {
                Err(moesaic::Error::Input { problem, .. }) => assert!(problem.contains(part), "{family}: {problem}"),
                other => panic!("{family}: {question}: {other:?}"),
            }
        }
        assert!(format!("{chat:?}").len() < 2000);
    }
}

#[test]
fn routes_and_sizes_of_aria_and_qwen() {
    let folder = folder();
    let (circle, chelsea) = (picture(folder.path(), "circle.png"), picture(folder.path(), "chelsea.jpg"));
    for (dir, layers) in [(aria_model(folder.path()), 2), (qwen_model(folder.path(), true), 3)] {
        let name = dir.file_name().unwrap().to_str().unwrap();
        let run = run(folder.path(), &["routes", "circle.png", "what?", "--model", name, "--json"]);
        let json: serde_json::Value = serde_json::from_str(good(&run)).unwrap();
        assert_eq!(json["tokens"]["image"], if layers == 2 { 4 } else { 16 });
        assert_eq!(json["layers"].as_array().unwrap().len(), layers);
        for layer in json["layers"].as_array().unwrap() {
            let shares: Vec<f64> =
                layer["shares"]["image"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            assert!(shares.len() == 5 && (shares.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{shares:?}");
        }
    }
    // A picture that Aria splits is one picture still, whose crops stand together.
    let aria = folder.path().join("aria");
    fs::write(aria.join("preprocessor_config.json"), r#"{"max_image_size": 490, "split_image": true}"#).unwrap();
    let chat = VisionChat::from_dir(&aria).unwrap();
    assert_eq!(image_tokens(&chat, std::slice::from_ref(&chelsea)), 8);
    assert_eq!(image_tokens(&chat, &[chelsea.clone(), chelsea.clone()]), 16);
    // Fewer pixels, fewer tokens.
    let mut chat = VisionChat::from_dir(folder.path().join("qwen-sparse")).unwrap();
    assert_eq!(image_tokens(&chat, &[circle.clone(), chelsea.clone()]), 16 + 12);
    chat.limit_pixels(1);
    assert_eq!(image_tokens(&chat, std::slice::from_ref(&circle)), 4);
    let arguments = ["routes", "circle.png", "a", "--model", "qwen-sparse", "--json", "--max-pixels", "1024"];
    let json: serde_json::Value = serde_json::from_str(good(&run(folder.path(), &arguments))).unwrap();
    assert_eq!(json["tokens"]["image"], 4);
    fails(folder.path(), &["routes", "circle.png", "a", "--model", dense(folder.path()), "--json"], "no sparse layer");
    let text = run(folder.path(), &["info", "aria"]);
    for part in ["aria", "siglip, 490 x 490 pixels", "queries, 4 tokens a picture", "2 (2 of them sparse)"] {
        assert!(good(&text).contains(part), "{part}: {}", text.stdout);
    }
    let text = run(folder.path(), &["info", "qwen-sparse"]);
    for part in ["qwen3_vl_moe", "qwen3_vl, pictures of any size", "merger, tokens by a picture's size"] {
        assert!(good(&text).contains(part), "{part}: {}", text.stdout);
    }
}

fn dense(folder: &Path) -> &'static str {
    qwen_model(folder, false);
    "qwen"
}

#[test]
fn bad_folders_of_aria_and_qwen() {
    let folder = folder();
    let (aria, qwen) = (aria_model(folder.path()), qwen_model(folder.path(), true));
    let ask = |model: &'static str| ["ask", "circle.png", "what?", "--model", model];
    fs::write(aria.join("preprocessor_config.json"), r#"{"max_image_size": 980}"#).unwrap();
    fails(folder.path(), &ask("aria"), "have 784 patches, and config.json has queries for pictures of 196");
    fs::write(aria.join("preprocessor_config.json"), r#"{"max_image_size": 490}"#).unwrap();
    fs::write(qwen.join("preprocessor_config.json"), r#"{"patch_size": 16}"#).unwrap();
    fails(folder.path(), &ask("qwen-sparse"), "do not fit the tower of config.json");
    fs::remove_file(qwen.join("preprocessor_config.json")).unwrap();
    VisionChat::from_dir(&qwen).unwrap();
    fs::copy(folder.path().join("looking/tokenizer.json"), qwen.join("tokenizer.json")).unwrap();
    fails(folder.path(), &ask("qwen-sparse"), "has no token 213");
    let config = fs::read_to_string(aria.join("config.json")).unwrap();
    fs::write(aria.join("config.json"), config.replace("\"196\"", "\"x\"")).unwrap();
    fails(folder.path(), &ask("aria"), "projector_patch_to_query_dict");
    fs::write(aria.join("config.json"), &config).unwrap();
    let weights = fs::read(aria.join("model.safetensors")).unwrap();
    fs::write(aria.join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    fails(folder.path(), &ask("aria"), "model.safetensors");
}
