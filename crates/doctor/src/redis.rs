//! Redis: what our promises need of the server.

use std::collections::HashMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use voiceai_cli::doctor::{Doctor, Finding};
use voiceai_redis::{Redis, RedisError, Value};
use voiceai_service::failures;

use crate::host::clock_finding;
use crate::{BOUND, Stores};

/// From here on memory is short; the queues need room to be drained.
const MEMORY_WARNING: f64 = 0.8;
const MEMORY_FAILED: f64 = 0.95;

pub(crate) fn add(doctor: &mut Doctor, stores: &Stores) {
    let of = stores.clone();
    doctor.check("redis.reachable", BOUND, async move { reachable(&of).await });
    for (name, look) in [
        ("redis.version", version as fn(&Info) -> Finding),
        ("redis.policy", policy),
        ("redis.persistence", persistence),
        ("redis.memory", memory),
    ] {
        let stores = stores.clone();
        doctor.check(name, BOUND, async move {
            match info(&stores).await {
                Ok(info) => look(&info),
                Err(finding) => finding,
            }
        });
    }
    let of = stores.clone();
    doctor.check("redis.functions", BOUND, async move { asked(&of, functions).await });
    let of = stores.clone();
    doctor.check("redis.clock", BOUND, async move { asked(&of, clock).await });
}

async fn asked(stores: &Stores, look: impl AsyncFnOnce(Redis) -> Result<Finding, RedisError>) -> Finding {
    match stores.redis().await {
        Ok(redis) => look(redis).await.unwrap_or_else(|error| broken(&error)),
        Err(skipped) => skipped,
    }
}

fn broken(error: &RedisError) -> Finding {
    let failure = failures::redis(error);
    Finding::failed(failure.message, failure.remedy)
}

async fn reachable(stores: &Stores) -> Finding {
    let redis = match stores.connect_redis().await {
        Ok(redis) => redis,
        Err((what, remedy)) => return Finding::failed(what, remedy),
    };
    let start = Instant::now();
    match redis.command::<String>("PING", Vec::<Value>::new()).await {
        Ok(_) => {
            let took = start.elapsed().as_secs_f64() * 1_000.0;
            Finding::ok(format!("{} answers in {took:.1} ms", stores.shared().redis.display()))
        }
        Err(error) => broken(&error),
    }
}

/// The fields of INFO.
struct Info(HashMap<String, String>);

impl Info {
    fn parse(text: &str) -> Self {
        let fields = text.lines().filter_map(|line| line.trim_end().split_once(':'));
        Self(fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(0)
    }
}

async fn info(stores: &Stores) -> Result<Info, Finding> {
    let redis = stores.redis().await?;
    let text = redis.command::<String>("INFO", Vec::<Value>::new()).await;
    text.map(|text| Info::parse(&text)).map_err(|error| broken(&error))
}

fn version(info: &Info) -> Finding {
    let version = info.text("redis_version");
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if major >= 7 {
        Finding::ok(format!("Redis {version}, {}", info.text("role")))
    } else {
        Finding::failed(
            format!("Redis {version:?} has no function libraries"),
            "Run Redis 7.0 or newer; vendors that speak an older protocol are not supported.",
        )
    }
}

fn policy(info: &Info) -> Finding {
    match info.text("maxmemory_policy") {
        "noeviction" => Finding::ok("maxmemory-policy is noeviction"),
        policy => Finding::failed(
            format!("maxmemory-policy is {policy}: Redis may delete leases and jobs when memory is short"),
            "Set `maxmemory-policy noeviction` in redis.conf and by CONFIG SET.",
        ),
    }
}

fn persistence(info: &Info) -> Finding {
    if info.text("aof_enabled") != "1" {
        return Finding::failed(
            "the append-only file is off: a restart loses every job since the last snapshot",
            "Set `appendonly yes` and `appendfsync everysec`.",
        );
    }
    for (field, what) in
        [("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "snapshot")]
    {
        if !["ok", ""].contains(&info.text(field)) {
            return Finding::failed(
                format!("the last write of the {what} failed"),
                "Look at Redis's log: is its disk full?",
            );
        }
    }
    Finding::ok("append-only file is on, last write ok")
}

fn memory(info: &Info) -> Finding {
    let (used, most) = (info.number("used_memory"), info.number("maxmemory"));
    let mebibytes = |bytes: u64| bytes / (1024 * 1024);
    if most == 0 {
        return Finding::ok(format!("{} MiB used, no limit", mebibytes(used)));
    }
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    let share = used as f64 / most as f64;
    let evidence = format!("{} of {} MiB used ({:.0} %)", mebibytes(used), mebibytes(most), share * 100.0);
    let remedy =
        "Raise maxmemory, add workers, or discard what is finished; at the limit nothing can be enqueued.";
    match share {
        share if share >= MEMORY_FAILED => Finding::failed(evidence, remedy),
        share if share >= MEMORY_WARNING => Finding::warning(evidence, remedy),
        _ => Finding::ok(evidence),
    }
}

/// The queue's scripts are function libraries: the user needs `+function` and `+fcall`.
async fn functions(redis: Redis) -> Result<Finding, RedisError> {
    let remedy = "Grant the user of REDIS_URL `+function` and `+fcall`.";
    // A library without a match is an empty list: nothing is read but the right to ask.
    let listed = redis.command::<Value>("FUNCTION", vec!["LIST", "LIBRARYNAME", "voiceai-doctor"]).await;
    if let Err(error) = listed {
        return refused(error, "FUNCTION", remedy);
    }
    // A function that does not exist: who may call it is told so, who may not is refused before it is looked for.
    match redis.command::<Value>("FCALL", vec!["voiceai_doctor_absent", "0"]).await {
        Err(error) if error.detail().contains("Function not found") => {
            Ok(Finding::ok("FUNCTION and FCALL are allowed"))
        }
        Err(error) => refused(error, "FCALL", remedy),
        Ok(_) => Ok(Finding::ok("FUNCTION and FCALL are allowed")),
    }
}

fn refused(error: RedisError, command: &str, remedy: &str) -> Result<Finding, RedisError> {
    if error.detail().contains("NOPERM") || error.detail().contains("no permissions") {
        return Ok(Finding::failed(format!("the user of REDIS_URL may not use {command}"), remedy));
    }
    Err(error)
}

async fn clock(redis: Redis) -> Result<Finding, RedisError> {
    let sent = now();
    let time: Vec<String> = redis.command("TIME", Vec::<Value>::new()).await?;
    let theirs = time.first().and_then(|seconds| seconds.parse::<f64>().ok()).unwrap_or_default()
        + time.get(1).and_then(|micros| micros.parse::<f64>().ok()).unwrap_or_default() / 1e6;
    Ok(clock_finding("Redis", theirs, sent, now()))
}

pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use voiceai_cli::doctor::Finding;

    use super::*;

    fn info(text: &str) -> Info {
        Info::parse(text)
    }

    fn verdict(finding: &Finding) -> String {
        finding.verdict().to_string()
    }

    #[test]
    fn what_could_lose_jobs_fails() {
        for (look, text, expected) in [
            (version as fn(&Info) -> Finding, "redis_version:7.0.15\r\n", "ok"),
            (version, "redis_version:6.2.1\r\n", "FAILED"),
            (version, "", "FAILED"),
            (policy, "maxmemory_policy:noeviction\r\n", "ok"),
            (policy, "maxmemory_policy:allkeys-lru\r\n", "FAILED"),
            (persistence, "aof_enabled:0\r\n", "FAILED"),
            (persistence, "aof_enabled:1\r\naof_last_write_status:ok\r\n", "ok"),
            (persistence, "aof_enabled:1\r\naof_last_write_status:err\r\n", "FAILED"),
            (persistence, "aof_enabled:1\r\nrdb_last_bgsave_status:err\r\n", "FAILED"),
            (memory, "used_memory:90\r\nmaxmemory:0\r\n", "ok"),
            (memory, "used_memory:79\r\nmaxmemory:100\r\n", "ok"),
            (memory, "used_memory:80\r\nmaxmemory:100\r\n", "warning"),
            (memory, "used_memory:95\r\nmaxmemory:100\r\n", "FAILED"),
        ] {
            assert_eq!(verdict(&look(&info(text))), expected, "{text}");
        }
    }
}
