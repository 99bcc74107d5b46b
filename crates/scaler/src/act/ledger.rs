//! What this leader knows of the routing records, so that an evaluation writes only what changed.
//!
//! Redis remains the place that counts: a turn of unchanged records is compared there at every publication, so that one that
//! somebody damaged is mended within a few evaluations, at once in a fleet of ordinary size. A set that was lost as a whole
//! is noticed by its generation and published as a whole.

use std::collections::{BTreeSet, HashMap};

use crate::dispatcher::{Record, Records, is_unaddressed, wanted};
use crate::store::FleetRow;

/// Unchanged records that are compared with Redis at a time.
const COMPARED: usize = 2_000;
/// Records that a new term knows nothing of, compared at a time: of a fleet of ordinary size all at once, and a large one does
/// not hold its first evaluation up.
const UNKNOWN_COMPARED: usize = 10_000;

/// Records as they were last published in this term, and which of them operations have changed since a snapshot was read.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The term they were published in; what another leader did in between is not known.
    term: i64,
    /// `None`: no record.
    known: HashMap<String, Option<Record>>,
    /// Counts publications of single records.
    count: u64,
    /// The count at which an operation last published a server's record.
    touched: HashMap<String, u64>,
    /// Where the next turn of comparisons begins.
    turn: usize,
}

/// A moment between two publications of single records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u64);

impl Ledger {
    /// To be taken before a snapshot is read: what operations publish later is newer than the snapshot.
    pub const fn mark(&self) -> Mark {
        Mark(self.count)
    }

    /// An operation published this record.
    pub fn touch(&mut self, term: i64, name: &str, record: Option<Record>) {
        self.enter(term);
        self.count += 1;
        self.touched.insert(name.to_owned(), self.count);
        self.known.insert(name.to_owned(), record);
    }

    /// Nothing is known for sure any more: an answer was lost, or the set.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    fn enter(&mut self, term: i64) {
        if self.term != term {
            self.term = term;
            self.known.clear();
        }
    }

    /// What has to be published so that Redis holds what the rows said at `mark`: what differs from what is known, a turn of
    /// what this term knows nothing of yet, and a turn of the others. Takes it as published; [`Ledger::forget`] when it was
    /// not.
    pub fn due(&mut self, term: i64, mark: Mark, fleet: &[FleetRow], resting: &BTreeSet<String>) -> Records {
        self.enter(term);
        let mut records = Records::default();
        let rest = resting.len() + fleet.len();
        let first = if self.turn < rest { self.turn } else { 0 };
        let last = first + COMPARED;
        self.turn = last;
        let mut unknown = UNKNOWN_COMPARED;
        let touched = std::mem::take(&mut self.touched);
        let newer = |name: &str| touched.get(name).is_some_and(|count| *count > mark.0);
        let mut known = HashMap::with_capacity(rest);
        // What an operation works on, or has just ended, was about to change when the term began.
        let gone = resting.iter().map(|name| (name, None, true));
        let there = fleet.iter().filter(|row| !is_unaddressed(row));
        let there = there.map(|row| (&row.server.name, Some(row), row.operation.is_some()));
        for (place, (name, row, moving)) in gone.chain(there).enumerate() {
            let before = self.known.remove_entry(name);
            if newer(name) {
                known.extend(before);
                continue;
            }
            if before.is_none() && !moving {
                if unknown == 0 {
                    continue;
                }
                unknown -= 1;
            }
            let record = row.and_then(wanted);
            let same = before.as_ref().is_some_and(|(_, before)| *before == record);
            if !same || (first..last).contains(&place) {
                match &record {
                    Some(record) => records.put.push(record.clone()),
                    None => records.remove.push(name.clone()),
                }
            }
            known.insert(before.map_or_else(|| name.clone(), |(name, _)| name), record);
        }
        // Published by an operation that the snapshot did not know yet.
        known.extend(self.known.drain().filter(|(name, _)| newer(name)));
        self.known = known;
        self.touched = touched;
        self.touched.retain(|_, count| *count > mark.0);
        records
    }

    /// The whole set was published in this term.
    pub fn whole(&mut self, term: i64, records: &Records) {
        self.term = term;
        let put = records.put.iter().map(|record| (record.name.clone(), Some(record.clone())));
        self.known = put.chain(records.remove.iter().map(|name| (name.clone(), None))).collect();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use serde_json::json;
    use uuid::Uuid;
    use voiceai_scaler_core::{Policy, ServerStatus, Service};

    use super::*;
    use crate::store::{ServerRow, ServerSpec};

    fn fleet(servers: usize) -> Vec<FleetRow> {
        let policy = json!({"id": "g", "name": "eu", "scalingEnabled": true, "scalingProvider": "local"});
        let spec = Arc::new(ServerSpec::of(&Policy::read(&policy).expect("a policy")));
        let server = |number: usize| ServerRow {
            id: Uuid::nil(),
            name: format!("test-voice-{number:05}"),
            group_id: "g".to_owned(),
            group_name: "eu".to_owned(),
            service: Service::Voice,
            status: ServerStatus::Active,
            made_by: Uuid::nil(),
            provider: "local".to_owned(),
            provider_id: None,
            ip: Some("10.0.0.1".to_owned()),
            private_ip: None,
            spec: Arc::clone(&spec),
            protected_until: None,
            created_at: Timestamp::UNIX_EPOCH,
            in_service_at: None,
        };
        (0..servers).map(|number| FleetRow { server: server(number), operation: None }).collect()
    }

    #[test]
    fn a_new_term_compares_everything_a_turn_after_the_other() {
        let mut ledger = Ledger::default();
        let mut fleet = fleet(23_000);
        let resting = BTreeSet::from(["test-voice-gone".to_owned()]);
        let due = |ledger: &mut Ledger, term, fleet: &[FleetRow]| {
            let records = ledger.due(term, ledger.mark(), fleet, &resting);
            (records.put.len(), records.remove.len())
        };
        let mut seen = BTreeSet::new();
        for times in 1..=3 {
            let records = ledger.due(1, ledger.mark(), &fleet, &resting);
            assert!(records.put.len() <= UNKNOWN_COMPARED + COMPARED, "{times}");
            assert_eq!(records.remove.len(), usize::from(times == 1), "known to be gone from then on");
            seen.extend(records.put.into_iter().map(|record| record.name));
        }
        assert_eq!(seen.len(), fleet.len(), "all of them, in three turns");
        // Known by now: only the usual turn, and what changes.
        assert_eq!(due(&mut ledger, 1, &fleet), (COMPARED, 0));
        fleet[22_999].server.ip = Some("10.0.0.2".to_owned());
        assert_eq!(due(&mut ledger, 1, &fleet), (COMPARED + 1, 0));
        let (put, removed) = due(&mut ledger, 2, &fleet);
        assert!(
            put >= UNKNOWN_COMPARED && removed == 1,
            "what another leader did is not known: {put}, {removed}"
        );
    }
}
