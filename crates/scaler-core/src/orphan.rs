//! Servers at a provider that bear our labels, and what may be done about those that no row stands for.
//!
//! A list says only what is there: nothing here ever follows from what a list lacks, so an empty or partial one changes
//! nothing.

use jiff::SignedDuration;
use serde::Serialize;

/// How the server that an operation made came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was drained, and the provider said that it was deleted.
    Deleted,
    /// It never took calls: its making failed, and was cleaned up.
    NeverServed,
    /// It vanished at the provider: nobody ever knew that its calls had ended.
    Vanished,
}

/// What the rows know of the operation in a listed server's label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Maker {
    /// Nothing.
    Unknown,
    /// Its server is not gone.
    Lives {
        /// The provider's id of that server, once known.
        provider_id: Option<String>,
    },
    /// Its server is gone.
    Ended {
        /// How.
        how: End,
        /// For how long.
        since: SignedDuration,
    },
}

/// One sighting of one listed server.
#[derive(Debug, Clone)]
pub struct Sighting<'a> {
    /// The provider's id.
    pub provider_id: &'a str,
    /// What the rows know of its operation.
    pub maker: Maker,
    /// Calls it says it carries; `None` when it says nothing.
    pub calls: Option<u64>,
    /// Sweeps in a row that have seen it, this one included.
    pub sightings: u32,
    /// How long a script that was begun before its server's end may still be at work.
    pub grace: SignedDuration,
}

/// What is to be done about a listed server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// A row stands for it: no orphan.
    Ours,
    /// An orphan that may be deleted.
    Delete,
    /// An orphan that may be deleted if it is still there later.
    Wait,
    /// No operation of ours is known to have made it: a person has to look.
    UnknownOperation,
    /// Another server stands for its operation.
    Duplicate,
    /// Nobody ever knew that its calls had ended.
    MayCarryCalls,
    /// It says that it carries calls.
    CarriesCalls,
}

impl Verdict {
    /// The stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Delete => "delete",
            Self::Wait => "wait",
            Self::UnknownOperation => "unknown_operation",
            Self::Duplicate => "duplicate",
            Self::MayCarryCalls => "may_carry_calls",
            Self::CarriesCalls => "carries_calls",
        }
    }

    /// In one line, for a person.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Ours => "a row stands for it",
            Self::Delete => "its server was deleted by our rows, yet it is there; it is deleted again",
            Self::Wait => "its server was deleted by our rows, yet it is there; it is looked at again",
            Self::UnknownOperation => "no operation of ours is known to have made it; look whose it is",
            Self::Duplicate => "another server stands for its operation; look which of the two is in use",
            Self::MayCarryCalls => {
                "it had vanished and is there again, and its calls are unknown; look at it"
            }
            Self::CarriesCalls => "its server was deleted by our rows, yet it carries calls; look at it",
        }
    }

    /// True when a person has to look.
    #[must_use]
    pub const fn is_for_a_person(self) -> bool {
        !matches!(self, Self::Ours | Self::Delete | Self::Wait)
    }
}

/// Judges one listed server that bears our labels.
#[must_use]
pub fn judge(sighting: &Sighting<'_>) -> Verdict {
    match &sighting.maker {
        Maker::Unknown => Verdict::UnknownOperation,
        Maker::Lives { provider_id } => match provider_id {
            Some(id) if id != sighting.provider_id => Verdict::Duplicate,
            _ => Verdict::Ours,
        },
        Maker::Ended { how: End::Vanished, .. } => Verdict::MayCarryCalls,
        Maker::Ended { .. } if sighting.calls.is_some_and(|calls| calls > 0) => Verdict::CarriesCalls,
        Maker::Ended { since, .. } if *since < sighting.grace || sighting.sightings < 2 => Verdict::Wait,
        Maker::Ended { .. } => Verdict::Delete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_deleted_by_our_rows_and_is_seen_again_and_again_is_deleted() {
        let secs = SignedDuration::from_secs;
        let ended = |how, since| Maker::Ended { how, since: secs(since) };
        let lives = |id: Option<&str>| Maker::Lives { provider_id: id.map(str::to_owned) };
        for (maker, calls, sightings, verdict) in [
            (Maker::Unknown, None, 9, Verdict::UnknownOperation),
            (Maker::Unknown, Some(0), 9, Verdict::UnknownOperation),
            (lives(None), None, 9, Verdict::Ours),
            (lives(Some("7")), Some(3), 9, Verdict::Ours),
            (lives(Some("8")), None, 9, Verdict::Duplicate),
            (ended(End::Deleted, 301), None, 1, Verdict::Wait),
            (ended(End::Deleted, 301), None, 2, Verdict::Delete),
            (ended(End::Deleted, 299), None, 9, Verdict::Wait),
            (ended(End::NeverServed, 301), Some(0), 2, Verdict::Delete),
            (ended(End::NeverServed, 301), Some(1), 2, Verdict::CarriesCalls),
            (ended(End::Deleted, 301), Some(1), 9, Verdict::CarriesCalls),
            (ended(End::Vanished, 9_999), None, 9, Verdict::MayCarryCalls),
            (ended(End::Vanished, 9_999), Some(0), 9, Verdict::MayCarryCalls),
        ] {
            let sighting =
                Sighting { provider_id: "7", maker: maker.clone(), calls, sightings, grace: secs(300) };
            assert_eq!(judge(&sighting), verdict, "{maker:?} {calls:?} {sightings}");
        }
    }
}
