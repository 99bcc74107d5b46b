//! Releasing, watching, stopping, going on.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use voiceai_replay::{ItemState, Pace, ReplayError, ReplayState, RunError, Stopped, run};

use crate::source::{Fate, Memory, begin, store};

const FAST: Pace =
    Pace { per_second: 1_000.0, look_every: Duration::from_millis(1), follow: Duration::from_secs(5) };

#[tokio::test]
async fn every_item_goes_back_in_order_and_the_trail_says_who_and_why() {
    let (store, database) = store().await;
    let memory = Memory::with([Fate::Completes, Fate::KeyHeld, Fate::Completes]);
    let id = begin(&store, &memory.plan(10)).await;
    let ended = run(&store, &memory, id, "me", FAST, &CancellationToken::new()).await.unwrap();
    assert_eq!(ended, Stopped::Settled);
    assert_eq!(memory.released(), ["000", "002"]);
    let replay = store.get(id).await.unwrap();
    assert_eq!(replay.state, ReplayState::Released);
    assert_eq!((replay.counts.completed, replay.counts.skipped), (2, 1));
    let skipped = store.items(id, &[ItemState::Skipped], None, 10).await.unwrap();
    assert_eq!(skipped[0].detail.as_deref(), Some("key held"));

    let trail = voiceai_postgres::audit::list(&database.pool().await, None, None, 10).await.unwrap();
    let actions: Vec<_> = trail.iter().map(|e| (e.action.as_str(), e.actor.as_str())).collect();
    assert_eq!(actions, [("jobs.replay_ended", "ann"), ("jobs.replay", "ann")]);
    assert_eq!(trail[1].reason.as_deref(), Some("the provider is back"));
    assert_eq!(trail[1].details["items"], 3);
    assert_eq!(trail[0].details["counts"]["completed"], 2);
}

#[tokio::test]
async fn three_deaths_stop_it_and_a_person_may_go_on() {
    let (store, _database) = store().await;
    let memory = Memory::with(
        [Fate::Completes, Fate::Dies, Fate::Dies, Fate::Dies].into_iter().chain([Fate::Completes; 30]),
    );
    let id = begin(&store, &memory.plan(100)).await;
    let pace = Pace { per_second: 200.0, ..FAST };
    let ended = run(&store, &memory, id, "me", pace, &CancellationToken::new()).await.unwrap();
    assert!(matches!(ended, Stopped::TooManyDeaths(_)), "{ended:?}");
    let replay = store.get(id).await.unwrap();
    assert_eq!(replay.state, ReplayState::Stopped);
    assert_eq!(replay.counts.died, 3);
    assert!(replay.counts.pending > 0, "{:?}", replay.counts);
    assert!(replay.stop_reason.unwrap().contains('3'));

    store.go_on(id, "bob", Some("those three are known")).await.unwrap();
    let ended = run(&store, &memory, id, "me", FAST, &CancellationToken::new()).await.unwrap();
    assert_eq!(ended, Stopped::Settled);
    assert_eq!(memory.released().len(), 34, "each exactly once");
}

#[tokio::test]
async fn a_lost_reply_is_asked_for_again_and_nothing_goes_twice() {
    let (store, _database) = store().await;
    let memory = Memory { reply_lost_at: Some(2), ..Memory::with([Fate::Completes; 4]) };
    let id = begin(&store, &memory.plan(10)).await;
    let error = run(&store, &memory, id, "me", FAST, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, RunError::Source(_)), "{error:?}");
    let unsure = store.items(id, &[ItemState::Releasing], None, 10).await.unwrap();
    assert_eq!(unsure.len(), 1);

    let ended = run(&store, &memory, id, "me", FAST, &CancellationToken::new()).await.unwrap();
    assert_eq!(ended, Stopped::Settled);
    assert_eq!(memory.released(), ["000", "001", "002", "003"]);
    assert_eq!(store.get(id).await.unwrap().counts.completed, 4);
}

#[tokio::test]
async fn the_rate_bounds_it_and_an_interruption_leaves_the_rest() {
    let (store, _database) = store().await;
    let memory = Memory::with([Fate::StaysOpen; 8]);
    let id = begin(&store, &memory.plan(10)).await;
    let started = Instant::now();
    let pace = Pace { per_second: 20.0, follow: Duration::ZERO, ..FAST };
    let ended = run(&store, &memory, id, "me", pace, &CancellationToken::new()).await.unwrap();
    assert_eq!(ended, Stopped::Released, "nothing settled");
    // Eight items and a look that finds none: seven waits of 50 ms at least.
    assert!(started.elapsed() >= Duration::from_millis(350), "{:?}", started.elapsed());

    let second = Memory::with([Fate::Completes; 3]);
    let id = begin(&store, &second.plan(10)).await;
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    let ended = run(&store, &second, id, "me", FAST, &cancelled).await.unwrap();
    assert_eq!(ended, Stopped::Interrupted);
    assert_eq!(second.released(), Vec::<String>::new());
    assert_eq!(store.get(id).await.unwrap().state, ReplayState::Running);
}

#[tokio::test]
async fn two_cannot_carry_out_the_same_replay() {
    let (store, _database) = store().await;
    let memory = Memory::with([Fate::StaysOpen; 2]);
    let id = begin(&store, &memory.plan(10)).await;
    let stop = CancellationToken::new();
    let slow = Pace { per_second: 1.0, ..FAST };
    let first = run(&store, &memory, id, "first", slow, &stop);
    let second = async {
        voiceai_testkit::wait_until(Duration::from_secs(5), "the first has begun", async || {
            !memory.released().is_empty()
        })
        .await;
        let refused = run(&store, &memory, id, "second", FAST, &CancellationToken::new()).await.unwrap_err();
        stop.cancel();
        refused
    };
    let (first, refused) = tokio::join!(first, second);
    assert_eq!(first.unwrap(), Stopped::Interrupted);
    assert!(
        matches!(&refused, RunError::Store(ReplayError::Busy { runner, .. }) if runner == "first"),
        "{refused:?}"
    );
    // Let go of: another may carry it on at once.
    let pace = Pace { follow: Duration::ZERO, ..FAST };
    run(&store, &memory, id, "second", pace, &CancellationToken::new()).await.unwrap();
    assert_eq!(memory.released().len(), 2);
}

#[tokio::test]
async fn an_unknown_replay_is_not_found() {
    let (store, _database) = store().await;
    let missing = uuid::Uuid::now_v7();
    let error =
        run(&store, &Memory::default(), missing, "me", FAST, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, RunError::Store(ReplayError::NotFound(id)) if id == missing), "{error:?}");
}
