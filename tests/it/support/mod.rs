//! What tests share.

pub mod admin;
pub mod agent;
pub mod agents;
pub mod app;
pub mod cli;
pub mod cluster;
pub mod desk;
pub mod docker;
pub mod e2e;
pub mod gate;
pub mod jobs;
pub mod metadata;
pub mod operator;
pub mod pod_security;
pub mod pods;
pub mod poll;
pub mod proc;
pub mod programs;
pub mod served;
pub mod server;
pub mod sim_agent;
pub mod sources;
