//! Which packages a run is given, and which of its own are kept. Pure.

use std::collections::BTreeSet;

use super::package::H1;

/// The package of the store that a run gets whose lock file names these hashes: one that it names, or none. Without a
/// lock file engines take nothing from a cache either.
pub(super) fn given(locked: &BTreeSet<H1>, stored: &BTreeSet<H1>) -> Option<H1> {
    locked.intersection(stored).next().copied()
}

/// A package that a run has fetched is of use to later ones: the store has none of its provider and version, or none
/// that the run's lock file names. What somebody else put there does not keep the right one out.
pub(super) fn is_news(locked: &BTreeSet<H1>, stored: &BTreeSet<H1>) -> bool {
    if locked.is_empty() { stored.is_empty() } else { locked.is_disjoint(stored) }
}

/// It is what the run's lock file names, or that names none.
pub(super) fn is_as_locked(locked: &BTreeSet<H1>, found: H1) -> bool {
    locked.is_empty() || locked.contains(&found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(hashes: &[u8]) -> BTreeSet<H1> {
        hashes.iter().map(|byte| h1(*byte)).collect()
    }

    fn h1(byte: u8) -> H1 {
        H1::of_file_name(&format!("{byte:02x}").repeat(32)).unwrap()
    }

    #[test]
    fn a_run_is_given_what_it_locked_and_nothing_else() {
        assert_eq!(given(&set(&[]), &set(&[1, 2])), None);
        assert_eq!(given(&set(&[1]), &set(&[])), None);
        assert_eq!(given(&set(&[3]), &set(&[1, 2])), None);
        assert_eq!(given(&set(&[2, 3]), &set(&[1, 2])), Some(h1(2)));
    }

    #[test]
    fn what_is_there_is_not_kept_twice_and_a_wrong_one_keeps_no_right_one_out() {
        assert!(is_news(&set(&[]), &set(&[])));
        assert!(!is_news(&set(&[]), &set(&[1])));
        assert!(is_news(&set(&[1]), &set(&[])));
        assert!(!is_news(&set(&[1, 2]), &set(&[2])));
        assert!(is_news(&set(&[1]), &set(&[9])));
        assert!(
            is_as_locked(&set(&[]), h1(1)) && is_as_locked(&set(&[1, 2]), h1(2)) && !is_as_locked(&set(&[1]), h1(2))
        );
    }
}
