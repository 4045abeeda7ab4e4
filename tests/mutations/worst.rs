//! The inputs that make a parser take the most memory for their size, and those that once made one fail.

use super::parsers::{self, Parser};

/// Checks inputs and shows how close they come to the bound.
fn within(parser: Parser, inputs: &[(&str, Vec<u8>)]) {
    let _ = (parser.parse)(&(parser.seeds)()[0]);
    for (what, input) in inputs {
        let outcome = parser.check(input);
        let ratio = outcome.memory.held as f64 / input.len() as f64;
        let verdict = if outcome.accepted { "accepted" } else { "refused" };
        eprintln!("{}, {what}: {verdict}, {ratio:.1} bytes held for each of {}", parser.name, input.len());
    }
}

fn listed(count: usize, separator: &str, item: impl Fn(usize) -> String) -> String {
    (0..count).map(item).collect::<Vec<_>>().join(separator)
}

#[test]
fn headers_of_many_small_tensors() {
    let entry =
        |i: usize, shape: &str| format!("\"{i:x}\":{{\"dtype\":\"U8\",\"shape\":[{shape}],\"data_offsets\":[0,0]}}");
    let axes = ["0"; 16].join(",");
    let headers = [
        ("short entries", format!("{{{}}}", listed(40_000, ",", |i| entry(i, "0")))),
        ("many axes", format!("{{{}}}", listed(20_000, ",", |i| entry(i, &axes)))),
        ("metadata", format!("{{\"__metadata__\":{{{}}}}}", listed(40_000, ",", |i| format!("\"{i:x}\":\"\"")))),
        ("nested", format!("{{\"a\":{}", "[".repeat(300_000))),
        ("a long name", format!("{{\"{}\":0}}", "x".repeat(300_000))),
    ];
    let framed =
        headers.map(|(what, header)| (what, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()));
    within(parsers::safetensors(), &framed);
    within(
        parsers::safetensors_index(),
        &[
            ("many names", format!("{{\"weight_map\":{{{}}}}}", listed(60_000, ",", |i| format!("\"{i:x}\":\"\"")))),
            ("nested", "{\"weight_map\":".repeat(50_000)),
            ("a long shard", format!("{{\"weight_map\":{{\"a\":\"{}\"}}}}", "x".repeat(300_000))),
        ]
        .map(|(what, text)| (what, text.into_bytes())),
    );
}

/// A GGUF file of these keys and tensors, each as it stands there, and a megabyte of nothing.
fn gguf(keys: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
    let counts = [3u32.to_le_bytes().to_vec(), (tensors.len() as u64).to_le_bytes().to_vec()].concat();
    let mut all =
        [b"GGUF".to_vec(), counts, (keys.len() as u64).to_le_bytes().to_vec(), keys.concat(), tensors.concat()]
            .concat();
    all.resize(all.len().next_multiple_of(32) + data, 0);
    all
}

#[test]
fn gguf_files_of_many_small_things() {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let key = |name: &str, kind: u32, value: &[u8]| [&text(name)[..], &kind.to_le_bytes(), value].concat();
    let whole = |name: &str, value: u32| key(&format!("llama.{name}"), 4, &value.to_le_bytes());
    let list = |kind: u32, count: u64, one: &[u8]| {
        [&kind.to_le_bytes()[..], &count.to_le_bytes(), &one.repeat(count as usize)].concat()
    };
    let tensor = |name: &str, dims: &[u64], offset: u64| {
        let dims: Vec<u8> =
            [&(dims.len() as u32).to_le_bytes()[..], &dims.iter().flat_map(|d| d.to_le_bytes()).collect::<Vec<_>>()]
                .concat();
        [text(name), dims, 0u32.to_le_bytes().to_vec(), offset.to_le_bytes().to_vec()].concat()
    };
    let llama = [
        key("general.architecture", 8, &text("llama")),
        whole("block_count", 1),
        whole("context_length", 8),
        whole("embedding_length", 1),
        whole("attention.head_count", 1),
        whole("expert_count", 16384),
        whole("expert_used_count", 1),
    ];
    let embedding = tensor("token_embd.weight", &[1, 1], 0);
    let experts = |n: u64| {
        let stacks = ["gate", "up", "down"].iter().enumerate();
        let stacks =
            stacks.map(|(i, part)| tensor(&format!("blk.0.ffn_{part}_exps.weight"), &[1, 1, n], 32 + i as u64 * 4 * n));
        gguf(&llama, &[vec![embedding.clone()], stacks.collect()].concat(), 32 + 12 * n as usize)
    };
    let own = |extra: Vec<u8>| gguf(&[&llama[..], &[extra]].concat(), std::slice::from_ref(&embedding), 4);
    within(
        parsers::gguf(),
        &[
            ("keys", gguf(&(0..40_000).map(|i| key(&format!("{i:x}"), 7, &[1])).collect::<Vec<_>>(), &[], 0)),
            (
                "tensors",
                gguf(&[], &(0..20_000u64).map(|i| tensor(&format!("{i:x}"), &[], 32 * i)).collect::<Vec<_>>(), 640_000),
            ),
            ("bytes", own(key("a", 9, &list(0, 300_000, &[1])))),
            ("empty texts", own(key("a", 9, &list(8, 60_000, &[0; 8])))),
            ("empty lists", own(key("a", 9, &list(9, 60_000, &[0; 12])))),
            ("a long text", own(key("a", 8, &text(&"x".repeat(300_000))))),
            ("experts of one number", experts(16384)),
            ("too many experts", experts(16392)),
            (
                "a number of keys",
                gguf(&[], &[], 0).iter().enumerate().map(|(i, b)| if i == 16 { 255 } else { *b }).collect(),
            ),
        ],
    );
}

#[test]
fn pickles_of_many_small_things() {
    // An archive of one stored entry, a/data.pkl.
    let archive = |program: &[u8]| {
        let pickle = [b"\x80\x02", program, b"."].concat();
        let size = (pickle.len() as u32).to_le_bytes();
        // Version, flags and method, time and date, checksum (which nobody reads), sizes, lengths of the name and of extras.
        let common = [&[0; 12][..], &size, &size, &10u16.to_le_bytes(), &[0; 2]].concat();
        let local = [b"PK\x03\x04\x0a\0", &common[..], b"a/data.pkl", &pickle].concat();
        let central = [b"PK\x01\x02\x0a\0\x0a\0", &common[..], &[0; 14], b"a/data.pkl"].concat();
        let place = [(central.len() as u32).to_le_bytes(), (local.len() as u32).to_le_bytes()].concat();
        [&local[..], &central, b"PK\x05\x06\0\0\0\0\x01\0\x01\0", &place, b"\0\0"].concat()
    };
    let each = |item: &dyn Fn(u32) -> Vec<u8>, n: u32| (0..n).flat_map(item).collect::<Vec<u8>>();
    let settings = |inner: &[u8]| [b"}X\x03\0\0\0cfg}X\x05\0\0\0model", inner, b"ss"].concat();
    within(
        parsers::pickle(),
        &[
            ("nothing", b"N".repeat(300_000)),
            ("lists", b"]".repeat(300_000)),
            ("dicts of one", b"}NNs".repeat(75_000)),
            ("lists of one", b"]Na".repeat(100_000)),
            ("marks", b"(".repeat(300_000)),
            ("kept values", b"N\x94".repeat(150_000)),
            ("kept values by number", each(&|i| [b"Nr".as_slice(), &i.to_le_bytes()].concat(), 50_000)),
            ("tuples of three", [b"NNN".to_vec(), b"222\x87".repeat(75_000)].concat()),
            ("objects", [b"ctorch\nSize\nq\0".to_vec(), b"h\0)\x81".repeat(75_000)].concat()),
            ("settings", settings(&[b"(".to_vec(), b"N".repeat(300_000), b"l".to_vec()].concat())),
            ("a long text", settings(&[b"X\xe0\x93\x04\0".to_vec(), b"x".repeat(300_000)].concat())),
            (
                "names",
                settings(
                    &[
                        b"}(".to_vec(),
                        each(&|i| [b"X\x04\0\0\0".to_vec(), format!("{i:04x}N").into_bytes()].concat(), 40_000),
                        b"u".to_vec(),
                    ]
                    .concat(),
                ),
            ),
        ]
        .map(|(what, program)| (what, archive(&program))),
    );
}

#[test]
fn configs_of_many_small_values() {
    let with = |text: &str| format!("{{\"model_type\":\"time_moe\",{text}}}").into_bytes();
    let inputs = || {
        [
            ("numbers", with(&format!("\"a\":[{}]", listed(200_000, ",", |_| "0".into())))),
            ("horizons", with(&format!("\"horizon_lengths\":[{}]", listed(200_000, ",", |_| "1".into())))),
            ("lists", with(&format!("\"a\":[{}]", listed(200_000, ",", |_| "[0]".into())))),
            ("maps", with(&format!("\"a\":[{}]", listed(100_000, ",", |_| "{\"a\":0}".into())))),
            ("keys", with(&listed(60_000, ",", |i| format!("\"{i:x}\":0")))),
            ("nested", with(&format!("\"a\":{}", "[".repeat(300_000)))),
            ("a long word", with(&format!("\"hidden_size\":\"{}\"", "x".repeat(300_000)))),
        ]
    };
    within(parsers::config(), &inputs());
    within(parsers::model(), &inputs());
}

#[test]
fn settings_of_many_small_values() {
    let inputs = |field: &str| {
        [
            ("numbers", format!("{field} = [{}]", listed(100_000, ",", |_| "1".into()))),
            ("lists", format!("{field} = [{}]", listed(100_000, ",", |_| "[]".into()))),
            ("tables", format!("{field} = [{}]", listed(100_000, ",", |_| "{}".into()))),
            ("keys", listed(50_000, "\n", |i| format!("{i:x}=1"))),
            ("headers", listed(50_000, "\n", |i| format!("[{i:x}]"))),
            ("comments", "#\n".repeat(100_000)),
            ("nested", format!("{field} = {}", "[".repeat(200_000))),
            ("nested tables", format!("{field} = {}", "{a=".repeat(100_000))),
            ("dotted keys", format!("{}a = 1", "a.".repeat(100_000))),
            ("dotted header", format!("[{}a]", "a.".repeat(100_000))),
            ("a long key", format!("{} = 1", "x".repeat(200_000))),
            ("a long text", format!("{field} = \"{}\"", "x".repeat(200_000))),
            // Fuzzing found that each misplaced dot is an error of its own.
            ("dots", ".".repeat(200_000)),
            ("a few dots", format!("[data]\n{}", ".".repeat(600))),
            ("lines of dots", "..........a a] = 3\n".repeat(10_000)),
        ]
        .map(|(what, text)| (what, text.into_bytes()))
    };
    within(parsers::plan(), &inputs("origins"));
    within(parsers::train_config(), &inputs("seed"));
}

#[test]
fn tables_of_unusual_proportions() {
    let row = |cells: usize, cell: &str| vec![cell; cells].join(",");
    let long = |n: usize| "x".repeat(n);
    let pairs = |i: usize| 200 * (i / 2) + i % 2;
    let inputs = [
        ("columns without names", format!("{}\n{}\n", ",".repeat(200_000), ",".repeat(200_000))),
        ("columns of one name", format!("{}\n{}\n", row(20_000, "a"), row(20_000, "1"))),
        ("columns without a row", listed(50_000, ",", |i| format!("{i:x}"))),
        ("columns of text", format!("{}\n{}\n", listed(30_000, ",", |i| format!("c{i:x}")), row(30_000, "b"))),
        ("rows of one cell", format!("y\n{}", "1\n".repeat(100_000))),
        ("rows with gaps", format!("step,y\n{}", listed(3_000, "\n", |i| format!("{},1", pairs(i))))),
        (
            "a wide table with gaps",
            format!("step,{}\n{}", row(900, "a"), listed(8, "\n", |i| format!("{},{}", pairs(i), row(900, "1")))),
        ),
        (
            "a wide table with a gap",
            format!(
                "step,{}\n0,{}\n1,{}\n199,{}\n",
                row(9_000, "a"),
                row(9_000, "1"),
                row(9_000, "1"),
                row(9_000, "1")
            ),
        ),
        ("ids", format!("shop,t,y\n{}", listed(30_000, "\n", |i| format!("{i:x},2024-01-01,1")))),
        (
            "ids with two rows",
            format!("shop,t,y\n{}", listed(30_000, "\n", |i| format!("{:x},{},1", i / 2, 9 * (i % 2)))),
        ),
        (
            "ids of many columns",
            format!(
                "shop,{}\n{}\n",
                listed(300, ",", |i| format!("{i:x}")),
                listed(300, "\n", |i| format!("{i:x},{}", row(300, "1")))
            ),
        ),
        (
            "a long id of many columns",
            format!("shop,{}\n{},{}\n", listed(9_000, ",", |i| format!("{i:x}")), long(90_000), row(9_000, "1")),
        ),
        (
            "long ids of many long columns",
            format!(
                "shop,{}\n{}",
                listed(300, ",", |i| format!("{i:x}{}", long(500))),
                listed(300, "\n", |i| format!("{i:x}{},{}", long(500), row(300, "1")))
            ),
        ),
        (
            "ids of two long columns",
            format!("shop,a{0},b{0}\n{1}", long(500), listed(9_000, "\n", |i| format!("{i:x},1,1"))),
        ),
        ("ids of a long column", format!("shop,y,{}\n{}", long(90_000), listed(9_000, "\n", |i| format!("{i:x},1,1")))),
        ("a quote without an end", format!("y\n\"{}", "1\n".repeat(100_000))),
        ("a long cell", format!("time,y\n2024-01-01,{}\n", long(300_000))),
        ("long numbers", format!("y;z\n1,5;{}\n", "1.000".repeat(60_000))),
        ("a long name", format!("time,{}\n2024-01-01,1\n2024-01-02,b\n", long(300_000))),
        ("blank lines", "\n".repeat(300_000)),
        ("one line of blanks", format!("y{}\n1", " ".repeat(300_000))),
    ]
    .map(|(what, text)| (what, text.into_bytes()));
    within(parsers::table(), &inputs);
    within(
        parsers::times(),
        &[
            ("empty cells", vec![b'\n'; 50_000]),
            ("days", listed(9_000, "\n", |i| format!("{}", 19_000 + i)).into_bytes()),
        ],
    );
    within(
        parsers::train_csv(),
        &[
            ("columns", format!("{}\n{}\n", row(50_000, "a"), row(50_000, "1"))),
            ("rows", format!("y\n{}", "1\n".repeat(100_000))),
            ("a long name", format!("{}\n1\nb\n", long(300_000))),
            ("a long cell", format!("y\n1\n{}\n", long(300_000))),
        ]
        .map(|(what, text)| (what, text.into_bytes())),
    );
}

#[test]
fn moments_without_end() {
    let rows = |step: u64| (0..20_000u64).flat_map(|i| (i * step).to_le_bytes()).collect::<Vec<u8>>();
    within(
        parsers::moments(),
        &[("seconds", rows(1 << 16)), ("days", rows(86_400 << 16)), ("years", rows(u64::MAX / 9))],
    );
}
