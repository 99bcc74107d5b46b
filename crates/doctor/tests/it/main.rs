//! The shared checks on real servers, each fault made real.

#![allow(clippy::unwrap_used, reason = "helpers of tests assert too")]

use std::collections::BTreeMap;

use tempfile::TempDir;
use voiceai_cli::doctor::{Diagnosis, Finding, Verdict};
use voiceai_config::{Binary, Resolved};
use voiceai_doctor::{BOUND, examine};
use voiceai_postgres::{COMMON, TASKER};
use voiceai_service::Identity;
use voiceai_testkit::{RedisOptions, RedisServer, empty_database, postgres};

const IDENTITY: Identity =
    Identity { binary: Binary::Tasker, version: "1.0.0", components: &[COMMON, TASKER] };
const KEY: &str = "voiceai:tasker:leader";

struct Host {
    variables: BTreeMap<&'static str, String>,
    _folder: TempDir,
}

impl Host {
    fn new(redis: &str, database: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let variables = [
            ("REDIS_URL", redis.to_owned()),
            ("DATABASE_URL", database.to_owned()),
            ("RUNTIME_DIR", folder.path().display().to_string()),
        ];
        Self { variables: variables.into(), _folder: folder }
    }

    async fn doctor(&self) -> Found {
        let resolved = Resolved::from_pairs(Binary::Tasker, self.variables.clone());
        let add = |doctor: &mut voiceai_cli::doctor::Doctor, stores: &voiceai_doctor::Stores, (): &()| {
            let stores = stores.clone();
            doctor.check("own.check", BOUND, async move {
                match stores.pool().await {
                    Ok(_) => Finding::ok("seen"),
                    Err(skipped) => skipped,
                }
            });
        };
        Found(examine(IDENTITY, &resolved, |_| (), add).await)
    }
}

struct Found(Vec<Diagnosis>);

impl Found {
    fn of(&self, check: &str) -> &Diagnosis {
        self.0
            .iter()
            .find(|line| line.check == check)
            .unwrap_or_else(|| unreachable!("no {check} in {:?}", self.0))
    }

    #[track_caller]
    fn assert(&self, check: &str, result: Verdict, evidence: &str) {
        let line = self.of(check);
        assert_eq!(line.result, result, "{line:?}");
        assert!(line.evidence.contains(evidence), "{line:?}");
        assert_eq!(line.remedy.is_some(), matches!(result, Verdict::Failed | Verdict::Warning), "{line:?}");
    }
}

fn kept() -> RedisOptions {
    RedisOptions { appendonly: true, ..RedisOptions::default() }
}

#[tokio::test]
async fn two_sound_stores_and_a_leader_are_well() {
    let redis = RedisServer::start(kept()).await;
    let database = postgres(IDENTITY.components).await;
    let host = Host::new(&redis.url(), &database.url);
    let found = host.doctor().await;
    found.assert("leader.key", Verdict::Failed, "nobody leads");
    let record = r#"{"instanceId":"a-1","host":"h","pid":7,"term":0,"electedAt":"2026-10-25T00:59:59Z"}"#;
    redis.cli(&["SET", KEY, record, "PX", "60000"]).await;
    let found = host.doctor().await;
    for line in &found.0 {
        // Neither a collector, a proxy, AWS, mail nor a watched service is set up here.
        let unset = ["telemetry", "proxy", "aws", "smtp", "ses", "mail", "metrics", "services"];
        let part = line.check.split('.').next().unwrap();
        let expected = if unset.contains(&part) { Verdict::Skipped } else { Verdict::Ok };
        assert_eq!(line.result, expected, "{line:?}");
    }
    found.assert("leader.key", Verdict::Ok, "a-1 on h (process 7)");
    let names: Vec<_> = found.0.iter().map(|line| line.check).collect();
    for check in [
        "settings",
        "host.runtime_dir",
        "telemetry.endpoint",
        "proxy.metadata",
        "proxy.reachable",
        "proxy.allows",
        "aws.hop_limit",
        "aws.role",
        "aws.credentials",
        "redis.reachable",
        "redis.version",
        "redis.policy",
        "redis.persistence",
        "redis.memory",
        "redis.functions",
        "redis.clock",
        "postgres.reachable",
        "postgres.schema",
        "postgres.connections",
        "postgres.clock",
        "leader.key",
        "smtp.greeting",
        "smtp.starttls",
        "smtp.auth",
        "ses.identity",
        "ses.sandbox",
        "ses.quota",
        "mail.backlog",
        "metrics.newest",
    ] {
        assert!(names.contains(&check), "{check} in {names:?}");
    }

    redis.cli(&["PERSIST", KEY]).await;
    host.doctor().await.assert("leader.key", Verdict::Failed, "never expires");
    redis.cli(&["SET", KEY, "somebody", "PX", "60000"]).await;
    host.doctor().await.assert("leader.key", Verdict::Failed, KEY);
}

#[tokio::test]
async fn settings_of_redis_that_lose_jobs_fail_by_name() {
    let options =
        RedisOptions { policy: Some("allkeys-lru"), maxmemory: Some("64mb"), ..RedisOptions::default() };
    let redis = RedisServer::start(options).await;
    let user =
        redis.cli(&["ACL", "SETUSER", "ops", "on", ">pw", "~*", "&*", "+@all", "-function", "-fcall"]).await;
    assert_eq!(user, "OK");
    let database = postgres(IDENTITY.components).await;
    let host = Host::new(&redis.url().replace("redis://", "redis://ops:pw@"), &database.url);
    let found = host.doctor().await;
    found.assert("redis.reachable", Verdict::Ok, "answers in");
    found.assert("redis.policy", Verdict::Failed, "allkeys-lru");
    found.assert("redis.persistence", Verdict::Failed, "append-only file is off");
    found.assert("redis.functions", Verdict::Failed, "may not use FUNCTION");
    found.assert("redis.memory", Verdict::Ok, "of 64 MiB used");
    found.assert("own.check", Verdict::Ok, "seen");
}

#[tokio::test]
async fn a_store_that_is_away_fails_once_and_its_other_checks_are_skipped() {
    let mut redis = RedisServer::start(kept()).await;
    redis.stop().await;
    let database = postgres(IDENTITY.components).await;
    let host = Host::new(&redis.url(), &database.url);
    let found = host.doctor().await;
    found.assert("redis.reachable", Verdict::Failed, "");
    for check in
        ["redis.version", "redis.policy", "redis.memory", "redis.functions", "redis.clock", "leader.key"]
    {
        found.assert(check, Verdict::Skipped, "Redis cannot be reached");
    }
    found.assert("postgres.schema", Verdict::Ok, "applied");

    let host = Host::new("redis://127.0.0.1:1", "postgres://ops:canary@127.0.0.1:1/voiceai");
    let found = host.doctor().await;
    found.assert("postgres.reachable", Verdict::Failed, "");
    found.assert("own.check", Verdict::Skipped, "PostgreSQL cannot be reached");
    assert!(!format!("{:?}", found.0).contains("canary"), "{:?}", found.0);
}

#[tokio::test]
async fn a_schema_behind_is_a_warning_and_wrong_settings_end_it_at_once() {
    let redis = RedisServer::start(kept()).await;
    let database = empty_database().await;
    let mut host = Host::new(&redis.url(), &database.url);
    let found = host.doctor().await;
    found.assert("postgres.schema", Verdict::Warning, "common/0001");
    found.assert("postgres.connections", Verdict::Ok, "connections in use");

    host.variables.insert("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1".to_owned());
    host.variables.insert("LEADER_LOCK_TLL_MS", "1".to_owned());
    let found = host.doctor().await;
    found.assert("telemetry.endpoint", Verdict::Failed, "nobody listens");
    found.assert("settings", Verdict::Warning, "LEADER_LOCK_TLL_MS");

    host.variables.insert("LEADER_LOCK_TTL_MS", "soon".to_owned());
    let found = host.doctor().await;
    assert_eq!(found.0.len(), 1, "{:?}", found.0);
    found.assert("settings", Verdict::Failed, "LEADER_LOCK_TTL_MS");
}
