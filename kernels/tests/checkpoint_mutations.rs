//! Damaged checkpoints: 20,000 seeded mutations of a file and of a shard index. Whatever the damage, opening and reading
//! return; they never panic, and never hold more memory than the documented bound.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use moesaic_kernels::checkpoint::{Checkpoint, INDEX_FILE, OPEN_BYTES, OPEN_BYTES_PER_HEADER_BYTE, save};
use moesaic_kernels::rng::Rng;

/// Counts the bytes that this thread holds, so that tests side by side do not disturb each other.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // A thread that is ending has no counters any more, and nothing to measure.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call goes to the system allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new may both be held while values move.
        count(size as isize);
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes held at once by `run`, beyond what was held before it.
fn peak<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = run();
    (result, usize::try_from(PEAK.get() - before).unwrap_or(0))
}

fn valid() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let dev = &Device::Cpu;
    let tensors = [
        ("model.norm.weight", Tensor::arange(0f32, 8., dev).unwrap().to_dtype(DType::BF16).unwrap()),
        ("model.gate.weight", Tensor::arange(0f32, 12., dev).unwrap().reshape((3, 4)).unwrap()),
        ("mask", Tensor::new(&[[0u8, 1], [1, 1]], dev).unwrap()),
        ("ids", Tensor::new(&[1i64, 2, 3], dev).unwrap()),
    ]
    .map(|(name, tensor)| (name.to_string(), tensor));
    save(&path, &tensors, &[("format", "pt")]).unwrap();
    std::fs::read(&path).unwrap()
}

/// Numbers at which arithmetic goes wrong.
const EDGES: [&str; 12] = [
    "0",
    "1",
    "-1",
    "255",
    "65536",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
];

/// One damage of a kind drawn from `rng`.
fn damage(bytes: &mut Vec<u8>, text: std::ops::Range<usize>, rng: &mut Rng) {
    let text = text.start.min(bytes.len())..text.end.min(bytes.len());
    match rng.below(8) {
        0 => {
            let at = rng.below(bytes.len());
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << rng.below(8);
            }
        }
        1 => bytes.truncate(rng.below(bytes.len() + 1)),
        2 => bytes.extend(vec![rng.next_u64() as u8; rng.below(64)]),
        3 if bytes.len() >= 8 => {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let near = length.wrapping_add(rng.below(33) as u64).wrapping_sub(16);
            let new = [near, rng.next_u64(), u64::MAX - rng.below(16) as u64, 99_999_999, 0][rng.below(5)];
            bytes[..8].copy_from_slice(&new.to_le_bytes());
        }
        4 | 5 => {
            // A number of the JSON becomes another; the length in front follows, so that it is the number that is tested.
            let digits: Vec<usize> = text.clone().filter(|&i| bytes[i].is_ascii_digit()).collect();
            let Some(&start) = digits.get(rng.below(digits.len())) else { return };
            let end = (start..text.end).find(|&i| !bytes[i].is_ascii_digit()).unwrap_or(text.end);
            let edge =
                if rng.chance(0.5) { EDGES[rng.below(EDGES.len())].to_string() } else { rng.below(64).to_string() };
            bytes.splice(start..end, edge.bytes());
            if text.start == 8 && bytes.len() >= 8 {
                let length = (text.len() + edge.len()).saturating_sub(end - start) as u64;
                bytes[..8].copy_from_slice(&length.to_le_bytes());
            }
        }
        6 => {
            // A piece of the text stands twice, or is gone.
            let (a, b) = (text.start + rng.below(text.len()), text.start + rng.below(text.len()));
            let piece = bytes[a.min(b)..a.max(b)].to_vec();
            let to = if rng.chance(0.5) { a.min(b) } else { a.max(b) };
            bytes.splice(a.min(b)..to, piece);
        }
        _ => {
            let with = br#"{}[]:,"\0-.eE"#;
            let at = text.start + rng.below(text.len());
            if let Some(byte) = bytes.get_mut(at) {
                *byte = with[rng.below(with.len())];
            }
        }
    }
}

/// Opens and reads all there is; what it returns does not matter, that it returns does.
fn exercise(checkpoint: candle_core::Result<Checkpoint>) -> bool {
    let checkpoint = match checkpoint {
        Ok(checkpoint) => checkpoint,
        Err(e) => {
            assert_eq!(e.to_string().lines().count(), 1, "{e}");
            return false;
        }
    };
    for name in checkpoint.names() {
        let shape = checkpoint.info(name).unwrap().shape.clone();
        let _ = checkpoint.read_any(name);
        let _ = checkpoint.read(name, &shape, DType::F64, &Device::Cpu);
        let _ = checkpoint.read(name, &shape, DType::I64, &Device::Cpu);
    }
    let _ = checkpoint.read_any("model.nrom.weight");
    true
}

/// Bound on what opening and reading one small damaged file may hold: the documented bound of opening, and one tensor at a
/// time as 8-byte values with the buffers of its conversion, all no larger than a few times the file.
fn bound(file_bytes: usize) -> usize {
    OPEN_BYTES_PER_HEADER_BYTE * file_bytes + OPEN_BYTES
}

#[test]
fn damaged_files_neither_panic_nor_allocate_without_bound() {
    let valid = valid();
    let header = 8..8 + u64::from_le_bytes(valid[..8].try_into().unwrap()) as usize;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let mut rng = Rng::new(11);
    let (mut opened, mut worst) = (0, 0);
    for round in 0..20_000 {
        let mut bytes = valid.clone();
        for _ in 0..1 + rng.below(2) {
            damage(&mut bytes, header.clone(), &mut rng);
        }
        let size = bytes.len();
        // Every tenth by way of the disk, the others from memory: the parser is the same.
        let (ok, held) = if round % 10 == 0 {
            std::fs::write(&path, &bytes).unwrap();
            peak(|| exercise(Checkpoint::open(dir.path())))
        } else {
            peak(|| exercise(Checkpoint::from_bytes("damaged", bytes)))
        };
        assert!(held <= bound(size), "round {round}: {held} bytes held for a file of {size}");
        (opened, worst) = (opened + usize::from(ok), worst.max(held));
    }
    // Both outcomes must occur often, or the mutations test one side only.
    assert!((1_000..19_000).contains(&opened), "{opened} of 20,000 could be opened");
    eprintln!("{opened} of 20,000 could be opened; at most {worst} bytes held for a file of {} bytes", valid.len());
}

fn write_shards(dir: &Path) -> Vec<u8> {
    let dev = &Device::Cpu;
    let mut map = serde_json::Map::new();
    for shard in 1..=2 {
        let file = format!("model-0000{shard}-of-00002.safetensors");
        let tensors: Vec<_> = (0..2)
            .map(|i| (format!("layers.{shard}.{i}.weight"), Tensor::new(&[i as f32, 1.], dev).unwrap()))
            .collect();
        save(&dir.join(&file), &tensors, &[]).unwrap();
        map.extend(tensors.iter().map(|(name, _)| (name.clone(), file.clone().into())));
    }
    serde_json::to_vec(&serde_json::json!({"metadata": {"total_size": 32}, "weight_map": map})).unwrap()
}

#[test]
fn damaged_indexes_neither_panic_nor_allocate_without_bound() {
    let dir = tempfile::tempdir().unwrap();
    let valid = write_shards(dir.path());
    let shards: u64 = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    let path = dir.path().join(INDEX_FILE);
    let mut rng = Rng::new(12);
    let mut opened = 0;
    for round in 0..20_000 {
        let mut bytes = valid.clone();
        for _ in 0..1 + rng.below(2) {
            damage(&mut bytes, 0..valid.len(), &mut rng);
        }
        // A new file each time: some file systems flush a file that is cut to nothing and written again, a millisecond each.
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, &bytes).unwrap();
        let (ok, held) = peak(|| exercise(Checkpoint::open(dir.path())));
        let limit = bound(bytes.len() + shards as usize);
        assert!(held <= limit, "round {round}: {held} bytes held, at most {limit} expected");
        opened += usize::from(ok);
    }
    assert!((100..19_900).contains(&opened), "{opened} of 20,000 could be opened");
}

#[test]
fn large_headers_keep_the_documented_bound() {
    // The shortest entries that the format allows, which is where a header grows most in memory.
    let names: Vec<String> =
        (0..40_000).map(|i| format!("\"{i:x}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}")).collect();
    let wide = format!("{{{}}}", names.join(","));
    let axes = ["0"; 16].join(",");
    let names: Vec<String> = (0..20_000)
        .map(|i| format!("\"{i:x}\":{{\"dtype\":\"U8\",\"shape\":[{axes}],\"data_offsets\":[0,0]}}"))
        .collect();
    let deep = format!("{{{}}}", names.join(","));
    let metadata: Vec<String> = (0..40_000).map(|i| format!("\"{i:x}\":\"\"")).collect();
    let metadata = format!("{{\"__metadata__\":{{{}}}}}", metadata.join(","));
    for header in [wide, deep, metadata] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        let (checkpoint, held) = peak(|| Checkpoint::from_bytes("large", bytes));
        checkpoint.unwrap();
        let bound = OPEN_BYTES_PER_HEADER_BYTE * header.len() + OPEN_BYTES;
        eprintln!("{} bytes of header, {held} held, ratio {:.2}", header.len(), held as f64 / header.len() as f64);
        assert!(held <= bound, "{held} bytes held for a header of {}", header.len());
    }
}
