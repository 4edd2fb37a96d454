//! One read for all who want to know something of the same kind at the same time. Nobody gets an answer that is older
//! than the question, and nobody waits for company: whoever asks while a read is under way is in the next one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex as Lock, MutexGuard, OnceLock, PoisonError},
};

use tokio::sync::Mutex;

/// Keys of one read at most: they stand in an address.
const MOST: usize = 50;

/// Reads of things of one kind, by key.
#[derive(Debug)]
pub(super) struct Batch<K, T> {
    /// What is asked for next.
    open: Lock<Arc<Round<K, T>>>,
    /// One read at a time.
    turn: Mutex<()>,
}

#[derive(Debug)]
struct Round<K, T> {
    keys: Lock<BTreeSet<K>>,
    /// The inner `None`: the read failed, and everybody sees for himself.
    answers: OnceLock<Option<BTreeMap<K, T>>>,
}

impl<K, T> Default for Round<K, T> {
    fn default() -> Self {
        Self { keys: Lock::default(), answers: OnceLock::new() }
    }
}

impl<K, T> Default for Batch<K, T> {
    fn default() -> Self {
        Self { open: Lock::default(), turn: Mutex::default() }
    }
}

fn locked<T>(lock: &Lock<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Ord + Clone, T: Clone> Batch<K, T> {
    /// The answer about `key` of a read that began after this call, maybe of another caller's. `read` gives those of
    /// the keys that there is something about.
    pub(super) async fn get<E, F>(&self, key: K, read: impl Fn(Vec<K>) -> F) -> Result<Option<T>, E>
    where
        F: Future<Output = Result<BTreeMap<K, T>, E>>,
    {
        let round = self.join(key.clone());
        let turn = self.turn.lock().await;
        match round.answers.get() {
            Some(Some(answers)) => return Ok(answers.get(&key).cloned()),
            Some(None) => {
                // Not one after the other: each may take a whole deadline.
                drop(turn);
                return Ok(read(vec![key.clone()]).await?.remove(&key));
            }
            None => {}
        }
        self.close(&round);
        let keys = locked(&round.keys).iter().cloned().collect();
        // Whoever is dropped here leaves the round to the next of it.
        let (kept, mine) = match read(keys).await {
            Ok(answers) => {
                let mine = answers.get(&key).cloned();
                (Some(answers), Ok(mine))
            }
            Err(error) => (None, Err(error)),
        };
        // Err: it was set, which only the holder of the turn does.
        drop(round.answers.set(kept));
        mine
    }

    /// The round in which the key is read.
    fn join(&self, key: K) -> Arc<Round<K, T>> {
        let mut open = locked(&self.open);
        if locked(&open.keys).len() >= MOST {
            *open = Arc::default();
        }
        locked(&open.keys).insert(key);
        Arc::clone(&open)
    }

    /// From now on whoever asks is in the next round.
    fn close(&self, round: &Arc<Round<K, T>>) {
        let mut open = locked(&self.open);
        if Arc::ptr_eq(&open, round) {
            *open = Arc::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use tokio::sync::Semaphore;

    use super::*;

    type Keys = Vec<&'static str>;

    /// Reads that wait for a permit each, and what they were asked.
    struct Server {
        batch: Batch<&'static str, usize>,
        reads: Lock<Vec<Keys>>,
        asked: AtomicUsize,
        gate: Semaphore,
    }

    impl Server {
        fn new() -> Arc<Self> {
            let gate = Semaphore::new(0);
            Arc::new(Self { batch: Batch::default(), reads: Lock::default(), asked: AtomicUsize::new(0), gate })
        }

        fn ask(self: &Arc<Self>, key: &'static str) -> tokio::task::JoinHandle<Option<usize>> {
            let server = Arc::clone(self);
            tokio::spawn(async move {
                server.asked.fetch_add(1, Ordering::SeqCst);
                server.batch.get(key, |keys| server.read(keys)).await.unwrap()
            })
        }

        async fn read(&self, keys: Keys) -> Result<BTreeMap<&'static str, usize>, Infallible> {
            let number = {
                let mut reads = locked(&self.reads);
                reads.push(keys.clone());
                reads.len()
            };
            self.gate.acquire().await.unwrap().forget();
            Ok(keys.into_iter().filter(|key| *key != "missing").map(|key| (key, number)).collect())
        }

        async fn until(&self, done: impl Fn(&Self) -> bool) {
            while !done(self) {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn those_who_ask_during_a_read_share_the_next_one() {
        let server = Server::new();
        let first = server.ask("a");
        server.until(|server| locked(&server.reads).len() == 1).await;
        let during = [server.ask("a"), server.ask("b"), server.ask("b"), server.ask("missing")];
        server.until(|server| server.asked.load(Ordering::SeqCst) == 5).await;
        server.gate.add_permits(2);
        assert_eq!(first.await.unwrap(), Some(1));
        let mut answers = Vec::new();
        for one in during {
            answers.push(one.await.unwrap());
        }
        assert_eq!(
            answers,
            [Some(2), Some(2), Some(2), None],
            "an answer from before the question, or a read too many"
        );
        assert_eq!(*locked(&server.reads), [vec!["a"], vec!["a", "b", "missing"]]);
    }

    #[tokio::test]
    async fn when_the_one_who_reads_is_gone_another_one_reads() {
        let server = Server::new();
        let first = server.ask("a");
        server.until(|server| locked(&server.reads).len() == 1).await;
        let (second, third) = (server.ask("b"), server.ask("c"));
        server.until(|server| server.asked.load(Ordering::SeqCst) == 3).await;
        first.abort();
        server.until(|server| locked(&server.reads).len() == 2).await;
        second.abort();
        server.until(|server| locked(&server.reads).len() == 3).await;
        server.gate.add_permits(1);
        assert_eq!(third.await.unwrap(), Some(3));
    }

    #[tokio::test]
    async fn after_a_read_that_failed_everybody_reads() {
        let batch = Batch::<&str, u8>::default();
        assert_eq!(batch.get("a", |_| async { Err("down") }).await, Err("down"));
        assert_eq!(batch.get("a", |_| async { Ok::<_, &str>(BTreeMap::from([("a", 7)])) }).await, Ok(Some(7)));
    }

    #[tokio::test]
    async fn no_read_asks_for_too_much() {
        let batch = Batch::<usize, ()>::default();
        let (most, all) = (AtomicUsize::new(0), 3 * MOST);
        let reads = (0..all).map(|key| {
            let most = &most;
            batch.get(key, move |keys| async move {
                most.fetch_max(keys.len(), Ordering::SeqCst);
                tokio::task::yield_now().await;
                Ok::<_, Infallible>(keys.into_iter().map(|key| (key, ())).collect())
            })
        });
        let answers = futures::future::join_all(reads).await;
        assert!(answers.iter().all(|answer| *answer == Ok(Some(()))));
        assert_eq!(most.load(Ordering::SeqCst), MOST);
    }
}
