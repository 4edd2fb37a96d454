//! The jobs that this agent has now, and the orders for them: what heartbeat, poller and supervisors share.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{
    api::agent::{Directive, JobRef, Order},
    ids::JobId,
};

#[derive(Debug)]
struct Entry {
    epoch: i64,
    /// Its result has been taken; only its remains are left to be removed.
    reported: bool,
    order: watch::Sender<Option<Order>>,
}

/// The list. Counts are read from it, never kept beside it.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    entries: Mutex<BTreeMap<JobId, Entry>>,
    changed: watch::Sender<()>,
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job; the orders for it arrive at the receiver.
    pub(super) fn add(&self, job: &JobRef) -> watch::Receiver<Option<Order>> {
        let (order, orders) = watch::channel(None);
        self.lock().insert(job.job_id.clone(), Entry { epoch: job.epoch, reported: false, order });
        self.changed.send_replace(());
        orders
    }

    /// The job is over for the control plane: heartbeats do not name it any more.
    pub(super) fn reported(&self, id: &JobId) {
        if let Some(entry) = self.lock().get_mut(id) {
            entry.reported = true;
        }
        self.changed.send_replace(());
    }

    /// Nothing is left of the job on this host.
    pub(super) fn remove(&self, id: &JobId) {
        self.lock().remove(id);
        self.changed.send_replace(());
    }

    /// Passes an order on; orders only ever become stricter. Unknown jobs and epochs are none of ours.
    pub(super) fn order(&self, directive: &Directive) {
        if let Some(entry) = self.lock().get(&directive.job_id)
            && entry.epoch == directive.epoch
        {
            entry.order.send_if_modified(|order| {
                let stricter = Some(directive.order) > *order;
                if stricter {
                    *order = Some(directive.order);
                }
                stricter
            });
        }
    }

    /// The epoch under which this agent works on the job.
    pub(super) fn epoch_of(&self, id: &JobId) -> Option<i64> {
        self.lock().get(id).map(|entry| entry.epoch)
    }

    /// The jobs whose leases are to be renewed, and the orders known for them.
    pub(super) fn active(&self) -> (Vec<JobRef>, Vec<Directive>) {
        let entries = self.lock();
        let active = entries.iter().filter(|(_, entry)| !entry.reported);
        let mut refs = Vec::new();
        let mut known = Vec::new();
        for (job_id, Entry { epoch, reported: _, order }) in active {
            refs.push(JobRef { job_id: job_id.clone(), epoch: *epoch });
            known.extend(order.borrow().map(|order| Directive { job_id: job_id.clone(), epoch: *epoch, order }));
        }
        (refs, known)
    }

    /// Slots in use.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Sees every later change.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Waits until `enough` holds of the number of slots in use.
    pub(super) async fn until(&self, enough: impl Fn(usize) -> bool) {
        let mut changes = self.changes();
        while !enough(self.count()) {
            // Err: the list is gone, which cannot be while it is borrowed.
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_only_become_stricter_and_stale_epochs_are_ignored() {
        let jobs = Jobs::default();
        let job = JobRef { job_id: JobId::random(), epoch: 2 };
        let orders = jobs.add(&job);
        let order = |epoch, order| jobs.order(&Directive { job_id: job.job_id.clone(), epoch, order });
        order(1, Order::Fenced);
        assert_eq!(*orders.borrow(), None);
        order(2, Order::ForceCancel);
        order(2, Order::Cancel);
        assert_eq!(*orders.borrow(), Some(Order::ForceCancel));
        let (active, known) = jobs.active();
        assert_eq!((active.len(), known.len(), jobs.count()), (1, 1, 1));
        jobs.reported(&job.job_id);
        assert_eq!((jobs.active().0.len(), jobs.count()), (0, 1));
        jobs.remove(&job.job_id);
        assert_eq!(jobs.count(), 0);
    }
}
