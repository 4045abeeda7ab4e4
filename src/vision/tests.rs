use std::path::Path;

use serde_json::json;

use super::Config;
use super::prompt::{Prompting, ids};
use crate::prompts::Turn;
use crate::text::Tokenizer;
use crate::{Error, Place};

/// Words of a few letters, with or without a token that begins a text.
fn tokenizer(begin: bool, image: bool) -> Tokenizer {
    let words = ["<s>", "a", "b", "c", "<unk>", "<image>"];
    let special = |id: usize| {
        json!({"id": id, "content": words[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
               "special": true})
    };
    let added: Vec<_> = [0, 5].into_iter().filter(|&id| id == 0 || image).map(special).collect();
    let post = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}});
    let vocab: serde_json::Map<_, _> = words
        .iter()
        .take(if image { 6 } else { 5 })
        .enumerate()
        .map(|(id, word)| (word.to_string(), json!(id)))
        .collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "added_tokens": added,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": if begin { post } else { json!(null) }, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    let config = json!({"bos_token": "<s>"});
    Tokenizer::from_json(Path::new("tokenizer.json"), &json.to_string(), config.as_object().unwrap()).unwrap()
}

#[test]
fn marks_become_ids_and_a_text_begins_once() {
    const MARK: u32 = u32::MAX;
    for prompt in ["a <image>\nb <image> c", "a<image>b<image>c"] {
        assert_eq!(ids(prompt, MARK, &tokenizer(true, false)).unwrap(), [0, 1, MARK, 2, MARK, 3]);
        assert_eq!(ids(prompt, MARK, &tokenizer(false, false)).unwrap(), [1, MARK, 2, MARK, 3]);
        assert_eq!(ids(prompt, 5, &tokenizer(true, true)).unwrap(), [0, 1, 5, 2, 5, 3]);
    }
    assert_eq!(ids("<image>", MARK, &tokenizer(true, false)).unwrap(), [0, MARK]);
    // CuMo's template has one more; what a chat template wrote does not get another.
    assert_eq!(ids("<s>a <image>b", MARK, &tokenizer(true, false)).unwrap(), [0, 0, 1, MARK, 2]);
    assert_eq!(ids("<s>a <image>b", 5, &tokenizer(true, true)).unwrap(), [0, 1, 5, 2]);
}

#[test]
fn questions_have_a_mark_for_each_picture() {
    let tokenizer = tokenizer(true, false);
    let turn = |question, answer| Turn { question, answer };
    let prompt = |n, turns: &[Turn<'_>]| Prompting::Roles.prompt(n, turns, &tokenizer);
    assert_eq!(prompt(0, &[turn("a", None)]).unwrap(), "<s>USER: a ASSISTANT:");
    assert_eq!(prompt(2, &[turn("a", None)]).unwrap(), "<s>USER: <image>\n<image>\na ASSISTANT:");
    let later = [turn("a", Some("b")), turn("and <image>?", None)];
    assert_eq!(prompt(1, &later).unwrap(), "<s>USER: a ASSISTANT: b USER: and <image>? ASSISTANT:");
    for (n, turns, words) in [
        (1, &[][..], "no question"),
        (1, &[turn("", None)], "question is empty"),
        (1, &[turn("<image>\n", None)], "question is empty"),
        (0, &[turn("<image> a", None)], "1 <image> mark for 0 pictures"),
        (3, &[turn("<image> a <image>", None)], "2 <image> marks for 3 pictures"),
        (1, &[turn("a", None), turn("b", None)], "has an answer"),
        (1, &[turn("a", Some("b"))], "has an answer"),
    ] {
        match prompt(n, turns) {
            Err(Error::Input { at, problem }) if at == Place::default() => {
                assert!(problem.contains(words), "{problem}")
            }
            other => panic!("{turns:?}: {other:?}"),
        }
    }
}

#[test]
fn families_write_as_their_code_does() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(true, false);
    let tower = json!({"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8, "model_type": "clip_vision_model"});
    std::fs::write(dir.path().join("vision_config.json"), tower.to_string()).unwrap();
    let llama = json!({"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 32, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 16});
    for (model_type, start, stop) in [
        ("llava_llama", "A chat between a curious user", Some("</s>")),
        ("llava_mistral", "<s>[INST] <<SYS>>\nA chat", Some("</s>")),
    ] {
        let mut config = llama.clone();
        config["model_type"] = json!(model_type);
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let config = Config::load(dir.path()).unwrap();
        let prompting = Prompting::of(dir.path(), &config, &tokenizer).unwrap();
        let text = prompting.prompt(1, &[Turn { question: "a", answer: None }], &tokenizer).unwrap();
        assert!(text.starts_with(start) && text.contains("<image>\na"), "{model_type}: {text}");
        assert_eq!(prompting.stop(), stop, "{model_type}");
    }
}
