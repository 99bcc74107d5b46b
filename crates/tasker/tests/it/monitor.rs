//! Watching through the binary: states, alerts that become mail and webhooks, figures, and loops that panic.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use voiceai_testkit::{Exit, Process, Program, SmtpSink, wait_for, wait_until};

use crate::stage::{PATIENCE, Stage, answer};

/// A service that answers with the status it is told, and a webhook endpoint: bodies that were posted are kept.
#[derive(Clone)]
struct Service {
    url: String,
    status: Arc<Mutex<u16>>,
    posted: Arc<Mutex<Vec<Value>>>,
}

impl Service {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let this = Self { url, status: Arc::new(Mutex::new(200)), posted: Arc::default() };
        let own = this.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(own.clone().serve(stream));
            }
        });
        this
    }

    fn now(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }

    async fn serve(self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let (mut first, mut line, mut length) = (String::new(), String::new(), 0);
            if stream.read_line(&mut first).await? == 0 {
                return Ok(());
            }
            while stream.read_line(&mut line).await? > 2 {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap_or(0);
                }
                line.clear();
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            let mut status = *self.status.lock().unwrap();
            if first.starts_with("POST") {
                status = 200;
                self.posted.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
            }
            let body = r#"{"counters":{"messages_received":41}}"#;
            let text = format!("HTTP/1.1 {status} Told\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.get_mut().write_all(text.as_bytes()).await?;
        }
    }
}

fn program(stage: &Stage, service: &Service) -> Program {
    stage.program().envs([
        ("INGEST_HEALTH_URL", service.url.as_str()),
        ("HEALTH_CHECK_INTERVAL", "5"),
        ("HEALTH_ALERT_AFTER", "1"),
        ("HEALTH_RECOVER_AFTER", "1"),
        ("METRICS_COLLECTION_INTERVAL", "1"),
        ("WEBHOOK_ALLOW_NETWORKS", "127.0.0.1"),
        ("WEBHOOK_ALLOW_HTTP", "true"),
    ])
}

async fn run(program: Program) -> Process {
    let process = program.arg("run").start();
    process.wait_for_line(PATIENCE, "service ready").await;
    process
}

#[tokio::test]
async fn a_service_that_goes_and_comes_back_is_mailed_posted_and_shown() {
    let (stage, service, sink) = (Stage::new().await, Service::start().await, SmtpSink::start().await);
    let ask = async |line: &str| answer(program(&stage, &service).args(line.split_whitespace())).await;
    // Nobody has asked it yet.
    let unknown = ask("health --json").await.json(7);
    assert_eq!((&unknown["services"][0]["status"], &unknown["next"]), (&"unknown".into(), &Value::Null));
    let endpoint =
        ["webhook", "endpoints", "add", "--tenant", "__system__", "--events", "service.*", "--yes", "--url"];
    answer(program(&stage, &service).args(endpoint).arg(&service.url)).await.text(0);
    let tasker = run(program(&stage, &service).envs([
        ("SMTP_HOST", sink.address().ip().to_string()),
        ("SMTP_PORT", sink.port().to_string()),
        ("SMTP_TLS", "off".to_owned()),
        ("ALERT_RECIPIENTS", "ops@example.com".to_owned()),
    ]))
    .await;
    let healthy = wait_for(PATIENCE, "it is healthy", async || {
        let answer = ask("health --json").await;
        if answer.exit == 0 { Ok(answer.json(0)) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let line = &healthy["services"][0];
    assert_eq!((&line["service"], &line["http_status"]), (&"ingest".into(), &200.into()));
    assert_eq!(line["counters"]["messages_received"], 41.0);
    assert!(line["latency_ms"].as_f64().is_some_and(|latency| latency > 0.0), "{line}");

    service.now(503);
    tasker.wait_for_line(PATIENCE, "watched service in trouble").await;
    let ill = ask("health").await;
    assert_eq!(ill.exit, 7);
    assert!(ill.stdout.contains("degraded") && ill.stdout.contains("answers 503"), "{}", ill.stdout);
    let doctor = ask("doctor").await;
    assert!(doctor.stdout.contains("answers 503") && doctor.exit == 7, "{}", doctor.stdout);
    service.now(200);
    tasker.wait_for_line(PATIENCE, "watched service recovered").await;
    wait_until(PATIENCE, "both are posted", async || service.posted.lock().unwrap().len() == 2).await;
    wait_until(PATIENCE, "both are mailed", async || sink.count() == 2).await;
    let mut types: Vec<_> = service
        .posted
        .lock()
        .unwrap()
        .iter()
        .map(|event| event["type"].as_str().unwrap().to_owned())
        .collect();
    types.sort();
    assert_eq!(types, ["service.down", "service.recovered"]);
    let data = service.posted.lock().unwrap()[0]["data"].clone();
    assert_eq!(data["service"], "ingest", "{data}");
    let mut subjects: Vec<_> = sink.received().iter().filter_map(|mail| mail.header("Subject")).collect();
    subjects.sort();
    assert!(subjects[0].ends_with("] Down: ingest"), "{subjects:?}");
    assert!(subjects[1].ends_with("] Recovered: ingest"), "{subjects:?}");
    let alerts =
        stage.value("SELECT count(*)::text FROM ops.system_alerts WHERE closed_at IS NOT NULL").await;
    assert_eq!(alerts, 1);

    // Every source of the running service has figures.
    wait_for(PATIENCE, "figures of every source", async || {
        let found = stage
            .value("SELECT json_agg(DISTINCT service ORDER BY service)::text FROM ops.system_metrics")
            .await;
        let has = |service: &str| found.as_array().is_some_and(|all| all.contains(&service.into()));
        let all = ["ingest", "mail", "platform", "postgres", "queues", "redis"].into_iter().all(has);
        if all { Ok(()) } else { Err(found) }
    })
    .await;
    tasker.terminate();
    assert_eq!(tasker.wait_exit(PATIENCE).await, Exit::Code(0), "{}", tasker.stderr());
}

#[tokio::test]
async fn a_loop_that_panics_is_started_again_and_the_others_go_on() {
    let (stage, service) = (Stage::new().await, Service::start().await);
    let tasker =
        run(program(&stage, &service).env("VOICEAI_FAILPOINT", "worker.health-monitor=panic@2")).await;
    tasker.wait_for_line(PATIENCE, "worker panicked; it is started again").await;
    // While it is down, jobs run and schedules are looked after.
    stage
        .ask_all(&["jobs", "enqueue", "diagnostic.probe", "--id", "beside", "--payload", "{}"])
        .await
        .text(0);
    stage.wait_for_state("beside", "completed").await;
    // A quick machine has run the job before the pause after the first panic is over.
    tasker.wait_for_line(PATIENCE, "worker started again after a panic").await;
    wait_for(PATIENCE, "the monitor works after its second panic", async || {
        let answer = answer(program(&stage, &service).args(["health", "--json"])).await;
        if answer.exit == 0 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let log = tasker.stderr();
    let panics: Vec<Value> = log
        .lines()
        .filter(|line| line.contains("worker panicked; it is started again"))
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    // Lines that repeat within ten seconds are left out and counted: one of them is enough.
    assert_eq!(panics[0]["worker"], "health monitor", "{panics:?}");
    assert_eq!(panics[0]["panic"], "a failpoint", "{panics:?}");
    assert_eq!(log.matches("scheduler started").count(), 1, "the others were not touched");
    assert_eq!(log.matches("metrics collector started").count(), 1);
    assert_eq!(tasker.exit(), None);
    let health = answer(program(&stage, &service).arg("healthcheck")).await;
    assert_eq!(health.exit, 0, "{health:?}");
}

#[tokio::test]
async fn a_release_from_leadership_ends_the_gauges_that_are_the_leaders() {
    let (stage, service) = (Stage::new().await, Service::start().await);
    let token = "0123456789abcdef0123456789abcdef";
    let port = voiceai_testkit::Port::reserve();
    let address = format!("127.0.0.1:{}", port.number());
    let tasker = run(program(&stage, &service).envs([
        ("MAIL_INTERNAL_HTTP_ADDR", address.as_str()),
        ("INTERNAL_HTTP_TOKEN", token),
        ("METRICS_HTTP", "true"),
    ]))
    .await;
    let scrape = async || -> String {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let request = format!(
            "GET /metrics HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let leaders = ["queue_depth{", "voiceai_health_services{"];
    wait_for(PATIENCE, "the leader reports", async || {
        let text = scrape().await;
        if leaders.iter().all(|name| text.contains(name)) { Ok(()) } else { Err(text) }
    })
    .await;
    // Another takes the lease, as after a pause.
    let record = r#"{"instanceId":"other","host":"h","pid":7,"term":99,"electedAt":"2026-10-25T00:59:59Z"}"#;
    stage.redis.cli(&["SET", "voiceai:tasker:leader", record, "PX", "60000"]).await;
    tasker.wait_for_line(PATIENCE, "leader lost").await;
    wait_for(Duration::from_secs(10), "it reports no more what is the leader's", async || {
        let text = scrape().await;
        if leaders.iter().any(|name| text.contains(name)) { Err(text) } else { Ok(()) }
    })
    .await;
    assert!(scrape().await.contains("voiceai_health_checks_total{"), "its own counters stay");
}
