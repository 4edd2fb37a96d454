//! What somebody does to a cluster, as data. `$NS` in manifests becomes the schedule's own name: the namespace, the
//! environment, and the start of pools' names in the control plane.

use serde_json::{Value, json};

use super::{cluster::Kind, plan::Side};

/// One thing that somebody does, or waits for.
#[derive(Debug, Clone)]
pub enum Step {
    Apply(Value),
    /// Applied, but the API server says no.
    Refused(Value),
    Merge(Kind, &'static str, Value),
    /// `kubectl scale`
    Scale(&'static str, i64),
    /// With what is sent along.
    Delete(Kind, &'static str, Value),
    Wait(Goal),
    /// Seconds pass.
    Advance(i64),
    /// There is a workspace of this name.
    Workspace(&'static str),
    /// Its user sets variables of these names, of both categories.
    Variables(&'static str, &'static [&'static str]),
    /// Its user asks for a plan.
    Run(&'static str),
    /// From now on jobs may end, or not.
    Finish(bool),
    /// Somebody unlinks the workspace in the control plane.
    Unlink(&'static str),
    /// The operator ends and another one starts.
    Replace,
    Tamper(Tamper),
    /// A call of an administrator of the cluster: method, path, body.
    Call(&'static str, &'static str, Value),
    /// Somebody links the workspace to another pool in the control plane.
    LinkElsewhere(&'static str),
    /// From now on, for so many milliseconds, no call of the operator arrives there.
    Down(Side, u64),
    /// The namespace is deleted, and a controller removes what is in it.
    DeleteNamespace,
    /// For so many milliseconds there are at most so many writes of that label.
    Still(&'static str, u64, usize),
    /// What is left in the control plane is nobody's any more.
    Forget,
    /// From now on an admission webhook answers every new Pod of the namespace with this status.
    Deny(u16),
    /// The webhook goes.
    Allow,
}

/// What must come about.
#[derive(Debug, Clone, PartialEq)]
pub enum Goal {
    /// Ready, for its latest generation.
    Ready(Kind, &'static str),
    /// A condition has this status and reason.
    Is(Kind, &'static str, &'static str, &'static str, &'static str),
    Gone(Kind, &'static str),
    /// It says that it is not ready, with a reason.
    NotReady(&'static str),
    /// So many Pods run, each with its agent, and no other is there.
    Agents(usize),
    /// Every Pod has this label.
    Labelled(&'static str, &'static str),
    Busy(usize),
    /// So many jobs were done.
    Done(usize),
    /// The workspace is linked to the pool of that AgentPool; empty: to none.
    Linked(&'static str, &'static str),
    /// The pool's Secret has another token than when this was asked last.
    OtherToken(&'static str),
    /// The pool has this name in the control plane.
    Named(&'static str, &'static str),
    /// A condition's message contains this.
    Says(&'static str, &'static str, &'static str),
    /// A field of an object, by its path.
    Field(Kind, &'static str, &'static str, Value),
}

/// Somebody meddles.
#[derive(Debug, Clone, PartialEq)]
pub enum Tamper {
    WipeStatus(Kind, &'static str),
    /// All labels of all objects of the kind go.
    StripLabels(Kind),
    DeleteAll(Kind),
    /// The token in the Secret goes, or becomes another.
    EmptySecret,
    ForgeSecret,
    /// Merged into the first object of the kind.
    Edit(Kind, Value),
    /// In the control plane:
    DeletePool(&'static str),
    RenamePool(&'static str),
    RevokeTokens(&'static str),
    ForeignPool(&'static str),
}

#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: String,
    pub steps: Vec<Step>,
    /// Operators at a time.
    pub operators: usize,
}

/// A pool with these agents; `name` is made the schedule's own.
pub fn pool(name: &str, agents: &Value) -> Value {
    json!({
        "apiVersion": "terrapool.dev/v1alpha1",
        "kind": "AgentPool",
        "metadata": {"name": name, "namespace": "$NS"},
        "spec": {
            "name": format!("$NS-{name}"),
            "token": {"overlap": "0s"},
            "agents": agents,
        },
    })
}

/// The same with something else in its spec.
pub fn with(mut manifest: Value, path: &str, value: Value) -> Value {
    let (parent, field) = path.rsplit_once('/').unwrap();
    manifest.pointer_mut(parent).unwrap()[field] = value;
    manifest
}

pub fn external() -> Value {
    json!({"mode": "External"})
}

/// So many agents that wait.
pub fn idle(count: i64) -> Value {
    json!({"mode": "Ephemeral", "minIdle": count, "maxAgents": 8, "scaleDown": {"stabilization": "0s"}})
}

pub fn link(name: &str, pool: &str, workspace: &str) -> Value {
    json!({
        "apiVersion": "terrapool.dev/v1alpha1",
        "kind": "WorkspaceLink",
        "metadata": {"name": name, "namespace": "$NS"},
        "spec": {"poolRef": {"name": pool}, "workspace": {"environment": "$NS", "name": workspace}},
    })
}

fn ready(name: &'static str) -> Step {
    Step::Wait(Goal::Ready(Kind::AgentPool, name))
}

fn delete(kind: Kind, name: &'static str) -> Step {
    Step::Delete(kind, name, Value::Null)
}

fn gone(kind: Kind, name: &'static str) -> Step {
    Step::Wait(Goal::Gone(kind, name))
}

fn agents(count: usize) -> Step {
    Step::Wait(Goal::Agents(count))
}

/// S1 to S12 of the fault suite, the two modes that these do not touch, and a pool that is served from two sides.
pub fn all() -> Vec<Scenario> {
    use Kind::{AgentPool, WorkspaceLink};
    let one = |name: &'static str, steps: Vec<Step>| Scenario { name: name.to_owned(), steps, operators: 1 };
    let replicas = |count: i64| json!({"mode": "Ephemeral", "replicas": count, "scaleDown": {"stabilization": "0s"}});
    let deletion = |name: &'static str| vec![delete(AgentPool, name), gone(AgentPool, name)];
    let rolled = with(pool("alpha", &idle(1)), "/spec/agents/labels", json!({"team": "b"}));
    let environment =
        with(pool("alpha", &external()), "/spec/scope", json!({"type": "Environment", "environment": "$NS"}));
    let node = |slots: i64| json!({"mode": "Node", "concurrency": slots, "nodeSelector": {"terrapool.dev/test": "no"}});
    let scalr = |count: i64| json!({"mode": "Deployment", "preset": "Scalr", "replicas": count});
    let joined = with(pool("beta", &external()), "/spec/name", json!("$NS-alpha"));
    let joined = with(joined, "/spec/adoptionPolicy", json!("Join"));
    let rotating =
        with(pool("alpha", &external()), "/spec/token", json!({"ttl": "24h", "rotateBefore": "4h", "overlap": "1h"}));
    vec![
        one("S01-create", [vec![Step::Apply(pool("alpha", &external())), ready("alpha")], deletion("alpha")].concat()),
        one("S02-five-agents", vec![Step::Apply(pool("alpha", &idle(5))), ready("alpha"), agents(5)]),
        one(
            "S03-edit-template",
            vec![
                Step::Apply(pool("alpha", &idle(1))),
                ready("alpha"),
                agents(1),
                Step::Apply(rolled),
                Step::Wait(Goal::Labelled("team", "b")),
                agents(1),
                ready("alpha"),
            ],
        ),
        one(
            "S04-scale",
            vec![
                Step::Apply(pool("alpha", &idle(1))),
                agents(1),
                Step::Merge(AgentPool, "alpha", json!({"spec": {"agents": {"minIdle": 3}}})),
                agents(3),
                Step::Merge(AgentPool, "alpha", json!({"spec": {"agents": {"minIdle": 1}}})),
                agents(1),
                ready("alpha"),
            ],
        ),
        one(
            "S05-to-zero-and-back",
            vec![
                Step::Apply(pool("alpha", &replicas(2))),
                agents(2),
                Step::Scale("alpha", 0),
                agents(0),
                Step::Scale("alpha", 2),
                agents(2),
                ready("alpha"),
            ],
        ),
        one(
            "S06-rotate",
            vec![
                Step::Apply(rotating),
                ready("alpha"),
                Step::Wait(Goal::OtherToken("alpha")),
                Step::Advance(20 * 3600),
                Step::Wait(Goal::OtherToken("alpha")),
                Step::Advance(3600),
                ready("alpha"),
            ],
        ),
        one(
            "S07-rename-and-refusals",
            vec![
                Step::Apply(pool("alpha", &external())),
                ready("alpha"),
                Step::Refused(environment),
                Step::Merge(AgentPool, "alpha", json!({"spec": {"name": "$NS-gamma"}})),
                Step::Wait(Goal::Named("alpha", "$NS-gamma")),
                ready("alpha"),
            ],
        ),
        one(
            "S08-link",
            vec![
                Step::Workspace("app"),
                Step::Apply(link("app", "alpha", "app")),
                Step::Apply(pool("alpha", &external())),
                ready("alpha"),
                Step::Wait(Goal::Ready(WorkspaceLink, "app")),
                Step::Wait(Goal::Linked("app", "alpha")),
                delete(WorkspaceLink, "app"),
                gone(WorkspaceLink, "app"),
                Step::Wait(Goal::Linked("app", "")),
            ],
        ),
        one(
            "S09-move-link",
            vec![
                Step::Workspace("app"),
                Step::Apply(pool("alpha", &external())),
                Step::Apply(pool("beta", &external())),
                Step::Apply(link("app-a", "alpha", "app")),
                Step::Wait(Goal::Ready(WorkspaceLink, "app-a")),
                Step::Apply(link("app-b", "beta", "app")),
                delete(WorkspaceLink, "app-a"),
                Step::Wait(Goal::Ready(WorkspaceLink, "app-b")),
                Step::Wait(Goal::Linked("app", "beta")),
                gone(WorkspaceLink, "app-a"),
                ready("alpha"),
                ready("beta"),
            ],
        ),
        one(
            "S10-delete-while-linked",
            vec![
                Step::Workspace("app"),
                Step::Apply(pool("alpha", &external())),
                Step::Apply(link("app", "alpha", "app")),
                Step::Wait(Goal::Ready(WorkspaceLink, "app")),
                delete(AgentPool, "alpha"),
                Step::Wait(Goal::Is(AgentPool, "alpha", "DeletionBlocked", "True", "LinkedWorkspaces")),
                delete(WorkspaceLink, "app"),
                gone(WorkspaceLink, "app"),
                gone(AgentPool, "alpha"),
            ],
        ),
        one(
            "S11-delete-while-busy",
            vec![
                Step::Workspace("app"),
                Step::Apply(pool("alpha", &idle(1))),
                Step::Apply(link("app", "alpha", "app")),
                Step::Wait(Goal::Ready(WorkspaceLink, "app")),
                agents(1),
                Step::Run("app"),
                Step::Wait(Goal::Busy(1)),
                delete(WorkspaceLink, "app"),
                gone(WorkspaceLink, "app"),
                delete(AgentPool, "alpha"),
                Step::Wait(Goal::Field(AgentPool, "alpha", "/metadata/generation", json!(2))),
                Step::Finish(true),
                Step::Wait(Goal::Done(1)),
                gone(AgentPool, "alpha"),
            ],
        ),
        one(
            "S12-upgrade",
            vec![
                Step::Apply(pool("alpha", &idle(1))),
                agents(1),
                ready("alpha"),
                // As an older operator would have left it.
                Step::Tamper(Tamper::StripLabels(Kind::NetworkPolicy)),
                Step::Merge(AgentPool, "alpha", json!({"status": null})),
                Step::Replace,
                ready("alpha"),
                agents(1),
            ],
        ),
        one(
            "S13-nodes",
            vec![
                Step::Apply(pool("alpha", &node(2))),
                Step::Wait(Goal::Field(Kind::DaemonSet, "*", "/status/numberReady", json!(1))),
                Step::Apply(pool("alpha", &node(3))),
                Step::Wait(Goal::Field(Kind::DaemonSet, "*", "/status/observedGeneration", json!(2))),
                delete(AgentPool, "alpha"),
                gone(AgentPool, "alpha"),
            ],
        ),
        one(
            "S14-deployment",
            vec![
                Step::Apply(pool("alpha", &scalr(1))),
                Step::Wait(Goal::Field(Kind::Deployment, "*", "/spec/replicas", json!(1))),
                Step::Scale("alpha", 3),
                Step::Wait(Goal::Field(Kind::Deployment, "*", "/spec/replicas", json!(3))),
            ],
        ),
        one(
            "S15-join",
            vec![
                Step::Workspace("app"),
                Step::Apply(pool("alpha", &external())),
                ready("alpha"),
                Step::Apply(joined),
                ready("beta"),
                Step::Apply(link("app", "beta", "app")),
                Step::Wait(Goal::Ready(WorkspaceLink, "app")),
                Step::Wait(Goal::Linked("app", "alpha")),
                // The pool goes on without it, and the link can still be taken back.
                delete(AgentPool, "beta"),
                gone(AgentPool, "beta"),
                delete(WorkspaceLink, "app"),
                gone(WorkspaceLink, "app"),
                Step::Wait(Goal::Linked("app", "")),
                ready("alpha"),
            ],
        ),
    ]
}

/// Where the meddling starts: everything is in order.
pub fn bases() -> Vec<Scenario> {
    let one = |name: &'static str, steps: Vec<Step>| Scenario { name: name.to_owned(), steps, operators: 1 };
    let node = json!({"mode": "Node", "nodeSelector": {"terrapool.dev/test": "no"}});
    let scalr = json!({"mode": "Deployment", "preset": "Scalr", "replicas": 2});
    vec![
        one("B0-empty", vec![Step::Workspace("app")]),
        one("B1-pool", vec![Step::Apply(pool("alpha", &external())), ready("alpha")]),
        one(
            "B2-linked",
            vec![
                Step::Workspace("app"),
                Step::Apply(pool("alpha", &external())),
                Step::Apply(link("app", "alpha", "app")),
                ready("alpha"),
                Step::Wait(Goal::Ready(Kind::WorkspaceLink, "app")),
            ],
        ),
        one("B3-agents", vec![Step::Apply(pool("alpha", &idle(2))), agents(2), ready("alpha")]),
        one(
            "B4-nodes",
            vec![
                Step::Apply(pool("alpha", &node)),
                Step::Wait(Goal::Field(Kind::DaemonSet, "*", "/status/observedGeneration", json!(1))),
            ],
        ),
        one(
            "B5-deployment",
            vec![
                Step::Apply(pool("alpha", &scalr)),
                Step::Wait(Goal::Field(Kind::Deployment, "*", "/spec/replicas", json!(2))),
            ],
        ),
    ]
}

/// The scenario of that name.
pub fn find(name: &str) -> Scenario {
    all()
        .into_iter()
        .chain(bases())
        .find(|scenario| scenario.name == name)
        .unwrap_or_else(|| panic!("no scenario {name}"))
}

/// The manifest with the schedule's name in it.
pub fn owned_by(manifest: &Value, namespace: &str) -> Value {
    serde_json::from_str(&manifest.to_string().replace("$NS", namespace)).unwrap()
}
