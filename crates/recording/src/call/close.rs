//! Closing a row of the platform's: its end, its state, its length, where they are not there yet.

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use voiceai_postgres::sqlx::{self, PgConnection, Row};

use super::shape::Shape;
use crate::error::RecordingError;
use crate::platform::Column;

/// States of a call that goes on. Any other is somebody's verdict, and stays.
const OPEN: [&str; 16] = [
    "active",
    "in_progress",
    "in-progress",
    "inprogress",
    "ongoing",
    "started",
    "starting",
    "ringing",
    "connected",
    "connecting",
    "live",
    "open",
    "running",
    "initiated",
    "queued",
    "pending",
];
/// What a closed call is, in the platform's own word.
const CLOSED: [&str; 4] = ["completed", "ended", "finished", "closed"];

/// What is tried here.
pub(crate) const READ: &str = "read the platform's record of a call";
pub(crate) const WRITE: &str = "close the platform's record of a call";
/// Longest call that is believed: a year.
const LONGEST_SECONDS: f64 = 366.0 * 86_400.0;

/// A row as it stands, locked.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Found {
    pub(crate) id: String,
    pub(crate) call: Option<String>,
    pub(crate) ended_at: Option<Timestamp>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) status: Option<String>,
    pub(crate) has_duration: bool,
    pub(crate) tenant: Option<String>,
    pub(crate) recording: Option<String>,
}

/// What is to be written.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Closing {
    pub(crate) ended_at: Option<Timestamp>,
    pub(crate) status: Option<String>,
    pub(crate) duration_seconds: Option<f64>,
}

/// By which column a row is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// Its own id.
    Id,
    /// Its call's.
    Call,
}

/// Reads and locks a row until the transaction ends. Of several conversations of one call, the one that goes on, else the last.
pub(crate) async fn find(
    connection: &mut PgConnection,
    shape: &Shape,
    by: By,
    id: &str,
) -> Result<Option<Found>, RecordingError> {
    let column = match by {
        By::Id => Some(&shape.id),
        By::Call => shape.call.as_ref(),
    };
    let Some(column) = column.filter(|column| column.takes(id)) else { return Ok(None) };
    let text = |column: &Option<Column>| match column {
        Some(column) => format!("t.{}::text", column.quoted),
        None => "NULL::text".to_owned(),
    };
    let time = |column: Option<&Column>| {
        column.map_or_else(|| "NULL::timestamptz".to_owned(), |column| column.instant("t"))
    };
    let statement = format!(
        "SELECT t.{}::text, {}, {}, {}, {}, {} IS NOT NULL, {}, {} FROM {} t WHERE t.{} = {} \
         ORDER BY t.{} DESC NULLS FIRST LIMIT 1 FOR UPDATE",
        shape.id.quoted,
        text(&shape.call),
        time(Some(&shape.ended)),
        time(shape.started.as_ref()),
        text(&shape.status),
        text(&shape.duration),
        text(&shape.tenant),
        text(&shape.recording),
        shape.table,
        column.quoted,
        column.of_text("$1"),
        shape.ended.quoted,
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(id)
        .fetch_optional(connection)
        .await
        .map_err(RecordingError::database(READ))?;
    let read = |row: &sqlx::postgres::PgRow| -> Result<Found, sqlx::Error> {
        let at = |n: usize| row.try_get::<Option<SqlTimestamp>, _>(n).map(|at| at.map(SqlTimestamp::to_jiff));
        Ok(Found {
            id: row.try_get(0)?,
            call: row.try_get(1)?,
            ended_at: at(2)?,
            started_at: at(3)?,
            status: row.try_get(4)?,
            has_duration: row.try_get(5)?,
            tenant: row.try_get(6)?,
            recording: row.try_get(7)?,
        })
    };
    row.as_ref().map(read).transpose().map_err(RecordingError::database(READ))
}

/// Decides what is still to be written of a row whose call ended at `ended`. What is there stays. Pure but for the words, which are the
/// column's.
pub(crate) fn decide(shape: &Shape, found: &Found, ended: Timestamp, said: Option<&str>) -> Closing {
    let ended = found.ended_at.unwrap_or(ended);
    let status = shape.status.as_ref().and_then(|column| {
        let now = found.status.as_deref().unwrap_or_default();
        if !now.is_empty() && !OPEN.iter().any(|word| word.eq_ignore_ascii_case(now)) {
            return None;
        }
        let said = said.filter(|said| column.takes(said) && !OPEN.contains(&said.to_lowercase().as_str()));
        said.map(str::to_owned).or_else(|| column.word(&CLOSED, now))
    });
    let started = found.started_at.filter(|_| !found.has_duration && shape.duration.is_some());
    // A clock that went back is no call of negative length, and one that was never set none of a lifetime.
    let duration_seconds = started
        .map(|started| ended.duration_since(started).as_secs_f64().max(0.0))
        .filter(|seconds| *seconds <= LONGEST_SECONDS);
    Closing { ended_at: found.ended_at.is_none().then_some(ended), status, duration_seconds }
}

/// Writes it; false when there was nothing to write.
pub(crate) async fn write(
    connection: &mut PgConnection,
    shape: &Shape,
    id: &str,
    closing: &Closing,
) -> Result<bool, RecordingError> {
    if *closing == Closing::default() {
        return Ok(false);
    }
    let mut set = Vec::new();
    if closing.ended_at.is_some() {
        set.push(format!("{} = {}", shape.ended.quoted, shape.ended.of_instant("$2")));
    }
    if let (Some(column), Some(_)) = (&shape.status, &closing.status) {
        set.push(format!("{} = {}", column.quoted, column.of_text("$3")));
    }
    if let (Some(column), Some(_)) = (&shape.duration, closing.duration_seconds) {
        // Through a number, so that a whole column takes it too.
        set.push(format!("{} = round($4::float8::numeric)", column.quoted));
    }
    if let Some(column) = &shape.updated {
        set.push(format!("{} = {}", column.quoted, column.of_instant("now()")));
    }
    let statement = format!(
        "WITH given AS (SELECT $2::timestamptz, $3::text, $4::float8) UPDATE {} SET {} WHERE {} = {}",
        shape.table,
        set.join(", "),
        shape.id.quoted,
        shape.id.of_text("$1"),
    );
    sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(id)
        .bind(closing.ended_at.map(jiff_sqlx::ToSqlx::to_sqlx))
        .bind(&closing.status)
        .bind(closing.duration_seconds)
        .execute(connection)
        .await
        .map_err(RecordingError::database(WRITE))?;
    Ok(true)
}
