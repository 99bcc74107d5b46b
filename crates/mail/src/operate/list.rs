use jiff::Timestamp;
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx as _};
use serde::Serialize;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, PgPool, Row};

use super::cursor::Cursor;
use crate::delivery::DeliveryStatus;
use crate::error::MailError;
use crate::intake::Source;
use crate::store::parse;

/// Which deliveries; what is not given selects all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Where they stand.
    pub status: Option<DeliveryStatus>,
    /// Who asked.
    pub source: Option<Source>,
    /// On whose behalf.
    pub tenant: Option<String>,
    /// From which template.
    pub template: Option<String>,
    /// To whom; without regard to case.
    pub recipient: Option<String>,
    /// Accepted since then.
    pub since: Option<Timestamp>,
    /// Part of what was said last about any recipient.
    pub error_contains: Option<String>,
}

/// One delivery of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct DeliveryRow {
    /// The caller's id.
    pub delivery_id: String,
    /// Where it stands.
    pub status: DeliveryStatus,
    /// Who asked.
    pub source: String,
    /// How its content came.
    pub payload_mode: String,
    /// Its template.
    pub template_id: Option<String>,
    /// What it is for.
    pub class: String,
    /// On whose behalf.
    pub tenant: Option<String>,
    /// The sender's address.
    pub sender: String,
    /// Its subject line.
    pub subject: String,
    /// Its first recipient.
    pub recipient: String,
    /// How many it has.
    pub recipients: i32,
    /// Attempts made so far, over all recipients.
    pub attempts: i64,
    /// What was said last, in a few words.
    pub last_result: Option<String>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// The same in Unix milliseconds.
    pub created_at_ms: i64,
    /// When it is tried next.
    pub next_attempt_at: Option<Timestamp>,
    /// When its last recipient ended.
    pub finished_at: Option<Timestamp>,
    /// The delivery that this one repeats.
    pub resend_of: Option<String>,
}

impl DeliveryRow {
    /// Where a list goes on behind this row.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor { created_at_ms: self.created_at_ms, delivery_id: self.delivery_id.clone() }
    }
}

pub(super) const COLUMNS: &str = "\
    d.delivery_id, CASE WHEN d.open_count > 0 AND EXISTS (SELECT FROM mail.attempts a \
        WHERE a.delivery_id = d.delivery_id AND a.status = 'in_progress') THEN 'sending' ELSE d.status END AS shown, \
    d.source, d.payload_mode, d.template_id, d.class, d.tenant, d.sender, d.subject, r.address, d.recipients, \
    (SELECT COALESCE(sum(attempt_count), 0) FROM mail.delivery_recipients x WHERE x.delivery_id = d.delivery_id) AS attempts, \
    (SELECT x.last_result FROM mail.delivery_recipients x WHERE x.delivery_id = d.delivery_id AND x.last_result IS NOT NULL \
        ORDER BY x.status = 'sent', x.position LIMIT 1) AS last_result, \
    d.created_at, d.next_attempt_at, d.finished_at, d.resend_of";

/// Deliveries, newest first: by the millisecond they were accepted in, then by id, both descending; behind `after` when given.
///
/// # Errors
/// As the database says.
pub async fn list(
    pool: &PgPool,
    filter: &Filter,
    after: Option<&Cursor>,
    limit: u32,
) -> Result<Vec<DeliveryRow>, MailError> {
    let tried = "list deliveries";
    let sql = format!(
        "SELECT {COLUMNS} FROM mail.deliveries d \
         JOIN mail.delivery_recipients r ON r.delivery_id = d.delivery_id AND r.position = 0 \
         WHERE ($1::text IS NULL OR CASE $1 \
                 WHEN 'sending' THEN d.open_count > 0 AND EXISTS (SELECT FROM mail.attempts a \
                     WHERE a.delivery_id = d.delivery_id AND a.status = 'in_progress') \
                 ELSE d.status = $1 END) \
           AND ($2::text IS NULL OR d.source = $2) AND ($3::text IS NULL OR d.tenant = $3) \
           AND ($4::text IS NULL OR d.template_id = $4) \
           AND ($5::text IS NULL OR d.delivery_id IN \
                 (SELECT delivery_id FROM mail.delivery_recipients WHERE lower(address) = lower($5))) \
           AND ($6::timestamptz IS NULL OR d.created_at >= $6) \
           AND ($7::text IS NULL OR EXISTS (SELECT FROM mail.delivery_recipients x \
                 WHERE x.delivery_id = d.delivery_id AND strpos(lower(x.last_result), lower($7)) > 0)) \
           AND ($8::timestamptz IS NULL OR (d.created_at, d.delivery_id) < ($8, $9)) \
         ORDER BY d.created_at DESC, d.delivery_id DESC LIMIT $10"
    );
    let after_at = after.and_then(|cursor| Timestamp::from_millisecond(cursor.created_at_ms).ok());
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(filter.status.map(DeliveryStatus::as_str))
        .bind(filter.source.map(Source::as_str))
        .bind(&filter.tenant)
        .bind(&filter.template)
        .bind(&filter.recipient)
        .bind(filter.since.map(Timestamp::to_sqlx))
        .bind(&filter.error_contains)
        .bind(after_at.map(Timestamp::to_sqlx))
        .bind(after.map(|cursor| cursor.delivery_id.clone()))
        .bind(i64::from(limit))
        .fetch_all(pool)
        .await
        .map_err(MailError::database(tried))?;
    rows.iter().map(read).collect()
}

pub(super) fn read(row: &PgRow) -> Result<DeliveryRow, MailError> {
    let time =
        |name: &str| row.try_get::<Option<SqlTimestamp>, _>(name).map(|at| at.map(SqlTimestamp::to_jiff));
    let read = || -> Result<(String, DeliveryRow), sqlx::Error> {
        let created_at = row.try_get::<SqlTimestamp, _>("created_at")?.to_jiff();
        let made = DeliveryRow {
            delivery_id: row.try_get("delivery_id")?,
            status: DeliveryStatus::Queued,
            source: row.try_get("source")?,
            payload_mode: row.try_get("payload_mode")?,
            template_id: row.try_get("template_id")?,
            class: row.try_get("class")?,
            tenant: row.try_get("tenant")?,
            sender: row.try_get("sender")?,
            subject: row.try_get("subject")?,
            recipient: row.try_get("address")?,
            recipients: row.try_get("recipients")?,
            attempts: row.try_get("attempts")?,
            last_result: row.try_get("last_result")?,
            created_at,
            created_at_ms: created_at.as_millisecond(),
            next_attempt_at: time("next_attempt_at")?,
            finished_at: time("finished_at")?,
            resend_of: row.try_get("resend_of")?,
        };
        Ok((row.try_get("shown")?, made))
    };
    let (status, made) = read().map_err(MailError::database("read a delivery"))?;
    Ok(DeliveryRow { status: parse("mail.deliveries", "status", &status)?, ..made })
}
