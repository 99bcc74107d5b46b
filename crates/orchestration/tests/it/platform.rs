//! The platform's own tables: what its screens show of our jobs, and what agents may do at the same time.

use std::time::Duration;

use serde_json::{Value, json};
use voiceai_orchestration::tell_platform;
use voiceai_queue::{NewJob, State};

use crate::agents::{Act, Agents};
use crate::stage::{QUEUE, Stage};

const PLATFORM: &str = include_str!("../../../../tests/fixtures/platform.sql");
const PROJECT: &str = "00000000-0000-4000-8000-00000000000a";
const JOB: &str = "orch-told-1";

/// The platform's tables with a project and two agents that it knows by name.
async fn stage(agents: &Agents) -> Stage {
    let stage = Stage::new(agents, &[]).await;
    stage.execute(PLATFORM).await;
    stage
        .execute(&format!(
            "INSERT INTO projects (id, name) VALUES ('{PROJECT}', 'p'); \
             INSERT INTO ai_agents (slug, name) VALUES ('seo', 'The marketer'), ('qa', 'The tester');"
        ))
        .await;
    stage
}

fn order(project: &str) -> Value {
    json!({ "projectId": project, "triggeredBy": "api", "context": { "branch": "main" } })
}

#[tokio::test]
async fn a_job_stands_in_the_platforms_tables_with_its_phases_and_sums() {
    let agents = Agents::start(|agent, _| match agent {
        "qa" => Act::status(400),
        "ops" => Act::ok(r#"{"status":"do_nothing","summary":"all is well"}"#),
        _ => Act::done(2, 1),
    })
    .await;
    let stage = stage(&agents).await;
    stage.work();
    stage.enqueue("orchestration-batch", JOB, order(PROJECT)).await;
    stage.wait(JOB, State::Dead).await;
    stage
        .until(
            "the platform's row says how it ended",
            "SELECT job_type, triggered_by, status, project_id, agents_executed, agents_succeeded, agents_failed, tasks_created, \
                 error_code, attempt_number, input_params->'context' AS context, started_at <= completed_at AS timed, duration_ms >= 0 AS took \
             FROM public.orchestration_jobs",
            json!([{ "job_type": "batch", "triggered_by": "api", "status": "failed", "project_id": PROJECT, "agents_executed": 3,
                "agents_succeeded": 2, "agents_failed": 1, "tasks_created": 2, "error_code": "agents_refused", "attempt_number": 1,
                "context": { "branch": "main" }, "timed": true, "took": true }]),
        )
        .await;
    let phases = stage
        .rows(
            "SELECT l.agent_slug, l.agent_name, l.agent_id IS NOT NULL AS known, l.phase, l.status, l.should_act, l.do_nothing_reason, \
                 l.error_message IS NOT NULL AS wrong \
             FROM public.orchestration_execution_logs l JOIN public.orchestration_jobs j ON j.id = l.job_id \
             WHERE l.phase IN ('execute', 'complete') ORDER BY l.phase, l.agent_slug",
        )
        .await;
    let phase = |slug: &str,
                 name: &str,
                 known: bool,
                 phase: &str,
                 status: &str,
                 acts: bool,
                 reason: Value,
                 wrong: bool| {
        json!({ "agent_slug": slug, "agent_name": name, "known": known, "phase": phase, "status": status, "should_act": acts,
            "do_nothing_reason": reason, "wrong": wrong })
    };
    assert_eq!(
        phases,
        [
            phase("orchestrator", "Orchestrator", false, "complete", "failed", true, Value::Null, true),
            phase("ops", "ops", false, "execute", "do_nothing", false, json!("all is well"), false),
            phase("qa", "The tester", true, "execute", "failed", true, Value::Null, true),
            phase("seo", "The marketer", true, "execute", "completed", true, Value::Null, false),
        ]
    );
    let agents_told = stage
        .row("SELECT output_summary->'agents' AS agents, output_summary->>'jobId' AS job FROM public.orchestration_jobs")
        .await;
    assert_eq!(
        (agents_told["agents"].as_array().unwrap().len(), &agents_told["job"]),
        (3, &json!(JOB)),
        "{agents_told}"
    );

    // What ours says is theirs, told again and again: one row.
    stage.execute("UPDATE ops.orchestration_jobs SET tell_from = now()").await;
    assert_eq!(tell_platform(&stage.pool).await.unwrap(), 1);
    assert_eq!(tell_platform(&stage.pool).await.unwrap(), 0, "nothing is left to be told");
    assert_eq!(stage.row("SELECT count(*) FROM public.orchestration_jobs").await, json!({ "count": 1 }));

    // A row that was told is none that the platform failed: the hourly look retries the job once, and the retry knows its parent.
    stage.execute("UPDATE ops.orchestration_jobs SET retryable = true").await;
    stage.enqueue("orchestration.retry-failed", "sweep", json!({})).await;
    let swept = stage.wait("sweep", State::Completed).await.result.unwrap();
    let retry = swept["retried"][0].as_str().unwrap_or_else(|| panic!("{swept}")).to_owned();
    assert_eq!(swept["retried"].as_array().unwrap().len(), 1, "{swept}");
    stage.wait(&retry, State::Dead).await;
    stage
        .until(
            "the retry points at its parent",
            "SELECT c.job_type, c.attempt_number, c.triggered_by FROM public.orchestration_jobs c \
             JOIN public.orchestration_jobs p ON p.id = c.parent_job_id WHERE c.status = 'failed'",
            json!([{ "job_type": "retry", "attempt_number": 2, "triggered_by": "retry_scheduler" }]),
        )
        .await;
}

#[tokio::test]
async fn a_row_that_the_platform_made_itself_is_carried_on_and_a_project_it_does_not_know_is_no_obstacle() {
    let agents = Agents::start(|_, _| Act::done(1, 0)).await;
    let stage = stage(&agents).await;
    let id = "11111111-0000-4000-8000-000000000001";
    stage
        .execute(&format!(
            "INSERT INTO public.orchestration_jobs (id, project_id, job_type, triggered_by, status, input_params) \
             VALUES ('{id}', '{PROJECT}', 'manual', 'manual', 'queued', '{{\"theirs\": true}}')"
        ))
        .await;
    stage.work();
    stage.enqueue("orchestration-batch", id, order(PROJECT)).await;
    stage.enqueue("orchestration-batch", "orch-acme-9", order("acme")).await;
    let gone = "00000000-0000-4000-8000-0000000000ff";
    stage.enqueue("orchestration-batch", "orch-gone-9", order(gone)).await;
    for job in [id, "orch-acme-9", "orch-gone-9"] {
        stage.wait(job, State::Completed).await;
    }
    stage
        .until(
            "all three are told",
            "SELECT job_type, status, project_id IS NOT NULL AS known, input_params->>'theirs' AS theirs, input_params->>'projectId' AS named \
             FROM public.orchestration_jobs ORDER BY input_params->>'projectId' NULLS FIRST",
            json!([
                { "job_type": "manual", "status": "completed", "known": true, "theirs": "true", "named": null },
                { "job_type": "batch", "status": "completed", "known": false, "theirs": null, "named": gone },
                { "job_type": "batch", "status": "completed", "known": false, "theirs": null, "named": "acme" },
            ]),
        )
        .await;
    let logs = stage.row("SELECT count(DISTINCT job_id) FROM public.orchestration_execution_logs").await;
    assert_eq!(logs, json!({ "count": 3 }));
}

#[tokio::test]
async fn a_table_that_refuses_a_job_keeps_it_from_nothing_and_is_told_once_it_is_mended() {
    let agents = Agents::start(|_, _| Act::done(1, 0)).await;
    let stage = stage(&agents).await;
    stage
        .execute("ALTER TABLE public.orchestration_jobs ADD CONSTRAINT never CHECK (triggered_by <> 'api')")
        .await;
    stage.work();
    stage.enqueue("orchestration-batch", JOB, order(PROJECT)).await;
    stage.wait(JOB, State::Completed).await;
    stage
        .until(
            "what is wrong is noted",
            "SELECT status, tell_error LIKE '%never%' AS named, told_at FROM ops.orchestration_jobs WHERE tell_from > now()",
            json!([{ "status": "completed", "named": true, "told_at": null }]),
        )
        .await;
    stage
        .execute("ALTER TABLE public.orchestration_jobs DROP CONSTRAINT never; UPDATE ops.orchestration_jobs SET tell_from = now()")
        .await;
    assert_eq!(tell_platform(&stage.pool).await.unwrap(), 1);
    let told = stage.row("SELECT status, agents_succeeded FROM public.orchestration_jobs").await;
    assert_eq!(told, json!({ "status": "completed", "agents_succeeded": 3 }));
    let ours = stage
        .row("SELECT tell_error, tell_from, told_at IS NOT NULL AS told FROM ops.orchestration_jobs")
        .await;
    assert_eq!(ours, json!({ "tell_error": null, "tell_from": null, "told": true }));
}

#[tokio::test]
async fn without_the_platforms_tables_or_the_right_to_write_them_nothing_is_told() {
    let agents = Agents::start(|_, _| Act::done(1, 0)).await;
    let stage = Stage::new(&agents, &[]).await;
    stage.work();
    stage.enqueue("orchestration-batch", JOB, order("acme")).await;
    stage.wait(JOB, State::Completed).await;
    assert_eq!(tell_platform(&stage.pool).await.unwrap(), 0);
    // A counter's value cannot be chosen: such a table is left alone.
    stage
        .execute("CREATE TABLE public.orchestration_jobs (id bigserial PRIMARY KEY, project_id text, job_type text, status text)")
        .await;
    assert_eq!(tell_platform(&stage.pool).await.unwrap(), 0);
    stage
        .execute(
            "ALTER TABLE public.orchestration_jobs ALTER COLUMN id DROP DEFAULT, ALTER COLUMN id TYPE text",
        )
        .await;
    assert_eq!(tell_platform(&stage.pool).await.unwrap(), 1, "once it can be, what is left is told");
    let told = stage.row("SELECT id, project_id, status FROM public.orchestration_jobs").await;
    assert_eq!(told, json!({ "id": JOB, "project_id": "acme", "status": "completed" }));
}

#[tokio::test]
async fn what_one_call_was_granted_no_other_is_at_the_same_time() {
    let agents = Agents::start(|_, _| {
        Act::Later(Duration::from_millis(300), Box::new(Act::ok(r#"{"actionsExecuted":{"comment":1}}"#)))
    })
    .await;
    let stage = Stage::new(&agents, &[("ORCHESTRATION_AGENT_CONCURRENCY", "3")]).await;
    stage
        .execute(
            "INSERT INTO ops.autonomous_action_config (project_id, action_key, is_enabled, max_per_hour, cooldown_minutes) \
             VALUES ('acme', 'comment', true, 3, 0)",
        )
        .await;
    stage.work();
    let by_itself = json!({ "projectId": "acme", "triggeredBy": "system" });
    let job = NewJob::json("orchestration-batch", &by_itself).unwrap();
    stage.client.enqueue(job.queue(QUEUE).id(voiceai_queue::JobId::chosen(JOB).unwrap())).await.unwrap();
    stage.wait(JOB, State::Completed).await;
    let granted: Vec<_> =
        agents.all().iter().map(|got| got.body["allowedActions"]["comment"].clone()).collect();
    assert_eq!(granted, [json!(3), json!(2), json!(1)], "each is granted what the others have left");
    assert_eq!(agents.most_at_once(), 1);
    let done = stage.row("SELECT sum(count)::int AS done FROM ops.orchestration_actions").await;
    assert_eq!(done, json!({ "done": 3 }));
    assert_eq!(
        stage.rows("SELECT 1 FROM ops.orchestration_grants").await.len(),
        0,
        "an answer gives it back"
    );
}

#[tokio::test]
async fn an_agent_that_never_answered_may_still_be_at_it() {
    let agents = Agents::start(|agent, _| match agent {
        "seo" => Act::Hang,
        _ => Act::ok(r#"{"actionsExecuted":{"comment":1}}"#),
    })
    .await;
    let stage = Stage::new(&agents, &[("ORCHESTRATION_AGENT_TIMEOUT", "200ms")]).await;
    stage
        .execute(
            "INSERT INTO ops.autonomous_action_config (project_id, action_key, is_enabled, max_per_hour, cooldown_minutes) \
             VALUES ('acme', 'comment', true, 3, 0)",
        )
        .await;
    stage.work();
    let alone = |agent: &str| json!({ "projectId": "acme", "triggeredBy": "system", "agentSlug": agent });
    stage.enqueue("orchestration-single_agent", JOB, alone("seo")).await;
    stage.wait(JOB, State::Dead).await;
    stage.enqueue("orchestration-single_agent", "orch-told-2", alone("qa")).await;
    stage
        .until(
            "the other waits",
            "SELECT DISTINCT status, message LIKE '%was granted it 3 times%' AS held FROM ops.orchestration_execution_logs \
             WHERE job_id = 'orch-told-2' AND phase = 'decide'",
            json!([{ "status": "skipped", "held": true }]),
        )
        .await;
    assert!(agents.calls("qa").is_empty());
    // As it is once the time of the call's attempt is over.
    stage.execute("UPDATE ops.orchestration_grants SET expires_at = now()").await;
    stage.wait("orch-told-2", State::Completed).await;
    assert_eq!(agents.calls("qa")[0].body["allowedActions"], json!({ "comment": 3 }));
}

#[tokio::test]
async fn the_days_counters_of_the_platform_are_set_back_at_midnight() {
    let agents = Agents::start(|_, _| Act::done(0, 0)).await;
    let stage = stage(&agents).await;
    stage
        .execute(&format!(
            "INSERT INTO autonomous_action_config (project_id, action_key, action_name, times_used_today, times_used_total, last_reset_at) VALUES \
                 ('{PROJECT}', 'old', 'o', 7, 40, now() - interval '25 hours'), ('{PROJECT}', 'today', 't', 3, 3, now()), \
                 ('{PROJECT}', 'never', 'n', 2, 2, NULL)"
        ))
        .await;
    assert_eq!(voiceai_orchestration::reset_day(&stage.pool).await.unwrap(), 2);
    assert_eq!(voiceai_orchestration::reset_day(&stage.pool).await.unwrap(), 0);
    let rows = stage
        .rows("SELECT action_key AS k, times_used_today AS today, times_used_total AS total FROM autonomous_action_config ORDER BY 1")
        .await;
    assert_eq!(
        rows,
        [
            json!({ "k": "never", "today": 0, "total": 2 }),
            json!({ "k": "old", "today": 0, "total": 40 }),
            json!({ "k": "today", "today": 3, "total": 3 }),
        ]
    );
}
