//! From what a pass found out to the AgentPool's status. Pure; what a pass could not find out stays as it was.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};

use crate::crd::{
    AgentPoolStatus,
    agent_pool::{AgentsStatus, QueueStatus, TokenStatus},
    conditions::{self, Observation, reason},
};

/// What is known about one condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::operator) struct Fact {
    /// `None`: not known.
    pub(in crate::operator) holds: Option<bool>,
    pub(in crate::operator) reason: &'static str,
    pub(in crate::operator) message: String,
}

impl Fact {
    pub(in crate::operator) fn yes(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: Some(true), reason, message: message.into() }
    }

    pub(in crate::operator) fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: Some(false), reason, message: message.into() }
    }

    pub(in crate::operator) fn unknown(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: None, reason, message: message.into() }
    }
}

/// What a pass found out. `None`: nothing new; the last status' word stands.
#[derive(Debug, Clone, Default)]
pub(in crate::operator) struct Facts {
    pub(in crate::operator) registered: Option<Fact>,
    pub(in crate::operator) token_ready: Option<Fact>,
    pub(in crate::operator) agents_available: Option<Fact>,
    /// Why there are fewer agents than wanted; the inner `None`: there are as many.
    pub(in crate::operator) limited: Option<Option<Fact>>,
    /// Why it cannot be deleted yet.
    pub(in crate::operator) deletion_blocked: Option<Fact>,
    /// Runs are root.
    pub(in crate::operator) privileged: bool,
    /// Agents finish their runs and take no new ones.
    pub(in crate::operator) draining: Option<Fact>,
    /// Nothing goes on until somebody changes something.
    pub(in crate::operator) stalled: bool,
    /// Overrides the summary: paused, deleting.
    pub(in crate::operator) not_ready: Option<Fact>,
    pub(in crate::operator) pool_id: Option<String>,
    pub(in crate::operator) agents: Option<AgentsStatus>,
    pub(in crate::operator) queue: Option<QueueStatus>,
    pub(in crate::operator) token: Option<TokenStatus>,
    pub(in crate::operator) linked_workspaces: Option<i64>,
    pub(in crate::operator) replicas: Option<i32>,
    pub(in crate::operator) selector: Option<String>,
}

/// The new status, from the old one and what was found out.
pub(in crate::operator) fn compute(
    old: Option<&AgentPoolStatus>,
    facts: &Facts,
    generation: Option<i64>,
    now: Timestamp,
) -> AgentPoolStatus {
    let old = old.cloned().unwrap_or_default();
    let mut conditions = old.conditions;
    let mut put = |type_: &'static str, fact: Fact| {
        let Fact { holds, reason, message } = fact;
        conditions::set(&mut conditions, Observation { type_, holds, reason, message, generation }, now);
    };
    let positive = [
        (conditions::REGISTERED, &facts.registered),
        (conditions::TOKEN_READY, &facts.token_ready),
        (conditions::AGENTS_AVAILABLE, &facts.agents_available),
    ];
    for (type_, fact) in positive {
        if let Some(fact) = fact {
            put(type_, fact.clone());
        }
    }
    match &facts.limited {
        Some(Some(fact)) => put(conditions::SCALING_LIMITED, fact.clone()),
        Some(None) => put(conditions::SCALING_LIMITED, Fact::no(reason::IN_SYNC, "as many agents as are wanted")),
        None => {}
    }
    for (type_, _) in positive.into_iter().chain([(conditions::SCALING_LIMITED, &None)]) {
        if conditions::get(&conditions, type_).is_none() {
            let fact = Fact::unknown(reason::CREATED, "not looked at yet");
            let Fact { holds, reason, message } = fact;
            conditions::set(&mut conditions, Observation { type_, holds, reason, message, generation }, now);
        }
    }
    let privileged = facts.privileged.then(|| {
        Fact::yes(reason::ROOT_ACKNOWLEDGED, "runs of this pool are root in their containers (runs.user: Root)")
    });
    for (type_, fact) in [
        (conditions::DELETION_BLOCKED, facts.deletion_blocked.clone()),
        (conditions::PRIVILEGED_MODE, privileged),
        (conditions::DRAINING, facts.draining.clone()),
    ] {
        set_or_remove(&mut conditions, type_, fact, generation, now);
    }
    summarise(&mut conditions, facts, generation, now);
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
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

/// Ready says what the first of the others that does not hold says.
fn summarise(conditions: &mut Vec<Condition>, facts: &Facts, generation: Option<i64>, now: Timestamp) {
    let parts = [conditions::REGISTERED, conditions::TOKEN_READY, conditions::AGENTS_AVAILABLE];
    let failing = parts.iter().find_map(|type_| conditions::get(conditions, type_).filter(|c| c.status != "True"));
    let (holds, reason, message) = match (&facts.not_ready, failing) {
        (Some(fact), _) => (fact.holds, fact.reason.to_owned(), fact.message.clone()),
        (None, Some(part)) => (Some(false), part.reason.clone(), part.message.clone()),
        (None, None) => (Some(true), reason::IN_SYNC.to_owned(), "the pool is in line with this object".to_owned()),
    };
    let ready = Observation { type_: conditions::READY, holds, reason: &reason, message: message.clone(), generation };
    conditions::set(conditions, ready, now);
    let waits = holds != Some(true);
    for (type_, there) in
        [(conditions::STALLED, waits && facts.stalled), (conditions::RECONCILING, waits && !facts.stalled)]
    {
        let observation =
            Observation { type_, holds: Some(true), reason: &reason, message: message.clone(), generation };
        if there {
            conditions::set(conditions, observation, now);
        } else {
            conditions::remove(conditions, type_);
        }
    }
}

/// A condition that is only there while it holds.
pub(in crate::operator) fn set_or_remove(
    conditions: &mut Vec<Condition>,
    type_: &str,
    fact: Option<Fact>,
    generation: Option<i64>,
    now: Timestamp,
) {
    match fact {
        Some(Fact { holds, reason, message }) => {
            conditions::set(conditions, Observation { type_, holds, reason, message, generation }, now);
        }
        None => conditions::remove(conditions, type_),
    }
}

/// How soon a changed status is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::operator) enum Urgency {
    /// Nothing changed.
    Never,
    /// Only numbers that change with every run: at a coarse interval.
    Later,
    Now,
}

pub(in crate::operator) fn urgency(old: Option<&AgentPoolStatus>, new: &AgentPoolStatus) -> Urgency {
    let Some(old) = old else { return Urgency::Now };
    if old == new {
        return Urgency::Never;
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
        let gone = Facts { agents_available: Some(Fact::no(reason::UNSCHEDULABLE, "no node")), ..good() };
        assert_eq!(urgency(Some(&first), &compute(Some(&first), &gone, Some(1), at(2))), Urgency::Now);
        assert_eq!(urgency(Some(&first), &compute(Some(&first), &good(), Some(2), at(2))), Urgency::Now);
    }
}
