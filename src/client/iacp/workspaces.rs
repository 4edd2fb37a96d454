//! Environments and workspaces, and which pool runs a workspace.

use std::{
    collections::BTreeMap,
    sync::PoisonError,
    time::{Duration, Instant},
};

use reqwest::Method;

use super::{ControlPlane, Error, Result, filter_values, id_of, parse_id};
use crate::{
    api::iacp::kind,
    ids::{EnvironmentId, PoolId, WorkspaceId},
    jsonapi::{Resource, ToOne},
};

/// How long an environment is believed to have its name: thousands of workspaces are looked for in the same one.
const BELIEVED: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    pub id: EnvironmentId,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    pub id: WorkspaceId,
    pub name: String,
    pub environment: EnvironmentId,
    /// The workspace's own link.
    pub pool: Option<PoolId>,
}

impl ControlPlane {
    /// The environment of that name; the answer may be a moment old.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn environment_by_name(&self, name: &str) -> Result<Option<Environment>> {
        let read = |names: Vec<String>| async move {
            let wanted = names.iter().map(String::as_str).collect();
            let found = self.list_any(kind::ENVIRONMENTS, "filter[name]", wanted).await?;
            let named = |resource| environment(resource).map(|environment| (environment.name.clone(), environment));
            found.iter().map(named).collect()
        };
        let named = || self.0.named.lock().unwrap_or_else(PoisonError::into_inner);
        let known = named().get(name).filter(|(since, _)| since.elapsed() < BELIEVED).map(|(_, found)| found.clone());
        if known.is_some() {
            return Ok(known);
        }
        let found = self.0.environments.get(name.to_owned(), read).await?;
        match &found {
            Some(environment) => drop(named().insert(name.to_owned(), (Instant::now(), environment.clone()))),
            None => drop(named().remove(name)),
        }
        Ok(found)
    }

    /// # Errors
    /// Those of the call.
    pub async fn environment(&self, id: &EnvironmentId) -> Result<Option<Environment>> {
        self.find(&format!("{}/{id}", kind::ENVIRONMENTS)).await?.as_ref().map(environment).transpose()
    }

    /// # Errors
    /// Those of the call.
    pub async fn create_environment(&self, name: &str) -> Result<Environment> {
        let resource = named(kind::ENVIRONMENTS, name);
        environment(&self.write(Method::POST, kind::ENVIRONMENTS, &resource).await?)
    }

    /// # Errors
    /// Those of the call.
    pub async fn workspace_by_name(&self, environment: &EnvironmentId, name: &str) -> Result<Option<Workspace>> {
        let read = |wanted: Vec<(EnvironmentId, String)>| async move {
            let mut found = BTreeMap::new();
            for environments in wanted.chunk_by(|(a, _), (b, _)| a == b) {
                let Some((environment, _)) = environments.first() else { continue };
                for names in filter_values(environments.iter().map(|(_, name)| name.as_str()).collect()) {
                    let filters = [("filter[environment]", environment.as_str()), ("filter[name]", &names)];
                    for resource in self.list(kind::WORKSPACES, &filters).await? {
                        let workspace = workspace(&resource)?;
                        found.insert((workspace.environment.clone(), workspace.name.clone()), workspace);
                    }
                }
            }
            Ok(found)
        };
        self.0.workspaces.get((environment.clone(), name.to_owned()), read).await
    }

    /// # Errors
    /// Those of the call.
    pub async fn workspace(&self, id: &WorkspaceId) -> Result<Option<Workspace>> {
        self.find(&format!("{}/{id}", kind::WORKSPACES)).await?.as_ref().map(workspace).transpose()
    }

    /// # Errors
    /// Those of the call.
    pub async fn create_workspace(&self, environment: &EnvironmentId, name: &str) -> Result<Workspace> {
        let resource =
            named(kind::WORKSPACES, name).to_one("environment", kind::ENVIRONMENTS, Some(environment.as_str()));
        workspace(&self.write(Method::POST, kind::WORKSPACES, &resource).await?)
    }

    /// Links the workspace to a pool, or takes its link away; changes nothing else of it.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the pool may not serve the workspace.
    pub async fn link_workspace(&self, id: &WorkspaceId, pool: Option<&PoolId>) -> Result<Workspace> {
        let resource = Resource::new(kind::WORKSPACES, id.as_str()).to_one(
            "agent-pool",
            kind::AGENT_POOLS,
            pool.map(PoolId::as_str),
        );
        workspace(&self.write(Method::PATCH, &format!("{}/{id}", kind::WORKSPACES), &resource).await?)
    }
}

fn named(kind: &str, name: &str) -> Resource {
    Resource { kind: kind.to_owned(), ..Resource::default() }.attribute("name", name)
}

fn name_of(resource: &Resource) -> Result<String> {
    let name = resource.attributes.get("name").and_then(|name| name.as_str());
    name.map(str::to_owned).ok_or_else(|| Error::misses(format!("a resource of type {} has no name", resource.kind)))
}

fn environment(resource: &Resource) -> Result<Environment> {
    Ok(Environment { id: id_of(resource)?, name: name_of(resource)? })
}

fn workspace(resource: &Resource) -> Result<Workspace> {
    let related = |name: &str| match resource.related(name) {
        ToOne::To(linkage) => Some(linkage.id),
        ToOne::Absent | ToOne::Null => None,
    };
    let environment = related("environment").ok_or_else(|| Error::misses("a workspace names no environment"))?;
    Ok(Workspace {
        id: id_of(resource)?,
        name: name_of(resource)?,
        environment: parse_id(&environment)?,
        pool: related("agent-pool").as_deref().map(parse_id).transpose()?,
    })
}
