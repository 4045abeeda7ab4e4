//! Files that break the format, each with what its message must say.

use super::*;

/// The bytes of a file, piece by piece.
#[derive(Clone, Default)]
struct File {
    version: u32,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    /// Instead of the true ones.
    counts: Option<(u64, u64)>,
    alignment: u64,
    data: usize,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(name)[..], &kind.to_le_bytes(), value].concat()
}

fn whole(name: &str, value: u32) -> Vec<u8> {
    key(name, 4, &value.to_le_bytes())
}

fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims_bytes: Vec<u8> = dims.iter().flat_map(|d| d.to_le_bytes()).collect();
    [&text(name)[..], &(dims.len() as u32).to_le_bytes(), &dims_bytes, &kind.to_le_bytes(), &offset.to_le_bytes()]
        .concat()
}

impl File {
    /// A llama of one layer that is 4 wide, with an embedding and a norm.
    fn new() -> Self {
        Self {
            version: 3,
            keys: vec![
                key("general.architecture", 8, &text("llama")),
                whole("llama.block_count", 1),
                whole("llama.context_length", 8),
                whole("llama.embedding_length", 4),
                whole("llama.feed_forward_length", 8),
                whole("llama.attention.head_count", 2),
            ],
            tensors: vec![tensor("token_embd.weight", &[4, 3], 0, 0), tensor("output_norm.weight", &[4], 0, 64)],
            counts: None,
            alignment: 32,
            data: 80,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let (tensors, keys) = self.counts.unwrap_or((self.tensors.len() as u64, self.keys.len() as u64));
        let mut all = [&b"GGUF"[..], &self.version.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat();
        self.keys.iter().chain(&self.tensors).for_each(|piece| all.extend(piece));
        all.resize(all.len().next_multiple_of(self.alignment as usize) + self.data, 0);
        all
    }
}

fn with(change: impl FnOnce(&mut File)) -> Vec<u8> {
    let mut file = File::new();
    change(&mut file);
    file.bytes()
}

#[test]
fn a_sound_file() {
    for version in [2, 3] {
        let file = Gguf::from_bytes("f", with(|f| f.version = version)).unwrap();
        assert_eq!(file.checkpoint().names().collect::<Vec<_>>(), ["model.embed_tokens.weight", "model.norm.weight"]);
        assert_eq!(file.checkpoint().info("model.embed_tokens.weight").unwrap().shape, [3, 4]);
        assert_eq!((&file.config()["vocab_size"], &file.config()["tie_word_embeddings"]), (&3.into(), &true.into()));
        assert_eq!(file.metadata().text("general.architecture").unwrap(), Some("llama"));
    }
    let lists = with(|f| {
        let list =
            |kind: u32, count: u64, bytes: &[u8]| [&kind.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat();
        f.keys.push(key("a", 9, &list(9, 2, &[list(0, 1, &[7]), list(8, 1, &text("x"))].concat())));
        f.keys.push(key("b", 0, &[255]));
        f.keys.push(key("c", 1, &[255]));
        f.keys.push(key("d", 2, &[1, 1]));
        f.keys.push(key("e", 3, &[0, 128]));
        f.keys.push(key("f", 5, &[255; 4]));
        f.keys.push(key("g", 6, &1.5f32.to_le_bytes()));
        f.keys.push(key("h", 7, &[1]));
        f.keys.push(key("i", 10, &[255; 8]));
        f.keys.push(key("j", 11, &[255; 8]));
        f.keys.push(key("k", 12, &(-2.5f64).to_le_bytes()));
    });
    let file = Gguf::from_bytes("f", lists).unwrap();
    let lists = List::List(vec![List::Unsigned(vec![7]), List::Text(vec!["x".into()])]);
    let expected = [
        ("a", Value::List(lists)),
        ("b", Value::Unsigned(255)),
        ("c", Value::Signed(-1)),
        ("d", Value::Unsigned(257)),
        ("e", Value::Signed(-32768)),
        ("f", Value::Signed(-1)),
        ("g", Value::Float(1.5)),
        ("h", Value::Bool(true)),
        ("i", Value::Unsigned(u64::MAX)),
        ("j", Value::Signed(-1)),
        ("k", Value::Float(-2.5)),
    ];
    for (key, value) in expected {
        assert_eq!(file.metadata().get(key), Some(&value), "{key}");
    }
}

#[test]
fn other_alignments() {
    let file = with(|f| {
        f.keys.push(whole("general.alignment", 128));
        f.alignment = 128;
        f.tensors = vec![tensor("token_embd.weight", &[4, 3], 0, 128), tensor("output_norm.weight", &[4], 0, 0)];
        f.data = 128 + 48;
    });
    assert!(Gguf::from_bytes("f", file).is_ok());
}

/// The bytes of floats at the end of a file.
fn filled(mut file: Vec<u8>, data: &[u8]) -> Vec<u8> {
    let start = file.len() - data.len();
    file[start..].copy_from_slice(data);
    file
}

fn floats(values: std::ops::Range<u16>) -> Vec<u8> {
    values.flat_map(|v| f32::from(v).to_le_bytes()).collect()
}

fn values(file: &Checkpoint, name: &str, shape: &[usize]) -> Vec<f32> {
    let read = file.read(name, shape, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    read.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn one_tensor_of_two_in_other_files_and_types() {
    let granite = |name: &str, value: u32| whole(&format!("granitemoe.{name}"), value);
    let first = with(|f| {
        f.keys = vec![
            key("general.architecture", 8, &text("granitemoe")),
            whole("split.count", 2),
            granite("block_count", 1),
            granite("context_length", 8),
            granite("embedding_length", 4),
            granite("attention.head_count", 2),
            granite("expert_count", 2),
            granite("expert_used_count", 1),
            granite("expert_feed_forward_length", 1),
        ];
        f.tensors =
            vec![tensor("token_embd.weight", &[4, 3], 0, 0), tensor("blk.0.ffn_gate_exps.weight", &[4, 1, 2], 0, 64)];
        f.data = 64 + 32;
    });
    let second = with(|f| {
        f.keys.clear();
        f.tensors = vec![tensor("blk.0.ffn_up_exps.weight", &[4, 1, 2], 1, 0)];
        f.data = 16;
    });
    let halves: Vec<u8> = (20..28u16).flat_map(|v| half::f16::from_f32(f32::from(v)).to_le_bytes()).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = |part: usize| folder.path().join(format!("m-0000{part}-of-00002.gguf"));
    std::fs::write(path(1), filled(first, &floats(0..8))).unwrap();
    std::fs::write(path(2), filled(second.clone(), &halves)).unwrap();
    let file = Checkpoint::open(&path(1)).unwrap();
    let read = values(&file, "model.layers.0.block_sparse_moe.input_linear.weight", &[2, 2, 4]);
    let expected = [0, 1, 2, 3, 20, 21, 22, 23, 4, 5, 6, 7, 24, 25, 26, 27].map(|v| v as f32);
    assert_eq!(read, expected);
    std::fs::write(path(2), &second[..second.len() - 1]).unwrap();
    assert!(Checkpoint::open(&path(1)).unwrap_err().to_string().contains("00002-of-00002.gguf: "));
}

#[test]
fn keys_and_values_of_one_head_apart() {
    let deepseek = |name: &str, value: u32| whole(&format!("deepseek2.{name}"), value);
    let file = |values: Vec<u8>| {
        with(|f| {
            f.keys = vec![
                key("general.architecture", 8, &text("deepseek2")),
                deepseek("block_count", 1),
                deepseek("context_length", 8),
                deepseek("embedding_length", 4),
                deepseek("feed_forward_length", 4),
                deepseek("attention.head_count", 1),
                deepseek("attention.kv_lora_rank", 3),
                deepseek("attention.key_length_mla", 4),
                deepseek("attention.value_length_mla", 1),
                deepseek("rope.dimension_count", 2),
            ];
            f.tensors = vec![
                tensor("token_embd.weight", &[4, 3], 0, 0),
                tensor("blk.0.attn_k_b.weight", &[2, 3], 0, 64),
                values,
            ];
            f.data = 96 + 12;
        })
    };
    let sound = file(tensor("blk.0.attn_v_b.weight", &[3, 1], 0, 96));
    let data = [floats(0..6), vec![0; 8], floats(10..13)].concat();
    let file_of = |bytes: Vec<u8>| Checkpoint::from_bytes("f", bytes);
    let read = file_of(filled(sound, &data)).unwrap();
    let name = "model.layers.0.self_attn.kv_b_proj.weight";
    assert_eq!(values(&read, name, &[3, 3]), [0, 2, 4, 1, 3, 5, 10, 11, 12].map(|v| v as f32));
    for (what, part) in [
        (tensor("blk.0.attn_v_b.weight", &[2, 1], 0, 96), "[3, 2] and \"blk.0.attn_v_b.weight\" [1, 2] do not fit"),
        (tensor("blk.1.attn_v_b.weight", &[3, 1], 0, 96), "\"blk.0.attn_v_b.weight\" is missing"),
    ] {
        let message = file_of(file(what)).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn broken_files() {
    let huge = u64::MAX.to_le_bytes();
    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "safetensors"),
        ("short", b"GGUF\x03\0\0\0".to_vec(), "is not a GGUF file"),
        ("version 1", with(|f| f.version = 1), "version 1"),
        ("version 9", with(|f| f.version = 9), "version 9"),
        ("big endian", with(|f| f.version = 3u32.swap_bytes()), "big-endian"),
        ("alignment 0", with(|f| f.keys.push(whole("general.alignment", 0))), "alignment of 0"),
        ("alignment 12", with(|f| f.keys.push(whole("general.alignment", 12))), "alignment of 12"),
        ("alignment 2^31", with(|f| f.keys.push(whole("general.alignment", 1 << 31))), "alignment of 2147483648"),
        ("alignment of text", with(|f| f.keys.push(key("general.alignment", 8, &text("32")))), "another type"),
        ("tensors without end", with(|f| f.counts = Some((u64::MAX, 6))), "18446744073709551615 tensors follow"),
        ("keys without end", with(|f| f.counts = Some((2, u64::MAX / 2))), "9223372036854775807 keys follow"),
        ("a tensor too many", with(|f| f.counts = Some((3, 6))), "download"),
        ("a key without end", with(|f| f.keys[0] = huge.to_vec()), "bytes of text follow"),
        ("a long key", with(|f| f.keys.push(whole(&"k".repeat(2000), 1))), "a key has 2000 bytes"),
        ("a text without end", with(|f| f.keys.push(key("a", 8, &huge))), "bytes of text follow"),
        (
            "a list without end",
            with(|f| f.keys.push(key("a", 9, &[&8u32.to_le_bytes()[..], &huge].concat()))),
            "list entries",
        ),
        (
            "lists in lists",
            with(|f| {
                let level = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
                f.keys.push(key("a", 9, &level.repeat(9)));
            }),
            "nested too deeply",
        ),
        ("a list of no type", with(|f| f.keys.push(key("a", 9, &[77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]))), "type 77"),
        ("no type", with(|f| f.keys.push(key("a", 13, &[0; 8]))), "type 13"),
        ("a flag of 2", with(|f| f.keys.push(key("a", 7, &[2]))), "where 0 or 1 should stand"),
        ("no UTF-8", with(|f| f.keys.push(key("a", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]))), "not UTF-8"),
        ("a key twice", with(|f| f.keys.push(whole("llama.block_count", 1))), "\"llama.block_count\" stands twice"),
        ("a tensor twice", with(|f| f.tensors[1] = tensor("token_embd.weight", &[4], 0, 64)), "stands twice"),
        ("five axes", with(|f| f.tensors[0] = tensor("a", &[1; 5], 0, 0)), "5 dimensions"),
        ("an axis of 0", with(|f| f.tensors[0] = tensor("a", &[4, 0], 0, 0)), "axis of length 0"),
        ("a huge axis", with(|f| f.tensors[0] = tensor("a", &[1 << 40, 1 << 40], 0, 0)), "too large to exist"),
        ("a large axis", with(|f| f.tensors[0] = tensor("a", &[1 << 40], 0, 0)), "past the end"),
        ("cut data", with(|f| f.data = 79), "\"output_norm.weight\": its 16 bytes from 64 on reach past the end"),
        ("an offset past the end", with(|f| f.tensors[1] = tensor("a", &[4], 0, 1 << 20)), "past the end"),
        ("an offset that wraps", with(|f| f.tensors[1] = tensor("a", &[4], 0, u64::MAX - 31)), "past the end"),
        ("not aligned", with(|f| f.tensors[1] = tensor("a", &[4], 0, 48)), "not a multiple of the alignment 32"),
        ("overlap", with(|f| f.tensors[1] = tensor("b", &[4], 0, 32)), "\"b\" overlaps"),
        ("the same place", with(|f| f.tensors[1] = tensor("b", &[4], 0, 0)), "overlaps"),
        (
            "Q5_0",
            with(|f| f.tensors[0] = tensor("a", &[32], 6, 0)),
            "Q5_0 (supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K",
        ),
        ("IQ4_XS", with(|f| f.tensors[0] = tensor("a", &[32], 23, 0)), "IQ4_XS"),
        ("an unknown type", with(|f| f.tensors[0] = tensor("a", &[32], 999, 0)), "number 999"),
        (
            "rows of half a block",
            with(|f| f.tensors[0] = tensor("a", &[16, 2], 8, 0)),
            "16 values do not fill blocks of 32",
        ),
        ("no architecture", with(|f| drop(f.keys.remove(0))), "names no architecture"),
        (
            "another architecture",
            with(|f| f.keys[0] = key("general.architecture", 8, &text("mamba"))),
            "supported: llama, qwen2, ",
        ),
        ("a missing key", with(|f| drop(f.keys.remove(3))), "lacks the key llama.embedding_length"),
        ("a key of another type", with(|f| f.keys[3] = key("llama.embedding_length", 8, &text("4"))), "whole number"),
        ("no embedding", with(|f| f.tensors[0] = tensor("a", &[4, 3], 0, 0)), "\"token_embd.weight\" is missing"),
        ("a flat embedding", with(|f| f.tensors[0] = tensor("token_embd.weight", &[12], 0, 0)), "expected two axes"),
        ("odd pairs", with(|f| f.tensors.push(tensor("blk.0.attn_q.weight", &[1, 3], 0, 32))), "overlaps"),
        ("a part alone", with(|f| f.keys.push(whole("split.count", 3))), "one of several parts"),
        ("endless layers", with(|f| f.keys[1] = whole("llama.block_count", u32::MAX)), "4294967295 layers"),
        (
            "frequencies of zero",
            with(|f| {
                f.tensors.push(tensor("rope_freqs.weight", &[1], 0, 96));
                f.data = 100;
            }),
            "not a positive number",
        ),
        (
            "rows that make no pairs",
            with(|f| {
                f.tensors.push(tensor("blk.0.attn_q.weight", &[4, 3], 0, 96));
                f.data = 160;
            }),
            "3 rows do not make pairs of 2 heads",
        ),
    ];
    for (what, bytes, part) in rows {
        let message = match Checkpoint::from_bytes("f", bytes) {
            Ok(_) => panic!("{what}: was accepted"),
            Err(e) => e.to_string(),
        };
        assert!(message.starts_with("f: ") && message.lines().count() == 1, "{what}: {message}");
        assert!(message.contains(part), "{what}: expected {part:?} in {message}");
        assert!(message.len() < 500, "{what}: {message}");
    }
}

#[test]
fn every_cut_is_refused() {
    let whole = File::new().bytes();
    for end in 0..whole.len() {
        assert!(Checkpoint::from_bytes("f", whole[..end].to_vec()).is_err(), "{end}");
    }
    assert!(Checkpoint::from_bytes("f", whole).is_ok());
}
