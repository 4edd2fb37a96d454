//! What a pool owns beside Pods and Secret.

use serde_json::json;

use super::{
    Invalid, Owned, OwnedKind, PoolView, foreign, mark, network, node,
    parts::{metadata, object_name},
};
use crate::crd::{agents::AgentMode, names::POOL_LABEL};

/// The objects of the pool's mode, to be applied as they are; what is not among them is to be removed.
///
/// # Errors
/// [`Invalid`] names the field that nothing can be made from.
pub fn objects(pool: &PoolView<'_>) -> Result<Vec<Owned>, Invalid> {
    Ok(match pool.spec.agents.mode {
        AgentMode::Ephemeral => vec![network::policy(pool)?, disruption_budget(pool)],
        AgentMode::Node => vec![network::policy(pool)?, node::daemon_set(pool)?],
        AgentMode::Deployment => vec![network::policy(pool)?, foreign::deployment(pool)?],
        AgentMode::External => Vec::new(),
    })
}

/// No busy agent is evicted, for draining a node as little as for anything else; idle ones are not in its selector.
fn disruption_budget(pool: &PoolView<'_>) -> Owned {
    let name = object_name(pool.name);
    let manifest = json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(pool, &name),
        "spec": {
            // More than there can ever be, so none may go. An absolute number is the only form that needs no
            // controller with a scale behind the Pods.
            "minAvailable": i32::MAX,
            "selector": {"matchLabels": {POOL_LABEL: pool.name, mark::BUSY: "true"}},
        },
    });
    Owned { kind: OwnedKind::PodDisruptionBudget, name, manifest }
}
