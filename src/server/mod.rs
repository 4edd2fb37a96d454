//! The control plane: API, queue, state, logs, pages. Knows nothing of Kubernetes, the operator or the
//! agent's program; they are its clients.

pub mod accept;
pub mod api;
pub mod app;
pub mod auth;
pub mod blobs;
pub mod changes;
pub mod domain;
pub mod error;
pub mod held;
pub mod metrics;
pub mod router;
pub mod serve;
pub mod sign;
pub mod store;
pub mod tasks;
pub mod tls;
pub mod ui;
pub mod vault;
pub mod wake;
