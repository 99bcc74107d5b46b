//! A recording that is sound, in both senses.

use serde_json::json;
use voiceai_config::catalogue::recording::RecordingFormat;
use voiceai_queue::Inline;

use crate::stage::{Stage, done, sha256};

#[tokio::test]
async fn a_recording_is_measured_made_as_loud_as_it_should_be_and_told_of_once() {
    let stage = Stage::with_platform().await;
    let original = stage.tone("calls/7.wav", 4).await;
    stage
        .database
        .execute("INSERT INTO recordings (tenant_id, object_key) VALUES ('t', 'calls/7.wav')")
        .await;

    let result = done(stage.process("calls/7.wav").await);
    let keys = stage.s3.keys().await;
    assert_eq!(keys, ["calls/7.wav", "calls/7.wav.processed.json", "calls/7.wav.processed.opus"]);
    let copy = stage.s3.get("calls/7.wav.processed.opus").await.unwrap();
    let text = stage.s3.get("calls/7.wav.processed.json").await.unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(metadata["original"]["sha256"], sha256(&original));
    assert_eq!(metadata["processed"]["sha256"], sha256(&copy));
    assert_eq!(metadata["original"]["sample_rate"], 8_000);
    let loudness = metadata["processed"]["loudness"]["integrated_lufs"].as_f64().unwrap();
    assert!((loudness + 16.0).abs() <= 1.0, "{metadata}");
    let before = metadata["original"]["loudness"]["integrated_lufs"].as_f64().unwrap();
    assert!(before < -19.0, "the tone itself is quieter: {before}");

    let row = stage.row().await;
    assert_eq!(
        (&row["state"], &row["call_id"], &row["tenant"]),
        (&json!("processed"), &json!("c-1"), &json!("t"))
    );
    assert_eq!(row["processed_sha256"], sha256(&copy));
    assert_eq!(row["original_sha256"], sha256(&original));
    assert_eq!(result["sha256"], row["processed_sha256"]);
    assert!((3_900..=4_200).contains(&row["duration_ms"].as_i64().unwrap()), "{row}");
    assert_eq!(stage.events().await, ["recording.processed"]);
    let noted = "SELECT json_build_array(status, size_bytes, checksum_sha256, processed_at IS NOT NULL)::text FROM recordings";
    assert_eq!(stage.value(noted).await, json!(["processed", copy.len(), sha256(&copy), true]));
    stage.assert_clean().await;

    assert_eq!(done(stage.process("calls/7.wav").await), json!({ "known": true }));
    // As if it had been killed after its objects and before its row, in whatever step.
    stage.database.execute("UPDATE ops.recordings SET state = 'queued'").await;
    done(stage.process("calls/7.wav").await);
    assert_eq!(stage.s3.get("calls/7.wav.processed.opus").await.unwrap(), copy, "the same bytes");
    assert_eq!(stage.s3.get("calls/7.wav.processed.json").await.unwrap(), text, "the same bytes");
    assert_eq!(stage.row().await["id"], row["id"]);
    assert_eq!(stage.events().await, ["recording.processed"], "told once");

    // A recording that was replaced is another one.
    stage.tone("calls/7.wav", 2).await;
    done(stage.process("calls/7.wav").await);
    let duration = stage.row().await["duration_ms"].as_i64().unwrap();
    assert!((1_900..=2_200).contains(&duration), "{duration}");
    assert_eq!(stage.events().await.len(), 2);
}

#[tokio::test]
async fn every_format_in_and_out() {
    let mut stage = Stage::new().await;
    let formats = [
        ("a.mp3", RecordingFormat::Opus, "opus"),
        ("a.ogg", RecordingFormat::Mp3, "mp3"),
        ("a.m4a", RecordingFormat::Flac, "flac"),
        ("a.flac", RecordingFormat::Wav, "wav"),
        ("a.webm", RecordingFormat::Opus, "opus"),
    ];
    for (key, format, ending) in formats {
        stage.settings.format = format;
        stage.tone(key, 2).await;
        let result = done(stage.process(key).await);
        let copy = format!("{key}.processed.{ending}");
        assert_eq!(result["processed_key"], copy.as_str());
        assert_eq!(sha256(&stage.s3.get(&copy).await.unwrap()), result["sha256"]);
    }
}

#[tokio::test]
async fn silence_stays_silence_and_a_loud_one_is_held_below_full_scale() {
    let stage = Stage::new().await;
    let silent = stage.sound("s.wav", "-f lavfi -i anullsrc=r=16000:cl=stereo -t 2").await;
    stage.store("s.wav", &silent).await;
    done(stage.process("s.wav").await);
    let row =
        stage.value("SELECT row_to_json(r)::text FROM ops.recordings r WHERE original_key = 's.wav'").await;
    assert_eq!((&row["state"], &row["loudness_lufs"]), (&json!("processed"), &json!(null)), "{row}");
    // Quiet with one loud click: the gain that it needs would go beyond full scale.
    let words = "-f lavfi -i aevalsrc=0.02*sin(880*PI*t)+0.9*gt(sin(2*PI*t)\\,0.99999):d=3:s=48000";
    let click = stage.sound("l.flac", words).await;
    stage.store("l.flac", &click).await;
    done(stage.process("l.flac").await);
    let row =
        stage.value("SELECT row_to_json(r)::text FROM ops.recordings r WHERE original_key = 'l.flac'").await;
    assert!(row["true_peak_dbtp"].as_f64().unwrap() <= 0.5, "{row}");
}

#[tokio::test]
async fn an_id_leads_to_its_recording_and_an_upload_is_waited_for() {
    let stage = Stage::with_platform().await;
    stage.tone("calls/8.ogg", 1).await;
    let id = stage
        .value(
            "INSERT INTO recordings (tenant_id, object_key) VALUES ('t', 'calls/8.ogg') RETURNING id::text",
        )
        .await;
    done(stage.run("recording.process", json!({ "recording_id": id })).await);
    let own = stage.row().await["id"].clone();
    assert_eq!(done(stage.run("recording.process", json!({ "recording_id": own })).await)["known"], true);
    let unknown = stage.run("recording.process", json!({ "recording_id": 7 })).await;
    assert!(crate::stage::discarded(unknown).contains("recording_id \"7\""));

    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(1);
    let waits = stage.run("recording.process", json!({ "key": "later.wav", "upload_until": later })).await;
    assert!(matches!(waits, Inline::Snoozed(_)), "{waits:?}");
}

#[tokio::test]
async fn a_table_of_the_platform_that_refuses_what_it_is_told_loses_no_recording() {
    let stage = Stage::with_platform().await;
    stage.tone("calls/9.wav", 1).await;
    stage
        .database
        .execute(
            "INSERT INTO recordings (tenant_id, object_key) VALUES ('t', 'calls/9.wav');
             ALTER TABLE recordings ADD CHECK (status IN ('pending', 'ready'))",
        )
        .await;
    done(stage.process("calls/9.wav").await);
    assert_eq!(stage.row().await["state"], "processed");
    assert_eq!(stage.events().await, ["recording.processed"]);
    assert_eq!(stage.value("SELECT to_json(status)::text FROM recordings").await, "pending");
}
