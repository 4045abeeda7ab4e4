//! Where the bits of a block stand.

use half::f16;

use super::BlockFormat;
use super::search::{affine, symmetric};

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Rounds to f16, which scales are stored in; huge ones stay finite.
fn rounded(x: f32) -> f32 {
    f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32()
}

fn put(bytes: &mut [u8], at: usize, x: f32) {
    bytes[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
}

/// Scale and minimum `j` of eight, 6 bits each in 12 bytes: the first four in the low bits of their bytes, the other four in
/// the nibbles of the last four bytes and the two high bits of the first eight.
fn six_bits(packed: &[u8], j: usize) -> (u8, u8) {
    match j {
        0..4 => (packed[j] & 63, packed[j + 4] & 63),
        _ => (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4),
    }
}

fn put_six_bits(packed: &mut [u8], j: usize, scale: u8, min: u8) {
    match j {
        0..4 => {
            packed[j] |= scale;
            packed[j + 4] |= min;
        }
        _ => {
            packed[j + 4] |= scale & 15 | min << 4;
            packed[j - 4] |= scale >> 4 << 6;
            packed[j] |= min >> 4 << 6;
        }
    }
}

/// Low nibbles of 16 bytes, then their high ones.
fn nibbles(bytes: &[u8], q: &mut [i8]) {
    let (low, high) = q.split_at_mut(bytes.len());
    for ((b, low), high) in bytes.iter().zip(low).zip(high) {
        (*low, *high) = ((b & 15) as i8, (b >> 4) as i8);
    }
}

/// The caller has checked the lengths.
pub(super) fn unpack(format: BlockFormat, block: &[u8], q: &mut [i8], scales: &mut [(f32, f32); 16]) {
    match format {
        BlockFormat::Q8_0 => {
            scales[0] = (half(block, 0), 0.0);
            q.iter_mut().zip(&block[2..]).for_each(|(q, b)| *q = *b as i8);
        }
        BlockFormat::Q4_0 => {
            let d = half(block, 0);
            scales[0] = (d, -8.0 * d);
            nibbles(&block[2..], q);
        }
        BlockFormat::Q4_1 => {
            scales[0] = (half(block, 0), half(block, 2));
            nibbles(&block[4..], q);
        }
        BlockFormat::Q4K | BlockFormat::Q5K => {
            let (d, dmin) = (half(block, 0), half(block, 2));
            for (j, scale) in scales[..8].iter_mut().enumerate() {
                let (s, m) = six_bits(&block[4..16], j);
                *scale = (d * f32::from(s), -(dmin * f32::from(m)));
            }
            // 64 values at a time: the low nibbles of 32 bytes, then their high ones.
            let (high, low) =
                if format == BlockFormat::Q5K { block[16..].split_at(32) } else { (&[][..], &block[16..]) };
            for (bytes, q) in low.chunks_exact(32).zip(q.chunks_exact_mut(64)) {
                nibbles(bytes, q);
            }
            // The fifth bit of value `l` of group `j` is bit `j` of byte `l`.
            for (j, q) in q.chunks_exact_mut(32).enumerate() {
                q.iter_mut().zip(high).for_each(|(q, h)| *q += (h >> j & 1) as i8 * 16);
            }
        }
        BlockFormat::Q6K => {
            let (low, high, d) = (&block[..128], &block[128..192], half(block, 208));
            for (scale, s) in scales.iter_mut().zip(&block[192..208]) {
                *scale = (d * f32::from(*s as i8), 0.0);
            }
            // 128 values at a time: four runs of 32, from 64 bytes of low nibbles and 32 bytes of pairs of high bits.
            for (n, q) in q.chunks_exact_mut(128).enumerate() {
                for (run, q) in q.chunks_exact_mut(32).enumerate() {
                    for (l, q) in q.iter_mut().enumerate() {
                        let nibble = low[64 * n + 32 * (run % 2) + l] >> (4 * (run / 2)) & 15;
                        let top = high[32 * n + l] >> (2 * run) & 3;
                        *q = (nibble | top << 4) as i8 - 32;
                    }
                }
            }
        }
    }
}

fn put_nibbles(q: impl Fn(usize) -> u8, bytes: &mut [u8]) {
    let n = bytes.len();
    bytes.iter_mut().enumerate().for_each(|(i, b)| *b = q(i) | q(i + n) << 4);
}

/// The whole number nearest to `(x - offset) / scale`.
fn nearest(x: f32, scale: f32, offset: f32, (low, high): (f32, f32)) -> f32 {
    if scale == 0.0 { 0f32.clamp(low, high) } else { ((x - offset) / scale).round_ties_even().clamp(low, high) }
}

/// The caller has checked lengths and values.
pub(super) fn pack(format: BlockFormat, x: &[f32], block: &mut [u8]) {
    block.fill(0);
    match format {
        BlockFormat::Q8_0 => {
            let d = rounded(x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0);
            put(block, 0, d);
            for (b, x) in block[2..].iter_mut().zip(x) {
                *b = nearest(*x, d, 0.0, (-127.0, 127.0)) as i8 as u8;
            }
        }
        BlockFormat::Q4_0 => {
            let d = rounded(symmetric(x));
            put(block, 0, d);
            put_nibbles(|i| (nearest(x[i], d, 0.0, (-8.0, 7.0)) + 8.0) as u8, &mut block[2..]);
        }
        BlockFormat::Q4_1 => {
            let (scale, offset) = affine(x, 15.0, false);
            let (scale, offset) = (rounded(scale), rounded(offset));
            put(block, 0, scale);
            put(block, 2, offset);
            put_nibbles(|i| nearest(x[i], scale, offset, (0.0, 15.0)) as u8, &mut block[4..]);
        }
        BlockFormat::Q4K => {
            let mut groups = [(0f32, 0f32); 8];
            for (group, x) in groups.iter_mut().zip(x.chunks_exact(32)) {
                *group = affine(x, 15.0, true);
            }
            // Scales are not negative and offsets not positive, so 6 bits without a sign hold each.
            let d = rounded(groups.iter().fold(0f32, |m, g| m.max(g.0)) / 63.0);
            let dmin = rounded(groups.iter().fold(0f32, |m, g| m.max(-g.1)) / 63.0);
            put(block, 0, d);
            put(block, 2, dmin);
            for (j, ((scale, offset), x)) in groups.into_iter().zip(x.chunks_exact(32)).enumerate() {
                let (s, m) = (nearest(scale, d, 0.0, (0.0, 63.0)), nearest(-offset, dmin, 0.0, (0.0, 63.0)));
                put_six_bits(&mut block[4..16], j, s as u8, m as u8);
                let (scale, offset) = (d * s, -(dmin * m));
                for (l, x) in x.iter().enumerate() {
                    let q = nearest(*x, scale, offset, (0.0, 15.0)) as u8;
                    block[16 + j / 2 * 32 + l] |= q << (4 * (j % 2));
                }
            }
        }
        // `quantise` refuses them.
        BlockFormat::Q5K | BlockFormat::Q6K => {}
    }
}
