//! The mean of several checkpoints, which is often better than each of them (Izmailov et al., arXiv 1803.05407).

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result, Tensor, bail};
use moesaic_kernels::checkpoint::{Checkpoint, save};

use super::at;

/// Writes the mean of the tensors of all `checkpoints`, folders or files, to the file `to`. Whole numbers are averaged and
/// rounded down, as the authors of Llama-AVSR do; a mean of floats is made in f64 and keeps the dtype of the first checkpoint.
///
/// # Errors
/// There is no checkpoint, or they do not hold tensors of the same names and shapes: the message names the first that differs.
pub fn average(checkpoints: &[PathBuf], to: &Path) -> Result<()> {
    let all = checkpoints.iter().map(|path| Checkpoint::open(path)).collect::<Result<Vec<_>>>()?;
    let Some((first, others)) = all.split_first() else { bail!("there are no checkpoints to average") };
    for other in others {
        let (missing, surplus) = (
            first.names().find(|name| other.info(name).is_none()),
            other.names().find(|name| first.info(name).is_none()),
        );
        if let Some(name) = missing.or(surplus) {
            bail!("{} and {} are no checkpoints of one model: only one has {name}", first.label(), other.label());
        }
    }
    let mut tensors = Vec::new();
    for name in first.names() {
        let own = first.read_any(name)?;
        let (shape, dtype) = (own.shape().clone(), own.dtype());
        let each = std::iter::once(Ok(own)).chain(others.iter().map(|c| c.read_any(name)));
        let mut float = vec![0f64; shape.elem_count()];
        let mut whole = vec![0i64; if dtype.is_int() { shape.elem_count() } else { 0 }];
        for tensor in each {
            let tensor = tensor?;
            if tensor.shape() != &shape {
                bail!("{name} has shape {:?} in one checkpoint and {:?} in another", shape.dims(), tensor.dims());
            }
            if dtype.is_int() {
                let values = tensor.flatten_all()?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
                whole.iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
            } else {
                let values = tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
                float.iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
            }
        }
        let n = all.len();
        let mean = if dtype.is_int() {
            let mean: Vec<i64> = whole.into_iter().map(|v| v.div_euclid(n as i64)).collect();
            Tensor::from_vec(mean, shape, &Device::Cpu)?
        } else {
            let mean: Vec<f64> = float.into_iter().map(|v| v / n as f64).collect();
            Tensor::from_vec(mean, shape, &Device::Cpu)?
        };
        tensors.push((name.to_string(), mean.to_dtype(dtype)?));
    }
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).map_err(|e| at(folder, e))?;
    }
    save(to, &tensors, &[("format", "pt")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_floats_and_of_whole_numbers() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let write = |name: &str, w: &[f32], n: i64, dtype: DType| -> Result<PathBuf> {
            let path = dir.path().join(name).join("model.safetensors");
            std::fs::create_dir_all(path.parent().unwrap())?;
            let tensors = [
                ("w".to_string(), Tensor::new(w, &Device::Cpu)?.to_dtype(dtype)?),
                ("n".to_string(), Tensor::new(n, &Device::Cpu)?),
            ];
            save(&path, &tensors, &[])?;
            Ok(dir.path().join(name))
        };
        let one = write("one", &[1.0, -2.0], 3, DType::F32)?;
        let two = write("two", &[2.0, -4.0], 4, DType::F32)?;
        let three = write("three", &[6.0, 0.0], 1, DType::F32)?;
        let to = dir.path().join("mean/model.safetensors");
        average(&[one.clone(), two.clone(), three], &to)?;
        let mean = Checkpoint::open(&to)?;
        assert_eq!(mean.read_any("w")?.to_vec1::<f32>()?, [3.0, -2.0]);
        assert_eq!(mean.read_any("n")?.to_scalar::<i64>()?, 2);
        let half = write("half", &[2.0, -4.0], 4, DType::BF16)?;
        average(&[half.clone(), one.clone()], &to)?;
        assert_eq!(Checkpoint::open(&to)?.read_any("w")?.dtype(), DType::BF16);
        let longer = write("longer", &[2.0, -4.0, 1.0], 4, DType::F32)?;
        assert!(average(&[one.clone(), longer], &to).unwrap_err().to_string().contains('w'));
        save(
            &dir.path().join("other.safetensors"),
            &[("v".to_string(), Tensor::zeros(2, DType::F32, &Device::Cpu)?)],
            &[],
        )?;
        assert!(average(&[one, dir.path().join("other.safetensors")], &to).is_err());
        assert!(average(&[], &to).is_err());
        Ok(())
    }
}
