//! Holds back log lines that say the same thing again, and counts them.
//!
//! A line is the same when its place in the code, its text and its fields are the same; how long something took or how
//! often it was tried does not make it another line (see [`distinguishes`]). So a backend that is away costs a few lines
//! a minute, while two jobs that fail in the same way are two lines.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A line that repeats is written at most once in this time.
pub(crate) const WINDOW: Duration = Duration::from_secs(10);

/// Different lines remembered at once; more than that are written unfiltered until old ones fall out.
const REMEMBERED_MAX: usize = 4096;

/// What to do with a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Write it, with the number of equal lines that were left out before it.
    Write { left_out: u64 },
    /// Do not write it; it is counted.
    LeaveOut,
}

/// A line of which some were left out and which has not come again since.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Late {
    /// The last one left out, as it would have been written, without its time.
    pub(crate) body: String,
    /// How many were left out.
    pub(crate) left_out: u64,
}

#[derive(Debug)]
struct Seen {
    written_at: Instant,
    left_out: u64,
    body: String,
}

/// The memory of one log.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    seen: HashMap<u64, Seen>,
    swept_at: Option<Instant>,
}

impl Repeats {
    /// Judges the line `key`, whose text is `body`, at the time `now`. Also returns the lines that have stopped
    /// repeating since the last look, so that their count is not lost.
    pub(crate) fn observe(&self, key: u64, body: &str, now: Instant) -> (Verdict, Vec<Late>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = state.judge(key, body, now);
        let late = state.sweep(now);
        (verdict, late)
    }

    /// Forgets everything and returns every count not yet written: the last thing before the process ends.
    pub(crate) fn drain(&self) -> Vec<Late> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.seen.drain().filter_map(|(_, seen)| seen.late()).collect()
    }
}

impl Seen {
    fn late(self) -> Option<Late> {
        (self.left_out > 0).then_some(Late { body: self.body, left_out: self.left_out })
    }
}

impl State {
    fn judge(&mut self, key: u64, body: &str, now: Instant) -> Verdict {
        if let Some(seen) = self.seen.get_mut(&key) {
            if now.saturating_duration_since(seen.written_at) < WINDOW {
                seen.left_out += 1;
                body.clone_into(&mut seen.body);
                return Verdict::LeaveOut;
            }
            seen.written_at = now;
            return Verdict::Write { left_out: std::mem::take(&mut seen.left_out) };
        }
        if self.seen.len() < REMEMBERED_MAX {
            self.seen.insert(key, Seen { written_at: now, left_out: 0, body: String::new() });
        }
        Verdict::Write { left_out: 0 }
    }

    fn sweep(&mut self, now: Instant) -> Vec<Late> {
        let due = self.swept_at.is_none_or(|at| now.saturating_duration_since(at) >= WINDOW);
        if !due {
            return Vec::new();
        }
        self.swept_at = Some(now);
        let over = |seen: &Seen| now.saturating_duration_since(seen.written_at) >= WINDOW;
        self.seen.extract_if(|_, seen| over(seen)).filter_map(|(_, seen)| seen.late()).collect()
    }
}

/// Whether a field makes a line another one. Measurements never do. The number of an attempt does only beside the name
/// of what is attempted: a job's second attempt is news, a connection's is the same trouble again.
pub(crate) fn distinguishes(name: &str, named: bool) -> bool {
    const MEASUREMENT_ENDINGS: [&str; 7] = ["_ns", "_us", "_ms", "_seconds", "_bytes", "_count", "_total"];
    const MEASUREMENTS: [&str; 6] = ["elapsed", "duration", "delay", "count", "failures", "for_seconds"];
    let measured = MEASUREMENTS.contains(&name) || MEASUREMENT_ENDINGS.iter().any(|end| name.ends_with(end));
    let attempt = matches!(name, "attempt" | "attempts" | "tries");
    !measured && (named || !attempt)
}

/// True for the name of a field that says which one of many a line is about: `jobId`, `job_id`, `group.id`, `name`.
pub(crate) fn is_name(field: &str) -> bool {
    field == "id"
        || field == "name"
        || field.ends_with("_id")
        || field.ends_with(".id")
        || field.ends_with("Id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_one_line_and_its_count_comes_with_the_next() {
        let repeats = Repeats::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(repeats.observe(1, "a", at(0)).0, Verdict::Write { left_out: 0 });
        for ms in 1..=500 {
            assert_eq!(repeats.observe(1, "a", at(ms)).0, Verdict::LeaveOut);
        }
        assert_eq!(repeats.observe(2, "b", at(500)).0, Verdict::Write { left_out: 0 });
        assert_eq!(repeats.observe(1, "a", at(9_999)).0, Verdict::LeaveOut);
        assert_eq!(repeats.observe(1, "a", at(10_000)).0, Verdict::Write { left_out: 501 });
        assert_eq!(repeats.observe(1, "a", at(19_999)).0, Verdict::LeaveOut);
    }

    #[test]
    fn a_count_is_not_lost_when_the_line_never_comes_again() {
        let repeats = Repeats::default();
        let start = Instant::now();
        for _ in 0..4 {
            repeats.observe(1, "gone", start);
        }
        let (_, late) = repeats.observe(2, "other", start + WINDOW);
        assert_eq!(late, vec![Late { body: "gone".to_owned(), left_out: 3 }]);
        repeats.observe(2, "other", start + WINDOW);
        assert_eq!(repeats.drain(), vec![Late { body: "other".to_owned(), left_out: 1 }]);
        assert_eq!(repeats.drain(), vec![]);
    }

    #[test]
    fn memory_is_bounded_and_never_costs_a_line() {
        let repeats = Repeats::default();
        let start = Instant::now();
        for key in 0..REMEMBERED_MAX as u64 + 10 {
            assert_eq!(repeats.observe(key, "x", start).0, Verdict::Write { left_out: 0 });
        }
        let state = repeats.state.lock().expect("no panic held it");
        assert_eq!(state.seen.len(), REMEMBERED_MAX);
    }

    #[test]
    fn measurements_do_not_distinguish_and_attempts_only_beside_a_name() {
        assert!(!distinguishes("latency_ms", true));
        assert!(!distinguishes("delay", false));
        assert!(!distinguishes("attempt", false));
        assert!(distinguishes("attempt", true));
        assert!(distinguishes("term", false));
        assert!(
            distinguishes("jobId", false) && is_name("jobId") && is_name("group.id") && !is_name("error")
        );
    }
}
