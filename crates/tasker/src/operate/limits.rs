//! What operators have set for queues: rows in PostgreSQL, mirrored into Redis where the workers read them.
//!
//! A command writes the row and then Redis, so it acts at once; the leader compares the two every few seconds, so a Redis that
//! was emptied gets it back, and what was set for a while ends by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use serde::Serialize;
use voiceai_cli::Failure;
use voiceai_config::Rate;
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, Row};
use voiceai_queue::{Client, QueueError, QueueLimits, Quiet};

use super::{database_failure, queue_failure};

/// One thing that can be set for a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    /// Jobs that each worker process runs at a time.
    WorkerConcurrency,
    /// Starts per period over all workers, as `<n> <period ms>`.
    Rate,
    /// Jobs with one limit key that run at a time.
    KeyConcurrency,
    /// Nothing is handed out.
    Paused,
    /// Our own producers use the outbox.
    ProducersPaused,
    /// New jobs are refused.
    Draining,
}

impl Name {
    const WORDS: [(&'static str, Self); 6] = [
        ("worker_concurrency", Self::WorkerConcurrency),
        ("rate", Self::Rate),
        ("key_concurrency", Self::KeyConcurrency),
        ("paused", Self::Paused),
        ("producers_paused", Self::ProducersPaused),
        ("draining", Self::Draining),
    ];

    /// The word in the table and in Redis.
    #[must_use]
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, name)| *name == self).map_or("paused", |(word, _)| word)
    }

    fn parse(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(have, _)| *have == word).map(|(_, name)| *name)
    }

    const fn quiet(self) -> Option<Quiet> {
        match self {
            Self::Paused => Some(Quiet::Paused),
            Self::ProducersPaused => Some(Quiet::ProducersPaused),
            Self::Draining => Some(Quiet::Draining),
            Self::WorkerConcurrency | Self::Rate | Self::KeyConcurrency => None,
        }
    }
}

/// What is set: `None` lifts it.
pub type Change = (Name, Option<String>);

/// A rate as it is stored.
#[must_use]
pub fn rate_text(rate: Rate) -> String {
    format!("{} {}", rate.count, rate.per.as_millis().max(1))
}

fn parse_rate(text: &str) -> Option<Rate> {
    let (count, per) = text.split_once(' ')?;
    Some(Rate { count: count.parse().ok()?, per: Duration::from_millis(per.parse().ok()?) })
}

/// Writes rows, for good or for a while. Redis is not touched: see [`apply`].
///
/// # Errors
/// As the database says.
pub async fn write(
    pool: &PgPool,
    queue: &str,
    changes: &[Change],
    for_: Option<Duration>,
    actor: &str,
) -> Result<(), Failure> {
    let names: Vec<&str> = changes.iter().map(|(name, _)| name.word()).collect();
    let values: Vec<Option<&str>> = changes.iter().map(|(_, value)| value.as_deref()).collect();
    sqlx::query(
        "INSERT INTO ops.queue_settings AS q (queue, name, value, temporary, temporary_until, updated_by) \
         SELECT $1, name, CASE WHEN $4::float8 IS NULL THEN value END, CASE WHEN $4 IS NOT NULL THEN value END, \
                now() + $4 * interval '1 second', $5 \
         FROM unnest($2::text[], $3::text[]) AS c (name, value) \
         ON CONFLICT (queue, name) DO UPDATE SET \
             value = CASE WHEN $4 IS NULL THEN excluded.value ELSE q.value END, \
             temporary = excluded.temporary, temporary_until = excluded.temporary_until, \
             updated_by = $5, updated_at = now()",
    )
    .bind(queue)
    .bind(&names)
    .bind(&values)
    .bind(for_.map(|for_| for_.as_secs_f64()))
    .bind(actor)
    .execute(pool)
    .await
    .map(|_| ())
    .map_err(|error| database_failure(&error))
}

/// What a row says now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// What is set.
    pub name: Name,
    /// What holds now; absent: nothing of its own.
    pub value: Option<String>,
    /// When it ends by itself.
    pub until: Option<Timestamp>,
    /// Who set it.
    pub set_by: String,
}

/// What is set, by queue; of one queue or of all.
///
/// # Errors
/// As the database says.
pub async fn read(pool: &PgPool, queue: Option<&str>) -> Result<BTreeMap<String, Vec<Setting>>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT queue, name, CASE WHEN temporary_until > now() THEN temporary ELSE value END, \
                CASE WHEN temporary_until > now() THEN temporary_until END, updated_by \
         FROM ops.queue_settings WHERE $1::text IS NULL OR queue = $1 ORDER BY queue, name",
    )
    .bind(queue)
    .fetch_all(pool)
    .await?;
    let mut all: BTreeMap<String, Vec<Setting>> = BTreeMap::new();
    for row in &rows {
        let word: String = row.try_get(1)?;
        // A name of a newer version is that version's to mirror.
        let Some(name) = Name::parse(&word) else { continue };
        let until: Option<jiff_sqlx::Timestamp> = row.try_get(3)?;
        all.entry(row.try_get(0)?).or_default().push(Setting {
            name,
            value: row.try_get(2)?,
            until: until.map(jiff_sqlx::Timestamp::to_jiff),
            set_by: row.try_get(4)?,
        });
    }
    Ok(all)
}

/// What of `wanted` differs from what Redis holds. Pure.
#[must_use]
pub fn differences(wanted: &[Setting], have: &BTreeMap<String, String>) -> Vec<Change> {
    wanted
        .iter()
        .filter(|setting| have.get(setting.name.word()) != setting.value.as_ref())
        .map(|setting| (setting.name, setting.value.clone()))
        .collect()
}

/// Writes changes into Redis, where all workers see them at once.
///
/// # Errors
/// As Redis says.
pub async fn apply(client: &Client, queue: &str, changes: &[Change]) -> Result<(), QueueError> {
    let mut limits = QueueLimits::default();
    let mut has_limits = false;
    for (name, value) in changes {
        let number = || value.as_ref().and_then(|text| text.parse().ok());
        match name {
            Name::WorkerConcurrency => limits.worker_concurrency = Some(number()),
            Name::KeyConcurrency => limits.key_concurrency = Some(number()),
            Name::Rate => limits.rate = Some(value.as_deref().and_then(parse_rate)),
            Name::Paused | Name::ProducersPaused | Name::Draining => {
                match (name.quiet(), value) {
                    (Some(quiet), None) => client.resume_only(queue, quiet).await?,
                    (Some(Quiet::Paused), Some(_)) => client.pause(queue).await?,
                    (Some(Quiet::ProducersPaused), Some(_)) => client.pause_producers(queue).await?,
                    (Some(Quiet::Draining), Some(_)) => client.drain(queue).await?,
                    (None, _) => {}
                }
                continue;
            }
        }
        has_limits = true;
    }
    if has_limits { client.set(queue, &limits).await } else { Ok(()) }
}

/// Sets something: the row first, so that it is not lost, then Redis, so that it acts at once.
///
/// # Errors
/// As the stores say. Where only Redis failed, the leader brings it there.
pub async fn set(
    client: &Client,
    pool: &PgPool,
    queue: &str,
    changes: &[Change],
    for_: Option<Duration>,
    actor: &str,
) -> Result<(), Failure> {
    write(pool, queue, changes, for_, actor).await?;
    apply(client, queue, changes).await.map_err(|error| {
        let failure = queue_failure(&error);
        let message =
            format!("{}; it is written down, and the leading tasker brings it to the queue", failure.message);
        Failure { message, ..failure }
    })
}

/// Brings Redis to what the rows say, for every queue. Answers what was changed.
///
/// # Errors
/// As the stores say.
pub async fn mirror(client: &Client, pool: &PgPool) -> Result<Vec<(String, Vec<Change>)>, MirrorError> {
    let wanted = read(pool, None).await?;
    let mut changed = Vec::new();
    for (queue, settings) in wanted {
        let have = client.stats(&queue).await?.settings;
        let changes = differences(&settings, &have);
        if !changes.is_empty() {
            apply(client, &queue, &changes).await?;
            changed.push((queue, changes));
        }
    }
    Ok(changed)
}

/// The mirror could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The rows.
    #[error("read the queues' settings")]
    Database(#[from] sqlx::Error),
    /// Redis.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// When the next thing that was set for a while ends; `None` when nothing is.
///
/// # Errors
/// As the database says.
pub async fn next_end(pool: &PgPool) -> Result<Option<Timestamp>, sqlx::Error> {
    let row = sqlx::query("SELECT min(temporary_until) FROM ops.queue_settings WHERE temporary_until > $1")
        .bind(Timestamp::now().to_sqlx())
        .fetch_one(pool)
        .await?;
    Ok(row.try_get::<Option<jiff_sqlx::Timestamp>, _>(0)?.map(jiff_sqlx::Timestamp::to_jiff))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(name: Name, value: Option<&str>) -> Setting {
        Setting { name, value: value.map(str::to_owned), until: None, set_by: "ann".into() }
    }

    #[test]
    fn only_what_differs_is_written() {
        let have = BTreeMap::from([
            ("rate".into(), "5 1000".into()),
            ("paused".into(), "1".into()),
            ("other".into(), "9".into()),
        ]);
        let wanted = [
            setting(Name::Rate, Some("5 1000")),
            setting(Name::Paused, None),
            setting(Name::WorkerConcurrency, Some("7")),
            setting(Name::Draining, None),
        ];
        assert_eq!(
            differences(&wanted, &have),
            [(Name::Paused, None), (Name::WorkerConcurrency, Some("7".into()))]
        );
    }

    #[test]
    fn a_rate_is_stored_and_read_back() {
        let rate = Rate { count: 10, per: Duration::from_secs(60) };
        assert_eq!(rate_text(rate), "10 60000");
        assert_eq!(parse_rate(&rate_text(rate)), Some(rate));
        for (word, name) in Name::WORDS {
            assert_eq!((Name::parse(word), name.word()), (Some(name), word));
        }
    }
}
