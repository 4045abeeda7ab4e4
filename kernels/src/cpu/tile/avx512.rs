//! AVX-512 tiles: up to 14 rows, 32 columns in two registers; f32, bf16 widened to f32, and bf16 pairs.

use std::arch::x86_64::*;

use super::{HALF, Halves, MR, NR, Out, Panel, Rows};

type Kernel<A, B> = unsafe fn(usize, *const A, [*const B; 2], Out);

macro_rules! table {
    ($name:ident, $a:ty, $b:ty, $kernel:ident) => {
        static $name: [Kernel<$a, $b>; MR] = [
            $kernel::<1>,
            $kernel::<2>,
            $kernel::<3>,
            $kernel::<4>,
            $kernel::<5>,
            $kernel::<6>,
            $kernel::<7>,
            $kernel::<8>,
            $kernel::<9>,
            $kernel::<10>,
            $kernel::<11>,
            $kernel::<12>,
            $kernel::<13>,
            $kernel::<14>,
        ];
    };
}
table!(F32, f32, f32, f32_rows);
table!(WIDENED, f32, u32, widened_rows);
table!(PAIRS, u32, u32, pair_rows);

/// # Safety
/// As [`super::tile`], on a CPU with AVX-512 F, and BF16 for pairs; lengths are checked by the caller.
pub(super) unsafe fn tile(k: usize, mr: usize, a: Rows<'_>, panel: Panel<'_>, out: Out) {
    // SAFETY: the caller's promise.
    unsafe {
        match (a, panel) {
            (Rows::F32(a), Panel::F32(b)) => F32[mr - 1](k, a.as_ptr(), halves(b), out),
            (Rows::F32(a), Panel::Bf16(b)) => WIDENED[mr - 1](k, a.as_ptr(), halves(b), out),
            (Rows::Pairs(a), Panel::Bf16(b)) => PAIRS[mr - 1](k, a.as_ptr(), halves(b), out),
            (Rows::Pairs(_), Panel::F32(_)) => unreachable!("rows are packed in pairs for bf16 panels only"),
            (Rows::Ints(_), _) | (_, Panel::Quant(_)) => unreachable!("blocks have tiles of their own"),
        }
    }
}

fn halves<T>(b: Halves<'_, T>) -> [*const T; 2] {
    [b.left.as_ptr(), b.right.as_ptr()]
}

/// Lane masks for the first `n` of 32 columns.
fn masks(n: usize) -> (__mmask16, __mmask16) {
    let bits = if n >= NR { u32::MAX } else { (1u32 << n) - 1 };
    (bits as u16, (bits >> 16) as u16)
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn start<const R: usize>(out: Out) -> [[__m512; 2]; R] {
    let mut acc = [[_mm512_setzero_ps(); 2]; R];
    if out.accumulate {
        let (m0, m1) = masks(out.n);
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: masked lanes are not read; the rest is the caller's promise on `out`.
            unsafe {
                let row = out.ptr.add(i * out.ld);
                *acc = [_mm512_maskz_loadu_ps(m0, row), _mm512_maskz_loadu_ps(m1, row.wrapping_add(16))];
            }
        }
    }
    acc
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn finish<const R: usize>(acc: [[__m512; 2]; R], out: Out) {
    let (m0, m1) = masks(out.n);
    for (i, acc) in acc.iter().enumerate() {
        // SAFETY: masked lanes are not written; the rest is the caller's promise on `out`.
        unsafe {
            let row = out.ptr.add(i * out.ld);
            _mm512_mask_storeu_ps(row, m0, acc[0]);
            _mm512_mask_storeu_ps(row.wrapping_add(16), m1, acc[1]);
        }
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn f32_rows<const R: usize>(k: usize, a: *const f32, [left, right]: [*const f32; 2], out: Out) {
    // SAFETY: `tile` of the parent module asserted the lengths of `a` and `b`.
    unsafe {
        let mut acc = start::<R>(out);
        for p in 0..k {
            let b0 = _mm512_loadu_ps(left.add(p * HALF));
            let b1 = _mm512_loadu_ps(right.add(p * HALF));
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(p * R + i));
                acc[0] = _mm512_fmadd_ps(x, b0, acc[0]);
                acc[1] = _mm512_fmadd_ps(x, b1, acc[1]);
            }
        }
        finish(acc, out);
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn widened_rows<const R: usize>(k: usize, a: *const f32, [left, right]: [*const u32; 2], out: Out) {
    // SAFETY: `tile` of the parent module asserted the lengths of `a` and `b`.
    unsafe {
        let mut acc = start::<R>(out);
        let odd_bits = _mm512_set1_epi32(0xffff_0000u32 as i32);
        for pair in 0..k.div_ceil(2) {
            let v0 = _mm512_loadu_si512(left.add(pair * HALF).cast());
            let v1 = _mm512_loadu_si512(right.add(pair * HALF).cast());
            // The low half of each 32-bit lane is the even k, the high half the odd one.
            let even = [_mm512_slli_epi32(v0, 16), _mm512_slli_epi32(v1, 16)];
            let odd = [_mm512_and_si512(v0, odd_bits), _mm512_and_si512(v1, odd_bits)];
            for (p, w) in [(2 * pair, even), (2 * pair + 1, odd)] {
                if p < k {
                    let (w0, w1) = (_mm512_castsi512_ps(w[0]), _mm512_castsi512_ps(w[1]));
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let x = _mm512_set1_ps(*a.add(p * R + i));
                        acc[0] = _mm512_fmadd_ps(x, w0, acc[0]);
                        acc[1] = _mm512_fmadd_ps(x, w1, acc[1]);
                    }
                }
            }
        }
        finish(acc, out);
    }
}

/// Two k at a time by `vdpbf16ps`, which takes denormals for zero and rounds to nearest even whatever the mode.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pair_rows<const R: usize>(k: usize, a: *const u32, [left, right]: [*const u32; 2], out: Out) {
    // SAFETY: `tile` of the parent module asserted the lengths of `a` and `b`; the transmutes only rename 512 bits.
    unsafe {
        let mut acc = start::<R>(out);
        for pair in 0..k.div_ceil(2) {
            let b0: __m512bh = std::mem::transmute(_mm512_loadu_si512(left.add(pair * HALF).cast()));
            let b1: __m512bh = std::mem::transmute(_mm512_loadu_si512(right.add(pair * HALF).cast()));
            for (i, acc) in acc.iter_mut().enumerate() {
                let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(*a.add(pair * R + i) as i32));
                acc[0] = _mm512_dpbf16_ps(acc[0], x, b0);
                acc[1] = _mm512_dpbf16_ps(acc[1], x, b1);
            }
        }
        finish(acc, out);
    }
}
