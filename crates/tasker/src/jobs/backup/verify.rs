//! Proving a backup by restoring it.

use std::time::Instant;

use jiff::Timestamp;
use sqlx::Connection as _;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::sqlx;

use super::error::BackupError;
use super::manifest::{Content, Keys, Manifest, Proof};
use super::pour::{Sink, check_length, pour};
use super::scratch::Scratch;
use super::tools::major;
use super::{BackupContext, catalogue, content, millis, record};

/// Restores the backup `id` (or the beginning of one, or `latest`) into a scratch database beside the service's own,
/// compares every count and digest with the manifest, and removes the scratch database whatever comes of it. The outcome is
/// stored beside the backup and, where there are our tables, in its row.
///
/// # Errors
/// [`BackupError::Damaged`] and [`BackupError::Differs`] when the backup is no good, which is recorded too; anything else
/// says nothing about the backup.
pub async fn verify(ctx: &BackupContext, id: &str, cancel: &CancellationToken) -> Result<Proof, BackupError> {
    let (keys, manifest) = catalogue::find(ctx, id).await?;
    // Beside the database it is of, where that is still known here: its server has its version.
    let home = manifest.target.as_ref().and_then(|name| ctx.series(Some(name), &manifest.only_schemas).ok());
    let ctx = home.as_ref().unwrap_or(ctx);
    tracing::info!(backup_id = manifest.id, "proof started");
    let begun = Instant::now();
    let attempt = restored(ctx, &manifest, cancel).await;
    let about = |server_version: String, content: &Content, problems: Vec<String>| Proof {
        id: manifest.id.clone(),
        proved: problems.is_empty(),
        at: Timestamp::now(),
        instance: ctx.instance.clone(),
        duration_ms: millis(begun),
        server_version,
        tables: content.tables.len(),
        rows: content.rows(),
        problems,
    };
    let (proof, error) = match attempt {
        Ok((content, server_version)) => {
            let differences = manifest.content.differences(&content);
            let proof = about(server_version, &content, differences.clone());
            let error =
                (!proof.proved).then(|| BackupError::Differs { id: manifest.id.clone(), differences });
            (proof, error)
        }
        Err(error @ BackupError::Damaged { .. }) => {
            (about(String::new(), &Content::default(), vec![error.to_string()]), Some(error))
        }
        Err(error) => {
            tracing::error!(backup_id = manifest.id, %error, remedy = error.remedy(), "proof could not be made");
            return Err(error);
        }
    };
    store(ctx, &keys, &proof).await?;
    match error {
        None => {
            let Proof { tables, rows, duration_ms, .. } = &proof;
            tracing::info!(backup_id = manifest.id, tables, rows, duration_ms, "backup proved by a restore");
            Ok(proof)
        }
        Some(error) => {
            tracing::error!(backup_id = manifest.id, %error, remedy = error.remedy(), "backup is no good");
            Err(error)
        }
    }
}

async fn store(ctx: &BackupContext, keys: &Keys, proof: &Proof) -> Result<(), BackupError> {
    record::tried(ctx, proof).await;
    let text = serde_json::to_vec_pretty(proof)
        .map_err(|error| BackupError::Manifest { key: keys.proof(), problem: error.to_string() })?;
    Ok(ctx.store.put_small(&keys.proof(), text.into(), "application/json").await?)
}

/// Restores into a scratch database, and tells what is in it and on which server.
async fn restored(
    ctx: &BackupContext,
    manifest: &Manifest,
    cancel: &CancellationToken,
) -> Result<(Content, String), BackupError> {
    let tool = ctx.tools.find("pg_restore", major(&manifest.client_version)).await?;
    // Told before a database is made for it.
    check_length(ctx, manifest).await?;
    let scratch = Scratch::create(ctx, &manifest.database).await?;
    let outcome = async {
        let place = scratch.address.place();
        let row_hash = manifest.content.row_hash;
        // Counts alone prove nothing: told before the dump is restored for it.
        let mut session = scratch.address.connect("voiceai-verify").await?;
        let facts = content::database_facts(&mut session, place).await?;
        let is_comparable = content::is_comparable(&mut session, row_hash).await;
        // A restore may take longer than an idle session lives.
        let _ = session.close().await;
        if !is_comparable {
            let database = place.to_owned();
            return Err(BackupError::Incomparable { database, server_version: facts.server_version });
        }
        pour(ctx, manifest, &tool, Sink::Database(&scratch.address), cancel).await?;
        let mut session = scratch.address.connect("voiceai-verify").await?;
        let content = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(BackupError::Cancelled),
            content = content::content_now(&mut session, place, &manifest.only_schemas, row_hash) => content?,
        };
        let _ = session.close().await;
        Ok((content, facts.server_version))
    }
    .await;
    // A scratch database that cannot be removed now is the next proof's to sweep: the outcome stands.
    if let Err(error) = scratch.drop_it().await {
        tracing::warn!(%error, "a scratch database is left for the next proof to remove");
    }
    outcome
}
