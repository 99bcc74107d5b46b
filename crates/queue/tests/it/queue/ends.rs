//! How attempts end: done, failed, parked, snoozed, timed out, without handler, unreadable.

use std::time::Duration;

use voiceai_queue::{DeadReason, NewJob, Registry, State, Worker};

use super::{Running, SOON, Setup, Work, check, invariant, settings, until};

#[tokio::test]
async fn a_job_runs_once_and_leaves_nothing_behind() {
    let s = Setup::new().await;
    let worker = s.worker(4);
    let ids: Vec<String> = futures_util::future::join_all(
        (0..50)
            .map(|i| async move { i })
            .map(|i| async { s.enqueue(&Work::named(format!("n{}", i.await))).await }),
    )
    .await;
    s.wait_empty(SOON).await;
    let mut names = s.diary.names();
    names.sort();
    names.dedup();
    assert_eq!((names.len(), s.diary.runs().len()), (50, 50));
    until("all are recorded", async || s.records.all().len() == 50).await;
    assert_eq!(s.records.of(&ids[7]), ["completed"]);
    check(&s.client, &s.queue).await;
    worker.stop().await;
    check(&s.client, &s.queue).await;
    let stats = s.stats().await;
    assert_eq!((stats.completed, stats.accepted, stats.workers.len()), (50, 50, 0));
    // What stays is bookkeeping, none of it per job.
    for key in invariant::keys(&s.client).await {
        let short = key.rsplit(':').next().unwrap().to_owned();
        assert!(
            ["active", "n", "pulse", "producers", "queues", "wake", "gone"].contains(&short.as_str()),
            "left behind: {key}"
        );
    }
}

#[tokio::test]
async fn a_failed_attempt_is_retried_by_policy_and_then_parked_with_its_story() {
    let s = Setup::new().await;
    let worker = s.worker(2);
    let heals = s.enqueue(&Work { fail_times: 2, ..Work::named("heals") }).await;
    let never = s.enqueue(&Work { fail_times: 9, ..Work::named("never") }).await;
    s.wait_state(&never, State::Dead).await;
    until("the other completes", async || s.records.of(&heals).last() == Some(&"completed")).await;
    assert_eq!(s.diary.count("heals"), 3);
    assert_eq!(s.diary.count("never"), 3, "attempts are limited by the policy");
    let attempts: Vec<u32> = s.diary.runs().iter().filter(|r| r.name == "never").map(|r| r.attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
    let view = s.client.show(&s.queue, &never).await.unwrap().unwrap();
    assert_eq!(view.dead_reason, Some(DeadReason::Exhausted));
    assert_eq!((view.attempts, view.error.as_deref()), (3, Some("told to fail attempt 3")));
    assert_eq!(s.records.of(&never), ["failed", "failed", "dead"]);
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_discarding_a_panicking_and_a_hanging_handler_cost_only_their_own_job() {
    let s = Setup::new().await;
    let worker = s.worker(4);
    let discards = s.enqueue(&Work { discard: true, ..Work::named("discards") }).await;
    let panics = s.enqueue(&Work { panic: true, ..Work::named("panics") }).await;
    let hangs = s.enqueue(&Work { hang: true, ..Work::named("hangs") }).await;
    let fine = s.enqueue(&Work::named("fine")).await;
    s.wait_state(&discards, State::Dead).await;
    s.wait_state(&panics, State::Dead).await;
    until("the good one is done", async || s.records.of(&fine) == ["completed"]).await;
    let reason = async |id: &str| s.client.show(&s.queue, id).await.unwrap().unwrap();
    let view = reason(&discards).await;
    assert_eq!(view.dead_reason, Some(DeadReason::DiscardedByHandler));
    assert_eq!((view.attempts, view.error.as_deref()), (1, Some("no such user")));
    let view = reason(&panics).await;
    assert_eq!(view.dead_reason, Some(DeadReason::Exhausted));
    assert!(view.error.unwrap().contains("told to panic"));
    // It ignores its token, so its future is dropped after the grace; that counts as a failed attempt.
    until("the hanging one failed once", async || s.records.of(&hangs).contains(&"failed")).await;
    let view = reason(&hangs).await;
    assert!(view.error.unwrap().contains("took longer than 2s"));
    s.client.cancel(&s.queue, &[hangs], "test").await.unwrap();
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_snooze_spends_no_attempt() {
    let s = Setup::new().await;
    let worker = s.worker(1);
    let id = s.enqueue(&Work { snooze_ms: 300, ..Work::named("z") }).await;
    s.wait_state(&id, State::Delayed).await;
    check(&s.client, &s.queue).await;
    until("it ran again", async || s.diary.count("z") == 2).await;
    let runs = s.diary.runs();
    assert_eq!((runs[0].attempt, runs[1].attempt), (1, 1));
    let waited = runs[1].at - runs[0].at;
    assert!(waited >= Duration::from_millis(295) && waited < Duration::from_millis(1_500), "{waited:?}");
    worker.stop().await;
}

#[tokio::test]
async fn a_result_is_kept_and_an_absurd_one_is_dropped_but_the_job_is_done() {
    let s = Setup::new().await;
    let worker = s.worker(2);
    let small =
        s.enqueue(&Work { result: Some(serde_json::json!({"sum": 42})), ..Work::named("small") }).await;
    let large = Work { result: Some("huge".into()), ..Work::named("large") };
    let large = s.enqueue(&large).await;
    s.wait_state(&small, State::Completed).await;
    let view = s.client.show(&s.queue, &small).await.unwrap().unwrap();
    assert_eq!(view.result, Some(serde_json::json!({"sum": 42})));
    until("the large one is done", async || s.records.of(&large) == ["completed"]).await;
    assert_eq!(s.stats().await.dead, 0);
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn an_unknown_kind_is_parked_and_taken_back_by_a_worker_that_knows_it() {
    let s = Setup::new().await;
    let without = Running::start(Worker::new(s.client.clone(), Registry::new(), settings(&s.queue, 1)));
    let id = s.enqueue(&Work::named("orphan")).await;
    s.wait_state(&id, State::Dead).await;
    let view = s.client.show(&s.queue, &id).await.unwrap().unwrap();
    assert_eq!(view.dead_reason, Some(DeadReason::NoHandler));
    assert_eq!(s.records.of(&id), ["dead"]);
    check(&s.client, &s.queue).await;
    without.stop().await;
    let with = s.worker(1);
    until("it ran", async || s.diary.count("orphan") == 1).await;
    s.wait_empty(SOON).await;
    let stats = s.stats().await;
    assert_eq!((stats.dead, stats.counters["reclaimed"]), (0, 1));
    check(&s.client, &s.queue).await;
    with.stop().await;
}

#[tokio::test]
async fn a_payload_that_does_not_parse_and_a_foreign_envelope_are_parked_as_bad() {
    let s = Setup::new().await;
    let job = NewJob::json("work", &serde_json::json!({"name": 7})).unwrap();
    let id = s.client.enqueue(job).await.unwrap().id.to_string();
    // Somebody wrote into Redis by hand.
    s.command("HSET", &[&s.key("jobs"), "torn", "no envelope at all"]).await;
    s.command("LPUSH", &[&s.key("lane:0||"), "torn"]).await;
    s.command("HINCRBY", &[&s.key("n"), "accepted", "1"]).await;
    let worker = s.worker(2);
    for id in [id.as_str(), "torn"] {
        s.wait_state(id, State::Dead).await;
        let view = s.client.show(&s.queue, id).await.unwrap().unwrap();
        assert_eq!(view.dead_reason, Some(DeadReason::BadPayload), "{id}");
    }
    assert!(s.diary.runs().is_empty());
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_job_whose_envelope_is_gone_is_counted_out_and_holds_up_nobody() {
    let s = Setup::new().await;
    let mut ids = Vec::new();
    // More than come with their envelopes: the rest are read apart.
    for i in 0..40 {
        ids.push(s.enqueue(&Work::named(format!("{i}"))).await);
    }
    s.command("HDEL", &[&s.key("jobs"), &ids[7], &ids[30]]).await;
    let worker = s.worker(50);
    s.wait_empty(SOON).await;
    until("the others ran", async || s.diary.runs().len() == 38).await;
    let stats = s.stats().await;
    assert_eq!((stats.completed, stats.active, stats.counters["removed"]), (38, 0, 2));
    check(&s.client, &s.queue).await;
    worker.stop().await;
}
