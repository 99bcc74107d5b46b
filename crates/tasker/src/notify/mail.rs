//! What a mail of notices says.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// Most lines of one mail; what goes beyond is counted.
const LINES_MAX: usize = 50;
/// Longest event, group and server, and longest reason, in characters.
const NAME_MAX: usize = 100;
const REASON_MAX: usize = 2_000;

/// One notice of a mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) at: Timestamp,
    pub(super) server: Option<String>,
    pub(super) reason: String,
}

/// The name in a form that fits a subject line and a column.
pub(super) fn name(text: &str) -> String {
    clean(text, NAME_MAX)
}

/// The reason in one line.
pub(super) fn reason(text: &str) -> String {
    clean(text, REASON_MAX)
}

/// One line without control characters, cut where it is too long.
fn clean(text: &str, longest: usize) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let plain = plain.trim();
    if plain.chars().count() <= longest {
        return plain.to_owned();
    }
    let mut cut: String = plain.chars().take(longest - 1).collect();
    cut.push('…');
    cut
}

/// The variables of the template `ops.notice`. Notices that say the same are one line, with their number.
pub(super) fn variables(environment: &str, event: &str, subject: &str, lines: &[Line]) -> Map<String, Value> {
    let mut distinct: Vec<(&Line, usize)> = Vec::new();
    let mut more = 0;
    for line in lines {
        let same = |seen: &&Line| seen.server == line.server && seen.reason == line.reason;
        if let Some(at) = distinct.iter().position(|(seen, _)| same(seen)) {
            distinct[at].1 += 1;
        } else if distinct.len() < LINES_MAX {
            distinct.push((line, 1));
        } else {
            more += 1;
        }
    }
    let notices: Vec<Value> = distinct
        .into_iter()
        .map(|(line, times)| {
            let mut notice = json!({ "at": line.at, "reason": line.reason, "times": times });
            if let Some(server) = &line.server {
                notice["server"] = json!(server);
            }
            notice
        })
        .collect();
    let mut variables = Map::new();
    variables.insert("environment".to_owned(), json!(environment));
    variables.insert("event".to_owned(), json!(event.replace('_', " ")));
    if !subject.is_empty() {
        variables.insert("subject".to_owned(), json!(subject));
    }
    variables.insert("count".to_owned(), json!(lines.len()));
    variables.insert("more".to_owned(), json!(more));
    variables.insert("notices".to_owned(), Value::Array(notices));
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(second: i64, server: Option<&str>, reason: &str) -> Line {
        let at = Timestamp::from_second(second).expect("a time");
        Line { at, server: server.map(str::to_owned), reason: reason.to_owned() }
    }

    #[test]
    fn what_says_the_same_is_one_line_and_what_does_not_fit_is_counted() {
        let mut lines = vec![line(1, Some("a"), "full"), line(2, Some("a"), "full"), line(3, None, "full")];
        let few = variables("prod", "drain_overdue", "", &lines);
        assert_eq!(
            (&few["count"], &few["more"], &few["event"]),
            (&json!(3), &json!(0), &json!("drain overdue"))
        );
        assert_eq!(few["notices"][0]["times"], 2);
        assert_eq!(few["notices"][0]["at"], "1970-01-01T00:00:01Z", "the first of them");
        assert!(few["notices"][1].get("server").is_none() && few.get("subject").is_none());
        lines.extend((0..100).map(|n| line(4, None, &format!("reason {n}"))));
        let many = variables("prod", "failed", "eu", &lines);
        assert_eq!(many["notices"].as_array().map(Vec::len), Some(LINES_MAX));
        assert_eq!((&many["count"], &many["more"]), (&json!(103), &json!(52)));
    }

    #[test]
    fn no_text_breaks_out_of_its_line() {
        assert_eq!(reason("a\r\nBcc: eve@example.com\0 "), "a  Bcc: eve@example.com");
        assert_eq!(name(&"x".repeat(300)).chars().count(), NAME_MAX);
    }
}
