//! What operators do: pause, drain, cancel, replay, discard, purge, clean, limits, look.

use std::time::Duration;

use voiceai_queue::{
    CancelOutcome, Ending, ListFilter, QueueError, QueueLimits, Quiet, ReplayOutcome, Selection, State,
    WhyNot,
};
use voiceai_redis::Value;

use super::{SOON, Setup, Work, check, until};

#[tokio::test]
async fn pause_stops_the_hand_out_and_resume_acts_at_once() {
    let s = Setup::new().await;
    let worker = s.worker(2);
    s.client.pause(&s.queue).await.unwrap();
    let id = s.enqueue(&Work::named("x")).await;
    let view = s.client.show(&s.queue, &id).await.unwrap().unwrap();
    assert_eq!(view.why_not.first(), Some(&WhyNot::Paused));
    until("the worker saw the pause", async || s.stats().await.paused).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(s.diary.runs().is_empty(), "nothing runs while paused");
    s.client.resume(&s.queue).await.unwrap();
    until("it runs", async || s.diary.count("x") == 1).await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn draining_and_paused_producers_refuse_with_a_reason() {
    let s = Setup::new().await;
    s.enqueue(&Work::named("before")).await;
    s.client.drain(&s.queue).await.unwrap();
    let refused = s.client.enqueue(Work::named("x").job()).await.unwrap_err();
    assert!(matches!(refused, QueueError::Draining { .. }) && refused.is_unavailable(), "{refused}");
    let worker = s.worker(2);
    s.wait_empty(SOON).await;
    s.client.resume_only(&s.queue, Quiet::Draining).await.unwrap();
    s.client.pause_producers(&s.queue).await.unwrap();
    let refused = s.client.enqueue(Work::named("x").job().delay(SOON)).await.unwrap_err();
    assert!(matches!(refused, QueueError::ProducersPaused { .. }), "{refused}");
    s.client.resume(&s.queue).await.unwrap();
    s.enqueue(&Work::named("after")).await;
    until("it ran", async || s.diary.count("after") == 1).await;
    worker.stop().await;
}

#[tokio::test]
async fn cancel_reaches_waiting_delayed_and_running_jobs() {
    let s = Setup::new().await;
    let delayed = s.client.enqueue(Work::named("delayed").job().delay(SOON)).await.unwrap().id.to_string();
    let worker = s.worker(1);
    let running = s.enqueue(&Work { sleep_ms: 60_000, ..Work::named("running") }).await;
    s.wait_state(&running, State::Active).await;
    let waiting = s.enqueue(&Work::named("waiting")).await;
    let ids = vec![delayed.clone(), waiting.clone(), running.clone(), "nobody".into()];
    let outcomes = s.client.cancel(&s.queue, &ids, "typo").await.unwrap();
    use CancelOutcome as C;
    assert_eq!(outcomes, [C::Cancelled, C::Cancelled, C::Asked, C::Absent]);
    until("the running one ended", async || s.records.of(&running) == ["cancelled"]).await;
    assert!(s.diary.runs()[0].stopped);
    s.wait_empty(SOON).await;
    let stats = s.stats().await;
    assert_eq!((stats.cancelled, stats.completed, s.diary.runs().len()), (3, 0, 1));
    assert_eq!(s.records.of(&waiting), ["cancelled"]);
    check(&s.client, &s.queue).await;
    // The place in the lane that the cancelled one left is passed over.
    s.enqueue(&Work::named("next")).await;
    until("it ran", async || s.diary.count("next") == 1).await;
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn replay_starts_attempts_anew_and_keeps_the_lineage() {
    let s = Setup::new().await;
    let worker = s.worker(1);
    let id = s.enqueue(&Work { fail_times: 9, ..Work::named("x") }).await;
    s.wait_state(&id, State::Dead).await;
    let outcomes = s.client.replay(&s.queue, &[id.clone(), "nobody".into()], "fixed").await.unwrap();
    assert_eq!(outcomes, [ReplayOutcome::Replayed, ReplayOutcome::NotDead]);
    until("it failed three times more", async || s.diary.count("x") == 6).await;
    s.wait_state(&id, State::Dead).await;
    let view = s.client.show(&s.queue, &id).await.unwrap().unwrap();
    assert_eq!((view.attempts, view.replays), (3, 1));
    let records = s.records.of(&id);
    assert_eq!(records, ["failed", "failed", "dead", "replayed", "failed", "failed", "dead"]);
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_list_says_of_a_job_what_show_says() {
    let s = Setup::new().await;
    let worker = s.worker(1);
    let id = s.enqueue(&Work { sleep_ms: 60_000, ..Work::named("slow") }).await;
    s.wait_state(&id, State::Active).await;
    for (hash, text) in [("crashes", "2"), ("progress", "half way"), ("cancel", "typo")] {
        let args = vec![s.key(hash), id.clone(), text.to_owned()];
        let _: Value = s.client.redis().command("HSET", args).await.unwrap();
    }
    let shown = s.client.show(&s.queue, &id).await.unwrap().unwrap();
    let listed = s.client.list(&s.queue, &ListFilter::of(State::Active)).await.unwrap().jobs.remove(0);
    assert_eq!((listed.crashes, listed.progress.as_deref()), (2, Some("half way")));
    assert_eq!((&listed.worker, &listed.cancel_asked), (&shown.worker, &shown.cancel_asked));
    assert!(listed.worker.unwrap().ends_with(&format!("/{}", std::process::id())));
    until("the cancelled one ended", async || s.stats().await.active == 0).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_clean_up_finds_old_jobs_behind_a_great_many_lanes() {
    let s = Setup::new().await;
    let young = (0..2_300).map(|i| Work::named("young").job().tenant(format!("a{i}")));
    s.client.enqueue_bulk(young.collect()).await.unwrap();
    let envelope = "0|zz|\nwork\n1 m=0\n{}";
    let args = ["1", "old", "0|zz|", "0", envelope].iter().map(|arg| Value::from(*arg)).collect();
    let _: Value = s.client.redis().fcall("voiceai_v1_add", vec![s.key("").into()], args).await.unwrap();
    let old = Selection::State { state: State::Waiting, older_than: Some(Duration::from_secs(3_600)) };
    assert_eq!(s.client.purge(&s.queue, &old, Ending::Removed, "clean").await.unwrap(), 1);
    assert_eq!(s.records.of("old"), ["removed"]);
    let all = Selection::State { state: State::Waiting, older_than: None };
    assert_eq!(s.client.purge(&s.queue, &all, Ending::Discarded, "purge").await.unwrap(), 2_300);
    check(&s.client, &s.queue).await;
}

#[tokio::test]
async fn discard_purge_and_clean_remove_with_a_record() {
    let s = Setup::new().await;
    let kept = s.client.enqueue(Work::named("kept").job().delay(SOON)).await.unwrap().id.to_string();
    let mut ids = Vec::new();
    for i in 0..450 {
        ids.push(Work::named(format!("{i}")).job().tenant(format!("t{}", i % 5)));
    }
    s.client.enqueue_bulk(ids).await.unwrap();
    let waiting = s.client.list(&s.queue, &ListFilter::of(State::Waiting)).await.unwrap();
    let one = waiting.jobs[3].id.to_string();
    assert_eq!(s.client.discard(&s.queue, &[one.clone(), "nobody".into()], "wrong").await.unwrap(), 1);
    check(&s.client, &s.queue).await;
    let all = Selection::State { state: State::Waiting, older_than: Some(Duration::from_secs(3_600)) };
    assert_eq!(
        s.client.purge(&s.queue, &all, Ending::Removed, "clean").await.unwrap(),
        0,
        "none is that old"
    );
    let all = Selection::State { state: State::Waiting, older_than: None };
    assert_eq!(s.client.purge(&s.queue, &all, Ending::Discarded, "purge").await.unwrap(), 449);
    check(&s.client, &s.queue).await;
    let stats = s.stats().await;
    assert_eq!((stats.waiting, stats.delayed, stats.discarded), (0, 1, 450));
    assert_eq!(s.records.all().len(), 450);
    assert_eq!(s.records.of(&one), ["discarded"]);
    let record = s.records.all().pop().unwrap();
    assert!(record.payload.is_some() && record.error.as_deref() == Some("purge"));
    assert_eq!(s.state(&kept).await, Some(State::Delayed));
}

#[tokio::test]
async fn dead_jobs_are_listed_by_filter_and_page() {
    let s = Setup::new().await;
    let worker = s.worker(4);
    for i in 0..7 {
        let job = Work { discard: true, ..Work::named(format!("{i}")) }.job().tenant(if i % 2 == 0 {
            "even"
        } else {
            "odd"
        });
        s.client.enqueue(job).await.unwrap();
    }
    until("all are dead", async || s.stats().await.dead == 7).await;
    let filter = ListFilter { tenant: Some("even".into()), limit: 3, ..ListFilter::of(State::Dead) };
    let page = s.client.list(&s.queue, &filter).await.unwrap();
    assert_eq!(page.jobs.len(), 3);
    let rest = s.client.list(&s.queue, &ListFilter { cursor: page.next, ..filter }).await.unwrap();
    assert_eq!((rest.jobs.len(), rest.next), (1, None));
    let by_error =
        |text: &str| ListFilter { error_contains: Some(text.into()), ..ListFilter::of(State::Dead) };
    assert_eq!(s.client.list(&s.queue, &by_error("no such user")).await.unwrap().jobs.len(), 7);
    assert!(s.client.list(&s.queue, &by_error("timeout")).await.unwrap().jobs.is_empty());
    worker.stop().await;
}

#[tokio::test]
async fn stored_concurrency_overrides_the_workers_own_at_once() {
    let s = Setup::new().await;
    let worker = s.worker(2);
    s.enqueue(&Work::named("warm")).await;
    until("warm", async || s.diary.count("warm") == 1).await;
    let limits = QueueLimits { worker_concurrency: Some(Some(6)), ..Default::default() };
    s.client.set(&s.queue, &limits).await.unwrap();
    let slow = (0..18).map(|_| Work { sleep_ms: 150, ..Work::named("slow") }.job());
    s.client.enqueue_bulk(slow.collect()).await.unwrap();
    s.wait_empty(SOON).await;
    assert_eq!(s.diary.most("*"), 6);
    s.client
        .set(&s.queue, &QueueLimits { worker_concurrency: Some(None), ..Default::default() })
        .await
        .unwrap();
    assert!(!s.stats().await.settings.contains_key("worker_concurrency"));
    worker.stop().await;
}

#[tokio::test]
async fn retention_bounds_results_and_dead_jobs() {
    let s = Setup::new().await;
    let worker = s.worker(4);
    for i in 0..6 {
        s.enqueue(&Work { result: Some(i.into()), ..Work::named("ok") }).await;
        s.enqueue(&Work { discard: true, ..Work::named("bad") }).await;
    }
    s.wait_empty(SOON).await;
    let limits = QueueLimits {
        keep_completed_count: Some(Some(2)),
        keep_dead_count: Some(Some(3)),
        ..Default::default()
    };
    s.client.set(&s.queue, &limits).await.unwrap();
    // Due at once instead of in half a minute.
    s.command("HSET", &[&s.key("pulse"), "tend_at", "0"]).await;
    until("the bounds hold", async || {
        let results: u64 = s.command("ZCARD", &[&s.key("results")]).await.convert().unwrap();
        (results, s.stats().await.dead) == (2, 3)
    })
    .await;
    assert_eq!(s.stats().await.removed, 3);
    until("removals are recorded", async || {
        s.records.all().iter().filter(|r| r.ending == Ending::Removed).count() == 3
    })
    .await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn show_says_why_a_job_does_not_run() {
    let s = Setup::new().await;
    s.client.enqueue_bulk((0..5).map(|i| Work::named(format!("{i}")).job()).collect()).await.unwrap();
    let last = s.client.enqueue(Work::named("last").job()).await.unwrap().id.to_string();
    s.client.enqueue_bulk((0..3).map(|_| Work::named("vip").job().priority(9)).collect()).await.unwrap();
    let view = s.client.show(&s.queue, &last).await.unwrap().unwrap();
    assert!(view.why_not.contains(&WhyNot::NoWorker), "{:?}", view.why_not);
    assert!(view.why_not.contains(&WhyNot::Behind { jobs: 8, or_more: false }), "{:?}", view.why_not);
    assert_eq!(s.client.find(&last).await.unwrap().unwrap().queue, s.queue);
    assert!(s.client.find("nobody").await.unwrap().is_none());
    let stats = s.stats().await;
    assert!(stats.oldest_waiting_ms.is_some() && stats.saturation.is_none());
}

#[tokio::test]
async fn jobs_behind_a_mass_cancellation_are_reached_at_once() {
    let s = Setup::new().await;
    let jobs = (0..1_000).map(|_| Work::named("cancelled").job()).collect();
    let added = s.client.enqueue_bulk(jobs).await.unwrap();
    s.enqueue(&Work::named("behind")).await;
    let ids: Vec<String> = added.into_iter().map(|a| a.id.to_string()).collect();
    s.client.cancel(&s.queue, &ids, "all of them").await.unwrap();
    let began = std::time::Instant::now();
    let worker = s.worker(1);
    until("it ran", async || s.diary.count("behind") == 1).await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_cancellation_that_was_asked_for_ends_a_job_that_would_have_come_back() {
    let s = Setup::new().await;
    let token =
        async |id: &str| -> String { s.command("HGET", &[&s.key("active"), id]).await.convert().unwrap() };
    let worker = s.worker(8);
    let verbs = [("back", ""), ("retry", "0"), ("snooze", "0")];
    for (verb, delay) in verbs {
        let unique = Work { sleep_ms: 60_000, ..Work::named(verb) }.job();
        let unique = unique.unique(verb, voiceai_queue::UniqueMode::Reject);
        let id = s.client.enqueue(unique).await.unwrap().id.to_string();
        s.wait_state(&id, State::Active).await;
        let token = token(&id).await;
        // Asked for, but the worker has not heard of it when the attempt ends.
        let args =
            [id.as_str(), &token, verb, delay, ""].iter().map(|a| voiceai_redis::Value::from(*a)).collect();
        s.command("HSET", &[&s.key("cancel"), &id, "enough"]).await;
        let row: Vec<voiceai_redis::Value> =
            s.client.redis().fcall("voiceai_v1_settle", vec![s.key("").into()], args).await.unwrap();
        // It is told the number of the end and the envelope, unless the worker was quicker.
        if let Value::Array(end) = &row[0] {
            assert!(end[0].as_i64().is_some(), "{verb}: {row:?}");
            assert!(end[1].as_string().unwrap().contains("\nwork\n"), "{verb}: {row:?}");
        } else {
            assert_eq!(row[0].as_i64(), Some(0), "{verb}: {row:?}");
        }
        until("it is gone", async || s.state(&id).await.is_none()).await;
    }
    s.wait_empty(SOON).await;
    let stats = s.stats().await;
    assert_eq!((stats.cancelled, stats.completed, stats.counters.get("failed")), (3, 0, None));
    assert_eq!(s.command("EXISTS", &[&s.key("cancel"), &s.key("unique")]).await.as_i64(), Some(0));
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn retention_keeps_up_with_what_a_busy_queue_leaves() {
    let s = Setup::new().await;
    for part in 0..10 {
        let (mut finished, mut jobs) = (vec![s.key("finished")], vec![s.key("jobs")]);
        let mut producers = vec![s.key("producers")];
        for i in 0..1_000 {
            finished.extend(["1".to_owned(), format!("{part}-{i}")]);
            jobs.extend([format!("{part}-{i}"), String::new()]);
            producers.extend([format!("{part}-{i}"), "1 1".to_owned()]);
        }
        for (name, args) in [("ZADD", finished), ("HSET", jobs), ("HSET", producers)] {
            s.command(name, &args.iter().map(String::as_str).collect::<Vec<_>>()).await;
        }
    }
    let worker = s.worker(1);
    until("all that is over is removed", async || {
        let finished = s.command("ZCARD", &[&s.key("finished")]).await.as_i64();
        let producers = s.command("HLEN", &[&s.key("producers")]).await.as_i64();
        (finished, producers) == (Some(0), Some(0))
    })
    .await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn nothing_is_removed_that_could_not_be_written_down() {
    let s = Setup::new().await;
    let redis = s.client.redis().clone();
    let broken = voiceai_queue::Client::with_history(redis, std::sync::Arc::new(NoPaper)).await.unwrap();
    let id = s.enqueue(&Work::named("x")).await;
    let error = broken.discard(&s.queue, std::slice::from_ref(&id), "wrong").await.unwrap_err();
    assert!(matches!(error, QueueError::History { .. }), "{error}");
    let all = Selection::State { state: State::Waiting, older_than: None };
    assert!(broken.purge(&s.queue, &all, Ending::Removed, "clean").await.is_err());
    assert_eq!(s.state(&id).await, Some(State::Waiting));
    check(&s.client, &s.queue).await;
}

/// A history that cannot be written.
struct NoPaper;

impl voiceai_queue::HistorySink for NoPaper {
    fn record(&self, _record: voiceai_queue::FinishedJob) {}

    fn record_now(
        &self,
        records: Vec<voiceai_queue::FinishedJob>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), voiceai_queue::HistoryError>> + Send + '_>> {
        let error =
            voiceai_queue::HistoryError { records: records.len(), reason: "no paper".into(), refused: false };
        Box::pin(std::future::ready(Err(error)))
    }
}

#[tokio::test]
async fn a_clean_up_looks_at_every_delayed_job_and_passes_over_the_young() {
    let s = Setup::new().await;
    let hour = Duration::from_secs(3_600);
    let young = (0..450).map(|i| Work::named(format!("{i}")).job().delay(hour)).collect();
    s.client.enqueue_bulk(young).await.unwrap();
    // Due last and enqueued long ago.
    for i in 0..3 {
        let args = vec![
            "1".into(),
            format!("old{i}").into(),
            "0||".into(),
            "+9000000".into(),
            "0||\nwork\n1\n{}".into(),
        ];
        let keys = vec![s.key("").into()];
        s.client.redis().fcall::<voiceai_redis::Value>("voiceai_v1_add", keys, args).await.unwrap();
    }
    let old = Selection::State { state: State::Delayed, older_than: Some(hour) };
    assert_eq!(s.client.purge(&s.queue, &old, Ending::Removed, "clean").await.unwrap(), 3);
    assert_eq!((s.records.of("old2"), s.stats().await.delayed), (vec!["removed"], 450));
    check(&s.client, &s.queue).await;
}

#[tokio::test]
async fn a_purge_reaches_behind_cancelled_jobs() {
    let s = Setup::new().await;
    let jobs = (0..1_000).map(|i| Work::named(format!("{i}")).job()).collect();
    let added = s.client.enqueue_bulk(jobs).await.unwrap();
    let ids: Vec<String> = added.iter().skip(1).take(700).map(|a| a.id.to_string()).collect();
    s.client.cancel(&s.queue, &ids, "no").await.unwrap();
    let all = Selection::State { state: State::Waiting, older_than: None };
    assert_eq!(s.client.purge(&s.queue, &all, Ending::Discarded, "purge").await.unwrap(), 300);
    let stats = s.stats().await;
    assert_eq!((stats.waiting, stats.discarded, stats.cancelled), (0, 300, 700));
    check(&s.client, &s.queue).await;
}

#[tokio::test]
async fn a_cancellation_that_meets_a_failing_attempt_is_recorded_as_one() {
    let s = Setup::new().await;
    let worker = s.worker(1);
    until("the first tending is over", async || {
        s.command("HEXISTS", &[&s.key("pulse"), "tend_at"]).await.as_i64() == Some(1)
    })
    .await;
    s.enqueue(&Work::named("warm")).await;
    until("warm", async || s.diary.count("warm") == 1).await;
    // As when the request comes too late for the handler, and before its failure is settled.
    s.command("HSET", &[&s.key("cancel"), "late", "enough"]).await;
    let job =
        Work { fail_times: 9, ..Work::named("x") }.job().id(voiceai_queue::JobId::chosen("late").unwrap());
    s.client.enqueue(job).await.unwrap();
    until("it is recorded", async || s.records.of("late") == ["cancelled"]).await;
    s.wait_empty(SOON).await;
    assert_eq!((s.diary.count("x"), s.state("late").await), (1, None));
    assert_eq!(s.records.of("late"), ["cancelled"]);
    check(&s.client, &s.queue).await;
    worker.stop().await;
}
