//! Ends what an agent that does not run any more has left running on this host.

use std::time::Duration;

use futures::future::join_all;

use super::{
    AgentConfig, Error,
    executor::{Connected, Executor, Settings, Signal},
    identity::{DataLock, Identity},
    jobdir::JobDir,
};
use crate::{api::job::JobSpec, ids::JobId, telemetry::Chain};

/// What a stage gets on top of its grace time.
const MARGIN: Duration = Duration::from_secs(10);

/// Interrupts the stages that run for the agent of this data directory, waits for them as long as their grace time
/// lasts, and removes their containers and processes; says whose they were. The network of run containers and its rules go
/// too, unless another agent's runs use them. Job directories stay, with states in them.
///
/// # Errors
/// When an agent runs with that directory, or the executor does not answer.
pub async fn sweep(config: &AgentConfig) -> Result<Vec<JobId>, Error> {
    if !config.data.join("agent.json").exists() {
        // No agent ever ran here; nothing is to be made for it now.
        return Ok(Vec::new());
    }
    let _lock = DataLock::take(&config.data)?;
    let identity = Identity::load(&config.data).await?;
    let settings = Settings {
        data: config.data.clone(),
        instance: identity.instance,
        run_as_root: config.run_as_root,
        ..config.executor.clone()
    };
    let Connected { executor, .. } = Executor::connect(settings).await?;
    let data = config.data.display().to_string();
    let jobs = JobDir::scan(&config.data).await.map_err(|source| Error::Recover { path: data, source })?;
    let limit = config.executor.grace + MARGIN;
    let ended = join_all(jobs.iter().map(|(spec, dir)| end(&executor, spec, dir, limit))).await;
    let mut swept: Vec<JobId> = ended.into_iter().flatten().collect();
    swept.extend(executor.sweep(&[]).await?);
    executor.clear().await?;
    swept.sort();
    swept.dedup();
    Ok(swept)
}

/// Ends the stage of one job, if it runs.
async fn end(executor: &Executor, spec: &JobSpec, dir: &JobDir, limit: Duration) -> Option<JobId> {
    match executor.is_alive(dir, spec).await {
        Ok(false) => return None,
        Ok(true) => {}
        Err(error) => tracing::warn!(job = %spec.job_id, error = %Chain(&error), "it is not known whether it runs"),
    }
    let graceful = async {
        executor.signal(dir, spec, Signal::Interrupt).await?;
        executor.wait(dir, spec).await
    };
    match tokio::time::timeout(limit, graceful).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(job = %spec.job_id, error = %Chain(&error), "it could not be interrupted"),
        Err(_) => tracing::warn!(job = %spec.job_id, "it did not end when it was interrupted, and is killed"),
    }
    if let Err(error) = executor.remove(dir, spec).await {
        tracing::warn!(job = %spec.job_id, error = %Chain(&error), "it could not be removed");
    }
    Some(spec.job_id.clone())
}
