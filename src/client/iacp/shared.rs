//! One read for all who want to know the same at the same time. Nobody gets an answer that is older than the question.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex as Lock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Mutex;

/// Names that are remembered at most: those of manifests with mistakes come and go.
const MOST: usize = 1000;

/// Reads of things by name.
#[derive(Debug)]
pub(super) struct SharedReads<T>(Lock<HashMap<String, Arc<SharedRead<T>>>>);

impl<T> Default for SharedReads<T> {
    fn default() -> Self {
        Self(Lock::default())
    }
}

impl<T> SharedReads<T> {
    pub(super) fn of(&self, name: &str) -> Arc<SharedRead<T>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(one) = all.get(name) {
            return Arc::clone(one);
        }
        if all.len() >= MOST {
            all.clear();
        }
        Arc::clone(all.entry(name.to_owned()).or_default())
    }
}

/// Reads of one thing.
#[derive(Debug)]
pub(super) struct SharedRead<T> {
    asked: AtomicU64,
    last: Mutex<Last<T>>,
}

#[derive(Debug)]
struct Last<T> {
    /// How many had asked when the read began.
    asked: u64,
    /// `None`: it failed, and everybody sees for himself.
    value: Option<T>,
}

impl<T> Default for SharedRead<T> {
    fn default() -> Self {
        Self { asked: AtomicU64::new(0), last: Mutex::new(Last { asked: 0, value: None }) }
    }
}

impl<T: Clone> SharedRead<T> {
    /// The answer of a read that began after this call, maybe of another caller's.
    pub(super) async fn get<E>(&self, read: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mine = self.asked.fetch_add(1, Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if mine < last.asked {
            if let Some(value) = &last.value {
                return Ok(value.clone());
            }
            // Not one after the other: each may take a whole deadline.
            drop(last);
            return read.await;
        }
        last.value = None;
        last.asked = self.asked.load(Ordering::SeqCst);
        let value = read.await?;
        last.value = Some(value.clone());
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_during_a_read_share_the_next_one() {
        let shared = Arc::new(SharedRead::<u64>::default());
        let (reads, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let ask = || {
            let (shared, reads, gate) = (shared.clone(), reads.clone(), gate.clone());
            tokio::spawn(async move {
                let read = async {
                    let number = reads.fetch_add(1, Ordering::SeqCst) + 1;
                    gate.acquire().await.unwrap().forget();
                    Ok::<_, Infallible>(number)
                };
                shared.get(read).await.unwrap()
            })
        };
        let first = ask();
        while reads.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let during = [ask(), ask(), ask()];
        while shared.asked.load(Ordering::SeqCst) < 4 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(2);
        assert_eq!(first.await.unwrap(), 1);
        for one in during {
            assert_eq!(one.await.unwrap(), 2, "an answer from before the question, or a read too many");
        }
    }

    #[tokio::test]
    async fn after_a_read_that_failed_everybody_reads() {
        let shared = SharedRead::<u64>::default();
        assert_eq!(shared.get(async { Err("down") }).await, Err("down"));
        assert_eq!(shared.get(async { Ok::<_, &str>(7) }).await, Ok(7));
    }
}
