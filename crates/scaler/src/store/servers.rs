//! Servers with their open operations.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;
use voiceai_postgres::sqlx;
use voiceai_scaler_core::fleet::Phase;
use voiceai_scaler_core::{Operation, ServerStatus};

use super::rows::{
    self, OPERATION, OPERATION_COLUMNS, OperationRow, SERVER, SERVER_BY_HASH, SERVER_COLUMNS, SPEC,
    ServerRow, ServerSpec, get,
};
use super::{Store, StoreError};

/// For how long a name is not given out again after its server's end.
pub(super) const NAME_REST: SignedDuration = SignedDuration::from_mins(10);

/// One server that is not gone, with the operation that works on it.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetRow {
    /// The server.
    pub server: ServerRow,
    /// Its open operation, if it has one.
    pub operation: Option<OperationRow>,
}

impl FleetRow {
    /// What a decision sees of it. `None`: it does not exist.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        match &self.operation {
            Some(row) => row.operation.phase(row.settings.by_operator),
            None => match self.server.status {
                ServerStatus::Active => Some(Phase::Active),
                ServerStatus::Gone => None,
                // A status other than active without an operation: kept for a person.
                _ => Some(Phase::Failed),
            },
        }
    }

    /// The operation's kind and state.
    #[must_use]
    pub fn state(&self) -> Option<Operation> {
        self.operation.as_ref().map(|row| row.operation)
    }
}

impl Store {
    /// The database's clock.
    ///
    /// # Errors
    /// As the database says.
    pub async fn now(&self) -> Result<Timestamp, StoreError> {
        let row = sqlx::query("SELECT clock_timestamp()")
            .fetch_one(&self.pool)
            .await
            .map_err(StoreError::database("read the clock"))?;
        rows::time(&row, 0)
    }

    /// Every server that is not gone, ordered by name.
    ///
    /// # Errors
    /// As the database says.
    pub async fn fleet(&self) -> Result<Vec<FleetRow>, StoreError> {
        let sql = format!(
            "SELECT {SERVER_BY_HASH}, {OPERATION} FROM ops.servers s \
             LEFT JOIN ops.operations o ON o.server_id = s.id AND o.finished_at IS NULL \
             WHERE s.status <> 'gone'"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .fetch_all(&self.pool)
            .await
            .map_err(StoreError::database("read the servers"))?;
        let hashes = rows.iter().map(|row| get(row, SPEC)).collect::<Result<Vec<i64>, _>>()?;
        let specs = self.specs(&hashes).await?;
        let mut fleet = Vec::with_capacity(rows.len());
        for (row, hash) in rows.iter().zip(hashes) {
            let spec = specs.get(&hash).ok_or_else(|| StoreError::Unreadable {
                what: "spec_hash",
                row: "a server".to_owned(),
                why: "no row has that policy any more".to_owned(),
            })?;
            fleet.push(FleetRow {
                server: rows::server_with(row, 0, Arc::clone(spec))?,
                operation: rows::operation(row, SERVER_COLUMNS)?,
            });
        }
        fleet.sort_unstable_by(|a, b| a.server.name.cmp(&b.server.name));
        Ok(fleet)
    }

    /// The policies behind these hashes. Those of the last time are remembered: a row's policy never changes.
    async fn specs(&self, hashes: &[i64]) -> Result<HashMap<i64, Arc<ServerSpec>>, StoreError> {
        let wanted: HashSet<i64> = hashes.iter().copied().collect();
        let mut known = lock(&self.specs).clone();
        known.retain(|hash, _| wanted.contains(hash));
        let unknown: Vec<i64> = wanted.into_iter().filter(|hash| !known.contains_key(hash)).collect();
        if !unknown.is_empty() {
            let rows = sqlx::query(
                "SELECT w.hash, s.spec, s.name FROM unnest($1::bigint[]) AS w(hash) CROSS JOIN LATERAL ( \
                     SELECT spec, name FROM ops.servers WHERE spec_hash = w.hash LIMIT 1) s",
            )
            .bind(unknown)
            .fetch_all(&self.pool)
            .await
            .map_err(StoreError::database("read the servers' policies"))?;
            for row in &rows {
                let name: String = get(row, 2)?;
                known.insert(get(row, 0)?, rows::spec(row, 1, &name)?);
            }
        }
        lock(&self.specs).clone_from(&known);
        Ok(known)
    }

    /// The name of another server of the group that is not gone and has this id at the same provider.
    ///
    /// # Errors
    /// As the database says.
    pub async fn holder_of_id(&self, server: &ServerRow, id: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query(
            "SELECT name FROM ops.servers WHERE group_id = $1 AND provider = $2 AND provider_id = $3 AND id <> $4 \
               AND status <> 'gone' LIMIT 1",
        )
        .bind(&server.group_id)
        .bind(&server.provider)
        .bind(id)
        .bind(server.id)
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::database("look for a provider's id"))?;
        row.map(|row| get(&row, 0)).transpose()
    }

    /// Those of the named servers on which no operation works, each with the candidate of its making.
    ///
    /// # Errors
    /// As the database says.
    pub async fn at_rest(&self, names: &[String]) -> Result<Vec<(ServerRow, usize)>, StoreError> {
        let sql = format!(
            "SELECT {SERVER}, COALESCE((SELECT m.candidate_index FROM ops.operations m WHERE m.id = s.made_by), 0) \
             FROM ops.servers s WHERE s.name = ANY($1) AND s.status <> 'gone' \
               AND NOT EXISTS (SELECT FROM ops.operations o WHERE o.server_id = s.id AND o.finished_at IS NULL)"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(names)
            .fetch_all(&self.pool)
            .await
            .map_err(StoreError::database("read servers at rest"))?;
        rows.iter()
            .map(|row| {
                let index: i32 = get(row, SERVER_COLUMNS)?;
                Ok((rows::server(row, 0)?, usize::try_from(index).unwrap_or(0)))
            })
            .collect()
    }

    /// One operation with its server, and the database's clock: the one that every scaler shares.
    ///
    /// # Errors
    /// As the database says.
    pub async fn operation(
        &self,
        id: Uuid,
    ) -> Result<Option<(Timestamp, ServerRow, OperationRow)>, StoreError> {
        let sql = format!(
            "SELECT {SERVER}, {OPERATION}, clock_timestamp() FROM ops.operations o JOIN ops.servers s ON s.id = o.server_id WHERE o.id = $1"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .map_err(StoreError::database("read an operation"))?;
        let Some(row) = row else { return Ok(None) };
        let Some(operation) = rows::operation(&row, SERVER_COLUMNS)? else { return Ok(None) };
        let now = rows::time(&row, SERVER_COLUMNS + OPERATION_COLUMNS)?;
        Ok(Some((now, rows::server(&row, 0)?, operation)))
    }

    /// Ids of the operations that are not finished, oldest first.
    ///
    /// # Errors
    /// As the database says.
    pub async fn open_operations(&self) -> Result<Vec<Uuid>, StoreError> {
        let rows =
            sqlx::query("SELECT id FROM ops.operations WHERE finished_at IS NULL ORDER BY created_at, id")
                .fetch_all(&self.pool)
                .await
                .map_err(StoreError::database("read the open operations"))?;
        rows.iter().map(|row| get(row, 0)).collect()
    }

    /// Names of servers that ended within the last ten minutes: they rest, and nothing of them may be left in routing.
    ///
    /// # Errors
    /// As the database says.
    pub async fn resting_names(&self) -> Result<BTreeSet<String>, StoreError> {
        let rows = sqlx::query(
            "SELECT DISTINCT name FROM ops.servers \
             WHERE status = 'gone' AND gone_at > now() - make_interval(secs => $1)",
        )
        .bind(NAME_REST.as_secs_f64())
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("read resting names"))?;
        rows.iter().map(|row| get(row, 0)).collect()
    }

    /// How many servers of each group failed to become healthy within the last half hour, by the group's id.
    ///
    /// # Errors
    /// As the database says.
    pub async fn recent_failures(&self) -> Result<HashMap<String, i64>, StoreError> {
        let rows = sqlx::query(
            "SELECT s.group_id, count(*) FROM ops.operation_steps t JOIN ops.operations o ON o.id = t.operation_id \
             JOIN ops.servers s ON s.id = o.server_id LEFT JOIN ops.scaling_groups g ON g.group_id = s.group_id \
             WHERE t.to_state = 'failed' AND o.kind = 'up' AND t.at > now() - interval '30 minutes' \
               AND COALESCE(o.error_code, '') NOT IN ('out_of_stock', 'quota') \
               AND (g.circuit_since IS NULL OR t.at > g.circuit_since) GROUP BY 1",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("count failures"))?;
        rows.iter().map(|row| Ok((get(row, 0)?, get(row, 1)?))).collect()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
