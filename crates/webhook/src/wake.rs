use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::sqlx::postgres::{PgListener, PgPoolOptions};
use voiceai_postgres::{PgPool, sqlx};
use voiceai_runtime::{Backoff, random_unit};

const CHANNEL: &str = "voiceai_webhook";

/// Tells the scheduler of this process that there may be something to post. A call that finds nobody waiting is kept. Cheap to
/// clone.
#[derive(Debug, Clone, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Nobody has called yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// There may be something to post.
    pub fn wake(&self) {
        self.0.notify_one();
    }

    pub(crate) async fn woken(&self) {
        self.0.notified().await;
    }
}

/// Passes on what other processes wrote, until `stopping`. Holds one connection of its own outside the pool. Losing it costs
/// nothing but time: the scheduler also looks by itself.
pub async fn listen(pool: PgPool, wake: Wake, stopping: CancellationToken) {
    let mut failures = 0;
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            lost = pass_on(&pool, &wake, &mut failures) => {
                if failures == 0 {
                    tracing::warn!(error = %lost, "wake-ups of webhooks from PostgreSQL are interrupted; polling goes on");
                }
            }
        }
        let wait = Backoff::RECONNECT.delay(failures, random_unit()).max(Duration::from_millis(50));
        failures += 1;
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn pass_on(pool: &PgPool, wake: &Wake, failures: &mut u32) -> sqlx::Error {
    let listening = async {
        let own = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy_with((*pool.connect_options()).clone());
        let mut listener = PgListener::connect_with(&own).await?;
        listener.listen(CHANNEL).await?;
        *failures = 0;
        // What was notified while nobody listened is found by looking once.
        wake.wake();
        loop {
            // `None`: the connection was lost and is there again.
            let _ = listener.try_recv().await?;
            wake.wake();
        }
    };
    let result: Result<std::convert::Infallible, sqlx::Error> = listening.await;
    match result {
        Err(error) => error,
    }
}
