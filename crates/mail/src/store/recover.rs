use std::time::Duration;

use uuid::Uuid;
use voiceai_postgres::sqlx::{self, PgPool, Row};

use super::claim::Key;
use super::parse;
use crate::Class;
use crate::error::MailError;

/// An attempt whose process is gone.
#[derive(Debug, Clone)]
pub(crate) struct Orphan {
    pub(crate) key: Key,
    pub(crate) rung: u32,
    pub(crate) crashes: u32,
    pub(crate) class: Class,
    pub(crate) content_began: bool,
    pub(crate) time_left: Duration,
}

/// How long after a claim its answer may still be on its way: longer than any statement may take.
const ANSWER_LATEST: Duration = Duration::from_secs(30);

/// Frees what `worker` has claimed without knowing it: the claim was committed, and the connection died before its answer. Nothing of
/// it was begun. `held` are the tokens it does know. Answers how many.
pub(crate) async fn lost(pool: &PgPool, worker: Uuid, held: &[Uuid]) -> Result<u64, MailError> {
    let done = sqlx::query(
        "UPDATE mail.attempts SET status = 'scheduled', worker_id = NULL, claim_token = NULL, claim_expires_at = NULL, \
         started_at = NULL, provider = NULL WHERE status = 'in_progress' AND worker_id = $1 AND NOT (claim_token = ANY($2)) \
         AND content_began_at IS NULL AND started_at < clock_timestamp() - make_interval(secs => $3)",
    )
    .bind(worker)
    .bind(held)
    .bind(ANSWER_LATEST.as_secs_f64())
    .execute(pool)
    .await
    .map_err(MailError::database("look for mail that was claimed unawares"))?;
    Ok(done.rows_affected())
}

/// What `gone` left behind, and what has been in progress for longer than any attempt can take. Nothing is changed yet: each is
/// ended like any other attempt, by its token.
pub(crate) async fn orphans(pool: &PgPool, gone: &[Uuid]) -> Result<Vec<Orphan>, MailError> {
    let tried = "look for mail whose process is gone";
    let rows = sqlx::query(
        "SELECT a.delivery_id, a.position, a.attempt_no, a.claim_token, a.rung, r.crash_count, d.class, \
             a.content_began_at IS NOT NULL AS content_began, \
             extract(epoch FROM d.expires_at - clock_timestamp())::float8 AS time_left \
         FROM mail.attempts a JOIN mail.deliveries d USING (delivery_id) \
             JOIN mail.delivery_recipients r USING (delivery_id, position) \
         WHERE a.status = 'in_progress' AND (a.worker_id = ANY($1) OR a.claim_expires_at < clock_timestamp()) LIMIT 1000",
    )
    .bind(gone)
    .fetch_all(pool)
    .await
    .map_err(MailError::database(tried))?;
    rows.iter()
        .map(|row| {
            let read = || -> Result<(Key, i32, i32, String, bool, f64), sqlx::Error> {
                let key = Key {
                    delivery_id: row.try_get(0)?,
                    position: row.try_get(1)?,
                    attempt_no: row.try_get(2)?,
                    token: row.try_get(3)?,
                };
                Ok((key, row.try_get(4)?, row.try_get(5)?, row.try_get(6)?, row.try_get(7)?, row.try_get(8)?))
            };
            let (key, rung, crashes, class, content_began, left) =
                read().map_err(MailError::database(tried))?;
            Ok(Orphan {
                key,
                rung: u32::try_from(rung).unwrap_or(0),
                crashes: u32::try_from(crashes).unwrap_or(0),
                class: parse("mail.deliveries", "class", &class)?,
                content_began,
                time_left: Duration::try_from_secs_f64(left.max(0.0)).unwrap_or(Duration::MAX),
            })
        })
        .collect()
}
