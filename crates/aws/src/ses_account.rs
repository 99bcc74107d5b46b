//! What the account and the sender's identity may do at Amazon SES. Nothing is sent.

use std::time::Duration;

use aws_sdk_sesv2::operation::get_email_identity::GetEmailIdentityError;
use aws_sdk_sesv2::types::{DkimStatus, SendQuota};

use crate::access::{AwsAccess, Patience};
use crate::failure::CallError;

/// The account at SES in one region.
#[derive(Debug, Clone, PartialEq)]
pub struct SesAccount {
    /// False in the sandbox: mail goes to verified addresses only.
    pub production: bool,
    /// False while SES has stopped the account's sending.
    pub sending: bool,
    /// Mails that may be sent in 24 hours; negative for no limit.
    pub most_a_day: f64,
    /// Mails that may be sent in one second.
    pub most_a_second: f64,
    /// Mails sent in the last 24 hours.
    pub sent: f64,
}

/// The sender's address or domain at SES.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SesIdentity {
    /// The address or domain that SES knows.
    pub name: String,
    /// Whether mail may be sent from it.
    pub verified: bool,
    /// Whether its mail is signed by DKIM.
    pub dkim: bool,
}

async fn client(access: &AwsAccess, limit: Duration) -> aws_sdk_sesv2::Client {
    aws_sdk_sesv2::Client::new(&access.load(Patience::of_a_call(limit)).await)
}

/// The account.
///
/// # Errors
/// [`CallError`], within `limit`.
pub async fn ses_account(access: &AwsAccess, limit: Duration) -> Result<SesAccount, CallError> {
    let answer = client(access, limit).await.get_account().send().await;
    let account = answer.map_err(|error| CallError::of("ses:GetAccount", &error))?;
    let quota = account.send_quota();
    Ok(SesAccount {
        production: account.production_access_enabled(),
        sending: account.sending_enabled(),
        most_a_day: quota.map_or(0.0, SendQuota::max24_hour_send),
        most_a_second: quota.map_or(0.0, SendQuota::max_send_rate),
        sent: quota.map_or(0.0, SendQuota::sent_last24_hours),
    })
}

/// The identity that mail from `address` is sent with: the address itself, else its domain. `None` when SES knows neither.
///
/// # Errors
/// [`CallError`], within `limit`.
pub async fn ses_identity(
    access: &AwsAccess,
    address: &str,
    limit: Duration,
) -> Result<Option<SesIdentity>, CallError> {
    let client = client(access, limit).await;
    let domain = address.rsplit_once('@').map(|(_, domain)| domain);
    for name in std::iter::once(address).chain(domain) {
        match client.get_email_identity().email_identity(name).send().await {
            Ok(identity) => {
                let dkim = identity.dkim_attributes().and_then(|dkim| dkim.status());
                return Ok(Some(SesIdentity {
                    name: name.to_owned(),
                    verified: identity.verified_for_sending_status(),
                    dkim: dkim == Some(&DkimStatus::Success),
                }));
            }
            Err(error)
                if error.as_service_error().is_some_and(GetEmailIdentityError::is_not_found_exception) => {}
            Err(error) => return Err(CallError::of("ses:GetEmailIdentity", &error)),
        }
    }
    Ok(None)
}
