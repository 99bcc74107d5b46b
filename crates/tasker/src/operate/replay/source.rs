//! Putting jobs back, and seeing what became of them.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use voiceai_postgres::sqlx;
use voiceai_queue::history::{self, HistoryRow};
use voiceai_queue::outbox::{Enqueue as _, JobStanding};
use voiceai_queue::{AddOutcome, JobId, NewJob, QueueError, ReplayOutcome, State};
use voiceai_replay::{Item, Outcome, Release, Source};

use crate::operate::Desk;

/// A look or an act that failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::operate) enum SourceError {
    /// The queue.
    #[error(transparent)]
    Queue(QueueError),
    /// The history.
    #[error("read the job history")]
    History(#[from] sqlx::Error),
}

/// Work that was never enqueued, as a finder found it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Missing {
    /// Its kind.
    pub kind: String,
    /// Its payload.
    pub payload: Box<RawValue>,
}

/// How long a finished job's record may be on its way to the history.
const RECORD_LATE: Duration = Duration::from_secs(5);

/// The queues as a source of replays.
pub(super) struct JobSource<'a> {
    desk: &'a Desk,
    reason: String,
}

impl<'a> JobSource<'a> {
    pub(super) const fn new(desk: &'a Desk, reason: String) -> Self {
        Self { desk, reason }
    }

    /// Of each item whether it is certain that it has not ended. Most of a great replay has not, at most of its looks: asked
    /// one by one they would take the time in which the others are to be put back.
    async fn unfinished(&self, items: &[Item]) -> Vec<bool> {
        let mut open = vec![false; items.len()];
        let places: BTreeSet<&str> = items.iter().map(|item| item.place.as_str()).collect();
        for place in places {
            let here: Vec<usize> = (0..items.len()).filter(|at| items[*at].place == place).collect();
            let ids: Vec<String> = here.iter().map(|at| items[*at].id.clone()).collect();
            // Where this fails each is asked by itself, which tells why.
            let Ok(standings) = self.desk.client.standings(place, &ids).await else { continue };
            for (at, standing) in here.into_iter().zip(standings) {
                open[at] = standing == JobStanding::Unfinished;
            }
        }
        open
    }

    async fn outcome(&self, item: &Item) -> Result<Outcome, SourceError> {
        if let Some(job) = self.desk.client.show(&item.place, &item.id).await? {
            return Ok(match job.state {
                State::Dead => Outcome::Died(job.error.unwrap_or_else(|| "without an error".to_owned())),
                State::Completed => Outcome::Completed,
                State::Waiting | State::Delayed | State::Active => Outcome::Open,
            });
        }
        let released = item.released_at.unwrap_or(Timestamp::UNIX_EPOCH);
        let records = history::of_job(&self.desk.pool, Some(&item.place), &item.id).await?;
        Ok(ended(&records, released, Timestamp::now()))
    }
}

/// What became of a job that its queue no longer knows. Every way out of a queue but completion is written down before it is
/// taken, so a job that is gone without such a record has completed; its own record may be late, or its kind keeps none.
fn ended(records: &[HistoryRow], released: Timestamp, now: Timestamp) -> Outcome {
    // The two clocks may differ a little; a record of the same moment is the later one's.
    let after = released.checked_sub(Duration::from_secs(1)).unwrap_or(released);
    let last = records.iter().rev().find(|row| row.finished_at >= after && row.outcome != "replayed");
    match last.map(|row| (row.outcome.as_str(), row)) {
        Some(("completed", _)) => Outcome::Completed,
        Some((outcome @ ("cancelled" | "discarded" | "removed"), _)) => Outcome::Gone(outcome.to_owned()),
        _ if now.duration_since(released).unsigned_abs() >= RECORD_LATE => Outcome::Completed,
        _ => Outcome::Open,
    }
}

impl Source for JobSource<'_> {
    type Error = SourceError;

    async fn release(&self, item: &Item) -> Result<Release, SourceError> {
        if let Some(content) = &item.content {
            return self.enqueue(item, content).await;
        }
        let ids = [item.id.clone()];
        let outcomes = self.desk.client.replay(&item.place, &ids, &self.reason).await?;
        Ok(match outcomes.into_iter().next() {
            Some(ReplayOutcome::Replayed) => Release::Released,
            Some(ReplayOutcome::UniqueHeld { holder }) => {
                Release::Skipped(format!("a newer job holds its unique key: {holder}"))
            }
            Some(ReplayOutcome::NotDead) | None => Release::NotGivenUp,
        })
    }

    async fn outcomes(&self, items: &[Item]) -> Result<Vec<Outcome>, SourceError> {
        let open = self.unfinished(items).await;
        let mut outcomes = Vec::with_capacity(items.len());
        for (item, open) in items.iter().zip(open) {
            outcomes.push(if open { Outcome::Open } else { self.outcome(item).await? });
        }
        Ok(outcomes)
    }
}

impl JobSource<'_> {
    /// The id is the finder's, so a repetition is known and changes nothing.
    async fn enqueue(&self, item: &Item, content: &serde_json::Value) -> Result<Release, SourceError> {
        let Ok(missing) = Missing::deserialize(content) else {
            return Ok(Release::Skipped("its content was written by another version".to_owned()));
        };
        let job =
            NewJob::raw(missing.kind, missing.payload).queue(item.place.clone()).id(JobId::chosen(&item.id)?);
        let added = self.desk.client.add(job, None).await?;
        Ok(match added.outcome {
            AddOutcome::Accepted => Release::Released,
            AddOutcome::Known => Release::NotGivenUp,
            AddOutcome::Duplicate => {
                Release::Skipped(format!("a newer job holds its unique key: {}", added.id))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(outcome: &str, finished_at: &str) -> HistoryRow {
        HistoryRow {
            row: 1,
            id: "i".into(),
            queue: "q".into(),
            kind: "k".into(),
            tenant: None,
            priority: 0,
            outcome: outcome.into(),
            reason: None,
            attempt: 1,
            replays: 0,
            enqueued_at: None,
            started_at: None,
            finished_at: finished_at.parse().unwrap(),
            duration_ms: None,
            worker: None,
            error: None,
            schedule: None,
            trace_id: None,
            payload: None,
            result: None,
        }
    }

    #[test]
    fn a_job_that_is_gone_has_completed_unless_a_record_says_otherwise() {
        let released = "2026-11-22T03:00:00Z".parse().unwrap();
        let at = |seconds: i64| {
            let now: Timestamp = "2026-11-22T03:00:00Z".parse().unwrap();
            now.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap()
        };
        let before = row("dead", "2026-11-22T02:00:00Z");
        let completed = row("completed", "2026-11-22T03:00:01Z");
        let discarded = row("discarded", "2026-11-22T03:00:01Z");
        let failed = row("failed", "2026-11-22T03:00:01Z");
        assert_eq!(ended(&[before.clone(), completed], released, at(1)), Outcome::Completed);
        assert_eq!(ended(&[before.clone(), discarded], released, at(60)), Outcome::Gone("discarded".into()));
        assert_eq!(
            ended(std::slice::from_ref(&before), released, at(1)),
            Outcome::Open,
            "its record may be late"
        );
        assert_eq!(ended(std::slice::from_ref(&before), released, at(6)), Outcome::Completed);
        assert_eq!(ended(&[before, failed], released, at(6)), Outcome::Completed);
        assert_eq!(ended(&[], released, at(6)), Outcome::Completed);
    }
}
