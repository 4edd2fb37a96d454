//! From what a pass found out to the AgentPool's status. Pure; what a pass could not find out stays as it was.

use k8s_openapi::jiff::Timestamp;

use crate::{
    crd::{
        AgentPoolStatus,
        agent_pool::{AgentsStatus, QueueStatus, TokenStatus},
        conditions::{self, reason},
    },
    operator::facts::{Board, Fact},
};

/// What a pass found out. `None`: nothing new; the last status' word stands.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) registered: Option<Fact>,
    pub(super) token_ready: Option<Fact>,
    pub(super) agents_available: Option<Fact>,
    /// Why there are fewer agents than wanted; the inner `None`: there are as many.
    pub(super) limited: Option<Option<Fact>>,
    /// Why it cannot be deleted yet.
    pub(super) deletion_blocked: Option<Fact>,
    /// Runs are root.
    pub(super) privileged: bool,
    /// Agents finish their runs and take no new ones.
    pub(super) draining: Option<Fact>,
    /// Nothing goes on until somebody changes something.
    pub(super) stalled: bool,
    /// Overrides the summary: paused, deleting.
    pub(super) not_ready: Option<Fact>,
    pub(super) pool_id: Option<String>,
    pub(super) agents: Option<AgentsStatus>,
    pub(super) queue: Option<QueueStatus>,
    pub(super) token: Option<TokenStatus>,
    pub(super) linked_workspaces: Option<i64>,
    pub(super) replicas: Option<i32>,
    pub(super) selector: Option<String>,
}

/// The new status, from the old one and what was found out.
pub(super) fn compute(
    old: Option<&AgentPoolStatus>,
    facts: &Facts,
    generation: Option<i64>,
    now: Timestamp,
) -> AgentPoolStatus {
    let old = old.cloned().unwrap_or_default();
    let mut conditions = old.conditions;
    let mut board = Board { conditions: &mut conditions, generation, now };
    let parts = [
        (conditions::REGISTERED, &facts.registered),
        (conditions::TOKEN_READY, &facts.token_ready),
        (conditions::AGENTS_AVAILABLE, &facts.agents_available),
    ];
    for (type_, fact) in parts {
        board.put_or_keep(type_, fact.clone());
    }
    let unlimited = || Fact::no(reason::IN_SYNC, "as many agents as are wanted");
    board.put_or_keep(
        conditions::SCALING_LIMITED,
        facts.limited.as_ref().map(|limit| limit.clone().unwrap_or_else(unlimited)),
    );
    let privileged = facts.privileged.then(|| {
        Fact::yes(reason::ROOT_ACKNOWLEDGED, "runs of this pool are root in their containers (runs.user: Root)")
    });
    board.put_or_remove(conditions::DELETION_BLOCKED, facts.deletion_blocked.clone());
    board.put_or_remove(conditions::PRIVILEGED_MODE, privileged);
    board.put_or_remove(conditions::DRAINING, facts.draining.clone());
    // Ready says what the first of its parts that does not hold says.
    let part = |(type_, _): (&str, _)| conditions::get(board.conditions, type_).filter(|part| part.status != "True");
    let failing = parts.into_iter().find_map(part).map(|part| Fact::from(part).that(false));
    let ready = facts.not_ready.clone().or(failing);
    let in_line = || Fact::yes(reason::IN_SYNC, "the pool is in line with this object");
    board.summarise(ready.unwrap_or_else(in_line), facts.stalled);
    AgentPoolStatus {
        observed_generation: generation,
        pool_id: facts.pool_id.clone().or(old.pool_id),
        conditions,
        agents: facts.agents.clone().or(old.agents),
        queue: facts.queue.clone().or(old.queue),
        token: facts.token.clone().or(old.token),
        linked_workspaces: facts.linked_workspaces.or(old.linked_workspaces),
        replicas: facts.replicas.or(old.replicas),
        selector: facts.selector.clone().or(old.selector),
    }
}

/// How soon a changed status is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Nothing changed.
    Never,
    /// Only the number of linked workspaces: when it has settled.
    Settled,
    /// Only numbers that change with every run: at a coarse interval.
    Later,
    Now,
}

pub(super) fn urgency(old: Option<&AgentPoolStatus>, new: &AgentPoolStatus) -> Urgency {
    let Some(old) = old else { return Urgency::Now };
    if old == new {
        return Urgency::Never;
    }
    if (AgentPoolStatus { linked_workspaces: old.linked_workspaces, ..new.clone() }) == *old {
        return Urgency::Settled;
    }
    let coarse = |status: &AgentPoolStatus| {
        let mut status =
            AgentPoolStatus { agents: None, queue: None, linked_workspaces: None, replicas: None, ..status.clone() };
        let limited = status.conditions.iter_mut().find(|condition| condition.type_ == conditions::SCALING_LIMITED);
        if let Some(limited) = limited {
            limited.message.clear();
        }
        status
    };
    if coarse(old) == coarse(new) { Urgency::Later } else { Urgency::Now }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn good() -> Facts {
        Facts {
            registered: Some(Fact::yes(reason::IN_SYNC, "")),
            token_ready: Some(Fact::yes(reason::IN_SYNC, "")),
            agents_available: Some(Fact::yes(reason::IN_SYNC, "")),
            limited: Some(None),
            pool_id: Some("apool-a".to_owned()),
            ..Facts::default()
        }
    }

    fn of(status: &AgentPoolStatus, type_: &str) -> Option<(String, String)> {
        conditions::get(&status.conditions, type_).map(|c| (c.status.clone(), c.reason.clone()))
    }

    fn pair(status: &str, reason: &str) -> Option<(String, String)> {
        Some((status.to_owned(), reason.to_owned()))
    }

    #[test]
    fn every_condition_is_there_after_the_first_visit() {
        let status = compute(None, &Facts::default(), Some(1), at(1));
        for type_ in [conditions::REGISTERED, conditions::TOKEN_READY, conditions::AGENTS_AVAILABLE] {
            assert_eq!(of(&status, type_), pair("Unknown", reason::CREATED), "{type_}");
        }
        assert_eq!(of(&status, conditions::READY), pair("False", reason::CREATED));
        assert!(of(&status, conditions::RECONCILING).is_some());
    }

    #[test]
    fn ready_says_what_is_missing_and_stalled_when_somebody_must_act() {
        let facts = Facts { registered: Some(Fact::no(reason::NAME_CONFLICT, "taken")), stalled: true, ..good() };
        let status = compute(None, &facts, Some(1), at(1));
        assert_eq!(of(&status, conditions::READY), pair("False", reason::NAME_CONFLICT));
        assert!(of(&status, conditions::STALLED).is_some() && of(&status, conditions::RECONCILING).is_none());
        let status = compute(Some(&status), &good(), Some(1), at(2));
        assert_eq!(of(&status, conditions::READY), pair("True", reason::IN_SYNC));
        assert!(of(&status, conditions::STALLED).is_none() && of(&status, conditions::RECONCILING).is_none());
    }

    #[test]
    fn what_was_not_found_out_stays_and_nothing_new_is_not_written() {
        let first = compute(None, &good(), Some(1), at(1));
        let second = compute(Some(&first), &Facts::default(), Some(1), at(9));
        assert_eq!(urgency(Some(&first), &second), Urgency::Never, "{second:?}");
    }

    #[test]
    fn numbers_of_runs_are_written_later_and_conditions_now() {
        let first = compute(None, &good(), Some(1), at(1));
        let busy = Facts { agents: Some(AgentsStatus { busy: 1, ..AgentsStatus::default() }), ..good() };
        assert_eq!(urgency(Some(&first), &compute(Some(&first), &busy, Some(1), at(2))), Urgency::Later);
        let linked = Facts { linked_workspaces: Some(1), ..good() };
        assert_eq!(urgency(Some(&first), &compute(Some(&first), &linked, Some(1), at(2))), Urgency::Settled);
        let both = Facts { linked_workspaces: Some(1), ..busy };
        assert_eq!(urgency(Some(&first), &compute(Some(&first), &both, Some(1), at(2))), Urgency::Later);
        let gone = Facts { agents_available: Some(Fact::no(reason::UNSCHEDULABLE, "no node")), ..good() };
        assert_eq!(urgency(Some(&first), &compute(Some(&first), &gone, Some(1), at(2))), Urgency::Now);
        assert_eq!(urgency(Some(&first), &compute(Some(&first), &good(), Some(2), at(2))), Urgency::Now);
    }
}
