//! `recording.process`.

use std::fmt;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;
use voiceai_aws::ObjectStore;
use voiceai_postgres::PgPool;
use voiceai_queue::{Attempt, Job, JobError, Outcome, RetryPolicy};

use crate::error::RecordingError;
use crate::process::{self, MARK, Order};
use crate::rows::{self, Made, Recording, Told};
use crate::settings::RecordingSettings;
use crate::{metrics, platform};

/// The queue of recordings: a few at a time, so that they leave the host and the other queues in peace.
pub const RECORDING_QUEUE: &str = "recordings";

/// How long a job waits while PostgreSQL is away. It costs no attempt.
const AWAY: Duration = Duration::from_secs(5);
/// How long it waits for an original that may still be on its way.
const UPLOADING: Duration = Duration::from_secs(10);
/// Longest key of an original: room is left for the ending of the copy.
const KEY_MAX: usize = 960;

/// What recordings are processed with.
#[derive(Clone, Debug)]
pub struct RecordingContext {
    /// The bucket of recordings.
    pub store: ObjectStore,
    /// Our tables, and the platform's.
    pub pool: PgPool,
    /// `RECORDING_…`.
    pub settings: RecordingSettings,
    /// `WEBHOOK_EVENT_BYTES_MAX`.
    pub event_bytes_max: usize,
}

/// Processes one recording.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire")]
pub struct RecordingProcess {
    /// The original's key in the bucket of recordings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// In its place: the id of a row of `ops.recordings`, or of the platform's table of recordings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recording_id: Option<String>,
    /// Of which call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// Who is told; else the job's tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Until when an original that is not there may still be on its way. Without it, one that is not there is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_until: Option<Timestamp>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(default)]
    key: Option<String>,
    #[serde(default)]
    recording_id: Option<Id>,
    #[serde(default)]
    call_id: Option<Id>,
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    upload_until: Option<Timestamp>,
}

impl TryFrom<Wire> for RecordingProcess {
    type Error = &'static str;

    fn try_from(wire: Wire) -> Result<Self, Self::Error> {
        if wire.key.is_none() && wire.recording_id.is_none() {
            return Err("either key or recording_id is wanted");
        }
        Ok(Self {
            key: wire.key,
            recording_id: wire.recording_id.map(Id::text),
            call_id: wire.call_id.map(Id::text),
            tenant: wire.tenant,
            upload_until: wire.upload_until,
        })
    }
}

/// An id as the platform writes it: text or a number.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Id {
    Number(i64),
    Text(String),
}

impl Id {
    pub(crate) fn text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

impl fmt::Display for RecordingProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key.as_deref().or(self.recording_id.as_deref()).unwrap_or_default())
    }
}

impl Job for RecordingProcess {
    const KIND: &'static str = "recording.process";
    const QUEUE: &'static str = RECORDING_QUEUE;
    /// A store that is away for some hours is outlived.
    const RETRY: RetryPolicy = RetryPolicy::Exponential {
        base: Duration::from_secs(10),
        factor: 2.0,
        cap: Duration::from_secs(3_600),
        jitter: 0.2,
        attempts: 14,
    };
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(6 * 60 * 60);
    type Context = RecordingContext;

    async fn run(&self, ctx: &RecordingContext, attempt: &Attempt) -> Result<Outcome, JobError> {
        let started = Instant::now();
        let ended = Box::pin(self.attempt(ctx, attempt)).await;
        let outcome = match &ended {
            Ok(End::Made(made)) => {
                metrics::get().audio(made.seconds);
                "processed"
            }
            Ok(End::Known) => "known",
            Ok(End::Uploading) => "not_yet_there",
            Err(error) => error.word(),
        };
        metrics::get().attempt(outcome, started.elapsed());
        match ended {
            Ok(End::Made(made)) => Ok(Outcome::DoneWith(json!({
                "processed_key": made.processed_key,
                "metadata_key": made.metadata_key,
                "sha256": made.processed_sha256,
                "bytes": made.processed_bytes,
                "duration_ms": made.duration_ms(),
                "loudness_lufs": made.loudness,
            }))),
            Ok(End::Known) => Ok(Outcome::DoneWith(json!({ "known": true }))),
            Ok(End::Uploading) => Ok(Outcome::Snooze(UPLOADING)),
            Err(error) if error.is_database_away() => {
                tracing::warn!(recording = %self, %error, "a recording waits for PostgreSQL");
                Ok(Outcome::Snooze(AWAY))
            }
            Err(error) if error.is_final() => Err(JobError::discard(error)),
            Err(error) => Err(JobError::retry(error)),
        }
    }
}

enum End {
    Made(Box<Made>),
    Known,
    Uploading,
}

impl RecordingProcess {
    async fn attempt(&self, ctx: &RecordingContext, attempt: &Attempt) -> Result<End, RecordingError> {
        let tenant = self.tenant.as_deref().or(Some(attempt.tenant())).filter(|tenant| !tenant.is_empty());
        let (recording, key) = self.declare(ctx, tenant).await?;
        match self.process(ctx, &recording, &key, attempt).await {
            Err(error) if error.is_final() => {
                give_up(ctx, &recording, &key, &error).await?;
                tracing::error!(recording_id = %recording.id, key, %error, "recording given up");
                Err(error)
            }
            other => other,
        }
    }

    /// The row, and the original's key.
    async fn declare(
        &self,
        ctx: &RecordingContext,
        tenant: Option<&str>,
    ) -> Result<(Recording, String), RecordingError> {
        let acquired = ctx.pool.acquire().await;
        let mut connection = acquired.map_err(RecordingError::database("look up a recording"))?;
        let bucket = ctx.store.bucket();
        let key = match (&self.key, &self.recording_id) {
            (Some(key), _) => key.clone(),
            (None, Some(id)) => {
                let own = match Uuid::parse_str(id) {
                    Ok(id) => rows::key_of(&mut connection, bucket, id).await?,
                    Err(_) => None,
                };
                match own {
                    Some(key) => key,
                    None => platform::recording_key(&mut connection, bucket, id).await?,
                }
            }
            (None, None) => return Err(RecordingError::Order("neither key nor recording_id".to_owned())),
        };
        check_key(&key)?;
        let (recording, _) =
            rows::declare(&mut connection, bucket, &key, self.call_id.as_deref(), tenant).await?;
        Ok((recording, key))
    }

    async fn process(
        &self,
        ctx: &RecordingContext,
        recording: &Recording,
        key: &str,
        attempt: &Attempt,
    ) -> Result<End, RecordingError> {
        let original = match process::look(&ctx.store, key).await {
            Ok(original) => original,
            // The sweep has removed it, as it should.
            Err(RecordingError::Missing { .. }) if recording.original_deleted_at.is_some() => {
                return Ok(End::Known);
            }
            Err(RecordingError::Missing { .. })
                if self.upload_until.is_some_and(|until| Timestamp::now() < until) =>
            {
                return Ok(End::Uploading);
            }
            Err(error) => return Err(error),
        };
        if process::is_done(&ctx.store, recording, &original).await? {
            return Ok(End::Known);
        }
        let order =
            Order { settings: &ctx.settings, store: &ctx.store, recording, key, cancel: attempt.cancelled() };
        let made = Box::pin(process::carry_out(&order, &original)).await?;
        let data = json!({
            "recording_id": recording.id,
            "call_id": recording.call_id,
            "bucket": ctx.store.bucket(),
            "original_key": key,
            "processed_key": made.processed_key,
            "metadata_key": made.metadata_key,
            "bytes": made.processed_bytes,
            "sha256": made.processed_sha256,
            "duration_ms": made.duration_ms(),
            "loudness_lufs": made.loudness,
        });
        // The same result is the same event; a recording that was replaced is another one.
        let id = format!("recording:{}:{}", recording.id, &made.processed_sha256[..32]);
        let told =
            Told { event_type: "recording.processed", id, data: &data, bytes_max: ctx.event_bytes_max };
        rows::processed(&ctx.pool, recording, key, &made, &told).await?;
        tracing::info!(
            recording_id = %recording.id,
            key,
            processed_key = made.processed_key,
            duration_ms = made.duration_ms(),
            "recording processed"
        );
        Ok(End::Made(Box::new(made)))
    }
}

async fn give_up(
    ctx: &RecordingContext,
    recording: &Recording,
    key: &str,
    error: &RecordingError,
) -> Result<(), RecordingError> {
    let data = json!({
        "recording_id": recording.id,
        "call_id": recording.call_id,
        "bucket": ctx.store.bucket(),
        "original_key": key,
        "reason": error.word(),
        "error": error.to_string(),
    });
    let id = format!("recording-failed:{}", recording.id);
    let told = Told { event_type: "recording.failed", id, data: &data, bytes_max: ctx.event_bytes_max };
    rows::failed(&ctx.pool, recording, key, &error.to_string(), &told).await
}

pub(crate) fn check_key(key: &str) -> Result<(), RecordingError> {
    let refused = |why: &str| Err(RecordingError::Order(format!("the key {key:?} {why}")));
    if key.is_empty() || key.len() > KEY_MAX || key.chars().any(char::is_control) {
        return refused("is no key of 1 to 960 bytes without control characters");
    }
    if key.starts_with('/') || key.contains("://") {
        return refused("is an address; give the object's name in the bucket");
    }
    // Stores take these for a path, and refuse it or lead elsewhere.
    if key.split('/').any(|part| part == "." || part == "..") {
        return refused("has `.` or `..` as a part; give the object's name in the bucket");
    }
    if key.contains(MARK) {
        return refused("is that of a processed copy; give the original's");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_names_a_recording_by_key_or_by_id() {
        let read =
            |text: &str| serde_json::from_str::<RecordingProcess>(text).map_err(|error| error.to_string());
        assert_eq!(read(r#"{"key":"a/b.wav"}"#).unwrap().key.as_deref(), Some("a/b.wav"));
        assert_eq!(read(r#"{"recording_id":7}"#).unwrap().recording_id.as_deref(), Some("7"));
        assert!(read("{}").unwrap_err().contains("key or recording_id"));
        assert!(read(r#"{"key":"a","kye":"b"}"#).unwrap_err().contains("kye"));
        let whole =
            RecordingProcess { key: Some("k".into()), tenant: Some("t".into()), ..Default::default() };
        assert_eq!(read(&serde_json::to_string(&whole).unwrap()).unwrap(), whole);
    }

    #[test]
    fn keys_that_lead_elsewhere_are_refused() {
        assert!(check_key("calls/2026/a b.wav").is_ok());
        assert!(check_key("a..b/.c/d..").is_ok());
        for bad in ["../x", "a/./b", "a/..", "", "/a", "http://x/y", "a\nb", "a.wav.processed.opus"] {
            assert!(check_key(bad).is_err(), "{bad}");
        }
        assert!(check_key(&"x".repeat(961)).is_err());
    }
}
