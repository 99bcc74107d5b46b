//! What this process claimed and has not posted yet, and what of it is under way at each endpoint.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use uuid::Uuid;

use crate::claim::Claimed;

/// A claim that waits for a slot.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) claimed: Claimed,
    /// Held until what became of it is written.
    pub(crate) claim: OwnedSemaphorePermit,
    /// Held until it is posted.
    pub(crate) under_way: UnderWay,
    pub(crate) since: Instant,
}

/// Claims in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Queue(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    waiting: VecDeque<Waiting>,
    bytes: usize,
}

impl Queue {
    pub(crate) fn push(&self, all: impl Iterator<Item = Waiting>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for one in all {
            held.bytes += one.claimed.body.len();
            held.waiting.push_back(one);
        }
    }

    pub(crate) fn pop(&self) -> Option<Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Those that have waited for longer than `limit`; the oldest stand in front.
    pub(crate) fn older_than(&self, limit: Duration) -> Vec<Waiting> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut old = Vec::new();
        while held.waiting.front().is_some_and(|one| one.since.elapsed() >= limit) {
            old.extend(held.pop());
        }
        old
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).waiting.len()
    }

    /// Of the bodies that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

impl Held {
    fn pop(&mut self) -> Option<Waiting> {
        let one = self.waiting.pop_front()?;
        self.bytes -= one.claimed.body.len();
        Some(one)
    }
}

/// How many deliveries wait for a slot or are being posted, by endpoint.
#[derive(Debug, Clone, Default)]
pub(crate) struct Count(Arc<Mutex<HashMap<Uuid, i64>>>);

impl Count {
    pub(crate) fn begin(&self, endpoint: Uuid) -> UnderWay {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(endpoint).or_insert(0) += 1;
        UnderWay { count: self.clone(), endpoint }
    }

    pub(crate) fn all(&self) -> HashMap<Uuid, i64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay {
    count: Count,
    endpoint: Uuid,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut all = self.count.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.endpoint) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.endpoint);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_counts_while_something_of_it_is_under_way() {
        let (count, endpoint) = (Count::default(), Uuid::now_v7());
        let (one, two) = (count.begin(endpoint), count.begin(endpoint));
        assert_eq!(count.all().get(&endpoint), Some(&2));
        drop(one);
        assert_eq!(count.all().get(&endpoint), Some(&1));
        drop(two);
        assert!(count.all().is_empty(), "an endpoint without any takes no memory");
    }
}
