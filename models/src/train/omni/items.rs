//! Questions about pictures, sounds and series.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use moesaic_encoders::audio::{AudioOptions, Downmix, read_audio};
use serde::Deserialize;

use super::super::at;
use super::super::data::text::Tokenise;
use crate::omni::{Answer, Config, Part, Senses, Turn};

/// Bytes of a line at most.
const LONGEST_LINE: u64 = 1 << 20;
/// Lines of a file at most.
const MOST: usize = 10_000_000;

/// What answers a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Ids of words.
    Words(Vec<u32>),
    /// Values that follow the series.
    Values(Vec<f32>),
}

/// A question about what is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// What kind of question it is.
    pub task: Arc<str>,
    /// The part of the data that it is from; may be empty.
    pub group: Arc<str>,
    /// Ids of the question.
    pub text: Vec<u32>,
    /// Its answer.
    pub answer: Said,
}

/// A picture, a sound, a series, several or none of them, and questions about that.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The picture.
    pub image: Option<PathBuf>,
    /// The sound.
    pub audio: Option<PathBuf>,
    /// The series; empty where there is none.
    pub series: Vec<f32>,
    /// At least one.
    pub questions: Vec<Question>,
}

#[derive(Deserialize)]
struct Asked {
    question: String,
    answer: Option<String>,
    forecast: Option<Vec<Option<f32>>>,
    #[serde(default, alias = "type")]
    task: String,
}

/// A line. Other keys are passed over.
#[derive(Deserialize)]
struct Line {
    image: Option<String>,
    audio: Option<String>,
    series: Option<Vec<Option<f32>>>,
    #[serde(default, alias = "source")]
    group: String,
    #[serde(default)]
    turns: Vec<Asked>,
    question: Option<String>,
    answer: Option<String>,
    forecast: Option<Vec<Option<f32>>>,
    #[serde(default)]
    task: String,
}

/// A file of JSON lines, each about a picture, a sound, a series, or several of them, with one question or several `turns`:
///
/// ```json
/// {"image": "00000.png", "turns": [{"question": "How many circles are there?", "answer": "2"}]}
/// {"audio": "00001.flac", "question": "Is anyone speaking?", "answer": "yes", "task": "speaking"}
/// {"series": [1.0, 2.5, null, 2.0], "question": "Forecast it.", "forecast": [2.5, 3.0]}
/// ```
///
/// An answer is text, or a `forecast` of the values that follow. Missing values are null. Paths are relative to the file. Lines that
/// follow each other and are about the same are one item. The files of `tools/vqa_corpus.py`, `tools/sound_corpus.py` and
/// `tools/series_corpus.py` are of this form.
#[derive(Debug)]
pub struct Items {
    all: Vec<Item>,
    fingerprint: u64,
}

fn numbers(values: Vec<Option<f32>>) -> Vec<f32> {
    values.into_iter().map(|value| value.unwrap_or(f32::NAN)).collect()
}

impl Item {
    /// Whether it is about the same as another. Series may have missing values, which are not equal to each other.
    fn shows_the_same(&self, other: &Self) -> bool {
        let bits = |series: &[f32]| series.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        (&self.image, &self.audio) == (&other.image, &other.audio)
            && (self.image.is_some() || self.audio.is_some() || !self.series.is_empty())
            && bits(&self.series) == bits(&other.series)
    }
}

impl Items {
    /// Reads the file; pictures and sounds are read when they are asked for.
    ///
    /// # Errors
    /// The file cannot be read, or a line of it is broken or asks for what the model does not take: the message names file and line. What is
    /// wrong with a picture or a sound shows when it is read.
    pub fn load(path: &Path, config: &Config, tokenise: &Tokenise<'_>) -> Result<Self> {
        let mut reader = BufReader::new(File::open(path).map_err(|e| at(path, e))?);
        let folder = path.parent().unwrap_or(Path::new(""));
        let (mut all, mut fingerprint) = (Vec::<Item>::new(), 0xcbf2_9ce4_8422_2325_u64);
        let (mut text, mut number) = (Vec::new(), 0usize);
        loop {
            text.clear();
            if reader.by_ref().take(LONGEST_LINE + 1).read_until(b'\n', &mut text).map_err(|e| at(path, e))? == 0 {
                break;
            }
            number += 1;
            let wrong = |problem: &dyn std::fmt::Display| at(path, format!("line {number}: {problem}"));
            if text.len() as u64 > LONGEST_LINE || number > MOST {
                return Err(wrong(&format!("a line of more than {LONGEST_LINE} bytes, or more than {MOST} lines")));
            }
            // FNV-1a: the same on every platform.
            let step = |hash: u64, b: &u8| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
            fingerprint = text.iter().fold(fingerprint, step);
            if text.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let line: Line = serde_json::from_slice(&text).map_err(|e| wrong(&e))?;
            let item = item(line, folder, config, tokenise).map_err(|e| wrong(&e))?;
            match all.last_mut() {
                Some(last) if item.shows_the_same(last) => last.questions.extend(item.questions),
                _ => all.push(item),
            }
        }
        if all.is_empty() {
            return Err(at(path, "there is no question in it"));
        }
        Ok(Self { all, fingerprint })
    }

    /// Lets a question of a task count as several when one is drawn.
    ///
    /// # Errors
    /// There is no question of one of the tasks.
    pub fn repeat(&mut self, times: &BTreeMap<String, usize>) -> Result<()> {
        let known =
            |task: &str| self.all.iter().flat_map(|item| &item.questions).any(|question| *question.task == *task);
        if let Some(task) = times.keys().find(|task| !known(task)) {
            bail!("there is no question of the task {task:?}");
        }
        if times.is_empty() {
            return Ok(());
        }
        for item in &mut self.all {
            let questions = std::mem::take(&mut item.questions).into_iter();
            let count = |question: &Question| times.get(&*question.task).copied().unwrap_or(1);
            item.questions = questions.flat_map(|q| std::iter::repeat_n(q.clone(), count(&q))).collect();
        }
        Ok(())
    }

    /// Items.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is no item; there is always one.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Differs between files whose lines differ.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// An item.
    ///
    /// # Errors
    /// There is no such item.
    pub fn get(&self, index: usize) -> Result<&Item> {
        match self.all.get(index) {
            Some(item) => Ok(item),
            None => bail!("item {index} of {}", self.all.len()),
        }
    }
}

fn item(line: Line, folder: &Path, config: &Config, tokenise: &Tokenise<'_>) -> Result<Item> {
    let mut turns = line.turns;
    if let Some(question) = line.question {
        turns.push(Asked { question, answer: line.answer, forecast: line.forecast, task: line.task });
    }
    for (what, shown, takes) in [
        ("picture", line.image.is_some(), config.image.is_some()),
        ("sound", line.audio.is_some(), config.audio.is_some()),
        ("series", line.series.is_some(), config.series.is_some()),
    ] {
        if shown && !takes {
            bail!("there is a {what}, which the model does not take");
        }
    }
    let shown = line.series.is_some();
    let series = numbers(line.series.unwrap_or_default());
    let read = config.series.as_ref().map_or(&series[..], |config| config.newest(&series));
    if shown && (!read.iter().any(|v| v.is_finite()) || read.iter().any(|v| v.is_infinite())) {
        bail!("a series of {} values, expected at least one number and none that is infinite", series.len());
    }
    let ids = |text: &str| -> Result<Vec<u32>> {
        let ids = tokenise(text)?;
        match ids.iter().find(|id| **id as usize >= config.backbone.vocab_size) {
            None => Ok(ids),
            Some(id) => bail!("the tokenizer gives an id of {id}: is it this model's own?"),
        }
    };
    let group: Arc<str> = line.group.into();
    let question = |turn: Asked| {
        let answer = match (turn.answer, turn.forecast) {
            (Some(text), None) => Said::Words(ids(&text)?),
            (None, Some(values)) if series.is_empty() => {
                bail!("a forecast of {} values follows no series", values.len())
            }
            (None, Some(values)) => Said::Values(numbers(values)),
            _ => bail!("the question {:?} needs an answer or a forecast, one of both", turn.question),
        };
        let empty = match &answer {
            Said::Words(ids) => ids.is_empty(),
            Said::Values(values) => !values.iter().any(|v| v.is_finite()) || values.iter().any(|v| v.is_infinite()),
        };
        if empty {
            bail!("the answer to {:?} is empty, or not finite", turn.question);
        }
        let (task, text) = (turn.task.into(), ids(&turn.question)?);
        Ok(Question { task, group: group.clone(), text, answer })
    };
    let questions = turns.into_iter().map(question).collect::<Result<Vec<_>>>()?;
    if questions.is_empty() {
        bail!("there is no question");
    }
    let path = |name: String| folder.join(name);
    Ok(Item { image: line.image.map(path), audio: line.audio.map(path), series, questions })
}

/// What an item shows, ready for the model.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    image: Option<Tensor>,
    audio: Option<Tensor>,
}

impl Shown {
    /// Reads picture and sound; sound is made louder by so many decibels.
    ///
    /// # Errors
    /// A file cannot be read: the message names it.
    pub fn read(item: &Item, senses: &Senses, gain: f64) -> Result<Self> {
        let image = item.image.as_deref().map(|file| picture(file, senses)).transpose()?;
        let audio = match &item.audio {
            None => None,
            Some(file) => {
                let options = AudioOptions { downmix: Downmix::First, ..AudioOptions::default() };
                let mut samples = read_audio(file, options).map_err(|e| at(file, e))?;
                let factor = 10f64.powf(gain / 20.0) as f32;
                samples.iter_mut().for_each(|v| *v = (*v * factor).clamp(-1.0, 1.0));
                Some(senses.sound(&samples).map_err(|e| at(file, e))?)
            }
        };
        Ok(Self { image, audio })
    }

    /// What the model is shown of an item.
    pub fn parts<'a>(&'a self, item: &'a Item) -> Vec<Part<'a>> {
        let mut parts = Vec::with_capacity(4);
        parts.extend(self.image.as_ref().map(Part::Image));
        parts.extend(self.audio.as_ref().map(Part::Audio));
        if !item.series.is_empty() {
            parts.push(Part::Series(&item.series));
        }
        parts
    }
}

impl Question {
    /// The turn that asks it behind other parts.
    pub fn turn<'a>(&'a self, mut prompt: Vec<Part<'a>>) -> Turn<'a> {
        prompt.push(Part::Text(&self.text));
        let answer = match &self.answer {
            Said::Words(ids) => Answer::Text(ids),
            Said::Values(values) => Answer::Series(values),
        };
        Turn { prompt, answer }
    }
}

#[cfg(feature = "image")]
fn picture(file: &Path, senses: &Senses) -> Result<Tensor> {
    // Errors of pictures name their file.
    let picture = moesaic_encoders::image::Picture::open(file).map_err(candle_core::Error::wrap)?;
    senses.picture(&picture)
}

#[cfg(not(feature = "image"))]
fn picture(file: &Path, _: &Senses) -> Result<Tensor> {
    Err(at(file, "this build reads no pictures (feature image)"))
}
