//! What the jobs of housekeeping work with.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use voiceai_postgres::sqlx::{
    self, AssertSqlSafe, Connection as _, PgConnection, PgPool, Postgres, Transaction,
};
use voiceai_queue::{Attempt, JobError, Outcome};

use crate::error::PlatformError;
use crate::settings::HousekeepingSettings;
use crate::stripe::Stripe;
use crate::tables::{Needs, finish};

/// The queue of housekeeping: a sweep of hours takes no slot from the work of the moment.
pub const HOUSEKEEPING_QUEUE: &str = "housekeeping";

/// What the jobs of housekeeping work with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Upkeep {
    /// The platform's database, with our own tables beside it.
    pub pool: PgPool,
    /// What is kept how long, and the rest.
    pub settings: Arc<HousekeepingSettings>,
    /// Absent where no key is set.
    pub stripe: Option<Stripe>,
    /// Largest event that a tenant's webhooks are told, in bytes (`WEBHOOK_EVENT_BYTES_MAX`).
    pub event_bytes_max: usize,
}

impl Upkeep {
    /// Runs `work` where the tables it needs are there, and ends the job; see [`finish`].
    pub(crate) async fn finish<F>(
        &self,
        kind: &'static str,
        needs: Needs,
        work: F,
    ) -> Result<Outcome, JobError>
    where
        F: Future<Output = Result<Value, PlatformError>> + Send,
    {
        finish(&self.pool, kind, needs, work).await
    }

    /// Rows that one statement changes at most.
    pub(crate) fn batch(&self) -> i64 {
        i64::from(self.settings.batch)
    }

    /// How long the events that are summed up are kept.
    pub(crate) fn kept_events(&self) -> jiff::SignedDuration {
        jiff::SignedDuration::try_from(self.settings.retention.events)
            .unwrap_or(jiff::SignedDuration::from_hours(24 * 3_650))
    }

    /// A connection of the job's own, whose statements may take `limit`: the pool's are cut off after seconds, which is right for
    /// everything but work on whole tables. It is closed when it is dropped, so that no other work inherits the limit.
    pub(crate) async fn session(&self, limit: Duration) -> Result<PgConnection, PlatformError> {
        let tried = "open a connection for housekeeping";
        let mut connection = self.pool.acquire().await.map_err(PlatformError::database(tried))?.detach();
        let sql = format!("SET statement_timeout = {}; SET TIME ZONE 'UTC'", limit.as_millis());
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut connection)
            .await
            .map_err(PlatformError::database(tried))?;
        Ok(connection)
    }
}

/// Begins a transaction of short statements.
pub(crate) async fn begin<'a>(
    connection: &'a mut PgConnection,
    tried: &'static str,
) -> Result<Transaction<'a, Postgres>, PlatformError> {
    connection.begin().await.map_err(PlatformError::database(tried))
}

/// Ends when the attempt is to stop, before the next batch.
///
/// # Errors
/// [`PlatformError::Stopped`] then.
pub(crate) fn check_stop(attempt: &Attempt) -> Result<(), PlatformError> {
    if attempt.cancelled().is_cancelled() { Err(PlatformError::Stopped) } else { Ok(()) }
}

/// Rests between two batches, and not when the attempt is to stop.
pub(crate) async fn rest(attempt: &Attempt, pause: Duration) -> Result<(), PlatformError> {
    tokio::select! {
        () = attempt.cancelled().cancelled() => Err(PlatformError::Stopped),
        () = tokio::time::sleep(pause) => Ok(()),
    }
}

/// Marks something as done, in the caller's transaction. False: it had been.
pub(crate) async fn mark(
    connection: &mut PgConnection,
    purpose: &str,
    subject: &str,
) -> Result<bool, PlatformError> {
    let sql = "INSERT INTO ops.housekeeping_marks (purpose, subject) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    let done = sqlx::query(sql).bind(purpose).bind(subject).execute(connection).await;
    Ok(done.map_err(PlatformError::database("mark what was done"))?.rows_affected() > 0)
}

/// Writes a job to the outbox, in the caller's transaction: it is enqueued when that commits.
pub(crate) async fn enqueue(
    connection: &mut PgConnection,
    queue: &str,
    kind: &str,
    payload: &Value,
) -> Result<(), PlatformError> {
    sqlx::query("INSERT INTO ops.outbox (queue, kind, payload) VALUES ($1, $2, $3::json)")
        .bind(queue)
        .bind(kind)
        .bind(payload.to_string())
        .execute(connection)
        .await
        .map_err(PlatformError::database("write a job to the outbox"))?;
    Ok(())
}

/// Tells those who run the platform, in the caller's transaction.
pub(crate) async fn notice(
    connection: &mut PgConnection,
    event: &str,
    subject: &str,
    reason: &str,
    at: Timestamp,
) -> Result<(), PlatformError> {
    let notice = serde_json::json!({ "event": event, "subject": subject, "reason": reason, "at": at });
    enqueue(connection, "email-queue", "notification.send", &notice).await
}

/// Reads a row into a struct by the names of its fields.
macro_rules! from_row {
    ($type:ty { $($field:ident),+ $(,)? }) => {
        impl<'r> voiceai_postgres::sqlx::FromRow<'r, voiceai_postgres::sqlx::postgres::PgRow> for $type {
            fn from_row(row: &'r voiceai_postgres::sqlx::postgres::PgRow) -> Result<Self, voiceai_postgres::sqlx::Error> {
                use voiceai_postgres::sqlx::Row as _;
                Ok(Self { $($field: row.try_get(stringify!($field))?),+ })
            }
        }
    };
}
pub(crate) use from_row;
