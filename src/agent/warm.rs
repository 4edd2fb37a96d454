//! When containers are made that wait for jobs, and when they go: the executor's rounds, as jobs come and go.

use std::time::Duration;

use super::{Agent, executor::Room};
use crate::{api::agent::ExecutorKind, telemetry::Chain};

/// How often it is looked whether those that wait still live.
const LOOK: Duration = Duration::from_secs(2);

/// How long a round may go on when the agent drains: one that was cut could leave a container behind.
const LAST_ROUND: Duration = Duration::from_secs(10);

/// How often the last of them is tried to be removed.
const REMOVALS: u32 = 5;

/// Until the agent takes no jobs any more; then none waits.
pub(super) async fn keep(agent: &Agent) {
    if agent.config.executor.warm == 0 {
        return;
    }
    if agent.executor.kind() != ExecutorKind::Docker {
        tracing::warn!(
            executor = agent.executor.kind().as_str(),
            "no containers wait for jobs (--warm): only the docker executor has them"
        );
        return;
    }
    let drained = async {
        agent.shutdown.drain.cancelled().await;
        tokio::time::sleep(LAST_ROUND).await;
    };
    tokio::select! {
        () = rounds(agent) => {}
        () = drained => {}
    }
    for _ in 0..REMOVALS {
        match agent.executor.keep_warm(Room::default()).await {
            Ok(_) => return,
            Err(error) => tracing::warn!(error = %Chain(&error), "containers that wait for jobs could not be removed"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Ends when the agent drains, and not in the middle of a round.
async fn rounds(agent: &Agent) {
    let mut jobs = agent.jobs.changes();
    let mut cordoned = agent.cordoned.subscribe();
    while !agent.shutdown.drain.is_cancelled() {
        match agent.executor.keep_warm(room(agent)).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => tracing::warn!(error = %Chain(&error), "no container can be kept waiting for a job now"),
        }
        tokio::select! {
            // Errors: the agent is gone, which cannot be while it is borrowed.
            _ = jobs.changed() => {}
            _ = cordoned.changed() => {}
            () = agent.executor.warm_changed() => {}
            () = agent.shutdown.drain.cancelled() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn room(agent: &Agent) -> Room {
    let slots = if *agent.cordoned.borrow() { 0 } else { agent.slots() };
    Room { slots, claimed: agent.jobs.count() }
}
