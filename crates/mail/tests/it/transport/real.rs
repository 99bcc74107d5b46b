//! Exim, directly and through Squid.

use mail_parser::MessageParser;
use voiceai_egress::Rule;
use voiceai_mail::transport::{Axis, Outcome, Phase, Reason, SmtpSettings, TlsMode};
use voiceai_testkit::{Exim, Squid, SquidOptions};

use super::support::{accepted, authority, large, login, mail_to, rule, send, settings, through};

async fn converse(exim: &Exim, way: Rule) {
    let (_folder, ca_file) = authority(exim.certificate());
    let settings = SmtpSettings {
        tls: TlsMode::Starttls,
        ca_file: Some(ca_file),
        credentials: login(Exim::USER, Exim::PASSWORD),
        ..settings(exim.port())
    };
    let smtp = through(&settings, way.clone());
    let before = exim.delivered().len();
    let mail = mail_to("kim@example.com");
    let outcome = send(&smtp, &mail).await;
    let summary = accepted(&outcome);
    assert_eq!((summary.phase, summary.code), (Phase::Final, Some(250)));
    assert!(summary.tls.as_deref().is_some_and(|tls| tls.starts_with("TLSv1.3 TLS13_")), "{summary:?}");
    let Outcome::Accepted { provider_id: Some(id), .. } = &outcome else { panic!("{outcome:?}") };
    assert!(exim.log().contains(id.as_str()), "exim knows {id}");

    // Each recipient's own answer, on the same connection.
    let bounced = send(&smtp, &mail_to("bounce@example.com")).await;
    assert!(
        matches!(&bounced, Outcome::Refused { axis: Axis::Recipient, summary }
            if summary.reason == Reason::Mailbox && summary.enhanced.as_deref() == Some("5.1.1") && summary.phase == Phase::Rcpt),
        "{bounced:?}"
    );
    let later = send(&smtp, &mail_to("later@example.com")).await;
    assert!(
        matches!(&later, Outcome::Deferred { axis: Axis::Recipient, retry_after: Some(wait), .. } if wait.as_secs() == 300),
        "{later:?}"
    );
    let big = send(&smtp, &large("kim@example.com", 400_000)).await;
    assert!(
        matches!(&big, Outcome::Refused { axis: Axis::Message, summary } if summary.reason == Reason::TooLarge),
        "{big:?}"
    );
    accepted(&send(&smtp, &mail_to("lee@example.com")).await);

    let delivered = exim.wait_for(before + 2).await;
    let found =
        delivered.iter().find(|text| text.contains(&mail.message_id)).expect("the mail was delivered");
    let parsed = MessageParser::default().parse(found.as_bytes()).expect("it parses");
    let text = parsed.body_text(0).unwrap_or_default().replace("\r\n", "\n");
    assert_eq!(text.trim_end(), "Hello\n.\n..\nFrom here\nlast");

    let wrong = SmtpSettings { credentials: login(Exim::USER, "wrong"), ..settings };
    let refused = send(&through(&wrong, way), &mail_to("kim@example.com")).await;
    assert!(
        matches!(&refused, Outcome::ProviderFault { summary, .. }
            if summary.phase == Phase::Auth && summary.code == Some(535) && summary.reason == Reason::Authentication),
        "{refused:?}"
    );
    assert!(!format!("{refused:?}").contains("wrong"), "a password in a record: {refused:?}");
}

#[tokio::test]
async fn exim_directly() {
    let exim = Exim::start().await;
    converse(&exim, Rule::default()).await;
}

#[tokio::test]
async fn exim_through_squid() {
    let exim = Exim::start().await;
    let squid = Squid::start(SquidOptions { ports: vec![exim.port()], login: Some(("ops", "secret")) }).await;
    converse(&exim, rule(&[("HTTPS_PROXY", squid.url())])).await;
    squid.wait_for_log(&format!("CONNECT 127.0.0.1:{}", exim.port())).await;
}
