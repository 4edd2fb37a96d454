//! What an operator needs to scale a pool: news of pools, a pool's demand, cordoning, ending what cannot run,
//! replacing a token. Ours: Scalr has nothing like it, so a server without it answers 404 or 405. Plain JSON.
//!
//! | method and path below [`super::BASE`] | body → answer |
//! |---|---|
//! | `GET agent-pools/changes?since=CURSOR&wait-ms=N` | → [`PoolChanges`] |
//! | `GET agent-pools/{id}/demand` | → [`PoolDemand`] |
//! | `GET agent-pools/demand?pools=ID,ID` | → [`PoolDemands`] |
//! | `POST agent-pools/{id}/actions/fail-queued` | [`FailQueued`] → [`FailedJobs`] |
//! | `POST agents/{id}/actions/cordon`, `…/uncordon` | – → [`DemandAgent`] |
//! | `POST access-tokens/{id}/actions/retire` | [`RetireToken`] → 204 |
//!
//! Nothing here says who started an agent: a pool may be served from several clusters and hosts at once, and
//! all its agents are in its demand.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    api::agent::AgentStatus,
    ids::{AgentId, PoolId, TokenId},
};

/// Longest time in milliseconds that the server holds a question for changes.
pub const MAX_WAIT_MS: u64 = 25_000;

/// The pools of the account that have changed since a cursor: their queue, their agents, they themselves, their
/// tokens or links. What exactly, their demand says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolChanges {
    /// Where the next question goes on; opaque, good for one life of the server.
    pub cursor: String,
    /// Ids without order, deleted pools among them; empty: nothing changed in the time waited. `None`: everything
    /// may have changed, because the cursor is missing, another server's, or too old.
    pub pools: Option<Vec<PoolId>>,
}

/// The demand of several pools at one moment, by pool; those that are not there are left out.
pub type PoolDemands = BTreeMap<PoolId, PoolDemand>;

/// What waits for a pool, and who is there to do it, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolDemand {
    /// Jobs that no agent has yet, by what they need; without groups of zero jobs.
    pub queued: Vec<QueuedJobs>,
    /// All agents that are registered, by name, whoever started them.
    pub agents: Vec<DemandAgent>,
    /// Agents that have ever registered; only grows. The same agent coming back does not count.
    pub registrations: i64,
    /// Workspaces that name this pool themselves; those that get it by a default are not counted.
    pub linked_workspaces: i64,
}

/// Queued jobs that need the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedJobs {
    /// The run container's image; `None`: the agent's default one.
    pub image: Option<String>,
    /// The run container is to be root.
    pub run_as_root: bool,
    pub jobs: u32,
    /// How long the oldest of them has been waiting, in seconds.
    pub oldest_seconds: i64,
}

/// An agent as scaling sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DemandAgent {
    pub id: AgentId,
    /// Unique in the pool.
    pub name: String,
    pub status: AgentStatus,
    /// Why it is errored, in its own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// It says that it takes no more jobs and ends when the last is done.
    pub draining: bool,
    /// It gets no more jobs until it is uncordoned.
    pub cordoned: bool,
    /// Its token was revoked: it is cut off for good, and offline though it may have been heard of a moment ago.
    #[serde(default)]
    pub revoked: bool,
    /// Of the agent's program.
    pub version: String,
    /// Jobs that it can run at once.
    pub slots: u32,
    /// Jobs that it has now.
    pub jobs: u32,
    /// Since it was last heard of.
    pub seen_seconds_ago: i64,
}

/// Ends every queued job of the pool that needs `image`, and its run, as errored. Claimed jobs go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailQueued {
    /// `None`: jobs that name no image.
    pub image: Option<String>,
    /// One of [`crate::api::agent::reason::FROM_OUTSIDE`].
    pub code: String,
    /// For people: what happened and the mend. Shown in the stage's log and as the run's error.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedJobs {
    pub failed: u32,
}

/// Ends a pool token that another one replaces: the agents that registered with it go on under its successor.
/// Deleting it instead cuts them off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetireToken {
    /// A token of the same pool that has not expired.
    pub successor: TokenId,
}
