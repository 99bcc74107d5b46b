//! A schedule: what its row says, checked.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::calendar::{Calendar, CalendarError};
use super::policy::{MissedRuns, MissedRunsError, Overlap, OverlapError, Pause};
use crate::error::QueueError;
use crate::new_job::{check_kind, check_queue};

/// What a schedule is to do; the rest of its row is bookkeeping.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// Its name: 1 to 64 small letters, digits, dots, dashes and underscores, a letter or digit first.
    pub name: String,
    /// The kind of the jobs it fires.
    pub kind: String,
    /// Their queue.
    pub queue: String,
    /// Their payload.
    pub payload: Value,
    /// Their priority, 0 to 10.
    pub priority: u8,
    /// The cron expression; what it may say stands at [`Calendar`].
    pub expression: String,
    /// The IANA zone it is read in.
    pub zone: String,
    /// What happens to slots that nobody could fire.
    pub missed: MissedRuns,
    /// What happens while the previous run is unfinished.
    pub overlap: Overlap,
    /// Whether it fires at all. Slots that pass while it does not are never made up for.
    pub enabled: bool,
}

/// Why a schedule is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// The name.
    #[error("schedule name {0:?} is not usable: 1 to 64 of a-z, 0-9, `.`, `_`, `-`, a letter or digit first")]
    Name(String),
    /// Kind or queue.
    #[error("schedule {name:?}: {reason}")]
    Target {
        /// The schedule.
        name: String,
        /// What is wrong, and what it should be.
        reason: String,
    },
    /// Expression or zone.
    #[error("schedule {name:?}: {source}")]
    Calendar {
        /// The schedule.
        name: String,
        /// What is wrong; not a `source` of the error chain, as its text stands in this one.
        #[source]
        source: CalendarError,
    },
    /// The missed-run policy.
    #[error("schedule {name:?}: {source}")]
    Missed {
        /// The schedule.
        name: String,
        /// What is wrong.
        #[source]
        source: MissedRunsError,
    },
    /// The overlap policy.
    #[error("schedule {name:?}: {source}")]
    Overlap {
        /// The schedule.
        name: String,
        /// What is wrong.
        #[source]
        source: OverlapError,
    },
}

impl Definition {
    /// A schedule that fires jobs of `kind` into the queue `default` in UTC, with an empty object as payload; `once` and `skip` are its
    /// policies.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: impl Into<String>, expression: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind: kind.into(),
            queue: "default".to_owned(),
            payload: Value::Object(serde_json::Map::new()),
            priority: 0,
            expression: expression.into(),
            zone: "UTC".to_owned(),
            missed: MissedRuns::default(),
            overlap: Overlap::default(),
            enabled: true,
        }
    }

    /// Checks every value and answers the calendar.
    ///
    /// # Errors
    /// [`DefinitionError`], naming the value and the remedy.
    pub fn check(&self) -> Result<Calendar, DefinitionError> {
        check_name(&self.name)?;
        let target = |error: QueueError| DefinitionError::Target {
            name: self.name.clone(),
            reason: error.to_string(),
        };
        check_kind(&self.kind).map_err(target)?;
        check_queue(&self.queue).map_err(target)?;
        if self.priority > 10 {
            let reason = format!("priority {} is out of bounds: 0 to 10, higher first", self.priority);
            return Err(DefinitionError::Target { name: self.name.clone(), reason });
        }
        Calendar::parse(&self.expression, &self.zone)
            .map_err(|source| DefinitionError::Calendar { name: self.name.clone(), source })
    }
}

/// Refuses what cannot be a schedule's name.
pub(crate) fn check_name(name: &str) -> Result<(), DefinitionError> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest =
        name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'));
    if first && rest && name.len() <= 64 { Ok(()) } else { Err(DefinitionError::Name(name.to_owned())) }
}

/// A row of `ops.schedules`.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// What it does.
    pub definition: Definition,
    /// The pause that is running or was the last, with its reason.
    pub pause: Option<(Pause, Option<String>)>,
    /// An operator has set it; a release's declaration no longer changes it.
    pub overridden: bool,
    /// Rises with every change of the definition.
    pub revision: i64,
    /// Every slot up to here is decided.
    pub last_slot: Timestamp,
    /// What it did so far.
    pub record: Record,
}

/// What a schedule did so far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// When it last fired.
    pub last_fired_at: Option<Timestamp>,
    /// The job it fired last.
    pub last_job_id: Option<String>,
    /// Jobs it fired.
    pub fired_total: i64,
    /// Decisions that passed missed slots.
    pub missed_total: i64,
    /// Slots dropped because the previous run was unfinished.
    pub overlapped_total: i64,
    /// When one of its jobs last completed.
    pub last_success_at: Option<Timestamp>,
    /// When one of its jobs last died.
    pub last_failure_at: Option<Timestamp>,
    /// Why.
    pub last_error: Option<String>,
    /// Deaths since the last completion.
    pub consecutive_failures: i32,
}

impl Schedule {
    /// Whether it is paused at `now`.
    #[must_use]
    pub fn is_paused(&self, now: Timestamp) -> bool {
        self.pause.as_ref().is_some_and(|(pause, _)| pause.since <= now && now < pause.until)
    }
}

/// The id of the job of one slot. Two firings of a slot are one job, because they have one id.
#[must_use]
pub fn slot_job_id(name: &str, slot: Timestamp) -> String {
    format!("cron:{name}:{slot}")
}

/// The schedule that fired a job, from the job's id.
#[must_use]
pub fn schedule_of_job(id: &str) -> Option<&str> {
    id.strip_prefix("cron:")?.split_once(':').map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_is_checked_whole() {
        let good = Definition::new("backup.nightly", "backup.database", "30 2 * * *");
        assert_eq!(good.check().unwrap().zone_name(), "UTC");
        let named = |name: &str| Definition { name: name.to_owned(), ..good.clone() };
        for bad in ["", "Backup", "a b", "-a", "a:b", "ä", &"a".repeat(65)] {
            assert!(matches!(named(bad).check(), Err(DefinitionError::Name(_))), "{bad:?}");
        }
        assert!(named(&"a".repeat(64)).check().is_ok());
        let bad = [
            (Definition { kind: "a b".into(), ..good.clone() }, "job kind"),
            (Definition { queue: String::new(), ..good.clone() }, "queue name"),
            (Definition { priority: 11, ..good.clone() }, "0 to 10"),
            (Definition { expression: "30 2 * *".into(), ..good.clone() }, "4 fields"),
            (Definition { zone: "Europe/Berlim".into(), ..good.clone() }, "`Europe/Berlin`"),
        ];
        for (definition, says) in bad {
            let text = definition.check().unwrap_err().to_string();
            assert!(text.contains("backup.nightly") && text.contains(says), "{text}");
        }
    }

    #[test]
    fn a_slots_job_id_is_its_name_and_instant() {
        let slot = "2026-03-29T01:00:00Z".parse().unwrap();
        let id = slot_job_id("backup.nightly", slot);
        assert_eq!(id, "cron:backup.nightly:2026-03-29T01:00:00Z");
        assert_eq!(schedule_of_job(&id), Some("backup.nightly"));
        assert_eq!(schedule_of_job("cron:x"), None);
        assert_eq!(schedule_of_job("order-7"), None);
        assert!(slot_job_id(&"a".repeat(64), slot).len() <= 128);
    }
}
