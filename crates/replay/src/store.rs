use std::time::Duration;

use jiff_sqlx::ToSqlx as _;
use serde_json::{Value, json};
use uuid::Uuid;
use voiceai_postgres::audit::{self, Entry};
use voiceai_postgres::sqlx::{self, Row};
use voiceai_postgres::{PgPool, is_unavailable};

use crate::record::{self, Counts, Item, ItemState, Replay};
use crate::rule::{PROOF_AGE, PROOF_MAX, Proof};
use crate::{Filter, Plan};

/// The rows of a replay could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// As the database says.
    #[error("{tried}")]
    Database {
        /// What was being done.
        tried: &'static str,
        /// The database's answer.
        source: sqlx::Error,
    },
    /// There is no replay with this id.
    #[error("replay {0} does not exist")]
    NotFound(Uuid),
    /// Somebody else is carrying it out right now.
    #[error("replay {id} is being carried out by {runner}")]
    Busy {
        /// The replay.
        id: Uuid,
        /// Who holds it.
        runner: String,
    },
    /// A row holds what this version does not know.
    #[error("replay {id}: unknown {what} `{found}`, written by a newer version?")]
    Unknown {
        /// The replay.
        id: Uuid,
        /// Which column.
        what: &'static str,
        /// What it holds.
        found: String,
    },
}

impl ReplayError {
    /// True when the same call may succeed once the database is back.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Database { source, .. } if is_unavailable(source))
    }
}

pub(crate) fn failed(tried: &'static str) -> impl FnOnce(sqlx::Error) -> ReplayError {
    move |source| ReplayError::Database { tried, source }
}

/// A replay about to be written down.
#[derive(Clone, Copy, Debug)]
pub struct Begin<'a> {
    /// `jobs`, `mail`, `webhooks`.
    pub subject: &'static str,
    /// What was selected.
    pub filter: &'a Filter,
    /// This build.
    pub version: &'a str,
    /// Who.
    pub actor: &'a str,
    /// Why.
    pub reason: &'a str,
    /// The limit given; judged by [`crate::rule::judge_limit`] before.
    pub limit: u32,
    /// Items released in each second.
    pub per_second: f64,
    /// What was found; its chosen candidates become the items.
    pub plan: &'a Plan,
}

/// The rows of all replays.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
    service: &'static str,
}

const REPLAY: &str = "SELECT r.id, r.subject, r.filter, r.version, r.actor, r.reason, r.item_limit, r.per_second, r.matched, \
     r.state, r.stop_reason, r.deaths_forgiven, r.created_at, c.* FROM ops.replays r, LATERAL ( \
         SELECT count(*), count(*) FILTER (WHERE state IN ('pending', 'releasing')), \
                count(*) FILTER (WHERE state = 'released'), count(*) FILTER (WHERE state = 'completed'), \
                count(*) FILTER (WHERE state = 'died'), count(*) FILTER (WHERE state = 'skipped'), \
                count(*) FILTER (WHERE state = 'gone') \
         FROM ops.replay_items i WHERE i.replay_id = r.id) c";

impl Store {
    /// `service` stands in the audit trail.
    #[must_use]
    pub const fn new(pool: PgPool, service: &'static str) -> Self {
        Self { pool, service }
    }

    /// Writes the replay, its items and its audit entry, all or nothing. Releases nothing.
    ///
    /// # Errors
    /// As the database says.
    pub async fn begin(&self, begin: &Begin<'_>) -> Result<Uuid, ReplayError> {
        let id = Uuid::now_v7();
        let tried = "write down the replay";
        let mut transaction = self.pool.begin().await.map_err(failed(tried))?;
        sqlx::query(
            "INSERT INTO ops.replays (id, subject, filter, version, actor, reason, item_limit, per_second, matched, state) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'running')",
        )
        .bind(id)
        .bind(begin.subject)
        .bind(json!(begin.filter))
        .bind(begin.version)
        .bind(begin.actor)
        .bind(begin.reason)
        .bind(i32::try_from(begin.limit).unwrap_or(i32::MAX))
        .bind(begin.per_second)
        .bind(i64::try_from(begin.plan.matched).unwrap_or(i64::MAX))
        .execute(&mut *transaction)
        .await
        .map_err(failed(tried))?;
        let chosen: Vec<_> = begin.plan.chosen().collect();
        let places: Vec<&str> = chosen.iter().map(|candidate| candidate.place.as_str()).collect();
        let ids: Vec<&str> = chosen.iter().map(|candidate| candidate.id.as_str()).collect();
        let contents: Vec<Option<&Value>> =
            chosen.iter().map(|candidate| candidate.content.as_ref()).collect();
        sqlx::query(
            "INSERT INTO ops.replay_items (replay_id, position, place, item_id, content) \
             SELECT $1, n - 1, place, item_id, content \
             FROM unnest($2::text[], $3::text[], $4::jsonb[]) WITH ORDINALITY AS t (place, item_id, content, n)",
        )
        .bind(id)
        .bind(&places)
        .bind(&ids)
        .bind(&contents)
        .execute(&mut *transaction)
        .await
        .map_err(failed(tried))?;
        let subject = id.to_string();
        let action = format!("{}.replay", begin.subject);
        let details = json!({
            "filter": begin.filter,
            "matched": begin.plan.matched,
            "passed": begin.plan.passed,
            "items": chosen.len(),
            "limit": begin.limit,
            "per_second": begin.per_second,
            "version": begin.version,
        });
        let entry = Entry {
            service: self.service,
            actor: begin.actor,
            action: &action,
            subject: &subject,
            reason: Some(begin.reason),
            details,
        };
        audit::record(&mut *transaction, entry).await.map_err(failed(tried))?;
        transaction.commit().await.map_err(failed(tried))?;
        Ok(id)
    }

    /// One replay with its counts.
    ///
    /// # Errors
    /// [`ReplayError::NotFound`]; else as the database says.
    pub async fn get(&self, id: Uuid) -> Result<Replay, ReplayError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{REPLAY} WHERE r.id = $1")))
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("read the replay"))?;
        row.map_or(Err(ReplayError::NotFound(id)), |row| record::replay(&row))
    }

    /// Small batches with this filter and version that may prove something and still have items nobody knows the end of.
    /// A caller settles those (see [`crate::run`]) before it asks for the [`Store::proof`].
    ///
    /// # Errors
    /// As the database says.
    pub async fn unsettled_proofs(
        &self,
        subject: &str,
        filter: &Filter,
        version: &str,
    ) -> Result<Vec<Uuid>, ReplayError> {
        let all = self.small_batches(subject, filter, version).await?;
        Ok(all.into_iter().filter(|replay| replay.counts.open > 0).map(|replay| replay.id).collect())
    }

    /// What the rows prove, as they stand.
    ///
    /// # Errors
    /// As the database says.
    pub async fn proof(&self, subject: &str, filter: &Filter, version: &str) -> Result<Proof, ReplayError> {
        let all = self.small_batches(subject, filter, version).await?;
        let replayed = |counts: &Counts| counts.items - counts.skipped;
        if all.iter().any(|r| replayed(&r.counts) > 0 && r.counts.completed == replayed(&r.counts)) {
            return Ok(Proof::Complete);
        }
        Ok(all.first().map_or(Proof::Absent, |newest| Proof::Incomplete {
            completed: u32::try_from(newest.counts.completed).unwrap_or(0),
            of: u32::try_from(replayed(&newest.counts)).unwrap_or(0),
        }))
    }

    /// Newest first; only those of which at least one item was meant to be replayed.
    async fn small_batches(
        &self,
        subject: &str,
        filter: &Filter,
        version: &str,
    ) -> Result<Vec<Replay>, ReplayError> {
        let since = jiff::Timestamp::now() - PROOF_AGE;
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{REPLAY} WHERE r.subject = $1 AND r.filter = $2 AND r.version = $3 AND r.created_at >= $4 \
             ORDER BY r.created_at DESC"
        )))
        .bind(subject)
        .bind(json!(filter))
        .bind(version)
        .bind(since.to_sqlx())
        .fetch_all(&self.pool)
        .await
        .map_err(failed("look for an earlier batch with the same filter"))?;
        let all: Vec<Replay> = rows.iter().map(record::replay).collect::<Result<_, _>>()?;
        Ok(all
            .into_iter()
            .filter(|r| (1..=i64::from(PROOF_MAX)).contains(&(r.counts.items - r.counts.skipped)))
            .collect())
    }

    /// Items of a replay in order, from the one after `after`: all, or only those in one of `states`.
    ///
    /// # Errors
    /// As the database says.
    pub async fn items(
        &self,
        id: Uuid,
        states: &[ItemState],
        after: Option<i32>,
        limit: i64,
    ) -> Result<Vec<Item>, ReplayError> {
        let words: Vec<&str> = states.iter().map(|state| state.word()).collect();
        let rows = sqlx::query(
            "SELECT position, place, item_id, content, state, detail, released_at FROM ops.replay_items \
             WHERE replay_id = $1 AND (cardinality($2::text[]) = 0 OR state = ANY ($2)) AND position > $4 \
             ORDER BY position LIMIT $3",
        )
        .bind(id)
        .bind(&words)
        .bind(limit)
        .bind(after.unwrap_or(-1))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("read the replay's items"))?;
        rows.iter().map(|row| record::item(id, row)).collect()
    }

    /// Of the settled items, oldest first, whether each died.
    pub(crate) async fn deaths(&self, id: Uuid) -> Result<Vec<bool>, ReplayError> {
        let rows = sqlx::query(
            "SELECT state = 'died' FROM ops.replay_items WHERE replay_id = $1 AND state IN ('completed', 'died') \
             ORDER BY settled_at, position",
        )
        .bind(id)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("read what became of the replay's items"))?;
        rows.iter()
            .map(|row| row.try_get(0).map_err(failed("read what became of the replay's items")))
            .collect()
    }

    /// Writes down what became of items.
    pub(crate) async fn mark(
        &self,
        id: Uuid,
        marks: &[(i32, ItemState, Option<String>)],
    ) -> Result<(), ReplayError> {
        if marks.is_empty() {
            return Ok(());
        }
        let positions: Vec<i32> = marks.iter().map(|(position, _, _)| *position).collect();
        let states: Vec<&str> = marks.iter().map(|(_, state, _)| state.word()).collect();
        let details: Vec<Option<&str>> = marks.iter().map(|(_, _, detail)| detail.as_deref()).collect();
        sqlx::query(
            "UPDATE ops.replay_items i SET state = t.state, detail = t.detail, \
                 released_at = CASE WHEN t.state = 'released' THEN now() ELSE i.released_at END, \
                 settled_at = CASE WHEN t.state IN ('completed', 'died', 'skipped', 'gone') THEN now() END \
             FROM unnest($2::int[], $3::text[], $4::text[]) AS t (position, state, detail) \
             WHERE i.replay_id = $1 AND i.position = t.position",
        )
        .bind(id)
        .bind(&positions)
        .bind(&states)
        .bind(&details)
        .execute(&self.pool)
        .await
        .map(|_| ())
        .map_err(failed("write down what became of the replay's items"))
    }

    /// Makes `runner` the one who carries the replay out, or lets it go on doing so.
    pub(crate) async fn hold(&self, id: Uuid, runner: &str, for_: Duration) -> Result<(), ReplayError> {
        let tried = "take hold of the replay";
        let until = jiff::Timestamp::now() + for_;
        let taken = sqlx::query(
            "UPDATE ops.replays SET runner = $2, runner_until = $3, updated_at = now() \
             WHERE id = $1 AND (runner IS NULL OR runner = $2 OR runner_until < now())",
        )
        .bind(id)
        .bind(runner)
        .bind(until.to_sqlx())
        .execute(&self.pool)
        .await
        .map_err(failed(tried))?;
        if taken.rows_affected() == 1 {
            return Ok(());
        }
        let row = sqlx::query("SELECT COALESCE(runner, '') FROM ops.replays WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed(tried))?
            .ok_or(ReplayError::NotFound(id))?;
        Err(ReplayError::Busy { id, runner: row.try_get(0).map_err(failed(tried))? })
    }

    /// Lets the replay go, so that another may carry it on at once.
    pub(crate) async fn let_go(&self, id: Uuid, runner: &str) -> Result<(), ReplayError> {
        sqlx::query("UPDATE ops.replays SET runner = NULL, runner_until = NULL WHERE id = $1 AND runner = $2")
            .bind(id)
            .bind(runner)
            .execute(&self.pool)
            .await
            .map(|_| ())
            .map_err(failed("let go of the replay"))
    }

    /// Ends the replay: everything released, or stopped for a reason. Audited with the counts.
    pub(crate) async fn end(&self, id: Uuid, stop_reason: Option<&str>) -> Result<(), ReplayError> {
        let tried = "write down the end of the replay";
        let state = if stop_reason.is_some() { "stopped" } else { "released" };
        let changed = sqlx::query(
            "UPDATE ops.replays SET state = $2, stop_reason = $3, updated_at = now() WHERE id = $1 AND state = 'running'",
        )
        .bind(id)
        .bind(state)
        .bind(stop_reason)
        .execute(&self.pool)
        .await
        .map_err(failed(tried))?;
        if changed.rows_affected() == 0 {
            return Ok(());
        }
        let replay = self.get(id).await?;
        let details = json!({ "state": state, "stop_reason": stop_reason, "counts": replay.counts });
        self.audit(&replay, "ended", &replay.actor, None, details).await
    }

    /// Lets a stopped or interrupted replay be carried on: the deaths so far are accepted. Audited.
    ///
    /// # Errors
    /// [`ReplayError::NotFound`]; else as the database says.
    pub async fn go_on(&self, id: Uuid, actor: &str, reason: Option<&str>) -> Result<Replay, ReplayError> {
        sqlx::query(
            "UPDATE ops.replays SET state = 'running', stop_reason = NULL, updated_at = now(), deaths_forgiven = \
                 (SELECT count(*) FROM ops.replay_items WHERE replay_id = $1 AND state = 'died') \
             WHERE id = $1 AND state <> 'released'",
        )
        .bind(id)
        .execute(&self.pool)
        .await
        .map_err(failed("go on with the replay"))?;
        let replay = self.get(id).await?;
        let details = json!({ "counts": replay.counts });
        self.audit(&replay, "resumed", actor, reason, details).await?;
        Ok(replay)
    }

    async fn audit(
        &self,
        replay: &Replay,
        what: &str,
        actor: &str,
        reason: Option<&str>,
        details: Value,
    ) -> Result<(), ReplayError> {
        let action = format!("{}.replay_{what}", replay.subject);
        let subject = replay.id.to_string();
        let entry =
            Entry { service: self.service, actor, action: &action, subject: &subject, reason, details };
        audit::record(&self.pool, entry).await.map_err(failed("write the audit entry of the replay"))
    }
}
