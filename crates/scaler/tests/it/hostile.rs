//! Providers that lie, by the service itself.

use serde_json::json;
use voiceai_testkit::{wait_for, wait_until};

use crate::crash::Stub;
use crate::harness::WITHIN;

/// Notes what a deletion was told.
const DOWN: &str = r#"echo "$INSTANCE_NAME ${PROVIDER_ID-none}" >> "$D/../down"; rmdir "$D/$INSTANCE_NAME" 2>/dev/null; say absent"#;

/// On a machine that does everything at once a script takes longer than the stub's second.
async fn patient() -> Stub {
    let mut stub = Stub::new().await;
    stub.stack.set("PROVIDER_SCRIPT_TIMEOUT_MS", "10000");
    stub
}

#[tokio::test]
async fn two_servers_of_one_id_are_not_taken_for_two() {
    let stub = patient().await;
    let same = r#"printf '{"id":"the-one","name":"%s","status":"ready","ip":"10.0.0.1"}\n' "$INSTANCE_NAME""#;
    stub.replace("scaleUp.sh", &format!(r#"mkdir "$D/$INSTANCE_NAME"; {same}"#));
    stub.replace(
        "scalingStatus.sh",
        &format!(r#"[ -d "$D/$INSTANCE_NAME" ] || {{ say absent; exit 14; }}; {same}"#),
    );
    stub.replace("scaleDown.sh", DOWN);
    stub.group(2, 2, json!({})).await;
    let _scaler = stub.stack.scaler("a");
    let failed =
        "SELECT count(*) FROM ops.operations WHERE state = 'failed_clean' AND error_code = 'duplicate_id'";
    wait_until(WITHIN, "the second one is refused", async || stub.stack.number(failed).await >= 1).await;
    let active = "SELECT count(*) FROM ops.servers WHERE status = 'active' AND provider_id = 'the-one'";
    wait_until(WITHIN, "one serves", async || stub.stack.number(active).await == 1).await;
    let holders = "SELECT count(*) FROM ops.servers WHERE provider_id = 'the-one'";
    assert_eq!(stub.stack.number(holders).await, 1, "no other row ever had the id");
    let down = std::fs::read_to_string(stub.stack.folder.path().join("down")).expect("deletions");
    assert!(down.lines().all(|line| line.ends_with(" none")), "none was asked for by that id: {down}");
    let in_service =
        stub.stack.servers().await.into_iter().find(|(_, status)| status == "active").expect("one");
    assert!(!down.contains(&in_service.0), "the one in service was left alone: {down}");
}

#[tokio::test]
async fn a_deletion_that_never_ends_is_told() {
    let stub = patient().await;
    stub.group(2, 2, json!({})).await;
    let _scaler = stub.stack.scaler("a");
    wait_until(WITHIN, "two serve", async || stub.told("scaled").await == 2).await;
    // Words outside the contract, and a server that stays.
    stub.replace("scaleDown.sh", r#"printf '{"name":"%s","status":"deleted"}\n' "$INSTANCE_NAME""#);
    stub.group(1, 1, json!({})).await;
    let deleting = "SELECT count(*) FROM ops.operations WHERE state = 'deleting' AND finished_at IS NULL \
                    AND deadline BETWEEN now() + interval '29 minutes' AND now() + interval '30 minutes'";
    wait_until(WITHIN, "a deletion is under way", async || stub.stack.number(deleting).await == 1).await;
    stub.stack.database.execute("UPDATE ops.operations SET deadline = now() WHERE state = 'deleting'").await;
    wait_until(WITHIN, "it is told", async || stub.told("failed").await == 1).await;
    let status = stub.stack.json(&["status"]).await;
    let text = status.to_string();
    assert!(text.contains("deleting"), "{status}");
    // It is tried on, and ends when the provider does.
    stub.replace("scaleDown.sh", DOWN);
    wait_for(WITHIN, "it is gone", async || {
        let open = stub.open().await;
        if open == 0 && stub.there().len() == 1 { Ok(()) } else { Err(format!("{open} open")) }
    })
    .await;
    assert_eq!(stub.told("failed").await, 1, "told once in six hours");
}

#[tokio::test]
async fn what_one_group_cannot_buy_says_nothing_of_another_that_names_no_machine() {
    let stub = patient().await;
    let says = r#"printf '{"name":"%s","status":"failed"}\n' "$INSTANCE_NAME"; exit 11"#;
    let up = r#"mkdir "$D/$INSTANCE_NAME" 2>/dev/null; say ready"#;
    stub.replace(
        "scaleUp.sh",
        &format!(r#"case $PROVIDER_CONFIG$CANDIDATE in *'"own":"sold-out"'*|*'}}{{"flavour":"sold-out"}}') {says};; esac; {up}"#),
    );
    // The group's own words for what it buys, in its configuration or in its candidates.
    stub.group(1, 2, json!({"own": "sold-out"})).await;
    let _scaler = stub.stack.scaler("a");
    let failed =
        "SELECT count(*) FROM ops.operations WHERE state = 'failed_clean' AND error_code = 'out_of_stock'";
    wait_until(WITHIN, "the first group finds nothing", async || stub.stack.number(failed).await == 1).await;
    let mut other = stub.config();
    other["candidates"] = json!([{"flavour": "sold-out"}, {"flavour": "plenty"}]);
    stub.stack.group("us", 1, 2, &other).await;
    let made = "SELECT count(*) FROM ops.operations o JOIN ops.servers s ON s.id = o.server_id \
                WHERE s.group_name = 'us' AND o.candidate_index = 1 AND s.provider_id IS NOT NULL";
    wait_until(WITHIN, "the second group buys its second choice", async || {
        stub.stack.number(made).await == 1
    })
    .await;
    assert_eq!(stub.stack.number("SELECT count(*) FROM ops.provider_holds").await, 0);
    let held = "SELECT count(*) FROM ops.scaling_groups WHERE group_name = 'eu' AND no_creates_until > now()";
    assert_eq!(stub.stack.number(held).await, 1, "the group that found nothing rests by itself");
}

#[tokio::test]
async fn a_provider_that_makes_nothing_of_an_order_is_asked_less_and_less_often() {
    let stub = patient().await;
    stub.replace("scaleUp.sh", r#"date +%s.%N >> "$D/../asked"; say absent"#);
    stub.group(1, 1, json!({})).await;
    let _scaler = stub.stack.scaler("a");
    let asked = || -> Vec<f64> {
        let text = std::fs::read_to_string(stub.stack.folder.path().join("asked")).unwrap_or_default();
        text.lines().map(|line| line.parse().expect("a time")).collect()
    };
    wait_until(WITHIN, "asked three times", async || asked().len() >= 3).await;
    let asked = asked();
    // 1 and 2 seconds by the rows; a busy machine starts each script a little later.
    let apart = asked[2] - asked[0];
    assert!(apart >= 2.0, "{asked:?}");
}
