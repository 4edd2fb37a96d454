//! How things are shown on this surface: from the domain's data to resources.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use sqlx::AnyConnection;

use crate::{
    api::{
        agent::ExecutorKind,
        iacp::{
            AccessTokenAttributes, AgentAttributes, AgentCounts, AgentPoolAttributes, BASE, EnvironmentAttributes,
            WorkspaceAttributes, kind,
        },
    },
    clock,
    ids::{AccountId, PoolId},
    jsonapi::Resource,
    server::{
        app::AppState,
        domain::{
            access, agents,
            model::{Account, Agent, Environment, Lock, Pool, Token, Workspace},
            pools,
        },
        error::{Error, Result},
        store::{self, around::Around},
    },
};

fn resource<T: serde::Serialize>(kind: &str, id: &str, attributes: &T) -> Result<Resource> {
    let resource = Resource::new(kind, id)
        .with_attributes(attributes)
        .map_err(|_| Error::Internal("attributes cannot be written as JSON"))?;
    Ok(resource.link("self", format!("{BASE}/{kind}/{id}")))
}

pub(super) fn account(account: &Account) -> Result<Resource> {
    Ok(resource(kind::ACCOUNTS, account.id.as_str(), &serde_json::json!({}))?
        .attribute("name", account.name.as_str())
        // an empty list, not null: fencing is off
        .attribute("allowed-ips", Value::Array(Vec::new())))
}

/// A pool with everything that is related to it.
pub(super) async fn pool(app: &AppState, connection: &mut AnyConnection, pool: &Pool) -> Result<Resource> {
    let mut shown = pools(app, connection, std::slice::from_ref(pool)).await?;
    shown.pop().ok_or(Error::Internal("a pool is not shown"))
}

/// Pools, each with everything that is related to it.
pub(super) async fn pools(app: &AppState, connection: &mut AnyConnection, pools: &[Pool]) -> Result<Vec<Resource>> {
    let ids: Vec<&str> = pools.iter().map(|pool| pool.id.as_str()).collect();
    let mut around = store::around::around(connection, &ids).await?;
    let mut accounts: BTreeMap<AccountId, Option<Account>> = BTreeMap::new();
    let mut shown = Vec::with_capacity(pools.len());
    for pool in pools {
        if !accounts.contains_key(&pool.account_id) {
            let account = store::accounts::get(connection, &pool.account_id).await?;
            accounts.insert(pool.account_id.clone(), account);
        }
        let account = accounts.get(&pool.account_id).and_then(Option::as_ref);
        shown.push(one_pool(app, pool, account, &around.remove(&pool.id).unwrap_or_default())?);
    }
    Ok(shown)
}

fn one_pool(app: &AppState, pool: &Pool, account: Option<&Account>, around: &Around) -> Result<Resource> {
    let now = app.clock.now_ms();
    let Around { linked, agents: members, queued, default_of } = around;
    let mut counts = AgentCounts::default();
    for agent in members {
        pools::count(&mut counts, agents::status(agent, now, app.policy.offline_after));
    }
    let attributes = AgentPoolAttributes {
        name: Some(pool.name.clone()),
        is_shared: Some(pool.is_shared),
        default: Some(account.is_some_and(|account| account.default_pool_id.as_ref() == Some(&pool.id))),
        vcs_enabled: Some(false),
        in_use: Some(!linked.is_empty()),
        external_id: pool.external_id.clone(),
        run_settings: Some(pool.run_settings.clone()),
        agent_counts: Some(counts),
        queue_depth: Some(*queued),
        created_at: Some(clock::rfc3339(pool.created_at)),
    };
    Ok(resource(kind::AGENT_POOLS, pool.id.as_str(), &attributes)?
        .attribute("is-scalr-managed", false)
        .attribute("features", Value::Array(Vec::new()))
        .to_one("account", kind::ACCOUNTS, Some(pool.account_id.as_str()))
        .to_one("environment", kind::ENVIRONMENTS, pool.environment_id.as_ref().map(|id| id.as_str()))
        .to_many("environments", kind::ENVIRONMENTS, &pool.environments)
        .to_many("workspaces", kind::WORKSPACES, linked)
        .to_many("agents", kind::AGENTS, members.iter().map(|agent| &agent.id))
        .to_many("default-environments", kind::ENVIRONMENTS, default_of))
}

/// A token; `secret` only in the answer to its creation.
pub(super) fn token(token: &Token, secret: Option<&SecretString>, now: i64) -> Result<Resource> {
    let attributes = AccessTokenAttributes {
        name: token.name.clone(),
        description: token.description.clone(),
        expires_in: None,
        external_id: token.external_id.clone(),
        created_at: Some(clock::rfc3339(token.created_at)),
        expires_at: token.expires_at.map(clock::rfc3339),
        is_expired: Some(!access::is_valid(token, now)),
        last_used_at: token.last_used_at.map(clock::rfc3339),
        token: secret.map(|secret| secret.expose_secret().to_owned()),
    };
    resource(kind::ACCESS_TOKENS, token.id.as_str(), &attributes)
}

pub(super) fn agent(app: &AppState, agent: &Agent) -> Result<Resource> {
    let driver = match agent.executor {
        ExecutorKind::Docker => "docker",
        ExecutorKind::Sidecar => "kubernetes",
        ExecutorKind::Process => "local",
    };
    let attributes = AgentAttributes {
        name: Some(agent.name.clone()),
        status: Some(agents::status(agent, app.clock.now_ms(), app.policy.offline_after).as_str().to_owned()),
        error_message: agent.error_message.clone(),
        version: Some(agent.version.clone()),
        os: Some(agent.os.clone()),
        cpu_platform: Some(agent.platform.clone()),
        driver: Some(driver.to_owned()),
        created_at: Some(clock::rfc3339(agent.created_at)),
        last_seen_at: Some(clock::rfc3339(agent.last_seen_at)),
    };
    Ok(resource(kind::AGENTS, agent.id.as_str(), &attributes)?
        .attribute("run-as-root", agent.run_as_root)
        .attribute("slots", agent.slots)
        .attribute("draining", agent.draining || agent.cordoned)
        .attribute("labels", serde_json::json!(agent.labels))
        .to_one("pool", kind::AGENT_POOLS, Some(agent.pool_id.as_str())))
}

pub(super) fn environment(environment: &Environment) -> Result<Resource> {
    let attributes = EnvironmentAttributes {
        name: Some(environment.name.clone()),
        status: Some("Active".to_owned()),
        created_at: Some(clock::rfc3339(environment.created_at)),
    };
    Ok(resource(kind::ENVIRONMENTS, environment.id.as_str(), &attributes)?
        .to_one("account", kind::ACCOUNTS, Some(environment.account_id.as_str()))
        .to_one(
            "default-workspace-agent-pool",
            kind::AGENT_POOLS,
            environment.default_pool_id.as_ref().map(PoolId::as_str),
        ))
}

pub(super) fn workspace(workspace: &Workspace, resource_count: i64) -> Result<Resource> {
    let attributes = WorkspaceAttributes {
        name: Some(workspace.name.clone()),
        execution_mode: Some(if workspace.remote { "remote" } else { "local" }.to_owned()),
        auto_apply: Some(workspace.auto_apply),
        terraform_version: Some(workspace.engine_version.clone()).filter(|version| !version.is_empty()),
        iac_platform: Some(workspace.engine.as_str().to_owned()),
        working_directory: Some(Some(workspace.working_directory.clone()).filter(|path| !path.is_empty())),
        run_image: Some(workspace.run_image.clone()),
        locked: Some(workspace.lock != Lock::Unlocked),
        has_resources: Some(resource_count > 0),
        created_at: Some(clock::rfc3339(workspace.created_at)),
        updated_at: Some(clock::rfc3339(workspace.updated_at)),
    };
    Ok(resource(kind::WORKSPACES, workspace.id.as_str(), &attributes)?
        .attribute("operations", workspace.remote)
        .to_one("environment", kind::ENVIRONMENTS, Some(workspace.environment_id.as_str()))
        .to_one("agent-pool", kind::AGENT_POOLS, workspace.pool_id.as_ref().map(PoolId::as_str))
        .to_one("current-run", "runs", workspace.current_run_id.as_ref().map(|id| id.as_str())))
}
