//! How many containers are to wait. Pure.

/// What the agent leaves to containers that wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Jobs at a time; 0: no container is to wait any more.
    pub slots: usize,
    /// Jobs that the agent has now, whether their containers are there already or not.
    pub claimed: usize,
}

/// A container that waits, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Idle {
    pub(super) lives: bool,
    /// A job like the last one could have it.
    pub(super) fits: bool,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Positions of those that go.
    pub(super) remove: Vec<usize>,
    /// One more is to be made.
    pub(super) create: bool,
}

/// Never more than `wanted`, and never more than slots together with the `busy` ones, which have a job. A claimed job
/// may be about to take one, so for its sake none goes, and none is made.
pub(super) fn decide(wanted: usize, room: Room, busy: usize, idle: &[Idle]) -> Plan {
    let most = |used: usize| wanted.min(room.slots.saturating_sub(used));
    let mut kept = 0;
    let mut remove = Vec::new();
    for (position, Idle { lives, fits }) in idle.iter().enumerate() {
        if *lives && *fits && kept < most(busy) {
            kept += 1;
        } else {
            remove.push(position);
        }
    }
    Plan { remove, create: kept < most(busy.max(room.claimed)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Idle = Idle { lives: true, fits: true };
    const DEAD: Idle = Idle { lives: false, fits: true };
    const OTHER: Idle = Idle { lives: true, fits: false };

    #[test]
    fn waiting_and_running_ones_are_never_more_than_slots() {
        for wanted in 0..4 {
            for slots in 0..5 {
                for busy in 0..5 {
                    for claimed in busy..5 {
                        for count in 0..5 {
                            let idle = vec![GOOD; count];
                            let plan = decide(wanted, Room { slots, claimed }, busy, &idle);
                            let waiting = count - plan.remove.len() + usize::from(plan.create);
                            let seen = format!("{wanted} {slots} {busy} {claimed} {count}: {plan:?}");
                            assert!(waiting <= wanted, "{seen}");
                            assert!(waiting == 0 || waiting + busy <= slots, "{seen}");
                            assert!(!plan.create || waiting + claimed <= slots, "{seen}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_dead_or_of_no_use_goes_and_is_replaced() {
        let room = Room { slots: 5, claimed: 0 };
        let plan = |remove: &[usize], create| Plan { remove: remove.to_vec(), create };
        assert_eq!(decide(2, room, 0, &[]), plan(&[], true));
        assert_eq!(decide(2, room, 0, &[GOOD]), plan(&[], true));
        assert_eq!(decide(2, room, 0, &[GOOD, GOOD]), plan(&[], false));
        assert_eq!(decide(2, room, 0, &[DEAD, GOOD, OTHER]), plan(&[0, 2], true));
        assert_eq!(decide(1, room, 0, &[GOOD, GOOD]), plan(&[1], false));
        assert_eq!(decide(2, Room::default(), 0, &[GOOD, GOOD]), plan(&[0, 1], false));
    }

    #[test]
    fn a_claimed_job_finds_the_one_that_waited_for_it() {
        // One slot, and the job has it; its container is the one that waits.
        let room = Room { slots: 1, claimed: 1 };
        assert_eq!(decide(1, room, 0, &[GOOD]), Plan::default());
        // It took it: no other is made before its end.
        assert_eq!(decide(1, room, 1, &[]), Plan::default());
        // It started in one of its own.
        assert_eq!(decide(1, room, 1, &[GOOD]), Plan { remove: vec![0], create: false });
    }
}
