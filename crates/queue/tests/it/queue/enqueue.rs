//! Accepting jobs: batches, ids, due times, terms, other languages' call, limits of memory.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use voiceai_postgres::Term;
use voiceai_queue::{AddOutcome, Client, JobId, NewJob, QueueError, State, UniqueMode};
use voiceai_redis::{Redis, RedisSettings, Value};
use voiceai_testkit::{RedisOptions, RedisServer};

use super::{SOON, Setup, Work, check, until};

#[tokio::test]
async fn concurrent_single_enqueues_share_calls_and_keep_their_order() {
    let s = Setup::new().await;
    s.enqueue(&Work::named("first")).await;
    let before = calls(&s, "fcall").await;
    let jobs = (0..500).map(|i| s.client.enqueue(Work::named(format!("{i}")).job()));
    let added = join_all(jobs).await;
    let used = calls(&s, "fcall").await - before;
    assert!(used < 60, "500 concurrent enqueues took {used} calls");
    let ids: Vec<String> = added.into_iter().map(|a| a.unwrap().id.to_string()).collect();
    let mut sorted = ids.clone();
    sorted.sort();
    assert_eq!(sorted, ids, "ids are in the order of the calls");
    let worker = s.worker(1);
    s.wait_empty(SOON).await;
    let names = s.diary.names();
    let expected: Vec<String> =
        std::iter::once("first".to_owned()).chain((0..500).map(|i| i.to_string())).collect();
    assert_eq!(names, expected, "first in, first out");
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

/// How often a command ran on this test's connection class, by commandstats of the whole server.
async fn calls(s: &Setup, command: &str) -> u64 {
    let text: String = s.client.redis().command("INFO", vec!["commandstats"]).await.unwrap();
    let line =
        text.lines().find(|l| l.starts_with(&format!("cmdstat_{command}:"))).unwrap_or_default().to_owned();
    let calls = line.split("calls=").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or("0").to_owned();
    calls.parse().unwrap()
}

#[tokio::test]
async fn bulks_of_mixed_jobs_are_answered_in_order() {
    let s = Setup::new().await;
    let mut jobs = Vec::new();
    for i in 0..2_500 {
        let job = Work::named(format!("{i}")).job();
        jobs.push(if i % 1_000 == 7 {
            job.delay(Duration::from_secs(3_600))
        } else {
            job.tenant(format!("t{}", i % 3))
        });
    }
    let added = s.client.enqueue_bulk(jobs).await.unwrap();
    assert_eq!(added.len(), 2_500);
    let view = s.client.show(&s.queue, added[7].id.as_str()).await.unwrap().unwrap();
    assert_eq!((view.state, view.payload.unwrap().get().contains("\"7\"")), (State::Delayed, true));
    let stats = s.stats().await;
    assert_eq!((stats.waiting, stats.delayed, stats.accepted), (2_497, 3, 2_500));
    check(&s.client, &s.queue).await;
}

#[tokio::test]
async fn a_chosen_id_enqueues_once_also_after_the_job_is_done() {
    let s = Setup::new().await;
    let job = || Work::named("once").job().id(JobId::chosen("order-42").unwrap());
    let outcomes = join_all((0..50).map(|_| s.client.enqueue(job()))).await;
    let accepted = outcomes.iter().filter(|r| r.as_ref().unwrap().outcome == AddOutcome::Accepted).count();
    assert_eq!(accepted, 1);
    let worker = s.worker(4);
    s.wait_state("order-42", State::Completed).await;
    let again = s.client.enqueue(job()).await.unwrap();
    assert_eq!((again.outcome, again.is_known()), (AddOutcome::Known, true));
    s.wait_empty(SOON).await;
    assert_eq!(s.diary.count("once"), 1);
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn delays_are_measured_by_redis_and_absolute_times_are_kept() {
    let s = Setup::new().await;
    let worker = s.worker(2);
    let began = tokio::time::Instant::now();
    s.client.enqueue(Work::named("later").job().delay(Duration::from_millis(400))).await.unwrap();
    s.client.enqueue(Work::named("past").job().at(Timestamp::UNIX_EPOCH)).await.unwrap();
    let at = s.client.redis_now().checked_add(Duration::from_millis(200)).unwrap();
    s.client.enqueue(Work::named("at").job().at(at)).await.unwrap();
    until("all ran", async || s.diary.runs().len() == 3).await;
    assert_eq!(s.diary.names(), ["past", "at", "later"]);
    let took = s.diary.runs()[2].at - began;
    assert!(took >= Duration::from_millis(395) && took < Duration::from_millis(900), "{took:?}");
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn eight_thousand_jobs_due_at_once_are_an_ordinary_day() {
    let s = Setup::new().await;
    let jobs = (0..8_001).map(|i| Work::named(format!("{i}")).job().delay(Duration::from_millis(1)));
    s.client.enqueue_bulk(jobs.collect()).await.unwrap();
    let worker = s.worker(50);
    s.wait_empty(Duration::from_secs(30)).await;
    assert_eq!(s.diary.runs().len(), 8_001);
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_former_leaders_add_is_refused() {
    let s = Setup::new().await;
    let term = |number| Term { name: Arc::from("tasker"), number };
    let job = |id: &str| Work::named(id).job().id(JobId::chosen(id).unwrap());
    s.client.add(job("a"), Some(&term(7))).await.unwrap();
    s.client.add(job("b"), Some(&term(9))).await.unwrap();
    let refused = s.client.add(job("c"), Some(&term(8))).await.unwrap_err();
    assert!(matches!(refused, QueueError::StaleTerm { term: 8, .. }), "{refused}");
    let stats = s.stats().await;
    assert_eq!((stats.accepted, stats.counters["fenced"]), (2, 1));
    let stored: String = s.command("GET", &[&s.key("term")]).await.convert().unwrap();
    assert_eq!(stored, "9");
}

#[tokio::test]
async fn bad_input_names_what_is_wrong_and_enqueues_nothing() {
    let s = Setup::new().await;
    let good = || Work::named("x").job();
    for (job, word) in [
        (good().queue("no spaces"), "queue name"),
        (Work::named("x".repeat(2 << 20)).job(), "payload"),
        (good().priority(11), "priority"),
        (good().tenant("t".repeat(65)), "tenant"),
        (good().unique("", voiceai_queue::UniqueMode::Reject), "unique key"),
        (NewJob::json("bad kind", &serde_json::json!({})).unwrap(), "job kind"),
    ] {
        let error = s.client.enqueue(job).await.unwrap_err();
        assert!(error.to_string().starts_with(word), "{error}");
    }
    let raw = async |args: &[&str]| {
        let redis = s.client.redis();
        let mut all = vec!["1", "voiceai:queue:{default}:"];
        all.extend(args);
        redis
            .fcall::<Value>(
                "voiceai_v1_add",
                vec![all[1].into()],
                all[2..].iter().map(|a| Value::from(*a)).collect(),
            )
            .await
    };
    for args in [
        &["1", "a", "0||", "0"][..],
        &["1", "a b", "0||", "0", "0||\nk\n1\n{}"],
        &["1", "a", "11||", "0", "11||\nk\n1\n{}"],
        &["1", "a", "0||", "soon", "0||\nk\n1\n{}"],
        &["1", "a", "0||", "0", "1||\nk\n1\n{}"],
        &["2", "a", "0||", "0", "0||\nk\n1\n{}", "b", "0||", "0", "nonsense"],
    ] {
        let error = raw(args).await.unwrap_err();
        assert!(error.detail().contains("QBAD"), "{args:?}: {error}");
    }
    assert_eq!(s.stats().await.accepted, 0, "a batch is taken whole or not at all");
}

#[tokio::test]
async fn other_languages_submit_by_one_readable_call() {
    let s = Setup::new().await;
    let submit = async |args: &[&str]| -> Result<Vec<Value>, voiceai_redis::RedisError> {
        let args = args.iter().map(|a| Value::from(*a)).collect();
        s.client.redis().fcall("voiceai_v1_submit", vec![s.key("").into()], args).await
    };
    let options = r#"{"priority":5,"tenant":"acme corp","key":"k/1","unique":"u","traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;
    let first = submit(&["py-1", "work", r#"{"name":"py"}"#, options]).await.unwrap();
    assert_eq!(first[0].as_i64(), Some(1));
    assert_eq!(submit(&["py-1", "work", r#"{"name":"py"}"#, options]).await.unwrap()[0].as_i64(), Some(0));
    assert_eq!(submit(&["py-2", "work", r#"{"name":"py"}"#, options]).await.unwrap()[0].as_i64(), Some(2));
    for bad in
        [&["x", "work", "{"][..], &["x", "two words", "{}"], &["x", "work", "{}", r#"{"priority":12}"#]]
    {
        assert!(submit(bad).await.unwrap_err().detail().contains("QBAD"), "{bad:?}");
    }
    let view = s.client.show(&s.queue, "py-1").await.unwrap().unwrap();
    assert_eq!(
        (view.priority, view.tenant.as_deref(), view.key.as_deref()),
        (5, Some("acme corp"), Some("k/1"))
    );
    assert!(view.trace.unwrap().starts_with("00-4bf9"));
    assert_eq!(view.payload.unwrap().get(), r#"{"name":"py"}"#);
    let worker = s.worker(1);
    until("it ran", async || s.diary.count("py") == 1).await;
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn at_maxmemory_enqueueing_is_refused_and_the_queue_drains() {
    let server =
        RedisServer::start(RedisOptions { maxmemory: Some("16mb"), ..RedisOptions::default() }).await;
    let s = Setup::on(&server.url()).await;
    let filler = |i: usize| Work { result: None, ..Work::named(format!("{i}-{}", "x".repeat(4_000))) }.job();
    let mut accepted = 0;
    let error = loop {
        match s.client.enqueue_bulk((0..100).map(filler).collect()).await {
            Ok(added) => accepted += added.len(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, QueueError::Full { .. }), "{error}");
    assert!(error.is_unavailable() && accepted > 500, "{accepted}");
    let worker = s.worker(20);
    s.wait_empty(SOON).await;
    let stats = s.stats().await;
    assert_eq!(stats.completed, stats.accepted);
    assert!(stats.completed >= accepted as u64);
    check(&s.client, &s.queue).await;
    s.enqueue(&Work::named("room again")).await;
    until("it ran", async || s.diary.count("room again") == 1).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_server_that_may_evict_jobs_is_refused() {
    let options = RedisOptions { policy: Some("volatile-lru"), ..RedisOptions::default() };
    let server = RedisServer::start(options).await;
    let redis = Redis::connect(&RedisSettings::from_url(server.url()).unwrap()).await.unwrap();
    let error = Client::connect(redis).await.unwrap_err();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(text.contains("volatile-lru") && text.contains("noeviction"), "{text}");
}

#[tokio::test]
async fn a_process_starts_on_a_full_redis_and_drains_it() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let first = Setup::on(&server.url()).await;
    first.enqueue(&Work::named("x")).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let full = first.client.enqueue(Work::named("y").job()).await.unwrap_err();
    assert!(matches!(full, QueueError::Full { .. }), "{full}");
    let second = Setup::on(&server.url()).await;
    let worker = second.worker(1);
    until("it ran", async || second.diary.count("x") == 1).await;
    second.wait_empty(SOON).await;
    worker.stop().await;
    // The library of another version does not keep it from starting either.
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let other = "#!lua name=voiceai_v1\nredis.register_function('voiceai_v1_old', function() return 1 end)";
    server.cli(&["FUNCTION", "LOAD", "REPLACE", other]).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let _third = Setup::on(&server.url()).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let _fourth = Setup::on(&server.url()).await;
    let listed = server.cli(&["FUNCTION", "LIST"]).await;
    assert!(
        listed.contains("voiceai_v1_take") && !listed.contains("voiceai_v1_old"),
        "replaced once there is room"
    );
}

#[tokio::test]
async fn submit_drops_nulls_and_refuses_what_it_does_not_know() {
    let s = Setup::new().await;
    let submit = async |id: &str, options: &str| -> Result<Vec<Value>, voiceai_redis::RedisError> {
        let args = [id, "work", "{}", options].iter().map(|a| Value::from(*a)).collect();
        s.client.redis().fcall("voiceai_v1_submit", vec![s.key("").into()], args).await
    };
    for id in ["a", "b"] {
        let row = submit(id, r#"{"unique":null,"tenant":null,"delay_ms":null}"#).await.unwrap();
        assert_eq!(row[0].as_i64(), Some(1), "{id}: null is no key");
    }
    let view = s.client.show(&s.queue, "a").await.unwrap().unwrap();
    assert_eq!(view.tenant.as_deref().unwrap_or_default(), "");
    for (options, word) in [
        (r#"{"delay":5}"#, "option delay"),
        (r#"{"delay_ms":"5"}"#, "delay_ms"),
        (r#"{"at_ms":"soon"}"#, "at_ms"),
        (r#"{"at_ms":-1}"#, "at_ms"),
        (r#"{"delay_ms":1.5}"#, "delay_ms"),
        (r#"{"at_ms":1e300}"#, "at_ms"),
        (r#"{"unique_ttl_ms":true}"#, "unique_ttl_ms"),
        (r#"{"tenant":7}"#, "tenant"),
        (r#"{"unique":""}"#, "unique"),
        (r#"{"priority":"high"}"#, "priority"),
        ("[]", "options"),
        ("[1]", "options"),
    ] {
        let error = submit("c", options).await.unwrap_err();
        assert!(error.detail().contains("QBAD") && error.detail().contains(word), "{options}: {error}");
    }
    assert_eq!(s.stats().await.accepted, 2);
}

#[tokio::test]
async fn due_times_and_ids_that_would_never_end_are_refused() {
    let s = Setup::new().await;
    let add = async |id: Value, due: &str| {
        let args = vec!["1".into(), id, "0||".into(), due.into(), "0||\nwork\n1\n{}".into()];
        s.client.redis().fcall::<Value>("voiceai_v1_add", vec![s.key("").into()], args).await
    };
    for due in ["inf", "+inf", "nan", "1e300", "-1", "0.5"] {
        let error = add("a".into(), due).await.unwrap_err();
        assert!(error.detail().contains("QBAD due"), "{due}: {error}");
    }
    for id in
        [&b"\xff"[..], b"a\x80", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"]
    {
        let error = add(Value::from(id), "0").await.unwrap_err();
        assert!(error.detail().contains("QBAD id"), "{id:?}: {error}");
    }
    for id in ["é", "€-\u{fffd}", "\u{10ffff}", "\u{d7ff}"] {
        add(id.into(), "0").await.unwrap();
        assert!(s.client.show(&s.queue, id).await.unwrap().is_some(), "{id}");
    }
    check(&s.client, &s.queue).await;
}

#[tokio::test]
async fn a_batch_that_is_in_is_answered_so_also_when_producers_are_paused_since() {
    let s = Setup::new().await;
    let send = async |last: &str| {
        let id = format!("id{last}");
        let args =
            ["nonce", last, "0||", "1", &id, "0||\nwork\n1\n{}"].iter().map(|a| Value::from(*a)).collect();
        s.client.redis().fcall::<Vec<i64>>("voiceai_v1_enqueue", vec![s.key("").into()], args).await
    };
    assert_eq!(send("1").await.unwrap()[0], 1);
    s.client.pause_producers(&s.queue).await.unwrap();
    assert_eq!(send("1").await.unwrap()[0], 0, "it came before");
    assert!(send("2").await.unwrap_err().detail().contains("QPAUSED"));
}

#[tokio::test]
async fn a_batch_of_all_sorts_is_taken_in_order_and_each_id_once() {
    let s = Setup::new().await;
    let job = |name: &str| Work::named(name).job().id(JobId::chosen(name).unwrap());
    s.client.enqueue(job("known")).await.unwrap();
    let batch = vec![
        job("a"),
        job("known"),
        job("tied").unique("u", UniqueMode::Reject),
        job("later").delay(Duration::from_secs(600)),
        job("a"),
        job("held").unique("u", UniqueMode::Reject),
        job("b"),
        job("later"),
        job("other").tenant("acme"),
    ];
    let added = s.client.add_many(&s.queue, batch, None).await.unwrap();
    use AddOutcome::{Accepted as A, Duplicate as D, Known as K};
    let outcomes: Vec<_> = added.iter().map(|added| added.outcome).collect();
    assert_eq!(outcomes, [A, K, A, A, K, D, A, K, A]);
    check(&s.client, &s.queue).await;
    let worker = s.worker(1);
    until("they ran", async || s.diary.runs().len() == 5).await;
    let plain: Vec<_> = s.diary.names().into_iter().filter(|name| name != "other").collect();
    assert_eq!(plain, ["known", "a", "tied", "b"], "first in, first out, whatever is tied");
    check(&s.client, &s.queue).await;
    worker.stop().await;
}
