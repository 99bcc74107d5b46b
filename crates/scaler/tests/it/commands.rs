//! The command line: exit codes, JSON, the audit trail.

use voiceai_postgres::sqlx;
use voiceai_testkit::wait_until;

use crate::harness::{Stack, WITHIN};

#[tokio::test]
async fn a_person_drains_calls_back_protects_pauses_and_resumes() {
    let stack = Stack::new().await;
    stack.group("eu", 2, 2, &stack.config()).await;
    let _scaler = stack.scaler("a");
    stack.wait_settled(&["test-voice-01", "test-voice-02"]).await;
    let mut call = stack.call("test-voice-01");

    let (code, _, stderr) = stack.run(&["drain", "test-voice-01"]).await;
    assert_eq!(code, 2, "no terminal and no --yes: {stderr}");
    let (code, stdout, _) = stack.run(&["drain", "test-voice-01", "--dry-run"]).await;
    assert_eq!((code, stdout.starts_with("would: ")), (0, true), "{stdout}");
    assert_eq!(stack.number("SELECT count(*) FROM ops.operations WHERE kind = 'down'").await, 0);

    // Paused: a drained server is not replaced and not called back by a decision.
    let pause = stack.json(&["pause", "eu", "--for", "1h", "--reason", "test", "--yes"]).await;
    assert_eq!((pause["action"].as_str(), pause["target"].as_str()), (Some("pause"), Some("eu")));
    assert!(pause["until"].is_string());
    let (code, _, stderr) = stack.run(&["drain", "test-voice-01", "--reason", "maintenance", "--yes"]).await;
    assert_eq!(code, 0, "{stderr}");
    wait_until(WITHIN, "out of routing", async || {
        stack.records().await.contains(&("test-voice-01".to_owned(), "12".to_owned()))
    })
    .await;
    let (code, _, stderr) = stack.run(&["drain", "test-voice-01", "--yes"]).await;
    assert_eq!(code, 4, "already draining: {stderr}");
    let (code, _, stderr) = stack.run(&["drain", "test-voice-02", "--yes"]).await;
    assert_eq!(code, 4, "the last in service: {stderr}");
    assert!(stderr.contains("last one in service"), "{stderr}");
    let status = stack.json(&["status"]).await;
    assert_eq!(status["groups"][0]["reason"], "paused");
    assert_eq!(status["operations"][0]["actor"], "tester");
    assert_eq!(status["servers_by_state"]["draining"], 1);
    assert_eq!(status["leader"]["lease_held"], true);

    let (code, _, stderr) = stack.run(&["undrain", "test-voice-01", "--yes"]).await;
    assert_eq!(code, 0, "{stderr}");
    stack.wait_settled(&["test-voice-01", "test-voice-02"]).await;
    assert!(call.lives());
    let (code, _, _) = stack.run(&["undrain", "test-voice-01", "--yes"]).await;
    assert_eq!(code, 4, "nothing to call back");

    stack.json(&["protect", "test-voice-02", "--for", "1h", "--yes"]).await;
    let resumed = stack.json(&["resume", "--all", "--yes"]).await;
    assert_eq!((resumed["target"].as_str(), resumed["was_paused"].as_bool()), (Some("*"), Some(false)));
    let resumed = stack.json(&["resume", "eu", "--yes"]).await;
    assert_eq!(resumed["was_paused"], true);
    // The idle one is protected, so the other one goes, call and all, once its call has ended.
    stack.group("eu", 1, 2, &stack.config()).await;
    wait_until(WITHIN, "the unprotected one drains", async || {
        stack.servers().await.contains(&("test-voice-01".to_owned(), "draining".to_owned()))
    })
    .await;
    drop(call);
    stack.wait_settled(&["test-voice-02"]).await;

    let trail: Vec<(String, String, String, Option<String>)> =
        sqlx::query_as("SELECT action, subject, actor, reason FROM ops.audit ORDER BY id")
            .fetch_all(&stack.pool)
            .await
            .expect("rows");
    let actions: Vec<&str> = trail
        .iter()
        .map(|(action, ..)| action.as_str())
        .filter(|action| !action.starts_with("leader"))
        .collect();
    assert_eq!(
        actions,
        ["group.pause", "server.drain", "server.undrain", "server.protect", "group.resume", "group.resume"]
    );
    let drain = trail.iter().find(|(action, ..)| action == "server.drain").expect("its line");
    assert_eq!(
        (drain.1.as_str(), drain.2.as_str(), drain.3.as_deref()),
        ("test-voice-01", "tester", Some("maintenance"))
    );

    let first = stack.json(&["history", "--group", "eu", "--limit", "5"]).await;
    assert_eq!(first["history"].as_array().map(Vec::len), Some(5));
    let cursor = first["next"].as_str().expect("more").to_owned();
    let second = stack.json(&["history", "--group", "eu", "--limit", "5", "--cursor", &cursor]).await;
    let at = |page: &serde_json::Value, index: usize| {
        page["history"][index]["at"].as_str().expect("a time").to_owned()
    };
    assert!(
        at(&first, 0) >= at(&first, 4) && at(&first, 4) >= at(&second, 0),
        "newest first, and on from there"
    );
    assert_ne!(first["history"][4], second["history"][0]);
}

#[tokio::test]
async fn what_does_not_exist_or_answer_has_its_own_exit_code() {
    let mut stack = Stack::new().await;
    for arguments in [
        &["drain", "nobody", "--yes"][..],
        &["undrain", "nobody", "--yes"],
        &["protect", "nobody", "--for", "1h", "--yes"],
        &["pause", "nobody", "--for", "1h", "--reason", "x", "--yes"],
        &["resume", "nobody", "--yes"],
        &["plan", "--group", "nobody"],
    ] {
        let (code, stdout, stderr) = stack.run(arguments).await;
        assert_eq!(code, 3, "{arguments:?}: {stdout} {stderr}");
    }
    for arguments in [
        &["pause", "--for", "1h", "--yes"][..],
        &["pause", "eu", "--all", "--for", "1h", "--yes"],
        &["pause", "eu", "--yes"],
        &["history", "--cursor", "x"],
        &["nonsense"],
    ] {
        assert_eq!(stack.run(arguments).await.0, 2, "{arguments:?}");
    }
    assert_eq!(stack.run(&["migrate"]).await.0, 0);
    assert_eq!(stack.run(&["completions", "bash"]).await.0, 0);
    assert_eq!(stack.run(&["healthcheck"]).await.0, 7, "nothing runs");
    let (code, stdout, _) = stack.run(&["config", "print"]).await;
    assert_eq!(code, 0);
    assert!(stdout.contains("HEARTBEAT_STALE_AFTER"));
    stack.set("PROVIDER_ENV_PASS", "BASH_ENV");
    let (code, _, stderr) = stack.run(&["status"]).await;
    assert_eq!(code, 4);
    assert!(stderr.contains("PROVIDER_ENV_PASS") && stderr.contains("BASH_ENV"), "{stderr}");
    stack.set("PROVIDER_ENV_PASS", "REDIS_URL");
    stack.set("VOICEAI_FAILPOINT", "op.nonsense.before=abort");
    assert_eq!(stack.run(&["status"]).await.0, 4);
    stack.set("VOICEAI_FAILPOINT", "");
    let url = stack.redis.url.clone();
    stack.set("REDIS_URL", "redis://127.0.0.1:1/0");
    let (code, _, stderr) = stack.run(&["status", "--json"]).await;
    assert_eq!(code, 5, "{stderr}");
    let error: serde_json::Value =
        serde_json::from_str(stderr.lines().last().expect("a line")).expect("JSON");
    assert!(error["code"].is_string() && error["message"].is_string() && error["remedy"].is_string());
    stack.set("REDIS_URL", &url);
}

#[tokio::test]
async fn policies_are_rehearsed_and_compared_without_any_backend() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("a file");
    write("now.json", r#"{"minInstances": 1, "maxInstances": 8}"#);
    write(
        "eager.json",
        r#"{"minInstances": 1, "maxInstances": 8, "cooldownSeconds": 0, "scaleUpThreshold": 0.5}"#,
    );
    write("wrong.json", r#"{"minInstances": 9, "maxInstances": 8}"#);
    let rising: String = (0..200).map(|n| format!("{},{}\n", n * 30, n * 3)).collect();
    write("load.csv", &format!("at,load\n{rising}"));
    write("wrong.csv", "0,1\n30,x\n");
    let run = async |arguments: &[&str]| {
        let process =
            voiceai_testkit::Program::new(crate::harness::binary()).arg("simulate").args(arguments).start();
        let exit = process.wait_exit(WITHIN).await;
        (exit, process.stdout(), process.stderr())
    };
    let (now, eager, load, html) = (path("now.json"), path("eager.json"), path("load.csv"), path("out.html"));
    let (exit, stdout, stderr) =
        run(&["--policy", &now, "--policy", &eager, "--load", &load, "--html", &html, "--json"]).await;
    assert_eq!(exit, voiceai_testkit::Exit::Code(0), "{stderr}");
    let view: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    let of = |index: usize, field: &str| view["runs"][index]["summary"][field].as_f64().expect("a number");
    assert_eq!(view["runs"][0]["moments"].as_array().map(Vec::len), Some(200));
    assert!(of(1, "seconds_above_threshold") < of(0, "seconds_above_threshold") * 3.0);
    assert!(of(1, "server_hours") > of(0, "server_hours"), "the eager one has more servers");
    assert!(of(0, "starts") >= 3.0 && of(0, "servers_max") <= 8.0);
    let page = std::fs::read_to_string(&html).expect("a page");
    assert_eq!(page.matches("<svg").count(), 2);
    assert!(!page.contains("http"), "nothing outside of the page is needed");
    // The same load by the clock, with a hole in it, and machines of two prices.
    let stamp = |n: i64| {
        let from: jiff::Timestamp = "2026-11-22T07:59:30+01:00".parse().expect("a time");
        from + jiff::SignedDuration::from_secs(n * 30)
    };
    let timed = |hole: std::ops::Range<i64>| -> String {
        let line = |n: i64| if hole.contains(&n) { String::new() } else { (n * 3).to_string() };
        (0..200).map(|n| format!("{},{}\n", stamp(n), line(n))).collect()
    };
    write("timed.csv", &timed(0..0));
    write("hole.csv", &timed(120..160));
    write(
        "small.json",
        r#"{"minInstances": 1, "maxInstances": 8, "scalingConfig": {"machineType": "cx22"}}"#,
    );
    write(
        "big.json",
        r#"{"minInstances": 1, "maxInstances": 8, "scalingConfig": {"candidates": [{"type": "cx42"}]}}"#,
    );
    let (small, big, timed) = (path("small.json"), path("big.json"), path("timed.csv"));
    let both = ["--policy", &small, "--policy", &big, "--load", &timed, "--json"];
    let prices = ["--price", "cx22=0.01", "--price", "cx42=0.03"];
    let (exit, stdout, stderr) = run(&[&both[..], &prices].concat()).await;
    assert_eq!(exit, voiceai_testkit::Exit::Code(0), "{stderr}");
    let priced: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    let number =
        |index: usize, field: &str| priced["runs"][index]["summary"][field].as_f64().expect("a number");
    assert_eq!(priced["runs"][0]["moments"].as_array().map(Vec::len), Some(200));
    assert_eq!(number(0, "server_hours"), of(0, "server_hours"), "as in seconds");
    assert!((number(0, "cost") - 0.01 * number(0, "server_hours")).abs() < 1e-9);
    assert!((number(1, "cost") - 0.03 * number(1, "server_hours")).abs() < 1e-9);
    let (exit, stdout, _) = run(&["--policy", &small, "--load", &path("hole.csv"), "--json"]).await;
    assert_eq!(exit, voiceai_testkit::Exit::Code(0));
    let dark = stdout.matches(r#""reason":"blind""#).count() + stdout.matches(r#""reason": "blind""#).count();
    assert_eq!(dark, 40, "as long as no metrics came");
    let (exit, stdout, _) = run(&["--policy", &now, "--load", "outage", "--hours", "4"]).await;
    assert_eq!(exit, voiceai_testkit::Exit::Code(0));
    assert!(stdout.contains("blind"), "{stdout}");
    for (arguments, code, part) in [
        (
            vec!["--policy", &path("wrong.json"), "--load", "sine"],
            4,
            "minInstances: 9 is above maxInstances 8",
        ),
        (vec!["--policy", &now, "--load", &path("wrong.csv")], 4, "line 2"),
        (vec!["--policy", &path("absent.json"), "--load", "sine"], 3, "absent.json"),
        (vec!["--policy", &now, "--load", "sine", "--hours", "0"], 2, "--hours"),
        (vec!["--policy", &big, "--load", "sine", "--price", "cx22=1"], 4, "`cx42`"),
        (vec!["--policy", &big, "--load", "sine", "--price", "cx22=-1"], 2, "--price"),
    ] {
        let (exit, _, stderr) = run(&arguments).await;
        assert_eq!(exit, voiceai_testkit::Exit::Code(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(part), "{stderr}");
    }
}

#[tokio::test]
async fn every_shape_is_rehearsed_and_the_page_needs_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (first, second) = (path("a.json"), path("<img src=x onerror=alert(1)>.json"));
    for (file, up) in [(&first, 0.7), (&second, 0.5)] {
        let policy = serde_json::json!({"minInstances": 1, "maxInstances": 9, "scaleUpThreshold": up});
        let name = std::path::Path::new(file).file_name().expect("a name");
        std::fs::write(folder.path().join(name), policy.to_string()).expect("a policy");
    }
    let mut courses = std::collections::BTreeSet::new();
    for shape in ["step", "sine", "spike", "sawtooth", "outage"] {
        let html = path(&format!("{shape}.html"));
        let process = voiceai_testkit::Program::new(crate::harness::binary())
            .args(["simulate", "--load", shape, "--hours", "4", "--price", "2", "--html", &html, "--json"])
            .args(["--policy", &first, "--policy", &second])
            .start();
        let exit = process.wait_exit(WITHIN).await;
        assert_eq!(exit, voiceai_testkit::Exit::Code(0), "{shape}: {}", process.stderr());
        let view: serde_json::Value = serde_json::from_str(&process.stdout()).expect("JSON");
        for (index, file) in [&first, &second].into_iter().enumerate() {
            let run = &view["runs"][index];
            let of = |field: &str| run["summary"][field].as_f64().expect("a number");
            assert_eq!(run["policy"].as_str(), Some(file.as_str()));
            assert!(of("starts") >= 1.0 && of("ideal_server_hours") > 0.0, "{shape}: {}", run["summary"]);
            assert!((of("cost") - 2.0 * of("server_hours")).abs() < 1e-6, "{shape}: {}", run["summary"]);
        }
        let loads: Vec<String> = view["runs"][0]["moments"]
            .as_array()
            .expect("moments")
            .iter()
            .map(|moment| moment["load"].to_string())
            .collect();
        courses.insert(loads.join(" "));
        let page = std::fs::read_to_string(&html).expect("a page");
        assert_eq!(page.matches("<svg").count(), 2, "{shape}");
        for outside in
            ["http", "src=", "href", "url(", "@import", "<script", "<link", "<img", "<iframe", "//"]
        {
            // A file's name is shown, and is text.
            let shown = page.replace("&lt;img src=x onerror=alert(1)&gt;", "").replace(&path(""), "");
            assert!(!shown.contains(outside), "{shape}: {outside}");
        }
        assert!(page.contains("&lt;img src=x"), "{shape}");
    }
    assert_eq!(courses.len(), 5, "each shape is another course");
}
