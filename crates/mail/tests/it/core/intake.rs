use serde_json::json;
use voiceai_mail::Wake;
use voiceai_mail::delivery::DeliveryStatus;
use voiceai_mail::intake::{AcceptError, Content, Source};

use super::support::{Bench, command, intake, template};

#[tokio::test]
async fn concurrent_twins_make_one_delivery_and_other_content_is_a_conflict() {
    let bench = Bench::new(&[]).await;
    let twins = (0..12).map(|_| bench.intake.accept(command("d-1", &["a@example.com", "b@example.com"])));
    let answers = futures_util::future::join_all(twins).await;
    let mut first = 0;
    for answer in answers {
        let accepted = answer.unwrap();
        assert_eq!((accepted.delivery_id.as_str(), accepted.status), ("d-1", DeliveryStatus::Queued));
        first += usize::from(!accepted.known);
    }
    assert_eq!(first, 1, "one of the twins is the first");
    assert_eq!(bench.number("SELECT count(*) FROM mail.deliveries").await, 1);
    assert_eq!(bench.number("SELECT count(*) FROM mail.delivery_recipients").await, 2);
    assert_eq!(bench.number("SELECT count(*) FROM mail.attempts WHERE status = 'scheduled'").await, 2);
    assert_eq!(bench.number("SELECT count(*) FROM mail.delivery_payloads").await, 1);

    let same_key = bench.intake.accept(command("d-1", &["c@example.com"])).await.unwrap_err();
    assert!(matches!(same_key, AcceptError::Conflict { what: "idempotency_key", .. }), "{same_key}");
    let mut same_id = command("d-1", &["a@example.com", "b@example.com"]);
    same_id.idempotency_key = "another".to_owned();
    let same_id = bench.intake.accept(same_id).await.unwrap_err();
    assert!(matches!(same_id, AcceptError::Conflict { what: "delivery_id", .. }), "{same_id}");
    // The key of one source says nothing of another's.
    let mut elsewhere = command("d-2", &["c@example.com"]);
    elsewhere.source = Source::EmailQueue;
    elsewhere.idempotency_key = "notification:d-1".to_owned();
    assert!(!bench.intake.accept(elsewhere).await.unwrap().known);
    // The same key under another id is the same mail, and the answer names the first.
    let mut renamed = command("d-9", &["a@example.com", "b@example.com"]);
    renamed.idempotency_key = "notification:d-1".to_owned();
    renamed.content = command("d-1", &[]).content;
    let known = bench.intake.accept(renamed).await.unwrap();
    assert_eq!((known.delivery_id.as_str(), known.known), ("d-1", true));
}

#[tokio::test]
async fn a_template_is_rendered_and_committed_before_anything_is_sent_and_secrets_are_not_kept() {
    let bench = Bench::new(&[]).await;
    let catalogue = voiceai_mail::template::Catalogue::load(None, "en", "Delphi").unwrap();
    let sample = catalogue.template("auth.login_code").unwrap().sample.clone();
    let code = sample.get("code").and_then(|code| code.as_str()).expect("the sample has a code").to_owned();
    let mut login = template("challenge-1", "auth.login_code", serde_json::Value::Object(sample));
    login.source = Source::Authsession;
    let accepted = bench.intake.accept(login).await.unwrap();
    assert_eq!(accepted.status, DeliveryStatus::Rendered);
    let message = bench
        .text(
            "SELECT convert_from(message, 'UTF8') FROM mail.delivery_payloads WHERE delivery_id = $1",
            "challenge-1",
        )
        .await;
    assert!(message.contains(&code), "the code is in the mail");
    let kept = bench
        .text("SELECT command::text FROM mail.delivery_payloads WHERE delivery_id = $1", "challenge-1")
        .await;
    assert!(!kept.contains(&code) && kept.contains("[redacted]"), "{kept}");
    let id = bench.text("SELECT message_id FROM mail.deliveries WHERE delivery_id = $1", "challenge-1").await;
    assert!(message.contains(&format!("<{id}>")) && id.ends_with("@delphi.example"), "{id}");
    let urgent = bench.number("SELECT priority::bigint FROM mail.attempts").await;
    assert_eq!(urgent, 10, "a login code overtakes a backlog");
    let minutes = bench
        .number("SELECT (extract(epoch FROM expires_at - created_at) / 60)::bigint FROM mail.deliveries")
        .await;
    assert_eq!(minutes, 10, "and ends at its lifetime");
}

#[tokio::test]
async fn what_cannot_be_rendered_has_failed_for_good_and_says_why() {
    let bench = Bench::new(&[]).await;
    let accepted = bench.intake.accept(template("d-1", "no.such.template", json!({}))).await.unwrap();
    assert_eq!(accepted.status, DeliveryStatus::Failed);
    assert_eq!(bench.attempts("d-1").await, "render_failed");
    let detail = bench.text("SELECT detail FROM mail.attempts WHERE delivery_id = $1", "d-1").await;
    assert!(detail.contains("no.such.template"), "{detail}");
    let missing = bench.intake.accept(template("d-2", "auth.login_code", json!({}))).await.unwrap();
    assert_eq!(missing.status, DeliveryStatus::Failed);
    assert!(bench.intake.accept(template("d-2", "auth.login_code", json!({}))).await.unwrap().known);
    assert_eq!(bench.number("SELECT count(*) FROM mail.attempts WHERE status = 'scheduled'").await, 0);
}

#[tokio::test]
async fn with_the_stub_a_mail_is_suppressed_at_once() {
    let bench = Bench::new(&[]).await;
    let stub = intake(&bench.pool, &bench.settings, true, Wake::new());
    let accepted = stub.accept(command("d-1", &["a@example.com"])).await.unwrap();
    assert_eq!((accepted.status, accepted.known), (DeliveryStatus::Suppressed, false));
    let again = stub.accept(command("d-1", &["a@example.com"])).await.unwrap();
    assert_eq!((again.status, again.known), (DeliveryStatus::Suppressed, true));
    assert_eq!(bench.attempts("d-1").await, "provider_rejected");
}

#[tokio::test]
async fn a_mail_that_is_too_large_when_it_is_made_is_refused() {
    let bench = Bench::new(&[("MAIL_MESSAGE_BYTES_MAX", "10000")]).await;
    let mut large = command("d-1", &["a@example.com"]);
    // Quoted-printable triples it: only the made mail shows its size.
    large.content = Content::Rendered {
        subject: "s".into(),
        text_body: "\u{7f}".repeat(5_000),
        html_body: String::new(),
    };
    let refused = bench.intake.accept(large).await.unwrap_err();
    assert!(matches!(&refused, AcceptError::Rejected(rejected) if rejected.code == "too_large"), "{refused}");
    assert_eq!(bench.number("SELECT count(*) FROM mail.deliveries").await, 0);
}

#[tokio::test]
async fn the_schema_derives_the_same_status_as_the_code() {
    use voiceai_mail::delivery::{Counts, PayloadMode};
    let bench = Bench::new(&[]).await;
    let mut checked = 0;
    for mode in PayloadMode::ALL {
        for bits in 0..64_u32 {
            let n = |bit: u32| (bits >> bit) & 1;
            let counts =
                Counts { open: n(0), sent: n(1), suppressed: n(2), failed: n(3), dead: n(4), unknown: n(5) };
            let sql = format!(
                "SELECT mail.derived_status('{mode}', {}, {}, {}, {}, {}, {})",
                n(0),
                n(1),
                n(2),
                n(3),
                n(4),
                n(5)
            );
            let row = voiceai_postgres::sqlx::query(voiceai_postgres::sqlx::AssertSqlSafe(sql));
            let row = row.fetch_one(&bench.pool).await.unwrap();
            let word: String = voiceai_postgres::sqlx::Row::try_get(&row, 0).unwrap();
            assert_eq!(word, DeliveryStatus::derive(*mode, counts).as_str(), "{counts:?}");
            checked += 1;
        }
    }
    assert_eq!(checked, 128);
}
