//! Which pools changed lately, in memory: a number for each change, and for each pool the number of its last.
//! What is too old is forgotten, and whoever asks for older news is told to look at everything. Nothing here
//! outlives the process: a cursor of an earlier one is recognised and worth nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicI64},
    time::Duration,
};

use rand::RngExt;
use tokio::time::Instant;

use crate::ids::{AccountId, PoolId};

/// Pools of one account whose last change is remembered: some hundred bytes each.
const REMEMBERED: usize = 16_384;

/// How long changes that are no hurry wait for others, so that thousands of them are not thousands of answers.
const TOGETHER: Duration = Duration::from_secs(2);

/// The news of all accounts.
#[derive(Debug)]
pub struct Changes {
    /// Tells this process from every other one.
    boot: String,
    remembered: usize,
    together: Duration,
    known: Mutex<Known>,
    /// Up to when agents that fell silent have been looked for, in milliseconds since 1970; 0: not yet.
    pub silent_until: AtomicI64,
}

#[derive(Debug, Default)]
struct Known {
    feeds: HashMap<AccountId, Feed>,
    /// Account and last change of each pool that is remembered.
    pools: HashMap<PoolId, (AccountId, u64)>,
}

#[derive(Debug, Default)]
struct Feed {
    last: u64,
    /// Changes up to this one may be forgotten.
    forgotten: u64,
    order: BTreeMap<u64, PoolId>,
    /// Pools with changes that wait for others.
    waiting: BTreeSet<PoolId>,
    /// When those are told.
    due: Option<Instant>,
}

/// What is new since a cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    pub cursor: String,
    /// `None`: anything may have changed.
    pub pools: Option<Vec<PoolId>>,
}

impl Default for Changes {
    fn default() -> Self {
        Self::new(REMEMBERED, TOGETHER)
    }
}

impl Changes {
    fn new(remembered: usize, together: Duration) -> Self {
        let boot = format!("{:032x}", rand::rng().random::<u128>());
        Self { boot, remembered, together, known: Mutex::default(), silent_until: AtomicI64::new(0) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The account of a pool that changed lately.
    pub fn account_of(&self, pool: &PoolId) -> Option<AccountId> {
        self.known().pools.get(pool).map(|(account, _)| account.clone())
    }

    /// Something about the pool is different. Call it after the commit.
    pub fn record(&self, account: &AccountId, pool: &PoolId) {
        self.number(&mut self.known(), account, pool);
    }

    /// The same of something that nobody is in a hurry for: told a moment later, together with others.
    pub fn record_later(&self, account: &AccountId, pool: &PoolId) {
        let mut known = self.known();
        let feed = known.feeds.entry(account.clone()).or_default();
        feed.waiting.insert(pool.clone());
        feed.due.get_or_insert_with(|| Instant::now() + self.together);
    }

    /// When changes are told that wait now.
    pub fn due(&self, account: &AccountId) -> Option<Instant> {
        self.known().feeds.get(account)?.due
    }

    fn number(&self, known: &mut Known, account: &AccountId, pool: &PoolId) {
        let feed = known.feeds.entry(account.clone()).or_default();
        feed.waiting.remove(pool);
        feed.last += 1;
        if let Some((_, before)) = known.pools.insert(pool.clone(), (account.clone(), feed.last)) {
            feed.order.remove(&before);
        }
        feed.order.insert(feed.last, pool.clone());
        while feed.order.len() > self.remembered
            && let Some((number, pool)) = feed.order.pop_first()
        {
            feed.forgotten = number;
            known.pools.remove(&pool);
        }
    }

    /// What changed in the account since `cursor`.
    pub fn since(&self, account: &AccountId, cursor: Option<&str>) -> News {
        let mut known = self.known();
        if let Some(feed) =
            known.feeds.get_mut(account).filter(|feed| feed.due.is_some_and(|due| due <= Instant::now()))
        {
            feed.due = None;
            for pool in std::mem::take(&mut feed.waiting) {
                self.number(&mut known, account, &pool);
            }
        }
        let none = Feed::default();
        let feed = known.feeds.get(account).unwrap_or(&none);
        let seen = cursor
            .and_then(|cursor| cursor.strip_prefix(&self.boot)?.strip_prefix('-')?.parse::<u64>().ok())
            .filter(|seen| (feed.forgotten..=feed.last).contains(seen));
        News {
            cursor: format!("{}-{}", self.boot, feed.last),
            pools: seen.map(|seen| feed.order.range(seen + 1..).map(|(_, pool)| pool.clone()).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(number: usize) -> PoolId {
        format!("apool-{number}").parse().unwrap()
    }

    fn account(name: &str) -> AccountId {
        format!("acc-{name}").parse().unwrap()
    }

    #[test]
    fn each_pool_is_news_once_and_for_its_own_account_only() {
        let changes = Changes::default();
        let (a, b) = (account("a"), account("b"));
        let start = changes.since(&a, None);
        assert_eq!(start.pools, None, "nothing is known of the time before");
        assert_eq!(changes.since(&a, Some(&start.cursor)).pools, Some(vec![]));
        for number in [1, 2, 1] {
            changes.record(&a, &pool(number));
        }
        changes.record(&b, &pool(3));
        let news = changes.since(&a, Some(&start.cursor));
        assert_eq!(news.pools, Some(vec![pool(2), pool(1)]));
        assert_eq!(changes.since(&a, Some(&news.cursor)).pools, Some(vec![]));
        assert_eq!(changes.since(&a, Some(&start.cursor)), news, "asked again, answered again");
    }

    #[test]
    fn what_can_wait_is_told_when_it_is_due_or_with_something_urgent_about_the_same_pool() {
        let a = account("a");
        let news = |changes: &Changes, cursor: &str| changes.since(&a, Some(cursor)).pools.unwrap();
        let patient = Changes::new(100, Duration::from_secs(3600));
        let start = patient.since(&a, None).cursor;
        patient.record_later(&a, &pool(1));
        patient.record_later(&a, &pool(2));
        assert_eq!(news(&patient, &start), []);
        patient.record(&a, &pool(2));
        assert_eq!(news(&patient, &start), [pool(2)]);
        assert!(patient.due(&a).is_some(), "pool 1 waits");

        let hasty = Changes::new(100, Duration::ZERO);
        let start = hasty.since(&a, None).cursor;
        hasty.record_later(&a, &pool(1));
        hasty.record_later(&a, &pool(1));
        assert_eq!(news(&hasty, &start), [pool(1)]);
        assert_eq!((hasty.due(&a), news(&hasty, &hasty.since(&a, None).cursor)), (None, vec![]));
    }

    #[test]
    fn cursors_that_say_nothing_get_everything() {
        let changes = Changes::default();
        let a = account("a");
        changes.record(&a, &pool(1));
        let other = Changes::default().since(&a, None).cursor;
        let ahead = format!("{}-9", changes.boot);
        for cursor in ["", "x", "-", "1", changes.boot.as_str(), &other, &ahead] {
            assert_eq!(changes.since(&a, Some(cursor)).pools, None, "{cursor}");
        }
    }

    #[test]
    fn what_is_too_old_is_forgotten_and_its_cursors_get_everything() {
        let changes = Changes::new(100, TOGETHER);
        let a = account("a");
        let start = changes.since(&a, None).cursor;
        for number in 0..100 {
            changes.record(&a, &pool(number));
        }
        assert_eq!(changes.since(&a, Some(&start)).pools.map(|pools| pools.len()), Some(100));
        let middle = changes.since(&a, None).cursor;
        for number in 0..5_000 {
            changes.record(&a, &pool(number));
        }
        assert_eq!(changes.since(&a, Some(&middle)).pools, None);
        let late = changes.since(&a, None).cursor;
        changes.record(&a, &pool(7));
        assert_eq!(changes.since(&a, Some(&late)).pools, Some(vec![pool(7)]));
        let known = changes.known();
        assert_eq!((known.pools.len(), known.feeds[&a].order.len()), (100, 100));
    }
}
