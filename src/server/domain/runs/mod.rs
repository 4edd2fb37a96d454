//! The life of runs: created, queued when their workspace is free, confirmed, discarded, cancelled. Every
//! change of status goes through `step`, which asks the state machine.

mod advance;
mod end;

pub use advance::advance;
pub use end::{PlanVerdict, end_stage, plan_verdict};
pub(super) use end::{abandon, fail};

use std::collections::BTreeMap;

use sqlx::AnyConnection;

use super::{
    model::{Cancel, ConfigurationStatus, ConfigurationVersion, Run, RunOptions, Workspace},
    unit::Unit,
};
use crate::{
    api::{
        agent::reason,
        run_state::{self, RunEvent, RunState},
    },
    ids::{AccountId, ApplyId, ConfigurationVersionId, PlanId, RunId, UserId, WorkspaceId},
    jsonapi::Page,
    server::{
        app::AppState,
        error::{Error, Result},
        store,
        wake::Topic,
    },
};

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct NewRun {
    pub workspace_id: WorkspaceId,
    /// Absent: the workspace's newest uploaded one.
    pub configuration_version_id: Option<ConfigurationVersionId>,
    pub message: String,
    pub source: String,
    pub options: RunOptions,
    /// Absent: whether the configuration version is speculative.
    pub plan_only: Option<bool>,
    /// Instead of the workspace's engine version.
    pub engine_version: Option<String>,
    pub created_by: Option<UserId>,
}

/// Creates a run; when its workspace is free, its plan is queued in the same transaction.
///
/// # Errors
/// When the workspace or the configuration version is not there, or holds no usable configuration.
pub async fn create(app: &AppState, new: NewRun) -> Result<Run> {
    let mut unit = Unit::begin(app).await?;
    let workspace = store::workspaces::get(&mut unit, &new.workspace_id)
        .await?
        .ok_or_else(|| Error::missing_relation("workspace", "Workspace", &new.workspace_id))?;
    if !workspace.remote {
        return Err(Error::Conflict(format!(
            "Workspace {} has the execution mode `local`: its runs happen on the caller's machine.",
            workspace.name
        )));
    }
    let configuration = configuration_for(&mut unit, &workspace, new.configuration_version_id.as_ref()).await?;
    let plan_only = new.plan_only.unwrap_or(configuration.speculative);
    let mut options = new.options;
    options.auto_apply = options.auto_apply || (workspace.auto_apply && !plan_only && !options.save_plan);
    let run = Run {
        id: RunId::random(),
        workspace_id: workspace.id.clone(),
        configuration_version_id: configuration.id,
        plan_id: PlanId::random(),
        apply_id: ApplyId::random(),
        status: RunState::Pending,
        sequence: store::runs::next_sequence(&mut unit).await?,
        message: new.message,
        source: new.source,
        options,
        plan_only,
        has_changes: false,
        engine: workspace.engine,
        engine_version: new.engine_version.unwrap_or_else(|| workspace.engine_version.clone()),
        pool_id: None,
        waiting_for: None,
        error_code: None,
        error_message: None,
        cancel: Cancel::No,
        cancel_requested_at: None,
        plan_attempts: 0,
        created_by: new.created_by,
        created_at: unit.now,
        timestamps: BTreeMap::from([("plan-queueable-at".to_owned(), unit.now)]),
    };
    store::runs::insert(&mut unit, &run).await?;
    advance(&mut unit, &workspace.id).await?;
    let run = get(&mut unit, &run.id).await?;
    unit.commit().await?;
    tracing::info!(run = %run.id, workspace = %workspace.name, status = run.status.as_str(), "run created");
    Ok(run)
}

async fn configuration_for(
    unit: &mut Unit<'_>,
    workspace: &Workspace,
    wanted: Option<&ConfigurationVersionId>,
) -> Result<ConfigurationVersion> {
    let found = match wanted {
        Some(id) => store::configurations::get(unit, id)
            .await?
            .filter(|configuration| configuration.workspace_id == workspace.id)
            .ok_or_else(|| Error::missing_relation("configuration-version", "ConfigurationVersion", id))?,
        None => store::configurations::newest_uploaded(unit, &workspace.id).await?.ok_or_else(no_configuration)?,
    };
    // A pending one is fine when it is named: the run starts when its upload arrives.
    if found.status == ConfigurationStatus::Errored {
        return Err(no_configuration());
    }
    Ok(found)
}

fn no_configuration() -> Error {
    Error::Relationship {
        name: "configuration-version",
        detail:
            "No configuration versions available to create the run from. Upload at least one or link the workspace \
                 to a VCS provider."
                .to_owned(),
        missing: false,
    }
}

/// # Errors
/// [`Error::NotFound`]
pub async fn get(connection: &mut AnyConnection, id: &RunId) -> Result<Run> {
    store::runs::get(connection, id).await?.ok_or_else(|| Error::not_found("Run", id))
}

/// A run that the account may see, with its workspace.
///
/// # Errors
/// [`Error::NotFound`] when there is none, or it is another account's.
pub async fn get_visible(connection: &mut AnyConnection, account: &AccountId, id: &RunId) -> Result<(Run, Workspace)> {
    let hidden = || Error::not_found("Run", id);
    let run = get(connection, id).await?;
    let workspace = store::workspaces::get(connection, &run.workspace_id).await?.ok_or_else(hidden)?;
    let environment = store::environments::get(connection, &workspace.environment_id).await?.ok_or_else(hidden)?;
    if environment.account_id != *account {
        return Err(hidden());
    }
    Ok((run, workspace))
}

/// A page of a workspace's runs, newest first; and how many there are.
///
/// # Errors
/// Those of the database.
pub async fn list(connection: &mut AnyConnection, workspace: &WorkspaceId, page: Page) -> Result<(Vec<Run>, i64)> {
    let total = store::runs::count_of_workspace(connection, workspace).await?;
    let runs = store::runs::of_workspace(connection, workspace, i64::from(page.size), page.offset()).await?;
    Ok((runs, total))
}

/// Confirms a planned run: its apply is queued.
///
/// # Errors
/// [`Error::Conflict`] when the run does not wait for it, or its workspace is somebody else's now.
pub async fn confirm(app: &AppState, id: &RunId) -> Result<()> {
    let mut unit = Unit::begin(app).await?;
    let mut run = get(&mut unit, id).await?;
    if run.plan_only {
        return Err(Error::Conflict(format!("{id} is a plan only: it cannot be applied.")));
    }
    // A saved plan gave its workspace back.
    if !store::runs::hold_workspace(&mut unit, &run.workspace_id, &run.id).await? {
        return Err(Error::Conflict(
            "The workspace is locked or held by another run. Apply when it is free, or discard the other run."
                .to_owned(),
        ));
    }
    step(&mut unit, &mut run, RunEvent::Confirmed).await?;
    advance::queue_apply(&mut unit, &mut run).await?;
    unit.commit().await
}

/// Ends a run that waits.
///
/// # Errors
/// [`Error::Conflict`] when it does not wait.
pub async fn discard(app: &AppState, id: &RunId) -> Result<()> {
    let mut unit = Unit::begin(app).await?;
    let mut run = get(&mut unit, id).await?;
    step(&mut unit, &mut run, RunEvent::Discarded).await?;
    end::close(&mut unit, &run).await?;
    unit.commit().await
}

/// Asks a run to stop: at once when no agent works on it; otherwise the agent interrupts the engine.
///
/// # Errors
/// [`Error::Conflict`] when it has ended or waits for a decision.
pub async fn cancel(app: &AppState, id: &RunId) -> Result<()> {
    let mut unit = Unit::begin(app).await?;
    let mut run = get(&mut unit, id).await?;
    if run.cancel == Cancel::No {
        run.cancel = Cancel::Asked;
        run.cancel_requested_at = Some(unit.now);
    }
    step(&mut unit, &mut run, RunEvent::CancelRequested).await?;
    if run.status.is_final() {
        run.error_code = Some(reason::CANCELED.to_owned());
        store::runs::update(&mut unit, &run).await?;
        end::close(&mut unit, &run).await?;
    } else {
        wake_agents(&mut unit, &run).await?;
    }
    unit.commit().await
}

/// Ends a run without waiting for its agent; only after a cancellation did not help.
///
/// # Errors
/// [`Error::Conflict`] when it was not cancelled before, or has ended.
pub async fn force_cancel(app: &AppState, id: &RunId) -> Result<()> {
    let mut unit = Unit::begin(app).await?;
    let mut run = get(&mut unit, id).await?;
    if run.cancel == Cancel::No {
        return Err(Error::Conflict(format!(
            "{id} was not cancelled yet: cancel it first, so that the engine can save its state."
        )));
    }
    run.cancel = Cancel::Forced;
    step(&mut unit, &mut run, RunEvent::ForceCanceled).await?;
    end::close(&mut unit, &run).await?;
    unit.commit().await
}

/// Tells the agents that hold a job of the run to look.
async fn wake_agents(unit: &mut Unit<'_>, run: &Run) -> Result<()> {
    for job in store::jobs::of_run(unit, &run.id).await? {
        if let Some(agent) = job.agent_id {
            unit.wake(Topic::Agent(agent));
        }
    }
    Ok(())
}

/// The configuration version is settled now: runs that waited for it may start, or end when it was refused.
///
/// # Errors
/// Those of the database.
pub async fn configuration_settled(unit: &mut Unit<'_>, configuration: &ConfigurationVersion) -> Result<()> {
    if configuration.status == ConfigurationStatus::Errored {
        for mut run in store::runs::waiting_for_configuration(unit, &configuration.id).await? {
            let why = configuration.error_message.clone().unwrap_or_default();
            end::fail(unit, &mut run, reason::BAD_CONFIGURATION, why).await?;
        }
    }
    advance(unit, &configuration.workspace_id).await
}

/// Moves the run by `event` and stores it.
async fn step(unit: &mut Unit<'_>, run: &mut Run, event: RunEvent) -> Result<()> {
    let next = run_state::next(run.status, event)
        .map_err(|illegal| Error::Conflict(format!("{}: {illegal}. Nothing was changed.", run.id)))?;
    if next != run.status {
        run.timestamps.insert(format!("{}-at", next.as_str().replace('_', "-")), unit.now);
        tracing::info!(run = %run.id, from = run.status.as_str(), to = next.as_str(), "run moved");
    }
    run.status = next;
    if next != RunState::Pending {
        run.waiting_for = None;
    }
    store::runs::update(unit, run).await?;
    Ok(())
}

/// Starts a claimed stage.
pub(super) async fn start_stage(unit: &mut Unit<'_>, run: &mut Run, stage: crate::api::job::Stage) -> Result<()> {
    let event = match stage {
        crate::api::job::Stage::Plan => {
            run.plan_attempts += 1;
            RunEvent::PlanStarted
        }
        crate::api::job::Stage::Apply => RunEvent::ApplyStarted,
    };
    step(unit, run, event).await
}

/// Plans again after the agent was lost.
pub(super) async fn requeue_plan(unit: &mut Unit<'_>, run: &mut Run) -> Result<()> {
    step(unit, run, RunEvent::PlanRequeued).await
}
