use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;
use voiceai_cli::doctor::Finding;
use voiceai_postgres::PgPool;
use voiceai_redis::Redis;
use voiceai_service::{Shared, failures};

const CONNECT_WITHIN: Duration = Duration::from_secs(4);

/// One connection to each store, made by the first check that needs it and shared by all. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Stores(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Shared,
    redis: OnceCell<Result<Redis, (String, String)>>,
    pool: OnceCell<Result<PgPool, (String, String)>>,
}

impl Stores {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(shared: &Shared) -> Self {
        Self(Arc::new(Inner { shared: shared.clone(), redis: OnceCell::new(), pool: OnceCell::new() }))
    }

    /// Redis.
    ///
    /// # Errors
    /// The finding of a check that needs it while it is away: `skipped`.
    pub async fn redis(&self) -> Result<Redis, Finding> {
        self.connect_redis().await.map_err(|_| Finding::skipped("Redis cannot be reached"))
    }

    /// PostgreSQL.
    ///
    /// # Errors
    /// The finding of a check that needs it while it is away: `skipped`.
    pub async fn pool(&self) -> Result<PgPool, Finding> {
        self.connect_pool().await.map_err(|_| Finding::skipped("PostgreSQL cannot be reached"))
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    /// The error is what happened and what to do.
    pub(crate) async fn connect_redis(&self) -> Result<Redis, (String, String)> {
        let connect = async || {
            let mut settings = self.0.shared.redis.clone();
            settings.connect_deadline = CONNECT_WITHIN;
            let connected = Redis::connect(&settings).await.map_err(|error| failures::redis(&error));
            connected.map_err(|failure| (failure.message, failure.remedy))
        };
        self.0.redis.get_or_init(connect).await.clone()
    }

    pub(crate) async fn connect_pool(&self) -> Result<PgPool, (String, String)> {
        let connect = async || {
            let mut settings = self.0.shared.postgres.clone();
            settings.connect_deadline = CONNECT_WITHIN;
            settings.acquire_timeout = CONNECT_WITHIN;
            let connected = voiceai_postgres::connect(&settings).await;
            connected
                .map_err(|error| failures::postgres_connect(&error))
                .map_err(|failure| (failure.message, failure.remedy))
        };
        self.0.pool.get_or_init(connect).await.clone()
    }
}
