//! `/api/iacp/v3`: attributes of the Scalr-compatible surface, for server and client alike.
//!
//! Every attribute is optional here, because a client sends only what it changes and servers leave
//! out what they do not know. `Some(None)` is an explicit null, where a null has a meaning.

pub mod demand;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// Path prefix of this surface.
pub const BASE: &str = "/api/iacp/v3";

/// Resource types.
pub mod kind {
    pub const ACCOUNTS: &str = "accounts";
    pub const ENVIRONMENTS: &str = "environments";
    pub const WORKSPACES: &str = "workspaces";
    pub const AGENT_POOLS: &str = "agent-pools";
    pub const ACCESS_TOKENS: &str = "access-tokens";
    pub const AGENTS: &str = "agents";
}

fn present<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::<T>::deserialize(deserializer).map(Some)
}

/// Attributes of type `agent-pools`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct AgentPoolAttributes {
    /// Unique in the pool's scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Every environment of the account may use it; otherwise only those of the relation `environments`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_shared: Option<bool>,
    /// The account's default pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcs_enabled: Option<bool>,
    /// Used by any workspace. Read-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_use: Option<bool>,
    /// Identity given by the creator, unique in the account; filterable. Ours: Scalr has no such attribute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// How the pool's runs are run. Ours: Scalr has no such attribute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_settings: Option<RunSettings>,
    /// Agents by status. Read-only, ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_counts: Option<AgentCounts>,
    /// Jobs that wait for an agent of this pool. Read-only, ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_depth: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
}

/// How a pool's runs are run; the pool's administrator decides, never a workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RunSettings {
    /// Image of the run container; absent: the agent's default one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What a workspace may choose instead: exact references, or prefixes that end in `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_images: Vec<String>,
    pub run_as_root: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan_timeout_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apply_timeout_seconds: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentCounts {
    pub idle: i64,
    pub busy: i64,
    pub errored: i64,
    pub offline: i64,
}

/// Attributes of type `access-tokens`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct AccessTokenAttributes {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Minutes; on creation only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<i64>,
    /// Unique in the pool; ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_expired: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<String>,
    /// The secret: only in the answer to the creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// Attributes of type `agents`; all read-only.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct AgentAttributes {
    pub name: Option<String>,
    /// idle, busy, offline, errored
    pub status: Option<String>,
    pub error_message: Option<String>,
    pub version: Option<String>,
    pub os: Option<String>,
    pub cpu_platform: Option<String>,
    /// local, docker, kubernetes
    pub driver: Option<String>,
    pub created_at: Option<String>,
    pub last_seen_at: Option<String>,
}

/// Attributes of type `environments`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct EnvironmentAttributes {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
}

/// Attributes of type `workspaces`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct WorkspaceAttributes {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// remote or local
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_apply: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terraform_version: Option<String>,
    /// terraform or opentofu
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iac_platform: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub working_directory: Option<Option<String>>,
    /// Image of the run container instead of the pool's; the pool's `allowed-images` must admit it. Ours.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub run_image: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub has_resources: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<String>,
}
