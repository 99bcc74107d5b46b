//! Joins mail to the AWS client: neither knows the other.

use futures_util::future::BoxFuture;
use voiceai_aws::{SesClient, SesError, SesErrorKind, SesMail};
use voiceai_mail::transport::ses::{Allowance, Failure, FailureKind, RawMail, SesApi};

/// The client as mail sees it.
#[derive(Debug)]
pub struct Ses(pub SesClient);

impl SesApi for Ses {
    fn send_raw<'a>(&'a self, mail: RawMail<'a>) -> BoxFuture<'a, Result<String, Failure>> {
        let mail = SesMail {
            from: mail.from,
            to: mail.to,
            bytes: mail.bytes,
            tenant: mail.tenant,
            configuration_set: mail.configuration_set,
            tags: mail.tags,
        };
        Box::pin(async move { self.0.send_raw(mail).await.map_err(failure) })
    }

    fn allowance(&self) -> BoxFuture<'_, Result<Allowance, Failure>> {
        Box::pin(async {
            let account = self.0.account().await.map_err(failure)?;
            Ok(Allowance {
                a_day: account.most_a_day,
                a_second: account.most_a_second,
                sent: account.sent,
                production: account.production,
                sending: account.sending,
            })
        })
    }

    fn region(&self) -> &str {
        self.0.region()
    }
}

fn failure(error: SesError) -> Failure {
    let kind = match error.kind {
        SesErrorKind::Credentials => FailureKind::Credentials,
        SesErrorKind::Denied => FailureKind::Denied,
        SesErrorKind::Rejected => FailureKind::Rejected,
        SesErrorKind::MailFrom => FailureKind::MailFrom,
        SesErrorKind::Stopped => FailureKind::Stopped,
        SesErrorKind::Rate => FailureKind::Rate,
        SesErrorKind::Quota => FailureKind::Quota,
        SesErrorKind::Invalid => FailureKind::Invalid,
        SesErrorKind::NotFound => FailureKind::NotFound,
        SesErrorKind::Unavailable => FailureKind::Unavailable,
        SesErrorKind::Unreachable => FailureKind::Unreachable,
        SesErrorKind::ConnectTimedOut => FailureKind::ConnectTimedOut,
        SesErrorKind::NoAnswer => FailureKind::NoAnswer,
    };
    Failure { kind, code: error.code, status: error.status, reason: error.reason }
}
