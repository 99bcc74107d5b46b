//! Exports as jobs of the queue.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use super::error::ExportError;
use super::rows::{self, Export, Made};
use super::{ExportContext, store};

/// Attempts after which an order is given up.
const ATTEMPTS_MAX: i64 = 5;
/// How often a claim is renewed in its time. Often, because one that is lost was perhaps cancelled by somebody who waits.
const LOOKS: u32 = 12;
/// Rows that one cleanup removes between two looks.
const BATCH: i64 = 100;
/// Objects that cannot be removed before a cleanup gives up for now.
const KEPT_MAX: u64 = 3;

/// Carries out one order.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportRun {
    /// The order.
    pub id: Uuid,
}

impl Job for ExportRun {
    const KIND: &'static str = "export.run";
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(6 * 60 * 60);
    type Context = ExportContext;

    async fn run(&self, ctx: &ExportContext, attempt: &Attempt) -> Result<Outcome, JobError> {
        let lease = ctx.settings.lease;
        let Some(claimed) = rows::claim(&ctx.pool, self.id, &ctx.instance, lease).await? else {
            return match rows::get(&ctx.pool, self.id).await? {
                // Its worker may be gone: then the lease ends, and this job takes over.
                Some(export) if export.status == "PROCESSING" => Ok(Outcome::Snooze(lease / 2)),
                _ => Ok(Outcome::Done),
            };
        };
        match carry_out(ctx, &claimed, attempt.cancelled()).await {
            Ok(made) => Ok(Outcome::DoneWith(json!({
                "file_path": made.key, "file_size_bytes": made.bytes, "row_count": made.rows,
            }))),
            Err(ExportError::Lost) => Ok(Outcome::Done),
            Err(error) => {
                let again = !error.is_final() && claimed.attempt < ATTEMPTS_MAX;
                let text = error.to_string();
                tracing::error!(export_id = %self.id, error = text, again, "export failed");
                rows::fail(
                    &ctx.pool,
                    &claimed,
                    &text,
                    again,
                    ctx.settings.retention,
                    ctx.settings.first_call(),
                )
                .await?;
                Err(if again { JobError::retry(error) } else { JobError::discard(error) })
            }
        }
    }
}

/// Makes the object and ends the order, while the claim is renewed.
async fn carry_out(
    ctx: &ExportContext,
    claimed: &Export,
    cancel: &CancellationToken,
) -> Result<Made, ExportError> {
    // What an earlier attempt that was killed has left.
    store::clear(&ctx.store, &ctx.settings, claimed.id).await?;
    let stop = cancel.child_token();
    let making = async {
        let made = store::make(ctx, claimed, &stop).await;
        stop.cancel();
        made
    };
    let (made, kept) = tokio::join!(making, keep_claim(ctx, claimed, &stop));
    if !kept {
        // Stored in the very moment in which the claim was lost: nobody's.
        if let Ok(made) = &made {
            ctx.store.delete(&made.key).await?;
        }
        return Err(ExportError::Lost);
    }
    let made = made?;
    if !rows::complete(&ctx.pool, claimed, &made, ctx.settings.retention, ctx.settings.first_call()).await? {
        ctx.store.delete(&made.key).await?;
        return Err(ExportError::Lost);
    }
    tracing::info!(export_id = %claimed.id, key = made.key, rows = made.rows, size_bytes = made.bytes, "export stored");
    Ok(made)
}

/// Renews the claim until `stop`; false, and everything is stopped, once it is lost.
async fn keep_claim(ctx: &ExportContext, claimed: &Export, stop: &CancellationToken) -> bool {
    loop {
        tokio::select! {
            () = stop.cancelled() => return true,
            () = tokio::time::sleep(ctx.settings.lease / LOOKS) => {}
        }
        match rows::renew(&ctx.pool, claimed, ctx.settings.lease).await {
            Ok(true) => {}
            Ok(false) => {
                stop.cancel();
                return false;
            }
            // The last write asks once more: a database that is away for a moment costs nothing.
            Err(error) => {
                tracing::warn!(export_id = %claimed.id, %error, "the export's lease could not be renewed");
            }
        }
    }
}

/// Removes exports whose time is over, object and row, and takes up what was forgotten.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportCleanup {}

impl Job for ExportCleanup {
    const KIND: &'static str = "export.cleanup";
    type Context = ExportContext;

    async fn run(&self, ctx: &ExportContext, attempt: &Attempt) -> Result<Outcome, JobError> {
        let forgotten = rows::enqueue_forgotten(&ctx.pool).await?;
        let (mut removed, mut kept, mut after) = (0_u64, 0_u64, None);
        let mut problem = None;
        while !attempt.cancelled().is_cancelled() {
            let batch = rows::expired(&ctx.pool, after, BATCH).await?;
            let Some(last) = batch.last().copied() else { break };
            for (id, _) in &batch {
                // The object first: a row without an object is tried again, an object without a row is nobody's.
                match store::clear(&ctx.store, &ctx.settings, *id).await {
                    Ok(()) => removed += u64::from(rows::remove(&ctx.pool, *id).await?),
                    Err(error) => {
                        tracing::warn!(export_id = %id, %error, "an export whose time is over stays: its object cannot be removed");
                        kept += 1;
                        problem.get_or_insert(error);
                    }
                }
                // A store that refuses one after the other is away: the next run begins where this one ended.
                if kept >= KEPT_MAX {
                    break;
                }
            }
            if kept >= KEPT_MAX {
                break;
            }
            after = Some(last);
        }
        match problem {
            // Tried again soon, by the job's own policy: what was removed is not there to be removed twice.
            Some(problem) => Err(JobError::retry(problem)),
            None => Ok(Outcome::DoneWith(json!({ "removed": removed, "enqueued_again": forgotten }))),
        }
    }
}
