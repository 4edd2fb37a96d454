//! `spec.agents` of an AgentPool: how many agents there are and where they run.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    common::{Image, LocalRef, Span},
    pods::{AgentEnv, FreeForm, Resources, Toleration},
};

/// How the pool's agents come to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AgentMode {
    /// Single-use Pods that wait warm and end with their run.
    #[default]
    Ephemeral,
    /// One agent on each labelled node, with the node's container engine.
    Node,
    /// A plain Deployment of an agent image.
    Deployment,
    /// Agents that somebody else runs, on virtual machines for example; only pool and token are kept.
    External,
}

/// Ready-made settings for a foreign agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AgentPreset {
    /// Scalr's agent image, given SCALR_URL and SCALR_AGENT_TOKEN.
    Scalr,
}

/// How the number of agents shrinks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct ScaleDown {
    /// How long fewer agents must be enough before any is taken away; 60s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("duration(self) <= duration('24h')", "stabilization is at most 24h"))]
    pub stabilization: Option<Span>,
}

/// The agents of a pool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.mode == 'Ephemeral' || !(has(self.minIdle) || has(self.maxAgents) || has(self.scaleDown))",
        "minIdle, maxAgents and scaleDown belong to mode Ephemeral"),
    validation = ("self.mode == 'Node' || !has(self.concurrency)", "concurrency belongs to mode Node"),
    validation = ("self.mode in ['Ephemeral', 'Deployment'] || !has(self.replicas)", "replicas belongs to modes Ephemeral and Deployment"),
    validation = ("self.mode == 'Deployment' || !has(self.preset)", "preset belongs to mode Deployment"),
    validation = ("self.mode != 'Deployment' || has(self.preset) || has(self.image)", "mode Deployment needs a preset or an image"),
    validation = ("self.mode != 'Node' || (has(self.nodeSelector) && self.nodeSelector.size() > 0)",
        "mode Node needs a nodeSelector: the agents hold the container engine of the nodes that it chooses"),
    validation = ("self.mode != 'External' || !(has(self.nodeSelector) || has(self.tolerations) || has(self.affinity) || has(self.resources) \
        || has(self.labels) || has(self.annotations) || has(self.env) || has(self.imagePullSecrets) \
        || has(self.serviceAccountName) || has(self.image) || has(self.drainTimeout) || has(self.overrides))",
        "mode External runs no agents in this cluster: leave everything but mode out"),
    validation = ("(has(self.minIdle) ? self.minIdle : 1) <= (has(self.maxAgents) ? self.maxAgents : 20)", "minIdle must not exceed maxAgents (20 when absent)"),
)]
pub struct Agents {
    /// How the agents come to be: Ephemeral, Node, Deployment or External.
    #[serde(default)]
    pub mode: AgentMode,
    /// Mode Ephemeral: agents kept waiting beside the busy ones; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub min_idle: Option<i32>,
    /// Mode Ephemeral: most agents at a time; 20 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_agents: Option<i32>,
    /// Mode Ephemeral: how the number of agents shrinks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_down: Option<ScaleDown>,
    /// A fixed number of agents, in modes Ephemeral and Deployment; what kubectl scale sets. Ignored while minIdle or maxAgents is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub replicas: Option<i32>,
    /// Mode Node: runs at a time on each node; 5 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub concurrency: Option<i32>,
    /// Mode Deployment: ready-made settings for a foreign agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<AgentPreset>,
    /// Image of the agent; absent: the operator's own image, or the preset's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// How long an agent that is to go may still finish its runs; 15m when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("duration(self) <= duration('168h')", "drainTimeout is at most 168h"))]
    pub drain_timeout: Option<Span>,
    /// Labels that a node must have. Required in mode Node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the Pods put up with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,
    /// Scheduling preferences, as spec.affinity of a Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<FreeForm>,
    /// Resources of the agent's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Labels added to the Pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations added to the Pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Variables of the agent itself, as HTTPS_PROXY. Runs do not see them: theirs are in runs.env.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 128))]
    pub env: Vec<AgentEnv>,
    /// Secrets with the credentials of image registries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalRef>,
    /// Service account of the Pods. Its token is never mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// Labels, annotations and spec of a Pod in parts, merged into the Pods by the rules of server-side apply: for
    /// everything that has no field of its own here. A null takes a field away.
    #[serde(default, skip_serializing_if = "FreeForm::is_empty")]
    pub overrides: FreeForm,
}

impl Agents {
    /// Runs at a time of one agent.
    #[must_use]
    pub fn slots(&self) -> u32 {
        match self.mode {
            AgentMode::Node => self.concurrency.and_then(|n| u32::try_from(n).ok()).unwrap_or(5),
            AgentMode::Ephemeral | AgentMode::Deployment | AgentMode::External => 1,
        }
    }
}
