//! Zero-shot forecasting: a pretrained model continues any series.

mod bounds;
mod combine;
mod context;
mod distribution;
mod intervals;
mod many;
mod model;
mod options;
mod session;

use std::path::Path;

use candle_core::DType;
use moesaic_kernels::{Modality, Routes};
use moesaic_models::moirai_moe::{MoiraiMoe, Request};
use moesaic_models::time_moe::TimeMoe;
use serde::Serialize;

use crate::atlas::{Atlas, RouteMap};
use crate::device::Device;
use crate::error::{Error, Place, Result, quoted};
#[cfg(feature = "hub")]
use crate::hub::Hub;
use crate::series::{Series, Stamp};
use bounds::Bounds;
use combine::Trial;
use context::{Context, constant};
pub use distribution::{Group, Quantile};
use intervals::Calibration;
pub use intervals::Interval;
pub use model::parse_config;
use model::{ModelConfig, ModelFiles};
pub use model::{ModelFile, ModelInfo, Parameters};
pub use options::{DEFAULT_CONTEXT, ForecastOptions, MAX_HORIZON, Missing};
pub use session::ForecastSession;

/// A pretrained forecasting model. It holds no state between calls: one forecaster behind an `Arc` serves any number of
/// threads.
///
/// What happens to a series, in this order:
/// * Infinite values are refused.
/// * Missing values (NaN) before the first observed value are dropped; between observed values they are filled by a
///   straight line ([`Missing::Refuse`] refuses them instead); after the last observed value they are forecast: **the
///   forecast starts at the first row after the last observed value**.
/// * The model sees the last [`ForecastOptions::context`] values.
/// * A context of one value, or of equal values, is continued as that value without asking the model.
/// * The model standardises each context and maps its answer back, so the scale of the data does not matter.
/// * The embedded model's forecast is combined with smoothed seasonal ones, weighted by how each did on the context's own past;
///   other models forecast alone unless told otherwise ([`ForecastOptions::combine`]).
/// * A forecast does not pass a floor or a cap that its history shows ([`ForecastOptions::bounds`]).
/// * Intervals, if asked for ([`ForecastOptions::interval`]), are calibrated on what the model says about up to 20 points
///   in the series' own past, which takes as many more forecasts. Combined forecasts are combined anew at each, from what lay before it.
///
/// A Moirai-MoE predicts distributions, which changes some of this: missing values are left to it, which has a mask for them; the
/// point forecast is the median; intervals are those of the distribution, not calibrated; there are quantiles and sample paths
/// too; and nothing is combined.
pub struct Forecaster {
    model: Model,
    info: ModelInfo,
    /// Whether forecasts are combined unless the options say otherwise.
    combines: bool,
}

/// The models that forecast.
enum Model {
    TimeMoe(Box<TimeMoe>),
    MoiraiMoe(Box<MoiraiMoe>),
}

/// The continuation of one series.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Forecast {
    /// The series' name.
    pub name: String,
    /// The rows forecast: the first one after the last observed value, and on.
    pub timestamps: Vec<Stamp>,
    /// The point forecast of each row.
    pub values: Vec<f32>,
    /// The intervals that were asked for, in that order. Empty where none was, and where the history is too short to
    /// calibrate one (below 13 values).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub intervals: Vec<Interval>,
    /// The mean of each row's distribution, where the model predicts one; [`values`](Self::values) are its medians then.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mean: Vec<f32>,
    /// The quantiles that were asked for, in that order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub quantiles: Vec<Quantile>,
    /// The sample paths that were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Vec<f32>>,
    /// Values of history that the forecast rests on, filled ones included.
    pub context: usize,
    /// How many of those were missing and filled.
    pub filled: usize,
    /// The row of the series, from 0, that the first forecast stands on.
    #[serde(skip)]
    pub start: usize,
}

impl Forecaster {
    /// The small model that is part of the library, trained by this project. Needs no files and no network.
    ///
    /// # Errors
    /// None that a release build can meet; the signature is that of [`Forecaster::from_dir`].
    pub fn embedded() -> Result<Self> {
        Self::embedded_on(Device::Cpu)
    }

    /// The same on a device.
    ///
    /// # Errors
    /// [`Error::Device`] where the device cannot be used.
    pub fn embedded_on(device: Device) -> Result<Self> {
        Ok(Forecaster { combines: true, ..Self::load(ModelFiles::embedded()?, device)? })
    }

    /// The model in this folder, in the Hugging Face layout: `config.json` and `model.safetensors` (or its shards and
    /// their index). Computes in 32-bit floats on the CPU.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Config`] for a missing or unusable configuration, [`Error::Weights`] for missing,
    /// damaged or ill-fitting weights.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        Self::from_dir_on(dir, Device::Cpu)
    }

    /// The same on a device, in 32-bit floats.
    ///
    /// # Errors
    /// As [`Forecaster::from_dir`], and [`Error::Device`] where the device cannot be used.
    pub fn from_dir_on(dir: impl AsRef<Path>, device: Device) -> Result<Self> {
        Self::load(ModelFiles::open(dir.as_ref())?, device)
    }

    /// A model on the Hub, `org/name` or `org/name@revision`, by way of the cache, as the environment says
    /// ([`HubOptions::from_env`](crate::hub::HubOptions::from_env)). Downloads what the cache lacks, after the
    /// configuration has been found to be one of a model that forecasts. Blocks until all is there. Where the Hub cannot be
    /// reached, a complete copy in the cache is used; its commit is in [`ModelInfo::source`].
    ///
    /// ```no_run
    /// # fn main() -> moesaic::Result<()> {
    /// let forecaster = moesaic::Forecaster::from_hub("Maple728/TimeMoE-50M")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Hub`] when the model cannot be had, [`Error::Input`] for what is no id, and the errors of
    /// [`Forecaster::from_dir`].
    #[cfg(feature = "hub")]
    pub fn from_hub(id: &str) -> Result<Self> {
        Self::from_hub_with(id, &Hub::from_env()?)
    }

    /// As [`Forecaster::from_hub`], from this Hub, whatever the environment says.
    ///
    /// # Errors
    /// As [`Forecaster::from_hub`].
    #[cfg(feature = "hub")]
    pub fn from_hub_with(id: &str, hub: &Hub) -> Result<Self> {
        Self::from_hub_on(id, hub, Device::Cpu)
    }

    /// The same on a device.
    ///
    /// # Errors
    /// As [`Forecaster::from_hub`], and [`Error::Device`] where the device cannot be used.
    #[cfg(feature = "hub")]
    pub fn from_hub_on(id: &str, hub: &Hub, device: Device) -> Result<Self> {
        let (files, snapshot) = ModelFiles::fetch(id, hub)?;
        let mut forecaster = Self::load(files, device)?;
        forecaster.info.source = snapshot.to_string();
        Ok(forecaster)
    }

    fn load(files: ModelFiles, device: Device) -> Result<Self> {
        let device = device.open()?;
        let info = ModelInfo::new(&files);
        let ModelFiles { source, config, checkpoint } = files;
        let model = match config {
            ModelConfig::TimeMoe(config) if config.input_size != 1 => {
                let problem = format!("input_size is {}: only models of one variable (1) forecast", config.input_size);
                return Err(Error::config(&source, problem));
            }
            ModelConfig::TimeMoe(config) => {
                TimeMoe::from_checkpoint(config, &checkpoint, DType::F32, &device).map(Box::new).map(Model::TimeMoe)
            }
            ModelConfig::MoiraiMoe(config) => {
                MoiraiMoe::from_checkpoint(config, &checkpoint, DType::F32, &device).map(Box::new).map(Model::MoiraiMoe)
            }
        };
        let model = model.map_err(|error| Error::weights(&source, &error))?;
        Ok(Forecaster { model, info, combines: false })
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Whether the model predicts a distribution, so that [`ForecastOptions::quantiles`] and [`ForecastOptions::samples`] may be asked
    /// for.
    pub fn predicts_distributions(&self) -> bool {
        matches!(self.model, Model::MoiraiMoe(_))
    }

    /// The longest horizon of one call: half of the model's positions, so that as many are left for history, and at most
    /// [`MAX_HORIZON`].
    pub fn max_horizon(&self) -> usize {
        (self.info.positions / 2).clamp(1, MAX_HORIZON)
    }

    /// Continues each series by `horizon` rows. Series may have any lengths; they are computed in batches of similar
    /// length. Answers are in the order of the series, and do not depend on what else is in the call.
    ///
    /// # Errors
    /// [`Error::Input`] when the horizon is 0 or beyond [`Forecaster::max_horizon`], when the options do not fit the
    /// model, or when a series (named in the message) has no observed value, an infinite one, or one missing that
    /// should not be. [`Error::Compute`] when the model fails.
    pub fn forecast(&self, series: &[Series], horizon: usize, options: &ForecastOptions) -> Result<Vec<Forecast>> {
        let limit = self.check(horizon, options)?;
        let model = match &self.model {
            Model::TimeMoe(model) => model,
            Model::MoiraiMoe(model) => return distribution::forecast(model, series, horizon, limit, options),
        };
        let reach = if options.intervals.is_empty() { 0 } else { Calibration::reach(horizon) };
        let contexts = series
            .iter()
            .map(|series| Context::of(series, limit.saturating_add(reach), options.missing))
            .collect::<Result<Vec<_>>>()?;
        let stamps = series
            .iter()
            .zip(&contexts)
            .map(|(series, context)| future(series, context.end, horizon))
            .collect::<Result<Vec<_>>>()?;
        let newest: Vec<&[f32]> = contexts.iter().map(|context| context.newest(limit)).collect();
        let values = self.point(model, &newest, horizon, options)?;
        let intervals = self.intervals(model, &contexts, &values, limit, options)?;
        let rows = series.iter().zip(contexts).zip(stamps).zip(values.into_iter().zip(intervals));
        rows.map(|(((series, context), timestamps), (mut values, mut intervals))| {
            if values.iter().any(|value| !value.is_finite()) {
                return Err(Error::Compute(format!(
                    "the forecast of series {} is not finite: check the model's weights, or rescale the data",
                    quoted(&series.name)
                )));
            }
            let mut bounds = if options.bounds { Bounds::of(context.newest(limit)) } else { Bounds::default() };
            if options.non_negative {
                bounds.floor = Some(bounds.floor.unwrap_or(0.0).max(0.0));
            }
            let ends = intervals.iter_mut().flat_map(|interval| interval.lower.iter_mut().chain(&mut interval.upper));
            bounds.apply(values.iter_mut().chain(ends));
            let (name, start) = (series.name.clone(), context.end);
            let (length, filled) = (context.newest(limit).len(), context.filled(limit));
            let (mean, quantiles, samples) = Default::default();
            let context = length;
            Ok(Forecast { name, timestamps, values, intervals, mean, quantiles, samples, context, filled, start })
        })
        .collect()
    }

    /// Continues the series of each group together by `horizon` rows, each seeing the others and the covariates. Answers are in the
    /// order of the groups and their targets, and do not depend on what else is in the call. Takes a Moirai-MoE.
    ///
    /// # Errors
    /// As [`Forecaster::forecast`], and [`Error::Input`] naming the series when lengths within a group do not fit, or a known
    /// covariate stops before the horizon.
    pub fn forecast_groups(
        &self,
        groups: &[Group],
        horizon: usize,
        options: &ForecastOptions,
    ) -> Result<Vec<Vec<Forecast>>> {
        let limit = self.check(horizon, options)?;
        match &self.model {
            Model::MoiraiMoe(model) => distribution::forecast_groups(model, groups, horizon, limit, options),
            Model::TimeMoe(_) => Err(Error::option(
                "this model forecasts one variable at a time: give the series alone, or take a Moirai-MoE",
            )),
        }
    }

    /// Where the tokens of series go: values of a Time-MoE, patches of a Moirai-MoE, which sees those of the next `horizon` rows too.
    /// Segments have `segment` tokens ([`RouteMap::segment`]).
    ///
    /// # Errors
    /// As [`forecast`](Self::forecast), and [`Error::Input`] for no series, or a model without sparse layers.
    pub fn routes(
        &self,
        series: &[Series],
        horizon: usize,
        options: &ForecastOptions,
        segment: usize,
    ) -> Result<RouteMap> {
        let limit = self.check(horizon, options)?;
        if series.is_empty() {
            return Err(Error::option("there is no series: give at least one"));
        }
        let mut atlas = Atlas::default();
        for series in series {
            let context = Context::of(series, limit, options.missing)?;
            let mut pass = || -> candle_core::Result<()> {
                let routes = match &self.model {
                    Model::TimeMoe(model) => model.routes(context.newest(limit))?,
                    Model::MoiraiMoe(model) => {
                        let history = &series.values[..context.end];
                        model.routes(&Request::univariate(history), limit, horizon)?
                    }
                };
                for (i, routes) in routes.iter().enumerate() {
                    atlas.add(&format!("layer {i}"), routes, 1, &|_| Modality::Series)?;
                }
                atlas.count(Modality::Series, routes.first().map_or(0, Routes::tokens));
                Ok(())
            };
            pass().map_err(|error| Error::compute(&error))?;
        }
        atlas.finish(segment)
    }

    /// Continues each history by `horizon` values, combined if the options or the model want it so.
    fn point(
        &self,
        model: &TimeMoe,
        histories: &[&[f32]],
        horizon: usize,
        options: &ForecastOptions,
    ) -> Result<Vec<Vec<f32>>> {
        let combine = options.combine.unwrap_or(self.combines);
        let mut values = vec![Vec::new(); histories.len()];
        let mut alone = Vec::new();
        for (at, history) in histories.iter().enumerate() {
            let worth = combine && constant(history).is_none();
            let Some(trial) = worth.then(|| Trial::of(history, horizon)).flatten() else {
                alone.push(at);
                continue;
            };
            let ask = |question: &combine::Question| model.forecast_from(&question.values, &question.origins, horizon);
            let answers = trial.questions.iter().map(ask).collect::<candle_core::Result<Vec<_>>>();
            values[at] = trial.finish(&answers.map_err(|error| Error::compute(&error))?);
        }
        let plain: Vec<&[f32]> = alone.iter().map(|&at| histories[at]).collect();
        for (at, forecast) in alone.into_iter().zip(go_on(model, &plain, horizon, options.batch)?) {
            values[at] = forecast;
        }
        Ok(values)
    }

    /// The intervals of each forecast, calibrated on forecasts of its own past.
    fn intervals(
        &self,
        model: &TimeMoe,
        contexts: &[Context],
        forecasts: &[Vec<f32>],
        limit: usize,
        options: &ForecastOptions,
    ) -> Result<Vec<Vec<Interval>>> {
        let mut intervals = vec![Vec::new(); contexts.len()];
        let levels = &options.intervals;
        if levels.is_empty() {
            return Ok(intervals);
        }
        for ((context, forecast), intervals) in contexts.iter().zip(forecasts).zip(&mut intervals) {
            let Some(calibration) = Calibration::plan(context.values.len(), limit, forecast.len()) else { continue };
            let histories: Vec<&[f32]> = calibration
                .origins
                .iter()
                .map(|&origin| &context.values[origin.saturating_sub(limit)..origin])
                .collect();
            let past = self.point(model, &histories, calibration.steps, options)?;
            *intervals = calibration.intervals(context, &past, forecast, levels);
        }
        Ok(intervals)
    }

    /// Checks the horizon and the options; the answer is the context limit.
    fn check(&self, horizon: usize, options: &ForecastOptions) -> Result<usize> {
        let (most, positions) = (self.max_horizon(), self.info.positions);
        if horizon == 0 {
            return Err(Error::option("the horizon is 0: ask for at least 1 step"));
        }
        if horizon > most {
            return Err(Error::option(format!(
                "the horizon of {horizon} is beyond this model's longest, {most}: ask for at most that, or forecast \
                 coarser rows"
            )));
        }
        if options.batch == 0 {
            return Err(Error::option("the batch size is 0: compute at least 1 series at a time"));
        }
        if let Some(level) = options.intervals.iter().find(|level| !(**level > 0.0 && **level < 1.0)) {
            return Err(Error::option(format!("the interval level {level} is not between 0 and 1: 0.9 asks for 90 %")));
        }
        if let Some(level) = options.quantiles.iter().find(|level| !(**level > 0.0 && **level < 1.0)) {
            let problem = format!("the quantile level {level} is not between 0 and 1: 0.5 asks for the median");
            return Err(Error::option(problem));
        }
        match self.model {
            Model::MoiraiMoe(_) => distribution::check(options)?,
            Model::TimeMoe(_) if options.quantiles.is_empty() && options.samples.is_none() => {}
            Model::TimeMoe(_) => {
                return Err(Error::option(
                    "quantiles and sample paths take a model that predicts a distribution, as Moirai-MoE does: ask this \
                     one for intervals",
                ));
            }
        }
        let room = positions.saturating_sub(horizon).max(1);
        match options.context {
            None => Ok(DEFAULT_CONTEXT.min(room)),
            Some(0) => Err(Error::option("the context is 0: let the model see at least 1 value")),
            Some(context) if context > room => Err(Error::option(format!(
                "a context of {context} and a horizon of {horizon} exceed this model's {positions} positions: \
                 use a context of at most {room}"
            ))),
            Some(context) => Ok(context),
        }
    }
}

/// Continues each history by `horizon` values, as the model does alone.
fn go_on(model: &TimeMoe, histories: &[&[f32]], horizon: usize, batch: usize) -> Result<Vec<Vec<f32>>> {
    let constants: Vec<Option<f32>> = histories.iter().map(|history| constant(history)).collect();
    let mut values: Vec<Vec<f32>> =
        constants.iter().map(|constant| vec![constant.unwrap_or(f32::NAN); horizon]).collect();
    let mut open: Vec<usize> = (0..histories.len()).filter(|&at| constants[at].is_none()).collect();
    // Neighbours of similar length waste little padding.
    open.sort_by_key(|&at| histories[at].len());
    for batch in open.chunks(batch) {
        let inputs: Vec<&[f32]> = batch.iter().map(|&at| histories[at]).collect();
        let outputs = model.forecast(&inputs, horizon).map_err(|error| Error::compute(&error))?;
        for (&at, output) in batch.iter().zip(outputs) {
            values[at] = output;
        }
    }
    Ok(values)
}

/// The names of `horizon` rows from row `from` on.
pub(crate) fn future(series: &Series, from: usize, horizon: usize) -> Result<Vec<Stamp>> {
    let rows = (from..from.saturating_add(horizon)).map(|row| series.stamp(i64::try_from(row).ok()?));
    rows.collect::<Option<Vec<_>>>().ok_or_else(|| {
        let problem = "the forecast would leave the calendar (after the year 9999): ask for fewer steps";
        Error::input(Place::series(&series.name), problem)
    })
}

#[cfg(test)]
mod tests;
