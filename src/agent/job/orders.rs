//! How a job is ended from outside: by an order of the control plane, its time limit, or the end of the agent.

use std::time::Instant;

use tokio::sync::watch;

use super::{
    super::{
        Agent,
        ending::{Action, Cause, Ending, Event},
        executor::Signal,
        jobdir::JobDir,
        record::JobRecord,
        remote::Stop,
    },
    insist,
};
use crate::{
    api::{agent::Order, job::JobSpec},
    telemetry::Chain,
};

/// Resolves when the job is to end before its stage has started.
pub(super) async fn end_before_start(
    agent: &Agent,
    orders: &mut watch::Receiver<Option<Order>>,
    ending: &mut Ending,
) -> Result<Cause, Stop> {
    loop {
        let event = next_event(agent, orders, ending).await;
        match ending.on(event, Instant::now()) {
            Action::Abandon => return Err(Stop::Fenced),
            Action::Nothing => {}
            Action::Interrupt | Action::Kill if agent.halt.is_cancelled() => return Err(Stop::Halted),
            Action::Interrupt | Action::Kill => return Ok(ending.cause.unwrap_or(Cause::Canceled)),
        }
    }
}

async fn next_event(agent: &Agent, orders: &mut watch::Receiver<Option<Order>>, ending: &Ending) -> Event {
    let deadline = async {
        match ending.deadline() {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
    };
    let order = async {
        loop {
            // Err: the list forgot the job, so no order can come any more.
            if orders.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Some(order) = *orders.borrow_and_update() {
                return order;
            }
        }
    };
    tokio::select! {
        order = order => Event::Order(order),
        () = agent.shutdown.stop.cancelled(), if ending.cause.is_none() => Event::AgentStops,
        () = agent.halt.cancelled(), if ending.cause.is_none() => Event::AgentStops,
        () = deadline => Event::Deadline,
    }
}

/// Makes the running stage end when it has to; returns when the job is not ours any more.
pub(super) async fn control(
    agent: &Agent,
    dir: &JobDir,
    spec: &JobSpec,
    record: &mut JobRecord,
    ending: &mut Ending,
    orders: &mut watch::Receiver<Option<Order>>,
) -> Stop {
    loop {
        let event = next_event(agent, orders, ending).await;
        let signal = match ending.on(event, Instant::now()) {
            Action::Abandon => return Stop::Fenced,
            Action::Nothing => continue,
            Action::Interrupt => Signal::Interrupt,
            Action::Kill => Signal::Kill,
        };
        tracing::info!(job = %spec.job_id, cause = ?ending.cause, ?signal, "ending the stage");
        record.cause = ending.cause;
        if let Err(error) = record.store(&agent.config.data, &spec.job_id).await {
            tracing::warn!(job = %spec.job_id, error = %Chain(&error), "the end of the stage could not be noted");
        }
        insist(spec, "signal the stage", || agent.executor.signal(dir, spec, signal)).await;
    }
}
