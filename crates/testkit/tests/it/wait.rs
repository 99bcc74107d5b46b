use std::time::{Duration, Instant};

use voiceai_testkit::{wait_for, wait_until};

#[tokio::test]
async fn a_condition_is_seen_as_soon_as_it_holds() {
    let began = Instant::now();
    let mut looks = 0;
    wait_until(Duration::from_secs(30), "three looks", async || {
        looks += 1;
        looks == 3
    })
    .await;
    assert_eq!(looks, 3);
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(wait_for(Duration::from_secs(1), "a value", async || Ok::<_, String>(7)).await, 7);
}

#[tokio::test]
#[should_panic(
    expected = "not seen within 50ms: the moon; last seen: clouds (waited at crates/testkit/tests/it/wait.rs:"
)]
async fn what_is_never_seen_is_named_with_its_place() {
    let never: () = wait_for(Duration::from_millis(50), "the moon", async || Err("clouds")).await;
    unreachable!("{never:?}");
}

#[tokio::test]
#[should_panic(expected = "not seen within 50ms: an answer")]
async fn a_look_that_hangs_is_cut_off() {
    wait_until(Duration::from_millis(50), "an answer", async || std::future::pending().await).await;
}
