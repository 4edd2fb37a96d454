//! The link of a workspace to a pool: made when both are there and the pool's scope allows it, taken back when
//! the object goes, and only if it is still ours.

use super::{
    Context, Outcome, Result, Waiting, WriteKind, found,
    pool::{self, PoolInput},
    reading,
};
use crate::{
    client::iacp::{self, Pool, Workspace},
    crd::{
        conditions::reason,
        workspace_link::{LinkDeletion, OnConflict, WorkspaceLinkSpec},
    },
    ids::EnvironmentId,
};

/// What a pass works on.
#[derive(Debug, Clone, Copy)]
pub struct LinkInput<'a> {
    pub spec: &'a WorkspaceLinkSpec,
    /// The AgentPool that `poolRef` names; `None`: there is none of that name.
    pub pool: Option<PoolInput<'a>>,
    /// That AgentPool's pool as it was seen last, instead of a look; `None`: it is looked for.
    pub seen: Option<&'a Pool>,
}

/// What was seen and done.
#[derive(Debug)]
pub struct LinkReport {
    pub pool: Pool,
    pub workspace: Workspace,
    /// `environment/name`
    pub title: String,
    /// The link was made by this pass.
    pub changed: bool,
}

/// What to do about the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    Nothing,
    Link,
}

/// Decides from what was found.
///
/// # Errors
/// What stands in the way.
pub fn plan(on_conflict: OnConflict, pool: &Pool, workspace: &Workspace, title: &str) -> Result<Plan, Waiting> {
    let allowed = match &pool.environment {
        Some(environment) => *environment == workspace.environment,
        None => pool.attributes.is_shared.unwrap_or(true) || pool.environments.contains(&workspace.environment),
    };
    let name = pool.attributes.name.as_deref().unwrap_or_default();
    if !allowed {
        let message = format!("the pool `{name}` does not serve the environment of `{title}`: allow it on the pool");
        return Err(Waiting::new(reason::SCOPE_DENIED, message));
    }
    match &workspace.pool {
        Some(linked) if *linked == pool.id => Ok(Plan::Nothing),
        Some(other) if on_conflict == OnConflict::Refuse => Err(Waiting::new(
            reason::ALREADY_LINKED_ELSEWHERE,
            format!("`{title}` is linked to the pool {other}: unlink it there, or set onConflict: Replace"),
        )),
        _ => Ok(Plan::Link),
    }
}

/// Looks whether the workspace is linked as it should be, and writes nothing. `None`: it is not.
///
/// # Errors
/// When a call failed.
pub async fn inspect(context: &Context, input: LinkInput<'_>) -> Result<Option<LinkReport>> {
    let Ok((workspace, title, pool)) = find(context, input, false).await? else { return Ok(None) };
    let in_line = plan(input.spec.on_conflict, &pool, &workspace, &title) == Ok(Plan::Nothing);
    Ok(in_line.then_some(LinkReport { pool, workspace, title, changed: false }))
}

/// Links the workspace.
///
/// # Errors
/// When a call failed; the next pass tries again.
pub async fn reconcile(context: &Context, input: LinkInput<'_>) -> Result<Outcome<LinkReport>> {
    let (workspace, title, pool) = found!(find(context, input, context.create_environments).await?);
    if found!(plan(input.spec.on_conflict, &pool, &workspace, &title)) == Plan::Nothing {
        return Ok(Outcome::Done(LinkReport { pool, workspace, title, changed: false }));
    }
    let link = context.control_plane.link_workspace(&workspace.id, Some(&pool.id));
    match context.seam.write(WriteKind::LinkWorkspace, link).await {
        Ok(workspace) => Ok(Outcome::Done(LinkReport { pool, workspace, title, changed: true })),
        Err(error) => match error.cause() {
            // The server's own rule, which knows more than we saw.
            Some(iacp::Error::Invalid { detail, .. }) => {
                Ok(Outcome::Waiting(Waiting::new(reason::SCOPE_DENIED, detail.clone())))
            }
            _ => Err(error),
        },
    }
}

/// What became of the link of a deleted object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    Unlinked,
    /// There was no link of ours.
    Nothing,
    /// It stays, as `deletionPolicy: Retain` asks.
    Retained,
}

/// Takes the link back, if the workspace is still linked to this object's pool.
///
/// # Errors
/// When a call failed; the next pass tries again.
pub async fn delete(context: &Context, input: LinkInput<'_>) -> Result<Deleted> {
    if input.spec.deletion_policy == LinkDeletion::Retain {
        return Ok(Deleted::Retained);
    }
    let Ok((workspace, _, pool)) = find(context, input, false).await? else { return Ok(Deleted::Nothing) };
    if workspace.pool.as_ref() != Some(&pool.id) {
        return Ok(Deleted::Nothing);
    }
    let unlink = context.control_plane.link_workspace(&workspace.id, None);
    context.seam.write(WriteKind::UnlinkWorkspace, unlink).await?;
    Ok(Deleted::Unlinked)
}

/// The workspace, its name for people, and the pool: asked for at the same time where one does not depend on the other.
async fn find(
    context: &Context,
    input: LinkInput<'_>,
    create_environment: bool,
) -> Result<Result<(Workspace, String, Pool), Waiting>> {
    let workspace = find_workspace(context, input.spec, create_environment);
    let by_name = input.spec.pool.as_ref().is_some_and(|pool| pool.id.is_none());
    let (workspace, pool) = if by_name {
        let found = match workspace.await? {
            Ok(found) => found,
            Err(waiting) => return Ok(Err(waiting)),
        };
        let pool = find_pool(context, input, Some(&found.0.environment)).await;
        (Ok(Ok(found)), pool)
    } else {
        futures::future::join(workspace, find_pool(context, input, None)).await
    };
    Ok(match (workspace?, pool?) {
        (Ok((workspace, title)), Ok(pool)) => Ok((workspace, title, pool)),
        (Err(waiting), _) | (_, Err(waiting)) => Err(waiting),
    })
}

/// The workspace, and `environment/name` for people.
async fn find_workspace(
    context: &Context,
    spec: &WorkspaceLinkSpec,
    create_environment: bool,
) -> Result<Result<(Workspace, String), Waiting>> {
    let cp = &context.control_plane;
    let target = &spec.workspace;
    let missing = |what: String| {
        let message = format!("there is no workspace {what} yet: `terraform init` creates it, then it is linked");
        Ok(Err(Waiting::new(reason::WORKSPACE_NOT_FOUND, message)))
    };
    if let Some(id) = &target.id {
        let workspace = match id.parse() {
            Ok(id) => cp.workspace(&id).await.map_err(reading("look for the workspace"))?,
            Err(_) => None,
        };
        return match workspace {
            Some(workspace) => Ok(Ok((workspace, id.clone()))),
            None => missing(id.clone()),
        };
    }
    let (Some(environment), Some(name)) = (&target.environment, &target.name) else {
        return Ok(Err(Waiting::new(reason::INVALID_SPEC, "spec.workspace: set either id, or environment and name")));
    };
    let title = format!("{environment}/{name}");
    let found = if create_environment {
        context.environment(environment).await?.ok()
    } else {
        cp.environment_by_name(environment).await.map_err(reading("look for the environment"))?
    };
    let Some(found) = found else { return missing(format!("`{title}`")) };
    match cp.workspace_by_name(&found.id, name).await.map_err(reading("look for the workspace"))? {
        Some(workspace) => Ok(Ok((workspace, title))),
        None => missing(format!("`{title}`")),
    }
}

/// `environment`: the workspace's, in which a pool's name is looked for first.
async fn find_pool(
    context: &Context,
    input: LinkInput<'_>,
    environment: Option<&EnvironmentId>,
) -> Result<Result<Pool, Waiting>> {
    let cp = &context.control_plane;
    if let Some(seen) = input.seen {
        return Ok(Ok(seen.clone()));
    }
    let (found, what) = if let Some(reference) = &input.spec.pool_ref {
        let pool = match input.pool {
            Some(pool) => pool::find(context, pool).await?,
            None => None,
        };
        let state = if input.pool.is_some() { "is not in the control plane yet" } else { "does not exist" };
        (pool, format!("the AgentPool `{}` {state}", reference.name))
    } else if let Some(id) = input.spec.pool.as_ref().and_then(|pool| pool.id.as_ref()) {
        let pool = match id.parse() {
            Ok(id) => cp.pool(&id).await.map_err(reading("look for the pool"))?,
            Err(_) => None,
        };
        (pool, format!("the control plane has no pool {id}"))
    } else {
        let name = input.spec.pool.as_ref().and_then(|pool| pool.name.clone()).unwrap_or_default();
        let mut pool = None;
        for scope in [environment, None] {
            if pool.is_none() {
                pool = cp.pool_by_name(&name, scope).await.map_err(reading("look for the pool"))?;
            }
        }
        (pool, format!("the control plane has no pool `{name}` for this workspace"))
    };
    Ok(found.ok_or_else(|| Waiting::new(reason::POOL_NOT_FOUND, what)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::iacp::AgentPoolAttributes;

    fn pool(shared: bool, environments: &[&str], owner: Option<&str>) -> Pool {
        Pool {
            id: "apool-p".parse().unwrap(),
            attributes: AgentPoolAttributes { is_shared: Some(shared), ..AgentPoolAttributes::default() },
            environment: owner.map(|id| id.parse().unwrap()),
            environments: environments.iter().map(|id| id.parse().unwrap()).collect(),
            workspaces: Vec::new(),
        }
    }

    fn workspace(linked: Option<&str>) -> Workspace {
        Workspace {
            id: "ws-w".parse().unwrap(),
            name: "w".to_owned(),
            environment: "env-a".parse().unwrap(),
            pool: linked.map(|id| id.parse().unwrap()),
        }
    }

    #[test]
    fn scope_decides_who_may_be_linked() {
        let table = [
            (pool(true, &[], None), true),
            (pool(false, &["env-a"], None), true),
            (pool(false, &["env-b"], None), false),
            (pool(false, &[], Some("env-a")), true),
            (pool(false, &[], Some("env-b")), false),
        ];
        for (pool, allowed) in table {
            let planned = plan(OnConflict::Refuse, &pool, &workspace(None), "a/w");
            match allowed {
                true => assert_eq!(planned, Ok(Plan::Link), "{pool:?}"),
                false => assert_eq!(planned.unwrap_err().reason, reason::SCOPE_DENIED, "{pool:?}"),
            }
        }
    }

    #[test]
    fn another_pools_workspace_is_taken_over_only_when_asked() {
        let pool = pool(true, &[], None);
        let elsewhere = workspace(Some("apool-x"));
        let refused = plan(OnConflict::Refuse, &pool, &elsewhere, "a/w").unwrap_err();
        assert_eq!(refused.reason, reason::ALREADY_LINKED_ELSEWHERE);
        assert!(refused.message.contains("apool-x"), "{}", refused.message);
        assert_eq!(plan(OnConflict::Replace, &pool, &elsewhere, "a/w"), Ok(Plan::Link));
        assert_eq!(plan(OnConflict::Refuse, &pool, &workspace(Some("apool-p")), "a/w"), Ok(Plan::Nothing));
    }
}
