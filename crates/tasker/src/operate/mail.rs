//! Mail as operators meet it: what failures mean, and the replay of dead letters.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_cli::Failure;
use voiceai_mail::MailError;
use voiceai_mail::delivery::Policy;
use voiceai_mail::intake::AcceptError;
use voiceai_mail::operate::{
    DeadFilter, DeadLetter, DeadReplay, PLACE, ResendError, check_dead, dead_letters, pauses,
};
use voiceai_postgres::PgPool;
use voiceai_replay::rule::{self};
use voiceai_replay::{Begin, Candidate, Counts, Filter, Pace, Plan, Refusal, RunError, Stopped, Store};

use super::replay::{Carried, limit_failure, replay_failure, runner, shown, version};
use super::{Act, database_failure};

/// What is replayed, in the rows and the audit trail.
const SUBJECT: &str = "mail";
/// Most dead letters that are looked at in one plan. Those beyond it still count as matching.
const LOOK_MAX: u32 = 10_000;

/// What a failed statement about mail means to an operator.
#[must_use]
pub fn mail_failure(error: &MailError) -> Failure {
    match error {
        MailError::Database { tried, source } => {
            let failure = database_failure(source);
            Failure { message: format!("{tried}: {}", failure.message), ..failure }
        }
        MailError::Row { .. } => Failure::refused(
            "unknown_row",
            error.to_string(),
            "Use the version that wrote it, or a newer one.",
        ),
    }
}

/// Why a delivery was not sent again.
#[must_use]
pub fn resend_failure(error: &ResendError) -> Failure {
    match error {
        ResendError::NotFound(_) => {
            Failure::not_found("delivery_not_found", error.to_string(), "Look with `mail list`.")
        }
        ResendError::NotKept { .. } => Failure::refused(
            "content_not_kept",
            error.to_string(),
            "Let the mail's own caller ask for a new one.",
        ),
        ResendError::Store(error) | ResendError::Accept(AcceptError::Store(error)) => mail_failure(error),
        ResendError::Accept(error) => Failure::refused(
            "resend_refused",
            error.to_string(),
            "Correct what is named, or let the mail's own caller ask for a new one.",
        ),
    }
}

/// The dead letters that `filter` selects, checked. Changes nothing.
///
/// # Errors
/// Not found (3) when ids were given and none is a dead letter; else as the database says.
pub async fn plan(pool: &PgPool, filter: &DeadFilter, limit: u32) -> Result<Plan, Failure> {
    let paused = pauses(pool).await.map_err(|error| mail_failure(&error))?;
    let (letters, matched) =
        dead_letters(pool, filter, LOOK_MAX).await.map_err(|error| mail_failure(&error))?;
    if letters.is_empty() && !filter.ids.is_empty() {
        return Err(Failure::not_found(
            "dead_letter_not_found",
            format!("no dead letter has the id {}", filter.ids.join(" or ")),
            "Look with `mail list --status dead_letter`; one that is still tried is left alone, and `poison` needs --reason-is.",
        ));
    }
    let mut candidates: Vec<Candidate> =
        letters.iter().map(|letter| candidate(letter, check_dead(letter, &paused))).collect();
    let missing = filter.ids.iter().filter(|id| !letters.iter().any(|letter| letter.delivery_id == **id));
    candidates.extend(missing.map(|id| Candidate {
        place: PLACE.to_owned(),
        id: id.clone(),
        content: None,
        shown: json!({}),
        refused: Some(Refusal::new("not_dead", "it is no dead letter: what is still tried is left alone")),
    }));
    Ok(Plan::of(candidates, matched, usize::try_from(limit).unwrap_or(usize::MAX)))
}

fn candidate(letter: &DeadLetter, refused: Option<Refusal>) -> Candidate {
    Candidate {
        place: PLACE.to_owned(),
        id: letter.delivery_id.clone(),
        content: None,
        shown: json!(letter),
        refused,
    }
}

/// Whether so many may be replayed now. Earlier small batches that have ended meanwhile are counted first.
///
/// # Errors
/// Refused (4), saying which proof is missing; else as the database says.
pub async fn allow(
    pool: &PgPool,
    policy: &Policy,
    store: &Store,
    filter: &Filter,
    limit: u32,
) -> Result<(), Failure> {
    if limit > rule::PROOF_MAX {
        let open = store
            .unsettled_proofs(SUBJECT, filter, &version())
            .await
            .map_err(|error| replay_failure(&error))?;
        let once = Pace { per_second: 1.0, look_every: Duration::ZERO, follow: Duration::ZERO };
        for id in open {
            carry_out(pool, policy, store, id, once, &CancellationToken::new()).await?;
        }
    }
    let proof = store.proof(SUBJECT, filter, &version()).await.map_err(|error| replay_failure(&error))?;
    rule::judge_limit(limit, proof).map_err(|refused| limit_failure(&refused))
}

/// What a replay is begun with.
#[derive(Debug)]
pub struct Orders<'a> {
    /// What was selected.
    pub filter: &'a Filter,
    /// What was found.
    pub plan: &'a Plan,
    /// Most deliveries.
    pub limit: u32,
    /// How fast, and how long its end is waited for.
    pub pace: Pace,
}

/// Writes the replay down and carries it out.
///
/// # Errors
/// As the database says; what was done by then is written down, and the failure names the replay to go on with.
pub async fn execute(
    pool: &PgPool,
    policy: &Policy,
    store: &Store,
    orders: &Orders<'_>,
    act: &Act,
    stop: &CancellationToken,
) -> Result<Carried, Failure> {
    let begin = Begin {
        subject: SUBJECT,
        filter: orders.filter,
        version: &version(),
        actor: &act.actor,
        reason: &act.why(),
        limit: orders.limit,
        per_second: orders.pace.per_second,
        plan: orders.plan,
    };
    let id = store.begin(&begin).await.map_err(|error| replay_failure(&error))?;
    carry_out(pool, policy, store, id, orders.pace, stop).await
}

/// Goes on with a replay that stopped or was interrupted.
///
/// # Errors
/// Not found (3); refused (4) while somebody else carries it out; else as [`execute`].
pub async fn resume(
    pool: &PgPool,
    policy: &Policy,
    store: &Store,
    id: Uuid,
    pace: Pace,
    act: &Act,
    stop: &CancellationToken,
) -> Result<Carried, Failure> {
    let replay =
        store.go_on(id, &act.actor, act.reason.as_deref()).await.map_err(|error| replay_failure(&error))?;
    let pace = Pace { per_second: replay.per_second, ..pace };
    carry_out(pool, policy, store, id, pace, stop).await
}

async fn carry_out(
    pool: &PgPool,
    policy: &Policy,
    store: &Store,
    id: Uuid,
    pace: Pace,
    stop: &CancellationToken,
) -> Result<Carried, Failure> {
    let source = DeadReplay::new(pool, policy);
    let ended = voiceai_replay::run(store, &source, id, &runner(), pace, stop).await;
    let ended = match ended.map_err(|error| run_failure(id, &error))? {
        Stopped::Settled => "settled",
        Stopped::Released => "released",
        Stopped::TooManyDeaths(_) => "stopped",
        Stopped::Interrupted => "interrupted",
    };
    shown(store, id, ended).await
}

fn run_failure(id: Uuid, error: &RunError<MailError>) -> Failure {
    let failure = match error {
        RunError::Store(error) => replay_failure(error),
        RunError::Source(error) => mail_failure(error),
    };
    let message = format!("replay {id}: {}", failure.message);
    let remedy = format!("{} Then go on with `mail replay --resume {id} --execute`.", failure.remedy);
    Failure { message, remedy, ..failure }
}

/// The exit code of a replay that was carried out: all well (`None`), or partly done (6) with how to go on.
#[must_use]
pub fn judge(carried: &Carried) -> Option<Failure> {
    let Carried { replay, ended, .. } = carried;
    let Counts { items, pending, died, skipped, .. } = replay.counts;
    let go_on = format!("Look at the deaths, then run `mail replay --resume {} --execute`.", replay.id);
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
            let message =
                format!("of {items} replayed deliveries {died} died again and {skipped} were skipped");
            Some(Failure::partial("replay_partial", message, "Look at them with `mail show`."))
        }
        _ => None,
    }
}

/// The moment that a person named, for a filter that is compared later: relative ones stay relative in the proof's filter.
#[must_use]
pub fn since(when: crate::cli::When) -> Timestamp {
    when.timestamp(Timestamp::now())
}
