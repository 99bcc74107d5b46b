//! The rows of `ops.backups`: a copy of what the bucket tells, for the status screen. No backup fails for want of a row.

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use sqlx::postgres::{PgArguments, PgPool};
use sqlx::query::Query;
use sqlx::{Postgres, Row as _};
use voiceai_postgres::sqlx;

use super::error::BackupError;
use super::manifest::{Keys, Manifest, Proof};
use super::{BackupContext, catalogue};

/// The newest backups of the service's own whole database that our tables know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Newest {
    /// When the newest stored one saw its data.
    pub stored_at: Option<Timestamp>,
    /// When the newest proved one saw its data.
    pub proved_at: Option<Timestamp>,
    /// When the newest failure was.
    pub failed_at: Option<Timestamp>,
}

/// Reads the ages that `status` and alerts show.
///
/// # Errors
/// The driver's.
pub async fn newest(pool: &PgPool) -> Result<Newest, sqlx::Error> {
    let row = sqlx::query(
        "SELECT max(snapshot_at) FILTER (WHERE state = 'stored'),
                max(snapshot_at) FILTER (WHERE state = 'stored' AND proved_at IS NOT NULL),
                max(finished_at) FILTER (WHERE state = 'failed')
         FROM ops.backups WHERE target IS NULL AND schemas = '{}' AND removed_at IS NULL",
    )
    .fetch_one(pool)
    .await?;
    let at = |column: usize| row.get::<Option<SqlTimestamp>, _>(column).map(SqlTimestamp::to_jiff);
    Ok(Newest { stored_at: at(0), proved_at: at(1), failed_at: at(2) })
}

async fn execute(ctx: &BackupContext, query: Query<'_, Postgres, PgArguments>) {
    let Some(pool) = &ctx.pool else { return };
    if let Err(error) = query.execute(pool).await {
        tracing::warn!(%error, "the row of a backup could not be written; the bucket has all of it");
    }
}

/// The holder of the lock has just begun, so whatever else is called running is not. What is whole in the bucket was taken all the
/// same: its end found no way into its row.
pub(super) async fn interrupted(ctx: &BackupContext) {
    let Some(pool) = &ctx.pool else { return };
    let select = "SELECT id FROM ops.backups
                  WHERE state = 'running' AND environment = $1 AND database = $2 AND target IS NOT DISTINCT FROM $3";
    let select = sqlx::query_scalar(select).bind(&ctx.environment).bind(ctx.database.database());
    let running: Vec<String> = match select.bind(&ctx.target).fetch_all(pool).await {
        Ok(running) => running,
        Err(error) => {
            tracing::warn!(%error, "whether an earlier backup's row waits for its end is not known");
            return;
        }
    };
    for id in running {
        match catalogue::find(ctx, &id).await {
            Ok((_, manifest)) => stored(ctx, &manifest).await,
            Err(BackupError::NotFound { .. }) => ended(ctx, &id, "the process that took it ended").await,
            Err(error) => {
                tracing::warn!(backup_id = id, %error, "what became of an earlier backup is not known");
            }
        }
    }
}

pub(super) async fn started(ctx: &BackupContext, keys: &Keys, request: Option<&str>, at: Timestamp) {
    let insert = "INSERT INTO ops.backups (id, key, bucket, environment, database, instance, request, started_at, state,
                                           target, schemas, encrypted)
                  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'running', $9, $10, $11)";
    let insert = sqlx::query(insert)
        .bind(keys.id())
        .bind(keys.dump())
        .bind(ctx.store.bucket())
        .bind(&ctx.environment)
        .bind(ctx.database.database())
        .bind(&ctx.instance)
        .bind(request)
        .bind(SqlTimestamp::from(at))
        .bind(&ctx.target)
        .bind(&ctx.schemas)
        .bind(!ctx.policy.recipients.is_empty());
    execute(ctx, insert).await;
}

pub(super) async fn stored(ctx: &BackupContext, manifest: &Manifest) {
    let update = "UPDATE ops.backups
                  SET state = 'stored', snapshot_at = $2, finished_at = $3, size_bytes = $4, sha256 = $5,
                      server_version = $6, client_version = $7, tables = $8, rows = $9
                  WHERE id = $1";
    let update = sqlx::query(update)
        .bind(&manifest.id)
        .bind(SqlTimestamp::from(manifest.snapshot_at))
        .bind(SqlTimestamp::from(manifest.finished_at))
        .bind(manifest.bytes.cast_signed())
        .bind(&manifest.sha256)
        .bind(&manifest.database.server_version)
        .bind(&manifest.client_version)
        .bind(i32::try_from(manifest.content.tables.len()).unwrap_or(i32::MAX))
        .bind(manifest.content.rows().cast_signed());
    execute(ctx, update).await;
}

pub(super) async fn failed(ctx: &BackupContext, id: &str, error: &BackupError) {
    ended(ctx, id, &error.to_string()).await;
}

async fn ended(ctx: &BackupContext, id: &str, why: &str) {
    let update = "UPDATE ops.backups SET state = 'failed', finished_at = now(), error = $2 WHERE id = $1";
    execute(ctx, sqlx::query(update).bind(id).bind(why)).await;
}

/// Records a proof, also a failed one, which takes an earlier success back: the dump may have rotted since.
pub(super) async fn tried(ctx: &BackupContext, proof: &Proof) {
    let update = "UPDATE ops.backups
                  SET proved_at = CASE WHEN $2 THEN $3 END, proof_tried_at = $3, proof_ms = $4, proof_problems = $5
                  WHERE id = $1";
    let update = sqlx::query(update)
        .bind(&proof.id)
        .bind(proof.proved)
        .bind(SqlTimestamp::from(proof.at))
        .bind(proof.duration_ms.cast_signed())
        .bind(&proof.problems);
    execute(ctx, update).await;
}

/// Records that retention has removed a backup.
pub(super) async fn removed(ctx: &BackupContext, id: &str) {
    let update = "UPDATE ops.backups SET removed_at = now() WHERE id = $1";
    execute(ctx, sqlx::query(update).bind(id)).await;
}
