use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Signal handlers could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("install the handler of {name}")]
pub struct SignalError {
    name: &'static str,
    source: std::io::Error,
}

/// Some tasks did not end by the deadline, or a second signal ended the wait.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DrainError {
    /// The deadline passed first.
    #[error("these tasks did not stop within {limit:?}: {}", tasks.join(", "))]
    Deadline {
        /// The limit that was given.
        limit: Duration,
        /// Names of the tasks that were still running, sorted.
        tasks: Vec<String>,
    },
    /// A second signal asked for an immediate end.
    #[error("a second signal ended the wait for: {}", tasks.join(", "))]
    Forced {
        /// Names of the tasks that were still running, sorted.
        tasks: Vec<String>,
    },
}

/// How a process stops: one token that says "take no new work", one that says "drop everything", and the tasks that
/// must have ended before the process may.
///
/// The first SIGTERM or SIGINT cancels [`Shutdown::stopping`]; the second cancels [`Shutdown::forced`].
#[derive(Clone, Debug)]
pub struct Shutdown {
    stopping: CancellationToken,
    forced: CancellationToken,
    tracker: TaskTracker,
    running: Arc<Mutex<Vec<(u64, String)>>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// A shutdown that only [`Shutdown::stop`] triggers: for tests and commands.
    #[must_use]
    pub fn new() -> Self {
        let stopping = CancellationToken::new();
        Self {
            forced: CancellationToken::new(),
            stopping,
            tracker: TaskTracker::new(),
            running: Arc::default(),
        }
    }

    /// A shutdown that SIGTERM and SIGINT trigger. Call it inside a tokio runtime, before anything else starts, so that
    /// no signal finds the default action in place.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn on_signals() -> Result<Self, SignalError> {
        let this = Self::new();
        let mut term =
            signal(SignalKind::terminate()).map_err(|source| SignalError { name: "SIGTERM", source })?;
        let mut int =
            signal(SignalKind::interrupt()).map_err(|source| SignalError { name: "SIGINT", source })?;
        let told = this.clone();
        tokio::spawn(async move {
            for count in 1.. {
                let name = tokio::select! { _ = term.recv() => "SIGTERM", _ = int.recv() => "SIGINT" };
                if count == 1 {
                    tracing::info!(signal = name, "stopping: no new work is taken, running work may finish");
                    told.stop();
                } else {
                    tracing::warn!(signal = name, "second signal: stopping at once");
                    told.force();
                }
            }
        });
        Ok(this)
    }

    /// Cancelled once no new work may be taken.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Cancelled once even running work must be dropped.
    #[must_use]
    pub fn forced(&self) -> CancellationToken {
        self.forced.clone()
    }

    /// True from the first signal on.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Starts the stop, as the first signal does.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Ends the wait of [`Shutdown::drain`], as the second signal does. Implies [`Shutdown::stop`].
    pub fn force(&self) {
        self.stopping.cancel();
        self.forced.cancel();
    }

    /// Runs `future` as a task that [`Shutdown::drain`] waits for. `name` stands in the error of a drain that failed.
    pub fn spawn<F>(&self, name: impl Into<String>, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let entry = Entry::new(&self.running, name.into());
        self.tracker.spawn(async move {
            let _entry = entry;
            future.await
        })
    }

    /// Runs a loop that outlives a panic, as a task that [`Shutdown::drain`] waits for: see [`crate::restarting`].
    pub fn spawn_restarting<F, Fut>(&self, name: impl Into<String>, make: F) -> JoinHandle<()>
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (name, stopping) = (name.into(), self.stopping());
        let entry = name.clone();
        self.spawn(entry, async move { crate::restarting(&name, &stopping, make).await })
    }

    /// Stops the intake and waits for every task, at most `limit`, or until a second signal.
    ///
    /// # Errors
    /// Names the tasks that were still running.
    pub async fn drain(&self, limit: Duration) -> Result<(), DrainError> {
        self.stop();
        self.tracker.close();
        tokio::select! {
            () = self.tracker.wait() => Ok(()),
            () = self.forced.cancelled() => Err(DrainError::Forced { tasks: self.names() }),
            () = tokio::time::sleep(limit) => Err(DrainError::Deadline { limit, tasks: self.names() }),
        }
    }

    fn names(&self) -> Vec<String> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<_> = running.iter().map(|(_, name)| name.clone()).collect();
        names.sort();
        names
    }
}

/// Keeps a task's name in the list for as long as the task lives, panics included.
#[derive(Debug)]
struct Entry {
    list: Arc<Mutex<Vec<(u64, String)>>>,
    id: u64,
}

impl Entry {
    fn new(list: &Arc<Mutex<Vec<(u64, String)>>>, name: String) -> Self {
        let mut entries = list.lock().unwrap_or_else(PoisonError::into_inner);
        let id = entries.iter().map(|(id, _)| id + 1).max().unwrap_or(0);
        entries.push((id, name));
        Self { list: Arc::clone(list), id }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut entries = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn drain_waits_for_tasks_that_obey() {
        let shutdown = Shutdown::new();
        let stopping = shutdown.stopping();
        let task = shutdown.spawn("obedient", async move {
            stopping.cancelled().await;
            7
        });
        assert_eq!(shutdown.drain(Duration::from_secs(10)).await, Ok(()));
        assert_eq!(task.await.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn drain_names_what_did_not_stop() {
        let shutdown = Shutdown::new();
        let _a = shutdown.spawn("stubborn", std::future::pending::<()>());
        let b = shutdown.spawn("done", async {});
        b.await.unwrap();
        let limit = Duration::from_secs(3);
        let refused = shutdown.drain(limit).await;
        assert_eq!(refused, Err(DrainError::Deadline { limit, tasks: vec!["stubborn".into()] }));
    }

    #[tokio::test]
    async fn a_second_signal_ends_the_wait() {
        let shutdown = Shutdown::new();
        let _a = shutdown.spawn("stubborn", std::future::pending::<()>());
        shutdown.force();
        assert!(matches!(shutdown.drain(Duration::from_secs(60)).await, Err(DrainError::Forced { .. })));
    }
}
