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

    /// What has to be published so that Redis holds what the rows said at `mark`: what differs from what is known, and a turn
    /// of the others. Takes it as published; [`Ledger::forget`] when it was not.
    pub fn due(&mut self, term: i64, mark: Mark, fleet: &[FleetRow], resting: &BTreeSet<String>) -> Records {
        self.enter(term);
        let mut records = Records::default();
        let rest = resting.len() + fleet.len();
        let first = if self.turn < rest { self.turn } else { 0 };
        let last = first + COMPARED;
        self.turn = last;
        let touched = std::mem::take(&mut self.touched);
        let newer = |name: &str| touched.get(name).is_some_and(|count| *count > mark.0);
        let mut known = HashMap::with_capacity(rest);
        let gone = resting.iter().map(|name| (name, None));
        let there = fleet.iter().filter(|row| !is_unaddressed(row));
        let there = there.map(|row| (&row.server.name, wanted(row)));
        for (place, (name, record)) in gone.chain(there).enumerate() {
            let before = self.known.remove_entry(name);
            if newer(name) {
                known.extend(before);
                continue;
            }
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
