//! Checkpoints in FP8 with scales for squares of 128 by 128 values, as DeepSeek-V3 and Qwen3 are published: they give what their values give.

use std::io::Write;

use candle_core::{DType, Device, Tensor};
use moesaic_kernels::rng::Rng;
use serde_json::{Map, Value, json};

use crate::families::*;

/// One tensor of a file: name, dtype, shape, bytes.
type Entry = (String, &'static str, Vec<usize>, Vec<u8>);

/// A weight as random bytes of FP8, with scales that bring them near its size, and what both stand for.
fn quantised(name: &str, dims: &[usize]) -> ([Entry; 2], Tensor) {
    let (n, k) = (dims[0], dims[1]);
    let mut rng = Rng::named(3, name);
    // NaN is 127 and 255.
    let bytes: Vec<u8> = (0..n * k).map(|_| rng.below(127) as u8 | if rng.chance(0.5) { 128 } else { 0 }).collect();
    let squares = [n.div_ceil(128), k.div_ceil(128)];
    let scales: Vec<f32> = (0..squares[0] * squares[1]).map(|_| (0.0005 + 0.001 * rng.uniform()) as f32).collect();
    // candle's own conversion, apart from ours.
    let plain =
        Tensor::from_raw_buffer(&bytes, DType::F8E4M3, dims, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    let plain = plain.to_vec2::<f32>().unwrap();
    let scaled = plain.iter().enumerate().flat_map(|(r, row)| {
        let scales = &scales;
        row.iter().enumerate().map(move |(c, v)| v * scales[r / 128 * squares[1] + c / 128])
    });
    let values = Tensor::from_iter(scaled, &Device::Cpu).unwrap().reshape(dims).unwrap();
    let of_scales = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
    let entries = [
        (name.to_string(), "F8_E4M3", dims.to_vec(), bytes),
        (format!("{name}_scale_inv"), "F32", squares.to_vec(), of_scales),
    ];
    (entries, values)
}

fn write(saved: &Saved, entries: &[Entry]) {
    let (mut header, mut end) = (Map::new(), 0);
    for (name, dtype, shape, bytes) in entries {
        header
            .insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes.len()] }));
        end += bytes.len();
    }
    let header = Value::Object(header).to_string();
    let mut file = std::fs::File::create(saved.dir.path().join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    entries.iter().for_each(|(.., bytes)| file.write_all(bytes).unwrap());
}

#[test]
fn weights_in_fp8_are_their_scaled_values() {
    let families = ["llama", "mixtral", "qwen3_moe", "deepseek_v3"];
    let rows = [&prompt(2, 5)[..]];
    for mut published in configs().into_iter().filter(|c| families.iter().any(|f| c["model_type"] == *f)) {
        // Wide enough for a second square, which is not full.
        for key in ["intermediate_size", "moe_intermediate_size"] {
            if let Some(size) = published.get_mut(key) {
                *size = json!(136);
            }
        }
        let saved = Saved::new(&published);
        let (mut entries, mut plain) = (Vec::new(), Vec::new());
        for (name, tensor) in &saved.tensors {
            let inside = name.contains(".layers.") && tensor.rank() == 2 && !name.contains("gate.weight");
            if inside {
                let (two, values) = quantised(name, tensor.dims());
                entries.extend(two);
                plain.push((name.clone(), values));
            } else {
                let bytes = values(tensor).iter().flat_map(|v| v.to_le_bytes()).collect();
                entries.push((name.clone(), "F32", tensor.dims().to_vec(), bytes));
                plain.push((name.clone(), tensor.clone()));
            }
        }
        assert!(entries.iter().any(|(_, _, shape, _)| shape[..] == [2, 1]), "{}", saved.label);
        saved.write(&plain);
        let expected = logits(&saved.load(DType::F32), &rows);
        published["quantization_config"] = json!({
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
        });
        std::fs::write(saved.dir.path().join("config.json"), published.to_string()).unwrap();
        write(&saved, &entries);
        let found = logits(&saved.load(DType::F32), &rows);
        assert_eq!(values(&found), values(&expected), "{}", saved.label);
        // Scales that do not belong to the weight, and none.
        let at = entries.iter().position(|(name, ..)| name.ends_with("_scale_inv")).unwrap();
        let (whole, shape) = (entries.clone(), entries[at].2.clone());
        entries[at].2 = vec![shape[0], shape[1], 1];
        write(&saved, &entries);
        assert!(saved.error().contains("one for each 128 x 128"), "{}", saved.error());
        entries = whole;
        entries.remove(at);
        write(&saved, &entries);
        assert!(saved.error().contains("has no") && saved.error().contains("_scale_inv"), "{}", saved.error());
    }
}
