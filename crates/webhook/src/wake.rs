use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::PgPool;

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
    let hearing = voiceai_postgres::listen(&pool, &[CHANNEL], "of webhooks", |_| wake.wake());
    stopping.run_until_cancelled(hearing).await;
}
