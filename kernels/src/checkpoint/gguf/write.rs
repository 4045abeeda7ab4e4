//! Writing GGUF files, version 3, of the architectures that are read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use candle_core::{DType, Result};
use half::{bf16, f16};
use serde_json::{Map, Value as Json};

use super::config;
use super::export;
use super::kind::Kind;
use super::parse::{MAGIC, Stored};
use super::parts::{FAMILIES, Family, Heads, Place, ROUTER_BIAS};
use super::value::{List, Metadata, Value};
use crate::blocks::Blocks;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::arrangement::Arrangement;
use crate::checkpoint::text::{error, refuse, shown};
use crate::checkpoint::write::{Failed, write_whole};

/// Bytes that tensors start at multiples of.
const ALIGNMENT: u64 = 32;

/// A GGUF file that is to be written: what stands in it, before anything is.
#[derive(Debug)]
pub struct Draft {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Planned>,
    checkpoint: Checkpoint,
}

/// One tensor of the file.
#[derive(Debug)]
struct Planned {
    name: String,
    kind: Kind,
    shape: Vec<usize>,
    parts: Parts,
}

/// What it is made of.
#[derive(Debug)]
enum Parts {
    /// Published tensors, one after the other.
    Whole(Vec<String>),
    /// One whose rows are put in pairs, of this many heads.
    Turned(String, usize),
    /// The upper or lower halves of what stands under each index of the first axis.
    Half(String, bool),
    /// Values of the configuration.
    Values(Vec<f32>),
}

/// The bytes before the data, and the place and length of each tensor in it.
type Head = (Vec<u8>, Vec<(u64, u64)>);

impl Draft {
    /// The file for a model with this `config.json` and these tensors. `choose` says what a matrix is stored as, by its name in
    /// the file and its shape; norms, biases and routers are F32.
    ///
    /// # Errors
    /// A family that GGUF has no architecture for, a tensor that has no place in it, or rows that do not fill the blocks
    /// that were chosen.
    pub fn new(
        config: &Map<String, Json>,
        checkpoint: &Checkpoint,
        mut choose: impl FnMut(&str, &[usize]) -> Kind,
    ) -> Result<Self> {
        let model_type = config.get("model_type").and_then(Json::as_str).unwrap_or_default();
        let Some(family) = FAMILIES.iter().find(|f| f.model_type == model_type) else {
            let names = FAMILIES.map(|f| f.model_type).join(", ");
            refuse!("model_type {} cannot be written as GGUF (can be: {names})", shown(model_type));
        };
        let exported = export::metadata(family, config)?;
        let mut plan = Plan { checkpoint, choose: &mut choose, used: BTreeSet::new(), tensors: Vec::new() };
        plan.all(family, config)?;
        let (used, mut tensors) = (plan.used, plan.tensors);
        let tied = config.get("tie_word_embeddings").and_then(Json::as_bool).unwrap_or(false);
        let known = |name: &str| name.ends_with(".rotary_emb.inv_freq") || tied && name == "lm_head.weight";
        if let Some(name) = checkpoint.unused(&used).into_iter().find(|name| !known(name)) {
            refuse!("{}: tensor {} has no place in a GGUF file of a {model_type}", checkpoint.label(), shown(name));
        }
        tensors.extend(exported.tensors.into_iter().map(|(name, values)| Planned {
            name: name.into(),
            kind: Kind::Float(DType::F32),
            shape: vec![values.len()],
            parts: Parts::Values(values),
        }));
        let mut metadata = exported.metadata;
        if tensors.iter().any(|t| matches!(t.kind, Kind::Blocks(_))) {
            metadata.push(("general.quantization_version".into(), Value::Unsigned(2)));
        }
        Ok(Self { metadata, tensors, checkpoint: checkpoint.clone() })
    }

    /// Adds a key: of the tokenizer, or a name.
    pub fn add(&mut self, key: impl Into<String>, value: Value) {
        self.metadata.push((key.into(), value));
    }

    /// The `config.json` that the file will be read as.
    ///
    /// # Errors
    /// What would be written is not what is read.
    pub fn config(&self) -> Result<Map<String, Json>> {
        let metadata = Metadata(self.metadata.iter().map(|(key, value)| (key.clone(), narrow(value))).collect());
        let stored = self.tensors.iter().map(|t| {
            let stored = Stored { kind: t.kind, shape: t.shape.clone(), bytes: 0, offset: 0, file: 0 };
            (t.name.clone(), stored)
        });
        let stored: BTreeMap<String, Stored> = stored.collect();
        let floats = |name: &str| {
            let found = self.tensors.iter().find(|t| t.name == name);
            Ok(found.and_then(|t| if let Parts::Values(values) = &t.parts { Some(values.clone()) } else { None }))
        };
        Ok(config::translate("the file to be written", &metadata, &stored, &floats)?.config)
    }

    /// Writes the file, whole or not at all. Needs memory for one tensor of the checkpoint at a time.
    ///
    /// # Errors
    /// A tensor cannot be read, has values that cannot be quantised, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let (head, places) = self.head(&path.display().to_string())?;
        write_whole(path, |out| {
            out.write_all(&head)?;
            let mut at = head.len() as u64;
            for (tensor, &(begin, bytes)) in self.tensors.iter().zip(&places) {
                pad(out, begin - at)?;
                let written = tensor.write(&self.checkpoint, out)?;
                if written != bytes {
                    let name = shown(&tensor.name);
                    return Err(error(format!("tensor {name} takes {written} bytes where {bytes} were planned")).into());
                }
                at = begin + bytes;
            }
            pad(out, at.next_multiple_of(ALIGNMENT) - at)?;
            Ok(())
        })
    }

    /// What stands before the data, and where each tensor begins and how long it is.
    fn head(&self, label: &str) -> Result<Head> {
        let mut head = MAGIC.to_vec();
        head.extend(3u32.to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend((self.metadata.len() as u64).to_le_bytes());
        let mut keys = BTreeSet::new();
        for (key, value) in &self.metadata {
            if !keys.insert(key) {
                refuse!("{label}: key {} would stand twice", shown(key));
            }
            text(&mut head, key);
            typed(&mut head, value)?;
        }
        let mut places = Vec::with_capacity(self.tensors.len());
        let mut at = 0u64;
        for tensor in &self.tensors {
            text(&mut head, &tensor.name);
            head.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&n| head.extend((n as u64).to_le_bytes()));
            let Some(number) = tensor.kind.number() else {
                refuse!("{label}: {} cannot be written in a GGUF file", tensor.kind.name());
            };
            head.extend(number.to_le_bytes());
            head.extend(at.to_le_bytes());
            let bytes = tensor.bytes()?;
            places.push((at, bytes));
            at = (at + bytes).next_multiple_of(ALIGNMENT);
        }
        let start = (head.len() as u64).next_multiple_of(ALIGNMENT);
        head.resize(start as usize, 0);
        places.iter_mut().for_each(|(begin, _)| *begin += start);
        Ok((head, places))
    }
}

/// A value as it comes back out of the file: numbers have 32 bits there.
fn narrow(value: &Value) -> Value {
    match value {
        Value::Float(number) => Value::Float(f64::from(*number as f32)),
        other => other.clone(),
    }
}

fn pad(out: &mut impl Write, count: u64) -> std::io::Result<()> {
    out.write_all(&[0; ALIGNMENT as usize][..count as usize])
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A value with its type before it. Numbers have 32 bits, as llama.cpp asks for, unless they need 64.
fn typed(out: &mut Vec<u8>, value: &Value) -> Result<()> {
    match value {
        Value::Unsigned(n) => match u32::try_from(*n) {
            Ok(n) => {
                out.extend(4u32.to_le_bytes());
                out.extend(n.to_le_bytes());
            }
            Err(_) => {
                out.extend(10u32.to_le_bytes());
                out.extend(n.to_le_bytes());
            }
        },
        Value::Signed(n) => match i32::try_from(*n) {
            Ok(n) => {
                out.extend(5u32.to_le_bytes());
                out.extend(n.to_le_bytes());
            }
            Err(_) => {
                out.extend(11u32.to_le_bytes());
                out.extend(n.to_le_bytes());
            }
        },
        Value::Float(number) => {
            out.extend(6u32.to_le_bytes());
            out.extend((*number as f32).to_le_bytes());
        }
        Value::Bool(flag) => {
            out.extend(7u32.to_le_bytes());
            out.push(u8::from(*flag));
        }
        Value::Text(value) => {
            out.extend(8u32.to_le_bytes());
            text(out, value);
        }
        Value::List(list) => {
            out.extend(9u32.to_le_bytes());
            let count = |out: &mut Vec<u8>, kind: u32, n: usize| {
                out.extend(kind.to_le_bytes());
                out.extend((n as u64).to_le_bytes());
            };
            match list {
                List::Unsigned(all) => {
                    count(out, 10, all.len());
                    all.iter().for_each(|n| out.extend(n.to_le_bytes()));
                }
                List::Signed(all) => {
                    count(out, 5, all.len());
                    for n in all {
                        let Ok(n) = i32::try_from(*n) else { refuse!("{n} in a list does not fit 32 bits") };
                        out.extend(n.to_le_bytes());
                    }
                }
                List::Float(all) => {
                    count(out, 6, all.len());
                    all.iter().for_each(|n| out.extend((*n as f32).to_le_bytes()));
                }
                List::Bool(all) => {
                    count(out, 7, all.len());
                    out.extend(all.iter().map(|&flag| u8::from(flag)));
                }
                List::Text(all) => {
                    count(out, 8, all.len());
                    all.iter().for_each(|value| text(out, value));
                }
                List::List(_) => refuse!("lists of lists are not written"),
            }
        }
    }
    Ok(())
}

/// Goes through the parts of a model and finds the tensors for each.
struct Plan<'a> {
    checkpoint: &'a Checkpoint,
    choose: &'a mut dyn FnMut(&str, &[usize]) -> Kind,
    used: BTreeSet<String>,
    tensors: Vec<Planned>,
}

impl Plan<'_> {
    fn all(&mut self, family: &Family, config: &Map<String, Json>) -> Result<()> {
        let number = |key: &str| config.get(key).and_then(Json::as_u64).and_then(|n| usize::try_from(n).ok());
        let heads = number("num_attention_heads").unwrap_or(0);
        let kv_heads = number("num_key_value_heads").unwrap_or(heads);
        let tied = config.get("tie_word_embeddings").and_then(Json::as_bool).unwrap_or(false);
        for (name, published) in family.outer {
            for ending in ["weight", "bias"] {
                if !(tied && *name == "output" && ending == "weight") {
                    self.one(format!("{name}.{ending}"), format!("{published}.{ending}"))?;
                }
            }
        }
        let layers = number("num_hidden_layers").unwrap_or(0).min(1 << 14);
        let further = number("num_nextn_predict_layers").unwrap_or(0).min(1 << 14);
        for i in 0..layers + further {
            let prefix = format!("model.layers.{i}");
            for (part, place) in family.parts() {
                for ending in ["weight", "bias"] {
                    let name = format!("blk.{i}.{part}.{ending}");
                    let full = |published: &str| format!("{prefix}.{published}.{ending}");
                    match place {
                        Place::One(published) | Place::Row(published) => self.one(name, full(published))?,
                        Place::Turned(published, which) => {
                            let heads = if which == Heads::Query { heads } else { kv_heads };
                            self.turned(name, full(published), heads)?;
                        }
                        Place::Each(published) => {
                            self.stack(name, |i| full(&published.replace("{}", &i.to_string())))?
                        }
                        Place::Above(published) => self.halves(name, full(published))?,
                        // Written with what is above; queries, keys and values apart; those of latent attention together.
                        Place::Below(_) | Place::Joined(_) | Place::Keys(_) | Place::Values => {}
                    }
                }
            }
            self.one(format!("blk.{i}.{}", ROUTER_BIAS.0), format!("{prefix}.{}", ROUTER_BIAS.1))?;
        }
        Ok(())
    }

    fn shape(&self, published: &str) -> Option<Vec<usize>> {
        self.checkpoint.info(published).map(|info| info.shape.clone())
    }

    fn plan(&mut self, name: String, shape: Vec<usize>, parts: Parts) -> Result<()> {
        let small =
            shape.len() < 2 || name.ends_with(".bias") || name.contains("_norm") || name.contains("ffn_gate_inp");
        let kind = if small { Kind::Float(DType::F32) } else { (self.choose)(&name, &shape) };
        let (values, _) = kind.block();
        let width = shape.last().copied().unwrap_or(1);
        if !width.is_multiple_of(values) {
            refuse!("tensor {}: rows of {width} values do not fill blocks of {values} ({})", shown(&name), kind.name());
        }
        match &parts {
            Parts::Whole(names) => self.used.extend(names.iter().cloned()),
            Parts::Turned(name, _) | Parts::Half(name, _) => drop(self.used.insert(name.clone())),
            Parts::Values(_) => {}
        }
        self.tensors.push(Planned { name, kind, shape, parts });
        Ok(())
    }

    fn one(&mut self, name: String, published: String) -> Result<()> {
        let Some(shape) = self.shape(&published) else { return Ok(()) };
        self.plan(name, shape, Parts::Whole(vec![published]))
    }

    fn turned(&mut self, name: String, published: String, heads: usize) -> Result<()> {
        let Some(shape) = self.shape(&published) else { return Ok(()) };
        let rows = shape.first().copied().unwrap_or(0);
        if heads == 0 || heads.checked_mul(2).is_none_or(|both| !rows.is_multiple_of(both)) {
            refuse!("tensor {}: {rows} rows do not make pairs of {heads} heads", shown(&published));
        }
        self.plan(name, shape, Parts::Turned(published, heads))
    }

    fn stack(&mut self, name: String, published: impl Fn(usize) -> String) -> Result<()> {
        let Some(shape) = self.shape(&published(0)) else { return Ok(()) };
        let mut names = Vec::new();
        while let Some(other) = self.shape(&published(names.len())) {
            if other != shape {
                refuse!("tensor {}: another shape than the first of its kind", shown(&published(names.len())));
            }
            names.push(published(names.len()));
        }
        let shape = [&[names.len()], shape.as_slice()].concat();
        self.plan(name, shape, Parts::Whole(names))
    }

    fn halves(&mut self, name: String, published: String) -> Result<()> {
        let Some(shape) = self.shape(&published) else { return Ok(()) };
        let [experts, rows, width] = *shape.as_slice() else {
            refuse!("tensor {}: expected three axes", shown(&published));
        };
        let shape = vec![experts, rows / 2, width];
        let below = name.replace("ffn_gate_exps", "ffn_up_exps");
        self.plan(name, shape.clone(), Parts::Half(published.clone(), false))?;
        self.plan(below, shape, Parts::Half(published, true))
    }
}

impl Planned {
    fn bytes(&self) -> Result<u64> {
        let (values, size) = self.kind.block();
        let count = self.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
        match count.and_then(|n| (n / values as u64).checked_mul(size as u64)) {
            Some(bytes) => Ok(bytes),
            None => refuse!("tensor {} is too large", shown(&self.name)),
        }
    }

    /// Writes the data; how many bytes that were.
    fn write(&self, checkpoint: &Checkpoint, out: &mut impl Write) -> std::result::Result<u64, Failed> {
        let mut written = 0;
        let mut put = |out: &mut dyn Write, bytes: Vec<u8>| -> std::io::Result<()> {
            written += bytes.len() as u64;
            out.write_all(&bytes)
        };
        match &self.parts {
            Parts::Values(values) => put(out, self.encode(values)?)?,
            Parts::Whole(names) => {
                for name in names {
                    let bytes = match self.stored(checkpoint, name)? {
                        Some(blocks) => blocks.into_data(),
                        None => self.encode(&read(checkpoint, name)?)?,
                    };
                    put(out, bytes)?;
                }
            }
            Parts::Turned(name, heads) => {
                let rows = self.shape.first().copied().unwrap_or(1);
                // Rows move whole: what is quantised already stays as it is.
                let bytes = match self.stored(checkpoint, name)? {
                    Some(blocks) => {
                        let mut data = blocks.into_data();
                        Arrangement::pairs(&mut data, rows, *heads);
                        data
                    }
                    None => {
                        let mut values = read(checkpoint, name)?;
                        Arrangement::pairs(&mut values, rows, *heads);
                        self.encode(&values)?
                    }
                };
                put(out, bytes)?;
            }
            Parts::Half(name, lower) => {
                let half: usize = self.shape.iter().skip(1).product();
                let side = usize::from(*lower);
                let values = read(checkpoint, name)?;
                for both in values.chunks_exact((2 * half).max(1)) {
                    if let Some(values) = both.get(side * half..(side + 1) * half) {
                        put(out, self.encode(values)?)?;
                    }
                }
            }
        }
        Ok(written)
    }

    /// The blocks of a tensor that is stored as this one is to be.
    fn stored(&self, checkpoint: &Checkpoint, name: &str) -> Result<Option<Blocks>> {
        let Some(info) = checkpoint.info(name) else { return Ok(None) };
        match self.kind {
            Kind::Blocks(format) if info.blocks == Some(format) => checkpoint.blocks(name, &info.shape.clone()),
            _ => Ok(None),
        }
    }

    fn encode(&self, values: &[f32]) -> Result<Vec<u8>> {
        Ok(match self.kind {
            Kind::Float(DType::F16) => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Kind::Float(DType::BF16) => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            Kind::Float(_) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Kind::Blocks(format) => {
                let mut data = vec![0; values.len() / format.values() * format.bytes()];
                let named = |e: candle_core::Error| error(format!("tensor {}: {e}", shown(&self.name)));
                format.quantise(values, &mut data).map_err(named)?;
                data
            }
        })
    }
}

/// The values of a tensor of the checkpoint.
fn read(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    let Some(info) = checkpoint.info(name) else {
        refuse!("{}: tensor {} is missing", checkpoint.label(), shown(name))
    };
    let mut values = vec![0f32; info.values()];
    checkpoint.read_f32_into(name, &info.shape, &mut values)?;
    Ok(values)
}
