//! One job from claim to report: the only place that knows the order of its steps.
//!
//! Every step may be repeated, and what is on the disk decides where to go on, so a crashed agent enters again
//! here. Two rules hold whatever happens: an apply that was once asked to start is never asked again, and nothing
//! is reported about a job that is not ours any more.

mod deliver;
mod orders;
mod prepare;
mod providers;
mod spans;
mod trouble;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use self::{
    orders::{control, end_before_start},
    prepare::{prepare, prepare_anew},
    trouble::{Trouble, UNDELIVERED},
};
use super::{
    Agent,
    backoff::Backoff,
    ending::{Cause, Ending},
    executor::{self, Executor, Exit, Prepared, Signal},
    jobdir::JobDir,
    logs::Shipper,
    record::{self, Failure, JobRecord},
    redact::Secrets,
    remote::{Remote, Stop},
    result,
    state::Snapshots,
};
use crate::{
    api::{
        agent::{FinishRequest, JobRef, Order, Outcome, reason},
        job::{JobSpec, Stage},
    },
    telemetry::Chain,
    trace::Part,
};

/// How long an engine of containers may be away, as for an update, before jobs fail for it that have not started, and before
/// what it is to remove is left.
const ENGINE_BACK: Duration = Duration::from_secs(60);

/// Attempts to reach the executor for a signal or a removal; then the next event, or the next start, has to do.
const EXECUTOR_ATTEMPTS: u32 = 6;

/// How long a halted agent waits for the removal of a container.
const LAST_REMOVAL: Duration = Duration::from_secs(20);

/// Stores a claimed job and starts its supervisor. When this returns, the claim may be forgotten.
pub(super) async fn take(agent: &Arc<Agent>, spec: JobSpec) {
    let job = reference(&spec);
    tracing::info!(job = %job.job_id, epoch = job.epoch, run = %spec.run.id, stage = spec.stage.as_str(), "took a job");
    let orders = agent.jobs.add(&job);
    match JobDir::create(&agent.config.data, &spec, agent.executor.placement(&spec)).await {
        Ok(dir) => supervise(agent, spec, dir, orders, Life::First),
        Err(error) => {
            let failure = Failure { reason: error.reason().to_owned(), message: Chain(&error).to_string() };
            let agent = agent.clone();
            let tracker = agent.shutdown.clone();
            drop(tracker.spawn(async move { deliver::refuse(&agent, &spec, failure).await }));
        }
    }
}

/// Goes on with a job that an earlier process of the agent stored.
pub(super) fn resume(agent: &Arc<Agent>, spec: JobSpec, dir: JobDir) {
    let orders = agent.jobs.add(&reference(&spec));
    supervise(agent, spec, dir, orders, Life::Later);
}

fn supervise(agent: &Arc<Agent>, spec: JobSpec, dir: JobDir, orders: watch::Receiver<Option<Order>>, life: Life) {
    let tracker = agent.shutdown.clone();
    let agent = agent.clone();
    drop(tracker.spawn(async move {
        let id = spec.job_id.clone();
        let supervised = async {
            match Supervisor::new(agent.clone(), spec, dir, orders, life).await {
                Ok(supervisor) => Box::pin(supervisor.run()).await,
                Err(error) => tracing::error!(job = %id, error = %Chain(&error), "the job is left as it is"),
            }
        };
        // As if the process had died here, which the next one can deal with at any point.
        if agent.left.run_until_cancelled(supervised).await.is_some() {
            agent.jobs.remove(&id);
        }
    }));
}

fn reference(spec: &JobSpec) -> JobRef {
    JobRef { job_id: spec.job_id.clone(), epoch: spec.epoch }
}

fn remote(agent: &Agent, spec: &JobSpec) -> Remote {
    Remote { client: agent.client.clone(), job: reference(spec), halt: agent.halt.clone() }
}

struct Supervisor {
    agent: Arc<Agent>,
    spec: JobSpec,
    dir: JobDir,
    remote: Remote,
    record: JobRecord,
    ending: Ending,
    orders: watch::Receiver<Option<Order>>,
    shipper: Shipper,
    snapshots: Snapshots,
    life: Life,
    /// When the stage began to run, as far as this process has seen it: milliseconds since 1970.
    ran_from: Option<i64>,
}

/// Whether an earlier process of the agent worked on the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    First,
    Later,
}

/// How the time before the start of the stage ended.
enum Begun {
    Running,
    Failed(Failure),
    Ended(Cause),
}

impl Supervisor {
    async fn new(
        agent: Arc<Agent>,
        spec: JobSpec,
        dir: JobDir,
        orders: watch::Receiver<Option<Order>>,
        life: Life,
    ) -> Result<Self, record::Error> {
        let record = JobRecord::load(&agent.config.data, &spec.job_id).await?;
        let mut ending = Ending::new(agent.config.executor.grace);
        if let Some(cause) = record.cause {
            ending.resume(cause, Instant::now());
        }
        let secrets = Secrets::of_job(&spec, &agent.config.token);
        let shipper = Shipper::new(dir.clone(), agent.config.log_limit, secrets);
        let snapshots = Snapshots::new(dir.clone());
        Ok(Self {
            remote: remote(&agent, &spec),
            agent,
            spec,
            dir,
            record,
            ending,
            orders,
            shipper,
            snapshots,
            life,
            ran_from: None,
        })
    }

    async fn run(mut self) {
        let id = self.spec.job_id.clone();
        let end = match self.execute().await {
            Ok(finish) => {
                let from = self.agent.clock.now_ms();
                let end = self.deliver(finish).await;
                self.record_span(Part::Deliver, from, end.as_ref().err().map(|_| UNDELIVERED));
                end
            }
            Err(stop) => Err(stop),
        };
        match end {
            Ok(()) => {
                self.agent.jobs.reported(&id);
                self.remove_stage().await;
                self.keep_providers().await;
            }
            Err(Stop::Fenced) => {
                tracing::warn!(job = %id, epoch = self.spec.epoch, "the job is not this agent's any more; it is stopped and nothing is reported");
                self.agent.jobs.reported(&id);
                self.remove_stage().await;
                self.keep_undelivered_state().await;
            }
            Err(Stop::Halted) => {
                tracing::warn!(job = %id, path = %self.dir.path().display(), "the job could not be reported; what it left is kept");
                drop(tokio::time::timeout(LAST_REMOVAL, self.remove_stage()).await);
                return;
            }
        }
        self.remove_files().await;
    }

    /// Everything up to the end of the stage's container or process; says what is to be reported.
    async fn execute(&mut self) -> Result<FinishRequest, Stop> {
        if let Some(failure) = self.record.failure.clone() {
            return Ok(failed(failure));
        }
        if self.record.starting_at.is_none() || self.may_start_again().await {
            match self.begin().await? {
                Begun::Running => {}
                Begun::Failed(failure) => {
                    tracing::warn!(job = %self.spec.job_id, reason = failure.reason, message = failure.message, "the stage could not be started");
                    self.record.failure = Some(failure.clone());
                    self.store_record().await;
                    return Ok(failed(failure));
                }
                Begun::Ended(cause) => return Ok(ended_early(cause)),
            }
        }
        let watched = Instant::now();
        let exit = self.watch().await?;
        self.agent.metrics.ran(self.spec.stage, watched.elapsed());
        let until = self.agent.clock.now_ms();
        let finish = self.conclude(&exit).await;
        let from = self.ran_from.or(self.record.starting_at).unwrap_or(until);
        self.record_engine((from, until), finish.reason.as_deref()).await;
        Ok(finish)
    }

    /// A plan whose start was cut off changed nothing and may be started once more. An apply never.
    async fn may_start_again(&self) -> bool {
        let Self { agent, spec, dir, record, .. } = self;
        if spec.stage != Stage::Plan || record.running || record.cause.is_some() {
            return false;
        }
        // In this order: a stage that ends in between has left its result.
        let has_ended = matches!(agent.executor.is_alive(dir, spec).await, Ok(false));
        has_ended && matches!(dir.result().await, Ok(None))
    }

    /// Has everything at hand and starts the stage.
    async fn begin(&mut self) -> Result<Begun, Stop> {
        let begun = Instant::now();
        let from = self.agent.clock.now_ms();
        let Self { agent, spec, dir, remote, orders, ending, life, .. } = self;
        if *life == Life::Later {
            // What an interrupted preparation left is in the way of another.
            match prepare_anew(agent, spec).await {
                Ok(anew) => *dir = anew,
                Err(failure) => return Ok(Begun::Failed(failure)),
            }
        }
        let prepared = tokio::select! {
            prepared = prepare(&agent.executor, spec, dir, remote) => prepared,
            ended = end_before_start(agent, orders, ending) => return match ended {
                Ok(cause) => Ok(Begun::Ended(cause)),
                Err(stop) => Err(stop),
            },
        };
        self.record_span(Part::Prepare, from, prepared.as_ref().err().map(Trouble::code));
        let started = match prepared {
            Ok(prepared) => {
                let from = self.agent.clock.now_ms();
                let started = self.start(&prepared).await;
                self.record_span(Part::Start, from, started.as_ref().err().map(Trouble::code));
                started
            }
            Err(trouble) => Err(trouble),
        };
        match started {
            Ok(()) => {
                self.agent.metrics.prepared(self.spec.stage, begun.elapsed());
                self.ran_from = Some(self.agent.clock.now_ms());
                Ok(Begun::Running)
            }
            Err(Trouble::Stop(stop)) => Err(stop),
            Err(Trouble::Failed(failure)) => Ok(Begun::Failed(failure)),
        }
    }

    async fn start(&mut self, prepared: &Prepared) -> Result<(), Trouble> {
        // An apply whose start is cut off is never started again: who leaves waits for it.
        let _start = self.agent.starts.read().await;
        // Also the last look whether the job is still ours.
        self.remote.call(|| self.remote.client.started(&self.remote.job)).await?;
        self.record.set_prepared(prepared);
        self.record.starting_at = Some(self.agent.clock.now_ms());
        let (data, id) = (&self.agent.config.data, &self.spec.job_id);
        self.record.store(data, id).await?;
        executor::patiently(ENGINE_BACK, || self.agent.executor.start(&self.dir, &self.spec, prepared)).await?;
        self.record.running = true;
        self.store_record().await;
        Ok(())
    }

    /// While the stage runs: its log and state are carried away, orders and the time limit are obeyed.
    async fn watch(&mut self) -> Result<Exit, Stop> {
        let started = self.record.starting_at.unwrap_or_else(|| self.agent.clock.now_ms());
        let ran = u64::try_from(self.agent.clock.now_ms() - started).unwrap_or_default();
        let left = Duration::from_secs(self.spec.timeout_seconds).saturating_sub(Duration::from_millis(ran));
        self.ending.limit(Instant::now() + left);
        let Self { agent, spec, dir, remote, record, ending, orders, shipper, snapshots, life: _, ran_from: _ } = self;
        let (agent, spec, dir, remote) = (&*agent, &*spec, &*dir, &*remote);
        if record.cause.is_some() {
            // An earlier process may have died between noting the end and telling it; told twice it is one interrupt.
            insist(spec, "signal the stage", || agent.executor.signal(dir, spec, Signal::Interrupt)).await;
        }
        let logs = async { fenced_only(shipper.follow(remote, &agent.config.executor.watches).await).await };
        let states = async {
            if spec.stage == Stage::Apply {
                fenced_only(snapshots.follow(remote).await).await
            } else {
                std::future::pending().await
            }
        };
        tokio::select! {
            exit = wait(&agent.executor, dir, spec) => Ok(exit),
            stop = logs => Err(stop),
            stop = states => Err(stop),
            stop = control(agent, dir, spec, record, ending, orders) => Err(stop),
        }
    }

    async fn conclude(&self, exit: &Exit) -> FinishRequest {
        let Self { dir, spec, record, .. } = self;
        let canceled = record.cause == Some(Cause::Canceled);
        let mut finish = match result::gather(dir, spec, &record.prepared(), exit, canceled).await {
            Ok(finish) => finish,
            Err(error) => failed(Failure { reason: error.reason().to_owned(), message: Chain(&error).to_string() }),
        };
        let (reason, message) = match record.cause {
            Some(Cause::TimedOut) => {
                let seconds = spec.timeout_seconds;
                (reason::TIMED_OUT, format!("The stage took longer than its limit of {seconds} seconds."))
            }
            Some(Cause::AgentStopped) => {
                (reason::AGENT_ERROR, "The agent was stopped before the stage had ended.".to_owned())
            }
            Some(Cause::Canceled) | None => return finish,
        };
        // What ended well in spite of it, ended well.
        if finish.outcome != Outcome::Finished {
            finish.outcome = Outcome::Errored;
            finish.reason = Some(reason.to_owned());
            finish.message = Some(message);
        }
        finish
    }

    /// For facts that help a later process, but without which the work goes on.
    async fn store_record(&self) {
        if let Err(error) = self.record.store(&self.agent.config.data, &self.spec.job_id).await {
            tracing::warn!(job = %self.spec.job_id, error = %Chain(&error), "how far the job came could not be noted");
        }
    }

    async fn remove_stage(&self) {
        let Self { agent, spec, dir, .. } = self;
        let remove = || agent.executor.remove(dir, spec);
        // An engine that is being updated just now is waited for: what stays is there until the agent's next start.
        if executor::patiently(ENGINE_BACK, remove).await.is_err() {
            insist(spec, "remove the stage", remove).await;
        }
    }

    async fn remove_files(&self) {
        let id = &self.spec.job_id;
        if let Err(error) = self.dir.remove().await {
            tracing::warn!(job = %id, error = %Chain(&error), "the job directory could not be removed; the next start tries again");
        }
        if let Err(error) = JobRecord::remove(&self.agent.config.data, id).await {
            tracing::warn!(job = %id, error = %Chain(&error), "the job's record could not be removed");
        }
    }
}

/// The end of the stage, however long the executor cannot be asked.
async fn wait(executor: &Executor, dir: &JobDir, spec: &JobSpec) -> Exit {
    let mut backoff = Backoff::default();
    loop {
        match executor.wait(dir, spec).await {
            Ok(exit) => return exit,
            Err(error) => {
                tracing::warn!(job = %spec.job_id, error = %Chain(&error), "the stage cannot be watched now");
                tokio::time::sleep(backoff.next(None)).await;
            }
        }
    }
}

/// A halted agent can deliver nothing, but its stage goes on until it is told to end.
async fn fenced_only(stop: Stop) -> Stop {
    match stop {
        Stop::Fenced => Stop::Fenced,
        Stop::Halted => std::future::pending().await,
    }
}

async fn insist<F>(spec: &JobSpec, what: &str, call: impl Fn() -> F)
where
    F: Future<Output = Result<(), executor::Error>>,
{
    let mut backoff = Backoff::default();
    while let Err(error) = call().await {
        tracing::warn!(job = %spec.job_id, error = %Chain(&error), "could not {what}");
        if backoff.failures() >= EXECUTOR_ATTEMPTS {
            return;
        }
        tokio::time::sleep(backoff.next(None)).await;
    }
}

fn failed(failure: Failure) -> FinishRequest {
    let Failure { reason, message } = failure;
    report(Outcome::Errored, &reason, &message)
}

fn ended_early(cause: Cause) -> FinishRequest {
    match cause {
        Cause::Canceled => {
            report(Outcome::Canceled, reason::CANCELED, "The run was canceled before the stage started.")
        }
        Cause::TimedOut => report(Outcome::Errored, reason::TIMED_OUT, "The time limit came before the stage started."),
        Cause::AgentStopped => {
            report(Outcome::Errored, reason::AGENT_ERROR, "The agent was stopped before the stage started.")
        }
    }
}

fn report(outcome: Outcome, reason: &str, message: &str) -> FinishRequest {
    FinishRequest {
        outcome,
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        log_bytes: 0,
        has_changes: false,
        changes: crate::api::agent::ResourceChanges::default(),
        image_digest: None,
    }
}
