//! No mail that was accepted is lost, and none is doubled but what had passed through `unknown`, while taskers are killed and Redis and
//! PostgreSQL are restarted.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use voiceai_postgres::sqlx::postgres::PgPoolOptions;
use voiceai_postgres::sqlx::{self, PgPool, Row};
use voiceai_redis::{Redis, RedisSettings};
use voiceai_testkit::{
    Port, PostgresServer, Process, Program, RedisOptions, RedisServer, SmtpSink, wait_for,
};

use crate::http::TOKEN;
use crate::stage::{PATIENCE, answer};

/// Two taskers on stores of their own, and a mail server that takes everything.
struct House {
    redis: RedisServer,
    postgres: PostgresServer,
    sink: SmtpSink,
    taskers: Vec<Process>,
    /// Where each tasker listens.
    ports: [Port; 2],
    folder: TempDir,
}

impl House {
    async fn start() -> Self {
        let redis = RedisServer::start(RedisOptions { appendonly: true, ..RedisOptions::default() }).await;
        let (postgres, sink) = (PostgresServer::start().await, SmtpSink::start().await);
        let (folder, ports) = (tempfile::tempdir().unwrap(), [Port::reserve(), Port::reserve()]);
        let mut house = Self { redis, postgres, sink, taskers: Vec::new(), ports, folder };
        for n in 0..2 {
            let tasker = house.program(n).arg("run").start();
            tasker.wait_for_line(PATIENCE, "service ready").await;
            house.taskers.push(tasker);
        }
        house
    }

    fn program(&self, n: usize) -> Program {
        Program::new(env!("CARGO_BIN_EXE_voiceai-tasker")).envs([
            ("REDIS_URL", self.redis.url()),
            ("DATABASE_URL", self.postgres.url()),
            ("RUNTIME_DIR", self.folder.path().to_str().unwrap().to_owned()),
            ("INSTANCE_ID", format!("tasker-{n}")),
            ("VOICEAI_OPERATOR", "tester".to_owned()),
            ("LEADER_HEARTBEAT_INTERVAL_MS", "200".to_owned()),
            ("LEADER_LOCK_TTL_MS", "1000".to_owned()),
            ("WORKER_POLL_INTERVAL_MS", "500".to_owned()),
            ("SMTP_HOST", self.sink.address().ip().to_string()),
            ("SMTP_PORT", self.sink.port().to_string()),
            ("SMTP_TLS", "off".to_owned()),
            ("MAIL_ATTEMPT_WORKER_CONCURRENCY", "20".to_owned()),
            ("MAIL_SEND_RATE", "100000/s".to_owned()),
            ("MAIL_RETRY_LADDER", "500ms,500ms,500ms,500ms,500ms,500ms,500ms,500ms".to_owned()),
            ("MAIL_PROVIDER_PAUSE", "200ms".to_owned()),
            ("MAIL_LOGIN_CODE_LIFETIME", "1h".to_owned()),
            ("TASKER_HTTP_ADDR", format!(":{}", self.ports[n].number())),
            ("INTERNAL_HTTP_TOKEN", TOKEN.to_owned()),
            ("QUEUE_EMAIL_CONCURRENCY", "20".to_owned()),
            ("QUEUE_EMAIL_ATTEMPTS", "50".to_owned()),
            ("QUEUE_EMAIL_BACKOFF", "200ms".to_owned()),
        ])
    }

    fn kill(&mut self, n: usize) {
        self.taskers[n].kill9();
        self.taskers[n] = self.program(n).arg("run").start();
    }
}

/// Gives commands to the stream; one whose answer was lost is given again.
async fn by_stream(url: String, count: usize) {
    let redis = Redis::connect(&RedisSettings::from_url(&url).unwrap()).await.unwrap();
    for n in 0..count {
        while redis.command::<String>("XADD", entry(n)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn entry(n: usize) -> Vec<String> {
    let payload =
        json!({ "to": [format!("s{n}@example.com")], "subject": format!("mail {n}"), "text_body": "Hello." });
    let (id, key, payload) = (format!("s-{n}"), format!("notification:s-{n}"), payload.to_string());
    [
        "mail:delivery_commands",
        "*",
        "delivery_id",
        &id,
        "source",
        "notification",
        "payload_mode",
        "rendered",
        "idempotency_key",
        &key,
        "requested_at_ms",
        "1790000000000",
        "payload_json",
        &payload,
    ]
    .map(str::to_owned)
    .into()
}

/// Gives jobs to the email queue, a file at a time; a file whose command failed is given again.
async fn by_queue(program: Program, folder: std::path::PathBuf, count: usize) {
    const FILE: usize = 100;
    for from in (0..count).step_by(FILE) {
        let lines: String = (from..count.min(from + FILE))
            .map(|n| {
                let payload =
                    json!({ "to": [format!("q{n}@example.com")], "subject": "job", "text_body": "Hello." });
                format!("{}\n", json!({ "kind": "send-email", "id": format!("q-{n}"), "payload": payload }))
            })
            .collect();
        let path = folder.join(format!("jobs-{from}.ndjson"));
        std::fs::write(&path, lines).unwrap();
        loop {
            let done =
                answer(program.clone().args(["jobs", "enqueue", "--file", path.to_str().unwrap()])).await;
            if done.exit == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Asks for login codes at both taskers in turn; a request whose answer was lost is made again under its key.
async fn by_rest(ports: [u16; 2], count: usize) {
    const AT_A_TIME: usize = 4;
    let lane = |lane: usize| async move {
        for n in (lane..count).step_by(AT_A_TIME) {
            let mut tried = n;
            while !accepted(ports[tried % 2], n).await {
                tried += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    tokio::join!(lane(0), lane(1), lane(2), lane(3));
}

async fn accepted(port: u16, n: usize) -> bool {
    let body = json!({ "email": format!("r{n}@example.com"), "code": format!("{n:06}"), "locale": "de" })
        .to_string();
    let request = format!(
        "POST /api/v1/internal/login-code-deliveries HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\
         Authorization: Bearer {TOKEN}\r\nIdempotency-Key: challenge-{n}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await?;
        Ok::<_, std::io::Error>(reply)
    };
    let Ok(Ok(reply)) = tokio::time::timeout(Duration::from_secs(10), asked).await else { return false };
    if reply.starts_with("HTTP/1.1 200") {
        assert!(reply.ends_with(r#"{"outcome":"sent"}"#), "{reply}");
        return true;
    }
    // Nothing else than that it cannot be stored now; a conflict would be a mail of another content.
    assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 503"), "{reply}");
    false
}

async fn pool(url: &str) -> Result<PgPool, sqlx::Error> {
    PgPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(3)).connect(url).await
}

/// Kills the taskers in turn and restarts the stores, never at the same point of the work: irregular waits, the same in every run.
async fn strike(house: &mut House, faults: usize) {
    for fault in 0..faults {
        tokio::time::sleep(Duration::from_millis(300 + (fault as u64 * 7_919) % 1_300)).await;
        match fault % 4 {
            0 | 2 => house.kill(fault / 2 % 2),
            1 => {
                house.redis.kill9().await;
                house.redis.restart(false).await;
            }
            _ => {
                house.postgres.stop().await;
                house.postgres.restart(false).await;
            }
        }
    }
}

async fn rounds(count: usize, faults: usize) {
    let mut house = House::start().await;
    let (streamed, queued) = (count / 3, count / 3);
    let asked = count - streamed - queued;
    let (url, folder) = (house.redis.url(), house.folder.path().to_owned());
    let (program, ports) = (house.program(0), [house.ports[0].number(), house.ports[1].number()]);
    tokio::join!(
        by_stream(url, streamed),
        by_queue(program, folder, queued),
        by_rest(ports, asked),
        strike(&mut house, faults),
    );
    let url = house.postgres.url();
    wait_for(Duration::from_secs(120 + count as u64 / 100), "every delivery has ended", async || {
        let pool = pool(&url).await.map_err(|error| error.to_string())?;
        let row = sqlx::query(
            "SELECT count(*), count(*) FILTER (WHERE status = 'sent'), \
                 (SELECT string_agg(DISTINCT status, ',') FROM mail.deliveries WHERE status <> 'sent'), \
                 (SELECT count(*) FROM mail.malformed_commands) FROM mail.deliveries",
        );
        let row = row.fetch_one(&pool).await.map_err(|error| error.to_string())?;
        let (all, sent): (i64, i64) = (row.get(0), row.get(1));
        if (all, sent) == (count as i64, count as i64) {
            return Ok(());
        }
        let (others, malformed): (Option<String>, i64) = (row.get(2), row.get(3));
        Err(format!("{sent} of {all} sent ({count} given), others {others:?}, {malformed} malformed"))
    })
    .await;
    let pool = pool(&url).await.unwrap();
    let rows = sqlx::query("SELECT source, count(*) FROM mail.deliveries GROUP BY source ORDER BY source");
    let found: Vec<(String, i64)> =
        rows.fetch_all(&pool).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    let given = [("authsession", asked), ("email_queue", queued), ("notification", streamed)];
    assert_eq!(found, given.map(|(source, count)| (source.to_owned(), count as i64)), "the counts agree");
    check_sink(&house, count).await;
    assert!(house.taskers.iter().all(|tasker| tasker.exit().is_none()), "losing a store ends no process");
}

/// The sink holds every Message-ID; more than once only what had passed through `unknown`.
async fn check_sink(house: &House, count: usize) {
    let mut copies: HashMap<String, u64> = HashMap::new();
    for mail in house.sink.received() {
        let id = mail.header("Message-ID").expect("a Message-ID");
        *copies.entry(id.trim_matches(['<', '>', ' ']).to_owned()).or_default() += 1;
    }
    let pool = pool(&house.postgres.url()).await.unwrap();
    let rows = sqlx::query(
        "SELECT d.message_id, count(*) FILTER (WHERE a.status = 'unknown'), count(*) FILTER (WHERE a.status = 'provider_accepted') \
         FROM mail.deliveries d JOIN mail.attempts a USING (delivery_id) GROUP BY d.message_id",
    );
    let rows = rows.fetch_all(&pool).await.unwrap();
    assert_eq!(rows.len(), count);
    let mut doubled = 0;
    for row in &rows {
        let (id, unknown, accepted): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let copies = copies.remove(&id).unwrap_or(0);
        assert!(copies >= 1, "{id} was lost");
        assert_eq!(accepted, 1, "{id} was accepted once by our books");
        assert!(copies <= 1 + unknown.unsigned_abs(), "{id}: {copies} copies, {unknown} unknown");
        doubled += copies - 1;
    }
    assert!(copies.is_empty(), "the sink holds mail that nobody asked for: {copies:?}");
    println!("{count} mails: 0 lost, {doubled} doubled after unknown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_mail_is_lost_while_taskers_redis_and_postgres_die() {
    Box::pin(rounds(2_000, 6)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the long form: minutes"]
async fn no_mail_of_twenty_thousand_is_lost_in_forty_faults() {
    Box::pin(rounds(20_000, 40)).await;
}
