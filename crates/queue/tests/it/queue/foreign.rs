//! What clients that are not ours may send, and what stays of it.

use voiceai_queue::{DeadReason, ListFilter, State};
use voiceai_redis::{Redis, RedisError, RedisSettings, Value};
use voiceai_testkit::{RedisOptions, RedisServer};

use super::{SOON, Setup, Work, check, until};

/// One call of docs/protocol.md, whatever the bytes.
async fn submit(s: &Setup, key: &str, args: &[&[u8]]) -> Result<Vec<Value>, RedisError> {
    let args = args.iter().map(|arg| Value::Bytes(arg.to_vec().into())).collect();
    s.client.redis().fcall("voiceai_v1_submit", vec![key.into()], args).await
}

#[tokio::test]
async fn bytes_that_are_no_utf8_are_parked_and_hide_nobody() {
    let s = Setup::new().await;
    // Past the checks of the documented calls, as by hand: among so many that their envelopes are read apart, and alone.
    for id in 0..40 {
        s.enqueue(&Work::named(format!("{id}"))).await;
    }
    let bad = async |id: &str| {
        let envelope = b"0||\nwork\n0\n{\"name\":\"\xff\"}";
        let args = [b"nonce".as_slice(), b"1", b"0||", b"1", id.as_bytes(), envelope];
        let args = args.iter().map(|arg| Value::Bytes(arg.to_vec().into())).collect();
        let key = vec![s.key("").into()];
        let _: Vec<i64> = s.client.redis().fcall("voiceai_v1_enqueue", key, args).await.unwrap();
    };
    bad("first").await;
    let listed = s.client.list(&s.queue, &ListFilter::of(State::Waiting)).await.unwrap();
    assert_eq!(listed.jobs.len(), 41);
    let worker = s.worker(64);
    s.wait_state("first", State::Dead).await;
    until("the others ran", async || s.diary.runs().len() == 40).await;
    let view = s.client.show(&s.queue, "first").await.unwrap().unwrap();
    assert_eq!((view.dead_reason, view.kind.as_str()), (Some(DeadReason::BadPayload), "work"));
    assert!(view.error.unwrap().contains("not UTF-8"));
    let dead = s.client.list(&s.queue, &ListFilter::of(State::Dead)).await.unwrap();
    assert_eq!(dead.jobs.len(), 1);
    assert_eq!(s.client.discard(&s.queue, &["first".into()], "unusable").await.unwrap(), 1);
    assert_eq!(s.records.of("first"), ["dead", "discarded"]);
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn the_documented_call_refuses_what_no_worker_could_use() {
    let s = Setup::new().await;
    let key = s.key("");
    let long = "u".repeat(257);
    let huge = format!("\"{}\"", "x".repeat(1 << 20));
    let tenant = format!(r#"{{"tenant":"{}"}}"#, "ü".repeat(11));
    let unique = format!(r#"{{"unique":"{long}"}}"#);
    let table: [(&str, &[u8], &[u8], &str); 13] = [
        ("voiceai:queue:default:", b"{}", b"{}", "QBAD key"),
        ("voiceai:queue:{a b}:", b"{}", b"{}", "QBAD key"),
        ("mine", b"{}", b"{}", "QBAD key"),
        (&key, b"{\"a\":\"\xff\"}", b"{}", "QBAD payload: not UTF-8"),
        (&key, b"\"\xed\xa0\x80\"", b"{}", "QBAD payload: not UTF-8"),
        (&key, huge.as_bytes(), b"{}", "QBAD payload: at most 1 MiB"),
        (&key, b"{\"a\":NaN}", b"{}", "QBAD payload: not JSON"),
        (&key, b"0x10", b"{}", "QBAD payload: not JSON"),
        (&key, b"{}", tenant.as_bytes(), "QBAD tenant: at most 64 bytes"),
        (&key, b"{}", b"{\"tenant\":\"\xff\"}", "QBAD tenant: not UTF-8"),
        (&key, b"{}", unique.as_bytes(), "QBAD unique: at most 256 bytes"),
        (&key, b"{}", br#"{"unique":"u","unique_mode":"throttle"}"#, "QBAD unique_ttl_ms"),
        (&key, b"{}", br#"{"unique_mode":"replace"}"#, "QBAD unique_mode"),
    ];
    for (key, payload, options, says) in table {
        let error = submit(&s, key, &[b"id", b"work", payload, options]).await.unwrap_err();
        assert!(error.detail().contains(says), "{says}: {error}");
    }
    assert!(s.client.show(&s.queue, "id").await.unwrap().is_none());
    let text = "\"ü€😀\u{7ff}\u{ffff}\"".as_bytes();
    let taken = submit(&s, &key, &[b"id", b"work", text, br#"{"unique":null,"unique_mode":null}"#]).await;
    assert_eq!(taken.unwrap()[0], Value::Integer(1));
    check(&s.client, &s.queue).await;
}

#[tokio::test]
async fn a_queue_that_only_a_foreign_client_uses_is_listed() {
    let s = Setup::new().await;
    let key = "voiceai:queue:{only-theirs}:";
    submit(&s, key, &[b"theirs", b"work", b"{}"]).await.unwrap();
    assert!(s.client.queues().await.unwrap().contains(&"only-theirs".to_owned()));
    assert_eq!(s.client.find("theirs").await.unwrap().unwrap().state, State::Waiting);
}

#[tokio::test]
async fn an_account_with_the_documented_rights_enqueues_whatever_can_be_enqueued() {
    let docs = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol.md"));
    let rights =
        docs.lines().find_map(|line| line.strip_prefix("ACL ")).expect("the line of docs/protocol.md");
    let server = RedisServer::start(RedisOptions::default()).await;
    let s = Setup::on(&server.url()).await;
    let _ = s.command("ACL", &rights.split(' ').collect::<Vec<_>>()).await;
    let producer = Redis::connect(&RedisSettings::from_url(server.url()).unwrap()).await.unwrap();
    // Here and not in the address: what a client asks when it connects is its own affair.
    let _: Value = producer.command("AUTH", vec!["producer", "PASSWORD"]).await.unwrap();
    let denied: Result<Value, _> = producer.command("KEYS", vec!["*"]).await;
    assert!(denied.is_err(), "the account is in use");
    let key = "voiceai:queue:{theirs}:";
    let all = [
        "{}",
        r#"{"delay_ms":600000,"tenant":"acme","key":"k","priority":7}"#,
        r#"{"unique":"u","unique_mode":"latest"}"#,
        r#"{"unique":"u","unique_mode":"replace"}"#,
        r#"{"unique":"v","unique_mode":"throttle","unique_ttl_ms":1000,"delay_ms":600000}"#,
    ];
    for (n, options) in all.iter().enumerate() {
        let args = [format!("id{n}"), "work".into(), "{}".into(), (*options).to_owned()];
        let args = args.into_iter().map(Value::from).collect();
        let row: Vec<Value> = producer.fcall("voiceai_v1_submit", vec![key.into()], args).await.unwrap();
        assert_eq!(row[0], Value::Integer(1), "{options}");
    }
    for (id, meta) in [("child", "p=parent f=f"), ("parent", "c=1")] {
        let envelope = format!("0||\nwork\n1 {meta}\n{{}}");
        let args = ["1", id, "0||", "0", &envelope].iter().map(|arg| Value::from(*arg)).collect();
        let _: Value = producer.fcall("voiceai_v1_add", vec![key.into()], args).await.unwrap();
    }
    assert!(s.client.queues().await.unwrap().contains(&"theirs".to_owned()));
    check(&s.client, "theirs").await;
}
