//! The end of a pool: refused while something uses it, and then without a trace. The finalizer goes last.

use std::time::Duration;

use super::{LOOK_AGAIN, Pace, Pass, registration::secret_name};
use crate::{
    crd::{POOL_FINALIZER, conditions::reason},
    operator::{Error, asked::is_forced, backoff::jittered, cluster::has_finalizer, events::News, facts::Fact},
    sync::{self, Outcome},
};

/// A control plane that refuses is asked again after this long; with a server that tells of changes it is sooner.
const BLOCKED: Duration = Duration::from_secs(5);

impl Pass<'_> {
    /// One pass over a pool that is to go; when to come again.
    pub(super) async fn delete(mut self) -> Result<Option<Duration>, Error> {
        if !has_finalizer(self.pool, POOL_FINALIZER) {
            self.context.forget(self.pool);
            return Ok(None);
        }
        match self.remove().await {
            Ok(None) => {
                self.context.forget(self.pool);
                Ok(None)
            }
            Ok(Some(next)) => {
                let waits = self.facts.deletion_blocked.as_ref().or(self.facts.draining.as_ref());
                self.facts.not_ready = waits.map(|fact| fact.clone().that(false));
                self.tell(Pace::default()).await?;
                Ok(Some(next))
            }
            Err(error) => {
                self.tell_not_ready(&error).await?;
                Err(error)
            }
        }
    }

    /// Takes away what there is, from the outside in. `None`: all of it is gone.
    async fn remove(&mut self) -> Result<Option<Duration>, Error> {
        match self.remove_everywhere().await {
            // Somebody has said that nobody will ever answer there again.
            Ok(Some(_)) | Err(Error::Sync(_) | Error::Demand { .. }) if is_forced(self.pool) => {
                let note = "what is left in the control plane stays there, as the annotation asks".to_owned();
                self.common.events.publish(self.pool, News { warning: true, reason: "ForceDeleted", note }).await;
                self.remove_from_cluster().await.map(|()| None)
            }
            other => other,
        }
    }

    async fn remove_everywhere(&mut self) -> Result<Option<Duration>, Error> {
        let spec = &self.pool.spec;
        let connection =
            match self.common.control_planes.resolve(&self.namespace, spec.control_plane.as_deref()).await? {
                Ok(connection) => connection,
                Err(waiting) => {
                    let message =
                        format!("{}. Until then the pool cannot be deleted in the control plane.", waiting.message);
                    self.facts.deletion_blocked = Some(Fact::yes(waiting.reason, message));
                    return Ok(Some(jittered(LOOK_AGAIN)));
                }
            };
        let sync = self.common.sync(&connection.control_plane);
        // First whether it may go at all: agents of a pool in use go on working.
        if let Some(waiting) = sync::pool::blocked(&sync, self.input()).await? {
            let next = match self.work_on().await {
                // A namespace that goes takes nothing new in.
                Err(Error::Cluster(error)) if error.code() == Some(403) => BLOCKED,
                other => other?,
            };
            self.facts.deletion_blocked = Some(Fact::yes(waiting.reason, waiting.message));
            return Ok(Some(next));
        }
        if let Some((next, message)) = self.remove_agents(&connection, &sync).await? {
            self.facts.draining = Some(Fact::yes(reason::DELETING, message));
            return Ok(Some(next));
        }
        if let Outcome::Waiting(waiting) = sync::pool::delete(&sync, self.input()).await? {
            self.facts.deletion_blocked = Some(Fact::yes(waiting.reason, waiting.message));
            return Ok(Some(BLOCKED));
        }
        self.remove_from_cluster().await?;
        Ok(None)
    }

    /// Whoever uses the pool is served until nobody does: token and agents are kept as if nothing were to be deleted.
    async fn work_on(&mut self) -> Result<Duration, Error> {
        let Ok(found) = self.register().await? else { return Ok(BLOCKED) };
        let next_token = found.next_token;
        let mut memory = self.registered(found);
        let next = self.agents(&memory.known, &mut memory.scaling, true).await?;
        self.context.remember(self.pool, memory);
        Ok(next.into_iter().fold(BLOCKED.min(next_token), Duration::min))
    }

    /// The Secret, and last the finalizer; the rest goes with the object that owns it.
    async fn remove_from_cluster(&self) -> Result<(), Error> {
        self.remove_secret(&secret_name(self.pool)).await?;
        self.common.cluster.remove_finalizer(self.pool, POOL_FINALIZER).await?;
        Ok(())
    }
}
