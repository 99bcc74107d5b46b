use std::collections::HashMap;
use std::time::Duration;

use uuid::Uuid;
use voiceai_postgres::sqlx::{self, PgPool, Row};
use voiceai_runtime::BootTime;

use crate::error::MailError;

/// A process that sends, as its row shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Beat {
    pub(crate) worker: Uuid,
    pub(crate) instance: String,
    pub(crate) beat: i64,
}

/// Puts this process on the list, or says that it still lives. A row that somebody took away is made anew: its claims are gone, but
/// new ones may be made.
pub(crate) async fn beat(pool: &PgPool, worker: Uuid, instance: &str, host: &str) -> Result<(), MailError> {
    sqlx::query(
        "INSERT INTO mail.workers (worker_id, instance_id, host) VALUES ($1, $2, $3) \
         ON CONFLICT (worker_id) DO UPDATE SET beat = workers.beat + 1, seen_at = clock_timestamp()",
    )
    .bind(worker)
    .bind(instance)
    .bind(host)
    .execute(pool)
    .await
    .map(drop)
    .map_err(MailError::database("say that this process sends mail"))
}

/// Takes a process off the list, once nothing of its is in progress.
pub(crate) async fn leave(pool: &PgPool, worker: Uuid) -> Result<(), MailError> {
    sqlx::query("DELETE FROM mail.workers WHERE worker_id = $1")
        .bind(worker)
        .execute(pool)
        .await
        .map(drop)
        .map_err(MailError::database("say that a process sends no mail any more"))
}

/// Everybody on the list, and everybody who holds claims without being on it.
pub(crate) async fn list(pool: &PgPool) -> Result<Vec<Beat>, MailError> {
    let tried = "look who sends mail";
    let rows = sqlx::query(
        "SELECT worker_id, instance_id, beat FROM mail.workers UNION ALL \
         SELECT DISTINCT worker_id, '', -1::bigint FROM mail.attempts a WHERE status = 'in_progress' \
         AND NOT EXISTS (SELECT FROM mail.workers w WHERE w.worker_id = a.worker_id)",
    )
    .fetch_all(pool)
    .await
    .map_err(MailError::database(tried))?;
    let read = |row: &sqlx::postgres::PgRow| -> Result<Beat, sqlx::Error> {
        Ok(Beat { worker: row.try_get(0)?, instance: row.try_get(1)?, beat: row.try_get(2)? })
    };
    rows.iter().map(|row| read(row).map_err(MailError::database(tried))).collect()
}

/// How long another's beat must stand still before its claims are taken back.
const SILENT: Duration = Duration::from_secs(20);
/// The same for a process of this one's own name: it has been replaced by this one.
const SILENT_NAMESAKE: Duration = Duration::from_secs(3);

/// Watches others' beats on this process's own clock: an outage of the database, which silences all at once, ages nobody, because
/// only a beat that was *read* twice and had not risen counts.
#[derive(Debug, Default)]
pub(crate) struct Watch(HashMap<Uuid, (i64, BootTime)>);

impl Watch {
    /// Who is gone, as of what was read at `now`.
    pub(crate) fn gone(&mut self, me: Uuid, instance: &str, read: &[Beat], now: BootTime) -> Vec<Uuid> {
        self.0.retain(|worker, _| read.iter().any(|beat| beat.worker == *worker));
        let others = read.iter().filter(|beat| beat.worker != me);
        others
            .filter_map(|beat| {
                let seen = self.0.entry(beat.worker).or_insert((beat.beat, now));
                if seen.0 != beat.beat {
                    *seen = (beat.beat, now);
                }
                let silent = if beat.instance == instance { SILENT_NAMESAKE } else { SILENT };
                (now.duration_since(seen.1) >= silent).then_some(beat.worker)
            })
            .collect()
    }

    /// Nothing that was seen before counts: the database was away.
    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stands_still_long_enough_is_gone_and_an_outage_ages_nobody() {
        let (me, other, namesake) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let beats = |b: i64| {
            vec![
                Beat { worker: me, instance: "a".into(), beat: 0 },
                Beat { worker: other, instance: "b".into(), beat: b },
                Beat { worker: namesake, instance: "a".into(), beat: 7 },
            ]
        };
        let at = |seconds: u64| BootTime::from_millis(seconds * 1000);
        let mut watch = Watch::default();
        assert!(watch.gone(me, "a", &beats(1), at(100)).is_empty());
        assert!(watch.gone(me, "a", &beats(1), at(102)).is_empty());
        assert_eq!(watch.gone(me, "a", &beats(2), at(103)), [namesake]);
        assert_eq!(watch.gone(me, "a", &beats(2), at(122)), [namesake]);
        assert_eq!(watch.gone(me, "a", &beats(2), at(123)), [other, namesake]);
        watch.forget();
        assert!(watch.gone(me, "a", &beats(2), at(500)).is_empty());
    }
}
