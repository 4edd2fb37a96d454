//! `WorkspaceLink`: lets the runs of one workspace go to one pool.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{ControlPlaneRef, LocalRef};

/// A WorkspaceLink sends the runs of one workspace to the agents of one pool.
#[derive(CustomResource, Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "terrapool.dev",
    version = "v1alpha1",
    kind = "WorkspaceLink",
    namespaced,
    status = "WorkspaceLinkStatus",
    shortname = "wsl",
    category = "terrapool",
    derive = "PartialEq",
    doc = "A WorkspaceLink sends the runs of one workspace to the agents of one pool.",
    validation = ("self.metadata.name.size() <= 253", "the name is longer than 253 characters"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Workspace", type_ = "string", json_path = ".status.workspace"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".status.pool"),
    printcolumn(name = "Linked-At", type_ = "date", json_path = ".status.linkedAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    )
)]
#[x_kube(
    validation = ("has(self.poolRef) != has(self.pool)", "set exactly one of poolRef and pool"),
    validation = ("!has(self.controlPlane) || has(self.pool)", "with poolRef the control plane is the AgentPool's: leave controlPlane out"),
    validation = ("has(self.poolRef) == has(oldSelf.poolRef) && (!has(self.poolRef) || self.poolRef == oldSelf.poolRef)",
        "poolRef is immutable: delete this link and create another"),
    validation = ("has(self.pool) == has(oldSelf.pool) && (!has(self.pool) || self.pool == oldSelf.pool)",
        "pool is immutable: delete this link and create another"),
)]
pub struct WorkspaceLinkSpec {
    /// The AgentPool of the same namespace that takes the workspace's runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_ref: Option<LocalRef>,
    /// A pool of the control plane that no AgentPool of this cluster describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolTarget>,
    /// The workspace to link. It is immutable: to move a workspace, delete this link and create another.
    #[x_kube(validation = ("self == oldSelf", "workspace is immutable: delete this link and create another"))]
    pub workspace: WorkspaceTarget,
    /// The control plane of `pool`. Without it, and with `poolRef`, the one of the AgentPool or the operator's own is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<Box<ControlPlaneRef>>,
    /// What to do with a workspace that is linked to another pool: leave it and say so, or take it over.
    #[serde(default)]
    pub on_conflict: OnConflict,
    /// What becomes of the link in the control plane when this object is deleted.
    #[serde(default)]
    pub deletion_policy: LinkDeletion,
}

/// A pool by its identifier or its name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = ("has(self.id) != has(self.name)", "set exactly one of id and name"))]
pub struct PoolTarget {
    /// Identifier of the pool, as apool-….
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80), regex(pattern = "^apool-[A-Za-z0-9]+$"))]
    pub id: Option<String>,
    /// Name of the pool. One of the workspace's environment comes before one of the account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub name: Option<String>,
}

/// A workspace by its identifier, or by environment and name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = ("has(self.id) ? !has(self.environment) && !has(self.name) : has(self.environment) && has(self.name)",
    "set either id, or environment and name"))]
pub struct WorkspaceTarget {
    /// Identifier of the workspace, as ws-….
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80), regex(pattern = "^ws-[A-Za-z0-9]+$"))]
    pub id: Option<String>,
    /// Name of the environment that the workspace is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub environment: Option<String>,
    /// Name of the workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub name: Option<String>,
}

/// What to do with a workspace that is linked to another pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnConflict {
    #[default]
    Refuse,
    Replace,
}

/// What becomes of the link in the control plane when the WorkspaceLink is deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LinkDeletion {
    #[default]
    Unlink,
    Retain,
}

/// What was last seen of a WorkspaceLink. A cache: losing it does no harm.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkspaceLinkStatus {
    /// Generation of the spec that this status is about; -1 before the first visit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What is known, by condition type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The workspace as environment/name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// Identifier of the workspace.
    #[serde(default, rename = "workspaceID", skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<String>,
    /// Name of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Identifier of the pool.
    #[serde(default, rename = "poolID", skip_serializing_if = "Option::is_none")]
    pub pool_id: Option<String>,
    /// When the workspace was linked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub linked_at: Option<String>,
}
