use std::time::{Duration, Instant};

use voiceai_redis::{CallOptions, Redis, RedisErrorKind, RedisSettings, Script, Value};
use voiceai_testkit::{Cluster, RedisOptions, RedisServer, Sentinel, TcpProxy, wait_until};

async fn set(redis: &Redis, key: &str, value: &str) -> bool {
    redis.command::<Value>("SET", vec![key, value]).await.is_ok()
}

#[tokio::test]
async fn a_server_that_is_away_fails_within_the_deadline_and_a_late_one_is_found() {
    let port = voiceai_testkit::Port::reserve();
    let mut settings = RedisSettings::from_url(format!("redis://127.0.0.1:{}", port.number())).unwrap();
    settings.connect_deadline = Duration::from_millis(600);
    let started = Instant::now();
    let error = Redis::connect(&settings).await.unwrap_err();
    assert!(error.outcome_unknown(), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_black_hole_ends_every_call_in_time_and_heals() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let proxy = TcpProxy::start(server.port()).await;
    let settings = RedisSettings::from_url(proxy.url(&server.url())).unwrap();
    let redis = Redis::connect(&settings).await.unwrap();
    assert!(set(&redis, "a", "1").await);
    proxy.pause();
    let once = redis.with(CallOptions {
        attempts: Some(1),
        timeout: Some(Duration::from_millis(300)),
        fail_fast: true,
    });
    let started = Instant::now();
    let error = once.get("a").await.unwrap_err();
    assert!(error.outcome_unknown(), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    // A script keeps to the same limit.
    let script = Script::new("read", "return redis.call('GET', KEYS[1])");
    let started = Instant::now();
    let error = once.eval::<String>(&script, vec!["a".into()], Vec::new()).await.unwrap_err();
    assert!(error.outcome_unknown(), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    proxy.resume();
    wait_until(Duration::from_secs(15), "calls succeed again", async || redis.get("a").await.is_ok()).await;
}

#[tokio::test]
async fn a_full_server_says_so() {
    let options = RedisOptions { maxmemory: Some("2mb"), ..RedisOptions::default() };
    let server = RedisServer::start(options).await;
    let redis = Redis::connect(&RedisSettings::from_url(server.url()).unwrap()).await.unwrap();
    let block = "x".repeat(100_000);
    let mut refused = None;
    for i in 0..100 {
        if let Err(error) = redis.command::<Value>("SET", vec![format!("k{i}"), block.clone()]).await {
            refused = Some(error.kind());
            break;
        }
    }
    assert_eq!(refused, Some(RedisErrorKind::OutOfMemory));
}

#[tokio::test]
async fn a_failover_by_sentinel_is_followed() {
    let mut sentinel = Sentinel::start().await;
    let redis = Redis::connect(&RedisSettings::from_url(sentinel.url()).unwrap()).await.unwrap();
    assert!(set(&redis, "a", "1").await);
    sentinel.kill_primary().await;
    wait_until(Duration::from_secs(30), "writes reach the new primary", async || set(&redis, "a", "2").await)
        .await;
    assert_eq!(redis.get("a").await.unwrap().as_deref(), Some("2"));
}

#[tokio::test]
async fn a_cluster_serves_keys_of_all_slots() {
    let cluster = Cluster::start().await;
    let redis = Redis::connect(&RedisSettings::from_url(cluster.url()).unwrap()).await.unwrap();
    for i in 0..20 {
        assert!(set(&redis, &format!("k{i}"), &i.to_string()).await);
    }
    let keys = (0..20).map(|i| format!("k{i}").into()).collect();
    let values = redis.get_many(keys).await.unwrap();
    assert_eq!(values, (0..20).map(|i| Some(i.to_string())).collect::<Vec<_>>());
    redis
        .load_functions("#!lua name=t\nredis.register_function('one', function() return 1 end)")
        .await
        .unwrap();
    for key in ["a", "b", "c", "d", "e", "f"] {
        let one: i64 = redis.fcall("one", vec![key.into()], vec![]).await.unwrap();
        assert_eq!(one, 1, "the library is on every primary");
    }
}

#[tokio::test]
async fn on_a_cluster_scripts_that_are_tried_once_go_to_their_keys_node() {
    let cluster = Cluster::start().await;
    let redis = Redis::connect(&RedisSettings::from_url(cluster.url()).unwrap()).await.unwrap();
    let once = redis.with(CallOptions {
        attempts: Some(1),
        timeout: Some(Duration::from_millis(400)),
        fail_fast: true,
    });
    let script = Script::new("one", "return redis.call('INCR', KEYS[1])");
    for round in 0..3 {
        for name in ["voiceai:scaler:leader", "voiceai:tasker:leader", "a", "b", "c"] {
            let keys = vec![name.into(), format!("{{{name}}}:term").into()];
            let value: Result<i64, _> = once.eval(&script, keys, vec![]).await;
            assert!(value.is_ok(), "{round} {name}: {value:?}");
            let args = vec!["FREQ".into(), name.into()];
            let exists: Result<Value, _> = once.keyed_command("OBJECT", 1, args).await;
            // Refused by the node that has the key, since it counts no uses; another node would say MOVED.
            assert!(exists.is_err_and(|error| error.detail().contains("LFU")), "{round} {name}");
        }
    }
}
