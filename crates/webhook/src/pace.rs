//! How far ahead of an endpoint's limit this process claims.
//!
//! An endpoint that answers at once has taken most of what a look claimed before the next one comes. Each time it has, the next look
//! may claim four times as many rounds of it; once something of it waits for long, it is one round again. An endpoint that hangs never
//! holds more than its limit.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::claim::{Claimed, Share};
use crate::queue::UnderWay;

/// By so much the rounds grow.
const GROWTH: usize = 4;
/// Most rounds of an endpoint's limit.
const ROUNDS_MAX: usize = 16;
/// What waits for longer than this was claimed too far ahead.
const SLOW: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy)]
struct Pace {
    rounds: usize,
    limit: usize,
    /// The last look claimed something of it.
    claimed: bool,
}

/// By endpoint; one that is not here is claimed for up to its limit.
#[derive(Debug, Default)]
pub(crate) struct Paces(HashMap<Uuid, Pace>);

impl Paces {
    /// Before a look: judges the last one by how many of each endpoint wait or are being posted.
    pub(crate) fn judge(&mut self, under_way: &HashMap<Uuid, UnderWay>) {
        self.0.retain(|id, pace| {
            let count = under_way.get(id).map_or(0, |one| one.count);
            if pace.claimed && 2 * count <= pace.limit.saturating_mul(pace.rounds) {
                pace.rounds = (GROWTH * pace.rounds).min(ROUNDS_MAX);
            }
            pace.claimed || count > 0
        });
    }

    /// Endpoints that were claimed too far ahead: what waits of them belongs to nobody again, and they begin with one round.
    pub(crate) fn slow(&mut self, under_way: &HashMap<Uuid, UnderWay>, now: Instant) -> Vec<Uuid> {
        let waits = |id| under_way.get(id).and_then(|one: &UnderWay| one.oldest);
        let slow: Vec<Uuid> = self
            .0
            .iter()
            .filter(|(id, pace)| {
                pace.rounds > 1 && waits(id).is_some_and(|since| now.duration_since(since) >= SLOW)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in &slow {
            self.0.remove(id);
        }
        slow
    }

    /// What a look may claim.
    pub(crate) fn shares(&self, under_way: &HashMap<Uuid, UnderWay>) -> HashMap<Uuid, Share> {
        let share = |(id, one): (&Uuid, &UnderWay)| (*id, Share { under_way: one.count, rounds: 1 });
        let mut shares: HashMap<Uuid, Share> = under_way.iter().map(share).collect();
        for (id, pace) in &self.0 {
            shares.entry(*id).or_insert(Share { under_way: 0, rounds: 1 }).rounds = pace.rounds;
        }
        shares
    }

    /// What a look claimed.
    pub(crate) fn looked(&mut self, claimed: &[Claimed]) {
        for pace in self.0.values_mut() {
            pace.claimed = false;
        }
        for one in claimed {
            let limit = one.target.concurrency;
            let pace = self.0.entry(one.target.id).or_insert(Pace { rounds: 1, limit, claimed: true });
            (pace.limit, pace.claimed) = (limit, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::sample;

    fn look(paces: &mut Paces, count: usize, waited: Duration, claims: bool) -> usize {
        let (id, now) = (Uuid::from_u128(1), Instant::now() + SLOW);
        let under_way = HashMap::from([(id, UnderWay { count, oldest: Some(now - waited) })]);
        let slow = paces.slow(&under_way, now);
        assert_eq!(slow.len(), usize::from(waited >= SLOW));
        paces.judge(&under_way);
        let rounds = paces.shares(&under_way)[&id].rounds;
        paces.looked(if claims { vec![sample(1, "a", 4, "")] } else { Vec::new() }.as_slice());
        rounds
    }

    #[test]
    fn an_endpoint_that_keeps_pace_is_claimed_further_ahead_each_time() {
        let mut paces = Paces::default();
        let rounds: Vec<usize> = [4, 2, 9, 8, 33, 32]
            .into_iter()
            .map(|count| look(&mut paces, count, Duration::ZERO, true))
            .collect();
        assert_eq!(rounds, [1, 4, 4, 16, 16, 16]);
        assert_eq!(look(&mut paces, 10, SLOW, true), 1, "what waits for long was claimed too far ahead");
        assert_eq!(look(&mut paces, 0, Duration::ZERO, false), 4);
        assert_eq!(look(&mut paces, 1, Duration::ZERO, false), 4, "only what was claimed tells of its pace");
    }

    #[test]
    fn an_endpoint_that_has_nothing_more_is_forgotten() {
        let mut paces = Paces::default();
        look(&mut paces, 0, Duration::ZERO, true);
        paces.looked(&[]);
        paces.judge(&HashMap::new());
        assert!(paces.0.is_empty() && paces.shares(&HashMap::new()).is_empty());
    }
}
