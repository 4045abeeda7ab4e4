//! Serves forecasts over HTTP: one model behind an `Arc`, any number of requests at once.
//!
//! ```console
//! cargo run --release --example service                    # the built-in model, 127.0.0.1:8080
//! cargo run --release --example service -- 0.0.0.0:80 path/to/TimeMoE-50M
//!
//! curl -s localhost:8080/forecast -d '{"horizon": 3, "series": [
//!     {"name": "sales", "timestamps": ["2024-01-31", "2024-02-29", "2024-03-31"], "values": [3, 5, 4]},
//!     {"name": "visits", "values": [12, 15, null, 14]}]}'
//! curl -s localhost:8080/model
//! ```
//!
//! A missing value is `null`. Answers are `{"forecasts": [{"name", "timestamps", "values", ..}]}`, or
//! `{"error": "..."}` with status 400 for requests that cannot be met. Requests above 1 MiB are refused. At most as many
//! requests compute at once as the machine has cores; the others wait. Ctrl-C lets the running ones finish.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, body::Bytes};
use moesaic::{Error, Forecast, ForecastOptions, Forecaster, Series};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Semaphore;

const MOST_BYTES: usize = 1 << 20;
const MOST_SERIES: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    horizon: usize,
    series: Vec<RequestSeries>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestSeries {
    name: String,
    /// One for each value, ascending; rows are numbered without.
    timestamps: Option<Vec<jiff::civil::DateTime>>,
    values: Vec<Option<f32>>,
}

#[derive(Serialize)]
struct Answer {
    forecasts: Vec<Forecast>,
}

#[derive(Clone)]
struct App {
    forecaster: Arc<Forecaster>,
    cores: Arc<Semaphore>,
}

/// The service around a model.
pub fn app(forecaster: Forecaster) -> Router {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let app = App { forecaster: Arc::new(forecaster), cores: Arc::new(Semaphore::new(cores)) };
    Router::new()
        .route("/forecast", post(forecast))
        .route("/model", get(|State(app): State<App>| async move { Json(app.forecaster.info().clone()) }))
        .layer(DefaultBodyLimit::max(MOST_BYTES))
        .with_state(app)
}

async fn forecast(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    // The body is read by hand so that curl needs no content type.
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return refuse(rejection.status(), &rejection.body_text()),
    };
    let request: Request = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &format!("the request is not as expected: {error}")),
    };
    if request.series.len() > MOST_SERIES {
        return refuse(StatusCode::BAD_REQUEST, &format!("send at most {MOST_SERIES} series at a time"));
    }
    // Forecasting is pure computation: it belongs on its own thread, and not on more of them than there are cores.
    let Ok(_core) = app.cores.acquire().await else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "the service is shutting down");
    };
    match tokio::task::spawn_blocking(move || answer(&app.forecaster, request)).await {
        Ok(Ok(forecasts)) => Json(Answer { forecasts }).into_response(),
        Ok(Err(error @ Error::Input { .. })) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        Ok(Err(error)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn answer(forecaster: &Forecaster, request: Request) -> moesaic::Result<Vec<Forecast>> {
    let series = request.series.into_iter().map(|series| {
        let values: Vec<f32> = series.values.iter().map(|value| value.unwrap_or(f32::NAN)).collect();
        match series.timestamps {
            Some(moments) => Series::from_moments(series.name, &moments, &values),
            None => Ok(Series::new(series.name, values)),
        }
    });
    let series = series.collect::<moesaic::Result<Vec<_>>>()?;
    forecaster.forecast(&series, request.horizon, &ForecastOptions::default())
}

fn refuse(status: StatusCode, problem: &str) -> Response {
    (status, Json(json!({ "error": problem }))).into_response()
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address: SocketAddr =
        arguments.next().unwrap_or_else(|| "127.0.0.1:8080".into()).parse().context("ADDRESS:PORT")?;
    let forecaster = match arguments.next() {
        Some(dir) => Forecaster::from_dir(dir)?,
        None => Forecaster::embedded()?,
    };
    let listener =
        tokio::net::TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    println!("serving on http://{}", listener.local_addr()?);
    let interrupted = async {
        // Without a signal handler the service still runs until it is killed.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    axum::serve(listener, app(forecaster)).with_graceful_shutdown(interrupted).await?;
    Ok(())
}
