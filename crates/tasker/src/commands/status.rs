//! `status`

use std::fmt::Write as _;

use jiff::Timestamp;
use voiceai_cli::{Failure, Output, human_duration};

use super::{Service, desk, queue};
use crate::operate::queues::age;
use crate::operate::status::{self, Status};

pub(super) async fn run(service: &Service, output: Output) -> Result<(), Failure> {
    let desk = desk(service).await?;
    let status = status::look(&desk, &service.shared.leader.key).await?;
    output.one(&status, |status| text(status, output))
}

fn text(status: &Status, output: Output) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<10} {value}");
    };
    let now = status.at;
    line("leader", &leader(status, now));
    match status.workers.as_slice() {
        [] => line("workers", "none"),
        workers => {
            for worker in workers {
                let queues = worker.queues.join(",");
                line(
                    "worker",
                    &format!("{}/{} capacity {} on {queues}", worker.host, worker.pid, worker.capacity),
                );
            }
        }
    }
    line("mail", &mail(status));
    for pause in &status.mail.pauses {
        line(
            "",
            &format!("{} {} paused until {:.0}: {}", pause.scope, pause.subject, pause.until, pause.reason),
        );
    }
    line("webhooks", &webhooks(status));
    line("schedules", &schedules(status));
    line("backups", &backups(status));
    for waiting in &status.outbox {
        let since = human_duration(std::time::Duration::from_secs(waiting.oldest_seconds.unsigned_abs()));
        let refused =
            if waiting.refused > 0 { format!(", {} refused", waiting.refused) } else { String::new() };
        let why = waiting.last_error.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        line("outbox", &format!("{} {} waiting since {since}{refused}{why}", waiting.queue, waiting.waiting));
    }
    text.push('\n');
    text.push_str(&output.table(&status.queues, &queue::columns()));
    text
}

fn leader(status: &Status, now: Timestamp) -> String {
    match (&status.leader, &status.leader_problem) {
        (Some(leader), _) => {
            let record = &leader.record;
            let held = leader.held_reason.as_ref().map(|why| format!(", HELD: {why}")).unwrap_or_default();
            let since = age(record.elected_at, now);
            format!(
                "{} ({}/{}) term {} for {since}{held}",
                record.instance_id, record.host, record.pid, record.term
            )
        }
        (None, Some(problem)) => format!("none: {problem}"),
        (None, None) => "none".to_owned(),
    }
}

fn mail(status: &Status) -> String {
    let backlog = &status.mail.backlog;
    let mut text = format!("{} due", backlog.due);
    if backlog.due > 0 {
        let _ = write!(text, " since {}", human_duration(backlog.oldest));
    }
    let _ = write!(text, ", {} under way, {} waiting", backlog.in_progress, backlog.waiting);
    let _ = write!(text, ", {} dead letters, {} unknown", backlog.dead_letters, backlog.unknown);
    text
}

fn webhooks(status: &Status) -> String {
    let backlog = &status.webhooks;
    let mut text = format!("{} due", backlog.due);
    if backlog.due > 0 {
        let _ = write!(text, " since {}", human_duration(backlog.oldest()));
    }
    let _ =
        write!(text, ", {} under way, {} waiting, {} dead", backlog.active, backlog.waiting, backlog.dead);
    let _ = write!(text, "; {} endpoints, {} resting", backlog.endpoints, backlog.endpoints_resting);
    let by_themselves = backlog.endpoints_disabled_by_themselves;
    let _ = write!(text, ", {} disabled ({by_themselves} by themselves)", backlog.endpoints_disabled);
    text
}

fn schedules(status: &Status) -> String {
    let schedules = &status.schedules;
    let mut text = format!(
        "{} in all, {} paused, {} switched off",
        schedules.total, schedules.paused, schedules.disabled
    );
    for (names, what) in [
        (&schedules.overdue, "overdue"),
        (&schedules.failing, "failing"),
        (&schedules.malformed, "malformed"),
    ] {
        if !names.is_empty() {
            let _ = write!(text, ", {what}: {}", names.join(" "));
        }
    }
    let _ = write!(text, ", {} runs missed so far", schedules.missed_total);
    text
}

fn backups(status: &Status) -> String {
    let age = |seconds: Option<i64>| {
        seconds.map_or_else(
            || "never".to_owned(),
            |seconds| {
                format!("{} ago", human_duration(std::time::Duration::from_secs(seconds.unsigned_abs())))
            },
        )
    };
    let backups = &status.backups;
    format!(
        "newest {}, newest proved {}",
        age(backups.newest_age_seconds),
        age(backups.newest_proved_age_seconds)
    )
}
