//! What the control plane adds to the trace of a run. Pure but for [`of_run`], which looks up names.

use super::{
    model::{Job, Run},
    unit::Unit,
};
use crate::{
    server::{error::Result, store},
    trace::{Node, Part, Service, Span},
};

/// The wait of a job that was claimed at `now`.
pub(super) fn of_wait(job: &Job, now: i64) -> Span {
    let node = Node::Part { stage: job.kind, epoch: job.epoch, part: Part::Queued };
    Span { node, start_ms: job.queued_at, ..of_job(job, now) }
}

/// The stage of a job that ends now. `error`: a code, when it failed.
pub(super) fn of_stage(job: &Job, outcome: &str, error: Option<&str>, now: i64) -> Span {
    let mut span = of_job(job, now);
    span.attributes.push(("terrapool.outcome", outcome.to_owned()));
    span.attributes.extend(job.agent_id.as_ref().map(|agent| ("terrapool.agent.id", agent.to_string())));
    Span { error: error.map(str::to_owned), ..span }
}

fn of_job(job: &Job, now: i64) -> Span {
    Span {
        service: Service::Server,
        run: job.run_id.clone(),
        node: Node::Stage { stage: job.kind, epoch: job.epoch },
        start_ms: job.claimed_at.unwrap_or(now),
        end_ms: now,
        attributes: vec![
            ("terrapool.run.id", job.run_id.to_string()),
            ("terrapool.stage", job.kind.as_str().to_owned()),
            ("terrapool.pool.id", job.pool_id.to_string()),
        ],
        error: None,
    }
}

/// Records the root: the run has ended.
///
/// # Errors
/// Those of the database.
pub(super) async fn of_run(unit: &mut Unit<'_>, run: &Run) -> Result<()> {
    if !unit.app.trace.is_on() {
        return Ok(());
    }
    let mut attributes = vec![
        ("terrapool.run.id", run.id.to_string()),
        ("terrapool.run.status", run.status.as_str().to_owned()),
        ("terrapool.run.source", run.source.clone()),
    ];
    if let Some(workspace) = store::workspaces::get(unit, &run.workspace_id).await? {
        let environment = store::environments::get(unit, &workspace.environment_id).await?;
        attributes.push(("terrapool.workspace", workspace.name));
        attributes.extend(environment.map(|environment| ("terrapool.environment", environment.name)));
    }
    unit.record(|now| Span {
        service: Service::Server,
        run: run.id.clone(),
        node: Node::Run,
        start_ms: run.created_at,
        end_ms: now,
        attributes,
        error: run.error_code.clone(),
    });
    Ok(())
}
