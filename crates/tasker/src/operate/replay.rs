//! Replay of dead jobs, and of work that was never enqueued: the jobs' side of [`voiceai_replay`].

mod calls;
mod checks;
mod source;

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_cli::Failure;
use voiceai_queue::{DeadReason, JobView, ListFilter, QueueError, State};
use voiceai_replay::rule::{self, LimitRefused};
use voiceai_replay::{
    Begin, Candidate, Counts, Filter, Item, Pace, Plan, Refusal, Replay, ReplayError, RunError, Stopped,
    Store,
};

pub use checks::Checks;
use source::JobSource;

use super::{Act, Desk, database_failure, queue_failure, queues};
use crate::cli::When;

/// What is replayed, in the rows and the audit trail.
const SUBJECT: &str = "jobs";
/// Most candidates that are looked at in one plan. Those beyond it still count as matching.
const LOOK_MAX: usize = 10_000;
/// Dead jobs read in one call.
const PAGE: usize = 500;

/// Which jobs.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// These alone.
    pub ids: Vec<String>,
    /// Only this queue.
    pub queue: Option<String>,
    /// Only this kind.
    pub kind: Option<String>,
    /// Only this tenant.
    pub tenant: Option<String>,
    /// Only those whose last error holds this.
    pub error_contains: Option<String>,
    /// Only those that died since then; of missing work, since then.
    pub since: Option<When>,
    /// Only those that were given up for this reason; three reasons need to be named.
    pub reason_is: Option<DeadReason>,
    /// Work that was never enqueued, instead of dead jobs.
    pub missing: bool,
}

impl Wanted {
    /// In its one written form.
    #[must_use]
    pub fn filter(&self) -> Filter {
        Filter::new()
            .with_any("id", self.ids.iter().map(String::as_str))
            .with("queue", self.queue.as_deref())
            .with("kind", self.kind.as_deref())
            .with("tenant", self.tenant.as_deref())
            .with("error_contains", self.error_contains.as_deref())
            .with("since", self.since.map(When::normalised))
            .with("reason_is", self.reason_is.map(DeadReason::as_str))
            .with("missing", self.missing.then_some("true"))
    }
}

/// Reasons for which a job was given up that make another try harmful or useless, unless a person names them.
const NEEDS_NAMING: [DeadReason; 3] =
    [DeadReason::Poison, DeadReason::DiscardedByHandler, DeadReason::BadPayload];

/// Reads a reason's word.
///
/// # Errors
/// Usage (2), naming all reasons.
pub fn reason(word: &str) -> Result<DeadReason, Failure> {
    DeadReason::parse(word).ok_or_else(|| {
        let all = DeadReason::ALL.map(DeadReason::as_str).join(", ");
        Failure::usage(
            "invalid_reason",
            format!("--reason-is `{word}` is no reason"),
            format!("Choose one of {all}."),
        )
    })
}

/// This build: a proof of another one proves nothing.
#[must_use]
pub fn version() -> String {
    format!("{}+{}", env!("CARGO_PKG_VERSION"), voiceai_telemetry::REVISION)
}

/// Looks and changes nothing: which jobs match, which pass the checks, why the others do not.
///
/// # Errors
/// Not found (3) when ids were given and none exists; else as the stores say.
pub async fn plan(desk: &Desk, checks: &Checks, wanted: &Wanted, limit: u32) -> Result<Plan, Failure> {
    let (candidates, matched) = if wanted.missing {
        let missing = checks.missing(desk, wanted).await?;
        let count = missing.len() as u64;
        (missing, count)
    } else if wanted.ids.is_empty() {
        dead_jobs(desk, checks, wanted).await?
    } else {
        let found = by_id(desk, checks, wanted).await?;
        let count = found.len() as u64;
        (found, count)
    };
    Ok(Plan::of(candidates, matched, usize::try_from(limit).unwrap_or(usize::MAX)))
}

async fn dead_jobs(desk: &Desk, checks: &Checks, wanted: &Wanted) -> Result<(Vec<Candidate>, u64), Failure> {
    let names = match &wanted.queue {
        Some(queue) => vec![queues::known(&desk.client, queue).await?],
        None => queues::names(&desk.client).await?,
    };
    let since = wanted.since.map(|since| since.timestamp(Timestamp::now()));
    let (mut candidates, mut matched) = (Vec::new(), 0);
    for queue in names {
        let mut filter = ListFilter {
            kind: wanted.kind.clone(),
            tenant: wanted.tenant.clone(),
            error_contains: wanted.error_contains.clone(),
            reason: wanted.reason_is,
            limit: PAGE,
            ..ListFilter::of(State::Dead)
        };
        loop {
            let page = desk.client.list(&queue, &filter).await.map_err(|error| queue_failure(&error))?;
            for job in page
                .jobs
                .iter()
                .filter(|job| since.is_none_or(|since| job.dead_at.is_some_and(|at| at >= since)))
            {
                matched += 1;
                if candidates.len() < LOOK_MAX {
                    candidates.push(candidate(desk, checks, job, wanted).await?);
                }
            }
            match page.next {
                Some(next) => filter.cursor = Some(next),
                None => break,
            }
        }
    }
    Ok((candidates, matched))
}

async fn by_id(desk: &Desk, checks: &Checks, wanted: &Wanted) -> Result<Vec<Candidate>, Failure> {
    let mut candidates = Vec::new();
    let mut found_any = false;
    for id in super::jobs::each_once(&wanted.ids) {
        match super::jobs::locate(&desk.client, wanted.queue.as_deref(), id).await? {
            Some(job) => {
                found_any = true;
                if fits(&job, wanted) {
                    candidates.push(candidate(desk, checks, &job, wanted).await?);
                }
            }
            None => candidates.push(Candidate {
                place: wanted.queue.clone().unwrap_or_default(),
                id: id.clone(),
                content: None,
                shown: json!({}),
                refused: Some(Refusal::new("not_found", "no queue holds a job with this id")),
            }),
        }
    }
    if found_any {
        return Ok(candidates);
    }
    Err(Failure::not_found(
        "job_not_found",
        format!("no queue holds a job with the id {}", wanted.ids.join(" or ")),
        "Look with `jobs list --state dead`.",
    ))
}

/// The filters beside the ids hold as well.
fn fits(job: &JobView, wanted: &Wanted) -> bool {
    let since = wanted.since.map(|since| since.timestamp(Timestamp::now()));
    wanted.kind.as_ref().is_none_or(|kind| *kind == job.kind)
        && wanted.tenant.as_ref().is_none_or(|tenant| Some(tenant) == job.tenant.as_ref())
        && wanted
            .error_contains
            .as_ref()
            .is_none_or(|text| job.error.as_ref().is_some_and(|error| error.contains(text.as_str())))
        && wanted.reason_is.is_none_or(|reason| Some(reason) == job.dead_reason)
        && since.is_none_or(|since| job.dead_at.is_some_and(|at| at >= since))
}

async fn candidate(
    desk: &Desk,
    checks: &Checks,
    job: &JobView,
    wanted: &Wanted,
) -> Result<Candidate, Failure> {
    let refused = match standing(job, wanted.reason_is) {
        Err(refusal) => Some(refusal),
        Ok(()) => checks.check(desk, job).await.err(),
    };
    Ok(Candidate {
        place: job.queue.clone(),
        id: job.id.to_string(),
        content: None,
        shown: json!({
            "queue": job.queue,
            "kind": job.kind,
            "tenant": job.tenant,
            "dead_reason": job.dead_reason,
            "dead_at": job.dead_at,
            "error": job.error,
            "replays": job.replays,
            "crashes": job.crashes,
            "payload": job.payload.as_deref().map(readable),
        }),
        refused,
    })
}

/// A payload as a value; as its text where it is nested deeper, or holds greater numbers, than a value of ours may.
fn readable(payload: &RawValue) -> serde_json::Value {
    serde_json::from_str(payload.get()).unwrap_or_else(|_| payload.get().into())
}

/// Whether the job's own state allows a replay. Pure.
fn standing(job: &JobView, named: Option<DeadReason>) -> Result<(), Refusal> {
    if job.state != State::Dead {
        let message = format!("it is {}: what is still being tried is left alone", job.state.as_str());
        return Err(Refusal::new("not_dead", message));
    }
    match job.dead_reason {
        Some(reason) if NEEDS_NAMING.contains(&reason) && named != Some(reason) => {
            let message = format!("it was given up as {reason}; name it with --reason-is {reason}");
            Err(Refusal::new("reason_needs_naming", message))
        }
        _ => Ok(()),
    }
}

/// Whether so many may be replayed now. Earlier small batches that have ended meanwhile are counted first.
///
/// # Errors
/// Refused (4), saying which proof is missing; else as the stores say.
pub async fn allow(desk: &Desk, store: &Store, filter: &Filter, limit: u32) -> Result<(), Failure> {
    if limit > rule::PROOF_MAX {
        let open =
            store.unsettled_proofs(SUBJECT, filter, &version()).await.map_err(|e| replay_failure(&e))?;
        let source = JobSource::new(desk, String::new());
        let once = Pace { per_second: 1.0, look_every: Duration::ZERO, follow: Duration::ZERO };
        for id in open {
            let looked =
                voiceai_replay::run(store, &source, id, &runner(), once, &CancellationToken::new()).await;
            looked.map_err(|error| run_failure(id, &error))?;
        }
    }
    let proof = store.proof(SUBJECT, filter, &version()).await.map_err(|error| replay_failure(&error))?;
    rule::judge_limit(limit, proof).map_err(|refused| limit_failure(&refused))
}

pub(super) fn limit_failure(refused: &LimitRefused) -> Failure {
    match refused {
        LimitRefused::Zero => Failure::usage("invalid_limit", refused.to_string(), "Give at least 1."),
        LimitRefused::Unproved { .. } | LimitRefused::NotAllCompleted { .. } => Failure::refused(
            "limit_needs_proof",
            refused.to_string(),
            "Replay with --limit 10 --execute first, wait until all of it completed, then ask again with the same filter.",
        ),
    }
}

/// One replay and what became of its items.
#[derive(Clone, Debug, Serialize)]
pub struct Carried {
    /// The replay with its counts.
    pub replay: Replay,
    /// Why it came to an end.
    pub ended: &'static str,
    /// Its items, the first hundred.
    pub items: Vec<Item>,
}

/// Items shown of one replay.
const ITEMS_SHOWN: i64 = 100;

/// How a replay is carried out.
#[derive(Clone, Debug)]
pub struct Orders {
    /// Most jobs.
    pub limit: u32,
    /// How fast, and how long its end is waited for.
    pub pace: Pace,
}

/// Writes the replay down and carries it out.
///
/// # Errors
/// As the stores say; what was done by then is written down, and the failure names the replay to go on with.
pub async fn execute(
    desk: &Desk,
    store: &Store,
    wanted: &Wanted,
    plan: &Plan,
    orders: &Orders,
    act: &Act,
    stop: &CancellationToken,
) -> Result<Carried, Failure> {
    let filter = wanted.filter();
    let why = act.why();
    let begin = Begin {
        subject: SUBJECT,
        filter: &filter,
        version: &version(),
        actor: &act.actor,
        reason: &why,
        limit: orders.limit,
        per_second: orders.pace.per_second,
        plan,
    };
    let id = store.begin(&begin).await.map_err(|error| replay_failure(&error))?;
    carry_out(desk, store, id, &why, orders.pace, stop).await
}

/// Goes on with a replay that stopped or was interrupted.
///
/// # Errors
/// Not found (3); refused (4) while somebody else carries it out; else as [`execute`].
pub async fn resume(
    desk: &Desk,
    store: &Store,
    id: Uuid,
    pace: Pace,
    act: &Act,
    stop: &CancellationToken,
) -> Result<Carried, Failure> {
    let replay =
        store.go_on(id, &act.actor, act.reason.as_deref()).await.map_err(|error| replay_failure(&error))?;
    let pace = Pace { per_second: replay.per_second, ..pace };
    carry_out(desk, store, id, &replay.reason, pace, stop).await
}

async fn carry_out(
    desk: &Desk,
    store: &Store,
    id: Uuid,
    reason: &str,
    pace: Pace,
    stop: &CancellationToken,
) -> Result<Carried, Failure> {
    let source = JobSource::new(desk, reason.to_owned());
    // Without a worker nothing ends, so nothing is waited for.
    let follow = if any_worker(desk).await? { pace.follow } else { Duration::ZERO };
    let pace = Pace { follow, ..pace };
    let ended = voiceai_replay::run(store, &source, id, &runner(), pace, stop).await;
    let ended = match ended.map_err(|error| run_failure(id, &error))? {
        Stopped::Settled => "settled",
        Stopped::Released => "released",
        Stopped::TooManyDeaths(_) => "stopped",
        Stopped::Interrupted => "interrupted",
    };
    shown(store, id, ended).await
}

async fn any_worker(desk: &Desk) -> Result<bool, Failure> {
    let names = queues::names(&desk.client).await?;
    let all = queues::look(&desk.client, &names).await?;
    Ok(all.iter().any(|queue| !queue.workers.is_empty()))
}

/// A replay with its items as they stand.
///
/// # Errors
/// Not found (3); else as the database says.
pub async fn shown(store: &Store, id: Uuid, ended: &'static str) -> Result<Carried, Failure> {
    let replay = store.get(id).await.map_err(|error| replay_failure(&error))?;
    let items = store.items(id, &[], None, ITEMS_SHOWN).await.map_err(|error| replay_failure(&error))?;
    Ok(Carried { replay, ended, items })
}

/// The exit code of a replay that was carried out: all well (`None`), or partly done (6) with how to go on.
#[must_use]
pub fn judge(carried: &Carried) -> Option<Failure> {
    let Carried { replay, ended, .. } = carried;
    let Counts { items, pending, died, skipped, .. } = replay.counts;
    let go_on = format!("Look at the deaths, then run `jobs replay --resume {} --execute`.", replay.id);
    match *ended {
        "stopped" => {
            let why = replay.stop_reason.clone().unwrap_or_default();
            let message = format!("the replay stopped: {why}; {pending} of {items} were left alone");
            Some(Failure::partial("replay_stopped", message, go_on))
        }
        "interrupted" => {
            let message = format!("the replay was interrupted; {pending} of {items} were left alone");
            Some(Failure::partial("replay_interrupted", message, go_on))
        }
        _ if died + skipped > 0 => {
            let message = format!("of {items} replayed jobs {died} died again and {skipped} were skipped");
            Some(Failure::partial("replay_partial", message, "Look at them with `jobs show`."))
        }
        _ => None,
    }
}

/// Who carries it out: this very process.
pub(super) fn runner() -> String {
    format!("{}/{}", voiceai_config::HostName::read().0, std::process::id())
}

pub(super) fn replay_failure(error: &ReplayError) -> Failure {
    match error {
        ReplayError::NotFound(_) => Failure::not_found(
            "replay_not_found",
            error.to_string(),
            "See `audit list` for the ids of replays.",
        ),
        ReplayError::Busy { .. } => Failure::refused(
            "replay_busy",
            error.to_string(),
            "Wait for it; one that was killed is free again after 30 seconds.",
        ),
        ReplayError::Database { tried, source } => {
            let failure = database_failure(source);
            Failure { message: format!("{tried}: {}", failure.message), ..failure }
        }
        ReplayError::Unknown { .. } => Failure::refused(
            "replay_unknown",
            error.to_string(),
            "Use the version that wrote it, or a newer one.",
        ),
    }
}

fn run_failure(id: Uuid, error: &RunError<source::SourceError>) -> Failure {
    let failure = match error {
        RunError::Store(error) => replay_failure(error),
        RunError::Source(source::SourceError::Queue(error)) => queue_failure(error),
        RunError::Source(source::SourceError::History(error)) => database_failure(error),
    };
    let message = format!("replay {id}: {}", failure.message);
    let remedy = format!("{} Then go on with `jobs replay --resume {id} --execute`.", failure.remedy);
    Failure { message, remedy, ..failure }
}

impl From<QueueError> for source::SourceError {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}
