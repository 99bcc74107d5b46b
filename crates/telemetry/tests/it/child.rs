//! The process under test: this test binary again, told by an environment variable what to play.

use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tracing::Instrument as _;
use voiceai_telemetry::{TelemetryError, TelemetrySettings};

const SCENARIO: &str = "TELEMETRY_TEST_SCENARIO";

/// How a scenario ended.
pub(crate) struct Played {
    pub(crate) output: Output,
    pub(crate) took: Duration,
}

impl Played {
    /// Every line of stderr, each of which must be JSON.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.output.stderr.clone()).expect("stderr is UTF-8");
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect()
    }

    /// The lines with one message.
    pub(crate) fn with_message(&self, message: &str) -> Vec<Value> {
        self.lines().into_iter().filter(|line| line["message"] == message).collect()
    }

    pub(crate) fn success(self) -> Self {
        let errors = String::from_utf8_lossy(&self.output.stderr);
        assert!(self.output.status.success(), "{:?}: {errors}", self.output.status);
        self
    }
}

/// The command that plays a scenario, with no `OTEL_` variable but the given ones.
pub(crate) fn command(scenario: &str, variables: &BTreeMap<&str, String>) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary has a path"));
    command.args(["--exact", "child::play", "--ignored", "--nocapture", "--test-threads=1"]);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command.envs(variables).env(SCENARIO, scenario).env_remove("RUST_BACKTRACE");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Plays a scenario to its end.
pub(crate) fn play_out(scenario: &str, variables: &BTreeMap<&str, String>) -> Played {
    let started = Instant::now();
    let output = command(scenario, variables).output().expect("the test binary starts");
    Played { output, took: started.elapsed() }
}

fn settings() -> TelemetrySettings {
    TelemetrySettings {
        service: "voiceai-test".to_owned(),
        version: "1.2.3".to_owned(),
        revision: "abc123".to_owned(),
        instance_id: "test-1".to_owned(),
        environment: "development".to_owned(),
        log_level: std::env::var("LOG_LEVEL").unwrap_or_else(|_| "info".to_owned()),
        scrape: std::env::var_os("KEEP_METRICS").is_some(),
    }
}

#[test]
#[ignore = "the process that the other tests start"]
fn play() {
    let Ok(scenario) = std::env::var(SCENARIO) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime starts").block_on(scene(&scenario));
}

async fn scene(name: &str) {
    let telemetry = match voiceai_telemetry::init(&settings()) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            assert!(matches!(error, TelemetryError::Settings(_)), "{error:?}");
            eprintln!("{}", serde_json::json!({ "refused": error.to_string() }));
            return;
        }
    };
    match name {
        "plain" => plain().await,
        "start" => telemetry.log_start(&[
            ("REDIS_PASSWORD".to_owned(), "[REDACTED]".to_owned()),
            ("S3_BUCKET".to_owned(), "backups".to_owned()),
        ]),
        "export" => export().await,
        "panic" => {
            let _ = tokio::spawn(async { panic!("no such\nqueue") }).await;
        }
        "usr1" => usr1(telemetry.level()).await,
        "propagate" => propagate(),
        "scrape" => scrape(),
        other => panic!("no scenario {other}"),
    }
    telemetry.shutdown().await;
}

async fn plain() {
    tracing::info!("outside");
    let outer = tracing::info_span!("outer", job_id = "j-1", state = tracing::field::Empty, text = "outer");
    async {
        tracing::info!(attempt = 2, text = "own", "inside");
        tracing::Span::current().record("state", "running");
        let inner = tracing::info_span!("inner", queue = "mail");
        tracing::warn!(parent: &inner, level = "mine", "deeper");
        tracing::debug!("not at info");
        tracing::info!(evil = "a\r\n{\"level\":\"ERROR\"}\u{1b}[31m\u{9b}2J\u{2028}end", "split\nline");
        tracing::info!(
            error = &std::io::Error::other("top") as &dyn std::error::Error,
            ratio = f64::NAN,
            "odd"
        );
        tracing::info!(big = "x".repeat(100_000), "big");
    }
    .instrument(outer)
    .await;
    for number in 0..100 {
        tracing::warn!(latency_ms = number, "redis is away");
        tracing::info!(job_id = number, "Email job completed");
    }
}

async fn export() {
    let span = tracing::info_span!("work", job_id = "j-7");
    async { tracing::info!(answer = 42, "exported line") }.instrument(span).await;
    tracing::info!(target: "hyper::client", "an exporter talking to itself");
    let meter = opentelemetry::global::meter("voiceai");
    meter.u64_counter("voiceai.test.total").build().add(3, &[]);
    let parent = tracing::info_span!("parent");
    println!("trace {}", voiceai_telemetry::traceparent_of(&parent).expect("a live span has ids"));
}

async fn usr1(level: voiceai_telemetry::LogLevel) {
    let mut toggle = Box::pin(voiceai_telemetry::toggle_debug_on_sigusr1(level.clone()));
    // Polled once before the test is told to send: until then the signal would end the process.
    tokio::select! { biased; _ = &mut toggle => {}, () = std::future::ready(()) => {} }
    tracing::info!("ready for the signal");
    let talk = async {
        loop {
            tracing::debug!(target: "voiceai_tasker::jobs", "a debug line");
            tracing::debug!(target: "sqlx::query", "another crate's debug line");
            tracing::info!(beat = ?std::time::Instant::now(), "beat");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! { _ = &mut toggle => {}, () = talk => {}, () = tokio::time::sleep(Duration::from_secs(20)) => {} }
}

fn propagate() {
    assert_eq!(voiceai_telemetry::current_traceparent(), None);
    let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let span = voiceai_telemetry::span_from_traceparent(Some(given));
    span.in_scope(|| {
        let next = voiceai_telemetry::current_traceparent().expect("inside a span");
        assert!(next.starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "{next}");
        assert!(!next.contains("b7ad6b7169203331"), "a child has an id of its own");
        tracing::info!("continued");
    });
    assert!(!voiceai_telemetry::continue_trace(&span, given), "too late: the span has begun");
    let fresh = voiceai_telemetry::span_from_traceparent(Some("rubbish"));
    fresh.in_scope(|| {
        assert!(voiceai_telemetry::current_traceparent().is_some());
        tracing::info!("begun anew");
    });
    assert!(voiceai_telemetry::link_trace(&fresh, given));
}

/// Metrics of every form, with labels that need to be escaped; the document goes to standard output between two marks.
fn scrape() {
    let meter = opentelemetry::global::meter("voiceai-test");
    let label = [opentelemetry::KeyValue::new("path", "a\"b\\c\nd")];
    meter.u64_counter("test.things").with_description("Things,\nof two lines").build().add(7, &label);
    meter
        .u64_gauge("test.waiting_jobs")
        .build()
        .record(3, &[opentelemetry::KeyValue::new("queue", "email-queue")]);
    let histogram = meter.f64_histogram("test.duration").with_unit("s").with_boundaries(vec![0.1, 1.0]);
    histogram.build().record(0.5, &label);
    let document = voiceai_telemetry::scrape().unwrap_or_else(|error| format!("{error}\n"));
    println!("BEGIN\n{document}END");
}
