//! Tests of parameters: stacks, orders of axes, names, saving and resuming.

use super::*;
use crate::blocks::Blocks;

#[test]
fn a_stack_of_blocks() -> Result<()> {
    use crate::BlockFormat;
    let w = Params::init(3, &Device::Cpu).tensor("w", [4, 64], Init::Normal(1.0))?.detach();
    let (mut tensors, mut marks) = (Vec::new(), Vec::new());
    for (name, format) in [("a", BlockFormat::Q8_0), ("b", BlockFormat::Q8_0), ("c", BlockFormat::Q4_1)] {
        let (tensor, mark) = Blocks::quantise(&w, format)?.to_safetensors(name)?;
        tensors.push((name.to_string(), tensor));
        marks.push(mark);
    }
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("model.safetensors");
    let marks: Vec<_> = marks.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    crate::checkpoint::save(&path, &tensors, &marks)?;
    let file = Checkpoint::open(&path)?;
    let part = |name: &str| (name.to_string(), vec![4, 64]);
    let p = Params::load(&file, DType::F32, &Device::Cpu);
    let both = p.blocks(&[2, 4, 64], &[part("a"), part("b")])?.unwrap();
    let plain = p.stack(&[2, 4, 64], &[part("a"), part("b")], Init::Zeros)?;
    assert_eq!(both.dequantise()?.to_vec3::<f32>()?, plain.to_vec3::<f32>()?);
    assert!(p.blocks(&[2, 4, 64], &[part("a"), part("c")])?.is_none());
    assert!(p.blocks(&[4, 64], &[("a".into(), vec![4, 32])]).is_err());
    assert_eq!(p.unused(), ["c"]);
    assert!(Params::frozen(&file, DType::F32, &Device::Cpu).blocks(&[4, 64], &[part("a")])?.is_none());
    Ok(())
}

#[test]
fn a_stack_of_input_rows_is_turned_and_trained_as_published() -> Result<()> {
    let params = Params::init(5, &Device::Cpu);
    let turned = params.input_major("w", [2, 4, 3], Init::Normal(1.0))?;
    let (_, var) = params.variables().remove(0);
    assert_eq!((turned.dims(), var.dims()), (&[2, 4, 3][..], &[2, 3, 4][..]));
    // The view follows the variable, and gradients reach it.
    var.set(&(var.as_tensor() * 2.0)?)?;
    let same = |a: &Tensor, b: &Tensor| -> Result<bool> {
        Ok(a.flatten_all()?.to_vec1::<f32>()? == b.flatten_all()?.to_vec1::<f32>()?)
    };
    assert!(same(&turned, &var.transpose(1, 2)?)?);
    let grads = (&turned * &turned)?.sum_all()?.backward()?;
    assert!(same(grads.get(&var).unwrap(), &(var.as_tensor() * 2.0)?)?);
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("model.safetensors");
    crate::checkpoint::save(&path, &params.published(|v| Some(v.as_tensor().clone()))?, &[("format", "pt")])?;
    let loaded = Params::load(&Checkpoint::open(&path)?, DType::F32, &Device::Cpu);
    let again = loaded.input_major("w", [2, 4, 3], Init::Zeros)?;
    assert!(again.is_contiguous() && same(&again, &turned)?);
    Ok(())
}

#[test]
fn tensors_of_another_layout_are_renamed() -> Result<()> {
    let params = Params::init(1, &Device::Cpu);
    let moved = params.renamed(|name| format!("outer.{name}"));
    moved.pp("a").pp("").tensor("w", [1], Init::Ones)?;
    params.pp("a").tensor("w", [1], Init::Ones)?;
    let names: Vec<_> = params.variables().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["a.w", "outer.a.w"]);
    Ok(())
}

#[test]
fn a_stack_is_written_back_under_the_published_names() -> Result<()> {
    let parts = [("a.w".to_string(), vec![2, 3]), ("b.w".to_string(), vec![2, 3])];
    let params = Params::init(3, &Device::Cpu);
    let stack = params.pp("layer").stack(&[2, 2, 3], &parts, Init::Normal(0.1))?;
    params.tensor("norm", [4], Init::Ones)?;
    let out = params.published(|v| Some(v.as_tensor().clone()))?;
    assert_eq!(out.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["layer.a.w", "layer.b.w", "norm"]);
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("model.safetensors");
    crate::checkpoint::save(&path, &out, &[("format", "pt")])?;
    let loaded = Params::load(&Checkpoint::open(&path)?, DType::F32, &Device::Cpu);
    let again = loaded.pp("layer").stack(&[2, 2, 3], &parts, Init::Zeros)?;
    assert_eq!(stack.flatten_all()?.to_vec1::<f32>()?, again.flatten_all()?.to_vec1::<f32>()?);
    assert_eq!(loaded.unused(), ["norm"]);
    // A mis-shaped part names the tensor.
    let error = loaded.tensor("norm", [5], Init::Ones).unwrap_err().to_string();
    assert!(error.contains("norm") && error.contains('5') && error.contains('4'), "{error}");
    // A part of it as variables, the whole saved.
    let some = Params::resume_some(&Checkpoint::open(&path)?, &Device::Cpu, |name| name == "layer.b.w");
    some.pp("layer").stack(&[2, 2, 3], &parts, Init::Zeros)?;
    some.tensor("norm", [4], Init::Zeros)?;
    assert_eq!(some.variables().len(), 1);
    let names = |all: Vec<(String, Tensor)>| all.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(some.published(|v| Some(v.as_tensor().clone()))?), ["layer.a.w", "layer.b.w"]);
    assert_eq!(names(some.kept(DType::BF16)?), ["norm"]);
    Ok(())
}

#[test]
fn places_of_a_grid() -> Result<()> {
    let init = Init::Grid { lead: 1, side: 3 };
    let rows = Params::init(3, &Device::Cpu).tensor("positions", [10, 8], init)?.detach().to_vec2::<f32>()?;
    let (sin, cos) = (f32::sin, f32::cos);
    assert_eq!(rows[0], [0.0; 8], "a class token has no place");
    // Cell 5 is in row 1, column 2; the second wave is a hundred times as long.
    let wanted = [sin(1.0), sin(0.01), cos(1.0), cos(0.01), sin(2.0), sin(0.02), cos(2.0), cos(0.02)];
    for (found, wanted) in rows[6].iter().zip(wanted) {
        assert!((found - wanted).abs() < 1e-6, "{:?}", rows[6]);
    }
    // A width that four does not divide.
    let odd =
        Params::init(3, &Device::Cpu).tensor("positions", [4, 6], Init::Grid { lead: 0, side: 2 })?.to_vec2::<f32>()?;
    assert_eq!(odd[3], [sin(1.0), cos(1.0), sin(1.0), cos(1.0), 0.0, 0.0]);
    Ok(())
}
