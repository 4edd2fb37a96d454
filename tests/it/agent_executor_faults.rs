//! Every fault at every point of a job's life, for plans and applies in processes, containers, and containers that waited
//! for their job: a real agent process, a real engine of containers, and a control plane whose clock the test moves.
//!
//! After each case the run has the one end that it must have, nothing was executed twice, what was made is recorded,
//! the log has neither gap nor repetition, what a lost agent sent afterwards was refused, and the host is clean. The
//! table of all cases is in `target/test-logs/agent-faults.txt`; `TERRAPOOL_CASE=docker/apply/A4/kill` plays one.

use std::{
    fmt,
    fmt::Write as _,
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use futures::{StreamExt, stream};
use terrapool::{
    agent::executor::Choice,
    api::{agent::reason, job::Stage, run_state::RunState},
};

use crate::support::faults::{Scene, silenced};

/// Cases of one test at a time: most of their time they wait.
const AT_A_TIME: usize = 8;

/// How far the agent has come with the stage when the fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// The control plane has given it the job, and it has not heard so.
    A1,
    /// It has the job; the files are not there yet.
    A2,
    /// Everything is there, and nothing has started.
    A3,
    /// The engine runs.
    A4,
    /// The engine has ended; its log is on the way.
    A5,
    /// All is delivered but the result.
    A6,
    /// The result is stored, and the agent has not heard so.
    A7,
}

const POINTS: [Point; 7] = [Point::A1, Point::A2, Point::A3, Point::A4, Point::A5, Point::A6, Point::A7];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL, and a new process inside the lease.
    Kill,
    /// SIGTERM.
    Drain,
    /// SIGSTOP for longer than the lease.
    Zombie,
    /// Nothing comes through for less than the lease.
    ShortPartition,
    /// Nothing comes through for longer than the lease.
    LongPartition,
    /// The control plane is killed and starts again.
    ServerKilled,
    /// The database is locked for longer than the control plane waits for it.
    DatabaseLocked,
    /// The Docker engine is not there for a while.
    EngineAway,
    /// What runs the stage is killed, as for memory.
    StageKilled,
    /// The host's clock jumps forward an hour.
    ClockForward,
    /// The host's clock jumps back an hour, and the agent is killed and starts again.
    ClockBack,
    /// Somebody cancels the run.
    Cancel,
    /// Somebody cancels it, and does not wait.
    ForceCancel,
}

const FAULTS: [(Fault, &str); 13] = [
    (Fault::Kill, "kill"),
    (Fault::Drain, "drain"),
    (Fault::Zombie, "zombie"),
    (Fault::ShortPartition, "partition"),
    (Fault::LongPartition, "long-partition"),
    (Fault::ServerKilled, "server-killed"),
    (Fault::DatabaseLocked, "db-locked"),
    (Fault::EngineAway, "engine-away"),
    (Fault::StageKilled, "stage-killed"),
    (Fault::ClockForward, "clock+1h"),
    (Fault::ClockBack, "clock-1h"),
    (Fault::Cancel, "cancel"),
    (Fault::ForceCancel, "force-cancel"),
];

/// Where the stage runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Where {
    Docker,
    /// A container that was started before there was a job.
    Warm,
    Process,
}

impl Where {
    fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Warm => "warm",
            Self::Process => "process",
        }
    }

    pub fn is_container(self) -> bool {
        self != Self::Process
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    pub place: Where,
    pub apply: bool,
    pub point: Point,
    pub fault: Fault,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = FAULTS.iter().find(|(fault, _)| *fault == self.fault).unwrap().1;
        write!(f, "{}/{}/{:?}/{name}", self.place.as_str(), self.stage().as_str(), self.point)
    }
}

/// How a case must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As without a fault.
    Done,
    /// The plan was given out a second time, and done.
    Again,
    /// The run has failed for this reason.
    Errored(&'static str),
    Canceled,
    ForceCanceled,
    /// What had ended well when the cancellation came has ended well; or it is canceled.
    DoneOrCanceled,
}

impl Case {
    pub fn choice(self) -> Choice {
        if self.place.is_container() { Choice::Docker } else { Choice::Process }
    }

    pub fn stage(self) -> Stage {
        if self.apply { Stage::Apply } else { Stage::Plan }
    }

    /// The agent has its lease no more when it comes back.
    pub fn loses_lease(self) -> bool {
        matches!(self.fault, Fault::Zombie | Fault::LongPartition)
    }

    /// The stage is to come to no end of its own.
    pub fn ends_by_force(self) -> bool {
        matches!(self.fault, Fault::StageKilled | Fault::Cancel | Fault::ForceCancel)
    }

    /// The stage is to wait for a word of the test.
    pub fn waits(self) -> bool {
        self.point == Point::A4 || (self.ends_by_force() && self.point < Point::A4)
    }

    pub fn end(self) -> End {
        match self {
            // The control plane has its result: there is nothing left to lose.
            Self { point: Point::A7, .. } => End::Done,
            Self { apply: true, .. } if self.loses_lease() => End::Errored(reason::AGENT_LOST),
            _ if self.loses_lease() => End::Again,
            // Nobody tells the container of its job any more, and an apply that may have begun is not begun again.
            Self {
                place: Where::Warm, apply: true, point: Point::A3, fault: Fault::Kill | Fault::ClockBack, ..
            } => End::Errored(reason::CONTAINER_LOST),
            Self { fault: Fault::StageKilled, .. } if self.point <= Point::A4 => End::Errored(reason::CONTAINER_LOST),
            Self { fault: Fault::ForceCancel, .. } => End::ForceCanceled,
            Self { fault: Fault::Cancel, .. } if self.point <= Point::A4 => End::Canceled,
            Self { fault: Fault::Cancel, .. } => End::DoneOrCanceled,
            _ => End::Done,
        }
    }

    /// The run may be left in this status when all is over.
    pub fn accepts(self, status: RunState) -> bool {
        let done = if self.apply { RunState::Applied } else { RunState::Planned };
        match self.end() {
            End::Done | End::Again => status == done,
            End::Errored(_) => status == RunState::Errored,
            End::Canceled => status == RunState::Canceled,
            End::ForceCanceled => status == RunState::ForceCanceled,
            End::DoneOrCanceled => status == done || status == RunState::Canceled,
        }
    }

    /// The stage may have been cut short.
    pub fn is_cut_short(self) -> bool {
        !matches!(self.end(), End::Done | End::Again)
    }

    /// Whether a state of this serial may be the recorded one when all is over: the engine writes 1 before it waits
    /// and 2 at its end.
    pub fn accepts_serial(self, serial: Option<i64>) -> bool {
        match (self.apply, self.is_cut_short(), self.point) {
            (false, ..) => serial.is_none(),
            (true, false, _) => serial == Some(2),
            (true, true, Point::A1 | Point::A2 | Point::A3) if self.loses_lease() => serial.is_none(),
            (true, true, _) if self.fault == Fault::StageKilled => serial == Some(1),
            // The cancellation comes before the start or after it.
            (true, true, Point::A1 | Point::A2 | Point::A3) => serial.is_none_or(|serial| serial == 1),
            (true, true, Point::A4) => serial == Some(1),
            (true, true, _) => serial == Some(2),
        }
    }
}

fn cases(place: Where, apply: bool) -> Vec<Case> {
    let wanted = std::env::var("TERRAPOOL_CASE").ok();
    let faults =
        FAULTS.into_iter().map(|(fault, _)| fault).filter(|fault| place.is_container() || *fault != Fault::EngineAway);
    faults
        .flat_map(|fault| POINTS.map(|point| Case { place, apply, point, fault }))
        .filter(|case| wanted.as_ref().is_none_or(|wanted| case.to_string().contains(wanted)))
        .collect()
}

/// What became of the cases that were played in this process.
static PLAYED: Mutex<Vec<(Case, bool)>> = Mutex::new(Vec::new());

fn note(case: Case, passed: bool) {
    let mut played = PLAYED.lock().unwrap_or_else(PoisonError::into_inner);
    played.push((case, passed));
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/test-logs");
    drop(fs::create_dir_all(&folder));
    drop(fs::write(folder.join("agent-faults.txt"), table(&played)));
}

/// One row per fault, executor and stage; one column per point.
fn table(played: &[(Case, bool)]) -> String {
    let bad = played.iter().filter(|(_, passed)| !passed).count();
    let mut text = format!("agent faults: {} cases, {bad} failed\n", played.len());
    writeln!(text, "{:<30}{}", "fault", POINTS.map(|point| format!("{point:?}   ")).concat()).unwrap();
    for place in [Where::Docker, Where::Warm, Where::Process] {
        for apply in [false, true] {
            for (fault, name) in FAULTS {
                let cell = |point| {
                    let case = Case { place, apply, point, fault };
                    match played.iter().find(|(played, _)| *played == case) {
                        None => "-    ",
                        Some((_, true)) => "ok   ",
                        Some((_, false)) => "BAD  ",
                    }
                };
                let row = POINTS.map(cell).concat();
                if row.contains(['o', 'B']) {
                    let stage = Case { place, apply, point: Point::A1, fault }.stage().as_str();
                    writeln!(text, "{:<30}{}", format!("{} {stage} {name}", place.as_str()), row.trim_end()).unwrap();
                }
            }
        }
    }
    text
}

async fn play_all(place: Where, apply: bool) {
    silenced();
    let cases = cases(place, apply);
    let count = cases.len();
    let failed: Vec<String> = stream::iter(cases)
        .map(|case| async move {
            let played = tokio::task::spawn_blocking(move || Scene::play_alone(case)).await;
            note(case, played.is_ok());
            let message = |error: tokio::task::JoinError| {
                let panic = error.into_panic();
                let text = panic.downcast_ref::<String>().cloned();
                text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
            };
            played.err().map(|error| format!("=== {case}\n{}", message(error)))
        })
        .buffer_unordered(AT_A_TIME)
        .filter_map(|failure| async { failure })
        .collect()
        .await;
    assert!(failed.is_empty(), "{} of {count} cases failed\n{}", failed.len(), failed.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_in_containers() {
    play_all(Where::Docker, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn applies_in_containers() {
    play_all(Where::Docker, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_in_containers_that_waited() {
    play_all(Where::Warm, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn applies_in_containers_that_waited() {
    play_all(Where::Warm, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_in_processes() {
    play_all(Where::Process, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn applies_in_processes() {
    play_all(Where::Process, true).await;
}
