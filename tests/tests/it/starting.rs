use std::time::Instant;

use voiceai_testkit::{Exit, Port, RedisOptions, RedisServer};

use crate::{BINARIES, READY, SOON, platform, platform_on};

#[tokio::test]
async fn every_wrong_setting_is_named_in_one_report_and_nothing_is_touched() {
    let mut platform = platform().await;
    platform.set("LEADER_LOCK_TTL_MS", "soon");
    platform.set("DATABASE_URL", "mysql://u:s3cret-canary@h/d");
    platform.set("REDIS_URL", "");
    platform.set("SHUTDOWN_TIMEOUT", "-1s");
    for binary in BINARIES {
        let process = platform.start(binary, "a");
        assert_eq!(process.wait_exit(SOON).await, Exit::Code(4), "{binary}");
        let told = process.stderr();
        for name in ["LEADER_LOCK_TTL_MS", "DATABASE_URL", "REDIS_URL", "SHUTDOWN_TIMEOUT"] {
            assert!(told.contains(name), "{binary} does not name {name}: {told}");
        }
        assert!(!told.contains("canary"), "{told}");
        let check = platform.command(binary, &["config", "check", "--json"]).await.unwrap();
        assert_eq!(check.code, 4, "{check:?}");
    }
}

#[tokio::test]
async fn one_lease_for_both_services_is_refused() {
    let mut platform = platform().await;
    platform.set("LEADER_ELECTION_KEY", "voiceai:leader");
    for other in ["voiceai:leader", "voiceai:leader:term"] {
        platform.set("TASKER_LEADER_ELECTION_KEY", other);
        for binary in BINARIES {
            let check = platform.command(binary, &["config", "check"]).await.unwrap();
            assert_eq!(check.code, 4, "{other}: {check:?}");
            let process = platform.start(binary, "a");
            assert_eq!(process.wait_exit(SOON).await, Exit::Code(4), "{binary}: {other}");
            assert!(process.stderr().contains("TASKER_LEADER_ELECTION_KEY"), "{}", process.stderr());
        }
    }
}

#[tokio::test]
async fn a_backend_that_is_away_ends_the_start_with_5_within_its_time() {
    for (name, form) in
        [("REDIS_URL", "redis://127.0.0.1:PORT/0"), ("DATABASE_URL", "postgres://u@127.0.0.1:PORT/d")]
    {
        let mut platform = platform().await;
        let port = Port::reserve();
        platform.set(name, form.replace("PORT", &port.number().to_string()));
        platform.set("START_TIMEOUT", "1s");
        for binary in BINARIES {
            let begun = Instant::now();
            let process = platform.start(binary, "a");
            assert_eq!(
                process.wait_exit(SOON).await,
                Exit::Code(5),
                "{binary} without {name}: {}",
                process.stderr()
            );
            assert!(process.stderr().contains(name), "{}", process.stderr());
            assert!(begun.elapsed().as_secs() < 15, "{:?}", begun.elapsed());
        }
    }
}

#[tokio::test]
async fn a_redis_that_may_evict_leases_is_refused() {
    let server =
        RedisServer::start(RedisOptions { policy: Some("allkeys-lru"), ..RedisOptions::default() }).await;
    let database = voiceai_testkit::empty_database().await;
    let platform = platform_on(&server.url(), &database.url).await;
    for binary in BINARIES {
        let process = platform.start(binary, "a");
        assert_eq!(process.wait_exit(SOON).await, Exit::Code(4), "{}", process.stderr());
        let told = process.stderr();
        assert!(told.contains("allkeys-lru") && told.contains("noeviction"), "{told}");
    }
}

#[tokio::test]
async fn stores_of_another_environment_are_refused_by_both_names() {
    let mut platform = platform().await;
    let first = platform.start("voiceai-tasker", "a");
    first.wait_for_line(SOON, READY).await;
    platform.set("ENVIRONMENT", "production");
    for binary in BINARIES {
        let process = platform.start(binary, "b");
        assert_eq!(process.wait_exit(SOON).await, Exit::Code(4), "{}", process.stderr());
        let told = process.stderr();
        assert!(told.contains("production") && told.contains("demo"), "{told}");
    }
}

#[tokio::test]
async fn a_schema_that_is_newer_and_breaking_is_refused_and_another_newer_one_is_not() {
    let platform = platform().await;
    let migrated = platform.command("voiceai-tasker", &["migrate"]).await.unwrap();
    assert_eq!(migrated.code, 0, "{migrated:?}");
    let pool = platform.pool().await.unwrap();
    let newer = |description: &'static str, version: i64| {
        sqlx::query(
            "INSERT INTO ops.migrations_common (version, description, success, checksum, execution_time) \
             VALUES ($1, $2, true, '\\x00', 0)",
        )
        .bind(version)
        .bind(description)
        .execute(&pool)
    };
    newer("wider table", 9_000).await.unwrap();
    let process = platform.start("voiceai-tasker", "a");
    process.wait_for_line(SOON, READY).await;
    newer("breaking drop", 9_001).await.unwrap();
    for binary in BINARIES {
        let process = platform.start(binary, "b");
        assert_eq!(process.wait_exit(SOON).await, Exit::Code(4), "{}", process.stderr());
        assert!(process.stderr().contains("common/9001"), "{}", process.stderr());
    }
}
