//! Generation by horizon scheduling, and forecasts of raw series.

use candle_core::{DType, IndexOp, Result, Tensor, bail};
use moesaic_kernels::Routes;

use super::{Cache, Context, TimeMoe};

/// Mean and standard deviation of a series, guarded: the reference divides a constant series by zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalisation {
    /// Mean of the series.
    pub mean: f64,
    /// Unbiased standard deviation (n - 1), as the reference's usage has it; 1 where that is zero or undefined.
    pub std: f64,
}

impl Normalisation {
    /// The normalisation of finite values.
    pub fn of(values: &[f32]) -> Self {
        let n = values.len().max(1) as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let squares: f64 = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum();
        let std = (squares / (n - 1.0).max(1.0)).sqrt();
        // Below f32's resolution around the mean the deviation is rounding noise, not signal.
        let floor = mean.abs() * f64::from(f32::EPSILON);
        Self { mean, std: if std > floor && std.is_finite() { std } else { 1.0 } }
    }

    /// `(v - mean) / std`
    pub fn apply(&self, v: f32) -> f32 {
        ((f64::from(v) - self.mean) / self.std) as f32
    }

    /// `v * std + mean`
    pub fn invert(&self, v: f32) -> f32 {
        (f64::from(v) * self.std + self.mean) as f32
    }
}

/// Tokens that go through the model at once. More of them are slower: in `benches/side_by_side`, 64 series of 512 values took
/// 45.5 s in one piece, and 27.7 s in pieces of this size in a later run; probably since activations then leave the cache.
const TOKENS: usize = 2048;

impl TimeMoe {
    /// The head that the greedy schedule (Algorithm 1 of the paper) uses with `remaining` values to go: the largest horizon
    /// that does not exceed them, or the first head.
    pub fn scheduled_head(&self, remaining: usize) -> usize {
        let horizons = &self.config().horizon_lengths;
        horizons.iter().rposition(|&h| h <= remaining).unwrap_or(0)
    }

    /// Continues normalised series by `horizon` values. All emitted values are fed back in one cached pass per step.
    ///
    /// # Shapes
    /// `context [b, t]`, left-padded; `mask [b, t]`, 1 = real, absent if all are, to `[b, horizon]` in f32
    pub fn generate(&self, context: &Tensor, mask: Option<&Tensor>, horizon: usize) -> Result<Tensor> {
        let (b, t) = context.dims2()?;
        if self.config().input_size != 1 {
            bail!("generation needs one value per token, this model has {}", self.config().input_size);
        }
        if horizon == 0 {
            bail!("a horizon of 0 asks for nothing");
        }
        let start = match mask {
            Some(mask) if mask.dims() != [b, t] => bail!("a mask of shape {:?} for input [{b}, {t}]", mask.dims()),
            Some(mask) => Context::left_padded(mask)?,
            None => Context::default(),
        };
        let mut cache = Cache::default();
        let hidden = self.forward(context, &start, Some(&mut cache), None)?.hidden;
        let last = hidden.i((.., t - 1, ..))?.contiguous()?; // (b, h)
        self.roll_out(cache, last, start, horizon)
    }

    /// Emits `horizon` values from the last hidden states `[b, h]` of the tokens in the cache: `[b, horizon]` in f32.
    pub(super) fn roll_out(
        &self,
        mut cache: Cache,
        mut last: Tensor,
        start: Context,
        horizon: usize,
    ) -> Result<Tensor> {
        let b = last.dim(0)?;
        let mut emitted: Vec<Tensor> = Vec::new();
        let mut done = 0;
        loop {
            let head = self.scheduled_head(horizon - done);
            let values = self.head(head, &last)?.to_dtype(DType::F32)?; // (b, horizon of the head)
            let take = values.dim(1)?.min(horizon - done);
            let step = values.narrow(1, 0, take)?;
            emitted.push(step.clone());
            done += take;
            if done == horizon {
                return Tensor::cat(&emitted, 1);
            }
            // Positions of the emitted values follow each row's real tokens.
            let past = cache.tokens as u32;
            let positions = (0..b).flat_map(|row| {
                let padding = start.padding.get(row).copied().unwrap_or(0) as u32;
                (0..take as u32).map(move |i| past - padding + i)
            });
            let ctx = Context { positions: Some(positions.collect()), ..start.clone() };
            let hidden = self.forward(&step, &ctx, Some(&mut cache), None)?.hidden;
            last = hidden.i((.., take - 1, ..))?.contiguous()?; // (b, h)
        }
    }

    /// Forecasts raw series: each is standardised by its own mean and deviation, continued in batches padded at the left, and
    /// mapped back. Series of similar length should be neighbours. A row's forecast has the same bits whatever it is batched with.
    ///
    /// # Errors
    /// An empty series, or a value that is not finite.
    pub fn forecast(&self, series: &[&[f32]], horizon: usize) -> Result<Vec<Vec<f32>>> {
        for (i, values) in series.iter().enumerate() {
            if values.is_empty() {
                bail!("series {i} is empty; a forecast needs at least one value");
            }
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                bail!("series {i} has {} at index {at}; fill or drop values that are not finite", values[at]);
            }
        }
        let mut forecasts = Vec::with_capacity(series.len());
        let mut rest = series;
        while !rest.is_empty() {
            let mut longest = 0;
            let fits = |(rows, values): &(usize, &&[f32])| {
                longest = longest.max(values.len());
                *rows == 0 || (rows + 1) * longest <= TOKENS
            };
            let (now, later) = rest.split_at(rest.iter().enumerate().take_while(fits).count());
            forecasts.extend(self.forecast_together(now, horizon)?);
            rest = later;
        }
        Ok(forecasts)
    }

    /// Forecasts a series from several origins at once: row `i` continues `values[..origins[i]]` by `horizon` values.
    ///
    /// The model is causal, so one pass over the series serves all origins; each then continues from its own part of the
    /// cache. All rows share the standardisation of the whole series. From `values.len()`, the forecast is that of
    /// [`forecast`](Self::forecast) up to rounding.
    ///
    /// # Errors
    /// An origin of 0 or beyond the series, or a value that is not finite.
    pub fn forecast_from(&self, values: &[f32], origins: &[usize], horizon: usize) -> Result<Vec<Vec<f32>>> {
        let n = values.len();
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            bail!("the series has {} at index {at}; fill or drop values that are not finite", values[at]);
        }
        if let Some(origin) = origins.iter().find(|origin| !(1..=n).contains(*origin)) {
            bail!("a forecast from {origin} in a series of {n} values");
        }
        if horizon == 0 {
            bail!("a horizon of 0 asks for nothing");
        }
        if origins.is_empty() {
            return Ok(Vec::new());
        }
        let norm = Normalisation::of(values);
        let normed: Vec<f32> = values.iter().map(|&v| norm.apply(v)).collect();
        let context = Tensor::from_vec(normed, (1, n), &self.device)?;
        let mut cache = Cache::default();
        let hidden = self.forward(&context, &Context::default(), Some(&mut cache), None)?.hidden; // (1, n, h)
        let last: Vec<u32> = origins.iter().map(|&origin| origin as u32 - 1).collect();
        let last = Tensor::from_vec(last, origins.len(), &self.device)?;
        let last = hidden.i(0)?.contiguous()?.index_select(&last, 0)?; // (origins, h)
        let padding = origins.iter().map(|&origin| n - origin).collect();
        let start = Context { padding, ..Context::default() };
        let rows = self.roll_out(cache.fork(origins)?, last, start, horizon)?.to_vec2::<f32>()?;
        Ok(rows.iter().map(|row| row.iter().map(|&v| norm.invert(v)).collect()).collect())
    }

    /// The routes of one pass over a series, by layer; layers without routed experts are left out.
    ///
    /// # Errors
    /// The series is empty, or has values that are not finite.
    pub fn routes(&self, values: &[f32]) -> Result<Vec<Routes>> {
        if values.is_empty() || values.iter().any(|v| !v.is_finite()) {
            bail!("a series that is empty or has values that are not finite has no routes; fill or drop them");
        }
        let norm = Normalisation::of(values);
        let normed: Vec<f32> = values.iter().map(|&v| norm.apply(v)).collect();
        let x = Tensor::from_vec(normed, (1, values.len()), &self.device)?;
        Ok(self.forward(&x, &Context::default(), None, None)?.routes)
    }

    /// One batch of [`forecast`](Self::forecast), padded to its longest series.
    fn forecast_together(&self, series: &[&[f32]], horizon: usize) -> Result<Vec<Vec<f32>>> {
        let longest = series.iter().map(|s| s.len()).max().unwrap_or(0);
        let norms: Vec<_> = series.iter().map(|s| Normalisation::of(s)).collect();
        let (mut context, mut mask) = (Vec::new(), Vec::new());
        for (values, norm) in series.iter().zip(&norms) {
            let padding = longest - values.len();
            context.extend(std::iter::repeat_n(0.0, padding).chain(values.iter().map(|&v| norm.apply(v))));
            mask.extend((0..longest).map(|i| if i < padding { 0f32 } else { 1.0 }));
        }
        let shape = (series.len(), longest);
        let context = Tensor::from_vec(context, shape, &self.device)?;
        let mask = Tensor::from_vec(mask, shape, &self.device)?;
        let rows = self.generate(&context, Some(&mask), horizon)?.to_vec2::<f32>()?;
        Ok(rows.iter().zip(&norms).map(|(row, norm)| row.iter().map(|&v| norm.invert(v)).collect()).collect())
    }
}
