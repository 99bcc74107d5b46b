//! Mail by Amazon SES: what its answers mean, and how much it may be asked.

mod words;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use voiceai_config::Reader;
use voiceai_config::catalogue::transport as names;

use super::{Axis, Outcome, Outgoing, Phase, Reason, Stage, Summary, Transport};
use words::{blames, explain, is_of_a_tenant, is_too_large, is_unverified};

/// How old what is known of the account may be.
const ALLOWANCE_AGE: Duration = Duration::from_secs(300);
/// After a question that failed, the next one.
const ALLOWANCE_RETRY: Duration = Duration::from_secs(60);
/// How much of the rate is used: what other senders of the account use is not known.
const SHARE: f64 = 0.9;
/// Stands in `SES_TENANT` for the mail's own tenant.
const OWN_TENANT: &str = "{tenant}";
/// A longer wait for the rate is the caller's.
const WAIT_LONGEST: Duration = Duration::from_secs(5);

/// One message as it is handed over.
#[derive(Debug, Clone, Copy)]
pub struct RawMail<'a> {
    /// Address that it is from.
    pub from: &'a str,
    /// Its one recipient.
    pub to: &'a str,
    /// The whole message.
    pub bytes: &'a Bytes,
    /// On whose behalf.
    pub tenant: Option<&'a str>,
    /// Configuration set.
    pub configuration_set: Option<&'a str>,
    /// Names and values that its events carry.
    pub tags: &'a [(&'a str, &'a str)],
}

/// What the account may send.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Allowance {
    /// Mails in 24 hours; negative for no limit.
    pub a_day: f64,
    /// Mails in a second; 0 where it is not known.
    pub a_second: f64,
    /// Mails sent in the last 24 hours.
    pub sent: f64,
    /// False in the sandbox.
    pub production: bool,
    /// False while SES has stopped the account.
    pub sending: bool,
}

/// What kind of failure a call ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// There are no credentials.
    Credentials,
    /// They are refused, or do not allow this.
    Denied,
    /// SES will not send this message.
    Rejected,
    /// The domain for MAIL FROM is not verified.
    MailFrom,
    /// SES has stopped the account.
    Stopped,
    /// Too many in a second.
    Rate,
    /// The day's allowance is used up.
    Quota,
    /// SES does not take such a request.
    Invalid,
    /// Configuration set or tenant does not exist.
    NotFound,
    /// SES failed.
    Unavailable,
    /// No connection: nothing was sent.
    Unreachable,
    /// No connection in time: nothing was sent.
    ConnectTimedOut,
    /// It went out, or may have, and no answer came.
    NoAnswer,
}

/// A call that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// The service's code.
    pub code: Option<String>,
    /// The HTTP status, where there was an answer.
    pub status: Option<u16>,
    /// The service's words, or what failed on the way.
    pub reason: String,
}

/// SES as a client of it looks; a binary puts its client behind this.
pub trait SesApi: Send + Sync {
    /// Hands one message over and returns its id. Never repeats the call by itself.
    fn send_raw<'a>(&'a self, mail: RawMail<'a>) -> BoxFuture<'a, Result<String, Failure>>;
    /// What the account may send.
    fn allowance(&self) -> BoxFuture<'_, Result<Allowance, Failure>>;
    /// The region, for records.
    fn region(&self) -> &str;
}

/// `SES_*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SesSettings {
    /// `SES_ENDPOINT`.
    pub endpoint: Option<String>,
    /// `SES_CONFIGURATION_SET`.
    pub configuration_set: Option<String>,
    /// `SES_TENANT`; `{tenant}` in it is the mail's own.
    pub tenant: Option<String>,
}

impl SesSettings {
    /// The longest that one call may take.
    pub const CALL_LIMIT: Duration = Duration::from_secs(30);

    /// Reads the settings.
    pub fn read(reader: &Reader<'_>) -> Self {
        let endpoint = reader.optional(&names::SES_ENDPOINT);
        Self {
            endpoint: endpoint.map(|url| url.as_str().trim_end_matches('/').to_owned()),
            configuration_set: reader.optional(&names::SES_CONFIGURATION_SET),
            tenant: reader.optional(&names::SES_TENANT),
        }
    }

    /// The SES tenant of a mail of `own`, and whether it is that one's alone.
    fn tenant_of(&self, own: Option<&str>) -> (Option<String>, bool) {
        match (self.tenant.as_deref(), own) {
            (Some(pattern), Some(own)) if pattern.contains(OWN_TENANT) => {
                (Some(pattern.replace(OWN_TENANT, own)), true)
            }
            (Some(pattern), None) if pattern.contains(OWN_TENANT) => (None, false),
            (pattern, _) => (pattern.map(str::to_owned), false),
        }
    }

    /// The longest that one attempt takes: the question for the allowance, the wait for the rate, the call.
    #[must_use]
    pub fn attempt_limit() -> Duration {
        Self::CALL_LIMIT * 2 + WAIT_LONGEST + Duration::from_secs(5)
    }
}

/// Mail by SES.
pub struct SesTransport {
    api: Arc<dyn SesApi>,
    settings: SesSettings,
    budget: Mutex<Budget>,
    /// One question for the allowance at a time.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Budget {
    known: Option<Allowance>,
    ask_after: Option<Instant>,
    /// When the next mail may go, by the rate.
    next: Option<Instant>,
}

/// Why a mail waits.
enum Hold {
    Rate(Duration),
    Quota(String),
    Stopped(String),
}

impl SesTransport {
    /// Sets the transport up; nothing is connected yet.
    #[must_use]
    pub fn new(api: Arc<dyn SesApi>, settings: SesSettings) -> Self {
        tracing::info!(
            transport = "ses",
            region = api.region(),
            configuration_set = settings.configuration_set.as_deref().unwrap_or("none"),
            "SES: Initialized"
        );
        tracing::info!(transport = "ses", "NotificationService: mail leaves by Amazon SES");
        Self { api, settings, budget: Mutex::new(Budget::default()), asking: tokio::sync::Mutex::new(()) }
    }

    fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns the account's allowance where what is known is too old. One that cannot be learned stops nothing: a role may
    /// be allowed to send and not to ask.
    async fn learn(&self) {
        let is_due = || self.budget().ask_after.is_none_or(|after| Instant::now() >= after);
        if !is_due() {
            return;
        }
        let _one = self.asking.lock().await;
        if !is_due() {
            return;
        }
        let answer = self.api.allowance().await;
        let mut budget = self.budget();
        match answer {
            Ok(allowance) => {
                if budget.known.is_none() && !allowance.production {
                    tracing::warn!(
                        "the SES account is in the sandbox: mail goes to verified addresses only; request production access"
                    );
                }
                budget.known = Some(allowance);
                budget.ask_after = Some(Instant::now() + ALLOWANCE_AGE);
            }
            Err(failure) => {
                tracing::warn!(
                    error = Summary::line(&explain(&failure, self.api.region())),
                    "the SES account's allowance cannot be read; mail is sent without it (the role needs ses:GetAccount)"
                );
                budget.ask_after = Some(Instant::now() + ALLOWANCE_RETRY);
            }
        }
    }

    /// Takes one mail off the allowance, or says why not now.
    fn take(&self) -> Result<Option<Instant>, Hold> {
        let mut budget = self.budget();
        let Some(known) = budget.known else { return Ok(None) };
        if !known.sending {
            return Err(Hold::Stopped("SES has stopped this account's sending".to_owned()));
        }
        if known.a_day >= 0.0 && known.sent >= known.a_day {
            let text = format!("Daily message quota exceeded: {} of {} in 24 hours", known.sent, known.a_day);
            return Err(Hold::Quota(text));
        }
        let now = Instant::now();
        let at = budget.next.map_or(now, |next| next.max(now));
        if known.a_second > 0.0 {
            if at.duration_since(now) > WAIT_LONGEST {
                return Err(Hold::Rate(at.duration_since(now)));
            }
            budget.next = Some(at + Duration::from_secs_f64(1.0 / (known.a_second * SHARE)));
        }
        if let Some(known) = &mut budget.known {
            known.sent += 1.0;
        }
        Ok(Some(at))
    }

    async fn attempt(&self, mail: &Outgoing, stage: &dyn Stage) -> Outcome {
        let started = Instant::now();
        let (from, to) = match super::fit(mail) {
            Ok(addresses) => addresses,
            Err((axis, phase, text)) => {
                return Outcome::Refused {
                    axis,
                    summary: self.summary(phase, Reason::Malformed, None, &text, started),
                };
            }
        };
        self.learn().await;
        match self.take() {
            Ok(Some(at)) => tokio::time::sleep_until(at).await,
            Ok(None) => {}
            Err(hold) => return self.held(hold, started),
        }
        if let Err(withdraw) = stage.content_begins().await {
            return Outcome::Withdrawn {
                summary: self.summary(Phase::Data, Reason::Withdrawn, None, &withdraw.0, started),
            };
        }
        let (tenant, is_own) = self.settings.tenant_of(mail.tenant.as_deref());
        let raw = RawMail {
            from: from.as_str(),
            to: to.as_str(),
            bytes: &mail.bytes,
            tenant: tenant.as_deref(),
            configuration_set: self.settings.configuration_set.as_deref(),
            tags: &[("class", mail.class.as_str())],
        };
        match self.api.send_raw(raw).await {
            Ok(id) => {
                let mut summary =
                    self.summary(Phase::Final, Reason::None, None, &format!("accepted as {id}"), started);
                summary.code = Some(200);
                Outcome::Accepted { provider_id: (!id.is_empty()).then_some(id), summary }
            }
            Err(failure) if is_own && is_of_a_tenant(&failure) => {
                let text = explain(&failure, self.api.region());
                let summary = self.summary(Phase::Mail, Reason::Policy, Some(&failure), &text, started);
                tracing::warn!(
                    transport = "ses",
                    tenant,
                    error = summary.text,
                    "SES does not send for a tenant"
                );
                Outcome::Deferred { axis: Axis::Message, retry_after: None, summary }
            }
            Err(failure) => self.judge(&failure, from.as_str(), started),
        }
    }

    fn held(&self, hold: Hold, started: Instant) -> Outcome {
        let (retry_after, reason, text) = match hold {
            Hold::Rate(wait) => {
                (Some(wait), Reason::RateLimited, "the account's sending rate is used up".to_owned())
            }
            Hold::Quota(text) => (Some(ALLOWANCE_AGE), Reason::Quota, text),
            Hold::Stopped(text) => {
                (Some(ALLOWANCE_AGE), Reason::Policy, format!("{text}; see the SES console for the reason"))
            }
        };
        Outcome::ProviderFault {
            retry_after,
            summary: self.summary(Phase::Mail, reason, None, &text, started),
        }
    }

    /// What a failed call means for the attempt.
    fn judge(&self, failure: &Failure, from: &str, started: Instant) -> Outcome {
        use FailureKind as K;
        let text = explain(failure, self.api.region());
        let summary = |phase, reason| self.summary(phase, reason, Some(failure), &text, started);
        let provider = |phase, reason, retry_after| {
            let summary = summary(phase, reason);
            if matches!(
                failure.kind,
                K::Credentials | K::Denied | K::Rejected | K::MailFrom | K::Stopped | K::NotFound
            ) {
                tracing::error!(
                    transport = "ses",
                    error = summary.text,
                    "SES sends nothing until this is corrected"
                );
            }
            Outcome::ProviderFault { retry_after, summary }
        };
        match failure.kind {
            K::Credentials | K::Denied => provider(Phase::Auth, Reason::Authentication, None),
            K::Rejected if blames(&failure.reason, from) => provider(Phase::Mail, Reason::Sender, None),
            K::Rejected => {
                let summary = summary(
                    Phase::Final,
                    if is_unverified(&failure.reason) { Reason::Policy } else { Reason::Content },
                );
                tracing::warn!(transport = "ses", error = summary.text, "SES refused a mail");
                Outcome::Refused { axis: Axis::Message, summary }
            }
            K::MailFrom => provider(Phase::Mail, Reason::Sender, None),
            K::Stopped => provider(Phase::Mail, Reason::Policy, None),
            K::NotFound => provider(Phase::Mail, Reason::Policy, None),
            K::Rate => provider(Phase::Final, Reason::RateLimited, Some(Duration::from_secs(2))),
            K::Quota => {
                self.budget().ask_after = None;
                provider(Phase::Final, Reason::Quota, Some(ALLOWANCE_AGE))
            }
            K::Invalid if is_too_large(&failure.reason) => {
                Outcome::Refused { axis: Axis::Message, summary: summary(Phase::Final, Reason::TooLarge) }
            }
            K::Invalid => {
                Outcome::Refused { axis: Axis::Message, summary: summary(Phase::Final, Reason::Content) }
            }
            K::Unavailable => provider(Phase::Final, Reason::Unavailable, None),
            K::Unreachable => provider(Phase::Connect, Reason::Network, None),
            K::ConnectTimedOut => Outcome::TimedOut { summary: summary(Phase::Connect, Reason::TimedOut) },
            K::NoAnswer => Outcome::Unknown { summary: summary(Phase::Final, Reason::TimedOut) },
        }
    }

    fn summary(
        &self,
        phase: Phase,
        reason: Reason,
        failure: Option<&Failure>,
        text: &str,
        started: Instant,
    ) -> Summary {
        Summary {
            phase,
            reason,
            code: failure.and_then(|failure| failure.status),
            enhanced: failure.and_then(|failure| failure.code.clone()),
            text: Summary::line(text),
            host: format!("ses.{}", self.api.region()),
            tls: None,
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Transport for SesTransport {
    fn name(&self) -> &'static str {
        "ses"
    }

    fn send<'a>(&'a self, mail: &'a Outgoing, stage: &'a dyn Stage) -> BoxFuture<'a, Outcome> {
        Box::pin(self.attempt(mail, stage))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;
    use crate::transport::{Envelope, Unrecorded};

    /// Remembers the tenants that it was asked to send for, and fails as it is told.
    #[derive(Default)]
    struct Recording {
        tenants: Mutex<Vec<Option<String>>>,
        failure: Option<Failure>,
    }

    impl SesApi for Recording {
        fn send_raw<'a>(&'a self, mail: RawMail<'a>) -> BoxFuture<'a, Result<String, Failure>> {
            self.tenants.lock().unwrap_or_else(PoisonError::into_inner).push(mail.tenant.map(str::to_owned));
            Box::pin(std::future::ready(self.failure.clone().map_or_else(|| Ok("id".to_owned()), Err)))
        }

        fn allowance(&self) -> BoxFuture<'_, Result<Allowance, Failure>> {
            let allowance =
                Allowance { a_day: -1.0, a_second: 0.0, sent: 0.0, production: true, sending: true };
            Box::pin(std::future::ready(Ok(allowance)))
        }

        fn region(&self) -> &'static str {
            "eu-central-1"
        }
    }

    fn mail(tenant: Option<&str>) -> Outgoing {
        let bytes = "From: a@example.com\r\nDate: Sun, 22 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@example.com>\r\n\r\nx\r\n";
        Outgoing {
            message_id: "1@example.com".to_owned(),
            envelope: Envelope { from: "a@example.com".to_owned(), to: "b@example.com".to_owned() },
            bytes: Bytes::from_static(bytes.as_bytes()),
            idempotency_key: "k".to_owned(),
            tenant: tenant.map(str::to_owned),
            class: Class::Transactional,
        }
    }

    async fn outcome(
        setting: Option<&str>,
        tenant: Option<&str>,
        failure: Option<Failure>,
    ) -> (Outcome, Option<String>) {
        let api = Arc::new(Recording { failure, ..Recording::default() });
        let settings = SesSettings { tenant: setting.map(str::to_owned), ..SesSettings::default() };
        let outcome =
            SesTransport::new(Arc::<Recording>::clone(&api), settings).send(&mail(tenant), &Unrecorded).await;
        let asked = api.tenants.lock().unwrap_or_else(PoisonError::into_inner).pop().flatten();
        (outcome, asked)
    }

    #[tokio::test]
    async fn ses_hears_of_tenants_only_where_it_is_set_to() {
        for (setting, own, asked) in [
            (None, Some("acme"), None),
            (None, None, None),
            (Some("ours"), Some("acme"), Some("ours")),
            (Some("prod-{tenant}"), Some("acme"), Some("prod-acme")),
            (Some("prod-{tenant}"), None, None),
        ] {
            let (sent, found) = outcome(setting, own, None).await;
            assert!(matches!(sent, Outcome::Accepted { .. }), "{sent:?}");
            assert_eq!(found.as_deref(), asked, "{setting:?} {own:?}");
        }
    }

    #[tokio::test]
    async fn what_ses_has_against_one_tenant_holds_up_no_other() {
        let failure = |kind, code: &str| {
            Some(Failure { kind, code: Some(code.to_owned()), status: Some(400), reason: code.to_owned() })
        };
        for (kind, code, is_own) in [
            (FailureKind::NotFound, "NotFoundException", true),
            (FailureKind::Stopped, "SendingPausedException", true),
            (FailureKind::Stopped, "AccountSuspendedException", false),
            (FailureKind::Rate, "TooManyRequestsException", false),
        ] {
            let (found, _) = outcome(Some("{tenant}"), Some("acme"), failure(kind, code)).await;
            assert_eq!(matches!(found, Outcome::Deferred { .. }), is_own, "{code}: {found:?}");
            let (found, _) = outcome(Some("ours"), Some("acme"), failure(kind, code)).await;
            assert!(matches!(found, Outcome::ProviderFault { .. }), "everybody's: {code}: {found:?}");
        }
    }
}
