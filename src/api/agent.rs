//! `/api/agent/v1`: JSON over HTTP, outbound from the agent only. Every call but those with the
//! pool token carries the agent token as bearer; calls about a job carry its epoch in [`EPOCH_HEADER`].
//!
//! | method and path | body → answer |
//! |---|---|
//! | `GET pool` (pool token) | → [`PoolResponse`]; changes nothing: for checks before the agent is started |
//! | `POST register` (pool token) | [`RegisterRequest`] → [`RegisterResponse`] |
//! | `POST claim` | [`ClaimRequest`] → 200 [`super::job::JobSpec`], or 204: nothing to do |
//! | `POST heartbeat` | [`HeartbeatRequest`] → [`HeartbeatResponse`] |
//! | `POST deregister` | – → 204 |
//! | `GET jobs/{id}/configuration` | → tar.gz |
//! | `GET jobs/{id}/state` | → the workspace's current state, or 204: none yet |
//! | `GET jobs/{id}/artifacts/{name}` | → what an earlier stage of the run put there |
//! | `PUT jobs/{id}/log?offset=N` | bytes → [`LogAck`]; bytes below the end are skipped, a gap is refused (`log_gap`) |
//! | `PUT jobs/{id}/state` | the state file → 204; idempotent by content |
//! | `PUT jobs/{id}/artifacts/{name}` | bytes → 204; the last one wins |
//! | `POST jobs/{id}/started` | – → 204; the run container has been asked for |
//! | `POST jobs/{id}/finish` | [`FinishRequest`] → 204; the same result twice is one result |
//!
//! Statuses: 401 stop; 409 with code [`code::FENCED`]: the job is somebody else's now, stop its
//! container; 426 upgrade the agent; everything else: try again with backoff while the work goes on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::job::Stage;
use crate::ids::{AgentId, JobId, PoolId};

/// Path prefix of this protocol.
pub const BASE: &str = "/api/agent/v1";

/// Request header with the protocol version that the agent speaks.
pub const PROTOCOL_HEADER: &str = "terrapool-agent-protocol";

/// The version in [`PROTOCOL_HEADER`]; the server answers 426 to any other.
pub const PROTOCOL_VERSION: &str = "1";

/// Request header with the job's epoch: decimal digits.
pub const EPOCH_HEADER: &str = "terrapool-job-epoch";

/// Longest time in milliseconds that the server holds a claim or heartbeat open.
pub const MAX_WAIT_MS: u64 = 25_000;

/// Largest body of one log append, in bytes.
pub const MAX_LOG_APPEND: usize = 256 * 1024;

/// Values of `errors[].code` that an agent acts on.
pub mod code {
    /// The (job, epoch) of the call is not the current one: stop the job's container.
    pub const FENCED: &str = "fenced";
    /// A log append starts beyond the end of the log; `meta.end` says where it ends.
    pub const LOG_GAP: &str = "log_gap";
    /// An agent of that name is online in the pool.
    pub const NAME_TAKEN: &str = "name_taken";
    /// The server has no room on its disk now; try again.
    pub const OUT_OF_SPACE: &str = "out_of_space";
}

/// How an agent runs its stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecutorKind {
    Docker,
    Sidecar,
    /// A child process: no isolation.
    Process,
}

impl ExecutorKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Sidecar => "sidecar",
            Self::Process => "process",
        }
    }
}

/// What the holder of a pool token may know before an agent registers with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolResponse {
    pub pool_id: PoolId,
    pub pool_name: String,
    /// When the token ends registering, in milliseconds since 1970; absent: never. What has registered goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_expires_at_ms: Option<i64>,
    /// The control plane's clock, in milliseconds since 1970.
    pub server_time_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterRequest {
    /// Unique in the pool. The same name with the same [`Self::instance`] is the same agent again.
    pub name: String,
    /// Random text kept in the agent's data directory: tells a restarted agent from a second one of the same name.
    pub instance: String,
    /// Version of the agent program.
    pub version: String,
    /// `ID` and `VERSION_ID` of os-release, as `centos_8`.
    pub os: String,
    /// `linux_amd64`, `linux_arm64`.
    pub platform: String,
    pub executor: ExecutorKind,
    /// Run containers are started as root.
    pub run_as_root: bool,
    /// Jobs at once.
    pub slots: u32,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterResponse {
    pub agent_id: AgentId,
    /// Bearer of all further calls. Stays valid over restarts of the agent, until it deregisters or its pool token is revoked.
    pub agent_token: String,
    pub pool_id: PoolId,
    pub pool_name: String,
    pub heartbeat_ms: u64,
    pub lease_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRequest {
    /// Idempotency key, kept on the agent's disk until the answer is: the same key gets the same job again.
    pub claim_id: String,
    /// Stages that the agent accepts.
    pub stages: Vec<Stage>,
    /// Hold the call up to this long until there is a job; at most [`MAX_WAIT_MS`].
    pub wait_ms: u64,
    /// Take only jobs that need one of these images; `null` among them: jobs that name none. Absent: any job.
    /// For an agent whose run container stands already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<Option<String>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentStatus {
    Idle,
    Busy,
    /// Cannot work; [`HeartbeatRequest::error_message`] says why.
    Errored,
    /// Not heard of for 30 s. Only the server says this.
    Offline,
}

impl AgentStatus {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Errored => "errored",
            Self::Offline => "offline",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRef {
    pub job_id: JobId,
    pub epoch: i64,
}

/// Renews the lease of every job named, when it arrives; then the answer may be held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatRequest {
    pub status: AgentStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// The agent takes no new jobs, and ends when the last is done.
    pub draining: bool,
    /// The last [`HeartbeatResponse::drain`] that arrived: the answer is held while it is still true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordoned: Option<bool>,
    pub jobs: Vec<JobRef>,
    /// What the agent already knows: the answer is held while nothing differs from it.
    pub known: Vec<Directive>,
    /// Hold the answer up to this long, so that a cancellation arrives at once.
    pub wait_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatResponse {
    /// One for each job named that is not simply to go on.
    pub directives: Vec<Directive>,
    /// The server gives the agent no new jobs until it says false again. The agent stays; what it has goes on.
    pub drain: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directive {
    pub job_id: JobId,
    pub epoch: i64,
    pub order: Order,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// SIGINT to the engine, then wait.
    Cancel,
    /// SIGKILL now.
    ForceCancel,
    /// Not this agent's job any more: stop the container, report nothing.
    Fenced,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogAck {
    /// Where the log ends now, in bytes.
    pub end: u64,
}

/// How a stage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Finished,
    Errored,
    Canceled,
}

/// The result of a job. The whole log, the last state and all artifacts are delivered before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishRequest {
    pub outcome: Outcome,
    /// Stable machine reason of an outcome that is not `finished`: see [`reason`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same for people: what happened and the mend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Length of the log in bytes as the agent delivered it.
    pub log_bytes: u64,
    /// A plan: something would change. An apply: false.
    #[serde(default)]
    pub has_changes: bool,
    #[serde(default)]
    pub changes: ResourceChanges,
    /// Digest of the image that ran the stage, when there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
}

/// Resources by what a stage does, or did, to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceChanges {
    pub additions: i64,
    pub changes: i64,
    pub destructions: i64,
    pub imports: i64,
}

/// Values of [`FinishRequest::reason`] and of a run's `error-code`.
pub mod reason {
    /// The lease of an apply ran out: its agent was lost.
    pub const AGENT_LOST: &str = "agent_lost";
    /// The engine ended with an error; the log has its message.
    pub const ENGINE_FAILED: &str = "engine_failed";
    /// A hook of the agent ended with an error or took too long; the log has its output.
    pub const HOOK_FAILED: &str = "hook_failed";
    /// The run container could not be made: no such image, no right to pull it.
    pub const IMAGE_UNAVAILABLE: &str = "image_unavailable";
    /// The engine of the wanted version is neither on the agent nor in the image.
    pub const ENGINE_UNAVAILABLE: &str = "engine_unavailable";
    /// The configuration could not be unpacked.
    pub const BAD_CONFIGURATION: &str = "bad_configuration";
    /// The stage took longer than its time limit.
    pub const TIMED_OUT: &str = "timed_out";
    /// The stage needed more memory than its run container may have: it was interrupted before that, or killed for it.
    pub const OUT_OF_MEMORY: &str = "out_of_memory";
    /// The run container was killed from outside.
    pub const CONTAINER_LOST: &str = "container_lost";
    /// No room on the agent's disk.
    pub const OUT_OF_SPACE: &str = "out_of_space";
    /// A person or an API call cancelled the run.
    pub const CANCELED: &str = "canceled";
    /// Anything else on the agent's side.
    pub const AGENT_ERROR: &str = "agent_error";
    /// No agent that could run the job can be started.
    pub const AGENT_UNSCHEDULABLE: &str = "agent_unschedulable";
    /// The workspace asks for an image that its pool does not allow.
    pub const IMAGE_NOT_ALLOWED: &str = "image_not_allowed";
    /// The pool may not serve the workspace's environment any more.
    pub const POOL_NOT_ALLOWED: &str = "pool_not_allowed";

    /// What somebody who starts agents may say of jobs that no agent has yet.
    pub const FROM_OUTSIDE: [&str; 2] = [IMAGE_UNAVAILABLE, AGENT_UNSCHEDULABLE];

    /// All of them.
    pub const ALL: [&str; 15] = [
        AGENT_LOST,
        ENGINE_FAILED,
        HOOK_FAILED,
        IMAGE_UNAVAILABLE,
        ENGINE_UNAVAILABLE,
        BAD_CONFIGURATION,
        TIMED_OUT,
        OUT_OF_MEMORY,
        CONTAINER_LOST,
        OUT_OF_SPACE,
        CANCELED,
        AGENT_ERROR,
        AGENT_UNSCHEDULABLE,
        IMAGE_NOT_ALLOWED,
        POOL_NOT_ALLOWED,
    ];
}

/// Names of artifacts.
pub mod artifact {
    /// tar.gz of what an apply needs from its plan: `tfplan`, `.terraform.lock.hcl`, `generated.tf`.
    pub const PLAN: &str = "plan";
    /// `terraform show -json` of the plan.
    pub const PLAN_JSON: &str = "plan-json";
    /// The `errored.tfstate` that the engine leaves when it could not write its state.
    pub const ERRORED_STATE: &str = "errored-state";
}
