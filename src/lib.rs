//! Self-hosted agent pools for Terraform and OpenTofu.

pub mod agent;
pub mod api;
pub mod cli;
pub mod client;
pub mod clock;
pub mod crd;
pub mod http;
pub mod ids;
pub mod jsonapi;
pub mod server;
pub mod shutdown;
pub mod sync;
pub mod telemetry;
pub mod up;
pub mod yaml;
