//! From raw series to the tokens of one forecast (`MoiraiMoEForecast` of the reference and its transformation).

use candle_core::{Result, bail};

use super::{Config, Patches, Scaling};

/// A series to continue: any number of variates measured together, and what is known beside them. NaN is missing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request<'a> {
    /// The variates to forecast, all of one length T.
    pub target: Vec<&'a [f32]>,
    /// Covariates known over the horizon too, T + horizon values or more each.
    pub known: Vec<&'a [f32]>,
    /// Covariates known up to now, T values each.
    pub past: Vec<&'a [f32]>,
}

impl<'a> Request<'a> {
    /// One variate alone.
    pub fn univariate(target: &'a [f32]) -> Self {
        Self { target: vec![target], ..Self::default() }
    }
}

/// How much of a series is looked at and forecast, and how it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Newest values that the model sees.
    pub context: usize,
    /// Values to forecast.
    pub horizon: usize,
    /// Values of a patch, one of the model's sizes.
    pub patch: usize,
}

/// Tokens that one forecast may have, and values of a series: more are a mistake.
const MOST: usize = 1 << 22;

impl Cut {
    /// Patches of the context, of the horizon.
    fn patches(&self) -> (usize, usize) {
        (self.context.div_ceil(self.patch.max(1)), self.horizon.div_ceil(self.patch.max(1)))
    }
}

/// The tokens of one request, in the order of the reference: past of all targets, their future, past of known covariates, their
/// future, past covariates.
#[derive(Clone, Debug, PartialEq)]
pub struct Windows {
    /// One row of tokens.
    pub patches: Patches,
    /// How it was cut.
    pub cut: Cut,
    targets: usize,
    known: usize,
    /// What each target was multiplied with, a power of two.
    factors: Vec<f64>,
}

/// One variate in its window.
struct Variate {
    /// `[context + horizon]` or `[context]`, missing ones filled.
    values: Vec<f32>,
    observed: Vec<bool>,
}

impl Windows {
    /// Cuts a request into tokens. With `rescale`, variates whose spread would drown in the 1e-5 that the model adds to each
    /// variance, or that come near the end of f32, are multiplied with a power of two before, and forecasts are to be divided by
    /// it ([`factor`](Self::factor)); the reference does not do that.
    ///
    /// # Errors
    /// Lengths that do not fit, a value that is infinite, a target without any observed value in the window, a known covariate
    /// that ends before the horizon, or a cut that the model cannot make.
    pub fn new(config: &Config, request: &Request<'_>, cut: Cut, rescale: bool) -> Result<Self> {
        let Cut { context, horizon, patch } = cut;
        let length = check(config, request, cut)?;
        let mut variates = Vec::new();
        let mut factors = Vec::new();
        let alone = request.target.len() == 1;
        let kinds = [(&request.target, false), (&request.known, true), (&request.past, false)];
        for (kind, (series, ahead)) in kinds.into_iter().enumerate() {
            for (i, &values) in series.iter().enumerate() {
                let end = if ahead { length + horizon } else { length };
                let filled = if kind == 0 && alone { causal_mean(values) } else { zeros(values) };
                let first = length.saturating_sub(context);
                let mut variate = Variate {
                    values: filled[first..end].to_vec(),
                    observed: values[first..end].iter().map(|v| !v.is_nan()).collect(),
                };
                if kind == 0 && !variate.observed.contains(&true) {
                    bail!(
                        "target {i} has no observed value among its last {context}: give more history, or leave it out"
                    );
                }
                let factor = if rescale { variate.factor() } else { 1.0 };
                variate.values.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
                if kind == 0 {
                    factors.push(factor);
                }
                variates.push(variate);
            }
        }
        let (targets, known) = (request.target.len(), request.known.len());
        let (past, future) = cut.patches();
        let mut tokens = Builder { width: config.max_patch(), patch, ..Builder::default() };
        let seen = length.min(context);
        // Cells of the window that lie before the series, and cells that fill the first patch up.
        let (before, fill) = (context - seen, past * patch - context);
        let cell = |v: usize, i: usize| -> (f32, bool, bool) {
            // The reference takes the filling of covariates for values.
            let Some(at) = i.checked_sub(fill) else { return (0.0, false, v < targets) };
            match at.checked_sub(before) {
                None => (0.0, false, true),
                Some(at) => (variates[v].values[at], variates[v].observed[at], false),
            }
        };
        // Time stands still until the first patch with an observed target.
        let sees = |t: usize| (0..targets).any(|v| (t * patch..(t + 1) * patch).any(|i| cell(v, i).1));
        let first = (0..past).find(|&t| sees(t)).unwrap_or(0);
        let last = (past - 1).saturating_sub(first);
        let push_past = |tokens: &mut Builder, v: usize| {
            for t in 0..past {
                let cells = (t * patch..(t + 1) * patch).map(|i| cell(v, i));
                tokens.push(cells, v, t.saturating_sub(first), false);
            }
        };
        (0..targets).for_each(|v| push_past(&mut tokens, v));
        for v in 0..targets {
            for t in 0..future {
                let cells = (t * patch..(t + 1) * patch).map(|i| (0.0, i < horizon, false));
                tokens.push(cells, v, last + 1 + t, true);
            }
        }
        (targets..targets + known).for_each(|v| push_past(&mut tokens, v));
        for (v, variate) in variates.iter().enumerate().skip(targets).take(known) {
            let ahead = |i: usize| match i < horizon {
                true => (variate.values[seen + i], variate.observed[seen + i], false),
                false => (0.0, false, false),
            };
            for t in 0..future {
                tokens.push((t * patch..(t + 1) * patch).map(ahead), v, last + 1 + t, false);
            }
        }
        (targets + known..variates.len()).for_each(|v| push_past(&mut tokens, v));
        Ok(Self { patches: tokens.finish(), cut, targets, known, factors })
    }

    /// The windows' tokens as rows of one batch.
    ///
    /// # Errors
    /// They have different numbers of tokens.
    pub fn rows(windows: &[Self]) -> Result<Patches> {
        let mut all = Patches::default();
        for Self { patches, .. } in windows {
            if all.rows > 0 && (patches.length, patches.width) != (all.length, all.width) {
                bail!("windows of {} and of {} tokens do not make one batch", all.length, patches.length);
            }
            (all.length, all.width) = (patches.length, patches.width);
            all.rows += patches.rows;
            all.target.extend(&patches.target);
            all.observed.extend(&patches.observed);
            all.sample_id.extend(&patches.sample_id);
            all.time_id.extend(&patches.time_id);
            all.variate_id.extend(&patches.variate_id);
            all.prediction.extend(&patches.prediction);
            all.patch_size.extend(&patches.patch_size);
        }
        Ok(all)
    }

    /// Variates that are forecast.
    pub fn targets(&self) -> usize {
        self.targets
    }

    /// What target `v` was multiplied with.
    pub fn factor(&self, v: usize) -> f64 {
        self.factors.get(v).copied().unwrap_or(1.0)
    }

    /// Patches to forecast.
    pub(super) fn future(&self) -> usize {
        self.cut.patches().1
    }

    /// The token of target `v` after which patch `step` of the future comes: the last of its past, then those of its future.
    pub(super) fn before(&self, v: usize, step: usize) -> usize {
        let (past, future) = self.cut.patches();
        match step.checked_sub(1) {
            None => v * past + past - 1,
            Some(step) => self.targets * past + v * future + step,
        }
    }

    /// The tokens of covariates in patch `step` of the future.
    pub(super) fn covariates(&self, step: usize) -> impl Iterator<Item = usize> + use<> {
        let ((past, future), targets, known) = (self.cut.patches(), self.targets, self.known);
        (0..known).map(move |c| targets * (past + future) + known * past + c * future + step)
    }

    /// When the last patch of the past is.
    pub(super) fn now(&self) -> u32 {
        self.patches.time_id.get(self.before(0, 0)).copied().unwrap_or(0)
    }

    /// Tokens that are no padding and not after `time`.
    pub(super) fn up_to(patches: &Patches, time: u32) -> Vec<usize> {
        (0..patches.tokens()).filter(|&t| patches.sample_id[t] != 0 && patches.time_id[t] <= time).collect()
    }

    /// The scaled values of a patch of target `v`, as the token that holds it has them.
    pub(super) fn scaled(&self, scaling: &Scaling, v: usize, values: &[f32]) -> Vec<f32> {
        let token = self.before(v, 0);
        let (loc, scale) = (f64::from(scaling.loc[token]), f64::from(scaling.scale[token]));
        let mut z: Vec<f32> = values.iter().map(|&y| ((f64::from(y) - loc) / scale) as f32).collect();
        z.resize(self.patches.width, 0.0);
        z
    }
}

/// Checks a request; the answer is the length of the history.
fn check(config: &Config, request: &Request<'_>, Cut { context, horizon, patch }: Cut) -> Result<usize> {
    if !config.patch_sizes.contains(&patch) {
        bail!("a patch of {patch}, the model has {:?}", config.patch_sizes);
    }
    if context == 0 || horizon == 0 {
        bail!("a context of {context} and a horizon of {horizon}: both must be at least 1");
    }
    let variates = request.target.len() + request.known.len() + request.past.len();
    let tokens = context.checked_add(horizon).and_then(|n| n.checked_mul(variates));
    if tokens.is_none_or(|n| n > MOST) {
        bail!(
            "{variates} variates, a context of {context} and a horizon of {horizon} are too much: use less than {MOST} values"
        );
    }
    let Some(length) = request.target.first().map(|values| values.len()) else {
        bail!("there is no target to forecast");
    };
    if length == 0 {
        bail!("target 0 has no values; a forecast needs at least one");
    }
    for (name, series, wanted, more) in [
        ("target", &request.target, length, false),
        ("known covariate", &request.known, length + horizon, true),
        ("past covariate", &request.past, length, false),
    ] {
        for (i, values) in series.iter().enumerate() {
            if values.len() < wanted && more {
                bail!(
                    "{name} {i} has {} values and ends before the horizon: {length} of history and {horizon} ahead are needed",
                    values.len()
                );
            }
            if values.len() != wanted && !more {
                bail!("{name} {i} has {} values, expected {wanted}, as many as target 0", values.len());
            }
            if let Some(at) = values.iter().position(|v| v.is_infinite()) {
                bail!("{name} {i} has an infinite value at index {at}: correct it, or mark it missing (NaN)");
            }
        }
    }
    Ok(length)
}

/// Missing values as 0: what the reference does with several targets, and with covariates.
pub(crate) fn zeros(values: &[f32]) -> Vec<f32> {
    values.iter().map(|v| if v.is_nan() { 0.0 } else { *v }).collect()
}

/// Missing values as the mean of all values before them, of which missing ones count as the last observed one, and leading ones
/// as the first (`CausalMeanValueImputation` of GluonTS).
pub(crate) fn causal_mean(values: &[f32]) -> Vec<f32> {
    let first = values.iter().copied().find(|v| !v.is_nan()).unwrap_or(0.0);
    let (mut last, mut sum) = (first, 0.0);
    let fill = |(t, &v): (usize, &f32)| {
        let filled = match (v.is_nan(), t) {
            (false, _) => v,
            (true, 0) => first,
            (true, t) => (sum / t as f64) as f32,
        };
        if !v.is_nan() {
            last = v;
        }
        sum += f64::from(last);
        filled
    };
    values.iter().enumerate().map(fill).collect()
}

/// Spread below which the 1e-5 that the model adds to the variance is more than a hundredth of it.
const SMALL: f64 = 1.0 / 32.0;
/// Magnitude above which a forecast could leave f32.
const LARGE: f64 = 1e30;

impl Variate {
    /// The power of two that makes a variate one that the model can scale; 1 for most.
    fn factor(&self) -> f64 {
        let seen = || self.values.iter().zip(&self.observed).filter(|(_, seen)| **seen).map(|(&v, _)| f64::from(v));
        let count = seen().count().max(1) as f64;
        let mean = seen().sum::<f64>() / count;
        let std = (seen().map(|v| (v - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0)).sqrt();
        let largest = seen().map(f64::abs).fold(0.0, f64::max);
        // Below f32's resolution around the mean the deviation is rounding, and the series a constant.
        let spread = if std > largest * f64::from(f32::EPSILON) { std } else { largest };
        if spread == 0.0 || (spread >= SMALL && largest <= LARGE) {
            return 1.0;
        }
        let exponent = (-spread.log2().floor()).min((LARGE / largest).log2().floor());
        exponent.clamp(-160.0, 160.0).exp2()
    }
}

/// Collects tokens.
#[derive(Default)]
struct Builder {
    width: usize,
    patch: usize,
    all: Patches,
}

impl Builder {
    /// A token of cells with value, whether it was observed, and whether it is padding.
    fn push(&mut self, cells: impl Iterator<Item = (f32, bool, bool)>, variate: usize, time: usize, prediction: bool) {
        let (all, mut padding) = (&mut self.all, true);
        for (value, observed, pads) in cells {
            all.target.push(value);
            all.observed.push(observed);
            padding &= pads;
        }
        all.sample_id.push(u32::from(!padding));
        all.time_id.push(time as u32);
        all.variate_id.push(variate as u32);
        all.prediction.push(prediction);
        all.patch_size.push(self.patch);
        let end = all.sample_id.len() * self.width;
        all.target.resize(end, 0.0);
        all.observed.resize(end, false);
    }

    fn finish(self) -> Patches {
        Patches { rows: 1, length: self.all.sample_id.len(), width: self.width, ..self.all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f32 = f32::NAN;

    #[test]
    fn gaps_are_filled_with_the_mean_of_what_came_before() {
        // After the last value has been carried on: 2, 2, 4, 4, 4, 1.
        assert_eq!(causal_mean(&[NAN, NAN, 4.0, NAN, NAN, 1.0, NAN])[..2], [4.0, 4.0]);
        assert_eq!(causal_mean(&[2.0, NAN, 4.0, NAN, NAN, 1.0]), [2.0, 2.0, 4.0, 8.0 / 3.0, 3.0, 1.0]);
        assert_eq!(zeros(&[1.0, NAN]), [1.0, 0.0]);
    }

    #[test]
    fn only_what_the_model_cannot_scale_is_rescaled() {
        let factor = |values: &[f32]| Variate { values: values.to_vec(), observed: vec![true; values.len()] }.factor();
        assert_eq!(factor(&[1.0, 2.0, 3.0]), 1.0);
        assert_eq!(factor(&[5.0; 4]), 1.0);
        assert_eq!(factor(&[0.0; 4]), 1.0);
        assert_eq!(factor(&[0.0, 0.01, 0.0, 0.01]), 256.0);
        for values in [&[1e-30f32, 2e-30, 3e-30][..], &[1e-44, 0.0], &[-3e38, 3e38], &[3e38; 3], &[1e-30; 3]] {
            let by = factor(values);
            let scaled: Vec<f64> = values.iter().map(|&v| f64::from(v) * by).collect();
            let largest = scaled.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            assert!((0.5..64.0).contains(&largest) && by.log2().fract() == 0.0, "{values:?}: {by}");
        }
    }
}
