//! Lost answers, lost connections, restarts, failovers, skewed clocks: everything goes on by itself.

use std::collections::BTreeSet;
use std::time::Duration;

use voiceai_queue::{Ending, NewJob, State};
use voiceai_testkit::{RedisOptions, RedisServer, TcpProxy};

use super::{Running, SOON, Setup, Work, check, settings, until};

#[tokio::test]
async fn lost_answers_strand_nothing() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let straight = Setup::on(&server.url()).await;
    let proxy = TcpProxy::start(server.port()).await;
    let faulty = Setup::on(&proxy.url(&server.url())).await;
    let jobs = (0..600).map(|i| Work { sleep_ms: 20, ..Work::named(format!("{i}")) }.job());
    straight.client.enqueue_bulk(jobs.collect()).await.unwrap();
    let worker = faulty.worker(5);
    until("it works", async || faulty.diary.runs().len() > 5).await;
    proxy.drop_every_nth_reply(40);
    straight.wait_empty(Duration::from_secs(60)).await;
    assert!(proxy.dropped() >= 2, "{} answers were lost", proxy.dropped());
    let ran: BTreeSet<String> = faulty.diary.names().into_iter().collect();
    assert_eq!(ran.len(), 600, "every job ran");
    let stats = straight.stats().await;
    assert_eq!((stats.completed, stats.dead), (600, 0));
    assert!(!stats.counters.contains_key("failed"), "no attempt was spent");
    check(&straight.client, &straight.queue).await;
    proxy.drop_every_nth_reply(0);
    worker.stop().await;
    check(&straight.client, &straight.queue).await;
}

#[tokio::test]
async fn a_lost_answer_strands_nothing_behind_a_long_handler() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let straight = Setup::on(&server.url()).await;
    let proxy = TcpProxy::start(server.port()).await;
    let faulty = Setup::on(&proxy.url(&server.url())).await;
    let worker = faulty.worker(5);
    let long = straight.enqueue(&Work { sleep_ms: 120_000, ..Work::named("long") }).await;
    straight.wait_state(&long, State::Active).await;
    let jobs = (0..300).map(|i| Work { sleep_ms: 20, ..Work::named(format!("{i}")) }.job());
    straight.client.enqueue_bulk(jobs.collect()).await.unwrap();
    proxy.drop_every_nth_reply(25);
    until("some answers were lost", async || proxy.dropped() >= 3).await;
    proxy.drop_every_nth_reply(0);
    voiceai_testkit::wait_until(Duration::from_secs(30), "all but the long one are done", async || {
        let stats = straight.stats().await;
        (stats.waiting, stats.delayed, stats.active, stats.completed) == (0, 0, 1, 300)
    })
    .await;
    assert_eq!(straight.state(&long).await, Some(State::Active), "the long one still runs");
    straight.client.cancel(&straight.queue, std::slice::from_ref(&long), "the test is over").await.unwrap();
    straight.wait_empty(Duration::from_secs(20)).await;
    check(&straight.client, &straight.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_lost_answer_to_an_enqueue_neither_loses_nor_doubles() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let straight = Setup::on(&server.url()).await;
    let proxy = TcpProxy::start(server.port()).await;
    let faulty = Setup::on(&proxy.url(&server.url())).await;
    proxy.drop_every_nth_reply(10);
    let mut accepted = 0;
    for _ in 0..20 {
        accepted += u64::from(faulty.client.enqueue(Work::named("x").job()).await.is_ok());
    }
    assert!(proxy.dropped() >= 2);
    proxy.drop_every_nth_reply(0);
    let stats = straight.stats().await;
    assert_eq!((accepted, stats.accepted), (20, 20));
    check(&straight.client, &straight.queue).await;
}

#[tokio::test]
async fn a_worker_survives_cut_and_black_holed_connections() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let straight = Setup::on(&server.url()).await;
    let proxy = TcpProxy::start(server.port()).await;
    let faulty = Setup::on(&proxy.url(&server.url())).await;
    let worker = faulty.worker(5);
    for round in 0..3 {
        straight.enqueue(&Work::named(format!("before {round}"))).await;
        until("it works", async || faulty.diary.count(&format!("before {round}")) == 1).await;
        match round {
            0 => proxy.cut(),
            1 => {
                proxy.pause();
                tokio::time::sleep(Duration::from_secs(4)).await;
                proxy.resume();
            }
            _ => {
                proxy.refuse();
                tokio::time::sleep(Duration::from_secs(1)).await;
                proxy.resume();
            }
        }
        straight.enqueue(&Work::named(format!("after {round}"))).await;
        voiceai_testkit::wait_until(Duration::from_secs(15), "it works again", async || {
            faulty.diary.count(&format!("after {round}")) == 1
        })
        .await;
    }
    straight.wait_empty(SOON).await;
    check(&straight.client, &straight.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_redis_restart_kills_no_worker_and_blames_no_job() {
    let mut server = RedisServer::start(RedisOptions { appendonly: true, ..RedisOptions::default() }).await;
    let s = Setup::on(&server.url()).await;
    let worker = s.worker(10);
    let long = s.enqueue(&Work { sleep_ms: 1_500, ..Work::named("long") }).await;
    s.wait_state(&long, State::Active).await;
    server.restart(false).await;
    s.enqueue(&Work::named("after")).await;
    until("work goes on", async || s.diary.count("after") == 1).await;
    until("the long one is done", async || s.records.of(&long) == ["completed"]).await;
    assert_eq!(s.diary.count("long"), 1, "its lease was not taken for lost");
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn an_emptied_redis_gets_its_functions_and_workers_back() {
    let mut server = RedisServer::start(RedisOptions::default()).await;
    let s = Setup::on(&server.url()).await;
    let worker = s.worker(4);
    s.enqueue(&Work::named("before")).await;
    until("it works", async || s.diary.count("before") == 1).await;
    server.restart(true).await;
    s.enqueue(&Work::named("after")).await;
    until("work goes on", async || s.diary.count("after") == 1).await;
    s.client.redis().command::<voiceai_redis::Value>("FUNCTION", vec!["FLUSH"]).await.unwrap();
    s.enqueue(&Work::named("flushed")).await;
    until("work goes on", async || s.diary.count("flushed") == 1).await;
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_stale_acknowledgement_is_refused_counted_and_its_handler_cancelled() {
    let s = Setup::new().await;
    let worker = s.worker(1);
    let id = s.enqueue(&Work { sleep_ms: 1_000, ..Work::named("x") }).await;
    s.wait_state(&id, State::Active).await;
    // As after a sweep by others: the job belongs to another token now.
    s.command("HSET", &[&s.key("active"), &id, "another.1"]).await;
    until("the ack is refused", async || s.stats().await.counters.get("stale") == Some(&1)).await;
    assert!(s.records.of(&id).is_empty(), "nothing was recorded as done");
    assert_eq!(s.stats().await.completed, 0);
    // The other owner is unknown, so a sweep brings the job back and it completes.
    until("it ran again", async || s.records.of(&id) == ["completed"]).await;
    assert_eq!(s.diary.count("x"), 2);
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_worker_whose_lease_is_gone_stops_its_handlers_and_joins_anew() {
    let s = Setup::new().await;
    let worker = s.worker(2);
    let id = s.enqueue(&Work { sleep_ms: 60_000, ..Work::named("x") }).await;
    s.wait_state(&id, State::Active).await;
    s.command("DEL", &[&s.key("workers")]).await;
    until("the handler was stopped", async || s.diary.runs()[0].stopped).await;
    until("it runs again under a new lease", async || s.diary.count("x") == 2).await;
    s.client.cancel(&s.queue, &[id], "enough").await.unwrap();
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

/// Writes a line to its log in a future that it polls once and then leaves alone for longer than a lease.
#[derive(serde::Serialize, serde::Deserialize)]
struct LeavesAlone;

impl voiceai_queue::Job for LeavesAlone {
    const KIND: &'static str = "leaves-alone";
    type Context = voiceai_queue::Client;

    async fn run(
        &self,
        client: &voiceai_queue::Client,
        attempt: &voiceai_queue::Attempt,
    ) -> Result<voiceai_queue::Outcome, voiceai_queue::JobError> {
        let mut line = std::pin::pin!(attempt.log("one line"));
        let mut stats = std::pin::pin!(client.stats("default"));
        let once = std::future::poll_fn(|cx| {
            let _ = (line.as_mut().poll(cx), stats.as_mut().poll(cx));
            std::task::Poll::Ready(())
        });
        once.await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let _ = (line.await, stats.await);
        Ok(voiceai_queue::Outcome::Done)
    }
}

#[tokio::test]
async fn a_handler_that_leaves_a_call_unpolled_holds_up_nobody() {
    let s = Setup::new().await;
    let registry = s.registry().register::<LeavesAlone>(s.client.clone());
    let worker =
        Running::start(voiceai_queue::Worker::new(s.client.clone(), registry, settings(&s.queue, 5)));
    let id = s.client.enqueue(NewJob::of(&LeavesAlone).unwrap()).await.unwrap().id.to_string();
    s.wait_state(&id, State::Active).await;
    for n in 0..20 {
        let name = format!("quick{n}");
        let began = std::time::Instant::now();
        s.enqueue(&Work::named(name.clone())).await;
        until("it runs", async || s.diary.count(&name) == 1).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{name}: {:?}", began.elapsed());
    }
    s.wait_empty(SOON).await;
    let stats = s.stats().await;
    assert_eq!(stats.completed, 21);
    assert!(!stats.counters.contains_key("orphans"), "its lease was kept alive: {stats:?}");
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_handler_that_ends_late_does_not_hide_the_attempt_that_took_its_place() {
    let s = Setup::new().await;
    let mut settings = settings(&s.queue, 2);
    // Longer than this test: only the cancellation can end the second attempt.
    settings.queues[0].attempt_timeout = Some(Duration::from_secs(600));
    let worker = s.worker_with(settings);
    let id = s.enqueue(&Work { sleep_ms: 600_000, stubborn: true, ..Work::named("x") }).await;
    s.wait_state(&id, State::Active).await;
    s.command("DEL", &[&s.key("workers")]).await;
    until("it runs again under a new lease", async || s.diary.count("x") == 2).await;
    // The first one is dropped at the end of its grace, while the second runs in the same process.
    until("the first one is gone", async || s.diary.runs()[0].stopped).await;
    s.client.cancel(&s.queue, std::slice::from_ref(&id), "enough").await.unwrap();
    until("the second one is told", async || s.diary.runs()[1].stopped).await;
    until("it ended as cancelled", async || s.records.of(&id) == ["cancelled"]).await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_stop_ends_though_handlers_begin_to_wait_only_when_the_time_to_drain_is_over() {
    let s = Setup::new().await;
    let settings = voiceai_queue::WorkerSettings { drain: Duration::ZERO, ..settings(&s.queue, 50) };
    let worker = Running::start(voiceai_queue::Worker::new(s.client.clone(), s.registry(), settings));
    for i in 0..500 {
        s.enqueue(&Work { sleep_ms: 600_000, ..Work::named(format!("x{i}")) }).await;
        if i == 40 {
            until("some run", async || !s.diary.runs().is_empty()).await;
        }
    }
    let began = std::time::Instant::now();
    worker.stop().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let stats = s.stats().await;
    assert_eq!((stats.waiting, stats.active, stats.suspects, stats.workers.len()), (500, 0, 0, 0));
    check(&s.client, &s.queue).await;
}

#[tokio::test]
async fn a_graceful_stop_hands_back_what_it_could_not_finish_without_spending_an_attempt() {
    let s = Setup::new().await;
    let settings =
        voiceai_queue::WorkerSettings { drain: Duration::from_millis(300), ..settings(&s.queue, 3) };
    let worker = Running::start(voiceai_queue::Worker::new(s.client.clone(), s.registry(), settings));
    for i in 0..3 {
        s.enqueue(&Work { sleep_ms: 60_000, ..Work::named(format!("long{i}")) }).await;
    }
    let quick = s.enqueue(&Work { sleep_ms: 100, ..Work::named("waits") }).await;
    until("three run", async || s.diary.runs().len() == 3).await;
    let began = std::time::Instant::now();
    worker.stop().await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let stats = s.stats().await;
    assert_eq!((stats.waiting, stats.active, stats.suspects, stats.workers.len()), (4, 0, 0, 0));
    assert!(!stats.counters.contains_key("failed") && !stats.counters.contains_key("orphans"), "{stats:?}");
    assert_eq!(s.state(&quick).await, Some(State::Waiting));
    // The head of the line is theirs again: what was begun goes first.
    let list = s.client.list(&s.queue, &voiceai_queue::ListFilter::of(State::Waiting)).await.unwrap();
    assert_eq!(list.jobs[3].id.as_str(), quick);
    check(&s.client, &s.queue).await;
}

#[tokio::test]
async fn jobs_of_a_dead_worker_are_back_within_its_lease_and_spend_no_attempt() {
    let s = Setup::new().await;
    let dying = s.worker(5);
    for i in 0..5 {
        s.enqueue(&Work { sleep_ms: 300, ..Work::named(format!("{i}")) }).await;
    }
    until("all run", async || s.diary.runs().len() == 5).await;
    dying.drop_dead();
    let other = Setup { db: None, ..Setup::on(&s.db.as_ref().unwrap().url).await };
    let heir = other.worker(5);
    let began = std::time::Instant::now();
    other.wait_empty(Duration::from_secs(15)).await;
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    let stats = other.stats().await;
    assert_eq!((stats.completed, stats.counters.get("failed")), (5, None));
    assert_eq!(stats.counters["orphans"], 5);
    assert!(other.records.all().iter().all(|r| r.ending == Ending::Completed && r.attempt == 1));
    assert_eq!(other.diary.most("*"), 1, "suspects run one at a time");
    check(&other.client, &other.queue).await;
    heir.stop().await;
}

#[tokio::test]
async fn a_completion_that_redis_lost_is_found_again_under_a_living_worker() {
    let s = Setup::new().await;
    let worker = s.worker(2);
    let id = s.enqueue(&Work { sleep_ms: 300, ..Work::named("x") }).await;
    s.wait_state(&id, State::Active).await;
    let read =
        async |suffix: &str| -> String { s.command("HGET", &[&s.key(suffix), &id]).await.convert().unwrap() };
    let (envelope, token) = (read("jobs").await, read("active").await);
    s.wait_empty(SOON).await;
    // What a power cut or a failover leaves: the state before the acknowledgement, and new connections.
    s.command("HSET", &[&s.key("jobs"), &id, &envelope]).await;
    s.command("HSET", &[&s.key("active"), &id, &token]).await;
    s.command("HINCRBY", &[&s.key("n"), "completed", "-1"]).await;
    s.command("CLIENT", &["KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    until("it runs again", async || s.diary.count("x") == 2).await;
    s.wait_empty(SOON).await;
    let stats = s.stats().await;
    assert_eq!((stats.completed, stats.suspects, stats.counters.get("orphans")), (1, 0, Some(&1)));
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn an_add_whose_first_sending_had_no_answer_is_not_called_refused() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let straight = Setup::on(&server.url()).await;
    let proxy = TcpProxy::start(server.port()).await;
    let faulty = Setup::on(&proxy.url(&server.url())).await;
    // The name of the queue is registered apart; its answer shall not be the lost one.
    faulty.enqueue(&Work::named("first")).await;
    let client = faulty.client.clone();
    proxy.drop_every_nth_reply(1);
    let adding = tokio::spawn(async move { client.enqueue(Work::named("x").job().delay(SOON * 9)).await });
    until("it is there", async || straight.stats().await.accepted == 2).await;
    straight.client.pause_producers(&straight.queue).await.unwrap();
    proxy.drop_every_nth_reply(0);
    let error = adding.await.unwrap().unwrap_err();
    assert!(error.outcome_unknown(), "{error}");
    assert_eq!(straight.stats().await.accepted, 2);
}

#[tokio::test]
async fn times_that_a_primary_with_a_fast_clock_left_hold_nothing_up() {
    let s = Setup::new().await;
    let call = async |function: &'static str, args: &[&str]| {
        let args = args.iter().map(|a| voiceai_redis::Value::from(*a)).collect();
        let keys = vec![s.key("").into()];
        s.client.redis().fcall::<voiceai_redis::Value>(function, keys, args).await.unwrap();
    };
    let id = s.enqueue(&Work::named("x")).await;
    call("voiceai_v1_join", &["dead", "3000", "{}", ""]).await;
    call("voiceai_v1_take", &["dead", "3000", "1", "dead.1", "16", "0"]).await;
    assert_eq!(s.state(&id).await, Some(State::Active));
    let ahead = (s.client.redis_now().as_millisecond() + 3_600_000).to_string();
    s.command("ZADD", &[&s.key("workers"), &ahead, "dead"]).await;
    for field in ["beat", "sweep_at", "tend_at", "grace"] {
        s.command("HSET", &[&s.key("pulse"), field, &ahead]).await;
    }
    s.command("ZADD", &[&s.key("finished"), "1", "old"]).await;
    s.command("HSET", &[&s.key("jobs"), "old", ""]).await;
    let worker = s.worker(1);
    until("it runs under a new lease", async || s.diary.count("x") == 1).await;
    let finished = s.command("ZCARD", &[&s.key("finished")]).await;
    assert_eq!(finished.as_i64(), Some(0), "what is over was removed");
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_cancelled_job_whose_worker_died_leaves_a_record() {
    let s = Setup::new().await;
    let call = async |function: &'static str, args: &[&str]| {
        let args = args.iter().map(|a| voiceai_redis::Value::from(*a)).collect();
        let keys = vec![s.key("").into()];
        s.client.redis().fcall::<voiceai_redis::Value>(function, keys, args).await.unwrap();
    };
    let id = s.enqueue(&Work::named("x")).await;
    call("voiceai_v1_join", &["dead", "100", "{}", ""]).await;
    call("voiceai_v1_take", &["dead", "100", "1", "dead.1", "16", "0"]).await;
    s.client.cancel(&s.queue, std::slice::from_ref(&id), "enough").await.unwrap();
    let worker = s.worker(1);
    until("it is recorded", async || s.records.of(&id) == ["cancelled"]).await;
    assert_eq!((s.diary.count("x"), s.stats().await.cancelled), (0, 1));
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn one_process_runs_one_suspect_at_a_time_over_all_its_queues() {
    let s = Setup::new().await;
    let queues = ["one", "two"];
    for queue in queues {
        let job = Work { sleep_ms: 700, ..Work::named(queue) }.job().queue(queue);
        s.client.enqueue(job).await.unwrap();
        for (function, args) in [
            ("voiceai_v1_join", &["dead", "100", "{}", ""][..]),
            ("voiceai_v1_take", &["dead", "100", "1", "dead.1", "16", "1"]),
        ] {
            let args = args.iter().map(|a| voiceai_redis::Value::from(*a)).collect();
            let keys = vec![format!("voiceai:queue:{{{queue}}}:").into()];
            s.client.redis().fcall::<voiceai_redis::Value>(function, keys, args).await.unwrap();
        }
    }
    let both = voiceai_queue::WorkerSettings {
        queues: queues.map(|q| voiceai_queue::QueueSettings::new(q, 4)).to_vec(),
        ..settings("one", 4)
    };
    let worker = s.worker_with(both);
    until("both ran", async || {
        let mut done = 0;
        for queue in queues {
            done += s.client.stats(queue).await.unwrap().completed;
        }
        done == 2
    })
    .await;
    assert_eq!(s.diary.most("*"), 1, "{:?}", s.diary.runs());
    for queue in queues {
        check(&s.client, queue).await;
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_replayed_job_that_lost_workers_stays_among_the_suspects() {
    let s = Setup::new().await;
    let id = s.enqueue(&Work { discard: true, ..Work::named("x") }).await;
    let worker = s.worker(1);
    s.wait_state(&id, State::Dead).await;
    worker.stop().await;
    s.command("HSET", &[&s.key("crashes"), &id, "2"]).await;
    s.client.replay(&s.queue, std::slice::from_ref(&id), "again").await.unwrap();
    assert_eq!(s.stats().await.suspects, 1);
    check(&s.client, &s.queue).await;
}
