//! Queues: look, pause, drain, purge, clean.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use voiceai_cli::Failure;
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx;
use voiceai_queue::{Client, Ending, QueueStats, Selection, State, WorkerView};

use super::limits::{self, Setting};
use super::{Act, Desk, database_failure, queue_failure};
use crate::settings::{DEFAULT_QUEUE, EMAIL_QUEUE, ORCHESTRATION_QUEUE};

/// Queues that are there whether or not they were ever used.
pub const BUILT_IN: [&str; 3] = [DEFAULT_QUEUE, EMAIL_QUEUE, ORCHESTRATION_QUEUE];

/// Every queue: the built-in ones and those that were ever used.
///
/// # Errors
/// As Redis says.
pub async fn names(client: &Client) -> Result<Vec<String>, Failure> {
    let used = client.queues().await.map_err(|error| queue_failure(&error))?;
    let all: BTreeSet<String> = used.into_iter().chain(BUILT_IN.map(str::to_owned)).collect();
    Ok(all.into_iter().collect())
}

/// `queue`, when there is one.
///
/// # Errors
/// Not found (3); else as Redis says.
pub async fn known(client: &Client, queue: &str) -> Result<String, Failure> {
    let all = names(client).await?;
    if all.iter().any(|name| name == queue) {
        return Ok(queue.to_owned());
    }
    Err(Failure::not_found(
        "queue_not_found",
        format!("there is no queue `{queue}`"),
        format!("Choose one of {}.", all.join(", ")),
    ))
}

/// How fast a queue moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Pace {
    /// Jobs completed in a second.
    pub rate_per_second: f64,
    /// Jobs accepted in a second.
    pub arrivals_per_second: f64,
    /// When the backlog will be gone at this pace; absent when it does not shrink.
    pub time_to_empty_seconds: Option<f64>,
}

impl Pace {
    /// Between two looks at the same queue.
    #[must_use]
    pub fn between(earlier: &QueueStats, later: &QueueStats) -> Self {
        let span = later.at.duration_since(earlier.at).as_secs_f64();
        let backlog = later.waiting + later.active;
        if span <= 0.0 {
            return Self { time_to_empty_seconds: (backlog == 0).then_some(0.0), ..Self::default() };
        }
        #[expect(clippy::cast_precision_loss, reason = "rates for people; counts below 2^53")]
        let per_second = |now: u64, then: u64| now.saturating_sub(then) as f64 / span;
        let ended = |stats: &QueueStats| {
            stats.completed + stats.dead + stats.cancelled + stats.discarded + stats.removed
        };
        let shrinks = per_second(ended(later), ended(earlier)) - per_second(later.accepted, earlier.accepted);
        #[expect(clippy::cast_precision_loss, reason = "a duration for people")]
        let left = backlog as f64;
        let time_to_empty_seconds = match backlog {
            0 => Some(0.0),
            _ if shrinks > 0.0 => Some((left / shrinks * 10.0).round() / 10.0),
            _ => None,
        };
        let round = |rate: f64| (rate * 10.0).round() / 10.0;
        Self {
            rate_per_second: round(per_second(later.completed, earlier.completed)),
            arrivals_per_second: round(per_second(later.accepted, earlier.accepted)),
            time_to_empty_seconds,
        }
    }
}

/// One line of `queue list`.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The queue.
    pub queue: String,
    /// `running`, `paused`, `draining`, and `producers_paused`, as far as they hold.
    pub state: String,
    /// Ready to run.
    pub waiting: u64,
    /// Not yet due.
    pub delayed: u64,
    /// Running.
    pub active: u64,
    /// Given up.
    pub dead: u64,
    /// Age of the oldest waiting job.
    pub oldest_waiting_ms: Option<u64>,
    /// Live worker processes.
    pub workers: usize,
    /// Jobs that all of them run at a time.
    pub capacity: u64,
    /// (ready + running) / capacity; absent without workers.
    pub saturation: Option<f64>,
    /// How fast it moves.
    #[serde(flatten)]
    pub pace: Pace,
}

fn state_words(stats: &QueueStats) -> String {
    let words: Vec<&str> = [
        (stats.paused, "paused"),
        (stats.draining, "draining"),
        (stats.producers_paused, "producers_paused"),
    ]
    .into_iter()
    .filter_map(|(holds, word)| holds.then_some(word))
    .collect();
    if words.is_empty() { "running".to_owned() } else { words.join(",") }
}

impl Line {
    /// One queue's line, from two looks.
    #[must_use]
    pub fn of(earlier: &QueueStats, later: &QueueStats) -> Self {
        Self {
            queue: later.queue.clone(),
            state: state_words(later),
            waiting: later.waiting,
            delayed: later.delayed,
            active: later.active,
            dead: later.dead,
            oldest_waiting_ms: later.oldest_waiting_ms,
            workers: later.workers.len(),
            capacity: later.capacity,
            saturation: later.saturation,
            pace: Pace::between(earlier, later),
        }
    }
}

/// How long the pace of a queue is watched.
const WATCH: Duration = Duration::from_millis(1_000);

/// Looks at every queue twice, a second apart.
///
/// # Errors
/// As Redis says.
pub async fn list(client: &Client) -> Result<Vec<Line>, Failure> {
    let names = names(client).await?;
    let earlier = look(client, &names).await?;
    tokio::time::sleep(WATCH).await;
    let later = look(client, &names).await?;
    Ok(earlier.iter().zip(&later).map(|(earlier, later)| Line::of(earlier, later)).collect())
}

/// Every named queue as it is now.
///
/// # Errors
/// As Redis says.
pub async fn look(client: &Client, names: &[String]) -> Result<Vec<QueueStats>, Failure> {
    let mut all = Vec::with_capacity(names.len());
    for name in names {
        all.push(client.stats(name).await.map_err(|error| queue_failure(&error))?);
    }
    Ok(all)
}

/// All about one queue.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// Its line.
    #[serde(flatten)]
    pub line: Line,
    /// Of the delayed: waiting for others.
    pub blocked: u64,
    /// Ever accepted.
    pub accepted: u64,
    /// Ever completed.
    pub completed: u64,
    /// Ever cancelled.
    pub cancelled: u64,
    /// Ever discarded.
    pub discarded: u64,
    /// Ever removed.
    pub removed: u64,
    /// Every other counter.
    pub counters: std::collections::BTreeMap<String, u64>,
    /// What operators have set; absent when PostgreSQL could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<Vec<Setting>>,
    /// Live workers.
    pub worker_processes: Vec<WorkerView>,
}

/// Shows one queue. `pool` may be away: then what operators have set is left out.
///
/// # Errors
/// Not found (3); else as the stores say.
pub async fn show(client: &Client, pool: Option<&PgPool>, queue: &str) -> Result<Shown, Failure> {
    let name = known(client, queue).await?;
    let names = [name];
    let earlier = look(client, &names).await?.swap_remove(0);
    tokio::time::sleep(WATCH).await;
    let stats = look(client, &names).await?.swap_remove(0);
    let settings = match pool {
        Some(pool) => {
            let mut all = limits::read(pool, Some(queue)).await.map_err(|error| database_failure(&error))?;
            Some(all.remove(queue).unwrap_or_default())
        }
        None => None,
    };
    Ok(Shown {
        line: Line::of(&earlier, &stats),
        blocked: stats.blocked,
        accepted: stats.accepted,
        completed: stats.completed,
        cancelled: stats.cancelled,
        discarded: stats.discarded,
        removed: stats.removed,
        counters: stats.counters,
        settings,
        worker_processes: stats.workers,
    })
}

/// Waits until nothing is waiting, delayed or running, or `within` has passed. Answers what is left.
///
/// # Errors
/// As Redis says.
pub async fn wait_empty(client: &Client, queue: &str, within: Option<Duration>) -> Result<u64, Failure> {
    let until = within.map(|within| tokio::time::Instant::now() + within);
    loop {
        let stats = client.stats(queue).await.map_err(|error| queue_failure(&error))?;
        let left = stats.waiting + stats.delayed + stats.active;
        if left == 0 || until.is_some_and(|until| tokio::time::Instant::now() >= until) {
            return Ok(left);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// How many jobs of `queue` are in `state`.
///
/// # Errors
/// As Redis says.
pub async fn count(client: &Client, queue: &str, state: State) -> Result<u64, Failure> {
    let stats = client.stats(queue).await.map_err(|error| queue_failure(&error))?;
    Ok(match state {
        State::Waiting => stats.waiting,
        State::Delayed => stats.delayed,
        State::Active => stats.active,
        State::Completed => stats.completed,
        State::Dead => stats.dead,
    })
}

/// Discards every job in a state; each is written to the history, with the reason.
///
/// # Errors
/// As the stores say.
pub async fn purge(desk: &Desk, queue: &str, state: State, act: &Act) -> Result<u64, Failure> {
    let selection = Selection::State { state, older_than: None };
    let purged = desk.client.purge(queue, &selection, Ending::Discarded, &act.why()).await;
    purged.map_err(|error| queue_failure(&error))
}

/// Removes jobs that are older than `older_than`. Of completed ones also their records in the history, which is where they
/// are listed from.
///
/// # Errors
/// As the stores say.
pub async fn clean(
    desk: &Desk,
    queue: &str,
    state: State,
    older_than: Duration,
    act: &Act,
) -> Result<u64, Failure> {
    let selection = Selection::State { state, older_than: Some(older_than) };
    let cleaned = desk.client.purge(queue, &selection, Ending::Removed, &act.why()).await;
    let cleaned = cleaned.map_err(|error| queue_failure(&error))?;
    if state != State::Completed {
        return Ok(cleaned);
    }
    let records = clean_history(&desk.pool, queue, older_than).await;
    Ok(cleaned.max(records.map_err(|error| database_failure(&error))?))
}

/// In steps, so that no statement runs long or holds many locks.
async fn clean_history(pool: &PgPool, queue: &str, older_than: Duration) -> Result<u64, sqlx::Error> {
    let mut all = 0;
    loop {
        let done = sqlx::query(
            "DELETE FROM ops.job_history WHERE id = ANY (ARRAY( \
                 SELECT id FROM ops.job_history WHERE queue = $1 AND outcome = 'completed' \
                 AND finished_at < now() - $2 * interval '1 second' LIMIT 2000))",
        )
        .bind(queue)
        .bind(older_than.as_secs_f64())
        .execute(pool)
        .await?;
        all += done.rows_affected();
        if done.rows_affected() < 2_000 {
            return Ok(all);
        }
    }
}

/// How long ago something was, for people.
#[must_use]
pub fn age(at: Timestamp, now: Timestamp) -> String {
    voiceai_cli::human_duration(now.duration_since(at).unsigned_abs())
}
