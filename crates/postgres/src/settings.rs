use std::time::Duration;

use voiceai_runtime::Secret;

/// Where PostgreSQL is and how long anything may take.
#[derive(Clone, Debug)]
pub struct PostgresSettings {
    /// `postgres://user:password@host:port/database?…`, or with `?host=/socket/folder`.
    pub url: Secret,
    /// Most connections of this process. Default 10.
    pub max_connections: u32,
    /// How long [`crate::connect`] goes on trying before it gives up. Default 30 s.
    pub connect_deadline: Duration,
    /// Longest wait for a free connection, connecting included. Default 5 s.
    pub acquire_timeout: Duration,
    /// `statement_timeout` of every session. Default 8 s, below the leader's lease.
    pub statement_timeout: Duration,
    /// `lock_timeout` of every session. Default 4 s.
    pub lock_timeout: Duration,
    /// `idle_in_transaction_session_timeout` of every session, so that a paused process cannot hold a lock for longer.
    /// Default 5 s.
    pub idle_in_transaction_timeout: Duration,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
}

impl PostgresSettings {
    /// The defaults, for `url`.
    #[must_use]
    pub fn new(url: Secret) -> Self {
        Self {
            url,
            max_connections: 10,
            connect_deadline: Duration::from_secs(30),
            acquire_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(8),
            lock_timeout: Duration::from_secs(4),
            idle_in_transaction_timeout: Duration::from_secs(5),
            application_name: "voiceai".into(),
        }
    }
}
