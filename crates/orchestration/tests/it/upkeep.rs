//! The hourly look for failed jobs, the comparison with the queue's history, and cleaning up.

use serde_json::json;
use voiceai_queue::{NewJob, State};

use crate::agents::{Act, Agents};
use crate::stage::{QUEUE, Stage};

/// A job of ours that ended some time ago.
fn failed(id: &str, more: &str) -> String {
    format!(
        "INSERT INTO ops.orchestration_jobs (id, root_id, project_id, job_type, triggered_by, status, agents, input, created_at, \
             ended_at, retryable, attempt_number) \
         SELECT id, root_id, 'acme', 'batch', 'cron', status, '{{seo,qa}}', '{{\"context\":{{\"branch\":\"main\"}}}}', created_at, \
             created_at + interval '1 minute', retryable, attempt_number \
         FROM (SELECT '{id}' AS id, '{id}' AS root_id, 'failed' AS status, now() - interval '2 hours' AS created_at, \
             true AS retryable, 1 AS attempt_number) d, LATERAL (SELECT 1) x {more}"
    )
}

async fn sweep(stage: &Stage, id: &str) -> serde_json::Value {
    let job = NewJob::json("orchestration.retry-failed", &json!({})).unwrap();
    let id_ = voiceai_queue::JobId::chosen(id).unwrap();
    stage.client.enqueue(job.queue(QUEUE).id(id_)).await.unwrap();
    stage.wait(id, State::Completed).await.result.unwrap()
}

#[tokio::test]
async fn failed_jobs_are_retried_once_for_the_agents_that_did_not_succeed() {
    let agents = Agents::start(|_, _| Act::done(1, 0)).await;
    let stage = Stage::new(&agents, &[]).await;
    stage.execute(&failed("orch-acme-1", "")).await;
    stage.execute("INSERT INTO ops.orchestration_agent_runs (root_id, agent, state, job_id) VALUES ('orch-acme-1', 'seo', 'succeeded', 'orch-acme-1')").await;
    // None of these: too old, refused for good, tried often enough, cancelled.
    for (id, change) in [
        ("orch-acme-2", "created_at = now() - interval '25 hours'"),
        ("orch-acme-3", "retryable = false"),
        ("orch-acme-4", "attempt_number = 3"),
        ("orch-acme-5", "status = 'cancelled'"),
    ] {
        stage.execute(&failed(id, "")).await;
        stage.execute(&format!("UPDATE ops.orchestration_jobs SET {change} WHERE id = '{id}'")).await;
    }
    stage.work();
    let retried = sweep(&stage, "sweep-1").await;
    let id = retried["retried"][0].as_str().unwrap().to_owned();
    assert_eq!(retried["retried"].as_array().unwrap().len(), 1, "{retried}");
    assert!(id.starts_with("orch-acme-"), "{id}");
    stage.wait(&id, State::Completed).await;
    let asked: Vec<_> = agents
        .all()
        .iter()
        .map(|got| (got.agent.clone(), got.header("idempotency-key").to_owned()))
        .collect();
    assert_eq!(
        asked,
        [("qa".to_owned(), "orch-acme-1:qa".to_owned())],
        "under the name of the line's first job"
    );
    assert_eq!(agents.all()[0].body["context"]["branch"], "main");
    let row = stage.row("SELECT root_id, parent_id, attempt_number, triggered_by, status, agents_succeeded FROM ops.orchestration_jobs WHERE parent_id IS NOT NULL").await;
    assert_eq!(
        row,
        json!({ "root_id": "orch-acme-1", "parent_id": "orch-acme-1", "attempt_number": 2, "triggered_by": "retry_scheduler",
        "status": "completed", "agents_succeeded": 2 })
    );
    assert_eq!(sweep(&stage, "sweep-2").await, json!({ "retried": [] }));
}

#[tokio::test]
async fn at_most_fifty_are_retried_at_a_time() {
    let agents = Agents::start(|_, _| Act::done(0, 0)).await;
    let stage = Stage::new(&agents, &[]).await;
    for n in 0..53 {
        stage.execute(&failed(&format!("orch-acme-{n}"), "")).await;
    }
    stage.keep_order();
    assert_eq!(sweep(&stage, "sweep-1").await["retried"].as_array().unwrap().len(), 50);
    assert_eq!(sweep(&stage, "sweep-2").await["retried"].as_array().unwrap().len(), 3);
    let row = stage
        .row("SELECT count(*), count(DISTINCT payload->'context'->>'parentJobId') AS parents FROM ops.outbox")
        .await;
    assert_eq!(row, json!({ "count": 53, "parents": 53 }));
}

#[tokio::test]
async fn failed_jobs_of_the_platforms_own_table_are_retried_too() {
    let agents = Agents::start(|_, _| Act::done(0, 0)).await;
    let stage = Stage::new(&agents, &[]).await;
    stage
        .execute(
            "CREATE TABLE public.orchestration_jobs (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), project_id uuid, job_type text, \
                 status text, attempt_number int DEFAULT 1, max_attempts int DEFAULT 3, input_params jsonb DEFAULT '{}', \
                 date_created timestamptz DEFAULT now()); \
             INSERT INTO public.orchestration_jobs (id, project_id, job_type, status, input_params, date_created, attempt_number) VALUES \
                 ('00000000-0000-4000-8000-000000000001', '00000000-0000-4000-8000-00000000000a', 'single_agent', 'failed', \
                  '{\"agentSlug\":\"qa\"}', now() - interval '3 hours', 1), \
                 ('00000000-0000-4000-8000-000000000002', '00000000-0000-4000-8000-00000000000a', 'batch', 'failed', '{}', now(), 3), \
                 ('00000000-0000-4000-8000-000000000003', '00000000-0000-4000-8000-00000000000a', 'batch', 'failed', '{}', now() - interval '2 days', 1), \
                 ('00000000-0000-4000-8000-000000000004', '00000000-0000-4000-8000-00000000000a', 'batch', 'completed', '{}', now(), 1), \
                 ('00000000-0000-4000-8000-000000000005', '00000000-0000-4000-8000-00000000000a', 'task_assignment', 'failed', '{}', now(), 1);",
        )
        .await;
    stage.work();
    let retried = sweep(&stage, "sweep-1").await;
    assert_eq!(retried["retried"].as_array().unwrap().len(), 1, "{retried}");
    let id = retried["retried"][0].as_str().unwrap();
    assert!(id.starts_with("orch-00000000-0000-4000-8000-00000000000a-"), "{id}");
    stage.wait(id, State::Completed).await;
    let asked: Vec<_> = agents.all().iter().map(|got| got.header("idempotency-key").to_owned()).collect();
    assert_eq!(asked, ["00000000-0000-4000-8000-000000000001:qa"]);
    assert_eq!(sweep(&stage, "sweep-2").await, json!({ "retried": [] }));
}

#[tokio::test]
async fn a_job_that_ended_elsewhere_is_written_down() {
    let agents = Agents::start(|_, _| Act::done(0, 0)).await;
    let stage = Stage::new(&agents, &[]).await;
    stage
        .execute(
            "INSERT INTO ops.orchestration_jobs (id, root_id, project_id, job_type, triggered_by, status) \
             SELECT i, i, 'acme', 'batch', 'cron', 'queued' FROM unnest('{a,b,c,d}'::text[]) i; \
             INSERT INTO ops.job_history (job_id, queue, kind, outcome, error, finished_at) VALUES \
                 ('a', 'orchestration-queue', 'orchestration-batch', 'cancelled', 'by hand', now() - interval '1 minute'), \
                 ('b', 'orchestration-queue', 'orchestration-batch', 'dead', 'poison', now() - interval '1 minute'), \
                 ('c', 'orchestration-queue', 'orchestration-batch', 'dead', 'poison', now() - interval '2 minutes'), \
                 ('c', 'orchestration-queue', 'orchestration-batch', 'replayed', NULL, now() - interval '1 minute'), \
                 ('d', 'orchestration-queue', 'orchestration-batch', 'failed', 'tried again', now() - interval '1 minute'); \
             INSERT INTO ops.orchestration_jobs (id, root_id, project_id, job_type, triggered_by, status, started_at, timeout_at) VALUES \
                 ('e', 'e', 'acme', 'batch', 'cron', 'running', now() - interval '3 hours', now() - interval '2 hours'), \
                 ('f', 'f', 'acme', 'batch', 'cron', 'running', now() - interval '1 hour', now() - interval '50 minutes')",
        )
        .await;
    assert_eq!(voiceai_orchestration::reconcile(&stage.pool).await.unwrap(), 3);
    let rows = stage.rows("SELECT id, status, error_message FROM ops.orchestration_jobs ORDER BY id").await;
    assert_eq!(
        rows,
        [
            json!({ "id": "a", "status": "cancelled", "error_message": "by hand" }),
            json!({ "id": "b", "status": "failed", "error_message": "poison" }),
            json!({ "id": "c", "status": "queued", "error_message": null }),
            json!({ "id": "d", "status": "queued", "error_message": null }),
            json!({ "id": "e", "status": "timeout", "error_message": "nobody has told of it for long past its time" }),
            json!({ "id": "f", "status": "running", "error_message": null }),
        ]
    );
}

#[tokio::test]
async fn old_rows_go_and_what_is_still_counted_stays() {
    let agents = Agents::start(|_, _| Act::done(0, 0)).await;
    let stage =
        Stage::new(&agents, &[("ORCHESTRATION_JOB_RETENTION", "1d"), ("ORCHESTRATION_LOG_RETENTION", "3d")])
            .await;
    stage
        .execute(
            "INSERT INTO ops.orchestration_jobs (id, root_id, project_id, job_type, triggered_by, status, ended_at) \
             SELECT 'j' || h, 'j' || h, 'acme', 'batch', 'cron', 'completed', now() - h * interval '1 hour' FROM unnest('{1,25,27}'::int[]) h; \
             INSERT INTO ops.orchestration_jobs (id, root_id, project_id, job_type, triggered_by, status, created_at) \
             VALUES ('open', 'open', 'acme', 'batch', 'cron', 'running', now() - interval '9 days'); \
             INSERT INTO ops.orchestration_agent_runs (root_id, agent, state, job_id, started_at) \
             SELECT id, 'seo', 'succeeded', id, now() - interval '2 days' FROM ops.orchestration_jobs; \
             INSERT INTO ops.orchestration_execution_logs (job_id, project_id, attempt, phase, status, started_at) \
             SELECT 'l' || d, 'acme', 1, 'analyze', 'completed', now() - d * interval '1 day' FROM unnest('{1,2,4}'::int[]) d; \
             INSERT INTO ops.orchestration_actions (project_id, agent, action_key, count, job_id, done_at) \
             SELECT 'acme', 'seo', 'a', d, 'j', now() - d * interval '1 day' FROM unnest('{1,3}'::int[]) d",
        )
        .await;
    stage.work();
    let job = NewJob::json("orchestration.cleanup", &json!({})).unwrap();
    let id = voiceai_queue::JobId::chosen("clean").unwrap();
    stage.client.enqueue(job.queue(QUEUE).id(id)).await.unwrap();
    let result = stage.wait("clean", State::Completed).await.result.unwrap();
    assert_eq!(result, json!({ "jobs": 1, "agent_runs": 1, "logs": 1, "others": 1 }));
    let ids = stage.rows("SELECT id FROM ops.orchestration_jobs ORDER BY id").await;
    assert_eq!(ids, [json!({ "id": "j1" }), json!({ "id": "j25" }), json!({ "id": "open" })]);
}
