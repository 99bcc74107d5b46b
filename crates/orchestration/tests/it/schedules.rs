//! Schedules in PostgreSQL: fired by the leader alone, once a slot, from the platform's table or ours.

use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use voiceai_orchestration::schedule::{Evaluator, list};
use voiceai_postgres::{Tenure, term};
use voiceai_queue::State;
use voiceai_runtime::{Vitals, boot_now};
use voiceai_testkit::wait_for;

use crate::agents::{Act, Agents};
use crate::stage::{SOON, Stage};

/// A leader whose term was issued by the database.
pub(crate) async fn lead(stage: &Stage, holder: &str) -> Tenure {
    let candidate =
        term::Candidate { name: "tasker", service: "voiceai-tasker", holder, host: "here", pid: 1 };
    let issued = term::issue(&stage.pool, &candidate, 0).await.unwrap();
    Tenure::new(issued.term, boot_now().saturating_add(Duration::from_secs(600)), false)
}

fn evaluate(stage: &Stage, tenure: Option<Tenure>) -> watch::Sender<Option<Tenure>> {
    let (sender, receiver) = watch::channel(tenure);
    let evaluator = Evaluator::new(stage.pool.clone(), Duration::from_millis(100), stage.wakeups.clone());
    let pulse = Vitals::new().register("orchestration scheduler", Duration::from_secs(60));
    tokio::spawn(evaluator.run(receiver, stage.shutdown.stopping(), pulse));
    sender
}

async fn reason(stage: &Stage, id: &str, says: &str) {
    wait_for(SOON, format!("schedule {id} says {says:?}"), async || {
        let lines = list(&stage.pool).await.unwrap();
        let line = lines.iter().find(|line| line.id.ends_with(id));
        match line {
            Some(line) if line.reason.contains(says) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

pub(crate) fn schedule(id: u32, columns: &str, values: &str) -> String {
    format!(
        "INSERT INTO ops.agent_orchestration_schedules (id, project_id{columns}) \
         VALUES ('00000000-0000-4000-8000-{id:012}', 'p{id}'{values})"
    )
}

#[tokio::test]
async fn a_slot_is_one_job_however_many_evaluators_and_leaders_there_are() {
    let agents = Agents::start(|_, _| Act::done(1, 0)).await;
    let stage = Stage::new(&agents, &[]).await;
    stage.execute(&schedule(1, ", agent_slug, schedule_type, priority", ", 'qa', 'daily', 9")).await;
    stage.work();
    let first = lead(&stage, "one").await;
    // Two processes that both believe the same term, as after a pause; and a follower.
    let _one = evaluate(&stage, Some(first.clone()));
    let _two = evaluate(&stage, Some(first));
    let _three = evaluate(&stage, None);
    stage
        .until(
            "its job is done",
            "SELECT status, job_type, triggered_by FROM ops.orchestration_jobs",
            json!([{ "status": "completed", "job_type": "single_agent", "triggered_by": "cron" }]),
        )
        .await;
    let second = lead(&stage, "two").await;
    let _four = evaluate(&stage, Some(second));
    reason(&stage, "000000000001", "nothing is due before").await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(agents.calls("qa").len(), 1);
    let row = stage.row("SELECT total_runs, total_successes, consecutive_failures, last_run_at IS NOT NULL AS ran, last_success_at IS NOT NULL AS good \
        FROM ops.agent_orchestration_schedules").await;
    assert_eq!(
        row,
        json!({ "total_runs": 1, "total_successes": 1, "consecutive_failures": 0, "ran": true, "good": true })
    );
    let job = stage
        .row("SELECT id, extract(epoch FROM slot)::bigint * 1000 AS ms FROM ops.orchestration_jobs")
        .await;
    assert!(job["id"].as_str().unwrap().starts_with(&format!("orch-p1-{}-", job["ms"])), "{job}");
    let outbox = stage.row("SELECT priority, queue, kind FROM ops.outbox").await;
    assert_eq!(
        outbox,
        json!({ "priority": 9, "queue": "orchestration-queue", "kind": "orchestration-single_agent" })
    );
}

#[tokio::test]
async fn a_leader_that_was_replaced_fires_nothing() {
    let agents = Agents::start(|_, _| Act::done(1, 0)).await;
    let stage = Stage::new(&agents, &[]).await;
    let old = lead(&stage, "one").await;
    let _new = lead(&stage, "two").await;
    stage.execute(&schedule(1, "", "")).await;
    let stale = evaluate(&stage, Some(old));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(stage.rows("SELECT 1 FROM ops.orchestration_jobs").await.is_empty());
    assert!(stage.rows("SELECT 1 FROM ops.outbox").await.is_empty());
    // The same loop fires once it leads by the newest term.
    stale.send_replace(Some(lead(&stage, "one").await));
    stage
        .until(
            "its job is there",
            "SELECT job_type FROM ops.orchestration_jobs",
            json!([{ "job_type": "batch" }]),
        )
        .await;
}

#[tokio::test]
async fn every_rule_is_told_as_the_reason_why_not_now() {
    let agents = Agents::start(|_, _| Act::Hang).await;
    let stage = Stage::new(&agents, &[]).await;
    for (id, columns, values) in [
        (1, ", is_enabled", ", false"),
        (2, ", run_on_days", ", ARRAY[((extract(dow FROM now() AT TIME ZONE 'UTC')::int + 3) % 7)]"),
        (
            3,
            ", run_after_time, run_before_time",
            ", ((now() AT TIME ZONE 'UTC')::time + interval '3 hours'), ((now() AT TIME ZONE 'UTC')::time + interval '4 hours')",
        ),
        (
            4,
            ", schedule_type, last_run_at, min_interval_minutes",
            ", 'daily', date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - interval '1 minute', 1441",
        ),
        (5, ", last_failure_at, consecutive_failures, cooldown_after_error_minutes", ", now(), 1, 30"),
        (6, ", max_runs_per_day", ", 0"),
        (7, ", timezone", ", 'Europe/Berlim'"),
        (8, ", schedule_type", ", 'custom'"),
        (9, ", schedule_type, cron_expression", ", 'custom', '0 0 1 1 *'"),
        (10, "", ""),
    ] {
        stage.execute(&schedule(id, columns, values)).await;
    }
    stage
        .execute(
            "INSERT INTO ops.orchestration_jobs (id, root_id, project_id, job_type, triggered_by, status) \
             VALUES ('orch-p10-7', 'orch-p10-7', 'p10', 'batch', 'manual', 'running')",
        )
        .await;
    let _leader = evaluate(&stage, Some(lead(&stage, "one").await));
    for (id, says) in [
        ("01", "is_enabled"),
        ("02", "run_on_days"),
        ("03", "outside the window"),
        ("04", "min_interval_minutes"),
        ("05", "cooldown_after_error_minutes"),
        ("06", "max_runs_per_day is 0"),
        ("07", "did you mean `Europe/Berlin`"),
        ("08", "cron_expression is empty"),
        ("09", "nothing is due before"),
        ("10", "job orch-p10-7 of the project is unfinished"),
    ] {
        reason(&stage, id, says).await;
    }
    let decisions = stage
        .rows("SELECT decision, count(*) FROM ops.orchestration_schedule_state GROUP BY 1 ORDER BY 1")
        .await;
    assert_eq!(
        decisions,
        [
            json!({ "decision": "misconfigured", "count": 2 }),
            json!({ "decision": "off", "count": 1 }),
            json!({ "decision": "waiting", "count": 7 })
        ]
    );
    assert!(stage.rows("SELECT 1 FROM ops.outbox").await.is_empty());
    // What held it back ends: it fires.
    stage.execute("UPDATE ops.orchestration_jobs SET status = 'cancelled', ended_at = now()").await;
    stage
        .until(
            "it fires",
            "SELECT project_id FROM ops.orchestration_jobs WHERE schedule_id IS NOT NULL",
            json!([{ "project_id": "p10" }]),
        )
        .await;
}

#[tokio::test]
async fn the_platforms_own_table_is_read_and_its_record_kept() {
    let agents = Agents::start(|_, _| Act::status(500)).await;
    let stage = Stage::new(&agents, &[]).await;
    stage.execute(&schedule(1, "", "")).await;
    stage
        .execute(
            "CREATE TABLE public.ai_agents (id uuid PRIMARY KEY, slug varchar(50)); \
             CREATE TABLE public.agent_orchestration_schedules ( \
                 id uuid PRIMARY KEY, project_id uuid NOT NULL, agent_id uuid NOT NULL, is_enabled boolean DEFAULT true, \
                 schedule_type varchar(30) DEFAULT 'daily', cron_expression varchar(100), timezone varchar(50) DEFAULT 'UTC', \
                 run_after_time time, run_before_time time, run_on_days integer[] DEFAULT '{0,1,2,3,4,5,6}', \
                 min_interval_minutes integer DEFAULT 60, max_runs_per_day integer DEFAULT 24, \
                 cooldown_after_error_minutes integer DEFAULT 30, priority integer DEFAULT 5, allow_concurrent boolean DEFAULT false, \
                 last_run_at timestamptz, last_success_at timestamptz, last_failure_at timestamptz, consecutive_failures integer DEFAULT 0, \
                 total_runs integer DEFAULT 0, total_successes integer DEFAULT 0); \
             INSERT INTO public.ai_agents VALUES ('00000000-0000-4000-8000-0000000000a1', 'qa'); \
             INSERT INTO public.agent_orchestration_schedules (id, project_id, agent_id, schedule_type, min_interval_minutes, consecutive_failures) \
             VALUES ('00000000-0000-4000-8000-000000000009', '00000000-0000-4000-8000-0000000000b1', '00000000-0000-4000-8000-0000000000a1', 'hourly', 0, 2)",
        )
        .await;
    stage.work();
    let _leader = evaluate(&stage, Some(lead(&stage, "one").await));
    stage
        .until(
            "its job failed",
            "SELECT status, project_id FROM ops.orchestration_jobs",
            json!([{ "status": "failed", "project_id": "00000000-0000-4000-8000-0000000000b1" }]),
        )
        .await;
    assert_eq!(agents.calls("qa").len(), 3);
    let row = stage.row("SELECT consecutive_failures, total_runs, total_successes, last_run_at IS NOT NULL AS ran, last_failure_at IS NOT NULL AS bad, \
        last_success_at FROM public.agent_orchestration_schedules").await;
    assert_eq!(
        row,
        json!({ "consecutive_failures": 3, "total_runs": 1, "total_successes": 0, "ran": true, "bad": true, "last_success_at": null })
    );
    let lines = list(&stage.pool).await.unwrap();
    assert_eq!((lines.len(), lines[0].agent.as_deref()), (1, Some("qa")), "theirs alone are read");
}

#[tokio::test]
async fn an_expression_fires_at_its_time_and_makes_up_for_nothing_before_it_was_known() {
    let agents = Agents::start(|_, _| Act::done(0, 0)).await;
    let stage = Stage::new(&agents, &[]).await;
    stage
        .execute(&schedule(
            1,
            ", schedule_type, cron_expression, min_interval_minutes",
            ", 'custom', '* * * * *', 0",
        ))
        .await;
    stage.work();
    let _leader = evaluate(&stage, Some(lead(&stage, "one").await));
    reason(&stage, "01", "nothing is due before").await;
    // As if a minute had passed since it was first seen.
    stage.execute("UPDATE ops.orchestration_schedule_state SET since = since - interval '3 minutes'").await;
    wait_for(SOON, "one slot fired, of three that passed".to_owned(), async || {
        let jobs = stage.rows("SELECT id, status FROM ops.orchestration_jobs").await;
        if jobs.len() == 1 && jobs[0]["status"] == "completed" {
            Ok(jobs[0]["id"].clone())
        } else {
            Err(format!("{jobs:?}"))
        }
    })
    .await;
    let id = stage.row("SELECT id FROM ops.orchestration_jobs").await["id"].as_str().unwrap().to_owned();
    stage.wait(&id, State::Completed).await;
    // A new definition begins anew.
    stage.execute("UPDATE ops.agent_orchestration_schedules SET cron_expression = '*/2 * * * *'").await;
    stage
        .until(
            "it is known as it is now",
            "SELECT definition FROM ops.orchestration_schedule_state",
            json!([{ "definition": "*/2 * * * *|UTC|true" }]),
        )
        .await;
    let fresh = stage
        .row("SELECT since > now() - interval '1 minute' AS fresh FROM ops.orchestration_schedule_state")
        .await;
    assert_eq!(fresh, json!({ "fresh": true }));
}
