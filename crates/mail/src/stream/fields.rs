use std::collections::HashMap;

use crate::delivery::PayloadMode;
use crate::intake::{Command, Payload, Rejected, Source};

/// An entry's fields as far as they are text: for the record of one that is rejected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Read {
    /// By name.
    pub(crate) fields: HashMap<String, String>,
}

impl Read {
    /// A field's value; nothing for an empty one.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// Reads the command in the fields of a stream entry. Fields that nobody knows are left alone: a producer may be newer.
///
/// # Errors
/// What no command can be made of, by a fixed word; and what could be read of it.
pub fn command(fields: &[(Vec<u8>, Vec<u8>)]) -> Result<Command, Rejected> {
    read(fields).1
}

pub(crate) fn read(fields: &[(Vec<u8>, Vec<u8>)]) -> (Read, Result<Command, Rejected>) {
    let mut read = Read::default();
    let mut problem = None;
    for (name, value) in fields {
        let shown = String::from_utf8_lossy(name).into_owned();
        if std::str::from_utf8(name).is_err() || std::str::from_utf8(value).is_err() {
            problem.get_or_insert_with(|| {
                Rejected::new("invalid_encoding", format!("field `{shown}` is not UTF-8"))
            });
        }
        let value = String::from_utf8_lossy(value).into_owned();
        if read.fields.insert(shown.clone(), value).is_some() {
            problem.get_or_insert_with(|| {
                Rejected::new("duplicate_field", format!("field `{shown}` is there twice"))
            });
        }
    }
    let command = problem.map_or_else(|| made(&read), Err);
    (read, command)
}

fn made(read: &Read) -> Result<Command, Rejected> {
    let needed = |name: &str| {
        read.get(name)
            .ok_or_else(|| Rejected::new("missing_field", format!("field `{name}` is missing or empty")))
    };
    let delivery_id = needed("delivery_id")?;
    let source = match needed("source")? {
        "notification" => Source::Notification,
        other => {
            let message = format!("source is `{}`; this stream carries `notification`", shortened(other));
            return Err(Rejected::new("invalid_source", message));
        }
    };
    let mode: PayloadMode = needed("payload_mode")?
        .parse()
        .map_err(|expected| Rejected::new("invalid_payload_mode", format!("payload_mode: {expected}")))?;
    let idempotency_key = needed("idempotency_key")?;
    let requested_at_ms = milliseconds(needed("requested_at_ms")?)?;
    let payload = Payload::parse(mode, needed("payload_json")?)
        .map_err(|why| Rejected::new("invalid_payload_json", format!("payload_json: {why}")))?;
    let [to, cc, bcc] = payload.recipients;
    Ok(Command {
        delivery_id: delivery_id.to_owned(),
        source,
        idempotency_key: idempotency_key.to_owned(),
        to,
        cc,
        bcc,
        reply_to: payload.reply_to,
        content: payload.content,
        attachments: payload.attachments,
        tenant: read.get("tenant").map(str::to_owned),
        priority: None,
        request_id: read.get("request_id").map(str::to_owned),
        trace_id: read.get("trace_id").map(str::to_owned),
        requested_at_ms: Some(requested_at_ms),
    })
}

/// A decimal number as it is written once: no sign, no leading zero, no blank.
fn milliseconds(text: &str) -> Result<i64, Rejected> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    // Beyond the year 5138 nothing was asked for.
    text.parse().ok().filter(|&ms| canonical && (0..100_000_000_000_000_i64).contains(&ms)).ok_or_else(|| {
        Rejected::new("invalid_requested_at_ms", "requested_at_ms is no decimal number of Unix milliseconds")
    })
}

fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change<'a> = (&'a str, Option<&'a str>);

    const RENDERED: &str = r#"{"to":["a@example.com"],"subject":"s","text_body":"t"}"#;

    fn fields(changes: &[(&str, Option<&str>)]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut all = vec![
            ("delivery_id", "d-1"),
            ("source", "notification"),
            ("payload_mode", "rendered"),
            ("idempotency_key", "notification:d-1"),
            ("requested_at_ms", "1790000000000"),
            ("payload_json", RENDERED),
        ];
        all.retain(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
        all.extend(changes.iter().filter_map(|(name, value)| Some((*name, (*value)?))));
        all.into_iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
    }

    #[test]
    fn both_modes_are_read() {
        let rendered = command(&fields(&[("trace_id", Some("t-1")), ("request_id", Some(""))])).unwrap();
        assert_eq!((rendered.delivery_id.as_str(), rendered.trace_id.as_deref()), ("d-1", Some("t-1")));
        assert_eq!((rendered.request_id, rendered.requested_at_ms), (None, Some(1_790_000_000_000)));
        let json = r#"{"to":["a@example.com"],"template_id":"game.turn.ready","locale":"fr-FR","variables":{"turn":3}}"#;
        let template = [("payload_mode", Some("template")), ("payload_json", Some(json)), ("new", Some("x"))];
        assert_eq!(command(&fields(&template)).unwrap().content.mode(), PayloadMode::Template);
    }

    #[test]
    fn what_is_no_command_is_named() {
        let rows: [(&[Change<'_>], &str); 14] = [
            (&[("delivery_id", None)], "missing_field"),
            (&[("idempotency_key", Some(""))], "missing_field"),
            (&[("payload_json", None)], "missing_field"),
            (&[("source", Some("authsession"))], "invalid_source"),
            (&[("payload_mode", Some("Rendered"))], "invalid_payload_mode"),
            (&[("requested_at_ms", Some("-1"))], "invalid_requested_at_ms"),
            (&[("requested_at_ms", Some("007"))], "invalid_requested_at_ms"),
            (&[("requested_at_ms", Some("1.5"))], "invalid_requested_at_ms"),
            (&[("requested_at_ms", Some("99999999999999999999"))], "invalid_requested_at_ms"),
            (&[("payload_json", Some("{"))], "invalid_payload_json"),
            (&[("payload_json", Some(r#"{"to":["a@b"],"subject":"s"} x"#))], "invalid_payload_json"),
            (&[("payload_json", Some(r#"{"to":["a@b"],"subject":"s","tu":1}"#))], "invalid_payload_json"),
            (&[("payload_json", Some(r#"{"subject":"s"}"#))], "invalid_payload_json"),
            (&[("payload_mode", Some("template"))], "invalid_payload_json"),
        ];
        for (changes, code) in rows {
            assert_eq!(command(&fields(changes)).unwrap_err().code, code, "{changes:?}");
        }
        let mut twice = fields(&[]);
        twice.push(twice[0].clone());
        assert_eq!(command(&twice).unwrap_err().code, "duplicate_field");
        let mut binary = fields(&[]);
        binary[0].1 = vec![0xff, 0xfe];
        let (read, result) = read(&binary);
        assert_eq!(result.unwrap_err().code, "invalid_encoding");
        assert_eq!(read.get("source"), Some("notification"), "what could be read is kept for the record");
    }
}
