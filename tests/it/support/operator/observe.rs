//! What is there at the end of a schedule, as plain data for the oracles.

use std::collections::{BTreeMap, BTreeSet};

use secrecy::SecretString;
use serde_json::Value;
use terrapool::{
    api::agent::AgentStatus,
    crd::names::POOL_LABEL,
    server::{
        domain::{access, agents},
        store,
    },
};

use super::{
    cluster::Kind,
    instance,
    mirror::History,
    recorder::{Class, Follow, Write},
    room::{Execution, token_in},
    stage::Stage,
};
use crate::support::app::ADMIN_TOKEN;

#[derive(Debug, Clone, Default)]
pub struct RemotePool {
    pub id: String,
    pub name: String,
    pub external_id: Option<String>,
    /// Ids of tokens that can be used.
    pub tokens: Vec<String>,
    /// Names of agents that it takes for being there.
    pub agents: Vec<String>,
}

#[derive(Debug, Clone, Default)]
pub struct Observation {
    /// Every object of the namespace, `kind` filled in.
    pub objects: Vec<Value>,
    pub pools: Vec<RemotePool>,
    /// Our Secrets and the id of the token in each; `None`: nobody knows it.
    pub secrets: Vec<(String, Option<String>)>,
    pub executions: Vec<Execution>,
    pub complaints: Vec<String>,
    pub histories: BTreeMap<(Kind, String), History>,
    pub writes: Vec<Write>,
    /// What must not be seen.
    pub canaries: Vec<String>,
    pub log: String,
    /// Of each operator that ran.
    pub metrics: Vec<String>,
    /// How the operators kept up with each kind, and how many of them there were; `None`: not to be judged.
    pub follows: Option<(BTreeMap<String, Follow>, usize)>,
    pub panics: Vec<String>,
}

impl Observation {
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(move |object| object["kind"] == format!("{kind:?}"))
    }

    /// Writes that count.
    pub fn counted(&self) -> Vec<&Write> {
        self.writes.iter().filter(|write| write.class == Class::Write).collect()
    }
}

pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Looks at everything of a schedule.
pub async fn observe(stage: &Stage) -> Observation {
    let mut objects = Vec::new();
    for kind in stage.kinds() {
        objects.extend(stage.space.list(kind).await);
    }
    let app = &stage.plane.app;
    let now = app.app.clock.now_ms();
    let mut connection = app.app.store.read().await.unwrap();
    let uids: BTreeSet<String> = stage.mirror.histories().keys().filter_map(uid).collect();
    let mut pools = Vec::new();
    for pool in store::pools::of_account(&mut connection, &app.account).await.unwrap() {
        let ours = pool.name.starts_with(&format!("{}-", stage.space.name));
        let known = pool.external_id.as_ref().is_some_and(|id| uids.iter().any(|uid| id.contains(uid)));
        if !ours && !known {
            continue;
        }
        let tokens = store::tokens::of_pool(&mut connection, &pool.id).await.unwrap();
        let tokens = tokens.iter().filter(|token| access::is_valid(token, now)).map(|token| token.id.to_string());
        let mut agents = store::agents::of_pool(&mut connection, &pool.id).await.unwrap();
        let offline_after = app.app.policy.offline_after;
        agents.retain(|agent| agents::status(agent, now, offline_after) != AgentStatus::Offline);
        pools.push(RemotePool {
            id: pool.id.to_string(),
            name: pool.name,
            external_id: pool.external_id,
            tokens: tokens.collect(),
            agents: agents.into_iter().map(|agent| agent.name).collect(),
        });
    }
    let mut secrets = Vec::new();
    for secret in objects.iter().filter(|object| object["kind"] == "Secret") {
        let owned = secret["metadata"]["ownerReferences"][0]["kind"] == "AgentPool";
        if !owned && secret["metadata"]["labels"][POOL_LABEL].is_null() {
            continue;
        }
        let token = match token_in(secret) {
            Some(token) => {
                let hash = access::hash(&SecretString::from(token));
                store::tokens::by_hash(&mut connection, &hash).await.unwrap().map(|token| token.id.to_string())
            }
            None => None,
        };
        secrets.push((name(secret).to_owned(), token));
    }
    drop(connection);
    // One that lost its Lease, as on a machine with too much to do, starts again and lists once more.
    let (follows, started) = stage.recorder.follows();
    let metrics = stage.log.metrics();
    let started = started.max(metrics.len());
    let mut canaries = stage.recorder.secrets();
    canaries.push(ADMIN_TOKEN.to_owned());
    Observation {
        objects,
        pools,
        secrets,
        executions: stage.room.executions(),
        complaints: stage.room.complaints(),
        histories: stage.mirror.histories(),
        writes: stage.recorder.writes(),
        canaries,
        log: stage.log.text(),
        metrics,
        follows: Some((follows, started)),
        panics: instance::panics(&stage.space.name),
    }
}

fn uid((_, title): &(Kind, String)) -> Option<String> {
    title.split_once(' ').map(|(_, uid)| uid.to_owned())
}
