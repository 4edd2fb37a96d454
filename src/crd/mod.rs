//! The custom resources `AgentPool` and `WorkspaceLink` (`terrapool.dev/v1alpha1`): their types, their
//! names, and the rules a manifest must keep. Knows nothing of controllers and calls nobody.
//!
//! * [`agent_pool`], [`workspace_link`]: spec and status. Doc comments there are what `kubectl explain` shows.
//! * [`conditions`]: condition types and reasons, which are stable API.
//! * [`schema`]: the generated definitions, and the structural check of a manifest against them.
//! * [`rules`]: the rules of the definitions' CEL expressions once more in Rust, for where there is no API server.

#![expect(unreachable_pub, reason = "kube's KubeSchema derive copies the visibility of a type into a function")]

pub mod agent_pool;
pub mod agents;
pub mod common;
pub mod conditions;
pub mod pods;
pub mod quantity;
pub mod rules;
pub mod schema;
pub mod workspace_link;

pub use agent_pool::{AgentPool, AgentPoolSpec, AgentPoolStatus};
pub use schema::{Violation, all};
pub use workspace_link::{WorkspaceLink, WorkspaceLinkSpec, WorkspaceLinkStatus};

/// API group of all our kinds.
pub const GROUP: &str = "terrapool.dev";

/// Version of all our kinds.
pub const VERSION: &str = "v1alpha1";

/// `apiVersion` of all our kinds.
pub const API_VERSION: &str = "terrapool.dev/v1alpha1";

/// Finalizer of AgentPools: there before the first write to the control plane.
pub const POOL_FINALIZER: &str = "agentpools.terrapool.dev/finalizer";

/// Finalizer of WorkspaceLinks.
pub const LINK_FINALIZER: &str = "workspacelinks.terrapool.dev/finalizer";

/// Names of labels and annotations.
pub mod names {
    /// Label on everything that belongs to a pool; the value is the AgentPool's name.
    pub const POOL_LABEL: &str = "terrapool.dev/pool";
    /// Label of everything that the operator made, and its value.
    pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "terrapool");
    /// Label on containers and Pods that run a job; the value is the job's id.
    pub const JOB_LABEL: &str = "terrapool.dev/job";
    /// Label beside [`JOB_LABEL`]; the value is the epoch.
    pub const EPOCH_LABEL: &str = "terrapool.dev/epoch";
    /// Annotation that stops reconciling when its value is `true`.
    pub const PAUSED: &str = "terrapool.dev/paused";
    /// Annotation whose change asks for a reconcile at once.
    pub const RECONCILE_REQUEST: &str = "terrapool.dev/requestedAt";
    /// Annotation that lets an object go whose control plane is gone for good, when its value is `true`: what is left
    /// there stays there.
    pub const FORCE_DELETE: &str = "terrapool.dev/force-delete";
    /// Field manager of server-side apply for AgentPools; status writes append `-status`.
    pub const POOL_MANAGER: &str = "terrapool-agentpool";
    /// Field manager of server-side apply for WorkspaceLinks; status writes append `-status`.
    pub const LINK_MANAGER: &str = "terrapool-workspacelink";
}
