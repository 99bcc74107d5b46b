//! Start-up documents: values from Secrets Manager, and a generator that misbehaves.

use std::path::{Path, PathBuf};

use serde_json::json;
use voiceai_testkit::{Moto, wait_until};

use crate::harness::{Stack, WITHIN};

const CANARY: &str = "canary-of-the-bootstrap-secret";

fn executable(path: &Path, body: &str) {
    std::fs::write(path, format!("#!/bin/bash\n{body}\n")).expect("a script");
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
}

/// A provider that keeps what it saw and refuses, and a generator of one's own.
fn provider(stack: &mut Stack, generator: &str) -> PathBuf {
    let folder = stack.folder.path().to_path_buf();
    let scripts = folder.join("providers/custom");
    std::fs::create_dir_all(&scripts).expect("a folder");
    let answer = r#"printf '{"name":"%s","status":"absent"}\n' "$INSTANCE_NAME""#;
    let up = format!(
        "cat /proc/[0-9]*/cmdline >> '{0}/arguments' 2>/dev/null; env > '{0}/environment'\n\
         cp \"$CLOUD_INIT_FILE\" '{0}/document.part'; mv '{0}/document.part' '{0}/document'\n{answer}\nexit 20",
        folder.display()
    );
    executable(&scripts.join("scaleUp.sh"), &up);
    executable(&scripts.join("scalingStatus.sh"), &format!("{answer}\nexit 14"));
    executable(&scripts.join("scaleDown.sh"), answer);
    executable(&folder.join("generator.sh"), generator);
    stack.set("PROVIDER_SCRIPTS_DIR", &folder.join("providers").display().to_string());
    stack.set("CLOUD_INIT_SCRIPT", &folder.join("generator.sh").display().to_string());
    folder
}

async fn custom_group(stack: &Stack, secret: Option<&str>) {
    let config = secret.map_or_else(|| json!({}), |name| json!({ "secretsName": name }));
    stack.group("eu", 1, 1, &config).await;
    stack.database.execute(r#"UPDATE "ServerGroup" SET "scalingProvider" = 'custom'"#).await;
}

pub(crate) async fn create_secret(moto: &Moto, name: &str, text: &str) {
    let body = json!({"Name": name, "SecretString": text, "ClientRequestToken": uuid::Uuid::now_v7()});
    let answer = reqwest::Client::new()
        .post(moto.endpoint())
        .header("X-Amz-Target", "secretsmanager.CreateSecret")
        .header("Content-Type", "application/x-amz-json-1.1")
        .header(
            "Authorization",
            "AWS4-HMAC-SHA256 Credential=test/20261122/eu-central-1/secretsmanager/aws4_request, \
             SignedHeaders=host, Signature=0",
        )
        .body(body.to_string())
        .send()
        .await
        .expect("an answer");
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap_or_default());
}

#[tokio::test]
async fn a_secret_reaches_the_start_up_document_and_nothing_else() {
    let moto = Moto::start().await;
    let mut stack = Stack::new().await;
    let folder = provider(
        &mut stack,
        "cat /proc/[0-9]*/cmdline >> \"${0%/*}/arguments\" 2>/dev/null\n\
         echo \"told: $APP_TOKEN\" >&2\n\
         printf '#cloud-config\\nwrite_files:\\n- path: /opt/token\\n  content: \"%s\"\\n' \"$APP_TOKEN\"",
    );
    for (name, value) in [
        ("AWS_ENDPOINT_URL", moto.endpoint().as_str()),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("LOG_LEVEL", "debug"),
    ] {
        stack.set(name, value);
    }
    create_secret(&moto, "of-eu", &json!({ "APP_TOKEN": CANARY }).to_string()).await;
    create_secret(&moto, "broken", &format!("{CANARY}, but no object")).await;

    custom_group(&stack, Some("broken")).await;
    let scaler = stack.scaler("a");
    wait_until(WITHIN, "what is wrong with the secret is shown", async || {
        let status = stack.json(&["status"]).await;
        assert!(!status.to_string().contains(CANARY), "{status}");
        let operations = status["operations"].as_array().cloned().unwrap_or_default();
        operations.iter().any(|one| one["error"] == "the secret `broken` is not a JSON object")
    })
    .await;
    assert!(!folder.join("document").exists(), "nothing was asked for without it");
    stack
        .database
        .execute("UPDATE ops.servers SET spec = jsonb_set(spec, '{secrets_name}', '\"of-eu\"')")
        .await;
    wait_until(WITHIN, "the script was called", async || folder.join("document").exists()).await;
    scaler.terminate();
    scaler.wait_exit(WITHIN).await;

    let read =
        |file: &str| String::from_utf8_lossy(&std::fs::read(folder.join(file)).expect("a file")).into_owned();
    assert!(read("document").contains(&format!("content: \"{CANARY}\"")), "{}", read("document"));
    assert!(read("arguments").contains("generator.sh"), "the arguments of all processes were looked at");
    for (place, text) in [
        ("arguments", read("arguments")),
        ("the provider's environment", read("environment")),
        ("the log", scaler.stdout() + &scaler.stderr()),
    ] {
        assert!(!text.contains(CANARY), "{place}: {text}");
    }
    let rows = "SELECT (SELECT count(*) FROM ops.operations t WHERE t::text LIKE '%canary%') \
                + (SELECT count(*) FROM ops.operation_steps t WHERE t::text LIKE '%canary%') \
                + (SELECT count(*) FROM ops.servers t WHERE t::text LIKE '%canary%') \
                + (SELECT count(*) FROM ops.outbox t WHERE t::text LIKE '%canary%')";
    assert_eq!(stack.number(rows).await, 0);
}

/// Processes with this variable and value in their environment that are not the scaler's own.
fn with_variable(variable: &str) -> usize {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let has = |file: &str, part: &[u8]| {
                std::fs::read(entry.path().join(file))
                    .is_ok_and(|all| all.split(|byte| *byte == 0).any(|one| one == part))
            };
            has("environ", variable.as_bytes()) && has("cmdline", b"sleep")
        })
        .count()
}

#[tokio::test]
async fn a_generator_that_leaves_processes_behind_neither_hangs_nor_keeps_them() {
    let mut stack = Stack::new().await;
    let folder = provider(
        &mut stack,
        "(setsid sleep 1000 &); sleep 1001 &\nprintf '#cloud-config\\nhostname: %s\\n' \"$INSTANCE_NAME\"",
    );
    let tag = folder.display().to_string();
    stack.set("ECR_TAG", &tag);
    custom_group(&stack, None).await;
    let scaler = stack.scaler("a");
    wait_until(WITHIN, "the document is used at once", async || folder.join("document").exists()).await;
    scaler.terminate();
    scaler.wait_exit(WITHIN).await;
    wait_until(WITHIN, "nothing survives", async || with_variable(&format!("ECR_TAG={tag}")) == 0).await;
}

#[tokio::test]
async fn what_a_killed_leader_left_of_a_document_is_removed_once_nobody_can_need_it() {
    let mut stack = Stack::new().await;
    let folder = stack.folder.path().join("tmp");
    std::fs::create_dir_all(&folder).expect("a folder");
    stack.set("TMPDIR", &folder.display().to_string());
    stack.set("PROVIDER_SCRIPT_TIMEOUT_MS", "1000");
    for (name, age_s) in
        [("voiceai-cloud-init-old", 3600), ("voiceai-cloud-init-new", 0), ("others-old", 3600)]
    {
        let file = std::fs::File::create(folder.join(name)).expect("a file");
        let at = std::time::SystemTime::now() - std::time::Duration::from_secs(age_s);
        file.set_modified(at).expect("its age");
    }
    let _scaler = stack.scaler("a");
    wait_until(WITHIN, "the old one is gone", async || !folder.join("voiceai-cloud-init-old").exists()).await;
    assert!(folder.join("voiceai-cloud-init-new").exists() && folder.join("others-old").exists());
}
