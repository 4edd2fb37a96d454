//! The layer between the operator's client and the API server: every call of the operator passes it, is counted, and
//! meets the schedule's faults.

use std::{
    collections::HashSet,
    future::pending,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body as Answer, Bytes},
    http::{Method, Request, Response, Uri},
};
use futures::{FutureExt, future::BoxFuture};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tower::{BoxError, Service};

use super::{
    plan::{Failure, Side},
    recorder::{Class, Recorder, Verdict},
    watch,
};

/// One operator's way to the API server.
#[derive(Clone)]
pub struct FaultLayer {
    server: Client,
    /// Where connections live: an operator's end must not take those of others with it.
    runtime: Handle,
    recorder: Arc<Recorder>,
    alive: Arc<AtomicBool>,
    /// Kinds that were listed already.
    listed: Arc<Mutex<HashSet<String>>>,
}

impl FaultLayer {
    /// `alive` false: nothing of this operator arrives any more.
    pub fn new(server: Client, runtime: Handle, recorder: Arc<Recorder>, alive: Arc<AtomicBool>) -> Self {
        Self { server, runtime, recorder, alive, listed: Arc::default() }
    }

    /// The client that the operator is given.
    pub fn client(self, namespace: &str) -> Client {
        Client::new(self, namespace)
    }

    async fn forward(&self, request: Request<Body>) -> Result<Response<Answer>, BoxError> {
        let server = self.server.clone();
        let answer = self.runtime.spawn(async move { server.send(request).await });
        let answer = answer.await?.map_err(BoxError::from)?;
        if !self.alive.load(Ordering::SeqCst) {
            return pending().await;
        }
        Ok(answer.map(Answer::new))
    }

    async fn handle(self, request: Request<Body>) -> Result<Response<Answer>, BoxError> {
        if !self.alive.load(Ordering::SeqCst) {
            return pending().await;
        }
        let (class, label) = classify(request.method(), request.uri());
        if matches!(class, Class::List | Class::Watch | Class::Read) {
            return self.read(class, &label, request).await;
        }
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await?;
        let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let path = parts.uri.path().to_owned();
        // A Lease is renewed all the time.
        let _flight = (class != Class::Lease).then(|| self.recorder.takes_off());
        let (verdict, _) = self.recorder.meet(Side::Cluster, class, &label, &path, &json);
        let request = Request::from_parts(parts, Body::from(body));
        match verdict {
            Verdict::Dead | Verdict::Fail(Failure::CrashBefore) => {
                if verdict != Verdict::Dead {
                    self.recorder.crash();
                }
                pending().await
            }
            Verdict::Down | Verdict::Fail(Failure::TimeoutBefore) => Err(no_answer()),
            Verdict::Fail(Failure::Answer(code)) => Ok(refusal(code)),
            Verdict::Fail(Failure::CrashAfter) => {
                self.write(request).await?;
                self.recorder.crash();
                pending().await
            }
            Verdict::Fail(Failure::TimeoutAfter) => {
                self.write(request).await?;
                Err(no_answer())
            }
            Verdict::Fail(Failure::Freeze(ms)) => {
                // The operator's only thread.
                std::thread::sleep(Duration::from_millis(ms));
                self.write(request).await
            }
            Verdict::Pass => self.write(request).await,
        }
    }

    async fn write(&self, request: Request<Body>) -> Result<Response<Answer>, BoxError> {
        let (parts, body) = self.forward(request).await?.into_parts();
        let body: Bytes = axum::body::to_bytes(body, usize::MAX).await?;
        if parts.status.is_success() {
            self.recorder.answered(&serde_json::from_slice(&body).unwrap_or(Value::Null));
        }
        Ok(Response::from_parts(parts, Answer::from(body)))
    }

    async fn read(&self, class: Class, label: &str, request: Request<Body>) -> Result<Response<Answer>, BoxError> {
        let path = request.uri().path().to_owned();
        match self.recorder.meet(Side::Cluster, class, label, &path, &Value::Null).0 {
            Verdict::Dead => pending().await,
            Verdict::Pass => {}
            Verdict::Down | Verdict::Fail(_) => {
                if class == Class::Watch || begins_watch(request.uri()) {
                    self.recorder.follow(label, |follow| follow.in_vain += 1);
                }
                return Err(no_answer());
            }
        }
        let follows = class == Class::List && begins_watch(request.uri());
        let request = if follows { self.outdated(label, request) } else { request };
        let answer = self.forward(request).await?;
        if !answer.status().is_success() {
            return Ok(answer);
        }
        if follows {
            self.recorder.follow(label, |follow| follow.lists += 1);
        }
        if class != Class::Watch {
            return Ok(answer);
        }
        self.recorder.follow(label, |follow| follow.watches += 1);
        Ok(answer.map(|body| watch::follow(body, label, &self.recorder)))
    }

    /// The first list of each watched kind may be of the past, as from an API server that lags.
    fn outdated(&self, label: &str, request: Request<Body>) -> Request<Body> {
        let query = request.uri().query().unwrap_or_default();
        let Some(revision) = self.recorder.stale_revision() else { return request };
        if !self.listed.lock().unwrap().insert(label.to_owned()) {
            return request;
        }
        let kept = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("resourceVersion"));
        let query: Vec<&str> = kept.collect();
        let path = request.uri().path();
        let uri = format!("{path}?{}&resourceVersion={revision}&resourceVersionMatch=Exact", query.join("&"));
        let (mut parts, body) = request.into_parts();
        parts.uri = uri.parse().unwrap();
        Request::from_parts(parts, body)
    }
}

impl Service<Request<Body>> for FaultLayer {
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.clone().handle(request).boxed()
    }
}

fn no_answer() -> BoxError {
    Box::new(io::Error::new(io::ErrorKind::TimedOut, "the API server did not answer (a test's fault)"))
}

fn refusal(code: u16) -> Response<Answer> {
    let reason = match code {
        409 => "Conflict",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "code": code,
        "message": "a test's fault",
    });
    let mut answer = Response::builder().status(code).header("content-type", "application/json");
    if code == 429 {
        answer = answer.header("retry-after", "1");
    }
    answer.body(Answer::from(status.to_string())).unwrap()
}

/// Whether it is the list that a watch begins with, or its first page: those have a page size, or are asked from memory; a
/// list of one only looks whether the kind is there.
fn begins_watch(uri: &Uri) -> bool {
    let pairs = || uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let first = |(key, value)| (key == "limit" && value != "1") || (key == "resourceVersion" && value == "0");
    pairs().any(first) && pairs().all(|(key, _)| key != "continue" && key != "watch")
}

/// What a call does, and its name in a schedule.
fn classify(method: &Method, uri: &Uri) -> (Class, String) {
    let segments: Vec<&str> = uri.path().split('/').filter(|segment| !segment.is_empty()).collect();
    let skip = if segments.first() == Some(&"apis") { 3 } else { 2 };
    let group = if skip == 3 { segments.get(1).copied().unwrap_or_default() } else { "" };
    let mut rest = segments.get(skip..).unwrap_or_default();
    if rest.first() == Some(&"namespaces") && rest.len() > 2 {
        rest = &rest[2..];
    }
    let resource = rest.first().copied().unwrap_or_default();
    let part = rest.get(2).map(|part| format!("/{part}")).unwrap_or_default();
    if *method == Method::GET {
        let watches = uri.query().is_some_and(|query| query.contains("watch=true") || query.contains("watch=1"));
        let class = match rest.len() {
            1 if watches => Class::Watch,
            1 => Class::List,
            _ => Class::Read,
        };
        return (class, resource.to_owned());
    }
    let label = format!("cluster {method} {resource}{part}");
    let class = match (resource, group) {
        ("events", _) => Class::Event,
        ("leases", _) => Class::Lease,
        // Questions in the form of a POST.
        (_, "authorization.k8s.io" | "authentication.k8s.io") => Class::Read,
        _ => Class::Write,
    };
    (class, label)
}
