//! Who is served when: priority, FIFO, tenants' turns, pick-up without polling, prefetch that starves nobody.

use std::time::Duration;

use super::{SOON, Setup, Work, check, settings, until};

#[tokio::test]
async fn higher_priority_first_and_first_in_first_out_among_equals() {
    let s = Setup::new().await;
    let mut jobs = Vec::new();
    for i in 0..30_u8 {
        jobs.push(
            Work::named(format!("{}-{i:02}", [0, 10, 5][usize::from(i % 3)]))
                .job()
                .priority([0, 10, 5][usize::from(i % 3)]),
        );
    }
    s.client.enqueue_bulk(jobs).await.unwrap();
    let worker = s.worker(1);
    s.wait_empty(SOON).await;
    let of = |p: u8| {
        (0..30_u8).filter(move |i| [0, 10, 5][usize::from(i % 3)] == p).map(move |i| format!("{p}-{i:02}"))
    };
    let expected: Vec<String> = of(10).chain(of(5)).chain(of(0)).collect();
    assert_eq!(s.diary.names(), expected);
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn tenants_of_one_priority_are_served_in_turn() {
    let s = Setup::new().await;
    // One tenant comes first with a thousand jobs; nine others with ten each.
    s.client
        .enqueue_bulk(
            (0..1_000).map(|_| Work { sleep_ms: 1, ..Work::named("big") }.job().tenant("big")).collect(),
        )
        .await
        .unwrap();
    let small =
        (0..90).map(|i| Work { sleep_ms: 1, ..Work::named("small") }.job().tenant(format!("t{}", i % 9)));
    s.client.enqueue_bulk(small.collect()).await.unwrap();
    let worker = s.worker(10);
    until("the small tenants are done", async || s.diary.count("small") == 90).await;
    let by_then = s.diary.count("big");
    assert!(by_then < 60, "{by_then} jobs of the big tenant ran before the small ones were done");
    s.client
        .purge(
            &s.queue,
            &voiceai_queue::Selection::State { state: voiceai_queue::State::Waiting, older_than: None },
            voiceai_queue::Ending::Discarded,
            "test over",
        )
        .await
        .unwrap();
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn limit_keys_make_no_tenant_more_than_one() {
    let s = Setup::new().await;
    let many = (0..400).map(|i| {
        let work = Work { sleep_ms: 1, ..Work::named("many") };
        work.job().tenant("many").key(format!("k{}", i % 100))
    });
    s.client.enqueue_bulk(many.collect()).await.unwrap();
    let one = (0..100).map(|_| Work { sleep_ms: 1, ..Work::named("one") }.job().tenant("one"));
    s.client.enqueue_bulk(one.collect()).await.unwrap();
    let worker = s.worker(10);
    until("the tenant with one lane is done", async || s.diary.count("one") == 100).await;
    let by_then = s.diary.count("many");
    assert!(by_then < 250, "{by_then} jobs of the tenant with a hundred keys ran before");
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn an_idle_worker_picks_up_at_once() {
    let s = Setup::new().await;
    let worker = s.worker(1);
    s.enqueue(&Work::named("warm")).await;
    until("warm", async || s.diary.count("warm") == 1).await;
    let mut waits = Vec::new();
    for i in 0..30 {
        // Idle again: nothing runs, the ear listens.
        s.wait_empty(SOON).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        let name = format!("{i}");
        let began = tokio::time::Instant::now();
        s.enqueue(&Work::named(&name)).await;
        until("it ran", async || s.diary.count(&name) == 1).await;
        waits.push(s.diary.runs().last().unwrap().at - began);
    }
    waits.sort();
    // The poll interval of this worker is 30 s: whatever is quick came by a wake-up.
    assert!(waits[15] < Duration::from_millis(50) && waits[29] < Duration::from_secs(1), "{waits:?}");
    worker.stop().await;
}

#[tokio::test]
async fn slow_jobs_spread_over_workers_instead_of_waiting_in_one() {
    let s = Setup::new().await;
    let first = s.worker_with(settings(&s.queue, 5));
    // Teach the first worker that jobs are quick, so that it would prefetch.
    s.client.enqueue_bulk((0..500).map(|_| Work::named("quick").job()).collect()).await.unwrap();
    s.wait_empty(SOON).await;
    let second = s.worker_with(settings(&s.queue, 5));
    until("both are there", async || s.stats().await.workers.len() == 2).await;
    let began = tokio::time::Instant::now();
    let slow = (0..20).map(|i| Work { sleep_ms: 300, ..Work::named(format!("slow{i}")) }.job());
    s.client.enqueue_bulk(slow.collect()).await.unwrap();
    until("all began", async || s.diary.names().iter().filter(|n| n.starts_with("slow")).count() == 20).await;
    // Ten slots, 300 ms each: the second ten begin after 300 ms, not after 600.
    let last = s.diary.runs().last().unwrap().at - began;
    assert!(last < Duration::from_millis(580), "the last of 20 slow jobs began after {last:?}");
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn concurrency_is_kept_per_worker_and_over_all_workers() {
    let s = Setup::new().await;
    let job = || Work { sleep_ms: 60, ..Work::named("x") }.job();
    s.client.enqueue_bulk((0..40).map(|_| job()).collect()).await.unwrap();
    let one = s.worker(8);
    s.wait_empty(SOON).await;
    assert_eq!(s.diary.most("*"), 8);
    // Now 4 over both workers.
    let limits = voiceai_queue::QueueLimits { concurrency: Some(Some(4)), ..Default::default() };
    s.client.set(&s.queue, &limits).await.unwrap();
    let other = Setup { diary: super::Diary::default(), ..Setup::on(&s.db.as_ref().unwrap().url).await };
    let two = super::Running::start(voiceai_queue::Worker::new(
        other.client.clone(),
        voiceai_queue::Registry::new().register::<Work>(other.diary.clone()),
        settings(&s.queue, 8),
    ));
    let before = s.diary.runs().len();
    s.client.enqueue_bulk((0..24).map(|_| job()).collect()).await.unwrap();
    let mut most = 0;
    until("all ran", async || {
        most = most.max(s.stats().await.active);
        s.diary.runs().len() - before + other.diary.runs().len() == 24
    })
    .await;
    assert!(most <= 4, "{most} ran at once");
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    one.stop().await;
    two.stop().await;
}
