//! One entry of a file of conversations, and the rows that it makes.

use serde::Deserialize;

use super::{CorpusError, MARK, Place, Turn};

/// An entry of either layout. Other keys are passed over.
#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    #[serde(default, alias = "images")]
    image: Option<Images>,
    #[serde(default)]
    source: Option<String>,
    #[serde(default)]
    turns: Option<Vec<Asked>>,
    #[serde(default)]
    conversations: Option<Vec<Said>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Images {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct Asked {
    question: String,
    answer: String,
    #[serde(default, rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct Said {
    from: String,
    value: String,
}

/// What an entry makes: turns and their kind, and where all of it is from.
pub(super) struct Rows {
    pub rows: Vec<(Vec<Turn>, String)>,
    pub source: String,
}

impl Entry {
    /// Names of its pictures.
    pub fn images(&self) -> Vec<String> {
        match &self.image {
            None => Vec::new(),
            Some(Images::One(name)) => vec![name.clone()],
            Some(Images::Several(names)) => names.clone(),
        }
    }

    /// Rows that it makes at most.
    pub fn questions(&self) -> usize {
        self.turns.as_ref().map_or(1, Vec::len)
    }

    /// Its rows, with one mark for each picture.
    pub fn rows(self, at: &dyn Fn() -> Place) -> Result<Rows, CorpusError> {
        let pictures = self.images();
        if pictures.iter().any(String::is_empty) {
            return Err(CorpusError::Entry { at: at(), problem: "the name of an image is empty: leave it out".into() });
        }
        let pictures = pictures.len();
        let source = self.source.unwrap_or_default();
        let rows = match (self.turns, self.conversations) {
            (Some(turns), None) => {
                turns.into_iter().map(|asked| single(asked, pictures, at)).collect::<Result<_, _>>()?
            }
            (None, Some(said)) => vec![(conversation(said, pictures, at)?, String::new())],
            (Some(_), Some(_)) => return Err(wrong(at, "it has both \"turns\" and \"conversations\": leave one out")),
            (None, None) => return Err(wrong(at, "it has neither \"turns\" nor \"conversations\"")),
        };
        Ok(Rows { rows, source })
    }
}

fn wrong(at: &dyn Fn() -> Place, problem: impl Into<String>) -> CorpusError {
    CorpusError::Entry { at: at(), problem: problem.into() }
}

fn marks(text: &str) -> usize {
    text.matches(MARK).count()
}

fn checked(turn: Turn, at: &dyn Fn() -> Place) -> Result<Turn, CorpusError> {
    if turn.question.trim().is_empty() {
        return Err(wrong(at, "a question is empty: write one"));
    }
    if turn.answer.trim().is_empty() {
        return Err(wrong(at, "an answer is empty: write one, or leave the question out"));
    }
    if turn.answer.contains(MARK) {
        return Err(wrong(at, format!("an answer has a {MARK} mark: pictures belong to questions")));
    }
    Ok(turn)
}

/// A question that stands alone.
fn single(asked: Asked, pictures: usize, at: &dyn Fn() -> Place) -> Result<(Vec<Turn>, String), CorpusError> {
    let Asked { mut question, answer, kind } = asked;
    if question.trim().is_empty() {
        return Err(wrong(at, "a question is empty: write one"));
    }
    match marks(&question) {
        0 if pictures > 0 => question = format!("{}\n{question}", MARK.repeat(pictures)),
        marks if marks != pictures => return Err(CorpusError::Marks { at: at(), marks, pictures }),
        _ => {}
    }
    Ok((vec![checked(Turn { question, answer }, at)?], kind))
}

/// A conversation in LLaVA's layout: questions and answers in turn. What stands before the first question is left out, as
/// the reference does.
fn conversation(said: Vec<Said>, pictures: usize, at: &dyn Fn() -> Place) -> Result<Vec<Turn>, CorpusError> {
    let (mut turns, mut question) = (Vec::new(), None);
    let mut found = 0;
    for (i, Said { from, value }) in said.into_iter().enumerate() {
        match (from.as_str(), question.take()) {
            ("human" | "user", None) => {
                found += marks(&value);
                question = Some(fronted(value));
            }
            ("gpt" | "assistant" | "chatgpt", Some(question)) => {
                turns.push(checked(Turn { question, answer: value }, at)?);
            }
            ("gpt" | "assistant" | "chatgpt" | "system", None) if turns.is_empty() && i == 0 => {}
            ("human" | "user" | "gpt" | "assistant" | "chatgpt", _) => {
                return Err(wrong(at, "question and answer do not take turns"));
            }
            (other, _) => {
                let other = moesaic_kernels::shown(other);
                return Err(wrong(at, format!("something is said by {other}, expected human or gpt")));
            }
        }
    }
    if question.is_some() {
        return Err(wrong(at, "the last question has no answer"));
    }
    if turns.is_empty() {
        return Err(wrong(at, "there is no question in it"));
    }
    if found != pictures {
        return Err(CorpusError::Marks { at: at(), marks: found, pictures });
    }
    Ok(turns)
}

/// The text with a single mark at its front, on a line of its own
/// ([`preprocess_multimodal`](https://github.com/haotian-liu/LLaVA/blob/v1.2.0/llava/train/train.py)); several stay where
/// they are.
fn fronted(value: String) -> String {
    if marks(&value) != 1 {
        return value;
    }
    let rest = value.replace(MARK, "");
    format!("{MARK}\n{}", rest.trim()).trim().to_string()
}
