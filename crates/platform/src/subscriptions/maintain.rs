//! `subscriptions.maintain`: the step that is due, for every subscription, each in a transaction of its own.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use jiff_sqlx::ToSqlx as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, PgConnection, Postgres, Transaction};
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use super::announce::{News, Subject, audit, tell};
use super::billing::BillingPause;
use super::decide::{Course, State, Step, decide};
use crate::error::PlatformError;
use crate::stripe::{Stripe, StripeSubscription};
use crate::tables::{Needs, instant, typed};
use crate::upkeep::{HOUSEKEEPING_QUEUE, Upkeep, check_stop, enqueue, from_row, mark, notice};

/// Failures in a row after which Stripe is taken to be away: each may last as long as STRIPE_TIMEOUT.
const MISSES_MAX: u32 = 3;
/// Subscriptions read at a time.
const PAGE: i64 = 500;

/// Reminds, grants grace, suspends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubscriptionsMaintain {}

impl Job for SubscriptionsMaintain {
    const KIND: &'static str = "subscriptions.maintain";
    const QUEUE: &'static str = HOUSEKEEPING_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3_000);
    type Context = Upkeep;

    async fn run(&self, upkeep: &Upkeep, attempt: &Attempt) -> Result<Outcome, JobError> {
        const NEEDS: Needs = Needs(&[
            ("tenants", &["tenant_id", "name"]),
            (
                "subscriptions",
                &["subscription_id", "tenant_id", "term_end", "status", "grace_end", "updated_at"],
            ),
            ("subscription_audit", &["tenant_id", "event_type", "previous_state", "new_state", "details"]),
            (
                "subscription_notifications",
                &["tenant_id", "notification_type", "scheduled_at", "sent_at", "channel", "status", "error"],
            ),
        ]);
        Box::pin(upkeep.finish(Self::KIND, NEEDS, maintain(upkeep, attempt))).await
    }
}

/// A row. Columns that not every installation has are read out of the row's JSON, so that their absence is a NULL.
#[derive(Debug, Clone)]
struct Line {
    subscription_id: String,
    tenant_id: String,
    status: String,
    term_end: jiff_sqlx::Timestamp,
    grace_end: Option<jiff_sqlx::Timestamp>,
    parent: Option<String>,
    plan: Option<String>,
    stripe_id: Option<String>,
    name: Option<String>,
    email: Option<String>,
    locale: Option<String>,
}

from_row!(Line {
    subscription_id,
    tenant_id,
    status,
    term_end,
    grace_end,
    parent,
    plan,
    stripe_id,
    name,
    email,
    locale
});

/// A row of [`Line`], by what it is called in this installation and whatever types its columns have there.
fn line_sql() -> String {
    format!(
        "SELECT s.subscription_id::text AS subscription_id, s.tenant_id::text AS tenant_id, s.status::text AS status, \
    {} AS term_end, {} AS grace_end, \
    to_jsonb(s) ->> 'parent_subscription_id' AS parent, to_jsonb(s) ->> 'plan_id' AS plan, \
    NULLIF(to_jsonb(s) ->> 'stripe_subscription_id', '') AS stripe_id, \
    COALESCE(to_jsonb(t) ->> 'contact_name', t.name::text) AS name, to_jsonb(t) ->> 'contact_email' AS email, \
    NULLIF(to_jsonb(t) ->> 'locale', '') AS locale \
    FROM subscriptions s JOIN tenants t ON t.tenant_id = s.tenant_id",
        instant("s.term_end"),
        instant("s.grace_end")
    )
}

impl Line {
    fn course(&self) -> Option<Course> {
        Some(Course {
            state: State::of(&self.status)?,
            term_end: self.term_end.to_jiff(),
            grace_end: self.grace_end.map(jiff_sqlx::Timestamp::to_jiff),
        })
    }

    fn subject(&self) -> Subject {
        Subject {
            subscription: self.subscription_id.clone(),
            tenant: self.tenant_id.clone(),
            name: self.name.clone(),
            email: self.email.clone(),
            locale: self.locale.clone(),
            plan: self.plan.clone().unwrap_or_else(|| self.subscription_id.clone()),
        }
    }

    fn step(&self, upkeep: &Upkeep, now: Timestamp) -> Step {
        let grace = SignedDuration::try_from(upkeep.settings.grace).unwrap_or_default();
        let notices = &upkeep.settings.notice_days;
        let step = self.course().map_or(Step::Nothing, |course| decide(course, notices, grace, now));
        match step {
            // An add-on ends with its main subscription, whose reminder it shares.
            Step::Remind { .. } if self.parent.is_some() => Step::Nothing,
            step => step,
        }
    }

    /// What an effect of this term is marked with: a renewed subscription has another term and starts anew.
    fn term(&self) -> String {
        format!("{}@{}", self.subscription_id, self.term_end.to_jiff())
    }
}

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Counts {
    reminded: u64,
    grace: u64,
    suspended: u64,
    expired: u64,
    renewed: u64,
    /// Left alone because Stripe refused to tell of them; a person was told.
    refused: u64,
    /// Left alone because Stripe does not answer.
    waiting: u64,
}

async fn maintain(upkeep: &Upkeep, attempt: &Attempt) -> Result<Value, PlatformError> {
    // First of all, so that nobody is suspended on the word of a half-read account. Those who pay otherwise need not wait for it.
    let mut away = match &upkeep.stripe {
        Some(stripe) => stripe.probe().await.err(),
        None => None,
    };
    if let Some(error @ PlatformError::StripeRefused { .. }) = away {
        return Err(error);
    }
    let mut counts = Counts::default();
    let now = Timestamp::now();
    let horizon =
        now + SignedDuration::from_hours(24 * upkeep.settings.notice_days.first().copied().unwrap_or(0));
    let mut after = String::new();
    let mut failed = Vec::new();
    // Without an answer to the first question there is none to be expected for the others.
    let mut misses = if away.is_some() { MISSES_MAX } else { 0 };
    loop {
        let lines = page(upkeep, &after, horizon).await?;
        let Some(last) = lines.last() else { break };
        after.clone_from(&last.subscription_id);
        for line in lines {
            check_stop(attempt)?;
            let stripe = upkeep.stripe.as_ref().filter(|_| line.stripe_id.is_some());
            let step = line.step(upkeep, now);
            if step == Step::Nothing {
                continue;
            }
            let asks = !matches!(step, Step::Remind { .. }) && stripe.is_some();
            if asks
                && (misses >= MISSES_MAX
                    || matches!(away, Some(PlatformError::StripeAway { wait: Some(_), .. })))
            {
                counts.waiting += 1;
                continue;
            }
            match one(upkeep, &line, stripe.filter(|_| asks), now, &mut counts).await {
                Ok(()) if asks => misses = 0,
                Ok(()) => {}
                // One that Stripe stumbles over holds no other up, unless it asks to be left alone.
                Err(error @ PlatformError::StripeAway { .. }) => {
                    counts.waiting += 1;
                    misses += 1;
                    away = Some(error);
                }
                // One row that cannot be written keeps no other tenant from being told.
                Err(error) if error.is_final() => {
                    let error = crate::text(&error);
                    tracing::error!(
                        subscription = line.subscription_id,
                        error,
                        "a subscription cannot be maintained"
                    );
                    failed.push(format!("{}: {error}", line.subscription_id));
                }
                Err(error) => return Err(error),
            }
        }
    }
    if let Some(first) = failed.first() {
        let reason = format!("{} could not be maintained, among them {first}", failed.len());
        return Err(PlatformError::invalid("subscriptions", reason));
    }
    match away {
        // The rest was done; what waits for Stripe is tried again by the kind's policy.
        Some(error) if counts.waiting > 0 => Err(error),
        _ => Ok(json!(counts)),
    }
}

/// One subscription: asks Stripe where it is to be asked, and takes the step.
async fn one(
    upkeep: &Upkeep,
    line: &Line,
    stripe: Option<&Stripe>,
    now: Timestamp,
    counts: &mut Counts,
) -> Result<(), PlatformError> {
    match known(stripe, line).await {
        Ok(known) => apply(upkeep, line, known.as_ref(), now, counts).await,
        Err(PlatformError::StripeRefused { status, message }) => {
            refused(upkeep, line, Some(status), &message, now).await?;
            counts.refused += 1;
            Ok(())
        }
        // No id that Stripe could be asked about: a person's to correct, as with a 4xx.
        Err(PlatformError::Invalid { reason, .. }) => {
            refused(upkeep, line, None, &reason, now).await?;
            counts.refused += 1;
            Ok(())
        }
        Err(error) => Err(error),
    }
}

async fn page(upkeep: &Upkeep, after: &str, horizon: Timestamp) -> Result<Vec<Line>, PlatformError> {
    let sql = format!(
        "{} WHERE s.status IN ('TRIAL', 'ACTIVE', 'GRACE') AND s.term_end <= $2 AND s.subscription_id::text > $1 \
         AND NOT EXISTS (SELECT FROM ops.housekeeping_marks m WHERE m.purpose = 'subscription.refused' \
             AND m.subject = s.subscription_id::text || '@' || to_char(s.term_end AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')) \
         ORDER BY s.subscription_id::text LIMIT $3",
        line_sql()
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(after)
        .bind(horizon.to_sqlx())
        .bind(PAGE)
        .fetch_all(&upkeep.pool)
        .await
        .map_err(PlatformError::database("read the subscriptions"))
}

/// What Stripe knows of the line; nothing is asked for one that is not paid there.
async fn known(stripe: Option<&Stripe>, line: &Line) -> Result<Option<StripeSubscription>, PlatformError> {
    match (stripe, &line.stripe_id) {
        (Some(stripe), Some(id)) => stripe.subscription(id).await.map(Some),
        _ => Ok(None),
    }
}

/// Takes the step under the row's lock, if it is still the same one: no network is waited for here.
async fn apply(
    upkeep: &Upkeep,
    read: &Line,
    known: Option<&StripeSubscription>,
    now: Timestamp,
    counts: &mut Counts,
) -> Result<(), PlatformError> {
    let tried = "take the step of a subscription";
    let mut transaction = upkeep.pool.begin().await.map_err(PlatformError::database(tried))?;
    let Some(line) = lock(&mut transaction, &read.subscription_id).await? else { return Ok(()) };
    let step = line.step(upkeep, now);
    if step != read.step(upkeep, now) || line.term() != read.term() {
        // Somebody changed it meanwhile; the next run sees what is due then.
        return Ok(());
    }
    if let Some(until) = known.and_then(|known| known.renewed_until(now)) {
        renew(&mut transaction, upkeep, &line, until, now).await?;
        counts.renewed += 1;
    } else {
        take(&mut transaction, upkeep, &line, step, known, now, counts).await?;
    }
    transaction.commit().await.map_err(PlatformError::database(tried))
}

async fn lock(transaction: &mut PgConnection, id: &str) -> Result<Option<Line>, PlatformError> {
    let sql = format!(
        "{} WHERE s.subscription_id = {} FOR UPDATE OF s SKIP LOCKED",
        line_sql(),
        typed("subscriptions", "subscription_id", "$1::text")
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(id)
        .fetch_optional(transaction)
        .await
        .map_err(PlatformError::database("lock a subscription"))
}

async fn take(
    transaction: &mut Transaction<'_, Postgres>,
    upkeep: &Upkeep,
    line: &Line,
    step: Step,
    known: Option<&StripeSubscription>,
    now: Timestamp,
    counts: &mut Counts,
) -> Result<(), PlatformError> {
    let subject = line.subject();
    let bytes_max = upkeep.event_bytes_max;
    let term_end = line.term_end.to_jiff();
    let details =
        json!({ "subscription_id": line.subscription_id, "stripe_status": known.map(|known| &known.status) });
    match step {
        Step::Nothing => Ok(()),
        Step::Remind { notice, left } => {
            if !mark(transaction, &format!("subscription.remind.{notice}"), &line.term()).await? {
                return Ok(());
            }
            counts.reminded += 1;
            let news =
                News { word: "renewal_due", at: term_end, days: Some(left), kind: remind_kind(notice) };
            tell(transaction, &subject, &news, bytes_max, now).await
        }
        Step::Grace { until } => {
            counts.grace += 1;
            set(transaction, line, "GRACE", Some(until), None).await?;
            let after = json!({ "status": "GRACE", "grace_end": until });
            audit(transaction, &subject, "STATUS_CHANGED", &before(line), &after, &details).await?;
            let news = News { word: "grace", at: until, days: None, kind: "GRACE".to_owned() };
            tell(transaction, &subject, &news, bytes_max, now).await
        }
        Step::Suspend => {
            counts.suspended += 1;
            set(transaction, line, "SUSPENDED", line.grace_end.map(jiff_sqlx::Timestamp::to_jiff), None)
                .await?;
            let after = json!({ "status": "SUSPENDED" });
            audit(transaction, &subject, "STATUS_CHANGED", &before(line), &after, &details).await?;
            if let (true, Some(stripe)) =
                (upkeep.settings.pause_collection && upkeep.stripe.is_some(), &line.stripe_id)
            {
                let pause = BillingPause {
                    subscription: line.subscription_id.clone(),
                    stripe_subscription: stripe.clone(),
                    term_end,
                };
                enqueue(transaction, BillingPause::QUEUE, BillingPause::KIND, &json!(pause)).await?;
            }
            let reason = format!("subscription {} is suspended: its grace is over", line.subscription_id);
            notice(transaction, "subscription_suspended", &line.tenant_id, &reason, now).await?;
            let news = News { word: "suspended", at: now, days: None, kind: "SUSPENDED".to_owned() };
            tell(transaction, &subject, &news, bytes_max, now).await
        }
        Step::Expire => {
            counts.expired += 1;
            set(transaction, line, "EXPIRED", None, None).await?;
            audit(
                transaction,
                &subject,
                "STATUS_CHANGED",
                &before(line),
                &json!({ "status": "EXPIRED" }),
                &details,
            )
            .await?;
            let news = News { word: "expired", at: term_end, days: None, kind: "EXPIRED".to_owned() };
            tell(transaction, &subject, &news, bytes_max, now).await
        }
    }
}

/// Stripe says that it goes on: so it does, and nobody is told of an end.
async fn renew(
    transaction: &mut PgConnection,
    upkeep: &Upkeep,
    line: &Line,
    until: Timestamp,
    now: Timestamp,
) -> Result<(), PlatformError> {
    set(transaction, line, "ACTIVE", None, Some(until)).await?;
    let subject = line.subject();
    let after = json!({ "status": "ACTIVE", "term_end": until });
    let details = json!({ "subscription_id": line.subscription_id, "source": "stripe" });
    audit(transaction, &subject, "RENEWED", &before(line), &after, &details).await?;
    if line.status == "GRACE" {
        // Only who was told of an end is told that it is none.
        let news = News { word: "renewed", at: until, days: None, kind: "RENEWED".to_owned() };
        tell(transaction, &subject, &news, upkeep.event_bytes_max, now).await?;
    }
    Ok(())
}

fn before(line: &Line) -> Value {
    json!({ "status": line.status, "term_end": line.term_end.to_jiff(), "grace_end": line.grace_end.map(jiff_sqlx::Timestamp::to_jiff) })
}

async fn set(
    transaction: &mut PgConnection,
    line: &Line,
    status: &str,
    grace_end: Option<Timestamp>,
    term_end: Option<Timestamp>,
) -> Result<(), PlatformError> {
    let sql = format!(
        "UPDATE subscriptions SET status = {}, grace_end = $3::timestamptz, \
             term_end = COALESCE($4::timestamptz, term_end), updated_at = now() WHERE subscription_id = {}",
        typed("subscriptions", "status", "$2::text"),
        typed("subscriptions", "subscription_id", "$1::text")
    );
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(&line.subscription_id)
        .bind(status)
        .bind(grace_end.map(Timestamp::to_sqlx))
        .bind(term_end.map(Timestamp::to_sqlx))
        .execute(transaction)
        .await
        .map_err(PlatformError::database("change a subscription"))?;
    Ok(())
}

/// Stripe's 4xx is its last word: the subscription is left as it is, a person is told, and it is not asked again for this term.
async fn refused(
    upkeep: &Upkeep,
    line: &Line,
    status: Option<u16>,
    message: &str,
    now: Timestamp,
) -> Result<(), PlatformError> {
    let tried = "note that Stripe refused";
    let mut transaction = upkeep.pool.begin().await.map_err(PlatformError::database(tried))?;
    if mark(&mut transaction, "subscription.refused", &line.term_to_the_second()).await? {
        let details =
            json!({ "subscription_id": line.subscription_id, "http_status": status, "message": message });
        audit(&mut transaction, &line.subject(), "BILLING_REFUSED", &before(line), &before(line), &details)
            .await?;
        let reason = format!(
            "Stripe refuses to tell of subscription {} ({}): {}{message}; it stays {} until its row is corrected",
            line.subscription_id,
            line.stripe_id.as_deref().unwrap_or_default(),
            status.map_or_else(String::new, |status| format!("{status} ")),
            line.status
        );
        notice(&mut transaction, "billing_refused", &line.tenant_id, &reason, now).await?;
    }
    transaction.commit().await.map_err(PlatformError::database(tried))
}

impl Line {
    /// [`Self::term`] as [`page`] makes it in SQL.
    fn term_to_the_second(&self) -> String {
        let end = self.term_end.to_jiff();
        format!("{}@{}", self.subscription_id, Timestamp::from_second(end.as_second()).unwrap_or(end))
    }
}

/// The type of a reminder in the platform's table.
fn remind_kind(notice: i64) -> String {
    format!("RENEWAL_{notice}")
}
