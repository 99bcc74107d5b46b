use std::time::Duration;

use voiceai_e2e::Platform;
use voiceai_testkit::{PostgresServer, Process, RedisOptions, RedisServer, wait_until};

use crate::{BINARIES, READY, SOON, platform, platform_on};

async fn health(platform: &Platform, binary: &str, args: &[&str]) -> i32 {
    platform.command(binary, &[&["healthcheck"], args].concat()).await.unwrap().code
}

/// Starts both as the instance that `healthcheck` asks for by default.
async fn start_both(platform: &mut Platform) -> Vec<(&'static str, Process)> {
    platform.set("INSTANCE_ID", "only");
    let both: Vec<_> = BINARIES.into_iter().map(|binary| (binary, platform.start(binary, "only"))).collect();
    for (binary, process) in &both {
        process.wait_for_line(SOON, READY).await;
        process
            .wait_until(SOON, "it is live and ready", async || {
                health(platform, binary, &[]).await == 0 && health(platform, binary, &["--ready"]).await == 0
            })
            .await;
    }
    both
}

#[tokio::test]
async fn without_redis_a_process_is_live_and_not_ready_and_recovers() {
    let mut server = RedisServer::start(RedisOptions::default()).await;
    let database = voiceai_testkit::empty_database().await;
    let mut platform = platform_on(&server.url(), &database.url).await;
    let both = start_both(&mut platform).await;
    server.kill9().await;
    unready_then(&platform, &both).await;
    server.restart(true).await;
    ready_again(&platform, &both).await;
}

#[tokio::test]
async fn without_postgresql_a_process_is_live_and_not_ready_and_recovers() {
    let mut server = PostgresServer::start().await;
    let redis = voiceai_testkit::redis().await;
    let mut platform = platform_on(&redis.url, &server.url()).await;
    let both = start_both(&mut platform).await;
    server.kill9().await;
    unready_then(&platform, &both).await;
    server.restart(false).await;
    ready_again(&platform, &both).await;
}

#[tokio::test]
async fn on_a_server_that_takes_no_writes_a_process_is_not_ready_and_leaves_it_by_itself() {
    let server = PostgresServer::start().await;
    let redis = voiceai_testkit::redis().await;
    let mut platform = platform_on(&redis.url, &server.url()).await;
    let both = start_both(&mut platform).await;
    // A primary that was demoted: its sessions end, and whoever comes again finds it read-only, as a standby is.
    let pool = platform.pool().await.unwrap();
    let mut session = pool.acquire().await.unwrap();
    let mut run =
        async |sql: &'static str| sqlx::raw_sql(sql).execute(&mut *session).await.map(|_| ()).unwrap();
    run("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$").await;
    run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()").await;
    unready_then(&platform, &both).await;
    // The address leads to a primary again; nothing ends the sessions that were opened meanwhile.
    run("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET default_transaction_read_only', current_database()); END $$").await;
    ready_again(&platform, &both).await;
}

async fn unready_then(platform: &Platform, both: &[(&'static str, Process)]) {
    for (binary, process) in both {
        process
            .wait_until(SOON, "it is not ready", async || health(platform, binary, &["--ready"]).await == 7)
            .await;
        assert_eq!(health(platform, binary, &[]).await, 0, "{binary} is live: a restart would heal nothing");
        assert_eq!(process.exit(), None);
    }
}

async fn ready_again(platform: &Platform, both: &[(&'static str, Process)]) {
    for (binary, process) in both {
        process
            .wait_until(SOON, "it is ready again", async || health(platform, binary, &["--ready"]).await == 0)
            .await;
        assert_eq!(health(platform, binary, &[]).await, 0);
    }
}

#[tokio::test]
async fn a_process_that_stands_still_or_is_gone_is_not_live() {
    let mut platform = platform().await;
    let both = start_both(&mut platform).await;
    // All at once: a state file counts as old only after some time, on purpose.
    for (_, process) in &both {
        process.pause();
    }
    for (binary, _) in &both {
        wait_until(Duration::from_secs(40), "a paused process is not live", async || {
            health(&platform, binary, &[]).await == 7
        })
        .await;
    }
    for (binary, process) in &both {
        process.resume();
        wait_until(SOON, "it is live once it goes on", async || health(&platform, binary, &[]).await == 0)
            .await;
        process.terminate();
        process.wait_exit(SOON).await;
        assert_eq!(health(&platform, binary, &[]).await, 7, "nobody wrote a state file");
    }
}
