use candle_core::quantized::{GgmlDType, QTensor};

use super::*;
use crate::rng::Rng;

fn ggml(format: BlockFormat) -> GgmlDType {
    match format {
        BlockFormat::Q8_0 => GgmlDType::Q8_0,
        BlockFormat::Q4_0 => GgmlDType::Q4_0,
        BlockFormat::Q4_1 => GgmlDType::Q4_1,
        BlockFormat::Q4K => GgmlDType::Q4K,
        BlockFormat::Q5K => GgmlDType::Q5K,
        BlockFormat::Q6K => GgmlDType::Q6K,
    }
}

/// Values as weights are: normal, some columns larger, one row constant, one zero.
fn weights(rows: usize, k: usize) -> Vec<f32> {
    let mut rng = Rng::new(7);
    let mut x: Vec<f32> = (0..rows * k).map(|i| (rng.normal() * if i % 61 == 0 { 4.0 } else { 0.5 }) as f32).collect();
    x[..k].fill(0.25);
    x[k..2 * k].fill(0.0);
    x[2 * k..3 * k].iter_mut().for_each(|v| *v = v.abs() + 1.0);
    x
}

fn squared(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

#[test]
fn candle_reads_the_same_values_out_of_the_same_bytes() -> Result<()> {
    let x = weights(8, 512);
    for format in BlockFormat::ALL {
        let theirs = QTensor::quantize(&Tensor::new(x.as_slice(), &Device::Cpu)?.reshape((8, 512))?, ggml(format))?;
        let bytes = theirs.data()?.to_vec();
        let blocks = Blocks::new(format, vec![8, 512], bytes)?;
        let want = theirs.dequantize(&Device::Cpu)?.to_vec2::<f32>()?;
        assert_eq!(blocks.dequantise()?.to_vec2::<f32>()?, want, "{}", format.name());
    }
    Ok(())
}

#[test]
fn quantising_errs_no_more_than_candle_does() -> Result<()> {
    let x = weights(16, 512);
    let tensor = Tensor::new(x.as_slice(), &Device::Cpu)?.reshape((16, 512))?;
    for format in [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q4K] {
        let ours = Blocks::quantise(&tensor, format)?.dequantise()?.flatten_all()?.to_vec1::<f32>()?;
        let theirs = QTensor::quantize(&tensor, ggml(format))?.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        let (ours, theirs) = (squared(&ours, &x), squared(&theirs, &x));
        assert!(ours <= 1.001 * theirs, "{}: {ours} against {theirs}", format.name());
        assert!(ours > 0.0 && ours / squared(&x, &[0.0; 16 * 512]) < 0.02, "{}: {ours}", format.name());
    }
    Ok(())
}

#[test]
fn values_on_the_grid_come_back_as_they_are() -> Result<()> {
    let mut rng = Rng::new(1);
    let q: Vec<f32> = (0..256).map(|i| if i < 2 { [0.0, 15.0][i] } else { rng.below(16) as f32 }).collect();
    for format in [BlockFormat::Q4_1, BlockFormat::Q4_0] {
        let x: Vec<f32> = q
            .chunks(32)
            .flat_map(|q| {
                let mut x: Vec<f32> = q.iter().map(|q| 0.5 * (q - 8.0)).collect();
                (x[0], x[1]) = (-4.0, 3.5);
                x
            })
            .collect();
        let mut bytes = vec![0; 8 * format.bytes()];
        format.quantise(&x, &mut bytes)?;
        let mut back = vec![0f32; 256];
        format.dequantise(&bytes, &mut back);
        assert_eq!(x, back, "{}", format.name());
    }
    Ok(())
}

#[test]
fn what_cannot_be_is_an_error() {
    let mut out = [0u8; 34];
    assert!(BlockFormat::Q8_0.quantise(&[f32::NAN; 32], &mut out).is_err());
    assert!(BlockFormat::Q8_0.quantise(&[1.0; 31], &mut out).is_err());
    assert!(BlockFormat::Q6K.quantise(&[1.0; 256], &mut [0; 210]).is_err());
    assert!(Blocks::new(BlockFormat::Q4K, vec![2, 128], vec![0; 144]).is_err());
    assert!(Blocks::new(BlockFormat::Q4K, vec![2, 256], vec![0; 144]).is_err());
    assert!(Blocks::new(BlockFormat::Q8_0, vec![usize::MAX, 64], Vec::new()).is_err());
    assert_eq!(BlockFormat::from_name("Q4_K"), Some(BlockFormat::Q4K));
    assert_eq!(BlockFormat::from_name("q3_k"), None);
}

#[test]
fn a_file_holds_blocks() -> Result<()> {
    use crate::checkpoint::{Checkpoint, save};
    let x = Tensor::new(weights(8, 64), &Device::Cpu)?.reshape((2, 4, 64))?;
    let blocks = Blocks::quantise(&x, BlockFormat::Q4_1)?;
    let (tensor, (key, value)) = blocks.to_safetensors("w")?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("model.safetensors");
    save(&path, &[("w".into(), tensor.clone()), ("x".into(), x)], &[(&key, &value)])?;
    let file = Checkpoint::open(&path)?;
    let info = file.info("w").unwrap();
    assert_eq!((info.shape.as_slice(), info.values(), info.blocks), (&[2, 4, 64][..], 512, Some(BlockFormat::Q4_1)));
    let values = |t: &Tensor| t.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>();
    assert_eq!(values(&file.read("w", &[2, 4, 64], DType::F32, &Device::Cpu)?)?, values(&blocks.dequantise()?)?);
    assert_eq!(values(&file.read_any("w")?)?, values(&blocks.dequantise()?)?);
    let half = file.read("w", &[2, 4, 64], DType::BF16, &Device::Cpu)?;
    assert_eq!(values(&half)?, values(&blocks.dequantise()?.to_dtype(DType::BF16)?)?);
    assert_eq!(file.blocks("w", &[2, 4, 64])?.unwrap().data(), blocks.data());
    assert!(file.blocks("x", &[2, 4, 64])?.is_none());
    assert!(file.blocks("w", &[2, 4, 32]).is_err());
    // Marks that do not fit their tensor.
    for (key, value) in [("blocks.w", "q4_k"), ("blocks.w", "q9"), ("blocks.v", "q4_1"), ("blocks.y", "q4_1")] {
        let tensors = [("w".to_string(), tensor.clone()), ("y".into(), Tensor::zeros(20, DType::F32, &Device::Cpu)?)];
        save(&path, &tensors, &[(key, value)])?;
        let error = Checkpoint::open(&path).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(&key[7..]), "{error}");
    }
    Ok(())
}
