//! `post-call`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use jiff_sqlx::ToSqlx as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, PgConnection};
use voiceai_queue::outbox::{self, OutboxJob};
use voiceai_queue::{Attempt, Job, JobError, JobId, NewJob, Outcome};
use voiceai_webhook::{NewEvent, emit_within};

use super::close::{self, By, Found};
use super::shape::Shapes;
use crate::error::RecordingError;
use crate::job::{Id, RecordingProcess, check_key};
use crate::process::hex;
use crate::{metrics, platform, rows};

/// How long a job waits while PostgreSQL is away. It costs no attempt.
const AWAY: Duration = Duration::from_secs(5);
/// A call that the platform does not know yet may be in a transaction that is about to be committed: so many attempts.
const LOOKS: u32 = 3;
/// How long after its call a recording may be on its way to the bucket.
const UPLOAD: SignedDuration = SignedDuration::from_mins(2);

/// What calls are closed with.
#[derive(Clone, Debug)]
pub struct PostCallContext {
    /// Our tables, and the platform's.
    pub pool: PgPool,
    /// `RECORDINGS_S3_BUCKET`; `None` unless `RECORDING_ENABLED`.
    pub bucket: Option<String>,
    /// `POST_CALL_TABLE`.
    pub table: Option<String>,
    /// `WEBHOOK_EVENT_BYTES_MAX`.
    pub event_bytes_max: usize,
}

/// Closes a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire")]
pub struct PostCall {
    /// The call's id, or its conversation's, as the platform writes it.
    pub call_id: String,
    /// When it ended; else what the platform's record says, else now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// How it ended, in the platform's own word; else `completed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The recording's key in the bucket; else what the platform's record says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recording_key: Option<String>,
    /// Whose call; else what the platform's record says, else the job's tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(alias = "conversation_id")]
    call_id: Id,
    #[serde(default)]
    ended_at: Option<Timestamp>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    recording_key: Option<String>,
    #[serde(default)]
    tenant: Option<String>,
}

impl TryFrom<Wire> for PostCall {
    type Error = &'static str;

    fn try_from(wire: Wire) -> Result<Self, Self::Error> {
        let call_id = wire.call_id.text();
        if call_id.is_empty() || call_id.len() > 500 || call_id.chars().any(char::is_control) {
            return Err("call_id is wanted, of 1 to 500 bytes without control characters");
        }
        let plain = |text: Option<String>, max: usize, what: &'static str| match text {
            Some(text) if text.len() > max || text.chars().any(char::is_control) => Err(what),
            text => Ok(text.filter(|text| !text.is_empty())),
        };
        Ok(Self {
            call_id,
            ended_at: wire.ended_at,
            status: plain(
                wire.status,
                200,
                "status: at most 200 bytes without control characters are wanted",
            )?,
            recording_key: plain(
                wire.recording_key,
                960,
                "recording_key: at most 960 bytes without control characters are wanted",
            )?,
            tenant: plain(
                wire.tenant,
                500,
                "tenant: at most 500 bytes without control characters are wanted",
            )?,
        })
    }
}

impl Job for PostCall {
    const KIND: &'static str = "post-call";
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
    type Context = PostCallContext;

    async fn run(&self, ctx: &PostCallContext, attempt: &Attempt) -> Result<Outcome, JobError> {
        match self.close(ctx, attempt.tenant()).await {
            Ok(closed) => {
                metrics::get().call(closed.word);
                Ok(Outcome::DoneWith(closed.result))
            }
            Err(error) if error.is_database_away() => {
                tracing::warn!(call_id = self.call_id, %error, "a call waits for PostgreSQL to be closed");
                Ok(Outcome::Snooze(AWAY))
            }
            Err(error @ RecordingError::NoCall { .. }) if attempt.number() < LOOKS => {
                Err(JobError::retry(error))
            }
            Err(error) if error.is_final() || error.is_refused_in(&RECORD) => Err(JobError::discard(error)),
            Err(error) => Err(JobError::retry(error)),
        }
    }
}

struct Closed {
    word: &'static str,
    result: Value,
}

/// What is done with the platform's own rows: what they refuse is for a person to mend.
const RECORD: [&str; 2] = [close::READ, close::WRITE];

/// What is known of a call before anything of ours is written.
struct Known {
    /// The call's own id; the conversation's where it has none.
    call: String,
    conversation: Option<String>,
    ended_at: Timestamp,
    duration_seconds: Option<f64>,
    status: Option<String>,
    tenant: Option<String>,
    recordings: Vec<String>,
    word: &'static str,
    record: String,
}

impl PostCall {
    /// Everything in one transaction: done wholly or not at all, and once.
    async fn close(&self, ctx: &PostCallContext, tenant: &str) -> Result<Closed, RecordingError> {
        let tried = "close a call";
        let mut transaction = ctx.pool.begin().await.map_err(RecordingError::database(tried))?;
        let known = self.close_record(&mut transaction, ctx, tenant).await?;
        let new = note(&mut transaction, &known).await?;
        let mut recordings = Vec::new();
        for key in &known.recordings {
            recordings.push(enqueue(&mut transaction, ctx, &known, key).await?);
        }
        let webhook = self.tell(&mut transaction, ctx, &known).await?;
        transaction.commit().await.map_err(RecordingError::database(tried))?;
        let result = json!({
            "call_id": known.call,
            "conversation_id": known.conversation,
            "record": known.record,
            "known": !new,
            "recordings": recordings,
            "webhook": webhook,
        });
        tracing::info!(call_id = known.call, record = known.record, known = !new, "call closed");
        Ok(Closed { word: known.word, result })
    }

    /// Closes the platform's own rows, where there are tables for them.
    async fn close_record(
        &self,
        connection: &mut PgConnection,
        ctx: &PostCallContext,
        tenant: &str,
    ) -> Result<Known, RecordingError> {
        let shapes = Shapes::look_up(connection, ctx.table.as_deref()).await?;
        let job_tenant = (!tenant.is_empty()).then(|| tenant.to_owned());
        let given = self.recording_key.clone();
        let Some(main) = &shapes.main else {
            return Ok(Known {
                call: self.call_id.clone(),
                conversation: None,
                ended_at: self.ended_at.unwrap_or_else(Timestamp::now),
                duration_seconds: None,
                status: self.status.clone(),
                tenant: self.tenant.clone().or(job_tenant),
                recordings: given.into_iter().collect(),
                word: "table_absent",
                record: shapes.why_not.unwrap_or_default(),
            });
        };
        let mut row = close::find(connection, main, By::Id, &self.call_id).await?;
        if row.is_none() {
            row = close::find(connection, main, By::Call, &self.call_id).await?;
        }
        let call_id = row.as_ref().and_then(|row| row.call.as_deref()).unwrap_or(&self.call_id).to_owned();
        let call = match &shapes.calls {
            Some(calls) => close::find(connection, calls, By::Id, &call_id).await?,
            None => None,
        };
        if row.is_none() && call.is_none() {
            return Err(RecordingError::NoCall { table: main.table.clone(), id: self.call_id.clone() });
        }
        let rows = [row.as_ref(), call.as_ref()];
        let first = |of: fn(&Found) -> Option<String>| rows.iter().flatten().find_map(|found| of(found));
        let recorded = rows.iter().flatten().find_map(|found| found.ended_at);
        let ended_at = recorded.or(self.ended_at).unwrap_or_else(Timestamp::now);
        let mut wrote = false;
        for (shape, found) in [(Some(main), &row), (shapes.calls.as_ref(), &call)] {
            if let (Some(shape), Some(found)) = (shape, found) {
                let closing = close::decide(shape, found, ended_at, self.status.as_deref());
                wrote |= close::write(connection, shape, &found.id, &closing).await?;
            }
        }
        let conversation = row.as_ref().filter(|row| row.id != call_id).map(|row| row.id.clone());
        let mut recordings: Vec<String> =
            given.into_iter().chain(first(|found| found.recording.clone())).collect();
        recordings
            .extend(platform::recording_keys(connection, Some(&call_id), conversation.as_deref()).await?);
        let mut seen = std::collections::BTreeSet::new();
        recordings.retain(|address| seen.insert(address.clone()));
        let started = rows.iter().flatten().find_map(|found| found.started_at);
        let (word, record) =
            if wrote { ("closed", "closed") } else { ("closed_before", "was closed before") };
        Ok(Known {
            call: call_id,
            conversation,
            ended_at,
            duration_seconds: started.map(|started| ended_at.duration_since(started).as_secs_f64().max(0.0)),
            status: self.status.clone(),
            tenant: first(|found| found.tenant.clone()).or_else(|| self.tenant.clone()).or(job_tenant),
            recordings,
            word,
            record: record.to_owned(),
        })
    }

    async fn tell(
        &self,
        connection: &mut PgConnection,
        ctx: &PostCallContext,
        known: &Known,
    ) -> Result<Value, RecordingError> {
        let Some(tenant) = known.tenant.as_deref().filter(|tenant| !tenant.is_empty()) else {
            return Ok(json!("skipped: nobody says whose call it is"));
        };
        let data = json!({
            "call_id": known.call,
            "conversation_id": known.conversation,
            "ended_at": known.ended_at,
            "duration_seconds": known.duration_seconds,
            "status": known.status,
            "recording_keys": known.recordings,
        });
        let id = format!("call-ended:{}", short(&known.call));
        let event = NewEvent { tenant, event_type: "call.ended", id: &id, data: &data, at: known.ended_at };
        let emitted = emit_within(connection, &event, ctx.event_bytes_max).await?;
        Ok(json!(emitted))
    }
}

/// Our own row of the call; true when it is new.
async fn note(connection: &mut PgConnection, known: &Known) -> Result<bool, RecordingError> {
    sqlx::query_scalar(
        "INSERT INTO ops.post_calls AS c (call_id, tenant, ended_at, record, recording_key) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (call_id) DO UPDATE SET
             tenant = COALESCE(c.tenant, excluded.tenant), recording_key = COALESCE(c.recording_key, excluded.recording_key)
         RETURNING c.xmax = 0",
    )
    .bind(&known.call)
    .bind(&known.tenant)
    .bind(known.ended_at.to_sqlx())
    .bind(&known.record)
    .bind(known.recordings.first())
    .fetch_one(connection)
    .await
    .map_err(RecordingError::database("write down a call"))
}

/// Enqueues a recording of the call, once.
async fn enqueue(
    connection: &mut PgConnection,
    ctx: &PostCallContext,
    known: &Known,
    address: &str,
) -> Result<Value, RecordingError> {
    let Some(bucket) = &ctx.bucket else {
        return Ok(json!({ "address": address, "enqueued": false, "why": "RECORDING_ENABLED is false" }));
    };
    let refused = |why: String| json!({ "address": address, "enqueued": false, "why": why });
    let Some(key) = platform::key_in(bucket, address) else {
        return Ok(refused(format!("it is not in the bucket {bucket}")));
    };
    if let Err(error) = check_key(&key) {
        return Ok(refused(error.to_string()));
    }
    let (row, new) =
        rows::declare(connection, bucket, &key, Some(&known.call), known.tenant.as_deref()).await?;
    if !new {
        return Ok(json!({ "recording_id": row.id, "key": key, "enqueued": false, "why": "known" }));
    }
    let until = known.ended_at.max(Timestamp::now()).checked_add(UPLOAD).ok();
    let job = RecordingProcess {
        key: Some(key.clone()),
        call_id: Some(known.call.clone()),
        tenant: known.tenant.clone(),
        upload_until: until,
        ..RecordingProcess::default()
    };
    let invalid = |error: &dyn std::fmt::Display| RecordingError::Order(error.to_string());
    let id = JobId::chosen(rows::job_id(row.id)).map_err(|error| invalid(&error))?;
    let mut job = NewJob::of(&job).map_err(|error| invalid(&error))?.id(id);
    if let Some(tenant) = known.tenant.as_deref().filter(|tenant| tenant.len() <= 64) {
        job = job.tenant(tenant.to_owned());
    }
    // Critical: a loss of Redis does not lose the recording.
    let job = OutboxJob::from_job(job, true).map_err(|error| invalid(&error))?;
    outbox::insert(&mut *connection, &job).await.map_err(RecordingError::database("enqueue a recording"))?;
    Ok(json!({ "recording_id": row.id, "key": key, "enqueued": true }))
}

/// A call's id where only few characters are allowed: itself, or its digest.
pub(crate) fn short(id: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if id.len() <= 100 && id.bytes().all(plain) { id.to_owned() } else { hex(&Sha256::digest(id.as_bytes())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_names_a_call() {
        let read = |text: &str| serde_json::from_str::<PostCall>(text).map_err(|error| error.to_string());
        assert_eq!(read(r#"{"call_id":"c1"}"#).unwrap().call_id, "c1");
        assert_eq!(read(r#"{"conversation_id":12}"#).unwrap().call_id, "12");
        for bad in ["{}", r#"{"call_id":""}"#, r#"{"call_id":"a\nb"}"#, r#"{"call_id":"a","x":1}"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_id_is_short_and_its_own() {
        assert_eq!(short("6f1c-AB_9"), "6f1c-AB_9");
        assert_eq!(short("a b").len(), 64);
        assert_ne!(short("a b"), short("a  b"));
    }
}
