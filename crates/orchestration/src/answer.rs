//! What an agent's answer means. Pure: status, wish for time and body come in, an outcome comes out.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};

/// Of what an agent says, in rows and errors.
const SHOWN: usize = 500;

/// What came of a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// The agent did its work.
    Done(Report),
    /// It did not.
    Failed(Failed),
}

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The status of the answer; absent: there was none.
    pub status: Option<u16>,
    /// Why, in words.
    pub error: String,
    /// Whether another call may succeed.
    pub again: Again,
}

/// Whether and when an agent is called again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Never: it said no, or nobody can read what it says.
    Never,
    /// With the job's next attempt.
    Later,
    /// Not before so long: the agent asked for it.
    After(Duration),
}

/// What an agent says it did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// It looked and saw no reason to act.
    pub did_nothing: bool,
    /// Tasks it made.
    pub tasks: u64,
    /// Suggestions it made.
    pub suggestions: u64,
    /// Actions it took by itself, by key.
    pub actions: BTreeMap<String, u64>,
    /// Its own words.
    pub words: Option<String>,
}

/// Judges an answer.
#[must_use]
pub(crate) fn judge(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Heard {
    match status {
        200..=299 => read(status, body),
        // 409: a call with the same Idempotency-Key is still under way there.
        408 | 409 | 425 => failed(status, body, Again::Later),
        429 | 503 => failed(status, body, retry_after.map_or(Again::Later, Again::After)),
        500..=599 => failed(status, body, Again::Later),
        300..=399 => {
            failed(status, b"redirects are not followed: correct ORCHESTRATION_AGENTS_URL", Again::Never)
        }
        401 | 403 => {
            failed(status, b"the agent refuses the caller: look at ORCHESTRATION_AGENTS_TOKEN", Again::Never)
        }
        _ => failed(status, body, Again::Never),
    }
}

fn failed(status: u16, body: &[u8], again: Again) -> Heard {
    let words = shown(&String::from_utf8_lossy(body));
    let error = if words.is_empty() { format!("HTTP {status}") } else { format!("HTTP {status}: {words}") };
    Heard::Failed(Failed { status: Some(status), error, again })
}

fn read(status: u16, body: &[u8]) -> Heard {
    let unreadable = |what: String| {
        Heard::Failed(Failed {
            status: Some(status),
            error: format!("HTTP {status}, but {what}"),
            again: Again::Never,
        })
    };
    if body.iter().all(u8::is_ascii_whitespace) {
        return Heard::Done(Report::default());
    }
    let answer: Map<String, Value> = match serde_json::from_slice(body) {
        Ok(answer) => answer,
        Err(error) => return unreadable(format!("the body is no JSON object: {error}")),
    };
    let words = ["summary", "message", "reason"].iter().find_map(|key| answer.get(*key)?.as_str()).map(shown);
    if answer.get("success").and_then(Value::as_bool) == Some(false) {
        let error =
            answer.get("error").map(|error| error.as_str().map_or_else(|| error.to_string(), str::to_owned));
        let error = shown(&error.or(words).unwrap_or_else(|| "no reason given".to_owned()));
        let again = match answer.get("retryable").and_then(Value::as_bool) {
            Some(false) => Again::Never,
            _ => Again::Later,
        };
        return Heard::Failed(Failed {
            status: Some(status),
            error: format!("the agent failed: {error}"),
            again,
        });
    }
    match (count(&answer, "tasksCreated"), count(&answer, "suggestionsCreated"), actions(&answer)) {
        (Ok(tasks), Ok(suggestions), Ok(actions)) => Heard::Done(Report {
            did_nothing: answer.get("status").and_then(Value::as_str) == Some("do_nothing"),
            tasks,
            suggestions,
            actions,
            words,
        }),
        (Err(problem), ..) | (_, Err(problem), _) | (.., Err(problem)) => unreadable(problem),
    }
}

/// A number, or a list of what was made.
fn count(answer: &Map<String, Value>, key: &str) -> Result<u64, String> {
    match answer.get(key) {
        None | Some(Value::Null) => Ok(0),
        Some(Value::Array(made)) => Ok(made.len() as u64),
        // What adds up to more than this is a mistake, and would not fit the row.
        Some(value) => value
            .as_u64()
            .filter(|count| *count <= 1_000_000_000)
            .ok_or_else(|| format!("{key} is {}: a count or a list is needed", shown(&value.to_string()))),
    }
}

fn actions(answer: &Map<String, Value>) -> Result<BTreeMap<String, u64>, String> {
    let bad =
        |value: &Value| format!("actionsExecuted is {}: counts by key are needed", shown(&value.to_string()));
    let Some(value) = answer.get("actionsExecuted").filter(|value| !value.is_null()) else {
        return Ok(BTreeMap::new());
    };
    let mut actions = BTreeMap::new();
    for (key, count) in value.as_object().ok_or_else(|| bad(value))? {
        let count = count.as_u64().filter(|count| *count <= 1_000_000_000).ok_or_else(|| bad(value))?;
        if count > 0 {
            actions.insert(key.chars().take(100).collect(), count);
        }
    }
    Ok(actions)
}

/// Text for people: one line, control characters taken out, cut.
pub(crate) fn shown(text: &str) -> String {
    let line: String = text
        .split(|c: char| c.is_control() || c.is_whitespace())
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

/// An agent's wish for time: seconds, or a date of HTTP. `None` for anything else; a date that has passed is no wait.
#[must_use]
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More seconds than a number holds are cut to the caller's own limit all the same.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?;
    Some(Duration::try_from(date.timestamp().duration_since(now)).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(status: u16, wish: Option<u64>) -> Again {
        match judge(status, wish.map(Duration::from_secs), b"") {
            Heard::Failed(failed) => failed.again,
            Heard::Done(_) => panic!("{status} is a failure"),
        }
    }

    #[test]
    fn each_status_says_whether_to_call_again() {
        for status in [400, 401, 403, 404, 405, 410, 413, 422, 451, 301, 302, 307, 100] {
            assert_eq!(again(status, Some(9)), Again::Never, "{status}");
        }
        for status in [408, 409, 425, 500, 502, 504, 599] {
            assert_eq!(again(status, None), Again::Later, "{status}");
        }
        for status in [429, 503] {
            assert_eq!(again(status, None), Again::Later);
            assert_eq!(again(status, Some(9)), Again::After(Duration::from_secs(9)));
        }
    }

    #[test]
    fn a_report_is_read_as_counts_or_lists() {
        let body = br#"{"success":true,"tasksCreated":["t1","t2"],"suggestionsCreated":3,"actionsExecuted":{"comment":2,"none":0},
            "summary":"all\nwell"}"#;
        let expected = Report {
            tasks: 2,
            suggestions: 3,
            actions: BTreeMap::from([("comment".to_owned(), 2)]),
            words: Some("all well".to_owned()),
            did_nothing: false,
        };
        assert_eq!(judge(200, None, body), Heard::Done(expected));
        assert_eq!(judge(204, None, b" \n"), Heard::Done(Report::default()));
        let nothing = judge(200, None, br#"{"status":"do_nothing","reason":"quiet week"}"#);
        assert!(matches!(nothing, Heard::Done(Report { did_nothing: true, .. })), "{nothing:?}");
    }

    #[test]
    fn what_cannot_be_read_is_final_and_a_failure_of_the_agents_own_is_not() {
        for body in [
            "<html>",
            "[1]",
            r#"{"tasksCreated":-1}"#,
            r#"{"tasksCreated":"many"}"#,
            r#"{"actionsExecuted":[1]}"#,
            r#"{"a":"#,
        ] {
            let heard = judge(200, None, body.as_bytes());
            assert!(matches!(&heard, Heard::Failed(Failed { again: Again::Never, .. })), "{body}: {heard:?}");
        }
        for (body, expected) in [
            (r#"{"success":false,"error":"model is busy"}"#, Again::Later),
            (r#"{"success":false,"error":"no such project","retryable":false}"#, Again::Never),
        ] {
            let Heard::Failed(failed) = judge(200, None, body.as_bytes()) else { panic!("{body}") };
            assert_eq!(failed.again, expected);
            assert!(
                failed.error.contains("busy") || failed.error.contains("no such project"),
                "{}",
                failed.error
            );
        }
    }

    #[test]
    fn errors_are_one_short_line() {
        let Heard::Failed(failed) = judge(500, None, "a\u{7}b\r\nc ".repeat(1_000).as_bytes()) else {
            panic!()
        };
        assert!(failed.error.starts_with("HTTP 500: a b c a b c"), "{}", failed.error);
        assert!(failed.error.chars().count() < 600);
    }

    #[test]
    fn a_wish_for_time_is_seconds_or_a_date() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        for (value, expected) in [
            ("120", Some(120)),
            ("Sun, 22 Nov 2026 10:01:00 GMT", Some(60)),
            ("Sun, 22 Nov 2026 09:00:00 GMT", Some(0)),
            ("99999999999999999999999", Some(u64::from(u32::MAX))),
            ("-5", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(value, now), expected.map(Duration::from_secs), "{value}");
        }
    }
}
