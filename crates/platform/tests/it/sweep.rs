//! `retention.sweep`.

use serde_json::json;
use voiceai_queue::{DeadReason, Inline};

use crate::upkeep::House;

#[tokio::test]
async fn what_is_old_goes_in_batches_and_what_is_not_stays() {
    let house = House::with(&[("HOUSEKEEPING_BATCH_SIZE", "40"), ("HOUSEKEEPING_BATCH_PAUSE", "1ms")]).await;
    house
        .execute(
            r#"INSERT INTO audit_log (event_type, "timestamp") SELECT 'x', now() - n * interval '73 days' FROM generate_series(1, 100) n;
            INSERT INTO subscription_audit (tenant_id, event_type, event_timestamp)
                VALUES ('t', 'old', now() - interval '731 days'), ('t', 'new', now() - interval '729 days');
            INSERT INTO subscription_notifications (tenant_id, notification_type, scheduled_at, status, created_at)
                VALUES ('t', 'sent', now(), 'SENT', now() - interval '91 days'),
                       ('t', 'pending', now(), 'PENDING', now() - interval '91 days'),
                       ('t', 'young', now(), 'SENT', now() - interval '89 days');"#,
        )
        .await;
    let swept = house.run("retention.sweep", json!({"set": "logs"})).await;
    assert_eq!(swept["audit_log"], json!({"rows": 96}), "4 of 73 days each are within a year");
    assert_eq!(house.value("SELECT count(*) FROM audit_log").await, "4");
    assert_eq!(house.rows("SELECT event_type FROM subscription_audit").await, json!([{"event_type": "new"}]));
    assert_eq!(
        house.rows("SELECT notification_type AS t FROM subscription_notifications ORDER BY 1").await,
        json!([{"t": "pending"}, {"t": "young"}])
    );
    let log = house
        .rows(
            "SELECT job_name, status, rows_affected, error_message, completed_at IS NOT NULL AS ended FROM ops.maintenance_log \
             WHERE details ->> 'table' = 'audit_log'",
        )
        .await;
    let entry = json!({"job_name": "retention.sweep", "status": "COMPLETED", "rows_affected": 96, "error_message": null, "ended": true});
    assert_eq!(log, json!([entry]));
    let again = house.run("retention.sweep", json!({"set": "logs"})).await;
    assert_eq!(again["audit_log"], json!({"rows": 0}));
}

#[tokio::test]
async fn the_platforms_tables_keep_what_is_not_done_with() {
    let house = House::new().await;
    house
        .execute(
            "INSERT INTO payment_webhooks (event_type, event_id, processed, created_at) VALUES
                 ('x', 'old', true, now() - interval '31 days'), ('x', 'unprocessed', false, now() - interval '31 days'),
                 ('x', 'young', true, now() - interval '29 days');
             INSERT INTO analytics_events (event_type, \"timestamp\") VALUES ('old', now() - interval '91 days'), ('young', now());
             INSERT INTO usage_events (tenant_id, metric, occurred_at) VALUES ('t', 'old', now() - interval '91 days'), ('t', 'young', now());
             INSERT INTO email_logs (to_email, created_at) VALUES ('old', now() - interval '181 days'), ('young', now());
             INSERT INTO email_queue (to_email, status, attempts, created_at) VALUES
                 ('sent', 'sent', 1, now() - interval '181 days'), ('retried', 'failed', 1, now() - interval '181 days'),
                 ('final', 'failed', 3, now() - interval '181 days'), ('pending', 'pending', 0, now() - interval '181 days');
             INSERT INTO email_bounce_list (email, bounce_type, expires_at) VALUES
                 ('soft', 'soft', now() - interval '1 second'), ('hard', 'hard', NULL), ('later', 'soft', now() + interval '1 day');
             INSERT INTO analytics_reports (name, slug, cached_data, cached_at, cache_ttl_seconds) VALUES
                 ('a', 'stale', '{}', now() - interval '2 hours', 3600), ('b', 'fresh', '{}', now(), 3600);
             INSERT INTO projects (id, name) VALUES ('00000000-0000-0000-0000-000000000001', 'p');
             INSERT INTO github_analysis_cache (project_id, period_start, period_end, expires_at) VALUES
                 ('00000000-0000-0000-0000-000000000001', '2026-01-01', '2026-01-02', now() - interval '1 day'),
                 ('00000000-0000-0000-0000-000000000001', '2026-01-02', '2026-01-03', now() + interval '1 day');",
        )
        .await;
    let swept = house.run("retention.sweep", json!({"set": "platform"})).await;
    for (table, rows) in [
        ("payment_webhooks", 1),
        ("analytics_events", 1),
        ("usage_events", 1),
        ("email_logs", 1),
        ("email_queue", 2),
        ("email_bounce_list", 1),
        ("github_analysis_cache", 1),
        ("analytics_reports", 1),
    ] {
        assert_eq!(swept[table], json!({"rows": rows}), "{table}");
    }
    let left = |sql: &'static str| house.value(sql);
    assert_eq!(
        left("SELECT string_agg(event_id, ' ' ORDER BY event_id) FROM payment_webhooks").await,
        "unprocessed young"
    );
    assert_eq!(
        left("SELECT string_agg(to_email, ' ' ORDER BY to_email) FROM email_queue").await,
        "pending retried"
    );
    assert_eq!(
        left("SELECT string_agg(email, ' ' ORDER BY email) FROM email_bounce_list").await,
        "hard later"
    );
    assert_eq!(
        left("SELECT string_agg(slug, ' ') FROM analytics_reports WHERE cached_data IS NULL").await,
        "stale"
    );
    assert_eq!(left("SELECT count(*) FROM analytics_events WHERE event_type = 'young'").await, "1");
}

#[tokio::test]
async fn runs_of_agents_go_with_their_logs_and_never_before_their_children() {
    let house = House::with(&[("HOUSEKEEPING_BATCH_SIZE", "1"), ("HOUSEKEEPING_BATCH_PAUSE", "0ms")]).await;
    house
        .execute(
            "INSERT INTO orchestration_jobs (id, job_type, triggered_by, status, parent_job_id, date_created, completed_at) VALUES
                 ('00000000-0000-0000-0000-00000000000a', 'batch', 'cron', 'failed', NULL, now() - interval '10 days', now() - interval '10 days'),
                 ('00000000-0000-0000-0000-00000000000b', 'retry', 'cron', 'completed', '00000000-0000-0000-0000-00000000000a', now() - interval '9 days', now() - interval '9 days'),
                 ('00000000-0000-0000-0000-00000000000c', 'batch', 'cron', 'failed', NULL, now() - interval '10 days', now() - interval '10 days'),
                 ('00000000-0000-0000-0000-00000000000d', 'retry', 'cron', 'running', '00000000-0000-0000-0000-00000000000c', now() - interval '10 days', NULL),
                 ('00000000-0000-0000-0000-00000000000e', 'batch', 'cron', 'completed', NULL, now() - interval '40 days', now() - interval '1 day');
             INSERT INTO orchestration_execution_logs (job_id, agent_slug, date_created) VALUES
                 ('00000000-0000-0000-0000-00000000000b', 'x', now() - interval '9 days'),
                 ('00000000-0000-0000-0000-00000000000e', 'old', now() - interval '31 days'),
                 ('00000000-0000-0000-0000-00000000000e', 'kept', now() - interval '29 days');",
        )
        .await;
    let swept = house.run("retention.sweep", json!({"set": "orchestration"})).await;
    assert_eq!(swept["orchestration_jobs"], json!({"rows": 2}), "the old pair, child first");
    assert_eq!(
        house.value("SELECT string_agg(right(id::text, 1), '' ORDER BY id) FROM orchestration_jobs").await,
        "cde"
    );
    assert_eq!(
        house.value("SELECT string_agg(agent_slug, ' ') FROM orchestration_execution_logs").await,
        "kept"
    );
}

#[tokio::test]
async fn a_row_that_somebody_holds_is_left_for_later_and_a_table_that_fails_fails_alone() {
    let house = House::with(&[("HOUSEKEEPING_BATCH_PAUSE", "0ms")]).await;
    house
        .execute(
            "INSERT INTO email_logs (to_email, created_at) VALUES ('held', now() - interval '300 days'), ('free', now() - interval '300 days');
             INSERT INTO payment_webhooks (event_type, event_id, processed, created_at) VALUES ('x', 'x', true, now() - interval '90 days');
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$;
             CREATE TRIGGER refuse BEFORE DELETE ON payment_webhooks FOR EACH ROW EXECUTE FUNCTION refuse();",
        )
        .await;
    let mut holder = house.pool.begin().await.unwrap();
    voiceai_postgres::sqlx::query("SELECT 1 FROM email_logs WHERE to_email = 'held' FOR UPDATE")
        .execute(&mut *holder)
        .await
        .unwrap();
    let ended = house.end("retention.sweep", json!({"set": "platform"})).await;
    assert!(matches!(&ended, Inline::Retry { error, .. } if error.contains("not this one")), "{ended:?}");
    assert_eq!(house.value("SELECT string_agg(to_email, ' ') FROM email_logs").await, "held");
    let log = house
        .rows("SELECT status, error_message FROM ops.maintenance_log WHERE details ->> 'table' = 'payment_webhooks'")
        .await;
    assert_eq!(log[0]["status"], "FAILED");
    assert!(log[0]["error_message"].as_str().unwrap().contains("not this one"), "{log}");
    holder.rollback().await.unwrap();

    let wrong = house.end("retention.sweep", json!({"set": "platform", "tables": ["users"]})).await;
    let Inline::Dead { reason: DeadReason::DiscardedByHandler, error } = wrong else { panic!("{wrong:?}") };
    assert!(error.contains("`users`") && error.contains("payment_webhooks"), "{error}");
    let one = house.run("retention.sweep", json!({"set": "platform", "tables": ["email_logs"]})).await;
    assert_eq!(one, json!({"email_logs": {"rows": 1}}));
}

#[tokio::test]
async fn a_view_is_passed_over_and_every_table_that_is_of_another_make_is_named() {
    let house = House::with(&[("HOUSEKEEPING_BATCH_PAUSE", "0ms")]).await;
    house
        .execute(
            "INSERT INTO email_logs (to_email, created_at) VALUES ('old', now() - interval '300 days');
             ALTER TABLE email_logs RENAME TO email_logs_kept;
             CREATE VIEW email_logs AS SELECT * FROM email_logs_kept;",
        )
        .await;
    let swept = house.run("retention.sweep", json!({"set": "platform"})).await;
    assert_eq!(
        (&swept["email_logs"]["skipped"], &swept["payment_webhooks"]["rows"]),
        (&json!(true), &json!(0)),
        "{swept}"
    );
    assert_eq!(house.value("SELECT count(*) FROM email_logs_kept").await, "1");
    house
        .execute(
            "ALTER TABLE usage_events ALTER occurred_at TYPE text;
             ALTER TABLE payment_webhooks ALTER processed DROP DEFAULT, ALTER processed TYPE text;",
        )
        .await;
    let ended = house.end("retention.sweep", json!({"set": "platform"})).await;
    let Inline::Dead { reason: DeadReason::DiscardedByHandler, error } = ended else { panic!("{ended:?}") };
    assert!(
        error.starts_with("payment_webhooks: it was not swept") && error.ends_with("nor were usage_events"),
        "{error}"
    );
}
