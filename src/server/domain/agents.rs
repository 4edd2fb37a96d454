//! Agents: registering, being heard of, leaving.

use std::{sync::atomic::Ordering, time::Duration};

use super::{
    access,
    model::{Agent, Pool, Token, TokenKind},
    unit::Unit,
};
use crate::{
    api::agent::{AgentStatus, PoolResponse, RegisterRequest, RegisterResponse, code},
    ids::{AccountId, AgentId, PoolId, TokenId},
    server::{
        app::AppState,
        error::{Error, Result},
        store,
        wake::Topic,
    },
};
use secrecy::ExposeSecret;
use sqlx::AnyConnection;

/// The class in error texts.
pub const CLASS: &str = "Agent";

/// Longest agent name.
const MAX_NAME: usize = 128;

/// What an agent is now: what it last said, or offline when it has not been heard of, or will not be.
#[must_use]
pub fn status(agent: &Agent, now: i64, offline_after: Duration) -> AgentStatus {
    let silent = u128::try_from(now - agent.last_seen_at).unwrap_or(0);
    if agent.revoked || silent >= offline_after.as_millis() {
        return AgentStatus::Offline;
    }
    match agent.reported_status.as_str() {
        "busy" => AgentStatus::Busy,
        "errored" => AgentStatus::Errored,
        _ => AgentStatus::Idle,
    }
}

/// The pool of a pool token, and how long that token lives.
///
/// # Errors
/// When the pool or the token has gone in the meantime.
pub async fn pool(app: &AppState, pool_id: &PoolId, token: &TokenId) -> Result<PoolResponse> {
    let now = app.clock.now_ms();
    let mut connection = app.store.read().await?;
    let pool = super::pools::get(&mut connection, pool_id).await?;
    let pool = pool.ok_or_else(|| Error::not_found(super::pools::CLASS, pool_id))?;
    let token = store::tokens::get(&mut connection, token).await?.ok_or(access::UNKNOWN)?;
    Ok(PoolResponse {
        pool_id: pool.id,
        pool_name: pool.name,
        token_expires_at_ms: token.expires_at,
        server_time_ms: now,
    })
}

/// Registers an agent in the pool of a pool token. The same name and instance is the same agent again.
///
/// # Errors
/// [`code::NAME_TAKEN`] when another agent of that name is online.
pub async fn register(
    app: &AppState,
    pool_id: &PoolId,
    parent: TokenId,
    request: RegisterRequest,
) -> Result<RegisterResponse> {
    check(&request)?;
    let mut unit = Unit::begin(app).await?;
    let pool =
        super::pools::get(&mut unit, pool_id).await?.ok_or_else(|| Error::not_found(super::pools::CLASS, pool_id))?;
    let known = store::agents::by_name(&mut unit, pool_id, &request.name).await?;
    if let Some(other) = &known
        && other.instance != request.instance
        && status(other, unit.now, app.policy.offline_after) != AgentStatus::Offline
    {
        return Err(Error::ConflictCode {
            code: code::NAME_TAKEN,
            detail: format!(
                "An agent named {} is online in pool {} already. Give this one another name (--name), or stop the other one.",
                request.name, pool.name
            ),
            meta: None,
        });
    }
    let now = unit.now;
    let is_new = known.as_ref().is_none_or(|known| known.instance != request.instance);
    let agent = Agent {
        id: known.as_ref().map_or_else(AgentId::random, |agent| agent.id.clone()),
        pool_id: pool_id.clone(),
        name: request.name,
        instance: request.instance,
        version: request.version,
        os: request.os,
        platform: request.platform,
        executor: request.executor,
        run_as_root: request.run_as_root,
        slots: i64::from(request.slots),
        labels: request.labels,
        reported_status: AgentStatus::Idle.as_str().to_owned(),
        error_message: None,
        draining: false,
        cordoned: false,
        revoked: false,
        created_at: known.map_or(now, |agent| agent.created_at),
        last_seen_at: now,
    };
    store::agents::upsert(&mut unit, &agent).await?;
    if is_new {
        store::pools::count_registration(&mut unit, pool_id).await?;
    }
    unit.changed(pool_id);
    store::tokens::delete_of_agent(&mut unit, &agent.id).await?;
    let secret = access::new_secret(TokenKind::Agent);
    let token = Token {
        id: TokenId::random(),
        kind: TokenKind::Agent,
        user_id: None,
        pool_id: Some(pool_id.clone()),
        agent_id: Some(agent.id.clone()),
        parent_id: Some(parent),
        name: None,
        description: None,
        external_id: None,
        created_at: now,
        expires_at: None,
        last_used_at: None,
    };
    store::tokens::insert(&mut unit, &token, &access::hash(&secret)).await?;
    unit.commit().await?;
    tracing::info!(agent = %agent.id, name = agent.name, pool = %pool.name, "agent registered");
    Ok(RegisterResponse {
        agent_id: agent.id,
        agent_token: secret.expose_secret().to_owned(),
        pool_id: pool_id.clone(),
        pool_name: pool.name,
        heartbeat_ms: millis(app.policy.heartbeat),
        lease_ms: millis(app.policy.lease),
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn check(request: &RegisterRequest) -> Result<()> {
    let name = &request.name;
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Error::attribute("name", format!("An agent's name has 1 to {MAX_NAME} printable characters.")));
    }
    if request.instance.len() < 8 || request.instance.len() > MAX_NAME {
        return Err(Error::attribute("instance", "An agent's instance is a random text of 8 to 128 characters."));
    }
    if request.slots == 0 {
        return Err(Error::attribute("slots", "An agent has at least one slot."));
    }
    Ok(())
}

/// The agent leaves: jobs that it still holds are as lost, at once.
///
/// # Errors
/// Those of the database.
pub async fn deregister(app: &AppState, id: &AgentId) -> Result<()> {
    let mut unit = Unit::begin(app).await?;
    let now = unit.now;
    if store::jobs::end_leases(&mut unit, id, now).await? > 0 {
        unit.commit().await?;
        super::queue::expire(app).await?;
        unit = Unit::begin(app).await?;
    }
    if let Some(agent) = store::agents::get(&mut unit, id).await? {
        unit.changed(&agent.pool_id);
    }
    store::agents::delete(&mut unit, id).await?;
    unit.commit().await?;
    tracing::info!(agent = %id, "agent left");
    Ok(())
}

/// The agent that a caller of `account` names by `id`, and its pool.
///
/// # Errors
/// [`Error::NotFound`] when there is none, or it belongs to somebody else.
pub async fn find(connection: &mut AnyConnection, account: &AccountId, id: &str) -> Result<(Agent, Pool)> {
    let missing = || Error::not_found(CLASS, id);
    let parsed: AgentId = id.parse().map_err(|_| missing())?;
    let agent = store::agents::get(connection, &parsed).await?.ok_or_else(missing)?;
    let pool = super::pools::get(connection, &agent.pool_id).await?.filter(|pool| pool.account_id == *account);
    Ok((agent, pool.ok_or_else(missing)?))
}

/// Forgets an agent that is offline or errored, and ends its token.
///
/// # Errors
/// 409 for one that works or could, and for one whose lease on a job is not over.
pub async fn remove(unit: &mut Unit<'_>, agent: &Agent) -> Result<()> {
    let status = status(agent, unit.now, unit.app.policy.offline_after);
    let holds_jobs = !store::jobs::of_agent(unit, &agent.id).await?.is_empty();
    match status {
        AgentStatus::Offline | AgentStatus::Errored if !holds_jobs => {}
        AgentStatus::Idle => {
            let detail = "The agent is online and can't be deleted: stop it first, or revoke its pool token.";
            return Err(Error::Conflict(detail.to_owned()));
        }
        _ => return Err(Error::Conflict("The agent is busy and can't be deleted.".to_owned())),
    }
    unit.changed(&agent.pool_id);
    Ok(store::agents::delete(unit, &agent.id).await?)
}

/// Gives the agent no jobs any more, or again; the agent and how many jobs it has, in the same transaction. A cordon
/// holds until it is taken back or the agent leaves, also over its restarts.
///
/// # Errors
/// [`Error::NotFound`]
pub async fn set_cordoned(unit: &mut Unit<'_>, id: &AgentId, cordoned: bool) -> Result<(Agent, i64)> {
    store::agents::set_cordoned(unit, id, cordoned).await?;
    let agent = store::agents::get(unit, id).await?.ok_or_else(|| Error::not_found(CLASS, id))?;
    let jobs = store::jobs::of_agent(unit, id).await?.len();
    unit.wake(Topic::Agent(id.clone()));
    // A claim that it holds may get something now.
    unit.wake(Topic::Queue(agent.pool_id.clone()));
    unit.changed(&agent.pool_id);
    Ok((agent, i64::try_from(jobs).unwrap_or(i64::MAX)))
}

/// Tells those who watch pools of agents that have fallen silent; says how many pools.
///
/// # Errors
/// Those of the database.
pub async fn note_silent(app: &AppState) -> Result<usize> {
    let limit = app.clock.now_ms() - i64::try_from(app.policy.offline_after.as_millis()).unwrap_or(i64::MAX);
    let looked = &app.changes.silent_until;
    let before = looked.load(Ordering::Relaxed);
    if before == 0 {
        // Whoever watches begins with everything after a start of the server.
        looked.store(limit, Ordering::Relaxed);
        return Ok(0);
    }
    let mut connection = app.store.read().await?;
    let pools = store::agents::pools_last_seen(&mut connection, before, limit).await?;
    drop(connection);
    if !pools.is_empty() {
        let mut unit = Unit::begin(app).await?;
        pools.iter().for_each(|pool| unit.changed(pool));
        unit.commit().await?;
    }
    looked.fetch_max(limit, Ordering::Relaxed);
    Ok(pools.len())
}

/// Forgets agents that have not been heard of for longer than Scalr keeps them; says how many.
///
/// # Errors
/// Those of the database.
pub async fn forget_gone(app: &AppState) -> Result<usize> {
    const KEEP_MS: i64 = 4 * 3600 * 1000;
    let mut connection = app.store.read().await?;
    let gone = store::agents::unseen_since(&mut connection, app.clock.now_ms() - KEEP_MS).await?;
    drop(connection);
    for (id, pool) in &gone {
        let mut unit = Unit::begin(app).await?;
        unit.changed(pool);
        store::agents::delete(&mut unit, id).await?;
        unit.commit().await?;
    }
    Ok(gone.len())
}
