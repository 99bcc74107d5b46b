//! Databases with and without the platform's tables.

use voiceai_testkit::{Database, database, database_from};

/// The platform's tables.
const PLATFORM: &str = include_str!("../../../../tests/fixtures/platform.sql");

/// A database with our tables and the platform's.
pub(crate) async fn platform() -> Database {
    let ours: String =
        voiceai_postgres::ALL.iter().flat_map(|part| part.files.iter().map(|(_, sql)| *sql)).collect();
    database_from(&format!("{ours}\n{PLATFORM}"), async |url| {
        let pool = voiceai_postgres::sqlx::PgPool::connect(url).await.unwrap();
        voiceai_postgres::migrate(&pool, voiceai_postgres::ALL).await.unwrap();
        voiceai_postgres::sqlx::raw_sql(PLATFORM).execute(&pool).await.unwrap();
        pool.close().await;
    })
    .await
}

/// A database with our tables alone.
pub(crate) async fn bare() -> Database {
    database().await
}
