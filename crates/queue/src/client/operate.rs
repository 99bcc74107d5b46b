//! What operators do to jobs and queues.

use std::time::Duration;

use voiceai_config::Rate;
use voiceai_redis::Value;

use super::{Client, State, timestamp};
use crate::envelope::{Envelope, FailRecord};
use crate::error::QueueError;
use crate::finished::{Ending, FinishedJob};
use crate::id::JobId;
use crate::library::{Fields, QueueName, Unexpected, text_of};
use crate::new_job::check_queue;

/// What became of a request to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelOutcome {
    /// It had not begun and is gone.
    Cancelled,
    /// It runs; its worker is told and ends it.
    Asked,
    /// It is dead: replay or discard it instead.
    Dead,
    /// No such job, or it has ended.
    Absent,
}

/// What became of a request to replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayOutcome {
    /// It waits again, with its attempts anew.
    Replayed,
    /// A newer job holds its unique key; left dead.
    UniqueHeld {
        /// The holder.
        holder: JobId,
    },
    /// It is not dead.
    NotDead,
}

/// Which jobs a purge removes.
#[derive(Clone, Debug)]
pub enum Selection {
    /// Those in a state (not active), optionally only older ones.
    State {
        /// Waiting, delayed, dead or completed (its stored results).
        state: State,
        /// Enqueued longer ago than this; for dead and completed ones: parked or finished longer ago.
        older_than: Option<Duration>,
    },
    /// These; running ones are left alone.
    Ids(Vec<String>),
}

/// Limits of a queue that act at once on all workers. `None` leaves a limit as it is, `Some(None)` removes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueLimits {
    /// Jobs that each worker runs at once; without it the worker's own setting.
    pub worker_concurrency: Option<Option<u32>>,
    /// Jobs that run at once over all workers.
    pub concurrency: Option<Option<u32>>,
    /// Jobs that run at once per limit key.
    pub key_concurrency: Option<Option<u32>>,
    /// Starts per period over all workers; without it the workers' own setting.
    pub rate: Option<Option<Rate>>,
    /// Starts per period per limit key.
    pub key_rate: Option<Option<Rate>>,
    /// How long results of completed jobs are kept.
    pub keep_completed: Option<Option<Duration>>,
    /// How many results are kept.
    pub keep_completed_count: Option<Option<u64>>,
    /// How long dead jobs are kept.
    pub keep_dead: Option<Option<Duration>>,
    /// How many dead jobs are kept.
    pub keep_dead_count: Option<Option<u64>>,
}

/// `<n> <period ms>` as the library stores it.
pub(crate) fn rate_text(rate: Rate) -> String {
    format!("{} {}", rate.count, rate.per.as_millis().max(1))
}

impl QueueLimits {
    fn pairs(&self) -> Vec<(&'static str, String)> {
        fn text<T>(value: Option<&Option<T>>, write: impl Fn(&T) -> String) -> Option<String> {
            value.map(|v| v.as_ref().map(write).unwrap_or_default())
        }
        let ms = |d: &Duration| d.as_millis().to_string();
        [
            ("worker_concurrency", text(self.worker_concurrency.as_ref(), u32::to_string)),
            ("concurrency", text(self.concurrency.as_ref(), u32::to_string)),
            ("key_concurrency", text(self.key_concurrency.as_ref(), u32::to_string)),
            ("rate", text(self.rate.as_ref(), |r| rate_text(*r))),
            ("key_rate", text(self.key_rate.as_ref(), |r| rate_text(*r))),
            ("keep_completed_ms", text(self.keep_completed.as_ref(), ms)),
            ("keep_completed", text(self.keep_completed_count.as_ref(), u64::to_string)),
            ("keep_dead_ms", text(self.keep_dead.as_ref(), ms)),
            ("keep_dead", text(self.keep_dead_count.as_ref(), u64::to_string)),
        ]
        .into_iter()
        .filter_map(|(name, value)| value.map(|v| (name, v)))
        .collect()
    }
}

impl Client {
    /// Cancels jobs: those that have not begun at once, running ones through their worker. Delivers one answer per id. Each
    /// end is noted in Redis by the call that makes it, and written to the history from there: a caller that dies in between,
    /// or a history that is away, costs no record.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn cancel(
        &self,
        queue: &str,
        ids: &[String],
        reason: &str,
    ) -> Result<Vec<CancelOutcome>, QueueError> {
        check_queue(queue)?;
        let mut outcomes = Vec::with_capacity(ids.len());
        for part in ids.chunks(500) {
            let mut ends = Vec::new();
            let mut args: Vec<Value> = vec![reason.into()];
            args.extend(part.iter().map(|id| Value::from(id.as_str())));
            let rows = self.rows_of(queue, "cancel", "voiceai_v1_cancel", args).await?;
            for mut row in rows {
                let word = row.text().map_err(|e| bad(queue, "cancel", &e))?.unwrap_or_default();
                outcomes.push(match word.as_str() {
                    "cancelled" => {
                        ends.extend(row.integer());
                        CancelOutcome::Cancelled
                    }
                    "asked" => CancelOutcome::Asked,
                    "dead" => CancelOutcome::Dead,
                    _ => CancelOutcome::Absent,
                });
            }
            self.write_ends(queue, &ends).await;
        }
        Ok(outcomes)
    }

    /// Puts dead jobs back to waiting: attempts anew, lineage and crash count kept.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn replay(
        &self,
        queue: &str,
        ids: &[String],
        reason: &str,
    ) -> Result<Vec<ReplayOutcome>, QueueError> {
        check_queue(queue)?;
        let mut outcomes = Vec::with_capacity(ids.len());
        for part in ids.chunks(200) {
            // What is replayed is written down before it can end again.
            let mut records = Vec::new();
            for id in part {
                if let Some(view) = self.show(queue, id).await?
                    && view.state == State::Dead
                {
                    let (envelope, fail) = self.raw(queue, id).await?;
                    records.extend(self.record(
                        queue,
                        id,
                        &envelope,
                        fail.as_deref(),
                        Ending::Replayed,
                        reason,
                    ));
                }
            }
            self.keep(records).await;
            let args = part.iter().map(|id| Value::from(id.as_str())).collect();
            let rows = self.rows_of(queue, "replay", "voiceai_v1_replay", args).await?;
            for mut row in rows {
                let word = row.text().map_err(|e| bad(queue, "replay", &e))?.unwrap_or_default();
                outcomes.push(match word.as_str() {
                    "replayed" => ReplayOutcome::Replayed,
                    "unique" => {
                        let holder = row.text().ok().flatten().unwrap_or_default();
                        ReplayOutcome::UniqueHeld { holder: JobId::trusted(&holder) }
                    }
                    _ => ReplayOutcome::NotDead,
                });
            }
        }
        Ok(outcomes)
    }

    /// Discards jobs for good: dead, waiting or delayed ones. Each is written to the history first. Returns how many.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn discard(&self, queue: &str, ids: &[String], reason: &str) -> Result<u64, QueueError> {
        self.purge(queue, &Selection::Ids(ids.to_vec()), Ending::Discarded, reason).await
    }

    /// Removes all jobs of a selection, in bounded steps, each of which is written to the history first as `ending`
    /// (`Discarded` for an operator's purge, `Removed` for a clean-up). A job that a worker begins between the two has a
    /// record too many and runs. Returns how many were removed.
    ///
    /// # Errors
    /// As Redis says, and [`QueueError::History`]; what was removed by then is recorded.
    pub async fn purge(
        &self,
        queue: &str,
        selection: &Selection,
        ending: Ending,
        reason: &str,
    ) -> Result<u64, QueueError> {
        check_queue(queue)?;
        let before = |older_than: Option<Duration>| {
            let age = older_than.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
            age.map_or(0, |ms| self.time().now_ms().saturating_sub(ms))
        };
        let mut removed = 0;
        match selection {
            Selection::State { state: State::Active, .. } => Err(QueueError::Invalid {
                what: "state",
                given: "active".into(),
                expected: "waiting, delayed, dead or completed: running jobs are cancelled, not purged",
            }),
            Selection::State { state: State::Completed, older_than } => {
                let args = vec![count(PURGE_STEP), count(before(*older_than))];
                loop {
                    let gone: u64 = self.ask(queue, "voiceai_v1_purge_results", args.clone()).await?;
                    removed += gone;
                    if gone < PURGE_STEP {
                        return Ok(removed);
                    }
                }
            }
            Selection::State { state, older_than } => {
                let before = before(*older_than);
                let mut offset = 0;
                loop {
                    let args = vec![state.as_str().into(), count(PURGE_STEP), count(before), count(offset)];
                    let (looked, picked) = self.pick(queue, args).await?;
                    let found = u64::try_from(picked.len()).unwrap_or(0);
                    removed += self.remove(queue, picked, ending, reason).await?;
                    // What was picked is gone from the state; what was passed over stands before the next page: jobs, or
                    // lanes of waiting ones.
                    let passed = looked.saturating_sub(found);
                    offset += passed;
                    // A lane that has cancelled jobs among its first gives less than a whole page.
                    let done = if *state == State::Waiting { looked == 0 } else { looked < PURGE_STEP };
                    if done {
                        return Ok(removed);
                    }
                }
            }
            Selection::Ids(ids) => {
                for part in ids.chunks(usize::try_from(PURGE_STEP).unwrap_or(200)) {
                    let mut args = vec!["ids".into(), count(PURGE_STEP), count(0), count(0)];
                    args.extend(part.iter().map(|id| Value::from(id.as_str())));
                    let (_, picked) = self.pick(queue, args).await?;
                    removed += self.remove(queue, picked, ending, reason).await?;
                }
                Ok(removed)
            }
        }
    }

    /// How many were looked at, and (id, envelope) of those that a purge would remove.
    async fn pick(&self, queue: &str, args: Vec<Value>) -> Result<(u64, Vec<(String, String)>), QueueError> {
        let reply: Value = self.ask(queue, "voiceai_v1_pick", args).await?;
        let read = |reply| -> Result<_, Unexpected> {
            let mut f = Fields::of(reply)?;
            let looked = u64::try_from(f.integer()?).unwrap_or(0);
            let texts = f.texts()?;
            Ok((looked, texts.chunks_exact(2).map(|p| (p[0].clone(), p[1].clone())).collect()))
        };
        read(reply).map_err(|e| bad(queue, "purge", &e))
    }

    /// Writes jobs to the history, then removes them. Nothing is removed that could not be written down.
    async fn remove(
        &self,
        queue: &str,
        jobs: Vec<(String, String)>,
        ending: Ending,
        reason: &str,
    ) -> Result<u64, QueueError> {
        if jobs.is_empty() {
            return Ok(0);
        }
        let records =
            jobs.iter().filter_map(|(id, envelope)| self.record(queue, id, envelope, None, ending, reason));
        let failed = |source| QueueError::History { queue: queue.to_owned(), source };
        self.history().record_now(records.collect()).await.map_err(failed)?;
        let counter = if ending == Ending::Removed { "removed" } else { "discarded" };
        let mut args: Vec<Value> = vec![counter.into()];
        args.extend(jobs.iter().map(|(id, _)| Value::from(id.as_str())));
        self.ask(queue, "voiceai_v1_purge", args).await
    }

    async fn ask<T: voiceai_redis::FromValue + Send + 'static>(
        &self,
        queue: &str,
        function: &'static str,
        args: Vec<Value>,
    ) -> Result<T, QueueError> {
        let reply = self.library().call_apart(&QueueName::new(queue), function, args).await;
        reply.map_err(|e| QueueError::from_redis(queue, "purge", e))
    }

    /// No job is handed out until [`Client::resume`]; running ones go on.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn pause(&self, queue: &str) -> Result<(), QueueError> {
        self.write_settings(queue, vec![("paused", "1".into())]).await
    }

    /// Refuses enqueues to the queue, so that our own producers turn to the outbox.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn pause_producers(&self, queue: &str) -> Result<(), QueueError> {
        self.write_settings(queue, vec![("producers_paused", "1".into())]).await
    }

    /// Refuses new work; what is there is worked off.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn drain(&self, queue: &str) -> Result<(), QueueError> {
        self.write_settings(queue, vec![("draining", "1".into())]).await
    }

    /// Ends pause, producers' pause and draining.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn resume(&self, queue: &str) -> Result<(), QueueError> {
        let off = ["paused", "producers_paused", "draining"].map(|name| (name, String::new()));
        self.write_settings(queue, off.into()).await
    }

    /// Ends one of the three: `paused`, `producers_paused` or `draining`.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn resume_only(&self, queue: &str, what: Quiet) -> Result<(), QueueError> {
        self.write_settings(queue, vec![(what.field(), String::new())]).await
    }

    /// Sets limits; they act at once on all workers.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn set(&self, queue: &str, limits: &QueueLimits) -> Result<(), QueueError> {
        self.write_settings(queue, limits.pairs()).await
    }

    async fn write_settings(
        &self,
        queue: &str,
        pairs: Vec<(&'static str, String)>,
    ) -> Result<(), QueueError> {
        check_queue(queue)?;
        self.remember_queue(queue).await;
        let args =
            pairs.into_iter().flat_map(|(name, value)| [Value::from(name), Value::from(value)]).collect();
        let name = QueueName::new(queue);
        let failed = |e| QueueError::from_redis(queue, "set", e);
        let _: Value = self.library().call_apart(&name, "voiceai_v1_set", args).await.map_err(failed)?;
        // What the former limits held back, a few lanes a call: a queue may have a great many.
        let mut cursor = "0".to_owned();
        loop {
            let args = vec![Value::from(cursor)];
            cursor = self.library().call_apart(&name, "voiceai_v1_release", args).await.map_err(failed)?;
            if cursor == "0" {
                return Ok(());
            }
        }
    }

    async fn rows_of(
        &self,
        queue: &str,
        tried: &'static str,
        function: &'static str,
        args: Vec<Value>,
    ) -> Result<Vec<Fields>, QueueError> {
        let reply: Value = self
            .library()
            .call_apart(&QueueName::new(queue), function, args)
            .await
            .map_err(|e| QueueError::from_redis(queue, tried, e))?;
        let Value::Array(rows) = reply else { return Err(bad(queue, tried, &Unexpected("rows"))) };
        rows.into_iter().map(|row| Fields::of(row).map_err(|e| bad(queue, tried, &e))).collect()
    }

    async fn raw(&self, queue: &str, id: &str) -> Result<(String, Option<String>), QueueError> {
        let name = QueueName::new(queue);
        let failed = |e| QueueError::from_redis(queue, "read a job", e);
        let envelope: Value =
            self.redis().command("HGET", vec![name.key("jobs"), id.to_owned()]).await.map_err(failed)?;
        let fail: Value =
            self.redis().command("HGET", vec![name.key("fail"), id.to_owned()]).await.map_err(failed)?;
        Ok((text_of(&envelope).unwrap_or_default(), text_of(&fail)))
    }

    /// The history record of a job that an operator's act ended; `None` for one without an envelope.
    pub(crate) fn record(
        &self,
        queue: &str,
        id: &str,
        envelope: &str,
        fail: Option<&str>,
        ending: Ending,
        reason: &str,
    ) -> Option<FinishedJob> {
        let parsed = Envelope::parse(envelope)?;
        let fail = fail.map(FailRecord::parse).unwrap_or_default();
        Some(FinishedJob {
            id: JobId::trusted(id),
            queue: queue.into(),
            kind: parsed.kind.into(),
            tenant: parsed.tenant(),
            priority: parsed.priority(),
            payload: serde_json::value::RawValue::from_string(parsed.payload.to_owned()).ok(),
            ending,
            attempt: fail.attempts,
            replays: fail.replays,
            enqueued_at: timestamp(parsed.enqueued_ms),
            started_at: None,
            finished_at: self.redis_now(),
            error: Some(reason.to_owned()).filter(|r| !r.is_empty()),
            result: None,
            worker: String::new(),
            unique: parsed.unique_key(),
            trace: parsed.meta.trace,
        })
    }

    pub(crate) async fn keep(&self, records: Vec<FinishedJob>) {
        if records.is_empty() {
            return;
        }
        if let Err(error) = self.history().record_now(records).await {
            tracing::warn!(%error, "job history is incomplete");
        }
    }
}

/// A way to quiet a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiet {
    /// Nothing is handed out.
    Paused,
    /// Enqueues are refused, for our own producers to use the outbox.
    ProducersPaused,
    /// Enqueues are refused until the queue is empty.
    Draining,
}

impl Quiet {
    const fn field(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::ProducersPaused => "producers_paused",
            Self::Draining => "draining",
        }
    }
}

/// Jobs per step of a purge.
const PURGE_STEP: u64 = 200;

fn count(n: u64) -> Value {
    i64::try_from(n).unwrap_or(i64::MAX).into()
}

fn bad(queue: &str, tried: &'static str, error: &Unexpected) -> QueueError {
    QueueError::BadReply { queue: queue.to_owned(), tried, detail: error.to_string() }
}
