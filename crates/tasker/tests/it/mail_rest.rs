//! Mail's internal REST, asked of the real binary.

use std::time::Duration;

use serde_json::{Value, json};
use voiceai_testkit::{RedisOptions, RedisServer, TcpProxy, wait_for};

use crate::http::{Listening, Reply, TOKEN};
use crate::stage::{PATIENCE, Stage};

const LOGIN: &str = "/api/v1/internal/login-code-deliveries";
const DELIVERIES: &str = "/api/v1/internal/deliveries";
const JSON: &str = "Content-Type: application/json";

/// Nothing is ever sent.
const STUB: [(&str, &str); 2] =
    [("EMAIL_TRANSPORT", "stub"), ("EMAIL_SENDER_ADDRESS", "noreply@delphi.example")];
/// What is accepted waits: there is no way out.
const WAITING: [(&str, &str); 1] = [("EMAIL_SENDER_ADDRESS", "noreply@delphi.example")];

fn ask(tasker: &Listening, key: &str, body: &str) -> Reply {
    tasker.post(LOGIN, &["-H", &format!("Idempotency-Key: {key}"), "-H", JSON, "-d", body])
}

fn code(email: &str, code: &str) -> String {
    json!({ "email": email, "code": code, "locale": "fr-FR" }).to_string()
}

/// Every delivery there is, in the order of the list.
fn all(tasker: &Listening) -> Vec<Value> {
    tasker.get(DELIVERIES).json(200)["deliveries"].as_array().unwrap().clone()
}

/// A command of the notification service.
async fn command(stage: &Stage, id: &str) {
    let payload = r#"{"to":["ada@example.com"],"subject":"Hello","text_body":"Hello, Ada."}"#;
    let key = format!("notification:{id}");
    let entry = [
        "XADD",
        "mail:delivery_commands",
        "*",
        "delivery_id",
        id,
        "source",
        "notification",
        "payload_mode",
        "rendered",
        "idempotency_key",
        &key,
        "requested_at_ms",
        "1795377600000",
        "payload_json",
        payload,
    ];
    stage.redis.cli(&entry).await;
}

async fn arrived(tasker: &Listening, id: &str) -> Value {
    wait_for(PATIENCE, format!("delivery {id}"), async || {
        let reply = tasker.get(&format!("{DELIVERIES}/{id}"));
        if reply.status == 200 { Ok(reply.json(200)) } else { Err(reply.body) }
    })
    .await
}

#[tokio::test]
async fn a_login_code_is_accepted_once_and_answered_the_same_each_time() {
    let stage = Stage::new().await;
    let tasker = Listening::start(&stage, &STUB).await;
    let body = code("ada@example.com", "482913");
    tasker
        .curl(LOGIN, &["-X", "POST", "-H", "Idempotency-Key: c-1", "-H", JSON, "-d", &body])
        .problem(401, "unauthorized");
    for _ in 0..2 {
        assert_eq!(ask(&tasker, "c-1", &body).json(200), json!({ "outcome": "suppressed" }));
    }
    assert_eq!(all(&tasker).len(), 1);
    let conflict =
        ask(&tasker, "c-1", &code("ada@example.com", "000000")).problem(409, "idempotency_conflict");
    assert_eq!(conflict["delivery_id"], all(&tasker)[0]["delivery_id"]);
    tasker.post(LOGIN, &["-H", JSON, "-d", &body]).problem(400, "missing_idempotency_key");
    ask(&tasker, "two words", &body).problem(400, "invalid_idempotency_key");
    ask(&tasker, "c-2", &body.replace("\"code\"", "\"cod\"")).problem(400, "invalid_body");
    ask(&tasker, "c-2", &format!("{body} {{}}")).problem(400, "invalid_json");
    ask(&tasker, "c-2", "").problem(400, "invalid_json");
    tasker.post(LOGIN, &["-H", "Idempotency-Key: c-2", "-d", &body]).problem(415, "unsupported_media_type");
    let wrong = ask(&tasker, "c-2", r#"{"email":"ada@example.com","code":482913,"locale":"en"}"#);
    assert_eq!(wrong.problem(400, "invalid_body")["field"], "code");
    assert!(!wrong.body.contains("482913"), "{wrong:?}");
    for email in ["no address", "a@example.com\r\nBcc: b@example.com", ""] {
        ask(&tasker, "c-2", &code(email, "1")).problem(400, "invalid_address");
    }
    assert_eq!(all(&tasker).len(), 1, "what was refused left no row");
    // The code stands in no answer but the mail itself, and in no log.
    let id = all(&tasker)[0]["delivery_id"].as_str().unwrap().to_owned();
    let shown = tasker.get(&format!("{DELIVERIES}/{id}")).body
        + &tasker.get(&format!("{DELIVERIES}/{id}/attempts")).body;
    assert!(!shown.contains("482913") && !tasker.process.stderr().contains("482913"), "{shown}");
}

#[tokio::test]
async fn twins_make_one_delivery_and_a_later_end_changes_no_answer() {
    let stage = Stage::new().await;
    let tasker = Listening::start(&stage, &WAITING).await;
    let body = code("ada@example.com", "482913");
    let answers: Vec<_> = std::thread::scope(|scope| {
        let twins: Vec<_> = (0..8).map(|_| scope.spawn(|| ask(&tasker, "twin", &body))).collect();
        twins.into_iter().map(|twin| twin.join().unwrap()).collect()
    });
    for answer in &answers {
        assert_eq!(answer.json(200), json!({ "outcome": "sent" }));
    }
    assert_eq!(all(&tasker).len(), 1);
    // Suppressed by the provider, say: the caller was told "sent", and is told so again.
    for sql in [
        "UPDATE mail.attempts SET status = 'provider_rejected', finished_at = clock_timestamp(), due_at = due_at",
        "UPDATE mail.delivery_recipients SET status = 'suppressed', ended_at = clock_timestamp()",
        "UPDATE mail.deliveries SET open_count = 0, suppressed_count = 1, next_attempt_at = NULL, finished_at = clock_timestamp()",
    ] {
        voiceai_postgres::sqlx::query(sql).execute(&stage.database.pool().await).await.unwrap();
    }
    assert_eq!(all(&tasker)[0]["status"], "suppressed");
    assert_eq!(ask(&tasker, "twin", &body).json(200), json!({ "outcome": "sent" }));
}

#[tokio::test]
async fn deliveries_are_listed_newest_first_page_by_page() {
    let stage = Stage::new().await;
    let tasker = Listening::start(&stage, &STUB).await;
    for n in 0..5 {
        ask(&tasker, &format!("k{n}"), &code(&format!("reader{n}@example.com"), "1")).json(200);
    }
    let whole = all(&tasker);
    let place = |row: &Value| {
        (row["created_at_ms"].as_i64().unwrap(), row["delivery_id"].as_str().unwrap().to_owned())
    };
    assert!(whole.windows(2).all(|pair| place(&pair[0]) > place(&pair[1])), "{whole:?}");
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = tasker.get(&format!("{DELIVERIES}?limit=2{cursor}")).json(200);
        paged.extend(page["deliveries"].as_array().unwrap().clone());
        let Some(next) = page["next"].as_str() else { break };
        let last = place(paged.last().unwrap());
        let decoded = String::from_utf8(base64url(next)).unwrap();
        assert_eq!(decoded, format!("{}:{}", last.0, last.1));
        cursor = format!("&cursor={next}");
    }
    assert_eq!(paged, whole);
    let one = tasker.get(&format!("{DELIVERIES}?recipient=READER3@example.com&status=suppressed")).json(200);
    assert_eq!(one["deliveries"].as_array().unwrap().len(), 1);
    assert_eq!(tasker.get(&format!("{DELIVERIES}?status=sent")).json(200)["deliveries"], json!([]));
    for (query, word) in [
        ("cursor=nonsense", "invalid_cursor"),
        ("cursor=OmE", "invalid_cursor"),
        ("limit=0", "invalid_query"),
        ("limit=501", "invalid_query"),
        ("status=gone", "invalid_query"),
        ("stauts=sent", "invalid_query"),
        ("tenant=%00", "invalid_value"),
    ] {
        tasker.get(&format!("{DELIVERIES}?{query}")).problem(400, word);
    }
}

fn base64url(text: &str) -> Vec<u8> {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let padded = text.replace('-', "+").replace('_', "/") + &"=".repeat((4 - text.len() % 4) % 4);
    let mut decoder =
        Command::new("base64").arg("-d").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    decoder.stdin.take().unwrap().write_all(padded.as_bytes()).unwrap();
    decoder.wait_with_output().unwrap().stdout
}

#[tokio::test]
async fn an_id_of_any_form_that_is_not_there_is_404() {
    let stage = Stage::new().await;
    let tasker = Listening::start(&stage, &STUB).await;
    let long = "x".repeat(8_000);
    for id in ["does-not-exist", "%00", "a%2Fb", "..%2f..", "%20", "%F0%9F%93%A7", "'--", &long] {
        tasker.get(&format!("{DELIVERIES}/{id}")).problem(404, "delivery_not_found");
        tasker.get(&format!("{DELIVERIES}/{id}/attempts")).problem(404, "delivery_not_found");
        tasker.post(&format!("{DELIVERIES}/{id}/resend"), &[]).problem(404, "delivery_not_found");
    }
    tasker.get(&format!("{DELIVERIES}/%ff")).problem(404, "not_found");
    tasker.curl(&format!("{DELIVERIES}/does-not-exist"), &[]).problem(401, "unauthorized");
    tasker.post(DELIVERIES, &[]).problem(405, "method_not_allowed");
}

#[tokio::test]
async fn operators_see_and_repeat_what_was_sent() {
    let stage = Stage::new().await;
    let tasker = Listening::start(&stage, &STUB).await;
    command(&stage, "d-1").await;
    let shown = arrived(&tasker, "d-1").await;
    assert_eq!((&shown["subject"], &shown["status"]), (&json!("Hello"), &json!("suppressed")), "{shown}");
    assert_eq!(shown["recipient_rows"][0]["address"], "ada@example.com");
    let attempts = tasker.get(&format!("{DELIVERIES}/d-1/attempts")).json(200);
    assert_eq!(attempts["attempts"][0]["attempt_no"], 1, "{attempts}");
    let resend = |key: &str| {
        let key = format!("Idempotency-Key: {key}");
        let arguments =
            ["-H", key.as_str(), "-H", "X-Operator: ada", "-H", JSON, "-d", r#"{"reason":"it was lost"}"#];
        tasker.post(&format!("{DELIVERIES}/d-1/resend"), &arguments).json(200)
    };
    let first = resend("r1");
    let new = first["delivery_id"].as_str().unwrap();
    assert_eq!((&first["resend_of"], &first["known"]), (&json!("d-1"), &json!(false)), "{first}");
    assert_eq!(tasker.get(&format!("{DELIVERIES}/{new}")).json(200)["resend_of"], "d-1");
    assert_eq!((&resend("r1")["delivery_id"], &resend("r1")["known"]), (&json!(new), &json!(true)));
    assert_ne!(resend("r2")["delivery_id"], new);
    let audit = stage.ask("audit list --json").await.json(0);
    let row = audit["entries"].as_array().unwrap().iter().find(|row| row["action"] == "mail.resend").unwrap();
    assert_eq!(
        (&row["actor"], &row["subject"], &row["reason"]),
        (&json!("ada"), &json!("d-1"), &json!("it was lost"))
    );
    // A login code is not kept, so it cannot be sent again.
    ask(&tasker, "c-1", &code("ada@example.com", "482913")).json(200);
    let login = all(&tasker).into_iter().find(|row| row["source"] == "authsession").unwrap();
    let path = format!("{DELIVERIES}/{}/resend", login["delivery_id"].as_str().unwrap());
    tasker.post(&path, &[]).problem(409, "content_not_kept");
}

#[tokio::test]
async fn operators_see_templates_rejected_commands_and_pauses() {
    let stage = Stage::new().await;
    let tasker = Listening::start(&stage, &STUB).await;
    let templates = tasker.get("/api/v1/internal/templates").json(200);
    let names: Vec<_> = templates["templates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|template| template["id"].as_str().unwrap())
        .collect();
    assert!(names.contains(&"auth.login_code"), "{names:?}");
    let template = tasker.get("/api/v1/internal/templates/auth.login_code").json(200);
    assert_eq!(template["class"], "auth");
    let preview = tasker.get("/api/v1/internal/templates/auth.login_code/preview?locale=de-AT").json(200);
    assert_eq!((&preview["locale"], &preview["fallback"]), (&json!("de"), &json!(true)), "{preview}");
    assert!(preview["text"].as_str().unwrap().contains("482913"), "{preview}");
    tasker.get("/api/v1/internal/templates/nosuch").problem(404, "template_not_found");
    tasker.get("/api/v1/internal/templates/nosuch/preview").problem(404, "template_not_found");

    stage.redis.cli(&["XADD", "mail:delivery_commands", "*", "delivery_id", "broken"]).await;
    let rejected = wait_for(PATIENCE, "the command is rejected", async || {
        let page = tasker.get("/api/v1/internal/malformed-commands").json(200);
        page["commands"].get(0).cloned().ok_or(page)
    })
    .await;
    let expected = (&json!("missing_field"), &json!("broken"));
    assert_eq!((&rejected["failure_code"], &rejected["delivery_id"]), expected, "{rejected}");
    tasker.get("/api/v1/internal/malformed-commands?cursor=x").problem(400, "invalid_cursor");

    let pause = "/api/v1/internal/pauses/domain/Example.COM";
    let put = |body: &str| {
        let authorization = format!("Authorization: Bearer {TOKEN}");
        tasker.curl(
            pause,
            &["-X", "PUT", "-H", &authorization, "-H", "X-Operator: ada", "-H", JSON, "-d", body],
        )
    };
    let delete = || tasker.curl(pause, &["-X", "DELETE", "-H", &format!("Authorization: Bearer {TOKEN}")]);
    assert_eq!(put(r#"{"reason":"they ask us to wait","for_seconds":60}"#).status, 204);
    let listed = tasker.get("/api/v1/internal/pauses").json(200);
    let row = &listed["pauses"][0];
    assert_eq!((&row["subject"], &row["created_by"]), (&json!("example.com"), &json!("ada")), "{listed}");
    put(r#"{"reason":"","for_seconds":60}"#).problem(400, "invalid_pause");
    put(r#"{"reason":"x","for_seconds":0}"#).problem(400, "invalid_pause");
    put(r#"{"reason":"x"}"#).problem(400, "invalid_body");
    assert_eq!(delete().status, 204);
    delete().problem(404, "pause_not_found");
    let listed = "/api/v1/internal/suppressions";
    let entry = "/api/v1/internal/suppressions/Ada@Example.com";
    let authorization = format!("Authorization: Bearer {TOKEN}");
    let change = |method: &str, body: &str| {
        tasker.curl(
            entry,
            &["-X", method, "-H", &authorization, "-H", "X-Operator: ada", "-H", JSON, "-d", body],
        )
    };
    assert_eq!(
        change("PUT", r#"{"reason":"asked us to","class":"marketing","for_seconds":3600}"#).status,
        204
    );
    let page = tasker.get(&format!("{listed}?address=ADA@example.com")).json(200);
    let row = &page["suppressions"][0];
    assert_eq!(
        (&row["address"], &row["class"], &row["origin"]),
        (&json!("ada@example.com"), &json!("marketing"), &json!("ada"))
    );
    change("PUT", r#"{"reason":" "}"#).problem(400, "invalid_suppression");
    change("PUT", r#"{"reason":"x","class":"nosuch"}"#).problem(400, "invalid_body");
    assert_eq!(change("DELETE", "{}").status, 204);
    change("DELETE", "{}").problem(404, "not_suppressed");
    assert_eq!(tasker.get(listed).json(200), json!({ "suppressions": [], "next": null }));
    let audit = stage.ask("audit list --json").await.json(0);
    let actions: Vec<_> =
        audit["entries"].as_array().unwrap().iter().map(|row| row["action"].clone()).collect();
    assert!(actions.contains(&json!("mail.pause")) && actions.contains(&json!("mail.resume")), "{actions:?}");
}

// The proxy needs a thread of its own: asking by curl blocks this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn intake_goes_on_without_redis_and_says_so_without_postgres() {
    let stage = Stage::new().await;
    let mut redis = RedisServer::start(RedisOptions::default()).await;
    let port = url::Url::parse(&stage.database.url).unwrap().port().unwrap_or(5432);
    let database = TcpProxy::start(port).await;
    let variables = [("REDIS_URL", redis.url()), ("DATABASE_URL", database.url(&stage.database.url))];
    let mut variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    variables.extend(STUB);
    let tasker = Listening::start(&stage, &variables).await;
    redis.kill9().await;
    let body = code("ada@example.com", "482913");
    assert_eq!(ask(&tasker, "c-1", &body).json(200), json!({ "outcome": "suppressed" }));
    database.refuse();
    let away = ask(&tasker, "c-2", &body);
    away.problem(503, "postgres_unreachable");
    assert!(away.head.contains("retry-after: "), "{away:?}");
    tasker.get(DELIVERIES).problem(503, "postgres_unreachable");
    database.resume();
    wait_for(Duration::from_secs(30), "it is taken again", async || {
        let again = ask(&tasker, "c-2", &body);
        if again.status == 200 { Ok(()) } else { Err(again.body) }
    })
    .await;
    assert_eq!(tasker.process.exit(), None);
}
