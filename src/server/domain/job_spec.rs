//! From a claimed job to all that its agent needs.

use sqlx::AnyConnection;

use super::{
    model::{Job, Run},
    pools, run_settings,
    unit::Unit,
    variables,
};
use crate::{
    api::{
        agent::artifact,
        job::{Engine, JobSpec, Limits, Planned, RunSpec, Stage, WorkspaceSpec},
    },
    server::{
        app::AppState,
        error::{Error, Result},
        store,
    },
};

/// # Errors
/// Those of the database and the vault.
pub(super) async fn build(unit: &mut Unit<'_>, job: &Job) -> Result<JobSpec> {
    let app = unit.app;
    gather(app, unit, job).await
}

async fn gather(app: &AppState, connection: &mut AnyConnection, job: &Job) -> Result<JobSpec> {
    let run = super::runs::get(connection, &job.run_id).await?;
    let workspace = store::workspaces::get(connection, &run.workspace_id)
        .await?
        .ok_or(Error::Internal("a run's workspace is not there"))?;
    let environment = super::environments::get(connection, &workspace.environment_id)
        .await?
        .ok_or(Error::Internal("a workspace's environment is not there"))?;
    let settings =
        pools::get(connection, &job.pool_id).await?.ok_or(Error::Internal("a job's pool is not there"))?.run_settings;
    let timeout_seconds = match job.kind {
        Stage::Plan => settings.plan_timeout_seconds.unwrap_or(app.policy.plan_timeout.as_secs()),
        Stage::Apply => settings.apply_timeout_seconds.unwrap_or(app.policy.apply_timeout.as_secs()),
    };
    let image = run_settings::image(&settings, workspace.run_image.as_deref()).map(str::to_owned);
    let planned = match job.kind {
        Stage::Plan => Planned::default(),
        Stage::Apply => planned(connection, &run).await?,
    };
    let variables = variables::for_job(app, connection, &workspace).await?;
    let options = run.options;
    Ok(JobSpec {
        job_id: job.id.clone(),
        epoch: job.epoch,
        stage: job.kind,
        run: RunSpec {
            id: run.id,
            message: run.message,
            source: run.source,
            is_destroy: options.is_destroy,
            refresh: options.refresh,
            refresh_only: options.refresh_only,
            plan_only: run.plan_only,
            target_addrs: options.target_addrs,
            replace_addrs: options.replace_addrs,
            allow_config_generation: options.allow_config_generation,
            variables: options.variables,
        },
        workspace: WorkspaceSpec {
            id: workspace.id,
            name: workspace.name,
            environment: environment.name,
            environment_id: environment.id.to_string(),
            account_id: environment.account_id.to_string(),
            working_directory: workspace.working_directory,
        },
        engine: Engine { kind: run.engine, version: Some(run.engine_version).filter(|version| !version.is_empty()) },
        image,
        planned,
        run_as_root: settings.run_as_root,
        variables,
        env: settings.env,
        limits: Limits { memory_bytes: settings.memory_bytes, cpu_millis: settings.cpu_millis, pids: None },
        timeout_seconds,
    })
}

/// What the run's plan left.
async fn planned(connection: &mut AnyConnection, run: &Run) -> Result<Planned> {
    let plan = store::runs::stage_by_id(connection, run.plan_id.as_str()).await?;
    let bundle = store::artifacts::get(connection, &run.id, artifact::PLAN).await?;
    Ok(Planned { image_digest: plan.and_then(|plan| plan.image_digest), sha256: bundle.map(|bundle| bundle.sha256) })
}
