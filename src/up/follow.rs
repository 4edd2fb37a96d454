//! Follows a directory: whatever its manifests say, the control plane is brought into line with; what vanishes
//! from them is deleted. A manifest that cannot be read changes nothing: what it last said goes on.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    time::Duration,
};

use rand::RngExt;
use secrecy::SecretString;
use tokio::{
    sync::{mpsc::UnboundedSender, watch},
    time::Instant,
};

use super::{
    agents::{self, Wanted},
    manifests::{self, Fingerprint, Key, Kind, Manifests, Object, Spec},
    memory::{Memory, Remembered, StoredToken},
};
use crate::{
    crd::{AgentPoolSpec, WorkspaceLinkSpec},
    hash::hex,
    ids::TokenId,
    shutdown::Shutdown,
    sync::{Context, LinkInput, Outcome, PoolInput, link, pool},
    telemetry::Chain,
};

/// How often the directory is looked at. A change is taken up when it has stood still for one round, so that
/// half-written files are not read.
const ROUND: Duration = Duration::from_millis(250);

/// What waits for something is looked at again after this long.
const WAITING: Duration = Duration::from_secs(1);

/// What is in line is looked at again after this long: somebody may have changed it elsewhere.
const RESYNC: Duration = Duration::from_secs(10);

/// What a pass that failed waits first, and at most; doubled each time.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Something that a person may want to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The object it is about; absent for the directory.
    pub key: Option<Key>,
    pub kind: EventKind,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// In line.
    Ready,
    /// A local agent takes jobs.
    AgentReady,
    /// Waits for something else.
    Waiting,
    Deleted,
    /// A manifest cannot be used.
    Defect,
    Warning,
    /// Something failed and is tried again.
    Trouble,
}

impl Event {
    fn about(key: Key, kind: EventKind, text: String) -> Self {
        Self { key: Some(key), kind, text }
    }

    pub(super) fn agent_ready(key: Key, text: String) -> Self {
        Self::about(key, EventKind::AgentReady, text)
    }

    pub(super) fn warning(key: Key, text: String) -> Self {
        Self::about(key, EventKind::Warning, text)
    }

    pub(super) fn trouble(key: Key, text: String) -> Self {
        Self::about(key, EventKind::Trouble, text)
    }
}

/// What [`follow`] works with.
pub struct Follower {
    pub dir: PathBuf,
    pub sync: Context,
    pub memory: Memory,
    /// This host's labels: which pools get a local agent.
    pub labels: BTreeMap<String, String>,
    pub events: UnboundedSender<Event>,
    pub agents: watch::Sender<Wanted>,
}

/// When an object is looked at next, and what was last said about it.
#[derive(Debug)]
struct Turn {
    due: Instant,
    failures: u32,
    said: Option<Event>,
}

impl Turn {
    fn now() -> Self {
        Self { due: Instant::now(), failures: 0, said: None }
    }
}

/// Follows the directory until `shutdown.drain`.
pub async fn follow(mut follower: Follower, shutdown: Shutdown) {
    let mut state = State::default();
    loop {
        follower.round(&mut state).await;
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            () = shutdown.drain.cancelled() => return,
        }
    }
}

#[derive(Default)]
struct State {
    /// As of the last round, and as read.
    seen: Option<Fingerprint>,
    read: Option<Fingerprint>,
    manifests: Manifests,
    turns: HashMap<Key, Turn>,
    unreadable: Option<String>,
}

impl Follower {
    async fn round(&mut self, state: &mut State) {
        self.look(state);
        if state.read.is_none() {
            return;
        }
        let (wanted, gone) = sort_out(&state.manifests, &self.memory);
        // Links leave before the pools that they use, and pools come before the links that use them.
        for key in gone.iter().rev().chain(wanted.keys()) {
            let turn = state.turns.entry(key.clone()).or_insert_with(Turn::now);
            if Instant::now() < turn.due {
                continue;
            }
            let event = match wanted.get(key) {
                Some(object) => self.bring_into_line(object).await,
                None => self.remove(key).await,
            };
            self.conclude(key, event, &mut state.turns);
        }
        self.publish_agents(&wanted);
    }

    /// Takes up what has changed in the directory.
    fn look(&self, state: &mut State) {
        let now = match manifests::fingerprint(&self.dir) {
            Ok(now) => now,
            Err(error) => {
                let text = format!("could not read {}: {error}", self.dir.display());
                if state.unreadable.as_ref() != Some(&text) {
                    self.say(Event { key: None, kind: EventKind::Trouble, text: text.clone() });
                }
                state.unreadable = Some(text);
                return;
            }
        };
        state.unreadable = None;
        let still = state.seen.as_ref() == Some(&now);
        let first = state.read.is_none();
        if state.read.as_ref() != Some(&now) && (still || first) {
            let manifests = manifests::read(&now);
            for defect in manifests.defects.iter().filter(|defect| !state.manifests.defects.contains(defect)) {
                self.say(Event { key: None, kind: EventKind::Defect, text: defect.to_string() });
            }
            for (key, object) in &manifests.objects {
                if state.manifests.objects.get(key).map(|old| &old.spec) != Some(&object.spec) {
                    state.turns.insert(key.clone(), Turn::now());
                }
            }
            // Whatever else it may have meant: nothing waits longer because of what was.
            state.turns.values_mut().for_each(|turn| turn.due = Instant::now());
            state.manifests = manifests;
            state.read = Some(now.clone());
        }
        state.seen = Some(now);
    }

    fn say(&self, event: Event) {
        // Err: nobody listens any more; the program is about to end.
        drop(self.events.send(event));
    }

    fn conclude(&self, key: &Key, event: Event, turns: &mut HashMap<Key, Turn>) {
        let turn = turns.entry(key.clone()).or_insert_with(Turn::now);
        turn.failures = if event.kind == EventKind::Trouble { turn.failures + 1 } else { 0 };
        turn.due = Instant::now()
            + match event.kind {
                EventKind::Waiting => WAITING,
                EventKind::Trouble => BACKOFF.1.min(BACKOFF.0 * 2_u32.saturating_pow(turn.failures.min(10) - 1)),
                _ => RESYNC,
            };
        if turn.said.as_ref() != Some(&event) {
            self.say(event.clone());
        }
        turn.said = Some(event);
        if turn.said.as_ref().is_some_and(|event| event.kind == EventKind::Deleted) {
            turns.remove(key);
            // What waited for it need not wait longer.
            turns.values_mut().for_each(|turn| turn.due = Instant::now());
        }
    }

    async fn bring_into_line(&mut self, object: &Object) -> Event {
        let key = object.key.clone();
        if object.paused {
            return Event::about(key, EventKind::Waiting, format!("{}: paused by its annotation", object.key));
        }
        if let Err(error) = self.remember(object) {
            return Event::trouble(key, format!("{}: {error}", object.key));
        }
        match &object.spec {
            Spec::Pool(spec) => self.pool(&object.key, spec).await,
            Spec::Link(spec) => self.link(&object.key, spec).await,
        }
    }

    /// Gives the object its identity before anything is written for it.
    fn remember(&mut self, object: &Object) -> Result<(), String> {
        let old = self.memory.objects.get(&object.key);
        if old.is_some_and(|old| old.spec == object.spec && old.file == object.file) {
            return Ok(());
        }
        let remembered = Remembered {
            uid: old.map_or_else(new_uid, |old| old.uid.clone()),
            spec: object.spec.clone(),
            file: object.file.clone(),
            token: old.and_then(|old| old.token.clone()),
        };
        self.memory.objects.insert(object.key.clone(), remembered);
        self.memory.save().map_err(|error| Chain(&error).to_string())
    }

    fn uid(&self, key: &Key) -> Option<String> {
        self.memory.objects.get(key).map(|object| object.uid.clone())
    }

    async fn pool(&mut self, key: &Key, spec: &AgentPoolSpec) -> Event {
        let uid = self.uid(key).unwrap_or_default();
        let held = self.memory.objects.get(key).and_then(|object| object.token.as_ref());
        let held: Option<TokenId> = held.and_then(|token| token.id.parse().ok());
        let input = PoolInput { uid: &uid, name: &key.name, spec, held: held.as_ref() };
        let report = match pool::reconcile(&self.sync, input).await {
            Err(error) => return Event::trouble(key.clone(), format!("{key}: {}", Chain(&error))),
            Ok(Outcome::Waiting(wait)) => {
                return Event::about(key.clone(), EventKind::Waiting, format!("{key} waits: {}", wait.message));
            }
            Ok(Outcome::Done(report)) => report,
        };
        if let Some(new) = &report.token.fresh
            && let Some(object) = self.memory.objects.get_mut(key)
        {
            object.token = Some(StoredToken::new(new.id.to_string(), &new.secret, new.expires_at));
            if let Err(error) = self.memory.save() {
                return Event::trouble(key.clone(), format!("{key}: {}", Chain(&error)));
            }
        }
        let name = pool_name(key, spec);
        let here = match agents::wanted(spec, &self.labels) {
            Ok(()) => String::new(),
            Err(reason) => format!("; no agent on this host: {reason}"),
        };
        Event::about(key.clone(), EventKind::Ready, format!("pool {name} is in line ({}){here}", report.pool.id))
    }

    async fn link(&self, key: &Key, spec: &WorkspaceLinkSpec) -> Event {
        match link::reconcile(&self.sync, self.link_input(key, spec)).await {
            Err(error) => Event::trouble(key.clone(), format!("{key}: {}", Chain(&error))),
            Ok(Outcome::Waiting(wait)) => {
                Event::about(key.clone(), EventKind::Waiting, format!("{key} waits: {}", wait.message))
            }
            Ok(Outcome::Done(report)) => {
                let pool = report.pool.attributes.name.as_deref().unwrap_or_default();
                Event::about(key.clone(), EventKind::Ready, format!("workspace {} runs on pool {pool}", report.title))
            }
        }
    }

    fn link_input<'a>(&'a self, key: &Key, spec: &'a WorkspaceLinkSpec) -> LinkInput<'a> {
        LinkInput { spec, pool: self.pool_of(key, spec), seen: None }
    }

    /// The AgentPool of the same namespace that a link names.
    fn pool_of<'a>(&'a self, link: &Key, spec: &'a WorkspaceLinkSpec) -> Option<PoolInput<'a>> {
        let name = &spec.pool_ref.as_ref()?.name;
        let key = Key { kind: Kind::Pool, namespace: link.namespace.clone(), name: name.clone() };
        let object = self.memory.objects.get(&key)?;
        let Spec::Pool(spec) = &object.spec else { return None };
        Some(PoolInput { uid: &object.uid, name, spec, held: None })
    }

    /// Deletes what no manifest names any more.
    async fn remove(&mut self, key: &Key) -> Event {
        let Some(object) = self.memory.objects.get(key).cloned() else {
            return Event::about(key.clone(), EventKind::Deleted, format!("{key} is deleted"));
        };
        let blocked = match &object.spec {
            Spec::Pool(spec) => {
                match pool::delete(&self.sync, PoolInput { uid: &object.uid, name: &key.name, spec, held: None }).await
                {
                    Ok(Outcome::Done(_)) => None,
                    Ok(Outcome::Waiting(wait)) => Some(wait.message),
                    Err(error) => return Event::trouble(key.clone(), format!("{key}: {}", Chain(&error))),
                }
            }
            Spec::Link(spec) => match link::delete(&self.sync, self.link_input(key, spec)).await {
                Ok(_) => None,
                Err(error) => return Event::trouble(key.clone(), format!("{key}: {}", Chain(&error))),
            },
        };
        if let Some(message) = blocked {
            return Event::about(key.clone(), EventKind::Waiting, format!("{key} cannot be deleted yet: {message}"));
        }
        self.memory.objects.remove(key);
        match self.memory.save() {
            Ok(()) => Event::about(key.clone(), EventKind::Deleted, format!("{key} is deleted")),
            Err(error) => Event::trouble(key.clone(), format!("{key}: {}", Chain(&error))),
        }
    }

    /// Every pool that has a token and may run here gets an agent; one that is being deleted keeps its agent
    /// until it is gone, because runs may still need it.
    fn publish_agents(&self, wanted: &BTreeMap<Key, Object>) {
        let mut agents = Wanted::new();
        for (key, object) in &self.memory.objects {
            let spec = wanted.get(key).map_or(&object.spec, |object| &object.spec);
            let (Spec::Pool(spec), Some(token)) = (spec, &object.token) else { continue };
            if agents::wanted(spec, &self.labels).is_ok() {
                let token: SecretString = token.secret();
                agents.insert(key.clone(), agents::local_agent(pool_name(key, spec), spec, token));
            }
        }
        self.agents.send_if_modified(|now| {
            let changed = *now != agents;
            *now = agents;
            changed
        });
    }
}

/// The name in the control plane.
fn pool_name(key: &Key, spec: &AgentPoolSpec) -> String {
    spec.name.clone().unwrap_or_else(|| key.name.clone())
}

fn new_uid() -> String {
    format!("up-{}", hex(rand::rng().random::<[u8; 16]>()))
}

/// Pure: the objects that are wanted, and those that no manifest names any more. What stood in a file that now
/// has a defect is neither: it stays as it was last read.
fn sort_out(manifests: &Manifests, memory: &Memory) -> (BTreeMap<Key, Object>, Vec<Key>) {
    let broken: BTreeSet<&PathBuf> = manifests.defects.iter().map(|defect| &defect.file).collect();
    let mut wanted = manifests.objects.clone();
    let mut gone = Vec::new();
    for (key, object) in &memory.objects {
        if wanted.contains_key(key) {
            continue;
        }
        if broken.contains(&object.file) {
            let last = Object { key: key.clone(), spec: object.spec.clone(), file: object.file.clone(), paused: false };
            wanted.insert(key.clone(), last);
        } else {
            gone.push(key.clone());
        }
    }
    (wanted, gone)
}
