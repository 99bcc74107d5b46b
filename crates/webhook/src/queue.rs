//! What this process claimed and has not posted yet: who is next, within the limits of endpoints and tenants.
//!
//! A process may have claimed more of an endpoint than it takes at once. So an endpoint has its turn only while fewer of it are being
//! posted than it takes, and a tenant likewise over all its endpoints. Tenants have their turns one after the other, and so have the
//! endpoints of one tenant: a long backlog of one delays nobody else.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use uuid::Uuid;

use crate::claim::{Claimed, Lane};

/// A claim that waits for a slot.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) claimed: Claimed,
    /// Held until what became of it is written.
    pub(crate) claim: OwnedSemaphorePermit,
    pub(crate) since: Instant,
}

/// What a process has of an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct UnderWay {
    /// Those that wait for a slot and those that are being posted.
    pub(crate) count: usize,
    /// Since when the oldest of them waits.
    pub(crate) oldest: Option<Instant>,
}

/// Claims of both lanes. Cheap to clone; clones are one queue.
#[derive(Debug, Clone)]
pub(crate) struct Queue(Arc<Mutex<Held>>);

#[derive(Debug)]
struct Held {
    /// Most posts to one tenant at once.
    tenant_limit: usize,
    lanes: [Turns; 2],
    endpoints: HashMap<Uuid, Endpoint>,
    tenants: HashMap<Arc<str>, Tenant>,
}

/// Of one lane.
#[derive(Debug, Default)]
struct Turns {
    /// Tenants that have an endpoint whose turn it is.
    tenants: VecDeque<Arc<str>>,
    waiting: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Endpoint {
    posting: usize,
    /// By lane.
    lines: [Line; 2],
}

#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Waiting>,
    /// It stands among its tenant's.
    listed: bool,
}

#[derive(Debug, Default)]
struct Tenant {
    posting: usize,
    /// By lane, endpoints that have something that may be posted.
    turns: [VecDeque<Uuid>; 2],
    /// By lane: it stands among the tenants.
    listed: [bool; 2],
}

/// Something is being posted to an endpoint, until this is dropped.
#[derive(Debug)]
pub(crate) struct Posting {
    queue: Queue,
    endpoint: Uuid,
    tenant: Arc<str>,
    limit: usize,
}

impl Queue {
    pub(crate) fn new(tenant_limit: usize) -> Self {
        let lanes = Default::default();
        Self(Arc::new(Mutex::new(Held {
            tenant_limit,
            lanes,
            endpoints: HashMap::new(),
            tenants: HashMap::new(),
        })))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, lane: Lane, all: impl Iterator<Item = Waiting>) {
        let held = &mut *self.held();
        for one in all {
            let turns = &mut held.lanes[lane as usize];
            turns.waiting += 1;
            turns.bytes += one.claimed.body.len();
            let target = Arc::clone(&one.claimed.target);
            let endpoint = held.endpoints.entry(target.id).or_default();
            endpoint.lines[lane as usize].waiting.push_back(one);
            held.list(lane, target.id, &target.tenant, target.concurrency);
        }
    }

    /// The next one whose turn it is.
    pub(crate) fn pop(&self, lane: Lane) -> Option<(Waiting, Posting)> {
        let (waiting, endpoint, tenant, limit) = self.held().pop(lane)?;
        Some((waiting, Posting { queue: self.clone(), endpoint, tenant, limit }))
    }

    /// How many of a lane may be posted before anything that waits for its endpoint or its tenant.
    pub(crate) fn ready(&self, lane: Lane) -> usize {
        let held = self.held();
        let tenants = held.tenants.values().filter(|tenant| tenant.has_room(lane, held.tenant_limit));
        let endpoints = tenants.flat_map(|tenant| &tenant.turns[lane as usize]);
        let lines = endpoints.filter_map(|id| held.endpoints.get(id));
        lines.map(|endpoint| endpoint.lines[lane as usize].waiting.len()).sum()
    }

    /// Something of the lane may be posted now.
    pub(crate) fn is_ready(&self, lane: Lane) -> bool {
        !self.held().lanes[lane as usize].tenants.is_empty()
    }

    /// Those that have waited for longer than `limit`.
    pub(crate) fn older_than(&self, limit: Duration) -> Vec<Waiting> {
        self.held().remove(|_, one| one.since.elapsed() >= limit)
    }

    /// All that waits for an endpoint.
    pub(crate) fn of(&self, endpoint: Uuid) -> Vec<Waiting> {
        let mut held = self.held();
        // Most endpoints that fail have nothing waiting.
        let waits = held.endpoints.get(&endpoint).is_some_and(|endpoint| !endpoint.is_idle());
        if waits { held.remove(|id, _| id == endpoint) } else { Vec::new() }
    }

    /// How many wait in a lane, and the bytes of their bodies.
    pub(crate) fn waiting(&self, lane: Lane) -> (usize, usize) {
        let held = self.held();
        let turns = &held.lanes[lane as usize];
        (turns.waiting, turns.bytes)
    }

    /// By endpoint; those that have nothing are not in it.
    pub(crate) fn under_way(&self) -> HashMap<Uuid, UnderWay> {
        let count = |(id, endpoint): (&Uuid, &Endpoint)| {
            let waiting: usize = endpoint.lines.iter().map(|line| line.waiting.len()).sum();
            let oldest = endpoint.lines.iter().filter_map(|line| Some(line.waiting.front()?.since)).min();
            (*id, UnderWay { count: endpoint.posting + waiting, oldest })
        };
        self.held().endpoints.iter().map(count).collect()
    }
}

impl Held {
    /// Gives an endpoint, and its tenant, a place among those whose turn comes, if there is something that may be posted.
    fn list(&mut self, lane: Lane, id: Uuid, name: &Arc<str>, limit: usize) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        let line = &mut endpoint.lines[lane as usize];
        let tenant = self.tenants.entry(Arc::clone(name)).or_default();
        if !line.listed && !line.waiting.is_empty() && endpoint.posting < limit {
            line.listed = true;
            tenant.turns[lane as usize].push_back(id);
        }
        self.list_tenant(lane, name);
    }

    fn list_tenant(&mut self, lane: Lane, name: &Arc<str>) {
        let Some(tenant) = self.tenants.get_mut(name) else { return };
        let at = lane as usize;
        if !tenant.listed[at] && !tenant.turns[at].is_empty() && tenant.has_room(lane, self.tenant_limit) {
            tenant.listed[at] = true;
            self.lanes[at].tenants.push_back(Arc::clone(name));
        }
    }

    fn pop(&mut self, lane: Lane) -> Option<(Waiting, Uuid, Arc<str>, usize)> {
        // A place may have been given for something that has been taken away since, or that another lane filled the limit of.
        loop {
            let name = self.lanes[lane as usize].tenants.pop_front()?;
            let Some(tenant) = self.tenants.get_mut(&name) else { continue };
            tenant.listed[lane as usize] = false;
            if !tenant.has_room(lane, self.tenant_limit) {
                continue;
            }
            let Some(id) = tenant.turns[lane as usize].pop_front() else { continue };
            let next = self.endpoints.get_mut(&id).and_then(|endpoint| {
                let line = &mut endpoint.lines[lane as usize];
                line.listed = false;
                let limit = line.waiting.front()?.claimed.target.concurrency;
                let free = endpoint.posting < limit;
                let one = if free { line.waiting.pop_front() } else { None }?;
                endpoint.posting += 1;
                Some((one, limit))
            });
            let Some((one, limit)) = next else {
                self.list_tenant(lane, &name);
                self.forget(id, &name);
                continue;
            };
            if let Some(tenant) = self.tenants.get_mut(&name) {
                tenant.posting += 1;
            }
            let turns = &mut self.lanes[lane as usize];
            turns.waiting -= 1;
            turns.bytes -= one.claimed.body.len();
            self.list(lane, id, &name, limit);
            return Some((one, id, name, limit));
        }
    }

    fn posted(&mut self, id: Uuid, name: &Arc<str>, limit: usize) {
        if let Some(tenant) = self.tenants.get_mut(name) {
            tenant.posting = tenant.posting.saturating_sub(1);
        }
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.posting = endpoint.posting.saturating_sub(1);
        }
        for lane in Lane::BOTH {
            self.list(lane, id, name, limit);
        }
        self.forget(id, name);
    }

    /// What has nothing takes no memory.
    fn forget(&mut self, id: Uuid, name: &Arc<str>) {
        if self.endpoints.get(&id).is_some_and(|endpoint| endpoint.posting == 0 && endpoint.is_idle()) {
            self.endpoints.remove(&id);
        }
        if self
            .tenants
            .get(name)
            .is_some_and(|tenant| tenant.posting == 0 && tenant.turns.iter().all(VecDeque::is_empty))
        {
            self.tenants.remove(name);
        }
    }

    /// Takes out what `wanted` says, and the places of what has nothing left.
    fn remove(&mut self, wanted: impl Fn(Uuid, &Waiting) -> bool) -> Vec<Waiting> {
        let mut removed = Vec::new();
        for (id, endpoint) in &mut self.endpoints {
            for ((line, turns), lane) in endpoint.lines.iter_mut().zip(&mut self.lanes).zip(Lane::BOTH) {
                let before = removed.len();
                // Older ones stand in front.
                while let Some(one) = line.waiting.pop_front_if(|one| wanted(*id, one)) {
                    turns.waiting -= 1;
                    turns.bytes -= one.claimed.body.len();
                    removed.push(one);
                }
                if line.waiting.is_empty()
                    && line.listed
                    && let Some(one) = removed.get(before)
                    && let Some(tenant) = self.tenants.get_mut(&one.claimed.target.tenant)
                {
                    line.listed = false;
                    tenant.turns[lane as usize].retain(|listed| listed != id);
                }
            }
        }
        for target in removed.iter().map(|one| &one.claimed.target) {
            // A place that was kept for what fails may be free.
            self.list_tenant(Lane::Healthy, &target.tenant);
            self.forget(target.id, &target.tenant);
        }
        removed
    }
}

impl Tenant {
    /// What fails has one attempt at a time, in its turn: while one waits, the others leave it a place.
    fn has_room(&self, lane: Lane, limit: usize) -> bool {
        let kept = lane == Lane::Healthy && !self.turns[Lane::Failing as usize].is_empty();
        self.posting + usize::from(kept) < limit
    }
}

impl Endpoint {
    fn is_idle(&self) -> bool {
        self.lines.iter().all(|line| line.waiting.is_empty())
    }
}

impl Drop for Posting {
    fn drop(&mut self) {
        self.queue.held().posted(self.endpoint, &self.tenant, self.limit);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;
    use crate::claim::sample;

    const HEALTHY: Lane = Lane::Healthy;

    /// Two posts for a tenant at once; each endpoint's own limit stands beside its name.
    fn queue(all: &[(u128, &str, usize)]) -> Queue {
        let queue = Queue::new(2);
        push(&queue, HEALTHY, all);
        queue
    }

    fn push(queue: &Queue, lane: Lane, all: &[(u128, &str, usize)]) {
        let claims = Arc::new(Semaphore::new(all.len()));
        queue.push(
            lane,
            all.iter().map(|(endpoint, tenant, limit)| Waiting {
                claimed: sample(*endpoint, tenant, *limit, "body"),
                claim: Arc::clone(&claims).try_acquire_owned().unwrap(),
                since: Instant::now(),
            }),
        );
    }

    fn next(queue: &Queue, lane: Lane) -> Option<(u128, Posting)> {
        queue.pop(lane).map(|(waiting, posting)| (waiting.claimed.target.id.as_u128(), posting))
    }

    fn order(queue: &Queue) -> Vec<u128> {
        std::iter::from_fn(|| next(queue, HEALTHY).map(|(endpoint, _)| endpoint)).collect()
    }

    #[test]
    fn tenants_and_their_endpoints_have_their_turns() {
        let queue = queue(&[
            (1, "a", 9),
            (1, "a", 9),
            (1, "a", 9),
            (2, "a", 9),
            (2, "a", 9),
            (3, "b", 9),
            (3, "b", 9),
        ]);
        assert_eq!(order(&queue), [1, 3, 2, 3, 1, 2, 1]);
    }

    #[test]
    fn an_endpoint_waits_while_it_is_posted_as_much_as_it_takes() {
        let queue = queue(&[(1, "a", 1), (1, "a", 1), (2, "a", 1)]);
        let (first, second) = (next(&queue, HEALTHY).unwrap(), next(&queue, HEALTHY).unwrap());
        assert_eq!((first.0, second.0), (1, 2));
        assert!(!queue.is_ready(HEALTHY) && queue.ready(HEALTHY) == 0);
        assert_eq!(queue.waiting(HEALTHY), (1, 4), "it waits all the same");
        drop(second);
        assert!(next(&queue, HEALTHY).is_none(), "what another endpoint ended is not its turn");
        drop(first);
        assert_eq!((queue.ready(HEALTHY), next(&queue, HEALTHY).unwrap().0), (1, 1));
    }

    #[test]
    fn a_tenants_limit_holds_over_both_lanes() {
        let queue = queue(&[(1, "a", 9), (1, "a", 9), (4, "b", 9)]);
        push(&queue, Lane::Failing, &[(2, "a", 9)]);
        let healthy = next(&queue, HEALTHY).unwrap();
        assert_eq!(healthy.0, 1);
        let failing = next(&queue, Lane::Failing).unwrap();
        assert_eq!(failing.0, 2);
        let other = next(&queue, HEALTHY).unwrap();
        assert_eq!(other.0, 4, "the third of a would be too many");
        assert!(next(&queue, HEALTHY).is_none());
        assert_eq!(queue.ready(HEALTHY), 0);
        drop(failing);
        assert_eq!(next(&queue, HEALTHY).unwrap().0, 1);
    }

    #[test]
    fn what_fails_is_kept_a_place_beside_a_busy_endpoint_of_its_tenant() {
        let queue = queue(&[(1, "a", 9), (1, "a", 9), (1, "a", 9)]);
        let (one, two) = (next(&queue, HEALTHY).unwrap(), next(&queue, HEALTHY).unwrap());
        push(&queue, Lane::Failing, &[(2, "a", 9)]);
        assert!(next(&queue, Lane::Failing).is_none(), "both places are taken");
        drop(one);
        assert!(next(&queue, HEALTHY).is_none() && queue.ready(HEALTHY) == 0);
        let failing = next(&queue, Lane::Failing).unwrap();
        drop(two);
        assert_eq!(next(&queue, HEALTHY).unwrap().0, 1);
        drop(failing);
        push(&queue, HEALTHY, &[(1, "a", 9), (1, "a", 9)]);
        let busy = next(&queue, HEALTHY).unwrap();
        push(&queue, Lane::Failing, &[(2, "a", 9)]);
        assert!(next(&queue, HEALTHY).is_none());
        assert_eq!(queue.of(Uuid::from_u128(2)).len(), 1);
        assert_eq!(next(&queue, HEALTHY).unwrap().0, 1, "a place that nobody wants is nobody's");
        drop(busy);
    }

    #[test]
    fn what_is_taken_out_is_nobodys_turn() {
        let queue = queue(&[(1, "a", 9), (1, "a", 9), (2, "a", 9), (3, "b", 9)]);
        assert_eq!(queue.of(Uuid::from_u128(1)).len(), 2);
        assert!(queue.of(Uuid::from_u128(1)).is_empty());
        assert_eq!((order(&queue), queue.waiting(HEALTHY)), (vec![2, 3], (0, 0)));
        assert!(queue.older_than(Duration::ZERO).is_empty());
        push(&queue, HEALTHY, &[(1, "a", 9), (5, "c", 9)]);
        assert!(queue.older_than(Duration::from_secs(60)).is_empty());
        assert_eq!(queue.older_than(Duration::ZERO).len(), 2);
        assert!(next(&queue, HEALTHY).is_none());
        push(&queue, HEALTHY, &[(1, "a", 9)]);
        assert_eq!(order(&queue), [1], "it has its turn again");
        let held = queue.held();
        assert!(
            held.endpoints.is_empty() && held.tenants.is_empty(),
            "what has nothing takes no memory: {held:?}"
        );
    }

    #[test]
    fn what_waits_and_what_is_posted_is_under_way() {
        let queue = queue(&[(1, "a", 9), (1, "a", 9)]);
        let posting = next(&queue, HEALTHY).unwrap();
        let one = queue.under_way()[&Uuid::from_u128(1)];
        assert!(one.count == 2 && one.oldest.is_some());
        let last = next(&queue, HEALTHY).unwrap();
        assert_eq!(queue.under_way()[&Uuid::from_u128(1)], UnderWay { count: 2, oldest: None });
        drop((posting, last));
        assert!(queue.under_way().is_empty());
    }
}
