//! A schedule as its table has it, read leniently: an absent column means its default, a spoiled value is named.

use jiff::civil::Time;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use voiceai_queue::cron::Calendar;

use super::decide::{Period, Rules, Times};
use crate::order::{check_project, is_agent_name};

/// A row of `agent_orchestration_schedules`.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Its id, as text.
    pub id: String,
    /// Whose agents it calls.
    pub project: String,
    /// The agent; absent: a batch of all.
    pub agent: Option<String>,
    /// Its jobs' priority, 1 to 10.
    pub priority: u8,
    /// When it fires.
    pub rules: Rules,
    /// Changes with everything that says which times are due.
    pub definition: String,
    /// What the platform's own table says of earlier runs.
    pub last_run: Option<Timestamp>,
    /// The same of successes.
    pub last_success: Option<Timestamp>,
    /// The same of failures.
    pub last_failure: Option<Timestamp>,
}

/// A row that is no schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// Its id, as text.
    pub id: String,
    /// What is wrong, and what it should be.
    pub problem: String,
}

/// Reads a row, given as JSON. `agent` is the name of the agent that `agent_id` points at.
///
/// # Errors
/// [`Malformed`], which names column and value.
pub(crate) fn read(row: &Map<String, Value>, agent: Option<&str>) -> Result<Schedule, Malformed> {
    let id = text(row, "id").unwrap_or_default();
    parse(row, agent, &id).map_err(|problem| Malformed { id: id.clone(), problem })
}

fn parse(row: &Map<String, Value>, agent: Option<&str>, id: &str) -> Result<Schedule, String> {
    let project = text(row, "project_id").ok_or("project_id is NULL: name the project")?;
    check_project(&project)?;
    let agent = text(row, "agent_slug").or_else(|| agent.map(str::to_owned));
    if let (None, Some(id)) = (&agent, text(row, "agent_id")) {
        return Err(format!("agent_id {id} is no agent of ai_agents with a slug"));
    }
    if let Some(agent) = agent.as_deref().filter(|agent| !is_agent_name(agent)) {
        return Err(format!("agent {agent:?} is no agent's name: 1 to 50 of a-z, 0-9, `-` and `_`"));
    }
    let zone = text(row, "timezone").unwrap_or_else(|| "UTC".to_owned());
    // Of the expression only the zone counts here: it is found and refused as the scheduler's own schedules' is.
    let every_day = Calendar::parse("0 0 * * *", &zone).map_err(|error| format!("timezone: {error}"))?;
    let kind = text(row, "schedule_type").unwrap_or_else(|| "daily".to_owned());
    let expression = text(row, "cron_expression").filter(|text| !text.trim().is_empty());
    let times = match (kind.as_str(), &expression) {
        ("hourly", _) => Times::Each(Period::Hours(1)),
        ("every_4h", _) => Times::Each(Period::Hours(4)),
        ("every_8h", _) => Times::Each(Period::Hours(8)),
        ("daily", _) => Times::Each(Period::Day),
        ("weekly", _) => Times::Each(Period::Week),
        ("custom", Some(expression)) => {
            let calendar = Calendar::parse(expression, &zone);
            Times::Cron(Box::new(calendar.map_err(|error| format!("cron_expression: {error}"))?))
        }
        ("custom", None) => {
            return Err(
                "cron_expression is empty, but schedule_type is custom: give one, such as `0 9 * * 1-5`"
                    .to_owned(),
            );
        }
        (other, _) => {
            return Err(format!(
                "schedule_type {other:?} is not known: hourly, every_4h, every_8h, daily, weekly or custom"
            ));
        }
    };
    let is_enabled = row.get("is_enabled").and_then(Value::as_bool).unwrap_or(true);
    let definition = match &times {
        Times::Cron(calendar) => format!("{}|{}|{is_enabled}", calendar.expression(), calendar.zone_name()),
        Times::Each(_) => format!("{kind}|{}|{is_enabled}", every_day.zone_name()),
    };
    Ok(Schedule {
        id: id.to_owned(),
        project,
        agent,
        priority: u8::try_from(whole(row, "priority", 5, 1, 10)?).unwrap_or(5),
        rules: Rules {
            is_enabled,
            times,
            zone: every_day.zone().clone(),
            after: time(row, "run_after_time")?,
            before: time(row, "run_before_time")?,
            days: days(row)?,
            min_interval: SignedDuration::from_mins(whole(row, "min_interval_minutes", 60, 0, 525_600)?),
            max_per_day: u32::try_from(whole(row, "max_runs_per_day", 24, 0, 100_000)?).unwrap_or(u32::MAX),
            error_cooldown: SignedDuration::from_mins(whole(
                row,
                "cooldown_after_error_minutes",
                30,
                0,
                525_600,
            )?),
            allow_concurrent: row.get("allow_concurrent").and_then(Value::as_bool).unwrap_or(false),
        },
        definition,
        last_run: instant(row, "last_run_at"),
        last_success: instant(row, "last_success_at"),
        last_failure: instant(row, "last_failure_at"),
    })
}

/// A column as text, whatever its type; NULL, an absent column and an empty text are nothing.
pub(crate) fn text(row: &Map<String, Value>, column: &str) -> Option<String> {
    match row.get(column)? {
        Value::String(text) => (!text.is_empty()).then(|| text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A column of whole numbers within bounds; NULL and an absent column are the default.
pub(crate) fn whole(
    row: &Map<String, Value>,
    column: &str,
    default: i64,
    least: i64,
    most: i64,
) -> Result<i64, String> {
    let Some(value) = row.get(column).filter(|value| !value.is_null()) else { return Ok(default) };
    let number = value.as_i64().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("{column} is {value}: a whole number from {least} to {most} is needed"))
}

/// A column of instants. PostgreSQL writes them with their offset; without one they are UTC.
pub(crate) fn instant(row: &Map<String, Value>, column: &str) -> Option<Timestamp> {
    let text = row.get(column)?.as_str()?;
    let naive = || text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok();
    text.parse().ok().or_else(|| naive().map(|zoned| zoned.timestamp()))
}

fn time(row: &Map<String, Value>, column: &str) -> Result<Option<Time>, String> {
    let Some(text) = text(row, column) else { return Ok(None) };
    // PostgreSQL's time knows the end of the day.
    let read = if text.starts_with("24:00") { Ok(Time::MAX) } else { text.parse() };
    read.map(Some).map_err(|_| format!("{column} is {text:?}: a time of day such as 09:00 is needed"))
}

fn days(row: &Map<String, Value>) -> Result<[bool; 7], String> {
    let Some(given) = row.get("run_on_days").filter(|value| !value.is_null()) else { return Ok([true; 7]) };
    let bad = || format!("run_on_days is {given}: days from 0, Sunday, to 6, Saturday, are needed");
    let mut days = [false; 7];
    for day in given.as_array().ok_or_else(bad)? {
        let at = day.as_u64().and_then(|day| usize::try_from(day).ok());
        *at.and_then(|at| days.get_mut(at)).ok_or_else(bad)? = true;
    }
    Ok(days)
}

/// The id of the job of one slot: two schedules of a project have two.
#[must_use]
pub fn slot_job_id(schedule: &Schedule, slot: Timestamp) -> String {
    let digest = Sha256::digest(format!("{}|{slot}", schedule.id));
    let suffix: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    crate::order::job_id(&schedule.project, slot, Some(&suffix))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(more: Value) -> Map<String, Value> {
        let mut row = json!({ "id": "7", "project_id": "acme" });
        let row = row.as_object_mut().unwrap();
        row.extend(more.as_object().unwrap().clone());
        row.clone()
    }

    #[test]
    fn absent_columns_are_their_defaults() {
        let schedule = read(&row(json!({})), None).unwrap();
        let rules = &schedule.rules;
        assert_eq!((schedule.priority, rules.max_per_day, rules.is_enabled), (5, 24, true));
        assert_eq!((rules.min_interval.as_mins(), rules.error_cooldown.as_mins()), (60, 30));
        assert_eq!(
            (&rules.times, rules.days, rules.allow_concurrent),
            (&Times::Each(Period::Day), [true; 7], false)
        );
        assert_eq!((schedule.agent, rules.after, rules.before), (None, None, None));
    }

    #[test]
    fn what_is_written_is_read() {
        let given = json!({
            "id": "b3d7", "agent_id": "a-1", "schedule_type": "custom", "cron_expression": "0 9 * * 1-5",
            "timezone": "europe/berlin", "run_after_time": "22:00:00", "run_before_time": "24:00:00", "run_on_days": [0, 6],
            "last_run_at": "2026-11-22T10:00:00.5+01:00", "last_failure_at": "2026-11-22T10:00:00", "priority": 9,
        });
        let schedule = read(&row(given), Some("marketer")).unwrap();
        assert_eq!(schedule.agent.as_deref(), Some("marketer"));
        assert_eq!(schedule.rules.zone.iana_name(), Some("Europe/Berlin"));
        assert_eq!(schedule.rules.days, [true, false, false, false, false, false, true]);
        assert_eq!(schedule.rules.before, Some(Time::MAX));
        assert_eq!(schedule.last_run.unwrap().to_string(), "2026-11-22T09:00:00.5Z");
        assert_eq!(schedule.last_failure.unwrap().to_string(), "2026-11-22T10:00:00Z");
    }

    #[test]
    fn a_spoiled_value_is_named_with_its_column() {
        for (more, says) in [
            (json!({ "timezone": "Europe/Berlim" }), "did you mean `Europe/Berlin`"),
            (json!({ "schedule_type": "custom" }), "cron_expression is empty"),
            (json!({ "schedule_type": "custom", "cron_expression": "61 * * * *" }), "cron_expression"),
            (json!({ "schedule_type": "yearly" }), "schedule_type \"yearly\""),
            (json!({ "run_on_days": [7] }), "run_on_days is [7]"),
            (json!({ "run_after_time": "25:61" }), "run_after_time"),
            (json!({ "min_interval_minutes": -1 }), "min_interval_minutes is -1"),
            (json!({ "priority": 11 }), "priority is 11"),
            (json!({ "project_id": null }), "project_id"),
            (json!({ "agent_id": "a-1" }), "agent_id a-1"),
        ] {
            let malformed = read(&row(more.clone()), None).unwrap_err();
            assert_eq!(malformed.id, "7");
            assert!(malformed.problem.contains(says), "{more}: {}", malformed.problem);
        }
    }

    #[test]
    fn a_slot_has_one_id_and_two_schedules_have_two() {
        let schedule = read(&row(json!({})), None).unwrap();
        let other = Schedule { id: "8".to_owned(), ..schedule.clone() };
        let slot = "2026-11-22T10:00:00Z".parse().unwrap();
        let id = slot_job_id(&schedule, slot);
        assert!(id.starts_with("orch-acme-1795341600000-"), "{id}");
        assert_eq!(id, slot_job_id(&schedule, slot));
        assert_ne!(id, slot_job_id(&other, slot));
    }
}
