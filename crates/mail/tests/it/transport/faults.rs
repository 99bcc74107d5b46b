//! The fault matrix: for each thing that a server or the way to it can do wrong, what an attempt records.

use std::time::{Duration, Instant};

use voiceai_mail::transport::{
    Axis, Outcome, Outgoing, Phase, Reason, SmtpSettings, SmtpTransport, Summary, TlsMode, Transport as _,
};
use voiceai_testkit::{Act, Certificate, SinkOptions, SinkTls, SmtpSink, Step};

use super::support::{
    Counting, LIMIT, accepted, authority, hasty, large, login, mail_to, send, settings, transport,
};

pub(super) fn provider_fault(outcome: &Outcome) -> &Summary {
    assert!(matches!(outcome, Outcome::ProviderFault { .. }), "{outcome:?}");
    outcome.summary()
}

pub(super) fn timed_out(outcome: &Outcome) -> &Summary {
    assert!(matches!(outcome, Outcome::TimedOut { .. }), "{outcome:?}");
    assert_eq!(outcome.summary().reason, Reason::TimedOut);
    outcome.summary()
}

fn unknown(outcome: &Outcome) -> &Summary {
    assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
    outcome.summary()
}

pub(super) fn mail() -> Outgoing {
    mail_to("kim@example.com")
}

/// Ends within its limits, and not much later.
pub(super) async fn bounded(smtp: &SmtpTransport, mail: &Outgoing, phases: u32) -> Outcome {
    let started = Instant::now();
    let outcome = send(smtp, mail).await;
    assert!(
        started.elapsed() < LIMIT * phases + Duration::from_secs(2),
        "{outcome:?} after {:?}",
        started.elapsed()
    );
    outcome
}

#[tokio::test]
async fn silence_at_each_step_ends_within_the_phases_limit() {
    for (step, phase) in [
        (Step::Greeting, Phase::Connect),
        (Step::Ehlo, Phase::Connect),
        (Step::Mail, Phase::Mail),
        (Step::Rcpt, Phase::Rcpt),
        (Step::Data, Phase::Data),
    ] {
        let sink = SmtpSink::start().await;
        sink.once(step, Act::Hang);
        let smtp = transport(&hasty(sink.port()));
        assert_eq!(timed_out(&bounded(&smtp, &mail(), 1).await).phase, phase, "{step:?}");
        assert_eq!(sink.count(), 0);
        // The connection that hung is not used again.
        accepted(&send(&smtp, &mail()).await);
        assert_eq!(sink.connections(), 2, "{step:?}");
    }
}

#[tokio::test]
async fn silence_after_the_final_dot_is_unknown_and_bounded() {
    let sink = SmtpSink::start().await;
    sink.once(Step::Dot, Act::Hang);
    let smtp = transport(&SmtpSettings {
        phase_limit: Duration::from_secs(30),
        final_limit: LIMIT,
        ..settings(sink.port())
    });
    let (mail, stage) = (mail(), Counting::default());
    let outcome = smtp.send(&mail, &stage).await;
    assert_eq!((unknown(&outcome).phase, stage.count()), (Phase::Final, 1));
    // The same mail again, should the operator's policy ask for it: the same Message-ID.
    accepted(&send(&smtp, &mail).await);
    let ids: Vec<_> = sink.received().iter().filter_map(|mail| mail.header("Message-ID")).collect();
    assert_eq!(ids, vec![format!("<{}>", mail.message_id); 2]);
}

#[tokio::test]
async fn a_connection_that_dies_after_the_final_dot_is_unknown_and_before_it_is_not() {
    let sink = SmtpSink::start().await;
    let smtp = transport(&settings(sink.port()));
    sink.once(Step::Dot, Act::Drop);
    assert_eq!(unknown(&send(&smtp, &mail()).await).phase, Phase::Final);

    sink.once(Step::Data, Act::Drop);
    let outcome = send(&smtp, &mail()).await;
    assert!(
        matches!(&outcome, Outcome::Deferred { axis: Axis::Message, summary, .. } if summary.phase == Phase::Data),
        "{outcome:?}"
    );
    // In the middle of a content that is too large for the network's buffers.
    sink.once(Step::Content, Act::Drop);
    let outcome = send(&smtp, &large("kim@example.com", 6_000_000)).await;
    assert!(
        matches!(&outcome, Outcome::Deferred { axis: Axis::Message, summary, .. } if summary.phase == Phase::Data),
        "{outcome:?}"
    );
    assert_eq!(sink.count(), 1);
}

#[tokio::test]
async fn content_that_does_not_move_ends_and_content_that_is_slow_does_not() {
    let sink = SmtpSink::start().await;
    let smtp = transport(&hasty(sink.port()));
    sink.once(Step::Content, Act::Hang);
    assert_eq!(timed_out(&bounded(&smtp, &large("kim@example.com", 6_000_000), 3).await).phase, Phase::Data);
    // A server that thinks about the dot for longer than a phase may last has its own limit.
    let patient = transport(&SmtpSettings { final_limit: Duration::from_secs(20), ..hasty(sink.port()) });
    sink.once(Step::Dot, Act::Late(LIMIT * 2));
    accepted(&send(&patient, &mail()).await);
}

#[tokio::test]
async fn service_not_available_pauses_the_provider_at_each_step() {
    for step in [Step::Greeting, Step::Ehlo, Step::Mail, Step::Rcpt, Step::Data, Step::Dot] {
        let sink = SmtpSink::start().await;
        // It stays connected and silent: nothing is waited for behind a 421.
        sink.once(step, Act::reply("421 4.3.2 going down, try again in 90 seconds"));
        let smtp = transport(&settings(sink.port()));
        let started = Instant::now();
        let outcome = send(&smtp, &mail()).await;
        let Outcome::ProviderFault { retry_after, summary } = &outcome else {
            panic!("{step:?} {outcome:?}")
        };
        assert_eq!((*retry_after, summary.code), (Some(Duration::from_secs(90)), Some(421)), "{step:?}");
        assert_eq!((summary.reason, summary.enhanced.as_deref()), (Reason::Unavailable, Some("4.3.2")));
        assert!(started.elapsed() < Duration::from_secs(3), "{step:?} took {:?}", started.elapsed());
        assert_eq!(sink.count(), 0, "{step:?}");
        accepted(&send(&smtp, &mail()).await);
        assert_eq!(sink.connections(), 2, "a connection that said 421 is not used again ({step:?})");
    }
}

#[tokio::test]
async fn a_server_that_gives_up_or_falls_silent_before_the_login_pauses_the_provider() {
    let certificate = Certificate::localhost();
    let (_folder, ca_file) = authority(&certificate);
    for (step, phase) in [(Step::Starttls, Phase::Starttls), (Step::Auth, Phase::Auth)] {
        let sink = SmtpSink::with(SinkOptions {
            tls: SinkTls::Starttls(certificate.clone()),
            login: Some(("mailer".to_owned(), "first".to_owned())),
            ..SinkOptions::default()
        })
        .await;
        let smtp = transport(&SmtpSettings {
            tls: TlsMode::Starttls,
            ca_file: Some(ca_file.clone()),
            credentials: login("mailer", "first"),
            ..hasty(sink.port())
        });
        sink.once(step, Act::reply("421 4.3.2 going down"));
        let outcome = send(&smtp, &mail()).await;
        assert_eq!(
            (provider_fault(&outcome).phase, provider_fault(&outcome).code),
            (phase, Some(421)),
            "{outcome:?}"
        );
        sink.once(step, Act::Hang);
        assert_eq!(timed_out(&bounded(&smtp, &mail(), 3).await).phase, phase);
        sink.once(step, Act::Drop);
        assert_eq!(provider_fault(&send(&smtp, &mail()).await).phase, phase);
        assert_eq!(sink.count(), 0);
        accepted(&send(&smtp, &mail()).await);
    }
}

#[tokio::test]
async fn replies_are_laid_at_the_right_door() {
    #[derive(Debug, PartialEq)]
    enum Door {
        Recipient,
        Message,
        Provider,
        RecipientLater(Option<u64>),
        MessageLater(Option<u64>),
    }
    let sink = SmtpSink::start().await;
    let smtp = transport(&settings(sink.port()));
    for (step, reply, door, reason) in [
        (Step::Rcpt, "550 5.1.1 no such user", Door::Recipient, Reason::Mailbox),
        (Step::Rcpt, "550 no such user", Door::Recipient, Reason::Mailbox),
        (Step::Rcpt, "550 5.7.1 blocked", Door::Message, Reason::Policy),
        (
            Step::Rcpt,
            "450 4.2.1 try again in 30 seconds",
            Door::RecipientLater(Some(30)),
            Reason::MailboxBusy,
        ),
        (
            Step::Rcpt,
            "451-4.7.1 greylisted\n451 4.7.1 come again later",
            Door::RecipientLater(None),
            Reason::Policy,
        ),
        (Step::Rcpt, "452 4.2.2 mailbox full", Door::RecipientLater(None), Reason::MailboxBusy),
        (Step::Mail, "452 4.3.1 insufficient system storage", Door::Provider, Reason::Unavailable),
        (Step::Dot, "452 4.5.3 daily sending quota exceeded", Door::Provider, Reason::Quota),
        (
            Step::Dot,
            "454 Throttling failure: Maximum sending rate exceeded.",
            Door::Provider,
            Reason::RateLimited,
        ),
        (Step::Dot, "552 5.3.4 too big", Door::Message, Reason::TooLarge),
        (Step::Dot, "554 5.6.0 no", Door::Message, Reason::Content),
        (Step::Data, "451 4.3.0 retry in 2 minutes", Door::MessageLater(Some(120)), Reason::Unavailable),
        (Step::Dot, "451", Door::MessageLater(None), Reason::Unavailable),
        (Step::Mail, "530 5.7.0 log in first", Door::Provider, Reason::Authentication),
        (Step::Mail, "550 5.7.1 who are you", Door::Provider, Reason::Sender),
        (Step::Data, "250 strange", Door::Provider, Reason::Protocol),
        (Step::Mail, "354 strange", Door::Provider, Reason::Protocol),
    ] {
        sink.once(step, Act::reply(reply));
        let outcome = send(&smtp, &mail()).await;
        let seconds = |wait: &Option<Duration>| wait.map(|wait| wait.as_secs());
        let found = match &outcome {
            Outcome::Refused { axis: Axis::Recipient, .. } => Door::Recipient,
            Outcome::Refused { axis: Axis::Message, .. } => Door::Message,
            Outcome::ProviderFault { .. } => Door::Provider,
            Outcome::Deferred { axis: Axis::Recipient, retry_after, .. } => {
                Door::RecipientLater(seconds(retry_after))
            }
            Outcome::Deferred { axis: Axis::Message, retry_after, .. } => {
                Door::MessageLater(seconds(retry_after))
            }
            _ => panic!("{reply}: {outcome:?}"),
        };
        assert_eq!((found, outcome.summary().reason), (door, reason), "{reply}");
    }
    assert_eq!(sink.count(), 0);
    // After all that, a mail goes out.
    accepted(&send(&smtp, &mail()).await);
}

#[tokio::test]
async fn a_refusal_leaves_the_connection_fit_for_the_next_mail() {
    let sink = SmtpSink::start().await;
    let smtp = transport(&settings(sink.port()));
    sink.recipient("bounce@example.com", Act::reply("550 5.1.1 no such user"));
    for _ in 0..3 {
        assert!(matches!(send(&smtp, &mail_to("bounce@example.com")).await, Outcome::Refused { .. }));
        accepted(&send(&smtp, &mail()).await);
    }
    assert_eq!((sink.connections(), sink.count()), (1, 3));
    assert!(sink.received().iter().all(|mail| mail.to == ["kim@example.com"]), "no recipient is left over");
}

#[tokio::test]
async fn odd_replies_are_read() {
    let sink = SmtpSink::start().await;
    let smtp = transport(&settings(sink.port()));
    sink.once(Step::Greeting, Act::Bytes(b"220-one\r\n220-\r\n220 two\n".to_vec()));
    sink.once(Step::Ehlo, Act::Bytes(b"250-x\r\n250-size\r\n250 \xe4\xf6\xfc\r\n".to_vec()));
    sink.once(Step::Mail, Act::Bytes(b"250\r\n".to_vec()));
    sink.once(Step::Rcpt, Act::Bytes(format!("250 {}\r\n", "x".repeat(5000)).into_bytes()));
    accepted(&send(&smtp, &mail()).await);
    // Not UTF-8, in an answer that decides.
    sink.once(Step::Rcpt, Act::Bytes(b"550 5.1.1 unbekannter Empf\xe4nger\r\n".to_vec()));
    let outcome = send(&smtp, &mail()).await;
    assert!(matches!(&outcome, Outcome::Refused { axis: Axis::Recipient, .. }), "{outcome:?}");
    let nonsense = SmtpSink::start().await;
    nonsense.once(Step::Greeting, Act::reply("SSH-2.0-OpenSSH_9.2"));
    let outcome = send(&transport(&hasty(nonsense.port())), &mail()).await;
    assert_eq!(provider_fault(&outcome).reason, Reason::Protocol, "{outcome:?}");
}

#[tokio::test]
async fn a_server_that_lets_go_of_idle_connections_costs_no_attempt() {
    let sink = SmtpSink::start().await;
    let smtp = transport(&settings(sink.port()));
    accepted(&send(&smtp, &mail()).await);
    for act in [Act::Drop, Act::reply("421 4.4.2 idle for too long")] {
        sink.once(Step::Mail, act);
        accepted(&send(&smtp, &mail()).await);
    }
    assert_eq!((sink.count(), sink.connections()), (3, 3));
}

#[tokio::test]
async fn what_is_not_offered_is_not_used() {
    let bare = SmtpSink::with(SinkOptions { offers: Vec::new(), ..SinkOptions::default() }).await;
    let smtp = transport(&settings(bare.port()));
    accepted(&send(&smtp, &mail()).await);
    assert_eq!(bare.received()[0].parameters, "");
    assert!(bare.received()[0].content.is_ascii());
    let foreign = mail_to("kïm@example.com");
    let outcome = send(&smtp, &foreign).await;
    assert!(
        matches!(&outcome, Outcome::Refused { axis: Axis::Message, summary } if summary.text.contains("SMTPUTF8")),
        "{outcome:?}"
    );
    let full = SmtpSink::start().await;
    accepted(&send(&transport(&settings(full.port())), &foreign).await);
    let received = &full.received()[0];
    assert_eq!(received.to, ["kïm@example.com"]);
    assert!(
        received.parameters.contains("SMTPUTF8") && received.parameters.contains("BODY=8BITMIME"),
        "{received:?}"
    );
    let small =
        SmtpSink::with(SinkOptions { offers: vec!["SIZE 500".into()], ..SinkOptions::default() }).await;
    let outcome = send(&transport(&settings(small.port())), &large("kim@example.com", 5000)).await;
    assert!(
        matches!(&outcome, Outcome::Refused { summary, .. } if summary.reason == Reason::TooLarge),
        "{outcome:?}"
    );
    assert!(!small.commands().contains(&"MAIL".to_owned()), "nothing was begun");
}

#[tokio::test]
async fn a_dot_at_the_start_of_a_line_arrives_as_it_was_sent() {
    let sink = SmtpSink::start().await;
    let mail = mail();
    accepted(&send(&transport(&settings(sink.port())), &mail).await);
    let content = sink.received()[0].content.clone();
    assert_eq!(content, mail.bytes, "byte for byte");
}
