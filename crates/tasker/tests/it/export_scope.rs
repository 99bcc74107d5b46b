//! Whose rows an export may hold: the order's tenant, row security, and the rights of the service's role.

use serde_json::json;
use voiceai_postgres::sqlx::{self, Executor as _, PgPool};
use voiceai_queue::{DeadReason, Inline};
use voiceai_tasker::jobs::export::{Export, ExportError, Format, Order, check};

use crate::export_bench::Bench;

const TABLE: &str = "CREATE TABLE devices (device_id text, tenant_id text);
                     INSERT INTO devices SELECT 'd' || i, 't' || i % 3 FROM generate_series(1, 30) i";

/// A role that stands below the tables' owner, and the service's pool as this role.
async fn as_reader(bench: &mut Bench) -> String {
    let role = format!("reader_{}", bench.database.name);
    bench
        .database
        .execute(&format!(
            "CREATE ROLE \"{role}\" LOGIN; GRANT USAGE ON SCHEMA ops, public TO \"{role}\";
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA ops TO \"{role}\";
             GRANT USAGE ON ALL SEQUENCES IN SCHEMA ops TO \"{role}\""
        ))
        .await;
    let url = bench.database.url.replacen("voiceai@", &format!("{role}@"), 1);
    bench.ctx.pool = PgPool::connect(&url).await.unwrap();
    role
}

async fn refused(bench: &Bench, order: &Export) -> String {
    let end = bench.run(order).await;
    assert!(matches!(end, Inline::Dead { reason: DeadReason::DiscardedByHandler, .. }), "{end:?}");
    let failed = bench.look(order).await;
    assert_eq!(failed.status, "FAILED");
    failed.error.unwrap()
}

#[tokio::test]
async fn row_security_never_leaves_rows_out_without_a_word() {
    let mut bench = Bench::new(TABLE).await;
    let all = bench.order(Format::Csv, None, json!({})).await;
    let role = as_reader(&mut bench).await;
    let error = refused(&bench, &all).await;
    assert!(error.contains("permission denied for table devices") && error.contains("SELECT"), "{error}");

    bench
        .database
        .execute(&format!(
            "GRANT SELECT ON devices TO \"{role}\"; ALTER TABLE devices ENABLE ROW LEVEL SECURITY;
             CREATE POLICY own ON devices USING (tenant_id = current_setting('app.tenant_id', true))"
        ))
        .await;
    for format in [Format::Csv, Format::Ndjson, Format::Parquet] {
        let one = bench.order(format, Some("t1"), json!({})).await;
        assert_eq!(bench.made(&one).await.0.row_count, Some(10), "the policy knows the tenant");
        let all = bench.order(format, None, json!({})).await;
        let error = refused(&bench, &all).await;
        assert!(error.contains("row-level security") && error.contains("BYPASSRLS"), "{error}");
    }
    let order = Order {
        export_type: "devices".to_owned(),
        format: Format::Csv,
        tenant: None,
        filters: json!({}),
        created_by: "tester".to_owned(),
        callback_url: None,
    };
    let before = check(&bench.ctx.pool, &order, &[]).await.unwrap_err();
    assert!(matches!(before, ExportError::Refused { .. }), "refused before it is ordered: {before}");
    check(&bench.ctx.pool, &Order { tenant: Some("t1".to_owned()), ..order }, &[]).await.unwrap();

    // Who is above the policies has everybody's rows.
    bench.ctx.pool = bench.database.pool().await;
    let all = bench.order(Format::Csv, None, json!({})).await;
    assert_eq!(bench.made(&all).await.0.row_count, Some(30));
    bench.database.execute(&format!("DROP OWNED BY \"{role}\"; DROP ROLE \"{role}\"")).await;
}

#[tokio::test]
async fn a_session_of_one_tenant_orders_no_other_export_than_of_its_own_rows() {
    let bench = Bench::new(TABLE).await;
    let mut session = bench.database.connect().await;
    session.execute("SET app.tenant_id = 't1'").await.unwrap();
    for tenant in ["'t2'", "NULL"] {
        let order =
            format!("INSERT INTO ops.export_jobs (tenant_id, export_type) VALUES ({tenant}, 'devices')");
        let error = session.execute(sqlx::AssertSqlSafe(order)).await.unwrap_err().to_string();
        assert!(error.contains("a session of tenant t1"), "{error}");
    }
    let own = "INSERT INTO ops.export_jobs (tenant_id, export_type) VALUES ('t1', 'devices')";
    session.execute(own).await.unwrap();
    session.execute("SET app.tenant_id = ''").await.unwrap();
    session.execute("INSERT INTO ops.export_jobs (export_type) VALUES ('devices')").await.unwrap();
    let jobs: i64 = sqlx::query_scalar("SELECT count(*) FROM ops.outbox WHERE kind = 'export.run'")
        .fetch_one(&mut session)
        .await
        .unwrap();
    assert_eq!(jobs, 2);
}

#[tokio::test]
async fn what_is_filtered_by_is_compared_in_its_columns_own_type() {
    let tables = "CREATE TYPE state AS ENUM ('ONLINE', 'STALE');
        CREATE TABLE devices (device_id int PRIMARY KEY, tenant_id uuid, status state);
        INSERT INTO devices SELECT i, CASE WHEN i % 100 = 0 THEN '00000000-0000-0000-0000-000000000001' ELSE gen_random_uuid() END::uuid,
                                   CASE WHEN i % 2 = 0 THEN 'ONLINE' ELSE 'STALE' END::state FROM generate_series(1, 5000) i;
        CREATE INDEX by_tenant ON devices (tenant_id); ANALYZE devices";
    let bench = Bench::new(tables).await;
    let tenant = Some("00000000-0000-0000-0000-000000000001");
    let filters = json!({ "status": ["ONLINE", "STALE"], "device_ids": ["100", "200", "7"] });
    let order = bench.order(Format::Csv, tenant, filters).await;
    assert_eq!(bench.made(&order).await.0.row_count, Some(2));
    let none = bench.order(Format::Csv, tenant, json!({ "device_ids": [] })).await;
    assert_eq!(bench.made(&none).await.0.row_count, Some(0));
    for (tenant, filters, says) in [
        (Some("acme"), json!({}), "type uuid: \"acme\""),
        (None, json!({ "status": "BROKEN" }), "enum state: \"BROKEN\""),
        (None, json!({ "device_ids": "x" }), "type integer: \"x\""),
    ] {
        let order = bench.order(Format::Csv, tenant, filters).await;
        let error = refused(&bench, &order).await;
        assert!(error.contains(says), "{error}");
    }
    let order = Order {
        export_type: "devices".to_owned(),
        format: Format::Csv,
        tenant: tenant.map(str::to_owned),
        filters: json!({}),
        created_by: "tester".to_owned(),
        callback_url: None,
    };
    let estimate = check(&bench.ctx.pool, &order, &[]).await.unwrap();
    assert!((10..500).contains(&estimate), "{estimate} rows of 50");
}
