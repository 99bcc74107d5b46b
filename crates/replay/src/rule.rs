//! How many may be replayed, and when a replay must stop. Pure.

use std::time::Duration;

/// The largest batch that needs no proof, and the default.
pub const PROOF_MAX: u32 = 10;
/// How old a proof may be.
pub const PROOF_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// Items released in each second unless told otherwise.
pub const PER_SECOND: f64 = 5.0;
/// So many deaths since the replay was begun, or gone on with, end it.
pub const DEATHS_MAX: u32 = 3;
/// How many of the last outcomes are looked at.
pub const WINDOW: usize = 50;
/// This share of deaths in a full window, in percent, ends it too: also when each of several attempts had fewer than three.
pub const WINDOW_DEATHS_PERCENT: usize = 10;

/// What the rows say of small batches with the same filter on this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Within the last day one was replayed and every item of it completed.
    Complete,
    /// There is one, but not every item of it completed.
    Incomplete {
        /// Items of the newest one that completed.
        completed: u32,
        /// All of its items.
        of: u32,
    },
    /// There is none.
    Absent,
}

/// A limit that may not be used yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitRefused {
    /// Zero selects nothing.
    #[error("a limit of 0 would replay nothing")]
    Zero,
    /// No small batch came first.
    #[error(
        "a limit of {limit} needs a proof: a batch of 1 to {PROOF_MAX} with the same filter, replayed within the last 24 hours \
         by this version, of which every item completed; there is none"
    )]
    Unproved {
        /// The limit asked for.
        limit: u32,
    },
    /// The small batch did not end well, or has not ended yet.
    #[error(
        "a limit of {limit} needs a batch of 1 to {PROOF_MAX} with the same filter of which every item completed; of the \
         newest one {completed} of {of} have"
    )]
    NotAllCompleted {
        /// The limit asked for.
        limit: u32,
        /// Items that completed.
        completed: u32,
        /// All items.
        of: u32,
    },
}

/// Decides whether `limit` items may be replayed at once.
///
/// # Errors
/// Says which proof is missing.
pub const fn judge_limit(limit: u32, proof: Proof) -> Result<(), LimitRefused> {
    match (limit, proof) {
        (0, _) => Err(LimitRefused::Zero),
        (1..=PROOF_MAX, _) | (_, Proof::Complete) => Ok(()),
        (_, Proof::Absent) => Err(LimitRefused::Unproved { limit }),
        (_, Proof::Incomplete { completed, of }) => {
            Err(LimitRefused::NotAllCompleted { limit, completed, of })
        }
    }
}

/// Decides whether a replay must stop. `died` tells of the settled items, oldest first, whether each died;
/// `forgiven` deaths happened before a person chose to go on. Answers the reason.
#[must_use]
pub fn judge_deaths(died: &[bool], forgiven: u32) -> Option<String> {
    let deaths = died.iter().filter(|died| **died).count();
    let fresh = deaths.saturating_sub(forgiven as usize);
    if fresh >= DEATHS_MAX as usize {
        return Some(format!("{fresh} replayed items died again"));
    }
    let window = died.len().checked_sub(WINDOW).map(|from| &died[from..])?;
    let deaths = window.iter().filter(|died| **died).count();
    // A death that a person has accepted must not stop the next attempt by itself: at least one is new.
    (fresh > 0 && deaths * 100 >= WINDOW * WINDOW_DEATHS_PERCENT)
        .then(|| format!("{deaths} of the last {WINDOW} replayed items died again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_need_no_proof_and_eleven_do() {
        assert_eq!(judge_limit(0, Proof::Complete), Err(LimitRefused::Zero));
        assert_eq!(judge_limit(1, Proof::Absent), Ok(()));
        assert_eq!(judge_limit(10, Proof::Absent), Ok(()));
        assert_eq!(judge_limit(11, Proof::Absent), Err(LimitRefused::Unproved { limit: 11 }));
        let half = Proof::Incomplete { completed: 2, of: 3 };
        assert_eq!(judge_limit(10, half), Ok(()));
        assert_eq!(
            judge_limit(11, half),
            Err(LimitRefused::NotAllCompleted { limit: 11, completed: 2, of: 3 })
        );
        assert_eq!(judge_limit(100_000, Proof::Complete), Ok(()));
    }

    fn outcomes(n: usize, dead: &[usize]) -> Vec<bool> {
        (0..n).map(|at| dead.contains(&at)).collect()
    }

    #[test]
    fn three_deaths_stop() {
        assert_eq!(judge_deaths(&[], 0), None);
        assert_eq!(judge_deaths(&outcomes(9, &[0, 8]), 0), None);
        assert!(judge_deaths(&outcomes(9, &[0, 4, 8]), 0).is_some());
        assert!(judge_deaths(&outcomes(900, &[0, 400, 800]), 0).is_some());
    }

    #[test]
    fn after_going_on_the_last_fifty_count_as_well() {
        // Three were accepted; two more within the window make five of fifty.
        assert_eq!(judge_deaths(&outcomes(50, &[1, 2, 3]), 3), None);
        assert_eq!(judge_deaths(&outcomes(50, &[1, 2, 3, 49]), 3), None);
        let stop = judge_deaths(&outcomes(50, &[1, 2, 3, 48, 49]), 3).unwrap();
        assert!(stop.contains("5 of the last 50"), "{stop}");
        assert_eq!(
            judge_deaths(&outcomes(60, &[1, 2, 3, 58, 59]), 3),
            None,
            "the first three left the window"
        );
        assert_eq!(judge_deaths(&outcomes(50, &[1, 2, 3, 48, 49]), 5), None, "all five were accepted");
        assert!(judge_deaths(&outcomes(49, &[1, 2, 3, 47, 48]), 3).is_none(), "the window is not full");
    }
}
