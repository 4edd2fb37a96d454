//! How stages and runs end: everything that follows is in the transaction that ends them, so that nobody
//! reads the end of a log before the run's status says what it means.

use super::{advance, advance::queue_apply, step};
use crate::{
    api::{
        agent::{FinishRequest, Outcome, reason},
        job::Stage,
        run_state::{PlanEnd, RunEvent, RunState},
    },
    server::{
        domain::{
            logs,
            model::{Cancel, Job, Run, StageStatus},
            spans,
            unit::Unit,
        },
        error::{Error, Result},
        store::{self, jobs::Ended},
        wake::Topic,
    },
};

/// What a finished plan means for its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanVerdict {
    Ends(PlanEnd),
    /// A cancellation arrived before its result did.
    Canceled,
}

/// Pure: what follows from a finished plan.
#[must_use]
pub fn plan_verdict(run: &Run, has_changes: bool) -> PlanVerdict {
    let options = &run.options;
    if run.cancel != Cancel::No {
        PlanVerdict::Canceled
    } else if run.plan_only || !(has_changes || options.allow_empty_apply) {
        PlanVerdict::Ends(PlanEnd::Final)
    } else if options.save_plan {
        PlanVerdict::Ends(PlanEnd::Saved)
    } else if options.auto_apply {
        PlanVerdict::Ends(PlanEnd::AutoApply)
    } else {
        PlanVerdict::Ends(PlanEnd::NeedsConfirmation)
    }
}

/// Ends the stage of `job` with the agent's result, and moves its run.
///
/// # Errors
/// Those of the database.
pub async fn end_stage(unit: &mut Unit<'_>, job: &Job, result: &FinishRequest) -> Result<()> {
    let mut run = super::get(unit, &job.run_id).await?;
    let event = event_of(&run, job.kind, result);
    let mut row =
        store::runs::stage_by_id(unit, &job.stage_id).await?.ok_or(Error::Internal("a job's stage is not there"))?;
    row.status = match event {
        RunEvent::StageCanceled => StageStatus::Canceled,
        RunEvent::StageErrored => StageStatus::Errored,
        _ => StageStatus::Finished,
    };
    row.changes = result.changes;
    row.image_digest.clone_from(&result.image_digest);
    row.log_complete = true;
    row.finished_at = Some(unit.now);
    store::runs::update_stage(unit, &row).await?;
    unit.wake(Topic::Log(row.id));

    if job.kind == Stage::Plan {
        run.has_changes = result.has_changes;
    }
    if matches!(event, RunEvent::StageErrored | RunEvent::StageCanceled) {
        let fallback = if event == RunEvent::StageCanceled { reason::CANCELED } else { reason::ENGINE_FAILED };
        run.error_code = Some(result.reason.clone().unwrap_or_else(|| fallback.to_owned()));
        run.error_message.clone_from(&result.message);
    }
    store::jobs::delete(unit, &job.id).await?;
    unit.changed(&job.pool_id);
    step(unit, &mut run, event).await?;
    match run.status {
        RunState::ApplyQueued => queue_apply(unit, &mut run).await,
        RunState::PlannedAndSaved => release(unit, &run).await,
        status if status.is_final() => close(unit, &run).await,
        _ => Ok(()),
    }
}

fn event_of(run: &Run, stage: Stage, result: &FinishRequest) -> RunEvent {
    match (result.outcome, stage) {
        (Outcome::Finished, Stage::Plan) => match plan_verdict(run, result.has_changes) {
            PlanVerdict::Ends(end) => RunEvent::PlanFinished(end),
            PlanVerdict::Canceled => RunEvent::StageCanceled,
        },
        // What was applied is applied, whatever was asked meanwhile.
        (Outcome::Finished, Stage::Apply) => RunEvent::ApplyFinished,
        (Outcome::Canceled, _) => RunEvent::StageCanceled,
        // An engine that was interrupted ends with an error of its own.
        (Outcome::Errored, _)
            if run.cancel != Cancel::No && result.reason.as_deref() == Some(reason::ENGINE_FAILED) =>
        {
            RunEvent::StageCanceled
        }
        (Outcome::Errored, _) => RunEvent::StageErrored,
    }
}

/// Ends the run without a result: its agent is lost, or nothing can execute it.
pub(in crate::server::domain) async fn fail(
    unit: &mut Unit<'_>,
    run: &mut Run,
    code: &str,
    message: String,
) -> Result<()> {
    run.error_code = Some(code.to_owned());
    run.error_message = Some(message);
    step(unit, run, RunEvent::StageErrored).await?;
    close(unit, run).await
}

/// What follows when a run has ended: its stages end, its jobs leave the queue, its workspace goes to the next.
pub(super) async fn close(unit: &mut Unit<'_>, run: &Run) -> Result<()> {
    unit.app.metrics.run_ended(run.status.as_str(), run.error_code.as_deref().unwrap_or_default());
    spans::of_run(unit, run).await?;
    for job in store::jobs::of_run(unit, &run.id).await? {
        abandon(unit, &job, "abandoned").await?;
    }
    let open = match run.status {
        RunState::Errored => StageStatus::Errored,
        RunState::Canceled | RunState::ForceCanceled => StageStatus::Canceled,
        _ => StageStatus::Unreachable,
    };
    for id in [run.plan_id.as_str(), run.apply_id.as_str()] {
        let mut row = store::runs::stage_by_id(unit, id).await?.ok_or(Error::Internal("a run's stage is not there"))?;
        if row.status.is_final() {
            continue;
        }
        let told = row.status == StageStatus::Running
            // it could not even begin: whoever reads its log is to see why
            || (row.status == StageStatus::Queued && run.status == RunState::Errored);
        if told && let Some(message) = &run.error_message {
            logs::append_note(unit, &mut row, message).await?;
        }
        row.status = if row.status == StageStatus::Pending { StageStatus::Unreachable } else { open };
        row.log_complete = true;
        row.finished_at = Some(unit.now);
        store::runs::update_stage(unit, &row).await?;
        unit.wake(Topic::Log(row.id));
    }
    release(unit, run).await
}

/// Takes a job from its agent, if it has one, and out of the queue.
pub(in crate::server::domain) async fn abandon(unit: &mut Unit<'_>, job: &Job, outcome: &'static str) -> Result<()> {
    store::jobs::delete(unit, &job.id).await?;
    unit.changed(&job.pool_id);
    let Some(agent) = &job.agent_id else { return Ok(()) };
    let ended = Ended {
        job_id: job.id.clone(),
        epoch: job.epoch,
        run_id: job.run_id.clone(),
        stage_id: job.stage_id.clone(),
        agent_id: Some(agent.clone()),
        outcome,
        result: None,
        claimed_at: job.claimed_at,
        ended_at: unit.now,
    };
    store::jobs::insert_ended(unit, &ended).await?;
    unit.record(|now| spans::of_stage(job, outcome, Some(outcome), now));
    unit.wake(Topic::Agent(agent.clone()));
    Ok(())
}

/// Gives the workspace back and lets the next run have it.
async fn release(unit: &mut Unit<'_>, run: &Run) -> Result<()> {
    store::runs::release_workspace(unit, &run.workspace_id, &run.id).await?;
    advance(unit, &run.workspace_id).await
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        api::job::EngineKind,
        ids::{ApplyId, ConfigurationVersionId, PlanId, RunId, WorkspaceId},
        server::domain::model::RunOptions,
    };

    fn run() -> Run {
        Run {
            id: RunId::random(),
            workspace_id: WorkspaceId::random(),
            configuration_version_id: ConfigurationVersionId::random(),
            plan_id: PlanId::random(),
            apply_id: ApplyId::random(),
            status: RunState::Planning,
            sequence: 1,
            message: String::new(),
            source: String::new(),
            options: RunOptions::default(),
            plan_only: false,
            has_changes: false,
            engine: EngineKind::Terraform,
            engine_version: String::new(),
            pool_id: None,
            waiting_for: None,
            error_code: None,
            error_message: None,
            cancel: Cancel::No,
            cancel_requested_at: None,
            plan_attempts: 1,
            created_by: None,
            created_at: 0,
            timestamps: BTreeMap::new(),
        }
    }

    #[test]
    fn what_follows_a_finished_plan() {
        let with = |change: fn(&mut Run)| {
            let mut run = run();
            change(&mut run);
            run
        };
        let plain: fn(&mut Run) = |_| {};
        for (change, has_changes, wanted) in [
            (plain, true, PlanVerdict::Ends(PlanEnd::NeedsConfirmation)),
            (plain, false, PlanVerdict::Ends(PlanEnd::Final)),
            (|run| run.plan_only = true, true, PlanVerdict::Ends(PlanEnd::Final)),
            (|run| run.options.auto_apply = true, true, PlanVerdict::Ends(PlanEnd::AutoApply)),
            (|run| run.options.auto_apply = true, false, PlanVerdict::Ends(PlanEnd::Final)),
            (|run| run.options.save_plan = true, true, PlanVerdict::Ends(PlanEnd::Saved)),
            (|run| run.options.allow_empty_apply = true, false, PlanVerdict::Ends(PlanEnd::NeedsConfirmation)),
            (|run| run.cancel = Cancel::Asked, true, PlanVerdict::Canceled),
        ] {
            assert_eq!(plan_verdict(&with(change), has_changes), wanted);
        }
    }

    #[test]
    fn an_apply_that_finished_is_applied_even_when_it_was_cancelled() {
        let mut run = run();
        run.cancel = Cancel::Asked;
        let mut result = FinishRequest {
            outcome: Outcome::Finished,
            reason: None,
            message: None,
            log_bytes: 0,
            has_changes: false,
            changes: crate::api::agent::ResourceChanges::default(),
            image_digest: None,
        };
        assert_eq!(event_of(&run, Stage::Apply, &result), RunEvent::ApplyFinished);
        result.outcome = Outcome::Errored;
        result.reason = Some(reason::ENGINE_FAILED.to_owned());
        assert_eq!(event_of(&run, Stage::Apply, &result), RunEvent::StageCanceled);
        result.reason = Some(reason::IMAGE_UNAVAILABLE.to_owned());
        assert_eq!(event_of(&run, Stage::Apply, &result), RunEvent::StageErrored);
    }
}
