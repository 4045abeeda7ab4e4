//! Resampling by windowed-sinc interpolation, as `torchaudio.functional.resample` does with its defaults: a Hann window, six
//! zero crossings to each side, roll-off 0.99 (Smith, Digital Audio Resampling, <https://ccrma.stanford.edu/~jos/resample>).
//! Samples stream through in blocks of any size.

use std::f32::consts::PI;

use super::error::{AudioError, AudioResult};

/// Zero crossings of the sinc to each side.
const WIDTH: f64 = 6.0;
/// Of the lower Nyquist frequency, what passes.
const ROLLOFF: f64 = 0.99;
/// Taps of all phases together at most: rates with a large common divisor need a few thousand.
const MOST_TAPS: usize = 1 << 24;

/// One of the `n` filters, of which output samples take turns.
#[derive(Clone, Debug)]
struct Phase {
    /// Where the taps stand in the padded input, from the first sample of a period.
    first: usize,
    /// Range in all taps.
    taps: std::ops::Range<usize>,
}

/// Turns samples of one rate into samples of another.
#[derive(Clone, Debug)]
pub struct Resampler {
    /// Input samples in a period.
    old: usize,
    /// Output samples in a period.
    new: usize,
    /// Zeros before the first sample.
    width: usize,
    phases: Vec<Phase>,
    taps: Vec<f32>,
    /// All other taps of the reference: zero but for rounding, 1e-23 or so. Only where a filter sees nothing but silence do they
    /// show, and there the logarithm of an energy can tell.
    far: f32,
    /// Input that is still needed, from the start of the current period on.
    pending: Vec<f32>,
    taken: u64,
    given: u64,
}

impl Resampler {
    /// From `from` to `to` samples a second.
    ///
    /// # Errors
    /// A rate is 0, or the two have so small a common divisor that the filters would take more than 64 MB.
    pub fn new(from: u32, to: u32) -> AudioResult<Self> {
        if from == 0 || to == 0 {
            return Err(AudioError::Input(format!("cannot resample from {from} to {to} Hz: rates must be above 0")));
        }
        let divisor = gcd(from, to);
        let (old, new) = ((from / divisor) as usize, (to / divisor) as usize);
        let base = old.min(new) as f64 * ROLLOFF;
        let width = (WIDTH * old as f64 / base).ceil() as usize;
        if old == new {
            return Ok(Self::with(1, 1, 0, Vec::new(), Vec::new()));
        }
        let most = new.checked_mul(2 * width + 2);
        if most.is_none_or(|n| n > MOST_TAPS) {
            return Err(AudioError::Input(format!(
                "cannot resample from {from} to {to} Hz: the rates have too small a common divisor; convert the file to a \
                 usual rate first"
            )));
        }
        let (mut phases, mut taps) = (Vec::with_capacity(new), Vec::new());
        for p in 0..new {
            // All in f32, as the reference does for f32 samples: how positions round changes the output by 6e-6.
            let tap = |j: usize| {
                let t = (-(p as f32) / new as f32 + (j as f32 - width as f32) / old as f32) * base as f32;
                weight(t, (base / old as f64) as f32)
            };
            let centre = width as f64 + p as f64 / new as f64 * old as f64;
            let reach = WIDTH * old as f64 / base;
            let first = (centre - reach).floor().max(0.0) as usize;
            let last = ((centre + reach).ceil() as usize).min(2 * width + old - 1);
            let start = taps.len();
            taps.extend((first..=last).map(tap));
            phases.push(Phase { first, taps: start..taps.len() });
        }
        let far = weight(WIDTH as f32, (base / old as f64) as f32);
        Ok(Self { far, ..Self::with(old, new, width, phases, taps) })
    }

    fn with(old: usize, new: usize, width: usize, phases: Vec<Phase>, taps: Vec<f32>) -> Self {
        Self { old, new, width, phases, taps, far: 0.0, pending: vec![0.0; width], taken: 0, given: 0 }
    }

    /// Takes samples in, and appends those of the new rate that they complete to `out`.
    pub fn push(&mut self, samples: &[f32], out: &mut Vec<f32>) {
        self.taken += samples.len() as u64;
        if self.phases.is_empty() {
            self.given += samples.len() as u64;
            return out.extend_from_slice(samples);
        }
        self.pending.extend_from_slice(samples);
        self.run(out, u64::MAX);
    }

    /// Appends what is left, so that `n` samples have become `ceil(n * to / from)`, and starts anew.
    pub fn finish(&mut self, out: &mut Vec<f32>) {
        if !self.phases.is_empty() {
            let total = (u128::from(self.taken) * self.new as u128).div_ceil(self.old as u128);
            let total = u64::try_from(total).unwrap_or(u64::MAX);
            self.pending.resize(self.pending.len() + self.width + self.old, 0.0);
            self.run(out, total);
        }
        self.pending.clear();
        self.pending.resize(self.width, 0.0);
        (self.taken, self.given) = (0, 0);
    }

    /// All whole periods of what is there, up to `total` samples given.
    fn run(&mut self, out: &mut Vec<f32>, total: u64) {
        let needed = 2 * self.width + self.old;
        let mut at = 0;
        while let Some(period) = self.pending.get(at..at + needed) {
            let count = (total - self.given).min(self.new as u64) as usize;
            let mut all = None;
            out.extend(self.phases[..count].iter().map(|phase| {
                let taps = &self.taps[phase.taps.clone()];
                match dot(taps, &period[phase.first..][..taps.len()]) {
                    0.0 => self.far * *all.get_or_insert_with(|| period.iter().sum::<f32>()),
                    value => value,
                }
            }));
            self.given += count as u64;
            at += self.old;
        }
        self.pending.drain(..at);
    }
}

/// All samples at once.
///
/// # Errors
/// As [`Resampler::new`].
pub fn resample(samples: &[f32], from: u32, to: u32) -> AudioResult<Vec<f32>> {
    let mut resampler = Resampler::new(from, to)?;
    let mut out = Vec::with_capacity((samples.len() as u128 * u128::from(to) / u128::from(from)) as usize + 1);
    resampler.push(samples, &mut out);
    resampler.finish(&mut out);
    Ok(out)
}

/// The filter `t` zero crossings from its centre, by f32 arithmetic in the reference's order.
fn weight(t: f32, scale: f32) -> f32 {
    let t = t.clamp(-WIDTH as f32, WIDTH as f32);
    let window = (t * PI / WIDTH as f32 / 2.0).cos().powi(2);
    let x = t * PI;
    let sinc = if x == 0.0 { 1.0 } else { x.sin() / x };
    sinc * (window * scale)
}

/// Eight sums side by side, which compilers turn into vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (mut sums, n) = ([0f32; 8], a.len() / 8 * 8);
    for (a, b) in a[..n].chunks_exact(8).zip(b[..n].chunks_exact(8)) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a[n..].iter().zip(&b[n..]).map(|(a, b)| a * b).sum();
    ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7])) + rest
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(rate: u32, hertz: f64, n: usize) -> Vec<f32> {
        (0..n).map(|i| (std::f64::consts::TAU * hertz * i as f64 / f64::from(rate)).sin() as f32).collect()
    }

    #[test]
    fn blocks_of_any_size_give_the_same_bits() -> AudioResult<()> {
        let samples = tone(44100, 440.0, 20_000);
        let whole = resample(&samples, 44100, 16000)?;
        assert_eq!(whole.len(), (20_000usize * 160).div_ceil(441));
        for block in [1, 7, 441, 5000] {
            let (mut resampler, mut out) = (Resampler::new(44100, 16000)?, Vec::new());
            for _ in 0..2 {
                out.clear();
                samples.chunks(block).for_each(|b| resampler.push(b, &mut out));
                resampler.finish(&mut out);
                assert_eq!(out, whole);
            }
        }
        Ok(())
    }

    #[test]
    fn a_tone_stays_a_tone_and_one_above_the_new_nyquist_goes() -> AudioResult<()> {
        for (from, to) in [(44100, 16000), (8000, 16000), (48000, 16000), (16000, 24000), (22050, 16000)] {
            let got = resample(&tone(from, 1000.0, from as usize / 2), from, to)?;
            let expected = tone(to, 1000.0, got.len());
            let middle = 200..got.len() - 200;
            let worst =
                got[middle.clone()].iter().zip(&expected[middle]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 3e-3, "{from} to {to}: {worst}");
        }
        let high = resample(&tone(44100, 12000.0, 44100), 44100, 16000)?;
        let left = high[200..high.len() - 200].iter().map(|v| v.abs()).fold(0.0, f32::max);
        assert!(left < 1e-2, "{left}");
        Ok(())
    }

    #[test]
    fn short_and_odd_inputs() -> AudioResult<()> {
        assert!(resample(&[], 44100, 16000)?.is_empty());
        assert_eq!(resample(&[0.5], 44100, 16000)?.len(), 1);
        assert_eq!(resample(&[0.5, 0.25], 16000, 16000)?, [0.5, 0.25]);
        assert!(Resampler::new(0, 16000).is_err() && Resampler::new(16000, 0).is_err());
        assert!(Resampler::new(4_000_000_007, 15_999).is_err(), "filters without bound");
        Ok(())
    }
}
