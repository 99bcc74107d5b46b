//! Mail by Amazon SES, whole messages as they were composed.

use std::error::Error;
use std::time::Duration;

use aws_sdk_sesv2::Client;
use aws_sdk_sesv2::config::http::HttpResponse;
use aws_sdk_sesv2::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_sesv2::primitives::Blob;
use aws_sdk_sesv2::types::{Destination, EmailContent, MessageTag, RawMessage, SendQuota};
use bytes::Bytes;
use tokio::sync::OnceCell;

use crate::access::{AwsAccess, Patience};
use crate::ses_account::SesAccount;

/// A client of SES in one region. Nothing is connected, and no credentials are looked for, before the first call.
#[derive(Debug)]
pub struct SesClient {
    access: AwsAccess,
    limit: Duration,
    client: OnceCell<Client>,
}

/// One message for one recipient.
#[derive(Debug, Clone, Copy)]
pub struct SesMail<'a> {
    /// Address that it is from and that bounces go to.
    pub from: &'a str,
    /// Its one recipient.
    pub to: &'a str,
    /// The whole message. SES replaces its `Message-ID`.
    pub bytes: &'a Bytes,
    /// SES tenant on whose behalf it is sent.
    pub tenant: Option<&'a str>,
    /// Configuration set that it is sent with.
    pub configuration_set: Option<&'a str>,
    /// Tags that its events carry: letters, digits, hyphens and underscores.
    pub tags: &'a [(&'a str, &'a str)],
}

/// What kind of failure a call of SES ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SesErrorKind {
    /// There are no credentials, or they cannot be got.
    Credentials,
    /// The credentials are refused, or do not allow this.
    Denied,
    /// SES will not send this message.
    Rejected,
    /// The domain for MAIL FROM is not verified.
    MailFrom,
    /// SES has stopped this account, tenant or configuration set.
    Stopped,
    /// Too many in a second.
    Rate,
    /// The day's allowance is used up.
    Quota,
    /// The request is one that SES does not take.
    Invalid,
    /// A configuration set or a tenant does not exist.
    NotFound,
    /// SES is there and failed.
    Unavailable,
    /// No connection was made: nothing was sent.
    Unreachable,
    /// No connection was made in time: nothing was sent.
    ConnectTimedOut,
    /// The request went out, or may have, and no answer came.
    NoAnswer,
}

/// A call of SES that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct SesError {
    /// What kind of failure.
    pub kind: SesErrorKind,
    /// The service's code, such as `MessageRejected`.
    pub code: Option<String>,
    /// The HTTP status of the answer, where there was one.
    pub status: Option<u16>,
    /// The service's own words, or the chain of what failed on the way.
    pub reason: String,
}

impl SesClient {
    /// A client that waits no longer than `limit` for one answer and never repeats a call: whoever calls knows when to.
    #[must_use]
    pub fn new(access: AwsAccess, limit: Duration) -> Self {
        Self { access, limit, client: OnceCell::new() }
    }

    /// The region it speaks to.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.access.region
    }

    async fn client(&self) -> &Client {
        let make = || async {
            let patience = Patience {
                attempts: 1,
                connect: Duration::from_secs(5).min(self.limit),
                attempt: self.limit,
                call: Some(self.limit),
            };
            Client::new(&self.access.load(patience).await)
        };
        self.client.get_or_init(make).await
    }

    /// Hands one message over, and returns the id that SES gave it.
    ///
    /// # Errors
    /// [`SesError`]; its kind says whether SES may have taken the message all the same.
    pub async fn send_raw(&self, mail: SesMail<'_>) -> Result<String, SesError> {
        let raw = RawMessage::builder().data(Blob::new(mail.bytes.as_ref()));
        let raw = raw.build().map_err(|error| invalid(&error))?;
        let mut request = self
            .client()
            .await
            .send_email()
            .from_email_address(mail.from)
            .destination(Destination::builder().to_addresses(mail.to).build())
            .content(EmailContent::builder().raw(raw).build())
            .set_configuration_set_name(mail.configuration_set.map(ToOwned::to_owned))
            .set_tenant_name(mail.tenant.map(ToOwned::to_owned));
        for (name, value) in mail.tags {
            let tag = MessageTag::builder().name(*name).value(*value).build();
            request = request.email_tags(tag.map_err(|error| invalid(&error))?);
        }
        let answer = request.send().await.map_err(|error| failed(&error))?;
        Ok(answer.message_id.unwrap_or_default())
    }

    /// What the account may send.
    ///
    /// # Errors
    /// [`SesError`].
    pub async fn account(&self) -> Result<SesAccount, SesError> {
        let account = self.client().await.get_account().send().await.map_err(|error| failed(&error))?;
        let quota = account.send_quota();
        Ok(SesAccount {
            production: account.production_access_enabled(),
            sending: account.sending_enabled(),
            most_a_day: quota.map_or(0.0, SendQuota::max24_hour_send),
            most_a_second: quota.map_or(0.0, SendQuota::max_send_rate),
            sent: quota.map_or(0.0, SendQuota::sent_last24_hours),
        })
    }
}

fn invalid(error: &dyn Error) -> SesError {
    SesError { kind: SesErrorKind::Invalid, code: None, status: None, reason: error.to_string() }
}

fn failed<E>(error: &SdkError<E, HttpResponse>) -> SesError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    let code = error.code().map(ToOwned::to_owned);
    let chain = DisplayErrorContext(error).to_string();
    let reason = match (&code, error.message()) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.clone(),
        (None, _) => chain.clone(),
    };
    let kind = match error {
        SdkError::ServiceError(_) => {
            of_answer(code.as_deref().unwrap_or_default(), status.unwrap_or(0), &reason)
        }
        SdkError::ResponseError(_) if status.is_some_and(|status| status >= 500) => SesErrorKind::Unavailable,
        _ => of_way(error, &chain),
    };
    SesError { kind, code, status, reason }
}

/// What an error that SES answered means.
fn of_answer(code: &str, status: u16, reason: &str) -> SesErrorKind {
    use SesErrorKind as K;
    let lower = reason.to_ascii_lowercase();
    match code {
        "MessageRejected" => K::Rejected,
        "MailFromDomainNotVerifiedException" => K::MailFrom,
        "AccountSuspendedException" | "SendingPausedException" => K::Stopped,
        "NotFoundException" => K::NotFound,
        _ if lower.contains("daily message quota") || lower.contains("24-hour") => K::Quota,
        "TooManyRequestsException" | "Throttling" | "ThrottlingException" | "LimitExceededException" => {
            K::Rate
        }
        "AccessDeniedException"
        | "AccessDenied"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "InvalidSignatureException"
        | "ExpiredTokenException"
        | "ExpiredToken"
        | "MissingAuthenticationTokenException"
        | "IncompleteSignature"
        | "OptInRequired" => K::Denied,
        "BadRequestException" => K::Invalid,
        _ => match status {
            401 | 403 => K::Denied,
            404 => K::NotFound,
            429 => K::Rate,
            400..=499 => K::Invalid,
            _ => K::Unavailable,
        },
    }
}

/// What an error on the way to an answer means. What is not known to have failed before the request was sent is taken for
/// sent.
fn of_way<E>(error: &SdkError<E, HttpResponse>, chain: &str) -> SesErrorKind {
    use SesErrorKind as K;
    let says = |words: &[&str]| words.iter().any(|word| chain.contains(word));
    if says(&[
        "CredentialsNotLoaded",
        "credential provider",
        "CredentialsError",
        "ProviderTimedOut",
        "InvalidConfiguration(",
        "the credential",
        "failed to load IMDS",
        "no providers in chain",
    ]) {
        return K::Credentials;
    }
    match error {
        SdkError::ConstructionFailure(_) => K::Invalid,
        SdkError::DispatchFailure(failure) => {
            let connecting = says(&["Connect", "dns error", "tunnel", "proxy"]);
            match (failure.is_timeout(), connecting) {
                (true, _) if says(&["connect timeout", "HTTP connect"]) => K::ConnectTimedOut,
                (false, true) => K::Unreachable,
                _ => K::NoAnswer,
            }
        }
        _ => K::NoAnswer,
    }
}
