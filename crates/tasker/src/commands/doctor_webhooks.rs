//! What `doctor` says of webhooks.

use std::time::Duration;

use voiceai_cli::doctor::Finding;
use voiceai_cli::human_duration;
use voiceai_doctor::Stores;
use voiceai_webhook::{Backlog, backlog};

/// A delivery that is due for longer while its endpoint answers: nobody posts, or too slowly.
const OLD: Duration = Duration::from_secs(5 * 60);

pub(super) async fn check_endpoints(stores: Stores) -> Finding {
    look(&stores).await.map_or_else(|finding| finding, |backlog| judge_endpoints(&backlog))
}

pub(super) async fn check_backlog(stores: Stores) -> Finding {
    look(&stores).await.map_or_else(|finding| finding, |backlog| judge_backlog(&backlog))
}

async fn look(stores: &Stores) -> Result<Backlog, Finding> {
    let pool = stores.pool().await?;
    let unreadable =
        |error| Finding::failed(format!("webhooks cannot be read: {error}"), "Run `migrate` once.");
    backlog(&pool).await.map_err(unreadable)
}

fn judge_endpoints(backlog: &Backlog) -> Finding {
    let Backlog { endpoints, endpoints_resting, endpoints_disabled_by_themselves: disabled, .. } = backlog;
    if *disabled > 0 {
        return Finding::warning(
            format!(
                "{disabled} endpoints disabled by themselves, {endpoints_resting} resting, {endpoints} active"
            ),
            "See `webhook endpoints`; tell the tenant, and `webhook test ID --resend` once it answers again.",
        );
    }
    if *endpoints_resting > 0 {
        return Finding::warning(
            format!(
                "{endpoints_resting} of {endpoints} endpoints are left alone for a while: they fail, or asked for time"
            ),
            "See `webhook endpoints` and `webhook deliveries --endpoint ID`; they are tried again by themselves.",
        );
    }
    Finding::ok(format!("{endpoints} endpoints, none disabled by itself, none resting"))
}

fn judge_backlog(backlog: &Backlog) -> Finding {
    let Backlog { due, waiting, dead, .. } = backlog;
    if backlog.oldest() > OLD {
        return Finding::failed(
            format!("{due} deliveries are due, the oldest for {}", human_duration(backlog.oldest())),
            "See `status` for a live tasker that is not held; then raise WEBHOOK_CONCURRENCY.",
        );
    }
    let dead = if *dead > 0 {
        format!(", {dead} given up (`webhook deliveries --state dead`)")
    } else {
        String::new()
    };
    Finding::ok(format!("{due} deliveries due, {waiting} waiting for their time{dead}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_by_itself_is_told_and_what_a_person_disabled_is_not() {
        let shown = |backlog: &Backlog| {
            let (endpoints, backlog) = (judge_endpoints(backlog), judge_backlog(backlog));
            (format!("{endpoints:?}"), format!("{backlog:?}"))
        };
        let sound = Backlog {
            endpoints: 3,
            endpoints_disabled: 1,
            due: 9,
            oldest_seconds: 300,
            ..Backlog::default()
        };
        let (endpoints, backlog) = shown(&sound);
        assert!(endpoints.contains("none disabled by itself"), "{endpoints}");
        assert!(backlog.contains("9 deliveries due"), "{backlog}");
        let (endpoints, _) = shown(&Backlog { endpoints_resting: 2, ..sound });
        assert!(endpoints.contains("2 of 3 endpoints are left alone"), "{endpoints}");
        let (endpoints, _) = shown(&Backlog { endpoints_disabled_by_themselves: 1, ..sound });
        assert!(endpoints.contains("1 endpoints disabled by themselves"), "{endpoints}");
        let (_, backlog) = shown(&Backlog { oldest_seconds: 301, ..sound });
        assert!(backlog.contains("WEBHOOK_CONCURRENCY"), "{backlog}");
    }
}
