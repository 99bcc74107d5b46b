//! Jobs: list, show, count, cancel, discard.

mod end;

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use voiceai_cli::Failure;
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, Row as _};
use voiceai_queue::history::{self, CursorError, HistoryRow};
use voiceai_queue::{Client, JobView, ListFilter, QueueStats, State};

pub use end::{Answer, cancel, discard, each_once, judge, locate_all, would_cancel, would_discard};

use super::{database_failure, queue_failure};

/// Which jobs a list shows.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Only this state; else every state but completed.
    pub state: Option<State>,
    /// Only this queue; else all.
    pub queue: Option<String>,
    /// Only this kind.
    pub kind: Option<String>,
    /// Only this tenant.
    pub tenant: Option<String>,
    /// Only those whose last error holds this.
    pub error_contains: Option<String>,
    /// Only those enqueued longer ago.
    pub older_than: Option<Duration>,
}

/// One row of a list. Whatever the state, a row has `id`, `kind`, `queue` and `state`.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Row {
    /// A live job.
    Live(Box<JobView>),
    /// A job that has ended.
    Past(Box<HistoryRow>),
    /// A job on its way to its queue.
    Outbox(Box<OutboxRow>),
}

/// A job that waits in the outbox.
#[derive(Clone, Debug, Serialize)]
pub struct OutboxRow {
    /// The job.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// The queue it goes to.
    pub queue: String,
    /// Always `outbox`.
    pub state: &'static str,
    /// Since when.
    pub enqueued_at: Timestamp,
    /// Why the queue has not taken it.
    pub error: Option<String>,
    /// The queue will never take it as it is.
    pub refused: bool,
}

/// Live states, those that need attention first.
const LIVE: [State; 4] = [State::Dead, State::Active, State::Waiting, State::Delayed];

/// One page and where it goes on. Completed jobs come from the history, newest first; live ones oldest first, queue by
/// queue. `pool` is asked only for completed jobs.
///
/// # Errors
/// Usage (2) for a cursor that is none; else as the stores say.
pub async fn list(
    client: &Client,
    pool: impl AsyncFnOnce() -> Result<PgPool, Failure>,
    wanted: &Wanted,
    limit: u32,
    cursor: Option<&str>,
) -> Result<(Vec<Row>, Option<String>), Failure> {
    if wanted.state == Some(State::Completed) {
        return completed(&pool().await?, wanted, limit, cursor).await;
    }
    let queues = match &wanted.queue {
        Some(queue) => vec![queue.clone()],
        None => client.queues().await.map_err(|error| queue_failure(&error))?,
    };
    let states: &[State] = wanted.state.as_ref().map_or(&LIVE, std::slice::from_ref);
    let places: Vec<(&str, State)> =
        queues.iter().flat_map(|queue| states.iter().map(move |state| (queue.as_str(), *state))).collect();
    let (mut rows, mut inner) = (Vec::new(), None);
    let mut at = 0;
    if let Some(text) = cursor {
        let (place, rest) = read_cursor(text, &places).ok_or_else(invalid_cursor)?;
        at = place;
        inner = rest;
    }
    while let Some((queue, state)) = places.get(at) {
        let filter = ListFilter {
            kind: wanted.kind.clone(),
            tenant: wanted.tenant.clone(),
            error_contains: wanted.error_contains.clone(),
            older_than: wanted.older_than,
            limit: limit as usize - rows.len(),
            cursor: inner.take(),
            ..ListFilter::of(*state)
        };
        let page = client.list(queue, &filter).await.map_err(|error| queue_failure(&error))?;
        rows.extend(page.jobs.into_iter().map(|job| Row::Live(Box::new(job))));
        match page.next {
            Some(next) if rows.len() >= limit as usize => {
                return Ok((rows, Some(write_cursor(queue, *state, Some(&next)))));
            }
            // The page was cut because much was looked at and little matched: go on within this command.
            Some(next) => inner = Some(next),
            None => {
                at += 1;
                if rows.len() >= limit as usize {
                    let next = places.get(at).map(|(queue, state)| write_cursor(queue, *state, None));
                    return Ok((rows, next));
                }
            }
        }
    }
    Ok((rows, None))
}

async fn completed(
    pool: &PgPool,
    wanted: &Wanted,
    limit: u32,
    cursor: Option<&str>,
) -> Result<(Vec<Row>, Option<String>), Failure> {
    let filter = history::Filter {
        outcome: Some("completed".to_owned()),
        queue: wanted.queue.clone(),
        kind: wanted.kind.clone(),
        tenant: wanted.tenant.clone(),
        error_contains: wanted.error_contains.clone(),
        before: wanted.older_than.and_then(|age| Timestamp::now().checked_sub(age).ok()),
        ..history::Filter::default()
    };
    let limit = u16::try_from(limit).unwrap_or(u16::MAX);
    let page = history::list(pool, &filter, cursor, limit).await.map_err(|error| match error {
        CursorError::Cursor(_) => invalid_cursor(),
        CursorError::Database(error) => database_failure(&error),
    })?;
    Ok((page.rows.into_iter().map(|row| Row::Past(Box::new(row))).collect(), page.next))
}

fn invalid_cursor() -> Failure {
    Failure::usage(
        "invalid_cursor",
        "--cursor is no cursor of this list",
        "Pass the `next` of the page before.",
    )
}

/// `<queue>:<state>:<where that list goes on>`
fn write_cursor(queue: &str, state: State, inner: Option<&str>) -> String {
    format!("{queue}:{}:{}", state.as_str(), inner.unwrap_or_default())
}

fn read_cursor(text: &str, places: &[(&str, State)]) -> Option<(usize, Option<String>)> {
    let mut parts = text.splitn(3, ':');
    let (queue, state, inner) = (parts.next()?, parts.next()?, parts.next()?);
    let at = places.iter().position(|(q, s)| *q == queue && s.as_str() == state)?;
    Some((at, Some(inner.to_owned()).filter(|inner| !inner.is_empty())))
}

/// Everything known about one job.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// The job as it is, or as its last record says.
    #[serde(flatten)]
    pub job: Row,
    /// What the history says of it, oldest first; absent when PostgreSQL could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<Vec<HistoryRow>>,
}

/// Shows one job: the live one, else what the history remembers. `pool` may be away: then the live job is shown alone.
///
/// # Errors
/// Not found (3); else as the stores say.
pub async fn show(
    client: &Client,
    pool: Result<&PgPool, &Failure>,
    queue: Option<&str>,
    id: &str,
) -> Result<Shown, Failure> {
    let live = locate(client, queue, id).await?;
    let past = match pool {
        Ok(pool) => Some(history::of_job(pool, queue, id).await.map_err(|error| database_failure(&error))?),
        Err(failure) if live.is_none() => return Err(failure.clone()),
        Err(_) => None,
    };
    match (live, past) {
        // A remembered id says that the job is done, and no more: its record says what it was.
        (Some(live), Some(mut past)) if live.kind.is_empty() && !past.is_empty() => {
            let last = past.pop().map(Box::new);
            let job = last.clone().map_or(Row::Live(Box::new(live)), Row::Past);
            past.extend(last.map(|row| *row));
            Ok(Shown { job, history: Some(past) })
        }
        (Some(live), past) => Ok(Shown { job: Row::Live(Box::new(live)), history: past }),
        (None, Some(past)) => match (past.last().cloned(), pool) {
            (Some(last), _) => Ok(Shown { job: Row::Past(Box::new(last)), history: Some(past) }),
            (None, Ok(pool)) => match in_outbox(pool, id).await.map_err(|error| database_failure(&error))? {
                Some(row) => Ok(Shown { job: Row::Outbox(Box::new(row)), history: Some(past) }),
                None => Err(not_found(id)),
            },
            (None, Err(_)) => Err(not_found(id)),
        },
        (None, None) => Err(not_found(id)),
    }
}

async fn in_outbox(pool: &PgPool, id: &str) -> Result<Option<OutboxRow>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT id, kind, queue, created_at, last_error, refused_at IS NOT NULL FROM ops.outbox \
         WHERE id = $1 AND relayed_at IS NULL",
    )
    .bind(id)
    .fetch_optional(pool)
    .await?;
    row.map(|row| {
        Ok(OutboxRow {
            id: row.try_get(0)?,
            kind: row.try_get(1)?,
            queue: row.try_get(2)?,
            state: "outbox",
            enqueued_at: row.try_get::<jiff_sqlx::Timestamp, _>(3)?.to_jiff(),
            error: row.try_get(4)?,
            refused: row.try_get(5)?,
        })
    })
    .transpose()
}

fn not_found(id: &str) -> Failure {
    Failure::not_found(
        "job_not_found",
        format!("no queue and no history holds a job with the id `{id}`"),
        "Look with `jobs list`; ids are case-sensitive.",
    )
}

/// Finds a live job in its queue, or in any.
///
/// # Errors
/// As Redis says.
pub async fn locate(client: &Client, queue: Option<&str>, id: &str) -> Result<Option<JobView>, Failure> {
    let found = match queue {
        Some(queue) => client.show(queue, id).await,
        None => client.find(id).await,
    };
    found.map_err(|error| queue_failure(&error))
}

/// Numbers in the shape that dashboards of the platform know: `failed` is what was given up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Numbers {
    /// Ready to run.
    pub waiting: u64,
    /// Running.
    pub active: u64,
    /// Ever completed.
    pub completed: u64,
    /// Given up: the same as `dead`.
    pub failed: u64,
    /// Not yet due.
    pub delayed: u64,
    /// Given up, waiting for a person.
    pub dead: u64,
    /// All of the above, each once.
    pub total: u64,
}

impl Numbers {
    /// Those of one queue.
    #[must_use]
    pub fn of(stats: &QueueStats) -> Self {
        Self {
            waiting: stats.waiting,
            active: stats.active,
            completed: stats.completed,
            failed: stats.dead,
            delayed: stats.delayed,
            dead: stats.dead,
            total: stats.waiting + stats.active + stats.completed + stats.dead + stats.delayed,
        }
    }

    fn add(&mut self, other: &Self) {
        self.waiting += other.waiting;
        self.active += other.active;
        self.completed += other.completed;
        self.failed += other.failed;
        self.delayed += other.delayed;
        self.dead += other.dead;
        self.total += other.total;
    }
}

/// Numbers of one queue.
#[derive(Clone, Debug, Serialize)]
pub struct QueueNumbers {
    /// The queue.
    pub queue: String,
    /// Its numbers.
    #[serde(flatten)]
    pub numbers: Numbers,
    /// Ever accepted.
    pub accepted: u64,
    /// Ever cancelled.
    pub cancelled: u64,
    /// Ever discarded by an operator.
    pub discarded: u64,
    /// Ever removed by retention or a clean-up.
    pub removed: u64,
    /// Every accepted job is in one place, or its end was counted.
    pub balances: bool,
}

/// Numbers of all queues together, and of each.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// All together.
    #[serde(flatten)]
    pub all: Numbers,
    /// Each.
    pub queues: Vec<QueueNumbers>,
    /// Always absent: this list has one page.
    pub next: Option<String>,
}

/// Counts jobs, of one queue or of all.
///
/// # Errors
/// Not found (3) for a queue that was never used; else as Redis says.
pub async fn stats(client: &Client, queue: Option<&str>) -> Result<Stats, Failure> {
    let names = match queue {
        Some(queue) => vec![super::queues::known(client, queue).await?],
        None => super::queues::names(client).await?,
    };
    let (mut all, mut queues) = (Numbers::default(), Vec::new());
    for name in names {
        let stats = client.stats(&name).await.map_err(|error| queue_failure(&error))?;
        let numbers = Numbers::of(&stats);
        all.add(&numbers);
        queues.push(QueueNumbers {
            queue: name,
            numbers,
            accepted: stats.accepted,
            cancelled: stats.cancelled,
            discarded: stats.discarded,
            removed: stats.removed,
            balances: stats.balances(),
        });
    }
    Ok(Stats { all, queues, next: None })
}

/// One line about a job, for tables.
#[must_use]
pub fn cells(row: &Row) -> Cells {
    match row {
        Row::Live(job) => Cells {
            id: job.id.to_string(),
            kind: job.kind.clone(),
            queue: job.queue.clone(),
            state: job.state.as_str().to_owned(),
            since: job.dead_at.or(job.enqueued_at),
            attempts: job.attempts.to_string(),
            note: job
                .dead_reason
                .map(|reason| reason.as_str().to_owned())
                .into_iter()
                .chain(job.error.clone())
                .collect::<Vec<_>>()
                .join(": "),
        },
        Row::Outbox(row) => Cells {
            id: row.id.clone(),
            kind: row.kind.clone(),
            queue: row.queue.clone(),
            state: row.state.to_owned(),
            since: Some(row.enqueued_at),
            attempts: "0".to_owned(),
            note: row.error.clone().unwrap_or_else(|| "waits to be brought to its queue".to_owned()),
        },
        Row::Past(row) => Cells {
            id: row.id.clone(),
            kind: row.kind.clone(),
            queue: row.queue.clone(),
            state: row.outcome.clone(),
            since: Some(row.finished_at),
            attempts: row.attempt.to_string(),
            note: row.reason.clone().into_iter().chain(row.error.clone()).collect::<Vec<_>>().join(": "),
        },
    }
}

/// A job's cells of a table.
#[derive(Clone, Debug)]
pub struct Cells {
    /// Id.
    pub id: String,
    /// Kind.
    pub kind: String,
    /// Queue.
    pub queue: String,
    /// State.
    pub state: String,
    /// Since when: dead, finished or enqueued.
    pub since: Option<Timestamp>,
    /// Attempts.
    pub attempts: String,
    /// Why it is dead, and its last error.
    pub note: String,
}

impl Row {
    /// As JSON, for text output; without payload and result, which are their senders' and may be more than a value can hold.
    #[must_use]
    pub fn value(&self) -> Value {
        let mut row = self.clone();
        match &mut row {
            Self::Live(job) => job.payload = None,
            Self::Past(row) => (row.payload, row.result) = (None, None),
            Self::Outbox(_) => {}
        }
        serde_json::to_value(row).unwrap_or_default()
    }

    /// Its payload as it was sent.
    #[must_use]
    pub fn payload(&self) -> Option<&RawValue> {
        match self {
            Self::Live(job) => job.payload.as_deref(),
            Self::Past(row) => row.payload.as_deref(),
            Self::Outbox(_) => None,
        }
    }

    /// What its handler left, as JSON.
    #[must_use]
    pub fn result(&self) -> Option<String> {
        match self {
            Self::Live(job) => job.result.as_ref().map(ToString::to_string),
            Self::Past(row) => row.result.as_ref().map(|result| result.get().to_owned()),
            Self::Outbox(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_names_queue_state_and_place() {
        let places = [("a", State::Dead), ("a", State::Waiting), ("b", State::Dead)];
        let read = |text: &str| read_cursor(text, &places);
        assert_eq!(read(&write_cursor("a", State::Waiting, Some("50"))), Some((1, Some("50".into()))));
        assert_eq!(read(&write_cursor("b", State::Dead, None)), Some((2, None)));
        for wrong in ["", "a", "a:dead", "c:dead:1", "a:active:1"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
