//! A queue's sizes, counters and workers.

use std::collections::BTreeMap;

use voiceai_redis::Value;

use super::views::{QueueStats, WorkerView, bad_reply, to_ms};
use super::{Client, timestamp};
use crate::error::QueueError;
use crate::library::{Fields, QueueName, Unexpected};
use crate::new_job::check_queue;

impl Client {
    /// A queue's sizes, counters, settings and workers.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn stats(&self, queue: &str) -> Result<QueueStats, QueueError> {
        check_queue(queue)?;
        let reply: Result<Value, _> =
            self.library().call_apart(&QueueName::new(queue), "voiceai_v1_stats", Vec::new()).await;
        let reply = reply.map_err(|e| QueueError::from_redis(queue, "read the statistics", e))?;
        read_stats(queue, reply).map_err(|e| bad_reply(queue, "stats", &e))
    }
}

fn read_stats(queue: &str, reply: Value) -> Result<QueueStats, Unexpected> {
    let mut f = Fields::of(reply)?;
    let size = |f: &mut Fields| f.integer().map(|n| u64::try_from(n).unwrap_or(0));
    let now = size(&mut f)?;
    let jobs = size(&mut f)?;
    let active = size(&mut f)?;
    let delayed = size(&mut f)?;
    let blocked = size(&mut f)?;
    let dead = size(&mut f)?;
    let remembered = size(&mut f)?;
    let ghosts = size(&mut f)?;
    let _results = size(&mut f)?;
    let oldest = u64::try_from(f.integer()?).ok();
    let suspects = size(&mut f)?;
    let held_lanes = size(&mut f)?;
    let counters: BTreeMap<String, u64> =
        f.pairs()?.into_iter().map(|(name, n)| (name, n.parse().unwrap_or(0))).collect();
    let settings: BTreeMap<String, String> = f.pairs()?.into_iter().collect();
    let leases = f.pairs()?;
    let mut workers: Vec<WorkerView> = f
        .pairs()?
        .into_iter()
        .filter_map(|(incarnation, info)| {
            let lease = leases.get(&incarnation)?;
            let mut view: WorkerView = serde_json::from_str(&info).ok()?;
            view.incarnation = incarnation;
            view.lease_until = lease.parse().ok().map(|s: f64| timestamp(to_ms(s)));
            Some(view)
        })
        .collect();
    workers.sort_by(|a, b| a.started_at.cmp(&b.started_at).then_with(|| a.incarnation.cmp(&b.incarnation)));
    let waiting = jobs.saturating_sub(active + delayed + dead + remembered + ghosts);
    let counter = |name: &str| counters.get(name).copied().unwrap_or(0);
    let stored: Option<u64> = settings.get("worker_concurrency").and_then(|n| n.parse().ok());
    let capacity: u64 = workers.iter().map(|w| stored.unwrap_or_else(|| u64::from(w.concurrency))).sum();
    #[allow(clippy::cast_precision_loss, reason = "a ratio for people and autoscalers")]
    let saturation = (capacity > 0).then(|| (waiting + active) as f64 / capacity as f64);
    let (last, before) = (f.text()?, f.text()?);
    let rate = rate_between(before.as_deref(), last.as_deref(), now, counter("completed"));
    #[allow(clippy::cast_precision_loss, reason = "an estimate for people")]
    let time_to_empty = rate.filter(|r| *r > 0.0).map(|r| waiting as f64 / r);
    Ok(QueueStats {
        queue: queue.to_owned(),
        waiting,
        delayed,
        blocked,
        active,
        dead,
        completed: counter("completed"),
        accepted: counter("accepted"),
        cancelled: counter("cancelled"),
        discarded: counter("discarded"),
        removed: counter("removed"),
        oldest_waiting_ms: oldest.map(|born| now.saturating_sub(born)),
        suspects,
        held_lanes,
        paused: settings.contains_key("paused"),
        producers_paused: settings.contains_key("producers_paused"),
        draining: settings.contains_key("draining"),
        counters,
        settings,
        workers,
        capacity,
        saturation,
        rate_per_second: rate,
        time_to_empty_seconds: time_to_empty,
        at: timestamp(now),
    })
}

/// Completions per second since the older of two marks `<ms> <completed>`. Marks of long ago say nothing of now.
fn rate_between(before: Option<&str>, last: Option<&str>, now: u64, completed: u64) -> Option<f64> {
    let read = |mark: Option<&str>| -> Option<(u64, u64)> {
        let (at, n) = mark?.split_once(' ')?;
        Some((at.parse().ok()?, n.parse().ok()?))
    };
    let (last_at, _) = read(last)?;
    if now.saturating_sub(last_at) > 30_000 {
        return None;
    }
    let (at, n) = read(before).filter(|(at, _)| now.saturating_sub(*at) < 60_000).or_else(|| read(last))?;
    let span = now.saturating_sub(at);
    #[allow(clippy::cast_precision_loss, reason = "an estimate for people")]
    (span >= 500).then(|| completed.saturating_sub(n) as f64 * 1_000.0 / span as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_the_last_seconds_or_unknown() {
        assert_eq!(rate_between(Some("1000 100"), Some("6000 600"), 11_000, 1_100), Some(100.0));
        assert_eq!(rate_between(None, Some("6000 600"), 8_000, 600), Some(0.0));
        assert_eq!(rate_between(Some("1000 100"), Some("6000 600"), 60_000, 600), None);
        assert_eq!(rate_between(None, None, 8_000, 600), None);
    }
}
