//! The products of whole numbers in plain Rust.

use super::{GROUP, Kind, META, NUMBERS, QuantPanel, WORDS};
use crate::cpu::tile::HALF;

/// # Safety
/// `c` has 16 columns in `count` rows, `ld` apart; `a` holds as many rows.
pub(super) unsafe fn rows(panel: QuantPanel<'_>, side: usize, count: usize, a: &[u32], c: *mut f32, ld: usize) {
    let groups = panel.groups;
    for i in 0..count {
        let row = &a[i * groups * WORDS..][..groups * WORDS];
        let (numbers, meta) = row.split_at(groups * NUMBERS);
        let mut sums = [0f32; HALF];
        for (g, (numbers, meta)) in numbers.chunks_exact(NUMBERS).zip(meta.chunks_exact(META)).enumerate() {
            let (scale, scaled_sum) = (f32::from_bits(meta[0]), f32::from_bits(meta[1]));
            let of_row = |l: usize| i32::from((numbers[l / 2] >> (l % 2 * 16)) as i16);
            for (column, sum) in sums.iter_mut().enumerate() {
                let dot = |range: std::ops::Range<usize>| {
                    range.map(|l| panel.number(side, g, column, l) * of_row(l)).sum::<i32>() as f32
                };
                let first = panel.affine(side, g, column, 0);
                if panel.kind == Kind::EightHalves {
                    *sum += dot(0..16) * (first.0 * scale);
                    *sum += dot(16..GROUP) * (panel.affine(side, g, column, 16).0 * scale);
                } else {
                    *sum += dot(0..GROUP) * (first.0 * scale);
                    if matches!(panel.kind, Kind::Four | Kind::EightOffset) {
                        *sum += first.1 * scaled_sum;
                    }
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(sums.as_ptr(), c.add(i * ld), HALF) };
    }
}
