use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::{PgPool, sqlx};

const CHANNEL: &str = "voiceai_mail";

/// Tells the scheduler of this process that there may be something to send. A call that finds nobody waiting is kept. Cheap to
/// clone.
#[derive(Debug, Clone, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Nobody has called yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// There may be something to send.
    pub fn wake(&self) {
        self.0.notify_one();
    }

    pub(crate) async fn woken(&self) {
        self.0.notified().await;
    }
}

/// Tells other processes that there may be something to send. The mails of a burst are told together, outside the transactions that
/// store them: PostgreSQL lets commits that notify wait for each other, their write to the disk included.
#[derive(Debug, Clone)]
pub(crate) struct Herald(Arc<Calls>);

#[derive(Debug)]
struct Calls {
    pool: PgPool,
    wanted: AtomicBool,
    running: AtomicBool,
}

/// Between two calls of one process.
const CALLS_APART: Duration = Duration::from_millis(20);
/// Longest time for one call; who misses it looks by himself.
const CALL_LIMIT: Duration = Duration::from_secs(5);

impl Herald {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self(Arc::new(Calls { pool, wanted: AtomicBool::new(false), running: AtomicBool::new(false) }))
    }

    /// Soon, together with others.
    pub(crate) fn call(&self) {
        self.0.wanted.store(true, Ordering::SeqCst);
        if self.0.running.swap(true, Ordering::SeqCst) {
            return;
        }
        let calls = Arc::clone(&self.0);
        tokio::spawn(async move {
            loop {
                while calls.wanted.swap(false, Ordering::SeqCst) {
                    call_now(&calls.pool).await;
                    tokio::time::sleep(CALLS_APART).await;
                }
                calls.running.store(false, Ordering::SeqCst);
                // Somebody may have called between the two lines above.
                if !calls.wanted.load(Ordering::SeqCst) || calls.running.swap(true, Ordering::SeqCst) {
                    return;
                }
            }
        });
    }

    /// Before it returns: for a command that ends right after.
    pub(crate) async fn call_now(&self) {
        call_now(&self.0.pool).await;
    }
}

async fn call_now(pool: &PgPool) {
    let call = sqlx::query("SELECT pg_notify('voiceai_mail', '')").execute(pool);
    match tokio::time::timeout(CALL_LIMIT, call).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(%error, "other processes are not told of new mail; they poll"),
        Err(_) => tracing::debug!("other processes are not told of new mail in time; they poll"),
    }
}

/// Passes on what other processes accepted, until `stopping`. Holds one connection of its own outside the pool. Losing it costs
/// nothing but time: the scheduler also looks by itself.
pub async fn listen(pool: PgPool, wake: Wake, stopping: CancellationToken) {
    let hearing = voiceai_postgres::listen(&pool, &[CHANNEL], "of mail", |_| wake.wake());
    stopping.run_until_cancelled(hearing).await;
}
