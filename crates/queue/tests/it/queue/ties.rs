//! Jobs that are tied to others: unique keys, parents and children.

use std::time::Duration;

use voiceai_queue::{AddOutcome, ChildPolicy, DeadReason, JobId, NewJob, State, UniqueMode, WhyNot};

use super::{SOON, Setup, Work, check, until};

async fn add(s: &Setup, work: &Work, mode: UniqueMode) -> (String, AddOutcome) {
    let added = s.client.enqueue(work.job().unique("user 1", mode)).await.unwrap();
    (added.id.to_string(), added.outcome)
}

#[tokio::test]
async fn reject_refuses_while_the_holder_lives_and_only_the_holder_frees_the_key() {
    let s = Setup::new().await;
    let (first, outcome) = add(&s, &Work { sleep_ms: 200, ..Work::named("a") }, UniqueMode::Reject).await;
    assert_eq!(outcome, AddOutcome::Accepted);
    let held = add(&s, &Work::named("b"), UniqueMode::Reject).await;
    assert_eq!(held, (first.clone(), AddOutcome::Duplicate));
    let worker = s.worker(2);
    s.wait_state(&first, State::Active).await;
    assert_eq!(add(&s, &Work::named("b"), UniqueMode::Reject).await.1, AddOutcome::Duplicate);
    s.wait_empty(SOON).await;
    assert_eq!(add(&s, &Work::named("c"), UniqueMode::Reject).await.1, AddOutcome::Accepted);
    s.wait_empty(SOON).await;
    assert_eq!(s.diary.names(), ["a", "c"]);
    // A death frees the key too, and so does a cancellation.
    let (dies, _) = add(&s, &Work { discard: true, ..Work::named("d") }, UniqueMode::Reject).await;
    s.wait_state(&dies, State::Dead).await;
    s.client.pause(&s.queue).await.unwrap();
    let (waits, outcome) = add(&s, &Work::named("e"), UniqueMode::Reject).await;
    assert_eq!(outcome, AddOutcome::Accepted);
    // The dead one cannot come back while the newer one holds the key.
    let replay = s.client.replay(&s.queue, &[dies], "again").await.unwrap();
    let holder = JobId::chosen(&waits).unwrap();
    assert_eq!(replay, [voiceai_queue::ReplayOutcome::UniqueHeld { holder }]);
    s.client.cancel(&s.queue, &[waits], "no").await.unwrap();
    assert_eq!(add(&s, &Work::named("f"), UniqueMode::Reject).await.1, AddOutcome::Accepted);
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn throttle_accepts_one_per_period_whatever_became_of_it() {
    let s = Setup::new().await;
    let worker = s.worker(2);
    let mode = UniqueMode::Throttle(Duration::from_millis(600));
    let (first, _) = add(&s, &Work::named("a"), mode).await;
    s.wait_empty(SOON).await;
    assert_eq!(add(&s, &Work::named("b"), mode).await, (first, AddOutcome::Duplicate));
    until("the period is over", async || add(&s, &Work::named("c"), mode).await.1 == AddOutcome::Accepted)
        .await;
    s.wait_empty(SOON).await;
    assert_eq!(s.diary.names(), ["a", "c"]);
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn replace_leaves_only_the_newest_of_those_that_wait() {
    let s = Setup::new().await;
    for name in ["a", "b", "c"] {
        assert_eq!(add(&s, &Work::named(name), UniqueMode::Replace).await.1, AddOutcome::Accepted);
    }
    let delayed =
        Work::named("d").job().unique("user 1", UniqueMode::Replace).delay(Duration::from_millis(100));
    s.client.enqueue(delayed).await.unwrap();
    check(&s.client, &s.queue).await;
    let stats = s.stats().await;
    assert_eq!((stats.waiting, stats.delayed, stats.cancelled), (0, 1, 3));
    let ends: Vec<_> = s.records.all().iter().map(|r| r.ending.as_str()).collect();
    assert_eq!(ends, ["cancelled"; 3], "those replaced have a record");
    let worker = s.worker(2);
    s.wait_empty(SOON).await;
    assert_eq!(s.diary.names(), ["d"]);
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn latest_keeps_the_newest_for_after_the_running_one_and_never_runs_two() {
    let s = Setup::new().await;
    let worker = s.worker(4);
    let (first, _) = add(&s, &Work { sleep_ms: 300, ..Work::named("a") }, UniqueMode::Latest).await;
    s.wait_state(&first, State::Active).await;
    for name in ["b", "c", "d"] {
        assert_eq!(
            add(&s, &Work { sleep_ms: 100, ..Work::named(name) }, UniqueMode::Latest).await.1,
            AddOutcome::Accepted
        );
    }
    let waiting = s.client.list(&s.queue, &voiceai_queue::ListFilter::of(State::Delayed)).await.unwrap();
    let view = s.client.show(&s.queue, waiting.jobs[0].id.as_str()).await.unwrap().unwrap();
    assert!(view.why_not.contains(&WhyNot::WaitingForHolder { id: first }), "{:?}", view.why_not);
    check(&s.client, &s.queue).await;
    s.wait_empty(SOON).await;
    assert_eq!((s.diary.names(), s.diary.most("*")), (vec!["a".into(), "d".into()], 1));
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

fn id(id: &str) -> JobId {
    JobId::chosen(id).unwrap()
}

fn family(child: Work) -> (NewJob, Vec<NewJob>) {
    let children = vec![
        Work { result: Some(1.into()), ..Work::named("child-1") }.job().id(id("c1")),
        child.job().id(id("c2")),
    ];
    (Work::named("parent").job().id(id("p")), children)
}

#[tokio::test]
async fn a_parent_runs_after_its_children() {
    let s = Setup::new().await;
    let (parent, children) = family(Work { sleep_ms: 150, ..Work::named("child-2") });
    let added = s.client.add_flow(parent, children, ChildPolicy::Wait).await.unwrap();
    assert_eq!(added.len(), 3);
    check(&s.client, &s.queue).await;
    let view = s.client.show(&s.queue, "p").await.unwrap().unwrap();
    assert_eq!((view.state, &view.why_not[0]), (State::Delayed, &WhyNot::WaitingForChildren { left: 2 }));
    let stats = s.stats().await;
    assert_eq!((stats.delayed, stats.blocked), (1, 1));
    let worker = s.worker(4);
    until("the results of a child are there", async || {
        !s.client.children_results(&s.queue, "p").await.unwrap().is_empty()
    })
    .await;
    let results = s.client.children_results(&s.queue, "p").await.unwrap();
    assert_eq!(results["c1"], serde_json::json!(1));
    s.wait_state("p", State::Completed).await;
    assert_eq!(s.diary.names().last().map(String::as_str), Some("parent"));
    assert!(s.client.children_results(&s.queue, "p").await.unwrap().is_empty(), "they go with the parent");
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_dead_child_is_waited_for_ignored_or_fatal_as_the_policy_says() {
    for (policy, expected) in [
        (ChildPolicy::Wait, State::Delayed),
        (ChildPolicy::Ignore, State::Completed),
        (ChildPolicy::Fail, State::Dead),
    ] {
        let s = Setup::new().await;
        let (parent, children) = family(Work { discard: true, ..Work::named("child-2") });
        s.client.add_flow(parent, children, policy).await.unwrap();
        let worker = s.worker(4);
        s.wait_state("c1", State::Completed).await;
        s.wait_state("c2", State::Dead).await;
        s.wait_state("p", expected).await;
        check(&s.client, &s.queue).await;
        match policy {
            ChildPolicy::Wait => {
                // A person discards the child: then the parent goes on.
                s.client.discard(&s.queue, &["c2".into()], "hopeless").await.unwrap();
                s.wait_state("p", State::Completed).await;
            }
            ChildPolicy::Ignore => assert_eq!(s.diary.count("parent"), 1),
            ChildPolicy::Fail => {
                let view = s.client.show(&s.queue, "p").await.unwrap().unwrap();
                assert_eq!(view.dead_reason, Some(DeadReason::ChildFailed));
                assert_eq!(s.diary.count("parent"), 0);
            }
        }
        check(&s.client, &s.queue).await;
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_child_that_ended_before_or_is_a_duplicate_does_not_hold_its_parent() {
    let s = Setup::new().await;
    let worker = s.worker(4);
    s.client.enqueue(Work::named("early").job().id(id("c1"))).await.unwrap();
    s.wait_state("c1", State::Completed).await;
    let (holder, _) = add(&s, &Work { sleep_ms: 60_000, ..Work::named("holder") }, UniqueMode::Reject).await;
    let (parent, mut children) = family(Work::named("child-2"));
    children[1] = Work::named("duplicate").job().id(id("c2")).unique("user 1", UniqueMode::Reject);
    let added = s.client.add_flow(parent, children, ChildPolicy::Fail).await.unwrap();
    let outcomes: Vec<_> = added.iter().map(|a| a.outcome).collect();
    assert_eq!(outcomes, [AddOutcome::Accepted, AddOutcome::Known, AddOutcome::Duplicate]);
    s.wait_state("p", State::Completed).await;
    assert_eq!(s.diary.count("parent"), 1);
    s.client.cancel(&s.queue, &[holder], "enough").await.unwrap();
    s.wait_empty(SOON).await;
    assert_eq!(s.command("EXISTS", &[&s.key("children")]).await.as_i64(), Some(0));
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_flow_whose_child_is_another_living_job_is_refused_whole() {
    let s = Setup::new().await;
    s.client.enqueue(Work::named("other").job().id(id("c1"))).await.unwrap();
    let (parent, children) = family(Work::named("child-2"));
    let error = s.client.add_flow(parent, children, ChildPolicy::Wait).await.unwrap_err();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(text.contains("child c1 of p") && text.contains("not ended"), "{text}");
    let (parent, mut children) = family(Work::named("child-2"));
    children[0] = Work::named("twin").job().id(id("c2"));
    assert!(s.client.add_flow(parent, children, ChildPolicy::Wait).await.is_err(), "the same child twice");
    assert_eq!(s.stats().await.accepted, 1);
    // The same flow again, while it is under way, is no conflict with itself.
    let flow = || {
        let children = vec![Work::named("kid").job().id(id("k1"))];
        s.client.add_flow(Work::named("parent").job().id(id("q")), children, ChildPolicy::Wait)
    };
    flow().await.unwrap();
    assert!(flow().await.unwrap().iter().all(|a| a.outcome == AddOutcome::Known));
    let worker = s.worker(2);
    s.wait_state("q", State::Completed).await;
    assert!(flow().await.unwrap().iter().all(|a| a.outcome == AddOutcome::Known));
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_cancelled_parent_leaves_nothing_behind_when_its_child_ends() {
    let s = Setup::new().await;
    let worker = s.worker(2);
    let children =
        vec![Work { sleep_ms: 300, result: Some(1.into()), ..Work::named("child") }.job().id(id("c1"))];
    s.client.add_flow(Work::named("parent").job().id(id("p")), children, ChildPolicy::Wait).await.unwrap();
    s.wait_state("c1", State::Active).await;
    s.client.cancel(&s.queue, &["p".into()], "no").await.unwrap();
    s.wait_state("c1", State::Completed).await;
    let left = s.command("EXISTS", &[&s.key("children"), &s.key("kids:p")]).await;
    assert_eq!(left.as_i64(), Some(0));
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn ids_with_slashes_are_not_mistaken_for_each_others_children() {
    let s = Setup::new().await;
    let parent = |name: &str| Work::named(name).job().id(id(name));
    // "a/b" as a parent's count, and "b" as a child of "a".
    s.client.add_flow(parent("a"), vec![parent("b")], ChildPolicy::Wait).await.unwrap();
    s.client
        .add_flow(
            parent("a/b"),
            vec![parent("x"), parent("y").delay(Duration::from_millis(400))],
            ChildPolicy::Wait,
        )
        .await
        .unwrap();
    let worker = s.worker(1);
    for name in ["a", "a/b"] {
        s.wait_state(name, State::Completed).await;
    }
    let names = s.diary.names();
    let at = |name: &str| names.iter().position(|n| n == name).unwrap();
    assert!(at("a") > at("b") && at("a/b") > at("x") && at("a/b") > at("y"), "{names:?}");
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_parents_own_delay_is_kept() {
    let s = Setup::new().await;
    let worker = s.worker(2);
    let parent = Work::named("parent").job().id(id("p")).delay(Duration::from_millis(900));
    let began = tokio::time::Instant::now();
    let children = vec![Work::named("child").job().id(id("c1"))];
    s.client.add_flow(parent, children, ChildPolicy::Wait).await.unwrap();
    s.wait_state("p", State::Completed).await;
    let at = s.diary.runs().into_iter().find(|r| r.name == "parent").unwrap().at;
    assert!(at - began >= Duration::from_millis(890), "{:?}", at - began);
    assert_eq!(s.command("EXISTS", &[&s.key("children")]).await.as_i64(), Some(0));
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_child_that_ended_before_its_parent_came_counts_off() {
    let s = Setup::new().await;
    let call = async |function: &'static str, args: &[&str]| -> voiceai_redis::Value {
        let args = args.iter().map(|a| voiceai_redis::Value::from(*a)).collect();
        s.client.redis().fcall(function, vec![s.key("").into()], args).await.unwrap()
    };
    let worker = s.worker(2);
    let child = |id: &str, policy: &str, work: &str| {
        format!("0||\nwork\n1 p=par f={policy}\n{{\"name\":\"{id}\"{work}}}")
    };
    let parent = "0||\nwork\n1 c=3\n{\"name\":\"par\"}";
    let (one, two) = (child("one", "w", ",\"result\":7"), child("two", "i", ",\"discard\":true"));
    call("voiceai_v1_add", &["2", "one", "0||", "0", &one, "two", "0||", "0", &two]).await;
    until("both ended", async || {
        let stats = s.stats().await;
        (stats.completed, stats.dead) == (1, 1)
    })
    .await;
    // One of the three is still to come, with the parent or after it.
    call("voiceai_v1_add", &["1", "par", "0||", "0", parent]).await;
    assert_eq!(s.state("par").await, Some(State::Delayed));
    let view = s.client.show(&s.queue, "par").await.unwrap().unwrap();
    assert_eq!(view.why_not[0], voiceai_queue::WhyNot::WaitingForChildren { left: 1 });
    let results = s.client.children_results(&s.queue, "par").await.unwrap();
    assert_eq!(results, [("one".to_owned(), serde_json::json!(7))].into());
    call("voiceai_v1_add", &["1", "three", "0||", "0", &child("three", "w", "")]).await;
    until("the parent ran", async || s.diary.count("par") == 1).await;
    s.wait_empty(SOON).await;
    let early = s.command("EXISTS", &[&s.key("early:par"), &s.key("children")]).await;
    assert_eq!(early.as_i64(), Some(0));
    check(&s.client, &s.queue).await;

    // Named again in the parent's own call, it counts off once.
    call("voiceai_v1_add", &["1", "four", "0||", "0", &child("four", "w", "").replace("p=par", "p=next")])
        .await;
    until("it ended", async || s.diary.count("four") == 1).await;
    s.wait_empty(SOON).await;
    let four = child("four", "w", "").replace("p=par", "p=next");
    let five = "0||\nwork\n1 p=next f=w\n{\"name\":\"five\",\"sleep_ms\":300}";
    let next = "0||\nwork\n1 c=2\n{\"name\":\"next\"}";
    call(
        "voiceai_v1_add",
        &["3", "next", "0||", "0", next, "four", "0||", "0", &four, "five", "0||", "0", five],
    )
    .await;
    until("five runs", async || s.diary.count("five") == 1).await;
    assert_eq!(s.state("next").await, Some(State::Delayed), "five has not ended");
    until("the parent ran", async || s.diary.count("next") == 1).await;
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_parent_behind_the_holder_of_its_key_waits_for_both() {
    let s = Setup::new().await;
    let worker = s.worker(4);
    let parent = |name: &str| Work::named(name).job().id(id(name)).unique("u", UniqueMode::Latest);
    let sleeper = |name: &str, sleep_ms: u64| Work { sleep_ms, ..Work::named(name) }.job();

    // The holder ends first: the children still hold the parent back.
    s.client.enqueue(sleeper("holder", 300).unique("u", UniqueMode::Latest)).await.unwrap();
    until("the holder runs", async || s.diary.count("holder") == 1).await;
    s.client
        .add_flow(parent("p1"), vec![sleeper("slow", 1_200)], voiceai_queue::ChildPolicy::Wait)
        .await
        .unwrap();
    until("the holder ended", async || s.stats().await.completed >= 1).await;
    assert_eq!((s.state("p1").await, s.diary.count("p1")), (Some(State::Delayed), 0), "its child runs");
    until("the parent ran", async || s.diary.count("p1") == 1).await;
    assert!(s.stats().await.completed >= 2, "after holder and child");
    s.wait_empty(SOON).await;

    // The children end first: the holder still does.
    s.client.enqueue(sleeper("long", 1_000).unique("u", UniqueMode::Latest)).await.unwrap();
    until("the holder runs", async || s.diary.count("long") == 1).await;
    s.client
        .add_flow(parent("p2"), vec![sleeper("quick", 0)], voiceai_queue::ChildPolicy::Wait)
        .await
        .unwrap();
    until("the child ended", async || s.diary.count("quick") == 1 && s.stats().await.completed >= 4).await;
    assert_eq!((s.state("p2").await, s.diary.count("p2")), (Some(State::Delayed), 0), "never two at once");
    until("the parent ran", async || s.diary.count("p2") == 1).await;
    s.wait_empty(SOON).await;
    assert_eq!(s.command("EXISTS", &[&s.key("children"), &s.key("unique")]).await.as_i64(), Some(0));
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_parent_that_failed_behind_the_holder_of_its_key_stays_dead() {
    let s = Setup::new().await;
    let worker = s.worker(4);
    let holder = Work { sleep_ms: 1_500, ..Work::named("holder") }.job();
    s.client.enqueue(holder.unique("u", UniqueMode::Latest)).await.unwrap();
    until("the holder runs", async || s.diary.count("holder") == 1).await;
    let parent = Work::named("p").job().id(id("p")).unique("u", UniqueMode::Latest);
    let child = Work { discard: true, ..Work::named("child") }.job();
    s.client.add_flow(parent, vec![child], ChildPolicy::Fail).await.unwrap();
    s.wait_state("p", State::Dead).await;
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    assert_eq!((s.state("p").await, s.diary.count("p")), (Some(State::Dead), 0));
    assert_eq!(s.command("HLEN", &[&s.key("unique")]).await.as_i64(), Some(0), "nobody waits for the key");
    worker.stop().await;
}
