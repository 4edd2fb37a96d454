//! Plays schedules, many at a time, and counts how they end.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    runtime::Runtime,
    sync::{OnceCell, Semaphore, SemaphorePermit},
};

use super::{
    cluster::Cluster,
    observe::{Observation, observe},
    oracles::{self, Budget, Verdict},
    plan::{Schedule, Trouble},
    proxy::ControlPlane,
    recorder::{Recorder, Write},
    scenario::{Scenario, Step, all, find},
    stage::{Stage, Stuck},
};

/// Schedules at a time: so many that the processors do not wait for schedules that wait. TERRAPOOL_FAULTS_SEATS says
/// how many on a machine that is slower, or has more processors.
const SEATS: usize = 28;

/// Schedules that one control plane serves.
const SERVES: usize = 40;

/// Passes over everything after which an operator that has written nothing is taken to be at rest (O1).
const IDLE: usize = 50;

/// How a schedule ended.
#[derive(Debug, Clone)]
pub struct Ending {
    pub schedule: String,
    /// Faults that came to pass.
    pub hit: usize,
    pub written: usize,
    /// What did not come about.
    pub stuck: Option<String>,
    pub violations: Vec<oracles::Violation>,
    /// Shown when it failed: the writes and the operators' log.
    pub log: String,
    pub took: Duration,
}

impl Ending {
    pub fn failed(&self) -> bool {
        self.stuck.is_some() || !self.violations.is_empty()
    }
}

/// A run without faults: what others are measured by.
#[derive(Debug, Clone)]
pub struct Clean {
    pub writes: Vec<Write>,
}

#[derive(Debug, Default, Clone)]
struct Row {
    schedules: usize,
    hit: usize,
    leaks: usize,
    duplicates: usize,
    stuck: usize,
    other: usize,
    seconds: f64,
}

pub struct Hub {
    runtime: Runtime,
    cluster: OnceCell<Cluster>,
    planes: Mutex<Vec<Arc<ControlPlane>>>,
    seats: Semaphore,
    clean: Mutex<BTreeMap<String, Arc<OnceCell<Arc<Clean>>>>>,
    rows: Mutex<BTreeMap<&'static str, Row>>,
    count: AtomicUsize,
    /// When the first schedule began.
    begun: OnceLock<Instant>,
    failures: Mutex<Option<std::fs::File>>,
}

/// The one that all tests share.
pub fn hub() -> &'static Hub {
    static HUB: OnceLock<Hub> = OnceLock::new();
    HUB.get_or_init(|| Hub {
        runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
        cluster: OnceCell::new(),
        planes: Mutex::default(),
        seats: Semaphore::new(seats()),
        clean: Mutex::default(),
        rows: Mutex::default(),
        count: AtomicUsize::new(0),
        begun: OnceLock::new(),
        failures: Mutex::new(None),
    })
}

fn seats() -> usize {
    std::env::var("TERRAPOOL_FAULTS_SEATS")
        .map_or(SEATS, |value| value.parse().expect("TERRAPOOL_FAULTS_SEATS: a number"))
}

/// Whether everything is to be played, not only what continuous integration has time for.
pub fn exhaustive() -> bool {
    std::env::var("TERRAPOOL_FAULTS").is_ok_and(|value| value == "all")
}

impl Hub {
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    pub fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.runtime.spawn(future)
    }

    /// Room for one more schedule.
    pub async fn seat(&self) -> SemaphorePermit<'_> {
        self.seats.acquire().await.unwrap()
    }

    pub async fn cluster(&self) -> &Cluster {
        self.cluster.get_or_init(Cluster::connect).await
    }

    /// A control plane that nobody uses now.
    pub async fn plane(&self) -> Arc<ControlPlane> {
        let idle = self.planes.lock().unwrap().pop();
        match idle {
            Some(plane) => plane,
            None => Arc::new(ControlPlane::start().await),
        }
    }

    /// A name of its own for a namespace.
    pub fn namespace(&self) -> String {
        format!("faults-{:x}-{}", std::process::id(), self.count.fetch_add(1, Ordering::SeqCst))
    }

    /// The clean run of a scenario, made once.
    pub async fn clean(&'static self, scenario: &str) -> Arc<Clean> {
        let cell = self.clean.lock().unwrap().entry(scenario.to_owned()).or_default().clone();
        let clean = cell.get_or_init(|| async {
            let schedule = Schedule {
                class: "clean",
                scenario: scenario.to_owned(),
                title: String::new(),
                troubles: Vec::new(),
                seed: 0,
            };
            let (ending, seen) = Box::pin(self.run(&schedule, &[])).await;
            assert!(!ending.failed(), "without any fault:\n{}", describe(&ending));
            self.note(&schedule, &ending);
            let seen = seen.unwrap();
            Arc::new(Clean { writes: seen.counted().into_iter().cloned().collect() })
        });
        Box::pin(clean).await.clone()
    }

    /// Clean runs of all scenarios.
    pub async fn all_clean(&'static self) -> Vec<(Scenario, Arc<Clean>)> {
        let mut scenarios = all();
        if let Ok(wanted) = std::env::var("TERRAPOOL_SCENARIOS") {
            scenarios.retain(|scenario| wanted.split(',').any(|word| scenario.name.contains(word)));
        }
        let runs = scenarios.iter().map(|scenario| self.clean(&scenario.name));
        let runs = futures::future::join_all(runs).await;
        scenarios.into_iter().zip(runs).collect()
    }

    /// Plays schedules, many at a time; `more` are steps after the scenario's. Fails with all that went wrong.
    pub fn play(&'static self, schedules: Vec<(Schedule, Vec<Step>)>) {
        let wanted = std::env::var("TERRAPOOL_SCHEDULE").ok();
        let chosen = |schedule: &Schedule| wanted.as_ref().is_none_or(|wanted| schedule.to_string().contains(wanted));
        let tasks: Vec<_> = schedules
            .into_iter()
            .filter(|(schedule, _)| chosen(schedule))
            .map(|(schedule, more)| {
                self.runtime.spawn(async move {
                    let (ending, _) = Box::pin(self.run(&schedule, &more)).await;
                    self.note(&schedule, &ending);
                    ending
                })
            })
            .collect();
        let endings = self.block_on(futures::future::join_all(tasks));
        self.write_table();
        let endings: Vec<Ending> = endings.into_iter().map(|ending| ending.expect("a schedule's own defect")).collect();
        let failed: Vec<&Ending> = endings.iter().filter(|ending| ending.failed()).collect();
        if wanted.is_some() {
            endings.iter().for_each(|ending| println!("{}", describe(ending)));
        }
        assert!(
            failed.is_empty(),
            "{} of {} schedules failed (TERRAPOOL_SCHEDULE=ID plays one again):\n{}\n{}",
            failed.len(),
            endings.len(),
            failed.iter().fold(String::new(), |text, ending| text + &ending.schedule + "\n"),
            failed.iter().take(3).map(|ending| describe(ending)).collect::<Vec<_>>().join("\n")
        );
    }

    /// One schedule, from an empty namespace to an empty namespace.
    pub async fn run(&'static self, schedule: &Schedule, more: &[Step]) -> (Ending, Option<Observation>) {
        let mut scenario = find(&schedule.scenario);
        if schedule.class == "F9" {
            scenario.operators = 2;
        }
        // Before there is a seat: the clean run wants one too.
        let budget = match schedule.class {
            "clean" => Budget::ENDLESS,
            _ => budget(self.clean_writes(&schedule.scenario).await, schedule, more),
        };
        let _seat = self.seat().await;
        let start = Instant::now();
        self.begun.get_or_init(|| start);
        scenario.steps.extend_from_slice(more);
        let plane = self.plane().await;
        let recorder = Arc::new(Recorder::new(&schedule.troubles, schedule.seed));
        let cluster = self.cluster().await;
        let stage = Stage::open(cluster, plane.clone(), &self.namespace(), &scenario, recorder.clone()).await;
        let result = async {
            stage.play(&scenario.steps).await?;
            stage.settle(1).await?;
            if schedule.class == "clean" {
                let written = stage.recorder.writes().len();
                stage.stays_still(IDLE).await?;
                return Ok(written);
            }
            Ok(usize::MAX)
        };
        let result = Box::pin(result).await;
        let mut seen = observe(&stage).await;
        let (stuck, violations) = match result {
            Ok(written) => {
                let violations = oracles::check(&seen, budget);
                seen.writes.truncate(written);
                (None, violations)
            }
            Err(Stuck(message)) => (
                Some(message),
                oracles::check(&Observation { panics: seen.panics.clone(), ..Observation::default() }, Budget::ENDLESS),
            ),
        };
        let lines: Vec<String> = seen.writes.iter().map(Write::line).collect();
        let log = format!("{}\n{}", lines.join("\n"), stage.log.text());
        stage.close().await;
        let written = seen.counted().len();
        let ending = Ending {
            schedule: schedule.to_string(),
            hit: recorder.hit(),
            written,
            stuck,
            violations,
            log,
            took: start.elapsed(),
        };
        self.give_back(plane, ending.failed());
        (ending, Some(seen))
    }

    async fn clean_writes(&'static self, scenario: &str) -> usize {
        self.clean(scenario).await.writes.len()
    }

    fn give_back(&self, plane: Arc<ControlPlane>, spoilt: bool) {
        let used = plane.used.fetch_add(1, Ordering::SeqCst) + 1;
        if !spoilt && used < SERVES {
            self.planes.lock().unwrap().push(plane);
        }
    }

    fn note(&self, schedule: &Schedule, ending: &Ending) {
        let mut rows = self.rows.lock().unwrap();
        let row = rows.entry(schedule.class).or_default();
        let with = |verdict: Verdict| ending.violations.iter().any(|found| found.verdict == verdict);
        row.schedules += 1;
        row.hit += usize::from(ending.hit > 0);
        row.leaks += usize::from(with(Verdict::Leak));
        row.duplicates += usize::from(with(Verdict::Duplicate));
        row.stuck += usize::from(ending.stuck.is_some());
        row.other += usize::from(with(Verdict::Other));
        row.seconds += ending.took.as_secs_f64();
        drop(rows);
        if ending.failed() {
            self.keep(&describe(ending));
        }
    }

    /// Failures are there to read before the test has ended.
    fn keep(&self, text: &str) {
        use std::io::Write;
        let mut file = self.failures.lock().unwrap();
        if file.is_none() {
            *file = std::fs::File::create(logs().join("operator-faults-failed.txt")).ok();
        }
        if let Some(file) = file.as_mut() {
            drop(writeln!(file, "{text}\n"));
        }
    }

    /// The one table, so far.
    fn write_table(&self) {
        let rows = self.rows.lock().unwrap().clone();
        let points: usize =
            self.clean.lock().unwrap().values().filter_map(|cell| cell.get()).map(|clean| clean.writes.len()).sum();
        let seconds = self.begun.get().map_or(0, |begun| begun.elapsed().as_secs());
        let mut text =
            format!("operator faults: {points} write points; {seconds} s from the first schedule to the last\n");
        text += "class  schedules  met a fault  leaks  duplicates  not converged  other  seconds each\n";
        let mut total = Row::default();
        let line = |name: &str, row: &Row, text: &mut String| {
            let each = row.seconds / row.schedules.max(1) as f64;
            let Row { schedules, hit, leaks, duplicates, stuck, other, .. } = row;
            writeln!(text, "{name:<5}  {schedules:>9}  {hit:>11}  {leaks:>5}  {duplicates:>10}  {stuck:>13}  {other:>5}  {each:>12.2}").unwrap();
        };
        for (class, row) in &rows {
            line(class, row, &mut text);
            total.schedules += row.schedules;
            total.hit += row.hit;
            total.leaks += row.leaks;
            total.duplicates += row.duplicates;
            total.stuck += row.stuck;
            total.other += row.other;
            total.seconds += row.seconds;
        }
        line("total", &total, &mut text);
        drop(std::fs::write(logs().join("operator-faults.txt"), text));
    }
}

fn logs() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/test-logs");
    drop(std::fs::create_dir_all(&folder));
    folder
}

/// Objects that an outage meets, in most scenarios.
const OBJECTS: usize = 4;

/// How often an object is tried within this time at most: after 50 ms, 100 ms, …, or three quarters of that.
fn attempts(within: Duration) -> usize {
    let pauses = (0..16).map(|doublings| Duration::from_micros(37_500) * 2_u32.pow(doublings));
    let begun = pauses.scan(Duration::ZERO, |at, pause| {
        *at += pause;
        Some(*at)
    });
    1 + begun.take_while(|at| *at < within).count()
}

/// Most writes that a schedule may take: the clean run's and a fifth, and what its faults may cost.
fn budget(clean: usize, schedule: &Schedule, more: &[Step]) -> Budget {
    let cost = |trouble: &Trouble| match trouble {
        Trouble::Write { .. } => 6,
        Trouble::Sight(_) | Trouble::Stale(_) | Trouble::Down { .. } => 8,
    };
    let refused = |trouble: &Trouble| match trouble {
        Trouble::Down { ms, .. } => OBJECTS * attempts(Duration::from_millis(*ms)),
        _ => 0,
    };
    let troubles: usize = schedule.troubles.iter().map(cost).sum();
    // A Secret that is written late holds a token that the other operator has revoked: token, Secret and Pods are made anew.
    let operators = if schedule.class == "F9" { 8 + clean } else { 0 };
    Budget {
        writes: clean + clean.div_ceil(5) + troubles + operators + 8 * more.len(),
        refused: schedule.troubles.iter().map(refused).sum(),
    }
}

/// For people.
pub fn describe(ending: &Ending) -> String {
    let mut text =
        format!("=== {}\n{} writes, {} faults met, {:?}\n", ending.schedule, ending.written, ending.hit, ending.took);
    if let Some(stuck) = &ending.stuck {
        writeln!(text, "NOT CONVERGED {stuck}").unwrap();
    }
    for violation in &ending.violations {
        writeln!(text, "{violation}").unwrap();
    }
    let lines: Vec<&str> = ending.log.lines().collect();
    let tail = &lines[lines.len().saturating_sub(120)..];
    text + "--- writes, and the operators' log\n" + &tail.join("\n")
}
