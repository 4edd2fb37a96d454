//! Pools of the control plane, as the passes of their own AgentPools saw them last: a link need not ask for its pool
//! once more. What is found out from them is believed only when the control plane agrees, as it does by linking.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::client::iacp::Pool;

/// By the uid of their AgentPool. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct OwnPools(Arc<Mutex<HashMap<String, Arc<Pool>>>>);

impl OwnPools {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Arc<Pool>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The AgentPool `uid` saw this pool. One that it only joined is not its own.
    pub(super) fn saw(&self, uid: &str, pool: &Pool) {
        if pool.attributes.external_id.as_deref() == Some(uid) {
            // Links ask for nothing that lies around it.
            let pool = Pool { workspaces: Vec::new(), ..pool.clone() };
            self.known().insert(uid.to_owned(), Arc::new(pool));
        }
    }

    pub(super) fn of(&self, uid: Option<&str>) -> Option<Arc<Pool>> {
        self.known().get(uid?).cloned()
    }

    /// The AgentPool is gone, or its pool may be another one now.
    pub(super) fn forget(&self, uid: &str) {
        self.known().remove(uid);
    }
}
