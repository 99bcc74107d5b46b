//! A table of calls or conversations, by what its columns mean.

use voiceai_postgres::sqlx::PgConnection;

use crate::error::RecordingError;
use crate::platform::{CALLS, CONVERSATIONS, Column, Table};

/// A table whose rows can be closed.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) table: String,
    pub(crate) id: Column,
    pub(crate) ended: Column,
    pub(crate) started: Option<Column>,
    pub(crate) status: Option<Column>,
    pub(crate) duration: Option<Column>,
    pub(crate) tenant: Option<Column>,
    pub(crate) recording: Option<Column>,
    /// Of a conversation: its call.
    pub(crate) call: Option<Column>,
    pub(crate) updated: Option<Column>,
}

impl Shape {
    /// Nothing when it has no id, or no column for the end.
    pub(crate) fn of(table: &Table) -> Option<Self> {
        let pick = |names: &[&str]| table.pick(names).cloned();
        let time = |names: &[&str]| pick(names).filter(Column::is_time);
        Some(Self {
            id: pick(&["id"])?,
            ended: time(&["endedAt", "ended_at", "endTime", "end_time"])?,
            started: time(&["startedAt", "started_at", "startTime", "start_time"]),
            status: pick(&["status", "state"]),
            duration: pick(&["durationSeconds", "duration_seconds"]),
            tenant: pick(&[
                "tenantId",
                "tenant_id",
                "teamId",
                "team_id",
                "organizationId",
                "organization_id",
            ]),
            recording: pick(&["recordingKey", "recording_key", "recordingUrl", "recording_url"]),
            call: pick(&["callId", "call_id"]),
            updated: time(&["updatedAt", "updated_at"]),
            table: table.name.clone(),
        })
    }
}

/// What the platform has.
#[derive(Debug, Clone)]
pub(crate) struct Shapes {
    /// Conversations; calls where there are none.
    pub(crate) main: Option<Shape>,
    /// The calls that conversations belong to.
    pub(crate) calls: Option<Shape>,
    /// Why there is no `main`.
    pub(crate) why_not: Option<String>,
}

impl Shapes {
    /// Looks them up; `configured` is `POST_CALL_TABLE`.
    pub(crate) async fn look_up(
        connection: &mut PgConnection,
        configured: Option<&str>,
    ) -> Result<Self, RecordingError> {
        let names: Vec<&str> = match configured {
            Some(name) => vec![name],
            None => CONVERSATIONS.into_iter().chain(CALLS).collect(),
        };
        let Some(table) = Table::first(connection, &names).await? else {
            let why = format!("table absent, skipped: there is no {}", names.join(", "));
            return Ok(Self { main: None, calls: None, why_not: Some(why) });
        };
        let Some(main) = Shape::of(&table) else {
            let why = format!("table absent, skipped: {} lacks an id or a time of its end", table.name);
            return Ok(Self { main: None, calls: None, why_not: Some(why) });
        };
        let calls = match main.call {
            Some(_) => Table::first(connection, &CALLS).await?.as_ref().and_then(Shape::of),
            None => None,
        };
        let calls = calls.filter(|calls| calls.table != main.table);
        Ok(Self { main: Some(main), calls, why_not: None })
    }
}
