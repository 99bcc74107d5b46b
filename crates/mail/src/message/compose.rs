use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use lettre::message::header::{
    ContentDisposition, ContentTransferEncoding, ContentType, HeaderName, HeaderValue,
};
use lettre::message::{Body, Mailbox as LettreMailbox, Message, MessageBuilder, MultiPart, SinglePart};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::check::check;
use super::error::ComposeError;
use crate::{Address, Class};

/// The most characters of a name beside an address.
const NAME_LONGEST: usize = 128;
/// A word of a subject above this is encoded, which breaks it into several: a line may have 998 bytes and is broken at blanks only.
const WORD_LONGEST: usize = 200;
/// Bytes of one encoded word's text: base64 makes 60 of them, and a word with its marks may have 75 (RFC 2047).
const ENCODED_BYTES: usize = 45;

/// An address and the name beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mailbox {
    /// Shown instead of the address. At most 128 characters, none of them a control character.
    pub name: Option<String>,
    /// Where mail goes.
    pub address: Address,
}

impl Mailbox {
    /// Reads `name@example.com` or `Name <name@example.com>`.
    ///
    /// # Errors
    /// [`ComposeError`], calling the text `what`.
    pub fn parse(text: &str, what: &str) -> Result<Self, ComposeError> {
        let text = text.trim();
        let (name, address) = match text.strip_suffix('>').and_then(|text| text.rsplit_once('<')) {
            Some((name, address)) => (name.trim().trim_matches('"').trim(), address),
            None => ("", text),
        };
        let address = Address::parse(address)
            .map_err(|source| ComposeError::Address { what: what.to_owned(), source })?;
        let mailbox = Self { name: (!name.is_empty()).then(|| name.to_owned()), address };
        mailbox.check(what)?;
        Ok(mailbox)
    }

    fn check(&self, what: &str) -> Result<(), ComposeError> {
        // The library panics on a line end here.
        self.name
            .as_deref()
            .map_or(Ok(()), |name| one_line(name, &format!("the name of {what}"), NAME_LONGEST))
    }

    fn for_lettre(&self, what: &str) -> Result<LettreMailbox, ComposeError> {
        self.check(what)?;
        let address = lettre::Address::new(self.address.local(), self.address.domain()).map_err(|_| {
            ComposeError::Address { what: what.to_owned(), source: crate::address::AddressError::Form }
        })?;
        Ok(LettreMailbox::new(self.name.clone(), address))
    }
}

/// A file that goes along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The name that it is saved under: at most 255 bytes, no folder.
    pub filename: String,
    /// Its media type, such as `application/pdf`.
    pub content_type: String,
    /// Its content.
    pub content: Bytes,
}

/// All that a mail is made of.
#[derive(Debug, Clone)]
pub struct Composition<'a> {
    /// As [`new_message_id`] made it, without angle brackets.
    pub message_id: &'a str,
    /// What duplicates can be told by at providers that replace `Message-ID`. At most 400 printable ASCII characters.
    pub idempotency_key: &'a str,
    /// When the mail was accepted; every attempt says the same.
    pub date: Timestamp,
    /// Who it is from.
    pub from: &'a Mailbox,
    /// Who it says that it is for.
    pub to: &'a [Mailbox],
    /// Who gets a copy and is named.
    pub cc: &'a [Mailbox],
    /// Where answers go, when not to `from`.
    pub reply_to: &'a [Mailbox],
    /// One line.
    pub subject: &'a str,
    /// The text part.
    pub text: &'a str,
    /// The HTML part.
    pub html: Option<&'a str>,
    /// What goes along.
    pub attachments: &'a [Attachment],
    /// What the mail is for.
    pub class: Class,
    /// The address that ends the subscription at one click (RFC 8058); `https` only. Never for the class `auth`.
    pub unsubscribe: Option<&'a str>,
}

/// A `Message-ID` without its angle brackets: unique, in the order of time, at the sender's domain.
#[must_use]
pub fn new_message_id(from: &Address) -> String {
    format!("{}@{}", Uuid::now_v7().as_simple(), from.domain())
}

/// Composes a mail. The same composition gives the same bytes.
///
/// Texts go out as quoted-printable and attachments as base64, so that no byte of a text can be taken for SMTP; blind copies
/// are named nowhere.
///
/// # Errors
/// [`ComposeError`], naming the part. Nothing of the texts is repeated in it.
pub fn compose(mail: &Composition<'_>) -> Result<Bytes, ComposeError> {
    let headers = headers(mail)?;
    let boundary = boundary(mail.message_id);
    let body = alternative(mail, &boundary)?;
    let message = if mail.attachments.is_empty() {
        match body {
            Part::Single(part) => headers.singlepart(part),
            Part::Multi(part) => headers.multipart(part),
        }
    } else {
        let mixed = MultiPart::mixed().boundary(format!("mixed{boundary}"));
        let mut mixed = match body {
            Part::Single(part) => mixed.singlepart(part),
            Part::Multi(part) => mixed.multipart(part),
        };
        for (at, attachment) in mail.attachments.iter().enumerate() {
            mixed = mixed.singlepart(attached(attachment, at + 1)?);
        }
        headers.multipart(mixed)
    };
    let message = message.map_err(|_| ComposeError::NoRecipient)?;
    let mut bytes = message.formatted();
    if !bytes.ends_with(b"\r\n") {
        bytes.extend_from_slice(b"\r\n");
    }
    let mailboxes = || mail.to.iter().chain(mail.cc).chain(mail.reply_to).chain([mail.from]);
    let utf8 = mailboxes().any(|mailbox| mailbox.address.needs_smtputf8());
    check(&bytes, mail.message_id, utf8)?;
    Ok(Bytes::from(bytes))
}

fn headers(mail: &Composition<'_>) -> Result<MessageBuilder, ComposeError> {
    subject_fits(mail.subject)
        .map_err(|problem| ComposeError::Header { what: "the subject".to_owned(), problem })?;
    printable(mail.message_id, "the Message-ID")?;
    printable(mail.idempotency_key, "the idempotency key")?;
    let seconds = u64::try_from(mail.date.as_second()).unwrap_or(0);
    let mut builder = Message::builder()
        .message_id(Some(format!("<{}>", mail.message_id)))
        .date(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
        .from(mail.from.for_lettre("from")?);
    builder = if mail.subject.split(' ').any(|word| word.len() > WORD_LONGEST) {
        let name = HeaderName::new_from_ascii_str("Subject");
        let encoded = encoded_words(mail.subject);
        builder.raw_header(HeaderValue::dangerous_new_pre_encoded(name, mail.subject.to_owned(), encoded))
    } else {
        builder.subject(mail.subject)
    };
    for (at, mailbox) in mail.to.iter().enumerate() {
        builder = builder.to(mailbox.for_lettre(&format!("to[{at}]"))?);
    }
    for (at, mailbox) in mail.cc.iter().enumerate() {
        builder = builder.cc(mailbox.for_lettre(&format!("cc[{at}]"))?);
    }
    for (at, mailbox) in mail.reply_to.iter().enumerate() {
        builder = builder.reply_to(mailbox.for_lettre(&format!("reply_to[{at}]"))?);
    }
    if mail.to.is_empty() && mail.cc.is_empty() {
        // All recipients are blind copies; a mail without any destination header is refused by some servers.
        builder = raw(builder, "To", "undisclosed-recipients:;");
    }
    // An answering machine that answers a machine may do so for ever.
    builder = raw(builder, "Auto-Submitted", "auto-generated");
    builder = raw(builder, "X-Auto-Response-Suppress", "All");
    builder = raw(builder, "X-Idempotency-Key", mail.idempotency_key);
    if let Some(url) = mail.unsubscribe {
        if mail.class == Class::Auth {
            return Err(ComposeError::Unsubscribe);
        }
        if !url.starts_with("https://") || !url.bytes().all(|byte| byte.is_ascii_graphic()) || url.len() > 900
        {
            let what = "the address that ends the subscription".to_owned();
            return Err(ComposeError::Header {
                what,
                problem: "is no https address of at most 900 characters",
            });
        }
        builder = raw(builder, "List-Unsubscribe", &format!("<{url}>"));
        builder = raw(builder, "List-Unsubscribe-Post", "List-Unsubscribe=One-Click");
    }
    // The envelope is the attempt's own: this one is never used, and the library insists on a recipient in it.
    let address =
        lettre::Address::new(mail.from.address.local(), mail.from.address.domain()).map_err(|_| {
            ComposeError::Address { what: "from".into(), source: crate::address::AddressError::Form }
        })?;
    let envelope =
        lettre::address::Envelope::new(None, vec![address]).map_err(|_| ComposeError::NoRecipient)?;
    Ok(builder.envelope(envelope))
}

/// A text as encoded words (RFC 2047), a line each.
fn encoded_words(text: &str) -> String {
    let mut words = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end =
            (0..=ENCODED_BYTES.min(rest.len())).rev().find(|at| rest.is_char_boundary(*at)).unwrap_or(0);
        let (word, after) = rest.split_at(end);
        words.push(format!("=?utf-8?b?{}?=", STANDARD.encode(word)));
        rest = after;
    }
    words.join("\r\n ")
}

/// A header whose value is ASCII and was checked.
fn raw(builder: MessageBuilder, name: &'static str, value: &str) -> MessageBuilder {
    let name = HeaderName::new_from_ascii_str(name);
    builder.raw_header(HeaderValue::dangerous_new_pre_encoded(name, value.to_owned(), value.to_owned()))
}

enum Part {
    Single(SinglePart),
    Multi(MultiPart),
}

fn alternative(mail: &Composition<'_>, boundary: &str) -> Result<Part, ComposeError> {
    let part = |text: &str, content_type| {
        // The library turns line feeds into line ends and lets a lone carriage return through.
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let body = Body::new_with_encoding(text, ContentTransferEncoding::QuotedPrintable);
        body.map(|body| SinglePart::builder().header(content_type).body(body))
            .map_err(|_| ComposeError::Encoding)
    };
    let text = part(mail.text, ContentType::TEXT_PLAIN)?;
    let Some(html) = mail.html else { return Ok(Part::Single(text)) };
    let alternative = MultiPart::alternative().boundary(format!("alternative{boundary}"));
    Ok(Part::Multi(alternative.singlepart(text).singlepart(part(html, ContentType::TEXT_HTML)?)))
}

fn attached(attachment: &Attachment, number: usize) -> Result<SinglePart, ComposeError> {
    let refuse = |problem| ComposeError::Attachment { number, problem };
    let name = attachment.filename.as_str();
    if name.is_empty() || name.len() > 255 {
        return Err(refuse("its file name is empty or longer than 255 bytes"));
    }
    if name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\')) {
        return Err(refuse("its file name has a slash or a control character"));
    }
    let content_type = attachment.content_type.trim();
    let plain = content_type.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    let parsed = ContentType::parse(content_type).ok().filter(|_| plain && content_type.len() <= 255);
    let content_type =
        parsed.ok_or_else(|| refuse("its content type is no media type such as application/pdf"))?;
    let lower = attachment.content_type.trim().to_ascii_lowercase();
    if lower.starts_with("multipart/") || lower.starts_with("message/") {
        return Err(refuse("its content type is that of a mail's own parts; use application/octet-stream"));
    }
    let body = Body::new_with_encoding(attachment.content.to_vec(), ContentTransferEncoding::Base64)
        .map_err(|_| refuse("it cannot be encoded"))?;
    let disposition = ContentDisposition::attachment(name);
    Ok(SinglePart::builder().header(content_type).header(disposition).body(body))
}

/// The same for the same mail, and nothing that a text could contain by accident.
fn boundary(message_id: &str) -> String {
    Sha256::digest(message_id.as_bytes()).iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

/// The most bytes of a subject: as many as RFC 5322 lets a line have.
pub const SUBJECT_LONGEST: usize = 998;

/// The one rule for subjects, whether they come with a command or from a template.
///
/// # Errors
/// What is wrong, in words that follow its name.
pub fn subject_fits(subject: &str) -> Result<(), &'static str> {
    if subject.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')) {
        Err("has a line end or another control character")
    } else if subject.len() > SUBJECT_LONGEST {
        Err("is longer than 998 bytes")
    } else {
        Ok(())
    }
}

fn one_line(value: &str, what: &str, longest: usize) -> Result<(), ComposeError> {
    let problem = if value.chars().any(char::is_control) {
        "has a line end or another control character"
    } else if value.chars().count() > longest {
        "is too long"
    } else {
        return Ok(());
    };
    Err(ComposeError::Header { what: what.to_owned(), problem })
}

fn printable(value: &str, what: &str) -> Result<(), ComposeError> {
    if (1..=400).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return Ok(());
    }
    let problem = "is not 1 to 400 printable ASCII characters";
    Err(ComposeError::Header { what: what.to_owned(), problem })
}
