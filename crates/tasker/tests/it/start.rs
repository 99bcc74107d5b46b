//! Settings, backends and the commands that need neither.

use serde_json::Value;

use crate::stage::{PATIENCE, Stage, answer};

#[tokio::test]
async fn every_wrong_setting_is_named_at_once() {
    let stage = Stage::new().await;
    let wrong = stage.program().envs([
        ("WORKER_CONCURRENCY", "many"),
        ("REDIS_URL", "http://somewhere"),
        ("LEADER_LOCK_TTL_MS", "300"),
        ("QUEUE_EMAIL_RATE", "fast"),
    ]);
    for arguments in [vec!["run"], vec!["jobs", "list", "--json"], vec!["config", "check", "--json"]] {
        let refused = answer(wrong.clone().args(&arguments)).await;
        assert_eq!(refused.exit, 4, "{arguments:?}: {refused:?}");
        let told = format!("{}{}", refused.stdout, refused.stderr);
        for name in ["WORKER_CONCURRENCY", "REDIS_URL", "LEADER_LOCK_TTL_MS", "QUEUE_EMAIL_RATE"] {
            assert!(told.contains(name), "{arguments:?} does not name {name}: {told}");
        }
    }
    let valid = answer(stage.program().args(["config", "check", "--json"])).await.json(0);
    assert_eq!(valid["valid"], true);
}

#[tokio::test]
async fn secrets_are_never_printed() {
    let stage = Stage::new().await;
    let canary = "canary-8f3a";
    let database = format!("postgres://someone:{canary}@127.0.0.1:1/x");
    let program = stage.program().envs([
        ("DATABASE_URL", database.as_str()),
        ("S3_SECRET_KEY", canary),
        ("S3_ACCESS_KEY", canary),
    ]);
    for arguments in [
        vec!["config", "print"],
        vec!["config", "print", "--json"],
        vec!["config", "check"],
        vec!["audit", "list", "--json"],
    ] {
        let shown = answer(program.clone().args(&arguments)).await;
        assert!(!format!("{shown:?}").contains(canary), "{arguments:?}: {shown:?}");
    }
    let printed = answer(program.args(["config", "print", "--json"])).await.json(0);
    let settings = printed["settings"].as_array().unwrap();
    let url = settings.iter().find(|setting| setting["name"] == "DATABASE_URL").unwrap();
    assert_eq!(url["secret"], true, "{url}");
}

#[tokio::test]
async fn an_unreachable_backend_is_exit_5_within_its_bound() {
    let stage = Stage::new().await;
    let away = stage.program().env("REDIS_URL", "redis://127.0.0.1:1/0").env("START_TIMEOUT", "1s");
    let (run, list) =
        tokio::join!(answer(away.clone().arg("run")), answer(away.args(["jobs", "list", "--json"])));
    assert_eq!(run.exit, 5, "{run:?}");
    assert!(run.stderr.contains("redis_unreachable"), "{run:?}");
    assert_eq!(list.failure(5)["code"], "redis_unreachable");
    let no_database =
        stage.program().env("DATABASE_URL", "postgres://x@127.0.0.1:1/x").env("START_TIMEOUT", "1s");
    let (run, audit) = tokio::join!(
        answer(no_database.clone().arg("run")),
        answer(no_database.args(["audit", "list", "--json"]))
    );
    assert_eq!(run.exit, 5, "{run:?}");
    assert_eq!(audit.failure(5)["code"], "postgres_unreachable");
}

#[tokio::test]
async fn a_process_of_another_environment_is_refused() {
    let stage = Stage::new().await;
    drop(stage.tasker("one").await);
    let other = answer(stage.program().arg("run").env("ENVIRONMENT", "production")).await;
    assert_eq!(other.exit, 4, "{other:?}");
    assert!(other.stderr.contains("production") && other.stderr.contains("development"), "{other:?}");
    let purge = ["queue", "purge", "default", "--state", "waiting", "--yes", "--json"];
    let other = answer(stage.program().args(purge).env("ENVIRONMENT", "production")).await;
    assert_eq!(other.failure(4)["code"], "wrong_installation");
}

#[tokio::test]
async fn healthcheck_tells_live_from_ready() {
    let stage = Stage::new().await;
    assert_eq!(stage.ask("healthcheck --json").await.failure(7)["code"], "not_running");
    let mut redis = voiceai_testkit::RedisServer::start(voiceai_testkit::RedisOptions::default()).await;
    let process = stage.program().arg("run").env("REDIS_URL", redis.url()).start();
    process.wait_for_line(PATIENCE, "service ready").await;
    process.wait_until(PATIENCE, "ready", async || stage.ask("healthcheck --ready").await.exit == 0).await;
    let health = stage.ask("healthcheck --json").await.json(0);
    assert_eq!(health["pid"], process.pid());
    redis.kill9().await;
    process.wait_until(PATIENCE, "unready", async || stage.ask("healthcheck --ready").await.exit == 7).await;
    assert_eq!(stage.ask("healthcheck").await.exit, 0, "a backend that is away never makes it dead");
    redis.restart(false).await;
    process
        .wait_until(PATIENCE, "ready again", async || stage.ask("healthcheck --ready").await.exit == 0)
        .await;
}

#[tokio::test]
async fn commands_without_stores_answer() {
    let stage = Stage::new().await;
    let empty = voiceai_testkit::empty_database().await;
    let migrate = stage.program().env("DATABASE_URL", &empty.url).args(["migrate", "--json"]);
    let applied = answer(migrate.clone()).await.json(0)["applied"].clone();
    assert!(applied.as_array().unwrap().contains(&Value::from("common/0001")), "{applied}");
    assert_eq!(answer(migrate).await.json(0)["applied"], serde_json::json!([]));
    assert!(stage.ask("completions bash").await.text(0).contains("voiceai-tasker"));
    assert!(stage.ask("config manifest").await.text(0).contains("WORKER_CONCURRENCY"));
    assert!(stage.ask("--version").await.text(0).contains(env!("CARGO_PKG_VERSION")));
    for wrong in ["", "nonsense", "jobs", "jobs list --limit many"] {
        assert_eq!(stage.ask(wrong).await.exit, 2, "{wrong}");
    }
    stage.ask("jobs list --limit many --json").await.failure(2);
    assert_eq!(
        stage.ask("release --restored --yes --reason checked --json").await.json(0)["released"],
        false
    );
}

#[tokio::test]
async fn a_database_that_went_back_in_time_holds_the_leader_until_it_is_released() {
    let stage = Stage::new().await;
    stage.redis.cli(&["SET", "{voiceai:tasker:leader}:term", "41"]).await;
    let process = stage.tasker("one").await;
    process.wait_for_line(PATIENCE, "term regressed").await;
    let held = stage.ask("status --json").await.json(0);
    assert_eq!(held["leader"]["term"], 42);
    assert!(held["leader"]["held_reason"].is_string(), "{held}");
    stage.ask("release --restored --json").await.failure(2);
    assert_eq!(stage.ask("release --restored --yes --reason checked --json").await.json(0)["released"], true);
    assert_eq!(stage.ask("status --json").await.json(0)["leader"]["held_reason"], Value::Null);
    assert_eq!(stage.value("SELECT reason FROM ops.audit WHERE action = 'leader.release'").await, "checked");
}

#[tokio::test]
async fn doctor_names_what_is_wrong() {
    let stage = Stage::new().await;
    let found = stage.ask("doctor --json").await;
    let checks: Value = serde_json::from_str(&found.stdout).unwrap();
    let checks = checks["checks"].as_array().unwrap();
    let result = |name: &str| {
        checks.iter().find(|check| check["check"] == name).map(|check| check["result"].clone()).unwrap()
    };
    assert_eq!(result("queue.workers"), "warning", "no tasker runs");
    assert_eq!(result("schedules"), "ok");
    assert_eq!(result("backup.bucket"), "skipped");
    assert_eq!(result("queue.dead"), "ok");
}
