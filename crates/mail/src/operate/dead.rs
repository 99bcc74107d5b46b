use jiff::Timestamp;
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx as _};
use serde::Serialize;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, PgPool, Row};
use voiceai_replay::{Filter, Item, Outcome, Refusal, Release, Source};

use crate::Class;
use crate::delivery::{DeadReason, Policy};
use crate::error::MailError;
use crate::store::parse;

/// A delivery that was given up and not sent back since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    /// The delivery.
    pub delivery_id: String,
    /// Why.
    pub reason: String,
    /// What was said last.
    pub error: String,
    /// When.
    pub dead_at: Timestamp,
    /// How often it has been given up.
    pub deaths: i32,
    /// What it is for.
    pub class: String,
    /// Its template.
    pub template_id: Option<String>,
    /// On whose behalf.
    pub tenant: Option<String>,
    /// Its subject line.
    pub subject: String,
    /// Whether its content is still kept.
    #[serde(skip)]
    pub content_kept: bool,
}

/// Which dead letters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadFilter {
    /// These; none: all.
    pub ids: Vec<String>,
    /// On whose behalf.
    pub tenant: Option<String>,
    /// From which template.
    pub template: Option<String>,
    /// Part of what was said last, without regard to case.
    pub error_contains: Option<String>,
    /// Given up since then.
    pub since: Option<Timestamp>,
    /// Given up for this reason. `poison` is selected only by name.
    pub reason: Option<DeadReason>,
}

impl DeadFilter {
    /// In the form that a replay's proof is compared by.
    #[must_use]
    pub fn normalised(&self) -> Filter {
        Filter::new()
            .with_any("id", &self.ids)
            .with("tenant", self.tenant.clone())
            .with("template", self.template.clone())
            .with("error_contains", self.error_contains.clone())
            .with("since", self.since.map(|since| since.to_string()))
            .with("reason", self.reason.map(DeadReason::as_str))
    }
}

/// Dead letters, oldest first, and how many there are in all.
///
/// # Errors
/// As the database says.
pub async fn dead_letters(
    pool: &PgPool,
    filter: &DeadFilter,
    limit: u32,
) -> Result<(Vec<DeadLetter>, u64), MailError> {
    let tried = "list dead letters";
    let rows = sqlx::query(
        "SELECT l.delivery_id, l.reason, l.error, l.archived_at, l.deaths, d.class, d.template_id, d.tenant, d.subject, \
             EXISTS (SELECT FROM mail.delivery_payloads p WHERE p.delivery_id = l.delivery_id) AS content_kept, \
             count(*) OVER () AS matched \
         FROM mail.dead_letters l JOIN mail.deliveries d USING (delivery_id) \
         WHERE l.replayed_at IS NULL AND d.dead_count > 0 AND (cardinality($1::text[]) = 0 OR l.delivery_id = ANY($1)) \
             AND ($2::text IS NULL OR d.tenant = $2) AND ($3::text IS NULL OR d.template_id = $3) \
             AND ($4::text IS NULL OR strpos(lower(l.error), lower($4)) > 0) \
             AND ($5::timestamptz IS NULL OR l.archived_at >= $5) \
             AND CASE WHEN $6::text IS NULL THEN l.reason <> 'poison' ELSE l.reason = $6 END \
         ORDER BY l.archived_at, l.delivery_id LIMIT $7",
    )
    .bind(&filter.ids)
    .bind(&filter.tenant)
    .bind(&filter.template)
    .bind(&filter.error_contains)
    .bind(filter.since.map(Timestamp::to_sqlx))
    .bind(filter.reason.map(DeadReason::as_str))
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await
    .map_err(MailError::database(tried))?;
    let read = |row: &PgRow| -> Result<DeadLetter, sqlx::Error> {
        Ok(DeadLetter {
            delivery_id: row.try_get(0)?,
            reason: row.try_get(1)?,
            error: row.try_get(2)?,
            dead_at: row.try_get::<SqlTimestamp, _>(3)?.to_jiff(),
            deaths: row.try_get(4)?,
            class: row.try_get(5)?,
            template_id: row.try_get(6)?,
            tenant: row.try_get(7)?,
            subject: row.try_get(8)?,
            content_kept: row.try_get(9)?,
        })
    };
    let matched: i64 =
        rows.first().map_or(Ok(0), |row| row.try_get("matched")).map_err(MailError::database(tried))?;
    let letters =
        rows.iter().map(|row| read(row).map_err(MailError::database(tried))).collect::<Result<_, _>>()?;
    Ok((letters, u64::try_from(matched).unwrap_or(0)))
}

/// Why a dead letter may not be sent back now. Pure.
#[must_use]
pub fn check_dead(letter: &DeadLetter, paused: &[super::Pause]) -> Option<Refusal> {
    if !letter.content_kept {
        return Some(Refusal::new(
            "content_gone",
            "its content is not kept any more (MAIL_DELIVERY_RETENTION)",
        ));
    }
    if letter.class == Class::Auth.as_str() {
        return Some(Refusal::new(
            "too_late",
            "a login code is of no use to anybody by now; its reader asks for a new one",
        ));
    }
    if let Some(pause) = paused.iter().find(|pause| pause.scope == "provider") {
        return Some(Refusal::new(
            "provider_paused",
            format!("{} is paused: {}", pause.subject, pause.reason),
        ));
    }
    let tenant = letter.tenant.as_deref();
    let pause = paused.iter().find(|pause| pause.scope == "tenant" && Some(pause.subject.as_str()) == tenant);
    pause.map(|pause| {
        Refusal::new("tenant_paused", format!("tenant {} is paused: {}", pause.subject, pause.reason))
    })
}

/// Sends one dead letter back: its recipients that were given up are open again, from the foot of the ladder, with the time of a new
/// mail. What was sent stays sent. False: it is no dead letter any more.
///
/// # Errors
/// As the database says.
pub async fn release(pool: &PgPool, policy: &Policy, delivery_id: &str) -> Result<bool, MailError> {
    let tried = "send a dead letter back";
    let class = sqlx::query("SELECT class FROM mail.deliveries WHERE delivery_id = $1")
        .bind(delivery_id)
        .fetch_optional(pool)
        .await
        .map_err(MailError::database(tried))?;
    let Some(row) = class else { return Ok(false) };
    let class: String = row.try_get(0).map_err(MailError::database(tried))?;
    let max_age = policy.max_age_of(parse("mail.deliveries", "class", &class)?);
    let row = sqlx::query(RELEASE)
        .bind(delivery_id)
        .bind(max_age.as_secs_f64())
        .fetch_one(pool)
        .await
        .map_err(MailError::database(tried))?;
    row.try_get::<i64, _>(0).map(|count| count > 0).map_err(MailError::database(tried))
}

const RELEASE: &str = "\
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
letter AS (
    UPDATE mail.dead_letters SET replayed_at = now, replays = replays + 1 FROM clock
    WHERE delivery_id = $1 AND replayed_at IS NULL RETURNING delivery_id, now
), recipient AS (
    UPDATE mail.delivery_recipients r SET status = 'open', ended_at = NULL FROM letter l
    WHERE r.delivery_id = l.delivery_id AND r.status = 'dead_letter' RETURNING r.delivery_id, r.position
), attempt AS (
    INSERT INTO mail.attempts (delivery_id, position, attempt_no, status, rung, priority, accepted_at, due_at)
    SELECT r.delivery_id, r.position,
        (SELECT max(attempt_no) FROM mail.attempts a WHERE (a.delivery_id, a.position) = (r.delivery_id, r.position)) + 1,
        'scheduled', 0, d.priority, clock.now, clock.now
    FROM recipient r JOIN mail.deliveries d USING (delivery_id), clock
    RETURNING 1
), delivery AS (
    UPDATE mail.deliveries d SET open_count = d.open_count + c.count, dead_count = d.dead_count - c.count, finished_at = NULL,
        expires_at = now + make_interval(secs => $2), next_attempt_at = now, updated_at = now
    FROM (SELECT delivery_id, count(*)::int AS count FROM recipient GROUP BY delivery_id) c, clock
    WHERE d.delivery_id = c.delivery_id
    RETURNING 1
), woken AS (SELECT pg_notify('voiceai_mail', '') FROM delivery)
SELECT count(*) FROM delivery, woken, (SELECT count(*) FROM attempt) a";

/// Dead letters as the source of a replay.
#[derive(Debug)]
pub struct DeadReplay<'a> {
    pool: &'a PgPool,
    policy: &'a Policy,
}

impl<'a> DeadReplay<'a> {
    /// Replays from `pool`, with the times of `policy`.
    #[must_use]
    pub const fn new(pool: &'a PgPool, policy: &'a Policy) -> Self {
        Self { pool, policy }
    }
}

/// Where an item of a mail replay lies.
pub const PLACE: &str = "mail";

impl Source for DeadReplay<'_> {
    type Error = MailError;

    async fn release(&self, item: &Item) -> Result<Release, MailError> {
        Ok(if release(self.pool, self.policy, &item.id).await? {
            Release::Released
        } else {
            Release::NotGivenUp
        })
    }

    async fn outcomes(&self, items: &[Item]) -> Result<Vec<Outcome>, MailError> {
        let tried = "look what became of mail";
        let ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
        let rows = sqlx::query(
            "SELECT d.delivery_id, d.status, (SELECT error FROM mail.dead_letters l WHERE l.delivery_id = d.delivery_id) \
             FROM mail.deliveries d WHERE d.delivery_id = ANY($1)",
        )
        .bind(&ids)
        .fetch_all(self.pool)
        .await
        .map_err(MailError::database(tried))?;
        let mut found = std::collections::HashMap::new();
        for row in &rows {
            let read = || -> Result<(String, String, Option<String>), sqlx::Error> {
                Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
            };
            let (id, status, error) = read().map_err(MailError::database(tried))?;
            found.insert(id, (status, error));
        }
        let outcome = |item: &Item| match found.get(&item.id) {
            None => Outcome::Gone("it is not kept any more".to_owned()),
            Some((status, error)) => match status.as_str() {
                "sent" | "suppressed" => Outcome::Completed,
                "dead_letter" | "failed" | "unknown" => {
                    Outcome::Died(error.clone().unwrap_or_else(|| status.clone()))
                }
                _ => Outcome::Open,
            },
        };
        Ok(items.iter().map(outcome).collect())
    }
}
