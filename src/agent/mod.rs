//! The agent: takes jobs from the control plane and runs each stage in a container or process of its own.

pub mod engine;
pub mod executor;
pub mod jobdir;
pub mod result;
pub mod steps;
