//! Ends that the library decided (cancelled, replaced, poison, retention): from their notes in Redis to the history.
//!
//! The call that ends a job notes it in the same step, so no crash can come between; the note is removed once the record
//! stands. Whoever made the call writes it at once; what is left over, a worker's heart writes a few seconds later.

use std::borrow::Cow;
use std::time::Duration;

use voiceai_redis::Value;

use super::Client;
use crate::finished::{DeadReason, Ending, FinishedJob};
use crate::library::QueueName;

/// Notes written in one step.
const STEP: usize = 200;
/// Older ones were left over by whoever made them.
const LEFT_OVER: Duration = Duration::from_secs(5);

impl Client {
    /// Writes the noted ends to the history and removes the notes. Those that could not be written are left for a later try.
    /// Answers whether all stand there.
    pub(crate) async fn write_ends(&self, queue: &str, numbers: &[i64]) -> bool {
        for part in numbers.chunks(STEP) {
            if let Err(problem) = self.write_noted(queue, part).await {
                tracing::warn!(queue, ends = numbers.len(), problem, "ends of jobs wait for the history");
                return false;
            }
        }
        true
    }

    /// Writes ends whose callers did not.
    pub(crate) async fn write_left_over_ends(&self, queue: &str) {
        let name = QueueName::new(queue);
        let age = i64::try_from(LEFT_OVER.as_millis()).unwrap_or(i64::MAX);
        let mut cursor = "0".to_owned();
        loop {
            let args =
                vec![age.into(), i64::try_from(STEP).unwrap_or(i64::MAX).into(), cursor.as_str().into()];
            let found: Result<(String, Vec<i64>), _> =
                self.library().call_apart(&name, "voiceai_v1_ends", args).await;
            let Ok((next, numbers)) = found else { return };
            if !self.write_ends(queue, &numbers).await || next == "0" {
                return;
            }
            cursor = next;
        }
    }

    async fn write_noted(&self, queue: &str, numbers: &[i64]) -> Result<(), String> {
        let key = QueueName::new(queue).key("ends");
        let mut args: Vec<Value> = vec![key.into()];
        args.extend(numbers.iter().map(|n| Value::from(*n)));
        let notes: Vec<Value> =
            self.redis().command("HMGET", args.clone()).await.map_err(|e| e.to_string())?;
        let records: Vec<FinishedJob> =
            notes.into_iter().filter_map(bytes_of).filter_map(|note| self.read_note(queue, &note)).collect();
        if !records.is_empty() {
            self.history().write(records).await.map_err(|e| e.to_string())?;
        }
        let removed: Result<Value, _> = self.redis().command("HDEL", args).await;
        removed.map(drop).map_err(|e| e.to_string())
    }

    /// `None` where nothing can be told: the note is of another form, or the job had no readable envelope.
    fn read_note(&self, queue: &str, note: &[u8]) -> Option<FinishedJob> {
        let (head, rest) = split_line(note)?;
        if head == "record" {
            return serde_json::from_slice(rest).ok();
        }
        let mut words = head.split(' ');
        let ending = ending_of(words.next()?)?;
        let at: i64 = words.next()?.parse().ok()?;
        let mut rest = rest;
        let mut part = || -> Option<Cow<'_, str>> {
            let (part, after) = rest.split_at_checked(words.next()?.parse().ok()?)?;
            rest = after;
            Some(String::from_utf8_lossy(part))
        };
        let (id, why, fail) = (part()?, part()?, part()?);
        let envelope = String::from_utf8_lossy(rest);
        let fail = Some(&*fail).filter(|f| !f.is_empty());
        let mut record = self.record(queue, &id, &envelope, fail, ending, &why)?;
        // The moment of the act, not of the writing: a record that is written twice is known by it.
        record.finished_at = jiff::Timestamp::from_millisecond(at).ok()?;
        Some(record)
    }
}

fn split_line(note: &[u8]) -> Option<(&str, &[u8])> {
    let end = note.iter().position(|b| *b == b'\n')?;
    Some((std::str::from_utf8(&note[..end]).ok()?, &note[end + 1..]))
}

fn ending_of(word: &str) -> Option<Ending> {
    Some(match word.split_once(':') {
        Some(("dead", reason)) => Ending::Dead(DeadReason::parse(reason)?),
        None if word == "cancelled" => Ending::Cancelled,
        None if word == "removed" => Ending::Removed,
        _ => return None,
    })
}

fn bytes_of(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => Some(text.as_bytes().to_vec()),
        Value::Bytes(bytes) => Some(bytes.to_vec()),
        _ => None,
    }
}
