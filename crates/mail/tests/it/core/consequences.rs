//! What follows from an attempt's end beside its own row: a suppressed address, a notice to the operators.

use serde_json::{Value, json};
use voiceai_mail::Address;
use voiceai_mail::intake::Source;
use voiceai_mail::suppression::{self, Entry, Reason};
use voiceai_postgres::sqlx;
use voiceai_testkit::wait_until;

use super::support::{Act, Bench, SOON, command, template};

#[tokio::test]
async fn a_mailbox_that_is_not_there_is_left_alone_for_a_while_by_login_codes_too() {
    let bench = Bench::new(&[]).await;
    bench.provider.script("Gone@example.com", &[Act::Gone]);
    bench.provider.script("no@example.com", &[Act::Refuse]);
    let running = bench.start("one");
    bench.accept(command("d-1", &["Gone@example.com", "no@example.com"])).await;
    bench.until_status("d-1", "failed").await;
    let entries = suppression::suppressions(&bench.pool, None, None, 10).await.unwrap();
    let [entry] = entries.as_slice() else { panic!("{entries:?}") };
    assert_eq!((entry.address.as_str(), entry.reason.as_str()), ("gone@example.com", "hard_bounce"));
    assert_eq!(
        (entry.origin.as_deref(), entry.detail.as_deref()),
        (Some("d-1"), Some("550 5.1.1 no such user"))
    );
    let days = entry.expires_at.expect("an end").duration_since(entry.created_at).as_hours() / 24;
    assert!((29..=30).contains(&days), "{entry:?}");
    bench.accept(command("d-2", &["gone@EXAMPLE.com"])).await;
    bench.until_status("d-2", "suppressed").await;
    let mut code = template("code", "auth.login_code", json!({ "code": "482913" }));
    code.to = vec!["gone@example.com".to_owned()];
    bench.accept(code).await;
    bench.until_status("code", "suppressed").await;
    // A person knows better.
    suppression::unsuppress(&bench.pool, &Address::parse("gone@example.com").unwrap()).await.unwrap();
    bench.accept(command("d-3", &["gone@example.com"])).await;
    bench.until_status("d-3", "sent").await;
    running.stop().await;
}

#[tokio::test]
async fn with_no_time_set_nobody_is_suppressed_for_a_refusal() {
    let bench = Bench::new(&[("MAIL_HARD_BOUNCE_SUPPRESSION", "0s")]).await;
    bench.provider.script("gone@example.com", &[Act::Gone]);
    let running = bench.start("one");
    bench.accept(command("d-1", &["gone@example.com"])).await;
    bench.until_status("d-1", "failed").await;
    assert_eq!(bench.number("SELECT count(*) FROM mail.suppressions").await, 0);
    running.stop().await;
}

#[tokio::test]
async fn of_two_entries_the_longer_stays_and_an_operators_word_is_the_last() {
    let bench = Bench::new(&[]).await;
    let write = async |reason: Reason, days: Option<u64>| {
        let lasts = days.map(|days| std::time::Duration::from_secs(days * 86_400));
        let entry = Entry {
            address: "a@example.com",
            tenant: None,
            class: None,
            reason,
            detail: "d",
            origin: "o",
            lasts,
        };
        suppression::record(&bench.pool, &entry).await.unwrap();
        let entries = suppression::suppressions(&bench.pool, Some("A@example.com"), None, 10).await.unwrap();
        assert_eq!(entries.len(), 1);
        (entries[0].reason.clone(), entries[0].expires_at.is_some())
    };
    let is = |reason: Reason, ends: bool| (reason.as_str().to_owned(), ends);
    assert_eq!(write(Reason::SoftBounce, Some(30)).await, is(Reason::SoftBounce, true));
    assert_eq!(write(Reason::HardBounce, Some(1)).await, is(Reason::SoftBounce, true), "shorter");
    assert_eq!(write(Reason::HardBounce, None).await, is(Reason::HardBounce, false), "for good");
    assert_eq!(write(Reason::Complaint, None).await, is(Reason::HardBounce, false));
    assert_eq!(write(Reason::Operator, Some(7)).await, is(Reason::Operator, true));
    assert_eq!(write(Reason::HardBounce, None).await, is(Reason::Operator, true), "a person has decided");
    bench.database.execute("UPDATE mail.suppressions SET expires_at = now() - interval '1 s'").await;
    assert_eq!(write(Reason::SoftBounce, Some(30)).await, is(Reason::SoftBounce, true), "that is over");
}

#[tokio::test]
async fn dead_letters_tell_the_operators_together_and_a_notice_never_tells_of_itself() {
    let bench = Bench::new(&[("MAIL_RETRY_LADDER", "10ms")]).await;
    let give_up = [Act::Defer(None), Act::Defer(None)];
    for n in 0..6 {
        bench.provider.script(&format!("a{n}@example.com"), &give_up);
    }
    let running = bench.start("one");
    let mut notice = command("notice", &["a0@example.com"]);
    notice.source = Source::Platform;
    bench.accept(notice).await;
    bench.until_status("notice", "dead_letter").await;
    assert_eq!(bench.number("SELECT count(*) FROM ops.outbox").await, 0, "that would go round and round");
    for n in 1..6 {
        bench.accept(command(&format!("d-{n}"), &[&format!("a{n}@example.com")])).await;
    }
    wait_until(SOON, "all are dead", async || {
        bench.number("SELECT count(*) FROM mail.dead_letters").await == 6
    })
    .await;
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("SELECT queue, kind, payload::text FROM ops.outbox ORDER BY seq")
            .fetch_all(&bench.pool)
            .await
            .unwrap();
    // One a minute; the minute may have ended meanwhile.
    assert!((1..=2).contains(&rows.len()), "{rows:?}");
    let (queue, kind, payload) = &rows[0];
    assert_eq!((queue.as_str(), kind.as_str()), ("email-queue", "notification.send"));
    let payload: Value = serde_json::from_str(payload).unwrap();
    assert_eq!((&payload["event"], &payload["group"]), (&json!("dead_letters"), &json!("mail")), "{payload}");
    let reason = payload["reason"].as_str().unwrap();
    assert!(
        reason.contains("d-") && reason.contains("exhausted") && reason.contains("4.2.2 full"),
        "{payload}"
    );
    assert!(reason.contains("mail list --status dead_letter"), "{payload}");
    assert!(payload["at"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{payload}");
    running.stop().await;
}
