//! `jobs …`

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use voiceai_cli::{Column, Failure, Mutation, Output, Question, confirm};
use voiceai_queue::JobView;

use super::{Service, act, client, desk, enqueue, replay, warn};
use crate::cli::{Discard, Jobs, ListJobs};
use crate::operate::jobs::{self, Answer, Cells, QueueNumbers, Row, Shown, Stats, Wanted};
use crate::operate::queues::age;
use crate::operate::{Act, Desk};

pub(super) async fn run(command: Jobs, service: &Service, output: Output) -> Result<(), Failure> {
    match command {
        Jobs::Enqueue(order) => enqueue::run(order, service, output).await,
        Jobs::List(wanted) => list(wanted, service, output).await,
        Jobs::Show { id, queue } => show(&id, queue.as_deref(), service, output).await,
        Jobs::Stats { queue } => stats(queue.as_deref(), service, output).await,
        Jobs::Cancel(command) => {
            end(&End::CANCEL, command.ids, command.queue.as_deref(), &command.mutation, service, output).await
        }
        Jobs::Discard(Discard { ids, queue, mutation }) => {
            end(&End::DISCARD, ids, queue.as_deref(), &mutation, service, output).await
        }
        Jobs::Replay(command) => replay::run(command, service, output).await,
    }
}

async fn list(command: ListJobs, service: &Service, output: Output) -> Result<(), Failure> {
    let client = client(service).await?;
    let wanted = Wanted {
        state: command.state.map(Into::into),
        queue: command.queue,
        kind: command.kind,
        tenant: command.tenant,
        error_contains: command.error_contains,
        older_than: command.older_than,
    };
    let page = command.page;
    let pool = async || service.pool().await;
    let (rows, next) = jobs::list(&client, pool, &wanted, page.limit, page.cursor.as_deref()).await?;
    let now = Timestamp::now();
    let columns = [
        Column::new("ID", |row: &Row| jobs::cells(row).id),
        Column::new("KIND", |row: &Row| jobs::cells(row).kind),
        Column::new("QUEUE", |row: &Row| jobs::cells(row).queue),
        Column::new("STATE", |row: &Row| jobs::cells(row).state),
        Column::new("AGE", move |row: &Row| {
            jobs::cells(row).since.map(|at| age(at, now)).unwrap_or_default()
        }),
        Column::new("ATTEMPTS", |row: &Row| jobs::cells(row).attempts),
        Column::new("NOTE", |row: &Row| jobs::cells(row).note),
    ];
    output.list("jobs", &rows, next.as_deref(), &columns)
}

async fn show(id: &str, queue: Option<&str>, service: &Service, output: Output) -> Result<(), Failure> {
    let client = client(service).await?;
    let pool = service.pool().await;
    if let Err(failure) = &pool {
        warn(&format!("the history cannot be asked: {}", failure.message));
    }
    let shown = jobs::show(&client, pool.as_ref(), queue, id).await?;
    output.one(&shown, text)
}

/// A job for people: what it is, why it does not run, what became of it.
fn text(shown: &Shown) -> String {
    let Cells { id, kind, queue, state, attempts, note, .. } = jobs::cells(&shown.job);
    let mut text = format!("{kind} job {id} in queue {queue}: {state}\n");
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {name:<12} {value}");
        }
    };
    let value = shown.job.value();
    let field = |name: &str| match &value[name] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    line("attempts", if attempts == "0" { "" } else { &attempts });
    for name in
        ["priority", "tenant", "key", "unique", "enqueued_at", "due_at", "dead_at", "finished_at", "worker"]
    {
        line(name, &field(name));
    }
    for name in ["replays", "crashes"] {
        line(name, Some(field(name)).filter(|count| count != "0").as_deref().unwrap_or_default());
    }
    line("error", &note);
    line("cancel asked", &field("cancel_asked"));
    line("progress", &field("progress"));
    line("payload", shown.job.payload().map_or("", RawValue::get));
    line("result", shown.job.result().as_deref().unwrap_or_default());
    line("trace", &field("trace"));
    if let Row::Live(job) = &shown.job {
        for why in &job.why_not {
            line("why not", &why.to_string());
        }
        for entry in &job.log {
            line("log", entry);
        }
    }
    for row in shown.history.iter().flatten() {
        let what = format!(
            "{:.0} {} attempt {} {}",
            row.finished_at,
            row.outcome,
            row.attempt,
            row.error.clone().unwrap_or_default()
        );
        line("history", what.trim_end());
    }
    text
}

async fn stats(queue: Option<&str>, service: &Service, output: Output) -> Result<(), Failure> {
    let stats = jobs::stats(&client(service).await?, queue).await?;
    let number = |of: fn(&QueueNumbers) -> u64| move |row: &QueueNumbers| of(row).to_string();
    output.one(&stats, |stats: &Stats| {
        output.table(
            &stats.queues,
            &[
                Column::new("QUEUE", |row: &QueueNumbers| row.queue.clone()),
                Column::new("WAITING", number(|row| row.numbers.waiting)),
                Column::new("ACTIVE", number(|row| row.numbers.active)),
                Column::new("COMPLETED", number(|row| row.numbers.completed)),
                Column::new("FAILED", number(|row| row.numbers.failed)),
                Column::new("DELAYED", number(|row| row.numbers.delayed)),
                Column::new("TOTAL", number(|row| row.numbers.total)),
            ],
        )
    })
}

/// A way to end jobs.
struct End {
    verb: &'static str,
    done: &'static str,
    would: fn(&str, Option<&JobView>) -> Answer,
    is_discard: bool,
}

impl End {
    const CANCEL: Self =
        Self { verb: "Cancel", done: "cancelled", would: jobs::would_cancel, is_discard: false };
    const DISCARD: Self =
        Self { verb: "Discard", done: "discarded", would: jobs::would_discard, is_discard: true };

    async fn apply(
        &self,
        desk: &Desk,
        found: &[(String, Option<JobView>)],
        act: &Act,
    ) -> Result<Vec<Answer>, Failure> {
        if self.is_discard {
            jobs::discard(desk, found, act).await
        } else {
            jobs::cancel(desk, found, act).await
        }
    }
}

async fn end(
    end: &End,
    ids: Vec<String>,
    queue: Option<&str>,
    mutation: &Mutation,
    service: &Service,
    output: Output,
) -> Result<(), Failure> {
    let act = act(mutation)?;
    let desk = desk(service).await?;
    let found = jobs::locate_all(&desk.client, queue, &ids).await?;
    let would: Vec<Answer> = found.iter().map(|(id, view)| (end.would)(id, view.as_ref())).collect();
    let possible = would.iter().filter(|answer| answer.is_done()).count();
    if possible == 0 || mutation.dry_run {
        answers(&would, mutation.dry_run, output)?;
        return jobs::judge(&would, end.done).map_or(Ok(()), Err);
    }
    let object = if possible == 1 { format!("job {}", ids.join(", ")) } else { "jobs".to_owned() };
    let count = (possible > 1).then_some(possible as u64);
    confirm(mutation, &Question { verb: end.verb, object: &object, count })?;
    let done = end.apply(&desk, &found, &act).await?;
    answers(&done, false, output)?;
    jobs::judge(&done, end.done).map_or(Ok(()), Err)
}

fn answers(answers: &[Answer], dry_run: bool, output: Output) -> Result<(), Failure> {
    if output.is_json() {
        let mut document = json!({ "jobs": answers, "next": null });
        if dry_run {
            document["dry_run"] = true.into();
        }
        return output.one(&document, |_| String::new());
    }
    let columns = [
        Column::new("ID", |answer: &Answer| answer.id.clone()),
        Column::new("QUEUE", |answer: &Answer| answer.queue.clone().unwrap_or_default()),
        Column::new("OUTCOME", |answer: &Answer| answer.outcome.to_owned()),
    ];
    output.list("jobs", answers, None, &columns)
}
