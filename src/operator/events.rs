//! Events on our objects, for people: one when something changes for the worse or for good, never one per visit.

use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use super::leader::Fence;
use crate::telemetry::Chain;

/// Deadline of one event: nobody waits for them.
const CALL: std::time::Duration = std::time::Duration::from_secs(5);

/// Longest note that the API server takes, in bytes.
const LONGEST: usize = 1024;

/// Writes events. Equal ones are counted by the API's series instead of written again.
#[derive(Clone)]
pub(super) struct Events {
    recorder: Option<Recorder>,
    fence: Fence,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct News {
    pub(super) warning: bool,
    pub(super) reason: &'static str,
    pub(super) note: String,
}

impl Events {
    pub(super) fn new(client: Client, identity: &str, fence: Fence) -> Self {
        let reporter = Reporter { controller: "terrapool-operator".to_owned(), instance: Some(identity.to_owned()) };
        Self { recorder: Some(Recorder::new(client, reporter)), fence }
    }

    /// For a dry run.
    pub(super) fn none() -> Self {
        Self { recorder: None, fence: Fence::open() }
    }

    /// Tells; that it could not be told is logged and no more.
    pub(super) async fn publish<K: Resource<DynamicType = ()>>(&self, about: &K, news: News) {
        let Some(recorder) = self.recorder.as_ref().filter(|_| self.fence.holds()) else { return };
        let mut note = news.note;
        note.truncate(note.floor_char_boundary(LONGEST));
        let event = Event {
            type_: if news.warning { EventType::Warning } else { EventType::Normal },
            reason: news.reason.to_owned(),
            note: Some(note),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        // Without the version of the object: the same news about a later one is the same news.
        let reference = k8s_openapi::api::core::v1::ObjectReference { resource_version: None, ..about.object_ref(&()) };
        match tokio::time::timeout(CALL, recorder.publish(&event, &reference)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = %Chain(&error), "an event could not be written"),
            Err(_) => tracing::debug!("an event could not be written in time"),
        }
    }
}
