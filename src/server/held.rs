//! Claims that are under way: which call of a claim is the newest. A call whose caller has gone may be held on for
//! a while; it must not take a job after its agent has asked again, and been told that there is none.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::ids::AgentId;

type Key = (AgentId, String);

/// Calls under way by agent and claim.
#[derive(Debug, Clone, Default)]
pub struct HeldClaims {
    newest: Arc<Mutex<HashMap<Key, u64>>>,
    next: Arc<AtomicU64>,
}

/// One call; the newest of its claim until there is a newer one or it ends.
#[derive(Debug)]
pub struct HeldClaim {
    claims: HeldClaims,
    key: Key,
    number: u64,
}

impl HeldClaims {
    fn newest(&self) -> MutexGuard<'_, HashMap<Key, u64>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many claims have a call under way.
    #[must_use]
    pub fn count(&self) -> usize {
        self.newest().len()
    }

    /// A call begins.
    #[must_use]
    pub fn begin(&self, agent: &AgentId, claim_id: &str) -> HeldClaim {
        let key = (agent.clone(), claim_id.to_owned());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.newest().insert(key.clone(), number);
        HeldClaim { claims: self.clone(), key, number }
    }
}

impl HeldClaim {
    /// Whether nobody has asked for the same claim since. Once false, false for ever.
    #[must_use]
    pub fn is_newest(&self) -> bool {
        self.claims.newest().get(&self.key) == Some(&self.number)
    }
}

impl Drop for HeldClaim {
    fn drop(&mut self) {
        let mut newest = self.claims.newest();
        if newest.get(&self.key) == Some(&self.number) {
            newest.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_call_never_becomes_the_newest_again() {
        let claims = HeldClaims::default();
        let agent: AgentId = "agent-1".parse().unwrap();
        let old = claims.begin(&agent, "c");
        let other = claims.begin(&agent, "d");
        assert!(old.is_newest() && other.is_newest());
        let new = claims.begin(&agent, "c");
        assert!(!old.is_newest() && new.is_newest());
        drop(new);
        assert!(!old.is_newest() && other.is_newest());
        drop((old, other));
        assert!(claims.newest().is_empty());
    }
}
