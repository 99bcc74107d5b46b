//! How much an agent may do by itself. Pure: the rows of `autonomous_action_config`, what was done and the time come in.

use std::collections::BTreeMap;
use std::fmt;

use jiff::{SignedDuration, Timestamp};

/// A limit: one row of `autonomous_action_config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limit {
    /// The action.
    pub action: String,
    /// Whether it may be taken at all.
    pub is_enabled: bool,
    /// In one day of UTC.
    pub max_per_day: u64,
    /// In the last 60 minutes.
    pub max_per_hour: u64,
    /// Least time from one run that took it to the next.
    pub cooldown: SignedDuration,
}

/// What was done under a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    /// Since the last midnight of UTC.
    pub today: u64,
    /// In the last 60 minutes.
    pub last_hour: u64,
    /// The last time.
    pub last: Option<Timestamp>,
    /// Granted to calls of others that are under way: they may yet do it.
    pub held: u64,
}

/// Why an action may not be taken now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is switched off.
    Off,
    /// Often enough for a day.
    Day(u64),
    /// Often enough for an hour.
    Hour(u64),
    /// Too short a time ago.
    Cooldown(Timestamp),
    /// What is left is granted to calls that are under way.
    Held(u64),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("switched off"),
            Self::Day(max) => write!(f, "max_per_day {max} is reached"),
            Self::Hour(max) => write!(f, "max_per_hour {max} is reached"),
            Self::Cooldown(until) => write!(f, "cooldown until {until}"),
            Self::Held(held) => write!(f, "a call under way was granted it {held} times"),
        }
    }
}

/// How often an action may be taken in this run; at least once, else why not.
///
/// # Errors
/// [`Refusal`], the most lasting reason first.
pub(crate) fn allowed(limit: &Limit, usage: Usage, now: Timestamp) -> Result<u64, Refusal> {
    if !limit.is_enabled {
        return Err(Refusal::Off);
    }
    let day = limit.max_per_day.saturating_sub(usage.today);
    let hour = limit.max_per_hour.saturating_sub(usage.last_hour);
    if day == 0 {
        return Err(Refusal::Day(limit.max_per_day));
    }
    if hour == 0 {
        return Err(Refusal::Hour(limit.max_per_hour));
    }
    let until =
        usage.last.and_then(|last| last.checked_add(limit.cooldown).ok()).filter(|until| *until > now);
    if let Some(until) = until {
        return Err(Refusal::Cooldown(until));
    }
    let left = day.min(hour).saturating_sub(usage.held);
    // Whoever has it may take it at any moment, and then its cooldown begins.
    let rests_after = usage.held > 0 && limit.cooldown > SignedDuration::ZERO;
    if left == 0 || rests_after { Err(Refusal::Held(usage.held)) } else { Ok(left) }
}

/// What one agent may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// No row limits it.
    Unlimited,
    /// So often each of these.
    Limited(BTreeMap<String, u64>),
    /// Nothing of what its rows name; the reason of each.
    Nothing(String),
    /// Nothing at this moment: others were granted what is left, and may leave some of it. The reason of each.
    Busy(String),
}

/// Sums up the rows of one agent. Where an action has two rows, of the agent and of every agent, both hold.
#[must_use]
pub(crate) fn scope(rows: &[(Limit, Usage)], now: Timestamp) -> Scope {
    if rows.is_empty() {
        return Scope::Unlimited;
    }
    let mut granted: BTreeMap<String, u64> = BTreeMap::new();
    let mut refused: BTreeMap<String, Refusal> = BTreeMap::new();
    for (limit, usage) in rows {
        match allowed(limit, *usage, now) {
            Ok(count) => {
                let most = granted.entry(limit.action.clone()).or_insert(count);
                *most = (*most).min(count);
            }
            Err(refusal) => {
                // Of two reasons the more lasting one counts.
                let known = refused.entry(limit.action.clone()).or_insert_with(|| refusal.clone());
                if matches!(known, Refusal::Held(_)) {
                    *known = refusal;
                }
            }
        }
    }
    granted.retain(|action, _| !refused.contains_key(action));
    if granted.is_empty() {
        let words: Vec<_> = refused.iter().map(|(action, why)| format!("{action}: {why}")).collect();
        let is_busy = refused.values().any(|why| matches!(why, Refusal::Held(_)));
        let words = words.join("; ");
        return if is_busy { Scope::Busy(words) } else { Scope::Nothing(words) };
    }
    Scope::Limited(granted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(action: &str) -> Limit {
        Limit {
            action: action.to_owned(),
            is_enabled: true,
            max_per_day: 10,
            max_per_hour: 3,
            cooldown: SignedDuration::from_mins(15),
        }
    }

    #[test]
    fn each_limit_counts_by_itself() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let ago = |minutes| now.checked_sub(SignedDuration::from_mins(minutes)).unwrap();
        for (today, last_hour, last, expected) in [
            (0, 0, None, Ok(3)),
            (8, 0, Some(ago(120)), Ok(2)),
            (9, 2, Some(ago(30)), Ok(1)),
            (10, 0, Some(ago(120)), Err(Refusal::Day(10))),
            (12, 3, Some(ago(1)), Err(Refusal::Day(10))),
            (3, 3, Some(ago(20)), Err(Refusal::Hour(3))),
            (1, 1, Some(ago(14)), Err(Refusal::Cooldown("2026-11-22T10:01:00Z".parse().unwrap()))),
            (1, 1, Some(ago(15)), Ok(2)),
        ] {
            assert_eq!(
                allowed(&limit("a"), Usage { today, last_hour, last, held: 0 }, now),
                expected,
                "{today} {last_hour} {last:?}"
            );
        }
        let off = Limit { is_enabled: false, ..limit("a") };
        assert_eq!(allowed(&off, Usage::default(), now), Err(Refusal::Off));
    }

    #[test]
    fn what_others_hold_is_not_granted_twice() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let free = Limit { cooldown: SignedDuration::ZERO, ..limit("a") };
        let held = |held| Usage { held, ..Usage::default() };
        assert_eq!(allowed(&free, held(2), now), Ok(1));
        assert_eq!(allowed(&free, held(3), now), Err(Refusal::Held(3)));
        assert_eq!(
            allowed(&limit("a"), held(1), now),
            Err(Refusal::Held(1)),
            "its cooldown may begin at any moment"
        );
        assert_eq!(
            allowed(&free, Usage { last_hour: 3, held: 1, ..Usage::default() }, now),
            Err(Refusal::Hour(3))
        );
        let of = |rows: &[(Limit, Usage)]| scope(rows, now);
        assert!(matches!(of(&[(free.clone(), held(3))]), Scope::Busy(why) if why.contains("3 times")));
        let off = Limit { is_enabled: false, ..free.clone() };
        assert_eq!(
            of(&[(free.clone(), held(3)), (off, Usage::default())]),
            Scope::Nothing("a: switched off".to_owned())
        );
        let other = Limit { action: "b".to_owned(), ..free.clone() };
        assert_eq!(
            of(&[(free, held(3)), (other, held(0))]),
            Scope::Limited(BTreeMap::from([("b".to_owned(), 3)]))
        );
    }

    #[test]
    fn an_agent_with_nothing_left_is_told_apart_from_one_without_limits() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let full = Usage { today: 10, ..Usage::default() };
        assert_eq!(scope(&[], now), Scope::Unlimited);
        let some = [(limit("a"), full), (limit("b"), Usage::default())];
        assert_eq!(scope(&some, now), Scope::Limited(BTreeMap::from([("b".to_owned(), 3)])));
        let both =
            [(limit("a"), Usage::default()), (Limit { is_enabled: false, ..limit("a") }, Usage::default())];
        assert_eq!(scope(&both, now), Scope::Nothing("a: switched off".to_owned()));
        assert_eq!(
            scope(&[(limit("a"), full)], now),
            Scope::Nothing("a: max_per_day 10 is reached".to_owned())
        );
    }
}
