use std::time::{Duration, Instant};

use voiceai_redis::{Redis, RedisSettings};
use voiceai_testkit::{Exit, wait_until};

use crate::{BINARIES, READY, SOON, platform};

#[tokio::test]
async fn sigterm_gives_up_the_lease_and_the_other_takes_over_at_its_next_poll() {
    let platform = platform().await;
    let redis =
        Redis::connect(&RedisSettings::from_url(platform.stores().redis_url.clone()).unwrap()).await.unwrap();
    for binary in BINARIES {
        let key = format!("{}:leader", binary.replacen("voiceai-", "voiceai:", 1));
        let leads = async |instance: &str| {
            redis.get(key.clone()).await.unwrap().is_some_and(|lease| {
                let lease: serde_json::Value = serde_json::from_str(&lease).unwrap();
                lease["instanceId"] == instance && lease["term"].as_i64() > Some(0)
            })
        };
        let first = platform.start(binary, "first");
        first.wait_until(SOON, "it leads", async || leads("first").await).await;
        first.wait_for_line(SOON, READY).await;
        let second = platform.start(binary, "second");
        second.wait_for_line(SOON, READY).await;
        first.terminate();
        let told = Instant::now();
        wait_until(SOON, "the second leads", async || leads("second").await).await;
        assert!(told.elapsed() < Duration::from_secs(5), "{binary}: {:?}", told.elapsed());
        assert_eq!(first.wait_exit(SOON).await, Exit::Code(0), "{}", first.stderr());
        assert!(first.stderr().contains("leader lost"), "{}", first.stderr());
        second.terminate();
        assert_eq!(second.wait_exit(SOON).await, Exit::Code(0), "{}", second.stderr());
        assert_eq!(redis.get(key.clone()).await.unwrap(), None, "the last one gave the lease up");
    }
}

#[tokio::test]
async fn sigterm_during_the_start_ends_it_with_0() {
    let mut platform = platform().await;
    let port = voiceai_testkit::Port::reserve();
    platform.set("REDIS_URL", format!("redis://127.0.0.1:{}/0", port.number()));
    for binary in BINARIES {
        let process = platform.start(binary, "a");
        process.wait_for_line(SOON, "not reachable yet").await;
        process.terminate();
        assert_eq!(process.wait_exit(SOON).await, Exit::Code(0), "{}", process.stderr());
    }
}
