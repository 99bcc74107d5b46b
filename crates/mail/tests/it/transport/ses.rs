//! SES, on moto and on a double that fails as SES does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use voiceai_aws::{AwsAccess, SesClient};
use voiceai_egress::Rule;
use voiceai_mail::transport::ses::{SesSettings, SesTransport};
use voiceai_mail::transport::{Axis, Outcome, Phase, Reason, Transport as _};
use voiceai_runtime::Secret;
use voiceai_testkit::{AwsFault, AwsFaults, Moto};

use super::adapter::Ses;
use super::contract;
use super::support::{mail_to, send};

const SEND: &str = "POST /v2/email/outbound-emails";
const ACCOUNT: &str = "GET /v2/email/account";

fn transport(endpoint: &str) -> SesTransport {
    with(endpoint, Duration::from_secs(20), SesSettings::default(), true)
}

fn with(endpoint: &str, limit: Duration, settings: SesSettings, keys: bool) -> SesTransport {
    let access = AwsAccess {
        region: "us-east-1".into(),
        endpoint: Some(endpoint.into()),
        keys: keys.then(|| (Secret::new("AKIDTEST"), Secret::new("test-secret"))),
        instance_profile: !keys,
        renewed: None,
        way: Rule::default(),
    };
    SesTransport::new(Arc::new(Ses(SesClient::new(access, limit))), settings)
}

/// moto, with the sender's identity verified.
async fn moto() -> Moto {
    let moto = Moto::start().await;
    let http = |method: &str, path: &str, body: &str| {
        let (method, url, body) = (method.to_owned(), format!("{}{path}", moto.endpoint()), body.to_owned());
        async move {
            let output = tokio::process::Command::new("curl")
                .args(["-sf", "-X", &method, &url, "-H", "content-type: application/json", "-d", &body])
                .args([
                    "-H",
                    "authorization: AWS4-HMAC-SHA256 Credential=AKIDTEST/20261122/us-east-1/ses/aws4_request",
                ])
                .output()
                .await
                .expect("curl");
            assert!(output.status.success(), "{output:?}");
        }
    };
    http("POST", "/v2/email/identities", r#"{"EmailIdentity": "noreply@example.com"}"#).await;
    moto
}

async fn sent(moto: &Moto) -> String {
    let url = format!("{}/moto-api/data.json", moto.endpoint());
    let output = tokio::process::Command::new("curl").args(["-sf", &url]).output().await.expect("curl");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn ses_keeps_the_contract_and_fails_as_it_should() {
    let moto = moto().await;
    let faults = AwsFaults::before(moto.port()).await;
    let fresh = || transport(faults.endpoint());
    let ses = fresh();
    assert_eq!(ses.name(), "ses");
    contract::holds(&ses, true).await;
    let mail = mail_to("kim@example.com");
    let outcome = send(&ses, &mail).await;
    assert!(
        matches!(&outcome, Outcome::Accepted { provider_id: Some(id), .. } if !id.is_empty()),
        "{outcome:?}"
    );
    // The identity and the key by which a duplicate can be told are in what SES was given.
    let data = sent(&moto).await;
    assert!(
        data.contains(&mail.message_id) && data.contains("X-Idempotency-Key"),
        "the raw message is what was composed"
    );

    let mut unverified = mail_to("kim@example.com");
    unverified.envelope.from = "other@example.org".into();
    let outcome = send(&ses, &unverified).await;
    assert!(
        matches!(&outcome, Outcome::ProviderFault { summary, .. }
            if summary.reason == Reason::Sender && summary.text.contains("MessageRejected") && summary.text.contains("EMAIL_SENDER_ADDRESS")),
        "{outcome:?}"
    );

    for (code, message, status, reason, phase) in [
        (
            "TooManyRequestsException",
            "Maximum sending rate exceeded.",
            429,
            Reason::RateLimited,
            Phase::Final,
        ),
        ("LimitExceededException", "Daily message quota exceeded.", 400, Reason::Quota, Phase::Final),
        (
            "AccessDeniedException",
            "not authorized to perform ses:SendEmail",
            403,
            Reason::Authentication,
            Phase::Auth,
        ),
        ("ExpiredTokenException", "The security token is expired", 403, Reason::Authentication, Phase::Auth),
        ("AccountSuspendedException", "suspended", 400, Reason::Policy, Phase::Mail),
        ("SendingPausedException", "paused", 400, Reason::Policy, Phase::Mail),
        ("MailFromDomainNotVerifiedException", "MAIL FROM", 400, Reason::Sender, Phase::Mail),
        ("NotFoundException", "Configuration set <x> does not exist.", 404, Reason::Policy, Phase::Mail),
        ("InternalFailure", "try later", 500, Reason::Unavailable, Phase::Final),
    ] {
        let body = format!(r#"{{"__type":"{code}","message":"{message}"}}"#);
        faults.set(SEND, Some(AwsFault::Answer(status, body)));
        let outcome = send(&fresh(), &mail).await;
        let Outcome::ProviderFault { summary, .. } = &outcome else { panic!("{code}: {outcome:?}") };
        assert_eq!((summary.reason, summary.phase, summary.code), (reason, phase, Some(status)), "{code}");
        assert!(summary.text.contains(code), "{summary:?}");
        assert_eq!(
            faults.asked(SEND),
            {
                faults.set(SEND, None);
                faults.asked(SEND)
            },
            "no call is repeated here"
        );
    }
    for (message, reason) in [
        (
            "Email address is not verified. The following identities failed the check in region US-EAST-1: kim@example.com",
            Reason::Policy,
        ),
        ("Bad content", Reason::Content),
    ] {
        faults.set(SEND, Some(AwsFault::error("MessageRejected", message)));
        let outcome = send(&fresh(), &mail).await;
        assert!(
            matches!(&outcome, Outcome::Refused { axis: Axis::Message, summary }
                if summary.reason == reason && summary.text.contains("MessageRejected")),
            "{outcome:?}"
        );
    }
    // An answer that never comes, or breaks off: SES may have taken it.
    faults.set(SEND, Some(AwsFault::Hang));
    let hasty = with(faults.endpoint(), Duration::from_millis(700), SesSettings::default(), true);
    assert!(matches!(send(&hasty, &mail).await, Outcome::Unknown { .. }));
    faults.set(SEND, Some(AwsFault::Truncated(3)));
    let outcome = send(&fresh(), &mail).await;
    assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
}

#[tokio::test]
async fn the_accounts_allowance_is_respected() {
    let moto = moto().await;
    let faults = AwsFaults::before(moto.port()).await;
    let account = |sending: bool, most: u32, rate: u32, sent: u32| {
        let body = format!(
            r#"{{"ProductionAccessEnabled":true,"SendingEnabled":{sending},"SendQuota":{{"Max24HourSend":{most},"MaxSendRate":{rate},"SentLast24Hours":{sent}}}}}"#
        );
        faults.set(ACCOUNT, Some(AwsFault::Answer(200, body)));
        transport(faults.endpoint())
    };
    let mail = mail_to("kim@example.com");
    let outcome = send(&account(true, 100, 10, 100), &mail).await;
    assert!(
        matches!(&outcome, Outcome::ProviderFault { summary, .. } if summary.reason == Reason::Quota),
        "{outcome:?}"
    );
    let outcome = send(&account(false, 100, 10, 0), &mail).await;
    assert!(
        matches!(&outcome, Outcome::ProviderFault { summary, .. } if summary.reason == Reason::Policy),
        "{outcome:?}"
    );
    assert_eq!(faults.asked(SEND), 0, "SES was not asked for what it would not do");

    // Two left: the third waits for the window, and SES is asked for its account once.
    let asked = faults.asked(ACCOUNT);
    let ses = account(true, 100, 100, 98);
    for _ in 0..2 {
        assert!(matches!(send(&ses, &mail).await, Outcome::Accepted { .. }));
    }
    assert!(matches!(send(&ses, &mail).await, Outcome::ProviderFault { .. }));
    assert_eq!(faults.asked(ACCOUNT), asked + 1);

    // Ten in a second and nine tenths of them: ten mails take a second at least.
    let ses = account(true, 1000, 10, 0);
    let started = Instant::now();
    let outcomes = futures_util::future::join_all((0..10).map(|_| send(&ses, &mail))).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Accepted { .. })), "{outcomes:?}");
    assert!(started.elapsed() >= Duration::from_millis(950), "{:?}", started.elapsed());

    // A role that may send and not ask.
    faults.set(
        ACCOUNT,
        Some(AwsFault::Answer(403, r#"{"__type":"AccessDeniedException","message":"no"}"#.into())),
    );
    assert!(matches!(send(&transport(faults.endpoint()), &mail).await, Outcome::Accepted { .. }));
}

#[tokio::test]
async fn ses_that_cannot_be_reached_and_a_host_without_credentials() {
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", gone.local_addr().expect("bound"));
    drop(gone);
    let mail = mail_to("kim@example.com");
    let outcome = send(&transport(&endpoint), &mail).await;
    assert!(
        matches!(&outcome, Outcome::ProviderFault { summary, .. } if summary.reason == Reason::Network && summary.phase == Phase::Connect),
        "{outcome:?}"
    );
    // No metadata service answers in a test (AWS_EC2_METADATA_DISABLED, or nothing at its address).
    let outcome = send(&with(&endpoint, Duration::from_secs(20), SesSettings::default(), false), &mail).await;
    let Outcome::ProviderFault { summary, .. } = &outcome else { panic!("{outcome:?}") };
    assert_eq!((summary.reason, summary.phase), (Reason::Authentication, Phase::Auth), "{outcome:?}");
    assert!(
        summary.text.contains("CredentialsProviderError") && summary.text.contains("hop limit to 2"),
        "{outcome:?}"
    );
}
