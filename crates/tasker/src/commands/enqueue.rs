//! `jobs enqueue`

use std::fs::File;
use std::io::{BufReader, Seek as _, Write as _};
use std::path::Path;

use serde_json::json;
use serde_json::value::RawValue;
use voiceai_cli::{Failure, Output, Surroundings, actor};
use voiceai_postgres::PgPool;
use voiceai_queue::{Client, NewJob};

use super::{Service, warn};
use crate::cli::Enqueue;
use crate::jobs::registry::Kinds;
use crate::operate::enqueue::{self, Checked, Enqueued, Order};
use crate::operate::{Act, trail};

pub(super) async fn run(command: Enqueue, service: &Service, output: Output) -> Result<(), Failure> {
    let kinds = Kinds::of(&service.settings);
    match &command.file {
        Some(path) => many(&command, path, &kinds, service, output).await,
        None => one(command, &kinds, service, output).await,
    }
}

/// Enqueueing asks for no name: the job itself is the record. Where one is known it is kept.
fn by(command: &Enqueue) -> Result<Act, Failure> {
    let around = Surroundings::read();
    let name = match actor(command.mutation.as_name.as_deref(), &around) {
        Ok(actor) => actor.to_string(),
        Err(failure) if command.mutation.as_name.is_some() => return Err(failure),
        Err(_) => format!("{}@{}", around.os_user, around.host),
    };
    Ok(Act { actor: name, reason: command.mutation.reason.clone() })
}

async fn one(command: Enqueue, kinds: &Kinds, service: &Service, output: Output) -> Result<(), Failure> {
    let act = by(&command)?;
    let (job, warning) = job(&command, kinds)?;
    if let Some(warning) = &warning {
        warn(warning);
    }
    if command.mutation.dry_run {
        let would = json!({
            "dry_run": true, "id": job.chosen_id(), "kind": job.kind(), "queue": job.queue_name(), "warning": warning,
        });
        return output
            .one(&would, |_| format!("would enqueue a {} job into {}\n", job.kind(), job.queue_name()));
    }
    let (client, pool) = stores(service).await?;
    let enqueued = enqueue::one(client.as_ref(), pool.as_ref(), job).await?;
    if enqueued.route == "outbox" {
        warn("the queue did not take the job; it waits in the outbox and comes to the queue by itself");
    }
    keep(pool.as_ref(), &act, &enqueued.id, json!({ "kind": enqueued.kind, "queue": enqueued.queue })).await;
    let mut document = json!(enqueued);
    if let Some(warning) = warning {
        document["warning"] = warning.into();
    }
    output.one(&document, |_| format!("{}\n", enqueued.id))
}

/// The queues and the outbox behind them: one of the two is enough, where the other is only away.
async fn stores(service: &Service) -> Result<(Option<Client>, Option<PgPool>), Failure> {
    let (client, pool) = tokio::join!(super::client(service), service.pool());
    match client {
        Err(failure) if pool.is_err() || failure.exit != voiceai_cli::ExitCode::Unreachable => Err(failure),
        client => Ok((client.ok(), pool.ok())),
    }
}

/// An enqueued job is enqueued: an audit row that cannot be written is said, not failed for.
async fn keep(pool: Option<&PgPool>, act: &Act, subject: &str, details: serde_json::Value) {
    let kept = match pool {
        Some(pool) => trail::record(pool, act, "jobs.enqueue", subject, details).await,
        None => Err(Failure::unreachable("postgres_unreachable", "PostgreSQL cannot be reached", "")),
    };
    if let Err(failure) = kept {
        warn(&format!("the audit row could not be written: {}", failure.message));
    }
}

fn job(command: &Enqueue, kinds: &Kinds) -> Result<(NewJob, Option<String>), Failure> {
    let order = Order {
        kind: command.kind.clone().unwrap_or_default(),
        payload: payload(&command.payload)?,
        queue: command.queue.clone(),
        priority: command.priority,
        delay_ms: command.delay.map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)),
        at: command.at,
        unique: command.unique.clone(),
        id: command.id.clone(),
        tenant: command.tenant.clone(),
    };
    order.job(kinds).map_err(|problem| Failure::usage("invalid_job", problem, "Correct the argument."))
}

/// JSON as an argument, or `@FILE`.
pub(super) fn payload(text: &str) -> Result<Box<RawValue>, Failure> {
    let text = match text.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            let message = format!("the payload file {path} cannot be read: {error}");
            Failure::usage("file_unreadable", message, "Check the path and its rights.")
        })?,
        None => text.to_owned(),
    };
    RawValue::from_string(text.trim().to_owned()).map_err(|error| {
        let message = format!("the payload is not JSON: {error}");
        Failure::usage(
            "invalid_payload",
            message,
            "Pass one JSON value, such as --payload '{\"id\":7}', or @FILE.",
        )
    })
}

async fn many(
    command: &Enqueue,
    path: &Path,
    kinds: &Kinds,
    service: &Service,
    output: Output,
) -> Result<(), Failure> {
    let act = by(command)?;
    let mut file = open(path)?;
    let checked =
        enqueue::check_lines(BufReader::new(&file), kinds).map_err(|error| enqueue::unreadable(&error))?;
    refuse_wrong(&checked, path)?;
    for warning in &checked.warnings {
        warn(warning);
    }
    if command.mutation.dry_run {
        let would = json!({ "dry_run": true, "jobs": [], "count": checked.jobs, "warnings": checked.warnings, "next": null });
        return output.one(&would, |_| format!("would enqueue {} jobs\n", checked.jobs));
    }
    file.rewind().map_err(|error| enqueue::unreadable(&error))?;
    let (client, pool) = stores(service).await?;
    let mut jobs: Vec<Enqueued> = Vec::new();
    let (mut stdout, mut waiting) = (std::io::stdout(), 0_u64);
    let done = |job: Enqueued| {
        waiting += u64::from(job.route == "outbox");
        if output.is_json() {
            jobs.push(job);
        } else {
            // Ids as they come, so that what was enqueued is known even if this process is killed.
            let _ = writeln!(stdout, "{}", job.id);
        }
    };
    let result = enqueue::all_lines(client.as_ref(), pool.as_ref(), BufReader::new(&file), kinds, done).await;
    if waiting > 0 {
        warn(&format!(
            "{waiting} jobs wait in the outbox, as their queue did not take them, and come to it by themselves"
        ));
    }
    let count = match &result {
        Ok(count) => *count,
        Err(interrupted) => interrupted.done,
    };
    keep(pool.as_ref(), &act, &path.display().to_string(), json!({ "jobs": count, "of": checked.jobs }))
        .await;
    if output.is_json() {
        let known = jobs.iter().filter(|job| job.known).count();
        let document = json!({
            "jobs": jobs, "count": count, "known": known, "warnings": checked.warnings, "next": null,
        });
        output.one(&document, |_| String::new())?;
    }
    match result {
        Ok(_) => Ok(()),
        Err(interrupted) if interrupted.done == 0 => Err(interrupted.failure),
        Err(interrupted) => Err(Failure::partial(
            "partly_enqueued",
            format!(
                "{} of {} jobs were enqueued, those before line {}: {}",
                interrupted.done, checked.jobs, interrupted.from_line, interrupted.failure.message
            ),
            format!(
                "Enqueue the lines from {} on; lines with an \"id\" may be repeated without harm.",
                interrupted.from_line
            ),
        )),
    }
}

/// A file that can be read twice: first to check every line, then to enqueue.
fn open(path: &Path) -> Result<File, Failure> {
    if path != Path::new("-") {
        let file = File::open(path).map_err(|error| {
            let message = format!("{} cannot be read: {error}", path.display());
            Failure::usage("file_unreadable", message, "Check the path and its rights.")
        })?;
        if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Ok(file);
        }
        return spooled(file);
    }
    spooled(std::io::stdin().lock())
}

/// A pipe cannot be rewound, so it is kept in a nameless temporary file.
fn spooled(mut from: impl std::io::Read) -> Result<File, Failure> {
    let mut spool = || -> std::io::Result<File> {
        let mut file = tempfile::tempfile()?;
        std::io::copy(&mut from, &mut file)?;
        file.rewind()?;
        Ok(file)
    };
    spool().map_err(|error| enqueue::unreadable(&error))
}

fn refuse_wrong(checked: &Checked, path: &Path) -> Result<(), Failure> {
    if checked.wrong == 0 {
        return Ok(());
    }
    let mut told: Vec<String> =
        checked.errors.iter().map(|error| format!("line {}: {}", error.line, error.problem)).collect();
    let more = checked.wrong - checked.errors.len() as u64;
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    Err(Failure::refused(
        "invalid_lines",
        format!(
            "{} lines of {} are wrong; nothing was enqueued\n  {}",
            checked.wrong,
            path.display(),
            told.join("\n  ")
        ),
        "Correct these lines; each is {\"kind\",\"payload\",\"queue\"?,\"priority\"?,\"delay_ms\"?,\"unique\"?,\"id\"?}.",
    ))
}
