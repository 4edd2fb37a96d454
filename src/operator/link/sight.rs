//! A WorkspaceLink as the cache keeps it: what it asks for, and of its status only whether that is still right.
//! Thousands of links at rest are most of what an operator remembers.

use std::{
    borrow::Cow,
    hash::{DefaultHasher, Hash, Hasher},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, core::NamespaceResourceScope};
use serde::Deserialize;

use crate::crd::{WorkspaceLink, WorkspaceLinkSpec, WorkspaceLinkStatus, conditions};

/// Read as a WorkspaceLink.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "WorkspaceLink")]
pub(in crate::operator) struct LinkSight {
    metadata: ObjectMeta,
    pub(in crate::operator) spec: WorkspaceLinkSpec,
    told: Option<Told>,
}

/// What stands in the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    ready: bool,
    digest: u64,
}

impl From<WorkspaceLink> for LinkSight {
    fn from(link: WorkspaceLink) -> Self {
        let told = link.status.as_ref().filter(|status| !status.conditions.is_empty()).map(|status| {
            let ready = conditions::get(&status.conditions, conditions::READY);
            Told { ready: ready.is_some_and(|ready| ready.status == "True"), digest: digest(status) }
        });
        // At once: who manages which field takes ten times the room of all else, and a list comes in one piece.
        let metadata = ObjectMeta { managed_fields: None, ..link.metadata };
        Self { metadata, spec: link.spec, told }
    }
}

impl LinkSight {
    /// Whether the status says anything.
    pub(in crate::operator) fn is_told(&self) -> bool {
        self.told.is_some()
    }

    /// Whether the status says that all is in line.
    pub(super) fn is_ready(&self) -> bool {
        self.told.is_some_and(|told| told.ready)
    }

    /// Whether the status says the same, at whatever time that was found out.
    pub(super) fn says(&self, status: &WorkspaceLinkStatus) -> bool {
        self.told.is_some_and(|told| told.digest == digest(status))
    }
}

/// Of all that a status says, but for the times.
fn digest(status: &WorkspaceLinkStatus) -> u64 {
    let WorkspaceLinkStatus { observed_generation, conditions, workspace, workspace_id, pool, pool_id, linked_at } =
        status;
    let mut hasher = DefaultHasher::new();
    (observed_generation, workspace, workspace_id, pool, pool_id, linked_at.is_some()).hash(&mut hasher);
    for condition in conditions {
        (&condition.type_, &condition.status, &condition.reason).hash(&mut hasher);
        (&condition.message, condition.observed_generation).hash(&mut hasher);
    }
    hasher.finish()
}

impl Resource for LinkSight {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        WorkspaceLink::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        WorkspaceLink::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        WorkspaceLink::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        WorkspaceLink::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn link(change: impl FnOnce(&mut Value)) -> WorkspaceLink {
        let condition = |type_: &str| {
            json!({"type": type_, "status": "True", "reason": "InSync", "message": "", "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let mut link = json!({
            "apiVersion": "terrapool.dev/v1alpha1", "kind": "WorkspaceLink",
            "metadata": {"name": "app", "namespace": "n", "uid": "u", "generation": 1},
            "spec": {"poolRef": {"name": "p"}, "workspace": {"id": "ws-1"}},
            "status": {"observedGeneration": 1, "conditions": [condition("Linked"), condition("Ready")],
                "poolID": "apool-1", "linkedAt": "2026-01-01T00:00:00Z"},
        });
        change(&mut link);
        serde_json::from_value(link).unwrap()
    }

    #[test]
    fn times_apart_every_word_of_a_status_counts() {
        let status = |change: fn(&mut Value)| link(|link| change(&mut link["status"])).status.unwrap();
        let sight = LinkSight::from(link(|_| {}));
        assert!(sight.is_ready() && sight.says(&status(|_| {})));
        assert!(sight.says(&status(|status| {
            status["linkedAt"] = json!("2026-02-01T00:00:00Z");
            status["conditions"][1]["lastTransitionTime"] = json!("2026-02-01T00:00:00Z");
        })));
        let changes: [fn(&mut Value); 6] = [
            |status| status["observedGeneration"] = json!(2),
            |status| status["poolID"] = json!("apool-2"),
            |status| status["linkedAt"] = json!(null),
            |status| status["conditions"][0]["message"] = json!("other"),
            |status| status["conditions"][0]["observedGeneration"] = json!(2),
            |status| drop(status["conditions"].as_array_mut().unwrap().remove(0)),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert!(!sight.says(&status(change)), "change {number}");
        }
    }

    #[test]
    fn a_status_without_conditions_says_nothing() {
        for status in [json!(null), json!({}), json!({"poolID": "apool-1"})] {
            let sight = LinkSight::from(link(|link| link["status"] = status));
            assert!(!sight.is_told() && !sight.is_ready() && !sight.says(&WorkspaceLinkStatus::default()));
        }
        let unready = LinkSight::from(link(|link| link["status"]["conditions"][1]["status"] = json!("False")));
        assert!(unready.is_told() && !unready.is_ready());
    }

    #[test]
    fn it_is_watched_as_what_it_is() {
        assert_eq!(LinkSight::url_path(&(), Some("n")), WorkspaceLink::url_path(&(), Some("n")));
        let text = serde_json::to_string(&link(|_| {})).unwrap();
        let sight: LinkSight = serde_json::from_str(&text).unwrap();
        assert_eq!((sight.meta().name.as_deref(), sight.is_ready()), (Some("app"), true));
    }
}
