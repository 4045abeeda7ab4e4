//! Conversations about pictures as text, and as ids with marks.

use std::path::Path;

use serde_json::{Value, json};

use super::Config;
use crate::error::{Error, Result, quoted};
use crate::prompts::{Template, Turn};
use crate::text::{ChatTemplate, Message, TemplateOptions, Tokenizer};

/// Stands in a question for a picture.
pub(super) const MARK: &str = "<image>";

/// How a model wants a conversation written.
#[derive(Debug)]
pub(super) enum Prompting {
    /// By its own chat template. Where the prompt holds the picture's own token, what stands for a picture in templates that know
    /// text alone.
    Chat(ChatTemplate, Option<&'static str>),
    /// As the code that it was published with does, or as its own configuration says (`conversation`).
    Code(Template),
    /// `USER: .. ASSISTANT:`, as LLaVA-1.5 for `transformers` has it.
    Roles,
    /// `<|im_start|>user .. <|im_end|>`, as the templates of Aria and Qwen3-VL have it, with this for a picture.
    Turns(&'static str),
}

/// A picture in Aria's prompts.
const ARIA: &str = "<fim_prefix><|img|><fim_suffix>";
/// A picture in Qwen3-VL's.
const QWEN: &str = "<|vision_start|><|image_pad|><|vision_end|>";
const TURN: &str = "<|im_start|>";
const END: &str = "<|im_end|>";

impl Prompting {
    pub fn of(dir: &Path, config: &Config, tokenizer: &Tokenizer) -> Result<Self> {
        if let Some(mark) = config.written_mark()
            && tokenizer.token(mark).is_none()
        {
            let problem =
                format!("has no token {mark}, with which config.json marks pictures: fetch both from one place");
            return Err(Error::config(&dir.join("tokenizer.json"), problem));
        }
        let chat = |picture| Ok::<_, Error>(ChatTemplate::load(dir, tokenizer)?.map(|chat| Self::Chat(chat, picture)));
        let config = match config {
            Config::Vision(config) => config,
            Config::Aria(_) => return Ok(chat(Some(ARIA))?.unwrap_or(Self::Turns(ARIA))),
            Config::Qwen3Vl(_) => return Ok(chat(Some(QWEN))?.unwrap_or(Self::Turns(QWEN))),
        };
        let moe_llava = config.published.contains_key("mm_image_tower");
        let name = match config.model_type.as_str() {
            "moesaic_vision" => config.published.get("conversation").and_then(Value::as_str),
            "llava" if config.published.contains_key("text_config") => None,
            "llava_next" => None,
            name if name.ends_with("_stablelm") => Some("stablelm"),
            name if name.ends_with("_phi") => Some("phi"),
            name if name.ends_with("_qwen") || name.ends_with("_qwen1_5") => Some("qwen"),
            _ if moe_llava => Some("v1"),
            "llava_mistral" if config.tiles.is_some() => Some("mistral_instruct"),
            "llava_mistral" | "llava_mixtral" => Some("mistral_instruct_system"),
            _ => Some("vicuna_v1"),
        };
        // Models that were published with code may have a template of the language model's beside them, which they were not
        // trained on.
        if let Some(name) = name {
            let unknown = || {
                let known = Template::NAMES.join(", ");
                Error::config(
                    &dir.join("config.json"),
                    format!("the conversation template {} is not known; known are {known}", quoted(name)),
                )
            };
            return Template::named(name).map(Self::Code).ok_or_else(unknown);
        }
        Ok(chat(None)?.unwrap_or(Self::Roles))
    }

    /// Further text at which an answer ends.
    pub fn stop(&self) -> Option<&'static str> {
        match self {
            Self::Code(template) => Some(template.stop()),
            Self::Turns(_) => Some(END),
            Self::Chat(..) | Self::Roles => None,
        }
    }

    /// The text of a conversation about so many pictures.
    pub fn prompt(&self, pictures: usize, turns: &[Turn<'_>], tokenizer: &Tokenizer) -> Result<String> {
        let questions = marked(pictures, turns)?;
        let turns: Vec<Turn<'_>> =
            questions.iter().zip(turns).map(|(question, turn)| Turn { question, answer: turn.answer }).collect();
        let options = TemplateOptions::default();
        match self {
            Self::Code(template) => template.prompt(&turns),
            Self::Chat(template, _) if template.takes_pieces() => template.render_json(&pieces(&turns), &options),
            Self::Chat(template, None) => template.render(&messages(&turns), &options),
            Self::Chat(template, Some(picture)) => {
                let questions: Vec<String> = turns.iter().map(|turn| shown(turn.question, picture)).collect();
                let turns: Vec<Turn<'_>> =
                    questions.iter().zip(&turns).map(|(question, turn)| Turn { question, ..*turn }).collect();
                template.render(&messages(&turns), &options)
            }
            Self::Turns(picture) => {
                let mut text = String::new();
                for Turn { question, answer } in turns {
                    text += &format!("{TURN}user\n{}{END}\n{TURN}assistant\n", shown(question, picture));
                    text += &answer.map_or(String::new(), |answer| format!("{answer}{END}\n"));
                }
                Ok(text)
            }
            Self::Roles => {
                let mut text = tokenizer.bos().unwrap_or_default().to_string();
                for Turn { question, answer } in turns {
                    text += &format!("USER: {question} ASSISTANT:");
                    text += &answer.map_or(String::new(), |answer| format!(" {answer} "));
                }
                Ok(text)
            }
        }
    }
}

/// A question with `picture` where pictures stand, and without the line ends behind marks.
fn shown(question: &str, picture: &str) -> String {
    question.replace(&format!("{MARK}\n"), picture).replace(MARK, picture)
}

/// Questions with one mark for each picture. Without any mark, all stand in front of the first question.
fn marked(pictures: usize, turns: &[Turn<'_>]) -> Result<Vec<String>> {
    let Some((last, before)) = turns.split_last() else {
        return Err(Error::option("there is no question: ask something"));
    };
    if turns.iter().any(|turn| turn.question.replace(MARK, "").trim().is_empty()) {
        return Err(Error::option("the question is empty: ask something"));
    }
    if last.answer.is_some() || before.iter().any(|turn| turn.answer.is_none_or(str::is_empty)) {
        return Err(Error::option("every question of a conversation but the last has an answer: leave out the others"));
    }
    let marks: usize = turns.iter().map(|turn| turn.question.matches(MARK).count()).sum();
    let mut questions: Vec<String> = turns.iter().map(|turn| turn.question.to_string()).collect();
    match (marks, questions.first_mut()) {
        (0, Some(first)) if pictures > 0 => *first = format!("{}{first}", format!("{MARK}\n").repeat(pictures)),
        _ if marks != pictures => {
            let counted = |n: usize, what: &str| if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") };
            return Err(Error::option(format!(
                "the text has {} for {}: give one mark for each picture, or leave out all marks",
                counted(marks, "<image> mark"),
                counted(pictures, "picture")
            )));
        }
        _ => {}
    }
    Ok(questions)
}

fn messages(turns: &[Turn<'_>]) -> Vec<Message> {
    let both = turns.iter().flat_map(|turn| [Some(Message::user(turn.question)), turn.answer.map(Message::assistant)]);
    both.flatten().collect()
}

/// Messages with contents as lists, for templates that place pictures themselves.
fn pieces(turns: &[Turn<'_>]) -> Value {
    let text = |text: &str| json!({ "type": "text", "text": text });
    let mut messages = Vec::new();
    for Turn { question, answer } in turns {
        let mut content = Vec::new();
        for (i, words) in question.split(MARK).enumerate() {
            if i > 0 {
                content.push(json!({ "type": "image" }));
            }
            // The line end behind a mark is the template's to write.
            let words = if i > 0 { words.strip_prefix('\n').unwrap_or(words) } else { words };
            if !words.is_empty() {
                content.push(text(words));
            }
        }
        messages.push(json!({ "role": "user", "content": content }));
        if let Some(answer) = answer {
            messages.push(json!({ "role": "assistant", "content": [text(answer)] }));
        }
    }
    Value::Array(messages)
}

impl Prompting {
    /// Ids of a prompt with `mark` for each picture.
    pub fn ids(&self, prompt: &str, mark: u32, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        match self {
            // The prompt holds the token itself.
            Self::Turns(_) | Self::Chat(_, Some(_)) => encoded(prompt, tokenizer),
            _ => ids(prompt, mark, tokenizer),
        }
    }
}

/// Ids of a prompt by the tokenizer alone.
fn encoded(prompt: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    // A template may have written what begins a text already.
    let begins = tokenizer.bos().is_some_and(|bos| !bos.is_empty() && prompt.starts_with(bos));
    if begins { tokenizer.encode_rendered(prompt) } else { tokenizer.encode(prompt) }
}

/// Ids of a prompt with `mark` for each picture. Where the tokenizer knows the mark, by the tokenizer alone; else the text
/// between marks piece by piece, and what begins a text stays at the first only (`tokenizer_image_token` of the references).
pub(super) fn ids(prompt: &str, mark: u32, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    if tokenizer.id(MARK) == Some(mark) {
        return encoded(prompt, tokenizer);
    }
    let bos = tokenizer.bos().and_then(|bos| tokenizer.id(bos));
    let mut all = Vec::new();
    for (i, piece) in prompt.split(MARK).enumerate() {
        let ids = tokenizer.encode(piece)?;
        if i > 0 {
            all.push(mark);
        }
        let doubled = i > 0 && bos.is_some() && ids.first().copied() == bos;
        all.extend(ids.into_iter().skip(usize::from(doubled)));
    }
    Ok(all)
}
