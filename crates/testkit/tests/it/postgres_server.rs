use std::time::Duration;

use sqlx::{Connection, PgConnection};
use voiceai_testkit::PostgresServer;

async fn count(url: &str) -> Result<i64, sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    let count = sqlx::query_scalar("SELECT count(*) FROM kept").fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(count)
}

#[tokio::test]
async fn data_survives_a_kill_and_an_empty_restart_loses_it() {
    let mut server = PostgresServer::start_with(&["max_connections=17"]).await;
    let url = server.url();
    let mut open = PgConnection::connect(&url).await.unwrap();
    let limit: String = sqlx::query_scalar("SHOW max_connections").fetch_one(&mut open).await.unwrap();
    assert_eq!(limit, "17");
    sqlx::query("CREATE TABLE kept AS SELECT 1 AS id").execute(&mut open).await.unwrap();

    server.kill9().await;
    assert!(
        sqlx::query("SELECT 1").execute(&mut open).await.is_err(),
        "an open connection outlived the server"
    );
    assert!(count(&url).await.is_err());
    server.restart(false).await;
    assert_eq!(count(&url).await.unwrap(), 1);
    server.restart(true).await;
    assert!(count(&url).await.unwrap_err().to_string().contains("does not exist"));
}

#[tokio::test]
async fn a_paused_server_answers_nobody_until_resumed() {
    let server = PostgresServer::start().await;
    let mut open = PgConnection::connect(&server.url()).await.unwrap();
    server.pause();
    {
        // Not cut off but looked at: a cancelled query would leave the connection unusable.
        let query = sqlx::query("SELECT 1").execute(&mut open);
        tokio::pin!(query);
        assert!(
            tokio::time::timeout(Duration::from_millis(200), &mut query).await.is_err(),
            "it answered while paused"
        );
        server.resume();
        query.await.unwrap();
    }
    open.close().await.unwrap();
    // A paused server can be dropped.
    server.pause();
}
