//! The tensors of a GGUF file under their published names.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use candle_core::{DType, Result};

use super::kind::Kind;
use super::parse::Stored;
use super::parts::{Family, Heads, Place, ROUTER_BIAS};
use crate::checkpoint::arrangement::{Part, Woven};
use crate::checkpoint::text::{refuse, shape_text, shown};
use crate::checkpoint::{Arrangement, TensorInfo};

/// Most slices of a tensor: more experts than any model has.
const MOST_SLICES: usize = 1 << 14;

/// Numbers that the names alone do not tell.
pub(super) struct Sizes {
    pub heads: usize,
    pub kv_heads: usize,
}

/// Tensors of frequencies, which are part of the configuration.
pub(super) const ROPE_FACTORS: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// Tensors by their published names; those that the family does not know keep theirs.
pub(super) fn published(
    label: &str,
    family: &Family,
    sizes: &Sizes,
    stored: &BTreeMap<String, Stored>,
) -> Result<BTreeMap<String, TensorInfo>> {
    let mut index = Index { label, all: BTreeMap::new() };
    for (name, tensor) in stored {
        if ROPE_FACTORS.contains(&name.as_str()) || name.ends_with(".attn_rot_embd.weight") {
            continue;
        }
        let Some((stem, ending)) = name.rsplit_once('.') else {
            index.add(name.clone(), tensor.info())?;
            continue;
        };
        if let Some(published) = family.outer(stem) {
            index.add(format!("{published}.{ending}"), tensor.info())?;
            continue;
        }
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let Some((layer, rest)) = layer.filter(|(n, _)| n.parse::<u32>().is_ok()) else {
            index.add(name.clone(), tensor.info())?;
            continue;
        };
        let prefix = format!("model.layers.{layer}");
        if rest == ROUTER_BIAS.0 {
            index.add(format!("{prefix}.{}", ROUTER_BIAS.1), tensor.info())?;
            continue;
        }
        let part = rest.strip_suffix(ending).and_then(|part| part.strip_suffix('.')).unwrap_or(rest);
        index.part(family, sizes, stored, name, tensor, &prefix, part, ending)?;
    }
    Ok(index.all)
}

struct Index<'a> {
    label: &'a str,
    all: BTreeMap<String, TensorInfo>,
}

impl Index<'_> {
    fn add(&mut self, name: String, info: TensorInfo) -> Result<()> {
        match self.all.entry(name) {
            Entry::Vacant(slot) => slot.insert(info),
            Entry::Occupied(slot) => {
                let (label, name) = (self.label, shown(slot.key()));
                refuse!("{label}: two tensors stand for {name}: download the file again")
            }
        };
        Ok(())
    }

    /// A tensor of a layer.
    #[allow(clippy::too_many_arguments)] // the name in its pieces
    fn part(
        &mut self,
        family: &Family,
        sizes: &Sizes,
        stored: &BTreeMap<String, Stored>,
        name: &str,
        tensor: &Stored,
        prefix: &str,
        part: &str,
        ending: &str,
    ) -> Result<()> {
        let (label, info) = (self.label, tensor.info());
        let full = |published: &str| format!("{prefix}.{published}.{ending}");
        let Some(place) = family.place(part) else {
            // Of the first files with experts: each in a tensor of its own.
            if let Some((part, expert)) = part.rsplit_once('.')
                && expert.parse::<u32>().is_ok()
                && let Some(Place::Each(published)) = family.place(&format!("{part}_exps"))
            {
                return self.add(full(&published.replace("{}", expert)), info);
            }
            return self.add(name.to_string(), info);
        };
        match place {
            Place::One(published) => self.add(full(published), info),
            Place::Row(published) => {
                let info = match *info.shape.as_slice() {
                    [width] => TensorInfo { shape: vec![1, width], ..info },
                    _ => info,
                };
                self.add(full(published), info)
            }
            Place::Turned(published, heads) => {
                let heads = match heads {
                    Heads::Query => sizes.heads,
                    Heads::KeyValue => sizes.kv_heads,
                };
                let rows = info.shape.first().copied().unwrap_or(0);
                if heads == 0 || heads.checked_mul(2).is_none_or(|both| !rows.is_multiple_of(both)) {
                    refuse!("{label}: tensor {}: {rows} rows do not make pairs of {heads} heads", shown(name));
                }
                // Rows move whole, so blocks stay as they are; a bias is one value a row.
                if info.shape.len() == 1 && info.blocks.is_some() {
                    refuse!("{label}: tensor {}: a bias in blocks is not supported", shown(name));
                }
                self.add(full(published), TensorInfo { arrangement: Arrangement::Pairs(heads), ..info })
            }
            Place::Each(published) => {
                // One expert alone may have lost its axis.
                let shape = match (&*info.shape, ending) {
                    ([rows, width], "weight") if published.contains(".experts.") => vec![1, *rows, *width],
                    ([width], "weight") => vec![1, *width],
                    (shape, _) => shape.to_vec(),
                };
                let slices = self.slices(name, &info, &shape)?;
                for (i, slice) in slices.enumerate() {
                    self.add(full(&published.replace("{}", &i.to_string())), slice)?;
                }
                Ok(())
            }
            Place::Above(published) => {
                let other = name.replace("ffn_gate_exps", "ffn_up_exps");
                let Some(below) = stored.get(&other) else {
                    refuse!(
                        "{label}: tensor {} is missing beside {}: download the file again",
                        shown(&other),
                        shown(name)
                    )
                };
                let [experts, rows, width] = *info.shape.as_slice() else {
                    refuse!("{label}: tensor {}: shape {}, expected three axes", shown(name), shape_text(&info.shape))
                };
                if below.shape != info.shape {
                    refuse!(
                        "{label}: tensors {} and {} differ in shape: download the file again",
                        shown(name),
                        shown(&other)
                    );
                }
                if below.kind != tensor.kind || below.file != tensor.file {
                    let part = |info| Part { info, rows, turned: false };
                    let parts = [part(info), part(below.info())];
                    let info = self.woven(name, experts, parts, vec![experts, rows.saturating_mul(2), width])?;
                    return self.add(full(published), info);
                }
                let (Some(height), Some(bytes)) = (rows.checked_mul(2), info.bytes.checked_mul(2)) else {
                    refuse!("{label}: tensor {}: shape {} is too large to exist", shown(name), shape_text(&info.shape))
                };
                let above = self.slices(name, &info, &info.shape)?;
                let below = self.slices(&other, &below.info(), &info.shape)?;
                let pieces = above.zip(below).flat_map(|(a, b)| [a.offset, b.offset]).collect();
                let arrangement = Arrangement::Pieces(pieces);
                self.add(
                    full(published),
                    TensorInfo { shape: vec![experts, height, width], bytes, arrangement, ..info },
                )
            }
            // Added with the part above it.
            Place::Below(above) => match stored.contains_key(&name.replace(part, above)) {
                true => Ok(()),
                false => self.add(name.to_string(), info),
            },
            Place::Keys(_) | Place::Values if ending != "weight" => self.add(name.to_string(), info),
            // A file may have both forms.
            Place::Keys(_) | Place::Values if stored.contains_key(&name.replace(part, "attn_kv_b")) => Ok(()),
            Place::Keys(published) => {
                let other = name.replace(part, "attn_v_b");
                let Some(values) = stored.get(&other) else {
                    refuse!(
                        "{label}: tensor {} is missing beside {}: download the file again",
                        shown(&other),
                        shown(name)
                    )
                };
                // One head alone may have lost its axis.
                let axes = |shape: &[usize]| match *shape {
                    [heads, rows, columns] => Some((heads, rows, columns)),
                    [rows, columns] if sizes.heads == 1 => Some((1, rows, columns)),
                    _ => None,
                };
                match (axes(&info.shape), axes(&values.shape)) {
                    (Some((heads, rank, keys)), Some((others, rows, width))) if heads == others && rank == width => {
                        let parts = [
                            Part { info, rows: keys, turned: true },
                            Part { info: values.info(), rows, turned: false },
                        ];
                        let all = heads.saturating_mul(keys.saturating_add(rows));
                        let info = self.woven(name, heads, parts, vec![all, width])?;
                        self.add(full(published), info)
                    }
                    _ => refuse!(
                        "{label}: tensors {} {} and {} {} do not fit each other: download the file again",
                        shown(name),
                        shape_text(&info.shape),
                        shown(&other),
                        shape_text(&values.shape)
                    ),
                }
            }
            // Added with the keys.
            Place::Values => match stored.contains_key(&name.replace(part, "attn_k_b")) {
                true => Ok(()),
                false => self.add(name.to_string(), info),
            },
            Place::Joined(published) => {
                let rows = info.shape.first().copied().unwrap_or(0);
                let all = sizes.kv_heads.saturating_mul(2).saturating_add(sizes.heads);
                if all == 0 || rows == 0 || !rows.is_multiple_of(all) {
                    refuse!("{label}: tensor {}: {rows} rows do not make {all} heads", shown(name));
                }
                let (dim, row) = (rows / all, info.bytes / rows);
                let mut offset = info.offset;
                for (published, heads) in published.into_iter().zip([sizes.heads, sizes.kv_heads, sizes.kv_heads]) {
                    let mut part = info.clone();
                    if let Some(rows) = part.shape.first_mut() {
                        *rows = heads * dim;
                    }
                    (part.offset, part.bytes) = (offset, heads * dim * row);
                    offset += part.bytes as u64;
                    self.add(full(published), part)?;
                }
                Ok(())
            }
        }
    }

    /// A tensor of this shape that is made of two. It is one of floats; of blocks f32, as blocks cannot be made up of others.
    fn woven(&self, name: &str, slices: usize, parts: [Part; 2], shape: Vec<usize>) -> Result<TensorInfo> {
        let [one, other] = [&parts[0].info, &parts[1].info];
        let plain = one.blocks.is_none() && other.blocks.is_none() && one.dtype == other.dtype;
        let dtype = if plain { one.dtype } else { DType::F32 };
        let bytes = one.values().checked_add(other.values()).and_then(|n| n.checked_mul(dtype.size_in_bytes()));
        let Some(bytes) = bytes else {
            refuse!("{}: tensor {}: shape {} is too large to exist", self.label, shown(name), shape_text(&shape));
        };
        let (offset, file) = (one.offset, one.file);
        let arrangement = Arrangement::Woven(Box::new(Woven { slices, parts }));
        Ok(TensorInfo { dtype, shape, blocks: None, bytes, offset, file, arrangement })
    }

    /// The slices of a tensor along its first axis, with that axis in `shape`.
    fn slices(
        &self,
        name: &str,
        info: &TensorInfo,
        shape: &[usize],
    ) -> Result<impl Iterator<Item = TensorInfo> + use<>> {
        let Some((&count @ 1..=MOST_SLICES, rest)) = shape.split_first() else {
            refuse!(
                "{}: tensor {}: shape {}, expected 1 to {MOST_SLICES} slices",
                self.label,
                shown(name),
                shape_text(shape)
            );
        };
        // A slice ends where a block ends, as it has whole rows.
        if rest.is_empty() && info.blocks.is_some() {
            refuse!("{}: tensor {}: slices of one number in blocks", self.label, shown(name));
        }
        let (bytes, info, rest) = (info.bytes / count, info.clone(), rest.to_vec());
        Ok((0..count).map(move |i| TensorInfo {
            shape: rest.clone(),
            bytes,
            offset: info.offset + (i * bytes) as u64,
            ..info.clone()
        }))
    }
}

impl Stored {
    /// The same as a tensor of a checkpoint.
    pub(super) fn info(&self) -> TensorInfo {
        let (dtype, blocks) = match self.kind {
            Kind::Float(dtype) => (dtype, None),
            Kind::Blocks(format) => (DType::F32, Some(format)),
        };
        let (shape, bytes, offset, file) = (self.shape.clone(), self.bytes, self.offset, self.file);
        TensorInfo { dtype, shape, blocks, bytes, offset, file, arrangement: Arrangement::Plain }
    }
}
