//! Exports over HTTP, by the real binary.

use std::process::Command;

use serde_json::{Value, json};
use voiceai_testkit::{TcpProxy, wait_for};

use crate::http::Listening;
use crate::stage::{PATIENCE, Stage};

pub(crate) const TABLE: &str = "CREATE TABLE devices (device_id text, tenant_id text, status text);
                     INSERT INTO devices SELECT 'd' || i, 't' || i % 2, 'ONLINE' FROM generate_series(1, 100) i";

pub(crate) const JSON: &str = "Content-Type: application/json";

pub(crate) async fn listening(stage: &Stage, s3: &voiceai_testkit::S3) -> Listening {
    listening_with(stage, s3, &[]).await
}

async fn listening_with(stage: &Stage, s3: &voiceai_testkit::S3, more: &[(&str, &str)]) -> Listening {
    let mut variables = vec![
        ("EXPORTS_S3_BUCKET", s3.bucket.as_str()),
        ("S3_ENDPOINT", s3.endpoint.as_str()),
        ("S3_ACCESS_KEY", s3.access_key.as_str()),
        ("S3_SECRET_KEY", s3.secret_key.as_str()),
    ];
    variables.extend(more);
    Listening::start(stage, &variables).await
}

pub(crate) fn order(tasker: &Listening, body: &Value) -> crate::http::Reply {
    tasker.post("/exports", &["-H", JSON, "-H", "X-Operator: ada", "-d", &body.to_string()])
}

#[tokio::test]
async fn an_export_is_ordered_looked_at_downloaded_and_removed() {
    let stage = Stage::new().await;
    stage.database.execute(TABLE).await;
    let s3 = voiceai_testkit::s3().await;
    let tasker = listening(&stage, &s3).await;
    tasker.curl("/exports", &[]).problem(401, "unauthorized");
    let accepted =
        order(&tasker, &json!({ "export_type": "devices", "tenant_id": "t1", "format": "ndjson" })).json(202);
    assert_eq!(accepted["status"], "PENDING");
    assert!(accepted["estimated_rows"].is_u64(), "{accepted}");
    let id = accepted["export_id"].as_str().unwrap();
    let path = format!("/exports/{id}");
    let shown = wait_for(PATIENCE, "the export is made", async || {
        let shown = tasker.get(&path).json(200);
        if shown["status"] == "COMPLETED" { Ok(shown) } else { Err(shown.to_string()) }
    })
    .await;
    assert_eq!(
        (&shown["export_id"], &shown["row_count"], &shown["created_by"]),
        (&json!(id), &json!(50), &json!("ada"))
    );
    assert_eq!(tasker.get(&format!("/api/v1{path}")).json(200), shown, "by the other path, too");

    let led = tasker.get(&format!("{path}/download"));
    assert_eq!(led.status, 307, "{led:?}");
    assert!(led.head.contains("x-export-row-count: 50\r\n"), "{led:?}");
    let followed = tasker.get_following(&format!("{path}/download"));
    let rows: Vec<Value> = followed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (rows.len(), &rows[0]),
        (50, &json!({ "device_id": "d1", "tenant_id": "t1", "status": "ONLINE" }))
    );

    // An object that somebody has removed is gone; the row goes with what is left of it.
    tasker.curl_delete(&path).assert_status(204);
    assert_eq!(s3.keys().await, Vec::<String>::new());
    tasker.get(&path).problem(404, "export_not_found");
    tasker.curl_delete(&path).problem(404, "export_not_found");
    tasker.get(&format!("{path}/download")).problem(404, "export_not_found");
    let audit = stage.ask("audit list --json").await.json(0);
    let actions: Vec<_> =
        audit["entries"].as_array().unwrap().iter().filter(|row| row["actor"] == "ada").collect();
    assert_eq!(actions.len(), 1, "{audit}");
}

// The proxy of this process has to go on while curl is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_signed_for_the_address_that_users_reach() {
    let stage = Stage::new().await.quiet().await;
    stage.database.execute(TABLE).await;
    let s3 = voiceai_testkit::s3().await;
    let inner = url::Url::parse(&s3.endpoint).unwrap();
    let outside = TcpProxy::start(inner.port().unwrap()).await;
    // Another name and another port than the service's own way.
    let public = format!("http://localhost:{}", outside.port());
    let tasker = listening_with(&stage, &s3, &[("S3_PUBLIC_ENDPOINT", &format!("{public}/"))]).await;
    let accepted = order(&tasker, &json!({ "export_type": "devices", "format": "ndjson" })).json(202);
    let path = format!("/exports/{}", accepted["export_id"].as_str().unwrap());
    wait_for(PATIENCE, "the export is made", async || {
        let shown = tasker.get(&path).json(200);
        if shown["status"] == "COMPLETED" { Ok(()) } else { Err(shown.to_string()) }
    })
    .await;
    assert_eq!(outside.connections(), 0, "the service itself goes the inner way");
    assert_eq!(tasker.get_following(&format!("{path}/download")).lines().count(), 100);
    assert_eq!(outside.connections(), 1, "the link leads outside");
    let program = stage.program().envs([
        ("EXPORTS_S3_BUCKET", s3.bucket.as_str()),
        ("S3_ENDPOINT", s3.endpoint.as_str()),
        ("S3_PUBLIC_ENDPOINT", public.as_str()),
        ("S3_ACCESS_KEY", s3.access_key.as_str()),
        ("S3_SECRET_KEY", s3.secret_key.as_str()),
    ]);
    let id = accepted["export_id"].as_str().unwrap();
    let shown = crate::stage::answer(program.args(["export", "show", id, "--json"])).await.json(0);
    let link = shown["link"].as_str().unwrap();
    assert!(link.starts_with(&format!("{public}/{}/exports/", s3.bucket)), "{link}");
    let status = |url: &str| {
        let asked = Command::new("curl").args(["-s", "-o", "/dev/null", "-w", "%{http_code}", url]).output();
        String::from_utf8(asked.unwrap().stdout).unwrap()
    };
    assert_eq!(status(link), "200");
    // The store holds a link to the host it was signed for: a link signed for the inner way would be of no use outside.
    assert_eq!(status(&link.replace(&public, s3.endpoint.trim_end_matches('/'))), "403");
}

#[tokio::test]
async fn an_order_that_waits_is_not_ready_and_is_cancelled_and_lists_have_pages() {
    let stage = Stage::new().await;
    stage.database.execute(TABLE).await;
    let s3 = voiceai_testkit::s3().await;
    let tasker = listening(&stage, &s3).await;
    stage.ask("queue pause default --yes").await.text(0);
    let mut ids = Vec::new();
    for tenant in ["t0", "t0", "t1"] {
        let accepted = order(&tasker, &json!({ "export_type": "devices", "tenant_id": tenant })).json(202);
        ids.push(accepted["export_id"].as_str().unwrap().to_owned());
    }
    let listed = |query: &str| -> Vec<String> {
        let page = tasker.get(&format!("/exports{query}")).json(200);
        page["exports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["export_id"].as_str().unwrap().to_owned())
            .collect()
    };
    let newest: Vec<String> = ids.iter().rev().cloned().collect();
    assert_eq!(listed(""), newest);
    assert_eq!(
        (listed("?limit=1&offset=1"), listed("?tenant_id=t0&status=PENDING")),
        (vec![ids[1].clone()], vec![ids[1].clone(), ids[0].clone()])
    );
    let page = tasker.get("/exports?limit=2").json(200);
    let next = page["next"].as_str().unwrap();
    assert_eq!(listed(&format!("?cursor={next}")), [ids[0].clone()]);

    let path = format!("/exports/{}", ids[0]);
    tasker.get(&format!("{path}/download")).problem(409, "export_not_ready");
    let cancelled = tasker.curl_delete(&path).json(200);
    assert_eq!(cancelled["status"], "FAILED");
    assert!(cancelled["error"].as_str().unwrap().contains("cancelled by"), "{cancelled}");
    tasker.get(&format!("{path}/download")).problem(410, "export_gone");
    // By the command line: first it is cancelled, then removed.
    let id = &ids[1];
    assert_eq!(
        stage.ask(&format!("export delete {id} --json")).await.failure(2)["code"],
        "confirmation_needed"
    );
    let delete = async || {
        let line = format!("export delete {id} --yes --reason because --json");
        let program = stage.program().envs([
            ("EXPORTS_S3_BUCKET", s3.bucket.as_str()),
            ("S3_ENDPOINT", s3.endpoint.as_str()),
            ("S3_ACCESS_KEY", s3.access_key.as_str()),
            ("S3_SECRET_KEY", s3.secret_key.as_str()),
        ]);
        crate::stage::answer(program.args(line.split(' '))).await
    };
    assert_eq!(delete().await.json(0)["outcome"], "cancelled");
    let shown = tasker.get(&format!("/exports/{id}")).json(200);
    assert_eq!(shown["error"], "cancelled by tester: because");
    assert_eq!(delete().await.json(0)["outcome"], "removed");
    assert_eq!(delete().await.failure(3)["code"], "export_not_found");
}

#[tokio::test]
async fn what_cannot_be_meant_is_a_400_that_names_it() {
    let stage = Stage::new().await;
    stage.database.execute(TABLE).await;
    let s3 = voiceai_testkit::s3().await;
    let tasker = listening(&stage, &s3).await;
    for (body, code, says) in [
        (json!({}), "invalid_body", "export_type"),
        (json!({ "export_type": "devices", "colour": 1 }), "invalid_body", "colour"),
        (json!({ "export_type": "users" }), "export_order", "devices, alerts, telemetry"),
        (json!({ "export_type": "public.devices" }), "export_order", "EXPORT_TABLES"),
        (json!({ "export_type": "telemetry" }), "export_order", "no table public.telemetry"),
        (json!({ "export_type": "devices", "format": "xml" }), "invalid_format", "csv, json"),
        (json!({ "export_type": "devices", "tenant_id": "" }), "export_order", "tenant is empty"),
        (json!({ "export_type": "devices", "tenant_id": "a\u{0}" }), "export_order", "NUL"),
        (json!({ "export_type": "devices", "filters": [] }), "invalid_body", "filters"),
        (json!({ "export_type": "devices", "filters": { "time_range": "2y" } }), "export_order", "1h, 6h"),
        (
            json!({ "export_type": "devices", "filters": { "site_ids": "x" } }),
            "export_order",
            "no column site_id",
        ),
        (
            json!({ "export_type": "devices", "callback_url": "https://169.254.169.254/" }),
            "callback_url",
            "not a public address",
        ),
        (
            json!({ "export_type": "devices", "callback_url": "https://u:s3cret-canary@example.com/" }),
            "callback_url",
            "password",
        ),
    ] {
        let reply = order(&tasker, &body);
        let problem = reply.problem(400, code);
        assert!(
            problem.to_string().contains(says) && !problem.to_string().contains("canary"),
            "{body}: {problem}"
        );
    }
    for (query, code) in [
        ("?limit=0", "invalid_limit"),
        ("?limit=101", "invalid_limit"),
        ("?limit=x", "invalid_query"),
        ("?offset=99999", "invalid_offset"),
        ("?cursor=x", "invalid_cursor"),
        ("?status=DONE", "invalid_status"),
        ("?tenant=x", "invalid_query"),
    ] {
        tasker.get(&format!("/exports{query}")).problem(400, code);
    }
    tasker.get("/exports/nonsense").problem(400, "invalid_export_id");
    tasker.get("/exports/nonsense/download").problem(400, "invalid_export_id");
    tasker.curl_delete("/exports/nonsense").problem(400, "invalid_export_id");
    tasker.get("/exports/00000000-0000-0000-0000-000000000000").problem(404, "export_not_found");
    let orders = stage.value("SELECT count(*)::text FROM ops.export_jobs").await;
    assert_eq!(orders, json!(0));
}
