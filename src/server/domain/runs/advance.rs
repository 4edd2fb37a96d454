//! What a workspace's waiting runs wait for, and queueing them when they wait for nothing.

use super::{super::pools, step};
use crate::{
    api::{
        job::Stage,
        run_state::{RunEvent, RunState},
    },
    ids::{JobId, WorkspaceId},
    server::{
        domain::{
            model::{ConfigurationStatus, Job, Lock, Pool, Run, StageStatus, Workspace},
            unit::Unit,
        },
        error::{Error, Result},
        store,
        wake::Topic,
    },
};

/// Queues the pending runs of a workspace that nothing keeps waiting, oldest first, and writes down what
/// the others wait for. Called whenever something that they may wait for has changed.
///
/// # Errors
/// Those of the database.
pub async fn advance(unit: &mut Unit<'_>, workspace: &WorkspaceId) -> Result<()> {
    for mut run in store::runs::pending(unit, workspace).await? {
        let workspace =
            store::workspaces::get(unit, workspace).await?.ok_or(Error::Internal("a run's workspace is not there"))?;
        let configuration = store::configurations::get(unit, &run.configuration_version_id)
            .await?
            .ok_or(Error::Internal("a run's configuration version is not there"))?;
        let pool = pools::for_workspace(unit, &workspace).await?;
        match obstacle(&run, &workspace, configuration.status, pool.as_ref()) {
            Some(obstacle) => {
                if run.waiting_for.as_ref() != Some(&obstacle) {
                    run.waiting_for = Some(obstacle);
                    store::runs::update(unit, &run).await?;
                }
            }
            None => {
                if let Some(pool) = pool {
                    queue_plan(unit, &mut run, pool).await?;
                }
            }
        }
    }
    Ok(())
}

/// What keeps a pending run from being planned, in words.
fn obstacle(
    run: &Run,
    workspace: &Workspace,
    configuration: ConfigurationStatus,
    pool: Option<&Pool>,
) -> Option<String> {
    if configuration == ConfigurationStatus::Pending {
        return Some("its configuration has not been uploaded yet".to_owned());
    }
    // Plans that nobody can apply need no lock and run side by side.
    if !run.plan_only {
        match &workspace.lock {
            Lock::Unlocked => {}
            Lock::Run { id } if *id == run.id => {}
            Lock::Run { id } => return Some(format!("{id} holds the workspace")),
            Lock::User { reason, .. } => {
                let reason = reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
                return Some(format!("the workspace is locked by a user{reason}"));
            }
        }
    }
    if pool.is_none() {
        return Some(format!(
            "workspace {} has no agent pool: link one to it, or set a default pool for its environment or account",
            workspace.name
        ));
    }
    None
}

async fn queue_plan(unit: &mut Unit<'_>, run: &mut Run, pool: Pool) -> Result<()> {
    if !run.plan_only && !store::runs::hold_workspace(unit, &run.workspace_id, &run.id).await? {
        return Err(Error::Internal("a free workspace could not be taken"));
    }
    run.pool_id = Some(pool.id);
    step(unit, run, RunEvent::PlanQueued).await?;
    queue(unit, run, Stage::Plan).await
}

/// Queues the apply of a run that is `apply_queued`.
pub(in crate::server::domain) async fn queue_apply(unit: &mut Unit<'_>, run: &mut Run) -> Result<()> {
    if run.status != RunState::ApplyQueued {
        return Err(Error::Internal("only a confirmed run's apply can be queued"));
    }
    let workspace = store::workspaces::get(unit, &run.workspace_id)
        .await?
        .ok_or(Error::Internal("a run's workspace is not there"))?;
    // The link may have moved since the plan: the rule of today decides.
    if let Some(pool) = pools::for_workspace(unit, &workspace).await? {
        run.pool_id = Some(pool.id);
        store::runs::update(unit, run).await?;
    }
    queue(unit, run, Stage::Apply).await
}

async fn queue(unit: &mut Unit<'_>, run: &Run, stage: Stage) -> Result<()> {
    let pool_id = run.pool_id.clone().ok_or(Error::Internal("a run without a pool cannot be queued"))?;
    let stage_id = match stage {
        Stage::Plan => run.plan_id.to_string(),
        Stage::Apply => run.apply_id.to_string(),
    };
    let mut row =
        store::runs::stage_by_id(unit, &stage_id).await?.ok_or(Error::Internal("a run's stage is not there"))?;
    row.status = StageStatus::Queued;
    row.queued_at = Some(unit.now);
    store::runs::update_stage(unit, &row).await?;
    let job = Job {
        id: JobId::random(),
        run_id: run.id.clone(),
        stage_id,
        kind: stage,
        pool_id: pool_id.clone(),
        claimed: false,
        priority: store::jobs::priority(stage, run.plan_only),
        sequence: run.sequence,
        epoch: 0,
        agent_id: None,
        claim_id: None,
        started: false,
        log_base: 0,
        lease_until: None,
        queued_at: unit.now,
        claimed_at: None,
    };
    store::jobs::insert(unit, &job).await?;
    unit.changed(&pool_id);
    unit.wake(Topic::Queue(pool_id));
    Ok(())
}
