//! The facade: what reaches it is told to the right people, once and not too often.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use voiceai_cli::Failure;
use voiceai_mail::Address;
use voiceai_mail::delivery::DeliveryStatus;
use voiceai_mail::intake::{AcceptError, Command, Content, Intake, Source};
use voiceai_platform::PlatformError;
use voiceai_postgres::sqlx;

use super::audience::{self, Audience, Wish};
use super::job::Notice;
use super::mail::{self, Line};
use super::store::{self, Entry, Turn};
use crate::settings::NoticeSettings;

/// Longest rest that a notice itself may ask for: one sender's mistake must not silence its event for ever.
const THROTTLE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The template of every notice.
const TEMPLATE: &str = "ops.notice";
/// The template of a webhook that was switched off, told to its owner.
const WEBHOOK_DISABLED: &str = "webhook.disabled";

/// Tells notices by mail and by webhook. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NotificationService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    intake: Intake,
    settings: NoticeSettings,
    recipients_max: usize,
    environment: String,
    locale: String,
}

/// What became of a notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The mail that tells it is committed.
    Mailed {
        /// That mail.
        delivery_id: String,
        /// How many notices it tells.
        notices: usize,
    },
    /// It had been told before.
    Before {
        /// By this mail.
        delivery_id: String,
    },
    /// Mail about its event rests; ask again after so long.
    Held(Duration),
    /// No recipients are set.
    Nobody,
    /// The tenant it is for does not want notices of this kind.
    Unwanted,
}

/// A notice that could not be told.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// PostgreSQL refused or was away.
    #[error("cannot keep the notice")]
    Store(#[from] sqlx::Error),
    /// No mail could be made of it.
    #[error("cannot mail the notice")]
    Mail(#[from] AcceptError),
    /// The tenant's preferences could not be read.
    #[error(transparent)]
    Preferences(#[from] PlatformError),
}

impl NotifyError {
    /// True when the database is away, so that the same call may succeed later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Store(error) => voiceai_postgres::is_unavailable(error),
            Self::Mail(AcceptError::Store(error)) => error.is_unavailable(),
            Self::Preferences(error) => error.is_unavailable(),
            Self::Mail(_) => false,
        }
    }

    /// True when another content might make a mail where this one made none.
    const fn is_about_content(error: &AcceptError) -> bool {
        matches!(error, AcceptError::Rejected(_))
    }

    /// True when the same call will never succeed.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Mail(AcceptError::Store(error)) => error.is_about_the_data(),
            Self::Mail(_) => true,
            Self::Store(error) => voiceai_postgres::is_refused(error),
            Self::Preferences(error) => error.is_final(),
        }
    }
}

impl NotificationService {
    /// A service that mails by `intake`, and says whom it tells.
    ///
    /// # Errors
    /// Refused (4) when a recipient is no address, or there are more than one mail may have.
    pub fn new(
        intake: Intake,
        settings: NoticeSettings,
        recipients_max: usize,
        environment: String,
        locale: String,
    ) -> Result<Self, Failure> {
        let remedy = "Set it to addresses separated by commas, such as ops@example.com,oncall@example.com.";
        for (at, recipient) in settings.recipients.iter().enumerate() {
            Address::parse(recipient).map_err(|error| {
                Failure::refused(
                    "invalid_recipient",
                    format!("ALERT_RECIPIENTS, entry {}: {error}", at + 1),
                    remedy,
                )
            })?;
        }
        let count = settings.recipients.len();
        if count > recipients_max {
            return Err(Failure::refused(
                "too_many_recipients",
                format!(
                    "ALERT_RECIPIENTS names {count} addresses; MAIL_RECIPIENTS_MAX allows {recipients_max}"
                ),
                "Name fewer addresses, or a list's address.",
            ));
        }
        let has_webhook = settings.webhook_url.is_some();
        if count == 0 && !has_webhook {
            tracing::warn!("NotificationService: nobody is told of alerts and scaling: set ALERT_RECIPIENTS");
        } else {
            let throttle_ms = u64::try_from(settings.throttle.as_millis()).unwrap_or(u64::MAX);
            let how = if has_webhook { "mail and webhook" } else { "mail" };
            tracing::info!(recipients = count, throttle_ms, "NotificationService: notices leave by {how}");
        }
        Ok(Self(Arc::new(Inner { intake, settings, recipients_max, environment, locale })))
    }

    /// Tells a notice, once however often it comes under the same `id`. `enqueued_at` stands for the time of a notice that has none.
    ///
    /// # Errors
    /// When PostgreSQL or the mail's intake refuses; the same call may be made again unless [`NotifyError::is_final`].
    pub async fn tell(&self, id: &str, notice: &Notice, enqueued_at: Timestamp) -> Result<Told, NotifyError> {
        let inner = &*self.0;
        let pool = inner.intake.pool();
        let audience = Audience::of(notice);
        let wish = match &audience {
            Audience::Operators => None,
            Audience::Named(to) => Some(Wish { mail: to.clone(), ..Wish::default() }),
            Audience::Tenant(tenant) => match audience::wish(pool, tenant, notice).await {
                // Preferences that cannot be read: better those who run the platform than nobody.
                Err(error) if error.is_final() => {
                    let error = format!("{:#}", anyhow::Error::new(error));
                    tracing::error!(
                        id,
                        tenant,
                        error,
                        "NotificationService: a tenant's preferences cannot be read"
                    );
                    None
                }
                wish => Some(wish?),
            },
        };
        let own_throttle = wish.as_ref().and_then(|wish| wish.throttle);
        if wish.as_ref().is_some_and(|wish| wish.unwanted) {
            return Ok(Told::Unwanted);
        }
        let wish = wish.map(|wish| Wish { mail: usable(id, wish.mail, inner.recipients_max), ..wish });
        // A tenant that can be told nothing: better those who run the platform than nobody.
        let wish = wish.filter(|wish| !wish.mail.is_empty() || !wish.channels.is_empty());
        let is_operators = wish.is_none();
        let way = wish.unwrap_or_else(|| Wish { mail: inner.settings.recipients.clone(), ..Wish::default() });
        let mut posts: Vec<Option<i64>> = way.channels.iter().copied().map(Some).collect();
        if is_operators {
            posts.extend(inner.settings.webhook_url.as_ref().map(|_| None));
        }
        if way.mail.is_empty() && posts.is_empty() {
            let (event, group) = (&notice.event, &notice.group);
            tracing::warn!(id, event, group, reason = notice.reason, "NotificationService: nobody to tell");
            return Ok(Told::Nobody);
        }
        let entry = entry(id, notice, &audience, enqueued_at);
        let throttle = notice
            .throttle_ms
            .map(|wish| Duration::from_millis(wish).min(THROTTLE_MAX))
            .or(own_throttle)
            .unwrap_or(inner.settings.throttle);
        let delivery_id = match store::take(pool, &entry, throttle).await? {
            Turn::Told(delivery_id) => return Ok(Told::Before { delivery_id }),
            Turn::Wait(wait) => return Ok(Told::Held(wait)),
            Turn::Mail(delivery_id) => delivery_id,
        };
        let told = store::of_mail(pool, &delivery_id).await?;
        let notices = told.len();
        store::enqueue_posts(pool, &delivery_id, &posts).await?;
        if !way.mail.is_empty() {
            self.mail(&delivery_id, &entry, &told, &way.mail).await?;
        }
        store::told(pool, &delivery_id).await?;
        let (event, subject, posts) = (entry.event, entry.subject, posts.len());
        tracing::info!(delivery_id, event, subject, notices, posts, "NotificationService: notice mailed");
        if let Err(error) = store::prune(pool).await {
            tracing::warn!(%error, "NotificationService: old notices stay for now");
        }
        Ok(Told::Mailed { delivery_id, notices })
    }

    /// Commits the mail. Where a notice's own template makes none, the template of every notice does: what was sent wrongly must still
    /// be told.
    async fn mail(
        &self,
        delivery_id: &str,
        entry: &Entry,
        told: &[store::Told],
        to: &[String],
    ) -> Result<(), NotifyError> {
        let inner = &*self.0;
        let plain = || {
            let lines: Vec<Line> = told.iter().map(|notice| notice.line.clone()).collect();
            let variables = mail::variables(&inner.environment, &entry.event, &entry.subject, &lines);
            (TEMPLATE.to_owned(), variables)
        };
        let own = match told {
            [one] => one.template.as_ref().map(|template| {
                let mut variables = match &one.variables {
                    Value::Object(variables) => variables.clone(),
                    _ => Map::new(),
                };
                variables.insert("environment".to_owned(), json!(inner.environment));
                (template.clone(), variables)
            }),
            _ => None,
        };
        let locale =
            told.first().and_then(|notice| notice.locale.clone()).unwrap_or_else(|| inner.locale.clone());
        let mut tries = vec![(delivery_id.to_owned(), own.clone().unwrap_or_else(plain))];
        if own.is_some() {
            tries.push((format!("{delivery_id}-plain"), plain()));
        }
        let last = tries.len() - 1;
        for (n, (id, content)) in tries.into_iter().enumerate() {
            match inner.intake.accept(command(&id, to, &locale, content, entry.tenant.as_deref())).await {
                // Conflict: a mail of this id was committed while the recipients were others: it tells the same.
                Ok(accepted) if accepted.status == DeliveryStatus::Failed => {
                    tracing::error!(
                        delivery_id = id,
                        "NotificationService: no mail can be made; see mail show"
                    );
                }
                Ok(_) | Err(AcceptError::Conflict { .. }) => return Ok(()),
                Err(error) if n == last || !NotifyError::is_about_content(&error) => return Err(error.into()),
                Err(error) => {
                    tracing::error!(delivery_id = id, %error, "NotificationService: no mail can be made");
                }
            }
        }
        Ok(())
    }
}

/// The addresses among `to` that mail can be sent to, each once: one that is written wrongly keeps nobody else from being told.
fn usable(id: &str, to: Vec<String>, recipients_max: usize) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for address in to {
        if let Err(error) = Address::parse(&address) {
            tracing::error!(id, %error, "NotificationService: a recipient of a notice is no address");
        } else if !found.iter().any(|known| known.eq_ignore_ascii_case(&address)) {
            found.push(address);
        }
    }
    if found.len() > recipients_max {
        tracing::error!(
            id,
            left_out = found.len() - recipients_max,
            "NotificationService: too many recipients"
        );
        found.truncate(recipients_max);
    }
    found
}

fn command(
    delivery_id: &str,
    to: &[String],
    locale: &str,
    (template_id, variables): (String, Map<String, Value>),
    tenant: Option<&str>,
) -> Command {
    Command {
        delivery_id: delivery_id.to_owned(),
        source: Source::Platform,
        idempotency_key: delivery_id.to_owned(),
        to: to.to_vec(),
        cc: Vec::new(),
        bcc: Vec::new(),
        reply_to: Vec::new(),
        content: Content::Template { template_id, locale: locale.to_owned(), variables },
        attachments: Vec::new(),
        tenant: tenant.map(str::to_owned),
        priority: None,
        request_id: None,
        trace_id: None,
        requested_at_ms: None,
    }
}

fn entry(id: &str, notice: &Notice, audience: &Audience, enqueued_at: Timestamp) -> Entry {
    let server = notice.server.as_deref().map(mail::name).filter(|server| !server.is_empty());
    let (template, variables) = own_template(notice);
    Entry {
        id: id.to_owned(),
        event: mail::name(&notice.event),
        subject: notice.group.as_deref().map(mail::name).unwrap_or_default(),
        audience: audience.key(),
        tenant: notice.tenant.clone(),
        recipients: notice.to.clone(),
        severity: notice.severity,
        locale: notice.locale.clone(),
        template,
        variables: Value::Object(variables),
        line: Line { at: notice.at.unwrap_or(enqueued_at), server, reason: mail::reason(&notice.reason) },
    }
}

/// The template that a notice brings, or that its event has.
fn own_template(notice: &Notice) -> (Option<String>, Map<String, Value>) {
    if notice.template.is_some() || notice.event.replace('_', ".") != WEBHOOK_DISABLED {
        return (notice.template.clone(), notice.variables.clone());
    }
    let mut variables = notice.variables.clone();
    variables.entry("reason").or_insert_with(|| json!(mail::reason(&notice.reason)));
    let mut fill = |name: &str, found: Option<&Value>| {
        if let (false, Some(value)) = (variables.contains_key(name), found.filter(|value| value.is_string()))
        {
            variables.insert(name.to_owned(), value.clone());
        }
    };
    for (name, others) in [
        ("url", &["url", "endpoint_url"][..]),
        ("endpoint_id", &["endpoint_id", "endpoint"]),
        ("failing_since", &["failing_since", "since"]),
    ] {
        fill(name, others.iter().find_map(|other| notice.more.get(*other)));
    }
    let group = notice.group.as_ref().or(notice.server.as_ref()).map(|group| json!(group));
    fill("endpoint_id", group.as_ref());
    fill("tenant", notice.tenant.as_ref().map(|tenant| json!(tenant)).as_ref());
    (Some(WEBHOOK_DISABLED.to_owned()), variables)
}
