//! f32 to bf16 and back.

/// The bits of `x` rounded to bf16, to nearest even. NaN stays NaN.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // Rounding could carry a NaN's mantissa over into infinity.
    let bits = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
    (bits >> 16) as u16
}

#[inline(always)]
fn to_bf16_body<const FMA: bool>(x: &[f32], y: &mut [half::bf16]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = half::bf16::from_bits(bf16_bits(*x));
    }
}

for_isa! {
    /// `x` rounded to bf16.
    pub(crate) fn to_bf16(x: &[f32], y: &mut [half::bf16]) = to_bf16_body
}

#[inline(always)]
fn round_bf16_body<const FMA: bool>(x: &mut [f32]) {
    for x in x {
        *x = f32::from_bits(u32::from(bf16_bits(*x)) << 16);
    }
}

for_isa! {
    /// `x` rounded to bf16, in place and still f32.
    pub(crate) fn round_bf16(x: &mut [f32]) = round_bf16_body
}

#[inline(always)]
fn widen_pairs_body<const FMA: bool>(pairs: &[u32], wide: &mut [f32]) {
    const HALF: usize = super::super::tile::HALF;
    for (pairs, rows) in pairs.chunks_exact(HALF).zip(wide.chunks_mut(2 * HALF)) {
        let (even, odd) = rows.split_at_mut(HALF);
        for (value, pair) in even.iter_mut().zip(pairs) {
            *value = f32::from_bits(pair << 16);
        }
        // An odd k ends with half a pair.
        for (value, pair) in odd.iter_mut().zip(pairs) {
            *value = f32::from_bits(pair & 0xffff_0000);
        }
    }
}

for_isa! {
    /// Half a bf16 panel, `[ceil(k/2)][HALF]`, as f32 `[k][HALF]`.
    pub(crate) fn widen_pairs(pairs: &[u32], wide: &mut [f32]) = widen_pairs_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_bf16_is_that_of_the_library() {
        let mut rng = crate::rng::Rng::new(3);
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 0.0, -0.0, 1.0, f32::MIN_POSITIVE / 2.0];
        let random = (0..100_000).map(|_| f32::from_bits(rng.below(1 << 32) as u32));
        for x in special.into_iter().chain(random) {
            let (got, want) = (bf16_bits(x), half::bf16::from_f32(x));
            assert!(
                got == want.to_bits() || (x.is_nan() && half::bf16::from_bits(got).is_nan()),
                "{x}: {got:x} {want}"
            );
        }
    }
}
