//! Hearing what other processes notify.

use std::convert::Infallible;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgListener, PgPoolOptions};
use voiceai_runtime::{Backoff, random_unit};

/// Passes on what is notified on `channels`, for ever: `told` is given the channel, or nothing where something may have been
/// missed, as at the beginning and after each loss of the connection. Holds one connection of its own outside the pool. Losing it costs
/// nothing but time to those who also look by themselves. `what` names the wake-ups in the log: `of mail`.
pub async fn listen(
    pool: &PgPool,
    channels: &[&str],
    what: &str,
    told: impl Fn(Option<&str>) + Send + Sync,
) -> Infallible {
    let mut failures = 0;
    loop {
        let Err(lost) = until_lost(pool, channels, &told, &mut failures).await;
        if failures == 0 {
            tracing::warn!(error = %lost, "wake-ups {what} from PostgreSQL are interrupted; polling goes on");
        }
        let wait = Backoff::RECONNECT.delay(failures, random_unit()).max(Duration::from_millis(50));
        failures += 1;
        tokio::time::sleep(wait).await;
    }
}

async fn until_lost(
    pool: &PgPool,
    channels: &[&str],
    told: &(impl Fn(Option<&str>) + Send + Sync),
    failures: &mut u32,
) -> Result<Infallible, sqlx::Error> {
    let own = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(Duration::from_secs(5))
        .connect_lazy_with((*pool.connect_options()).clone());
    let mut listener = PgListener::connect_with(&own).await?;
    listener.listen_all(channels.iter().copied()).await?;
    *failures = 0;
    // What was notified while nobody listened is found by looking once.
    told(None);
    loop {
        // `None`: the connection was lost and is there again.
        let heard = listener.try_recv().await?;
        told(heard.as_ref().map(sqlx::postgres::PgNotification::channel));
    }
}
