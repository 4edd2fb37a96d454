//! From what a pass found out to the WorkspaceLink's status. Pure.

use k8s_openapi::jiff::Timestamp;

use crate::{
    crd::{
        WorkspaceLinkStatus,
        conditions::{self, reason},
    },
    operator::facts::{Board, Fact},
    sync::{LinkReport, Waiting},
};

/// What a pass found out.
#[derive(Debug)]
pub(super) enum Found {
    Linked(Box<LinkReport>),
    Waiting(Waiting),
    Failed { reason: &'static str, message: String },
}

/// The new status.
pub(super) fn compute(
    old: Option<&WorkspaceLinkStatus>,
    found: &Found,
    generation: Option<i64>,
    now: Timestamp,
) -> WorkspaceLinkStatus {
    let mut status = old.cloned().unwrap_or_default();
    status.observed_generation = generation;
    let yes = || Fact::yes(reason::IN_SYNC, "");
    let (resolved, linked, allowed) = match found {
        Found::Linked(_) => (Some(yes()), Some(yes()), Some(yes())),
        Found::Waiting(waiting) => {
            let no = Fact::no(waiting.reason, waiting.message.clone());
            match waiting.reason {
                reason::POOL_NOT_FOUND => (Some(no.clone()), Some(no), None),
                reason::SCOPE_DENIED => (Some(yes()), Some(no.clone()), Some(no)),
                reason::ALREADY_LINKED_ELSEWHERE => (Some(yes()), Some(no), Some(yes())),
                reason::PAUSED => (None, None, None),
                _ => (None, Some(no), None),
            }
        }
        // Whether it is linked is not known, and what was known stands.
        Found::Failed { .. } => (None, None, None),
    };
    let (ready, stalled) = match found {
        Found::Linked(_) => (Fact::yes(reason::IN_SYNC, "the workspace is linked to the pool"), false),
        // What somebody has to mend; the others end by themselves.
        Found::Waiting(waiting) => (
            Fact::no(waiting.reason, waiting.message.clone()),
            !matches!(
                waiting.reason,
                reason::POOL_NOT_FOUND | reason::WORKSPACE_NOT_FOUND | reason::ENVIRONMENT_NOT_FOUND
            ),
        ),
        Found::Failed { reason, message } => (Fact::no(reason, message.clone()), false),
    };
    let mut board = Board { conditions: &mut status.conditions, generation, now };
    board.put_or_keep(conditions::POOL_RESOLVED, resolved);
    board.put_or_keep(conditions::LINKED, linked);
    board.put_or_keep(conditions::SCOPE_ALLOWED, allowed);
    board.summarise(ready, stalled);
    if let Found::Linked(report) = found {
        let same = status.workspace_id.as_deref() == Some(report.workspace.id.as_str())
            && status.pool_id.as_deref() == Some(report.pool.id.as_str());
        if !same || report.changed || status.linked_at.is_none() {
            status.linked_at = Some(now.to_string());
        }
        status.workspace = Some(report.title.clone());
        status.workspace_id = Some(report.workspace.id.to_string());
        status.pool.clone_from(&report.pool.attributes.name);
        status.pool_id = Some(report.pool.id.to_string());
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(reason: &'static str) -> Found {
        Found::Waiting(Waiting::new(reason, "why"))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_ends_by_itself_is_reconciling_and_what_needs_somebody_is_stalled() {
        for (reason, stalled) in [
            (reason::POOL_NOT_FOUND, false),
            (reason::WORKSPACE_NOT_FOUND, false),
            (reason::SCOPE_DENIED, true),
            (reason::ALREADY_LINKED_ELSEWHERE, true),
        ] {
            let status = compute(None, &waiting(reason), Some(1), at(1));
            let there = |type_| conditions::get(&status.conditions, type_).is_some();
            assert_eq!((there(conditions::STALLED), there(conditions::RECONCILING)), (stalled, !stalled), "{reason}");
            let ready = conditions::get(&status.conditions, conditions::READY).unwrap();
            assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", reason));
        }
    }

    #[test]
    fn the_same_again_is_no_change() {
        let first = compute(None, &waiting(reason::POOL_NOT_FOUND), Some(1), at(1));
        assert_eq!(compute(Some(&first), &waiting(reason::POOL_NOT_FOUND), Some(1), at(5)), first);
    }

    #[test]
    fn a_control_plane_that_is_away_does_not_unlink_anything() {
        let linked = WorkspaceLinkStatus {
            conditions: compute(None, &waiting(reason::ALREADY_LINKED_ELSEWHERE), Some(1), at(1)).conditions,
            pool: Some("p".to_owned()),
            ..WorkspaceLinkStatus::default()
        };
        let failed = Found::Failed { reason: reason::CONTROL_PLANE_UNREACHABLE, message: "away".to_owned() };
        let status = compute(Some(&linked), &failed, Some(1), at(2));
        let of = |status: &WorkspaceLinkStatus| conditions::get(&status.conditions, conditions::LINKED).cloned();
        assert_eq!((of(&status), status.pool.as_deref()), (of(&linked), Some("p")));
    }
}
