//! What the leader reports of recordings and certificates as a whole: numbers that alerts and panels read.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_platform::certificates::{self, CertificateSettings};
use voiceai_postgres::{PgPool, Tenure};
use voiceai_runtime::LeaderGauge;
use voiceai_service::{Context, Rounds, while_leading};

use super::STORE_BOUND;
use crate::settings::TaskerSettings;

/// How often the leader looks.
const EVERY: Duration = Duration::from_secs(30);
/// Longest time for a look.
const LOOK_MAX: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Standing {
    pool: PgPool,
    certificates: CertificateSettings,
    /// The bucket of recordings; absent where none are processed.
    bucket: Option<String>,
    gauges: Gauges,
}

#[derive(Clone)]
struct Gauges {
    waiting: LeaderGauge,
    oldest: LeaderGauge,
    given_up: LeaderGauge,
    list_age: LeaderGauge,
    list_left: LeaderGauge,
    ending: LeaderGauge,
}

impl Gauges {
    fn new() -> Self {
        let meter = opentelemetry::global::meter("voiceai");
        Self {
            waiting: LeaderGauge::new(
                &meter,
                "recording.waiting",
                "",
                "Recordings that are known and not yet processed",
            ),
            oldest: LeaderGauge::new(
                &meter,
                "recording.oldest_age",
                "s",
                "How long the oldest of them has been known",
            ),
            given_up: LeaderGauge::new(
                &meter,
                "recording.given_up_now",
                "",
                "Recordings that were given up within a day",
            ),
            list_age: LeaderGauge::new(
                &meter,
                "voiceai.certificates.list.age",
                "s",
                "Time since a revocation list was last put in place",
            ),
            list_left: LeaderGauge::new(
                &meter,
                "voiceai.certificates.list.left",
                "s",
                "How much longer the newest revocation list is good; below zero: it is no longer",
            ),
            ending: LeaderGauge::new(
                &meter,
                "voiceai.certificates.ending",
                "",
                "Device certificates that end soon",
            ),
        }
    }

    fn clear(&self) {
        let Self { waiting, oldest, given_up, list_age, list_left, ending } = self;
        for gauge in [waiting, oldest, given_up, list_age, list_left, ending] {
            gauge.clear();
        }
    }
}

impl Standing {
    async fn look(&self, now: Timestamp) -> Result<(), String> {
        let gauges = &self.gauges;
        if let Some(bucket) = &self.bucket {
            let standing = voiceai_recording::standing(&self.pool, bucket).await;
            let standing = standing.map_err(|error| error.to_string())?;
            gauges.waiting.set_count(&[], standing.waiting);
            gauges.oldest.set_count(&[], standing.oldest_seconds);
            gauges.given_up.set_count(&[], standing.given_up);
        }
        let standing = certificates::standing(&self.pool, &self.certificates).await;
        let standing = standing.map_err(|error| error.to_string())?;
        match standing.ending {
            Some(count) => gauges.ending.set_count(&[], count),
            None => gauges.ending.clear(),
        }
        match standing.list {
            Some(list) => {
                gauges.list_left.set(&[], list.next_update.duration_since(now).as_secs_f64());
                if let Some(placed) = list.placed_at {
                    gauges.list_age.set(&[], now.duration_since(placed).as_secs_f64().max(0.0));
                }
            }
            None => {
                gauges.list_left.clear();
                gauges.list_age.clear();
            }
        }
        Ok(())
    }
}

impl Rounds for Standing {
    async fn round(&mut self) -> Duration {
        let looked = tokio::time::timeout(LOOK_MAX, self.look(Timestamp::now())).await;
        if let Err(problem) = looked.unwrap_or_else(|_| Err(format!("not done within {LOOK_MAX:?}"))) {
            tracing::warn!(problem, "how recordings and certificates stand cannot be read now");
        }
        EVERY
    }

    fn silence(&mut self) {
        self.gauges.clear();
    }
}

/// Starts it.
pub(super) fn start(
    context: &Context<TaskerSettings>,
    tenure: &watch::Receiver<Option<Tenure>>,
    stopping: &CancellationToken,
) {
    let settings = &context.settings;
    let standing = Standing {
        pool: context.pool.clone(),
        certificates: settings.duties.certificates.clone(),
        bucket: settings.recording.store.as_ref().map(|store| store.bucket.clone()),
        gauges: Gauges::new(),
    };
    let (vitals, told, stop) = (context.vitals.clone(), tenure.clone(), stopping.clone());
    context.shutdown.spawn_restarting("standing of recordings and certificates", move || {
        let pulse = vitals.register("standing of recordings and certificates", EVERY + STORE_BOUND);
        while_leading(standing.clone(), told.clone(), stop.clone(), pulse, EVERY)
    });
}
