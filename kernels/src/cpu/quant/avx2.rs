//! The products of whole numbers with AVX2: a half panel is two registers wide.

use std::arch::x86_64::*;

use super::{GROUP, Kind, META, QuantPanel, WORDS};

/// Groups, scales, numbers, rows and the output with its leading dimension.
type Kernel = unsafe fn(usize, *const u8, *const u8, *const u32, *mut f32, usize);

static FOUR: [Kernel; 4] = [four::<1>, four::<2>, four::<3>, four::<4>];
static EIGHT: [Kernel; 4] = [eight::<1, 0>, eight::<2, 0>, eight::<3, 0>, eight::<4, 0>];
static OFFSET: [Kernel; 4] = [eight::<1, 1>, eight::<2, 1>, eight::<3, 1>, eight::<4, 1>];
static HALVES: [Kernel; 4] = [eight::<1, 2>, eight::<2, 2>, eight::<3, 2>, eight::<4, 2>];

/// # Safety
/// On a CPU with AVX2, FMA and F16C; `c` has 16 columns in `count` rows, `ld` apart; `a` holds as many rows, at most 4, and
/// the panel what its groups take.
pub(super) unsafe fn rows(panel: QuantPanel<'_>, side: usize, count: usize, a: &[u32], c: *mut f32, ld: usize) {
    let kernels = match panel.kind {
        Kind::Four => &FOUR,
        Kind::Eight => &EIGHT,
        Kind::EightOffset => &OFFSET,
        Kind::EightHalves => &HALVES,
    };
    let (scales, numbers) = (panel.scales(side).as_ptr(), panel.numbers(side).as_ptr());
    // SAFETY: the caller's promise.
    unsafe { kernels[count - 1](panel.groups, scales, numbers, a.as_ptr(), c, ld) }
}

/// Sixteen f16 as two registers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sixteen(at: *const u8) -> [__m256; 2] {
    // SAFETY: the caller's 32 bytes.
    unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(at.cast())), _mm256_cvtph_ps(_mm_loadu_si128(at.add(16).cast()))] }
}

/// Four numbers of a row, as often as a register holds them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn four_of(word: *const u32) -> __m256i {
    // SAFETY: the caller's word.
    _mm256_set1_epi32(unsafe { word.read() } as i32)
}

/// `R` rows by 16 columns of 4 bits.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn four<const R: usize>(
    groups: usize,
    scales: *const u8,
    numbers: *const u8,
    a: *const u32,
    c: *mut f32,
    ld: usize,
) {
    // SAFETY: `half` of the parent module asserted the lengths.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
        let meta = a.add(groups * (GROUP / 4));
        for g in 0..groups {
            let numbers = numbers.add(g * 256);
            let of_rows = a.add(g * (GROUP / 4));
            // Eight products of pairs, at most 2 · 15 · 127 each, stay below 2^15.
            let mut acc = [[_mm256_setzero_si256(); 2]; R];
            for step in 0..4 {
                let load = |j: usize| _mm256_loadu_si256(numbers.add(64 * step + 32 * j).cast());
                let (w0, w1) = (load(0), load(1));
                let first = [_mm256_and_si256(w0, low), _mm256_and_si256(w1, low)];
                let second = [w0, w1].map(|w| _mm256_and_si256(_mm256_srli_epi16(w, 4), low));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let row = of_rows.add(r * groups * WORDS);
                    let (x, y) = (four_of(row.add(step)), four_of(row.add(4 + step)));
                    for (acc, (first, second)) in acc.iter_mut().zip(first.into_iter().zip(second)) {
                        let both = _mm256_add_epi16(_mm256_maddubs_epi16(first, x), _mm256_maddubs_epi16(second, y));
                        *acc = _mm256_add_epi16(*acc, both);
                    }
                }
            }
            let (scale, offset) = (sixteen(scales.add(64 * g)), sixteen(scales.add(64 * g + 32)));
            for (r, (sums, acc)) in sums.iter_mut().zip(acc).enumerate() {
                let meta = meta.add(r * groups * WORDS + g * META).cast::<f32>();
                let (x, total) = (_mm256_set1_ps(meta.read()), _mm256_set1_ps(meta.add(1).read()));
                for j in 0..2 {
                    let dot = _mm256_cvtepi32_ps(_mm256_madd_epi16(acc[j], ones));
                    sums[j] = _mm256_fmadd_ps(dot, _mm256_mul_ps(scale[j], x), sums[j]);
                    sums[j] = _mm256_fmadd_ps(offset[j], total, sums[j]);
                }
            }
        }
        finish(sums, c, ld);
    }
}

/// `R` rows by 16 columns of 8 bits; `WITH` 0: a scale, 1: and an offset, 2: a scale for each half of the group.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn eight<const R: usize, const WITH: usize>(
    groups: usize,
    scales: *const u8,
    numbers: *const u8,
    a: *const u32,
    c: *mut f32,
    ld: usize,
) {
    // SAFETY: `half` of the parent module asserted the lengths.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        let ones = _mm256_set1_epi16(1);
        let meta = a.add(groups * (GROUP / 4));
        let (scale_bytes, parts) = (if WITH == 0 { 32 } else { 64 }, if WITH == 2 { 2 } else { 1 });
        for g in 0..groups {
            let numbers = numbers.add(g * 512);
            let of_rows = a.add(g * (GROUP / 4));
            for part in 0..parts {
                let mut acc = [[_mm256_setzero_si256(); 2]; R];
                for step in part * 4..(part + 1) * 8 / parts {
                    let load = |j: usize| _mm256_loadu_si256(numbers.add(64 * step + 32 * j).cast());
                    let w = [load(0), load(1)];
                    // Magnitudes up to 128 times numbers up to 127: two such products stay below 2^15.
                    let magnitude = w.map(|w| _mm256_abs_epi8(w));
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let x = four_of(of_rows.add(r * groups * WORDS + step));
                        for (acc, (w, magnitude)) in acc.iter_mut().zip(w.into_iter().zip(magnitude)) {
                            let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
                            *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(pairs, ones));
                        }
                    }
                }
                let scale = sixteen(scales.add(scale_bytes * g + 32 * part));
                for (r, (sums, acc)) in sums.iter_mut().zip(acc).enumerate() {
                    let meta = meta.add(r * groups * WORDS + g * META).cast::<f32>();
                    let x = _mm256_set1_ps(meta.read());
                    for j in 0..2 {
                        sums[j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[j]), _mm256_mul_ps(scale[j], x), sums[j]);
                    }
                    if WITH == 1 {
                        let (offset, total) = (sixteen(scales.add(64 * g + 32)), _mm256_set1_ps(meta.add(1).read()));
                        for j in 0..2 {
                            sums[j] = _mm256_fmadd_ps(offset[j], total, sums[j]);
                        }
                    }
                }
            }
        }
        finish(sums, c, ld);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn finish<const R: usize>(sums: [[__m256; 2]; R], c: *mut f32, ld: usize) {
    for (r, sums) in sums.into_iter().enumerate() {
        for (j, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller's tile has these rows and columns.
            unsafe { _mm256_storeu_ps(c.add(r * ld + 8 * j), sum) };
        }
    }
}
