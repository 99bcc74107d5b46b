//! Taking a backup.

use std::time::Instant;

use jiff::Timestamp;
use opentelemetry::KeyValue;
use serde::Serialize;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};
use tokio_util::sync::CancellationToken;
use voiceai_aws::Uploaded;
use voiceai_postgres::sqlx;

use super::content::{self, Listed};
use super::crypt;
use super::dump::{Compression, Dump};
use super::error::BackupError;
use super::lock::Lock;
use super::manifest::{Content, Encryption, Keys, Manifest, Proof, RowHash};
use super::pour::{Sink, compare, pour};
use super::tools::major;
use super::{BackupContext, catalogue, prune, random_digits, record, sweep};

/// A backup that exists.
#[derive(Debug, Clone, Serialize)]
pub struct BackupRecord {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its proof, once there is one.
    pub proof: Option<Proof>,
    /// `false` when the same request had taken it before.
    pub new: bool,
    /// Older backups that retention has removed after it.
    pub removed: Vec<String>,
}

/// Takes a backup: a dump of the service's database, streamed to the bucket, read back, and then made a backup by its
/// manifest. `request` names who asks (a job's id): asked again, it gets the backup it has already taken.
///
/// Nothing is written to this host's disk. At most one runs in a database at a time. What earlier runs that were killed
/// have left is cleared away first.
///
/// # Errors
/// [`BackupError`]. Nothing of the failed backup is left in the bucket then, nor of one whose future was dropped once the
/// next run has begun.
pub async fn run(
    ctx: &BackupContext,
    request: Option<&str>,
    cancel: &CancellationToken,
) -> Result<BackupRecord, BackupError> {
    let begun = Instant::now();
    let result = attempt(ctx, request, cancel).await;
    let outcome = match &result {
        Ok(taken) if taken.new => "stored",
        Ok(_) => "known",
        Err(error) => error.code(),
    };
    let meter = opentelemetry::global::meter("voiceai");
    let labels = [KeyValue::new("outcome", outcome)];
    meter.u64_counter("voiceai.backup.runs").with_unit("{run}").build().add(1, &labels);
    meter
        .f64_histogram("voiceai.backup.duration")
        .with_unit("s")
        .build()
        .record(begun.elapsed().as_secs_f64(), &labels);
    result
}

async fn attempt(
    ctx: &BackupContext,
    request: Option<&str>,
    cancel: &CancellationToken,
) -> Result<BackupRecord, BackupError> {
    ctx.store.check().await?;
    let id = format!("{}{}", ctx.mark(), random_digits());
    let mut lock = Lock::take(&ctx.database, &id).await?;
    let result = locked(ctx, &id, request, &mut lock, cancel).await;
    lock.release().await;
    result
}

/// What the holder of the lock does.
async fn locked(
    ctx: &BackupContext,
    id: &str,
    request: Option<&str>,
    lock: &mut Lock,
    cancel: &CancellationToken,
) -> Result<BackupRecord, BackupError> {
    if let Some(request) = request
        && let Some(entry) = catalogue::taken_for(ctx, request).await?
        && let Ok(manifest) = entry.manifest
    {
        tracing::info!(backup_id = manifest.id, request, "this request has taken its backup before");
        record::stored(ctx, &manifest).await;
        return Ok(BackupRecord { manifest, proof: entry.proof, new: false, removed: Vec::new() });
    }
    sweep::sweep(ctx).await?;
    record::interrupted(ctx).await;
    let started_at = Timestamp::now();
    let keys = Keys::new(&ctx.prefix, started_at, ctx.database.database(), id);
    record::started(ctx, &keys, request, started_at).await;
    tracing::info!(backup_id = id, database = ctx.database.place(), "backup started");
    match take(ctx, &keys, request, started_at, lock, cancel).await {
        Ok(manifest) => {
            record::stored(ctx, &manifest).await;
            tracing::info!(
                backup_id = id,
                key = manifest.key,
                size_bytes = manifest.bytes,
                tables = manifest.content.tables.len(),
                rows = manifest.content.rows(),
                "backup stored"
            );
            // A backup that exists is not failed by one that could not be removed.
            let removed = prune::prune(ctx).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "retention could not be kept; the next backup tries again");
                Vec::new()
            });
            Ok(BackupRecord { manifest, proof: None, new: true, removed })
        }
        Err(error) => {
            // Of a completion whose answer was lost, and of a dump that did not pass the check.
            if let Err(left) = ctx.store.delete(&keys.dump()).await {
                tracing::warn!(key = keys.dump(), error = %left, "a failed backup's dump is left for the next run to clear");
            }
            record::failed(ctx, id, &error).await;
            tracing::error!(backup_id = id, %error, remedy = error.remedy(), "backup failed");
            Err(error)
        }
    }
}

/// From the snapshot to the manifest.
async fn take(
    ctx: &BackupContext,
    keys: &Keys,
    request: Option<&str>,
    started_at: Timestamp,
    lock: &mut Lock,
    cancel: &CancellationToken,
) -> Result<Manifest, BackupError> {
    let place = ctx.database.place();
    let recipients = crypt::recipients(&ctx.policy.recipients)?;
    let compression = Compression::of(&ctx.policy.compression);
    let mut session = ctx.database.connect(&format!("voiceai-backup {}", keys.id())).await?;
    let facts = content::database_facts(&mut session, place).await?;
    let tool = ctx.tools.find("pg_dump", major(&facts.server_version).max(compression.least_major)).await?;
    let check = ctx.tools.find("pg_restore", tool.major).await?;
    let row_hash = content::row_hash(&mut session).await;
    content::begin_snapshot(&mut session, place).await?;
    content::alone(&mut session, place).await?;
    let (snapshot, snapshot_at) = export_snapshot(&mut session, place).await?;
    let tables = content::tables(&mut session, place, &ctx.schemas).await?;
    content::lock(&mut session, place, &tables).await?;
    let size_bytes = facts.size_bytes;
    let dump = Dump {
        ctx,
        key: keys.dump(),
        tool: &tool,
        check: &check,
        snapshot,
        size_bytes,
        compression,
        recipients,
    };
    let manifest = |uploaded: Uploaded| Manifest {
        format: Manifest::format_of(!ctx.policy.recipients.is_empty(), !ctx.schemas.is_empty(), row_hash),
        id: keys.id().to_owned(),
        key: keys.dump(),
        environment: ctx.environment.clone(),
        instance: ctx.instance.clone(),
        request: request.map(str::to_owned),
        database: facts.clone(),
        target: ctx.target.clone(),
        only_schemas: ctx.schemas.clone(),
        compression: Some(ctx.policy.compression.clone()),
        encryption: (!ctx.policy.recipients.is_empty()).then(|| Encryption {
            method: crypt::METHOD.to_owned(),
            recipients: ctx.policy.recipients.clone(),
        }),
        client_version: tool.version.clone(),
        snapshot_at,
        started_at,
        finished_at: Timestamp::now(),
        bytes: uploaded.bytes,
        sha256: uploaded.sha256,
        parts: uploaded.parts,
        content: Content::default(),
    };
    let stored = Box::pin(store_and_count(&dump, manifest, session, (tables, row_hash), cancel)).await?;
    lock.check().await?;
    if cancel.is_cancelled() {
        return Err(BackupError::Cancelled);
    }
    let manifest = Manifest { finished_at: Timestamp::now(), ..stored };
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| BackupError::Manifest { key: keys.manifest(), problem: error.to_string() })?;
    ctx.store.put_small(&keys.manifest(), text.into(), "application/json").await?;
    Ok(manifest)
}

async fn export_snapshot(
    session: &mut PgConnection,
    place: &str,
) -> Result<(String, Timestamp), BackupError> {
    let asked =
        sqlx::query("SELECT pg_catalog.pg_export_snapshot(), (extract(epoch FROM now()) * 1000)::int8");
    let row =
        asked.fetch_one(session).await.map_err(BackupError::database("export of the snapshot", place))?;
    let at = Timestamp::from_millisecond(row.get(1)).unwrap_or_else(|_| Timestamp::now());
    Ok((row.get(0), at))
}

/// Stores the dump and reads it back while the same snapshot is counted; the one that fails ends the other.
async fn store_and_count(
    dump: &Dump<'_>,
    manifest: impl FnOnce(Uploaded) -> Manifest,
    mut session: PgConnection,
    (tables, row_hash): (Vec<Listed>, RowHash),
    cancel: &CancellationToken,
) -> Result<Manifest, BackupError> {
    let ctx = dump.ctx;
    let place = ctx.database.place();
    let stop = cancel.child_token();
    // pg_dump needs the snapshot until then.
    let dumped = CancellationToken::new();
    let store = async {
        let uploaded = dump.upload(&stop).await;
        dumped.cancel();
        let stored = async {
            let manifest = manifest(uploaded?);
            read_back(ctx, &manifest, dump, &stop).await?;
            Ok(manifest)
        };
        let stored = stored.await;
        if stored.is_err() {
            stop.cancel();
        }
        stored
    };
    let count = async {
        let counted = tokio::select! {
            biased;
            () = stop.cancelled() => Err(BackupError::Cancelled),
            counted = content::content(&mut session, place, tables, &ctx.schemas, row_hash) => counted,
        };
        if counted.is_err() {
            stop.cancel();
        }
        dumped.cancelled().await;
        let _ = session.close().await;
        counted
    };
    match tokio::join!(store, count) {
        (Ok(manifest), Ok(content)) => Ok(Manifest { content, ..manifest }),
        // The one that was not merely told to stop is the cause.
        (Err(BackupError::Cancelled) | Ok(_), Err(cause)) | (Err(cause), _) => Err(cause),
    }
}

/// Whether the store gives back what it was given, byte for byte. `pg_restore` has read these bytes before; what is
/// encrypted it reads once more where there is a key, which shows that the key opens it.
async fn read_back(
    ctx: &BackupContext,
    manifest: &Manifest,
    dump: &Dump<'_>,
    stop: &CancellationToken,
) -> Result<(), BackupError> {
    if manifest.encryption.is_some() && ctx.policy.identity_file.is_some() {
        pour(ctx, manifest, dump.check, Sink::Nowhere, stop).await
    } else {
        compare(ctx, manifest, stop).await
    }
}
