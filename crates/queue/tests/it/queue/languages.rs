//! Enqueueing from other languages, by the one call of docs/protocol.md.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use voiceai_queue::State;

use super::{SOON, Setup, check, until};

/// A folder with the clients of other languages, made once and kept with the build.
async fn folder(name: &str, install: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients").join(name);
    tokio::fs::create_dir_all(&root).await.unwrap();
    let script = format!("exec 9>lock; flock 9; test -e done || ({{ {install}; }} && touch done)");
    run(Command::new("bash").args(["-euc", &script]).current_dir(&root)).await;
    root
}

async fn run(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let out =
        tokio::time::timeout(std::time::Duration::from_secs(120), out).await.expect("ends in time").unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&out.stderr));
    text.trim().to_owned()
}

fn installed(program: &str) -> bool {
    std::process::Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

async fn enqueued_and_run(s: &Setup, first: &str, again: &str) {
    assert_eq!((first, again), ("1", "0"), "accepted once, then known");
    let worker = s.worker(1);
    s.wait_state("order-1", State::Completed).await;
    until("it ran", async || s.diary.count("from afar") == 1).await;
    let record = s.records.all().pop().unwrap();
    assert_eq!((record.tenant.as_str(), record.priority), ("acme", 7));
    s.wait_empty(SOON).await;
    check(&s.client, &s.queue).await;
    worker.stop().await;
}

#[tokio::test]
async fn python_enqueues_with_redis_py() {
    let s = Setup::new().await;
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/stack/tool.sh");
    let python = run(Command::new(tool).arg("redis")).await;
    let program = r#"
import json, os, redis
r = redis.Redis.from_url(os.environ["REDIS_URL"])
options = json.dumps({"priority": 7, "tenant": "acme"})
for _ in range(2):
    reply = r.fcall("voiceai_v1_submit", 1, "voiceai:queue:{default}:", "order-1", "work",
                    json.dumps({"name": "from afar"}), options)
    print(reply[0])
"#;
    let url = &s.db.as_ref().unwrap().url;
    let out = run(Command::new(python).args(["-c", program]).env("REDIS_URL", url)).await;
    let (first, again) = out.split_once('\n').unwrap();
    enqueued_and_run(&s, first, again).await;
}

#[tokio::test]
async fn node_enqueues_with_ioredis() {
    if !installed("node") || !installed("npm") {
        eprintln!("skipped: node and npm are not installed");
        return;
    }
    let s = Setup::new().await;
    let root = folder("node", "npm install --silent --no-fund --no-audit --prefix . ioredis@5").await;
    let program = r#"
const Redis = require('ioredis');
(async () => {
  const redis = new Redis(process.env.REDIS_URL);
  for (let i = 0; i < 2; i += 1) {
    const [state] = await redis.call('FCALL', 'voiceai_v1_submit', 1, 'voiceai:queue:{default}:', 'order-1', 'work',
      JSON.stringify({ name: 'from afar' }), JSON.stringify({ priority: 7, tenant: 'acme' }));
    console.log(state);
  }
  redis.disconnect();
})();
"#;
    let url = &s.db.as_ref().unwrap().url;
    let out = run(Command::new("node").args(["-e", program]).current_dir(&root).env("REDIS_URL", url)).await;
    let (first, again) = out.split_once('\n').unwrap();
    enqueued_and_run(&s, first, again).await;
}
