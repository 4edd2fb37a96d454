//! What annotations of an object ask for.

use kube::ResourceExt;

use crate::crd::names;

/// What is told of a paused object.
pub(super) const PAUSED_MESSAGE: &str =
    "the annotation terrapool.dev/paused stops everything for this object: remove it to go on";

fn is_true(object: &impl ResourceExt, annotation: &str) -> bool {
    object.annotations().get(annotation).is_some_and(|value| value == "true")
}

pub(super) fn is_paused(object: &impl ResourceExt) -> bool {
    is_true(object, names::PAUSED)
}

/// What cannot be removed elsewhere is left there.
pub(super) fn is_forced(object: &impl ResourceExt) -> bool {
    is_true(object, names::FORCE_DELETE)
}

/// Changes when somebody wants a look at once.
pub(super) fn requested(object: &impl ResourceExt) -> Option<String> {
    object.annotations().get(names::RECONCILE_REQUEST).cloned()
}
