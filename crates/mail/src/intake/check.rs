use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::command::{Attachment, Command, Content};
use crate::Address;
use crate::delivery::words;
use crate::message::subject_fits;
use crate::settings::Limits;

words! {
    /// In which header a recipient stands.
    RecipientKind {
        /// `To`.
        To = "to",
        /// `Cc`.
        Cc = "cc",
        /// In none.
        Bcc = "bcc",
    }
}

/// A command that cannot be a delivery.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejected {
    /// A fixed word: `invalid_address`, `too_many_recipients`, …
    pub code: &'static str,
    /// What is wrong, and where. Repeats no address and no content.
    pub message: String,
}

impl Rejected {
    /// Every word there is: their counters begin at nought, so that the first of a kind is seen to be one more.
    pub(crate) const CODES: [&'static str; 26] = [
        "duplicate_field",
        "idempotency_conflict",
        "invalid_address",
        "invalid_attachment",
        "invalid_content",
        "invalid_delivery_id",
        "invalid_encoding",
        "invalid_field",
        "invalid_idempotency_key",
        "invalid_locale",
        "invalid_payload_json",
        "invalid_payload_mode",
        "invalid_priority",
        "invalid_requested_at_ms",
        "invalid_source",
        "invalid_subject",
        "invalid_template_id",
        "invalid_tenant",
        "missing_content",
        "missing_field",
        "no_recipient",
        "too_large",
        "too_many_attachments",
        "too_many_recipients",
        "too_old",
        "unstorable",
    ];

    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        debug_assert!(Self::CODES.contains(&code), "{code} is not among Rejected::CODES");
        Self { code, message: message.into() }
    }
}

/// Who gets it: one mailbox once, in the first header that named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recipient {
    pub(crate) kind: RecipientKind,
    pub(crate) address: Address,
}

/// A command whose every part may go into a mail.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) command: Command,
    pub(crate) recipients: Vec<Recipient>,
    pub(crate) fingerprint: [u8; 32],
}

const PRIORITY_MAX: u8 = 10;

/// Checks everything that does not need a template: ids, addresses, header values, counts and sizes.
pub(crate) fn check(command: Command, limits: &Limits) -> Result<Checked, Rejected> {
    check_id("invalid_delivery_id", "delivery_id", &command.delivery_id, 128)?;
    check_id("invalid_idempotency_key", "idempotency_key", &command.idempotency_key, 256)?;
    for (name, value) in [("request_id", &command.request_id), ("trace_id", &command.trace_id)] {
        if let Some(value) = value {
            check_id("invalid_field", name, value, 256)?;
        }
    }
    if let Some(tenant) = &command.tenant {
        check_id("invalid_tenant", "tenant", tenant, 64)?;
    }
    if command.priority.is_some_and(|priority| priority > PRIORITY_MAX) {
        return Err(Rejected::new("invalid_priority", "priority is more than 10"));
    }
    let recipients = recipients(&command, limits)?;
    for (at, address) in command.reply_to.iter().enumerate() {
        address_of("reply_to", at, address)?;
    }
    check_content(&command.content)?;
    check_attachments(&command.attachments, limits)?;
    check_size(&command, limits)?;
    let fingerprint = fingerprint(&command);
    Ok(Checked { command, recipients, fingerprint })
}

fn check_id(code: &'static str, name: &str, value: &str, longest: usize) -> Result<(), Rejected> {
    if value.is_empty() || value.len() > longest {
        return Err(Rejected::new(
            code,
            format!("{name} has {} bytes; expected 1 to {longest}", value.len()),
        ));
    }
    if value.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Rejected::new(code, format!("{name} holds blanks or control characters")));
    }
    Ok(())
}

fn address_of(field: &str, at: usize, text: &str) -> Result<Address, Rejected> {
    Address::parse(text).map_err(|why| Rejected::new("invalid_address", format!("{field}[{at}]: {why}")))
}

fn recipients(command: &Command, limits: &Limits) -> Result<Vec<Recipient>, Rejected> {
    let fields = [
        (RecipientKind::To, &command.to),
        (RecipientKind::Cc, &command.cc),
        (RecipientKind::Bcc, &command.bcc),
    ];
    let count: usize = fields.iter().map(|(_, list)| list.len()).sum();
    if count > limits.recipients {
        let message = format!("{count} recipients are more than the {} allowed", limits.recipients);
        return Err(Rejected::new("too_many_recipients", message));
    }
    let mut seen = HashSet::new();
    let mut recipients = Vec::with_capacity(count);
    for (kind, list) in fields {
        for (at, text) in list.iter().enumerate() {
            let address = address_of(kind.as_str(), at, text)?;
            if seen.insert(address.normalised()) {
                recipients.push(Recipient { kind, address });
            }
        }
    }
    if recipients.is_empty() {
        return Err(Rejected::new("no_recipient", "to, cc and bcc are all empty"));
    }
    Ok(recipients)
}

fn check_content(content: &Content) -> Result<(), Rejected> {
    match content {
        Content::Rendered { subject, text_body, html_body } => {
            subject_fits(subject)
                .map_err(|problem| Rejected::new("invalid_subject", format!("subject {problem}")))?;
            if text_body.is_empty() && html_body.is_empty() {
                return Err(Rejected::new("missing_content", "text_body and html_body are both empty"));
            }
            if text_body.contains('\0') || html_body.contains('\0') {
                return Err(Rejected::new("invalid_content", "a body holds NUL"));
            }
            Ok(())
        }
        Content::Template { template_id, locale, .. } => {
            check_id("invalid_template_id", "template_id", template_id, 128)?;
            if is_canonical_locale(locale) {
                return Ok(());
            }
            let message = "locale is not written like de, fr-FR or zh-Hant-TW";
            Err(Rejected::new("invalid_locale", message))
        }
    }
}

/// Language in lower case, script in title case, region in upper case, as BCP 47 writes them.
fn is_canonical_locale(locale: &str) -> bool {
    let mut parts = locale.split('-');
    let lower = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase());
    if !parts.next().is_some_and(|language| matches!(language.len(), 2 | 3) && lower(language)) {
        return false;
    }
    parts.all(|part| match part.len() {
        2 => part.bytes().all(|b| b.is_ascii_uppercase()),
        3 if part.bytes().all(|b| b.is_ascii_digit()) => true,
        4 if part.as_bytes()[0].is_ascii_uppercase() => lower(&part[1..]),
        3..=8 => part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()),
        _ => false,
    })
}

fn check_attachments(attachments: &[Attachment], limits: &Limits) -> Result<(), Rejected> {
    if attachments.len() > limits.attachments {
        let message =
            format!("{} attachments are more than the {} allowed", attachments.len(), limits.attachments);
        return Err(Rejected::new("too_many_attachments", message));
    }
    for (at, attachment) in attachments.iter().enumerate() {
        let refuse = |why: &str| Err(Rejected::new("invalid_attachment", format!("attachments[{at}].{why}")));
        let name = &attachment.filename;
        if name.is_empty()
            || name.len() > 255
            || name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\'))
        {
            return refuse("filename is not a plain name of 1 to 255 bytes");
        }
        if !is_mime_type(&attachment.content_type) {
            return refuse("content_type is not of the form type/subtype");
        }
        if STANDARD.decode(&attachment.content_base64).is_err() {
            return refuse("content_base64 is not standard base64");
        }
    }
    Ok(())
}

fn is_mime_type(text: &str) -> bool {
    let token = |part: &str| {
        (1..=127).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
    };
    let (essence, parameters) = text.split_once(';').map_or((text, None), |(a, b)| (a, Some(b)));
    // Parameters are left to the composer; here they only must not break the header.
    parameters.is_none_or(|p| p.len() <= 255 && p.bytes().all(|b| (b' '..0x7f).contains(&b)))
        && essence.trim_end().split_once('/').is_some_and(|(kind, sub)| token(kind) && token(sub))
}

/// Before anything is composed: what is larger than a whole mail may be needs no further work. The composed mail is measured again.
fn check_size(command: &Command, limits: &Limits) -> Result<(), Rejected> {
    let attached: usize = command.attachments.iter().map(|a| a.content_base64.len()).sum();
    let bodies = match &command.content {
        Content::Rendered { text_body, html_body, .. } => text_body.len() + html_body.len(),
        Content::Template { variables, .. } => variables.values().map(|value| value.to_string().len()).sum(),
    };
    let size = attached + bodies;
    if size > limits.message_bytes {
        return Err(too_large(size, limits));
    }
    Ok(())
}

pub(crate) fn too_large(size: usize, limits: &Limits) -> Rejected {
    Rejected::new("too_large", format!("{size} bytes are more than the {} allowed", limits.message_bytes))
}

/// What makes two commands the same mail: everything that a recipient sees, and nothing of how or when it was asked for.
fn fingerprint(command: &Command) -> [u8; 32] {
    let value = json!({
        "to": command.to, "cc": command.cc, "bcc": command.bcc, "reply_to": command.reply_to,
        "mode": command.content.mode(), "content": command.content, "attachments": command.attachments,
        "tenant": command.tenant,
    });
    let mut hash = Sha256::new();
    absorb(&value, &mut hash);
    hash.finalize().into()
}

/// Writes `value` into `hash` so that neither the order of fields nor any two texts side by side can be mistaken for others.
fn absorb(value: &Value, hash: &mut Sha256) {
    match value {
        Value::Array(items) => {
            hash.update(format!("[{}:", items.len()));
            items.iter().for_each(|item| absorb(item, hash));
        }
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().collect();
            sorted.sort_unstable_by_key(|(name, _)| *name);
            hash.update(format!("{{{}:", sorted.len()));
            for (name, value) in sorted {
                hash.update(format!("{}:{name}", name.len()));
                absorb(value, hash);
            }
        }
        other => {
            let text = other.to_string();
            hash.update(format!("{}:{text}", text.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::command::Source;
    use super::*;

    const LIMITS: Limits = Limits { recipients: 3, message_bytes: 10_000, attachments: 2 };

    fn command() -> Command {
        Command {
            delivery_id: "d-1".into(),
            source: Source::Notification,
            idempotency_key: "notification:d-1".into(),
            to: vec!["a@example.com".into()],
            cc: vec![],
            bcc: vec![],
            reply_to: vec![],
            content: Content::Rendered {
                subject: "s".into(),
                text_body: "t".into(),
                html_body: String::new(),
            },
            attachments: vec![],
            tenant: None,
            priority: None,
            request_id: None,
            trace_id: None,
            requested_at_ms: None,
        }
    }

    fn code(change: impl FnOnce(&mut Command)) -> Result<Checked, &'static str> {
        let mut command = command();
        change(&mut command);
        check(command, &LIMITS).map_err(|rejected| rejected.code)
    }

    fn attachment(name: &str, kind: &str, content: &str) -> Attachment {
        Attachment { filename: name.into(), content_type: kind.into(), content_base64: content.into() }
    }

    #[test]
    fn what_no_mail_can_be_made_of_is_refused_by_name() {
        assert!(code(|_| {}).is_ok());
        let refused = [
            (code(|c| c.delivery_id.clear()), "invalid_delivery_id"),
            (code(|c| c.delivery_id = "a\nb".into()), "invalid_delivery_id"),
            (code(|c| c.idempotency_key = "k".repeat(257)), "invalid_idempotency_key"),
            (code(|c| c.to.clear()), "no_recipient"),
            (code(|c| c.bcc = vec!["b@example.com".into(); 3]), "too_many_recipients"),
            (code(|c| c.cc = vec!["b@c\r\nX: y".into()]), "invalid_address"),
            (code(|c| c.reply_to = vec!["nobody".into()]), "invalid_address"),
            (code(|c| c.tenant = Some(String::new())), "invalid_tenant"),
            (code(|c| c.priority = Some(11)), "invalid_priority"),
            (code(|c| set(c, "s\r\nBcc: x@y", "t")), "invalid_subject"),
            (code(|c| set(c, &"s".repeat(999), "t")), "invalid_subject"),
            (code(|c| set(c, "s", "")), "missing_content"),
            (code(|c| set(c, "s", "a\0b")), "invalid_content"),
            (code(|c| set(c, "s", &"t".repeat(10_001))), "too_large"),
            (code(|c| c.attachments = vec![attachment("a", "text/plain", ""); 3]), "too_many_attachments"),
            (code(|c| c.attachments = vec![attachment("a/b", "text/plain", "")]), "invalid_attachment"),
            (code(|c| c.attachments = vec![attachment("a", "text", "")]), "invalid_attachment"),
            (code(|c| c.attachments = vec![attachment("a", "text/plain\r\nX: y", "")]), "invalid_attachment"),
            (code(|c| c.attachments = vec![attachment("a", "text/plain", "*")]), "invalid_attachment"),
        ];
        for (result, want) in refused {
            assert_eq!(result.map(drop).unwrap_err(), want);
        }
    }

    fn set(command: &mut Command, subject: &str, text: &str) {
        command.content =
            Content::Rendered { subject: subject.into(), text_body: text.into(), html_body: String::new() };
    }

    #[test]
    fn one_mailbox_gets_one_mail_whichever_headers_name_it() {
        let checked = code(|c| {
            c.cc = vec!["a@EXAMPLE.com".into()];
            c.bcc = vec!["b@example.com".into()];
        });
        let recipients = checked.unwrap().recipients;
        let kinds: Vec<_> = recipients.iter().map(|r| (r.kind, r.address.as_str())).collect();
        assert_eq!(kinds, [(RecipientKind::To, "a@example.com"), (RecipientKind::Bcc, "b@example.com")]);
    }

    #[test]
    fn the_fingerprint_sees_content_and_nothing_else() {
        let of = |change: &dyn Fn(&mut Command)| code(|c| change(c)).unwrap().fingerprint;
        let same = of(&|_| {});
        assert_eq!(same, of(&|c| c.delivery_id = "other".into()));
        assert_eq!(same, of(&|c| c.trace_id = Some("t".into())));
        assert_ne!(same, of(&|c| c.to = vec!["b@example.com".into()]));
        assert_ne!(same, of(&|c| set(c, "s", "u")));
        assert_ne!(same, of(&|c| c.tenant = Some("t".into())));
        let template = |json: &str| {
            let variables: serde_json::Map<String, Value> = serde_json::from_str(json).unwrap();
            let content = Content::Template { template_id: "t".into(), locale: "en".into(), variables };
            of(&move |c| c.content = content.clone())
        };
        assert_eq!(template(r#"{"a":1,"b":2}"#), template(r#"{ "b" : 2, "a" : 1 }"#));
        assert_ne!(template(r#"{"a":"1"}"#), template(r#"{"a":1}"#));
        assert_ne!(template(r#"{"a":["b","c"]}"#), template(r#"{"a":["b,c"]}"#));
    }

    #[test]
    fn locales_are_written_one_way() {
        for locale in ["en", "fr-FR", "zh-Hant-TW", "es-419", "gsw", "de-DE-1996", "sl-rozaj"] {
            assert!(is_canonical_locale(locale), "{locale}");
        }
        for locale in ["", "EN", "fr_FR", "fr-fr", "e", "en-", "zh-hAnt", "en-US\n", "english-US"] {
            assert!(!is_canonical_locale(locale), "{locale:?}");
        }
    }
}
