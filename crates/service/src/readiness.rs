use std::time::Duration;

use voiceai_postgres::{PgPool, takes_writes};
use voiceai_redis::{CallOptions, Redis, Value};
use voiceai_runtime::Vitals;

const EVERY: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(2);

/// Asks both backends every second and reports what they say. Runs until it is dropped.
pub(crate) async fn watch(vitals: Vitals, redis: Redis, pool: PgPool) {
    let redis = redis.with(CallOptions { attempts: Some(1), timeout: Some(LIMIT), fail_fast: true });
    let pulse = vitals.register("readiness", LIMIT * 2 + EVERY * 10);
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let (redis_state, postgres_state) = tokio::join!(ping_redis(&redis), ping_postgres(&pool));
        vitals.set_ready("redis", redis_state);
        vitals.set_ready("postgres", postgres_state);
        pulse.beat();
    }
}

async fn ping_redis(redis: &Redis) -> Result<(), String> {
    let ping = redis.command::<Value>("PING", Vec::<Value>::new());
    match tokio::time::timeout(LIMIT, ping).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {LIMIT:?}")),
    }
}

async fn ping_postgres(pool: &PgPool) -> Result<(), String> {
    // A plain statement, so that cancelling it leaves no transaction open in the pool.
    match tokio::time::timeout(LIMIT, takes_writes(pool)).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => {
            Err("the server takes no writes: it is a standby, or the primary of before; see DATABASE_URL"
                .to_owned())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {LIMIT:?}")),
    }
}
