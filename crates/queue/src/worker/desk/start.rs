//! Starting jobs: quick ones in one task, each slow one in its own.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;

use super::super::pool::Shared;
use super::super::run::{self, Ended, Moment, Settle};
use super::super::take::Taken;

/// Most jobs that one task starts.
const CHUNK_MAX: usize = 64;
/// With room for it, a task starts no less than this share of the slots: what few jobs take is less than what a task costs.
const CHUNK_SHARE: usize = 8;

/// How many of `ready` jobs, for each of which a slot is free, the next task starts: half of them, so that other threads find
/// work, too.
pub(super) fn chunk(ready: usize, slots: usize) -> usize {
    (ready / 2).max(slots / CHUNK_SHARE).min(ready).clamp(1, CHUNK_MAX)
}

/// How long the handlers of a chunk may compute before the rest are started apart.
const COMPUTING_MAX: Duration = Duration::from_millis(1);

/// Starts the jobs of a chunk one after the other, in one task: starting a task costs more than many a handler does. A
/// handler that waits goes on in a task of its own, so none is held up by another; nor by one that computes: after a
/// millisecond the rest are started apart.
pub(super) async fn start(shared: Arc<Shared>, chunk: Vec<Taken>) {
    let mut ended = Vec::with_capacity(chunk.len());
    let begun = Moment::now(&shared);
    // What it took so far: the clock is asked once a job, at its end, which is the next one's beginning.
    let mut spent = Duration::ZERO;
    for taken in chunk {
        if spent > COMPUTING_MAX {
            go_on_apart(&shared, run_guarded(Arc::clone(&shared), taken, None));
            continue;
        }
        let mut job = Box::pin(run_guarded(Arc::clone(&shared), taken, Some(begun.after(spent))));
        match futures_util::poll!(&mut job) {
            Poll::Ready(one) => {
                spent += one.took.unwrap_or_default();
                ended.push(one);
            }
            Poll::Pending => {
                spent = begun.elapsed();
                go_on_apart(&shared, job);
            }
        }
    }
    if !ended.is_empty() {
        shared.push(ended);
    }
}

/// Runs a job in a task of its own.
fn go_on_apart(shared: &Arc<Shared>, job: impl Future<Output = Ended> + Send + 'static) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move { shared.push([job.await]) });
}

/// Handlers' panics are caught further in; one of our own must not eat the slot.
async fn run_guarded(shared: Arc<Shared>, taken: Taken, begins: Option<Moment>) -> Ended {
    let (id, lot) = (taken.id.clone(), Arc::clone(&taken.lot));
    let ran = AssertUnwindSafe(run::run(&shared, taken, begins)).catch_unwind().await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_leave_work_for_others_but_are_not_tiny() {
        let cases = [
            ((100, 100), 50),
            ((50, 100), 25),
            ((20, 100), 12),
            ((5, 100), 5),
            ((1, 1), 1),
            ((500, 500), 64),
        ];
        for ((ready, slots), size) in cases {
            assert_eq!(chunk(ready, slots), size, "{ready} of {slots}");
        }
    }
}
