//! What training does to sound and lips before a model gets them: noise, masks over time, crops.

use std::ops::Range;

use candle_core::{Result, bail};
use moesaic_kernels::rng::Rng;

/// Masks over time that grow with the clip (Ma et al., Auto-AVSR, arXiv 2303.14307): one for every started `stride`, each shorter
/// than `window`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeMask {
    /// Steps that a mask stays below.
    pub window: usize,
    /// Steps for which there is one mask.
    pub stride: usize,
}

impl TimeMask {
    /// Samples at 16 kHz: below 0.4 s for every second.
    pub const SOUND: Self = Self { window: 6400, stride: 16_000 };
    /// Frames at 25 a second: below 0.4 s for every second.
    pub const LIPS: Self = Self { window: 10, stride: 25 };

    /// What is masked of a clip of `length` steps; ranges may overlap.
    pub fn ranges(&self, length: usize, rng: &mut Rng) -> Vec<Range<usize>> {
        let count = length.div_ceil(self.stride.max(1));
        let mut ranges = Vec::with_capacity(count);
        for _ in 0..count {
            // The authors draw two lengths: one keeps the start away from the end, and a start without it is no mask; the
            // other is the mask's.
            let (room, size) = (rng.below(self.window), rng.below(self.window));
            if room == 0 || room >= length {
                continue;
            }
            let start = rng.below(length - room);
            ranges.push(start..(start + size).min(length));
        }
        ranges
    }

    /// Masks a clip whose steps are `width` values each with `fill`.
    pub fn apply(&self, values: &mut [f32], width: usize, fill: f32, rng: &mut Rng) {
        for range in self.ranges(values.len() / width.max(1), rng) {
            if let Some(masked) = values.get_mut(range.start * width..range.end * width) {
                masked.fill(fill);
            }
        }
    }
}

/// Adds noise that is `snr` decibels weaker than the signal. Silence, on either side, has no such ratio and changes nothing.
///
/// # Errors
/// The lengths differ, or the ratio is no number.
pub fn add_noise(signal: &mut [f32], noise: &[f32], snr: f64) -> Result<()> {
    if signal.len() != noise.len() || !snr.is_finite() {
        bail!("noise of {} samples at {snr} dB for a signal of {}", noise.len(), signal.len());
    }
    let energy = |x: &[f32]| x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    let (of_signal, of_noise) = (energy(signal), energy(noise));
    if of_signal > 0.0 && of_noise > 0.0 {
        let scale = (of_signal / of_noise).sqrt() * 10f64.powf(-snr / 20.0);
        signal.iter_mut().zip(noise).for_each(|(s, n)| *s = (f64::from(*s) + scale * f64::from(*n)) as f32);
    }
    Ok(())
}

/// Where noise comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum NoiseSource {
    /// Samples at 16 kHz, of which a random part is taken; repeated where they are shorter than the signal.
    Recording(Vec<f32>),
    /// Normal values, all alike.
    White,
}

/// Noises, of which one is added at a random ratio.
#[derive(Clone, Debug)]
pub struct Noise {
    sources: Vec<NoiseSource>,
    levels: Vec<Option<f64>>,
}

impl Noise {
    /// The ratios that Llama-AVSR is trained with, in decibels; absent for none.
    pub const LEVELS: [Option<f64>; 7] = [Some(-5.0), Some(0.0), Some(5.0), Some(10.0), Some(15.0), Some(20.0), None];

    /// A recording at 16 kHz, and the ratios to draw from.
    ///
    /// # Errors
    /// There is no noise or no ratio, or a value is no number.
    pub fn new(samples: Vec<f32>, levels: Vec<Option<f64>>) -> Result<Self> {
        Self::of(vec![NoiseSource::Recording(samples)], levels)
    }

    /// Several noises, of which each is as likely as another, and the ratios to draw from.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of(sources: Vec<NoiseSource>, levels: Vec<Option<f64>>) -> Result<Self> {
        let sound = |source: &NoiseSource| match source {
            NoiseSource::Recording(samples) => !samples.is_empty() && samples.iter().all(|v| v.is_finite()),
            NoiseSource::White => true,
        };
        if sources.is_empty() || !sources.iter().all(sound) {
            bail!("the noise has no samples, or some that are no numbers");
        }
        if levels.is_empty() || !levels.iter().flatten().all(|v| v.is_finite()) {
            bail!("there is no ratio of signal to noise to draw, or one that is no number");
        }
        Ok(Self { sources, levels })
    }

    /// Adds a noise at a random ratio, and tells which ratio.
    ///
    /// # Errors
    /// None for what [`of`](Self::of) took.
    pub fn apply(&self, signal: &mut [f32], rng: &mut Rng) -> Result<Option<f64>> {
        let chosen = if self.sources.len() > 1 { rng.below(self.sources.len()) } else { 0 };
        let start = match self.sources.get(chosen) {
            Some(NoiseSource::Recording(samples)) => rng.below(samples.len().saturating_sub(signal.len()) + 1),
            _ => 0,
        };
        let Some(&Some(snr)) = self.levels.get(rng.below(self.levels.len())) else { return Ok(None) };
        let part: Vec<f32> = match self.sources.get(chosen) {
            Some(NoiseSource::Recording(samples)) => {
                samples.iter().cycle().skip(start).take(signal.len()).copied().collect()
            }
            _ => (0..signal.len()).map(|_| rng.normal() as f32).collect(),
        };
        add_noise(signal, &part, snr)?;
        Ok(Some(snr))
    }
}

/// A square of `side` pixels at a random place of RGB frames of `height` rows and `width` columns, the same in all of them.
///
/// # Shapes
/// `t * height * width * 3` bytes to `t * side * side * 3`
///
/// # Errors
/// Frames are smaller than the square, or the bytes are not whole frames.
pub fn random_crop(rgb: &[u8], (height, width): (usize, usize), side: usize, rng: &mut Rng) -> Result<Vec<u8>> {
    let size = height * width * 3;
    if side == 0 || height < side || width < side || !rgb.len().is_multiple_of(size.max(1)) {
        bail!("a crop of {side} pixels out of frames of {height}x{width}, {} bytes in all", rgb.len());
    }
    let (top, left) = (rng.below(height - side + 1), rng.below(width - side + 1));
    let rows = rgb.chunks_exact(size).flat_map(|frame| frame.chunks_exact(width * 3).skip(top).take(side));
    Ok(rows.flat_map(|row| row.iter().skip(left * 3).take(side * 3)).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn energy(x: &[f32]) -> f64 {
        x.iter().map(|&v| f64::from(v).powi(2)).sum()
    }

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| 0.3 * (i as f32 * step).sin() + 0.01).collect()
    }

    #[test]
    fn the_ratio_of_signal_to_noise_is_the_one_asked_for() -> Result<()> {
        let (clean, noise) = (wave(4000, 0.37), wave(4000, 1.7));
        for snr in [-5.0, 0.0, 2.5, 20.0] {
            let mut noisy = clean.clone();
            add_noise(&mut noisy, &noise, snr)?;
            let added: Vec<f32> = noisy.iter().zip(&clean).map(|(a, b)| a - b).collect();
            let found = 10.0 * (energy(&clean) / energy(&added)).log10();
            assert!((found - snr).abs() < 1e-4, "{found} for {snr}");
            // It is the noise itself, scaled.
            let scale = added[1] / noise[1];
            assert!(added.iter().zip(&noise).all(|(a, n)| (a - scale * n).abs() < 1e-5));
        }
        let mut silence = vec![0f32; 10];
        add_noise(&mut silence, &noise[..10], 0.0)?;
        assert_eq!(silence, [0.0; 10]);
        assert!(add_noise(&mut silence, &noise, 0.0).is_err());
        Ok(())
    }

    #[test]
    fn noise_is_drawn_from_all_levels_and_places() -> Result<()> {
        let noise = Noise::new(wave(9000, 0.9), Noise::LEVELS.to_vec())?;
        let (clean, mut seen) = (wave(3000, 0.2), Vec::new());
        for seed in 0..60 {
            let (mut one, mut two) = (clean.clone(), clean.clone());
            let level = noise.apply(&mut one, &mut Rng::new(seed))?;
            assert_eq!(noise.apply(&mut two, &mut Rng::new(seed))?, level);
            assert_eq!(one, two);
            assert_eq!(level.is_none(), one == clean);
            seen.push(level);
        }
        assert!(Noise::LEVELS.iter().all(|level| seen.contains(level)), "{seen:?}");
        // Noise that is too short goes around.
        let short = Noise::new(vec![1.0, -1.0], vec![Some(0.0)])?;
        let mut signal = vec![0.5f32; 4];
        short.apply(&mut signal, &mut Rng::new(1))?;
        assert_eq!(signal, [1.0, 0.0, 1.0, 0.0]);
        // Of several noises all are drawn; white noise is another one each time.
        let sources = vec![NoiseSource::Recording(vec![1.0, -1.0]), NoiseSource::White];
        let noise = Noise::of(sources, vec![Some(0.0)])?;
        let mut kinds = [0, 0];
        for seed in 0..40 {
            let mut signal = vec![0.5f32; 100];
            noise.apply(&mut signal, &mut Rng::new(seed))?;
            kinds[usize::from(signal.iter().any(|v| *v != 1.0 && *v != 0.0))] += 1;
        }
        assert!(kinds.iter().all(|n| *n > 8), "{kinds:?}");
        assert!(Noise::of(Vec::new(), vec![None]).is_err());
        assert!(Noise::new(Vec::new(), vec![None]).is_err() && Noise::new(vec![1.0], Vec::new()).is_err());
        assert!(Noise::new(vec![f32::NAN], vec![None]).is_err());
        Ok(())
    }

    #[test]
    fn masks_are_shorter_than_the_window_and_one_for_each_stride() {
        let (mut longest, mut places) = (0, 0);
        for seed in 0..400 {
            let ranges = TimeMask::SOUND.ranges(40_000, &mut Rng::new(seed));
            assert!(ranges.len() <= 3, "{ranges:?}");
            assert!(ranges.iter().all(|r| r.len() < 6400 && r.start < 40_000 && r.end <= 40_000), "{ranges:?}");
            longest = ranges.iter().map(Range::len).fold(longest, usize::max);
            places += ranges.len();
        }
        // Nearly all of the 1200 masks start, and lengths reach up to the window.
        assert!(places > 1180 && longest > 6000, "{places} {longest}");
        assert!(TimeMask::SOUND.ranges(0, &mut Rng::new(1)).is_empty());
        let mut values = vec![1f32; 50 * 4];
        TimeMask::LIPS.apply(&mut values, 4, -2.5, &mut Rng::new(3));
        let masked = values.chunks(4).filter(|step| step.iter().all(|v| *v == -2.5)).count();
        assert!(masked > 0 && values.chunks(4).all(|step| step.iter().all(|v| *v == step[0])), "whole steps only");
        assert!(masked < 20);
    }

    #[test]
    fn crops_are_the_same_in_all_frames() -> Result<()> {
        let rgb: Vec<u8> = (0..2).flat_map(|t| (0..4 * 5 * 3).map(move |i| t * 100 + i)).collect();
        let crop = random_crop(&rgb, (4, 5), 2, &mut Rng::new(2))?;
        assert_eq!(crop.len(), 2 * 2 * 2 * 3);
        assert!(crop[..12].iter().zip(&crop[12..]).all(|(a, b)| b - a == 100));
        assert_eq!(crop[6], crop[0] + 15, "the row below");
        let places: std::collections::BTreeSet<u8> =
            (0..100).map(|s| random_crop(&rgb, (4, 5), 2, &mut Rng::new(s)).unwrap()[0]).collect();
        assert_eq!(places.len(), 3 * 4);
        assert!(random_crop(&rgb, (4, 5), 5, &mut Rng::new(2)).is_err());
        assert!(random_crop(&rgb[1..], (4, 5), 2, &mut Rng::new(2)).is_err());
        Ok(())
    }
}
