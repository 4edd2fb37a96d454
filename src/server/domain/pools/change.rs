//! Creating, changing and deleting pools. Each function takes a transaction: a refused change leaves nothing.

use sqlx::AnyConnection;

use super::{may_serve, missing_relations};
use crate::{
    api::iacp::RunSettings,
    ids::{AccountId, EnvironmentId, PoolId, WorkspaceId},
    server::{
        domain::{environments, links, model::Pool, run_settings, unit::Unit},
        error::{Error, Result},
        store::{self, pools::Linked},
        wake::Topic,
    },
};

/// A refusal names this many workspaces, then how many more there are.
const NAMED: usize = 10;
const MAX_NAME: usize = 255;

/// What a client says of a pool; `None` leaves what there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    pub name: Option<String>,
    pub is_shared: Option<bool>,
    /// The account's default pool.
    pub default: Option<bool>,
    pub external_id: Option<String>,
    pub run_settings: Option<RunSettings>,
    /// Ids of all environments that may use it, when it is not shared.
    pub environments: Option<Vec<String>>,
    /// Ids of all workspaces that are linked to it: others are unlinked.
    pub workspaces: Option<Vec<String>>,
}

/// A pool after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    pub pool: Pool,
    /// Runs may have got another pool, or one at all: waiting ones are to be looked at.
    pub routes: bool,
    /// Pools that lost workspaces to this one.
    pub bereft: Vec<PoolId>,
}

/// Creates a pool of the account, or with `environment` (an id) of that environment alone.
///
/// # Errors
/// 422 for what cannot be, 404 for what is not there.
pub async fn create(
    connection: &mut AnyConnection,
    account: &AccountId,
    environment: Option<&str>,
    change: Change,
    now: i64,
) -> Result<Changed> {
    let environment_id = match environment {
        None => None,
        Some(id) => {
            let unknown = |_| Error::missing_relation("environment", environments::CLASS, id);
            Some(environments::find(connection, account, id).await.map_err(unknown)?.id)
        }
    };
    let listed = change.environments.as_ref().is_some_and(|ids| !ids.is_empty());
    let mut pool = Pool {
        id: PoolId::random(),
        account_id: account.clone(),
        is_shared: environment_id.is_none() && !listed,
        environment_id,
        name: String::new(),
        environments: Vec::new(),
        external_id: None,
        run_settings: RunSettings::default(),
        created_at: now,
    };
    let name = change.name.clone().unwrap_or_default();
    edit(connection, &mut pool, &Change { name: Some(name), ..change.clone() }).await?;
    store::pools::insert(connection, &pool).await?;
    finish(connection, pool, &change, now).await
}

/// Changes a pool. Its scope never moves.
///
/// # Errors
/// 422 for what cannot be, 404 for what is not there, 409 when access is taken from an environment that uses it.
pub async fn update(connection: &mut AnyConnection, mut pool: Pool, change: Change, now: i64) -> Result<Changed> {
    let before = pool.clone();
    edit(connection, &mut pool, &change).await?;
    if pool != before {
        store::pools::update(connection, &pool).await?;
    }
    let changed = finish(connection, pool, &change, now).await?;
    // after the links are replaced: one request may take away both link and access
    refuse_withdrawal(connection, &changed.pool).await?;
    let opened = changed.pool.is_shared != before.is_shared || changed.pool.environments != before.environments;
    Ok(Changed { routes: changed.routes || opened, ..changed })
}

/// The members of `change` that are the pool's own.
async fn edit(connection: &mut AnyConnection, pool: &mut Pool, change: &Change) -> Result<()> {
    if let Some(name) = &change.name {
        check_name(name)?;
        pool.name.clone_from(name);
    }
    if let Some(settings) = &change.run_settings {
        run_settings::check(settings)?;
        pool.run_settings = settings.clone();
    }
    if let Some(external_id) = change.external_id.as_ref().filter(|id| !id.is_empty()) {
        pool.external_id = Some(external_id.clone());
    }
    let environments = match &change.environments {
        None => None,
        Some(ids) => Some(environments_of(connection, &pool.account_id, ids).await?),
    };
    set_access(pool, change.is_shared, environments)?;
    check_unique(connection, pool).await
}

/// Who may use the pool. A list means "not shared", sharing means "no list"; both at once are refused.
fn set_access(pool: &mut Pool, is_shared: Option<bool>, environments: Option<Vec<EnvironmentId>>) -> Result<()> {
    let listed = environments.as_ref().is_some_and(|ids| !ids.is_empty());
    if pool.environment_id.is_some() {
        if listed {
            return Err(Error::Relationship {
                name: "environments",
                detail: "A pool that belongs to one environment cannot be given to others. Create it in the account \
                         instead, without `environment`."
                    .to_owned(),
                missing: false,
            });
        }
        if is_shared == Some(true) {
            return Err(Error::attribute("is-shared", "A pool that belongs to one environment cannot be shared."));
        }
        return Ok(());
    }
    if listed && is_shared == Some(true) {
        return Err(Error::attribute(
            "is-shared",
            "A shared pool takes no list of environments: choose one of the two.",
        ));
    }
    if let Some(shared) = is_shared {
        pool.is_shared = shared;
    } else if listed {
        pool.is_shared = false;
    }
    if let Some(environments) = environments {
        pool.environments = environments;
    }
    if pool.is_shared {
        pool.environments.clear();
    }
    Ok(())
}

async fn environments_of(
    connection: &mut AnyConnection,
    account: &AccountId,
    ids: &[String],
) -> Result<Vec<EnvironmentId>> {
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        let unknown = |_| missing_relations("environments", id);
        found.push(environments::find(connection, account, id).await.map_err(unknown)?.id);
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn check_name(name: &str) -> Result<()> {
    if name.trim().is_empty() {
        return Err(Error::attribute("name", "Name cannot be empty."));
    }
    if name.len() > MAX_NAME || name.chars().any(char::is_control) || name.trim() != name {
        let detail =
            format!("Name can hold at most {MAX_NAME} bytes, no control characters, and no space at its start or end.");
        return Err(Error::attribute("name", detail));
    }
    Ok(())
}

/// Asked before writing, because a unique violation does not say which index it was. Writers take turns, so
/// nothing slips in between; on PostgreSQL the index still refuses.
async fn check_unique(connection: &mut AnyConnection, pool: &Pool) -> Result<()> {
    for other in store::pools::rivals(connection, pool).await? {
        if other.environment_id == pool.environment_id && other.name == pool.name {
            let detail = format!("Name has already been taken: there is an agent pool `{}` in this scope.", pool.name);
            return Err(Error::attribute("name", detail));
        }
        if pool.external_id.is_some() && other.external_id == pool.external_id {
            let detail = format!("The agent pool {} (`{}`) has this external id already.", other.id, other.name);
            return Err(Error::attribute("external-id", detail));
        }
    }
    Ok(())
}

/// What a change says of other objects: default of the account, links of workspaces.
async fn finish(connection: &mut AnyConnection, pool: Pool, change: &Change, now: i64) -> Result<Changed> {
    let account = store::accounts::get(connection, &pool.account_id).await?;
    let is_default = account.is_some_and(|account| account.default_pool_id.as_ref() == Some(&pool.id));
    let becomes = change.default.unwrap_or(is_default);
    if becomes && !pool.is_shared {
        let detail = if pool.environment_id.is_some() {
            "Only a pool of the account can be its default."
        } else {
            "The account's default pool must be shared: share it, or make another pool the default first."
        };
        return Err(Error::attribute(if is_default { "is-shared" } else { "default" }, detail));
    }
    if becomes != is_default {
        store::accounts::set_default_pool(connection, &pool.account_id, becomes.then_some(&pool.id)).await?;
    }
    let relinked: Vec<(WorkspaceId, Option<PoolId>)> = match &change.workspaces {
        Some(ids) => links::replace(connection, &pool, ids, now).await?,
        None => Vec::new(),
    };
    let routes = becomes != is_default || !relinked.is_empty();
    let bereft = relinked.into_iter().filter_map(|(_, before)| before).filter(|before| *before != pool.id).collect();
    Ok(Changed { pool, routes, bereft })
}

/// Access cannot be taken from an environment while it uses the pool.
async fn refuse_withdrawal(connection: &mut AnyConnection, pool: &Pool) -> Result<()> {
    let cut: Vec<Linked> = store::pools::linked(connection, &pool.id)
        .await?
        .into_iter()
        .filter(|linked| !may_serve(pool, &linked.environment_id))
        .collect();
    if !cut.is_empty() {
        return Err(Error::Conflict(format!(
            "The agent pool `{}` is used by workspaces of environments that would lose access: {}. Unlink them first.",
            pool.name,
            named(&cut)
        )));
    }
    for environment in store::pools::default_of(connection, &pool.id).await? {
        if !may_serve(pool, &environment) {
            return Err(default_in_use(connection, pool, &environment, "lose access").await?);
        }
    }
    Ok(())
}

async fn default_in_use(
    connection: &mut AnyConnection,
    pool: &Pool,
    environment: &EnvironmentId,
    what: &str,
) -> Result<Error> {
    let name = environments::get(connection, environment).await?.map_or_else(String::new, |found| found.name);
    Ok(Error::Conflict(format!(
        "The agent pool `{}` is the default pool of environment `{name}`, which would {what}. Give the environment \
         another default pool first.",
        pool.name
    )))
}

/// Deletes a pool with its tokens and agents. Being the account's default does not protect it: that is the
/// pool's own attribute and ends with it.
///
/// # Errors
/// 409 while a workspace is linked to it, an environment has it as its default, or a job of it waits or runs.
pub async fn delete(unit: &mut Unit<'_>, pool: &Pool) -> Result<()> {
    let linked = store::pools::linked(unit, &pool.id).await?;
    if !linked.is_empty() {
        return Err(Error::Conflict(format!(
            "The agent pool `{}` cannot be deleted: it is used by {}. Unlink it there first.",
            pool.name,
            named(&linked)
        )));
    }
    if let Some(environment) = store::pools::default_of(unit, &pool.id).await?.first() {
        return Err(default_in_use(unit, pool, environment, "have none").await?);
    }
    let jobs = store::pools::count_jobs(unit, &pool.id).await?;
    if jobs > 0 {
        return Err(Error::Conflict(format!(
            "The agent pool `{}` cannot be deleted: {jobs} of its jobs wait or run. Let them end, or cancel their runs.",
            pool.name
        )));
    }
    let account = store::accounts::get(unit, &pool.account_id).await?;
    if account.is_some_and(|account| account.default_pool_id.as_ref() == Some(&pool.id)) {
        store::accounts::set_default_pool(unit, &pool.account_id, None).await?;
    }
    // Calls that are held for them end now.
    for agent in store::agents::of_pool(unit, &pool.id).await? {
        unit.wake(Topic::Agent(agent.id));
    }
    unit.wake(Topic::Queue(pool.id.clone()));
    unit.deleted(pool);
    Ok(store::pools::delete(unit, &pool.id).await?)
}

/// `workspaces a/b, a/c and 3 more`
fn named(workspaces: &[Linked]) -> String {
    let names: Vec<String> =
        workspaces.iter().take(NAMED).map(|linked| format!("{}/{}", linked.environment, linked.name)).collect();
    let noun = if workspaces.len() == 1 { "workspace" } else { "workspaces" };
    match workspaces.len().saturating_sub(NAMED) {
        0 => format!("{noun} {}", names.join(", ")),
        more => format!("{noun} {} and {more} more", names.join(", ")),
    }
}
