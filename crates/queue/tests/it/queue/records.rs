//! Every end stands in the history, whoever decided it, and whatever dies or is away in between.

use std::time::Duration;

use voiceai_queue::{ChildPolicy, JobId, QueueLimits, State, UniqueMode};
use voiceai_redis::Value;

use super::{Setup, Work, check, until};

async fn call(s: &Setup, function: &'static str, args: &[&str]) -> Value {
    let args = args.iter().map(|a| Value::from(*a)).collect();
    s.client.redis().fcall(function, vec![s.key("").into()], args).await.unwrap()
}

async fn notes(s: &Setup) -> i64 {
    s.command("HLEN", &[&s.key("ends")]).await.as_i64().unwrap()
}

#[tokio::test]
async fn a_cancellation_whose_caller_died_is_recorded_by_a_worker() {
    let s = Setup::new().await;
    let payload = Work::named("with a\nline break");
    let id = s.enqueue(&payload).await;
    call(&s, "voiceai_v1_cancel", &["no longer wanted", &id]).await;
    assert!(s.records.of(&id).is_empty());
    let worker = s.worker(1);
    until("it is recorded", async || s.records.of(&id) == ["cancelled"]).await;
    let record = s.records.all().remove(0);
    assert_eq!(record.error.as_deref(), Some("no longer wanted"));
    assert_eq!(record.kind.as_ref(), "work");
    assert_eq!(record.payload.unwrap().get(), serde_json::to_string(&payload).unwrap());
    until("the note is gone", async || notes(&s).await == 0).await;
    worker.stop().await;
    assert_eq!(s.records.of(&id), ["cancelled"]);
}

#[tokio::test]
async fn ends_wait_in_redis_while_the_history_is_away() {
    let s = Setup::new().await;
    s.records.leave(true);
    let worker = s.worker(2);
    let running = s.enqueue(&Work { sleep_ms: 60_000, ..Work::named("running") }).await;
    s.wait_state(&running, State::Active).await;
    let waiting = s.client.enqueue(Work::named("x").job().delay(Duration::from_secs(900))).await.unwrap().id;
    let ids = [running.clone(), waiting.to_string()];
    s.client.cancel(&s.queue, &ids, "enough").await.unwrap();
    until("both ended", async || s.stats().await.cancelled == 2).await;
    assert_eq!(notes(&s).await, 2);
    worker.stop().await;
    assert!(s.records.all().is_empty(), "nothing was buffered in the process alone");

    s.records.leave(false);
    let worker = s.worker(2);
    until("both are recorded", async || s.records.all().len() == 2).await;
    for id in &ids {
        assert_eq!(s.records.of(id), ["cancelled"]);
    }
    let all = s.records.all();
    let ran = all.iter().find(|r| r.id.as_str() == running).unwrap();
    assert!(ran.started_at.is_some() && !ran.worker.is_empty() && ran.attempt == 1, "{ran:?}");
    until("the notes are gone", async || notes(&s).await == 0).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_poisonous_job_is_recorded_though_the_history_was_away_when_it_was_parked() {
    let s = Setup::new().await;
    let id = s.enqueue(&Work::named("x")).await;
    s.records.leave(true);
    s.command("HSET", &[&s.key("crashes"), &id, "2"]).await;
    call(&s, "voiceai_v1_join", &["dead", "1", "{}", ""]).await;
    call(&s, "voiceai_v1_take", &["dead", "1", "1", "dead.1", "16", "0"]).await;
    let worker = s.worker(1);
    s.wait_state(&id, State::Dead).await;
    assert!(s.records.of(&id).is_empty());
    s.records.leave(false);
    until("it is recorded", async || s.records.of(&id) == ["dead"]).await;
    let record = s.records.all().remove(0);
    assert_eq!(record.ending.dead_reason(), Some(voiceai_queue::DeadReason::Poison));
    assert!(record.error.unwrap().contains("its worker died 3 times"));
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_death_under_a_living_worker_waits_in_redis_while_the_history_is_away() {
    let s = Setup::new().await;
    s.records.leave(true);
    let worker = s.worker(1);
    let id = s.enqueue(&Work { discard: true, ..Work::named("x") }).await;
    let stranger = voiceai_queue::NewJob::json("nobody", &serde_json::json!({})).unwrap();
    let stranger = s.client.enqueue(stranger.queue(s.queue.clone())).await.unwrap().id;
    s.wait_state(&id, State::Dead).await;
    s.wait_state(stranger.as_str(), State::Dead).await;
    worker.stop().await;
    assert!(s.records.all().is_empty(), "nothing was buffered in the process alone");
    assert_eq!(notes(&s).await, 2);
    s.records.leave(false);
    let worker = s.worker(1);
    until("both are recorded", async || s.records.all().len() == 2).await;
    assert_eq!((s.records.of(&id), s.records.of(stranger.as_str())), (vec!["dead"], vec!["dead"]));
    let all = s.records.all();
    let discarded = all.iter().find(|r| r.id.as_str() == id).unwrap();
    assert_eq!(discarded.ending.dead_reason(), Some(voiceai_queue::DeadReason::DiscardedByHandler));
    assert!(
        discarded.started_at.is_some() && discarded.error.is_some(),
        "the worker's own record: {discarded:?}"
    );
    until("the notes are gone", async || notes(&s).await == 0).await;
    assert_eq!(s.stats().await.dead, 2);
    worker.stop().await;
}

#[tokio::test]
async fn jobs_that_a_submit_or_an_add_replaces_are_recorded() {
    let s = Setup::new().await;
    let options = r#"{"unique":"u","unique_mode":"replace","delay_ms":600000}"#;
    for id in ["first", "second"] {
        call(&s, "voiceai_v1_submit", &[id, "work", "{}", options]).await;
    }
    let third =
        Work::named("third").job().unique("u", UniqueMode::Replace).id(JobId::chosen("third").unwrap());
    s.client.enqueue(third).await.unwrap();
    // The client's own at once; the other language's by a worker.
    assert_eq!(s.records.of("second"), ["cancelled"]);
    assert_eq!(s.records.all()[0].error.as_deref(), Some("replaced by third"));
    let worker = s.worker(1);
    until("the first is recorded", async || s.records.of("first") == ["cancelled"]).await;
    assert_eq!((s.stats().await.cancelled, s.records.of("second").len()), (2, 1));
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_parent_that_fails_with_its_child_is_recorded() {
    let s = Setup::new().await;
    let parent = Work::named("p").job().id(JobId::chosen("p").unwrap());
    let child = Work { discard: true, ..Work::named("c") }.job().id(JobId::chosen("c").unwrap());
    s.client.add_flow(parent, vec![child], ChildPolicy::Fail).await.unwrap();
    let worker = s.worker(1);
    s.wait_state("p", State::Dead).await;
    until("it is recorded", async || s.records.of("p") == ["dead"]).await;
    let record = s.records.all().into_iter().find(|r| r.id.as_str() == "p").unwrap();
    assert_eq!(record.error.as_deref(), Some("child c ended as dead"));
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn retention_removes_no_dead_job_that_the_history_would_not_see() {
    let s = Setup::new().await;
    let worker = s.worker(1);
    let id = s.enqueue(&Work { discard: true, ..Work::named("x") }).await;
    s.wait_state(&id, State::Dead).await;
    worker.stop().await;
    let limits = QueueLimits { keep_dead: Some(Some(Duration::from_millis(1))), ..QueueLimits::default() };
    s.client.set(&s.queue, &limits).await.unwrap();
    // As many notes wait as retention is content with.
    let many: Vec<String> = (0..10_000).flat_map(|i| [format!("n{i}"), "other\n".into()]).collect();
    let args: Vec<&str> =
        std::iter::once(s.key("ends")).chain(many).map(|a| &*Box::leak(a.into_boxed_str())).collect();
    s.command("HSET", &args).await;
    call(&s, "voiceai_v1_tend", &["0", "0", "0", "0", "0"]).await;
    assert_eq!(s.state(&id).await, Some(State::Dead), "it stays while the history does not keep up");
    s.command("DEL", &[&s.key("ends")]).await;
    call(&s, "voiceai_v1_tend", &["0", "0", "0", "0", "0"]).await;
    assert_eq!((s.state(&id).await, notes(&s).await), (None, 1));
    let worker = s.worker(1);
    until("it is recorded", async || s.records.of(&id).contains(&"removed")).await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn however_many_notes_are_left_over_they_are_all_written() {
    let s = Setup::new().await;
    let jobs = (0..6_000).map(|i| Work::named(format!("{i}")).job().delay(Duration::from_secs(9_000)));
    let added = s.client.enqueue_bulk(jobs.collect()).await.unwrap();
    for part in added.chunks(1_000) {
        let mut args = vec!["nobody writes it down"];
        args.extend(part.iter().map(|added| added.id.as_str()));
        call(&s, "voiceai_v1_cancel", &args).await;
    }
    assert_eq!(notes(&s).await, 6_000);
    let worker = s.worker(1);
    voiceai_testkit::wait_until(Duration::from_secs(40), "the notes are gone", async || notes(&s).await == 0)
        .await;
    worker.stop().await;
    assert_eq!(s.records.all().len(), 6_000);
}
