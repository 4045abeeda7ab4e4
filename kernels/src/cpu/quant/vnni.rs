//! The products of whole numbers with AVX-512 VNNI: a half panel is one register wide.

use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::{Kind, META, NUMBERS, QuantPanel, WORDS};

/// Groups, scales, numbers, rows and the output with its leading dimension.
type Kernel = unsafe fn(usize, *const u8, *const u8, *const u32, *mut f32, usize);

macro_rules! of_rows {
    ($kernel:ident $(, $with:literal)?) => {
        [
            $kernel::<1 $(, $with)?>,
            $kernel::<2 $(, $with)?>,
            $kernel::<3 $(, $with)?>,
            $kernel::<4 $(, $with)?>,
            $kernel::<5 $(, $with)?>,
            $kernel::<6 $(, $with)?>,
            $kernel::<7 $(, $with)?>,
            $kernel::<8 $(, $with)?>,
        ]
    };
}
static FOUR: [Kernel; 8] = of_rows!(four);
static EIGHT: [Kernel; 8] = of_rows!(eight, 0);
static OFFSET: [Kernel; 8] = of_rows!(eight, 1);
static HALVES: [Kernel; 8] = of_rows!(eight, 2);

/// True on a CPU with all that the kernels use.
pub(super) fn present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    *PRESENT.get_or_init(|| {
        use std::arch::is_x86_feature_detected as has;
        has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512vnni")
    })
}

/// # Safety
/// Where [`present`] says so; `c` has 16 columns in `count` rows, `ld` apart; `a` holds as many rows, at most 8, and the panel
/// what its groups take.
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

/// Sixteen f16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn sixteen(at: *const u8) -> __m512 {
    // SAFETY: the caller's 32 bytes.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
}

/// Two numbers of a row, as often as a register holds them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn two_of(word: *const u32) -> __m512i {
    // SAFETY: the caller's word.
    _mm512_set1_epi32(unsafe { word.read() } as i32)
}

/// `R` rows by 16 columns of 4 bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
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
        let mut sums = [_mm512_setzero_ps(); R];
        let low = _mm512_set1_epi16(15);
        let meta = a.add(groups * NUMBERS);
        for g in 0..groups {
            let of_rows = a.add(g * NUMBERS);
            let mut acc = [_mm512_setzero_si512(); R];
            for step in 0..8 {
                let both = _mm512_cvtepu8_epi16(_mm256_loadu_si256(numbers.add(g * 256 + 32 * step).cast()));
                let (first, second) = (_mm512_and_si512(both, low), _mm512_srli_epi16::<4>(both));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let row = of_rows.add(r * groups * WORDS);
                    *acc = _mm512_dpwssd_epi32(*acc, first, two_of(row.add(step)));
                    *acc = _mm512_dpwssd_epi32(*acc, second, two_of(row.add(8 + step)));
                }
            }
            let (scale, offset) = (sixteen(scales.add(64 * g)), sixteen(scales.add(64 * g + 32)));
            for (r, (sum, acc)) in sums.iter_mut().zip(acc).enumerate() {
                let meta = meta.add(r * groups * WORDS + g * META).cast::<f32>();
                let (x, total) = (_mm512_set1_ps(meta.read()), _mm512_set1_ps(meta.add(1).read()));
                *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), _mm512_mul_ps(scale, x), *sum);
                *sum = _mm512_fmadd_ps(offset, total, *sum);
            }
        }
        sums.into_iter().enumerate().for_each(|(r, sum)| _mm512_storeu_ps(c.add(r * ld), sum));
    }
}

/// `R` rows by 16 columns of 8 bits; `WITH` 0: a scale, 1: and an offset, 2: a scale for each half of the group.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
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
        let mut sums = [_mm512_setzero_ps(); R];
        let meta = a.add(groups * NUMBERS);
        let (scale_bytes, parts) = (if WITH == 0 { 32 } else { 64 }, if WITH == 2 { 2 } else { 1 });
        for g in 0..groups {
            let of_rows = a.add(g * NUMBERS);
            for part in 0..parts {
                let mut acc = [_mm512_setzero_si512(); R];
                for step in part * 8..(part + 1) * 16 / parts {
                    let w = _mm512_cvtepi8_epi16(_mm256_loadu_si256(numbers.add(g * 512 + 32 * step).cast()));
                    for (r, acc) in acc.iter_mut().enumerate() {
                        *acc = _mm512_dpwssd_epi32(*acc, w, two_of(of_rows.add(r * groups * WORDS + step)));
                    }
                }
                let scale = sixteen(scales.add(scale_bytes * g + 32 * part));
                for (r, (sum, acc)) in sums.iter_mut().zip(acc).enumerate() {
                    let meta = meta.add(r * groups * WORDS + g * META).cast::<f32>();
                    let x = _mm512_set1_ps(meta.read());
                    *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), _mm512_mul_ps(scale, x), *sum);
                    if WITH == 1 {
                        let offset = sixteen(scales.add(64 * g + 32));
                        *sum = _mm512_fmadd_ps(offset, _mm512_set1_ps(meta.add(1).read()), *sum);
                    }
                }
            }
        }
        sums.into_iter().enumerate().for_each(|(r, sum)| _mm512_storeu_ps(c.add(r * ld), sum));
    }
}
