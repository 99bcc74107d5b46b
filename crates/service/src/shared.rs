use std::path::PathBuf;
use std::time::Duration;

use voiceai_config::catalogue::{general, leader, platform, postgres, redis};
use voiceai_config::{Binary, General, HostName, Reader};
use voiceai_leader::LeaderSettings;
use voiceai_postgres::PostgresSettings;
use voiceai_redis::RedisSettings;

/// The settings that both services read alike.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Environment, instance, log level, time to stop.
    pub general: General,
    /// `START_TIMEOUT`. How long the start waits for the backends.
    pub start_timeout: Duration,
    /// `SECRETS_REFRESH_INTERVAL`. How often settings that rotate are read again.
    pub secrets_refresh: Duration,
    /// Redis.
    pub redis: RedisSettings,
    /// PostgreSQL.
    pub postgres: PostgresSettings,
    /// The service's own election.
    pub leader: LeaderSettings,
}

impl Shared {
    /// Reads them, and checks the rules between them.
    pub fn read(reader: &Reader<'_>) -> Self {
        let general = General::read(reader);
        let application = format!("{} {}", reader.binary().name(), general.instance_id);
        let leader = read_leader(reader, &general);
        arm_failpoint(reader);
        Self {
            start_timeout: reader.get(&general::START_TIMEOUT),
            secrets_refresh: reader.get(&platform::SECRETS_REFRESH_INTERVAL),
            redis: read_redis(reader),
            postgres: read_postgres(reader, leader.lock_ttl, application),
            leader,
            general,
        }
    }

    /// Where the state file of this process is kept: RUNTIME_DIR, else `/run/voiceai` where it can be written, else the
    /// system's temporary folder.
    #[must_use]
    pub fn runtime_dir(&self) -> PathBuf {
        voiceai_config::runtime_dir(self.general.runtime_dir.as_deref())
    }
}

/// A worker that is to panic, in a development build. Points of other forms are those of the services themselves.
fn arm_failpoint(reader: &Reader<'_>) {
    let point = reader.optional(&general::VOICEAI_FAILPOINT).filter(|point| point.starts_with("worker."));
    if point.is_some_and(|point| !voiceai_runtime::failpoint::arm(&point)) {
        reader.violation(
            &general::VOICEAI_FAILPOINT,
            "worker.<name>=panic[@n], the name's blanks written as hyphens",
            "Unset VOICEAI_FAILPOINT.",
        );
    }
}

fn read_redis(reader: &Reader<'_>) -> RedisSettings {
    let address = reader.required(&redis::REDIS_URL);
    let sentinel = reader.optional(&redis::REDIS_SENTINEL_NAME);
    let cluster = reader.get(&redis::REDIS_CLUSTER_MODE);
    match RedisSettings::parse(&address, sentinel.as_deref(), cluster) {
        Ok(settings) => settings,
        Err(error) => {
            // A missing address was reported by `required` already.
            if !address.is_empty() {
                reader.violation(&redis::REDIS_URL, error.to_string(), "Correct REDIS_URL.");
            }
            placeholder_redis()
        }
    }
}

/// Never used: a violation was reported, so the settings are not let out.
fn placeholder_redis() -> RedisSettings {
    RedisSettings::from_url("redis://localhost").unwrap_or_else(|_| unreachable!("a constant address"))
}

/// A paused process must let go of its locks before its lease is over, or its successor would wait for it.
fn read_postgres(reader: &Reader<'_>, lock_ttl: Duration, application_name: String) -> PostgresSettings {
    let usual = PostgresSettings::new(reader.required(&postgres::DATABASE_URL));
    PostgresSettings {
        max_connections: reader.get(&postgres::DATABASE_POOL_MAX),
        statement_timeout: reader.get(&postgres::DATABASE_STATEMENT_TIMEOUT),
        lock_timeout: usual.lock_timeout.min(lock_ttl / 2),
        idle_in_transaction_timeout: usual.idle_in_transaction_timeout.min(lock_ttl / 2),
        application_name,
        ..usual
    }
}

fn read_leader(reader: &Reader<'_>, general: &General) -> LeaderSettings {
    let key = match reader.binary() {
        Binary::Scaler => reader.get(&leader::LEADER_ELECTION_KEY),
        Binary::Tasker => reader.get(&leader::TASKER_LEADER_ELECTION_KEY),
    };
    let (scaler, tasker): (String, String) =
        (reader.get(&leader::LEADER_ELECTION_KEY), reader.get(&leader::TASKER_LEADER_ELECTION_KEY));
    // The term stands beside the lease, under the key with `:term`.
    let meet = |one: &str, other: &str| one == other || one.strip_suffix(":term") == Some(other);
    if meet(&scaler, &tasker) || meet(&tasker, &scaler) {
        reader.violation(
            &leader::TASKER_LEADER_ELECTION_KEY,
            "another key than LEADER_ELECTION_KEY, with or without `:term` behind it: one lease would let only one of the services lead",
            "Give each service a key of its own.",
        );
    }
    let heartbeat: Duration = reader.get(&leader::LEADER_HEARTBEAT_INTERVAL_MS);
    let lock_ttl: Duration = reader.get(&leader::LEADER_LOCK_TTL_MS);
    if lock_ttl < heartbeat * 2 {
        let least = heartbeat.as_millis() * 2;
        reader.violation(
            &leader::LEADER_LOCK_TTL_MS,
            format!(
                "at least {least}, which is twice LEADER_HEARTBEAT_INTERVAL_MS ({})",
                heartbeat.as_millis()
            ),
            "Raise LEADER_LOCK_TTL_MS or lower LEADER_HEARTBEAT_INTERVAL_MS.",
        );
    }
    LeaderSettings {
        key,
        heartbeat,
        lock_ttl,
        instance_id: general.instance_id.clone(),
        host: HostName::read().0,
    }
}
