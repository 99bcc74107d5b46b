//! One screen: who leads, who works, what waits, what was missed.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use voiceai_cli::Failure;
use voiceai_leader::{LeaderError, LeaderRecord};
use voiceai_postgres::{PgPool, term};
use voiceai_queue::{Client, QueueStats, cron, outbox};
use voiceai_service::failures;

use super::mail::mail_failure;
use super::queues::{self, Line};
use super::schedules::schedule_failure;
use super::webhook::webhook_failure;
use super::{Desk, database_failure};
use crate::jobs::backup;

/// The whole screen.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// When it was looked at.
    pub at: Timestamp,
    /// Who leads; absent when nobody does.
    pub leader: Option<Leader>,
    /// What stands in the leader key when it is no leader's record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader_problem: Option<String>,
    /// Live worker processes, each once.
    pub workers: Vec<WorkerProcess>,
    /// Queues.
    pub queues: Vec<Line>,
    /// Jobs that wait in PostgreSQL because Redis could not take them.
    pub outbox: Vec<outbox::Waiting>,
    /// Mail that is to be sent, and what stands in its way.
    pub mail: Mail,
    /// Webhooks: what waits, and which endpoints do not get their events.
    pub webhooks: voiceai_webhook::Backlog,
    /// Schedules.
    pub schedules: Schedules,
    /// Backups, as far as our own tables know.
    pub backups: Backups,
}

/// The leader.
#[derive(Clone, Debug, Serialize)]
pub struct Leader {
    /// As Redis names it.
    #[serde(flatten)]
    pub record: Elected,
    /// Why it holds still, if it does.
    pub held_reason: Option<String>,
}

/// Who was elected.
#[derive(Clone, Debug, Serialize)]
pub struct Elected {
    /// INSTANCE_ID.
    pub instance_id: String,
    /// Its host.
    pub host: String,
    /// Its process id.
    pub pid: u32,
    /// Its term.
    pub term: i64,
    /// Since when.
    pub elected_at: Timestamp,
}

/// A process that runs workers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct WorkerProcess {
    /// Its host.
    pub host: String,
    /// Its process id.
    pub pid: u32,
    /// The queues it works.
    pub queues: Vec<String>,
    /// Jobs that it runs at a time, all queues together.
    pub capacity: u64,
}

/// Mail in short.
#[derive(Clone, Debug, Serialize)]
pub struct Mail {
    /// How much is to be sent.
    #[serde(flatten)]
    pub backlog: voiceai_mail::Backlog,
    /// What it is kept from at present.
    pub pauses: Vec<voiceai_mail::operate::Pause>,
}

/// Schedules in short.
#[derive(Clone, Debug, Serialize)]
pub struct Schedules {
    /// All.
    pub total: usize,
    /// Those that are paused.
    pub paused: usize,
    /// Those that are switched off.
    pub disabled: usize,
    /// Those whose row cannot be understood.
    pub malformed: Vec<String>,
    /// Those whose next run should have been fired already.
    pub overdue: Vec<String>,
    /// Those whose last run failed.
    pub failing: Vec<String>,
    /// Slots that were missed, since the schedules exist.
    pub missed_total: i64,
}

/// Backups in short.
#[derive(Clone, Debug, Serialize)]
pub struct Backups {
    /// When the newest one was made.
    pub newest_at: Option<Timestamp>,
    /// Its age.
    pub newest_age_seconds: Option<i64>,
    /// When the newest one that a restore proved was made.
    pub newest_proved_at: Option<Timestamp>,
    /// Its age.
    pub newest_proved_age_seconds: Option<i64>,
    /// When the newest failure was.
    pub last_failure_at: Option<Timestamp>,
}

/// Looks at everything.
///
/// # Errors
/// As the stores say.
pub async fn look(desk: &Desk, leader_key: &str) -> Result<Status, Failure> {
    let names = queues::names(&desk.client).await?;
    let earlier = queues::look(&desk.client, &names).await?;
    let (leader, leader_problem) = leader(&desk.client, &desk.pool, leader_key).await?;
    let outbox = outbox::waiting(&desk.pool).await.map_err(|error| database_failure(&error))?;
    let schedules = schedules_in_short(&desk.pool).await?;
    let mail = mail(&desk.pool).await?;
    let webhooks = voiceai_webhook::backlog(&desk.pool).await.map_err(|error| webhook_failure(&error))?;
    tokio::time::sleep(WATCH).await;
    let later = queues::look(&desk.client, &names).await?;
    let at = Timestamp::now();
    Ok(Status {
        at,
        leader,
        leader_problem,
        workers: processes(&later),
        queues: earlier.iter().zip(&later).map(|(earlier, later)| Line::of(earlier, later)).collect(),
        outbox,
        mail,
        webhooks,
        schedules,
        backups: backups(&desk.pool, at).await?,
    })
}

async fn mail(pool: &PgPool) -> Result<Mail, Failure> {
    let backlog = voiceai_mail::backlog(pool).await.map_err(|error| mail_failure(&error))?;
    let pauses = voiceai_mail::operate::pauses(pool).await.map_err(|error| mail_failure(&error))?;
    Ok(Mail { backlog, pauses })
}

/// How long the pace of the queues is watched.
const WATCH: Duration = Duration::from_millis(500);

/// The processes behind the workers of all queues.
fn processes(queues: &[QueueStats]) -> Vec<WorkerProcess> {
    let mut all: Vec<WorkerProcess> = Vec::new();
    for stats in queues {
        for worker in &stats.workers {
            let known =
                all.iter_mut().find(|process| process.host == worker.host && process.pid == worker.pid);
            match known {
                Some(process) => {
                    process.queues.push(stats.queue.clone());
                    process.capacity += u64::from(worker.concurrency);
                }
                None => all.push(WorkerProcess {
                    host: worker.host.clone(),
                    pid: worker.pid,
                    queues: vec![stats.queue.clone()],
                    capacity: u64::from(worker.concurrency),
                }),
            }
        }
    }
    all.sort();
    all
}

/// Who leads, or what stands in the leader key instead.
async fn leader(
    client: &Client,
    pool: &PgPool,
    key: &str,
) -> Result<(Option<Leader>, Option<String>), Failure> {
    let held = term::held_reason(pool, key).await.map_err(|error| database_failure(&error))?;
    match voiceai_leader::current(client.redis(), key).await {
        Ok(record) => Ok((record.map(|record| Leader { record: record.into(), held_reason: held }), None)),
        Err(LeaderError::Read { source, .. }) => Err(failures::redis(&source)),
        Err(other) => Ok((None, Some(other.to_string()))),
    }
}

impl From<LeaderRecord> for Elected {
    fn from(record: LeaderRecord) -> Self {
        let LeaderRecord { instance_id, host, pid, term, elected_at } = record;
        Self { instance_id, host, pid, term, elected_at }
    }
}

async fn backups(pool: &PgPool, now: Timestamp) -> Result<Backups, Failure> {
    let newest = backup::newest(pool).await.map_err(|error| database_failure(&error))?;
    let age = |at: Option<Timestamp>| at.map(|at| now.duration_since(at).as_secs());
    Ok(Backups {
        newest_at: newest.stored_at,
        newest_age_seconds: age(newest.stored_at),
        newest_proved_at: newest.proved_at,
        newest_proved_age_seconds: age(newest.proved_at),
        last_failure_at: newest.failed_at,
    })
}

/// Schedules in short.
///
/// # Errors
/// As the database says.
pub async fn schedules_in_short(pool: &PgPool) -> Result<Schedules, Failure> {
    let lines = cron::list(pool).await.map_err(|error| schedule_failure(&error))?;
    let names = |wanted: &dyn Fn(&cron::Line) -> bool| {
        lines.iter().filter(|line| wanted(line)).map(|line| line.name.clone()).collect::<Vec<_>>()
    };
    let in_state = |state: &'static str| move |line: &cron::Line| line.state == state;
    let details = |line: &cron::Line| line.details.clone();
    Ok(Schedules {
        total: lines.len(),
        paused: names(&in_state("paused")).len(),
        disabled: names(&in_state("disabled")).len(),
        malformed: names(&in_state("malformed")),
        overdue: names(&|line| details(line).is_some_and(|details| details.overdue_seconds.is_some())),
        failing: names(&|line| details(line).is_some_and(|details| details.record.consecutive_failures > 0)),
        missed_total: lines.iter().filter_map(details).map(|details| details.record.missed_total).sum(),
    })
}
