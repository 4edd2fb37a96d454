//! The measures: one file each.

pub mod apply;
pub mod fleet;
pub mod idle;
mod manifests;
pub mod pods;
pub mod resync;
