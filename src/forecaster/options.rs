//! How to forecast.

/// How to forecast. `ForecastOptions::default()` suits most uses.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ForecastOptions {
    /// The most values of history that the model sees. `None` for 512, or what the model has room for beside the
    /// horizon if that is less.
    pub context: Option<usize>,
    /// Series computed together, at least 1. Larger batches are faster and take more memory; results do not change.
    pub batch: usize,
    /// What to do with missing values between observed ones.
    pub missing: Missing,
    /// Raise negative forecasts to zero, for counts, demand and other quantities that cannot be negative.
    pub non_negative: bool,
    /// Keep forecasts between a floor and a cap that the history shows: an extreme that a tenth of the values that the model
    /// sees, in three or more separate runs, are equal to, as the nights of a solar plant are. On by default.
    pub bounds: bool,
    /// Combine the model's forecast with smoothed seasonal ones at lags that the history shows, each weighted by how it did on
    /// the history's own past; takes about six times as long. `None`: the embedded model combines, others, whose numbers are to
    /// be those of their reference, do not. Histories below 16 values are left to the model.
    pub combine: Option<bool>,
    /// Levels, above 0 and below 1, of the intervals to give with each forecast; none by default. See [`Interval`](super::Interval).
    pub intervals: Vec<f64>,
    /// Levels, above 0 and below 1, of the quantiles to give with each forecast; none by default. Takes a model that predicts a
    /// distribution (Moirai-MoE).
    pub quantiles: Vec<f64>,
    /// Sample paths to give with each forecast. `None`: none are given, and 100 are drawn where the distribution of later rows
    /// depends on earlier ones. Takes a model that predicts a distribution.
    pub samples: Option<usize>,
    /// Seed of the sample paths; the same seed gives the same forecast.
    pub seed: u64,
    /// Compute every patch of a Moirai-MoE's forecast from the whole sequence, rescaled with what was forecast before, as its
    /// reference does: many times slower for long horizons. By default the scale stays that of the history.
    pub exact: bool,
}

/// What to do with missing values between observed ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Missing {
    /// Draw a straight line between the neighbours.
    #[default]
    Interpolate,
    /// Fail, naming the first missing value.
    Refuse,
}

/// Values of history that the model sees unless told otherwise.
pub const DEFAULT_CONTEXT: usize = 512;

/// No model is asked for more steps than this at once.
pub const MAX_HORIZON: usize = 10_000;

impl Default for ForecastOptions {
    fn default() -> Self {
        ForecastOptions {
            context: None,
            batch: 32,
            missing: Missing::default(),
            non_negative: false,
            bounds: true,
            combine: None,
            intervals: Vec::new(),
            quantiles: Vec::new(),
            samples: None,
            seed: 0,
            exact: false,
        }
    }
}

impl ForecastOptions {
    /// At most this many values of history.
    pub fn context(mut self, values: usize) -> Self {
        self.context = Some(values);
        self
    }

    /// This many series computed together.
    pub fn batch(mut self, series: usize) -> Self {
        self.batch = series;
        self
    }

    /// This treatment of missing values.
    pub fn missing(mut self, missing: Missing) -> Self {
        self.missing = missing;
        self
    }

    /// One more interval with each forecast, that should hold the truth in this share of rows (0.9 for 90 %).
    pub fn interval(mut self, level: f64) -> Self {
        self.intervals.push(level);
        self
    }

    /// One more quantile with each forecast (0.1 for the value that a tenth of outcomes should not exceed).
    pub fn quantile(mut self, level: f64) -> Self {
        self.quantiles.push(level);
        self
    }

    /// This many sample paths with each forecast.
    pub fn samples(mut self, count: usize) -> Self {
        self.samples = Some(count);
        self
    }

    /// This seed of sample paths.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Whether every patch is computed from the whole sequence.
    pub fn exact(mut self, yes: bool) -> Self {
        self.exact = yes;
        self
    }

    /// Whether forecasts stay between the floor and the cap that the history shows.
    pub fn bounds(mut self, yes: bool) -> Self {
        self.bounds = yes;
        self
    }

    /// Whether the model's forecast is combined with smoothed seasonal ones.
    pub fn combine(mut self, yes: bool) -> Self {
        self.combine = Some(yes);
        self
    }

    /// Whether negative forecasts are raised to zero.
    pub fn non_negative(mut self, yes: bool) -> Self {
        self.non_negative = yes;
        self
    }
}
