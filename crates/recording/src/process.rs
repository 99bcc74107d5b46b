//! The steps from an original to its processed copy.
//!
//! 1. The original is fetched into a folder of the job's own, hashed on the way.
//! 2. It is checked, decoded to its end and measured.
//! 3. The copy is made, then decoded and measured itself: what cannot be heard again is never stored.
//! 4. The copy is uploaded, then its metadata: who finds the metadata finds the copy.
//! 5. The row is written and the tenant told, in one transaction.
//!
//! Killed after any step, the work is done again from the first one and gives the same objects, the same row and no second event.

use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio_util::sync::CancellationToken;
use voiceai_aws::{Object, ObjectStore, PartSizes, S3Error, S3ErrorKind};

use crate::error::RecordingError;
use crate::media::loudness::{self, Loudness};
use crate::media::probe::{self, Probe};
use crate::media::studio::{Heard, Studio, labels};
use crate::rows::{Made, Recording};
use crate::settings::RecordingSettings;
use crate::work::WorkFolder;

/// What stands between an original's key and the ending of what was made of it.
pub(crate) const MARK: &str = ".processed.";
/// Most by which a copy may be shorter or longer than what was heard of its original, in seconds.
const DRIFT: f64 = 0.5;

/// One original to be processed.
pub(crate) struct Order<'a> {
    pub(crate) settings: &'a RecordingSettings,
    pub(crate) store: &'a ObjectStore,
    pub(crate) recording: &'a Recording,
    pub(crate) key: &'a str,
    pub(crate) cancel: &'a CancellationToken,
}

/// The object, with a bucket that is gone told from an object that is not there.
///
/// # Errors
/// [`RecordingError::Missing`]; [`RecordingError::Store`].
pub async fn look(store: &ObjectStore, key: &str) -> Result<Object, RecordingError> {
    if let Some(object) = store.head(key).await? {
        return Ok(object);
    }
    store.check().await?;
    Err(RecordingError::Missing { bucket: store.bucket().to_owned(), key: key.to_owned() })
}

/// When the store says that the object was written.
pub(crate) fn modified(object: &Object) -> Option<Timestamp> {
    // Stores tell whole seconds in one answer and parts of them in another.
    let at = Timestamp::try_from(object.modified?).ok()?;
    Timestamp::from_second(at.as_second()).ok()
}

/// Whether the row already tells of this very original, and the copy is there.
pub(crate) async fn is_done(
    store: &ObjectStore,
    recording: &Recording,
    original: &Object,
) -> Result<bool, RecordingError> {
    let same = recording.state == "processed"
        && recording.original_bytes == i64::try_from(original.size).ok()
        && recording.original_modified_at == modified(original);
    let Some(copy) = recording.processed_key.as_deref().filter(|_| same) else { return Ok(false) };
    let copy = store.head(copy).await?;
    Ok(copy.is_some_and(|copy| i64::try_from(copy.size).ok() == recording.processed_bytes))
}

/// Carries the order out up to the row, which is the caller's to write.
pub(crate) async fn carry_out(order: &Order<'_>, original: &Object) -> Result<Made, RecordingError> {
    let Order { settings, store, key, cancel, .. } = order;
    if original.size == 0 {
        return Err(RecordingError::Unusable { key: (*key).to_owned(), why: "it is empty".to_owned() });
    }
    if original.size > settings.bytes_max {
        let why = format!("it has {} bytes, {} are allowed", original.size, settings.bytes_max);
        return Err(RecordingError::Beyond { key: (*key).to_owned(), setting: "RECORDING_BYTES_MAX", why });
    }
    let (ending, content_type) = labels(settings.format);
    let stem = format!("{key}{MARK}");
    // What an earlier attempt that was killed has left in the store.
    store.abort_uploads(&stem, |_| true).await?;
    let folder = WorkFolder::make(&settings.work_dir, original.size, settings.work_free_min).await?;
    let (source, copy) = (folder.file("original"), folder.file("processed"));
    let original_sha256 = fetch(order, &source).await?;
    let studio = Studio { settings, folder: folder.path(), key, cancel };
    let probe = studio.probe(&source).await?;
    let heard = studio.hear(&source).await?;
    if probe::is_cut(probe.declared_seconds, heard.seconds) {
        let declared = probe.declared_seconds.unwrap_or_default();
        let why = format!("it says that it lasts {declared:.2} s, {:.2} s could be decoded", heard.seconds);
        return Err(RecordingError::Truncated { key: (*key).to_owned(), why });
    }
    let gain = loudness::gain(&heard.loudness, settings.loudness);
    studio.make(&source, probe.channels, gain, &copy).await?;
    let again = verify(&studio, &heard, &copy).await?;
    let processed_key = format!("{stem}{ending}");
    let metadata_key = format!("{stem}json");
    let reader = tokio::fs::File::open(&copy).await.map_err(RecordingError::file("open", &copy))?;
    let uploaded = store
        .put_stream_as(&processed_key, content_type, reader, PartSizes::SMALLEST, cancel, async |_| {
            Ok::<(), std::io::Error>(())
        })
        .await
        .map_err(cancelled)?;
    let made = Made {
        original_bytes: original.size,
        original_sha256,
        original_modified_at: modified(original),
        processed_key,
        metadata_key,
        processed_bytes: uploaded.bytes,
        processed_sha256: uploaded.sha256,
        processed_format: ending.to_owned(),
        seconds: again.seconds,
        original_loudness: heard.loudness.integrated,
        loudness: again.loudness.integrated,
        true_peak: again.loudness.true_peak,
    };
    let metadata = metadata(order, &made, &probe, &heard, &again, content_type);
    let text = serde_json::to_vec_pretty(&metadata).unwrap_or_default();
    store.put_small(&made.metadata_key, text.into(), "application/json").await?;
    Ok(made)
}

/// Streams the original into a file; the answer is its SHA-256 in hexadecimal.
async fn fetch(order: &Order<'_>, path: &Path) -> Result<String, RecordingError> {
    let fetching = async {
        let mut download = match order.store.get(order.key).await {
            Err(error) if error.kind() == S3ErrorKind::NotFound => {
                let bucket = order.store.bucket().to_owned();
                return Err(RecordingError::Missing { bucket, key: order.key.to_owned() });
            }
            other => other?,
        };
        let limit = order.settings.bytes_max;
        let mut file = tokio::fs::File::create(path).await.map_err(RecordingError::file("make", path))?;
        let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
        while let Some(chunk) = download.next_chunk().await? {
            bytes += chunk.len() as u64;
            if bytes > limit {
                let why = format!("more than the {limit} bytes that are allowed arrived");
                let key = order.key.to_owned();
                return Err(RecordingError::Beyond { key, setting: "RECORDING_BYTES_MAX", why });
            }
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(RecordingError::file("write", path))?;
        }
        file.flush().await.map_err(RecordingError::file("write", path))?;
        Ok(hex(&hash.finalize()))
    };
    tokio::select! {
        biased;
        () = order.cancel.cancelled() => Err(RecordingError::Cancelled),
        fetched = fetching => fetched,
    }
}

/// Hears the copy as a listener would, and compares.
async fn verify(studio: &Studio<'_>, original: &Heard, copy: &Path) -> Result<Heard, RecordingError> {
    let unverified = |why: String| RecordingError::Unverified { key: studio.key.to_owned(), why };
    // Nothing about our own copy is the original's fault.
    let ours = |error: RecordingError| match error {
        RecordingError::Unusable { why, .. }
        | RecordingError::Truncated { why, .. }
        | RecordingError::Beyond { why, .. } => unverified(why),
        other => other,
    };
    studio.probe(copy).await.map_err(ours)?;
    let heard = studio.hear(copy).await.map_err(ours)?;
    if (heard.seconds - original.seconds).abs() > DRIFT {
        return Err(unverified(format!(
            "it lasts {:.2} s, the original {:.2} s",
            heard.seconds, original.seconds
        )));
    }
    Ok(heard)
}

fn cancelled(error: S3Error) -> RecordingError {
    if error.kind() == S3ErrorKind::Cancelled { RecordingError::Cancelled } else { error.into() }
}

/// The object beside the copy. It says nothing of when it was made or where, so that it is the same each time.
fn metadata(
    order: &Order<'_>,
    made: &Made,
    probe: &Probe,
    heard: &Heard,
    again: &Heard,
    content_type: &str,
) -> Value {
    let loudness = |loudness: &Loudness| {
        json!({
            "integrated_lufs": loudness.integrated,
            "range_lu": loudness.range,
            "true_peak_dbtp": loudness.true_peak,
        })
    };
    json!({
        "version": 1,
        "recording_id": order.recording.id,
        "call_id": order.recording.call_id,
        "tenant": order.recording.tenant,
        "original": {
            "key": order.key,
            "bytes": made.original_bytes,
            "sha256": made.original_sha256,
            "modified_at": made.original_modified_at,
            "format": probe.format,
            "codec": probe.codec,
            "sample_rate": probe.sample_rate,
            "channels": probe.channels,
            "audio_streams": probe.streams,
            "duration_seconds": round(heard.seconds),
            "decode_errors": heard.errors,
            "loudness": loudness(&heard.loudness),
        },
        "processed": {
            "key": made.processed_key,
            "bytes": made.processed_bytes,
            "sha256": made.processed_sha256,
            "format": made.processed_format,
            "content_type": content_type,
            "duration_seconds": round(again.seconds),
            "target_lufs": order.settings.loudness,
            "loudness": loudness(&again.loudness),
        },
    })
}

fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
