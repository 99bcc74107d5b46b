//! Ending jobs: cancel and discard.

use std::collections::HashSet;

use serde::Serialize;
use serde_json::json;
use voiceai_cli::Failure;
use voiceai_queue::{CancelOutcome, Client, JobView, State};

use super::locate;
use crate::operate::{Act, Desk, queue_failure, trail};

/// What became of one job that something was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The job.
    pub id: String,
    /// Its queue, where it was found.
    pub queue: Option<String>,
    /// `cancelled`, `asked` (it runs; its worker ends it), `discarded`, `dead`, `active`, `completed` or `absent`.
    pub outcome: &'static str,
}

impl Answer {
    /// True when what was asked for is done or under way.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.outcome, "cancelled" | "asked" | "discarded")
    }
}

/// Ids in their order, each once: what is done to a job twice is refused the second time.
pub fn each_once(ids: &[String]) -> impl Iterator<Item = &String> {
    let mut seen = HashSet::new();
    ids.iter().filter(move |id| seen.insert(id.as_str()))
}

/// Where each of `ids` is, of one that is named twice once.
///
/// # Errors
/// As Redis says.
pub async fn locate_all(
    client: &Client,
    queue: Option<&str>,
    ids: &[String],
) -> Result<Vec<(String, Option<JobView>)>, Failure> {
    let mut found = Vec::with_capacity(ids.len());
    for id in each_once(ids) {
        found.push((id.clone(), locate(client, queue, id).await?));
    }
    Ok(found)
}

/// What [`cancel`] would answer, without doing it.
#[must_use]
pub fn would_cancel(id: &str, view: Option<&JobView>) -> Answer {
    let outcome = match view.map(|view| view.state) {
        Some(State::Waiting | State::Delayed) => "cancelled",
        Some(State::Active) => "asked",
        Some(State::Dead) => "dead",
        Some(State::Completed) => "completed",
        None => "absent",
    };
    Answer { id: id.to_owned(), queue: view.map(|view| view.queue.clone()), outcome }
}

/// What [`discard`] would answer, without doing it.
#[must_use]
pub fn would_discard(id: &str, view: Option<&JobView>) -> Answer {
    let outcome = match view.map(|view| view.state) {
        Some(State::Waiting | State::Delayed | State::Dead) => "discarded",
        Some(State::Active) => "active",
        Some(State::Completed) => "completed",
        None => "absent",
    };
    Answer { id: id.to_owned(), queue: view.map(|view| view.queue.clone()), outcome }
}

/// Cancels jobs: those that have not begun at once, running ones through their worker.
///
/// # Errors
/// As the stores say; jobs before the failing one are cancelled.
pub async fn cancel(
    desk: &Desk,
    found: &[(String, Option<JobView>)],
    act: &Act,
) -> Result<Vec<Answer>, Failure> {
    let ids: Vec<&str> = found.iter().map(|(id, _)| id.as_str()).collect();
    trail::record(&desk.pool, act, "jobs.cancel", &subject(&ids), json!({ "ids": ids })).await?;
    let mut answers = Vec::with_capacity(found.len());
    for (id, view) in found {
        let mut answer = would_cancel(id, view.as_ref());
        if let Some(view) = view
            && answer.is_done()
        {
            let outcomes = desk.client.cancel(&view.queue, std::slice::from_ref(id), &act.why()).await;
            let outcomes = outcomes.map_err(|error| queue_failure(&error))?;
            answer.outcome = match outcomes.first() {
                Some(CancelOutcome::Cancelled) => "cancelled",
                Some(CancelOutcome::Asked) => "asked",
                Some(CancelOutcome::Dead) => "dead",
                // It ended between the look and the call.
                Some(CancelOutcome::Absent) | None => "completed",
            };
        }
        answers.push(answer);
    }
    Ok(answers)
}

/// Discards jobs for good; each is written to the history first.
///
/// # Errors
/// As the stores say; jobs before the failing one are discarded.
pub async fn discard(
    desk: &Desk,
    found: &[(String, Option<JobView>)],
    act: &Act,
) -> Result<Vec<Answer>, Failure> {
    let ids: Vec<&str> = found.iter().map(|(id, _)| id.as_str()).collect();
    trail::record(&desk.pool, act, "jobs.discard", &subject(&ids), json!({ "ids": ids })).await?;
    let mut answers = Vec::with_capacity(found.len());
    for (id, view) in found {
        let mut answer = would_discard(id, view.as_ref());
        if let Some(view) = view
            && answer.is_done()
        {
            let gone = desk.client.discard(&view.queue, std::slice::from_ref(id), &act.why()).await;
            if gone.map_err(|error| queue_failure(&error))? == 0 {
                // It began to run between the look and the call.
                answer.outcome = "active";
            }
        }
        answers.push(answer);
    }
    Ok(answers)
}

/// A subject for the audit trail: the one id, or how many.
fn subject(ids: &[&str]) -> String {
    match ids {
        [one] => (*one).to_owned(),
        many => format!("{} jobs", many.len()),
    }
}

/// Turns answers into the failure that their exit code needs: nothing found (3), nothing possible (4), some of both (6).
#[must_use]
pub fn judge(answers: &[Answer], verb: &str) -> Option<Failure> {
    let undone: Vec<_> = answers.iter().filter(|answer| !answer.is_done()).collect();
    let first = undone.first()?;
    let told: Vec<_> =
        undone.iter().take(5).map(|answer| format!("{} is {}", answer.id, answer.outcome)).collect();
    let message =
        format!("{} of {} jobs could not be {verb}: {}", undone.len(), answers.len(), told.join(", "));
    let remedy = match first.outcome {
        "absent" => "Look with `jobs list`; a job that has completed is gone from its queue.",
        "dead" => "Replay or discard a dead job.",
        "active" => "Cancel a running job first.",
        _ => "Look with `jobs show`.",
    };
    Some(if undone.len() < answers.len() {
        Failure::partial("partly_done", message, remedy)
    } else if undone.iter().all(|answer| answer.outcome == "absent") {
        Failure::not_found("job_not_found", message, remedy)
    } else {
        Failure::refused("job_state", message, remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(outcomes: &[&'static str]) -> Vec<Answer> {
        outcomes.iter().map(|outcome| Answer { id: "x".into(), queue: None, outcome }).collect()
    }

    #[test]
    fn the_exit_code_tells_none_some_and_all() {
        let exit = |outcomes: &[&'static str]| {
            judge(&answers(outcomes), "cancelled").map(|failure| failure.exit.code())
        };
        assert_eq!(exit(&["cancelled", "asked"]), None);
        assert_eq!(exit(&["absent", "absent"]), Some(3));
        assert_eq!(exit(&["dead"]), Some(4));
        assert_eq!(exit(&["cancelled", "absent"]), Some(6));
    }
}
