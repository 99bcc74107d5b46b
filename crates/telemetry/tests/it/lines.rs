//! What an operator reads on stderr.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};

use serde_json::{Value, json};

use crate::child::{command, play_out};

fn nothing() -> BTreeMap<&'static str, String> {
    BTreeMap::new()
}

fn one(lines: Vec<Value>) -> Value {
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.into_iter().next().expect("one line")
}

#[test]
fn lines_carry_time_fields_spans_and_trace_ids_without_any_exporter() {
    let played = play_out("plain", &nothing()).success();
    let outside = one(played.with_message("outside"));
    let time = outside["timestamp"].as_str().expect("a time");
    assert!(time.len() == 24 && time.ends_with('Z') && time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    assert_eq!(outside["level"], "INFO");
    assert!(outside["target"].as_str().is_some_and(|target| target.starts_with("it::child")));
    assert_eq!((&outside["service"], &outside["instance"]), (&json!("voiceai-test"), &json!("test-1")));
    assert_eq!(outside.get("otel_trace_id"), None, "outside a span there is no trace");

    let inside = one(played.with_message("inside"));
    assert_eq!((&inside["job_id"], &inside["attempt"]), (&json!("j-1"), &json!(2)));
    assert_eq!(inside["text"], "own", "the event's field wins over the span's");
    let hex = |value: &Value, digits| {
        let text = value.as_str().unwrap_or_default();
        text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit()) && text.bytes().any(|b| b != b'0')
    };
    assert!(hex(&inside["otel_trace_id"], 32) && hex(&inside["otel_span_id"], 16), "{inside}");

    let deeper = one(played.with_message("deeper"));
    assert_eq!((&deeper["span"], &deeper["queue"]), (&json!("inner"), &json!("mail")));
    assert_eq!(deeper["state"], "running", "a field recorded later is there");
    assert_eq!((&deeper["level"], &deeper["field.level"]), (&json!("WARN"), &json!("mine")));
    assert_eq!(deeper["otel_trace_id"], inside["otel_trace_id"]);
    assert_ne!(deeper["otel_span_id"], inside["otel_span_id"]);
    assert!(played.with_message("not at info").is_empty());
}

#[test]
fn nothing_in_a_field_breaks_the_line() {
    let played = play_out("plain", &nothing()).success();
    let evil = one(played.with_message("split\nline"));
    assert_eq!(evil["evil"], "a\r\n{\"level\":\"ERROR\"}\u{1b}[31m\u{9b}2J\u{2028}end");
    assert_eq!(evil["level"], "INFO");
    let raw = String::from_utf8_lossy(&played.output.stderr).into_owned();
    for control in ['\u{1b}', '\u{9b}', '\u{2028}', '\r'] {
        assert!(!raw.contains(control), "{control:?} reached the terminal");
    }
    assert_eq!(one(played.with_message("odd"))["ratio"], "NaN");
    let big = one(played.with_message("big"))["big"].as_str().map(str::len);
    assert!(big.is_some_and(|length| (16_384..17_000).contains(&length)), "{big:?}");
}

#[test]
fn repeats_are_written_once_and_counted_and_different_lines_are_not_repeats() {
    let played = play_out("plain", &nothing()).success();
    let away = played.with_message("redis is away");
    assert_eq!(away.len(), 2, "the first, and at the end the count: {away:?}");
    assert_eq!(away[0].get("repeats_left_out"), None);
    assert_eq!(away[1]["repeats_left_out"], 99);
    assert_eq!(played.with_message("Email job completed").len(), 100);
}

#[test]
fn the_start_line_names_version_revision_and_settings() {
    let start = one(play_out("start", &nothing()).success().with_message("service started"));
    assert_eq!((&start["version"], &start["revision"]), (&json!("1.2.3"), &json!("abc123")));
    assert_eq!(start["environment"], "development");
    assert_eq!(start["settings"], json!({"REDIS_PASSWORD": "[REDACTED]", "S3_BUCKET": "backups"}));
    assert!(!voiceai_telemetry::REVISION.is_empty());
}

#[test]
fn a_panic_is_one_line() {
    let played = play_out("panic", &nothing()).success();
    let lines = played.lines();
    let panicked = one(lines.clone());
    assert_eq!(panicked["message"], "panicked");
    assert_eq!((&panicked["level"], &panicked["panic"]), (&json!("ERROR"), &json!("no such\nqueue")));
    assert!(panicked["place"].as_str().is_some_and(|place| place.contains("child.rs:")), "{panicked}");
}

#[test]
fn a_warning_keeps_its_ids_when_only_warnings_are_written() {
    let variables = BTreeMap::from([("LOG_LEVEL", "warn".to_owned())]);
    let played = play_out("plain", &variables).success();
    assert!(played.with_message("inside").is_empty());
    let deeper = one(played.with_message("deeper"));
    assert!(deeper["otel_trace_id"].is_string() && deeper["job_id"] == "j-1", "{deeper}");
}

#[test]
fn traces_continue_over_a_traceparent() {
    let played = play_out("propagate", &nothing()).success();
    let continued = one(played.with_message("continued"));
    assert_eq!(continued["otel_trace_id"], "0af7651916cd43dd8448eb211c80319c");
    assert_ne!(one(played.with_message("begun anew"))["otel_trace_id"], continued["otel_trace_id"]);
}

#[test]
fn sigusr1_switches_debug_lines_on_and_off() {
    use nix::sys::signal::{Signal, kill};
    let mut process = command("usr1", &nothing()).spawn().expect("the test binary starts");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(process.id()).expect("a pid"));
    let mut lines = BufReader::new(process.stderr.take().expect("stderr is piped")).lines();
    let mut until = |message: &str| -> Vec<String> {
        let mut before = Vec::new();
        for line in lines.by_ref() {
            let line: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
            let text = line["message"].as_str().unwrap_or_default().to_owned();
            if text == message {
                return before;
            }
            before.push(text);
        }
        panic!("the process ended before `{message}`: {before:?}");
    };
    until("ready for the signal");
    let quiet: Vec<_> = until("beat");
    assert!(!quiet.contains(&"a debug line".to_owned()));
    kill(pid, Signal::SIGUSR1).expect("the process lives");
    until("debug log lines on");
    until("a debug line");
    kill(pid, Signal::SIGUSR1).expect("the process lives");
    let between = until("debug log lines off");
    assert!(!between.contains(&"another crate's debug line".to_owned()), "{between:?}");
    until("beat");
    process.kill().expect("the process lives");
    process.wait().expect("the process ends");
}
