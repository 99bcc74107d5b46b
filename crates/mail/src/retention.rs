//! Deleting what has been kept long enough, in the leader, a small batch a statement.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::Tenure;
use voiceai_postgres::sqlx::{self, PgPool};
use voiceai_runtime::{BootTime, Pulse, boot_now};

use crate::error::{MailError, chain};
use crate::settings::Keep;
use crate::{backlog, metrics};

const BATCH: i64 = 500;
/// How often the leader reports the backlog of all processes.
const GAUGES_EVERY: Duration = Duration::from_secs(5);
/// How long a secret that was sent stays readable in a row: long enough for the attempt's own retries.
const SECRETS_KEPT: Duration = Duration::from_secs(3600);

/// What is deleted, each by an index: its name for the log, and the statement. `$1`: older than so many seconds, `$2`: at most.
const OLD: [(&str, &str); 5] = [
    (
        "messages",
        "DELETE FROM mail.delivery_payloads WHERE (delivery_id, part) IN (SELECT p.delivery_id, p.part \
         FROM mail.delivery_payloads p JOIN mail.deliveries d USING (delivery_id) \
         WHERE p.created_at < now() - make_interval(secs => $1) AND d.finished_at < now() - make_interval(secs => $1) \
             AND d.status IN ('sent', 'suppressed', 'failed') LIMIT $2)",
    ),
    (
        "messages with secrets",
        "DELETE FROM mail.delivery_payloads WHERE (delivery_id, part) IN (SELECT p.delivery_id, p.part \
         FROM mail.delivery_payloads p JOIN mail.deliveries d USING (delivery_id) \
         WHERE p.secret AND p.created_at < now() - make_interval(secs => $1) AND d.finished_at IS NOT NULL LIMIT $2)",
    ),
    (
        "deliveries",
        "DELETE FROM mail.deliveries WHERE delivery_id IN (SELECT delivery_id FROM mail.deliveries \
         WHERE finished_at < now() - make_interval(secs => $1) LIMIT $2)",
    ),
    (
        "feedback",
        "DELETE FROM mail.feedback WHERE message_id IN (SELECT message_id FROM mail.feedback \
         WHERE received_at < now() - make_interval(secs => $1) LIMIT $2)",
    ),
    (
        "rejected commands",
        "DELETE FROM mail.malformed_commands WHERE id IN (SELECT id FROM mail.malformed_commands \
         WHERE recorded_at < now() - make_interval(secs => $1) ORDER BY recorded_at LIMIT $2)",
    ),
];

/// The retention worker, which also reports the backlog: both are the leader's.
#[derive(Debug)]
pub struct Retention {
    pool: PgPool,
    keep: Keep,
}

impl Retention {
    /// A worker that has not begun.
    #[must_use]
    pub const fn new(pool: PgPool, keep: Keep) -> Self {
        Self { pool, keep }
    }

    /// Deletes old rows until `stopping`, whenever `tenure` says that this process leads. Leading only saves work here: two processes
    /// that delete the same old rows do no harm.
    pub async fn run(
        self,
        tenure: watch::Receiver<Option<Tenure>>,
        stopping: CancellationToken,
        pulse: Pulse,
    ) {
        tracing::info!("mail retention worker started");
        let tick = self.keep.every.min(GAUGES_EVERY);
        let mut sweep_at: Option<BootTime> = None;
        while !stopping.is_cancelled() {
            pulse.beat();
            let leading =
                || tenure.borrow().as_ref().is_some_and(Tenure::is_trusted) && !stopping.is_cancelled();
            if leading() {
                self.report().await;
                if sweep_at.is_none_or(|at| boot_now() >= at) {
                    sweep_at = Some(boot_now().saturating_add(self.keep.every));
                    if let Err(error) = self.sweep(&leading, &pulse).await {
                        tracing::warn!(error = %chain(&error), "retention of mail is put off");
                    }
                }
            } else {
                metrics::get().forget_backlog();
            }
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(tick) => {}
            }
        }
        tracing::info!("mail retention worker stopped");
    }

    async fn report(&self) {
        match backlog(&self.pool).await {
            Ok(backlog) => metrics::get().backlog(backlog.due, backlog.oldest, backlog.paused),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "the backlog of mail cannot be counted now");
            }
        }
    }

    async fn sweep(&self, leading: &impl Fn() -> bool, pulse: &Pulse) -> Result<(), MailError> {
        let Keep { bodies, deliveries, malformed, .. } = self.keep;
        let kept = [bodies, bodies.min(SECRETS_KEPT), deliveries, deliveries, malformed];
        for ((what, statement), kept) in OLD.into_iter().zip(kept) {
            let mut deleted = 0;
            while leading() {
                pulse.beat();
                let done = sqlx::query(statement)
                    .bind(kept.as_secs_f64())
                    .bind(BATCH)
                    .execute(&self.pool)
                    .await
                    .map_err(MailError::database("delete old mail"))?;
                deleted += done.rows_affected();
                if done.rows_affected() < BATCH.unsigned_abs() {
                    break;
                }
            }
            if deleted > 0 {
                tracing::info!(rows = deleted, what, "old mail deleted");
            }
        }
        sqlx::query(
            "WITH over AS (DELETE FROM mail.pauses WHERE until < now() - interval '1 day'), \
             settled AS (DELETE FROM mail.soft_bounces WHERE last_at < now() - interval '60 days') \
             DELETE FROM mail.suppressions WHERE expires_at < now() - interval '1 day'",
        )
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(MailError::database("delete what has expired"))
    }
}
