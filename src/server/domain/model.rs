//! The things that the control plane knows, as plain data. Times are milliseconds since 1970.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        agent::{ExecutorKind, ResourceChanges},
        iacp::RunSettings,
        job::{Category, EngineKind, RunVariable, Stage},
        run_state::RunState,
    },
    ids::{
        AccountId, AgentId, ApplyId, ConfigurationVersionId, EnvironmentId, JobId, PlanId, PoolId, RunId,
        StateVersionId, TokenId, UserId, VariableId, WorkspaceId,
    },
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub id: AccountId,
    pub name: String,
    pub default_pool_id: Option<PoolId>,
    pub created_at: i64,
}

/// An environment (Scalr) = an organization (TFE API).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    pub id: EnvironmentId,
    pub account_id: AccountId,
    pub name: String,
    pub default_pool_id: Option<PoolId>,
    pub created_at: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: UserId,
    pub account_id: AccountId,
    pub username: String,
    pub email: String,
    pub is_admin: bool,
    pub is_service_account: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub id: PoolId,
    pub account_id: AccountId,
    /// `None`: account scope.
    pub environment_id: Option<EnvironmentId>,
    pub name: String,
    /// Account scope: every environment may use it.
    pub is_shared: bool,
    /// Account scope and not shared: the environments that may use it.
    pub environments: Vec<EnvironmentId>,
    pub external_id: Option<String>,
    pub run_settings: RunSettings,
    pub created_at: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    User,
    /// Registers agents, nothing else.
    Pool,
    Agent,
}

impl TokenKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Pool => "pool",
            Self::Agent => "agent",
        }
    }

    /// Start of every secret of this kind, so that people and scanners recognise one.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::User => "tpu_",
            Self::Pool => "tpp_",
            Self::Agent => "tpa_",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::User, Self::Pool, Self::Agent].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// A token's record; the secret itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub id: TokenId,
    pub kind: TokenKind,
    pub user_id: Option<UserId>,
    pub pool_id: Option<PoolId>,
    pub agent_id: Option<AgentId>,
    /// The pool token that an agent's token came from.
    pub parent_id: Option<TokenId>,
    pub name: Option<String>,
    pub description: Option<String>,
    pub external_id: Option<String>,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub last_used_at: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    pub id: AgentId,
    pub pool_id: PoolId,
    pub name: String,
    pub instance: String,
    pub version: String,
    pub os: String,
    pub platform: String,
    pub executor: ExecutorKind,
    pub run_as_root: bool,
    pub slots: i64,
    pub labels: BTreeMap<String, String>,
    /// As last reported: idle, busy, errored. See [`super::agents::status`] for what it means now.
    pub reported_status: String,
    pub error_message: Option<String>,
    pub draining: bool,
    pub cordoned: bool,
    /// Its token was revoked: it may do nothing any more, not even sign off.
    pub revoked: bool,
    pub created_at: i64,
    pub last_seen_at: i64,
}

/// Who holds a workspace's lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lock {
    Unlocked,
    User { id: UserId, reason: Option<String> },
    Run { id: RunId },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    pub id: WorkspaceId,
    pub environment_id: EnvironmentId,
    pub name: String,
    pub description: Option<String>,
    /// The workspace's own link.
    pub pool_id: Option<PoolId>,
    /// Runs are executed by agents; otherwise only state is kept here.
    pub remote: bool,
    pub auto_apply: bool,
    pub engine: EngineKind,
    /// Exact version, or empty for any.
    pub engine_version: String,
    pub working_directory: String,
    /// Image of the run container instead of the pool's; the pool decides whether that is allowed.
    pub run_image: Option<String>,
    pub lock: Lock,
    /// The run that holds the workspace now, else the last one that did.
    pub current_run_id: Option<RunId>,
    pub current_state_id: Option<StateVersionId>,
    pub created_at: i64,
    pub updated_at: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VariableRow {
    pub id: VariableId,
    pub workspace_id: WorkspaceId,
    pub key: String,
    /// Sealed by the vault when `sensitive`.
    pub value: Vec<u8>,
    pub category: Category,
    pub hcl: bool,
    pub sensitive: bool,
    pub description: Option<String>,
    pub updated_at: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigurationStatus {
    Pending,
    Uploaded,
    Errored,
}

impl ConfigurationStatus {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Uploaded => "uploaded",
            Self::Errored => "errored",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Uploaded, Self::Errored].into_iter().find(|status| status.as_str() == text)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigurationVersion {
    pub id: ConfigurationVersionId,
    pub workspace_id: WorkspaceId,
    pub status: ConfigurationStatus,
    pub source: String,
    /// Runs of it are plan-only.
    pub speculative: bool,
    pub provisional: bool,
    pub auto_queue_runs: bool,
    pub size_bytes: i64,
    pub error: Option<String>,
    pub error_message: Option<String>,
    pub created_at: i64,
}

/// What the client asked of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunOptions {
    pub auto_apply: bool,
    pub is_destroy: bool,
    pub refresh: bool,
    pub refresh_only: bool,
    /// A saved plan (`plan -out`).
    pub save_plan: bool,
    pub allow_empty_apply: bool,
    pub allow_config_generation: bool,
    pub target_addrs: Vec<String>,
    pub replace_addrs: Vec<String>,
    pub variables: Vec<RunVariable>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            auto_apply: false,
            is_destroy: false,
            refresh: true,
            refresh_only: false,
            save_plan: false,
            allow_empty_apply: false,
            allow_config_generation: false,
            target_addrs: Vec::new(),
            replace_addrs: Vec::new(),
            variables: Vec::new(),
        }
    }
}

/// How far a cancellation has been asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cancel {
    No,
    Asked,
    Forced,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub id: RunId,
    pub workspace_id: WorkspaceId,
    pub configuration_version_id: ConfigurationVersionId,
    pub plan_id: PlanId,
    pub apply_id: ApplyId,
    pub status: RunState,
    /// Order of creation over all workspaces.
    pub sequence: i64,
    pub message: String,
    pub source: String,
    pub options: RunOptions,
    pub plan_only: bool,
    pub has_changes: bool,
    pub engine: EngineKind,
    pub engine_version: String,
    pub pool_id: Option<PoolId>,
    /// Why a pending run waits, in words.
    pub waiting_for: Option<String>,
    pub error_code: Option<String>,
    pub error_message: Option<String>,
    pub cancel: Cancel,
    pub cancel_requested_at: Option<i64>,
    pub plan_attempts: i64,
    pub created_by: Option<UserId>,
    pub created_at: i64,
    /// `planning-at` → milliseconds, one for each status the run has had.
    pub timestamps: BTreeMap<String, i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageStatus {
    Pending,
    Queued,
    Running,
    Finished,
    Errored,
    Canceled,
    /// Will never start.
    Unreachable,
}

impl StageStatus {
    const ALL: [Self; 7] =
        [Self::Pending, Self::Queued, Self::Running, Self::Finished, Self::Errored, Self::Canceled, Self::Unreachable];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Errored => "errored",
            Self::Canceled => "canceled",
            Self::Unreachable => "unreachable",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::Errored | Self::Canceled | Self::Unreachable)
    }
}

/// Plan or apply of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageRow {
    /// `plan-…` or `apply-…`
    pub id: String,
    pub run_id: RunId,
    pub kind: Stage,
    pub status: StageStatus,
    pub changes: ResourceChanges,
    /// Length of the log's text, without the start and end marks.
    pub log_bytes: i64,
    /// Nothing more will be appended.
    pub log_complete: bool,
    /// The log lies in a blob, not in rows.
    pub log_archived: bool,
    pub image_digest: Option<String>,
    pub queued_at: Option<i64>,
    pub started_at: Option<i64>,
    pub finished_at: Option<i64>,
}

/// One stage waiting for an agent, or given to one under a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub id: JobId,
    pub run_id: RunId,
    pub stage_id: String,
    pub kind: Stage,
    pub pool_id: PoolId,
    pub claimed: bool,
    pub priority: i64,
    pub sequence: i64,
    /// Raised by every claim; every call about the job carries it.
    pub epoch: i64,
    pub agent_id: Option<AgentId>,
    pub claim_id: Option<String>,
    /// The run container has been asked for.
    pub started: bool,
    /// Where this claim's text starts in the stage's log.
    pub log_base: i64,
    pub lease_until: Option<i64>,
    pub queued_at: i64,
    pub claimed_at: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateStatus {
    /// No content yet.
    Pending,
    Finalized,
    Discarded,
}

impl StateStatus {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Finalized => "finalized",
            Self::Discarded => "discarded",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Finalized, Self::Discarded].into_iter().find(|status| status.as_str() == text)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateVersion {
    pub id: StateVersionId,
    pub workspace_id: WorkspaceId,
    pub status: StateStatus,
    pub serial: i64,
    pub lineage: String,
    /// MD5 of the state's bytes, hex.
    pub md5: String,
    pub size_bytes: i64,
    pub blob: Option<String>,
    pub json_blob: Option<String>,
    /// JSON array of [`StateOutput`], sealed by the vault.
    pub outputs: Option<Vec<u8>>,
    pub resource_count: i64,
    pub engine_version: String,
    pub run_id: Option<RunId>,
    pub epoch: Option<i64>,
    pub created_by: Option<UserId>,
    pub created_at: i64,
}

/// An output of a state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StateOutput {
    pub name: String,
    pub sensitive: bool,
    /// The engine's own notation: `"string"`, `["list", "string"]`, …
    #[serde(rename = "type")]
    pub detailed_type: serde_json::Value,
    pub value: serde_json::Value,
}
