//! `newsletter.sync`, `newsletter.segments`, `newsletter.sequences`.

use serde_json::json;

use crate::upkeep::House;

#[tokio::test]
async fn the_list_follows_accounts_bounces_and_engagement() {
    let house = House::new().await;
    house
        .execute(
            "INSERT INTO app_users (email, subscription_tier) VALUES ('Kim@Example.com', 'pro');
             INSERT INTO newsletter_subscribers (email) VALUES ('kim@example.com'), ('gone@example.com'), ('soft@example.com'), ('left@example.com');
             INSERT INTO email_bounce_list (email, bounce_type) VALUES ('GONE@example.com', 'hard'), ('soft@example.com', 'soft'), ('left@example.com', 'unsubscribe');
             INSERT INTO email_events (subscriber_id, event_type)
                 SELECT id, e FROM newsletter_subscribers, unnest(ARRAY['delivered', 'delivered', 'opened', 'clicked']) e WHERE email = 'kim@example.com';",
        )
        .await;
    let result = house.run("newsletter.sync", json!({})).await;
    assert_eq!(result, json!({"tiers": {"rows": 1}, "statuses": {"rows": 2}, "engagement": {"rows": 1}}));
    let list = house
        .value("SELECT string_agg(email || '=' || status || COALESCE('/' || subscription_tier, ''), ' ' ORDER BY email) FROM newsletter_subscribers")
        .await;
    assert_eq!(
        list,
        "gone@example.com=bounced kim@example.com=active/pro left@example.com=unsubscribed soft@example.com=active"
    );
    assert_eq!(
        house
            .value("SELECT engagement_score FROM newsletter_subscribers WHERE email = 'kim@example.com'")
            .await,
        "75.00"
    );
    let again = house.run("newsletter.sync", json!({})).await;
    assert_eq!(again, json!({"tiers": {"rows": 0}, "statuses": {"rows": 0}, "engagement": {"rows": 0}}));
    house.execute("DROP TABLE email_events").await;
    assert_eq!(house.run("newsletter.sync", json!({})).await["engagement"]["reason"], "table absent");
}

#[tokio::test]
async fn segments_are_who_fits_now_and_a_bad_one_stays_as_it_is() {
    let house = House::new().await;
    house
        .execute(
            r#"INSERT INTO newsletter_subscribers (email, subscription_tier, engagement_score, subscribed_at, status) VALUES
                 ('a', 'pro', 80, now(), 'active'), ('b', 'free', 20, now() - interval '30 days', 'active'), ('c', 'pro', 90, now(), 'bounced');
             INSERT INTO newsletter_segments (name, slug, criteria, is_dynamic) VALUES
                 ('P', 'paid', '{"subscription_tier": {"$in": ["pro", "team"]}, "status": "active"}', true),
                 ('N', 'new', '{"subscribed_at": {"$gte": "NOW() - INTERVAL 7 DAY"}}', true),
                 ('L', 'low', '{"engagement_score": {"$lt": 30}}', true),
                 ('B', 'bad', '{"password": "x"}', true), ('H', 'hand', '{}', false);
             INSERT INTO newsletter_segment_members SELECT g.id, s.id FROM newsletter_segments g, newsletter_subscribers s
                 WHERE (g.slug, s.email) IN (('paid', 'b'), ('bad', 'b'), ('hand', 'c'));"#,
        )
        .await;
    let result = house.run("newsletter.segments", json!({})).await;
    assert_eq!((&result["updated"], &result["joined"], &result["left"]), (&json!(4), &json!(4), &json!(1)));
    assert_eq!(result["refused"][0]["slug"], "bad");
    let members = "SELECT string_agg(line, ' ' ORDER BY line) FROM (SELECT g.slug || ':' || string_agg(s.email, '' ORDER BY s.email) || g.subscriber_count AS line \
         FROM newsletter_segments g JOIN newsletter_segment_members m ON m.segment_id = g.id JOIN newsletter_subscribers s ON s.id = m.subscriber_id GROUP BY g.id) x";
    assert_eq!(house.value(members).await, "bad:b0 hand:c1 low:b1 new:ac2 paid:a1");
    let again = house.run("newsletter.segments", json!({})).await;
    assert_eq!((&again["joined"], &again["left"]), (&json!(0), &json!(0)));
}

const SEQUENCE: &str = r#"
    INSERT INTO newsletter_segments (id, name, slug) VALUES ('00000000-0000-0000-0000-0000000000aa', 'S', 's');
    INSERT INTO newsletter_sequences (id, name, slug, active_enrollments) VALUES ('00000000-0000-0000-0000-000000000001', 'W', 'w', 3);
    INSERT INTO newsletter_sequence_steps (sequence_id, step_order, name, delay_value, delay_unit, action_type, subject, content_text, action_config) VALUES
        ('00000000-0000-0000-0000-000000000001', 1, 'mail', 1, 'hours', 'email', 'Hello', 'Text', '{}'),
        ('00000000-0000-0000-0000-000000000001', 3, 'tag', 2, 'days', 'tag', NULL, NULL, '{"tag": "welcomed"}'),
        ('00000000-0000-0000-0000-000000000001', 4, 'segment', 0, 'minutes', 'segment', NULL, NULL, '{"segment_id": "00000000-0000-0000-0000-0000000000aa"}');
    INSERT INTO newsletter_subscribers (id, email, status) VALUES
        ('00000000-0000-0000-0000-00000000000a', 'kim@example.com', 'active'), ('00000000-0000-0000-0000-00000000000b', 'gone@example.com', 'unsubscribed');
    INSERT INTO newsletter_sequence_enrollments (sequence_id, subscriber_id, enrolled_at) VALUES
        ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000a', now() - interval '90 minutes'),
        ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000b', now() - interval '90 minutes');"#;

#[tokio::test]
async fn a_sequence_takes_each_step_once_and_in_its_time() {
    let house = House::new().await;
    house.execute(SEQUENCE).await;
    let result = house.run("newsletter.sequences", json!({})).await;
    assert_eq!(result, json!({"scheduled": 2, "taken": 1, "completed": 0, "cancelled": 1, "failed": 0}));
    let mails = house.rows("SELECT kind, payload FROM ops.outbox").await;
    assert_eq!(mails.as_array().unwrap().len(), 1, "{mails}");
    assert_eq!(mails[0]["payload"]["to"], json!(["kim@example.com"]));
    assert!(mails[0]["payload"]["idempotency_key"].as_str().unwrap().starts_with("sequence:"), "{mails}");
    let progress = "SELECT current_step || ' ' || status || ' ' || (next_step_at > now() + interval '47 hours') FROM newsletter_sequence_enrollments WHERE subscriber_id = '00000000-0000-0000-0000-00000000000a'";
    assert_eq!(house.value(progress).await, "1 active true");
    let idle = json!({"scheduled": 0, "taken": 0, "completed": 0, "cancelled": 0, "failed": 0});
    assert_eq!(
        house.run("newsletter.sequences", json!({})).await,
        idle,
        "not before its time, and not twice"
    );

    house
        .execute("UPDATE newsletter_sequence_enrollments SET next_step_at = now() WHERE status = 'active'")
        .await;
    assert_eq!(house.run("newsletter.sequences", json!({})).await["taken"], 1);
    assert_eq!(
        house.value("SELECT interests FROM newsletter_subscribers WHERE email LIKE 'kim%'").await,
        "{welcomed}"
    );
    assert_eq!(house.run("newsletter.sequences", json!({})).await["taken"], 1, "the last one has no delay");
    assert_eq!(house.value("SELECT count(*) FROM newsletter_segment_members").await, "1");
    let ended = house
        .rows("SELECT total_completed AS done, active_enrollments AS active FROM newsletter_sequences")
        .await;
    assert_eq!(ended, json!([{"done": 1, "active": 1}]));
    assert_eq!(
        house.value("SELECT emails_sent FROM newsletter_sequence_steps WHERE step_order = 1").await,
        "1"
    );
}

#[tokio::test]
async fn a_step_that_cannot_be_taken_ends_that_enrollment_alone() {
    let house = House::new().await;
    house.execute(SEQUENCE).await;
    house.execute("UPDATE newsletter_sequence_steps SET content_text = NULL WHERE step_order = 1").await;
    let result = house.run("newsletter.sequences", json!({})).await;
    assert_eq!((&result["failed"], &result["cancelled"]), (&json!(1), &json!(1)));
    assert_eq!(house.value("SELECT count(*) FROM ops.outbox").await, "0");
    house.execute("UPDATE newsletter_sequences SET status = 'paused'; UPDATE newsletter_sequence_enrollments SET status = 'active', next_step_at = now()").await;
    assert_eq!(house.run("newsletter.sequences", json!({})).await["cancelled"], 0, "a paused sequence rests");
}

#[tokio::test]
async fn one_enrollment_that_cannot_be_written_and_a_delay_beyond_all_bounds_hold_up_nobody() {
    let house = House::new().await;
    house
        .execute(
            "INSERT INTO newsletter_sequences (name, slug, active_enrollments) VALUES ('q', 'q', 2);
             INSERT INTO newsletter_sequence_steps (sequence_id, step_order, name, delay_value, delay_unit, action_type, action_config)
                 SELECT id, 1, 'one', 0, 'days', 'tag', '{\"tag\": \"x\"}'::jsonb FROM newsletter_sequences
                 UNION ALL SELECT id, 2, 'two', 2147483647, 'weeks', 'tag', '{\"tag\": \"y\"}'::jsonb FROM newsletter_sequences;
             INSERT INTO newsletter_subscribers (email) VALUES ('bad'), ('good');
             ALTER TABLE newsletter_subscribers ADD CHECK (email <> 'bad' OR interests IS NULL);
             INSERT INTO newsletter_sequence_enrollments (sequence_id, subscriber_id, next_step_at)
                 SELECT q.id, s.id, now() - CASE s.email WHEN 'bad' THEN interval '1 hour' ELSE interval '1 minute' END
                 FROM newsletter_sequences q, newsletter_subscribers s;",
        )
        .await;
    let result = house.run("newsletter.sequences", json!({})).await;
    assert_eq!((&result["taken"], &result["failed"]), (&json!(1), &json!(1)), "{result}");
    let states = "SELECT string_agg(s.email || '=' || e.status || e.current_step, ' ' ORDER BY s.email) \
         FROM newsletter_sequence_enrollments e JOIN newsletter_subscribers s ON s.id = e.subscriber_id";
    assert_eq!(house.value(states).await, "bad=failed0 good=active1");
    assert_eq!(house.value("SELECT active_enrollments FROM newsletter_sequences").await, "1");
    assert_eq!(house.run("newsletter.sequences", json!({})).await["failed"], 0, "once");
}
