use std::time::Duration;

use voiceai_config::catalogue::{general, leader, postgres, queue, redis, scaler, storage};
use voiceai_config::{Binary, General, Instance, Rate, Reader, Report, Resolved};

fn scaler_with(pairs: &[(&str, &str)]) -> Resolved {
    Resolved::from_pairs(Binary::Scaler, pairs.iter().copied())
}

fn violations(report: &Report) -> Vec<&str> {
    report.violations.iter().map(|violation| violation.name.as_str()).collect()
}

/// What the leader crate does with its two settings: a rule between them.
fn leader_times(reader: &Reader<'_>) -> (Duration, Duration) {
    let heartbeat = reader.get(&leader::LEADER_HEARTBEAT_INTERVAL_MS);
    let ttl = reader.get(&leader::LEADER_LOCK_TTL_MS);
    if ttl < heartbeat * 2 {
        reader.violation(&leader::LEADER_LOCK_TTL_MS, "at least twice the heartbeat", "Raise it.");
    }
    (heartbeat, ttl)
}

#[test]
fn every_violation_is_reported_at_once_with_its_name() {
    let resolved = Resolved::from_pairs(
        Binary::Tasker,
        [
            ("LEADER_LOCK_TTL_MS", "10s"),
            ("WORKER_CONCURRENCY", "0"),
            ("QUEUE_EMAIL_QUEUE_RATE", "often"),
            ("DIAGNOSTIC_JOBS", "maybe"),
            ("DATABASE_URL", "mysql://u:canary@h/d"),
            ("S3_ACCESS_KEY", "canary"),
            ("SHUTDOWN_TIMEOUT", "30000"),
            ("LOG_LEVEL", "loud"),
            ("REDIS_PORT", "70000"),
            ("DATABASE_SSLMODE", "sometimes"),
        ],
    );
    let report = resolved.read_whole(General::read).unwrap_err();
    let mut names = violations(&report);
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "DATABASE_SSLMODE",
            "DATABASE_URL",
            "DIAGNOSTIC_JOBS",
            "LEADER_LOCK_TTL_MS",
            "LOG_LEVEL",
            "QUEUE_EMAIL_QUEUE_RATE",
            "REDIS_PORT",
            "REDIS_URL",
            "S3_SECRET_KEY",
            "SHUTDOWN_TIMEOUT",
            "WORKER_CONCURRENCY",
        ]
    );
    let text = report.to_string();
    assert!(text.starts_with("11 settings are wrong:"), "{text}");
    assert!(!text.contains("canary"), "{text}");
    for part in [
        "LEADER_LOCK_TTL_MS is \"10s\" (environment): expected a whole number of milliseconds",
        "disable, prefer",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["violations"].as_array().unwrap().len(), 11);
}

#[test]
fn only_what_is_read_is_needed_unless_the_whole_is_checked() {
    let resolved = scaler_with(&[]);
    assert!(resolved.read(leader_times).is_ok());
    let report = resolved.read_whole(leader_times).unwrap_err();
    assert_eq!(violations(&report), ["REDIS_URL", "DATABASE_URL"]);
    let both =
        resolved.read_whole(|r| r.violation(&redis::REDIS_URL, "something else", "Do it.")).unwrap_err();
    assert_eq!(violations(&both), ["REDIS_URL", "DATABASE_URL"], "a setting is named once");
    let report = resolved.read(|reader| reader.required(&redis::REDIS_URL)).unwrap_err();
    assert_eq!(violations(&report), ["REDIS_URL"]);
    assert!(report.to_string().contains("{REDIS_HOST}"), "the parts are a remedy: {report}");
}

#[test]
fn durations_have_their_unit_and_their_bounds() {
    let times = |pairs: &[(&str, &str)]| scaler_with(pairs).read(leader_times).map(|loaded| loaded.settings);
    assert_eq!(times(&[]).unwrap(), (Duration::from_secs(5), Duration::from_secs(10)));
    for wrong in ["", "abc", "10s", "-1", "0", "1e3", "10000.5", "99999999999999999999"] {
        let got = times(&[("LEADER_LOCK_TTL_MS", wrong)]);
        assert_eq!(got.is_ok(), wrong.is_empty(), "{wrong:?}: {got:?}");
    }
    let report = times(&[("LEADER_HEARTBEAT_INTERVAL_MS", "6000")]).unwrap_err();
    assert_eq!(violations(&report), ["LEADER_LOCK_TTL_MS"]);
    assert_eq!(report.violations[0].layer.as_deref(), Some("default"));

    let drain = |text: &str| scaler_with(&[("DRAIN_TIMEOUT", text)]).read(|r| r.get(&scaler::DRAIN_TIMEOUT));
    assert_eq!(drain("1h30m").unwrap().settings, Duration::from_secs(5_400));
    assert!(drain("8d").unwrap_err().to_string().contains("from 0ms to 7d"));
}

#[test]
fn a_violation_among_others_never_lets_a_placeholder_out() {
    let resolved = scaler_with(&[("LEADER_HEARTBEAT_INTERVAL_MS", "x"), ("DRAIN_TIMEOUT", "x")]);
    let report = resolved.read(|r| (leader_times(r), r.get(&scaler::DRAIN_TIMEOUT))).unwrap_err();
    assert_eq!(violations(&report), ["LEADER_HEARTBEAT_INTERVAL_MS", "DRAIN_TIMEOUT"]);
}

#[test]
fn words_read_in_any_case_and_lists_without_blanks() {
    let resolved = Resolved::from_pairs(
        Binary::Scaler,
        [
            ("DATABASE_SSLMODE", "Verify-Full"),
            ("PROVIDER_ENV_PASS", " A, B ,,C"),
            ("REDIS_CLUSTER_MODE", "ON"),
        ],
    );
    let (mode, pass, cluster) = resolved
        .read(|r| {
            (
                r.optional(&postgres::DATABASE_SSLMODE),
                r.optional(&scaler::PROVIDER_ENV_PASS),
                r.get(&redis::REDIS_CLUSTER_MODE),
            )
        })
        .unwrap()
        .settings;
    assert_eq!(mode, Some(postgres::SslMode::VerifyFull));
    assert_eq!(pass.unwrap(), ["A", "B", "C"]);
    assert!(cluster);
}

#[test]
fn a_queue_has_settings_of_its_own() {
    let pairs = [
        ("QUEUE_EMAIL_QUEUE_RATE", "10/s"),
        ("QUEUE_EMAIL_CONCURRENCY", "7"),
        ("QUEUE_ORCHESTRATION_QUEUE_RATE", "5/m"),
        ("QUEUE_REPORTS_BACKOFF", "30s"),
    ];
    let resolved = Resolved::from_pairs(Binary::Tasker, pairs);
    resolved
        .read(|r| {
            let rate = r.named(&queue::QUEUE_RATE, "email-queue");
            assert_eq!(rate, Some(Rate { count: 10, per: Duration::from_secs(1) }));
            assert_eq!(r.named(&queue::QUEUE_CONCURRENCY, "email-queue"), Some(7), "the short form");
            assert_eq!(r.named(&queue::QUEUE_CONCURRENCY, "reports"), None);
            assert_eq!(r.each(&queue::QUEUE_RATE).len(), 2);
            assert_eq!(r.each(&queue::QUEUE_BACKOFF)["REPORTS"], Duration::from_secs(30));
        })
        .unwrap();
    let both = [("QUEUE_EMAIL_QUEUE_CONCURRENCY", "5"), ("QUEUE_EMAIL_CONCURRENCY", "6")];
    let resolved = Resolved::from_pairs(Binary::Tasker, both);
    assert!(resolved.read(|r| r.named(&queue::QUEUE_CONCURRENCY, "email-queue")).is_err());
    assert!(Resolved::from_pairs(Binary::Tasker, pairs).warnings().is_empty());
}

#[test]
fn a_misspelt_variable_is_a_warning_and_no_reason_not_to_start() {
    let loaded = scaler_with(&[("LEADER_LOCK_TLL_MS", "1")]).read(leader_times).unwrap();
    assert_eq!(loaded.warnings.len(), 1);
    assert_eq!(loaded.warnings[0].nearest.as_deref(), Some("LEADER_LOCK_TTL_MS"));
}

#[test]
fn the_general_settings_and_their_edges() {
    let read = |pairs: &[(&str, &str)]| scaler_with(pairs).read(General::read).map(|loaded| loaded.settings);
    let general = read(&[]).unwrap();
    assert_eq!((general.environment.as_str(), general.log_level.as_str()), ("development", "info"));
    assert!(!general.instance_id.is_empty());
    let instance = |pairs: &[(&str, &str)]| scaler_with(pairs).read(Instance::read).unwrap().settings;
    assert_eq!(instance(&[("LOG_LEVEL", "loud")]).state_files().len(), 2, "nothing else is looked at");
    let folder = instance(&[("RUNTIME_DIR", "/elsewhere"), ("INSTANCE_ID", "a-1")]);
    assert_eq!(folder.state_file(), std::path::Path::new("/elsewhere/voiceai-scaler.a-1.json"));
    assert_eq!(folder.state_files(), [folder.state_file()]);
    assert_eq!(read(&[("MAIL_SHUTDOWN_TIMEOUT", "5s")]).unwrap().shutdown_timeout, Duration::from_secs(5));
    assert_eq!(read(&[("SHUTDOWN_TIMEOUT", "20")]).unwrap().shutdown_timeout, Duration::from_secs(20));
    assert_eq!(read(&[("LOG_LEVEL", "INFO,fred=warn")]).unwrap().log_level, "INFO,fred=warn");
    for (name, wrong) in [
        (&general::ENVIRONMENT, "pro duction"),
        (&general::ENVIRONMENT, "-x"),
        (&general::ENVIRONMENT, "0123456789012345678901234567890123"),
        (&general::INSTANCE_ID, "a/b"),
        (&general::LOG_LEVEL, "=info"),
    ] {
        let name = name.declaration.name;
        assert_eq!(violations(&read(&[(name, wrong)]).unwrap_err()), [name], "{wrong}");
    }
}

#[test]
fn the_start_line_names_each_value_with_its_layer_and_no_secret() {
    let resolved = scaler_with(&[("REDIS_URL", "redis://:canary@h:1"), ("LEADER_LOCK_TTL_MS", "12000")]);
    let lines: Vec<_> = resolved.print().iter().filter_map(voiceai_config::Printed::start_line).collect();
    let find = |name: &str| lines.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str());
    assert_eq!(find("REDIS_URL"), Some("redis://***@h:1 (environment)"));
    assert_eq!(find("LEADER_LOCK_TTL_MS"), Some("12000 (environment)"));
    assert_eq!(find("LEADER_HEARTBEAT_INTERVAL_MS"), Some("5000 (default)"));
    assert_eq!(find("DATABASE_URL"), None);
}

#[test]
fn hostile_values_stand_escaped_and_cut_in_the_report() {
    let long = format!("\u{1b}[31m\r\nFAKE{}", "x".repeat(10_000));
    let report = scaler_with(&[("LOG_LEVEL", long.as_str())]).read(General::read).unwrap_err().to_string();
    assert!(!report.contains('\u{1b}') && report.lines().count() == 1 && report.len() < 500, "{report}");
}

#[test]
fn the_stacks_exports_are_all_that_a_tasker_needs() {
    let resolved = Resolved::from_pairs(
        Binary::Tasker,
        [
            ("REDIS_URL", "redis://127.0.0.1:16379"),
            ("DATABASE_URL", "postgresql://ops:pw@127.0.0.1:15432/voiceai"),
            ("S3_BUCKET", "backups"),
            ("S3_ENDPOINT", "http://127.0.0.1:19000"),
            ("S3_ACCESS_KEY", "a"),
            ("S3_SECRET_KEY", "b"),
            ("SMTP_HOST", "127.0.0.1"),
            ("SMTP_PORT", "12525"),
            ("SMTP_TLS", "off"),
            ("SMTP_SINK_DIR", "/x"),
        ],
    );
    let loaded = resolved.read_whole(|r| r.get(&storage::S3_PREFIX)).unwrap();
    assert_eq!(loaded.settings, "database-dumps");
    assert_eq!(loaded.warnings, []);
}

#[test]
fn an_address_without_a_host_a_zone_for_a_region_and_a_way_up_are_refused_by_name() {
    let wrong = [
        ("ALERT_WEBHOOK_URL", "https:///services/s3cret-canary", "with a host"),
        ("CRL_RELOAD_URL", "http:reload", "URL with a host"),
        ("ROLLOUT_DISPATCH_URL", "https:///{device}", "URL with a host"),
        ("S3_ENDPOINT", "http:///store", "an http:// or https:// address"),
        ("S3_PUBLIC_ENDPOINT", "files.example.com", "an http:// or https:// address"),
        ("SES_ENDPOINT", "ses:443", "an http:// or https:// address"),
        ("MAIL_PUBLIC_URL", "https:///unsubscribe", "an http:// or https:// address"),
        ("AWS_REGION", "eu-central-1a", "a region of AWS such as eu-central-1"),
        ("S3_REGION", "Frankfurt", "the name of a region"),
        ("RECORDINGS_S3_REGION", "eu/central", "the name of a region"),
        ("NAMESPACE", "voiceai/../other", "names separated by single slashes"),
    ];
    let pairs = wrong.iter().map(|(name, value, _)| (*name, *value));
    let needed = [
        ("REDIS_URL", "redis://h"),
        ("DATABASE_URL", "postgres://h/d"),
        ("MAIL_UNSUBSCRIBE_SECRET", "0123456789abcdef0123456789abcdef"),
    ];
    let resolved = Resolved::from_pairs(Binary::Tasker, pairs.chain(needed));
    let report = resolved.read_whole(|_| ()).unwrap_err();
    let text = report.to_string();
    assert!(!text.contains("canary"), "{text}");
    for (name, _, expected) in wrong {
        let violation = report.violations.iter().find(|one| one.name == name);
        let violation = violation.unwrap_or_else(|| panic!("{name} is not among {text}"));
        assert!(violation.expected.contains(expected), "{violation:?}");
        assert_eq!(violation.layer.as_deref(), Some("environment"), "{violation:?}");
        assert!(violation.remedy.starts_with("Correct it in "), "{violation:?}");
    }
    assert_eq!(report.violations.len(), wrong.len(), "{text}");
}
