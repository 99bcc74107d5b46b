//! `mail …` through the binary, with a mail server that does as it is told.

use serde_json::{Value, json};
use voiceai_testkit::{Act, Process, Program, SmtpSink, Step, wait_for};

use crate::stage::{Answer, PATIENCE, Stage, answer};

struct Post {
    stage: Stage,
    sink: SmtpSink,
}

impl Post {
    async fn new() -> Self {
        Self { stage: Stage::new().await, sink: SmtpSink::start().await }
    }

    fn program(&self) -> Program {
        self.stage.program().envs([
            ("SMTP_HOST", self.sink.address().ip().to_string()),
            ("SMTP_PORT", self.sink.port().to_string()),
            ("SMTP_TLS", "off".to_owned()),
            ("MAIL_RETRY_LADDER", "50ms,50ms".to_owned()),
            ("MAIL_PROVIDER_PAUSE", "300ms".to_owned()),
        ])
    }

    async fn tasker(&self) -> Process {
        let process = self.program().arg("run").start();
        process.wait_for_line(PATIENCE, "service ready").await;
        process
    }

    async fn ask(&self, arguments: &[&str]) -> Answer {
        answer(self.program().args(arguments)).await
    }

    async fn send(&self, id: &str, to: &str) {
        let payload =
            json!({ "to": [to], "subject": format!("Subject {id}"), "text_body": "Hello." }).to_string();
        self.ask(&["jobs", "enqueue", "send-email", "--id", id, "--payload", &payload]).await.text(0);
    }

    async fn until(&self, id: &str, status: &str) -> Value {
        wait_for(PATIENCE, format!("{id} is {status}"), async || {
            let shown = self.ask(&["mail", "show", id, "--json"]).await;
            let shown: Value = serde_json::from_str(&shown.stdout).map_err(|_| format!("{shown:?}"))?;
            if shown["status"] == status { Ok(shown) } else { Err(shown.to_string()) }
        })
        .await
    }
}

#[tokio::test]
async fn a_mail_is_followed_from_its_job_to_the_server_and_sent_again() {
    let post = Post::new().await;
    let tasker = post.tasker().await;
    post.send("one", "kim@example.com").await;
    let shown = post.until("one", "sent").await;
    assert_eq!(shown["attempt_rows"][0]["status"], "provider_accepted", "{shown}");
    assert_eq!((&shown["source"], &shown["recipients"]), (&json!("email_queue"), &json!(1)));
    let listed = post
        .ask(&["mail", "list", "--status", "sent", "--recipient", "KIM@example.com", "--json"])
        .await
        .json(0);
    assert_eq!(listed["deliveries"][0]["delivery_id"], "one", "{listed}");
    let text = post.ask(&["mail", "show", "one"]).await;
    assert!(text.text(0).contains("provider_accepted") && text.stdout.contains("Subject one"), "{text:?}");
    post.ask(&["mail", "show", "none", "--json"]).await.failure(3);
    let again = post.ask(&["mail", "resend", "one", "--yes", "--json"]).await.json(0);
    let id = again["delivery_id"].as_str().unwrap();
    assert_eq!(post.until(id, "sent").await["resend_of"], "one");
    let ids: Vec<_> = post.sink.received().iter().map(|mail| mail.header("Message-ID")).collect();
    assert!(ids.len() == 2 && ids[0] != ids[1], "{ids:?}");
    for line in [
        "mail command consumer started",
        "mail scheduler started",
        "mail worker pool started",
        "mail retention worker started",
        "NotificationService",
    ] {
        assert!(tasker.stderr().contains(line), "{line}");
    }
    tasker.terminate();
    tasker.wait_exit(PATIENCE).await;
    for line in
        ["consumer stopped", "mail scheduler stopped", "mail worker pool stopped", "retention worker stopped"]
    {
        assert!(tasker.stderr().contains(line), "{line}");
    }
}

#[tokio::test]
async fn dead_letters_are_planned_and_sent_back_under_the_rules_of_every_replay() {
    let post = Post::new().await;
    let tasker = post.tasker().await;
    post.sink.always(Step::Rcpt, Act::reply("451 4.3.0 come back later"));
    for n in 0..12 {
        post.send(&format!("d-{n}"), "kim@example.com").await;
    }
    for n in 0..12 {
        post.until(&format!("d-{n}"), "dead_letter").await;
    }
    let plan = post.ask(&["mail", "replay", "--error-contains", "4.3.0", "--json"]).await.json(0);
    assert_eq!(
        (&plan["executed"], &plan["matched"], &plan["would_replay"]),
        (&json!(false), &json!(12), &json!(10))
    );
    let refused =
        post.ask(&["mail", "replay", "--limit", "12", "--execute", "--yes", "--json"]).await.failure(4);
    assert_eq!(refused["code"], "limit_needs_proof");
    post.sink.behave();
    let orders = ["mail", "replay", "--limit", "2", "--rate", "50/s", "--execute", "--yes", "--json"];
    let carried = post.ask(&orders).await.json(0);
    assert_eq!(
        (&carried["ended"], &carried["replay"]["counts"]["completed"]),
        (&json!("settled"), &json!(2)),
        "{carried}"
    );
    let orders = ["mail", "replay", "--limit", "100", "--rate", "50/s", "--execute", "--yes", "--json"];
    let carried = post.ask(&orders).await.json(0);
    assert_eq!(carried["replay"]["counts"]["completed"], 10, "{carried}");
    assert_eq!(post.sink.count(), 12);
    post.ask(&["mail", "replay", "d-0", "--json"]).await.failure(3);
    drop(tasker);
}

#[tokio::test]
async fn a_pause_keeps_mail_back_and_status_says_so() {
    let post = Post::new().await;
    let tasker = post.tasker().await;
    post.ask(&["mail", "pause", "--provider", "smtp", "--yes", "--json"]).await.failure(2);
    let pause =
        ["mail", "pause", "--provider", "smtp", "--for", "1h", "--reason", "moving", "--yes", "--json"];
    post.ask(&pause).await.json(0);
    post.send("held", "kim@example.com").await;
    post.until("held", "queued").await;
    let status = post.ask(&["status", "--json"]).await.json(0);
    assert_eq!(
        (&status["mail"]["pauses"][0]["subject"], &status["mail"]["due"]),
        (&json!("smtp"), &json!(1)),
        "{status}"
    );
    assert!(post.ask(&["status"]).await.text(0).contains("smtp paused until"));
    assert_eq!(post.sink.count(), 0);
    post.ask(&["mail", "resume", "--provider", "smtp", "--yes"]).await.text(0);
    post.until("held", "sent").await;
    post.ask(&["mail", "resume", "--provider", "smtp", "--yes", "--json"]).await.failure(3);
    let audit = post.ask(&["audit", "list", "--json"]).await;
    for action in ["mail.pause", "mail.resume"] {
        assert!(audit.text(0).contains(action), "{action}");
    }
    drop(tasker);
}

#[tokio::test]
async fn who_is_on_the_list_is_not_written_to() {
    let post = Post::new().await;
    let tasker = post.tasker().await;
    post.ask(&["mail", "suppressions", "add", "Gone@Example.com", "--reason", "asked", "--yes"])
        .await
        .text(0);
    post.send("s-1", "gone@example.com").await;
    let shown = post.until("s-1", "suppressed").await;
    assert!(shown["attempt_rows"][0]["detail"].as_str().unwrap().contains("suppression list"), "{shown}");
    let listed = post.ask(&["mail", "suppressions", "list", "--json"]).await.json(0);
    assert_eq!(listed["suppressions"][0]["address"], "gone@example.com");
    post.ask(&["mail", "suppressions", "remove", "gone@example.com", "--yes"]).await.text(0);
    post.send("s-2", "gone@example.com").await;
    post.until("s-2", "sent").await;
    drop(tasker);
}

#[tokio::test]
async fn a_wrong_password_rests_the_provider_and_burns_no_attempt() {
    let post = Post::new().await;
    let tasker = post.tasker().await;
    post.sink.always(Step::Mail, Act::reply("530 5.7.0 authentication required"));
    post.send("p-1", "kim@example.com").await;
    tasker.wait_for_line(PATIENCE, "mail provider at fault, all sending rests").await;
    // It rests for longer each time; the first rests may be over before a command of a busy machine has begun.
    wait_for(PATIENCE, "the provider is seen at rest", async || {
        let paused = post.ask(&["mail", "pause", "--json"]).await.json(0);
        if paused["pauses"][0]["automatic"] == true { Ok(()) } else { Err(paused) }
    })
    .await;
    post.sink.behave();
    let shown = post.until("p-1", "sent").await;
    let last = shown["attempt_rows"].as_array().unwrap().len();
    assert!(last >= 2, "{shown}");
    tasker.wait_for_line(PATIENCE, "mail provider works again").await;
}

#[tokio::test]
async fn templates_are_listed_and_previewed_and_a_broken_one_stops_the_start() {
    let post = Post::new().await;
    let listed = post.ask(&["mail", "templates", "--json"]).await.json(0);
    assert!(listed["templates"].as_array().unwrap().iter().any(|t| t["id"] == "auth.login_code"), "{listed}");
    let preview = post.ask(&["mail", "preview", "auth.login_code", "--locale", "de"]).await;
    assert!(preview.text(0).starts_with("Subject: "), "{preview:?}");
    post.ask(&["mail", "preview", "none", "--json"]).await.failure(3);
    post.ask(&["mail", "preview", "auth.login_code", "--variables", "{}", "--json"]).await.failure(4);
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("welcome")).unwrap();
    std::fs::write(folder.path().join("welcome/manifest.json"), "{").unwrap();
    let refused = answer(post.program().env("MAIL_TEMPLATE_DIR", folder.path()).arg("run")).await;
    assert_eq!(refused.exit, 4, "{refused:?}");
    assert!(refused.stderr.contains("manifest.json"), "{refused:?}");
}

#[tokio::test]
async fn a_dead_letter_reaches_those_who_run_the_platform() {
    let post = Post::new().await;
    let program = post.program().env("ALERT_RECIPIENTS", "ops@example.org").arg("run");
    let tasker = program.start();
    tasker.wait_for_line(PATIENCE, "service ready").await;
    post.sink.recipient("kim@example.com", Act::reply("451 4.3.0 come back later"));
    post.send("given-up", "kim@example.com").await;
    post.until("given-up", "dead_letter").await;
    wait_for(PATIENCE, "the notice arrives", async || {
        let mails = post.sink.received();
        let notice = mails.iter().find(|mail| mail.to == ["ops@example.org"]);
        let text = notice.map(|mail| String::from_utf8_lossy(&mail.content).replace("=\r\n", ""));
        match text {
            Some(text) if text.contains("given-up") && text.contains("mail list --status dead_letter") => {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_domain_and_a_tenant_are_paused_by_name_and_nothing_that_does_not_exist_is() {
    let post = Post::new().await;
    let tasker = post.tasker().await;
    let pause = ["--for", "1h", "--reason", "their server moves", "--yes", "--json"];
    for wrong in [["--domain", "kim@example.com"], ["--tenant", "two words"]] {
        post.ask(&[&["mail", "pause"][..], &wrong, &pause].concat()).await.failure(2);
    }
    let long =
        ["mail", "pause", "--domain", "example.com", "--for", "31d", "--reason", "r", "--yes", "--json"];
    post.ask(&long).await.failure(2);
    let bücher = ["--domain", "Bücher.example"];
    post.ask(&[&["mail", "pause"][..], &bücher, &pause].concat()).await.json(0);
    post.send("kept", "kim@bücher.example").await;
    post.send("free", "kim@example.com").await;
    post.until("free", "sent").await;
    let kept = post.until("kept", "queued").await;
    wait_for(PATIENCE, "it is put aside", async || {
        let shown = post.ask(&["mail", "show", "kept", "--json"]).await.json(0);
        let parked = shown["attempt_rows"][0]["parked"].clone();
        if parked == "domain:xn--bcher-kva.example" { Ok(()) } else { Err(parked) }
    })
    .await;
    let listed = post.ask(&["mail", "pause", "--json"]).await.json(0);
    let pause = &listed["pauses"][0];
    assert_eq!(
        (&pause["reason"], &pause["automatic"]),
        (&json!("their server moves"), &json!(false)),
        "{kept}"
    );
    assert!(pause["until"].is_string() && pause["created_by"] == "tester", "{listed}");
    post.ask(&[&["mail", "resume"][..], &bücher, &["--yes"]].concat()).await.text(0);
    post.until("kept", "sent").await;
    drop(tasker);
}
