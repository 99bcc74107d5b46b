//! Waking the relay and the scheduler when a row appears, by LISTEN/NOTIFY on one connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::sqlx::postgres::PgListener;
use voiceai_postgres::{PgPool, sqlx};
use voiceai_runtime::{Backoff, random_unit};

const OUTBOX: &str = "voiceai_outbox";
const SCHEDULES: &str = "voiceai_schedules";

/// Wake-up calls inside one process. A call that finds nobody waiting is kept for the next who waits, so none is lost. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Wakeups {
    outbox: Arc<Notify>,
    schedules: Arc<Notify>,
}

impl Wakeups {
    /// Nobody has called yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// There may be new rows in the outbox.
    pub fn wake_outbox(&self) {
        self.outbox.notify_one();
    }

    /// A schedule may have changed.
    pub fn wake_schedules(&self) {
        self.schedules.notify_one();
    }

    pub(crate) async fn outbox(&self) {
        self.outbox.notified().await;
    }

    pub(crate) async fn schedules(&self) {
        self.schedules.notified().await;
    }

    fn wake_all(&self) {
        self.wake_outbox();
        self.wake_schedules();
    }
}

/// Passes the database's notifications on to `wakeups` until `stopping`. Holds one connection of its own outside the pool. Losing it
/// costs nothing but time: the loops that are woken also look by themselves at their poll interval. Behind a pooler in
/// transaction mode notifications do not arrive, and that interval is what remains.
pub async fn listen(pool: PgPool, wakeups: Wakeups, stopping: CancellationToken) {
    let mut failures = 0;
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            lost = pass_on(&pool, &wakeups, &mut failures) => {
                if failures == 0 {
                    tracing::warn!(error = %lost, "wake-ups from PostgreSQL are interrupted; polling goes on");
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

/// Listens until the connection is lost.
async fn pass_on(pool: &PgPool, wakeups: &Wakeups, failures: &mut u32) -> sqlx::Error {
    let listening = async {
        let own = sqlx::postgres::PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy_with((*pool.connect_options()).clone());
        let mut listener = PgListener::connect_with(&own).await?;
        listener.listen_all([OUTBOX, SCHEDULES]).await?;
        *failures = 0;
        // What was notified while nobody listened is found by looking once.
        wakeups.wake_all();
        loop {
            match listener.try_recv().await? {
                Some(notification) if notification.channel() == OUTBOX => wakeups.wake_outbox(),
                Some(_) => wakeups.wake_schedules(),
                None => wakeups.wake_all(),
            }
        }
    };
    let result: Result<std::convert::Infallible, sqlx::Error> = listening.await;
    match result {
        Err(error) => error,
    }
}
