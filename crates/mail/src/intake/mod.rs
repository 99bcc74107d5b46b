//! Durable intake: the stream, the internal REST and the email queue all end in [`Intake::accept`].

mod check;
mod command;
mod compose;
mod composer;
mod insert;
mod payload;

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;
use voiceai_postgres::PgPool;

pub use check::{RecipientKind, Rejected};
pub use command::{Attachment, Command, Content, Source};
pub use compose::{Compose, ComposeError, Composed, Draft};
pub use composer::{Composer, UnsubscribeLink};
pub(crate) use insert::REDACTED;
pub use payload::{Payload, RenderedPayload, TemplatePayload};

use crate::delivery::{DeliveryStatus, Policy};
use crate::error::MailError;
use crate::settings::{Limits, MailSettings, SenderSettings};
use crate::wake::Herald;
use crate::{Class, Wake, metrics};
use check::{Checked, too_large};

/// A command that became a delivery, now or before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// The delivery's id: the first one's, when the same key came again under another.
    pub delivery_id: String,
    /// Where it stands.
    pub status: DeliveryStatus,
    /// True when it had been accepted before.
    pub known: bool,
}

/// A command that became no delivery.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Nothing could be sent for it.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The id or the key stands for another mail.
    #[error("{what} was used before for a mail with other content: delivery {delivery_id}")]
    Conflict {
        /// `delivery_id` or `idempotency_key`.
        what: &'static str,
        /// The delivery that has it.
        delivery_id: String,
    },
    /// The store failed; the same command may be given again.
    #[error(transparent)]
    Store(#[from] MailError),
}

/// The one door for new mail. Cheap to clone.
#[derive(Clone)]
pub struct Intake(Arc<Inner>);

struct Inner {
    pool: PgPool,
    compose: Arc<dyn Compose>,
    limits: Limits,
    policy: Policy,
    sender: SenderSettings,
    /// Nothing is ever sent: what is accepted is recorded as suppressed at once.
    suppress: bool,
    wake: Wake,
    herald: Herald,
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake").field("sender", &self.0.sender.address).finish_non_exhaustive()
    }
}

/// What is written for one accepted command.
struct Entry<'a> {
    checked: &'a Checked,
    message_id: &'a str,
    /// Or why no mail could be made.
    composed: Result<Composed, ComposeError>,
    class: Class,
    suppress: bool,
}

impl Intake {
    /// An intake that writes to `pool` and calls `wake` whenever there is something to send. `suppress`: nothing is to be sent, as
    /// with the transport `stub`.
    #[must_use]
    pub fn new(
        pool: PgPool,
        compose: Arc<dyn Compose>,
        settings: &MailSettings,
        suppress: bool,
        wake: Wake,
    ) -> Self {
        Self(Arc::new(Inner {
            herald: Herald::new(pool.clone()),
            pool,
            compose,
            limits: settings.limits,
            policy: settings.policy.clone(),
            sender: settings.sender.clone(),
            suppress,
            wake,
        }))
    }

    /// The database behind it.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.0.pool
    }

    /// True where nothing is ever sent: a mail that is accepted is suppressed at once, which counts as a success.
    #[must_use]
    pub fn suppresses(&self) -> bool {
        self.0.suppress
    }

    /// Makes `command` a delivery, exactly once however often and from however many places it comes. On return the row, its bytes
    /// and its Message-ID are committed; sending starts at once.
    ///
    /// A template that is not there or does not fit makes a delivery that has failed: the row tells why, and the caller's key is
    /// used up.
    ///
    /// # Errors
    /// When the command cannot be a mail, contradicts an earlier one, or cannot be stored now.
    pub async fn accept(&self, command: Command) -> Result<Accepted, AcceptError> {
        let source = command.source;
        let result = self.accept_new(command, None).await;
        metrics::get().accepted(source, &result);
        result
    }

    /// As [`Intake::accept`], for a delivery that repeats the delivery `resend_of`.
    pub(crate) async fn accept_resend(
        &self,
        command: Command,
        resend_of: &str,
    ) -> Result<Accepted, AcceptError> {
        let source = command.source;
        let result = self.accept_new(command, Some(resend_of)).await;
        metrics::get().accepted(source, &result);
        result
    }

    async fn accept_new(&self, command: Command, resend_of: Option<&str>) -> Result<Accepted, AcceptError> {
        let inner = &*self.0;
        let checked = check::check(command, &inner.limits)?;
        let message_id = self.message_id();
        let composed = match self.compose(&checked, &message_id) {
            Ok(composed) => composed,
            // It may have been accepted under other limits: then its answer stays what it was.
            Err(rejected) => {
                let known = insert::find(&inner.pool, &checked).await?;
                return known.unwrap_or(Err(rejected.into()));
            }
        };
        let class = composed.as_ref().map_or(Class::Transactional, |composed| composed.class);
        let entry =
            Entry { checked: &checked, message_id: &message_id, composed, class, suppress: inner.suppress };
        let max_age = inner.policy.max_age_of(class);
        let inserted = insert::insert(&inner.pool, &entry, &inner.sender.address, max_age, resend_of).await?;
        if let Some(status) = inserted {
            if !matches!(status, DeliveryStatus::Suppressed | DeliveryStatus::Failed) {
                inner.wake.wake();
                // An operator's command may end before it could tell anybody later.
                if resend_of.is_some() {
                    inner.herald.call_now().await;
                } else {
                    inner.herald.call();
                }
            }
            let delivery_id = checked.command.delivery_id;
            return Ok(Accepted { delivery_id, status, known: false });
        }
        // It came before, or a twin was faster. That row is committed: the insertion waited for it.
        match insert::find(&inner.pool, &checked).await? {
            Some(known) => known,
            None => Err(MailError::Row {
                table: "mail.deliveries",
                what: "delivery beside the one that stood in the way",
                value: checked.command.delivery_id,
            }
            .into()),
        }
    }

    /// `<uuid>@<sender's domain>`: the same in every attempt.
    fn message_id(&self) -> String {
        let domain = self.0.sender.address.rsplit_once('@').map_or("localhost", |(_, domain)| domain);
        format!("{}@{domain}", Uuid::now_v7())
    }

    /// The inner error is the mail's and is kept; the outer one is the command's and refuses it.
    fn compose(
        &self,
        checked: &Checked,
        message_id: &str,
    ) -> Result<Result<Composed, ComposeError>, Rejected> {
        let recipients: Vec<_> = checked.recipients.iter().map(|r| (r.kind, r.address.clone())).collect();
        let draft =
            Draft { command: &checked.command, recipients: &recipients, message_id, date: Timestamp::now() };
        let composed = self.0.compose.compose(&draft);
        if let Ok(composed) = &composed {
            let count = composed.messages.len();
            if count != 1 && count != recipients.len() {
                let message = format!("{count} messages were made for {} recipients", recipients.len());
                return Ok(Err(ComposeError(message)));
            }
            let largest = composed.messages.iter().map(bytes::Bytes::len).max().unwrap_or(0);
            if largest > self.0.limits.message_bytes {
                return Err(too_large(largest, &self.0.limits));
            }
        }
        Ok(composed)
    }
}
