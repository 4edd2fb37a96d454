//! The run state machine. Pure: the rules of a run's life are this file's table, whoever asks.

use serde::{Deserialize, Serialize};

/// Status of a run, in the words of the TFE API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Waits for its workspace: for an older run, a lock, a pool, or its configuration.
    Pending,
    PlanQueued,
    Planning,
    /// Waits for somebody to confirm or discard it.
    Planned,
    /// Nothing to apply, or only a plan was wanted.
    PlannedAndFinished,
    /// A saved plan (`plan -out`); confirmable later, does not hold its workspace.
    PlannedAndSaved,
    ApplyQueued,
    Applying,
    Applied,
    Discarded,
    Errored,
    Canceled,
    ForceCanceled,
}

/// What can happen to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunEvent {
    /// The workspace is free for it: the plan joins the queue.
    PlanQueued,
    PlanStarted,
    /// The plan's agent was lost: planned again.
    PlanRequeued,
    PlanFinished(PlanEnd),
    /// By a person, or by the saved plan's `apply`.
    Confirmed,
    ApplyStarted,
    ApplyFinished,
    StageErrored,
    /// The agent reports that the engine stopped after a cancellation.
    StageCanceled,
    Discarded,
    /// Asked to stop. A stage that runs ends by [`RunEvent::StageCanceled`].
    CancelRequested,
    /// Stop without waiting for the agent.
    ForceCanceled,
}

/// What follows from a finished plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PlanEnd {
    /// Plan-only, or no changes.
    Final,
    Saved,
    NeedsConfirmation,
    AutoApply,
}

/// An event that has no meaning in a state: the caller answers 409.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a run that is {} cannot take {event:?}", state.as_str())]
pub struct Illegal {
    pub state: RunState,
    pub event: RunEvent,
}

/// The state after `event`.
///
/// # Errors
/// [`Illegal`] when the event has no meaning in `state`.
pub fn next(state: RunState, event: RunEvent) -> Result<RunState, Illegal> {
    use RunEvent as E;
    use RunState as S;
    Ok(match (state, event) {
        (S::Pending, E::PlanQueued) | (S::Planning, E::PlanRequeued) => S::PlanQueued,
        (S::PlanQueued, E::PlanStarted) => S::Planning,
        (S::Planning, E::PlanFinished(end)) => match end {
            PlanEnd::Final => S::PlannedAndFinished,
            PlanEnd::Saved => S::PlannedAndSaved,
            PlanEnd::NeedsConfirmation => S::Planned,
            PlanEnd::AutoApply => S::ApplyQueued,
        },
        (S::Planned | S::PlannedAndSaved, E::Confirmed) => S::ApplyQueued,
        (S::ApplyQueued, E::ApplyStarted) => S::Applying,
        (S::Applying, E::ApplyFinished) => S::Applied,
        (S::Pending | S::PlanQueued | S::Planning | S::ApplyQueued | S::Applying, E::StageErrored) => S::Errored,
        (S::Planning | S::Applying, E::StageCanceled) => S::Canceled,
        (S::Pending | S::Planned | S::PlannedAndSaved, E::Discarded) => S::Discarded,
        (S::Pending | S::PlanQueued | S::ApplyQueued, E::CancelRequested) => S::Canceled,
        (S::Planning | S::Applying, E::CancelRequested) => state,
        (S::Planning | S::Applying, E::ForceCanceled) => S::ForceCanceled,
        _ => return Err(Illegal { state, event }),
    })
}

impl RunState {
    pub const ALL: [Self; 13] = [
        Self::Pending,
        Self::PlanQueued,
        Self::Planning,
        Self::Planned,
        Self::PlannedAndFinished,
        Self::PlannedAndSaved,
        Self::ApplyQueued,
        Self::Applying,
        Self::Applied,
        Self::Discarded,
        Self::Errored,
        Self::Canceled,
        Self::ForceCanceled,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::PlanQueued => "plan_queued",
            Self::Planning => "planning",
            Self::Planned => "planned",
            Self::PlannedAndFinished => "planned_and_finished",
            Self::PlannedAndSaved => "planned_and_saved",
            Self::ApplyQueued => "apply_queued",
            Self::Applying => "applying",
            Self::Applied => "applied",
            Self::Discarded => "discarded",
            Self::Errored => "errored",
            Self::Canceled => "canceled",
            Self::ForceCanceled => "force_canceled",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Nothing can happen to the run any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::PlannedAndFinished
                | Self::Applied
                | Self::Discarded
                | Self::Errored
                | Self::Canceled
                | Self::ForceCanceled
        )
    }

    /// The run keeps its workspace from other runs that may apply. A saved plan does not.
    #[must_use]
    pub fn holds_workspace(self) -> bool {
        !self.is_final() && !matches!(self, Self::Pending | Self::PlannedAndSaved)
    }

    #[must_use]
    pub fn is_cancelable(self) -> bool {
        next(self, RunEvent::CancelRequested).is_ok()
    }

    #[must_use]
    pub fn is_confirmable(self) -> bool {
        next(self, RunEvent::Confirmed).is_ok()
    }

    #[must_use]
    pub fn is_discardable(self) -> bool {
        next(self, RunEvent::Discarded).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{RunEvent as E, RunState as S, *};

    const EVENTS: [RunEvent; 15] = [
        E::PlanQueued,
        E::PlanStarted,
        E::PlanRequeued,
        E::PlanFinished(PlanEnd::Final),
        E::PlanFinished(PlanEnd::Saved),
        E::PlanFinished(PlanEnd::NeedsConfirmation),
        E::PlanFinished(PlanEnd::AutoApply),
        E::Confirmed,
        E::ApplyStarted,
        E::ApplyFinished,
        E::StageErrored,
        E::StageCanceled,
        E::Discarded,
        E::CancelRequested,
        E::ForceCanceled,
    ];

    /// Every legal step there is; what is not in this table is illegal.
    const LEGAL: &[(RunState, RunEvent, RunState)] = &[
        (S::Pending, E::PlanQueued, S::PlanQueued),
        (S::Pending, E::StageErrored, S::Errored),
        (S::Pending, E::Discarded, S::Discarded),
        (S::Pending, E::CancelRequested, S::Canceled),
        (S::PlanQueued, E::PlanStarted, S::Planning),
        (S::PlanQueued, E::StageErrored, S::Errored),
        (S::PlanQueued, E::CancelRequested, S::Canceled),
        (S::Planning, E::PlanRequeued, S::PlanQueued),
        (S::Planning, E::PlanFinished(PlanEnd::Final), S::PlannedAndFinished),
        (S::Planning, E::PlanFinished(PlanEnd::Saved), S::PlannedAndSaved),
        (S::Planning, E::PlanFinished(PlanEnd::NeedsConfirmation), S::Planned),
        (S::Planning, E::PlanFinished(PlanEnd::AutoApply), S::ApplyQueued),
        (S::Planning, E::StageErrored, S::Errored),
        (S::Planning, E::StageCanceled, S::Canceled),
        (S::Planning, E::CancelRequested, S::Planning),
        (S::Planning, E::ForceCanceled, S::ForceCanceled),
        (S::Planned, E::Confirmed, S::ApplyQueued),
        (S::Planned, E::Discarded, S::Discarded),
        (S::PlannedAndSaved, E::Confirmed, S::ApplyQueued),
        (S::PlannedAndSaved, E::Discarded, S::Discarded),
        (S::ApplyQueued, E::ApplyStarted, S::Applying),
        (S::ApplyQueued, E::StageErrored, S::Errored),
        (S::ApplyQueued, E::CancelRequested, S::Canceled),
        (S::Applying, E::ApplyFinished, S::Applied),
        (S::Applying, E::StageErrored, S::Errored),
        (S::Applying, E::StageCanceled, S::Canceled),
        (S::Applying, E::CancelRequested, S::Applying),
        (S::Applying, E::ForceCanceled, S::ForceCanceled),
    ];

    #[test]
    fn every_state_and_event_follows_the_table() {
        for state in S::ALL {
            for event in EVENTS {
                let wanted = LEGAL.iter().find(|(from, e, _)| *from == state && *e == event).map(|(_, _, to)| *to);
                assert_eq!(next(state, event).ok(), wanted, "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn final_states_have_no_way_out_and_all_others_can_end() {
        for state in S::ALL {
            let steps: Vec<_> = EVENTS.into_iter().filter_map(|event| next(state, event).ok()).collect();
            assert_eq!(steps.is_empty(), state.is_final(), "{state:?}");
        }
    }

    #[test]
    fn an_apply_never_goes_back_to_the_queue() {
        assert!(EVENTS.into_iter().all(|event| next(S::Applying, event) != Ok(S::ApplyQueued)));
    }

    #[test]
    fn names_parse_back() {
        for state in S::ALL {
            assert_eq!(S::parse(state.as_str()), Some(state));
        }
        assert_eq!(S::parse("confirmed"), None);
    }
}
