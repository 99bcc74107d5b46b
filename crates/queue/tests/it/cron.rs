//! The scheduler on a real PostgreSQL: each slot once, whatever happens around it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use voiceai_postgres::sqlx::{self, Row};
use voiceai_postgres::{PostgresSettings, connect, migrate};
use voiceai_queue::cron::{self, Definition, MissedRuns, Overlap, ScheduleError, slot_job_id};
use voiceai_runtime::Secret;
use voiceai_testkit::{PostgresServer, database, wait_until};

use crate::fake_queue::FakeQueue;
use crate::support::{
    Loops, SOON, at, count, cursor, lead, outbox_ids, set_clock, set_cursor, with_movable_clock,
    with_true_clock,
};

const HOUR: Duration = Duration::from_secs(3600);

fn every_minute(name: &str, missed: MissedRuns) -> Definition {
    Definition { missed, overlap: Overlap::Allow, ..Definition::new(name, "test.kind", "* * * * *") }
}

fn minutes(from: Timestamp, n: i64) -> Timestamp {
    from.checked_add(SignedDuration::from_mins(n)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_fires_at_its_instant_without_waiting_for_the_poll() {
    let database = database().await;
    let pool = with_movable_clock(&database).await;
    set_clock(&pool, at("2026-06-01T11:59:58Z")).await;
    cron::set(&pool, &Definition::new("noon", "test.kind", "0 12 * * *")).await.unwrap();
    set_cursor(&pool, "noon", at("2026-06-01T11:00:00Z")).await;
    let queue = FakeQueue::default();
    let true_clock = with_true_clock(&database).await;
    let loops =
        Loops::new(Some(lead(&pool).await)).scheduler(&pool, &queue, HOUR).relay(&true_clock, &queue, HOUR);

    wait_until(SOON, "the job is queued", async || queue.accepted() == ["cron:noon:2026-06-01T12:00:00Z"])
        .await;
    let row = sqlx::query("SELECT extract(epoch FROM last_fired_at - last_slot)::float8 FROM ops.schedules");
    let late: f64 = row.fetch_one(&pool).await.unwrap().get(0);
    assert!((0.0..0.9).contains(&late), "{late} s late");
    let job = queue.state().seen["cron:noon:2026-06-01T12:00:00Z"].clone();
    assert_eq!((job.kind.as_str(), job.queue.as_str(), job.payload.get()), ("test.kind", "default", "{}"));
    assert!(job.critical, "a schedule's job survives a loss of Redis");
    loops.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fixed_time_fires_once_on_both_days_of_the_clock_change() {
    let database = database().await;
    let pool = with_movable_clock(&database).await;
    let berlin = |name: &str, expression: &str| Definition {
        zone: "Europe/Berlin".into(),
        overlap: Overlap::Allow,
        missed: MissedRuns::CatchUp(100),
        ..Definition::new(name, "test.kind", expression)
    };
    for (day, start, until, expected) in [
        ("spring", "2026-03-28T23:30:00Z", "2026-03-29T01:30:00Z", (&["2026-03-29T01:00:00Z"][..], 0)),
        ("autumn", "2026-10-24T23:30:00Z", "2026-10-25T02:30:00Z", (&["2026-10-25T00:30:00Z"][..], 4)),
    ] {
        set_clock(&pool, at(start)).await;
        for (name, expression) in [("fixed", "30 2 * * *"), ("interval", "*/30 2 * * *")] {
            cron::set(&pool, &berlin(&format!("{day}.{name}"), expression)).await.unwrap();
            set_cursor(&pool, &format!("{day}.{name}"), at(start)).await;
        }
        let queue = FakeQueue::default();
        let mut now = at(start);
        // The scheduler lives through the night, looking every ten minutes; halfway it is replaced.
        let mut loops = Loops::new(Some(lead(&pool).await)).scheduler(&pool, &queue, HOUR);
        while now < at(until) {
            now = minutes(now, 10);
            set_clock(&pool, now).await;
            if now == at("2026-10-25T01:00:00Z") {
                drop(loops);
                loops = Loops::new(Some(lead(&pool).await)).scheduler(&pool, &queue, HOUR);
            }
            let due = cron::Calendar::parse("*/30 2 * * *", "Europe/Berlin").unwrap();
            let due = due.slots_between(at(start), now).last().unwrap_or(at(start));
            wait_until(SOON, format!("{day} {now} is decided"), async || {
                loops.wakeups.wake_schedules();
                cursor(&pool, &format!("{day}.interval")).await >= due
            })
            .await;
        }
        wait_until(SOON, "the fixed time is decided", async || {
            loops.wakeups.wake_schedules();
            cursor(&pool, &format!("{day}.fixed")).await >= at(expected.0[0])
        })
        .await;
        let ids = outbox_ids(&pool).await;
        let fixed: Vec<_> =
            expected.0.iter().map(|slot| slot_job_id(&format!("{day}.fixed"), at(slot))).collect();
        assert_eq!(
            ids.iter().filter(|id| id.contains(&format!("{day}.fixed"))).collect::<Vec<_>>(),
            fixed.iter().collect::<Vec<_>>()
        );
        assert_eq!(
            ids.iter().filter(|id| id.contains(&format!("{day}.interval"))).count(),
            expected.1,
            "{day}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_schedulers_that_all_believe_they_lead_fire_each_slot_once() {
    let database = database().await;
    let pool = with_movable_clock(&database).await;
    let start = at("2026-06-01T10:00:00Z");
    set_clock(&pool, minutes(start, 100)).await;
    for n in 0..5 {
        let name = format!("busy.{n}");
        cron::set(&pool, &every_minute(&name, MissedRuns::CatchUp(100))).await.unwrap();
        set_cursor(&pool, &name, start).await;
    }
    let tenure = lead(&pool).await;
    let queue = FakeQueue::default();
    let true_clock = with_true_clock(&database).await;
    let mut all = vec![];
    for _ in 0..6 {
        let loops = Loops::new(Some(tenure.clone()));
        let poll = Duration::from_millis(20);
        all.push(loops.scheduler(&pool, &queue, poll).relay(&true_clock, &queue, poll));
    }
    wait_until(SOON, "every slot is queued", async || queue.accepted().len() == 500).await;
    for loops in all {
        loops.stop().await;
    }
    assert_eq!(outbox_ids(&pool).await.len(), 500);
    assert_eq!(queue.accepted().len(), 500);
    let fired = sqlx::query("SELECT sum(fired_total)::bigint, sum(missed_total)::bigint FROM ops.schedules");
    let fired = fired.fetch_one(&pool).await.unwrap();
    assert_eq!((fired.get::<i64, _>(0), fired.get::<i64, _>(1)), (500, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_leader_at_the_tick_neither_loses_nor_doubles_it() {
    let database = database().await;
    let pool = with_movable_clock(&database).await;
    let start = at("2026-06-01T10:00:00Z");
    set_clock(&pool, start).await;
    cron::set(&pool, &every_minute("tick", MissedRuns::Skip)).await.unwrap();
    set_cursor(&pool, "tick", start).await;
    let queue = FakeQueue::default();
    let mut leader = Loops::new(Some(lead(&pool).await)).scheduler(&pool, &queue, HOUR);
    for round in 1..=30_i64 {
        // Sixty milliseconds before the tick, and a hand-over somewhere around it. The old leader goes on believing in
        // itself, as a paused one does, and is killed later.
        let tick = minutes(start, round);
        set_clock(&pool, tick.checked_sub(SignedDuration::from_millis(60)).unwrap()).await;
        leader.wakeups.wake_schedules();
        tokio::time::sleep(Duration::from_millis(u64::try_from(round * 4).unwrap())).await;
        let next = Loops::new(Some(lead(&pool).await)).scheduler(&pool, &queue, HOUR);
        let old = std::mem::replace(&mut leader, next);
        wait_until(SOON, format!("round {round} fired"), async || cursor(&pool, "tick").await == tick).await;
        drop(old);
    }
    let expected: Vec<_> = (1..=30).map(|n| slot_job_id("tick", minutes(start, n))).collect();
    assert_eq!(outbox_ids(&pool).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_leader_fires_nothing() {
    let pool = database().await.pool().await;
    cron::set(&pool, &every_minute("late", MissedRuns::CatchUp(5))).await.unwrap();
    let queue = FakeQueue::default();
    let old = lead(&pool).await;
    let _new = lead(&pool).await;
    set_cursor(&pool, "late", minutes(Timestamp::now(), -10)).await;
    let before = cursor(&pool, "late").await;
    let replaced = Loops::new(Some(old)).scheduler(&pool, &queue, Duration::from_millis(10));
    let follower = Loops::new(None).scheduler(&pool, &queue, Duration::from_millis(10));
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!((cursor(&pool, "late").await, outbox_ids(&pool).await), (before, vec![]));
    // The same schedule under the newest term fires, so it was the term that held it back.
    replaced.tenure.send_replace(Some(lead(&pool).await));
    wait_until(SOON, "the newest term fires", async || outbox_ids(&pool).await.len() >= 5).await;
    follower.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missed_slots_follow_the_policy_and_a_held_leader_makes_up_for_nothing() {
    let database = database().await;
    let pool = with_movable_clock(&database).await;
    let start = at("2026-06-01T10:00:00Z");
    set_clock(&pool, start.checked_add(SignedDuration::from_secs(3600 + 30)).unwrap()).await;
    let hourly = |name: &str, missed| Definition {
        missed,
        overlap: Overlap::Allow,
        ..Definition::new(name, "test.kind", "*/5 * * * *")
    };
    for (name, missed) in
        [("skip", MissedRuns::Skip), ("once", MissedRuns::Once), ("three", MissedRuns::CatchUp(3))]
    {
        cron::set(&pool, &hourly(name, missed)).await.unwrap();
        set_cursor(&pool, name, start).await;
    }
    // 11:00 is half a minute old: on time under every policy. What came before was missed.
    let queue = FakeQueue::default();
    let loops = Loops::new(Some(lead(&pool).await)).scheduler(&pool, &queue, HOUR);
    wait_until(SOON, "all are decided", async || cursor(&pool, "skip").await == at("2026-06-01T11:00:00Z"))
        .await;
    loops.stop().await;
    let slots = |name: &'static str, slots: &'static [&'static str]| {
        slots.iter().map(move |slot| format!("cron:{name}:2026-06-01T{slot}:00Z"))
    };
    let mut expected: Vec<_> = slots("once", &["11:00"]).chain(slots("skip", &["11:00"])).collect();
    expected.extend(slots("three", &["10:45", "10:50", "10:55", "11:00"]));
    assert_eq!(outbox_ids(&pool).await, expected);

    // Two hours later the database turns out to be a restored one.
    set_clock(&pool, at("2026-06-01T13:02:30Z")).await;
    let held = lead(&pool).await;
    let held = voiceai_postgres::Tenure::new(
        held.term().clone(),
        voiceai_runtime::boot_now().saturating_add(HOUR),
        true,
    );
    let loops = Loops::new(Some(held)).scheduler(&pool, &queue, HOUR);
    wait_until(SOON, "all are decided", async || cursor(&pool, "three").await == at("2026-06-01T13:00:00Z"))
        .await;
    loops.stop().await;
    assert_eq!(outbox_ids(&pool).await, expected, "nothing was made up for");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_run_holds_the_next_one_back() {
    let database = database().await;
    let pool = with_movable_clock(&database).await;
    let start = at("2026-06-01T10:00:00Z");
    set_clock(&pool, start).await;
    let definition = Definition { overlap: Overlap::Skip, ..every_minute("solo", MissedRuns::Skip) };
    cron::set(&pool, &definition).await.unwrap();
    set_cursor(&pool, "solo", minutes(start, -1)).await;
    let queue = FakeQueue::default();
    let loops = Loops::new(Some(lead(&pool).await)).scheduler(&pool, &queue, Duration::from_millis(50));
    let first = slot_job_id("solo", start);
    wait_until(SOON, "the first run", async || outbox_ids(&pool).await == [first.clone()]).await;
    // It waits in the outbox, then in its queue; both are unfinished.
    set_clock(&pool, minutes(start, 1)).await;
    wait_until(SOON, "the second is dropped", async || cursor(&pool, "solo").await == minutes(start, 1))
        .await;
    let true_clock = with_true_clock(&database).await;
    let relay = Loops::new(None).relay(&true_clock, &queue, Duration::from_millis(20));
    wait_until(SOON, "the first is queued", async || queue.accepted() == [first.clone()]).await;
    set_clock(&pool, minutes(start, 2)).await;
    wait_until(SOON, "the third is dropped", async || cursor(&pool, "solo").await == minutes(start, 2)).await;
    // While the queue cannot be asked nothing is decided.
    queue.state().away = true;
    set_clock(&pool, minutes(start, 3)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(cursor(&pool, "solo").await, minutes(start, 2));
    queue.finish(&first);
    queue.state().away = false;
    wait_until(SOON, "the fourth fires", async || outbox_ids(&pool).await.len() == 2).await;
    assert_eq!(outbox_ids(&pool).await, [first, slot_job_id("solo", minutes(start, 3))]);
    let lines = cron::list(&pool).await.unwrap();
    assert_eq!(lines[0].details.as_ref().unwrap().record.overlapped_total, 2);
    relay.stop().await;
    loops.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_row_is_reported_and_the_others_go_on() {
    let pool = database().await.pool().await;
    for (name, expression, zone) in
        [("bad.expression", "61 * * * *", "UTC"), ("bad.zone", "* * * * *", "Mars/Olympus")]
    {
        sqlx::query("INSERT INTO ops.schedules (name, kind, expression, zone, last_slot) VALUES ($1, 'k', $2, $3, now() - interval '1 hour')")
            .bind(name)
            .bind(expression)
            .bind(zone)
            .execute(&pool)
            .await
            .unwrap();
    }
    cron::set(&pool, &every_minute("good", MissedRuns::CatchUp(3))).await.unwrap();
    set_cursor(&pool, "good", minutes(Timestamp::now(), -10)).await;
    let loops = Loops::new(Some(lead(&pool).await)).scheduler(&pool, &FakeQueue::default(), HOUR);
    wait_until(SOON, "the good one fires", async || outbox_ids(&pool).await.len() >= 3).await;
    loops.stop().await;
    assert!(outbox_ids(&pool).await.iter().all(|id| id.starts_with("cron:good:")));

    let lines = cron::list(&pool).await.unwrap();
    let states: Vec<_> = lines.iter().map(|line| (line.name.as_str(), line.state)).collect();
    assert_eq!(states, [("bad.expression", "malformed"), ("bad.zone", "malformed"), ("good", "active")]);
    assert!(lines[0].problem.as_ref().unwrap().contains("minute field \"61\""), "{:?}", lines[0].problem);
    assert!(lines[1].problem.as_ref().unwrap().contains("Mars/Olympus"), "{:?}", lines[1].problem);
    let good = lines[2].details.as_ref().unwrap();
    assert_eq!((good.next_runs.len(), good.overdue_seconds), (5, None));
    // With nobody to fire it, it says so.
    set_cursor(&pool, "good", minutes(Timestamp::now(), -10)).await;
    let late = cron::list(&pool).await.unwrap()[2].details.as_ref().unwrap().overdue_seconds;
    assert!(late.is_some_and(|late| (480..=660).contains(&late)), "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_wakes_the_scheduler() {
    let pool = database().await.pool().await;
    let queue = FakeQueue::default();
    let loops = Loops::new(Some(lead(&pool).await))
        .scheduler(&pool, &queue, HOUR)
        .relay(&pool, &queue, HOUR)
        .listener(&pool);
    // From another session, by plain SQL.
    sqlx::query(
        "INSERT INTO ops.schedules (name, kind, expression, last_slot, missed) \
         VALUES ('sql', 'test.kind', '* * * * *', now() - interval '1 hour', 'once')",
    )
    .execute(&pool)
    .await
    .unwrap();
    wait_until(SOON, "its missed run is queued", async || queue.accepted().len() == 1).await;
    // A manual run goes the same way; the relay is woken by the row itself.
    let id = cron::run_now(&pool, "sql").await.unwrap();
    wait_until(SOON, "the manual run is queued", async || queue.accepted().contains(&id)).await;
    loops.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_and_resume_bound_what_fires() {
    let database = database().await;
    let pool = with_movable_clock(&database).await;
    let start = at("2026-06-01T10:00:00Z");
    set_clock(&pool, start).await;
    cron::set(&pool, &every_minute("p", MissedRuns::CatchUp(100))).await.unwrap();
    set_cursor(&pool, "p", start).await;
    let until = cron::pause(&pool, "p", Some(Duration::from_secs(600)), Some("migration")).await.unwrap();
    let paused_for = until.duration_since(start).as_secs();
    assert!((600..610).contains(&paused_for), "{paused_for}");
    let queue = FakeQueue::default();
    let loops = Loops::new(Some(lead(&pool).await)).scheduler(&pool, &queue, Duration::from_millis(20));
    set_clock(&pool, at("2026-06-01T10:05:10Z")).await;
    let lines = cron::list(&pool).await.unwrap();
    let details = lines[0].details.as_ref().unwrap();
    assert_eq!((lines[0].state, details.paused_reason.as_deref()), ("paused", Some("migration")));
    assert_eq!(details.next_runs[0].at, at("2026-06-01T10:11:00Z"), "the pause counts in");
    assert!(cron::resume(&pool, "p").await.unwrap());
    assert!(!cron::resume(&pool, "p").await.unwrap());
    set_clock(&pool, at("2026-06-01T10:07:01Z")).await;
    wait_until(SOON, "what is due after the pause fires", async || outbox_ids(&pool).await.len() == 2).await;
    loops.stop().await;
    assert_eq!(outbox_ids(&pool).await, ["cron:p:2026-06-01T10:06:00Z", "cron:p:2026-06-01T10:07:00Z"]);
    // Until it is resumed.
    assert!(cron::pause(&pool, "p", None, None).await.unwrap() > at("9999-01-01T00:00:00Z"));
    assert_eq!(cron::list(&pool).await.unwrap()[0].state, "paused");
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_are_kept_apart_from_what_operators_set() {
    let pool = database().await.pool().await;
    let declared = Definition::new("backup.nightly", "backup.database", "30 2 * * *");
    let other = Definition::new("another", "k", "0 5 * * *");
    let both = [declared.clone(), other.clone()];
    assert_eq!(cron::declare(&pool, &both).await.unwrap(), ["backup.nightly", "another"]);
    assert!(cron::declare(&pool, &both).await.unwrap().is_empty());
    assert_eq!(cron::get(&pool, "another").await.unwrap().definition, other);
    // All or nothing, and the one that does not stand is named.
    let broken = [Definition::new("third", "k", "* * * * *"), Definition::new("fourth", "k", "61 * * * *")];
    let error = cron::declare(&pool, &broken).await.unwrap_err();
    assert!(error.to_string().contains("fourth"), "{error}");
    assert!(matches!(cron::get(&pool, "third").await, Err(ScheduleError::NotFound { .. })));
    cron::delete(&pool, "another").await.unwrap();
    // A release moves it; an operator moves it; the next release does not.
    let moved = Definition { expression: "30 3 * * *".into(), ..declared.clone() };
    cron::declare(&pool, std::slice::from_ref(&moved)).await.unwrap();
    let row = cron::get(&pool, "backup.nightly").await.unwrap();
    assert_eq!((row.definition, row.revision), (moved.clone(), 2));
    let set =
        Definition { expression: "0 4 * * *".into(), missed: MissedRuns::CatchUp(7), ..declared.clone() };
    assert!(!cron::set(&pool, &set).await.unwrap());
    cron::declare(&pool, std::slice::from_ref(&declared)).await.unwrap();
    assert_eq!(cron::get(&pool, "backup.nightly").await.unwrap().definition, set);

    // A new time of day that has passed today is not due.
    set_cursor(&pool, "backup.nightly", minutes(Timestamp::now(), -3000)).await;
    cron::set(&pool, &moved).await.unwrap();
    let behind = Timestamp::now().duration_since(cursor(&pool, "backup.nightly").await);
    assert!(behind < SignedDuration::from_secs(60), "{behind}");
    // Neither is what passed while it was switched off.
    cron::set(&pool, &Definition { enabled: false, ..moved.clone() }).await.unwrap();
    set_cursor(&pool, "backup.nightly", minutes(Timestamp::now(), -3000)).await;
    cron::set(&pool, &moved).await.unwrap();
    let behind = Timestamp::now().duration_since(cursor(&pool, "backup.nightly").await);
    assert!(behind < SignedDuration::from_secs(60), "{behind}");

    for bad in [
        Definition { expression: "0 0 30 2 *".into(), ..declared.clone() },
        Definition { missed: MissedRuns::CatchUp(0), ..declared.clone() },
    ] {
        assert!(matches!(cron::set(&pool, &bad).await, Err(ScheduleError::Definition(_))), "{bad:?}");
    }
    let error = cron::pause(&pool, "backup.nigthly", None, None).await.unwrap_err();
    assert!(error.to_string().contains("did you mean \"backup.nightly\""), "{error}");
    for result in [
        cron::run_now(&pool, "nothing").await.map(drop),
        cron::resume(&pool, "nothing").await.map(drop),
        cron::delete(&pool, "nothing").await,
    ] {
        assert!(matches!(result, Err(ScheduleError::NotFound { .. })), "{result:?}");
    }
    cron::delete(&pool, "backup.nightly").await.unwrap();
    assert!(cron::list(&pool).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loops_outlive_postgres() {
    let mut server = PostgresServer::start().await;
    let mut settings = PostgresSettings::new(Secret::new(server.url()));
    settings.acquire_timeout = Duration::from_millis(500);
    let pool = connect(&settings).await.unwrap();
    migrate(&pool, voiceai_postgres::ALL).await.unwrap();
    let queue = FakeQueue::default();
    let tenure = lead(&pool).await;
    let poll = Duration::from_millis(100);
    let loops =
        Loops::new(Some(tenure)).scheduler(&pool, &queue, poll).relay(&pool, &queue, poll).listener(&pool);
    cron::set(&pool, &every_minute("before", MissedRuns::Once)).await.unwrap();
    set_cursor(&pool, "before", minutes(Timestamp::now(), -10)).await;
    wait_until(SOON, "it fires", async || queue.accepted().len() == 1).await;
    // The mark follows the hand-over; one that the kill took comes only when the relay's claim is over.
    let marked = || wait_until(SOON, "it is marked", async || count(&pool, "relayed_at IS NULL").await == 0);
    marked().await;

    server.kill9().await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    server.restart(false).await;
    let after = every_minute("after", MissedRuns::Once);
    wait_until(SOON, "the database answers", async || cron::set(&pool, &after).await.is_ok()).await;
    set_cursor(&pool, "after", minutes(Timestamp::now(), -10)).await;
    wait_until(SOON, "it fires again", async || {
        queue.accepted().iter().any(|id| id.starts_with("cron:after:"))
    })
    .await;
    marked().await;
    assert_eq!(loops.stuck(), Vec::<String>::new());
    loops.stop().await;
}
