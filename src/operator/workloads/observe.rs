//! A Pod of the API reduced to what decisions need.

use k8s_openapi::api::core::v1::Pod;

use super::mark;

/// Where an agent Pod stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Not all of its containers run yet.
    Starting,
    Running,
    /// Somebody deleted it; its agent may still finish a job.
    Ending,
    Succeeded,
    Failed,
}

/// An agent Pod as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// Also the name of its agent in the control plane.
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    /// Milliseconds since 1970, by the API server's clock.
    pub created_ms: i64,
    /// When its time to end is over, once it is deleted. Milliseconds since 1970.
    pub ends_ms: Option<i64>,
    pub phase: Phase,
    /// Image of the run container.
    pub image: String,
    /// Hash of the template that it was made from; empty when the annotation is lost.
    pub template: String,
    /// It has the label [`mark::BUSY`].
    pub busy: bool,
    pub node: Option<String>,
    pub problem: Option<PodProblem>,
}

/// Why a Pod does not run, or ended badly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodProblem {
    pub fault: Fault,
    /// For people, in the cluster's words.
    pub message: String,
    /// The image that cannot be had.
    pub image: Option<String>,
    /// It is the run container's image that cannot be had: jobs with another one are not concerned.
    pub run_image: bool,
    /// Trying again will not mend it: the registry said no, or the name is none.
    pub permanent: bool,
}

/// What kind of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    ImagePullFailed,
    Unschedulable,
    /// A Secret, ConfigMap or key that a container refers to is missing.
    ContainerConfig,
    /// The cluster ended the Pod: no room on the node, preempted, the node shut down.
    Evicted,
    /// A container ended with an error.
    Exited,
}

/// What decisions need of a Pod.
#[must_use]
pub fn observe(pod: &Pod) -> PodView {
    let metadata = &pod.metadata;
    let annotation = |name: &str| metadata.annotations.as_ref().and_then(|map| map.get(name)).cloned();
    PodView {
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
        resource_version: metadata.resource_version.clone().unwrap_or_default(),
        created_ms: metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_millisecond()),
        ends_ms: metadata.deletion_timestamp.as_ref().map(|time| time.0.as_millisecond()),
        phase: Phase::Starting,
        image: annotation(mark::RUN_IMAGE).unwrap_or_default(),
        template: annotation(mark::TEMPLATE).unwrap_or_default(),
        busy: metadata.labels.as_ref().and_then(|map| map.get(mark::BUSY)).is_some_and(|value| value == "true"),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        problem: None,
    }
}
