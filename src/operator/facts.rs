//! From what a pass found out to the conditions of an object, and to the event that somebody should see. Pure; what
//! both kinds have in common.

use std::borrow::Cow;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};

use super::events::News;
use crate::crd::conditions::{self, Observation};

/// What is known about one condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fact {
    /// `None`: not known.
    pub(super) holds: Option<bool>,
    /// One of [`conditions::reason`].
    pub(super) reason: Cow<'static, str>,
    pub(super) message: String,
}

impl Fact {
    pub(super) fn yes(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: Some(true), reason: reason.into(), message: message.into() }
    }

    pub(super) fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: Some(false), reason: reason.into(), message: message.into() }
    }

    pub(super) fn unknown(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: None, reason: reason.into(), message: message.into() }
    }

    /// The same reason and words about another condition.
    pub(super) fn that(self, holds: bool) -> Self {
        Self { holds: Some(holds), ..self }
    }
}

impl From<&Condition> for Fact {
    fn from(condition: &Condition) -> Self {
        Self {
            holds: condition.status.to_lowercase().parse().ok(),
            reason: condition.reason.clone().into(),
            message: condition.message.clone(),
        }
    }
}

/// The conditions of an object while they are brought up to date.
pub(super) struct Board<'a> {
    pub(super) conditions: &'a mut Vec<Condition>,
    /// Generation of the spec that the facts were found under.
    pub(super) generation: Option<i64>,
    pub(super) now: Timestamp,
}

impl Board<'_> {
    pub(super) fn put(&mut self, type_: &str, fact: Fact) {
        let Fact { holds, reason, message } = fact;
        let observation = Observation { type_, holds, reason: &reason, message, generation: self.generation };
        conditions::set(self.conditions, observation, self.now);
    }

    /// Of a condition that is always there: what nothing new is known of stays, or is said not to be known.
    pub(super) fn put_or_keep(&mut self, type_: &str, fact: Option<Fact>) {
        let unknown = || {
            let known = conditions::get(self.conditions, type_).is_some();
            (!known).then(|| Fact::unknown(conditions::reason::CREATED, "not looked at yet"))
        };
        if let Some(fact) = fact.or_else(unknown) {
            self.put(type_, fact);
        }
    }

    /// Of a condition that is only there while it holds.
    pub(super) fn put_or_remove(&mut self, type_: &str, fact: Option<Fact>) {
        match fact {
            Some(fact) => self.put(type_, fact),
            None => conditions::remove(self.conditions, type_),
        }
    }

    /// Ready, and what is the matter while it does not hold: `stalled`, nothing goes on until somebody acts.
    pub(super) fn summarise(&mut self, ready: Fact, stalled: bool) {
        let waits = (ready.holds != Some(true)).then(|| ready.clone().that(true));
        self.put_or_remove(conditions::STALLED, waits.clone().filter(|_| stalled));
        self.put_or_remove(conditions::RECONCILING, waits.filter(|_| !stalled));
        self.put(conditions::READY, ready);
        self.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    }
}

/// What somebody should look at, when it is new.
pub(super) fn worse(old: &[Condition], new: &[Condition]) -> Option<News> {
    let failing = |conditions| conditions::get(conditions, conditions::READY).filter(|ready| ready.status == "False");
    let ready = failing(new)?;
    let known = failing(old).is_some_and(|old| old.reason == ready.reason);
    let reason = conditions::WARNINGS.iter().find(|reason| **reason == ready.reason)?;
    (!known).then(|| News { warning: true, reason, note: ready.message.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::conditions::reason;

    fn after(old: &[Condition], ready: Fact, stalled: bool) -> Vec<Condition> {
        let mut conditions = old.to_vec();
        let now = Timestamp::from_second(1).unwrap();
        Board { conditions: &mut conditions, generation: Some(1), now }.summarise(ready, stalled);
        conditions
    }

    #[test]
    fn what_waits_is_either_stalled_or_reconciling_and_what_is_ready_is_neither() {
        let types = |conditions: &[Condition]| conditions.iter().map(|c| c.type_.clone()).collect::<Vec<_>>();
        let no = || Fact::no(reason::NAME_CONFLICT, "taken");
        let stalled = after(&[], no(), true);
        assert_eq!(types(&stalled), [conditions::READY, conditions::STALLED]);
        let reconciling = after(&stalled, no(), false);
        assert_eq!(types(&reconciling), [conditions::READY, conditions::RECONCILING]);
        assert_eq!(types(&after(&reconciling, Fact::yes(reason::IN_SYNC, ""), true)), [conditions::READY]);
    }

    #[test]
    fn a_fact_can_be_read_back_from_its_condition() {
        for fact in
            [Fact::yes(reason::IN_SYNC, "a"), Fact::no(reason::REFUSED, "b"), Fact::unknown(reason::CREATED, "c")]
        {
            let conditions = after(&[], fact.clone(), false);
            assert_eq!(Fact::from(conditions::get(&conditions, conditions::READY).unwrap()), fact);
        }
    }

    #[test]
    fn only_what_is_new_and_needs_somebody_is_told() {
        let warns = |old: &[Condition], reason| worse(old, &after(old, Fact::no(reason, "m"), true)).is_some();
        assert!(warns(&[], reason::NAME_CONFLICT));
        assert!(!warns(&[], reason::AGENTS_STARTING), "it passes by itself");
        let conflict = after(&[], Fact::no(reason::NAME_CONFLICT, "m"), true);
        assert!(!warns(&conflict, reason::NAME_CONFLICT), "it was told");
        assert!(warns(&conflict, reason::SCOPE_DENIED));
        assert!(worse(&conflict, &after(&conflict, Fact::yes(reason::IN_SYNC, ""), false)).is_none());
    }
}
