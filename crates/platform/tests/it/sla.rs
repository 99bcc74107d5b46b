use serde_json::{Value, json};
use voiceai_platform::sla::{SlaContext, SlaReport, SlaSettings};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{query_as, query_scalar, raw_sql};

use crate::duty::run;
use crate::stage;

fn context(pool: &PgPool, recipients: &[&str]) -> SlaContext {
    let recipients = recipients.iter().map(ToString::to_string).collect();
    SlaContext { pool: pool.clone(), settings: SlaSettings { days: 30, recipients } }
}

#[tokio::test]
async fn every_active_tenant_has_one_report_a_day() {
    let pool = stage::platform().await.pool().await;
    raw_sql(
        "INSERT INTO tenants (tenant_id, name, status, locale, metadata) VALUES
             ('t1', 'Acme', 'ACTIVE', 'de', '{\"sla_report\": {\"recipients\": [\"boss@acme.example\"]}}'),
             ('t2', 'Beta', 'ACTIVE', NULL, '{}'), ('t3', 'Gone', 'SUSPENDED', NULL, '{}');
         INSERT INTO device_registry (tenant_id, device_id) VALUES ('t1', 'd1'), ('t1', 'd2'), ('t1', 'd3'), ('t1', 'd4');
         INSERT INTO device_state (tenant_id, device_id, status) VALUES ('t1', 'd1', 'ONLINE'), ('t1', 'd2', 'STALE'), ('t1', 'd3', 'ONLINE'), ('t2', 'x', 'ONLINE');
         INSERT INTO fleet_alert (tenant_id, device_id, alert_type, fingerprint, status, created_at, closed_at)
         SELECT 't1', 'd' || (n % 7), 'A', n::text, CASE WHEN n <= 3 THEN 'OPEN' ELSE 'CLOSED' END, now() - interval '2 days',
                CASE WHEN n > 3 THEN now() - interval '2 days' + interval '30 minutes' END FROM generate_series(1, 23) n;
         INSERT INTO fleet_alert (tenant_id, device_id, alert_type, fingerprint, status, created_at)
         VALUES ('t1', 'd9', 'A', 'old', 'OPEN', now() - interval '31 days'), ('t2', 'x', 'A', 'x', 'OPEN', now());",
    )
    .execute(&pool)
    .await
    .unwrap();
    let with_ops = context(&pool, &["sla@example.com"]);
    let result = run(&SlaReport::default(), &with_ops).await.unwrap();
    assert_eq!(
        (&result["made"], &result["known"], &result["failed"]),
        (&json!(2), &json!(0), &json!([])),
        "{result}"
    );
    let runs: Vec<(String, String, String, Value)> =
        query_as("SELECT tenant_id, report_type, status, parameters FROM report_runs ORDER BY tenant_id")
            .fetch_all(&pool)
            .await
            .unwrap();
    assert_eq!(runs.len(), 2, "{runs:?}");
    let (tenant, kind, status, report) = &runs[0];
    assert_eq!((tenant.as_str(), kind.as_str(), status.as_str()), ("t1", "sla_summary", "done"));
    assert_eq!(
        (&report["total_devices"], &report["online_devices"], &report["online_pct"]),
        (&json!(4), &json!(2), &json!(50.0))
    );
    assert_eq!(
        (&report["total_alerts"], &report["unresolved_alerts"], &report["mttr_minutes"]),
        (&json!(23), &json!(3), &json!(30.0))
    );
    let top = report["top_devices"].as_array().unwrap();
    assert_eq!((top.len(), &top[0]), (5, &json!({ "device_id": "d1", "alerts": 4 })), "{report}");
    assert!(runs[1].3["mttr_minutes"].is_null());
    let (kept, html, run_id): (Value, String, Option<String>) =
        query_as("SELECT report, html, run_id FROM ops.sla_reports WHERE tenant = 't1'")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert!(&kept == report && html.contains("<h1>Acme</h1>") && run_id.is_some(), "{html}");
    let mails: Vec<(String, Value)> =
        query_as("SELECT id, payload::jsonb FROM ops.outbox ORDER BY id").fetch_all(&pool).await.unwrap();
    let to: Vec<_> = mails
        .iter()
        .map(|(_, notice)| {
            (notice["to"][0].as_str().unwrap(), notice["group"].as_str().unwrap(), notice["locale"].as_str())
        })
        .collect();
    let mut to = to;
    to.sort_unstable();
    assert_eq!(
        to,
        [
            ("boss@acme.example", "Acme", Some("de")),
            ("sla@example.com", "Acme", None),
            ("sla@example.com", "Beta", None)
        ]
    );

    // The same day again: nothing, also when two run at once.
    let again = run(&SlaReport::default(), &with_ops).await.unwrap();
    assert_eq!((&again["made"], &again["known"]), (&json!(0), &json!(2)), "{again}");
    raw_sql("UPDATE ops.sla_reports SET day = day - 1").execute(&pool).await.unwrap();
    let job = SlaReport::default();
    let (a, b) = tokio::join!(run(&job, &with_ops), run(&job, &with_ops));
    assert_eq!(a.unwrap()["made"].as_u64().unwrap() + b.unwrap()["made"].as_u64().unwrap(), 2);
    let runs: i64 = query_scalar("SELECT count(*) FROM report_runs").fetch_one(&pool).await.unwrap();
    assert_eq!(runs, 4);
}

#[tokio::test]
async fn without_the_tables_it_is_skipped() {
    let pool = stage::bare().await.pool().await;
    let result = run(&SlaReport::default(), &context(&pool, &[])).await.unwrap();
    assert_eq!((&result["skipped"], &result["table"]), (&json!(true), &json!("tenants")));
}

#[tokio::test]
async fn a_tenant_that_is_none_is_named() {
    let pool = stage::platform().await.pool().await;
    let context = SlaContext { pool, settings: SlaSettings { days: 30, recipients: Vec::new() } };
    for tenant in ["nobody", "", "a\0b"] {
        let job = SlaReport { tenant: Some(tenant.to_owned()) };
        let error = run(&job, &context).await.expect_err("there is no such tenant");
        assert!(error.contains("tenant") && !error.contains("database"), "{tenant:?}: {error}");
    }
}
