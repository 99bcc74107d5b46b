//! `doctor`: what can be wrong with the scaler's own parts. Each check looks and changes nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use voiceai_cli::ExitCode;
use voiceai_cli::doctor::{Doctor, Finding};
use voiceai_doctor::{BOUND, Stores, executables, program, provider};
use voiceai_redis::{Redis, Value};
use voiceai_scaler_core::ServerStatus;
use voiceai_service::failures;

use super::IDENTITY;
use super::operate::store_failure;
use crate::evaluate::Snapshot;
use crate::heartbeats::HeartbeatReader;
use crate::script::script;
use crate::settings::ScalerSettings;
use crate::store::Store;

mod routing;

const SCRIPTS: [&str; 3] = ["scaleUp.sh", "scalingStatus.sh", "scaleDown.sh"];
const CONNECT_WITHIN: Duration = Duration::from_secs(4);

pub(super) async fn run(json: bool) -> ExitCode {
    Box::pin(voiceai_doctor::run(IDENTITY, json, ScalerSettings::read, add)).await
}

fn add(doctor: &mut Doctor, stores: &Stores, settings: &ScalerSettings) {
    for (name, judge) in [
        ("groups", judge_groups as fn(&Snapshot, &ScalerSettings) -> Finding),
        ("providers.scripts", judge_scripts),
        ("servers.heartbeats", judge_heartbeats),
    ] {
        let (stores, settings) = (stores.clone(), settings.clone());
        doctor.check(name, BOUND, async move {
            match snapshot(&stores, &settings).await {
                Ok(snapshot) => judge(&snapshot, &settings),
                Err(finding) => finding,
            }
        });
    }
    let (of, own) = (stores.clone(), settings.clone());
    doctor.check("providers.programs", BOUND, async move { check_programs(&of, &own).await });
    let (of, own) = (stores.clone(), settings.clone());
    doctor.check("providers.hetzner", BOUND, async move { check_hetzner(&of, &own).await });
    let (of, own) = (stores.clone(), settings.clone());
    doctor.check("providers.aws", BOUND, async move { check_aws(&of, &own).await });
    let own = settings.clone();
    doctor.check("dispatcher.redis", BOUND, async move { check_dispatcher(&own).await });
    let own = settings.clone();
    doctor.check("dispatcher.records", BOUND, async move { routing::check_records(&own).await });
    let own = settings.clone();
    doctor.check("dispatcher.proxies", BOUND, async move { routing::check_proxies(&own).await });
}

async fn snapshot(stores: &Stores, settings: &ScalerSettings) -> Result<Snapshot, Finding> {
    let (redis, pool) = (stores.redis().await?, stores.pool().await?);
    let heartbeats = HeartbeatReader::new(redis, &settings.heartbeat_prefix);
    Snapshot::read(&Store::new(pool), &heartbeats).await.map_err(|error| {
        let failure = store_failure(&error);
        Finding::failed(failure.message, failure.remedy)
    })
}

fn judge_groups(snapshot: &Snapshot, _: &ScalerSettings) -> Finding {
    if let Some(wrong) = snapshot.invalid.first() {
        let others = match snapshot.invalid.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        return Finding::failed(
            format!("group {} is skipped: {wrong}{others}", wrong.group),
            "Correct it in the platform's administration; the other groups go on.",
        );
    }
    let scaled = snapshot.policies.iter().filter(|policy| policy.enabled && policy.scaling_enabled).count();
    let paused: Vec<_> = snapshot.pauses.keys().map(String::as_str).collect();
    if !paused.is_empty() {
        return Finding::warning(
            format!(
                "{scaled} of {} groups are scaled; paused: {}",
                snapshot.policies.len(),
                paused.join(", ")
            ),
            "End a pause with `resume` when its reason is over.",
        );
    }
    match scaled {
        0 => Finding::warning(
            format!("none of {} groups is enabled with scaling enabled", snapshot.policies.len()),
            "Enable scaling for a group, if anything should be scaled.",
        ),
        scaled => Finding::ok(format!("{scaled} of {} groups are scaled", snapshot.policies.len())),
    }
}

/// Every provider that a group or a living server needs.
fn providers(snapshot: &Snapshot) -> BTreeSet<&str> {
    let groups = snapshot.policies.iter().filter(|policy| policy.enabled && policy.scaling_enabled);
    let of_groups = groups.filter_map(|policy| policy.provider.as_deref());
    of_groups.chain(snapshot.fleet.iter().map(|row| row.server.provider.as_str())).collect()
}

fn judge_scripts(snapshot: &Snapshot, settings: &ScalerSettings) -> Finding {
    let providers = providers(snapshot);
    if providers.is_empty() {
        return Finding::skipped("no group is scaled and no server is there");
    }
    let path = |provider: &&str| SCRIPTS.map(|name| script(&settings.scripts_dir, provider, name));
    let files: Vec<PathBuf> = providers.iter().flat_map(path).collect();
    executables(&files, "Put them under PROVIDER_SCRIPTS_DIR and run `chmod +x`.")
}

/// What the shipped scripts call.
async fn check_programs(stores: &Stores, settings: &ScalerSettings) -> Finding {
    let snapshot = match snapshot(stores, settings).await {
        Ok(snapshot) => snapshot,
        Err(finding) => return finding,
    };
    let mut wanted = BTreeSet::new();
    for provider in providers(&snapshot) {
        wanted.extend(match provider {
            "hetzner" => &["curl", "jq"][..],
            "aws" => &["aws", "jq"],
            _ => &[],
        });
    }
    let mut seen = Vec::new();
    for name in wanted {
        match program(name, "Install it: the provider's scripts call it.").await {
            Ok(version) => seen.push(format!("{name} {version}")),
            Err(finding) => return finding,
        }
    }
    if seen.is_empty() {
        return Finding::skipped("no provider in use needs one");
    }
    Finding::ok(seen.join(", "))
}

/// Whether a group or a living server needs the provider; otherwise what is said instead of looking.
async fn needs(stores: &Stores, settings: &ScalerSettings, provider: &str) -> Result<(), Finding> {
    let snapshot = snapshot(stores, settings).await?;
    let skipped = || Finding::skipped(format!("no group is scaled at {provider}"));
    providers(&snapshot).contains(provider).then_some(()).ok_or_else(skipped)
}

async fn check_hetzner(stores: &Stores, settings: &ScalerSettings) -> Finding {
    if let Err(finding) = needs(stores, settings, "hetzner").await {
        return finding;
    }
    let given = settings.credentials.get("hetzner").map(Vec::as_slice).unwrap_or_default();
    let of = |name: &str| given.iter().find(|(have, _)| have == name).map(|(_, value)| value);
    let endpoint = of("HCLOUD_ENDPOINT").map(voiceai_runtime::Secret::expose);
    provider::hetzner(&settings.cloud_init.platform.way, endpoint, of("HETZNER_API_TOKEN")).await
}

async fn check_aws(stores: &Stores, settings: &ScalerSettings) -> Finding {
    if let Err(finding) = needs(stores, settings, "aws").await {
        return finding;
    }
    provider::aws(&settings.cloud_init.platform).await
}

fn judge_heartbeats(snapshot: &Snapshot, settings: &ScalerSettings) -> Finding {
    let stale_after = SignedDuration::try_from(settings.heartbeat_stale_after).unwrap_or(SignedDuration::MAX);
    let active =
        snapshot.fleet.iter().map(|row| &row.server).filter(|server| server.status == ServerStatus::Active);
    let (mut silent, mut count) = (Vec::new(), 0);
    for server in active {
        count += 1;
        let reading = snapshot.heartbeats.of(&server.name, &server.group_name, snapshot.now, stale_after);
        if reading.known().is_none() {
            silent.push(server.name.as_str());
        }
    }
    if silent.is_empty() {
        return Finding::ok(format!("{count} servers in service, each with a fresh heartbeat"));
    }
    Finding::failed(
        format!(
            "{} of {count} servers in service have no fresh heartbeat: {}",
            silent.len(),
            silent.join(", ")
        ),
        "Look at the server itself: /var/log/cloud-init-output.log, its containers, its way to Redis.",
    )
}

async fn check_dispatcher(settings: &ScalerSettings) -> Finding {
    let mut dispatcher = settings.dispatcher.clone();
    dispatcher.connect_deadline = CONNECT_WITHIN;
    let asked = async {
        let redis = Redis::connect(&dispatcher).await?;
        redis.command::<String>("PING", Vec::<Value>::new()).await
    };
    match asked.await {
        Ok(_) => Finding::ok(format!("{} answers", dispatcher.display())),
        Err(error) => {
            let failure = failures::redis(&error);
            Finding::failed(failure.message, "Check DISPATCHER_REDIS_URL and the Redis that Kamailio reads.")
        }
    }
}

#[cfg(test)]
mod tests {
    use voiceai_cli::doctor::Verdict;
    use voiceai_config::{Binary, Resolved};
    use voiceai_doctor::examine;
    use voiceai_testkit::{postgres, redis};

    use super::*;

    #[tokio::test]
    async fn a_malformed_group_and_missing_scripts_are_named() {
        let (redis, database) = (redis().await, postgres(IDENTITY.components).await);
        let scripts = tempfile::tempdir().unwrap();
        let variables = [
            ("REDIS_URL", redis.url.clone()),
            ("DATABASE_URL", database.url.clone()),
            ("DISPATCHER_REDIS_URL", redis.url.clone()),
            ("PROVIDER_SCRIPTS_DIR", scripts.path().display().to_string()),
        ];
        let resolved = Resolved::from_pairs(Binary::Scaler, variables);
        let found = async |check: &str| {
            let found = examine(IDENTITY, &resolved, ScalerSettings::read, add).await;
            let line = found.into_iter().find(|line| line.check == check).unwrap();
            (line.result, line.evidence)
        };
        assert_eq!(found("groups").await.0, Verdict::Warning, "nothing is scaled");
        assert_eq!(found("providers.scripts").await.0, Verdict::Skipped);
        assert_eq!(found("dispatcher.redis").await.0, Verdict::Ok);
        assert_eq!(found("servers.heartbeats").await.0, Verdict::Ok);

        let group = r#"INSERT INTO "ServerGroup" (id, name, service, enabled, "scalingEnabled", "minInstances",
            "maxInstances", "scaleUpThreshold", "scaleDownThreshold", "scalingProvider")
            VALUES ('g1', 'eu-voice', 'voice', true, true, 1, 3, 0.7, 0.3, 'local')"#;
        database.execute(group).await;
        assert_eq!(found("groups").await, (Verdict::Ok, "1 of 1 groups are scaled".to_owned()));
        let (result, evidence) = found("providers.scripts").await;
        assert!(result == Verdict::Failed && evidence.contains("local/scaleUp.sh is missing"), "{evidence}");

        database.execute(r#"UPDATE "ServerGroup" SET "minInstances" = 9"#).await;
        let (result, evidence) = found("groups").await;
        assert!(result == Verdict::Failed && evidence.contains("eu-voice"), "{evidence}");
    }
}
