//! AWS clients behind a real Squid: the one rule decides for them too.

use std::time::{Duration, Instant};

use voiceai_aws::{
    AwsAccess, PlatformSettings, caller_identity, platform_layers, resolve_from, secret_value,
};
use voiceai_config::{Binary, Fixed, Layer, LayerError, LayerKind, Resolved};
use voiceai_egress::Rule;
use voiceai_testkit::{AwsFault, AwsFaults, Moto, Squid, SquidOptions};

use crate::platform::{access, sdk, settings};

fn rule(pairs: &[(&str, &str)]) -> Rule {
    Resolved::from_pairs(Binary::Tasker, pairs.iter().copied()).read(Rule::read).unwrap().settings
}

fn behind(endpoint: &str, pairs: &[(&str, &str)]) -> PlatformSettings {
    let access = AwsAccess { way: rule(pairs), ..access(endpoint) };
    PlatformSettings { access, ..settings(endpoint) }
}

async fn read(settings: &PlatformSettings) -> Result<usize, LayerError> {
    let content = platform_layers(settings).await.0.read().await?;
    Ok(content.values.len())
}

#[tokio::test]
async fn aws_is_reached_through_squid_unless_no_proxy_names_it() {
    let moto = Moto::start().await;
    let squid =
        Squid::start(SquidOptions { ports: vec![moto.port()], login: Some(("ops", "pw-canary")) }).await;
    let proxy = squid.url();
    let through = behind(&moto.endpoint(), &[("HTTP_PROXY", &proxy)]);
    assert_eq!(read(&through).await.unwrap(), 0);
    squid.wait_for_log(&format!("POST {}/ ops", moto.endpoint())).await;
    let before = squid.log().lines().count();
    // A network covers an address; the SDK's own reading of the environment is never asked.
    let direct = behind(&moto.endpoint(), &[("HTTP_PROXY", &proxy), ("NO_PROXY", "127.0.0.0/8")]);
    assert_eq!(read(&direct).await.unwrap(), 0);
    assert_eq!(squid.log().lines().count(), before, "{}", squid.log());
    let https_only = behind(&moto.endpoint(), &[("HTTPS_PROXY", &proxy)]);
    assert_eq!(read(&https_only).await.unwrap(), 0, "plain HTTP has a variable of its own");
    assert_eq!(squid.log().lines().count(), before, "{}", squid.log());
}

#[tokio::test]
async fn a_proxy_that_refuses_hangs_or_is_unknown_is_named_and_does_not_hold_a_start_up() {
    let squid = Squid::start(SquidOptions { ports: vec![1], login: Some(("ops", "pw-canary")) }).await;
    let name = format!("through the proxy 127.0.0.1:{}", squid.port());
    let of = |endpoint: &str, proxy: &str| behind(endpoint, &[("HTTPS_PROXY", proxy)]);
    let refused = read(&of("https://ssm.invalid", &squid.url())).await.expect_err("refused");
    assert!(refused.reason.contains(&name) && refused.remedy.contains("what it allows"), "{refused}");
    let unknown = read(&of("https://ssm.invalid", "http://squid.invalid:3128")).await.expect_err("no name");
    assert!(unknown.reason.contains("squid.invalid:3128"), "{unknown}");
    squid.pause();
    let (start, limit) = (Instant::now(), Duration::from_secs(2));
    let hanging = PlatformSettings { call_limit: limit, ..of("https://ssm.invalid", &squid.url()) };
    let hangs = read(&hanging).await.expect_err("hangs");
    assert!(start.elapsed() < limit * 3, "{:?}", start.elapsed());
    squid.resume();
    for error in [refused, unknown, hangs] {
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
}

#[tokio::test]
async fn a_secret_outside_the_prefix_is_read_where_a_setting_names_it() {
    let moto = Moto::start().await;
    let secrets = aws_sdk_secretsmanager::Client::new(&sdk(&moto.endpoint()).await);
    let of_rds = r#"{"username":"ops","password":"canary-of-rds","engine":"postgres","port":5432}"#;
    secrets.create_secret().name("rds!db-1").secret_string(of_rds).send().await.unwrap();
    let bootstrap = |arn: &str| {
        let pairs = [
            ("DATABASE_SECRET_ARN", arn),
            ("DATABASE_PASSWORD", "old"),
            ("DATABASE_HOST", "db"),
            ("DATABASE_NAME", "v"),
        ];
        Fixed::new(LayerKind::Bootstrap, "the environment", pairs)
    };
    let read =
        async |arn: &str| resolve_from(Binary::Tasker, &bootstrap(arn), &settings(&moto.endpoint())).await;
    let resolved = read("rds!db-1").await.unwrap();
    let url = resolved.read(|r| r.required(&voiceai_config::catalogue::postgres::DATABASE_URL)).unwrap();
    assert_eq!(url.settings.expose(), "postgres://ops:canary-of-rds@db:5432/v");
    let printed = resolved.print();
    let password = printed.iter().find(|line| line.name == "DATABASE_PASSWORD").unwrap();
    assert_eq!((password.layer, password.overridden[0].layer), (Some("external_secret"), "environment"));
    let error = read("rds!gone").await.expect_err("it is not there").to_string();
    assert!(
        error.contains("rds!gone (named by DATABASE_SECRET_ARN)") && !error.contains("canary"),
        "{error}"
    );
    secrets.create_secret().name("plain").secret_string("canary-of-text").send().await.unwrap();
    let error = read("plain").await.expect_err("no JSON").to_string();
    assert!(error.contains("no JSON object") && !error.contains("canary"), "{error}");
}

#[tokio::test]
async fn every_layer_that_fails_is_named_and_a_wrong_clock_is_called_so() {
    let moto = Moto::start().await;
    let faults = AwsFaults::before(moto.port()).await;
    let late = AwsFault::error(
        "InvalidSignatureException",
        "Signature expired: 20261122T200000Z is now earlier than 20261122T200500Z (20261122T201000Z - 5 min.)",
    );
    faults.set("GetParametersByPath", Some(late.clone()));
    faults.set("ListSecrets", Some(AwsFault::error("InternalServiceError", "on fire")));
    let bootstrap = Fixed::new(LayerKind::Bootstrap, "the environment", [("LOG_LEVEL", "info")]);
    let error =
        resolve_from(Binary::Scaler, &bootstrap, &settings(faults.endpoint())).await.expect_err("both");
    let text = error.to_string();
    for part in
        ["SSM /voiceai/staging/ops/", "Signature expired", "this host's clock", "ListSecrets", "on fire"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    faults.set("GetSecretValue", Some(late.clone()));
    faults.set("GetCallerIdentity", None);
    let error = secret_value(&access(faults.endpoint()), "x").await.expect_err("late").to_string();
    assert!(error.contains("clock"), "{error}");
    let arn = caller_identity(&access(faults.endpoint()), Duration::from_secs(10)).await.unwrap();
    assert!(arn.starts_with("arn:aws:"), "{arn}");
    assert!(faults.keys().iter().all(|key| key == "test"), "{:?}", faults.keys());
}
