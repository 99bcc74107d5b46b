//! Waiting for a condition, bounded, instead of sleeping.

use std::fmt::Display;
use std::panic::Location;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits until `check` is true; panics at the caller's line with `what` when `within` has passed first.
#[track_caller]
pub fn wait_until(
    within: Duration,
    what: impl Display,
    mut check: impl AsyncFnMut() -> bool,
) -> impl Future<Output = ()> {
    let at = Location::caller();
    async move {
        let outcome = poll(within, async || if check().await { Ok(()) } else { Err(()) }).await;
        assert!(outcome.is_ok(), "not seen within {within:?}: {what} (waited at {at})");
    }
}

/// Waits until `check` gives `Ok` and returns its value; panics with `what` and the last error when `within` has passed first.
#[track_caller]
pub fn wait_for<T, E: Display>(
    within: Duration,
    what: impl Display,
    check: impl AsyncFnMut() -> Result<T, E>,
) -> impl Future<Output = T> {
    let at = Location::caller();
    async move {
        match poll(within, check).await {
            Ok(value) => value,
            Err(Some(last)) => {
                panic!("not seen within {within:?}: {what}; last seen: {last} (waited at {at})")
            }
            Err(None) => {
                panic!("not seen within {within:?}: {what}; the look itself never ended (waited at {at})")
            }
        }
    }
}

/// A look that hangs counts as not seen: it is cut off at the deadline.
async fn poll<T, E>(within: Duration, mut check: impl AsyncFnMut() -> Result<T, E>) -> Result<T, Option<E>> {
    let deadline = Instant::now() + within;
    let mut last = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left.max(LOOK_EVERY), check()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => last = Some(error),
            Err(_elapsed) => return Err(last),
        }
        if Instant::now() >= deadline {
            return Err(last);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
