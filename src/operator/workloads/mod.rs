//! The Kubernetes objects that a pool's agents are made of, and how many there are. Pure: objects are built and
//! decisions taken from plain data here; reading and writing the cluster is the pool controller's affair.
//!
//! * [`objects`]: what a pool owns beside Pods and Secret, for its mode.
//! * [`pod`]: one single-use agent Pod of mode Ephemeral.
//! * [`scale`]: which Pods are created, cordoned and removed.
//! * [`observe`]: a Pod of the API reduced to what decisions need.

use serde_json::Value;

use crate::crd::AgentPoolSpec;

/// A pool as its workloads need to know it.
#[derive(Debug, Clone, Copy)]
pub struct PoolView<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
    pub spec: &'a AgentPoolSpec,
    /// Address of the control plane.
    pub url: &'a str,
    /// Secret in the pool's namespace with the keys of [`secret_key`].
    pub secret: &'a str,
    /// The Secret has [`secret_key::CA`].
    pub has_ca: bool,
    /// Identifier of the token in the Secret: changes with a rotation.
    pub token_id: &'a str,
    /// Image of our agent where the spec names none: the operator's own.
    pub agent_image: &'a str,
}

/// Keys of a pool's Secret.
pub mod secret_key {
    /// The pool token.
    pub const TOKEN: &str = "token";
    /// Address of the control plane, for agents that somebody else runs.
    pub const URL: &str = "url";
    /// PEM certificates to trust beside the system's; not always there.
    pub const CA: &str = "ca.crt";
}

/// An object as it is to be applied: with `apiVersion`, `kind`, name, namespace, labels and the owner.
#[derive(Debug, Clone, PartialEq)]
pub struct Owned {
    pub kind: OwnedKind,
    pub name: String,
    pub manifest: Value,
}

/// The kinds that a pool owns beside Pods and Secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnedKind {
    DaemonSet,
    Deployment,
    NetworkPolicy,
    PodDisruptionBudget,
}

impl OwnedKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::DaemonSet, Self::Deployment, Self::NetworkPolicy, Self::PodDisruptionBudget];
}
