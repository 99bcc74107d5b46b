//! Dispatcher records: whole or not at all, only by the newest leader, rebuilt when they are lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;
use voiceai_postgres::{Tenure, Term};
use voiceai_redis::{Redis, RedisSettings};
use voiceai_runtime::boot_now;
use voiceai_scaler::act::Ledger;
use voiceai_scaler::dispatcher::{Dispatcher, DispatcherError, Flags, Record, Records};
use voiceai_scaler::store::{FleetRow, ServerRow, ServerSpec};
use voiceai_scaler_core::{Policy, ServerStatus, Service};
use voiceai_testkit::{RedisDb, RedisOptions, RedisServer, redis, wait_until};

use crate::harness::{Stack, WITHIN};

fn tenure(number: i64) -> Tenure {
    let term = Term { name: Arc::from("voiceai:scaler:leader"), number };
    Tenure::new(term, boot_now().saturating_add(Duration::from_secs(600)), false)
}

fn record(name: &str, flags: Flags) -> Record {
    Record { name: name.to_owned(), setid: 1, destination: format!("sip:{name}:5060"), flags, priority: 0 }
}

async fn subject() -> (RedisDb, Dispatcher) {
    let database = redis().await;
    let settings = RedisSettings::from_url(database.url.as_str()).expect("an address");
    let dispatcher =
        Dispatcher::new(Redis::connect(&settings).await.expect("a connection"), "dispatcher:entry::");
    (database, dispatcher)
}

fn records(put: &[Record], remove: &[&str]) -> Records {
    Records { put: put.to_vec(), remove: remove.iter().map(|name| (*name).to_owned()).collect() }
}

async fn generation(redis: &RedisDb) -> i64 {
    let text = redis.cli(&["GET", "voiceai:dispatcher:generation"]).await;
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no generation"))
}

#[tokio::test]
async fn each_change_counts_the_generation_up_once_and_no_change_does_not() {
    let (redis, dispatcher) = subject().await;
    let generation = async || generation(&redis).await;
    let two = records(&[record("a", Flags::Entering), record("b", Flags::Serving)], &["gone"]);
    let published = dispatcher.publish(&tenure(5), &two).await.expect("published");
    assert_eq!((published.written, published.removed), (2, 0));
    let first = generation().await;
    assert_eq!(redis.cli(&["GET", "voiceai:dispatcher:term"]).await, "5");
    let fields = redis.cli(&["HGETALL", "dispatcher:entry::a"]).await;
    assert_eq!(fields, "setid\n1\ndestination\nsip:a:5060\nflags\n9\npriority\n0\nattrs\nduid=a");
    let published = dispatcher.publish(&tenure(5), &two).await.expect("published");
    assert_eq!((published.written, published.removed), (0, 0));
    assert_eq!(generation().await, first, "nothing changed");
    let drained = records(&[record("a", Flags::Draining)], &["b"]);
    let published = dispatcher.publish(&tenure(6), &drained).await.expect("published");
    assert_eq!((published.written, published.removed), (1, 1));
    assert_eq!(generation().await, first + 1);
    // Lost, it goes on from the time: Kamailio never meets a number again that stood for other records.
    redis.cli(&["DEL", "voiceai:dispatcher:generation"]).await;
    dispatcher.publish(&tenure(6), &drained).await.expect("published");
    assert!(generation().await >= first);
    assert_eq!(redis.cli(&["HGET", "dispatcher:entry::a", "flags"]).await, "12");
    assert_eq!(redis.cli(&["EXISTS", "dispatcher:entry::b"]).await, "0");
}

#[tokio::test]
async fn a_stale_term_is_refused_and_changes_nothing() {
    let (redis, dispatcher) = subject().await;
    dispatcher.publish(&tenure(7), &records(&[record("a", Flags::Serving)], &[])).await.expect("published");
    let before = generation(&redis).await;
    let late = dispatcher.publish(&tenure(6), &records(&[record("b", Flags::Serving)], &["a"])).await;
    assert!(matches!(late, Err(DispatcherError::Fenced)), "{late:?}");
    assert_eq!(redis.cli(&["KEYS", "dispatcher:entry::*"]).await, "dispatcher:entry::a");
    assert_eq!(generation(&redis).await, before);
}

#[tokio::test]
async fn whatever_stands_under_a_key_the_record_is_whole_afterwards() {
    let (redis, dispatcher) = subject().await;
    redis.cli(&["HSET", "dispatcher:entry::half", "setid", "1"]).await;
    redis
        .cli(&["HSET", "dispatcher:entry::more", "setid", "1", "destination", "sip:more:5060", "id", "9"])
        .await;
    redis.cli(&["SET", "dispatcher:entry::text", "nonsense"]).await;
    redis.cli(&["SADD", "voiceai:dispatcher:generation", "nonsense"]).await;
    redis.cli(&["SADD", "voiceai:dispatcher:term", "nonsense"]).await;
    redis.cli(&["HSET", "dispatcher:entry::foreign", "setid", "9", "destination", "sip:elsewhere"]).await;
    let names = ["half", "more", "text"];
    let put: Vec<Record> = names.iter().map(|name| record(name, Flags::Serving)).collect();
    dispatcher.publish(&tenure(1), &records(&put, &[])).await.expect("published");
    for name in names {
        let key = format!("dispatcher:entry::{name}");
        let fields = redis.cli(&["HGETALL", &key]).await;
        assert_eq!(
            fields,
            format!("setid\n1\ndestination\nsip:{name}:5060\nflags\n8\npriority\n0\nattrs\nduid={name}")
        );
    }
    assert_eq!(redis.cli(&["HGET", "dispatcher:entry::foreign", "destination"]).await, "sip:elsewhere");
    assert!(generation(&redis).await > 0);
}

#[tokio::test]
async fn records_are_rebuilt_when_redis_comes_back_empty() {
    let mut stack = Stack::new().await;
    let mut kamailios = RedisServer::start(RedisOptions::default()).await;
    stack.set("DISPATCHER_REDIS_URL", &kamailios.url());
    stack.group("eu", 2, 2, &stack.config()).await;
    let scaler = stack.scaler("a");
    let whole = async |server: &RedisServer| {
        let keys = server.cli(&["KEYS", "dispatcher:entry::*"]).await;
        keys.lines().filter(|key| !key.is_empty()).count() == 2
    };
    wait_until(WITHIN, "two records", async || whole(&kamailios).await).await;
    wait_until(WITHIN, "two servers in service", async || {
        stack.number("SELECT count(*) FROM ops.operations WHERE state = 'done'").await == 2
    })
    .await;
    kamailios.restart(true).await;
    wait_until(WITHIN, "two records again", async || whole(&kamailios).await).await;
    let generation = kamailios.cli(&["GET", "voiceai:dispatcher:generation"]).await;
    assert!(generation.parse::<i64>().is_ok_and(|number| number > 0), "{generation:?}");
    let term = kamailios.cli(&["GET", "voiceai:dispatcher:term"]).await;
    assert_eq!(term, "1", "the fence is back as well");
    assert!(scaler.exit().is_none(), "{}", scaler.stderr());
    // A record that somebody damaged is made whole at the next evaluation.
    kamailios.cli(&["HDEL", "dispatcher:entry::test-voice-01", "destination"]).await;
    wait_until(WITHIN, "it is whole again", async || {
        kamailios.cli(&["HEXISTS", "dispatcher:entry::test-voice-01", "destination"]).await == "1"
    })
    .await;
}

#[tokio::test]
async fn a_part_leaves_the_rest_and_is_refused_once_the_set_is_lost() {
    let (redis, dispatcher) = subject().await;
    let part = records(&[record("a", Flags::Serving)], &[]);
    let refused = dispatcher.publish_part(&tenure(1), &part).await.expect("an answer");
    assert_eq!(refused, None, "alone it would be taken for the whole set");
    assert_eq!(redis.cli(&["EXISTS", "dispatcher:entry::a"]).await, "0");
    let whole = records(&[record("a", Flags::Serving), record("b", Flags::Serving)], &[]);
    dispatcher.publish(&tenure(1), &whole).await.expect("published");
    let first = generation(&redis).await;
    let part = records(&[record("b", Flags::Draining)], &[]);
    let published = dispatcher.publish_part(&tenure(1), &part).await.expect("an answer").expect("published");
    assert_eq!((published.written, published.removed), (1, 0));
    assert_eq!(generation(&redis).await, first + 1);
    assert_eq!(redis.cli(&["HGET", "dispatcher:entry::a", "flags"]).await, "8");
    assert_eq!(redis.cli(&["HGET", "dispatcher:entry::b", "flags"]).await, "12");
    assert!(matches!(dispatcher.publish_part(&tenure(0), &part).await, Err(DispatcherError::Fenced)));
    redis.cli(&["FLUSHDB"]).await;
    assert_eq!(dispatcher.publish_part(&tenure(1), &part).await.expect("an answer"), None);
    assert_eq!(redis.cli(&["KEYS", "dispatcher:entry::*"]).await, "");
}

/// Servers in service, one a name.
fn fleet(count: usize) -> Vec<FleetRow> {
    (0..count)
        .map(|number| {
            let row = json!({"id": "g", "name": "eu", "scalingEnabled": true, "scalingProvider": "local"});
            let policy = Policy::read(&row).expect("a policy");
            let server = ServerRow {
                id: Uuid::from_u128(number as u128),
                name: format!("test-voice-{number:05}"),
                group_id: "g".to_owned(),
                group_name: "eu".to_owned(),
                service: Service::Voice,
                status: ServerStatus::Active,
                made_by: Uuid::nil(),
                provider: "local".to_owned(),
                provider_id: None,
                ip: Some("10.0.0.1".to_owned()),
                private_ip: None,
                spec: Arc::new(ServerSpec::of(&policy)),
                protected_until: None,
                created_at: Timestamp::UNIX_EPOCH,
                in_service_at: None,
            };
            FleetRow { server, operation: None }
        })
        .collect()
}

#[test]
fn only_what_changed_and_a_turn_of_the_rest_is_published() {
    let mut ledger = Ledger::default();
    let mut rows = fleet(5_000);
    let resting = BTreeSet::from(["test-voice-99999".to_owned()]);
    let first = ledger.due(1, ledger.mark(), &rows, &resting);
    assert_eq!((first.put.len(), first.remove.len()), (5_000, 1), "nothing was known");
    // Every record has its turn, and no publication has more than a turn.
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let turn = ledger.due(1, ledger.mark(), &rows, &resting);
        assert!(turn.put.len() + turn.remove.len() <= 2_000);
        seen.extend(turn.put.into_iter().map(|record| record.name));
        seen.extend(turn.remove);
    }
    assert_eq!(seen.len(), 5_001);
    // A change is published at once, wherever the turn is.
    for changed in [10, 4_990] {
        rows[changed].server.private_ip = Some("10.9.9.9".to_owned());
        let due = ledger.due(1, ledger.mark(), &rows, &resting);
        assert!(due.put.iter().any(|record| record.destination == "sip:10.9.9.9:5060"), "{changed}");
        rows[changed].server.private_ip = None;
        ledger.due(1, ledger.mark(), &rows, &resting);
    }
    // After a lost answer, and in another term, nothing is known.
    ledger.forget();
    assert_eq!(ledger.due(1, ledger.mark(), &rows, &resting).put.len(), 5_000);
    assert_eq!(ledger.due(2, ledger.mark(), &rows, &resting).put.len(), 5_000);
}

#[test]
fn what_an_operation_published_is_not_undone_by_an_older_snapshot() {
    let mut ledger = Ledger::default();
    let rows = fleet(3);
    let name = rows[1].server.name.clone();
    ledger.due(1, ledger.mark(), &rows, &BTreeSet::new());
    let before = ledger.mark();
    ledger.touch(1, &name, None);
    let due = ledger.due(1, before, &rows, &BTreeSet::new());
    assert!(due.put.iter().all(|record| record.name != name), "the snapshot is older");
    let due = ledger.due(1, ledger.mark(), &rows, &BTreeSet::new());
    assert!(due.put.iter().any(|record| record.name == name), "now the rows are newer");
    // Nor is a server forgotten that the snapshot did not know.
    let before = ledger.mark();
    ledger.touch(1, "test-voice-new", None);
    ledger.due(1, before, &rows, &BTreeSet::new());
    let due = ledger.due(1, before, &rows, &BTreeSet::new());
    assert!(due.remove.is_empty() && due.put.iter().all(|record| record.name != "test-voice-new"));
}
