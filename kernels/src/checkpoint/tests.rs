//! One table for the ways to fail, and round trips for what works. Messages are part of the contract: each row names words
//! that must be in them.

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::*;

/// A safetensors file made by hand, so that it can be wrong.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn one(entry: &str, data: usize) -> Vec<u8> {
    file(&format!(r#"{{"w":{entry}}}"#), &vec![0; data])
}

fn message<T>(result: Result<T>) -> String {
    let text = result.err().expect("this must fail").to_string();
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    assert!(text.len() < 1000, "short: {text}");
    text
}

fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn broken_files_are_refused_with_their_reason() {
    let long = "x".repeat(3000);
    let header = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let whole = file(header, &[0; 8]);
    let mut long_header = whole.clone();
    long_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut past_end = whole.clone();
    past_end[..8].copy_from_slice(&1000u64.to_le_bytes());
    let deep = format!(r#"{{"w":{}"#, r#"{"x":["#.repeat(10_000));
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{a}}},"b":{{"dtype":"F32","shape":[2],"data_offsets":{b}}}}}"#
        )
    };
    // Weights in FP8, and their scales.
    let fp8 = |shape: &str, bytes: usize, scales: &str, count: usize| {
        let end = bytes + 4 * count;
        let header = format!(
            r#"{{"w":{{"dtype":"F8_E4M3","shape":{shape},"data_offsets":[0,{bytes}]}},"w_scale_inv":{{"dtype":"F32","shape":{scales},"data_offsets":[{bytes},{end}]}}}}"#
        );
        file(&header, &vec![0; end])
    };
    let rows: Vec<(&str, Vec<u8>, Vec<&str>)> = vec![
        ("empty", vec![], vec!["has 0 bytes", "download it again"]),
        ("seven bytes", vec![0; 7], vec!["too few"]),
        ("header too long", long_header, vec!["says its header has", "more than 100000000"]),
        ("header past the end", past_end, vec!["shorter than its header says", "download it again"]),
        ("data cut off", whole[..whole.len() - 1].to_vec(), vec!["shorter than its header says", "download it again"]),
        ("data too long", [&whole[..], &[0]].concat(), vec!["longer than its header says"]),
        ("no JSON", file("weights!", &[]), vec!["not what safetensors allows"]),
        ("header cut off", file(&header[..20], &[]), vec!["not what safetensors allows"]),
        ("not UTF-8", file("{\"w\u{0}", &[]), vec!["not what safetensors allows"]),
        ("a list", file("[]", &[]), vec!["a map from tensor names"]),
        ("nested deeply", file(&deep, &[]), vec!["not what safetensors allows"]),
        ("no dtype", one(r#"{"shape":[2],"data_offsets":[0,8]}"#, 8), vec!["missing field `dtype`"]),
        ("dtype twice", one(r#"{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, 8), vec!["duplicate"]),
        ("no shape", one(r#"{"dtype":"F32","data_offsets":[0,8]}"#, 8), vec!["missing field `shape`"]),
        ("no offsets", one(r#"{"dtype":"F32","shape":[2]}"#, 8), vec!["missing field `data_offsets`"]),
        (
            "unknown dtype",
            one(r#"{"dtype":"F8_E5M2","shape":[2],"data_offsets":[0,2]}"#, 2),
            vec!["\"w\"", "F8_E5M2", "supported: F64"],
        ),
        (
            "FP8 without scales",
            one(r#"{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]}"#, 4),
            vec!["has no", "w_scale_inv"],
        ),
        ("FP8, one axis", fp8("[4]", 4, "[1]", 1), vec!["expected a matrix"]),
        ("FP8, three axes", fp8("[1,2,2]", 4, "[1,1,1]", 1), vec!["expected a matrix"]),
        ("FP8, no rows", fp8("[0,4]", 0, "[0,1]", 0), vec!["expected a matrix"]),
        ("FP8, no columns", fp8("[1048577,0]", 0, "[8193,0]", 0), vec!["expected a matrix"]),
        ("FP8, other squares", fp8("[4,4]", 16, "[4,4]", 16), vec!["one for each 128 x 128"]),
        ("endless dtype", one(&format!(r#"{{"dtype":"{long}","shape":[2],"data_offsets":[0,2]}}"#), 2), vec!["xxx..."]),
        ("negative length", one(r#"{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#, 8), vec!["invalid value"]),
        ("fractional length", one(r#"{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}"#, 8), vec!["invalid type"]),
        (
            "shape wraps",
            one(r#"{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}"#, 0),
            vec!["too large to exist"],
        ),
        (
            "shape wraps behind a 0",
            one(r#"{"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}"#, 0),
            vec!["too large to exist"],
        ),
        (
            "bytes wrap",
            one(r#"{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}"#, 0),
            vec!["too large to exist"],
        ),
        (
            "17 axes",
            one(r#"{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}"#, 1),
            vec!["more than 16 axes"],
        ),
        (
            "size mismatch",
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#, 4),
            vec!["\"w\"", "takes 8 bytes", "0 to 4"],
        ),
        ("offsets turned", one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#, 8), vec!["offsets are 8 to 0"]),
        (
            "offsets at the limit",
            one(r#"{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}"#, 1),
            vec!["leaves a gap"],
        ),
        (
            "three offsets",
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}"#, 8),
            vec!["not what safetensors allows"],
        ),
        ("gap", file(&two("[0,8]", "[12,20]"), &[0; 20]), vec!["\"b\"", "gap"]),
        ("gap at the start", one(r#"{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#, 12), vec!["gap"]),
        ("overlap", file(&two("[0,8]", "[4,12]"), &[0; 12]), vec!["\"b\"", "overlaps"]),
        ("same place", file(&two("[0,8]", "[0,8]"), &[0; 8]), vec!["overlaps"]),
        (
            "name twice",
            file(&two("[0,8]", "[8,16]").replace(r#""b""#, r#""a""#), &[0; 16]),
            vec!["\"a\"", "stands twice"],
        ),
        (
            "endless name",
            file(&two("[0,8]", "[4,12]").replace(r#""b""#, &format!("\"{long}\"")), &[0; 12]),
            vec!["xxx...", "overlaps"],
        ),
        ("name of two lines", file(&two("[0,8]", "[4,12]").replace(r#""b""#, r#""b\nc""#), &[0; 12]), vec![r"b\nc"]),
        ("metadata twice", file(r#"{"__metadata__":{},"__metadata__":{}}"#, &[]), vec!["__metadata__ stands twice"]),
        ("metadata of numbers", file(r#"{"__metadata__":{"a":1}}"#, &[]), vec!["expected a string"]),
        ("LFS pointer", b"version https://git-lfs.github.com/spec/v1\n".to_vec(), vec!["Git LFS pointer"]),
        ("pickle", b"PK\x03\x04\x14\0\0\x08 and so on".to_vec(), vec!["pickle", "convert"]),
        ("web page", b"<!DOCTYPE html><html>".to_vec(), vec!["web page"]),
        ("GGUF", b"GGUF\x03\0\0\0 and so on".to_vec(), vec!["GGUF"]),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    for (what, bytes, words) in rows {
        std::fs::write(&path, &bytes).unwrap();
        let from_disk = message(Checkpoint::open(dir.path()));
        let from_memory = message(Checkpoint::from_bytes("inside", bytes));
        let at = path.display().to_string();
        assert!(
            from_disk.starts_with(&at) && from_memory.starts_with("inside: "),
            "{what}: {from_disk} / {from_memory}"
        );
        assert_eq!(from_disk.replace(&at, ""), from_memory.replace("inside", ""), "{what}");
        says(&from_disk, &words);
    }
}

#[test]
fn folders_and_paths_without_weights_say_what_is_there() {
    let root = tempfile::tempdir().unwrap();
    let sub = |name: &str, files: &[&str]| {
        let dir = root.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        files.iter().for_each(|f| std::fs::write(dir.join(f), b"x").unwrap());
        dir
    };
    std::fs::create_dir_all(root.path().join("nested/model.safetensors")).unwrap();
    let pickle = sub("pickle", &["config.json", "pytorch_model.bin"]);
    let rows = [
        (sub("empty", &[]), vec!["the folder is empty"]),
        (pickle.join("pytorch_model.bin"), vec!["pickle", "convert"]),
        (pickle, vec!["\"pytorch_model.bin\"", "pickle", "convert"]),
        (sub("other name", &["adapter.safetensors"]), vec!["no model.safetensors, but \"adapter.safetensors\""]),
        (sub("config only", &["config.json"]), vec!["no model.safetensors", "it holds \"config.json\""]),
        (root.path().join("nothing"), vec!["no such file or folder"]),
        (root.path().join("nothing.safetensors"), vec!["no such file or folder"]),
        (root.path().join("nested"), vec!["is a folder where a safetensors file should be"]),
    ];
    for (path, words) in rows {
        let text = message(Checkpoint::open(&path));
        assert!(text.starts_with(&path.display().to_string()), "{text}");
        says(&text, &words);
    }
}

/// Two shards and an index; `index` is written as it is.
fn sharded(index: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let dev = &Device::Cpu;
    let part = |values: &[f32]| Tensor::new(values, dev).unwrap();
    save(&dir.path().join("s1.safetensors"), &[("a".into(), part(&[1., 2.])), ("both".into(), part(&[1.]))], &[])
        .unwrap();
    save(&dir.path().join("s2.safetensors"), &[("b".into(), part(&[3.])), ("both".into(), part(&[2.]))], &[]).unwrap();
    std::fs::write(dir.path().join(INDEX_FILE), index).unwrap();
    dir
}

#[test]
fn shards_are_joined_as_the_index_says() {
    let dir = sharded(
        r#"{"metadata":{"total_size":16},"weight_map":{"a":"s1.safetensors","b":"s2.safetensors","both":"s2.safetensors"}}"#,
    );
    for path in [dir.path().to_path_buf(), dir.path().join(INDEX_FILE)] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "both"]);
        assert_eq!(checkpoint.read_any("both").unwrap().to_vec1::<f32>().unwrap(), [2.]);
        assert_eq!(checkpoint.read_any("a").unwrap().to_vec1::<f32>().unwrap(), [1., 2.]);
        assert_eq!(checkpoint.files().count(), 2);
        let used = ["a", "b"].map(String::from).into();
        assert_eq!(checkpoint.unused(&used), ["both"]);
    }
}

#[test]
fn a_wrong_index_is_refused() {
    let outside = r#"a shard must be a .safetensors file beside the index"#;
    let map = |shard: &str| format!(r#"{{"weight_map":{{"a":"{shard}","both":"s1.safetensors"}}}}"#);
    let rows = [
        ("{".into(), "is not a shard index"),
        ("{}".into(), "missing field `weight_map`"),
        (r#"{"weight_map":{}}"#.into(), "names no tensors"),
        (r#"{"weight_map":{"a":1}}"#.into(), "expected a string"),
        (r#"{"weight_map":{"a":"s1.safetensors","a":"s2.safetensors"}}"#.into(), "stands twice"),
        (r#"{"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}}"#.into(), "stands in an earlier shard too"),
        (map("../s1.safetensors"), outside),
        (map("/etc/s1.safetensors"), outside),
        (map("sub/s1.safetensors"), outside),
        (map("./s1.safetensors"), outside),
        (map(r"sub\\s1.safetensors"), outside),
        (map(r"c:s1.safetensors"), outside),
        (map("s1.bin"), outside),
        (map(".."), outside),
        (map(""), outside),
        (map("s3.safetensors"), r#"names "s3.safetensors", which is not there"#),
        (
            r#"{"weight_map":{"a":"s2.safetensors","both":"s1.safetensors"}}"#.into(),
            r#"says that tensor "a" is in "s2.safetensors""#,
        ),
    ];
    for (index, words) in rows {
        let dir = sharded(&index);
        let text = message(Checkpoint::open(dir.path()));
        says(&text, &[words]);
        assert!(text.contains(&dir.path().display().to_string()), "{text}");
    }
}

#[test]
fn reading_names_what_was_expected_and_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let dev = &Device::Cpu;
    let tensors = [
        ("model.norm.weight".to_string(), Tensor::new(&[1f32, 2.], dev).unwrap()),
        ("model.layers.0.gate.weight".to_string(), Tensor::zeros((2, 3), DType::F32, dev).unwrap()),
        ("ids".to_string(), Tensor::new(&[1i64, -1], dev).unwrap()),
    ];
    save(&path, &tensors, &[("format", "pt")]).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.metadata().get("format").map(String::as_str), Some("pt"));
    let read = |name: &str, shape: &[usize], dtype| message(checkpoint.read(name, shape, dtype, dev));
    let label = dir.path().display().to_string();
    let rows = [
        (
            read("model.nrom.weight", &[2], DType::F32),
            vec![&label[..], "model.nrom.weight", "[2] is missing", "nearest name: \"model.norm.weight\" [2]"],
        ),
        (read("norm.weight", &[2], DType::F32), vec!["nearest name: \"model.norm.weight\""]),
        (read("lm_heads.7.out_layer.bias", &[2], DType::F32), vec!["none of its 3 names is like it"]),
        (read(&"y".repeat(5000), &[2], DType::F32), vec!["yyy..."]),
        (
            read("model.norm.weight", &[3], DType::F32),
            vec!["model.safetensors", "\"model.norm.weight\"", "expected shape [3], found [2]"],
        ),
        (read("ids", &[2], DType::F32), vec!["\"ids\"", "i64", "cannot be read as f32"]),
        (read("model.norm.weight", &[2], DType::I64), vec!["cannot be read as i64"]),
        (read("ids", &[2], DType::U32), vec!["\"ids\"", "value -1 does not fit u32"]),
        (message(checkpoint.read_any("idz")), vec!["\"idz\" is missing", "nearest name: \"ids\""]),
        (
            message(checkpoint.read_f32_into("model.norm.weight", &[2], &mut [0.; 3])),
            vec!["holds 3 values, the tensor has 2"],
        ),
        (
            message(checkpoint.read_f32_into("model.norm.weight", &[1, 2], &mut [0.; 2])),
            vec!["expected shape [1, 2], found [2]"],
        ),
    ];
    for (text, words) in rows {
        says(&text, &words);
    }
    // Cut off, or removed, between opening and reading.
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    says(&message(checkpoint.read_any("ids")), &["has changed since it was opened"]);
    std::fs::remove_file(&path).unwrap();
    says(&message(checkpoint.read_any("ids")), &["cannot be read"]);
}

/// One tensor of each dtype, with values at the ends of its range.
fn all_dtypes() -> Vec<(String, Tensor)> {
    let dev = &Device::Cpu;
    let halves = [f16::MAX, f16::MIN_POSITIVE, f16::NEG_INFINITY].map(|v| v.to_f32());
    let brains = [bf16::MAX, bf16::MIN_POSITIVE, bf16::INFINITY].map(|v| v.to_f32());
    let all = [
        ("f64", Tensor::new(&[[1.5f64, f64::MAX], [-0.0, 5e-324]], dev)),
        ("f32", Tensor::new(&[f32::MIN, 1e-45, std::f32::consts::PI], dev)),
        ("f16", Tensor::new(&halves.map(f16::from_f32), dev)),
        ("bf16", Tensor::new(&brains.map(bf16::from_f32), dev)),
        ("i64", Tensor::new(&[i64::MIN, i64::MAX], dev)),
        ("i32", Tensor::new(&[i32::MIN, i32::MAX], dev)),
        ("i16", Tensor::new(&[i16::MIN, i16::MAX, 3], dev)),
        ("u32", Tensor::new(&[u32::MAX], dev)),
        ("u8", Tensor::new(&[0u8, 255, 7], dev)),
        ("scalar", Tensor::new(2.5f32, dev)),
        ("none", Tensor::zeros((0, 4), DType::BF16, dev)),
    ];
    all.into_iter().map(|(name, t)| (name.to_string(), t.unwrap())).collect()
}

fn same(a: &Tensor, b: &Tensor) {
    assert_eq!((a.dtype(), a.dims()), (b.dtype(), b.dims()));
    assert_eq!(format!("{:?}", bits(a)), format!("{:?}", bits(b)));
}

/// The values, wide enough that nothing is lost.
fn bits(t: &Tensor) -> Vec<u64> {
    let flat = t.flatten_all().unwrap();
    match t.dtype() {
        DType::I64 => flat.to_vec1::<i64>().unwrap().into_iter().map(|v| v as u64).collect(),
        _ => flat.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap().into_iter().map(f64::to_bits).collect(),
    }
}

#[test]
fn every_dtype_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let tensors = all_dtypes();
    let mut turned = tensors.clone();
    turned.reverse();
    save(&path, &tensors, &[("b", "2"), ("a", "1")]).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    save(&path, &turned, &[("a", "1"), ("b", "2")]).unwrap();
    assert_eq!(bytes, std::fs::read(&path).unwrap(), "the file must not depend on the order given");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");

    // The format's own crate reads what we write, and we read what it writes.
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.len(), tensors.len());
    let again = safetensors::serialize(tensors.iter().map(|(n, t)| (n.as_str(), t)), None).unwrap();
    for checkpoint in [
        Checkpoint::open(&path).unwrap(),
        Checkpoint::from_bytes("ours", bytes.clone()).unwrap(),
        Checkpoint::from_bytes("theirs", again).unwrap(),
    ] {
        for (name, tensor) in &tensors {
            same(&checkpoint.read_any(name).unwrap(), tensor);
            same(&checkpoint.read(name, tensor.dims(), tensor.dtype(), &Device::Cpu).unwrap(), tensor);
        }
    }
}

#[test]
fn truth_values_read_as_bytes() {
    let bytes = file(r#"{"w":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}}"#, &[1, 0, 1]);
    let checkpoint = Checkpoint::from_bytes("bool", bytes).unwrap();
    assert_eq!(checkpoint.read_any("w").unwrap().to_vec1::<u8>().unwrap(), [1, 0, 1]);
    assert_eq!(checkpoint.read("w", &[3], DType::I64, &Device::Cpu).unwrap().to_vec1::<i64>().unwrap(), [1, 0, 1]);
}

#[test]
fn floats_convert_as_candle_converts_them() {
    // More values than one chunk holds, so that the chunks' borders are crossed.
    let count = CHUNK / 2 + 77;
    let mut rng = crate::rng::Rng::new(3);
    let values: Vec<f32> = (0..count).map(|_| (rng.normal() * 100.0) as f32).collect();
    let base = Tensor::from_vec(values, count, &Device::Cpu).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let floats = [DType::F64, DType::F32, DType::F16, DType::BF16];
    let stored: Vec<_> = floats.iter().map(|d| (d.as_str().to_string(), base.to_dtype(*d).unwrap())).collect();
    save(&path, &stored, &[]).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    for (name, tensor) in &stored {
        for to in floats {
            let got = checkpoint.read(name, &[count], to, &Device::Cpu).unwrap();
            let through_f32 = tensor.to_dtype(DType::F32).unwrap().to_dtype(to).unwrap();
            let expected = if tensor.dtype() == to { tensor } else { &through_f32 };
            assert_eq!(bits(&got), bits(expected), "{name} to {to:?}");
        }
        let mut stack = vec![7f32; count + 2];
        checkpoint.read_f32_into(name, &[count], &mut stack[1..=count]).unwrap();
        let expected = tensor.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        assert!(stack[0] == 7. && stack[count + 1] == 7. && stack[1..=count] == expected, "{name} into its place");
    }
}

#[test]
fn views_are_written_as_they_look() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let base = Tensor::arange(0f32, 24., &Device::Cpu).unwrap().reshape((4, 6)).unwrap();
    let views = [
        ("transposed".to_string(), base.t().unwrap()),
        ("narrowed".to_string(), base.narrow(0, 1, 2).unwrap()),
        ("column".to_string(), base.narrow(1, 2, 1).unwrap()),
        ("broadcast".to_string(), base.narrow(0, 0, 1).unwrap().broadcast_as((3, 6)).unwrap()),
    ];
    save(&path, &views, &[]).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    for (name, view) in &views {
        same(&checkpoint.read_any(name).unwrap(), &view.contiguous().unwrap());
    }
}

#[test]
fn what_cannot_be_written_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let one = |name: &str| (name.to_string(), Tensor::new(1f32, &Device::Cpu).unwrap());
    let plain = dir.path().join("file");
    std::fs::write(&plain, b"x").unwrap();
    let target = dir.path().join("m.safetensors");
    let rows = [
        (&target, vec![one("a"), one("a")], "stands twice"),
        (&target, vec![one("__metadata__")], "is reserved"),
        (&dir.path().to_path_buf(), vec![one("a")], "it is a folder"),
    ];
    for (path, tensors, words) in rows {
        says(&message(save(path, &tensors, &[])), &[&path.display().to_string(), words]);
    }
    for path in [dir.path().join("no/such/folder/m.safetensors"), plain.join("m.safetensors")] {
        says(&message(save(&path, &[one("a")], &[])), &["cannot be written", "choose a folder"]);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn threads_share_one_checkpoint() {
    fn shareable<T: Send + Sync + Clone>(_: &T) {}
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let tensors = all_dtypes();
    save(&path, &tensors, &[]).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    shareable(&checkpoint);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (checkpoint, tensors) = (checkpoint.clone(), &tensors);
            scope.spawn(move || tensors.iter().for_each(|(name, t)| same(&checkpoint.read_any(name).unwrap(), t)));
        }
    });
}
