//! What is not the recording's fault is tried again.

use serde_json::json;
use voiceai_queue::Inline;

use crate::stage::{Stage, discarded, done, retried, store_settings};

#[tokio::test]
async fn a_missing_recording_is_given_up_and_a_missing_bucket_is_not() {
    let mut stage = Stage::new().await;
    let error = discarded(stage.process("none.wav").await);
    assert!(error.contains("none.wav does not exist"), "{error}");
    assert_eq!(stage.row().await["state"], "failed");
    assert_eq!(stage.events().await, ["recording.failed"]);

    let s3 = stage.s3.clone();
    stage.tone("here.wav", 1).await;
    stage.settings.store = Some(store_settings(&s3, &s3.endpoint, "no-such-bucket"));
    let error = retried(stage.process("here.wav").await);
    assert!(error.contains("no-such-bucket") && error.contains("does not exist"), "{error}");
    // A port that nobody listens on.
    stage.settings.store = Some(store_settings(&s3, "http://127.0.0.1:1", &s3.bucket));
    let error = retried(stage.process("here.wav").await);
    assert!(error.contains("cannot be reached"), "{error}");
    let others =
        "SELECT count(*)::text FROM ops.recordings WHERE original_key = 'here.wav' AND state <> 'queued'";
    assert_eq!(stage.value(others).await, 0, "nothing is given up");
    stage.settings.store = Some(store_settings(&s3, &s3.endpoint, &s3.bucket));
    done(stage.process("here.wav").await);
}

#[tokio::test]
async fn a_full_disk_is_waited_for() {
    let mut stage = Stage::new().await;
    stage.tone("a.wav", 1).await;
    stage.settings.work_free_min = u64::MAX / 2;
    let error = retried(stage.process("a.wav").await);
    assert!(error.contains("too little space") && error.contains("RECORDING_WORK_DIR"), "{error}");
    assert_eq!(stage.row().await["state"], "queued");
    stage.settings.work_free_min = 0;
    done(stage.process("a.wav").await);
    stage.assert_clean().await;
}

/// A file system of so many bytes, which ends with its holder.
struct SmallDisk {
    holder: tokio::process::Child,
    path: std::path::PathBuf,
}

impl SmallDisk {
    async fn new(bytes: u32) -> Self {
        use tokio::io::{AsyncBufReadExt as _, BufReader};

        // In a mount namespace of its own, so that nothing is left on the host; /proc leads into it.
        let script =
            format!("mount -t tmpfs -o size={bytes},mode=0777 none /mnt && echo ready && exec sleep 600");
        let mut holder = tokio::process::Command::new("unshare")
            .args(["--map-root-user", "--mount", "--", "sh", "-c", &script])
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("unshare is installed");
        let mut said = BufReader::new(holder.stdout.take().unwrap()).lines();
        assert_eq!(
            said.next_line().await.unwrap().as_deref(),
            Some("ready"),
            "a tmpfs cannot be mounted here"
        );
        let path = std::path::PathBuf::from(format!("/proc/{}/root", holder.id().unwrap())).join("mnt");
        Self { holder, path }
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_under_work_is_named_cleaned_and_waited_for() {
    use voiceai_config::catalogue::recording::RecordingFormat;

    let mut stage = Stage::new().await;
    let original = stage.tone("a.wav", 120).await;
    // The original fits; its copy, of the same kind, does not fit beside it.
    let mut disk = SmallDisk::new(u32::try_from(original.len() + original.len() / 2).unwrap()).await;
    let roomy = std::mem::replace(&mut stage.settings.work_dir, disk.path.join("work"));
    (stage.settings.work_free_min, stage.settings.format) = (0, RecordingFormat::Wav);
    let error = retried(stage.process("a.wav").await);
    assert!(error.contains("too little space") && error.contains("RECORDING_WORK_DIR"), "{error}");
    assert!(error.contains("No space left on device"), "the system's own words: {error}");
    assert_eq!(stage.row().await["state"], "queued", "it is not the recording's fault");
    assert!(stage.events().await.is_empty(), "nobody is told that it failed");
    stage.assert_clean().await;
    assert!(stage.s3.keys().await.iter().all(|key| !key.contains(".processed.")));
    // Somebody else's files: the work does not even begin.
    std::fs::write(disk.path.join("others"), vec![0; original.len()]).unwrap();
    let error = retried(stage.process("a.wav").await);
    assert!(error.contains("too little space"), "{error}");
    stage.assert_clean().await;
    disk.holder.kill().await.unwrap();
    stage.settings.work_dir = roomy;
    done(stage.process("a.wav").await);
    assert_eq!(stage.events().await, ["recording.processed"]);
    stage.assert_clean().await;
}

#[tokio::test]
async fn without_postgres_a_recording_waits_and_spends_no_attempt() {
    let stage = Stage::new().await;
    stage.tone("a.wav", 1).await;
    stage.pool.close().await;
    let end = stage.run("recording.process", json!({ "key": "a.wav" })).await;
    assert!(matches!(end, Inline::Snoozed(_)), "{end:?}");
    let end = stage.run("post-call", json!({ "call_id": "a" })).await;
    assert!(matches!(end, Inline::Snoozed(_)), "{end:?}");
}
