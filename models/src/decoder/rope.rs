//! Rotary frequencies and the ways in which checkpoints stretch them to longer contexts (`rope_scaling`).
//!
//! Facts and names from `transformers` 4.57, `modeling_rope_utils.py`. Two of the ways depend on the length of the text
//! (dynamic NTK, LongRoPE): here on the length of each row, so that a row's tokens do not depend on its neighbours; with
//! [`Context::reference_padding`](super::Context::reference_padding) on the longest row of the batch, as `transformers` has it.

use std::f64::consts::PI;

use candle_core::{Result, bail};
use moesaic_kernels::rotary::{Rotary, RotaryStyle, RotaryTables};

/// Rotary positions of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How many dimensions of a head turn.
    pub dims: usize,
    /// Which of them turn together.
    pub style: RotaryStyle,
    /// How frequencies change for longer contexts.
    pub scaling: RopeScaling,
    /// Frequencies that turn with three streams of positions (time, row, column) instead of one: how many of each, taken in
    /// turn from the highest frequency on until rows and columns have theirs (Qwen3-VL's interleaved M-RoPE).
    pub sections: Option<[usize; 3]>,
}

/// How frequencies change for longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Divided by a factor (position interpolation, arXiv 2306.15595).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// The base grows with texts longer than the model was trained for (dynamic NTK).
    Dynamic {
        /// How strongly.
        factor: f64,
        /// The length up to which nothing changes.
        original: usize,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, those between blended.
    Llama3 {
        /// Divides low frequencies.
        factor: f64,
        /// Wavelengths longer than `original / low` count as low frequencies.
        low: f64,
        /// Wavelengths shorter than `original / high` count as high frequencies.
        high: f64,
        /// The length that the model was trained for at first.
        original: usize,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// Divides low frequencies.
        factor: f64,
        /// Turns within `original` above which a frequency is kept.
        beta_fast: f64,
        /// Turns within `original` below which a frequency is divided.
        beta_slow: f64,
        /// The length that the model was trained for at first.
        original: usize,
        /// Multiplies cosines and sines.
        attention: f64,
        /// Bounds of the ramp are rounded to whole dimensions.
        truncate: bool,
    },
    /// LongRoPE (arXiv 2402.13753): a factor for each frequency, one set for short and one for long texts.
    LongRope {
        /// Divide frequencies while the text is at most `original` long.
        short: Vec<f64>,
        /// Divide frequencies of longer texts.
        long: Vec<f64>,
        /// Multiplies cosines and sines of short texts.
        short_scale: f64,
        /// Multiplies cosines and sines of long texts.
        long_scale: f64,
        /// The length that the model was trained for at first.
        original: usize,
    },
}

/// `0.1 m ln(factor) + 1`, YaRN's correction of the scores' temperature; 1 for factors up to 1.
pub(super) fn yarn_scale(factor: f64, m: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 }
}

impl RopeConfig {
    /// Checks values before frequencies are made of them.
    pub(super) fn validate(&self) -> Result<()> {
        let positive = |name: &str, value: f64| match value > 0.0 && value.is_finite() {
            true => Ok(()),
            false => bail!("{name} is {value}, expected a positive number"),
        };
        let length = |name: &str, n: usize| match n {
            0 => bail!("{name} is 0"),
            _ => Ok(()),
        };
        positive("rope_theta", self.theta)?;
        if self.dims == 0 || !self.dims.is_multiple_of(2) {
            bail!("rotary positions over {} dimensions of a head, expected an even number", self.dims);
        }
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("the factor of rope_scaling", *factor),
            RopeScaling::Dynamic { factor, original } => {
                if self.dims == 2 {
                    bail!("dynamic rope_scaling needs more than two rotary dimensions");
                }
                length("the length that dynamic rope_scaling starts from", *original)?;
                positive("the factor of rope_scaling", *factor)
            }
            RopeScaling::Llama3 { factor, low, high, original } => {
                positive("the factor of rope_scaling", *factor)?;
                positive("low_freq_factor", *low)?;
                positive("high_freq_factor", *high)?;
                length("original_max_position_embeddings", *original)?;
                if high <= low {
                    bail!("high_freq_factor {high} must be above low_freq_factor {low}");
                }
                Ok(())
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original, attention, .. } => {
                positive("the factor of rope_scaling", *factor)?;
                positive("beta_fast", *beta_fast)?;
                positive("beta_slow", *beta_slow)?;
                positive("the attention factor of rope_scaling", *attention)?;
                length("original_max_position_embeddings", *original)?;
                if self.theta == 1.0 {
                    bail!("yarn needs a rope_theta other than 1");
                }
                Ok(())
            }
            RopeScaling::LongRope { short, long, short_scale, long_scale, original } => {
                positive("short_mscale", *short_scale)?;
                positive("long_mscale", *long_scale)?;
                length("original_max_position_embeddings", *original)?;
                for (name, factors) in [("short_factor", short), ("long_factor", long)] {
                    if factors.len() != self.dims / 2 {
                        bail!("{name} has {} values, expected {}", factors.len(), self.dims / 2);
                    }
                    factors.iter().try_for_each(|&f| positive(name, f))?;
                }
                Ok(())
            }
        }
    }
}

impl RopeConfig {
    /// Streams of positions that a token has.
    pub fn streams(&self) -> usize {
        if self.sections.is_some() { 3 } else { 1 }
    }

    fn rotary(&self, frequencies: Vec<f64>, factor: f64) -> Result<Rotary> {
        let rotary = Rotary::from_frequencies(frequencies, factor, self.style)?;
        let Some([_, rows, columns]) = self.sections else { return Ok(rotary) };
        let stream = |j: usize| match j % 3 {
            1 if j < rows.saturating_mul(3) => 1,
            2 if j < columns.saturating_mul(3) => 2,
            _ => 0,
        };
        rotary.with_streams((0..self.dims / 2).map(stream).collect())
    }
}

/// Frequencies of a model.
#[derive(Clone, Debug)]
pub(super) struct Rope {
    config: RopeConfig,
    /// Of texts that are not too long for it, which may be all.
    short: Rotary,
    /// LongRoPE's of longer ones.
    long: Option<Rotary>,
}

impl Rope {
    pub(super) fn new(config: &RopeConfig) -> Result<Self> {
        let make = |frequencies, factor| config.rotary(frequencies, factor);
        let plain = frequencies(config.theta, config.dims);
        let divided = |by: &[f64]| plain.iter().zip(by).map(|(f, by)| f / by).collect::<Vec<_>>();
        let mut long = None;
        let short = match &config.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => make(plain, 1.0)?,
            RopeScaling::Linear { factor } => make(plain.iter().map(|f| f / factor).collect(), 1.0)?,
            RopeScaling::Llama3 { factor, low, high, original } => {
                make(plain.iter().map(|&f| llama3(f, *factor, *low, *high, *original as f64)).collect(), 1.0)?
            }
            RopeScaling::Yarn { attention, .. } => make(yarn(config, &plain), *attention)?,
            RopeScaling::LongRope { short, long: by, short_scale, long_scale, .. } => {
                long = Some(make(divided(by), *long_scale)?);
                make(divided(short), *short_scale)?
            }
        };
        Ok(Self { config: config.clone(), short, long })
    }

    /// Cosines and sines of `positions [b * t]`, or of three streams of them. `together`: every row is taken to be as long as
    /// the longest.
    pub(super) fn tables(&self, positions: &[u32], b: usize, t: usize, together: bool) -> Result<RotaryTables> {
        let (given, streams) = (positions.len() / (b * t).max(1), self.config.streams());
        if given != 1 && given != streams {
            bail!("{given} streams of positions for a model with {streams}");
        }
        let threshold = match self.config.scaling {
            RopeScaling::Dynamic { original, .. } | RopeScaling::LongRope { original, .. } => original,
            _ => return self.short.tables(positions, b, t),
        };
        let mut lengths = vec![0; b];
        for (i, row) in positions.chunks(t.max(1)).enumerate() {
            let length = row.iter().max().map_or(0, |&p| p as usize + 1);
            if let Some(longest) = lengths.get_mut(i % b.max(1)) {
                *longest = length.max(*longest);
            }
        }
        if together {
            let longest = lengths.iter().copied().max().unwrap_or(0);
            lengths.fill(longest);
        }
        let rotaries = lengths.iter().map(|&length| match (&self.config.scaling, &self.long) {
            (RopeScaling::Dynamic { factor, original }, _) if length > threshold => {
                let (dims, stretch) = (self.config.dims as f64, factor * length as f64 / *original as f64);
                let theta = self.config.theta * (stretch - (factor - 1.0)).powf(dims / (dims - 2.0));
                self.config.rotary(frequencies(theta, self.config.dims), 1.0)
            }
            (_, Some(long)) if length > threshold => Ok(long.clone()),
            _ => Ok(self.short.clone()),
        });
        RotaryTables::by_row(&rotaries.collect::<Result<Vec<_>>>()?, positions, b, t)
    }
}

/// `theta^(-2j/d)`
fn frequencies(theta: f64, dims: usize) -> Vec<f64> {
    (0..dims / 2).map(|j| theta.powf(-2.0 * j as f64 / dims as f64)).collect()
}

fn llama3(f: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = 2.0 * PI / f;
    if wavelength < original / high {
        f
    } else if wavelength > original / low {
        f / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * f / factor + smooth * f
    }
}

fn yarn(config: &RopeConfig, plain: &[f64]) -> Vec<f64> {
    let RopeScaling::Yarn { factor, beta_fast, beta_slow, original, truncate, .. } = config.scaling else {
        return plain.to_vec();
    };
    let dims = config.dims as f64;
    // The dimension whose frequency turns `turns` times within the original length.
    let dimension = |turns: f64| dims * (original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * config.theta.ln());
    let (low, high) = (dimension(beta_fast), dimension(beta_slow));
    let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, mut high) = (low.max(0.0), high.min(dims - 1.0));
    if low == high {
        high += 0.001;
    }
    let blend = |(j, f): (usize, &f64)| {
        let divided = ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
        f / factor * divided + f * (1.0 - divided)
    };
    plain.iter().enumerate().map(blend).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(scaling: RopeScaling) -> RopeConfig {
        RopeConfig { theta: 10000.0, dims: 4, style: RotaryStyle::Half, scaling, sections: None }
    }

    #[test]
    fn frequencies_by_hand() {
        assert_eq!(frequencies(10000.0, 4), [1.0, 0.01]);
        // Wavelengths 6.3 and 628: with 100 tokens the first is high (below 25), the second low (above 100).
        assert_eq!(llama3(1.0, 8.0, 1.0, 4.0, 100.0), 1.0);
        assert_eq!(llama3(0.01, 8.0, 1.0, 4.0, 100.0), 0.01 / 8.0);
        // Wavelength 50: smooth = (2 - 1) / 3.
        let f = 2.0 * PI / 50.0;
        assert!((llama3(f, 8.0, 1.0, 4.0, 100.0) - (f * 2.0 / 3.0 / 8.0 + f / 3.0)).abs() < 1e-12);
        assert_eq!(yarn_scale(1.0, 5.0), 1.0);
        assert!((yarn_scale(40.0, 0.707) - 1.260_804).abs() < 1e-5);
    }

    #[test]
    fn each_row_has_the_frequencies_of_its_own_length() -> Result<()> {
        let scaling = RopeScaling::LongRope {
            short: vec![1.0, 1.0],
            long: vec![1.0, 2.0],
            short_scale: 1.0,
            long_scale: 3.0,
            original: 4,
        };
        for scaling in [scaling, RopeScaling::Dynamic { factor: 2.0, original: 4 }] {
            let rope = Rope::new(&config(scaling))?;
            let values = |t: RotaryTables| t.cos().flatten_all()?.to_vec1::<f32>();
            // Row 0 is four tokens long, row 1 six.
            let both = values(rope.tables(&[2, 3, 4, 5], 2, 2, false)?)?;
            assert_eq!(both[..4], values(rope.tables(&[2, 3], 1, 2, false)?)?);
            assert_eq!(both[4..], values(rope.tables(&[4, 5], 1, 2, false)?)?);
            // Together the short row is taken for a long one.
            let together = values(rope.tables(&[2, 3, 4, 5], 2, 2, true)?)?;
            assert_ne!(both[..4], together[..4]);
            assert_eq!(both[4..], together[4..]);
        }
        Ok(())
    }

    #[test]
    fn impossible_values_are_refused() {
        let bad = [
            RopeScaling::Linear { factor: 0.0 },
            RopeScaling::Linear { factor: f64::NAN },
            RopeScaling::Dynamic { factor: 2.0, original: 0 },
            RopeScaling::Llama3 { factor: 8.0, low: 4.0, high: 4.0, original: 8 },
            RopeScaling::LongRope {
                short: vec![1.0],
                long: vec![1.0, 2.0],
                short_scale: 1.0,
                long_scale: 1.0,
                original: 4,
            },
        ];
        for scaling in bad {
            assert!(config(scaling.clone()).validate().is_err(), "{scaling:?}");
        }
        assert!(RopeConfig { dims: 3, ..config(RopeScaling::None) }.validate().is_err());
        assert!(RopeConfig { theta: f64::INFINITY, ..config(RopeScaling::None) }.validate().is_err());
    }
}
