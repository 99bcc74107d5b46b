//! A loop that panics in a real process.

use voiceai_postgres::sqlx;
use voiceai_testkit::wait_until;

use crate::harness::{Stack, WITHIN};

#[tokio::test]
async fn a_leading_loop_that_panics_is_started_again_and_leads_on() {
    let stack = Stack::new().await;
    let scaler = stack.scaler_with_failpoint("one", "worker.scaler-leader=panic");
    scaler.wait_for_line(WITHIN, "worker panicked; it is started again").await;
    // Only now is there anything to do, and only a loop that runs does it.
    stack.group("eu", 1, 1, &stack.config()).await;
    let made = async || -> i64 {
        let made = sqlx::query_scalar("SELECT count(*) FROM ops.operations WHERE kind = 'up'");
        made.fetch_one(&stack.pool).await.expect("a count")
    };
    wait_until(WITHIN, "a server is made", async || made().await == 1).await;
    assert_eq!(scaler.exit(), None, "{}", scaler.stderr());
    assert!(scaler.stderr().contains("worker started again after a panic"), "{}", scaler.stderr());
}
