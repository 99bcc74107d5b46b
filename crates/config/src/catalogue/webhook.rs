//! Webhooks: events that are posted to tenants' endpoints.

use std::time::Duration;

use crate::duration::parse_duration;
use crate::setting::{Binaries, settings};
use crate::value::kinds::{boolean, duration, integer, list};

settings! {
    "Webhooks", "Every event is a row in PostgreSQL before it is posted; see docs/webhooks.md.";

    /// Deliveries that one process has under way at a time. A quarter as many again are kept apart for endpoints that are failing.
    WEBHOOK_CONCURRENCY: u32 = integer().default("100").between(1, 1_000).only(Binaries::Tasker);
    /// The same for one endpoint, over all processes. An endpoint may name a figure of its own.
    WEBHOOK_ENDPOINT_CONCURRENCY: u32 = integer().default("4").between(1, 1_000).only(Binaries::Tasker);
    /// The same for all endpoints of one tenant together.
    WEBHOOK_TENANT_CONCURRENCY: u32 = integer().default("16").between(1, 1_000).only(Binaries::Tasker);
    /// Longest time to an endpoint's answer, from the look at its name to the last header. An endpoint may name a shorter one.
    WEBHOOK_TIMEOUT: Duration = duration().default("15s").between(100, 60_000).only(Binaries::Tasker);
    /// Longest time for resolving the name, connecting and TLS, within that.
    WEBHOOK_CONNECT_TIMEOUT: Duration = duration().default("5s").between(100, 60_000).only(Binaries::Tasker);
    /// Most bytes of an answer's body that are read; the rest is cut off and changes nothing.
    WEBHOOK_RESPONSE_BYTES_MAX: u32 = integer().default("65536").between(0, 1_048_576).only(Binaries::Tasker);
    /// Largest event in bytes, as it is posted.
    WEBHOOK_EVENT_BYTES_MAX: u32 = integer().default("262144").between(1_024, 10_485_760).only(Binaries::Tasker);
    /// Waits before the first, second, … attempt, in order. After the last attempt a delivery is dead, and may be replayed.
    WEBHOOK_RETRY_LADDER: Vec<String> = list().default("0s,5s,5m,30m,2h,5h,10h,14h,20h,24h").only(Binaries::Tasker)
        .check("durations separated by commas, such as 0s,5s,5m, at most 50, each at most 7d", is_ladder);
    /// Most by which a wait of the ladder is lengthened or shortened at random, in percent.
    WEBHOOK_RETRY_JITTER: u32 = integer().default("10").between(0, 50).only(Binaries::Tasker);
    /// Longest wait that an endpoint's own `Retry-After` is obeyed for.
    WEBHOOK_RETRY_AFTER_MAX: Duration = duration().default("24h").between(0, 604_800_000).only(Binaries::Tasker);
    /// So many failures in a row open an endpoint's circuit: it is left alone for a while, without spending attempts.
    WEBHOOK_CIRCUIT_FAILURES: u32 = integer().default("5").between(1, 1_000).only(Binaries::Tasker);
    /// How long an open circuit rests before one delivery tries again; it doubles with each failure.
    WEBHOOK_CIRCUIT_PAUSE: Duration = duration().default("30s").between(10, 3_600_000).only(Binaries::Tasker);
    /// Longest such rest.
    WEBHOOK_CIRCUIT_PAUSE_MAX: Duration = duration().default("15m").between(10, 86_400_000).only(Binaries::Tasker);
    /// An endpoint that only failed for this long is disabled; a person enables it again. One that answers 410 is disabled at once.
    WEBHOOK_DISABLE_AFTER: Duration = duration().default("5d").between(1_000, 31_536_000_000).only(Binaries::Tasker);
    /// How long the secret that a rotation replaced still signs beside the new one.
    WEBHOOK_SECRET_GRACE: Duration = duration().default("24h").between(0, 2_592_000_000).only(Binaries::Tasker);
    /// Networks and addresses that endpoints may have although they are not public, such as `127.0.0.1/32`. For development.
    WEBHOOK_ALLOW_NETWORKS: Vec<String> = list().computed_default("none: only public addresses").only(Binaries::Tasker);
    /// Whether an endpoint's URL may be `http://`. For development.
    WEBHOOK_ALLOW_HTTP: bool = boolean().default("false").only(Binaries::Tasker);
    /// How long a delivery that has ended is listed, with its attempts; a dead one can be replayed for as long.
    WEBHOOK_RETENTION: Duration = duration().default("30d").between(1_000, 315_360_000_000).only(Binaries::Tasker);
}

pub(super) fn is_ladder(raw: &str) -> bool {
    let week = Duration::from_secs(7 * 24 * 60 * 60);
    let rungs: Vec<_> = raw.split(',').map(|rung| parse_duration(rung).ok()).collect();
    rungs.len() <= 50 && rungs.iter().all(|rung| rung.is_some_and(|rung| rung <= week))
}
