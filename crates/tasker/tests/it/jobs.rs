//! `jobs list|show|stats|cancel|discard`, `audit list`

use serde_json::{Value, json};
use voiceai_testkit::wait_until;

use crate::stage::{PATIENCE, Stage};

fn ids(list: &Value) -> Vec<String> {
    let jobs = list["jobs"].as_array().unwrap();
    jobs.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_list_is_filtered_and_paged() {
    let stage = Stage::new().await;
    let lines: String = (0..7)
        .map(|n| {
            let tenant = if n % 2 == 0 { "even" } else { "odd" };
            format!("{{\"kind\":\"k{n}\",\"payload\":{{}},\"id\":\"j{n}\",\"tenant\":\"{tenant}\",\"queue\":\"q{}\"}}\n", n % 2)
        })
        .collect();
    let file = stage.file("jobs.ndjson", &lines);
    stage.ask_all(&["jobs", "enqueue", "--file", &file]).await.text(0);
    stage.ask("jobs enqueue later --id d0 --delay 1h").await.text(0);

    let all = stage.ask("jobs list --json").await.json(0);
    assert_eq!(ids(&all).len(), 8);
    assert_eq!(all["next"], Value::Null);
    for job in all["jobs"].as_array().unwrap() {
        for field in ["id", "kind", "queue", "state"] {
            assert!(job[field].is_string(), "{field} of {job}");
        }
    }
    let some = stage.ask("jobs list --state waiting --queue q0 --tenant even --json").await.json(0);
    assert_eq!(ids(&some), ["j0", "j2", "j4", "j6"]);
    assert_eq!(ids(&stage.ask("jobs list --kind k3 --json").await.json(0)), ["j3"]);
    assert_eq!(ids(&stage.ask("jobs list --state delayed --json").await.json(0)), ["d0"]);
    assert!(ids(&stage.ask("jobs list --older-than 1h --json").await.json(0)).is_empty());

    let (mut seen, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let mut arguments = vec!["jobs", "list", "--limit", "3", "--json"];
        if let Some(cursor) = &cursor {
            arguments.extend(["--cursor", cursor]);
        }
        let page = stage.ask_all(&arguments).await.json(0);
        assert!(ids(&page).len() <= 3);
        seen.extend(ids(&page));
        match page["next"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => break,
        }
    }
    seen.sort();
    assert_eq!(seen, ["d0", "j0", "j1", "j2", "j3", "j4", "j5", "j6"], "each job exactly once");
    stage.ask("jobs list --cursor nonsense --json").await.failure(2);
    assert!(stage.ask("jobs list").await.text(0).starts_with("ID "));
}

#[tokio::test]
async fn numbers_have_the_platforms_shape() {
    let stage = Stage::new().await;
    let _tasker = stage.tasker("one").await;
    stage.ask("jobs enqueue diagnostic.probe --id good").await.text(0);
    stage.ask("jobs enqueue nobody --id bad").await.text(0);
    stage.ask("jobs enqueue diagnostic.probe --id later --delay 1h").await.text(0);
    stage.wait_for_record("good", "completed").await;
    stage.wait_for_state("bad", "dead").await;
    let stats = stage.ask("jobs stats --json").await.json(0);
    let queue = stats["queues"].as_array().unwrap().iter().find(|queue| queue["queue"] == "default").unwrap();
    for numbers in [&stats, queue] {
        for (field, count) in [
            ("waiting", 0),
            ("active", 0),
            ("completed", 1),
            ("failed", 1),
            ("dead", 1),
            ("delayed", 1),
            ("total", 3),
        ] {
            assert_eq!(numbers[field], count, "{field} of {numbers}");
        }
    }
    assert_eq!(stage.ask("jobs stats --queue nosuch --json").await.failure(3)["code"], "queue_not_found");
    let completed = stage.ask("jobs list --state completed --json").await.json(0);
    assert_eq!(
        (ids(&completed), &completed["jobs"][0]["kind"]),
        (vec!["good".to_owned()], &json!("diagnostic.probe"))
    );
}

#[tokio::test]
async fn show_tells_why_and_what_became_of_it() {
    let stage = Stage::new().await;
    stage.ask("jobs enqueue diagnostic.probe --id w").await.text(0);
    let waiting = stage.ask("jobs show w --json").await.json(0);
    assert_eq!(waiting["why_not"][0]["reason"], "no_worker", "{waiting}");
    let _tasker = stage.tasker("one").await;
    let done = stage.wait_for_record("w", "completed").await;
    assert_eq!(
        (&done["kind"], &done["history"][0]["state"]),
        (&json!("diagnostic.probe"), &json!("completed"))
    );
    assert_eq!(stage.ask("jobs show nosuch --json").await.failure(3)["code"], "job_not_found");
    let fails = ["jobs", "enqueue", "diagnostic.probe", "--id", "f", "--payload", r#"{"fail_times":9}"#];
    stage.ask_all(&fails).await.text(0);
    let dead = stage.wait_for_state("f", "dead").await;
    assert_eq!((&dead["dead_reason"], &dead["attempts"]), (&json!("exhausted"), &json!(2)));
    let found = stage
        .ask_all(&["jobs", "list", "--state", "dead", "--error-contains", "told to fail", "--json"])
        .await;
    assert_eq!(ids(&found.json(0)), ["f"]);
}

#[tokio::test]
async fn cancel_ends_waiting_and_running_jobs() {
    let stage = Stage::new().await;
    stage.ask("jobs enqueue k --id w1 --queue idle").await.text(0);
    let refused = stage.ask("jobs cancel w1 --json").await.failure(2);
    assert_eq!(refused["code"], "confirmation_needed");
    let dry = stage.ask("jobs cancel w1 --dry-run --json").await.json(0);
    assert_eq!((&dry["dry_run"], &dry["jobs"][0]["outcome"]), (&json!(true), &json!("cancelled")));
    assert_eq!(
        stage.ask("jobs show w1 --json").await.json(0)["state"],
        "waiting",
        "a dry run changes nothing"
    );
    let done = stage.ask("jobs cancel w1 --yes --reason superseded --as ann --json").await.json(0);
    assert_eq!(done["jobs"][0], json!({"id": "w1", "queue": "idle", "outcome": "cancelled"}));
    let gone = stage.ask("jobs show w1 --json").await.json(0);
    assert_eq!((&gone["state"], &gone["error"]), (&json!("cancelled"), &json!("superseded")));

    let _tasker = stage.tasker("one").await;
    let long = [
        "jobs",
        "enqueue",
        "diagnostic.probe",
        "--id",
        "r",
        "--payload",
        r#"{"sleep_ms":600000,"effect":"R"}"#,
    ];
    stage.ask_all(&long).await.text(0);
    stage.wait_for_state("r", "active").await;
    assert_eq!(stage.ask("jobs cancel r --yes --json").await.json(0)["jobs"][0]["outcome"], "asked");
    stage.wait_for_state("r", "cancelled").await;
    assert_eq!(stage.effects("R").await, 0);

    stage.ask("jobs cancel nosuch --yes --json").await.failure(3);
    stage.ask("jobs enqueue k --id w2 --delay 1h").await.text(0);
    let mixed = stage.ask("jobs cancel w2 nosuch --yes --json").await;
    assert_eq!(mixed.failure(6)["code"], "partly_done");
    let entry = stage.ask("audit list --limit 100 --json").await.json(0);
    let entries = entry["entries"].as_array().unwrap();
    let cancel =
        entries.iter().find(|entry| entry["subject"] == "w1" && entry["action"] == "jobs.cancel").unwrap();
    assert_eq!((&cancel["actor"], &cancel["reason"]), (&json!("ann"), &json!("superseded")));
    let page = stage.ask("audit list --limit 1 --json").await.json(0);
    assert_eq!(page["entries"].as_array().unwrap().len(), 1);
    let next = page["next"].as_str().unwrap();
    let second = stage.ask(&format!("audit list --limit 1 --cursor {next} --json")).await.json(0);
    assert_ne!(page["entries"][0]["id"], second["entries"][0]["id"]);
}

#[tokio::test]
async fn a_discarded_job_stays_readable() {
    let stage = Stage::new().await;
    let _tasker = stage.tasker("one").await;
    stage.ask("jobs enqueue nobody --id x").await.text(0);
    stage.wait_for_state("x", "dead").await;
    stage.ask("jobs discard x --yes --reason known").await.text(0);
    let shown = stage.ask("jobs show x --json").await.json(0);
    assert_eq!(
        (&shown["state"], &shown["error"], &shown["payload"]),
        (&json!("discarded"), &json!("known"), &json!({}))
    );
    stage.ask("jobs discard x --yes --json").await.failure(3);
}

/// What `jobs show` says of why a job does not run, by word.
async fn why_not(stage: &Stage, id: &str) -> Vec<Value> {
    let shown = stage.ask_all(&["jobs", "show", id, "--json"]).await.json(0);
    shown["why_not"].as_array().cloned().unwrap_or_default()
}

fn has(why: &[Value], reason: &str) -> Value {
    let found = why.iter().find(|why| why["reason"] == reason);
    found.unwrap_or_else(|| panic!("no `{reason}` in {why:?}")).clone()
}

#[tokio::test]
async fn show_names_each_reason_for_which_a_job_does_not_run() {
    let stage = Stage::new().await;
    let prefix = "voiceai:queue:{default}:";
    let submit = async |id: &str, payload: &str, options: &str| {
        let args = ["FCALL", "voiceai_v1_submit", "1", prefix, id, "diagnostic.probe", payload, options];
        let answer = stage.redis.cli(&args).await;
        assert!(answer.starts_with('1'), "{answer}");
    };
    let _tasker = stage.tasker("one").await;
    let sleeps = r#"{"sleep_ms":600000}"#;

    // Not yet due; and in the words for people.
    submit("later", "{}", r#"{"delay_ms":3600000}"#).await;
    assert!(has(&why_not(&stage, "later").await, "delayed_until")["until"].is_string());
    assert!(stage.ask("jobs show later").await.text(0).contains("delayed until 20"));

    // The holder of its key runs.
    let latest = r#"{"unique":"u","unique_mode":"latest"}"#;
    submit("holder", sleeps, latest).await;
    stage.wait_for_state("holder", "active").await;
    submit("newest", "{}", latest).await;
    assert_eq!(has(&why_not(&stage, "newest").await, "waiting_for_holder")["id"], "holder");

    // Its limit key is used up.
    stage.ask("queue set default --key-concurrency 1 --yes").await.text(0);
    submit("first", sleeps, r#"{"key":"k"}"#).await;
    stage.wait_for_state("first", "active").await;
    submit("second", "{}", r#"{"key":"k"}"#).await;
    let why = has(&why_not(&stage, "second").await, "key_concurrency");
    assert_eq!((&why["key"], &why["limit"]), (&json!("k"), &json!(1)));

    // Its children have not ended.
    let add =
        |id: &'static str, meta: &'static str| (id, format!("0||\ndiagnostic.probe\n1 {meta}\n{sleeps}"));
    let (parent, child) = (add("parent", "c=1"), add("child", "p=parent f=w"));
    let args = [
        "FCALL",
        "voiceai_v1_add",
        "1",
        prefix,
        "2",
        parent.0,
        "0||",
        "0",
        &parent.1,
        child.0,
        "0||",
        "0",
        &child.1,
    ];
    stage.redis.cli(&args).await;
    assert_eq!(has(&why_not(&stage, "parent").await, "waiting_for_children")["left"], 1);

    // The queue's rate is used up.
    stage.ask("queue set default --rate 1/h --yes").await.text(0);
    submit("rated", "{}", "{}").await;
    submit("rated-too", "{}", "{}").await;
    let why = has(&why_not(&stage, "rated-too").await, "queue_rate");
    assert_eq!((&why["limit"], &why["period_ms"]), (&json!(1), &json!(3_600_000)));

    // Others come first, nobody has its handler, and all is paused.
    stage.ask("queue pause default --yes").await.text(0);
    let answer =
        stage.redis.cli(&["FCALL", "voiceai_v1_submit", "1", prefix, "nobodys", "nobody", "{}"]).await;
    assert!(answer.starts_with('1'), "{answer}");
    let why = why_not(&stage, "nobodys").await;
    has(&why, "paused");
    has(&why, "no_handler");
    assert!(has(&why, "behind")["jobs"].as_u64() >= Some(1), "{why:?}");
}

#[tokio::test]
async fn show_names_a_used_up_queue_a_used_up_key_and_a_job_that_lost_its_worker() {
    let stage = Stage::new().await;
    let tasker = stage.tasker("one").await;
    let sleeps = r#"{"sleep_ms":600000}"#;
    let submit = async |id: &str, payload: &str, options: &str| {
        let prefix = "voiceai:queue:{default}:";
        let args = ["FCALL", "voiceai_v1_submit", "1", prefix, id, "diagnostic.probe", payload, options];
        let answer = stage.redis.cli(&args).await;
        assert!(answer.starts_with('1'), "{answer}");
    };

    // Its key started as many as it may in this hour.
    stage.redis.cli(&["HSET", "voiceai:queue:{default}:cfg", "key_rate", "1 3600000"]).await;
    submit("once", "{}", r#"{"key":"k"}"#).await;
    stage.wait_for_state("once", "completed").await;
    submit("again", "{}", r#"{"key":"k"}"#).await;
    let why = has(&why_not(&stage, "again").await, "key_rate");
    assert_eq!((&why["key"], &why["limit"], &why["period_ms"]), (&json!("k"), &json!(1), &json!(3_600_000)));

    // As many of the queue run as may.
    stage.redis.cli(&["HSET", "voiceai:queue:{default}:cfg", "concurrency", "1"]).await;
    submit("running", sleeps, "{}").await;
    stage.wait_for_state("running", "active").await;
    submit("kept", "{}", "{}").await;
    assert_eq!(has(&why_not(&stage, "kept").await, "queue_concurrency")["limit"], 1);

    // Its worker died: the next one takes it alone, once the queue hands out again.
    stage.ask("queue pause default --yes").await.text(0);
    tasker.kill9();
    let _next = stage.tasker("two").await;
    stage.wait_for_state("running", "waiting").await;
    has(&why_not(&stage, "running").await, "suspect");
}

#[tokio::test]
async fn a_payload_that_no_value_can_hold_is_shown_as_it_was_sent() {
    let stage = Stage::new().await;
    let deep = format!("{}{}", "[".repeat(300), "]".repeat(300));
    for (id, payload) in [("deep", deep.as_str()), ("great", r#"{"n":1e999,"m":12345678901234567890123}"#)] {
        stage.ask_all(&["jobs", "enqueue", "nobody", "--id", id, "--payload", payload]).await.text(0);
        let listed = stage.ask("jobs list --json").await;
        assert!(listed.text(0).contains(&format!("\"payload\":{payload}")), "{listed:?}");
        let shown = stage.ask_all(&["jobs", "show", id]).await;
        assert!(shown.text(0).contains(payload), "{shown:?}");
    }
    let _tasker = stage.tasker("one").await;
    for id in ["deep", "great"] {
        wait_until(PATIENCE, "the job is dead", async || {
            stage.ask_all(&["jobs", "show", id]).await.text(0).contains(": dead")
        })
        .await;
    }
    let plan = stage.ask("jobs replay --queue default --json").await.json(0);
    assert_eq!(plan["matched"], 2, "{plan}");
    let candidates = plan["candidates"].as_array().unwrap();
    let as_text = candidates.iter().any(|candidate| candidate["payload"] == deep.as_str());
    assert!(as_text, "as text, where no value can hold it: {plan}");
}

#[tokio::test]
async fn a_job_that_is_named_twice_is_ended_once() {
    let stage = Stage::new().await;
    for id in ["a", "b"] {
        stage.ask_all(&["jobs", "enqueue", "nobody", "--id", id]).await.text(0);
    }
    let answer = stage.ask("jobs cancel a b a --yes --json").await.json(0);
    assert_eq!(ids(&answer), ["a", "b"]);
}
