//! `recording.sweep`: removes originals whose time is over. Each copy is read back and compared first: an original whose copy is not
//! exactly what was made of it stays, with the reason in its row.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_aws::{ObjectStore, S3ErrorKind};
use voiceai_postgres::PgPool;
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use crate::call;
use crate::error::RecordingError;
use crate::job::RecordingContext;
use crate::process::{hex, modified};
use crate::rows::{self, Due};
use crate::{metrics, work};

/// Rows read at a time.
const BATCH: i64 = 100;
/// Largest metadata that is read.
const METADATA_MAX: usize = 64 * 1024;

/// What is swept.
#[derive(Clone, Debug)]
pub struct SweepContext {
    /// Our tables.
    pub pool: PgPool,
    /// The recordings; absent unless `RECORDING_ENABLED`.
    pub recordings: Option<RecordingContext>,
}

/// Removes originals whose time is over, and records of calls that nobody asks for any more.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordingSweep {}

impl Job for RecordingSweep {
    const KIND: &'static str = "recording.sweep";
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(6 * 60 * 60);
    type Context = SweepContext;

    async fn run(&self, ctx: &SweepContext, attempt: &Attempt) -> Result<Outcome, JobError> {
        let calls = call::forget_old(&ctx.pool).await?;
        let Some(recordings) = &ctx.recordings else {
            return Ok(Outcome::DoneWith(json!({
                "call_records_removed": calls,
                "policy": "skipped: RECORDING_ENABLED is false",
            })));
        };
        let folders = work::clear(&recordings.settings.work_dir).await;
        let (mut removed, mut kept, mut policy) = (0_u64, 0_u64, "originals stay for ever");
        if let Some(keep) = recordings.settings.originals_keep {
            policy = "RECORDING_ORIGINALS_KEEP";
            (removed, kept) = sweep(recordings, keep, attempt.cancelled()).await?;
        }
        Ok(Outcome::DoneWith(json!({
            "originals_removed": removed,
            "originals_kept": kept,
            "call_records_removed": calls,
            "abandoned_folders_removed": folders,
            "policy": policy,
        })))
    }
}

async fn sweep(
    ctx: &RecordingContext,
    keep: Duration,
    cancel: &CancellationToken,
) -> Result<(u64, u64), RecordingError> {
    let now = Timestamp::now();
    let before = SignedDuration::try_from(keep).ok().and_then(|keep| now.checked_sub(keep).ok());
    let before = before.unwrap_or(Timestamp::MIN);
    let (mut removed, mut kept) = (0, 0);
    let mut after = (Timestamp::UNIX_EPOCH, Uuid::nil());
    loop {
        let batch = rows::due(&ctx.pool, ctx.store.bucket(), before, after, BATCH).await?;
        let Some(last) = batch.last() else { return Ok((removed, kept)) };
        after = (last.processed_at, last.id);
        for due in &batch {
            if cancel.is_cancelled() {
                return Err(RecordingError::Cancelled);
            }
            let doubt = doubt(&ctx.store, due).await?;
            if doubt.is_none() {
                ctx.store.delete(&due.original_key).await?;
                removed += 1;
            } else {
                kept += 1;
            }
            if let Some(why) = &doubt {
                tracing::warn!(recording_id = %due.id, key = due.original_key, why, "an original stays: its copy is not verified");
            }
            metrics::get().original(if doubt.is_none() { "removed" } else { "kept" });
            rows::swept(&ctx.pool, due.id, doubt.as_deref()).await?;
        }
    }
}

/// Why an original must stay; nothing when its copy is whole and its own. A store that does not answer is an error: what is not known
/// is not verified, and is asked again.
async fn doubt(store: &ObjectStore, due: &Due) -> Result<Option<String>, RecordingError> {
    match store.head(&due.original_key).await? {
        // Removed by an earlier sweep that was killed before its row.
        None => {
            store.check().await?;
            return Ok(None);
        }
        Some(original) => {
            let same = i64::try_from(original.size).ok() == Some(due.original_bytes)
                && modified(&original) == due.original_modified_at;
            if !same {
                return Ok(Some("the original is no longer the one that was processed".to_owned()));
            }
        }
    }
    let Some((bytes, sha256)) = read_back(store, &due.processed_key).await? else {
        return Ok(Some(format!("the processed copy {} is not there", due.processed_key)));
    };
    if bytes != due.processed_bytes || sha256 != due.processed_sha256 {
        return Ok(Some(format!("the processed copy {} is not what was made", due.processed_key)));
    }
    let metadata = match store.get_small(&due.metadata_key, METADATA_MAX).await {
        Ok(text) => serde_json::from_slice::<Value>(&text).unwrap_or_default(),
        Err(error) if matches!(error.kind(), S3ErrorKind::NotFound | S3ErrorKind::Other) => Value::Null,
        Err(error) => return Err(error.into()),
    };
    let agrees = metadata["processed"]["sha256"] == due.processed_sha256.as_str()
        && metadata["original"]["sha256"] == due.original_sha256.as_str();
    Ok((!agrees).then(|| format!("the metadata {} is missing or tells of something else", due.metadata_key)))
}

async fn read_back(store: &ObjectStore, key: &str) -> Result<Option<(i64, String)>, RecordingError> {
    let mut download = match store.get(key).await {
        Ok(download) => download,
        Err(error) if error.kind() == S3ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    while let Some(chunk) = download.next_chunk().await? {
        bytes += chunk.len() as u64;
        hash.update(&chunk);
    }
    Ok(Some((i64::try_from(bytes).unwrap_or(i64::MAX), hex(&hash.finalize()))))
}
