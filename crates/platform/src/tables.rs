//! What a job needs of the platform's tables, and how it ends where they are not there.

use std::fmt;

use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, PgPool};
use voiceai_queue::{JobError, Outcome};

use crate::error::PlatformError;

/// The tables a job needs, each with the columns that it uses.
#[derive(Debug, Clone, Copy)]
pub struct Needs(pub &'static [(&'static str, &'static [&'static str])]);

/// Something of [`Needs`] that this database has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The table.
    pub table: String,
    /// Its absent columns; none when the table itself is absent.
    pub columns: Vec<String>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.columns.is_empty() {
            return write!(f, "table {} is absent", self.table);
        }
        write!(f, "table {} lacks {}", self.table, self.columns.join(", "))
    }
}

impl Missing {
    /// What the job leaves as its result.
    #[must_use]
    pub fn result(&self) -> Value {
        let reason = if self.columns.is_empty() { "table absent" } else { "columns absent" };
        json!({ "skipped": true, "reason": reason, "table": self.table, "columns": self.columns })
    }
}

/// The first of `needs` that is absent, or `None` when the job can run. A table, partitioned table, view or foreign table will do.
///
/// # Errors
/// As the database says.
pub async fn missing(pool: &PgPool, needs: Needs) -> Result<Option<Missing>, PlatformError> {
    for (table, columns) in needs.0 {
        let (exists, absent): (bool, Vec<String>) = sqlx::query_as(
            "SELECT r.oid IS NOT NULL, \
                 COALESCE(array_agg(c.name ORDER BY c.n) FILTER (WHERE a.attname IS NULL AND c.name IS NOT NULL), '{}') \
             FROM (SELECT to_regclass($1) AS oid) r \
             LEFT JOIN unnest($2::text[]) WITH ORDINALITY AS c (name, n) ON true \
             LEFT JOIN pg_attribute a ON a.attrelid = r.oid AND a.attname = c.name AND a.attnum > 0 AND NOT a.attisdropped \
             GROUP BY r.oid",
        )
        .bind(table)
        .bind(columns.iter().map(ToString::to_string).collect::<Vec<_>>())
        .fetch_one(pool)
        .await
        .map_err(PlatformError::database("look for the platform's tables"))?;
        if !exists {
            return Ok(Some(Missing { table: (*table).to_owned(), columns: Vec::new() }));
        }
        if !absent.is_empty() {
            return Ok(Some(Missing { table: (*table).to_owned(), columns: absent }));
        }
    }
    Ok(None)
}

/// SQL that gives `text`, an expression of type text, the type that `column` of `table` has in this installation: a tenant's id may be
/// a uuid, and a state a word or an enum. Planned once a statement, so that an index on the column can be used.
pub(crate) fn typed(table: &str, column: &str, text: &str) -> String {
    format!("(jsonb_populate_record(NULL::{table}, jsonb_build_object('{column}', {text}))).{column}")
}

/// SQL that reads a time of the platform's, with or without a zone (then UTC), as one that a program can hold: of a time without end
/// there is none, and the year 9000 is as far.
pub(crate) fn instant(column: &str) -> String {
    format!(
        "CASE WHEN {column} IS NOT NULL THEN \
             GREATEST(LEAST({column}::timestamptz, '9000-01-01 00:00:00+00'), '0002-01-01 00:00:00+00') END"
    )
}

/// SQL that reads the oldest time of a column by its index. One without end is no time that something happened at.
pub(crate) fn oldest(table: &str, column: &str) -> String {
    format!(
        "(SELECT GREATEST({column}::timestamptz, '0002-01-01 00:00:00+00') FROM {table} \
          WHERE {column} > '-infinity' AND {column} < 'infinity' ORDER BY {column} LIMIT 1)"
    )
}

/// SQL that reads the newest begin of a bucket, up to now: one of the future was not computed by anybody.
pub(crate) fn newest(table: &str, column: &str) -> String {
    format!(
        "(SELECT max({column})::timestamptz FROM {table} WHERE {column} > '-infinity' AND {column} <= now())"
    )
}

/// Runs a job's work where its tables are there, and ends the job: with the work's result; as done and skipped where a table or
/// column is absent; else as [`PlatformError::into_outcome`] says.
///
/// # Errors
/// As [`PlatformError::into_outcome`].
pub async fn finish<F>(pool: &PgPool, kind: &'static str, needs: Needs, work: F) -> Result<Outcome, JobError>
where
    F: Future<Output = Result<Value, PlatformError>> + Send,
{
    match missing(pool, needs).await {
        Ok(Some(missing)) => {
            tracing::info!(
                kind,
                table = missing.table,
                columns = missing.columns.join(","),
                "table absent, skipped"
            );
            return Ok(Outcome::DoneWith(missing.result()));
        }
        Ok(None) => {}
        Err(error) => return error.into_outcome(kind),
    }
    match work.await {
        Ok(result) => Ok(Outcome::DoneWith(result)),
        Err(error) => error.into_outcome(kind),
    }
}
