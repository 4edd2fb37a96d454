//! The local agents of `up`: one for each pool that this host may serve, in this process, each with a data
//! directory of its own.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{follow::Event, manifests::Key};
use crate::{
    agent::{self, AgentConfig, engine::Engines, executor::Choice},
    crd::{AgentPoolSpec, agent_pool::RunUser, agents::AgentMode},
    shutdown::Shutdown,
    telemetry::Chain,
    trace::Tracer,
};

/// An agent that could not start or go on is started again after this long.
const RETRY: Duration = Duration::from_secs(2);

/// Label of a node with its operating system, as node feature discovery sets it.
const OS_LABEL: &str = "feature.node.kubernetes.io/system-os_release.ID";

/// An agent that this host is to run.
#[derive(Debug, Clone)]
pub struct LocalAgent {
    pub pool: String,
    pub token: SecretString,
    pub slots: u32,
    pub run_as_root: bool,
}

impl PartialEq for LocalAgent {
    fn eq(&self, other: &Self) -> bool {
        self.is_served_by(other) && self.token.expose_secret() == other.token.expose_secret()
    }
}

impl LocalAgent {
    /// Whether a running one can stay when this is wanted. Another token is no reason to start it again: it is for
    /// registering, and a token that another one replaced does not end what registered with it.
    fn is_served_by(&self, running: &Self) -> bool {
        let Self { pool, token: _, slots, run_as_root } = self;
        *pool == running.pool && *slots == running.slots && *run_as_root == running.run_as_root
    }
}

/// Local agents by the object that asks for them.
pub type Wanted = BTreeMap<Key, LocalAgent>;

/// What all local agents share.
#[derive(Debug, Clone)]
pub struct Settings {
    pub server: Url,
    pub ca_file: Option<PathBuf>,
    /// Parent of the agents' data directories.
    pub data: PathBuf,
    pub executor: Choice,
    pub engines: Engines,
    /// This host's labels.
    pub labels: BTreeMap<String, String>,
    /// Where spans of runs go.
    pub trace: Tracer,
}

/// Labels of this host: its operating system as a node would have it, and what the user adds.
#[must_use]
pub fn host_labels(os_release: &str, added: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let id =
        os_release.lines().find_map(|line| line.strip_prefix("ID=")).map(|id| id.trim_matches(['"', '\'']).to_owned());
    let mut labels: BTreeMap<_, _> = id.map(|id| (OS_LABEL.to_owned(), id)).into_iter().collect();
    labels.extend(added.clone());
    labels
}

/// Whether this host runs an agent of the pool; if not, why, in words. Pure.
///
/// # Errors
/// The reason.
pub fn wanted(spec: &AgentPoolSpec, labels: &BTreeMap<String, String>) -> Result<(), String> {
    match spec.agents.mode {
        AgentMode::External => return Err("its agents are run by somebody else (mode External)".to_owned()),
        AgentMode::Deployment => {
            return Err("its agents are a foreign image's (mode Deployment): that needs a cluster".to_owned());
        }
        AgentMode::Ephemeral | AgentMode::Node => {}
    }
    match spec.agents.node_selector.iter().find(|(key, value)| labels.get(*key) != Some(value)) {
        None => Ok(()),
        Some((key, value)) => Err(format!("this host has not the label {key}={value} (add it with --node-label)")),
    }
}

/// The agent that a pool's manifest asks for on this host.
#[must_use]
pub fn local_agent(pool: String, spec: &AgentPoolSpec, token: SecretString) -> LocalAgent {
    // Single-use agents in Pods take one run each; on one host the agent takes as many as `maxAgents` would.
    let slots = match spec.agents.mode {
        AgentMode::Ephemeral => spec.agents.max_agents.and_then(|n| u32::try_from(n).ok()).unwrap_or(5).clamp(1, 20),
        _ => spec.agents.slots(),
    };
    LocalAgent { pool, token, slots, run_as_root: spec.runs.user == RunUser::Root }
}

/// Keeps the agents that are wanted running, until `shutdown.drain`.
pub async fn keep(
    settings: Settings,
    mut wanted: watch::Receiver<Wanted>,
    events: tokio::sync::mpsc::UnboundedSender<Event>,
    shutdown: Shutdown,
) {
    let mut running: BTreeMap<Key, (watch::Sender<LocalAgent>, Shutdown)> = BTreeMap::new();
    loop {
        let now: Wanted = wanted.borrow_and_update().clone();
        running.retain(|key, (agent, stop)| match now.get(key).filter(|wanted| wanted.is_served_by(&agent.borrow())) {
            Some(wanted) => {
                agent.send_replace(wanted.clone());
                true
            }
            None => {
                stop.drain.cancel();
                false
            }
        });
        for (key, agent) in now {
            let Entry::Vacant(free) = running.entry(key) else { continue };
            let stop = shutdown.clone().into_child();
            let (sender, latest) = watch::channel(agent);
            shutdown.spawn(one(settings.clone(), free.key().clone(), latest, events.clone(), stop.clone()));
            free.insert((sender, stop));
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = shutdown.drain.cancelled() => return,
        }
    }
}

/// Runs one agent, again and again while it fails: each time with the token of that moment.
async fn one(
    settings: Settings,
    key: Key,
    latest: watch::Receiver<LocalAgent>,
    events: tokio::sync::mpsc::UnboundedSender<Event>,
    stop: Shutdown,
) {
    let data = settings.data.join(directory(&key));
    while !stop.drain.is_cancelled() {
        let local = latest.borrow().clone();
        let config = match config(&settings, &local, &data) {
            Ok(config) => config,
            Err(text) => return tell(&events, &key, Event::trouble, text),
        };
        let ready = |ready: &agent::Ready| {
            let executor = ready.executor.as_str();
            tell(
                &events,
                &key,
                Event::agent_ready,
                format!("agent of pool {} ready (executor {executor})", ready.pool_name),
            );
            if let Some(warning) = &ready.warning {
                tell(&events, &key, Event::warning, warning.clone());
            }
        };
        match agent::run(config, stop.clone(), ready).await {
            Ok(()) => return,
            Err(error) => {
                pause(&stop.drain).await;
                // An agent whose pool was deleted is told so by the control plane before it is told by us.
                if !stop.drain.is_cancelled() {
                    let text = format!("agent of pool {}: {}", local.pool, Chain(&error));
                    tell(&events, &key, Event::trouble, text);
                }
            }
        }
    }
}

fn tell(
    events: &tokio::sync::mpsc::UnboundedSender<Event>,
    key: &Key,
    event: impl FnOnce(Key, String) -> Event,
    text: String,
) {
    // Err: nobody listens any more; the program is about to end.
    drop(events.send(event(key.clone(), text)));
}

async fn pause(until: &CancellationToken) {
    drop(tokio::time::timeout(RETRY, until.cancelled()).await);
}

fn config(settings: &Settings, local: &LocalAgent, data: &Path) -> Result<AgentConfig, String> {
    std::fs::create_dir_all(data).map_err(|error| format!("could not create {}: {error}", data.display()))?;
    let mut config = AgentConfig::new(
        settings.server.clone(),
        local.token.clone(),
        format!("local-{}", local.pool),
        data.to_owned(),
    );
    config.slots = local.slots;
    config.ca_file.clone_from(&settings.ca_file);
    config.labels.clone_from(&settings.labels);
    config.run_as_root = local.run_as_root;
    config.executor.choice = settings.executor;
    config.executor.engines = settings.engines.clone();
    config.trace = settings.trace.clone();
    Ok(config)
}

fn directory(key: &Key) -> String {
    format!("{}.{}", key.namespace, key.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_a_node_with_the_label_of_its_system() {
        let added = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        let labels = host_labels("NAME=\"CentOS\"\nID=\"centos\"\nVERSION_ID=8\n", &added);
        assert_eq!(labels.get(OS_LABEL).map(String::as_str), Some("centos"));
        assert_eq!(labels.get("zone").map(String::as_str), Some("a"));
    }

    #[test]
    fn another_token_alone_is_no_reason_to_start_an_agent_again() {
        let agent =
            |token: &str, slots| LocalAgent { pool: "p".to_owned(), token: token.into(), slots, run_as_root: false };
        assert!(agent("new", 1).is_served_by(&agent("old", 1)));
        assert!(!agent("old", 2).is_served_by(&agent("old", 1)));
        assert_ne!(agent("new", 1), agent("old", 1), "but it is news: a later start takes it");
    }

    #[test]
    fn a_pool_for_other_nodes_gets_no_agent_here_and_says_why() {
        let spec = |text: &str| -> AgentPoolSpec { serde_json::from_str(text).unwrap() };
        let labels = host_labels("ID=debian\n", &BTreeMap::new());
        assert_eq!(wanted(&spec("{}"), &labels), Ok(()));
        let centos =
            spec(r#"{"agents":{"nodeSelector":{"feature.node.kubernetes.io/system-os_release.ID":"centos"}}}"#);
        assert!(wanted(&centos, &labels).unwrap_err().contains("--node-label"));
        assert_eq!(wanted(&centos, &host_labels("ID=centos", &BTreeMap::new())), Ok(()));
        assert!(wanted(&spec(r#"{"agents":{"mode":"External"}}"#), &labels).is_err());
    }
}
