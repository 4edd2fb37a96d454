//! Counts the operator's calls of one schedule, on both sides, and says which of them fail.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::sync::{Notify, watch};

use super::{
    cluster::Kind,
    plan::{Failure, Point, Side, Sight, Trouble},
};

/// A call by what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// A write that counts.
    Write,
    /// A write of an Event: may be lost.
    Event,
    /// A write of a Lease.
    Lease,
    List,
    Watch,
    Read,
}

/// A write that was begun.
#[derive(Debug, Clone)]
pub struct Write {
    pub side: Side,
    pub class: Class,
    /// `cluster PATCH agentpools/status`
    pub label: String,
    /// Counted among those of the label, from 1.
    pub nth: usize,
    pub path: String,
    pub body: Value,
    /// What went wrong with it.
    pub failure: Option<Failure>,
    /// Since the schedule began.
    pub at: Duration,
}

impl Write {
    /// For people.
    pub fn line(&self) -> String {
        let failure = self.failure.map(|failure| format!(" {failure:?}")).unwrap_or_default();
        format!("{:>6} ms {}#{} {}{failure}", self.at.as_millis(), self.label, self.nth, self.path)
    }

    pub fn point(&self) -> Point {
        Point::Write { label: self.label.clone(), nth: self.nth }
    }
}

#[derive(Debug, Default)]
struct Inner {
    writes: Vec<Write>,
    counts: HashMap<String, usize>,
    calls: HashMap<(Side, Class, String), usize>,
    troubles: Vec<(Trouble, bool)>,
    since_restart: Option<usize>,
    down_until: HashMap<Side, Instant>,
    /// Revisions of the API server that the operator's writes made.
    revisions: Vec<u64>,
    /// What was sent and must never be shown.
    pub secrets: Vec<String>,
    /// Operators started so far.
    starts: usize,
    /// Of each kind that is watched.
    follows: BTreeMap<String, Follow>,
}

/// How the operators kept up with one kind.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Follow {
    /// Lists that a watch began with, and that were answered.
    pub lists: usize,
    pub watches: usize,
    /// Watches that ended with 410: what came meanwhile can only be listed.
    pub gone: usize,
    /// Watches that ended otherwise: the next one goes on where they were.
    pub cuts: usize,
    /// Lists and watches that met a server that is away.
    pub in_vain: usize,
}

/// What the faults of one schedule are decided by.
#[derive(Debug)]
pub struct Recorder {
    inner: Mutex<Inner>,
    /// The operator is dead and not yet started again: nothing of it arrives anywhere.
    dead: AtomicBool,
    crashed: Notify,
    sight: Option<Sight>,
    stale: usize,
    pub seed: u64,
    events: Mutex<usize>,
    /// Counts outages of the API server: each ends all watches.
    outages: watch::Sender<u64>,
    in_flight: AtomicUsize,
    start: Instant,
}

/// A write that is under way as long as this lives.
#[derive(Debug)]
pub struct Flight(Arc<Recorder>);

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What is to be done with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Fail(Failure),
    /// Nothing answers.
    Down,
    /// Whoever called is dead.
    Dead,
}

impl Recorder {
    pub fn new(troubles: &[Trouble], seed: u64) -> Self {
        let sight = troubles.iter().find_map(|trouble| match trouble {
            Trouble::Sight(sight) => Some(*sight),
            _ => None,
        });
        let stale = troubles.iter().find_map(|trouble| match trouble {
            Trouble::Stale(back) => Some(*back),
            _ => None,
        });
        let inner = Inner { troubles: troubles.iter().map(|t| (t.clone(), false)).collect(), ..Inner::default() };
        Self {
            inner: Mutex::new(inner),
            dead: AtomicBool::new(false),
            crashed: Notify::new(),
            sight,
            stale: stale.unwrap_or(0),
            seed,
            events: Mutex::new(0),
            outages: watch::Sender::new(0),
            in_flight: AtomicUsize::new(0),
            start: Instant::now(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn sight(&self) -> Option<Sight> {
        self.sight
    }

    /// Number of a watch event among all of the schedule, from 1.
    pub fn event(&self) -> usize {
        let mut events = self.events.lock().unwrap();
        *events += 1;
        *events
    }

    /// A call comes; for a write, the number that [`Self::answered`] takes.
    pub fn meet(&self, side: Side, class: Class, label: &str, path: &str, body: &Value) -> (Verdict, usize) {
        if self.dead.load(Ordering::SeqCst) {
            return (Verdict::Dead, 0);
        }
        let mut inner = self.inner();
        *inner.calls.entry((side, class, label.to_owned())).or_default() += 1;
        let down = inner.is_down(side);
        if !matches!(class, Class::Write | Class::Event | Class::Lease) {
            return (if down { Verdict::Down } else { Verdict::Pass }, 0);
        }
        let nth = *inner.counts.entry(label.to_owned()).and_modify(|n| *n += 1).or_insert(1);
        let verdict = if class == Class::Write { inner.decide(label, nth) } else { None };
        if !down && inner.is_down(Side::Cluster) {
            self.outages.send_modify(|count| *count += 1);
        }
        let verdict = match verdict {
            _ if down => Verdict::Down,
            Some(failure) => Verdict::Fail(failure),
            None if inner.is_down(side) => Verdict::Down,
            None => Verdict::Pass,
        };
        let failure = match verdict {
            Verdict::Fail(failure) => Some(failure),
            Verdict::Down => Some(Failure::TimeoutBefore),
            _ => None,
        };
        let (label, path, body) = (label.to_owned(), path.to_owned(), body.clone());
        inner.writes.push(Write { side, class, label, nth, path, body, failure, at: self.start.elapsed() });
        (verdict, inner.writes.len())
    }

    pub fn takes_off(self: &Arc<Self>) -> Flight {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        Flight(self.clone())
    }

    /// Whether a write of the operator is under way.
    pub fn is_busy(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst) > 0
    }

    /// A write has been answered by the API server with this object.
    pub fn answered(&self, object: &Value) {
        let revision: Option<u64> = object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok());
        self.inner().revisions.extend(revision);
    }

    /// The revision that a list of a restarted operator is answered with.
    pub fn stale_revision(&self) -> Option<u64> {
        let inner = self.inner();
        if self.stale == 0 || inner.since_restart.is_none() {
            return None;
        }
        let mut revisions = inner.revisions.clone();
        revisions.sort_unstable();
        revisions.dedup();
        revisions.iter().rev().nth(self.stale).copied()
    }

    /// The operator dies now.
    pub fn crash(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.crashed.notify_one();
    }

    pub async fn crashed(&self) {
        self.crashed.notified().await;
    }

    /// A new operator is about to start.
    pub fn revive(&self) {
        self.inner().since_restart = Some(0);
        self.dead.store(false, Ordering::SeqCst);
    }

    pub fn writes(&self) -> Vec<Write> {
        self.inner().writes.clone()
    }

    /// Writes that count, so far.
    pub fn written(&self) -> usize {
        self.inner().writes.iter().filter(|write| write.class == Class::Write).count()
    }

    /// Calls of a class with that label.
    pub fn calls(&self, side: Side, class: Class, wanted: &str) -> usize {
        let inner = self.inner();
        let matching = inner.calls.iter().filter(|((s, c, label), _)| *s == side && *c == class && label == wanted);
        matching.map(|(_, count)| count).sum()
    }

    /// Troubles that have happened.
    pub fn hit(&self) -> usize {
        self.inner().troubles.iter().filter(|(_, done)| *done).count()
    }

    pub fn add_secret(&self, secret: &str) {
        self.inner().secrets.push(secret.to_owned());
    }

    pub fn secrets(&self) -> Vec<String> {
        self.inner().secrets.clone()
    }

    /// `side` is away for a while.
    pub fn take_down(&self, side: Side, time: Duration) {
        self.inner().down_until.insert(side, Instant::now() + time);
        if side == Side::Cluster {
            self.outages.send_modify(|count| *count += 1);
        }
    }

    /// Resolves when the API server goes away next.
    pub fn outage(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut outages = self.outages.subscribe();
        async move { drop(outages.changed().await) }
    }

    /// An operator is started.
    pub fn starts(&self) {
        self.inner().starts += 1;
    }

    /// Notes something about how a kind is followed.
    pub fn follow(&self, kind: &str, note: impl FnOnce(&mut Follow)) {
        note(self.inner().follows.entry(kind.to_owned()).or_default());
    }

    /// How each kind was followed, and how many operators did.
    pub fn follows(&self) -> (BTreeMap<String, Follow>, usize) {
        let inner = self.inner();
        (inner.follows.clone(), inner.starts)
    }

    /// Kinds of which the operator ever wrote an object.
    pub fn kinds(&self) -> BTreeSet<Kind> {
        let inner = self.inner();
        let resource =
            |label: &String| label.strip_prefix("cluster ")?.split([' ', '/']).nth(1).and_then(Kind::of_plural);
        inner.counts.keys().filter_map(resource).collect()
    }
}

impl Inner {
    fn is_down(&self, side: Side) -> bool {
        self.down_until.get(&side).is_some_and(|until| Instant::now() < *until)
    }

    fn decide(&mut self, label: &str, nth: usize) -> Option<Failure> {
        if let Some(count) = &mut self.since_restart {
            *count += 1;
        }
        let since_restart = self.since_restart;
        let here = |at: &Point| match at {
            Point::Write { label: wanted, nth: number } => wanted == label && *number == nth,
            Point::AfterRestart(number) => since_restart == Some(*number),
        };
        let mut failure = None;
        for (trouble, done) in &mut self.troubles {
            match trouble {
                Trouble::Write { at, failure: what } if !*done && failure.is_none() && here(at) => {
                    *done = true;
                    failure = Some(*what);
                }
                Trouble::Down { side, at, ms } if !*done && here(at) => {
                    *done = true;
                    self.down_until.insert(*side, Instant::now() + Duration::from_millis(*ms));
                }
                _ => {}
            }
        }
        failure
    }
}
