//! One seeded generator for initialisation, data and sampling.
//!
//! candle's CPU device cannot be seeded (`Device::Cpu.set_seed` fails), and runs must not depend on a crate's version, so
//! the few lines stand here: xoshiro256++ (Blackman and Vigna, 2019) seeded through SplitMix64.

/// A small, fast, reproducible generator. The same seed gives the same stream on every platform.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
    spare: Option<f64>,
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// A generator for one seed.
    pub fn new(seed: u64) -> Self {
        Self::keyed(&[seed])
    }

    /// A generator for a tuple of keys, such as (seed, step, row): streams of different keys are unrelated, so any row of
    /// any step can be made again without replaying those before it.
    pub fn keyed(keys: &[u64]) -> Self {
        let mut mix = 0x6d6f_6573_6169_6321;
        for &key in keys {
            mix ^= key;
            mix = splitmix(&mut mix);
        }
        let state = std::array::from_fn(|_| splitmix(&mut mix));
        Self { state, spare: None }
    }

    /// A generator for a name under a seed, so that a tensor's initial values do not depend on the order of creation.
    pub fn named(seed: u64, name: &str) -> Self {
        // FNV-1a: stable across platforms, unlike the standard hasher.
        let hash =
            name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        Self::keyed(&[seed, hash])
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high).
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Log-uniform in [low, high); both must be positive.
    pub fn log_range(&mut self, low: f64, high: f64) -> f64 {
        (self.range(low.ln(), high.ln())).exp()
    }

    /// Uniform in 0..n; 0 when n is 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Standard normal (Box and Muller, both values used).
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ_by_key() {
        let take = |mut rng: Rng| (0..4).map(|_| rng.next_u64()).collect::<Vec<_>>();
        assert_eq!(take(Rng::keyed(&[1, 2])), take(Rng::keyed(&[1, 2])));
        assert_ne!(take(Rng::keyed(&[1, 2])), take(Rng::keyed(&[2, 1])));
        assert_ne!(take(Rng::named(1, "a")), take(Rng::named(1, "b")));
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut rng = Rng::new(7);
        let n = 200_000;
        let normal: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        let mean = normal.iter().sum::<f64>() / n as f64;
        let var = normal.iter().map(|v| v * v).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.01 && (var - 1.0).abs() < 0.02, "mean {mean} var {var}");
        let uniform = (0..n).map(|_| rng.below(10) as f64).sum::<f64>() / n as f64;
        assert!((uniform - 4.5).abs() < 0.03, "{uniform}");
    }
}
