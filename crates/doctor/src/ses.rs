//! Amazon SES: the sender is verified, the account is out of the sandbox, and there is quota left.

use std::time::Duration;

use voiceai_aws::{AwsAccess, CallError, SesAccount, ses_account, ses_identity};
use voiceai_cli::doctor::{Doctor, Finding};
use voiceai_config::Reader;
use voiceai_config::catalogue::mail::EMAIL_SENDER_ADDRESS;
use voiceai_config::catalogue::transport::{EMAIL_TRANSPORT, EmailTransport, SES_ENDPOINT};

use crate::BOUND;

const CALL_WITHIN: Duration = Duration::from_secs(8);
/// Of a day's quota; above, a busy hour may end it.
const QUOTA_WARNING: f64 = 0.8;

/// Who sends by SES.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    access: AwsAccess,
    address: Option<String>,
}

impl Sender {
    /// `None` where mail goes another way.
    pub(crate) fn read(reader: &Reader<'_>) -> Option<Self> {
        if reader.get(&EMAIL_TRANSPORT) != EmailTransport::Ses {
            return None;
        }
        let endpoint =
            reader.optional(&SES_ENDPOINT).map(|url| url.as_str().trim_end_matches('/').to_owned());
        let access = AwsAccess { endpoint, ..AwsAccess::read(reader) };
        Some(Self { access, address: reader.optional(&EMAIL_SENDER_ADDRESS) })
    }
}

pub(crate) fn add(doctor: &mut Doctor, sender: Option<Sender>) {
    let of = sender.clone();
    doctor.check("ses.identity", BOUND, async move {
        match of {
            Some(sender) => identity(&sender).await,
            None => Finding::skipped("EMAIL_TRANSPORT is not ses"),
        }
    });
    for (name, judge) in [("ses.sandbox", sandbox as fn(&SesAccount) -> Finding), ("ses.quota", quota)] {
        let of = sender.clone();
        doctor.check(name, BOUND, async move {
            let Some(sender) = of else { return Finding::skipped("EMAIL_TRANSPORT is not ses") };
            match ses_account(&sender.access, CALL_WITHIN).await {
                Ok(account) => judge(&account),
                Err(error) => broken(error),
            }
        });
    }
}

fn broken(error: CallError) -> Finding {
    Finding::failed(error.to_string(), error.remedy)
}

async fn identity(sender: &Sender) -> Finding {
    let Some(address) = &sender.address else {
        return Finding::failed(
            "EMAIL_SENDER_ADDRESS is not set",
            "Set it to an address that SES has verified.",
        );
    };
    let region = &sender.access.region;
    match ses_identity(&sender.access, address, CALL_WITHIN).await {
        Ok(Some(found)) if !found.verified => Finding::failed(
            format!("{} is not verified at SES in {region}", found.name),
            "Finish its verification: follow the link that was sent, or publish the domain's records.",
        ),
        Ok(Some(found)) if !found.dkim => Finding::warning(
            format!("{} is verified, but its mail is not signed by DKIM", found.name),
            "Turn DKIM on for the domain and publish its three records.",
        ),
        Ok(Some(found)) => Finding::ok(format!("{} is verified, with DKIM", found.name)),
        Ok(None) => Finding::failed(
            format!("SES in {region} knows neither {address} nor its domain"),
            "Create the identity in that region, or correct EMAIL_SENDER_ADDRESS or AWS_REGION.",
        ),
        Err(error) => broken(error),
    }
}

fn sandbox(account: &SesAccount) -> Finding {
    if !account.sending {
        return Finding::failed(
            "SES has stopped the account's sending",
            "Look at the account's reputation in the SES console; bounces and complaints do this.",
        );
    }
    if account.production {
        return Finding::ok("production access");
    }
    Finding::failed(
        "the account is in the SES sandbox: mail goes to verified addresses only",
        "Ask AWS for production access in this region.",
    )
}

fn quota(account: &SesAccount) -> Finding {
    let rate = format!("at most {} a second", account.most_a_second);
    if account.most_a_day < 0.0 {
        return Finding::ok(format!("{} sent in 24 hours, no daily limit, {rate}", account.sent));
    }
    let evidence = format!("{} of {} sent in 24 hours, {rate}", account.sent, account.most_a_day);
    let remedy = "Ask AWS for a higher quota; lower MAIL_SEND_RATE until it is there.";
    if account.sent >= account.most_a_day {
        Finding::failed(evidence, remedy)
    } else if account.sent >= account.most_a_day * QUOTA_WARNING {
        Finding::warning(evidence, remedy)
    } else {
        Finding::ok(evidence)
    }
}

#[cfg(test)]
mod tests {
    use voiceai_cli::doctor::Verdict;
    use voiceai_config::{Binary, Resolved};
    use voiceai_testkit::{AwsFault, AwsFaults};

    use super::*;

    #[test]
    fn sandbox_and_quota_are_judged() {
        let account =
            SesAccount { production: true, sending: true, most_a_day: 100.0, most_a_second: 14.0, sent: 5.0 };
        assert_eq!((sandbox(&account).verdict(), quota(&account).verdict()), (Verdict::Ok, Verdict::Ok));
        let boxed = SesAccount { production: false, ..account.clone() };
        assert!(sandbox(&boxed).evidence().contains("sandbox"));
        let stopped = SesAccount { sending: false, ..account.clone() };
        assert_eq!(sandbox(&stopped).verdict(), Verdict::Failed);
        for (sent, verdict) in [(79.0, Verdict::Ok), (80.0, Verdict::Warning), (100.0, Verdict::Failed)] {
            assert_eq!(quota(&SesAccount { sent, ..account.clone() }).verdict(), verdict, "{sent}");
        }
        assert_eq!(quota(&SesAccount { most_a_day: -1.0, ..account }).verdict(), Verdict::Ok);
    }

    #[tokio::test]
    async fn an_identity_is_looked_for_by_address_and_by_domain() {
        let faults = AwsFaults::before(1).await;
        let pairs = [
            ("EMAIL_TRANSPORT", "ses"),
            ("EMAIL_SENDER_ADDRESS", "noreply@example.com"),
            ("SES_ENDPOINT", faults.endpoint()),
        ];
        let resolved = Resolved::from_pairs(Binary::Tasker, pairs);
        let mut sender = resolved.read(Sender::read).unwrap().settings.unwrap();
        sender.access.keys =
            Some((voiceai_runtime::Secret::new("AKIA"), voiceai_runtime::Secret::new("secret")));
        let by_address = "GET /v2/email/identities/noreply%40example.com";
        let by_domain = "GET /v2/email/identities/example.com";
        faults.set(by_address, Some(AwsFault::error("NotFoundException", "no such identity")));
        faults.set(by_domain, Some(AwsFault::error("NotFoundException", "no such identity")));
        let found = identity(&sender).await;
        assert!(found.evidence().contains("knows neither noreply@example.com"), "{found:?}");
        for (body, verdict) in [
            (r#"{"VerifiedForSendingStatus":true,"DkimAttributes":{"Status":"SUCCESS"}}"#, Verdict::Ok),
            (r#"{"VerifiedForSendingStatus":true,"DkimAttributes":{"Status":"PENDING"}}"#, Verdict::Warning),
            (r#"{"VerifiedForSendingStatus":false}"#, Verdict::Failed),
        ] {
            faults.set(by_domain, Some(AwsFault::Answer(200, body.to_owned())));
            assert_eq!(identity(&sender).await.verdict(), verdict, "{body}");
        }
        faults.set(by_address, Some(AwsFault::error("AccessDeniedException", "not authorized")));
        let found = identity(&sender).await;
        assert!(found.evidence().contains("ses:GetEmailIdentity"), "{found:?}");
    }
}
