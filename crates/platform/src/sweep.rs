//! `retention.sweep`: deletes what has been kept long enough, a batch at a time with rests between, and writes down what it did.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, AssertSqlSafe, PgConnection};
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use crate::error::PlatformError;
use crate::sweep_rules::{Rule, SweepSet};
use crate::tables::{Needs, missing};
use crate::upkeep::{HOUSEKEEPING_QUEUE, Upkeep, begin, check_stop, rest};

/// One batch may take so long; a batch is ten thousand rows, not a table.
const BATCH_LIMIT: Duration = Duration::from_secs(300);
/// As may the vacuum after.
const VACUUM_LIMIT: Duration = Duration::from_secs(3600);

/// Deletes old rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionSweep {
    /// Which tables.
    pub set: SweepSet,
    /// Only these of them; else all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
}

impl Job for RetentionSweep {
    const KIND: &'static str = "retention.sweep";
    const QUEUE: &'static str = HOUSEKEEPING_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(12 * 3600);
    type Context = Upkeep;

    async fn run(&self, upkeep: &Upkeep, attempt: &Attempt) -> Result<Outcome, JobError> {
        // Each table is looked for by itself: one that is absent keeps none of the others from being swept.
        upkeep.finish(Self::KIND, Needs(&[]), self.sweep(upkeep, attempt)).await
    }
}

impl RetentionSweep {
    async fn sweep(&self, upkeep: &Upkeep, attempt: &Attempt) -> Result<Value, PlatformError> {
        let rules = self.set.rules();
        if let Some(unknown) = self.tables.iter().find(|name| rules.iter().all(|rule| rule.table != **name)) {
            let known: Vec<_> = rules.iter().map(|rule| rule.table).collect();
            let reason = format!("`{unknown}` is none of this set's: {}", known.join(", "));
            return Err(PlatformError::invalid("tables", reason));
        }
        let mut swept = serde_json::Map::new();
        let mut failed = Vec::new();
        for rule in rules {
            if !self.tables.is_empty() && self.tables.iter().all(|name| name != rule.table) {
                continue;
            }
            if let Some(missing) = missing(&upkeep.pool, rule.needs).await? {
                tracing::info!(kind = Self::KIND, table = rule.table, %missing, "table absent, skipped");
                swept.insert(rule.table.to_owned(), missing.result());
                continue;
            }
            if is_view(upkeep, rule).await? {
                let reason = "not a table: a view or a foreign table is not swept";
                tracing::info!(kind = Self::KIND, table = rule.table, reason, "a table is skipped");
                swept.insert(
                    rule.table.to_owned(),
                    json!({ "skipped": true, "reason": reason, "table": rule.table }),
                );
                continue;
            }
            match table(upkeep, attempt, rule).await {
                Ok(rows) => {
                    swept.insert(rule.table.to_owned(), json!({ "rows": rows }));
                }
                Err(PlatformError::Stopped) => return Err(PlatformError::Stopped),
                // The other tables do not wait for this one to be mended.
                Err(error) => {
                    tracing::error!(kind = Self::KIND, table = rule.table, error = %crate::text(&error), "a table was not swept");
                    failed.push((rule.table, error));
                }
            }
        }
        outcome(failed).map(|()| Value::Object(swept))
    }
}

/// What a sweep ends with of which these tables failed: what may pass by itself is tried again, and then the others are named too.
fn outcome(mut failed: Vec<(&'static str, PlatformError)>) -> Result<(), PlatformError> {
    if let Some(passing) = failed.iter().position(|(_, error)| !error.is_final()) {
        return Err(failed.swap_remove(passing).1);
    }
    let Some((first, error)) = failed.first() else { return Ok(()) };
    let others: Vec<_> = failed.iter().skip(1).map(|(table, _)| *table).collect();
    let others = if others.is_empty() { String::new() } else { format!("; nor were {}", others.join(", ")) };
    Err(PlatformError::invalid(*first, format!("it was not swept: {}{others}", crate::text(error))))
}

/// Whether the platform has a view, or a table of another server, in the place of a rule's: rows are not found by where they lie there.
async fn is_view(upkeep: &Upkeep, rule: &Rule) -> Result<bool, PlatformError> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass($1) AND relkind IN ('v', 'm', 'f'))",
    )
    .bind(rule.table)
    .fetch_one(&upkeep.pool)
    .await
    .map_err(PlatformError::database("look for the platform's tables"))
}

/// Sweeps one table, with a row of `ops.maintenance_log` from the first batch to the last.
async fn table(upkeep: &Upkeep, attempt: &Attempt, rule: &Rule) -> Result<i64, PlatformError> {
    let mut session = upkeep.session(BATCH_LIMIT).await?;
    let entry = open(&mut session, rule, attempt).await?;
    let swept = batches(upkeep, attempt, rule, &mut session, entry).await;
    let end = match &swept {
        Ok(rows) => close(&mut session, entry, None).await.map(|()| *rows),
        // What is to come is the same work: the row tells of a cut, and the next run of its own rows.
        Err(error) => close(&mut session, entry, Some(&crate::text(error))).await.map(|()| 0),
    };
    let rows = swept?;
    end?;
    if rows > 0 {
        vacuum(&mut session, rule).await;
    }
    Ok(rows)
}

async fn batches(
    upkeep: &Upkeep,
    attempt: &Attempt,
    rule: &Rule,
    session: &mut PgConnection,
    entry: i64,
) -> Result<i64, PlatformError> {
    let statement = rule.statement();
    let age = rule.age(&upkeep.settings.retention).as_secs_f64();
    let mut rows = 0_i64;
    loop {
        check_stop(attempt)?;
        // A batch and its count are one: a killed process has deleted what the log says, and nothing beside it.
        let mut transaction = begin(session, "delete a batch of old rows").await?;
        let done = sqlx::query(AssertSqlSafe(statement.as_str()))
            .bind(age)
            .bind(upkeep.batch())
            .execute(&mut *transaction)
            .await
            .map_err(PlatformError::database("delete a batch of old rows"))?;
        let batch = i64::try_from(done.rows_affected()).unwrap_or(i64::MAX);
        if batch == 0 {
            return Ok(rows);
        }
        rows = rows.saturating_add(batch);
        sqlx::query("UPDATE ops.maintenance_log SET rows_affected = $2 WHERE id = $1")
            .bind(entry)
            .bind(rows)
            .execute(&mut *transaction)
            .await
            .map_err(PlatformError::database(LOG))?;
        transaction.commit().await.map_err(PlatformError::database("delete a batch of old rows"))?;
        rest(attempt, upkeep.settings.pause).await?;
    }
}

const LOG: &str = "write the log of maintenance";

/// A new entry. Those that a killed process left open are closed: nobody works on them any more, or their worker closes them itself.
async fn open(session: &mut PgConnection, rule: &Rule, attempt: &Attempt) -> Result<i64, PlatformError> {
    let details = json!({ "table": rule.table, "job": attempt.id().as_str() });
    sqlx::query(
        "UPDATE ops.maintenance_log SET status = 'FAILED', completed_at = clock_timestamp(), \
             error_message = 'cut off: its process ended' \
         WHERE job_name = $1 AND status = 'RUNNING' AND details ->> 'table' = $2 AND details ->> 'job' = $3",
    )
    .bind(RetentionSweep::KIND)
    .bind(rule.table)
    .bind(attempt.id().as_str())
    .execute(&mut *session)
    .await
    .map_err(PlatformError::database(LOG))?;
    sqlx::query_scalar("INSERT INTO ops.maintenance_log (job_name, details) VALUES ($1, $2) RETURNING id")
        .bind(RetentionSweep::KIND)
        .bind(details)
        .fetch_one(session)
        .await
        .map_err(PlatformError::database(LOG))
}

async fn close(session: &mut PgConnection, entry: i64, error: Option<&str>) -> Result<(), PlatformError> {
    sqlx::query(
        "UPDATE ops.maintenance_log SET completed_at = clock_timestamp(), error_message = left($2, 500), \
             status = CASE WHEN $2::text IS NULL THEN 'COMPLETED' ELSE 'FAILED' END WHERE id = $1",
    )
    .bind(entry)
    .bind(error)
    .execute(session)
    .await
    .map_err(PlatformError::database(LOG))?;
    Ok(())
}

/// Gives the room back and counts anew. The rows are gone whether or not this succeeds.
async fn vacuum(session: &mut PgConnection, rule: &Rule) {
    let sql = format!("SET statement_timeout = {}", VACUUM_LIMIT.as_millis());
    let mut done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *session).await;
    if done.is_ok() {
        let sql = format!("VACUUM (ANALYZE, SKIP_LOCKED) {}", rule.table);
        done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(session).await;
    }
    if let Err(error) = done {
        tracing::warn!(table = rule.table, %error, "a swept table was not vacuumed; autovacuum will");
    }
}
