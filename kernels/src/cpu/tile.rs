//! The micro-kernels: `C[mr, n] (+)= A[mr, k] · B[k, n]` for at most [`MR`] rows and one panel of [`NR`] columns.
//!
//! `A` is packed `[k][mr]`; a panel of `B` is `[k][NR]` in f32, or `[ceil(k/2)][NR][2]` in bf16 (two k side by side, the
//! layout that `vdpbf16ps` reads too). Sums are f32. bf16 weights are widened in registers, which is exact, so an f32
//! input keeps its precision and the weights cost half the memory traffic.

use half::bf16;

use super::Isa;

/// Rows of a tile: 14 x 2 accumulators, 2 of `B` and a broadcast fill the 32 AVX-512 registers.
pub(crate) const MR: usize = 14;
/// Columns of a panel.
pub(crate) const NR: usize = 32;

/// One panel of packed weights.
#[derive(Clone, Copy)]
pub(crate) enum Panel<'a> {
    /// `[k][NR]`
    F32(&'a [f32]),
    /// `[ceil(k/2)][NR][2]`
    Bf16(&'a [bf16]),
}

/// Where a tile's result goes: row `i` starts at `i * ld`; the first `n` columns of the panel are written.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pub ptr: *mut f32,
    pub ld: usize,
    pub n: usize,
    /// Continue the chains from what stands there instead of from zero.
    pub accumulate: bool,
}

/// Computes one tile.
///
/// # Safety
/// `out` must be valid for writing (and reading, to accumulate) `n` values in each of `mr` rows.
pub(crate) unsafe fn tile(isa: Isa, k: usize, mr: usize, a: &[f32], panel: Panel<'_>, out: Out) {
    assert!((1..=MR).contains(&mr) && out.n <= NR && a.len() >= k * mr);
    match panel {
        Panel::F32(b) => assert!(b.len() >= k * NR),
        Panel::Bf16(b) => assert!(b.len() >= k.div_ceil(2) * NR * 2),
    }
    // SAFETY: slices are as long as the kernels read (asserted), `out` is the caller's promise, and `isa` is never above
    // what the CPU was found to have.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => match panel {
                Panel::F32(b) => x86::AVX512_F32[mr - 1](k, a.as_ptr(), b.as_ptr(), out),
                Panel::Bf16(b) => x86::AVX512_BF16[mr - 1](k, a.as_ptr(), b.as_ptr(), out),
            },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::avx2(k, mr, a, panel, out),
            _ => portable(k, mr, a, panel, out),
        }
    }
}

/// A row at a time in plain Rust; the compiler vectorises over the columns.
///
/// # Safety
/// As [`tile`].
unsafe fn portable(k: usize, mr: usize, a: &[f32], panel: Panel<'_>, out: Out) {
    for row in 0..mr {
        let mut acc = [0f32; NR];
        if out.accumulate {
            for (j, v) in acc[..out.n].iter_mut().enumerate() {
                // SAFETY: the caller's promise on `out`.
                *v = unsafe { *out.ptr.add(row * out.ld + j) };
            }
        }
        match panel {
            Panel::F32(b) => {
                for (p, b) in b.chunks_exact(NR).take(k).enumerate() {
                    let x = a[p * mr + row];
                    for (v, b) in acc.iter_mut().zip(b) {
                        *v += x * b;
                    }
                }
            }
            Panel::Bf16(b) => {
                for p in 0..k {
                    let x = a[p * mr + row];
                    let pair = &b[p / 2 * NR * 2..][..NR * 2];
                    for (v, b) in acc.iter_mut().zip(pair.chunks_exact(2)) {
                        *v += x * b[p % 2].to_f32();
                    }
                }
            }
        }
        for (j, v) in acc[..out.n].iter().enumerate() {
            // SAFETY: the caller's promise on `out`.
            unsafe { *out.ptr.add(row * out.ld + j) = *v };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::{MR, NR, Out, Panel};

    type Kernel<B> = unsafe fn(usize, *const f32, *const B, Out);

    macro_rules! table {
        ($name:ident, $b:ty, $kernel:ident) => {
            pub(super) static $name: [Kernel<$b>; MR] = [
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
    table!(AVX512_F32, f32, avx512_f32);
    table!(AVX512_BF16, bf16, avx512_bf16);

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
    unsafe fn avx512_f32<const R: usize>(k: usize, a: *const f32, b: *const f32, out: Out) {
        // SAFETY: `tile` asserted the lengths of `a` and `b`.
        unsafe {
            let mut acc = start::<R>(out);
            for p in 0..k {
                let b0 = _mm512_loadu_ps(b.add(p * NR));
                let b1 = _mm512_loadu_ps(b.add(p * NR + 16));
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
    unsafe fn avx512_bf16<const R: usize>(k: usize, a: *const f32, b: *const bf16, out: Out) {
        // SAFETY: `tile` asserted the lengths of `a` and `b`.
        unsafe {
            let mut acc = start::<R>(out);
            let odd_bits = _mm512_set1_epi32(0xffff_0000u32 as i32);
            for pair in 0..k.div_ceil(2) {
                let b = b.add(pair * NR * 2).cast::<__m512i>();
                let (v0, v1) = (_mm512_loadu_si512(b), _mm512_loadu_si512(b.add(1)));
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

    /// AVX2: half a panel (16 columns) and up to 6 rows at a time.
    ///
    /// # Safety
    /// As [`super::tile`], on a CPU with AVX2 and FMA.
    pub(super) unsafe fn avx2(k: usize, mr: usize, a: &[f32], panel: Panel<'_>, out: Out) {
        let mut buffer = [0f32; 16];
        for half in 0..2 {
            let n = out.n.saturating_sub(half * 16).min(16);
            let mut row = 0;
            while row < mr && n > 0 {
                let rows = (mr - row).min(6);
                // SAFETY: rows and columns lie inside the tile; the buffer stands in for a row that is not full.
                unsafe {
                    let c = out.ptr.add(row * out.ld + half * 16);
                    let kernel = match rows {
                        1 => avx2_rows::<1>,
                        2 => avx2_rows::<2>,
                        3 => avx2_rows::<3>,
                        4 => avx2_rows::<4>,
                        5 => avx2_rows::<5>,
                        _ => avx2_rows::<6>,
                    };
                    if n == 16 {
                        kernel(k, a.as_ptr().add(row), mr, panel, half, c, out.ld, out.accumulate);
                        row += rows;
                    } else {
                        // One row at a time through a full-width buffer.
                        std::ptr::copy_nonoverlapping(c, buffer.as_mut_ptr(), n);
                        avx2_rows::<1>(
                            k,
                            a.as_ptr().add(row),
                            mr,
                            panel,
                            half,
                            buffer.as_mut_ptr(),
                            16,
                            out.accumulate,
                        );
                        std::ptr::copy_nonoverlapping(buffer.as_ptr(), c, n);
                        row += 1;
                    }
                }
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2_rows<const R: usize>(
        k: usize,
        a: *const f32,
        mr: usize,
        panel: Panel<'_>,
        half: usize,
        c: *mut f32,
        ld: usize,
        accumulate: bool,
    ) {
        // SAFETY: `tile` asserted the lengths; `avx2` passes rows and columns inside the tile.
        unsafe {
            let mut acc = [[_mm256_setzero_ps(); 2]; R];
            if accumulate {
                for (i, acc) in acc.iter_mut().enumerate() {
                    *acc = [_mm256_loadu_ps(c.add(i * ld)), _mm256_loadu_ps(c.add(i * ld + 8))];
                }
            }
            match panel {
                Panel::F32(b) => {
                    for p in 0..k {
                        let b = b.as_ptr().add(p * NR + half * 16);
                        let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
                        for (i, acc) in acc.iter_mut().enumerate() {
                            let x = _mm256_set1_ps(*a.add(p * mr + i));
                            acc[0] = _mm256_fmadd_ps(x, b0, acc[0]);
                            acc[1] = _mm256_fmadd_ps(x, b1, acc[1]);
                        }
                    }
                }
                Panel::Bf16(b) => {
                    let odd_bits = _mm256_set1_epi32(0xffff_0000u32 as i32);
                    for pair in 0..k.div_ceil(2) {
                        let b = b.as_ptr().add((pair * NR + half * 16) * 2).cast::<__m256i>();
                        let (v0, v1) = (_mm256_loadu_si256(b), _mm256_loadu_si256(b.add(1)));
                        let even = [_mm256_slli_epi32(v0, 16), _mm256_slli_epi32(v1, 16)];
                        let odd = [_mm256_and_si256(v0, odd_bits), _mm256_and_si256(v1, odd_bits)];
                        for (p, w) in [(2 * pair, even), (2 * pair + 1, odd)] {
                            if p < k {
                                let (w0, w1) = (_mm256_castsi256_ps(w[0]), _mm256_castsi256_ps(w[1]));
                                for (i, acc) in acc.iter_mut().enumerate() {
                                    let x = _mm256_set1_ps(*a.add(p * mr + i));
                                    acc[0] = _mm256_fmadd_ps(x, w0, acc[0]);
                                    acc[1] = _mm256_fmadd_ps(x, w1, acc[1]);
                                }
                            }
                        }
                    }
                }
            }
            for (i, acc) in acc.iter().enumerate() {
                _mm256_storeu_ps(c.add(i * ld), acc[0]);
                _mm256_storeu_ps(c.add(i * ld + 8), acc[1]);
            }
        }
    }
}
