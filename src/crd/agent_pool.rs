//! `AgentPool`: a pool in the control plane, its token, and the agents that serve it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    agents::Agents,
    common::{ControlPlaneRef, Image, Span},
    pods::{PlainEnv, Resources},
};

/// An AgentPool is a pool of agents in the control plane, with the agents that serve it.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "terrapool.dev",
    version = "v1alpha1",
    kind = "AgentPool",
    namespaced,
    status = "AgentPoolStatus",
    shortname = "ap",
    category = "terrapool",
    derive = "PartialEq",
    doc = "An AgentPool is a pool of agents in the control plane, with the agents that serve it.",
    scale(
        spec_replicas_path = ".spec.agents.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    validation = ("self.metadata.name.size() <= 63", "the name becomes a label: at most 63 characters"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Agents", type_ = "string", json_path = ".status.agents.summary"),
    printcolumn(name = "Busy", type_ = "integer", json_path = ".status.agents.busy"),
    printcolumn(name = "Queued", type_ = "integer", json_path = ".status.queue.depth"),
    printcolumn(name = "Scope", type_ = "string", json_path = ".spec.scope.type"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Pool-ID", type_ = "string", json_path = ".status.poolID", priority = 1),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.agents.version", priority = 1),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(name = "Last-Scale", type_ = "date", json_path = ".status.agents.lastScaleTime", priority = 1)
)]
#[x_kube(
    validation = ("!has(self.allowedEnvironments) || self.scope.type == 'Account'",
        "allowedEnvironments belongs to scope Account: a pool of an environment serves that one only"),
    validation = ("!self.default || self.scope.type == 'Account'", "default belongs to scope Account"),
    validation = ("!self.default || !has(self.allowedEnvironments) || '*' in self.allowedEnvironments",
        "the default pool serves every environment: leave allowedEnvironments out or name \"*\""),
)]
pub struct AgentPoolSpec {
    /// The control plane. Without it the operator's own is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<Box<ControlPlaneRef>>,
    /// Name of the pool in the control plane; the name of this object when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub name: Option<String>,
    /// Whose workspaces may use the pool: those of the whole account, or those of one environment. It is immutable.
    #[serde(default)]
    #[x_kube(validation = ("self == oldSelf", "scope is immutable: delete this AgentPool and create another"))]
    pub scope: Scope,
    /// Names of the environments whose workspaces may use a pool of scope Account; "*" or nothing means all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[schemars(length(min = 1, max = 256))]
    pub allowed_environments: Option<Vec<EnvironmentName>>,
    /// Makes this the account's default pool: it runs every workspace that has no pool of its own.
    #[serde(default)]
    pub default: bool,
    /// What to do when the control plane has a pool of that name already: Never touches it, ByName takes it over
    /// unless another AgentPool owns it, Join adds a token and agents to it and leaves the pool itself to its owner: so
    /// one pool is served from several clusters.
    #[serde(default)]
    pub adoption_policy: AdoptionPolicy,
    /// What becomes of the pool in the control plane when this object is deleted.
    #[serde(default)]
    pub deletion_policy: PoolDeletion,
    /// The token that the agents register with.
    #[serde(default)]
    pub token: TokenSpec,
    /// The agents.
    #[serde(default)]
    pub agents: Agents,
    /// How the runs are run.
    #[serde(default)]
    pub runs: Runs,
}

/// The name of one environment, or "*" for all of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct EnvironmentName(#[schemars(length(min = 1, max = 255))] pub String);

/// Whose workspaces may use a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = ("(self.type == 'Environment') == has(self.environment)",
    "environment is required with type Environment and not allowed with type Account"))]
pub struct Scope {
    /// Account: workspaces of every environment, or of the allowed ones. Environment: workspaces of one environment.
    #[serde(rename = "type", default)]
    pub type_: ScopeType,
    /// Name of the environment, with type Environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub environment: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ScopeType {
    #[default]
    Account,
    Environment,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AdoptionPolicy {
    #[default]
    Never,
    ByName,
    Join,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PoolDeletion {
    #[default]
    Delete,
    Retain,
}

/// The pool token's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("duration(self.rotateBefore) < duration(self.ttl)", "rotateBefore must be shorter than ttl"),
    validation = ("duration(self.overlap) < duration(self.ttl)", "overlap must be shorter than ttl"),
)]
pub struct TokenSpec {
    /// How long a token is valid, from 1h to 8760h.
    #[serde(default = "TokenSpec::default_ttl")]
    #[x_kube(validation = ("duration(self) >= duration('1h') && duration(self) <= duration('8760h')", "ttl is from 1h to 8760h"))]
    pub ttl: Span,
    /// How long before a token's end it is replaced by a new one.
    #[serde(default = "TokenSpec::default_rotate_before")]
    pub rotate_before: Span,
    /// How long the old token stays valid beside the new one.
    #[serde(default = "TokenSpec::default_overlap")]
    pub overlap: Span,
    /// Name of the Secret that holds the token; made from this object's name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub secret_name: Option<String>,
}

impl TokenSpec {
    fn default_ttl() -> Span {
        Span::from_hours(720)
    }

    fn default_rotate_before() -> Span {
        Span::from_hours(168)
    }

    fn default_overlap() -> Span {
        Span::from_hours(1)
    }
}

impl Default for TokenSpec {
    fn default() -> Self {
        Self {
            ttl: Self::default_ttl(),
            rotate_before: Self::default_rotate_before(),
            overlap: Self::default_overlap(),
            secret_name: None,
        }
    }
}

/// How a pool's runs are run. Workspaces cannot change any of it, except for choosing an allowed image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.user != 'Root' || (has(self.acknowledgeRoot) && self.acknowledgeRoot)",
    "user Root weakens the isolation of every run: set acknowledgeRoot: true as well"))]
pub struct Runs {
    /// Image of the run container, with a tag or a digest; any image works. Absent: in Pods
    /// docker.io/hashicorp/terraform:1.11.4, elsewhere the agent's own default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// Images that a workspace may choose instead: references, or prefixes that end in *.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[schemars(length(max = 64))]
    pub allowed_images: Vec<ImagePattern>,
    /// The user of the run container: NonRoot, or Root for runs that install packages.
    #[serde(default)]
    pub user: RunUser,
    /// Says that somebody has thought about user Root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledge_root: Option<bool>,
    /// Resources of the run container; when absent, 100m of CPU and 128Mi of memory, and at most 2 CPUs and 2Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Variables of every run. Not for secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 128))]
    pub env: Vec<PlainEnv>,
    /// How long a stage may take.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// What the run container may reach.
    #[serde(default)]
    pub network: Network,
}

/// An image reference, or a prefix of some that ends in *.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct ImagePattern(
    #[schemars(length(max = 512), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*\*?$"))] pub String,
);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RunUser {
    #[default]
    NonRoot,
    Root,
}

/// How long a stage may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct Timeouts {
    /// Of a plan, from 1m to 168h.
    #[serde(default = "Timeouts::default_plan")]
    #[x_kube(validation = ("duration(self) >= duration('1m') && duration(self) <= duration('168h')", "a time-out is from 1m to 168h"))]
    pub plan: Span,
    /// Of an apply, from 1m to 168h.
    #[serde(default = "Timeouts::default_apply")]
    #[x_kube(validation = ("duration(self) >= duration('1m') && duration(self) <= duration('168h')", "a time-out is from 1m to 168h"))]
    pub apply: Span,
}

impl Timeouts {
    fn default_plan() -> Span {
        Span::from_hours(2)
    }

    fn default_apply() -> Span {
        Span::from_hours(24)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { plan: Self::default_plan(), apply: Self::default_apply() }
    }
}

/// What a run container may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Keeps runs away from the cloud's metadata addresses.
    #[serde(default = "Network::default_block_metadata")]
    pub block_metadata: bool,
    /// Networks that runs may reach, as 10.0.0.0/8; absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[schemars(length(max = 64))]
    pub egress: Option<Vec<Cidr>>,
}

/// A network, as 10.0.0.0/8 or 2001:db8::/32.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Cidr(#[schemars(length(max = 43), regex(pattern = r"^[0-9a-fA-F:.]+/[0-9]{1,3}$"))] pub String);

impl Network {
    fn default_block_metadata() -> bool {
        true
    }
}

impl Default for Network {
    fn default() -> Self {
        Self { block_metadata: true, egress: None }
    }
}

/// What was last seen of an AgentPool. A cache: losing it does no harm.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentPoolStatus {
    /// Generation of the spec that this status is about; -1 before the first visit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Identifier of the pool in the control plane.
    #[serde(default, rename = "poolID", skip_serializing_if = "Option::is_none")]
    pub pool_id: Option<String>,
    /// What is known, by condition type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The agents by what they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<AgentsStatus>,
    /// What waits for an agent. Written at a coarse interval, never for each change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueStatus>,
    /// The token that the Secret holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenStatus>,
    /// Number of workspaces that are linked to the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linked_workspaces: Option<i64>,
    /// Number of agents, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Label selector of the agents' Pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
}

/// The agents by what they do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentsStatus {
    /// Agents that there should be.
    pub desired: i32,
    /// Agents that are idle or busy.
    pub ready: i32,
    /// Agents that run something.
    pub busy: i32,
    /// Agents that wait for something to run.
    pub idle: i32,
    /// Agents that have not been heard of for 30 seconds.
    pub offline: i32,
    /// Ready and desired agents, as 2/3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// Version of the agents; the lowest when they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// When the desired number last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_scale_time: Option<String>,
}

/// What waits for an agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueStatus {
    /// Number of waiting jobs.
    pub depth: i64,
    /// How long the oldest one has waited, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_seconds: Option<i64>,
}

/// The token that the Secret holds; never the secret itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenStatus {
    /// Identifier of the token's record.
    pub id: String,
    /// When the token ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub expires_at: Option<String>,
    /// Name of the Secret.
    pub secret_name: String,
}
