//! Agent pools: which pool runs a workspace, and what may be done to a pool.

use std::time::Duration;

use sqlx::AnyConnection;

use super::{
    agents,
    model::{Pool, Workspace},
};
use crate::{
    api::{agent::AgentStatus, iacp::AgentCounts},
    ids::{AccountId, EnvironmentId, PoolId},
    server::{
        error::{Error, Result},
        store,
    },
};

mod change;

pub use change::{Change, Changed, create, delete, update};

/// The class in error texts.
pub const CLASS: &str = "AgentPool";

/// Whether the pool may run workspaces of `environment`.
#[must_use]
pub fn may_serve(pool: &Pool, environment: &EnvironmentId) -> bool {
    match &pool.environment_id {
        Some(owner) => owner == environment,
        None => pool.is_shared || pool.environments.contains(environment),
    }
}

/// The pool that runs a workspace of `environment`: its own link, else the environment's default, else the
/// account's. One that may not serve the environment does not count.
#[must_use]
pub fn resolve<'a>(
    link: Option<&'a Pool>,
    environment_default: Option<&'a Pool>,
    account_default: Option<&'a Pool>,
    environment: &EnvironmentId,
) -> Option<&'a Pool> {
    [link, environment_default, account_default].into_iter().flatten().find(|pool| may_serve(pool, environment))
}

/// The pool that runs `workspace` now; `None`: its runs wait.
///
/// # Errors
/// When the database fails.
pub async fn for_workspace(connection: &mut AnyConnection, workspace: &Workspace) -> Result<Option<Pool>> {
    let Some(environment) = store::environments::get(connection, &workspace.environment_id).await? else {
        return Ok(None);
    };
    let account = store::accounts::get(connection, &environment.account_id).await?;
    let account_default = account.and_then(|account| account.default_pool_id);
    let link = get_opt(connection, workspace.pool_id.as_ref()).await?;
    let environment_default = get_opt(connection, environment.default_pool_id.as_ref()).await?;
    let account_default = get_opt(connection, account_default.as_ref()).await?;
    let found = resolve(link.as_ref(), environment_default.as_ref(), account_default.as_ref(), &environment.id);
    Ok(found.cloned())
}

async fn get_opt(connection: &mut AnyConnection, id: Option<&PoolId>) -> Result<Option<Pool>> {
    match id {
        Some(id) => get(connection, id).await,
        None => Ok(None),
    }
}

/// The pool, whoever asks.
///
/// # Errors
/// When the database fails.
pub async fn get(connection: &mut AnyConnection, id: &PoolId) -> Result<Option<Pool>> {
    Ok(store::pools::get(connection, id).await?)
}

/// The pool that a caller of `account` names by `id`.
///
/// # Errors
/// [`Error::NotFound`] when there is none, or it belongs to somebody else.
pub async fn find(connection: &mut AnyConnection, account: &AccountId, id: &str) -> Result<Pool> {
    let missing = || Error::not_found(CLASS, id);
    let parsed: PoolId = id.parse().map_err(|_| missing())?;
    get(connection, &parsed).await?.filter(|pool| pool.account_id == *account).ok_or_else(missing)
}

/// What waits for a pool, and who is there to do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    pub pool: PoolId,
    pub name: String,
    /// Queued jobs by priority: apply, plan, speculative plan.
    pub queued: [i64; 3],
    pub oldest_queued_at: Option<i64>,
    pub agents: AgentCounts,
}

/// The load of every pool, by name.
///
/// # Errors
/// When the database fails.
pub async fn loads(connection: &mut AnyConnection, now: i64, offline_after: Duration) -> Result<Vec<Load>> {
    let mut loads: Vec<Load> = store::pools::names(connection)
        .await?
        .into_iter()
        .map(|(pool, name)| Load { pool, name, queued: [0; 3], oldest_queued_at: None, agents: AgentCounts::default() })
        .collect();
    for queued in store::pools::queued(connection).await? {
        let Some(load) = loads.iter_mut().find(|load| load.pool == queued.pool_id) else { continue };
        let slot = usize::try_from(queued.priority).unwrap_or_default().min(load.queued.len() - 1);
        load.queued[slot] += queued.count;
        load.oldest_queued_at = load.oldest_queued_at.into_iter().chain([queued.oldest]).min();
    }
    for agent in store::agents::all(connection).await? {
        let Some(load) = loads.iter_mut().find(|load| load.pool == agent.pool_id) else { continue };
        count(&mut load.agents, agents::status(&agent, now, offline_after));
    }
    Ok(loads)
}

/// Adds one agent of that status.
pub fn count(counts: &mut AgentCounts, status: AgentStatus) {
    *match status {
        AgentStatus::Idle => &mut counts.idle,
        AgentStatus::Busy => &mut counts.busy,
        AgentStatus::Errored => &mut counts.errored,
        AgentStatus::Offline => &mut counts.offline,
    } += 1;
}

/// A member of a to-many relationship that is not there.
#[must_use]
pub fn missing_relations(name: &'static str, id: &str) -> Error {
    let detail = format!("Relationship '{name}' with ID '{id}' not found or user unauthorized.");
    Error::Relationship { name, detail, missing: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> EnvironmentId {
        format!("env-{name}").parse().unwrap()
    }

    fn pool(name: &str, scope: Option<&str>, shared: bool, listed: &[&str]) -> Pool {
        Pool {
            id: format!("apool-{name}").parse().unwrap(),
            account_id: "acc-1".parse().unwrap(),
            environment_id: scope.map(env),
            name: name.to_owned(),
            is_shared: shared,
            environments: listed.iter().map(|name| env(name)).collect(),
            external_id: None,
            run_settings: Default::default(),
            created_at: 0,
        }
    }

    #[test]
    fn a_pool_serves_its_scope_only() {
        let cases = [
            (pool("own", Some("a"), false, &[]), true, false),
            // the flag means nothing on an environment's pool
            (pool("flagged", Some("a"), true, &[]), true, false),
            (pool("shared", None, true, &[]), true, true),
            (pool("listed", None, false, &["a"]), true, false),
            (pool("nobody", None, false, &[]), false, false),
        ];
        for (pool, a, b) in cases {
            assert_eq!((may_serve(&pool, &env("a")), may_serve(&pool, &env("b"))), (a, b), "{}", pool.name);
        }
    }

    /// Three places that can name a pool, each with none, one that may serve, or one that may not.
    #[test]
    fn the_first_place_whose_pool_may_serve_wins() {
        let choice = |place: &str, kind: u8| match kind {
            0 => None,
            1 => Some(pool(place, None, true, &[])),
            _ => Some(pool(place, Some("b"), false, &[])),
        };
        for combination in 0..27u8 {
            let kinds = [combination / 9, combination / 3 % 3, combination % 3];
            let [link, environment, account] =
                [choice("link", kinds[0]), choice("environment", kinds[1]), choice("account", kinds[2])];
            let wanted = ["link", "environment", "account"].into_iter().zip(kinds).find(|(_, kind)| *kind == 1);
            let found = resolve(link.as_ref(), environment.as_ref(), account.as_ref(), &env("a"));
            assert_eq!(found.map(|pool| pool.name.as_str()), wanted.map(|(place, _)| place), "{kinds:?}");
        }
    }
}
