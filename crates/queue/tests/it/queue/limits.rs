//! Rates and per-key concurrency over all workers; none of it leaks.

use std::time::Duration;

use voiceai_config::Rate;
use voiceai_queue::{QueueLimits, QueueSettings, State, WhyNot, Worker};

use super::{Running, SOON, Setup, Work, check, settings, until};

fn rate(count: u32, per_ms: u64) -> Option<Option<Rate>> {
    Some(Some(Rate { count, per: Duration::from_millis(per_ms) }))
}

/// The most starts in any window of this length.
fn densest(s: &Setup, window: Duration) -> usize {
    let mut starts: Vec<_> = s.diary.runs().iter().map(|r| r.at).collect();
    starts.sort();
    starts.iter().map(|a| starts.iter().filter(|b| **b >= *a && **b - *a < window).count()).max().unwrap_or(0)
}

#[tokio::test]
async fn a_queues_rate_holds_over_all_workers_and_in_every_window() {
    let s = Setup::new().await;
    let mut queue = QueueSettings::new(&s.queue, 10);
    queue.rate = Some(Rate { count: 10, per: Duration::from_secs(1) });
    let with_rate =
        || voiceai_queue::WorkerSettings { queues: vec![queue.clone()], ..settings(&s.queue, 10) };
    s.client.enqueue_bulk((0..30).map(|i| Work::named(format!("{i}")).job()).collect()).await.unwrap();
    let began = tokio::time::Instant::now();
    let one = s.worker_with(with_rate());
    let two = s.worker_with(with_rate());
    until("it is limited", async || s.diary.runs().len() == 10).await;
    let view = s.client.list(&s.queue, &voiceai_queue::ListFilter::of(State::Waiting)).await.unwrap();
    let view = s.client.show(&s.queue, view.jobs[0].id.as_str()).await.unwrap().unwrap();
    assert!(view.why_not.contains(&WhyNot::QueueRate { limit: 10, period_ms: 1_000 }), "{:?}", view.why_not);
    s.wait_empty(SOON).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(1_900) && took < Duration::from_secs(4), "{took:?}");
    // Starts are noted by the handlers, a little after the server counted them.
    assert!(densest(&s, Duration::from_millis(950)) <= 10, "{}", densest(&s, Duration::from_millis(950)));
    check(&s.client, &s.queue).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn per_key_limits_hold_and_other_keys_go_on() {
    let s = Setup::new().await;
    let limits = QueueLimits { key_concurrency: Some(Some(2)), ..Default::default() };
    s.client.set(&s.queue, &limits).await.unwrap();
    let job = |key: &str| Work { sleep_ms: 30, ..Work::named(key) }.job().key(key);
    let mut jobs: Vec<_> = (0..20).map(|_| job("busy")).collect();
    jobs.extend((0..4).map(|i| job(&format!("other{i}"))));
    s.client.enqueue_bulk(jobs).await.unwrap();
    let worker = s.worker(10);
    until("other keys are not held up", async || {
        s.diary.names().iter().filter(|n| n.starts_with("other")).count() == 4
    })
    .await;
    assert!(s.diary.count("busy") < 10, "the others did not wait for the busy key");
    s.wait_empty(SOON).await;
    assert_eq!((s.diary.most("busy"), s.diary.count("busy")), (2, 20));
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_key_rate_holds_and_says_when_it_goes_on() {
    let s = Setup::new().await;
    s.client.set(&s.queue, &QueueLimits { key_rate: rate(3, 700), ..Default::default() }).await.unwrap();
    s.client.enqueue_bulk((0..9).map(|_| Work::named("k").job().key("k")).collect()).await.unwrap();
    let worker = s.worker(10);
    s.wait_empty(SOON).await;
    assert!(densest(&s, Duration::from_millis(650)) <= 3);
    let runs = s.diary.runs();
    assert!(runs[8].at - runs[0].at >= Duration::from_millis(1_350));
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_slot_that_was_lost_heals_and_a_dead_workers_slots_come_back() {
    let s = Setup::new().await;
    s.client
        .set(&s.queue, &QueueLimits { key_concurrency: Some(Some(1)), ..Default::default() })
        .await
        .unwrap();
    // As after a failover that lost the release: a slot without a running job.
    s.command("SADD", &[&s.key("slot:k"), "ghost-of-a-job"]).await;
    let worker = s.worker(4);
    s.client.enqueue(Work::named("a").job().key("k")).await.unwrap();
    until("it runs all the same", async || s.diary.count("a") == 1).await;
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    s.client.enqueue(Work { sleep_ms: 60_000, ..Work::named("b") }.job().key("k")).await.unwrap();
    until("it runs", async || s.diary.count("b") == 1).await;
    worker.drop_dead();
    s.client.enqueue(Work::named("c").job().key("k")).await.unwrap();
    let limits = QueueLimits { key_concurrency: Some(Some(2)), ..Default::default() };
    let other = Running::start(Worker::new(s.client.clone(), s.registry(), settings(&s.queue, 4)));
    s.client.set(&s.queue, &limits).await.unwrap();
    until("a raised limit acts at once", async || s.diary.count("c") == 1).await;
    until("the dead worker's job runs again", async || s.diary.count("b") == 2).await;
    check(&s.client, &s.queue).await;
    s.client
        .cancel(
            &s.queue,
            &[s.client.list(&s.queue, &voiceai_queue::ListFilter::of(State::Active)).await.unwrap().jobs[0]
                .id
                .to_string()],
            "end",
        )
        .await
        .unwrap();
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    other.stop().await;
}

#[tokio::test]
async fn a_place_that_a_settled_job_frees_is_filled_at_once() {
    let s = Setup::new().await;
    let limits = QueueLimits { concurrency: Some(Some(1)), ..Default::default() };
    s.client.set(&s.queue, &limits).await.unwrap();
    let one = s.worker(4);
    let two = s.worker(4);
    let job = |i: usize| {
        let id = voiceai_queue::JobId::chosen(format!("job-{i}")).unwrap();
        Work { sleep_ms: 20, ..Work::named(format!("{i}")) }.job().id(id)
    };
    s.enqueue(&Work::named("warm")).await;
    s.wait_empty(SOON).await;
    let began = tokio::time::Instant::now();
    s.client.enqueue_bulk((0..20).map(job).collect()).await.unwrap();
    s.wait_empty(Duration::from_secs(30)).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "20 jobs of 20 ms each took {took:?}");
    assert_eq!((s.diary.most("*"), s.diary.runs().len()), (1, 21));
    check(&s.client, &s.queue).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_change_of_a_limit_lets_go_of_any_number_of_lanes_at_once() {
    let s = Setup::new().await;
    let one = QueueLimits { key_concurrency: Some(Some(1)), ..QueueLimits::default() };
    s.client.set(&s.queue, &one).await.unwrap();
    // One running job holds the only slot of the key that all lanes share. Its worker does nothing else.
    let long = s.client.enqueue(Work::named("long").job().key("k")).await.unwrap().id.to_string();
    for (function, args) in [
        ("voiceai_v1_join", &["busy", "600000", "{}", ""][..]),
        ("voiceai_v1_take", &["busy", "600000", "1", "busy.1", "16", "0"]),
    ] {
        let args = args.iter().map(|a| voiceai_redis::Value::from(*a)).collect();
        let keys = vec![s.key("").into()];
        s.client.redis().fcall::<voiceai_redis::Value>(function, keys, args).await.unwrap();
    }
    assert_eq!(s.state(&long).await, Some(State::Active));
    // As a busy hour leaves it: 2,500 tenants of that key, held back.
    for first in (0..2_500).step_by(500) {
        let jobs = (first..first + 500).map(|i| Work::named("x").job().key("k").tenant(format!("t{i}")));
        s.client.enqueue_bulk(jobs.collect()).await.unwrap();
    }
    let lanes: Vec<String> = s.command("ZRANGE", &[&s.key("ready"), "0", "-1"]).await.convert().unwrap();
    for part in lanes.chunks(500) {
        let mut held = vec![s.key("held")];
        held.extend(part.iter().flat_map(|lane| ["+inf".to_owned(), lane.clone()]));
        let mut of_key = vec![s.key("held:k")];
        of_key.extend(part.iter().cloned());
        s.command("ZADD", &held.iter().map(String::as_str).collect::<Vec<_>>()).await;
        s.command("SADD", &of_key.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    s.command("DEL", &[&s.key("ready")]).await;
    assert_eq!(s.stats().await.held_lanes, 2_500);
    check(&s.client, &s.queue).await;
    let none = QueueLimits { key_concurrency: Some(None), ..QueueLimits::default() };
    s.client.set(&s.queue, &none).await.unwrap();
    let stats = s.stats().await;
    assert_eq!((stats.held_lanes, stats.waiting), (0, 2_500));
    check(&s.client, &s.queue).await;
}

#[tokio::test]
async fn lanes_that_were_forgotten_among_the_held_ones_come_back_by_themselves() {
    let s = Setup::new().await;
    let one = QueueLimits { key_concurrency: Some(Some(1)), ..QueueLimits::default() };
    s.client.set(&s.queue, &one).await.unwrap();
    let lanes = 1_200;
    let jobs = (0..lanes).map(|i| Work::named("x").job().key(format!("k{i}"))).collect();
    s.client.enqueue_bulk(jobs).await.unwrap();
    // What a failover leaves: the holder's release is lost, and nobody is going to release them again.
    let ready: Vec<String> = s.command("ZRANGE", &[&s.key("ready"), "0", "-1"]).await.convert().unwrap();
    let mut held = vec![s.key("held")];
    held.extend(ready.iter().flat_map(|lane| ["+inf".to_owned(), lane.clone()]));
    s.command("ZADD", &held.iter().map(String::as_str).collect::<Vec<_>>()).await;
    s.command("DEL", &[&s.key("ready")]).await;
    let worker = s.worker(50);
    s.wait_empty(std::time::Duration::from_secs(15)).await;
    assert_eq!(s.stats().await.completed, lanes);
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn starts_that_a_fast_clock_wrote_hold_a_rate_for_one_period() {
    let s = Setup::new().await;
    let limits = QueueLimits { rate: rate(2, 1_000), key_rate: rate(2, 1_000), ..QueueLimits::default() };
    s.client.set(&s.queue, &limits).await.unwrap();
    // A former primary was an hour ahead.
    let ahead = format!("{} 2", s.client.redis_now().as_millisecond() + 3_600_000);
    s.command("HSET", &[&s.key("rate"), "", &ahead, "k", &ahead]).await;
    s.client.enqueue(Work::named("x").job().key("k")).await.unwrap();
    let began = std::time::Instant::now();
    let worker = s.worker(1);
    until("it ran", async || s.diary.count("x") == 1).await;
    let took = began.elapsed();
    assert!(took > std::time::Duration::from_millis(900), "they count as begun now: {took:?}");
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_high_rate_is_used_to_the_full_and_never_passed() {
    let s = Setup::new().await;
    let call = async |function: &'static str, args: &[&str]| -> voiceai_redis::Value {
        let args = args.iter().map(|a| voiceai_redis::Value::from(*a)).collect();
        s.client.redis().fcall(function, vec![s.key("").into()], args).await.unwrap()
    };
    s.client.enqueue_bulk((0..6_000).map(|i| Work::named(format!("{i}")).job()).collect()).await.unwrap();
    call("voiceai_v1_set", &["rate", "1000 1000"]).await;
    call("voiceai_v1_join", &["w", "60000", "{}", ""]).await;
    let mut starts: Vec<(i64, usize)> = Vec::new();
    let mut lot = 0;
    let first = loop {
        lot += 1;
        let reply = call("voiceai_v1_take", &["w", "60000", "20", &format!("w.{lot}"), "0", "0"]).await;
        let voiceai_redis::Value::Array(reply) = reply else { panic!("{reply:?}") };
        let voiceai_redis::Value::Array(ids) = &reply[6] else { panic!("{reply:?}") };
        starts.push((reply[2].as_i64().unwrap(), ids.len()));
        let first = starts[0].0;
        if starts.last().unwrap().0 - first >= 2_600 {
            break first;
        }
    };
    let until = |end: i64| starts.iter().filter(|(at, _)| at - first < end).map(|(_, n)| n).sum::<usize>();
    // 1,000 at once, then each as much later as it began, at most a 64th of the period late.
    assert!(until(2_600) >= 2_900, "{} in 2.6 s", until(2_600));
    for (at, _) in &starts {
        let window: usize = starts.iter().filter(|(t, _)| t >= at && t - at < 1_000).map(|(_, n)| n).sum();
        assert!(window <= 1_000, "{window} within a second");
    }
}
