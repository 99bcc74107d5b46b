//! Taking a backup.

use std::time::Instant;

use jiff::Timestamp;
use opentelemetry::KeyValue;
use serde::Serialize;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;
use voiceai_aws::{PartSizes, S3ErrorKind, Uploaded};
use voiceai_postgres::sqlx;

use super::content::{self, Listed};
use super::crypt;
use super::error::BackupError;
use super::lock::Lock;
use super::manifest::{Content, DatabaseFacts, Encryption, Keys, Manifest, Proof};
use super::pour::{Sink, pour};
use super::tools::{Running, Tool, major};
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
    let dump = ctx.tools.find("pg_dump", major(&facts.server_version).max(compression.least_major)).await?;
    let check = ctx.tools.find("pg_restore", dump.major).await?;
    content::begin_snapshot(&mut session, place).await?;
    let (snapshot, snapshot_at) = export_snapshot(&mut session, place).await?;
    let tables = content::tables(&mut session, place, &ctx.schemas).await?;
    content::lock(&mut session, place, &tables).await?;
    let job = Dump { ctx, key: keys.dump(), tool: &dump, snapshot, facts: &facts, compression, recipients };
    let (uploaded, content) = job.dump_and_count(session, tables, cancel).await?;
    confirm_length(ctx, &keys.dump(), uploaded.bytes).await?;
    let manifest = Manifest {
        format: Manifest::format_of(!ctx.policy.recipients.is_empty(), !ctx.schemas.is_empty()),
        id: keys.id().to_owned(),
        key: keys.dump(),
        environment: ctx.environment.clone(),
        instance: ctx.instance.clone(),
        request: request.map(str::to_owned),
        database: facts,
        target: ctx.target.clone(),
        only_schemas: ctx.schemas.clone(),
        compression: Some(ctx.policy.compression.clone()),
        encryption: (!ctx.policy.recipients.is_empty()).then(|| Encryption {
            method: crypt::METHOD.to_owned(),
            recipients: ctx.policy.recipients.clone(),
        }),
        client_version: dump.version.clone(),
        snapshot_at,
        started_at,
        finished_at: Timestamp::now(),
        bytes: uploaded.bytes,
        sha256: uploaded.sha256,
        parts: uploaded.parts,
        content,
    };
    // What the store gives back, and what pg_restore makes of it: a dump that only looks whole is found out here.
    pour(ctx, &manifest, &check, Sink::Nowhere, cancel).await?;
    lock.check().await?;
    if cancel.is_cancelled() {
        return Err(BackupError::Cancelled);
    }
    let manifest = Manifest { finished_at: Timestamp::now(), ..manifest };
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

async fn confirm_length(ctx: &BackupContext, key: &str, bytes: u64) -> Result<(), BackupError> {
    let stored = ctx.store.head(key).await?.map(|object| object.size);
    if stored == Some(bytes) {
        return Ok(());
    }
    let problem = match stored {
        Some(stored) => format!("{bytes} bytes were sent and the store has {stored}"),
        None => "the store took it and does not have it".to_owned(),
    };
    Err(BackupError::Damaged { id: key.to_owned(), problem })
}

/// One `pg_dump` on its way to the bucket.
struct Dump<'a> {
    ctx: &'a BackupContext,
    key: String,
    tool: &'a Tool,
    snapshot: String,
    facts: &'a DatabaseFacts,
    compression: Compression,
    recipients: Vec<age::x25519::Recipient>,
}

/// `BACKUP_COMPRESSION` in the words of `pg_dump`.
#[derive(Debug, PartialEq, Eq)]
struct Compression {
    argument: Option<String>,
    /// The first `pg_dump` that has the method.
    least_major: u32,
}

impl Compression {
    fn of(setting: &str) -> Self {
        let (argument, least_major) = match setting.split_once(':') {
            _ if setting == "none" => (Some("--compress=0".to_owned()), 0),
            _ if setting == "gzip" => (None, 0),
            Some(("gzip", level)) => (Some(format!("--compress={level}")), 0),
            _ => (Some(format!("--compress={setting}")), 16),
        };
        Self { argument, least_major }
    }
}

/// A pattern of `pg_dump` that matches this schema alone.
fn pattern(schema: &str) -> String {
    format!("\"{}\"", schema.replace('"', "\"\""))
}

impl Dump<'_> {
    /// Streams the dump while the same snapshot is counted; the one that fails ends the other.
    async fn dump_and_count(
        &self,
        mut session: PgConnection,
        tables: Vec<Listed>,
        cancel: &CancellationToken,
    ) -> Result<(Uploaded, Content), BackupError> {
        let place = self.ctx.database.place();
        let stop = cancel.child_token();
        let upload = async {
            let uploaded = self.upload(&stop).await;
            if uploaded.is_err() {
                stop.cancel();
            }
            uploaded
        };
        let count = async {
            let counted = tokio::select! {
                biased;
                () = stop.cancelled() => Err(BackupError::Cancelled),
                counted = content::content(&mut session, place, tables, &self.ctx.schemas) => counted,
            };
            if counted.is_err() {
                stop.cancel();
            }
            counted
        };
        let (uploaded, counted) = tokio::join!(upload, count);
        // The session is the snapshot: pg_dump has it until here.
        let _ = session.close().await;
        match (uploaded, counted) {
            (Ok(uploaded), Ok(content)) => Ok((uploaded, content)),
            // The one that was not merely told to stop is the cause.
            (Err(BackupError::Cancelled) | Ok(_), Err(cause)) | (Err(cause), _) => Err(cause),
        }
    }

    async fn upload(&self, stop: &CancellationToken) -> Result<Uploaded, BackupError> {
        let mut command = self.tool.command(Some(&self.ctx.database));
        command.args(["--format=custom", "--no-password", "--lock-wait-timeout=60s"]);
        command.args(&self.compression.argument);
        command.args(self.ctx.schemas.iter().map(|schema| format!("--schema={}", pattern(schema))));
        command.arg(format!("--snapshot={}", self.snapshot)).stdout(std::process::Stdio::piped());
        let mut running = self.tool.start(&mut command)?;
        let stdout: Box<dyn AsyncRead + Send + Unpin> = match running.child.stdout.take() {
            Some(stdout) => Box::new(stdout),
            None => Box::new(tokio::io::empty()),
        };
        let source: Box<dyn AsyncRead + Send + Unpin> = if self.recipients.is_empty() {
            stdout
        } else {
            Box::new(crypt::encrypting(stdout, self.recipients.clone()))
        };
        let sizes = PartSizes::for_expected(self.facts.size_bytes);
        let mut ended = None;
        let approve = async |_| approve(&mut running, &mut ended).await;
        let uploaded = self.ctx.store.put_stream(&self.key, source, sizes, stop, approve).await;
        match (uploaded, ended) {
            (_, Some(error)) => Err(error),
            (Err(error), None) if error.kind() == S3ErrorKind::Cancelled => Err(BackupError::Cancelled),
            (uploaded, None) => Ok(uploaded?),
        }
    }
}

/// The end of the pipe says nothing: a killed `pg_dump` closes it too. Only exit 0 makes the stream a dump.
async fn approve(running: &mut Running, ended: &mut Option<BackupError>) -> Result<(), std::io::Error> {
    running.ended_well().await.map_err(|error| {
        let refused = std::io::Error::other(error.to_string());
        *ended = Some(error);
        refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compression_is_written_as_every_pg_dump_that_has_it_reads_it() {
        let of = |setting| {
            let Compression { argument, least_major } = Compression::of(setting);
            (argument.unwrap_or_default(), least_major)
        };
        assert_eq!(of("gzip"), (String::new(), 0));
        assert_eq!(of("none"), ("--compress=0".to_owned(), 0));
        assert_eq!(of("gzip:9"), ("--compress=9".to_owned(), 0));
        assert_eq!(of("lz4"), ("--compress=lz4".to_owned(), 16));
        assert_eq!(of("zstd:19"), ("--compress=zstd:19".to_owned(), 16));
    }

    #[test]
    fn a_schemas_name_is_never_read_as_a_pattern() {
        assert_eq!(pattern("a*b"), "\"a*b\"");
        assert_eq!(pattern("odd\"name"), "\"odd\"\"name\"");
    }
}
