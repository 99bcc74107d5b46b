//! What the platform's own tables say of a job. Pure: our rows come in as they are, theirs come out, with the columns and types that
//! their tables have.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::tables::Table;

/// Who is named where a phase is the job's as a whole: their column takes no NULL.
const WHOLE_JOB: &str = "orchestrator";
/// Longest error code that the platform's tables take.
const CODE_MAX: usize = 50;
/// Of an error's words.
const WORDS_MAX: usize = 4_000;
/// What points at rows of others: left out where those are not there.
const REFERENCES: &[&str] =
    &["project_id", "triggered_by_user_id", "parent_job_id", "agent_id", "schedule_id"];

/// An agent as the platform knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Agent {
    pub(crate) id: String,
    pub(crate) name: Option<String>,
}

/// A job of ours with everything that is told of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Source {
    /// Its row, with `agent_runs` and `phases` as lists in it.
    pub(crate) row: Map<String, Value>,
    /// The id of its row there, and of the row of the job that it retries.
    pub(crate) id: String,
    pub(crate) parent: Option<String>,
}

/// Rows to write into one table: those columns of them that it has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rows {
    /// The columns of a new row.
    pub(crate) columns: Vec<&'static str>,
    /// Those of them that are written again later.
    pub(crate) moves: Vec<&'static str>,
    /// The values.
    pub(crate) rows: Vec<Map<String, Value>>,
}

/// A column of theirs and what it is to hold.
struct Cell {
    column: &'static str,
    /// Whether it changes as a job goes on; else it is written once, and stays whoever wrote it.
    moves: bool,
    value: Value,
}

const fn once(column: &'static str, value: Value) -> Cell {
    Cell { column, moves: false, value }
}

const fn moving(column: &'static str, value: Value) -> Cell {
    Cell { column, moves: true, value }
}

impl Rows {
    /// Of rows that name the same columns.
    fn new(table: &Table, rows: Vec<Vec<Cell>>) -> Self {
        let has = |cell: &&Cell| table.has(cell.column);
        let shape: Vec<&Cell> = rows.first().into_iter().flatten().filter(has).collect();
        let columns = shape.iter().map(|cell| cell.column).collect();
        let moves = shape.iter().filter(|cell| cell.moves).map(|cell| cell.column).collect();
        let value = |cell: &Cell| {
            let taken = table.type_of(cell.column).is_some_and(|kind| fits(kind, &cell.value));
            (cell.column.to_owned(), if taken { cell.value.clone() } else { Value::Null })
        };
        let rows = rows.iter().map(|row| row.iter().filter(has).map(value).collect()).collect();
        Self { columns, moves, rows }
    }

    /// The same without pointing at rows of others.
    #[must_use]
    pub(crate) fn without_references(mut self) -> Self {
        self.columns.retain(|column| !REFERENCES.contains(column));
        for row in &mut self.rows {
            row.retain(|column, _| !REFERENCES.contains(&column.as_str()));
        }
        self
    }
}

/// Whether a column of this type takes the value: a name of another kind than theirs (a project that is no UUID) is none that they know.
fn fits(kind: &str, value: &Value) -> bool {
    let text = value.as_str();
    match kind {
        "uuid" => text.is_some_and(|text| uuid::Uuid::try_parse(text).is_ok()),
        "smallint" | "integer" | "bigint" => text.is_none_or(|text| text.parse::<i64>().is_ok()),
        _ => true,
    }
}

/// The row of a job.
pub(crate) fn job(source: &Source, table: &Table) -> Rows {
    let row = &source.row;
    let of = |column: &str| row.get(column).cloned().unwrap_or(Value::Null);
    let runs = list(row, "agent_runs");
    let created = of("created_at");
    let input = row.get("input").and_then(Value::as_object).cloned().unwrap_or_default();
    let now = of("told_now");
    let due = row.get("slot").filter(|slot| !slot.is_null()).cloned().unwrap_or_else(|| created.clone());
    let count = |column| moving(column, whole(&of(column)));
    let told = vec![
        once("id", json!(source.id)),
        once("project_id", of("project_id")),
        once("job_type", of("job_type")),
        once("triggered_by", of("triggered_by")),
        once("triggered_by_user_id", of("user_id")),
        moving("status", of("status")),
        once("scheduled_at", due),
        moving("started_at", of("started_at")),
        moving("completed_at", of("ended_at")),
        moving("timeout_at", of("timeout_at")),
        count("duration_ms"),
        count("agents_executed"),
        count("agents_succeeded"),
        count("agents_failed"),
        count("tasks_created"),
        count("suggestions_created"),
        moving("error_message", cut(&of("error_message"), WORDS_MAX)),
        moving("error_code", cut(&of("error_code"), CODE_MAX)),
        once("attempt_number", of("attempt_number")),
        once("max_attempts", of("max_attempts")),
        once("parent_job_id", json!(source.parent)),
        once("input_params", Value::Object(input)),
        moving("output_summary", summary(row, &runs)),
        once("date_created", created.clone()),
        once("created_at", created),
        moving("date_updated", now.clone()),
        moving("updated_at", now),
    ];
    Rows::new(table, vec![told])
}

/// What its agents did, in the shape of a job's result.
fn summary(row: &Map<String, Value>, runs: &[Map<String, Value>]) -> Value {
    let of = |column: &str| row.get(column).cloned().unwrap_or(Value::Null);
    let agents: Vec<_> = runs
        .iter()
        .map(|run| {
            json!({ "agentSlug": run.get("agent"), "status": run.get("state"), "calls": run.get("calls"),
                "tasksCreated": run.get("tasks_created"), "suggestionsCreated": run.get("suggestions_created"),
                "error": run.get("error") })
        })
        .collect();
    json!({
        "success": row.get("status").and_then(Value::as_str) == Some("completed"),
        "jobId": of("id"),
        "rootJobId": of("root_id"),
        "agentsExecuted": of("agents_executed"),
        "agentsSucceeded": of("agents_succeeded"),
        "agentsFailed": of("agents_failed"),
        "tasksCreated": of("tasks_created"),
        "suggestionsCreated": of("suggestions_created"),
        "agents": agents,
    })
}

/// The rows of its phases.
pub(crate) fn phases(source: &Source, agents: &BTreeMap<String, Agent>, table: &Table) -> Rows {
    let job = source.row.get("id").and_then(Value::as_str).unwrap_or_default();
    let is_uuid = table.type_of("id") == Some("uuid");
    let rows = list(&source.row, "phases").into_iter().map(|phase| {
        let of = |column: &str| phase.get(column).cloned().unwrap_or(Value::Null);
        let slug = phase.get("agent").and_then(Value::as_str);
        let known = slug.and_then(|slug| agents.get(slug));
        let name = known.and_then(|agent| agent.name.as_deref()).or(slug).unwrap_or("Orchestrator");
        let status = phase.get("status").and_then(Value::as_str).unwrap_or_default();
        let words = cut(&of("message"), WORDS_MAX);
        let acts = !matches!(status, "skipped" | "do_nothing");
        let http =
            phase.get("detail").and_then(|detail| detail.get("http_status")).filter(|code| !code.is_null());
        let has_failed = status == "failed";
        let words_of = |told: bool| if told { words.clone() } else { Value::Null };
        vec![
            once("id", json!(row_id(&format!("{job}:{}", of("id")), is_uuid))),
            once("job_id", json!(source.id)),
            once("project_id", of("project_id")),
            once("agent_id", json!(known.map(|agent| &agent.id))),
            once("schedule_id", source.row.get("schedule_id").cloned().unwrap_or(Value::Null)),
            once("agent_slug", json!(slug.unwrap_or(WHOLE_JOB))),
            once("agent_name", json!(name)),
            once("phase", of("phase")),
            moving("status", json!(status)),
            once("started_at", of("started_at")),
            moving("completed_at", of("completed_at")),
            moving("duration_ms", whole(&of("duration_ms"))),
            moving("should_act", json!(acts)),
            moving("do_nothing_reason", words_of(!acts)),
            moving("output_data", output(&of("detail"), &words_of(!has_failed))),
            moving("error_message", words_of(has_failed)),
            moving("error_code", http.map_or(Value::Null, |code| json!(format!("HTTP_{code}")))),
            once("date_created", of("started_at")),
            once("created_at", of("started_at")),
        ]
    });
    Rows::new(table, rows.collect())
}

/// A phase's details, with its words.
fn output(detail: &Value, words: &Value) -> Value {
    let mut output = detail.as_object().cloned().unwrap_or_default();
    if !words.is_null() {
        output.insert("message".to_owned(), words.clone());
    }
    Value::Object(output)
}

/// The name of a row of theirs that stands for `ours`: always the same one. What is their id already stays it.
pub(crate) fn row_id(ours: &str, is_uuid: bool) -> String {
    if !is_uuid {
        return ours.to_owned();
    }
    uuid::Uuid::try_parse(ours).unwrap_or_else(|_| named(ours)).to_string()
}

fn named(ours: &str) -> uuid::Uuid {
    let digest = Sha256::digest(format!("orchestration:{ours}"));
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(digest.iter()).for_each(|(byte, of)| *byte = *of);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

fn list(row: &Map<String, Value>, column: &str) -> Vec<Map<String, Value>> {
    let items = row.get(column).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(|item| item.as_object().cloned()).collect()
}

/// Their counts are integers: ours are larger ones.
fn whole(value: &Value) -> Value {
    value.as_i64().map_or(Value::Null, |count| json!(count.clamp(0, i64::from(i32::MAX))))
}

fn cut(value: &Value, most: usize) -> Value {
    value.as_str().map_or(Value::Null, |text| json!(text.chars().take(most).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Source {
        let row = json!({
            "id": "orch-p-1", "root_id": "orch-p-1", "project_id": "acme", "job_type": "batch", "triggered_by": "cron",
            "user_id": null, "schedule_id": null, "slot": null, "status": "failed", "attempt_number": 1, "max_attempts": 3,
            "agents_executed": 2, "agents_succeeded": 1, "agents_failed": 1, "tasks_created": 5_000_000_000_i64,
            "suggestions_created": 0, "error_code": "x".repeat(80), "error_message": "1 of 2 agents failed", "input": {"projectId": "acme"},
            "created_at": "2026-11-22T10:00:00Z", "started_at": "2026-11-22T10:00:01Z", "timeout_at": null,
            "ended_at": "2026-11-22T10:00:09Z", "duration_ms": 8000, "told_now": "2026-11-22T10:00:10Z",
            "agent_runs": [{"agent": "qa", "state": "failed", "calls": 3, "error": "HTTP 500"}],
            "phases": [
                {"id": 1, "agent": null, "phase": "analyze", "status": "completed", "message": null, "detail": {"agents": ["qa"]},
                 "project_id": "acme", "started_at": "2026-11-22T10:00:01Z", "completed_at": "2026-11-22T10:00:01Z", "duration_ms": 0},
                {"id": 2, "agent": "qa", "phase": "execute", "status": "failed", "message": "HTTP 500", "detail": {"http_status": 500},
                 "project_id": "acme", "started_at": "2026-11-22T10:00:02Z", "completed_at": "2026-11-22T10:00:08Z", "duration_ms": 6000},
                {"id": 3, "agent": "seo", "phase": "decide", "status": "skipped", "message": "nothing left", "detail": {},
                 "project_id": "acme", "started_at": "2026-11-22T10:00:02Z", "completed_at": "2026-11-22T10:00:02Z", "duration_ms": 0},
            ],
        });
        Source { row: row.as_object().unwrap().clone(), id: row_id("orch-p-1", true), parent: None }
    }

    #[test]
    fn a_job_is_told_in_the_columns_that_are_there() {
        let table = Table::of_platform(&[
            ("id", "uuid"),
            ("project_id", "uuid"),
            ("status", "character varying"),
            ("tasks_created", "integer"),
            ("error_code", "character varying"),
            ("output_summary", "jsonb"),
            ("scheduled_at", "timestamp with time zone"),
            ("something_else", "text"),
        ]);
        let told = job(&source(), &table);
        assert_eq!(
            told.columns,
            ["id", "project_id", "status", "scheduled_at", "tasks_created", "error_code", "output_summary"]
        );
        assert_eq!(told.moves, ["status", "tasks_created", "error_code", "output_summary"]);
        let row = &told.rows[0];
        assert!(uuid::Uuid::try_parse(row["id"].as_str().unwrap()).is_ok());
        assert_eq!(row["project_id"], Value::Null, "no UUID, so none of their projects");
        assert_eq!((&row["status"], &row["tasks_created"]), (&json!("failed"), &json!(i32::MAX)));
        assert_eq!(row["error_code"].as_str().unwrap().len(), CODE_MAX);
        assert_eq!(row["scheduled_at"], json!("2026-11-22T10:00:00Z"));
        assert_eq!(row["output_summary"]["agents"][0]["agentSlug"], "qa");
        assert_eq!(row["output_summary"]["jobId"], "orch-p-1");
        let bare = told.without_references();
        assert!(!bare.columns.contains(&"project_id"));
    }

    #[test]
    fn a_phase_is_told_with_its_agent_and_reason() {
        let table = Table::of_platform(
            &[
                "id",
                "agent_id",
                "agent_slug",
                "agent_name",
                "status",
                "should_act",
                "do_nothing_reason",
                "error_message",
                "error_code",
            ]
            .map(|column| (column, if column.ends_with("id") { "uuid" } else { "text" })),
        );
        let id = "00000000-0000-4000-8000-000000000001";
        let agents =
            BTreeMap::from([("qa".to_owned(), Agent { id: id.to_owned(), name: Some("Tester".to_owned()) })]);
        let told = phases(&source(), &agents, &table);
        let [whole, failed, skipped] = &told.rows[..] else { panic!("{told:?}") };
        assert_eq!((&whole["agent_slug"], &whole["agent_id"]), (&json!(WHOLE_JOB), &Value::Null));
        assert_eq!((&failed["agent_name"], &failed["agent_id"]), (&json!("Tester"), &json!(id)));
        assert_eq!(
            (&failed["error_message"], &failed["error_code"]),
            (&json!("HTTP 500"), &json!("HTTP_500"))
        );
        assert_eq!(
            (&skipped["should_act"], &skipped["do_nothing_reason"]),
            (&json!(false), &json!("nothing left"))
        );
        let again = phases(&source(), &agents, &table);
        assert_eq!(again, told, "the same rows each time");
        assert_ne!(whole["id"], failed["id"]);
    }

    #[test]
    fn an_id_of_theirs_stays_it() {
        let theirs = "6b1f0f2e-93c6-4a6c-9d2e-0a8f1a6f7d11";
        assert_eq!(row_id(theirs, true), theirs);
        assert_eq!(row_id("orch-a-1", false), "orch-a-1");
        assert_eq!(row_id("orch-a-1", true), row_id("orch-a-1", true));
        assert_ne!(row_id("orch-a-1", true), row_id("orch-a-2", true));
    }
}
