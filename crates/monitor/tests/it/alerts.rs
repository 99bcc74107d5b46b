//! Alerts: once, on recovery, by the leader, whole or not at all.

use voiceai_monitor::{MonitorError, State};
use voiceai_postgres::sqlx;

use crate::receiver::{Act, Receiver, WELL};
use crate::stage::{Stage, elected};

const ILL: Act = Act::Answer(500, "", "");

#[tokio::test]
async fn an_alert_is_opened_once_and_closed_on_recovery() {
    let service = Receiver::start(WELL).await;
    let url = service.url();
    let stage = Stage::new(&[("api", &url)]).await;
    stage.round().await;
    service.now(ILL);
    assert_eq!(stage.round().await.opened, 0, "one bad answer is none");
    assert_eq!(stage.alerts().await, (0, 0));
    assert_eq!(stage.round().await.opened, 1);
    let since = stage.line("api").await.alert_since.unwrap();
    service.now(Act::Hang);
    stage.round().await;
    stage.round().await;
    assert_eq!(stage.alerts().await, (1, 1), "it stays one, whatever is wrong");
    assert_eq!(stage.line("api").await.alert_since, Some(since));
    service.now(WELL);
    assert_eq!(stage.round().await.closed, 0, "one good answer is no recovery");
    assert_eq!(stage.alerts().await, (1, 1));
    assert_eq!(stage.round().await.closed, 1);
    assert_eq!(stage.alerts().await, (0, 1));
    assert_eq!(stage.told(), [["service.down api"], ["service.recovered api"]]);
    let told = stage.told.lock().unwrap().concat();
    assert_eq!(told[0].alert, told[1].alert);
    assert!(told[0].since == told[1].since && told[0].since < told[1].at, "{told:?}");
    assert!(told[0].reason().contains("degraded: answers 500"), "{}", told[0].reason());
    let row: (String, String, String, i16, String) = sqlx::query_as(
        "SELECT tenant, kind, fingerprint, severity, details ->> 'resolution' FROM ops.system_alerts",
    )
    .fetch_one(&stage.pool)
    .await
    .unwrap();
    let wanted = ("__system__", "SYSTEM_HEALTH", "system-health:api", 5, "recovered");
    assert_eq!((row.0.as_str(), row.1.as_str(), row.2.as_str(), row.3, row.4.as_str()), wanted);
}

#[tokio::test]
async fn switched_off_there_are_states_and_no_alerts() {
    let service = Receiver::start(ILL).await;
    let url = service.url();
    let mut stage = Stage::new(&[("api", &url)]).await;
    stage.policy.alerts = false;
    for _ in 0..4 {
        stage.round().await;
    }
    assert_eq!((stage.line("api").await.status, stage.alerts().await), (State::Degraded, (0, 0)));
    stage.policy.alerts = true;
    stage.round().await;
    assert_eq!(stage.alerts().await, (1, 1), "switched on again it is told at once");
    stage.policy.alerts = false;
    service.now(WELL);
    stage.round().await;
    stage.round().await;
    assert_eq!((stage.alerts().await, stage.told().len()), ((0, 1), 1), "closed in silence");
}

#[tokio::test]
async fn what_cannot_be_told_is_not_opened_and_comes_with_the_next_round() {
    let service = Receiver::start(ILL).await;
    let well = Receiver::start(WELL).await;
    let (url, other) = (service.url(), well.url());
    let stage = Stage::new(&[("api", &url), ("other", &other)]).await;
    stage.round().await;
    *stage.refuse.lock().unwrap() = true;
    assert!(matches!(stage.try_round().await, Err(MonitorError::Database { .. })));
    assert_eq!(stage.alerts().await, (0, 0));
    assert!(stage.line("other").await.checked_at > stage.line("api").await.checked_at, "the others go on");
    *stage.refuse.lock().unwrap() = false;
    stage.round().await;
    assert_eq!((stage.alerts().await, stage.told().len()), ((1, 1), 1));
}

#[tokio::test]
async fn a_leader_that_was_replaced_writes_nothing_and_its_successor_goes_on_counting() {
    let service = Receiver::start(ILL).await;
    let url = service.url();
    let mut stage = Stage::new(&[("api", &url)]).await;
    stage.round().await;
    let before = stage.line("api").await;
    let successor = elected(&stage.pool).await;
    // It still believes in its lease, as after a pause.
    assert!(matches!(stage.try_round().await, Err(MonitorError::Replaced { .. })));
    assert_eq!(stage.line("api").await, before);
    assert_eq!((stage.alerts().await, stage.told().len()), ((0, 0), 0));
    stage.tenure = successor;
    assert_eq!(stage.round().await.opened, 1, "the first bad answer was its predecessor's");
    stage.tenure.end();
    assert!(matches!(stage.try_round().await, Err(MonitorError::Replaced { .. })));
}

#[tokio::test]
async fn a_service_that_is_not_watched_any_more_leaves_neither_row_nor_open_alert() {
    let service = Receiver::start(ILL).await;
    let url = service.url();
    let mut stage = Stage::new(&[("api", &url), ("edge", &url)]).await;
    stage.round().await;
    stage.round().await;
    assert_eq!(stage.alerts().await, (2, 2));
    stage.watch(&[("edge", &url)]);
    stage.round().await;
    let names: Vec<_> = stage.lines().await.into_iter().map(|line| line.service).collect();
    assert_eq!((names, stage.alerts().await), (vec!["edge".to_owned()], (1, 2)));
    let left: String =
        sqlx::query_scalar("SELECT details ->> 'resolution' FROM ops.system_alerts WHERE service = 'api'")
            .fetch_one(&stage.pool)
            .await
            .unwrap();
    assert_eq!(left, "unwatched");
}

#[tokio::test]
async fn many_at_once_are_told_together() {
    let service = Receiver::start(ILL).await;
    let url = service.url();
    let names: Vec<String> = (0..40).map(|n| format!("s-{n}")).collect();
    let services: Vec<_> = names.iter().map(|name| (name.as_str(), url.as_str())).collect();
    let mut stage = Stage::new(&services).await;
    stage.policy.alert_after = 1;
    assert_eq!(stage.round().await.opened, 40);
    let sizes: Vec<_> = stage.told().iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 30]);
    assert_eq!(stage.alerts().await, (40, 40));
    stage.policy.recover_after = 1;
    service.now(WELL);
    assert_eq!(stage.round().await.closed, 40);
    assert_eq!(stage.alerts().await, (0, 40));
}
