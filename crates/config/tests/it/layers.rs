use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use voiceai_config::catalogue::{leader, postgres, queue, redis};
use voiceai_config::{Binary, Fixed, Layer, LayerError, LayerKind, ReadLayer, Resolved};

/// The layers of these tests are ready at once.
fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a layer of a test was not ready"),
    }
}

fn layer(kind: LayerKind, pairs: &[(&str, &str)]) -> Fixed {
    Fixed::new(kind, format!("the {kind} of a test"), pairs.iter().copied())
}

#[test]
fn the_order_of_the_layers_is_fixed_whatever_the_order_given() {
    let bootstrap = layer(LayerKind::Bootstrap, &[("WORKER_CONCURRENCY", "1"), ("REDIS_PASSWORD", "a")]);
    let ssm = layer(LayerKind::Ssm, &[("WORKER_CONCURRENCY", "2"), ("REDIS_PASSWORD", "b")]);
    let secrets = layer(LayerKind::SecretsManager, &[("REDIS_PASSWORD", "c"), ("WORKER_CONCURRENCY", " ")]);
    let external = layer(LayerKind::ExternalSecret, &[("REDIS_PASSWORD", "d")]);
    let layers: [&dyn Layer; 4] = [&external, &bootstrap, &secrets, &ssm];
    let resolved = now(Resolved::from_layers(Binary::Tasker, &layers)).unwrap();
    let loaded =
        resolved.read(|r| (r.get(&queue::WORKER_CONCURRENCY), r.required(&redis::REDIS_PASSWORD))).unwrap();
    assert_eq!(loaded.settings.0, 2, "an empty value of a higher layer counts as unset");
    assert_eq!(loaded.settings.1.expose(), "d");

    let printed = resolved.print();
    let password = printed.iter().find(|line| line.name == "REDIS_PASSWORD").unwrap();
    assert_eq!((password.value.as_deref(), password.layer), (Some("***"), Some("external_secret")));
    let lost: Vec<_> =
        password.overridden.iter().map(|lost| (lost.layer, lost.value.as_str(), lost.same)).collect();
    assert_eq!(
        lost,
        [("secrets_manager", "***", false), ("ssm", "***", false), ("environment", "***", false)]
    );
    let concurrency = printed.iter().find(|line| line.name == "WORKER_CONCURRENCY").unwrap();
    assert_eq!(concurrency.overridden[0].value, "1");
    assert!(!serde_json::to_string(&printed).unwrap().contains("\"d\""));
}

#[test]
fn a_layer_that_cannot_be_read_ends_the_start() {
    struct Denied;
    impl Layer for Denied {
        fn kind(&self) -> LayerKind {
            LayerKind::Ssm
        }
        fn origin(&self) -> String {
            "SSM /voiceai/staging/ops/".to_owned()
        }
        fn read(&self) -> ReadLayer<'_> {
            let error = LayerError {
                origin: self.origin(),
                call: "ssm:GetParametersByPath".to_owned(),
                reason: "access denied".to_owned(),
                remedy: "Grant the instance role ssm:GetParametersByPath".to_owned(),
            };
            Box::pin(std::future::ready(Err(error)))
        }
    }
    let bootstrap = layer(LayerKind::Bootstrap, &[("WORKER_CONCURRENCY", "1")]);
    let error = now(Resolved::from_layers(Binary::Tasker, &[&bootstrap, &Denied])).unwrap_err().to_string();
    for part in ["/voiceai/staging/ops/", "ssm:GetParametersByPath", "access denied", "Grant"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn what_is_edited_on_the_host_and_replaced_by_ssm_is_a_warning() {
    let bootstrap =
        layer(LayerKind::Bootstrap, &[("CONFIG_BUCKET", "new"), ("NAMESPACE", "voiceai/staging")]);
    let ssm = layer(LayerKind::Ssm, &[("CONFIG_BUCKET", "old"), ("NAMESPACE", "voiceai/staging")]);
    let resolved = now(Resolved::from_layers(Binary::Scaler, &[&bootstrap, &ssm])).unwrap();
    let names: Vec<_> = resolved.warnings().iter().map(|warning| warning.name.as_str()).collect();
    assert_eq!(names, ["CONFIG_BUCKET"]);
    assert!(resolved.warnings()[0].message.contains("SSM's value counts"));
}

#[test]
fn a_url_is_composed_last_from_the_parts_of_all_layers() {
    let bootstrap = layer(LayerKind::Bootstrap, &[("DATABASE_HOST", "db"), ("DATABASE_USERNAME", "ops")]);
    let ssm = layer(LayerKind::Ssm, &[("DATABASE_NAME", "voiceai"), ("DATABASE_HOST", "db2")]);
    let secrets = layer(LayerKind::SecretsManager, &[("DATABASE_PASSWORD", "p@ss")]);
    let resolved = now(Resolved::from_layers(Binary::Scaler, &[&bootstrap, &ssm, &secrets])).unwrap();
    let url = resolved.read(|r| r.required(&postgres::DATABASE_URL)).unwrap().settings;
    assert_eq!(url.expose(), "postgres://ops:p%40ss@db2:5432/voiceai");
    let printed = resolved.print();
    let line = printed.iter().find(|line| line.name == "DATABASE_URL").unwrap();
    assert_eq!(line.layer, Some("composed"));
    assert_eq!(line.value.as_deref(), Some("postgres://***@db2:5432/voiceai"));
}

#[test]
fn a_default_counts_only_when_nothing_else_gives_a_value() {
    let resolved = Resolved::from_pairs(Binary::Scaler, [("LEADER_ELECTION_KEY", "")]);
    let key = resolved.read(|r| r.get(&leader::LEADER_ELECTION_KEY)).unwrap().settings;
    assert_eq!(key, "voiceai:scaler:leader");
    let printed = resolved.print();
    assert_eq!(
        printed.iter().find(|line| line.name == "LEADER_ELECTION_KEY").unwrap().layer,
        Some("default")
    );
    assert!(printed.iter().all(|line| line.name != "TASKER_LEADER_ELECTION_KEY"), "the tasker's");
}

#[test]
fn aliases_give_the_same_setting_and_must_agree() {
    let read = |pairs: &[(&str, &str)]| {
        let resolved = Resolved::from_pairs(Binary::Tasker, pairs.iter().copied());
        resolved.read(|r| {
            (r.optional(&redis::REDIS_HOST), r.get(&redis::REDIS_PORT), r.optional(&redis::REDIS_URL))
        })
    };
    let (host, port, url) = read(&[("MAIL_REDIS_MASTER_ADDR", "cache:6390")]).unwrap().settings;
    assert_eq!((host.as_deref(), port), (Some("cache"), 6390));
    assert_eq!(url.unwrap().expose(), "redis://cache:6390");

    assert!(read(&[("MAIL_REDIS_MASTER_ADDR", "cache:6390"), ("REDIS_PORT", "6390")]).is_ok());
    let report = read(&[("MAIL_REDIS_MASTER_ADDR", "cache:6390"), ("REDIS_PORT", "6391")]).unwrap_err();
    let text = report.to_string();
    assert!(text.contains("REDIS_PORT") && text.contains("MAIL_REDIS_MASTER_ADDR"), "{text}");
    assert_eq!(report.violations.len(), 1);

    let report = read(&[("REDIS_PASSWORD", "canary-1"), ("MAIL_REDIS_PASSWORD", "canary-2")]).unwrap_err();
    assert!(!format!("{report} {report:?}").contains("canary"), "{report}");
    assert!(read(&[("MAIL_REDIS_MASTER_ADDR", "cache")]).is_err(), "no port");

    // Two layers do not excuse two names.
    let bootstrap = layer(LayerKind::Bootstrap, &[("PG_HOST", "a")]);
    let ssm = layer(LayerKind::Ssm, &[("DATABASE_HOST", "b")]);
    let resolved = now(Resolved::from_layers(Binary::Tasker, &[&bootstrap, &ssm])).unwrap();
    assert!(resolved.read(|_| ()).is_err());
}
