//! (being written)

use super::{Error, Exit, Prepared, Result, Settings, Signal};
use crate::{
    agent::jobdir::{JobDir, Placement},
    api::{
        agent::{ExecutorKind, JobRef},
        job::JobSpec,
    },
    ids::JobId,
};

#[derive(Debug)]
pub struct Process {
    _settings: Settings,
}

fn unfinished<T>() -> Result<T> {
    Err(Error::Refused("not there yet".to_owned()))
}
impl Process {
    pub(super) async fn new(settings: Settings) -> Result<Self> {
        Ok(Self { _settings: settings })
    }
    pub(super) async fn connect(_settings: Settings) -> Result<Self> {
        unfinished()
    }
    pub(super) fn placement(&self, _spec: &JobSpec) -> Placement {
        Placement { kind: ExecutorKind::Process, owner: None }
    }
    pub(super) async fn prepare(&self, _spec: &JobSpec) -> Result<Prepared> {
        unfinished()
    }
    pub(super) async fn start(&self, _dir: &JobDir, _spec: &JobSpec, _prepared: &Prepared) -> Result<()> {
        unfinished()
    }
    pub(super) async fn wait(&self, _dir: &JobDir, _spec: &JobSpec) -> Result<Exit> {
        unfinished()
    }
    pub(super) async fn is_alive(&self, _dir: &JobDir, _spec: &JobSpec) -> Result<bool> {
        unfinished()
    }
    pub(super) async fn signal(&self, _dir: &JobDir, _spec: &JobSpec, _signal: Signal) -> Result<()> {
        unfinished()
    }
    pub(super) async fn remove(&self, _dir: &JobDir, _spec: &JobSpec) -> Result<()> {
        unfinished()
    }
    pub(super) async fn sweep(&self, _keep: &[JobRef]) -> Result<Vec<JobId>> {
        unfinished()
    }
}
