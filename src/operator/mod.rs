//! The operator: brings what AgentPools and WorkspaceLinks of a cluster ask for into being, in the control plane
//! (through [`crate::sync`]) and as agents in the cluster ([`workloads`]).

pub mod workloads;
