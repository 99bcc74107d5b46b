//! A store that goes away in the middle of the start is waited for as long as one that was away before it.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::Instant;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// For what a service does once both stores were reached. Makes `attempt` until it succeeds, fails for another reason than that `store` is away, or `within` is over; then answers as
/// the last attempt did.
pub async fn patiently<T, E: Display>(
    within: Duration,
    store: &'static str,
    is_away: impl Fn(&E) -> bool,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let deadline = Instant::now() + within;
    loop {
        match attempt().await {
            Err(error) if is_away(&error) && Instant::now() < deadline => {
                tracing::warn!(%error, "the start waits for {store}");
                tokio::time::sleep(PAUSE).await;
            }
            ended => return ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers from `answers` in turn, the last one for ever; and says how often it was asked.
    async fn asked(
        within: Duration,
        answers: &[Result<u32, &'static str>],
    ) -> (Result<u32, &'static str>, usize) {
        let mut asked = 0;
        let ended = patiently(
            within,
            "Redis",
            |error| *error == "away",
            async || {
                let answer = answers[asked.min(answers.len() - 1)];
                asked += 1;
                answer
            },
        );
        (ended.await, asked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_comes_back_is_waited_for_and_no_other_failure_is() {
        let long = Duration::from_secs(60);
        assert_eq!(asked(long, &[Err("away"), Ok(7)]).await, (Ok(7), 2));
        assert_eq!(asked(long, &[Err("unsafe"), Ok(7)]).await, (Err("unsafe"), 1));
        assert_eq!(
            asked(Duration::ZERO, &[Err("away")]).await,
            (Err("away"), 1),
            "no longer than it may take"
        );
    }
}
