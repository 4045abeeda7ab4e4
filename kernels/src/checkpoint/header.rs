//! The header of one safetensors file: eight bytes of length, JSON, then the data that the JSON's offsets tile exactly.

use std::collections::BTreeMap;
use std::fmt;

use candle_core::{DType, Result};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::source::Source;
use super::text::{one_line, refuse, shape_text, shown};
use super::{Arrangement, TensorInfo};
use crate::blocks::{BlockFormat, MARK, logical_shape};

/// Longest header that is read, in bytes: the format's own bound.
pub const MAX_HEADER: u64 = 100_000_000;
/// Most axes a tensor may have. No model comes near; it keeps a header from turning two bytes into eight in memory.
pub const MAX_RANK: usize = 16;

const LENGTH_BYTES: u64 = 8;
const METADATA: &str = "__metadata__";

pub(super) struct Header {
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// Reads and checks the header of `source`, which becomes file number `file` of its checkpoint.
pub(super) fn read(source: &Source, file: usize) -> Result<Header> {
    let label = source.label();
    if source.len() < LENGTH_BYTES {
        refuse!("{label}: has {} bytes, too few for a safetensors file: download it again", source.len());
    }
    let mut reader = source.reader(0)?;
    let mut first = [0u8; LENGTH_BYTES as usize];
    source.fill(&mut reader, &mut first, "header length")?;
    let length = u64::from_le_bytes(first);
    if length > MAX_HEADER {
        if let Some(what) = other_format(first) {
            refuse!("{label}: {what}");
        }
        refuse!("{label}: says its header has {length} bytes, more than {MAX_HEADER}: this is not a safetensors file");
    }
    let data_start = LENGTH_BYTES + length;
    if data_start > source.len() {
        refuse!(
            "{label}: the file is shorter than its header says ({} bytes, the header alone ends at {data_start}): \
             download it again",
            source.len()
        );
    }
    // At most MAX_HEADER and at most the file's own length, so this cannot be more than the file.
    let mut json = vec![0u8; length as usize];
    source.fill(&mut reader, &mut json, "header")?;
    let raw: RawHeader = match serde_json::from_slice(&json) {
        Ok(raw) => raw,
        Err(e) => refuse!("{label}: the header is not what safetensors allows ({}): download it again", one_line(e)),
    };
    drop(json);
    let mut tensors = check(label, raw.tensors, data_start, source.len(), file)?;
    mark_blocks(label, &mut tensors, &raw.metadata)?;
    Ok(Header { tensors, metadata: raw.metadata })
}

/// Tensors of bytes that the metadata says are blocks.
fn mark_blocks(
    label: &str,
    tensors: &mut BTreeMap<String, TensorInfo>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    for (key, format) in metadata {
        let Some(name) = key.strip_prefix(MARK) else { continue };
        let Some(known) = BlockFormat::from_name(format) else {
            let names = BlockFormat::ALL.map(BlockFormat::name).join(", ");
            refuse!(
                "{label}: tensor {} is in blocks of the format {}, which is not known ({names} are): quantise the model again",
                shown(name),
                shown(format)
            );
        };
        let Some(info) = tensors.get_mut(name).filter(|info| info.dtype == DType::U8) else {
            refuse!(
                "{label}: {} is said to be in blocks and is no tensor of bytes: quantise the model again",
                shown(name)
            );
        };
        match logical_shape(known, &info.shape) {
            Ok(shape) => (info.shape, info.dtype, info.blocks) = (shape, DType::F32, Some(known)),
            Err(problem) => refuse!("{label}: tensor {}: {problem}: quantise the model again", shown(name)),
        }
    }
    Ok(())
}

/// The usual things that stand where weights should be, told apart by their first bytes. Asked only where those
/// bytes cannot be a length: a header of 640 bytes begins as a pickle does.
fn other_format(first: [u8; 8]) -> Option<&'static str> {
    if &first == b"version " {
        Some("is a Git LFS pointer, not the weights: run `git lfs pull`, or download the file itself")
    } else if first.starts_with(b"PK\x03\x04") || first.starts_with(b"\x80\x02") {
        Some("is a PyTorch pickle, which is not loaded because it can run code: convert it with `moesaic convert`")
    } else if first.starts_with(b"<") && first.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) {
        Some("is a web page, not weights: download the file itself")
    } else {
        None
    }
}

fn check(
    label: &str,
    raw: Vec<(String, RawTensor)>,
    data_start: u64,
    file_len: u64,
    file: usize,
) -> Result<BTreeMap<String, TensorInfo>> {
    let mut entries: Vec<(u64, u64, String, TensorInfo)> = Vec::with_capacity(raw.len());
    for (name, raw) in raw {
        let Some((dtype, size)) = dtype_of(&raw.dtype) else {
            refuse!(
                "{label}: tensor {}: dtype {} is not supported (supported: F64, F32, F16, BF16, F8_E4M3, I64, I32, I16, U32, U8, \
                 BOOL): convert the weights to one of these",
                shown(&name),
                shown(&raw.dtype)
            );
        };
        // An axis of length 0 must not hide what the others would take.
        let whole = raw.shape.iter().try_fold(size, |n: usize, &d| n.checked_mul(d.max(1)));
        let Some(bytes) = whole.map(|whole| if raw.shape.contains(&0) { 0 } else { whole }) else {
            refuse!(
                "{label}: tensor {}: shape {} is too large to exist: download the file again",
                shown(&name),
                shape_text(&raw.shape)
            );
        };
        let (begin, end) = raw.data_offsets;
        if end.checked_sub(begin) != Some(bytes as u64) {
            refuse!(
                "{label}: tensor {}: {} of shape {} takes {bytes} bytes, its offsets are {begin} to {end}: download the \
                 file again",
                shown(&name),
                raw.dtype,
                shape_text(&raw.shape)
            );
        }
        // Cannot wrap: `end` is held against the file below before the offset is ever used.
        let offset = data_start.saturating_add(begin);
        entries.push((
            begin,
            end,
            name,
            TensorInfo { dtype, shape: raw.shape, blocks: None, bytes, offset, file, arrangement: Arrangement::Plain },
        ));
    }
    // Empty tensors share an offset with a neighbour; sorting by the end as well puts them before it.
    entries.sort_unstable_by(|a, b| (a.0, a.1, &a.2).cmp(&(b.0, b.1, &b.2)));
    let mut at = 0u64;
    for (begin, end, name, _) in &entries {
        if *begin != at {
            let how = if *begin < at { "overlaps the tensor before it" } else { "leaves a gap before it" };
            refuse!(
                "{label}: tensor {} {how} (starts at {begin}, expected {at}): download the file again",
                shown(name)
            );
        }
        at = *end;
    }
    let expected = data_start.saturating_add(at);
    if file_len < expected {
        refuse!(
            "{label}: the file is shorter than its header says ({file_len} of {expected} bytes): download it again"
        );
    }
    if file_len > expected {
        refuse!(
            "{label}: the file is longer than its header says ({file_len} bytes, expected {expected}): download it again"
        );
    }
    let mut tensors = BTreeMap::new();
    for (_, _, name, info) in entries {
        if let Some(_earlier) = tensors.insert(name.clone(), info) {
            refuse!("{label}: tensor {} stands twice in the header: download the file again", shown(&name));
        }
    }
    Ok(tensors)
}

/// candle's dtype and the size in bytes of a dtype of the format.
fn dtype_of(name: &str) -> Option<(DType, usize)> {
    Some(match name {
        "F64" => (DType::F64, 8),
        "F32" => (DType::F32, 4),
        "F16" => (DType::F16, 2),
        "BF16" => (DType::BF16, 2),
        "F8_E4M3" => (DType::F8E4M3, 1),
        "I64" => (DType::I64, 8),
        "I32" => (DType::I32, 4),
        "I16" => (DType::I16, 2),
        "U32" => (DType::U32, 4),
        "U8" | "BOOL" => (DType::U8, 1),
        _ => return None,
    })
}

/// One entry as it stands; other keys are passed over, as the format's own reader does.
#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    #[serde(deserialize_with = "bounded_shape")]
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

fn bounded_shape<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<usize>, D::Error> {
    struct Shape;
    impl<'de> Visitor<'de> for Shape {
        type Value = Vec<usize>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of axis lengths")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Vec<usize>, A::Error> {
            let mut shape = Vec::new();
            while let Some(length) = seq.next_element()? {
                if shape.len() == MAX_RANK {
                    return Err(A::Error::custom(format_args!("a tensor with more than {MAX_RANK} axes")));
                }
                shape.push(length);
            }
            Ok(shape)
        }
    }
    deserializer.deserialize_seq(Shape)
}

/// The header with its names in file order, so that a name that stands twice is seen: a JSON map would keep the last.
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Whole;
        impl<'de> Visitor<'de> for Whole {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a map from tensor names to entries")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
                let (mut tensors, mut metadata) = (Vec::new(), None);
                while let Some(name) = map.next_key::<String>()? {
                    if name != METADATA {
                        tensors.push((name, map.next_value()?));
                    } else if metadata.replace(map.next_value()?).is_some() {
                        return Err(A::Error::custom("__metadata__ stands twice"));
                    }
                }
                Ok(RawHeader { tensors, metadata: metadata.unwrap_or_default() })
            }
        }
        deserializer.deserialize_map(Whole)
    }
}
