//! The end of originals.

use std::time::Duration;

use serde_json::json;

use crate::stage::{Stage, done};

async fn sweep(stage: &Stage) -> serde_json::Value {
    done(stage.run("recording.sweep", json!({})).await)
}

#[tokio::test]
async fn an_original_goes_only_when_its_copy_is_what_was_made() {
    let mut stage = Stage::new().await;
    for key in ["a.wav", "b.wav", "c.wav", "d.wav", "e.wav"] {
        stage.tone(key, 1).await;
        done(stage.process(key).await);
    }
    assert_eq!(sweep(&stage).await["policy"], "originals stay for ever");
    stage.settings.originals_keep = Some(Duration::from_secs(3_600));
    assert_eq!(sweep(&stage).await["originals_removed"], 0, "their time is not over");

    // One copy has changed, one is gone, one's metadata is another's, one original was replaced.
    let mut copy = stage.s3.get("b.wav.processed.opus").await.unwrap();
    let last = copy.len() - 1;
    copy[last] ^= 1;
    stage.s3.put("b.wav.processed.opus", &copy).await;
    let store = voiceai_aws::ObjectStore::new(stage.settings.store.as_ref().unwrap()).await;
    store.delete("c.wav.processed.opus").await.unwrap();
    let other = stage.s3.get("a.wav.processed.json").await.unwrap();
    let other = String::from_utf8(other).unwrap().replace("sha256\": \"", "sha256\": \"0");
    stage.s3.put("d.wav.processed.json", other.as_bytes()).await;
    stage.s3.put("e.wav", b"another").await;

    stage.settings.originals_keep = Some(Duration::from_millis(1));
    let swept = sweep(&stage).await;
    assert_eq!((&swept["originals_removed"], &swept["originals_kept"]), (&json!(1), &json!(4)), "{swept}");
    let keys = stage.s3.keys().await;
    assert!(!keys.contains(&"a.wav".to_owned()), "{keys:?}");
    for key in ["b.wav", "c.wav", "d.wav", "e.wav", "a.wav.processed.opus"] {
        assert!(keys.contains(&key.to_owned()), "{key} in {keys:?}");
    }
    let notes = "SELECT json_object_agg(original_key, sweep_note)::text FROM ops.recordings";
    let notes = stage.value(notes).await;
    assert_eq!(notes["a.wav"], json!(null));
    assert!(notes["b.wav"].as_str().unwrap().contains("not what was made"), "{notes}");
    assert!(notes["c.wav"].as_str().unwrap().contains("not there"), "{notes}");
    assert!(notes["d.wav"].as_str().unwrap().contains("metadata"), "{notes}");
    assert!(notes["e.wav"].as_str().unwrap().contains("no longer the one"), "{notes}");

    // Asked for again, the one that is gone is known and no fault.
    assert_eq!(done(stage.process("a.wav").await)["known"], true);
    assert_eq!(sweep(&stage).await["originals_removed"], 0);
}
