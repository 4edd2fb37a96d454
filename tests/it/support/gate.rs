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
}

#[derive(Clone, Default)]
pub struct Gate {
    inner: Arc<Mutex<Inner>>,
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

    fn meet(&self, call: &str) -> (Option<Fault>, Option<Router>) {
        let mut inner = self.inner.lock().unwrap();
        let rule = inner.rules.iter_mut().find(|rule| rule.left > 0 && matches(call, rule.call));
        let fault = rule.map(|rule| {
            rule.left -= 1;
            rule.fault
        });
        (fault, inner.server.clone())
    }
}

async fn pass(State(gate): State<Gate>, request: Request) -> Response {
    let call = format!("{} {}", request.method(), request.uri());
    let index = {
        let mut inner = gate.inner.lock().unwrap();
        inner.seen.push(Seen { call: call.clone(), status: None });
        inner.seen.len() - 1
    };
    let (fault, server) = gate.meet(&call);
    let response = answer(fault, server, request).await;
    gate.inner.lock().unwrap().seen[index].status = Some(response.status().as_u16());
    response
}

async fn answer(fault: Option<Fault>, server: Option<Router>, request: Request<Body>) -> Response {
    let status = |code: u16| StatusCode::from_u16(code).unwrap().into_response();
    let Some(server) = server else { return status(503) };
    match fault {
        Some(Fault::Refuse(code)) => return status(code),
        Some(Fault::HangBefore) => std::future::pending().await,
        Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
        Some(Fault::LoseAnswer(_) | Fault::HangAfter) | None => {}
    }
    let response = server.oneshot(request).await.into_response();
    match fault {
        Some(Fault::LoseAnswer(code)) => status(code),
        Some(Fault::HangAfter) => std::future::pending().await,
        _ => response,
    }
}
