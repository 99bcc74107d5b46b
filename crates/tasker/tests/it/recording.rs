//! Calls and recordings through the binary: a real store, the real ffmpeg, and a tasker that is killed at its work.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use voiceai_testkit::{Process, Program, S3, wait_until};

use crate::stage::{Answer, PATIENCE, Stage, answer};

/// A lease that nobody renews has to run out, and ffmpeg to do its work twice, on a loaded machine.
const LONG: Duration = Duration::from_secs(90);

struct Studio {
    stage: Stage,
    s3: S3,
    folder: TempDir,
}

impl Studio {
    async fn new() -> Self {
        Self {
            stage: Stage::new().await,
            s3: voiceai_testkit::s3().await,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn program(&self) -> Program {
        self.stage.program().envs([
            ("RECORDING_ENABLED", "true"),
            ("RECORDINGS_S3_BUCKET", self.s3.bucket.as_str()),
            ("RECORDINGS_S3_REGION", "us-east-1"),
            ("RECORDING_WORK_DIR", self.work().to_str().unwrap()),
            ("S3_ENDPOINT", self.s3.endpoint.as_str()),
            ("S3_ACCESS_KEY", self.s3.access_key.as_str()),
            ("S3_SECRET_KEY", self.s3.secret_key.as_str()),
        ])
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    async fn ask(&self, line: &str) -> Answer {
        answer(self.program().args(line.split_whitespace().collect::<Vec<_>>())).await
    }

    async fn tasker(&self, instance: &str) -> Process {
        let process = self.program().arg("run").env("INSTANCE_ID", instance).start();
        process.wait_for_line(PATIENCE, "service ready").await;
        process
    }

    /// A tone of some seconds under `key`.
    async fn tone(&self, key: &str, seconds: u32) {
        let path = self.folder.path().join("tone.wav");
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i"]);
        ffmpeg
            .arg(format!("sine=frequency=440:duration={seconds}:sample_rate=8000"))
            .args(["-ac", "1"])
            .arg(&path);
        assert!(ffmpeg.status().await.expect("ffmpeg is installed").success());
        self.s3.put(key, &std::fs::read(path).unwrap()).await;
    }

    /// Programs that work in our folder.
    fn at_work(&self) -> Vec<u32> {
        let work = self.work();
        let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &u32| {
            let folder = std::fs::read_link(Path::new("/proc").join(pid.to_string()).join("cwd"));
            folder.is_ok_and(|folder| folder.starts_with(&work))
        })
        .collect()
    }

    async fn wait_for_work(&self) {
        wait_until(LONG, "ffmpeg is at work", async || !self.at_work().is_empty()).await;
    }

    async fn wait_for_rest(&self) {
        wait_until(PATIENCE, "nothing of ffmpeg is left", async || self.at_work().is_empty()).await;
    }

    fn folders(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.work()).into_iter().flatten().filter_map(Result::ok);
        entries.map(|entry| entry.file_name().into_string().unwrap()).filter(|name| name != "lock").collect()
    }

    async fn wait_for_recording(&self, state: &str) {
        wait_until(LONG, "the recording's row", async || self.row().await["state"] == state).await;
    }

    async fn row(&self) -> Value {
        self.stage.value("SELECT row_to_json(r)::text FROM ops.recordings r").await
    }

    async fn enqueue(&self, id: &str, key: &str) {
        let payload = json!({ "key": key, "tenant": "t" }).to_string();
        let line = ["jobs", "enqueue", "recording.process", "--id", id, "--payload", &payload];
        answer(self.program().args(line)).await.text(0);
    }
}

#[tokio::test]
async fn calls_that_ended_while_the_tasker_was_away_are_found_closed_and_heard() {
    let studio = Studio::new().await;
    let stage = &studio.stage;
    stage.database.execute(include_str!("../../../../tests/fixtures/platform.sql")).await;
    stage
        .database
        .execute(
            "INSERT INTO calls (id, tenant_id, started_at, ended_at) VALUES
                 ('11111111-1111-4111-8111-111111111111', 't', now() - interval '2 hours', now() - interval '1 hour');
             INSERT INTO conversations (tenant_id, call_id) VALUES ('t', '11111111-1111-4111-8111-111111111111');
             INSERT INTO recordings (tenant_id, call_id, object_key)
                 VALUES ('t', '11111111-1111-4111-8111-111111111111', 'calls/1.wav')",
        )
        .await;
    studio.tone("calls/1.wav", 1).await;
    let _tasker = studio.tasker("one").await;

    let line = "jobs replay --json --missing --kind post-call --since 24h";
    let plan = studio.ask(line).await.json(0);
    assert_eq!(
        (&plan["executed"], &plan["matched"], &plan["would_replay"]),
        (&json!(false), &json!(1), &json!(1)),
        "{plan}"
    );
    assert_eq!(plan["candidates"][0]["id"], "post-call:11111111-1111-4111-8111-111111111111");
    assert_eq!(stage.value("SELECT count(*)::text FROM ops.post_calls").await, 0, "a plan changes nothing");
    assert_eq!(stage.value("SELECT count(*)::text FROM conversations WHERE ended_at IS NULL").await, 1);
    let other = studio.ask(&format!("{line} --tenant other")).await.json(0);
    assert_eq!(other["matched"], 0);
    let old = studio.ask("jobs replay --json --missing --kind post-call --since 2020-01-01T00:00:00Z").await;
    assert_eq!(old.failure(4)["code"], "since_too_old");

    let carried = studio.ask(&format!("{line} --execute --yes --reason away")).await.json(0);
    assert_eq!(carried["replay"]["counts"]["completed"], 1, "{carried}");
    assert_eq!(stage.value("SELECT count(*)::text FROM conversations WHERE ended_at IS NULL").await, 0);
    studio.wait_for_recording("processed").await;
    let keys = studio.s3.keys().await;
    assert_eq!(keys, ["calls/1.wav", "calls/1.wav.processed.json", "calls/1.wav.processed.opus"]);
    let events = "SELECT json_agg(type ORDER BY type)::text FROM ops.webhook_events";
    assert_eq!(stage.value(events).await, json!(["call.ended", "recording.processed"]));
    assert_eq!(studio.ask(line).await.json(0)["matched"], 0, "nothing is missing any more");
    let none = studio.ask("jobs replay --json --missing --kind recording.process --since 24h").await.json(0);
    assert_eq!(none["matched"], 0);
}

#[tokio::test]
async fn a_tasker_killed_at_its_work_leaves_no_ffmpeg_and_the_next_one_ends_the_work() {
    let studio = Studio::new().await;
    studio.tone("long.wav", 300).await;
    let tasker = studio.tasker("one").await;
    studio.enqueue("k1", "long.wav").await;
    studio.wait_for_work().await;
    tasker.kill9();
    studio.wait_for_rest().await;
    assert_eq!(studio.folders().len(), 1, "what the killed one had under work");

    let _next = studio.tasker("two").await;
    assert!(studio.folders().len() <= 1);
    studio.wait_for_recording("processed").await;
    wait_until(PATIENCE, "the folder is empty", async || studio.folders().is_empty()).await;
    let keys = studio.s3.keys().await;
    assert_eq!(keys, ["long.wav", "long.wav.processed.json", "long.wav.processed.opus"]);
    assert_eq!(studio.s3.unfinished_uploads().await, 0);
    let told = "SELECT count(*)::text FROM ops.webhook_events";
    assert_eq!(studio.stage.value(told).await, 1);
    assert_eq!(studio.stage.value("SELECT count(*)::text FROM ops.recordings").await, 1);
}

#[tokio::test]
async fn a_cancelled_job_ends_its_ffmpeg_and_stores_nothing() {
    let studio = Studio::new().await;
    studio.tone("long.wav", 300).await;
    let _tasker = studio.tasker("one").await;
    studio.enqueue("c1", "long.wav").await;
    studio.wait_for_work().await;
    studio.ask("jobs cancel c1 --yes").await.text(0);
    studio.wait_for_rest().await;
    wait_until(PATIENCE, "the folder is empty", async || studio.folders().is_empty()).await;
    studio.stage.wait_for_record("c1", "cancelled").await;
    assert_eq!(studio.s3.keys().await, ["long.wav"]);
    assert_eq!(studio.row().await["state"], "queued");
}

#[tokio::test]
async fn what_is_missing_is_dead_at_once_and_a_bucket_that_is_gone_is_waited_for() {
    let studio = Studio::new().await;
    {
        let _tasker = studio.tasker("one").await;
        studio.enqueue("m1", "none.wav").await;
        let dead = studio.stage.wait_for_state("m1", "dead").await;
        assert_eq!(
            (&dead["dead_reason"], &dead["attempts"]),
            (&json!("discarded_by_handler"), &json!(1)),
            "{dead}"
        );
        let plan = "jobs replay m1 --json --reason-is discarded_by_handler";
        assert_eq!(studio.ask(plan).await.json(0)["refused"], json!({ "recording_missing": 1 }));
        studio.tone("none.wav", 1).await;
        let done = studio.ask(&format!("{plan} --execute --yes")).await.json(0);
        assert_eq!(done["replay"]["counts"]["completed"], 1, "{done}");
    }
    let gone = studio.program().env("RECORDINGS_S3_BUCKET", "no-such-bucket").arg("run").start();
    gone.wait_for_line(PATIENCE, "service ready").await;
    studio.enqueue("g1", "none.wav").await;
    let waits = studio.stage.wait_for_state("g1", "delayed").await;
    assert!(waits["error"].as_str().unwrap().contains("no-such-bucket"), "{waits}");
    let found =
        answer(studio.program().env("RECORDINGS_S3_BUCKET", "no-such-bucket").args(["doctor", "--json"]))
            .await;
    let found: Value = serde_json::from_str(&found.stdout).unwrap();
    let check = |name: &str| {
        let checks = found["checks"].as_array().unwrap();
        checks
            .iter()
            .find(|check| check["check"] == name)
            .unwrap_or_else(|| panic!("{name}: {found}"))
            .clone()
    };
    assert_eq!(check("recording.tools")["result"], "ok", "{found}");
    assert_eq!(check("recording.bucket")["result"], "failed", "{found}");
}
