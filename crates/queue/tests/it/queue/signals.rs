//! What a running queue tells: traces, metrics, and the lines that operators grep for; and the middleware that may tell more.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use opentelemetry::trace::{SpanId, TraceContextExt, TraceId, TracerProvider as _};
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ScopeMetrics};
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::{Layer as _, SubscriberExt};
use voiceai_queue::outbox::Waiting;
use voiceai_queue::{
    Attempt, Inline, InlineRunner, JobError, Middleware, Next, OutboxGauges, QueueGauges, QueueSettings,
    Registry, Running as Handling, State, Worker,
};
use voiceai_testkit::{RedisOptions, RedisServer, TcpProxy};

use super::{Running, Setup, Work, settings, until};

/// The process's own collectors: a test looks at what bears its queue's name.
struct Collected {
    spans: InMemorySpanExporter,
    metrics: InMemoryMetricExporter,
    meters: SdkMeterProvider,
    lines: Lines,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn collected() -> &'static Collected {
    static COLLECTED: OnceLock<Collected> = OnceLock::new();
    COLLECTED.get_or_init(|| {
        let metrics = InMemoryMetricExporter::default();
        let meters =
            SdkMeterProvider::builder().with_reader(PeriodicReader::builder(metrics.clone()).build()).build();
        opentelemetry::global::set_meter_provider(meters.clone());
        let spans = InMemorySpanExporter::default();
        let traces = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::registry()
            .with(tracing_opentelemetry::layer().with_tracer(traces.tracer("test")))
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .with_writer(move || writer.clone())
                    .with_filter(tracing_subscriber::filter::LevelFilter::INFO),
            );
        tracing::subscriber::set_global_default(subscriber).unwrap();
        Collected { spans, metrics, meters, lines }
    })
}

impl Collected {
    /// Lines that contain all of `words`.
    fn lines(&self, words: &[&str]) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap();
        let has = |line: &&str| words.iter().all(|word| line.contains(word));
        text.lines().filter(has).map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The newest value (of a histogram: its count) of every series of `name` with these labels, summed.
    fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.meters.force_flush().unwrap();
        let all = self.metrics.get_finished_metrics().unwrap();
        let newest = all.last()?;
        let metric = newest.scope_metrics().flat_map(ScopeMetrics::metrics).find(|m| m.name() == name)?;
        let found: Vec<f64> = match metric.data() {
            AggregatedMetrics::F64(data) => points(data, labels, |v| v),
            AggregatedMetrics::U64(data) => points(data, labels, |v| f64::from(u32::try_from(v).unwrap())),
            AggregatedMetrics::I64(data) => points(data, labels, |v| f64::from(i32::try_from(v).unwrap())),
        };
        (!found.is_empty()).then(|| found.iter().sum())
    }
}

fn points<T: Copy>(data: &MetricData<T>, labels: &[(&str, &str)], value: impl Fn(T) -> f64) -> Vec<f64> {
    let matches = |have: &BTreeMap<String, String>| {
        labels.iter().all(|(name, wanted)| have.get(*name).is_some_and(|v| v == wanted))
    };
    let read = |attributes: &mut dyn Iterator<Item = &opentelemetry::KeyValue>| -> BTreeMap<String, String> {
        attributes.map(|kv| (kv.key.to_string(), kv.value.to_string())).collect()
    };
    match data {
        MetricData::Gauge(g) => g
            .data_points()
            .filter(|p| matches(&read(&mut p.attributes())))
            .map(|p| value(p.value()))
            .collect(),
        MetricData::Sum(s) => s
            .data_points()
            .filter(|p| matches(&read(&mut p.attributes())))
            .map(|p| value(p.value()))
            .collect(),
        MetricData::Histogram(h) => h
            .data_points()
            .filter(|p| matches(&read(&mut p.attributes())))
            .map(|p| f64::from(u32::try_from(p.count()).unwrap()))
            .collect(),
        MetricData::ExponentialHistogram(_) => Vec::new(),
    }
}

async fn setup(queue: &str) -> (&'static Collected, Setup) {
    let collected = collected();
    let mut s = Setup::new().await;
    s.queue = queue.into();
    (collected, s)
}

#[tokio::test]
async fn a_jobs_span_continues_the_trace_of_whoever_enqueued_it() {
    let (collected, s) = setup("traced").await;
    let span = tracing::info_span!("request");
    let (trace, parent) = {
        let context = span.context();
        let context = context.span().span_context().clone();
        (context.trace_id(), context.span_id())
    };
    assert_ne!(trace, TraceId::INVALID);
    // By the batch of plain ones, by the exact path, and by another language's call.
    let plain = Work::named("plain").job().queue("traced");
    let exact = Work::named("exact").job().queue("traced").delay(Duration::from_millis(1));
    async {
        s.client.enqueue(plain).await.unwrap();
        s.client.enqueue(exact).await.unwrap();
    }
    .instrument(span)
    .await;
    let foreign = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let args = ["foreign", "work", "{}", &format!(r#"{{"traceparent":"{foreign}"}}"#)];
    let args = args.iter().map(|a| voiceai_redis::Value::from(*a)).collect();
    let _: voiceai_redis::Value =
        s.client.redis().fcall("voiceai_v1_submit", vec![s.key("").into()], args).await.unwrap();
    let worker = s.worker(2);
    until("all ran", async || s.stats().await.completed == 3).await;
    worker.stop().await;

    let spans = collected.spans.get_finished_spans().unwrap();
    let runs: Vec<_> = spans.iter().filter(|span| span.name == "process traced").collect();
    assert_eq!(runs.len(), 3, "{spans:?}");
    let of = |trace: TraceId| runs.iter().filter(|s| s.span_context.trace_id() == trace).collect::<Vec<_>>();
    let ours = of(trace);
    assert_eq!(ours.len(), 2);
    assert!(ours.iter().all(|s| s.parent_span_id == parent && s.parent_span_is_remote));
    let theirs = of(TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").unwrap());
    assert_eq!(theirs.len(), 1);
    assert_eq!(theirs[0].parent_span_id, SpanId::from_hex("b7ad6b7169203331").unwrap());
    let kind = theirs[0].attributes.iter().find(|kv| kv.key.as_str() == "voiceai.job.kind").unwrap();
    assert_eq!(kind.value.as_str(), "work");
}

#[tokio::test]
async fn every_number_that_is_promised_is_measured() {
    let (collected, s) = setup("measured").await;
    let job = |work: Work| work.job().queue("measured");
    let labels = [("queue", "measured"), ("kind", "work")];
    let outcome = |outcome: &'static str| {
        let labels = [labels[0], labels[1], ("outcome", outcome)];
        collected.metric("queue.jobs", &labels).unwrap_or(0.0)
    };
    let of_queue = |name: &str| collected.metric(name, &labels[..1]).unwrap_or(0.0);

    s.client.pause(&s.queue).await.unwrap();
    for i in 0..6 {
        s.client.enqueue(job(Work { fail_times: u32::from(i == 0), ..Work::named("x") })).await.unwrap();
    }
    s.client.enqueue(job(Work { discard: true, ..Work::named("given up") })).await.unwrap();
    assert!((of_queue("queue.jobs.enqueued") - 7.0).abs() < f64::EPSILON);
    let worker = s.worker(4);
    until("it joined", async || s.stats().await.capacity == 4).await;

    // Of the whole queue: what a leader reports.
    let stats = s.stats().await;
    assert_eq!(stats.saturation, Some(7.0 / 4.0), "(ready + running) / capacity");
    let gauges = QueueGauges::new();
    gauges.record(&stats);
    let waiting = [labels[0], ("state", "waiting")];
    assert_eq!(collected.metric("queue.depth", &waiting), Some(7.0));
    assert_eq!(collected.metric("queue.saturation", &labels[..1]), Some(1.75));
    assert_eq!(collected.metric("queue.workers", &labels[..1]), Some(1.0));
    assert_eq!(collected.metric("queue.capacity", &labels[..1]), Some(4.0));
    assert!(collected.metric("queue.oldest_age", &labels[..1]).is_some_and(|age| age > 0.0 && age < 30.0));
    // Another leads: nothing is reported any more, and certainly not the last values.
    gauges.clone().clear();
    for name in ["queue.depth", "queue.oldest_age", "queue.saturation", "queue.workers", "queue.capacity"] {
        assert_eq!(collected.metric(name, &labels[..1]), None, "{name}");
    }
    gauges.record(&stats);
    assert_eq!(collected.metric("queue.capacity", &labels[..1]), Some(4.0), "elected again");
    gauges.keep(&["another".to_owned()]);
    assert_eq!(collected.metric("queue.capacity", &labels[..1]), None, "a queue that is gone");

    s.client.resume(&s.queue).await.unwrap();
    until("all ended", async || {
        let stats = s.stats().await;
        (stats.completed, stats.dead) == (6, 1)
    })
    .await;
    until("all are counted", async || {
        (outcome("completed"), outcome("failed"), outcome("discarded_by_handler")) == (6.0, 1.0, 1.0)
    })
    .await;
    // A wait is of a first attempt, a run of each.
    assert!((of_queue("queue.job.wait") - 7.0).abs() < f64::EPSILON);
    assert_eq!(collected.metric("queue.job.duration", &labels), Some(8.0));

    // A lease that is gone, and an end that is refused for it.
    let stubborn =
        s.client.enqueue(job(Work { hang: true, ..Work::named("hangs") })).await.unwrap().id.to_string();
    s.wait_state(&stubborn, State::Active).await;
    s.command("DEL", &[&s.key("workers")]).await;
    until("the lease is missed", async || of_queue("queue.leases.lost") >= 1.0).await;
    let sleeper = Work { sleep_ms: 1_500, ..Work::named("sleeps") };
    let sleeper = s.client.enqueue(job(sleeper)).await.unwrap().id.to_string();
    s.wait_state(&sleeper, State::Active).await;
    s.command("HSET", &[&s.key("active"), &sleeper, "another.1"]).await;
    until("a refusal is counted", async || of_queue("queue.acks.refused") >= 1.0).await;
    until("its return is counted", async || of_queue("queue.jobs.stalled") >= 1.0).await;
    worker.drop_dead();
}

#[tokio::test]
async fn an_outbox_that_was_emptied_is_reported_as_empty() {
    let collected = collected();
    let mut gauges = OutboxGauges::new();
    let row = |queue: &str| Waiting {
        queue: queue.into(),
        waiting: 3,
        refused: 1,
        oldest_seconds: 90,
        last_error: None,
    };
    let depth = |state| collected.metric("outbox.depth", &[("queue", "boxed"), ("state", state)]);
    let age = || collected.metric("outbox.oldest_age", &[("queue", "boxed")]);
    gauges.record(&["idle".into()], &[row("boxed")]);
    assert_eq!((depth("waiting"), depth("refused"), age()), (Some(3.0), Some(1.0), Some(90.0)));
    assert_eq!(collected.metric("outbox.depth", &[("queue", "idle"), ("state", "waiting")]), Some(0.0));
    gauges.record(&["idle".into()], &[]);
    assert_eq!((depth("waiting"), depth("refused"), age()), (Some(0.0), Some(0.0), Some(0.0)));
    // A collection of nothing at all is not exported, and the one before it would be looked at.
    opentelemetry::global::meter("voiceai").u64_counter("something").build().add(1, &[]);
    gauges.clear();
    assert_eq!((depth("waiting"), age()), (None, None));
}

#[tokio::test]
async fn the_lines_of_the_two_named_queues_are_there_to_be_grepped() {
    let collected = collected();
    let server = RedisServer::start(RedisOptions::default()).await;
    let straight = Setup::on(&server.url()).await;
    let proxy = TcpProxy::start(server.port()).await;
    for (queue, name, stalled) in [
        ("email-queue", "Email", "Job stalled"),
        ("orchestration-queue", "Orchestration", "Orchestration job stalled"),
    ] {
        let mut s = Setup::on(&proxy.url(&server.url())).await;
        s.queue = queue.into();
        let job = |work: Work| work.job().queue(queue).priority(7);
        let worker = s.worker(3);
        let lower = name.to_lowercase();
        until("it is initialized", async || {
            !collected.lines(&[&format!("{name} queue initialized"), queue]).is_empty()
        })
        .await;
        s.client.enqueue(job(Work { fail_times: 1, ..Work::named("x") })).await.unwrap();
        until("it ran", async || !collected.lines(&[&format!("{name} job completed"), queue]).is_empty())
            .await;
        let begun = collected.lines(&[&format!("Processing {lower} job"), queue]);
        assert_eq!(begun.len(), 2, "{begun:?}");
        let fields = &begun[1]["fields"];
        assert_eq!((&fields["attempt"], &fields["priority"]), (&2.into(), &7.into()), "{fields}");
        assert!(fields["jobId"].is_string() && fields["queueId"] == queue, "{fields}");
        let failed = collected.lines(&[&format!("{name} job failed"), queue]);
        assert_eq!((failed.len(), &failed[0]["level"]), (1, &"WARN".into()));
        s.client.enqueue(job(Work { discard: true, ..Work::named("x") })).await.unwrap();
        until("it is given up", async || {
            let failed = collected.lines(&[&format!("{name} job failed"), queue, "discarded_by_handler"]);
            failed.len() == 1 && failed[0]["level"] == "ERROR"
        })
        .await;
        // Its worker dies.
        let other = Setup { queue: queue.into(), ..Setup::on(&server.url()).await };
        s.client.pause(queue).await.unwrap();
        let lost = straight.client.enqueue(job(Work::named("lost"))).await.unwrap().id.to_string();
        s.command("HSET", &[&s.key("active"), &lost, "nobody.1\n7||"]).await;
        s.command("LREM", &[&s.key("lane:7||"), "1", &lost]).await;
        until("it stalled", async || !collected.lines(&[stalled, queue]).is_empty()).await;
        s.client.resume(queue).await.unwrap();
        drop(other);
        proxy.cut();
        proxy.refuse();
        until("trouble is told", async || {
            !collected.lines(&[&format!("{name} worker error"), queue]).is_empty()
        })
        .await;
        proxy.resume();
        worker.stop().await;
        assert!(!collected.lines(&["worker pool stopped", queue]).is_empty());
    }
}

/// Notes what passes, and turns some away.
struct Guard(&'static str, Arc<Mutex<Vec<String>>>);

impl Middleware for Guard {
    fn around<'a>(&'a self, attempt: &'a Attempt, next: Next<'a>) -> Handling<'a> {
        Box::pin(async move {
            let note = |what: String| self.1.lock().unwrap().push(what);
            note(format!("{} before {}", self.0, attempt.number()));
            if attempt.tenant() == self.0 {
                return Err(JobError::discard("this tenant is closed"));
            }
            let ended = next.run().await;
            note(format!("{} after {}", self.0, if ended.is_ok() { "done" } else { "failed" }));
            ended
        })
    }
}

#[tokio::test]
async fn middleware_stands_around_every_attempt_and_may_refuse_it() {
    let s = Setup::new().await;
    let notes = Arc::new(Mutex::new(Vec::new()));
    let guarded = |registry: Registry| {
        registry.with(Guard("outer", Arc::clone(&notes))).with(Guard("inner", Arc::clone(&notes)))
    };
    let work = Work { fail_times: 1, ..Work::named("x") };
    let worker = Worker::new(s.client.clone(), guarded(s.registry()), settings(&s.queue, 1));
    let worker = Running::start(worker);
    s.enqueue(&work).await;
    until("it is done", async || s.stats().await.completed == 1).await;
    let attempt = |n: u32, end: &str| {
        let (before, after) = (format!("before {n}"), format!("after {end}"));
        [
            format!("outer {before}"),
            format!("inner {before}"),
            format!("inner {after}"),
            format!("outer {after}"),
        ]
    };
    let expected: Vec<String> = attempt(1, "failed").into_iter().chain(attempt(2, "done")).collect();
    assert_eq!(*notes.lock().unwrap(), expected);

    // The inner one turns it away: the handler does not run, and the outer one sees the refusal.
    notes.lock().unwrap().clear();
    let refused = Work::named("refused").job().tenant("inner");
    let id = s.client.enqueue(refused.clone()).await.unwrap().id.to_string();
    s.wait_state(&id, State::Dead).await;
    assert_eq!(s.diary.count("refused"), 0);
    assert_eq!(*notes.lock().unwrap(), ["outer before 1", "inner before 1", "outer after failed"]);
    worker.stop().await;

    // The inline runner has the same middleware.
    let ran = InlineRunner::new(guarded(s.registry())).run(&refused).await;
    assert!(matches!(ran.end, Inline::Dead { ref error, .. } if error.contains("closed")), "{ran:?}");
}

#[tokio::test]
async fn a_queues_limit_on_attempts_is_stronger_than_its_kinds() {
    let s = Setup::new().await;
    let mut settings = settings(&s.queue, 1);
    settings.queues = vec![QueueSettings {
        attempt_timeout: Some(Duration::from_millis(50)),
        ..QueueSettings::new(&s.queue, 1)
    }];
    let worker = Running::start(Worker::new(s.client.clone(), s.registry(), settings));
    let id = s.enqueue(&Work { sleep_ms: 1_000, ..Work::named("slow") }).await;
    s.wait_state(&id, State::Dead).await;
    let view = s.client.show(&s.queue, &id).await.unwrap().unwrap();
    assert!(view.error.unwrap().contains("the attempt took longer than 50ms"));
    worker.stop().await;
}
