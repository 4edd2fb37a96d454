//! Environments and workspaces, and which pool runs a workspace.

use reqwest::Method;

use super::{ControlPlane, Error, Result, id_of, parse_id};
use crate::{
    api::iacp::kind,
    ids::{EnvironmentId, PoolId, WorkspaceId},
    jsonapi::{Resource, ToOne},
};

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
    /// # Errors
    /// Those of the call.
    pub async fn environment_by_name(&self, name: &str) -> Result<Option<Environment>> {
        let read = async {
            let found = self.list(kind::ENVIRONMENTS, &[("filter[name]", name)]).await?;
            let found = found.iter().map(environment).collect::<Result<Vec<_>>>()?;
            Ok(found.into_iter().find(|environment| environment.name == name))
        };
        self.0.environments.of(name).get(read).await
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
        let filters = [("filter[environment]", environment.as_str()), ("filter[name]", name)];
        let found = self.list(kind::WORKSPACES, &filters).await?;
        let found = found.iter().map(workspace).collect::<Result<Vec<_>>>()?;
        Ok(found.into_iter().find(|workspace| workspace.name == name && workspace.environment == *environment))
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
    name.map(str::to_owned).ok_or_else(|| Error::Decode {
        source: serde::de::Error::custom(format!("a resource of type {} has no name", resource.kind)),
    })
}

fn environment(resource: &Resource) -> Result<Environment> {
    Ok(Environment { id: id_of(resource)?, name: name_of(resource)? })
}

fn workspace(resource: &Resource) -> Result<Workspace> {
    let related = |name: &str| match resource.related(name) {
        ToOne::To(linkage) => Some(linkage.id),
        ToOne::Absent | ToOne::Null => None,
    };
    let environment = related("environment")
        .ok_or_else(|| Error::Decode { source: serde::de::Error::custom("a workspace names no environment") })?;
    Ok(Workspace {
        id: id_of(resource)?,
        name: name_of(resource)?,
        environment: parse_id(&environment)?,
        pool: related("agent-pool").as_deref().map(parse_id).transpose()?,
    })
}
