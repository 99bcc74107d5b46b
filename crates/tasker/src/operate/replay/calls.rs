//! What is checked before calls and recordings are tried again, and which of them were never enqueued.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use voiceai_cli::Failure;
use voiceai_queue::Job as _;
use voiceai_recording::{
    CALL_RECORDS_KEPT, PostCall, RecordingError, RecordingProcess, job_id, look, missing_calls,
    missing_recordings,
};
use voiceai_replay::{Candidate, Refusal};

use super::{LOOK_MAX, Wanted};
use crate::jobs::recording::CallContexts;
use crate::operate::{Desk, database_failure};

/// The precondition of both kinds: where recordings are on, their bucket answers; and of a recording, that it is there.
pub(super) async fn precondition(
    calls: Option<&CallContexts>,
    kind: &str,
    payload: &str,
) -> Result<(), Refusal> {
    let recordings = calls.and_then(|calls| calls.recordings.as_ref());
    let Some(recordings) = recordings else {
        // A call is closed without them, too.
        return if kind == RecordingProcess::KIND {
            Err(Refusal::new("recordings_off", "RECORDING_ENABLED is false"))
        } else {
            Ok(())
        };
    };
    let unreachable = |error: &dyn std::fmt::Display| Refusal::new("bucket_unreachable", error.to_string());
    let key = serde_json::from_str::<RecordingProcess>(payload).ok().and_then(|job| job.key);
    let Some(key) = key.filter(|_| kind == RecordingProcess::KIND) else {
        return recordings.store.check().await.map_err(|error| unreachable(&error));
    };
    match look(&recordings.store, &key).await {
        Ok(_) => Ok(()),
        Err(error @ RecordingError::Missing { .. }) => {
            Err(Refusal::new("recording_missing", error.to_string()))
        }
        Err(error) => Err(unreachable(&error)),
    }
}

/// Calls that ended and were never closed.
pub(super) async fn unclosed(
    desk: &Desk,
    calls: Option<&CallContexts>,
    wanted: &Wanted,
) -> Result<Vec<Candidate>, Failure> {
    let since = since(wanted)?;
    let table = calls.and_then(|calls| calls.calls.table.as_deref());
    let found = missing_calls(&desk.pool, table, since, wanted.tenant.as_deref(), look_max()).await;
    let found = found.map_err(|error| failure(&error))?;
    let bucket = precondition(calls, PostCall::KIND, "").await;
    let mut candidates = Vec::with_capacity(found.len());
    for call in found {
        let job =
            PostCall { call_id: call.call_id.clone(), tenant: call.tenant.clone(), ..PostCall::default() };
        let shown = json!({
            "queue": PostCall::QUEUE,
            "kind": PostCall::KIND,
            "tenant": call.tenant,
            "call_id": call.call_id,
            "ended_at": call.ended_at,
        });
        let payload = serde_json::to_value(&job).unwrap_or_default();
        let found = Found { queue: PostCall::QUEUE, kind: PostCall::KIND, id: call.job_id(), payload, shown };
        candidates.push(found.candidate(desk, bucket.clone().err()).await?);
    }
    Ok(candidates)
}

/// Recordings that are known and that nobody processes.
pub(super) async fn unprocessed(
    desk: &Desk,
    calls: Option<&CallContexts>,
    wanted: &Wanted,
) -> Result<Vec<Candidate>, Failure> {
    let since = since(wanted)?;
    let Some(recordings) = calls.and_then(|calls| calls.recordings.as_ref()) else {
        return Err(Failure::refused(
            "recordings_off",
            "RECORDING_ENABLED is false, so no recording is missing",
            "Set RECORDING_ENABLED and RECORDINGS_S3_BUCKET.",
        ));
    };
    let bucket = recordings.store.bucket();
    let found = missing_recordings(&desk.pool, bucket, since, wanted.tenant.as_deref(), look_max()).await;
    let found = found.map_err(|error| failure(&error))?;
    let mut candidates = Vec::with_capacity(found.len());
    for recording in found {
        let job = RecordingProcess {
            key: Some(recording.key.clone()),
            call_id: recording.call_id.clone(),
            tenant: recording.tenant.clone(),
            ..RecordingProcess::default()
        };
        let shown = json!({
            "queue": RecordingProcess::QUEUE,
            "kind": RecordingProcess::KIND,
            "tenant": recording.tenant,
            "call_id": recording.call_id,
            "key": recording.key,
            "known_since": recording.since,
        });
        let payload = serde_json::to_value(&job).unwrap_or_default();
        let there = precondition(calls, RecordingProcess::KIND, &payload.to_string()).await.err();
        let (queue, kind, id) = (RecordingProcess::QUEUE, RecordingProcess::KIND, job_id(recording.id));
        candidates.push(Found { queue, kind, id, payload, shown }.candidate(desk, there).await?);
    }
    Ok(candidates)
}

/// Work as a finder found it.
struct Found {
    queue: &'static str,
    kind: &'static str,
    id: String,
    payload: Value,
    shown: Value,
}

impl Found {
    async fn candidate(self, desk: &Desk, refused: Option<Refusal>) -> Result<Candidate, Failure> {
        let on_its_way = crate::operate::jobs::locate(&desk.client, Some(self.queue), &self.id).await?;
        let on_its_way = on_its_way
            .map(|job| Refusal::new("on_its_way", format!("job {} is {}", self.id, job.state.as_str())));
        Ok(Candidate {
            place: self.queue.to_owned(),
            id: self.id,
            content: Some(json!({ "kind": self.kind, "payload": self.payload })),
            shown: self.shown,
            refused: on_its_way.or(refused),
        })
    }
}

/// From when on is looked; not further back than it is remembered which calls were closed.
fn since(wanted: &Wanted) -> Result<Timestamp, Failure> {
    let now = Timestamp::now();
    let kept = SignedDuration::try_from(CALL_RECORDS_KEPT).unwrap_or(SignedDuration::MAX);
    let oldest = now.checked_sub(kept).unwrap_or(Timestamp::MIN);
    let Some(since) = wanted.since else { return Ok(oldest) };
    let since = since.timestamp(now);
    if since >= oldest {
        return Ok(since);
    }
    Err(Failure::refused(
        "since_too_old",
        "which calls were closed is remembered for 90 days; older ones cannot be told from those that never were",
        "Give a later --since.",
    ))
}

fn look_max() -> i64 {
    i64::try_from(LOOK_MAX).unwrap_or(i64::MAX)
}

fn failure(error: &RecordingError) -> Failure {
    match error {
        RecordingError::Database { tried, source } => {
            let failure = database_failure(source);
            Failure { message: format!("{tried}: {}", failure.message), ..failure }
        }
        other => Failure::refused(
            "no_table",
            other.to_string(),
            "Name the platform's table of calls in POST_CALL_TABLE.",
        ),
    }
}
