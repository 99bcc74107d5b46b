//! Without the platform's tables every job is done and says what is absent; nothing is written.

use serde_json::json;

use crate::stage;
use crate::upkeep::House;

#[tokio::test]
async fn each_kind_skips_and_names_the_table() {
    let house = House::on(stage::bare().await, &[]).await;
    for (kind, payload, table) in [
        ("commands.expire", json!({}), "device_commands"),
        ("executions.expire", json!({}), "jobs"),
        ("credits.reset", json!({}), "app_users"),
        ("subscriptions.expire", json!({}), "app_users"),
        ("subscriptions.maintain", json!({}), "tenants"),
        ("usage.aggregate", json!({"period": "hour"}), "usage_events"),
        ("usage.aggregate", json!({"period": "day"}), "usage_events"),
        ("analytics.aggregate", json!({"period": "hour"}), "analytics_events"),
        ("analytics.aggregate", json!({"period": "day"}), "analytics_events"),
        ("analytics.funnels", json!({}), "analytics_events"),
        ("analytics.cohorts", json!({}), "app_users"),
        ("newsletter.sync", json!({}), "newsletter_subscribers"),
        ("newsletter.segments", json!({}), "newsletter_subscribers"),
        ("newsletter.sequences", json!({}), "newsletter_subscribers"),
        ("llm.aggregate", json!({"period": "hour"}), "llm_usage_log"),
        ("llm.aggregate", json!({"period": "day"}), "llm_usage_log"),
        ("llm.alerts", json!({}), "llm_usage_log"),
    ] {
        let result = house.run(kind, payload).await;
        let wanted = json!({"skipped": true, "reason": "table absent", "table": table, "columns": []});
        assert_eq!(result, wanted, "{kind}");
    }
    assert_eq!(house.value("SELECT count(*) FROM ops.outbox").await, "0");
}

#[tokio::test]
async fn a_sweep_skips_each_table_by_itself() {
    let house = House::on(stage::bare().await, &[]).await;
    let swept = house.run("retention.sweep", json!({"set": "logs"})).await;
    assert_eq!(swept["audit_log"]["reason"], "table absent");
    assert_eq!(swept["ops.maintenance_log"], json!({"rows": 0}), "our own are there");
    for (set, tables) in [("platform", 8), ("orchestration", 2)] {
        let swept = house.run("retention.sweep", json!({"set": set})).await;
        let swept = swept.as_object().unwrap();
        assert_eq!(swept.len(), tables);
        assert!(swept.values().all(|table| table["skipped"] == true), "{swept:?}");
    }
}

#[tokio::test]
async fn a_table_of_another_make_is_skipped_with_its_columns() {
    let house = House::on(stage::bare().await, &[]).await;
    house.execute("CREATE TABLE device_commands (tenant_id text, command_id text, state text)").await;
    let result = house.run("commands.expire", json!({})).await;
    assert_eq!(result["reason"], "columns absent");
    assert_eq!(result["columns"], json!(["status", "published_at", "expires_at"]));
}
