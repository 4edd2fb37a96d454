//! Condition types and reasons, and how a condition is set. The words are stable API: alerts and
//! scripts match on them.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// Summary of both kinds.
pub const READY: &str = "Ready";
/// Work is under way; only there while it is.
pub const RECONCILING: &str = "Reconciling";
/// Nothing goes on until somebody changes something; only there while that is so.
pub const STALLED: &str = "Stalled";
/// AgentPool: the pool is in the control plane.
pub const REGISTERED: &str = "Registered";
/// AgentPool: the Secret holds a working pool token.
pub const TOKEN_READY: &str = "TokenReady";
/// AgentPool: an agent could take a run.
pub const AGENTS_AVAILABLE: &str = "AgentsAvailable";
/// AgentPool: fewer agents than the queue asks for.
pub const SCALING_LIMITED: &str = "ScalingLimited";
/// AgentPool: it is to be deleted, and something uses it.
pub const DELETION_BLOCKED: &str = "DeletionBlocked";
/// AgentPool: runs are root.
pub const PRIVILEGED_MODE: &str = "PrivilegedMode";
/// AgentPool: agents finish their runs and take no new ones.
pub const DRAINING: &str = "Draining";
/// WorkspaceLink: the pool was found.
pub const POOL_RESOLVED: &str = "PoolResolved";
/// WorkspaceLink: the workspace is linked.
pub const LINKED: &str = "Linked";
/// WorkspaceLink: the pool's scope allows the workspace.
pub const SCOPE_ALLOWED: &str = "ScopeAllowed";

/// Values of a condition's `reason`.
pub mod reason {
    pub const CREATED: &str = "Created";
    pub const IN_SYNC: &str = "InSync";
    pub const CONTROL_PLANE_UNREACHABLE: &str = "ControlPlaneUnreachable";
    pub const CREDENTIALS_INVALID: &str = "CredentialsInvalid";
    pub const NAME_CONFLICT: &str = "NameConflict";
    pub const SCOPE_DENIED: &str = "ScopeDenied";
    pub const ENVIRONMENT_NOT_FOUND: &str = "EnvironmentNotFound";
    pub const POOL_NOT_FOUND: &str = "PoolNotFound";
    pub const WORKSPACE_NOT_FOUND: &str = "WorkspaceNotFound";
    pub const ALREADY_LINKED_ELSEWHERE: &str = "AlreadyLinkedElsewhere";
    pub const QUOTA_EXCEEDED: &str = "QuotaExceeded";
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    pub const IMAGE_PULL_FAILED: &str = "ImagePullFailed";
    pub const MAX_REPLICAS_REACHED: &str = "MaxReplicasReached";
    pub const COOLDOWN: &str = "Cooldown";
    pub const DRAIN_TIMEOUT: &str = "DrainTimeout";
    pub const LINKED_WORKSPACES: &str = "LinkedWorkspaces";
    pub const PAUSED: &str = "Paused";
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The API server or an admission webhook refuses what the agents are made of.
    pub const REFUSED: &str = "Refused";
    pub const AGENTS_STARTING: &str = "AgentsStarting";
    pub const SCALED_TO_ZERO: &str = "ScaledToZero";
    pub const AGENTS_ELSEWHERE: &str = "AgentsElsewhere";
    pub const AGENT_FAILED: &str = "AgentFailed";
    pub const DELETING: &str = "Deleting";
    pub const API_SERVER_UNREACHABLE: &str = "ApiServerUnreachable";
    pub const ROOT_ACKNOWLEDGED: &str = "RootAcknowledged";
}

/// Reasons that are worth an event: somebody may have to mend something.
pub const WARNINGS: [&str; 15] = [
    reason::CONTROL_PLANE_UNREACHABLE,
    reason::CREDENTIALS_INVALID,
    reason::NAME_CONFLICT,
    reason::SCOPE_DENIED,
    reason::POOL_NOT_FOUND,
    reason::ENVIRONMENT_NOT_FOUND,
    reason::ALREADY_LINKED_ELSEWHERE,
    reason::QUOTA_EXCEEDED,
    reason::UNSCHEDULABLE,
    reason::IMAGE_PULL_FAILED,
    reason::LINKED_WORKSPACES,
    reason::INVALID_SPEC,
    reason::REFUSED,
    reason::AGENT_FAILED,
    reason::PAUSED,
];

/// What is observed, about to become a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation<'a> {
    pub type_: &'a str,
    /// None: not known.
    pub holds: Option<bool>,
    /// One of [`reason`].
    pub reason: &'a str,
    /// For people.
    pub message: String,
    /// Generation of the spec that this was seen under.
    pub generation: Option<i64>,
}

/// Sets one condition. `lastTransitionTime` changes only with the condition's status.
pub fn set(conditions: &mut Vec<Condition>, observation: Observation<'_>, now: Timestamp) {
    let Observation { type_, holds, reason, message, generation } = observation;
    let status = match holds {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let fresh = Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    match conditions.iter_mut().find(|condition| condition.type_ == type_) {
        Some(old) if old.status == status => {
            *old = Condition { last_transition_time: old.last_transition_time.clone(), ..fresh };
        }
        Some(old) => *old = fresh,
        None => conditions.push(fresh),
    }
}

/// Removes a condition that is only there while it holds.
pub fn remove(conditions: &mut Vec<Condition>, type_: &str) {
    conditions.retain(|condition| condition.type_ != type_);
}

/// The condition of that type.
#[must_use]
pub fn get<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_time_changes_only_with_the_status() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let ready =
            |holds, reason| Observation { type_: READY, holds, reason, message: String::new(), generation: Some(1) };
        let mut conditions = Vec::new();
        set(&mut conditions, ready(Some(false), reason::NAME_CONFLICT), at(1));
        set(&mut conditions, ready(Some(false), reason::SCOPE_DENIED), at(2));
        let seen = get(&conditions, READY).unwrap();
        assert_eq!((seen.reason.as_str(), seen.last_transition_time.0), (reason::SCOPE_DENIED, at(1)));
        set(&mut conditions, ready(Some(true), reason::IN_SYNC), at(3));
        assert_eq!(get(&conditions, READY).unwrap().last_transition_time.0, at(3));
        assert_eq!(conditions.len(), 1);
        remove(&mut conditions, READY);
        assert!(conditions.is_empty());
    }
}
