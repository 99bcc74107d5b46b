//! Secrets planted in every secret setting, looked for in everything that both services leave behind.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use tokio::process::Command;
use voiceai_config::catalogue;
use voiceai_testkit::{Moto, Port, Process, Program, RedisOptions, RedisServer};

use crate::{BINARIES, READY, SOON};

/// In every planted text, so that one search finds them all.
const MARK: &str = "planted7canary";

fn planted(name: &str) -> String {
    // Long enough for every setting that asks for a length.
    format!("{MARK}-{}-0123456789abcdef", name.to_ascii_lowercase())
}

/// A secret that signs webhooks.
fn signing(name: &str) -> String {
    format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode(planted(name)))
}

/// Every line of a text that holds what was planted, as it is, escaped or encoded.
fn found(text: &str) -> Vec<String> {
    let encoded = ["cGxhbnRlZDdjYW5hcn", "BsYW50ZWQ3Y2FuYXJ5", "wbGFudGVkN2NhbmFye"];
    let lines =
        text.lines().filter(|line| line.contains(MARK) || encoded.iter().any(|part| line.contains(part)));
    lines.map(|line| line.chars().take(300).collect()).collect()
}

/// Watches the arguments of every process until it is dropped.
struct Arguments {
    seen: Arc<Mutex<Vec<String>>>,
    over: Arc<AtomicBool>,
}

impl Arguments {
    fn watch() -> Self {
        let (seen, over): (Arc<Mutex<Vec<String>>>, Arc<AtomicBool>) = Default::default();
        let (into, ended) = (Arc::clone(&seen), Arc::clone(&over));
        std::thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
                    let text = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    let text = String::from_utf8_lossy(&text).replace('\0', " ");
                    if text.contains(MARK) {
                        into.lock().unwrap().push(text);
                    }
                }
                std::thread::park_timeout(Duration::from_millis(20));
            }
        });
        Self { seen, over }
    }
}

impl Drop for Arguments {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

struct Host {
    settings: BTreeMap<String, String>,
    folder: tempfile::TempDir,
    redis: RedisServer,
    database: voiceai_testkit::Database,
    port: Port,
    moto: Moto,
}

/// A provider's script that says all it was given, as one that is being debugged does.
const CHATTY: &str = "#!/bin/sh\nenv >&2\necho \"token: $HETZNER_API_TOKEN\" >&2\necho '{\"id\":\"\",\"name\":\"'\"$INSTANCE_NAME\"'\",\"status\":\"failed\",\"error\":{\"code\":\"locked\",\"message\":\"token '\"$HETZNER_API_TOKEN\"' is locked\"}}'\nexit 10\n";

impl Host {
    async fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let redis = RedisServer::start(RedisOptions { appendonly: true, ..RedisOptions::default() }).await;
        let user =
            ["ACL", "SETUSER", "ops", "on", &format!(">{}", planted("REDIS_URL")), "~*", "&*", "+@all"];
        assert_eq!(redis.cli(&user).await, "OK");
        let database = voiceai_testkit::empty_database().await;
        let (folder, moto) = (tempfile::tempdir().unwrap(), Moto::start().await);
        let mut host =
            Self { settings: BTreeMap::new(), folder, redis, database, port: Port::reserve(), moto };
        host.plant();
        host
    }

    fn plant(&mut self) {
        let secrets = catalogue::declarations().filter(|one| one.is_secret() && !one.is_pattern());
        for declaration in secrets {
            self.settings.insert(declaration.name.to_owned(), planted(declaration.name));
        }
        let login = |name: &str, url: &str| {
            let (scheme, rest) = url.split_once("://").unwrap();
            let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
            format!("{scheme}://ops:{}@{rest}", planted(name))
        };
        let redis = login("REDIS_URL", self.redis.url().trim_end_matches("/0"));
        let database =
            self.database.url.replacen("voiceai@", &format!("voiceai:{}@", planted("DATABASE_URL")), 1);
        assert!(database.contains(MARK), "{database}");
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let more = [
            ("REDIS_URL", redis.clone()),
            ("DISPATCHER_REDIS_URL", format!("{redis}/1")),
            ("DATABASE_URL", database),
            ("KAMAILIO_RPC_URLS", login("KAMAILIO_RPC_URLS", "http://127.0.0.1:1/RPC")),
            ("HTTP_PROXY", login("HTTP_PROXY", "http://127.0.0.1:1")),
            ("HTTPS_PROXY", login("HTTPS_PROXY", "http://127.0.0.1:1")),
            ("ALERT_WEBHOOK_URL", login("ALERT_WEBHOOK_URL", "https://127.0.0.1:1/hook")),
            ("CRL_RELOAD_URL", login("CRL_RELOAD_URL", "http://127.0.0.1:1/reload")),
            ("ROLLOUT_DISPATCH_URL", login("ROLLOUT_DISPATCH_URL", "https://127.0.0.1:1/orders")),
            ("INGEST_HEALTH_URL", login("INGEST_HEALTH_URL", "http://127.0.0.1:1")),
            ("EVALUATOR_HEALTH_URL", login("EVALUATOR_HEALTH_URL", "http://127.0.0.1:1")),
            ("EXPORT_CALLBACK_SECRET", signing("EXPORT_CALLBACK_SECRET")),
            ("ALERT_WEBHOOK_SECRET", signing("ALERT_WEBHOOK_SECRET")),
            ("ROLLOUT_DISPATCH_SECRET", signing("ROLLOUT_DISPATCH_SECRET")),
            ("NO_PROXY", "127.0.0.1".to_owned()),
            ("S3_ENDPOINT", "http://127.0.0.1:1".to_owned()),
            ("S3_BUCKET", "backups".to_owned()),
            ("SMTP_USER", "ops".to_owned()),
            ("SMTP_HOST", "127.0.0.1".to_owned()),
            ("MAIL_PUBLIC_URL", "https://mail.example.test".to_owned()),
            ("MAIL_INTERNAL_HTTP_ADDR", format!("127.0.0.1:{}", self.port.number())),
            ("ENVIRONMENT", "planted".to_owned()),
            ("RUNTIME_DIR", path("run")),
            ("PROVIDER_SCRIPTS_DIR", path("providers")),
            ("CLOUD_INIT_SCRIPT", path("cloud-init.sh")),
            ("NAMESPACE", "voiceai/planted".to_owned()),
            ("AWS_ENDPOINT_URL", self.moto.endpoint()),
            ("ECR_REGISTRY", "registry.test".to_owned()),
            ("ECR_TAG", "1".to_owned()),
            ("CONFIG_BUCKET", "config".to_owned()),
            ("CONFIG_REF", "main".to_owned()),
            ("BASTION_PUBLIC_KEY", "ssh-ed25519 AAAA".to_owned()),
            ("SCALING_EVALUATION_INTERVAL_MS", "300".to_owned()),
            ("SCALING_STATUS_POLL_INTERVAL_MS", "300".to_owned()),
            ("LEADER_HEARTBEAT_INTERVAL_MS", "300".to_owned()),
            ("LEADER_LOCK_TTL_MS", "1000".to_owned()),
            ("DIAGNOSTIC_JOBS", "true".to_owned()),
            ("LOG_LEVEL", "debug,sqlx=info,hyper=info".to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("VOICEAI_OPERATOR", "test".to_owned()),
            ("SHUTDOWN_TIMEOUT", "10s".to_owned()),
        ];
        for (name, value) in more {
            self.settings.insert(name.to_owned(), value);
        }
        std::fs::create_dir_all(self.folder.path().join("run")).unwrap();
        let scripts = self.folder.path().join("providers/hetzner");
        std::fs::create_dir_all(&scripts).unwrap();
        for name in ["scaleUp.sh", "scalingStatus.sh", "scaleDown.sh"] {
            executable(&scripts.join(name), CHATTY);
        }
        executable(
            &self.folder.path().join("cloud-init.sh"),
            "#!/bin/sh\nenv >&2\nprintf '#cloud-config\\nhostname: x\\n'\n",
        );
    }

    fn run(&self, binary: &str, more: &[(&str, &str)]) -> Process {
        let program = Program::new(voiceai_testkit::binary(binary)).envs(&self.settings);
        program.envs(more.iter().copied()).arg("run").start()
    }

    async fn command(&self, binary: &str, args: &[&str]) -> (i32, String) {
        let mut command = Command::new(voiceai_testkit::binary(binary));
        command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(&self.settings).kill_on_drop(true);
        let done = tokio::time::timeout(SOON * 2, command.output()).await.expect("it ends").unwrap();
        let text = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
        (done.status.code().unwrap_or(-1), text.into_owned())
    }
}

fn executable(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn assert_clean(what: &str, text: &str) {
    assert!(!text.is_empty(), "{what} says nothing");
    let found = found(text);
    assert!(found.is_empty(), "{what}: {found:#?}");
}

#[tokio::test]
async fn no_secret_is_in_any_output_file_row_or_argument_of_a_whole_run() {
    let host = Host::new().await;
    let arguments = Arguments::watch();
    for binary in BINARIES {
        for args in [
            &["config", "print"][..],
            &["config", "print", "--json"],
            &["config", "check"],
            &["config", "manifest"],
            &["migrate"],
            &["doctor"],
            &["doctor", "--json"],
        ] {
            let (code, text) = host.command(binary, args).await;
            assert_clean(&format!("{binary} {args:?}"), &text);
            let expected = if args[0] == "doctor" { 7 } else { 0 };
            assert_eq!(code, expected, "{binary} {args:?}: {text}");
        }
    }
    let scaler = host.run("voiceai-scaler", &[]);
    let tasker = host.run("voiceai-tasker", &[]);
    for process in [&scaler, &tasker] {
        process.wait_for_line(SOON, READY).await;
    }
    let group = r#"INSERT INTO "ServerGroup" (id, name, service, enabled, "scalingEnabled", "minInstances",
        "maxInstances", "scaleUpThreshold", "scaleDownThreshold", "cooldownSeconds", "scalingProvider", "scalingConfig")
        VALUES ('g1', 'eu-voice', 'voice', true, true, 1, 3, 0.7, 0.3, 1, 'hetzner',
        '{"serverType":"cx23","location":"fsn1"}')"#;
    host.database.execute(group).await;
    // What the script says of its environment is logged, and masked.
    scaler.wait_for_line(SOON * 2, "[REDACTED]").await;
    let payload = r#"{"panic":true}"#;
    let enqueue = ["jobs", "enqueue", "diagnostic.probe", "--payload", payload];
    let (code, text) = host.command("voiceai-tasker", &enqueue).await;
    assert_eq!(code, 0, "{text}");
    tasker.wait_for_line(SOON, "panic").await;
    // An error path of each: the database is away, with a password in its address.
    for binary in BINARIES {
        let lost = host.settings["DATABASE_URL"].replacen("127.0.0.1:", "127.0.0.2:", 1);
        let failing =
            host.run(binary, &[("DATABASE_URL", &lost), ("START_TIMEOUT", "1s"), ("INSTANCE_ID", "b")]);
        failing.wait_exit(SOON).await;
        assert_clean(&format!("{binary} without its database"), &(failing.stdout() + &failing.stderr()));
    }
    for process in [&scaler, &tasker] {
        process.terminate();
        process.wait_exit(SOON).await;
    }
    assert_clean("voiceai-scaler", &(scaler.stdout() + "\n" + &scaler.stderr()));
    assert_clean("voiceai-tasker", &(tasker.stdout() + "\n" + &tasker.stderr()));
    for entry in std::fs::read_dir(host.folder.path().join("run")).unwrap() {
        let path = entry.unwrap().path();
        assert_clean(&path.display().to_string(), &String::from_utf8_lossy(&std::fs::read(&path).unwrap()));
    }
    let dump =
        Command::new("pg_dump").args(["--inserts", "--dbname", &host.database.url]).output().await.unwrap();
    assert!(dump.status.success(), "{dump:?}");
    assert_clean("the database", &String::from_utf8_lossy(&dump.stdout));
    let seen = arguments.seen.lock().unwrap().clone();
    assert!(seen.is_empty(), "in arguments: {seen:#?}");
}

#[test]
fn what_is_planted_is_found_where_it_stands() {
    assert_eq!(found(&format!("a\nb {}\nc", planted("X"))).len(), 1);
    // base64 of "x:planted7canary", at each of the three offsets it may have.
    for text in ["eDpwbGFudGVkN2NhbmFyeQ==", "cGxhbnRlZDdjYW5hcnk=", "eHg6cGxhbnRlZDdjYW5hcnk="] {
        assert_eq!(found(text).len(), 1, "{text}");
    }
}
