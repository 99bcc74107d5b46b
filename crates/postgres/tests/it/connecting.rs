use std::time::Duration;

use sqlx::Row;
use voiceai_postgres::{ConnectError, PostgresSettings, connect, is_unavailable};
use voiceai_runtime::Secret;

#[tokio::test]
async fn every_session_carries_the_time_limits() {
    let database = voiceai_testkit::empty_database().await;
    let pool = connect(&PostgresSettings::new(Secret::new(&*database.url))).await.unwrap();
    let row = sqlx::query(
        "SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), \
         current_setting('idle_in_transaction_session_timeout')",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    let limits: (String, String, String) = (row.get(0), row.get(1), row.get(2));
    assert_eq!(limits, ("8s".into(), "4s".into(), "5s".into()));
}

#[tokio::test]
async fn a_refused_login_ends_at_once_and_hides_the_password() {
    let database = voiceai_testkit::empty_database().await;
    let (before, _) = database.url.rsplit_once('/').unwrap();
    let settings = PostgresSettings::new(Secret::new(format!("{before}/no_such_database_canary")));
    let started = std::time::Instant::now();
    let error = connect(&settings).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(5), "trying again cannot help");
    let error = connect(&PostgresSettings::new(Secret::new("mysql://u:canary@h/x"))).await.unwrap_err();
    assert!(!format!("{error:?} {error}").contains("canary"), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for_within_the_limit() {
    let port = voiceai_testkit::Port::reserve();
    let mut settings =
        PostgresSettings::new(Secret::new(format!("postgres://u@127.0.0.1:{}/d", port.number())));
    settings.connect_deadline = Duration::from_millis(500);
    let error = connect(&settings).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_restart_is_told_from_a_mistake() {
    let mut server = voiceai_testkit::PostgresServer::start().await;
    let pool = connect(&PostgresSettings::new(Secret::new(server.url()))).await.unwrap();
    let mistake = sqlx::query("SELECT * FROM nowhere").execute(&pool).await.unwrap_err();
    assert!(!is_unavailable(&mistake));
    server.kill9().await;
    let away = sqlx::query("SELECT 1").execute(&pool).await.unwrap_err();
    assert!(is_unavailable(&away), "{away:?}");
    server.restart(false).await;
    voiceai_testkit::wait_until(Duration::from_secs(10), "the pool recovers by itself", async || {
        sqlx::query("SELECT 1").execute(&pool).await.is_ok()
    })
    .await;
}
