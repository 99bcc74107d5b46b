//! The stream of mail commands: read by the leader alone, from where the last one stopped.
//!
//! The offset is saved, with the leader's term, after every command before it is a row: a delivery, or the record of one that was
//! rejected. A crash in between reads some again, which their keys absorb.

mod fields;
mod offset;

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::{NotTrusted, PgPool, Tenure};
use voiceai_redis::{Blocking, Redis, RedisError, StreamEntry};
use voiceai_runtime::{Backoff, Pulse, random_unit};

pub use fields::command;
pub use offset::{offset_key, term_key};

use crate::error::{MailError, chain};
use crate::intake::{AcceptError, Command, Intake, Rejected};
use crate::{malformed, metrics};
pub(crate) use fields::Read;
use offset::Offset;

/// Longest wait of one read; then it is looked whether the stream is still the same.
const BLOCK: Duration = Duration::from_secs(2);
/// Most entries of one read: each may be as large as a mail, and all of them lie in memory.
const COUNT: u32 = 32;
/// Entries that are stored at a time: as many as a pool has connections to spare.
const WAVE: usize = 8;

/// The stream's reader.
#[derive(Debug)]
pub struct Consumer {
    redis: Redis,
    intake: Intake,
    stream: String,
    /// A command that is older was sent, and forgotten, long ago.
    age_max: Duration,
}

/// Why reading was interrupted.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error("Redis failed: {0}")]
    Redis(#[from] RedisError),
    #[error("{}", chain(.0))]
    Store(MailError),
    #[error(transparent)]
    NotTrusted(#[from] NotTrusted),
    #[error("another leader has read on")]
    Stale,
}

impl Consumer {
    /// A reader of `stream` that has not begun. Entries older than `age_max` are rejected: deliveries are not remembered longer than
    /// that, so one that is read again (after a loss of Redis) could not be known for a copy.
    #[must_use]
    pub fn new(redis: Redis, intake: Intake, stream: String, age_max: Duration) -> Self {
        Self { redis, intake, stream, age_max }
    }

    /// Reads whenever this process leads, until `stopping`.
    pub async fn run(
        self,
        mut tenure: watch::Receiver<Option<Tenure>>,
        stopping: CancellationToken,
        pulse: Pulse,
    ) {
        tracing::info!(stream = self.stream, "mail command consumer started");
        let mut failures = 0;
        let mut over = false;
        while !stopping.is_cancelled() {
            pulse.beat();
            let leader = tenure.borrow_and_update().clone().filter(Tenure::is_trusted);
            let wait = match leader {
                None => BLOCK,
                Some(tenure) => match self.read(&tenure, &mut failures, &stopping, &pulse).await {
                    Ok(()) => continue,
                    Err(Interrupted::NotTrusted(_) | Interrupted::Stale) => Duration::from_millis(200),
                    Err(why) => {
                        tracing::warn!(error = %why, "mail commands cannot be read now");
                        failures += 1;
                        Backoff::RECONNECT.delay(failures, random_unit())
                    }
                },
            };
            pulse.beat();
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
                changed = tenure.changed(), if !over => over = changed.is_err(),
            }
        }
        tracing::info!(stream = self.stream, "mail command consumer stopped");
    }

    /// Reads on until something interrupts it, or the stop.
    async fn read(
        &self,
        tenure: &Tenure,
        failures: &mut u32,
        stopping: &CancellationToken,
        pulse: &Pulse,
    ) -> Result<(), Interrupted> {
        let offset = Offset::new(&self.redis, &self.stream);
        let connection = self.redis.blocking().await?;
        let mut after = offset.load().await?;
        if offset.is_gone(&after).await? {
            self.begin_anew(&mut after);
        } else if offset.is_trimmed(&after).await? {
            tracing::error!(
                stream = self.stream,
                offset = after,
                "the stream was trimmed beyond the last command that was read: commands in between may be lost"
            );
        }
        tracing::info!(
            stream = self.stream,
            offset = after,
            term = tenure.term().number,
            "mail commands are read"
        );
        while !stopping.is_cancelled() {
            pulse.beat();
            tenure.check()?;
            let entries = tokio::select! {
                entries = next(&connection, &self.stream, &after) => entries?,
                () = stopping.cancelled() => break,
            };
            *failures = 0;
            let Some(last) = entries.last().map(|entry| entry.id.clone()) else {
                if offset.is_gone(&after).await? {
                    self.begin_anew(&mut after);
                }
                continue;
            };
            self.take(&entries).await?;
            if !offset.save(tenure.check()?, &last).await? {
                voiceai_postgres::term::refused(tenure.term(), "mail.stream_offset");
                return Err(Interrupted::Stale);
            }
            after = last;
        }
        Ok(())
    }

    /// The stream is another one: flushed, deleted, or on another server. What it holds now has not been read.
    fn begin_anew(&self, after: &mut String) {
        tracing::warn!(
            stream = self.stream,
            offset = *after,
            "the stream was made anew: it is read from its beginning"
        );
        offset::BEGINNING.clone_into(after);
    }

    /// Makes rows of `entries`. On return each of them is one; on an error some are, and all may be given again.
    async fn take(&self, entries: &[StreamEntry]) -> Result<(), Interrupted> {
        let mut wave: Vec<(&StreamEntry, Read, Command)> = Vec::with_capacity(WAVE);
        let mut names = HashSet::new();
        for entry in entries {
            let (read, command) = fields::read(&entry.fields);
            let command = command.and_then(|command| self.young_enough(&entry.id).map(|()| command));
            match command {
                Err(rejected) => self.reject(entry, &read, &rejected).await?,
                Ok(command) => {
                    // Of two with one name the first is the mail and the other the copy: never both at once.
                    let clash =
                        names.contains(&command.delivery_id) || names.contains(&command.idempotency_key);
                    if clash || wave.len() == WAVE {
                        self.store(&mut wave).await?;
                        names.clear();
                    }
                    names.insert(command.delivery_id.clone());
                    names.insert(command.idempotency_key.clone());
                    wave.push((entry, read, command));
                }
            }
        }
        self.store(&mut wave).await
    }

    async fn store(&self, wave: &mut Vec<(&StreamEntry, Read, Command)>) -> Result<(), Interrupted> {
        let taken = wave.drain(..).map(|(entry, read, command)| async move {
            let rejected = match self.intake.accept(command).await {
                Ok(_) => return Ok(()),
                Err(AcceptError::Rejected(rejected)) => rejected,
                Err(conflict @ AcceptError::Conflict { .. }) => {
                    Rejected::new("idempotency_conflict", conflict.to_string())
                }
                // What the database will never take must not stop the stream.
                Err(AcceptError::Store(error)) if error.is_about_the_data() => {
                    Rejected::new("unstorable", chain(&error))
                }
                Err(AcceptError::Store(error)) => return Err(Interrupted::Store(error)),
            };
            self.reject(entry, &read, &rejected).await
        });
        join_all(taken).await.into_iter().collect()
    }

    async fn reject(&self, entry: &StreamEntry, read: &Read, rejected: &Rejected) -> Result<(), Interrupted> {
        let pool: &PgPool = self.intake.pool();
        let new = malformed::record(pool, &self.stream, &entry.id, read, rejected)
            .await
            .map_err(Interrupted::Store)?;
        if new {
            metrics::get().malformed(rejected.code);
            tracing::warn!(
                failure_code = rejected.code,
                delivery_id = read.get("delivery_id").unwrap_or_default(),
                source = read.get("source").unwrap_or_default(),
                stream_entry_id = entry.id,
                "stream command rejected"
            );
        }
        Ok(())
    }

    /// By the time in the entry's id, which the server gave it; ids that are no times tell nothing.
    fn young_enough(&self, id: &str) -> Result<(), Rejected> {
        const NO_TIME_BELOW: i64 = 1_000_000_000_000;
        let added =
            id.split_once('-').and_then(|(ms, _)| ms.parse::<i64>().ok()).filter(|ms| *ms > NO_TIME_BELOW);
        let age = added.map(|ms| Timestamp::now().as_millisecond().saturating_sub(ms));
        let age = Duration::from_millis(age.and_then(|age| u64::try_from(age).ok()).unwrap_or(0));
        if age > self.age_max {
            return Err(Rejected::new("too_old", "it is older than deliveries are remembered"));
        }
        Ok(())
    }
}

async fn next(connection: &Blocking, stream: &str, after: &str) -> Result<Vec<StreamEntry>, RedisError> {
    connection.xread(stream, after, COUNT, BLOCK).await
}
