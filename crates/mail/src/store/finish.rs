use std::time::Duration;

use serde::Serialize;
use voiceai_postgres::sqlx::{self, PgPool, Row};

use super::claim::Key;
use crate::delivery::{Settled, Verdict};
use crate::error::MailError;
use crate::suppression::heavier;
use crate::transport::Summary;

/// What became of one attempt, as it is written.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finished {
    delivery_id: String,
    position: i16,
    attempt_no: i32,
    token: uuid::Uuid,
    status: &'static str,
    recipient: &'static str,
    wait_s: Option<f64>,
    rung: Option<u32>,
    dead: Option<&'static str>,
    crashed: bool,
    phase: Option<&'static str>,
    reason: Option<&'static str>,
    code: Option<u16>,
    enhanced: Option<String>,
    detail: String,
    host: Option<String>,
    tls: Option<String>,
    duration_ms: Option<u64>,
    provider_id: Option<String>,
    bounced: Option<String>,
    bounced_s: Option<f64>,
}

impl Finished {
    /// The end of the attempt `key`, as `settled`; `detail` where no peer said anything.
    pub(crate) fn new(key: &Key, settled: &Settled, detail: &str) -> Self {
        let (wait_s, rung, dead) = match settled.verdict {
            Verdict::Again(next) => (Some(next.wait.as_secs_f64()), Some(next.rung), None),
            Verdict::Over(_) => (None, None, None),
            Verdict::Dead(reason) => (None, None, Some(reason.as_str())),
        };
        Self {
            delivery_id: key.delivery_id.clone(),
            position: key.position,
            attempt_no: key.attempt_no,
            token: key.token,
            status: settled.attempt.as_str(),
            recipient: settled.recipient().as_str(),
            wait_s,
            rung,
            dead,
            crashed: false,
            phase: None,
            reason: None,
            code: None,
            enhanced: None,
            detail: Summary::line(detail),
            host: None,
            tls: None,
            duration_ms: None,
            provider_id: None,
            bounced: None,
            bounced_s: None,
        }
    }

    /// With what the peer said.
    pub(crate) fn said(mut self, summary: &Summary, provider_id: Option<&str>) -> Self {
        self.phase = Some(summary.phase.as_str());
        self.reason = Some(summary.reason.as_str());
        self.code = summary.code;
        self.enhanced.clone_from(&summary.enhanced);
        self.detail = Summary::line(&summary.text);
        self.host = (!summary.host.is_empty()).then(|| summary.host.clone());
        self.tls.clone_from(&summary.tls);
        self.duration_ms = Some(summary.duration_ms);
        self.provider_id = provider_id.map(str::to_owned);
        self
    }

    /// The mailbox does not exist: nobody writes to `address` (in lower case) for so long.
    pub(crate) fn bounced(mut self, address: String, length: Duration) -> Self {
        self.bounced = Some(address);
        self.bounced_s = Some(length.as_secs_f64());
        self
    }

    /// True when more follows than the next attempt or an end: a dead letter, a suppressed address.
    const fn has_consequences(&self) -> bool {
        self.dead.is_some() || self.bounced.is_some()
    }

    /// As the end of a process that is gone.
    pub(crate) const fn crashed(mut self) -> Self {
        self.crashed = true;
        self
    }
}

/// Writes the ends of attempts, with all that follows from them, in one statement. An end whose claim has passed to another changes
/// nothing. Answers how many were written.
pub(crate) async fn finish(pool: &PgPool, ends: &[Finished]) -> Result<u64, MailError> {
    if ends.is_empty() {
        return Ok(0);
    }
    let tried = "write down what became of mail";
    let statement = if ends.iter().any(Finished::has_consequences) { FINISH_ALL } else { FINISH };
    let row = sqlx::query(statement)
        .bind(sqlx::types::Json(ends))
        .bind(i64::try_from(ends.len()).unwrap_or(i64::MAX))
        .fetch_one(pool)
        .await
        .map_err(MailError::database(tried))?;
    let written: i64 = row.try_get(0).map_err(MailError::database(tried))?;
    Ok(u64::try_from(written).unwrap_or(0))
}

// Every part hangs on `done`, which is empty for a claim that is not the caller's any more. The delivery's counts are added to, never
// computed anew: two recipients of one delivery may end at the same moment. Rows are locked in the order of their keys, so that two
// such statements never wait for each other.
//
// The limit takes nothing away: it tells the planner, who would take any JSON for a hundred rows and read the table instead of its index.
macro_rules! finish {
    () => {
        "\
WITH input AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset($1) AS x (
        delivery_id text, position smallint, attempt_no int, token uuid, status text, recipient text, wait_s float8, rung int,
        dead text, crashed boolean, phase text, reason text, code int, enhanced text, detail text, host text, tls text,
        duration_ms bigint, provider_id text, bounced text, bounced_s float8) LIMIT $2
), clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
locked AS MATERIALIZED (
    SELECT d.delivery_id, d.priority, d.created_at FROM mail.deliveries d
    WHERE d.delivery_id IN (SELECT delivery_id FROM input) ORDER BY d.delivery_id FOR NO KEY UPDATE
), done AS (
    UPDATE mail.attempts a SET status = i.status, finished_at = now, phase = i.phase, reason = i.reason, code = i.code,
        enhanced = i.enhanced, detail = i.detail, host = i.host, tls = i.tls, duration_ms = i.duration_ms,
        provider_id = i.provider_id
    FROM input i JOIN locked USING (delivery_id), clock
    WHERE (a.delivery_id, a.position, a.attempt_no) = (i.delivery_id, i.position, i.attempt_no)
        AND a.claim_token = i.token AND a.status = 'in_progress'
    RETURNING i.*, a.provider, locked.priority, locked.created_at, clock.now
), recipient AS (
    UPDATE mail.delivery_recipients r SET status = d.recipient, attempt_count = r.attempt_count + 1,
        crash_count = r.crash_count + d.crashed::int, provider = d.provider, provider_id = COALESCE(d.provider_id, r.provider_id),
        last_result = left(concat_ws(' ', d.status, d.phase, d.code, d.enhanced, d.detail), 300),
        ended_at = CASE WHEN d.recipient <> 'open' THEN d.now END
    FROM done d WHERE (r.delivery_id, r.position) = (d.delivery_id, d.position)
), next AS (
    INSERT INTO mail.attempts (delivery_id, position, attempt_no, status, rung, priority, accepted_at, due_at)
    SELECT delivery_id, position, attempt_no + 1, 'scheduled', rung, priority, created_at, now + make_interval(secs => wait_s)
    FROM done WHERE recipient = 'open'
    RETURNING delivery_id, due_at
), counted AS (
    SELECT delivery_id, max(now) AS now,
        count(*) FILTER (WHERE recipient <> 'open') AS ended,
        count(*) FILTER (WHERE recipient = 'sent') AS sent,
        count(*) FILTER (WHERE recipient = 'suppressed') AS suppressed,
        count(*) FILTER (WHERE recipient = 'failed') AS failed,
        count(*) FILTER (WHERE recipient = 'dead_letter') AS dead,
        count(*) FILTER (WHERE recipient = 'unknown') AS unknown
    FROM done GROUP BY delivery_id
), delivery AS (
    UPDATE mail.deliveries d SET updated_at = c.now, open_count = d.open_count - c.ended, sent_count = d.sent_count + c.sent,
        suppressed_count = d.suppressed_count + c.suppressed, failed_count = d.failed_count + c.failed,
        dead_count = d.dead_count + c.dead, unknown_count = d.unknown_count + c.unknown,
        finished_at = CASE WHEN d.open_count = c.ended THEN c.now END,
        next_attempt_at = CASE WHEN d.open_count > c.ended THEN LEAST(
            (SELECT min(due_at) FROM next n WHERE n.delivery_id = d.delivery_id),
            (SELECT min(due_at) FROM mail.attempts a WHERE a.delivery_id = d.delivery_id AND a.status = 'scheduled')) END
    FROM counted c WHERE d.delivery_id = c.delivery_id
)"
    };
}

/// What most ends need. The rest is left away rather than empty: a statement that could write to the outbox wakes its relays.
const FINISH: &str = concat!(finish!(), " SELECT count(*) FROM done");

// The operators are told in the same statement, at most once a minute here (the notice's own throttle puts those minutes into one
// mail), and never of a notice that could not be sent: that would be a new one each time.
const FINISH_ALL: &str = concat!(
    finish!(),
    ", dead AS (INSERT INTO mail.dead_letters (delivery_id, reason, error, archived_at)
    SELECT DISTINCT ON (delivery_id) delivery_id, dead,
        left(concat_ws(' ', status, phase, code, enhanced, detail), 1000), now
    FROM done WHERE dead IS NOT NULL ORDER BY delivery_id, position
    ON CONFLICT (delivery_id) DO UPDATE SET
        reason = EXCLUDED.reason, error = EXCLUDED.error, archived_at = EXCLUDED.archived_at, replayed_at = NULL,
        deaths = dead_letters.deaths + (dead_letters.replayed_at IS NOT NULL)::int
    RETURNING delivery_id, reason, error, archived_at
), told AS (
    INSERT INTO ops.outbox (id, queue, kind, payload)
    SELECT 'mail-dead-letters-' || floor(extract(epoch FROM max(dead.archived_at)) / 60)::bigint, 'email-queue', 'notification.send',
        json_build_object('event', 'dead_letters', 'group', 'mail', 'at', to_json(max(dead.archived_at) AT TIME ZONE 'UTC') #>> '{}' || 'Z',
            'reason', 'mail is given up, such as delivery ' || min(delivery_id) || ': '
                || (array_agg(dead.reason || ', ' || dead.error ORDER BY delivery_id))[1]
                || ' -- all of it: voiceai-tasker mail list --status dead_letter')
    FROM dead JOIN mail.deliveries d USING (delivery_id) WHERE d.source <> 'platform' HAVING count(*) > 0
    ON CONFLICT (id) DO NOTHING
), bounced AS (
    INSERT INTO mail.suppressions AS have (address, reason, detail, origin, expires_at)
    SELECT DISTINCT ON (bounced) bounced, 'hard_bounce', left(concat_ws(' ', code, enhanced, detail), 500), delivery_id,
        now + make_interval(secs => bounced_s)
    FROM done WHERE bounced IS NOT NULL ORDER BY bounced",
    heavier!(),
    ") SELECT count(*) FROM done"
);
