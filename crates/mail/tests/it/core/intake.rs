use serde_json::json;
use voiceai_mail::Wake;
use voiceai_mail::delivery::DeliveryStatus;
use voiceai_mail::intake::{AcceptError, Command, Content, Source};
use voiceai_postgres::sqlx;

use super::support::{Bench, command, intake, settings, template};

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

#[tokio::test]
async fn a_full_disk_refuses_for_now_and_leaves_no_half_of_a_mail() {
    let bench = Bench::new(&[]).await;
    bench
        .database
        .execute(
            "CREATE FUNCTION mail.full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ \
             BEGIN RAISE disk_full USING MESSAGE = 'could not extend file: No space left on device'; END $$; \
             CREATE TRIGGER full_disk BEFORE INSERT ON mail.delivery_payloads FOR EACH ROW EXECUTE FUNCTION mail.full_disk()",
        )
        .await;
    let refused = bench.intake.accept(command("d-1", &["a@example.com"])).await;
    let Err(AcceptError::Store(error)) = refused else { panic!("{refused:?}") };
    assert!(error.is_unavailable() && !error.is_about_the_data(), "the caller tries again: {error:?}");
    assert_eq!(bench.number("SELECT count(*) FROM mail.deliveries").await, 0);
    bench.database.execute("DROP TRIGGER full_disk ON mail.delivery_payloads").await;
    assert!(!bench.intake.accept(command("d-1", &["a@example.com"])).await.unwrap().known);
}

#[tokio::test]
async fn what_was_accepted_under_wider_limits_keeps_its_answer() {
    let bench = Bench::new(&[]).await;
    let mut long = command("d-1", &["a@example.com"]);
    long.content = Content::Rendered {
        subject: "s".to_owned(),
        // Twice as long once it is quoted: only the composed mail is too large.
        text_body: "=".repeat(8_000),
        html_body: String::new(),
    };
    bench.accept(long.clone()).await;
    let narrow = settings(&[("MAIL_MESSAGE_BYTES_MAX", "10000")]);
    let narrow = intake(&bench.pool, &narrow, false, Wake::new());
    assert!(narrow.accept(long.clone()).await.unwrap().known);
    let other = Command { delivery_id: "d-2".into(), idempotency_key: "notification:d-2".into(), ..long };
    assert!(matches!(narrow.accept(other).await, Err(AcceptError::Rejected(_))));
}

#[tokio::test]
async fn every_subject_that_is_accepted_can_be_composed_and_no_other() {
    let bench = Bench::new(&[]).await;
    for (n, subject) in
        ["x".repeat(998), "ab ".repeat(332), "ü".repeat(499), "x ü ".repeat(199)].into_iter().enumerate()
    {
        let id = format!("d-{n}");
        let mut mail = command(&id, &["a@example.com"]);
        mail.content =
            Content::Rendered { subject: subject.clone(), text_body: "t".into(), html_body: String::new() };
        assert_eq!(bench.intake.accept(mail).await.unwrap().status, DeliveryStatus::Queued, "{subject}");
        let bytes: Vec<u8> =
            sqlx::query_scalar("SELECT message FROM mail.delivery_payloads WHERE delivery_id = $1")
                .bind(&id)
                .fetch_one(&bench.pool)
                .await
                .unwrap();
        let read = mail_parser::MessageParser::default().parse(&bytes).expect("a mail");
        assert_eq!(read.subject().map(str::trim_end), Some(subject.trim_end()));
    }
    let mut mail = command("long", &["a@example.com"]);
    mail.content =
        Content::Rendered { subject: "x".repeat(999), text_body: "t".into(), html_body: String::new() };
    assert!(
        matches!(bench.intake.accept(mail).await, Err(AcceptError::Rejected(r)) if r.code == "invalid_subject")
    );
}

#[tokio::test]
async fn an_id_that_is_not_ascii_is_an_id_all_the_same() {
    let bench = Bench::new(&[]).await;
    let accepted = bench.intake.accept(command("zustellung-ü-1", &["a@example.com"])).await.unwrap();
    assert_eq!(accepted.status, DeliveryStatus::Queued);
    let bytes: Vec<u8> = sqlx::query_scalar("SELECT message FROM mail.delivery_payloads")
        .fetch_one(&bench.pool)
        .await
        .unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("X-Idempotency-Key: zustellung-%C3%BC-1\r\n"), "{text}");
}
