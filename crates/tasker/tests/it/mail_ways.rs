//! Ways out of the binary and back: SES on moto, a link that ends a subscription, reports on the public listener.

use std::process::Command as Tool;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinHandle;
use voiceai_postgres::sqlx;
use voiceai_testkit::{Exit, Moto, Port, Process, Program, SmtpSink, wait_for, wait_until};

use crate::stage::{PATIENCE, Stage, answer};

async fn curl(arguments: &[&str]) -> (u16, String) {
    let output =
        Command::new("curl").args(["-s", "-w", "\n%{http_code}"]).args(arguments).output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

/// The texts of a recipient's attempts, as JSON.
async fn attempts(stage: &Stage, status: &str) -> String {
    let pool = stage.database.pool().await;
    wait_for(PATIENCE, format!("a delivery that is {status}"), async || {
        let found: Vec<(String, Option<String>)> =
            sqlx::query_as("SELECT status, last_result FROM mail.delivery_recipients")
                .fetch_all(&pool)
                .await
                .unwrap();
        if found.iter().any(|(have, _)| have == status) {
            Ok(format!("{found:?}"))
        } else {
            Err(format!("{found:?}"))
        }
    })
    .await
}

#[tokio::test]
async fn mail_leaves_by_ses() {
    let (stage, moto) = (Stage::new().await, Moto::start().await);
    let url = format!("{}/v2/email/identities", moto.endpoint());
    let signed = "authorization: AWS4-HMAC-SHA256 Credential=AKIDTEST/20261122/us-east-1/ses/aws4_request";
    let body = r#"{"EmailIdentity": "noreply@example.com"}"#;
    let kind = "content-type: application/json";
    assert_eq!(curl(&["-X", "POST", &url, "-H", kind, "-H", signed, "-d", body]).await.0, 200);
    let program = |sender: &str| {
        stage.program().envs([
            ("EMAIL_TRANSPORT", "ses".to_owned()),
            ("EMAIL_SENDER_ADDRESS", sender.to_owned()),
            ("SES_ENDPOINT", moto.endpoint()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "AKIDTEST".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test-secret".to_owned()),
        ])
    };
    let enqueue = async |id: &str, sender: &str| {
        let payload =
            json!({"to": ["kim@example.com"], "subject": "Hello", "text_body": "Hello."}).to_string();
        answer(program(sender).args(["jobs", "enqueue", "send-email", "--id", id, "--payload", &payload]))
            .await
            .text(0);
    };
    let tasker = program("noreply@example.com").arg("run").start();
    tasker.wait_for_line(PATIENCE, "SES: Initialized").await;
    tasker.wait_for_line(PATIENCE, "service ready").await;
    enqueue("good", "noreply@example.com").await;
    attempts(&stage, "sent").await;
    let (_, data) = curl(&[&format!("{}/moto-api/data.json", moto.endpoint())]).await;
    assert!(data.contains("X-Idempotency-Key"), "the composed message went out");
    tasker.terminate();
    assert_eq!(tasker.wait_exit(PATIENCE).await, Exit::Code(0));

    // A sender that nobody verified: said with its remedy, and nothing is lost.
    let tasker = program("stranger@example.org").arg("run").start();
    tasker.wait_for_line(PATIENCE, "service ready").await;
    enqueue("bad", "stranger@example.org").await;
    let line = tasker.wait_for_line(PATIENCE, "MessageRejected").await;
    assert!(line.contains("EMAIL_SENDER_ADDRESS"), "{line}");
    attempts(&stage, "open").await;
}

#[tokio::test]
async fn one_click_ends_a_subscription_and_feedback_has_to_be_signed() {
    let (stage, sink, port) = (Stage::new().await, SmtpSink::start().await, Port::reserve());
    let public = format!("127.0.0.1:{}", port.number());
    let program = || {
        stage.program().envs([
            ("SMTP_HOST", "127.0.0.1".to_owned()),
            ("SMTP_PORT", sink.port().to_string()),
            ("SMTP_TLS", "off".to_owned()),
            ("MAIL_PUBLIC_HTTP_ADDR", public.clone()),
            ("MAIL_PUBLIC_URL", "https://mail.example.com".to_owned()),
            ("MAIL_UNSUBSCRIBE_SECRET", "0123456789abcdef0123456789abcdef".to_owned()),
            ("SES_FEEDBACK_TOPIC_ARNS", "arn:aws:sns:eu-central-1:123456789012:mail".to_owned()),
        ])
    };
    let tasker = program().arg("run").start();
    tasker.wait_for_line(PATIENCE, "service ready").await;
    let send = async |id: &str, template: &str, variables: Value| {
        let payload =
            json!({"to": ["kim@example.com"], "template_id": template, "variables": variables}).to_string();
        answer(program().args(["jobs", "enqueue", "send-email", "--id", id, "--payload", &payload]))
            .await
            .text(0);
    };
    let week = || json!({"week": "47", "metrics": [], "dashboard_url": "https://app.example.com/"});
    send("one", "weekly-summary", week()).await;
    sink.wait_for(1).await;
    let header = sink.received()[0].header("List-Unsubscribe").expect("a link");
    assert_eq!(
        sink.received()[0].header("List-Unsubscribe-Post").as_deref(),
        Some("List-Unsubscribe=One-Click")
    );
    let path = header
        .trim_matches(['<', '>'])
        .strip_prefix("https://mail.example.com")
        .expect("below the public address");
    let url = format!("http://{public}{path}");
    assert_eq!(curl(&[&url]).await.0, 200);
    assert_eq!(curl(&["-X", "POST", "-d", "List-Unsubscribe=One-Click", &url]).await.0, 200);
    assert_eq!(curl(&["-X", "POST", &format!("http://{public}/feedback/ses"), "-d", "{}"]).await.0, 400);

    send("two", "weekly-summary", week()).await;
    attempts(&stage, "suppressed").await;
    // What is not part of that subscription still arrives; a login code does and carries no link.
    send("three", "auth.login_code", json!({"code": "482913"})).await;
    wait_until(PATIENCE, "the login code", async || sink.count() == 2).await;
    assert_eq!(sink.received()[1].header("List-Unsubscribe"), None);
}

const TOPIC: &str = "arn:aws:sns:eu-central-1:123456789012:mail";

/// SNS as the binary meets it: a certificate behind HTTPS at SNS's own name, reached by the proxy.
struct Sns {
    keys: TempDir,
    _server: Process,
    proxy: String,
    _tunnel: JoinHandle<()>,
}

impl Sns {
    async fn start() -> Self {
        let keys = tempfile::tempdir().unwrap();
        let run = |arguments: &str| {
            let output =
                Tool::new("openssl").args(arguments.split(' ')).current_dir(keys.path()).output().unwrap();
            assert!(output.status.success(), "openssl {arguments}: {output:?}");
        };
        run("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=test -days 2");
        for (name, host) in [("sns", "sns.amazonaws.com"), ("web", "sns.eu-central-1.amazonaws.com")] {
            let extensions = format!("subjectAltName=DNS:{host}\nextendedKeyUsage=serverAuth\n");
            std::fs::write(keys.path().join(format!("{name}.ext")), extensions).unwrap();
            run(&format!("req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={host}"));
            run(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -extfile {name}.ext -days 2"
            ));
        }
        let port = Port::reserve();
        let number = port.number().to_string();
        let server = Program::new("openssl")
            .args([
                "s_server",
                "-accept",
                &format!("127.0.0.1:{number}"),
                "-cert",
                "web.pem",
                "-key",
                "web.key",
                "-WWW",
            ])
            .directory(keys.path())
            .start();
        let target = port.number();
        wait_until(PATIENCE, "the web server", async || {
            TcpStream::connect(("127.0.0.1", target)).await.is_ok()
        })
        .await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("http://{}", listener.local_addr().unwrap());
        let tunnel = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(tunnel(client, target));
            }
        });
        Self { keys, _server: server, proxy, _tunnel: tunnel }
    }

    fn file(&self, name: &str) -> String {
        self.keys.path().join(name).to_str().unwrap().to_owned()
    }

    /// A notification, signed as SNS signs it.
    fn notification(&self, id: &str, text: &str) -> String {
        let timestamp = "2026-11-22T10:00:00.000Z";
        let signed = format!(
            "Message\n{text}\nMessageId\n{id}\nTimestamp\n{timestamp}\nTopicArn\n{TOPIC}\nType\nNotification\n"
        );
        std::fs::write(self.file("text"), signed).unwrap();
        let sign = "openssl dgst -sha256 -sign sns.key text | openssl base64 -A";
        let output = Tool::new("sh").args(["-c", sign]).current_dir(self.keys.path()).output().unwrap();
        json!({
            "Type": "Notification", "MessageId": id, "TopicArn": TOPIC, "Message": text, "Timestamp": timestamp,
            "SignatureVersion": "2", "Signature": String::from_utf8(output.stdout).unwrap(),
            "SigningCertURL": "https://sns.eu-central-1.amazonaws.com/sns.pem",
        })
        .to_string()
    }
}

/// One CONNECT, whatever host it names.
async fn tunnel(mut client: TcpStream, target: u16) {
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        let Ok(byte) = client.read_u8().await else { return };
        asked.push(byte);
    }
    assert!(
        asked.starts_with(b"CONNECT sns.eu-central-1.amazonaws.com:443 "),
        "{}",
        String::from_utf8_lossy(&asked)
    );
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let _ = client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await;
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

fn bounce(address: &str) -> String {
    json!({
        "eventType": "Bounce",
        "bounce": {"bounceType": "Permanent", "bounceSubType": "General", "bouncedRecipients": [{"emailAddress": address}]},
        "mail": {"messageId": "0102-mail"},
    })
    .to_string()
}

#[tokio::test]
async fn a_bounce_that_ses_reports_keeps_the_next_mail_back() {
    let (stage, sink, sns, port) =
        (Stage::new().await, SmtpSink::start().await, Sns::start().await, Port::reserve());
    let public = format!("127.0.0.1:{}", port.number());
    let program = || {
        stage.program().envs([
            ("SMTP_HOST", "127.0.0.1".to_owned()),
            ("SMTP_PORT", sink.port().to_string()),
            ("SMTP_TLS", "off".to_owned()),
            ("MAIL_PUBLIC_HTTP_ADDR", public.clone()),
            ("SES_FEEDBACK_TOPIC_ARNS", TOPIC.to_owned()),
            ("HTTPS_PROXY", sns.proxy.clone()),
            ("SSL_CERT_FILE", sns.file("ca.pem")),
        ])
    };
    let tasker = program().arg("run").start();
    tasker.wait_for_line(PATIENCE, "service ready").await;
    let url = format!("http://{public}/feedback/ses");
    let report = sns.notification("m-1", &bounce("Kim@Example.com"));
    for _ in 0..2 {
        let (status, body) =
            curl(&["-X", "POST", "-H", "content-type: text/plain", "-d", &report, &url]).await;
        assert_eq!(status, 200, "{body}\n{}", tasker.stderr());
    }
    let forged = report.replace("m-1", "m-2");
    assert_eq!(curl(&["-X", "POST", "-d", &forged, &url]).await.0, 403);
    let listed = answer(program().args(["mail", "suppressions", "list", "--json"])).await.json(0);
    let entries = listed["suppressions"].as_array().unwrap();
    assert_eq!((entries.len(), &entries[0]["address"]), (1, &json!("kim@example.com")), "{listed}");
    assert_eq!(
        (&entries[0]["reason"], &entries[0]["origin"]),
        (&json!("hard_bounce"), &json!("m-1")),
        "{listed}"
    );
    let payload = json!({"to": ["kim@example.com"], "subject": "Hello", "text_body": "Hello."}).to_string();
    answer(program().args(["jobs", "enqueue", "send-email", "--id", "next", "--payload", &payload]))
        .await
        .text(0);
    attempts(&stage, "suppressed").await;
    assert_eq!(sink.count(), 0);
}
