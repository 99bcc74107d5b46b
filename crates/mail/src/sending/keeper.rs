use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use voiceai_runtime::{BootTime, Pulse, boot_now, random_unit};

use super::Shared;
use super::writer::Desk;
use crate::delivery::{Ended, Facts, settle};
use crate::error::chain;
use crate::store::finish::Finished;
use crate::store::workers::Watch;
use crate::store::{backlog, claim, recover, workers};
use crate::{MailError, Wake, metrics};

/// How often this process says that it lives and looks whether the others do.
const EVERY: Duration = Duration::from_secs(1);
/// How often the scheduler's line is written.
const LINE_EVERY: Duration = Duration::from_secs(60);

/// Keeps this process on the list, takes back what dead processes held, and tells how sending stands.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    desk: Desk,
    wake: Wake,
    watch: Watch,
    line_at: BootTime,
    claimed_before: u64,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, desk: Desk, wake: Wake) -> Self {
        let line_at = boot_now().saturating_add(LINE_EVERY);
        Self { shared, desk, wake, watch: Watch::default(), line_at, claimed_before: 0 }
    }

    /// Runs until `finished`, then takes this process off the list.
    pub(super) async fn run(mut self, finished: CancellationToken, pulse: Pulse) {
        while !finished.is_cancelled() {
            pulse.beat();
            if let Err(error) = self.round(&pulse).await {
                tracing::warn!(error = %chain(&error), "mail that dead processes left cannot be looked for now");
                self.watch.forget();
            }
            tokio::select! {
                () = finished.cancelled() => {}
                () = tokio::time::sleep(EVERY) => {}
            }
        }
        let left = workers::leave(&self.shared.pool, self.shared.terms.worker);
        let _ = tokio::time::timeout(Duration::from_secs(2), left).await;
    }

    async fn round(&mut self, pulse: &Pulse) -> Result<(), MailError> {
        let Shared { pool, settings, terms, .. } = &*self.shared;
        workers::beat(pool, terms.worker, &settings.instance_id, &settings.host).await?;
        let lost = recover::lost(pool, terms.worker, &self.shared.held()).await?;
        if lost > 0 {
            tracing::warn!(lost, "mail was claimed and the answer lost: it is free again");
            self.wake.wake();
        }
        let beats = workers::list(pool).await?;
        let gone = self.watch.gone(terms.worker, &settings.instance_id, &beats, boot_now());
        let orphans = recover::orphans(pool, &gone).await?;
        let left = orphans.len();
        for orphan in orphans {
            self.take_back(&orphan, pulse).await;
        }
        if left < 1000 {
            for worker in gone {
                workers::leave(pool, worker).await?;
            }
        }
        if backlog::is_released(pool, &terms.election).await? {
            claim::unpark(pool, "held").await?;
            self.wake.wake();
        }
        if left > 0 {
            self.wake.wake();
        }
        self.tell().await
    }

    async fn take_back(&self, orphan: &recover::Orphan, pulse: &Pulse) {
        let facts = Facts {
            class: orphan.class,
            rung: orphan.rung,
            crashes: orphan.crashes,
            faults: 0,
            probing: false,
            time_left: orphan.time_left,
        };
        let ended = Ended::Crashed { content_began: orphan.content_began };
        let settled = settle(&self.shared.settings.policy, &facts, ended, random_unit());
        let detail = if orphan.content_began {
            "the process ended while content was going out"
        } else {
            "the process ended before any content went out"
        };
        tracing::warn!(
            delivery_id = orphan.key.delivery_id,
            content_began = orphan.content_began,
            "mail of a process that is gone taken back"
        );
        let written = self.desk.write(Finished::new(&orphan.key, &settled, detail).crashed());
        tokio::pin!(written);
        // The writer waits for a database that is away for as long as it takes; this loop is not stuck meanwhile.
        loop {
            tokio::select! {
                () = &mut written => break,
                () = tokio::time::sleep(EVERY) => pulse.beat(),
            }
        }
        metrics::get().attempt_ended(self.shared.terms.provider, &settled, None);
    }

    async fn tell(&mut self) -> Result<(), MailError> {
        if boot_now() < self.line_at {
            return Ok(());
        }
        self.line_at = boot_now().saturating_add(LINE_EVERY);
        let backlog = backlog::backlog(&self.shared.pool).await?;
        let claimed = self.shared.claimed_total.load(Ordering::Relaxed);
        tracing::info!(
            due = backlog.due,
            claimed = claimed - self.claimed_before,
            oldest_age_ms = u64::try_from(backlog.oldest.as_millis()).unwrap_or(u64::MAX),
            waiting = backlog.waiting,
            in_progress = backlog.in_progress,
            "mail scheduler"
        );
        self.claimed_before = claimed;
        Ok(())
    }
}
