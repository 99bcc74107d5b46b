//! The platform's groups, and what we remember of each.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::Value;
use voiceai_postgres::sqlx;

use super::rows::{get, time, time_if_any};
use super::{Store, StoreError};

/// One row of the platform's `"ServerGroup"`, as JSON: a column that the platform does not have is simply absent.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupRow(pub Value);

/// What outlives a leader of one group.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GroupStanding {
    /// When the last decision to add was taken.
    pub last_up_at: Option<Timestamp>,
    /// When the last decision to remove was taken.
    pub last_down_at: Option<Timestamp>,
    /// Nothing is bought before this, and why.
    pub no_creates: Option<(Timestamp, String)>,
    /// How often the circuit has opened in a row.
    pub circuit_opened: i32,
    /// Servers asked for within the last hour.
    pub creates_last_hour: u32,
}

/// A person's pause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// The group's name, or `*`.
    pub target: String,
    /// When it ends.
    pub until: Timestamp,
    /// Who paused.
    pub actor: String,
    /// Why.
    pub reason: String,
}

impl Store {
    /// Every group, enabled or not, ordered by name.
    ///
    /// # Errors
    /// As the database says; also when the platform's table is not there.
    pub async fn groups(&self) -> Result<Vec<GroupRow>, StoreError> {
        let rows = sqlx::query(r#"SELECT to_jsonb(g) FROM "ServerGroup" g ORDER BY g.name"#)
            .fetch_all(&self.pool)
            .await
            .map_err(StoreError::database("read \"ServerGroup\""))?;
        rows.iter().map(|row| get(row, 0).map(GroupRow)).collect()
    }

    /// What is remembered of every group, by the group's id.
    ///
    /// # Errors
    /// As the database says.
    pub async fn standings(&self) -> Result<HashMap<String, GroupStanding>, StoreError> {
        let rows = sqlx::query(
            "SELECT COALESCE(g.group_id, c.group_id), g.last_up_at, g.last_down_at, g.no_creates_until, \
                    g.no_creates_why, COALESCE(g.circuit_opened, 0), COALESCE(c.creates, 0) \
             FROM ops.scaling_groups g FULL JOIN ( \
                 SELECT s.group_id, count(*) AS creates FROM ops.operations o JOIN ops.servers s ON s.id = o.server_id \
                 WHERE o.kind = 'up' AND o.created_at > now() - interval '1 hour' GROUP BY 1 \
             ) c ON c.group_id = g.group_id",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("read what is remembered of the groups"))?;
        rows.iter()
            .map(|row| {
                let why: Option<String> = get(row, 4)?;
                let standing = GroupStanding {
                    last_up_at: time_if_any(row, 1)?,
                    last_down_at: time_if_any(row, 2)?,
                    no_creates: time_if_any(row, 3)?.zip(why),
                    circuit_opened: get(row, 5)?,
                    creates_last_hour: u32::try_from(get::<i64>(row, 6)?).unwrap_or(u32::MAX),
                };
                Ok((get(row, 0)?, standing))
            })
            .collect()
    }

    /// Pauses that have not ended, by target.
    ///
    /// # Errors
    /// As the database says.
    pub async fn pauses(&self) -> Result<HashMap<String, Pause>, StoreError> {
        let rows =
            sqlx::query("SELECT target, until, actor, reason FROM ops.scaling_pauses WHERE until > now()")
                .fetch_all(&self.pool)
                .await
                .map_err(StoreError::database("read pauses"))?;
        rows.iter()
            .map(|row| {
                let target: String = get(row, 0)?;
                let pause = Pause {
                    target: target.clone(),
                    until: time(row, 1)?,
                    actor: get(row, 2)?,
                    reason: get(row, 3)?,
                };
                Ok((target, pause))
            })
            .collect()
    }
}
