//! What a run has fetched is kept for later ones: when its result is delivered and nothing of it runs any more.

use std::time::Duration;

use super::Supervisor;

/// Longest time for one job's packages: so long its slot is not free.
const LIMIT: Duration = Duration::from_secs(300);

/// The same when the agent is about to end.
const LAST: Duration = Duration::from_secs(10);

impl Supervisor {
    /// What is not done in time is left to another run.
    pub(super) async fn keep_providers(&self) {
        let Self { agent, dir, .. } = self;
        let Some(cache) = agent.executor.provider_cache() else { return };
        let drained = async {
            agent.shutdown.drain.cancelled().await;
            tokio::time::sleep(LAST).await;
        };
        tokio::select! {
            () = cache.fill(dir) => return,
            () = drained => {}
            () = agent.shutdown.stop.cancelled() => {}
            () = agent.halt.cancelled() => {}
            () = tokio::time::sleep(LIMIT) => {}
        }
        tracing::info!(job = %self.spec.job_id, "the run's providers were not all kept for others: there was no time");
    }
}
