//! The dense models that tensors come from: checked against their config before anything is written.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::checkpoint::gguf::{Gguf, is_gguf};
use moesaic_kernels::shown;
use serde_json::Value;

use super::{Error, Result};
use crate::decoder::{AttentionConfig, DecoderConfig};

/// A dense model: its config, and its tensors, none of which is read yet.
#[derive(Debug)]
pub(super) struct Dense {
    pub path: PathBuf,
    pub config: DecoderConfig,
    pub checkpoint: Checkpoint,
}

/// The feed-forward part of one layer in f32, in rows: gate and up `[I, H]`, down `[H, I]`.
#[derive(Debug, Default)]
pub(super) struct Network {
    pub maps: [Vec<f32>; 3],
}

/// A tensor of the model and its shape.
type Shaped = (String, Vec<usize>);

impl Dense {
    /// Opens a model; reads its config and its index of tensors only.
    pub fn open(path: &Path) -> Result<Self> {
        let config = DecoderConfig::load(path)?;
        Ok(Self { path: path.to_path_buf(), checkpoint: Checkpoint::open(path)?, config })
    }

    /// Checks that every tensor of the model is there in its shape, and none besides.
    ///
    /// Of models that [`super::target::dense_network`] admits.
    pub fn check(&self, width: usize) -> Result<()> {
        let mut known = BTreeSet::new();
        for (name, shape) in self.tensors(width) {
            if self.checkpoint.info(&name).is_none_or(|info| info.shape != shape) {
                // The reader's own message says what is missing, and what is there.
                self.checkpoint.read(&name, &shape, DType::F32, &Device::Cpu)?;
            }
            known.insert(name);
        }
        let surplus = self.checkpoint.unused(&known).into_iter().find(|name| !self.config.ignorable(name));
        match surplus {
            None => Ok(()),
            Some(name) => Err(Error::Files {
                path: self.path.clone(),
                problem: format!(
                    "tensor {} does not belong to a {} of this config; check config.json",
                    shown(name),
                    self.config.model_type
                ),
            }),
        }
    }

    /// All tensors but those of feed-forward parts.
    pub fn beside(&self) -> Vec<Shaped> {
        let (config, names, h) = (&self.config, &self.config.names, self.config.hidden_size);
        let mut all = vec![
            (format!("{}.weight", names.embed), vec![config.vocab_size, h]),
            (format!("{}.weight", names.final_norm), vec![h]),
        ];
        if !config.tie_word_embeddings {
            all.push((format!("{}.weight", names.head), vec![config.vocab_size, h]));
        }
        let AttentionConfig::Grouped(a) = &config.attention else { return all };
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        for i in 0..config.layers.len() {
            let layer = format!("{}.{i}", names.layers);
            for norm in [names.attention_norm, names.ffn_norm] {
                all.push((format!("{layer}.{norm}.weight"), vec![h]));
            }
            let attention = format!("{layer}.{}", names.attention);
            for (map, rows, columns, bias) in [
                ("q_proj", q, h, a.qkv_bias),
                ("k_proj", kv, h, a.qkv_bias),
                ("v_proj", kv, h, a.qkv_bias),
                (names.output, h, q, a.output_bias),
            ] {
                all.push((format!("{attention}.{map}.weight"), vec![rows, columns]));
                if bias {
                    all.push((format!("{attention}.{map}.bias"), vec![rows]));
                }
            }
        }
        all
    }

    /// The three maps of a layer's feed-forward part: gate, up, down.
    pub fn network(&self, layer: usize, width: usize) -> [Shaped; 3] {
        let (names, h) = (&self.config.names, self.config.hidden_size);
        let name = |map: &str| format!("{}.{layer}.{}.{map}.weight", names.layers, names.dense);
        let [gate, up, down] = names.dense_maps;
        [(name(gate), vec![width, h]), (name(up), vec![width, h]), (name(down), vec![h, width])]
    }

    fn tensors(&self, width: usize) -> Vec<Shaped> {
        let mut all = self.beside();
        all.extend((0..self.config.layers.len()).flat_map(|i| self.network(i, width)));
        all
    }

    /// Reads a layer's feed-forward part.
    pub fn read_network(&self, layer: usize, width: usize) -> candle_core::Result<Network> {
        let mut network = Network::default();
        for ((name, shape), values) in self.network(layer, width).into_iter().zip(&mut network.maps) {
            *values = vec![0.0; shape.iter().product()];
            self.checkpoint.read_f32_into(&name, &shape, values)?;
        }
        Ok(network)
    }

    /// The dtype in which a tensor is stored, where it is one that weights are written in; else f32.
    pub fn stored(&self, name: &str) -> DType {
        match self.checkpoint.info(name).map(|info| info.dtype) {
            Some(dtype @ (DType::F32 | DType::BF16 | DType::F16)) => dtype,
            _ => DType::F32,
        }
    }
}

/// The mean of a tensor over siblings, or the tensor itself of one model, bit by bit.
pub(super) fn mean(models: &[Dense], name: &str, shape: &[usize], dtype: DType) -> candle_core::Result<Tensor> {
    match models {
        [one] => one.checkpoint.read(name, shape, dtype, &Device::Cpu),
        several => {
            let count: usize = shape.iter().product();
            let (mut sum, mut next) = (vec![0f64; count], vec![0f32; count]);
            for model in several {
                model.checkpoint.read_f32_into(name, shape, &mut next)?;
                sum.iter_mut().zip(&next).for_each(|(sum, v)| *sum += f64::from(*v));
            }
            let values: Vec<f32> = sum.iter().map(|sum| (sum / several.len() as f64) as f32).collect();
            Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
        }
    }
}

/// Checks that models are of one shape and read text alike.
pub(super) fn alike(models: &[Dense], width: usize) -> Result<()> {
    let [first, others @ ..] = models else { return Ok(()) };
    for other in others {
        let differs = |problem: String| Err(Error::Siblings { path: other.path.clone(), problem });
        let of = first.path.display();
        for (name, shape) in first.tensors(width) {
            match other.checkpoint.info(&name) {
                Some(info) if info.shape == shape => {}
                Some(info) => {
                    let (name, found) = (shown(&name), &info.shape);
                    return differs(format!(
                        "tensor {name} has shape {found:?}, that of {of} {shape:?}: siblings must be of one shape and one \
                         vocabulary"
                    ));
                }
                None => {
                    let name = shown(&name);
                    return differs(format!(
                        "tensor {name} is missing, which {of} has: siblings must be of one family"
                    ));
                }
            }
        }
        let (a, b) = (&first.config, &other.config);
        let layers = a.layers == b.layers && a.parallel == b.parallel && a.dense == b.dense;
        let head = (a.tie_word_embeddings, a.head_bias) == (b.tie_word_embeddings, b.head_bias);
        for (what, same) in [
            ("model_type", a.model_type == b.model_type),
            ("attention", a.attention == b.attention),
            ("norms", a.norm == b.norm),
            ("rotary positions", a.rope == b.rope),
            ("layers", layers),
            ("head", head),
            ("constant factors", a.multipliers == b.multipliers),
        ] {
            if !same {
                return differs(format!(
                    "its config.json has another {what} than {of}: siblings must be of one family"
                ));
            }
        }
        if let (Some(a), Some(b)) = (vocabulary(&first.path), vocabulary(&other.path))
            && a != b
            // One of a file is a list and one of a folder is not: they do not compare.
            && a.is_array() == b.is_array()
        {
            return differs(format!(
                "its tokenizer has another vocabulary than that of {of}: their ids mean other text"
            ));
        }
    }
    Ok(())
}

/// The vocabulary of a model's `tokenizer.json`, or the list of tokens of a GGUF file; none where it cannot be read, which the model's use will tell.
fn vocabulary(path: &Path) -> Option<Value> {
    /// Longer than any published tokenizer.
    const LONGEST: u64 = 256 << 20;
    if is_gguf(path) {
        let file = Gguf::open(path).ok()?;
        return Some(file.metadata().texts("tokenizer.ggml.tokens").ok()??.into());
    }
    let file = path.join("tokenizer.json");
    if std::fs::metadata(&file).ok()?.len() > LONGEST {
        return None;
    }
    let mut json: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    Some(json.get_mut("model")?.get_mut("vocab")?.take())
}
