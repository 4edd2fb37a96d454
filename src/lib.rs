//! Self-hosted agent pools for Terraform and OpenTofu: a control plane, agents, and what keeps the two in line
//! with manifests. One library, one program; the roles are modules.
//!
//! # The life of a pool
//!
//! 1. A manifest says what an [`AgentPool`](crd::AgentPool) is to be. `terrapool up` reads it from a directory
//!    ([`up::manifests`]) and follows it ([`up::follow`]).
//! 2. [`sync::pool`] compares it with what the control plane has, through the client of the Scalr-compatible API
//!    ([`client::iacp`]); every write passes [`sync::seam`].
//! 3. The control plane answers in [`server::api::iacp`], by the rules of [`server::domain::pools`].
//! 4. [`sync::token`] sees to it that somebody holds a valid pool token; with it an agent registers
//!    ([`server::domain::agents`]).
//! 5. A [`WorkspaceLink`](crd::WorkspaceLink) gives a workspace to the pool: [`sync::link`] →
//!    [`server::domain::links`].
//!
//! # The life of a run
//!
//! 1. `terraform apply` uploads the configuration and creates a run: [`server::api::tfe`]. What is uploaded is
//!    checked before it counts ([`server::domain::slug`]).
//! 2. [`server::domain::runs`] moves it through the state machine ([`api::run_state`]): when its workspace is free
//!    and has a pool, its plan is queued in the same transaction.
//! 3. An agent's held claim gets the job, with a lease and an epoch: [`agent`]'s poller → [`server::domain::queue`].
//!    [`api::job`] is what it is handed, [`api::agent`] the protocol.
//! 4. The agent's supervisor makes the job directory ([`agent::jobdir`]), plans the steps ([`agent::steps`]) and has
//!    an [executor](agent::executor) start the runner: in a hardened container, or as a process.
//! 5. The runner (`src/runner`, a static program of its own inside this one) runs init, plan and show, and knows
//!    nothing but its directory.
//! 6. Meanwhile the agent ships the log by offset and the state after every resource; the control plane checks the
//!    epoch in the transaction that stores them ([`server::domain::logs`], [`server::domain::states`]).
//! 7. The runner's result becomes the job's ([`agent::result`]). Stage, run and the end of the log are one
//!    transaction in [`server::domain::runs`]; the CLI, which long-polls the log, goes on at once.
//! 8. Confirmed, by the CLI or by `-auto-approve`, the apply is queued; any agent of the pool may take it: the plan's
//!    bundle lies in the control plane ([`server::domain::artifacts`]).
//! 9. An agent that falls silent loses its lease by the server's clock ([`server::tasks`]): a plan is planned again, an
//!    apply never; the last state that it sent is kept.
//!
//! # Where things are
//!
//! [`ids`], [`jsonapi`], [`api`] are pure types; [`client`] speaks them, [`server`] answers; [`sync`] reconciles; [`up`]
//! puts it all on one host; [`cli`] is the command line. A test holds which module may use which.

pub mod agent;
pub mod api;
pub mod cli;
pub mod client;
pub mod clock;
pub mod crd;
pub mod files;
pub mod hash;
pub mod http;
pub mod ids;
pub mod jsonapi;
pub mod memory;
pub mod operator;
pub mod server;
pub mod shutdown;
pub mod sync;
pub mod telemetry;
pub mod trace;
pub mod up;
pub mod yaml;
