//! The Kubernetes objects that a pool's agents are made of, and how many there are. Pure: objects are built and
//! decisions taken from plain data here; reading and writing the cluster is the pool controller's affair.
//!
//! * [`objects`]: what a pool owns beside Pods and Secret, for its mode.
//! * [`pod`]: one single-use agent Pod of mode Ephemeral.
//! * [`observe`]: a Pod of the API reduced to what decisions need.
//! * [`scale`]: which Pods are created, cordoned and removed.

mod foreign;
mod merge;
mod network;
mod node;
mod objects;
mod observe;
mod parts;
mod pod;
pub mod scale;

use serde_json::Value;

pub use objects::objects;
pub use observe::{Fault, Phase, PodProblem, PodView, observe};
pub use parts::{metadata, object_name};
pub use pod::{NameSalt, NewPod, pod, pod_name, template_hash};

use crate::{
    api::image_name::fits,
    crd::{AgentPoolSpec, agents::Agents, common::Span},
};

/// Image of the run container where neither pool nor workspace name one.
pub const DEFAULT_RUN_IMAGE: &str = "docker.io/hashicorp/terraform:1.11.4";

const DEFAULT_DRAIN_SECONDS: u64 = 15 * 60;

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

/// Labels and annotations of agent Pods, beside those of [`crate::crd::names`].
pub mod mark {
    /// Label, value `true`: the Pod's agent has a job, and the disruption budget protects it.
    pub const BUSY: &str = "terrapool.dev/busy";
    /// Label: which run image, as a hash; annotation of the same name: the image as jobs name it, empty for those
    /// that name none.
    pub const RUN_IMAGE: &str = "terrapool.dev/run-image";
    /// Annotation: hash of what the Pod was made from. See [`super::template_hash`].
    pub const TEMPLATE: &str = "terrapool.dev/template";
    /// Annotation of a Deployment's Pods: the token that they were given, so that a rotation replaces them.
    pub const TOKEN: &str = "terrapool.dev/token-id";
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

/// A spec that the API server let pass and that no Pod can be made from. The user has to change it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Invalid {
    /// Path of the field, as `spec.agents.overrides.spec.containers`.
    pub path: String,
    /// What is wrong, for people.
    pub message: String,
}

impl Invalid {
    fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

/// How jobs name the image of the run container when their workspace names none: the pool's image, or nothing.
fn job_image(spec: &AgentPoolSpec) -> &str {
    spec.runs.image.as_ref().map_or("", |image| image.as_str())
}

/// Whether the pool's administrator lets workspaces use `image`.
fn allows_image(spec: &AgentPoolSpec, image: &str) -> bool {
    image == job_image(spec) || spec.runs.allowed_images.iter().any(|pattern| fits(&pattern.0, image))
}

/// Time that the agents of a pool have to finish their jobs, in seconds.
fn drain_seconds(agents: &Agents) -> i64 {
    let seconds = agents.drain_timeout.as_ref().map_or(DEFAULT_DRAIN_SECONDS, Span::seconds);
    i64::try_from(seconds).unwrap_or(i64::from(u32::MAX))
}
