//! Clips of sound and what is asked about them.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moesaic_encoders::audio::{AudioOptions, Downmix, read_audio};
use serde::Deserialize;

use super::super::data::text::Tokenise;
use super::super::speech::clips::{FRAME, frames_of_sound};
use crate::usam::{Prompt, UsamConfig, Vocabulary};

/// Bytes of a line at most.
const LONGEST_LINE: u64 = 1 << 20;
/// Clips of a file at most.
const MOST: usize = 10_000_000;

/// What is wrong with clips and questions, and where.
#[derive(Debug)]
#[non_exhaustive]
pub enum ManifestError {
    /// A file cannot be read.
    Read {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file has no line.
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// A line is not JSON, or says something impossible: a question without an answer, say.
    Line {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A sound cannot be read.
    Sound {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// There is no such clip.
    Clip {
        /// Its number.
        index: usize,
        /// How many there are.
        clips: usize,
    },
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { file, source } => write!(f, "{}: cannot be read: {source}", file.display()),
            Self::Empty { file } => write!(
                f,
                "{}: there is no question in it; give JSON lines with audio, task, question and answer",
                file.display()
            ),
            Self::Line { file, line, problem } => write!(f, "{}, line {line}: {problem}", file.display()),
            Self::Sound { file, problem } => write!(f, "{}: {problem}", file.display()),
            Self::Clip { index, clips } => write!(f, "clip {index} of {clips}"),
        }
    }
}

impl std::error::Error for ManifestError {}

impl From<ManifestError> for candle_core::Error {
    fn from(error: ManifestError) -> Self {
        Self::wrap(error)
    }
}

/// A question about a clip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What kind of question it is.
    pub task: Arc<str>,
    /// The part of the data that the clip is from, such as `unseen`; may be empty.
    pub group: Arc<str>,
    /// The question around the sound.
    pub prompt: Prompt,
    /// Ids of the answer, without first and last token.
    pub text: Vec<u32>,
}

/// A line. Other keys are passed over.
#[derive(Deserialize)]
struct Line {
    audio: String,
    task: String,
    question: String,
    answer: String,
    #[serde(default)]
    group: String,
}

struct Entry {
    audio: PathBuf,
    questions: Vec<Question>,
}

/// A file of JSON lines, each a question about a clip:
///
/// ```json
/// {"audio": "audio/train/00001.flac", "task": "count", "question": "How many beeps are there?", "answer": "three", "group": "seen"}
/// ```
///
/// Lines about one clip belong together wherever they stand. `group` may be left out. Paths are relative to the file. A question may
/// hold the mark `<AcousticTokens>` where the sound is to stand ([`Vocabulary::prompt`]).
pub struct Manifest {
    entries: Vec<Entry>,
    lengths: Vec<usize>,
    fingerprint: u64,
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manifest").field("clips", &self.entries.len()).finish_non_exhaustive()
    }
}

impl Manifest {
    /// Reads the file, and of the sounds their lengths.
    ///
    /// # Errors
    /// The file cannot be read, a line of it is broken, or a clip is longer than the model hears at once: the message names file and
    /// line.
    pub fn load(
        path: &Path,
        config: &UsamConfig,
        vocabulary: &Vocabulary,
        tokenise: &Tokenise<'_>,
    ) -> Result<Self, ManifestError> {
        let read = |source| ManifestError::Read { file: path.to_path_buf(), source };
        let mut reader = BufReader::new(File::open(path).map_err(read)?);
        let folder = path.parent().unwrap_or(Path::new(""));
        let (mut entries, mut lengths) = (Vec::<Entry>::new(), Vec::new());
        let (mut places, mut names) = (HashMap::<String, usize>::new(), HashMap::<String, Arc<str>>::new());
        let mut fingerprint = 0xcbf2_9ce4_8422_2325_u64;
        let (mut text, mut number) = (Vec::new(), 0);
        loop {
            text.clear();
            if reader.by_ref().take(LONGEST_LINE + 1).read_until(b'\n', &mut text).map_err(read)? == 0 {
                break;
            }
            number += 1;
            let wrong = |problem: String| ManifestError::Line { file: path.to_path_buf(), line: number, problem };
            if text.len() as u64 > LONGEST_LINE {
                return Err(wrong(format!("has more than {LONGEST_LINE} bytes")));
            }
            // FNV-1a: the same on every platform.
            let step = |hash: u64, b: &u8| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
            fingerprint = text.iter().fold(fingerprint, step);
            if text.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let line: Line = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
            let mut name = |text: String| names.entry(text).or_insert_with_key(|text| Arc::from(text.as_str())).clone();
            let ids = |text: &str| -> candle_core::Result<Vec<u32>> {
                let ids = tokenise(text)?;
                let known = config.llm.vocab_size;
                match ids.iter().find(|id| **id as usize >= known) {
                    None => Ok(ids),
                    Some(id) => {
                        candle_core::bail!(
                            "the tokenizer gives an id of {id}, the model has {known} tokens: is it this model's own?"
                        )
                    }
                }
            };
            let question = Question {
                task: name(line.task),
                group: name(line.group),
                prompt: vocabulary.prompt(&line.question, ids).map_err(|e| wrong(e.to_string()))?,
                text: vocabulary.bare(ids(&line.answer).map_err(|e| wrong(e.to_string()))?),
            };
            if question.text.is_empty() {
                return Err(wrong("the answer is empty".into()));
            }
            if line.question.trim().is_empty() {
                return Err(wrong("the question is empty".into()));
            }
            if let Some(entry) = places.get(&line.audio).and_then(|place| entries.get_mut(*place)) {
                entry.questions.push(question);
                continue;
            }
            if entries.len() >= MOST {
                return Err(wrong(format!("there are more than {MOST} clips")));
            }
            let audio = folder.join(&line.audio);
            let frames = frames_of_sound(&audio).map_err(|e| wrong(e.to_string()))?;
            if frames == 0 {
                return Err(wrong(format!("{}: the clip is empty", audio.display())));
            }
            let most = config.window();
            if frames.saturating_sub(1).saturating_mul(FRAME) >= most {
                return Err(wrong(format!(
                    "{}: lasts {:.1} s, the model hears {:.1} s at once: cut it or leave it out",
                    audio.display(),
                    frames as f64 / 25.0,
                    most as f64 / 16_000.0
                )));
            }
            places.insert(line.audio, entries.len());
            lengths.push(frames);
            entries.push(Entry { audio, questions: vec![question] });
        }
        if entries.is_empty() {
            return Err(ManifestError::Empty { file: path.to_path_buf() });
        }
        Ok(Self { entries, lengths, fingerprint })
    }

    /// Clips.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no clip; there is always one.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Lengths of all clips, in frames of 40 ms.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Differs between files whose lines differ.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn entry(&self, index: usize) -> Result<&Entry, ManifestError> {
        self.entries.get(index).ok_or(ManifestError::Clip { index, clips: self.entries.len() })
    }

    /// What is asked about a clip.
    ///
    /// # Errors
    /// There is no such clip.
    pub fn questions(&self, index: usize) -> Result<&[Question], ManifestError> {
        Ok(&self.entry(index)?.questions)
    }

    /// Kinds of questions, in order.
    pub fn tasks(&self) -> BTreeSet<&str> {
        self.entries.iter().flat_map(|entry| &entry.questions).map(|question| &*question.task).collect()
    }

    /// The sound of a clip at 16 kHz, of several channels the first, as [`Usam`](crate::usam::Usam) takes it.
    ///
    /// # Errors
    /// There is no such clip, or its file cannot be read: the message names it.
    pub fn sound(&self, index: usize) -> Result<Vec<f32>, ManifestError> {
        let file = &self.entry(index)?.audio;
        let wrong = |problem: String| ManifestError::Sound { file: file.clone(), problem };
        let options = AudioOptions { downmix: Downmix::First, ..AudioOptions::default() };
        let sound = read_audio(file, options).map_err(|e| wrong(e.to_string()))?;
        if sound.is_empty() {
            return Err(wrong("there is no sound in it".into()));
        }
        Ok(sound)
    }
}
