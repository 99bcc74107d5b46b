//! Intents: a new server, or the removal of one, before anything is done about it.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use serde_json::Value;
use uuid::Uuid;
use voiceai_postgres::{Tenure, sqlx, term};
use voiceai_scaler_core::policy::Policy;

use super::rows::{DownSettings, ServerSpec, get};
use super::{Store, StoreError};
use crate::notices::{Columns, Notice, enqueue_notices};

/// A server to be made.
#[derive(Debug)]
pub struct NewServer<'a> {
    /// Its name, fixed from here on.
    pub name: &'a str,
    /// The group's policy.
    pub policy: &'a Policy,
    /// When it was decided: the cooldown counts from here.
    pub at: Timestamp,
    /// Who decided.
    pub actor: &'a str,
    /// Why.
    pub reason: &'a str,
}

/// A removal to be begun.
#[derive(Debug)]
pub struct NewRemoval<'a> {
    /// The server's name.
    pub server: &'a str,
    /// When it was decided.
    pub at: Timestamp,
    /// Who decided.
    pub actor: &'a str,
    /// Why.
    pub reason: &'a str,
    /// How.
    pub settings: DownSettings,
    /// What people are told of it.
    pub notice: Option<Notice>,
}

/// A group for which nothing is bought for a while.
#[derive(Debug)]
pub struct CreateHold<'a> {
    /// The group's id.
    pub group_id: &'a str,
    /// The group's name.
    pub group_name: &'a str,
    /// The end of it.
    pub until: Timestamp,
    /// Why.
    pub why: &'a str,
    /// True when it is the circuit that opens: the next time it stays open for longer.
    pub circuit: bool,
    /// What people are told of it.
    pub notice: Option<Notice>,
}

/// What became of an intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It stands.
    Operation(Uuid),
    /// The name is in use, or the server is not one that can be removed now.
    Taken,
}

/// What became of a note on a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Raised {
    /// It was written.
    Written,
    /// There was nothing to write it on.
    Nothing,
}

impl Store {
    /// Writes the intent to make a server: its row, its operation, the first step and the group's cooldown, or nothing.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when a newer leader has taken over; else as the database says.
    pub async fn plan_server(&self, tenure: &Tenure, new: &NewServer<'_>) -> Result<Created, StoreError> {
        const TRIED: &str = "write the intent to make a server";
        let term = tenure.check()?;
        let (server, operation) = (Uuid::now_v7(), Uuid::now_v7());
        let spec = serde_json::to_value(ServerSpec::of(new.policy)).unwrap_or(Value::Null);
        let row = sqlx::query(
            "WITH leader AS (SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE), \
             server AS ( \
                 INSERT INTO ops.servers (id, name, group_id, group_name, service, status, made_by, provider, spec) \
                 SELECT $3, $5, $6, $7, $8, 'booting', $4, $9, $10 FROM leader ON CONFLICT DO NOTHING RETURNING id), \
             operation AS ( \
                 INSERT INTO ops.operations (id, server_id, kind, state, term, actor, reason) \
                 SELECT $4, id, 'up', 'planned', $2, $11, $12 FROM server RETURNING id), \
             step AS ( \
                 INSERT INTO ops.operation_steps (operation_id, term, event, to_state, note) \
                 SELECT id, $2, 'decided', 'planned', $12 FROM operation), \
             cooldown AS ( \
                 INSERT INTO ops.scaling_groups AS g (group_id, group_name, last_up_at) \
                 SELECT $6, $7, $13 FROM operation WHERE $13::timestamptz IS NOT NULL \
                 ON CONFLICT (group_id) DO UPDATE SET group_name = $7, last_up_at = $13) \
             SELECT EXISTS (SELECT FROM leader), (SELECT id FROM operation)",
        )
        .bind(&*term.name)
        .bind(term.number)
        .bind(server)
        .bind(operation)
        .bind(new.name)
        .bind(&new.policy.id)
        .bind(&new.policy.name)
        .bind(new.policy.service.as_str())
        .bind(new.policy.provider.as_deref().unwrap_or_default())
        .bind(spec)
        .bind(new.actor)
        .bind(new.reason)
        // Repairing the minimum is no scaling decision: it starts no cooldown.
        .bind((new.reason != "below_minimum").then(|| new.at.to_sqlx()))
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::database(TRIED))?;
        if !get::<bool>(&row, 0)? {
            term::refused(term, "operation.create");
            return Err(StoreError::Fenced { tried: TRIED });
        }
        Ok(get::<Option<Uuid>>(&row, 1)?.map_or(Created::Taken, Created::Operation))
    }

    /// Writes the intent to remove a server in service, or one that is kept after a failure.
    ///
    /// # Errors
    /// As [`Store::plan_server`].
    pub async fn plan_removal(&self, tenure: &Tenure, new: &NewRemoval<'_>) -> Result<Created, StoreError> {
        const TRIED: &str = "write the intent to remove a server";
        let term = tenure.check()?;
        let notices: Columns = new.notice.iter().collect();
        let row = sqlx::query(concat!(
            "WITH leader AS (SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE), \
             server AS ( \
                 UPDATE ops.servers s SET status = 'draining' FROM leader \
                 WHERE s.name = $3 AND s.status IN ('active', 'failed') \
                   AND NOT EXISTS (SELECT FROM ops.operations o WHERE o.server_id = s.id AND o.finished_at IS NULL) \
                 RETURNING s.id, s.group_id, s.group_name, s.made_by), \
             operation AS ( \
                 INSERT INTO ops.operations \
                     (id, server_id, kind, state, term, actor, reason, settings, candidate_index) \
                 SELECT $4, server.id, 'down', 'planned', $2, $5, $6, $7, COALESCE(m.candidate_index, 0) \
                 FROM server LEFT JOIN ops.operations m ON m.id = server.made_by RETURNING id), \
             step AS ( \
                 INSERT INTO ops.operation_steps (operation_id, term, event, to_state, note) \
                 SELECT id, $2, 'decided', 'planned', $6 FROM operation), \
             cooldown AS ( \
                 INSERT INTO ops.scaling_groups AS g (group_id, group_name, last_down_at) \
                 SELECT group_id, group_name, $8 FROM server WHERE $8::timestamptz IS NOT NULL \
                 ON CONFLICT (group_id) DO UPDATE SET group_name = EXCLUDED.group_name, last_down_at = $8), ",
            enqueue_notices!("operation", "$9", "$10"),
            "SELECT EXISTS (SELECT FROM leader), (SELECT id FROM operation)",
        ))
        .bind(&*term.name)
        .bind(term.number)
        .bind(new.server)
        .bind(Uuid::now_v7())
        .bind(new.actor)
        .bind(new.reason)
        .bind(serde_json::to_value(&new.settings).unwrap_or(Value::Null))
        // Clearing up after a server that is gone is no scaling decision.
        .bind((new.reason != crate::act::GHOST).then(|| new.at.to_sqlx()))
        .bind(notices.ids)
        .bind(notices.payloads)
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::database(TRIED))?;
        if !get::<bool>(&row, 0)? {
            term::refused(term, "operation.create");
            return Err(StoreError::Fenced { tried: TRIED });
        }
        Ok(get::<Option<Uuid>>(&row, 1)?.map_or(Created::Taken, Created::Operation))
    }

    /// Asks for a removal to be called off, as a decision to add does. Its own task carries it out.
    ///
    /// # Errors
    /// As [`Store::plan_server`].
    pub async fn call_back(
        &self,
        tenure: &Tenure,
        server: &str,
        at: Timestamp,
    ) -> Result<Raised, StoreError> {
        const TRIED: &str = "call a removal off";
        let term = tenure.check()?;
        let row = sqlx::query(
            "WITH leader AS (SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE), \
             operation AS ( \
                 UPDATE ops.operations o SET cancel_requested = true, version = version + 1, term = $2, not_before = NULL \
                 FROM leader, ops.servers s \
                 WHERE s.name = $3 AND s.status = 'draining' AND o.server_id = s.id AND o.finished_at IS NULL \
                   AND o.kind = 'down' AND NOT o.cancel_requested \
                   AND o.state IN ('planned', 'preflight', 'unrouted', 'draining', 'drained', 'forced') \
                 RETURNING s.group_id, s.group_name), \
             cooldown AS ( \
                 INSERT INTO ops.scaling_groups AS g (group_id, group_name, last_up_at) \
                 SELECT group_id, group_name, $4 FROM operation \
                 ON CONFLICT (group_id) DO UPDATE SET last_up_at = $4) \
             SELECT EXISTS (SELECT FROM leader), EXISTS (SELECT FROM operation)",
        )
        .bind(&*term.name)
        .bind(term.number)
        .bind(server)
        .bind(at.to_sqlx())
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::database(TRIED))?;
        if !get::<bool>(&row, 0)? {
            term::refused(term, "operation.cancel");
            return Err(StoreError::Fenced { tried: TRIED });
        }
        Ok(if get(&row, 1)? { Raised::Written } else { Raised::Nothing })
    }

    /// Stops buying for a group until a moment, and says why.
    ///
    /// # Errors
    /// As [`Store::plan_server`].
    pub async fn hold_creates(&self, tenure: &Tenure, hold: &CreateHold<'_>) -> Result<(), StoreError> {
        const TRIED: &str = "stop buying for a group";
        let term = tenure.check()?;
        let notices: Columns = hold.notice.iter().collect();
        let row = sqlx::query(concat!(
            "WITH leader AS (SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE), \
             held AS ( \
                 INSERT INTO ops.scaling_groups AS g \
                     (group_id, group_name, no_creates_until, no_creates_why, circuit_opened, circuit_since) \
                 SELECT $3, $4, $5, $6, CASE WHEN $7 THEN 1 ELSE 0 END, CASE WHEN $7 THEN now() END FROM leader \
                 ON CONFLICT (group_id) DO UPDATE SET no_creates_until = $5, no_creates_why = $6, \
                     circuit_opened = g.circuit_opened + CASE WHEN $7 THEN 1 ELSE 0 END, \
                     circuit_since = CASE WHEN $7 THEN now() ELSE g.circuit_since END \
                 RETURNING 1), ",
            enqueue_notices!("held", "$8", "$9"),
            "SELECT EXISTS (SELECT FROM leader)",
        ))
        .bind(&*term.name)
        .bind(term.number)
        .bind(hold.group_id)
        .bind(hold.group_name)
        .bind(hold.until.to_sqlx())
        .bind(hold.why)
        .bind(hold.circuit)
        .bind(notices.ids)
        .bind(notices.payloads)
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::database(TRIED))?;
        if get::<bool>(&row, 0)? {
            return Ok(());
        }
        term::refused(term, "group.hold");
        Err(StoreError::Fenced { tried: TRIED })
    }
}
