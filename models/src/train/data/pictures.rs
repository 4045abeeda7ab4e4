//! Pictures and what is said about them: files of conversations beside a folder of pictures.
//!
//! A file is JSON lines, or one JSON array (`.json`) as LLaVA publishes its data. An entry of either has one of two layouts:
//!
//! ```json
//! {"image": "images/7.png", "source": "scenes", "turns": [{"question": "What shape is it?", "answer": "circle", "type": "shape"}]}
//! {"image": "coco/7.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]}
//! ```
//!
//! `turns` are questions about the picture that do not depend on each other: each becomes a [`Row`] of its own, and the mark
//! of each picture is put in front where the question has none. `conversations` become one row each; their pictures stand
//! where their marks are, as in LLaVA (a single mark of a turn moves to its front). `image` is one path, several in a list,
//! or absent for text alone; paths are relative to the folder of pictures.
//!
//! [`Corpus`] reads entries and draws the order of rows, [`Loader`] makes batches of pixels.

mod entry;
mod loader;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use moesaic_kernels::rng::Rng;

use entry::{Entry, Rows};
pub use loader::{Batch, BatchRow, Loader};

/// Stands in a question for a picture.
pub const MARK: &str = "<image>";

/// A question and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// What the user says, with a [`MARK`] for each picture.
    pub question: String,
    /// What the assistant says.
    pub answer: String,
}

/// What is trained on at once: a conversation about some pictures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Numbers of its pictures, in the order of their marks.
    pub pictures: Vec<u32>,
    /// One turn or more.
    pub turns: Vec<Turn>,
    /// The data set that it is from; may be empty.
    pub source: Arc<str>,
    /// What kind of question it is; may be empty.
    pub kind: Arc<str>,
}

/// Where an entry stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Line of a file of JSON lines, or number of the entry in an array, from 1.
    pub number: usize,
    /// The number is that of a line.
    pub lines: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} {}", self.file.display(), if self.lines { "line" } else { "entry" }, self.number)
    }
}

/// What is wrong with pictures and conversations, and where.
#[derive(Debug)]
#[non_exhaustive]
pub enum CorpusError {
    /// A file cannot be read.
    Read {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file has no row.
    Empty {
        /// The file, or what stands for all.
        file: PathBuf,
    },
    /// A line or file is not JSON of either layout.
    Json {
        /// Where.
        at: Place,
        /// What is wrong.
        problem: String,
    },
    /// An entry that says something impossible: a question without an answer, say.
    Entry {
        /// Where.
        at: Place,
        /// What is wrong.
        problem: String,
    },
    /// More marks than pictures, or the reverse.
    Marks {
        /// Where.
        at: Place,
        /// Marks in its text.
        marks: usize,
        /// Its pictures.
        pictures: usize,
    },
    /// A picture is missing or cannot be decoded.
    Picture {
        /// The first entry that names it.
        at: Place,
        /// What is wrong.
        problem: String,
    },
    /// No row is of a kind that was asked for.
    Kinds {
        /// Those asked for.
        wanted: Vec<String>,
        /// Those that there are.
        known: Vec<String>,
    },
    /// A picture became no pixels.
    Pixels(candle_core::Error),
}

impl fmt::Display for CorpusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { file, source } => write!(f, "{}: cannot be read: {source}", file.display()),
            Self::Empty { file } => write!(f, "{}: there is no conversation in it", file.display()),
            Self::Json { at, problem } | Self::Entry { at, problem } | Self::Picture { at, problem } => {
                write!(f, "{at}: {problem}")
            }
            Self::Marks { at, marks, pictures } => write!(
                f,
                "{at}: {marks} {MARK} marks for {pictures} pictures; give one mark for each picture, or none with \"turns\""
            ),
            Self::Kinds { wanted, known } => {
                write!(f, "no conversation is of the kind {}; there are {}", wanted.join(" or "), known.join(", "))
            }
            Self::Pixels(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CorpusError {}

impl From<candle_core::Error> for CorpusError {
    fn from(error: candle_core::Error) -> Self {
        Self::Pixels(error)
    }
}

impl From<CorpusError> for candle_core::Error {
    fn from(error: CorpusError) -> Self {
        match error {
            CorpusError::Pixels(error) => error,
            other => Self::wrap(other),
        }
    }
}

/// Conversations about pictures.
#[derive(Debug)]
pub struct Corpus {
    rows: Vec<Row>,
    /// Of each row.
    places: Vec<(u32, u32)>,
    files: Vec<(PathBuf, bool)>,
    pictures: Vec<PathBuf>,
    /// The row that names each picture first.
    named_by: Vec<u32>,
    fingerprint: u64,
    /// The order of the epoch that was last asked for.
    order: Mutex<(Shuffle, u64, Arc<[u32]>)>,
}

/// How rows are ordered: drawn anew for each epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shuffle {
    /// The seed.
    pub seed: u64,
    /// So many questions about one picture stay together at most, so that a batch has fewer pictures than rows. 1 draws rows
    /// one by one.
    pub together: usize,
}

impl Corpus {
    /// Reads files of conversations. Pictures are looked for in `folder`, or where the file is that names them.
    ///
    /// # Errors
    /// A file that cannot be read or has no conversation; an entry that is not of either layout, has no answer, other marks
    /// than pictures, or a picture that is not there. The error names file and line.
    pub fn open(files: &[PathBuf], folder: Option<&Path>) -> Result<Self, CorpusError> {
        let mut reading = Reading::default();
        for file in files {
            let unread = |source| CorpusError::Read { file: file.clone(), source };
            let folder = folder.or_else(|| file.parent()).unwrap_or(Path::new(""));
            let before = reading.rows.len();
            let open = BufReader::new(std::fs::File::open(file).map_err(unread)?);
            if file.extension().is_some_and(|e| e == "json") {
                reading.files.push((file.clone(), false));
                let entries: Vec<Entry> = serde_json::from_reader(open).map_err(|e| {
                    if e.is_io() {
                        return unread(e.into());
                    }
                    let at = Place { file: file.clone(), number: e.line(), lines: true };
                    CorpusError::Json { at, problem: format!("{}; expected an array of conversations", column(&e)) }
                })?;
                for (i, entry) in entries.into_iter().enumerate() {
                    reading.add(entry, i + 1, folder)?;
                }
            } else {
                reading.files.push((file.clone(), true));
                for (i, line) in open.lines().enumerate() {
                    let line = line.map_err(unread)?;
                    let line = line.trim_start_matches('\u{feff}').trim();
                    if line.is_empty() {
                        continue;
                    }
                    let entry = serde_json::from_str(line)
                        .map_err(|e| CorpusError::Json { at: reading.at(i + 1), problem: column(&e) })?;
                    reading.add(entry, i + 1, folder)?;
                }
            }
            if reading.rows.len() == before {
                return Err(CorpusError::Empty { file: file.clone() });
            }
        }
        if reading.rows.is_empty() {
            return Err(CorpusError::Empty { file: "data.files".into() });
        }
        Ok(reading.corpus())
    }

    /// All rows, in the order of the files.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The pictures' files.
    pub fn pictures(&self) -> &[PathBuf] {
        &self.pictures
    }

    /// Only the rows of these kinds.
    ///
    /// # Errors
    /// There are none.
    pub fn only(mut self, kinds: &[String]) -> Result<Self, CorpusError> {
        let wanted: Vec<bool> = self.rows.iter().map(|row| kinds.iter().any(|kind| **kind == *row.kind)).collect();
        // Of each row, how many before it are left.
        let (mut before, mut left) = (Vec::with_capacity(wanted.len()), 0u32);
        for &keep in &wanted {
            before.push(left);
            left += u32::from(keep);
        }
        if left == 0 {
            let known: BTreeSet<&str> = self.rows.iter().map(|row| &*row.kind).collect();
            return Err(CorpusError::Kinds {
                wanted: kinds.to_vec(),
                known: known.iter().map(|s| s.to_string()).collect(),
            });
        }
        for row in &mut self.named_by {
            *row = before.get(*row as usize).copied().unwrap_or_default();
        }
        let (mut rows, mut places) = (wanted.iter(), wanted.iter());
        self.rows.retain(|_| rows.next().is_some_and(|keep| *keep));
        self.places.retain(|_| places.next().is_some_and(|keep| *keep));
        Ok(self)
    }

    /// Where a row stands.
    pub fn place(&self, row: usize) -> Option<Place> {
        let &(file, number) = self.places.get(row)?;
        let (file, lines) = self.files.get(file as usize)?.clone();
        Some(Place { file, number: number as usize, lines })
    }

    /// A number that tells corpora apart: of all texts and the pictures' names, not of their pixels.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The numbers of `rows` rows from place `first` of a stream that goes through all rows once an epoch, each time in
    /// another order. A pure function: a run is resumed by asking for what comes next.
    pub fn stream(&self, shuffle: Shuffle, first: u64, rows: usize) -> Vec<usize> {
        let count = self.rows.len() as u64;
        let mut all = Vec::with_capacity(rows);
        for place in (first..).take(rows) {
            let order = self.order(shuffle, place / count);
            all.extend(order.get((place % count) as usize).map(|row| *row as usize));
        }
        all
    }

    fn order(&self, shuffle: Shuffle, epoch: u64) -> Arc<[u32]> {
        // A panic while the lock is held leaves an order that is still one.
        let mut kept = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        if (kept.0, kept.1) != (shuffle, epoch) || kept.2.is_empty() {
            *kept = (shuffle, epoch, self.draw(shuffle, epoch).into());
        }
        kept.2.clone()
    }

    fn draw(&self, Shuffle { seed, together }: Shuffle, epoch: u64) -> Vec<u32> {
        let mut rng = Rng::keyed(&[seed, epoch, 0x7069_6374_7572_6573]);
        let mut order: Vec<u32> = (0..self.rows.len() as u32).collect();
        shuffle(&mut order, &mut rng);
        if together <= 1 {
            return order;
        }
        // Rows of the same pictures, in the order just drawn, in groups; then the order of groups is drawn.
        let mut groups: Vec<Vec<u32>> = Vec::new();
        let mut open: HashMap<&[u32], usize> = HashMap::new();
        for row in order {
            let pictures = self.rows.get(row as usize).map_or(&[][..], |row| &row.pictures);
            let group = open.get(pictures).copied().filter(|_| !pictures.is_empty());
            match group.and_then(|at| groups.get_mut(at)).filter(|group| group.len() < together) {
                Some(group) => group.push(row),
                None => {
                    open.insert(pictures, groups.len());
                    groups.push(vec![row]);
                }
            }
        }
        shuffle(&mut groups, &mut rng);
        groups.concat()
    }
}

/// Fisher and Yates.
fn shuffle<T>(all: &mut [T], rng: &mut Rng) {
    for i in (1..all.len()).rev() {
        all.swap(i, rng.below(i + 1));
    }
}

/// A JSON error of one line of a file.
fn column(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    format!("{what} (column {})", error.column())
}

/// A corpus that is being read.
#[derive(Default)]
struct Reading {
    rows: Vec<Row>,
    places: Vec<(u32, u32)>,
    files: Vec<(PathBuf, bool)>,
    pictures: Vec<PathBuf>,
    named_by: Vec<u32>,
    known: HashMap<PathBuf, u32>,
    /// Sources and kinds, each once in memory.
    words: HashMap<String, Arc<str>>,
    hash: Hash,
}

/// FNV-1a over texts.
struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    fn add(&mut self, text: &str) {
        // A byte that no text has stands behind each.
        for byte in text.bytes().chain([0xff]) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

impl Reading {
    fn at(&self, number: usize) -> Place {
        let (file, lines) = self.files.last().cloned().unwrap_or_default();
        Place { file, number, lines }
    }

    fn word(&mut self, text: &str) -> Arc<str> {
        if let Some(word) = self.words.get(text) {
            return word.clone();
        }
        let word: Arc<str> = text.into();
        self.words.insert(text.to_string(), word.clone());
        word
    }

    /// Adds the rows of an entry.
    fn add(&mut self, entry: Entry, number: usize, folder: &Path) -> Result<(), CorpusError> {
        let at = || self.at(number);
        if self.rows.len() + entry.questions() > u32::MAX as usize || number > u32::MAX as usize {
            return Err(CorpusError::Entry {
                at: at(),
                problem: "there are too many rows for one corpus; split it".into(),
            });
        }
        let names = entry.images();
        let Rows { rows, source } = entry.rows(&at)?;
        let mut pictures = Vec::with_capacity(names.len());
        for name in names {
            self.hash.add(&name);
            let path = folder.join(&name);
            let number = match self.known.get(&path) {
                Some(&known) => known,
                None => {
                    if !path.is_file() {
                        let problem = format!("{} is not there: check the folder of pictures", path.display());
                        return Err(CorpusError::Picture { at: self.at(number), problem });
                    }
                    let next = self.pictures.len() as u32;
                    self.pictures.push(path.clone());
                    self.named_by.push(self.rows.len() as u32);
                    self.known.insert(path, next);
                    next
                }
            };
            pictures.push(number);
        }
        let source = self.word(&source);
        for (turns, kind) in rows {
            for turn in &turns {
                self.hash.add(&turn.question);
                self.hash.add(&turn.answer);
            }
            let kind = self.word(&kind);
            self.rows.push(Row { pictures: pictures.clone(), turns, source: source.clone(), kind });
            self.places.push((self.files.len().saturating_sub(1) as u32, number as u32));
        }
        Ok(())
    }

    fn corpus(self) -> Corpus {
        let none = Shuffle { seed: 0, together: 0 };
        Corpus {
            rows: self.rows,
            places: self.places,
            files: self.files,
            pictures: self.pictures,
            named_by: self.named_by,
            fingerprint: self.hash.0,
            order: Mutex::new((none, u64::MAX, Arc::from([]))),
        }
    }
}

#[cfg(test)]
mod tests;
