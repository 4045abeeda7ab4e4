//! The products of whole numbers with AVX2: a half panel is two registers wide.

use std::arch::x86_64::*;

use super::{Kind, META, NUMBERS, QuantPanel, WORDS};

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

/// Two numbers of a row, as often as a register holds them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn two_of(word: *const u32) -> __m256i {
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
        let low = _mm256_set1_epi16(15);
        let meta = a.add(groups * NUMBERS);
        for g in 0..groups {
            let numbers = numbers.add(g * 256);
            let of_rows = a.add(g * NUMBERS);
            let mut acc = [[_mm256_setzero_si256(); 2]; R];
            for step in 0..8 {
                let load = |j: usize| _mm256_cvtepu8_epi16(_mm_loadu_si128(numbers.add(32 * step + 16 * j).cast()));
                let both = [load(0), load(1)];
                let first = both.map(|w| _mm256_and_si256(w, low));
                let second = both.map(|w| _mm256_srli_epi16(w, 4));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let row = of_rows.add(r * groups * WORDS);
                    let (x, y) = (two_of(row.add(step)), two_of(row.add(8 + step)));
                    for (acc, (first, second)) in acc.iter_mut().zip(first.into_iter().zip(second)) {
                        let both = _mm256_add_epi32(_mm256_madd_epi16(first, x), _mm256_madd_epi16(second, y));
                        *acc = _mm256_add_epi32(*acc, both);
                    }
                }
            }
            let (scale, offset) = (sixteen(scales.add(64 * g)), sixteen(scales.add(64 * g + 32)));
            for (r, (sums, acc)) in sums.iter_mut().zip(acc).enumerate() {
                let meta = meta.add(r * groups * WORDS + g * META).cast::<f32>();
                let (x, total) = (_mm256_set1_ps(meta.read()), _mm256_set1_ps(meta.add(1).read()));
                for j in 0..2 {
                    let dot = _mm256_cvtepi32_ps(acc[j]);
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
        let meta = a.add(groups * NUMBERS);
        let (scale_bytes, parts) = (if WITH == 0 { 32 } else { 64 }, if WITH == 2 { 2 } else { 1 });
        for g in 0..groups {
            let numbers = numbers.add(g * 512);
            let of_rows = a.add(g * NUMBERS);
            for part in 0..parts {
                let mut acc = [[_mm256_setzero_si256(); 2]; R];
                for step in part * 8..(part + 1) * 16 / parts {
                    let load = |j: usize| _mm256_cvtepi8_epi16(_mm_loadu_si128(numbers.add(32 * step + 16 * j).cast()));
                    let w = [load(0), load(1)];
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let x = two_of(of_rows.add(r * groups * WORDS + step));
                        for (acc, w) in acc.iter_mut().zip(w) {
                            *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(w, x));
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
