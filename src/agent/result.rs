//! From what a stage left behind to what is reported. Pure but for [`gather`], which reads the job directory.

use std::collections::BTreeMap;

use super::{
    executor::{Exit, Prepared},
    jobdir::{self, JobDir},
};
use crate::api::{agent::FinishRequest, job::JobSpec};

/// The runner's own account of the stage: its file `result`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerResult {
    pub outcome: RunnerOutcome,
    /// The step that decided the outcome.
    pub step: String,
    /// Exit code of each step that ran; 128 + signal for one that was killed.
    pub exits: BTreeMap<String, i32>,
    /// For people, where there is something to say.
    pub message: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerOutcome {
    Finished,
    Failed,
    Canceled,
    TimedOut,
    /// The engine is not there, or has another version.
    EngineUnavailable,
    /// The runner itself could not go on.
    RunnerFailed,
}

/// Reads everything that a stage left behind and concludes. `canceled`: somebody asked for the end of the stage.
///
/// # Errors
/// When the directory cannot be read.
pub async fn gather(
    _dir: &JobDir,
    _spec: &JobSpec,
    _prepared: &Prepared,
    _exit: &Exit,
    _canceled: bool,
) -> Result<FinishRequest, jobdir::Error> {
    Err(jobdir::Error::Configuration("not there yet".to_owned()))
}
