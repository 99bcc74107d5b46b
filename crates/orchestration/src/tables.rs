//! The platform's own tables, where there are any; else ours of the same name.

use std::collections::BTreeSet;

use voiceai_postgres::sqlx::{self, PgPool, Row};

use crate::error::OrchestrationError;

/// A table to read from, and perhaps to write to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// Its name as SQL takes it.
    pub(crate) name: String,
    columns: BTreeSet<String>,
    may_update: bool,
}

impl Table {
    pub(crate) fn has(&self, column: &str) -> bool {
        self.columns.contains(column)
    }

    /// `column = value` for those of `wanted` that the table has; `None` where nothing can be written.
    pub(crate) fn assignments(&self, wanted: &[(&str, &str)]) -> Option<String> {
        let own: Vec<_> = wanted.iter().filter(|(column, _)| self.has(column)).collect();
        if !self.may_update || own.is_empty() {
            return None;
        }
        Some(own.iter().map(|(column, value)| format!("{column} = {value}")).collect::<Vec<_>>().join(", "))
    }
}

/// The table `name` of the search path where it has `needed`, else `ops.name` (`None` where we have none).
///
/// # Errors
/// As the database says.
pub(crate) async fn find(
    pool: &PgPool,
    name: &'static str,
    needed: &[&str],
) -> Result<Option<Table>, OrchestrationError> {
    let tried = "look for the platform's tables";
    let rows = sqlx::query(
        "SELECT c.oid::regclass::text AS name, n.nspname = 'ops' AS ours, \
             has_table_privilege(c.oid, 'SELECT') AS readable, has_table_privilege(c.oid, 'UPDATE') AS writable, \
             ARRAY(SELECT a.attname::text FROM pg_attribute a \
                   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.oid IN (to_regclass($1), to_regclass('ops.' || $1)) ORDER BY ours",
    )
    .bind(name)
    .fetch_all(pool)
    .await
    .map_err(OrchestrationError::database(tried))?;
    for row in rows {
        let read = || -> Result<(bool, Table), sqlx::Error> {
            let columns: Vec<String> = row.try_get("columns")?;
            let table = Table {
                name: row.try_get("name")?,
                columns: columns.into_iter().collect(),
                may_update: row.try_get("writable")?,
            };
            Ok((row.try_get("readable")?, table))
        };
        let (readable, table) = read().map_err(OrchestrationError::database(tried))?;
        if readable && needed.iter().all(|column| table.has(column)) {
            return Ok(Some(table));
        }
    }
    Ok(None)
}

/// `agent_orchestration_schedules`.
pub(crate) async fn schedules(pool: &PgPool) -> Result<Option<Table>, OrchestrationError> {
    find(pool, "agent_orchestration_schedules", &["id", "project_id"]).await
}

/// `autonomous_action_config`.
pub(crate) async fn limits(pool: &PgPool) -> Result<Option<Table>, OrchestrationError> {
    find(pool, "autonomous_action_config", &["project_id", "action_key"]).await
}
