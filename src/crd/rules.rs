//! The rules of the definitions' CEL expressions in Rust: where no API server checks a manifest,
//! these do, with the same words. Pure.

use super::{
    AgentPoolSpec, Violation, WorkspaceLinkSpec,
    agent_pool::{RunUser, Scope, ScopeType},
    agents::{AgentMode, Agents},
    common::{ControlPlaneRef, Span},
};

const HOUR: u64 = 3600;

/// What an API server would refuse in a new AgentPool.
#[must_use]
pub fn pool(spec: &AgentPoolSpec) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut rule = |broken: bool, path: &str, message: &str| {
        if broken {
            found.push(Violation::new(path, message));
        }
    };
    let Scope { type_, environment } = &spec.scope;
    let of_environment = *type_ == ScopeType::Environment;
    rule(
        of_environment != environment.is_some(),
        "spec.scope.environment",
        "environment is required with type Environment and not allowed with type Account",
    );
    rule(
        spec.allowed_environments.is_some() && of_environment,
        "spec.allowedEnvironments",
        "allowedEnvironments belongs to scope Account: a pool of an environment serves that one only",
    );
    rule(spec.default && of_environment, "spec.default", "default belongs to scope Account");
    let restricted = spec.allowed_environments.as_ref().is_some_and(|names| !names.iter().any(|name| name.0 == "*"));
    rule(
        spec.default && restricted,
        "spec.default",
        "the default pool serves every environment: leave allowedEnvironments out or name \"*\"",
    );
    let token = &spec.token;
    let ttl = token.ttl.seconds();
    rule(!(HOUR..=8760 * HOUR).contains(&ttl), "spec.token.ttl", "ttl is from 1h to 8760h");
    rule(token.rotate_before.seconds() >= ttl, "spec.token.rotateBefore", "rotateBefore must be shorter than ttl");
    rule(token.overlap.seconds() >= ttl, "spec.token.overlap", "overlap must be shorter than ttl");
    rule(
        spec.runs.user == RunUser::Root && spec.runs.acknowledge_root != Some(true),
        "spec.runs.user",
        "user Root weakens the isolation of every run: set acknowledgeRoot: true as well",
    );
    for (path, span) in
        [("spec.runs.timeouts.plan", &spec.runs.timeouts.plan), ("spec.runs.timeouts.apply", &spec.runs.timeouts.apply)]
    {
        rule(!(60..=168 * HOUR).contains(&span.seconds()), path, "a time-out is from 1m to 168h");
    }
    agents(&spec.agents, &mut found);
    control_plane(spec.control_plane.as_deref(), &mut found);
    found
}

fn agents(agents: &Agents, found: &mut Vec<Violation>) {
    // No `..`: a new field does not compile until somebody says in which modes it has a meaning.
    let Agents {
        mode,
        min_idle,
        max_agents,
        scale_down,
        replicas,
        concurrency,
        preset,
        image,
        drain_timeout,
        node_selector,
        tolerations,
        affinity,
        resources,
        labels,
        annotations,
        env,
        image_pull_secrets,
        service_account_name,
        overrides,
    } = agents;
    let mut rule = |broken: bool, field: &str, message: &str| {
        if broken {
            found.push(Violation::new(format!("spec.agents.{field}"), message));
        }
    };
    let ephemeral_only = "minIdle, maxAgents and scaleDown belong to mode Ephemeral";
    let ephemeral = *mode == AgentMode::Ephemeral;
    rule(!ephemeral && min_idle.is_some(), "minIdle", ephemeral_only);
    rule(!ephemeral && max_agents.is_some(), "maxAgents", ephemeral_only);
    rule(!ephemeral && scale_down.is_some(), "scaleDown", ephemeral_only);
    let scalable = matches!(mode, AgentMode::Ephemeral | AgentMode::Deployment);
    rule(!scalable && replicas.is_some(), "replicas", "replicas belongs to modes Ephemeral and Deployment");
    rule(*mode != AgentMode::Node && concurrency.is_some(), "concurrency", "concurrency belongs to mode Node");
    let deployment = *mode == AgentMode::Deployment;
    rule(!deployment && preset.is_some(), "preset", "preset belongs to mode Deployment");
    rule(deployment && preset.is_none() && image.is_none(), "image", "mode Deployment needs a preset or an image");
    rule(
        *mode == AgentMode::Node && node_selector.is_empty(),
        "nodeSelector",
        "mode Node needs a nodeSelector: the agents hold the container engine of the nodes that it chooses",
    );
    rule(
        min_idle.unwrap_or(1) > max_agents.unwrap_or(20),
        "minIdle",
        "minIdle must not exceed maxAgents (20 when absent)",
    );
    let too_long = |span: &Option<Span>, hours: u64| span.as_ref().is_some_and(|span| span.seconds() > hours * HOUR);
    rule(too_long(drain_timeout, 168), "drainTimeout", "drainTimeout is at most 168h");
    let stabilization = scale_down.as_ref().and_then(|scale_down| scale_down.stabilization.clone());
    rule(too_long(&stabilization, 24), "scaleDown.stabilization", "stabilization is at most 24h");
    if *mode == AgentMode::External {
        let set = [
            (!node_selector.is_empty(), "nodeSelector"),
            (!tolerations.is_empty(), "tolerations"),
            (affinity.is_some(), "affinity"),
            (resources.is_some(), "resources"),
            (!labels.is_empty(), "labels"),
            (!annotations.is_empty(), "annotations"),
            (!env.is_empty(), "env"),
            (!image_pull_secrets.is_empty(), "imagePullSecrets"),
            (service_account_name.is_some(), "serviceAccountName"),
            (image.is_some(), "image"),
            (drain_timeout.is_some(), "drainTimeout"),
            (!overrides.is_empty(), "overrides"),
        ];
        for (set, field) in set {
            rule(set, field, "mode External runs no agents in this cluster: leave everything but mode out");
        }
    }
}

fn control_plane(control_plane: Option<&ControlPlaneRef>, found: &mut Vec<Violation>) {
    let Some(control_plane) = control_plane else { return };
    if control_plane.url.is_some() == control_plane.url_from.is_some() {
        found.push(Violation::new("spec.controlPlane", "set exactly one of url and urlFrom"));
    }
    if let Some(source) = &control_plane.url_from
        && source.config_map_key_ref.is_some() == source.secret_key_ref.is_some()
    {
        let message = "set exactly one of configMapKeyRef and secretKeyRef";
        found.push(Violation::new("spec.controlPlane.urlFrom", message));
    }
}

/// What an API server would refuse in a change of an AgentPool.
#[must_use]
pub fn pool_change(old: &AgentPoolSpec, new: &AgentPoolSpec) -> Vec<Violation> {
    if old.scope == new.scope {
        return Vec::new();
    }
    vec![Violation::new("spec.scope", "scope is immutable: delete this AgentPool and create another")]
}

/// What an API server would refuse in a new WorkspaceLink.
#[must_use]
pub fn link(spec: &WorkspaceLinkSpec) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut rule = |broken: bool, path: &str, message: &str| {
        if broken {
            found.push(Violation::new(path, message));
        }
    };
    rule(spec.pool_ref.is_some() == spec.pool.is_some(), "spec.poolRef", "set exactly one of poolRef and pool");
    rule(
        spec.control_plane.is_some() && spec.pool.is_none(),
        "spec.controlPlane",
        "with poolRef the control plane is the AgentPool's: leave controlPlane out",
    );
    if let Some(pool) = &spec.pool {
        rule(pool.id.is_some() == pool.name.is_some(), "spec.pool", "set exactly one of id and name");
    }
    let workspace = &spec.workspace;
    let named = (workspace.environment.is_some(), workspace.name.is_some());
    let complete = if workspace.id.is_some() { named == (false, false) } else { named == (true, true) };
    rule(!complete, "spec.workspace", "set either id, or environment and name");
    control_plane(spec.control_plane.as_deref(), &mut found);
    found
}

/// What an API server would refuse in a change of a WorkspaceLink.
#[must_use]
pub fn link_change(old: &WorkspaceLinkSpec, new: &WorkspaceLinkSpec) -> Vec<Violation> {
    let moved = [
        (old.pool_ref != new.pool_ref, "poolRef"),
        (old.pool != new.pool, "pool"),
        (old.workspace != new.workspace, "workspace"),
    ];
    let changed = moved.into_iter().filter(|(changed, _)| *changed);
    changed
        .map(|(_, field)| {
            Violation::new(
                format!("spec.{field}"),
                format!("{field} is immutable: delete this link and create another"),
            )
        })
        .collect()
}
