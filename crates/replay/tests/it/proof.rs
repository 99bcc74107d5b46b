//! Which small batches let a larger one begin.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use voiceai_replay::rule::Proof;
use voiceai_replay::{Filter, Pace, run};

use crate::source::{Fate, Memory, VERSION, begin, filter, store};

const FAST: Pace = Pace { per_second: 1_000.0, look_every: Duration::from_millis(1), follow: Duration::ZERO };

#[tokio::test]
async fn a_small_batch_proves_once_all_of_it_completed() {
    let (store, database) = store().await;
    let proof = async |filter: &Filter, version: &str| store.proof("jobs", filter, version).await.unwrap();
    assert_eq!(proof(&filter(), VERSION).await, Proof::Absent);

    let mut memory = Memory::with([Fate::Completes, Fate::StaysOpen]);
    let id = begin(&store, &memory.plan(10)).await;
    run(&store, &memory, id, "me", FAST, &CancellationToken::new()).await.unwrap();
    assert_eq!(proof(&filter(), VERSION).await, Proof::Incomplete { completed: 1, of: 2 });
    assert_eq!(store.unsettled_proofs("jobs", &filter(), VERSION).await.unwrap(), [id]);

    // It ends later; looking again settles it.
    memory.fates.insert("001".into(), Fate::Completes);
    run(&store, &memory, id, "me", FAST, &CancellationToken::new()).await.unwrap();
    assert_eq!(proof(&filter(), VERSION).await, Proof::Complete);

    assert_eq!(proof(&filter().with("tenant", Some("t")), VERSION).await, Proof::Absent, "another selection");
    assert_eq!(proof(&filter(), "1.2.4").await, Proof::Absent, "another version");
    assert_eq!(store.proof("mail", &filter(), VERSION).await.unwrap(), Proof::Absent, "another subject");
    database.execute("UPDATE ops.replays SET created_at = now() - interval '24 hours 1 second'").await;
    assert_eq!(proof(&filter(), VERSION).await, Proof::Absent, "too old");
}

#[tokio::test]
async fn a_death_a_large_batch_and_a_batch_that_replayed_nothing_prove_nothing() {
    let (store, _database) = store().await;
    for (fates, expected) in [
        (vec![Fate::KeyHeld; 2], Proof::Absent),
        (vec![Fate::Completes; 11], Proof::Absent),
        (vec![Fate::Completes, Fate::Dies], Proof::Incomplete { completed: 1, of: 2 }),
    ] {
        let memory = Memory::with(fates);
        let id = begin(&store, &memory.plan(100)).await;
        run(&store, &memory, id, "me", FAST, &CancellationToken::new()).await.unwrap();
        assert_eq!(store.proof("jobs", &filter(), VERSION).await.unwrap(), expected);
    }
}
