//! What every transport promises, asked of each of them.

use voiceai_mail::transport::{Axis, Outcome, Reason, StubTransport, Transport};
use voiceai_testkit::SmtpSink;

use super::support::{Counting, forged, mail_to, settings, transport};

/// Runs the contract. `delivers` says whether mail really goes out, and so whether the stage is reached.
pub(crate) async fn holds(transport: &dyn Transport, delivers: bool) {
    // A sound mail is taken over or recorded as suppressed, and the stage is reached exactly when content goes out.
    let mail = mail_to("kim@example.com");
    let stage = Counting::default();
    let outcome = transport.send(&mail, &stage).await;
    if delivers {
        assert!(matches!(outcome, Outcome::Accepted { .. }), "{outcome:?}");
        assert!(
            outcome.summary().reason == Reason::None && !outcome.summary().host.is_empty(),
            "{outcome:?}"
        );
    } else {
        assert!(matches!(outcome, Outcome::Suppressed { .. }), "{outcome:?}");
    }
    assert_eq!(stage.count(), usize::from(delivers));

    // The same mail may be sent again: nothing of the first attempt is left behind.
    let again = transport.send(&mail, &Counting::default()).await;
    assert_eq!(std::mem::discriminant(&again), std::mem::discriminant(&outcome), "{again:?}");

    // What must not be sent is refused by whose fault it is, before anybody hears of it.
    for (mail, axis) in [
        (forged("text\r\n.\nMAIL FROM:<eve@example.com>\r\n"), Axis::Message),
        (forged("a\0b\r\n"), Axis::Message),
        (forged(&format!("{}\r\n", "x".repeat(1200))), Axis::Message),
        (
            {
                let mut mail = mail_to("kim@example.com");
                mail.envelope.to = "kim@example.com>\r\nRCPT TO:<eve@example.com".into();
                mail
            },
            Axis::Recipient,
        ),
        (
            {
                let mut mail = mail_to("kim@example.com");
                mail.message_id = "other@example.com".into();
                mail
            },
            Axis::Message,
        ),
    ] {
        let stage = Counting::default();
        let outcome = transport.send(&mail, &stage).await;
        let Outcome::Refused { axis: found, summary } = &outcome else { panic!("{outcome:?}") };
        assert_eq!((*found, summary.reason, stage.count()), (axis, Reason::Malformed, 0), "{outcome:?}");
        assert!(!summary.text.contains("eve@"), "{summary:?}");
    }

    // A caller that has lost the right to send is obeyed.
    if delivers {
        let refusing = Counting { refuse: true, ..Counting::default() };
        let outcome = transport.send(&mail_to("kim@example.com"), &refusing).await;
        assert!(
            matches!(&outcome, Outcome::Withdrawn { summary } if summary.text.contains("claim was lost")),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn smtp_keeps_the_contract() {
    let sink = SmtpSink::start().await;
    let smtp = transport(&settings(sink.port()));
    assert_eq!(smtp.name(), "smtp");
    holds(&smtp, true).await;
    assert_eq!(sink.count(), 2);
}

#[tokio::test]
async fn the_stub_keeps_the_contract() {
    assert_eq!(StubTransport.name(), "stub");
    holds(&StubTransport, false).await;
}
