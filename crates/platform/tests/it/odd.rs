//! Installations whose tables are of another make: other types of columns, rows that lack what a row should have.

use serde_json::{Value, json};
use voiceai_platform::certificates::CertificateUpkeep;
use voiceai_platform::escalation::{AlertEscalate, EscalationContext, NotificationDispatch};
use voiceai_platform::rollout::RolloutStep;
use voiceai_platform::sla::{SlaContext, SlaReport, SlaSettings};
use voiceai_postgres::sqlx::{PgPool, query_scalar, raw_sql};
use voiceai_queue::Inline;

use crate::duty::{Receiver, run};
use crate::escalation::outgoing;
use crate::stage;
use crate::upkeep::House;

const PLATFORM: &str = include_str!("../../../../tests/fixtures/platform.sql");
const ROWS: &str = include_str!("odd_rows.sql");

/// The platform's tables of another make, filled.
async fn house(tables: &str) -> House {
    let house = House::on(stage::bare().await, &[]).await;
    house.execute(tables).await;
    house.execute(ROWS).await;
    house
}

fn sla(pool: &PgPool) -> SlaContext {
    SlaContext { pool: pool.clone(), settings: SlaSettings { days: 30, recipients: Vec::new() } }
}

/// Runs every job on the rows, and holds what each reports to what it reports on the usual tables.
async fn everything_works(tables: &str) {
    let house = house(tables).await;
    for (kind, payload, wanted) in [
        ("commands.expire", json!({}), json!({"missed": 1, "expired": 1})),
        ("executions.expire", json!({}), json!({"timed_out": 2, "completed": 1})),
        ("credits.reset", json!({}), json!({"users": 1, "credits_granted": 95, "tiers_without_plan": []})),
        ("subscriptions.expire", json!({}), json!({"users": 1})),
        (
            "subscriptions.maintain",
            json!({}),
            json!({"expired": 0, "grace": 1, "refused": 0, "reminded": 1, "renewed": 0, "suspended": 0, "waiting": 0}),
        ),
        ("usage.aggregate", json!({"period": "hour"}), json!({"rows": 50})),
        ("usage.aggregate", json!({"period": "day"}), Value::Null),
        ("analytics.aggregate", json!({"period": "hour"}), json!({"rows": 50})),
        ("analytics.aggregate", json!({"period": "day"}), Value::Null),
        ("llm.aggregate", json!({"period": "hour"}), Value::Null),
        ("llm.aggregate", json!({"period": "day"}), Value::Null),
        ("analytics.cohorts", json!({}), json!({"computed": 2, "refused": []})),
        (
            "newsletter.sync",
            json!({}),
            json!({"engagement": {"rows": 2}, "statuses": {"rows": 1}, "tiers": {"rows": 1}}),
        ),
        (
            "newsletter.sequences",
            json!({}),
            json!({"scheduled": 0, "taken": 1, "completed": 0, "cancelled": 0, "failed": 0}),
        ),
    ] {
        let mut result = house.run(kind, payload).await;
        for window in ["from", "to"] {
            result.as_object_mut().map(|result| result.remove(window));
        }
        assert_ne!(result["skipped"], json!(true), "{kind}: {result}");
        match wanted {
            Value::Null => assert!(result["rows"].as_i64().is_some_and(|rows| rows > 0), "{kind}: {result}"),
            wanted => assert_eq!(result, wanted, "{kind}"),
        }
    }
    let funnels = house.run("analytics.funnels", json!({})).await;
    assert_eq!(
        (&funnels["computed"], &funnels["refused"][0]["slug"]),
        (&json!(1), &json!("bad")),
        "{funnels}"
    );
    let segments = house.run("newsletter.segments", json!({})).await;
    assert_eq!(
        (&segments["joined"], &segments["refused"][0]["slug"]),
        (&json!(2), &json!("badseg")),
        "{segments}"
    );
    let alerts = house.run("llm.alerts", json!({})).await;
    assert_eq!((&alerts["alerts"], &alerts["unknown"]), (&json!(3), &json!([])), "{alerts}");
    assert!(alerts["triggered"].as_i64().is_some_and(|told| told >= 1), "{alerts}");
    for (set, table) in
        [("logs", "audit_log"), ("platform", "email_logs"), ("orchestration", "orchestration_jobs")]
    {
        let swept = house.run("retention.sweep", json!({"set": set})).await;
        assert_eq!(swept[table], json!({"rows": 1}), "{set}: {swept}");
    }
    duties_work(&house.pool).await;
    let states = "SELECT string_agg(subscription_id::text || status::text, ' ' ORDER BY subscription_id) FROM subscriptions";
    assert_eq!(house.value(states).await, "1GRACE 2ACTIVE");
    assert_eq!(
        house.value("SELECT string_agg(status::text, ' ' ORDER BY status::text) FROM device_commands").await,
        "expired missed queued"
    );
    assert_eq!(
        house.value("SELECT status FROM newsletter_subscribers WHERE email = 'u3@x.org'").await,
        "bounced"
    );
    assert_eq!(house.value("SELECT sum(quantity) FROM usage_hourly").await.parse(), Ok(75.0));
}

async fn duties_work(pool: &PgPool) {
    let context = EscalationContext { pool: pool.clone(), outgoing: outgoing(false) };
    let told = run(&AlertEscalate {}, &context).await.unwrap();
    assert_eq!(told, json!({ "escalated": 1, "ended": 0, "failed": [] }));
    let on_call: Value = query_scalar("SELECT payload::jsonb -> 'to' FROM ops.outbox WHERE id LIKE 'escalation:%' AND kind = 'notification.send'")
        .fetch_one(pool)
        .await
        .unwrap();
    assert_eq!(on_call, json!(["x@example.com", "eve@example.com"]));
    let sent = run(&NotificationDispatch {}, &context).await.unwrap();
    assert_eq!(
        (&sent["routed"], &sent["delivered"], &sent["failed"]),
        (&json!(1), &json!(1), &json!(0)),
        "{sent}"
    );
    let report = run(&SlaReport::default(), &sla(pool)).await.unwrap();
    assert_eq!((&report["made"], &report["failed"]), (&json!(1), &json!([])), "{report}");
    let figures: Value = query_scalar("SELECT report FROM ops.sla_reports").fetch_one(pool).await.unwrap();
    assert_eq!(
        (
            &figures["total_devices"],
            &figures["online_devices"],
            &figures["mttr_minutes"],
            &figures["top_devices"][0]["alerts"]
        ),
        (&json!(2), &json!(1), &json!(60.0), &json!(2)),
        "{figures}"
    );
    let certificates = run(&CertificateUpkeep {}, &crate::certificates::bare_context(pool)).await.unwrap();
    assert_eq!((&certificates["expired"], &certificates["warned"]), (&json!(1), &json!(1)), "{certificates}");
    let receiver = Receiver::start(|_| 200).await;
    let rollout = crate::rollout::context(pool, Some(receiver.url()));
    let step = run(&RolloutStep { once: true }, &rollout).await.unwrap();
    assert_eq!((&step["ordered"], &step["stuck"]), (&json!(1), &json!([])), "{step}");
    raw_sql("UPDATE ota_device_status SET status = 'SUCCESS'").execute(pool).await.unwrap();
    let step = run(&RolloutStep { once: true }, &rollout).await.unwrap();
    assert_eq!(step["ended"][0]["status"], "COMPLETED", "{step}");
}

#[tokio::test]
async fn the_usual_tables() {
    everything_works(PLATFORM).await;
}

#[tokio::test]
async fn tenants_whose_id_is_a_uuid() {
    let tables: Vec<_> = PLATFORM
        .lines()
        .map(|line| {
            let is_tenant = line.trim_start().starts_with("tenant_id ");
            if is_tenant { line.replacen(" text", " uuid", 1) } else { line.to_owned() }
        })
        .collect();
    everything_works(&tables.join("\n")).await;
}

#[tokio::test]
async fn ids_that_are_numbers() {
    let keys = PLATFORM.replace(
        "uuid PRIMARY KEY DEFAULT gen_random_uuid()",
        "bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY",
    );
    everything_works(&keys.replace(" uuid ", " bigint ").replace(" uuid,", " bigint,")).await;
}

#[tokio::test]
async fn times_without_a_zone() {
    everything_works(&PLATFORM.replace("timestamptz", "timestamp")).await;
}

#[tokio::test]
async fn plain_json() {
    everything_works(&PLATFORM.replace("jsonb", "json")).await;
}

#[tokio::test]
async fn numbers_of_other_sizes() {
    let large = PLATFORM.replace("integer", "bigint").replace(" serial ", " bigserial ");
    everything_works(&large).await;
    everything_works(&PLATFORM.replace("integer", "smallint")).await;
}

#[tokio::test]
async fn states_that_are_enums() {
    everything_works(&with_enums(PLATFORM)).await;
}

/// Makes an enum of every column that a CHECK holds to a list of words.
fn with_enums(tables: &str) -> String {
    let (mut tables, mut types) = (tables.to_owned(), String::new());
    let mut from = 0;
    while let Some(at) = tables[from..].find("CHECK (").map(|at| from + at) {
        from = at + 1;
        let inner = &tables[at + "CHECK (".len()..];
        let Some((column, list)) = inner.split_once(" IN (") else { continue };
        if !column.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
            continue;
        }
        let (words, _) = list.split_once("))").unwrap();
        let end = at + "CHECK (".len() + column.len() + " IN (".len() + words.len() + "))".len();
        let number = types.len();
        types.push_str(&format!("CREATE TYPE odd_{number} AS ENUM ({words});\n"));
        let start = tables[..at].rfind(&format!("\n    {column} ")).unwrap();
        let definition = tables[start..at].replacen("text", &format!("odd_{number}"), 1);
        let varchar = definition.find("varchar").map(|from| {
            let to = definition[from..].find(')').map_or(from + "varchar".len(), |to| from + to + 1);
            format!("{}odd_{number}{}", &definition[..from], &definition[to..])
        });
        tables.replace_range(start..end, &varchar.unwrap_or(definition));
        from = start + 1;
    }
    assert!(types.lines().count() > 15, "{types}");
    format!("{types}{tables}")
}

/// Takes away what keeps rows whole: NOT NULL, foreign keys and checks.
const LOOSEN: &str = "DO $$ DECLARE one record; BEGIN
    FOR one IN SELECT conrelid::regclass AS t, conname FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f') LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', one.t, one.conname);
    END LOOP;
    FOR one IN SELECT a.attrelid::regclass AS t, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND a.attnotnull
            AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND a.attnum = ANY (i.indkey)) LOOP
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', one.t, one.attname);
    END LOOP;
END $$;";

/// Rows that lack nearly everything, or hold what is out of all bounds, beside the good ones.
const HOLES: &str = "
    INSERT INTO tenants (tenant_id, name) VALUES ('nameless', NULL);
    INSERT INTO app_users (email, subscription_tier, subscription_status, credits_remaining) VALUES (NULL, NULL, 'active', NULL), ('n@x.org', 'free', 'active', NULL);
    INSERT INTO app_users (subscription_tier, subscription_status, subscription_ends_at, created_at) VALUES (NULL, 'canceled', now() - interval '1 day', '-infinity');
    INSERT INTO analytics_funnels (name, slug, steps, window_days) VALUES ('n', NULL, NULL, NULL), ('h', 'huge', '[{\"event\": \"x\"}]', 2000000000);
    INSERT INTO analytics_cohorts (name, slug, cohort_type, granularity, metric) VALUES (NULL, NULL, NULL, NULL, NULL);
    INSERT INTO newsletter_segments (name, slug, criteria) VALUES (NULL, NULL, NULL);
    INSERT INTO llm_budget_alerts (name, alert_type, threshold_cents, notification_emails) VALUES (NULL, NULL, NULL, '{NULL}'), (NULL, 'daily_limit', NULL, NULL);
    INSERT INTO usage_events (tenant_id, metric, quantity, occurred_at) VALUES (NULL, 'minutes', 1, now() - interval '2 hours'), ('t', NULL, 1, now() - interval '2 hours'), ('t', 'm', NULL, now() - interval '2 hours'), ('t', 'm', 1, '-infinity'), ('t', 'm', 1, NULL);
    INSERT INTO usage_hourly VALUES ('t', 'm', '2999-01-01', 1, 1);
    INSERT INTO analytics_events (event_type, properties, \"timestamp\") VALUES ('api_request', '{\"response_time_ms\": 1e300}', now() - interval '2 hours'), (NULL, NULL, '-infinity');
    INSERT INTO fleet_alert (tenant_id, status, created_at, closed_at) VALUES ('11111111-1111-1111-1111-111111111111', 'CLOSED', now(), 'infinity'), (NULL, 'OPEN', NULL, NULL);
    INSERT INTO fleet_alert (tenant_id, status, next_escalation_at) VALUES (NULL, 'OPEN', now() - interval '1 hour');
    INSERT INTO device_certificates (not_after, fingerprint_sha256) VALUES (now() + interval '2 days', NULL);
    INSERT INTO ota_campaigns (tenant_id, name, status, rollout_rate) VALUES (NULL, 'orphan', 'RUNNING', NULL);
    INSERT INTO subscriptions (subscription_id, tenant_id, term_end, status, grace_end) VALUES ('3', '11111111-1111-1111-1111-111111111111', '-infinity', 'GRACE', 'infinity'), ('4', NULL, NULL, NULL, NULL);
    INSERT INTO notification_jobs (status, next_run_at, attempts, deliver_on_event) VALUES ('PENDING', now(), NULL, NULL);
    INSERT INTO notification_routing_rules (tenant_id, channel_id, throttle_minutes) VALUES (NULL, NULL, NULL);
";

#[tokio::test]
async fn a_row_with_holes_keeps_none_of_the_others_from_their_turn() {
    let house = house(PLATFORM).await;
    house.execute(LOOSEN).await;
    house.execute("DROP INDEX fleet_alert_open").await;
    house.execute(HOLES).await;
    let credits = house.run("credits.reset", json!({})).await;
    assert_eq!(
        (&credits["users"], &credits["tiers_without_plan"]),
        (&json!(2), &json!(["(none)"])),
        "{credits}"
    );
    assert_eq!(house.value("SELECT credits_remaining FROM app_users WHERE email = 'n@x.org'").await, "3");
    assert_eq!(house.run("subscriptions.expire", json!({})).await, json!({"users": 2}));
    let funnels = house.run("analytics.funnels", json!({})).await;
    assert_eq!(
        (&funnels["computed"], funnels["refused"].as_array().map(Vec::len)),
        (&json!(1), Some(3)),
        "{funnels}"
    );
    let cohorts = house.run("analytics.cohorts", json!({})).await;
    assert_eq!(
        (&cohorts["computed"], cohorts["refused"].as_array().map(Vec::len)),
        (&json!(2), Some(1)),
        "{cohorts}"
    );
    let segments = house.run("newsletter.segments", json!({})).await;
    assert_eq!(
        (&segments["updated"], segments["refused"].as_array().map(Vec::len)),
        (&json!(1), Some(2)),
        "{segments}"
    );
    let alerts = house.run("llm.alerts", json!({})).await;
    assert_eq!(
        (&alerts["alerts"], alerts["unknown"].as_array().map(Vec::len)),
        (&json!(5), Some(1)),
        "{alerts}"
    );
    assert_eq!(
        house.run("usage.aggregate", json!({"period": "hour"})).await["rows"],
        51,
        "with the tenant whose quantity is empty"
    );
    assert!(house.run("analytics.aggregate", json!({"period": "hour"})).await["rows"].as_i64() > Some(49));
    assert_eq!(house.value("SELECT max(avg_response_time_ms) FROM analytics_hourly").await, "2147483647");
    let maintained = house.run("subscriptions.maintain", json!({})).await;
    assert_eq!((&maintained["grace"], &maintained["suspended"]), (&json!(1), &json!(0)), "{maintained}");
    house.run("llm.aggregate", json!({"period": "hour"})).await;

    let report = run(&SlaReport::default(), &sla(&house.pool)).await.unwrap();
    assert_eq!((&report["made"], &report["failed"]), (&json!(2), &json!([])), "{report}");
    let certificates =
        run(&CertificateUpkeep {}, &crate::certificates::bare_context(&house.pool)).await.unwrap();
    assert_eq!(certificates["warned"], 2, "{certificates}");
    let context = EscalationContext { pool: house.pool.clone(), outgoing: outgoing(false) };
    let told = run(&AlertEscalate {}, &context).await.unwrap();
    assert_eq!((&told["escalated"], &told["failed"]), (&json!(1), &json!([])), "{told}");
    let sent = run(&NotificationDispatch {}, &context).await.unwrap();
    assert_eq!(
        (&sent["delivered"], &sent["failed"]),
        (&json!(2), &json!(1)),
        "{sent}: with the alert of the certificate"
    );
    let receiver = Receiver::start(|_| 200).await;
    let step = run(&RolloutStep { once: true }, &crate::rollout::context(&house.pool, Some(receiver.url())))
        .await
        .unwrap();
    assert_eq!((&step["ordered"], step["stuck"].as_array().map(Vec::len)), (&json!(1), Some(1)), "{step}");
}

#[tokio::test]
async fn one_subscription_that_cannot_be_written_keeps_no_other_from_its_step() {
    let house = house(PLATFORM).await;
    house
        .execute(
            "INSERT INTO subscriptions (subscription_id, tenant_id, term_start, term_end) \
             SELECT '0', tenant_id, term_start, term_end FROM subscriptions WHERE subscription_id = '1'; \
             ALTER TABLE subscriptions ADD CHECK (subscription_id <> '0' OR status <> 'GRACE')",
        )
        .await;
    match house.end("subscriptions.maintain", json!({})).await {
        Inline::Dead { error, .. } => {
            assert!(error.contains("1 could not be maintained, among them 0:"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(house.value("SELECT status FROM subscriptions WHERE subscription_id = '1'").await, "GRACE");
    assert_eq!(
        house.value("SELECT count(*) FROM ops.housekeeping_marks").await,
        "1",
        "the reminder of the other"
    );
}

#[tokio::test]
async fn a_column_of_a_type_that_nobody_expects_is_told_at_once() {
    let house = House::on(stage::bare().await, &[]).await;
    house.execute(PLATFORM).await;
    house.execute("ALTER TABLE ota_campaigns ALTER rollout_strategy DROP DEFAULT; ALTER TABLE analytics_funnels ALTER steps TYPE text").await;
    house.execute("INSERT INTO analytics_funnels (name, slug, steps) VALUES ('f', 'f', 'x')").await;
    match house.end("analytics.funnels", json!({})).await {
        Inline::Dead { error, .. } => assert!(error.contains("read the funnels"), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nobody_to_bring_back_needs_no_free_tier() {
    let house = House::new().await;
    assert_eq!(house.run("subscriptions.expire", json!({})).await, json!({"users": 0}));
    house
        .execute("INSERT INTO app_users (email, subscription_tier, subscription_status, subscription_ends_at) VALUES ('a', 'pro', 'canceled', now() - interval '1 day')")
        .await;
    match house.end("subscriptions.expire", json!({})).await {
        Inline::Dead { error, .. } => assert!(error.contains("SUBSCRIPTION_FREE_TIER"), "{error}"),
        other => panic!("{other:?}"),
    }
}
