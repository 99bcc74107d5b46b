//! Export to a real receiver, and what happens when there is none.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::Duration;

use crate::child::play_out;
use crate::receiver::Receiver;

fn arrives(protocol: &str, endpoint: impl Fn(&Receiver) -> String) {
    let receiver = Receiver::start();
    let variables = BTreeMap::from([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint(&receiver)),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip".to_owned()),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.version=9.9.9,team=voice".to_owned()),
    ]);
    let played = play_out("export", &variables).success();
    let seen = receiver.wait("span, metric and log", |seen| {
        ["j-7", "voiceai.test.total", "exported line"].iter().all(|text| seen.contains(text))
    });
    for text in ["voiceai-test", "test-1", "team", "9.9.9", "development"] {
        assert!(seen.contains(text), "{text} is missing from the resource:\n{seen}");
    }
    assert!(!seen.contains("1.2.3"), "the operator's service.version wins");
    assert!(!seen.contains("an exporter talking to itself"));
    let line = &played.with_message("exported line")[0];
    let trace = line["otel_trace_id"].as_str().expect("a trace id");
    assert!(seen.contains(trace), "the line's trace {trace} is the exported one:\n{seen}");
    assert!(played.took < Duration::from_secs(5), "{:?}", played.took);
}

#[test]
fn all_signals_arrive_by_grpc() {
    arrives("grpc", |receiver| format!("http://127.0.0.1:{}", receiver.grpc));
}

#[test]
fn all_signals_arrive_by_http() {
    arrives("http/protobuf", |receiver| format!("http://127.0.0.1:{}", receiver.http));
}

#[test]
fn a_signal_set_to_none_stays() {
    let receiver = Receiver::start();
    let variables = BTreeMap::from([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{}", receiver.http)),
        ("OTEL_METRICS_EXPORTER", "none".to_owned()),
        ("OTEL_LOGS_EXPORTER", "none".to_owned()),
    ]);
    play_out("export", &variables).success();
    let seen = receiver.wait("the span", |seen| seen.contains("j-7"));
    assert!(!seen.contains("voiceai.test.total"), "{seen}");
}

#[test]
fn a_dead_or_silent_endpoint_delays_the_end_by_two_seconds_at_most() {
    // Accepts by its backlog and never says a word.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let silent = listener.local_addr().expect("an address").port();
    for (protocol, port) in [("grpc", 1), ("http/protobuf", 1), ("grpc", silent), ("http/protobuf", silent)] {
        let variables = BTreeMap::from([
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}")),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
        ]);
        let played = play_out("export", &variables).success();
        assert!(played.took < Duration::from_millis(3_500), "{protocol} {port}: {:?}", played.took);
        assert_eq!(played.with_message("exported line").len(), 1, "the log goes on");
    }
}

#[test]
fn wrong_values_are_refused_by_name_before_anything_starts() {
    let variables = BTreeMap::from([
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon".to_owned()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318".to_owned()),
        ("LOG_LEVEL", "loud".to_owned()),
    ]);
    let played = play_out("export", &variables).success();
    let lines = played.lines();
    let refused = lines[0]["refused"].as_str().expect("an error");
    for name in ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_ENDPOINT", "LOG_LEVEL"] {
        assert!(refused.contains(name), "{refused}");
    }
    assert_eq!(lines.len(), 1, "nothing else was written: {lines:?}");
}
