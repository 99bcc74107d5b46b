//! One job: all that is known about it, and why it does not run.

use std::collections::BTreeMap;

use voiceai_redis::Value;

use super::views::{JobView, QueueStats, State, WhyNot, bad_reply, incarnation_of, to_ms};
use super::{Client, timestamp};
use crate::error::QueueError;
use crate::id::JobId;
use crate::library::{Fields, QueueName, Unexpected, text_of};
use crate::new_job::check_queue;

/// How far a lane is searched for a job's place.
const SEARCH_MAX: i64 = 10_000;

impl Client {
    /// All that is known about job `id` of `queue`; `None` when nothing is.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn show(&self, queue: &str, id: &str) -> Result<Option<JobView>, QueueError> {
        check_queue(queue)?;
        let args: Vec<Value> = vec![id.into(), SEARCH_MAX.into()];
        let reply: Result<Value, _> =
            self.library().call_apart(&QueueName::new(queue), "voiceai_v1_show", args).await;
        let reply = reply.map_err(|e| QueueError::from_redis(queue, "show a job", e))?;
        let stats = self.stats(queue).await?;
        read_show(queue, id, reply, &stats).map_err(|e| bad_reply(queue, "show", &e))
    }

    /// Looks for job `id` in every queue.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn find(&self, id: &str) -> Result<Option<JobView>, QueueError> {
        for queue in self.queues().await? {
            if let Some(found) = self.show(&queue, id).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The results that finished children left for their waiting parent, by child id.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn children_results(
        &self,
        queue: &str,
        parent: &str,
    ) -> Result<BTreeMap<String, serde_json::Value>, QueueError> {
        let key = QueueName::new(queue).key(&format!("kids:{parent}"));
        let flat: Value = self
            .redis()
            .command("HGETALL", vec![key])
            .await
            .map_err(|e| QueueError::from_redis(queue, "read the children's results", e))?;
        let pairs: Vec<(String, String)> = match flat {
            Value::Array(items) => {
                items.chunks_exact(2).filter_map(|p| Some((text_of(&p[0])?, text_of(&p[1])?))).collect()
            }
            Value::Map(map) => {
                map.inner().into_iter().filter_map(|(k, v)| Some((k.into_string()?, text_of(&v)?))).collect()
            }
            _ => Vec::new(),
        };
        Ok(pairs
            .into_iter()
            .map(|(id, text)| {
                let value = serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
                (id, value)
            })
            .collect())
    }
}

fn read_show(queue: &str, id: &str, reply: Value, stats: &QueueStats) -> Result<Option<JobView>, Unexpected> {
    let mut f = Fields::of(reply)?;
    let now = u64::try_from(f.integer()?).unwrap_or(0);
    let envelope = f.text()?;
    let active = f.text()?;
    let fail = f.text()?;
    let crashes: u32 = f.text()?.and_then(|n| n.parse().ok()).unwrap_or(0);
    let due: Option<f64> = f.text()?.and_then(|s| s.parse().ok());
    let dead: Option<f64> = f.text()?.and_then(|s| s.parse().ok());
    let remembered = f.text()?;
    let cancel = f.text()?;
    let progress = f.text()?;
    let result = f.text()?;
    let position = f.integer()?;
    let held: Option<f64> = f.text()?.and_then(|s| s.parse().ok());
    let before = u64::try_from(f.integer()?).unwrap_or(0);
    let slots = u64::try_from(f.integer()?).unwrap_or(0);
    let ghost = f.integer()? == 1;
    let queue_starts = f.text()?;
    let key_starts = f.text()?;
    let children: Option<u32> = f.text()?.and_then(|n| n.parse().ok());
    let holder = f.text()?;
    let log = f.texts()?;
    let suspect = f.integer()? == 1;

    let done = remembered.is_some() || (envelope.is_none() && result.is_some());
    if ghost || (envelope.as_deref().unwrap_or_default().is_empty() && !done) {
        return Ok(None);
    }
    let state = if active.is_some() {
        State::Active
    } else if dead.is_some() {
        State::Dead
    } else if done {
        State::Completed
    } else if due.is_some() {
        State::Delayed
    } else {
        State::Waiting
    };
    let holder = holder.filter(|holder| holder != id);
    let mut view = JobView::new(queue, id, state, envelope.as_deref().unwrap_or_default(), fail.as_deref());
    view.crashes = crashes;
    view.cancel_asked = cancel;
    view.progress = progress;
    view.result = result.and_then(|r| serde_json::from_str(&r).ok());
    view.log = log;
    view.dead_at = dead.map(|s| timestamp(to_ms(s)));
    view.worker = active.as_deref().map(|token| {
        let inc = incarnation_of(token);
        stats
            .workers
            .iter()
            .find(|w| w.incarnation == inc)
            .map_or_else(|| inc.to_owned(), |w| format!("{}/{}", w.host, w.pid))
    });
    if state == State::Dead {
        view.key_holder = holder.as_deref().map(JobId::trusted);
    }
    if state == State::Delayed {
        match due {
            Some(at) if at.is_finite() => {
                let until = timestamp(to_ms(at));
                view.due_at = Some(until);
                if to_ms(at) > now {
                    view.why_not.push(WhyNot::DelayedUntil { until });
                }
            }
            _ => {
                view.why_not.extend(children.map(|left| WhyNot::WaitingForChildren { left }));
                view.why_not.extend(holder.map(|id| WhyNot::WaitingForHolder { id }));
            }
        }
    }
    if matches!(state, State::Waiting | State::Delayed) {
        let place =
            Place { position, before, slots, held: held.is_some(), suspect, queue_starts, key_starts, now };
        explain(&mut view, stats, &place);
    }
    Ok(Some(view))
}

struct Place {
    position: i64,
    before: u64,
    slots: u64,
    held: bool,
    suspect: bool,
    queue_starts: Option<String>,
    key_starts: Option<String>,
    now: u64,
}

/// `<n> <period ms>`
fn parse_rate(text: &str) -> Option<(u64, u64)> {
    let (limit, period) = text.split_once(' ')?;
    Some((limit.parse().ok()?, period.parse().ok()?))
}

/// Starts of the last period, from the stored `t n t n …`.
fn starts_within(entries: Option<&str>, period: u64, now: u64) -> u64 {
    let numbers: Vec<u64> = entries.unwrap_or_default().split(' ').filter_map(|n| n.parse().ok()).collect();
    numbers.chunks_exact(2).filter(|pair| pair[0] + period > now).map(|pair| pair[1]).sum()
}

fn explain(view: &mut JobView, stats: &QueueStats, place: &Place) {
    let setting = |name: &str| stats.settings.get(name).map(String::as_str);
    let mut why = Vec::new();
    if stats.paused {
        why.push(WhyNot::Paused);
    }
    if stats.workers.is_empty() {
        why.push(WhyNot::NoWorker);
    } else if !stats.workers.iter().any(|w| w.kinds.contains(&view.kind)) {
        why.push(WhyNot::NoHandler);
    }
    if let Some((limit, period_ms)) = setting("rate").or_else(|| setting("base_rate")).and_then(parse_rate)
        && starts_within(place.queue_starts.as_deref(), period_ms, place.now) >= limit
    {
        why.push(WhyNot::QueueRate { limit, period_ms });
    }
    if let Some(limit) = setting("concurrency").and_then(|n| n.parse().ok())
        && stats.active >= limit
    {
        why.push(WhyNot::QueueConcurrency { limit });
    }
    if let Some(key) = view.key.clone() {
        if let Some(limit) = setting("key_concurrency").and_then(|n| n.parse().ok())
            && (place.slots >= limit || place.held)
        {
            why.push(WhyNot::KeyConcurrency { key: key.clone(), limit });
        }
        if let Some((limit, period_ms)) = setting("key_rate").and_then(parse_rate)
            && starts_within(place.key_starts.as_deref(), period_ms, place.now) >= limit
        {
            why.push(WhyNot::KeyRate { key, limit, period_ms });
        }
    }
    if view.state == State::Waiting {
        if place.suspect {
            why.push(WhyNot::Suspect);
        }
        match u64::try_from(place.position) {
            Ok(ahead) if ahead + place.before > 0 => {
                why.push(WhyNot::Behind { jobs: ahead + place.before, or_more: false });
            }
            Ok(_) if why.is_empty() => why.push(WhyNot::Next),
            Ok(_) => {}
            Err(_) => {
                let jobs = u64::try_from(SEARCH_MAX).unwrap_or(0) + place.before;
                why.push(WhyNot::Behind { jobs, or_more: true });
            }
        }
    }
    view.why_not.append(&mut why);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_counted_within_the_period_only() {
        assert_eq!(starts_within(Some("100 2 900 3"), 1_000, 1_000), 5);
        assert_eq!(starts_within(Some("100 2 900 3"), 1_000, 1_100), 3);
        assert_eq!(starts_within(None, 1_000, 1_100), 0);
    }
}
