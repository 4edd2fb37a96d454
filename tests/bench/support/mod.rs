//! What the measures share.

#![allow(dead_code, reason = "each of the benchmark programs uses a part of it")]

pub mod apiserver;
pub mod choice;
pub mod cli;
pub mod events;
pub mod floor;
pub mod operator;
pub mod program;
pub mod report;
pub mod rig;
pub mod seen;
pub mod usage;
