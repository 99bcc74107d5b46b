//! One statement that writes a batch.

use jiff_sqlx::ToSqlx as _;
use voiceai_postgres::sqlx::{self, PgPool};

use crate::cron::schedule_of_job;
use crate::finished::{DeadReason, Ending, FinishedJob};

/// Longest error text that is kept, in characters.
const ERROR_MAX: usize = 4000;

/// Writes records that are not there yet, settles the outbox rows of critical jobs that ended, and keeps the records of schedules, all in one
/// statement.
pub(super) async fn insert(pool: &PgPool, jobs: &[FinishedJob]) -> Result<(), sqlx::Error> {
    let (settled, revived) = critical(jobs);
    let runs = Runs::of(jobs);
    sqlx::query(
        "WITH settled AS ( \
             UPDATE ops.outbox SET settled_at = now() WHERE id = ANY($21) AND critical AND settled_at IS NULL), \
         revived AS ( \
             UPDATE ops.outbox SET settled_at = NULL WHERE id = ANY($22) AND critical AND settled_at IS NOT NULL), \
         run AS ( \
             UPDATE ops.schedules s SET \
                 last_success_at = COALESCE(r.success_at, s.last_success_at), \
                 last_failure_at = COALESCE(r.failure_at, s.last_failure_at), \
                 last_error = CASE WHEN r.failures > 0 THEN r.error ELSE s.last_error END, \
                 consecutive_failures = CASE WHEN r.success_at IS NULL THEN s.consecutive_failures ELSE 0 END + r.failures \
             FROM unnest($23::text[], $24::timestamptz[], $25::timestamptz[], $26::int[], $27::text[]) \
                  AS r (name, success_at, failure_at, failures, error) WHERE s.name = r.name) \
         INSERT INTO ops.job_history (job_id, queue, kind, tenant, priority, outcome, reason, attempt, replays, \
             enqueued_at, started_at, finished_at, duration_ms, worker, error, schedule, unique_key, trace_id, payload, \
             result) \
         SELECT job_id, queue, kind, tenant, priority, outcome, reason, attempt, replays, enqueued_at, started_at, \
             finished_at, duration_ms, worker, error, schedule, unique_key, trace_id, payload::json, result::json \
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::text[], $7::text[], $8::int[], \
             $9::int[], $10::timestamptz[], $11::timestamptz[], $12::timestamptz[], $13::bigint[], $14::text[], \
             $15::text[], $16::text[], $17::text[], $18::text[], $19::text[], $20::text[]) WITH ORDINALITY AS j (job_id, \
             queue, kind, tenant, priority, outcome, reason, attempt, replays, enqueued_at, started_at, finished_at, \
             duration_ms, worker, error, schedule, unique_key, trace_id, payload, result, n) \
         WHERE outcome IN ('completed', 'failed') OR NOT EXISTS (SELECT 1 FROM ops.job_history h \
             WHERE h.job_id = j.job_id AND h.queue = j.queue AND h.outcome = j.outcome AND h.finished_at = j.finished_at) \
         ORDER BY n",
    )
    .bind(column(jobs, |job| clean(job.id.as_str())))
    .bind(column(jobs, |job| clean(&job.queue)))
    .bind(column(jobs, |job| clean(&job.kind)))
    .bind(column(jobs, |job| some(&job.tenant)))
    .bind(column(jobs, |job| i16::from(job.priority)))
    .bind(column(jobs, |job| job.ending.as_str()))
    .bind(column(jobs, |job| job.ending.dead_reason().map(DeadReason::as_str)))
    .bind(column(jobs, |job| i32::try_from(job.attempt).unwrap_or(i32::MAX)))
    .bind(column(jobs, |job| i32::try_from(job.replays).unwrap_or(i32::MAX)))
    .bind(column(jobs, |job| job.enqueued_at.to_sqlx()))
    .bind(column(jobs, |job| job.started_at.map(jiff::Timestamp::to_sqlx)))
    .bind(column(jobs, |job| job.finished_at.to_sqlx()))
    .bind(column(jobs, duration_ms))
    .bind(column(jobs, |job| some(&job.worker)))
    .bind(column(jobs, |job| job.error.as_deref().map(shortened)))
    .bind(column(jobs, |job| schedule_of_job(job.id.as_str()).map(clean)))
    .bind(column(jobs, |job| job.unique.as_deref().map(clean)))
    .bind(column(jobs, |job| job.trace.as_deref().and_then(|trace| trace.split('-').nth(1)).map(clean)))
    .bind(column(jobs, |job| job.payload.as_ref().map(|payload| payload.get().to_owned())))
    .bind(column(jobs, |job| job.result.as_ref().map(ToString::to_string)))
    .bind(settled)
    .bind(revived)
    .bind(runs.names)
    .bind(runs.success_at)
    .bind(runs.failure_at)
    .bind(runs.failures)
    .bind(runs.errors)
    .execute(pool)
    .await
    .map(|_| ())
}

fn column<'j, T>(jobs: &'j [FinishedJob], value: impl FnMut(&'j FinishedJob) -> T) -> Vec<T> {
    jobs.iter().map(value).collect()
}

/// PostgreSQL's text holds no NUL; one in an error text must not cost the batch.
fn clean(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| clean(text))
}

fn shortened(text: &str) -> String {
    clean(&text.chars().take(ERROR_MAX).collect::<String>())
}

fn duration_ms(job: &FinishedJob) -> Option<i64> {
    let started = job.started_at?;
    i64::try_from(job.finished_at.duration_since(started).as_millis()).ok().map(|ms| ms.max(0))
}

const fn is_over(ending: Ending) -> bool {
    matches!(
        ending,
        Ending::Completed | Ending::Dead(_) | Ending::Cancelled | Ending::Discarded | Ending::Removed
    )
}

/// Ids whose outbox row, if there is a critical one, is settled, and those that live again. The last record of a job counts.
fn critical(jobs: &[FinishedJob]) -> (Vec<String>, Vec<String>) {
    let mut last = std::collections::BTreeMap::new();
    for job in jobs {
        if is_over(job.ending) || job.ending == Ending::Replayed {
            last.insert(clean(job.id.as_str()), is_over(job.ending));
        }
    }
    let (settled, revived): (Vec<_>, Vec<_>) = last.into_iter().partition(|(_, over)| *over);
    let ids = |pairs: Vec<(String, bool)>| pairs.into_iter().map(|(id, _)| id).collect();
    (ids(settled), ids(revived))
}

/// What a batch says about schedules, one row a schedule.
#[derive(Default)]
struct Runs {
    names: Vec<String>,
    success_at: Vec<Option<jiff_sqlx::Timestamp>>,
    failure_at: Vec<Option<jiff_sqlx::Timestamp>>,
    failures: Vec<i32>,
    errors: Vec<Option<String>>,
}

impl Runs {
    fn of(jobs: &[FinishedJob]) -> Self {
        let mut all = Self::default();
        for job in jobs {
            let Some(name) = schedule_of_job(job.id.as_str()) else { continue };
            let (completed, dead) = (job.ending == Ending::Completed, matches!(job.ending, Ending::Dead(_)));
            if !completed && !dead {
                continue;
            }
            let at = all.names.iter().position(|have| have == name).unwrap_or_else(|| all.push(name));
            let finished = Some(job.finished_at.to_sqlx());
            if completed {
                all.success_at[at] = finished;
                all.failures[at] = 0;
            } else {
                all.failure_at[at] = finished;
                all.failures[at] += 1;
                all.errors[at] = job.error.as_deref().map(shortened);
            }
        }
        all
    }

    fn push(&mut self, name: &str) -> usize {
        self.names.push(clean(name));
        self.success_at.push(None);
        self.failure_at.push(None);
        self.failures.push(0);
        self.errors.push(None);
        self.names.len() - 1
    }
}
