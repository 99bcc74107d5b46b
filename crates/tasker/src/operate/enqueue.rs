//! Enqueueing from outside: one job, or a file of them.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;
use voiceai_cli::Failure;
use voiceai_postgres::PgPool;
use voiceai_queue::outbox::{self, Inserted, OutboxJob};
use voiceai_queue::{AddOutcome, Added, Client, JobId, NewJob, QueueError, UniqueMode};

use super::{database_failure, queue_failure};
use crate::jobs::registry::Kinds;

/// A job as it is asked for; also one line of a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Its kind.
    pub kind: String,
    /// Its payload.
    pub payload: Box<RawValue>,
    /// Its queue; else its kind's.
    #[serde(default)]
    pub queue: Option<String>,
    /// 0 to 10; else its kind's.
    #[serde(default)]
    pub priority: Option<u8>,
    /// Not before this long has passed.
    #[serde(default)]
    pub delay_ms: Option<u64>,
    /// Not before this time.
    #[serde(default, rename = "at")]
    pub at: Option<Timestamp>,
    /// At most one live job with this key.
    #[serde(default)]
    pub unique: Option<String>,
    /// An id of the caller's own.
    #[serde(default)]
    pub id: Option<String>,
    /// Whom it is for.
    #[serde(default)]
    pub tenant: Option<String>,
}

/// A job that was accepted, or was there before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Enqueued {
    /// Its id; of a duplicate, the id of the job that holds its unique key.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// Its queue.
    pub queue: String,
    /// The id, or its unique key, was there before: nothing was added.
    pub known: bool,
    /// It was not added because another live job holds its unique key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
    /// `queue`, or `outbox` when Redis did not take it and it waits in PostgreSQL.
    pub route: &'static str,
}

impl Enqueued {
    fn of(job: &NewJob, added: Added) -> Self {
        Self {
            id: added.id.to_string(),
            kind: job.kind().to_owned(),
            queue: job.queue_name().to_owned(),
            known: added.is_known(),
            duplicate: added.outcome == AddOutcome::Duplicate,
            route: "queue",
        }
    }
}

impl Order {
    /// The job, checked, and what is odd about it.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn job(self, kinds: &Kinds) -> Result<(NewJob, Option<String>), String> {
        let warning = oddity(&self.kind, self.payload.get(), kinds);
        let known = kinds.get(&self.kind);
        let queue = self.queue.unwrap_or_else(|| kinds.queue_of(&self.kind).to_owned());
        let priority = self.priority.unwrap_or_else(|| known.map_or(0, |kind| kind.priority));
        let mut job = NewJob::raw(self.kind, self.payload).queue(queue).priority(priority);
        match (self.delay_ms, self.at) {
            (Some(_), Some(_)) => return Err("delay_ms and at are both given; keep one".to_owned()),
            (Some(delay), None) => job = job.delay(Duration::from_millis(delay)),
            (None, Some(at)) => job = job.at(at),
            (None, None) => {}
        }
        if let Some(key) = self.unique {
            job = job.unique(key, UniqueMode::Reject);
        }
        let id = self.id.or_else(|| known?.new_id(job.payload().get()));
        if let Some(id) = id {
            job = job.id(JobId::chosen(id).map_err(|error| error.to_string())?);
        }
        if let Some(tenant) = self.tenant {
            job = job.tenant(tenant);
        }
        job.check().map_err(|error| error.to_string())?;
        Ok((job, warning))
    }
}

/// An unknown kind is accepted: a newer worker may know it. So is a payload that its kind would not take: the job is parked
/// as `bad_payload`, where a person finds it.
fn oddity(kind: &str, payload: &str, kinds: &Kinds) -> Option<String> {
    match kinds.get(kind) {
        None => {
            let known: Vec<_> = kinds.names().collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Some(format!(
                "no handler for kind `{kind}` in this version with these settings{}; a worker without one parks the job as \
                 no_handler (known: {known})",
                super::schedules::unset(kind)
            ))
        }
        Some(known) => known.check_payload(payload).err().map(|problem| {
            format!(
                "the payload is not that of a `{kind}` job ({problem}); a worker will park it as bad_payload"
            )
        }),
    }
}

/// Enqueues one job. When Redis is away or the queue's producers are paused, it becomes a row of the outbox and comes to its
/// queue by itself; a draining or full queue refuses it.
///
/// # Errors
/// As [`queue_failure`] when neither takes it.
pub async fn one(client: Option<&Client>, pool: Option<&PgPool>, job: NewJob) -> Result<Enqueued, Failure> {
    // The id is fixed before the first call, so that a repetition after a lost answer is known.
    let job = if job.chosen_id().is_some() { job } else { with_id(job)? };
    let refused = match client {
        Some(client) => match client.add(job.clone(), None).await {
            Ok(added) => return Ok(Enqueued::of(&job, added)),
            Err(error) if goes_to_outbox(&error) => queue_failure(&error),
            Err(error) => return Err(queue_failure(&error)),
        },
        None => away(),
    };
    let Some(pool) = pool else { return Err(refused) };
    let row = OutboxJob::from_job(job.clone(), false)
        .map_err(|error| Failure::usage("invalid_job", error.to_string(), "Correct the job."))?;
    let inserted = outbox::insert(pool, &row).await.map_err(|error| refused.and(database_failure(&error)))?;
    Ok(Enqueued {
        id: row.id,
        kind: job.kind().to_owned(),
        queue: job.queue_name().to_owned(),
        known: inserted == Inserted::Known,
        duplicate: false,
        route: "outbox",
    })
}

trait And {
    fn and(&self, other: Failure) -> Failure;
}

impl And for Failure {
    fn and(&self, other: Failure) -> Failure {
        Failure {
            message: format!("{}; nor did the outbox take it: {}", self.message, other.message),
            ..self.clone()
        }
    }
}

fn with_id(job: NewJob) -> Result<NewJob, Failure> {
    let id = JobId::chosen(Uuid::now_v7().simple().to_string()).map_err(|error| queue_failure(&error))?;
    Ok(job.id(id))
}

fn goes_to_outbox(error: &QueueError) -> bool {
    match error {
        QueueError::ProducersPaused { .. } => true,
        QueueError::Redis { source, .. } => source.outcome_unknown() || source.is_unavailable(),
        _ => false,
    }
}

/// What is wrong with one line of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LineError {
    /// 1 for the first.
    pub line: u64,
    /// What is wrong.
    pub problem: String,
}

/// What a file holds, once every line was looked at.
#[derive(Debug, Default)]
pub struct Checked {
    /// How many jobs.
    pub jobs: u64,
    /// What is wrong, the first hundred.
    pub errors: Vec<LineError>,
    /// How many lines are wrong.
    pub wrong: u64,
    /// What is odd, once for each kind.
    pub warnings: Vec<String>,
}

/// Errors kept for the message; the rest is only counted.
const ERRORS_SHOWN: usize = 100;

/// Looks at every line and enqueues nothing.
///
/// # Errors
/// When the file cannot be read.
pub fn check_lines(reader: impl BufRead, kinds: &Kinds) -> std::io::Result<Checked> {
    let mut checked = Checked::default();
    let mut odd: BTreeMap<String, (u64, String, u64)> = BTreeMap::new();
    each_line(reader, |line, text| {
        match order(text).and_then(|order| Ok((order.kind.clone(), order.job(kinds)?.1))) {
            Ok((kind, warning)) => {
                checked.jobs += 1;
                if let Some(warning) = warning {
                    let of_kind = odd.entry(kind).or_insert_with(|| (line, warning, 0_u64));
                    of_kind.2 += 1;
                }
            }
            Err(problem) => {
                checked.wrong += 1;
                if checked.errors.len() < ERRORS_SHOWN {
                    checked.errors.push(LineError { line, problem });
                }
            }
        }
        Ok(())
    })?;
    checked.warnings = odd
        .into_values()
        .map(|(line, warning, count)| match count {
            1 => format!("line {line}: {warning}"),
            many => format!("line {line} and {} more: {warning}", many - 1),
        })
        .collect();
    Ok(checked)
}

fn order(text: &str) -> Result<Order, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// Calls `each` for every line that is not blank, with its number. One line is held in memory at a time.
fn each_line(
    mut reader: impl BufRead,
    mut each: impl FnMut(u64, &str) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let (mut text, mut line) = (String::new(), 0);
    loop {
        text.clear();
        line += 1;
        let read = reader
            .read_line(&mut text)
            .map_err(|error| std::io::Error::new(error.kind(), format!("line {line}: {error}")))?;
        if read == 0 {
            return Ok(());
        }
        let trimmed = text.trim();
        if !trimmed.is_empty() {
            each(line, trimmed)?;
        }
    }
}

/// Jobs in one call.
const BULK: usize = 1_000;

/// What was enqueued before something went wrong, and what did.
#[derive(Debug)]
pub struct Interrupted {
    /// Jobs that were accepted or known.
    pub done: u64,
    /// The line from which on nothing is known to be enqueued.
    pub from_line: u64,
    /// Why it stopped.
    pub failure: Failure,
}

/// Enqueues every line, in calls of 1,000, and hands each answer to `done`. The lines were checked before. What Redis does not
/// take, as it is away or the queue's producers are paused, becomes rows of the outbox, as with [`one`].
///
/// # Errors
/// Says how far it came.
pub async fn all_lines(
    client: Option<&Client>,
    pool: Option<&PgPool>,
    mut reader: impl BufRead,
    kinds: &Kinds,
    mut done: impl FnMut(Enqueued),
) -> Result<u64, Interrupted> {
    let (mut count, mut line) = (0, 1);
    loop {
        let (mut jobs, next_line) = match next_bulk(&mut reader, line, kinds) {
            Ok(bulk) => bulk,
            Err(failure) => return Err(Interrupted { done: count, from_line: line, failure }),
        };
        if jobs.is_empty() {
            return Ok(count);
        }
        // Queue by queue, as one may refuse what another takes.
        while let Some((first, _)) = jobs.first() {
            let queue = first.queue_name().to_owned();
            let end = jobs.iter().position(|(job, _)| job.queue_name() != queue).unwrap_or(jobs.len());
            let rest = jobs.split_off(end);
            let (part, lines): (Vec<_>, Vec<_>) = std::mem::replace(&mut jobs, rest).into_iter().unzip();
            let from_line = lines.first().copied().unwrap_or(line);
            let answers = many(client, pool, part).await;
            for answer in answers.map_err(|failure| Interrupted { done: count, from_line, failure })? {
                count += 1;
                done(answer);
            }
        }
        line = next_line;
    }
}

/// Enqueues jobs of one queue.
async fn many(
    client: Option<&Client>,
    pool: Option<&PgPool>,
    jobs: Vec<NewJob>,
) -> Result<Vec<Enqueued>, Failure> {
    let refused = match client {
        Some(client) => match client.enqueue_bulk(jobs.clone()).await {
            Ok(added) => {
                return Ok(jobs.iter().zip(added).map(|(job, added)| Enqueued::of(job, added)).collect());
            }
            // Nothing was taken. Where that is not known the jobs, most of them without an id, might come twice.
            Err(error @ QueueError::ProducersPaused { .. }) => queue_failure(&error),
            Err(error) => return Err(queue_failure(&error)),
        },
        None => away(),
    };
    let Some(pool) = pool else { return Err(refused) };
    let rows = jobs.into_iter().map(|job| OutboxJob::from_job(job, false)).collect::<Result<Vec<_>, _>>();
    let rows = rows.map_err(|error| Failure::usage("invalid_job", error.to_string(), "Correct the job."))?;
    let inserted = outbox::insert_many(pool, &rows).await;
    let inserted = inserted.map_err(|error| refused.and(database_failure(&error)))?;
    Ok(rows
        .into_iter()
        .zip(inserted)
        .map(|(row, inserted)| Enqueued {
            id: row.id,
            kind: row.kind,
            queue: row.queue,
            known: inserted == Inserted::Known,
            duplicate: false,
            route: "outbox",
        })
        .collect())
}

fn away() -> Failure {
    Failure::unreachable("redis_unreachable", "Redis cannot be reached", "Check REDIS_URL and the server.")
}

/// Jobs with their lines, and the line after.
type Bulk = (Vec<(NewJob, u64)>, u64);

fn next_bulk(reader: &mut impl BufRead, first: u64, kinds: &Kinds) -> Result<Bulk, Failure> {
    let (mut jobs, mut line, mut text) = (Vec::new(), first, String::new());
    while jobs.len() < BULK {
        text.clear();
        let read = reader.read_line(&mut text).map_err(|error| unreadable(&error))?;
        if read == 0 {
            break;
        }
        let trimmed = text.trim();
        if !trimmed.is_empty() {
            let job = order(trimmed).and_then(|order| order.job(kinds)).map_err(|problem| {
                let message = format!("line {line}: {problem}; the file has changed since it was checked");
                Failure::refused("invalid_lines", message, "Leave the file alone while it is read.")
            })?;
            jobs.push((job.0, line));
        }
        line += 1;
    }
    Ok((jobs, line))
}

/// A file that cannot be read.
#[must_use]
pub fn unreadable(error: &std::io::Error) -> Failure {
    Failure::usage(
        "file_unreadable",
        format!("the file cannot be read: {error}"),
        "Check the path and its rights.",
    )
}

#[cfg(test)]
mod tests {
    use voiceai_config::{Binary, Resolved};

    use super::*;
    use crate::settings::TaskerSettings;

    fn kinds() -> Kinds {
        let resolved = Resolved::from_pairs(Binary::Tasker, [("DIAGNOSTIC_JOBS", "true")]);
        Kinds::of(&resolved.read(TaskerSettings::read).unwrap().settings)
    }

    fn check(text: &str) -> Checked {
        check_lines(text.as_bytes(), &kinds()).unwrap()
    }

    #[test]
    fn a_line_may_name_everything() {
        let line = r#"{"kind":"k","payload":{"a":1},"queue":"q","priority":3,"delay_ms":5,"unique":"u","id":"i","tenant":"t"}"#;
        let (job, warning) = order(line).unwrap().job(&kinds()).unwrap();
        assert_eq!((job.kind(), job.queue_name(), job.payload().get()), ("k", "q", r#"{"a":1}"#));
        assert_eq!(job.chosen_id().unwrap().as_str(), "i");
        assert!(warning.unwrap().contains("no handler for kind `k`"));
    }

    #[test]
    fn every_wrong_line_is_named_by_its_number() {
        let text = "{\"kind\":\"diagnostic.probe\",\"payload\":{}}\n\n{\"kind\":\"k\"}\nnot json\n\
                    {\"kind\":\"k\",\"payload\":{},\"priority\":11}\n{\"kind\":\"k\",\"payload\":{},\"colour\":1}\n\
                    {\"kind\":\"no good\",\"payload\":{}}\n";
        let checked = check(text);
        assert_eq!((checked.jobs, checked.wrong), (1, 5));
        let lines: Vec<_> = checked.errors.iter().map(|error| error.line).collect();
        assert_eq!(lines, [3, 4, 5, 6, 7]);
        assert!(checked.errors[0].problem.contains("payload"), "{:?}", checked.errors);
        assert!(checked.errors[2].problem.contains("priority"), "{:?}", checked.errors);
        assert!(checked.errors[3].problem.contains("colour"), "{:?}", checked.errors);
    }

    #[test]
    fn a_payload_that_its_kind_would_not_take_is_a_warning() {
        let checked = check(r#"{"kind":"diagnostic.probe","payload":{"sleep_ms":"long"}}"#);
        assert_eq!(checked.wrong, 0);
        assert!(checked.warnings[0].contains("bad_payload"), "{:?}", checked.warnings);
    }

    #[test]
    fn thousands_of_wrong_lines_are_counted_and_a_hundred_shown() {
        let checked = check(&"x\n".repeat(5_000));
        assert_eq!((checked.wrong, checked.errors.len()), (5_000, 100));
    }
}
