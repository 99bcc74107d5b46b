//! The call to whoever ordered an export: signed, tried again by its own ladder, and never in the export's way.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use voiceai_queue::{DeadReason, Inline};
use voiceai_runtime::Secret;
use voiceai_tasker::jobs::export::{Export, Format};
use voiceai_webhook::Keys;

use crate::export_bench::Bench;

const TABLE: &str = "CREATE TABLE devices (device_id text); INSERT INTO devices VALUES ('a'), ('b')";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Answers with one status after the other, the last one for ever, and keeps what it got.
struct Receiver {
    url: String,
    got: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    async fn start(statuses: &'static [u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/done?x=1", listener.local_addr().unwrap());
        let got: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&got);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut text = Vec::new();
                while !is_whole(&text) {
                    if stream.read_buf(&mut text).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                let at = {
                    let mut kept = kept.lock().unwrap();
                    kept.push(String::from_utf8_lossy(&text).into_owned());
                    kept.len() - 1
                };
                let status = statuses[at.min(statuses.len() - 1)];
                let answer =
                    format!("HTTP/1.1 {status} Told\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { url, got }
    }

    fn got(&self) -> Vec<String> {
        self.got.lock().unwrap().clone()
    }
}

fn is_whole(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    header(head, "content-length").is_some_and(|length| length.parse() == Ok(body.len()))
}

fn header<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    request.lines().find_map(|line| {
        let (have, value) = line.split_once(':')?;
        have.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

async fn ordered(bench: &Bench, url: &str, filters: Value) -> Export {
    let order = bench.order(Format::Csv, None, filters).await;
    let url = url.replace('\'', "''");
    bench
        .database
        .execute(&format!("UPDATE ops.export_jobs SET callback_url = '{url}' WHERE id = '{}'", order.id))
        .await;
    order
}

/// Jobs that the order's end has enqueued.
async fn calls(bench: &Bench) -> i64 {
    voiceai_postgres::sqlx::query_scalar("SELECT count(*) FROM ops.outbox WHERE kind = 'export.callback'")
        .fetch_one(&bench.ctx.pool)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_orderer_is_called_until_it_answers_with_the_same_signed_words() {
    let bench = Bench::new(TABLE).await;
    let receiver = Receiver::start(&[503, 204]).await;
    let order = ordered(&bench, &receiver.url, json!({})).await;
    bench.made(&order).await;
    assert_eq!(calls(&bench).await, 1);
    let keys = Keys::new(vec![Secret::new(SECRET)]).unwrap();
    let first = bench.call(&order, Some(keys.clone())).await;
    assert!(matches!(first, Inline::Snoozed(wait) if wait == Duration::from_secs(10)), "{first:?}");
    let waiting = bench.look(&order).await;
    assert_eq!((waiting.status.as_str(), waiting.callback_state.as_deref()), ("COMPLETED", Some("waiting")));
    assert_eq!((waiting.callback_attempts, waiting.callback_error.as_deref()), (1, Some("answered 503")));
    let second = bench.call(&order, Some(keys.clone())).await;
    assert!(matches!(second, Inline::Done(Some(_))), "{second:?}");
    // Delivered once more by the queue: nothing is posted.
    assert!(matches!(bench.call(&order, Some(keys.clone())).await, Inline::Done(None)));

    let got = receiver.got();
    assert_eq!(got.len(), 2);
    let body = |at: usize| got[at].split_once("\r\n\r\n").unwrap().1;
    assert_eq!(body(0), body(1));
    let told: Value = serde_json::from_str(body(0)).unwrap();
    assert_eq!((&told["export_id"], &told["status"]), (&json!(order.id), &json!("COMPLETED")));
    assert_eq!((&told["row_count"], told["completed_at"].is_string()), (&json!(2), true));
    assert!(told.get("error").is_none(), "{told}");
    for request in &got {
        let id = header(request, "webhook-id").unwrap();
        let at: i64 = header(request, "webhook-timestamp").unwrap().parse().unwrap();
        assert_eq!(id, format!("export:{}", order.id));
        assert_eq!(header(request, "webhook-signature").unwrap(), keys.sign(id, at, body(0).as_bytes()));
        assert!(request.starts_with("POST /done?x=1 HTTP/1.1"), "{request}");
    }
    let told = bench.look(&order).await;
    assert_eq!((told.callback_state.as_deref(), told.callback_error), (Some("delivered"), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_told_too_unsigned_without_a_secret() {
    let bench = Bench::new(TABLE).await;
    let receiver = Receiver::start(&[200]).await;
    let order = ordered(&bench, &receiver.url, json!({ "site_ids": "a" })).await;
    assert!(matches!(bench.run(&order).await, Inline::Dead { .. }));
    assert_eq!(calls(&bench).await, 1);
    assert!(matches!(bench.call(&order, None).await, Inline::Done(Some(_))));
    let got = receiver.got();
    let told: Value = serde_json::from_str(got[0].split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((&told["status"], &told["row_count"]), (&json!("FAILED"), &json!(null)));
    assert!(told["error"].as_str().is_some_and(|error| error.contains("site_id")), "{told}");
    assert_eq!(header(&got[0], "webhook-signature"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_is_given_up_and_a_replay_begins_anew() {
    let bench = Bench::new(TABLE).await;
    let receiver = Receiver::start(&[500, 500, 500, 200]).await;
    let order = ordered(&bench, &receiver.url, json!({})).await;
    bench.made(&order).await;
    assert!(matches!(bench.call(&order, None).await, Inline::Snoozed(_)));
    assert!(matches!(bench.call(&order, None).await, Inline::Snoozed(_)));
    let last = bench.call(&order, None).await;
    let Inline::Dead { reason: DeadReason::DiscardedByHandler, error } = last else { panic!("{last:?}") };
    assert!(error.contains("3 calls") && error.contains("500"), "{error}");
    let given_up = bench.look(&order).await;
    assert_eq!((given_up.status.as_str(), given_up.callback_state.as_deref()), ("COMPLETED", Some("failed")));
    assert!(matches!(bench.call(&order, None).await, Inline::Done(Some(_))));
    assert_eq!(bench.look(&order).await.callback_attempts, 1);

    // The clouds' metadata, and what is no address at all.
    for (url, says) in
        [("http://169.254.169.254/latest", "169.254.169.254"), ("ftp://example.com/", "https://")]
    {
        let order = ordered(&bench, url, json!({})).await;
        bench.made(&order).await;
        let called = bench.call(&order, None).await;
        let shown = bench.look(&order).await;
        assert!(shown.callback_error.is_some_and(|error| error.contains(says)), "{url}: {called:?}");
    }
    // Nobody is called where nobody wants to be.
    let before = calls(&bench).await;
    let silent = bench.order(Format::Csv, None, json!({})).await;
    bench.made(&silent).await;
    assert_eq!((calls(&bench).await, bench.look(&silent).await.callback_state), (before, None));
}
