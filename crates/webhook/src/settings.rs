use std::time::Duration;

use voiceai_config::catalogue::webhook as names;
use voiceai_config::{Reader, parse_duration};

use crate::guard::Allowed;
use crate::retry::Policy;

/// The settings of webhooks.
#[derive(Debug, Clone)]
pub struct WebhookSettings {
    /// `WEBHOOK_CONCURRENCY`. In one process.
    pub concurrency: usize,
    /// `WEBHOOK_ENDPOINT_CONCURRENCY`. Over all processes.
    pub endpoint_concurrency: u32,
    /// `WEBHOOK_TENANT_CONCURRENCY`. Over all processes.
    pub tenant_concurrency: u32,
    /// `WEBHOOK_TIMEOUT`.
    pub timeout: Duration,
    /// `WEBHOOK_CONNECT_TIMEOUT`.
    pub connect_timeout: Duration,
    /// `WEBHOOK_RESPONSE_BYTES_MAX`.
    pub response_bytes_max: usize,
    /// `WEBHOOK_EVENT_BYTES_MAX`.
    pub event_bytes_max: usize,
    /// When a delivery is tried again, and when an endpoint is left alone.
    pub policy: Policy,
    /// `WEBHOOK_SECRET_GRACE`.
    pub secret_grace: Duration,
    /// `WEBHOOK_ALLOW_NETWORKS`, `WEBHOOK_ALLOW_HTTP`.
    pub allowed: Allowed,
    /// `WEBHOOK_RETENTION`.
    pub retention: Duration,
}

impl WebhookSettings {
    /// Reads them.
    pub fn read(reader: &Reader<'_>) -> Self {
        let count = |setting| usize::try_from(reader.get(setting)).unwrap_or(usize::MAX);
        let networks = reader.optional(&names::WEBHOOK_ALLOW_NETWORKS).unwrap_or_default();
        let allowed = Allowed::parse(&networks, reader.get(&names::WEBHOOK_ALLOW_HTTP));
        let allowed = allowed.unwrap_or_else(|error| {
            let expected = format!("addresses and networks separated by commas, but {error}");
            let remedy = "Correct the entry, such as 127.0.0.1 or 10.0.0.0/8.";
            reader.violation(&names::WEBHOOK_ALLOW_NETWORKS, expected, remedy);
            Allowed::default()
        });
        let ladder = reader.get(&names::WEBHOOK_RETRY_LADDER);
        Self {
            concurrency: count(&names::WEBHOOK_CONCURRENCY),
            endpoint_concurrency: reader.get(&names::WEBHOOK_ENDPOINT_CONCURRENCY),
            tenant_concurrency: reader.get(&names::WEBHOOK_TENANT_CONCURRENCY),
            timeout: reader.get(&names::WEBHOOK_TIMEOUT),
            connect_timeout: reader.get(&names::WEBHOOK_CONNECT_TIMEOUT),
            response_bytes_max: count(&names::WEBHOOK_RESPONSE_BYTES_MAX),
            event_bytes_max: count(&names::WEBHOOK_EVENT_BYTES_MAX),
            policy: Policy {
                ladder: ladder.iter().filter_map(|rung| parse_duration(rung).ok()).collect(),
                jitter_percent: reader.get(&names::WEBHOOK_RETRY_JITTER),
                retry_after_max: reader.get(&names::WEBHOOK_RETRY_AFTER_MAX),
                circuit_failures: reader.get(&names::WEBHOOK_CIRCUIT_FAILURES),
                circuit_pause: reader.get(&names::WEBHOOK_CIRCUIT_PAUSE),
                circuit_pause_max: reader.get(&names::WEBHOOK_CIRCUIT_PAUSE_MAX),
                disable_after: reader.get(&names::WEBHOOK_DISABLE_AFTER),
            },
            secret_grace: reader.get(&names::WEBHOOK_SECRET_GRACE),
            allowed,
            retention: reader.get(&names::WEBHOOK_RETENTION),
        }
    }
}

#[cfg(test)]
mod tests {
    use voiceai_config::{Binary, Resolved};

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<WebhookSettings, String> {
        let resolved = Resolved::from_pairs(Binary::Tasker, pairs.iter().copied());
        resolved
            .read(WebhookSettings::read)
            .map(|loaded| loaded.settings)
            .map_err(|report| report.to_string())
    }

    #[test]
    fn the_ladder_is_the_settled_one_and_networks_are_checked() {
        let settings = read(&[]).unwrap();
        let hours: Vec<u64> = settings.policy.ladder.iter().map(Duration::as_secs).collect();
        assert_eq!(hours, [0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400]);
        assert!(read(&[("WEBHOOK_ALLOW_NETWORKS", "127.0.0.1,10.0.0.0/8,::1")]).is_ok());
        let refused = read(&[("WEBHOOK_ALLOW_NETWORKS", "10.0.0.0/99")]).unwrap_err();
        assert!(refused.contains("WEBHOOK_ALLOW_NETWORKS") && refused.contains("10.0.0.0/99"), "{refused}");
        let refused = read(&[("WEBHOOK_ALLOW_NETWORKS", "internal.corp")]).unwrap_err();
        assert!(refused.contains("internal.corp"), "{refused}");
    }
}
