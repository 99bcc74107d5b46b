//! What the words of a failure mean, and what to do about it.

use super::{Failure, FailureKind};

/// True when the failure may be one SES tenant's alone, so that the mail of others is not held up by it.
pub(super) fn is_of_a_tenant(failure: &Failure) -> bool {
    failure.kind == FailureKind::NotFound
        || (failure.kind == FailureKind::Stopped && failure.code.as_deref() == Some("SendingPausedException"))
}

/// The failure's words, and what to do about it.
pub(super) fn explain(failure: &Failure, region: &str) -> String {
    let reason = &failure.reason;
    match failure.kind {
        FailureKind::Credentials => format!(
            "CredentialsProviderError: {reason}; attach a role with ses:SendEmail and ses:SendRawEmail to this host, set the \
             instance's metadata hop limit to 2, and put 169.254.169.254 into NO_PROXY"
        ),
        FailureKind::Denied => format!(
            "{reason}; allow ses:SendEmail and ses:SendRawEmail on the sender's identity in {region}, and look at the keys and \
             at this host's clock"
        ),
        FailureKind::Rejected if is_unverified(reason) => format!(
            "{}; verify the sender (EMAIL_SENDER_ADDRESS) in {region}; in the sandbox recipients must be verified too",
            coded(failure, "MessageRejected")
        ),
        FailureKind::Rejected => {
            format!("{}; look at the mail's content and attachments", coded(failure, "MessageRejected"))
        }
        FailureKind::MailFrom => {
            format!("{reason}; publish the MX and SPF records of the custom MAIL FROM domain")
        }
        FailureKind::Stopped => format!("{reason}; see the SES console for the reason"),
        FailureKind::NotFound => format!("{reason}; check SES_CONFIGURATION_SET and SES_TENANT in {region}"),
        _ => reason.clone(),
    }
}

fn coded(failure: &Failure, code: &str) -> String {
    if failure.reason.contains(code) { failure.reason.clone() } else { format!("{code}: {}", failure.reason) }
}

pub(super) fn is_unverified(reason: &str) -> bool {
    let lower = reason.to_ascii_lowercase();
    lower.contains("not verified") || lower.contains("authority to send")
}

/// True when SES names our own sender, or its domain, as what is not verified: then no other mail would be sent either.
pub(super) fn blames(reason: &str, from: &str) -> bool {
    let lower = reason.to_ascii_lowercase();
    let from = from.to_ascii_lowercase();
    let domain = from.rsplit_once('@').map_or("", |(_, domain)| domain);
    let mut words = lower.split(|c: char| c.is_whitespace() || matches!(c, ',' | '<' | '>' | ':' | ';'));
    is_unverified(reason)
        && words.any(|word| word.trim_end_matches('.') == from || word.trim_end_matches('.') == domain)
}

pub(super) fn is_too_large(reason: &str) -> bool {
    let lower = reason.to_ascii_lowercase();
    lower.contains("length")
        && (lower.contains("exceed") || lower.contains("greater") || lower.contains("longer"))
}
