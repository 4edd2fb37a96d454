//! Every rule once: scope, in use, unique names, permissions, the life of runs. Handlers call these
//! functions; SQL lies in `store`.

pub mod access;
pub mod agents;
pub mod artifacts;
pub mod configurations;
pub mod demand;
pub mod environments;
mod job_spec;
pub mod links;
pub mod logs;
pub mod model;
pub mod organizations;
pub mod pools;
pub mod queue;
pub mod run_settings;
pub mod runs;
pub mod setup;
pub mod slug;
mod spans;
pub mod stages;
pub mod states;
pub mod tokens;
pub mod unit;
pub mod variables;
pub mod workspaces;
