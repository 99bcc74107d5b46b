use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor, PgPool};
use voiceai_runtime::{Backoff, boot_now, random_unit};

use crate::{PostgresSettings, is_unavailable};

/// No connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address cannot be understood. The text does not repeat it.
    #[error("DATABASE_URL is not a PostgreSQL address; expected postgres://user:password@host:5432/database")]
    Address,
    /// The server did not answer in time.
    #[error("connect to PostgreSQL at {place}: no success within {within:?}")]
    Unreachable {
        /// Host and database, without user or password.
        place: String,
        /// The limit that passed.
        within: Duration,
        /// The last failure.
        source: sqlx::Error,
    },
    /// The server answered and refused: wrong password, no such database, no right.
    #[error("connect to PostgreSQL at {place}: refused")]
    Refused {
        /// Host and database, without user or password.
        place: String,
        /// What the server said.
        source: sqlx::Error,
    },
}

/// Opens a pool and proves it with one query, trying again for at most [`PostgresSettings::connect_deadline`].
///
/// # Errors
/// [`ConnectError::Refused`] at once when trying again cannot help; else the last failure once the time is over.
pub async fn connect(settings: &PostgresSettings) -> Result<PgPool, ConnectError> {
    let options = PgConnectOptions::from_str(settings.url.expose())
        .map_err(|_| ConnectError::Address)?
        .application_name(&settings.application_name);
    let place = format!("{}/{}", options.get_host(), options.get_database().unwrap_or_default());
    let session = session_limits(
        settings.statement_timeout,
        settings.lock_timeout,
        settings.idle_in_transaction_timeout,
    );
    let pool = PgPoolOptions::new()
        .max_connections(settings.max_connections)
        .acquire_timeout(settings.acquire_timeout)
        .idle_timeout(Duration::from_secs(300))
        .after_connect(move |connection, _| {
            let session = session.clone();
            Box::pin(async move { connection.execute(AssertSqlSafe(session)).await.map(|_| ()) })
        })
        .connect_lazy_with(options);
    let until = boot_now().saturating_add(settings.connect_deadline);
    let mut attempt = 0;
    loop {
        let Err(error) = sqlx::query("SELECT 1").execute(&pool).await else { return Ok(pool) };
        if !is_unavailable(&error) {
            return Err(ConnectError::Refused { place, source: error });
        }
        let wait = Backoff::RECONNECT.delay(attempt, random_unit());
        if boot_now().saturating_add(wait) >= until {
            return Err(ConnectError::Unreachable {
                place,
                within: settings.connect_deadline,
                source: error,
            });
        }
        if attempt == 0 {
            tracing::warn!(%error, place, "PostgreSQL is not reachable yet");
        }
        attempt += 1;
        tokio::time::sleep(wait).await;
    }
}

/// A standby answers every read, and so does a primary that was demoted while its address still led there.
const TAKES_NO_WRITES: &str = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'";

/// Asks the server whether it takes writes. One that does not may be the wrong one of two by now: the pool's connections to it
/// are given up, so that new ones are made to whoever has the address.
///
/// # Errors
/// As the server says, or that none is reached.
pub async fn takes_writes(pool: &PgPool) -> Result<bool, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    if !sqlx::query_scalar(TAKES_NO_WRITES).fetch_one(&mut *connection).await? {
        return Ok(true);
    }
    let mut given_up = vec![connection];
    for _ in 0..pool.options().get_max_connections() {
        given_up.extend(pool.try_acquire());
    }
    for connection in given_up {
        // Whether or not the server hears of it.
        let _ = connection.close().await;
    }
    Ok(false)
}

/// A second, small pool to the database of `pool`, made of connections that are opened when needed. Waiting for a
/// connection, a lock and a statement each end after `limit`. For what must not wait behind ordinary work: leadership.
#[must_use]
pub fn reserved(pool: &PgPool, connections: u32, limit: Duration) -> PgPool {
    let session = session_limits(limit, limit, limit);
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(limit)
        .idle_timeout(Duration::from_secs(300))
        .after_connect(move |connection, _| {
            let session = session.clone();
            Box::pin(async move { connection.execute(AssertSqlSafe(session)).await.map(|_| ()) })
        })
        // A term is written: a connection to what is a standby by now would keep the next leader from being elected.
        .before_acquire(|connection, _| {
            Box::pin(async move {
                let refuses: bool = sqlx::query_scalar(TAKES_NO_WRITES).fetch_one(connection).await?;
                Ok(!refuses)
            })
        })
        .connect_lazy_with(pool.connect_options().as_ref().clone())
}

/// Set after connecting: a pooler in between refuses them as start-up parameters.
fn session_limits(statement: Duration, lock: Duration, idle_in_transaction: Duration) -> String {
    format!(
        "SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}; \
         SET client_min_messages = warning",
        statement.as_millis(),
        lock.as_millis(),
        idle_in_transaction.as_millis(),
    )
}
