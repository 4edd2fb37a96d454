//! Client of `/api/iacp/v3`: pools, their tokens and agents, environments, workspaces. Works against our own
//! server and scalr.io. Every call has a deadline; reads are tried again when the server is overloaded,
//! writes never: whoever reconciles looks first and comes again.

mod batch;
mod demand;
mod pools;
mod workspaces;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use reqwest::{Client, Method, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use pools::{Agent, Pool, PoolToken};
pub use workspaces::{Environment, Workspace};

use self::batch::Batch;
use super::{Refusal, success_or_refusal};
use crate::{
    api::iacp::{BASE, demand::PoolDemand},
    ids::{EnvironmentId, PoolId},
    jsonapi::{CONTENT_TYPE, Document, Resource},
};

/// Deadline of one call.
const CALL: Duration = Duration::from_secs(20);

/// Deadline of a read just after another one had none in time: a server that is away must not hold up whoever has work
/// with others. It grows with the time that nothing is heard, so that one that is only slow is not given up.
const SHORTEST: Duration = Duration::from_secs(2);

/// A read that the server is too busy for is tried this often in all.
const READS: usize = 4;

/// Rows per page of a list: the most that servers give.
const PAGE_SIZE: u32 = 100;

/// Why a call did not do its work. Those who asked together are told together, so it can be cloned.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{title}")]
    NotFound { title: String },
    /// The object's state does not allow it.
    #[error("{detail}")]
    Conflict { detail: String },
    /// The request is not acceptable; `pointer` says which member.
    #[error("{detail}")]
    Invalid { pointer: Option<String>, detail: String },
    #[error("the control plane refuses the token: {detail}")]
    Unauthorized { detail: String },
    #[error("the control plane at {host} cannot be reached")]
    Unreachable { host: String, source: Arc<reqwest::Error> },
    #[error("the control plane cannot answer now: {refusal}")]
    Unavailable { refusal: Box<Refusal> },
    #[error("the control plane answered unexpectedly: {refusal}")]
    Unexpected { refusal: Box<Refusal> },
    #[error("the control plane's answer could not be understood")]
    Decode { source: Arc<serde_json::Error> },
    /// The call is one of our own server's and the control plane is another one.
    #[error("the control plane does not know this call")]
    Unsupported,
    #[error("`{path}` makes no address")]
    Address { path: String },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Unavailable { .. })
    }

    fn decode(source: serde_json::Error) -> Self {
        Self::Decode { source: Arc::new(source) }
    }

    fn misses(what: impl std::fmt::Display) -> Self {
        Self::decode(serde::de::Error::custom(what))
    }

    fn from_refusal(refusal: Refusal) -> Self {
        if refusal.is_transient() {
            return Self::Unavailable { refusal: Box::new(refusal) };
        }
        let detail = refusal.error.detail.clone().unwrap_or_else(|| refusal.error.title.clone());
        match refusal.status {
            StatusCode::UNAUTHORIZED => Self::Unauthorized { detail },
            StatusCode::CONFLICT => Self::Conflict { detail },
            // A relationship to something unknown is a 404 with a pointer: a fault of the request.
            StatusCode::NOT_FOUND if refusal.error.source.is_none() => Self::NotFound { title: refusal.error.title },
            StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY => {
                Self::Invalid { pointer: refusal.error.source.and_then(|source| source.pointer), detail }
            }
            _ => Self::Unexpected { refusal: Box::new(refusal) },
        }
    }
}

/// A control plane and a token for it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlPlane(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    base: Url,
    token: SecretString,
    http: Client,
    /// Since when calls are not answered in time.
    silent_since: Mutex<Option<Instant>>,
    /// What whoever reconciles many objects asks of each of them.
    environments: Batch<String, Environment, Error>,
    /// Environments by name, and when they were found so.
    named: Mutex<HashMap<String, (Instant, Environment)>>,
    workspaces: Batch<(EnvironmentId, String), Workspace, Error>,
    pools: Batch<String, Pool, Error>,
    demands: Batch<PoolId, PoolDemand, Error>,
}

impl ControlPlane {
    /// `base` is the server's address without a path, as `https://terrapool.example.com`.
    #[must_use]
    pub fn new(base: Url, token: SecretString, http: Client) -> Self {
        Self(Arc::new(Inner {
            base,
            token,
            http,
            silent_since: Mutex::default(),
            environments: Batch::default(),
            named: Mutex::default(),
            workspaces: Batch::default(),
            pools: Batch::default(),
            demands: Batch::default(),
        }))
    }

    /// The server's address.
    #[must_use]
    pub fn base(&self) -> &Url {
        &self.0.base
    }

    fn url(&self, path: &str, query: &[(&str, &str)]) -> Result<Url> {
        let address = || Error::Address { path: path.to_owned() };
        let mut url = self.0.base.join(&format!("{BASE}/{path}")).map_err(|_| address())?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    /// One call; the body of the answer.
    async fn call(&self, method: Method, url: Url, body: Option<&Value>) -> Result<Vec<u8>> {
        let deadline = if method == Method::GET { self.patience() } else { CALL };
        self.exchange(method, url, body, deadline).await?.map_err(Error::from_refusal)
    }

    fn silent_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.silent_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deadline of a read.
    fn patience(&self) -> Duration {
        patience(self.silent_since().map(|since| since.elapsed()))
    }

    /// Notes whether there was an answer in time.
    fn note(&self, error: Option<&reqwest::Error>) {
        let mut since = self.silent_since();
        match error {
            Some(error) if error.is_timeout() => drop(since.get_or_insert_with(Instant::now)),
            Some(_) => {}
            None => *since = None,
        }
    }

    /// One call; the body of the answer, or the refusal as it came.
    async fn exchange(
        &self,
        method: Method,
        url: Url,
        body: Option<&Value>,
        deadline: Duration,
    ) -> Result<Result<Vec<u8>, Refusal>> {
        let unreachable = |source: reqwest::Error| Error::Unreachable {
            host: self.0.base.host_str().unwrap_or_default().to_owned(),
            source: Arc::new(source.without_url()),
        };
        let mut request = self
            .0
            .http
            .request(method, url)
            .timeout(deadline)
            .bearer_auth(self.0.token.expose_secret())
            .header(reqwest::header::ACCEPT, CONTENT_TYPE);
        if let Some(body) = body {
            request = request.header(reqwest::header::CONTENT_TYPE, CONTENT_TYPE).body(body.to_string());
        }
        let response = request.send().await;
        self.note(response.as_ref().err());
        let response = response.map_err(unreachable)?;
        Ok(match success_or_refusal(response, CALL).await {
            Ok(response) => Ok(response.bytes().await.map_err(unreachable)?.to_vec()),
            Err(refusal) => Err(refusal),
        })
    }

    /// A read, tried again with growing pauses while the server is overloaded.
    async fn read<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T> {
        let url = self.url(path, query)?;
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_jitter()
            .with_max_times(READS - 1)
            .build();
        loop {
            let error = match self.call(Method::GET, url.clone(), None).await {
                Ok(body) => return serde_json::from_slice(&body).map_err(Error::decode),
                Err(error) => error,
            };
            let wanted = match &error {
                Error::Unavailable { refusal } => refusal.retry_after,
                _ => return Err(error),
            };
            match pauses.next() {
                Some(pause) => tokio::time::sleep(wanted.map_or(pause, |wanted| wanted.min(CALL))).await,
                None => return Err(error),
            }
        }
    }

    /// The resource at `path`; `None` when it is not there.
    async fn find(&self, path: &str) -> Result<Option<Resource>> {
        match self.read::<Document<Resource>>(path, &[]).await {
            Ok(document) => Ok(Some(document.data)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All pages of a list.
    async fn list(&self, path: &str, filters: &[(&str, &str)]) -> Result<Vec<Resource>> {
        let mut all = Vec::new();
        let size = PAGE_SIZE.to_string();
        for number in 1_u32.. {
            let number = number.to_string();
            let query = [filters, &[("page[number]", number.as_str()), ("page[size]", size.as_str())]].concat();
            let document: Document<Vec<Resource>> = self.read(path, &query).await?;
            let last = document.data.is_empty() || next_page(document.meta.as_ref()).is_none();
            all.extend(document.data);
            if last {
                break;
            }
        }
        Ok(all)
    }

    /// All resources of which that attribute is one of `values`, and maybe others.
    async fn list_any(&self, path: &str, filter: &str, values: BTreeSet<&str>) -> Result<Vec<Resource>> {
        let mut all = Vec::new();
        for value in filter_values(values) {
            all.extend(self.list(path, &[(filter, &value)]).await?);
        }
        Ok(all)
    }

    /// Creates or updates; the resource as the server has it now.
    async fn write(&self, method: Method, path: &str, resource: &Resource) -> Result<Resource> {
        let body = serde_json::to_value(Document::new(resource)).map_err(Error::decode)?;
        let answer = self.call(method, self.url(path, &[])?, Some(&body)).await?;
        let document: Document<Resource> = serde_json::from_slice(&answer).map_err(Error::decode)?;
        Ok(document.data)
    }

    /// Deletes; fine when it is not there.
    async fn delete(&self, path: &str) -> Result<()> {
        match self.call(Method::DELETE, self.url(path, &[])?, None).await {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Deadline of a read when nothing was heard for so long.
fn patience(silent: Option<Duration>) -> Duration {
    silent.map_or(CALL, |silent| (silent / 4).clamp(SHORTEST, CALL))
}

/// The values of a filter that together find all of these: one for all that can stand in a list.
fn filter_values(values: BTreeSet<&str>) -> Vec<String> {
    let alone = |value: &&str| value.contains([',', ':']) || value.trim() != *value || matches!(*value, "" | "null");
    let (alone, listed): (Vec<&str>, Vec<&str>) = values.into_iter().partition(alone);
    let listed = match listed[..] {
        [] => None,
        [one] => Some(one.to_owned()),
        _ => Some(format!("in:{}", listed.join(","))),
    };
    alone.into_iter().map(str::to_owned).chain(listed).collect()
}

fn next_page(meta: Option<&Value>) -> Option<u64> {
    meta?.get("pagination")?.get("next-page")?.as_u64()
}

/// The resource's id as a typed one.
fn id_of<T: std::str::FromStr>(resource: &Resource) -> Result<T> {
    let text = resource.id.as_deref().unwrap_or_default();
    parse_id(text)
}

fn parse_id<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::misses(format!("`{text}` is no identifier of the expected kind")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_server_is_given_less_time_at_first_and_all_of_it_later() {
        let seconds = |silent| patience(silent).as_secs();
        assert_eq!(seconds(None), 20);
        assert_eq!([0, 8, 40, 80, 600].map(|silent| seconds(Some(Duration::from_secs(silent)))), [2, 2, 10, 20, 20]);
    }

    #[test]
    fn what_a_list_cannot_hold_is_asked_for_alone() {
        let values = |values: &[&str]| filter_values(values.iter().copied().collect());
        assert_eq!(values(&["a"]), ["a"]);
        assert_eq!(values(&["b", "a", "b"]), ["in:a,b"]);
        assert_eq!(values(&["a,b", "c", "null", "d"]), ["a,b", "null", "in:c,d"]);
    }
}
