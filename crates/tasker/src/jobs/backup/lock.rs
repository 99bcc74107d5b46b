//! One backup of a database at a time.
//!
//! The lock is PostgreSQL's own advisory lock, held by a transaction in a session of its own: it ends with the process
//! whatever happens to it, needs no lease to be renewed during a dump of hours, and, being a transaction's, is not left
//! behind in a pooler's connection. The transaction reads nothing afterwards, so it does not hold back vacuum.

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _, Row as _};
use voiceai_postgres::sqlx;

use super::address::Address;
use super::error::BackupError;

/// The number of the lock: `backup` in ASCII.
const NUMBER: i64 = 0x0062_6163_6b75_7000;

const TAKE: &str = "SELECT pg_catalog.pg_try_advisory_xact_lock($1)";

const HOLDER: &str = "
    SELECT COALESCE(a.application_name, '') || ', process ' || l.pid::text || COALESCE(', since '
           || pg_catalog.to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), '')
    FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
      AND (l.classid::int8 << 32 | l.objid::int8) = $1";

/// The right to back a database up; given back when dropped.
#[derive(Debug)]
pub(super) struct Lock {
    session: PgConnection,
    place: String,
}

impl Lock {
    /// Takes the lock for the backup `id`.
    ///
    /// # Errors
    /// [`BackupError::Busy`] when another session has it.
    pub(super) async fn take(database: &Address, id: &str) -> Result<Self, BackupError> {
        let place = database.place().to_owned();
        let failed = || BackupError::database("lock", &place);
        let mut session = database.connect(&format!("voiceai-backup {id}")).await?;
        let begin =
            "BEGIN; SET LOCAL statement_timeout = '30s'; SET LOCAL idle_in_transaction_session_timeout = 0";
        session.execute(sqlx::raw_sql(begin)).await.map_err(failed())?;
        let taken: bool =
            sqlx::query_scalar(TAKE).bind(NUMBER).fetch_one(&mut session).await.map_err(failed())?;
        if !taken {
            let holder =
                sqlx::query(HOLDER).bind(NUMBER).fetch_optional(&mut session).await.map_err(failed())?;
            let _ = session.close().await;
            let by = holder.map_or_else(|| "it has just ended".to_owned(), |row| row.get(0));
            return Err(BackupError::Busy { database: place, by });
        }
        Ok(Self { session, place })
    }

    /// Gives it back, with a word to the server: a session that just vanishes is a line in its log.
    pub(super) async fn release(self) {
        let _ = self.session.close().await;
    }

    /// Asked before what only the holder may do: the lock is gone when its session is.
    pub(super) async fn check(&mut self) -> Result<(), BackupError> {
        let asked = self.session.execute("SELECT 1").await;
        asked.map(|_| ()).map_err(BackupError::database("lock", &self.place))
    }
}
