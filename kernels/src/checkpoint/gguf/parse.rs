//! The bytes of a GGUF file up to its tensors, read with nothing trusted: every count is held against the bytes that are left
//! before memory is taken for it.
//!
//! The layout is that of ggml's
//! [specification](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), versions 2 and 3, little-endian: magic,
//! version, number of tensors, number of keys; keys with typed values; names, dimensions (innermost first), types and offsets of
//! tensors; then, aligned, their data.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::BufReader;

use candle_core::Result;

use super::kind::{self, Kind};
use super::value::{List, Metadata, Value};
use crate::checkpoint::header::MAX_HEADER;
use crate::checkpoint::source::{Reader, Source};
use crate::checkpoint::text::{refuse, shape_text, shown};

pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// Most dimensions of a tensor in ggml.
const MAX_DIMENSIONS: u32 = 4;
/// How deep lists may stand in lists. No file that is known has any.
const DEEPEST: usize = 4;
/// Longest key or tensor name, in bytes; ggml stops at 64.
const LONGEST_NAME: u64 = 1024;
const ALIGNMENT: &str = "general.alignment";
/// Largest alignment, in bytes: as ggml, whose files have 32.
const LARGEST_ALIGNMENT: u64 = 1 << 20;

/// One tensor as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub kind: Kind,
    /// Outermost axis first.
    pub shape: Vec<usize>,
    pub bytes: usize,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Which of the checkpoint's files holds it.
    pub file: usize,
}

/// What stands before the data.
#[derive(Debug)]
pub(super) struct Head {
    pub metadata: Metadata,
    pub tensors: BTreeMap<String, Stored>,
}

/// Reads and checks what stands before the data of `source`, which becomes file number `file` of its checkpoint.
pub(super) fn read(source: &Source, file: usize) -> Result<Head> {
    let label = source.label();
    let end = source.len().min(MAX_HEADER);
    let mut cursor = Cursor { source, reader: BufReader::new(source.reader(0)?), at: 0, end };
    if source.len() < 24 || cursor.take::<4>()? != MAGIC {
        refuse!("{label}: is not a GGUF file: download it again");
    }
    let version = cursor.u32()?;
    match version {
        2 | 3 => {}
        v if v & 0xffff == 0 && v != 0 => {
            refuse!("{label}: is a big-endian GGUF file: convert it with gguf-py's gguf_convert_endian.py")
        }
        1 => refuse!("{label}: is a GGUF file of version 1: convert the model anew, versions 2 and 3 are read"),
        v => refuse!(
            "{label}: is a GGUF file of version {v}, versions 2 and 3 are read: take a newer release of this program"
        ),
    }
    let (tensors, keys) = (cursor.u64()?, cursor.u64()?);
    let metadata = cursor.metadata(keys)?;
    let alignment = match metadata.whole(ALIGNMENT) {
        Ok(alignment) => alignment.unwrap_or(32),
        Err(e) => refuse!("{label}: {e}: download the file again"),
    };
    if !alignment.is_power_of_two() || alignment > LARGEST_ALIGNMENT {
        refuse!(
            "{label}: an alignment of {alignment} is not a power of two up to {LARGEST_ALIGNMENT}: download it again"
        );
    }
    let entries = cursor.tensors(tensors)?;
    let start = cursor.at.next_multiple_of(alignment);
    let tensors = place(source, entries, start, alignment, file)?;
    Ok(Head { metadata, tensors })
}

/// A tensor of the header: its offset counts from the start of the data.
struct Raw {
    name: String,
    shape: Vec<usize>,
    kind: Kind,
    offset: u64,
}

/// Holds the tensors against the file and against each other.
fn place(source: &Source, raw: Vec<Raw>, start: u64, alignment: u64, file: usize) -> Result<BTreeMap<String, Stored>> {
    let label = source.label();
    let mut tensors = BTreeMap::new();
    let mut spans: Vec<(u64, u64)> = Vec::with_capacity(raw.len());
    for Raw { name, shape, kind, offset } in raw {
        let (values, size) = kind.block();
        let width = shape.last().copied().unwrap_or(1);
        if !width.is_multiple_of(values) {
            refuse!(
                "{label}: tensor {}: rows of {width} values do not fill blocks of {values} ({}): download it again",
                shown(&name),
                kind.name()
            );
        }
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let Some(bytes) = count.and_then(|n| (n / values).checked_mul(size)) else {
            refuse!("{label}: tensor {}: shape {} is too large to exist", shown(&name), shape_text(&shape));
        };
        if !offset.is_multiple_of(alignment) {
            refuse!(
                "{label}: tensor {}: starts at {offset}, which is not a multiple of the alignment {alignment}: download \
                 the file again",
                shown(&name)
            );
        }
        let begin = start.checked_add(offset);
        let end = begin.and_then(|begin| begin.checked_add(bytes as u64));
        let (Some(begin), Some(end)) = (begin, end.filter(|&end| end <= source.len())) else {
            refuse!(
                "{label}: tensor {}: its {bytes} bytes from {offset} on reach past the end of the file ({} bytes): \
                 download it again",
                shown(&name),
                source.len()
            );
        };
        spans.push((begin, end));
        let stored = Stored { kind, shape, bytes, offset: begin, file };
        match tensors.entry(name) {
            Entry::Vacant(slot) => slot.insert(stored),
            Entry::Occupied(slot) => {
                refuse!("{label}: tensor {} stands twice in the file: download it again", shown(slot.key()))
            }
        };
    }
    spans.sort_unstable();
    for pair in spans.windows(2) {
        if let [(_, end), (begin, _)] = pair
            && begin < end
        {
            let at = tensors.iter().find(|(_, t)| t.offset == *begin).map(|(name, _)| shown(name)).unwrap_or_default();
            refuse!("{label}: tensor {at} overlaps the one before it: download the file again");
        }
    }
    Ok(tensors)
}

/// Reads forward and knows how many bytes are left.
struct Cursor<'a> {
    source: &'a Source,
    reader: BufReader<Reader<'a>>,
    at: u64,
    /// Where the header must have ended.
    end: u64,
}

impl Cursor<'_> {
    /// Checks that `count` things of at least `size` bytes each may follow.
    fn expect(&self, count: u64, size: u64, what: &str) -> Result<usize> {
        let left = self.end.saturating_sub(self.at);
        match count.checked_mul(size) {
            // At most MAX_HEADER, so it is a usize.
            Some(bytes) if bytes <= left => Ok(count as usize),
            _ => refuse!(
                "{}: says that {count} {what} follow at byte {}, where {left} bytes are left for them: download it again",
                self.source.label(),
                self.at
            ),
        }
    }

    fn fill(&mut self, dst: &mut [u8]) -> Result<()> {
        self.expect(dst.len() as u64, 1, "bytes")?;
        let mut left = dst;
        while !left.is_empty() {
            use std::io::Read;
            match self.reader.read(left) {
                Ok(0) => refuse!("{}: became shorter while it was read: download it again", self.source.label()),
                Ok(n) => {
                    self.at += n as u64;
                    left = left.get_mut(n..).unwrap_or_default();
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => refuse!("{}: cannot be read: {}", self.source.label(), crate::one_line(e)),
            }
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn text(&mut self, longest: u64, what: &str) -> Result<String> {
        let count = self.u64()?;
        let count = self.expect(count, 1, "bytes of text")?;
        if count as u64 > longest {
            refuse!("{}: {what} has {count} bytes, more than {longest}: download the file again", self.source.label());
        }
        let mut bytes = vec![0; count];
        self.fill(&mut bytes)?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(_) => refuse!("{}: {what} is not UTF-8 text: download the file again", self.source.label()),
        }
    }

    fn metadata(&mut self, keys: u64) -> Result<Metadata> {
        // A key, its type, and a value of one byte.
        let keys = self.expect(keys, 8 + 4 + 1, "keys")?;
        let mut all = BTreeMap::new();
        for _ in 0..keys {
            let key = self.text(LONGEST_NAME, "a key")?;
            let kind = self.u32()?;
            let value = self.value(kind, &key)?;
            match all.entry(key) {
                Entry::Vacant(slot) => slot.insert(value),
                Entry::Occupied(slot) => {
                    refuse!("{}: key {} stands twice: download the file again", self.source.label(), shown(slot.key()))
                }
            };
        }
        Ok(Metadata(all))
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value> {
        Ok(match kind {
            0 | 2 | 4 | 10 => Value::Unsigned(self.unsigned(kind)?),
            1 | 3 | 5 | 11 => Value::Signed(self.signed(kind)?),
            6 | 12 => Value::Float(self.float(kind)?),
            7 => Value::Bool(self.bool(key)?),
            8 => Value::Text(self.text(MAX_HEADER, &shown(key))?),
            9 => Value::List(self.list(key, 1)?),
            _ => return Err(self.no_type(kind, key)),
        })
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<List> {
        let (kind, count) = (self.u32()?, self.u64()?);
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 4 + 8,
            _ => return Err(self.no_type(kind, key)),
        };
        let count = self.expect(count, size, "list entries")?;
        Ok(match kind {
            0 | 2 | 4 | 10 => List::Unsigned(self.many(count, |c| c.unsigned(kind))?),
            1 | 3 | 5 | 11 => List::Signed(self.many(count, |c| c.signed(kind))?),
            6 | 12 => List::Float(self.many(count, |c| c.float(kind))?),
            7 => List::Bool(self.many(count, |c| c.bool(key))?),
            8 => List::Text(self.many(count, |c| c.text(MAX_HEADER, &shown(key)))?),
            _ if depth == DEEPEST => {
                refuse!("{}: {} is a list nested too deeply: download the file again", self.source.label(), shown(key))
            }
            _ => List::List(self.many(count, |c| c.list(key, depth + 1))?),
        })
    }

    fn many<T>(&mut self, count: usize, mut one: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut all = Vec::new();
        if all.try_reserve_exact(count).is_err() {
            refuse!("{}: no memory for a list of {count} entries", self.source.label());
        }
        for _ in 0..count {
            all.push(one(self)?);
        }
        Ok(all)
    }

    fn unsigned(&mut self, kind: u32) -> Result<u64> {
        Ok(match kind {
            0 => u64::from(u8::from_le_bytes(self.take()?)),
            2 => u64::from(u16::from_le_bytes(self.take()?)),
            4 => u64::from(self.u32()?),
            _ => self.u64()?,
        })
    }

    fn signed(&mut self, kind: u32) -> Result<i64> {
        Ok(match kind {
            1 => i64::from(i8::from_le_bytes(self.take()?)),
            3 => i64::from(i16::from_le_bytes(self.take()?)),
            5 => i64::from(i32::from_le_bytes(self.take()?)),
            _ => i64::from_le_bytes(self.take()?),
        })
    }

    fn float(&mut self, kind: u32) -> Result<f64> {
        Ok(match kind {
            6 => f64::from(f32::from_le_bytes(self.take()?)),
            _ => f64::from_le_bytes(self.take()?),
        })
    }

    fn bool(&mut self, key: &str) -> Result<bool> {
        match self.take::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => refuse!(
                "{}: {} is {other}, where 0 or 1 should stand: download the file again",
                self.source.label(),
                shown(key)
            ),
        }
    }

    fn no_type(&self, kind: u32, key: &str) -> candle_core::Error {
        let (label, key) = (self.source.label(), shown(key));
        crate::checkpoint::text::error(format!("{label}: {key} is of type {kind}, which GGUF lacks: download it again"))
    }

    fn tensors(&mut self, count: u64) -> Result<Vec<Raw>> {
        // A name, the number of dimensions, a type and an offset.
        let count = self.expect(count, 8 + 4 + 4 + 8, "tensors")?;
        self.many(count, |cursor| {
            let name = cursor.text(LONGEST_NAME, "the name of a tensor")?;
            let dimensions = cursor.u32()?;
            let label = cursor.source.label();
            if dimensions > MAX_DIMENSIONS {
                refuse!(
                    "{label}: tensor {} has {dimensions} dimensions, more than ggml has: download it again",
                    shown(&name)
                );
            }
            let mut shape = Vec::with_capacity(dimensions as usize);
            for _ in 0..dimensions {
                let length = cursor.u64()?;
                match usize::try_from(length) {
                    Ok(length @ 1..) => shape.push(length),
                    _ => {
                        refuse!("{label}: tensor {}: an axis of length {length}: download the file again", shown(&name))
                    }
                }
            }
            shape.reverse();
            let number = cursor.u32()?;
            let Some(kind) = Kind::of(number) else {
                refuse!(
                    "{label}: tensor {} is stored as {} (supported: {}): take a file of one of these types",
                    shown(&name),
                    kind::other(number),
                    kind::supported()
                );
            };
            Ok(Raw { name, shape, kind, offset: cursor.u64()? })
        })
    }
}
