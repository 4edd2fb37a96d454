//! What an operator asks to scale a pool. Only our own server knows these calls: others make them
//! [`Error::Unsupported`].

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{CALL, ControlPlane, Error, Refusal, Result};
use crate::{
    api::iacp::{
        demand::{DemandAgent, FailQueued, FailedJobs, MAX_WAIT_MS, PoolChanges, PoolDemand, RetireToken},
        kind,
    },
    ids::{AgentId, PoolId, TokenId},
};

/// The answer to a held call may be this late.
const LATE: Duration = Duration::from_secs(10);

impl ControlPlane {
    /// Pools of the account that have changed since the cursor of an earlier answer; held by the server up to
    /// `wait` while there are none. Not tried again here: whoever watches asks again anyway.
    ///
    /// # Errors
    /// Those of the call; [`Error::Unsupported`]: look at intervals instead.
    pub async fn pool_changes(&self, since: Option<&str>, wait: Duration) -> Result<PoolChanges> {
        let wait = wait.min(Duration::from_millis(MAX_WAIT_MS));
        let wait_ms = wait.as_millis().to_string();
        let mut query = vec![("wait-ms", wait_ms.as_str())];
        query.extend(since.map(|cursor| ("since", cursor)));
        let url = self.url(&format!("{}/changes", kind::AGENT_POOLS), &query)?;
        // As with `demand`, another server looks for a pool of this name.
        decode(&self.exchange(Method::GET, url, None, wait + LATE).await?.map_err(|refusal| refused(refusal, None))?)
    }

    /// What waits for the pool, and who is there to do it.
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such pool; [`Error::Unsupported`].
    pub async fn pool_demand(&self, pool: &PoolId) -> Result<PoolDemand> {
        let read = |pools: Vec<PoolId>| async move {
            let ids: Vec<&str> = pools.iter().map(PoolId::as_str).collect();
            let url = self.url(&format!("{}/demand", kind::AGENT_POOLS), &[("pools", &ids.join(","))])?;
            // A server without this route takes `demand` for the id of a pool: that is no missing object.
            let answer = self.exchange(Method::GET, url, None, self.patience()).await?;
            decode(&answer.map_err(|refusal| refused(refusal, None))?)
        };
        let demand = self.0.demands.get(pool.clone(), read).await?;
        demand.ok_or_else(|| Error::NotFound { title: format!("the control plane has no pool {pool}") })
    }

    /// The agent gets no more jobs; the answer says what it has. With `jobs: 0` in it, it can never get one again
    /// before it is uncordoned. The same again is fine.
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such agent (any more); [`Error::Unsupported`].
    pub async fn cordon(&self, agent: &AgentId) -> Result<DemandAgent> {
        self.extension(Method::POST, &format!("{}/{agent}/actions/cordon", kind::AGENTS), agent.as_str(), None::<&()>)
            .await
    }

    /// The agent may get jobs again. The same again is fine.
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such agent (any more); [`Error::Unsupported`].
    pub async fn uncordon(&self, agent: &AgentId) -> Result<DemandAgent> {
        let path = format!("{}/{agent}/actions/uncordon", kind::AGENTS);
        self.extension(Method::POST, &path, agent.as_str(), None::<&()>).await
    }

    /// Ends the pool's queued jobs that need `image` (`None`: that name none), because they can never run; says how
    /// many. `code` is one of [`crate::api::agent::reason::FROM_OUTSIDE`].
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such pool; [`Error::Invalid`]: another code; [`Error::Unsupported`].
    pub async fn fail_queued(&self, pool: &PoolId, image: Option<&str>, code: &str, message: &str) -> Result<u32> {
        let path = format!("{}/{pool}/actions/fail-queued", kind::AGENT_POOLS);
        let body = FailQueued { image: image.map(str::to_owned), code: code.to_owned(), message: message.to_owned() };
        let FailedJobs { failed } = self.extension(Method::POST, &path, pool.as_str(), Some(&body)).await?;
        Ok(failed)
    }

    /// Ends a token that `successor` replaces; agents that registered with the old one go on. Fine when it is gone.
    ///
    /// # Errors
    /// [`Error::Invalid`]: the successor is gone, expired, or another pool's; [`Error::Unsupported`].
    pub async fn retire_token(&self, old: &TokenId, successor: &TokenId) -> Result<()> {
        let url = self.url(&format!("{}/{old}/actions/retire", kind::ACCESS_TOKENS), &[])?;
        let body = body(Some(&RetireToken { successor: successor.clone() }))?;
        let answer = self.exchange(Method::POST, url, body.as_ref(), CALL).await?;
        match answer.map_err(|refusal| refused(refusal, Some(old.as_str()))) {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// One call of the extension about the object `id`.
    async fn extension<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        id: &str,
        content: Option<&impl Serialize>,
    ) -> Result<T> {
        let url = self.url(path, &[])?;
        let answer = self.exchange(method, url, body(content)?.as_ref(), CALL).await?;
        decode(&answer.map_err(|refusal| refused(refusal, Some(id)))?)
    }
}

/// [`Error::Unsupported`] for an answer that says that there is no such call. Our own 404 names the object that is
/// missing; for a route that it does not know it names the path.
fn refused(refusal: Refusal, id: Option<&str>) -> Error {
    let title = &refusal.error.title;
    let unknown_object = id.is_some_and(|id| title.contains(id) && !title.contains('/'));
    match refusal.status {
        StatusCode::METHOD_NOT_ALLOWED => Error::Unsupported,
        StatusCode::NOT_FOUND if refusal.error.source.is_none() && !unknown_object => Error::Unsupported,
        _ => Error::from_refusal(refusal),
    }
}

fn body(content: Option<&impl Serialize>) -> Result<Option<Value>> {
    content.map(serde_json::to_value).transpose().map_err(Error::decode)
}

fn decode<T: DeserializeOwned>(answer: &[u8]) -> Result<T> {
    serde_json::from_slice(answer).map_err(Error::decode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonapi::{ErrorObject, Source};

    #[test]
    fn a_missing_call_and_a_missing_object_are_told_apart() {
        let refusal = |status: u16, title: &str, pointer: Option<&str>| Refusal {
            status: StatusCode::from_u16(status).unwrap(),
            error: ErrorObject {
                title: title.to_owned(),
                source: pointer.map(|at| Source { pointer: Some(at.to_owned()), parameter: None }),
                ..ErrorObject::default()
            },
            retry_after: None,
        };
        let unsupported =
            |status, title, pointer, id| matches!(refused(refusal(status, title, pointer), id), Error::Unsupported);
        let missing = "AgentPool with ID 'apool-1' not found or user unauthorized.";
        assert!(!unsupported(404, missing, None, Some("apool-1")));
        assert!(unsupported(
            404,
            "There is nothing at /api/iacp/v3/agent-pools/apool-1/demand.",
            None,
            Some("apool-1")
        ));
        assert!(unsupported(404, "Not Found", None, Some("apool-1")));
        assert!(unsupported(405, "Method Not Allowed", None, Some("apool-1")));
        // asked for news, another server looks for a pool of this name
        assert!(unsupported(404, "AgentPool with ID 'changes' not found or user unauthorized.", None, None));
        assert!(!unsupported(404, "Invalid Relationship", Some("/data/relationships/successor"), Some("at-1")));
        assert!(!unsupported(503, "", None, None));
    }
}
