use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use voiceai_runtime::{Backoff, Pulse, random_unit};

use super::attempt::Attempt;
use super::marker::Marks;
use super::writer::Desk;
use super::{Gate, Held, Shared};
use crate::Wake;
use crate::error::chain;
use crate::store::claim::{self, Claims};

/// Claims what is due as slots come free.
pub(super) struct Scheduler {
    pub(super) shared: Arc<Shared>,
    pub(super) desk: Desk,
    pub(super) marks: Marks,
    pub(super) wake: Wake,
    pub(super) gate: Gate,
    pub(super) hurry: CancellationToken,
    pub(super) forced: CancellationToken,
}

impl Scheduler {
    pub(super) async fn run(self, stopping: CancellationToken, pulse: Pulse) {
        tracing::info!("mail scheduler started");
        let mut failures = 0;
        let mut open = false;
        while !stopping.is_cancelled() {
            pulse.beat();
            if !open {
                open = self.may_begin().await;
            }
            let wait = if open {
                match self.look().await {
                    Ok(wait) => {
                        failures = 0;
                        wait
                    }
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "mail cannot be claimed now");
                        failures += 1;
                        // What comes back may be another database: an older one must not send what was sent before.
                        open = !error.is_unavailable();
                        Some(Backoff::RECONNECT.delay(failures, random_unit()))
                    }
                }
            } else {
                Some(Duration::from_millis(500))
            };
            pulse.beat();
            let Some(wait) = wait else { continue };
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
                () = self.wake.woken(), if open && failures == 0 => {}
                () = self.slot(), if wait == SLOT => {}
            }
        }
        tracing::info!("mail scheduler stopped");
    }

    async fn may_begin(&self) -> bool {
        if let Err(error) = claim::seed(&self.shared.pool, self.shared.terms.provider).await {
            tracing::warn!(error = %chain(&error), "no mail is sent yet");
            return false;
        }
        match (self.gate)().await {
            Ok(()) => true,
            Err(why) => {
                tracing::warn!(why, "no mail is sent yet");
                false
            }
        }
    }

    /// Fills the free slots. Answers how long to wait before the next look; `None`: not at all.
    async fn look(&self) -> Result<Option<Duration>, crate::MailError> {
        let free = self.shared.slots.available_permits();
        if free == 0 {
            return Ok(Some(SLOT));
        }
        let claims = claim::claim(&self.shared.pool, &self.shared.terms, free).await?;
        let Claims { claimed, parked, rate_wait, paused, probing } = claims;
        let count = claimed.len();
        for claimed in claimed {
            self.start(claimed, probing);
        }
        if parked > 0 {
            return Ok(None);
        }
        let poll = self.shared.settings.poll_interval;
        if let Some(rest) = paused {
            return Ok(Some(rest.clamp(Duration::from_millis(20), poll)));
        }
        if probing {
            // One at a time, and its end wakes nobody: look often enough.
            return Ok(Some(Duration::from_millis(100).min(poll)));
        }
        if count == free {
            return Ok(Some(SLOT));
        }
        if let Some(wait) = rate_wait {
            return Ok(Some(wait.clamp(Duration::from_millis(1), poll)));
        }
        let next = claim::next_due(&self.shared.pool).await?;
        Ok(Some(next.map_or(poll, |next| next.clamp(Duration::from_millis(1), poll))))
    }

    fn start(&self, claimed: claim::Claimed, probing: bool) {
        self.shared.claimed_total.fetch_add(1, Ordering::Relaxed);
        let slots = Arc::clone(&self.shared.slots);
        let span = tracing::info_span!(
            "mail.attempt",
            delivery.id = claimed.key.delivery_id,
            attempt = claimed.key.attempt_no
        );
        let held = Held::new(&self.shared, claimed.key.token);
        let attempt = Attempt {
            shared: Arc::clone(&self.shared),
            desk: self.desk.clone(),
            marks: self.marks.clone(),
            claimed,
            probing,
            hurry: self.hurry.clone(),
            forced: self.forced.clone(),
        };
        // Taken here, not in the task: the next look must not count this slot as free. Only this loop takes slots, so one is there.
        let Ok(slot) = slots.try_acquire_owned() else { return };
        tokio::spawn(
            async move {
                attempt.run().await;
                drop(held);
                drop(slot);
            }
            .instrument(span),
        );
    }

    /// Until slots are free. One claim of several costs little more than a claim of one, so others may come free for a moment.
    async fn slot(&self) {
        if self.shared.slots.acquire().await.is_err() {
            return;
        }
        let several = (self.shared.settings.concurrency / 4).clamp(1, 64);
        let several = self.shared.slots.acquire_many(u32::try_from(several).unwrap_or(1));
        let _ = tokio::time::timeout(LINGER, several).await;
    }
}

/// Waits for a slot rather than for time; the figure is the safety net.
const SLOT: Duration = Duration::from_secs(5);
/// How long it is waited for further slots; short beside any mail server's answers.
const LINGER: Duration = Duration::from_millis(2);
