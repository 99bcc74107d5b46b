//! The alarm when the newest proved backup is too old.

use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use opentelemetry::KeyValue;
use serde_json::json;
use sqlx::Row as _;
use voiceai_postgres::{PgPool, sqlx};
use voiceai_runtime::LeaderGauge;
use voiceai_service::Rounds;

/// How often the leader looks.
pub const EVERY: Duration = Duration::from_secs(60);
/// Longest time for a look.
const LOOK_MAX: Duration = Duration::from_secs(30);

const NEWEST: &str = "
    SELECT (SELECT max(snapshot_at) FROM ops.backups
            WHERE state = 'stored' AND proved_at IS NOT NULL AND removed_at IS NULL AND schemas = '{}'
              AND target IS NOT DISTINCT FROM $1),
           COALESCE((SELECT min(started_at) FROM ops.backups WHERE target IS NOT DISTINCT FROM $1),
                    (SELECT created_at FROM ops.installation))";

/// Looks, on the leader, at the age of the newest proved backup of each database.
#[derive(Clone, Debug)]
pub struct Watch {
    pool: PgPool,
    max_age: Duration,
    /// Of the service's own database and of each further one.
    targets: Vec<Option<String>>,
    age: LeaderGauge,
}

impl Watch {
    /// `targets` are the further databases' names.
    #[must_use]
    pub fn new(pool: PgPool, max_age: Duration, targets: impl IntoIterator<Item = String>) -> Self {
        let age = LeaderGauge::new(
            &opentelemetry::global::meter("voiceai"),
            "voiceai.backup.proved_age",
            "s",
            "Age of the data in the newest backup that a restore has proved; given by the leader alone",
        );
        let targets = std::iter::once(None).chain(targets.into_iter().map(Some)).collect();
        Self { pool, max_age, targets, age }
    }

    /// One look: the gauge of each database, and where a proof is overdue a notice a day.
    ///
    /// # Errors
    /// The driver's.
    pub async fn look(&self, now: Timestamp) -> Result<(), sqlx::Error> {
        for target in &self.targets {
            let row = sqlx::query(NEWEST).bind(target).fetch_one(&self.pool).await?;
            let at = |column: usize| row.get::<Option<SqlTimestamp>, _>(column).map(SqlTimestamp::to_jiff);
            let (proved, since) = (at(0), at(1));
            let name = target.as_deref().unwrap_or("own");
            if let Some(proved) = proved {
                self.age.set(&[KeyValue::new("database", name.to_owned())], seconds(now, proved));
            }
            if let Some(reason) = overdue(now, proved, since, self.max_age) {
                tracing::error!(database = name, reason, "no backup was proved for too long");
                let day = now.strftime("%Y-%m-%d");
                notify(&self.pool, "backup_overdue", name, &reason, &format!("{name}:{day}"), now).await?;
            }
        }
        Ok(())
    }
}

impl Rounds for Watch {
    async fn round(&mut self) -> Duration {
        match tokio::time::timeout(LOOK_MAX, self.look(Timestamp::now())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the age of the backups cannot be read now"),
            Err(_) => tracing::warn!("the age of the backups was not read within {LOOK_MAX:?}"),
        }
        EVERY
    }

    fn silence(&mut self) {
        self.age.clear();
    }
}

fn seconds(now: Timestamp, at: Timestamp) -> f64 {
    now.duration_since(at).as_secs_f64().max(0.0)
}

/// Why people must be told, if they must: measured from the newest proved data, and while there are none from `since`, when
/// backups, or else the installation, began.
fn overdue(
    now: Timestamp,
    proved: Option<Timestamp>,
    since: Option<Timestamp>,
    max_age: Duration,
) -> Option<String> {
    let hours = |at| seconds(now, at) / 3600.0;
    let too_old = |at: &Timestamp| seconds(now, *at) > max_age.as_secs_f64();
    match proved {
        Some(at) if too_old(&at) => {
            Some(format!("the newest proved backup has data of {:.0} h ago ({at:.0})", hours(at)))
        }
        Some(_) => None,
        None => since
            .filter(too_old)
            .map(|at| format!("no backup was proved since {at:.0}, {:.0} h ago", hours(at))),
    }
}

/// Enqueues a notice through the outbox, once for each `key`.
pub(super) async fn notify(
    pool: &PgPool,
    event: &str,
    subject: &str,
    reason: &str,
    key: &str,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    let payload = json!({ "event": event, "subject": subject, "reason": reason, "at": at });
    sqlx::query(
        "INSERT INTO ops.outbox (id, queue, kind, payload) VALUES ($1, 'email-queue', 'notification.send', $2::json) \
         ON CONFLICT DO NOTHING",
    )
    .bind(format!("tasker:{event}:{key}"))
    .bind(payload.to_string())
    .execute(pool)
    .await
    .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_once_the_newest_proof_or_the_lack_of_one_is_too_old() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let (now, day) = (at("2026-11-22T12:00:00Z"), Duration::from_secs(86_400));
        let fresh = Some(at("2026-11-21T12:00:00Z"));
        let old = Some(at("2026-11-21T11:59:59Z"));
        for (proved, since, told) in [
            (fresh, old, false),
            (old, old, true),
            (None, fresh, false),
            (None, old, true),
            (None, None, false),
            (Some(at("2026-11-23T00:00:00Z")), None, false),
        ] {
            assert_eq!(overdue(now, proved, since, day).is_some(), told, "{proved:?} {since:?}");
        }
        assert!(overdue(now, old, old, day).is_some_and(|reason| reason.contains("24 h ago")));
    }
}
