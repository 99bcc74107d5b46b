//! `doctor`: the queues' workers against their backlog, jobs that lost their worker, and what finished jobs hold in Redis.

use voiceai_cli::doctor::Finding;
use voiceai_doctor::Stores;
use voiceai_queue::{Client, QueueStats};
use voiceai_redis::{Redis, RedisError, Value};

use crate::operate::queues;

/// More than this until a queue is empty, with every worker busy: it needs more of them.
const LONG_SECONDS: f64 = 15.0 * 60.0;
/// Of Redis's memory; or, where it has no limit, in bytes.
const FINISHED_SHARE: f64 = 0.25;
const FINISHED_BYTES: u64 = 512 * 1024 * 1024;
/// What a queue keeps of jobs that have ended: ids, results, ends that are not in the history yet, failures of dead jobs.
const OF_FINISHED: [&str; 5] = ["finished", "result", "results", "ends", "fail"];

/// Workers that are all busy while jobs wait.
pub(super) fn judge_concurrency(all: &[QueueStats]) -> Finding {
    let mut busy = Vec::new();
    for queue in all.iter().filter(|queue| !queue.paused && queue.waiting > 0 && queue.capacity > 0) {
        let slow = queue.time_to_empty_seconds.is_none_or(|left| left > LONG_SECONDS);
        if queue.active >= queue.capacity && slow {
            let left = queue.time_to_empty_seconds;
            let left = left.map_or_else(
                || "no end in sight".to_owned(),
                |left| format!("empty in {:.0} min", left / 60.0),
            );
            busy.push(format!(
                "{}: {} of {} places busy, {} waiting, {left}",
                queue.queue, queue.active, queue.capacity, queue.waiting
            ));
        }
    }
    if busy.is_empty() {
        let (active, capacity): (u64, u64) = all
            .iter()
            .fold((0, 0), |(active, capacity), queue| (active + queue.active, capacity + queue.capacity));
        return Finding::ok(format!("{active} of {capacity} places busy, no queue is held back by them"));
    }
    Finding::warning(
        busy.join("; "),
        "Raise WORKER_CONCURRENCY or the queue's own (`queue set Q --concurrency N` acts at once), or start another tasker.",
    )
}

/// Jobs whose worker is gone.
pub(super) fn judge_stalled(all: &[QueueStats]) -> Finding {
    let without: Vec<_> = all
        .iter()
        .filter(|queue| queue.active > 0 && queue.workers.is_empty())
        .map(|queue| format!("{} in {}", queue.active, queue.queue))
        .collect();
    if !without.is_empty() {
        return Finding::failed(
            format!(
                "running by their record, and no worker is alive that could run them: {}",
                without.join(", ")
            ),
            "Start `voiceai-tasker run`: it takes them back as soon as their workers' leases are over.",
        );
    }
    let suspects: Vec<_> = all
        .iter()
        .filter(|queue| queue.suspects > 0)
        .map(|queue| format!("{} in {}", queue.suspects, queue.queue))
        .collect();
    if !suspects.is_empty() {
        return Finding::warning(
            format!("lost their worker, and are run one at a time now: {}", suspects.join(", ")),
            "See `jobs list` for what they are: one of them may end the process that runs it.",
        );
    }
    let back: u64 = all.iter().filter_map(|queue| queue.counters.get("orphans")).sum();
    Finding::ok(format!("none; {back} taken back from lost workers so far"))
}

/// What Redis keeps of jobs that have ended.
pub(super) async fn finished_memory(stores: Stores) -> Finding {
    let redis = match stores.redis().await {
        Ok(redis) => redis,
        Err(finding) => return finding,
    };
    let looked = async {
        let client =
            Client::connect(redis.clone()).await.map_err(|error| crate::operate::queue_failure(&error))?;
        queues::names(&client).await
    };
    let names = match looked.await {
        Ok(names) => names,
        Err(failure) => return Finding::failed(failure.message, failure.remedy),
    };
    match measure(&redis, &names).await {
        Ok((bytes, most)) => judge_memory(bytes, most, names.len()),
        Err(error) => {
            let failure = voiceai_service::failures::redis(&error);
            Finding::failed(failure.message, failure.remedy)
        }
    }
}

/// Bytes of what has ended, and Redis's limit; 0 for none.
async fn measure(redis: &Redis, names: &[String]) -> Result<(u64, u64), RedisError> {
    let mut bytes = 0;
    for name in names {
        for part in OF_FINISHED {
            let key = format!("voiceai:queue:{{{name}}}:{part}");
            let words = vec![
                Value::from("USAGE"),
                Value::from(key.as_str()),
                Value::from("SAMPLES"),
                Value::from("20"),
            ];
            bytes += redis.command::<Option<u64>>("MEMORY", words).await?.unwrap_or(0);
        }
    }
    let info = redis.command::<String>("INFO", vec![Value::from("memory")]).await?;
    let most = info.lines().find_map(|line| line.trim_end().strip_prefix("maxmemory:")?.parse().ok());
    Ok((bytes, most.unwrap_or(0)))
}

#[expect(clippy::cast_precision_loss, reason = "shares of memory, for people")]
fn judge_memory(bytes: u64, most: u64, queues: usize) -> Finding {
    let mebibytes = bytes as f64 / (1024.0 * 1024.0);
    let evidence = format!("ended jobs of {queues} queues hold {mebibytes:.1} MiB of Redis");
    let much = if most > 0 { bytes as f64 > most as f64 * FINISHED_SHARE } else { bytes > FINISHED_BYTES };
    if much {
        return Finding::warning(
            evidence,
            "Clear old ones with `queue clean Q --state completed --older-than D`, and keep fewer with `queue set`.",
        );
    }
    Finding::ok(evidence)
}

#[cfg(test)]
mod tests {
    use voiceai_cli::doctor::Verdict;

    use super::*;

    #[test]
    fn finished_jobs_are_much_by_share_or_where_there_is_no_limit_by_size() {
        for (bytes, most, verdict) in [
            (0, 0, Verdict::Ok),
            (FINISHED_BYTES, 0, Verdict::Ok),
            (FINISHED_BYTES + 1, 0, Verdict::Warning),
            (24, 100, Verdict::Ok),
            (26, 100, Verdict::Warning),
        ] {
            assert_eq!(judge_memory(bytes, most, 1).verdict(), verdict, "{bytes} of {most}");
        }
    }
}
