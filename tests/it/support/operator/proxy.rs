//! The way to the control plane: a real server behind a proxy on loopback that counts the operator's calls and lets
//! them meet the schedule's faults. Agents speak to the server itself.

use std::{
    future::pending,
    io,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::stream;
use serde_json::{Value, json};
use terrapool::{clock::Clock, server::app::Policy};
use tower::ServiceExt;

use super::{
    plan::{Failure, Side},
    recorder::{Class, Recorder, Verdict},
};
use crate::support::app::TestApp;

/// A server with its proxy. Serves one schedule at a time.
pub struct ControlPlane {
    pub app: TestApp,
    /// `http://127.0.0.1:PORT`, of the proxy.
    pub url: String,
    slot: Slot,
    /// Schedules that it has served.
    pub used: std::sync::atomic::AtomicUsize,
}

type Slot = Arc<Mutex<Option<Arc<Recorder>>>>;

#[derive(Clone)]
struct Proxy {
    server: Router,
    slot: Slot,
}

impl ControlPlane {
    pub async fn start() -> Self {
        let app = TestApp::at(Clock::shifted(), Policy::default()).await;
        let slot = Slot::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let proxy = Proxy { server: app.router.clone(), slot: slot.clone() };
        let router = Router::new().fallback(pass).with_state(proxy);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { app, url, slot, used: std::sync::atomic::AtomicUsize::new(0) }
    }

    /// From now on calls belong to this schedule; `None`: to none.
    pub fn serve(&self, recorder: Option<Arc<Recorder>>) {
        *self.slot.lock().unwrap() = recorder;
    }
}

async fn pass(State(proxy): State<Proxy>, request: Request) -> Response {
    let recorder = proxy.slot.lock().unwrap().clone();
    let Some(recorder) = recorder else { return (StatusCode::GONE, "no schedule is under way").into_response() };
    let label = label(request.method(), request.uri().path());
    let path = request.uri().path().to_owned();
    if request.method() == Method::GET {
        return match recorder.meet(Side::ControlPlane, Class::Read, &label, &path, &Value::Null).0 {
            Verdict::Dead => pending().await,
            Verdict::Down | Verdict::Fail(_) => cut(),
            Verdict::Pass => proxy.forward(request).await,
        };
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else { return cut() };
    let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let _flight = recorder.takes_off();
    let verdict = recorder.meet(Side::ControlPlane, Class::Write, &label, &path, &json).0;
    let request = Request::from_parts(parts, Body::from(body));
    match verdict {
        Verdict::Dead => pending().await,
        Verdict::Fail(Failure::CrashBefore) => {
            recorder.crash();
            pending().await
        }
        Verdict::Down | Verdict::Fail(Failure::TimeoutBefore) => cut(),
        Verdict::Fail(Failure::Answer(code)) => refusal(code),
        Verdict::Fail(Failure::CrashAfter) => {
            proxy.remember(&recorder, request).await;
            recorder.crash();
            pending().await
        }
        Verdict::Fail(Failure::TimeoutAfter) => {
            proxy.remember(&recorder, request).await;
            cut()
        }
        // The operator's thread is not to be had from here.
        Verdict::Fail(Failure::Freeze(_)) | Verdict::Pass => proxy.remember(&recorder, request).await,
    }
}

impl Proxy {
    async fn forward(self, request: Request) -> Response {
        self.server.oneshot(request).await.into_response()
    }

    /// Forwards, and notes the secret of a token that comes back: it must never be shown anywhere.
    async fn remember(self, recorder: &Recorder, request: Request) -> Response {
        let creates = request.method() == Method::POST && request.uri().path().ends_with("/access-tokens");
        let answer = self.forward(request).await;
        if !creates {
            return answer;
        }
        let (parts, body) = answer.into_parts();
        let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else { return cut() };
        let json: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        if let Some(secret) = json["data"]["attributes"]["token"].as_str() {
            recorder.add_secret(secret);
        }
        Response::from_parts(parts, Body::from(body))
    }
}

/// `control-plane PATCH agent-pools/*`
fn label(method: &Method, path: &str) -> String {
    let is_id = |segment: &str| segment.rsplit_once('-').is_some_and(|(_, tail)| tail.len() == 16);
    let rest = path.strip_prefix("/api/iacp/v3/").unwrap_or(path);
    let segments: Vec<&str> = rest.split('/').map(|segment| if is_id(segment) { "*" } else { segment }).collect();
    format!("control-plane {method} {}", segments.join("/"))
}

/// No whole answer: the connection ends.
fn cut() -> Response {
    let broken = stream::once(async { Err::<Bytes, _>(io::Error::other("cut (a test's fault)")) });
    ([(header::CONTENT_TYPE, "application/vnd.api+json")], Body::from_stream(broken)).into_response()
}

fn refusal(code: u16) -> Response {
    let error =
        json!({"errors": [{"status": code.to_string(), "title": "a test's fault", "detail": "a test's fault"}]});
    let mut answer = (StatusCode::from_u16(code).unwrap(), error.to_string()).into_response();
    answer.headers_mut().insert(header::CONTENT_TYPE, "application/vnd.api+json".parse().unwrap());
    if code == 429 {
        answer.headers_mut().insert(header::RETRY_AFTER, "1".parse().unwrap());
    }
    answer
}
