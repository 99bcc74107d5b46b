//! Writing rows.

use jiff_sqlx::ToSqlx as _;
use voiceai_postgres::sqlx::{self, PgExecutor, Row};

use super::OutboxJob;
use crate::new_job::Due;

/// What an insert did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// The row is there as soon as the surrounding transaction is committed.
    New,
    /// A row with this id was there before: the job is enqueued once.
    Known,
}

/// Writes one job, in the transaction of `executor`: it is enqueued when that transaction is committed, and never was when it is
/// rolled back.
///
/// # Errors
/// As the database says; a value that the table refuses is named by its constraint.
pub async fn insert(executor: impl PgExecutor<'_>, job: &OutboxJob) -> Result<Inserted, sqlx::Error> {
    let known = insert_many(executor, std::slice::from_ref(job)).await?.pop();
    Ok(known.unwrap_or(Inserted::Known))
}

/// Writes many jobs in one statement; one result a job, in order. Of two with one id the first counts.
///
/// # Errors
/// As the database says. Then none of them is written.
pub async fn insert_many(
    executor: impl PgExecutor<'_>,
    jobs: &[OutboxJob],
) -> Result<Vec<Inserted>, sqlx::Error> {
    let rows = sqlx::query(
        "INSERT INTO ops.outbox \
             (id, queue, kind, payload, priority, run_at, tenant, options, traceparent, critical) \
         SELECT id, queue, kind, payload::json, priority, COALESCE(run_at, now() + delay_s * interval '1 second'), tenant, \
                options::jsonb, traceparent, critical \
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::timestamptz[], $7::text[], \
                     $8::text[], $9::text[], $10::boolean[], $11::float8[]) WITH ORDINALITY \
              AS j (id, queue, kind, payload, priority, run_at, tenant, options, traceparent, critical, delay_s, n) \
         ORDER BY n ON CONFLICT (id) DO NOTHING RETURNING id",
    )
    .bind(column(jobs, |job| job.id.clone()))
    .bind(column(jobs, |job| job.queue.clone()))
    .bind(column(jobs, |job| job.kind.clone()))
    .bind(column(jobs, |job| job.payload.get().to_owned()))
    .bind(column(jobs, |job| i16::from(job.priority)))
    .bind(column(jobs, |job| match job.due {
        Due::At(at) => Some(at.to_sqlx()),
        Due::Now | Due::After(_) => None,
    }))
    .bind(column(jobs, |job| job.tenant.clone()))
    .bind(column(jobs, |job| serde_json::to_string(&job.options).unwrap_or_else(|_| "{}".to_owned())))
    .bind(column(jobs, |job| job.traceparent.clone()))
    .bind(column(jobs, |job| job.critical))
    // A delay counts from the commit's clock, the database's, as the queue counts it by Redis's.
    .bind(column(jobs, |job| match job.due {
        Due::After(delay) => Some(delay.as_secs_f64()),
        Due::Now | Due::At(_) => None,
    }))
    .fetch_all(executor)
    .await?;
    let mut new =
        rows.iter().map(|row| row.try_get(0)).collect::<Result<std::collections::HashSet<String>, _>>()?;
    Ok(jobs.iter().map(|job| if new.remove(&job.id) { Inserted::New } else { Inserted::Known }).collect())
}

fn column<T>(jobs: &[OutboxJob], value: impl FnMut(&OutboxJob) -> T) -> Vec<T> {
    jobs.iter().map(value).collect()
}
