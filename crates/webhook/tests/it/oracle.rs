//! The scheme's own library judges our signatures.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use voiceai_webhook::endpoints;

use crate::receiver::{Act, Receiver};
use crate::stage::Stage;

const JUDGE: &str = "\
import json, sys
from standardwebhooks.webhooks import Webhook
case = json.load(sys.stdin)
for secret in case['secrets']:
    try:
        Webhook(secret).verify(case['body'], case['headers'])
        print('good')
    except Exception as error:
        print('bad')
";

fn judged(got: &crate::receiver::Got, body: &[u8], secrets: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let tool = Command::new("bash")
        .arg(root.join("scripts/stack/tool.sh"))
        .arg("standardwebhooks")
        .output()
        .unwrap();
    assert!(tool.status.success(), "{}", String::from_utf8_lossy(&tool.stderr));
    let python = String::from_utf8(tool.stdout).unwrap();
    let headers: serde_json::Map<_, _> =
        got.headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let case = json!({ "secrets": secrets, "headers": headers, "body": std::str::from_utf8(body).unwrap() });
    let input = tempfile(&case.to_string());
    let ran = Command::new(python.trim())
        .args(["-c", JUDGE])
        .stdin(std::fs::File::open(&input).unwrap())
        .output()
        .unwrap();
    let _ = std::fs::remove_file(input);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn tempfile(text: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!(
        "webhook-oracle-{}-{}.json",
        std::process::id(),
        uuid::Uuid::now_v7()
    ));
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_library_takes_what_we_sign_before_during_and_after_a_rotation() {
    let stage = Stage::new(&[]).await;
    let receiver = Receiver::always(Act::Answer(200, Vec::new())).await;
    let new = endpoints::NewEndpoint {
        tenant: "t".to_owned(),
        url: receiver.url("/"),
        events: Vec::new(),
        description: None,
        concurrency: None,
        timeout: None,
        secret: None,
    };
    let (endpoint, old) = endpoints::add(&stage.pool, &new, &stage.guard()).await.unwrap();
    stage.work();
    stage.emit("t", "first").await;
    stage.until(endpoint.id, "delivered").await;
    let fresh = endpoints::rotate(&stage.pool, endpoint.id, Duration::from_secs(3600)).await.unwrap();
    stage.emit("t", "both").await;
    stage.until(endpoint.id, "delivered").await;
    let newest = endpoints::rotate(&stage.pool, endpoint.id, Duration::ZERO).await.unwrap();
    stage.emit("t", "newest").await;
    stage.until(endpoint.id, "delivered").await;

    let secrets = [old.expose(), fresh.expose(), newest.expose()];
    let got = receiver.got();
    assert_eq!(judged(&got[0], &got[0].body, &secrets), ["good", "bad", "bad"]);
    assert_eq!(judged(&got[1], &got[1].body, &secrets), ["good", "good", "bad"]);
    // The first one's own grace goes on; the second one's was none.
    assert_eq!(judged(&got[2], &got[2].body, &secrets), ["good", "bad", "good"]);
    assert_eq!(judged(&got[0], br#"{"forged":true}"#, &secrets), ["bad", "bad", "bad"]);
}
