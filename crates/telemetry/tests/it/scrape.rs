//! Metrics as a Prometheus document, read by Prometheus' own parser.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::child::play_out;

/// What the document of a child process is.
fn document(variables: &BTreeMap<&str, String>) -> String {
    let played = play_out("scrape", variables).success();
    let stdout = String::from_utf8(played.output.stdout).expect("text");
    let (_, rest) = stdout.split_once("BEGIN\n").expect("the scenario prints the document");
    rest.split_once("END").expect("and its end").0.to_owned()
}

/// The samples of a document as the official parser reads them: `[name, labels, value]`.
fn parsed(document: &str) -> Vec<Value> {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/stack/tool.sh");
    let python = Command::new(tool).arg("prometheus").output().expect("run scripts/stack/tool.sh");
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let read = "import json, sys\n\
                from prometheus_client.parser import text_string_to_metric_families as parse\n\
                print(json.dumps([[s.name, s.labels, float(s.value)] for f in parse(sys.stdin.read()) for s in f.samples]))";
    let mut python = Command::new(String::from_utf8_lossy(&python.stdout).trim())
        .args(["-c", read])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start Python");
    python.stdin.take().expect("a pipe").write_all(document.as_bytes()).expect("send the document");
    let output = python.wait_with_output().expect("the parser ends");
    assert!(output.status.success(), "the parser refuses\n{document}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn the_document_is_what_prometheus_reads() {
    let document = document(&BTreeMap::from([("KEEP_METRICS", "1".to_owned())]));
    let samples = parsed(&document);
    let labels = json!({"path": "a\"b\\c\nd"});
    let has = |sample: Value| assert!(samples.contains(&sample), "no {sample} in\n{document}");
    has(json!(["test_things_total", labels, 7.0]));
    has(json!(["test_waiting_jobs", {"queue": "email-queue"}, 3.0]));
    has(json!(["test_duration_seconds_count", labels, 1.0]));
    has(json!(["test_duration_seconds_sum", labels, 0.5]));
    let bucket = |le: &str| json!({"path": "a\"b\\c\nd", "le": le});
    has(json!(["test_duration_seconds_bucket", bucket("0.1"), 0.0]));
    has(json!(["test_duration_seconds_bucket", bucket("+Inf"), 1.0]));
    assert!(document.contains("# TYPE test_things_total counter"), "{document}");
    assert!(document.contains("# HELP test_things_total Things,\\nof two lines"), "{document}");
    let target = samples.iter().find(|sample| sample[0] == "target_info").expect("who reports");
    assert_eq!(target[1]["service_name"], "voiceai-test", "{target}");
}

#[test]
fn nothing_is_kept_unless_it_was_asked_for() {
    assert!(document(&BTreeMap::new()).contains("METRICS_HTTP was not true"));
}
