//! A clock that is set while the scaler runs.

use std::path::{Path, PathBuf};

use serde_json::json;
use voiceai_testkit::wait_until;

use crate::crash::Stub;
use crate::harness::WITHIN;

/// The library that `faketime` preloads, wherever this machine keeps it.
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").expect("a folder").flatten().map(|entry| entry.path());
    let found = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|file| file.exists());
    found.expect("faketime, which scripts/install.sh installs")
}

#[tokio::test]
async fn a_clock_that_jumps_ten_minutes_either_way_changes_nothing() {
    let mut stub = Stub::new().await;
    stub.stack.set("HEARTBEAT_STALE_AFTER", "5s");
    stub.stack.set("LEADER_LOCK_TTL_MS", "2000");
    stub.group(1, 1, json!({"maxDrain": 2})).await;
    let offset = stub.stack.folder.path().join("offset");
    let set = |path: &Path, text: &str| {
        let new = path.with_extension("new");
        std::fs::write(&new, text).expect("written");
        std::fs::rename(&new, path).expect("in one go");
    };
    set(&offset, "+0");
    let scaler = stub
        .stack
        .program(&["run"])
        .env("INSTANCE_ID", "a")
        .env("LD_PRELOAD", library())
        .env("FAKETIME_TIMESTAMP_FILE", &offset)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .start();
    let active = "SELECT count(*) FROM ops.servers WHERE status = 'active'";
    let serve = async |number: i64| {
        wait_until(WITHIN, "as many serve", async || {
            stub.stack.number(active).await == number && stub.open().await == 0
        })
        .await;
    };
    serve(1).await;
    for (jump, servers) in [("+600", 3), ("-600", 1), ("+0", 2)] {
        set(&offset, jump);
        stub.group(servers, servers, json!({"maxDrain": 2})).await;
        serve(i64::from(servers)).await;
        assert_eq!(stub.there().len(), usize::try_from(servers).expect("a few"), "{jump}");
    }
    // Lines are stamped by the clock that jumped, so it did.
    let hours: Vec<String> =
        scaler.stderr().lines().filter_map(|line| Some(line.get(14..30)?.to_owned())).collect();
    assert!(!hours.is_sorted(), "the clock never went back: {hours:?}");
    assert_eq!(stub.stack.number("SELECT max(term) FROM ops.leader_terms").await, 1, "it led all the time");
    assert_eq!(
        stub.stack.number("SELECT count(*) FROM ops.operations WHERE error_code IS NOT NULL").await,
        0
    );
}
