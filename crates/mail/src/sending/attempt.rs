use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use voiceai_runtime::random_unit;

use super::Shared;
use super::marker::Marks;
use super::writer::Desk;
use crate::delivery::{Ended, Facts, Settled, Verdict, settle};
use crate::error::chain;
use crate::metrics;
use crate::store::claim::{self, Claimed, Key};
use crate::store::finish::Finished;
use crate::store::pauses;
use crate::transport::{Axis, Envelope, Outcome, Outgoing, Phase, Reason, Stage, Summary, Withdraw};

/// Writes the point of no return down before it is passed.
struct Recorder<'a> {
    marks: &'a Marks,
    key: &'a Key,
    began: AtomicBool,
}

impl Stage for Recorder<'_> {
    fn content_begins(&self) -> BoxFuture<'_, Result<(), Withdraw>> {
        Box::pin(async {
            match self.marks.begin(self.key).await {
                Ok(true) => {
                    self.began.store(true, Ordering::Release);
                    Ok(())
                }
                Ok(false) => Err(Withdraw("the claim has passed to another process".to_owned())),
                Err(why) => Err(Withdraw(why)),
            }
        })
    }
}

/// One claimed attempt on its way to an end.
pub(super) struct Attempt {
    pub(super) shared: Arc<Shared>,
    pub(super) desk: Desk,
    pub(super) marks: Marks,
    pub(super) claimed: Claimed,
    pub(super) probing: bool,
    /// Not to be begun any more.
    pub(super) hurry: CancellationToken,
    /// To be dropped wherever it stands.
    pub(super) forced: CancellationToken,
}

impl Attempt {
    /// Makes the attempt and comes back once its end is committed, or it was handed back.
    pub(super) async fn run(self) {
        let Self { shared, claimed, .. } = &self;
        let (facts, key) = (self.facts(), &claimed.key);
        metrics::get().attempt_begins(claimed.late);
        if claimed.time_left.is_zero() {
            return self.end(&facts, Ended::TooOld, "its time was over before it could be sent").await;
        }
        if let Some(reason) = &claimed.suppressed {
            let detail = format!("on the suppression list: {reason}");
            return self.end(&facts, Ended::OnList, &detail).await;
        }
        let message = match &claimed.message {
            Some(message) => Ok(Some(message.clone())),
            None => claim::message(&shared.pool, key, claimed.part).await,
        };
        let bytes = match message {
            Ok(Some(bytes)) if !bytes.is_empty() => bytes,
            Ok(_) => {
                let outcome = Outcome::Refused { axis: Axis::Message, summary: nothing_to_send() };
                return self.end(&facts, Ended::Sent(&outcome), "").await;
            }
            Err(error) => {
                tracing::warn!(delivery_id = key.delivery_id, error = %chain(&error), "a message cannot be read now");
                return self.give_back().await;
            }
        };
        let mail = Outgoing {
            message_id: claimed.message_id.clone(),
            envelope: Envelope { from: claimed.from.clone(), to: claimed.to.clone() },
            bytes,
            idempotency_key: format!("{}.{}", key.delivery_id, key.position),
            tenant: claimed.tenant.clone(),
            class: claimed.class,
        };
        self.send(&facts, &mail).await;
    }

    fn facts(&self) -> Facts {
        Facts {
            class: self.claimed.class,
            rung: self.claimed.rung,
            crashes: self.claimed.crashes,
            faults: self.faults(),
            probing: self.probing,
            time_left: self.claimed.time_left,
        }
    }

    /// Attempts before this one that climbed no rung and ended no process.
    fn faults(&self) -> u32 {
        let before = u32::try_from(self.claimed.key.attempt_no).unwrap_or(1).saturating_sub(1);
        before.saturating_sub(self.claimed.rung).saturating_sub(self.claimed.crashes)
    }

    async fn send(&self, facts: &Facts, mail: &Outgoing) {
        let Self { shared, claimed, .. } = self;
        let stage = Recorder { marks: &self.marks, key: &claimed.key, began: AtomicBool::new(false) };
        let began = || stage.began.load(Ordering::Acquire);
        let started = tokio::time::Instant::now();
        let sending = shared.transport.send(mail, &stage);
        tokio::pin!(sending);
        let mut hurried = false;
        let outcome = loop {
            tokio::select! {
                outcome = &mut sending => break Some(outcome),
                () = self.forced.cancelled() => break None,
                () = self.hurry.cancelled(), if !hurried => {
                    hurried = true;
                    if !began() {
                        break None;
                    }
                }
                // The transport has limits of its own; this one is for its defects.
                () = tokio::time::sleep_until(started + shared.terms.lease - super::LEASE_ROOM / 2) => {
                    break Some(overdue(began(), started.elapsed()));
                }
            }
        };
        match outcome {
            Some(outcome) => {
                let settled = self.settle(facts, Ended::Sent(&outcome));
                self.heed(&outcome, &settled).await;
                self.close(&settled, Ended::Sent(&outcome), "").await;
            }
            None if began() => {
                let outcome = overdue(true, started.elapsed());
                self.end(facts, Ended::Sent(&outcome), "").await;
            }
            None => self.give_back().await,
        }
    }

    fn settle(&self, facts: &Facts, ended: Ended<'_>) -> Settled {
        settle(&self.shared.settings.policy, facts, ended, random_unit())
    }

    /// What the outcome says of the provider.
    async fn heed(&self, outcome: &Outcome, settled: &Settled) {
        let Shared { pool, settings, terms, .. } = &*self.shared;
        match outcome {
            Outcome::ProviderFault { retry_after, summary } if settled.pause.is_some() => {
                let reason = format!("{} {}", summary.phase.as_str(), summary.text);
                let pause = |faults| settings.policy.pause_after(faults, *retry_after);
                match pauses::rest(pool, terms.provider, &reason, &settings.instance_id, pause).await {
                    Ok(Some((pause, faults))) => tracing::error!(
                        provider = terms.provider,
                        phase = summary.phase.as_str(),
                        reason = summary.reason.as_str(),
                        code = summary.code,
                        host = summary.host,
                        pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                        faults,
                        "mail provider at fault, all sending rests: {}",
                        summary.text
                    ),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "the mail provider's rest cannot be noted");
                    }
                }
            }
            // The provider took the mail, or had something to say about it.
            Outcome::Accepted { .. }
            | Outcome::Suppressed { .. }
            | Outcome::Refused { .. }
            | Outcome::Deferred { .. }
                if self.probing =>
            {
                match pauses::recovered(pool, terms.provider).await {
                    Ok(true) => tracing::info!(provider = terms.provider, "mail provider works again"),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "the mail provider's rest cannot be ended");
                    }
                }
            }
            _ => {}
        }
    }

    async fn end(&self, facts: &Facts, ended: Ended<'_>, detail: &str) {
        let settled = self.settle(facts, ended);
        self.close(&settled, ended, detail).await;
    }

    async fn close(&self, settled: &Settled, ended: Ended<'_>, detail: &str) {
        let end = Finished::new(&self.claimed.key, settled, detail);
        let (end, took) = match ended {
            Ended::Sent(outcome) => {
                let provider_id = match outcome {
                    Outcome::Accepted { provider_id, .. } => provider_id.as_deref(),
                    _ => None,
                };
                let summary = outcome.summary();
                let end = match self.shared.settings.policy.suppress_after(outcome) {
                    Some(length) => end.bounced(self.claimed.to.to_lowercase(), length),
                    None => end,
                };
                (end.said(summary, provider_id), Some(Duration::from_millis(summary.duration_ms)))
            }
            _ => (end, None),
        };
        self.desk.write(end).await;
        metrics::get().attempt_ended(self.shared.terms.provider, settled, took);
        tell(&self.claimed.key, settled, ended, detail);
    }

    async fn give_back(&self) {
        // Where this fails the keeper frees the claim, once nobody here knows of it.
        if let Err(error) = claim::hand_back(&self.shared.pool, &self.claimed.key).await {
            tracing::warn!(delivery_id = self.claimed.key.delivery_id, error = %chain(&error), "a mail cannot be handed back now");
        }
    }
}

fn tell(key: &Key, settled: &Settled, ended: Ended<'_>, detail: &str) {
    let said = match ended {
        Ended::Sent(outcome) => Some(outcome.summary()),
        _ => None,
    };
    let text = said.map_or(detail, |summary| summary.text.as_str());
    let phase = said.map_or("", |summary| summary.phase.as_str());
    let (id, position, attempt) = (&key.delivery_id, key.position, key.attempt_no);
    let status = settled.attempt.as_str();
    match settled.verdict {
        Verdict::Over(crate::delivery::RecipientStatus::Sent) => {
            tracing::debug!(delivery_id = id, position, attempt, status, "mail sent");
        }
        Verdict::Over(end) => {
            tracing::info!(
                delivery_id = id,
                position,
                attempt,
                status,
                phase,
                end = end.as_str(),
                "mail not sent: {text}"
            );
        }
        Verdict::Again(next) => {
            let wait_ms = u64::try_from(next.wait.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(
                delivery_id = id,
                position,
                attempt,
                status,
                phase,
                wait_ms,
                "mail is tried again: {text}"
            );
        }
        Verdict::Dead(reason) => {
            tracing::warn!(
                delivery_id = id,
                position,
                attempt,
                status,
                phase,
                reason = reason.as_str(),
                "mail given up: {text}"
            );
        }
    }
}

fn nothing_to_send() -> Summary {
    Summary {
        phase: Phase::Connect,
        reason: Reason::Malformed,
        code: None,
        enhanced: None,
        text: "its content is not kept any more".to_owned(),
        host: String::new(),
        tls: None,
        duration_ms: 0,
    }
}

/// An attempt that was cut off here.
fn overdue(content_began: bool, took: Duration) -> Outcome {
    let summary = Summary {
        phase: if content_began { Phase::Final } else { Phase::Connect },
        reason: Reason::TimedOut,
        code: None,
        enhanced: None,
        text: "cut off by this process".to_owned(),
        host: String::new(),
        tls: None,
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    };
    if content_began { Outcome::Unknown { summary } } else { Outcome::TimedOut { summary } }
}
