//! The control planes that pools live in: found from a spec or the operator's own settings, one connection for each,
//! and one held call for each that tells which pools changed there.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::reflector::ObjectRef;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use url::Url;

use super::{
    backoff::jittered,
    cluster::{self, Cluster},
};
use crate::{
    api::iacp::demand::PoolChanges,
    client::iacp::{self, ControlPlane},
    crd::{
        AgentPool,
        common::{ControlPlaneRef, KeyRef},
        conditions::reason,
    },
    http,
    ids::PoolId,
    shutdown::Shutdown,
    sync::Waiting,
    telemetry::Chain,
};

/// How long a call for changes is held.
const HOLD: Duration = Duration::from_secs(25);

/// Longest pause between calls for changes that fail.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The control plane of objects that name none.
#[derive(Debug, Clone)]
pub struct DefaultControlPlane {
    pub url: Url,
    pub token: SecretString,
    /// PEM certificates to trust beside the system's.
    pub ca: Option<String>,
}

/// A control plane as somebody may use it.
#[derive(Debug)]
pub struct Connection {
    pub control_plane: ControlPlane,
    pub url: Url,
    /// PEM certificates to trust beside the system's.
    pub ca: Option<String>,
    /// Tells connections apart: address, token and certificates.
    key: Key,
}

type Key = [u8; 32];

impl Connection {
    /// The URL as agents are told it.
    pub(super) fn address(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }
}

#[derive(Debug, Default)]
struct State {
    connections: HashMap<Key, Arc<Connection>>,
    /// Which AgentPools stand for a pool: its own, and those that joined it.
    pools: HashMap<(Key, PoolId), HashSet<ObjectRef<AgentPool>>>,
}

/// All control planes in use. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlPlanes {
    cluster: Cluster,
    default: Option<DefaultControlPlane>,
    allow_plain_http: bool,
    state: Arc<Mutex<State>>,
    changed: mpsc::UnboundedSender<ObjectRef<AgentPool>>,
    shutdown: Shutdown,
}

/// A connection, or why it could not be found out.
type Found = Result<Arc<Connection>, Waiting>;

impl ControlPlanes {
    /// AgentPools whose pool changed are sent to `changed`.
    pub(super) fn new(
        cluster: Cluster,
        default: Option<DefaultControlPlane>,
        allow_plain_http: bool,
        changed: mpsc::UnboundedSender<ObjectRef<AgentPool>>,
        shutdown: Shutdown,
    ) -> Self {
        Self { cluster, default, allow_plain_http, state: Arc::default(), changed, shutdown }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The control plane that an object of `namespace` means.
    ///
    /// # Errors
    /// When the cluster cannot be asked; the inner error says what is missing and the mend.
    pub(super) async fn resolve(&self, namespace: &str, wanted: Option<&ControlPlaneRef>) -> cluster::Result<Found> {
        let gathered = match wanted {
            None => Ok(self.default.clone()),
            Some(wanted) => self.gather(namespace, wanted).await?.map(Some),
        };
        Ok(gathered.and_then(|found| {
            let missing = "the operator has no control plane of its own: set spec.controlPlane, or start it with --control-plane-url";
            self.connect(&found.ok_or_else(|| Waiting::new(reason::INVALID_SPEC, missing))?)
        }))
    }

    async fn gather(
        &self,
        namespace: &str,
        wanted: &ControlPlaneRef,
    ) -> cluster::Result<Result<DefaultControlPlane, Waiting>> {
        let mut url = wanted.url.clone();
        if let Some(source) = &wanted.url_from {
            let found = match (&source.config_map_key_ref, &source.secret_key_ref) {
                (Some(key), _) => self.config_map_key(namespace, key).await?,
                (None, Some(key)) => self.secret_key(namespace, key).await?.map(|text| text.expose_secret().to_owned()),
                (None, None) => Err(Waiting::new(reason::INVALID_SPEC, "spec.controlPlane.urlFrom names no source")),
            };
            match found {
                Ok(text) => url = Some(text),
                Err(waiting) => return Ok(Err(waiting)),
            }
        }
        let Some(Ok(url)) = url.as_deref().map(|text| text.trim().parse::<Url>()) else {
            let message = "spec.controlPlane: the address is no URL, as https://terrapool.example.com";
            return Ok(Err(Waiting::new(reason::INVALID_SPEC, message)));
        };
        let token = match (&wanted.token_secret_ref, &self.default) {
            (Some(key), _) => self.secret_key(namespace, key).await?,
            // The operator's token is for the operator's control plane: an author of manifests must not have it sent elsewhere.
            (None, Some(default)) if default.url.origin() == url.origin() => Ok(default.token.clone()),
            (None, _) => Err(Waiting::new(
                reason::CREDENTIALS_INVALID,
                "spec.controlPlane.tokenSecretRef is missing: the operator's own token is only for its own control plane",
            )),
        };
        let ca = match &wanted.ca_config_map_ref {
            Some(key) => match self.config_map_key(namespace, key).await? {
                Ok(text) => Some(text),
                Err(waiting) => return Ok(Err(waiting)),
            },
            None => self
                .default
                .as_ref()
                .filter(|default| default.url.origin() == url.origin())
                .and_then(|default| default.ca.clone()),
        };
        Ok(token.map(|token| DefaultControlPlane { url, token, ca }))
    }

    async fn config_map_key(&self, namespace: &str, key: &KeyRef) -> cluster::Result<Result<String, Waiting>> {
        let found = self.cluster.get::<ConfigMap>(namespace, &key.name).await?;
        let text = found.and_then(|map| map.data.unwrap_or_default().remove(&key.key));
        Ok(text.ok_or_else(|| missing("ConfigMap", reason::INVALID_SPEC, key)))
    }

    async fn secret_key(&self, namespace: &str, key: &KeyRef) -> cluster::Result<Result<SecretString, Waiting>> {
        let found = self.cluster.get::<Secret>(namespace, &key.name).await?;
        let bytes = found.and_then(|secret| secret.data.unwrap_or_default().remove(&key.key));
        let text = bytes.and_then(|bytes| String::from_utf8(bytes.0).ok());
        let text = text.map(|text| SecretString::from(text.trim())).filter(|text| !text.expose_secret().is_empty());
        Ok(text.ok_or_else(|| missing("Secret", reason::CREDENTIALS_INVALID, key)))
    }

    /// The connection to a control plane; a new one is watched from now on.
    fn connect(&self, wanted: &DefaultControlPlane) -> Found {
        let DefaultControlPlane { url, token, ca } = wanted;
        if !self.allow_plain_http && http::is_readable_on_the_way(url) {
            let message = format!("{url} is not https: tokens would be readable on the way");
            return Err(Waiting::new(reason::INVALID_SPEC, message));
        }
        let mut digest = Sha256::new();
        for part in [url.as_str(), token.expose_secret(), ca.as_deref().unwrap_or_default()] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        let key: Key = digest.finalize().into();
        if let Some(connection) = self.state().connections.get(&key) {
            return Ok(Arc::clone(connection));
        }
        let client = match url.scheme() {
            "http" => http::plain_client(),
            _ => http::client_with_ca(ca.as_deref().map(|ca| ("the CA of the control plane", ca.as_bytes()))),
        };
        let client = client.map_err(|error| Waiting::new(reason::INVALID_SPEC, Chain(&error).to_string()))?;
        let connection = Arc::new(Connection {
            control_plane: ControlPlane::new(url.clone(), token.clone(), client),
            url: url.clone(),
            ca: ca.clone(),
            key,
        });
        self.state().connections.insert(key, Arc::clone(&connection));
        if !self.cluster.is_dry() {
            self.shutdown.spawn(self.clone().follow(Arc::clone(&connection)));
        }
        Ok(connection)
    }

    /// From now on `object` hears of changes of that pool.
    pub(super) fn watch(&self, connection: &Connection, pool: &PoolId, object: ObjectRef<AgentPool>) {
        self.state().pools.entry((connection.key, pool.clone())).or_default().insert(object);
    }

    /// The object is gone.
    pub(super) fn forget(&self, object: &ObjectRef<AgentPool>) {
        self.state().pools.retain(|_, known| {
            known.remove(object);
            !known.is_empty()
        });
    }

    async fn follow(self, connection: Arc<Connection>) {
        let stop = self.shutdown.drain.clone();
        tokio::select! {
            () = self.hear(&connection) => {}
            () = stop.cancelled() => {}
        }
    }

    /// Passes on what changes, until the server turns out not to tell.
    async fn hear(&self, connection: &Connection) {
        let mut cursor: Option<String> = None;
        let mut pause = Duration::from_millis(250);
        loop {
            match connection.control_plane.pool_changes(cursor.as_deref(), HOLD).await {
                Ok(PoolChanges { cursor: next, pools }) => {
                    // The first answer only gives the cursor: every pool was looked at when it was found.
                    if cursor.is_some() || pause > Duration::from_millis(250) {
                        self.tell(connection, pools.as_deref());
                    }
                    cursor = Some(next);
                    pause = Duration::from_millis(250);
                }
                Err(iacp::Error::Unsupported) => {
                    tracing::info!(url = %connection.url, "this control plane does not tell of changes: pools are looked at regularly");
                    return;
                }
                Err(error) => {
                    tracing::warn!(url = %connection.url, error = %Chain(&error), "the control plane cannot be heard; trying on");
                    tokio::time::sleep(jittered(pause)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// `None`: anything may have changed.
    fn tell(&self, connection: &Connection, pools: Option<&[PoolId]>) {
        let state = self.state();
        let known = |pool: &PoolId| state.pools.get(&(connection.key, pool.clone()));
        let objects: Vec<_> = match pools {
            Some(pools) => pools.iter().filter_map(known).flatten().cloned().collect(),
            None => {
                let all = state.pools.iter().filter(|((key, _), _)| *key == connection.key);
                all.flat_map(|(_, objects)| objects.iter().cloned()).collect()
            }
        };
        drop(state);
        for object in objects {
            // Err: the controller has ended.
            drop(self.changed.send(object));
        }
    }
}

fn missing(kind: &str, reason: &'static str, key: &KeyRef) -> Waiting {
    Waiting::new(reason, format!("the {kind} `{}` of this namespace has no key `{}`", key.name, key.key))
}
