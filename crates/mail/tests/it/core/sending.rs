use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use voiceai_testkit::wait_until;

use super::support::{Act, Bench, ELECTION, SOON, command, gate};

#[tokio::test]
async fn every_recipient_has_an_envelope_and_an_end_of_its_own() {
    let bench = Bench::new(&[]).await;
    bench.provider.script("no@example.com", &[Act::Refuse]);
    bench.provider.script("slow@example.com", &[Act::Defer(None)]);
    let running = bench.start("one");
    bench.accept(command("d-1", &["ok@example.com", "no@example.com", "slow@example.com"])).await;
    bench.until_status("d-1", "failed").await;
    assert_eq!(
        bench.attempts("d-1").await,
        "provider_accepted provider_rejected transport_failed provider_accepted"
    );
    let ends = bench
        .text("SELECT string_agg(status, ' ' ORDER BY position) FROM mail.delivery_recipients WHERE delivery_id = $1", "d-1")
        .await;
    assert_eq!(ends, "sent failed sent");
    let said = bench
        .text("SELECT string_agg(concat_ws('|', phase, code, detail, host), ' ') FROM mail.attempts WHERE delivery_id = $1 AND status = 'provider_rejected'", "d-1")
        .await;
    assert_eq!(said, "final|550|550 5.1.1 no such user|sink:25");
    running.stop().await;
    assert_eq!(
        bench.number("SELECT count(*) FROM mail.workers").await,
        0,
        "a process that stops leaves the list"
    );
}

#[tokio::test]
async fn every_attempt_sends_the_same_bytes_and_the_end_of_the_ladder_is_one_dead_letter() {
    let bench = Bench::new(&[]).await;
    for to in ["a@example.com", "b@example.com"] {
        bench.provider.script(to, &[Act::Defer(None), Act::Unknown, Act::TimeOut]);
    }
    let running = bench.start("one");
    bench.accept(command("d-1", &["a@example.com", "b@example.com"])).await;
    bench.until_status("d-1", "dead_letter").await;
    assert_eq!(
        bench.attempts("d-1").await,
        "transport_failed unknown timed_out transport_failed unknown timed_out"
    );
    let sent = bench.provider.contents_of("a@example.com");
    assert!(sent.len() == 2 && sent[0] == sent[1], "the same bytes each time");
    let dead = bench
        .text(
            "SELECT concat_ws('|', reason, deaths, error) FROM mail.dead_letters WHERE delivery_id = $1",
            "d-1",
        )
        .await;
    assert!(dead.starts_with("exhausted|1|timed_out mail"), "{dead}");
    running.stop().await;
}

#[tokio::test]
async fn an_idle_process_starts_at_once_and_never_runs_more_than_its_slots() {
    let bench = Bench::new(&[("MAIL_ATTEMPT_WORKER_CONCURRENCY", "3")]).await;
    let running = bench.start("one");
    bench.accept(command("warm", &["w@example.com"])).await;
    bench.until_status("warm", "sent").await;
    // The poll interval is 5 s: only the wake-up can be faster.
    let begun = Instant::now();
    bench.accept(command("d-1", &["a@example.com"])).await;
    bench.until_status("d-1", "sent").await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    for n in 0..3 {
        bench.provider.script(&format!("h{n}@example.com"), &[Act::HangBefore]);
        bench.accept(command(&format!("h-{n}"), &[&format!("h{n}@example.com")])).await;
    }
    wait_until(SOON, "three attempts hang", async || bench.provider.running.load(Ordering::SeqCst) == 3)
        .await;
    bench.accept(command("d-2", &["b@example.com"])).await;
    // They are handed back when the drain is over; another process takes them all.
    running.stop().await;
    assert_eq!(bench.status("d-2").await, "queued");
    assert_eq!(bench.attempts("h-0").await, "scheduled", "not begun, handed back, and no attempt burned");
    assert_eq!(bench.provider.most.load(Ordering::SeqCst), 3);
    let other = bench.start("two");
    for id in ["h-0", "h-1", "h-2", "d-2"] {
        bench.until_status(id, "sent").await;
    }
    other.stop().await;
}

#[tokio::test]
async fn a_fault_of_the_provider_rests_all_sending_and_burns_no_attempt() {
    let bench = Bench::new(&[]).await;
    bench.provider.script("a@example.com", &[Act::Fault, Act::Fault, Act::Fault, Act::Fault]);
    let running = bench.start("one");
    bench.accept(command("d-1", &["a@example.com"])).await;
    wait_until(SOON, "the provider rests", async || {
        bench.number("SELECT count(*) FROM mail.pauses WHERE automatic").await == 1
    })
    .await;
    bench.accept(command("d-2", &["b@example.com"])).await;
    // Four faults on a ladder of two rungs: it is sent in the end, so none was climbed.
    bench.until_status("d-1", "sent").await;
    bench.until_status("d-2", "sent").await;
    assert_eq!(bench.number("SELECT max(rung)::bigint FROM mail.attempts").await, 0);
    wait_until(SOON, "the rest is over", async || {
        bench.number("SELECT count(*) FROM mail.pauses").await == 0
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn a_killed_process_is_taken_over_and_what_had_begun_passes_through_unknown() {
    let bench = Bench::new(&[("MAIL_UNKNOWN_TRANSACTIONAL", "retry")]).await;
    bench.provider.script("before@example.com", &[Act::HangBefore]);
    bench.provider.script("after@example.com", &[Act::HangAfter]);
    let doomed = bench.start("one");
    bench.accept(command("before", &["before@example.com"])).await;
    bench.accept(command("after", &["after@example.com"])).await;
    wait_until(SOON, "one has begun, one has not", async || {
        bench.number("SELECT count(*) FROM mail.attempts WHERE content_began_at IS NOT NULL").await == 1
            && bench.provider.running.load(Ordering::SeqCst) == 2
    })
    .await;
    doomed.kill();
    // A process of the same name replaces it, and need not wait as long as a stranger would.
    let successor = bench.start("one");
    bench.until_status("before", "sent").await;
    bench.until_status("after", "sent").await;
    assert_eq!(bench.attempts("before").await, "timed_out provider_accepted");
    assert_eq!(bench.attempts("after").await, "unknown provider_accepted");
    assert_eq!(bench.number("SELECT count(*) FROM mail.workers").await, 1);
    successor.stop().await;
}

#[tokio::test]
async fn a_result_that_comes_after_its_claim_has_passed_on_changes_nothing() {
    let bench = Bench::new(&[]).await;
    bench.provider.script("a@example.com", &[Act::HangAfter, Act::Refuse]);
    let paused = bench.start("one");
    bench.accept(command("d-1", &["a@example.com"])).await;
    wait_until(SOON, "content has begun", async || {
        bench.number("SELECT count(*) FROM mail.attempts WHERE content_began_at IS NOT NULL").await == 1
    })
    .await;
    // As though the process had slept through its lease.
    bench
        .database
        .execute(
            "UPDATE mail.attempts SET claim_expires_at = now() - interval '1s' WHERE status = 'in_progress'",
        )
        .await;
    let other = bench.start("two");
    bench.until_status("d-1", "failed").await;
    // It wakes up: what it writes is refused.
    paused.stopping.cancel();
    paused.forced.cancel();
    paused.stop().await;
    assert_eq!(bench.attempts("d-1").await, "unknown provider_rejected");
    assert_eq!(bench.status("d-1").await, "failed");
    other.stop().await;
}

#[tokio::test]
async fn a_class_that_is_held_waits_for_a_person() {
    let bench = Bench::new(&[("MAIL_UNKNOWN_TRANSACTIONAL", "hold")]).await;
    bench.provider.script("a@example.com", &[Act::Unknown]);
    let running = bench.start("one");
    bench.accept(command("d-1", &["a@example.com"])).await;
    bench.until_status("d-1", "unknown").await;
    assert_eq!(bench.attempts("d-1").await, "unknown");
    running.stop().await;
}

#[tokio::test]
async fn paused_and_suppressed_mail_is_not_sent_and_others_pass_it() {
    let bench = Bench::new(&[]).await;
    bench
        .database
        .execute(
            "INSERT INTO mail.pauses (scope, subject, automatic, reason, created_by, until) \
             VALUES ('domain', 'slow.example', false, 'asked to', 'kim', now() + interval '1 h'), \
                    ('tenant', 't-1', false, 'asked to', 'kim', now() + interval '700 ms'); \
             INSERT INTO mail.suppressions (address, reason) VALUES ('gone@example.com', 'hard_bounce')",
        )
        .await;
    let running = bench.start("one");
    bench.accept(command("paused", &["a@slow.example"])).await;
    let mut tenant = command("tenant", &["b@example.com"]);
    tenant.tenant = Some("t-1".to_owned());
    bench.accept(tenant).await;
    bench.accept(command("gone", &["Gone@Example.com"])).await;
    bench.accept(command("free", &["c@example.com"])).await;
    bench.until_status("free", "sent").await;
    bench.until_status("gone", "suppressed").await;
    assert!(bench.provider.contents_of("Gone@example.com").is_empty());
    bench.until_status("tenant", "sent").await;
    assert_eq!(bench.attempts("paused").await, "scheduled");
    assert_eq!(
        bench.text("SELECT parked FROM mail.attempts WHERE delivery_id = $1", "paused").await,
        "domain:slow.example"
    );
    running.stop().await;
}

#[tokio::test]
async fn mail_from_before_a_restored_database_is_held_until_a_person_releases_it() {
    let bench = Bench::new(&[]).await;
    bench.accept(command("old", &["old@example.com"])).await;
    bench
        .database
        .execute(&format!(
            "INSERT INTO ops.leader_terms (name, term, holder, host, pid, elected_at, held_since, held_reason) \
             VALUES ('{ELECTION}', 9, 'h', 'h', 1, now(), clock_timestamp(), 'term regressed')"
        ))
        .await;
    let running = bench.start("one");
    bench.accept(command("new", &["new@example.com"])).await;
    bench.until_status("new", "sent").await;
    assert_eq!(bench.text("SELECT parked FROM mail.attempts WHERE delivery_id = $1", "old").await, "held");
    bench.database.execute("UPDATE ops.leader_terms SET held_since = NULL, held_reason = NULL").await;
    bench.until_status("old", "sent").await;
    running.stop().await;
}

#[tokio::test]
async fn nothing_is_sent_before_the_gate_opens() {
    let bench = Bench::new(&[]).await;
    let (open, gate) = gate();
    let running = bench.start_behind("one", gate);
    bench.accept(command("d-1", &["a@example.com"])).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(bench.provider.calls.load(Ordering::SeqCst), 0);
    open.send(true).unwrap();
    bench.until_status("d-1", "sent").await;
    running.stop().await;
}

#[tokio::test]
async fn the_rate_holds_over_all_processes() {
    let bench = Bench::new(&[("MAIL_SEND_RATE", "10/s"), ("MAIL_ATTEMPT_WORKER_CONCURRENCY", "20")]).await;
    for n in 0..30 {
        bench.accept(command(&format!("d-{n}"), &["a@example.com"])).await;
    }
    let begun = Instant::now();
    let (one, two) = (bench.start("one"), bench.start("two"));
    wait_until(SOON, "all are sent", async || {
        bench.number("SELECT count(*) FROM mail.deliveries WHERE status = 'sent'").await == 30
    })
    .await;
    // A burst of ten, then ten a second.
    assert!(begun.elapsed() >= Duration::from_millis(1_800), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn what_is_too_old_is_not_sent_and_urgent_mail_overtakes() {
    let bench = Bench::new(&[("MAIL_ATTEMPT_WORKER_CONCURRENCY", "1")]).await;
    bench.accept(command("stale", &["stale@example.com"])).await;
    bench.database.execute("UPDATE mail.deliveries SET expires_at = now() - interval '1s'").await;
    for n in 0..5 {
        bench.accept(command(&format!("d-{n}"), &[&format!("d{n}@example.com")])).await;
    }
    let mut urgent = command("urgent", &["urgent@example.com"]);
    urgent.priority = Some(10);
    bench.accept(urgent).await;
    let running = bench.start("one");
    bench.until_status("d-4", "sent").await;
    bench.until_status("stale", "dead_letter").await;
    assert_eq!(bench.provider.contents.lock().unwrap()[0].0, "urgent@example.com");
    assert!(bench.provider.contents_of("stale@example.com").is_empty());
    assert_eq!(
        bench.text("SELECT reason FROM mail.dead_letters WHERE delivery_id = $1", "stale").await,
        "expired"
    );
    running.stop().await;
}

#[tokio::test]
async fn one_mail_that_the_server_cannot_bear_does_not_rest_all_others_for_ever() {
    let bench = Bench::new(&[("MAIL_RETRY_LADDER", "50ms,50ms"), ("MAIL_PROVIDER_PAUSE", "100ms")]).await;
    bench.provider.script("poison@example.com", &vec![Act::FaultAtRecipient; 50]);
    let running = bench.start("one");
    bench.accept(command("poison", &["poison@example.com"])).await;
    let mut others = 0;
    // Others get through between its faults, so it is not the provider.
    voiceai_testkit::wait_for(SOON, "it is given up by itself", async || {
        others += 1;
        bench.accept(command(&format!("d-{others}"), &["a@example.com"])).await;
        let have = bench.status("poison").await;
        if have == "dead_letter" {
            Ok(())
        } else {
            Err(format!("{have}: {}", bench.attempts("poison").await))
        }
    })
    .await;
    let tries = bench.attempts("poison").await.split(' ').count();
    assert!((5..=12).contains(&tries), "two faults that cost nothing, then its ladder: {tries}");
    for n in 1..=others {
        bench.until_status(&format!("d-{n}"), "sent").await;
    }
    assert_eq!(bench.number("SELECT count(*) FROM mail.pauses WHERE until > now()").await, 0);
    running.stop().await;
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_comes_back_although_its_process_lives() {
    let bench = Bench::new(&[]).await;
    let mut lost = command("lost", &["a@example.com"]);
    lost.tenant = Some("t-1".to_owned());
    bench
        .database
        .execute(
            "INSERT INTO mail.pauses (scope, subject, automatic, reason, created_by, until) \
             VALUES ('tenant', 't-1', false, 'asked to', 'kim', now() + interval '1 h')",
        )
        .await;
    bench.accept(lost).await;
    let running = bench.start("one");
    wait_until(SOON, "it is put aside", async || {
        bench.number("SELECT count(*) FROM mail.attempts WHERE parked IS NOT NULL").await == 1
    })
    .await;
    // As though the claim had been committed, and the connection had died before its answer.
    bench
        .database
        .execute(
            "DELETE FROM mail.pauses; UPDATE mail.attempts SET status = 'in_progress', parked = NULL, \
                 worker_id = (SELECT worker_id FROM mail.workers), claim_token = gen_random_uuid(), \
                 due_at = now(), started_at = now() - interval '1 min', claim_expires_at = now() + interval '1 h'",
        )
        .await;
    bench.until_status("lost", "sent").await;
    assert_eq!(bench.attempts("lost").await, "provider_accepted", "and no attempt is burned");
    running.stop().await;
}
