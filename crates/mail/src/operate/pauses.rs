use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde::Serialize;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, PgPool, Row};

use crate::delivery::words;
use crate::error::MailError;
use crate::store::claim;

words! {
    /// What a pause keeps mail from.
    Scope {
        /// Everything that goes through a provider: `smtp` or `ses`.
        Provider = "provider",
        /// Recipients at one domain.
        Domain = "domain",
        /// Mail of one tenant.
        Tenant = "tenant",
    }
}

/// A pause that is not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Pause {
    /// What it keeps mail from.
    pub scope: String,
    /// Which one.
    pub subject: String,
    /// True when a fault of the provider made it.
    pub automatic: bool,
    /// Why.
    pub reason: String,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub until: Timestamp,
    /// Faults in a row, for an automatic one.
    pub faults: i32,
}

/// Keeps mail from `subject` for `length`. A pause that a person made before is replaced.
///
/// # Errors
/// As the database says.
pub async fn pause(
    pool: &PgPool,
    scope: Scope,
    subject: &str,
    reason: &str,
    by: &str,
    length: Duration,
) -> Result<(), MailError> {
    sqlx::query(
        "INSERT INTO mail.pauses (scope, subject, automatic, reason, created_by, until) \
         VALUES ($1, $2, false, $3, $4, clock_timestamp() + make_interval(secs => $5)) \
         ON CONFLICT (scope, subject, automatic) DO UPDATE SET reason = EXCLUDED.reason, created_by = EXCLUDED.created_by, \
             created_at = clock_timestamp(), until = EXCLUDED.until",
    )
    .bind(scope.as_str())
    .bind(subject)
    .bind(reason)
    .bind(by)
    .bind(length.as_secs_f64())
    .execute(pool)
    .await
    .map(drop)
    .map_err(MailError::database("pause mail"))
}

/// Ends every pause of `subject`, automatic ones too, and brings back at once what it had kept. False: there was none.
///
/// # Errors
/// As the database says.
pub async fn resume(pool: &PgPool, scope: Scope, subject: &str) -> Result<bool, MailError> {
    let done = sqlx::query("DELETE FROM mail.pauses WHERE scope = $1 AND subject = $2")
        .bind(scope.as_str())
        .bind(subject)
        .execute(pool)
        .await
        .map_err(MailError::database("resume mail"))?;
    if scope != Scope::Provider {
        claim::unpark(pool, &format!("{scope}:{subject}")).await?;
    }
    sqlx::query("SELECT pg_notify('voiceai_mail', '')")
        .execute(pool)
        .await
        .map_err(MailError::database("wake those who send mail"))?;
    Ok(done.rows_affected() > 0)
}

/// Every pause that is not over, the latest first.
///
/// # Errors
/// As the database says.
pub async fn pauses(pool: &PgPool) -> Result<Vec<Pause>, MailError> {
    let tried = "list pauses of mail";
    let rows = sqlx::query(
        "SELECT scope, subject, automatic, reason, created_by, created_at, until, faults FROM mail.pauses \
         WHERE until > clock_timestamp() ORDER BY created_at DESC",
    )
    .fetch_all(pool)
    .await
    .map_err(MailError::database(tried))?;
    let read = |row: &PgRow| -> Result<Pause, sqlx::Error> {
        Ok(Pause {
            scope: row.try_get(0)?,
            subject: row.try_get(1)?,
            automatic: row.try_get(2)?,
            reason: row.try_get(3)?,
            created_by: row.try_get(4)?,
            created_at: row.try_get::<SqlTimestamp, _>(5)?.to_jiff(),
            until: row.try_get::<SqlTimestamp, _>(6)?.to_jiff(),
            faults: row.try_get(7)?,
        })
    };
    rows.iter().map(|row| read(row).map_err(MailError::database(tried))).collect()
}
