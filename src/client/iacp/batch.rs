//! One read for all who want to know something of the same kind at the same time. Nobody gets an answer that is older
//! than the question, and nobody waits for company: whoever asks while a read is under way is in the next one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex as Lock, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::sync::Mutex;

/// Keys of one read at most: they stand in an address.
const MOST: usize = 50;

/// A read that takes longer is not waited for by the next one: of a server that is away one deadline is enough.
const PATIENCE: Duration = Duration::from_millis(100);

/// Reads of things of one kind, by key.
#[derive(Debug)]
pub(super) struct Batch<K, T, E> {
    /// What is asked for next.
    open: Lock<Arc<Round<K, T, E>>>,
    /// Of the read that is under way.
    turn: Mutex<()>,
}

/// Those who are told by one read.
#[derive(Debug)]
struct Round<K, T, E> {
    keys: Lock<BTreeSet<K>>,
    /// Of the one who reads.
    lead: Mutex<()>,
    answers: OnceLock<Result<BTreeMap<K, T>, E>>,
}

impl<K, T, E> Default for Round<K, T, E> {
    fn default() -> Self {
        Self { keys: Lock::default(), lead: Mutex::default(), answers: OnceLock::new() }
    }
}

impl<K, T, E> Default for Batch<K, T, E> {
    fn default() -> Self {
        Self { open: Lock::default(), turn: Mutex::default() }
    }
}

fn locked<T>(lock: &Lock<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Ord + Clone, T: Clone, E: Clone> Batch<K, T, E> {
    /// The answer about `key` of a read that began after this call, maybe of another caller's. `read` gives those of
    /// the keys that there is something about.
    pub(super) async fn get<F>(&self, key: K, read: impl Fn(Vec<K>) -> F) -> Result<Option<T>, E>
    where
        F: Future<Output = Result<BTreeMap<K, T>, E>>,
    {
        let round = self.join(key.clone());
        let turn = tokio::time::timeout(PATIENCE, self.turn.lock()).await;
        let lead = round.lead.lock().await;
        if round.answers.get().is_none() {
            self.close(&round);
            let keys = locked(&round.keys).iter().cloned().collect();
            // Whoever is dropped here leaves the round to the next of it.
            let answers = read(keys).await;
            // Err: it was set, which only the one who leads does.
            drop(round.answers.set(answers));
        }
        drop((lead, turn));
        match round.answers.get() {
            Some(Ok(answers)) => Ok(answers.get(&key).cloned()),
            Some(Err(error)) => Err(error.clone()),
            None => Ok(None),
        }
    }

    /// The round in which the key is read.
    fn join(&self, key: K) -> Arc<Round<K, T, E>> {
        let mut open = locked(&self.open);
        if locked(&open.keys).len() >= MOST {
            *open = Arc::default();
        }
        locked(&open.keys).insert(key);
        Arc::clone(&open)
    }

    /// From now on whoever asks is in the next round.
    fn close(&self, round: &Arc<Round<K, T, E>>) {
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
        batch: Batch<&'static str, usize, Infallible>,
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
    async fn a_read_that_fails_fails_for_its_round_and_no_later_one() {
        let (batch, reads) = (Batch::<&str, usize, usize>::default(), AtomicUsize::new(0));
        let read = |keys: Vec<&'static str>| {
            let number = reads.fetch_add(1, Ordering::SeqCst) + 1;
            async move {
                tokio::task::yield_now().await;
                if number < 3 { Err(number) } else { Ok(keys.into_iter().map(|key| (key, number)).collect()) }
            }
        };
        let answers = tokio::join!(batch.get("a", read), batch.get("b", read), batch.get("c", read));
        assert_eq!(answers, (Err(1), Err(2), Err(2)));
        assert_eq!(batch.get("a", read).await, Ok(Some(3)));
    }

    #[tokio::test]
    async fn a_read_that_never_ends_holds_up_nobody_else() {
        let batch = Batch::<&str, (), Infallible>::default();
        let read = |keys: Vec<&'static str>| async move {
            if keys == ["slow"] {
                std::future::pending::<()>().await;
            }
            Ok(keys.into_iter().map(|key| (key, ())).collect())
        };
        let others = async { tokio::join!(batch.get("a", read), batch.get("b", read)) };
        let answers = tokio::select! {
            biased;
            never = batch.get("slow", read) => panic!("{never:?}"),
            answers = others => answers,
            () = tokio::time::sleep(Duration::from_secs(30)) => panic!("they wait"),
        };
        assert_eq!(answers, (Ok(Some(())), Ok(Some(()))));
    }

    #[tokio::test]
    async fn no_read_asks_for_too_much() {
        let batch = Batch::<usize, (), Infallible>::default();
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
