//! The wire contracts: attributes and enums of every resource. No I/O, no SQL, no Kubernetes.
//!
//! * [`agent`], [`job`]: `/api/agent/v1`, our own protocol between agent and control plane.
//! * [`image_name`]: names of images, and which are allowed.
//! * [`iacp`]: `/api/iacp/v3`, the Scalr-compatible surface; the operator's language.
//! * [`sidecar`]: what a Pod of agent and run container looks like.
//! * [`run_state`]: the run state machine, a pure function.

pub mod agent;
pub mod iacp;
pub mod image_name;
pub mod job;
pub mod run_state;
pub mod sidecar;
