//! Damages sound inputs, where it pays with regard for what they are made of: numbers, words, lines, brackets, lengths.

use std::ops::Range;

use moesaic_kernels::rng::Rng;

use super::parsers::Layout;

/// Numbers at which arithmetic goes wrong, and other things that stand where a number should.
const EDGES: [&str; 26] = [
    "0",
    "1",
    "-1",
    "-0",
    "0.5",
    "255",
    "256",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999999",
    "1e308",
    "1e999",
    "-1e-999",
    "nan",
    "inf",
    "null",
    "true",
    "0x10",
];

/// Pieces that end, begin or break something in a text format.
const BREAKS: [&[u8]; 31] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"[[",
    b"]]",
    b"(",
    b":",
    b",",
    b";",
    b"\t",
    b"|",
    b"=",
    b"\"",
    b"\"\"\"",
    b"'",
    b"\\",
    b"\\u0000",
    b"\n",
    b"\r\n",
    b"\0",
    b"#",
    b".",
    b"-",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    "é".as_bytes(),
    "\u{202e}".as_bytes(),
    b" ",
];

/// What opens a level inside another, in JSON and TOML.
const NESTS: [&[u8]; 5] = [b"[", b"{\"a\":", b"[{\"a\":", b"{a=", b"a."];

/// An input with one to four damages.
pub fn mutate(seeds: &[Vec<u8>], words: &[Vec<u8>], layout: Layout, rng: &mut Rng) -> Vec<u8> {
    let Some(seed) = seeds.get(rng.below(seeds.len())) else { return Vec::new() };
    let mut input = seed.clone();
    if layout == Layout::Chunks && rng.chance(0.8) {
        return chunks(&input, seeds, words, rng);
    }
    for _ in 0..1 + rng.below(4) {
        let text = text_of(&input, layout).filter(|_| rng.chance(0.8));
        match text {
            None => damage(&mut input, seeds, words, rng),
            Some(range) => {
                let mut text = input[range.clone()].to_vec();
                damage(&mut text, seeds, words, rng);
                // The length in front follows, so that it is the text that is tested; sometimes it is a wrong one.
                let length = match rng.below(12) {
                    0 => [rng.next_u64(), u64::MAX, 99_999_999, text.len() as u64 + 1, 0][rng.below(5)],
                    _ => text.len() as u64,
                };
                input[..8].copy_from_slice(&length.to_le_bytes());
                input.splice(range, text);
            }
        }
    }
    input
}

/// A PNG file with damage inside its chunks, and chunks doubled, left out or at another place; lengths and sums are right.
fn chunks(file: &[u8], seeds: &[Vec<u8>], words: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    const HEAD: usize = 8;
    let (mut all, mut at) = (Vec::new(), HEAD);
    while let Some(length) = file.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes) {
        // Name and data.
        let Some(chunk) = file.get(at + 4..at + 8 + length as usize) else { break };
        all.push(chunk.to_vec());
        at += 12 + length as usize;
    }
    for _ in 0..1 + rng.below(3) {
        let (i, j) = (rng.below(all.len()), rng.below(all.len()));
        match rng.below(10) {
            0 => all.swap(i, j),
            1 => all.insert(j, all[i].clone()),
            2 if all.len() > 1 => drop(all.remove(i)),
            _ => damage(&mut all[i], seeds, words, rng),
        }
    }
    let mut out = file[..HEAD].to_vec();
    for chunk in all {
        // The length does not count the name; a chunk that lost its name stays one.
        let length = (chunk.len() as u32).saturating_sub(4);
        out.extend(length.to_be_bytes());
        out.extend(&chunk);
        out.extend(crc(&chunk).to_be_bytes());
    }
    out
}

/// The sum of a PNG chunk: CRC-32.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 })
    })
}

/// The words and numbers of the seeds, each once.
pub fn words(seeds: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = seeds
        .iter()
        .flat_map(|seed| seed.split(|byte| !is_word(*byte)).filter(|word| !word.is_empty() && word.len() < 64))
        .map(<[u8]>::to_vec)
        .collect();
    all.sort();
    all.dedup();
    all
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn text_of(input: &[u8], layout: Layout) -> Option<Range<usize>> {
    match layout {
        Layout::Plain | Layout::Chunks => None,
        Layout::Framed => {
            let length = usize::try_from(u64::from_le_bytes(*input.first_chunk()?)).ok()?;
            let end = length.checked_add(8).filter(|end| *end <= input.len())?;
            Some(8..end)
        }
    }
}

fn damage(text: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[Vec<u8>], rng: &mut Rng) {
    let at = rng.below(text.len() + 1);
    match rng.below(20) {
        0 | 1 => text.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << rng.below(8)),
        2 => text.truncate(at),
        3 => drop(text.drain(..at.min(text.len() / 4))),
        4..=6 => {
            // A number becomes another.
            let Some(range) = run(text, at, |byte| byte.is_ascii_digit() || b".-+eE".contains(&byte)) else { return };
            let new = match rng.below(3) {
                0 => rng.below(64).to_string(),
                _ => EDGES[rng.below(EDGES.len())].to_string(),
            };
            text.splice(range, new.bytes());
        }
        7 | 8 => {
            // A word becomes another of this format, or an edge.
            let Some(range) = run(text, at, is_word) else { return };
            let new = match words.get(rng.below(words.len())) {
                Some(word) if rng.chance(0.7) => word.clone(),
                _ => EDGES[rng.below(EDGES.len())].as_bytes().to_vec(),
            };
            text.splice(range, new);
        }
        9..=11 => insert(text, at, BREAKS[rng.below(BREAKS.len())]),
        12 => {
            let with = BREAKS[rng.below(BREAKS.len())];
            text.splice(at..(at + with.len()).min(text.len()), with.iter().copied());
        }
        13 | 14 => {
            // A piece stands twice, or is gone: keys given twice, fields that lack.
            let piece = if rng.chance(0.5) { line(text, at) } else { between(text, at, rng.below(text.len() + 1)) };
            let copy = text[piece.clone()].to_vec();
            if rng.chance(0.5) {
                text.drain(piece);
            } else {
                insert(text, piece.end, &copy);
            }
        }
        15 => {
            // Two lines change places.
            let (a, b) = (line(text, at), line(text, rng.below(text.len() + 1)));
            let (a, b) = if a.start <= b.start { (a, b) } else { (b, a) };
            if a.end <= b.start {
                let (first, second) = (text[a.clone()].to_vec(), text[b.clone()].to_vec());
                text.splice(b, first);
                text.splice(a, second);
            }
        }
        16 | 17 => {
            // The rest, or a piece, of another input.
            let Some(other) = seeds.get(rng.below(seeds.len())) else { return };
            let from = rng.below(other.len() + 1);
            if rng.chance(0.5) {
                text.truncate(at);
                text.extend_from_slice(&other[from..]);
            } else {
                let piece = between(other, from, (from + rng.below(80)).min(other.len()));
                insert(text, at, &other[piece]);
            }
        }
        18 => {
            let nest = NESTS[rng.below(NESTS.len())];
            let deep = [2, 20, 140, 3000][rng.below(4)];
            insert(text, at, &nest.repeat(deep));
        }
        _ => {
            // Very long lines, fields and tables; seldom, as they take long to read.
            let piece = match rng.below(3) {
                0 => line(text, at),
                1 => run(text, at, is_word).unwrap_or(at..at),
                _ => between(text, at, (at + 1 + rng.below(4)).min(text.len())),
            };
            let piece = text[piece].to_vec();
            let most = if rng.chance(0.02) { 1 << 16 } else { 400 };
            let times = (most / piece.len().max(1)).min(most);
            insert(text, at, &piece.repeat(times));
        }
    }
}

fn insert(text: &mut Vec<u8>, at: usize, piece: &[u8]) {
    text.splice(at..at, piece.iter().copied());
}

fn between(text: &[u8], a: usize, b: usize) -> Range<usize> {
    a.min(b).min(text.len())..a.max(b).min(text.len())
}

/// The first run of such bytes from `at` on.
fn run(text: &[u8], at: usize, is: impl Fn(u8) -> bool) -> Option<Range<usize>> {
    let start = at + text.get(at..)?.iter().position(|byte| is(*byte))?;
    let length = text[start..].iter().take_while(|byte| is(**byte)).count();
    Some(start..start + length)
}

/// The line around `at`, its end included.
fn line(text: &[u8], at: usize) -> Range<usize> {
    let at = at.min(text.len());
    let start = text[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |before| before + 1);
    let end = text[at..].iter().position(|byte| *byte == b'\n').map_or(text.len(), |after| at + after + 1);
    start..end
}
