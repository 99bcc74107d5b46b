//! The idle worker's ear: a blocking wait on a connection of its own.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use voiceai_redis::{Redis, Value};
use voiceai_runtime::{Backoff, random_unit};

use super::lease::Signal;
use crate::library::QueueName;

/// Waits for the queue's wake marker whenever `wanted` is rung, and says so. The marker is no data: losing it costs one
/// poll interval.
pub(super) async fn listen(
    redis: Redis,
    queue: QueueName,
    poll: Duration,
    wanted: Arc<Notify>,
    tell: mpsc::UnboundedSender<Signal>,
    ended: CancellationToken,
) {
    let key = queue.key("wake");
    let mut connection = None;
    let mut failures = 0;
    loop {
        tokio::select! {
            () = ended.cancelled() => break,
            () = wanted.notified() => {}
        }
        let waited = async {
            let ear = match connection.take() {
                Some(ear) => ear,
                None => redis.blocking().await?,
            };
            let woken = ear.bzpopmin(&key, poll).await;
            // Kept also after a failure: it reconnects by itself, and a new one each time would pile up.
            connection = Some(ear);
            woken
        };
        let woken = tokio::select! {
            () = ended.cancelled() => {
                // The marker may have been taken by this wait: another worker shall not miss it.
                let _: Result<Value, _> =
                    redis.command("ZADD", vec![Value::from(key.as_str()), 0.into(), "w".into()]).await;
                break;
            }
            woken = waited => woken,
        };
        match woken {
            // Nothing came in a whole interval: look anyway, that is what the interval is for.
            Ok(_) => failures = 0,
            Err(error) => {
                tracing::debug!(%error, queue = %queue.name, "waiting for work failed");
                tokio::time::sleep(Backoff::RECONNECT.delay(failures, random_unit())).await;
                failures += 1;
            }
        }
        if tell.send(Signal::Wake).is_err() {
            break;
        }
    }
}
