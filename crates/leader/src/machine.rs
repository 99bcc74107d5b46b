//! The election as a pure machine: which state follows which, and what has to be done on the way.

/// What this process is in the election.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Another leads, or nobody can.
    Follower,
    /// Holds the lease, has no term yet, and does not act.
    Candidate,
    /// Holds the lease and the newest term.
    Leader,
    /// Still the holder as far as is known, but the last renewal's outcome is unknown: no new effects until the next
    /// one decides.
    Suspended,
    /// Takes no more part.
    Resigned,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The lease was free, or still ours from an attempt whose answer was lost.
    Taken,
    /// The lease cannot be had now.
    NotTaken,
    /// The term was issued and written into the lease.
    Installed,
    /// No term could be issued or written.
    NoTerm,
    /// The lease was ours and is longer now.
    Renewed,
    /// A renewal failed without saying whose the lease is.
    Unsure,
    /// The lease is not ours any more.
    Displaced,
    /// The time for which the lease may be trusted is over.
    Expired,
    /// PostgreSQL has issued another term since, or has forgotten ours.
    Superseded,
    /// This process is to take no more part.
    Stop,
}

/// What has to be done because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Nothing,
    /// Ask for a term.
    SeekTerm,
    /// Tell everybody of the new tenure.
    Lead,
    /// Let the tenure be trusted for longer.
    Extend,
    /// Stop new effects, keep the tenure.
    Suspend,
    /// As `Extend`, after `Suspend`.
    Resume,
    /// Give the lease back; there is no tenure.
    Withdraw,
    /// End the tenure. The lease is not ours, or runs out by itself.
    Lose,
    /// End the tenure, then give the lease back.
    Resign,
}

/// The next state and what to do. A pair that cannot happen changes nothing.
pub(crate) const fn next(role: Role, event: Event) -> (Role, Act) {
    use Event as E;
    use Role::{Candidate, Follower, Leader, Resigned, Suspended};
    match (role, event) {
        (Follower, E::Taken) => (Candidate, Act::SeekTerm),
        // An attempt whose answer was lost may have taken the lease, so even a follower gives back on leaving.
        (Follower | Candidate, E::Stop) => (Resigned, Act::Withdraw),

        (Candidate, E::Installed) => (Leader, Act::Lead),
        (Candidate, E::NoTerm | E::Unsure | E::Displaced | E::Expired | E::Superseded) => {
            (Follower, Act::Withdraw)
        }

        (Leader, E::Renewed) => (Leader, Act::Extend),
        (Leader, E::Unsure) => (Suspended, Act::Suspend),
        (Suspended, E::Renewed) => (Leader, Act::Resume),
        (Leader | Suspended, E::Displaced | E::Expired) => (Follower, Act::Lose),
        (Leader | Suspended, E::Superseded) => (Follower, Act::Resign),
        (Leader | Suspended, E::Stop) => (Resigned, Act::Resign),

        _ => (role, Act::Nothing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: [Role; 5] = [Role::Follower, Role::Candidate, Role::Leader, Role::Suspended, Role::Resigned];
    const EVENTS: [Event; 10] = [
        Event::Taken,
        Event::NotTaken,
        Event::Installed,
        Event::NoTerm,
        Event::Renewed,
        Event::Unsure,
        Event::Displaced,
        Event::Expired,
        Event::Superseded,
        Event::Stop,
    ];

    #[test]
    fn the_whole_table() {
        use Act::{Extend, Lead, Lose, Nothing, Resign, Resume, SeekTerm, Suspend, Withdraw};
        // Columns as in EVENTS: taken, not taken, installed, no term, renewed, unsure, displaced, expired, superseded, stop.
        let (f, c, l, s, r) =
            (Role::Follower, Role::Candidate, Role::Leader, Role::Suspended, Role::Resigned);
        let table = [
            [
                (c, SeekTerm),
                (f, Nothing),
                (f, Nothing),
                (f, Nothing),
                (f, Nothing),
                (f, Nothing),
                (f, Nothing),
                (f, Nothing),
                (f, Nothing),
                (r, Withdraw),
            ],
            [
                (c, Nothing),
                (c, Nothing),
                (l, Lead),
                (f, Withdraw),
                (c, Nothing),
                (f, Withdraw),
                (f, Withdraw),
                (f, Withdraw),
                (f, Withdraw),
                (r, Withdraw),
            ],
            [
                (l, Nothing),
                (l, Nothing),
                (l, Nothing),
                (l, Nothing),
                (l, Extend),
                (s, Suspend),
                (f, Lose),
                (f, Lose),
                (f, Resign),
                (r, Resign),
            ],
            [
                (s, Nothing),
                (s, Nothing),
                (s, Nothing),
                (s, Nothing),
                (l, Resume),
                (s, Nothing),
                (f, Lose),
                (f, Lose),
                (f, Resign),
                (r, Resign),
            ],
            [(r, Nothing); 10],
        ];
        for (role, row) in ROLES.into_iter().zip(table) {
            for (event, expected) in EVENTS.into_iter().zip(row) {
                assert_eq!(next(role, event), expected, "{role:?} {event:?}");
            }
        }
    }

    #[test]
    fn only_a_new_term_makes_a_leader_and_only_a_renewal_revives_one() {
        for role in ROLES {
            for event in EVENTS {
                let (to, act) = next(role, event);
                let acts_now = to == Role::Leader && role != Role::Leader;
                let allowed = matches!(
                    (role, event),
                    (Role::Candidate, Event::Installed) | (Role::Suspended, Event::Renewed)
                );
                assert_eq!(acts_now, allowed, "{role:?} {event:?}");
                let had = matches!(role, Role::Leader | Role::Suspended);
                let has = matches!(to, Role::Leader | Role::Suspended);
                assert_eq!(had && !has, matches!(act, Act::Lose | Act::Resign), "{role:?} {event:?}");
            }
        }
    }
}
