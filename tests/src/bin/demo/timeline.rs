//! The story on the terminal: one line for each thing that was begun or seen.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Writes the lines and keeps the time.
#[derive(Debug)]
pub(crate) struct Timeline {
    begun: Instant,
    coloured: bool,
}

impl Timeline {
    pub(crate) fn begin() -> Self {
        let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { begun: Instant::now(), coloured }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    fn line(&self, mark: &str, colour: &str, text: impl Display) {
        let at = self.begun.elapsed().as_secs_f64();
        let (on, off) = if self.coloured { (colour, "\u{1b}[0m") } else { ("", "") };
        // A closed terminal must not end the story halfway through its clean-up.
        let _ = writeln!(std::io::stdout(), "{at:7.1} s  {on}{mark}{off} {text}");
    }

    /// A chapter of the story.
    pub(crate) fn chapter(&self, text: impl Display) {
        let _ = writeln!(std::io::stdout());
        self.line("▶", "\u{1b}[1;36m", text);
    }

    /// Something that the demo did.
    pub(crate) fn did(&self, text: impl Display) {
        self.line("·", "\u{1b}[2m", text);
    }

    /// Something that was observed.
    pub(crate) fn saw(&self, text: impl Display) {
        self.line("✓", "\u{1b}[32m", text);
    }

    /// What was missing.
    pub(crate) fn missed(&self, text: impl Display) {
        self.line("✗", "\u{1b}[1;31m", text);
    }

    /// Looks again and again until `look` gives a value, and fails with `what` and the last look's answer when `within`
    /// has passed first.
    pub(crate) async fn until<T>(
        &self,
        within: Duration,
        what: impl Display,
        mut look: impl AsyncFnMut() -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + within;
        loop {
            let error = match look().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(error).with_context(|| format!("not seen within {within:?}: {what}"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
