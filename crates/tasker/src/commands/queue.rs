//! `queue …`

use serde_json::json;
use voiceai_cli::{Column, Failure, Mutation, Output, Question, confirm, human_duration};
use voiceai_queue::State;

use super::{Service, act, client, desk};
use crate::cli::{Clean, Purge, Queue, QueueSet};
use crate::operate::limits::{self, Change, Name, rate_text};
use crate::operate::queues::{self, Line, Shown};
use crate::operate::{Act, Desk, trail};

pub(super) async fn run(command: Queue, service: &Service, output: Output) -> Result<(), Failure> {
    match command {
        Queue::List => list(service, output).await,
        Queue::Show { queue } => show(&queue, service, output).await,
        Queue::Pause { queue, enqueue, mutation } => {
            let (name, what) = if enqueue {
                (Name::ProducersPaused, "Pause enqueueing to")
            } else {
                (Name::Paused, "Pause")
            };
            let verb = Verb { action: "queue.pause", question: what, object: &queue };
            change(&verb, vec![(name, Some("1".to_owned()))], None, &mutation, service, output).await
        }
        Queue::Resume { queue, mutation } => {
            let verb = Verb { action: "queue.resume", question: "Resume", object: &queue };
            let off = [Name::Paused, Name::ProducersPaused, Name::Draining].map(|name| (name, None));
            change(&verb, off.into(), None, &mutation, service, output).await
        }
        Queue::Drain { queue, wait, mutation } => drain(&queue, wait, &mutation, service, output).await,
        Queue::Purge(command) => purge(command, service, output).await,
        Queue::Clean(command) => clean(command, service, output).await,
        Queue::Set(command) => set(command, service, output).await,
    }
}

/// Columns of `queue list`, also used by `status`.
pub(super) fn columns<'c>() -> Vec<Column<'c, Line>> {
    let ms = |ms: u64| human_duration(std::time::Duration::from_millis(ms));
    vec![
        Column::new("QUEUE", |line: &Line| line.queue.clone()),
        Column::new("STATE", |line: &Line| line.state.clone()),
        Column::new("WAITING", |line: &Line| line.waiting.to_string()),
        Column::new("DELAYED", |line: &Line| line.delayed.to_string()),
        Column::new("ACTIVE", |line: &Line| line.active.to_string()),
        Column::new("DEAD", |line: &Line| line.dead.to_string()),
        Column::new("OLDEST", move |line: &Line| line.oldest_waiting_ms.map(ms).unwrap_or_default()),
        Column::new("WORKERS", |line: &Line| line.workers.to_string()),
        Column::new("RATE", |line: &Line| format!("{}/s", line.pace.rate_per_second)),
        Column::new("EMPTY IN", |line: &Line| match line.pace.time_to_empty_seconds {
            Some(seconds) => human_duration(std::time::Duration::from_secs_f64(seconds.clamp(0.0, 1e9))),
            None => "never at this rate".to_owned(),
        }),
    ]
}

async fn list(service: &Service, output: Output) -> Result<(), Failure> {
    let lines = queues::list(&client(service).await?).await?;
    output.list("queues", &lines, None, &columns())
}

async fn show(queue: &str, service: &Service, output: Output) -> Result<(), Failure> {
    let client = client(service).await?;
    let pool = service.pool().await;
    if let Err(failure) = &pool {
        super::warn(&format!("what operators have set cannot be read: {}", failure.message));
    }
    let shown = queues::show(&client, pool.as_ref().ok(), queue).await?;
    output.one(&shown, |shown| text(shown, output))
}

fn text(shown: &Shown, output: Output) -> String {
    let mut text = output.table(std::slice::from_ref(&shown.line), &columns());
    for setting in
        shown.settings.iter().flatten().filter(|setting| setting.value.is_some() || setting.until.is_some())
    {
        let value = setting.value.as_deref().unwrap_or("none");
        let until = setting.until.map(|until| format!(" until {until:.0}")).unwrap_or_default();
        text.push_str(&format!("set {} = {value}{until} by {}\n", setting.name.word(), setting.set_by));
    }
    for worker in &shown.worker_processes {
        text.push_str(&format!(
            "worker {}/{} concurrency {} kinds {}\n",
            worker.host,
            worker.pid,
            worker.concurrency,
            worker.kinds.join(",")
        ));
    }
    text
}

/// What is done to a queue, for question and trail.
struct Verb<'a> {
    action: &'a str,
    question: &'a str,
    object: &'a str,
}

async fn change(
    verb: &Verb<'_>,
    changes: Vec<Change>,
    for_: Option<std::time::Duration>,
    mutation: &Mutation,
    service: &Service,
    output: Output,
) -> Result<(), Failure> {
    let act = act(mutation)?;
    let desk = desk(service).await?;
    let queue = queues::known(&desk.client, verb.object).await?;
    let words: serde_json::Map<_, _> =
        changes.iter().map(|(name, value)| (name.word().to_owned(), json!(value))).collect();
    let mut document =
        json!({ "queue": queue, "set": words, "for_seconds": for_.map(|for_| for_.as_secs_f64()) });
    if mutation.dry_run {
        document["dry_run"] = true.into();
        return output.one(&document, |_| format!("would: {} queue {queue}\n", verb.question));
    }
    let object = format!("queue {queue}");
    confirm(mutation, &Question { verb: verb.question, object: &object, count: None })?;
    apply(&desk, &queue, verb.action, &changes, for_, &act, document.clone()).await?;
    output.one(&document, |_| format!("{queue}: done\n"))
}

async fn apply(
    desk: &Desk,
    queue: &str,
    action: &str,
    changes: &[Change],
    for_: Option<std::time::Duration>,
    act: &Act,
    details: serde_json::Value,
) -> Result<(), Failure> {
    trail::record(&desk.pool, act, action, queue, details).await?;
    limits::set(&desk.client, &desk.pool, queue, changes, for_, &act.actor).await
}

async fn drain(
    queue: &str,
    wait: Option<std::time::Duration>,
    mutation: &Mutation,
    service: &Service,
    output: Output,
) -> Result<(), Failure> {
    let act = act(mutation)?;
    let desk = desk(service).await?;
    let queue = queues::known(&desk.client, queue).await?;
    if mutation.dry_run {
        let left = queues::wait_empty(&desk.client, &queue, Some(std::time::Duration::ZERO)).await?;
        let document = json!({ "queue": queue, "drained": left == 0, "left": left, "dry_run": true });
        return output.one(&document, |_| format!("would drain queue {queue}, which holds {left} jobs\n"));
    }
    let object = format!("queue {queue}: it refuses new jobs until it is resumed");
    confirm(mutation, &Question { verb: "Drain", object: &object, count: None })?;
    apply(&desk, &queue, "queue.drain", &[(Name::Draining, Some("1".to_owned()))], None, &act, json!({}))
        .await?;
    let left = queues::wait_empty(&desk.client, &queue, wait).await?;
    let document = json!({ "queue": queue, "drained": left == 0, "left": left });
    output.one(&document, |_| match left {
        0 => format!("queue {queue} is empty; it refuses new jobs until `queue resume {queue}`\n"),
        left => format!("queue {queue} still holds {left} jobs and goes on draining\n"),
    })?;
    if left == 0 {
        return Ok(());
    }
    Err(Failure::partial(
        "not_drained",
        format!("queue {queue} still holds {left} jobs after {:?}", wait.unwrap_or_default()),
        "Wait longer with --wait, or see `queue show` for what holds it.",
    ))
}

async fn purge(command: Purge, service: &Service, output: Output) -> Result<(), Failure> {
    let state = State::from(command.state);
    if matches!(state, State::Active | State::Completed) {
        return Err(Failure::usage(
            "invalid_state",
            format!("--state {} cannot be purged", state.as_str()),
            "Choose waiting, delayed or dead; cancel running jobs, and remove completed ones with `queue clean`.",
        ));
    }
    let act = act(&command.mutation)?;
    let desk = desk(service).await?;
    let queue = queues::known(&desk.client, &command.queue).await?;
    let count = queues::count(&desk.client, &queue, state).await?;
    let object = format!("{} jobs of queue {queue}", state.as_str());
    let mut document = json!({ "queue": queue, "state": state, "count": count });
    if command.mutation.dry_run {
        document["dry_run"] = true.into();
        return output.one(&document, |_| format!("would discard {count} {object}\n"));
    }
    confirm(&command.mutation, &Question { verb: "Discard", object: &object, count: Some(count) })?;
    trail::record(&desk.pool, &act, "queue.purge", &queue, document.clone()).await?;
    let purged = queues::purge(&desk, &queue, state, &act).await?;
    document["count"] = purged.into();
    trail::record(&desk.pool, &act, "queue.purged", &queue, document.clone()).await?;
    output.one(&document, |_| format!("discarded {purged} {object}; they stay in the history for 30 days\n"))
}

async fn clean(command: Clean, service: &Service, output: Output) -> Result<(), Failure> {
    let state = State::from(command.state);
    if state == State::Active {
        let remedy = "Choose completed, dead, waiting or delayed; cancel running jobs with `jobs cancel`.";
        return Err(Failure::usage("invalid_state", "--state active cannot be cleaned", remedy));
    }
    let act = act(&command.mutation)?;
    let desk = desk(service).await?;
    let queue = queues::known(&desk.client, &command.queue).await?;
    let age = human_duration(command.older_than);
    let object = format!("{} jobs of queue {queue} that are older than {age}", state.as_str());
    let older_than_seconds = command.older_than.as_secs_f64();
    let mut document = json!({ "queue": queue, "state": state, "older_than_seconds": older_than_seconds });
    if command.mutation.dry_run {
        document["dry_run"] = true.into();
        return output.one(&document, |_| format!("would remove {object}\n"));
    }
    confirm(&command.mutation, &Question { verb: "Remove", object: &object, count: None })?;
    trail::record(&desk.pool, &act, "queue.clean", &queue, document.clone()).await?;
    let cleaned = queues::clean(&desk, &queue, state, command.older_than, &act).await?;
    document["count"] = cleaned.into();
    output.one(&document, |_| format!("removed {cleaned} {object}\n"))
}

async fn set(command: QueueSet, service: &Service, output: Output) -> Result<(), Failure> {
    let count = |value: Option<u32>| value.map(|value| value.to_string());
    let changes: Vec<Change> = [
        command.concurrency.map(|value| (Name::WorkerConcurrency, count(value.0))),
        command.rate.map(|value| (Name::Rate, value.0.map(rate_text))),
        command.key_concurrency.map(|value| (Name::KeyConcurrency, count(value.0))),
    ]
    .into_iter()
    .flatten()
    .collect();
    let verb = Verb { action: "queue.set", question: "Change the limits of", object: &command.queue };
    change(&verb, changes, command.for_, &command.mutation, service, output).await
}
