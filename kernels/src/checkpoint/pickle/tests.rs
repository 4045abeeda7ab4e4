//! Checkpoints that torch wrote (`tools/pickle_cases.py`), and such as nobody should write.

use std::io::{Cursor, Write};

use candle_core::{DType, Device, Result};
use zip::write::SimpleFileOptions;

use super::machine::run;
use super::*;

macro_rules! file {
    ($name:literal) => {
        include_bytes!(concat!("../../../../tests/pickles/", $name)).as_slice()
    };
}

fn open(bytes: impl Into<Vec<u8>>) -> Result<Pickle> {
    Pickle::from_bytes("m.pt", bytes.into())
}

fn refusal(bytes: impl Into<Vec<u8>>) -> String {
    let message = open(bytes).expect_err("refused").to_string();
    assert!(message.starts_with("m.pt: ") && !message.contains('\n') && message.len() < 600, "{message}");
    message
}

/// An archive as torch writes it.
fn archive(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut add = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("a/{name}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    };
    add("data.pkl", pickle);
    storages.iter().for_each(|(key, bytes)| add(&format!("data/{key}"), bytes));
    zip.finish().unwrap().into_inner()
}

fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn int(value: i64) -> Vec<u8> {
    [[0x8a, 8].as_slice(), &value.to_le_bytes()].concat()
}

fn ints(values: &[i64]) -> Vec<u8> {
    [b"(".to_vec(), values.iter().flat_map(|v| int(*v)).collect(), b"t".to_vec()].concat()
}

/// A float tensor in storage `0`.
fn tensor(count: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("0"),
        text("cpu"),
        int(count),
        b"tQ".to_vec(),
        int(offset),
        ints(shape),
        ints(strides),
        b"\x89ccollections\nOrderedDict\n)RtR".to_vec(),
    ]
    .concat()
}

/// A pickle of one dict of these items.
fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(name, value)| [text(name), value.clone()].concat()).collect();
    [b"\x80\x02}(".to_vec(), items, b"u.".to_vec()].concat()
}

fn bytes(n: usize) -> Vec<u8> {
    (0..n).flat_map(|v| (v as f32).to_le_bytes()).collect()
}

/// All that the script put into `plain()`.
fn is_plain(checkpoint: &Checkpoint) -> Result<()> {
    let floats = |name: &str| checkpoint.read_any(name)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let shape = |name: &str| checkpoint.info(name).map(|info| (info.shape.clone(), info.dtype)).expect(name);
    let w: Vec<f64> = (0..12).map(|v| f64::from(v) / 2.0).collect();
    assert_eq!((floats("w")?, shape("w")), (w.clone(), (vec![3, 4], DType::F32)));
    let turned: Vec<f64> = (0..12).map(|i| w[i % 3 * 4 + i / 3]).collect();
    assert_eq!((floats("turned")?, shape("turned").0), (turned, vec![4, 3]));
    assert_eq!((floats("cut")?, shape("cut").0), (vec![2.5, 3.0, 4.5, 5.0], vec![2, 2]));
    assert_eq!((floats("narrow")?, shape("narrow").1), (vec![1.5, -2.0], DType::BF16));
    assert_eq!((floats("half")?, shape("half").1), (vec![0.25, 0.5], DType::F16));
    assert_eq!(checkpoint.read_any("ids")?.to_vec1::<i64>()?, [3, -1, 1 << 40]);
    assert_eq!(checkpoint.read_any("turned_ids")?.to_vec2::<i64>()?, [[0, 3], [1, 4], [2, 5]]);
    assert_eq!(checkpoint.read_any("mask")?.to_vec1::<u8>()?, [1, 0, 1]);
    assert_eq!((floats("scalar")?, shape("scalar").0), (vec![2.5], vec![]));
    assert_eq!((floats("empty")?, shape("empty").0), (vec![], vec![0, 3]));
    assert_eq!(floats("trained")?, [7.0]);
    // Through another dtype, and into a place.
    let again = checkpoint.read("turned", &[4, 3], DType::F16, &Device::Cpu)?;
    assert_eq!(again.to_dtype(DType::F32)?.to_vec2::<f32>()?[1], [0.5, 2.5, 4.5]);
    let mut place = [0f32; 4];
    checkpoint.read_f32_into("cut", &[2, 2], &mut place)?;
    assert_eq!((place, checkpoint.names().count()), ([2.5, 3.0, 4.5, 5.0], 11));
    Ok(())
}

#[test]
fn tensors_of_torch_come_out_as_they_went_in() -> Result<()> {
    for bytes in [file!("plain.pt"), file!("protocol4.pt")] {
        let pickle = open(bytes)?;
        assert_eq!((pickle.key(), pickle.config(), pickle.skipped().len()), (None, None, 0));
        is_plain(pickle.checkpoint())?;
    }
    Ok(())
}

#[test]
fn fairseq_keeps_settings_beside_weights() -> Result<()> {
    let pickle = open(file!("fairseq.pt"))?;
    assert_eq!(pickle.key(), Some("model"));
    let config = pickle.config().expect("settings");
    assert_eq!(
        (&config["model_type"], &config["task"]["_name"]),
        (&"av_hubert".into(), &"av_hubert_pretraining".into())
    );
    assert_eq!(config["model"]["resnet_planes"], serde_json::json!([8, 8, 8, 8]));
    assert_eq!(config["model"]["masking"], serde_json::json!([0.5, null]));
    assert_eq!(
        (&config["model"]["layer_norm_first"], &config["task"]["noise"]),
        (&true.into(), &serde_json::Value::Null)
    );
    is_plain(&pickle.into_checkpoint())?;
    let old = open(file!("old_fairseq.pt"))?;
    let config = old.config().expect("settings");
    assert_eq!((&config["model_type"], &config["model"]["encoder_layers"]), (&"av_hubert".into(), &2.into()));
    is_plain(old.checkpoint())
}

#[test]
fn lightning_names_lose_the_name_of_its_module() -> Result<()> {
    let pickle = open(file!("lightning.ckpt"))?;
    let settings = &pickle.config().expect("settings")["hyper_parameters"];
    assert_eq!((&settings["lr"], &settings["rates"]), (&1e-3.into(), &serde_json::json!([2, 4])));
    assert_eq!(pickle.key(), Some("state_dict"));
    is_plain(pickle.checkpoint())
}

#[test]
fn a_key_chooses_the_weights() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("two.pt");
    let inner = |name: &str| [b"}".to_vec(), text(name), tensor(4, 0, &[4], &[1]), b"s".to_vec()].concat();
    let pickle = dict(&[("model", inner("a")), ("ema", inner("b")), ("epoch", int(3))]);
    std::fs::write(&path, archive(&pickle, &[("0", &bytes(4))]))?;
    let names = |pickle: Pickle| pickle.checkpoint().names().map(str::to_string).collect::<Vec<_>>();
    assert_eq!(names(Pickle::open(&path)?), ["a"]);
    assert_eq!(names(Pickle::open_at(&path, "ema")?), ["b"]);
    let error = Pickle::open_at(&path, "epoch").unwrap_err().to_string();
    assert!(error.contains("no weights under \"epoch\"") && error.contains("\"ema\""), "{error}");
    // A folder, and only where asked for.
    std::fs::rename(&path, dir.path().join("checkpoint.pt"))?;
    assert_eq!(Checkpoint::open_any(dir.path())?.names().collect::<Vec<_>>(), ["a"]);
    assert_eq!(Checkpoint::open_any(&dir.path().join("checkpoint.pt"))?.names().count(), 1);
    assert!(Checkpoint::open(dir.path()).unwrap_err().to_string().contains("moesaic convert"));
    Ok(())
}

#[test]
fn what_runs_code_is_refused_by_name() {
    assert!(refusal(file!("evil.pt")).contains("\"posix.system\""));
    let of = |program: &[u8]| refusal(archive(&[b"\x80\x02", program].concat(), &[]));
    for (program, name) in [
        (b"cos\nsystem\nX\x04\0\0\0true\x85R.".as_slice(), "\"os.system\""),
        (b"cbuiltins\neval\n.", "\"builtins.eval\""),
        (b"ctorch.storage\n_load_from_bytes\n.", "\"torch.storage._load_from_bytes\""),
        (b"ctorch\nload\n.", "\"torch.load\""),
        (b"cnumpy.testing._private.utils\nrunstring\n.", "runstring"),
        (b"X\x02\0\0\0osX\x06\0\0\0system\x93.", "\"os.system\""),
        (b"(ios\nsystem\n.", "INST"),
        (b"(o.", "OBJ"),
        (b"\x82\x01.", "EXT1"),
        (b"P0\n.", "PERSID"),
        (b"I1\n.", "INT"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"\x96\0\0\0\0\0\0\0\0.", "BYTEARRAY8"),
        (b"\x98.", "READONLY_BUFFER"),
        (b"\xff.", "0xff"),
        // A value is no function, nor is a type of numbers.
        (b"NNR.", "REDUCE"),
        (b"ctorch\nfloat32\n)R.", "REDUCE"),
        (b"ctorch\nFloatStorage\n)\x81.", "NEWOBJ"),
    ] {
        let message = of(program);
        assert!(message.contains(name), "{message}");
    }
    assert!(refusal(file!("protocol5.pt")).contains("protocol 5"));
    assert!(refusal(archive(b"(dp0\n.", &[])).contains("protocol 2 to 4"));
}

#[test]
fn what_is_no_archive_of_torch_is_told_apart() {
    assert!(refusal(file!("legacy.pt")).contains("before version 1.6"));
    assert!(refusal("").contains("no zip archive"));
    assert!(refusal("version https://git-lfs").contains("no zip archive"));
    let whole = file!("plain.pt");
    for cut in [4, 30, whole.len() / 2, whole.len() - 1] {
        assert!(refusal(&whole[..cut]).contains("download it again"), "{cut}");
    }
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("a/other.txt", SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored))
        .unwrap();
    assert!(refusal(zip.finish().unwrap().into_inner()).contains("no data.pkl"));
    // The method of compression, in the local header and in the directory.
    let mut packed = archive(&dict(&[]), &[]);
    let directory = packed.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    (packed[8], packed[directory + 10]) = (8, 8);
    assert!(refusal(packed).contains("compressed"));
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in [("a/data.pkl", dict(&[])), ("a/byteorder", b"big".to_vec())] {
        zip.start_file(name, SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored)).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    assert!(refusal(zip.finish().unwrap().into_inner()).contains("big-endian"));
}

#[test]
fn tensors_stay_inside_their_storage() -> Result<()> {
    let of = |tensor: Vec<u8>| archive(&dict(&[("w", tensor)]), &[("0", &bytes(6))]);
    let pickle = open(of(tensor(6, 1, &[2, 2], &[1, 2])))?;
    assert_eq!(pickle.checkpoint().read_any("w")?.to_vec2::<f32>()?, [[1.0, 3.0], [2.0, 4.0]]);
    for (what, wrong) in [
        ("beyond the end", tensor(6, 3, &[4], &[1])),
        ("by its strides", tensor(6, 0, &[2, 2], &[5, 1])),
        ("a larger storage than its entry", tensor(7, 0, &[7], &[1])),
        ("an endless storage", tensor(i64::MAX, 0, &[2], &[1])),
        ("one value over and over", tensor(6, 0, &[1 << 40], &[0])),
        ("one value more than there are", tensor(6, 0, &[7], &[0])),
        ("too large to exist", tensor(6, 0, &[1 << 40, 1 << 40], &[1 << 40, 1])),
        ("strides that wrap", tensor(6, 0, &[3, 3], &[i64::MAX, 1])),
        ("a start that wraps", tensor(6, i64::MAX, &[1], &[1])),
        ("a negative start", tensor(6, -1, &[1], &[1])),
        ("a negative length", tensor(6, 0, &[-1], &[1])),
        ("more axes than strides", tensor(6, 0, &[2, 3], &[1])),
        ("a great many axes", tensor(6, 0, &[1; 17], &[1; 17])),
    ] {
        let message = refusal(of(wrong));
        assert!(message.contains("tensor"), "{what}: {message}");
    }
    // No entry, twice one name, and ever the same storage.
    assert!(refusal(archive(&dict(&[("w", tensor(6, 0, &[6], &[1]))]), &[])).contains("no storage"));
    let whole = tensor(6, 0, &[6], &[1]);
    let twice = dict(&[("w", whole.clone()), ("w", whole.clone())]);
    assert!(refusal(archive(&twice, &[("0", &bytes(6))])).contains("twice"));
    // Eighty names of one tensor are fine while it is small beside the file.
    let names: Vec<String> = (0..80).map(|i| format!("w{i}")).collect();
    let shared = |count: i64| {
        let first = [tensor(count, 0, &[count], &[1]), b"q\x01".to_vec()].concat();
        let value = |i: usize| if i == 0 { first.clone() } else { b"h\x01".to_vec() };
        let items: Vec<_> = names.iter().enumerate().map(|(i, name)| (name.as_str(), value(i))).collect();
        archive(&dict(&items), &[("0", &bytes(1 << 14))])
    };
    assert_eq!(open(shared(6))?.checkpoint().names().count(), 80);
    assert!(refusal(shared(1 << 14)).contains("times the file"));
    // Types that nothing here computes with.
    let chars = tensor(6, 0, &[6], &[1]);
    let at = chars.windows(5).position(|w| w == b"Float").unwrap();
    let chars = [&chars[..at], b"Char", &chars[at + 5..]].concat();
    assert!(refusal(of(chars)).contains("type of numbers"));
    Ok(())
}

#[test]
fn damaged_programs_end_in_an_error() {
    for program in [
        b"\x80\x02".as_slice(),
        b"\x80\x02.",
        b"\x80\x02t.",
        b"\x80\x02(",
        b"\x80\x02(N0N.",
        b"\x80\x02h\x01.",
        b"\x80\x02X\xff\xff\xff\xffa.",
        b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.",
        b"\x80\x02\x8b\xff\xff\xff\xff.",
        b"\x80\x02B\xff\xff\xff\x7f.",
        b"\x80\x02X\x01\0\0\0\xff.",
        b"\x80\x02Na.",
        b"\x80\x02NNNs.",
        b"\x80\x02}(NNNu.",
        b"\x80\x02(Nd.",
        b"\x80\x02NNb.",
        b"\x80\x02NQ.",
        b"\x80\x02cos",
        b"\x80\x02(1.",
        b"\x80\x02NN\x93.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\nN\x85R.",
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nNNNtR.",
        b"\x80\x02]N\x85ccollections\nOrderedDict\n",
    ] {
        let message = refusal(archive(program, &[]));
        assert!(message.contains("pickle") || message.contains("no weights"), "{message}");
    }
    // The mark is not popped as a value, nor what stands below it.
    assert!(run("x", b"\x80\x02N(0.").is_err());
    assert!(run("x", b"\x80\x02N(N0Nt.").is_ok());
}

#[test]
fn nesting_sharing_and_cycles_take_no_more_than_their_text() -> Result<()> {
    // A list that holds itself; levels of lists of lists; each list twice the one before, thirty times over: a memo bomb.
    let cycle = [b"]q\x00h\x00a".as_slice()].concat();
    let nested = [b"(".repeat(100_000), b"l".repeat(100_000)].concat();
    let mut bomb = b"(]q\x00".to_vec();
    for level in 1..30u8 {
        bomb.extend([b']', b'q', level, b'(', b'h', level - 1, b'h', level - 1, b'e']);
    }
    bomb.extend([b'1', b'h', 29]);
    for evil in [cycle, nested, bomb.clone()] {
        let weights = [b"}".to_vec(), text("w"), tensor(4, 0, &[4], &[1]), b"s".to_vec()].concat();
        let settings = [b"}".to_vec(), text("model"), evil, b"s".to_vec()].concat();
        let pickle = open(archive(&dict(&[("cfg", settings), ("model", weights)]), &[("0", &bytes(4))]))?;
        // The weights are there; settings beyond all measure are none.
        assert_eq!((pickle.checkpoint().names().count(), pickle.config()), (1, None));
    }
    let bomb = [b"\x80\x02".to_vec(), bomb, b".".to_vec()].concat();
    let (machine, _) = run("x", &bomb)?;
    assert_eq!(machine.values.len(), 30);
    // Values and stacks end.
    let many = [b"\x80\x02".to_vec(), b"N".repeat(MAX_VALUES + 1), b".".to_vec()].concat();
    assert!(run("x", &many).err().expect("an end").to_string().contains("more than"));
    let many = [b"\x80\x02N".to_vec(), b"2".repeat(MAX_VALUES), b".".to_vec()].concat();
    assert!(run("x", &many).err().expect("an end").to_string().contains("more than"));
    let many = [b"\x80\x02".to_vec(), b"(".repeat(MAX_VALUES + 1), b".".to_vec()].concat();
    assert!(run("x", &many).err().expect("an end").to_string().contains("more than"));
    Ok(())
}
