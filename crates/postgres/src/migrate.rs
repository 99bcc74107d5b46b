use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Row, SqlStr};
use voiceai_runtime::boot_now;

/// One component's history of migrations, oldest first.
#[derive(Clone, Copy, Debug)]
pub struct Component {
    /// Its name; the history is kept in `ops.migrations_<name>`.
    pub name: &'static str,
    /// File name without `.sql` (`0001_what_it_does`) and content.
    pub files: &'static [(&'static str, &'static str)],
}

/// What one run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// `component/version` of every migration that was applied, in order.
    pub applied: Vec<String>,
}

/// The schema could not be brought to this binary's version.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Another process has been migrating for too long.
    #[error("wait for another process that migrates this database: not over within {0:?}")]
    Locked(Duration),
    /// The database is ahead of this binary by a migration that older binaries must not work with.
    #[error(
        "the database has migration {component}/{version} ({name}), which this version does not know and which is \
         marked breaking; start a newer version"
    )]
    NewerBreaking {
        /// Component's name.
        component: &'static str,
        /// The unknown migration's number.
        version: i64,
        /// Its description.
        name: String,
    },
    /// A file name is not of the form `0001_what_it_does`.
    #[error("migration file `{0}` is not named NNNN_what_it_does")]
    FileName(&'static str),
    /// The schema `ops` is missing and this role may not create it.
    #[error(
        "create schema `ops`: this role may not; let the database's owner run: CREATE SCHEMA ops AUTHORIZATION <role>"
    )]
    MayNotCreateSchema(#[source] sqlx::Error),
    /// A migration failed, or an applied one was changed afterwards.
    #[error("run the migrations of `{component}`")]
    Run {
        /// Component's name.
        component: &'static str,
        /// What went wrong.
        source: sqlx::migrate::MigrateError,
    },
    /// The connection failed.
    #[error("read or lock the migration history")]
    Database(#[from] sqlx::Error),
}

impl MigrateError {
    /// True when the server went away, so that the same call may succeed later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        use sqlx::migrate::MigrateError as Failed;
        match self {
            Self::Database(source)
            | Self::Run { source: Failed::Execute(source) | Failed::ExecuteMigration(source, _), .. } => {
                crate::is_unavailable(source)
            }
            _ => false,
        }
    }
}

/// One lock for all components of one database: both services may start at the same moment.
const LOCK: i64 = 0x766f_6963_656f_7073;
const LOCK_WAIT: Duration = Duration::from_secs(120);

/// Brings the schema up to this binary, component by component, under one advisory lock. Needs no right to create
/// schemas where `ops` is there already, and no right at all where nothing is left to do.
///
/// # Errors
/// When another process holds the lock for too long, the database is ahead by a breaking migration, or one fails.
pub async fn migrate(pool: &PgPool, components: &[Component]) -> Result<Migrated, MigrateError> {
    let mut done = Migrated::default();
    if pending(pool, components).await?.is_empty() {
        return Ok(done);
    }
    // A connection outside the pool: it must not carry the pool's statement limit, and its end releases the lock.
    let mut connection = PgConnection::connect_with(&pool.connect_options()).await?;
    lock(&mut connection).await?;
    create_schema(&mut connection).await?;
    for (component, names) in pending(pool, components).await? {
        let mut migrator = Migrator::with_migrations(migrations(component)?);
        migrator.dangerous_set_table_name(table(component));
        migrator.set_ignore_missing(true).set_locking(false);
        let run = migrator.run_direct(None, &mut connection, false).await;
        run.map_err(|source| MigrateError::Run { component: component.name, source })?;
        done.applied.extend(names);
    }
    connection.close().await?;
    Ok(done)
}

/// What [`migrate`] would apply, as `component/version`; changes nothing.
///
/// # Errors
/// When the database cannot be read, or is ahead by a migration that is marked breaking.
pub async fn unapplied(pool: &PgPool, components: &[Component]) -> Result<Vec<String>, MigrateError> {
    Ok(pending(pool, components).await?.into_iter().flat_map(|(_, names)| names).collect())
}

fn table(component: Component) -> String {
    format!("ops.migrations_{}", component.name)
}

fn migrations(component: Component) -> Result<Vec<Migration>, MigrateError> {
    component
        .files
        .iter()
        .map(|(file, sql)| {
            let (number, name) = file.split_once('_').ok_or(MigrateError::FileName(file))?;
            let version = number.parse().map_err(|_| MigrateError::FileName(file))?;
            let description = Cow::Owned(name.replace('_', " "));
            let sql = SqlStr::from_static(sql);
            Ok(Migration::new(version, description, MigrationType::Simple, sql, false))
        })
        .collect()
}

/// What is left to apply, and refuses what this binary may not work with.
async fn pending(
    pool: &PgPool,
    components: &[Component],
) -> Result<Vec<(Component, Vec<String>)>, MigrateError> {
    let mut left = Vec::new();
    for &component in components {
        let known = migrations(component)?;
        let applied = applied(pool, component).await?;
        let newest = known.iter().map(|m| m.version).max().unwrap_or(0);
        if let Some((&version, name)) =
            applied.iter().find(|(v, name)| **v > newest && name.starts_with("breaking"))
        {
            return Err(MigrateError::NewerBreaking {
                component: component.name,
                version,
                name: name.clone(),
            });
        }
        let names: Vec<String> = known
            .iter()
            .filter(|m| !applied.contains_key(&m.version))
            .map(|m| format!("{}/{:04}", component.name, m.version))
            .collect();
        if !names.is_empty() {
            left.push((component, names));
        }
    }
    Ok(left)
}

async fn applied(pool: &PgPool, component: Component) -> Result<BTreeMap<i64, String>, MigrateError> {
    let there: bool = sqlx::query("SELECT to_regclass($1) IS NOT NULL")
        .bind(table(component))
        .fetch_one(pool)
        .await?
        .try_get(0)?;
    if !there {
        return Ok(BTreeMap::new());
    }
    let sql = format!("SELECT version, description FROM {} WHERE success", table(component));
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(pool).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

async fn lock(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let until = boot_now().saturating_add(LOCK_WAIT);
    loop {
        let got: bool = sqlx::query("SELECT pg_try_advisory_lock($1)")
            .bind(LOCK)
            .fetch_one(&mut *connection)
            .await?
            .try_get(0)?;
        if got {
            return Ok(());
        }
        if boot_now() >= until {
            return Err(MigrateError::Locked(LOCK_WAIT));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn create_schema(connection: &mut PgConnection) -> Result<(), MigrateError> {
    // `IF NOT EXISTS` alone would ask for the right to create even where the schema is there.
    let there: bool = sqlx::query("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'ops')")
        .fetch_one(&mut *connection)
        .await?
        .try_get(0)?;
    if there {
        return Ok(());
    }
    match sqlx::query("CREATE SCHEMA ops").execute(&mut *connection).await {
        Ok(_) => Ok(()),
        Err(error) if error.as_database_error().is_some_and(|db| db.code().as_deref() == Some("42501")) => {
            Err(MigrateError::MayNotCreateSchema(error))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_is_embedded_once_and_in_order() {
        for component in crate::ALL {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations").join(component.name);
            let mut on_disk: Vec<String> = std::fs::read_dir(&folder)
                .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
                .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
                .filter(|name| !name.starts_with('.'))
                .collect();
            on_disk.sort();
            let listed: Vec<&str> = component.files.iter().map(|(name, _)| *name).collect();
            assert_eq!(
                listed, on_disk,
                "crates/postgres/src/migrations.rs must list every file of {}",
                component.name
            );
            migrations(*component).unwrap();
        }
    }
}
