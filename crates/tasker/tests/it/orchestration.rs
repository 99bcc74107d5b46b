//! Orchestration through the real binary: killed in the middle of a batch, asked why a schedule waits.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use voiceai_testkit::{Program, wait_for, wait_until};

use crate::stage::{Answer, PATIENCE, Stage, answer};

/// Agents that answer at once, except `slow`, which answers nothing before it is let go.
#[derive(Clone)]
struct Agents {
    port: u16,
    /// Agent and `Idempotency-Key` of each call.
    calls: Arc<Mutex<Vec<(String, String)>>>,
    gate: watch::Sender<bool>,
}

impl Agents {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let this = Self { port, calls: Arc::default(), gate: watch::Sender::new(false) };
        let own = this.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let own = own.clone();
                tokio::spawn(async move { own.serve(stream).await });
            }
        });
        this
    }

    async fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let mut first = String::new();
            stream.read_line(&mut first).await.ok().filter(|read| *read > 0)?;
            let agent = first.split_whitespace().nth(1)?.trim_start_matches('/').to_owned();
            let (mut key, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
                let Some((name, value)) = line.trim_end().split_once(": ") else { break };
                match name.to_ascii_lowercase().as_str() {
                    "idempotency-key" => value.clone_into(&mut key),
                    "content-length" => length = value.parse().unwrap(),
                    _ => {}
                }
            }
            stream.read_exact(&mut vec![0; length]).await.ok()?;
            self.calls.lock().unwrap().push((agent.clone(), key));
            if agent == "slow" {
                self.gate.subscribe().wait_for(|open| *open).await.ok()?;
            }
            let body = r#"{"tasksCreated":1}"#;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(head.as_bytes()).await.ok()?;
        }
    }

    fn calls(&self, agent: &str) -> Vec<String> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|(called, _)| called == agent).map(|(_, key)| key.clone()).collect()
    }
}

fn program(stage: &Stage, agents: &Agents) -> Program {
    stage.program().envs([
        ("ORCHESTRATION_AGENTS_URL", format!("http://127.0.0.1:{}/", agents.port)),
        ("ORCHESTRATION_AGENTS", "quick,slow,last".to_owned()),
        ("ORCHESTRATION_AGENT_CONCURRENCY", "1".to_owned()),
        ("QUEUE_ORCHESTRATION_BACKOFF", "50ms".to_owned()),
        ("SCHEDULER_POLL_INTERVAL_MS", "200".to_owned()),
    ])
}

async fn ask(stage: &Stage, agents: &Agents, line: &str) -> Answer {
    answer(program(stage, agents).args(line.split_whitespace())).await
}

#[tokio::test]
async fn a_tasker_killed_in_the_middle_of_a_batch_calls_nobody_under_another_key() {
    let (stage, agents) = (Stage::new().await, Agents::start().await);
    let killed = program(&stage, &agents).arg("run").start();
    killed.wait_for_line(PATIENCE, "service ready").await;
    let enqueue =
        ["jobs", "enqueue", "orchestration-batch", "--payload", r#"{"projectId":"acme"}"#, "--json"];
    let enqueued = answer(program(&stage, &agents).args(enqueue)).await.json(0);
    let id = enqueued["jobs"][0]["id"].as_str().or(enqueued["id"].as_str()).unwrap().to_owned();
    assert!(id.starts_with("orch-acme-"), "{enqueued}");
    wait_until(PATIENCE, "the batch is half done", async || agents.calls("slow").len() == 1).await;
    killed.kill9();
    killed.wait_exit(PATIENCE).await;
    agents.gate.send_replace(true);

    let successor = program(&stage, &agents).arg("run").env("INSTANCE_ID", "two").start();
    successor.wait_for_line(PATIENCE, "service ready").await;
    // The dead worker's lease has to end first.
    wait_for(PATIENCE * 3, "the successor ends it", async || {
        let shown = stage.ask_all(&["jobs", "show", &id, "--json"]).await;
        let job: serde_json::Value = serde_json::from_str(&shown.stdout).map_err(|_| format!("{shown:?}"))?;
        if job["state"] == "completed" { Ok(()) } else { Err(job.to_string()) }
    })
    .await;
    assert_eq!(agents.calls("quick"), [format!("{id}:quick")], "it had succeeded: not asked again");
    assert_eq!(agents.calls("slow"), [format!("{id}:slow"), format!("{id}:slow")], "one key, so one effect");
    assert_eq!(agents.calls("last"), [format!("{id}:last")]);
    let shown = ask(&stage, &agents, &format!("orchestration show {id} --json")).await.json(0);
    assert_eq!((&shown["status"], &shown["tasks_created"]), (&json!("completed"), &json!(3)), "{shown}");
    let phases = shown["phases"].as_array().unwrap();
    let lost = phases
        .iter()
        .find(|phase| phase["message"].as_str().is_some_and(|text| text.contains("the process ended")));
    assert_eq!(
        lost.map(|phase| (&phase["agent"], &phase["status"])),
        Some((&json!("slow"), &json!("failed"))),
        "{shown}"
    );
    successor.wait_for_line(PATIENCE, "Orchestration job completed").await;
}

#[tokio::test]
async fn a_schedule_fires_in_the_leader_and_tells_why_another_does_not() {
    let (stage, agents) = (Stage::new().await, Agents::start().await);
    agents.gate.send_replace(true);
    stage
        .database
        .execute(
            "INSERT INTO ops.agent_orchestration_schedules (project_id, agent_slug, schedule_type) VALUES ('acme', 'quick', 'hourly'); \
             INSERT INTO ops.agent_orchestration_schedules (project_id, is_enabled) VALUES ('idle', false)",
        )
        .await;
    let process = program(&stage, &agents).arg("run").start();
    process.wait_for_line(PATIENCE, "orchestration schedule fired").await;
    let jobs = wait_for(PATIENCE, "its job is completed", async || {
        let shown = ask(&stage, &agents, "orchestration jobs --project acme --json").await.json(0);
        if shown["jobs"][0]["status"] == "completed" { Ok(shown) } else { Err(shown.to_string()) }
    })
    .await;
    assert_eq!(
        (&jobs["jobs"][0]["triggered_by"], &jobs["jobs"][0]["job_type"]),
        (&json!("cron"), &json!("single_agent"))
    );
    assert_eq!(agents.calls("quick").len(), 1);
    let why = wait_for(PATIENCE, "both were looked at since", async || {
        let shown = ask(&stage, &agents, "orchestration schedules --json").await.json(0);
        let of = |project: &str| shown["schedules"].as_array().unwrap().iter().find(|row| row["project"] == project).unwrap()["reason"].to_string();
        let (fired, off) = (of("acme"), of("idle"));
        if fired.contains("nothing is due before") && off.contains("is_enabled is false") { Ok(shown) } else { Err(shown.to_string()) }
    })
    .await;
    assert_eq!(why["schedules"].as_array().unwrap().len(), 2);
    let missing = ask(&stage, &agents, "orchestration show orch-nobody-1 --json").await;
    assert!(missing.failure(3)["remedy"].as_str().unwrap().contains("orchestration jobs"));
    // The two that keep it in order run by hand too.
    for name in ["orchestration-retry-failed", "orchestration-cleanup"] {
        let run = ask(&stage, &agents, &format!("cron run {name} --yes --json")).await;
        assert_eq!(run.exit, 0, "{run:?}");
    }
    wait_until(PATIENCE, "both ran", async || {
        let listed = ask(&stage, &agents, "jobs list --state completed --json").await;
        ["orchestration.retry-failed", "orchestration.cleanup"]
            .iter()
            .all(|kind| listed.stdout.contains(kind))
    })
    .await;
}

#[tokio::test]
async fn a_running_batch_is_cancelled_by_its_command() {
    let (stage, agents) = (Stage::new().await, Agents::start().await);
    let process = program(&stage, &agents).arg("run").start();
    process.wait_for_line(PATIENCE, "service ready").await;
    let enqueue = [
        "jobs",
        "enqueue",
        "orchestration-single_agent",
        "--payload",
        r#"{"projectId":"acme","agentSlug":"slow"}"#,
        "--id",
        "mine",
    ];
    answer(program(&stage, &agents).args(enqueue)).await.text(0);
    wait_until(PATIENCE, "the agent is asked", async || agents.calls("slow").len() == 1).await;
    ask(&stage, &agents, "jobs cancel mine --queue orchestration-queue --reason enough --yes").await.text(0);
    wait_for(Duration::from_secs(20), "its row says so", async || {
        let shown = ask(&stage, &agents, "orchestration show mine --json").await.json(0);
        if shown["status"] == "cancelled" { Ok(()) } else { Err(shown.to_string()) }
    })
    .await;
    // One POST, and one call that tells of the cancellation.
    wait_until(PATIENCE, "the agent is told", async || agents.calls("slow").len() == 2).await;
}

#[tokio::test]
async fn before_a_replay_the_agents_are_asked_whether_they_can_be_reached() {
    let (stage, agents) = (Stage::new().await, Agents::start().await);
    let nobody = |program: Program| {
        program
            .envs([("ORCHESTRATION_AGENTS_URL", "http://127.0.0.1:1"), ("QUEUE_ORCHESTRATION_ATTEMPTS", "1")])
    };
    let process = nobody(program(&stage, &agents)).arg("run").start();
    process.wait_for_line(PATIENCE, "service ready").await;
    let order = r#"{"projectId":"acme","agentSlug":"quick"}"#;
    let enqueue = ["jobs", "enqueue", "orchestration-single_agent", "--payload", order, "--id", "gone"];
    answer(nobody(program(&stage, &agents)).args(enqueue)).await.text(0);
    stage.wait_for_state("gone", "dead").await;
    let plan = ["jobs", "replay", "gone", "--json"];
    let refused = answer(nobody(program(&stage, &agents)).args(plan)).await.json(0);
    assert_eq!(
        (&refused["passed"], &refused["refused"]["agents_unreachable"]),
        (&json!(0), &json!(1)),
        "{refused}"
    );
    let why = refused["candidates"][0]["refused"]["message"].to_string();
    assert!(why.contains("quick") && why.contains("refused"), "{refused}");
    // The agent is back: `HEAD` has no effect, and the job may go.
    let passes = answer(program(&stage, &agents).args(plan)).await.json(0);
    assert_eq!((&passes["passed"], &passes["refused"]), (&json!(1), &json!({})), "{passes}");
    assert_eq!(agents.calls("quick"), [""], "it was asked, and not called");
}
