//! Jobs against agents that misbehave.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use voiceai_queue::{DeadReason, State};
use voiceai_testkit::wait_until;

use crate::agents::{Act, Agents};
use crate::stage::{SOON, Stage};

const JOB: &str = "orch-acme-1";

fn order(more: Value) -> Value {
    let mut order = json!({ "projectId": "acme", "triggeredBy": "manual" });
    order.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    order
}

fn keys(calls: &[crate::agents::Got]) -> Vec<&str> {
    calls.iter().map(|got| got.header("idempotency-key")).collect()
}

#[tokio::test]
async fn a_batch_calls_every_agent_and_sums_up() {
    let agents = Agents::start(|agent, _| match agent {
        "seo" => Act::done(2, 1),
        "qa" => Act::ok(r#"{"tasksCreated":["t1"],"summary":"one task"}"#),
        _ => Act::ok(r#"{"status":"do_nothing","reason":"a quiet week"}"#),
    })
    .await;
    let stage = Stage::new(&agents, &[]).await;
    stage.work();
    let context = json!({ "userId": "u-7", "context": { "branch": "main" } });
    stage.enqueue("orchestration-batch", JOB, order(context)).await;
    let view = stage.wait(JOB, State::Completed).await;
    let result = view.result.unwrap();
    let mut expected = json!({ "success": true, "jobId": JOB, "agentsExecuted": 3, "agentsSucceeded": 3, "agentsFailed": 0,
        "tasksCreated": 3, "suggestionsCreated": 1 });
    expected["durationMs"] = result["durationMs"].clone();
    assert_eq!(result, expected);
    assert!(result["durationMs"].is_i64());
    let row = stage.row("SELECT status, agents, agents_succeeded, tasks_created, triggered_by, user_id FROM ops.orchestration_jobs").await;
    assert_eq!(
        row,
        json!({ "status": "completed", "agents": ["seo", "qa", "ops"], "agents_succeeded": 3, "tasks_created": 3,
        "triggered_by": "manual", "user_id": "u-7" })
    );
    let call = &agents.calls("seo")[0];
    assert_eq!(call.header("authorization"), "Bearer t0ken-canary");
    assert_eq!(call.header("idempotency-key"), "orch-acme-1:seo");
    for (field, value) in [
        ("projectId", json!("acme")),
        ("agentSlug", json!("seo")),
        ("jobType", json!("batch")),
        ("context", json!({ "branch": "main" })),
        ("userId", json!("u-7")),
        ("jobId", json!(JOB)),
    ] {
        assert_eq!(call.body[field], value, "{field}");
    }
    // Every phase of an agent and of the job.
    let phases = stage.rows("SELECT agent, phase, status FROM ops.orchestration_execution_logs WHERE agent IS NULL OR agent = 'ops' ORDER BY id").await;
    let told: Vec<_> =
        phases.iter().map(|row| (row["phase"].as_str().unwrap(), row["status"].as_str().unwrap())).collect();
    assert_eq!(
        told,
        [
            ("analyze", "completed"),
            ("decide", "completed"),
            ("execute", "do_nothing"),
            ("verify", "do_nothing"),
            ("complete", "completed")
        ]
    );
    assert!(agents.most_at_once() <= 3);
}

#[tokio::test]
async fn a_single_agent_is_really_one_and_an_unknown_one_is_dead_with_a_remedy() {
    let agents = Agents::start(|_, _| Act::done(1, 0)).await;
    let stage = Stage::new(&agents, &[]).await;
    stage.work();
    stage.enqueue("orchestration-single_agent", JOB, order(json!({ "agentSlug": "qa" }))).await;
    stage.wait(JOB, State::Completed).await;
    let asked: Vec<_> = agents.all().iter().map(|got| got.agent.clone()).collect();
    assert_eq!(asked, ["qa"]);
    stage.enqueue("orchestration-single_agent", "orch-acme-2", order(json!({ "agentSlug": "nobody" }))).await;
    let view = stage.wait("orch-acme-2", State::Dead).await;
    let error = format!("{view:?}");
    assert!(error.contains("nobody") && error.contains("ORCHESTRATION_AGENTS names seo, qa, ops"), "{error}");
    stage
        .enqueue(
            "orchestration-github_analysis",
            "orch-acme-3",
            order(json!({ "context": { "periodHours": 48 } })),
        )
        .await;
    stage.wait("orch-acme-3", State::Completed).await;
    assert_eq!(agents.calls("github-analysis")[0].body["periodHours"], 48);
    // A payload that is none says so.
    stage.enqueue("orchestration-single_agent", "orch-acme-4", order(json!({}))).await;
    let view = stage.wait("orch-acme-4", State::Dead).await;
    assert_eq!(view.dead_reason, Some(DeadReason::BadPayload));
    assert_eq!(agents.all().len(), 2);
}

#[tokio::test]
async fn refusals_are_final_and_troubles_are_tried_again_without_asking_twice() {
    let agents = Agents::start(|agent, before| match (agent, before) {
        ("seo", _) => Act::done(1, 0),
        ("qa", 0) => Act::status(500),
        ("qa", 1) => Act::DieMidway,
        ("qa", _) => Act::done(1, 0),
        _ => Act::status(422),
    })
    .await;
    let stage = Stage::new(&agents, &[]).await;
    stage.work();
    stage.enqueue("orchestration-batch", JOB, order(json!({}))).await;
    let view = stage.wait(JOB, State::Dead).await;
    assert_eq!(view.dead_reason, Some(DeadReason::DiscardedByHandler));
    assert!(format!("{view:?}").contains("1 of 3 agents failed: ops: HTTP 422: told so"), "{view:?}");
    // One that succeeded is not asked again, one that refused neither; each call of one agent has one key.
    assert_eq!((agents.calls("seo").len(), agents.calls("ops").len()), (1, 1));
    assert_eq!(keys(&agents.calls("qa")), ["orch-acme-1:qa"; 3]);
    let row = stage.row("SELECT status, retryable, agents_executed, agents_succeeded, agents_failed, error_code FROM ops.orchestration_jobs").await;
    assert_eq!(
        row,
        json!({ "status": "failed", "retryable": false, "agents_executed": 3, "agents_succeeded": 2,
        "agents_failed": 1, "error_code": "agents_refused" })
    );
}

#[tokio::test]
async fn a_replay_asks_those_again_that_refused_and_no_others() {
    let mended = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&mended);
    let agents = Agents::start(move |agent, _| match agent {
        "ops" if !seen.load(Ordering::SeqCst) => Act::status(403),
        _ => Act::done(1, 0),
    })
    .await;
    let stage = Stage::new(&agents, &[]).await;
    stage.work();
    stage.enqueue("orchestration-batch", JOB, order(json!({}))).await;
    let view = stage.wait(JOB, State::Dead).await;
    assert!(format!("{view:?}").contains("ORCHESTRATION_AGENTS_TOKEN"), "{view:?}");
    mended.store(true, Ordering::SeqCst);
    stage.client.replay(crate::stage::QUEUE, &[JOB.to_owned()], "mended").await.unwrap();
    stage.wait(JOB, State::Completed).await;
    let calls = ["seo", "qa", "ops"].map(|agent| agents.calls(agent).len());
    assert_eq!(calls, [1, 1, 2]);
    assert_eq!(keys(&agents.calls("ops")), ["orch-acme-1:ops"; 2]);
    let row = stage
        .row("SELECT status, agents_succeeded, agents_failed, error_message FROM ops.orchestration_jobs")
        .await;
    assert_eq!(
        row,
        json!({ "status": "completed", "agents_succeeded": 3, "agents_failed": 0, "error_message": null })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_dripping_huge_and_senseless_answers_are_failures_in_time() {
    let agents = Agents::start(|agent, _| match agent {
        "hang" => Act::Hang,
        "drip" => Act::Drip,
        "huge" => Act::HugeBody(200),
        "grudge" => Act::HugeBody(400),
        "garbage" => Act::Garbage,
        _ => Act::ok("<html>"),
    })
    .await;
    let own = [
        ("ORCHESTRATION_AGENTS", "hang,drip,huge,grudge,garbage,html"),
        ("ORCHESTRATION_AGENT_TIMEOUT", "300ms"),
        ("ORCHESTRATION_AGENT_CONCURRENCY", "6"),
        ("ORCHESTRATION_RESPONSE_BYTES_MAX", "100000"),
    ];
    let stage = Stage::new(&agents, &own).await;
    stage.work();
    stage.enqueue("orchestration-batch", JOB, order(json!({}))).await;
    let view = stage.wait(JOB, State::Dead).await;
    assert_eq!(view.dead_reason, Some(DeadReason::Exhausted));
    let rows = stage
        .rows("SELECT agent, calls, final, error FROM ops.orchestration_agent_runs ORDER BY agent")
        .await;
    let of = |agent: &str| rows.iter().find(|row| row["agent"] == agent).unwrap().clone();
    for (agent, calls, is_final, says) in [
        ("hang", 3, false, "no answer within 300ms"),
        ("drip", 3, false, "no answer within 300ms"),
        ("garbage", 3, false, "broken answer"),
        ("huge", 1, true, "longer than 100000 bytes"),
        ("grudge", 1, true, "HTTP 400: xxx"),
        ("html", 1, true, "no JSON object"),
    ] {
        let row = of(agent);
        assert_eq!((row["calls"].as_i64(), row["final"].as_bool()), (Some(calls), Some(is_final)), "{row}");
        assert!(row["error"].as_str().unwrap().contains(says), "{row}");
        assert_eq!(agents.calls(agent).len(), usize::try_from(calls).unwrap());
    }
    let row = stage.row("SELECT status, retryable, agents_failed FROM ops.orchestration_jobs").await;
    assert_eq!(row, json!({ "status": "failed", "retryable": true, "agents_failed": 6 }));
}

#[tokio::test]
async fn an_agents_wish_for_time_is_obeyed_by_every_job_and_costs_no_attempt() {
    let agents = Agents::start(|_, before| {
        if before < 4 { Act::Answer(429, &[("retry-after", "1")], String::new()) } else { Act::done(1, 0) }
    })
    .await;
    let stage = Stage::new(&agents, &[]).await;
    stage.work();
    let begun = Instant::now();
    stage.enqueue("orchestration-single_agent", JOB, order(json!({ "agentSlug": "qa" }))).await;
    wait_until(SOON, "it was asked once", async || agents.calls("qa").len() == 1).await;
    stage
        .until(
            "the agent rests",
            "SELECT agent FROM ops.orchestration_agent_rests",
            json!([{ "agent": "qa" }]),
        )
        .await;
    // Another job leaves it alone too.
    stage.enqueue("orchestration-single_agent", "orch-acme-2", order(json!({ "agentSlug": "qa" }))).await;
    // More waits than the three attempts there are.
    stage.wait(JOB, State::Completed).await;
    stage.wait("orch-acme-2", State::Completed).await;
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    let rested = stage.rows("SELECT DISTINCT status FROM ops.orchestration_execution_logs WHERE job_id = 'orch-acme-2' AND phase = 'decide' ORDER BY status").await;
    assert!(rested.contains(&json!({ "status": "skipped" })), "{rested:?}");
}

#[tokio::test]
async fn a_cancelled_job_cuts_its_call_and_tells_the_agent() {
    let agents = Agents::start(|_, _| Act::Hang).await;
    let stage = Stage::new(&agents, &[]).await;
    stage.work();
    stage.enqueue("orchestration-single_agent", JOB, order(json!({ "agentSlug": "qa" }))).await;
    wait_until(SOON, "the agent is asked", async || agents.calls("qa").len() == 1).await;
    stage.client.cancel(crate::stage::QUEUE, &[JOB.to_owned()], "enough").await.unwrap();
    wait_until(SOON, "the agent is told", async || agents.all().iter().any(|got| got.method == "DELETE"))
        .await;
    let told = agents.all().into_iter().find(|got| got.method == "DELETE").unwrap();
    assert_eq!((told.agent.as_str(), told.header("idempotency-key")), ("qa", "orch-acme-1:qa"));
    assert_eq!(told.header("authorization"), "Bearer t0ken-canary");
    stage
        .until(
            "its row says so",
            "SELECT status, error_code FROM ops.orchestration_jobs",
            json!([{ "status": "cancelled", "error_code": "cancelled" }]),
        )
        .await;
    let open = stage.rows("SELECT 1 FROM ops.orchestration_execution_logs WHERE status = 'running'").await;
    assert!(open.is_empty());
    assert_eq!(agents.calls("qa").len(), 1);
}

#[tokio::test]
async fn an_attempt_ends_when_its_time_is_over_and_goes_on_where_it_was() {
    let agents = Agents::start(|agent, before| match (agent, before) {
        ("qa", 0 | 1) => Act::Hang,
        _ => Act::done(1, 0),
    })
    .await;
    let stage = Stage::with_limit(&agents, &[], Duration::from_millis(1_500)).await;
    stage.work();
    stage.enqueue("orchestration-batch", JOB, order(json!({}))).await;
    stage.wait(JOB, State::Completed).await;
    assert_eq!(["seo", "qa", "ops"].map(|agent| agents.calls(agent).len()), [1, 3, 1]);
    assert!(
        agents.all().iter().all(|got| got.method == "POST"),
        "the job went on: nobody is told that it is over"
    );
    let row = stage.row("SELECT status, begun, agents_succeeded FROM ops.orchestration_jobs").await;
    assert_eq!(row, json!({ "status": "completed", "begun": 3, "agents_succeeded": 3 }));
}

#[tokio::test]
async fn a_job_whose_attempts_all_run_out_of_time_is_a_timeout() {
    let agents = Agents::start(|_, _| Act::Hang).await;
    let stage = Stage::with_limit(&agents, &[], Duration::from_millis(1_500)).await;
    stage.work();
    stage.enqueue("orchestration-single_agent", JOB, order(json!({ "agentSlug": "qa" }))).await;
    stage.wait(JOB, State::Dead).await;
    let row = stage.row("SELECT status, error_code FROM ops.orchestration_jobs").await;
    assert_eq!(row, json!({ "status": "timeout", "error_code": "timeout" }));
    assert_eq!(agents.calls("qa").len(), 3);
    let told = agents.all().into_iter().filter(|got| got.method == "DELETE").count();
    assert_eq!(told, 1, "with its last attempt the job is over");
}

#[tokio::test]
async fn what_an_agent_may_do_by_itself_is_limited_and_counted() {
    let agents = Agents::start(|_, _| Act::ok(r#"{"actionsExecuted":{"comment":2,"merge":1}}"#)).await;
    let stage = Stage::new(&agents, &[]).await;
    stage
        .execute(
            "INSERT INTO ops.autonomous_action_config (project_id, action_key, agent_slug, is_enabled, max_per_hour, cooldown_minutes) \
             VALUES ('acme', 'comment', NULL, true, 3, 0), ('acme', 'comment', 'qa', true, 2, 0), ('acme', 'merge', 'qa', false, 9, 0)",
        )
        .await;
    stage.work();
    let by_itself = json!({ "projectId": "acme", "triggeredBy": "system", "agentSlug": "qa" });
    stage.enqueue("orchestration-single_agent", JOB, by_itself.clone()).await;
    stage.wait(JOB, State::Completed).await;
    assert_eq!(agents.calls("qa")[0].body["allowedActions"], json!({ "comment": 2 }));
    let verified = stage
        .row("SELECT status, message FROM ops.orchestration_execution_logs WHERE phase = 'verify'")
        .await;
    assert_eq!(
        verified,
        json!({ "status": "failed", "message": "it did what it was not granted: merge 1 times" })
    );
    let counted = stage.rows("SELECT times_used_today AS today, times_used_total AS total FROM ops.autonomous_action_config ORDER BY action_key, agent_slug NULLS FIRST").await;
    assert_eq!(
        counted,
        [
            json!({ "today": 2, "total": 2 }),
            json!({ "today": 2, "total": 2 }),
            json!({ "today": 1, "total": 1 })
        ]
    );
    // Used up: the agent is passed over, and the job has nothing more to do.
    stage.enqueue("orchestration-single_agent", "orch-acme-2", by_itself).await;
    stage.wait("orch-acme-2", State::Completed).await;
    assert_eq!(agents.calls("qa").len(), 1);
    let skipped = stage.row("SELECT status, message FROM ops.orchestration_execution_logs WHERE job_id = 'orch-acme-2' AND phase = 'decide'").await;
    assert_eq!(skipped["status"], "skipped");
    assert!(skipped["message"].as_str().unwrap().contains("comment: max_per_hour 2 is reached"), "{skipped}");
    // A person who asks for a run is not limited.
    stage.enqueue("orchestration-single_agent", "orch-acme-3", order(json!({ "agentSlug": "qa" }))).await;
    stage.wait("orch-acme-3", State::Completed).await;
    assert_eq!(agents.calls("qa")[1].body.get("allowedActions"), None);
}

#[tokio::test]
async fn a_job_that_is_delivered_again_after_its_end_calls_nobody() {
    let agents = Agents::start(|_, _| Act::done(1, 0)).await;
    let stage = Stage::new(&agents, &[]).await;
    stage
        .execute(
            "INSERT INTO ops.orchestration_jobs (id, root_id, project_id, job_type, triggered_by, status, agents_executed, \
                 agents_succeeded, tasks_created, started_at, ended_at, duration_ms) \
             VALUES ('orch-acme-1', 'orch-acme-1', 'acme', 'batch', 'manual', 'completed', 3, 3, 7, now(), now(), 42)",
        )
        .await;
    stage.work();
    stage.enqueue("orchestration-batch", JOB, order(json!({}))).await;
    let view = stage.wait(JOB, State::Completed).await;
    let result = view.result.unwrap();
    assert_eq!((&result["tasksCreated"], &result["durationMs"]), (&json!(7), &json!(42)));
    assert!(agents.all().is_empty());
}
