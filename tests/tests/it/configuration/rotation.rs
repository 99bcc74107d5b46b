//! Values that change while both services run.

use std::os::unix::fs::PermissionsExt as _;

use voiceai_testkit::{AwsFault, Process, wait_until};

use super::Cloud;
use crate::{READY, SOON};

fn secrets(cloud: &Cloud, password: &str, token: &str) -> String {
    serde_json::json!({
        "REDIS_URL": cloud.redis.url(), "DATABASE_URL": cloud.database.url,
        "SMTP_USER": "ops", "SMTP_PASS": password, "HETZNER_API_TOKEN": token,
    })
    .to_string()
}

/// How often a line with all of `parts` was written so far.
fn lines(process: &Process, parts: &[&str]) -> usize {
    let text = process.stdout() + "\n" + &process.stderr();
    text.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}

async fn see(process: &Process, times: usize, parts: &[&str]) {
    process
        .wait_until(SOON, &format!("{times} lines with {parts:?}"), async || lines(process, parts) >= times)
        .await;
}

#[tokio::test]
async fn both_services_pick_a_secret_up_and_keep_the_last_good_one_through_every_fault() {
    let cloud = Cloud::start().await;
    cloud.fill().await;
    cloud.put("SECRETS_REFRESH_INTERVAL", "1s").await;
    cloud.secret("secrets", &secrets(&cloud, "first-canary", "first-canary"), false).await;
    let scaler = cloud.program("voiceai-scaler").arg("run").start();
    let tasker = cloud.program("voiceai-tasker").arg("run").start();
    let both = [(&scaler, "HETZNER_API_TOKEN"), (&tasker, "SMTP_PASS")];
    for (process, _) in both {
        process.wait_for_line(SOON, READY).await;
    }
    cloud.secret("secrets", &secrets(&cloud, "second-canary", "second-canary"), false).await;
    for (process, name) in both {
        see(process, 1, &["picked up a new value", name]).await;
    }

    let stay = "the last good values stay in use";
    let faults = [
        (
            "GetParametersByPath",
            AwsFault::error("ThrottlingException", "Rate exceeded"),
            "ThrottlingException",
        ),
        (
            "GetSecretValue",
            AwsFault::error("AccessDeniedException", "not authorized"),
            "AccessDeniedException",
        ),
        ("GetParametersByPath", AwsFault::Truncated(20), "GetParametersByPath"),
    ];
    for (operation, fault, part) in faults {
        cloud.aws.set(operation, Some(fault));
        for (process, _) in both {
            see(process, 1, &[stay, part, "age_seconds"]).await;
        }
        cloud.aws.set(operation, None);
        // Each has read everything again, which is told once in a while only.
        let before = cloud.aws.asked("GetSecretValue");
        wait_until(SOON, "both read again", async || cloud.aws.asked("GetSecretValue") >= before + 4).await;
    }
    for (process, _) in both {
        see(process, 1, &["settings are read again"]).await;
    }
    cloud.secret("secrets", "no JSON at all: canary", false).await;
    for (process, _) in both {
        see(process, 1, &[stay, "no JSON object"]).await;
    }
    // The secret is whole again, without the two values: they are kept, and missed.
    let without = serde_json::json!({ "REDIS_URL": cloud.redis.url(), "DATABASE_URL": cloud.database.url });
    cloud.secret("secrets", &without.to_string(), false).await;
    for (process, name) in both {
        see(process, 1, &["it is gone from its store, the last good value stays in use", name]).await;
    }
    // A parameter that is deleted and does not rotate takes effect at the next start, and that is told.
    cloud.delete("LEADER_LOCK_TTL_MS").await;
    for (process, _) in both {
        see(process, 1, &["taken at the next start", "LEADER_LOCK_TTL_MS"]).await;
        assert!(process.exit().is_none(), "{}", process.stderr());
        assert_eq!(lines(process, &["canary"]), 0, "{}", process.stderr());
    }
}

/// Refuses an old token as the real scripts do, and notes every token it is given.
const SCRIPT: &str = r#"#!/bin/sh
printf '%s\n' "$HETZNER_API_TOKEN" >>"$STATE/tokens"
if [ "$HETZNER_API_TOKEN" = "$(cat "$STATE/valid")" ]; then
  echo '{"id":"","name":"'"$INSTANCE_NAME"'","status":"failed","error":{"code":"locked","message":"busy"}}'
  exit 10
fi
echo '{"id":"","name":"'"$INSTANCE_NAME"'","status":"failed","error":{"code":"http_401","message":"unauthorized"}}'
exit 20
"#;

#[tokio::test]
async fn a_refused_token_is_read_again_at_once_and_the_script_run_again() {
    let cloud = Cloud::start().await;
    cloud.fill().await;
    let state = cloud.folder.path().display().to_string();
    let folder = cloud.folder.path().join("providers");
    std::fs::create_dir_all(folder.join("hetzner")).unwrap();
    let write = |path: &std::path::Path, text: &str| {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    for name in ["scaleUp.sh", "scalingStatus.sh", "scaleDown.sh"] {
        write(&folder.join("hetzner").join(name), &SCRIPT.replace("$STATE", &state));
    }
    let cloud_init = cloud.folder.path().join("cloud-init.sh");
    write(&cloud_init, "#!/bin/sh\nprintf '#cloud-config\\nhostname: x\\n'\n");
    for (name, value) in [
        ("PROVIDER_SCRIPTS_DIR", folder.to_str().unwrap()),
        ("CLOUD_INIT_SCRIPT", cloud_init.to_str().unwrap()),
        ("SCALING_EVALUATION_INTERVAL_MS", "300"),
        ("SCALING_STATUS_POLL_INTERVAL_MS", "300"),
        ("SECRETS_REFRESH_INTERVAL", "1h"),
        ("CONFIG_BUCKET", "config"),
        ("CONFIG_REF", "main"),
        ("BASTION_PUBLIC_KEY", "ssh-ed25519 AAAA"),
    ] {
        cloud.put(name, value).await;
    }
    cloud.secret("secrets", &secrets(&cloud, "p", "token-one"), false).await;
    std::fs::write(cloud.folder.path().join("valid"), "token-one").unwrap();
    let scaler = cloud
        .program("voiceai-scaler")
        .envs([("ECR_REGISTRY", "registry.test"), ("ECR_TAG", "1")])
        .arg("run")
        .start();
    scaler.wait_for_line(SOON, READY).await;
    let group = r#"INSERT INTO "ServerGroup" (id, name, service, enabled, "scalingEnabled", "minInstances",
        "maxInstances", "scaleUpThreshold", "scaleDownThreshold", "cooldownSeconds", "scalingProvider", "scalingConfig")
        VALUES ('g1', 'eu-voice', 'voice', true, true, 1, 3, 0.7, 0.3, 1, 'hetzner',
        '{"serverType":"cx23","location":"fsn1"}')"#;
    cloud.database.execute(group).await;
    let tokens = || std::fs::read_to_string(cloud.folder.path().join("tokens")).unwrap_or_default();
    let asked = async || tokens().contains("token-one");
    scaler.wait_until(SOON, "the script is given the first token", asked).await;
    cloud.secret("secrets", &secrets(&cloud, "p", "token-two"), false).await;
    std::fs::write(cloud.folder.path().join("valid"), "token-two").unwrap();
    wait_until(SOON * 4, "the script is given the second token", async || tokens().contains("token-two"))
        .await;
    let text = scaler.stdout() + &scaler.stderr();
    assert!(!text.contains("token-one") && !text.contains("token-two"), "{text}");
}
