//! A Pod of the API reduced to what decisions need.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Pod, PodStatus};

use super::mark;
use crate::{api::sidecar::container, crd::conditions::reason};

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
    /// When its agent ended, once it has; a container that goes on may do so for ever. Milliseconds since 1970.
    pub agent_ended_ms: Option<i64>,
    /// Image of the run container as jobs name it; empty: it serves jobs that name none.
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
    /// A Secret, ConfigMap or key that a container or volume refers to is missing, or a container cannot be made.
    ContainerConfig,
    /// The cluster ended the Pod: no room on the node, preempted, the node shut down.
    Evicted,
    /// A container ended with an error.
    Exited,
}

impl Fault {
    /// As the reason of a condition.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::ImagePullFailed => reason::IMAGE_PULL_FAILED,
            Self::Unschedulable | Self::Evicted => reason::UNSCHEDULABLE,
            Self::ContainerConfig => reason::INVALID_SPEC,
            Self::Exited => reason::AGENT_FAILED,
        }
    }
}

/// What registries and runtimes say when another try will not help. Lower case.
const FINAL_WORDS: [&str; 9] = [
    "not found",
    "manifest unknown",
    "name unknown",
    "does not exist",
    "denied",
    "unauthorized",
    "forbidden",
    "invalid reference",
    "no match for platform",
];

/// What decisions need of a Pod.
#[must_use]
pub fn observe(pod: &Pod) -> PodView {
    let metadata = &pod.metadata;
    let annotation = |name: &str| metadata.annotations.as_ref().and_then(|map| map.get(name)).cloned();
    let spec = pod.spec.as_ref();
    let run_image = || {
        let run = spec.and_then(|spec| spec.containers.iter().find(|item| item.name == container::RUN));
        run.and_then(|run| run.image.clone())
    };
    let status = pod.status.clone().unwrap_or_default();
    let phase = phase(&status, metadata.deletion_timestamp.is_some());
    let created_ms = metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_millisecond());
    PodView {
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
        resource_version: metadata.resource_version.clone().unwrap_or_default(),
        created_ms,
        ends_ms: metadata.deletion_timestamp.as_ref().map(|time| time.0.as_millisecond()),
        phase,
        agent_ended_ms: agent_ended(&status).map(|time| time.unwrap_or(created_ms)),
        image: annotation(mark::RUN_IMAGE).or_else(run_image).unwrap_or_default(),
        template: annotation(mark::TEMPLATE).unwrap_or_default(),
        busy: metadata.labels.as_ref().and_then(|map| map.get(mark::BUSY)).is_some_and(|value| value == "true"),
        node: spec.and_then(|spec| spec.node_name.clone()),
        problem: problem(&status, phase),
    }
}

fn phase(status: &PodStatus, deleted: bool) -> Phase {
    match status.phase.as_deref() {
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        _ if deleted => Phase::Ending,
        Some("Running") => Phase::Running,
        _ => Phase::Starting,
    }
}

/// When the agent's container ended; some runtimes do not know the time.
fn agent_ended(status: &PodStatus) -> Option<Option<i64>> {
    let agent = status.container_statuses.iter().flatten().find(|status| status.name == container::AGENT)?;
    let ended = agent.state.as_ref()?.terminated.as_ref()?;
    Some(ended.finished_at.as_ref().map(|time| time.0.as_millisecond()))
}

/// The first thing that is wrong, the more particular first.
fn problem(status: &PodStatus, phase: Phase) -> Option<PodProblem> {
    let main = status.container_statuses.iter().flatten();
    let containers: Vec<&ContainerStatus> = status.init_container_statuses.iter().flatten().chain(main).collect();
    match phase {
        Phase::Succeeded | Phase::Ending => None,
        Phase::Failed => evicted(status).or_else(|| containers.iter().find_map(|status| exited(status))),
        Phase::Starting | Phase::Running => containers
            .iter()
            .find_map(|status| status.state.as_ref()?.waiting.as_ref().and_then(|waiting| stuck(status, waiting)))
            .or_else(|| unschedulable(status))
            // A container of a Pod that does not restart ends before the other one.
            .or_else(|| containers.iter().find_map(|status| exited(status))),
    }
}

fn new(fault: Fault, message: String) -> PodProblem {
    PodProblem { fault, message, image: None, run_image: false, permanent: false }
}

fn evicted(status: &PodStatus) -> Option<PodProblem> {
    let disrupted = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True");
    // The kubelet gives a reason of its own only to Pods that it ended.
    let reason = status.reason.clone().or_else(|| disrupted.and_then(|condition| condition.reason.clone()))?;
    let message = status.message.clone().or_else(|| disrupted.and_then(|condition| condition.message.clone()));
    Some(new(Fault::Evicted, sentence(&reason, message.as_deref())))
}

fn exited(status: &ContainerStatus) -> Option<PodProblem> {
    let ContainerStateTerminated { exit_code, reason, message, signal, .. } =
        status.state.as_ref()?.terminated.as_ref()?;
    if *exit_code == 0 {
        return None;
    }
    let what = match (signal, reason.as_deref()) {
        (_, Some("OOMKilled")) => "took more memory than its limit".to_owned(),
        (Some(signal), _) if *signal != 0 => format!("was ended by signal {signal}"),
        _ => format!("ended with exit code {exit_code}"),
    };
    let head = format!("container {} {what}", status.name);
    Some(new(Fault::Exited, sentence(&head, message.as_deref())))
}

fn stuck(status: &ContainerStatus, waiting: &ContainerStateWaiting) -> Option<PodProblem> {
    let reason = waiting.reason.as_deref()?;
    let said = waiting.message.as_deref();
    let fault = match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => Fault::ImagePullFailed,
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => Fault::ContainerConfig,
        "CrashLoopBackOff" => Fault::Exited,
        _ => return None,
    };
    let message = match fault {
        Fault::ImagePullFailed => sentence(&format!("image {} cannot be pulled ({reason})", status.image), said),
        _ => sentence(&format!("container {} cannot start ({reason})", status.name), said),
    };
    let words = said.unwrap_or_default().to_lowercase();
    let pull = fault == Fault::ImagePullFailed;
    Some(PodProblem {
        image: pull.then(|| status.image.clone()),
        run_image: pull && status.name == container::RUN,
        permanent: matches!(reason, "InvalidImageName" | "ErrImageNeverPull" | "SignatureValidationFailed")
            || pull && FINAL_WORDS.iter().any(|word| words.contains(word)),
        ..new(fault, message)
    })
}

fn unschedulable(status: &PodStatus) -> Option<PodProblem> {
    let condition = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    // Scheduling gates are the cluster's own business, and they open.
    (condition.reason.as_deref() == Some("Unschedulable"))
        .then(|| new(Fault::Unschedulable, sentence("no node takes the Pod", condition.message.as_deref())))
}

/// Longest message of a problem: it goes into conditions and onto pages.
const MAX_MESSAGE: usize = 400;

/// `head: what was said`, on one line.
fn sentence(head: &str, said: Option<&str>) -> String {
    let said = said.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    let text = if said.is_empty() { head.to_owned() } else { format!("{head}: {said}") };
    match text.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn view(status: &Value) -> PodView {
        let pod = json!({
            "metadata": {
                "name": "p-1", "uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:10Z",
                "labels": {"terrapool.dev/busy": "true"},
                "annotations": {"terrapool.dev/run-image": "a:1", "terrapool.dev/template": "t"},
            },
            "spec": {"nodeName": "n", "containers": [{"name": "run", "image": "b:1"}]},
            "status": status,
        });
        observe(&serde_json::from_value(pod).unwrap())
    }

    fn waiting(container: &str, reason: &str, message: &str) -> Value {
        json!({"phase": "Pending", "containerStatuses": [
            {"name": "agent", "image": "agent:1", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"waiting": {"reason": if container == "agent" { reason } else { "ContainerCreating" }, "message": message}}},
            {"name": "run", "image": "b:1", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"waiting": {"reason": if container == "run" { reason } else { "ContainerCreating" }, "message": message}}},
        ]})
    }

    #[test]
    fn a_pod_is_reduced_to_what_is_needed() {
        let seen = view(&json!({"phase": "Running"}));
        let wanted = PodView {
            name: "p-1".into(),
            uid: "u".into(),
            resource_version: "7".into(),
            created_ms: 1_767_225_610_000,
            ends_ms: None,
            phase: Phase::Running,
            agent_ended_ms: None,
            image: "a:1".into(),
            template: "t".into(),
            busy: true,
            node: Some("n".into()),
            problem: None,
        };
        assert_eq!(seen, wanted);
        assert_eq!(view(&json!({})).phase, Phase::Starting);
        let bare = observe(&Pod::default());
        assert_eq!((bare.phase, bare.busy, bare.image.as_str()), (Phase::Starting, false, ""));
    }

    #[test]
    fn a_deleted_pod_is_ending_until_its_containers_have_ended() {
        for (phase, wanted) in [
            ("Running", Phase::Ending),
            ("Pending", Phase::Ending),
            ("Failed", Phase::Failed),
            ("Succeeded", Phase::Succeeded),
        ] {
            let pod = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:10Z"}, "status": {"phase": phase}});
            let seen = observe(&serde_json::from_value(pod).unwrap());
            assert_eq!((seen.phase, seen.ends_ms), (wanted, Some(1_767_225_610_000)), "{phase}");
        }
    }

    #[test]
    fn an_agent_that_has_ended_is_noticed_whatever_else_goes_on() {
        let running = || json!({"running": {"startedAt": "2026-01-01T00:00:11Z"}});
        let ended = |at: &str| json!({"terminated": {"exitCode": 0, "finishedAt": at}});
        let table = [
            (running(), running(), None),
            (running(), ended("2026-01-01T00:00:20Z"), None),
            (json!({"waiting": {"reason": "ContainerCreating"}}), running(), None),
            (ended("2026-01-01T00:00:20Z"), running(), Some(1_767_225_620_000)),
            (json!({"terminated": {"exitCode": 137}}), running(), Some(1_767_225_610_000)),
        ];
        for (agent, run, wanted) in table {
            let containers = [("agent", &agent), ("run", &run)].map(|(name, state)| {
                json!({"name": name, "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": state})
            });
            let seen = view(&json!({"phase": "Running", "containerStatuses": containers}));
            assert_eq!((seen.phase, seen.agent_ended_ms), (Phase::Running, wanted), "{agent} {run}");
        }
    }

    #[test]
    fn images_that_cannot_be_had_are_named() {
        let table = [
            ("run", "ErrImagePull", "manifest unknown", true, true),
            ("run", "ImagePullBackOff", "Back-off pulling image: dial tcp: i/o timeout", true, false),
            ("run", "ImagePullBackOff", "pull access denied, repository does not exist", true, true),
            ("run", "InvalidImageName", "couldn't parse image name", true, true),
            ("run", "ErrImageNeverPull", "not present with pull policy of Never", true, true),
            ("agent", "ErrImagePull", "not found", false, true),
        ];
        for (container, reason, message, run_image, permanent) in table {
            let problem = view(&waiting(container, reason, message)).problem.unwrap();
            assert_eq!(problem.fault, Fault::ImagePullFailed, "{reason}");
            assert_eq!((problem.run_image, problem.permanent), (run_image, permanent), "{reason} {message}");
            let image = if run_image { "b:1" } else { "agent:1" };
            assert_eq!(problem.image.as_deref(), Some(image));
            assert!(problem.message.starts_with(&format!("image {image} cannot be pulled ({reason}): {message}")));
        }
    }

    #[test]
    fn what_else_is_wrong_is_said_in_the_clusters_words() {
        let unscheduled = |reason: &str| {
            json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": reason, "message": "0/3 nodes are available"}]})
        };
        let terminated = |name: &str, state: Value| {
            json!({"phase": "Failed", "containerStatuses": [
            {"name": name, "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": state}}]})
        };
        let table = [
            (waiting("agent", "ContainerCreating", ""), None),
            (unscheduled("SchedulingGated"), None),
            (json!({"phase": "Succeeded", "reason": "x"}), None),
            (
                unscheduled("Unschedulable"),
                Some((Fault::Unschedulable, "no node takes the Pod: 0/3 nodes are available")),
            ),
            (
                waiting("agent", "CreateContainerConfigError", "secret \"s\" not found"),
                Some((
                    Fault::ContainerConfig,
                    "container agent cannot start (CreateContainerConfigError): secret \"s\" not found",
                )),
            ),
            (
                json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}),
                Some((Fault::Evicted, "Evicted: The node was low on resource: memory.")),
            ),
            (
                json!({"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "preempting"}]}),
                Some((Fault::Evicted, "PreemptionByScheduler: preempting")),
            ),
            (
                terminated("agent", json!({"exitCode": 2, "message": "Error: bad\n  token\n"})),
                Some((Fault::Exited, "container agent ended with exit code 2: Error: bad token")),
            ),
            (
                terminated("run", json!({"exitCode": 137, "reason": "OOMKilled"})),
                Some((Fault::Exited, "container run took more memory than its limit")),
            ),
            (terminated("run", json!({"exitCode": 0})), None),
        ];
        for (status, wanted) in table {
            let problem = view(&status).problem;
            let found = problem.as_ref().map(|problem| (problem.fault, problem.message.as_str()));
            assert_eq!(found, wanted, "{status}");
        }
    }

    #[test]
    fn messages_are_cut_to_what_fits_on_a_line() {
        let text = sentence("head", Some(&"ä".repeat(1000)));
        assert_eq!(text.chars().count(), MAX_MESSAGE + 1);
    }
}
