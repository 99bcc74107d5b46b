//! The internal listener of the real binary: the queues' admin API, `/metrics`, and the order of the stop.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use voiceai_testkit::{Exit, Port, Process, RedisOptions, RedisServer, TcpProxy, wait_for};

use crate::stage::{PATIENCE, Stage, answer};

pub(crate) const TOKEN: &str = "an-internal-token-of-32-bytes-at-least";
const EMAIL: &str = "/api/v1/admin/email/queue";

/// A tasker with an internal listener.
pub(crate) struct Listening {
    port: Port,
    pub(crate) process: Process,
}

impl Listening {
    pub(crate) async fn start(stage: &Stage, variables: &[(&str, &str)]) -> Self {
        let port = Port::reserve();
        let address = format!(":{}", port.number());
        let program =
            stage.program().arg("run").env("TASKER_HTTP_ADDR", address).env("INTERNAL_HTTP_TOKEN", TOKEN);
        let process = program.envs(variables.iter().copied()).start();
        process.wait_for_line(PATIENCE, "service ready").await;
        Self { port, process }
    }

    /// Asks by curl, as an operator would.
    pub(crate) fn curl(&self, path: &str, arguments: &[&str]) -> Reply {
        let url = format!("http://127.0.0.1:{}{path}", self.port.number());
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--include", "--max-time", "30"])
            .args(arguments)
            .arg(url)
            .output()
            .expect("run curl");
        assert!(output.status.success(), "{output:?}\n{}", self.process.stderr());
        let text = String::from_utf8(output.stdout).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Reply { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.curl(path, &["-H", &format!("Authorization: Bearer {TOKEN}")])
    }

    /// What is at the end of the way that an answer shows. The token goes to the first host alone.
    pub(crate) fn get_following(&self, path: &str) -> String {
        let url = format!("http://127.0.0.1:{}{path}", self.port.number());
        let authorization = format!("Authorization: Bearer {TOKEN}");
        let output =
            Command::new("curl").args(["-sSfL", "-H", &authorization, &url]).output().expect("run curl");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn curl_delete(&self, path: &str) -> Reply {
        self.curl(path, &["-X", "DELETE", "-H", &format!("Authorization: Bearer {TOKEN}")])
    }

    pub(crate) fn post(&self, path: &str, arguments: &[&str]) -> Reply {
        let authorization = format!("Authorization: Bearer {TOKEN}");
        self.curl(path, &[&["-X", "POST", "-H", &authorization], arguments].concat())
    }
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    #[track_caller]
    pub(crate) fn assert_status(&self, status: u16) {
        assert_eq!(self.status, status, "{self:?}");
    }

    #[track_caller]
    pub(crate) fn json(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }

    /// A problem with this status and code.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, code: &str) -> Value {
        let problem = self.json(status);
        assert!(self.head.contains("application/problem+json"), "{self:?}");
        assert_eq!(problem["code"], code, "{problem}");
        problem
    }
}

/// A job of the mail queue that is dead after its one attempt.
async fn dead(stage: &Stage, id: &str, payload: &str) {
    let enqueue =
        ["jobs", "enqueue", "diagnostic.probe", "--queue", "email-queue", "--id", id, "--payload", payload];
    stage.ask_all(&enqueue).await.text(0);
    stage.wait_for_state(id, "dead").await;
}

const ONE_TRY: [(&str, &str); 1] = [("QUEUE_EMAIL_ATTEMPTS", "1")];

#[tokio::test]
async fn the_queues_are_shown_to_whoever_has_the_token() {
    let stage = Stage::new().await;
    let tasker = Listening::start(&stage, &ONE_TRY).await;
    tasker.curl(EMAIL, &[]).problem(401, "unauthorized");
    tasker.curl(EMAIL, &["-H", "Authorization: Bearer wrong"]).problem(401, "unauthorized");
    for path in ["/healthz", "/readyz", "/livez", "/metrics"] {
        tasker.get(path).problem(404, "route_not_found");
    }
    for n in 0..12 {
        dead(&stage, &format!("d{n}"), r#"{"fail_times":9}"#).await;
    }
    let fine = ["jobs", "enqueue", "diagnostic.probe", "--queue", "email-queue", "--id", "c"];
    stage.ask_all(&fine).await.text(0);
    stage.wait_for_state("c", "completed").await;
    let shown = tasker.get(EMAIL).json(200);
    assert_eq!(shown["success"], true);
    let stats = json!({"waiting":0,"active":0,"completed":1,"failed":12,"delayed":0,"total":13});
    assert_eq!(shown["data"]["stats"], stats, "{shown}");
    let failed = shown["data"]["failedJobs"].as_array().unwrap();
    let ids: Vec<_> = failed.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids, (2..12).rev().map(|n| format!("d{n}")).collect::<Vec<_>>(), "the newest ten");
    let newest = &failed[0];
    assert_eq!((&newest["data"]["fail_times"], &newest["attemptsMade"]), (&json!(9), &json!(1)), "{newest}");
    assert!(newest["failedReason"].as_str().is_some_and(|reason| !reason.is_empty()), "{newest}");
    assert!(newest["timestamp"].as_i64() <= newest["failedAt"].as_i64(), "{newest}");
    assert_eq!(tasker.get("/api/v1/admin/queues/email-queue").json(200)["data"], shown["data"]);
    let none = json!({"waiting":0,"active":0,"completed":0,"failed":0,"delayed":0,"total":0});
    assert_eq!(tasker.get("/api/v1/admin/orchestration/queue").json(200)["data"]["stats"], none);
    tasker.get("/api/v1/admin/queues/nosuch").problem(404, "queue_not_found");
    tasker.get("/api/v1/admin/queues/%ff").problem(404, "not_found");
    tasker.post(EMAIL, &[]).problem(405, "method_not_allowed");
}

#[tokio::test]
async fn a_dead_job_is_tried_again_by_its_id_and_audited() {
    let stage = Stage::new().await;
    let retry = |id: &str| format!("{EMAIL}/retry/{id}");
    // It fails as often as it is tried, and then is tried more often.
    let first = Listening::start(&stage, &ONE_TRY).await;
    dead(&stage, "again", r#"{"fail_times":1,"effect":"again"}"#).await;
    first.process.terminate();
    assert_eq!(first.process.wait_exit(PATIENCE).await, Exit::Code(0));
    let more = [("QUEUE_EMAIL_ATTEMPTS", "2"), ("QUEUE_EMAIL_BACKOFF", "20ms")];
    let tasker = Listening::start(&stage, &more).await;
    let body = r#"{"reason":"the mail server is back"}"#;
    let json = ["-H", "Content-Type: application/json", "-H", "X-Operator: ada", "-d", body];
    let retried = tasker.post(&retry("again"), &json).json(200);
    assert_eq!(
        (&retried["success"], &retried["data"]["jobId"]),
        (&json!(true), &json!("again")),
        "{retried}"
    );
    stage.wait_for_state("again", "completed").await;
    assert_eq!(stage.effects("again").await, 1);
    let audit = stage.ask("audit list --json").await.json(0);
    let rows: Vec<_> =
        audit["entries"].as_array().unwrap().iter().filter(|row| row["actor"] == "ada").collect();
    assert!(rows.iter().any(|row| row["reason"] == "the mail server is back"), "{audit}");
    // What has not failed is not there to be tried again.
    tasker.post(&retry("again"), &[]).problem(404, "job_not_failed");
    tasker.post(&retry("nosuch"), &[]).problem(404, "job_not_found");
    tasker.post(&retry("..%2f..%2f"), &[]).problem(404, "job_not_found");
    tasker.post("/api/v1/admin/orchestration/queue/retry/again", &[]).problem(404, "job_not_found");
    let unknown = ["-H", "Content-Type: application/json", "-d", r#"{"why":"x"}"#];
    tasker.post(&retry("again"), &unknown).problem(400, "invalid_body");
    tasker.post(&retry("again"), &["-d", "reason=x"]).problem(415, "unsupported_media_type");
    // A payload that its kind does not read would only die again.
    dead(&stage, "bad", r#"{"fail_times":"many"}"#).await;
    let problem = tasker.post(&retry("bad"), &[]).problem(409, "reason_needs_naming");
    assert_eq!(problem["success"], false);
    let named = ["-H", "Content-Type: application/json", "-d", r#"{"reason_is":"bad_payload"}"#];
    tasker.post(&retry("bad"), &named).problem(409, "bad_payload");
    let other = ["-H", "Content-Type: application/json", "-d", r#"{"reason_is":"poison"}"#];
    tasker.post(&retry("bad"), &other).problem(409, "reason_differs");
}

/// The samples of a document as Prometheus' own parser reads them: `[name, labels, value]`.
fn parsed(document: &str) -> Vec<Value> {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/stack/tool.sh");
    let python = Command::new(tool).arg("prometheus").output().expect("run scripts/stack/tool.sh");
    let read = "import json, sys\n\
                from prometheus_client.parser import text_string_to_metric_families as parse\n\
                print(json.dumps([[s.name, s.labels, float(s.value)] for f in parse(sys.stdin.read()) for s in f.samples]))";
    let mut python = Command::new(String::from_utf8_lossy(&python.stdout).trim())
        .args(["-c", read])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start Python");
    python.stdin.take().unwrap().write_all(document.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "the parser refuses\n{document}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn prometheus_reads_the_metrics() {
    let stage = Stage::new().await;
    let tasker =
        Listening::start(&stage, &[("METRICS_HTTP", "true"), ("QUEUE_EMAIL_CONCURRENCY", "1")]).await;
    tasker.curl("/metrics", &[]).problem(401, "unauthorized");
    stage.ask("jobs enqueue diagnostic.probe --id done").await.text(0);
    stage.wait_for_state("done", "completed").await;
    stage.ask("queue pause email-queue --yes").await.text(0);
    for _ in 0..3 {
        stage.ask("jobs enqueue diagnostic.probe --queue email-queue").await.text(0);
    }
    let samples = wait_for(PATIENCE, "the leader counts what waits", async || {
        let reply = tasker.get("/metrics");
        assert!(reply.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{reply:?}");
        let samples = parsed(&reply.body);
        let waiting = json!(["queue_waiting_jobs", {"queue": "email-queue"}, 3.0]);
        if samples.contains(&waiting) { Ok(samples) } else { Err(reply.body) }
    })
    .await;
    for sample in &samples {
        let name = sample[0].as_str().unwrap();
        assert!(!["_total_total", "_seconds_seconds"].iter().any(|twice| name.contains(twice)), "{name}");
    }
    let find = |name: &str, label: &str, value: &str| {
        samples.iter().find(|sample| sample[0] == name && sample[1][label] == value).cloned()
    };
    assert_eq!(find("queue_waiting_jobs", "queue", "default").expect("every queue")[2], 0.0);
    assert!(
        find("queue_jobs_total", "outcome", "completed").expect("the queues' metrics")[2].as_f64()
            >= Some(1.0)
    );
    assert!(find("queue_job_duration_seconds_bucket", "le", "+Inf").is_some());
    assert!(find("target_info", "service_name", "voiceai-tasker").is_some());
    let unauthorized = find("http_server_request_duration_seconds_count", "http_response_status_code", "401");
    assert_eq!(unauthorized.expect("the listener's own")[2], 1.0);
}

#[tokio::test]
async fn a_listener_that_cannot_be_opened_ends_the_start() {
    let stage = Stage::new().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let start =
        |variables: &[(&str, &str)]| answer(stage.program().arg("run").envs(variables.iter().copied()));
    let refused =
        start(&[("MAIL_INTERNAL_HTTP_ADDR", address.as_str()), ("INTERNAL_HTTP_TOKEN", TOKEN)]).await;
    assert_eq!(refused.exit, 4, "{refused:?}");
    assert!(
        refused.stderr.contains("is taken by another process") && refused.stderr.contains("ss -ltnp"),
        "{refused:?}"
    );
    for address in [":8080", "0.0.0.0:8080"] {
        let refused = start(&[("MAIL_INTERNAL_HTTP_ADDR", address)]).await;
        assert_eq!(refused.exit, 4, "{refused:?}");
        assert!(
            refused.stderr.contains("INTERNAL_HTTP_TOKEN") && refused.stderr.contains("openssl rand -hex 32")
        );
    }
}

#[tokio::test]
async fn nothing_listens_unless_an_address_is_set() {
    let stage = Stage::new().await;
    let process = stage.program().arg("run").env("METRICS_HTTP", "true").start();
    process.wait_for_line(PATIENCE, "service ready").await;
    let log = process.stderr();
    assert!(!log.contains("listener started") && log.contains("no metrics are served"), "{log}");
}

#[tokio::test]
async fn the_listener_ends_before_what_its_requests_need() {
    let stage = Stage::new().await;
    let tasker = Listening::start(&stage, &[]).await;
    tasker.get(EMAIL).json(200);
    tasker.process.terminate();
    assert_eq!(tasker.process.wait_exit(PATIENCE).await, Exit::Code(0), "{}", tasker.process.stderr());
    let log = tasker.process.stderr();
    let at = |line: &str| log.find(line).unwrap_or_else(|| panic!("no line `{line}` in\n{log}"));
    assert_eq!(log.matches("listener started").count(), 1, "{log}");
    for later in
        ["scheduler stopped", "outbox relay stopped", "worker pool stopped", "history retention stopped"]
    {
        assert!(at("listener stopped") < at(later), "{later} came first:\n{log}");
    }
}

// The proxy needs a thread of its own: asking by curl blocks this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_store_is_told_at_once() {
    let stage = Stage::new().await;
    let mut redis = RedisServer::start(RedisOptions::default()).await;
    let url = url::Url::parse(&stage.database.url).unwrap();
    let database = TcpProxy::start(url.port().unwrap_or(5432)).await;
    let through = database.url(&stage.database.url);
    let variables =
        [("REDIS_URL", redis.url()), ("DATABASE_URL", through), ("QUEUE_EMAIL_ATTEMPTS", "1".to_owned())];
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let tasker = Listening::start(&stage, &variables).await;
    let enqueue = ["jobs", "enqueue", "diagnostic.probe", "--queue", "email-queue", "--id", "d"];
    let program = stage.program().env("REDIS_URL", redis.url()).args(enqueue);
    answer(program.args(["--payload", r#"{"fail_times":9}"#])).await.text(0);
    wait_for(PATIENCE, "it is dead", async || {
        let shown = tasker.get(EMAIL).json(200);
        if shown["data"]["stats"]["failed"] == 1 { Ok(()) } else { Err(shown.to_string()) }
    })
    .await;
    let quickly = |what: &dyn Fn() -> Reply| {
        let began = Instant::now();
        let reply = what();
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}: {reply:?}", began.elapsed());
        assert!(reply.head.contains("retry-after: "), "{reply:?}");
        reply
    };
    database.refuse();
    database.cut();
    quickly(&|| tasker.post(&format!("{EMAIL}/retry/d"), &[])).problem(503, "postgres_unreachable");
    redis.pause();
    quickly(&|| tasker.get(EMAIL)).problem(503, "redis_unreachable");
    redis.resume();
    redis.kill9().await;
    quickly(&|| tasker.get(EMAIL)).problem(503, "redis_unreachable");
    assert_eq!(tasker.process.exit(), None);
}
