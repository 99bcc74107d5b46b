use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde::Serialize;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, PgPool, Row};

use super::list::{COLUMNS, DeliveryRow, read};
use crate::error::MailError;

/// A delivery with everything that is known of it, its content apart.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Delivery {
    /// As in a list.
    #[serde(flatten)]
    pub row: DeliveryRow,
    /// The caller's key.
    pub idempotency_key: String,
    /// As asked for.
    pub locale: Option<String>,
    /// As found.
    pub rendered_locale: Option<String>,
    /// In the header `Message-ID`, without the angle brackets.
    pub message_id: String,
    /// The caller's id of its own request.
    pub request_id: Option<String>,
    /// The caller's trace.
    pub trace_id: Option<String>,
    /// Not tried again from here on.
    pub expires_at: Timestamp,
    /// Whether the content is still kept.
    pub content_kept: bool,
    /// Why it is, or was, a dead letter.
    pub dead_letter: Option<String>,
    /// Everybody who gets it.
    pub recipient_rows: Vec<RecipientRow>,
}

/// One recipient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct RecipientRow {
    /// Its number in the delivery.
    pub position: i16,
    /// `to`, `cc` or `bcc`.
    pub kind: String,
    /// Where mail goes.
    pub address: String,
    /// Where it stands.
    pub status: String,
    /// Attempts made.
    pub attempts: i32,
    /// The provider's id of it.
    pub provider_id: Option<String>,
    /// What was said last.
    pub last_result: Option<String>,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct AttemptRow {
    /// Its recipient's number.
    pub position: i16,
    /// Its own number, from 1.
    pub attempt_no: i32,
    /// Where it stands.
    pub status: String,
    /// When it was, or is, due.
    pub due_at: Timestamp,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When content began to go out.
    pub content_began_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Why it waits although it may be due: `held`, `domain:…`, `tenant:…`.
    pub parked: Option<String>,
    /// `smtp`, `ses` or `stub`.
    pub provider: Option<String>,
    /// How far it came.
    pub phase: Option<String>,
    /// What was at fault.
    pub reason: Option<String>,
    /// The reply's three digits.
    pub code: Option<i32>,
    /// The reply's enhanced status code.
    pub enhanced: Option<String>,
    /// What was said.
    pub detail: Option<String>,
    /// By whom.
    pub host: Option<String>,
    /// Version and cipher of the connection.
    pub tls: Option<String>,
    /// How long it took.
    pub duration_ms: Option<i64>,
    /// The provider's id of the mail.
    pub provider_id: Option<String>,
}

/// One delivery; `None` where there is none of this id, whatever its form.
///
/// # Errors
/// As the database says.
pub async fn show(pool: &PgPool, delivery_id: &str) -> Result<Option<Delivery>, MailError> {
    let tried = "read a delivery";
    if delivery_id.contains('\0') {
        return Ok(None);
    }
    let sql = format!(
        "SELECT {COLUMNS}, d.idempotency_key, d.locale, d.rendered_locale, d.message_id, d.request_id, d.trace_id, d.expires_at, \
            EXISTS (SELECT FROM mail.delivery_payloads p WHERE p.delivery_id = d.delivery_id) AS content_kept, \
            (SELECT concat_ws(': ', reason, error) FROM mail.dead_letters l WHERE l.delivery_id = d.delivery_id) AS dead_letter \
         FROM mail.deliveries d JOIN mail.delivery_recipients r ON r.delivery_id = d.delivery_id AND r.position = 0 \
         WHERE d.delivery_id = $1"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(delivery_id)
        .fetch_optional(pool)
        .await
        .map_err(MailError::database(tried))?;
    let Some(row) = row else { return Ok(None) };
    let recipient_rows = recipients(pool, delivery_id).await?;
    let shown = read(&row)?;
    let more = || -> Result<Delivery, sqlx::Error> {
        Ok(Delivery {
            row: shown,
            idempotency_key: row.try_get("idempotency_key")?,
            locale: row.try_get("locale")?,
            rendered_locale: row.try_get("rendered_locale")?,
            message_id: row.try_get("message_id")?,
            request_id: row.try_get("request_id")?,
            trace_id: row.try_get("trace_id")?,
            expires_at: row.try_get::<SqlTimestamp, _>("expires_at")?.to_jiff(),
            content_kept: row.try_get("content_kept")?,
            dead_letter: row.try_get("dead_letter")?,
            recipient_rows,
        })
    };
    more().map(Some).map_err(MailError::database(tried))
}

async fn recipients(pool: &PgPool, delivery_id: &str) -> Result<Vec<RecipientRow>, MailError> {
    let tried = "read a delivery's recipients";
    let rows = sqlx::query(
        "SELECT position, kind, address, status, attempt_count, provider_id, last_result FROM mail.delivery_recipients \
         WHERE delivery_id = $1 ORDER BY position",
    )
    .bind(delivery_id)
    .fetch_all(pool)
    .await
    .map_err(MailError::database(tried))?;
    let read = |row: &PgRow| -> Result<RecipientRow, sqlx::Error> {
        Ok(RecipientRow {
            position: row.try_get(0)?,
            kind: row.try_get(1)?,
            address: row.try_get(2)?,
            status: row.try_get(3)?,
            attempts: row.try_get(4)?,
            provider_id: row.try_get(5)?,
            last_result: row.try_get(6)?,
        })
    };
    rows.iter().map(|row| read(row).map_err(MailError::database(tried))).collect()
}

/// All attempts of a delivery, the one that is to come included.
///
/// # Errors
/// As the database says.
pub async fn attempts(pool: &PgPool, delivery_id: &str) -> Result<Vec<AttemptRow>, MailError> {
    let tried = "read a delivery's attempts";
    if delivery_id.contains('\0') {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "SELECT position, attempt_no, status, due_at, started_at, content_began_at, finished_at, parked, provider, phase, reason, \
             code, enhanced, detail, host, tls, duration_ms, provider_id FROM mail.attempts WHERE delivery_id = $1 \
         ORDER BY position, attempt_no",
    )
    .bind(delivery_id)
    .fetch_all(pool)
    .await
    .map_err(MailError::database(tried))?;
    let read = |row: &PgRow| -> Result<AttemptRow, sqlx::Error> {
        let time =
            |at: usize| row.try_get::<Option<SqlTimestamp>, _>(at).map(|t| t.map(SqlTimestamp::to_jiff));
        Ok(AttemptRow {
            position: row.try_get(0)?,
            attempt_no: row.try_get(1)?,
            status: row.try_get(2)?,
            due_at: row.try_get::<SqlTimestamp, _>(3)?.to_jiff(),
            started_at: time(4)?,
            content_began_at: time(5)?,
            finished_at: time(6)?,
            parked: row.try_get(7)?,
            provider: row.try_get(8)?,
            phase: row.try_get(9)?,
            reason: row.try_get(10)?,
            code: row.try_get(11)?,
            enhanced: row.try_get(12)?,
            detail: row.try_get(13)?,
            host: row.try_get(14)?,
            tls: row.try_get(15)?,
            duration_ms: row.try_get(16)?,
            provider_id: row.try_get(17)?,
        })
    };
    rows.iter().map(|row| read(row).map_err(MailError::database(tried))).collect()
}
