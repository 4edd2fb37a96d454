//! A collector of OTLP over HTTP, that keeps what it is sent.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::{Arc, Mutex},
};

use axum::{Json, Router, extract::State, http::HeaderMap, routing::post};
use serde_json::{Value, json};

/// A span as it came, with who sent it.
#[derive(Debug, Clone)]
pub struct Received {
    pub service: String,
    pub trace: String,
    pub id: String,
    pub parent: Option<String>,
    pub name: String,
    /// Nanoseconds since 1970.
    pub start: u128,
    pub end: u128,
    pub attributes: Vec<(String, String)>,
    pub error: Option<String>,
    /// Header `x-key` of the call.
    pub key: Option<String>,
}

impl Received {
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Default)]
struct Taken {
    spans: Vec<Received>,
    /// The `resourceMetrics` of all calls.
    metrics: Vec<Value>,
}

type Kept = Arc<Mutex<Taken>>;

pub struct Collector {
    pub url: String,
    kept: Kept,
}

impl Collector {
    pub fn open() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let kept = Kept::default();
        let router = Router::new()
            .route("/v1/traces", post(take))
            .route("/v1/metrics", post(take_metrics))
            .with_state(kept.clone());
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, kept }
    }

    pub fn spans(&self) -> Vec<Received> {
        self.kept.lock().unwrap().spans.clone()
    }

    pub fn metrics(&self) -> Vec<Value> {
        self.kept.lock().unwrap().metrics.clone()
    }
}

async fn take_metrics(State(kept): State<Kept>, Json(body): Json<Value>) -> Json<Value> {
    kept.lock().unwrap().metrics.extend(body["resourceMetrics"].as_array().unwrap().clone());
    Json(json!({}))
}

async fn take(State(kept): State<Kept>, headers: HeaderMap, Json(body): Json<Value>) -> Json<Value> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let list = |value: &Value| value.as_array().cloned().unwrap();
    let attributes = |value: &Value| -> Vec<(String, String)> {
        let pairs = list(&value["attributes"]).into_iter();
        pairs.map(|pair| (text(&pair["key"]).unwrap(), text(&pair["value"]["stringValue"]).unwrap())).collect()
    };
    for resource in list(&body["resourceSpans"]) {
        let service = attributes(&resource["resource"]).remove(0);
        assert_eq!(service.0, "service.name");
        for span in list(&resource["scopeSpans"]).iter().flat_map(|scope| list(&scope["spans"])) {
            let nanos = |name: &str| text(&span[name]).unwrap().parse().unwrap();
            kept.lock().unwrap().spans.push(Received {
                service: service.1.clone(),
                trace: text(&span["traceId"]).unwrap(),
                id: text(&span["spanId"]).unwrap(),
                parent: text(&span["parentSpanId"]),
                name: text(&span["name"]).unwrap(),
                start: nanos("startTimeUnixNano"),
                end: nanos("endTimeUnixNano"),
                attributes: attributes(&span),
                error: text(&span["status"]["message"]),
                key: headers.get("x-key").map(|value| value.to_str().unwrap().to_owned()),
            });
        }
    }
    Json(json!({}))
}
