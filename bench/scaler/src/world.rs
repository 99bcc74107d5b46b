//! Groups and servers in PostgreSQL, and their heartbeats in Redis.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Where everything is.
pub struct World {
    pub redis: String,
    pub dispatcher: String,
    pub database: String,
    pub binary: PathBuf,
}

/// The servers' policy as a group of the size it has in practice would leave it.
const SPEC: &str = r#"{"candidates":[{"type":"cpx31","location":"fsn1"},{"type":"cpx31","location":"nbg1"}],
 "provider_config":{"candidates":[{"type":"cpx31","location":"fsn1"},{"type":"cpx31","location":"nbg1"}],"image":"debian-12",
 "sshKeys":["ops"],"networks":[4711],"firewalls":[12],"secretsName":"voiceai/prod/voice","drainTimeoutSeconds":3600},
 "dispatcher":{"setid":1,"port":5060,"transport":"udp"},"priority":1,"secrets_name":"voiceai/prod/voice","calls_max":100}"#;

impl World {
    pub fn from_environment() -> Result<Self> {
        let get = |name: &'static str| std::env::var(name).context(name);
        let redis = get("REDIS_URL")?;
        let base = redis.rsplit_once('/').map_or(redis.as_str(), |(base, _)| base).to_owned();
        Ok(Self {
            dispatcher: format!("{base}/1"),
            redis,
            database: get("DATABASE_URL")?,
            binary: PathBuf::from(get("SCALER_BINARY")?),
        })
    }

    /// Empties both stores and fills them anew. Every server is in service, at half of its capacity.
    pub fn fill(&self, groups: u32, servers: u32) -> Result<()> {
        self.redis_text(b"FLUSHALL\r\n")?;
        let migrated = self.scaler(&["migrate"]).output()?;
        ensure!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        self.sql(&format!(
            "TRUNCATE \"ServerGroup\", ops.servers, ops.operations, ops.operation_steps, ops.decisions, ops.scaling_groups; \
             INSERT INTO \"ServerGroup\" (id, name, \"scalingEnabled\", \"minInstances\", \"maxInstances\", \"scalingProvider\", \
                 \"scalingConfig\") \
             SELECT 'g' || g, 'group-' || g, true, 1, 100, 'hetzner', '{spec}'::jsonb->'provider_config' \
             FROM generate_series(1, {groups}) g; \
             INSERT INTO ops.servers (id, name, group_id, group_name, service, status, made_by, provider, provider_id, ip, \
                 private_ip, machine_type, location, spec, in_service_at) \
             SELECT gen_random_uuid(), 'prod-voice-' || g || '-' || s, 'g' || g, 'group-' || g, 'voice', 'active', \
                 gen_random_uuid(), 'hetzner', (g * 1000 + s)::text, '203.0.113.7', \
                 '10.' || g / 250 || '.' || g % 250 || '.' || s, 'cpx31', 'fsn1', '{spec}'::jsonb, now() \
             FROM generate_series(1, {groups}) g, generate_series(1, {servers}) s; \
             INSERT INTO ops.operations (id, server_id, kind, state, actor, reason, created_at, state_at, finished_at) \
             SELECT made_by, id, 'up', 'done', 'bench', 'busy', now() - interval '1 day', now() - interval '1 day', \
                 now() - interval '1 day' FROM ops.servers; \
             ANALYZE",
            spec = SPEC.replace('\n', "")
        ))?;
        let at = jiff::Timestamp::now().as_millisecond();
        let mut text = Vec::new();
        for group in 1..=groups {
            for server in 1..=servers {
                let beat = format!(
                    r#"{{"service":"voice","group":"group-{group}","active":50,"capacity":100,"atMs":{at},"version":"1.4.2"}}"#
                );
                let key = format!("voiceai:heartbeat:prod-voice-{group}-{server}");
                let _ = write!(
                    text,
                    "*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{beat}\r\n",
                    key.len(),
                    beat.len()
                );
            }
        }
        self.redis_text(&text)
    }

    /// The service's binary with its settings.
    pub fn scaler(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env_clear().envs([
            ("PATH", "/usr/bin:/bin"),
            ("REDIS_URL", &self.redis),
            ("DISPATCHER_REDIS_URL", &self.dispatcher),
            ("DATABASE_URL", &self.database),
            ("ENVIRONMENT", "prod"),
            ("VOICEAI_OPERATOR", "bench"),
            // The heartbeats are written once.
            ("HEARTBEAT_STALE_AFTER", "1h"),
            ("SCALING_EVALUATION_INTERVAL_MS", "500"),
            // Only the line that says how long it took.
            ("LOG_LEVEL", "info,voiceai_scaler::lead=debug"),
        ]);
        command
    }

    pub fn sql(&self, text: &str) -> Result<String> {
        let output = Command::new("psql")
            .args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", &self.database, "-c", text])
            .output()
            .context("psql")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// How many commands clients have asked of the server, but for those that only our scripts use.
    pub fn redis_commands(&self) -> Result<f64> {
        const IN_SCRIPTS: [&str; 7] = ["hgetall", "hset", "hmget", "type", "incr", "time", "getrange"];
        let output = Command::new("redis-cli").args(["-u", &self.redis, "INFO", "commandstats"]).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let count = |line: &str| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            let calls: f64 = rest.split(',').next()?.parse().ok()?;
            (!IN_SCRIPTS.contains(&name)).then_some(calls)
        };
        Ok(text.lines().filter_map(count).sum())
    }

    /// How many transactions the database has ended, as far as their connections have told.
    pub fn transactions(&self) -> Result<f64> {
        let text = self.sql("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")?;
        Ok(text.parse()?)
    }

    fn redis_text(&self, text: &[u8]) -> Result<()> {
        let mut child = Command::new("redis-cli")
            .args(["-u", &self.redis, "--pipe"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("redis-cli")?;
        child.stdin.take().context("its input")?.write_all(text)?;
        ensure!(child.wait()?.success(), "redis-cli --pipe failed");
        Ok(())
    }
}
