//! Tells the control plane that the agent lives and which jobs it has. One call is always under way and held
//! by the server, so that a cancellation arrives at once; what changes here cuts it short.
//!
//! The agent never judges its own leases: without an answer it goes on working, and the first answer decides.

use std::{
    sync::{PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{Agent, Fatal, backoff::Backoff};
use crate::{
    api::agent::{AgentStatus, HeartbeatRequest, HeartbeatResponse},
    client::agent::Error,
    telemetry::Chain,
};

/// Shortest time between two answers without news: a server that does not hold calls is not hammered.
const PACE: Duration = Duration::from_millis(500);

/// Failures in a row after which the log speaks of them.
const LOUD_AFTER: u32 = 2;

/// Runs until the agent's work is over; returns early when the agent must end.
pub(super) async fn run(agent: &Agent) -> Option<Fatal> {
    let mut changes = agent.jobs.changes();
    let mut backoff = Backoff::default();
    loop {
        *agent.beat.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        changes.borrow_and_update();
        let request = request(agent);
        let draining = request.draining;
        let sent = Instant::now();
        let answer = tokio::select! {
            answer = agent.client.heartbeat(&request) => answer,
            _ = changes.changed() => continue,
            () = agent.shutdown.drain.cancelled(), if !draining => continue,
            () = agent.done.cancelled() => return None,
        };
        if answer.is_err() {
            agent.metrics.heartbeat_failed();
        }
        let wait = match answer {
            Ok(answer) => {
                backoff.reset();
                if obey(agent, &request, &answer) { Duration::ZERO } else { PACE.saturating_sub(sent.elapsed()) }
            }
            Err(Error::Unauthorized { detail }) => {
                tracing::warn!(%detail, "the agent's token is not accepted; registering again");
                match agent.register().await {
                    Ok(()) => PACE,
                    Err(error) if error.is_final() => return Some(error),
                    Err(error) => patience(&mut backoff, &error, None),
                }
            }
            Err(error @ Error::Upgrade { .. }) => return Some(Fatal::Register { source: error }),
            Err(error) => {
                let asked = error.retry_after();
                patience(&mut backoff, &error, asked)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = agent.done.cancelled() => return None,
        }
    }
}

fn request(agent: &Agent) -> HeartbeatRequest {
    let (jobs, known) = agent.jobs.active();
    let error_message = agent.trouble();
    let status = match (&error_message, jobs.is_empty()) {
        (Some(_), true) => AgentStatus::Errored,
        (_, true) => AgentStatus::Idle,
        (_, false) => AgentStatus::Busy,
    };
    HeartbeatRequest {
        status,
        error_message,
        draining: agent.shutdown.drain.is_cancelled(),
        cordoned: Some(*agent.cordoned.borrow()),
        jobs,
        known,
        wait_ms: agent.heartbeat_ms.load(Ordering::Relaxed),
    }
}

/// Passes the orders on; says whether there was anything new.
fn obey(agent: &Agent, request: &HeartbeatRequest, answer: &HeartbeatResponse) -> bool {
    let HeartbeatResponse { directives, drain } = answer;
    for directive in directives {
        agent.jobs.order(directive);
    }
    let changed = agent.cordoned.send_if_modified(|cordoned| std::mem::replace(cordoned, *drain) != *drain);
    if changed {
        tracing::info!(
            drain,
            "the control plane {}",
            if *drain { "wants no new jobs here" } else { "allows new jobs here" }
        );
    }
    changed || directives.iter().any(|directive| !request.known.contains(directive))
}

fn patience(backoff: &mut Backoff, error: &(dyn std::error::Error + 'static), asked: Option<Duration>) -> Duration {
    let wait = backoff.next(asked);
    if backoff.failures() >= LOUD_AFTER {
        tracing::warn!(error = %Chain(error), "no heartbeat got through; the work goes on");
    }
    wait
}
