use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_mail::delivery::DeliveryStatus;
use voiceai_mail::operate::{
    Cursor, DeadFilter, Filter, ResendError, Scope, check_dead, dead_letters, list, pause, pauses, release,
    resend, resume, show,
};
use voiceai_mail::retention::Retention;
use voiceai_mail::settings::Keep;
use voiceai_postgres::{Tenure, Term};
use voiceai_runtime::{Vitals, boot_now};
use voiceai_testkit::wait_until;

use super::support::{Act, Bench, SOON, command, template};

#[tokio::test]
async fn a_list_is_ordered_and_goes_on_where_it_ended() {
    let bench = Bench::new(&[]).await;
    for n in 0..7 {
        bench.accept(command(&format!("d-{n}"), &["a@example.com"])).await;
    }
    // Several of one millisecond are ordered by their ids.
    bench
        .database
        .execute(
            "UPDATE mail.deliveries SET created_at = '2026-01-01T00:00:00.123Z' WHERE delivery_id < 'd-4'",
        )
        .await;
    let (mut ids, mut after) = (Vec::new(), None);
    loop {
        let page = list(&bench.pool, &Filter::default(), after.as_ref(), 3).await.unwrap();
        let Some(last) = page.last() else { break };
        let text = last.cursor().to_string();
        after = Some(text.parse::<Cursor>().unwrap());
        ids.extend(page.into_iter().map(|row| row.delivery_id));
    }
    assert_eq!(ids, ["d-6", "d-5", "d-4", "d-3", "d-2", "d-1", "d-0"]);
    let some = Filter {
        recipient: Some("A@EXAMPLE.com".into()),
        since: Some("2026-06-01T00:00:00Z".parse().unwrap()),
        ..Filter::default()
    };
    assert_eq!(list(&bench.pool, &some, None, 10).await.unwrap().len(), 3);
    let none = Filter { status: Some(DeliveryStatus::Sent), ..Filter::default() };
    assert!(list(&bench.pool, &none, None, 10).await.unwrap().is_empty());
    assert!(show(&bench.pool, "does-not-exist").await.unwrap().is_none());
    assert!(show(&bench.pool, "a\0b").await.unwrap().is_none());
}

#[tokio::test]
async fn a_resend_is_a_new_delivery_to_those_that_were_not_reached() {
    let bench = Bench::new(&[]).await;
    bench.provider.script("no@example.com", &[Act::Refuse]);
    let running = bench.start("one");
    bench.accept(command("d-1", &["ok@example.com", "no@example.com"])).await;
    bench.until_status("d-1", "failed").await;
    let again = resend(&bench.intake, "d-1", Some("k")).await.unwrap();
    let twin = resend(&bench.intake, "d-1", Some("k")).await.unwrap();
    assert_eq!((&again.delivery_id, twin.known), (&twin.delivery_id, true), "one key, one resend");
    bench.until_status(&again.delivery_id, "sent").await;
    let new = show(&bench.pool, &again.delivery_id).await.unwrap().unwrap();
    assert_eq!(new.row.resend_of.as_deref(), Some("d-1"));
    let to: Vec<_> = new.recipient_rows.iter().map(|r| r.address.as_str()).collect();
    assert_eq!(to, ["no@example.com"]);
    let old = show(&bench.pool, "d-1").await.unwrap().unwrap();
    assert_ne!(new.message_id, old.message_id);
    assert_eq!(bench.status("d-1").await, "failed", "the old one is untouched");
    running.stop().await;
    assert!(matches!(resend(&bench.intake, "none", None).await, Err(ResendError::NotFound(_))));
    let catalogue = voiceai_mail::template::Catalogue::load(None, "en", "Delphi").unwrap();
    let sample = serde_json::Value::Object(catalogue.template("auth.login_code").unwrap().sample.clone());
    bench.accept(template("login", "auth.login_code", sample)).await;
    assert!(matches!(resend(&bench.intake, "login", None).await, Err(ResendError::NotKept { .. })));
}

#[tokio::test]
async fn a_dead_letter_goes_back_to_the_foot_of_the_ladder_and_dies_as_one() {
    let bench = Bench::new(&[]).await;
    let three = [Act::Defer(None), Act::Defer(None), Act::Defer(None)];
    bench.provider.script("a@example.com", &[three.as_slice(), &three].concat());
    let running = bench.start("one");
    bench.accept(command("d-1", &["a@example.com", "b@example.com"])).await;
    bench.until_status("d-1", "dead_letter").await;
    let filter = DeadFilter { error_contains: Some("4.2.2".into()), ..DeadFilter::default() };
    let (letters, matched) = dead_letters(&bench.pool, &filter, 10).await.unwrap();
    assert_eq!((letters.len(), matched, letters[0].reason.as_str()), (1, 1, "exhausted"));
    assert_eq!(check_dead(&letters[0], &[]), None);
    pause(&bench.pool, Scope::Provider, "smtp", "down", "kim", Duration::from_secs(60)).await.unwrap();
    let paused = pauses(&bench.pool).await.unwrap();
    assert_eq!(check_dead(&letters[0], &paused).map(|refusal| refusal.code), Some("provider_paused"));
    assert!(resume(&bench.pool, Scope::Provider, "smtp").await.unwrap());
    assert!(release(&bench.pool, &bench.settings.policy, "d-1").await.unwrap());
    assert!(!release(&bench.pool, &bench.settings.policy, "d-1").await.unwrap(), "it is none any more");
    wait_until(SOON, "it died again", async || {
        bench.number("SELECT deaths::bigint FROM mail.dead_letters").await == 2
    })
    .await;
    bench.until_status("d-1", "dead_letter").await;
    assert!(release(&bench.pool, &bench.settings.policy, "d-1").await.unwrap());
    bench.until_status("d-1", "sent").await;
    assert_eq!(bench.number("SELECT count(*) FROM mail.dead_letters").await, 1);
    assert_eq!(bench.provider.contents_of("b@example.com").len(), 1, "who had it is not sent it again");
    assert!(dead_letters(&bench.pool, &DeadFilter::default(), 10).await.unwrap().0.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn a_pause_keeps_a_domains_mail_until_it_is_resumed() {
    let bench = Bench::new(&[]).await;
    pause(&bench.pool, Scope::Domain, "slow.example", "asked to", "kim", Duration::from_secs(3600))
        .await
        .unwrap();
    let running = bench.start("one");
    bench.accept(command("d-1", &["a@slow.example"])).await;
    wait_until(SOON, "it is put aside", async || {
        bench.number("SELECT count(*) FROM mail.attempts WHERE parked IS NOT NULL").await == 1
    })
    .await;
    assert!(resume(&bench.pool, Scope::Domain, "slow.example").await.unwrap());
    bench.until_status("d-1", "sent").await;
    running.stop().await;
}

#[tokio::test]
async fn what_was_kept_long_enough_is_deleted_and_nothing_else() {
    let bench = Bench::new(&[]).await;
    let running = bench.start("one");
    bench.provider.script("dead@example.com", &[Act::Defer(None), Act::Defer(None), Act::Defer(None)]);
    for (id, to) in [("old", "a@example.com"), ("young", "b@example.com"), ("dead", "dead@example.com")] {
        bench.accept(command(id, &[to])).await;
    }
    bench.until_status("old", "sent").await;
    bench.until_status("young", "sent").await;
    bench.until_status("dead", "dead_letter").await;
    running.stop().await;
    bench
        .database
        .execute(
            "UPDATE mail.deliveries SET finished_at = now() - interval '200 d' WHERE delivery_id = 'old'; \
             UPDATE mail.deliveries SET finished_at = now() - interval '8 d' WHERE delivery_id <> 'old'; \
             UPDATE mail.delivery_payloads SET created_at = now() - interval '9 d'; \
             INSERT INTO mail.malformed_commands (stream, stream_entry_id, failure_code, failure_message, fields, recorded_at) \
             VALUES ('s', '1-1', 'c', 'm', '{}', now() - interval '40 d'), ('s', '1-2', 'c', 'm', '{}', now())",
        )
        .await;
    let day = Duration::from_secs(86_400);
    let keep = Keep {
        bodies: 7 * day,
        deliveries: 180 * day,
        malformed: 30 * day,
        every: Duration::from_secs(3600),
    };
    let term = Term { name: "t".into(), number: 1 };
    let tenure = Tenure::new(term, boot_now().saturating_add(day), false);
    let (_tenure, watch) = watch::channel(Some(tenure));
    let (stopping, vitals) = (CancellationToken::new(), Vitals::new());
    let pulse = vitals.register("retention", day);
    let worker = tokio::spawn(Retention::new(bench.pool.clone(), keep).run(watch, stopping.clone(), pulse));
    wait_until(SOON, "the old ones are gone", async || {
        bench.number("SELECT count(*) FROM mail.malformed_commands").await == 1
    })
    .await;
    stopping.cancel();
    worker.await.unwrap();
    assert!(show(&bench.pool, "old").await.unwrap().is_none());
    assert!(!show(&bench.pool, "young").await.unwrap().unwrap().content_kept);
    assert!(
        show(&bench.pool, "dead").await.unwrap().unwrap().content_kept,
        "a dead letter can still be sent back"
    );
    assert_eq!(bench.number("SELECT count(*) FROM mail.attempts WHERE delivery_id = 'old'").await, 0);
}

#[tokio::test]
async fn a_pause_that_is_made_shorter_lets_go_of_what_it_keeps() {
    let bench = Bench::new(&[]).await;
    let pause_for = async |length| {
        pause(&bench.pool, Scope::Domain, "slow.example", "asked to", "kim", length).await.unwrap();
    };
    pause_for(Duration::from_secs(3600)).await;
    let running = bench.start("one");
    bench.accept(command("d-1", &["a@slow.example"])).await;
    wait_until(SOON, "it is put aside", async || {
        bench.number("SELECT count(*) FROM mail.attempts WHERE parked IS NOT NULL").await == 1
    })
    .await;
    pause_for(Duration::from_millis(300)).await;
    bench.until_status("d-1", "sent").await;
    running.stop().await;
}
