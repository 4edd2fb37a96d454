//! What waits for a pool and who is there to do it; news of pools; and the end of what can never run.

use std::{collections::BTreeMap, time::Duration};

use sqlx::AnyConnection;

use super::{
    agents,
    model::{Agent, Pool},
    pools, run_settings, runs,
    unit::Unit,
};
use crate::{
    api::{
        agent::reason,
        iacp::demand::{DemandAgent, FailQueued, MAX_WAIT_MS, PoolChanges, PoolDemand, QueuedJobs},
    },
    ids::{AccountId, PoolId},
    server::{
        app::AppState,
        changes::News,
        error::{Error, Result},
        store,
        wake::Topic,
    },
};

/// Longest message about jobs that cannot run, in bytes.
const MAX_MESSAGE: usize = 4096;

/// Pools of the account that changed since `cursor`, waiting up to `wait` for one; `gone` ends the wait.
///
/// # Errors
/// None so far.
pub async fn changes(
    app: &AppState,
    account: &AccountId,
    cursor: Option<&str>,
    wait: Duration,
    gone: impl Future<Output = ()>,
) -> Result<PoolChanges> {
    let end = async {
        tokio::select! {
            () = tokio::time::sleep(wait.min(Duration::from_millis(MAX_WAIT_MS))) => {}
            () = app.closing.cancelled() => {}
            () = gone => {}
        }
    };
    tokio::pin!(end);
    let mut over = false;
    let News { cursor, pools } = loop {
        let due = app.changes.due(account);
        // Some(None): there are changes now that wait for others, and so does this.
        let look = || {
            let news = app.changes.since(account, cursor);
            let some = news.pools.as_ref().is_none_or(|pools| !pools.is_empty());
            let waits = due.is_none() && app.changes.due(account).is_some();
            std::future::ready(Ok::<_, Error>(if some { Some(Some(news)) } else { waits.then_some(None) }))
        };
        let pause = async {
            tokio::select! {
                () = &mut end => over = true,
                () = until(due) => {}
            }
        };
        match app.wakes.wait_until(Topic::Pools(account.clone()), pause, look).await? {
            Some(Some(news)) => break news,
            None if over => break app.changes.since(account, cursor),
            Some(None) | None => {}
        }
    };
    Ok(PoolChanges { cursor, pools })
}

async fn until(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// The pool's demand now. `connection` should see one moment: a transaction.
///
/// # Errors
/// When the database fails.
pub async fn of_pool(app: &AppState, connection: &mut AnyConnection, pool: &Pool, now: i64) -> Result<PoolDemand> {
    let settings = &pool.run_settings;
    // By the image that is really used: several wishes may end at the same one.
    let mut groups: BTreeMap<Option<&str>, (i64, i64)> = BTreeMap::new();
    let waiting = store::jobs::waiting(connection, &pool.id).await?;
    for group in &waiting {
        let image = run_settings::image(settings, group.run_image.as_deref());
        let (count, oldest) = groups.entry(image).or_insert((0, group.oldest));
        *count += group.count;
        *oldest = group.oldest.min(*oldest);
    }
    let queued = groups.into_iter().map(|(image, (count, oldest))| QueuedJobs {
        image: image.map(str::to_owned),
        run_as_root: settings.run_as_root,
        jobs: u32::try_from(count).unwrap_or(u32::MAX),
        oldest_seconds: seconds(now - oldest),
    });
    let queued = queued.collect();
    let held = store::jobs::held(connection, &pool.id).await?;
    let members = store::agents::of_pool(connection, &pool.id).await?;
    let agents =
        members.into_iter().map(|agent| view(app, held.get(&agent.id).copied().unwrap_or(0), agent, now)).collect();
    let registrations = store::pools::registrations(connection, &pool.id).await?;
    let linked_workspaces = store::pools::count_linked(connection, &pool.id).await?;
    Ok(PoolDemand { queued, agents, registrations, linked_workspaces })
}

/// An agent that has `jobs` jobs.
#[must_use]
pub fn view(app: &AppState, jobs: i64, agent: Agent, now: i64) -> DemandAgent {
    DemandAgent {
        status: agents::status(&agent, now, app.policy.offline_after),
        seen_seconds_ago: seconds(now - agent.last_seen_at),
        id: agent.id,
        name: agent.name,
        error_message: agent.error_message,
        draining: agent.draining,
        cordoned: agent.cordoned,
        revoked: agent.revoked,
        version: agent.version,
        slots: u32::try_from(agent.slots).unwrap_or(u32::MAX),
        jobs: u32::try_from(jobs).unwrap_or(u32::MAX),
    }
}

/// Whole seconds; a clock that was set back makes none.
fn seconds(millis: i64) -> i64 {
    (millis / 1000).max(0)
}

/// The wishes for images of the pool's queued jobs that end at one of `images`.
///
/// # Errors
/// When the database fails.
pub(super) async fn wishes_for(
    connection: &mut AnyConnection,
    pool: &Pool,
    images: &[Option<String>],
) -> Result<Vec<Option<String>>> {
    let waiting = store::jobs::waiting(connection, &pool.id).await?;
    let wishes = waiting.into_iter().map(|group| group.run_image).filter(|wish| {
        let needed = run_settings::image(&pool.run_settings, wish.as_deref());
        images.iter().any(|image| image.as_deref() == needed)
    });
    Ok(wishes.collect())
}

/// Ends the queued jobs of the pool that need the image, and their runs; says how many. Each in a transaction of
/// its own: one that an agent claims meanwhile goes on.
///
/// # Errors
/// 422 for a code or message that cannot be.
pub async fn fail_queued(app: &AppState, pool: &PoolId, request: &FailQueued) -> Result<u32> {
    let FailQueued { image, code, message } = request;
    if !reason::FROM_OUTSIDE.contains(&code.as_str()) {
        let known = reason::FROM_OUTSIDE.join("`, `");
        return Err(Error::attribute("code", format!("`{code}` can't be said of queued jobs. Known are `{known}`.")));
    }
    let message = message.trim();
    if message.is_empty() || message.len() > MAX_MESSAGE || message.contains(|c: char| c.is_control() && c != '\n') {
        let detail = format!("A message of 1 to {MAX_MESSAGE} bytes without control characters says what happened.");
        return Err(Error::attribute("message", detail));
    }
    let mut connection = app.store.read().await?;
    let found = pools::get(&mut connection, pool).await?.ok_or_else(|| Error::not_found(pools::CLASS, pool))?;
    let wishes = wishes_for(&mut connection, &found, std::slice::from_ref(image)).await?;
    let jobs = store::jobs::queued_with(&mut connection, pool, &wishes).await?;
    drop(connection);
    let mut failed = 0;
    for id in &jobs {
        let mut unit = Unit::begin(app).await?;
        let job = store::jobs::get(&mut unit, id).await?;
        let Some(job) = job.filter(|job| !job.claimed && job.pool_id == *pool) else { continue };
        let mut run = runs::get(&mut unit, &job.run_id).await?;
        runs::fail(&mut unit, &mut run, code, message.to_owned()).await?;
        unit.commit().await?;
        tracing::info!(job = %job.id, run = %job.run_id, code, "a queued job was ended: it can't run");
        failed += 1;
    }
    Ok(failed)
}
