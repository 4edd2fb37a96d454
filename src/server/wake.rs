//! Wake-ups inside the process: a write wakes those who wait for it, so that nobody polls. Waiters look at
//! the database first and after every wake-up; a wake-up itself carries nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::Notify;

use crate::ids::{AccountId, AgentId, PoolId};

/// What somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// A job was queued in the pool.
    Queue(PoolId),
    /// An order for the agent: cancel, fenced, drain.
    Agent(AgentId),
    /// A pool of the account changed.
    Pools(AccountId),
    /// The log of a stage grew or ended; by the stage's id.
    Log(String),
}

#[derive(Debug, Clone, Default)]
pub struct Wakes(Arc<Mutex<HashMap<Topic, Weak<Notify>>>>);

impl Wakes {
    fn topics(&self) -> MutexGuard<'_, HashMap<Topic, Weak<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes all who wait for `topic` now. Call it after the commit.
    pub fn wake(&self, topic: &Topic) {
        let waiting = self.topics().get(topic).and_then(Weak::upgrade);
        if let Some(notify) = waiting {
            notify.notify_waiters();
        }
    }

    fn subscribe(&self, topic: Topic) -> Arc<Notify> {
        let mut topics = self.topics();
        // Forgotten topics are swept when the table has doubled over the living: the cost is shared out.
        if topics.len() >= 64 && topics.len().is_power_of_two() {
            topics.retain(|_, notify| notify.strong_count() > 0);
        }
        if let Some(notify) = topics.get(&topic).and_then(Weak::upgrade) {
            return notify;
        }
        let notify = Arc::new(Notify::new());
        topics.insert(topic, Arc::downgrade(&notify));
        notify
    }

    /// Calls `look` until it finds something or `limit` is over: at once, and after every wake-up.
    ///
    /// # Errors
    /// Those of `look`.
    pub async fn wait_for<T, E, F, R>(&self, topic: Topic, limit: Duration, look: F) -> Result<Option<T>, E>
    where
        F: FnMut() -> R,
        R: Future<Output = Result<Option<T>, E>>,
    {
        self.wait_until(topic, tokio::time::sleep(limit), look).await
    }

    /// The same until `end`, which never cuts a look short.
    ///
    /// # Errors
    /// Those of `look`.
    pub async fn wait_until<T, E, F, R>(
        &self,
        topic: Topic,
        end: impl Future<Output = ()>,
        mut look: F,
    ) -> Result<Option<T>, E>
    where
        F: FnMut() -> R,
        R: Future<Output = Result<Option<T>, E>>,
    {
        let notify = self.subscribe(topic);
        tokio::pin!(end);
        loop {
            let notified = notify.notified();
            tokio::pin!(notified);
            // registered before looking, so that no wake-up between looking and waiting is lost
            notified.as_mut().enable();
            if let Some(found) = look().await? {
                return Ok(Some(found));
            }
            tokio::select! {
                () = notified => {}
                () = &mut end => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_wake_up_ends_the_wait_and_the_limit_ends_it_too() {
        let wakes = Wakes::default();
        let topic = || Topic::Log("plan-1".to_owned());
        let (looked, mut looks) = tokio::sync::mpsc::unbounded_channel();
        let value = Arc::new(AtomicU32::new(0));
        let waiter = tokio::spawn({
            let (wakes, value) = (wakes.clone(), value.clone());
            async move {
                let look = || {
                    looked.send(()).unwrap();
                    std::future::ready(Ok::<_, ()>(Some(value.load(Ordering::SeqCst)).filter(|value| *value > 0)))
                };
                wakes.wait_for(topic(), Duration::from_secs(60), look).await
            }
        });
        looks.recv().await.unwrap();
        wakes.wake(&topic());
        looks.recv().await.unwrap();
        value.store(5, Ordering::SeqCst);
        wakes.wake(&topic());
        assert_eq!(waiter.await.unwrap(), Ok(Some(5)));
        let nothing = wakes.wait_for(topic(), Duration::ZERO, || std::future::ready(Ok::<Option<u32>, ()>(None))).await;
        assert_eq!(nothing, Ok(None));
    }
}
