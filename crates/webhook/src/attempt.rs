//! One attempt: posted, judged, and told to whoever writes it down.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument as _;
use voiceai_runtime::random_unit;

use crate::claim::{self, Claimed, Lane};
use crate::error::chain;
use crate::ledger::{self, Entry};
use crate::metrics;
use crate::post::{Answer, Failure, Request};
use crate::queue::{Posting, Waiting};
use crate::retry::{Policy, Step};
use crate::sending::{AHEAD_MAX, Shared, give_back, pump};
use crate::store::{self, End, Ended};

/// Posts what has its turn. What came of it is written by others; a failure's place stays taken until it is.
pub(crate) async fn attempt(shared: &Arc<Shared>, waiting: Waiting, posting: Posting) {
    let Waiting { mut claimed, claim, since } = waiting;
    if since.elapsed() >= AHEAD_MAX {
        shared.ledger.tell(Entry { claimed, ended: None, claim }).await;
        return;
    }
    let span =
        tracing::info_span!("webhook.attempt", delivery.id = %claimed.id, attempt = claimed.attempt_no);
    let started = Instant::now();
    // Cut off, nobody knows whether it arrived: the claim runs out and it is posted again under the same id.
    let answer = shared.forced.run_until_cancelled(post(shared, &claimed));
    let Some(posted) = answer.instrument(span.clone()).await else { return };
    // It may be long until the end is written, and large.
    claimed.body.clear();
    let ended = judge(&shared.settings.policy, claimed.rung, posted, started.elapsed());
    if ended.end == End::Delivered {
        // Another may be posted while this one's end is committed.
        drop(posting);
        shared.ledger.tell(Entry { claimed, ended: Some(ended), claim }).await;
        return;
    }
    // Nothing else is posted in its place before the failure is written, which says when that may be: after the pause of a circuit, or
    // once it has worked again. Until then, what was claimed ahead waits with the rest of it; a look may have claimed more meanwhile.
    give_back(shared, shared.queue.of(claimed.target.id));
    let own = Arc::clone(shared);
    let failed = async move {
        failed(&own, &claimed, &ended).await;
        give_back(&own, own.queue.of(claimed.target.id));
        drop(posting);
        drop(claim);
        for lane in Lane::BOTH.into_iter().filter(|lane| own.queue.is_ready(*lane)) {
            pump(&own, lane);
        }
        own.wake.wake();
    };
    shared.attempts.spawn(failed.instrument(span));
}

async fn post(shared: &Shared, claimed: &Claimed) -> Result<Answer, Failure> {
    let (url, keys) = claimed.target.place.as_ref().map_err(|reason| Failure::Broken(reason.clone()))?;
    let timeout = claimed.target.timeout.unwrap_or(shared.settings.timeout).min(shared.settings.timeout);
    let request = Request {
        url: url.clone(),
        id: claimed.event_id.clone(),
        body: claimed.body.clone(),
        keys: Some(keys.clone()),
        timeout,
    };
    shared.client.post(&request).await
}

/// What an answer, or the lack of one, means for a delivery that stood on `rung`.
fn judge(policy: &Policy, rung: u32, posted: Result<Answer, Failure>, took: Duration) -> Ended {
    let ended = Ended {
        end: End::Delivered,
        outcome: "delivered",
        status: None,
        error: None,
        response: None,
        address: None,
        retry_after: None,
        took,
        rest: None,
        gone: false,
    };
    let after = |wish| match policy.after(rung, wish, random_unit()) {
        Step::Again(wait) => End::Again { wait },
        Step::Exhausted => End::Dead { reason: "exhausted" },
    };
    match posted {
        Ok(answer) => {
            let taken = answer.is_taken();
            let ended = Ended {
                status: Some(answer.status),
                address: Some(answer.address.to_string()),
                response: (!answer.text.is_empty()).then_some(answer.text),
                ..ended
            };
            if taken {
                return ended;
            }
            let gone = answer.status == 410;
            let error = match answer.status {
                410 => "answered 410: it wants no more events".to_owned(),
                300..=399 => format!("answered {}: redirects are not followed", answer.status),
                status => format!("answered {status}"),
            };
            Ended {
                end: if gone { End::Dead { reason: "gone" } } else { after(answer.retry_after) },
                outcome: "refused",
                error: Some(error),
                retry_after: answer.retry_after,
                rest: policy.rest(answer.retry_after),
                gone,
                ..ended
            }
        }
        Err(failure) => {
            Ended { end: after(None), outcome: failure.word(), error: Some(chain(&failure)), ..ended }
        }
    }
}

/// Writes a failure down: until it is written, or the process is forced to end.
async fn failed(shared: &Shared, claimed: &Claimed, ended: &Ended) {
    let mut tries = 0;
    let written = loop {
        match store::fail(&shared.pool, &shared.settings.policy, claimed, ended).await {
            Ok(written) => break written,
            Err(error) if error.is_about_the_data() => {
                tracing::error!(error = %chain(&error), "the end of a webhook attempt cannot be written");
                return;
            }
            Err(error) => {
                if !ledger::again(&shared.forced, &error, &mut tries).await {
                    return;
                }
            }
        }
    };
    claimed.is_written();
    if !written.ours {
        ledger::refused(claimed);
        return;
    }
    // A long backlog does not hold up the process's end: whoever leads then goes on with it.
    if written.disabled.is_some()
        && let Some(Err(error)) =
            shared.stopping.run_until_cancelled(claim::give_up(&shared.pool, claimed.target.id)).await
    {
        tracing::warn!(error = %chain(&error), "what waits for a disabled webhook endpoint is given up later");
    }
    let dead = matches!(ended.end, End::Dead { .. });
    metrics::get().ended(ended.outcome, ended.took, dead, written.disabled.is_some());
    tell(claimed, ended, written.disabled.as_deref());
}

fn tell(claimed: &Claimed, ended: &Ended, disabled: Option<&str>) {
    let endpoint = claimed.target.id;
    let error = ended.error.as_deref().unwrap_or_default();
    match ended.end {
        End::Delivered => {}
        End::Again { wait } => {
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(endpoint.id = %endpoint, status = ended.status, wait_ms, "webhook is tried again: {error}");
        }
        End::Dead { reason } => {
            tracing::warn!(endpoint.id = %endpoint, status = ended.status, reason, "webhook given up: {error}");
        }
    }
    if let Some(reason) = disabled {
        tracing::error!(
            endpoint.id = %endpoint,
            reason,
            "webhook endpoint disabled; `webhook endpoints enable {endpoint}` once it is mended"
        );
    }
}
