use std::time::Duration;

use voiceai_cli::Failure;
use voiceai_postgres::{PgPool, connect as connect_postgres};
use voiceai_redis::Redis;

use crate::{Shared, failures};

/// Connections to both stores.
#[derive(Clone, Debug)]
pub struct Backends {
    /// Redis.
    pub redis: Redis,
    /// PostgreSQL.
    pub pool: PgPool,
}

/// Connects to both at the same time, each trying again for at most `within`, and refuses a Redis that could lose
/// leases or jobs by its settings.
///
/// # Errors
/// Unreachable (5) when time runs out; refused (4) when the server answers and trying again cannot help.
pub async fn connect(shared: &Shared, within: Duration) -> Result<Backends, Failure> {
    let (redis, pool) = tokio::join!(connect_redis(shared, within), connect_pool(shared, within));
    Ok(Backends { redis: redis?, pool: pool? })
}

/// Connects to Redis alone; see [`connect`].
///
/// # Errors
/// As [`connect`].
pub async fn connect_redis(shared: &Shared, within: Duration) -> Result<Redis, Failure> {
    let mut settings = shared.redis.clone();
    settings.connect_deadline = within;
    let redis = Redis::connect(&settings).await.map_err(|e| failures::redis(&e))?;
    redis.refuse_unsafe_server().await.map_err(|e| failures::redis(&e))?;
    Ok(redis)
}

/// Connects to PostgreSQL alone; see [`connect`].
///
/// # Errors
/// As [`connect`].
pub async fn connect_pool(shared: &Shared, within: Duration) -> Result<PgPool, Failure> {
    let mut settings = shared.postgres.clone();
    settings.connect_deadline = within;
    connect_postgres(&settings).await.map_err(|e| failures::postgres_connect(&e))
}
