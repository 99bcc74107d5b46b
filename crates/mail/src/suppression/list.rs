use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde::Serialize;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, PgPool, Row};

use crate::error::MailError;

/// One entry of the list of those who must not be written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Suppression {
    /// Rises with time.
    pub id: i64,
    /// In lower case.
    pub address: String,
    /// Only for this tenant; empty: for all.
    pub tenant: String,
    /// Only for this class; empty: for all.
    pub class: String,
    /// `hard_bounce`, `soft_bounce`, `complaint`, `unsubscribe` or `operator`.
    pub reason: String,
    /// More of it.
    pub detail: Option<String>,
    /// What it came from.
    pub origin: Option<String>,
    /// Since when.
    pub created_at: Timestamp,
    /// Until when; for good where absent.
    pub expires_at: Option<Timestamp>,
}

/// Entries older than `before` (an id), newest first; expired ones are left out.
///
/// # Errors
/// As the database says.
pub async fn suppressions(
    pool: &PgPool,
    address: Option<&str>,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Suppression>, MailError> {
    let tried = "list suppressed addresses";
    let rows = sqlx::query(
        "SELECT id, address, tenant, class, reason, detail, origin, created_at, expires_at FROM mail.suppressions \
         WHERE ($1::text IS NULL OR address = lower($1)) AND ($2::bigint IS NULL OR id < $2) \
             AND (expires_at IS NULL OR expires_at > clock_timestamp()) ORDER BY id DESC LIMIT $3",
    )
    .bind(address)
    .bind(before)
    .bind(limit)
    .fetch_all(pool)
    .await
    .map_err(MailError::database(tried))?;
    let read = |row: &PgRow| -> Result<Suppression, sqlx::Error> {
        Ok(Suppression {
            id: row.try_get(0)?,
            address: row.try_get(1)?,
            tenant: row.try_get(2)?,
            class: row.try_get(3)?,
            reason: row.try_get(4)?,
            detail: row.try_get(5)?,
            origin: row.try_get(6)?,
            created_at: row.try_get::<SqlTimestamp, _>(7)?.to_jiff(),
            expires_at: row.try_get::<Option<SqlTimestamp>, _>(8)?.map(SqlTimestamp::to_jiff),
        })
    };
    rows.iter().map(|row| read(row).map_err(MailError::database(tried))).collect()
}
