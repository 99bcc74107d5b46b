//! Waking the relay and the scheduler when a row appears, by LISTEN/NOTIFY on one connection.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::PgPool;

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
    let told = |channel: Option<&str>| match channel {
        Some(OUTBOX) => wakeups.wake_outbox(),
        Some(_) => wakeups.wake_schedules(),
        None => wakeups.wake_all(),
    };
    let hearing =
        voiceai_postgres::listen(&pool, &[OUTBOX, SCHEDULES], "of the outbox and of schedules", told);
    stopping.run_until_cancelled(hearing).await;
}
