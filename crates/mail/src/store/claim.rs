use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use uuid::Uuid;
use voiceai_config::Rate;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, PgPool, Row};

use super::parse;
use crate::Class;
use crate::error::MailError;

/// Which attempt: its row's key, and the token that only its present holder knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) delivery_id: String,
    pub(crate) position: i16,
    pub(crate) attempt_no: i32,
    pub(crate) token: Uuid,
}

/// An attempt that this process may make.
#[derive(Debug, Clone)]
pub(crate) struct Claimed {
    pub(crate) key: Key,
    pub(crate) rung: u32,
    pub(crate) crashes: u32,
    pub(crate) class: Class,
    pub(crate) tenant: Option<String>,
    pub(crate) message_id: String,
    pub(crate) from: String,
    pub(crate) to: String,
    /// How long the mail may still be tried.
    pub(crate) time_left: Duration,
    /// How late the attempt begins.
    pub(crate) late: Duration,
    /// Why the recipient must not be written to.
    pub(crate) suppressed: Option<String>,
    /// The message, when it is small enough to have come along.
    pub(crate) message: Option<Bytes>,
    pub(crate) part: i16,
}

/// What one look brought.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    pub(crate) claimed: Vec<Claimed>,
    /// Attempts that were due and may not be made now: they were put aside, so another look is worth while.
    pub(crate) parked: u64,
    /// When the rate lets the next attempt start, when it let fewer than asked for.
    pub(crate) rate_wait: Option<Duration>,
    /// The provider rests so long.
    pub(crate) paused: Option<Duration>,
    /// The provider has just rested: one attempt at a time, until one gets through.
    pub(crate) probing: bool,
}

/// Under which terms attempts are claimed.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) worker: Uuid,
    pub(crate) provider: &'static str,
    pub(crate) rate: Rate,
    /// Longest time that an attempt can take, by its own limits.
    pub(crate) lease: Duration,
    /// The tasker's election: while it is held, older mail is not sent.
    pub(crate) election: String,
}

/// A message above this is read by itself, when its turn has come: a claim of many must fit into memory.
const COMES_ALONG: i32 = 65_536;

/// Makes the provider's row that the rate is kept in, where there is none.
pub(crate) async fn seed(pool: &PgPool, provider: &str) -> Result<(), MailError> {
    sqlx::query("INSERT INTO mail.pace (provider, next_at) VALUES ($1, 'epoch') ON CONFLICT DO NOTHING")
        .bind(provider)
        .execute(pool)
        .await
        .map(drop)
        .map_err(MailError::database("prepare the rate of mail"))
}

/// Takes at most `limit` due attempts, the urgent first: one statement, so that no transaction is open afterwards.
pub(crate) async fn claim(pool: &PgPool, terms: &Terms, limit: usize) -> Result<Claims, MailError> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let count = f64::from(terms.rate.count);
    let rows = sqlx::query(CLAIM)
        .bind(terms.provider)
        .bind(limit)
        .bind(terms.rate.per.as_secs_f64() / count)
        .bind(terms.rate.per.as_secs_f64())
        .bind(terms.worker)
        .bind(terms.lease.as_secs_f64())
        .bind(&terms.election)
        .bind(COMES_ALONG)
        .fetch_all(pool)
        .await
        .map_err(MailError::database("claim mail to send"))?;
    read(&rows).map_err(|error| match error {
        ReadError::Sql(source) => MailError::Database { tried: "read claimed mail", source },
        ReadError::Row(error) => error,
    })
}

enum ReadError {
    Sql(sqlx::Error),
    Row(MailError),
}

impl From<sqlx::Error> for ReadError {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

fn read(rows: &[PgRow]) -> Result<Claims, ReadError> {
    let mut claims = Claims::default();
    // The first row is always there: what holds for the look as a whole stands in each.
    let Some(first) = rows.first() else { return Ok(claims) };
    claims.parked = u64::try_from(first.try_get::<i64, _>("parked")?).unwrap_or(0);
    claims.rate_wait = seconds(first.try_get("rate_wait")?);
    claims.paused = seconds(first.try_get("paused")?);
    claims.probing = first.try_get("probing")?;
    for row in rows {
        let Some(delivery_id) = row.try_get::<Option<String>, _>("delivery_id")? else { continue };
        let class: String = row.try_get("class")?;
        let number = |name: &str| row.try_get::<i32, _>(name).map(|n| u32::try_from(n).unwrap_or(0));
        claims.claimed.push(Claimed {
            key: Key {
                delivery_id,
                position: row.try_get("position")?,
                attempt_no: row.try_get("attempt_no")?,
                token: row.try_get("claim_token")?,
            },
            rung: number("rung")?,
            crashes: number("crash_count")?,
            class: parse("mail.deliveries", "class", &class).map_err(ReadError::Row)?,
            tenant: row.try_get("tenant")?,
            message_id: row.try_get("message_id")?,
            from: row.try_get("sender")?,
            to: row.try_get("address")?,
            time_left: seconds(row.try_get("time_left")?).unwrap_or_default(),
            late: seconds(row.try_get("late")?).unwrap_or_default(),
            suppressed: row.try_get("suppressed")?,
            message: row.try_get::<Option<Vec<u8>>, _>("message")?.map(Bytes::from),
            part: row.try_get("part")?,
        });
    }
    Ok(claims)
}

fn seconds(seconds: Option<f64>) -> Option<Duration> {
    seconds.map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
}

/// When the next attempt is due, if any is to come, and the database's clock.
pub(crate) async fn next_due(pool: &PgPool) -> Result<Option<Duration>, MailError> {
    let tried = "look for the next mail to send";
    let row = sqlx::query(
        "SELECT min(due_at) AS due, clock_timestamp() AS now FROM generate_series(0, 10) AS lane (priority), \
         LATERAL (SELECT due_at FROM mail.attempts a WHERE status = 'scheduled' AND a.priority = lane.priority \
                  ORDER BY due_at LIMIT 1) one",
    )
    .fetch_one(pool)
    .await
    .map_err(MailError::database(tried))?;
    let due: Option<SqlTimestamp> = row.try_get("due").map_err(MailError::database(tried))?;
    let now: SqlTimestamp = row.try_get("now").map_err(MailError::database(tried))?;
    Ok(due.map(|due| until(due.to_jiff(), now.to_jiff())))
}

/// From `now` to `then`; nothing when that is past.
pub(crate) fn until(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default()
}

/// Reads a message that did not come along.
pub(crate) async fn message(pool: &PgPool, key: &Key, part: i16) -> Result<Option<Bytes>, MailError> {
    let tried = "read a message";
    let row = sqlx::query("SELECT message FROM mail.delivery_payloads WHERE delivery_id = $1 AND part = $2")
        .bind(&key.delivery_id)
        .bind(part)
        .fetch_optional(pool)
        .await
        .map_err(MailError::database(tried))?;
    row.map(|row| row.try_get::<Vec<u8>, _>(0).map(Bytes::from).map_err(MailError::database(tried)))
        .transpose()
}

/// Writes down that the contents of these are about to go out, in one statement. Answers the tokens of those that are still ours.
pub(crate) async fn contents_begin(pool: &PgPool, keys: &[Key]) -> Result<HashSet<Uuid>, MailError> {
    let tried = "record that a mail's content is about to go out";
    let ids: Vec<&str> = keys.iter().map(|key| key.delivery_id.as_str()).collect();
    let positions: Vec<i16> = keys.iter().map(|key| key.position).collect();
    let numbers: Vec<i32> = keys.iter().map(|key| key.attempt_no).collect();
    let tokens: Vec<Uuid> = keys.iter().map(|key| key.token).collect();
    let rows = sqlx::query(
        "UPDATE mail.attempts a SET content_began_at = clock_timestamp() \
         FROM unnest($1::text[], $2::int2[], $3::int4[], $4::uuid[]) AS k (delivery_id, position, attempt_no, token) \
         WHERE (a.delivery_id, a.position, a.attempt_no) = (k.delivery_id, k.position, k.attempt_no) \
             AND a.claim_token = k.token AND a.status = 'in_progress' RETURNING a.claim_token",
    )
    .bind(ids)
    .bind(positions)
    .bind(numbers)
    .bind(tokens)
    .fetch_all(pool)
    .await
    .map_err(MailError::database(tried))?;
    rows.iter().map(|row| row.try_get(0).map_err(MailError::database(tried))).collect()
}

/// Gives back what this worker holds and has not begun.
pub(crate) async fn hand_back(pool: &PgPool, key: &Key) -> Result<bool, MailError> {
    let done = sqlx::query(
        "UPDATE mail.attempts SET status = 'scheduled', worker_id = NULL, claim_token = NULL, claim_expires_at = NULL, \
         started_at = NULL, provider = NULL WHERE delivery_id = $1 AND position = $2 AND attempt_no = $3 \
         AND claim_token = $4 AND status = 'in_progress' AND content_began_at IS NULL",
    )
    .bind(&key.delivery_id)
    .bind(key.position)
    .bind(key.attempt_no)
    .bind(key.token)
    .execute(pool)
    .await
    .map_err(MailError::database("hand a mail back"))?;
    Ok(done.rows_affected() == 1)
}

/// When mail that was accepted before `release` may be sent again.
pub(crate) async fn unpark(pool: &PgPool, parked: &str) -> Result<u64, MailError> {
    let done = sqlx::query(
        "UPDATE mail.attempts SET parked = NULL, due_at = LEAST(due_at, clock_timestamp()) WHERE parked = $1",
    )
    .bind(parked)
    .execute(pool)
    .await
    .map_err(MailError::database("bring back mail that had been put aside"))?;
    Ok(done.rows_affected())
}

// The rate is a GCRA with the burst of one period: `next_at` is when the next attempt would start without any burst.
//
// Parked rows are moved to the end of what keeps them, so that a look never walks over them again. Rows that are held wait for
// a person; `unpark` brings them back.
const CLAIM: &str = "\
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
resting AS MATERIALIZED (
    SELECT max(until) AS until FROM mail.pauses, clock WHERE scope = 'provider' AND subject = $1 AND until > now
), probing AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM mail.pauses, clock
                   WHERE scope = 'provider' AND subject = $1 AND automatic AND until <= now) AS found
), probes AS MATERIALIZED (
    SELECT count(*) AS running FROM mail.attempts WHERE status = 'in_progress' AND (SELECT found FROM probing)
), pace AS MATERIALIZED (
    SELECT next_at FROM mail.pace WHERE provider = $1 FOR UPDATE
), tokens AS MATERIALIZED (
    SELECT GREATEST(0, floor((extract(epoch FROM (now - GREATEST(next_at, now - make_interval(secs => $4)))) + 1e-6) / $3::float8))::bigint
           AS n, next_at + make_interval(secs => $3::float8) AS after_one
    FROM clock LEFT JOIN pace ON true
), budget AS MATERIALIZED (
    SELECT CASE
        WHEN (SELECT until FROM resting) IS NOT NULL THEN 0
        WHEN (SELECT found FROM probing) THEN GREATEST(0, LEAST(1 - (SELECT running FROM probes), $2))
        ELSE LEAST($2, COALESCE((SELECT n FROM tokens), 1))
    END AS n
), held AS MATERIALIZED (
    SELECT held_since FROM ops.leader_terms WHERE name = $7 AND held_since IS NOT NULL
), due AS MATERIALIZED (
    SELECT a.* FROM generate_series(10, 0, -1) AS lane (priority)
    CROSS JOIN LATERAL (
        SELECT delivery_id, position, attempt_no, accepted_at, due_at FROM mail.attempts, clock
        WHERE status = 'scheduled' AND attempts.priority = lane.priority AND due_at <= clock.now
        ORDER BY due_at LIMIT (SELECT n FROM budget) FOR UPDATE OF attempts SKIP LOCKED
    ) a
    LIMIT (SELECT n FROM budget)
), judged AS MATERIALIZED (
    SELECT due.*, r.domain, r.address, r.part, r.crash_count, d.class, d.tenant, d.message_id, d.sender, d.expires_at,
        CASE
            WHEN due.accepted_at < (SELECT held_since FROM held) THEN 'held'
            WHEN EXISTS (SELECT FROM mail.pauses p, clock WHERE p.scope = 'domain' AND p.subject = r.domain AND p.until > now)
                THEN 'domain:' || r.domain
            WHEN EXISTS (SELECT FROM mail.pauses p, clock WHERE p.scope = 'tenant' AND p.subject = d.tenant AND p.until > now)
                THEN 'tenant:' || d.tenant
        END AS kept_by
    FROM due JOIN mail.delivery_recipients r USING (delivery_id, position) JOIN mail.deliveries d USING (delivery_id)
), parked AS (
    UPDATE mail.attempts a SET parked = j.kept_by, due_at = CASE
            WHEN j.kept_by = 'held' THEN timestamptz '9000-01-01 00:00Z'
            ELSE (SELECT max(until) FROM mail.pauses p
                  WHERE p.scope = split_part(j.kept_by, ':', 1) AND p.subject = substr(j.kept_by, strpos(j.kept_by, ':') + 1))
        END
    FROM judged j
    WHERE j.kept_by IS NOT NULL AND (a.delivery_id, a.position, a.attempt_no) = (j.delivery_id, j.position, j.attempt_no)
    RETURNING 1
), claimed AS (
    UPDATE mail.attempts a SET status = 'in_progress', parked = NULL, worker_id = $5, claim_token = gen_random_uuid(),
        started_at = clock.now, claim_expires_at = clock.now + make_interval(secs => $6), provider = $1
    FROM judged j, clock
    WHERE j.kept_by IS NULL AND (a.delivery_id, a.position, a.attempt_no) = (j.delivery_id, j.position, j.attempt_no)
    RETURNING a.delivery_id, a.position, a.attempt_no, a.claim_token, a.rung, a.due_at, j.address, j.part, j.crash_count,
        j.class, j.tenant, j.message_id, j.sender, j.expires_at, clock.now AS at
), spent AS (
    UPDATE mail.pace SET next_at = GREATEST(pace.next_at, clock.now - make_interval(secs => $4))
        + make_interval(secs => $3::float8 * (SELECT count(*) FROM claimed))
    FROM clock WHERE provider = $1 AND EXISTS (SELECT FROM claimed)
)
SELECT c.delivery_id, c.position, c.attempt_no, c.claim_token, c.rung, c.address, c.part, c.crash_count, c.class, c.tenant,
    c.message_id, c.sender,
    extract(epoch FROM c.expires_at - c.at)::float8 AS time_left, extract(epoch FROM c.at - c.due_at)::float8 AS late,
    (SELECT s.reason FROM mail.suppressions s
     WHERE s.address = lower(c.address) AND s.tenant IN ('', COALESCE(c.tenant, '')) AND s.class IN ('', c.class)
         AND (s.expires_at IS NULL OR s.expires_at > c.at)
         AND NOT (c.class = 'auth' AND s.reason = 'unsubscribe')
     LIMIT 1) AS suppressed,
    (SELECT p.message FROM mail.delivery_payloads p
     WHERE p.delivery_id = c.delivery_id AND p.part = c.part AND octet_length(p.message) <= $8) AS message,
    (SELECT count(*) FROM parked) AS parked,
    CASE WHEN COALESCE((SELECT n FROM tokens), 1) < $2
        THEN (SELECT extract(epoch FROM GREATEST(after_one, now) - now)::float8 FROM tokens, clock) END AS rate_wait,
    (SELECT extract(epoch FROM until - now)::float8 FROM resting, clock) AS paused,
    (SELECT found FROM probing) AS probing
FROM (SELECT 1) one LEFT JOIN claimed c ON true";
