//! When objects are first seen in a state that is waited for: one watch, told the moment it hears.

use std::{
    collections::HashMap,
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

/// A watch; ends with the value.
pub struct Seen {
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Seen {
    /// Of all objects below `path`, as `/api/v1/namespaces/x/pods`, from now on.
    pub async fn watch(client: &Client, path: &str, wanted: fn(&Light) -> bool) -> anyhow::Result<Self> {
        let request = Request::new(path);
        let list: serde_json::Value = client.request(request.list(&ListParams::default().limit(1))?).await?;
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let params = WatchParams::default().timeout(3600).disable_bookmarks();
        let events = client.request_events::<Light>(request.watch(&params, version)?).await?;
        let state = Arc::new(State::default());
        let task = {
            let (state, path) = (state.clone(), path.to_owned());
            tokio::spawn(async move {
                let mut events = std::pin::pin!(events);
                while let Some(event) = events.next().await {
                    match event {
                        Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) if wanted(&object) => {
                            state.first().entry(object.metadata.name).or_insert_with(Instant::now);
                            state.changed.notify_waiters();
                        }
                        Ok(_) => {}
                        Err(error) => eprintln!("the watch of {path}: {error}"),
                    }
                }
            })
        };
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

impl Drop for Seen {
    fn drop(&mut self) {
        self.task.abort();
    }
}
