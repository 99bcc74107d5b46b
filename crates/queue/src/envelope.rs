//! The text of a job in Redis: lane, kind, meta and payload, one a line. Never rewritten once stored.

use std::borrow::Cow;
use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use voiceai_redis::{Str, Value};

/// What stays readable in lanes and meta values.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');

pub(crate) fn encode(text: &str) -> Cow<'_, str> {
    utf8_percent_encode(text, KEPT).into()
}

pub(crate) fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The lane of a plain job.
pub(crate) const PLAIN_LANE: &str = "0||";

/// `<priority>|<tenant>|<key>`, the latter two percent-encoded.
pub(crate) fn lane(priority: u8, tenant: &str, key: &str) -> Cow<'static, str> {
    if priority == 0 && tenant.is_empty() && key.is_empty() {
        return Cow::Borrowed(PLAIN_LANE);
    }
    Cow::Owned(format!("{priority}|{}|{}", encode(tenant), encode(key)))
}

pub(crate) fn to_base36(value: u64) -> String {
    let mut text = String::with_capacity(13);
    push_base36(&mut text, value);
    text
}

fn push_base36(text: &mut String, mut value: u64) {
    let mut digits = [0_u8; 13];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdefghijklmnopqrstuvwxyz"[usize::try_from(value % 36).unwrap_or(0)];
        value /= 36;
        if value == 0 {
            text.push_str(std::str::from_utf8(&digits[at..]).unwrap_or_default());
            return;
        }
    }
}

/// The values of the meta line that a job may have beside its enqueue time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// `t`: W3C traceparent.
    pub(crate) trace: Option<String>,
    /// `u`: mode letter and ttl, then the unique key, encoded: `r0:key`.
    pub(crate) unique: Option<String>,
    /// `p`: the parent that waits for it.
    pub(crate) parent: Option<String>,
    /// `f`: what the parent does when it fails: w(ait), i(gnore), f(ail).
    pub(crate) child_policy: Option<char>,
    /// `c`: how many children it waits for.
    pub(crate) children: Option<u32>,
    /// `m`: how long its id is remembered after it ended, ms.
    pub(crate) remember_ms: Option<u64>,
}

impl Meta {
    /// True when its end means more than removing it: the worker then settles it one by one.
    pub(crate) const fn has_ties(&self) -> bool {
        self.unique.is_some()
            || self.parent.is_some()
            || self.children.is_some()
            || matches!(self.remember_ms, Some(ms) if ms > 0)
    }
}

/// Builds an envelope.
pub(crate) fn write(lane: &str, kind: &str, enqueued_ms: u64, meta: &Meta, payload: &str) -> String {
    let mut text = String::with_capacity(lane.len() + kind.len() + payload.len() + 16);
    text.push_str(lane);
    text.push('\n');
    text.push_str(kind);
    text.push('\n');
    push_base36(&mut text, enqueued_ms);
    let mut pair = |name: char, value: &str| {
        text.push(' ');
        text.push(name);
        text.push('=');
        text.push_str(value);
    };
    if let Some(trace) = &meta.trace {
        pair('t', &encode(trace));
    }
    if let Some(unique) = &meta.unique {
        pair('u', unique);
    }
    if let Some(parent) = &meta.parent {
        pair('p', parent);
    }
    if let Some(policy) = meta.child_policy {
        pair('f', policy.encode_utf8(&mut [0; 4]));
    }
    if let Some(children) = meta.children {
        let _ = write!(text, " c={children}");
    }
    if let Some(ms) = meta.remember_ms {
        let _ = write!(text, " m={ms}");
    }
    text.push('\n');
    text.push_str(payload);
    text
}

/// A parsed envelope; borrows its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Envelope<'a> {
    pub(crate) lane: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) enqueued_ms: u64,
    pub(crate) meta: Meta,
    pub(crate) payload: &'a str,
}

impl<'a> Envelope<'a> {
    /// Reads an envelope. `None` when it is none: then there is nothing to run.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let mut lines = text.splitn(4, '\n');
        let (lane, kind, meta, payload) = (lines.next()?, lines.next()?, lines.next()?, lines.next()?);
        let mut words = meta.split(' ');
        // A producer without a clock we understand is not a reason to lose its job.
        let enqueued_ms = u64::from_str_radix(words.next()?, 36).unwrap_or(0);
        let mut found = Meta::default();
        for word in words {
            let Some((name, value)) = word.split_once('=') else { continue };
            match name {
                "t" => found.trace = Some(decode(value)),
                "u" => found.unique = Some(value.to_owned()),
                "p" => found.parent = Some(value.to_owned()),
                "f" => found.child_policy = value.chars().next(),
                "c" => found.children = value.parse().ok(),
                "m" => found.remember_ms = value.parse().ok(),
                _ => {}
            }
        }
        Some(Self { lane, kind, enqueued_ms, meta: found, payload })
    }

    /// False when the payload was no UTF-8: see [`received`].
    pub(crate) fn is_text(&self) -> bool {
        self.payload != NOT_UTF8
    }

    pub(crate) fn priority(&self) -> u8 {
        self.lane.split('|').next().and_then(|p| p.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn tenant(&self) -> String {
        self.lane.split('|').nth(1).map(decode).unwrap_or_default()
    }

    pub(crate) fn key(&self) -> String {
        self.lane.split('|').nth(2).map(decode).unwrap_or_default()
    }

    /// The unique key without its mode.
    pub(crate) fn unique_key(&self) -> Option<String> {
        self.meta.unique.as_deref().and_then(|u| u.split_once(':')).map(|(_, key)| decode(key))
    }
}

/// The payload of an envelope that was no UTF-8. No JSON is like it.
const NOT_UTF8: &str = "\u{fffd}";

/// The envelope in a reply; `None` where there is none. One that is no UTF-8, as only a foreign client writes it, keeps its
/// header and loses its payload: such a job is parked, and neither run with another payload nor handed out for ever.
pub(crate) fn received(reply: Value) -> Option<Str> {
    match reply {
        Value::String(text) => Some(text),
        Value::Bytes(bytes) => Some(Str::from_inner(bytes).unwrap_or_else(|error| {
            let bytes = error.into_inner();
            let mut lines = bytes.splitn(4, |byte| *byte == b'\n').map(String::from_utf8_lossy);
            let header: Vec<_> = lines.by_ref().take(3).collect();
            let payload = lines.next().map_or("", |_| NOT_UTF8);
            format!("{}\n{payload}", header.join("\n")).into()
        })),
        _ => None,
    }
}

/// What a job that failed at least once carries along: `<attempts> <reason|-> <ms> <replays>\n<error>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FailRecord {
    /// Failed attempts since it was enqueued or replayed.
    pub(crate) attempts: u32,
    /// Why it is dead; `-` while it is not.
    pub(crate) reason: String,
    /// When it failed last, Unix ms.
    pub(crate) at_ms: u64,
    /// How often it was replayed.
    pub(crate) replays: u32,
    /// The last error.
    pub(crate) error: String,
}

/// Longest stored error text.
const ERROR_MAX: usize = 2_048;

/// At most `max` bytes of `text`, cut between characters.
pub(crate) fn capped(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl FailRecord {
    pub(crate) fn parse(text: &str) -> Self {
        let (head, error) = text.split_once('\n').unwrap_or((text, ""));
        let mut words = head.split(' ');
        Self {
            attempts: words.next().and_then(|w| w.parse().ok()).unwrap_or(0),
            reason: words.next().unwrap_or("-").to_owned(),
            at_ms: words.next().and_then(|w| w.parse().ok()).unwrap_or(0),
            replays: words.next().and_then(|w| w.parse().ok()).unwrap_or(0),
            error: error.to_owned(),
        }
    }

    pub(crate) fn write(&self) -> String {
        let reason = if self.reason.is_empty() { "-" } else { &self.reason };
        format!(
            "{} {reason} {} {}\n{}",
            self.attempts,
            self.at_ms,
            self.replays,
            capped(&self.error, ERROR_MAX)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_that_is_no_utf8_keeps_its_header() {
        let bytes = |bytes: &'static [u8]| received(Value::Bytes(bytes.into())).unwrap();
        let text = bytes(b"3|acme|\nk\n1 m=5\n{\"a\":\n\"\xff\"}");
        let read = Envelope::parse(&text).unwrap();
        assert_eq!(
            (read.kind, read.priority(), read.meta.remember_ms, read.is_text()),
            ("k", 3, Some(5), false)
        );
        assert!(Envelope::parse(&bytes(b"0||\nk\xff")).is_none());
        assert!(Envelope::parse(&bytes("0||\nk\n1\n\"ü\"".as_bytes())).unwrap().is_text());
        assert!(received(Value::Null).is_none());
    }

    #[test]
    fn envelope_round_trip() {
        let meta = Meta {
            trace: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
            unique: Some(format!("r0:{}", encode("user 1/ä"))),
            parent: Some("p1".into()),
            child_policy: Some('i'),
            children: Some(3),
            remember_ms: Some(5),
        };
        let lane = lane(7, "team|x", "k\n");
        let text = write(&lane, "send-email", 1_790_000_000_123, &meta, "{\"a\":\n1}");
        let back = Envelope::parse(&text).unwrap();
        assert_eq!((back.kind, back.payload), ("send-email", "{\"a\":\n1}"));
        assert_eq!((back.enqueued_ms, back.priority()), (1_790_000_000_123, 7));
        assert_eq!((back.tenant(), back.key()), ("team|x".into(), "k\n".into()));
        assert_eq!(back.unique_key().as_deref(), Some("user 1/ä"));
        assert_eq!(back.meta, meta);
        assert!(back.meta.has_ties());
    }

    #[test]
    fn foreign_and_broken_envelopes_do_not_panic() {
        assert!(Envelope::parse("0||\nk\n!!! zz x= =y\n{}").is_some_and(|e| e.enqueued_ms == 0));
        for bad in ["", "0||", "0||\nk", "0||\nk\nabc"] {
            assert_eq!(Envelope::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn plain_lane_is_a_constant_and_base36_matches_radix() {
        assert_eq!(lane(0, "", ""), PLAIN_LANE);
        for n in [0, 35, 36, u64::MAX] {
            assert_eq!(u64::from_str_radix(&to_base36(n), 36), Ok(n));
        }
    }

    #[test]
    fn failure_records_survive_long_and_odd_errors() {
        let record = FailRecord {
            attempts: 2,
            reason: String::new(),
            at_ms: 9,
            replays: 1,
            error: "é\n".repeat(2_000),
        };
        let back = FailRecord::parse(&record.write());
        assert_eq!((back.attempts, back.at_ms, back.replays, back.reason.as_str()), (2, 9, 1, "-"));
        assert!(back.error.len() <= ERROR_MAX && back.error.starts_with("é\n"));
        assert_eq!(FailRecord::parse("rubbish").attempts, 0);
    }
}
