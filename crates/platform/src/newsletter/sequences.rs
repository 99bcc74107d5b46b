//! `newsletter.sequences`: takes the next step for everybody whose turn it is.

use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, AssertSqlSafe, PgConnection};
use voiceai_queue::{Attempt, Job, JobError, Outcome};
use voiceai_webhook::{NewEvent, emit_within};

use crate::error::PlatformError;
use crate::tables::{Needs, typed};
use crate::upkeep::{HOUSEKEEPING_QUEUE, Upkeep, begin, check_stop, enqueue, from_row};

const LIMIT: Duration = Duration::from_secs(60);

/// Takes steps that are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewsletterSequences {}

impl Job for NewsletterSequences {
    const KIND: &'static str = "newsletter.sequences";
    const QUEUE: &'static str = HOUSEKEEPING_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3_600);
    type Context = Upkeep;

    async fn run(&self, upkeep: &Upkeep, attempt: &Attempt) -> Result<Outcome, JobError> {
        const NEEDS: Needs = Needs(&[
            ("newsletter_subscribers", &["id", "email", "status", "interests"]),
            ("newsletter_sequences", &["id", "status", "total_completed", "active_enrollments"]),
            (
                "newsletter_sequence_steps",
                &[
                    "sequence_id",
                    "step_order",
                    "delay_value",
                    "delay_unit",
                    "action_type",
                    "subject",
                    "content_html",
                    "content_text",
                    "action_config",
                    "emails_sent",
                ],
            ),
            (
                "newsletter_sequence_enrollments",
                &[
                    "id",
                    "sequence_id",
                    "subscriber_id",
                    "current_step",
                    "status",
                    "next_step_at",
                    "enrolled_at",
                    "completed_at",
                ],
            ),
            ("newsletter_segment_members", &["segment_id", "subscriber_id"]),
        ]);
        upkeep.finish(Self::KIND, NEEDS, advance(upkeep, attempt)).await
    }
}

/// An enrollment whose turn it is, with its next step; none where the sequence has no further one.
#[derive(Debug)]
struct Due {
    id: String,
    sequence_id: String,
    subscriber_id: String,
    email: String,
    subscriber_status: String,
    step_id: Option<String>,
    step_order: Option<i64>,
    action_type: Option<String>,
    subject: Option<String>,
    content_html: Option<String>,
    content_text: Option<String>,
    action_config: Option<Value>,
}

from_row!(Due {
    id,
    sequence_id,
    subscriber_id,
    email,
    subscriber_status,
    step_id,
    step_order,
    action_type,
    subject,
    content_html,
    content_text,
    action_config,
});

/// What a step does. Parsed before anything is written.
#[derive(Debug, PartialEq)]
enum Action {
    Mail(Value),
    Tag(String),
    Segment(String),
    Event {
        tenant: String,
        event: String,
    },
    /// Not before this instant.
    Wait(Timestamp),
}

/// What becomes of an enrollment.
#[derive(Debug, PartialEq)]
enum Turn {
    Take(Action),
    /// It has no further step.
    Complete,
    /// The subscriber is no longer to be written to.
    Cancel,
    /// The step cannot be taken, and why.
    Fail(String),
}

fn turn(due: &Due) -> Turn {
    if due.subscriber_status != "active" {
        return Turn::Cancel;
    }
    let Some(action) = &due.action_type else { return Turn::Complete };
    match parse(action, due) {
        Ok(action) => Turn::Take(action),
        Err(reason) => Turn::Fail(reason),
    }
}

fn parse(action: &str, due: &Due) -> Result<Action, String> {
    let config = due.action_config.clone().unwrap_or_default();
    let text = |name: &str| {
        let value = config[name].as_str().filter(|value| !value.is_empty());
        value
            .map(str::to_owned)
            .ok_or_else(|| format!("action_config: `{name}` is wanted for a step `{action}`"))
    };
    match action {
        "email" => {
            let subject = due.subject.as_deref().filter(|subject| !subject.trim().is_empty());
            let subject = subject.ok_or("subject is wanted for a step `email`")?;
            let (html, plain) = (due.content_html.as_deref(), due.content_text.as_deref());
            if html.or(plain).is_none_or(str::is_empty) {
                return Err("content_html or content_text is wanted for a step `email`".to_owned());
            }
            // The key makes it one mail, however often the step is taken.
            let key = format!("sequence:{}:{}", due.id, due.step_order.unwrap_or_default());
            let mut mail = json!({ "to": [due.email], "subject": subject, "idempotency_key": key });
            for (name, body) in [("html_body", html), ("text_body", plain)] {
                if let Some(body) = body.filter(|body| !body.is_empty()) {
                    mail[name] = json!(body);
                }
            }
            Ok(Action::Mail(mail))
        }
        "tag" => Ok(Action::Tag(text("tag")?)),
        "segment" => {
            let id = config["segment_id"].as_i64().map(|id| id.to_string());
            Ok(Action::Segment(id.map_or_else(|| text("segment_id"), Ok)?))
        }
        "webhook" => Ok(Action::Event { tenant: text("tenant")?, event: text("event")? }),
        "wait_until" => {
            let until = text("until")?;
            until.parse().map(Action::Wait).map_err(|_| format!("action_config: until `{until}` is no time"))
        }
        other => Err(format!("action_type `{other}` is not known")),
    }
}

async fn advance(upkeep: &Upkeep, attempt: &Attempt) -> Result<Value, PlatformError> {
    let mut session = upkeep.session(LIMIT).await?;
    let scheduled = schedule(&mut session).await?;
    let (mut taken, mut completed, mut cancelled, mut failed) = (0_u64, 0_u64, 0_u64, 0_u64);
    // Those whose turn it is now: a step without a delay after it is taken in the next run, so that a run ends.
    let until = Timestamp::now();
    loop {
        check_stop(attempt)?;
        let Some(turn) = one(upkeep, &mut session, until).await? else { break };
        match turn {
            Turn::Take(_) => taken += 1,
            Turn::Complete => completed += 1,
            Turn::Cancel => cancelled += 1,
            Turn::Fail(_) => failed += 1,
        }
    }
    Ok(json!({
        "scheduled": scheduled, "taken": taken, "completed": completed, "cancelled": cancelled, "failed": failed,
    }))
}

/// An enrollment's id in the column's own type.
fn enrollment(parameter: &str) -> String {
    typed("newsletter_sequence_enrollments", "id", &format!("{parameter}::text"))
}

/// When a step is due after the one before it.
///
/// In the units that there are, and no longer than an interval can be: one odd step must not end the statement for all.
const DELAY: &str = "(LEAST(GREATEST(COALESCE(n.delay_value, 0), 0), 100000) * CASE rtrim(lower(n.delay_unit::text), 's') \
    WHEN 'second' THEN interval '1 second' WHEN 'minute' THEN interval '1 minute' WHEN 'hour' THEN interval '1 hour' \
    WHEN 'week' THEN interval '1 week' WHEN 'month' THEN interval '1 month' ELSE interval '1 day' END)";

/// Gives enrollments that are new the time of their first step.
async fn schedule(session: &mut PgConnection) -> Result<u64, PlatformError> {
    let sql = format!(
        "UPDATE newsletter_sequence_enrollments e SET next_step_at = COALESCE(e.enrolled_at, now()) + COALESCE( \
             (SELECT {DELAY} FROM newsletter_sequence_steps n WHERE n.sequence_id = e.sequence_id \
                  AND n.step_order > COALESCE(e.current_step, 0) ORDER BY n.step_order LIMIT 1), interval '0') \
         FROM newsletter_sequences q WHERE q.id = e.sequence_id AND q.status = 'active' \
             AND e.status = 'active' AND e.next_step_at IS NULL"
    );
    let done = sqlx::query(AssertSqlSafe(sql))
        .execute(session)
        .await
        .map_err(PlatformError::database("schedule the first steps of sequences"))?;
    Ok(done.rows_affected())
}

/// Takes one step: its effect and the enrollment's progress are one transaction.
async fn one(
    upkeep: &Upkeep,
    session: &mut PgConnection,
    until: Timestamp,
) -> Result<Option<Turn>, PlatformError> {
    let tried = "take a step of a sequence";
    let mut transaction = begin(session, tried).await?;
    let due: Option<Due> = sqlx::query_as(
        "SELECT e.id::text AS id, e.sequence_id::text AS sequence_id, e.subscriber_id::text AS subscriber_id, \
             COALESCE(s.email::text, '') AS email, COALESCE(s.status::text, 'active') AS subscriber_status, \
             n.id::text AS step_id, n.step_order::bigint AS step_order, \
             n.action_type::text AS action_type, n.subject::text AS subject, n.content_html, n.content_text, n.action_config \
         FROM newsletter_sequence_enrollments e \
         JOIN newsletter_sequences q ON q.id = e.sequence_id AND q.status = 'active' \
         JOIN newsletter_subscribers s ON s.id = e.subscriber_id \
         LEFT JOIN LATERAL (SELECT * FROM newsletter_sequence_steps n WHERE n.sequence_id = e.sequence_id \
             AND n.step_order > COALESCE(e.current_step, 0) ORDER BY n.step_order LIMIT 1) n ON true \
         WHERE e.status = 'active' AND e.next_step_at <= $1 \
         ORDER BY e.next_step_at LIMIT 1 FOR UPDATE OF e SKIP LOCKED",
    )
    .bind(until.to_sqlx())
    .fetch_optional(&mut *transaction)
    .await
    .map_err(PlatformError::database(tried))?;
    let Some(due) = due else { return Ok(None) };
    let turn = match carry_out(upkeep, &mut transaction, &due).await {
        Ok(turn) => {
            transaction.commit().await.map_err(PlatformError::database(tried))?;
            turn
        }
        // What the database refuses now it would refuse in every run, and nobody after it would have a turn.
        Err(error) if error.is_final() => {
            transaction.rollback().await.map_err(PlatformError::database(tried))?;
            let mut transaction = begin(session, tried).await?;
            end(&mut transaction, &due, "failed").await?;
            transaction.commit().await.map_err(PlatformError::database(tried))?;
            Turn::Fail(crate::text(&error))
        }
        Err(error) => return Err(error),
    };
    if let Turn::Fail(reason) = &turn {
        tracing::warn!(enrollment = %due.id, sequence = %due.sequence_id, step = due.step_order, reason, "a step of a sequence cannot be taken");
    }
    Ok(Some(turn))
}

/// What becomes of an enrollment, written in the transaction that holds it.
async fn carry_out(
    upkeep: &Upkeep,
    transaction: &mut PgConnection,
    due: &Due,
) -> Result<Turn, PlatformError> {
    let mut turn = turn(due);
    if let Turn::Take(action) = &turn
        && let Err(reason) = take(upkeep, transaction, due, action).await?
    {
        turn = Turn::Fail(reason);
    }
    match &turn {
        Turn::Take(Action::Wait(at)) if *at > Timestamp::now() => {
            let sql = format!(
                "UPDATE newsletter_sequence_enrollments SET next_step_at = $2::timestamptz WHERE id = {}",
                enrollment("$1")
            );
            sqlx::query(AssertSqlSafe(sql))
                .bind(&due.id)
                .bind(at.to_sqlx())
                .execute(transaction)
                .await
                .map_err(PlatformError::database("take a step of a sequence"))?;
        }
        Turn::Take(_) => step_on(transaction, due).await?,
        Turn::Complete => end(transaction, due, "completed").await?,
        Turn::Cancel => end(transaction, due, "cancelled").await?,
        Turn::Fail(_) => end(transaction, due, "failed").await?,
    }
    Ok(turn)
}

/// The inner error is the step's own fault.
async fn take(
    upkeep: &Upkeep,
    transaction: &mut PgConnection,
    due: &Due,
    action: &Action,
) -> Result<Result<(), String>, PlatformError> {
    let tried = "take a step of a sequence";
    match action {
        Action::Mail(mail) => {
            enqueue(transaction, "email-queue", "send-email", mail).await?;
            let sql = format!(
                "UPDATE newsletter_sequence_steps SET emails_sent = COALESCE(emails_sent, 0) + 1 WHERE id = {}",
                typed("newsletter_sequence_steps", "id", "$1::text")
            );
            sqlx::query(AssertSqlSafe(sql))
                .bind(&due.step_id)
                .execute(transaction)
                .await
                .map_err(PlatformError::database(tried))?;
        }
        Action::Tag(tag) => {
            let sql = format!(
                "UPDATE newsletter_subscribers SET interests = array_append(COALESCE(interests, '{{}}'), $2) \
                 WHERE id = {} AND NOT COALESCE($2 = ANY(interests), false)",
                typed("newsletter_subscribers", "id", "$1::text")
            );
            let query = sqlx::query(AssertSqlSafe(sql)).bind(&due.subscriber_id).bind(tag);
            query.execute(transaction).await.map_err(PlatformError::database(tried))?;
        }
        Action::Segment(segment) => {
            let there: bool =
                sqlx::query_scalar("SELECT EXISTS (SELECT FROM newsletter_segments WHERE id::text = $1)")
                    .bind(segment)
                    .fetch_one(&mut *transaction)
                    .await
                    .map_err(PlatformError::database(tried))?;
            if !there {
                return Ok(Err(format!("segment {segment} does not exist")));
            }
            let sql = format!(
                "INSERT INTO newsletter_segment_members (segment_id, subscriber_id) \
                 SELECT g.id, e.subscriber_id FROM newsletter_segments g, newsletter_sequence_enrollments e \
                 WHERE g.id::text = $1 AND e.id = {} ON CONFLICT DO NOTHING",
                enrollment("$2")
            );
            let query = sqlx::query(AssertSqlSafe(sql)).bind(segment).bind(&due.id);
            query.execute(transaction).await.map_err(PlatformError::database(tried))?;
        }
        Action::Event { tenant, event } => {
            let id = format!("sequence:{}:{}", due.id, due.step_order.unwrap_or_default());
            let data = json!({ "subscriber_id": due.subscriber_id, "sequence_id": due.sequence_id });
            let event = NewEvent { tenant, event_type: event, id: &id, data: &data, at: Timestamp::now() };
            match emit_within(transaction, &event, upkeep.event_bytes_max).await {
                Ok(_) => {}
                Err(voiceai_webhook::WebhookError::Invalid { what, reason }) => {
                    return Ok(Err(format!("{what}: {reason}")));
                }
                Err(voiceai_webhook::WebhookError::Database { tried, source }) => {
                    return Err(PlatformError::Database { tried, source });
                }
                Err(other) => return Ok(Err(other.to_string())),
            }
        }
        Action::Wait(_) => {}
    }
    Ok(Ok(()))
}

/// The step is behind; the next one's delay begins, or the sequence is at its end.
async fn step_on(transaction: &mut PgConnection, due: &Due) -> Result<(), PlatformError> {
    let sql = format!(
        "UPDATE newsletter_sequence_enrollments e SET current_step = $2::bigint, next_step_at = now() + \
             (SELECT {DELAY} FROM newsletter_sequence_steps n WHERE n.sequence_id = e.sequence_id AND n.step_order > $2::bigint \
                  ORDER BY n.step_order LIMIT 1) WHERE e.id = {} RETURNING e.next_step_at IS NULL",
        enrollment("$1")
    );
    let at_end: bool = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(&due.id)
        .bind(due.step_order)
        .fetch_one(&mut *transaction)
        .await
        .map_err(PlatformError::database("note a step of a sequence"))?;
    if at_end { end(transaction, due, "completed").await } else { Ok(()) }
}

async fn end(transaction: &mut PgConnection, due: &Due, status: &str) -> Result<(), PlatformError> {
    let sql = format!(
        "WITH ended AS (UPDATE newsletter_sequence_enrollments SET status = {}, next_step_at = NULL, \
             completed_at = CASE WHEN $2 = 'completed' THEN now() ELSE completed_at END WHERE id = {} RETURNING sequence_id) \
         UPDATE newsletter_sequences q SET active_enrollments = GREATEST(COALESCE(q.active_enrollments, 0) - 1, 0), \
             total_completed = COALESCE(q.total_completed, 0) + CASE WHEN $2 = 'completed' THEN 1 ELSE 0 END \
         FROM ended WHERE q.id = ended.sequence_id",
        typed("newsletter_sequence_enrollments", "status", "$2::text"),
        enrollment("$1")
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(&due.id)
        .bind(status)
        .execute(transaction)
        .await
        .map_err(PlatformError::database("end a sequence of a subscriber"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(action: &str, config: Value) -> Due {
        Due {
            id: "e-1".into(),
            sequence_id: "q-1".into(),
            subscriber_id: "s-1".into(),
            email: "kim@example.com".into(),
            subscriber_status: "active".into(),
            step_id: Some("n-1".into()),
            step_order: Some(2),
            action_type: Some(action.into()),
            subject: Some("Hello".into()),
            content_html: None,
            content_text: Some("Text".into()),
            action_config: Some(config),
        }
    }

    #[test]
    fn a_step_that_cannot_be_taken_says_what_is_wanted() {
        for (action, config, says) in [
            ("tag", json!({}), "`tag` is wanted"),
            ("segment", json!({"segment": "x"}), "`segment_id` is wanted"),
            ("webhook", json!({"tenant": "t"}), "`event` is wanted"),
            ("wait_until", json!({"until": "soon"}), "is no time"),
            ("call", json!({}), "is not known"),
        ] {
            let Turn::Fail(reason) = turn(&due(action, config)) else { panic!("{action}") };
            assert!(reason.contains(says), "{reason}");
        }
        let Turn::Fail(reason) = turn(&Due { content_text: Some(String::new()), ..due("email", json!({})) })
        else {
            panic!()
        };
        assert!(reason.contains("content_html"), "{reason}");
    }

    #[test]
    fn who_is_not_to_be_written_to_leaves_and_the_last_step_is_the_end() {
        let gone = Due { subscriber_status: "unsubscribed".into(), ..due("email", json!({})) };
        assert_eq!(turn(&gone), Turn::Cancel);
        assert_eq!(turn(&Due { action_type: None, ..due("email", json!({})) }), Turn::Complete);
        let Turn::Take(Action::Mail(mail)) = turn(&due("email", json!({}))) else { panic!() };
        assert_eq!(mail["idempotency_key"], "sequence:e-1:2");
        assert_eq!(mail["text_body"], "Text");
        assert!(mail.get("html_body").is_none());
    }
}
