//! The example service, asked over loopback by several clients at once.

#[path = "../examples/service.rs"]
#[allow(dead_code)] // its `main`
mod service;
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use moesaic::{ForecastOptions, Forecaster, Series};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// One request on its own connection: the status and the answer.
fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A body that is too long is refused while it is being sent.
    let _ = stream.write_all(body.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

/// Runs `client` against the service on a free port, then stops it and waits for its end.
fn with_service(client: impl FnOnce(SocketAddr)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let app = service::app(Forecaster::from_dir(support::model()).unwrap());
    let server = runtime
        .spawn(async move { axum::serve(listener, app).with_graceful_shutdown(async { drop(stopped.await) }).await });
    client(address);
    stop.send(()).unwrap();
    runtime.block_on(server).unwrap().unwrap();
}

#[test]
fn concurrent_requests_get_their_own_answers() {
    let model = Forecaster::from_dir(support::model()).unwrap();
    with_service(|address| {
        let clients: Vec<_> = (0..12)
            .map(|client| {
                let values: Vec<f32> = (0..30 + client).map(|t| ((t * (client + 2)) as f32 * 0.3).sin()).collect();
                let expected = model.forecast(&[Series::new("y", values.clone())], 9, &ForecastOptions::default());
                let expected = expected.unwrap().remove(0).values;
                std::thread::spawn(move || {
                    let request = json!({"horizon": 9, "series": [{"name": "y", "values": values}]});
                    let (status, answer) = ask(address, "POST", "/forecast", &request.to_string());
                    assert_eq!(status, 200, "{answer}");
                    let values = answer["forecasts"][0]["values"].as_array().unwrap().iter();
                    assert_eq!(values.map(|value| value.as_f64().unwrap() as f32).collect::<Vec<_>>(), expected);
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
}

#[test]
fn requests_are_checked() {
    with_service(|address| {
        let (status, model) = ask(address, "GET", "/model", "");
        assert_eq!((status, &model["architecture"]), (200, &json!("time_moe")));
        let dated = r#"{"horizon": 2, "series": [{"name": "a", "values": [1, null, 1],
            "timestamps": ["2024-01-31", "2024-02-29", "2024-03-31"]}]}"#;
        let (status, answer) = ask(address, "POST", "/forecast", dated);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["forecasts"][0]["timestamps"], json!(["2024-04-30", "2024-05-31"]));
        assert_eq!(answer["forecasts"][0]["values"], json!([1.0, 1.0]));
        let too_long = format!(r#"{{"horizon": 2, "series": [{{"name": "{}", "values": [1]}}]}}"#, "a".repeat(2 << 20));
        for (body, status, part) in [
            ("", 400, "not as expected"),
            ("{}", 400, "missing field"),
            (r#"{"horizon": 0, "series": [{"name": "a", "values": [1]}]}"#, 400, "the horizon is 0"),
            (r#"{"horizon": 2, "series": [{"name": "a", "values": []}]}"#, 400, "series 'a': has no values"),
            (r#"{"horizon": 2, "series": [{"name": "a", "values": [1e60]}]}"#, 400, ""),
            (
                r#"{"horizon": 2, "series": [{"name": "a", "values": [1], "timestamps": ["soon"]}]}"#,
                400,
                "not as expected",
            ),
            (&too_long, 413, ""),
        ] {
            let (got, answer) = ask(address, "POST", "/forecast", body);
            assert_eq!(got, status, "{answer}");
            assert!(status == 413 || answer["error"].as_str().unwrap().contains(part), "{answer}");
        }
        assert_eq!(ask(address, "GET", "/nothing", "").0, 404);
    });
}
