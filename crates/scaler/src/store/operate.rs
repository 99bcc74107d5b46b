//! What a person changes by command. Each change and its line in the audit trail are one transaction.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use serde_json::{Value, json};
use uuid::Uuid;
use voiceai_postgres::audit::{self, Entry};
use voiceai_postgres::sqlx::{self, Postgres, Transaction};
use voiceai_scaler_core::ServerStatus;

use super::rows::{self, DownSettings, OPERATION, OperationRow, SERVER, SERVER_COLUMNS, ServerRow, get};
use super::servers::FleetRow;
use super::{Pause, Store, StoreError};

/// A person's command that cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// There is no such server or group.
    #[error("there is no {what} `{name}`")]
    NotFound {
        /// `server` or `server group`.
        what: &'static str,
        /// The name given.
        name: String,
    },
    /// It may not be done as things stand.
    #[error("{why}")]
    Refused {
        /// Why not.
        why: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Who changes something, and why.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The server's or group's name; `*` for all groups.
    pub name: &'a str,
    /// Who.
    pub actor: &'a str,
    /// Why.
    pub reason: Option<&'a str>,
}

fn refused(why: String, remedy: &'static str) -> OperateError {
    OperateError::Refused { why, remedy }
}

impl Store {
    async fn begin(&self) -> Result<Transaction<'static, Postgres>, StoreError> {
        self.pool.begin().await.map_err(StoreError::database("begin"))
    }

    /// Begins to take a server out of service. With `dry_run` only the checks are made.
    ///
    /// # Errors
    /// Refused when it is not in service, works on something else, or is the last of its group in service.
    pub async fn drain(
        &self,
        target: Target<'_>,
        settings: &DownSettings,
        dry_run: bool,
    ) -> Result<ServerRow, OperateError> {
        let mut transaction = self.begin().await?;
        let row = locked(&mut transaction, target.name).await?;
        let server = row.server;
        if let Some(operation) = &row.operation {
            return Err(refused(
                format!("server `{}` is {} already", server.name, operation.operation.state.as_str()),
                "See `voiceai-scaler status`; wait until its operation has ended.",
            ));
        }
        if !matches!(server.status, ServerStatus::Active | ServerStatus::Failed) {
            return Err(refused(
                format!("server `{}` is {}", server.name, server.status.as_str()),
                "Only a server in service can be drained.",
            ));
        }
        if server.status == ServerStatus::Active && others_in_service(&mut transaction, &server).await? == 0 {
            return Err(refused(
                format!(
                    "server `{}` is the last one in service of group `{}`",
                    server.name, server.group_name
                ),
                "Raise minInstances and wait for another server first.",
            ));
        }
        if dry_run {
            return Ok(server);
        }
        let tried = StoreError::database("write the intent to remove a server");
        sqlx::query(
            "WITH server AS (UPDATE ops.servers SET status = 'draining' WHERE id = $1 RETURNING id, made_by), \
             operation AS ( \
                 INSERT INTO ops.operations (id, server_id, kind, state, actor, reason, settings, candidate_index) \
                 SELECT $2, server.id, 'down', 'planned', $3, $4, $5, COALESCE(m.candidate_index, 0) \
                 FROM server LEFT JOIN ops.operations m ON m.id = server.made_by RETURNING id) \
             INSERT INTO ops.operation_steps (operation_id, event, to_state, note) \
             SELECT id, 'asked', 'planned', $4 FROM operation",
        )
        .bind(server.id)
        .bind(Uuid::now_v7())
        .bind(target.actor)
        .bind(target.reason.unwrap_or("operator"))
        .bind(serde_json::to_value(settings).unwrap_or(Value::Null))
        .execute(&mut *transaction)
        .await
        .map_err(tried)?;
        finish(transaction, "server.drain", target, json!({"group": server.group_name})).await?;
        Ok(server)
    }

    /// Calls a removal off.
    ///
    /// # Errors
    /// Refused when the server is not being drained, or is past the point of return.
    pub async fn undrain(&self, target: Target<'_>, dry_run: bool) -> Result<ServerRow, OperateError> {
        let mut transaction = self.begin().await?;
        let row = locked(&mut transaction, target.name).await?;
        let server = row.server;
        let Some(operation) = row.operation.filter(|row| row.operation.is_cancellable()) else {
            return Err(refused(
                format!("server `{}` has no drain that could be called off", server.name),
                "A drain can be called off until the server's routing record is deleted; see `voiceai-scaler status`.",
            ));
        };
        if dry_run {
            return Ok(server);
        }
        sqlx::query(
            "UPDATE ops.operations SET cancel_requested = true, version = version + 1, not_before = NULL WHERE id = $1",
        )
        .bind(operation.id)
        .execute(&mut *transaction)
        .await
        .map_err(StoreError::database("call a removal off"))?;
        finish(transaction, "server.undrain", target, json!({"operation": operation.id})).await?;
        Ok(server)
    }

    /// Keeps a server from being chosen for removal until a moment. A moment that has passed ends the protection.
    ///
    /// # Errors
    /// Not found; else as the database says.
    pub async fn protect(
        &self,
        target: Target<'_>,
        until: Timestamp,
        dry_run: bool,
    ) -> Result<ServerRow, OperateError> {
        let mut transaction = self.begin().await?;
        let server = locked(&mut transaction, target.name).await?.server;
        if dry_run {
            return Ok(server);
        }
        sqlx::query("UPDATE ops.servers SET protected_until = $2 WHERE id = $1")
            .bind(server.id)
            .bind(until.to_sqlx())
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::database("protect a server"))?;
        finish(transaction, "server.protect", target, json!({"until": until})).await?;
        Ok(server)
    }

    /// Stops decisions about one group, or with `*` about all, until a moment.
    ///
    /// # Errors
    /// Not found; else as the database says.
    pub async fn pause(
        &self,
        target: Target<'_>,
        until: Timestamp,
        dry_run: bool,
    ) -> Result<(), OperateError> {
        self.group_must_exist(target.name).await?;
        if dry_run {
            return Ok(());
        }
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO ops.scaling_pauses (target, until, actor, reason) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (target) DO UPDATE SET until = $2, actor = $3, reason = $4, created_at = now()",
        )
        .bind(target.name)
        .bind(until.to_sqlx())
        .bind(target.actor)
        .bind(target.reason.unwrap_or("no reason given"))
        .execute(&mut *transaction)
        .await
        .map_err(StoreError::database("pause"))?;
        finish(transaction, "group.pause", target, json!({"until": until})).await?;
        Ok(())
    }

    /// Ends a pause. Returns the pause that was ended, if there was one.
    ///
    /// # Errors
    /// Not found; else as the database says.
    pub async fn resume(&self, target: Target<'_>, dry_run: bool) -> Result<Option<Pause>, OperateError> {
        self.group_must_exist(target.name).await?;
        let pause = self.pauses().await?.remove(target.name);
        if dry_run {
            return Ok(pause);
        }
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM ops.scaling_pauses WHERE target = $1")
            .bind(target.name)
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::database("resume"))?;
        finish(transaction, "group.resume", target, json!({"was_paused": pause.is_some()})).await?;
        Ok(pause)
    }

    async fn group_must_exist(&self, name: &str) -> Result<(), OperateError> {
        if name == "*" {
            return Ok(());
        }
        let row = sqlx::query(r#"SELECT EXISTS (SELECT FROM "ServerGroup" WHERE name = $1)"#)
            .bind(name)
            .fetch_one(&self.pool)
            .await
            .map_err(StoreError::database("read \"ServerGroup\""))?;
        if get(&row, 0)? {
            return Ok(());
        }
        Err(OperateError::NotFound { what: "server group", name: name.to_owned() })
    }
}

async fn locked(
    transaction: &mut Transaction<'static, Postgres>,
    name: &str,
) -> Result<FleetRow, OperateError> {
    let tried = "read a server";
    let sql =
        format!("SELECT {SERVER} FROM ops.servers s WHERE s.name = $1 AND s.status <> 'gone' FOR UPDATE");
    let server = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(name)
        .fetch_optional(&mut **transaction)
        .await
        .map_err(StoreError::database(tried))?
        .ok_or_else(|| OperateError::NotFound { what: "server", name: name.to_owned() })?;
    let server = rows::server(&server, 0)?;
    let sql = format!(
        "SELECT {OPERATION} FROM ops.operations o WHERE o.server_id = $1 AND o.finished_at IS NULL FOR UPDATE"
    );
    let operation = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(server.id)
        .fetch_optional(&mut **transaction)
        .await
        .map_err(StoreError::database(tried))?;
    let operation: Option<OperationRow> =
        operation.map(|row| rows::operation(&row, 0)).transpose()?.flatten();
    debug_assert_eq!(SERVER.split(',').count(), SERVER_COLUMNS);
    Ok(FleetRow { server, operation })
}

async fn others_in_service(
    transaction: &mut Transaction<'static, Postgres>,
    server: &ServerRow,
) -> Result<i64, StoreError> {
    let row = sqlx::query(
        "SELECT count(*) FROM ops.servers WHERE group_id = $1 AND status = 'active' AND id <> $2",
    )
    .bind(&server.group_id)
    .bind(server.id)
    .fetch_one(&mut **transaction)
    .await
    .map_err(StoreError::database("count the servers in service"))?;
    get(&row, 0)
}

async fn finish(
    mut transaction: Transaction<'static, Postgres>,
    action: &str,
    target: Target<'_>,
    details: Value,
) -> Result<(), StoreError> {
    let entry = Entry {
        service: "voiceai-scaler",
        actor: target.actor,
        action,
        subject: target.name,
        reason: target.reason,
        details,
    };
    audit::record(&mut *transaction, entry).await.map_err(StoreError::database("write the audit trail"))?;
    transaction.commit().await.map_err(StoreError::database("commit"))
}
