//! What the server does by itself: on a timer, without input, each round looking at everything anew. No
//! retries inside: the next round is the retry.

use std::time::Duration;

use super::{
    app::App,
    domain::{agents, logs, queue, runs, unit::Unit},
    error::Result,
    store,
};
use crate::{shutdown::Shutdown, telemetry::Chain};

/// Leases are looked at this often: with a lease of 30 s, a lost agent's run ends within 31 s.
const LEASES: Duration = Duration::from_secs(1);
/// Agents that fell silent are looked for this often.
const SILENCE: Duration = Duration::from_secs(1);
const ARCHIVE: Duration = Duration::from_secs(5);
/// A net under the wake-ups: whatever a waiting run waits for is looked at again.
const ADVANCE: Duration = Duration::from_secs(10);
const FORGET: Duration = Duration::from_secs(60);

/// Starts all tasks; they end with `app.closing`.
pub fn spawn(app: &App, shutdown: &Shutdown) {
    every(app, shutdown, "expire leases", LEASES, async |app: App| queue::expire(&app).await);
    every(app, shutdown, "note silent agents", SILENCE, async |app: App| agents::note_silent(&app).await);
    every(app, shutdown, "archive logs", ARCHIVE, async |app: App| logs::archive(&app).await);
    every(app, shutdown, "advance waiting runs", ADVANCE, async |app: App| advance_all(&app).await);
    every(app, shutdown, "forget agents", FORGET, async |app: App| agents::forget_gone(&app).await);
}

fn every<F, R>(app: &App, shutdown: &Shutdown, name: &'static str, period: Duration, task: F)
where
    F: Fn(App) -> R + Send + Sync + 'static,
    R: Future<Output = Result<usize>> + Send,
{
    let app = app.clone();
    shutdown.spawn(async move {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = app.closing.cancelled() => return,
            }
            match task(app.clone()).await {
                Ok(0) => {}
                Ok(done) => tracing::debug!(task = name, done, "round done"),
                Err(error) => tracing::error!(task = name, error = %Chain(&error), "round failed"),
            }
        }
    });
}

async fn advance_all(app: &App) -> Result<usize> {
    let mut connection = app.store.read().await?;
    let waiting = store::runs::workspaces_with_pending(&mut connection).await?;
    drop(connection);
    for workspace in &waiting {
        let mut unit = Unit::begin(app).await?;
        runs::advance(&mut unit, workspace).await?;
        unit.commit().await?;
    }
    Ok(waiting.len())
}
