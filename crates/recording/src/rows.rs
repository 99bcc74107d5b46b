//! The rows of `ops.recordings`.

use jiff::Timestamp;
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx as _};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;
use voiceai_postgres::sqlx::{self, PgConnection, PgPool, Row};
use voiceai_webhook::{NewEvent, emit_within};

use crate::error::RecordingError;
use crate::platform;

/// A recording as it stands.
#[derive(Debug, Clone)]
pub(crate) struct Recording {
    pub(crate) id: Uuid,
    pub(crate) call_id: Option<String>,
    pub(crate) tenant: Option<String>,
    pub(crate) state: String,
    pub(crate) original_bytes: Option<i64>,
    pub(crate) original_modified_at: Option<Timestamp>,
    pub(crate) original_deleted_at: Option<Timestamp>,
    pub(crate) processed_key: Option<String>,
    pub(crate) processed_bytes: Option<i64>,
}

/// What was made of an original.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) original_bytes: u64,
    pub(crate) original_sha256: String,
    pub(crate) original_modified_at: Option<Timestamp>,
    pub(crate) processed_key: String,
    pub(crate) metadata_key: String,
    pub(crate) processed_bytes: u64,
    pub(crate) processed_sha256: String,
    pub(crate) processed_format: String,
    pub(crate) seconds: f64,
    pub(crate) original_loudness: Option<f64>,
    pub(crate) loudness: Option<f64>,
    pub(crate) true_peak: Option<f64>,
}

impl Made {
    /// In milliseconds.
    pub(crate) fn duration_ms(&self) -> i64 {
        #[expect(clippy::cast_possible_truncation, reason = "at most two days")]
        let milliseconds = (self.seconds * 1000.0).round() as i64;
        milliseconds
    }
}

const COLUMNS: &str = "id, call_id, tenant, state, original_bytes, original_modified_at, original_deleted_at, processed_key, processed_bytes";

fn read(row: &sqlx::postgres::PgRow) -> Result<Recording, sqlx::Error> {
    let at = |column| row.try_get::<Option<SqlTimestamp>, _>(column).map(|at| at.map(SqlTimestamp::to_jiff));
    Ok(Recording {
        id: row.try_get("id")?,
        call_id: row.try_get("call_id")?,
        tenant: row.try_get("tenant")?,
        state: row.try_get("state")?,
        original_bytes: row.try_get("original_bytes")?,
        original_modified_at: at("original_modified_at")?,
        original_deleted_at: at("original_deleted_at")?,
        processed_key: row.try_get("processed_key")?,
        processed_bytes: row.try_get("processed_bytes")?,
    })
}

/// The id of the job that processes a recording: one, however often the recording is asked for.
#[must_use]
pub fn job_id(recording: Uuid) -> String {
    format!("recording:{recording}")
}

/// Makes the row of a recording, unless there is one; what is known of call and tenant is added to it. The second answer is true
/// when the row is new.
pub(crate) async fn declare(
    connection: &mut PgConnection,
    bucket: &str,
    key: &str,
    call: Option<&str>,
    tenant: Option<&str>,
) -> Result<(Recording, bool), RecordingError> {
    let tried = "write down a recording";
    let statement = format!(
        "INSERT INTO ops.recordings AS r (bucket, original_key, call_id, tenant) VALUES ($1, $2, $3, $4)
         ON CONFLICT (bucket, original_key) DO UPDATE SET
             call_id = COALESCE(r.call_id, excluded.call_id), tenant = COALESCE(r.tenant, excluded.tenant)
         RETURNING {COLUMNS}, r.xmax = 0 AS new"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(bucket)
        .bind(key)
        .bind(call)
        .bind(tenant)
        .fetch_one(connection)
        .await
        .map_err(RecordingError::database(tried))?;
    let new = row.try_get("new").map_err(RecordingError::database(tried))?;
    Ok((read(&row).map_err(RecordingError::database(tried))?, new))
}

/// The key of the recording with this id.
pub(crate) async fn key_of(
    connection: &mut PgConnection,
    bucket: &str,
    id: Uuid,
) -> Result<Option<String>, RecordingError> {
    sqlx::query_scalar("SELECT original_key FROM ops.recordings WHERE id = $1 AND bucket = $2")
        .bind(id)
        .bind(bucket)
        .fetch_optional(connection)
        .await
        .map_err(RecordingError::database("look up a recording"))
}

/// The event that tells of a recording's end.
pub(crate) struct Told<'a> {
    pub(crate) event_type: &'static str,
    pub(crate) id: String,
    pub(crate) data: &'a Value,
    pub(crate) bytes_max: usize,
}

/// Writes the result down and tells the tenant, both or neither.
pub(crate) async fn processed(
    pool: &PgPool,
    recording: &Recording,
    key: &str,
    made: &Made,
    told: &Told<'_>,
) -> Result<(), RecordingError> {
    let tried = "write down the result of a recording";
    let mut transaction = pool.begin().await.map_err(RecordingError::database(tried))?;
    sqlx::query(
        "UPDATE ops.recordings SET state = 'processed', error = NULL, updated_at = now(), processed_at = now(),
             original_bytes = $2, original_sha256 = $3, original_modified_at = $4, original_loudness_lufs = $5,
             processed_key = $6, metadata_key = $7, processed_bytes = $8, processed_sha256 = $9, processed_format = $10,
             duration_ms = $11, loudness_lufs = $12, true_peak_dbtp = $13, original_deleted_at = NULL, sweep_note = NULL
         WHERE id = $1",
    )
    .bind(recording.id)
    .bind(signed(made.original_bytes))
    .bind(&made.original_sha256)
    .bind(made.original_modified_at.map(jiff_sqlx::ToSqlx::to_sqlx))
    .bind(made.original_loudness)
    .bind(&made.processed_key)
    .bind(&made.metadata_key)
    .bind(signed(made.processed_bytes))
    .bind(&made.processed_sha256)
    .bind(&made.processed_format)
    .bind(made.duration_ms())
    .bind(made.loudness)
    .bind(made.true_peak)
    .execute(&mut *transaction)
    .await
    .map_err(RecordingError::database(tried))?;
    platform::note(&mut transaction, key, Ok(made)).await?;
    tell(&mut transaction, recording.tenant.as_deref(), told).await?;
    transaction.commit().await.map_err(RecordingError::database(tried))
}

/// Writes down why a recording was given up and tells the tenant, both or neither. One that was processed before stays so.
pub(crate) async fn failed(
    pool: &PgPool,
    recording: &Recording,
    key: &str,
    error: &str,
    told: &Told<'_>,
) -> Result<(), RecordingError> {
    let tried = "write down that a recording was given up";
    let mut transaction = pool.begin().await.map_err(RecordingError::database(tried))?;
    sqlx::query(
        "UPDATE ops.recordings SET state = CASE state WHEN 'processed' THEN state ELSE 'failed' END, error = $2, updated_at = now()
         WHERE id = $1",
    )
    .bind(recording.id)
    .bind(error)
    .execute(&mut *transaction)
    .await
    .map_err(RecordingError::database(tried))?;
    platform::note(&mut transaction, key, Err(error)).await?;
    tell(&mut transaction, recording.tenant.as_deref(), told).await?;
    transaction.commit().await.map_err(RecordingError::database(tried))
}

async fn tell(
    connection: &mut PgConnection,
    tenant: Option<&str>,
    told: &Told<'_>,
) -> Result<(), RecordingError> {
    let Some(tenant) = tenant else { return Ok(()) };
    let at = Timestamp::now();
    let event = NewEvent { tenant, event_type: told.event_type, id: &told.id, data: told.data, at };
    emit_within(connection, &event, told.bytes_max).await?;
    Ok(())
}

/// An original whose time is over.
#[derive(Debug, Clone)]
pub(crate) struct Due {
    pub(crate) id: Uuid,
    pub(crate) original_key: String,
    pub(crate) original_bytes: i64,
    pub(crate) original_modified_at: Option<Timestamp>,
    pub(crate) original_sha256: String,
    pub(crate) processed_key: String,
    pub(crate) metadata_key: String,
    pub(crate) processed_bytes: i64,
    pub(crate) processed_sha256: String,
    pub(crate) processed_at: Timestamp,
}

/// Originals processed before `before`, oldest first, going on after `after`.
pub(crate) async fn due(
    pool: &PgPool,
    bucket: &str,
    before: Timestamp,
    after: (Timestamp, Uuid),
    limit: i64,
) -> Result<Vec<Due>, RecordingError> {
    let tried = "look for originals whose time is over";
    let rows = sqlx::query(
        "SELECT id, original_key, original_bytes, original_modified_at, original_sha256, processed_key, metadata_key, processed_bytes,
                processed_sha256, processed_at
         FROM ops.recordings
         WHERE bucket = $1 AND state = 'processed' AND original_deleted_at IS NULL AND processed_at < $2
           AND (processed_at, id) > ($3, $4)
         ORDER BY processed_at, id LIMIT $5",
    )
    .bind(bucket)
    .bind(before.to_sqlx())
    .bind(after.0.to_sqlx())
    .bind(after.1)
    .bind(limit)
    .fetch_all(pool)
    .await
    .map_err(RecordingError::database(tried))?;
    let read = |row: &sqlx::postgres::PgRow| -> Result<Due, sqlx::Error> {
        Ok(Due {
            id: row.try_get("id")?,
            original_key: row.try_get("original_key")?,
            original_bytes: row.try_get("original_bytes")?,
            original_modified_at: row
                .try_get::<Option<SqlTimestamp>, _>("original_modified_at")?
                .map(SqlTimestamp::to_jiff),
            original_sha256: row.try_get("original_sha256")?,
            processed_key: row.try_get("processed_key")?,
            metadata_key: row.try_get("metadata_key")?,
            processed_bytes: row.try_get("processed_bytes")?,
            processed_sha256: row.try_get("processed_sha256")?,
            processed_at: row.try_get::<SqlTimestamp, _>("processed_at")?.to_jiff(),
        })
    };
    rows.iter().map(read).collect::<Result<_, _>>().map_err(RecordingError::database(tried))
}

/// Writes down that an original is gone, or why it stays.
pub(crate) async fn swept(pool: &PgPool, id: Uuid, note: Option<&str>) -> Result<(), RecordingError> {
    sqlx::query(
        "UPDATE ops.recordings SET updated_at = now(), sweep_note = $2,
             original_deleted_at = CASE WHEN $2::text IS NULL THEN now() END
         WHERE id = $1",
    )
    .bind(id)
    .bind(note)
    .execute(pool)
    .await
    .map(drop)
    .map_err(RecordingError::database("write down what became of an original"))
}

/// A recording that nobody processes.
#[derive(Debug, Clone)]
pub struct MissingRecording {
    /// Its row.
    pub id: Uuid,
    /// The original's key.
    pub key: String,
    /// Of which call.
    pub call_id: Option<String>,
    /// Whose.
    pub tenant: Option<String>,
    /// When it became known.
    pub since: Timestamp,
}

/// Recordings in `bucket` that have been known since `since` or later and were neither processed nor given up, and those of calls
/// that were closed while recordings were off; for these the row is only planned: its id is derived from the key.
///
/// # Errors
/// [`RecordingError::Database`].
pub async fn missing_recordings(
    pool: &PgPool,
    bucket: &str,
    since: Timestamp,
    tenant: Option<&str>,
    limit: i64,
) -> Result<Vec<MissingRecording>, RecordingError> {
    let tried = "look for recordings that nobody processes";
    let rows = sqlx::query(
        "SELECT id, original_key, call_id, tenant, created_at AS since FROM ops.recordings
         WHERE bucket = $1 AND state = 'queued' AND created_at >= $2 AND ($3::text IS NULL OR tenant = $3)
         UNION ALL
         SELECT md5('recording:' || $1 || '/' || recording_key)::uuid, recording_key, call_id, tenant, closed_at FROM ops.post_calls c
         WHERE recording_key IS NOT NULL AND closed_at >= $2 AND ($3::text IS NULL OR tenant = $3)
           AND NOT EXISTS (SELECT FROM ops.recordings r WHERE r.bucket = $1 AND r.original_key = c.recording_key)
         ORDER BY since LIMIT $4",
    )
    .bind(bucket)
    .bind(since.to_sqlx())
    .bind(tenant)
    .bind(limit)
    .fetch_all(pool)
    .await
    .map_err(RecordingError::database(tried))?;
    let read = |row: &sqlx::postgres::PgRow| -> Result<MissingRecording, sqlx::Error> {
        Ok(MissingRecording {
            id: row.try_get(0)?,
            key: row.try_get(1)?,
            call_id: row.try_get(2)?,
            tenant: row.try_get(3)?,
            since: row.try_get::<SqlTimestamp, _>(4)?.to_jiff(),
        })
    };
    rows.iter().map(read).collect::<Result<_, _>>().map_err(RecordingError::database(tried))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// How recordings stand as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Known and not yet processed.
    pub waiting: u64,
    /// How long the oldest of them has been known, in seconds.
    pub oldest_seconds: u64,
    /// Given up for good within a day.
    pub given_up: u64,
}

/// Looks how recordings in this bucket stand.
///
/// # Errors
/// As the database says.
pub async fn standing(pool: &PgPool, bucket: &str) -> Result<Standing, RecordingError> {
    let tried = "count recordings";
    let row = sqlx::query(
        "SELECT count(*), COALESCE(floor(max(extract(epoch FROM now() - created_at))), 0)::bigint, \
             (SELECT count(*) FROM ops.recordings WHERE bucket = $1 AND state = 'failed' AND updated_at > now() - interval '1 day') \
         FROM ops.recordings WHERE bucket = $1 AND state = 'queued'",
    )
    .bind(bucket)
    .fetch_one(pool)
    .await
    .map_err(RecordingError::database(tried))?;
    let number = |at: usize| -> Result<u64, RecordingError> {
        let number: i64 = row.try_get(at).map_err(RecordingError::database(tried))?;
        Ok(u64::try_from(number).unwrap_or(0))
    };
    Ok(Standing { waiting: number(0)?, oldest_seconds: number(1)?, given_up: number(2)? })
}
