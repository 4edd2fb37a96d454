//! Which workspace runs on which pool by its own link. A link is only made to a pool that may serve the
//! workspace's environment.

use sqlx::AnyConnection;

use super::{model::Pool, pools, runs, unit::Unit};
use crate::{
    ids::{AccountId, PoolId, WorkspaceId},
    server::{
        error::{Error, Result},
        store::{self, links::Linkable},
        wake::Topic,
    },
};

/// The relationship of a workspace that names its pool.
pub const RELATION: &str = "agent-pool";

/// Links `workspace` to the pool with the id `pool`, or with `None` to no pool; its waiting runs follow.
///
/// # Errors
/// 404 for an unknown pool, 422 for one that may not serve the workspace's environment.
pub async fn set(unit: &mut Unit<'_>, account: &AccountId, workspace: &WorkspaceId, pool: Option<&str>) -> Result<()> {
    let workspace = find(unit, account, workspace.as_str())
        .await?
        .ok_or_else(|| Error::not_found("Workspace", workspace.as_str()))?;
    let pool = match pool {
        None => None,
        Some(id) => {
            let unknown = |_| Error::missing_relation(RELATION, pools::CLASS, id);
            let pool = pools::find(unit, account, id).await.map_err(unknown)?;
            check(&pool, &workspace, RELATION)?;
            Some(pool)
        }
    };
    let id = pool.as_ref().map(|pool| &pool.id);
    if workspace.pool_id.as_ref() != id {
        let now = unit.now;
        store::links::set(unit, &workspace.id, id, now).await?;
        // A pool that is to be deleted may be waiting for this.
        if let Some(former) = &workspace.pool_id {
            unit.changed(former);
        }
        if let Some(pool) = &pool {
            unit.changed_a_little(pool);
        }
        reroute(unit, Some(&workspace.id)).await?;
    }
    Ok(())
}

/// Makes `workspaces` the ones that are linked to `pool`, and no others; returns those that changed, with the pools
/// that they had.
///
/// # Errors
/// 404 for an unknown workspace, 422 for one that the pool may not serve.
pub(super) async fn replace(
    connection: &mut AnyConnection,
    pool: &Pool,
    workspaces: &[String],
    now: i64,
) -> Result<Vec<(WorkspaceId, Option<PoolId>)>> {
    const NAME: &str = "workspaces";
    let mut changed = Vec::new();
    for linked in store::pools::linked(connection, &pool.id).await? {
        if !workspaces.iter().any(|id| id == linked.id.as_str()) {
            store::links::set(connection, &linked.id, None, now).await?;
            changed.push((linked.id, Some(pool.id.clone())));
        }
    }
    for id in workspaces {
        let found = find(connection, &pool.account_id, id).await?;
        let workspace = found.ok_or_else(|| pools::missing_relations(NAME, id))?;
        check(pool, &workspace, NAME)?;
        if workspace.pool_id.as_ref() != Some(&pool.id) {
            store::links::set(connection, &workspace.id, Some(&pool.id), now).await?;
            changed.push((workspace.id, workspace.pool_id));
        }
    }
    Ok(changed)
}

/// Brings waiting runs to the pools that are theirs now: queued jobs move to another pool's queue, and runs
/// that had no pool are queued. Of one workspace, or of all when the change was wider. A queued job whose
/// workspace has no pool any more stays where it is; a claimed one is never touched.
///
/// # Errors
/// When the database fails.
pub async fn reroute(unit: &mut Unit<'_>, only: Option<&WorkspaceId>) -> Result<()> {
    for job in store::links::queued_jobs(unit).await? {
        if only.is_some_and(|only| *only != job.workspace) {
            continue;
        }
        let Some(workspace) = store::workspaces::get(unit, &job.workspace).await? else { continue };
        let Some(pool) = pools::for_workspace(unit, &workspace).await? else { continue };
        if store::links::move_job(unit, &job.id, &job.run, &pool.id).await? {
            unit.changed(&job.pool);
            unit.changed(&pool.id);
            unit.wake(Topic::Queue(pool.id));
        }
    }
    let pending = match only {
        Some(workspace) => vec![workspace.clone()],
        None => store::runs::workspaces_with_pending(unit).await?,
    };
    for workspace in &pending {
        runs::advance(unit, workspace).await?;
    }
    Ok(())
}

async fn find(connection: &mut AnyConnection, account: &AccountId, id: &str) -> Result<Option<Linkable>> {
    let Ok(id) = id.parse() else { return Ok(None) };
    Ok(store::links::workspace(connection, &id).await?.filter(|workspace| workspace.account_id == *account))
}

fn check(pool: &Pool, workspace: &Linkable, relation: &'static str) -> Result<()> {
    if pools::may_serve(pool, &workspace.environment_id) {
        return Ok(());
    }
    let Linkable { name, environment, .. } = workspace;
    let why = if pool.environment_id.is_some() {
        "it belongs to another environment".to_owned()
    } else {
        format!("it is not shared, and `{environment}` is not among its environments")
    };
    Err(Error::Relationship {
        name: relation,
        detail: format!("The agent pool `{}` cannot run workspace `{environment}/{name}`: {why}.", pool.name),
        missing: false,
    })
}
