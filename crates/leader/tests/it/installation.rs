//! One environment: which Redis and which database belong together.

use std::time::Duration;

use voiceai_leader::{INSTALLATION_KEY, InstallationError, check_installation};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx;
use voiceai_redis::{Redis, RedisSettings};
use voiceai_testkit::RedisDb;

use crate::lone::connect;

struct Stores {
    db: RedisDb,
    redis: Redis,
    pool: PgPool,
}

async fn stores() -> Stores {
    let db = voiceai_testkit::redis().await;
    let redis = connect(&db.url).await;
    Stores { db, redis, pool: voiceai_testkit::database().await.pool().await }
}

#[tokio::test]
async fn the_first_start_writes_both_and_every_later_one_agrees() {
    let s = stores().await;
    let first = check_installation(&s.redis, &s.pool, "staging").await.unwrap();
    assert_eq!(first.environment, "staging");
    let written: serde_json::Value =
        serde_json::from_str(&s.db.cli(&["GET", INSTALLATION_KEY]).await).unwrap();
    assert_eq!(written["environment"], "staging");
    assert_eq!(written["installation_id"], first.installation_id.to_string());
    assert_eq!(s.db.cli(&["TTL", INSTALLATION_KEY]).await, "-1");
    assert_eq!(check_installation(&s.redis, &s.pool, "staging").await.unwrap(), first);
}

#[tokio::test]
async fn another_environment_is_refused_by_either_store_and_both_are_named() {
    let s = stores().await;
    check_installation(&s.redis, &s.pool, "production").await.unwrap();
    let text = check_installation(&s.redis, &s.pool, "staging").await.unwrap_err().to_string();
    for part in ["ENVIRONMENT is `staging`", "Redis belongs to environment `production`"] {
        assert!(text.contains(part), "{text}");
    }
    s.db.cli(&["DEL", INSTALLATION_KEY]).await;
    let text = check_installation(&s.redis, &s.pool, "staging").await.unwrap_err().to_string();
    assert!(text.contains("PostgreSQL database belongs to environment `production`"), "{text}");
    assert_eq!(s.db.cli(&["EXISTS", INSTALLATION_KEY]).await, "0", "a refused start writes nothing");
}

#[tokio::test]
async fn a_refused_process_leaves_an_empty_database_empty() {
    let (production, other) = (stores().await, stores().await);
    check_installation(&production.redis, &production.pool, "production").await.unwrap();
    check_installation(&production.redis, &other.pool, "staging").await.unwrap_err();
    let rows: i64 =
        sqlx::query_scalar("SELECT count(*) FROM ops.installation").fetch_one(&other.pool).await.unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn an_emptied_redis_and_a_new_database_get_their_mark_back() {
    let s = stores().await;
    let first = check_installation(&s.redis, &s.pool, "production").await.unwrap();
    s.db.cli(&["FLUSHDB"]).await;
    assert_eq!(check_installation(&s.redis, &s.pool, "production").await.unwrap(), first);
    assert_eq!(s.db.cli(&["EXISTS", INSTALLATION_KEY]).await, "1");
    let restored = voiceai_testkit::database().await.pool().await;
    assert_eq!(check_installation(&s.redis, &restored, "production").await.unwrap(), first);
    assert_eq!(check_installation(&s.redis, &s.pool, "production").await.unwrap(), first);
}

#[tokio::test]
async fn two_installations_of_one_environment_are_told_apart() {
    let (a, b) = (stores().await, stores().await);
    let first = check_installation(&a.redis, &a.pool, "production").await.unwrap();
    let second = check_installation(&b.redis, &b.pool, "production").await.unwrap();
    let error = check_installation(&a.redis, &b.pool, "production").await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, InstallationError::Ids { .. }), "{text}");
    for part in [first.installation_id.to_string(), second.installation_id.to_string()] {
        assert!(text.contains(&part), "{text}");
    }
}

#[tokio::test]
async fn somebody_elses_key_is_refused_and_kept() {
    let s = stores().await;
    for (make, read) in
        [(["SET", INSTALLATION_KEY, "mine"], "GET"), (["LPUSH", INSTALLATION_KEY, "mine"], "LPOP")]
    {
        s.db.cli(&["DEL", INSTALLATION_KEY]).await;
        s.db.cli(&make).await;
        let error = check_installation(&s.redis, &s.pool, "production").await.unwrap_err();
        assert!(matches!(error, InstallationError::NotARecord(_)), "{error}");
        assert!(error.to_string().contains("DEL voiceai:installation"), "{error}");
        assert_eq!(s.db.cli(&[read, INSTALLATION_KEY]).await, "mine");
    }
}

#[tokio::test]
async fn of_many_first_starts_all_agree() {
    let s = stores().await;
    let starts = (0..20).map(|_| check_installation(&s.redis, &s.pool, "production"));
    let mut found: Vec<_> = futures_util::future::join_all(starts)
        .await
        .into_iter()
        .map(|i| i.unwrap().installation_id)
        .collect();
    found.dedup();
    assert_eq!(found.len(), 1, "{found:?}");
}

#[tokio::test]
async fn a_store_that_is_away_is_no_refusal() {
    let mut s = stores().await;
    let mut settings = RedisSettings::from_url(&*s.db.url).unwrap();
    settings.command_timeout = Duration::from_millis(300);
    s.redis = Redis::connect(&settings).await.unwrap();
    s.pool.close().await;
    let error = check_installation(&s.redis, &s.pool, "production").await.unwrap_err();
    assert!(matches!(error, InstallationError::Database(_)), "{error}");
    s.redis.close().await;
    let error = check_installation(&s.redis, &s.pool, "production").await.unwrap_err();
    assert!(matches!(error, InstallationError::Redis(_)), "{error}");
}
