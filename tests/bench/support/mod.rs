//! What the measures share.

pub mod cli;
pub mod floor;
pub mod program;
pub mod report;
pub mod rig;
