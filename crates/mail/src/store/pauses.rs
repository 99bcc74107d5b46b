use std::time::Duration;

use voiceai_postgres::sqlx::{self, PgPool, Row};

use crate::error::MailError;

/// Lets the provider rest after a fault of its own. A fault during a rest neither lengthens nor counts: it began before. Answers how
/// long it rests now, and after how many faults in a row.
pub(crate) async fn rest(
    pool: &PgPool,
    provider: &str,
    reason: &str,
    by: &str,
    pause_after: impl Fn(u32) -> Duration,
) -> Result<Option<(Duration, u32)>, MailError> {
    let tried = "let the mail provider rest";
    let row = sqlx::query(
        "SELECT faults, until > clock_timestamp() FROM mail.pauses \
         WHERE scope = 'provider' AND subject = $1 AND automatic",
    )
    .bind(provider)
    .fetch_optional(pool)
    .await
    .map_err(MailError::database(tried))?;
    let read = |row: sqlx::postgres::PgRow| -> Result<(i32, bool), sqlx::Error> {
        Ok((row.try_get(0)?, row.try_get(1)?))
    };
    let (faults, resting) =
        row.map(read).transpose().map_err(MailError::database(tried))?.unwrap_or((0, false));
    if resting {
        return Ok(None);
    }
    let counted = u32::try_from(faults).unwrap_or(0).saturating_add(1);
    let pause = pause_after(counted);
    let done = sqlx::query(
        "INSERT INTO mail.pauses (scope, subject, automatic, reason, created_by, until, faults) \
         VALUES ('provider', $1, true, $2, $3, clock_timestamp() + make_interval(secs => $4), $5) \
         ON CONFLICT (scope, subject, automatic) DO UPDATE SET reason = EXCLUDED.reason, created_by = EXCLUDED.created_by, \
             created_at = clock_timestamp(), until = EXCLUDED.until, faults = EXCLUDED.faults \
         WHERE pauses.faults = $5 - 1 AND pauses.until <= clock_timestamp()",
    )
    .bind(provider)
    .bind(reason)
    .bind(by)
    .bind(pause.as_secs_f64())
    .bind(faults.saturating_add(1))
    .execute(pool)
    .await
    .map_err(MailError::database(tried))?;
    // Where another process was faster its rest holds.
    Ok((done.rows_affected() == 1).then_some((pause, counted)))
}

/// The provider works again. True when it had been at rest.
pub(crate) async fn recovered(pool: &PgPool, provider: &str) -> Result<bool, MailError> {
    let done = sqlx::query("DELETE FROM mail.pauses WHERE scope = 'provider' AND subject = $1 AND automatic")
        .bind(provider)
        .execute(pool)
        .await
        .map_err(MailError::database("end the rest of the mail provider"))?;
    Ok(done.rows_affected() > 0)
}
