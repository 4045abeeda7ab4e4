//! A series that grows while it is forecast.

use moesaic_models::time_moe::{Session, TimeMoe};

use super::bounds::Bounds;
use super::context::{Context, constant};
use super::{Forecast, ForecastOptions, Forecaster, Missing, Model, future};
use crate::error::{Error, Place, Result, quoted};
use crate::series::Series;

/// A series that grows while it is forecast, from [`Forecaster::session`]: new values cost a pass over themselves, not over the
/// history.
///
/// The scale stays that of the history at the beginning until the values have moved away from it, or until there are more than the
/// model sees; the session is then renewed by a pass over the newest. So between renewals a forecast differs a little from that
/// of [`Forecaster::forecast`], which scales each history by itself.
///
/// ```
/// use moesaic::{ForecastOptions, Forecaster, Series};
///
/// # fn main() -> moesaic::Result<()> {
/// let forecaster = Forecaster::embedded()?;
/// let history = Series::new("load", (0..48).map(|t| 50.0 + 10.0 * (t as f32 * 0.26).sin()).collect::<Vec<_>>());
/// let mut session = forecaster.session(&history, 24, &ForecastOptions::default())?;
/// session.push(&[50.2, 52.9])?;
/// let forecast = session.forecast(24)?;
/// assert_eq!(forecast.timestamps[0].to_string(), "51");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ForecastSession<'a> {
    model: &'a TimeMoe,
    session: Session,
    /// Name and rows; its values are in the session.
    series: Series,
    /// The row after the last observed one.
    end: usize,
    /// Rows after that without a value.
    pending: usize,
    /// Which of the session's values, at their end, were observed.
    observed: Vec<bool>,
    horizon: usize,
    options: ForecastOptions,
}

impl Forecaster {
    /// Begins a session with the history of a series, for forecasts of up to `horizon` rows. Its forecasts are those of the model
    /// alone, not combined ones. Takes a Time-MoE.
    ///
    /// # Errors
    /// As [`Forecaster::forecast`]; [`Error::Input`] where intervals, quantiles, sample paths or a combination are asked for, and for
    /// a model that takes patches.
    pub fn session(&self, series: &Series, horizon: usize, options: &ForecastOptions) -> Result<ForecastSession<'_>> {
        let limit = self.check(horizon, options)?;
        let Model::TimeMoe(model) = &self.model else {
            return Err(Error::option(
                "a session takes a model of single values (Time-MoE): this one takes patches of them",
            ));
        };
        if !options.intervals.is_empty() || options.combine == Some(true) {
            return Err(Error::option(
                "a session gives the model's point forecasts: leave intervals and combining out",
            ));
        }
        let context = Context::of(series, limit, options.missing)?;
        let session = model.session(context.newest(limit), limit).map_err(|error| Error::compute(&error))?;
        let mut ours = ForecastSession {
            model,
            session,
            series: Series::new(series.name.as_str(), Vec::new()).with_index(series.index.clone()),
            end: context.end,
            pending: 0,
            observed: context.observed,
            horizon,
            options: options.clone(),
        };
        // Rows after the last value count as they come.
        ours.push(&series.values[context.end..])?;
        Ok(ours)
    }
}

impl ForecastSession<'_> {
    /// Takes the next rows, in the order of time; NaN is missing. Missing values are filled by a line once the next value has come;
    /// until then the forecast starts after the last observed one.
    ///
    /// # Errors
    /// [`Error::Input`] for an infinite value, or a missing one where the options refuse those; [`Error::Compute`] when the model
    /// fails. The session is then what it was before.
    pub fn push(&mut self, values: &[f32]) -> Result<()> {
        let refuse = |problem: String| Err(Error::input(Place::series(&self.series.name), problem));
        let row = self.end + self.pending;
        if let Some(at) = values.iter().position(|value| value.is_infinite()) {
            return refuse(format!("value {} is infinite: correct it or mark it missing (NaN)", row + at + 1));
        }
        let (mut new, mut observed, mut pending) = (Vec::new(), Vec::new(), self.pending);
        let mut last = self.session.values().last().copied().unwrap_or(0.0);
        for &value in values {
            if value.is_nan() {
                pending += 1;
                continue;
            }
            if pending > 0 && self.options.missing == Missing::Refuse {
                let gap = self.end + new.len() + 1;
                return refuse(format!("value {gap} is missing: fill it, or let gaps be interpolated"));
            }
            let (from, to, width) = (f64::from(last), f64::from(value), (pending + 1) as f64);
            // In f64, so that huge neighbours of opposite sign do not overflow.
            new.extend((1..=pending).map(|step| (from + (to - from) * (step as f64 / width)) as f32));
            observed.resize(new.len(), false);
            new.push(value);
            observed.push(true);
            (last, pending) = (value, 0);
        }
        self.model.observe(&mut self.session, &new).map_err(|error| Error::compute(&error))?;
        self.end += new.len();
        self.pending = pending;
        self.observed.extend(observed);
        self.observed.drain(..self.observed.len().saturating_sub(self.session.values().len()));
        Ok(())
    }

    /// Rows that the series has, missing ones after the last value included.
    pub fn rows(&self) -> usize {
        self.end + self.pending
    }

    /// Continues the series by `horizon` rows after its last value.
    ///
    /// # Errors
    /// [`Error::Input`] for a horizon of 0 or beyond the one that the session was begun with; [`Error::Compute`] when the model fails.
    pub fn forecast(&self, horizon: usize) -> Result<Forecast> {
        if !(1..=self.horizon).contains(&horizon) {
            let most = self.horizon;
            return Err(Error::option(format!("a horizon of {horizon} in a session that was begun for 1 to {most}")));
        }
        let context = self.session.values();
        let mut values = match constant(context) {
            Some(value) => vec![value; horizon],
            None => self.model.forecast_session(&self.session, horizon).map_err(|error| Error::compute(&error))?,
        };
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::Compute(format!(
                "the forecast of series {} is not finite: check the model's weights, or rescale the data",
                quoted(&self.series.name)
            )));
        }
        let mut bounds = if self.options.bounds { Bounds::of(context) } else { Bounds::default() };
        if self.options.non_negative {
            bounds.floor = Some(bounds.floor.unwrap_or(0.0).max(0.0));
        }
        bounds.apply(values.iter_mut());
        let (intervals, mean, quantiles, samples) = Default::default();
        Ok(Forecast {
            name: self.series.name.clone(),
            timestamps: future(&self.series, self.end, horizon)?,
            values,
            intervals,
            mean,
            quantiles,
            samples,
            context: context.len(),
            filled: self.observed.iter().filter(|seen| !**seen).count(),
            start: self.end,
        })
    }
}
