use bytes::Bytes;
use mail_parser::{MessageParser, MimeHeaders as _};
use proptest::prelude::*;
use voiceai_mail::message::{Attachment, ComposeError, Composition, Mailbox, compose, new_message_id};
use voiceai_mail::{Address, Class};

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text, "test").expect("a mailbox")
}

struct Parts {
    from: Mailbox,
    to: Vec<Mailbox>,
    subject: String,
    text: String,
    html: Option<String>,
    attachments: Vec<Attachment>,
    class: Class,
    unsubscribe: Option<&'static str>,
}

fn parts() -> Parts {
    Parts {
        from: mailbox("Delphi <noreply@example.com>"),
        to: vec![mailbox("Kim Bergér <kim@example.com>")],
        subject: "Grüße".into(),
        text: "Hello\n.\nWörld\n".into(),
        html: Some("<p>Wörld</p>".into()),
        attachments: Vec::new(),
        class: Class::Transactional,
        unsubscribe: None,
    }
}

fn composed(parts: &Parts) -> Result<Bytes, ComposeError> {
    compose(&Composition {
        message_id: "0193a1@example.com",
        idempotency_key: "notification:17",
        date: "2026-11-22T10:00:00Z".parse().expect("a time"),
        from: &parts.from,
        to: &parts.to,
        cc: &[],
        reply_to: &[],
        subject: &parts.subject,
        text: &parts.text,
        html: parts.html.as_deref(),
        attachments: &parts.attachments,
        class: parts.class,
        unsubscribe: parts.unsubscribe,
    })
}

#[test]
fn a_mail_says_what_it_must_and_reads_back_as_it_was() {
    let mut given = parts();
    given.attachments.push(Attachment {
        filename: "Übersicht.pdf".into(),
        content_type: "application/pdf".into(),
        content: Bytes::from_static(b"%PDF\r\n.\r\n\0\xff"),
    });
    let bytes = composed(&given).expect("it composes");
    assert!(bytes.is_ascii());
    let mail = MessageParser::default().parse(&bytes[..]).expect("it parses");
    assert_eq!(mail.message_id(), Some("0193a1@example.com"));
    assert_eq!(mail.subject(), Some("Grüße"));
    assert_eq!(mail.date().map(mail_parser::DateTime::to_rfc3339).as_deref(), Some("2026-11-22T10:00:00Z"));
    assert_eq!(mail.body_text(0).as_deref(), Some("Hello\r\n.\r\nWörld\r\n"));
    assert_eq!(mail.body_html(0).as_deref(), Some("<p>Wörld</p>"));
    let to = mail.to().and_then(|to| to.first()).expect("a recipient");
    assert_eq!((to.name(), to.address()), (Some("Kim Bergér"), Some("kim@example.com")));
    for (header, value) in [
        ("Auto-Submitted", "auto-generated"),
        ("X-Auto-Response-Suppress", "All"),
        ("X-Idempotency-Key", "notification:17"),
    ] {
        assert_eq!(mail.header(header).and_then(|value| value.as_text()), Some(value), "{header}");
    }
    let attached = mail.attachment(0).expect("an attachment");
    assert_eq!(attached.attachment_name(), Some("Übersicht.pdf"));
    assert_eq!(attached.contents(), b"%PDF\r\n.\r\n\0\xff");
    // The same mail, the same bytes: an attempt tomorrow sends what was committed today.
    assert_eq!(composed(&given).ok(), Some(bytes));
}

#[test]
fn a_text_alone_is_a_mail_of_one_part() {
    let mut given = parts();
    given.html = None;
    let bytes = composed(&given).expect("it composes");
    let text = String::from_utf8_lossy(&bytes);
    assert!(!text.contains("multipart/") && text.contains("quoted-printable"), "{text}");
}

#[test]
fn blind_copies_are_named_nowhere() {
    let mut given = parts();
    given.to.clear();
    let bytes = composed(&given).expect("it composes");
    assert!(String::from_utf8_lossy(&bytes).contains("To: undisclosed-recipients:;\r\n"));
}

#[test]
fn one_click_is_offered_where_it_is_asked_for_and_never_for_login_codes() {
    let mut given = parts();
    given.unsubscribe = Some("https://mail.example.com/u/abc");
    let bytes = composed(&given).expect("it composes");
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("List-Unsubscribe: <https://mail.example.com/u/abc>\r\n"));
    assert!(text.contains("List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"));
    given.class = Class::Auth;
    assert_eq!(composed(&given), Err(ComposeError::Unsubscribe));
    given.class = Class::Marketing;
    given.unsubscribe = Some("http://mail.example.com/u/abc");
    assert!(matches!(composed(&given), Err(ComposeError::Header { .. })));
}

#[test]
fn headers_cannot_be_injected() {
    let injected = "x\r\nBcc: eve@example.com";
    let mut subject = parts();
    subject.subject = injected.into();
    let mut name = parts();
    // The library panics on such a name.
    name.from.name = Some(injected.into());
    let mut file = parts();
    file.attachments.push(Attachment {
        filename: injected.into(),
        content_type: "text/plain".into(),
        content: Bytes::new(),
    });
    let mut content_type = parts();
    content_type.attachments.push(Attachment {
        filename: "a".into(),
        content_type: format!("text/plain; a=\"{injected}\""),
        content: Bytes::new(),
    });
    let mut nested = parts();
    nested.attachments.push(Attachment {
        filename: "a".into(),
        content_type: "message/rfc822".into(),
        content: Bytes::new(),
    });
    for (what, given) in
        [("subject", subject), ("name", name), ("file", file), ("type", content_type), ("nested", nested)]
    {
        let error = composed(&given).expect_err(what);
        assert!(!error.to_string().contains("eve@"), "{error}");
    }
    assert!(Mailbox::parse("Kim\r\nBcc: eve@example.com <kim@example.com>", "to[0]").is_err());
}

#[test]
fn an_address_that_needs_smtputf8_keeps_its_form() {
    let mut given = parts();
    given.to = vec![mailbox("kïm@bücher.example")];
    let bytes = composed(&given).expect("it composes");
    assert!(
        String::from_utf8_lossy(&bytes).contains("To: kïm@xn--bcher-kva.example\r\n"),
        "{}",
        String::from_utf8_lossy(&bytes)
    );
}

#[test]
fn message_ids_are_unique_and_at_the_senders_domain() {
    let from = Address::parse("noreply@example.com").expect("an address");
    let (one, two) = (new_message_id(&from), new_message_id(&from));
    assert!(one != two && one.ends_with("@example.com") && one.is_ascii());
}

proptest! {
    /// Whatever the texts are, what goes out has no bare line end, no long line, no NUL, and reads back.
    #[test]
    fn any_text_composes(text in any::<String>(), html in any::<String>(), subject in "[^\\p{Cc}\u{2028}\u{2029}]{0,240}", name in "[^\\p{Cc}]{1,60}") {
        let mut given = parts();
        given.text = text.clone();
        given.html = Some(html);
        given.subject = subject.clone();
        given.to[0].name = Some(name);
        let bytes = composed(&given).expect("any text composes");
        let mail = MessageParser::default().parse(&bytes[..]).expect("it parses");
        let normal = |text: &str| text.replace("\r\n", "\n").replace('\r', "\n").trim_end().to_owned();
        let read = mail.body_text(0).unwrap_or_default();
        prop_assert_eq!(normal(&read), normal(&text));
        prop_assert_eq!(mail.header_raw("Bcc"), None);
    }
}
