//! Tokenizers, templates and whole generations on a tiny model.

#[path = "../../tests/support/tiny.rs"]
mod tiny;

use std::ops::ControlFlow;

use moesaic_kernels::rng::Rng;
use serde::Deserialize;
use serde_json::json;

use super::detokenizer::{Detokenizer, whole};
use super::template::named_template;
use super::tokenizer::parse_config;
use super::*;

fn path() -> &'static Path {
    Path::new("m/tokenizer.json")
}

fn tokenizer_of(json: &serde_json::Value, config: &serde_json::Value) -> Result<Tokenizer> {
    Tokenizer::from_json(path(), &json.to_string(), config.as_object().unwrap())
}

fn tokenizer() -> Tokenizer {
    tokenizer_of(&tiny::tokenizer(), &tiny::tokenizer_config()).unwrap()
}

/// A tokenizer in the manner of SentencePiece: words with a mark for the space before them, and bytes for the rest.
fn with_byte_fallback() -> Tokenizer {
    let mut vocab = vec!["<unk>".to_string(), "<s>".into(), "▁Hi".into(), "▁there".into(), "!".into()];
    vocab.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let vocab: serde_json::Map<_, _> = vocab.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let special = json!({"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                         "normalized": false, "special": true});
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": []},
    });
    let config = json!({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"});
    tokenizer_of(&json, &config).unwrap()
}

#[test]
fn text_becomes_tokens_and_text_again() {
    let tokenizer = tokenizer();
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos(), tokenizer.id("<s>")), (211, Some(2), Some(0)));
    for text in ["in the end", "é ü € あ 😀, naïve", "<|im_start|>user\nHi<|im_end|>\n"] {
        let ids = tokenizer.encode(text).unwrap();
        let plain = text.replace("<|im_start|>", "").replace("<|im_end|>", "");
        assert_eq!(tokenizer.decode(&ids).unwrap(), plain);
    }
    assert_eq!(tokenizer.encode("<|im_end|>").unwrap(), [2]);
    assert_eq!(tokenizer.token(2).as_deref(), Some("<|im_end|>"));
    assert_eq!(tokenizer.decode(&[99_999]).unwrap(), "");
    // Llama's class puts bos before a text, whatever the post-processor; a rendered template has its own.
    let llama = with_byte_fallback();
    assert_eq!(llama.encode("!").unwrap(), [1, 4]);
    assert_eq!(llama.encode_rendered("!").unwrap(), [4]);
}

#[test]
fn pieces_are_whole_characters_and_add_up() {
    let (bytes, fallback) = (tokenizer(), with_byte_fallback());
    let text = "the é€あ😀 and 😀😀あ the end";
    let ids = bytes.encode(text).unwrap();
    let byte = |b: u8| 5 + u32::from(b);
    let words: Vec<u32> = [3].into_iter().chain("😀あ€".bytes().map(byte)).chain([4, 2]).collect();
    for (tokenizer, prompt, ids, expected) in [
        (&bytes, &[1, 2][..], &ids, text),
        (&bytes, &[], &ids, text),
        (&fallback, &[2], &words, " there😀あ€! Hi"),
        (&fallback, &[1], &words, "there😀あ€! Hi"),
    ] {
        let mut stream = Detokenizer::after(prompt, tokenizer).unwrap();
        let mut shown = String::new();
        for &id in ids {
            let piece = stream.push(id, tokenizer).unwrap();
            assert!(!piece.contains('\u{fffd}'), "{piece:?} after {shown:?}");
            shown.push_str(&piece);
        }
        assert_eq!((shown.as_str(), stream.finish(tokenizer).unwrap().as_str()), (expected, ""));
        assert_eq!(whole(prompt, ids, tokenizer).unwrap(), expected);
    }
    // A character that stays incomplete is shown at the end.
    let mut stream = Detokenizer::after(&[], &bytes).unwrap();
    let half = &bytes.encode("a€").unwrap()[..2];
    let shown: Vec<String> = half.iter().map(|&id| stream.push(id, &bytes).unwrap()).collect();
    assert_eq!((shown.concat().as_str(), stream.finish(&bytes).unwrap().as_str()), ("a", "\u{fffd}"));
    // Random tokens are broken in every way; nothing is lost or shown twice.
    let mut rng = Rng::new(3);
    for round in 0..300 {
        let ids: Vec<u32> = (0..rng.below(120)).map(|_| rng.below(211) as u32).collect();
        let mut stream = Detokenizer::after(&[], &bytes).unwrap();
        let mut shown: String = ids.iter().map(|&id| stream.push(id, &bytes).unwrap()).collect();
        shown.push_str(&stream.finish(&bytes).unwrap());
        assert_eq!(shown, bytes.decode(&ids).unwrap(), "round {round}: {ids:?}");
    }
}

#[test]
fn missing_and_damaged_tokenizers_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let error = |dir: &Path| Tokenizer::load(dir).unwrap_err().to_string();
    let found = error(folder.path());
    assert!(found.contains("tokenizer.json: is missing; copy it from the repository"), "{found}");
    fs::write(folder.path().join("tokenizer.model"), "x").unwrap();
    assert!(error(folder.path()).contains("tokenizer.model alone is not read: convert it"));
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(error(folder.path()).contains("tokenizer.json: is not a tokenizer ("));
    fs::write(folder.path().join("tokenizer.json"), [0xff]).unwrap();
    assert!(error(folder.path()).contains("tokenizer.json: is not UTF-8 text"));
    fs::write(folder.path().join("tokenizer.json"), tiny::tokenizer().to_string()).unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), "[1]").unwrap();
    assert!(error(folder.path()).contains("tokenizer_config.json: is not a JSON object"));
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    expected: String,
}

fn named() -> [(&'static str, String); 2] {
    [("bos_token", "<s>".to_string()), ("eos_token", "</s>".to_string())]
}

#[test]
fn templates_render_as_in_the_reference() {
    let cases: Cases = serde_json::from_str(include_str!("../../tests/data/templates.json")).unwrap();
    assert!(cases.cases.len() > 20);
    for case in cases.cases {
        let template = ChatTemplate::new(path(), &case.template, &named()).unwrap();
        let options = TemplateOptions {
            add_generation_prompt: case.add_generation_prompt,
            date: Some("2026-03-05T14:30:00".parse().unwrap()),
            ..TemplateOptions::default()
        };
        let text = template.render(&case.messages, &options).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        assert_eq!(text, case.expected, "{}", case.name);
    }
}

fn render(source: &str) -> Result<String> {
    let messages = [Message::user("Hi")];
    ChatTemplate::new(path(), source, &named())?.render(&messages, &TemplateOptions::default())
}

#[test]
fn variables_reach_the_template_and_dates_only_when_given() {
    let template = ChatTemplate::new(path(), "{{ enable_thinking }} {{ strftime_now is defined }}", &[]).unwrap();
    let mut options = TemplateOptions::default();
    options.variables.insert("enable_thinking".into(), false.into());
    assert_eq!(template.render(&[], &options).unwrap(), "False False");
}

#[test]
fn templates_that_fail_or_do_not_end_are_errors() {
    for (source, part) in [
        ("{{ raise_exception('Roles must alternate, ' ~ messages[0].role) }}", "refuses this conversation: Roles must"),
        ("{% macro m() %}{{ raise_exception('no') }}{% endmacro %}{{ m() }}", "refuses this conversation: no"),
        ("{% for m in messages %}\n{{ m.content }", "m/tokenizer.json: its chat template, line 2 fails (syntax error"),
        ("\n\n{{ messages[0].tool_calls[0].name }}", "line 3 fails (undefined value"),
        ("{{ messages | nothing }}", "unknown filter"),
        ("{{ messages[0].content.explode() }}", "unknown method"),
        ("{{ strftime_now('%d') }}", "strftime_now"),
        ("{% include 'x' %}", "fails ("),
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}",
            "does not come to an end",
        ),
        (
            "{% set ns = namespace(s='0123456789') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            "does not come to an end or makes too much text",
        ),
        ("{{ 'x' * 999999999 }}", ""),
        ("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", "fails ("),
        (
            "{% set ns = namespace(v=[]) %}{% for i in range(500) %}{% set ns.v = [ns.v] %}{% endfor %}{{ ns.v | tojson }}",
            "nested",
        ),
    ] {
        let error = render(source).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains('\n') && error.len() < 400, "{source}: {error}");
    }
    // Neither nesting nor chains as long as a template may be overflow a stack.
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(60_000), ")".repeat(60_000));
    assert!(render(&deep).unwrap_err().to_string().contains("fails ("));
    for source in [
        format!("{{{{ {}1 }}}}", "-".repeat(130_000)),
        format!("{{{{ 1{} }}}}", "+1".repeat(65_000)),
        format!("{{{{ messages{} }}}}", ".b".repeat(65_000)),
        "{% set ns = namespace(v=[]) %}{% for i in range(90000) %}{% set ns.v = [ns.v] %}{% endfor %}{{ ns.v }}".into(),
    ] {
        let _ = render(&source);
    }
    assert!(render(&"x".repeat(2 << 20)).unwrap_err().to_string().contains("more than any has"));
}

#[test]
fn a_template_is_found_where_it_is_published() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let load = || ChatTemplate::load(dir, &tokenizer());
    let text = || load().unwrap().unwrap().render(&[], &TemplateOptions::default()).unwrap();
    assert!(load().unwrap().is_none());
    let config = |value: serde_json::Value| {
        fs::write(dir.join("tokenizer_config.json"), json!({"chat_template": value}).to_string()).unwrap();
    };
    config(json!("text {{ bos_token }}{{ eos_token }}"));
    assert_eq!(text(), "text <s><|im_end|>");
    config(json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]));
    assert_eq!(text(), "d");
    config(json!([{"name": "tool_use", "template": "t"}, {"name": "rag", "template": "d"}]));
    assert!(load().unwrap_err().to_string().contains("('tool_use', 'rag') and none called 'default'"));
    config(json!(3));
    assert!(load().unwrap_err().to_string().contains("neither text nor a list"));
    fs::write(dir.join("chat_template.jinja"), "file").unwrap();
    assert_eq!(text(), "file");
}

/// Changes, removes or repeats some bytes of a text, or pieces of JSON in it.
fn damaged(rng: &mut Rng, text: &str) -> String {
    const PIECES: [&str; 12] =
        ["null", "-1", "1e99", "[]", "{}", "\"\"", "\"a b\"", "true", "4294967295", "{{", "%}", "{% for x in"];
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..1 + rng.below(3) {
        let at = rng.below(bytes.len());
        let end = (at + 1 + rng.below(12)).min(bytes.len());
        match rng.below(4) {
            0 => bytes[at] = rng.below(256) as u8,
            1 => drop(bytes.drain(at..end)),
            2 => drop(bytes.splice(at..end, PIECES[rng.below(PIECES.len())].bytes())),
            _ => {
                let copy = bytes[at..end].to_vec();
                let to = rng.below(bytes.len());
                drop(bytes.splice(to..to, copy));
            }
        }
        if bytes.is_empty() {
            bytes.push(b'{');
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn twenty_thousand_damaged_tokenizers() {
    // A small one, so that most of its bytes matter.
    let small = json!({
        "version": "1.0", "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null, "normalizer": {"type": "NFC"},
        "added_tokens": [{"id": 5, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\d|a+(?!b)"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [5], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "unk_token": null, "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "1": 4}, "merges": ["a b"]},
    });
    let config = tiny::tokenizer_config();
    let whole = tokenizer_of(&small, &config).unwrap();
    assert_eq!(whole.encode("ab a1").unwrap(), [5, 3, 2, 3, 3, 0, 3, 4]);
    let (text, mut rng) = (small.to_string(), Rng::new(11));
    let (mut good, mut bad) = (0, 0);
    for _ in 0..20_000 {
        match Tokenizer::from_json(path(), &damaged(&mut rng, &text), config.as_object().unwrap()) {
            Ok(tokenizer) => {
                good += 1;
                if let Ok(ids) = tokenizer.encode("ab a1<s>é") {
                    let _ = tokenizer.decode(&ids);
                }
            }
            Err(error) => {
                bad += 1;
                let error = error.to_string();
                assert!(
                    error.starts_with("m/tokenizer.json: ") && error.len() < 300 && !error.contains('\n'),
                    "{error}"
                );
            }
        }
    }
    assert!(good > 200 && bad > 1000, "{good} {bad}");
}

#[test]
fn twenty_thousand_damaged_templates_and_settings() {
    let cases: Cases = serde_json::from_str(include_str!("../../tests/data/templates.json")).unwrap();
    let sources: Vec<String> = cases
        .cases
        .iter()
        .map(|case| json!({"chat_template": case.template, "bos_token": {"content": "<s>"}}).to_string())
        .collect();
    let settings = r#"{"eos_token_id": [1, 2], "do_sample": true, "top_k": 5, "early_stopping": "never"}"#;
    let mut rng = Rng::new(12);
    let messages = [Message::user("Hi"), Message::assistant("é\n")];
    let (mut good, mut bad) = (0, 0);
    for round in 0..20_000 {
        let text = damaged(&mut rng, &sources[round % sources.len()]);
        let rendered = parse_config(path(), &text)
            .and_then(|config| named_template(path(), &config))
            .and_then(|source| ChatTemplate::new(path(), &source.unwrap_or_default(), &named()))
            .and_then(|template| template.render(&messages, &TemplateOptions::default()));
        match rendered {
            Ok(_) => good += 1,
            Err(error) => {
                bad += 1;
                assert!(!error.to_string().contains('\n') && error.to_string().len() < 500, "{error}");
            }
        }
        let _ = moesaic_models::generate::GenerationConfig::from_json(&damaged(&mut rng, settings));
    }
    assert!(good > 1000 && bad > 1000, "{good} {bad}");
}

fn generator() -> (tempfile::TempDir, TextGenerator) {
    let folder = tempfile::tempdir().unwrap();
    let generator = TextGenerator::from_dir(tiny::language_model(folder.path())).unwrap();
    (folder, generator)
}

fn sampled() -> TextOptions {
    TextOptions { max_tokens: Some(30), temperature: Some(1.0), seed: 5, ..TextOptions::default() }
}

#[test]
fn everything_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<TextGenerator>();
    shared::<Chat>();
    shared::<ChatTemplate>();
}

#[test]
fn texts_of_a_batch_are_texts_alone_and_streams_add_up() {
    let (_folder, generator) = generator();
    let prompts = ["in the end", "é", "One, two", "in the end"];
    for options in [sampled(), TextOptions { max_tokens: Some(30), ..TextOptions::default() }] {
        let together = generator.generate_batch(&prompts, &options).unwrap();
        for (prompt, answer) in prompts.iter().zip(&together).take(3) {
            assert_eq!(&generator.generate(prompt, &options).unwrap(), answer);
            assert_eq!(answer.prompt_tokens, generator.tokenizer().encode(prompt).unwrap().len());
        }
        // Equal prompts are drawn apart.
        assert_eq!(together[0] == together[3], options.temperature.is_none());
        let mut texts = vec![String::new(); prompts.len()];
        let mut ended = 0;
        for piece in generator.stream(&prompts, &options).unwrap() {
            let piece = piece.unwrap();
            assert!(!piece.text.is_empty() || piece.finish.is_some());
            texts[piece.row].push_str(&piece.text);
            ended += usize::from(piece.finish.is_some());
        }
        assert_eq!(ended, prompts.len());
        assert_eq!(texts, together.iter().map(|answer| answer.text.clone()).collect::<Vec<_>>());
    }
}

#[test]
fn a_stop_string_ends_a_row_and_is_not_shown() {
    let (_folder, generator) = generator();
    let free = generator.generate_batch(&["in the end", "One"], &sampled()).unwrap();
    // A stop string from the middle of the first answer, over the border of tokens.
    let text: Vec<char> = free[0].text.chars().collect();
    let stop: String = text[text.len() / 2..text.len() / 2 + 3].iter().collect();
    let options = TextOptions { stop: vec![stop.clone(), "not in it at all".into()], ..sampled() };
    let stopped = generator.generate_batch(&["in the end", "One"], &options).unwrap();
    assert_eq!(stopped[0].text, free[0].text[..free[0].text.find(&stop).unwrap()]);
    assert_eq!(stopped[0].finish, Finish::Stopped);
    assert!(stopped[0].tokens < free[0].tokens);
    let expected = free[1].text.find(&stop).unwrap_or(free[1].text.len());
    assert_eq!(stopped[1].text, free[1].text[..expected]);
    let mut stream = generator.stream(&["in the end"], &options).unwrap();
    assert!(stream.all(|piece| !piece.unwrap().text.contains(&stop)));
}

#[test]
fn callbacks_cancel_and_answers_tell_what_happened() {
    let (_folder, generator) = generator();
    let mut pieces = 0;
    let stream = generator.stream(&["in the end"], &sampled()).unwrap();
    let (answers, speed) = stream
        .run(&mut |_| {
            pieces += 1;
            if pieces == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!((pieces, answers[0].finish), (3, Finish::Stopped));
    assert!(answers[0].tokens < 30 && speed.decode_tokens == answers[0].tokens - 1 && speed.prompt_tokens > 0);
    let options = TextOptions { log_probs: true, ..sampled() };
    let answer = generator.generate("in the end", &options).unwrap();
    assert_eq!(answer.log_probs.len(), answer.tokens);
    assert!(answer.log_probs.iter().all(|token| token.log_prob < 0.0 && !token.token.is_empty()));
    let beams = TextOptions { beams: Some(3), max_tokens: Some(12), ..TextOptions::default() };
    let found = generator.search(&["in the end", "One"], 2, &beams).unwrap();
    assert!(found.iter().all(|row| row.len() == 2 && row[0].score >= row[1].score));
    assert_eq!(generator.generate("One", &beams).unwrap(), found[1][0]);
}

#[test]
fn settings_of_the_model_hold_until_the_caller_says_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let dir = tiny::language_model(folder.path());
    let settings = json!({"do_sample": true, "temperature": 0.9, "max_new_tokens": 7, "eos_token_id": [3]});
    fs::write(dir.join("generation_config.json"), settings.to_string()).unwrap();
    let model = TextGenerator::from_dir(&dir).unwrap();
    let default = model.generate("the end", &TextOptions::default()).unwrap();
    assert_eq!((default.tokens, model.max_new_tokens()), (7, Some(7)));
    let same = TextOptions { temperature: Some(0.9), max_tokens: Some(7), ..TextOptions::default() };
    assert_eq!(model.generate("the end", &same).unwrap(), default);
    let cold = TextOptions { temperature: Some(0.0), max_tokens: Some(9), ..TextOptions::default() };
    let (_folder, greedy) = generator();
    let expected = greedy.generate("the end", &TextOptions { max_tokens: Some(9), ..TextOptions::default() }).unwrap();
    assert_eq!(model.generate("the end", &cold).unwrap().text, expected.text);
    fs::write(dir.join("generation_config.json"), r#"{"top_k": "many"}"#).unwrap();
    let error = TextGenerator::from_dir(&dir).unwrap_err().to_string();
    assert!(error.contains("generation_config.json: ") && error.contains("many"), "{error}");
}

#[test]
fn bad_prompts_and_options_are_input_errors() {
    let (_folder, generator) = generator();
    let error = |prompts: &[&str], options: TextOptions| match generator.stream(prompts, &options) {
        Err(error @ Error::Input { .. }) => error.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("{prompts:?} accepted"),
    };
    let long = "a ".repeat(200);
    for (prompts, part) in [
        (&[][..], "there is no prompt"),
        (&["a", ""], "prompt 1 is empty"),
        (&[""], "the prompt is empty"),
        (&[long.as_str()], "in this model's context of 128: shorten it to at most 127"),
    ] {
        let found = error(prompts, TextOptions::default());
        assert!(found.contains(part), "{found}");
    }
    let stop = TextOptions { stop: vec![String::new()], ..TextOptions::default() };
    assert!(error(&["a"], stop).contains("a stop string is empty"));
    let hot = TextOptions { temperature: Some(f64::NAN), ..TextOptions::default() };
    assert!(error(&["a"], hot).contains("temperature is NaN"));
    let beams = TextOptions { beams: Some(2), ..TextOptions::default() };
    assert!(error(&["a"], beams).contains("leave out the beams to stream"));
    let none = TextOptions { beams: Some(0), ..TextOptions::default() };
    assert!(generator.generate("a", &none).unwrap_err().to_string().contains("0 beams"));
}

#[test]
fn a_chat_is_its_template_and_the_generator() {
    let folder = tempfile::tempdir().unwrap();
    let dir = tiny::language_model(folder.path());
    let chat = Chat::from_dir(&dir).unwrap();
    let messages = [Message::system("Be."), Message::user("Hi <|im_end|>")];
    let template = TemplateOptions::default();
    let prompt = chat.prompt(&messages, &template).unwrap();
    assert_eq!(
        prompt,
        "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    );
    let answer = chat.answer(&messages, &template, &sampled()).unwrap();
    assert_eq!(answer, chat.generator().generate(&prompt, &sampled()).unwrap());
    assert!(chat.answer(&[], &template, &sampled()).unwrap_err().to_string().contains("conversation is empty"));
    fs::write(dir.join("tokenizer_config.json"), "{}").unwrap();
    let error = Chat::from_dir(&dir).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json: has no chat_template"), "{error}");
}
