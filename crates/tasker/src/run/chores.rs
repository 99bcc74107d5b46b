//! What the leader alone does beside firing schedules: keeps Redis as the queues' rows say, and reports the queues as a whole.

use std::time::Duration;

use jiff::Timestamp;
use voiceai_postgres::PgPool;
use voiceai_queue::{Client, OutboxGauges, QueueGauges, QueueLimits, outbox};
use voiceai_service::Rounds;

use crate::operate::limits;
use crate::settings::TaskerSettings;

/// How often the rows are compared with Redis.
pub(super) const EVERY: Duration = Duration::from_secs(5);
/// Longest time for one round; a store that hangs is left and tried again.
const ROUND_MAX: Duration = Duration::from_secs(60);

/// The leader's chores. Clones report the same gauges.
#[derive(Clone)]
pub(super) struct Chores {
    client: Client,
    pool: PgPool,
    settings: TaskerSettings,
    gauges: QueueGauges,
    outbox: OutboxGauges,
    troubled: bool,
}

impl Rounds for Chores {
    async fn round(&mut self) -> Duration {
        // Plain statements and single calls: cutting one off leaves nothing behind.
        let done = tokio::time::timeout(ROUND_MAX, self.work()).await;
        let problem = match done {
            Ok(Ok(wait)) => {
                if self.troubled {
                    tracing::info!("the queues' settings are compared again");
                }
                self.troubled = false;
                return wait;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("not done within {ROUND_MAX:?}"),
        };
        if !self.troubled {
            tracing::warn!(problem, "the queues' settings cannot be compared now");
        }
        self.troubled = true;
        EVERY
    }

    fn silence(&mut self) {
        self.gauges.clear();
        self.outbox.clear();
    }
}

impl Chores {
    pub(super) fn new(client: Client, pool: PgPool, settings: TaskerSettings) -> Self {
        Self {
            client,
            pool,
            settings,
            gauges: QueueGauges::new(),
            outbox: OutboxGauges::new(),
            troubled: false,
        }
    }

    async fn work(&mut self) -> Result<Duration, limits::MirrorError> {
        for (queue, changes) in limits::mirror(&self.client, &self.pool).await? {
            for (name, value) in changes {
                let value = value.as_deref().unwrap_or("none");
                tracing::info!(queue, setting = name.word(), value, "queue setting brought to Redis");
            }
        }
        let queues = self.client.queues().await?;
        self.gauges.keep(&queues);
        for queue in &queues {
            let stats = self.client.stats(queue).await?;
            self.gauges.record(&stats);
            self.keep_retention(queue, &stats.settings).await?;
        }
        self.outbox.record(&queues, &outbox::waiting(&self.pool).await?);
        let now = Timestamp::now();
        let end = limits::next_end(&self.pool).await?;
        let until_end = end.map(|end| Duration::try_from(end.duration_since(now)).unwrap_or_default());
        Ok(until_end.map_or(EVERY, |until| (until + Duration::from_millis(20)).min(EVERY)))
    }

    /// How long results and dead jobs of the queue are kept, as the leader's settings say. What is absent there is the
    /// workers' own default.
    async fn keep_retention(
        &self,
        queue: &str,
        have: &std::collections::BTreeMap<String, String>,
    ) -> Result<(), voiceai_queue::QueueError> {
        let pool = self.settings.pool(queue);
        let number = |name: &str| have.get(name).and_then(|text| text.parse::<u64>().ok());
        let age = |name: &str| number(name).map(Duration::from_millis);
        let as_wanted = age("keep_completed_ms") == pool.keep_completed
            && number("keep_completed") == pool.keep_completed_count
            && age("keep_dead_ms") == pool.keep_dead;
        if as_wanted {
            return Ok(());
        }
        let limits = QueueLimits {
            keep_completed: Some(pool.keep_completed),
            keep_completed_count: Some(pool.keep_completed_count),
            keep_dead: Some(pool.keep_dead),
            ..QueueLimits::default()
        };
        self.client.set(queue, &limits).await
    }
}
