//! Which backups go: pure.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// How many backups of a series stay. A backup that any rule keeps, stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    /// `BACKUP_KEEP_LAST`: the newest ones.
    pub last: u32,
    /// `BACKUP_KEEP_DAILY`: the newest of each of the last days (UTC) that have one.
    pub daily: u32,
    /// `BACKUP_KEEP_WEEKLY`: the newest of each of the last ISO weeks that have one.
    pub weekly: u32,
    /// `BACKUP_KEEP_MONTHLY`: the newest of each of the last months that have one.
    pub monthly: u32,
}

/// What is known of a backup without reading its dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worth {
    /// Stored and read back.
    Stored,
    /// Restored and compared.
    Proved,
    /// A proof failed, or its dump is missing: it takes no other backup's place.
    Bad,
}

/// A backup to be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Its id.
    pub id: String,
    /// The moment the data are from.
    pub at: Timestamp,
    /// What is known of it.
    pub worth: Worth,
}

/// The ids of the backups that go, oldest first. With no rule at all nothing goes. The newest one, the newest proved one,
/// and while none is proved every good one, stay whatever the rules say. A bad one goes once a newer one is proved.
///
/// Periods are counted by the backups that are there and not by the calendar: a service that stood still for a year does not
/// lose its last backups by its first new one.
#[must_use]
pub fn superfluous(keep: Keep, backups: &[Judged]) -> Vec<String> {
    if keep == Keep::default() {
        return Vec::new();
    }
    let mut newest_first: Vec<&Judged> = backups.iter().collect();
    newest_first.sort_by(|one, other| (other.at, &other.id).cmp(&(one.at, &one.id)));
    let Some(newest_proved) = newest_first.iter().find(|backup| backup.worth == Worth::Proved) else {
        return Vec::new();
    };
    let good: Vec<&Judged> =
        newest_first.iter().copied().filter(|backup| backup.worth != Worth::Bad).collect();
    let mut stay: BTreeSet<&str> = BTreeSet::from([newest_proved.id.as_str()]);
    stay.extend(newest_first.first().map(|backup| backup.id.as_str()));
    stay.extend(good.iter().take(keep.last as usize).map(|backup| backup.id.as_str()));
    for (count, period) in [(keep.daily, day as Period), (keep.weekly, week), (keep.monthly, month)] {
        stay.extend(newest_of_each(&good, count as usize, period));
    }
    let newer_than_proof = |backup: &Judged| backup.worth == Worth::Bad && backup.at > newest_proved.at;
    let goes = newest_first.iter().rev();
    goes.filter(|backup| !stay.contains(backup.id.as_str()) && !newer_than_proof(backup))
        .map(|backup| backup.id.clone())
        .collect()
}

type Period = fn(Timestamp) -> (i16, i16);

fn day(at: Timestamp) -> (i16, i16) {
    let date = at.to_zoned(TimeZone::UTC).date();
    (date.year(), date.day_of_year())
}

fn week(at: Timestamp) -> (i16, i16) {
    let week = at.to_zoned(TimeZone::UTC).date().iso_week_date();
    (week.year(), i16::from(week.week()))
}

fn month(at: Timestamp) -> (i16, i16) {
    let date = at.to_zoned(TimeZone::UTC).date();
    (date.year(), i16::from(date.month()))
}

fn newest_of_each<'a>(newest_first: &[&'a Judged], count: usize, period: Period) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    let mut ids = Vec::new();
    for backup in newest_first {
        if seen.len() == count {
            break;
        }
        if seen.insert(period(backup.at)) {
            ids.push(backup.id.as_str());
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `2026-11-22T02+` is proved, `-` bad, nothing stored.
    fn judged(texts: &[&str]) -> Vec<Judged> {
        let one = |text: &&str| {
            let worth = match text.chars().last() {
                Some('+') => Worth::Proved,
                Some('-') => Worth::Bad,
                _ => Worth::Stored,
            };
            let id = text.trim_end_matches(['+', '-']).to_owned();
            let at = format!("{id}:00:00Z").parse().expect("a time");
            Judged { id, at, worth }
        };
        texts.iter().map(one).collect()
    }

    const fn keep(last: u32, daily: u32, weekly: u32, monthly: u32) -> Keep {
        Keep { last, daily, weekly, monthly }
    }

    #[test]
    fn each_rule_keeps_what_it_names() {
        let week = ["2026-11-16T02", "2026-11-17T02", "2026-11-18T02", "2026-11-18T20", "2026-11-19T02+"];
        let cases: &[(&str, Keep, &[&str], &[&str])] = &[
            ("no rule", keep(0, 0, 0, 0), &week, &[]),
            ("last two", keep(2, 0, 0, 0), &week, &["2026-11-16T02", "2026-11-17T02", "2026-11-18T02"]),
            ("the newest of each day", keep(0, 3, 0, 0), &week, &["2026-11-16T02", "2026-11-18T02"]),
            (
                "one a week",
                keep(0, 0, 5, 0),
                &week,
                &["2026-11-16T02", "2026-11-17T02", "2026-11-18T02", "2026-11-18T20"],
            ),
            (
                "an ISO week does not end with the year",
                keep(0, 0, 2, 0),
                &["2025-12-28T02", "2025-12-29T02", "2026-01-04T02", "2026-01-05T02+"],
                &["2025-12-28T02", "2025-12-29T02"],
            ),
            (
                "months",
                keep(0, 0, 0, 2),
                &["2026-08-31T02", "2026-09-01T02", "2026-09-30T02", "2026-11-01T02+"],
                &["2026-08-31T02", "2026-09-01T02"],
            ),
            (
                "a long silence loses nothing",
                keep(0, 2, 0, 0),
                &["2024-01-01T02", "2024-01-02T02", "2026-11-22T02+"],
                &["2024-01-01T02"],
            ),
            (
                "the newest proved one stays, however old",
                keep(1, 0, 0, 0),
                &["2026-01-01T02+", "2026-01-02T02+", "2026-11-21T02", "2026-11-22T02"],
                &["2026-01-01T02", "2026-11-21T02"],
            ),
            (
                "without a proof all stay",
                keep(1, 0, 0, 0),
                &["2026-11-20T02", "2026-11-21T02-", "2026-11-22T02"],
                &[],
            ),
            (
                "a bad one takes nobody's place, and goes once a newer one is proved",
                keep(1, 1, 0, 0),
                &["2026-11-19T02", "2026-11-20T02-", "2026-11-20T01+", "2026-11-21T02-", "2026-11-22T02"],
                &["2026-11-19T02"],
            ),
            (
                "a bad one before the proof",
                keep(9, 0, 0, 0),
                &["2026-11-20T02-", "2026-11-21T02+"],
                &["2026-11-20T02"],
            ),
            ("nothing", keep(1, 1, 1, 1), &[], &[]),
        ];
        for (what, rules, backups, expected) in cases {
            assert_eq!(superfluous(*rules, &judged(backups)), *expected, "{what}");
        }
    }

    #[test]
    fn the_newest_and_the_newest_proved_never_go_whatever_the_rules_and_the_order() {
        let mut backups = judged(&[
            "2026-11-01T02+",
            "2026-11-02T02-",
            "2026-11-03T02+",
            "2026-11-04T02",
            "2026-11-05T02-",
            "2026-11-06T02",
        ]);
        for bits in 0..81_u32 {
            let rules = keep(bits % 3, bits / 3 % 3, bits / 9 % 3, bits / 27 % 3);
            backups.rotate_left(1);
            let gone = superfluous(rules, &backups);
            for kept in ["2026-11-03T02", "2026-11-06T02"] {
                assert!(!gone.iter().any(|id| id == kept), "{rules:?} lets {kept} go");
            }
        }
    }
}
