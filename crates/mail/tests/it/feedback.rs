//! Reports of SES: who is believed, what is read, and that each counts once.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt as _;
use url::Url;
use voiceai_mail::feedback::{Certificates, Fetch, Inbox, Sns, routes};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx;

const TOPIC: &str = "arn:aws:sns:eu-central-1:123456789012:mail";
const PLACE: &str = "https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-1.pem";

/// Keys and certificates as SNS has them, made by openssl.
struct Keys(TempDir);

impl Keys {
    fn new() -> Self {
        let keys = Self(tempfile::tempdir().expect("a folder"));
        keys.write("ext", "subjectAltName=DNS:sns.amazonaws.com\nextendedKeyUsage=serverAuth\n");
        keys.run(&[
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj",
            "/CN=test", "-days", "2",
        ]);
        keys.issue("sns", "ext", &["-days", "2"]);
        keys
    }

    fn issue(&self, name: &str, extensions: &str, validity: &[&str]) {
        let (key, csr, pem) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        self.run(&[
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &csr,
            "-subj",
            "/CN=sns.amazonaws.com",
        ]);
        let mut args = vec![
            "x509",
            "-req",
            "-in",
            &csr,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            &pem,
            "-extfile",
            extensions,
        ];
        args.extend(validity);
        self.run(&args);
    }

    fn run(&self, args: &[&str]) {
        let output = Command::new("openssl").args(args).current_dir(self.0.path()).output().expect("openssl");
        assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("write");
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("read")
    }

    fn sign(&self, key: &str, digest: &str, text: &str) -> String {
        self.write("text", text);
        let (digest, key) = (format!("-{digest}"), self.path(key).display().to_string());
        let output = Command::new("openssl")
            .args(["dgst", &digest, "-sign", &key, "text"])
            .current_dir(self.0.path())
            .output();
        let output = output.expect("openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        STANDARD.encode(output.stdout)
    }
}

/// Stands for what lies at SNS.
#[derive(Default)]
struct Web {
    pem: Mutex<Vec<u8>>,
    asked: Mutex<Vec<String>>,
}

impl Fetch for Web {
    fn get(&self, url: Url) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        self.asked.lock().unwrap().push(url.to_string());
        let pem = self.pem.lock().unwrap().clone();
        Box::pin(std::future::ready(if pem.is_empty() { Err("unreachable".into()) } else { Ok(pem) }))
    }
}

struct Setting {
    keys: Keys,
    web: Arc<Web>,
    routes: Router,
    pool: PgPool,
    _database: voiceai_testkit::Database,
}

async fn setting() -> Setting {
    let database = voiceai_testkit::database().await;
    let pool = database.pool().await;
    let (keys, web) = (Keys::new(), Arc::new(Web::default()));
    *web.pem.lock().unwrap() = keys.read("sns.pem");
    let routes = fresh(&keys, &web, &pool);
    Setting { keys, web, routes, pool, _database: database }
}

fn fresh(keys: &Keys, web: &Arc<Web>, pool: &PgPool) -> Router {
    let root = CertificateDer::from_pem_slice(&keys.read("ca.pem")).expect("PEM");
    let fetch: Arc<dyn Fetch> = Arc::<Web>::clone(web);
    let sns = Sns::new(vec![TOPIC.to_owned()], Certificates::trusting(fetch, vec![root]));
    routes(Inbox::new(pool.clone()), sns)
}

impl Setting {
    /// A message of SNS, signed as it signs.
    fn message(&self, id: &str, kind: &str, text: &str, version: &str) -> Value {
        let mut message = json!({
            "Type": kind, "MessageId": id, "TopicArn": TOPIC, "Message": text, "Timestamp": "2026-11-22T10:00:00.000Z",
            "SignatureVersion": version, "SigningCertURL": PLACE,
        });
        if kind != "Notification" {
            message["Token"] = json!("2336412f37fb687f");
            message["SubscribeURL"] =
                json!("https://sns.eu-central-1.amazonaws.com/?Action=ConfirmSubscription&x=evil");
        }
        self.signed(message)
    }

    fn signed(&self, mut message: Value) -> Value {
        let names: &[&str] = if message["Type"] == "Notification" {
            &["Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"]
        } else {
            &["Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"]
        };
        let value = |name: &&str| message[*name].as_str().map(|value| format!("{name}\n{value}\n"));
        let text: String = names.iter().filter_map(value).collect();
        let digest = if message["SignatureVersion"] == "1" { "sha1" } else { "sha256" };
        message["Signature"] = json!(self.keys.sign("sns.key", digest, &text));
        message
    }

    async fn post(&self, message: &Value) -> StatusCode {
        post(&self.routes, message.to_string()).await
    }

    async fn suppressed(&self) -> Vec<(String, String)> {
        sqlx::query_as("SELECT address, reason FROM mail.suppressions ORDER BY address, reason")
            .fetch_all(&self.pool)
            .await
            .expect("a list")
    }
}

async fn post(routes: &Router, body: String) -> StatusCode {
    let request = Request::post("/feedback/ses").header("content-type", "text/plain; charset=UTF-8");
    routes
        .clone()
        .oneshot(request.body(Body::from(body)).expect("a request"))
        .await
        .expect("an answer")
        .status()
}

fn bounce(kind: &str, sub: &str, addresses: &[&str]) -> String {
    let recipients: Vec<Value> = addresses.iter().map(|address| json!({"emailAddress": address})).collect();
    json!({
        "notificationType": "Bounce",
        "bounce": {"bounceType": kind, "bounceSubType": sub, "bouncedRecipients": recipients},
        "mail": {"messageId": "0102-mail", "destination": ["innocent@example.com"]},
    })
    .to_string()
}

fn pair(address: &str, reason: &str) -> (String, String) {
    (address.to_owned(), reason.to_owned())
}

#[tokio::test]
async fn both_signatures_are_believed_and_each_message_counts_once() {
    let setting = setting().await;
    for (version, address) in [("1", "one@example.com"), ("2", "two@example.com")] {
        let id = format!("id-{version}");
        let message = setting.message(
            &id,
            "Notification",
            &bounce("Permanent", "General", &[address, "both@example.com"]),
            version,
        );
        for _ in 0..2 {
            assert_eq!(setting.post(&message).await, StatusCode::OK, "version {version}");
        }
    }
    let all = ["both@example.com", "one@example.com", "two@example.com"]
        .map(|address| pair(address, "hard_bounce"));
    assert_eq!(setting.suppressed().await, all, "every recipient that bounced, nobody else");
    let kept: i64 =
        sqlx::query_scalar("SELECT count(*) FROM mail.feedback").fetch_one(&setting.pool).await.unwrap();
    assert_eq!(kept, 2);
    assert_eq!(setting.web.asked.lock().unwrap().len(), 1, "the certificate is fetched once");
    let subject = json!({
        "Type": "Notification", "MessageId": "id-s", "TopicArn": TOPIC, "Message": "x", "Subject": "Amazon SES",
        "Timestamp": "t", "SignatureVersion": "2", "SigningCertURL": PLACE,
    });
    assert_eq!(setting.post(&setting.signed(subject)).await, StatusCode::OK, "a subject is signed too");
}

#[tokio::test]
async fn what_is_forged_is_not_believed() {
    let setting = setting().await;
    let good =
        setting.message("id", "Notification", &bounce("Permanent", "General", &["kim@example.com"]), "2");
    let with = |name: &str, value: &str| {
        let mut message = good.clone();
        message[name] = json!(value);
        message
    };
    for (what, message) in [
        ("another text", with("Message", &bounce("Permanent", "General", &["eve@example.com"]))),
        ("another id", with("MessageId", "other")),
        ("another version", with("SignatureVersion", "1")),
        ("no version", with("SignatureVersion", "3")),
        ("no signature", with("Signature", "")),
        ("another topic", setting.signed(with("TopicArn", "arn:aws:sns:eu-central-1:999999999999:mail"))),
        (
            "a certificate of one's own",
            setting.signed(with("SigningCertURL", "https://evil.example/cert.pem")),
        ),
        ("a certificate by http", setting.signed(with("SigningCertURL", &PLACE.replace("https", "http")))),
        (
            "a lookalike",
            setting.signed(with("SigningCertURL", &PLACE.replace(".com/", ".com.evil.example/"))),
        ),
    ] {
        assert_eq!(setting.post(&message).await, StatusCode::FORBIDDEN, "{what}");
    }
    for nonsense in ["", "{}", "[]", "Action=ConfirmSubscription"] {
        assert_eq!(post(&setting.routes, nonsense.to_owned()).await, StatusCode::BAD_REQUEST, "{nonsense}");
    }
    assert!(setting.suppressed().await.is_empty());
    assert!(
        setting.web.asked.lock().unwrap().iter().all(|asked| asked == PLACE),
        "nobody else was asked for anything"
    );
    assert_eq!(setting.post(&good).await, StatusCode::OK);
}

#[tokio::test]
async fn certificates_must_be_snss_and_valid_now() {
    let setting = setting().await;
    let keys = &setting.keys;
    keys.write("other", "subjectAltName=DNS:evil.amazonaws.com\nextendedKeyUsage=serverAuth\n");
    keys.issue("other", "other", &["-days", "2"]);
    keys.issue("old", "ext", &["-days", "-1"]);
    let stranger = Keys::new();
    let good = setting.message("id", "Notification", "x", "2");
    let chain = [stranger.read("sns.pem"), stranger.read("ca.pem")].concat();
    for (what, pem) in [
        ("for another name", keys.read("other.pem")),
        ("expired", keys.read("old.pem")),
        ("issued by a stranger", chain),
        ("no certificate", b"nothing".to_vec()),
    ] {
        *setting.web.pem.lock().unwrap() = pem;
        let routes = fresh(keys, &setting.web, &setting.pool);
        assert_eq!(post(&routes, good.to_string()).await, StatusCode::FORBIDDEN, "{what}");
    }
    setting.web.pem.lock().unwrap().clear();
    let routes = fresh(keys, &setting.web, &setting.pool);
    assert_eq!(post(&routes, good.to_string()).await, StatusCode::SERVICE_UNAVAILABLE, "SNS tries again");
    // The certificate with the one that issued it is as good as alone.
    *setting.web.pem.lock().unwrap() = [keys.read("sns.pem"), keys.read("ca.pem")].concat();
    assert_eq!(post(&routes, good.to_string()).await, StatusCode::OK);
}

#[tokio::test]
async fn a_subscription_is_confirmed_at_sns_itself() {
    let setting = setting().await;
    let confirmation =
        setting.message("id-c", "SubscriptionConfirmation", "You have chosen to subscribe", "1");
    assert_eq!(setting.post(&confirmation).await, StatusCode::OK);
    let asked = setting.web.asked.lock().unwrap().last().cloned().expect("a request");
    let url = Url::parse(&asked).expect("a URL");
    assert_eq!(url.host_str(), Some("sns.eu-central-1.amazonaws.com"));
    let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    assert!(
        pairs.contains(&pair("Action", "ConfirmSubscription")) && pairs.contains(&pair("TopicArn", TOPIC)),
        "{asked}"
    );
    assert!(pairs.contains(&pair("Token", "2336412f37fb687f")) && !asked.contains("evil"), "{asked}");
    let count = setting.web.asked.lock().unwrap().len();
    let goodbye = setting.message("id-u", "UnsubscribeConfirmation", "You have chosen to deactivate", "2");
    assert_eq!(setting.post(&goodbye).await, StatusCode::OK);
    assert_eq!(setting.web.asked.lock().unwrap().len(), count, "nothing is confirmed again");
}

#[tokio::test]
async fn soft_bounces_add_up_and_a_delivery_forgives_them() {
    let setting = setting().await;
    let mut number = 0;
    let mut report = async |text: String| {
        number += 1;
        let message = setting.message(&format!("soft-{number}"), "Notification", &text, "2");
        assert_eq!(setting.post(&message).await, StatusCode::OK);
    };
    let soft = || bounce("Transient", "MailboxFull", &["full@example.com"]);
    for _ in 0..4 {
        report(soft()).await;
    }
    report(json!({"eventType": "Delivery", "delivery": {"recipients": ["Full@example.com"]}, "mail": {"messageId": "m"}}).to_string()).await;
    for _ in 0..4 {
        report(soft()).await;
    }
    report(bounce("Transient", "MessageTooLarge", &["full@example.com"])).await;
    assert!(setting.suppressed().await.is_empty());
    report(soft()).await;
    assert_eq!(setting.suppressed().await, [pair("full@example.com", "soft_bounce")]);
    let ends: bool = sqlx::query_scalar(
        "SELECT expires_at BETWEEN now() + interval '29 days' AND now() + interval '31 days' FROM mail.suppressions",
    )
    .fetch_one(&setting.pool)
    .await
    .expect("an end");
    assert!(ends, "a full mailbox may be emptied");
    report(json!({"eventType": "Complaint", "complaint": {"complainedRecipients": [{"emailAddress": "full@example.com"}]}, "mail": {}}).to_string()).await;
    assert_eq!(setting.suppressed().await, [pair("full@example.com", "complaint")], "what weighs more stays");
    report(soft()).await;
    assert_eq!(setting.suppressed().await, [pair("full@example.com", "complaint")]);
}

#[tokio::test]
async fn a_complaint_counts_whichever_report_of_the_mail_comes_first() {
    let setting = setting().await;
    let complaint = json!({"notificationType": "Complaint", "complaint": {"complainedRecipients": [{"emailAddress": "kim@example.com"}]}, "mail": {"messageId": "m"}});
    let delivery = json!({"notificationType": "Delivery", "delivery": {"recipients": ["kim@example.com"]}, "mail": {"messageId": "m"}});
    for (n, text) in [complaint, delivery].into_iter().enumerate() {
        let message = setting.message(&format!("late-{n}"), "Notification", &text.to_string(), "2");
        assert_eq!(setting.post(&message).await, StatusCode::OK);
    }
    assert_eq!(
        setting.suppressed().await,
        [pair("kim@example.com", "complaint")],
        "a delivery takes nothing back"
    );
}

#[test]
fn openssl_is_there() {
    assert!(Path::new("/usr/bin/openssl").exists(), "openssl is missing: run scripts/install.sh test");
}
