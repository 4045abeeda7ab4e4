//! Writing a checkpoint that need not fit in memory: what it holds is known before, values are asked for one by one.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Error, Result, Tensor};

use super::locate::{INDEX_FILE, SINGLE_FILE};
use super::text::{error, refuse, shown};
use super::write::{header, in_order, write_values, write_whole};

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Its name.
    pub name: String,
    /// The dtype that it is written in.
    pub dtype: DType,
    /// Lengths of the axes.
    pub shape: Vec<usize>,
}

impl Outline {
    /// Bytes of its values; saturates.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().fold(self.dtype.size_in_bytes() as u64, |n, &d| n.saturating_mul(d as u64))
    }
}

/// Writes a model folder's weights: `model.safetensors`, or, where they take more than `most` bytes, shards of at most that
/// and `model.safetensors.index.json`. A tensor is never cut, so a shard that holds one large tensor may be larger.
///
/// `values` is asked for each tensor once, in the order of the files: falling element size, then name. At no time more
/// than one of them is held. The same outlines and values give the same bytes. Returns the files.
///
/// # Errors
/// As [`save`](super::save); `values` gives an error, which is passed on as it is, or a tensor that is not what its outline
/// says. Files that were complete before stay.
pub fn save_shards(
    folder: &Path,
    mut outlines: Vec<Outline>,
    most: u64,
    values: &mut dyn FnMut(&Outline) -> Result<Tensor>,
) -> Result<Vec<PathBuf>> {
    outlines.sort_by(|a, b| in_order((a.dtype, &a.name), (b.dtype, &b.name)));
    let mut cuts = vec![0];
    let mut bytes = 0u64;
    for (i, outline) in outlines.iter().enumerate() {
        if i > 0 && bytes.saturating_add(outline.bytes()) > most {
            cuts.push(i);
            bytes = 0;
        }
        bytes = bytes.saturating_add(outline.bytes());
    }
    cuts.push(outlines.len());
    let shards: Vec<&[Outline]> = cuts.windows(2).filter_map(|cut| outlines.get(cut[0]..cut[1])).collect();
    if let [all] = shards.as_slice() {
        let path = folder.join(SINGLE_FILE);
        write(&path, all, values)?;
        return Ok(vec![path]);
    }
    let (mut files, mut places, mut total) = (Vec::new(), BTreeMap::new(), 0u64);
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        let path = folder.join(&name);
        write(&path, shard, values)?;
        for outline in *shard {
            if places.insert(outline.name.as_str(), name.clone()).is_some() {
                refuse!("{}: the tensor name {} stands twice", folder.display(), shown(&outline.name));
            }
            total = total.saturating_add(outline.bytes());
        }
        files.push(path);
    }
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": places });
    let index = serde_json::to_vec_pretty(&index).map_err(|e| error(e.to_string()))?;
    let path = folder.join(INDEX_FILE);
    write_whole(&path, |out| Ok(out.write_all(&index)?))?;
    files.push(path);
    Ok(files)
}

fn write(path: &Path, outlines: &[Outline], values: &mut dyn FnMut(&Outline) -> Result<Tensor>) -> Result<()> {
    let entries = outlines.iter().map(|o| (o.name.as_str(), o.dtype, o.shape.as_slice()));
    let header = header(path, entries, &[("format", "pt")])?;
    // An error of `values` says for itself what is wrong; the writer would add that the file cannot be written.
    let mut failed: Option<Error> = None;
    let written = write_whole(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for outline in outlines {
            let tensor = match values(outline) {
                Ok(tensor) => tensor,
                Err(e) => {
                    failed = Some(e);
                    return Err(error("its values are missing").into());
                }
            };
            if tensor.dims() != outline.shape || tensor.dtype() != outline.dtype {
                let (name, found) = (shown(&outline.name), tensor.dims());
                let message = format!("tensor {name} was to be {:?} and is {found:?}", outline.shape);
                return Err(error(message).into());
            }
            write_values(&tensor, out)?;
        }
        Ok(())
    });
    match failed {
        Some(e) => Err(e),
        None => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, save};
    use candle_core::Device;

    fn tensors() -> Vec<(String, Tensor)> {
        let tensor = |n: usize, dtype| {
            let values: Vec<f32> = (0..n).map(|v| v as f32 / 2.0).collect();
            Tensor::from_vec(values, (n / 2, 2), &Device::Cpu).and_then(|t| t.to_dtype(dtype)).unwrap()
        };
        vec![
            ("b".into(), tensor(8, DType::F32)),
            ("a".into(), tensor(4, DType::BF16)),
            ("c".into(), tensor(6, DType::F32)),
        ]
    }

    fn outlines(tensors: &[(String, Tensor)]) -> Vec<Outline> {
        let outline =
            |(name, t): &(String, Tensor)| Outline { name: name.clone(), dtype: t.dtype(), shape: t.dims().to_vec() };
        tensors.iter().map(outline).collect()
    }

    fn give(tensors: &[(String, Tensor)]) -> impl FnMut(&Outline) -> Result<Tensor> {
        |outline| {
            let found = tensors.iter().find(|(name, _)| *name == outline.name);
            found.map(|(_, t)| t.clone()).ok_or_else(|| error("none"))
        }
    }

    #[test]
    fn one_file_has_the_bytes_that_save_gives_and_shards_hold_the_same_tensors() -> Result<()> {
        let (dir, tensors) = (tempfile::tempdir()?, tensors());
        let files = save_shards(dir.path(), outlines(&tensors), 1 << 20, &mut give(&tensors))?;
        assert_eq!(files, [dir.path().join("model.safetensors")]);
        let whole = dir.path().join("whole.safetensors");
        save(&whole, &tensors, &[("format", "pt")])?;
        assert_eq!(std::fs::read(&files[0])?, std::fs::read(whole)?);

        let dir = tempfile::tempdir()?;
        let files = save_shards(dir.path(), outlines(&tensors), 33, &mut give(&tensors))?;
        let names: Vec<_> = files.iter().filter_map(|f| f.file_name()?.to_str()).collect();
        assert_eq!(names, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX_FILE]);
        let checkpoint = Checkpoint::open(dir.path())?;
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        for (name, tensor) in &tensors {
            let read = checkpoint.read_any(name)?;
            assert_eq!(read.dtype(), tensor.dtype());
            let values = |t: &Tensor| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
            assert_eq!(values(&read)?, values(tensor)?, "{name}");
        }
        Ok(())
    }

    #[test]
    fn an_error_on_the_way_is_passed_on_and_leaves_no_file() {
        let (dir, tensors) = (tempfile::tempdir().unwrap(), tensors());
        let mut stops = |outline: &Outline| match outline.name.as_str() {
            "c" => Err(error("stopped here")),
            _ => give(&tensors)(outline),
        };
        let message = save_shards(dir.path(), outlines(&tensors), 1 << 20, &mut stops).unwrap_err().to_string();
        assert_eq!(message, "stopped here");
        let mut wrong = |_: &Outline| Ok(tensors[0].1.clone());
        let message = save_shards(dir.path(), outlines(&tensors), 1 << 20, &mut wrong).unwrap_err().to_string();
        assert!(message.contains("was to be"), "{message}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let twice = [outlines(&tensors), outlines(&tensors)].concat();
        assert!(save_shards(dir.path(), twice, 1 << 20, &mut give(&tensors)).is_err());
    }
}
