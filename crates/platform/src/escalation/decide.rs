//! What happens to an alert whose time has come. Pure.

use jiff::{SignedDuration, Timestamp};

/// A level of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// The row.
    pub id: i64,
    /// Its place, 1 being the first.
    pub number: i64,
    /// Until the next level.
    pub delay_minutes: i64,
    /// Addresses, in one text.
    pub notify_email: Option<String>,
    /// Whether the row names an address to post to.
    pub has_webhook: bool,
    /// Who is on call.
    pub schedule: Option<i64>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Tell the people of this level; the alert is due again then.
    Escalate(&'a Level, Timestamp),
    /// There is nobody further to tell.
    End,
}

/// The level after `current`, which is the next that the policy has: one that was taken out does not end the escalation.
#[must_use]
pub fn decide(current: i64, levels: &[Level], now: Timestamp) -> Step<'_> {
    let next = levels.iter().filter(|level| level.number > current).min_by_key(|level| level.number);
    match next {
        None => Step::End,
        Some(level) => {
            // Due again at once would tell everybody within a minute.
            let delay = SignedDuration::from_mins(level.delay_minutes.clamp(1, 60 * 24 * 30));
            Step::Escalate(level, now + delay)
        }
    }
}

/// The addresses of a text: separated by commas, semicolons or blanks, each once, without regard to case.
#[must_use]
pub fn addresses(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for part in text.split([',', ';', ' ', '\n', '\t', '\r']) {
        let part = part.trim();
        if part.contains('@') && !found.iter().any(|known| known.eq_ignore_ascii_case(part)) {
            found.push(part.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(number: i64, delay_minutes: i64) -> Level {
        Level { id: number, number, delay_minutes, notify_email: None, has_webhook: false, schedule: None }
    }

    #[test]
    fn levels_follow_each_other_and_end() {
        let now: Timestamp = "2026-11-22T03:00:00Z".parse().expect("a time");
        let levels = [level(3, 30), level(1, 15), level(5, 0)];
        let step = |current| match decide(current, &levels, now) {
            Step::Escalate(level, next) => Some((level.number, next.duration_since(now).as_mins())),
            Step::End => None,
        };
        assert_eq!(step(0), Some((1, 15)));
        assert_eq!(step(1), Some((3, 30)), "level 2 was taken out");
        assert_eq!(step(3), Some((5, 1)), "never at once");
        assert_eq!(step(5), None);
        assert_eq!(decide(0, &[], now), Step::End);
    }

    #[test]
    fn addresses_come_once_however_they_are_separated() {
        assert_eq!(addresses("a@x.org, b@x.org;A@X.org  c@x.org"), ["a@x.org", "b@x.org", "c@x.org"]);
        assert!(addresses(" nobody , ").is_empty());
    }
}
