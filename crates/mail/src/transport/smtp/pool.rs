use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::session::Session;
use crate::transport::settings::Credentials;

/// A connection that lay for longer than this is asked whether it still lives before a mail is begun on it.
const FRESH: Duration = Duration::from_secs(2);

/// Open connections to one server. A connection is used again by the credentials that it was opened with, by nobody else.
#[derive(Clone)]
pub(super) struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    idle: Mutex<Vec<(Session, Instant)>>,
    slots: Arc<Semaphore>,
    keep: Duration,
    messages_max: u32,
    watched: AtomicBool,
}

impl Pool {
    pub(super) fn new(connections_max: usize, keep: Duration, messages_max: u32) -> Self {
        let slots = Arc::new(Semaphore::new(connections_max.max(1)));
        let inner = Inner {
            idle: Mutex::new(Vec::new()),
            slots,
            keep,
            messages_max,
            watched: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The right to one connection, for as long as it is held. `None` never happens while the pool lives.
    pub(super) async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.inner.slots).acquire_owned().await.ok()
    }

    /// A connection that is open and answers, the one used last first.
    pub(super) async fn take(&self, credentials: Option<&Credentials>, limit: Duration) -> Option<Session> {
        loop {
            let (mut session, since) = self.idle().pop()?;
            let is_ours = session.credentials.as_ref() == credentials && since.elapsed() < self.inner.keep;
            if is_ours && since.elapsed() < FRESH {
                return Some(session);
            }
            if is_ours {
                if session.is_alive(limit).await {
                    return Some(session);
                }
                // The others have lain there for longer: asking each would add up.
                let others = std::mem::take(&mut *self.idle());
                others.into_iter().for_each(|(other, _)| drop(tokio::spawn(other.quit())));
            }
            tokio::spawn(session.quit());
        }
    }

    /// Takes a connection back, or closes it when it has served its time.
    pub(super) fn put(&self, session: Session) {
        if session.spent {
            return;
        }
        if session.mails >= self.inner.messages_max || self.inner.keep.is_zero() {
            tokio::spawn(session.quit());
            return;
        }
        self.idle().push((session, Instant::now()));
        self.watch();
    }

    /// Closes every connection that lies idle.
    pub(super) async fn close(&self) {
        let idle = std::mem::take(&mut *self.idle());
        futures_util::future::join_all(idle.into_iter().map(|(session, _)| session.quit())).await;
    }

    /// How many lie idle.
    pub(super) fn idle_count(&self) -> usize {
        self.idle().len()
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(Session, Instant)>> {
        self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One task closes what lies too long, and ends when nothing lies there or the pool is gone.
    fn watch(&self) {
        if self.inner.watched.swap(true, Ordering::AcqRel) {
            return;
        }
        let (pool, keep) = (Arc::downgrade(&self.inner), self.inner.keep);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(keep).await;
                let Some(inner) = pool.upgrade() else { return };
                let mut over = Vec::new();
                let done = {
                    let mut idle = inner.idle.lock().unwrap_or_else(PoisonError::into_inner);
                    let now = Instant::now();
                    while let Some(at) = idle.iter().position(|(_, since)| now.duration_since(*since) >= keep)
                    {
                        over.push(idle.swap_remove(at).0);
                    }
                    let done = idle.is_empty();
                    if done {
                        inner.watched.store(false, Ordering::Release);
                    }
                    done
                };
                drop(inner);
                for session in over {
                    session.quit().await;
                }
                if done {
                    return;
                }
            }
        });
    }
}
