use std::time::Duration;

use voiceai_testkit::{Cluster, Sentinel, SentinelOptions};

const FAILOVER: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_killed_primary_is_replaced_and_the_cut_off_tail_is_lost() {
    let mut group = Sentinel::start().await;
    let old = group.primary().port();
    assert_eq!(group.primary_port().await, old);
    assert!(group.url().starts_with("redis-sentinel://127.0.0.1:"), "{}", group.url());
    assert_eq!(group.primary().cli(&["SET", "replicated", "yes"]).await, "OK");
    assert_eq!(group.primary().cli(&["WAIT", "2", "5000"]).await, "2");
    group.cut_replication().await;
    assert_eq!(group.primary().cli(&["SET", "tail", "yes"]).await, "OK");
    group.kill_primary().await;
    group.wait_for_failover(FAILOVER).await;
    assert_ne!(group.primary().port(), old);
    assert_eq!(group.primary().cli(&["GET", "replicated"]).await, "yes");
    assert_eq!(group.primary().cli(&["GET", "tail"]).await, "", "the tail was replicated after all");
    assert_eq!(group.primary().cli(&["SET", "after", "yes"]).await, "OK");
}

#[tokio::test]
async fn a_group_with_a_password_fails_over_on_request() {
    let options = SentinelOptions {
        requirepass: Some("group-password"),
        min_replicas_to_write: 1,
        ..SentinelOptions::default()
    };
    let mut group = Sentinel::start_with(options).await;
    let setting = group.primary().cli(&["CONFIG", "GET", "min-replicas-to-write"]).await;
    assert_eq!(setting.lines().last(), Some("1"));
    let old = group.primary().port();
    group.failover().await;
    group.wait_for_failover(FAILOVER).await;
    assert_ne!(group.primary().port(), old);
}

#[tokio::test]
async fn a_cluster_moves_a_slot_at_failover_and_after_a_kill() {
    let mut cluster = Cluster::start().await;
    assert_eq!(cluster.ports().len(), 6);
    let old = cluster.owner_port("{queue}:jobs").await;
    cluster.failover("{queue}:jobs", FAILOVER).await;
    let second = cluster.owner_port("{queue}:jobs").await;
    assert_ne!(second, old);
    cluster.owner_of("{queue}:jobs").await.kill9().await;
    cluster.wait_for_new_owner("{queue}:jobs", second, FAILOVER).await;
    let third = cluster.owner_of("{queue}:jobs").await;
    assert_eq!(third.cli(&["SET", "{queue}:jobs", "kept"]).await, "OK");
}
