//! The machine room: stands in for what an API server alone has not: scheduler, kubelet, garbage collector and the
//! controllers of Deployments and DaemonSets. No Pod runs anywhere; in place of a Pod's agent a simulated one speaks
//! the real agent protocol to the real server, with the token from the Pod's Secret, and the Pod's status follows it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::http::Method;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use terrapool::crd::names::POOL_LABEL;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    agent::{Agent, Registration},
    cluster::{JSON, Kind, MERGE, Space, code},
    mirror::Mirror,
    proxy::ControlPlane,
};

/// Annotation of a Pod that a stand-in made: hash of its template.
const TEMPLATE: &str = "test/template";

/// A job that an agent took.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Execution {
    pub run: String,
    pub job: String,
    pub epoch: i64,
    pub agent: String,
}

#[derive(Debug, Default)]
struct State {
    /// By uid.
    pods: BTreeMap<String, CancellationToken>,
    /// Uids of those whose life is over.
    ended: BTreeSet<String>,
    busy: BTreeSet<String>,
    executions: Vec<Execution>,
    done: usize,
    complaints: Vec<String>,
}

/// The stand-ins of one schedule.
pub struct Room {
    space: Space,
    plane: Arc<ControlPlane>,
    pub mirror: Arc<Mirror>,
    /// Jobs may end.
    finish: watch::Sender<bool>,
    state: Mutex<State>,
}

/// Ends the stand-ins when dropped.
pub struct Running(JoinHandle<()>, CancellationToken);

impl Drop for Running {
    fn drop(&mut self) {
        self.1.cancel();
        self.0.abort();
    }
}

impl Room {
    pub fn open(space: Space, plane: Arc<ControlPlane>, mirror: Arc<Mirror>) -> (Arc<Self>, Running) {
        let finish = watch::Sender::new(false);
        let room = Arc::new(Self { space, plane, mirror, finish, state: Mutex::default() });
        let stop = CancellationToken::new();
        let task = tokio::spawn(room.clone().work(stop.clone()));
        (room, Running(task, stop))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Whether jobs may end.
    pub fn finish(&self, may: bool) {
        self.finish.send_replace(may);
    }

    /// Agents that have a job.
    pub fn busy(&self) -> usize {
        self.state().busy.len()
    }

    /// Jobs that were done.
    pub fn done(&self) -> usize {
        self.state().done
    }

    pub fn executions(&self) -> Vec<Execution> {
        self.state().executions.clone()
    }

    /// What nobody may do to a Pod and somebody did.
    pub fn complaints(&self) -> Vec<String> {
        self.state().complaints.clone()
    }

    async fn work(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.mirror.changes();
        loop {
            for pod in self.mirror.all(Kind::Pod) {
                self.look(&pod, &stop);
            }
            self.end_vanished();
            for kind in [Kind::Deployment, Kind::DaemonSet] {
                for object in self.mirror.all(kind) {
                    self.roll_out(kind, &object).await;
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
            // What else comes at once is looked at in one go.
            sleep(Duration::from_millis(5)).await;
            changes.mark_unchanged();
        }
    }

    /// A Pod that was not bound yet goes without notice.
    fn end_vanished(&self) {
        let lives = self.state().pods.clone();
        let vanished = |(uid, ends): &(String, CancellationToken)| !ends.is_cancelled() && self.mirror.is_gone(uid);
        lives.into_iter().filter(vanished).for_each(|(_, ends)| ends.cancel());
    }

    /// Whether every Pod that is to end has ended, with its agent.
    pub fn is_at_rest(&self) -> bool {
        let state = self.state();
        state.pods.iter().all(|(uid, ends)| !ends.is_cancelled() || state.ended.contains(uid))
    }

    fn look(self: &Arc<Self>, pod: &Value, stop: &CancellationToken) {
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let ending = pod["metadata"]["deletionTimestamp"].is_string();
        let mut state = self.state();
        if let Some(known) = state.pods.get(&uid) {
            if ending && !known.is_cancelled() {
                known.cancel();
                if state.busy.contains(&uid) {
                    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                    state.complaints.push(format!("the Pod {name} was deleted while its agent had a job"));
                }
            }
            return;
        }
        let ends = stop.child_token();
        state.pods.insert(uid, ends.clone());
        drop(state);
        let (room, pod) = (self.clone(), pod.clone());
        tokio::spawn(async move { stop_of(&room, &pod, ends).await });
    }

    /// A Pod's life: bound, started, an agent, the end.
    async fn live(&self, pod: &Value, ends: &CancellationToken) -> Option<()> {
        let name = pod["metadata"]["name"].as_str()?;
        let uid = pod["metadata"]["uid"].as_str()?;
        if pod["spec"]["nodeName"].is_null() {
            let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                "target": {"apiVersion": "v1", "kind": "Node", "name": "node-1"}});
            let path = format!("{}/binding", self.space.path(Kind::Pod, name));
            self.persist(Method::POST, &path, JSON, &binding).await?;
        }
        self.phase(pod, "Running").await?;
        let token = self.token(pod, ends).await?;
        let registration = Registration { name: name.to_owned(), instance: uid.to_owned() };
        let Some(agent) = Agent::register(self.plane.clone(), &token, &registration).await else {
            self.phase(pod, "Failed").await;
            return None;
        };
        let job = agent.wait_for_job(ends).await;
        if let Ok(Some(job)) = &job {
            let execution = Execution {
                run: job.run.id.to_string(),
                job: job.job_id.to_string(),
                epoch: job.epoch,
                agent: name.to_owned(),
            };
            self.begins(uid, execution);
            agent.hold(job, self.finish.subscribe()).await;
            self.ended(uid);
        }
        let refused = job.is_err();
        agent.leave().await;
        self.phase(pod, if refused { "Failed" } else { "Succeeded" }).await
    }

    fn begins(&self, uid: &str, execution: Execution) {
        let mut state = self.state();
        state.executions.push(execution);
        state.busy.insert(uid.to_owned());
        drop(state);
        self.mirror.poke();
    }

    fn ended(&self, uid: &str) {
        let mut state = self.state();
        state.busy.remove(uid);
        state.done += 1;
        drop(state);
        self.mirror.poke();
    }

    /// Calls until the API server has answered; `None`: it has refused.
    async fn persist(&self, method: Method, path: &str, content: &str, body: &Value) -> Option<()> {
        loop {
            match self.space.cluster.call(method.clone(), path, content, body).await {
                Ok(_) => return Some(()),
                Err(error) if matches!(code(&error), 400..=428) => return None,
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Writes what a kubelet would; `None` when the Pod is gone.
    async fn phase(&self, pod: &Value, phase: &str) -> Option<()> {
        let running = phase == "Running";
        let state = match phase {
            "Running" => json!({"running": {"startedAt": "2026-01-02T03:04:05Z"}}),
            "Succeeded" => json!({"terminated": {"exitCode": 0, "reason": "Completed"}}),
            _ => json!({"terminated": {"exitCode": 1, "reason": "Error"}}),
        };
        let status = |container: &Value| {
            json!({"name": container["name"], "image": container["image"], "imageID": "", "ready": running,
                "started": running, "restartCount": 0, "state": state})
        };
        let containers: Vec<Value> = pod["spec"]["containers"].as_array()?.iter().map(status).collect();
        let ready = if running { "True" } else { "False" };
        let patch = json!({"status": {
            "phase": phase,
            "startTime": "2026-01-02T03:04:05Z",
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Initialized", "status": "True"},
                {"type": "ContainersReady", "status": ready},
                {"type": "Ready", "status": ready},
            ],
            "containerStatuses": containers,
        }});
        let name = pod["metadata"]["name"].as_str()?;
        let path = format!("{}/status", self.space.path(Kind::Pod, name));
        self.persist(Method::PATCH, &path, MERGE, &patch).await
    }

    /// The token in the Pod's Secret; a container that refers to a missing key waits for it.
    async fn token(&self, pod: &Value, ends: &CancellationToken) -> Option<String> {
        let secret = secret_of(&pod["spec"])?;
        loop {
            let found = self.space.get(Kind::Secret, secret).await;
            if let Some(token) = token_in(&found) {
                return Some(token);
            }
            timeout(Duration::from_millis(200), ends.cancelled()).await.err()?;
        }
    }

    /// What the controllers of Deployments and DaemonSets (on one node) do: Pods of the template, as many as wanted.
    async fn roll_out(&self, kind: Kind, object: &Value) {
        if object["metadata"]["deletionTimestamp"].is_string() {
            return;
        }
        let generation = &object["metadata"]["generation"];
        let wanted = match kind {
            Kind::Deployment => object["spec"]["replicas"].as_u64().unwrap_or(1),
            _ => 1,
        };
        let template = object["spec"]["template"].to_string();
        let uid = &object["metadata"]["uid"];
        let mut pods = self.mirror.all(Kind::Pod);
        pods.retain(|pod| pod["metadata"]["ownerReferences"][0]["uid"] == *uid);
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let (mut ready, mut there) = (0, BTreeSet::new());
        for pod in &pods {
            let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let number = pod_name.rsplit_once('-').and_then(|(_, number)| number.parse::<u64>().ok());
            let fits = number.is_some_and(|number| number < wanted)
                && pod["metadata"]["annotations"][TEMPLATE] == digest(&template)
                && !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
            if !fits {
                self.space.delete(Kind::Pod, pod_name, &Value::Null).await;
            }
            ready += u64::from(fits && pod["status"]["phase"] == "Running");
            there.extend(number);
        }
        for number in (0..wanted).filter(|number| !there.contains(number)) {
            let mut pod = object["spec"]["template"].clone();
            pod["apiVersion"] = json!("v1");
            pod["kind"] = json!("Pod");
            pod["metadata"]["name"] = json!(format!("{name}-{number}"));
            pod["metadata"]["annotations"][TEMPLATE] = json!(digest(&template));
            pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": format!("{kind:?}"),
                "name": name, "uid": uid, "controller": true}]);
            // Err: there already; the next look sees it.
            drop(self.space.cluster.call(Method::POST, &self.space.path(Kind::Pod, ""), JSON, &pod).await);
        }
        let status = match kind {
            Kind::Deployment => json!({"observedGeneration": generation, "replicas": ready, "updatedReplicas": ready,
                "readyReplicas": ready, "availableReplicas": ready}),
            _ => json!({"observedGeneration": generation, "desiredNumberScheduled": wanted,
                "currentNumberScheduled": ready, "updatedNumberScheduled": ready, "numberReady": ready,
                "numberAvailable": ready, "numberMisscheduled": 0}),
        };
        let differs = |(key, value): (&String, &Value)| {
            object["status"][key] != *value && !(object["status"][key].is_null() && *value == 0)
        };
        if status.as_object().into_iter().flatten().any(differs) {
            drop(self.space.merge(kind, name, "/status", &json!({"status": status})).await);
        }
    }

    /// What a garbage collector does: dependents of owners that are gone go too. Says how many it found among objects
    /// of these kinds.
    pub async fn collect_garbage(&self, kinds: &[Kind]) -> usize {
        if !self.mirror.has_departed() {
            return 0;
        }
        let mut found = 0;
        for kind in kinds.iter().filter(|kind| kind.is_owned()).copied() {
            for object in self.space.list(kind).await {
                let owners = object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
                let owned = object["metadata"]["labels"][POOL_LABEL].is_string() && !owners.is_empty();
                let dead = |owner: &Value| self.mirror.is_gone(owner["uid"].as_str().unwrap_or_default());
                if owned && owners.iter().all(dead) && object["metadata"]["deletionTimestamp"].is_null() {
                    let name = object["metadata"]["name"].as_str().unwrap_or_default();
                    let exactly = json!({"preconditions": {"uid": object["metadata"]["uid"]}});
                    self.space.delete(kind, name, &exactly).await;
                    found += 1;
                }
            }
        }
        found
    }

    /// What a garbage collector does when somebody deletes `owner` and wants its dependents left.
    pub async fn orphan(&self, owner: &Value, kinds: &[Kind]) {
        for kind in kinds.iter().filter(|kind| kind.is_owned()).copied() {
            for object in self.space.list(kind).await {
                if object["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"] {
                    let name = object["metadata"]["name"].as_str().unwrap_or_default();
                    let free = json!({"metadata": {"uid": object["metadata"]["uid"], "ownerReferences": null}});
                    // Err: gone already.
                    drop(self.space.merge(kind, name, "", &free).await);
                }
            }
        }
    }
}

/// Lives a Pod's life, then removes it if somebody has asked for that.
async fn stop_of(room: &Room, pod: &Value, ends: CancellationToken) {
    room.live(pod, &ends).await;
    ends.cancelled().await;
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}});
    let path = room.space.path(Kind::Pod, name);
    // Err: gone already.
    drop(room.space.cluster.call(Method::DELETE, &path, JSON, &options).await);
    room.state().ended.extend(pod["metadata"]["uid"].as_str().map(str::to_owned));
}

/// The Secret that a Pod's agent has its token from.
fn secret_of(spec: &Value) -> Option<&str> {
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    let env =
        spec["containers"].as_array().into_iter().flatten().flat_map(|c| c["env"].as_array().into_iter().flatten());
    let mounted = volumes.filter_map(|volume| volume["secret"]["secretName"].as_str());
    mounted.chain(env.filter_map(|variable| variable["valueFrom"]["secretKeyRef"]["name"].as_str())).next()
}

fn digest(text: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:x}", hasher.finish())
}

/// The pool token in a Secret.
pub fn token_in(secret: &Value) -> Option<String> {
    let text = STANDARD.decode(secret["data"]["token"].as_str()?).ok()?;
    String::from_utf8(text).ok().filter(|token| !token.is_empty())
}
