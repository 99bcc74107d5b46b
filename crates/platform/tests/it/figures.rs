//! Aggregates: usage, analytics, funnels, cohorts, costs of language models and their alerts.

use serde_json::{Value, json};
use voiceai_queue::{DeadReason, Inline};

use crate::upkeep::House;

/// The begin of the current UTC day and hour, as SQL.
const DAY: &str = "date_trunc('day', now(), 'UTC')";
const HOUR: &str = "date_trunc('hour', now(), 'UTC')";

#[tokio::test]
async fn usage_is_summed_by_hour_and_day_and_made_up_for() {
    let house = House::new().await;
    house
        .execute(&format!(
            "INSERT INTO usage_events (tenant_id, metric, quantity, occurred_at) VALUES
                 ('a', 'minutes', 1.5, {HOUR} - interval '3 hours'), ('a', 'minutes', 2, {HOUR} - interval '3 hours' + interval '59 min'),
                 ('a', 'minutes', 4, {HOUR} - interval '1 hour'), ('b', 'calls', 1, {HOUR} - interval '1 second'),
                 ('a', 'minutes', 99, {HOUR}), ('a', 'seats', 7, {DAY} - interval '1 hour')"
        ))
        .await;
    let hours = |since: &'static str| {
        let sql = format!(
            "SELECT tenant_id AS t, metric AS m, quantity AS q, events AS n FROM usage_hourly WHERE hour >= {HOUR} - interval '{since}' AND metric <> 'seats' ORDER BY hour, 1"
        );
        let house = &house;
        async move { house.rows(&sql).await }
    };
    house.run("usage.aggregate", json!({"period": "hour"})).await;
    let whole = house.value("SELECT sum(quantity) FROM usage_hourly").await;
    assert_eq!(whole, "15.5", "all whole hours since the first event, and not the running one");
    assert_eq!(
        hours("1 hour").await,
        json!([{"t": "a", "m": "minutes", "q": 4, "n": 1}, {"t": "b", "m": "calls", "q": 1, "n": 1}])
    );
    // One that comes late, in the newest computed hour.
    house.execute(&format!("INSERT INTO usage_events (tenant_id, metric, occurred_at) VALUES ('b', 'calls', {HOUR} - interval '5 min')")).await;
    house.run("usage.aggregate", json!({"period": "hour"})).await;
    assert_eq!(hours("1 hour").await[1]["q"], 2);

    house.run("usage.aggregate", json!({"period": "day"})).await;
    let days = house
        .value(&format!("SELECT sum(quantity) FROM usage_daily WHERE day = ({DAY} - interval '1 day')::date"))
        .await;
    let events = house.value(&format!("SELECT sum(quantity) FROM usage_events WHERE occurred_at < {DAY} AND occurred_at >= {DAY} - interval '1 day'")).await;
    assert_eq!(days, events);
    assert_eq!(house.value("SELECT count(*) FROM usage_daily WHERE day >= now()::date").await, "0");
}

#[tokio::test]
async fn a_day_that_was_swept_is_not_summed_again() {
    let house = House::with(&[("RETENTION_EVENTS", "2d")]).await;
    house.execute("INSERT INTO usage_daily (tenant_id, metric, day, quantity, events) VALUES ('a', 'm', now()::date - 5, 100, 10)").await;
    house.execute("INSERT INTO usage_events (tenant_id, metric, occurred_at) VALUES ('a', 'm', now() - interval '5 days')").await;
    house.run("usage.aggregate", json!({"period": "day"})).await;
    assert_eq!(house.value("SELECT quantity FROM usage_daily").await, "100");
    let from = house.value("to_char(now() - interval '5 days', 'YYYY-MM-DD\"T00:00:00Z\"')").await;
    let ended = house.end("usage.aggregate", json!({"period": "day", "from": from})).await;
    let Inline::Dead { reason: DeadReason::DiscardedByHandler, error } = ended else { panic!("{ended:?}") };
    assert!(error.contains("from") && error.contains("swept"), "{error}");
    let ended = house.end("usage.aggregate", json!({"period": "week"})).await;
    assert!(matches!(ended, Inline::Dead { reason: DeadReason::BadPayload, .. }), "{ended:?}");
}

#[tokio::test]
async fn analytics_have_a_row_for_every_hour_and_day() {
    let house = House::new().await;
    house
        .execute(&format!(
            "INSERT INTO app_users (id, email, created_at) VALUES
                 ('00000000-0000-0000-0000-000000000001', 'a', {DAY} - interval '20 hours'),
                 ('00000000-0000-0000-0000-000000000002', 'b', {DAY} - interval '40 days');
             INSERT INTO analytics_events (event_type, user_id, session_id, page_url, properties, \"timestamp\") VALUES
                 ('page_view', '00000000-0000-0000-0000-000000000001', 's1', '/a', '{{}}', {DAY} - interval '20 hours'),
                 ('page_view', '00000000-0000-0000-0000-000000000001', 's1', '/b', '{{}}', {DAY} - interval '20 hours' + interval '10 min'),
                 ('generation_completed', '00000000-0000-0000-0000-000000000001', 's1', NULL, '{{}}', {DAY} - interval '20 hours' + interval '20 min'),
                 ('page_view', NULL, 's2', '/a', '{{}}', {DAY} - interval '18 hours'),
                 ('api_request', '00000000-0000-0000-0000-000000000002', NULL, NULL, '{{\"response_time_ms\": 100}}', {DAY} - interval '20 hours'),
                 ('api_request', '00000000-0000-0000-0000-000000000002', NULL, NULL, '{{\"response_time_ms\": \"fast\"}}', {DAY} - interval '20 hours'),
                 ('api_error', NULL, NULL, NULL, NULL, {DAY} - interval '20 hours');
             INSERT INTO credit_transactions (user_id, type, amount, balance_before, balance_after, created_at) VALUES
                 ('00000000-0000-0000-0000-000000000001', 'generation', -2, 5, 3, {DAY} - interval '20 hours');
             INSERT INTO invoice_cache (user_id, stripe_invoice_id, status, amount_cents, invoice_date, paid_at) VALUES
                 ('00000000-0000-0000-0000-000000000001', 'i1', 'paid', 1000, now(), {DAY} - interval '3 hours'),
                 ('00000000-0000-0000-0000-000000000001', 'i2', 'open', 5000, now(), NULL);"
        ))
        .await;
    house.run("analytics.aggregate", json!({"period": "hour"})).await;
    let hour = house
        .rows(&format!(
            "SELECT active_users, page_views, api_requests, generations, credits_used, signups, api_errors, avg_response_time_ms \
             FROM analytics_hourly WHERE hour = {DAY} - interval '20 hours'"
        ))
        .await;
    assert_eq!(
        hour,
        json!([{"active_users": 2, "page_views": 2, "api_requests": 2, "generations": 1, "credits_used": 2, "signups": 1,
                "api_errors": 1, "avg_response_time_ms": 100}])
    );
    let quiet = house
        .value(&format!("SELECT page_views FROM analytics_hourly WHERE hour = {DAY} - interval '19 hours'"))
        .await;
    assert_eq!(quiet, "0", "it was looked at");

    house.run("analytics.aggregate", json!({"period": "day"})).await;
    let first = house.rows("SELECT * FROM analytics_daily").await;
    let day = &first[0];
    for (column, value) in [
        ("active_users", json!(2)),
        ("new_users", json!(1)),
        ("generations", json!(1)),
        ("credits_used", json!(2)),
        ("revenue_cents", json!(1000)),
        ("unique_visitors", json!(3)),
        ("page_views", json!(3)),
        ("avg_session_duration_seconds", json!(600)),
        ("bounce_rate", json!(50.0)),
        ("top_pages", json!([{"page": "/a", "count": 2}, {"page": "/b", "count": 1}])),
    ] {
        assert_eq!(day[column], value, "{column}");
    }
    assert_eq!(day["top_events"][0], json!({"event": "page_view", "count": 3}));
    house.run("analytics.aggregate", json!({"period": "day"})).await;
    assert_eq!(house.value("SELECT count(*) FROM analytics_daily").await, "1");
}

#[tokio::test]
async fn a_funnel_counts_steps_in_their_order_and_within_its_window() {
    let house = House::new().await;
    house
        .execute(
            "INSERT INTO analytics_funnels (name, slug, steps, window_days) VALUES
                 ('F', 'f', '[{\"name\": \"Visit\", \"event\": \"visit\"}, {\"name\": \"Try\", \"event\": \"try\"}, {\"name\": \"Buy\", \"event\": \"buy\"}]', 7),
                 ('B', 'bad', '{\"a\": 1}', 7), ('D', 'draft', '[{\"event\": \"visit\"}]', 7);
             UPDATE analytics_funnels SET status = 'draft' WHERE slug = 'draft';
             INSERT INTO analytics_events (event_type, session_id, \"timestamp\") VALUES
                 ('visit', 'all', now() - interval '3 days'), ('try', 'all', now() - interval '2 days'), ('buy', 'all', now() - interval '1 day'),
                 ('visit', 'two', now() - interval '3 days'), ('try', 'two', now() - interval '2 days'),
                 ('try', 'wrong', now() - interval '3 days'), ('visit', 'wrong', now() - interval '2 days'),
                 ('visit', 'one', now() - interval '1 day'), ('visit', 'old', now() - interval '8 days');",
        )
        .await;
    let result = house.run("analytics.funnels", json!({})).await;
    assert_eq!((&result["computed"], &result["refused"][0]["slug"]), (&json!(1), &json!("bad")));
    let funnel = house
        .rows(
            "SELECT total_entered, total_completed, conversion_rate, round(extract(epoch FROM avg_time_to_complete)) AS seconds, step_metrics \
             FROM analytics_funnels WHERE slug = 'f'",
        )
        .await;
    assert_eq!(
        funnel,
        json!([{"total_entered": 4, "total_completed": 1, "conversion_rate": 25.0, "seconds": 172_800, "step_metrics": [
            {"name": "Visit", "event": "visit", "count": 4, "rate": 100.0}, {"name": "Try", "event": "try", "count": 2, "rate": 50.0},
            {"name": "Buy", "event": "buy", "count": 1, "rate": 25.0}]}])
    );
    assert_eq!(
        house.value("SELECT last_computed_at FROM analytics_funnels WHERE slug = 'draft'").await,
        "NULL"
    );
}

#[tokio::test]
async fn a_cohort_is_followed_through_its_periods() {
    let house = House::new().await;
    house
        .execute(&format!(
            "INSERT INTO app_users (id, email, created_at) VALUES
                 ('00000000-0000-0000-0000-000000000001', 'a', {DAY} - interval '2 days'),
                 ('00000000-0000-0000-0000-000000000002', 'b', {DAY} - interval '2 days' + interval '5 hours'),
                 ('00000000-0000-0000-0000-000000000003', 'c', {DAY} - interval '1 day');
             INSERT INTO analytics_events (event_type, user_id, \"timestamp\") VALUES
                 ('x', '00000000-0000-0000-0000-000000000001', {DAY} - interval '2 days'),
                 ('x', '00000000-0000-0000-0000-000000000002', {DAY} - interval '2 days' + interval '6 hours'),
                 ('x', '00000000-0000-0000-0000-000000000001', {DAY} - interval '1 day'),
                 ('x', '00000000-0000-0000-0000-000000000001', {DAY} - interval '1 day' + interval '1 hour');
             INSERT INTO invoice_cache (user_id, stripe_invoice_id, status, amount_cents, invoice_date, paid_at) VALUES
                 ('00000000-0000-0000-0000-000000000003', 'i', 'paid', 500, now(), {DAY});
             INSERT INTO analytics_cohorts (name, slug, granularity, metric) VALUES
                 ('R', 'retention', 'day', 'retention'), ('M', 'money', 'day', 'revenue'), ('E', 'week', 'week', 'engagement'), ('O', 'month', 'month', 'generations');
             INSERT INTO analytics_cohorts (name, slug, cohort_type) VALUES ('C', 'custom', 'custom');"
        ))
        .await;
    let result = house.run("analytics.cohorts", json!({})).await;
    assert_eq!((&result["computed"], &result["refused"][0]["slug"]), (&json!(4), &json!("custom")));
    let data = async |slug: &str| -> Value {
        house.rows(&format!("SELECT cohort_data AS d FROM analytics_cohorts WHERE slug = '{slug}'")).await[0]
            ["d"]
            .clone()
    };
    let label = |days: u8| {
        let sql =
            format!("SELECT to_char(({DAY} - interval '{days} days') AT TIME ZONE 'UTC', 'YYYY-MM-DD')");
        let house = &house;
        async move { house.value(&sql).await }
    };
    let (first, second) = (label(2).await, label(1).await);
    let retention = data("retention").await;
    assert_eq!(retention[&first], json!({"size": 2, "periods": [2, 1, 0]}));
    assert_eq!(retention[&second], json!({"size": 1, "periods": [0, 0]}));
    assert_eq!(data("money").await[&second], json!({"size": 1, "periods": [0, 500]}));
    let week = data("week").await;
    let size: i64 = week.as_object().unwrap().values().map(|line| line["size"].as_i64().unwrap()).sum();
    assert_eq!(size, 3, "{week}");
}

#[tokio::test]
async fn costs_are_summed_without_two_rows_of_one_meaning() {
    let house = House::new().await;
    house
        .execute(&format!(
            "INSERT INTO llm_usage_log (organization_id, provider, model, tier, estimated_cost_cents, total_tokens, latency_ms, success, created_at) VALUES
                 ('00000000-0000-0000-0000-00000000000a', 'p', 'm', 'cheap', 10, 100, 100, true, {HOUR} - interval '30 min'),
                 ('00000000-0000-0000-0000-00000000000a', 'p', 'm', 'cheap', 20, 100, 300, false, {HOUR} - interval '20 min'),
                 (NULL, 'p', 'm', NULL, 5, 10, 200, true, {HOUR} - interval '10 min'),
                 (NULL, 'p', 'm', NULL, 500, 10, 200, true, {HOUR} + interval '1 second')"
        ))
        .await;
    house.run("llm.aggregate", json!({"period": "hour"})).await;
    let all = house
        .rows(
            "SELECT total_requests AS n, failed_requests AS f, total_cost_cents AS c, avg_latency_ms AS avg, p95_latency_ms AS p95 FROM llm_cost_aggregates \
             WHERE organization_id IS NULL AND provider IS NULL AND model IS NULL AND tier IS NULL AND request_type IS NULL",
        )
        .await;
    assert_eq!(all, json!([{"n": 3, "f": 1, "c": 35, "avg": 200, "p95": 300}]));
    let of_one = "SELECT string_agg(total_cost_cents::text, ' ') FROM llm_cost_aggregates \
                  WHERE organization_id IS NOT NULL AND provider IS NULL";
    assert_eq!(house.value(of_one).await, "30");
    let doubles = "SELECT count(*) FROM (SELECT 1 FROM llm_cost_aggregates GROUP BY period_type, period_start, organization_id, provider, model, tier, request_type HAVING count(*) > 1) d";
    assert_eq!(house.value(doubles).await, "0");
    let rows = house.value("SELECT count(*) FROM llm_cost_aggregates").await;
    house.run("llm.aggregate", json!({"period": "hour"})).await;
    assert_eq!(
        house.value("SELECT count(*) FROM llm_cost_aggregates").await,
        rows,
        "computed again, not added"
    );
    // The day before, whole.
    house.execute(&format!("INSERT INTO llm_usage_log (provider, model, estimated_cost_cents, created_at) VALUES ('p', 'm', 7, {DAY} - interval '1 hour')")).await;
    house.run("llm.aggregate", json!({"period": "day"})).await;
    let day = format!(
        "SELECT total_cost_cents >= 7 FROM llm_cost_aggregates WHERE period_type = 'daily' AND period_start = {DAY} - interval '1 day' AND provider IS NULL AND organization_id IS NULL"
    );
    assert_eq!(house.value(&day).await, "true");
}

#[tokio::test]
async fn an_alert_is_told_once_with_its_mail_and_its_history() {
    let house = House::new().await;
    house
        .execute(
            "INSERT INTO llm_budget_alerts (name, alert_type, threshold_cents, notification_emails) VALUES
                 ('Daily', 'daily_limit', 1000, '{boss@example.com}'), ('High', 'monthly_limit', 5000, '{}'), ('Odd', 'yearly', 1, '{}');
             INSERT INTO llm_budget_alerts (name, alert_type, threshold_cents, is_active) VALUES ('Off', 'daily_limit', 1, false);
             INSERT INTO llm_usage_log (provider, model, estimated_cost_cents, created_at) VALUES ('p', 'm', 1200, now());",
        )
        .await;
    let result = house.run("llm.alerts", json!({})).await;
    assert_eq!((&result["alerts"], &result["triggered"]), (&json!(3), &json!(1)));
    assert_eq!(result["unknown"][0]["alert_type"], "yearly");
    let told = house.rows("SELECT kind, queue, payload FROM ops.outbox ORDER BY seq").await;
    assert_eq!((&told[0]["kind"], &told[1]["kind"]), (&json!("notification.send"), &json!("send-email")));
    assert_eq!(told[0]["payload"]["event"], "llm_cost");
    assert!(told[0]["payload"]["reason"].as_str().unwrap().contains("Daily: $12.00"), "{told}");
    assert_eq!(told[1]["payload"]["to"], json!(["boss@example.com"]));
    let history =
        house.rows("SELECT trigger_value_cents AS v, threshold_cents AS t FROM llm_alert_history").await;
    assert_eq!(history, json!([{"v": 1200, "t": 1000}]));
    assert_eq!(house.run("llm.alerts", json!({})).await["triggered"], 0, "once a day");
    assert_eq!(house.value("SELECT trigger_count FROM llm_budget_alerts WHERE name = 'Daily'").await, "1");
}

#[tokio::test]
async fn a_time_at_the_edge_of_time_is_refused_like_any_other() {
    let house = House::new().await;
    for kind in ["usage.aggregate", "analytics.aggregate", "llm.aggregate"] {
        for period in ["hour", "day"] {
            for edge in ["-009999-01-02T01:59:59Z", "9999-12-30T22:00:00Z"] {
                let ended = house.end(kind, json!({"period": period, "to": edge})).await;
                assert!(
                    matches!(&ended, Inline::Dead { error, .. } if !error.contains("panic")),
                    "{kind} {edge}: {ended:?}"
                );
            }
        }
    }
}
