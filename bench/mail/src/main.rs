//! The bench of mail: the whole durable path against a bare pooled lettre loop that sends the same bytes to the same sink.
//!
//! Needs a private, empty PostgreSQL (DATABASE_URL); writes BENCH_DIR/mail.json. BENCH_ROUNDS (3), BENCH_MAILS (3000) and
//! BENCH_FINISHED (1000000) make it shorter.

mod sink;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use futures_util::stream;
use lettre::transport::smtp::PoolConfig;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};
use serde_json::{Value, json};
use sink::Sink;
use tokio_util::sync::CancellationToken;
use voiceai_config::{Binary, Resolved};
use voiceai_mail::Wake;
use voiceai_mail::intake::{Command, Composer, Content, Intake, Source};
use voiceai_mail::message::Mailbox;
use voiceai_mail::sending::{Sending, SendingSettings};
use voiceai_mail::settings::MailSettings;
use voiceai_mail::template::Catalogue;
use voiceai_mail::transport::{SmtpSettings, SmtpTransport};
use voiceai_postgres::sqlx::postgres::PgPoolOptions;
use voiceai_postgres::sqlx::{self, PgPool, Row as _};
use voiceai_runtime::Vitals;

/// Connections of both sides.
const CONCURRENCY: usize = 20;
/// Mails accepted at a time.
const INTAKE: usize = 16;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run())
}

struct Bench {
    pool: PgPool,
    intake: Intake,
    sink: Sink,
    stopping: CancellationToken,
    serial: usize,
}

impl Bench {
    async fn new() -> anyhow::Result<Self> {
        let url = std::env::var("DATABASE_URL").context("DATABASE_URL names the private PostgreSQL to measure on")?;
        let pool = PgPoolOptions::new().max_connections(30).connect(&url).await?;
        voiceai_postgres::migrate(&pool, &[voiceai_postgres::COMMON, voiceai_postgres::MAIL]).await?;
        let sink = Sink::start()?;
        let port = sink.address.port().to_string();
        let concurrency = CONCURRENCY.to_string();
        let resolved = Resolved::from_pairs(
            Binary::Tasker,
            [
                ("SMTP_HOST", "127.0.0.1"),
                ("SMTP_PORT", port.as_str()),
                ("SMTP_TLS", "off"),
                ("MAIL_ATTEMPT_WORKER_CONCURRENCY", concurrency.as_str()),
                ("MAIL_SEND_RATE", "1000000/s"),
                ("SMTP_CONNECTION_MESSAGES_MAX", "100000"),
            ],
        );
        let read = |reader: &voiceai_config::Reader<'_>| {
            (MailSettings::read(reader), SmtpSettings::read(reader), voiceai_egress::Rule::read(reader))
        };
        let (mail, smtp, rule) = resolved.read(read).map_err(|report| anyhow::anyhow!("{report}"))?.settings;
        let smtp = smtp.context("SMTP_HOST is set")?;
        let catalogue = Arc::new(Catalogue::load(None, "en", "Bench")?);
        let from = Mailbox::parse("Bench <noreply@localhost>", "from")?;
        let wake = Wake::new();
        let composer = Arc::new(Composer::new(catalogue, from, None));
        let intake = Intake::new(pool.clone(), composer, &mail, false, wake.clone());
        let transport = Arc::new(SmtpTransport::new(&smtp, rule, Arc::new(|| None))?);
        let settings = SendingSettings {
            concurrency: mail.concurrency,
            rate: mail.rate,
            policy: mail.policy.clone(),
            poll_interval: Duration::from_secs(5),
            attempt_max: smtp.attempt_limit(),
            drain: Duration::from_secs(5),
            instance_id: "bench".to_owned(),
            host: "bench".to_owned(),
            election: "voiceai:tasker:leader".to_owned(),
        };
        let gate = Arc::new(|| -> futures_util::future::BoxFuture<'static, Result<(), String>> {
            Box::pin(std::future::ready(Ok(())))
        });
        let sending = Sending::new(pool.clone(), transport, settings, wake, gate);
        let stopping = CancellationToken::new();
        let stop = stopping.clone();
        tokio::spawn(async move { sending.run(stop, CancellationToken::new(), &Vitals::new()).await });
        Ok(Self { pool, intake, sink, stopping, serial: 0 })
    }

    fn command(&mut self) -> Command {
        self.serial += 1;
        let id = format!("bench-{}", self.serial);
        Command {
            delivery_id: id.clone(),
            source: Source::Notification,
            idempotency_key: format!("notification:{id}"),
            to: vec![format!("{id}@example.com")],
            cc: vec![],
            bcc: vec![],
            reply_to: vec![],
            content: Content::Rendered {
                subject: "Your weekly summary".to_owned(),
                text_body: "A line of text that a person might read.\n".repeat(20),
                html_body: "<p>A line of text that a person might read.</p>\n".repeat(20),
            },
            attachments: vec![],
            tenant: None,
            priority: None,
            request_id: None,
            trace_id: None,
            requested_at_ms: None,
        }
    }

    /// Mails a second, from the first accepted to the last one's committed end.
    async fn ours(&mut self, count: usize) -> anyhow::Result<f64> {
        let commands: Vec<_> = (0..count).map(|_| self.command()).collect();
        let (before, begun) = (self.open().await?, Instant::now());
        ensure!(before == 0, "{before} mails are open from before");
        let intake = &self.intake;
        let accepted = stream::iter(commands).map(|command| intake.accept(command)).buffer_unordered(INTAKE);
        let accepted: Vec<_> = accepted.collect().await;
        for accepted in accepted {
            accepted?;
        }
        while self.open().await? > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(count as f64 / begun.elapsed().as_secs_f64())
    }

    async fn open(&self) -> anyhow::Result<i64> {
        let row = sqlx::query("SELECT count(*) FROM mail.attempts WHERE status IN ('scheduled', 'in_progress')");
        Ok(row.fetch_one(&self.pool).await?.try_get(0)?)
    }

    /// The same bytes by the bare library: mails a second.
    async fn bare(&self, count: usize) -> anyhow::Result<f64> {
        let row = sqlx::query("SELECT message FROM mail.delivery_payloads ORDER BY created_at DESC LIMIT 1");
        let bytes: Vec<u8> = row.fetch_one(&self.pool).await?.try_get(0)?;
        let pool = PoolConfig::new().max_size(u32::try_from(CONCURRENCY)?).min_idle(u32::try_from(CONCURRENCY)?);
        let transport: AsyncSmtpTransport<Tokio1Executor> =
            AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous("127.0.0.1")
                .port(self.sink.address.port())
                .pool_config(pool)
                .build();
        let from: Address = "noreply@localhost".parse()?;
        let to: Address = "a@example.com".parse()?;
        let envelope = lettre::address::Envelope::new(Some(from), vec![to])?;
        let begun = Instant::now();
        let sent = stream::iter(0..count)
            .map(|_| transport.send_raw(&envelope, &bytes))
            .buffer_unordered(CONCURRENCY);
        let sent: Vec<_> = sent.collect().await;
        for sent in sent {
            sent?;
        }
        Ok(count as f64 / begun.elapsed().as_secs_f64())
    }

    /// Milliseconds from the call that accepts a mail to its first SMTP command, one at a time: 50 and 99 of 100.
    async fn idle(&mut self, count: usize) -> anyhow::Result<(f64, f64)> {
        let mut took = Vec::with_capacity(count);
        while self.sink.begun.try_recv().is_ok() {}
        for _ in 0..count {
            let command = self.command();
            let wanted = command.to[0].clone();
            let begun = Instant::now();
            self.intake.accept(command).await?;
            loop {
                let (to, at) = self.sink.begun.recv().await.context("the sink is gone")?;
                if to == wanted {
                    took.push(at.duration_since(begun).as_secs_f64() * 1000.0);
                    break;
                }
            }
            while self.open().await? > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        took.sort_by(f64::total_cmp);
        Ok((took[took.len() / 2], took[took.len() * 99 / 100]))
    }

    /// Deliveries that ended long ago, with recipients and attempts.
    async fn fill(&self, count: usize) -> anyhow::Result<()> {
        for statement in [
            "INSERT INTO mail.deliveries (delivery_id, source, idempotency_key, request_fingerprint, payload_mode, class, sender, \
                 subject, message_id, created_at, expires_at, finished_at, recipients, open_count, sent_count) \
             SELECT 'old-' || n, 'notification', 'old-' || n, decode(repeat('00', 32), 'hex'), 'rendered', 'transactional', \
                 's@localhost', 's', 'old-' || n || '@localhost', now() - interval '1 d', now(), now() - interval '1 d', 1, 0, 1 \
             FROM generate_series(1, $1) n",
            "INSERT INTO mail.delivery_recipients (delivery_id, position, kind, address, domain, status, attempt_count, ended_at) \
             SELECT 'old-' || n, 0, 'to', n || '@example.com', 'example.com', 'sent', 1, now() FROM generate_series(1, $1) n",
            "INSERT INTO mail.attempts (delivery_id, position, attempt_no, status, accepted_at, due_at, started_at, finished_at) \
             SELECT 'old-' || n, 0, 1, 'provider_accepted', now(), now(), now(), now() FROM generate_series(1, $1) n",
        ] {
            sqlx::query(statement).bind(i32::try_from(count)?).execute(&self.pool).await?;
        }
        for table in ["mail.deliveries", "mail.delivery_recipients", "mail.attempts"] {
            sqlx::query(sqlx::AssertSqlSafe(format!("VACUUM ANALYZE {table}"))).execute(&self.pool).await?;
        }
        Ok(())
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// `ratio` above 1: ours is better.
fn row(work: &str, unit: &str, ours: &[f64], peer: Option<(&str, f64, f64)>) -> Value {
    let low = ours.iter().copied().fold(f64::INFINITY, f64::min);
    let high = ours.iter().copied().fold(0.0, f64::max);
    let (name, value, ratio) = peer.map_or((None, None, None), |(n, v, r)| (Some(n), Some(v), Some(r)));
    let row = json!({
        "work": work, "unit": unit, "ours": median(ours), "peer": value, "peer_name": name, "ratio": ratio,
        "rounds": ours.len(), "min": low, "max": high,
    });
    println!("{work:<60} {:>12.1} {unit:<8} peer {value:?} ratio {ratio:?}", median(ours));
    row
}

fn machine() -> Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1)).map(|m| m.trim().to_owned());
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map(usize::from).unwrap_or(0);
    json!({ "cpu": model, "cores": cores, "load_average": load.split_whitespace().next() })
}

async fn run() -> anyhow::Result<()> {
    let (rounds, mails) = (number("BENCH_ROUNDS", 3), number("BENCH_MAILS", 3_000));
    let mut bench = Bench::new().await?;
    // A warm-up of both sides: connections, statements, pages.
    bench.ours(mails / 10 + 1).await?;
    bench.bare(mails / 10 + 1).await?;
    let (mut ours, mut bare, mut p50, mut p99) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        ours.push(bench.ours(mails).await?);
        bare.push(bench.bare(mails).await?);
        let (half, most) = bench.idle(200).await?;
        p50.push(half);
        p99.push(most);
    }
    let finished = number("BENCH_FINISHED", 1_000_000);
    bench.fill(finished).await?;
    let mut full = vec![];
    for _ in 0..rounds {
        full.push(bench.ours(mails).await?);
    }
    bench.stopping.cancel();
    let peer = median(&bare);
    let rows = vec![
        row("mail accepted, sent and its end committed", "mails/s", &ours, Some(("lettre, bare pooled loop", peer, median(&ours) / peer))),
        row("idle: from intake to the first SMTP command, p50", "ms", &p50, None),
        row("idle: from intake to the first SMTP command, p99", "ms", &p99, None),
        row(
            &format!("the same with {finished} finished deliveries in the tables"),
            "mails/s",
            &full,
            Some(("ours, empty tables", median(&ours), median(&full) / median(&ours))),
        ),
    ];
    let folder = std::env::var("BENCH_DIR").unwrap_or_else(|_| "target/bench".to_owned());
    std::fs::create_dir_all(&folder)?;
    let taken = bench.sink.taken.load(Ordering::Relaxed);
    ensure!(taken > 0, "the sink took nothing");
    let document = json!({ "machine": machine(), "rows": rows });
    std::fs::write(format!("{folder}/mail.json"), serde_json::to_string_pretty(&document)?)?;
    Ok(())
}
