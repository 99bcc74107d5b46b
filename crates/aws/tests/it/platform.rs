//! The platform's stores of settings: moto for what they do when all is well, a scripted double for what goes wrong.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ssm::config::Credentials;
use aws_sdk_ssm::types::ParameterType;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use voiceai_aws::{AwsAccess, PlatformSettings, platform_layers};
use voiceai_config::catalogue::{postgres, queue};
use voiceai_config::{Binary, Content, Fixed, Layer, LayerError, LayerKind, Resolved};
use voiceai_egress::Rule;
use voiceai_runtime::Secret;
use voiceai_testkit::Moto;

const CANARY: &str = "canary-of-a-secret";

pub(crate) fn access(endpoint: &str) -> AwsAccess {
    AwsAccess {
        region: "eu-central-1".to_owned(),
        endpoint: Some(endpoint.to_owned()),
        keys: Some((Secret::new("test"), Secret::new("test"))),
        renewed: None,
        instance_profile: false,
        way: Rule::default(),
    }
}

pub(crate) fn settings(endpoint: &str) -> PlatformSettings {
    PlatformSettings {
        namespace: "voiceai/staging".to_owned(),
        service: "ops".to_owned(),
        access: access(endpoint),
        call_limit: Duration::from_secs(20),
    }
}

pub(crate) async fn sdk(endpoint: &str) -> SdkConfig {
    aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .load()
        .await
}

fn values(content: &Content) -> BTreeMap<&str, &str> {
    content.values.iter().map(|(name, value)| (name.as_str(), value.expose())).collect()
}

#[tokio::test]
async fn parameters_and_secrets_are_read_whole_and_in_their_order() {
    let moto = Moto::start().await;
    let endpoint = moto.endpoint();
    let sdk = sdk(&endpoint).await;
    let ssm = aws_sdk_ssm::Client::new(&sdk);
    let put = async |name: &str, value: &str, kind: ParameterType| {
        ssm.put_parameter().name(name).value(value).r#type(kind).send().await.expect(name);
    };
    // More than two pages of ten.
    for number in 0..23 {
        put(&format!("/voiceai/staging/ops/EXTRA_{number}"), "x", ParameterType::String).await;
    }
    put("/voiceai/staging/ops/workers/WORKER_CONCURRENCY", "7", ParameterType::String).await;
    put("/voiceai/staging/ops/DATABASE_PASSWORD", "of-ssm", ParameterType::SecureString).await;
    put("/voiceai/staging/ops/DATABASE_HOST", "db.internal", ParameterType::String).await;
    put("/voiceai/staging/opsx/WORKER_CONCURRENCY", "99", ParameterType::String).await;
    put("/voiceai/production/ops/WORKER_CONCURRENCY", "98", ParameterType::String).await;
    let secrets = aws_sdk_secretsmanager::Client::new(&sdk);
    for (name, text) in [
        (
            "voiceai/staging/ops/secrets",
            format!(r#"{{"DATABASE_PASSWORD":"{CANARY}","DATABASE_PORT":5433}}"#),
        ),
        ("voiceai/staging/ops/more", r#"{"DATABASE_NAME":"voiceai"}"#.to_owned()),
        ("voiceai/staging/api/secrets", r#"{"DATABASE_NAME":"wrong"}"#.to_owned()),
    ] {
        secrets.create_secret().name(name).secret_string(text).send().await.expect(name);
    }

    let (parameters, secret_layer) = platform_layers(&settings(&endpoint)).await;
    let content = parameters.read().await.expect("readable");
    assert_eq!(content.values.len(), 26, "{:?}", content.values.keys());
    assert_eq!(values(&content)["DATABASE_PASSWORD"], "of-ssm", "decrypted");

    let environment = Fixed::new(
        LayerKind::Bootstrap,
        "the environment",
        [("DATABASE_USERNAME", "ops"), ("WORKER_CONCURRENCY", "1")],
    );
    let resolved =
        Resolved::from_layers(Binary::Tasker, &[&secret_layer, &environment, &parameters]).await.unwrap();
    let read =
        resolved.read(|r| (r.get(&queue::WORKER_CONCURRENCY), r.required(&postgres::DATABASE_URL))).unwrap();
    assert_eq!(read.settings.0, 7);
    assert_eq!(read.settings.1.expose(), format!("postgres://ops:{CANARY}@db.internal:5433/voiceai"));
    let printed = resolved.print();
    let password = printed.iter().find(|line| line.name == "DATABASE_PASSWORD").unwrap();
    assert_eq!((password.layer, password.overridden[0].layer), (Some("secrets_manager"), "ssm"));
    let everything = format!("{printed:?} {resolved:?} {parameters:?} {secret_layer:?}");
    assert!(!everything.contains(CANARY) && !everything.contains("of-ssm"));

    // An environment without anything in the stores is no error.
    let empty = PlatformSettings { namespace: "voiceai/absent".to_owned(), ..settings(&endpoint) };
    let (parameters, secret_layer) = platform_layers(&empty).await;
    assert!(parameters.read().await.unwrap().values.is_empty());
    assert!(secret_layer.read().await.unwrap().values.is_empty());

    // What is there and is no JSON object ends it, named and unseen.
    secrets
        .create_secret()
        .name("voiceai/staging/ops/broken")
        .secret_string(CANARY)
        .send()
        .await
        .expect("create a secret");
    let (_, secret_layer) = platform_layers(&settings(&endpoint)).await;
    let error = secret_layer.read().await.expect_err("malformed");
    assert_eq!(error.origin, "Secrets Manager voiceai/staging/ops/broken");
    assert!(error.reason.contains("no JSON object") && !error.to_string().contains(CANARY), "{error}");
}

/// Answers the nth call of each operation (`GetParametersByPath`, …) as it is told; status 0 never answers.
struct Double {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Double {
    async fn start(answers: fn(&str, usize) -> (u16, &'static str)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&log), answers));
            }
        });
        Self { endpoint, asked }
    }

    fn asked(&self, operation: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == operation).count()
    }
}

async fn serve(
    stream: TcpStream,
    log: Arc<Mutex<Vec<String>>>,
    answers: fn(&str, usize) -> (u16, &'static str),
) {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut operation, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end();
            let (name, value) = line.split_once(": ").unwrap_or((line, ""));
            match name.to_ascii_lowercase().as_str() {
                "" => break,
                "content-length" => length = value.parse().unwrap(),
                "x-amz-target" => operation = value.rsplit('.').next().unwrap_or_default().to_owned(),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let before = {
            let mut log = log.lock().unwrap();
            log.push(operation.clone());
            log.iter().filter(|asked| **asked == operation).count() - 1
        };
        let (status, body) = answers(&operation, before);
        if status == 0 {
            std::future::pending::<()>().await;
        }
        let answer = format!(
            "HTTP/1.1 {status} Scripted\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

const DENIED: (u16, &str) = (
    400,
    r#"{"__type":"AccessDeniedException","message":"User: arn:aws:sts::1:assumed-role/ops/i-1 is not authorized to perform: x"}"#,
);

async fn parameters(double: &Double) -> Result<Content, LayerError> {
    platform_layers(&settings(&double.endpoint)).await.0.read().await
}

async fn secrets(double: &Double) -> Result<Content, LayerError> {
    platform_layers(&settings(&double.endpoint)).await.1.read().await
}

#[tokio::test]
async fn a_denied_call_names_itself_the_place_and_the_right_that_is_missing() {
    let double = Double::start(|_, _| DENIED).await;
    let error = parameters(&double).await.expect_err("denied");
    assert_eq!(
        (error.call.as_str(), error.origin.as_str()),
        ("ssm:GetParametersByPath", "SSM /voiceai/staging/ops/")
    );
    assert!(error.reason.contains("assumed-role/ops") && error.remedy.contains("Grant"), "{error}");
    assert_eq!(double.asked("GetParametersByPath"), 1, "asking again cannot help");
}

#[tokio::test]
async fn a_throttled_call_is_tried_again_and_not_for_ever() {
    const THROTTLED: (u16, &str) = (400, r#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#);
    const PAGE: (u16, &str) =
        (200, r#"{"Parameters":[{"Name":"/voiceai/staging/ops/A","Type":"String","Value":"1"}]}"#);
    let double = Double::start(|_, before| if before < 2 { THROTTLED } else { PAGE }).await;
    assert_eq!(values(&parameters(&double).await.unwrap())["A"], "1");
    assert_eq!(double.asked("GetParametersByPath"), 3);
    let double = Double::start(|_, _| THROTTLED).await;
    let error = parameters(&double).await.expect_err("throttled");
    assert!(error.reason.contains("ThrottlingException"), "{error}");
    assert_eq!(double.asked("GetParametersByPath"), 4);
}

#[tokio::test]
async fn half_an_answer_is_none() {
    // The second page is cut off in the middle; what the first one gave must not be used.
    let double = Double::start(|_, before| match before {
        0 => (
            200,
            r#"{"Parameters":[{"Name":"/voiceai/staging/ops/A","Type":"String","Value":"1"}],"NextToken":"t"}"#,
        ),
        _ => (200, r#"{"Parameters":[{"Name":"/voiceai/staging/ops/B","Val"#),
    })
    .await;
    let error = parameters(&double).await.expect_err("truncated");
    assert_eq!(error.call, "ssm:GetParametersByPath");
    // A server that gives the same token for ever would be read for ever.
    let double = Double::start(|_, _| (200, r#"{"Parameters":[],"NextToken":"t"}"#)).await;
    let error = parameters(&double).await.expect_err("endless");
    assert!(error.reason.contains("points at itself"), "{error}");
    let double = Double::start(|_, _| (200, r#"{"SecretList":[],"NextToken":"t"}"#)).await;
    assert!(secrets(&double).await.is_err());
}

#[tokio::test]
async fn without_the_right_to_list_the_conventional_secret_is_read_and_told() {
    let double = Double::start(|operation, _| match operation {
        "ListSecrets" => DENIED,
        _ => (200, r#"{"Name":"voiceai/staging/ops/secrets","SecretString":"{\"A\":\"1\"}"}"#),
    })
    .await;
    let content = secrets(&double).await.unwrap();
    assert_eq!(values(&content)["A"], "1");
    assert!(content.warnings[0].message.contains("ListSecrets"), "{:?}", content.warnings);
    // It need not exist, but a secret that may not be read is a failure.
    let absent = Double::start(|operation, _| match operation {
        "ListSecrets" => DENIED,
        _ => (400, r#"{"__type":"ResourceNotFoundException","Message":"no such secret"}"#),
    })
    .await;
    assert!(secrets(&absent).await.unwrap().values.is_empty());
    let error = secrets(&Double::start(|_, _| DENIED).await).await.expect_err("denied");
    assert_eq!(error.call, "secretsmanager:GetSecretValue");
}

#[tokio::test]
async fn a_secret_that_is_deleted_while_it_is_read_ends_it() {
    let double = Double::start(|operation, _| match operation {
        "ListSecrets" => (200, r#"{"SecretList":[{"Name":"voiceai/staging/ops/gone"}]}"#),
        _ => (400, r#"{"__type":"ResourceNotFoundException","Message":"no such secret"}"#),
    })
    .await;
    let error = secrets(&double).await.expect_err("gone");
    assert!(
        error.origin.ends_with("voiceai/staging/ops/gone") && error.reason.contains("ResourceNotFound"),
        "{error}"
    );
}

#[tokio::test]
async fn what_does_not_answer_ends_within_its_bound_and_says_so() {
    let started = std::time::Instant::now();
    let hanging = Double::start(|_, _| (0, "")).await;
    let refused = settings("http://127.0.0.1:1");
    let unknown = settings("http://ssm.invalid");
    let read = async |settings: PlatformSettings| platform_layers(&settings).await.0.read().await;
    let hanging = PlatformSettings { call_limit: Duration::from_secs(2), ..settings(&hanging.endpoint) };
    let (hanging, refused, unknown) = tokio::join!(read(hanging), read(refused), read(unknown));
    for error in
        [hanging.expect_err("hangs"), refused.expect_err("refused"), unknown.expect_err("no such name")]
    {
        assert!(error.remedy.contains("route to AWS"), "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}
