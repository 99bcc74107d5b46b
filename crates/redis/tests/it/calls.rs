use std::time::Duration;

use voiceai_redis::{Redis, RedisErrorKind, RedisSettings, Script, Value};
use voiceai_testkit::{RedisOptions, RedisServer};

async fn connect(url: &str) -> Redis {
    Redis::connect(&RedisSettings::from_url(url).unwrap()).await.unwrap()
}

#[tokio::test]
async fn values_scripts_and_functions() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let redis = connect(&server.url()).await;
    let _: Value = redis.command("SET", vec!["a", "1"]).await.unwrap();
    let many = redis.get_many(vec!["a".into(), "missing".into()]).await.unwrap();
    assert_eq!(many, [Some("1".to_owned()), None]);
    let script = Script::new("double", "return redis.call('GET', KEYS[1]) * ARGV[1]");
    for _ in 0..2 {
        let doubled: i64 = redis.eval(&script, vec!["a".into()], vec![2.into()]).await.unwrap();
        assert_eq!(doubled, 2);
        // The server forgets it; the caller must not notice.
        let _: Value = redis.command("SCRIPT", vec!["FLUSH"]).await.unwrap();
    }
    let missing = redis.fcall::<Value>("nope", vec!["a".into()], vec![]).await.unwrap_err();
    assert_eq!(missing.kind(), RedisErrorKind::NotLoaded);
    let library = "#!lua name=t\nredis.register_function('twice', function(k, a) return a[1] * 2 end)";
    redis.load_functions(library).await.unwrap();
    redis.load_functions(library).await.unwrap();
    let twice: i64 = redis.fcall("twice", vec!["a".into()], vec![21.into()]).await.unwrap();
    assert_eq!(twice, 42);
    let wrong = redis.command::<Value>("LPUSH", vec!["a", "x"]).await.unwrap_err();
    assert_eq!(wrong.kind(), RedisErrorKind::WrongType);
    assert_eq!(redis.del(vec!["a".into(), "b".into()]).await.unwrap(), 1);
}

#[tokio::test]
async fn a_blocking_wait_tells_nothing_from_something() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let redis = connect(&server.url()).await;
    let blocking = redis.blocking().await.unwrap();
    assert_eq!(blocking.bzpopmin("wake", Duration::from_millis(50)).await.unwrap(), None);
    let waiting = tokio::spawn(async move { blocking.bzpopmin("wake", Duration::from_secs(10)).await });
    let _: Value = redis.command("ZADD", vec!["wake", "3", "m"]).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), Some(("m".to_owned(), 3.0)));
}

#[tokio::test]
async fn messages_arrive_and_survive_a_restart_of_the_server() {
    let mut server = RedisServer::start(RedisOptions::default()).await;
    let redis = connect(&server.url()).await;
    let subscriber = redis.subscriber().await.unwrap();
    let mut messages = subscriber.subscribe(vec!["c".into()]).await.unwrap();
    let _: Value = redis.command("PUBLISH", vec!["c", "one"]).await.unwrap();
    assert_eq!(messages.recv().await.unwrap(), ("c".to_owned(), "one".to_owned()));
    server.restart(true).await;
    voiceai_testkit::wait_until(Duration::from_secs(15), "the subscription is renewed", async || {
        redis.command::<i64>("PUBLISH", vec!["c", "two"]).await.is_ok_and(|receivers| receivers > 0)
    })
    .await;
    assert_eq!(messages.recv().await.unwrap().1, "two");
}

#[tokio::test]
async fn an_evicting_policy_is_refused_and_a_wrong_password_named() {
    let options = RedisOptions { policy: Some("volatile-lru"), ..RedisOptions::default() };
    let server = RedisServer::start(options).await;
    let error = connect(&server.url()).await.refuse_unsafe_server().await.unwrap_err();
    assert!(
        error.to_string().contains("volatile-lru") && error.to_string().contains("noeviction"),
        "{error}"
    );
    let options = RedisOptions { requirepass: Some("right"), ..RedisOptions::default() };
    let server = RedisServer::start(options).await;
    let url = server.url().replace("right", "wrong-canary");
    let error = Redis::connect(&RedisSettings::from_url(url).unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), RedisErrorKind::Denied, "{error}");
    assert!(!format!("{error} {error:?}").contains("canary"));
}
