//! Queues: look, and try a dead job again.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use voiceai_listener::axum::extract::State;
use voiceai_listener::axum::routing::{get, post};
use voiceai_listener::axum::{Json, Router};
use voiceai_listener::{MaybeJson, Operator, Problem, StrictPath};
use voiceai_queue::{DeadReason, JobView, ListFilter, QueueStats, State as JobState};
use voiceai_replay::{ItemState, Pace};

use super::Admin;
use super::reply::{Reply, problem, refused, unsuccessful};
use crate::operate::replay::{self, Orders, Wanted};
use crate::operate::{Act, queue_failure, queues};
use crate::settings::{EMAIL_QUEUE, ORCHESTRATION_QUEUE};

/// Dead jobs that an answer shows.
const FAILED_SHOWN: u64 = 10;
/// Longest time for a look. A Redis that takes commands and answers none is found out only by waiting.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Longest time for a retry, which has both stores to ask.
const RETRY_MAX: Duration = Duration::from_secs(10);

pub(super) fn routes(admin: Arc<Admin>) -> Router {
    let mut router = Router::new()
        .route("/api/v1/admin/queues/{queue}", get(show_named))
        .route("/api/v1/admin/queues/{queue}/retry/{job_id}", post(retry_named));
    // The two queues that the platform's screens know by a path of their own.
    for (part, queue) in [("email", EMAIL_QUEUE), ("orchestration", ORCHESTRATION_QUEUE)] {
        let look = move |State(admin): State<Arc<Admin>>| async move { show(&admin, queue).await };
        let again = move |State(admin): State<Arc<Admin>>,
                          StrictPath(id),
                          operator: Operator,
                          why: MaybeJson<Why>| async move {
            retry(admin, queue.to_owned(), id, Asked::new(operator, why)?).await
        };
        router = router
            .route(&format!("/api/v1/admin/{part}/queue"), get(look))
            .route(&format!("/api/v1/admin/{part}/queue/retry/{{job_id}}"), post(again));
    }
    router.with_state(admin)
}

/// A queue in the shape of the platform's admin screens.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Overview {
    stats: Stats,
    failed_jobs: Vec<FailedJob>,
}

/// `failed` are the dead ones: what is still being tried counts as delayed or waiting.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Stats {
    waiting: u64,
    active: u64,
    completed: u64,
    failed: u64,
    delayed: u64,
    total: u64,
}

impl Stats {
    fn of(stats: &QueueStats) -> Self {
        let QueueStats { waiting, active, completed, dead, delayed, .. } = *stats;
        Self {
            waiting,
            active,
            completed,
            failed: dead,
            delayed,
            total: waiting + active + completed + dead + delayed,
        }
    }
}

/// A dead job. Times are milliseconds since 1970.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FailedJob {
    id: String,
    kind: String,
    data: Option<Box<RawValue>>,
    failed_reason: String,
    /// Why it was given up, in one word.
    dead_reason: Option<DeadReason>,
    attempts_made: u32,
    /// When it was enqueued.
    timestamp: Option<i64>,
    /// When it was given up.
    failed_at: Option<i64>,
}

impl FailedJob {
    fn of(job: JobView) -> Self {
        let reason = job.dead_reason.map(|reason| reason.to_string());
        Self {
            id: job.id.to_string(),
            kind: job.kind,
            data: job.payload,
            failed_reason: job.error.or(reason).unwrap_or_default(),
            dead_reason: job.dead_reason,
            attempts_made: job.attempts,
            timestamp: job.enqueued_at.map(Timestamp::as_millisecond),
            failed_at: job.dead_at.map(Timestamp::as_millisecond),
        }
    }
}

async fn show_named(
    State(admin): State<Arc<Admin>>,
    StrictPath(queue): StrictPath<String>,
) -> Result<Json<Reply<Overview>>, Problem> {
    let queue = known(&admin, &queue).await?;
    show(&admin, &queue).await
}

async fn known(admin: &Admin, queue: &str) -> Result<String, Problem> {
    queues::known(&admin.desk.client, queue).await.map_err(problem)
}

async fn show(admin: &Admin, queue: &str) -> Result<Json<Reply<Overview>>, Problem> {
    let slow = |_| {
        Err(unsuccessful(Problem::unavailable("redis_unreachable", format!("no answer within {LOOK_MAX:?}"))))
    };
    tokio::time::timeout(LOOK_MAX, overview(admin, queue)).await.unwrap_or_else(slow).map(Reply::of)
}

async fn overview(admin: &Admin, queue: &str) -> Result<Overview, Problem> {
    let client = &admin.desk.client;
    let failed = |error| problem(queue_failure(&error));
    let stats = client.stats(queue).await.map_err(failed)?;
    // The list is from the oldest on, and its cursor a place in it: the newest are its end.
    let filter = ListFilter {
        limit: usize::try_from(FAILED_SHOWN).unwrap_or(usize::MAX),
        cursor: Some(stats.dead.saturating_sub(FAILED_SHOWN).to_string()),
        ..ListFilter::of(JobState::Dead)
    };
    let page = client.list(queue, &filter).await.map_err(failed)?;
    let failed_jobs = page.jobs.into_iter().rev().map(FailedJob::of).collect();
    Ok(Overview { stats: Stats::of(&stats), failed_jobs })
}

/// What a retry may say about itself.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Why {
    /// For the audit trail.
    reason: Option<String>,
    /// The reason of death, which three of them need to be named: `poison`, `discarded_by_handler`, `bad_payload`.
    reason_is: Option<String>,
}

/// Who asks for a retry, and why: `X-Operator`, and a body or none.
#[derive(Debug)]
struct Asked {
    act: Act,
    reason_is: Option<DeadReason>,
}

impl Asked {
    fn new(Operator(actor): Operator, MaybeJson(why): MaybeJson<Why>) -> Result<Self, Problem> {
        let reason_is = why.reason_is.as_deref().map(replay::reason).transpose().map_err(problem)?;
        Ok(Self { act: Act { actor, reason: why.reason }, reason_is })
    }
}

async fn retry_named(
    State(admin): State<Arc<Admin>>,
    StrictPath((queue, id)): StrictPath<(String, String)>,
    operator: Operator,
    why: MaybeJson<Why>,
) -> Result<Json<Reply<Retried>>, Problem> {
    let queue = known(&admin, &queue).await?;
    retry(admin, queue, id, Asked::new(operator, why)?).await
}

/// A job that is tried again.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Retried {
    job_id: String,
    queue: String,
    /// The replay in the audit trail, which holds who asked and why.
    replay_id: String,
}

async fn retry(
    admin: Arc<Admin>,
    queue: String,
    id: String,
    asked: Asked,
) -> Result<Json<Reply<Retried>>, Problem> {
    // A client that hangs up must not leave a replay that was begun half done.
    let work = tokio::spawn(async move { again(&admin, queue, id, asked).await }.in_current_span());
    match tokio::time::timeout(RETRY_MAX, work).await {
        Ok(Ok(done)) => done.map(Reply::of),
        Ok(Err(_)) => Err(unsuccessful(Problem::internal("internal_error", "the retry failed"))),
        Err(_) => {
            let problem = Problem::unavailable("not_in_time", format!("no answer within {RETRY_MAX:?}"));
            Err(unsuccessful(problem.remedy("Ask again: a job that was put back meanwhile is answered 404.")))
        }
    }
}

/// One dead job through the very replay that the command line uses: checked, written down, audited, its lineage kept.
async fn again(admin: &Admin, queue: String, id: String, asked: Asked) -> Result<Retried, Problem> {
    let Admin { desk, store, .. } = admin;
    let wanted = Wanted {
        ids: vec![id.clone()],
        queue: Some(queue.clone()),
        reason_is: asked.reason_is,
        ..Wanted::default()
    };
    let plan = replay::plan(desk, &admin.checks(), &wanted, 1).await.map_err(problem)?;
    let refusal = plan.candidates.iter().find_map(|candidate| candidate.refused.as_ref());
    match refusal.map(|refusal| (refusal.code, refusal.message.clone())) {
        None if plan.would_replay == 1 => {}
        // A job that is there and has not failed is as little there for a retry as one that is not.
        Some(("not_dead", message)) => {
            let problem = Problem::not_found("job_not_failed", format!("job {id} has not failed: {message}"));
            return Err(unsuccessful(
                problem.remedy("Only jobs that were given up are tried again by hand."),
            ));
        }
        Some(("reason_needs_naming", message)) => {
            return Err(refused("reason_needs_naming", message, "Name it in the body, as reason_is."));
        }
        Some((code, message)) => {
            return Err(refused(code, message, "Heal what it names, or discard the job."));
        }
        None => {
            let message = format!("job {id} was not given up as reason_is says");
            return Err(refused("reason_differs", message, "See failedJobs for its deadReason."));
        }
    }
    // Nothing is waited for: whether it ends well is seen in the queue.
    let pace = Pace { per_second: 5.0, look_every: Duration::from_millis(250), follow: Duration::ZERO };
    let orders = Orders { limit: 1, pace };
    let never = CancellationToken::new();
    let carried = replay::execute(desk, store, &wanted, &plan, &orders, &asked.act, &never).await;
    let carried = carried.map_err(problem)?;
    match carried.items.first() {
        Some(item) if item.state == ItemState::Skipped => {
            let why = item.detail.clone().unwrap_or_default();
            Err(refused(
                "not_replayed",
                format!("job {id} was left alone: {why}"),
                "Look at it with `jobs show`.",
            ))
        }
        _ => Ok(Retried { job_id: id, queue, replay_id: carried.replay.id.to_string() }),
    }
}
