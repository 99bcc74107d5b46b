//! The facade: what reaches it is told to the right people, once and not too often.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use voiceai_cli::Failure;
use voiceai_mail::Address;
use voiceai_mail::delivery::DeliveryStatus;
use voiceai_mail::intake::{AcceptError, Command, Content, Intake, Source};
use voiceai_postgres::sqlx;

use super::job::Notice;
use super::mail::{self, Line};
use super::store::{self, Entry, Turn};
use crate::settings::NoticeSettings;

/// The template of every notice.
const TEMPLATE: &str = "ops.notice";

/// Tells notices by mail. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NotificationService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    intake: Intake,
    settings: NoticeSettings,
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
}

impl NotifyError {
    /// True when the database is away, so that the same call may succeed later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Store(error) => voiceai_postgres::is_unavailable(error),
            Self::Mail(AcceptError::Store(error)) => error.is_unavailable(),
            Self::Mail(_) => false,
        }
    }

    /// True when the same call will never succeed.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Mail(AcceptError::Store(error)) => error.is_about_the_data(),
            Self::Mail(_) => true,
            Self::Store(_) => false,
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
        if count == 0 {
            tracing::warn!("NotificationService: nobody is told of alerts and scaling: set ALERT_RECIPIENTS");
        } else {
            let throttle_ms = u64::try_from(settings.throttle.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(recipients = count, throttle_ms, "NotificationService: notices leave by mail");
        }
        Ok(Self(Arc::new(Inner { intake, settings, environment, locale })))
    }

    /// Tells a notice, once however often it comes under the same `id`. `enqueued_at` stands for the time of a notice that has none.
    ///
    /// # Errors
    /// When PostgreSQL or the mail's intake refuses; the same call may be made again unless [`NotifyError::is_final`].
    pub async fn tell(&self, id: &str, notice: &Notice, enqueued_at: Timestamp) -> Result<Told, NotifyError> {
        let inner = &*self.0;
        if inner.settings.recipients.is_empty() {
            let (event, group) = (&notice.event, &notice.group);
            tracing::warn!(id, event, group, reason = notice.reason, "NotificationService: nobody to tell");
            return Ok(Told::Nobody);
        }
        let entry = entry(id, notice, enqueued_at);
        let pool = inner.intake.pool();
        let delivery_id = match store::take(pool, &entry, inner.settings.throttle).await? {
            Turn::Told(delivery_id) => return Ok(Told::Before { delivery_id }),
            Turn::Wait(wait) => return Ok(Told::Held(wait)),
            Turn::Mail(delivery_id) => delivery_id,
        };
        let lines = store::lines(pool, &delivery_id).await?;
        let notices = lines.len();
        match inner.intake.accept(self.command(&delivery_id, &entry, &lines)).await {
            // Conflict: a mail of this id was committed while the recipients were others: it tells the same.
            Ok(accepted) if accepted.status == DeliveryStatus::Failed => {
                tracing::error!(delivery_id, "NotificationService: no mail can be made; see mail show");
            }
            Ok(_) | Err(AcceptError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        store::told(pool, &delivery_id).await?;
        let (event, subject) = (entry.event, entry.subject);
        tracing::info!(delivery_id, event, subject, notices, "NotificationService: notice mailed");
        if let Err(error) = store::prune(pool).await {
            tracing::warn!(%error, "NotificationService: old notices stay for now");
        }
        Ok(Told::Mailed { delivery_id, notices })
    }

    fn command(&self, delivery_id: &str, entry: &Entry, lines: &[Line]) -> Command {
        let inner = &*self.0;
        Command {
            delivery_id: delivery_id.to_owned(),
            source: Source::Platform,
            idempotency_key: delivery_id.to_owned(),
            to: inner.settings.recipients.clone(),
            cc: Vec::new(),
            bcc: Vec::new(),
            reply_to: Vec::new(),
            content: Content::Template {
                template_id: TEMPLATE.to_owned(),
                locale: inner.locale.clone(),
                variables: mail::variables(&inner.environment, &entry.event, &entry.subject, lines),
            },
            attachments: Vec::new(),
            tenant: None,
            priority: None,
            request_id: None,
            trace_id: None,
            requested_at_ms: None,
        }
    }
}

fn entry(id: &str, notice: &Notice, enqueued_at: Timestamp) -> Entry {
    let server = notice.server.as_deref().map(mail::name).filter(|server| !server.is_empty());
    Entry {
        id: id.to_owned(),
        event: mail::name(&notice.event),
        subject: notice.group.as_deref().map(mail::name).unwrap_or_default(),
        line: Line { at: notice.at.unwrap_or(enqueued_at), server, reason: mail::reason(&notice.reason) },
    }
}
