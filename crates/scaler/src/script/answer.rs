//! What a provider's script says, and what its exit code means.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use voiceai_scaler_core::name::is_provider_id;

/// Most bytes of stdout that are kept, from its end: what a script prints before its last line is its own affair.
pub const STDOUT_MAX: usize = 64 * 1024;
/// The same for `list.sh`, which speaks of every server.
pub(super) const LIST_MAX: usize = 16 * 1024 * 1024;

/// Most characters of a provider's code, machine type or location.
const WORD_MAX: usize = 128;
/// Most characters of its messages.
const MESSAGE_MAX: usize = 2000;

/// A server as the provider sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made.
    Creating,
    /// Runs.
    Ready,
    /// Will not run.
    Failed,
    /// Being deleted.
    Deleting,
    /// Not there.
    Absent,
}

/// Why a script did not do what it was asked for, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ScriptError {
    /// The provider's code.
    pub code: String,
    /// The provider's message.
    pub message: String,
    /// When to try again, in seconds.
    pub retry_after_s: Option<u64>,
}

/// Words about a failure, whatever their type: none of them decides what is known, so none makes an answer unreadable.
impl<'de> Deserialize<'de> for ScriptError {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = |value: Option<&Value>| match value {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        let told = Value::deserialize(deserializer)?;
        if !told.is_object() {
            return Ok(Self { code: String::new(), message: words(Some(&told)), retry_after_s: None });
        }
        Ok(Self {
            code: words(told.get("code")),
            message: words(told.get("message")),
            retry_after_s: told.get("retry_after_s").and_then(seconds),
        })
    }
}

/// Whole seconds, a part of one counted as one; `None` for what is no time to wait.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked: not negative, and below 2^53
fn seconds(value: &Value) -> Option<u64> {
    let number = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    (number >= 0.0).then(|| number.ceil().min(9e15) as u64)
}

/// Several providers know their servers by a number.
fn id_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Id {
        Text(String),
        Number(u64),
    }
    Ok(Option::<Id>::deserialize(deserializer)?.map(|id| match id {
        Id::Text(text) => text,
        Id::Number(number) => number.to_string(),
    }))
}

fn listed_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    id_text(deserializer)?.ok_or_else(|| serde::de::Error::custom("an id is null"))
}

/// The last line of a script's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The provider's id of the server.
    #[serde(default, deserialize_with = "id_text")]
    pub id: Option<String>,
    /// The server's name.
    pub name: String,
    /// Where it stands.
    pub status: Status,
    /// Its public address.
    #[serde(default)]
    pub ip: Option<String>,
    /// Its address in the private network.
    #[serde(default)]
    pub private_ip: Option<String>,
    /// The machine type.
    #[serde(default, rename = "type")]
    pub machine: Option<String>,
    /// The location.
    #[serde(default)]
    pub location: Option<String>,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<ScriptError>,
}

/// One server in the answer of `list.sh`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The provider's id.
    #[serde(deserialize_with = "listed_id")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub status: Status,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// The last line of `list.sh`.
#[derive(Debug, Deserialize)]
struct List {
    #[serde(default)]
    servers: Option<Vec<Listed>>,
    #[serde(default)]
    error: Option<ScriptError>,
}

/// What an exit code means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// 0: done.
    Done,
    /// 10: try again.
    Retry,
    /// 11: out of stock; the next candidate.
    OutOfStock,
    /// 12: quota.
    Quota,
    /// 13: rate limited.
    RateLimited,
    /// 14: not found.
    NotFound,
    /// 20: refused for good.
    Refused,
}

impl Class {
    /// The class of an exit code; `None` for any other.
    #[must_use]
    pub const fn of(exit: i32) -> Option<Self> {
        Some(match exit {
            0 => Self::Done,
            10 => Self::Retry,
            11 => Self::OutOfStock,
            12 => Self::Quota,
            13 => Self::RateLimited,
            14 => Self::NotFound,
            20 => Self::Refused,
            _ => return None,
        })
    }

    /// The word in logs and errors.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Retry => "retry",
            Self::OutOfStock => "out_of_stock",
            Self::Quota => "quota",
            Self::RateLimited => "rate_limited",
            Self::NotFound => "not_found",
            Self::Refused => "refused",
        }
    }
}

/// What is known after a script ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ended as agreed. Every class but `Done` says that nothing was changed.
    Said(Class, Answer),
    /// It may have had its effect or not: the provider must be asked by name before anything else. Carries the class of
    /// the exit code when only the output was unreadable, for when the provider turns out to know no such server.
    Unknown(String, Option<Class>),
    /// It was never started, so it changed nothing.
    NotStarted(String),
}

/// The end of what a script wrote to stdout.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tail<'a> {
    /// Its last bytes.
    pub(super) bytes: &'a [u8],
    /// True when there was more before them.
    pub(super) cut: bool,
}

/// Reads the output of a script that ended with `exit`. `name` is the server it was asked about.
#[must_use]
pub(super) fn read(exit: i32, stdout: Tail<'_>, name: &str) -> Outcome {
    let Some(class) = Class::of(exit) else {
        return Outcome::Unknown(format!("exit code {exit}"), None);
    };
    match last_line(stdout).and_then(|line| check(line, name)) {
        Ok(answer) => Outcome::Said(class, answer),
        Err(why) => Outcome::Unknown(why, Some(class)),
    }
}

/// Reads the output of `list.sh`: every server that it lists, or why it is no whole list.
pub(super) fn read_list(exit: i32, stdout: Tail<'_>) -> Result<Vec<Listed>, String> {
    let class = Class::of(exit).ok_or_else(|| format!("exit code {exit}"))?;
    let list: List = serde_json::from_str(last_line(stdout)?)
        .map_err(|error| format!("the last line of stdout is not the agreed JSON: {error}"))?;
    if class != Class::Done {
        let why = list.error.map(|error| format!(": {}: {}", error.code, error.message)).unwrap_or_default();
        let mut why = format!("{}{why}", class.as_str());
        tidy(&mut why, MESSAGE_MAX);
        return Err(why);
    }
    let mut servers = list.servers.ok_or("the last line of stdout holds no `servers`")?;
    if servers.iter().any(|server| !is_provider_id(&server.id)) {
        return Err("an id is none (letters, digits, `.`, `_`, `:`, `/`, `-`, at most 128)".to_owned());
    }
    for server in &mut servers {
        tidy(&mut server.name, WORD_MAX);
        server.labels.values_mut().for_each(|value| tidy(value, WORD_MAX));
    }
    Ok(servers)
}

/// The last line that is not blank; the lines before it may be anything, binary data included.
fn last_line(stdout: Tail<'_>) -> Result<&str, String> {
    let written = stdout.bytes.trim_ascii_end();
    if written.is_empty() {
        return Err("nothing on stdout".to_owned());
    }
    let line = match written.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => &written[end + 1..],
        None if stdout.cut => {
            return Err(format!("the last line of stdout has more than {} bytes", written.len()));
        }
        None => written,
    };
    std::str::from_utf8(line).map_err(|_| "the last line of stdout is not UTF-8".to_owned())
}

fn check(line: &str, name: &str) -> Result<Answer, String> {
    let mut answer: Answer = serde_json::from_str(line)
        .map_err(|error| format!("the last line of stdout is not the agreed JSON: {error}"))?;
    if answer.name != name {
        return Err(format!("it speaks of another server than {name}"));
    }
    answer.id = answer.id.filter(|id| !id.is_empty());
    if answer.id.as_deref().is_some_and(|id| !is_provider_id(id)) {
        return Err(
            "its id is none (letters, digits, `.`, `_`, `:`, `/`, `-`, no `-` in front, at most 128)"
                .to_owned(),
        );
    }
    for (field, address) in [("ip", &mut answer.ip), ("private_ip", &mut answer.private_ip)] {
        *address = address.take().filter(|text| !text.is_empty());
        if address.as_deref().is_some_and(|text| text.parse::<IpAddr>().is_err()) {
            return Err(format!("its {field} is no IP address"));
        }
    }
    for word in [&mut answer.machine, &mut answer.location].into_iter().flatten() {
        tidy(word, WORD_MAX);
    }
    if let Some(error) = &mut answer.error {
        tidy(&mut error.code, WORD_MAX);
        tidy(&mut error.message, MESSAGE_MAX);
    }
    Ok(answer)
}

/// Makes a provider's words fit for a row, a log line and a mail: PostgreSQL takes no NUL, and whatever a row does not take
/// would keep the step that brings it from ever being written.
fn tidy(text: &mut String, most: usize) {
    if text.chars().any(char::is_control) {
        *text = text.chars().map(|one| if one.is_control() { ' ' } else { one }).collect();
    }
    if let Some((end, _)) = text.char_indices().nth(most) {
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"id":"7","name":"n","status":"ready","ip":"10.0.0.7","private_ip":null,"type":"t","location":"l","error":null}"#;

    fn whole(exit: i32, stdout: &[u8]) -> Outcome {
        read(exit, Tail { bytes: stdout, cut: false }, "n")
    }

    fn whole_list(exit: i32, stdout: &[u8]) -> Result<Vec<Listed>, String> {
        read_list(exit, Tail { bytes: stdout, cut: false })
    }

    #[test]
    fn what_stands_before_the_last_line_does_not_matter() {
        let before: [&[u8]; 3] = [b"\xff\xfe\x00\n", b"{\"name\":\"other\"}\r\n", b"+ set -x\n"];
        for noise in before {
            let stdout = [noise, GOOD.as_bytes(), b"\r\n \t\n"].concat();
            assert!(matches!(whole(0, &stdout), Outcome::Said(Class::Done, _)), "{noise:?}");
            let tail = read(0, Tail { bytes: &stdout, cut: true }, "n");
            assert!(matches!(tail, Outcome::Said(Class::Done, _)), "{noise:?}");
        }
        // A last line that is not all there is none.
        let cut = read(0, Tail { bytes: GOOD.as_bytes(), cut: true }, "n");
        assert!(matches!(cut, Outcome::Unknown(why, Some(Class::Done)) if why.contains("more than")));
    }

    #[test]
    fn numbers_and_words_in_other_types_are_understood() {
        let told = r#"{"id":4711,"name":"n","status":"ready","extra":{"cost":-1e308},"error":"a word"}"#;
        let Outcome::Said(Class::Done, answer) = whole(0, told.as_bytes()) else { panic!("{told}") };
        assert_eq!(answer.id.as_deref(), Some("4711"));
        assert_eq!(answer.error.expect("an error").message, "a word");
        let wait = |value: &str| {
            let told = format!(
                r#"{{"name":"n","status":"failed","error":{{"code":429,"message":null,"retry_after_s":{value}}}}}"#
            );
            let Outcome::Said(Class::RateLimited, answer) = whole(13, told.as_bytes()) else {
                panic!("{told}")
            };
            let error = answer.error.expect("an error");
            assert_eq!((error.code.as_str(), error.message.as_str()), ("429", ""));
            error.retry_after_s
        };
        assert_eq!(
            (wait("30"), wait("1.2"), wait("\"7\""), wait("0")),
            (Some(30), Some(2), Some(7), Some(0))
        );
        assert_eq!(wait("1e300"), Some(9_000_000_000_000_000));
        for none in ["-1", "null", "\"soon\"", "[]", "\"NaN\"", "true"] {
            assert_eq!(wait(none), None, "{none}");
        }
    }

    #[test]
    fn the_last_line_counts_and_empty_lines_do_not() {
        for stdout in [GOOD.to_owned(), format!("noise\n{GOOD}\n"), format!("{{}}\n{GOOD}\n\n  \n")] {
            let Outcome::Said(Class::Done, answer) = whole(0, stdout.as_bytes()) else {
                panic!("{stdout}");
            };
            assert_eq!((answer.id.as_deref(), answer.status), (Some("7"), Status::Ready));
            assert_eq!(answer.ip.as_deref(), Some("10.0.0.7"));
        }
    }

    #[test]
    fn every_agreed_exit_code_is_its_class_and_any_other_is_unknown() {
        for (exit, class) in [
            (0, Class::Done),
            (10, Class::Retry),
            (11, Class::OutOfStock),
            (12, Class::Quota),
            (13, Class::RateLimited),
            (14, Class::NotFound),
            (20, Class::Refused),
        ] {
            assert!(matches!(whole(exit, GOOD.as_bytes()), Outcome::Said(said, _) if said == class));
        }
        for exit in [1, 2, 15, 124, 126, 127, 137, 143, -1] {
            assert!(matches!(whole(exit, GOOD.as_bytes()), Outcome::Unknown(_, None)), "{exit}");
        }
    }

    #[test]
    fn a_providers_words_fit_into_a_row() {
        let told = format!(
            r#"{{"name":"n","status":"failed","type":"a\u0000b","error":{{"code":"c\u0000\u001b","message":"{}\n\u0000"}}}}"#,
            "é".repeat(5000)
        );
        let Outcome::Said(Class::Quota, answer) = whole(12, told.as_bytes()) else { panic!("{told}") };
        let error = answer.error.expect("an error");
        assert_eq!((answer.machine.as_deref(), error.code.as_str()), (Some("a b"), "c  "));
        assert_eq!((error.message.chars().count(), error.message.ends_with("é…")), (2001, true));
        let list =
            br#"{"servers":[{"id":"7","name":"a\u0000","status":"ready","labels":{"group":"\u0000"}}]}"#;
        let list = whole_list(0, list).expect("a list");
        assert_eq!((list[0].name.as_str(), list[0].labels["group"].as_str()), ("a ", " "));
    }

    #[test]
    fn only_a_whole_list_is_a_list() {
        let one =
            r#"{"servers":[{"id":"7","name":"n","status":"ready","labels":{"operation":"x"}}],"error":null}"#;
        let list = whole_list(0, one.as_bytes()).expect("a list");
        assert_eq!((list[0].id.as_str(), list[0].labels["operation"].as_str()), ("7", "x"));
        assert_eq!(whole_list(0, br#"{"servers":[]}"#), Ok(Vec::new()));
        let told = r#"{"name":"list","status":"failed","error":{"code":"partial","message":"page 2"}}"#;
        assert_eq!(whole_list(10, told.as_bytes()), Err("retry: partial: page 2".to_owned()));
        for (exit, stdout) in [
            (1, one),
            (10, one),
            (0, ""),
            (0, "{}"),
            (0, r#"{"servers":null}"#),
            (0, r#"{"servers":[{"id":"7"}]}"#),
            (0, r#"{"servers":[{"id":"7;id","name":"n","status":"ready","labels":{}}]}"#),
            (0, r#"{"servers":[{"id":"7","name":"n","status":"ready","labels":[]}]}"#),
        ] {
            assert!(whole_list(exit, stdout.as_bytes()).is_err(), "{exit} {stdout}");
        }
        assert!(read_list(0, Tail { bytes: one.as_bytes(), cut: true }).is_err());
    }

    #[test]
    fn what_is_not_the_agreed_json_is_unknown() {
        for stdout in [
            "",
            "\n",
            "ok",
            "[]",
            "{}",
            "null",
            r#"{"name":"n"}"#,
            r#"{"name":"n","status":"running"}"#,
            r#"{"name":"other","status":"ready"}"#,
            r#"{"name":"n","status":"ready","id":"a b"}"#,
            r#"{"name":"n","status":"ready","id":-7}"#,
            r#"{"name":"n","status":"ready","id":7.5}"#,
            r#"{"name":"n","status":"ready","id":["7"]}"#,
            r#"{"name":"n","status":"ready","id":"-rf"}"#,
            r#"{"name":"n","status":"ready","id":"7\n8"}"#,
            r#"{"name":["n"],"status":"ready"}"#,
            r#"{"name":"n","status":"ready","ip":"10.0.0.300"}"#,
            r#"{"name":"n","status":"ready","ip":"$(id)"}"#,
        ] {
            assert!(
                matches!(whole(0, stdout.as_bytes()), Outcome::Unknown(_, Some(Class::Done))),
                "{stdout}"
            );
        }
        assert!(matches!(whole(0, b"\xff\xfe"), Outcome::Unknown(..)));
        assert!(matches!(whole(0, b"{}\n\xff\xfe\n"), Outcome::Unknown(..)));
        let after = format!("{GOOD}\ntrailing");
        assert!(matches!(whole(0, after.as_bytes()), Outcome::Unknown(..)));
    }
}
