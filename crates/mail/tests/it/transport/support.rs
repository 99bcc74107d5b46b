use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use voiceai_config::{Binary, Resolved};
use voiceai_egress::Rule;
use voiceai_mail::message::{Composition, Mailbox, compose, new_message_id};
use voiceai_mail::transport::{
    Credentials, Envelope, Outcome, Outgoing, SmtpSettings, SmtpTransport, Stage, Summary, TlsMode,
    Transport, Unrecorded, Withdraw,
};
use voiceai_mail::{Address, Class};
use voiceai_runtime::Secret;
use voiceai_testkit::Certificate;

/// Short limits: a test of a limit waits for it.
pub(crate) const LIMIT: Duration = Duration::from_millis(400);

pub(crate) fn settings(port: u16) -> SmtpSettings {
    SmtpSettings {
        host: "127.0.0.1".into(),
        port,
        tls: TlsMode::Off,
        ca_file: None,
        skip_verify: false,
        credentials: None,
        helo: Some("client.test".into()),
        phase_limit: Duration::from_secs(10),
        final_limit: Duration::from_secs(10),
        connections_max: 5,
        idle: Duration::from_secs(60),
        messages_max: 100,
        rules_file: None,
    }
}

/// The same with limits that pass while a test waits.
pub(crate) fn hasty(port: u16) -> SmtpSettings {
    SmtpSettings { phase_limit: LIMIT, final_limit: LIMIT, ..settings(port) }
}

pub(crate) fn transport(settings: &SmtpSettings) -> SmtpTransport {
    through(settings, Rule::default())
}

pub(crate) fn through(settings: &SmtpSettings, rule: Rule) -> SmtpTransport {
    let credentials = settings.credentials.clone();
    SmtpTransport::new(settings, rule, Arc::new(move || credentials.clone())).expect("the settings are sound")
}

pub(crate) fn rule(pairs: &[(&'static str, String)]) -> Rule {
    let pairs: Vec<(&'static str, &'static str)> =
        pairs.iter().map(|(name, value)| (*name, &*Box::leak(value.clone().into_boxed_str()))).collect();
    Resolved::from_pairs(Binary::Tasker, pairs).read(Rule::read).expect("sound").settings
}

pub(crate) fn login(user: &str, password: &str) -> Option<Credentials> {
    Some(Credentials { user: user.into(), password: Secret::new(password) })
}

/// The authority's certificate in a file; the folder goes with the value.
pub(crate) fn authority(certificate: &Certificate) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("authority.pem");
    certificate.write_authority(&path);
    (folder, path)
}

pub(crate) fn mail_to(recipient: &str) -> Outgoing {
    mail_with(recipient, "Hello\n.\n..\nFrom here\nlast")
}

pub(crate) fn mail_with(recipient: &str, text: &str) -> Outgoing {
    let from = Mailbox::parse("Delphi <noreply@example.com>", "from").expect("a sender");
    let message_id = new_message_id(&from.address);
    let to =
        Address::parse(recipient).map(|address| vec![Mailbox { name: None, address }]).unwrap_or_default();
    let bytes = compose(&Composition {
        message_id: &message_id,
        idempotency_key: "test:1",
        date: "2026-11-22T10:00:00Z".parse().expect("a time"),
        from: &from,
        to: &to,
        cc: &[],
        reply_to: &[],
        subject: "A test",
        text,
        html: None,
        attachments: &[],
        class: Class::Transactional,
        unsubscribe: None,
    })
    .expect("it composes");
    Outgoing {
        message_id,
        envelope: Envelope { from: "noreply@example.com".into(), to: recipient.into() },
        bytes,
        idempotency_key: "test:1".into(),
        tenant: None,
        class: Class::Transactional,
    }
}

/// A mail of about so many bytes.
pub(crate) fn large(recipient: &str, size: usize) -> Outgoing {
    let mut mail = forged(&format!("{}\r\n", "x".repeat(900)).repeat(size / 900));
    mail.envelope.to = recipient.into();
    mail
}

/// Bytes that no composition gives, behind sound headers.
pub(crate) fn forged(body: &str) -> Outgoing {
    let mut mail = mail_to("kim@example.com");
    let headers = format!(
        "From: a@example.com\r\nDate: Sun, 22 Nov 2026 10:00:00 +0000\r\nMessage-ID: <{}>\r\n\r\n",
        mail.message_id
    );
    mail.bytes = Bytes::from(format!("{headers}{body}"));
    mail
}

pub(crate) async fn send(transport: &impl Transport, mail: &Outgoing) -> Outcome {
    transport.send(mail, &Unrecorded).await
}

/// `Accepted`, or else what it was.
pub(crate) fn accepted(outcome: &Outcome) -> &Summary {
    assert!(matches!(outcome, Outcome::Accepted { .. }), "{outcome:?}");
    outcome.summary()
}

/// Counts how often content was about to go out, and allows it or not.
#[derive(Default)]
pub(crate) struct Counting {
    pub(crate) begun: AtomicUsize,
    pub(crate) refuse: bool,
}

impl Counting {
    pub(crate) fn count(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }
}

impl Stage for Counting {
    fn content_begins(&self) -> BoxFuture<'_, Result<(), Withdraw>> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::ready(if self.refuse {
            Err(Withdraw("the claim was lost".into()))
        } else {
            Ok(())
        }))
    }
}
