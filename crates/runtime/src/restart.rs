//! Loops that outlive a panic: the one that panicked is started anew, the others go on.

use std::any::Any;
use std::future::Future;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::{Backoff, random_unit};

/// Between two starts: a second, doubling to a minute.
const WAITS: Backoff =
    Backoff { base: Duration::from_secs(1), factor: 2.0, cap: Duration::from_secs(60), jitter: 0.2 };
/// After running so long, a panic counts as the first.
const WELL_AFTER: Duration = Duration::from_secs(300);

fn panics() -> &'static Counter<u64> {
    static PANICS: OnceLock<Counter<u64>> = OnceLock::new();
    PANICS.get_or_init(|| {
        opentelemetry::global::meter("voiceai")
            .u64_counter("voiceai.worker.panics")
            .with_description(
                "Panics of the loops of this process, each of which was started again, by worker",
            )
            .build()
    })
}

/// Runs what `make` makes until it ends. After a panic it is made and run anew: a second later, and later each time that it
/// panics again soon, up to a minute. Each panic is counted and logged with `name`. Once `stopping`, it stays down.
///
/// What the loop held is dropped by the panic: `make` must give each run its own pulse, and clones of what all of them share.
pub async fn restarting<F, Fut>(name: &str, stopping: &CancellationToken, mut make: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let label = [KeyValue::new("worker", name.to_owned())];
    // From zero, so that the first panic is an increase.
    panics().add(0, &label);
    let mut in_a_row = 0;
    loop {
        let began = Instant::now();
        let run = AbortOnDropHandle::new(tokio::spawn(failpoint::around(name, make())));
        let panic = match run.await {
            Ok(()) => return,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => panic,
                // The runtime is going down.
                Err(_) => return,
            },
        };
        panics().add(1, &label);
        let message = message(&*panic);
        if stopping.is_cancelled() {
            tracing::error!(worker = name, panic = message, "worker panicked while the process stops");
            return;
        }
        in_a_row = if began.elapsed() >= WELL_AFTER { 1 } else { in_a_row + 1 };
        let wait = WAITS.delay(in_a_row - 1, random_unit());
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        tracing::error!(
            worker = name,
            panic = message,
            in_a_row,
            wait_ms,
            "worker panicked; it is started again"
        );
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        tracing::info!(worker = name, "worker started again after a panic");
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "something that is no text".to_owned())
}

/// Panics on purpose, in development builds, for fault tests.
pub mod failpoint {
    #[cfg(debug_assertions)]
    mod live {
        use std::sync::OnceLock;
        use std::sync::atomic::{AtomicU32, Ordering};
        use std::time::Duration;

        #[derive(Debug)]
        struct Point {
            worker: String,
            left: AtomicU32,
        }

        static POINT: OnceLock<Point> = OnceLock::new();

        /// `worker.<name>=panic[@n]`.
        fn parse(text: &str) -> Option<Point> {
            let (worker, action) = text.strip_prefix("worker.")?.split_once('=')?;
            let (action, count) = action.split_once('@').unwrap_or((action, "1"));
            let count: u32 = count.parse().ok().filter(|count| *count > 0)?;
            (action == "panic" && !worker.is_empty())
                .then(|| Point { worker: worker.to_owned(), left: AtomicU32::new(count) })
        }

        pub(super) fn arm(text: &str) -> bool {
            let Some(point) = parse(text) else { return false };
            // Settings may be read more than once.
            POINT.get_or_init(|| point);
            true
        }

        fn is_due(name: &str) -> bool {
            let Some(point) = POINT.get() else { return false };
            let spends = |left: u32| left.checked_sub(1);
            name.replace(' ', "-") == point.worker
                && point.left.try_update(Ordering::AcqRel, Ordering::Acquire, spends).is_ok()
        }

        pub(super) async fn around<R: Future<Output = ()> + Send>(name: String, run: R) {
            if !is_due(&name) {
                return run.await;
            }
            // In the midst of its work: what it holds is dropped as a panic of its own would drop it.
            tokio::select! {
                () = run => {}
                () = tokio::time::sleep(Duration::from_millis(100)) => explode(),
            }
        }

        #[expect(clippy::panic, reason = "what it is for")]
        fn explode() {
            panic!("a failpoint");
        }

        #[cfg(test)]
        mod tests {
            use super::*;

            #[test]
            fn only_the_agreed_form_is_a_point() {
                let point = parse("worker.health-monitor=panic@3").expect("a point");
                assert_eq!((point.worker.as_str(), point.left.into_inner()), ("health-monitor", 3));
                for bad in
                    ["", "worker.x", "worker.=panic", "worker.x=abort", "worker.x=panic@0", "op.x=panic"]
                {
                    assert!(parse(bad).is_none(), "{bad}");
                }
            }
        }
    }

    /// Arms `worker.<name>=panic[@n]`: the loop of that name, its blanks written as hyphens, panics in its first n runs. The first
    /// one of a process counts. False where the text is no such point; in a release build always.
    #[must_use]
    pub fn arm(text: &str) -> bool {
        #[cfg(debug_assertions)]
        return live::arm(text);
        #[cfg(not(debug_assertions))]
        {
            let _ = text;
            false
        }
    }

    #[cfg(debug_assertions)]
    pub(super) fn around<R: Future<Output = ()> + Send>(
        name: &str,
        run: R,
    ) -> impl Future<Output = ()> + Send + use<R> {
        live::around(name.to_owned(), run)
    }

    #[cfg(not(debug_assertions))]
    pub(super) fn around<R: Future<Output = ()> + Send>(_name: &str, run: R) -> R {
        run
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_panics_is_started_again_and_one_that_ends_is_not() {
        let runs = Arc::new(AtomicU32::new(0));
        let began = tokio::time::Instant::now();
        restarting("test", &CancellationToken::new(), || {
            let runs = Arc::clone(&runs);
            async move { assert!(runs.fetch_add(1, Ordering::SeqCst) >= 3, "not yet") }
        })
        .await;
        assert_eq!(runs.load(Ordering::SeqCst), 4, "three panics, then it ended by itself");
        // 1 + 2 + 4 seconds, a fifth more or less.
        let waited = began.elapsed().as_secs_f64();
        assert!((5.5..8.5).contains(&waited), "{waited}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_panics_while_the_process_stops_stays_down() {
        let stopping = CancellationToken::new();
        let (told, runs) = (stopping.clone(), AtomicU32::new(0));
        restarting("test", &stopping, || {
            runs.fetch_add(1, Ordering::SeqCst);
            let told = told.clone();
            async move {
                told.cancel();
                std::panic::panic_any(String::from("in the midst of it"));
            }
        })
        .await;
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn whoever_drops_it_ends_the_loop_too() {
        let (alive, gone) = tokio::sync::oneshot::channel::<()>();
        let mut alive = Some(alive);
        let stopping = CancellationToken::new();
        {
            let running = restarting("test", &stopping, || {
                let alive = alive.take();
                async move {
                    let _alive = alive;
                    std::future::pending::<()>().await;
                }
            });
            assert!(tokio::time::timeout(Duration::from_millis(20), running).await.is_err());
        }
        let ended = tokio::time::timeout(Duration::from_secs(10), gone).await;
        assert!(ended.expect("in time").is_err(), "dropped, not told");
    }

    #[test]
    fn a_panic_is_quoted() {
        assert_eq!(message(&"a"), "a");
        assert_eq!(message(&String::from("b")), "b");
        assert_eq!(message(&7), "something that is no text");
    }
}
