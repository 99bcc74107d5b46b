//! What strangers may put into the bucket. Each is given up at once, by name, and leaves nothing behind.

use std::time::Duration;

use serde_json::json;
use tokio::net::TcpListener;

use crate::stage::{Stage, discarded};

/// The first part of a file.
fn cut(content: &[u8], percent: usize) -> Vec<u8> {
    content[..content.len() * percent / 100].to_vec()
}

#[tokio::test]
async fn what_is_no_whole_sound_is_given_up_by_name() {
    let stage = Stage::new().await;
    let mut cases: Vec<(String, Vec<u8>, &str)> = vec![
        ("empty.wav".into(), Vec::new(), "is empty"),
        ("text.wav".into(), b"hello, I am no sound at all".to_vec(), "cannot be used"),
        ("archive.zip".into(), [b"PK\x03\x04".as_slice(), &[0; 2_000]].concat(), "cannot be used"),
        ("header.wav".into(), b"RIFF\xff\xff\xff\xffWAVEfmt ".to_vec(), "cannot be used"),
    ];
    for name in ["t.wav", "t.ogg", "t.flac", "t.mp3", "t.webm"] {
        let content = stage.tone(name, 5).await;
        cases.push((format!("cut-{name}"), cut(&content, 50), "truncated"));
    }
    // The index of this one stands at its end: without it nothing can be read.
    let content = stage.tone("t.m4a", 5).await;
    cases.push(("cut-t.m4a".into(), cut(&content, 50), "cannot be used"));
    let picture = stage.sound("p.png", "-f lavfi -i color=red:size=16x16 -frames:v 1").await;
    cases.push(("picture.png".into(), std::fs::read(picture).unwrap(), "cannot be used"));
    let video = stage.sound("v.mp4", "-f lavfi -i color=red:size=16x16:duration=1").await;
    cases.push(("silent.mp4".into(), std::fs::read(video).unwrap(), "no sound"));
    for (key, content, expected) in &cases {
        stage.s3.put(key, content).await;
        let error = discarded(stage.process(key).await);
        assert!(error.contains(expected) && error.contains(key.as_str()), "{key}: {error}");
    }
    let failed =
        stage.value("SELECT count(*)::text FROM ops.recordings WHERE state = 'failed' AND error <> ''").await;
    assert_eq!(failed, cases.len());
    assert_eq!(stage.events().await, vec!["recording.failed"; cases.len()]);
    // Asked again it is given up again, and nobody is told twice.
    discarded(stage.process("empty.wav").await);
    assert_eq!(stage.events().await.len(), cases.len());
    assert!(stage.s3.keys().await.iter().all(|key| !key.contains(".processed.")));
    stage.assert_clean().await;
}

#[tokio::test]
async fn a_playlist_reads_no_file_of_this_host_and_calls_nobody() {
    let stage = Stage::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tone = stage.sound("secret.wav", "-f lavfi -i sine=duration=1").await;
    let file = tone.display();
    let cases = [
        ("a.m3u8", format!("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{file}\n#EXT-X-ENDLIST\n")),
        (
            "b.m3u8",
            format!(
                "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:{port}/x.ts\n#EXT-X-ENDLIST\n"
            ),
        ),
        ("c.wav", format!("ffconcat version 1.0\nfile {file}\n")),
        ("d.wav", format!("#EXTM3U\n#EXTINF:9,\nconcat:{file}|{file}\n#EXT-X-ENDLIST\n")),
        (
            "e.sdp",
            format!(
                "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n"
            ),
        ),
        (
            "f.mpd",
            format!(
                "<?xml version=\"1.0\"?><MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\"><BaseURL>http://127.0.0.1:{port}/</BaseURL></MPD>"
            ),
        ),
    ];
    for (key, content) in &cases {
        stage.s3.put(key, content.as_bytes()).await;
        let error = discarded(stage.process(key).await);
        assert!(error.contains("cannot be used"), "{key}: {error}");
    }
    assert!(stage.s3.keys().await.iter().all(|key| !key.contains(".processed.")));
    let called = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(called.is_err(), "somebody was called");
}

#[tokio::test]
async fn a_small_file_that_becomes_large_ends_at_its_limits() {
    let mut stage = Stage::new().await;
    // Ten minutes of silence in some kilobytes.
    let bomb = stage.sound("b.flac", "-f lavfi -i anullsrc=r=8000:cl=mono -t 600 -frame_size 8192").await;
    let content = stage.store("b.flac", &bomb).await;
    assert!(content.len() < 100_000);
    stage.settings.duration_max = Duration::from_secs(60);
    let error = discarded(stage.process("b.flac").await);
    assert!(error.contains("RECORDING_DURATION_MAX"), "{error}");
    stage.settings.duration_max = Duration::from_secs(3_600);

    stage.settings.format = voiceai_config::catalogue::recording::RecordingFormat::Wav;
    stage.settings.output_bytes_max = 1 << 20;
    let error = discarded(stage.process("b.flac").await);
    assert!(error.contains("RECORDING_OUTPUT_BYTES_MAX"), "{error}");

    // Three hours of it: more than any machine works off in a second.
    let long =
        stage.sound("long.flac", "-f lavfi -i anullsrc=r=8000:cl=mono -t 10800 -frame_size 8192").await;
    stage.store("long.flac", &long).await;
    stage.settings.duration_max = Duration::from_secs(4 * 3_600);
    stage.settings.output_bytes_max = 1 << 30;
    stage.settings.timeout = Duration::from_secs(1);
    let error = discarded(stage.process("long.flac").await);
    assert!(error.contains("RECORDING_TIMEOUT"), "{error}");
    stage.settings.timeout = Duration::from_secs(60);

    stage.settings.bytes_max = 1_024;
    let error = discarded(stage.process("b.flac").await);
    assert!(error.contains("RECORDING_BYTES_MAX"), "{error}");
    stage.assert_clean().await;
}

#[tokio::test]
async fn keys_that_are_none_are_refused() {
    let stage = Stage::new().await;
    for key in
        ["../x", "a/../../x.wav", "", "/etc/passwd", "http://127.0.0.1/x", "a.wav.processed.opus", "a\nb"]
    {
        discarded(stage.run("recording.process", json!({ "key": key })).await);
    }
    assert_eq!(stage.value("SELECT count(*)::text FROM ops.recordings").await, 0);
}
