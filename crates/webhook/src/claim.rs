//! Claims: what a look of this process may post, and how it comes back when the process is gone.
//!
//! A look claims a whole lot in one statement. The lot is one row that names the tickets of its deliveries and the time when it
//! expires; the deliveries themselves are not written to. A delivery whose ticket no lot names is free, and an end is written only
//! while the lot stands. One that is to wait again draws another ticket, and is free of its lot.
//!
//! So what is claimed follows from two tables. Whoever claims, or gives up what is free, holds [`GATE`] before the statement that
//! looks, so that it sees what the one before it claimed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use uuid::Uuid;
use voiceai_postgres::sqlx::pool::PoolConnection;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, Connection as _, PgPool, Postgres, Row, Transaction};

use crate::WebhookSettings;
use crate::error::WebhookError;
use crate::targets::{Target, Targets};

/// Beside an attempt's own limit: the wait for a slot, the body's last seconds, and the end's way into its row.
pub(crate) const LEASE_ROOM: Duration = Duration::from_secs(30);
/// Held by whoever claims or gives up deliveries, for one short statement: two that looked at once would choose the same.
pub(crate) const GATE: &str = "SELECT pg_advisory_xact_lock(8603390863846894451)";

/// Which endpoints a look is for. They have slots of their own, so that failing ones cannot take the others'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Endpoints whose last attempt was taken.
    Healthy,
    /// Endpoints whose last attempt failed: one attempt at a time each.
    Failing,
}

impl Lane {
    pub(crate) const BOTH: [Self; 2] = [Self::Healthy, Self::Failing];
}

/// An attempt that this process may make.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) id: Uuid,
    pub(crate) ticket: i64,
    pub(crate) lot: Arc<Lot>,
    pub(crate) target: Arc<Target>,
    pub(crate) attempt_no: i32,
    pub(crate) rung: u32,
    pub(crate) event_id: String,
    pub(crate) body: Bytes,
}

impl Claimed {
    /// Its lot holds it no more.
    pub(crate) fn is_written(&self) {
        if self.lot.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.lot.spent.0.lock().unwrap_or_else(PoisonError::into_inner).push(self.lot.id);
        }
    }
}

/// What was claimed together. Its row goes when the last of it is written; whatever never is, is taken back when the row expires.
#[derive(Debug)]
pub(crate) struct Lot {
    pub(crate) id: Uuid,
    open: AtomicUsize,
    spent: Spent,
}

impl Lot {
    const fn new(id: Uuid, open: usize, spent: Spent) -> Self {
        Self { id, open: AtomicUsize::new(open), spent }
    }
}

/// Lots whose rows are of no use any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spent(Arc<Mutex<Vec<Uuid>>>);

impl Spent {
    fn all(&self) -> Vec<Uuid> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn forget(&self, gone: &[Uuid]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|id| !gone.contains(id));
    }
}

/// Who claims, and what it has already.
#[derive(Debug)]
pub(crate) struct Claimer {
    /// This run of this process.
    pub(crate) worker: Uuid,
    /// The election whose leader may be held: older deliveries then wait, since a database that came back from a backup does not
    /// know that they were delivered.
    pub(crate) election: String,
    pub(crate) spent: Spent,
    pub(crate) targets: Targets,
    pub(crate) busy: Busy,
}

/// How much a look may claim.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    pub(crate) lane: Lane,
    /// Deliveries.
    pub(crate) limit: usize,
    /// Bytes of their bodies; the last one may exceed it.
    pub(crate) bytes: usize,
    /// By endpoint. One that is not here has nothing under way and is claimed for up to its limit.
    pub(crate) shares: HashMap<Uuid, Share>,
}

/// What this process has of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Deliveries that wait for a slot or are being posted. What is posted already and only has to be written counts no more.
    pub(crate) under_way: usize,
    /// So many times the endpoint's limit may be claimed while no other process has anything of it.
    pub(crate) rounds: usize,
}

/// What a look found.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// True: others held the gate for too long, so nothing was looked for.
    pub(crate) shut: bool,
    /// Some endpoint is failing and not at rest.
    pub(crate) failing: bool,
    pub(crate) claimed: Vec<Claimed>,
}

/// Begins a transaction for statements that look rows up by their keys. Each is planned once for a connection, which is most of the
/// work of a small one, and so that it looks up by key: a plan that fits empty tables would read all of a backlog that came later.
pub(crate) async fn begin(
    pool: &PgPool,
    begin: &'static str,
    tried: &'static str,
) -> Result<Transaction<'static, Postgres>, WebhookError> {
    pool.begin_with(begin).await.map_err(WebhookError::database(tried))
}

/// The same for what is done again and again under load, over one connection: each one would plan for itself.
#[derive(Debug, Default)]
pub(crate) struct Busy(Option<PoolConnection<Postgres>>);

/// From so many rows on, the same connection is wanted for the next ones.
const BUSY: usize = 64;

impl Busy {
    /// The connection that was kept, else another. It is not kept by itself: one that failed is not used again.
    pub(crate) async fn take(
        &mut self,
        pool: &PgPool,
        tried: &'static str,
    ) -> Result<PoolConnection<Postgres>, WebhookError> {
        match self.0.take() {
            Some(connection) => Ok(connection),
            None => pool.acquire().await.map_err(WebhookError::database(tried)),
        }
    }

    /// Keeps it while there is much to do.
    pub(crate) fn keep(&mut self, connection: PoolConnection<Postgres>, rows: usize) {
        self.0 = (rows >= BUSY).then_some(connection);
    }

    const fn is_kept(&self) -> bool {
        self.0.is_some()
    }
}

/// Committed means on the disk. Joins go row by row, each by its key; there is memory enough for the tickets of all lots, however many
/// the planner takes them for.
pub(crate) const DURABLE: &str = "BEGIN; SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; \
                                  SET LOCAL enable_mergejoin = off; SET LOCAL jit = off; SET LOCAL work_mem = '64MB'; \
                                  SET LOCAL plan_cache_mode = force_generic_plan";
/// What PostgreSQL forgets with its own crash is done once more.
const QUICK: &str = "BEGIN; SET LOCAL enable_seqscan = off; SET LOCAL jit = off; SET LOCAL work_mem = '64MB'; \
                     SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL synchronous_commit = off";

/// Takes deliveries that are due, endpoints in turn. Not waited for until the disk has it: a claim that is lost with PostgreSQL's crash
/// is made again, and the first one's end refused.
pub(crate) async fn claim(
    pool: &PgPool,
    settings: &WebhookSettings,
    claimer: &mut Claimer,
    room: &Room,
) -> Result<Look, WebhookError> {
    let tried = "claim webhook deliveries";
    let (lot, spent) = (Uuid::now_v7(), claimer.spent.all());
    // A look for those that fail finds few, and says nothing of how much there is to do.
    let busy = room.lane == Lane::Failing && claimer.busy.is_kept();
    let mut connection = claimer.busy.take(pool, tried).await?;
    let mut transaction = connection.begin_with(QUICK).await.map_err(WebhookError::database(tried))?;
    match sqlx::query(GATE).execute(&mut *transaction).await {
        Ok(_) => {}
        Err(error) if is_lock_timeout(&error) => return Ok(Look { shut: true, ..Look::default() }),
        Err(error) => return Err(WebhookError::database(tried)(error)),
    }
    let rows = sqlx::query(CLAIM)
        .bind(number(room.limit))
        .bind(room.lane == Lane::Failing)
        .bind(i64::from(settings.endpoint_concurrency))
        .bind(i64::from(settings.tenant_concurrency))
        .bind((settings.timeout + LEASE_ROOM).as_secs_f64())
        .bind(&claimer.election)
        .bind(lot)
        .bind(claimer.worker)
        .bind(room.shares.keys().copied().collect::<Vec<_>>())
        .bind(room.shares.values().map(|share| number(share.under_way)).collect::<Vec<_>>())
        .bind(room.shares.values().map(|share| number(share.rounds)).collect::<Vec<_>>())
        .bind(&spent)
        .bind(number(room.bytes))
        .fetch_all(&mut *transaction)
        .await
        .map_err(WebhookError::database(tried))?;
    let read = |error| WebhookError::database(tried)(error);
    let seen: Result<Vec<_>, _> = rows.iter().filter_map(seen).collect();
    claimer.targets.refresh(&mut transaction, &seen.map_err(read)?, settings).await.map_err(read)?;
    transaction.commit().await.map_err(read)?;
    claimer.busy.keep(connection, if busy { BUSY } else { rows.len() });
    claimer.spent.forget(&spent);
    look(&rows, lot, claimer).map_err(read)
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Another held what was waited for, for longer than a session waits.
fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
}

/// The endpoint of a row, and its version.
fn seen(row: &PgRow) -> Option<Result<(Uuid, Timestamp), sqlx::Error>> {
    let read = || Ok((row.try_get::<Option<Uuid>, _>(2)?, row.try_get::<Option<SqlTimestamp>, _>(8)?));
    read().map(|(id, version)| Some((id?, version?.to_jiff()))).transpose()
}

fn look(rows: &[PgRow], lot: Uuid, claimer: &Claimer) -> Result<Look, sqlx::Error> {
    let Some(first) = rows.first() else { return Ok(Look::default()) };
    let mut look = Look { shut: false, failing: first.try_get(0)?, claimed: Vec::new() };
    if first.try_get::<Option<Uuid>, _>(1)?.is_none() {
        return Ok(look);
    }
    let lot = Arc::new(Lot::new(lot, rows.len(), claimer.spent.clone()));
    look.claimed.reserve(rows.len());
    for row in rows {
        let endpoint: Uuid = row.try_get(2)?;
        // One that was removed in between takes its deliveries with it, and one that was changed is as it is now.
        let Some(target) = claimer.targets.get(endpoint) else { continue };
        look.claimed.push(Claimed {
            id: row.try_get(1)?,
            ticket: row.try_get(3)?,
            lot: Arc::clone(&lot),
            target: Arc::clone(target),
            attempt_no: row.try_get(4)?,
            rung: u32::try_from(row.try_get::<i32, _>(5)?).unwrap_or(0),
            event_id: row.try_get(6)?,
            body: Bytes::from(row.try_get::<String, _>(7)?),
        });
    }
    Ok(look)
}

// `loaded` walks from endpoint to endpoint over the index of what is open, so that a long backlog of one costs no more than a short one.
// What is claimed lies at the front of an endpoint's deliveries and is stepped over; how much that is, is bounded by what may be
// claimed of an endpoint.
// A limit holds over all processes, for what is being posted: `room` is what the limit leaves beside the claims of all. While no other
// process has anything of an endpoint, or of a tenant, this one may claim more rounds ahead; it posts within the limit all the same,
// and whoever else looks finds no room until it has come down to it.
// Endpoints share the look evenly; what one leaves, the next look finds. A tenant's room is filled in turn, each endpoint's first before
// anybody's second, and so is the look where it cannot take all; what is sorted for that is only what has to be.
// The subqueries with OFFSET 0 leave no plan but one look by key for each row.
// There is a row also when nothing was claimed: it tells whether there is anything to do for those that fail.
const CLAIM: &str = "\
WITH RECURSIVE clock AS MATERIALIZED (SELECT clock_timestamp() AS now), loaded (id) AS (
    (SELECT endpoint_id FROM ops.webhook_open ORDER BY endpoint_id LIMIT 1)
    UNION ALL
    SELECT (SELECT o.endpoint_id FROM ops.webhook_open o WHERE o.endpoint_id > l.id ORDER BY o.endpoint_id LIMIT 1)
    FROM loaded l WHERE l.id IS NOT NULL
), held AS MATERIALIZED (
    SELECT COALESCE((SELECT held_since FROM ops.leader_terms WHERE name = $6 AND held_since IS NOT NULL), '-infinity') AS since
), busy AS MATERIALIZED (
    SELECT endpoint_id, sum(mine)::bigint AS mine, sum(others)::bigint AS others, max(rounds) AS rounds FROM (
        SELECT o.endpoint_id, 0 AS mine, 1 AS others, 1 AS rounds
        FROM ops.webhook_claims c CROSS JOIN LATERAL unnest(c.deliveries, c.tickets) AS d (id, ticket) CROSS JOIN LATERAL (
            SELECT o.endpoint_id FROM ops.webhook_open o WHERE o.id = d.id AND o.ticket = d.ticket OFFSET 0) o
        WHERE c.worker <> $8
        UNION ALL SELECT id, mine, 0, rounds FROM unnest($9::uuid[], $10::bigint[], $11::bigint[]) AS m (id, mine, rounds)) AS each
    GROUP BY endpoint_id
), crowd AS MATERIALIZED (
    SELECT e.tenant, sum(b.mine + b.others)::bigint AS count, CASE WHEN sum(b.others) = 0 THEN max(b.rounds) ELSE 1 END AS rounds
    FROM busy b CROSS JOIN LATERAL (SELECT tenant FROM ops.webhook_endpoints WHERE id = b.endpoint_id OFFSET 0) e GROUP BY e.tenant
), known AS MATERIALIZED (
    SELECT e.id, e.tenant, e.updated_at, CASE WHEN $2 THEN 1 ELSE COALESCE(e.concurrency, $3) END AS limit
    FROM clock, loaded l CROSS JOIN LATERAL (SELECT * FROM ops.webhook_endpoints WHERE id = l.id OFFSET 0) e
    WHERE e.state = 'active' AND (e.failures > 0) = $2 AND (e.resting_until IS NULL OR e.resting_until <= now)
), roomy AS MATERIALIZED (
    SELECT k.*, dense_rank() OVER (ORDER BY k.tenant) AS tenant_no,
        COALESCE(c.count, 0) AS crowd, $4 * COALESCE(c.rounds, 1) AS tenant_limit,
        k.limit * CASE WHEN $2 OR b.others > 0 THEN 1 ELSE COALESCE(b.rounds, 1) END - COALESCE(b.mine + b.others, 0) AS room
    FROM known k LEFT JOIN busy b ON b.endpoint_id = k.id LEFT JOIN crowd c ON c.tenant = k.tenant
), ready AS MATERIALIZED (
    SELECT *, count(*) OVER () AS many, sum(LEAST(room, $1)) OVER (PARTITION BY tenant_no) > tenant_limit - crowd AS tight
    FROM roomy WHERE room > 0 AND tenant_limit > crowd
), due AS MATERIALIZED (
    SELECT d.*, r.updated_at, r.crowd, r.tenant_no, r.tenant_limit, r.tight FROM ready r, clock, held, LATERAL (
        SELECT w.id, w.ticket, w.endpoint_id, w.event_seq, w.event_id, w.attempts, w.rung, w.bytes, w.due_at,
            row_number() OVER (ORDER BY w.due_at) AS turn
        FROM ops.webhook_open w
        WHERE w.endpoint_id = r.id AND w.due_at <= clock.now AND w.created_at >= held.since
            AND w.ticket NOT IN (SELECT unnest(tickets) FROM ops.webhook_claims)
        ORDER BY w.due_at LIMIT LEAST(r.room, GREATEST($1 / r.many, 1))
    ) d
), placed AS MATERIALIZED (
    SELECT * FROM due WHERE NOT tight
    UNION ALL
    SELECT id, ticket, endpoint_id, event_seq, event_id, attempts, rung, bytes, due_at, turn, updated_at, crowd, tenant_no,
        tenant_limit, tight
    FROM (SELECT due.*, row_number() OVER (PARTITION BY tenant_no ORDER BY turn, due_at) + crowd AS place FROM due WHERE tight) p
    WHERE place <= tenant_limit
), fits AS MATERIALIZED (
    SELECT count(*) <= $1 AND COALESCE(sum(bytes), 0) <= $13 AS all FROM placed
), chosen AS MATERIALIZED (
    SELECT id, ticket, endpoint_id, event_seq, event_id, attempts, rung, updated_at FROM placed WHERE (SELECT fits.all FROM fits)
    UNION ALL (
        SELECT id, ticket, endpoint_id, event_seq, event_id, attempts, rung, updated_at FROM (
            SELECT placed.*, sum(bytes) OVER (ORDER BY turn, due_at, id) - bytes AS before FROM placed
            WHERE NOT (SELECT fits.all FROM fits)) p
        WHERE before < $13 ORDER BY turn, due_at, id LIMIT $1)
), lot AS (
    INSERT INTO ops.webhook_claims (id, worker, deliveries, tickets, claimed_at, expires_at)
    SELECT $7, $8, array_agg(id), array_agg(ticket), min(now), min(now) + make_interval(secs => $5)
    FROM chosen, clock HAVING count(*) > 0
), spent AS (
    DELETE FROM ops.webhook_claims WHERE id = ANY($12)
), failing AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM ops.webhook_endpoints e, clock WHERE e.failures > 0 AND e.state = 'active'
        AND (e.resting_until IS NULL OR e.resting_until <= now)
        AND EXISTS (SELECT FROM ops.webhook_open o WHERE o.endpoint_id = e.id AND o.due_at <= now)) AS any
)
SELECT failing.any, c.id, c.endpoint_id, c.ticket, c.attempts + 1, c.rung, c.event_id, c.body, c.updated_at
FROM failing LEFT JOIN (
    SELECT chosen.*, v.body FROM chosen
    CROSS JOIN LATERAL (SELECT body FROM ops.webhook_events WHERE seq = chosen.event_seq OFFSET 0) v
) c ON true";

/// How long until something may be due that is not now; `None`: nothing waits.
pub(crate) async fn next_due(pool: &PgPool) -> Result<Option<Duration>, WebhookError> {
    let tried = "look for the next webhook delivery";
    let row = sqlx::query(
        "SELECT extract(epoch FROM LEAST( \
             (SELECT min(due_at) FROM ops.webhook_open WHERE due_at > now()), \
             (SELECT min(resting_until) FROM ops.webhook_endpoints WHERE state = 'active' AND resting_until > now()) \
         ) - now())::float8",
    )
    .fetch_one(pool)
    .await
    .map_err(WebhookError::database(tried))?;
    let seconds: Option<f64> = row.try_get(0).map_err(WebhookError::database(tried))?;
    Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)))
}

/// Gives back deliveries that were claimed and not begun, as if they had not been claimed.
pub(crate) async fn hand_back(pool: &PgPool, all: &[&Claimed]) -> Result<(), WebhookError> {
    let tried = "hand webhook deliveries back";
    let mut transaction = begin(pool, QUICK, tried).await?;
    sqlx::query(HAND_BACK)
        .bind(all.iter().map(|claimed| claimed.id).collect::<Vec<_>>())
        .bind(all.iter().map(|claimed| claimed.ticket).collect::<Vec<_>>())
        .execute(&mut *transaction)
        .await
        .map_err(WebhookError::database(tried))?;
    transaction.commit().await.map_err(WebhookError::database(tried))
}

const HAND_BACK: &str = "\
WITH back AS MATERIALIZED (
    SELECT o.at, b.ticket FROM unnest($1::uuid[], $2::bigint[]) AS b (id, ticket) CROSS JOIN LATERAL (
        SELECT ctid AS at FROM ops.webhook_open w WHERE w.id = b.id AND w.ticket = b.ticket OFFSET 0) o)
UPDATE ops.webhook_open o SET ticket = DEFAULT FROM back WHERE o.ctid = back.at AND o.ticket = back.ticket";

/// Takes back what processes held that are gone, or too slow to be waited for. Answers how many deliveries.
pub(crate) async fn take_back(pool: &PgPool) -> Result<u64, WebhookError> {
    let tried = "take back webhook deliveries of processes that are gone";
    let mut all = 0;
    loop {
        let mut transaction = begin(pool, DURABLE, tried).await?;
        let row = sqlx::query(TAKE_BACK).bind(LOTS).fetch_one(&mut *transaction).await;
        let row = row.map_err(WebhookError::database(tried))?;
        transaction.commit().await.map_err(WebhookError::database(tried))?;
        let count = |at: usize| row.try_get::<i64, _>(at).map_err(WebhookError::database(tried));
        all += u64::try_from(count(1)?).unwrap_or(0);
        if count(0)? < LOTS {
            return Ok(all);
        }
    }
}

/// Most lots that are taken back in one statement.
const LOTS: i64 = 10;

// Each draws another ticket, so that nothing the process still does with the old one meets it. The tickets are named by themselves: a row
// that is locked beside a lot would carry all of the lot with it.
const TAKE_BACK: &str = "\
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now), expired AS MATERIALIZED (
    SELECT c.id, c.deliveries, c.tickets, c.claimed_at FROM ops.webhook_claims c, clock
    WHERE c.expires_at < now ORDER BY c.expires_at LIMIT $1 FOR UPDATE OF c SKIP LOCKED
), named AS MATERIALIZED (
    SELECT d.id, d.ticket, x.claimed_at FROM expired x CROSS JOIN LATERAL unnest(x.deliveries, x.tickets) AS d (id, ticket)
), lost AS MATERIALIZED (
    SELECT o.id, n.claimed_at FROM named n JOIN ops.webhook_open o ON o.id = n.id AND o.ticket = n.ticket FOR UPDATE OF o
), back AS (
    UPDATE ops.webhook_open o SET ticket = DEFAULT, attempts = o.attempts + 1 FROM lost WHERE o.id = lost.id
    RETURNING o.id, o.attempts, lost.claimed_at
), told AS (
    INSERT INTO ops.webhook_failures (delivery_id, attempt_no, started_at, ended_at, outcome, error)
    SELECT id, attempts, claimed_at, now, 'lost', 'the process ended before it could say what came of it' FROM back, clock
    ON CONFLICT DO NOTHING
), gone AS (
    DELETE FROM ops.webhook_claims WHERE id IN (SELECT id FROM expired)
)
SELECT (SELECT count(*) FROM expired), (SELECT count(*) FROM back)";

/// Ends what waits for an endpoint that is disabled, but for what is claimed. Answers how many deliveries. A large backlog goes in
/// parts, so that nobody waits long at the gate.
pub(crate) async fn give_up(pool: &PgPool, endpoint: Uuid) -> Result<u64, WebhookError> {
    let tried = "give up webhooks of a disabled endpoint";
    let mut all = 0;
    loop {
        let mut transaction = begin(pool, DURABLE, tried).await?;
        sqlx::query(GATE).execute(&mut *transaction).await.map_err(WebhookError::database(tried))?;
        let done = sqlx::query(GIVE_UP).bind(endpoint).bind(GIVEN_UP).execute(&mut *transaction).await;
        let count = done.map_err(WebhookError::database(tried))?.rows_affected();
        transaction.commit().await.map_err(WebhookError::database(tried))?;
        all += count;
        if count < GIVEN_UP.unsigned_abs() {
            return Ok(all);
        }
    }
}

/// Most deliveries that are given up in one statement.
const GIVEN_UP: i64 = 5_000;

const GIVE_UP: &str = "\
WITH waiting AS MATERIALIZED (
    SELECT o.id FROM ops.webhook_endpoints e, ops.webhook_open o WHERE e.id = $1 AND e.state = 'disabled' AND o.endpoint_id = e.id
        AND o.ticket NOT IN (SELECT unnest(tickets) FROM ops.webhook_claims)
    LIMIT $2
), over AS (
    DELETE FROM ops.webhook_open o USING waiting w WHERE o.id = w.id RETURNING o.*
)
INSERT INTO ops.webhook_ended (id, endpoint_id, event_seq, tenant, event_id, event_type, state, attempts, dead_reason,
    last_status, last_error, replays, created_at, ended_at)
SELECT id, endpoint_id, event_seq, tenant, event_id, event_type, 'dead', attempts, 'endpoint_disabled',
    last_status, last_error, replays, created_at, clock_timestamp() FROM over";

/// A claim that no database knows of.
#[cfg(test)]
pub(crate) fn sample(endpoint: u128, tenant: &str, concurrency: usize, body: &'static str) -> Claimed {
    let target = Target {
        id: Uuid::from_u128(endpoint),
        place: Err("nowhere".to_owned()),
        timeout: None,
        tenant: tenant.into(),
        concurrency,
    };
    Claimed {
        id: Uuid::now_v7(),
        ticket: 1,
        lot: Arc::new(Lot::new(Uuid::now_v7(), 1, Spent::default())),
        target: Arc::new(target),
        attempt_no: 1,
        rung: 0,
        event_id: "evt_1".to_owned(),
        body: Bytes::from_static(body.as_bytes()),
    }
}
