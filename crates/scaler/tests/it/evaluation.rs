//! Reading the world: malformed groups and heartbeats, servers of others, missing data.

use serde_json::{Value, json};
use voiceai_testkit::wait_until;

use crate::harness::{Stack, WITHIN};

async fn beat(stack: &Stack, name: &str, change: Value) {
    let (now_ms,): (i64,) =
        voiceai_postgres::sqlx::query_as("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
            .fetch_one(&stack.pool)
            .await
            .expect("a time");
    let mut beat = json!({"service": "voice", "group": "eu", "active": 5, "capacity": 10, "atMs": now_ms});
    for (field, value) in change.as_object().expect("an object") {
        beat[field] = value.clone();
    }
    stack.redis.cli(&["SET", &format!("voiceai:heartbeat:{name}"), &beat.to_string()]).await;
}

async fn group_plan(stack: &Stack) -> Value {
    let plan = stack.json(&["plan", "--group", "eu"]).await;
    plan["groups"][0].clone()
}

#[tokio::test]
async fn servers_of_others_count_in_load_capacity_minimum_and_maximum() {
    let stack = Stack::new().await;
    stack.group("eu", 2, 3, &stack.config()).await;
    let plan = group_plan(&stack).await;
    assert_eq!(
        (plan["action"].as_str(), plan["reason"].as_str()),
        (Some("add"), Some("below_minimum")),
        "{plan}"
    );
    assert_eq!(plan["script_calls"].as_array().map(Vec::len), Some(2));
    assert_eq!(plan["script_calls"][1]["server"], "test-voice-02");
    assert!(
        plan["script_calls"][0]["script"].as_str().is_some_and(|path| path.ends_with("local/scaleUp.sh"))
    );
    beat(&stack, "hand-made-1", json!({})).await;
    beat(&stack, "hand-made-2", json!({"active": 9})).await;
    let plan = group_plan(&stack).await;
    assert_eq!(plan["decision"]["inputs"]["unmanaged"], 2, "{plan}");
    assert_eq!(plan["decision"]["inputs"]["utilisation"], 0.7);
    assert_eq!(plan["reason"], "on_target");
    beat(&stack, "hand-made-2", json!({"active": 10})).await;
    assert_eq!(group_plan(&stack).await["action"], "add");
    beat(&stack, "hand-made-3", json!({"active": 10})).await;
    assert_eq!(group_plan(&stack).await["reason"], "at_maximum");
    let status = stack.json(&["status"]).await;
    let servers = status["servers"].as_array().expect("servers");
    assert_eq!(servers.len(), 3);
    assert!(servers.iter().all(|server| server["state"] == "unmanaged"), "{status}");
    assert_eq!(stack.number("SELECT count(*) FROM ops.decisions").await, 0, "plan and status write nothing");
}

#[tokio::test]
async fn a_server_of_others_outlives_a_redis_that_was_emptied() {
    let stack = Stack::new().await;
    stack.group("eu", 1, 3, &stack.config()).await;
    beat(&stack, "hand-made-1", json!({})).await;
    let _scaler = stack.scaler("a");
    let decided = "SELECT count(*) FROM ops.decisions";
    wait_until(WITHIN, "it is counted", async || stack.number(decided).await >= 3).await;
    stack.redis.cli(&["FLUSHDB"]).await;
    // The lease went with it: a new term begins, and knows of the server all the same.
    let new_term = "SELECT count(*) FROM ops.decisions WHERE term > 1";
    wait_until(WITHIN, "the next term decides", async || stack.number(new_term).await >= 3).await;
    beat(&stack, "hand-made-1", json!({"active": 6})).await;
    // Read at once, not when the next walk finds it.
    let seen = "SELECT count(*) FROM ops.decisions WHERE (details #>> '{inputs,utilisation}')::float8 = 0.6";
    wait_until(WITHIN, "it is seen again", async || stack.number(seen).await >= 1).await;
    let bought = stack.number("SELECT count(*) FROM ops.operations").await;
    let blind = stack.number("SELECT count(*) FROM ops.decisions WHERE action <> 'hold'").await;
    assert_eq!((bought, blind), (0, 0), "nothing was bought in its place");
}

#[tokio::test]
async fn a_panic_is_remembered_by_the_next_leader() {
    let stack = Stack::new().await;
    let mut config = stack.config();
    config["panicThreshold"] = json!(0.9);
    config["scaleUpCooldownSeconds"] = json!(3600);
    config["maxSurge"] = json!(5);
    stack.group("eu", 1, 4, &config).await;
    beat(&stack, "hand-made-1", json!({"active": 20})).await;
    let plan = group_plan(&stack).await;
    assert_eq!((plan["action"].as_str(), plan["reason"].as_str()), (Some("add"), Some("panic")), "{plan}");
    assert_eq!(plan["script_calls"].as_array().map(Vec::len), Some(2), "all that is needed at once: {plan}");
    let scaler = stack.scaler("a");
    wait_until(WITHIN, "the panic is acted on", async || {
        stack.number("SELECT count(*) FROM ops.decisions WHERE reason = 'panic' AND action = 'add'").await > 0
            && stack.number("SELECT count(*) FROM ops.servers WHERE status = 'active'").await == 3
    })
    .await;
    scaler.kill9();
    scaler.wait_exit(WITHIN).await;
    beat(&stack, "hand-made-1", json!({"active": 0})).await;
    let plan = group_plan(&stack).await;
    assert_eq!(
        (plan["action"].as_str(), plan["reason"].as_str()),
        (Some("hold"), Some("after_panic")),
        "{plan}"
    );
    // Without what was written down it would remove.
    stack.database.execute("TRUNCATE ops.decisions").await;
    assert_eq!(group_plan(&stack).await["reason"], "idle");
}

#[tokio::test]
async fn a_heartbeat_that_cannot_be_believed_is_nobodys() {
    let stack = Stack::new().await;
    stack.group("eu", 0, 3, &stack.config()).await;
    for (name, change) in [
        ("negative", json!({"active": -1})),
        ("text", json!({"active": "5"})),
        ("stale", json!({"atMs": 1_700_000_000_000_u64})),
        ("future", json!({"atMs": 4_000_000_000_000_u64})),
        ("no-time", json!({"atMs": null})),
        ("no-group", json!({"group": null})),
        ("other-group", json!({"group": "us"})),
        ("other-service", json!({"service": "api"})),
    ] {
        beat(&stack, name, change).await;
    }
    stack.redis.cli(&["SET", "voiceai:heartbeat:garbage", "{{{"]).await;
    stack.redis.cli(&["SET", "voiceai:heartbeat:$(touch x)", "{}"]).await;
    stack.redis.cli(&["HSET", "voiceai:heartbeat:a-hash", "active", "1"]).await;
    let plan = group_plan(&stack).await;
    assert_eq!(plan["decision"]["inputs"]["unmanaged"], 0, "{plan}");
    assert_eq!(plan["reason"], "empty");
}

#[tokio::test]
async fn a_malformed_group_is_skipped_and_told_and_the_others_go_on() {
    let stack = Stack::new().await;
    stack.group("bad", 5, 2, &stack.config()).await;
    stack.group("worse", 1, 2, &json!({"stateDir": 5, "dispatcher": {"port": "x"}, "mode": 7})).await;
    stack.group("good", 1, 1, &stack.config()).await;
    let scaler = stack.scaler("a");
    stack.wait_settled(&["test-voice-01"]).await;
    let skipped =
        stack.number("SELECT count(DISTINCT group_name) FROM ops.decisions WHERE action = 'invalid'").await;
    assert_eq!(skipped, 2);
    let plan = stack.json(&["plan"]).await;
    let fields = |group: &str| {
        let groups = plan["groups"].as_array().expect("groups");
        let plan = groups.iter().find(|plan| plan["group"] == group).expect("the group");
        assert_eq!(plan["action"], if group == "good" { "hold" } else { "invalid" });
        let violations = plan["violations"].as_array().cloned().unwrap_or_default();
        violations.iter().map(|one| one["field"].as_str().expect("a field").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(fields("bad"), ["minInstances"]);
    assert_eq!(fields("worse"), ["scalingConfig.mode", "scalingConfig.dispatcher.port"]);
    assert!(fields("good").is_empty());
    assert!(
        scaler.stderr().contains("minInstances: 5 is above maxInstances 2")
            || scaler.stdout().contains("minInstances: 5 is above maxInstances 2")
    );
}

#[tokio::test]
async fn without_heartbeats_nothing_is_removed_or_added() {
    let stack = Stack::new().await;
    stack.group("eu", 2, 4, &stack.config()).await;
    let scaler = stack.scaler("a");
    stack.wait_settled(&["test-voice-01", "test-voice-02"]).await;
    // Silenced, not ended: their heartbeats run out while the processes stand still.
    let pids: Vec<i32> = stack
        .running()
        .iter()
        .map(|name| {
            let file = std::fs::read(stack.state().join(format!("{name}.json"))).expect("a state");
            let state: Value = serde_json::from_slice(&file).expect("JSON");
            i32::try_from(state["pid"].as_i64().expect("a pid")).expect("a pid")
        })
        .collect();
    let signal = |signal| {
        for pid in &pids {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), signal).expect("a signal");
        }
    };
    signal(nix::sys::signal::Signal::SIGSTOP);
    stack.redis.cli(&["DEL", "voiceai:heartbeat:test-voice-01", "voiceai:heartbeat:test-voice-02"]).await;
    stack.group("eu", 1, 4, &stack.config()).await;
    wait_until(WITHIN, "blind", async || {
        stack.number("SELECT count(*) FROM ops.decisions WHERE reason = 'blind'").await > 3
    })
    .await;
    assert_eq!(stack.number("SELECT count(*) FROM ops.operations").await, 2, "nothing was done");
    let operations = stack.json(&["status"]).await["operations"].as_array().map(Vec::len);
    assert_eq!(operations, Some(0));
    signal(nix::sys::signal::Signal::SIGCONT);
    wait_until(WITHIN, "seen again, and idle", async || {
        stack.number("SELECT count(*) FROM ops.operations WHERE kind = 'down'").await > 0
    })
    .await;
    assert!(scaler.exit().is_none());
}

#[tokio::test]
async fn an_api_group_is_scaled_by_connections_and_routed_by_scripts() {
    let mut stack = Stack::new().await;
    let scripts = stack.folder.path().join("providers");
    let from = crate::harness::repository().join("scripts/providers/local");
    std::fs::create_dir_all(scripts.join("local")).expect("a folder");
    for entry in std::fs::read_dir(&from).expect("a folder").flatten().filter(|entry| entry.path().is_file())
    {
        std::fs::copy(entry.path(), scripts.join("local").join(entry.file_name())).expect("a copy");
    }
    let routed = stack.folder.path().join("routed");
    for (script, word) in [("routeIn.sh", "in"), ("routeOut.sh", "out")] {
        let path = scripts.join("local").join(script);
        let body = format!(
            "#!/bin/bash\necho \"{word} $INSTANCE_NAME $PROVIDER_ID\" >> '{}'\n\
             echo \"{{\\\"name\\\":\\\"$INSTANCE_NAME\\\",\\\"status\\\":\\\"ready\\\"}}\"\n",
            routed.display()
        );
        std::fs::write(&path, body).expect("a script");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("executable");
    }
    stack.set("PROVIDER_SCRIPTS_DIR", &scripts.display().to_string());
    stack.group("web", 2, 2, &stack.config()).await;
    stack.database.execute(r#"UPDATE "ServerGroup" SET service = 'api'"#).await;
    let _scaler = stack.scaler("a");
    wait_until(WITHIN, "two in service", async || {
        stack.number("SELECT count(*) FROM ops.operations WHERE state = 'done'").await == 2
    })
    .await;
    assert_eq!(stack.records().await, [], "Kamailio routes no API server");
    let lines = std::fs::read_to_string(&routed).expect("routed in");
    assert!(lines.contains("in test-api-01 local-test-api-01-"), "{lines}");
    stack.group("web", 1, 2, &stack.config()).await;
    wait_until(WITHIN, "one removed", async || {
        stack.number("SELECT count(*) FROM ops.operations WHERE kind = 'down' AND state = 'done'").await == 1
    })
    .await;
    let lines = std::fs::read_to_string(&routed).expect("routed out");
    assert_eq!(lines.lines().filter(|line| line.starts_with("out ")).count(), 1, "{lines}");
}

#[tokio::test]
async fn a_start_up_document_reaches_the_script_checked_and_leaves_nothing_behind() {
    let mut stack = Stack::new().await;
    let folder = stack.folder.path().to_path_buf();
    let seen = folder.join("seen");
    let scripts = folder.join("providers");
    for provider in ["custom", "hetzner"] {
        std::fs::create_dir_all(scripts.join(provider)).expect("a folder");
        for (script, body) in [
            (
                "scaleUp.sh",
                format!(
                    "stat -c %a \"$CLOUD_INIT_FILE\" > '{0}'; cat \"$CLOUD_INIT_FILE\" >> '{0}'\nexit 20",
                    seen.display()
                ),
            ),
            ("scalingStatus.sh", "exit 14".to_owned()),
            ("scaleDown.sh", "exit 0".to_owned()),
        ] {
            let answer = r#"printf '{"name":"%s","status":"absent"}\n' "$INSTANCE_NAME""#;
            let path = scripts.join(provider).join(script);
            std::fs::write(&path, format!("#!/bin/sh\n{answer}\n{body}\n")).expect("a script");
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .expect("executable");
        }
    }
    let generator = crate::harness::repository().join("scripts/generate-cloud-init.sh");
    for (name, value) in [
        ("PROVIDER_SCRIPTS_DIR", scripts.display().to_string()),
        ("CLOUD_INIT_SCRIPT", generator.display().to_string()),
        ("ECR_REGISTRY", "registry".to_owned()),
        ("ECR_TAG", "1.2.3".to_owned()),
        ("CONFIG_BUCKET", "bucket".to_owned()),
        ("CONFIG_REF", "main".to_owned()),
    ] {
        stack.set(name, &value);
    }
    stack.group("eu", 1, 1, &json!({})).await;
    stack.database.execute(r#"UPDATE "ServerGroup" SET "scalingProvider" = 'hetzner'"#).await;
    let scaler = stack.scaler("a");
    wait_until(WITHIN, "a missing variable is named and nothing is asked for", async || {
        stack
            .number(
                "SELECT count(*) FROM ops.operations WHERE error_code = 'bootstrap' \
                 AND error_text LIKE '%NAMESPACE, BASTION_PUBLIC_KEY%' AND intent_at IS NULL",
            )
            .await
            > 0
    })
    .await;
    assert!(!seen.exists());
    scaler.terminate();
    scaler.wait_exit(WITHIN).await;

    // A provider of one's own may run without them; its own generator decides.
    let own = folder.join("own.sh");
    std::fs::write(&own, "#!/bin/sh\nprintf '#cloud-config\\nhostname: %s\\n' \"$INSTANCE_NAME-$ECR_TAG\"\n")
        .expect("a script");
    std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    stack.set("CLOUD_INIT_SCRIPT", &own.display().to_string());
    stack.database.execute(r#"UPDATE "ServerGroup" SET "scalingProvider" = 'custom', id = 'other'"#).await;
    let _scaler = stack.scaler("b");
    wait_until(WITHIN, "the script was called", async || {
        std::fs::read_to_string(&seen).is_ok_and(|text| text.lines().count() == 3)
    })
    .await;
    let text = std::fs::read_to_string(&seen).expect("what it saw");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(&lines[..2], ["600", "#cloud-config"]);
    assert!(lines[2].starts_with("hostname: test-voice-") && lines[2].ends_with("-1.2.3"), "{text}");
    wait_until(WITHIN, "refused for good", async || {
        stack
            .number(
                "SELECT count(*) FROM ops.operations WHERE state = 'failed_clean' AND error_code = 'refused'",
            )
            .await
            > 0
    })
    .await;
    // The document is gone with the call.
    let left = std::fs::read_dir(std::env::temp_dir())
        .expect("a folder")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("voiceai-cloud-init-"))
        .filter(|entry| std::fs::read_to_string(entry.path()).is_ok_and(|text| text.contains("-1.2.3")))
        .count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn servers_of_others_are_found_on_every_primary_of_a_cluster() {
    let cluster = voiceai_testkit::Cluster::start().await;
    let mut stack = Stack::new().await;
    stack.set("REDIS_URL", &cluster.url());
    stack.group("eu", 1, 9, &stack.config()).await;
    let settings = voiceai_redis::RedisSettings::from_url(cluster.url()).expect("an address");
    let redis = voiceai_redis::Redis::connect(&settings).await.expect("a connection");
    let at_ms = jiff::Timestamp::now().as_millisecond();
    let beat =
        json!({"service": "voice", "group": "eu", "active": 1, "capacity": 10, "atMs": at_ms}).to_string();
    // Enough names for every primary to have some.
    for number in 0..12 {
        let args = vec![format!("voiceai:heartbeat:hand-made-{number}"), beat.clone()];
        let _: voiceai_redis::Value = redis.command("SET", args).await.expect("written");
    }
    // One that is no text must not hide the others.
    let args = ["voiceai:heartbeat:odd", "active", "1"].map(str::to_owned).to_vec();
    let _: voiceai_redis::Value = redis.command("HSET", args).await.expect("written");
    let plan = group_plan(&stack).await;
    assert_eq!(plan["decision"]["inputs"]["unmanaged"], 12, "{plan}");
    assert_eq!(plan["decision"]["inputs"]["load"], 12);
}
