//! The OpenAPI document of the exports: it is the routes, and what the real binary answers is what it says.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};
use voiceai_testkit::wait_for;

use crate::export_rest::{JSON, TABLE, listening, order};
use crate::http::{Listening, Reply, TOKEN};
use crate::stage::{PATIENCE, Stage};

fn document() -> Value {
    serde_json::from_str(&voiceai_tasker::admin::export::openapi().to_json().unwrap()).unwrap()
}

#[test]
fn the_stored_document_is_what_the_routes_make() {
    let made = format!("{}\n", voiceai_tasker::admin::export::openapi().to_pretty_json().unwrap());
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/api/exports-openapi.json");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stored == made,
        "docs/api/exports-openapi.json is stale: run UPDATE_DOCS=1 cargo nextest run -p voiceai-tasker export_api"
    );
    let document: Value = serde_json::from_str(&made).unwrap();
    assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    let states = &document["components"]["schemas"]["Export"]["properties"]["status"]["enum"];
    assert_eq!(states, &json!(voiceai_tasker::jobs::export::STATES));
    for (at, _) in made.match_indices("#/components/schemas/") {
        let name = made[at + 21..].split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "nothing is called {name}");
    }
}

/// What a schema says against a value; a member that it does not name counts too, because nobody would look for it.
fn objections(document: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let named = document.pointer(reference.trim_start_matches('#'));
        return named.map_or_else(
            || vec![format!("{at}: {reference} is not there")],
            |named| objections(document, named, value, at),
        );
    }
    let mut found = Vec::new();
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let kinds: Vec<&str> = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    };
    if !kinds.is_empty() && !kinds.contains(&kind) {
        found.push(format!("{at}: {value} is no {kinds:?}"));
    }
    if schema["enum"].as_array().is_some_and(|allowed| !allowed.contains(value)) {
        found.push(format!("{at}: {value} is none of {}", schema["enum"]));
    }
    if let (Value::Array(items), Some(schema)) = (value, schema.get("items")) {
        found.extend(items.iter().flat_map(|item| objections(document, schema, item, &format!("{at}[]"))));
    }
    if let Value::Object(members) = value {
        let (named, required) = members_of(document, schema);
        for name in required.iter().filter(|name| !members.contains_key(*name)) {
            found.push(format!("{at}: no {name}"));
        }
        // A schema that names nothing takes anything.
        for (name, value) in members.iter().filter(|_| !named.is_empty()) {
            match named.iter().find(|(have, _)| have == name) {
                Some((_, schema)) => {
                    found.extend(objections(document, schema, value, &format!("{at}.{name}")));
                }
                None => found.push(format!("{at}: {name} is not described")),
            }
        }
    }
    found
}

/// The members that an object's schema names with their schemas, and those it must have; of all parts where it has parts.
fn members_of(document: &Value, schema: &Value) -> (Vec<(String, Value)>, Vec<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let named = document.pointer(reference.trim_start_matches('#')).cloned().unwrap_or_default();
        return members_of(document, &named);
    }
    let mut named: Vec<(String, Value)> = Vec::new();
    let mut required = Vec::new();
    for part in schema["allOf"].as_array().into_iter().flatten() {
        let (more, needed) = members_of(document, part);
        named.extend(more);
        required.extend(needed);
    }
    let own = schema["properties"].as_object().into_iter().flatten();
    named.extend(own.map(|(name, schema)| (name.clone(), schema.clone())));
    let needed = schema["required"].as_array().into_iter().flatten();
    required.extend(needed.filter_map(|name| name.as_str().map(str::to_owned)));
    (named, required)
}

/// Asks, and holds the answer to what the document says of it. Gives the operation with the answer's status.
#[track_caller]
fn held(document: &Value, method: &str, path: &str, reply: &Reply) -> String {
    let described = &document["paths"][path][method]["responses"][reply.status.to_string()];
    assert!(described.is_object(), "{method} {path} is not said to answer {reply:?}");
    let described_heads = described["headers"].as_object().into_iter().flatten();
    for (name, _) in described_heads {
        assert!(reply.head.contains(&format!("{}: ", name.to_ascii_lowercase())), "no {name}: {reply:?}");
    }
    match described["content"].as_object() {
        None => assert_eq!(reply.body, "", "{method} {path}"),
        Some(content) => {
            let (media_type, said) = content.iter().next().unwrap();
            assert!(reply.head.contains(&format!("content-type: {media_type}")), "{reply:?}");
            let body: Value = serde_json::from_str(&reply.body).unwrap();
            let found = objections(document, &said["schema"], &body, "the answer");
            assert!(found.is_empty(), "{method} {path} {}: {found:#?}\n{body:#}", reply.status);
        }
    }
    format!("{method} {path} {}", reply.status)
}

fn delete(tasker: &Listening, path: &str, body: Option<&str>) -> Reply {
    let authorization = format!("Authorization: Bearer {TOKEN}");
    let with_body = body.map_or_else(Vec::new, |body| vec!["-H", JSON, "-d", body]);
    tasker.curl(path, &[&["-X", "DELETE", "-H", &authorization], with_body.as_slice()].concat())
}

#[tokio::test]
async fn what_is_answered_is_what_the_document_says() {
    let stage = Stage::new().await.quiet().await;
    stage.database.execute(TABLE).await;
    let s3 = voiceai_testkit::s3().await;
    let tasker = listening(&stage, &s3).await;
    let document = document();
    let (all, one, file) = ("/exports", "/exports/{id}", "/exports/{id}/download");
    let mut seen = BTreeSet::new();
    let mut see = |method: &str, path: &str, reply: &Reply| seen.insert(held(&document, method, path, reply));

    // An order of every member: the document's own names, so that one it names wrongly is refused.
    let ordered = &document["components"]["schemas"]["Ordered"];
    let body = json!({ "export_type": "devices", "format": "csv", "tenant_id": "t1", "filters": { "status": "ONLINE" } });
    let unused = objections(&document, ordered, &body, "the order");
    assert!(unused.is_empty(), "{unused:?}");
    let made = order(&tasker, &body);
    see("post", all, &made);
    let id = made.json(202)["export_id"].as_str().unwrap().to_owned();
    let path = format!("/exports/{id}");
    wait_for(PATIENCE, "the export is made", async || {
        let reply = tasker.get(&path);
        if reply.json(200)["status"] == "COMPLETED" { Ok(()) } else { Err(reply.body) }
    })
    .await;
    see("get", one, &tasker.get(&path));
    see("get", all, &tasker.get("/exports?limit=5&tenant_id=t1&status=COMPLETED"));
    see("get", file, &tasker.get(&format!("{path}/download")));

    // One that waits, one that was cancelled.
    stage.ask("queue pause default --yes").await.text(0);
    let waits = order(&tasker, &json!({ "export_type": "devices" }));
    see("post", all, &waits);
    let waits = format!("/exports/{}", waits.json(202)["export_id"].as_str().unwrap());
    see("get", one, &tasker.get(&waits));
    see("get", file, &tasker.get(&format!("{waits}/download")));
    see("delete", one, &delete(&tasker, &waits, Some(r#"{"reason":"because"}"#)));
    see("get", file, &tasker.get(&format!("{waits}/download")));
    see("delete", one, &delete(&tasker, &path, None));

    // What is wrong, and who is nobody.
    let nothing = "/exports/00000000-0000-0000-0000-000000000000";
    for (path, method, route) in [(nothing, "get", one), ("/exports/x", "get", one)] {
        see(method, route, &tasker.get(path));
        see(method, file, &tasker.get(&format!("{path}/download")));
        see("delete", one, &delete(&tasker, path, None));
    }
    see("get", all, &tasker.get("/exports?limit=0"));
    see("post", all, &order(&tasker, &json!({ "export_type": "users" })));
    see("post", all, &tasker.post("/exports", &["-H", "Content-Type: text/plain", "-d", "{}"]));
    for (method, route, path) in [
        ("get", all, "/exports"),
        ("post", all, "/exports"),
        ("get", one, &path),
        ("delete", one, &path),
        ("get", file, &format!("{path}/download")),
    ] {
        see(method, route, &tasker.curl(path, &["-X", &method.to_ascii_uppercase()]));
    }
    // The two answers that need another installation: no bucket, and a database or a store that is away.
    let described: BTreeSet<String> = described(&document).filter(|it| !it.ends_with("503")).collect();
    let bucketless = ["post /exports 409", "delete /exports/{id} 409"].map(str::to_owned);
    let missing: Vec<_> = described.difference(&seen).filter(|it| !bucketless.contains(it)).collect();
    assert!(missing.is_empty(), "said and never seen: {missing:?}");
}

/// Every method, path and status of the document.
fn described(document: &Value) -> impl Iterator<Item = String> {
    let paths = document["paths"].as_object().unwrap();
    paths.iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().iter().flat_map(move |(method, operation)| {
            let statuses = operation["responses"].as_object().unwrap().keys();
            statuses.map(move |status| format!("{method} {path} {status}"))
        })
    })
}

#[tokio::test]
async fn without_a_bucket_the_document_holds_too_and_every_route_stands_under_both_paths() {
    let stage = Stage::new().await.quiet().await;
    stage.database.execute(TABLE).await;
    let tasker = Listening::start(&stage, &[]).await;
    let document = document();
    held(&document, "post", "/exports", &order(&tasker, &json!({ "export_type": "devices" })));
    let id = stage
        .value(
            "INSERT INTO ops.export_jobs (export_type, format, created_by, status, file_path, file_size_bytes,
                                          row_count, completed_at, expires_at)
             VALUES ('devices', 'csv', 'x', 'COMPLETED', 'exports/x.csv', 1, 1, now(), now() + interval '1 day') RETURNING id::text",
        )
        .await;
    let path = format!("/exports/{}", id.as_str().unwrap());
    assert_eq!(held(&document, "get", "/exports/{id}", &tasker.get(&path)), "get /exports/{id} 200");
    assert_eq!(
        held(&document, "delete", "/exports/{id}", &delete(&tasker, &path, None)),
        "delete /exports/{id} 409"
    );
    assert_eq!(
        document["servers"].as_array().unwrap().iter().map(|one| one["url"].clone()).collect::<Vec<_>>(),
        [json!("/"), json!("/api/v1")]
    );
    // No method stands at a route that the document does not have, and none is missing.
    for (route, methods) in document["paths"].as_object().unwrap() {
        let path = route.replace("{id}", id.as_str().unwrap());
        let said: BTreeSet<_> =
            methods.as_object().unwrap().keys().map(|method| method.to_ascii_uppercase()).collect();
        for prefix in ["", "/api/v1"] {
            let authorization = format!("Authorization: Bearer {TOKEN}");
            let refused = tasker.curl(&format!("{prefix}{path}"), &["-X", "PATCH", "-H", &authorization]);
            refused.problem(405, "method_not_allowed");
            let allow = refused.head.lines().find_map(|line| line.strip_prefix("allow: ")).unwrap();
            // HEAD comes with GET.
            let allowed: BTreeSet<_> = allow
                .split(',')
                .map(|method| method.trim().to_ascii_uppercase())
                .filter(|method| method != "HEAD")
                .collect();
            assert_eq!(allowed, said, "{prefix}{path}");
        }
    }
}
