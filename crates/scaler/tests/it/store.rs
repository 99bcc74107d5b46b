//! The rows: fenced, versioned, and held to the state machine by the schema.

use std::time::Duration;

use jiff::SignedDuration;
use serde_json::json;
use uuid::Uuid;
use voiceai_postgres::term::{Candidate, issue};
use voiceai_postgres::{Tenure, sqlx};
use voiceai_runtime::boot_now;
use voiceai_scaler::notices::Notice;
use voiceai_scaler::store::{
    CreateHold, Created, DecisionRow, DownSettings, NewRemoval, NewServer, Pruned, Step, StepOutcome, Store,
    StoreError,
};
use voiceai_scaler_core::{Event, Kind, Operation, Policy, State};

use crate::harness::Stack;

async fn tenure(stack: &Stack) -> Tenure {
    let candidate = Candidate {
        name: "voiceai:scaler:leader",
        holder: "t",
        host: "h",
        pid: 1,
        service: "voiceai-scaler",
    };
    let issued = issue(&stack.pool, &candidate, 0).await.expect("a term");
    Tenure::new(issued.term, boot_now().saturating_add(Duration::from_secs(600)), false)
}

fn policy() -> Policy {
    let row = json!({"id": "g", "name": "eu", "scalingEnabled": true, "scalingProvider": "local"});
    Policy::read(&row).expect("a policy")
}

async fn plan(store: &Store, tenure: &Tenure, name: &str) -> Result<Created, StoreError> {
    let policy = policy();
    let at = store.now().await.expect("a time");
    store.plan_server(tenure, &NewServer { name, policy: &policy, at, actor: "t", reason: "busy" }).await
}

async fn planned(store: &Store, tenure: &Tenure, name: &str) -> Uuid {
    match plan(store, tenure, name).await.expect("an intent") {
        Created::Operation(id) => id,
        Created::Taken => panic!("{name} is taken"),
    }
}

#[tokio::test]
async fn a_stale_leader_writes_nothing() {
    let stack = Stack::new().await;
    let store = Store::new(stack.pool.clone());
    let old = tenure(&stack).await;
    let id = planned(&store, &old, "test-voice-01").await;
    let new = tenure(&stack).await;
    let fenced = |result: Result<(), StoreError>| assert!(matches!(result, Err(StoreError::Fenced { .. })));
    fenced(plan(&store, &old, "test-voice-02").await.map(|_| ()));
    let (now, _, row) = store.operation(id).await.expect("a row").expect("it is there");
    fenced(store.step(&old, &row, &Step::event(Event::SecretsFetched)).await.map(|_| ()));
    let removal = NewRemoval {
        server: "test-voice-01",
        at: now,
        actor: "t",
        reason: "idle",
        settings: DownSettings::default(),
        notice: Some(notice("failed", "ghost")),
    };
    fenced(store.plan_removal(&old, &removal).await.map(|_| ()));
    fenced(store.call_back(&old, "test-voice-01", now).await.map(|_| ()));
    fenced(store.hold_creates(&old, &hold(now)).await);
    let decision = DecisionRow {
        group_id: "g".into(),
        group_name: "eu".into(),
        action: "hold",
        reason: "x".into(),
        summary: "x".into(),
        details: json!({}),
    };
    fenced(store.write_decisions(&old, now, std::slice::from_ref(&decision)).await);
    assert_eq!(stack.number("SELECT count(*) FROM ops.operations").await, 1);
    assert_eq!(stack.number("SELECT count(*) FROM ops.decisions").await, 0);
    assert_eq!(stack.number("SELECT count(*) FROM ops.outbox").await, 0, "nor does it tell anybody");
    assert_eq!(stack.number("SELECT count(*) FROM ops.operation_steps").await, 1);
    // The same by the newest leader.
    store.write_decisions(&new, now, &[decision]).await.expect("written");
    assert_eq!(
        store.step(&new, &row, &Step::event(Event::SecretsFetched)).await.expect("written"),
        StepOutcome::Written
    );
    // A tenure that ended by itself is not even tried.
    new.end();
    assert!(matches!(plan(&store, &new, "test-voice-03").await, Err(StoreError::NotTrusted(_))));
}

#[tokio::test]
async fn a_step_is_written_only_on_the_row_as_it_was_read() {
    let stack = Stack::new().await;
    let store = Store::new(stack.pool.clone());
    let tenure = tenure(&stack).await;
    let id = planned(&store, &tenure, "test-voice-01").await;
    let (_, _, row) = store.operation(id).await.expect("a row").expect("it is there");
    let step = Step::event(Event::SecretsFetched);
    assert_eq!(store.step(&tenure, &row, &step).await.expect("written"), StepOutcome::Written);
    assert_eq!(store.step(&tenure, &row, &step).await.expect("read"), StepOutcome::Changed, "a repetition");
    let illegal = store.step(&tenure, &row, &Step::event(Event::CallsEnded)).await;
    assert!(matches!(illegal, Err(StoreError::Unreadable { .. })), "{illegal:?}");
    let (_, _, row) = store.operation(id).await.expect("a row").expect("it is there");
    assert_eq!((row.operation.state, row.version), (State::Secrets, 2));
}

#[tokio::test]
async fn an_error_is_gone_once_what_was_tried_has_worked() {
    let stack = Stack::new().await;
    let store = Store::new(stack.pool.clone());
    let tenure = tenure(&stack).await;
    let id = planned(&store, &tenure, "test-voice-01").await;
    let row = async || store.operation(id).await.expect("a row").expect("it is there").2;
    let error = || Some(("secret".to_owned(), "it cannot be read".to_owned()));
    let tried = Step { error: error(), attempt: Some(1), ..Step::default() };
    store.step(&tenure, &row().await, &tried).await.expect("written");
    assert_eq!(row().await.error_text.as_deref(), Some("it cannot be read"));
    store.step(&tenure, &row().await, &Step::event(Event::SecretsFetched)).await.expect("written");
    assert_eq!((row().await.error_code, row().await.error_text), (None, None), "it could be read");
    // The reason of a failure stays with it to the end.
    store.step(&tenure, &row().await, &Step::failed("bootstrap", "wrong")).await.expect("written");
    for event in [Event::CleanupStarted, Event::ProviderGone] {
        store.step(&tenure, &row().await, &Step::event(event)).await.expect("written");
        assert_eq!(row().await.error_code.as_deref(), Some("bootstrap"), "{event:?}");
    }
}

fn notice(event: &'static str, key: &str) -> Notice {
    Notice {
        event,
        group: "eu".to_owned(),
        server: Some("test-voice-01".to_owned()),
        reason: "why".to_owned(),
        at: moment(),
        key: key.to_owned(),
    }
}

fn hold(until: jiff::Timestamp) -> CreateHold<'static> {
    let notice = Some(notice("degraded", "quota"));
    CreateHold { group_id: "g", group_name: "eu", until, why: "why", circuit: false, notice }
}

#[tokio::test]
async fn people_are_told_once_and_only_of_what_was_written() {
    let stack = Stack::new().await;
    let store = Store::new(stack.pool.clone());
    let tenure = tenure(&stack).await;
    let id = planned(&store, &tenure, "test-voice-01").await;
    let row = async || store.operation(id).await.expect("a row").expect("it is there").2;
    let first = row().await;
    let told = |keys: &[&str]| Step {
        notices: keys.iter().map(|key| notice("failed", key)).collect(),
        ..Step::event(Event::SecretsFetched)
    };
    assert_eq!(store.step(&tenure, &first, &told(&["1"])).await.expect("written"), StepOutcome::Written);
    // On a row that is no longer as it was read nothing happens, so there is nothing to tell.
    assert_eq!(store.step(&tenure, &first, &told(&["2"])).await.expect("read"), StepOutcome::Changed);
    let rows: Vec<(String, String, sqlx::types::JsonValue)> =
        sqlx::query_as("SELECT queue, kind, payload FROM ops.outbox")
            .fetch_all(&stack.pool)
            .await
            .expect("rows");
    let payload =
        json!({"event": "failed", "group": "eu", "server": "test-voice-01", "reason": "why", "at": moment()});
    assert_eq!(rows, [("email-queue".to_owned(), "notification.send".to_owned(), payload)]);
    // Again with the same key, and with keys that no id of a job could have.
    let odd = "a group's id may be anything\n".repeat(20);
    for keys in [&["1"][..], &["1", "3"], &[&odd], &[&odd]] {
        let notices = keys.iter().map(|key| notice("failed", key)).collect();
        let step = Step { notices, note: Some("a note".to_owned()), ..Step::default() };
        assert_eq!(store.step(&tenure, &row().await, &step).await.expect("written"), StepOutcome::Written);
    }
    assert_eq!(stack.number("SELECT count(*) FROM ops.outbox").await, 3);
    for _ in 0..2 {
        store.hold_creates(&tenure, &hold(moment())).await.expect("held");
    }
    let degraded = "SELECT count(*) FROM ops.outbox WHERE payload->>'event' = 'degraded'";
    assert_eq!(stack.number(degraded).await, 1);
}

/// A moment.
fn moment() -> jiff::Timestamp {
    "2026-11-22T03:00:00Z".parse().expect("a time")
}

#[tokio::test]
async fn a_name_is_taken_once_and_rests_afterwards() {
    let stack = Stack::new().await;
    let store = Store::new(stack.pool.clone());
    let tenure = tenure(&stack).await;
    let id = planned(&store, &tenure, "test-voice-01").await;
    assert_eq!(plan(&store, &tenure, "test-voice-01").await.expect("an answer"), Created::Taken);
    for event in [Event::Failed, Event::CleanupStarted, Event::ProviderGone] {
        let (_, _, row) = store.operation(id).await.expect("a row").expect("it is there");
        assert_eq!(
            store.step(&tenure, &row, &Step::event(event)).await.expect("written"),
            StepOutcome::Written
        );
    }
    assert!(store.fleet().await.expect("a fleet").is_empty());
    assert!(store.resting_names().await.expect("names").contains("test-voice-01"));
    stack.database.execute("UPDATE ops.servers SET gone_at = now() - interval '10 minutes 1 second'").await;
    assert!(store.resting_names().await.expect("names").is_empty());
    planned(&store, &tenure, "test-voice-01").await;
    assert_eq!(stack.number("SELECT count(*) FROM ops.servers").await, 2, "its history stays");
}

/// The schema's own word on every state, kind and end, against the machine's.
#[tokio::test]
async fn the_schema_knows_exactly_the_states_of_the_machine() {
    let stack = Stack::new().await;
    let reachable = |kind: Kind| {
        let mut seen = vec![Operation::planned(kind)];
        let mut at = 0;
        while at < seen.len() {
            let nexts: Vec<_> = Event::ALL.iter().filter_map(|&event| seen[at].next(event)).collect();
            seen.extend(nexts.into_iter().filter(|next| !seen.contains(next)).collect::<Vec<_>>());
            at += 1;
        }
        seen
    };
    let mut accepted = 0;
    for kind in [Kind::Up, Kind::Down] {
        let reachable = reachable(kind);
        for &state in State::ALL {
            for finished in [false, true] {
                let operation = Operation { kind, state };
                let server = Uuid::new_v4();
                let wanted = reachable.contains(&operation) && finished == operation.is_final();
                let inserted = sqlx::query(
                    "WITH server AS (INSERT INTO ops.servers (id, name, group_id, group_name, service, status, made_by, \
                         provider, spec) VALUES ($1, 'n' || left($1::text, 8), 'g', 'g', 'voice', 'active', $1, 'local', '{}')) \
                     INSERT INTO ops.operations (id, server_id, kind, state, actor, reason, finished_at) \
                     VALUES ($1, $1, $2, $3, 't', 't', CASE WHEN $4 THEN now() END)",
                )
                .bind(server)
                .bind(kind.as_str())
                .bind(state.as_str())
                .bind(finished)
                .execute(&stack.pool)
                .await
                .is_ok();
                assert_eq!(inserted, wanted, "{kind:?} {state:?} finished: {finished}");
                accepted += i32::from(inserted);
            }
        }
    }
    assert_eq!(accepted, 12 + 14);
}

#[tokio::test]
async fn migrations_leave_the_platforms_table_alone_and_run_without_the_right_to_create_schemas() {
    let database = voiceai_testkit::empty_database().await;
    let role = format!("limited_{}", database.name);
    database
        .execute(&format!(
            r#"CREATE TABLE "ServerGroup" (id text PRIMARY KEY, name text, "scalingConfig" jsonb);
               CREATE SCHEMA ops;
               CREATE ROLE {role} LOGIN; GRANT ALL ON SCHEMA ops TO {role}; GRANT SELECT ON "ServerGroup" TO {role};
               REVOKE CREATE ON SCHEMA public FROM PUBLIC; REVOKE CREATE ON DATABASE {} FROM PUBLIC;
               INSERT INTO "ServerGroup" VALUES ('1', 'eu', '{{"maxInstances": 7}}')"#,
            database.name
        ))
        .await;
    let limited = database.url.replacen("voiceai@", &format!("{role}@"), 1);
    let pool = voiceai_postgres::PgPool::connect(&limited).await.expect("a connection");
    voiceai_postgres::migrate(&pool, &[voiceai_postgres::COMMON, voiceai_postgres::SCALER])
        .await
        .expect("migrated");
    let groups = Store::new(pool.clone()).groups().await.expect("groups");
    let policy = Policy::read(&groups[0].0).expect("columns that are absent are looked for in scalingConfig");
    assert_eq!((policy.name.as_str(), policy.max), ("eu", 7));
    let columns: (i64,) =
        sqlx::query_as("SELECT count(*) FROM information_schema.columns WHERE table_name = 'ServerGroup'")
            .fetch_one(&pool)
            .await
            .expect("a number");
    assert_eq!(columns.0, 3, "the platform's table was not altered");
}

/// Servers by name and status, and how long ago they ended; each with the operation it was made by, and further ones.
const PAST: &str = "
    INSERT INTO ops.servers (id, name, group_id, group_name, service, status, made_by, provider, spec, gone_at)
    SELECT ('00000000-0000-0000-0000-00000000000' || n)::uuid, 'past-' || n, 'g', 'eu', 'voice', status,
           ('10000000-0000-0000-0000-00000000000' || n)::uuid, 'local', '{}',
           CASE status WHEN 'gone' THEN now() - ended END
    FROM (VALUES (1, 'gone', interval '31 days'), (2, 'gone', interval '29 days'), (3, 'active', interval '0'),
                 (4, 'gone', interval '31 days')) AS t(n, status, ended);
    INSERT INTO ops.operations (id, server_id, kind, state, actor, reason, created_at, finished_at)
    SELECT (kind || '0000000-0000-0000-0000-00000000000' || n)::uuid, ('00000000-0000-0000-0000-00000000000' || n)::uuid,
           CASE kind WHEN 1 THEN 'up' ELSE 'down' END, state, 't', 't', now() - ago,
           CASE WHEN state IN ('done', 'cancelled') THEN now() - ago END
    FROM (VALUES (1, 1, 'done', interval '90 days'), (2, 1, 'done', interval '31 days'),
                 (1, 2, 'done', interval '90 days'), (2, 2, 'done', interval '29 days'),
                 (1, 3, 'done', interval '90 days'), (2, 3, 'cancelled', interval '40 days'),
                 (3, 3, 'cancelled', interval '20 days'), (4, 3, 'draining', interval '40 days'),
                 (1, 4, 'done', interval '90 days'), (2, 4, 'deleting', interval '31 days')) AS t(kind, n, state, ago);
    INSERT INTO ops.operation_steps (operation_id, event, to_state, at) SELECT id, 'made', state, created_at FROM ops.operations;
    INSERT INTO ops.decisions (at, term, group_id, group_name, action, reason, summary, details)
    SELECT now() - ago, 1, 'g', 'eu', action, 'busy', '', '{}'
    FROM (VALUES ('hold', interval '3 days'), ('hold', interval '1 day'), ('invalid', interval '3 days'),
                 ('add', interval '29 days'), ('add', interval '31 days')) AS t(action, ago);";

#[tokio::test]
async fn what_is_over_goes_after_its_time_and_nothing_that_is_open_or_needed() {
    let stack = Stack::new().await;
    let store = Store::new(stack.pool.clone());
    stack.database.execute(PAST).await;
    let keep = SignedDuration::from_hours(30 * 24);
    let gone = store.prune(keep).await.expect("pruned");
    assert_eq!(gone, Pruned { decisions: 3, operations: 3, servers: 1 });
    assert!(store.prune(keep).await.expect("pruned").is_empty(), "nothing else is old");
    let names = |sql: &'static str| {
        let pool = stack.pool.clone();
        async move {
            let rows: Vec<(String,)> = sqlx::query_as(sql).fetch_all(&pool).await.expect("rows");
            rows.into_iter().map(|(name,)| name).collect::<Vec<_>>()
        }
    };
    assert_eq!(
        names("SELECT name FROM ops.servers ORDER BY name").await,
        ["past-2", "past-3", "past-4"],
        "one is too young, one is there, and on one an operation works"
    );
    let left = "SELECT s.name || ' ' || o.state FROM ops.operations o JOIN ops.servers s ON s.id = o.server_id \
                WHERE s.name <> 'past-2' ORDER BY s.name, o.id";
    assert_eq!(
        names(left).await,
        ["past-3 done", "past-3 cancelled", "past-3 draining", "past-4 done", "past-4 deleting"],
        "the one it was made by stays, and so do the young one and the open one"
    );
    let steps = "SELECT count(*) FROM ops.operation_steps";
    assert_eq!(stack.number(steps).await, stack.number("SELECT count(*) FROM ops.operations").await);
    assert_eq!(stack.number("SELECT count(*) FROM ops.decisions").await, 2);
}
