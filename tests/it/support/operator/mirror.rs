//! What the API server has in a schedule's namespace, kept up to date by watches of the tests' own, and what it had.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, Weak},
};

use futures::StreamExt;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::Value;
use tokio::sync::watch;

use super::cluster::{Kind, Space};

/// Conditions of one object over time, a revision an entry.
pub type History = Vec<Value>;

#[derive(Default)]
struct Inner {
    objects: BTreeMap<(Kind, String), Arc<Value>>,
    histories: BTreeMap<(Kind, String), History>,
    /// Uids of all that was ever there.
    known: BTreeSet<String>,
    /// Uids of what owns others and is gone.
    departed: BTreeSet<String>,
}

/// Watches of a whole API server, one a kind: a connection and a list for each namespace would cost more than what they
/// tell.
pub struct Feed {
    client: Client,
    followed: Mutex<BTreeSet<Kind>>,
    mirrors: Arc<Mirrors>,
}

/// Who wants to hear of a namespace.
type Mirrors = Mutex<HashMap<String, Weak<Mirror>>>;

impl Feed {
    pub fn new(client: Client) -> Self {
        Self { client, followed: Mutex::default(), mirrors: Arc::default() }
    }

    fn follow(&self, kind: Kind) {
        if !self.followed.lock().unwrap().insert(kind) {
            return;
        }
        let events = watcher(api(&self.client, kind), watcher::Config::default()).default_backoff();
        let mirrors = self.mirrors.clone();
        tokio::spawn(async move {
            let mut events = Box::pin(events);
            while let Some(event) = events.next().await {
                let (object, deleted) = match event {
                    Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => (object, false),
                    Ok(watcher::Event::Delete(object)) => (object, true),
                    _ => continue,
                };
                let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
                let mirror = mirrors.lock().unwrap().get(namespace).and_then(Weak::upgrade);
                if let Some(mirror) = mirror.filter(|mirror| mirror.follows(kind)) {
                    mirror.note(kind, object, deleted);
                }
            }
        });
    }
}

/// A picture that follows.
pub struct Mirror {
    inner: Mutex<Inner>,
    version: watch::Sender<u64>,
    kinds: Vec<Kind>,
}

impl Mirror {
    /// Of a namespace in which there is nothing yet.
    pub fn follow(space: &Space, kinds: &[Kind]) -> Arc<Self> {
        let mirror = Arc::new(Self { inner: Mutex::default(), version: watch::Sender::new(0), kinds: kinds.to_vec() });
        let feed = space.cluster.feed();
        let mut mirrors = feed.mirrors.lock().unwrap();
        mirrors.retain(|_, mirror| mirror.strong_count() > 0);
        mirrors.insert(space.name.clone(), Arc::downgrade(&mirror));
        drop(mirrors);
        kinds.iter().for_each(|kind| feed.follow(*kind));
        mirror
    }

    fn note(&self, kind: Kind, object: DynamicObject, deleted: bool) {
        let mut inner = self.inner.lock().unwrap();
        if deleted {
            inner.remove(kind, object);
        } else {
            inner.put(kind, object);
        }
        drop(inner);
        self.poke();
    }

    /// Changes when something has changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Something else than an object has changed.
    pub fn poke(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// Null when it is not there.
    pub fn get(&self, kind: Kind, name: &str) -> Arc<Value> {
        self.inner.lock().unwrap().objects.get(&(kind, name.to_owned())).cloned().unwrap_or_default()
    }

    /// Kind and name of everything of these kinds.
    pub fn names(&self, kinds: &[Kind]) -> Vec<(Kind, String)> {
        let inner = self.inner.lock().unwrap();
        inner.objects.keys().filter(|(kind, _)| kinds.contains(kind)).cloned().collect()
    }

    pub fn all(&self, kind: Kind) -> Vec<Arc<Value>> {
        let inner = self.inner.lock().unwrap();
        inner.objects.iter().filter(|((k, _), _)| *k == kind).map(|(_, object)| object.clone()).collect()
    }

    /// Whether there was once an object of this uid that is gone now.
    pub fn is_gone(&self, uid: &str) -> bool {
        let inner = self.inner.lock().unwrap();
        inner.known.contains(uid) && inner.objects.values().all(|object| object["metadata"]["uid"] != uid)
    }

    /// Whether anything is gone that may have owned something.
    pub fn has_departed(&self) -> bool {
        !self.inner.lock().unwrap().departed.is_empty()
    }

    pub fn follows(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }

    pub fn histories(&self) -> BTreeMap<(Kind, String), History> {
        self.inner.lock().unwrap().histories.clone()
    }
}

impl Inner {
    fn remove(&mut self, kind: Kind, object: DynamicObject) {
        if matches!(kind, Kind::AgentPool | Kind::Deployment | Kind::DaemonSet) {
            self.departed.extend(object.metadata.uid);
        }
        self.objects.remove(&(kind, object.metadata.name.unwrap_or_default()));
    }

    fn put(&mut self, kind: Kind, mut object: DynamicObject) {
        object.metadata.managed_fields = None;
        let object = serde_json::to_value(object).unwrap();
        let key = (kind, object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        self.known.insert(uid.clone());
        if matches!(kind, Kind::AgentPool | Kind::WorkspaceLink) {
            let history = self.histories.entry((kind, format!("{} {uid}", key.1))).or_default();
            history.push(object["status"]["conditions"].clone());
        }
        self.objects.insert(key, Arc::new(object));
    }
}

fn api(client: &Client, kind: Kind) -> Api<DynamicObject> {
    let (path, plural) = kind.names();
    let path = path.split_once('/').map_or("", |(_, rest)| rest);
    let (group, version) = path.split_once('/').unwrap_or(("", path));
    let gvk = GroupVersionKind::gvk(group, version, &format!("{kind:?}"));
    let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
    Api::all_with(client.clone(), &resource)
}
