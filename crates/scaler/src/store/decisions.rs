//! What was decided, and why.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use serde_json::Value;
use voiceai_postgres::{Tenure, sqlx, term};
use voiceai_scaler_core::Sample;

use super::rows::{get, time};
use super::{Store, StoreError};

/// One evaluation of one group.
#[derive(Debug, Clone)]
pub struct DecisionRow {
    /// The group's id.
    pub group_id: String,
    /// The group's name.
    pub group_name: String,
    /// `hold`, `add`, `remove` or `invalid`.
    pub action: &'static str,
    /// The reason's stable word.
    pub reason: String,
    /// One line for a person.
    pub summary: String,
    /// The whole decision.
    pub details: Value,
}

impl Store {
    /// Writes one row for each evaluation, in one statement.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when a newer leader has taken over; else as the database says.
    pub async fn write_decisions(
        &self,
        tenure: &Tenure,
        at: Timestamp,
        rows: &[DecisionRow],
    ) -> Result<(), StoreError> {
        const TRIED: &str = "write decisions";
        let term = tenure.check()?;
        let column = |of: fn(&DecisionRow) -> String| rows.iter().map(of).collect::<Vec<_>>();
        let details: Vec<Value> = rows.iter().map(|row| row.details.clone()).collect();
        let answer = sqlx::query(
            "WITH leader AS (SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE), \
             written AS ( \
                 INSERT INTO ops.decisions (at, term, group_id, group_name, action, reason, summary, details) \
                 SELECT $3, $2, d.* FROM leader, unnest($4::text[], $5::text[], $6::text[], $7::text[], $8::text[], \
                     $9::jsonb[]) AS d) \
             SELECT EXISTS (SELECT FROM leader)",
        )
        .bind(&*term.name)
        .bind(term.number)
        .bind(at.to_sqlx())
        .bind(column(|row| row.group_id.clone()))
        .bind(column(|row| row.group_name.clone()))
        .bind(column(|row| row.action.to_owned()))
        .bind(column(|row| row.reason.clone()))
        .bind(column(|row| row.summary.clone()))
        .bind(details)
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::database(TRIED))?;
        if get(&answer, 0)? {
            return Ok(());
        }
        term::refused(term, "decisions.write");
        Err(StoreError::Fenced { tried: TRIED })
    }

    /// Evaluations since `since` by the group's id, oldest first: what a new leader remembers of its predecessor's.
    ///
    /// # Errors
    /// As the database says.
    pub async fn past_samples(&self, since: Timestamp) -> Result<Vec<(String, Sample)>, StoreError> {
        let rows = sqlx::query(
            "SELECT group_id, at, (details #>> '{inputs,utilisation}')::float8, (details ->> 'wish')::bigint, \
                    COALESCE((details ->> 'panic')::boolean, false) \
             FROM ops.decisions WHERE at > $1 AND action <> 'invalid' ORDER BY id",
        )
        .bind(since.to_sqlx())
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("read past decisions"))?;
        rows.iter()
            .map(|row| {
                let sample = Sample {
                    at: time(row, 1)?,
                    utilisation: get(row, 2)?,
                    wish: u32::try_from(get::<i64>(row, 3)?).unwrap_or(0),
                    panic: get(row, 4)?,
                };
                Ok((get(row, 0)?, sample))
            })
            .collect()
    }
}
