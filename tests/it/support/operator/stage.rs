//! A schedule under way: namespace, control plane, operators and stand-ins, and the steps of the scenario.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::http::Method;
use serde_json::{Value, json};
use terrapool::{
    ids::{ConfigurationVersionId, EnvironmentId},
    server::domain::{
        environments,
        model::{RunOptions, Workspace},
        unit::Unit,
    },
};
use tokio::{runtime::Handle, task::JoinHandle, time::sleep};

use super::{
    cluster::{Cluster, JSON, Kind, Space},
    instance::{Instance, Log, Settings},
    layer::FaultLayer,
    mirror::Mirror,
    plan::Side,
    proxy::ControlPlane,
    recorder::{Class, Recorder},
    room::{Room, Running},
    scenario::{Goal, Scenario, Step, owned_by},
    webhook::Webhook,
};
use crate::support::app::ADMIN_TOKEN;

/// Longest wait for a goal or for silence.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// How often operators look at everything.
pub const RESYNC: Duration = Duration::from_millis(2_000);

/// How often an operator looks that is to be seen idle.
const QUICK: Duration = Duration::from_millis(60);

/// What did not come about.
#[derive(Debug, Clone)]
pub struct Stuck(pub String);

pub struct Stage {
    pub space: Space,
    pub plane: Arc<ControlPlane>,
    pub mirror: Arc<Mirror>,
    pub room: Arc<Room>,
    pub recorder: Arc<Recorder>,
    pub log: Log,
    pub environment: EnvironmentId,
    pub operators: Arc<Mutex<Vec<Instance>>>,
    pub(super) workspaces: Mutex<BTreeMap<String, (Workspace, ConfigurationVersionId)>>,
    pub(super) tokens: Mutex<BTreeMap<String, Value>>,
    settings: Settings,
    pub(super) webhook: Mutex<Option<Webhook>>,
    _stand_ins: Running,
    watchman: JoinHandle<()>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.watchman.abort();
        self.plane.serve(None);
    }
}

/// Starts an operator behind the faults of `recorder`.
fn operator(cluster: &Cluster, settings: &Settings, recorder: &Arc<Recorder>, log: &Log) -> Instance {
    let alive = Arc::new(AtomicBool::new(true));
    recorder.starts();
    let layer = FaultLayer::new(cluster.client().clone(), Handle::current(), recorder.clone(), alive.clone());
    let namespace = settings.namespace.clone();
    Instance::start(settings.clone(), log.clone(), alive, move || layer.client(&namespace))
}

impl Stage {
    pub async fn open(
        cluster: &Cluster,
        plane: Arc<ControlPlane>,
        namespace: &str,
        scenario: &Scenario,
        recorder: Arc<Recorder>,
    ) -> Self {
        let space = Space::create(cluster.clone(), namespace, &json!({})).await;
        let mut unit = Unit::begin(&plane.app.app).await.unwrap();
        let now = unit.now;
        let environment = environments::create(&mut unit, &plane.app.account, namespace, now).await.unwrap().id;
        unit.commit().await.unwrap();
        plane.serve(Some(recorder.clone()));
        let text = format!("{} {:?}", scenario.name, scenario.steps);
        let has = |word: &str| text.contains(word);
        let kinds = [Kind::AgentPool, Kind::WorkspaceLink, Kind::Pod, Kind::Deployment, Kind::DaemonSet];
        let kinds: Vec<Kind> = kinds
            .into_iter()
            .filter(|kind| match kind {
                Kind::AgentPool => true,
                Kind::Pod => ["Ephemeral", "Node", "Deployment"].into_iter().any(has),
                other => has(&format!("{other:?}")),
            })
            .collect();
        let mirror = Mirror::follow(&space, &kinds);
        let (room, stand_ins) = Room::open(space.clone(), plane.clone(), mirror.clone());
        let settings = Settings {
            namespace: namespace.to_owned(),
            url: plane.url.clone(),
            token: ADMIN_TOKEN.to_owned(),
            clock: plane.app.app.clock.clone(),
            identity: "operator-0".to_owned(),
            elects: scenario.operators > 1,
            resync: RESYNC,
        };
        let log = Log::default();
        let start = |number: usize| {
            let settings = Settings { identity: format!("operator-{number}"), ..settings.clone() };
            operator(cluster, &settings, &recorder, &log)
        };
        let operators: Arc<Mutex<Vec<Instance>>> = Arc::new(Mutex::new((0..scenario.operators).map(start).collect()));
        let watchman = tokio::spawn(watch_over(
            cluster.clone(),
            settings.clone(),
            recorder.clone(),
            log.clone(),
            operators.clone(),
        ));
        Self {
            space,
            plane,
            mirror,
            room,
            recorder,
            log,
            environment,
            operators,
            workspaces: Mutex::default(),
            tokens: Mutex::default(),
            settings,
            webhook: Mutex::default(),
            _stand_ins: stand_ins,
            watchman,
        }
    }

    /// Ends the operators suddenly.
    pub async fn stop_operators(&self) {
        let operators = std::mem::take(&mut *self.operators.lock().unwrap());
        for operator in operators {
            operator.kill().await;
        }
    }

    /// Starts one operator more.
    pub fn start_operator(&self, identity: &str) {
        self.start(&Settings { identity: identity.to_owned(), ..self.settings.clone() });
    }

    fn start(&self, settings: &Settings) {
        let instance = operator(&self.space.cluster, settings, &self.recorder, &self.log);
        self.operators.lock().unwrap().push(instance);
    }

    /// All steps, one after the other.
    pub async fn play(&self, steps: &[Step]) -> Result<(), Stuck> {
        for step in steps {
            self.take(step).await?;
        }
        Ok(())
    }

    async fn take(&self, step: &Step) -> Result<(), Stuck> {
        let named = |value: &Value| owned_by(value, &self.space.name);
        let failed = |error: kube::Error| Stuck(format!("{step:?}: {error}"));
        match step {
            Step::Apply(manifest) => drop(self.space.apply(&named(manifest)).await.map_err(failed)?),
            Step::Refused(manifest) => {
                if self.space.apply(&named(manifest)).await.is_ok() {
                    return Err(Stuck(format!("not refused: {manifest}")));
                }
            }
            Step::Merge(kind, name, patch) => {
                let part = if patch["status"].is_null() && patch.get("status").is_some() { "/status" } else { "" };
                self.space.merge(*kind, name, part, &named(patch)).await.map_err(failed)?;
            }
            Step::Scale(name, count) => {
                let patch = json!({"spec": {"replicas": count}});
                self.space.merge(Kind::AgentPool, name, "/scale", &patch).await.map_err(failed)?;
            }
            Step::Delete(kind, name, options) => self.space.delete(*kind, name, options).await,
            Step::Wait(goal) => self.wait(goal).await?,
            Step::Advance(seconds) => self.plane.app.advance(*seconds),
            Step::Workspace(name) => self.make_workspace(name).await,
            Step::Variables(workspace, names) => self.set_variables(workspace, names).await,
            Step::Run(workspace) => self.make_run(workspace).await,
            Step::Finish(may) => self.room.finish(*may),
            Step::Unlink(workspace) => self.unlink(workspace).await,
            Step::Replace => {
                self.stop_operators().await;
                self.start_operator("operator-0");
            }
            Step::Tamper(tamper) => self.tamper(tamper).await,
            Step::Call(method, path, body) => {
                let path = path.replace("$NS", &self.space.name);
                let method: Method = method.parse().unwrap();
                let content = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
                self.space.cluster.call(method, &path, content, &named(body)).await.map_err(failed)?;
            }
            Step::LinkElsewhere(workspace) => self.link_elsewhere(workspace).await,
            Step::Down(side, ms) => self.recorder.take_down(*side, Duration::from_millis(*ms)),
            Step::DeleteNamespace => self.delete_namespace().await,
            Step::Still(label, ms, most) => self.is_still(label, Duration::from_millis(*ms), *most).await?,
            Step::Forget => self.forget().await,
            Step::Deny(code) => self.deny(*code).await.map_err(failed)?,
            Step::Allow => self.allow().await,
        }
        Ok(())
    }

    async fn make_workspace(&self, name: &str) {
        let workspace = self.plane.app.workspace(&self.environment, name, None).await;
        let configuration = self.plane.app.configuration(&workspace.id, false).await;
        self.workspaces.lock().unwrap().insert(name.to_owned(), (workspace, configuration));
    }

    async fn set_variables(&self, workspace: &str, names: &[&str]) {
        let (workspace, _) = self.workspaces.lock().unwrap()[workspace].clone();
        for (name, category) in names.iter().flat_map(|name| [(name, "terraform"), (name, "env")]) {
            let body =
                json!({"data": {"type": "vars", "attributes": {"key": name, "value": "root", "category": category}}});
            let path = format!("/api/v2/workspaces/{}/vars", workspace.id);
            self.plane.app.request(Method::POST, &path, &body).await.expect(201);
        }
    }

    async fn make_run(&self, workspace: &str) {
        let (workspace, configuration) = self.workspaces.lock().unwrap()[workspace].clone();
        self.plane.app.run(&workspace.id, &configuration, RunOptions::default()).await;
    }

    async fn unlink(&self, workspace: &str) {
        self.set_link(workspace, &Value::Null).await;
    }

    async fn link_elsewhere(&self, workspace: &str) {
        let body =
            json!({"data": {"type": "agent-pools", "attributes": {"name": format!("{}-foreign", self.space.name)}}});
        let pool = self.plane.app.request(Method::POST, "/api/iacp/v3/agent-pools", &body).await.json();
        self.set_link(workspace, &json!({"type": "agent-pools", "id": pool["data"]["id"]})).await;
    }

    async fn set_link(&self, workspace: &str, pool: &Value) {
        let (workspace, _) = self.workspaces.lock().unwrap()[workspace].clone();
        let path = format!("/api/iacp/v3/workspaces/{}", workspace.id);
        let relationships = json!({"agent-pool": {"data": pool}});
        let body = json!({"data": {"type": "workspaces", "id": workspace.id, "relationships": relationships}});
        self.plane.app.request(Method::PATCH, &path, &body).await.expect(200);
    }

    async fn is_still(&self, label: &str, time: Duration, most: usize) -> Result<(), Stuck> {
        let count = || self.recorder.writes().iter().filter(|write| write.label == label).count();
        let before = count();
        sleep(time).await;
        let written = count() - before;
        if written <= most { Ok(()) } else { Err(Stuck(format!("{written} × {label} in {time:?}"))) }
    }

    async fn forget(&self) {
        let app = &self.plane.app;
        let pools = app.get("/api/iacp/v3/agent-pools?page[size]=100").await.expect(200).json();
        for pool in pools["data"].as_array().unwrap() {
            if pool["attributes"]["name"].as_str().is_some_and(|name| name.starts_with(&self.space.name)) {
                let path = format!("/api/iacp/v3/agent-pools/{}", pool["id"].as_str().unwrap());
                app.request(Method::DELETE, &path, &Value::Null).await;
            }
        }
    }

    async fn delete_namespace(&self) {
        let path = format!("/api/v1/namespaces/{}", self.space.name);
        self.space.cluster.call(Method::DELETE, &path, JSON, &Value::Null).await.unwrap();
        for kind in [Kind::Secret, Kind::AgentPool, Kind::WorkspaceLink, Kind::Pod, Kind::NetworkPolicy] {
            for object in self.space.list(kind).await {
                self.space.delete(kind, object["metadata"]["name"].as_str().unwrap(), &Value::Null).await;
            }
        }
    }

    /// Waits for a goal.
    pub async fn wait(&self, goal: &Goal) -> Result<(), Stuck> {
        let start = Instant::now();
        let mut changes = self.mirror.changes();
        loop {
            changes.mark_unchanged();
            let missing = match self.reached(goal).await {
                Ok(()) => return Ok(()),
                Err(missing) => missing,
            };
            if start.elapsed() > PATIENCE {
                return Err(Stuck(format!("{goal:?}: {missing}")));
            }
            if let Goal::Gone(Kind::AgentPool, _) = goal {
                self.release_foreground().await;
            }
            drop(tokio::time::timeout(Duration::from_millis(150), changes.changed()).await);
        }
    }

    /// Waits until the pool `alpha` is so; the pool.
    pub async fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Arc<Value>, String> {
        let start = Instant::now();
        let mut changes = self.mirror.changes();
        loop {
            changes.mark_unchanged();
            let pool = self.mirror.get(Kind::AgentPool, "alpha");
            if is_so(&pool) {
                return Ok(pool);
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("{what}: not in time; {}", pool["status"]));
            }
            drop(tokio::time::timeout(Duration::from_millis(150), changes.changed()).await);
        }
    }

    /// The schedule's pools in the control plane, without what differs from one life to the next.
    pub async fn remote_pools(&self) -> Vec<Value> {
        let pools = self.plane.app.get("/api/iacp/v3/agent-pools?page[size]=100").await.expect(200).json();
        let ours =
            pools["data"].as_array().unwrap().iter().filter(|pool| {
                pool["attributes"]["name"].as_str().is_some_and(|name| name.starts_with(&self.space.name))
            });
        let wanted = ["name", "is-shared", "default", "run-settings"];
        let part = |pool: &Value| wanted.map(|name| (name.to_owned(), pool["attributes"][name].clone()));
        ours.map(|pool| Value::Object(part(pool).into_iter().collect())).collect()
    }

    /// Waits until the operator has looked at every pool so many times without writing anything or failing, and
    /// everything that is there is ready.
    pub async fn settle(&self, ticks: usize) -> Result<(), Stuck> {
        let start = Instant::now();
        loop {
            let kinds = self.kinds();
            self.room.collect_garbage(&kinds).await;
            let silent = self.is_silent(ticks).await?;
            let unready = if silent { self.unready().await } else { None };
            if silent && unready.is_none() && self.room.collect_garbage(&kinds).await == 0 {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                let writes = self.recorder.writes();
                let last: Vec<String> =
                    writes.iter().rev().take(6).map(|write| format!("{} {}", write.label, write.body)).collect();
                return Err(Stuck(format!(
                    "not settled; not ready: {unready:?}; the last writes, newest first:\n  {}",
                    last.join("\n  ")
                )));
            }
        }
    }

    /// Whether nothing is written and nothing fails while every pool is visited so often, and Pods are not about to end.
    async fn is_silent(&self, ticks: usize) -> Result<bool, Stuck> {
        let (before, errors) = (self.recorder.written(), self.log.errors());
        let pools = self.mirror.all(Kind::AgentPool).len();
        let start = Instant::now();
        // What was begun before may have seen what was there before.
        let mut reads = None;
        loop {
            sleep(Duration::from_millis(50)).await;
            if self.recorder.written() != before || self.recorder.is_busy() {
                return Ok(false);
            }
            if self.log.visits() == 0 {
                let reads = *reads.get_or_insert_with(|| self.reads());
                if self.reads() >= reads + ticks * pools && self.room.is_at_rest() {
                    return Ok(self.recorder.written() == before && self.log.errors() == errors);
                }
            }
            if start.elapsed() > PATIENCE {
                return Err(Stuck("the operator looks at nothing any more, or a Pod does not end".to_owned()));
            }
        }
    }

    /// O1: an operator that is started now, and looks at every pool so many times, writes nothing: no Event either. At
    /// first it may write the numbers that the one before it would have written a little later.
    pub async fn stays_still(&self, ticks: usize) -> Result<(), Stuck> {
        let pools = self.mirror.all(Kind::AgentPool).len();
        if pools == 0 {
            return Ok(());
        }
        self.stop_operators().await;
        self.start(&Settings { resync: QUICK, ..self.settings.clone() });
        self.settle(1).await?;
        let (begun, reads) = (self.recorder.writes().len(), self.reads());
        let start = Instant::now();
        while self.reads() < reads + ticks * pools {
            if start.elapsed() > PATIENCE {
                return Err(Stuck(format!(
                    "only {} of {ticks} passes in {PATIENCE:?}",
                    (self.reads() - reads) / pools
                )));
            }
            sleep(Duration::from_millis(100)).await;
        }
        let writes = self.recorder.writes().split_off(begun);
        match writes.first() {
            None => Ok(()),
            Some(first) => Err(Stuck(format!(
                "O1: {} writes when all was done, the first: {} {}",
                writes.len(),
                first.line(),
                first.body
            ))),
        }
    }

    /// Kinds that there may be objects of.
    pub fn kinds(&self) -> Vec<Kind> {
        let written = self.recorder.kinds();
        let there = |kind: &Kind| match kind {
            Kind::AgentPool | Kind::Secret | Kind::Event => true,
            Kind::WorkspaceLink | Kind::Pod => self.mirror.follows(*kind),
            other => written.contains(other),
        };
        Kind::ALL.into_iter().filter(there).collect()
    }

    /// Ends everything and removes what is there.
    pub async fn close(self) {
        self.stop_operators().await;
        self.allow().await;
        let left = self.mirror.names(&[Kind::WorkspaceLink, Kind::AgentPool]);
        let space = self.space.clone();
        drop(self);
        space.clear(&left).await;
    }

    /// Only full passes over pools list their tokens.
    fn reads(&self) -> usize {
        self.recorder.calls(Side::ControlPlane, Class::Read, "control-plane GET agent-pools/*/access-tokens")
    }

    /// As the API server has it now, since what is heard of it may be late; but that is only worth a call when what was
    /// heard is ready.
    async fn unready(&self) -> Option<Value> {
        let kinds = [Kind::AgentPool, Kind::WorkspaceLink].into_iter().filter(|kind| self.mirror.follows(*kind));
        for kind in kinds {
            if let Some(object) = self.mirror.all(kind).iter().find(|object| !is_ready(object)) {
                return Some(object["status"].clone());
            }
            let objects = self.space.list(kind).await;
            if let Some(object) = objects.into_iter().find(|object| !is_ready(object)) {
                return Some(object["status"].clone());
            }
        }
        None
    }

    /// What a garbage collector does for somebody who waits for dependents, or leaves them.
    async fn release_foreground(&self) {
        let kinds = self.kinds();
        self.room.collect_garbage(&kinds).await;
        for pool in self.mirror.all(Kind::AgentPool) {
            let finalizers = pool["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            let ours = |word: &Value| *word != "foregroundDeletion" && *word != "orphan";
            if pool["metadata"]["deletionTimestamp"].is_null() || finalizers.iter().all(ours) {
                continue;
            }
            if finalizers.iter().any(|word| *word == "orphan") {
                self.room.orphan(&pool, &kinds).await;
            }
            let kept: Vec<&Value> = finalizers.iter().filter(|word| ours(word)).collect();
            let name = pool["metadata"]["name"].as_str().unwrap_or_default();
            let version = &pool["metadata"]["resourceVersion"];
            let patch = json!({"metadata": {"resourceVersion": version, "finalizers": kept}});
            // Err: somebody else wrote; then the next round.
            drop(self.space.merge(Kind::AgentPool, name, "", &patch).await);
        }
    }
}

/// Ready for its latest generation, and not on its way out.
pub fn is_ready(object: &Value) -> bool {
    let status = &object["status"];
    let ready =
        status["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
    ready
        && status["observedGeneration"] == object["metadata"]["generation"]
        && object["metadata"]["deletionTimestamp"].is_null()
}

/// Restarts the operator when a fault has ended it.
async fn watch_over(
    cluster: Cluster,
    settings: Settings,
    recorder: Arc<Recorder>,
    log: Log,
    operators: Arc<Mutex<Vec<Instance>>>,
) {
    loop {
        recorder.crashed().await;
        let dead = std::mem::take(&mut *operators.lock().unwrap());
        for operator in dead {
            operator.alive.store(false, Ordering::SeqCst);
            operator.kill().await;
        }
        recorder.revive();
        operators.lock().unwrap().push(operator(&cluster, &settings, &recorder, &log));
    }
}
