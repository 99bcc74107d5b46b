//! Restoring into a database of the operator's choice.

use std::time::Instant;

use serde::Serialize;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};
use tokio_util::sync::CancellationToken;
use voiceai_postgres::sqlx;

use super::address::Address;
use super::error::BackupError;
use super::manifest::Manifest;
use super::pour::{Sink, pour};
use super::tools::major;
use super::{BackupContext, catalogue, content, millis};

/// A restore that ended well: everything in the target was compared with the manifest.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    /// The backup.
    pub manifest: Manifest,
    /// Host and name of the target.
    pub into: String,
    /// Tables compared, by count and digest.
    pub tables: usize,
    /// Rows compared.
    pub rows: u64,
    /// Whether digests were compared; `false` on a server that hashes text in another way: then counts alone were.
    pub digests_compared: bool,
    /// From the first byte to the last comparison.
    pub duration_ms: u64,
}

const RELATIONS: &str = "
    SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), count(*) OVER ()
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
      AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
                      WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e')
    ORDER BY c.relkind <> 'r', 1 LIMIT 1";

/// When the server started, to the microsecond, and which of its databases this is: two sessions that agree are in the same
/// database, whatever names and addresses they came by.
const IDENTITY: &str = "
    SELECT (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::int8::text || '/' || oid::text
    FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()";

/// Restores the backup `id` (or the beginning of one, or `latest`) into the database `into`, in one transaction, and then
/// compares every count and digest with the manifest.
///
/// # Errors
/// [`BackupError::Target`], before anything is done, for a database that holds tables, views or sequences, and always for the
/// service's own. [`BackupError::Damaged`] or [`BackupError::Tool`]: nothing has been changed. [`BackupError::Differs`]: it is
/// restored, and not what it should be.
pub async fn restore(
    ctx: &BackupContext,
    id: &str,
    into: &Address,
    cancel: &CancellationToken,
) -> Result<Restored, BackupError> {
    let (_, manifest) = catalogue::find(ctx, id).await?;
    let tool = ctx.tools.find("pg_restore", major(&manifest.client_version)).await?;
    let mut session = check_target(ctx, into).await?;
    tracing::info!(backup_id = manifest.id, into = into.place(), "restore started");
    let begun = Instant::now();
    pour(ctx, &manifest, &tool, Sink::Database(into), cancel).await?;
    let row_hash = manifest.content.row_hash;
    let content = content::content_now(&mut session, into.place(), &manifest.only_schemas, row_hash).await?;
    let _ = session.close().await;
    let differences = manifest.content.differences(&content);
    if !differences.is_empty() {
        return Err(BackupError::Differs { id: manifest.id, differences });
    }
    let duration_ms = millis(begun);
    let (tables, rows) = (content.tables.len(), content.rows());
    let digests_compared = content.row_hash == row_hash;
    tracing::info!(
        backup_id = manifest.id,
        into = into.place(),
        tables,
        rows,
        duration_ms,
        "restored and compared"
    );
    Ok(Restored { manifest, into: into.place().to_owned(), tables, rows, digests_compared, duration_ms })
}

async fn check_target(ctx: &BackupContext, into: &Address) -> Result<PgConnection, BackupError> {
    let refused = |problem: String| BackupError::Target { database: into.place().to_owned(), problem };
    if into.place() == ctx.database.place() {
        return Err(refused("it is the service's own database".to_owned()));
    }
    let failed = || BackupError::database("look at", into.place());
    let mut session = into.connect("voiceai-restore").await?;
    let target: String = sqlx::query_scalar(IDENTITY).fetch_one(&mut session).await.map_err(failed())?;
    // A service's database that does not answer, perhaps the reason of this restore, is told apart by its address alone.
    if let Ok(mut own_session) = ctx.database.connect("voiceai-restore").await {
        let own = sqlx::query_scalar::<_, String>(IDENTITY).fetch_one(&mut own_session).await;
        let _ = own_session.close().await;
        if own.map_err(BackupError::database("look at", ctx.database.place()))? == target {
            return Err(refused("it is the service's own database under another address".to_owned()));
        }
    }
    if let Some(row) = sqlx::query(RELATIONS).fetch_optional(&mut session).await.map_err(failed())? {
        let (name, count): (String, i64) = (row.get(0), row.get(1));
        return Err(refused(format!(
            "it is not empty: it holds {count} tables, views or sequences, such as {name}"
        )));
    }
    Ok(session)
}
