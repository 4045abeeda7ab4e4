//! One case on disk, and what a family's code computed for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{DType, Device, Tensor};
use moesaic_kernels::checkpoint::Checkpoint;
use serde_json::Value;

/// One folder with a `case.json`.
pub struct Case {
    /// The family, as `case.json` says.
    pub family: String,
    /// The folder's name.
    pub name: String,
    /// The folder: `config.json` and the weights are there, as a hub repository would hold them.
    pub dir: PathBuf,
    /// All of `case.json`.
    pub json: Value,
    /// The device to run on.
    pub device: Device,
    /// The number type of weights: f32, in which tolerances hold, or a half of it.
    pub dtype: DType,
    inputs: BTreeMap<String, Tensor>,
    expected: BTreeMap<String, Tensor>,
}

impl Case {
    /// Reads `case.json` alone: enough to know the family.
    pub fn describe(dir: &Path, device: &Device, dtype: DType) -> Result<Self> {
        let path = dir.join("case.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
        let json: Value = serde_json::from_str(&text).with_context(|| format!("{}: is not JSON", path.display()))?;
        let family = json.get("family").and_then(Value::as_str).context("case.json names no family")?.to_string();
        let name = dir.file_name().context("a case needs a folder of its own")?.to_string_lossy().into_owned();
        let (inputs, expected) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { family, name, dir: dir.to_path_buf(), json, device: device.clone(), dtype, inputs, expected })
    }

    /// Reads inputs and expected tensors.
    pub fn load(&mut self) -> Result<()> {
        let inputs = self.dir.join("inputs.safetensors");
        if inputs.is_file() {
            self.inputs = read_all(&inputs)?;
        }
        let expected = self.dir.join("expected.safetensors");
        if !expected.exists() && self.json.get("cases").is_some_and(Value::is_array) {
            // Strings, which stand in case.json itself: the family's code compares them.
            return Ok(());
        }
        self.expected = read_all(&self.dir.join("expected.safetensors"))?;
        ensure!(!self.expected.is_empty(), "expected.safetensors holds no tensor");
        for (kind, there) in [("inputs", &self.inputs), ("expected", &self.expected)] {
            let listed = self.json.get(kind).and_then(Value::as_object);
            for name in listed.into_iter().flat_map(|m| m.keys()) {
                ensure!(there.contains_key(name), "case.json lists {name} in {kind}, {kind}.safetensors lacks it");
            }
        }
        Ok(())
    }

    /// An input, on the device.
    pub fn input(&self, name: &str) -> Result<Tensor> {
        let tensor = self.inputs.get(name).ok_or_else(|| anyhow!("the case has no input {name}"))?;
        Ok(tensor.to_device(&self.device)?)
    }

    /// Two ways to compute the same differ by less than `most`; where weights are halves, which one of the two may not be, both are numbers.
    pub fn alike(&self, one: &Tensor, other: &Tensor, most: f32, what: &str) -> Result<()> {
        let wide = |t: &Tensor| t.to_dtype(DType::F32)?.to_device(&Device::Cpu);
        let worst = (wide(one)? - wide(other)?)?.abs()?.flatten_all()?;
        let worst = worst.max(0)?.to_scalar::<f32>()?;
        ensure!(
            if self.dtype == DType::F32 { worst < most } else { worst.is_finite() },
            "{}: {what} by {worst}",
            self.name
        );
        Ok(())
    }

    /// Whether the case has an input of this name.
    pub fn has_input(&self, name: &str) -> bool {
        self.inputs.contains_key(name)
    }

    /// Names of the tensors that will be compared: which passes to run follows from them, their values stay out of reach.
    pub fn wanted(&self) -> impl Iterator<Item = &str> {
        self.expected.keys().map(String::as_str)
    }

    /// Whether a wanted name starts so.
    pub fn wants(&self, prefix: &str) -> bool {
        self.wanted().any(|name| name.starts_with(prefix))
    }

    /// What `case.json` says the expected tensor means; empty where it says nothing.
    pub fn meaning(&self, name: &str) -> &str {
        let entry = self.json.get("expected").and_then(|e| e.get(name));
        entry.and_then(|e| e.get("meaning")).and_then(Value::as_str).unwrap_or_default()
    }

    /// An expected tensor that others of the case are computed from, as its notes say.
    pub fn given(&self, name: &str) -> Result<&Tensor> {
        self.expected.get(name).with_context(|| format!("the case has no tensor {name}"))
    }

    /// The expected tensors, for the comparison only.
    pub(super) fn expected(&self) -> &BTreeMap<String, Tensor> {
        &self.expected
    }

    /// Where `attention_mask` is 1, for tensors of which `case.json` says that only those positions mean something.
    ///
    /// One value for each position of the tensor's leading axes `[b, t]`; `None` compares everything.
    pub fn attended(&self, name: &str) -> Result<Option<Vec<bool>>> {
        if !self.meaning(name).contains("attention_mask==1") {
            return Ok(None);
        }
        let mask = self.inputs.get("attention_mask").context("the case has no attention_mask")?;
        let values = mask.flatten_all()?.to_dtype(candle_core::DType::U32)?.to_vec1::<u32>()?;
        let dims = self.expected.get(name).map(Tensor::dims).unwrap_or_default();
        ensure!(dims.starts_with(mask.dims()), "{name}: attention_mask {:?} does not fit shape {dims:?}", mask.dims());
        Ok(Some(values.into_iter().map(|v| v == 1).collect()))
    }
}

fn read_all(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let checkpoint = Checkpoint::open(path)?;
    checkpoint.names().map(|name| Ok((name.to_string(), checkpoint.read_any(name)?))).collect()
}

/// What a family's code computed, by the names of `expected.safetensors`. Names that the case does not ask for are ignored.
#[derive(Default)]
pub struct Got {
    tensors: BTreeMap<String, Tensor>,
    twice: BTreeSet<String>,
}

impl Got {
    /// Adds a result.
    pub fn put(&mut self, name: impl Into<String>, tensor: Tensor) {
        let name = name.into();
        if self.tensors.insert(name.clone(), tensor).is_some() {
            self.twice.insert(name);
        }
    }

    /// Adds a number, as the tensor `[1]` that the cases hold.
    pub fn put_number(&mut self, name: impl Into<String>, value: f64) -> Result<()> {
        self.put(name, Tensor::new(&[value], &Device::Cpu)?);
        Ok(())
    }

    /// Adds all tensors of a map, each name behind `prefix`.
    pub fn put_all(&mut self, prefix: &str, tensors: impl IntoIterator<Item = (String, Tensor)>) {
        for (name, tensor) in tensors {
            self.put(format!("{prefix}{name}"), tensor);
        }
    }

    /// These results and those of `other`.
    pub fn with(mut self, other: Self) -> Self {
        other.tensors.into_iter().for_each(|(name, tensor)| self.put(name, tensor));
        self
    }

    /// A result.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        if self.twice.contains(name) {
            bail!("computed twice: which one counts?");
        }
        self.tensors.get(name).context("missing: the family's code did not compute it")
    }
}

#[test]
fn a_result_counts_once_and_must_be_there() {
    let mut got = Got::default();
    got.put_number("once", 1.0).unwrap();
    got.put_number("twice", 1.0).unwrap();
    got.put_number("twice", 1.0).unwrap();
    assert!(got.get("once").is_ok());
    assert!(got.get("twice").unwrap_err().to_string().contains("twice"));
    assert!(got.get("never").unwrap_err().to_string().contains("missing"));
}
