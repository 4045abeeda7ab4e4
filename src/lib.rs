mod calendar;
mod error;
pub mod eval;
mod forecaster;
#[cfg(feature = "cli")]
pub mod plot;
mod series;
mod table;
pub use calendar::{Calendar, Frequency, Grid, Irregular, Moment, MonthDay, Precision};
pub use error::{Error, Place, Result};
pub use forecaster::{
    DEFAULT_CONTEXT, Forecast, ForecastOptions, Forecaster, MAX_HORIZON, Missing, ModelFile, ModelInfo, Parameters,
};
pub use series::{Index, Series, Stamp};
pub use table::{Table, TableOptions};
