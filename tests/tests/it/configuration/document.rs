//! docs/configuration.md, followed command by command.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use voiceai_testkit::{Moto, Port, RedisOptions, RedisServer};

use super::repository;

const SECTION: &str = "## From nothing to both services on the platform's stores";

/// The commands of each step.
fn steps() -> Vec<String> {
    let text = std::fs::read_to_string(repository().join("docs/configuration.md")).unwrap();
    let (_, section) = text.split_once(SECTION).expect("the section is there");
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```bash\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_new_user_who_follows_the_document_gets_both_services_running() {
    let steps = steps();
    assert!(steps.len() >= 5, "{steps:#?}");
    let (redis, database) = (
        RedisServer::start(RedisOptions { appendonly: true, ..RedisOptions::default() }).await,
        voiceai_testkit::empty_database().await,
    );
    let (moto, s3, folder) = (Moto::start().await, voiceai_testkit::s3().await, tempfile::tempdir().unwrap());
    // The first step builds the binaries and starts the servers; a test has its own of both.
    assert!(steps[0].contains("make -s stack") && steps[0].contains("moto.sh"), "{}", steps[0]);
    let own = [
        ("REDIS_URL", redis.url()),
        ("DATABASE_URL", database.url.clone()),
        ("S3_ENDPOINT", s3.endpoint.clone()),
        ("S3_ACCESS_KEY", s3.access_key.clone()),
        ("S3_SECRET_KEY", s3.secret_key.clone()),
        ("S3_BUCKET", s3.bucket.clone()),
        ("MOTO", moto.endpoint()),
    ];
    let exports: String = own.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
    let scaler = voiceai_testkit::binary("voiceai-scaler");
    let _ = voiceai_testkit::binary("voiceai-tasker");
    let binaries = scaler.parent().unwrap().display().to_string();
    let rest = steps[1..].join("\n").replace("target/debug", &binaries);
    let script = folder.path().join("follow.sh");
    std::fs::write(&script, format!("set -euxo pipefail\n{exports}\n{rest}\necho followed to the end\n"))
        .unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let port = Port::reserve();
    let mut bash = Command::new("bash");
    bash.arg(&script).current_dir(repository()).env_clear();
    for name in ["PATH", "HOME"] {
        bash.env(name, std::env::var_os(name).unwrap_or_default());
    }
    // Two runs of this test, or another service of this host, must not meet in one state file.
    bash.env("RUNTIME_DIR", folder.path()).env("INSTANCE_ID", format!("doc-{}", port.number()));
    bash.stdin(Stdio::null()).kill_on_drop(true).process_group(0);
    let done = tokio::time::timeout(Duration::from_secs(110), bash.output()).await.expect("it ends").unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && stdout.ends_with("followed to the end\n"), "{stdout}\n{stderr}");
    for part in [
        "the settings are valid",
        "secrets_manager",
        "LOG_LEVEL",
        "leader.key",
        "backup.bucket",
        "aws.credentials",
    ] {
        assert!(stdout.contains(part), "{part}: {stdout}\n{stderr}");
    }
    // Neither a setting nor a secret stands in an argument of any command.
    let commands: String = stderr.lines().filter(|line| line.starts_with('+')).collect::<Vec<_>>().join("\n");
    let shown = commands
        .lines()
        .filter(|line| line.contains(&s3.secret_key))
        // Where the test itself says what the first step would have said.
        .filter(|line| !line.starts_with("+ export S3_") && !line.starts_with("+ S3_SECRET_KEY="));
    assert_eq!(shown.count(), 0, "{commands}");
}
