//! Starting jobs: quick ones in one task, each slow one in its own.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;

use super::super::pool::Shared;
use super::super::run::{self, Ended, Settle};
use super::super::take::Taken;

/// Starts the jobs of a chunk one after the other, in one task: starting a task costs more than many a handler does. A
/// handler that waits goes on in a task of its own, so none is held up by another; nor by one that computes: after a
/// millisecond the rest are started apart.
pub(super) async fn start(shared: Arc<Shared>, chunk: Vec<Taken>) {
    let mut ended = Vec::with_capacity(chunk.len());
    let began = Instant::now();
    // What it took so far; a clock is asked only where the attempt's own measure does not tell.
    let mut spent = Duration::ZERO;
    for taken in chunk {
        let mut job = Box::pin(run_guarded(Arc::clone(&shared), taken));
        let apart = spent > Duration::from_millis(1);
        let polled = if apart { Poll::Pending } else { futures_util::poll!(&mut job) };
        match polled {
            Poll::Ready(one) => {
                spent += one.took.unwrap_or_default();
                ended.push(one);
            }
            Poll::Pending => {
                spent = began.elapsed();
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let one = job.await;
                    shared.push([one]);
                });
            }
        }
    }
    if !ended.is_empty() {
        shared.push(ended);
    }
}

/// Handlers' panics are caught further in; one of our own must not eat the slot.
async fn run_guarded(shared: Arc<Shared>, taken: Taken) -> Ended {
    let (id, lot) = (taken.id.clone(), Arc::clone(&taken.lot));
    let ran = AssertUnwindSafe(run::run(&shared, taken)).catch_unwind().await;
    ran.unwrap_or_else(|_| Ended {
        settle: Settle::Verb { verb: "retry", a: "60000".into(), b: "1 - 0 0\nthe worker panicked".into() },
        id,
        lot,
        kind: "".into(),
        outcome: "failed",
        record: None,
        took: None,
        waited: None,
    })
}
