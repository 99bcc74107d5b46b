//! The record of stream commands that no delivery could be made of.

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use voiceai_postgres::sqlx::{self, PgPool, Row};

use crate::error::MailError;
use crate::intake::Rejected;
use crate::stream::Read;

/// Longest kept text of one field.
const FIELD_LONGEST: usize = 4096;
/// Most kept fields.
const FIELDS_MAX: usize = 64;

/// One rejected command.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Malformed {
    /// Rises with time.
    pub id: i64,
    /// When it was rejected.
    pub recorded_at: Timestamp,
    /// The stream it came by.
    pub stream: String,
    /// Its id there.
    pub stream_entry_id: String,
    /// The caller's id, as far as it could be read.
    pub delivery_id: Option<String>,
    /// Who asked, as far as it could be read.
    pub source: Option<String>,
    /// The caller's key, as far as it could be read.
    pub idempotency_key: Option<String>,
    /// A fixed word.
    pub failure_code: String,
    /// What is wrong.
    pub failure_message: String,
}

/// Writes one down. False: it was written before.
pub(crate) async fn record(
    pool: &PgPool,
    stream: &str,
    entry: &str,
    read: &Read,
    rejected: &Rejected,
) -> Result<bool, MailError> {
    let short = |name: &str| read.get(name).map(|value| kept(value, 256));
    let fields: Map<String, Value> = read
        .fields
        .iter()
        .take(FIELDS_MAX)
        .map(|(name, value)| (kept(name, 256), kept(value, FIELD_LONGEST).into()))
        .collect();
    let done = sqlx::query(
        "INSERT INTO mail.malformed_commands \
             (stream, stream_entry_id, delivery_id, source, idempotency_key, failure_code, failure_message, fields) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (stream, stream_entry_id) DO NOTHING",
    )
    .bind(stream)
    .bind(entry)
    .bind(short("delivery_id"))
    .bind(short("source"))
    .bind(short("idempotency_key"))
    .bind(rejected.code)
    .bind(kept(&rejected.message, 1_000))
    .bind(Value::Object(fields))
    .execute(pool)
    .await
    .map_err(MailError::database("record a rejected command"))?;
    Ok(done.rows_affected() == 1)
}

/// Text that a row takes: no NUL, and not more than so many bytes.
fn kept(text: &str, longest: usize) -> String {
    let end = (0..=longest.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].replace('\0', "\u{fffd}")
}

/// Rejected commands older than `before` (an id), newest first.
///
/// # Errors
/// As the database says.
pub async fn list(pool: &PgPool, before: Option<i64>, limit: i64) -> Result<Vec<Malformed>, MailError> {
    let tried = "list rejected commands";
    let rows = sqlx::query(
        "SELECT id, recorded_at, stream, stream_entry_id, delivery_id, source, idempotency_key, failure_code, failure_message \
         FROM mail.malformed_commands WHERE ($1::bigint IS NULL OR id < $1) ORDER BY id DESC LIMIT $2",
    )
    .bind(before)
    .bind(limit)
    .fetch_all(pool)
    .await
    .map_err(MailError::database(tried))?;
    let read = |row: &sqlx::postgres::PgRow| -> Result<Malformed, sqlx::Error> {
        Ok(Malformed {
            id: row.try_get(0)?,
            recorded_at: row.try_get::<SqlTimestamp, _>(1)?.to_jiff(),
            stream: row.try_get(2)?,
            stream_entry_id: row.try_get(3)?,
            delivery_id: row.try_get(4)?,
            source: row.try_get(5)?,
            idempotency_key: row.try_get(6)?,
            failure_code: row.try_get(7)?,
            failure_message: row.try_get(8)?,
        })
    };
    rows.iter().map(|row| read(row).map_err(MailError::database(tried))).collect()
}
