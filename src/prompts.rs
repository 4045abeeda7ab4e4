//! Conversation templates of models that were published with code instead of a chat template: MoE-LLaVA, LLaVA, CuMo.
//!
//! The texts are those of `moellava/conversation.py` (PKU-YuanGroup/MoE-LLaVA at 6cb5f66); the examples that its template
//! `v0` opens with are left out; `mistral_instruct_system` is of `cumo/conversation.py` (SHI-Labs/CuMo at 6cd979a), `mistral_instruct`
//! of `llava/conversation.py` (haotian-liu/LLaVA, for LLaVA-1.6). A picture stands as `<image>` in a question.

mod rows;

pub use rows::{MARK, labelled, marked_ids};

use crate::{Error, Result};

/// A question and its answer; the answer is absent in the open turn at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn<'a> {
    /// What the user says.
    pub question: &'a str,
    /// What the assistant said.
    pub answer: Option<&'a str>,
}

/// How turns are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// `{role}: {text}`, then the separators in turn: the first behind questions, the second behind answers.
    Named,
    /// `{role}{text}{separator}`; the roles bring their own marks.
    Marked,
    /// `[INST] .. [/INST]` around questions, the system's text in the first.
    Instruct,
    /// Texts alone.
    Plain,
}

/// A conversation template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    style: Style,
    system: &'static str,
    user: &'static str,
    assistant: &'static str,
    /// In front of all.
    opening: &'static str,
    /// Behind the system's text and questions.
    first: &'static str,
    /// Behind answers.
    second: &'static str,
    stop: &'static str,
}

const TO_USER: &str = "A chat between a curious user and an artificial intelligence assistant. \
    The assistant gives helpful, detailed, and polite answers to the user's questions.";
const TO_HUMAN: &str = "A chat between a curious human and an artificial intelligence assistant. \
    The assistant gives helpful, detailed, and polite answers to the human's questions.";
const TAGGED: &str = "A chat between a curious user and an artificial intelligence assistant. The assistant is able to \
    understand the visual content that the user provides, and assist the user with a variety of tasks using natural \
    language.The visual content will be provided with the following format: <Image>visual content</Image>.";
const VISUAL: &str = "You are a helpful language and vision assistant. You are able to understand the visual content that \
    the user provides, and assist the user with a variety of tasks using natural language.";
const LLAMA_2: &str = "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while \
    being safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal \
    content. Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not \
    make any sense, or is not factually coherent, explain why instead of answering something not correct. If you don't \
    know the answer to a question, please don't share false information.";
const MPT: &str = "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. The assistant gives \
    helpful and honest answers.";

impl Template {
    /// The templates' names, some of which mean the same.
    pub const NAMES: [&'static str; 21] = [
        "default",
        "v0",
        "v1",
        "openchat",
        "mistral",
        "minicpm",
        "phi",
        "qwen",
        "stablelm",
        "vicuna_v1",
        "llama_2",
        "plain",
        "v0_plain",
        "llava_v0",
        "v0_mmtag",
        "llava_v1",
        "v1_mmtag",
        "llava_llama_2",
        "mpt",
        "mistral_instruct_system",
        "mistral_instruct",
    ];

    /// The template that the reference calls so.
    pub fn named(name: &str) -> Option<Self> {
        let named = |system, stop| Self {
            style: Style::Named,
            system,
            user: "USER",
            assistant: "ASSISTANT",
            opening: "",
            first: " ",
            second: stop,
            stop,
        };
        let hashes = |system| Self { user: "Human", assistant: "Assistant", first: "###", ..named(system, "###") };
        let instruct = |system| Self { style: Style::Instruct, first: "<s>", second: "</s>", ..named(system, "<s>") };
        Some(match name {
            "default" | "v0" | "llava_v0" => hashes(TO_HUMAN),
            "v0_mmtag" => hashes(TAGGED),
            "v1" | "vicuna_v1" | "mistral" | "minicpm" => named(TO_USER, "</s>"),
            "openchat" => named(TO_USER, "<|end_of_turn|>"),
            "phi" | "qwen" | "stablelm" => named(TO_USER, "<|endoftext|>"),
            "llava_v1" => named(TO_HUMAN, "</s>"),
            "v1_mmtag" => named(TAGGED, "</s>"),
            "llama_2" => instruct(LLAMA_2),
            "llava_llama_2" => instruct(VISUAL),
            // Its tokenizer puts one more mark in front of the one that stands here.
            "mistral_instruct_system" => Self { opening: "<s>", first: "", stop: "</s>", ..instruct(TO_USER) },
            "mistral_instruct" => Self { first: "", stop: "</s>", ..instruct("") },
            "mpt" => Self {
                style: Style::Marked,
                user: "<|im_start|>user\n",
                assistant: "<|im_start|>assistant\n",
                first: "<|im_end|>",
                ..named(MPT, "<|im_end|>")
            },
            "plain" | "v0_plain" => {
                Self { style: Style::Plain, user: "", assistant: "", first: "\n", ..named("", "\n") }
            }
            _ => return None,
        })
    }

    /// The text at which an answer ends.
    pub fn stop(&self) -> &'static str {
        self.stop
    }

    /// The prompt of a conversation. Only the last turn may lack its answer: that one is asked for.
    ///
    /// # Errors
    /// There is no turn, a turn before the last lacks its answer, or a question is empty.
    pub fn prompt(&self, turns: &[Turn<'_>]) -> Result<String> {
        let Some((_, before)) = turns.split_last() else {
            return Err(Error::option("a conversation needs a question"));
        };
        if turns.iter().any(|t| t.question.is_empty()) {
            return Err(Error::option("a question is empty: ask something"));
        }
        if before.iter().any(|t| t.answer.is_none_or(str::is_empty)) {
            return Err(Error::option("only the last question of a conversation may lack its answer"));
        }
        let mut text = match self.style {
            Style::Instruct => String::new(),
            Style::Plain => self.system.to_string(),
            Style::Named | Style::Marked => format!("{}{}", self.system, self.first),
        };
        for (i, turn) in turns.iter().enumerate() {
            let Turn { question, answer } = turn;
            let answer = answer.filter(|a| !a.is_empty());
            let (user, assistant, first, second) = (self.user, self.assistant, self.first, self.second);
            text += &match self.style {
                Style::Named => format!("{user}: {question}{first}"),
                Style::Marked => format!("{user}{question}{first}"),
                Style::Plain => format!("{question}{first}"),
                Style::Instruct => {
                    let system = match (i, self.system) {
                        (0, system) if !system.is_empty() => format!("<<SYS>>\n{system}\n<</SYS>>\n\n"),
                        _ => String::new(),
                    };
                    // The tokenizer puts the first mark itself, or one more.
                    let mark = if i == 0 { self.opening } else { first };
                    format!("{mark}[INST] {system}{question} [/INST]")
                }
            };
            text += &match (self.style, answer) {
                (Style::Named, Some(answer)) => format!("{assistant}: {answer}{second}"),
                (Style::Named, None) => format!("{assistant}:"),
                (Style::Marked, Some(answer)) => format!("{assistant}{answer}{second}"),
                (Style::Marked, None) => assistant.to_string(),
                (Style::Instruct, Some(answer)) => format!(" {answer} {second}"),
                (Style::Plain, Some(answer)) => format!("{answer}{second}"),
                (Style::Instruct | Style::Plain, None) => String::new(),
            };
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_template_and_mistakes_are_errors() {
        assert!(Template::NAMES.iter().all(|name| Template::named(name).is_some()));
        assert!(Template::named("v2").is_none());
        let phi = Template::named("phi").unwrap();
        let turn = |question, answer| Turn { question, answer };
        for turns in [vec![], vec![turn("", None)], vec![turn("a", None), turn("b", None)]] {
            assert!(phi.prompt(&turns).is_err(), "{turns:?}");
        }
        let plain = Template::named("plain").unwrap();
        let cumo = Template::named("mistral_instruct_system").unwrap();
        let prompt = cumo.prompt(&[turn("a", Some("b")), turn("c", None)]).unwrap();
        assert!(
            prompt.starts_with("<s>[INST] <<SYS>>\nA chat") && prompt.ends_with("a [/INST] b </s>[INST] c [/INST]")
        );
        let mistral = Template::named("mistral_instruct").unwrap();
        let prompt = mistral.prompt(&[turn("a", Some("b")), turn("c", None)]).unwrap();
        assert_eq!(prompt, "[INST] a [/INST] b </s>[INST] c [/INST]");
        assert_eq!(plain.prompt(&[turn("<image>a cat", None)]).unwrap(), "<image>a cat\n");
    }
}
