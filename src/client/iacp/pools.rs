//! Agent pools, their tokens and agents.

use reqwest::Method;
use secrecy::SecretString;

use super::{ControlPlane, Error, Result, id_of, parse_id};
use crate::{
    api::iacp::{AccessTokenAttributes, AgentAttributes, AgentPoolAttributes, kind},
    ids::{AgentId, EnvironmentId, PoolId, TokenId, WorkspaceId},
    jsonapi::{Resource, ToOne},
};

/// A pool as the control plane has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    pub id: PoolId,
    pub attributes: AgentPoolAttributes,
    /// The scope's environment; `None` for account scope.
    pub environment: Option<EnvironmentId>,
    /// Account scope, not shared: the environments that may use it.
    pub environments: Vec<EnvironmentId>,
    /// The workspaces that are linked to it.
    pub workspaces: Vec<WorkspaceId>,
}

/// A pool token's record.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolToken {
    pub id: TokenId,
    /// Never with the secret.
    pub attributes: AccessTokenAttributes,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    pub id: AgentId,
    pub attributes: AgentAttributes,
}

impl ControlPlane {
    /// The pool that its creator gave this external id.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn pool_by_external_id(&self, external_id: &str) -> Result<Option<Pool>> {
        let read = |ids: Vec<String>| async move {
            let wanted = ids.iter().map(String::as_str).collect();
            let found = self.list_any(kind::AGENT_POOLS, "filter[external-id]", wanted).await?;
            // A server that does not know the filter answers everything.
            let pools = found.iter().map(pool).collect::<Result<Vec<_>>>()?.into_iter();
            let known = pools.filter_map(|pool| Some((pool.attributes.external_id.clone()?, pool)));
            // As the server orders them: the first counts.
            Ok(known.rev().collect())
        };
        self.0.pools.get(external_id.to_owned(), read).await
    }

    /// The pool of that name in the scope: an environment's, or the account's.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn pool_by_name(&self, name: &str, environment: Option<&EnvironmentId>) -> Result<Option<Pool>> {
        let found = self.list(kind::AGENT_POOLS, &[("filter[name]", name)]).await?;
        let found = found.iter().map(pool).collect::<Result<Vec<_>>>()?;
        Ok(found
            .into_iter()
            .find(|pool| pool.attributes.name.as_deref() == Some(name) && pool.environment.as_ref() == environment))
    }

    /// # Errors
    /// Those of the call.
    pub async fn pool(&self, id: &PoolId) -> Result<Option<Pool>> {
        self.find(&format!("{}/{id}", kind::AGENT_POOLS)).await?.as_ref().map(pool).transpose()
    }

    /// Creates a pool in the scope of `environment`, or of the account.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn create_pool(
        &self,
        attributes: &AgentPoolAttributes,
        environment: Option<&EnvironmentId>,
        environments: &[EnvironmentId],
    ) -> Result<Pool> {
        let mut resource = with_attributes(kind::AGENT_POOLS, attributes)?;
        if let Some(environment) = environment {
            resource = resource.to_one("environment", kind::ENVIRONMENTS, Some(environment.as_str()));
        } else if !environments.is_empty() {
            resource = resource.to_many("environments", kind::ENVIRONMENTS, environments);
        }
        pool(&self.write(Method::POST, kind::AGENT_POOLS, &resource).await?)
    }

    /// Changes the members that are given, and no others. Never touches the pool's workspaces.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn update_pool(
        &self,
        id: &PoolId,
        attributes: &AgentPoolAttributes,
        environments: Option<&[EnvironmentId]>,
    ) -> Result<Pool> {
        let mut resource = with_attributes(kind::AGENT_POOLS, attributes)?;
        resource.id = Some(id.to_string());
        if let Some(environments) = environments {
            resource = resource.to_many("environments", kind::ENVIRONMENTS, environments);
        }
        pool(&self.write(Method::PATCH, &format!("{}/{id}", kind::AGENT_POOLS), &resource).await?)
    }

    /// Deletes a pool that no workspace uses; fine when it is gone.
    ///
    /// # Errors
    /// [`Error::Conflict`] while workspaces use it.
    pub async fn delete_pool(&self, id: &PoolId) -> Result<()> {
        self.delete(&format!("{}/{id}", kind::AGENT_POOLS)).await
    }

    /// The pool's tokens.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn tokens(&self, pool: &PoolId) -> Result<Vec<PoolToken>> {
        let path = format!("{}/{pool}/{}", kind::AGENT_POOLS, kind::ACCESS_TOKENS);
        self.list(&path, &[]).await?.iter().map(token).collect()
    }

    /// A new token of the pool, with its secret, which nobody can read again.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn create_token(
        &self,
        pool: &PoolId,
        attributes: &AccessTokenAttributes,
    ) -> Result<(PoolToken, SecretString)> {
        let path = format!("{}/{pool}/{}", kind::AGENT_POOLS, kind::ACCESS_TOKENS);
        let resource = with_attributes(kind::ACCESS_TOKENS, attributes)?;
        let mut created = token(&self.write(Method::POST, &path, &resource).await?)?;
        let secret = created
            .attributes
            .token
            .take()
            .ok_or_else(|| Error::misses("the answer to the creation of a token holds no token"))?;
        Ok((created, SecretString::from(secret)))
    }

    /// Revokes a token; fine when it is gone.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn delete_token(&self, id: &TokenId) -> Result<()> {
        self.delete(&format!("{}/{id}", kind::ACCESS_TOKENS)).await
    }

    /// Makes the control plane forget an agent that is offline or errored; fine when it is gone.
    ///
    /// # Errors
    /// [`Error::Conflict`] while it works or could.
    pub async fn forget_agent(&self, id: &AgentId) -> Result<()> {
        self.delete(&format!("{}/{id}", kind::AGENTS)).await
    }

    /// The agents of the pool.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn agents(&self, pool: &PoolId) -> Result<Vec<Agent>> {
        let found = self.list(kind::AGENTS, &[("filter[agent-pool]", pool.as_str())]).await?;
        found.iter().map(|resource| Ok(Agent { id: id_of(resource)?, attributes: decode(resource)? })).collect()
    }
}

fn with_attributes<T: serde::Serialize>(kind: &str, attributes: &T) -> Result<Resource> {
    Resource { kind: kind.to_owned(), ..Resource::default() }.with_attributes(attributes).map_err(Error::decode)
}

fn decode<T: serde::de::DeserializeOwned>(resource: &Resource) -> Result<T> {
    resource.decode().map_err(Error::decode)
}

fn token(resource: &Resource) -> Result<PoolToken> {
    Ok(PoolToken { id: id_of(resource)?, attributes: decode(resource)? })
}

fn pool(resource: &Resource) -> Result<Pool> {
    let environment = match resource.related("environment") {
        ToOne::To(linkage) => Some(parse_id(&linkage.id)?),
        ToOne::Absent | ToOne::Null => None,
    };
    Ok(Pool {
        id: id_of(resource)?,
        attributes: decode(resource)?,
        environment,
        environments: related(resource, "environments")?,
        workspaces: related(resource, "workspaces")?,
    })
}

fn related<T: std::str::FromStr>(resource: &Resource, name: &str) -> Result<Vec<T>> {
    resource.related_many(name).unwrap_or_default().iter().map(|linkage| parse_id(&linkage.id)).collect()
}
