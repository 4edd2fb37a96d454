//! A control plane behind a gate: every call of an agent passes it, is recorded, and meets the faults that a test
//! has set up. The server may be taken away and brought back at the same address.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use reqwest::Url;
use tower::ServiceExt;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answered with this status; the server never hears of it.
    Refuse(u16),
    /// The server does it, but the agent is told this status.
    LoseAnswer(u16),
    /// The server never hears of it, and there is no answer.
    HangBefore,
    /// The server does it, and there is no answer.
    HangAfter,
    /// Waits until [`Gate::heal`]; then the server, whichever it is by then, hears of it.
    HoldBefore,
    /// The server does it, and its answer waits until [`Gate::heal`]. A claim without a job is not held.
    HoldAnswer,
    Delay(Duration),
}

#[derive(Debug)]
struct Rule {
    /// `PUT /log`: a method and a part of the path.
    call: &'static str,
    fault: Fault,
    /// How many calls it still meets.
    left: usize,
}

/// A call that came to the gate.
#[derive(Debug, Clone)]
pub struct Seen {
    pub call: String,
    /// What was answered; `None`: nothing (yet).
    pub status: Option<u16>,
}

#[derive(Debug, Default)]
struct Inner {
    server: Option<Router>,
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    /// Calls that are being held.
    held: usize,
}

#[derive(Clone, Default)]
pub struct Gate {
    inner: Arc<Mutex<Inner>>,
    /// How often it was healed.
    heals: tokio::sync::watch::Sender<u32>,
}

/// Whether a recorded call is the one that `pattern` (`PUT /log`) speaks of.
fn matches(call: &str, pattern: &str) -> bool {
    let (method, part) = pattern.split_once(' ').unwrap();
    call.split_once(' ').is_some_and(|(m, path)| m == method && path.contains(part))
}

impl Gate {
    /// Opens a gate before `server`; its address is the agents' control plane.
    pub async fn open(server: Router) -> (Self, Url) {
        let gate = Self::default();
        gate.serve(Some(server));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let router = Router::new().fallback(pass).with_state(gate.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (gate, url)
    }

    /// Exchanges the server behind the gate; `None`: it is down.
    pub fn serve(&self, server: Option<Router>) {
        self.inner.lock().unwrap().server = server;
    }

    /// The next `times` calls like `call` meet `fault`.
    pub fn fault(&self, call: &'static str, fault: Fault, times: usize) {
        self.inner.lock().unwrap().rules.push(Rule { call, fault, left: times });
    }

    /// No faults from now on.
    pub fn heal(&self) {
        self.inner.lock().unwrap().rules.clear();
        self.heals.send_modify(|heals| *heals += 1);
    }

    /// How many calls wait until the gate is healed.
    pub fn held(&self) -> usize {
        self.inner.lock().unwrap().held
    }

    async fn hold(&self) {
        let mut heals = self.heals.subscribe();
        let _held = Held::new(self);
        heals.changed().await.unwrap();
    }

    pub fn seen(&self, call: &str) -> Vec<Seen> {
        self.inner.lock().unwrap().seen.iter().filter(|seen| matches(&seen.call, call)).cloned().collect()
    }

    /// Waits until `count` calls like `call` have come.
    #[track_caller]
    pub fn reached(&self, call: &'static str, count: usize) -> impl Future<Output = ()> {
        let gate = self.clone();
        let place = std::panic::Location::caller();
        async move {
            let deadline = Instant::now() + Duration::from_secs(30);
            while gate.seen(call).len() < count {
                assert!(
                    Instant::now() < deadline,
                    "{place}: {call} came {} times, not {count}; seen:\n{}",
                    gate.seen(call).len(),
                    gate.history()
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// All calls but heartbeats, one a line.
    fn history(&self) -> String {
        let inner = self.inner.lock().unwrap();
        let calls = inner.seen.iter().filter(|seen| !seen.call.ends_with("/heartbeat"));
        calls.map(|Seen { call, status }| format!("{call} → {status:?}\n")).collect()
    }

    /// What a call meets on its way in, or (`answered`) on its way out.
    fn meet(&self, call: &str, answered: bool) -> Option<Fault> {
        let mut inner = self.inner.lock().unwrap();
        let meets = |rule: &Rule| (rule.fault == Fault::HoldAnswer) == answered && matches(call, rule.call);
        let rule = inner.rules.iter_mut().find(|rule| rule.left > 0 && meets(rule))?;
        rule.left -= 1;
        Some(rule.fault)
    }

    fn server(&self) -> Option<Router> {
        self.inner.lock().unwrap().server.clone()
    }
}

/// A call that is held, until it goes on or its caller is gone.
struct Held<'a>(&'a Gate);

impl<'a> Held<'a> {
    fn new(gate: &'a Gate) -> Self {
        gate.inner.lock().unwrap().held += 1;
        Self(gate)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.inner.lock().unwrap().held -= 1;
    }
}

async fn pass(State(gate): State<Gate>, request: Request) -> Response {
    let call = format!("{} {}", request.method(), request.uri());
    let index = {
        let mut inner = gate.inner.lock().unwrap();
        inner.seen.push(Seen { call: call.clone(), status: None });
        inner.seen.len() - 1
    };
    let response = answer(&gate, &call, request).await;
    gate.inner.lock().unwrap().seen[index].status = Some(response.status().as_u16());
    response
}

async fn answer(gate: &Gate, call: &str, request: Request<Body>) -> Response {
    let status = |code: u16| StatusCode::from_u16(code).unwrap().into_response();
    let fault = gate.meet(call, false);
    if fault == Some(Fault::HoldBefore) {
        gate.hold().await;
    }
    let Some(server) = gate.server() else { return status(503) };
    match fault {
        Some(Fault::Refuse(code)) => return status(code),
        Some(Fault::HangBefore) => std::future::pending().await,
        Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
        _ => {}
    }
    let response = server.oneshot(request).await.into_response();
    let has_job = !call.ends_with("/claim") || response.status() == StatusCode::OK;
    if has_job && gate.meet(call, true).is_some() {
        gate.hold().await;
        if gate.server().is_none() {
            return status(503);
        }
    }
    match fault {
        Some(Fault::LoseAnswer(code)) => status(code),
        Some(Fault::HangAfter) => std::future::pending().await,
        _ => response,
    }
}
