//! The platform's own tables, where there are any; else ours of the same name.

use std::collections::BTreeMap;

use voiceai_postgres::sqlx::{self, PgPool, Row};

use crate::error::OrchestrationError;

/// A table to read from, and perhaps to write to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// Its name as SQL takes it.
    pub(crate) name: String,
    /// Its columns, with their types as SQL names them.
    columns: BTreeMap<String, String>,
    is_ours: bool,
    may_update: bool,
    may_insert: bool,
}

impl Table {
    pub(crate) fn has(&self, column: &str) -> bool {
        self.columns.contains_key(column)
    }

    /// The type of a column, without its length.
    pub(crate) fn type_of(&self, column: &str) -> Option<&str> {
        self.columns.get(column).map(String::as_str)
    }

    /// Whether it stands in `ops`.
    pub(crate) const fn is_ours(&self) -> bool {
        self.is_ours
    }

    /// Whether rows of it may be added and changed.
    pub(crate) const fn may_write(&self) -> bool {
        self.may_insert && self.may_update
    }

    /// `column = value` for those of `wanted` that the table has; `None` where nothing can be written.
    pub(crate) fn assignments(&self, wanted: &[(&str, &str)]) -> Option<String> {
        let own: Vec<_> = wanted.iter().filter(|(column, _)| self.has(column)).collect();
        if !self.may_update || own.is_empty() {
            return None;
        }
        Some(own.iter().map(|(column, value)| format!("{column} = {value}")).collect::<Vec<_>>().join(", "))
    }

    #[cfg(test)]
    pub(crate) fn of_platform(columns: &[(&str, &str)]) -> Self {
        let owned = |(name, kind): &(&str, &str)| ((*name).to_owned(), (*kind).to_owned());
        Self {
            name: "t".to_owned(),
            columns: columns.iter().map(owned).collect(),
            is_ours: false,
            may_update: true,
            may_insert: true,
        }
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
    let tables = all(pool, name, needed).await?;
    Ok(tables.into_iter().next())
}

/// The platform's own table `name`, where it has `needed`; never ours.
///
/// # Errors
/// As the database says.
pub(crate) async fn theirs(
    pool: &PgPool,
    name: &'static str,
    needed: &[&str],
) -> Result<Option<Table>, OrchestrationError> {
    let tables = all(pool, name, needed).await?;
    Ok(tables.into_iter().find(|table| !table.is_ours()))
}

/// The readable tables of this name that have `needed`, the platform's first.
async fn all(pool: &PgPool, name: &'static str, needed: &[&str]) -> Result<Vec<Table>, OrchestrationError> {
    let tried = "look for the platform's tables";
    let rows = sqlx::query(
        "SELECT c.oid::regclass::text AS name, n.nspname = 'ops' AS ours, \
             has_table_privilege(c.oid, 'UPDATE') AS may_update, has_table_privilege(c.oid, 'INSERT') AS may_insert, \
             ARRAY(SELECT a.attname::text FROM pg_attribute a \
                   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) AS columns, \
             ARRAY(SELECT format_type(a.atttypid, NULL) FROM pg_attribute a \
                   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) AS types \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.oid IN (to_regclass($1), to_regclass('ops.' || $1)) AND has_table_privilege(c.oid, 'SELECT') ORDER BY ours",
    )
    .bind(name)
    .fetch_all(pool)
    .await
    .map_err(OrchestrationError::database(tried))?;
    let read = |row: &sqlx::postgres::PgRow| -> Result<Table, sqlx::Error> {
        let (columns, types): (Vec<String>, Vec<String>) = (row.try_get("columns")?, row.try_get("types")?);
        Ok(Table {
            name: row.try_get("name")?,
            columns: columns.into_iter().zip(types).collect(),
            is_ours: row.try_get("ours")?,
            may_update: row.try_get("may_update")?,
            may_insert: row.try_get("may_insert")?,
        })
    };
    let mut tables = Vec::with_capacity(rows.len());
    for row in &rows {
        let table = read(row).map_err(OrchestrationError::database(tried))?;
        if needed.iter().all(|column| table.has(column)) {
            tables.push(table);
        }
    }
    Ok(tables)
}

/// `agent_orchestration_schedules`.
pub(crate) async fn schedules(pool: &PgPool) -> Result<Option<Table>, OrchestrationError> {
    find(pool, "agent_orchestration_schedules", &["id", "project_id"]).await
}

/// `autonomous_action_config`.
pub(crate) async fn limits(pool: &PgPool) -> Result<Option<Table>, OrchestrationError> {
    find(pool, "autonomous_action_config", &["project_id", "action_key"]).await
}
