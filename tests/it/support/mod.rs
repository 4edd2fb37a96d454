//! What tests share.

pub mod app;
pub mod sim_agent;
pub mod sources;
