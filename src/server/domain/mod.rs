//! Every rule once: scope, in use, unique names, permissions, the life of runs. Handlers call these
//! functions; SQL lies in `store`.

pub mod access;
pub mod configurations;
pub mod environments;
pub mod links;
pub mod model;
pub mod pools;
pub mod run_settings;
pub mod states;
pub mod tokens;
pub mod variables;
