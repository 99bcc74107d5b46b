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
