//! Every parser of the workspace as one function of bytes. The mutation tests and the fuzz targets share this list;
//! `fuzz/README.md` says how to add to it.
//!
//! Whatever the bytes, a parser returns; it never panics, holds no more memory at once than its [`Bound`], and what it
//! refuses it refuses with one short line.

#![allow(dead_code)] // each user takes its part

mod checkpoints;
mod memory;
mod pictures;
mod series;
mod settings;
mod videos;

pub use memory::{Counting, Memory, measure};

/// A parser and what is promised about it.
pub struct Parser {
    /// The name of its mutation test, its fuzz target and the folder of its seeds.
    pub name: &'static str,
    /// Sound inputs, that mutations and fuzzing start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Parses, and uses what it made as its owner would. The error is the message that a user would see.
    pub parse: fn(&[u8]) -> Result<(), String>,
    /// The most memory that it may hold.
    pub bound: Bound,
    /// Where in its input the text stands that mutations should aim at.
    pub layout: Layout,
}

/// The most bytes that parsing `n` bytes may hold at once, a copy of the input and the result included: `base + per_byte * n`.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    pub base: usize,
    pub per_byte: usize,
}

impl Bound {
    pub fn of(self, bytes: usize) -> usize {
        self.base.saturating_add(self.per_byte.saturating_mul(bytes))
    }
}

/// How the input is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Text, or numbers of no fixed place, from the first byte to the last.
    Plain,
    /// Eight bytes that hold the length of the text that follows, and then data.
    Framed,
    /// The chunks of a PNG file, each with its length in front and its sum behind.
    Chunks,
}

/// Names every parser once, for `$then`: each is a function of this module. One that a feature brings has its `#[cfg]` in front,
/// and the package in `fuzz/` a feature of that name.
macro_rules! each_parser {
    ($then:ident) => {
        $then! {
            safetensors safetensors_index gguf pickle config model plan train_config table times moments train_csv
            png jpeg gif bmp webp tiff video_gif video_webp #[cfg(feature = "h264")] mp4
        }
    };
}
#[allow(unused_imports)] // fuzz targets name parsers one by one
pub(crate) use each_parser;

pub use checkpoints::{config, gguf, model, pickle, safetensors, safetensors_index};
pub use pictures::{bmp, gif, jpeg, png, tiff, webp};
pub use series::{moments, table, times, train_csv};
pub use settings::{plan, train_config};
#[cfg(feature = "h264")]
pub use videos::mp4;
pub use videos::{video_gif, video_webp};

macro_rules! list {
    ($($(#[$when:meta])* $name:ident)*) => {
        /// All of them.
        pub fn all() -> Vec<Parser> {
            Vec::from([$($(#[$when])* $name()),*])
        }
    };
}
each_parser!(list);

/// The longest message, in bytes: what a terminal shows on a few lines.
const LONGEST_MESSAGE: usize = 2000;

/// Whether one input was accepted, and the memory that it took.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub accepted: bool,
    pub memory: Memory,
}

impl Parser {
    /// Parses `input` and holds the parser to its promises.
    ///
    /// # Panics
    /// Where it breaks one; the message has what is needed to see it again.
    pub fn check(&self, input: &[u8]) -> Outcome {
        let (result, memory) = measure(self.name, || (self.parse)(input));
        let most = self.bound.of(input.len());
        assert!(
            memory.held <= most,
            "{}: {} bytes held, the largest piece {}, for an input of {} ({most} allowed): {}",
            self.name,
            memory.held,
            memory.largest,
            input.len(),
            shown(input)
        );
        if let Err(message) = &result {
            let clean = !message.is_empty() && !message.chars().any(char::is_control);
            assert!(
                clean && message.len() <= LONGEST_MESSAGE,
                "{}: a message is one line of at most {LONGEST_MESSAGE} bytes, not {message:?}, for {}",
                self.name,
                shown(input)
            );
        }
        Outcome { accepted: result.is_ok(), memory }
    }
}

/// The start of an input, as a Rust byte string.
fn shown(input: &[u8]) -> String {
    const MOST: usize = 2000;
    let more = if input.len() > MOST { ", the rest left out" } else { "" };
    format!("b\"{}\" ({} bytes{more})", input[..input.len().min(MOST)].escape_ascii(), input.len())
}
