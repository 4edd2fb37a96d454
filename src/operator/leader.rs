//! Leader election by a Lease, after client-go's algorithm: the record's age is measured with the local clock from
//! the moment it was seen to change, and every write carries the resourceVersion that was read, so that of two who
//! see an expired lease one gets it. A lease is no fence by itself: [`Fence`] ends this process's right to write
//! before anybody else may take over.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio_util::sync::CancellationToken;

use crate::telemetry::Chain;

/// How leadership is held.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Who holds it: unique among all operators.
    pub identity: String,
    /// A Lease that was not renewed for this long may be taken.
    pub duration: Duration,
    /// A leader that could not renew for this long stops writing; shorter than `duration`.
    pub renew_deadline: Duration,
    /// Time between attempts.
    pub retry: Duration,
}

impl Settings {
    /// The usual 15 s, 10 s and 2 s.
    #[must_use]
    pub fn new(namespace: String, identity: String) -> Self {
        Self {
            namespace,
            name: "terrapool-operator".to_owned(),
            identity,
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// The right to write, until a moment that only renewals put off. Measured with the monotonic clock, so that a
/// process that was paused finds its right gone.
#[derive(Debug, Clone)]
pub struct Fence {
    start: Instant,
    /// Milliseconds after `start`; negative: never.
    until: Arc<AtomicI64>,
}

impl Fence {
    /// For an operator that runs without leader election.
    #[must_use]
    pub fn open() -> Self {
        Self { start: Instant::now(), until: Arc::new(AtomicI64::new(i64::MAX)) }
    }

    fn closed() -> Self {
        Self { start: Instant::now(), until: Arc::new(AtomicI64::new(-1)) }
    }

    fn now(&self) -> i64 {
        millis(self.start.elapsed())
    }

    /// Whether this process may write now.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.now() < self.until.load(Ordering::SeqCst)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A Lease as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    resource_version: String,
    holder: String,
    renewed: Option<Timestamp>,
    transitions: i32,
}

/// When the record was first seen as it is, by the local clock.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Observed {
    record: Record,
    at_ms: i64,
}

/// What a candidate does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Create,
    Renew,
    Take,
    Wait,
}

fn decide(observed: Option<&Observed>, me: &str, now_ms: i64, duration_ms: i64) -> Decision {
    match observed {
        None => Decision::Create,
        Some(Observed { record, .. }) if record.holder == me => Decision::Renew,
        Some(Observed { record, .. }) if record.holder.is_empty() => Decision::Take,
        Some(Observed { at_ms, .. }) if at_ms + duration_ms <= now_ms => Decision::Take,
        Some(_) => Decision::Wait,
    }
}

/// Keeps trying to be the leader.
#[derive(Debug)]
pub struct Candidate {
    settings: Settings,
    api: Api<Lease>,
    fence: Fence,
    observed: Option<Observed>,
}

impl Candidate {
    #[must_use]
    pub fn new(client: Client, settings: Settings) -> Self {
        let api = Api::namespaced(client, &settings.namespace);
        Self { settings, api, fence: Fence::closed(), observed: None }
    }

    /// The right to write that this candidate acquires and renews.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// Resolves when this process leads; `false` when `stop` came first.
    pub async fn acquire(&mut self, stop: &CancellationToken) -> bool {
        loop {
            if self.attempt().await {
                tracing::info!(identity = self.settings.identity, "this operator leads");
                return true;
            }
            tokio::select! {
                () = tokio::time::sleep(self.settings.retry) => {}
                () = stop.cancelled() => return false,
            }
        }
    }

    /// Renews until leadership is lost, or `stop`: then the Lease is given back, so that the next one need not wait.
    /// Says whether it was lost.
    pub async fn keep(&mut self, stop: &CancellationToken) -> bool {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.settings.retry) => {}
                () = stop.cancelled() => {
                    self.release().await;
                    return false;
                }
            }
            let leads = self.attempt().await;
            if !self.fence.holds() {
                tracing::error!(identity = self.settings.identity, "leadership is lost");
                return true;
            }
            if !leads {
                tracing::warn!("the Lease could not be renewed; trying on");
            }
        }
    }

    /// One look and at most one write; whether this process leads after it.
    async fn attempt(&mut self) -> bool {
        let begun = self.fence.now();
        match tokio::time::timeout(self.settings.renew_deadline, self.try_once()).await {
            Ok(Ok(leads)) => {
                // From the start of the attempt: the others count from when the write is seen, which is later.
                let until = if leads { begun + millis(self.settings.renew_deadline) } else { -1 };
                self.fence.until.store(until, Ordering::SeqCst);
                leads
            }
            Ok(Err(error)) => {
                tracing::warn!(error = %Chain(&error), lease = self.settings.name, "the Lease could not be read or written");
                false
            }
            Err(_) => false,
        }
    }

    async fn try_once(&mut self) -> Result<bool, kube::Error> {
        let lease = self.api.get_opt(&self.settings.name).await?;
        let now = self.fence.now();
        let record = lease.as_ref().map(Record::of);
        let same = self.observed.as_ref().map(|observed| &observed.record) == record.as_ref();
        if !same {
            self.observed = record.map(|record| Observed { record, at_ms: now });
        }
        let decision = decide(self.observed.as_ref(), &self.settings.identity, now, millis(self.settings.duration));
        let wanted = self.lease(lease.as_ref(), decision == Decision::Renew, &self.settings.identity);
        let params = PostParams::default();
        let written = match decision {
            Decision::Wait => return Ok(false),
            Decision::Create => self.api.create(&params, &wanted).await,
            Decision::Renew | Decision::Take => self.api.replace(&self.settings.name, &params, &wanted).await,
        };
        match written {
            Ok(lease) => {
                self.observed = Some(Observed { record: Record::of(&lease), at_ms: self.fence.now() });
                Ok(true)
            }
            // Somebody was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn release(&mut self) {
        self.fence.until.store(-1, Ordering::SeqCst);
        let work = async {
            let Some(lease) = self.api.get_opt(&self.settings.name).await? else { return Ok(()) };
            if Record::of(&lease).holder == self.settings.identity {
                let wanted = self.lease(Some(&lease), true, "");
                self.api.replace(&self.settings.name, &PostParams::default(), &wanted).await?;
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(self.settings.retry, work).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!(error = %Chain(&error), "the Lease could not be given back; it runs out"),
            Err(_) => tracing::info!("the Lease could not be given back in time; it runs out"),
        }
    }

    fn lease(&self, old: Option<&Lease>, same_holder: bool, holder: &str) -> Lease {
        let now = Timestamp::now();
        let old_spec = old.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let transitions = old_spec.lease_transitions.unwrap_or(0) + i32::from(!same_holder && old.is_some());
        let acquired = old_spec.acquire_time.filter(|_| same_holder).unwrap_or(MicroTime(now));
        Lease {
            metadata: ObjectMeta {
                name: Some(self.settings.name.clone()),
                namespace: Some(self.settings.namespace.clone()),
                resource_version: old.and_then(|lease| lease.metadata.resource_version.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: i32::try_from(self.settings.duration.as_secs().max(1)).ok(),
                acquire_time: Some(acquired),
                renew_time: Some(MicroTime(now)),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }
}

impl Record {
    fn of(lease: &Lease) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        Self {
            resource_version: lease.metadata.resource_version.clone().unwrap_or_default(),
            holder: spec.holder_identity.unwrap_or_default(),
            renewed: spec.renew_time.map(|MicroTime(time)| time),
            transitions: spec.lease_transitions.unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(holder: &str, at_ms: i64) -> Observed {
        let record =
            Record { resource_version: "1".to_owned(), holder: holder.to_owned(), renewed: None, transitions: 0 };
        Observed { record, at_ms }
    }

    #[test]
    fn a_lease_is_taken_only_when_it_is_free_or_was_seen_unchanged_for_its_whole_length() {
        assert_eq!(decide(None, "me", 0, 15_000), Decision::Create);
        assert_eq!(decide(Some(&observed("me", 0)), "me", 99_000, 15_000), Decision::Renew);
        assert_eq!(decide(Some(&observed("", 0)), "me", 1, 15_000), Decision::Take);
        assert_eq!(decide(Some(&observed("other", 0)), "me", 14_999, 15_000), Decision::Wait);
        assert_eq!(decide(Some(&observed("other", 0)), "me", 15_000, 15_000), Decision::Take);
    }

    #[test]
    fn the_right_to_write_ends_by_itself() {
        let fence = Fence::closed();
        assert!(!fence.holds());
        fence.until.store(fence.now() + 60_000, Ordering::SeqCst);
        assert!(fence.holds());
        fence.until.store(fence.now(), Ordering::SeqCst);
        assert!(!fence.holds());
        assert!(Fence::open().holds());
    }
}
