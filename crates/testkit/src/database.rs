//! PostgreSQL databases of a test's own, on the shared server.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor};
use voiceai_postgres::Component;

use crate::shared::{Part, address};

/// A PostgreSQL database of the calling test's own. It is dropped by the server's supervisor after the test process has ended.
#[derive(Debug, Clone)]
pub struct Database {
    /// `postgres://voiceai@127.0.0.1:PORT/NAME`.
    pub url: String,
    /// The database's name.
    pub name: String,
}

impl Database {
    /// A single connection.
    pub async fn connect(&self) -> PgConnection {
        connect(&self.url).await
    }

    /// A pool of at most five connections.
    pub async fn pool(&self) -> PgPool {
        PgPoolOptions::new()
            .max_connections(5)
            .acquire_timeout(Duration::from_secs(30))
            .connect(&self.url)
            .await
            .unwrap_or_else(|error| panic!("connect to {}: {error}", self.url))
    }

    /// Runs one or several statements.
    pub async fn execute(&self, sql: &str) {
        let mut connection = self.connect().await;
        run(&mut connection, sql).await;
        let _ = connection.close().await;
    }
}

/// A new database with every migration of this workspace.
pub async fn database() -> Database {
    postgres(voiceai_postgres::ALL).await
}

/// A new database with the migrations of these components.
pub async fn postgres(components: &[Component]) -> Database {
    // The files themselves, so that an edited migration is never tested against an older template.
    let key: String = components
        .iter()
        .flat_map(|c| c.files.iter().flat_map(|(file, sql)| [c.name, "/", file, "\n", sql]))
        .collect();
    database_from(&key, async |url| {
        let pool = PgPool::connect(url).await.unwrap_or_else(|error| panic!("connect to {url}: {error}"));
        if let Err(error) = voiceai_postgres::migrate(&pool, components).await {
            panic!("migrate a test's database: {error:?}");
        }
        pool.close().await;
    })
    .await
}

/// A new database without any table.
pub async fn empty_database() -> Database {
    create(&server().await, "template1").await
}

/// A new database as `prepare` leaves it, made by copying.
///
/// `prepare` gets the URL of an empty database and runs once for all tests with the same `key`; it must close its
/// connections. The key has to change with what `prepare` does: hash the migrations into it.
pub async fn database_from(key: &str, prepare: impl AsyncFnOnce(&str)) -> Database {
    let server = server().await;
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let hash = hasher.finish();
    let template = format!("template_{hash:016x}");

    let mut admin = connect(&server).await;
    // The first test prepares while the others wait; the lock ends with the connection, even if the test is killed.
    sqlx::query("SELECT pg_advisory_lock($1)")
        .bind(hash.cast_signed())
        .execute(&mut admin)
        .await
        .expect("lock the template");
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(&template)
        .fetch_one(&mut admin)
        .await
        .expect("look for the template");
    if !exists {
        // Under a name of its own until it is whole, so that half a template is never copied.
        let unfinished = create(&server, "template1").await;
        prepare(&unfinished.url).await;
        run(&mut admin, &format!("ALTER DATABASE \"{}\" RENAME TO \"{template}\"", unfinished.name)).await;
    }
    let _ = admin.close().await;
    create(&server, &template).await
}

async fn server() -> String {
    address(Part::Postgres).await["VOICEAI_TEST_DATABASE_URL"].clone()
}

/// The name carries this process's id: the supervisor drops the databases of processes that have ended.
async fn create(server: &str, template: &str) -> Database {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("t_{}_{number}_{:04x}", std::process::id(), crate::ports::random() & 0xffff);
    let mut admin = connect(server).await;
    run(&mut admin, &format!("CREATE DATABASE \"{name}\" TEMPLATE \"{template}\" STRATEGY FILE_COPY")).await;
    let _ = admin.close().await;
    Database { url: with_database(server, &name), name }
}

/// The same server's URL with another database.
fn with_database(server: &str, name: &str) -> String {
    let (before, query) = server
        .split_once('?')
        .map_or((server, String::new()), |(before, query)| (before, format!("?{query}")));
    let (authority, _old) = before.rsplit_once('/').expect("VOICEAI_TEST_DATABASE_URL names a database");
    format!("{authority}/{name}{query}")
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap_or_else(|error| panic!("connect to {url}: {error}"))
}

async fn run(connection: &mut PgConnection, sql: &str) {
    connection
        .execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())))
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}
