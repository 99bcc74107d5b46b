//! `history`: decisions and steps in one list.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;
use voiceai_postgres::sqlx::{self, Row as _};

use crate::store::{Store, StoreError};

/// One line of the history.
#[derive(Debug, Serialize)]
pub struct HistoryView {
    /// When.
    pub at: Timestamp,
    /// `decision` or `step`.
    pub kind: String,
    /// The group.
    pub group: String,
    /// The server, for a step.
    pub server: Option<String>,
    /// The operation, for a step.
    pub operation: Option<Uuid>,
    /// The action of a decision, the event of a step.
    pub what: String,
    /// The reason of a decision, the new state of a step.
    pub outcome: String,
    /// One line for a person.
    pub summary: Option<String>,
    /// The term of the leader that wrote it; absent when a person's command did.
    pub term: Option<i64>,
    /// Inputs, wish and clamps of a decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
}

/// Which part of the history.
#[derive(Debug, Clone, Default)]
pub struct HistoryQuery {
    /// Only this group.
    pub group: Option<String>,
    /// Without decisions that did nothing.
    pub actions_only: bool,
    /// At most this many lines.
    pub limit: u32,
    /// Older than this line.
    pub before: Option<Cursor>,
}

/// A place in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    at_us: i64,
    kind: String,
    id: i64,
}

impl Cursor {
    /// Reads what a list ended with.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let this = Self {
            at_us: parts.next()?.parse().ok()?,
            kind: parts.next().filter(|kind| ["decision", "step"].contains(kind))?.to_owned(),
            id: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(this)
    }

    fn text(&self) -> String {
        format!("{}.{}.{}", self.at_us, self.kind, self.id)
    }
}

impl Store {
    /// A page of the history, newest first, and the cursor of the next one.
    ///
    /// # Errors
    /// As the database says.
    pub async fn history(
        &self,
        query: &HistoryQuery,
    ) -> Result<(Vec<HistoryView>, Option<String>), StoreError> {
        const TRIED: &str = "read the history";
        let limit = i64::from(query.limit);
        let before = query.before.clone();
        let rows = sqlx::query(
            "WITH place AS (SELECT 'epoch'::timestamptz + $3 * interval '1 microsecond' AS at, $4::text AS kind, $5::bigint AS id), \
             lines AS ( \
                 (SELECT d.at, 'decision'::text AS kind, d.id, d.group_name, NULL::text AS server, NULL::uuid AS operation, \
                         d.action AS what, d.reason AS outcome, d.summary, d.term, d.details \
                  FROM ops.decisions d, place p \
                  WHERE ($1::text IS NULL OR d.group_name = $1) AND (NOT $2 OR d.action IN ('add', 'remove')) \
                    AND ($3::bigint IS NULL OR (d.at, 'decision'::text, d.id) < (p.at, p.kind, p.id)) \
                  ORDER BY d.at DESC, d.id DESC LIMIT $6) \
                 UNION ALL \
                 (SELECT t.at, 'step'::text, t.id, s.group_name, s.name, o.id, t.event, t.to_state, t.note, t.term, NULL \
                  FROM ops.operation_steps t JOIN ops.operations o ON o.id = t.operation_id \
                  JOIN ops.servers s ON s.id = o.server_id, place p \
                  WHERE ($1::text IS NULL OR s.group_name = $1) \
                    AND ($3::bigint IS NULL OR (t.at, 'step'::text, t.id) < (p.at, p.kind, p.id)) \
                  ORDER BY t.at DESC, t.id DESC LIMIT $6)) \
             SELECT at, kind, id, group_name, server, operation, what, outcome, summary, term, details, \
                    (extract(epoch FROM at) * 1000000)::bigint \
             FROM lines ORDER BY at DESC, kind DESC, id DESC LIMIT $6",
        )
        .bind(query.group.as_deref())
        .bind(query.actions_only)
        .bind(before.as_ref().map(|cursor| cursor.at_us))
        .bind(before.as_ref().map(|cursor| cursor.kind.clone()))
        .bind(before.as_ref().map(|cursor| cursor.id))
        .bind(limit + 1)
        .fetch_all(self.pool())
        .await
        .map_err(StoreError::database(TRIED))?;
        let wrong = StoreError::database(TRIED);
        let page = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let lines: Result<Vec<(HistoryView, Cursor)>, sqlx::Error> =
            rows.iter().take(page).map(line).collect();
        let lines = lines.map_err(wrong)?;
        let next = (rows.len() > page).then(|| lines.last().map(|(_, cursor)| cursor.text())).flatten();
        Ok((lines.into_iter().map(|(view, _)| view).collect(), next))
    }
}

fn line(row: &sqlx::postgres::PgRow) -> Result<(HistoryView, Cursor), sqlx::Error> {
    let kind: String = row.try_get(1)?;
    let cursor = Cursor { at_us: row.try_get(11)?, kind: kind.clone(), id: row.try_get(2)? };
    let view = HistoryView {
        at: row.try_get::<jiff_sqlx::Timestamp, _>(0)?.to_jiff(),
        kind,
        group: row.try_get(3)?,
        server: row.try_get(4)?,
        operation: row.try_get(5)?,
        what: row.try_get(6)?,
        outcome: row.try_get(7)?,
        summary: row.try_get(8)?,
        term: row.try_get(9)?,
        details: row.try_get(10)?,
    };
    Ok((view, cursor))
}
