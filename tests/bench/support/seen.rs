//! When objects are first seen in a state that is waited for: one watch, told the moment it hears.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::bail;
use futures::StreamExt;
use kube::{
    Client,
    api::{ListParams, WatchParams},
    core::{Request, WatchEvent},
};
use serde::Deserialize;
use tokio::{sync::Notify, task::JoinHandle};

/// As much of an object as is looked at: reading the rest would take from what is measured.
#[derive(Debug, Clone, Deserialize)]
pub struct Light {
    pub metadata: Meta,
    #[serde(default)]
    pub status: Option<Status>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Meta {
    pub name: String,
    pub generation: Option<i64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    observed_generation: Option<i64>,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl Light {
    /// Ready, and that is said of the spec as it is.
    pub fn is_ready(&self) -> bool {
        self.status.as_ref().is_some_and(|status| {
            status.observed_generation == self.metadata.generation
                && status.conditions.iter().any(|one| one.kind == "Ready" && one.status == "True")
        })
    }
}

#[derive(Debug, Default)]
struct State {
    first: Mutex<HashMap<String, Instant>>,
    changed: Notify,
}

impl State {
    fn first(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Deserialize)]
struct List {
    metadata: ListMeta,
    items: Vec<Light>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
}

/// A watch; ends with the value.
pub struct Seen {
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Seen {
    /// Of all objects below `path`, as `/api/v1/namespaces/x/pods`, that are not so now.
    pub async fn watch(client: &Client, path: &str, wanted: fn(&Light) -> bool) -> anyhow::Result<Self> {
        let state = Arc::new(State::default());
        let path = path.to_owned();
        let mut follower =
            Follower { client: client.clone(), path, wanted, early: HashSet::new(), state: state.clone() };
        let list = follower.list().await?;
        follower.early = list.items.into_iter().filter(wanted).map(|object| object.metadata.name).collect();
        let mut version = list.metadata.resource_version;
        let task = tokio::spawn(async move {
            // The API server ends the watch of whoever takes too long to read: what happened meanwhile is in a list.
            loop {
                if let Err(error) = follower.follow(&version).await {
                    eprintln!("the watch of {}: {error:#}", follower.path);
                }
                match follower.catch_up().await {
                    Ok(now) => version = now,
                    Err(error) => {
                        eprintln!("the list of {}: {error:#}", follower.path);
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Ok(Self { state, task })
    }

    /// When the object of that name was first so.
    pub async fn at(&self, name: &str, patience: Duration) -> anyhow::Result<Instant> {
        self.until(patience, &format!("{name} is not seen"), |first| first.get(name).copied()).await
    }

    /// When the object was first so that made them `count`.
    pub async fn all(&self, count: usize, patience: Duration) -> anyhow::Result<Instant> {
        let what = format!("not {count} objects are seen");
        self.until(patience, &what, |first| if first.len() < count { None } else { first.values().max().copied() })
            .await
    }

    async fn until(
        &self,
        patience: Duration,
        what: &str,
        found: impl Fn(&HashMap<String, Instant>) -> Option<Instant>,
    ) -> anyhow::Result<Instant> {
        let end = tokio::time::Instant::now() + patience;
        loop {
            let changed = self.state.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if let Some(at) = found(&self.state.first()) {
                return Ok(at);
            }
            if tokio::time::timeout_at(end, changed).await.is_err() {
                bail!("{what} as is waited for after {} s; {} are", patience.as_secs(), self.state.first().len());
            }
        }
    }
}

struct Follower {
    client: Client,
    path: String,
    wanted: fn(&Light) -> bool,
    /// Those that were so from the start.
    early: HashSet<String>,
    state: Arc<State>,
}

impl Follower {
    fn look(&self, object: Light) -> bool {
        let wanted = (self.wanted)(&object) && !self.early.contains(&object.metadata.name);
        if wanted {
            self.state.first().entry(object.metadata.name).or_insert_with(Instant::now);
        }
        wanted
    }

    async fn list(&self) -> anyhow::Result<List> {
        Ok(self.client.request(Request::new(&self.path).list(&ListParams::default())?).await?)
    }

    /// Looks at what is there; the version of all of it.
    async fn catch_up(&self) -> anyhow::Result<String> {
        let list = self.list().await?;
        for object in list.items {
            self.look(object);
        }
        self.state.changed.notify_waiters();
        Ok(list.metadata.resource_version)
    }

    /// Until the watch ends.
    async fn follow(&self, version: &str) -> anyhow::Result<()> {
        let params = WatchParams::default().timeout(3600).disable_bookmarks();
        let request = Request::new(&self.path).watch(&params, version)?;
        let mut events = std::pin::pin!(self.client.request_events::<Light>(request).await?);
        while let Some(event) = events.next().await {
            if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event?
                && self.look(object)
            {
                self.state.changed.notify_waiters();
            }
        }
        Ok(())
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.task.abort();
    }
}
