//! What stands around the pools of a list, and around its workspaces: read for all of them at once, so that a list
//! takes as many statements as one of its rows.

use std::collections::BTreeMap;

use sqlx::{AnyConnection, AssertSqlSafe, any::AnyRow};

use super::{Result, agents, pools, rows::Columns, workspaces};
use crate::{
    ids::{AccountId, EnvironmentId, PoolId, WorkspaceId},
    server::{
        domain::model::{Agent, Pool},
        store::workspaces::Placed,
    },
};

/// What is shown of a pool beside itself.
#[derive(Debug, Clone, Default)]
pub struct Around {
    /// The workspaces linked to it, by environment and name.
    pub linked: Vec<WorkspaceId>,
    /// Its agents, by name.
    pub agents: Vec<Agent>,
    /// Its queued jobs.
    pub queued: i64,
    /// The environments whose default pool it is, by name.
    pub default_of: Vec<EnvironmentId>,
}

/// The rows of `select` that are about one of `ids`, which take the place of `IDS` in it.
async fn about(connection: &mut AnyConnection, select: &str, ids: &[&str]) -> Result<Vec<AnyRow>> {
    let places: Vec<String> = (1..=ids.len()).map(|place| format!("${place}")).collect();
    let mut query = sqlx::query(AssertSqlSafe(select.replace("IDS", &format!("({})", places.join(", ")))));
    for id in ids {
        query = query.bind(*id);
    }
    Ok(query.fetch_all(connection).await?)
}

/// In the order of `ids`.
fn in_order<T>(ids: &[&str], found: Vec<T>, id: impl Fn(&T) -> &str) -> Vec<T> {
    let mut found: BTreeMap<String, T> = found.into_iter().map(|one| (id(&one).to_owned(), one)).collect();
    ids.iter().filter_map(|id| found.remove(*id)).collect()
}

/// The pools of these ids, in this order; those that are not there are left out.
pub async fn pools(connection: &mut AnyConnection, ids: &[&str]) -> Result<Vec<Pool>> {
    let rows = about(connection, "SELECT * FROM pools WHERE id IN IDS", ids).await?;
    let mut found = rows.iter().map(pools::pool).collect::<Result<Vec<Pool>>>()?;
    let select = "SELECT pool_id, environment_id FROM pool_environments WHERE pool_id IN IDS ORDER BY environment_id";
    let mut listed: BTreeMap<String, Vec<EnvironmentId>> = BTreeMap::new();
    for row in about(connection, select, ids).await? {
        listed.entry(row.text("pool_id")?).or_default().push(row.id("environment_id")?);
    }
    for pool in &mut found {
        pool.environments = listed.remove(pool.id.as_str()).unwrap_or_default();
    }
    Ok(in_order(ids, found, |pool| pool.id.as_str()))
}

/// What stands around each of these pools.
pub async fn around(connection: &mut AnyConnection, pools: &[&str]) -> Result<BTreeMap<PoolId, Around>> {
    let mut all: BTreeMap<PoolId, Around> = BTreeMap::new();
    let select = "SELECT w.id AS id, w.pool_id AS pool_id FROM workspaces w JOIN environments e \
                  ON e.id = w.environment_id WHERE w.pool_id IN IDS ORDER BY e.name, w.name";
    for row in about(connection, select, pools).await? {
        all.entry(row.id("pool_id")?).or_default().linked.push(row.id("id")?);
    }
    let select = format!("{} WHERE a.pool_id IN IDS ORDER BY a.name", agents::SELECT);
    for row in about(connection, &select, pools).await? {
        let agent = agents::agent(&row)?;
        all.entry(agent.pool_id.clone()).or_default().agents.push(agent);
    }
    let select = "SELECT pool_id, COUNT(*) AS n FROM jobs WHERE pool_id IN IDS AND state = 'queued' GROUP BY pool_id";
    for row in about(connection, select, pools).await? {
        all.entry(row.id("pool_id")?).or_default().queued = row.int("n")?;
    }
    let select = "SELECT id, default_pool_id FROM environments WHERE default_pool_id IN IDS ORDER BY name";
    for row in about(connection, select, pools).await? {
        all.entry(row.id("default_pool_id")?).or_default().default_of.push(row.id("id")?);
    }
    Ok(all)
}

/// The account's workspaces of these ids, in this order; those that are not there are left out.
pub async fn workspaces(connection: &mut AnyConnection, account: &AccountId, ids: &[&str]) -> Result<Vec<Placed>> {
    let select = format!("{} WHERE w.id IN IDS", workspaces::PLACED);
    let mut found = Vec::with_capacity(ids.len());
    for row in about(connection, &select, ids).await? {
        if row.text("account_id")? == account.as_str() {
            found.push(workspaces::placed(&row)?);
        }
    }
    Ok(in_order(ids, found, |placed| placed.workspace.id.as_str()))
}
